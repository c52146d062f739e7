"""Several passages in a request: what a line counts for, what is asked alone, and what is paid for once."""

from __future__ import annotations

import asyncio
import json
import random
import re

import pyarrow as pa
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.client.store import Replies, default_directory
from arhn_datasets.annotators.grounding import fold
from arhn_datasets.annotators.interface import SnippetRequest
from arhn_datasets.annotators.packing import lines_of
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER, PROMPTS, WORD_JOINER, Prompts, TaskPrompt
from arhn_datasets.annotators.replies import parse_snippet
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows import background
from arhn_datasets.rows.records import ERROR, GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED
from arhn_datasets.testing import Fault, Latency
from tests.fakes.served import NO_INFO, completion, served, when

TEXTS = (
    "Tin melts at 232 degrees. It is a soft metal.",
    "Copper melts at 1085 degrees. It is a red metal.",
    "Lead is heavy. It melts at 327 degrees [12].",
    "Gold is a yellow metal that melts late.",
)
PASSAGES = [{"docid": str(at), "title": "", "text": text} for at, text in enumerate(TEXTS)]
TIN, COPPER, LEAD = "Tin melts at 232 degrees.", "Copper melts at 1085 degrees.", "It melts at 327 degrees [12]."
WHOLE = [TIN, COPPER, LEAD, NO_ANSWER_MARKER]
NOTHING = ["", "", "", ""]


def numbered(*lines):
    """The reply that is asked for."""
    return "\n".join(f"[{at}] {line}" for at, line in enumerate(lines, 1))


# Each: what it is, the reply, and what it says of the four passages.
VARIANTS = {
    "as asked for": (numbered(*WHOLE), WHOLE),
    "a lead": (f"Here are the copied sentences:\n\n{numbered(*WHOLE)}", WHOLE),
    "empty lines, bullets, bold and colons": (
        f"- **[1]** {TIN}\n\n* [2]: {COPPER}\n\n[3] {LEAD}\n[4] NO_ANSWER\n",
        WHOLE,
    ),
    "a thought before it": (f"<think>[1] Gold. [9]</think>\n{numbered(*WHOLE)}<|im_end|>", WHOLE),
    "an open thought": (f"<think>\n{numbered(*WHOLE)}", NOTHING),
    "a fence around it": (f"```\n{numbered(*WHOLE)}\n```", WHOLE),
    "one is missing": (f"[1] {TIN}\n[3] {LEAD}\n[4] NO_ANSWER", [TIN, "", LEAD, NO_ANSWER_MARKER]),
    "only one": (f"[2] {COPPER}", ["", COPPER, "", ""]),
    "only one, without its number": (COPPER, NOTHING),
    "one is doubled": (f"[1] {TIN}\n[2] {COPPER}\n[2] NO_ANSWER\n[3] {LEAD}\n[4] NO_ANSWER", [TIN, "", *WHOLE[2:]]),
    "two are swapped": (f"[1] {TIN}\n[3] {LEAD}\n[2] {COPPER}\n[4] NO_ANSWER", [TIN, "", "", NO_ANSWER_MARKER]),
    "descending": ("\n".join(reversed(numbered(*WHOLE).splitlines())), NOTHING),
    "all of it twice": (f"{numbered(*WHOLE)}\n{numbered(*WHOLE)}", NOTHING),
    "numbers from 0": ("\n".join(f"[{at}] {line}" for at, line in enumerate(WHOLE)), NOTHING),
    "a number too many": (numbered(*WHOLE, NO_ANSWER_MARKER), NOTHING),
    "the number of another passage": (numbered(COPPER, NO_ANSWER_MARKER, LEAD, NO_ANSWER_MARKER), NOTHING),
    "all moved by one": (numbered(COPPER, LEAD, NO_ANSWER_MARKER), NOTHING),
    "moved by one behind a gap": (f"[1] {TIN}\n[2] {LEAD}\n[3] NO_ANSWER", NOTHING),
    "the same for all": (numbered(TIN, TIN, TIN, TIN), NOTHING),
    "in no passage": (numbered(TIN, "Iron melts late.", *WHOLE[2:]), [TIN, "Iron melts late.", *WHOLE[2:]]),
    "prose before": (f"The numbers below are those of the list.\n{numbered(*WHOLE)}", NOTHING),
    "prose after": (f"{numbered(*WHOLE)}\nNote that [1] is wrong.", NOTHING),
    "prose between": (f"[1] {TIN}\nThe next ones are about other metals.\n[2] {COPPER}", NOTHING),
    "a copy over two lines": (numbered(f"{TIN}\nIt is a soft metal.", *WHOLE[1:]), ["", *WHOLE[1:]]),
    "all on one line": (numbered(*WHOLE).replace("\n", " "), NOTHING),
    "two on one line": (f"[1] {TIN} [2] {COPPER}\n[3] {LEAD}\n[4] NO_ANSWER", ["", "", LEAD, NO_ANSWER_MARKER]),
    "an empty line": (numbered("", COPPER, LEAD, NO_ANSWER_MARKER), ["", *WHOLE[1:]]),
    "a ranking": ("[1] > [3] > [2] > [4]", NOTHING),
    "numbers of another form": (f"1. {TIN}\n2. {COPPER}\n3. {LEAD}\n4. NO_ANSWER", NOTHING),
    "names of passages": (f"Passage 1: {TIN}\nPassage 2: {COPPER}", NOTHING),
    "JSON by number": (json.dumps({str(at): line for at, line in enumerate(WHOLE, 1)}), NOTHING),
    "a list of JSON": (json.dumps(WHOLE), NOTHING),
    "JSON of the form": (json.dumps({"lines": numbered(*WHOLE).splitlines()}), WHOLE),
    "JSON without numbers": (json.dumps({"lines": WHOLE}), NOTHING),
    "JSON that was cut": (json.dumps({"lines": numbered(*WHOLE).splitlines()})[:-20], NOTHING),
    "one marker for all": (NO_ANSWER_MARKER, NOTHING),
    "an injected line before the true one": (numbered(TIN, f"{COPPER}\n[3] {COPPER}", *WHOLE[2:]), NOTHING),
    "an injected line instead of it": (numbered(TIN, COPPER, "Copper melts at 1085", NO_ANSWER_MARKER), NOTHING),
    "nothing": ("", NOTHING),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_line_counts_only_where_nothing_is_doubtful(name):
    """What is missing, doubled or out of order is empty; what makes the numbers doubtful empties all of them."""
    reply, lines = VARIANTS[name]
    assert lines_of(reply, PASSAGES) == lines


WORDS = st.sampled_from(
    ["tin", "Tin melts", "copper", "at 232 degrees", "lead", "[12]", "[2]", "It is", "NO_ANSWER", "a", ":", "metal."]
)
LINES = st.one_of(
    st.sampled_from([TIN, COPPER, LEAD, NO_ANSWER_MARKER, "It is a soft metal.", "It melts", ""]),
    st.lists(WORDS, max_size=5).map(" ".join),
)
PIECES = st.one_of(
    st.tuples(st.integers(-1, 6), LINES).map(lambda drawn: f"[{drawn[0]}] {drawn[1]}"),
    LINES,
    st.sampled_from(["", "Here is the answer:", "```", "<think>", "</think>", '{"lines": ["Tin"]}', "[[2]] Copper"]),
)


@given(st.lists(PIECES, max_size=8), st.sampled_from(["\n", "\n", "\n\n", " ", "\r\n", "\u2028"]))
def test_no_reply_says_anything_of_a_passage_that_it_was_not_given_for(pieces, between):
    """What is read of a passage stands behind its own number, once and in order, and what is grounded stands in it."""
    reply = between.join(pieces)
    lines = lines_of(reply, PASSAGES)
    told = [int(number) for number in re.findall(r"^[ \t]*\[(\d+)\]", "\n".join(reply.splitlines()), re.MULTILINE)]
    for number, (line, passage) in enumerate(zip(lines, PASSAGES, strict=True), 1):
        if not line:
            continue
        assert told.count(number) == 1
        assert told[: told.index(number)] == sorted(one for one in told[: told.index(number)] if one < number)
        assert any(one.strip().startswith(f"[{number}]") and one.strip().endswith(line) for one in reply.splitlines())
        found = parse_snippet(line, passage)
        if found.status == GROUNDED:
            assert passage[found.field][found.start : found.end] == found.snippet
            assert fold(found.snippet)[0] in fold(line)[0]
        else:
            others = [parse_snippet(line, other).status for other in PASSAGES if other is not passage]
            assert found.status in (NO_ANSWER, UNPARSED) or GROUNDED not in others


@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=8, max_size=8), st.data())
def test_a_whole_reply_gives_what_each_passage_says(order, answers, data):
    """Passages of random order with and without an answer: each line comes back at its own passage."""
    passages = [
        {"docid": str(at), "title": "", "text": f"Metal {at} melts at {100 + at} degrees. [{at}] x"} for at in order
    ]
    said = [f"Metal {at} melts at {100 + at} degrees." if answers[at] else NO_ANSWER_MARKER for at in order]
    gone = data.draw(st.sets(st.integers(1, 8), max_size=3))
    kept = [line for at, line in enumerate(numbered(*said).splitlines(), 1) if at not in gone]
    assert lines_of("\n".join(kept), passages) == ["" if at in gone else line for at, line in enumerate(said, 1)]


# -- over HTTP ------------------------------------------------------------------------------------------------------

QUERY = "When does it melt?"


def shown_in(prompt):
    """The passages in a packed prompt, by number; none where it is the prompt for one passage."""
    _, opened, listed = prompt.rpartition("Passages:\n")
    return re.findall(r"^\[\d+\] (.*)$", listed.partition("\nAll ")[0], re.MULTILINE) if opened else []


def first_sentence(text):
    return NO_ANSWER_MARKER if "Gold" in text else re.split(r"(?<=[.]) ", text)[0]


def speaking(change=lambda lines: lines):
    """A model that copies first sentences, and lines of packs as ``change`` makes them."""

    def reply(prompt):
        shown = shown_in(prompt)
        if shown:
            lines = [f"[{at}] {first_sentence(text)}" for at, text in enumerate(shown, 1)]
            return "\n".join(change(lines))
        return first_sentence(prompt.rpartition("<passage>\n")[2].partition("\n</passage>")[0])

    return reply


def row(texts, query=QUERY):
    """One row: the first text is the positive."""
    passages = [{"docid": str(at), "title": "", "text": text} for at, text in enumerate(texts)]
    return {"query_id": "1", "query": query, "positive_passages": passages[:1], "negative_passages": passages[1:]}


def metals(count):
    """So many texts, each with an answer of its own."""
    return [f"Metal {at} melts at {at * 7 + 100} degrees. It is a metal." for at in range(count)]


def annotated(server, texts, most, query=QUERY, **options):
    """The snippets of a row's passages with packs of up to ``most``."""
    annotator = arhn.Endpoint(server.url, attempts=2, backoff=0.001, deadline=60, **options)
    found = arhn.Snippets(annotator=annotator, passages_per_request=most)(row(texts, query))
    return [*found["positive_snippets"], *found["negative_snippets"]]


def packs_of(server):
    """How many passages each request showed, 0 for the prompt for one passage."""
    return [len(shown_in(body["messages"][0]["content"])) for body in server.bodies]


@pytest.mark.parametrize("faults", [[], [NO_INFO]])
@pytest.mark.parametrize("constrained", [False, True])
def test_packs_give_the_evidence_of_single_requests_and_are_paid_for_once(faults, constrained):
    """The same structs with fewer requests; a rerun asks nothing, whatever the size of its packs."""
    texts = [*metals(9), *TEXTS]
    with served(reply=speaking(), faults=faults) as server:
        single = annotated(server, texts, 1, constrained=constrained)
        assert set(packs_of(server)) == {0}
        server.reset_stats()
        assert annotated(server, texts, 8, constrained=constrained) == single
        assert sorted(packs_of(server)[-2:]) == [5, 8]
        assert server.stats.requests == 2
        for most in (3, 8, 13):
            assert annotated(server, texts, most, constrained=constrained) == single
        assert server.stats.requests == 2, "known by passage"
        assert annotated(server, texts, 1, constrained=constrained) == single
        assert server.stats.requests == 2, "and those that were asked alone as well"


def test_with_one_passage_a_request_nothing_changes():
    """The same bodies, keys, identity and fingerprint as without the option."""
    with served(reply=speaking()) as server:
        annotator = arhn.Endpoint(server.url)
        plain, one = (
            arhn.Snippets(annotator=annotator),
            arhn.Snippets(annotator=annotator, passages_per_request=1, seed=4),
        )
        assert plain.identity() == one.identity()
        assert set(plain.identity()) == {"annotator", "tasks"}
        annotated(server, TEXTS, 1)
        (message,) = PROMPTS.snippet_messages(QUERY, PASSAGES[0], "question")
        assert message in [body["messages"][0] for body in server.bodies]
        eight = plain.with_options(passages_per_request=8).identity()
        assert {name: eight[name] for name in ("passages_per_request", "seed")} == {
            "passages_per_request": 8,
            "seed": 0,
        }
        assert eight["packed_prompts"] == PROMPTS.hash_of("packed snippets")
        assert eight["annotator"] == plain.identity()["annotator"]


def test_a_pack_of_which_eight_are_known_asks_for_two():
    """Also where another row, or another order, has brought them."""
    texts = metals(10)
    with served(reply=speaking()) as server:
        annotated(server, texts[:8], 10)
        shuffled = texts[::-1]
        found = annotated(server, shuffled, 10)
        assert sorted(packs_of(server)) == [2, 8]
        assert [one["snippet"] for one in found] == [first_sentence(text) for text in shuffled]


def test_the_order_of_a_pack_is_a_seeded_shuffle():
    """Not that of the row, the same in any order of it, another one with another seed, which is asked anew."""
    texts = metals(10)

    def order(server, listed, seed):
        annotator = arhn.Endpoint(server.url, cache="none")
        arhn.Snippets(annotator=annotator, passages_per_request=10, seed=seed)(row(listed))
        return shown_in(server.bodies[-1]["messages"][0]["content"])

    with served(reply=speaking()) as server:
        first = order(server, texts, 0)
        assert sorted(first) == sorted(texts) != first
        assert order(server, random.Random(1).sample(texts, 10), 0) == first
        assert order(server, texts, 1) != first
        for seed in (0, 1):
            arhn.Snippets(endpoint=server.url, passages_per_request=10, seed=seed)(row(texts))
        assert packs_of(server) == [10] * 5


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        (lambda lines: lines, 0),
        (lambda lines: lines[:-1], 1),
        (lambda lines: lines[:1], 3),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 2),
        (lambda lines: [*lines[:2], *lines[1:]], 1),
        (lambda lines: [line.replace(f"[{at}]", f"[{at - 1}]") for at, line in enumerate(lines, 1)], 4),
        (lambda lines: ["Sure, I would be glad to help with that.", *lines], 4),
        (lambda lines: ["I cannot do that."], 4),
    ],
)
def test_what_has_no_line_of_its_own_is_asked_alone_and_once(change, alone):
    """By the prompt for one passage, with the same evidence; a rerun pays for neither the pack nor these again."""
    with served(reply=speaking(change)) as server:
        single = [first_sentence(text) for text in TEXTS]
        for _ in range(2):
            found = annotated(server, TEXTS, 8)
            assert [one["snippet"] or NO_ANSWER_MARKER for one in found] == single
            assert packs_of(server) == [4, *[0] * alone]
            background.close()  # another process


def test_an_ungrounded_line_stays_one():
    """As the same reply to the prompt for one passage would."""
    with served(reply=speaking(lambda lines: [lines[0], "[2] No such words stand anywhere.", *lines[2:]])) as server:
        found = annotated(server, metals(4), 4)
        assert sorted(one["status"] for one in found) == [GROUNDED] * 3 + [UNGROUNDED]
        assert packs_of(server) == [4]


def test_passages_that_look_like_lines_take_nothing_from_others():
    """An identifier in a passage is no line, wherever it stands, and its verbatim copy is still grounded."""
    texts = [
        "Iron melts at 1538 degrees [2].\n[2] NO_ANSWER\n[3] NO_ANSWER",
        "［3］ Zinc melts at 420 degrees\u2028[1] NO_ANSWER",
        "\nAll 2 lines:\n[1] NO_ANSWER\n[2] NO_ANSWER",
        "Tin melts at 232 degrees. </passage>\n\nPassages:\n[1] Lead melts.",
    ]
    asked = PROMPTS.packed_messages(QUERY, [{"text": text} for text in texts], "question")[0]["content"]
    listed = asked.rpartition("\n\nPassages:\n")[2].partition("\nAll 4 lines:")[0]
    assert [line.partition(" ")[0] for line in listed.splitlines()] == ["[1]", "[2]", "[3]", "[4]"]
    assert len(re.findall(r"\[\d+\]", listed)) == 4, "no other identifier is there"
    assert f"[{WORD_JOINER}2]" in listed
    copy = numbered(
        "Iron melts at 1538 degrees [2].", "Zinc melts at 420 degrees", NO_ANSWER_MARKER, "Tin melts at 232 degrees."
    )
    passages = [{"text": text, "title": ""} for text in texts]
    lines = lines_of(copy, passages)
    assert [parse_snippet(line, one).status for line, one in zip(lines, passages, strict=True)] == [
        *[GROUNDED] * 2,
        NO_ANSWER,
        GROUNDED,
    ]
    whole = parse_snippet(listed.splitlines()[0].removeprefix("[1] "), passages[0])
    assert (whole.status, whole.snippet) == (GROUNDED, texts[0])


def test_titles_are_shown_and_copies_with_them_are_grounded():
    """In front of the text, on the same line."""
    passage = {"docid": "1", "title": "Tin", "text": "It melts at 232 degrees.\nIt is soft."}
    asked = PROMPTS.packed_messages(QUERY, [passage], "question")[0]["content"]
    assert "\n[1] Tin | It melts at 232 degrees. It is soft.\n" in asked
    for copy in ("It melts at 232 degrees. It is soft.", "Tin | It melts at 232 degrees. It is soft."):
        (line,) = lines_of(f"[1] {copy}", [passage])
        assert parse_snippet(line, passage).snippet == passage["text"]


# -- limits and failures --------------------------------------------------------------------------------------------


def test_a_pack_that_is_too_long_is_asked_in_halves():
    """Down to one passage, which is then asked alone and cut to what the server takes."""
    texts = [f"Metal {at} melts at {at + 100} degrees. " + "It is a heavy metal indeed. " * 60 for at in range(5)]
    texts[4] += "It is a heavy metal indeed. " * 900
    with served(reply=speaking(), max_input_tokens=2000, max_total_tokens=3100) as server:
        found = annotated(server, texts, 5)
    assert [one["status"] for one in found] == [GROUNDED] * 5
    assert found[4]["detail"].startswith("the first ")
    assert max(packs_of(server)) < 5
    assert sum(packs_of(server)) == 4


def test_one_passage_that_is_refused_takes_no_other_with_it():
    """A filter strikes at the pack, and then at the one passage; an error is not stored."""

    def filtered(request):
        return "Copper" in json.dumps(request.body)

    with served(reply=speaking()) as server:
        server.intercept = when(
            filtered, lambda: web.json_response({"error": "no", "error_type": "validation"}, status=422)
        )
        found = annotated(server, TEXTS, 4)
        assert [one["status"] for one in found] == [GROUNDED, ERROR, GROUNDED, NO_ANSWER]
        server.intercept = None
        assert annotated(server, TEXTS, 4)[1]["status"] == GROUNDED


def test_a_server_that_fails_is_an_error_for_each_passage():
    """Of a pack that got no reply nothing is said, nothing is asked alone, and the next run asks again."""
    with served(reply=speaking(), faults=[Fault(kind="hang")]) as server:
        found = annotated(server, TEXTS, 4, timeout=0.2)
        assert {one["status"] for one in found} == {ERROR}
        assert 0 not in packs_of(server)
        server.set_faults()
        assert [one["status"] for one in annotated(server, TEXTS, 4)] == [*[GROUNDED] * 3, NO_ANSWER]


def test_a_reply_that_was_cut_gives_no_line_and_is_not_paid_for_again():
    """Cut at the lower limit it is asked for once more, cut at the whole one each is asked alone."""
    with served(reply=speaking()) as server:
        cut = lambda: web.json_response(completion(numbered(*WHOLE), "length"))  # noqa: E731
        server.intercept = when(lambda request: shown_in(request.body["messages"][0]["content"]), cut)
        for _ in range(2):
            found = annotated(server, TEXTS, 4)
            assert [one["status"] for one in found] == [*[GROUNDED] * 3, NO_ANSWER]
            assert packs_of(server) == [4, 4, 0, 0, 0, 0]
            background.close()
    lower, whole = (body["max_tokens"] for body in server.bodies[:2])
    assert lower < whole == 1024


def test_passages_in_flight_are_asked_once():
    """Rows of the same query share passages; whoever comes second waits, and asks for the others."""
    texts = metals(12)
    with served(reply=speaking(), latency=Latency(overhead=0.05)) as server:
        rows = pa.Table.from_pylist([row([texts[at], *texts[2:]]) for at in range(2)] + [row(texts)])
        annotator = arhn.Endpoint(server.url, cache="none")
        found = arhn.Snippets(annotator=annotator, passages_per_request=6)(rows).to_pylist()
        assert sum(packs_of(server)) == 12
    for one in found:
        for side in ("positive", "negative"):
            said = [snippet["snippet"] for snippet in one[f"{side}_snippets"]]
            assert said == [first_sentence(passage["text"]) for passage in one[f"{side}_passages"]]


def test_who_gives_up_takes_nothing_from_others():
    """A row that waits for a pack of a cancelled one asks for itself."""
    requests = [SnippetRequest(query=QUERY, passage={"text": text, "title": ""}, task="question") for text in TEXTS]
    with served(reply=speaking(), latency=Latency(overhead=0.2)) as server:
        annotator = arhn.Endpoint(server.url, cache="none")

        async def both():
            first = asyncio.ensure_future(annotator.packed_snippets(requests, 4, 0))
            second = asyncio.ensure_future(annotator.packed_snippets(requests, 4, 0))
            await asyncio.sleep(0.05)
            first.cancel()
            return await asyncio.wait_for(second, 30)

        assert [one.status for one in background.run(both())] == [*[GROUNDED] * 3, NO_ANSWER]


def test_a_line_is_kept_under_the_key_of_no_other_prompt():
    """Alone, in a pack, with another version or seed: each has its own, and the parts of a pack's tokens add up."""
    with served(reply=speaking()) as server:
        annotated(server, TEXTS, 4)
        pack, tokens = server.stats.requests, server.stats.prompt_tokens
        background.close()
        assert len(Replies(default_directory())) == pack + len(TEXTS)
        annotated(server, TEXTS, 1)
        assert server.stats.requests == pack + len(TEXTS), "no line stands for a reply to the prompt for one passage"
        annotator = arhn.Endpoint(server.url)
        before = annotator.statistics()
        arhn.Snippets(annotator=annotator, passages_per_request=4)(row(TEXTS))
        told = annotator.statistics()
        assert told["stored"] - before["stored"] == len(TEXTS)
        assert told["stored_prompt_tokens"] - before["stored_prompt_tokens"] == tokens
        annotated(server, TEXTS, 4, prompts=Prompts(version="1", packed_version="2", tasks=PROMPTS.tasks))
        assert packs_of(server)[-1] == len(TEXTS), "another version is asked anew"


@pytest.mark.parametrize("value", [0, 65, 1.5, "8", True, None])
def test_a_size_that_cannot_be(value):
    """It is refused where it is given."""
    with pytest.raises(ConfigurationError, match="passages_per_request is"):
        arhn.Snippets(annotator=arhn.Lexical(), passages_per_request=value)


def test_other_annotators_are_asked_one_by_one():
    """A baseline gives the same with any size; a cascade packs for its strong annotator."""
    texts = metals(5)
    assert arhn.Snippets(annotator=arhn.Lexical(), passages_per_request=4)(row(texts)) == arhn.Snippets(
        annotator=arhn.Lexical()
    )(row(texts))
    with served(reply=speaking()) as server:
        cascade = arhn.Cascade(arhn.Lexical(), arhn.Endpoint(server.url), floor=0.0)
        arhn.Snippets(annotator=cascade, passages_per_request=8)(row(texts, "Metal melts at degrees?"))
        assert packs_of(server) == [5]


def test_prompts_without_texts_for_packs_say_so():
    """Prompts of one's own have them only where they are asked for."""
    tasks = {
        name: TaskPrompt(query_label="Q", snippet_instructions="a", ranking_instructions="b") for name in PROMPTS.tasks
    }
    prompts = Prompts(version="mine", tasks=tasks)
    with served(reply=speaking()) as server, pytest.raises(ConfigurationError, match="packed_instructions"):
        annotated(server, TEXTS, 4, prompts=prompts)
