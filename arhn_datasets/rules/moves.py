"""Where the passages of many rows go: lists that are taken apart and put together again, whatever the rule.

A rule reads the evidence on all positives and all negatives, one after the other (:class:`Evidence`), and says for each
negative which list it goes into. :class:`Undecided` finds the places at which the passages of the new lists stand in
the old ones, and follows these by one gather a column.

Rows of Python objects go the same way, as a small table in which stands, for each passage and each piece of evidence,
its place among the objects, beside the field that rules read. So there is one way to compute a rule, and nothing is
converted: the objects themselves, whatever they hold, are put where their places have gone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows import arrow, records
from arhn_datasets.rows.arrow import Codes, Integers, Mask, Numbers
from arhn_datasets.rows.records import FILTERED, KINDS, LABELLED, NEGATIVE, POSITIVE, QUERY, SIDES, Row, Side
from arhn_datasets.rows.stage import ColumnTransform

Names = Callable[[Integers], Sequence[Any]]
"""The names of some rows, by their numbers."""

SOURCE_LABELS = tuple(side.label for side in LABELLED)
ORIGINS = tuple(side.origins for side in SIDES)
_ITSELF, _PLACE = "itself", "place"  # in place of a field's name, and beside it in a table of objects


def _field_read(kind: str) -> tuple[str, pa.DataType]:
    """The field of a kind of evidence that rules read, and its type."""
    return KINDS[kind].reads or _ITSELF, pa.string() if KINDS[kind].words else pa.float64()


_KIND_OF = {side.column(kind): kind for side in SIDES for kind in KINDS}
_TYPES = {
    **{kind: pa.struct([(_PLACE, pa.int64()), _field_read(kind)]) for kind in KINDS},
    "passages": pa.struct([(_PLACE, pa.int64())]),
    "origins": records.ORIGIN_TYPE,
}
_LISTS = {column: pa.list_(_TYPES[kind]) for column, kind in _KIND_OF.items()}


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
        objects: list[Any] = []
        table = pa.table({column: _column_of(column, rows, objects) for column in rows[0]})
        types = {column: _LISTS.get(column, records.DECISION_TYPE) for column in self.types(None)}
        columns = self.moved(table, types)
        lists = [_objects_in(values, objects) for values in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _column_of(column: str, rows: Sequence[Row], objects: list[Any]) -> pa.Array:
    """A column of a table of places; what these are of is added to the objects."""
    values, kind = [row[column] for row in rows], _KIND_OF.get(column)
    if column in (QUERY, records.QUERY_ID):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if column == records.DECISION:
        return pa.array([None if value is None else True for value in values], pa.bool_())
    if kind is None:
        return pa.nulls(len(rows))
    if kind == "passages":
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                records.passages_of(row, column)  # or it says what was expected
    absent = np.array([value is None for value in values], bool)
    counts = np.array([0 if value is None else len(value) for value in values], np.int64)
    flat = [one for value in values if value is not None for one in value]
    places = pa.array(np.arange(len(objects), len(objects) + len(flat)))
    objects.extend(flat)
    type = _TYPES[kind]
    fields = [places if field.name == _PLACE else _field_in(flat, field, column) for field in type]
    structs = pa.StructArray.from_arrays(fields, fields=list(type))
    return arrow.lists_of(counts, structs, absent=absent if absent.any() else None)


def _field_in(objects: Sequence[Any], field: pa.Field, column: str) -> pa.Array:
    """What is read of objects: a field, or these as a whole."""
    itself = field.name == _ITSELF
    try:
        values = objects if itself else [None if one is None else one[field.name] for one in objects]
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError) as error:
        raise SchemaError(
            f"Column {column!r} holds a {'value' if itself else field.name} that is no {field.type}: {error}. Run its "
            "stage again."
        ) from error


def _objects_in(column: pa.Array, objects: Sequence[Any]) -> list[Any]:
    """The values of a column, with the objects in place of their places."""
    inner = getattr(column.type, "value_type", None)
    if inner is None or inner.get_field_index(_PLACE) < 0:
        values: list[Any] = column.to_pylist()
        return values
    places = arrow.field_of(column.flatten(), _PLACE, pa.int64()).to_pylist()
    flat = [None if place is None else objects[place] for place in places]
    starts, absent = arrow.starts_of(arrow.lengths_of(column)).tolist(), arrow.is_null(column).tolist()
    return [None if absent[at] else flat[starts[at] : starts[at + 1]] for at in range(len(column))]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule looks at: the evidence on the positives, or the negatives, of many rows, one after the other."""

    counts: Integers
    of: Callable[[str], Numbers]
    """One number a passage of a kind of evidence, NaN where there is none: a rank, score or grade.

    For a word it is its place in the ``words`` of the kind: 0 for ``grounded`` and 1 for ``no_answer``.
    """

    @cached_property
    def rows(self) -> Integers:
        """The row of each passage."""
        return arrow.rows_of(self.counts)


class Undecided:
    """Rows as they were before any rule, by places in the lists that they stand in now.

    Rows that were decided upon are put back in the order that their origins name; the others are as they are.

    Args:
        needed: Kinds of evidence of which no row may lack a list that its stage would have made.
    """

    def __init__(self, table: pa.Table, needed: Sequence[str] = ()) -> None:
        self._table, self._names = table, frozenset(table.column_names)
        self._lists_of: dict[str, tuple[pa.Array, Integers]] = {}
        self._decided = decided_rows(table)
        self._sides = SIDES if self._decided.any() else LABELLED
        self._read = {side: self._lengths(side) for side in self._sides}
        kinds = [kind for kind in records.EVIDENCE_KINDS if POSITIVE.column(kind) in self._names]
        self._absent = {kind: {side: self._checked(side, kind) for side in self._sides} for kind in kinds}
        self._numbers_of: dict[str, Numbers] = {}
        self._counts, self._places = self._order()
        for kind in needed:
            if KINDS[kind].everywhere:
                self._check_needed(kind)

    def names(self, rows: Integers) -> list[Any]:
        """The query ids of some rows, or their queries where they have none."""
        queries = self._table.column(QUERY)
        ids = self._table.column(records.QUERY_ID) if records.QUERY_ID in self._names else pa.nulls(len(queries))
        pairs = zip(ids.take(pa.array(rows)).to_pylist(), queries.take(pa.array(rows)).to_pylist(), strict=True)
        return [query if name is None else name for name, query in pairs]

    def evidence(self, side: Side) -> Evidence:
        """What is known of the positives or the negatives."""
        return Evidence(counts=self._counts[side], of=lambda kind: self._numbers(kind)[self._places[side]])

    def moved(
        self, types: Mapping[str, pa.DataType], targets: Codes | None = None, decision: pa.Array | None = None
    ) -> dict[str, pa.Array]:
        """The lists, with all that goes along, if each negative goes into the list of its target in :data:`SIDES`.

        Without targets the passages go back to where they were. The columns are those of ``types``, in its order;
        beside a decision there are origins.
        """
        counts, sources = self._targets(targets)
        places = np.concatenate([self._places[side] for side in LABELLED])
        columns: dict[str, Any] = {}
        for kind in ("passages", *self._absent):
            if POSITIVE.column(kind) not in types:
                continue
            type: Any = types[POSITIVE.column(kind)]
            parts = [self._flat(side, kind, type.value_type) for side in self._sides]
            absent = self._absent[kind][POSITIVE] & self._absent[kind][NEGATIVE] if kind in self._absent else None
            for side, at in sources.items():
                number, none = counts[side], None
                if absent is not None and absent.any():
                    at, number, none = at[np.repeat(~absent, number)], np.where(absent, 0, number), absent
                lists = arrow.lists_of(number, arrow.gathered(parts, places[at]), absent=none)
                columns[side.column(kind)] = arrow.shaped(lists, type)
        if decision is not None:
            labels = np.repeat(np.arange(len(LABELLED)), [self._counts[side].sum() for side in LABELLED])
            positions = np.concatenate([arrow.within(self._counts[side]) for side in LABELLED]).astype(np.int32)
            for side, at in sources.items():
                fields = [words_of(SOURCE_LABELS, labels[at]), pa.array(positions[at])]
                values = pa.StructArray.from_arrays(fields, fields=list(records.ORIGIN_TYPE))
                columns[side.origins] = arrow.lists_of(counts[side], values)
            columns[records.DECISION] = decision
        return {column: columns[column] for column in types if column in columns}

    def _targets(self, targets: Codes | None) -> tuple[Mapping[Side, Integers], Mapping[Side, Integers]]:
        """The new lengths of each list, and which passages of the source, positives first, stand in it."""
        first, second = (np.arange(self._counts[side].sum()) for side in LABELLED)
        second = second + len(first)
        if targets is None:
            return self._counts, {POSITIVE: first, NEGATIVE: second}
        rows, count = arrow.rows_of(self._counts[NEGATIVE]), len(self._decided)
        counts = {side: np.bincount(rows[targets == code], minlength=count) for code, side in enumerate(SIDES)}
        sources = {side: second[targets == code] for code, side in enumerate(SIDES)}
        counts[POSITIVE], order = arrow.merged([self._counts[POSITIVE], counts[POSITIVE]])
        sources[POSITIVE] = np.concatenate([first, sources[POSITIVE]])[order]
        return counts, sources

    def _flat(self, side: Side, kind: str, type: pa.DataType) -> pa.Array:
        """The values of a kind beside the passages of a list; null where a row has none."""
        column, counts = side.column(kind), self._read[side]
        if column not in self._names:
            return pa.nulls(int(counts.sum()), type)
        lists, lengths = self._lists(column)
        return arrow.aligned(arrow.shaped(lists.flatten(), type, column), lengths, counts)

    def _lists(self, column: str) -> tuple[pa.Array, Integers]:
        if column not in self._lists_of:
            lists = arrow.lists_in(self._table, column)
            self._lists_of[column] = lists, arrow.lengths_of(lists)
        return self._lists_of[column]

    def _lengths(self, side: Side) -> Integers:
        lists, lengths = self._lists(side.passages)
        if lists.null_count and (arrow.is_null(lists) & (self._decided | (side != FILTERED))).any():
            records.passages_of(dict.fromkeys(self._names), side.passages)  # says what was expected
        return lengths

    def _checked(self, side: Side, kind: str) -> Mask:
        """The rows without a list of evidence, which is then not there; any other has one value a passage."""
        column, counts = side.column(kind), self._read[side]
        if column not in self._names:
            return np.full(len(counts), True)
        lists, lengths = self._lists(column)
        absent: Mask = arrow.is_null(lists)
        wrong = (lengths != counts) & ~absent & (self._decided | (side != FILTERED))
        _check_lengths(self._table, column, lengths, side, counts, wrong)
        return absent

    def _check_needed(self, kind: str) -> None:
        absent = self._absent[kind]
        both = absent[POSITIVE] & absent[NEGATIVE]
        for side in LABELLED:
            counts = self._counts[side]
            wrong = np.where(self._decided, both, absent[side]) & (counts > 0)
            _check_lengths(self._table, side.column(kind), np.zeros_like(counts), side, counts, wrong)

    def _order(self) -> tuple[dict[Side, Integers], dict[Side, Integers]]:
        """How many positives and negatives a row had, and where each stands in the lists that were read."""
        if not self._decided.any():
            first, second = (np.arange(self._read[side].sum()) for side in LABELLED)
            return self._read, {POSITIVE: first, NEGATIVE: len(first) + second}
        parts = [self._origins(side) for side in self._sides]
        rows, labels, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
        places = np.arange(len(rows))
        if not self._decided.all():  # what is filtered in a row without a decision is none of its passages
            places = places[labels >= 0]
        key = ((rows * len(LABELLED) + labels) << 32) + positions
        places = places[np.argsort(key[places], kind="stable")]
        labels = labels[places]
        of_side = {side: places[labels == code] for code, side in enumerate(LABELLED)}
        return {side: np.bincount(rows[at], minlength=len(self._decided)) for side, at in of_side.items()}, of_side

    def _origins(self, side: Side) -> tuple[Integers, Integers, Integers]:
        """Row, label and position in the source of the passages of a list; a label of -1 is of none."""
        counts, column = self._read[side], side.origins
        rows, (lists, lengths) = arrow.rows_of(counts), self._lists(column)
        _check_lengths(self._table, column, lengths, side, counts, (lengths != counts) & self._decided)
        values = arrow.aligned(lists.flatten(), lengths, counts)
        named = pc.index_in(arrow.field_of(values, "label", pa.string()), value_set=_array_of(SOURCE_LABELS))
        labels, positions = (
            pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            for found in (named, arrow.field_of(values, "position", pa.int32()))
        )
        own, decided = SIDES.index(side), self._decided[rows]
        wrong = decided & ((labels < 0) | (positions < 0))
        if (at := arrow.first_of(wrong)) is not None:
            raise SchemaError(
                f"Column {column!r} names no place in the source for a passage (query "
                f"{self._table.column(QUERY)[int(rows[at])].as_py()!r}); a label of {', '.join(SOURCE_LABELS)} and a "
                "position from 0 were expected. Take the rows as arhn.relabel has written them."
            )
        labels = np.where(decided, labels, own if side in LABELLED else -1)
        return rows, labels, np.where(decided, positions, arrow.within(counts))

    def _numbers(self, kind: str) -> Numbers:
        """What is read of a kind of evidence, of all passages in the lists as they are."""
        if kind not in self._numbers_of:
            self._numbers_of[kind] = np.concatenate([self._numbers_on(side, kind) for side in self._sides])
        return self._numbers_of[kind]

    def _numbers_on(self, side: Side, name: str) -> Numbers:
        column, counts, kind = side.column(name), self._read[side], KINDS[name]
        if column not in self._names:
            return np.full(int(counts.sum()), np.nan)
        lists, lengths = self._lists(column)
        values = arrow.aligned(lists.flatten(), lengths, counts)
        if kind.reads is not None or pa.types.is_struct(values.type):
            values = arrow.field_of(values, *_field_read(name))
        if kind.words:
            values = pc.index_in(values, value_set=_array_of(kind.words))
        numbers: Numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(np.isfinite(numbers), numbers, np.nan)


def decided_rows(table: pa.Table) -> Mask:
    """The rows that a rule has decided upon."""
    if records.DECISION not in table.column_names:
        return np.full(table.num_rows, False)
    decided: Mask = ~arrow.is_null(arrow.one_array(table.column(records.DECISION)))
    return decided


def check_origins(table: pa.Table, *, shortened: bool = False) -> None:
    """Whether the origins that rows have are those of the passages beside them, or of more where lists may be shorter.

    They are not where a function of the user's has called ``arhn.revert``: `datasets` lays its result over the columns
    that are there. Lengths tell, since whatever a rule moves, it moves out of the negatives.

    Raises:
        SchemaError: they are not, or the rows are not canonical.
    """
    arrow.check_canonical(table.column_names)
    for side in SIDES:
        column = side.origins
        if not {side.passages, column} <= set(table.column_names):
            continue
        (found, absent), (counts, _) = arrow.lengths_in(table, column), arrow.lengths_in(table, side.passages)
        wrong = ((found < counts) if shortened else (found != counts)) & ~absent
        if records.DECISION in table.column_names:
            wrong &= decided_rows(table)
        _check_lengths(table, column, found, side, counts, wrong)


def _check_lengths(table: pa.Table, column: str, lengths: Integers, side: Side, counts: Integers, wrong: Mask) -> None:
    """Refuse rows whose lists do not fit their passages."""
    if (row := arrow.first_of(wrong)) is None:
        return
    advice = "Run the stages before again on these rows."
    if column in ORIGINS:
        advice = (
            "The passages were changed after arhn.relabel and these columns were not, as by a function that calls "
            "arhn.revert in ds.map: map arhn.revert itself, or drop what is left from before it with "
            "ds.remove_columns(arhn.revert.dropped(ds.column_names))."
        )
    raise SchemaError(
        f"Column {column!r} has {lengths[row]} values for {counts[row]} passages in {side.passages!r} (query "
        f"{table.column(QUERY)[row].as_py()!r}); one each was expected. {advice}"
    )


def words_of(words: tuple[str, ...], codes: Codes) -> pa.Array:
    """The words that codes stand for."""
    return _array_of(words).take(pa.array(codes))


@cache
def _array_of(words: tuple[str, ...]) -> pa.Array:
    return pa.array(words, pa.string())  # not where this is imported: it imports pandas


def passage_list_type(schema: pa.Schema | None) -> pa.DataType | None:
    """The list type that holds the positives as well as the negatives of a schema; None without a schema.

    Fields that only one side has are null on the other.

    Raises:
        SchemaError: a field has types on the two sides that nothing holds together.
    """
    if schema is None:
        return None
    lists = [schema.field(side.passages).type for side in LABELLED]
    found = [getattr(type, "value_type", pa.null()) for type in lists]
    structs = [type for type in found if pa.types.is_struct(type)] or [records.PASSAGE_TYPE]
    try:
        unified = pa.unify_schemas([pa.schema(list(struct)) for struct in structs], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(
            f"The passages of {POSITIVE.passages!r} and of {NEGATIVE.passages!r} cannot stand in one list: {error}. "
            "Cast or remove the field on one side."
        ) from error
    # Arrow gathers no string views.
    fields = [field.with_type(pa.string()) if pa.types.is_string_view(field.type) else field for field in unified]
    large = any(pa.types.is_large_list(type) for type in lists)
    return (pa.large_list if large else pa.list_)(pa.struct(fields))
