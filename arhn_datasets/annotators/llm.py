"""What every LLM annotator shares: prompts, the store of replies, and the way from a reply to evidence."""

from __future__ import annotations

import asyncio
import gc
import math
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from arhn_datasets.annotators import interface, replies, reply_forms
from arhn_datasets.annotators.client.completions import is_held_back
from arhn_datasets.annotators.client.contract import ChatRequest, Completion
from arhn_datasets.annotators.client.store import Replies, directory_of
from arhn_datasets.annotators.prompts import PROMPTS, Message, Prompts
from arhn_datasets.annotators.reply_forms import (
    GRADE_SCHEMA,
    GRADE_TOKENS,
    MAX_TOKENS,
    SNIPPET_SCHEMA,
    SNIPPET_TOKENS,
    VERDICT_SCHEMA,
    asking_for_json,
    ranking_schema,
    ranking_tokens,
)
from arhn_datasets.errors import AnnotatorError, ConfigurationError, EndpointError, PromptTooLong
from arhn_datasets.rows import background
from arhn_datasets.rows.options import Option
from arhn_datasets.rows.records import ERROR, UNPARSED, Passage, digest, shorten, text_of

Given = TypeVar("Given", interface.Snippet, interface.Ranking, interface.Verdict, interface.Grade)

LEAST_CHARACTERS = 40  # of a text that does not fit; with less of it the reply would say nothing
_FROM_STORE = ("stored", "stored_prompt_tokens", "stored_completion_tokens")  # replies, and their tokens
OF_THE_PROCESS = (*_FROM_STORE, "cut_off", "asked_alone")
"""What is counted once for all annotators of a process."""
MOST_UNDER_WAY = 512
AT_ONCE = 16  # new requests in one turn of the event loop, to the end of a row

MODEL_OPTIONS: Mapping[str, Option] = {
    "model": Option(help="the model that has to answer; with --annotator local the id or folder", metavar="ID"),
    "model_revision": Option(help="its commit", metavar="SHA"),
    "max_tokens": Option(
        help=f"most tokens of each snippet reply, up to {MAX_TOKENS}; default: {SNIPPET_TOKENS}, and less where the "
        "passage is short",
        metavar="N",
    ),
    "cache": Option(help="store of replies, kept between runs; default: ARHN_CACHE or user cache", metavar="DIR|none"),
}
"""The options of a command that every LLM takes."""


def model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What these options say of any LLM, as keywords; ``given`` has None for what was not given."""
    options = {"revision": given["model_revision"], "cache": given["cache"], "max_tokens": given["max_tokens"]}
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class LLMAnnotator(interface.Annotator):
    """An LLM that is asked with the versioned prompts, greedily.

    Args:
        prompts: The prompts; their version and texts are part of the identity.
        max_tokens: Most tokens of each snippet reply, up to 1024. By default 384, and less where the passage is short:
            a copy is no longer than it. A reply that is cut there is asked for again with all 384.
        constrained: Ask for JSON of a given schema, where the server can hold the model to it. A server compiles and
            keeps few grammars, so all snippets share one and rankings of the same length another.
        cache: Folder of the store of replies, ``"none"`` for none; by default ``ARHN_CACHE`` or the user's cache.
    """

    prompts: Prompts = PROMPTS
    max_tokens: int | None = None
    constrained: bool = False
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}; a number from 1 to {MAX_TOKENS} was expected.")

    @property
    def snippet_tokens(self) -> int:
        """Most tokens of a snippet reply, whatever the passage."""
        return SNIPPET_TOKENS if self.max_tokens is None else self.max_tokens

    @abstractmethod
    async def model_identity(self) -> dict[str, Any]:
        """The model that replies, as JSON: at least ``model`` and ``revision``. Runs on the background loop."""

    async def known_model(self) -> dict[str, Any]:
        """:meth:`model_identity`, without which nothing can be asked.

        Raises:
            AnnotatorError: there is no model to ask, so no request can succeed.
        """
        try:
            return await self.model_identity()
        except EndpointError as error:
            raise AnnotatorError(
                f"There is no model to ask: {error}. Check the URL, the API key and that the server is up, then run "
                "again; replies of before are kept."
            ) from error

    @abstractmethod
    async def complete(self, request: ChatRequest) -> Completion:
        """The greedy reply. Runs on the background loop.

        Raises:
            EndpointError: this request failed; it is recorded and moves nothing.
            ConfigurationError: no request can succeed; it ends the run.
        """

    async def turn(self, requests: int) -> None:
        """Wait until the model should be asked more."""
        await shared().turns.turn(requests, self._most_under_way)

    def samples(self) -> bool:
        """Whether the model is known to reply greedily in no way."""
        return False

    def _most_under_way(self) -> int:
        """Requests to have under way, those that wait for a slot included."""
        return MOST_UNDER_WAY

    async def snippet(self, request: interface.SnippetRequest) -> interface.Snippet:
        """The parsed reply to the snippet prompt, or status ``error``."""
        cut = partial(cut_passage, request.passage)
        (given,) = await self._given(
            request,
            lambda share: self.prompts.snippet_messages(request.query, cut(share), request.task),
            lambda reply, share: (replies.parse_snippet(reply, cut(share)),),
            (interface.Snippet(status=ERROR),),
            ("the passage", [text_of(request.passage)]),
            self.snippet_tokens,
            SNIPPET_SCHEMA,
            lambda share: reply_forms.Copied((cut(share),), partial(reply_forms.rambles, passage=cut(share))),
        )
        return given

    async def ranking(self, request: interface.RankingRequest) -> interface.Ranking:
        """The parsed reply to the ranking prompt, or status ``error``."""
        texts, count = request.candidates, len(request.candidates)
        (given,) = await self._given(
            request,
            lambda share: self.prompts.ranking_messages(request.query, _cut(texts, share), request.task),
            lambda reply, _: (replies.parse_ranking(reply, count),),
            (interface.Ranking(status=ERROR),),
            ("each candidate", texts),
            ranking_tokens(count),
            ranking_schema(count),
        )
        return given

    async def verdicts(self, request: interface.VerdictRequest) -> tuple[interface.Verdict, ...]:
        """The parsed reply to the prompt for verdicts, or status ``error`` for each candidate."""
        query, positives, candidates, task = request.query, request.positives, request.candidates, request.task
        return await self._given(
            request,
            lambda share: self.prompts.verdict_messages(query, _cut(positives, share), _cut(candidates, share), task),
            lambda reply, _: replies.parse_verdicts(reply, len(candidates)),
            (interface.Verdict(status=ERROR),) * len(candidates),
            ("each passage", (*positives, *candidates)),
            ranking_tokens(len(candidates)),
            VERDICT_SCHEMA,
        )

    async def grade(self, request: interface.GradeRequest) -> interface.Grade:
        """The parsed reply to the prompt for a grade, or status ``error``."""
        cut = partial(cut_passage, request.passage)
        (given,) = await self._given(
            request,
            lambda share: self.prompts.grade_messages(request.query, cut(share), request.task),
            lambda reply, _: (replies.parse_grade(reply),),
            (interface.Grade(status=ERROR),),
            ("the passage", [text_of(request.passage)]),
            GRADE_TOKENS,
            GRADE_SCHEMA,
        )
        return given

    async def _given(
        self,
        request: interface.Request,
        messages: Callable[[float], Sequence[Message]],
        read: Callable[[str, float], tuple[Given, ...]],
        failed: tuple[Given, ...],
        shown: tuple[str, Sequence[str]],
        max_tokens: int,
        schema: Mapping[str, Any] | None,
        copied: Callable[[float], reply_forms.Copied] | None = None,
    ) -> tuple[Given, ...]:
        """What the reply to ``messages(share)`` gives, for the largest share of the texts that the server takes.

        ``read`` makes evidence of a reply, ``failed`` is that of a request that failed; ``shown`` are the texts in
        words, for the detail of what was read in part, and themselves; ``copied`` is what bounds the reply.
        """
        (named, texts), share = shown, 1.0
        try:
            while True:
                try:
                    what = copied and copied(share)
                    reply = await self._reply(messages(share), max_tokens, request.query, schema, what)
                    break
                except PromptTooLong as error:
                    # A little less than what fits, because the instructions stay; half where nothing is known.
                    share *= min(error.ratio * 0.9, 0.95) if error.ratio else 0.5
                    if share * max(map(len, texts), default=0) < LEAST_CHARACTERS:
                        raise
        except EndpointError as error:
            detail = shorten(f"{type(error).__name__}: {error}")
            return tuple(replace(one, detail=detail) for one in failed)
        cut = counted_cut(reply, max_tokens)
        if cut:
            given = tuple(replace(one, status=UNPARSED, detail=shorten(f"{cut}: {reply.text}")) for one in failed)
        else:
            given = read(reply.text, share)
        if share == 1:
            return given
        said = f"the first {share:.1%} of {named} was read."
        return tuple(replace(one, detail=shorten(f"{said} {one.detail or ''}")) for one in given)

    async def _reply(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        affinity: str,
        schema: Mapping[str, Any] | None,
        copied: reply_forms.Copied | None = None,
    ) -> Completion:
        """The stored reply to this very request, else a new one; identical requests in flight are asked once.

        The key holds ``max_tokens``, and not the lower limit that what is ``copied`` sets.
        """
        ours = shared()
        with ours.turns:
            model = await self._model(ours)
            schema = schema if self.constrained else None
            request = ChatRequest(
                messages=tuple(messages if schema is None else asking_for_json(messages, schema)),
                max_tokens=max_tokens,
                schema=schema,
                affinity=affinity,
                copied=copied,
            )
            key = digest(["chat", 1, model, list(request.messages), max_tokens, "greedy", schema])
            while (asked := ours.in_flight.get(key)) is not None:
                await asyncio.wait([asked])
                if not asked.cancelled():  # or whoever asked is gone: ask for oneself
                    return asked.result()
            asked = ours.in_flight[key] = asyncio.get_running_loop().create_future()
            try:
                completion = await self._ask(ours, key, request, model)
                asked.set_result(completion)
                return completion
            except Exception as error:
                asked.set_exception(error)
                asked.exception()  # where nobody waits for it, nobody misses it
                raise
            finally:
                asked.cancel()  # whoever asked was cancelled; else it is over
                del ours.in_flight[key], asked  # an error would hold this frame, and this frame the error

    async def _model(self, ours: Shared) -> dict[str, Any]:
        model = ours.models.get(self)
        if model is None:
            model = ours.models[self] = await self.known_model()
        return model

    async def _ask(self, ours: Shared, key: str, request: ChatRequest, model: Mapping[str, Any]) -> Completion:
        store = self._store(ours)
        kept = None if store is None else store.get(kept_under(key, self.samples()))
        if kept is not None and isinstance(kept.get("text"), str):
            # Another version of this package may have stored more of a reply, or one that was cut off.
            known = Completion(**{name: kept[name] for name in Completion.__dataclass_fields__ if name in kept})
            if not _cut_off(known, request.max_tokens) and not is_held_back(known.finish_reason):
                ours.stored(known.prompt_tokens, known.completion_tokens)
                return known
        completion = await self._completed(ours, request, model)
        if store is not None and completion.text.strip() and not _cut_off(completion, request.max_tokens):
            reply = {name: value for name, value in vars(completion).items() if name != "sampled"}
            under = kept_under(key, completion.sampled)
            store.put(under, reply, model=model["model"], revision=model.get("revision"))
            await store.keep_up()
        return completion

    async def _completed(self, ours: Shared, request: ChatRequest, model: Mapping[str, Any]) -> Completion:
        """A new reply, first with the limit that what is copied sets; a model that thinks has no such limit."""
        copied: reply_forms.Copied | None = request.copied
        thinks = self in ours.thinking or reply_forms.reasons(str(model["model"]))
        if copied is None or self.max_tokens is not None or thinks:
            return await self.complete(request)
        limit = copied.limit(request.max_tokens, escaped=request.schema is not None)
        completion = await self.complete(replace(request, max_tokens=limit))
        if reply_forms.has_thought(completion):
            ours.thinking.add(self)
        if limit == request.max_tokens or not _cut_off(completion, limit):
            return completion
        if self not in ours.thinking and copied.hopeless(completion.text):
            return replace(completion, finish_reason="length")  # also where the server did not say so
        return await self.complete(request)

    def kept_at(self, place: Callable[[Path], Path]) -> interface.Annotator:
        """The same annotator with its store of replies in the folder that ``place`` gives for it; none stays none."""
        directory = directory_of(self.cache)
        return replace(self, cache="none" if directory is None else place(directory))

    def _store(self, ours: Shared) -> Replies | None:
        named = os.environ.get("ARHN_CACHE") if self.cache is None else self.cache  # a notebook may set another one
        found = ours.stores.get(self)
        if found is None or found[0] != named:
            directory, store = directory_of(self.cache), None
            if directory is not None:
                store = background.resource(("store", str(directory)), lambda: Replies(directory))
            found = ours.stores[self] = named, store
        return found[1]

    def _stage_identity(self, stage: str) -> dict[str, Any]:
        limit = {"max_tokens": self.snippet_tokens} if stage == "snippets" else {}
        return {
            "prompts": self.prompts.hash_of(stage),
            "parser": replies.VERSION,
            "sampling": "greedy",
            "constrained": self.constrained,
            **limit,
        }

    def _prompt_description(self) -> dict[str, Any]:
        return {
            "prompts_version": self.prompts.version,
            "max_tokens": self.snippet_tokens,
            "constrained": self.constrained,
        }


class Turns:
    """Lets rows begin a little at a time, and only as many as servers can be kept busy with.

    A map hands over thousands of rows at once. Begun together, all of them would run their first part before a single
    request is sent, and what they hold until their slot is free would keep the garbage collector busy.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._left = AT_ONCE
        self._waiting: deque[tuple[asyncio.Future[None], int, Callable[[], int]]] = deque()
        self._scheduled = False
        self._frozen = False

    async def turn(self, requests: int, most: Callable[[], int]) -> None:
        """Wait, in order, until fewer than ``most()`` requests are under way; so many more are about to follow."""
        self._schedule()
        if self._left > 0 and not self._waiting and self._under_way < most():
            self._left -= requests
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, requests, most))
        await turn

    def __enter__(self) -> None:
        """A request is under way."""
        if not self._under_way:
            self._frozen = _freeze()
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        """It is not any more."""
        self._under_way -= 1
        if not self._under_way and self._frozen:
            gc.unfreeze()
        if self._waiting:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Once in each turn of the loop in which there is work."""
        self._scheduled = False
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            turn, requests, most = self._waiting[0]
            if not turn.done():
                if self._under_way >= most():
                    return  # a request that ends comes back here
                self._left -= requests
                turn.set_result(None)
            self._waiting.popleft()
        if self._waiting:
            self._schedule()


def _freeze() -> bool:
    """Leave what is there now out of the rounds of the garbage collector while requests are in flight.

    They make it look through the whole process again and again. That took an eighth of the client's processor time
    (0.40 ms a request without this and 0.35 with it in batches, 0.47 and 0.41 row by row: ``benchmarks/endpoint.py
    --only cpu``). It is the host's collector, so it is back as it was when the last request has ended, and
    ``ARHN_GC_FREEZE=0`` keeps it as it is. False there, and where somebody else froze it, and means it.
    """
    if gc.get_freeze_count() or os.environ.get("ARHN_GC_FREEZE") == "0":
        return False
    gc.collect(1)  # or the young would be frozen before the old, and sockets end before the loops that own them
    gc.freeze()
    return True


@dataclass
class Shared:
    """What all LLM annotators of a process share, on its background loop."""

    turns: Turns = field(default_factory=Turns)
    models: WeakKeyDictionary[LLMAnnotator, dict[str, Any]] = field(default_factory=WeakKeyDictionary)
    stores: WeakKeyDictionary[LLMAnnotator, tuple[object, Replies | None]] = field(default_factory=WeakKeyDictionary)
    in_flight: dict[str, asyncio.Future[Completion]] = field(default_factory=dict)
    lines: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    """Of packs in flight."""
    planned: WeakKeyDictionary[LLMAnnotator, set[int]] = field(default_factory=WeakKeyDictionary)
    """Beginnings of the keys of passages whose packs a batch round has planned: rows of one query may share them."""
    thinking: WeakSet[LLMAnnotator] = field(default_factory=WeakSet)
    """Those whose model was seen to think."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OF_THE_PROCESS, 0))

    def stored(self, prompt_tokens: int | None, completion_tokens: int | None, *, replies: int = 1) -> None:
        """Count a reply of the store; with -1 take one back that somebody else counts."""
        for name, count in zip(_FROM_STORE, (1, prompt_tokens, completion_tokens), strict=True):
            self.counts[name] += replies * (count or 0)


def shared() -> Shared:
    """What is shared in this process; on the background loop."""
    return background.resource("LLM annotators", Shared)


def kept_under(key: str, sampled: bool) -> str:
    """The key of a stored reply: that of its request, which says greedy, or another one where it is none."""
    return digest([key, "sampled"]) if sampled else key


def _cut_off(reply: Completion, most: int) -> str | None:
    return replies.cut_off(reply.finish_reason, reply.completion_tokens, most)


def counted_cut(reply: Completion, most: int) -> str | None:
    """Why a reply that is used holds no evidence, which is counted; None where it is whole."""
    cut = _cut_off(reply, most)
    shared().counts["cut_off"] += cut is not None
    return cut


def cut_passage(passage: Passage, share: float) -> Passage:
    """The first ``share`` of the text of a passage; offsets into it are offsets into the whole."""
    name = "text" if passage.get("text") else "title"
    return passage if share == 1 else {**passage, name: _cut([str(passage.get(name) or "")], share)[0]}


def _cut(texts: Sequence[str], share: float) -> list[str]:
    return [text[: math.ceil(share * len(text))] for text in texts]
