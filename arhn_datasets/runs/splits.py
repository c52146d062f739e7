"""The canonical rows of a split, in tables, from any row on: of a dataset on this disk, or of a stream."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.inputs.adaptation import adapt
from arhn_datasets.inputs.sources import Input, Shard, reading
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.rows.records import DECISION, NEGATIVE, POSITIVE, QUERY, QUERY_ID, canonical_json
from arhn_datasets.rules.revert import Revert

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

TABLE_BYTES = 4_000_000
SOURCE_ROWS = Revert(keep_evidence=False)
"""Gives the source rows of an earlier result."""
_CANONICAL = (QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages)
_DIGESTED_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a split is behind a table: its rows so far and, of a stream, the state of its dataset."""

    rows: int
    state: Mapping[str, Any] = field(default_factory=dict)


class Split(ABC):
    """The canonical rows of one split."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of the rows, with the features of the source in the metadata."""

    @abstractmethod
    def tables(self, at: Position | None, most_rows: int) -> Iterator[tuple[pa.Table, Position]]:
        """Tables of up to ``most_rows`` from ``at`` on, fewer where rows are long, and the position behind each."""

    @abstractmethod
    def cut(self, shard: Shard) -> Split:
        """A contiguous part of the rows."""

    @abstractmethod
    def extent(self) -> dict[str, Any]:
        """What has to be the same for all who cut this split, for ``run.json``."""


@dataclass(frozen=True)
class Loaded(Split):
    """A dataset of canonical rows in files on this disk: any row is at hand."""

    dataset: Dataset

    @property
    def schema(self) -> pa.Schema:
        """Those of its features."""
        return self.dataset.features.arrow_schema

    def tables(self, at: Position | None, most_rows: int) -> Iterator[tuple[pa.Table, Position]]:
        """Slices of the files, which the system holds in memory as long as it has room."""
        data, rows = self.dataset.data, self.dataset.with_format("arrow")
        average = data.nbytes / max(1, data.num_rows)
        size = max(1, min(most_rows, int(TABLE_BYTES / max(1, average))))
        for start in range(0 if at is None else at.rows, len(rows), size):
            table = rows[start : start + size]
            yield table, Position(rows=start + table.num_rows)

    def cut(self, shard: Shard) -> Loaded:
        """So many rows as any other part has, or one more."""
        count = len(self.dataset)
        first, end = (count * index // shard.of for index in (shard.index, shard.index + 1))
        return Loaded(self.dataset.select(range(first, end))) if count else self

    def extent(self) -> dict[str, Any]:
        """The number of rows and a hash of the queries in their order: equal wherever the files lie."""
        found = hashlib.sha256()
        queries = self.dataset.select_columns([QUERY_ID, QUERY]).with_format("arrow")
        for table in queries.iter(_DIGESTED_ROWS):
            values = [column.to_pylist() for column in table.columns]
            found.update(canonical_json(values).encode("utf-8", "surrogatepass"))
        return {"rows": len(self.dataset), "queries": found.hexdigest()}


@dataclass(frozen=True)
class Streamed(Split):
    """A stream of rows of any form that keeps its rows: they are read as they are needed, and none is kept."""

    stream: IterableDataset
    source: Input

    @property
    def schema(self) -> pa.Schema:
        """The canonical columns; the metadata are those of the source."""
        raw = self.stream.features.arrow_schema
        return canonical(empty_table(raw)).schema.with_metadata(raw.metadata)

    def tables(self, at: Position | None, most_rows: int) -> Iterator[tuple[pa.Table, Position]]:
        """Tables of consecutive rows; the stream is read by whoever takes them."""
        held: list[pa.Table] = []
        size = 0
        position = at or Position(rows=0)
        for row, behind in self._rows(at):
            if held and (len(held) >= most_rows or size >= TABLE_BYTES or not row.schema.equals(held[0].schema)):
                yield canonical(pa.concat_tables(held).combine_chunks()), position
                held, size = [], 0
            held.append(row)
            size += row.nbytes
            position = behind
        if held:
            yield canonical(pa.concat_tables(held).combine_chunks()), position

    def _rows(self, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        stream = self.stream.with_format("arrow")
        if at is not None:
            stream.load_state_dict(dict(at.state))
        # One by one: in older versions the state is that of the next row only then.
        rows = iter(stream.iter(batch_size=1))
        taken = 0 if at is None else at.rows
        while self.source.limit is None or taken < self.source.limit:
            with reading(self.source):
                row = next(rows, None)
            if row is None:
                return
            taken += 1
            yield row, Position(rows=taken, state=stream.state_dict())

    def cut(self, shard: Shard) -> Streamed:
        """Whole files or, where the stream knows them, row groups."""
        part = self.stream.shard(num_shards=shard.of, index=shard.index, contiguous=True)
        return replace(self, stream=part)

    def extent(self) -> dict[str, Any]:
        """The number of parts into which it can be cut."""
        return {"parts": self.stream.num_shards}


def canonical(table: pa.Table) -> pa.Table:
    """The rows of a table of any form that keeps its rows, as canonical rows; an earlier result as its source rows.

    Raises:
        SchemaError: the form is unknown.
    """
    if DECISION in table.column_names:
        table = SOURCE_ROWS(table)
    adapted = adapt(table)
    return adapted.select([*_CANONICAL, *(name for name in adapted.column_names if name not in _CANONICAL)])
