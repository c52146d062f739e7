"""Several passages of a query in one request, one line a passage in the reply, and each line kept by its passage.

A line counts only where nothing is doubtful: the reply is numbered lines and nothing else, the number is one of the
pack, stands once and in order, and no line says what stands in another passage alone. Else the passage is asked about
alone, by the prompt for one passage. What a pack has said of a passage is kept under a key of its own, which no other
prompt and no other seed has, so that a pack of which some are known asks for the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from arhn_datasets.annotators import replies
from arhn_datasets.annotators.client.contract import Completion
from arhn_datasets.annotators.decorations import answer_of
from arhn_datasets.annotators.interface import Snippet, SnippetRequest
from arhn_datasets.annotators.llm import (
    LLMAnnotator,
    Shared,
    counted_cut,
    kept_under,
    shared,
)
from arhn_datasets.annotators.reply_forms import MAX_TOKENS, PACKED_SCHEMA, Copied
from arhn_datasets.errors import EndpointError, EndpointFailure, NotYetAnsweredError, PromptTooLong, RequestRejected
from arhn_datasets.rows.background import gathered
from arhn_datasets.rows.records import ERROR, GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED, Passage, digest, shorten

_LINE = re.compile(r"\s*(?:[-*•]\s+)?(?:\*\*)?\[([0-9]{1,6})\](?:\*\*)?:?(.*)")
_IDENTIFIER = re.compile(r"\[\s*[0-9]{1,6}\s*\]")


Said: TypeAlias = str | EndpointError | NotYetAnsweredError
"""What a pack has said of a passage: a line, an empty one where it has none, or why nothing was said."""


class PackingAnnotator(LLMAnnotator):
    """An LLM that can be asked about several passages in one request."""

    async def packed_snippets(self, requests: Sequence[SnippetRequest], most: int, seed: int) -> list[Snippet]:
        """The parsed lines of replies to up to ``most`` passages each; what has no line of its own is asked alone."""
        lines = await self._lines(requests, most, seed)
        return await gathered(self._read(request, line) for request, line in zip(requests, lines, strict=True))

    async def _read(self, request: SnippetRequest, line: Said) -> Snippet:
        if isinstance(line, NotYetAnsweredError):
            raise line
        if isinstance(line, EndpointError):
            return Snippet(status=ERROR, detail=shorten(f"{type(line).__name__}: {line}"))
        found = replies.parse_snippet(line, request.passage) if line else None
        if found is not None and found.status != UNPARSED:
            return found
        shared().counts["asked_alone"] += 1
        return await self.snippet(request)

    async def _lines(self, requests: Sequence[SnippetRequest], most: int, seed: int) -> list[Said]:
        """What packs have said of each passage, an empty line where it has none of its own, or why nothing was said.

        Passages are shown in the order of their keys, which is a shuffle of them that the seed and the texts make. One
        that another pack in flight shows is waited for.
        """
        ours = shared()
        model = await self._model(ours)
        keys = [self._line_key(request, model, seed) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        planned = ours.planned.setdefault(self, set())
        said: dict[str, Said] = {}
        while missing := [key for key in wanted if key not in said]:
            said |= {key: line for key in missing if (line := self._kept(ours, key)) is not None}
            for key in missing:
                if planned and int(key[:15], 16) in planned:
                    said.setdefault(key, NotYetAnsweredError("The pack of this passage has no reply yet."))
            theirs = {key: ours.lines[key] for key in missing if key in ours.lines and key not in said}
            mine = sorted(key for key in missing if key not in theirs and key not in said)
            loop = asyncio.get_running_loop()
            ours.lines |= {key: loop.create_future() for key in mine}
            packs = [mine[first : first + most] for first in range(0, len(mine), most)]
            try:
                await gathered(self._pack(ours, {key: wanted[key] for key in pack}, model, said) for pack in packs)
            except NotYetAnsweredError as error:  # what others have said is read in this round
                planned |= {int(key[:15], 16) for key in mine if key not in said}
                said |= {key: error for key in mine if key not in said}
            finally:
                for key in mine:
                    asked = ours.lines.pop(key)
                    if key in said:
                        asked.set_result(said[key])
                    asked.cancel()  # whoever asked was cancelled; else it is over
            if theirs:
                await asyncio.wait(theirs.values())
            said |= {key: asked.result() for key, asked in theirs.items() if not asked.cancelled()}
        return [said[key] for key in keys]

    async def _pack(
        self,
        ours: Shared,
        pack: Mapping[str, SnippetRequest],
        model: Mapping[str, Any],
        said: dict[str, Said],
    ) -> None:
        """Ask about the passages of a pack, and note and keep what is said of each."""
        keys, passages = list(pack), [request.passage for request in pack.values()]
        query, task = pack[keys[0]].query, pack[keys[0]].task
        most = min(MAX_TOKENS, self.snippet_tokens * len(pack))
        copied = Copied(passages, _says_nothing, lines=True)
        messages = self.prompts.packed_messages(query, passages, task)
        try:
            reply = await self._reply(messages, most, query, PACKED_SCHEMA, copied)
        except PromptTooLong:
            half = len(keys) // 2
            parts = [keys[:half], keys[half:]] if half else []
            said |= {} if half else {keys[0]: ""}  # alone, it is cut to what the server takes
            await gathered(self._pack(ours, {key: pack[key] for key in part}, model, said) for part in parts)
            return
        except EndpointError as error:
            # One passage may be why all are refused; where every request is, each alone would be as well.
            own = isinstance(error, (RequestRejected, EndpointFailure)) and not getattr(error, "advice", None)
            said |= dict.fromkeys(keys, "" if own else error)
            return
        lines = [""] * len(keys) if counted_cut(reply, most) else lines_of(reply.text, passages)
        said |= dict(zip(keys, lines, strict=True))
        self._keep(ours, model, reply, dict(zip(keys, lines, strict=True)))

    def _line_key(self, request: SnippetRequest, model: Mapping[str, Any], seed: int) -> str:
        messages = self.prompts.packed_messages(request.query, [request.passage], request.task)
        version, schema = self.prompts.packed_version, PACKED_SCHEMA if self.constrained else None
        return digest(["packed", 1, model, version, messages, self.snippet_tokens, seed, "greedy", schema])

    def _kept(self, ours: Shared, key: str) -> str | None:
        store = self._store(ours)
        kept = None if store is None else store.get(kept_under(key, self.samples()))
        if kept is None or not isinstance(kept.get("text"), str):
            return None
        ours.stored(kept.get("prompt_tokens"), kept.get("completion_tokens"))
        return str(kept["text"])

    def _keep(self, ours: Shared, model: Mapping[str, Any], reply: Completion, lines: Mapping[str, str]) -> None:
        """Keep each line with its part of the tokens; an empty one as well, so that no pack is paid for it again."""
        store = self._store(ours)
        for at, (key, line) in enumerate(lines.items()):
            kept: dict[str, Any] = {"text": line, "finish_reason": reply.finish_reason}
            for name in ("prompt_tokens", "completion_tokens"):
                total = getattr(reply, name)
                kept[name] = None if total is None else (total * (at + 1)) // len(lines) - total * at // len(lines)
            if store is not None:
                under = kept_under(key, reply.sampled)
                store.put(under, kept, model=model["model"], revision=model.get("revision"))


def lines_of(reply: str, passages: Sequence[Passage]) -> list[str]:
    """What a reply says of each passage, shown as 1 and so on; empty where no line of it counts.

    All are empty where the reply is anything but numbered lines, has a number that no passage has, or says of one
    passage what stands in another one alone, since then no number can be trusted.
    """
    nothing = [""] * len(passages)
    given: list[tuple[int, str]] = []
    broken = set()
    for line in _unpacked(answer_of(reply)).splitlines():
        numbered = _LINE.fullmatch(line)
        if numbered:
            given.append((int(numbered[1]), numbered[2].strip()))
        elif not line.strip() or (not given and line.rstrip(" *").endswith(":") and replies.leads(line)):
            continue
        elif given and 1 <= given[-1][0] <= len(passages) and _stands(line, passages[given[-1][0] - 1]):
            broken.add(given[-1][0])  # a copy over several lines
        else:
            return nothing
    numbers = [number for number, _ in given]
    if not all(1 <= number <= len(passages) for number in numbers):
        return nothing
    times, found = Counter(numbers), list(nothing)
    for at, (number, said) in enumerate(given):
        in_order = max(numbers[:at], default=0) < number < min(numbers[at + 1 :], default=len(passages) + 1)
        status = replies.parse_snippet(said, passages[number - 1]).status if said else UNPARSED
        if status not in (GROUNDED, NO_ANSWER) and any(_stands(said, passage) for passage in passages):
            return nothing
        if in_order and times[number] == 1 and number not in broken:
            doubtful = status == UNGROUNDED and _IDENTIFIER.search(said)  # of another line, which stands in this one
            found[number - 1] = "" if doubtful else said
    return found


def _unpacked(said: str) -> str:
    """The lines of a reply that is JSON of the form that is asked for; any other as it is."""
    value = replies.json_object(said)
    lines = value.get("lines") if len(value) == 1 else None
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        return "\n".join(lines)
    return said


def _stands(said: str, passage: Passage) -> bool:
    return bool(said.strip()) and replies.parse_snippet(said, passage).status == GROUNDED


def _says_nothing(text: str) -> bool:
    """Whether a reply that was cut begins with anything but lines or JSON, so that more of it would say nothing."""
    said = answer_of(text)
    return bool(said) and not said.startswith(("{", "`")) and not any(map(_LINE.fullmatch, said.splitlines()))
