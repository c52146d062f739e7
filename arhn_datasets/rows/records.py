"""The canonical row, the evidence columns beside it, and their Arrow types.

A canonical row is a row of the published RLHN and Tevatron sets: ``query_id``, ``query``,
``positive_passages`` and ``negative_passages`` (lists of ``{docid, title, text}``, title ``""`` when there is
none), optionally ``subset``, and any further columns, which pass through.

The stages add columns whose lists are aligned with the passage lists, one value a passage. The sides are ``positive``
and ``negative``, and of rows that a rule has decided upon ``filtered``, too:

=======================  ====================================================================
``<side>_snippets``      list of :data:`SNIPPET_TYPE`: the words that answer
``<side>_ranks``         list of int32: 1 is best, null is not ranked, equal is equally good
``ranking``              :data:`RANKING_TYPE`: how the ranking of the row went
``<side>_scores``        list of double: the higher the more relevant, null is not scored
``<side>_verdicts``      list of :data:`VERDICT_TYPE`: how a passage compares with the positives
``<side>_grades``        list of :data:`GRADE_TYPE`: how relevant a passage is, from 0 to 3
``filtered_passages``    the passages that left the negatives
``<side>_origins``       list of :data:`ORIGIN_TYPE`: where each passage came from
``decision``             :data:`DECISION_TYPE`: what a rule did to the row, and why
=======================  ====================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
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

_TEXT, _COUNT = pa.string(), pa.int32()
PASSAGE_TYPE = pa.struct({"docid": _TEXT, "title": _TEXT, "text": _TEXT})
SNIPPET_TYPE = pa.struct(
    {
        "snippet": _TEXT,  # as it stands in the passage, null unless grounded
        "start": _COUNT,  # offsets in characters into passage[field], end exclusive
        "end": _COUNT,
        "field": _TEXT,  # "text" or "title"
        "status": _TEXT,
        "detail": _TEXT,  # why, and the beginning of the reply, where it is not plain
    }
)
RANKING_TYPE = pa.struct(
    {"status": _TEXT, "candidates": _COUNT, "permutations": _COUNT, "agreement": pa.float64(), "detail": _TEXT}
)
SCORE_TYPE = pa.float64()
# "better", "worse" or "no_match"; null where the reply does not say it
VERDICT_TYPE = pa.struct({"verdict": _TEXT, "status": _TEXT, "detail": _TEXT})
# from 0, not relevant, to 3; null where the reply does not say it
GRADE_TYPE = pa.struct({"grade": _COUNT, "status": _TEXT, "detail": _TEXT})
ORIGIN_TYPE = pa.struct({"label": _TEXT, "position": _COUNT})
DECISION_TYPE = pa.struct(
    {"status": _TEXT, "policy": _TEXT, "reference": _TEXT, "relabelled": _COUNT, "filtered": _COUNT, "detail": _TEXT}
)


class Side:
    """One of the three lists of a row, by its label; the columns of all that is aligned with it follow from that."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.passages, self.origins, self.snippets = f"{label}_passages", f"{label}_origins", f"{label}_snippets"
        self.ranks, self.scores = f"{label}_ranks", f"{label}_scores"
        self.verdicts, self.grades = f"{label}_verdicts", f"{label}_grades"

    def column(self, kind: str) -> str:
        """The column of a kind of :data:`KINDS` on this side."""
        return f"{self.label}_{kind}"


POSITIVE, NEGATIVE, FILTERED = Side("positive"), Side("negative"), Side("filtered")
SIDES = (POSITIVE, NEGATIVE, FILTERED)
LABELLED = (POSITIVE, NEGATIVE)
"""The two sides that a source row has."""

GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED, ERROR = "grounded", "no_answer", "ungrounded", "unparsed", "error"
SNIPPET_STATUSES = (GROUNDED, NO_ANSWER, UNGROUNDED, UNPARSED, ERROR)

RANKED, PARTIAL, SKIPPED = "ranked", "partial", "skipped"
RANKING_STATUSES = (RANKED, PARTIAL, UNPARSED, ERROR, SKIPPED)

BETTER, WORSE, NO_MATCH = "better", "worse", "no_match"
VERDICTS = (BETTER, WORSE, NO_MATCH)
GRADES = (0, 1, 2, 3)
JUDGED = "judged"
JUDGEMENT_STATUSES = (JUDGED, PARTIAL, UNPARSED, ERROR, SKIPPED)  # of verdicts and of grades


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What stands on each passage of a row, and how it is read: all that the rest of the package knows of it."""

    type: pa.DataType
    """Of one value."""

    shown_as: Mapping[str, str | None]
    """Its columns in the table of evidence, with the field that each holds; None is the value itself."""

    stage: str = ""
    """What makes it, as users call it."""

    reads: str | None = None
    """The field that rules read; None is the value itself."""

    words: tuple[str, ...] = ()
    """The words there that count, which rules read as their places here; without them it is a number."""

    statuses: tuple[str, ...] = ()
    """How it may have gone, where it has a status."""

    values: tuple[Any, ...] = ()
    """What a judgement may say there; without one the status says why."""

    everywhere: bool = False
    """Whether each passage has one once its stage has run; of any other kind it may be null."""

    @property
    def status(self) -> str | None:
        """Its column in the table of evidence that says how it went, where it has one."""
        return next((column for column, field in self.shown_as.items() if field == "status"), None)


KINDS: Mapping[str, Kind] = {
    "passages": Kind(type=PASSAGE_TYPE, shown_as={"docid": "docid"}, everywhere=True),
    "origins": Kind(type=ORIGIN_TYPE, shown_as={"origin": "label", "position": "position"}, everywhere=True),
    "snippets": Kind(
        type=SNIPPET_TYPE,
        shown_as={
            **{field: field for field in ("snippet", "start", "end", "field")},
            **{f"snippet_{field}": field for field in ("status", "detail")},
        },
        stage="arhn.snippets",
        reads="status",
        words=(GROUNDED, NO_ANSWER),
        statuses=SNIPPET_STATUSES,
        everywhere=True,
    ),
    "ranks": Kind(type=_COUNT, shown_as={"rank": None}, stage="arhn.ranks"),
    "scores": Kind(type=SCORE_TYPE, shown_as={"score": None}, stage="arhn.Scores(model)"),
    "verdicts": Kind(
        type=VERDICT_TYPE,
        shown_as={"verdict": "verdict", "verdict_status": "status", "verdict_detail": "detail"},
        stage="arhn.Verdicts()",
        reads="verdict",
        words=(BETTER, WORSE),
        statuses=JUDGEMENT_STATUSES,
        values=VERDICTS,
    ),
    "grades": Kind(
        type=GRADE_TYPE,
        shown_as={"grade": "grade", "grade_status": "status", "grade_detail": "detail"},
        stage="arhn.Grades()",
        reads="grade",
        statuses=JUDGEMENT_STATUSES,
        values=GRADES,
    ),
}
"""What stands on each passage, by the second word of its columns: the one table of columns.

A further kind of evidence is an entry here and a file in ``evidence/``.
"""
EVIDENCE_KINDS = tuple(kind for kind in KINDS if kind not in ("passages", "origins"))
"""The kinds that annotators and models give."""
ARHN_KINDS = ("snippets", "ranks")
"""Those of ARHN's own stages, which are always there in published rows."""
FURTHER_KINDS = tuple(kind for kind in EVIDENCE_KINDS if kind not in ARHN_KINDS)
"""Those of other rules."""

CHANGED, UNCHANGED, GUARDED, DROPPED = "changed", "unchanged", "guarded", "dropped"
DECISION_STATUSES = (CHANGED, UNCHANGED, GUARDED, DROPPED)

DETAIL_CHARACTERS = 200


def shorten(text: str, limit: int = DETAIL_CHARACTERS) -> str:
    """``text`` on one line and cut to ``limit`` characters, for details and messages."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def alike(text: str) -> str:
    """The same text for messages that differ in numbers, ids and what they quote, to count them together."""
    return _VARYING.sub("…", text)


_VARYING = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|`[^`]*`|“[^”]*”|\b(?=\w*[0-9])[\w-]{4,}|[0-9]+""")
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


def text_of(passage: Passage, separator: str = "\n") -> str:
    """Title and text of a passage as one text, title first."""
    title, text = passage.get("title") or "", passage.get("text") or ""
    return f"{title}{separator}{text}" if title and text else title or text


def types_of(kinds: Sequence[str], sides: Sequence[Side] = SIDES) -> dict[str, pa.DataType]:
    """The types of the columns of some kinds on some sides, kind by kind."""
    return {side.column(kind): pa.list_(KINDS[kind].type) for kind in kinds for side in sides}


EVIDENCE_TYPES: dict[str, pa.DataType] = {
    **types_of(ARHN_KINDS, LABELLED),
    RANKING: RANKING_TYPE,
    **types_of(("passages", *ARHN_KINDS), (FILTERED,)),
    **types_of(("origins",)),
    DECISION: DECISION_TYPE,
}
"""The columns of ARHN's own three stages."""

ALL_EVIDENCE_TYPES: dict[str, pa.DataType] = {**EVIDENCE_TYPES, **types_of(FURTHER_KINDS)}
"""Every column that is evidence, and none of the source's."""


def fits(value: Any, type: pa.DataType) -> bool:
    """Whether a value has the shape of evidence: the fields of a struct, lists, and numbers where numbers stand."""
    if value is None:
        return True
    if pa.types.is_list(type):
        first = next((one for one in value if one is not None), None) if isinstance(value, (list, tuple)) else None
        return isinstance(value, (list, tuple)) and fits(first, type.value_type)
    if pa.types.is_struct(type):
        return isinstance(value, Mapping) and {field.name for field in type} <= set(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
