"""What servers of scores say: a whole reply gives each text its own number, and anything else gives none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arhn_datasets.annotators.client import scoring
from arhn_datasets.annotators.client.scoring import ScoringInfo, TextsRequest, body_of, declared, read, similarity_of
from arhn_datasets.errors import EmptyReply, EndpointError, EndpointOverloaded

TEXTS = ("tin melts", "copper is red", "tin is soft")
SCORES = (0.9, 0.1, 0.5)
RERANKER = ScoringInfo(api=scoring.COMPATIBLE, model="m", kind=scoring.CROSS_ENCODER, route="/v1/rerank", named="m")
TEI = ScoringInfo(api=scoring.TEI, model="m", kind=scoring.CROSS_ENCODER, route="/rerank")
ENCODER = ScoringInfo(api=scoring.COMPATIBLE, model="m", kind=scoring.BI_ENCODER, route="/v1/embeddings", width=2)
PAIRS = TextsRequest(texts=TEXTS, query="why?")
ALONE = TextsRequest(texts=TEXTS)


def results(name="score", **more):
    """The results of a right reply, best first."""
    found = [{"index": at, name: score, **more} for at, score in enumerate(SCORES)]
    return sorted(found, key=lambda one: -one[name])


def whole(**changes):
    """A right reply of ``/v1/rerank``."""
    return {"model": "m", "results": results("relevance_score"), "usage": {"total_tokens": 9}, **changes}


def test_scores_are_given_by_their_index():
    """Replies are sorted by score; both forms, also with the texts, give them in the order of the texts."""
    texts = [{**one, "document": {"text": TEXTS[one["index"]]}} for one in results("relevance_score")]
    for info, reply in (
        (TEI, results()),
        (TEI, [{**one, "text": TEXTS[one["index"]]} for one in results()]),
        (RERANKER, whole()),
        (RERANKER, whole(results=texts)),
        (RERANKER, {"data": results("relevance_score")}),
        (RERANKER, whole(results=[{**one, "document": TEXTS[one["index"]]} for one in results("relevance_score")])),
    ):
        assert read(json.dumps(reply).encode(), info, PAIRS).values == SCORES
    assert read(json.dumps(whole()).encode(), RERANKER, PAIRS).prompt_tokens == 9


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ([], "0 results for 3 texts"),
        (results()[:2], "2 results for 3 texts"),
        ([*results(), {"index": 3, "score": 1}], "4 results for 3 texts"),
        ([*results()[:2], {"index": 3, "score": 0.1}], "the index 3 is none of the 3 texts"),
        ([*results()[:2], {"index": -1, "score": 0.1}], "the index -1 is none"),
        ([*results()[:2], {"index": 1.0, "score": 0.1}], "the index 1.0 is none"),
        ([*results()[:2], {"index": True, "score": 0.1}], "the index True is none"),
        ([*results()[:2], {"index": "1", "score": 0.1}], "the index '1' is none"),
        ([*results()[:2], {"score": 0.1}], "no 'index'"),
        ([*results()[:2], {"index": 0, "score": 0.1}], "the index 0 stands there twice"),
        ([*results()[:2], {"index": 1}], "no 'score' or 'relevance_score'"),
        ([*results()[:2], {"index": 1, "score": 0.1, "relevance_score": 0.2}], "'score' and 'relevance_score'"),
        ([*results()[:2], {"index": 1, "score": None}], "null is no finite number"),
        ([*results()[:2], {"index": 1, "score": True}], "true is no finite number"),
        ([*results()[:2], {"index": 1, "score": "0.1"}], "is no finite number"),
        ([*results()[:2], {"index": 1, "score": math.nan}], "NaN is no finite number"),
        ([*results()[:2], {"index": 1, "score": -math.inf}], "-Infinity is no finite number"),
        ([*results()[:2], {"index": 1, "score": 10**400}], "is no finite number"),
        ([*results()[:2], 1], "no 'index'"),
        ([{**one, "text": TEXTS[0]} for one in results()], "stands beside a text that was not sent in its place"),
        ({"detail": "not loaded"}, "no 'results' or 'data'"),
        (whole(model="other"), "a reply of the model 'other', and 'm' was asked"),
        (whole(results={}), "no list of results for 3 texts"),
        ("ready", "no 'results' or 'data'"),
    ],
)
def test_a_reply_that_is_not_whole_gives_nothing(reply, said):
    """Each says what was found, with the server's words."""
    info = RERANKER if isinstance(reply, dict) else TEI
    with pytest.raises(EmptyReply, match="without a value for each text: .*" + said.replace("'", ".")):
        read(json.dumps(reply).encode(), info, PAIRS)


@pytest.mark.parametrize("body", [b"", b"[", b"<html>", b'[{"index": 0, "index": 1, "score": 1}]', b"\xff", b"[1e999]"])
def test_what_is_no_json_gives_nothing(body):
    """A name that stands twice in an object is none either: which of the two counts?"""
    with pytest.raises(EmptyReply):
        read(body, TEI, TextsRequest(texts=("a",), query="q"))


def test_an_error_in_a_200_is_that_error():
    """Gateways answer 200 before they know what the server behind them says."""
    with pytest.raises(EndpointOverloaded, match="Rate limit"):
        read(b'{"error": {"message": "Rate limit reached", "code": 429}}', RERANKER, PAIRS)
    with pytest.raises(EmptyReply, match="secret|[*]{3}") as caught:
        read(b'{"detail": "the key sk-1 is wrong"}', RERANKER, PAIRS, "sk-1")
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ([[1, 0], [0, 1]], "2 vectors for 3 texts"),
        ([[1, 0], [0, 1], [1]], "a vector of 1 numbers, and 2 were expected"),
        ([[1, 0], [0, 1], []], "no vector of numbers"),
        ([[1, 0], [0, 1], "AACAPw=="], "no vector of numbers"),
        ([[1, 0], [0, 1], [0, 0.0]], "a vector of zeros"),
        ([[1, 0], [0, 1], [0, None]], "null is no finite number"),
        ([[1, 0], [0, 1], [0, True]], "true is no finite number"),
        ([[1, 0], [0, 1], [0, 10**400]], "with what is no finite number"),
        ({"data": [{"index": at, "embedding": [1, 0]} for at in (0, 1, 1)]}, "the index 1 stands there twice"),
        ({"data": [{"embedding": [1, 0]} for _ in range(3)]}, "no 'index'"),
        ([[1, 0, 0]] * 3, "a vector of 3 numbers, and 2 were expected"),
    ],
)
def test_vectors_that_are_not_whole_give_nothing(reply, said):
    """One for each text, of the width of the run, and none that points nowhere."""
    with pytest.raises(EmptyReply, match=said.replace("'", ".")):
        read(json.dumps(reply).encode(), ENCODER, ALONE)


def test_vectors_are_given_by_their_index():
    """OpenAI's list may stand in any order; that of text-embeddings-inference has no indices."""
    data = [{"index": at, "embedding": [at + 1.0, 0.0]} for at in (2, 0, 1)]
    assert [vector[0] for vector in read(json.dumps({"data": data}).encode(), ENCODER, ALONE).values] == [1, 2, 3]
    assert [vector[0] for vector in read(b"[[1, 0], [2, 0], [3, 0]]", ENCODER, ALONE).values] == [1, 2, 3]


VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3)


@given(st.data())
def test_a_changed_reply_never_gives_another_number(data):
    """Whatever is dropped, doubled, moved or replaced, each text has its own score or the reply counts for nothing."""
    found = [{**one, "document": {"text": TEXTS[one["index"]]}} for one in results("relevance_score")]
    # Indices and texts that are both exchanged are a right reply with other numbers.
    changes = ("drop", "double", "move", "score", *data.draw(st.sampled_from([("index", "swap"), ("text",)])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(found) - 1)) if found else 0
        change = data.draw(st.sampled_from(changes))
        if not found or change == "drop":
            found = found[:at] + found[at + 1 :]
        elif change == "double":
            found.append(dict(found[at]))
        elif change == "move":
            found.insert(0, found.pop(at))
        elif change == "swap":  # the indices of two, as a server that sorts after it has numbered
            found[at]["index"], found[0]["index"] = found[0]["index"], found[at]["index"]
        elif change == "text":
            found[at] = {**found[at], "document": data.draw(st.sampled_from(TEXTS) | st.text(max_size=3))}
        else:
            value = data.draw(VALUES)
            if change == "score" and type(value) in (int, float) and math.isfinite(value):
                return  # a number is a number
            found[at] = {**found[at], "index" if change == "index" else "relevance_score": value}
    try:
        values = read(json.dumps({"results": found}).encode(), RERANKER, PAIRS).values
    except EndpointError:
        return
    assert values == SCORES


def test_bodies_are_those_of_each_form():
    """The server may cut only where it is told to, and logits are asked for only where they are wanted."""
    assert body_of(TEI, PAIRS) == {
        "query": "why?",
        "texts": list(TEXTS),
        "raw_scores": False,
        "return_text": False,
        "truncate": False,
    }
    asked = TextsRequest(texts=("a",), prompt="query", cut=True)
    embedder = ScoringInfo(api=scoring.TEI, model="m", kind=scoring.BI_ENCODER, route="/embed")
    assert body_of(embedder, asked) == {"inputs": ["a"], "normalize": False, "truncate": True, "prompt_name": "query"}
    assert body_of(RERANKER, PAIRS) == {"model": "m", "query": "why?", "documents": list(TEXTS), "top_n": 3}
    assert body_of(ENCODER, ALONE) == {"model": "m", "input": list(TEXTS), "encoding_format": "float"}


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({}, None),
        ({"version": "1"}, None),
        ({"model_id": "some/llm", "max_total_tokens": 4096}, "a server of the LLM some/llm"),
        ({"model_id": "m", "model_type": {"classifier": {}}}, "with the model m, a classifier"),
        ({"model_id": "m", "model_type": {}}, "a model of no type"),
        ({"model_id": "m", "model_type": {"reranker": {}}}, ("cross-encoder", "/rerank", 32, None)),
        ({"model_id": "m", "model_type": "Embedding", "max_client_batch_size": 8}, ("bi-encoder", "/embed", 8, None)),
        (
            {"model_id": "m", "model_type": {"reranker": {}}, "max_concurrent_requests": 512},
            ("cross-encoder", "/rerank", 32, 32),
        ),
    ],
)
def test_what_a_server_declares(info, found):
    """Its kind, its texts in a request, and how many such requests its limit of texts has room for."""
    given = declared(info, 16)
    if isinstance(found, tuple):
        assert (given.kind, given.route, given.most_texts, given.max_concurrent_requests) == found
    else:
        assert given is found if found is None else found in given


def test_similarities():
    """The cosine and the dot product; vectors of two widths have none."""
    assert similarity_of(np.array([3.0, 4.0]), np.array([4.0, 3.0]), "cosine") == pytest.approx(0.96)
    assert similarity_of(np.array([3.0, 4.0]), np.array([4.0, 3.0]), "dot") == 24
    assert similarity_of(np.array([1.0]), np.array([1.0, 2.0]), "dot") is None
    assert similarity_of(np.array([1e200]), np.array([1e200]), "dot") is None
