"""Where the passages of many rows go: lists that are taken apart and put together again, whatever the rule.

A rule reads the evidence on all positives and all negatives, one after the other (:class:`Evidence`), and says for each
negative which list it goes into. :class:`Undecided` makes :class:`Moves` of it, the places at which the passages of the
new lists stand in the old ones, and :func:`moved_columns` follows these by one gather a column. Rows of Python objects
go the same way, see ``objects``.
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
    first_of,
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
    DECISION,
    EVIDENCE_KINDS,
    FILTERED,
    KINDS,
    LABELLED,
    NEGATIVE,
    ORIGIN_TYPE,
    PASSAGE_TYPE,
    POSITIVE,
    QUERY,
    QUERY_ID,
    SIDES,
    Side,
    passages_of,
)

Names = Callable[[Integers], Sequence[Any]]
"""The names of some rows, by their numbers."""

LABELS = tuple(side.label for side in LABELLED)
ITSELF = "itself"  # in place of a field's name
ORIGINS = tuple(side.origins for side in SIDES)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule looks at: the evidence on the positives, or the negatives, of many rows, one after the other."""

    counts: Integers
    numbers: Callable[[str], Numbers]

    def of(self, kind: str) -> Numbers:
        """One number a passage, NaN where there is none: a rank, score or grade, or what stands for a word.

        That is its place in the ``words`` of the kind: 0 for ``grounded`` and 1 for ``no_answer``.
        """
        return self.numbers(kind)

    @cached_property
    def rows(self) -> Integers:
        """The row of each passage."""
        return rows_of(self.counts)


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Where all passages of some rows go.

    ``counts`` has for each list its new lengths; ``places`` where its passages stand in the lists that were read, one
    side after the other; ``sources`` which passage of the source each is: first all positives, in their order, then all
    negatives. ``origins`` are label and position of each passage of the source.
    """

    counts: Mapping[Side, Integers]
    places: Mapping[Side, Integers]
    sources: Mapping[Side, Integers]
    origins: tuple[Codes, Integers]
    known: Mapping[str, Mask]
    """The rows that have evidence, by its kind; the others have null."""
    decision: pa.Array | None = None


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
        kinds = [kind for kind in EVIDENCE_KINDS if POSITIVE.column(kind) in self._names]
        self._absent = {kind: {side: self._check(side, kind) for side in self._sides} for kind in kinds}
        self._numbers_of: dict[str, Numbers] = {}
        self._counts, self._places = self._order() if self._decided.any() else self._as_they_are()
        for kind in needed:
            if KINDS[kind].everywhere:
                self._check_needed(kind)

    def names(self, rows: Integers) -> list[Any]:
        """The query ids of some rows, or their queries where they have none."""
        queries = self._table.column(QUERY)
        ids = self._table.column(QUERY_ID) if QUERY_ID in self._names else pa.nulls(len(queries))
        at = pa.array(rows)
        pairs = zip(ids.take(at).to_pylist(), queries.take(at).to_pylist(), strict=True)
        return [query if name is None else name for name, query in pairs]

    def evidence(self, side: Side) -> Evidence:
        """What is known of the positives or the negatives."""
        return Evidence(counts=self._counts[side], numbers=lambda kind: self._numbers(kind)[self._places[side]])

    def moves(self, targets: Codes | None = None, decision: pa.Array | None = None) -> Moves:
        """Where the passages go if each negative goes into the list of its target, a place in :data:`SIDES`.

        Without targets they go back to where they were.
        """
        first, second = (np.arange(self._counts[side].sum()) for side in LABELLED)
        second = second + len(first)
        places = np.concatenate([self._places[side] for side in LABELLED])
        counts: Mapping[Side, Integers] = self._counts
        sources = {POSITIVE: first, NEGATIVE: second}
        if targets is not None:
            rows, count = rows_of(self._counts[NEGATIVE]), len(self._decided)
            made = {side: np.bincount(rows[targets == code], minlength=count) for code, side in enumerate(SIDES)}
            sources = {side: second[targets == code] for code, side in enumerate(SIDES)}
            made[POSITIVE], order = merged([self._counts[POSITIVE], made[POSITIVE]])
            sources[POSITIVE] = np.concatenate([first, sources[POSITIVE]])[order]
            counts = made
        return Moves(
            counts=counts,
            places={side: places[at] for side, at in sources.items()},
            sources=sources,
            origins=(
                np.repeat(np.arange(len(LABELLED)), (len(first), len(second))),
                np.concatenate([within(self._counts[side]) for side in LABELLED]),
            ),
            known={kind: ~(absent[POSITIVE] & absent[NEGATIVE]) for kind, absent in self._absent.items()},
            decision=decision,
        )

    def _lists(self, column: str) -> tuple[pa.Array, Integers]:
        if column not in self._lists_of:
            lists = lists_in(self._table, column)
            self._lists_of[column] = lists, lengths_of(lists)
        return self._lists_of[column]

    def _lengths(self, side: Side) -> Integers:
        lists, lengths = self._lists(side.passages)
        if lists.null_count and (is_null(lists) & (self._decided | (side != FILTERED))).any():
            passages_of(dict.fromkeys(self._names), side.passages)  # says what was expected
        return lengths

    def _check(self, side: Side, kind: str) -> Mask:
        """The rows without a list of evidence, which is then not there; any other has one value a passage."""
        column, counts = side.column(kind), self._read[side]
        if column not in self._names:
            return np.full(len(counts), True)
        lists, lengths = self._lists(column)
        absent = is_null(lists) if lists.null_count else np.full(len(counts), False)
        wrong = (lengths != counts) & ~absent
        self._refuse(wrong & self._decided if side == FILTERED else wrong, column, side)
        return absent

    def _check_needed(self, kind: str) -> None:
        absent = self._absent[kind]
        both = absent[POSITIVE] & absent[NEGATIVE]
        for side in LABELLED:
            counts = self._counts[side]
            wrong = np.where(self._decided, both, absent[side]) & (counts > 0)
            _check_lengths(self._table, side.column(kind), np.zeros_like(counts), side, counts, wrong)

    def _refuse(self, wrong: Mask, column: str, side: Side) -> None:
        _check_lengths(self._table, column, self._lists(column)[1], side, self._read[side], wrong)

    def _as_they_are(self) -> tuple[dict[Side, Integers], dict[Side, Integers]]:
        sizes = [int(self._read[side].sum()) for side in LABELLED]
        return self._read, {POSITIVE: np.arange(sizes[0]), NEGATIVE: sizes[0] + np.arange(sizes[1])}

    def _order(self) -> tuple[dict[Side, Integers], dict[Side, Integers]]:
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
        rows, (lists, lengths) = rows_of(counts), self._lists(column)
        self._refuse((lengths != counts) & self._decided, column, side)
        values = aligned(lists.flatten(), lengths, counts)
        named = pc.index_in(field_of(values, "label", pa.string()), value_set=_array_of(LABELS))
        labels, positions = (
            pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            for found in (named, field_of(values, "position", pa.int32()))
        )
        own, decided = SIDES.index(side), self._decided[rows]
        wrong = decided & ((labels < 0) | (positions < 0))
        if (at := first_of(wrong)) is not None:
            raise SchemaError(
                f"Column {column!r} names no place in the source for a passage (query "
                f"{self._table.column(QUERY)[int(rows[at])].as_py()!r}); a label of {', '.join(LABELS)} and a position "
                "from 0 were expected. Take the rows as arhn.relabel has written them."
            )
        return (
            rows,
            np.where(decided, labels, own if side in LABELLED else -1),
            np.where(decided, positions, within(counts)),
        )

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
        values = aligned(lists.flatten(), lengths, counts)
        if kind.reads is not None or pa.types.is_struct(values.type):
            values = field_of(values, *field_read(name))
        if kind.words:
            values = pc.index_in(values, value_set=_array_of(kind.words))
        numbers: Numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(np.isfinite(numbers), numbers, np.nan)


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
        column = side.origins
        if not {side.passages, column} <= set(table.column_names):
            continue
        (found, absent), (counts, _) = lengths_in(table, column), lengths_in(table, side.passages)
        wrong = ((found < counts) if shortened else (found != counts)) & ~absent
        if DECISION in table.column_names:
            wrong &= decided_rows(table)
        _check_lengths(table, column, found, side, counts, wrong)


def _check_lengths(table: pa.Table, column: str, lengths: Integers, side: Side, counts: Integers, wrong: Mask) -> None:
    """Refuse rows whose lists do not fit their passages."""
    if (row := first_of(wrong)) is None:
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


def moved_columns(table: pa.Table, moves: Moves, types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """The lists of a table, with all that goes along, after the moves: those of ``types``, in its order."""
    lengths = {
        side: lengths_of(lists_in(table, side.passages)) for side in SIDES if side.passages in table.column_names
    }
    columns: dict[str, Any] = {}
    for kind, known in {"passages": None, **moves.known}.items():
        wanted = {side: types[side.column(kind)] for side in moves.counts if side.column(kind) in types}
        if not wanted:
            continue
        type: Any = wanted[POSITIVE]
        parts = [_flat(table, side.column(kind), counts, type.value_type) for side, counts in lengths.items()]
        for side in wanted:
            counts, places, absent = moves.counts[side], moves.places[side], None
            if known is not None and not known.all():
                places = places[np.repeat(known, counts)]
                counts, absent = np.where(known, counts, 0), ~known
            columns[side.column(kind)] = shaped(lists_of(counts, gathered(parts, places), absent=absent), type)
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
        columns[side.origins] = lists_of(moves.counts[side], values)
    return {**columns, DECISION: moves.decision}


def field_read(kind: str) -> tuple[str, pa.DataType]:
    """The field of a kind of evidence that rules read, and its type."""
    read = KINDS[kind]
    return read.reads or ITSELF, pa.string() if read.words else pa.float64()


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
