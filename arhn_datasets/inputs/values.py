"""Columns of texts, ids and numbers, and of lists of them, as Arrow arrays, out of Arrow or of Python objects.

Every :class:`Kind` of value is read in two ways: whole arrays, where their type allows it, and value by value, which
also words what is wrong with a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import Integers, flat_lists, is_list, is_null, one_array, taken
from arhn_datasets.rows.records import QUERY, QUERY_ID, shorten

Values: TypeAlias = "pa.ChunkedArray | list[Any]"  # a column: of Arrow, or of Python objects
T = TypeVar("T")

STRING = pa.string()
ROWS_PER_BATCH = 1000


class BrokenRow(SchemaError):
    """What is wrong with a row, before it has a name."""

    def __init__(self, row: int, message: object) -> None:
        super().__init__(str(message))
        self.row = row

    def named(
        self, columns: Mapping[str, Values], query: str, numbers: Sequence[int] | Integers | None = None
    ) -> SchemaError:
        """The same with the query id of the row, or its query, and its number where the rows have some."""
        query_id = _value_at(columns[QUERY_ID], self.row) if QUERY_ID in columns else None
        name, value = (QUERY, _value_at(columns[query], self.row)) if query_id in (None, "") else (QUERY_ID, query_id)
        where, left = "", ""
        if numbers is not None:
            number = int(numbers[self.row])
            where = f" (row {number}, counted from 0)"
            left = (
                " Correct that row, or leave it out: "
                f"ds.filter(lambda row, number: number != {number}, with_indices=True)."
            )
        return SchemaError(f"In the row with {name} {shorten(repr(value), 100)}{where}: {self}{left}")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What values mean: ``array`` reads an array, None where it has to be done by ``value``, for a column's name."""

    array: Callable[[pa.Array], pa.Array | None]
    value: Callable[[Any, str], Any]
    plural: str = ""
    type: pa.DataType = STRING


def read(values: Values, kind: Kind, column: str) -> pa.Array:
    """A column of values of a kind."""
    if isinstance(values, pa.ChunkedArray) and (found := kind.array(one_array(values))) is not None:
        return found
    return array_of(each(values, lambda value: kind.value(value, column)), kind.type)


def read_lists(values: Values, kind: Kind, column: str) -> tuple[Integers, pa.Array]:
    """A column of lists of values of a kind: their lengths, and the values of all."""
    if isinstance(values, pa.ChunkedArray) and is_list(values.type):
        counts, flat = flat_lists(pa.table({column: values}), column)
        if (found := kind.array(flat)) is not None:
            return counts, found
    lists = each(values, lambda value: [kind.value(one, column) for one in list_in(value, column, kind.plural)])
    return lengths(lists), array_of(list(chain.from_iterable(lists)), kind.type)


def each(values: Values, of: Callable[[Any], T]) -> list[T]:
    """What each value of a column is read as, one by one."""
    found: list[T] = []
    for value in objects_in(values):
        try:
            found.append(of(value))
        except SchemaError as error:
            raise BrokenRow(len(found), error) from None
    return found


def objects_in(values: Values) -> Iterator[Any]:
    """The values of a column as Python objects."""
    if isinstance(values, list):
        yield from values
        return
    for start in range(0, len(values), ROWS_PER_BATCH):
        yield from values.slice(start, ROWS_PER_BATCH).to_pylist()


def batches_of(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows, so many at a time."""
    left = iter(rows)
    while batch := list(islice(left, ROWS_PER_BATCH)):
        yield batch


def array_of(values: list[Any], type: pa.DataType | None = STRING, column: str = "") -> pa.Array:
    """Python objects as an array, of the type that they have where it is None.

    Raises:
        SchemaError: they have more than one, or a text is none that Arrow can hold.
    """
    try:
        return pa.array(values, type)
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"A text holds half of a surrogate pair, which no dataset can store: {shorten(ascii(error.object), 60)}. "
            "Repair the texts first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None
    except pa.ArrowException as error:
        raise SchemaError(
            f"Column {column!r} holds values of different types ({error}). Give them one type, or leave the column out."
        ) from error


def lengths(lists: Sequence[Sequence[Any]]) -> Integers:
    """The length of each list."""
    return np.array([len(found) for found in lists], np.int64)


def filled(given: pa.Array, made: pa.Array) -> pa.Array:
    """The given values, with one of those that were made in place of each null."""
    return made if len(made) == len(given) else pc.replace_with_mask(given, pc.is_null(given), made)


def blank(texts: pa.Array) -> Any:
    """Where nothing but space stands, as a mask. Almost every other text holds a letter or sign of ASCII."""
    found = ~pc.match_substring_regex(texts, "[!-~]").to_numpy(zero_copy_only=False)
    if found.any():
        trimmed = pc.utf8_trim_whitespace(taken(texts, np.flatnonzero(found)))
        found[found] = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
    return found


def list_in(value: Any, column: str, of: str) -> list[Any]:
    """A value as a list, an empty one where it is null.

    Raises:
        SchemaError: it is none.
    """
    if value is None:
        return []
    if hasattr(value, "tolist"):  # rows of a dataset formatted as numpy or torch
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise SchemaError(
            f"column {column!r} holds {found_as(value)}; a list of {of} was expected. A single value becomes a list "
            f"with ds.map(lambda row: {{{column!r}: [row[{column!r}]]}})."
        )
    return list(value)


def found_as(value: object) -> str:
    """A value in the words of a message."""
    return "null" if value is None else f"a {type(value).__name__} ({shorten(repr(value), 60)})"


def _value_at(values: Values, row: int) -> object:
    return values[row] if isinstance(values, list) else values[row].as_py()


# --- arrays -----------------------------------------------------------------------------------------------------


def _strings(values: pa.Array) -> pa.Array | None:
    types = pa.types
    if types.is_string(values.type):
        return values
    return pc.cast(values, STRING) if types.is_large_string(values.type) or types.is_null(values.type) else None


def _texts(values: pa.Array) -> pa.Array | None:
    return None if values.null_count else _strings(values)


def _titles(values: pa.Array) -> pa.Array | None:
    titles = _strings(values)
    return titles if titles is None or not titles.null_count else pc.fill_null(titles, "")


def _optional_texts(values: pa.Array) -> pa.Array | None:
    texts = _strings(values)
    if texts is None:
        return None
    # Taken, as `if_else` of pyarrow 16 misreads slices of strings.
    empty = pc.fill_null(pc.equal(pc.binary_length(texts), 0), False).to_numpy(zero_copy_only=False)
    return taken(texts, np.where(empty, -1, np.arange(len(texts)))) if empty.any() else texts


def _queries(values: pa.Array) -> pa.Array | None:
    texts = _texts(values)
    return None if texts is None or blank(texts).any() else texts


def _ids(values: pa.Array) -> pa.Array | None:
    if pa.types.is_float32(values.type) or pa.types.is_float64(values.type):
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))
        if pc.all(whole).as_py() is False:
            return None
        values = pc.cast(values, pa.int64())  # what pandas makes of a column of integers with gaps
    return pc.cast(values, STRING) if pa.types.is_integer(values.type) else _optional_texts(values)


def _docids(values: pa.Array) -> pa.Array | None:
    ids = _ids(values)
    return None if ids is None or ids.null_count else ids


def _numbers(values: pa.Array) -> pa.Array | None:
    of = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return pc.cast(values, pa.float64(), safe=False) if any(fits(values.type) for fits in of) else None


# --- values -----------------------------------------------------------------------------------------------------


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"column {column!r} holds {found_as(value)} where the text of one passage was expected.")
    return value


def _title(value: object, column: str) -> str:
    if not isinstance(value, str | None):
        raise SchemaError(f"column {column!r} holds {found_as(value)} as a title; a string or null was expected.")
    return value or ""


def _query(value: object, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SchemaError(f"column {column!r} holds {found_as(value)} where the text of a query was expected.")
    return value


def _id(value: object, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of a column of integers with gaps
        return str(int(value))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(value)
    raise SchemaError(f"column {column!r} holds {found_as(value)} as an id; a string or an integer was expected.")


def _docid(value: object, column: str) -> str:
    if (docid := _id(value, column)) is None:
        raise SchemaError(f"column {column!r} holds a null or empty docid.")
    return docid


def _number(value: object, column: str) -> float | None:
    if not isinstance(value, Real | None):
        raise SchemaError(f"column {column!r} holds {found_as(value)} where a number was expected.")
    return None if value is None else float(value)


TEXT = Kind(array=_texts, value=_text, plural="texts")
TITLE = Kind(array=_titles, value=_title)
"""A title, empty where there is none."""
OPTIONAL_TEXT = Kind(array=_optional_texts, value=lambda value, column: _text(value, column) if value else None)
"""A text, null where there is none or an empty one."""
QUERY_TEXT = Kind(array=_queries, value=_query)
ID = Kind(array=_ids, value=_id)
"""An id as a string, null where there is none."""
DOCID = Kind(array=_docids, value=_docid, plural="docids")
"""An id that has to be there."""
NUMBER = Kind(array=_numbers, value=_number, plural="numbers", type=pa.float64())
"""A number or null."""


def absent(values: Values) -> Any:
    """Where a column is null, as a mask."""
    if isinstance(values, list):
        return np.array([value is None for value in values], bool)
    return is_null(one_array(values))
