"""A refined dataset in a folder: its files, and its rows in bounded memory.

There are two layouts. ``arhn-refine`` writes wide rows, that is rows with their evidence columns (*refined*). What goes
to the Hub has the rows for trainers in ``data`` and the evidence beside them (*published*). Both are read as wide rows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.evidence_table import ROW, join_evidence, joined_of, wide_schema
from arhn_datasets.folder.readme import PUBLISHED, REFINED
from arhn_datasets.folder.run import HALF_WRITTEN, RUN_FILE, Run, read_run
from arhn_datasets.rows.arrow import Integers, one_array
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, Row

CARD_FILE = "README.md"
DATA, DROPPED, EVIDENCE = "data", "dropped", "evidence"
BATCH_ROWS = 1000
BATCH_BYTES = 64_000_000  # of the largest batch that is read, whatever the number of rows

_SHARD = re.compile(r"(?P<split>[^/]+)-(?P<index>\d{5})-of-(?P<shards>\d{5})\.parquet")
_EVIDENCE_ROWS = 20_000
_HASHED = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that ``arhn-refine`` has written, or one that was built for the Hub.

    ``splits`` are in the order of the source. The rows of a split are those for trainers, then those that a guard
    dropped; a row's number in this order is what the evidence names it by.
    """

    path: Path
    run: Run
    layout: str
    splits: tuple[str, ...]

    def shards(self, split: str, part: str = DATA) -> list[Path]:
        """The files of a split in a part of the folder, in order."""
        return sorted((self.path / part).glob(f"{split}-*-of-*.parquet"))

    def schema(self, split: str) -> pa.Schema:
        """The columns of the wide rows."""
        found = self.features_schema(split).remove_metadata()
        if self.layout == REFINED:
            return found
        return wide_schema(found, joined_of(self.features_schema(split, EVIDENCE).names))

    def features_schema(self, split: str, part: str = DATA) -> pa.Schema:
        """The columns as they stand in a part of the folder, with the metadata of `datasets`."""
        return _metadata(self.shards(split, part)[0]).schema.to_arrow_schema()

    def count(self, split: str, part: str = DATA) -> int:
        """The number of rows of a split in a part of the folder."""
        return sum(_metadata(path).num_rows for path in self.shards(split, part))

    def tables(
        self,
        split: str,
        batch_rows: int = BATCH_ROWS,
        *,
        part: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Wide rows in tables of up to ``batch_rows``, fewer where rows are long.

        They are of :data:`DATA` and then of :data:`DROPPED`, or of one ``part`` alone, with those of ``columns`` that
        are there, by default all.
        """
        if split not in self.splits:
            raise ConfigurationError(f"{self.path} has no split {split!r}; its splits are {list(self.splits)}.")
        joins = self.layout == PUBLISHED and (columns is None or not ALL_EVIDENCE_TYPES.keys().isdisjoint(columns))
        first = self.count(split) if joins and part == DROPPED else 0
        evidence = _Evidence(self.shards(split, EVIDENCE))
        for name in (DATA, DROPPED) if part is None else (part,):
            for path in self.shards(split, name):
                for table in read_tables(path, batch_rows, None if joins else columns):
                    if not joins:
                        yield table
                        continue
                    wide = join_evidence(table, evidence.take(first, table.num_rows))
                    first += table.num_rows
                    yield wide if columns is None else wide.select([c for c in columns if c in wide.column_names])

    def rows(self, split: str | None = None) -> Iterator[Row]:
        """Wide rows of one split or of all."""
        for name in self.splits if split is None else (split,):
            for table in self.tables(name, 64):
                yield from table.to_pylist()


class _Evidence:
    """The evidence of a split, read forwards."""

    def __init__(self, shards: list[Path]) -> None:
        self._tables = (table for path in shards for table in read_tables(path, _EVIDENCE_ROWS))
        self._read: list[tuple[pa.Table, Integers]] = []

    def take(self, first: int, count: int) -> pa.Table:
        """The evidence of ``count`` rows from number ``first`` on; none of what was before can be asked again."""
        end = first + count
        while not self._read or not len(self._read[-1][1]) or self._read[-1][1][-1] < end:
            table = next(self._tables, None)
            if table is None:
                break
            numbers: Integers = one_array(table.column(ROW)).to_numpy()
            if (np.diff(numbers) < 0).any():
                raise SchemaError(
                    f"The evidence of row {numbers.max()} stands before that of another row; it was expected in the "
                    "order of the rows. Fetch the published files again."
                )
            self._read.append((table, numbers))
        taken, kept = [], []
        for table, numbers in self._read:
            start, stop = np.searchsorted(numbers, (first, end))
            taken.append(table.slice(start, stop - start))
            kept += [(table.slice(stop), numbers[stop:])] if stop < table.num_rows else []
        self._read = kept
        if not taken:
            raise SchemaError(f"The evidence ends before row {first}. Fetch the published files again.")
        return pa.concat_tables(taken)


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Open a refined or a published folder.

    Raises:
        ConfigurationError: it is no such folder, or a part of it is missing or cannot be read.
    """
    root = Path(path)
    run = read_run(root)
    layout = PUBLISHED if "published" in run else REFINED
    parts = {part: _shards(root / part) for part in (DATA, DROPPED, EVIDENCE)}
    if not parts[DATA]:
        raise ConfigurationError(f"{root} has a {RUN_FILE} and no {DATA}/SPLIT-*.parquet. {HALF_WRITTEN}")
    splits = tuple(dict.fromkeys([name for name in run.source.rows if name in parts[DATA]] + sorted(parts[DATA])))
    if missing := [name for name in run.source.rows if name not in parts[DATA]]:
        raise ConfigurationError(f"{root} lacks the splits {missing} that its {RUN_FILE} names. {HALF_WRITTEN}")
    if without := [name for name in splits if layout == PUBLISHED and name not in parts[EVIDENCE]]:
        raise ConfigurationError(f"{root} lacks the {EVIDENCE} of the splits {without}. {HALF_WRITTEN}")
    for part, found in parts.items():
        for split, shards in found.items():
            _check_shards(root / part, split, shards)
    return Folder(path=root, run=run, layout=layout, splits=splits)


def read_rows(folder: str | os.PathLike[str], split: str | None = None) -> Iterator[Row]:
    """The wide rows of a folder, of one split or of all, in each those that a guard dropped behind the others."""
    return open_folder(folder).rows(split)


def read_tables(path: Path, batch_rows: int = BATCH_ROWS, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a parquet file in tables of up to ``batch_rows``, and of some :data:`BATCH_BYTES`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:  # or it holds every group that it has read
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
        limit = max(1, min(batch_rows, int(BATCH_BYTES / max(1, largest))))
        found = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(limit, columns=found):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def describe_files(root: Path) -> dict[str, dict[str, Any]]:
    """SHA-256, rows and bytes of every data file in a folder, by its path there; what ``run.json`` says of them."""
    found = sorted(path for suffix in ("parquet", "jsonl", "tsv") for path in root.rglob(f"*.{suffix}"))
    return {
        name.as_posix(): {"sha256": sha256_of(path), "rows": _rows_in(path), "bytes": path.stat().st_size}
        for name, path in ((path.relative_to(root), path) for path in found)
        if not any(part.startswith(".") for part in name.parts)
    }


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED):
            found.update(chunk)
    return found.hexdigest()


def _shards(folder: Path) -> dict[str, list[re.Match[str]]]:
    found: dict[str, list[re.Match[str]]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        if match := _SHARD.fullmatch(path.name):
            found.setdefault(match["split"], []).append(match)
    return found


def _check_shards(folder: Path, split: str, shards: list[re.Match[str]]) -> None:
    count = int(shards[0]["shards"])
    wrong = [shard[0] for shard in shards if int(shard["shards"]) != count or int(shard["index"]) >= count]
    there = Counter(int(shard["index"]) for shard in shards)
    missing = [f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count) if index not in there]
    if wrong or missing:
        raise ConfigurationError(
            f"{folder} holds {len(shards)} files of the split {split!r}, and {count} were expected; "
            f"{'missing: ' + missing[0] if missing else 'not of the others: ' + wrong[0]}. {HALF_WRITTEN}"
        )
    for shard in shards:
        try:
            _metadata(folder / shard[0])
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{folder / shard[0]} cannot be read: {error}. {HALF_WRITTEN}") from error


def _rows_in(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(_metadata(path).num_rows)
    with path.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_HASHED), b""))
    return lines - (path.suffix == ".tsv")  # its header


def _metadata(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_metadata(path)
