"""What a refinement did, in counts: by subset, by status, and as a few rows to read."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from arhn_datasets.records import (
    CHANGED,
    DECISION,
    DECISION_STATUSES,
    FILTERED,
    FILTERED_GRADES,
    FILTERED_ORIGINS,
    FILTERED_SNIPPETS,
    FILTERED_VERDICTS,
    GROUNDED,
    JUDGEMENT_STATUSES,
    NEGATIVE_GRADES,
    NEGATIVE_ORIGINS,
    NEGATIVE_SNIPPETS,
    NEGATIVE_VERDICTS,
    NEGATIVES,
    POSITIVE_GRADES,
    POSITIVE_ORIGINS,
    POSITIVE_RANKS,
    POSITIVE_SNIPPETS,
    POSITIVE_VERDICTS,
    POSITIVES,
    QUERY,
    RANKING,
    RANKING_STATUSES,
    SNIPPET_STATUSES,
    SUBSET,
    Row,
    shorten,
)

if TYPE_CHECKING:
    from datasets import Dataset

ALL = "all"
NO_SUBSET = "(no subset)"
OTHER_SUBSETS = "(other subsets)"
MOST_SUBSETS = 50

_ORIGINS = (POSITIVE_ORIGINS, NEGATIVE_ORIGINS, FILTERED_ORIGINS)
_SNIPPETS = (POSITIVE_SNIPPETS, NEGATIVE_SNIPPETS, FILTERED_SNIPPETS)
_JUDGEMENTS = {
    "verdicts": (POSITIVE_VERDICTS, NEGATIVE_VERDICTS, FILTERED_VERDICTS),
    "grades": (POSITIVE_GRADES, NEGATIVE_GRADES, FILTERED_GRADES),
}
_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts of one subset, or of all rows.

    ``positives`` and ``negatives`` are those of the source; ``relabelled + filtered + kept == negatives``.
    """

    rows: int = 0
    positives: int = 0
    negatives: int = 0
    relabelled: int = 0
    filtered: int = 0
    kept: int = 0
    decisions: Mapping[str, int] = field(default_factory=dict)
    snippets: Mapping[str, int] = field(default_factory=dict)
    rankings: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)
    grades: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Requests that failed and can be asked again."""
        return sum(kind.get("error", 0) for kind in (self.snippets, self.rankings, self.verdicts, self.grades))

    def to_json(self) -> dict[str, Any]:
        """The counts; verdicts and grades only where there are some."""
        found = asdict(self)
        return {name: value for name, value in found.items() if value or name not in _JUDGEMENTS}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The counts of a refinement, ``total`` and by subset in order of appearance."""

    total: Counts
    subsets: Mapping[str, Counts]

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, the total under ``"all"``."""
        return {ALL: self.total.to_json(), **{name: counts.to_json() for name, counts in self.subsets.items()}}

    def rows(self) -> list[tuple[str, Counts]]:
        """Name and counts, the subsets first and the total last; the total alone where there is one subset."""
        named = list(self.subsets.items()) if len(self.subsets) > 1 else []
        return [*named, (ALL, self.total)]


def build_report(splits: Iterable[Dataset]) -> Report:
    """Count the relabelled rows of some splits; rows that a guard dropped count as well."""
    tallies: dict[str, Counter[str]] = {}
    for dataset in splits:
        judgements = (column for columns in _JUDGEMENTS.values() for column in columns)
        known = (SUBSET, DECISION, RANKING, *_ORIGINS, *_SNIPPETS, *judgements)
        columns = [column for column in known if column in dataset.column_names]
        for batch in dataset.select_columns(columns).iter(_BATCH):
            for row in _rows_of(batch):
                _count(row, _tally(tallies, row.get(SUBSET)))
    total: Counter[str] = sum(tallies.values(), Counter())
    return Report(total=_counts(total), subsets={name: _counts(tally) for name, tally in tallies.items()})


def format_report(report: Report) -> str:
    """The report as a table for a terminal."""
    header = ("subset", "rows", "positives", "negatives", "relabelled", "filtered", "kept")
    lines = [(name, *(f"{getattr(counts, column):,}" for column in header[1:])) for name, counts in report.rows()]
    table = format_table(header, lines)
    total = report.total
    statuses = [
        f"{label:<9} {_shares(counts, known)}"
        for label, counts, known in (
            ("snippets", total.snippets, SNIPPET_STATUSES),
            ("rankings", total.rankings, RANKING_STATUSES),
            ("verdicts", total.verdicts, JUDGEMENT_STATUSES),
            ("grades", total.grades, JUDGEMENT_STATUSES),
            ("rows", total.decisions, DECISION_STATUSES),
        )
        if counts or label not in _JUDGEMENTS
    ]
    return "\n".join([table, "", *statuses])


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    shown = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [header, *lines]
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([shown[0], rule, *shown[1:]])


def changed_rows(rows: Iterable[Row], most: int) -> list[Row]:
    """Up to ``most`` rows that relabelling changed, those with a relabelled passage first, spread over the subsets."""
    seen: Counter[Any] = Counter()

    def ordered() -> Iterator[tuple[tuple[bool, int, int], Row]]:
        for at, row in enumerate(rows):
            if row[DECISION]["status"] == CHANGED:
                name = row.get(SUBSET)
                yield (row[DECISION]["relabelled"] == 0, seen[name], at), row
                seen[name] += 1

    return [row for _, row in heapq.nsmallest(most, ordered(), key=lambda pair: pair[0])]


def format_row(row: Row, width: int = 100) -> str:
    """A changed row for a reader: the query, the positive, and each passage that moved with its snippet."""
    lines = [f"query      {shorten(row[QUERY], width)}"]
    ranks = row.get(POSITIVE_RANKS) or [None] * len(row[POSITIVES])
    snippets = row.get(POSITIVE_SNIPPETS) or [None] * len(row[POSITIVES])
    for passage, origin, snippet, rank in zip(row[POSITIVES], row[POSITIVE_ORIGINS], snippets, ranks, strict=True):
        label = "positive" if origin["label"] == "positive" else "+ now pos"
        lines.append(f"{label:<10} {_passage_line(passage, snippet, rank, width)}")
    snippets = row.get(FILTERED_SNIPPETS) or [None] * len(row[FILTERED])
    for passage, snippet in zip(row[FILTERED], snippets, strict=True):
        lines.append(f"{'- left':<10} {_passage_line(passage, snippet, None, width)}")
    lines.append(f"{'kept':<10} {len(row[NEGATIVES])} negatives")
    return "\n".join(lines)


def _passage_line(passage: Mapping[str, Any], snippet: Mapping[str, Any] | None, rank: int | None, width: int) -> str:
    if snippet is None:  # of a rule that looks at other evidence
        return f"[{passage['docid']}] {shorten(passage.get('text') or '', width)}"
    said = f"“{shorten(snippet['snippet'], width)}”" if snippet["status"] == GROUNDED else f"({snippet['status']})"
    return f"[{passage['docid']}]{f' rank {rank}' if rank else ''} {said}"


def _rows_of(batch: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _tally(tallies: dict[str, Counter[str]], subset: str | None) -> Counter[str]:
    name = str(subset) if subset else NO_SUBSET
    if name not in tallies and len(tallies) >= MOST_SUBSETS:
        name = OTHER_SUBSETS
    return tallies.setdefault(name, Counter())


def _count(row: Row, tally: Counter[str]) -> None:
    origins = Counter(origin["label"] for column in _ORIGINS for origin in row[column])
    decision = row[DECISION]
    tally["rows"] += 1
    tally["positives"] += origins["positive"]
    tally["negatives"] += origins["negative"]
    tally["relabelled"] += decision["relabelled"]
    tally["filtered"] += decision["filtered"]
    tally[f"decisions {decision['status']}"] += 1
    if row.get(RANKING) is not None:
        tally[f"rankings {row[RANKING]['status']}"] += 1
    for column in _SNIPPETS:
        tally.update(f"snippets {snippet['status']}" for snippet in row.get(column) or ())
    for kind, columns in _JUDGEMENTS.items():
        for column in columns:
            tally.update(f"{kind} {judged['status']}" for judged in row.get(column) or () if judged is not None)


def _counts(tally: Counter[str]) -> Counts:
    def statuses(kind: str, known: Sequence[str]) -> dict[str, int]:
        return {status: tally[f"{kind} {status}"] for status in known if tally[f"{kind} {status}"]}

    return Counts(
        rows=tally["rows"],
        positives=tally["positives"],
        negatives=tally["negatives"],
        relabelled=tally["relabelled"],
        filtered=tally["filtered"],
        kept=tally["negatives"] - tally["relabelled"] - tally["filtered"],
        decisions=statuses("decisions", DECISION_STATUSES),
        snippets=statuses("snippets", SNIPPET_STATUSES),
        rankings=statuses("rankings", RANKING_STATUSES),
        verdicts=statuses("verdicts", JUDGEMENT_STATUSES),
        grades=statuses("grades", JUDGEMENT_STATUSES),
    )


def _shares(counts: Mapping[str, int], known: Sequence[str]) -> str:
    whole = sum(counts.values()) or 1
    shown = [f"{status} {counts[status]:,} ({counts[status] / whole:.1%})" for status in known if status in counts]
    return ", ".join(shown) or "none"
