"""The emulated server of scores says what the real text-embeddings-inference 1.9.3 said."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import ScoreEmulator
from arhn_datasets.testing.scoring import COMPATIBLE, EMBEDDING, RERANKER
from arhn_datasets.testing.tei import main

_local = build_opener(ProxyHandler({}))
TEXTS = ["tin melts", "copper is red", "tin is soft", ""]


def ask(server, path, body=None):
    """The status and the value, or the text, of a reply."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(server.url + path, data=data, headers={"Content-Type": "application/json"})
    try:
        with _local.open(request, timeout=30) as reply:
            status, said = reply.status, reply.read()
    except HTTPError as error:
        status, said = error.code, error.read()
    try:
        return status, json.loads(said)
    except ValueError:
        return status, said.decode()


def test_rerank_is_sorted_by_score():
    """Indices tell which text; the score is the sigmoid of the logit, and an empty text has one, too."""
    with ScoreEmulator() as server:
        status, found = ask(server, "/rerank", {"query": "what melts?", "texts": TEXTS})
        assert status == 200
        assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
        assert sorted(one["index"] for one in found) == [0, 1, 2, 3]
        raw = ask(server, "/rerank", {"query": "what melts?", "texts": TEXTS, "raw_scores": True})[1]
        logits = {one["index"]: one["score"] for one in raw}
        assert all(one["score"] == pytest.approx(1 / (1 + math.exp(-logits[one["index"]]))) for one in found)
        texts = ask(server, "/rerank", {"query": "what melts?", "texts": TEXTS, "return_text": True})[1]
        assert [one["text"] for one in texts] == [TEXTS[one["index"]] for one in texts]


def test_embed_is_in_order_and_normalised():
    """One vector a text, of length one unless it is asked otherwise; a prompt goes in front."""
    with ScoreEmulator(kind=EMBEDDING, prompts={"query": "q: "}) as server:
        found = ask(server, "/embed", {"inputs": TEXTS})[1]
        assert [math.hypot(*vector) for vector in found] == pytest.approx([1] * 4)
        assert ask(server, "/embed", {"inputs": TEXTS[1]})[1] == [found[1]]
        assert math.hypot(*ask(server, "/embed", {"inputs": TEXTS[1], "normalize": False})[1][0]) > 1
        assert (
            ask(server, "/embed", {"inputs": "tin", "prompt_name": "query"})[1]
            == ask(server, "/embed", {"inputs": "q: tin"})[1]
        )
        assert ask(server, "/embed", {"inputs": "tin", "prompt_name": "other"})[0] == 422


def test_info_tells_what_it_is():
    """The kind of the model, its limits, and whether it cuts."""
    with ScoreEmulator(max_input_length=128) as server:
        found = ask(server, "/info")[1]
        assert list(found["model_type"]) == ["reranker"]
        assert (found["max_input_length"], found["max_client_batch_size"], found["auto_truncate"]) == (128, 32, True)
        assert found["max_concurrent_requests"] == 512
        assert ask(server, "/v1/models")[0] == 404
        assert ask(server, "/health") == (200, "")


@pytest.mark.parametrize(
    ("kind", "path", "body", "status", "said"),
    [
        (RERANKER, "/rerank", {"query": "q", "texts": []}, 400, "`texts` cannot be empty"),
        (
            RERANKER,
            "/rerank",
            {"query": "q", "texts": ["a"] * 33},
            422,
            "batch size 33 > maximum allowed batch size 32",
        ),
        (RERANKER, "/embed", {"inputs": "a"}, 424, "Backend error: model is not an embedding model"),
        (EMBEDDING, "/rerank", {"query": "q", "texts": ["a"]}, 424, "Backend error: model is not a re-ranker model"),
        (RERANKER, "/rerank", {"query": "q", "texts": [None]}, 422, "texts[0]: invalid type: null, expected a string"),
        (RERANKER, "/rerank", {"texts": ["a"]}, 422, "missing field `query`"),
        (
            RERANKER,
            "/rerank",
            {"query": "q", "texts": ["a b c " * 200], "truncate": False},
            422,
            "Input validation error: `inputs` must have less than 128 tokens. Given:",
        ),
        (RERANKER, "/rerank", b"{", 400, "Failed to parse the request body as JSON"),
        (RERANKER, "/rerank", {"query": "q", "texts": ["a" * 2_100_000]}, 413, "length limit exceeded"),
    ],
)
def test_refusals(kind, path, body, status, said):
    """Each with the status and the words of the real one."""
    with ScoreEmulator(kind=kind, max_input_length=128) as server:
        found, reply = ask(server, path, body)
        assert found == status
        assert said in (reply["error"] if isinstance(reply, dict) else reply)


def test_texts_are_cut_without_a_word():
    """Where the request does not say otherwise, the score of a long text is that of its beginning."""
    with ScoreEmulator(max_input_length=16) as server:
        long = "tin melts at two hundred degrees " * 9
        found = ask(server, "/rerank", {"query": "q", "texts": [long, long + "and more", long[:200]]})
        assert len({one["score"] for one in found[1]}) == 1
        tokens = ask(server, "/tokenize", {"inputs": [long, "tin"]})[1]
        assert [len(one) > 16 for one in tokens] == [True, False]


def test_the_limit_counts_texts():
    """A request that would bring the texts in flight above it is refused at once."""
    with ScoreEmulator(max_concurrent_requests=3) as server:
        assert ask(server, "/rerank", {"query": "q", "texts": ["a"] * 3})[0] == 200
        found = ask(server, "/rerank", {"query": "q", "texts": ["a"] * 4})
        assert found == (429, {"error": "Model is overloaded", "error_type": "Overloaded"})


def test_the_form_that_others_share():
    """Results under their index beside the texts, vectors as OpenAI lists them, and nothing that tells the kind."""
    with ScoreEmulator(form=COMPATIBLE) as server:
        body = {"model": "m", "query": "q", "documents": TEXTS, "top_n": 3}
        found = ask(server, "/v1/rerank", body)[1]
        assert len(found["results"]) == 3
        assert all(one["document"]["text"] == TEXTS[one["index"]] for one in found["results"])
        assert [ask(server, path)[0] for path in ("/info", "/v1/models")] == [404, 200]
    with ScoreEmulator(form=COMPATIBLE, kind=EMBEDDING) as server:
        found = ask(server, "/v1/embeddings", {"model": "m", "input": TEXTS})[1]
        assert [one["index"] for one in found["data"]] == [0, 1, 2, 3]


def test_wrong_options():
    """The message says what was expected."""
    with pytest.raises(ConfigurationError, match="kind is 'ranker'; one of reranker, embedding was expected"):
        ScoreEmulator(kind="ranker")
    with pytest.raises(ConfigurationError, match="form is 'x'; one of tei, compatible"):
        ScoreEmulator(form="x")


def test_the_command_serves_until_it_is_ended():
    """It prints its URL, serves, and ends at SIGTERM with a line of counts; wrong usage exits with 2."""
    command = [sys.executable, "-m", "arhn_datasets.testing.tei", "--port", "0", "--kind", EMBEDDING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            url = running.stdout.readline().strip()
            body = Request(f"{url}/info")
            with _local.open(body, timeout=30) as reply:
                assert "embedding" in json.load(reply)["model_type"]
            running.terminate()
            assert "0 requests" in running.communicate(timeout=30)[0]
            assert running.returncode == 0
        finally:
            running.kill()
    with pytest.raises(SystemExit) as ended:
        main(["--fault", "earthquake"])
    assert ended.value.code == 2
