"""Parquet files as on the Hub: parts of a bounded size, with the features of `datasets` in their metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

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

    def finish_file(self) -> None:
        """Write what is there; later rows go into another file."""
        self._flush()
        if self._writer is not None:
            self._close()

    def resume(self, paths: Sequence[Path], rows: int, bytes: int) -> None:
        """Go on behind files that are whole."""
        self._paths, self.rows, self.bytes = list(paths), rows, bytes

    def abandon(self) -> None:
        """Close the file that is being written, which is of no use then."""
        if self._writer is not None:
            self._close()

    def close(self) -> list[Path]:
        """Write what is left, give the files their names, and return these."""
        self.finish_file()
        if not self._paths:
            self._open()
            self._close()
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
                self._close()
            if self._writer is None:
                self._open()
            self._writer.write_table(group, row_group_size=group.num_rows)

    def _open(self) -> None:
        import pyarrow.parquet as pq

        self._paths.append(self._folder / f".{self._split}-{len(self._paths):05d}.writing")
        self._file = self._paths[-1].open("wb")
        self._writer = pq.ParquetWriter(self._file, self.schema)

    def _close(self) -> None:
        self._writer.close()
        self._file.close()
        self._writer = None


def with_features(schema: pa.Schema) -> pa.Schema:
    """A schema with the metadata by which `datasets` knows its features; as it is where they are there."""
    from datasets import Features

    if b"huggingface" in (schema.metadata or {}):
        return schema
    return schema.with_metadata(Features.from_arrow_schema(schema).arrow_schema.metadata)


def features_of(schema: pa.Schema) -> Features:
    """The features that the metadata of a schema tell, as far as they are of these columns; else those of its types."""
    from datasets import Features

    return Features.from_arrow_schema(schema)
