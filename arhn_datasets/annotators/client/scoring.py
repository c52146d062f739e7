"""What is said to servers of rerankers and of embedding models, and how their replies are read; no I/O.

A score of another passage would be worse than none, and servers sort by score. So a reply counts only as a whole: each
index of the texts that were sent once and no other, a finite number for each, a text that is sent back is the one that
was sent, the model is the one of the run. Anything else is an error, in the server's words.

Server contracts: text-embeddings-inference 1.9 (``/info``, ``/rerank``, ``/embed``, ``/tokenize``); the ``/v1/rerank``
of Cohere, Jina, vLLM, llama-server and Infinity; OpenAI's ``/v1/embeddings``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from arhn_datasets.annotators.client.contract import ChatRequest, Completion, ServerInfo
from arhn_datasets.annotators.client.refusals import error_within, excerpt, without
from arhn_datasets.errors import EmptyReply

TEI, COMPATIBLE = "text-embeddings-inference", "compatible"
CROSS_ENCODER, BI_ENCODER = "cross-encoder", "bi-encoder"
ROUTES: Mapping[str, Sequence[str]] = {
    CROSS_ENCODER: ("/v1/rerank", "/rerank", "/v2/rerank"),
    BI_ENCODER: ("/v1/embeddings", "/embeddings"),
}
"""Where a server that is no text-embeddings-inference may be asked for each kind of score."""
TEXTS = 32  # in a request, where the server says no other number
QUERY_SIDE, PASSAGE_SIDE = "query", "passage"
COSINE = "cosine"
PROMPT_NAMES: Mapping[str, Sequence[str]] = {
    QUERY_SIDE: ("query",),
    PASSAGE_SIDE: ("document", "passage", "corpus"),
}
"""The prompts of its own that sentence-transformers gives a model for each side, if it has them."""
_TASKS: Mapping[str, str] = {"reranker": CROSS_ENCODER, "embedding": BI_ENCODER}

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScoringInfo(ServerInfo):
    """What a server of scores says of itself, and what it was seen to do.

    ``named`` is the model as its replies name it, ``width`` the length of its vectors, ``prompts`` the prompts of its
    own that it knows for each side.
    """

    kind: str
    route: str
    most_texts: int = TEXTS
    named: str | None = None
    width: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What changes a score; a URL is no part of it."""
        return {"model": self.model, "revision": self.revision, "kind": self.kind}


@dataclass(frozen=True, kw_only=True)
class TextsRequest(ChatRequest):
    """Texts to score beside a query, or to embed where there is none.

    ``prompt`` names a prompt of the server's own that goes in front of each text; ``cut`` lets the server cut what is
    too long for it.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int = 1
    texts: tuple[str, ...]
    query: str | None = None
    prompt: str | None = None
    raw: bool = False
    cut: bool = False

    def size(self) -> int:
        """Bytes of all texts."""
        return sum(len(text.encode("utf-8", "replace")) for text in (self.query or "", *self.texts))

    def characters(self) -> int:
        """Characters of all texts."""
        return sum(map(len, (self.query or "", *self.texts)))


@dataclass(frozen=True, kw_only=True)
class Measured(Completion):
    """A score, or a vector, of each text of a request in its order; ``cut`` has the places of those read in part."""

    text: str = "measured"
    values: tuple[Any, ...]
    cut: frozenset[int] = frozenset()
    named: str | None = None


def body_of(info: ScoringInfo, request: TextsRequest) -> dict[str, Any]:
    """The body of a request in the form of the server."""
    texts = list(request.texts)
    if info.api == TEI:
        if request.query is None:
            body = {"inputs": texts, "normalize": False, "truncate": request.cut}
            return body if request.prompt is None else {**body, "prompt_name": request.prompt}
        sent = {"raw_scores": request.raw, "return_text": False, "truncate": request.cut}
        return {"query": request.query, "texts": texts, **sent}
    if request.query is None:
        return {"model": info.model, "input": texts, "encoding_format": "float"}
    return {"model": info.model, "query": request.query, "documents": texts, "top_n": len(texts)}


def read(body: bytes, info: ScoringInfo, request: TextsRequest, secret: str | None = None) -> Measured:
    """What the body of a 200 says of the texts of a request.

    Raises:
        EmptyReply: it is not exactly a value for each of them, by the model of the run.
        EndpointError: it holds an error instead, which is that of a server behind a gateway.
    """
    body = without(secret, body)
    if b'"error"' in body and (error := error_within(body)):
        raise error
    try:
        reply = json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
        values = _vectors(reply, info, request) if request.query is None else _scores(reply, request)
        named = reply.get("model") if isinstance(reply, dict) else None
        if named is not None and info.named is not None and named != info.named:
            raise ValueError(f"it is a reply of the model {named!r}, and {info.named!r} was asked")
    except (ValueError, RecursionError) as error:
        said = excerpt(body)
        raise EmptyReply(f"the server answered 200 without a value for each text: {error}: {said!r}") from error
    usage = reply.get("usage") if isinstance(reply, dict) else None
    tokens = [usage.get(name) for name in ("prompt_tokens", "total_tokens")] if isinstance(usage, dict) else []
    counted = next((count for count in tokens if type(count) is int), None)
    return Measured(values=tuple(values), prompt_tokens=counted, named=named if isinstance(named, str) else None)


def _scores(reply: Any, request: TextsRequest) -> list[float]:
    """The score of each text, by the indices of the reply."""
    results = reply if isinstance(reply, list) else _member(reply, ("results", "data"))
    found = _by_index(results, len(request.texts), lambda one: _number(_member(one, ("score", "relevance_score"))))
    for one in results:
        sent, given = request.texts[one["index"]], one.get("text", one.get("document"))
        given = given.get("text") if isinstance(given, dict) else given
        if isinstance(given, str) and not _same(given, sent):
            raise ValueError(f"the index {one['index']} stands beside a text that was not sent in its place")
    return found


def _vectors(reply: Any, info: ScoringInfo, request: TextsRequest) -> list[Vector]:
    """The vector of each text: in order by text-embeddings-inference, by its index elsewhere."""
    if isinstance(reply, list):
        if len(reply) != len(request.texts):
            raise ValueError(f"{len(reply)} vectors for {len(request.texts)} texts")
        vectors = [_vector(one) for one in reply]
    else:
        vectors = _by_index(
            _member(reply, ("data",)), len(request.texts), lambda one: _vector(_member(one, ("embedding",)))
        )
    if widths := {len(vector) for vector in vectors} - {info.width or len(vectors[0])}:
        raise ValueError(f"a vector of {widths.pop()} numbers, and {info.width or len(vectors[0])} were expected")
    return vectors


def _by_index(results: Any, count: int, value: Callable[[Any], Any]) -> list[Any]:
    """The value of each of ``count`` texts, each index of which has to stand there once."""
    if not isinstance(results, list) or len(results) != count:
        said = f"{len(results)} results" if isinstance(results, list) else "no list of results"
        raise ValueError(f"{said} for {count} texts")
    found: dict[int, Any] = {}
    for one in results:
        index = _member(one, ("index",))
        if type(index) is not int or not 0 <= index < count:
            raise ValueError(f"the index {index!r} is none of the {count} texts")
        if index in found:
            raise ValueError(f"the index {index} stands there twice")
        found[index] = value(one)
    return [found[index] for index in range(count)]


def _member(value: Any, names: Sequence[str]) -> Any:
    """The one of ``names`` that an object has."""
    there = [name for name in names if isinstance(value, dict) and name in value]
    if len(there) != 1:
        raise ValueError(f"no {' or '.join(map(repr, names))}" if not there else f"{' and '.join(map(repr, there))}")
    return value[there[0]]


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{excerpt(json.dumps(value)[:100])} is no finite number")
    return number


def _vector(value: Any) -> Vector:
    if not isinstance(value, list) or not value:
        raise ValueError("no vector of numbers")
    if not set(map(type, value)) <= {int, float}:  # a number each, which is slower
        value = [_number(one) for one in value]
    try:
        found = np.array(value, dtype=np.float64)
    except OverflowError:
        found = np.array([math.inf])
    if not np.isfinite(found).all():
        raise ValueError("a vector with what is no finite number")
    if not found.any():
        raise ValueError("a vector of zeros")
    return found


def _same(given: str, sent: str) -> bool:
    """Whether a text that a server sends back is the one that it got, but for spaces."""
    return given.split() == sent.split()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no name may stand twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def declared(found: Mapping[str, Any], texts_at_once: int) -> ScoringInfo | str | None:
    """What text-embeddings-inference's ``/info`` says; the words for what it is where it gives no scores.

    Its limit is one of texts in flight: a request to a reranker has up to ``texts_at_once``, one for vectors is full.
    """
    if not isinstance(found.get("model_type"), (dict, str)):
        return f"a server of the LLM {found['model_id']}" if "model_id" in found else None
    types = [found["model_type"]] if isinstance(found["model_type"], str) else list(found["model_type"])
    kind = next((_TASKS[type.lower()] for type in types if type.lower() in _TASKS), None)
    if kind is None or len(types) != 1:
        return f"{TEI} with the model {found.get('model_id')}, a {' and '.join(types) or 'model of no type'}"
    most = _positive(found.get("max_client_batch_size")) or TEXTS
    texts = _positive(found.get("max_concurrent_requests"))
    return ScoringInfo(
        api=TEI,
        model=str(found.get("model_id")),
        revision=found.get("model_sha"),
        version=found.get("version"),
        max_concurrent_requests=texts and max(1, texts // min(most, texts_at_once if kind == CROSS_ENCODER else most)),
        max_input_tokens=_positive(found.get("max_input_length")),
        kind=kind,
        route="/rerank" if kind == CROSS_ENCODER else "/embed",
        most_texts=most,
    )


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def similarity_of(first: Vector, second: Vector, name: str) -> float | None:
    """The cosine or the dot product of two vectors, None where it is no finite number."""
    if len(first) != len(second):
        return None
    with np.errstate(all="ignore"):
        product = float(first @ second)
        if name == COSINE:
            product /= float(np.linalg.norm(first) * np.linalg.norm(second)) or math.nan
    return product if math.isfinite(product) else None
