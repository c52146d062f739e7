"""Parquet files as on the Hub: parts of a bounded size, with the features of `datasets` in their metadata.

The columns of a split have one type each, whatever is null in the rows that come first.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows import arrow

if TYPE_CHECKING:
    from datasets import Features

SHARD_BYTES = 500_000_000
GROUP_BYTES = 32_000_000  # of a row group, before it is compressed


class Shards:
    """The parquet files of a split, each of up to :data:`SHARD_BYTES`.

    Their number, which stands in their names, is known at the end: until then they have others.
    """

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self.rows, self.bytes = 0, 0
        self.schema = with_features(schema)
        self._folder, self._split = folder, split
        self._paths: list[Path] = []
        self._file: Any = None
        self._writer: Any = None
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self.bytes += table.nbytes
        self._waiting.append(table.replace_schema_metadata(self.schema.metadata))
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    @property
    def full(self) -> bool:
        """Whether the file that is being written is near its size, so that it may end here."""
        written = self._file.tell() if self._writer is not None else 0
        return bool(written + self._waiting_bytes >= 0.9 * SHARD_BYTES)

    @property
    def finished(self) -> list[Path]:
        """The files that are whole."""
        return self._paths[:-1] if self._writer is not None else list(self._paths)

    def checkpoint(self) -> dict[str, Any]:
        """Finish the file that is being written; what to go on from with :meth:`resumed`, as JSON."""
        self._flush()
        self.close_file()
        schema = b64encode(self.schema.serialize().to_pybytes()).decode()
        return {
            "files": [path.name for path in self._paths],
            "rows": self.rows,
            "bytes": self.bytes,
            "schema": schema,
        }

    @classmethod
    def resumed(cls, folder: Path, split: str, state: Mapping[str, Any]) -> Shards:
        """Go on behind the files of a checkpoint."""
        shards = cls(folder, split, pa.ipc.read_schema(pa.py_buffer(b64decode(state["schema"]))))
        shards._paths = [folder / name for name in state["files"]]
        shards.rows, shards.bytes = state["rows"], state["bytes"]
        return shards

    def close_file(self) -> None:
        """Close the file that is being written, if there is one, as it is."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None

    def close(self) -> list[Path]:
        """Write what is left, give the files their names, and return these."""
        self._flush()
        if not self._paths:
            self._open()
        self.close_file()
        paths = []
        for index, path in enumerate(self._paths):
            paths.append(self._folder / f"{self._split}-{index:05d}-of-{len(self._paths):05d}.parquet")
            path.rename(paths[-1])
        return paths

    def _flush(self) -> None:
        if not self._waiting:
            return
        table, size = pa.concat_tables(self._waiting), self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        step = max(1, int(table.num_rows * min(GROUP_BYTES, SHARD_BYTES) / max(1, size)))
        step = table.num_rows if 2 * step > table.num_rows else step
        for start in range(0, table.num_rows, step):
            group = table.slice(start, step)
            if self._writer is not None and self._file.tell() + group.nbytes > 0.98 * SHARD_BYTES:  # and its footer
                self.close_file()
            if self._writer is None:
                self._open()
            self._writer.write_table(group, row_group_size=group.num_rows)

    def _open(self) -> None:
        import pyarrow.parquet as pq

        self._paths.append(self._folder / f".{self._split}-{len(self._paths):05d}.writing")
        self._file = self._paths[-1].open("wb")
        self._writer = pq.ParquetWriter(self._file, self.schema)


def with_features(schema: pa.Schema) -> pa.Schema:
    """A schema with the metadata by which `datasets` knows its features; as it is where they are there."""
    if b"huggingface" in (schema.metadata or {}):
        return schema
    return schema.with_metadata(features_of(schema).arrow_schema.metadata)


def features_of(schema: pa.Schema) -> Features:
    """The features that the metadata of a schema tell, as far as they are of these columns; else those of its types."""
    from datasets import Features

    return Features.from_arrow_schema(schema)


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of ``schema``.

    Raises:
        SchemaError: it has others, or values that these types cannot hold.
    """
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    check_same_columns(table.column_names, schema.names)
    return pa.Table.from_arrays([_cast(table.column(field.name), field) for field in schema], schema=schema)


def check_same_columns(names: Sequence[str], others: Sequence[str]) -> None:
    """Whether rows have the same columns.

    Raises:
        SchemaError: they have not.
    """
    if differ := sorted(set(names) ^ set(others)):
        raise SchemaError(
            f"Some rows have the columns {differ}, and others have not; the same columns were expected in all. Give "
            "every row all of them, null where there is no value."
        )


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        if not _holds(field.type, column.type):
            raise pa.ArrowInvalid("it has further fields")
        try:
            return column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists of nothing, in older versions
            return pa.chunked_array([pa.array(column.to_pylist(), field.type)], field.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise SchemaError(
            f"Column {field.name!r} holds {field.type} in the first rows and {column.type} in later ones "
            f"({str(error)[:200]}); one type was expected. A stream takes its types from the first rows: give all rows "
            "the same type, or run without streaming."
        ) from error


def _holds(type: pa.DataType, found: pa.DataType) -> bool:
    """Whether ``type`` has a place for every field of ``found``: a cast by way of Python would leave it out."""
    if pa.types.is_struct(found) and pa.types.is_struct(type):
        return all(
            (at := type.get_field_index(field.name)) >= 0 and _holds(type.field(at).type, field.type) for field in found
        )
    if hasattr(found, "value_type") and hasattr(type, "value_type"):
        return _holds(type.value_type, found.value_type)
    return True


def common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    """The one schema of the first tables of a split."""
    first = tables[0].schema
    types = {field.name: field.type for field in first}
    for schema in (table.schema for table in tables if not table.schema.equals(first)):
        check_same_columns(schema.names, first.names)
        for field in schema:
            try:
                types[field.name] = united(types[field.name], field.type)
            except pa.ArrowException as error:
                raise SchemaError(
                    f"Column {field.name!r} holds {types[field.name]} in some rows and {field.type} in others; one "
                    "type was expected. Give all rows the same type first."
                ) from error
    # Of the features that the metadata tell, those of these columns and types stay.
    features = features_of(pa.schema(list(types.items()), metadata=first.metadata))
    return pa.schema(list(types.items()), metadata=features.arrow_schema.metadata)


def united(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that has a place for the values of both; the fields of structs keep their order.

    Raises:
        pa.ArrowException: there is none.
    """
    return arrow.united(one, other, _promoted)


def _promoted(one: pa.DataType, other: pa.DataType, name: str) -> pa.DataType:
    schemas = [pa.schema([("value", type)]) for type in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
