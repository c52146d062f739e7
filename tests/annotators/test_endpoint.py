"""The annotator behind an LLM server: from replies over HTTP to evidence, and what survives an interruption."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from aiohttp import web
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets import errors
from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import Replies, default_directory
from arhn_datasets.annotators.interface import GradeRequest, RankingRequest, SnippetRequest, VerdictRequest
from arhn_datasets.annotators.llm import ranking_tokens
from arhn_datasets.rows import background
from arhn_datasets.rows.records import (
    ERROR,
    GROUNDED,
    JUDGED,
    NO_ANSWER,
    PARTIAL,
    RANKED,
    SNIPPET_STATUSES,
    UNGROUNDED,
    UNPARSED,
)
from arhn_datasets.testing import Latency
from arhn_datasets.testing.replies import asked_in
from tests.fakes.served import NO_INFO, always, completion, served

TEXT = "Tin is a metal. It melts at 232 °C, far below copper."
REQUEST = SnippetRequest(
    query="When does tin melt?", passage={"docid": "d", "title": "", "text": TEXT}, task="question"
)
CANDIDATES = RankingRequest(query="When does tin melt?", candidates=("one", "two", "three"), task="question")
KEY = "secret-key-1234"


def endpoint(server, **options):
    """The annotator, with little patience."""
    return arhn.Endpoint(server.url, **{"attempts": 2, "backoff": 0.001, "deadline": 60, **options})


def ask(annotator, *requests):
    """The evidence for requests made at once."""

    async def all_of():
        calls = [
            annotator.snippet(request) if isinstance(request, SnippetRequest) else annotator.ranking(request)
            for request in requests
        ]
        return await asyncio.gather(*calls)

    found = background.run(all_of())
    return found if len(requests) > 1 else found[0]


def passages(count, start=0):
    """Rows of one positive and one negative each, all of them different."""
    return [
        {
            "query_id": str(number),
            "query": f"query {number}",
            "positive_passages": [{"docid": f"p{number}", "title": "", "text": f"positive text {number}"}],
            "negative_passages": [{"docid": f"n{number}", "title": "", "text": f"negative text {number}"}],
        }
        for number in range(start, start + count)
    ]


def copied(prompt):
    """The whole passage as the reply, or the candidates as they were shown."""
    asked = asked_in(prompt)
    if isinstance(asked, SnippetRequest):
        return asked.passage["text"]
    return " > ".join(f"[{number + 1}]" for number in range(len(asked.candidates)))


def statuses(rows):
    """Every status of the snippet columns."""
    return {
        value["status"] for row in rows for name in ("positive_snippets", "negative_snippets") for value in row[name]
    }


def script(code, *arguments, **environment):
    """A Python process with that code, on the same store of replies."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUNBUFFERED": "1",
            **environment,
        },
    )


def until(condition, seconds=20):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@pytest.fixture
def copying():
    """A server that copies the whole passage."""
    with served(reply=copied) as running:
        yield running


# -- replies and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "status", "snippet"),
    [
        ("It melts at 232 °C", GROUNDED, "It melts at 232 °C"),
        ("<think>hm</think>It melts at 232 °C", GROUNDED, "It melts at 232 °C"),
        ("NO_ANSWER", NO_ANSWER, None),
        ("Tin melts at 232 °C", UNGROUNDED, None),
        ("NO_ANSWER is wrong", UNPARSED, None),
        ("", ERROR, None),
        ("Error: Model is overloaded", UNGROUNDED, None),
    ],
)
def test_snippets_over_http(reply, status, snippet):
    """The reply of the server decides the status, and the result can be written to Arrow."""
    with served(reply=reply) as server:
        found = ask(endpoint(server), REQUEST)
        assert (found.status, found.snippet) == (status, snippet)
        assert (found.detail is None) == (status in (GROUNDED, NO_ANSWER))
        rows = Dataset.from_list(passages(1)).map(arhn.Snippets(annotator=endpoint(server)))
    assert statuses(rows) <= set(SNIPPET_STATUSES)
    assert server.bodies[0]["max_tokens"] == 64, "no more than a copy of so short a passage needs"


def test_half_a_surrogate_pair_over_http(copying):
    """It is no text of the passage, and what the columns hold can be written to Arrow."""
    copying.intercept = always(lambda: web.json_response(completion("tin \ud83d")))
    rows = Dataset.from_list(passages(1)).map(arhn.Snippets(annotator=endpoint(copying)))
    assert statuses(rows) == {UNGROUNDED}


FAULTS = {
    "429": (lambda: web.json_response({"error": "Model is overloaded"}, status=429), "EndpointOverloaded: 429: Model"),
    "424": (lambda: web.Response(status=424, text=TEXT), "EndpointFailure: 424: Tin is a metal."),
    "503": (lambda: web.Response(status=503, text="NO_ANSWER"), "EndpointUnavailable: 503: NO_ANSWER"),
    "422": (lambda: web.Response(status=422, text="[1] > [2] > [3]"), "RequestRejected: 422: [1] > [2]"),
    "413": (lambda: web.Response(status=413), "PromptTooLong: 413: no message"),
    "null": (lambda: web.json_response(completion(None)), "EmptyReply: the server answered 200 without"),
    "error 200": (lambda: web.json_response({"error": TEXT}), "EndpointFailure: 500: Tin is a metal."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_a_status_and_never_a_text(copying, fault):
    """Whatever the error says, be it a snippet, a marker or a ranking: it moves nothing, and the detail says why."""
    make, detail = FAULTS[fault]
    copying.intercept = always(make)
    snippet, ranking = ask(endpoint(copying, deadline=0.2), REQUEST, CANDIDATES)
    assert (snippet.status, snippet.snippet, snippet.start) == (ERROR, None, None)
    assert (ranking.status, ranking.tiers) == (ERROR, ())
    assert snippet.detail.startswith(detail)
    assert ranking.detail.startswith(detail)


def test_a_server_that_is_gone_is_a_status():
    """No connection in the middle of a run: the URL is in the detail."""
    with served(reply=copied) as server:
        annotator = endpoint(server, deadline=0.5)
        ask(annotator, REQUEST)
    found = ask(annotator, CANDIDATES)
    assert found.status == ERROR
    assert found.detail.startswith(f"EndpointUnavailable: no connection to {server.url}")


@pytest.mark.parametrize(
    ("reply", "status", "tiers"),
    [
        ("[2] > [3] > [1]", RANKED, ((1,), (2,), (0,))),
        ("[2] > [1]", PARTIAL, ((1,), (0,))),
        ("[1] > [1] > [9]", UNPARSED, ()),
        ("none of them", UNPARSED, ()),
        ("", ERROR, ()),
    ],
)
def test_rankings_over_http(reply, status, tiers):
    """Only identifiers that were given, once and in range, count; the room follows from their number."""
    with served(reply=reply) as server:
        found = ask(endpoint(server), CANDIDATES)
    assert (found.status, found.tiers) == (status, tiers)
    assert server.bodies[0]["max_tokens"] == ranking_tokens(3) == 56


# -- replies that are not whole ---------------------------------------------------------------------------------------

VERDICTS = VerdictRequest(query="q", positives=("tin",), candidates=("one", "two", "three"), task="question")
GRADE = GradeRequest(query="q", passage=REQUEST.passage, task="question")
WHOLE = [
    (REQUEST, TEXT),
    (SnippetRequest(query="q", passage=REQUEST.passage, task="question"), "NO_ANSWER"),
    (CANDIDATES, "[2] > [1] > [3]"),
    (VERDICTS, "better: [2]\nworse: none"),
    (GRADE, "2"),
]
ANSWERED = (GROUNDED, NO_ANSWER, RANKED, JUDGED)


def seen(annotator, request):
    """The first piece of evidence for a request of any kind."""
    asked = {SnippetRequest: "snippet", RankingRequest: "ranking", VerdictRequest: "verdicts", GradeRequest: "grade"}
    found = background.run(getattr(annotator, asked[type(request)])(request))
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
@pytest.mark.parametrize(("asked", "text"), WHOLE)
def test_a_reply_that_was_cut_off_is_no_evidence(asked, text, reason, constrained):
    """Whatever it says, it is unparsed with its length, is not stored, and the next run asks again."""
    with served(reply=text, faults=[NO_INFO]) as server:
        server.intercept = always(lambda: web.json_response(completion(text, reason)))
        found = seen(endpoint(server, constrained=constrained), asked)
        assert (found.status, found.detail) == (UNPARSED, f"cut off after 5 tokens: {text}".replace("\n", " "))
        assert endpoint(server).statistics()["cut_off"] == 1
        assert len(Replies(default_directory())) == 0
        server.intercept = always(lambda: web.json_response(completion(text)))
        assert seen(endpoint(server, constrained=constrained), asked).status in ANSWERED
        assert len(Replies(default_directory())) == 1


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_reply_that_an_earlier_version_stored_unfinished_is_asked_again(copying, reason):
    """Only what is whole is taken from the store, and the whole one takes its place."""
    assert ask(endpoint(copying), REQUEST).status == GROUNDED
    background.close()
    folder = default_directory()
    ((key, reply),) = [(stored.key, json.loads(stored.reply)) for stored in store_upkeep.read_replies(folder)]
    Replies(folder).put(key.hex(), {**reply, "finish_reason": reason})
    background.close()
    for _ in range(2):
        assert ask(endpoint(copying), REQUEST).status == GROUNDED
        background.close()
    assert copying.stats.requests == 2


@pytest.mark.parametrize("faults", [[], [NO_INFO]])
def test_an_emulator_says_that_it_cut_a_reply(faults):
    """On both kinds of servers, at the tokens that were asked for."""
    with served(reply=TEXT, faults=faults) as server:
        found = ask(endpoint(server, max_tokens=4), REQUEST)
    assert found.status == UNPARSED
    assert found.detail.startswith("cut off after 4 tokens: Tin is")


def test_a_thought_that_took_all_the_room_is_told(copying):
    """A server that keeps thoughts apart sends no text at all then: that is no failure of the server."""
    copying.intercept = always(lambda: web.json_response(completion(None, "length")))
    found = ask(endpoint(copying), REQUEST)
    assert (found.status, copying.stats.requests) == (UNPARSED, 2), "and once more with all the room there is"
    assert [body["max_tokens"] for body in copying.bodies] == [64, 384]
    assert found.detail.startswith("cut off after 5 tokens")


def test_a_filtered_reply_is_an_error_that_names_the_filter(copying):
    """It is asked for once, and half a reply counts for nothing."""
    copying.intercept = always(lambda: web.json_response(completion(TEXT, "content_filter")))
    found = ask(endpoint(copying), REQUEST)
    assert (found.status, copying.stats.requests) == (ERROR, 1)
    assert "content filter held the reply back" in found.detail


# -- the store of replies ---------------------------------------------------------------------------------------------


def test_identical_requests_in_flight_are_asked_once(copying):
    """Also by two annotators, and by hundreds at once; a failure reaches all who wait."""
    copying.latency = Latency(overhead=0.05)
    found = ask(endpoint(copying, cache="none"), *[REQUEST] * 50)
    assert {snippet.status for snippet in found} == {GROUNDED}
    assert copying.stats.requests == 1
    copying.intercept = always(lambda: web.Response(status=422))
    found = ask(endpoint(copying, cache="none"), *[REQUEST] * 50)
    assert {snippet.status for snippet in found} == {ERROR}
    assert copying.stats.requests == 2


def test_one_impatient_caller_takes_nothing_from_the_others(copying):
    """Where the one whose request is shared is cancelled, those who still wait ask for themselves."""
    copying.latency = Latency(overhead=0.1)

    async def two():
        annotator = endpoint(copying)
        first, second = (asyncio.ensure_future(annotator.snippet(REQUEST)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert background.run(two()).status == GROUNDED
    assert copying.stats.requests <= 2


@pytest.mark.parametrize(("cache", "requests"), [(None, 1), ("folder", 1), ("none", 3), ("NONE", 3)])
def test_a_reply_is_stored(copying, tmp_path, cache, requests):
    """A reply is never asked for twice, also after the process's clients and store were closed."""
    cache = str(tmp_path / "replies") if cache == "folder" else cache
    for _ in range(3):
        assert ask(endpoint(copying, cache=cache), REQUEST).snippet == TEXT
        background.close()
    assert copying.stats.requests == requests
    assert (tmp_path / "replies" / "answers.sqlite3").exists() == (cache == str(tmp_path / "replies"))


def test_the_first_reply_is_stored(copying):
    """An empty store is a store, too."""
    ask(endpoint(copying), REQUEST)
    assert len(Replies(default_directory())) == 1


@pytest.mark.parametrize("change", ["model", "revision", "max_tokens", "query", "kind"])
def test_another_request_is_asked(copying, change):
    """What changes a reply changes its key."""
    ask(endpoint(copying), REQUEST)
    options, request = {}, REQUEST
    if change in ("model", "revision"):
        setattr(copying, change, "other")
        background.close()
    elif change == "max_tokens":
        options = {"max_tokens": 100}
    else:
        request = CANDIDATES if change == "kind" else SnippetRequest(**{**vars(REQUEST), "query": "What?"})
    ask(endpoint(copying, **options), request)
    assert copying.stats.requests == 2


def test_connection_options_change_no_key(copying):
    """Another URL, key, timeout or limit finds the stored replies."""
    ask(endpoint(copying), REQUEST)
    with served(reply=copied) as other:
        found = ask(endpoint(other, api_key=KEY, timeout=9, concurrency=1, attempts=1), REQUEST)
    assert found.status == GROUNDED
    assert not other.stats.requests


@pytest.mark.parametrize("reply", ["", " \n", None, 503])
def test_errors_and_empty_replies_are_not_stored(reply):
    """They are asked for again, and the good reply of the next run counts."""
    faults = {None: lambda: web.json_response(completion(None)), 503: lambda: web.Response(status=503)}
    with served(reply=reply if isinstance(reply, str) else TEXT) as server:
        server.intercept = always(faults[reply]) if reply in faults else None
        assert ask(endpoint(server, deadline=0.5), REQUEST).status == ERROR
        assert len(Replies(default_directory())) == 0
        server.reply, server.intercept = TEXT, None
        assert ask(endpoint(server), REQUEST).snippet == TEXT
    assert len(Replies(default_directory())) == 1


def test_a_store_that_cannot_be_used_ends_the_run(copying, tmp_path):
    """A foreign file is refused before anything is asked."""
    (tmp_path / "answers.sqlite3").write_text("my notes\n" * 100)
    with pytest.raises(errors.StoreError, match="not a database"):
        Dataset.from_list(passages(3)).map(arhn.Snippets(annotator=endpoint(copying, cache=tmp_path)))
    assert not copying.stats.requests


def test_statistics(copying):
    """Requests and tokens that were paid, and replies that were not."""
    annotator = endpoint(copying)
    ask(annotator, REQUEST, CANDIDATES)
    ask(annotator, REQUEST)
    counted = annotator.statistics()
    assert (counted["requests"], counted["replies"], counted["stored"]) == (2, 2, 1)
    paid = copying.stats
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (paid.prompt_tokens, paid.generated_tokens)
    assert counted["in_flight"] == 0


def test_nothing_secret_is_stored(copying):
    """Neither the URL nor the key is in the file."""
    ask(endpoint(copying, api_key=KEY), REQUEST)
    background.close()  # writes what waits
    stored = b"".join(path.read_bytes() for path in default_directory().iterdir())
    assert b"It melts at 232" in stored
    assert KEY.encode() not in stored
    assert b"127.0.0.1" not in stored


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("localhost:8080", {}, "not the URL"),
        ((), {}, "url is empty"),
        (("http://h", "nothing"), {}, "not the URL"),
        ("http://h", {"timeout": -1}, "timeout is -1"),
        ("http://h", {"timeout": 0}, "timeout is 0"),
        ("http://h", {"timeout": float("nan")}, "timeout is nan"),
        ("http://h", {"timeout": float("inf")}, "timeout is inf"),
        ("http://h", {"deadline": 0}, "deadline is 0"),
        ("http://h", {"give_up_after": float("nan")}, "give_up_after is nan"),
        ("http://h", {"api": "vllm"}, "api is 'vllm'; one of tgi, openai"),
        ("http://h", {"client": object()}, "url is empty"),
        ("http://h", {"backoff": -0.1}, "backoff is -0.1"),
        ("http://h", {"attempts": 0}, "attempts is 0"),
        ("http://h", {"concurrency": 0}, "concurrency is 0"),
        ("http://h", {"max_tokens": 0}, "max_tokens is 0"),
        ("http://h", {"max_tokens": 1025}, "max_tokens is 1025"),
    ],
)
def test_values_that_cannot_work(url, options, message):
    """They are refused where they are written, not in the first row."""
    with pytest.raises(errors.ConfigurationError, match=message):
        arhn.Endpoint(url, **options)


@pytest.mark.parametrize(("given", "environment"), [(KEY, "other"), (None, KEY), (None, f" {KEY}\n"), (f"{KEY}\n", "")])
def test_the_key_comes_from_the_option_or_the_environment(copying, monkeypatch, given, environment):
    """Without the line end that files and secrets end with."""
    monkeypatch.setenv("ARHN_API_KEY", environment)
    copying.api_key = KEY
    assert ask(endpoint(copying, api_key=given), REQUEST).status == GROUNDED


def test_an_annotator_shows_and_pickles_well():
    """The repr holds no key and no password, for `datasets` logs it; a worker of num_proc gets both."""
    annotator = arhn.Endpoint("http://user:word@h/v1", api_key=KEY)
    assert repr(annotator) == "Endpoint(('http://h',), model=None, revision=None)"
    copy = pickle.loads(pickle.dumps(annotator))
    assert (copy.url, copy.api_key) == (("http://user:word@h",), KEY)
    assert arhn.Endpoint(["http://a", "http://b"]).url == ("http://a", "http://b")


def test_identity_and_description(copying):
    """What changes the evidence, from the server or as configured; no URL, no key."""
    annotator = endpoint(copying, api_key=KEY)
    named = arhn.Endpoint("http://127.0.0.1:1", model="some/model", revision="0123abcd", timeout=1)
    for stage in ("snippets", "ranks"):
        assert annotator.identity(stage) == named.identity(stage)
        shown = json.dumps(annotator.identity(stage))
        assert KEY not in shown
        assert "http" not in shown
    assert annotator.identity("snippets") != annotator.identity("ranks")
    described = annotator.description()
    assert (described["model"], described["revision"]) == ("some/model", "0123abcd")
    assert (described["server"], described["server_version"]) == ("text-generation-inference", "3.3.6-dev0")
    assert KEY not in json.dumps(described)


def test_the_description_of_an_openai_server():
    """It names no revision; the configured one stands for it."""
    with served(faults=[NO_INFO]) as server:
        described = endpoint(server, revision="abc").description()
    assert (described["server"], described["revision"]) == ("OpenAI-compatible chat", "abc")


@pytest.mark.parametrize(
    ("faults", "options", "message"),
    [
        ([], {"model": "other/model"}, "serves the model 'some/model', and 'other/model' was asked for"),
        ([], {"revision": "ffff"}, "serves the revision '0123abcd', and 'ffff' was asked for"),
        ([NO_INFO], {"model": "other/model"}, "serves the model 'some/model', and 'other/model' was asked for"),
    ],
)
def test_another_model_than_asked_for_is_refused(faults, options, message):
    """Its replies would be taken for those of the wanted model."""
    with served(faults=faults) as server:
        with pytest.raises(errors.ConfigurationError, match=message):
            Dataset.from_list(passages(2)).map(arhn.Snippets(annotator=endpoint(server, **options)))
        assert not server.stats.requests


@pytest.mark.parametrize("options", [{"model": "some/model"}, {"revision": "abc"}, {}])
def test_a_revision_that_the_server_does_not_name_is_believed(options):
    """OpenAI-compatible servers name none."""
    with served(reply=copied, faults=[NO_INFO]) as server:
        assert ask(endpoint(server, **options), REQUEST).status == GROUNDED


# -- several servers --------------------------------------------------------------------------------------------------


def test_two_servers_share_the_load(copying):
    """Each request goes to the one with fewer in flight."""
    with served(reply=copied) as slow:
        copying.latency, slow.latency = Latency(overhead=0.01), Latency(overhead=0.05)
        annotator = arhn.Endpoint((copying.url, slow.url + "/v1"), concurrency=4)
        rows = Dataset.from_list(passages(30)).map(arhn.Snippets(annotator=annotator))
        assert statuses(rows) == {GROUNDED}
        assert copying.stats.requests + slow.stats.requests == 60
        assert min(copying.stats.requests, slow.stats.requests) >= 20
        assert max(copying.stats.peak_in_flight, slow.stats.peak_in_flight) == 4


@pytest.mark.parametrize("difference", [{"model": "other/model"}, {"revision": "ffff"}])
def test_servers_of_different_models_are_refused(copying, difference):
    """One run takes one model; the message names both, without passwords."""
    with served(**difference) as other:
        urls = (copying.url, other.url.replace("//", "//user:word@"))
        annotator = arhn.Endpoint(urls)
        with pytest.raises(errors.ConfigurationError, match="different models") as caught:
            Dataset.from_list(passages(2)).map(arhn.Snippets(annotator=annotator))
    for expected in (copying.url, other.url, "some/model@0123abcd", next(iter(difference.values()))):
        assert expected in str(caught.value)
    assert "word" not in str(caught.value)


# -- Dataset.map ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 2}, {"num_proc": 2}])
def test_a_refused_key_ends_the_run(copying, options):
    """No row can succeed, so the error comes out of map, with few requests and no row marked."""
    copying.api_key = "another"
    with pytest.raises(Exception, match="ARHN_API_KEY") as caught:
        Dataset.from_list(passages(40)).map(arhn.Snippets(annotator=endpoint(copying, api_key=KEY)), **options)
    assert type(caught.value) is errors.AccessDenied
    assert KEY not in str(caught.value)


def test_forked_workers_and_their_parent(copying):
    """num_proc works with a client already open in the parent, and the parent's goes on afterwards."""
    stage = arhn.Snippets(annotator=endpoint(copying))
    assert statuses([stage(passages(1)[0])]) == {GROUNDED}
    for start in (10, 20):
        assert statuses(Dataset.from_list(passages(6, start)).map(stage, num_proc=2)) == {GROUNDED}
        assert statuses([stage(passages(1, start + 100)[0])]) == {GROUNDED}
    assert copying.stats.requests == 2 + 2 * 12 + 2 * 2
    before = copying.stats.requests
    assert statuses(Dataset.from_list(passages(6, 10)).map(stage)) == {GROUNDED}
    assert copying.stats.requests == before, "replies of workers are in the same store"


MAP = """
    import json, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from datasets import Dataset
    import arhn_datasets as arhn
    with open(sys.argv[2]) as file:
        rows = json.load(file)
    stage = arhn.Snippets(endpoint=sys.argv[1], concurrency=4)
    rows = Dataset.from_list(rows).map(stage)
    print(rows[0]["positive_snippets"][0]["status"])
"""


@pytest.fixture
def rows_file(tmp_path):
    """150 rows, so 300 requests, as a file."""
    (tmp_path / "rows.json").write_text(json.dumps(passages(150)))
    return str(tmp_path / "rows.json")


def test_another_process_finds_the_replies_and_ends_cleanly(copying, rows_file):
    """The second process asks nothing; the first one leaves no complaint about open sessions on stderr."""
    first = script(MAP, copying.url, rows_file, PYTHONWARNINGS="default")
    out, complaints = first.communicate(timeout=60)
    assert (first.returncode, out) == (0, "grounded\n")
    # Only the loop that `datasets` makes for each map, and never closes.
    assert not re.search("[Uu]nclosed (?!event loop)|arhn|never (awaited|retrieved)|destroyed", complaints)
    assert copying.stats.requests == 300
    rows = Dataset.from_list(passages(150)).map(arhn.Snippets(endpoint=copying.url))
    assert statuses(rows) == {GROUNDED}
    assert copying.stats.requests == 300


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_map_asks_again_only_what_was_in_flight(copying, rows_file, end):
    """Kill -9 or Ctrl-C in the middle: it ends soon, and a rerun pays for no reply twice."""
    copying.latency = Latency(overhead=0.02)
    running = script(MAP, copying.url.replace("127.0.0.1", "localhost"), rows_file)
    until(lambda: copying.stats.requests >= 60)
    running.send_signal(end)
    started = time.monotonic()
    try:
        _, complaints = running.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        running.kill()
        running.communicate(timeout=60)
        # In the middle of a callback the signal takes the wake-up of a task with it, and the loop that `datasets` made
        # waits for that task for ever; `arhn-refine` lets the callback end first.
        pytest.skip("the interrupt hit the loop of datasets in the middle of a callback")
    assert time.monotonic() - started < 5
    assert running.returncode != 0
    before = copying.stats.requests
    assert 60 <= before < 200
    # Those in flight, and at kill -9 the replies of the last twentieth of a second; at Ctrl-C a cancelled request makes
    # room for the next one until that is cancelled, too.
    lost = 24
    assert len(Replies(default_directory())) >= before - lost
    if end == signal.SIGINT:
        assert complaints.rstrip().endswith("KeyboardInterrupt")
        assert "never retrieved" not in complaints
    copying.latency = Latency(overhead=0)
    rows = Dataset.from_list(passages(150)).map(arhn.Snippets(endpoint=copying.url))
    assert statuses(rows) == {GROUNDED}
    assert copying.stats.requests <= 300 + lost


def test_an_interrupt_in_a_notebook_ends_the_requests(copying):
    """Where the process lives on, what nobody waits for any more is not asked."""
    copying.latency = Latency(overhead=0.05)

    async def interrupted():
        annotator = endpoint(copying, concurrency=2)
        rows = [SnippetRequest(**{**vars(REQUEST), "query": f"query {number}"}) for number in range(40)]
        await asyncio.gather(*(annotator.snippet(row) for row in rows))

    future = background.submit(interrupted())
    until(lambda: copying.stats.requests >= 2)
    future.cancel()
    time.sleep(0.2)
    assert copying.stats.requests <= 4
    assert ask(endpoint(copying, concurrency=2), REQUEST).status == GROUNDED
