"""The interface of an annotator, what it is asked and what it gives, and those that commands can name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from arhn_datasets import annotators
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.background import gathered
from arhn_datasets.rows.extensions import modules_in, subclasses_of
from arhn_datasets.rows.options import Option
from arhn_datasets.rows.records import Passage


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question to an annotator about a query, which is a ``task`` of the prompts.

    ``background`` holds the texts of all passages of the row, for annotators that need term statistics.
    """

    query: str
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SnippetRequest(Request):
    """Which words of this passage answer the query?"""

    passage: Passage


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """The words that answer: what :data:`~arhn_datasets.rows.records.SNIPPET_TYPE` stores."""

    snippet: str | None = None
    start: int | None = None
    end: int | None = None
    field: str | None = None
    status: str
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankingRequest(Request):
    """In which order do these candidates answer the query?"""

    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One listwise ranking.

    ``tiers`` are positions into the candidates, best tier first; the positions of one tier are equally good.
    A position that the annotator did not give stands in no tier.
    """

    status: str
    tiers: tuple[tuple[int, ...], ...] = ()
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerdictRequest(Request):
    """Which candidates answer the query, as well as the positives or less well?

    ``positives`` and ``candidates`` are texts of passages; all of them belong to one row.
    """

    positives: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One candidate beside the positives: what :data:`~arhn_datasets.rows.records.VERDICT_TYPE` stores.

    ``verdict`` is ``better`` (at least as good as the positives), ``worse``, ``no_match``, or None where the reply
    does not plainly say one. ``status`` is ``judged``, ``partial`` (the reply is wrong elsewhere), ``unparsed``,
    ``error`` or ``skipped`` (nothing to compare with).
    """

    verdict: str | None = None
    status: str
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class GradeRequest(Request):
    """How relevant is this passage to the query, from 0 to 3?"""

    passage: Passage


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The relevance of one passage: what :data:`~arhn_datasets.rows.records.GRADE_TYPE` stores.

    ``grade`` is 0 to 3, or None where the reply does not plainly say one; ``status`` is ``judged``, ``unparsed`` or
    ``error``.
    """

    grade: int | None = None
    status: str
    detail: str | None = None


class Annotator(ABC):
    """Gives a snippet for a query and a passage, and a ranking for a query and candidates.

    Subclass it to bring your own; an instance has to be picklable, and :meth:`identity` has to name everything that
    changes what it gives. Verdicts and grades are for ``arhn.Verdicts`` and ``arhn.Grades`` alone, and optional.
    """

    NAME: ClassVar[str] = ""
    """What ``--annotator`` calls it; empty where no command does."""

    SUMMARY: ClassVar[str] = ""
    """What it is, in a few words, for the help of commands."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """The options of a command that go with it."""

    awaits: ClassVar[bool] = True
    """Whether the two coroutines really wait (for a server, for a batch). Where not, no event loop is involved."""

    baseline: ClassVar[bool] = False
    """Whether this is no LLM: its evidence is a baseline's, and the card and the summary say so."""

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Annotator:
        """The annotator that the options of a command name; ``given`` has None for what was not given.

        Raises:
            ConfigurationError: they do not fit each other, or say too little.
        """
        return cls()

    on_gpu: ClassVar[bool] = False
    """Whether each process that asks it needs a GPU of its own."""

    @property
    def needs_fitting(self) -> bool:
        """Whether :meth:`fitted_on` has to see the whole input before it is asked."""
        return False

    def fitted_on(self, rows: Iterable[Mapping[str, Any]]) -> Annotator:
        """The same annotator with what it has to know of all canonical rows; by default itself."""
        return self

    async def turn(self, requests: int) -> None:
        """Wait until so many more requests should be made: a map hands over more rows than can be worked on.

        Awaited before the requests of each row; by default at once.
        """
        return

    @abstractmethod
    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The answer snippet of one passage; a failure is a status, never an exception."""

    async def packed_snippets(self, requests: Sequence[SnippetRequest], most: int, seed: int) -> list[Snippet]:
        """The answer snippets of passages of one query, where up to ``most`` may be shown in one request.

        By default each is asked for alone.
        """
        return await gathered((self.snippet(one) for one in requests), concurrently=self.awaits)

    @abstractmethod
    async def ranking(self, request: RankingRequest) -> Ranking:
        """The candidates in the order in which they answer the query; a failure is a status."""

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """A verdict on each candidate beside the positives; a failure is a status.

        Raises:
            ConfigurationError: this annotator gives none.
        """
        self.check_gives("verdicts", "verdicts")
        raise NotImplementedError

    async def grade(self, request: GradeRequest) -> Grade:
        """How relevant a passage is, from 0 to 3; a failure is a status.

        Raises:
            ConfigurationError: this annotator gives none.
        """
        self.check_gives("grade", "grades")
        raise NotImplementedError

    def check_gives(self, method: str, kind: str) -> None:
        """Refuse a kind of evidence that this annotator cannot give, as it lacks the method that is asked for it.

        Raises:
            ConfigurationError: says what it lacks, and who has it.
        """
        if getattr(type(self), method) is getattr(Annotator, method):
            raise ConfigurationError(
                f"{type(self).__name__} has no method {method}(), so that it gives no {kind}; an annotator that has it "
                f"was expected: arhn.Endpoint, arhn.Local or arhn.Lexical, or write {method}() into this class."
            )

    def coverage(self, request: SnippetRequest) -> float | None:
        """The share of the query, from 0 to 1, that the passage covers, where this annotator measures it."""
        return None

    async def screened_snippets(
        self, positives: Sequence[SnippetRequest], negatives: Sequence[SnippetRequest]
    ) -> list[Snippet | None]:
        """For the passages of a row, positives first: a snippet that is known without asking, or None for asking.

        By default every passage is asked about.
        """
        return [None] * (len(positives) + len(negatives))

    async def screened_grades(
        self, positives: Sequence[GradeRequest], negatives: Sequence[GradeRequest]
    ) -> list[Grade | None]:
        """For the passages of a row, positives first: a grade that is known without asking, or None for asking."""
        return [None] * (len(positives) + len(negatives))

    @abstractmethod
    def identity(self, stage: str) -> dict[str, Any]:
        """What changes the evidence of ``stage``, as JSON; no URL, no token.

        ``stage`` is "snippets", "ranks", "verdicts" or "grades".
        """

    def shared_by(self, processes: int) -> Annotator:
        """The same annotator for each of so many processes, that together ask no more at once than this one alone.

        Its identity is the same. By default, for an annotator without limits to share, itself.
        """
        return self

    def most_processes(self) -> int | None:
        """How many processes may share it without going beyond a limit; None for any number."""
        return None

    def kept_at(self, place: Callable[[Path], Path]) -> Annotator:
        """The same annotator with its stores of replies, if it has any, where ``place`` says for the folder of each."""
        return self

    def statistics(self) -> dict[str, Any]:
        """What was asked so far in this process, for the progress bar and ``run.json``; empty for none."""
        return {}

    def told(self) -> list[str]:
        """What this process has learnt of those whom it asks, a line each, for the summary."""
        return []

    def description(self) -> dict[str, Any]:
        """What a reader of the card or of ``run.json`` has to know; at least ``annotator``, a name."""
        return {"annotator": type(self).__name__, "baseline": self.baseline}


def registered() -> dict[str, type[Annotator]]:
    """The classes that have a ``NAME``, by it: of the files of this folder, and of what a user has imported."""
    modules_in(annotators)
    named = [cls for cls in subclasses_of(Annotator) if vars(cls).get("NAME")]
    return {cls.NAME: cls for cls in sorted(named, key=lambda cls: cls.NAME)}
