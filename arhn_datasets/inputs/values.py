"""Types of values: those of Python objects, the one type of several, and values of several kinds as JSON text.

`datasets` has a type for a column of several kinds, ``Json``, whose values are stored as JSON text. Read as if it were
text, such a column has quotes and escapes; :func:`~arhn_datasets.rows.arrow.decoded` gives its values back.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from functools import cache, partial, reduce
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import decoded, holds_json, is_json

WIDEST_INTEGER = pa.decimal128(38, 0)
_NULL = pa.null()
NUMBER_AS_TEXT = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_UNPARTED = re.compile(r"""['"]\s+['"]""")  # as numpy writes lists of texts, which Python reads as one text


@cache
def json_type() -> pa.DataType | None:
    """The type of a column of several kinds, where this version of `datasets` has one."""
    import datasets

    return datasets.Json()() if hasattr(datasets, "Json") else None


# --- types ------------------------------------------------------------------------------------------------------------


def plain(type: pa.DataType) -> pa.DataType:
    """The same type as `datasets` writes it: no dictionaries and views, and names and nulls as it has them."""
    kinds = pa.types
    if kinds.is_dictionary(type):
        return plain(type.value_type)
    if kinds.is_struct(type):
        return pa.struct([(field.name, plain(field.type)) for field in type])
    if kinds.is_large_list(type):
        return pa.large_list(plain(type.value_type))
    if _is_list(type):
        return pa.list_(plain(type.value_type))
    return pa.large_string() if kinds.is_string_view(type) else type


def _is_list(type: pa.DataType) -> bool:
    kinds = pa.types
    of = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view, kinds.is_large_list_view)
    return any(fits(type) for fits in of)


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def united(one: pa.DataType, other: pa.DataType, name: str, *, wide: bool = False) -> pa.DataType:
    """The type that holds the values of both: of structs, all their fields; of several kinds, JSON text.

    Args:
        one: A type, as :func:`plain` gives it.
        other: Another one.
        name: Where it stands, for the message.
        wide: Some value does not fit exactly into the usual type of both, as 2**60 + 1 into that of 0.5.

    Raises:
        SchemaError: there is no such type.
    """
    return arrow.united(one, other, partial(_of_both, wide=wide), name)


def _of_both(one: pa.DataType, other: pa.DataType, name: str, *, wide: bool) -> pa.DataType:
    if _is_text(one) and _is_text(other):
        return pa.large_string()
    found = _number(one, other, wide) or (json_type() if _is_of_json(one) and _is_of_json(other) else None)
    if found is None:
        raise SchemaError(f"column {name!r} holds {one} and {other}, and one column cannot hold both")
    return found


def _number(one: pa.DataType, other: pa.DataType, wide: bool) -> pa.DataType | None:
    kinds, both = pa.types, (one, other)
    whole = [kinds.is_integer(type) or type == WIDEST_INTEGER for type in both]
    if all(whole):
        if WIDEST_INTEGER in both:
            return WIDEST_INTEGER
        if kinds.is_signed_integer(one) == kinds.is_signed_integer(other):
            return max(both, key=lambda type: type.bit_width)
        if pa.uint64() not in both:
            return pa.int64()
        return WIDEST_INTEGER if wide else pa.uint64()
    floating = [kinds.is_floating(type) for type in both]
    if all(floating):
        return max(both, key=lambda type: type.bit_width)
    numbers = all(kinds.is_integer(type) or kinds.is_floating(type) for type in both)
    return pa.float64() if numbers and not wide else None


def _is_of_json(type: pa.DataType) -> bool:
    """Whether JSON has such values."""
    kinds = pa.types
    if kinds.is_struct(type):
        return all(_is_of_json(field.type) for field in type)
    if _is_list(type):
        return _is_of_json(type.value_type)
    of = (is_json, _is_text, kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null)
    return type == WIDEST_INTEGER or any(fits(type) for fits in of)


def settled(type: pa.DataType) -> pa.DataType:
    """The same type without structs that have no field, which no file of Parquet can hold."""
    if pa.types.is_struct(type):
        fields = [(field.name, settled(field.type)) for field in type]
        return pa.struct(fields) if fields else json_type() or _NULL
    if _is_list(type):
        return (pa.large_list if pa.types.is_large_list(type) else pa.list_)(settled(type.value_type))
    return type


def united_columns(
    one: Mapping[str, pa.DataType], other: Mapping[str, pa.DataType], wide: Collection[str] = ()
) -> dict[str, pa.DataType]:
    """The types of the columns of both, as :func:`united`; ``wide`` names columns."""
    both = {name: united(one.get(name, _NULL), type, name, wide=name in wide) for name, type in other.items()}
    return {**one, **both}


def conformed(values: Any, type: pa.DataType) -> pa.Array:
    """Values with a type that :func:`united` gave for theirs and others.

    Raises:
        SchemaError: one of them does not fit into it exactly.
    """
    values = arrow.one_array(values)
    if values.type != (own := plain(values.type)):
        values = arrow.one_array(values.cast(own))
    return arrow.shaped(values, type)


# --- Python objects ---------------------------------------------------------------------------------------------------


def type_of(value: Any, name: str, *, wide: bool = False) -> pa.DataType:
    """The type of a value of JSON.

    Raises:
        SchemaError: its parts have kinds that no one type holds.
    """
    if isinstance(value, dict):
        return pa.struct([(key, type_of(one, f"{name}.{key}", wide=wide)) for key, one in value.items()])
    if isinstance(value, (list, tuple)):
        return pa.list_(_type_of_all(value, name, wide=wide))
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        if abs(value) >= 10**38:
            return pa.string()
        return pa.uint64() if 0 < value < 2**64 else WIDEST_INTEGER
    return pa.scalar(value).type


def _type_of_all(values: Sequence[Any], name: str, *, wide: bool) -> pa.DataType:
    return reduce(lambda one, value: united(one, type_of(value, name, wide=wide), name, wide=wide), values, _NULL)


def array_of(values: Sequence[Any], name: str) -> pa.Array:
    """Values of JSON as an array of the one type that holds them all exactly.

    Raises:
        SchemaError: there is none.
    """
    try:
        found = pa.array(values)  # which refuses what follows, but for true among fractions
        if not _holds_truth(values, found.type):
            return found
    except (pa.ArrowException, OverflowError):
        pass
    for wide in (False, True):
        type = _type_of_all(values, name, wide=wide)
        try:
            return _wrapped(pa.array([_stored(value, type) for value in values], _storage(type)), type)
        except (pa.ArrowException, OverflowError):
            if wide:
                raise
    raise AssertionError


def _holds_truth(values: Sequence[Any], type: pa.DataType) -> bool:
    """Whether true or false stands among fractions, of which Arrow makes 1.0 and 0.0."""
    if pa.types.is_floating(type):
        return any(one is True or one is False for one in values)
    if pa.types.is_struct(type):
        return any(_holds_truth([one.get(own.name) for one in values if one], own.type) for own in type)
    return _is_list(type) and _holds_truth(list(chain.from_iterable(filter(None, values))), type.value_type)


def _storage(type: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(type):
        return pa.struct([(field.name, _storage(field.type)) for field in type])
    if _is_list(type):
        return pa.list_(_storage(type.value_type))
    return pa.string() if is_json(type) else type


def _stored(value: Any, type: pa.DataType) -> Any:
    if value is None:
        return None
    if is_json(type):
        return arrow.json_text(value)
    if pa.types.is_struct(type):
        return {field.name: _stored(value.get(field.name), field.type) for field in type}
    if _is_list(type):
        return [_stored(one, type.value_type) for one in value]
    if type == WIDEST_INTEGER:
        return Decimal(value)
    return str(value) if pa.types.is_string(type) else value


def _wrapped(values: pa.Array, type: pa.DataType) -> pa.Array:
    """Values of the storage of a type as values of the type."""
    if values.type == type:
        return values
    if is_json(type):
        return pa.ExtensionArray.from_storage(type, values)
    if pa.types.is_struct(type):
        parts = [_wrapped(values.field(at), field.type) for at, field in enumerate(type)]
        return pa.StructArray.from_arrays(parts, fields=list(type), mask=values.is_null())
    absent = arrow.is_null(values)
    return arrow.lists_of(arrow.lengths_of(values), _wrapped(values.flatten(), type.value_type), absent=absent)


def readable(values: Any, *, structs: bool = False) -> Any:
    """A column as it can be read: of JSON text the Python objects, or passages of one type where it holds ``structs``.

    Where JSON text stands only in the fields of passages, these are decoded when they are read.
    """
    type = values.type
    if not holds_json(type) or (structs and _is_list(type) and pa.types.is_struct(type.value_type)):
        return values
    found = decoded(values)
    if structs and all(value is None or _holds_objects(value) for value in found):
        return pa.chunked_array([array_of(found, "")])
    return found


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def numbers_in(texts: pa.Array) -> pa.Array | None:
    """Texts as the numbers that are written in them, as in CSV, which has only texts; None where one is no number."""
    written = pc.all(pc.match_substring_regex(texts, NUMBER_AS_TEXT)).as_py() is not False
    return pc.cast(texts, pa.float64()) if written else None


def loader_advice(value: Any) -> str:
    """What to do where a loader has made another value of what is written in the file."""
    as_text = "arhn-refine FILE reads it as it is written, and so does load_dataset(..., features=...) with strings"
    if isinstance(value, (date, time)):
        return f" Loaders make dates of texts that look like them; {as_text}."
    if isinstance(value, float) and abs(value) >= 2**53:
        return f" Loaders make such numbers of long ids, and digits are lost; {as_text}."
    return ""


def list_advice(value: Any, column: str) -> str:
    """How a value becomes a list: one that is written as text, as CSV has it, must not be wrapped."""
    if not (isinstance(value, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", value, re.DOTALL)):
        return f"A single value becomes a list with ds.map(lambda row: {{{column!r}: [row[{column!r}]]}})."
    for module, reader in ((json, json.loads), (ast, ast.literal_eval)):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(reader(value), (list, tuple)) and not (module is ast and _UNPARTED.search(value)):
                call = f"{module.__name__}.{reader.__name__}"
                return (
                    f"It is a list that was written as text. import {module.__name__}, and read this column, and every "
                    f"other one like it, with ds.map(lambda row: {{{column!r}: list({call}(row[{column!r}]))}}), or "
                    "write the rows as JSON lines."
                )
    return "It looks like a list that was written as text and cannot be read back; write the rows anew, as JSON lines."


def as_text(values: list[Any]) -> pa.Array:
    """Python objects as texts: 7 as '7'."""
    return pa.array(
        [one if one is None or isinstance(one, str) else arrow.json_text(one) for one in values], pa.string()
    )
