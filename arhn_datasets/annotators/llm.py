"""What every LLM annotator shares: prompts, the store of replies, and the way from a reply to evidence."""

from __future__ import annotations

import asyncio
import json
import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from arhn_datasets.annotators import replies
from arhn_datasets.annotators.client.connection import Option
from arhn_datasets.annotators.client.contract import ChatRequest, Completion
from arhn_datasets.annotators.client.limits import Turns
from arhn_datasets.annotators.client.store import Replies, directory_of
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.prompts import PROMPTS, Message, Prompts
from arhn_datasets.annotators.requests import (
    Grade,
    GradeRequest,
    Ranking,
    RankingRequest,
    Snippet,
    SnippetRequest,
    Verdict,
    VerdictRequest,
)
from arhn_datasets.errors import AnnotatorError, ConfigurationError, EndpointError, PromptTooLong
from arhn_datasets.rows import background
from arhn_datasets.rows.records import ERROR, GRADES, Passage, digest, shorten, text_of

Given = TypeVar("Given", Snippet, Ranking, Verdict, Grade)

MAX_GRAMMARS = 32  # TGI compiles more of them again and again, holding up every other request
LEAST_CHARACTERS = 40  # of a text that does not fit; with less of it the reply would say nothing
SNIPPET_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"snippet": {"type": "string"}},
    "required": ["snippet"],
}
# Without limits that depend on the candidates: one grammar for all requests.
VERDICT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "better": {"type": "array", "items": {"type": "integer"}},
        "worse": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["better", "worse"],
}
GRADE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": list(GRADES)}},
    "required": ["grade"],
}
SNIPPET_TOKENS, GRADE_TOKENS = 384, 32
MOST_UNDER_WAY = 512
MAX_TOKENS = 1024  # TGI generates more than this in a second round that forgets its stop strings

MODEL_OPTIONS: Mapping[str, Option] = {
    "model": Option(help="the model that has to answer; with --annotator local the id or folder", metavar="ID"),
    "model_revision": Option(help="its commit", metavar="SHA"),
    "max_tokens": Option(
        help=f"most tokens of a snippet reply, up to {MAX_TOKENS}; default: {SNIPPET_TOKENS}", metavar="N"
    ),
    "cache": Option(help="store of replies, kept between runs; default: ARHN_CACHE or user cache", metavar="DIR|none"),
}
"""The options of a command that every LLM takes."""


def model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What these options say of any LLM, as keywords; ``given`` has None for what was not given."""
    options = {"revision": given["model_revision"], "cache": given["cache"], "max_tokens": given["max_tokens"]}
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class LLMAnnotator(Annotator):
    """An LLM that is asked with the versioned prompts, greedily.

    Args:
        prompts: The prompts; their version and texts are part of the identity.
        max_tokens: Most tokens of a snippet reply, up to 1024.
        constrained: Ask for JSON of a given schema, where the server can hold the model to it. A server compiles and
            keeps few grammars, so all snippets share one and rankings of the same length another.
        cache: Folder of the store of replies, ``"none"`` for none; by default ``ARHN_CACHE`` or the user's cache.
    """

    prompts: Prompts = PROMPTS
    max_tokens: int = SNIPPET_TOKENS
    constrained: bool = False
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}; a number from 1 to {MAX_TOKENS} was expected.")

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
                f"There is no model to ask: {error}. Check the URL and that the server is up, then run again; replies "
                "of before are kept."
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
        await background.resource("turns", Turns).turn(requests, self._most_under_way())

    def _most_under_way(self) -> int:
        """Requests to have under way, those that wait for a slot included."""
        return MOST_UNDER_WAY

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The parsed reply to the snippet prompt, or status ``error``."""

        def messages(share: float) -> list[Message]:
            return self.prompts.snippet_messages(request.query, cut_passage(request.passage, share), request.task)

        def read(reply: str, share: float) -> tuple[Snippet]:
            return (replies.parse_snippet(reply, cut_passage(request.passage, share)),)

        texts, failed = [text_of(request.passage)], Snippet(status=ERROR)
        (given,) = await self._given(
            request.query, messages, self.max_tokens, SNIPPET_SCHEMA, texts, "the passage", read, (failed,)
        )
        return given

    async def ranking(self, request: RankingRequest) -> Ranking:
        """The parsed reply to the ranking prompt, or status ``error``."""
        texts, count = request.candidates, len(request.candidates)

        def messages(share: float) -> list[Message]:
            return self.prompts.ranking_messages(request.query, _cut(texts, share), request.task)

        def read(reply: str, share: float) -> tuple[Ranking]:
            return (replies.parse_ranking(reply, count),)

        tokens, schema, failed = ranking_tokens(count), ranking_schema(count), Ranking(status=ERROR)
        (given,) = await self._given(request.query, messages, tokens, schema, texts, "each candidate", read, (failed,))
        return given

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """The parsed reply to the prompt for verdicts, or status ``error`` for each candidate."""
        positives, candidates, count = request.positives, request.candidates, len(request.candidates)

        def messages(share: float) -> list[Message]:
            shown = _cut(positives, share), _cut(candidates, share)
            return self.prompts.verdict_messages(request.query, *shown, request.task)

        def read(reply: str, share: float) -> tuple[Verdict, ...]:
            return replies.parse_verdicts(reply, count)

        texts, failed = (*positives, *candidates), (Verdict(status=ERROR),) * count
        return await self._given(
            request.query, messages, ranking_tokens(count), VERDICT_SCHEMA, texts, "each passage", read, failed
        )

    async def grade(self, request: GradeRequest) -> Grade:
        """The parsed reply to the prompt for a grade, or status ``error``."""

        def messages(share: float) -> list[Message]:
            return self.prompts.grade_messages(request.query, cut_passage(request.passage, share), request.task)

        def read(reply: str, share: float) -> tuple[Grade]:
            return (replies.parse_grade(reply),)

        texts, failed = [text_of(request.passage)], Grade(status=ERROR)
        (given,) = await self._given(
            request.query, messages, GRADE_TOKENS, GRADE_SCHEMA, texts, "the passage", read, (failed,)
        )
        return given

    async def _given(
        self,
        query: str,
        messages: Callable[[float], Sequence[Message]],
        max_tokens: int,
        schema: Mapping[str, Any] | None,
        texts: Sequence[str],
        named: str,
        read: Callable[[str, float], tuple[Given, ...]],
        failed: tuple[Given, ...],
    ) -> tuple[Given, ...]:
        """What the reply to ``messages(share)`` gives, for the largest share of ``texts`` that the server takes.

        ``read`` makes evidence of a reply, ``failed`` is that of a request that failed; ``named`` are the texts in
        words, for the detail of what was read in part.
        """
        share, longest = 1.0, max(map(len, texts), default=0)
        try:
            with background.resource("turns", Turns):
                while True:
                    try:
                        reply = await self.reply(messages(share), max_tokens, query, schema)
                        break
                    except PromptTooLong as error:
                        # A little less than what fits, because the instructions stay; half where nothing is known.
                        share *= min(error.ratio * 0.9, 0.95) if error.ratio else 0.5
                        if share * longest < LEAST_CHARACTERS:
                            raise
        except EndpointError as error:
            detail = shorten(f"{type(error).__name__}: {error}")
            return tuple(replace(one, detail=detail) for one in failed)
        given = read(reply.text, share)
        if share == 1:
            return given
        said = f"the first {share:.1%} of {named} was read."
        return tuple(replace(one, detail=shorten(f"{said} {one.detail or ''}")) for one in given)

    async def reply(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        affinity: str = "",
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """The stored reply to this very request, else a new one; identical requests in flight are asked once.

        Raises:
            EndpointError: this request failed.
            AnnotatorError: there is no model to ask, so no request can succeed.
        """
        models: WeakKeyDictionary[LLMAnnotator, dict[str, Any]] = background.resource("models", WeakKeyDictionary)
        model = models.get(self)
        if model is None:
            model = models[self] = await self.known_model()
        schema = schema if self.constrained else None
        request = ChatRequest(
            messages=tuple(messages if schema is None else _asking_for_json(messages, schema)),
            max_tokens=max_tokens,
            schema=schema,
            affinity=affinity,
        )
        key = digest(["chat", 1, model, list(request.messages), max_tokens, "greedy", schema])
        in_flight: dict[str, _Waiting] = background.resource("replies in flight", dict)
        while (asked := in_flight.get(key)) is not None:
            try:
                return await asked.reply()
            except _Abandoned:
                continue  # whoever asked was cancelled: ask for oneself
        asked = in_flight[key] = _Waiting()
        try:
            completion = await self._ask(key, request, model)
        except BaseException as error:
            asked.failed(error)
            raise
        finally:
            del in_flight[key]
        asked.came(completion)
        return completion

    async def _ask(self, key: str, request: ChatRequest, model: Mapping[str, Any]) -> Completion:
        store = self._store()
        stored = None if store is None else _read(store.get(key))
        if stored is not None:
            stored_replies().update(
                stored=1,
                stored_prompt_tokens=stored.prompt_tokens or 0,
                stored_completion_tokens=stored.completion_tokens or 0,
            )
            return stored
        completion = await self.complete(request)
        if store is not None and completion.text.strip():
            store.put(key, vars(completion), model=model["model"], revision=model.get("revision"))
            await store.keep_up()
        return completion

    def kept_at(self, place: Callable[[Path], Path]) -> Annotator:
        """The same annotator with its store of replies in the folder that ``place`` gives for it; none stays none."""
        directory = directory_of(self.cache)
        return replace(self, cache="none" if directory is None else place(directory))

    def _store(self) -> Replies | None:
        named = os.environ.get("ARHN_CACHE") if self.cache is None else self.cache  # a notebook may set another one
        known: WeakKeyDictionary[LLMAnnotator, tuple[object, Replies | None]] = background.resource(
            "stores", WeakKeyDictionary
        )
        found = known.get(self)
        if found is None or found[0] != named:
            directory, store = directory_of(self.cache), None
            if directory is not None:
                store = background.resource(("store", str(directory)), lambda: Replies(directory))
            found = known[self] = named, store
        return found[1]

    def _stage_identity(self, stage: str) -> dict[str, Any]:
        limit = {"max_tokens": self.max_tokens} if stage == "snippets" else {}
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
            "snippet_prompt_hash": self.prompts.hash_of("snippets"),
            "ranking_prompt_hash": self.prompts.hash_of("ranks"),
            "max_tokens": self.max_tokens,
            "constrained": self.constrained,
        }


class _Abandoned(Exception):
    """Whoever asked is gone, and the reply will not come."""


class _Waiting:
    """Those that wait for the reply to a request that another one has sent."""

    __slots__ = ("_others",)

    def __init__(self) -> None:
        self._others: tuple[asyncio.Future[Completion], ...] = ()  # as a rule there is none

    async def reply(self) -> Completion:
        """The reply, when it has come."""
        other: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._others = (*self._others, other)
        return await other

    def came(self, completion: Completion) -> None:
        """Hand the reply on."""
        for other in self._others:
            if not other.done():
                other.set_result(completion)

    def failed(self, error: BaseException) -> None:
        """Hand the failure on."""
        for other in self._others:
            if not other.done():
                other.set_exception(error if isinstance(error, Exception) else _Abandoned())


def _read(stored: Mapping[str, Any] | None) -> Completion | None:
    # Another version of this package may have stored more of a reply.
    if stored is None or not isinstance(stored.get("text"), str):
        return None
    return Completion(**{name: stored[name] for name in Completion.__dataclass_fields__ if name in stored})


def stored_replies() -> Counter[str]:
    """How many replies came from the store in this process, under "stored"; on the background loop."""
    counter: Counter[str] = background.resource("replies from the store", Counter)
    return counter


def ranking_schema(candidates: int) -> Mapping[str, Any] | None:
    """The schema of a ranking of so many candidates, None where it would be one grammar too many for a server."""
    if candidates > MAX_GRAMMARS - 1:
        return None
    items = {"type": "integer", "enum": list(range(1, candidates + 1))}
    ranking = {"type": "array", "items": items, "minItems": candidates, "maxItems": candidates}
    return {"type": "object", "properties": {"ranking": ranking}, "required": ["ranking"]}


def cut_passage(passage: Passage, share: float) -> Passage:
    """The first ``share`` of the text of a passage; offsets into it are offsets into the whole."""
    if share == 1:
        return passage
    text = str(passage.get("text") or "")
    if not text:
        title = str(passage.get("title") or "")
        return {**passage, "title": title[: math.ceil(share * len(title))]}
    return {**passage, "text": text[: math.ceil(share * len(text))]}


def _cut(texts: Sequence[str], share: float) -> list[str]:
    return [text[: math.ceil(share * len(text))] for text in texts]


def _asking_for_json(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The messages with the form of the reply said at their end."""
    form = {name: _FORMS[name] for name in schema["properties"]}
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\nReply as JSON in this form: {json.dumps(form)}"}]


_FORMS: Mapping[str, Any] = {"snippet": "...", "ranking": [2, 1, 3], "better": [2, 5], "worse": [1], "grade": 2}


def ranking_tokens(candidates: int) -> int:
    """Room for a ranking of so many candidates: ``[12] > `` takes up to 6 tokens."""
    return min(MAX_TOKENS, 32 + 8 * candidates)
