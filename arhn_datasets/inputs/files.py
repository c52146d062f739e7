"""Files on this disk as datasets: every row of every file, each value as it is written, each type from all rows.

A file is read once, table by table, into a file of Arrow in the cache of `datasets`, where the same files are found
again. Where later rows have further columns or other types, the tables before them are written once more.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.inputs.texts import (
    CHUNK,
    COMPRESSED,
    ONE_KIND,
    ROWS,
    Tables,
    bytes_of,
    csv_tables,
    json_tables,
    odd_row,
    suffix_of,
)
from arhn_datasets.inputs.values import conformed, plain, settled, united_columns
from arhn_datasets.rows.arrow import decoded, empty_table
from arhn_datasets.rows.records import canonical_json

if TYPE_CHECKING:
    from datasets import Dataset

READ_REVISION = 1  # raise it when the same files give other rows


# --- Parquet and Arrow ------------------------------------------------------------------------------------------------


def _parquet_tables(path: Path) -> Tables:
    import pyarrow.parquet as pq

    with _seekable(path) as opened:
        file = pq.ParquetFile(opened)
        yield empty_table(file.schema_arrow)
        for batch in file.iter_batches(batch_size=ROWS):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)


def _arrow_tables(path: Path) -> Tables:
    with _seekable(path) as opened:
        try:
            batches: Any = pa.ipc.open_stream(opened)
        except pa.ArrowInvalid:
            opened.seek(0)
            file = pa.ipc.open_file(opened)
            batches = (file.get_batch(at) for at in range(file.num_record_batches))
        for batch in batches:
            yield pa.Table.from_batches([batch])


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    if path.suffix.lower() not in COMPRESSED:
        with pa.memory_map(str(path)) as opened:
            yield opened
        return
    with bytes_of(path) as opened:
        yield pa.BufferReader(opened.read())


READERS: Mapping[str, Callable[[Path], Tables]] = {
    ".jsonl": json_tables,
    ".json": json_tables,
    ".ndjson": json_tables,
    ".parquet": _parquet_tables,
    ".csv": csv_tables,
    ".tsv": csv_tables,
    ".arrow": _arrow_tables,
}
READ_FILES = f"{', '.join(READERS)} files (also compressed, {', '.join(COMPRESSED)})"


def is_read(path: Path) -> bool:
    """Whether its name is that of a file which can be read."""
    return suffix_of(path) in READERS


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in whatever its parser, its compression or the system raises."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} cannot be read: it holds the bytes {error.object[error.start : error.end]!r}, which are no UTF-8. "
            f"Convert it, as with: iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error
    except Exception as error:  # any, of parsers, compressions and file systems
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # of the cache, and no fault of the file
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:400].rstrip('.')}. "
            "Check that the file is what its suffix says."
        ) from error


# --- datasets ---------------------------------------------------------------------------------------------------------


def _cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "arhn_datasets"


def dataset_of(files: Sequence[Path], split: str) -> Dataset | None:
    """All rows of the files as one dataset, in a file in the cache of `datasets`; None where there is no column.

    Raises:
        InputError: a file cannot be read; the message names it, and the line.
        SchemaError: two values cannot stand in one column.
    """
    from datasets import Dataset, NamedSplit, config

    stamps = [[str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]
    versions = [READ_REVISION, config.DATASETS_VERSION if hasattr(config, "DATASETS_VERSION") else "", pa.__version__]
    key = hashlib.sha256(canonical_json([versions, stamps, split]).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    folder = _cache() / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            if not _write(files, Path(scratch), made / "rows.arrow"):
                return None
            try:
                os.replace(made, folder)
            except OSError:  # another process was quicker
                if not folder.exists():
                    raise
    found = Dataset.from_file(str(folder / "rows.arrow"), split=NamedSplit(re.sub(r"\W", "_", split)))
    found._fingerprint = key[:16]
    return found


def _write(files: Sequence[Path], scratch: Path, target: Path) -> bool:
    rows, features = _Rows(scratch), _Features()
    for path in files:
        with _naming(path):
            count = 0
            for table in READERS[suffix_of(path)](path):
                features.add(table.schema)
                try:
                    rows.add(table)
                except SchemaError as error:
                    odd = (
                        odd_row(decoded(table[name]), name, rows.types.get(name))
                        for name in table.column_names
                        if f"{name!r}" in str(error)
                    )
                    raise SchemaError(
                        f"row {count + max(odd, default=0)}, counted from 0: {error}. {ONE_KIND}"
                    ) from error
                count += table.num_rows
    types = {name: settled(type) for name, type in rows.types.items()}
    if not types:
        return False
    with _naming(files[0] if len(files) == 1 else files[0].parent):
        while True:
            try:
                rows.save(features.schema(types), target)
                return True
            except _Unfit as unfit:
                types = rows.widened(unfit.column)


class _Unfit(Exception):
    """A column has a value that does not fit exactly."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class _Rows:
    """Tables on disk, each part of one schema, and the types of the columns of all."""

    def __init__(self, folder: Path) -> None:
        self.types: dict[str, pa.DataType] = {}
        self._folder = folder
        self._parts: list[Path] = []
        self._out: Any = None
        self._wide: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Write a table behind the others."""
        own = {name: plain(type) for name, type in zip(table.column_names, table.schema.types, strict=True)}
        while True:
            types = united_columns(self.types, own, self._wide)
            try:
                fitting = _fitted(table, pa.schema(list(types.items())))
                break
            except _Unfit as unfit:
                if unfit.column in self._wide:
                    raise SchemaError(f"column {unfit.column!r}: {unfit.__cause__}") from unfit
                self._wide.add(unfit.column)
        if types != self.types:
            self._close()
            self.types = types
        if not fitting.num_rows:
            return
        if self._out is None:
            self._parts.append(self._folder / f"{len(self._parts)}.arrow")
            self._out = pa.ipc.new_stream(str(self._parts[-1]), fitting.schema)
        self._out.write_table(fitting)

    def _close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None

    def widened(self, column: str) -> dict[str, pa.DataType]:
        """The types, with one of a column into which its values of before fit, too."""
        if column in self._wide:
            raise SchemaError(f"column {column!r} holds values that no one type holds")
        self._wide.add(column)
        self.types = {}
        for part in self._parts:
            with pa.memory_map(str(part)) as opened:
                schema = pa.ipc.open_stream(opened).schema
            self.types = united_columns(self.types, dict(zip(schema.names, schema.types, strict=True)), self._wide)
        return {name: settled(type) for name, type in self.types.items()}

    def save(self, schema: pa.Schema, target: Path) -> None:
        """All rows as one file."""
        self._close()
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
            for part in self._parts:
                with pa.memory_map(str(part)) as opened:
                    for batch in pa.ipc.open_stream(opened):
                        table = _fitted(pa.Table.from_batches([batch]), schema)
                        out.write_table(table.replace_schema_metadata(schema.metadata))


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for name, type in zip(schema.names, schema.types, strict=True):
        if name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, type))
            continue
        try:
            columns.append(conformed(table[name], type))
        except SchemaError as error:
            raise _Unfit(name) from error
    return pa.Table.from_arrays(columns, schema=pa.schema(list(zip(schema.names, schema.types, strict=True))))


class _Features:
    """What the files say of their columns beyond types, as the names of labels."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, pa.DataType]] = {}
        self._seen: set[bytes | None] = {None}

    def add(self, schema: pa.Schema) -> None:
        """Note what the metadata of a schema tells."""
        from datasets import Features

        told = (schema.metadata or {}).get(b"huggingface")
        if told in self._seen:
            return
        self._seen.add(told)
        for name, feature in Features.from_arrow_schema(schema).items():
            before, type = self._known.setdefault(name, (feature, schema.field(name).type))
            if before != feature and plain(type) == plain(schema.field(name).type):
                raise SchemaError(
                    f"column {name!r} is {feature} here and {before} in a file before it. Refine such files one by "
                    "one, or cast the column first."
                )

    def schema(self, types: Mapping[str, pa.DataType]) -> pa.Schema:
        """The schema of a dataset of columns of these types."""
        from datasets import Features

        features = Features.from_arrow_schema(pa.schema(list(types.items())))
        for name, (feature, type) in self._known.items():
            if plain(type) == types[name]:
                features[name] = feature
        return features.arrow_schema


# --- standard input -----------------------------------------------------------------------------------------------


def piped() -> Path:
    """What comes through standard input as a file named by its content, of the kind that it looks like."""
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as spool:
        while chunk := sys.stdin.buffer.read(CHUNK):
            digest.update(chunk)
            spool.write(chunk)
    place = Path(spool.name)
    name = f"stdin-{digest.hexdigest()[:16]}{_kind_of(place)}"
    if (folder / name).exists():  # the same rows as before keep their time, so that a run goes on
        place.unlink()
    else:
        shutil.move(place, folder / name)
    return folder / name


def _kind_of(path: Path) -> str:
    packed = {b"\x1f\x8b": ".gz", b"BZ": ".bz2", b"\xfd7": ".xz", b"(\xb5": ".zst"}
    with path.open("rb") as opened:
        suffix = packed.get(opened.read(2), "")
    packed_file: Any = COMPRESSED[suffix](str(path)) if suffix else path.open("rb")
    with packed_file as opened:
        head = opened.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:4] == b"PAR1":
        return f".parquet{suffix}"
    return f"{'.jsonl' if head[:1] in b'[{' else '.csv'}{suffix}"
