"""Columns of lists as counts and flat values: what is computed on Arrow buffers, with no Python object a passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.records import NEGATIVES, POSITIVES, QUERY, QUERY_ID

Integers = np.ndarray[Any, np.dtype[np.int64]]


def flat_lists(table: pa.Table, column: str) -> tuple[Integers, pa.Array]:
    """The length of each list of a column (0 where it is null), and the values of all of them.

    Raises:
        SchemaError: the column does not hold lists.
    """
    values = table.column(column)
    if pa.types.is_null(values.type):
        return np.zeros(table.num_rows, np.int64), pa.nulls(0)
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise SchemaError(
            f"Column {column!r} holds {values.type}; a list was expected. Bring the rows into the canonical form: "
            "ds.map(arhn.adapt) or arhn.adapt_dataset(ds)."
        )
    lengths = one_array(pc.fill_null(pc.list_value_length(values), 0))
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64), one_array(pc.list_flatten(values))


def one_array(values: Any) -> pa.Array:
    """An array or a chunked array as one array."""
    if isinstance(values, pa.ChunkedArray):
        return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    return values


def field_of(structs: pa.Array, name: str, type: pa.DataType) -> pa.Array:
    """A field of structs; null where there is no such field, or no struct."""
    if not pa.types.is_struct(structs.type) or structs.type.get_field_index(name) < 0:
        return pa.nulls(len(structs), type)
    found = pc.struct_field(structs, structs.type.get_field_index(name))
    return found if found.type == type else pc.cast(found, type)


def strings_of(table: pa.Table, column: str) -> pa.Array:
    """A column as strings; nulls where there is no such column."""
    if column not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    return one_array(pc.cast(table.column(column), pa.string()))


def starts_of(counts: Integers) -> Integers:
    """Where each list begins in the flat values, and where the last one ends."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def within(counts: Integers) -> Integers:
    """The place of each flat value in its list."""
    return np.arange(counts.sum(), dtype=np.int64) - np.repeat(starts_of(counts)[:-1], counts)


def rows_of(counts: Integers) -> Integers:
    """The row of each flat value."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def merged(counts: Sequence[Integers], least: int = 0) -> tuple[Integers, Integers]:
    """How several columns of lists become one: the length of each list, and where its values come from.

    The second are places in the flat values of all columns one after the other. A list of fewer than ``least`` values
    is filled up with -1.
    """
    lengths: Integers = np.maximum(np.sum(counts, axis=0), least)
    begin = starts_of(lengths)[:-1]
    order, first = np.full(lengths.sum(), -1, np.int64), 0
    for number in counts:
        order[np.repeat(begin, number) + within(number)] = np.arange(first, first + number.sum())
        first += number.sum()
        begin = begin + number
    return lengths, order


def lists_of(counts: Integers, values: pa.Array, *, absent: Any = None) -> pa.Array:
    """Lists of the given lengths; null where the mask ``absent`` is true, at which the length must be 0."""
    mask = None if absent is None else np.append(absent, False)
    return pa.ListArray.from_arrays(pa.array(starts_of(counts).astype(np.int32), mask=mask), values)


def taken(values: pa.Array, indices: Integers) -> pa.Array:
    """The values at ``indices``; null where an index is negative."""
    missing = indices < 0
    return values.take(pa.array(np.where(missing, 0, indices), mask=missing) if missing.any() else pa.array(indices))


def is_null(values: pa.Array) -> Any:
    """Where an array is null, as a mask."""
    return pc.is_null(values).to_numpy(zero_copy_only=False)


def check_canonical(columns: Sequence[str]) -> None:
    """Whether the columns of canonical rows are there.

    Raises:
        SchemaError: they are not.
    """
    missing = [column for column in (QUERY_ID, QUERY, POSITIVES, NEGATIVES) if column not in columns]
    if missing:
        raise SchemaError(
            f"The rows lack the columns {missing}; the columns found are {list(columns)}. Bring them into the "
            "canonical form first: arhn.adapt_dataset(ds)."
        )
