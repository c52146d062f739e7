"""What an annotator is asked, and what it answers: a request and a reply for each stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from arhn_datasets.rows.records import Passage, Row


@dataclass(frozen=True, kw_only=True)
class SnippetRequest:
    """A question to an annotator: which words of this passage answer the query?

    ``background`` holds the texts of all passages of the row, for annotators that need term statistics.
    """

    query: str
    passage: Passage
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """The evidence for one (query, passage): what :data:`~arhn_datasets.rows.records.SNIPPET_TYPE` stores."""

    status: str
    snippet: str | None = None
    start: int | None = None
    end: int | None = None
    field: str | None = None
    detail: str | None = None

    def to_struct(self) -> Row:
        """The value for the snippet columns."""
        return {
            "snippet": self.snippet,
            "start": self.start,
            "end": self.end,
            "field": self.field,
            "status": self.status,
            "detail": self.detail,
        }


@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """A question to an annotator: in which order do these candidates answer the query?"""

    query: str
    candidates: tuple[str, ...]
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One listwise ranking.

    ``tiers`` are positions into the candidates, best tier first; the positions of one tier are equally good.
    A position that the annotator did not give stands in no tier.
    """

    status: str
    tiers: tuple[tuple[int, ...], ...] = field(default=())
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerdictRequest:
    """A question to an annotator: which candidates answer the query, as well as the positives or less well?

    ``positives`` and ``candidates`` are texts of passages; all of them belong to one row.
    """

    query: str
    positives: tuple[str, ...]
    candidates: tuple[str, ...]
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One candidate beside the positives: what :data:`~arhn_datasets.rows.records.VERDICT_TYPE` stores.

    ``verdict`` is ``better`` (at least as good as the positives), ``worse``, ``no_match``, or None where the reply
    does not plainly say one. ``status`` is ``judged``, ``partial`` (the reply is wrong elsewhere), ``unparsed``,
    ``error`` or ``skipped`` (nothing to compare with).
    """

    status: str
    verdict: str | None = None
    detail: str | None = None

    def to_struct(self) -> Row:
        """The value for the verdict columns."""
        return {"verdict": self.verdict, "status": self.status, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class GradeRequest:
    """A question to an annotator: how relevant is this passage to the query, from 0 to 3?"""

    query: str
    passage: Passage
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The relevance of one passage: what :data:`~arhn_datasets.rows.records.GRADE_TYPE` stores.

    ``grade`` is 0 to 3, or None where the reply does not plainly say one; ``status`` is ``judged``, ``unparsed`` or
    ``error``.
    """

    status: str
    grade: int | None = None
    detail: str | None = None

    def to_struct(self) -> Row:
        """The value for the grade columns."""
        return {"grade": self.grade, "status": self.status, "detail": self.detail}
