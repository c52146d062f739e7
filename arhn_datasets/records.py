"""The canonical row, the evidence columns beside it, and their Arrow types.

A canonical row is a row of the published RLHN and Tevatron sets: ``query_id``, ``query``,
``positive_passages`` and ``negative_passages`` (lists of ``{docid, title, text}``, title ``""`` when there is
none), optionally ``subset``, and any further columns, which pass through.

The stages add columns whose lists are aligned with the passage lists:

=======================  ====================================================================
column                   one value per row
=======================  ====================================================================
``positive_snippets``    list of :data:`SNIPPET_TYPE`, one per positive passage
``negative_snippets``    the same, one per negative passage
``positive_ranks``       list of int32: 1 is best, null is not ranked, equal is equally good
``negative_ranks``       the same for the negatives
``ranking``              :data:`RANKING_TYPE`: how the ranking of the row went
``filtered_passages``    the passages that left the negatives
``filtered_snippets``    their snippets
``filtered_ranks``       their ranks
``*_origins``            list of :data:`ORIGIN_TYPE`: where each passage of the three lists came from
``decision``             :data:`DECISION_TYPE`: what relabelling did to the row, and why
=======================  ====================================================================

Beside snippets and ranks, or instead of them, there may be further evidence for further rules, in the same form:

=======================  ====================================================================
``positive_scores``      list of double: the higher the more relevant, null is not scored
``positive_verdicts``    list of :data:`VERDICT_TYPE`: how a passage compares with the positives
``positive_grades``      list of :data:`GRADE_TYPE`: how relevant a passage is, from 0 to 3
``negative_*``           the same for the negatives
``filtered_*``           the same for the passages that left
=======================  ====================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.errors import SchemaError

if TYPE_CHECKING:
    from datasets import Features

Row = dict[str, Any]
Passage = Mapping[str, Any]

QUERY_ID = "query_id"
QUERY = "query"
SUBSET = "subset"
POSITIVES = "positive_passages"
NEGATIVES = "negative_passages"
FILTERED = "filtered_passages"
POSITIVE_SNIPPETS = "positive_snippets"
NEGATIVE_SNIPPETS = "negative_snippets"
FILTERED_SNIPPETS = "filtered_snippets"
POSITIVE_RANKS = "positive_ranks"
NEGATIVE_RANKS = "negative_ranks"
FILTERED_RANKS = "filtered_ranks"
POSITIVE_SCORES = "positive_scores"
NEGATIVE_SCORES = "negative_scores"
FILTERED_SCORES = "filtered_scores"
POSITIVE_VERDICTS = "positive_verdicts"
NEGATIVE_VERDICTS = "negative_verdicts"
FILTERED_VERDICTS = "filtered_verdicts"
POSITIVE_GRADES = "positive_grades"
NEGATIVE_GRADES = "negative_grades"
FILTERED_GRADES = "filtered_grades"
POSITIVE_ORIGINS = "positive_origins"
NEGATIVE_ORIGINS = "negative_origins"
FILTERED_ORIGINS = "filtered_origins"
RANKING = "ranking"
DECISION = "decision"

PASSAGE_TYPE = pa.struct([("docid", pa.string()), ("title", pa.string()), ("text", pa.string())])
SNIPPET_TYPE = pa.struct(
    [
        ("snippet", pa.string()),  # as it stands in the passage, null unless grounded
        ("start", pa.int32()),  # offsets in characters into passage[field], end exclusive
        ("end", pa.int32()),
        ("field", pa.string()),  # "text" or "title"
        ("status", pa.string()),
        ("detail", pa.string()),  # why, and the beginning of the reply, where it is not plain
    ]
)
RANKING_TYPE = pa.struct(
    [
        ("status", pa.string()),
        ("candidates", pa.int32()),
        ("permutations", pa.int32()),
        ("agreement", pa.float64()),
        ("detail", pa.string()),
    ]
)
SCORE_TYPE = pa.float64()
VERDICT_TYPE = pa.struct(
    [
        ("verdict", pa.string()),  # "better", "worse" or "no_match", null where the reply does not say it
        ("status", pa.string()),
        ("detail", pa.string()),
    ]
)
GRADE_TYPE = pa.struct(
    [
        ("grade", pa.int32()),  # from 0, not relevant, to 3; null where the reply does not say it
        ("status", pa.string()),
        ("detail", pa.string()),
    ]
)
ORIGIN_TYPE = pa.struct([("label", pa.string()), ("position", pa.int32())])
DECISION_TYPE = pa.struct(
    [
        ("status", pa.string()),
        ("policy", pa.string()),
        ("reference", pa.string()),
        ("relabelled", pa.int32()),
        ("filtered", pa.int32()),
        ("detail", pa.string()),
    ]
)

GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED, ERROR = "grounded", "no_answer", "ungrounded", "unparsed", "error"
SNIPPET_STATUSES = (GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED, ERROR)

RANKED, PARTIAL, SKIPPED = "ranked", "partial", "skipped"
RANKING_STATUSES = (RANKED, PARTIAL, UNPARSED, ERROR, SKIPPED)

BETTER, WORSE, NO_MATCH = "better", "worse", "no_match"
VERDICTS = (BETTER, WORSE, NO_MATCH)
GRADES = (0, 1, 2, 3)
JUDGED = "judged"
JUDGEMENT_STATUSES = (JUDGED, PARTIAL, UNPARSED, ERROR, SKIPPED)  # of verdicts and of grades

CHANGED, UNCHANGED, GUARDED, DROPPED = "changed", "unchanged", "guarded", "dropped"
DECISION_STATUSES = (CHANGED, UNCHANGED, GUARDED, DROPPED)

DETAIL_CHARACTERS = 200


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
    """The evidence for one (query, passage): what :data:`SNIPPET_TYPE` stores."""

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
    """The evidence for one candidate beside the positives: what :data:`VERDICT_TYPE` stores.

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
    """The relevance of one passage: what :data:`GRADE_TYPE` stores.

    ``grade`` is 0 to 3, or None where the reply does not plainly say one; ``status`` is ``judged``, ``unparsed`` or
    ``error``.
    """

    status: str
    grade: int | None = None
    detail: str | None = None

    def to_struct(self) -> Row:
        """The value for the grade columns."""
        return {"grade": self.grade, "status": self.status, "detail": self.detail}


def shorten(text: str, limit: int = DETAIL_CHARACTERS) -> str:
    """``text`` on one line and cut to ``limit`` characters, for details and messages."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, so that equal values have equal hashes."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of :func:`canonical_json`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def stable_docid(title: str, text: str) -> str:
    """The docid of a passage that came without one: a hash of its title and text."""
    return digest([title, text])[:32]


def stable_query_id(query: str, subset: str | None = None) -> str:
    """The query id of a row that came without one: a hash of its query and subset."""
    return digest([query, subset])[:32]


def passages_of(row: Mapping[str, Any], column: str) -> Sequence[Passage]:
    """The passages of a canonical row's column.

    Raises:
        SchemaError: the column is missing or does not hold passages.
    """
    value = row.get(column)
    if value is None or isinstance(value, (str, Mapping)):
        found = "nothing" if value is None else type(value).__name__
        raise SchemaError(
            f"Column {column!r} holds {found}; a list of {{docid, title, text}} was expected. Columns found: "
            f"{sorted(row)}. Bring the rows into the canonical form: ds.map(arhn.adapt) or arhn.adapt_dataset(ds)."
        )
    return list(value)


def text_of(passage: Passage) -> str:
    """Title and text of a passage as one text, title first."""
    title, text = passage.get("title") or "", passage.get("text") or ""
    return f"{title}\n{text}" if title and text else title or text


def evidence_features() -> Features:
    """The ``datasets.Features`` of the evidence columns of ARHN, in the order in which the stages add them."""
    from datasets import Features

    return Features.from_arrow_schema(pa.schema(list(EVIDENCE_TYPES.items())))


EVIDENCE_TYPES: dict[str, pa.DataType] = {
    POSITIVE_SNIPPETS: pa.list_(SNIPPET_TYPE),
    NEGATIVE_SNIPPETS: pa.list_(SNIPPET_TYPE),
    POSITIVE_RANKS: pa.list_(pa.int32()),
    NEGATIVE_RANKS: pa.list_(pa.int32()),
    RANKING: RANKING_TYPE,
    FILTERED: pa.list_(PASSAGE_TYPE),
    FILTERED_SNIPPETS: pa.list_(SNIPPET_TYPE),
    FILTERED_RANKS: pa.list_(pa.int32()),
    POSITIVE_ORIGINS: pa.list_(ORIGIN_TYPE),
    NEGATIVE_ORIGINS: pa.list_(ORIGIN_TYPE),
    FILTERED_ORIGINS: pa.list_(ORIGIN_TYPE),
    DECISION: DECISION_TYPE,
}
"""The columns of ARHN's own three stages."""

FURTHER_EVIDENCE_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys((POSITIVE_SCORES, NEGATIVE_SCORES, FILTERED_SCORES), pa.list_(SCORE_TYPE)),
    **dict.fromkeys((POSITIVE_VERDICTS, NEGATIVE_VERDICTS, FILTERED_VERDICTS), pa.list_(VERDICT_TYPE)),
    **dict.fromkeys((POSITIVE_GRADES, NEGATIVE_GRADES, FILTERED_GRADES), pa.list_(GRADE_TYPE)),
}
"""The columns of further evidence, each of which may be there or not."""

ALL_EVIDENCE_TYPES: dict[str, pa.DataType] = {**EVIDENCE_TYPES, **FURTHER_EVIDENCE_TYPES}
"""Every column that is evidence, and none of the source's."""
