"""Refined rows in a trainer's format, in files: see :mod:`arhn_datasets.formats.tables` for the formats."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, OutputError, SchemaError
from arhn_datasets.folder.parquet import Shards
from arhn_datasets.folder.reading import BATCH_BYTES, BATCH_ROWS, CARD_FILE, DATA, Folder, open_folder
from arhn_datasets.formats.tables import CORPUS, QRELS, QUERIES, Options, check_formats, columns_of, schema_of, table_of
from arhn_datasets.rows.arrow import check_canonical, flat_lists, one_array, taken
from arhn_datasets.rows.records import DECISION, POSITIVE, QUERY_ID
from arhn_datasets.rules.moves import ORIGINS, check_origins

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

EXPANDED_BYTES = 256_000_000  # of the rows that one batch may become

_ANY_SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written in one format.

    ``files`` are paths in the output with their bytes. ``splits`` has, for each configuration, the path pattern of each
    split, ``sizes`` its rows and its bytes before compression, and ``schemas`` the columns; a format that
    ``load_dataset`` does not load has no configuration. ``left_out`` counts source rows by reason.
    """

    format: str
    files: tuple[tuple[str, int], ...]
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    splits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Where an export is, and what was written in each format."""

    path: Path
    formats: Mapping[str, Written]

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Every data file with its bytes."""
        return tuple(file for written in self.formats.values() for file in written.files)


def export(
    source: Dataset | DatasetDict | Folder | str | os.PathLike[str],
    format: str | Sequence[str],
    output: str | os.PathLike[str],
    *,
    negatives: int = 7,
    short: str = "repeat",
    grades: bool = False,
    separator: str = " ",
    labels: str = "hard",
    split: str | None = None,
) -> ExportReport:
    """Write rows in the format of a trainer, or in several, each in a folder of its own in ``output``.

    Rows that a guard dropped take no part. Memory stays bounded, but for 16 bytes a docid and the qrels of a split in
    ``beir`` and ``mteb``.

    Args:
        source: A folder of arhn-refine, a copy of a published dataset, or canonical rows as Dataset or DatasetDict.
        format: One or several of :data:`FORMATS`.
        output: A folder that does not exist or is empty.
        negatives: See :class:`Options`.
        short: See :class:`Options`.
        grades: See :class:`Options`.
        separator: See :class:`Options`.
        labels: See :class:`Options`.
        split: Only this one. A Dataset without a split name may be given any.

    Raises:
        ConfigurationError: an unknown format, split or folder.
        SchemaError: rows that are not canonical, an id that stands for two different texts, or columns of relabelling
            beside the passages of before.
        OutputError: ``output`` cannot be written.
    """
    options = Options(negatives=negatives, short=short, grades=grades, separator=separator, labels=labels)
    formats = check_formats([format] if isinstance(format, str) else format)
    rows = _source_of(source, split)
    target = Path(output)
    _check_output(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            written = _export(rows, formats, fresh, options)
            fresh.chmod(0o755)  # mkdtemp makes it private
            if target.is_dir():
                target.rmdir()
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another folder.") from error
    return ExportReport(path=target, formats=written)


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


def writer_of(format: str, root: Path, options: Options, source: Source, *, published: bool = False) -> Writer:
    """The writer of a format into the dataset repository at ``root``.

    Alone, ``mteb`` is a repository of its own, with qrels under the name ``default``, where MTEB looks first. Among
    other configurations, where ``default`` is taken, they are named ``qrels``.
    """
    if format == "flagembedding":
        return _LinesWriter(format, root, options)
    if format == "beir":
        return _RetrievalWriter(format, root, root / format, options, source, names=None)
    if format == "mteb":
        names = {CORPUS: CORPUS, QUERIES: QUERIES, QRELS: QRELS if published else "default"}
        return _RetrievalWriter(format, root, root if published else root / format, options, source, names=names)
    return _TableWriter(format, root, options)


class _TableWriter:
    """A format of one parquet table."""

    def __init__(self, format: str, root: Path, options: Options) -> None:
        self._format, self._root, self._options = format, root, options
        self._schema = schema_of(format, options)
        self._shards: Shards | None = None
        self._split = ""
        self._paths: list[Path] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._left_out: Counter[str] = Counter()

    def begin(self, split: str) -> None:
        self._split = split
        self._shards = Shards(self._root / self._format, split, self._schema)

    def write(self, rows: pa.Table) -> None:
        assert self._shards is not None
        for part in _bounded(rows, self._format):
            table, left_out = table_of(self._format, part, self._options)
            self._left_out += left_out
            self._shards.write(table)

    def end(self) -> None:
        assert self._shards is not None
        self._paths += self._shards.close()
        self._sizes[self._split] = (self._shards.rows, self._shards.bytes)

    def close(self) -> Written:
        patterns = {split: f"{self._format}/{split}-*" for split in self._sizes}
        return Written(
            format=self._format,
            files=_files(self._root, self._paths),
            rows={split: rows for split, (rows, _) in self._sizes.items()},
            left_out=self._left_out,
            splits={self._format: patterns},
            sizes={self._format: self._sizes},
            schemas={self._format: self._schema},
        )


class _LinesWriter(_TableWriter):
    """FlagEmbedding's JSON lines, a file for each split."""

    def begin(self, split: str) -> None:
        self._split = split
        self._rows = 0
        self._lines = _Lines(self._root / self._format / f"{split}.jsonl")

    def write(self, rows: pa.Table) -> None:
        table, left_out = table_of(self._format, rows, self._options)
        self._left_out += left_out
        self._rows += table.num_rows
        self._lines.write_json(table)

    def end(self) -> None:
        self._paths.append(self._lines.close())
        self._sizes[self._split] = (self._rows, self._paths[-1].stat().st_size)

    def close(self) -> Written:
        """No configuration: `load_dataset` reads all those of a repository by the file type of the first."""
        return replace(super().close(), splits={}, sizes={}, schemas={})


class _RetrievalWriter:
    """A corpus and queries over all splits, and the qrels of each."""

    def __init__(
        self,
        format: str,
        root: Path,
        folder: Path,
        options: Options,
        source: Source,
        *,
        names: Mapping[str, str] | None,
    ) -> None:
        self._format, self._root, self._folder, self._options = format, root, folder, options
        self._names = names
        self._distinct = {CORPUS: _Distinct("docid", CORPUS, source), QUERIES: _Distinct(QUERY_ID, QUERIES, source)}
        self._tables = {name: self._open(name, name) for name in self._distinct}
        self._split = ""
        self._qrels: list[pa.Table] = []
        self._counts: dict[str, int] = {}
        self._paths: list[Path] = []
        self._sizes: dict[str, dict[str, tuple[int, int]]] = {CORPUS: {}, QUERIES: {}, QRELS: {}}
        self._left_out: Counter[str] = Counter()

    def _open(self, name: str, split: str) -> Shards | _Lines:
        if self._names is not None:
            return Shards(self._folder / name, split, schema_of(name))
        suffix = {QRELS: f"{QRELS}/{split}.tsv"}.get(name, f"{name}.jsonl")
        return _Lines(self._folder / suffix)

    def begin(self, split: str) -> None:
        self._split, self._qrels = split, []

    def write(self, rows: pa.Table) -> None:
        for name, distinct in self._distinct.items():
            table, left_out = table_of(name, rows, self._options)
            self._left_out += left_out if name == QUERIES else Counter()
            _write(self._tables[name], distinct.first(table))
        self._qrels.append(table_of(QRELS, rows, self._options)[0])

    def end(self) -> None:
        """The same passage can be judged in two rows of a query: the higher grade counts."""
        schema = schema_of(QRELS)
        found = pa.concat_tables(self._qrels) if self._qrels else schema.empty_table()
        best = found.group_by(["query-id", "corpus-id"], use_threads=False).aggregate([("score", "max")])
        table = best.rename_columns([name.removesuffix("_max") for name in best.column_names]).select(schema.names)
        self._counts[self._split] = table.num_rows
        files = self._open(QRELS, self._split)
        if isinstance(files, _Lines):
            files.write_tsv(schema.names, table)
        else:
            files.write(table.cast(schema))
        self._close(QRELS, self._split, files)

    def close(self) -> Written:
        for name, files in self._tables.items():
            self._close(name, name, files)
        at = self._folder.relative_to(self._root).as_posix()
        prefix = "" if at == "." else f"{at}/"
        named = self._names or {}
        return Written(
            format=self._format,
            files=_files(self._root, self._paths),
            rows=self._counts,
            left_out=self._left_out,
            splits={
                config: {split: f"{prefix}{name}/{split}-*" for split in self._sizes[name]}
                for name, config in named.items()
            },
            sizes={config: self._sizes[name] for name, config in named.items()},
            schemas={config: schema_of(name) for name, config in named.items()},
        )

    def _close(self, name: str, split: str, files: Shards | _Lines) -> None:
        if isinstance(files, _Lines):
            self._paths.append(files.close())
            return
        self._paths += files.close()
        self._sizes[name][split] = (files.rows, files.bytes)


def _write(files: Shards | _Lines, table: pa.Table) -> None:
    if isinstance(files, _Lines):
        files.write_json(table)
    else:
        files.write(table)


class _Lines:
    """A text file that has its name when it is whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._writing = path, path.with_name(f".{path.name}.writing")
        self._file = self._writing.open("w", encoding="utf-8", newline="\n")

    def write_json(self, table: pa.Table) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def write_tsv(self, header: Sequence[str], table: pa.Table) -> None:
        lines = csv.writer(self._file, delimiter="\t", lineterminator="\n")
        lines.writerow(header)
        for batch in table.to_batches(BATCH_ROWS * 10):
            lines.writerows(zip(*(batch.column(name).to_pylist() for name in header), strict=True))

    def close(self) -> Path:
        self._file.close()
        self._writing.rename(self._path)
        return self._path


class _Distinct:
    """Which ids are new, over all batches, and that each stands for one text.

    Of an id and its text 8 bytes each are kept, as hashes, in sorted arrays of growing length.
    """

    def __init__(self, name: str, table: str, source: Source) -> None:
        self._name, self._table, self._source = name, table, source
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
        first = np.sort(first)
        kept = table.take(pa.array(first))
        keys = _hashes(one_array(kept.column("_id")))
        contents = np.zeros(len(keys), np.uint64)
        for column in table.column_names[1:]:
            contents = contents * np.uint64(1_000_003) + _hashes(one_array(kept.column(column)))
        new = np.ones(len(keys), bool)
        for known, texts in self._levels:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found = known[at] == keys
            differs = found & (texts[at] != contents)
            if differs.any():
                self._refuse(kept.column("_id")[int(np.argmax(differs))].as_py())
            new &= ~found
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
        """Only hashes are kept: both texts are looked up in the source."""
        found: dict[str, None] = {}
        for split in self._source.splits:
            for rows in self._source.tables(split, columns_of(self._table, Options())):
                table, _ = table_of(self._table, rows)
                for row in table.filter(pc.equal(table.column("_id"), id)).to_pylist():
                    found[" ".join(f"{row.get('title', '')} {row['text']}".split())[:80]] = None
                if len(found) > 1:
                    break
        shown = " and ".join(repr(text) for text in list(found)[:2])
        raise SchemaError(
            f"The {self._name} {id!r} stands for two texts, {shown}; one was expected, since the {self._table} names "
            f"each by its id. Give different texts different ids; without a {self._name} column arhn.adapt_dataset(ds) "
            "makes them from the texts."
        )


def _hashes(values: pa.Array) -> Any:
    from pandas.util import hash_array  # type: ignore[import-untyped]

    return hash_array(values.to_numpy(zero_copy_only=False), categorize=False)


def _bounded(rows: pa.Table, format: str) -> Iterator[pa.Table]:
    """The rows in parts that do not become too large in a format that repeats passages."""
    if format in ("triplet", "n-tuple") and rows.num_rows > 1:
        counts, _ = flat_lists(rows.select([POSITIVE.passages]), POSITIVE.passages)
        if rows.nbytes * max(1, counts.max()) > EXPANDED_BYTES:
            half = rows.num_rows // 2
            for part in (rows.slice(0, half), rows.slice(half)):
                yield from _bounded(part, format)
            return
    yield rows


def _files(root: Path, paths: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    return tuple((path.relative_to(root).as_posix(), path.stat().st_size) for path in paths)


# -- sources -----------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Rows that can be read again and again."""

    splits: tuple[str, ...]

    def count(self, split: str) -> int:
        """The number of rows of a split."""

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of a split for trainers, with those of the columns that they have."""


class FolderSource:
    """The rows of a folder that no guard dropped."""

    def __init__(self, folder: Folder, splits: tuple[str, ...]) -> None:
        self.splits, self._folder = splits, folder

    def count(self, split: str) -> int:
        """The number of rows of a split."""
        return self._folder.count(split)

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows as the folder gives them."""
        kept = [column for column in columns if column != DECISION]  # the dropped rows stand in a part of their own
        return self._folder.tables(split, part=DATA, columns=kept)


class _DatasetSource:
    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self.splits, self._datasets = tuple(datasets), datasets

    def count(self, split: str) -> int:
        return len(self._datasets[split])

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        dataset = self._datasets[split]
        check_canonical(dataset.column_names)
        average = dataset.data.nbytes / max(1, dataset.data.num_rows)
        size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, average))))
        kept = [column for column in columns if column in dataset.column_names]
        origins = [column for column in ORIGINS if column in dataset.column_names]
        for table in dataset.select_columns([*kept, *origins]).with_format("arrow").iter(size):
            check_origins(table, shortened=True)
            yield table.select(kept)


def _source_of(source: Any, split: str | None) -> Source:
    if isinstance(source, (str, os.PathLike)):
        source = open_folder(source)
    if isinstance(source, Folder):
        return FolderSource(source, _chosen(source.splits, split, str(source.path)))
    from datasets import Dataset, DatasetDict

    if isinstance(source, Dataset):
        named = _ANY_SPLIT.match(str(source.split or "train"))
        name = split if split is not None and source.split is None else named[0] if named else "train"
        source = {name: source}
    elif not isinstance(source, DatasetDict):
        raise ConfigurationError(
            f"export got {type(source).__name__}; expected a Dataset, a DatasetDict or a folder that arhn-refine has "
            "written. Load the dataset without streaming."
        )
    return _DatasetSource({name: source[name] for name in _chosen(tuple(source), split, "The dataset")})


def _chosen(splits: tuple[str, ...], split: str | None, what: str) -> tuple[str, ...]:
    if split is not None and split not in splits:
        raise ConfigurationError(f"{what} has no split {split!r}; its splits are {list(splits)}.")
    return splits if split is None else (split,)


def _export(source: Source, formats: Sequence[str], root: Path, options: Options) -> dict[str, Written]:
    from datasets.utils import tqdm

    writers = {format: writer_of(format, root, options, source) for format in formats}
    columns = tuple(dict.fromkeys(column for format in formats for column in columns_of(format, options)))
    with tqdm(total=sum(map(source.count, source.splits)), unit=" rows", desc="export") as bar:
        for split in source.splits:
            for writer in writers.values():
                writer.begin(split)
            for rows in source.tables(split, columns):
                for writer in writers.values():
                    writer.write(rows)
                bar.update(rows.num_rows)
            for writer in writers.values():
                writer.end()
    written = {format: writer.close() for format, writer in writers.items()}
    together = {c: s for format, w in written.items() if format != "mteb" for c, s in w.splits.items()}
    if together:
        (root / CARD_FILE).write_text(_card("Exported by arhn-export", together), encoding="utf-8")
    if "mteb" in written:
        own = {
            config: {split: path.removeprefix("mteb/") for split, path in splits.items()}
            for config, splits in written["mteb"].splits.items()
        }
        card = _card("Corpus, queries and qrels, exported by arhn-export", own)
        (root / "mteb" / CARD_FILE).write_text(card, encoding="utf-8")
    return written


def _card(title: str, configs: Mapping[str, Mapping[str, str]]) -> str:
    """A README by which `load_dataset` finds each configuration."""
    # It caches by these entries and not by the files: without something new in them, another export into a folder of
    # the same name would be served from the cache.
    description = json.dumps(f"arhn_datasets export {uuid.uuid4().hex}")
    out = io.StringIO()
    out.write("---\nconfigs:\n")
    for name, splits in configs.items():
        out.write(f"- config_name: {json.dumps(name)}\n  description: {description}\n  data_files:\n")
        for split, path in splits.items():
            out.write(f"  - split: {json.dumps(split)}\n    path: {json.dumps(path)}\n")
    out.write(f"---\n\n# {title}\n\n```python\nfrom datasets import load_dataset\n\n")
    out.writelines(f'load_dataset("THIS_FOLDER", "{name}")\n' for name in configs)
    out.write("```\n")
    return out.getvalue()


def _check_output(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; the name of a folder to make was expected.")
    if target.is_dir() and any(target.iterdir()):
        found = ", ".join(sorted(path.name for path in target.iterdir())[:5])
        raise OutputError(
            f"{target} is not empty; found {found}. Nothing was touched: name another folder, or empty it."
        )
