"""What the emulated model says: our prompts are read back, and an annotator answers them.

The inverse of the rendering in `prompts` stands here and nowhere else. It looks for the layout inside any text, so it
reads a chat message as well as a prompt that a client has templated for ``/generate``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER, PROMPTS, WORD_JOINER
from arhn_datasets.annotators.requests import GradeRequest, RankingRequest, SnippetRequest, Verdict, VerdictRequest
from arhn_datasets.rows import background
from arhn_datasets.rows.records import BETTER, ERROR, WORSE
from arhn_datasets.testing.contract import batch_failed

T = TypeVar("T")

FOREIGN_REPLY = "I am an emulated model."
REMEMBERED = 16_384
TITLE_CHARACTERS = 200

_JOINED = re.compile(f"([<\\[\\]]){WORD_JOINER}")
_SNIPPET = ("\n\n<passage>\n", f"\n</passage>\n\nCopied text, or {NO_ANSWER_MARKER}:")
_GRADE = ("\n\n<passage>\n", "\n</passage>\n\nGrade from 0 to 3:")
_RANKING = ("\n\nCandidates:\n", "\n\nRanking of all ")
_VERDICTS = ("\n\nReferences:\n", "\n\nBetter and worse among all ")
_LISTED = re.compile(r"^\[\d+\] ", re.MULTILINE)
_TITLE_END = re.compile(r"[.!?…。！？:;]$")
_TASKS = {prompt.query_label: task for task, prompt in PROMPTS.tasks.items()}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One of our prompts, read back: a passage's body, or the candidates, with the references beside them."""

    query: str
    task: str
    passage: str | None = None
    candidates: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    graded: bool = False


def asked_in(prompt: str) -> Asked | None:
    """What the last of our prompts in ``prompt`` asks, None where there is none."""
    for kind in (_SNIPPET, _GRADE, _VERDICTS, _RANKING):
        opening, closing = kind
        head, _, tail = prompt.rpartition(opening)
        shown, closed, _ = tail.rpartition(closing)
        label, separator, query = head.rpartition("\n\n")[2].partition(": ")
        if not (closed and separator):
            continue
        query, task = _restored(query), _TASKS.get(label, "question")
        if kind in (_SNIPPET, _GRADE):
            return Asked(query=query, task=task, passage=_restored(shown), graded=kind == _GRADE)
        references, _, listed = shown.rpartition(_RANKING[0])
        return Asked(
            query=query,
            task=task,
            candidates=tuple(_restored(_LISTED.sub("", line)) for line in listed.split("\n")),
            references=tuple(_restored(line.removeprefix("- ")) for line in references.split("\n") if references),
        )
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

    def __init__(self, source: Annotator | Callable[[str], str | Awaitable[str]] | str) -> None:
        self._source = source
        self._known: OrderedDict[str, str] = OrderedDict()

    async def reply(self, prompt: str) -> str:
        """What the model says after ``prompt``.

        Raises:
            Problem: 424, the annotator failed.
        """
        if isinstance(self._source, str):
            return self._source
        if not isinstance(self._source, Annotator):
            said = self._source(prompt)
            return said if isinstance(said, str) else await said
        known = self._known.get(prompt)
        if known is None:
            asked = asked_in(prompt)
            known = FOREIGN_REPLY if asked is None else await _answer(self._source, asked)
            self._known[prompt] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known


async def _answer(annotator: Annotator, asked: Asked) -> str:
    if asked.passage is not None and asked.graded:
        grade = await _awaited(
            annotator,
            annotator.grade(
                GradeRequest(
                    query=asked.query, passage=passage_of(asked.passage), task=asked.task, background=(asked.query,)
                )
            ),
        )
        if grade.grade is None:
            raise batch_failed(grade.detail or "the annotator failed")
        return str(grade.grade)
    if asked.references:
        return _grouped(await _awaited(annotator, annotator.verdicts(_verdict_request(asked))))
    if asked.passage is not None:
        snippet = await _awaited(
            annotator,
            annotator.snippet(
                SnippetRequest(
                    query=asked.query, passage=passage_of(asked.passage), task=asked.task, background=(asked.query,)
                )
            ),
        )
        if snippet.status == ERROR:
            raise batch_failed(snippet.detail or "the annotator failed")
        return snippet.snippet or NO_ANSWER_MARKER
    ranking = await _awaited(
        annotator,
        annotator.ranking(
            RankingRequest(query=asked.query, candidates=asked.candidates, task=asked.task, background=(asked.query,))
        ),
    )
    if ranking.status == ERROR:
        raise batch_failed(ranking.detail or "the annotator failed")
    return " > ".join(f"[{position + 1}]" for tier in ranking.tiers for position in tier)


def _verdict_request(asked: Asked) -> VerdictRequest:
    return VerdictRequest(
        query=asked.query,
        positives=asked.references,
        candidates=asked.candidates,
        task=asked.task,
        background=(asked.query,),
    )


def _grouped(verdicts: Sequence[Verdict]) -> str:
    """The two lists of a reply to a prompt for verdicts."""
    if any(verdict.status == ERROR for verdict in verdicts):
        raise batch_failed("the annotator failed")
    lines = []
    for group in (BETTER, WORSE):
        listed = ", ".join(f"[{i}]" for i, verdict in enumerate(verdicts, 1) if verdict.verdict == group)
        lines.append(f"{group}: {listed or 'none'}")
    return "\n".join(lines)


async def _awaited(annotator: Annotator, call: Awaitable[T]) -> T:
    if not annotator.awaits:
        return await call  # it never gives up the loop

    async def waiting() -> T:
        return await call

    return await background.wait(waiting())


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
