"""What a refinement did, in counts: by subset, by status, and as a few rows to read.

Both come from Arrow columns, a table after the other: :class:`Tally` and :class:`ChangedRows` keep no table.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.rows import records
from arhn_datasets.rows.arrow import Integers, field_of, flat_field, lengths_in, one_array
from arhn_datasets.rows.records import DECISION, NEGATIVE, QUERY, RANKING, SIDES, Passage, Row, Side, alike, shorten

ALL = "all"
NO_SUBSET = "(no subset)"
OTHER_SUBSETS = "(other subsets)"
COUNT_NAMES = ("rows", "positives", "negatives", "relabelled", "filtered", "dropped", "kept")
MOST_SUBSETS = 50

# The statuses that are counted: of each passage, then of each row.
_JUDGEMENTS = {kind: records.KINDS[kind].statuses for kind in records.FURTHER_KINDS if records.KINDS[kind].statuses}
_OF_PASSAGES = ("snippets", *_JUDGEMENTS)
_STATUSES: Mapping[str, Sequence[str]] = {
    "snippets": records.SNIPPET_STATUSES,
    "rankings": records.RANKING_STATUSES,
    **_JUDGEMENTS,
    "decisions": records.DECISION_STATUSES,
}
UNREAD = (records.UNGROUNDED, records.UNPARSED, records.ERROR)
MOST_CAUSES = 20
# Names of errors in the details, of those that asking again can mend.
_PASSING = ("EndpointUnavailable", "EndpointOverloaded", "EndpointFailure")
COUNTED = (records.SUBSET, DECISION, RANKING, *records.types_of(("origins", *_OF_PASSAGES)))


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts of one subset, or of all rows.

    ``positives`` and ``negatives`` are those of the source, ``dropped`` are the negatives of rows that a guard dropped;
    ``relabelled + filtered + dropped + kept == negatives``.
    """

    rows: int = 0
    positives: int = 0
    negatives: int = 0
    relabelled: int = 0
    filtered: int = 0
    dropped: int = 0
    kept: int = 0
    decisions: Mapping[str, int] = field(default_factory=dict)
    snippets: Mapping[str, int] = field(default_factory=dict)
    rankings: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)
    grades: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Requests that failed and can be asked again."""
        return sum(counts.get(records.ERROR, 0) for _, counts, _ in self.statuses())

    def statuses(self) -> list[tuple[str, Mapping[str, int], Sequence[str]]]:
        """What is counted by status, as readers are told: its name, the counts, and the statuses that there are."""
        of = {**vars(self), **self.others}
        return [("rows" if k == "decisions" else k, of.get(k, {}), known) for k, known in _STATUSES.items()]

    def to_json(self) -> dict[str, Any]:
        """The counts; those of evidence other than ARHN's, and what was dropped, only where there is some."""
        found = asdict(self)
        found |= found.pop("others")
        return {name: value for name, value in found.items() if value or name not in (*_JUDGEMENTS, "dropped")}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why replies were no evidence: their status, how many had a detail like this one, and the first of them."""

    status: str
    count: int
    example: str

    @property
    def passing(self) -> bool:
        """Whether asking again can help."""
        name, _, _ = self.example.partition(":")
        return self.status == records.ERROR and (name in _PASSING or not name.isidentifier())

    def __str__(self) -> str:
        name, _, said = self.example.partition(": ")
        if self.status != records.ERROR:
            return f"{self.count:,} x {self.status}, e.g. {self.example}"
        return f"{self.count:,} x {said if name.isidentifier() else self.example}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The counts of a refinement, ``total`` and by subset in order of appearance, and why replies were no evidence."""

    total: Counts
    subsets: Mapping[str, Counts]
    causes: Sequence[Cause] = ()

    @property
    def asked(self) -> int:
        """The passages and rankings that were asked about."""
        return sum(
            number
            for name, counts, _ in self.total.statuses()
            for status, number in counts.items()
            if name != "rows" and status != records.SKIPPED
        )

    @property
    def unread(self) -> float:
        """The share of them on which there is no readable reply."""
        asked = [counts for name, counts, _ in self.total.statuses() if name != "rows"]
        return sum(counts.get(status, 0) for counts in asked for status in UNREAD) / max(1, self.asked)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, the total under ``"all"``."""
        return {ALL: self.total.to_json(), **{name: counts.to_json() for name, counts in self.subsets.items()}}

    @property
    def names(self) -> list[str]:
        """The counts that are shown: of dropped negatives where there are some."""
        return [name for name in COUNT_NAMES if name != "dropped" or self.total.dropped]

    def rows(self) -> list[tuple[str, Counts]]:
        """Name and counts, the subsets first and the total last; the total alone where there is one subset."""
        named = list(self.subsets.items()) if len(self.subsets) > 1 else []
        return [*named, (ALL, self.total)]


class Tally:
    """Counts of relabelled rows that come in tables; rows that a guard dropped count as well.

    Past :data:`MOST_SUBSETS` further subsets are counted as one: its size does not depend on the rows.
    """

    def __init__(self) -> None:
        self._subsets: dict[str, Counter[str]] = {}
        self._causes: dict[str, dict[str, Any]] = {}

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table; of its columns only statuses, origins and the subset are read."""
        names, groups = _subsets_of(table)
        tallies = [self._of(name) for name in names]
        _add(tallies, "rows", np.bincount(groups, minlength=len(tallies)))
        decisions = table.column(DECISION)
        statuses = field_of(decisions, "status", pa.string())
        _count(tallies, groups, statuses, _keys("decisions"))
        lengths, _ = lengths_in(table, NEGATIVE.origins)  # a dropped row is as it came
        left = lengths * pc.fill_null(pc.equal(one_array(statuses), records.DROPPED), False).to_numpy(False)
        _add(tallies, "dropped", np.bincount(groups, left, minlength=len(tallies)))
        for name in ("relabelled", "filtered"):
            numbers = one_array(pc.fill_null(field_of(decisions, name, pa.int64()), 0)).to_numpy()
            _add(tallies, name, np.bincount(groups, numbers, minlength=len(tallies)))
        if RANKING in table.column_names:
            status = field_of(table.column(RANKING), "status", pa.string())
            _count(tallies, groups, status, _keys("rankings"))
            self._add_causes(status, field_of(table.column(RANKING), "detail", pa.string()))
        for side in SIDES:
            lengths, labels = flat_field(table, side.origins, "label", pa.string())
            _count(tallies, np.repeat(groups, lengths), labels, {"positive": "positives", "negative": "negatives"})
            for kind in _OF_PASSAGES:
                if side.column(kind) in table.column_names:
                    lengths, status = flat_field(table, side.column(kind), "status", pa.string())
                    _count(tallies, np.repeat(groups, lengths), status, _keys(kind))
                    self._add_causes(status, flat_field(table, side.column(kind), "detail", pa.string())[1])

    def report(self) -> Report:
        """The counts so far."""
        total: Counter[str] = sum(self._subsets.values(), Counter())
        subsets = {name: _counts(tally) for name, tally in self._subsets.items()}
        causes = sorted((Cause(**cause) for cause in self._causes.values()), key=lambda cause: -cause.count)
        return Report(total=_counts(total), subsets=subsets, causes=causes)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, to go on from with :meth:`from_json`."""
        return {"subsets": {name: dict(tally) for name, tally in self._subsets.items()}, "causes": self._causes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """What :meth:`to_json` has given."""
        tally = cls()
        tally._subsets = {name: Counter(counted) for name, counted in value["subsets"].items()}
        tally._causes = {shape: dict(cause) for shape, cause in value["causes"].items()}
        return tally

    def _add_causes(self, statuses: pa.Array, details: pa.Array) -> None:
        unread = pc.is_in(statuses, value_set=pa.array(UNREAD))
        if not pc.any(unread, min_count=0).as_py():  # the usual case
            return
        found = zip(statuses.filter(unread).to_pylist(), details.filter(unread).to_pylist(), strict=True)
        for status, detail in found:
            # What a model wrote differs each time; what a server says does not.
            shape = f"{status} {alike(detail or '')}" if status == records.ERROR else status
            if shape not in self._causes and len(self._causes) >= MOST_CAUSES:
                shape = f"{status} of other causes"
            cause = self._causes.setdefault(shape, {"status": status, "count": 0, "example": detail or "no detail"})
            cause["count"] += 1

    def _of(self, name: Any) -> Counter[str]:
        return self._subsets.setdefault(counted_as(name, self._subsets), Counter())


def counted_as(name: Any, seen: Collection[str]) -> str:
    """The subset that a row counts to: its own, or beside :data:`MOST_SUBSETS` that were seen, that of all others."""
    name = str(name) if name else NO_SUBSET
    return OTHER_SUBSETS if name not in seen and len(seen) >= MOST_SUBSETS else name


def format_report(report: Report) -> str:
    """The report as a table for a terminal."""
    lines = [(name, *(f"{getattr(counts, column):,}" for column in report.names)) for name, counts in report.rows()]
    table = format_table(("subset", *report.names), lines)
    statuses = [f"{label:<9} {_shares(counts, known)}" for label, counts, known in report.total.statuses() if counts]
    return "\n".join([table, "", *statuses])


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(header, *lines, strict=True))
    rule = ["-" * width for width in (first, *others)]
    return "\n".join(
        "  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in (header, rule, *lines)
    )


class ChangedRows:
    """Up to ``most`` rows that relabelling changed, of rows that come in tables.

    Those with a relabelled passage come first, spread over the subsets. No other row becomes a Python object.
    """

    def __init__(self, most: int) -> None:
        self._most, self._rows = most, 0
        self._seen: Counter[Any] = Counter()
        self._found: list[tuple[tuple[bool, int, int], Row]] = []

    def add(self, table: pa.Table) -> None:
        """Look at the rows of a table."""
        decisions = table.column(DECISION)
        changed = pc.fill_null(pc.equal(field_of(decisions, "status", pa.string()), records.CHANGED), False)
        relabelled = pc.fill_null(field_of(decisions, "relabelled", pa.int64()), 0)
        moved = one_array(pc.greater(relabelled, 0)).to_numpy(zero_copy_only=False)
        names, groups = _subsets_of(table)
        ordered = list(self._found)
        for at in np.flatnonzero(one_array(changed).to_numpy(zero_copy_only=False)).tolist():
            of = bool(moved[at]), names[groups[at]]
            ordered.append(((not of[0], self._seen[of], self._rows + at), {}))
            self._seen[of] += 1
        self._found = [
            (key, row or table.slice(key[2] - self._rows, 1).to_pylist()[0])
            for key, row in heapq.nsmallest(self._most, ordered, key=lambda found: found[0])
        ]
        self._rows += table.num_rows

    def rows(self) -> list[Row]:
        """The rows that were found, in order."""
        return [row for _, row in self._found]

    def to_json(self) -> dict[str, Any]:
        """What was found so far, to go on from with :meth:`from_json`; what JSON cannot hold becomes a text."""
        state = {"rows": self._rows, "seen": list(self._seen.items()), "found": self._found}
        found: dict[str, Any] = json.loads(json.dumps(state, default=str))
        return found

    @classmethod
    def from_json(cls, most: int, value: Mapping[str, Any]) -> ChangedRows:
        """What :meth:`to_json` has given."""
        changed = cls(most)
        changed._rows = value["rows"]
        changed._seen = Counter({(moved, name): count for (moved, name), count in value["seen"]})
        changed._found = [((key[0], key[1], key[2]), row) for key, row in value["found"]]
        return changed


def changed_rows(tables: Iterable[pa.Table], most: int) -> list[Row]:
    """Up to ``most`` rows that relabelling changed, those with a relabelled passage first, spread over the subsets."""
    found = ChangedRows(most)
    for table in tables:
        found.add(table)
    return found.rows()


def passages_to_show(row: Row) -> Iterator[tuple[Side, Passage, Mapping[str, Any], str]]:
    """The positives and the filtered passages of a row: side, passage, evidence, and the label in the source.

    The evidence is the snippet, and of every other kind what it says in a word or a number, where it says anything.
    """
    for side in (records.POSITIVE, records.FILTERED):
        none = [None] * len(row[side.passages])
        values = [row.get(side.column(kind)) or none for kind in records.EVIDENCE_KINDS]
        for at, (passage, origin) in enumerate(zip(row[side.passages], row[side.origins], strict=True)):
            found = {kind: of[at] for kind, of in zip(records.EVIDENCE_KINDS, values, strict=True)}
            given = {kind: _in_short(kind, value) for kind, value in found.items() if value is not None}
            yield side, passage, given, origin["label"]


def _in_short(kind: str, value: Any) -> Any:
    """What evidence says: the field that rules read, or how it went where it says nothing; a snippet as it is."""
    read = records.KINDS[kind].reads
    if read is None:
        return f"{value:.3f}" if isinstance(value, float) else value
    if read == "status":
        return value
    return value["status"] if value[read] is None else value[read]


def format_row(row: Row, width: int = 100) -> str:
    """A changed row for a reader: the query, the positive, and each passage that moved with its evidence."""
    lines = [f"query      {shorten(row[QUERY], width)}"]
    for side, passage, given, before in passages_to_show(row):
        moved = "+ now pos" if side is records.POSITIVE else "- left"
        label = moved if side.label != before else "positive"
        said = shorten(passage.get("text") or "", width)
        if (snippet := given.get("snippets")) is not None:
            grounded = snippet["status"] == records.GROUNDED
            said = f"“{shorten(snippet['snippet'], width)}”" if grounded else f"({snippet['status']})"
        names = {kind: next(iter(records.KINDS[kind].shown_as)) for kind in given if given[kind] is not snippet}
        shown = [f"{name} {given[kind]}" for kind, name in names.items()]
        by = f"{', '.join(shown)}: " if shown else ""
        lines.append(f"{label:<10} [{passage['docid']}] {by}{said}")
    lines.append(f"{'kept':<10} {len(row[NEGATIVE.passages])} negatives")
    return "\n".join(lines)


def _subsets_of(table: pa.Table) -> tuple[list[Any], Integers]:
    """The subsets in order of appearance, None where there is none, and for each row which of them."""
    if records.SUBSET not in table.column_names:
        return [None], np.zeros(table.num_rows, np.int64)
    values = one_array(table.column(records.SUBSET))
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _keys(kind: str) -> dict[str, str]:
    return {status: f"{kind} {status}" for status in _STATUSES[kind]}


def _count(tallies: Sequence[Counter[str]], groups: Integers, values: Any, keys: Mapping[str, str]) -> None:
    """Count values by group, each under its key; a value without one, or a null, does not count."""
    codes = one_array(pc.index_in(values, value_set=pa.array(list(keys)))).fill_null(-1).to_numpy()
    for code, key in enumerate(keys.values()):
        _add(tallies, key, np.bincount(groups[codes == code], minlength=len(tallies)))


def _add(tallies: Sequence[Counter[str]], key: str, numbers: Any) -> None:
    for tally, number in zip(tallies, numbers.tolist(), strict=True):
        if number:
            tally[key] += int(number)


def _counts(tally: Counter[str]) -> Counts:
    numbers: dict[str, Any] = {name: tally[name] for name in COUNT_NAMES}
    numbers["kept"] = tally["negatives"] - sum(tally[name] for name in ("relabelled", "filtered", "dropped"))
    numbers["others"] = {}
    for kind in _STATUSES:
        counts = {status: tally[key] for status, key in _keys(kind).items() if tally[key]}
        (numbers if kind in Counts.__dataclass_fields__ else numbers["others"])[kind] = counts
    return Counts(**numbers)


def _shares(counts: Mapping[str, int], known: Sequence[str]) -> str:
    whole = sum(counts.values()) or 1
    shown = [f"{status} {counts[status]:,} ({counts[status] / whole:.1%})" for status in known if status in counts]
    return ", ".join(shown) or "none"
