"""Columns of lists as counts and flat values: what is computed on Arrow buffers, with no Python object a passage.

What reads a column of lists raises SchemaError where the column does not hold lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, QUERY, QUERY_ID

Integers = np.ndarray[Any, np.dtype[np.int64]]
Codes = np.ndarray[Any, np.dtype[np.int64]]  # small numbers that stand for words
Numbers = np.ndarray[Any, np.dtype[np.float64]]
_MANY_DIGITS = re.compile(r"\d{19}")
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def flat_lists(table: pa.Table, column: str) -> tuple[Integers, pa.Array]:
    """The length of each list of a column (0 where it is null), and the values of all of them."""
    values = lists_in(table, column)
    return lengths_of(values), values.flatten()


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table without rows; that of Arrow's schemas cannot be made of JSON inside of lists and structs."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def is_json(type: pa.DataType) -> bool:
    """Whether a type is that of values of several kinds, which are stored as JSON text."""
    return getattr(type, "extension_name", None) == "arrow.json"


def json_text(value: Any) -> str:
    """A value as the JSON text that stands for it."""
    text = json.dumps(value, ensure_ascii=False, default=int)  # a decimal is an integer of many digits
    # `datasets` cannot read integers of more than 64 bits: they become strings of their digits.
    return json.dumps(_with_digits(value), ensure_ascii=False) if _MANY_DIGITS.search(text) else text


def _with_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_digits(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_digits(one) for one in value]
    number = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    return (int(value) if -(2**63) <= value < 2**64 else str(value)) if number else value


def holds_json(type: pa.DataType) -> bool:
    """Whether JSON text is anywhere in values of a type."""
    if pa.types.is_struct(type):
        return any(holds_json(field.type) for field in type)
    return holds_json(type.value_type) if hasattr(type, "value_type") else is_json(type)


def decoded(values: Any) -> list[Any]:
    """The values of a column as Python objects, of JSON text what it stands for."""
    found: list[Any] = values.to_pylist()
    return [_reader(values.type)(value) for value in found] if holds_json(values.type) else found


def _reader(type: pa.DataType) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value is None or not holds_json(type):
            return value
        if is_json(type):
            return json.loads(value) if isinstance(value, str) else value
        if pa.types.is_struct(type):
            return {field.name: _reader(field.type)(value[field.name]) for field in type}
        return [_reader(type.value_type)(one) for one in value]

    return read


def row_at(table: pa.Table, place: int) -> dict[str, Any]:
    """A row as Python objects, of JSON text what it stands for."""
    row = table.slice(place, 1)
    return {name: decoded(column)[0] for name, column in zip(row.column_names, row.columns, strict=True)}


def is_list(type: pa.DataType) -> bool:
    """Whether a type is one of lists with offsets."""
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type))


def united(
    one: pa.DataType,
    other: pa.DataType,
    of_values: Callable[[pa.DataType, pa.DataType, str], pa.DataType],
    name: str = "",
) -> pa.DataType:
    """The type that has a place for the values of both; the fields of structs keep their order.

    Args:
        one: A type.
        other: Another one.
        of_values: Gives that of two types of which not both are structs, or lists, and neither is null.
        name: Where they stand; with a dot before each field of a struct.
    """
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            before = fields.get(field.name, pa.null())
            fields[field.name] = united(before, field.type, of_values, f"{name}.{field.name}")
        return pa.struct(list(fields.items()))
    if is_list(one) and is_list(other):
        large = pa.types.is_large_list(one) or pa.types.is_large_list(other)
        return (pa.large_list if large else pa.list_)(united(one.value_type, other.value_type, of_values, name))
    return of_values(one, other, name)


def lists_in(table: pa.Table, column: str) -> pa.Array:
    """A column of lists of any kind as one array of lists with offsets."""
    values = table.column(column)
    type = values.type
    if pa.types.is_null(type):
        return pa.nulls(table.num_rows, pa.list_(pa.null()))
    if pa.types.is_fixed_size_list(type):
        return one_array(values.cast(pa.list_(type.value_type)))
    if pa.types.is_list_view(type) or pa.types.is_large_list_view(type):
        views = one_array(values)  # the cast to lists of pyarrow 26 loses values
        absent = is_null(views)
        return lists_of(np.where(absent, 0, views.sizes.to_numpy()), views.flatten(), absent=absent)
    if not is_list(type):
        raise SchemaError(
            f"Column {column!r} holds {type}; a list was expected. Bring the rows into the canonical form: "
            "ds.map(arhn.adapt) or arhn.adapt_dataset(ds)."
        )
    return one_array(values)


def lengths_in(table: pa.Table, column: str) -> tuple[Integers, Mask]:
    """The length of each list of a column, and where it is null; the values are not copied."""
    values = table.column(column)
    lengths = pc.list_value_length(values if is_list(values.type) else lists_in(table, column))
    absent: Mask = is_null(one_array(lengths))
    return one_array(pc.fill_null(lengths, 0)).to_numpy(zero_copy_only=False).astype(np.int64), absent


def lengths_of(lists: pa.Array) -> Integers:
    """The length of each list, 0 where it is null."""
    ends = lists.offsets.to_numpy().astype(np.int64)
    lengths = ends[1:] - ends[:-1]
    return np.where(is_null(lists), 0, lengths) if lists.null_count else lengths


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


def flat_field(table: pa.Table, column: str, name: str, type: pa.DataType) -> tuple[Integers, pa.Array]:
    """The length of each list of structs, and one field of all of them; the other fields are not copied."""
    values = table.column(column)
    if not is_list(values.type):
        lengths, structs = flat_lists(table, column)
        return lengths, field_of(structs, name, type)
    lengths, _ = lengths_in(table, column)
    return lengths, one_array(field_of(pc.list_flatten(values), name, type))


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


def gathered(parts: Sequence[pa.Array], places: Integers) -> pa.Array:
    """The values at ``places`` in several arrays of one type, one after the other; only these are copied."""
    found, order, first, begin = [], np.empty(len(places), np.int64), 0, 0
    for part in parts:
        here = (places >= begin) & (places < begin + len(part))
        number = int(np.count_nonzero(here))
        if number == len(places) > 0:
            own = places - begin
            return part if np.array_equal(own, np.arange(len(part))) else taken(part, own)
        if number:
            found.append(taken(part, places[here] - begin))
            order[here] = np.arange(first, first + number)
        first, begin = first + number, begin + len(part)
    return taken(pa.concat_arrays(found), order) if found else parts[0].slice(0, 0)


def aligned(values: pa.Array, found: Integers, counts: Integers) -> pa.Array:
    """Flat values of lists of the lengths ``found`` as those of lists of ``counts``; null where these differ."""
    same = found == counts
    if same.all():
        return values
    places = np.full(counts.sum(), -1, np.int64)
    places[np.repeat(same, counts)] = np.flatnonzero(np.repeat(same, found))
    return taken(values, places)


def extremes(values: Numbers, rows: Integers, count: int, *, largest: bool) -> Numbers:
    """The smallest or the largest value of each of ``count`` rows, NaN where all are; ``rows`` in order."""
    extreme = np.full(count, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    if len(known):
        rows = rows[known]
        starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        reduce = np.maximum if largest else np.minimum
        extreme[rows[starts]] = reduce.reduceat(values[known], starts)
    return extreme


def shaped(values: pa.Array, type: pa.DataType, name: str = "") -> pa.Array:
    """Values with a type: fields of structs by their names, null where there is none of that name.

    Raises:
        SchemaError: a value has no place in the type; the message names its field, within ``name``.
    """
    if values.type == type:
        return values
    if pa.types.is_null(values.type) or pa.types.is_null(type):
        return pa.nulls(len(values), type)
    if is_json(type):
        texts = [None if value is None else json_text(value) for value in decoded(values)]
        return pa.ExtensionArray.from_storage(type, pa.array(texts, pa.string()))
    if pa.types.is_struct(type) and pa.types.is_struct(values.type):
        inside = f"{name}." if name else ""
        there = {field.name: pc.struct_field(values, at) for at, field in enumerate(values.type)}
        nothing = pa.nulls(len(values))
        fields = [shaped(there.get(field.name, nothing), field.type, inside + field.name) for field in type]
        mask = pc.is_null(values) if values.null_count else None
        return pa.StructArray.from_arrays(fields, fields=list(type), mask=mask)
    if hasattr(type, "value_type") and pa.types.is_nested(values.type):
        absent = is_null(values) if values.null_count else None
        lists = lists_of(lengths_of(values), shaped(values.flatten(), type.value_type, name), absent=absent)
        return lists if lists.type == type else lists.cast(type)
    try:
        return values.cast(type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"Field {name!r} holds {values.type} and shall stand in one column of {type}, as all lists of a row do: "
            f"{error}. Cast the field to one type on both sides, as to string, or remove it."
        ) from error


def is_null(values: pa.Array) -> Any:
    """Where an array is null, as a mask."""
    return values.is_null().to_numpy(zero_copy_only=False)


def first_of(mask: Mask) -> int | None:
    """The first place at which a mask is true."""
    return int(np.argmax(mask)) if mask.any() else None


def check_canonical(columns: Sequence[str]) -> None:
    """Whether the columns of canonical rows are there.

    Raises:
        SchemaError: they are not.
    """
    missing = [column for column in (QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages) if column not in columns]
    if missing:
        raise SchemaError(
            f"The rows lack the columns {missing}; the columns found are {list(columns)}. Bring them into the "
            "canonical form first: arhn.adapt_dataset(ds)."
        )
