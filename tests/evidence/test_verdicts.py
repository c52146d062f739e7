"""Verdicts: what is asked, and which verdict each negative has."""

from __future__ import annotations

import pytest
from aiohttp import web
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Ranking, Snippet, Verdict
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.records import VERDICT_TYPE
from arhn_datasets.testing import Emulator
from tests.fakes.served import always, when


class Judge(arhn.Annotator):
    """Replies to each request with ``reply(candidates)``, and keeps the requests."""

    awaits = False

    def __init__(self, reply, name="judge"):
        self.reply = reply
        self.name = name
        self.requests = []

    async def snippet(self, request):
        return Snippet(status="unparsed")

    async def ranking(self, request):
        return Ranking(status="unparsed")

    async def verdicts(self, request):
        self.requests.append(request)
        return self.reply(request.candidates)

    def identity(self, stage):
        return {"annotator": self.name, "stage": stage}


def by_word(candidates):
    """Each candidate is what its first word says."""
    return tuple(Verdict(status="judged", verdict=text.split()[0]) for text in candidates)


def row_of(*texts, positives=("tin melts",)):
    """A row with these negatives."""
    return {
        "query_id": "q",
        "query": "why?",
        "subset": "fever",
        "positive_passages": [{"docid": f"p{i}", "title": "", "text": text} for i, text in enumerate(positives)],
        "negative_passages": [{"docid": f"n{i}", "title": "", "text": text} for i, text in enumerate(texts)],
    }


def told(row, field="verdict"):
    """One field of each negative's verdict."""
    return [verdict[field] for verdict in row["negative_verdicts"]]


texts = st.lists(st.sampled_from(["better", "worse", "no_match"]).flatmap(lambda w: st.just(w) | st.just(f"{w} too")))


@settings(deadline=None)
@given(texts, st.integers(1, 7), st.integers(0, 3))
def test_each_negative_has_the_verdict_on_its_text(negatives, window, seed):
    """Whatever the windows and the shown order; equal texts are one candidate and have one verdict."""
    judge = Judge(by_word)
    row = arhn.Verdicts(annotator=judge, window=window, seed=seed)(row_of(*negatives))
    assert told(row) == [text.split()[0] for text in negatives]
    assert row["positive_verdicts"] == [None]
    shown = [text for request in judge.requests for text in request.candidates]
    assert sorted(shown) == sorted(set(negatives))
    assert all(1 <= len(request.candidates) <= window for request in judge.requests)
    assert len(judge.requests) == -(-len(set(negatives)) // window)


def test_the_request(row):
    """All positives are references; texts have their title; the task follows the subset."""
    judge = Judge(lambda candidates: (Verdict(status="judged", verdict="no_match"),) * len(candidates))
    row["positive_passages"].append({"docid": "p2", "title": "Sn", "text": "It\nmelts."})
    arhn.Verdicts(annotator=judge, tasks={"metals": "claim"})(row)
    (request,) = judge.requests
    assert request.positives == ("Sn It melts.", "Tin is soft. Tin melts at about 232 °C.")
    assert set(request.candidates) == {
        "Tin The melting temperature of tin is 232 °C. It is cheap.",
        "Tin can melt on a kitchen stove.",
        "Copper is red.",
    }
    assert (request.query, request.task, len(request.background)) == (row["query"], "claim", 5)


def test_the_shown_order_is_a_seeded_shuffle():
    """It depends on the seed and on the texts, not on their order in the row."""
    texts = [f"better {i}" for i in range(8)]

    def shown(texts, seed):
        judge = Judge(by_word)
        arhn.Verdicts(annotator=judge, seed=seed)(row_of(*texts))
        return judge.requests[0].candidates

    assert shown(texts, 0) == shown(texts[::-1], 0)
    assert len({shown(texts, seed) for seed in range(5)}) == 5


def test_a_row_without_positives_is_not_asked():
    """There is nothing to compare with; without negatives there is nothing to judge."""
    judge = Judge(by_word)
    row = arhn.Verdicts(annotator=judge)(row_of("better", positives=()))
    assert (told(row), told(row, "status")) == ([None], ["skipped"])
    row = arhn.Verdicts(annotator=judge)(row_of())
    assert (row["positive_verdicts"], row["negative_verdicts"], judge.requests) == ([None], [], [])


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (lambda c: (Verdict(status="judged", verdict="better"),) * (len(c) + 1), "unparsed"),
        (lambda c: (), "unparsed"),
        (lambda c: (Verdict(status="judged", verdict="equal"),) * len(c), "unparsed"),
        (lambda c: (Verdict(status="judged"),) * len(c), "unparsed"),
        (lambda c: (Verdict(status="error", verdict="better"),) * len(c), "unparsed"),
        (lambda c: (Verdict(status="error", detail="away"),) * len(c), "error"),
        (lambda c: (Verdict(status="great"),) * len(c), "unparsed"),
        (lambda c: (None,) * len(c), "unparsed"),
        (lambda c: ["better"] * len(c), "unparsed"),
        (lambda c: "bb", "unparsed"),
        (lambda c: dict.fromkeys(c, Verdict(status="judged", verdict="better")), "unparsed"),
        (lambda c: None, "unparsed"),
        (lambda c: Verdict(status="judged", verdict="better"), "unparsed"),
    ],
)
def test_what_no_annotator_may_say_is_no_verdict(reply, status):
    """Of annotators of one's own, too, only known verdicts on every candidate count."""
    row = arhn.Verdicts(annotator=Judge(reply))(row_of("a", "b"))
    assert (told(row), told(row, "status")) == ([None] * 2, [status] * 2)


def test_columns_are_typed():
    """From the first row on, where all verdicts are null."""
    rows = Dataset.from_list([row_of("a", positives=()), row_of("better", "worse too")])
    rows = rows.map(arhn.Verdicts(annotator=Judge(by_word)))
    for column in ("positive_verdicts", "negative_verdicts"):
        assert rows.features.arrow_schema.field(column).type.value_type == VERDICT_TYPE
    assert [told(row) for row in rows] == [[None], ["better", "worse"]]
    assert rows[1]["positive_verdicts"] == [None]


def test_options():
    """A window of none is refused; options and the screen change the identity; the message names arhn.verdicts."""
    with pytest.raises(ConfigurationError, match="window is 0"):
        arhn.Verdicts(window=0)
    for options, message in (
        ({"window": "2"}, "window is '2'; a whole number from 1"),
        ({"window": 2.0}, "window is 2.0; a whole number"),
        ({"seed": "1"}, "seed is '1'; a whole number was expected"),
        ({"screen": arhn.Lexical}, r"screen is the class Lexical; .*screen=arhn\.Lexical\(\.\.\.\)"),
        ({"screen": "http://x"}, r"screen is 'http://x'; an arhn.Annotator .*screen=arhn\.Endpoint\("),
    ):
        with pytest.raises(ConfigurationError, match=message):
            arhn.Verdicts(**options)
    base = arhn.Verdicts(annotator=Judge(by_word))
    others = [
        base.with_options(window=5),
        base.with_options(seed=1),
        base.with_options(tasks="claim"),
        base.with_options(screen=arhn.Lexical()),
    ]
    assert len({str(stage.identity()) for stage in (base, *others)}) == 5
    with pytest.raises(ConfigurationError, match=r"arhn\.verdicts\.with_options"):
        arhn.verdicts(row_of("a"))
    with pytest.raises(SchemaError, match="relabelled row"):
        base({**row_of("a"), "decision": {"status": "changed"}})


def test_an_annotator_without_verdicts(row):
    """The message names those that give them."""

    class Plain(Judge):
        verdicts = arhn.Annotator.verdicts

    with pytest.raises(ConfigurationError, match=r"Plain has no method verdicts\(\).*arhn.Endpoint, arhn.Local"):
        arhn.Verdicts(annotator=Plain(by_word))(row)


def test_the_lexical_baseline_gives_verdicts(row):
    """Better is as good as the best positive or above it, by its own figure; a passage below is worse, or no match."""
    lexical = arhn.Lexical(threshold=0.1, of_best=0)
    result = arhn.Verdicts(annotator=lexical)(row)
    assert told(result) == ["better", "better", "no_match"]
    assert set(told(result, "status")) == {"judged"}
    full = {**row, "positive_passages": [{"docid": "p", "title": "Tin", "text": row["query"]}]}
    assert told(arhn.Verdicts(annotator=lexical)(full)) == ["worse", "worse", "no_match"]
    assert told(arhn.Verdicts(annotator=arhn.Lexical(of_best=0.9))(full)) == ["worse", "no_match", "no_match"]


# -- the cascade ------------------------------------------------------------------------------------------------------


def test_the_strong_annotator_judges_only_rows_that_the_screen_flags():
    """A row is judged again as a whole; both verdicts are told."""
    screen = Judge(lambda c: tuple(Verdict(status="judged", verdict=t.split()[1]) for t in c), "screen")
    strong = Judge(by_word, "strong")
    stage = arhn.Verdicts(annotator=strong, screen=screen)
    quiet = stage(row_of("better no_match a", "worse no_match b"))
    assert (told(quiet), strong.requests) == (["no_match"] * 2, [])
    assert all(detail.startswith("by the screen alone") for detail in told(quiet, "detail"))
    flagged = stage(row_of("better no_match a", "no_match worse b", "worse no_match c"))
    assert told(flagged) == ["better", "no_match", "worse"]
    assert told(flagged, "detail") == ["screen: no_match.", "screen: worse.", "screen: no_match."]
    assert len(strong.requests) == 1
    assert stage.configured.statistics() == {"screened": 1}


@pytest.mark.parametrize("status", ["unparsed", "error", "partial"])
def test_a_screen_that_fails_rules_nothing_out(status):
    """A reply that could not be read is not one that found nothing."""
    verdict = "no_match" if status == "partial" else None
    screen = Judge(lambda c: (Verdict(status=status, verdict=verdict),) * len(c), "screen")
    strong = Judge(by_word, "strong")
    row = arhn.Verdicts(annotator=strong, screen=screen)(row_of("better", "no_match"))
    assert told(row) == ["better", "no_match"]
    assert len(strong.requests) == 1


def test_a_strong_annotator_that_fails_is_not_replaced_by_the_screen():
    """The screen's verdict is told, and is no evidence."""
    strong = Judge(lambda c: (Verdict(status="error", detail="away"),) * len(c), "strong")
    row = arhn.Verdicts(annotator=strong, screen=Judge(by_word, "screen"))(row_of("better", "no_match"))
    assert (told(row), told(row, "status")) == ([None] * 2, ["error"] * 2)
    assert told(row, "detail") == ["screen: better. away", "screen: no_match. away"]


# -- an endpoint ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained", [False, True])
def test_an_endpoint_gives_the_verdicts_of_its_model(sample, constrained):
    """Over HTTP, as plain text and as JSON, they are those of the lexical baseline behind the server."""
    with Emulator() as server:
        rows = Dataset.from_list(sample[:8])
        stage = arhn.Verdicts(annotator=arhn.Endpoint(server.url, constrained=constrained))
        judged = rows.map(stage)
        assert {s for row in judged for s in told(row, "status")} == {"judged"}
        assert {"better", "no_match"} <= {v for row in judged for v in told(row)} <= {"better", "worse", "no_match"}
        again = rows.map(arhn.Verdicts(endpoint=server.url), load_from_cache_file=False)
        if not constrained:
            assert again["negative_verdicts"][:] == judged["negative_verdicts"][:]


def test_a_reply_of_two_windows_in_which_one_fails(row):
    """An error is the status of its candidates; the others have their verdicts."""

    def reply(prompt):
        return "better: [1]\nworse: none" if "Copper" in prompt else "Sorry, [1] is fine."

    with Emulator(reply=reply) as server:
        result = arhn.Verdicts(endpoint=server.url, window=1)(row)
    by_docid = dict(zip(["n1", "n2", "n3"], told(result), strict=True))
    assert by_docid == {"n1": None, "n2": None, "n3": "better"}
    assert told(result, "status") == ["unparsed", "unparsed", "judged"]


def test_error_text_is_no_verdict(row):
    """What a dead server says is recorded as an error, and no passage of the row has a verdict."""
    refusal = {"error": "better: [1]\nworse: none", "error_type": "validation"}
    with Emulator(intercept=always(lambda: web.json_response(refusal, status=422))) as server:
        result = arhn.Verdicts(annotator=arhn.Endpoint(server.url, attempts=1))(row)
    assert (told(result), set(told(result, "status"))) == ([None] * 3, {"error"})


def test_a_prompt_that_is_too_long_is_cut(row):
    """Each passage is cut by the same share, and each verdict says so."""
    long = {**row, "positive_passages": [{"docid": "p", "title": "", "text": "tin " * 500}]}
    rule = "`inputs` tokens + `max_new_tokens` must be <= 600. Given: 1200 `inputs` tokens and 56 `max_new_tokens`"
    refusal = {"error": f"Input validation error: {rule}", "error_type": "validation"}
    intercept = when(
        lambda request: len(request.body["messages"][-1]["content"]) >= 2500,
        lambda: web.json_response(refusal, status=422),
    )
    with Emulator(reply="better: [1]\nworse: [2], [3]", intercept=intercept) as server:
        result = arhn.Verdicts(endpoint=server.url)(long)
    assert sorted(told(result)) == ["better", "worse", "worse"]
    assert all("of each passage was read" in detail for detail in told(result, "detail"))
