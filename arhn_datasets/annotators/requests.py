"""What an annotator is asked, and what it gives: a request and a reply for each stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from arhn_datasets.rows.records import Passage, Row


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question to an annotator about a query, which is a ``task`` of the prompts.

    ``background`` holds the texts of all passages of the row, for annotators that need term statistics.
    """

    query: str
    task: str
    background: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The evidence on one passage, with the fields that its column stores."""

    def to_struct(self) -> Row:
        """The value for the evidence column."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class SnippetRequest(Request):
    """Which words of this passage answer the query?"""

    passage: Passage


@dataclass(frozen=True, kw_only=True)
class Snippet(Reply):
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
    tiers: tuple[tuple[int, ...], ...] = field(default=())
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerdictRequest(Request):
    """Which candidates answer the query, as well as the positives or less well?

    ``positives`` and ``candidates`` are texts of passages; all of them belong to one row.
    """

    positives: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict(Reply):
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
class Grade(Reply):
    """The relevance of one passage: what :data:`~arhn_datasets.rows.records.GRADE_TYPE` stores.

    ``grade`` is 0 to 3, or None where the reply does not plainly say one; ``status`` is ``judged``, ``unparsed`` or
    ``error``.
    """

    grade: int | None = None
    status: str
    detail: str | None = None
