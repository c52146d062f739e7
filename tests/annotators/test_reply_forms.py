"""How many tokens a reply is given: enough for a copy, and once more the whole limit where one is cut."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.client.contract import Completion
from arhn_datasets.annotators.client.store import Replies, default_directory
from arhn_datasets.annotators.interface import SnippetRequest
from arhn_datasets.annotators.reply_forms import Copied, copy_tokens, has_thought, rambles, reasons
from arhn_datasets.rows import background
from arhn_datasets.rows.records import GROUNDED, NO_ANSWER, UNPARSED
from tests.fakes.served import NO_INFO, completion, served

TEXT = (
    "Tin is a soft metal of a silvery colour. It melts at 232 degrees, far below copper, which melts at 1085 degrees. "
    "People have made bronze of both for five thousand years, and plates of tin alone since the Middle Ages."
)
PASSAGE = {"docid": "1", "title": "", "text": TEXT}
REQUEST = SnippetRequest(query="When does tin melt?", passage=PASSAGE, task="question")
RAMBLING = "Let me look at this from several sides, because it is hard to say what of it would be right. " * 20
FULL = 384


def limit(text, *, escaped=False, most=FULL):
    """The limit for a copy of one passage."""
    return Copied([{"text": text}], lambda said: False).limit(most, escaped=escaped)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 64),
        ("Tin melts at 232 degrees.", 64),
        (TEXT, 128),
        (TEXT * 6, FULL),
        ("锡在232度熔化，远低于铜。" * 3, 192),
        ("ดีบุกหลอมเหลวที่ 232 องศา " * 4, 320),
        ("🙂" * 60, 320),
        ("4310 1985 2,301 " * 8, 192),
    ],
)
def test_a_short_passage_sets_a_lower_limit(text, tokens):
    """Letters make few tokens; a digit, a sign, and each byte of other scripts may make one."""
    assert limit(text) == tokens


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=300))
def test_the_limit_is_enough_for_a_copy_in_a_tokenizer_of_bytes(text):
    """For all but letters of ASCII and spaces, of which a token has two or more; also where JSON escapes it."""
    plain = "".join(
        character for character in text if not (character.isascii() and character.isalpha()) and character != " "
    )
    assert limit(plain, most=10**6) >= len(plain.encode("utf-8", "replace")) + 32
    assert copy_tokens(plain, escaped=True) >= len(json.dumps(plain).replace("\\u", "u")) - 2
    assert limit(text) <= limit(text, escaped=True) <= FULL


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        *(
            (name, True)
            for name in ("Qwen/Qwen3-4B", "deepseek-ai/DeepSeek-R1", "openai/gpt-oss-20b", "o3-mini", "gpt-5")
        ),
        *((name, True) for name in ("microsoft/Phi-4-reasoning", "moonshotai/Kimi-K2-Thinking")),
        *((name, False) for name in ("Qwen/Qwen2.5-7B-Instruct", "gpt-4o-mini", "meta-llama/Llama-3.1-8B-Instruct")),
        ("google/gemma-3-4b-it", False),
    ],
)
def test_models_that_think_are_known_by_their_names(model, thinks):
    """They get the whole limit from the first request on."""
    assert reasons(model) == thinks


@pytest.mark.parametrize(
    ("text", "reason", "tokens", "thought"),
    [
        ("It melts.", "stop", 4, False),
        ("It melts.", "stop", 300, True),
        ("<think>hm</think>It melts.", "stop", 9, True),
        ("hm</think>It melts.", "stop", 9, True),
        ("", "length", 64, True),
        ("[1] is [2].", "stop", 9, False),
        ("It melts.", None, None, False),
    ],
)
def test_thoughts_are_seen(text, reason, tokens, thought):
    """In the text, and by tokens that are not in it."""
    assert has_thought(Completion(text=text, finish_reason=reason, completion_tokens=tokens)) == thought


@pytest.mark.parametrize(
    ("text", "hopeless"),
    [
        (RAMBLING[:300], True),
        ("The passage says that tin melts at 232 degrees, which is what was asked for, so I would copy this", True),
        (TEXT[:150], False),
        (f'"{TEXT[:150]}', False),
        (f"Answer: {TEXT[:150]}", False),
        (f"<answer>{TEXT[:150]}", False),
        ("<think>" + RAMBLING, False),
        (f"```\n{TEXT[:150]}", False),
        ('{"snippet": "' + TEXT[:150], False),
        ('{"snippet": "' + RAMBLING[:200], True),
        ('{"snippet": "Tin is a soft metal of a silvery colour. It melts \\u00', False),
        ("NO_ANSWER because the", False),
        ("", False),
    ],
)
def test_only_what_can_be_no_copy_is_hopeless(text, hopeless):
    """Whatever may become evidence is asked for again."""
    assert rambles(text, PASSAGE) == hopeless


@given(st.integers(1, len(TEXT)), st.sampled_from(["", '"', "- ", "Answer: ", "<answer>"]), st.booleans())
def test_no_beginning_of_a_copy_is_hopeless(end, before, as_json):
    """Wherever it is cut, also within a word, behind what may stand before a copy."""
    said = '{"snippet": ' + json.dumps(TEXT[:end])[:-1] if as_json else f"{before}{TEXT[:end]}"
    assert not rambles(said, PASSAGE)


# -- over HTTP ------------------------------------------------------------------------------------------------------


def told(server, request=REQUEST, **options):
    """The snippet, and the limits that the server was sent so far."""
    annotator = arhn.Endpoint(server.url, attempts=2, backoff=0.001, **options)
    found = background.run(annotator.snippet(request))
    return found, [body["max_tokens"] for body in server.bodies]


@pytest.mark.parametrize("faults", [[], [NO_INFO]])
def test_a_copy_that_is_cut_is_asked_for_again_once(faults, monkeypatch):
    """With the whole limit; the second reply is the evidence, and it alone is stored."""
    monkeypatch.setattr("arhn_datasets.annotators.reply_forms.MARGIN", -60)  # a bad guess
    monkeypatch.setattr("arhn_datasets.annotators.reply_forms.STEP", 16)
    with served(reply=TEXT, faults=faults) as server:
        found, limits = told(server)
        assert (found.status, found.snippet, limits) == (GROUNDED, TEXT, [48, FULL])
        background.close()
        assert len(Replies(default_directory())) == 1
        assert told(server)[1] == limits
        assert arhn.Endpoint(server.url).statistics()["cut_off"] == 0


@pytest.mark.parametrize("reason", ["length", None])
def test_a_rambling_reply_is_cut_early_and_is_no_evidence(reason):
    """At the tokens that a copy could have, also where the server does not say that it was cut; it is not stored."""
    with served(reply=RAMBLING, faults=[NO_INFO]) as server:

        def cut(request):
            if not request.path.endswith("completions"):
                return None
            body = completion(RAMBLING[:400], reason)
            body["usage"]["completion_tokens"] = request.body["max_tokens"]
            return web.json_response(body)

        server.intercept = cut
        for _ in range(2):
            found, limits = told(server)
            assert (found.status, set(limits)) == (UNPARSED, {128})
            assert found.detail.startswith("cut off after 128 tokens: Let me look")
            background.close()
        assert len(limits) == 2
        assert len(Replies(default_directory())) == 0


def test_max_tokens_is_for_all():
    """Whoever names a limit gets it for each passage, and with the default of old what was paid for is found."""
    with served(reply="NO_ANSWER") as server:
        assert told(server)[1] == [128]
        assert told(server, max_tokens=FULL)[1] == [128], "the same key"
        assert told(server, max_tokens=100)[1] == [128, 100]
        assert told(server, max_tokens=FULL, cache="none")[1] == [128, 100, FULL]


@pytest.mark.parametrize("reply", [f"<think>{RAMBLING}</think>{TEXT}", f"<think>short</think>{TEXT}"])
def test_a_model_that_was_seen_to_think_has_the_whole_limit(reply):
    """From its first reply on; no thought is cut for want of room that the whole limit has."""
    with served(reply=reply, max_total_tokens=8000, max_input_tokens=7000) as server:
        annotator = arhn.Endpoint(server.url, cache="none")
        for query in ("first", "second", "third"):
            request = SnippetRequest(query=query, passage=PASSAGE, task="question")
            found = background.run(annotator.snippet(request))
        limits = [body["max_tokens"] for body in server.bodies]
    first, *others = limits
    assert (first, set(others)) == (128, {FULL})
    assert found.status == (GROUNDED if "short" in reply else UNPARSED)


def test_a_model_whose_name_says_that_it_thinks_has_the_whole_limit():
    """From the first request on."""
    with served(reply="NO_ANSWER", model="Qwen/Qwen3-8B") as server:
        found, limits = told(server)
    assert (found.status, limits) == (NO_ANSWER, [FULL])
