"""The evidence as a table of its own: one row a (query, passage), beside rows that hold no evidence columns.

``canonical_of`` and ``evidence_of`` take wide rows apart, ``join_evidence`` puts them together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows import arrow, records
from arhn_datasets.rows.arrow import Integers, field_of, is_null, one_array, rows_of, strings_of, taken
from arhn_datasets.rows.records import DECISION, KINDS, QUERY_ID, RANKING, RANKING_TYPE, SIDES, Kind, Side

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict)

ROW, DOCID, ORIGIN, LABEL, PASSAGE = "row", "docid", "origin", "label", "passage"

# What is said of a row as a whole, on each of its passages: the field of each column.
_RANKING = {"ranking_status": "status", "candidates": "candidates", "permutations": "permutations"}
_RANKING |= {"agreement": "agreement", "ranking_detail": "detail"}
_DECISION = {"row_status": "status", "policy": "policy", "reference": "reference", "row_detail": "detail"}


def _fields(type: pa.DataType, shown_as: Mapping[str, str | None]) -> list[pa.Field]:
    """The columns of values here, with the type of what each holds of them."""
    return [pa.field(column, type if name is None else type.field(name).type) for column, name in shown_as.items()]


def _fields_of(*kinds: str) -> list[pa.Field]:
    return [field for kind in kinds for field in _fields(KINDS[kind].type, KINDS[kind].shown_as)]


EVIDENCE_ROW = pa.schema(
    [
        pa.field(ROW, pa.int64()),  # of the query in its split; rows that a guard dropped come behind the others
        pa.field(QUERY_ID, pa.string()),
        pa.field(records.SUBSET, pa.string()),
        *_fields_of("passages", "origins"),  # null in the one evidence row of a row without passages
        pa.field(LABEL, pa.string()),  # "positive", "negative" or "filtered"
        *_fields_of(*records.ARHN_KINDS),
        *_fields(RANKING_TYPE, _RANKING),
        *_fields(records.DECISION_TYPE, _DECISION),
    ]
)
"""The columns of the evidence but the last one, :data:`PASSAGE`, whose type is that of the source's passages."""

# As the stages write them.
_WIDE = (
    *records.types_of(records.ARHN_KINDS, records.LABELLED),
    RANKING,
    *(records.FILTERED.passages, records.POSITIVE.origins, records.NEGATIVE.origins),
    *records.types_of((*records.ARHN_KINDS, "origins"), (records.FILTERED,)),
    DECISION,
)


def further_of(columns: Sequence[str]) -> tuple[str, ...]:
    """The kinds of further evidence that there are columns of."""
    return tuple(kind for kind in records.FURTHER_KINDS if records.POSITIVE.column(kind) in columns)


def joined_of(columns: Sequence[str]) -> tuple[str, ...]:
    """The kinds of further evidence that a table of evidence with these columns has."""
    return tuple(kind for kind in records.FURTHER_KINDS if set(KINDS[kind].shown_as) <= set(columns))


def evidence_schema(passage: pa.DataType = records.PASSAGE_TYPE, further: Sequence[str] = ()) -> pa.Schema:
    """The columns of the evidence of rows with such passages and such further evidence."""
    return pa.schema([*EVIDENCE_ROW, *_fields_of(*further), pa.field(PASSAGE, passage)])


def _wide(further: Sequence[str]) -> tuple[str, ...]:
    return (*_WIDE, *records.types_of(further))


def canonical_of(rows: pa.Table) -> pa.Table:
    """The rows without their evidence columns; any other column stays."""
    return rows.drop_columns([column for column in rows.column_names if column in records.ALL_EVIDENCE_TYPES])


def wide_schema(canonical: pa.Schema, further: Sequence[str] = ()) -> pa.Schema:
    """The columns of canonical rows once their evidence is joined."""
    added = [pa.field(column, records.ALL_EVIDENCE_TYPES[column]) for column in _wide(further)]
    passages = pa.field(records.FILTERED.passages, pa.list_(_passage_type(canonical)))
    return pa.schema([*canonical, *(passages if field.name == records.FILTERED.passages else field for field in added)])


def evidence_of(rows: pa.Table, first_row: int = 0) -> pa.Table:
    """One row for each passage of relabelled rows: positives, negatives, filtered, in the order of their lists.

    Args:
        rows: Rows with all that the stages have written; snippets and ranks may be missing.
        first_row: The number of the first row in its split.

    Raises:
        SchemaError: the rows were not relabelled, or their columns do not fit their passages.
    """
    _check_wide(rows)
    further = further_of(rows.column_names)
    lists = {side: arrow.flat_lists(rows, side.passages) for side in SIDES}
    counts = [lengths for lengths, _ in lists.values()]
    shown, order = arrow.merged(counts, least=1)  # a row without passages has one row of evidence, too
    row, sizes = rows_of(shown), [int(number.sum()) for number in counts]
    removed = _structs_in(lists[records.FILTERED][1], rows.schema)
    schema = evidence_schema(removed.type, further)
    labels = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(SIDES)), sizes)), pa.array([side.label for side in SIDES])
    )
    columns = {
        ROW: pa.array(row + first_row),
        QUERY_ID: taken(strings_of(rows, QUERY_ID), row),
        records.SUBSET: taken(strings_of(rows, records.SUBSET), row),
        LABEL: taken(labels.cast(pa.string()), order),
        PASSAGE: taken(removed, np.maximum(order - sum(sizes[:-1]), -1)),
    }
    for kind in ("passages", "origins", *records.ARHN_KINDS, *further):
        values = [_flat(rows, side, kind) for side in SIDES]
        for column, name in KINDS[kind].shown_as.items():
            type = schema.field(column).type
            parts = [part if name is None else field_of(part, name, type) for part in values]
            columns[column] = taken(pa.concat_arrays(parts), order)
    ranking = one_array(rows.column(RANKING)) if RANKING in rows.column_names else pa.nulls(rows.num_rows, RANKING_TYPE)
    for structs, shown_as in ((ranking, _RANKING), (one_array(rows.column(DECISION)), _DECISION)):
        for column, name in shown_as.items():
            columns[column] = taken(field_of(structs, name, schema.field(column).type), row)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def join_evidence(canonical: pa.Table, evidence: pa.Table) -> pa.Table:
    """Rows with their evidence columns again; those of snippets and ranks are always there.

    Rows without any snippet, rank, verdict or grade have null for that list. A list of scores is never null: without
    any score it is a list of nulls.

    Args:
        canonical: Rows as :func:`canonical_of` left them.
        evidence: The evidence of exactly these rows, in their order.

    Raises:
        SchemaError: they do not fit; it says which row and which docid.
    """
    arrow.check_canonical(canonical.column_names)
    _check_evidence(evidence.column_names)
    column = {name: one_array(evidence.column(name)) for name in evidence.column_names}
    row = _rows_in(column[ROW], canonical)
    labels = pa.array([side.label for side in SIDES])
    label = pc.fill_null(pc.index_in(column[LABEL], value_set=labels), -1).to_numpy()
    _check_queries(canonical, column, row)
    _check_order(row, label, column)
    further, count = joined_of(evidence.column_names), canonical.num_rows
    starts = np.searchsorted(row, np.arange(count))
    ranking = _structs(RANKING_TYPE, {name: taken(column[c], starts) for c, name in _RANKING.items()}, nullable=True)

    def nowhere(name: str) -> Any:
        """The rows in which no passage has a value of a column."""
        return np.bincount(row[~is_null(column[name])], minlength=count) == 0

    # The rows in which no passage has a status were never asked about; without passages nobody can tell.
    shown = np.bincount(row[label >= 0], minlength=count) > 0
    kinds = (*records.ARHN_KINDS, *further)
    without = {kind: shown & nowhere(status) for kind in kinds if (status := KINDS[kind].status)}
    without["ranks"] = is_null(ranking) & nowhere("rank")
    columns: dict[str, pa.Array] = {RANKING: ranking}
    for code, side in enumerate(SIDES):
        at = np.flatnonzero(label == code)
        counts = np.bincount(row[at], minlength=count)
        if side == records.FILTERED:
            passages = taken(column[PASSAGE], at).cast(_passage_type(canonical.schema))
            columns[side.passages] = arrow.lists_of(counts, passages)
        else:
            _check_passages(canonical, side.passages, counts, taken(column[DOCID], at), column)
        for kind in ("origins", *kinds):
            absent = without.get(kind, np.zeros(count, bool))
            values = _values(KINDS[kind], column, at[~absent[row[at]]])
            columns[side.column(kind)] = arrow.lists_of(
                np.where(absent, 0, counts), values, absent=absent if absent.any() else None
            )
    moved = pc.equal(column[ORIGIN], records.NEGATIVE.label).fill_null(False).to_numpy(zero_copy_only=False)
    decision = {name: taken(column[c], starts) for c, name in _DECISION.items()}
    for name, members in (
        ("relabelled", moved & (label == SIDES.index(records.POSITIVE))),
        ("filtered", label == SIDES.index(records.FILTERED)),
    ):
        decision[name] = pa.array(np.bincount(row[members], minlength=count).astype(np.int32))
    columns[DECISION] = _structs(records.DECISION_TYPE, decision)
    schema = wide_schema(canonical.schema, further)
    added = [columns[name].cast(schema.field(name).type) for name in _wide(further)]
    return pa.Table.from_arrays([*canonical.columns, *added], schema=schema.with_metadata(None))


def with_evidence(dataset: AnyDataset, evidence: AnyDataset) -> AnyDataset:
    """The configuration ``default`` with the columns of the configuration ``evidence``.

    ``ds.map(arhn.revert)`` restores the source rows from the result, and ``ds.map(arhn.relabel)`` follows another
    policy. For the rows that a guard dropped, concatenate the configurations ``default`` and ``dropped`` first, in
    this order.

    Args:
        dataset: The whole split, or all of them, in their order: join first, then select or shuffle.
        evidence: The same split, or splits, of the evidence.

    Raises:
        ConfigurationError: a kind of dataset that cannot be joined.
        SchemaError: rows and evidence do not fit; it says which row.
    """
    from datasets import Dataset, DatasetDict, Features
    from datasets.fingerprint import Hasher

    if isinstance(dataset, DatasetDict) and isinstance(evidence, DatasetDict):
        if missing := [split for split in dataset if split not in evidence]:
            raise ConfigurationError(
                f"The evidence has no split {missing}; its splits are {list(evidence)}. Load both configurations from "
                "the same repository and revision."
            )
        return DatasetDict({split: with_evidence(rows, evidence[split]) for split, rows in dataset.items()})
    if not isinstance(dataset, Dataset) or not isinstance(evidence, Dataset):
        raise ConfigurationError(
            f"with_evidence got {type(dataset).__name__} and {type(evidence).__name__}; expected two of Dataset, or "
            "two of DatasetDict. Load both configurations the same way, without streaming."
        )
    arrow.check_canonical(dataset.column_names)
    _check_evidence(evidence.column_names)
    known = [column for column in dataset.column_names if column in records.ALL_EVIDENCE_TYPES]
    rows, facts = dataset.remove_columns(known).with_format("arrow"), evidence.with_format("arrow")
    numbers = one_array(facts.select_columns(ROW)[:].column(ROW)).to_numpy()
    starts = np.searchsorted(numbers, np.arange(len(rows) + 1))
    further = joined_of(facts.column_names)
    types = wide_schema(rows.features.arrow_schema, further).with_metadata(None)
    added = Features.from_arrow_schema(pa.schema([types.field(name) for name in _wide(further)]))
    features = Features({**rows.features, **added})
    if not len(rows):
        return Dataset(arrow.empty_table(features.arrow_schema), split=dataset.split)

    def joined(batch: pa.Table, indices: list[int]) -> pa.Table:
        return join_evidence(batch, facts[int(starts[indices[0]]) : int(starts[indices[-1] + 1])])

    result = rows.map(
        joined,
        with_indices=True,
        batched=True,
        features=features,
        new_fingerprint=Hasher.hash(["with_evidence", 1, rows._fingerprint, evidence._fingerprint]),
        desc="evidence",
    )
    return result.with_format(**dataset.format) if dataset.format["type"] else result.with_format(None)


def _flat(rows: pa.Table, side: Side, kind: str) -> pa.Array:
    """What stands of a kind on each passage of a side; null where a row has none."""
    type, column = KINDS[kind].type, side.column(kind)
    counts, passages = arrow.flat_lists(rows, side.passages)
    if kind == "passages":
        return _structs_in(passages, rows.schema)
    if column not in rows.column_names:
        return pa.nulls(len(passages), type)
    lengths, values = arrow.flat_lists(rows, column)
    absent = np.zeros(rows.num_rows, bool)
    if kind != "origins":  # a row that was never ranked, or never asked about, has no list
        absent = is_null(one_array(rows.column(column)))
    if (at := arrow.first_of((lengths != counts) & ~absent)) is not None:
        raise SchemaError(
            f"Row {_named(rows, at)} has {lengths[at]} values in {column!r} for {counts[at]} passages in "
            f"{side.passages!r}; one each was expected. Run arhn.relabel again on these rows."
        )
    return arrow.aligned(values if pa.types.is_struct(type) else values.cast(type), lengths, counts)


def _structs_in(passages: pa.Array, schema: pa.Schema) -> pa.Array:
    """Passages as structs, also where no list has any."""
    return passages if pa.types.is_struct(passages.type) else passages.cast(_passage_type(schema))


def _check_wide(rows: pa.Table) -> None:
    arrow.check_canonical(rows.column_names)
    further, snippets = further_of(rows.column_names), tuple(side.snippets for side in SIDES)
    optional = (*(side.ranks for side in SIDES), RANKING)
    if further and not any(column in rows.column_names for column in snippets):
        optional += snippets  # of a rule that looks at other evidence
    needed = [column for column in _wide(further) if column not in optional]
    if missing := [column for column in needed if column not in rows.column_names]:
        raise SchemaError(f"The rows lack the columns {missing}; rows that arhn.relabel has written were expected.")
    if (at := arrow.first_of(is_null(one_array(rows.column(DECISION))))) is not None:
        raise SchemaError(
            f"Row {_named(rows, at)} was never relabelled: its decision is null. Run ds.map(arhn.relabel) on all rows."
        )


def _check_evidence(columns: list[str]) -> None:
    if missing := [name for name in (*EVIDENCE_ROW.names, PASSAGE) if name not in columns]:
        raise SchemaError(
            f"The evidence lacks the columns {missing}; the columns found are {columns}. Expected the configuration "
            "'evidence' of a dataset that arhn-push has published."
        )


def _rows_in(numbers: pa.Array, canonical: pa.Table) -> Integers:
    """For each evidence row the row that it belongs to, counted from 0."""
    row: Integers = numbers.to_numpy(zero_copy_only=False).astype(np.int64)
    first = int(row[0]) if len(row) else 0
    row = row - first
    if (at := arrow.first_of(np.diff(row) < 0)) is not None:
        raise SchemaError(
            f"The evidence of row {row[at + 1] + first} stands behind that of row {row[at] + first}; the order of its "
            "publication was expected. Join before you sort or shuffle it."
        )
    if len(row) and row[-1] >= canonical.num_rows:
        raise SchemaError(
            f"There is evidence of row {row[-1] + first}, and no such row: the {canonical.num_rows} rows begin with "
            f"number {first}. Join the whole split before you select rows of it."
        )
    if (at := arrow.first_of(np.bincount(row, minlength=canonical.num_rows) == 0)) is not None:
        raise SchemaError(
            f"Row {_named(canonical, at, first)} has no evidence. Load rows and evidence from the same repository and "
            "revision."
        )
    return row


def _check_queries(canonical: pa.Table, column: dict[str, pa.Array], row: Integers) -> None:
    expected = taken(strings_of(canonical, QUERY_ID), row)
    if (at := arrow.first_of(_differ(expected, column[QUERY_ID]))) is not None:
        raise SchemaError(
            f"The evidence of row {column[ROW][at].as_py()} is of query_id {column[QUERY_ID][at].as_py()!r}, and the "
            f"row has query_id {expected[at].as_py()!r}. Join the whole split in its order, rows and evidence of one "
            "revision, before you select or shuffle rows."
        )
    if (at := arrow.first_of(is_null(column["row_status"]))) is not None:
        raise SchemaError(f"The evidence of row {column[ROW][at].as_py()} has no row_status; one was expected.")


def _check_order(row: Integers, label: Any, column: dict[str, pa.Array]) -> None:
    """Within a row: positives, negatives, filtered; a row of evidence without a label is the only one of its row."""
    wrong = (label < 0) & ~is_null(column[LABEL])
    wrong[1:] |= (np.diff(row) == 0) & ((np.diff(label) < 0) | (label[:-1] < 0))
    if (at := arrow.first_of(wrong)) is not None:
        raise SchemaError(
            f"The evidence of row {column[ROW][at].as_py()} has docid {column[DOCID][at].as_py()!r} with the label "
            f"{column[LABEL][at].as_py()!r} at this place; positives, then negatives, then filtered passages were "
            "expected. Join the evidence as it was published."
        )


def _check_passages(
    canonical: pa.Table, side: str, counts: Integers, docids: pa.Array, column: dict[str, pa.Array]
) -> None:
    first = column[ROW][0].as_py() if len(column[ROW]) else 0
    expected, passages = arrow.flat_lists(canonical, side)
    if (at := arrow.first_of(expected != counts)) is not None:
        raise SchemaError(
            f"Row {_named(canonical, at, first)} has {expected[at]} passages in {side!r} and evidence on {counts[at]}. "
            "Load rows and evidence from the same repository and revision."
        )
    names = field_of(passages, "docid", pa.string())
    if (at := arrow.first_of(_differ(names, docids))) is not None:
        raise SchemaError(
            f"Row {_named(canonical, int(rows_of(counts)[at]), first)}: docid {names[at].as_py()!r} stands in {side!r} "
            f"where the evidence has {docids[at].as_py()!r}. Load rows and evidence from the same repository and "
            "revision."
        )


def _differ(one: pa.Array, other: pa.Array) -> Any:
    """Where two arrays of strings differ; null equals null."""
    equal = pc.fill_null(pc.equal(one, other.cast(one.type)), False)
    both = pc.and_(pc.is_null(one), pc.is_null(other))
    return ~pc.or_(equal, both).to_numpy(zero_copy_only=False)


def _values(kind: Kind, column: Mapping[str, pa.Array], at: Integers) -> pa.Array:
    """What stands of a kind on the passages at these evidence rows.

    A passage that is not judged at all, as the positives that others are compared with, has null.
    """
    if not pa.types.is_struct(kind.type):
        return taken(column[next(iter(kind.shown_as))], at).cast(kind.type)
    values = {str(field): taken(column[name], at) for name, field in kind.shown_as.items()}
    return _structs(kind.type, values, nullable=not kind.everywhere)


def _structs(type: pa.StructType, values: dict[str, pa.Array], *, nullable: bool = False) -> pa.Array:
    """Structs from their fields; with ``nullable``, null where the status is."""
    arrays = [values[field.name].cast(field.type) for field in type]
    mask = pc.is_null(values["status"]) if nullable else None
    return pa.StructArray.from_arrays(arrays, fields=list(type), mask=mask)


def _passage_type(schema: pa.Schema) -> pa.DataType:
    """The type of the passages: that of the first list column that has one."""
    for side in SIDES:
        at = schema.get_field_index(side.passages)
        found = getattr(schema.field(at).type, "value_type", None) if at >= 0 else None
        if found is not None and pa.types.is_struct(found):
            return found
    return records.PASSAGE_TYPE


def _named(table: pa.Table, at: int, first: int = 0) -> str:
    return f"{at + first} (query_id {strings_of(table, QUERY_ID)[at].as_py()!r})"
