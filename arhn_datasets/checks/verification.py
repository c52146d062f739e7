"""Provenance that can be checked: whether a refined dataset is still what its run has written, without an LLM.

Every check is recomputed from the files: nothing that the dataset says of itself is believed twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks.format_checks import Formats
from arhn_datasets.checks.row_checks import (
    OPTIONAL,
    RANK_COLUMNS,
    SNIPPET_COLUMNS,
    Fault,
    among,
    impossible_ranks,
    misplaced_passages,
    ungrounded_snippets,
    unknown_statuses,
    wrong_labels,
)
from arhn_datasets.checks.violations import (
    CHECKS,
    COUNTS,
    FILES,
    LABELS,
    PASSAGES,
    RANKS,
    ROWS,
    SNIPPETS,
    STATUSES,
    Record,
    Violation,
)
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.card import counts_table
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, open_folder, sha256_of
from arhn_datasets.folder.readme import PUBLISHED, metadata_of
from arhn_datasets.folder.report import ALL, OTHER_SUBSETS, Report, Tally
from arhn_datasets.folder.run import RUN_FILE, Run, WrittenFile, read_run
from arhn_datasets.inputs.sources import folder_or_repository
from arhn_datasets.rows.arrow import (
    Integers,
    field_of,
    flat_field,
    flat_lists,
    is_null,
    lengths_in,
    one_array,
    strings_of,
)
from arhn_datasets.rows.records import DECISION, EVIDENCE_TYPES, GROUNDED, QUERY_ID, SIDES, shorten
from arhn_datasets.rows.records import DROPPED as DROPPED_STATUS
from arhn_datasets.rules.rule import Decision, rule_of

DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".tsv", ".csv", ".arrow")


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
    root, record = Path(path), Record()
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


# The checks of a folder.


def _check_files(root: Path, run: Run, record: Record, progress: bool) -> None:
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
    record.done(FILES, len(listed))
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


def _check_contents(folder: Folder, record: Record, progress: bool) -> None:
    """All that is recomputed from the rows, which are read once."""
    rule = _rule(folder.run, record)
    rank_by = folder.run.parameters.get("ranks", {}).get("rank_by", "snippet")
    with tempfile.TemporaryDirectory(prefix="arhn-verify-", ignore_cleanup_errors=True) as scratch:
        formats, tally = Formats(folder, Path(scratch), record), Tally()
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
                formats.abandoned = True
        formats.close()
    _check_counts(folder, tally.report(), record)


def _rule(run: Run, record: Record) -> Decision | None:
    try:
        return rule_of(run.relabel)
    except (ConfigurationError, TypeError) as error:
        record.violated(LABELS, f"the relabel parameters in {RUN_FILE} are none: {error}")
        return None


def _check_rows(
    table: pa.Table, split: str, first: int, kept: int, rule: Decision | None, rank_by: str, record: Record
) -> pa.Table:
    """Check a batch; those of its rows that can be counted."""
    # A rule over other evidence needs no snippets.
    optional = OPTIONAL if rule is None or SNIPPETS in rule.evidence_kinds else (*OPTIONAL, *SNIPPET_COLUMNS)
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
            query = strings_of(table, QUERY_ID)[row].as_py()
            record.violated(check, message, split=split, row=first + int(numbers[row]), query_id=query)
            rows.add(row)
        return rows

    record.done(PASSAGES, int(_passages_in(table).sum()))
    broken = found(PASSAGES, misplaced_passages(table, optional))
    broken |= set(np.flatnonzero(is_null(one_array(table.column(DECISION)))).tolist())
    unranked = rule is not None and RANKS not in rule.evidence_kinds
    record.done(STATUSES, table.num_rows)
    found(STATUSES, unknown_statuses(table, unranked=unranked))
    if broken:  # what is aligned with nothing cannot be checked further
        sound = np.setdiff1d(numbers, np.fromiter(broken, np.int64))
        table, numbers = table.take(sound), sound
    statuses = (flat_field(table, column, "status", pa.string())[1] for column in SNIPPET_COLUMNS)
    record.done(SNIPPETS, sum(int(among(values, (GROUNDED,)).sum()) for values in statuses))
    found(SNIPPETS, ungrounded_snippets(table))
    record.done(RANKS, sum(len(pc.drop_null(flat_lists(table, c)[1])) for c in RANK_COLUMNS if c in table.column_names))
    found(RANKS, impossible_ranks(table, rank_by))
    if rule is not None:
        record.done(LABELS, table.num_rows)
        found(LABELS, wrong_labels(table, rule))
    found(LABELS, _in_the_wrong_part(table, first + numbers, kept))
    return table


def _passages_in(table: pa.Table) -> Integers:
    """How many passages each row has."""
    lengths: Integers = np.sum([lengths_in(table, side.passages)[0] for side in SIDES], axis=0)
    return lengths


def _in_the_wrong_part(table: pa.Table, numbers: Integers, kept: int) -> Iterator[Fault]:
    statuses = field_of(one_array(table.column(DECISION)), "status", pa.string())
    dropped = among(statuses, (DROPPED_STATUS,))
    for at in np.flatnonzero(dropped != (numbers >= kept)):
        part = DATA if numbers[at] < kept else DROPPED
        yield int(at), f"its decision is {statuses[at].as_py()}, and it stands in {part}/."


def _check_sizes(folder: Folder, split: str, rows: int, passages: int, record: Record) -> None:
    """Nothing was lost since the source, and there is evidence of nothing else."""
    import pyarrow.parquet as pq

    record.done(ROWS, rows)
    expected = folder.run.source.rows.get(split)
    if expected != rows:
        record.violated(ROWS, f"{rows:,} rows; {RUN_FILE} says that the source had {expected}.", split=split)
    if folder.layout == PUBLISHED:
        evidence = sum(pq.read_metadata(path).num_rows for path in folder.shards(split, EVIDENCE))
        if evidence != passages:
            message = f"{evidence:,} rows of evidence; the passages make {passages:,}."
            record.violated(PASSAGES, message, split=split)


def _check_counts(folder: Folder, report: Report, record: Record) -> None:
    """The counts in ``run.json`` and in the card are those of the rows."""
    counted, stated = json.loads(json.dumps(report.to_json())), folder.run.get("counts") or {}
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
    _check_card(folder, record)


def _check_card(folder: Folder, record: Record) -> None:
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
                record.done(COUNTS, 1)
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
