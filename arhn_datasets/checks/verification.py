"""Provenance that can be checked: whether a refined dataset is still what its run has written, without an LLM.

Every check is recomputed from the files: nothing that the dataset says of itself is believed twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks import row_checks
from arhn_datasets.checks.row_checks import RANK_COLUMNS, SNIPPET_COLUMNS, Fault, among
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder import reading
from arhn_datasets.folder.card import counts_table
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, read_tables, sha256_of
from arhn_datasets.folder.readme import PUBLISHED, metadata_of
from arhn_datasets.folder.report import ALL, OTHER_SUBSETS, Report, Tally
from arhn_datasets.folder.run import RUN_FILE, Published, Run, WrittenFile, read_run
from arhn_datasets.formats.format import Format, Options, chosen_formats, table_of
from arhn_datasets.formats.writers import split_rows_of
from arhn_datasets.inputs.sources import folder_or_repository
from arhn_datasets.rows import arrow, records
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, one_array
from arhn_datasets.rows.records import DECISION, EVIDENCE_TYPES, GROUNDED, SIDES, shorten
from arhn_datasets.rules.rule import Decision, rule_of

CHECKS: Mapping[str, str] = {
    "files": "files as they were written",
    "rows": "rows, as many as the source had",
    "passages": "passages of the source, each in one list",
    "statuses": "statuses known",
    "snippets": "snippets word for word in their passage",
    "ranks": "ranks in order",
    "labels": "rows labelled as the policy says",
    "counts": "counts in run.json and card",
    "formats": "rows of trainers' formats",
}
"""What each check counts."""

FILES, ROWS, PASSAGES, STATUSES, SNIPPETS, RANKS, LABEL_CHECK, COUNTS, FORMATS = CHECKS
MOST_KEPT = 100
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".tsv", ".csv", ".arrow")
FORMAT_ROWS = 100  # rows at once to make a format of, which can be many times as long


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What is not as it must be, and where; ``row`` counts in its split, rows that a guard dropped last."""

    check: str
    message: str
    split: str | None = None
    row: int | None = None
    query_id: str | None = None

    def __str__(self) -> str:
        place = [f"{name} {at}" for name, at in (("split", self.split), ("row", self.row)) if at is not None]
        where = ", ".join(place) + (f" (query_id {self.query_id!r})" if self.row is not None else "")
        return f"{self.check}: {f'{where}: ' if where else ''}{self.message}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, how much of it, and what was found.

    ``violations`` holds the first hundred of each check, ``found`` counts all of them; ``notes`` says what could not
    be checked, and ``revision`` the commit of a repository.
    """

    path: Path
    checks: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    revision: str | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was violated."""
        return not self.found

    def violated(self, check: str, message: str, **place: Any) -> None:
        """Something is not as it must be."""
        self.found[check] += 1
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
    path, commit = folder_or_repository(dataset, revision, token)
    return replace(verify_folder(path, progress=progress, name=os.fspath(dataset)), revision=commit)


def verify_folder(path: str | os.PathLike[str], *, progress: bool = False, name: str | None = None) -> Verification:
    """Verify a refined or a published folder, in bounded memory.

    Args:
        path: The folder.
        progress: Show bars.
        name: What messages call the folder.

    Raises:
        ConfigurationError: it was not written by this package, or its ``run.json`` cannot be read.
    """
    root = Path(path)
    run, record = read_run(root, name), Verification(path=root)
    _check_files(root, run, record, progress)
    try:
        folder = reading.open_folder(root)
    except ConfigurationError as error:
        record.violated(FILES, str(error))
    else:
        _check_contents(folder, record, progress)
    return replace(record, checks=Counter({check: record.checks[check] for check in CHECKS if check in record.checks}))


def _check_files(root: Path, run: Run, record: Verification, progress: bool) -> None:
    """Every listed file is there and has its content, and none stands beside it that would be loaded along."""
    listed = run.files
    if listed is None:
        record.notes.append(
            f"{RUN_FILE} lists no files: an earlier version wrote it. Passages that hold no snippet were not compared "
            "with what the run has written."
        )
        return
    with _bar("files", len(listed), progress) as advance:
        for path, written in listed.items():
            if problem := _changed(root, path, written):
                record.violated(FILES, f"{path} {problem}")
            advance(1)
    record.checks[FILES] += len(listed)
    folders = {Path(path).parts[0] for path in listed if len(Path(path).parts) > 1} - {"..", "/"}
    folders |= {DATA, DROPPED, EVIDENCE}
    for name in sorted(folders):
        for file in sorted((root / name).rglob("*")):
            path = file.relative_to(root).as_posix()
            if path not in listed and file.is_file() and file.suffix in DATA_SUFFIXES:
                record.violated(FILES, f"{path} was added: {RUN_FILE} does not list it. Move it out of {name}/.")


def _changed(root: Path, path: str, written: WrittenFile) -> str | None:
    """What is not as ``run.json`` says of a file."""
    file = root / path
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return f"is no entry of {RUN_FILE} as a run writes them."
    if not file.is_file():
        return f"is missing, and {RUN_FILE} lists it."
    found, expected = sha256_of(file), str(written.sha256)
    changed = f"was changed: its SHA-256 is {found[:12]}…, and {expected[:12]}… was written."
    return None if found == expected else changed


def _check_contents(folder: Folder, record: Verification, progress: bool) -> None:
    """All that is recomputed from the rows, which are read once."""
    rule: Decision | None = None
    try:
        rule = rule_of(folder.run.relabel)
    except (ConfigurationError, TypeError) as error:
        record.violated(LABEL_CHECK, f"the relabel parameters in {RUN_FILE} are none: {error}")
    rank_by = folder.run.parameters.get("ranks", {}).get("rank_by", "snippet")
    with tempfile.TemporaryDirectory(prefix="arhn-verify-", ignore_cleanup_errors=True) as scratch:
        formats, tally, whole = _Formats(folder, Path(scratch), record), Tally(), True
        for split in folder.splits:
            first, passages, kept = 0, 0, folder.count(split)
            try:
                formats.begin(split)
                with _bar(split, folder.run.source.rows.get(split), progress) as advance:
                    for table in folder.tables(split):
                        tally.add(_check_rows(table, split, first, kept, rule, rank_by, record))
                        if first < kept:
                            formats.write(table)
                        first += table.num_rows
                        passages += int(np.maximum(_passages_in(table), 1).sum())  # a row without any has evidence
                        advance(table.num_rows)
                formats.end()
                _check_sizes(folder, split, first, passages, record)
            except (SchemaError, pa.ArrowException, OSError) as error:
                message = f"{shorten(str(error), 500)} What comes after it in this split was not checked."
                record.violated(PASSAGES, message, split=split)
                whole = False
        if whole:
            formats.close()
    _check_counts(folder, tally.report(), record)


def _check_rows(
    table: pa.Table, split: str, first: int, kept: int, rule: Decision | None, rank_by: str, record: Verification
) -> pa.Table:
    """Check a batch; those of its rows that can be counted."""
    # A rule over other evidence needs no snippets.
    needs_snippets = rule is None or "snippets" in rule.evidence_kinds
    optional = row_checks.OPTIONAL if needs_snippets else (*row_checks.OPTIONAL, *SNIPPET_COLUMNS)
    missing = [column for column in EVIDENCE_TYPES if column not in (*table.column_names, *optional)]
    if missing:
        raise SchemaError(f"The rows lack the columns {missing}.")
    for column in SNIPPET_COLUMNS:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, EVIDENCE_TYPES[column]))
    numbers = np.arange(table.num_rows)

    def found(check: str, faults: Iterator[Fault]) -> set[int]:
        rows = set()
        for row, message in faults:
            query = arrow.strings_of(table, records.QUERY_ID)[row].as_py()
            record.violated(check, message, split=split, row=first + int(numbers[row]), query_id=query)
            rows.add(row)
        return rows

    record.checks[PASSAGES] += int(_passages_in(table).sum())
    broken = found(PASSAGES, row_checks.misplaced_passages(table, optional))
    broken |= set(np.flatnonzero(arrow.is_null(one_array(table.column(DECISION)))).tolist())
    record.checks[STATUSES] += table.num_rows
    unranked = rule is not None and "ranks" not in rule.evidence_kinds
    found(STATUSES, row_checks.unknown_statuses(table, unranked=unranked))
    if broken:  # what is aligned with nothing cannot be checked further
        sound = np.setdiff1d(numbers, np.fromiter(broken, np.int64))
        table, numbers = table.take(sound), sound
    statuses = (arrow.flat_field(table, column, "status", pa.string())[1] for column in SNIPPET_COLUMNS)
    record.checks[SNIPPETS] += sum(int(among(values, (GROUNDED,)).sum()) for values in statuses)
    found(SNIPPETS, row_checks.ungrounded_snippets(table))
    ranks = (flat_lists(table, column)[1] for column in RANK_COLUMNS if column in table.column_names)
    record.checks[RANKS] += sum(len(pc.drop_null(values)) for values in ranks)
    found(RANKS, row_checks.impossible_ranks(table, rank_by))
    if rule is not None:
        record.checks[LABEL_CHECK] += table.num_rows
        found(LABEL_CHECK, row_checks.wrong_labels(table, rule))
    found(LABEL_CHECK, _in_the_wrong_part(table, first + numbers, kept))
    return table


def _passages_in(table: pa.Table) -> Integers:
    """How many passages each row has."""
    lengths: Integers = np.sum([arrow.lengths_in(table, side.passages)[0] for side in SIDES], axis=0)
    return lengths


def _in_the_wrong_part(table: pa.Table, numbers: Integers, kept: int) -> Iterator[Fault]:
    statuses = field_of(one_array(table.column(DECISION)), "status", pa.string())
    for at in np.flatnonzero(among(statuses, (records.DROPPED,)) != (numbers >= kept)):
        part = DATA if numbers[at] < kept else DROPPED
        yield int(at), f"its decision is {statuses[at].as_py()}, and it stands in {part}/."


def _check_sizes(folder: Folder, split: str, rows: int, passages: int, record: Verification) -> None:
    """Nothing was lost since the source, and there is evidence of nothing else."""
    record.checks[ROWS] += rows
    expected = folder.run.source.rows.get(split)
    if expected != rows:
        record.violated(ROWS, f"{rows:,} rows; {RUN_FILE} says that the source had {expected}.", split=split)
    if folder.layout == PUBLISHED:
        evidence = folder.count(split, EVIDENCE)
        if evidence != passages:
            message = f"{evidence:,} rows of evidence; the passages make {passages:,}."
            record.violated(PASSAGES, message, split=split)


def _check_counts(folder: Folder, report: Report, record: Verification) -> None:
    """The counts in ``run.json`` and in the card are those of the rows."""
    counted, stated = json.loads(json.dumps(report.to_json())), folder.run.get("counts") or {}
    # Which subsets are counted together, where there are many, depends on the order of the rows.
    names = [ALL] if OTHER_SUBSETS in stated else list(dict.fromkeys([*stated, *counted]))
    for name in names:
        record.checks[COUNTS] += len(counted.get(name, {}))
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
    _check_card(folder, record)


def _check_card(folder: Folder, record: Verification) -> None:
    """What the card's metadata makes `datasets` load, and how many rows it promises."""
    metadata = metadata_of(folder.path / CARD_FILE)
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
                record.checks[COUNTS] += 1
                rows = sum(_rows_in(folder, path) for path in files[name, split])
                if said != rows:
                    message = f"{CARD_FILE} says that config {name!r} has {said} rows; its files have {rows}."
                    record.violated(COUNTS, message, split=split)


def _rows_in(folder: Folder, path: Path) -> int:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return folder.run.rows_of(path.relative_to(folder.path).as_posix())


def _dicts(values: Any) -> list[Mapping[str, Any]]:
    values = [values] if isinstance(values, Mapping) else values
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


@contextmanager
def _bar(description: str, total: int | None, shown: bool) -> Iterator[Callable[[int], object]]:
    if not shown:
        yield lambda _: None
        return
    from datasets.utils import tqdm

    with tqdm(total=total, desc=f"{description:<8}", disable=None, leave=False) as bar:
        yield bar.update


# --- formats ----------------------------------------------------------------------------------------------------------


class _Formats:
    """The trainers' formats of a published folder, made again from its rows as they are read, and compared.

    Where a row of a format depends on others, as in a corpus, it is written again and compared at the end.
    """

    def __init__(self, folder: Folder, scratch: Path, record: Verification) -> None:
        self._folder, self._scratch, self._record = folder, scratch, record
        self._split, self._stored = "", list[StoredRows]()
        published = folder.run.published or Published()
        try:
            self._options = Options(**published.options)
            formats: Mapping[str, Format] = chosen_formats(published.formats) if published.formats else {}
        except (ConfigurationError, TypeError) as error:
            record.violated(FORMATS, f"the formats in {RUN_FILE} are none: {error}")
            self._options, formats = Options(), {}
        self._tables = [name for name, format in formats.items() if format.rowwise]
        self._writers = [
            format.open(format, scratch, self._options, split_rows_of(folder), True)
            for format in formats.values()
            if not format.rowwise
        ]

    def begin(self, split: str) -> None:
        self._split = split
        for writer in self._writers:
            writer.begin(split)
        self._stored = [self._stored_in(name) for name in self._tables]

    def write(self, rows: pa.Table) -> None:
        for writer in self._writers:
            writer.write(rows)
        for start in range(0, rows.num_rows, FORMAT_ROWS):
            for stored in self._stored:
                self._compare(stored, table_of(stored.name, rows.slice(start, FORMAT_ROWS), self._options)[0])

    def end(self) -> None:
        for writer in self._writers:
            writer.end()
        for stored in self._stored:
            self._compare(stored, None)

    def close(self) -> None:
        tables: dict[tuple[str, str], list[Path]] = {}
        for path in (path for writer in self._writers for path, _ in writer.close().files):
            made, there = self._scratch / path, self._folder.path / path
            if made.suffix == ".parquet":
                tables.setdefault((Path(path).parent.as_posix(), made.name.rsplit("-", 3)[0]), []).append(made)
                continue
            self._record.checks[FORMATS] += self._folder.run.rows_of(path)
            if not there.is_file() or sha256_of(there) != sha256_of(made):
                self._record.violated(FORMATS, f"{path} is not what the rows make.")
        for (name, self._split), files in tables.items():
            stored = self._stored_in(name)
            for table in (table for file in sorted(files) for table in read_tables(file)):
                self._compare(stored, table)
            self._compare(stored, None)

    def _stored_in(self, name: str) -> StoredRows:
        return StoredRows(name, sorted((self._folder.path / name).glob(f"{self._split}-*-of-*.parquet")))

    def _compare(self, stored: StoredRows, made: pa.Table | None) -> None:
        before = stored.rows
        if difference := stored.difference(made):
            self._record.violated(FORMATS, difference, split=self._split)
        self._record.checks[FORMATS] += stored.rows - before


class StoredRows:
    """The rows of a format as they are in the folder, to be compared from the first to the last."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.rows = name, 0
        self._tables = (table for path in paths for table in read_tables(path))
        self._rest, self._differs = pa.table({}), False

    def difference(self, made: pa.Table | None) -> str | None:
        """How the next rows differ from these, or with ``None`` from none at all; said once, the first time."""
        if self._differs or (made is not None and not made.num_rows):
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
        self._differs = message is not None
        return message

    def _take(self, count: int) -> pa.Table:
        """The next rows; fewer at the end."""
        while self._rest.num_rows < count and (table := next(self._tables, None)) is not None:
            self._rest = pa.concat_tables([self._rest, table]) if self._rest.num_rows else table
        count = min(count, self._rest.num_rows)  # or a table without columns would seem to have so many rows
        taken, self._rest = self._rest.slice(0, count), self._rest.slice(count)
        self.rows += count
        return taken


def _first_difference(found: pa.Table, made: pa.Table) -> tuple[int, str, str]:
    rows, wanted = (
        [shorten(records.canonical_json(row), 1000) for row in table.to_pylist()] for table in (found, made)
    )
    rows += ["no row"] * (len(wanted) - len(rows))
    at = next((at for at, pair in enumerate(zip(rows, wanted, strict=True)) if pair[0] != pair[1]), 0)
    return at, shorten(rows[at]), shorten(wanted[at])
