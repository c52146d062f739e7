"""Scores from a served model: those of the model here, through every fault, each pair asked once."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset

from arhn_datasets.annotators.client.store import Replies, default_directory
from arhn_datasets.errors import AccessDenied, AnnotatorError, ConfigurationError, EndpointsDead, SchemaError
from arhn_datasets.evidence.scores import Scores
from arhn_datasets.rows import background
from arhn_datasets.testing import Emulator, Fault, Latency, ScoreEmulator
from arhn_datasets.testing.scoring import COMPATIBLE, EMBEDDING, RERANKER, TEI, WordModel
from tests.evidence.ways import WAYS, called

COLUMNS = ("positive_scores", "negative_scores")
QUICK = {"backoff": 0.01}
EVERY_SERVER = pytest.mark.parametrize(
    ("kind", "form"), [(k, f) for k in (RERANKER, EMBEDDING) for f in (TEI, COMPATIBLE)]
)


def scored(rows, scores, **options):
    """All scores of some rows."""
    return values_of(Dataset.from_list(rows).map(scores, batched=True, load_from_cache_file=False, **options))


def values_of(rows):
    """All scores of scored rows."""
    return [[row[column] for column in COLUMNS] for row in rows]


@pytest.fixture(scope="module")
def right(sample):
    """What a clean server gives for the sample, by kind."""
    found = {}
    for kind in (RERANKER, EMBEDDING):
        with ScoreEmulator(kind=kind) as server:
            found[kind] = scored(sample, Scores(endpoint=server.url, cache="none"))
    return found


@pytest.mark.parametrize("raw", [False, True])
def test_a_reranker_gives_what_the_model_gives_here(cross_encoder, sample, raw):
    """The logits are those of a model without an activation, long passages included; else it is their sigmoid."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Sigmoid

    with ScoreEmulator(kind=RERANKER, scored_by=cross_encoder, max_input_length=128) as server:
        scores = Scores(endpoint=server.url, raw_scores=raw)
        found = scored(sample[:12], scores)
        assert scores.statistics()["cut_pairs"] > 0
    if raw:
        expected = scored(sample[:12], Scores(cross_encoder, device="cpu"))
    else:
        model = CrossEncoder(cross_encoder, device="cpu", activation_fn=Sigmoid())
        pairs = [[(row["query"], text) for text in texts_of(row, column)] for row in sample[:12] for column in COLUMNS]
        flat = [model.predict(some).tolist() if some else [] for some in pairs]
        expected = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        for some, others in zip(ours, theirs, strict=True):
            assert some == pytest.approx(others, abs=1e-3)


def texts_of(row, column):
    """The texts of the passages that a column has scores of."""
    passages = row[column.replace("scores", "passages")]
    return [" ".join(part for part in (one["title"], one["text"]) if part) for one in passages]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (TEI, {}),
        (TEI, {"query_prompt": "q: ", "passage_prompt": ""}),
        (TEI, {"similarity": "dot"}),
        (COMPATIBLE, {"query_prompt": "question: ", "passage_prompt": "text: "}),
    ],
)
def test_an_embedding_model_gives_what_the_model_gives_here(bi_encoder, sample, form, options):
    """Prompts are those of the model where the server knows them; long passages are cut alike."""
    prompts = {"query": "question: ", "document": "text: "}
    with ScoreEmulator(
        kind=EMBEDDING, form=form, scored_by=bi_encoder, max_input_length=128, prompts=prompts
    ) as server:
        found = scored(sample[:12], Scores(endpoint=server.url, **options))
    expected = scored(sample[:12], Scores(bi_encoder, device="cpu", **options))
    for ours, theirs in zip(found, expected, strict=True):
        for some, others in zip(ours, theirs, strict=True):
            assert some == pytest.approx(others, abs=1e-3)


@EVERY_SERVER
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_calling(sample, right, kind, form, way):
    """Rows, batches, processes, streams and tables have the same scores, and fill their requests."""
    with ScoreEmulator(kind=kind, form=form) as server:
        scores = Scores(endpoint=server.url)
        found = called(scores, sample, way, batch_size=7)
        assert values_of(found) == right[kind]
        if way != "num_proc":  # whose processes may ask for what they share at the same time
            asked = {(row["query"], text) for row in sample for column in COLUMNS for text in texts_of(row, column)}
            texts = {row["query"] for row in sample} | {text for _, text in asked}
            assert server.stats.texts <= (len(asked) if kind == RERANKER else len(texts)) + 8  # of the first look
        if kind == EMBEDDING and way == "table":
            assert server.stats.requests <= len(texts) / 32 + 12


FAULTS = ("500", "502", "reset_before", "reset_middle", "reset_after", "truncated_json", "html_200", "424_batch")


@EVERY_SERVER
def test_faults_change_no_score(sample, right, kind, form):
    """A storm of all that goes wrong in passing ends with the scores of a quiet server."""
    faults = [Fault(kind=name, probability=0.03, seed=at) for at, name in enumerate((*FAULTS, "429"))]
    with ScoreEmulator(kind=kind, form=form, faults=[Fault(kind="413", on=9), *faults]) as server:
        assert scored(sample, Scores(endpoint=server.url, attempts=20, **QUICK)) == right[kind]


@EVERY_SERVER
def test_a_server_that_restarts_is_waited_for(sample, right, kind, form):
    """The connections break, nothing answers for a while, and the scores are those of a quiet server."""
    with ScoreEmulator(kind=kind, form=form, faults=[Fault(kind="restart", on=7, seconds=0.6)]) as server:
        assert scored(sample, Scores(endpoint=server.url, **QUICK)) == right[kind]


SPOILT = {
    "a score is missing": lambda found: found[:-1],
    "a score stands there twice": lambda found: [*found, found[0]],
    "an index is none": lambda found: [{**found[0], "index": len(found)}, *found[1:]],
    "an index stands there twice": lambda found: [{**found[0], "index": found[-1]["index"]}, *found[1:]],
    "no number": lambda found: [{**found[0], "score": float("nan")}, *found[1:]],
    "null": lambda found: [{**found[0], "score": None}, *found[1:]],
    "an error": lambda found: {"error": "the model is not loaded"},
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_reply_that_is_not_whole_gives_no_score(sample, right, spoil, caplog):
    """Where every second reply is spoilt, no passage has the score of another one, and the warning has the words."""
    seen = []

    def spoilt(found):
        seen.append(found)
        return spoil(found) if len(seen) % 2 and len(found) > 1 else found

    with ScoreEmulator(spoil=spoilt) as server:
        scores = Scores(endpoint=server.url, **QUICK)
        found = scored(sample[:20], scores)
        for ours, theirs in zip(found, right[RERANKER], strict=False):
            for some, others in zip(ours, theirs, strict=True):
                assert all(one in (None, other) for one, other in zip(some, others, strict=True))
        failed = sum(one is None for some in found for values in some for one in values)
        assert scores.statistics()["failed_pairs"] == failed
        assert bool(failed) == ("no score for a passage" in caplog.text)


def test_one_passage_that_the_server_fails_on_spares_the_others(sample, right, caplog):
    """Texts that fail together are asked again one by one; the one at fault has null, and the words are told once."""
    poison = texts_of(sample[0], "negative_scores")[1]
    expected = [
        [
            [None if text == poison else score for text, score in zip(texts_of(row, column), values, strict=True)]
            for column, values in zip(COLUMNS, both, strict=True)
        ]
        for row, both in zip(sample[:8], right[RERANKER], strict=False)
    ]
    failed = sum(score is None for both in expected for values in both for score in values)
    faults = [Fault(kind="500", match=json.dumps(poison, ensure_ascii=False)[1:40])]
    with ScoreEmulator(faults=faults) as server:
        scores = Scores(endpoint=server.url, attempts=2, **QUICK)
        assert scored(sample[:8], scores) == expected
        assert scores.statistics()["failed_pairs"] == failed
        assert list(scores.causes().values()) == [failed]
        assert caplog.text.count("500: Incomplete generation") == 1
        server.set_faults()
        before = server.stats.texts
        assert scored(sample[:8], scores) == right[RERANKER][:8]
        assert server.stats.texts == before + failed  # what failed is not kept, and asked again


def test_a_gateway_that_gives_the_best_alone_is_asked_for_less(sample, right):
    """A server that cuts its list of results gives no score to the wrong passage, and all of them in the end."""
    with ScoreEmulator(form=COMPATIBLE, spoil=lambda found: {**found, "results": found["results"][:3]}) as server:
        assert scored(sample[:8], Scores(endpoint=server.url, **QUICK)) == right[RERANKER][:8]


@EVERY_SERVER
def test_a_rerun_asks_nothing(sample, right, kind, form):
    """Each pair that was paid for is kept, under the model and its revision, whatever the requests were."""
    with ScoreEmulator(kind=kind, form=form) as server:
        scored(sample, Scores(endpoint=server.url))
        asked = server.stats.texts
        background.close()  # another process
        again = Scores(endpoint=server.url)
        assert scored(sample[::-1], again, batch_size=3) == right[kind][::-1]
        assert server.stats.texts <= asked + 4  # what it is, is asked again
        assert again.statistics()["stored_pairs"] > 0
    with ScoreEmulator(kind=kind, form=form, model="another/model", revision="1" * 40) as other:
        scored(sample[:3], Scores(endpoint=other.url))
        assert other.stats.requests > 0


def test_the_same_pair_is_asked_once(sample):
    """Rows that share passages and queries, in one map row by row, ask for each pair once."""
    with ScoreEmulator(latency=Latency(overhead=0.05)) as server:
        rows = Dataset.from_list([sample[0]] * 20).map(Scores(endpoint=server.url))
        assert len({json.dumps(one) for one in values_of(rows)}) == 1
        assert server.stats.texts == len({text for column in COLUMNS for text in texts_of(sample[0], column)})


SCRIPT = """
import sys
from datasets import load_dataset
import arhn_datasets as arhn

if __name__ == "__main__":
    rows = load_dataset("json", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3])
    rows.map(arhn.Scores(endpoint=sys.argv[1]), batched=True, batch_size=100)
"""


@pytest.mark.parametrize("kind", [RERANKER, EMBEDDING])
def test_after_kill_9_only_what_was_in_flight_is_asked_again(sample, tmp_path, kind):
    """What was replied is in the store, and the next run pays for the rest."""
    rows = [{**row, "query": f"{row['query']} {at}"} for at in range(6) for row in sample]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with ScoreEmulator(kind=kind, latency=Latency(overhead=0.05), slots=4) as server:
        command = [sys.executable, "-c", SCRIPT, server.url, str(path), str(tmp_path / "cache")]
        running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        until(lambda: server.stats.texts >= 450)
        running.send_signal(signal.SIGKILL)
        running.wait(timeout=30)
        time.sleep(0.3)  # what is in flight at the server ends
        paid = server.stats.texts
        kept = len(Replies(default_directory()))
        assert kept > 0
        server.latency = Latency()
        server.reset_stats()
        scores = Scores(endpoint=server.url)
        found = scored(rows, scores)
        assert all(one is not None for some in found for values in some for one in values)
        pairs = sum(len(values) for some in found for values in some)
        assert scores.statistics()["stored_pairs"] >= kept
        if kind == RERANKER:
            assert kept >= paid - 4 * 32 - 64  # four slots of up to 32 texts, and a batch of the store
            assert server.stats.texts <= pairs - kept


def until(reached):
    """Wait for something, a minute at most."""
    ends = time.monotonic() + 60
    while not reached() and time.monotonic() < ends:
        time.sleep(0.01)
    assert reached()


@pytest.mark.parametrize("kind", [RERANKER, EMBEDDING])
def test_what_is_too_long_is_cut_and_counted(sample, kind, caplog):
    """The server's tokens are counted where bytes do not settle it; it may cut only what is known to be cut."""
    with ScoreEmulator(kind=kind, max_input_length=64) as server:
        scores = Scores(endpoint=server.url)
        found = scored(sample, scores)
        model = WordModel()
        query = [row["query"] if kind == RERANKER else None for row in sample]
        tokens = {
            (row["query"], text): model.length(beside, text)
            for row, beside in zip(sample, query, strict=True)
            for column in COLUMNS
            for text in texts_of(row, column)
        }
        long = sum(count > 64 for count in tokens.values())
        assert 0 < long < 400
        # Two texts alone have a special token more than their pair: one that just fits may count as cut.
        assert (
            long
            <= scores.statistics()["cut_pairs"]
            <= long + (kind == RERANKER) * sum(n == 64 for n in tokens.values())
        )
        assert "is that of its beginning" in caplog.text
        assert all(one is not None for some in found for values in some for one in values)
        allowed = [body for body in server.bodies if body["truncate"]]
        assert len(allowed) < len(server.bodies)
        cut = scores.statistics()["cut_pairs"]
        background.close()  # another process
        again = Scores(endpoint=server.url)
        scored(sample, again)
        assert again.statistics()["cut_pairs"] == cut  # a kept score tells of it, too
    with ScoreEmulator(kind=kind, max_input_length=96) as server:
        more = Scores(endpoint=server.url)
        scored(sample, more)  # of what was cut more is read now
        told = more.statistics()
        assert told["stored_pairs"] == told["pairs"] - cut
    with ScoreEmulator(kind=kind, form=COMPATIBLE, max_input_length=64, auto_truncate=False) as server:
        scores = Scores(endpoint=server.url, cache="none")
        found = scored(sample[:8], scores)
        assert scores.statistics()["cut_pairs"] > 0
        assert all(one is not None for some in found for values in some for one in values)


def test_a_server_that_may_cut_without_a_word(sample, caplog):
    """Where a server names no limit and refuses nothing, the passages that may be cut are counted and told."""
    with ScoreEmulator(form=COMPATIBLE) as server:
        scores = Scores(endpoint=server.url)
        scored(sample, scores)
        assert scores.statistics()["perhaps_cut_pairs"] > 0
        assert "does not say how much of a text it reads" in caplog.text


@pytest.mark.parametrize("kind", [RERANKER, EMBEDDING])
def test_the_limit_of_texts_is_kept(sample, kind):
    """The limit of text-embeddings-inference counts texts: no request is refused, and a small one is used well."""
    with ScoreEmulator(kind=kind, max_concurrent_requests=96, latency=Latency(overhead=0.01)) as server:
        scored(sample, Scores(endpoint=server.url))
        assert "429" not in server.stats.by_status
        assert 32 <= server.stats.peak_in_flight <= 96


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {"/info": {"model_id": "some/llm", "max_total_tokens": 4096}},
            "is a server of the LLM some/llm, which gives no",
        ),
        ({"/info": {"model_id": "m", "model_type": {"classifier": {}}}}, "with the model m, a classifier, which gives"),
        ({}, "names no model (/v1/models answered 404"),
        ({"/v1/models": {"data": [{"id": "m"}]}}, "gives no scores (/v1/models lists m; /v1/rerank answered 404"),
        ({"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}, "has several models (a, b)"),
        (
            {
                "/v1/models": {"data": [{"id": "m"}]},
                "/v1/rerank": {"results": [{"index": at, "relevance_score": 0.5} for at in (0, 1)]},
                "/v1/embeddings": {"data": [{"index": at, "embedding": [1, 2]} for at in (0, 1)]},
            },
            "answers both /v1/rerank and /v1/embeddings, and does not tell what m is",
        ),
        (
            {
                "/v1/models": {"data": [{"id": "m"}, {"id": "n"}], "": 1},
                "/v1/rerank": {"model": "n", "results": [{"index": at, "relevance_score": 0.5} for at in (0, 1)]},
            },
            "was asked for m, and n has answered",
        ),
    ],
)
def test_one_error_names_what_was_found(answers, said, row):
    """What is no server of scores, or may be two, ends before any row, with its own words."""
    from aiohttp import web

    def intercept(request):
        found = answers.get(request.path)
        return web.json_response(found) if found is not None else web.Response(status=404)

    model = "m" if "asked for m" in said else None
    with Emulator(intercept=intercept) as server:
        server._service._posts |= dict.fromkeys(answers, server._service._posts["/generate"])
        scores = Scores(endpoint=server.url, model=model)
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            scores(row)


def test_a_kind_says_which_route(row):
    """Where a server could do both, kind= chooses; where it tells its own, another one is refused."""
    with ScoreEmulator(kind=EMBEDDING, form=COMPATIBLE) as server:
        Scores(endpoint=server.url, kind="bi-encoder")(row)
        assert set(server.stats.by_path) - {"/metrics"} == {"/info", "/v1/models", "/v1/embeddings"}
    with ScoreEmulator(kind=RERANKER) as server:
        with pytest.raises(ConfigurationError, match="is text-embeddings-inference with the cross-encoder"):
            Scores(endpoint=server.url, kind="bi-encoder")(row)
        with pytest.raises(ConfigurationError, match="serves the model 'emulated/scorer', and 'other' was asked for"):
            Scores(endpoint=server.url, model="other")(row)
        with pytest.raises(ConfigurationError, match="it has no similarity"):
            Scores(endpoint=server.url, similarity="dot")(row)
    with (
        ScoreEmulator(kind=EMBEDDING) as server,
        pytest.raises(ConfigurationError, match="raw_scores is for a reranker"),
    ):
        Scores(endpoint=server.url, raw_scores=True)(row)


def test_two_servers_are_one_model(sample, right):
    """Replicas share the work; another model among them ends the run."""
    with ScoreEmulator() as first, ScoreEmulator() as second:
        assert scored(sample, Scores(endpoint=[first.url, second.url])) == right[RERANKER]
        assert min(first.stats.requests, second.stats.requests) > 0
    with ScoreEmulator() as first, ScoreEmulator(model="another") as second:
        scores = Scores(endpoint=(first.url, second.url))
        with pytest.raises(ConfigurationError, match="serve different models"):
            scored(sample, scores)


@pytest.mark.parametrize("kind", [RERANKER, EMBEDDING])
def test_another_model_that_comes_up_ends_the_run(sample, kind):
    """A server that is back with another model gives no scores to the run that began with the first."""
    faults = [Fault(kind="model_change", on=12, model="another"), Fault(kind="restart", on=13, seconds=0.1)]
    with ScoreEmulator(kind=kind, slots=1, faults=faults, latency=Latency(overhead=0.01)) as server:
        scores = Scores(endpoint=server.url, concurrency=1, **QUICK)
        with pytest.raises(ConfigurationError, match="another@.* now, and the run began with emulated/scorer"):
            scored(sample, scores, batch_size=4)


def test_nobody_is_there(row):
    """A server that is away at first, and one that goes and does not come back, end with what to do."""
    gone = Scores(endpoint="http://127.0.0.1:9", attempts=2, **QUICK)
    with pytest.raises(AnnotatorError, match="There is no model to ask for scores: no connection"):
        gone(row)
    with ScoreEmulator() as server:
        scores = Scores(endpoint=server.url, give_up_after=0.3, **QUICK)
        scores(row)
    with pytest.raises(EndpointsDead, match="No endpoint has answered for"):
        scores({**row, "query": "another"})


def test_the_key_goes_to_its_server_alone(row, monkeypatch):
    """api_key= or ARHN_SCORE_API_KEY, or ARHN_API_KEY where that is no other server's; never a token of the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    with ScoreEmulator(api_key="sesame") as server:
        sent = []
        server.intercept = lambda request: sent.append(request.headers.get("Authorization"))
        with pytest.raises(AccessDenied, match="ARHN_SCORE_API_KEY"):
            Scores(endpoint=f"{server.url}/rerank")(row)  # a route that was pasted is none of its own
        monkeypatch.setenv("ARHN_API_KEY", "sesame")
        monkeypatch.setenv("ARHN_ENDPOINT", "http://llm.example:8080")
        with pytest.raises(AccessDenied):
            Scores(endpoint=server.url)(row)
        assert set(sent) == {None}
        monkeypatch.setenv("ARHN_ENDPOINT", server.url)
        assert Scores(endpoint=server.url)(row)["positive_scores"]
        monkeypatch.setenv("ARHN_ENDPOINT", "http://llm.example:8080")
        monkeypatch.setenv("ARHN_SCORE_API_KEY", "sesame")
        assert Scores(endpoint=server.url)({**row, "query": "again"})["positive_scores"]
        found = Scores(endpoint=server.url, api_key="sesame")
        assert found({**row, "query": "once more"})["positive_scores"]
        assert "sesame" not in repr(found) + json.dumps(found.description())
        assert set(sent) == {None, "Bearer sesame"}


def test_identity_is_what_the_server_names(sample):
    """Model, commit, kind and prompts; neither the URL nor the connection is part of it."""
    with ScoreEmulator() as first, ScoreEmulator() as second:
        ours = Scores(endpoint=first.url)
        assert ours.identity()["model"] == "emulated/scorer"
        assert ours.identity()["revision"] == first.revision
        assert ours.identity()["kind"] == "cross-encoder"
        assert Scores(endpoint=second.url, concurrency=2, cache="none").identity() == ours.identity()
        for options in ({"raw_scores": True}, {"query_prompt": "q"}, {"separator": "\n"}):
            assert ours.with_options(**options).identity() != ours.identity()
        assert "127.0.0.1" not in json.dumps(ours.description())
    named = Scores(endpoint="http://127.0.0.1:9", model="m", revision="r", kind="cross-encoder")
    assert named.identity()["model"] == "m"  # whoever names all of it needs no server


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "localhost:8080"}, "is not the URL of an endpoint"),
        ({"endpoint": ()}, "endpoint is empty"),
        ({"endpoint": 5}, "endpoint is 5; the URL of a server was expected"),
        ({"endpoint": "http://h", "field": "score"}, "one of a model, endpoint="),
        ({"endpoint": "http://h", "device": "cpu"}, "device is for a model in this process"),
        ({"endpoint": "http://h", "timeout": 0}, "timeout is 0"),
        ({"field": "score", "raw_scores": True}, "raw_scores is for a reranker behind endpoint="),
    ],
)
def test_wrong_options(options, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        Scores(**options)


def test_wrong_rows(row):
    """A row without a query is refused before anything is asked; one without passages asks nothing."""
    with ScoreEmulator() as server:
        scores = Scores(endpoint=server.url)
        with pytest.raises(SchemaError, match="a text was expected"):
            scores({**row, "query": None})
        empty = scores({**row, "positive_passages": [], "negative_passages": []})
        assert [empty[column] for column in COLUMNS] == [[], []]
        assert server.stats.requests == 0
        words = [{"docid": "a", "title": "", "text": ""}, {"docid": "b", "title": "Tin", "text": None}]
        assert all(isinstance(one, float) for one in scores({**row, "negative_passages": words})["negative_scores"])
    assert Scores(field="score").statistics() == Scores(field="score").causes() == {}


def test_options_of_a_command(monkeypatch, row):
    """The table has what a command takes; the key of the LLM in the environment stays with the LLM."""
    nothing = dict.fromkeys(Scores.OPTIONS)
    for given, said in (
        ({}, "says not whose scores these are; one of --score-endpoint URL"),
        ({"score_model": "m", "score_field": "f"}, "got --score-model and --score-field"),
        ({"score_model": "m", "score_api_key": "k"}, "--score-api-key does not go with --score-model"),
        ({"score_endpoint": ["http://h"], "score_device": "cpu"}, "--score-device does not go with --score-endpoint"),
        ({"score_field": "f", "score_raw": True}, "--score-raw does not go with --score-field"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            Scores.from_options({**nothing, **given})
    assert Scores.from_options({**nothing, "score_model": "m", "score_raw": False}).model == "m"
    both = Scores.from_options({**nothing, "score_model": "m", "score_endpoint": ["http://h"], "score_raw": True})
    assert (both.model, both.endpoint, both.raw_scores) == ("m", ("http://h",), True)
    assert Scores.from_options({**nothing, "score_columns": "a,b"}).columns == ("a", "b")
    monkeypatch.setenv("ARHN_API_KEY", "of-the-llm")
    with ScoreEmulator() as server:
        sent = []
        server.intercept = lambda request: sent.append(request.headers.get("Authorization"))
        given = {**nothing, "score_endpoint": [server.url], "timeout": 5.0, "cache": None}
        scores = Scores.from_options(given)
        assert scores(row)["positive_scores"]
        assert scores.timeout == 5.0
        assert set(sent) == {None}


def test_nothing_is_logged_where_all_is_well(sample, caplog):
    """No warning, and no complaint of asyncio's."""
    with caplog.at_level(logging.WARNING), ScoreEmulator(max_input_length=4096) as server:
        scored(sample[:8], Scores(endpoint=server.url))
    assert caplog.text == ""
