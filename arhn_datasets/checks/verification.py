"""Provenance that can be checked: whether a refined dataset is still what its run has written, without an LLM.

Every check is recomputed from the files: nothing that the dataset says of itself is believed twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, InputError, SchemaError
from arhn_datasets.folder.card import counts_table
from arhn_datasets.folder.reading import (
    CARD_FILE,
    DATA,
    DROPPED,
    EVIDENCE,
    PUBLISHED,
    RUN_FILE,
    Folder,
    open_folder,
    read_run,
    read_tables,
    sha256_of,
)
from arhn_datasets.folder.report import ALL, OTHER_SUBSETS, Report, Tally
from arhn_datasets.formats.tables import RETRIEVAL, Options, check_formats, table_of
from arhn_datasets.formats.writers import FolderSource, writer_of
from arhn_datasets.rows.arrow import (
    Integers,
    field_of,
    flat_lists,
    is_null,
    lists_of,
    one_array,
    rows_of,
    strings_of,
    within,
)
from arhn_datasets.rows.records import (
    DECISION,
    DECISION_STATUSES,
    DECISION_TYPE,
    ERROR,
    EVIDENCE_TYPES,
    FILTERED,
    FURTHER_KINDS,
    GRADES,
    GROUNDED,
    JUDGED,
    JUDGEMENT_STATUSES,
    NEGATIVE,
    PARTIAL,
    POSITIVE,
    QUERY,
    QUERY_ID,
    RANKED,
    RANKING,
    RANKING_STATUSES,
    SKIPPED,
    SNIPPET_STATUSES,
    UNPARSED,
    VERDICTS,
    canonical_json,
    shorten,
)
from arhn_datasets.rows.records import DROPPED as DROPPED_STATUS
from arhn_datasets.rules.registry import rule_of
from arhn_datasets.rules.rule import Decision

FILES, ROWS, PASSAGES, STATUSES = "files", "rows", "passages", "statuses"
SNIPPETS, RANKS, LABELS, COUNTS, FORMATS = "snippets", "ranks", "labels", "counts", "formats"

CHECKS: Mapping[str, str] = {
    FILES: "files as they were written",
    ROWS: "rows, as many as the source had",
    PASSAGES: "passages of the source, each in one list",
    STATUSES: "statuses known",
    SNIPPETS: "snippets word for word in their passage",
    RANKS: "ranks in order",
    LABELS: "rows labelled as the policy says",
    COUNTS: "counts in run.json and card",
    FORMATS: "rows of trainers' formats",
}
"""What each check counts."""

DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".tsv", ".csv", ".arrow")
MOST_KEPT = 100
FORMAT_ROWS = 100  # rows at once to make a format of, which can be many times as long
SIDES = {one.label: (one.passages, one.snippets, one.ranks, one.origins) for one in (POSITIVE, NEGATIVE, FILTERED)}
OPTIONAL = (POSITIVE.ranks, NEGATIVE.ranks, FILTERED.ranks, RANKING)  # of a policy that needs no ranks
SNIPPET_COLUMNS = tuple(snippets for _, snippets, _, _ in SIDES.values())

Finding = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What is not as it must be, and where; ``row`` counts in its split, rows that a guard dropped last."""

    check: str
    message: str
    split: str | None = None
    row: int | None = None
    query_id: str | None = None

    def __str__(self) -> str:
        place = [] if self.split is None else [f"split {self.split}"]
        place += [] if self.row is None else [f"row {self.row}"]
        where = ", ".join(place) + (f" (query_id {self.query_id!r})" if self.row is not None else "")
        return f"{self.check}: {f'{where}: ' if where else ''}{self.message}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, how much of it, and what was found.

    ``violations`` holds the first hundred of each check, ``found`` counts all of them; ``notes`` says what could not
    be checked, and ``revision`` the commit of a repository.
    """

    path: Path
    checks: Mapping[str, int]
    violations: Sequence[Violation]
    found: Mapping[str, int]
    notes: Sequence[str] = ()
    revision: str | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was violated."""
        return not self.found


@dataclass
class _Record:
    """The state of a verification."""

    checks: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def done(self, check: str, count: int) -> None:
        self.checks[check] = self.checks.get(check, 0) + count

    def violated(self, check: str, message: str, **place: Any) -> None:
        self.found[check] = self.found.get(check, 0) + 1
        if self.found[check] <= MOST_KEPT:
            self.violations.append(Violation(check=check, message=message, **place))


def verify(
    dataset: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None, progress: bool = False
) -> Verification:
    """Verify a folder, or a repository of the Hub, which is downloaded whole.

    Raises:
        InputError: there is no such folder or repository, or it cannot be downloaded.
        ConfigurationError: it was not written by this package, or its ``run.json`` cannot be read.
    """
    if Path(dataset).is_dir():
        if revision is not None:
            raise ConfigurationError(f"{dataset} is a folder, and a revision ({revision}) goes with a repository.")
        return verify_folder(dataset, progress=progress)
    path, commit = downloaded(str(dataset), revision, token)
    return replace(verify_folder(path, progress=progress, name=str(dataset)), revision=commit)


def verify_folder(path: str | os.PathLike[str], *, progress: bool = False, name: str | None = None) -> Verification:
    """Verify a refined or a published folder, in bounded memory.

    Args:
        path: The folder.
        progress: Show bars.
        name: What messages call the folder.

    Raises:
        ConfigurationError: it was not written by this package, or its ``run.json`` cannot be read.
    """
    root, record = Path(path), _Record()
    run = read_run(root, name)
    _check_files(root, run, record, progress)
    try:
        folder = open_folder(root)
    except ConfigurationError as error:
        record.violated(FILES, str(error))
    else:
        _check_contents(folder, record, progress)
    return Verification(
        path=root,
        checks={check: record.checks[check] for check in CHECKS if check in record.checks},
        violations=record.violations,
        found=record.found,
        notes=record.notes,
    )


# The checks of rows: pure, a batch of wide rows in, (row in the batch, what is wrong) out.


def misplaced_passages(rows: pa.Table, optional: Sequence[str] = OPTIONAL) -> Iterator[Finding]:
    """Rows in which not every passage of the source stands exactly once, with all that goes along with it.

    ``optional`` are columns of evidence that may be null in a row; further evidence always may.
    """
    for side, (passages, *along) in SIDES.items():
        counts, _ = flat_lists(rows, passages)
        further = [f"{side}_{kind}" for kind in FURTHER_KINDS]
        for column in (*along, *further):
            if column not in rows.column_names:
                continue
            found, _ = flat_lists(rows, column)
            may_be_null = column in optional or column in further
            absent = is_null(one_array(rows.column(column))) if may_be_null else np.zeros(len(found), bool)
            for row in np.flatnonzero((found != counts) & ~absent):
                yield int(row), f"{column} has {found[row]} values for {counts[row]} passages in {passages}."
    known = pa.array(["positive", "negative"])
    parts: list[tuple[Integers, Integers, Integers]] = []
    for _, _, _, column in SIDES.values():
        counts, origins = flat_lists(rows, column)
        codes = pc.index_in(field_of(origins, "label", pa.string()), value_set=known)
        parts.append((rows_of(counts), _filled(codes, -1), _filled(field_of(origins, "position", pa.int32()), -1)))
    numbers, labels, places = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((places, labels, numbers))
    numbers, labels, places = numbers[order], labels[order], places[order]
    first = _starts(numbers) | _starts(labels)
    wrong = (labels < 0) | (places != _since(first))
    for at in np.unique(numbers[wrong]):
        said = "; ".join(
            f"{name}s at {places[(numbers == at) & (labels == code)].tolist()}"
            for code, name in ((0, "positive"), (1, "negative"), (-1, "neither"))
            if ((numbers == at) & (labels == code)).any()
        )
        message = f"its passages come from {said}; every place from 0 on was expected once. One was lost or doubled."
        yield int(at), message


def _filled(values: pa.Array, absent: int) -> Integers:
    filled: Integers = pc.fill_null(values, absent).to_numpy(zero_copy_only=False).astype(np.int64)
    return filled


def _starts(values: Integers) -> Any:
    """Where a value differs from the one before."""
    return np.append(True, np.diff(values) != 0)[: len(values)]


def _since(first: Any) -> Any:
    """How many values come between each and the start of its group."""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


def unknown_statuses(rows: pa.Table, *, unranked: bool) -> Iterator[Finding]:
    """Rows with a status that there is not; ``unranked`` allows rows without a ranking."""
    for _, column, _, _ in SIDES.values():
        counts, snippets = flat_lists(rows, column)
        statuses = field_of(snippets, "status", pa.string())
        for at in np.flatnonzero(~_among(statuses, SNIPPET_STATUSES)):
            yield int(rows_of(counts)[at]), _unknown(column, statuses[at].as_py(), SNIPPET_STATUSES)
    yield from _unknown_judgements(rows)
    for column, known in ((RANKING, RANKING_STATUSES), (DECISION, DECISION_STATUSES)):
        if column not in rows.column_names:
            continue
        statuses = field_of(one_array(rows.column(column)), "status", pa.string())
        fine = _among(statuses, known)
        if column == RANKING and unranked:
            fine |= is_null(statuses)
        for at in np.flatnonzero(~fine):
            yield int(at), _unknown(column, statuses[at].as_py(), known)


def _unknown_judgements(rows: pa.Table) -> Iterator[Finding]:
    """Verdicts and grades that there are not, and such without one that should have one."""
    for kind, name, values in (("verdicts", "verdict", VERDICTS), ("grades", "grade", GRADES)):
        type = pa.string() if kind == "verdicts" else pa.int32()
        for side in SIDES:
            column = f"{side}_{kind}"
            if column not in rows.column_names:
                continue
            counts, judged = flat_lists(rows, column)
            statuses, given = field_of(judged, "status", pa.string()), field_of(judged, name, type)
            # A passage that was not judged at all, as the positives that others are compared with, is null.
            for at in np.flatnonzero(~_among(statuses, JUDGEMENT_STATUSES) & ~is_null(statuses)):
                yield int(rows_of(counts)[at]), _unknown(column, statuses[at].as_py(), JUDGEMENT_STATUSES)
            known = pc.is_in(given, value_set=pa.array(values, type)).to_numpy(zero_copy_only=False)
            for at in np.flatnonzero(known != _among(statuses, (JUDGED, PARTIAL))):
                found, status = given[at].as_py(), statuses[at].as_py()
                expected = f"one of {', '.join(map(str, values))}" if status in (JUDGED, PARTIAL) else "none"
                yield int(rows_of(counts)[at]), f"{column} is {status} with the {name} {found!r}; {expected} expected."


def _among(statuses: pa.Array, known: Sequence[str]) -> Any:
    return pc.is_in(statuses, value_set=pa.array(known)).to_numpy(zero_copy_only=False)


def _unknown(column: str, status: str | None, known: Sequence[str]) -> str:
    return f"{column} has the status {status!r}; one of {', '.join(known)} was expected."


def ungrounded_snippets(rows: pa.Table) -> Iterator[Finding]:
    """Rows with a snippet that does not stand in its passage at its offsets, or with one where there must be none."""
    for side, (passages, column, _, _) in SIDES.items():
        counts, snippets = flat_lists(rows, column)
        _, texts = flat_lists(rows, passages)
        absent = is_null(one_array(rows.column(column)))
        if absent.any():  # those of the rows that have snippets
            lengths, _ = flat_lists(rows, passages)
            texts = texts.filter(pa.array(~np.repeat(absent, lengths)))
        value = {name: field_of(snippets, name, pa.string()) for name in ("status", "snippet", "field")}
        value |= {name: field_of(snippets, name, pa.int32()) for name in ("start", "end")}
        grounded = pc.fill_null(pc.equal(value["status"], GROUNDED), False).to_numpy(zero_copy_only=False)
        given = ~np.logical_and.reduce([is_null(value[name]) for name in ("snippet", "field", "start", "end")])
        row, place = rows_of(counts), within(counts)
        for at in np.flatnonzero(given & ~grounded):
            status = value["status"][at].as_py()
            yield int(row[at]), f"{side} {place[at]} is {status} and has a snippet or offsets; none were expected."
        where = pa.array(np.flatnonzero(grounded))
        row, place = row[grounded], place[grounded]
        value = {name: values.take(where) for name, values in value.items()}
        titled = pc.fill_null(pc.equal(value["field"], "title"), False)
        held = pc.if_else(
            titled,
            field_of(texts, "title", pa.string()).take(where),
            field_of(texts, "text", pa.string()).take(where),
        )
        start, end = _filled(value["start"], -1), _filled(value["end"], -1)
        nowhere = ~_among(value["field"], ("text", "title")) | is_null(held) | is_null(value["snippet"])
        nowhere |= (start < 0) | (end <= start)
        for at in np.flatnonzero(nowhere | ~_stand_in(held, value["snippet"], start, end)):
            text, snippet, begin, stop, named = (
                values[int(at)].as_py() for values in (held, *(value[n] for n in ("snippet", "start", "end", "field")))
            )
            said = (
                f"{side} {place[at]} is grounded, with the snippet {_quoted(snippet)} at {begin}:{stop} of its {named}"
            )
            if nowhere[at]:
                yield int(row[at]), f"{said}; words and their place in text or title were expected."
            else:
                yield int(row[at]), f"{said}, where there is {_quoted(text[begin:stop])}."


def _stand_in(texts: pa.Array, words: pa.Array, starts: Integers, ends: Integers) -> Any:
    """Whether each text has the words from one character to another; what is null is empty.

    No Arrow function slices each string by offsets of its own: the bytes are compared where they stand.
    """
    bounds, data = _bytes_of(texts)
    begins = np.flatnonzero((data & 0xC0) != 0x80)  # of the characters: all bytes but those that continue one
    first = np.searchsorted(begins, bounds)
    begins = np.append(begins, len(data))
    lengths = np.diff(first)
    left, right = (begins[first[:-1] + np.clip(places, 0, lengths)] for places in (starts, ends))
    own, wanted = _bytes_of(words)
    counts = np.diff(own)
    equal: Any = right - left == counts
    compared = np.where(equal, counts, 0)
    row, at = rows_of(compared), within(compared)
    differs = data[left[row] + at] != wanted[own[row] + at]
    equal[row[differs]] = False
    return equal


def _bytes_of(texts: pa.Array) -> tuple[Integers, Any]:
    """Where each text begins in the bytes of all, and where the last one ends; and these bytes."""
    filled = pc.fill_null(texts, "").cast(pa.large_binary())
    _, offsets, data = filled.buffers()
    bounds = np.frombuffer(offsets, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    values = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return bounds - bounds[0], values[bounds[0] : bounds[-1]]


def _quoted(text: str | None) -> str:
    return "null" if text is None else f"“{shorten(text, 60)}”"


def impossible_ranks(rows: pa.Table, rank_by: str) -> Iterator[Finding]:
    """Rows whose ranks do not count up from 1, or do not fit the candidates and the status of the ranking."""
    if not {RANKING, POSITIVE.ranks, NEGATIVE.ranks} <= set(rows.column_names):
        return
    count = rows.num_rows
    parts: list[tuple[Integers, Integers]] = []
    shown = np.zeros(count, np.int64)
    for _, snippets, column, _ in SIDES.values():
        counts, values = flat_lists(rows, column)
        parts.append((rows_of(counts), _filled(values, 0)))
        counts, values = flat_lists(rows, snippets)
        candidate = _among(field_of(values, "status", pa.string()), (GROUNDED,)) | (rank_by == "passage")
        shown += np.bincount(rows_of(counts)[candidate], minlength=count)
    numbers, ranks = (np.concatenate(values) for values in zip(*parts, strict=True))
    numbers, ranks = numbers[ranks != 0], ranks[ranks != 0]
    order = np.lexsort((ranks, numbers))
    numbers, ranks = numbers[order], ranks[order]
    new_row = _starts(numbers)
    # A rank is 1 and the number of passages that are better: equal ones share it and leave a gap.
    expected = 1 + _since(new_row) - _since(new_row | _starts(ranks))
    for at in np.unique(numbers[ranks != expected]):
        found, wanted = ranks[numbers == at].tolist(), expected[numbers == at].tolist()
        yield int(at), f"its ranks are {found}; 1 and the number of better passages would be {wanted}."
    placed = np.bincount(numbers, minlength=count)
    ranking = one_array(rows.column(RANKING))
    status = field_of(ranking, "status", pa.string())
    candidates = _filled(field_of(ranking, "candidates", pa.int32()), 0)
    skipped = _among(status, (SKIPPED,)) | is_null(status)
    for at in np.flatnonzero(candidates != np.where(skipped, 0, shown)):
        wanted = 0 if skipped[at] else shown[at]
        yield int(at), f"ranking has {candidates[at]} candidates, {status[at].as_py()}; its snippets make {wanted}."
    wrong = (_among(status, (RANKED,)) & (placed != candidates)) | (
        (_among(status, (ERROR, UNPARSED)) | skipped) & (placed != 0)
    )
    for at in np.flatnonzero(wrong):
        yield int(at), f"ranking is {status[at].as_py()}, and {placed[at]} of {candidates[at]} candidates have a rank."


def wrong_labels(rows: pa.Table, options: Decision) -> Iterator[Finding]:
    """Rows whose lists or decision are not those that the policy makes of their evidence."""
    decided = ~is_null(one_array(rows.column(DECISION)))
    for at in np.flatnonzero(~decided).tolist():
        yield at, "it has no decision; every row of a run has one."
    numbers = np.flatnonzero(decided)
    rows = rows if decided.all() else rows.take(pa.array(numbers))
    made = options.compute(_slim(rows))
    columns = {side: column for side, (_, _, _, column) in SIDES.items()}
    moved = np.logical_or.reduce([_lists_differ(rows, pa.table(made), column) for column in columns.values()])
    found, expected = one_array(rows.column(DECISION)), made[DECISION]
    differing = {
        field.name: _differ(field_of(found, field.name, field.type), field_of(expected, field.name, field.type))
        for field in DECISION_TYPE
    }
    for at in np.flatnonzero(np.logical_or.reduce([moved, *differing.values()])).tolist():
        if moved[at]:
            origins = {side: _places(rows.column(column)[at]) for side, column in columns.items()}
            wanted = {side: _places(made[column][at]) for side, column in columns.items()}
            yield int(numbers[at]), _moved(rows, at, origins, wanted, options)
            continue
        names = [name for name, differs in differing.items() if differs[at]]
        said = (", ".join(f"{name} {values[at].as_py().get(name)!r}" for name in names) for values in (found, expected))
        yield (
            int(numbers[at]),
            f"its decision says {next(said)}; policy {options.label} makes {next(said)} of this evidence.",
        )


def _slim(rows: pa.Table) -> pa.Table:
    """The rows with origins in the place of passages, and of the evidence only what relabelling looks at.

    What moves, moves as a whole, and only the labels are in question.
    """
    columns = {name: strings_of(rows, name) for name in (QUERY, QUERY_ID)} | {DECISION: rows.column(DECISION)}
    for side, (passages, snippets, ranks, origins) in SIDES.items():
        columns[origins] = columns[passages] = rows.column(origins)
        columns[snippets] = _statuses_alone(rows, snippets)
        for column in (ranks, *(f"{side}_{kind}" for kind in FURTHER_KINDS)):
            if column in rows.column_names:
                columns[column] = rows.column(column)
    return pa.table(columns)


def _lists_differ(rows: pa.Table, others: pa.Table, column: str) -> Any:
    """The rows in which two lists of origins differ."""
    (counts, found), (wanted, made) = (flat_lists(table, column) for table in (rows, others))
    wrong = counts != wanted
    here, there = np.flatnonzero(np.repeat(~wrong, counts)), pa.array(np.flatnonzero(np.repeat(~wrong, wanted)))
    for name, type in (("label", pa.string()), ("position", pa.int32())):
        one, other = field_of(found, name, type).take(pa.array(here)), field_of(made, name, type).take(there)
        wrong[rows_of(counts)[here[_differ(one, other)]]] = True
    return wrong


def _differ(one: pa.Array, other: pa.Array) -> Any:
    """Where two arrays differ; null equals null."""
    unequal = pc.fill_null(pc.not_equal(one, other), True)
    both = pc.and_(pc.is_null(one), pc.is_null(other))
    return pc.and_not(unequal, both).to_numpy(zero_copy_only=False)


def _statuses_alone(rows: pa.Table, column: str) -> pa.Array:
    counts, values = flat_lists(rows, column)
    absent = is_null(one_array(rows.column(column)))
    statuses = pa.StructArray.from_arrays([field_of(values, "status", pa.string())], ["status"])
    return lists_of(counts, statuses, absent=absent if absent.any() else None)


def _places(origins: pa.Scalar) -> list[tuple[str, int]]:
    return [(origin["label"], origin["position"]) for origin in origins.as_py()]


def _moved(
    rows: pa.Table,
    at: int,
    found: Mapping[str, list[tuple[str, int]]],
    wanted: Mapping[str, list[tuple[str, int]]],
    options: Decision,
) -> str:
    """The first passage that stands in another list than the policy puts it into."""
    target = {place: side for side, places in wanted.items() for place in places}
    for side, places in found.items():
        for i, place in enumerate(places):
            if target.get(place) != side:
                passage = rows.column(SIDES[side][0])[at].as_py()[i]
                return (
                    f"docid {passage.get('docid')!r}, {place[0]} {place[1]} of the source, stands in {side}_passages; "
                    f"policy {options.label} puts it into {target.get(place)}_passages by this evidence."
                )
    return f"its passages stand in another order than policy {options.label} puts them by this evidence."


# The checks of a folder.


def _check_files(root: Path, run: Mapping[str, Any], record: _Record, progress: bool) -> None:
    """Every listed file is there and has its content, and none stands beside it that would be loaded along."""
    listed = run.get("files")
    if not isinstance(listed, Mapping):
        record.notes.append(
            f"{RUN_FILE} lists no files: an earlier version wrote it. Passages that hold no snippet were not compared "
            "with what the run has written."
        )
        return
    with _bar("files", len(listed), progress) as advance:
        for path, facts in listed.items():
            if problem := _changed(root, path, facts):
                record.violated(FILES, f"{path} {problem}")
            advance(1)
    record.done(FILES, len(listed))
    folders = {Path(path).parts[0] for path in listed if len(Path(path).parts) > 1} - {"..", "/"}
    folders |= {DATA, DROPPED, EVIDENCE}
    for name in sorted(folders):
        for file in sorted((root / name).rglob("*")):
            path = file.relative_to(root).as_posix()
            if path not in listed and file.is_file() and file.suffix in DATA_SUFFIXES:
                record.violated(FILES, f"{path} was added: {RUN_FILE} does not list it. Move it out of {name}/.")


def _changed(root: Path, path: str, facts: Any) -> str | None:
    """What is not as ``run.json`` says of a file."""
    file = root / path
    if Path(path).is_absolute() or ".." in Path(path).parts or not isinstance(facts, Mapping):
        return f"is no entry of {RUN_FILE} as a run writes them."
    if not file.is_file():
        return f"is missing, and {RUN_FILE} lists it."
    found, written = sha256_of(file), str(facts.get("sha256"))
    return None if found == written else f"was changed: its SHA-256 is {found[:12]}…, and {written[:12]}… was written."


def _check_contents(folder: Folder, record: _Record, progress: bool) -> None:
    """All that is recomputed from the rows, which are read once."""
    options = _policy(folder.run, record)
    rank_by = _at(folder.run, "parameters", "ranks").get("rank_by", "snippet")
    expected = _at(folder.run, "source", "rows")

    with tempfile.TemporaryDirectory(prefix="arhn-verify-", ignore_cleanup_errors=True) as scratch:
        formats, tally = _Formats(folder, Path(scratch), record), Tally()
        for split in folder.splits:
            first, passages, kept = 0, 0, folder.count(split)
            try:
                formats.begin(split)
                with _bar(split, expected.get(split), progress) as advance:
                    for table in folder.tables(split):
                        tally.add(_check_rows(table, split, first, kept, options, rank_by, record))
                        if first < kept:
                            formats.write(table)
                        first += table.num_rows
                        passages += _evidence_rows(table)
                        advance(table.num_rows)
                formats.end()
                _check_sizes(folder, split, first, passages, record)
            except (SchemaError, pa.ArrowException, OSError) as error:
                message = f"{shorten(str(error), 500)} What comes after it in this split was not checked."
                record.violated(PASSAGES, message, split=split)
                formats.abandoned = True
        formats.close()
    _check_counts(folder, tally.report(), record)


class _Formats:
    """The trainers' formats of a published folder, made again from its rows as they are read, and compared.

    Where a row of a format depends on others, as in a corpus, it is written again and compared at the end.
    """

    def __init__(self, folder: Folder, scratch: Path, record: _Record) -> None:
        self.abandoned = False
        self._folder, self._scratch, self._record = folder, scratch, record
        self._split = ""
        self._stored: list[_Stored] = []
        published = _at(folder.run, "published")
        try:
            self._options = Options(**_at(published, "options"))
            self._formats = check_formats(published["formats"]) if published.get("formats") else ()
        except (ConfigurationError, TypeError) as error:
            record.violated(FORMATS, f"the formats in {RUN_FILE} are none: {error}")
            self._options, self._formats = Options(), ()
        rows = FolderSource(folder, folder.splits)
        self._writers = {
            name: writer_of(name, scratch, self._options, rows, published=True)
            for name in self._formats
            if name in (*RETRIEVAL, "flagembedding")
        }

    def begin(self, split: str) -> None:
        self._split = split
        for writer in self._writers.values():
            writer.begin(split)
        tables = [name for name in self._formats if name not in self._writers]
        self._stored = [self._stored_in(name, split) for name in tables]

    def write(self, rows: pa.Table) -> None:
        for writer in self._writers.values():
            writer.write(rows)
        for start in range(0, rows.num_rows, FORMAT_ROWS):
            for stored in self._stored:
                self._compare(stored, table_of(stored.name, rows.slice(start, FORMAT_ROWS), self._options)[0])

    def end(self) -> None:
        for writer in self._writers.values():
            writer.end()
        for stored in self._stored:
            self._compare(stored, None)

    def close(self) -> None:
        """Compare what was written again."""
        if self.abandoned:
            return
        tables: dict[tuple[str, str], list[Path]] = {}
        for writer in self._writers.values():
            for path, _ in writer.close().files:
                made = self._scratch / path
                if made.suffix == ".parquet":
                    tables.setdefault((Path(path).parent.as_posix(), made.name.rsplit("-", 3)[0]), []).append(made)
                    continue
                self._record.done(FORMATS, _at(self._folder.run, "files", path).get("rows", 0))
                if not (self._folder.path / path).is_file() or sha256_of(self._folder.path / path) != sha256_of(made):
                    self._record.violated(FORMATS, f"{path} is not what the rows make.")
        for (name, self._split), files in tables.items():
            stored = self._stored_in(name, self._split)
            for file in sorted(files):
                for table in read_tables(file):
                    self._compare(stored, table)
            self._compare(stored, None)

    def _stored_in(self, name: str, split: str) -> _Stored:
        return _Stored(name, sorted((self._folder.path / name).glob(f"{split}-*-of-*.parquet")))

    def _compare(self, stored: _Stored, made: pa.Table | None) -> None:
        before = stored.rows
        if difference := stored.difference(made):
            self._record.violated(FORMATS, difference, split=self._split)
        self._record.done(FORMATS, stored.rows - before)


class _Stored:
    """The rows of a format as they are in the folder, to be compared from the first to the last."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.rows = name, 0
        self._tables = (table for path in paths for table in read_tables(path))
        self._rest: pa.Table | None = None
        self._told = False

    def difference(self, made: pa.Table | None) -> str | None:
        """How the next rows differ from these, or with ``None`` from none at all; told once, the first time."""
        if self._told or (made is not None and not made.num_rows):
            return None
        first = self.rows
        found = self._take(1 if made is None else made.num_rows)
        message = None
        if made is None:
            message = f"{self.name} has more rows than the {first:,} that the rows make." if found.num_rows else None
        elif found.num_rows and found.schema != made.schema:
            message = f"{self.name} has the columns {found.schema.names}; its format has {made.schema.names}."
        elif not found.equals(made):
            at, there, wanted = _first_difference(found, made)
            message = f"row {first + at} of {self.name} is {there}; the rows make {wanted}."
        self._told = message is not None
        return message

    def _take(self, count: int) -> pa.Table:
        """The next rows; fewer at the end."""
        taken: list[pa.Table] = []
        while count > 0:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._tables, None)
                if self._rest is None:
                    break
            taken.append(self._rest.slice(0, count))
            self._rest = self._rest.slice(taken[-1].num_rows)
            count -= taken[-1].num_rows
            self.rows += taken[-1].num_rows
        return pa.concat_tables(taken) if taken else pa.table({})


def _first_difference(found: pa.Table, made: pa.Table) -> tuple[int, str, str]:
    rows, wanted = ([shorten(canonical_json(row), 1000) for row in table.to_pylist()] for table in (found, made))
    rows += ["no row"] * (len(wanted) - len(rows))
    at = next((at for at, pair in enumerate(zip(rows, wanted, strict=True)) if pair[0] != pair[1]), 0)
    return at, shorten(rows[at]), shorten(wanted[at])


def _policy(run: Mapping[str, Any], record: _Record) -> Decision | None:
    try:
        return rule_of(_at(run, "parameters", "relabel"))
    except (ConfigurationError, TypeError) as error:
        record.violated(LABELS, f"the relabel parameters in {RUN_FILE} are none: {error}")
        return None


def _at(run: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of ``run.json``; empty where it is not there."""
    found: Any = run
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _check_rows(
    table: pa.Table, split: str, first: int, kept: int, options: Decision | None, rank_by: str, record: _Record
) -> pa.Table:
    """Check a batch; those of its rows that can be counted."""
    # A rule over other evidence needs no snippets.
    optional = OPTIONAL if options is None or SNIPPETS in options.evidence_kinds else (*OPTIONAL, *SNIPPET_COLUMNS)
    missing = [column for column in EVIDENCE_TYPES if column not in (*table.column_names, *optional)]
    if missing:
        raise SchemaError(f"The rows lack the columns {missing}.")
    for column in SNIPPET_COLUMNS:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, EVIDENCE_TYPES[column]))
    numbers = np.arange(table.num_rows)

    def found(check: str, findings: Iterator[Finding]) -> set[int]:
        rows = set()
        for row, message in findings:
            query = strings_of(table, QUERY_ID)[row].as_py()
            record.violated(check, message, split=split, row=first + int(numbers[row]), query_id=query)
            rows.add(row)
        return rows

    record.done(PASSAGES, sum(int(flat_lists(table, passages)[0].sum()) for passages, *_ in SIDES.values()))
    broken = found(PASSAGES, misplaced_passages(table, optional))
    broken |= set(np.flatnonzero(is_null(one_array(table.column(DECISION)))).tolist())
    unranked = options is not None and RANKS not in options.evidence_kinds
    record.done(STATUSES, table.num_rows)
    found(STATUSES, unknown_statuses(table, unranked=unranked))
    if broken:  # what is aligned with nothing cannot be checked further
        sound = np.setdiff1d(numbers, np.fromiter(broken, np.int64))
        table, numbers = table.take(sound), sound
    record.done(SNIPPETS, _count_of(table, GROUNDED))
    found(SNIPPETS, ungrounded_snippets(table))
    record.done(RANKS, sum(len(pc.drop_null(flat_lists(table, c)[1])) for c in OPTIONAL[:3] if c in table.column_names))
    found(RANKS, impossible_ranks(table, rank_by))
    if options is not None:
        record.done(LABELS, table.num_rows)
        found(LABELS, wrong_labels(table, options))
    found(LABELS, _in_the_wrong_part(table, first + numbers, kept))
    return table


def _count_of(table: pa.Table, status: str) -> int:
    snippets = (flat_lists(table, column)[1] for _, column, _, _ in SIDES.values())
    return sum(int(_among(field_of(values, "status", pa.string()), (status,)).sum()) for values in snippets)


def _evidence_rows(table: pa.Table) -> int:
    """How many rows of evidence there are of a batch."""
    lengths: Integers = sum(
        (flat_lists(table, passages)[0] for passages, *_ in SIDES.values()), np.zeros(table.num_rows, np.int64)
    )
    return int(np.maximum(lengths, 1).sum())


def _in_the_wrong_part(table: pa.Table, numbers: Integers, kept: int) -> Iterator[Finding]:
    statuses = field_of(one_array(table.column(DECISION)), "status", pa.string())
    dropped = _among(statuses, (DROPPED_STATUS,))
    for at in np.flatnonzero(dropped != (numbers >= kept)):
        part = DATA if numbers[at] < kept else DROPPED
        yield int(at), f"its decision is {statuses[at].as_py()}, and it stands in {part}/."


def _check_sizes(folder: Folder, split: str, rows: int, passages: int, record: _Record) -> None:
    """Nothing was lost since the source, and there is evidence of nothing else."""
    import pyarrow.parquet as pq

    record.done(ROWS, rows)
    source = _at(folder.run, "source", "rows").get(split)
    if source != rows:
        record.violated(ROWS, f"{rows:,} rows; {RUN_FILE} says that the source had {source}.", split=split)
    if folder.layout == PUBLISHED:
        evidence = sum(pq.read_metadata(path).num_rows for path in folder.shards(split, EVIDENCE))
        if evidence != passages:
            message = f"{evidence:,} rows of evidence; the passages make {passages:,}."
            record.violated(PASSAGES, message, split=split)


def _check_counts(folder: Folder, report: Report, record: _Record) -> None:
    """The counts in ``run.json`` and in the card are those of the rows."""
    counted, stated = json.loads(json.dumps(report.to_json())), _at(folder.run, "counts")
    # Which subsets are counted together, where there are many, depends on the order of the rows.
    names = [ALL] if OTHER_SUBSETS in stated else list(dict.fromkeys([*stated, *counted]))
    for name in names:
        record.done(COUNTS, len(counted.get(name, {})))
        for key in dict.fromkeys([*stated.get(name, {}), *counted.get(name, {})]):
            said, found = (counts.get(name, {}).get(key) for counts in (stated, counted))
            if said != found:
                record.violated(COUNTS, f"{RUN_FILE} says that {key} of {name!r} is {said}; the rows make {found}.")
    try:
        card = (folder.path / CARD_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        record.violated(COUNTS, f"{CARD_FILE} cannot be read: {error}")
        return
    table = counts_table(report)
    if table not in card and OTHER_SUBSETS not in stated:
        missing = [line for line in table.splitlines() if line not in card]
        line = missing[0] if missing else table.splitlines()[0]
        record.violated(COUNTS, f"{CARD_FILE} does not hold the table of these counts; it lacks the line {line}")
    _check_card(folder, card, record)


def _check_card(folder: Folder, card: str, record: _Record) -> None:
    """What the card's metadata makes `datasets` load, and how many rows it promises."""
    metadata = _metadata(card)
    if metadata is None:
        record.violated(COUNTS, f"{CARD_FILE} has no metadata that can be read; configs were expected there.")
        return
    configs = {config.get("config_name"): config for config in _dicts(metadata.get("configs"))}
    files: dict[tuple[str, str], list[Path]] = {}
    for name, config in configs.items():
        for entry in _dicts(config.get("data_files")):
            paths = sorted(folder.path.glob(str(entry.get("path")))) if isinstance(entry.get("path"), str) else []
            files[str(name), str(entry.get("split"))] = paths
    for split in folder.splits:
        found = files.get(("default", split), [])
        if found != folder.shards(split):
            message = f"the default config of {CARD_FILE} loads {len(found)} files; those in {DATA}/ were expected."
            record.violated(COUNTS, message, split=split)
    for information in _dicts(metadata.get("dataset_info")):
        name = str(information.get("config_name", "default"))
        for entry in _dicts(information.get("splits")):
            split, said = str(entry.get("name")), entry.get("num_examples")
            if (name, split) in files:
                record.done(COUNTS, 1)
                rows = sum(_rows_in(folder, path) for path in files[name, split])
                if said != rows:
                    message = f"{CARD_FILE} says that config {name!r} has {said} rows; its files have {rows}."
                    record.violated(COUNTS, message, split=split)


def _rows_in(folder: Folder, path: Path) -> int:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return int(_at(folder.run, "files", path.relative_to(folder.path).as_posix()).get("rows", 0))


def _metadata(card: str) -> Mapping[str, Any] | None:
    import yaml

    parts = card.split("---\n", 2)
    try:
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    return found if isinstance(found, Mapping) else None


def _dicts(values: Any) -> list[Mapping[str, Any]]:
    values = [values] if isinstance(values, Mapping) else values
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


# The Hub, and bars.


def downloaded(repo_id: str, revision: str | None = None, token: str | None = None) -> tuple[Path, str]:
    """The files of a repository, and the commit that they are of.

    Raises:
        InputError: there is no such repository, or it cannot be downloaded.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # The commit first: a download alone would fall back to a cached copy where access is denied or there is no net.
        commit = str(HfApi(token=token).dataset_info(repo_id, revision=revision).sha)
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=commit, token=token)), commit
    except Exception as error:  # no public name covers what the transports of hub 0.x, 1.x and 2.x raise
        hint = "Check the name, the --revision, and the --token where it is private."
        if not isinstance(error, HFValidationError) and getattr(error, "response", None) is None:
            hint = (
                f"Check the connection to {constants.ENDPOINT} (HF_ENDPOINT), and the room in the cache "
                f"{constants.HF_HUB_CACHE} (HF_HOME), then run this again: what was downloaded is kept."
            )
        raise InputError(
            f"{repo_id}{f' at {revision}' if revision else ''} is no folder and cannot be downloaded: "
            f"{type(error).__name__}: {shorten(' '.join(str(error).split()), 300).rstrip('.')}. {hint}"
        ) from error


@contextmanager
def _bar(description: str, total: int | None, shown: bool) -> Iterator[Callable[[int], object]]:
    if not shown:
        yield lambda _: None
        return
    from datasets.utils import tqdm

    with tqdm(total=total, desc=f"{description:<8}", disable=None, leave=False) as bar:
        yield bar.update
