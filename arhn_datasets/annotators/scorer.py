"""Scores from a served model: pairs gathered into requests, one pool, and the store of what was paid for.

What is stored is the score of a pair, so an interrupted run asks for no pair twice, whatever it was asked with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from arhn_datasets.annotators.client import contract, scoring
from arhn_datasets.annotators.client.pool import Pool
from arhn_datasets.annotators.client.scoring import COSINE, PASSAGE_SIDE, QUERY_SIDE, ScoringInfo, TextsRequest, Vector
from arhn_datasets.annotators.client.scoring_http import ScoringTransport, parts_of
from arhn_datasets.annotators.client.store import Replies, directory_of
from arhn_datasets.annotators.endpoint import urls_of_environment
from arhn_datasets.annotators.llm import LEAST_CHARACTERS
from arhn_datasets.errors import (
    AnnotatorError,
    ConfigurationError,
    EndpointError,
    EndpointOverloaded,
    EndpointUnavailable,
    PromptTooLong,
    RequestRejected,
)
from arhn_datasets.rows import background
from arhn_datasets.rows.records import alike, digest

logger = logging.getLogger(__name__)

GATHERING_SECONDS = 0.005  # for texts of other rows that fill a request
VECTORS_KEPT = 4096  # of texts that several rows share
SHORTER = 0.75  # what is asked of a text that the server refuses as too long, and then of that
LONG_CHARACTERS = 1500  # about the 512 tokens that most rerankers and embedding models read
PAIRS = ("pairs", "stored_pairs", "cut_pairs", "perhaps_cut_pairs", "failed_pairs")
MOST_UNDER_WAY = 512  # rows, of which a map hands over thousands at once
TOLD = 5  # causes of failures, each once


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What is asked of which model; all of it but the URLs and the model's name changes a score."""

    urls: tuple[str, ...]
    model: str | None = None
    revision: str | None = None
    kind: str | None = None
    raw: bool = False
    similarity: str | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Answer:
    """A score or a vector, or the error for which there is none; ``cut`` where the text was read in part."""

    value: float | Vector | EndpointError
    cut: bool = False


class Scorer:
    """The scores of one served model. Make and use it on the background loop."""

    def __init__(self, asked: ServedModel, options: contract.ConnectionOptions) -> None:
        self.counts = dict.fromkeys(PAIRS, 0)
        self.causes: Counter[str] = Counter()
        self._asked = asked
        transports = [ScoringTransport(url, options, asked.model, asked.kind) for url in asked.urls]
        self._transports = transports
        self.pool = Pool(transports, options, lambda: self.counts["stored_pairs"] > 0)
        self._in_flight: dict[str, asyncio.Future[float | None]] = {}
        self._gathered: dict[str | None, dict[str, asyncio.Future[Answer]]] = {}
        self._vectors: OrderedDict[tuple[str | None, str], Answer] = OrderedDict()
        self._embedding: dict[tuple[str | None, str], asyncio.Future[Answer]] = {}
        self._room = transports[0].texts_at_once
        self._making_room = asyncio.Lock()
        self._rows = asyncio.Semaphore(MOST_UNDER_WAY)
        self._tasks: set[asyncio.Task[None]] = set()

    async def info(self) -> ScoringInfo:
        """What the servers say of themselves.

        Raises:
            AnnotatorError: none of them answers.
            ConfigurationError: they serve another model than was asked for, or none that gives scores.
        """
        try:
            found = await self.pool.info()
        except EndpointError as error:
            raise AnnotatorError(
                f"There is no model to ask for scores: {error}. Check the URL, the API key and that the server is up, "
                "then run again; scores of before are kept."
            ) from error
        assert isinstance(found, ScoringInfo)
        asked = self._asked
        for name, wanted, served in (("model", asked.model, found.model), ("revision", asked.revision, found.revision)):
            if wanted and served and wanted != served:
                raise ConfigurationError(
                    f"{self._transports[0].name} serves the {name} {served!r}, and {wanted!r} was asked for. Name the "
                    f"one that is served, or leave {name} out to take it."
                )
        if asked.raw and (found.kind, found.api) != (scoring.CROSS_ENCODER, scoring.TEI):
            raise ConfigurationError(
                f"raw_scores is for a reranker behind {scoring.TEI}, and {self._transports[0].name} is a {found.kind} "
                f"behind {found.route}; leave it out."
            )
        if asked.similarity is not None and found.kind == scoring.CROSS_ENCODER:
            raise ConfigurationError(
                f"{self._transports[0].name} serves {found.model}, a cross-encoder: it has no similarity; leave it out."
            )
        return found

    async def scores(self, query: str, texts: Sequence[str]) -> list[float | None]:
        """The score of each text for a query, None where the server gave none; each pair is asked once."""
        info = await self.info()
        query = (self._asked.query_prompt or "") + query
        sent = {text: (self._asked.passage_prompt or "") + text for text in texts}
        async with self._rows:
            found = await self._pairs(info, query, list(dict.fromkeys(sent.values())))
        return [found[sent[text]] for text in texts]

    def statistics(self) -> dict[str, Any]:
        """What was asked so far, and the pairs: all, those from the store, those cut, and those without a score."""
        sent = sum(server.limit.in_flight for server in self.pool.servers)
        return {**vars(self.pool.statistics), "in_flight": sent, "stored": 0, **self.counts}

    async def close(self) -> None:
        """Let go of every connection."""
        for task in self._tasks:
            task.cancel()
        await self.pool.close()

    def _named_prompt(self, info: ScoringInfo, side: str) -> str | None:
        """The prompt of the server's own that stands in front of the texts of a side, where no other was given."""
        own = self._asked.query_prompt if side == QUERY_SIDE else self._asked.passage_prompt
        return info.prompts.get(side) if own is None else None

    def _key(self, info: ScoringInfo, query: str, text: str) -> str:
        if info.kind == scoring.CROSS_ENCODER:
            asked: Any = {"raw": self._asked.raw}
        else:
            prompts = [self._named_prompt(info, side) for side in (QUERY_SIDE, PASSAGE_SIDE)]
            asked = {"similarity": self._asked.similarity or COSINE, "prompts": prompts}
        return digest(["score", 1, info.identity(), info.api, asked, query, text])

    # ----------------------------------------------------------------------------------------------- pairs

    async def _pairs(self, info: ScoringInfo, query: str, texts: Sequence[str]) -> dict[str, float | None]:
        """The score of each text: from the store, from who asks for it already, or asked for."""
        found: dict[str, float | None] = {}
        keys = {text: self._key(info, query, text) for text in texts}
        while left := [text for text in texts if text not in found]:
            waited = {text: self._in_flight[keys[text]] for text in left if keys[text] in self._in_flight}
            mine = []
            for text in left:
                if text in waited:
                    continue
                kept = self._kept(info, keys[text])
                if kept is None:
                    mine.append(text)
                else:
                    found[text] = kept
            for text in mine:
                self._in_flight[keys[text]] = asyncio.get_running_loop().create_future()
            try:
                asking = self._crossed if info.kind == scoring.CROSS_ENCODER else self._compared
                found |= await asking(info, query, {text: keys[text] for text in mine}) if mine else {}
            finally:
                for text in mine:
                    future = self._in_flight.pop(keys[text])
                    if text in found:
                        future.set_result(found[text])
                    else:
                        future.cancel()  # whoever waits for it asks for oneself
            if waited:
                await asyncio.wait(waited.values())
                found |= {text: one.result() for text, one in waited.items() if not one.cancelled()}
        return found

    async def _crossed(self, info: ScoringInfo, query: str, keys: Mapping[str, str]) -> dict[str, float | None]:
        """The scores of a reranker, which reads each text beside the query."""

        async def part(texts: Sequence[str]) -> dict[str, float | None]:
            request = TextsRequest(texts=tuple(texts), query=query, raw=self._asked.raw, affinity=query)
            self._tell_long(info, query, texts)
            answers = await self._answers(info, request)
            return {text: await self._settled(info, keys[text], one) for text, one in zip(texts, answers, strict=True)}

        parts = await background.gathered(part(texts) for texts in parts_of(list(keys), info.most_texts))
        return {text: score for one in parts for text, score in one.items()}

    async def _compared(self, info: ScoringInfo, query: str, keys: Mapping[str, str]) -> dict[str, float | None]:
        """The similarity of the vectors of query and text; texts of several rows share a request."""
        self._tell_long(info, "", list(keys))
        asked = [(QUERY_SIDE, query), *((PASSAGE_SIDE, text) for text in keys)]
        question, *passages = await background.gathered(self._vector(info, side, text) for side, text in asked)
        answers = (self._similarity(question, one) for one in passages)
        return {
            text: await self._settled(info, key, one) for (text, key), one in zip(keys.items(), answers, strict=True)
        }

    def _similarity(self, question: Answer, passage: Answer) -> Answer:
        for one in (question, passage):
            if isinstance(one.value, EndpointError):
                return one
        product = scoring.similarity_of(question.value, passage.value, self._asked.similarity or COSINE)  # type: ignore[arg-type]
        error = EndpointError("the vectors of query and passage have no finite similarity")
        return Answer(error if product is None else product, question.cut or passage.cut)

    async def _settled(self, info: ScoringInfo, key: str, answer: Answer) -> float | None:
        """Keep a score; tell why there is none."""
        self.counts["pairs"] += 1
        if isinstance(answer.value, EndpointError):
            self._failed(answer.value)
            return None
        assert isinstance(answer.value, float)
        self._tell_cut(info.model, answer.cut)
        store = self._store()
        if store is not None:
            reply = {"score": answer.value, **({"cut": info.max_input_tokens} if answer.cut else {})}
            store.put(key, reply, model=info.model, revision=info.revision, kind="score")
            await store.keep_up()
        return answer.value

    def _failed(self, error: EndpointError) -> None:
        self.counts["failed_pairs"] += 1
        said = f"{type(error).__name__}: {error}"
        known = {alike(one): one for one in self.causes}
        first = known.get(alike(said))
        self.causes[first or said] += 1
        if first is None and len(self.causes) <= TOLD:
            logger.warning("no score for a passage, which keeps none (null): %s", said)

    def _tell_cut(self, model: str, cut: bool) -> None:
        if cut and not self.counts["cut_pairs"]:
            logger.warning("a passage is longer than %s reads; the score of such a one is that of its beginning", model)
        self.counts["cut_pairs"] += cut

    def _tell_long(self, info: ScoringInfo, query: str, texts: Sequence[str]) -> None:
        """Count what a server that names no limit may cut and say nothing."""
        if info.max_input_tokens is None:
            long = sum(len(query) + len(text) > LONG_CHARACTERS for text in texts)
            if long and not self.counts["perhaps_cut_pairs"]:
                logger.warning(
                    "%s does not say how much of a text it reads; scores of passages with more than %d characters may "
                    "be those of their beginnings",
                    self._transports[0].name,
                    LONG_CHARACTERS,
                )
            self.counts["perhaps_cut_pairs"] += long

    def _kept(self, info: ScoringInfo, key: str) -> float | None:
        store = self._store()
        kept = (store.get(key) if store is not None else None) or {}
        score = kept.get("score")
        if not isinstance(score, float) or not math.isfinite(score):
            return None
        if "cut" in kept and kept["cut"] != info.max_input_tokens:  # another part of the text was read
            return None
        self.counts["pairs"] += 1
        self.counts["stored_pairs"] += 1
        self._tell_cut(info.model, "cut" in kept)
        return score

    def _store(self) -> Replies | None:
        directory = directory_of(self._asked.cache)
        return None if directory is None else background.resource(("store", str(directory)), lambda: Replies(directory))

    # ----------------------------------------------------------------------------------------------- requests

    async def _answers(self, info: ScoringInfo, request: TextsRequest) -> list[Answer]:
        """A score or a vector of each text; texts that fail together are asked again one by one.

        A text that is too long for the server is cut, and known as such.
        """
        await self._make_room(len(request.texts))
        try:
            measured = await self.pool.chat(request)
        except EndpointError as error:
            if isinstance(error, PromptTooLong) and len(request.texts) == 1:
                return await self._shortened(info, request, error)
            if len(request.texts) == 1 or _is_of_all(error):
                return [Answer(error)] * len(request.texts)
            alone = (self._answers(info, replace(request, texts=(text,))) for text in request.texts)
            return [answer for (answer,) in await background.gathered(alone)]
        assert isinstance(measured, scoring.Measured)
        return [Answer(value, at in measured.cut) for at, value in enumerate(measured.values)]

    async def _shortened(self, info: ScoringInfo, request: TextsRequest, error: PromptTooLong) -> list[Answer]:
        """The answer to the beginning of a text that the server refuses as too long."""
        (text,) = request.texts
        if info.api == scoring.TEI and not request.cut:
            return await self._answers(info, replace(request, cut=True))
        shorter = text[: int(len(text) * (error.ratio or SHORTER))]
        if len(shorter) < LEAST_CHARACTERS:
            return [Answer(error)]
        answers = await self._answers(info, replace(request, texts=(shorter,)))
        return [replace(one, cut=True) for one in answers]

    async def _make_room(self, texts: int) -> None:
        """Let the limit follow the largest request: that of text-embeddings-inference is one of texts in flight."""
        if texts <= self._room:
            return
        async with self._making_room:
            for server, transport in zip(self.pool.servers, self._transports, strict=True):
                if texts > transport.texts_at_once and server.info is not None:
                    while transport.texts_at_once < texts:
                        transport.texts_at_once *= 2
                    if server.info.max_concurrent_requests:
                        with suppress(EndpointError):  # the limit follows when the server is back
                            await server.open()
            self._room = min(transport.texts_at_once for transport in self._transports)

    # ----------------------------------------------------------------------------------------------- vectors

    async def _vector(self, info: ScoringInfo, side: str, text: str) -> Answer:
        """The vector of a text, in a request with others that are asked at the same time."""
        key = (self._named_prompt(info, side), text)
        if key in self._vectors:
            self._vectors.move_to_end(key)
            return self._vectors[key]
        asked = self._embedding.get(key)
        if asked is None:
            asked = self._embedding[key] = asyncio.get_running_loop().create_future()
            waiting = self._gathered.setdefault(key[0], {})
            waiting[text] = asked
            if len(waiting) >= info.most_texts:
                self._send(info, key[0])
            elif len(waiting) == 1:
                self._send_soon(info, key[0], waiting)
        return await asyncio.shield(asked)

    def _send_soon(self, info: ScoringInfo, prompt: str | None, waiting: object) -> None:
        """Send texts that fill no request, where the servers have nothing else to do."""

        def send() -> None:
            if self._gathered.get(prompt) is not waiting:  # they are sent
                return
            if self.pool.statistics.in_flight >= (self.pool.slots or 1):
                self._send_soon(info, prompt, waiting)
            else:
                self._send(info, prompt)

        asyncio.get_running_loop().call_later(GATHERING_SECONDS, send)

    def _send(self, info: ScoringInfo, prompt: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._embed(info, prompt, self._gathered.pop(prompt)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _embed(
        self, info: ScoringInfo, prompt: str | None, waiting: Mapping[str, asyncio.Future[Answer]]
    ) -> None:
        """The vectors of some texts, for all who wait for them."""
        try:
            answers = await self._answers(info, TextsRequest(texts=tuple(waiting), prompt=prompt))
            for (text, asked), answer in zip(waiting.items(), answers, strict=True):
                asked.set_result(answer)
                if not isinstance(answer.value, EndpointError):
                    self._vectors[prompt, text] = answer
            while len(self._vectors) > VECTORS_KEPT:
                self._vectors.popitem(last=False)
        except Exception as error:
            for asked in waiting.values():
                asked.set_exception(error)
                asked.exception()  # where nobody waits for it, nobody misses it
        finally:
            for text, asked in waiting.items():
                del self._embedding[prompt, text]
                asked.cancel()  # the task was cancelled; else it is over


def _is_of_all(error: EndpointError) -> bool:
    """Whether a request has failed for no fault of its texts."""
    if isinstance(error, EndpointUnavailable):
        return not error.own
    return isinstance(error, EndpointOverloaded) or isinstance(error, RequestRejected) and error.advice is not None


def scorer_of(asked: ServedModel, options: contract.ConnectionOptions) -> Scorer:
    """The one scorer of this process for a model and a connection; call it on the background loop."""
    key = options.api_key
    if key is None:
        options = replace(options, api_key=key_of_environment(asked.urls))
    return background.resource(("scorer", asked, *options.connection().values()), lambda: Scorer(asked, options))


def key_of_environment(urls: Sequence[str]) -> str | None:
    """The key of a server of scores: ARHN_SCORE_API_KEY, or ARHN_API_KEY where that is no other server's.

    The key of the LLM in ARHN_ENDPOINT is for its host alone.
    """
    own = os.environ.get("ARHN_SCORE_API_KEY")
    if own is not None:
        return own
    hosts = {urlsplit(url).netloc.rpartition("@")[2] for url in urls_of_environment()}
    mine = {urlsplit(url).netloc.rpartition("@")[2] for url in urls}
    return os.environ.get("ARHN_API_KEY") if not hosts or mine <= hosts else None
