"""The writers of formats: rows by split go in, and files come out."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.parquet import Shards, features_of
from arhn_datasets.folder.reading import BATCH_BYTES, BATCH_ROWS, DATA, Folder, open_folder
from arhn_datasets.folder.readme import Config
from arhn_datasets.rows.arrow import check_canonical, flat_lists, one_array, taken
from arhn_datasets.rows.records import DECISION, POSITIVE
from arhn_datasets.rules.moves import ORIGINS, check_origins

if TYPE_CHECKING:
    from datasets import Dataset

    from arhn_datasets.formats.format import Format, Options, Table

EXPANDED_BYTES = 256_000_000  # of the rows that one batch may become
_ANY_SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """Rows by split that can be read again and again.

    ``count`` gives the number of rows of a split, ``tables`` these rows, with those of some columns that they have.
    """

    splits: tuple[str, ...]
    count: Callable[[str], int]
    tables: Callable[[str, Sequence[str]], Iterator[pa.Table]]


def split_rows_of(given: Any, split: str | None = None) -> SplitRows:
    """The rows of a Dataset, a DatasetDict or a folder for trainers, of one split or of all.

    Raises:
        ConfigurationError: it is something else, or has no such split.
    """
    if isinstance(given, (str, os.PathLike)):
        given = open_folder(given)
    if isinstance(given, Folder):
        what, rows = str(given.path), _of_folder(given)
    else:
        named = _by_split(given, split)
        what = "The dataset"
        rows = SplitRows(
            splits=tuple(named),
            count=lambda split: len(named[split]),
            tables=lambda split, columns: _tables(named[split], columns),
        )
    if split is not None and split not in rows.splits:
        raise ConfigurationError(f"{what} has no split {split!r}; its splits are {list(rows.splits)}.")
    return rows if split is None else replace(rows, splits=(split,))


def _of_folder(folder: Folder) -> SplitRows:
    def tables(split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        # The rows that a guard dropped stand in a part of their own.
        return folder.tables(split, part=DATA, columns=[column for column in columns if column != DECISION])

    return SplitRows(splits=folder.splits, count=folder.count, tables=tables)


def _by_split(given: Any, split: str | None) -> Mapping[str, Dataset]:
    from datasets import Dataset, DatasetDict

    if isinstance(given, Dataset):
        own = _ANY_SPLIT.match(str(given.split or "train"))
        return {split if split is not None and given.split is None else own[0] if own else "train": given}
    if not isinstance(given, DatasetDict):
        raise ConfigurationError(
            f"export got {type(given).__name__}; expected a Dataset, a DatasetDict or a folder that arhn-refine has "
            "written. Load the dataset without streaming."
        )
    named: Mapping[str, Dataset] = given
    return named


def _tables(dataset: Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows in batches of a bounded size, whose origins fit their passages."""
    check_canonical(dataset.column_names)
    average = dataset.data.nbytes / max(1, dataset.data.num_rows)
    size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, average))))
    kept = [column for column in columns if column in dataset.column_names]
    origins = [column for column in ORIGINS if column in dataset.column_names]
    for table in dataset.select_columns([*kept, *origins]).with_format("arrow").iter(size):
        if POSITIVE.passages in kept:
            check_origins(table, shortened=True)
        yield table.select(kept)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written in one format.

    ``files`` are paths in the output with their bytes, ``rows`` the rows of each split; a format that ``load_dataset``
    does not load has no configuration. ``left_out`` counts rows by reason.
    """

    files: tuple[tuple[str, int], ...]
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    configs: Mapping[str, Config] = field(default_factory=dict)


class Writer:
    """A format on its way into files: for each split ``begin``, ``write`` and ``end``, then ``close``.

    As it is, it writes a format of one parquet table.
    """

    LOADED = True  # whether `load_dataset` loads the files, each table as a configuration

    def __init__(self, format: Format, root: Path, options: Options, rows: SplitRows, published: bool) -> None:
        self._format, self._root, self._options, self._published = format, root, options, published
        self._rows = rows
        self._paths: list[Path] = []
        self._sizes: dict[Table, dict[str, tuple[int, int]]] = {table: {} for table in format.tables}
        self._left_out: Counter[str] = Counter()

    def begin(self, split: str) -> None:
        """Start a split."""
        self._options = self._options.beside(self._rows, split, self._format)
        self._split, self._out = split, self._open(self._format.tables[0], split)

    def write(self, rows: pa.Table) -> None:
        """Add canonical rows, with their filtered passages and decisions where they have them."""
        for part in _bounded(rows) if self._format.repeats else (rows,):
            table, left_out = self._format.tables[0].of(part, self._options)
            self._left_out += left_out
            self._out.write(table)

    def end(self) -> None:
        """Finish the split."""
        self._close(self._format.tables[0], self._split, self._out)

    def close(self) -> Written:
        """Finish the format."""
        return Written(
            files=tuple((path.relative_to(self._root).as_posix(), path.stat().st_size) for path in self._paths),
            rows={split: rows for split, (rows, _) in self._sizes[self._format.tables[-1]].items()},
            left_out=self._left_out,
            configs=self._configs() if self.LOADED else {},
        )

    def _open(self, table: Table, split: str) -> Shards | Lines:
        return Shards(self._root / table.name, split, table.schema(self._options))

    def _close(self, table: Table, split: str, out: Shards | Lines) -> None:
        self._paths += out.close()
        self._sizes[table][split] = (out.rows, out.bytes)

    def _configs(self) -> dict[str, Config]:
        return {
            table.name: Config(
                folder=table.name,
                features=features_of(table.schema(self._options)),
                sizes=sizes,
                content=table.content(self._options),
            )
            for table, sizes in self._sizes.items()
        }


class LinesWriter(Writer):
    """A format of JSON lines, a file for each split."""

    LOADED = False  # of a repository `load_dataset` reads all by the file type of the first

    def _open(self, table: Table, split: str) -> Shards | Lines:
        return Lines(self._root / table.name / f"{split}.jsonl")


class Lines:
    """A file of JSON lines that has its name when it is whole; a null has no place in them.

    It is open only while rows are written: there may be many.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.bytes = path, 0, 0
        self._writing = path.with_name(f".{path.name}.writing")
        self._writing.write_bytes(b"")

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.rows += table.num_rows
        rows = ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())
        with self._writing.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def close(self) -> list[Path]:
        """Give the file its name."""
        self._writing.rename(self.path)
        self.bytes = self.path.stat().st_size
        return [self.path]


class TabbedLines(Lines):
    """A file of values between tabs, below a header."""

    def write(self, table: pa.Table) -> None:
        """Write the header and the rows, all at once.

        Raises:
            SchemaError: a value holds a carriage return, which BEIR's readers take for the end of a line.
        """
        self.rows += table.num_rows
        for name in table.column_names:
            values = one_array(table.column(name))
            if pa.types.is_string(values.type) and pc.any(broken := pc.match_substring(values, "\r")).as_py():
                [found] = values.filter(broken)[:1].to_pylist()
                raise SchemaError(
                    f"The {name} {found!r} holds a carriage return, at which BEIR's readers break the line; an id "
                    "without one was expected. Give it another id, or write the format mteb."
                )
        with self._writing.open("a", encoding="utf-8", newline="\n") as file:
            lines = csv.writer(file, delimiter="\t", lineterminator="\n")
            lines.writerow(table.column_names)
            for batch in table.to_batches(BATCH_ROWS * 10):
                lines.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


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


class Distinct:
    """Which ids of a table are new, over all batches, and that each stands for one text.

    Of an id and its text 8 bytes each are kept, as hashes, in sorted arrays of growing length.
    """

    def __init__(self, id_column: str, table: Table, options: Options, rows: SplitRows) -> None:
        self._id_column, self._table, self._options, self._rows = id_column, table, options, rows
        self._levels: list[tuple[Any, Any]] = []

    def first(self, table: pa.Table) -> pa.Table:
        """The rows whose id was not there before.

        Raises:
            SchemaError: an id stands for two texts.
        """
        ids = one_array(table.column("_id"))
        _, first, code = np.unique(_hashes(ids), return_index=True, return_inverse=True)
        for column in table.column_names[1:]:
            values = one_array(table.column(column))
            differs = ~pc.equal(values, taken(values, first[code])).to_numpy(zero_copy_only=False)
            if differs.any():
                self._refuse(ids[int(np.argmax(differs))].as_py())
        kept = table.take(pa.array(np.sort(first)))
        keys = _hashes(one_array(kept.column("_id")))
        contents = np.zeros(len(keys), np.uint64)
        for column in table.column_names[1:]:
            contents = contents * np.uint64(1_000_003) + _hashes(one_array(kept.column(column)))
        new = np.ones(len(keys), bool)
        for known, texts in self._levels:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            there = known[at] == keys
            differs = there & (texts[at] != contents)
            if differs.any():
                self._refuse(kept.column("_id")[int(np.argmax(differs))].as_py())
            new &= ~there
        self._add(keys[new], contents[new])
        return kept.filter(pa.array(new))

    def _add(self, keys: Any, contents: Any) -> None:
        if not len(keys):
            return
        self._levels.append((keys, contents))
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            last, before = self._levels.pop(), self._levels.pop()
            self._levels.append((np.concatenate([before[0], last[0]]), np.concatenate([before[1], last[1]])))
        keys, contents = self._levels[-1]
        order = np.argsort(keys)
        self._levels[-1] = (keys[order], contents[order])

    def _refuse(self, id: str) -> None:
        """Only hashes are kept: both texts are looked up in the rows."""
        texts: dict[str, None] = {}
        for split in self._rows.splits:
            for rows in self._rows.tables(split, self._table.needs(self._options)):
                table, _ = self._table.of(rows, self._options)
                for row in table.filter(pc.equal(table.column("_id"), id)).to_pylist():
                    texts[" ".join(f"{row.get('title', '')} {row['text']}".split())[:80]] = None
                if len(texts) > 1:
                    break
        shown, name = " and ".join(repr(text) for text in list(texts)[:2]), self._id_column
        raise SchemaError(
            f"The {name} {id!r} stands for two texts, {shown}; one was expected, since the {self._table.name} names "
            f"each by its id. Give different texts different ids; without a {name} column arhn.adapt_dataset(ds) "
            "makes them from the texts."
        )


def _hashes(values: pa.Array) -> Any:
    from pandas.util import hash_array  # type: ignore[import-untyped]

    return hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
