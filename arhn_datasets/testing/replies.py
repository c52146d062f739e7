"""What the emulated model says: our prompts are read back, and an annotator answers them.

The inverse of the rendering in `prompts` stands here and nowhere else. It looks for the layout inside any text, so it
reads a chat message as well as a prompt that a client has templated for ``/generate``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from arhn_datasets.annotators.interface import (
    Annotator,
    GradeRequest,
    Ranking,
    RankingRequest,
    Snippet,
    SnippetRequest,
    Verdict,
    VerdictRequest,
)
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER, PROMPTS, WORD_JOINER, one_line
from arhn_datasets.rows import background
from arhn_datasets.rows.records import BETTER, ERROR, WORSE
from arhn_datasets.testing.problems import batch_failed

T = TypeVar("T", Snippet, Ranking, Verdict)
Speaker = Annotator | Callable[[str], str | Awaitable[str]] | str

FAILED = "the annotator failed"
FOREIGN_REPLY = "I am an emulated model."
REMEMBERED = 16_384
TITLE_CHARACTERS = 200

_JOINED = re.compile(f"([<\\[\\]]){WORD_JOINER}")
_SNIPPET = ("\n\n<passage>\n", f"\n</passage>\n\nCopied text, or {NO_ANSWER_MARKER}:")
_PACKED = ("\n\nPassages:\n", "\nAll ")
_GRADE = ("\n\n<passage>\n", "\n</passage>\n\nGrade from 0 to 3:")
_RANKING = ("\n\nCandidates:\n", "\n\nRanking of all ")
_VERDICTS = ("\n\nReferences:\n", "\n\nBetter and worse among all ")
_LISTED = re.compile(r"^\[\d+\] ", re.MULTILINE)
_TITLE_END = re.compile(r"[.!?…。！？:;]$")
_TASKS = {prompt.query_label: task for task, prompt in PROMPTS.tasks.items()}


@dataclass(frozen=True, kw_only=True)
class PackedRequest:
    """Which words of each of these passages answer the query?"""

    passages: tuple[SnippetRequest, ...]


Request = SnippetRequest | PackedRequest | GradeRequest | VerdictRequest | RankingRequest


def asked_in(prompt: str) -> Request | None:
    """What the last of our prompts in ``prompt`` asks, None where there is none."""
    for opening, closing in (_SNIPPET, _PACKED, _GRADE, _VERDICTS, _RANKING):
        head, _, tail = prompt.rpartition(opening)
        shown, closed, _ = tail.rpartition(closing)
        label, separator, query = head.rpartition("\n\n")[2].partition(": ")
        if not (closed and separator):
            continue
        query = _restored(query)
        row: dict[str, Any] = {"query": query, "task": _TASKS.get(label, "question"), "background": (query,)}
        if opening == _SNIPPET[0]:
            asking = SnippetRequest if closing == _SNIPPET[1] else GradeRequest
            return asking(passage=passage_of(_restored(shown)), **row)
        if opening == _PACKED[0]:
            bodies = (_restored(_LISTED.sub("", line)).replace(" | ", "\n\n", 1) for line in shown.split("\n"))
            return PackedRequest(passages=tuple(SnippetRequest(passage=passage_of(body), **row) for body in bodies))
        references, _, listed = shown.rpartition(_RANKING[0])
        candidates = tuple(_restored(_LISTED.sub("", line)) for line in listed.split("\n"))
        if opening == _RANKING[0]:
            return RankingRequest(candidates=candidates, **row)
        positives = tuple(_restored(line.removeprefix("- ")) for line in references.split("\n"))
        return VerdictRequest(positives=positives, candidates=candidates, **row)
    return None


def _restored(text: str) -> str:
    """``text`` without the word joiners that neutralising put in."""
    return _JOINED.sub(r"\1", text)


def passage_of(body: str) -> dict[str, str]:
    """Title and text of a passage's body: a short first paragraph of one line that is no sentence is the title."""
    title, gap, text = body.partition("\n\n")
    if gap and text and len(title) <= TITLE_CHARACTERS and "\n" not in title and not _TITLE_END.search(title):
        return {"title": title, "text": text}
    return {"title": "", "text": body}


class Replies:
    """The plain reply to a prompt: from a function of it, a fixed text, or an annotator.

    Replies of annotators are remembered; a coroutine of one that waits runs on the package's background loop.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self._known: OrderedDict[str, str] = OrderedDict()

    async def reply(self, prompt: str) -> str:
        """What the model says after ``prompt``.

        Raises:
            Problem: 424, the annotator failed.
        """
        if isinstance(self.speaker, str):
            return self.speaker
        if not isinstance(self.speaker, Annotator):
            said = self.speaker(prompt)
            return said if isinstance(said, str) else await said
        known = self._known.get(prompt)
        if known is None:
            asked = asked_in(prompt)
            known = FOREIGN_REPLY if asked is None else await _answered(self.speaker, asked)
            self._known[prompt] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known


async def _answered(annotator: Annotator, asked: Request) -> str:
    answer = _answer(annotator, asked)
    return await (background.wait(answer) if annotator.awaits else answer)  # who never waits never gives up the loop


async def _answer(annotator: Annotator, asked: Request) -> str:
    """What ``annotator`` gives, in the words of a reply to the prompt."""
    if isinstance(asked, SnippetRequest):
        snippet = _given(await annotator.snippet(asked))
        return snippet.snippet or NO_ANSWER_MARKER
    if isinstance(asked, PackedRequest):
        snippets = [_given(await annotator.snippet(one)).snippet for one in asked.passages]
        return "\n".join(f"[{at}] {one_line(said or NO_ANSWER_MARKER)}" for at, said in enumerate(snippets, 1))
    if isinstance(asked, GradeRequest):
        grade = await annotator.grade(asked)
        if grade.grade is None:
            raise batch_failed(grade.detail or FAILED)
        return str(grade.grade)
    if isinstance(asked, RankingRequest):
        ranking = _given(await annotator.ranking(asked))
        return " > ".join(f"[{position + 1}]" for tier in ranking.tiers for position in tier)
    verdicts = [_given(one).verdict for one in await annotator.verdicts(asked)]
    groups = {name: [f"[{at}]" for at, one in enumerate(verdicts, 1) if one == name] for name in (BETTER, WORSE)}
    return "\n".join(f"{name}: {', '.join(listed) or 'none'}" for name, listed in groups.items())


def _given(evidence: T) -> T:
    if evidence.status == ERROR:
        raise batch_failed(evidence.detail or FAILED)
    return evidence


def spoken(answer: str, prompt: str, *, thinking: int, prefill: str = "", constrained: bool = False) -> str:
    """``answer`` as the model goes on after ``prompt``.

    A thinking model (``thinking`` words) thinks first, briefly where ``/no_think`` asks so, and not at all after a
    closed ``<think>`` or under a grammar. What a prefilled message has said already is not said again.
    """
    if constrained:
        return answer
    ended = prompt.rstrip()
    if ended.endswith("</think>"):
        return answer if ended != prompt else f"\n\n{answer}"
    if prefill and answer.startswith(prefill):
        return answer[len(prefill) :]
    if not thinking or prefill:
        return answer
    turn = prompt.rpartition("<|im_start|>user")[2] or prompt
    if "/no_think" in turn:
        return f"<think>\n\n</think>\n\n{answer}"
    words = " ".join(("hm",) * thinking)
    opened = ended.endswith("<think>")  # by the template
    return f"{'' if opened else '<think>'}\n{words}\n</think>\n\n{answer}"
