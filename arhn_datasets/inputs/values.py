"""Columns of texts, ids and numbers, and of lists of them, as Arrow arrays; out of Arrow, or out of Python objects.

Each :class:`Kind` of value is read in one way, from an array. Python objects are made one first; where they have
several types, or one of them is not of the kind, each is read by itself, which finds the one to name in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import Integers, flat_lists, is_list, is_null, one_array, rows_of, taken
from arhn_datasets.rows.records import QUERY, QUERY_ID, shorten

Values: TypeAlias = "pa.Array | pa.ChunkedArray | list[Any]"  # a column: of Arrow, or of Python objects
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
        query_id = value_at(columns[QUERY_ID], self.row) if QUERY_ID in columns else None
        name, value = (QUERY, value_at(columns[query], self.row)) if query_id in (None, "") else (QUERY_ID, query_id)
        where, left = "", ""
        if numbers is not None:
            number = int(numbers[self.row])
            where = f" (row {number}, counted from 0)"
            left = (
                " Correct that row, or leave it out: "
                f"ds.filter(lambda row, number: number != {number}, with_indices=True)."
            )
        return SchemaError(f"In the row with {name} {shorten(repr(value), 100)}{where}: {self}{left}")


@contextmanager
def naming_rows(columns: Mapping[str, Values], query: str, numbers: Sequence[int] | Integers) -> Iterator[None]:
    """Name the row that is broken, as :meth:`BrokenRow.named`."""
    try:
        yield
    except BrokenRow as broken:
        raise broken.named(columns, query, numbers) from None


@contextmanager
def in_lists(counts: Integers) -> Iterator[None]:
    """Of a value that breaks its row, the row in whose list it stands."""
    try:
        yield
    except BrokenRow as broken:
        raise BrokenRow(int(rows_of(counts)[broken.row]), broken) from None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What values mean: ``array`` reads an array, or gives None where a value in it is not what was ``expected``."""

    array: Callable[[pa.Array], pa.Array | None]
    expected: str
    needed: bool = False
    plural: str = ""
    type: pa.DataType = STRING


def read(values: Values, kind: Kind, column: str) -> pa.Array:
    """A column of values of a kind.

    Raises:
        BrokenRow: a value is not of the kind.
    """
    array = None
    try:
        array = kind.array(typed(values, column) if isinstance(values, list) else one_array(values))
    except SchemaError as error:  # values of several types, or one that Arrow cannot hold
        if len(values) == 1 and isinstance(values[0], str):  # which no advice on types would help
            raise BrokenRow(0, error) from None
    if array is not None and not (kind.needed and array.null_count):
        return array
    if not isinstance(values, list):
        return read(values.to_pylist(), kind, column)
    if len(values) == 1:
        raise BrokenRow(0, f"column {column!r} holds {found_as(values[0])} {kind.expected}.")
    return pa.concat_arrays([pa.nulls(0, kind.type), *each(values, lambda value: read([value], kind, column))])


def read_lists(values: Values, kind: Kind, column: str) -> tuple[Integers, pa.Array]:
    """A column of lists of values of a kind: their lengths, and the values of all.

    Raises:
        BrokenRow: a value is no list, or one in it is not of the kind.
    """
    if not isinstance(values, list) and is_list(values.type):
        counts, flat = flat_lists(pa.table({column: values}), column)
    else:
        lists = each(values, lambda value: list_in(value, column, kind.plural))
        counts, flat = lengths(lists), list(chain.from_iterable(lists))
    with in_lists(counts):
        return counts, read(flat, kind, column)


def each(values: Values, of: Callable[[Any], T]) -> list[T]:
    """What becomes of each value of a column.

    Raises:
        BrokenRow: with the place of the value that it is refused.
    """
    found: list[T] = []
    for value in values if isinstance(values, list) else values.to_pylist():
        try:
            found.append(of(value))
        except SchemaError as error:
            raise BrokenRow(len(found), error) from None
    return found


def value_at(values: Values, row: int) -> Any:
    """The value of a row as a Python object."""
    return values[row] if isinstance(values, list) else values[row].as_py()


def absent(values: Values) -> Any:
    """Where a column is null, as a mask."""
    return np.array([value is None for value in values]) if isinstance(values, list) else is_null(one_array(values))


def batches_of(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows, so many at a time."""
    left = iter(rows)
    while batch := list(islice(left, ROWS_PER_BATCH)):
        yield batch


def typed(values: list[Any], column: str) -> pa.Array:
    """Python objects as an array of the type that they have.

    Raises:
        SchemaError: they have more than one, or a text is none that Arrow can hold.
    """
    try:
        try:
            return pa.array(values)
        except OverflowError:  # integers beyond 64 bits, as hashes are
            return pa.array([Decimal(value) if isinstance(value, int) else value for value in values])
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"A text holds half of a surrogate pair, which no dataset can store: {shorten(ascii(error.object), 60)}. "
            "Repair the texts first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None
    except (pa.ArrowException, OverflowError) as error:
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


# --- the kinds --------------------------------------------------------------------------------------------------


def _strings(values: pa.Array) -> pa.Array | None:
    types = pa.types
    if types.is_string(values.type):
        return values
    if types.is_dictionary(values.type):
        return _strings(values.dictionary_decode())
    return pc.cast(values, STRING) if types.is_large_string(values.type) or types.is_null(values.type) else None


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
    texts = _strings(values)
    return None if texts is None or texts.null_count or blank(texts).any() else texts


def _is_whole(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or (pa.types.is_decimal(type) and type.scale == 0))


def _ids(values: pa.Array) -> pa.Array | None:
    if pa.types.is_float32(values.type) or pa.types.is_float64(values.type):
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))
        if pc.all(whole).as_py() is False:
            return None
        values = pc.cast(values, pa.int64())  # what pandas makes of a column of integers with gaps
    return pc.cast(values, STRING) if _is_whole(values.type) else _optional_texts(values)


def _numbers(values: pa.Array) -> pa.Array | None:
    of = (_is_whole, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return pc.cast(values, pa.float64(), safe=False) if any(fits(values.type) for fits in of) else None


_PASSAGE = "where the text of one passage was expected"
_ID = "a string or an integer was expected"

TEXT = Kind(array=_strings, expected=_PASSAGE, needed=True, plural="texts")
TITLE = Kind(array=_titles, expected="as a title; a string or null was expected")
"""A title, empty where there is none."""
OPTIONAL_TEXT = Kind(array=_optional_texts, expected=_PASSAGE)
"""A text, null where there is none or an empty one."""
QUERY_TEXT = Kind(array=_queries, expected="where the text of a query was expected")
ID = Kind(array=_ids, expected=f"as an id; {_ID}")
"""An id as a string, null where there is none."""
DOCID = Kind(array=_ids, expected=f"as a docid; {_ID}, no null or empty docid", needed=True, plural="docids")
"""An id that has to be there."""
NUMBER = Kind(array=_numbers, expected="where a number was expected", plural="numbers", type=pa.float64())
"""A number or null."""
