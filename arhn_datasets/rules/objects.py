"""Rows that are Python objects, as a small table for rules over columns.

In the table stands, for each passage and each piece of evidence, its place among the objects, beside the field that
rules read. So there is one way to compute a rule, and nothing is converted: the objects themselves, whatever they hold,
are put where their places have gone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import field_of, is_null, lengths_of, lists_of, starts_of
from arhn_datasets.rows.records import (
    DECISION,
    DECISION_TYPE,
    KINDS,
    ORIGIN_TYPE,
    QUERY,
    QUERY_ID,
    SIDES,
    Row,
    passages_of,
)
from arhn_datasets.rows.stage import ColumnTransform
from arhn_datasets.rules.moves import ITSELF, field_read

_PLACE = "place"
_KIND_OF = {side.column(kind): kind for side in SIDES for kind in KINDS}
_TYPES = {
    **{kind: pa.struct([(_PLACE, pa.int64()), field_read(kind)]) for kind in KINDS},
    "passages": pa.struct([(_PLACE, pa.int64())]),
    "origins": ORIGIN_TYPE,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class MovingTransform(ColumnTransform):
    """A stage that moves passages with all that belongs to them, in tables as well as in rows of Python objects."""

    @abstractmethod
    def moved(self, table: pa.Table, types: Mapping[str, Any]) -> Mapping[str, pa.Array]:
        """The new columns, of the given types."""

    def compute(self, table: pa.Table) -> Mapping[str, pa.Array]:
        """The new columns of the rows of a table."""
        return self.moved(table, self.types(table.schema))

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The new columns of rows, which hold the same objects."""
        if not rows:
            return []
        objects = _Objects(rows)
        return objects.rows(self.moved(objects.table, _types_of(self.types(None))))


class _Objects:
    """The passages and evidence of some rows, one after the other, and the table of their places."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._objects: list[Any] = []
        self.table = pa.table({column: self._column(column, rows) for column in rows[0]})

    def rows(self, columns: Mapping[str, pa.Array]) -> list[Row]:
        """The rows of a table of places, with the objects at these places."""
        lists = [self._objects_in(values) for values in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]

    def _column(self, column: str, rows: Sequence[Row]) -> pa.Array:
        values, kind = [row[column] for row in rows], _KIND_OF.get(column)
        if column in (QUERY, QUERY_ID):
            return pa.array([None if value is None else str(value) for value in values], pa.string())
        if column == DECISION:
            return pa.array([None if value is None else True for value in values], pa.bool_())
        if kind is None:
            return pa.nulls(len(rows))
        if kind == "passages":
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    passages_of(row, column)  # or it says what was expected
        return self._lists(column, values, _TYPES[kind])

    def _lists(self, column: str, values: Sequence[Any], type: pa.StructType) -> pa.Array:
        absent = np.array([value is None for value in values], bool)
        counts = np.array([0 if value is None else len(value) for value in values], np.int64)
        flat = [one for value in values if value is not None for one in value]
        places = pa.array(np.arange(len(self._objects), len(self._objects) + len(flat)))
        self._objects.extend(flat)
        fields = [places if field.name == _PLACE else _field_in(flat, field, column) for field in type]
        structs = pa.StructArray.from_arrays(fields, fields=list(type))
        return lists_of(counts, structs, absent=absent if absent.any() else None)

    def _objects_in(self, column: pa.Array) -> list[Any]:
        inner = getattr(column.type, "value_type", None)
        if inner is None or inner.get_field_index(_PLACE) < 0:
            values: list[Any] = column.to_pylist()
            return values
        places = field_of(column.flatten(), _PLACE, pa.int64()).to_pylist()
        flat = [None if place is None else self._objects[place] for place in places]
        starts, absent = starts_of(lengths_of(column)).tolist(), is_null(column).tolist()
        return [None if absent[at] else flat[starts[at] : starts[at + 1]] for at in range(len(column))]


def _types_of(columns: Iterable[str]) -> dict[str, pa.DataType]:
    """The types of the columns of a table of places."""
    return {column: DECISION_TYPE if column == DECISION else pa.list_(_TYPES[_KIND_OF[column]]) for column in columns}


def _field_in(objects: Sequence[Any], field: pa.Field, column: str) -> pa.Array:
    """What is read of objects: a field, or these as a whole."""
    itself = field.name == ITSELF
    try:
        return pa.array(
            objects if itself else [None if one is None else one[field.name] for one in objects], field.type
        )
    except (pa.ArrowException, TypeError) as error:
        raise SchemaError(
            f"Column {column!r} holds a {'value' if itself else field.name} that is no {field.type}: {error}. Run its "
            "stage again."
        ) from error
