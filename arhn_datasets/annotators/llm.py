"""What every LLM annotator shares: prompts, the store of replies, and the way from a reply to evidence."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arhn_datasets import background
from arhn_datasets.annotators import replies
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.answers import Answers, default_directory, directory_of
from arhn_datasets.endpoint import Completion
from arhn_datasets.errors import AnnotatorError, ConfigurationError, EndpointError
from arhn_datasets.prompts import PROMPTS, Message, Prompts
from arhn_datasets.records import ERROR, Ranking, RankingRequest, Snippet, SnippetRequest, digest, shorten

MAX_TOKENS = 1024  # TGI generates more than this in a second round that forgets its stop strings


@dataclass(frozen=True, kw_only=True, eq=False)
class LLMAnnotator(Annotator):
    """An LLM that is asked with the versioned prompts, greedily.

    Args:
        prompts: The prompts; their version and texts are part of the identity.
        max_tokens: Most tokens of a snippet reply, up to 1024.
        cache: Folder of the store of replies, ``"none"`` for none; by default ``ARHN_CACHE`` or the user's cache.
    """

    prompts: Prompts = PROMPTS
    max_tokens: int = 384
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}; a number from 1 to {MAX_TOKENS} was expected.")

    @abstractmethod
    async def model_identity(self) -> dict[str, Any]:
        """The model that replies, as JSON: at least ``model`` and ``revision``. Runs on the background loop."""

    @abstractmethod
    async def complete(self, messages: Sequence[Message], max_tokens: int) -> Completion:
        """The greedy reply. Runs on the background loop.

        Raises:
            EndpointError: this request failed; it is recorded and moves nothing.
            ConfigurationError: no request can succeed; it ends the run.
        """

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The parsed reply to the snippet prompt, or status ``error``."""
        messages = self.prompts.snippet_messages(request.query, request.passage, request.task)
        try:
            completion = await self.reply(messages, self.max_tokens)
        except EndpointError as error:
            return Snippet(status=ERROR, detail=shorten(f"{type(error).__name__}: {error}"))
        return replies.parse_snippet(completion.text, request.passage)

    async def ranking(self, request: RankingRequest) -> Ranking:
        """The parsed reply to the ranking prompt, or status ``error``."""
        messages = self.prompts.ranking_messages(request.query, request.candidates, request.task)
        try:
            completion = await self.reply(messages, ranking_tokens(len(request.candidates)))
        except EndpointError as error:
            return Ranking(status=ERROR, detail=shorten(f"{type(error).__name__}: {error}"))
        return replies.parse_ranking(completion.text, len(request.candidates))

    async def reply(self, messages: Sequence[Message], max_tokens: int) -> Completion:
        """The stored reply to this very request, else a new one; identical requests in flight are asked once.

        Raises:
            EndpointError: this request failed.
            AnnotatorError: there is no model to ask, so no request can succeed.
        """
        try:
            model = await self.model_identity()
        except EndpointError as error:
            raise AnnotatorError(
                f"There is no model to ask: {error}. Check the URL and that the server is up, then run again; replies "
                "of before are kept."
            ) from error
        key = digest(["chat", 1, model, list(messages), max_tokens, "greedy"])
        in_flight: dict[str, _Asked] = background.resource("replies in flight", dict)
        asked = in_flight.get(key)
        if asked is None:
            asked = in_flight[key] = _Asked(asyncio.create_task(self._ask(key, messages, max_tokens)))
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.task)
        finally:
            asked.waiting -= 1
            if not asked.waiting:
                del in_flight[key]
                asked.task.cancel()  # after Ctrl-C in a notebook nobody wants the reply; a finished task stays as it is

    async def _ask(self, key: str, messages: Sequence[Message], max_tokens: int) -> Completion:
        store = self._store()
        stored = None if store is None else store.get(key)
        if stored is not None:
            return Completion(**stored)
        completion = await self.complete(messages, max_tokens)
        if store is not None and completion.text.strip():
            store.put(key, vars(completion))
        return completion

    def _store(self) -> Answers | None:
        directory = default_directory() if self.cache is None else directory_of(self.cache)
        if directory is None:
            return None
        return background.resource(("answers", str(directory)), lambda: Answers(directory))

    def _stage_identity(self, stage: str) -> dict[str, Any]:
        prompt = self.prompts.snippet_hash() if stage == "snippets" else self.prompts.ranking_hash()
        limit = {"max_tokens": self.max_tokens} if stage == "snippets" else {}
        return {"prompts": prompt, "parser": replies.VERSION, "sampling": "greedy", **limit}

    def _prompt_description(self) -> dict[str, Any]:
        return {
            "prompts_version": self.prompts.version,
            "snippet_prompt_hash": self.prompts.snippet_hash(),
            "ranking_prompt_hash": self.prompts.ranking_hash(),
            "max_tokens": self.max_tokens,
        }


@dataclass
class _Asked:
    """A request in flight, and how many wait for its reply."""

    task: asyncio.Task[Completion]
    waiting: int = 0


def ranking_tokens(candidates: int) -> int:
    """Room for a ranking of so many candidates: ``[12] > `` takes up to 6 tokens."""
    return min(MAX_TOKENS, 32 + 8 * candidates)
