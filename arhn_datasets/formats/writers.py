"""The writers of formats: canonical rows go in, split after split, and files come out."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from arhn_datasets.folder.card_content import Config
from arhn_datasets.folder.parquet import Shards, features_of
from arhn_datasets.folder.reading import BATCH_ROWS
from arhn_datasets.rows.arrow import flat_lists
from arhn_datasets.rows.records import POSITIVE

if TYPE_CHECKING:
    from arhn_datasets.formats.format import Format, Options
    from arhn_datasets.formats.split_rows import SplitRows

EXPANDED_BYTES = 256_000_000  # of the rows that one batch may become


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written in one format.

    ``files`` are paths in the output with their bytes, ``rows`` the rows of each split; a format that ``load_dataset``
    does not load has no configuration. ``left_out`` counts rows by reason.
    """

    format: str
    files: tuple[tuple[str, int], ...]
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    configs: Mapping[str, Config] = field(default_factory=dict)


class Writer(Protocol):
    """A format on its way into files: for each split ``begin``, ``write`` and ``end``, then ``close``."""

    def begin(self, split: str) -> None:
        """Start a split."""

    def write(self, rows: pa.Table) -> None:
        """Add canonical rows, with their filtered passages and decisions where they have them."""

    def end(self) -> None:
        """Finish the split."""

    def close(self) -> Written:
        """Finish the format."""


class TableWriter:
    """A format of one parquet table."""

    def __init__(self, format: Format, root: Path, options: Options, rows: SplitRows, published: bool) -> None:
        (self._table,) = format.tables
        self._format, self._folder, self._options = format, root / format.name, options
        self._paths: list[Path] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._left_out: Counter[str] = Counter()

    def begin(self, split: str) -> None:
        """Start a split."""
        self._split, self._out = split, self._open(split)

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        for part in _bounded(rows) if self._format.repeats else (rows,):
            table, left_out = self._table.of(part, self._options)
            self._left_out += left_out
            self._out.write(table)

    def end(self) -> None:
        """Finish the split."""
        self._paths += self._out.close()
        self._sizes[self._split] = (self._out.rows, self._out.bytes)

    def close(self) -> Written:
        """Finish the format."""
        name = self._format.name
        config = Config(
            splits={split: f"{name}/{split}-*" for split in self._sizes},
            features=features_of(self._table.schema(self._options)),
            sizes=self._sizes,
            content=self._table.content(self._options),
        )
        return Written(
            format=name,
            files=sized(self._folder.parent, self._paths),
            rows={split: rows for split, (rows, _) in self._sizes.items()},
            left_out=self._left_out,
            configs={name: config},
        )

    def _open(self, split: str) -> Shards | Lines:
        return Shards(self._folder, split, self._table.schema(self._options))


class LinesWriter(TableWriter):
    """A format of JSON lines, a file for each split."""

    def close(self) -> Written:
        """No configuration: `load_dataset` reads all those of a repository by the file type of the first."""
        return replace(super().close(), configs={})

    def _open(self, split: str) -> Shards | Lines:
        return Lines(self._folder / f"{split}.jsonl")


class Lines:
    """A file of JSON lines that has its name when it is whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, self.bytes = 0, 0
        self._path, self._writing = path, path.with_name(f".{path.name}.writing")
        self._file = self._writing.open("w", encoding="utf-8", newline="\n")

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.rows += table.num_rows
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> list[Path]:
        """Give the file its name."""
        self._file.close()
        self._writing.rename(self._path)
        self.bytes = self._path.stat().st_size
        return [self._path]


class TabbedLines(Lines):
    """A file of values between tabs, below a header."""

    def write(self, table: pa.Table) -> None:
        """Write the header and the rows, all at once."""
        lines = csv.writer(self._file, delimiter="\t", lineterminator="\n")
        lines.writerow(table.column_names)
        for batch in table.to_batches(BATCH_ROWS * 10):
            lines.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def sized(root: Path, paths: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    """Files as paths below ``root``, with their bytes."""
    return tuple((path.relative_to(root).as_posix(), path.stat().st_size) for path in paths)


def _bounded(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts that do not become too large where each positive repeats the passages of its row."""
    if rows.num_rows > 1:
        counts, _ = flat_lists(rows.select([POSITIVE.passages]), POSITIVE.passages)
        if rows.nbytes * max(1, counts.max()) > EXPANDED_BYTES:
            half = rows.num_rows // 2
            for part in (rows.slice(0, half), rows.slice(half)):
                yield from _bounded(part)
            return
    yield rows
