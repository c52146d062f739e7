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
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from arhn_datasets.errors import SchemaError

Row = dict[str, Any]
Passage = Mapping[str, Any]

QUERY_ID = "query_id"
QUERY = "query"
SUBSET = "subset"
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


@dataclass(frozen=True)
class Side:
    """One of the three lists of a row, by its label; the columns of all that is aligned with it follow from that."""

    label: str

    def column(self, kind: str) -> str:
        """The column of a kind of :data:`KINDS` on this side."""
        return f"{self.label}_{kind}"

    @property
    def passages(self) -> str:
        """The column of the passages."""
        return self.column("passages")

    @property
    def snippets(self) -> str:
        """The column of their snippets."""
        return self.column("snippets")

    @property
    def ranks(self) -> str:
        """The column of their ranks."""
        return self.column("ranks")

    @property
    def scores(self) -> str:
        """The column of their scores."""
        return self.column("scores")

    @property
    def verdicts(self) -> str:
        """The column of their verdicts."""
        return self.column("verdicts")

    @property
    def grades(self) -> str:
        """The column of their grades."""
        return self.column("grades")

    @property
    def origins(self) -> str:
        """The column of where they came from."""
        return self.column("origins")


POSITIVE, NEGATIVE, FILTERED = Side("positive"), Side("negative"), Side("filtered")
SIDES = (POSITIVE, NEGATIVE, FILTERED)
LABELLED = (POSITIVE, NEGATIVE)
"""The two sides that a source row has."""

KINDS: Mapping[str, pa.DataType] = {
    "passages": PASSAGE_TYPE,
    "snippets": SNIPPET_TYPE,
    "ranks": pa.int32(),
    "scores": SCORE_TYPE,
    "verdicts": VERDICT_TYPE,
    "grades": GRADE_TYPE,
    "origins": ORIGIN_TYPE,
}
"""What stands on each passage, by the second word of its columns, with the type of one value.

This is the one table of columns: a further kind of evidence is an entry here and a file in ``evidence/``.
"""
EVIDENCE_KINDS = tuple(kind for kind in KINDS if kind not in ("passages", "origins"))
"""The kinds that annotators and models give."""

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


def types_of(kinds: Sequence[str], sides: Sequence[Side] = SIDES) -> dict[str, pa.DataType]:
    """The types of the columns of some kinds on some sides, kind by kind."""
    return {side.column(kind): pa.list_(KINDS[kind]) for kind in kinds for side in sides}


EVIDENCE_TYPES: dict[str, pa.DataType] = {
    **types_of(("snippets", "ranks"), LABELLED),
    RANKING: RANKING_TYPE,
    **types_of(("passages", "snippets", "ranks"), (FILTERED,)),
    **types_of(("origins",)),
    DECISION: DECISION_TYPE,
}
"""The columns of ARHN's own three stages."""

ALL_EVIDENCE_TYPES: dict[str, pa.DataType] = {**EVIDENCE_TYPES, **types_of(("scores", "verdicts", "grades"))}
"""Every column that is evidence, and none of the source's."""
