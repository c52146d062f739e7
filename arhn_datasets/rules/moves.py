"""Where the passages of many rows go: lists that are taken apart and put together again, whatever the rule.

A rule reads the evidence on all positives and all negatives, one after the other (:class:`Evidence`), and says for each
negative which list it goes into. :class:`Source` makes :class:`Moves` of it, the places at which the passages of the
new lists stand in the old ones, and these are followed: by one gather a column in Arrow (:func:`moved_columns`), or by
the lists of rows that are Python objects (:func:`moved_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import (
    Codes,
    Integers,
    Mask,
    Numbers,
    aligned,
    check_canonical,
    field_of,
    gathered,
    is_null,
    lengths_in,
    lengths_of,
    lists_in,
    lists_of,
    merged,
    one_array,
    rows_of,
    shaped,
    within,
)
from arhn_datasets.rows.records import (
    BETTER,
    DECISION,
    FILTERED,
    GROUNDED,
    NEGATIVE,
    NO_ANSWER,
    ORIGIN_TYPE,
    PASSAGE_TYPE,
    POSITIVE,
    QUERY,
    QUERY_ID,
    WORSE,
    Row,
    passages_of,
)

Names = Callable[[Integers], Sequence[Any]]
"""The names of some rows, by their numbers."""

# The passage list, and the columns of ARHN that go along with it.
ALONG: Mapping[str, tuple[str, str, str]] = {
    POSITIVE.passages: (POSITIVE.snippets, POSITIVE.ranks, POSITIVE.origins),
    NEGATIVE.passages: (NEGATIVE.snippets, NEGATIVE.ranks, NEGATIVE.origins),
    FILTERED.passages: (FILTERED.snippets, FILTERED.ranks, FILTERED.origins),
}
# What a rule reads of the evidence on a passage: the field, None for the value itself, and the type of it.
READ: Mapping[str, tuple[str | None, pa.DataType]] = {
    "snippets": ("status", pa.string()),
    "ranks": (None, pa.float64()),
    "scores": (None, pa.float64()),
    "verdicts": ("verdict", pa.string()),
    "grades": ("grade", pa.float64()),
}
EVIDENCE_KINDS = tuple(READ)  # as the columns end
# The words that count, which become numbers from 0; any other is not a number.
_CODES = {"snippets": (GROUNDED, NO_ANSWER), "verdicts": (BETTER, WORSE)}

SIDES = tuple(ALONG)
SOURCE = (POSITIVE.passages, NEGATIVE.passages)  # those of a row before any rule
LABELS = ("positive", "negative")  # of these


def column_of(side: str, kind: str) -> str:
    """The column of a kind of evidence on a list of passages."""
    return f"{side.removesuffix('_passages')}_{kind}"


ORIGINS = tuple(column_of(side, "origins") for side in SIDES)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule looks at: the evidence on the positives, or the negatives, of many rows, one after the other."""

    counts: Integers
    numbers: Callable[[str], Numbers]

    def of(self, kind: str) -> Numbers:
        """One number a passage, NaN where there is none: a rank, score or grade, or what stands for a word.

        That is 0 for ``grounded`` and 1 for ``no_answer``, or 0 for ``better`` and 1 for ``worse``.
        """
        return self.numbers(kind)

    @cached_property
    def rows(self) -> Integers:
        """The row of each passage."""
        return rows_of(self.counts)


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Where all passages of some rows go.

    ``counts`` has for each list its new lengths; ``places`` where its passages stand in the lists that were read,
    :data:`ALONG` one after the other; ``sources`` which passage of the source each is: first all positives, in their
    order, then all negatives. ``origins`` are label and position of each passage of the source.
    """

    counts: Mapping[str, Integers]
    places: Mapping[str, Integers]
    sources: Mapping[str, Integers]
    origins: tuple[Codes, Integers]
    known: Mapping[str, Mask]
    """The rows that have evidence, by its kind; the others have null."""
    decision: pa.Array | None = None


class Source:
    """Rows as they were before any rule, by places in the lists that they stand in now.

    Rows that were decided upon are put back in the order that their origins name; the others are as they are.
    """

    def __init__(self, table: pa.Table, needed: Sequence[str] = ()) -> None:
        self._table, self._names = table, frozenset(table.column_names)
        self._found: dict[str, tuple[pa.Array, Integers]] = {}
        self._decided = decided_rows(table)
        self._sides = SIDES if self._decided.any() else SOURCE
        self._read = {side: self._lengths(side) for side in self._sides}
        self.kinds = tuple(kind for kind in READ if column_of(POSITIVE.passages, kind) in self._names)
        self._absent = {kind: {side: self._check(side, kind) for side in self._sides} for kind in self.kinds}
        self._known: dict[str, Numbers] = {}
        self._counts, self._places = self._order() if self._decided.any() else self._as_they_are()
        if "snippets" in needed:
            self._check_needed("snippets")

    def names(self, rows: Integers) -> list[Any]:
        """The query ids of some rows, or their queries where they have none."""
        queries = self._table.column(QUERY)
        ids = self._table.column(QUERY_ID) if QUERY_ID in self._names else pa.nulls(len(queries))
        at = pa.array(rows)
        found = zip(ids.take(at).to_pylist(), queries.take(at).to_pylist(), strict=True)
        return [query if name is None else name for name, query in found]

    def evidence(self, side: str) -> Evidence:
        """What is known of the positives or the negatives of the source."""
        return Evidence(counts=self._counts[side], numbers=lambda kind: self._numbers(kind)[self._places[side]])

    def moves(self, targets: Codes | None = None, decision: pa.Array | None = None) -> Moves:
        """Where the passages go if each negative goes into the list of its target, a place in :data:`SIDES`.

        Without targets they go back to where they were in the source.
        """
        first, second = (np.arange(self._counts[side].sum()) for side in SOURCE)
        second = second + len(first)
        places = np.concatenate([self._places[side] for side in SOURCE])
        if targets is None:
            counts, sources = self._counts, {POSITIVE.passages: first, NEGATIVE.passages: second}
        else:
            rows, count = rows_of(self._counts[NEGATIVE.passages]), len(self._decided)
            counts = {side: np.bincount(rows[targets == code], minlength=count) for code, side in enumerate(SIDES)}
            sources = {side: second[targets == code] for code, side in enumerate(SIDES)}
            counts[POSITIVE.passages], order = merged([self._counts[POSITIVE.passages], counts[POSITIVE.passages]])
            sources[POSITIVE.passages] = np.concatenate([first, sources[POSITIVE.passages]])[order]
        labels = np.repeat(np.arange(len(LABELS)), (len(first), len(second)))
        positions = np.concatenate([within(self._counts[side]) for side in SOURCE])
        return Moves(
            counts=counts,
            places={side: places[found] for side, found in sources.items()},
            sources=sources,
            origins=(labels, positions),
            known={
                kind: ~np.logical_and(absent[POSITIVE.passages], absent[NEGATIVE.passages])
                for kind, absent in self._absent.items()
            },
            decision=decision,
        )

    def _lists(self, column: str) -> tuple[pa.Array, Integers]:
        if column not in self._found:
            lists = lists_in(self._table, column)
            self._found[column] = lists, lengths_of(lists)
        return self._found[column]

    def _lengths(self, side: str) -> Integers:
        lists, lengths = self._lists(side)
        if lists.null_count and (is_null(lists) & (self._decided | (side != FILTERED.passages))).any():
            passages_of(dict.fromkeys(self._names), side)  # says what was expected
        return lengths

    def _check(self, side: str, kind: str) -> Mask:
        """The rows without a list of evidence, which is then not there; any other has one value a passage."""
        column, counts = column_of(side, kind), self._read[side]
        if column not in self._names:
            return np.full(len(counts), True)
        lists, found = self._lists(column)
        absent = is_null(lists) if lists.null_count else np.full(len(counts), False)
        wrong = (found != counts) & ~absent
        if side == FILTERED.passages:
            wrong &= self._decided
        if wrong.any():
            row = int(np.argmax(wrong))
            raise _misaligned(self._table, column, int(found[row]), side, int(counts[row]), row)
        return absent

    def _check_needed(self, kind: str) -> None:
        absent = self._absent[kind]
        both = absent[POSITIVE.passages] & absent[NEGATIVE.passages]
        for side in (POSITIVE.passages, NEGATIVE.passages):
            wrong = np.where(self._decided, both, absent[side]) & (self._counts[side] > 0)
            if wrong.any():
                row = int(np.argmax(wrong))
                raise _misaligned(self._table, column_of(side, kind), 0, side, int(self._counts[side][row]), row)

    def _as_they_are(self) -> tuple[Mapping[str, Integers], Mapping[str, Integers]]:
        sizes = [int(self._read[side].sum()) for side in self._sides]
        return self._read, {POSITIVE.passages: np.arange(sizes[0]), NEGATIVE.passages: sizes[0] + np.arange(sizes[1])}

    def _order(self) -> tuple[Mapping[str, Integers], Mapping[str, Integers]]:
        parts = [self._origins(side) for side in self._sides]
        rows, labels, positions = (np.concatenate(found) for found in zip(*parts, strict=True))
        places = np.arange(len(rows))
        if not self._decided.all():  # what is filtered in a row without a decision is none of its passages
            places = places[labels >= 0]
        key = ((rows * len(LABELS) + labels) << 32) + positions
        places = places[np.argsort(key[places], kind="stable")]
        labels = labels[places]
        found = {side: places[labels == code] for code, side in enumerate(SOURCE)}
        return {side: np.bincount(rows[at], minlength=len(self._decided)) for side, at in found.items()}, found

    def _origins(self, side: str) -> tuple[Integers, Integers, Integers]:
        """Row, label and position in the source of the passages of a list; a label of -1 is of none."""
        counts, column = self._read[side], column_of(side, "origins")
        rows, (lists, found) = rows_of(counts), self._lists(column)
        values = lists.flatten()
        if ((found != counts) & self._decided).any():
            row = int(np.argmax((found != counts) & self._decided))
            raise _misaligned(self._table, column, int(found[row]), side, int(counts[row]), row)
        values = aligned(values, found, counts)
        labels = pc.index_in(field_of(values, "label", pa.string()), value_set=_array_of(LABELS))
        positions = field_of(values, "position", pa.int32())
        own, decided = SIDES.index(side), self._decided[rows]
        labels = pc.fill_null(labels, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        positions = pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        wrong = decided & ((labels < 0) | (positions < 0))
        if wrong.any():
            row = int(rows[np.argmax(wrong)])
            raise SchemaError(
                f"Column {column!r} names no place in the source for a passage (query "
                f"{self._table.column(QUERY)[row].as_py()!r}); a label of {', '.join(LABELS)} and a position from 0 "
                "were expected. Take the rows as arhn.relabel has written them."
            )
        return (
            rows,
            np.where(decided, labels, own if own < len(LABELS) else -1),
            np.where(decided, positions, within(counts)),
        )

    def _numbers(self, kind: str) -> Numbers:
        """What is read of a kind of evidence, of all passages in the lists as they are."""
        if kind not in self._known:
            self._known[kind] = np.concatenate([self._numbers_in(kind, side) for side in self._sides])
        return self._known[kind]

    def _numbers_in(self, kind: str, side: str) -> Numbers:
        column, counts = column_of(side, kind), self._read[side]
        if column not in self._names:
            return np.full(int(counts.sum()), np.nan)
        (lists, found), (name, type) = self._lists(column), READ[kind]
        values = aligned(lists.flatten(), found, counts)
        if name is not None:
            values = field_of(values, name, type)
        if kind in _CODES:
            values = pc.index_in(values, value_set=_array_of(_CODES[kind]))
        numbers: Numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(np.isfinite(numbers), numbers, np.nan) if kind == "scores" else numbers


def decided_rows(table: pa.Table) -> Mask:
    """The rows that a rule has decided upon."""
    if DECISION not in table.column_names:
        return np.full(table.num_rows, False)
    decided: Mask = ~is_null(one_array(table.column(DECISION)))
    return decided


def check_origins(table: pa.Table, *, shortened: bool = False) -> None:
    """Whether the origins that rows have are those of the passages beside them, or of more where lists may be shorter.

    They are not where a function of the user's has called ``arhn.revert``: `datasets` lays its result over the columns
    that are there. Lengths tell, since whatever a rule moves, it moves out of the negatives.

    Raises:
        SchemaError: they are not, or the rows are not canonical.
    """
    check_canonical(table.column_names)
    for side in SIDES:
        column = column_of(side, "origins")
        if not {side, column} <= set(table.column_names):
            continue
        (found, absent), (counts, _) = lengths_in(table, column), lengths_in(table, side)
        wrong = ((found < counts) if shortened else (found != counts)) & ~absent
        if DECISION in table.column_names:
            wrong &= decided_rows(table)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise _misaligned(table, column, int(found[row]), side, int(counts[row]), row)


def _misaligned(table: pa.Table, column: str, found: int, side: str, count: int, row: int) -> SchemaError:
    advice = "Run the stages before again on these rows."
    if column in ORIGINS:
        advice = (
            "The passages were changed after arhn.relabel and these columns were not, as by a function that calls "
            "arhn.revert in ds.map: map arhn.revert itself, or drop what is left from before it with "
            "ds.remove_columns(arhn.revert.dropped(ds.column_names))."
        )
    return SchemaError(
        f"Column {column!r} has {found} values for {count} passages in {side!r} (query "
        f"{table.column(QUERY)[row].as_py()!r}); one each was expected. {advice}"
    )


def moved_columns(table: pa.Table, moves: Moves, types: Mapping[str, pa.DataType | None]) -> dict[str, pa.Array]:
    """The lists of a table, with all that goes along, after the moves: those of :data:`types`, in its order."""
    lengths = {side: lengths_of(lists_in(table, side)) for side in SIDES if side in table.column_names}
    columns: dict[str, Any] = {}
    for kind, known in {"passages": None, **moves.known}.items():
        wanted = {side: types[column_of(side, kind)] for side in moves.counts if column_of(side, kind) in types}
        if not wanted:
            continue
        type: Any = wanted[POSITIVE.passages]
        parts = [_flat(table, column_of(side, kind), counts, type.value_type) for side, counts in lengths.items()]
        for side in wanted:
            counts, places, absent = moves.counts[side], moves.places[side], None
            if known is not None and not known.all():
                places = places[np.repeat(known, counts)]
                counts, absent = np.where(known, counts, 0), ~known
            columns[column_of(side, kind)] = shaped(lists_of(counts, gathered(parts, places), absent=absent), type)
    if moves.decision is not None:
        columns |= _written(moves)
    return {column: columns[column] for column in types if column in columns}


def _flat(table: pa.Table, column: str, counts: Integers, type: pa.DataType) -> pa.Array:
    """The values of a column beside the passages of its list; null where a row has none."""
    if column not in table.column_names:
        return pa.nulls(int(counts.sum()), type)
    lists = lists_in(table, column)
    return aligned(shaped(lists.flatten(), type, column), lengths_of(lists), counts)


def _written(moves: Moves) -> dict[str, pa.Array]:
    """The origins of all passages, and the decisions."""
    labels, positions = moves.origins
    columns = {}
    for side, sources in moves.sources.items():
        fields = [words_of(LABELS, labels[sources]), pa.array(positions[sources].astype(np.int32))]
        values = pa.StructArray.from_arrays(fields, fields=list(ORIGIN_TYPE))
        columns[column_of(side, "origins")] = lists_of(moves.counts[side], values)
    return {**columns, DECISION: moves.decision}


def moved_rows(rows: Sequence[Row], moves: Moves) -> list[Row]:
    """The lists of rows of Python objects, with all that goes along, after the moves; the objects are the same."""
    moved: list[Row] = [{} for _ in rows]
    sides = [side for side in SIDES if side in rows[0]]
    labels, positions = (found.tolist() for found in moves.origins)
    origins = [{"label": LABELS[label], "position": at} for label, at in zip(labels, positions, strict=True)]
    kinds = {kind: known.tolist() for kind, known in moves.known.items()}
    flat: dict[str, list[Any]] = {kind: [] for kind in ("passages", *kinds)}
    for side in sides:
        for row in rows:
            passages: Any = () if row[side] is None else row[side]
            flat["passages"].extend(passages)
            for kind in kinds:
                values: Any = row.get(column_of(side, kind))
                fits = values is not None and len(values) == len(passages)
                flat[kind].extend(values if fits else [None] * len(passages))
    for side, counts in moves.counts.items():
        places, end = moves.places[side].tolist(), 0
        sources = None if moves.decision is None else moves.sources[side].tolist()
        for at, count in enumerate(counts.tolist()):
            begin, end = end, end + count
            here, row = places[begin:end], moved[at]
            row[side] = [flat["passages"][place] for place in here]
            for kind, known in kinds.items():
                row[column_of(side, kind)] = [flat[kind][place] for place in here] if known[at] else None
            if sources is not None:
                row[column_of(side, "origins")] = [origins[source] for source in sources[begin:end]]
    for row, decision in zip(moved, () if moves.decision is None else moves.decision.to_pylist(), strict=False):
        row[DECISION] = decision
    return moved


def table_of_rows(rows: Sequence[Row]) -> pa.Table:
    """What rules read of rows of Python objects, as a table: of passages how many there are, of evidence one field."""
    columns: dict[str, pa.Array] = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        side, _, kind = column.rpartition("_")
        if column in (QUERY, QUERY_ID):
            columns[column] = pa.array([None if value is None else str(value) for value in values], pa.string())
        elif column == DECISION:
            columns[column] = pa.array([None if value is None else True for value in values], pa.bool_())
        elif kind == "passages":
            for row in rows:
                if row[column] is not None:
                    passages_of(row, column)  # or it says what was expected
            columns[column] = _lists(column, values, (None, pa.null()))
        elif kind == "origins":
            columns[column] = _lists(column, values, ("label", pa.string()), ("position", pa.int32()))
        elif kind in READ:
            columns[column] = _lists(column, values, READ[kind])
        else:
            columns[column] = pa.nulls(len(rows))
    return pa.table(columns)


def _lists(column: str, values: Sequence[Any], *fields: tuple[str | None, pa.DataType]) -> pa.Array:
    absent = np.array([value is None for value in values], bool)
    counts = np.array([0 if value is None else len(value) for value in values], np.int64)
    flat = [one for value in values if value is not None for one in value]
    arrays = []
    for name, type in fields:
        found = flat if name is None else [None if one is None else one[name] for one in flat]
        try:
            arrays.append(pa.nulls(len(flat)) if pa.types.is_null(type) else pa.array(found, type))
        except (pa.ArrowException, TypeError) as error:
            raise SchemaError(
                f"Column {column!r} holds a {name or 'value'} that is no {type}: {error}. Run its stage again."
            ) from error
    inner = arrays[0] if fields[0][0] is None else pa.StructArray.from_arrays(arrays, [name for name, _ in fields])
    return lists_of(counts, inner, absent=absent if absent.any() else None)


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
    lists = [schema.field(side).type for side in (POSITIVE.passages, NEGATIVE.passages)]
    found = [getattr(type, "value_type", pa.null()) for type in lists]
    structs = [type for type in found if pa.types.is_struct(type)] or [PASSAGE_TYPE]
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
