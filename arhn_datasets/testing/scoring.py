"""A fake server of scores: the HTTP contract of text-embeddings-inference, and the forms that other servers share.

    with ScoreEmulator(kind="reranker") as server:
        ds.map(arhn.Scores(endpoint=server.url))

Server contract: text-embeddings-inference 1.9, as the real one replied: ``/rerank`` is sorted by score, what is too
long is cut without a word, and limits count texts. ``form="compatible"`` has ``/v1/rerank`` or ``/v1/embeddings`` and
tells no kind, as vLLM, Infinity and gateways do.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

from aiohttp import web

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing.emulator import Emulator
from arhn_datasets.testing.fields import EMBED_FIELDS, RERANK_FIELDS
from arhn_datasets.testing.problems import Problem, batch_failed
from arhn_datasets.testing.responses import Request, json_response
from arhn_datasets.testing.service import Service
from arhn_datasets.testing.shapes import Body
from arhn_datasets.testing.tokens import pieces, tokenised

RERANKER, EMBEDDING = "reranker", "embedding"
TEI, COMPATIBLE = "tei", "compatible"
SPECIALS = 2  # tokens around a text
WIDTH = 16
TEI_VERSION = "1.9.3"


class TextModel(Protocol):
    """What such a server runs: logits of pairs or vectors of texts, each cut to so many tokens."""

    def length(self, query: str | None, text: str) -> int:
        """The tokens of a text, or of a pair, special ones included."""

    def logits(self, query: str, texts: Sequence[str], most: int) -> list[float]:
        """The logit of each pair."""

    def vectors(self, texts: Sequence[str], most: int) -> list[list[float]]:
        """The vector of each text, of any length."""


class WordModel:
    """Numbers that follow from the words alone, other ones for each text: a wrong assignment shows."""

    def length(self, query: str | None, text: str) -> int:
        """Pieces, and the special tokens."""
        return len(pieces(text)) + SPECIALS + (0 if query is None else len(pieces(query)) + 1)

    def logits(self, query: str, texts: Sequence[str], most: int) -> list[float]:
        """From -4 to 4."""
        return [8 * crc32(f"{query}\0{self._cut(text, most, query)}".encode()) / 2**32 - 4 for text in texts]

    def vectors(self, texts: Sequence[str], most: int) -> list[list[float]]:
        """From -1 to 1 in each direction."""
        return [[crc32(f"{at} {self._cut(text, most)}".encode()) / 2**31 - 1 for at in range(WIDTH)] for text in texts]

    def _cut(self, text: str, most: int, query: str | None = None) -> str:
        room = most - self.length(query, "")
        return "".join(pieces(text)[: max(0, room)])


class FolderModel:
    """A cross-encoder or a bi-encoder of sentence-transformers in a folder."""

    def __init__(self, folder: str, kind: str) -> None:
        from sentence_transformers import CrossEncoder, SentenceTransformer

        make = CrossEncoder if kind == RERANKER else SentenceTransformer
        self._model: Any = make(folder, device="cpu")
        self._limit = "max_seq_length" if hasattr(self._model, "max_seq_length") else "max_length"

    def length(self, query: str | None, text: str) -> int:
        """As the tokenizer counts."""
        given = (text,) if query is None else (query, text)
        return len(self._model.tokenizer(*given, truncation=False, verbose=False)["input_ids"])

    def logits(self, query: str, texts: Sequence[str], most: int) -> list[float]:
        """Without any activation."""
        import torch

        setattr(self._model, self._limit, most)
        pairs = [(query, text) for text in texts]
        found: list[float] = self._model.predict(pairs, activation_fn=torch.nn.Identity()).astype("float64").tolist()
        return found

    def vectors(self, texts: Sequence[str], most: int) -> list[list[float]]:
        """As the model pools them, without any prompt."""
        setattr(self._model, self._limit, most)
        found: list[list[float]] = self._model.encode(list(texts), prompt="").astype("float64").tolist()
        return found


@dataclass(kw_only=True, eq=False)
class ScoreEmulator(Emulator):
    """A server of scores, with the latency, the faults and the counters of `Emulator`.

    Args:
        kind: ``"reranker"`` or ``"embedding"``.
        form: ``"tei"``, or ``"compatible"`` for ``/v1/rerank`` or ``/v1/embeddings`` alone.
        scored_by: A model, or the folder of one of sentence-transformers; by default numbers made of the words.
        max_input_length: Tokens of a text, or of a pair.
        max_client_batch_size: Texts in a request.
        auto_truncate: Whether longer texts are cut where the request does not say; of ``"compatible"`` always, or
            else refused.
        prompts: Prompts of the model's own, by name.
        spoil: Called with the value of each reply; what it returns is sent.
        max_concurrent_requests: Texts in flight; above, 429.
    """

    model: str = "emulated/scorer"
    kind: str = RERANKER
    form: str = TEI
    scored_by: TextModel | str = field(default_factory=WordModel)
    max_input_length: int = 512
    max_client_batch_size: int = 32
    auto_truncate: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    spoil: Callable[[Any], Any] = lambda value: value
    max_concurrent_requests: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("kind", (RERANKER, EMBEDDING)), ("form", (TEI, COMPATIBLE))):
            if getattr(self, name) not in choices:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; one of {', '.join(choices)} was expected."
                )
        if isinstance(self.scored_by, (str, os.PathLike)):
            self.scored_by = FolderModel(os.fspath(self.scored_by), self.kind)

    def _service_of(self) -> Service:
        return ScoreService(self)

    def info(self) -> Body:
        """What ``/info`` says."""
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {
            "model_id": self.model,
            "model_sha": self.revision,
            "model_dtype": "float32",
            "served_model_name": self.model,
            "model_type": {self.kind: labels if self.kind == RERANKER else {"pooling": "mean"}},
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_input_length": self.max_input_length,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_client_batch_size": self.max_client_batch_size,
            "auto_truncate": self.auto_truncate,
            "tokenization_workers": 2,
            "version": TEI_VERSION,
            "sha": None,
            "docker_label": None,
        }


class ScoreService(Service):
    """The routes of such a server; the order of checks is that of the router."""

    def __init__(self, server: ScoreEmulator) -> None:
        super().__init__(server)
        self._scores = server
        tei = server.form == TEI
        self._gets = {"/health": web.Response, "/metrics": self._metrics}
        self._gets |= {"/info": lambda: json_response(server.info())} if tei else {"/v1/models": self._models}
        if tei:
            self._posts = {
                "/rerank": (RERANK_FIELDS, self._rerank),
                "/embed": (EMBED_FIELDS, self._embed),
                "/tokenize": (EMBED_FIELDS, self._tokenize),
            }
        elif server.kind == RERANKER:
            self._posts = {"/v1/rerank": ({}, self._compatible_rerank)}
        else:
            self._posts = {"/v1/embeddings": ({}, self._compatible_embed)}

    async def _rerank(self, request: Request) -> web.StreamResponse:
        body = request.body
        texts = self._checked(body["texts"], "texts", RERANKER)
        cut = self._cuts(body)
        logits = await self._computed(request, texts, lambda: self._logits(body["query"], texts, cut))
        scores = logits if body.get("raw_scores") else [1 / (1 + math.exp(-one)) for one in logits]
        found = [{"index": at, "score": score} for at, score in enumerate(scores)]
        if body.get("return_text"):
            found = [{**one, "text": texts[one["index"]]} for one in found]
        return await self._spoilt(request, sorted(found, key=lambda one: -one["score"]))

    async def _embed(self, request: Request) -> web.StreamResponse:
        body = request.body
        texts = self._prompted(body)
        self._checked(texts, "inputs", EMBEDDING)
        cut = self._cuts(body)
        vectors = await self._computed(request, texts, lambda: self._vectors(texts, cut))
        if body.get("normalize", True):
            vectors = [[one / math.hypot(*vector) for one in vector] for vector in vectors]
        return await self._spoilt(request, vectors)

    async def _tokenize(self, request: Request) -> web.StreamResponse:
        model = self._scores.scored_by
        assert not isinstance(model, str)
        texts = self._prompted(request.body)
        listed = [(tokenised(text) + [{}] * model.length(None, text))[: model.length(None, text)] for text in texts]
        return json_response(listed)

    async def _compatible_rerank(self, request: Request) -> web.StreamResponse:
        body = request.body
        texts = self._checked(body.get("documents"), "documents", RERANKER)
        logits = await self._computed(request, texts, lambda: self._logits(str(body["query"]), texts, self._cuts({})))
        scored = [(1 / (1 + math.exp(-one)), at) for at, one in enumerate(logits)]
        results = [
            {"index": at, "document": {"text": texts[at]}, "relevance_score": score}
            for score, at in sorted(scored, reverse=True)
        ]
        return await self._spoilt(request, {**self._head(request, texts), "results": results[: body.get("top_n")]})

    async def _compatible_embed(self, request: Request) -> web.StreamResponse:
        given = request.body.get("input")
        texts = self._checked([given] if isinstance(given, str) else given, "input", EMBEDDING)
        vectors = await self._computed(request, texts, lambda: self._vectors(texts, self._cuts({})))
        data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)]
        return await self._spoilt(request, {**self._head(request, texts), "object": "list", "data": data})

    def _head(self, request: Request, texts: Sequence[str]) -> Body:
        tokens = sum(len(pieces(text)) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"model": request.body.get("model", self._scores.model), "usage": usage}

    def _prompted(self, body: Body) -> list[str]:
        texts = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
        name = body.get("prompt_name")
        if name is not None and name not in self._scores.prompts:
            known = ", ".join(self._scores.prompts) or "none"
            raise Problem.named(422, "Validation", f"`prompt_name` not found in the prompts of the model: {known}")
        return [self._scores.prompts.get(name or "", "") + text for text in texts]

    def _checked(self, texts: Any, named: str, kind: str) -> list[str]:
        server = self._scores
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Problem.named(400, "BadRequestError", f"{named}: a list of texts was expected")
        if not texts:
            raise Problem.named(400, "Empty", f"`{named}` cannot be empty")
        if server.kind != kind:
            what = "a re-ranker model" if kind == RERANKER else "an embedding model"
            raise Problem.named(424, "Backend", f"Backend error: model is not {what}")
        if len(texts) > server.max_client_batch_size:
            said = f"batch size {len(texts)} > maximum allowed batch size {server.max_client_batch_size}"
            raise Problem.named(422, "Validation", said)
        return texts

    def _cuts(self, body: Body) -> bool:
        cut = body.get("truncate")
        return self._scores.auto_truncate if cut is None else bool(cut)

    def _logits(self, query: str, texts: Sequence[str], cut: bool) -> list[float]:
        return self._model(query, texts, cut).logits(query, texts, self._scores.max_input_length)

    def _vectors(self, texts: Sequence[str], cut: bool) -> list[list[float]]:
        return self._model(None, texts, cut).vectors(texts, self._scores.max_input_length)

    def _model(self, query: str | None, texts: Sequence[str], cut: bool) -> TextModel:
        """The model, when it takes the texts."""
        model, most = self._scores.scored_by, self._scores.max_input_length
        assert not isinstance(model, str)
        longest = 0 if cut else max(model.length(query, text) for text in texts)
        if longest > most:
            said = f"`inputs` must have less than {most} tokens. Given: {longest}"
            if self._scores.form == COMPATIBLE:
                raise Problem.named(400, "BadRequestError", f"This model's maximum context length is {most} tokens")
            raise Problem.named(422, "Validation", f"Input validation error: {said}")
        return model

    async def _computed(self, request: Request, texts: Sequence[str], compute: Callable[[], Any]) -> Any:
        """Hold a permit for each text, and a slot for the time of the request."""
        fault, server = request.fault, self._scores
        if self.counts.in_flight + len(texts) > server.max_concurrent_requests:
            raise Problem.named(429, "Overloaded", "Model is overloaded")
        with self._permits(len(texts)):
            if fault is not None and fault.kind == "hang":
                await asyncio.sleep(fault.seconds if fault.seconds is not None else 10**6)
            found = await asyncio.get_running_loop().run_in_executor(None, compute)
            tokens = sum(min(len(pieces(text)) + SPECIALS, server.max_input_length) for text in texts)
            seconds = server.latency.seconds(request.data, tokens, 0)
            if fault is not None and fault.kind == "slow":
                seconds += fault.seconds or 0.0
            failed = batch_failed() if request.trouble == "424_batch" else None
            await self.batch.finish(self.batch.submit(lambda: seconds, failed))
        self.counts.numbers["texts"] += len(texts)
        self.counts.numbers["prompt_tokens"] += tokens
        request.tokens = tokens
        return found

    async def _spoilt(self, request: Request, value: Any) -> web.StreamResponse:
        given = {"x-compute-type": "cpu", "x-compute-tokens": str(request.tokens)}
        return await self._sent(request, self._scores.spoil(value), given if self._scores.form == TEI else {})
