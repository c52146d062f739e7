"""Every known training form to canonical rows, recognised from the columns.

::

    ds = ds.map(arhn.adapt, batched=True)          # one row stays one row
    ds = arhn.adapt_dataset(ds)                    # triplets and n-tuples: rows of one anchor become one row
    ds = arhn.adapt_dataset(ds, corpus=corpus)     # document ids become passages
    ds = arhn.adapt_dataset(queries=queries, corpus=corpus, qrels=qrels, run=run)

What a form of :mod:`~arhn_datasets.inputs.forms` holds beside its columns passes through untouched. Nothing is guessed:
columns that fit no form or two, and rows that a trainer could not read as they are meant, raise a ``SchemaError`` that
names the row, the column, what was found and what to do.

A form is read into the flat passages of its two sides, and everything else is computed on those: Arrow arrays in, Arrow
arrays out. The one loop over passages makes docids where a form has none, a hash for every distinct passage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.corpora import GivenRows, dataset_of_ids, tables_of_ids, tables_of_parts
from arhn_datasets.inputs.forms import CANONICAL, Reading, reading_of
from arhn_datasets.inputs.passages import STRING, BrokenRow, FlatPassages, Values, checked, naming_rows, read
from arhn_datasets.inputs.values import as_text, conformed, readable, united_columns
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, empty_table, is_json, one_array, starts_of
from arhn_datasets.rows.records import LABELLED, PASSAGE_TYPE, QUERY, QUERY_ID, SUBSET, Row, stable_query_id
from arhn_datasets.rows.stage import ColumnTransform, is_batch, parts_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, NamedSplit

Adapted: TypeAlias = tuple[pa.Array, pa.Array, FlatPassages, FlatPassages]  # what becomes of the columns of CANONICAL

ADAPT_REVISION = 1  # raise it when the same input gives other rows: cached results of `map` depend on it


# --- rows and tables --------------------------------------------------------------------------------------------


def adapt_rows(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None = None) -> list[Row]:
    """Rows of the same columns, of any form that keeps its rows, as canonical rows.

    Missing docids become a stable hash of title and text, missing query ids one of query and subset, null titles
    ``""``; numeric ids become strings. A passage that stands twice in one list is kept once. Scores of the
    passages go to a field ``score`` of each passage; other fields of the passages, and the columns that pass through,
    stay the objects that they are.

    Args:
        rows: a triplet or n-tuple stays one row (:func:`adapt_dataset` groups the rows of an anchor).
        numbers: of each row, for the messages.

    Returns:
        ``query_id``, ``query``, ``positive_passages``, ``negative_passages``, then the columns passed through.

    Raises:
        SchemaError: the columns fit no form, or a row breaks its form: an empty query, no positive, a string
            where a list belongs, a passage that is both positive and negative, one docid for two texts.
    """
    if not rows:
        return []
    reading = reading_of(tuple(rows[0]))
    columns: dict[str, Values] = {name: [row[name] for row in rows] for name in reading.inputs(rows[0])}
    query_ids, queries, *sides = _adapted(columns, reading, numbers)
    canonical = zip(query_ids.to_pylist(), queries.to_pylist(), *(side.dicts() for side in sides), strict=True)
    passed = reading.passed(rows[0])
    return [
        {**dict(zip(CANONICAL, values, strict=True)), **{name: row[name] for name in passed}}
        for row, values in zip(rows, canonical, strict=True)
    ]


def adapt_columns(table: pa.Table, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """The canonical columns of the rows of a table, as :func:`adapt_rows`; those that are canonical come as they are.

    Where docids are missing, one Python loop hashes each distinct passage once; nothing else makes a Python object of a
    passage.
    """
    reading = reading_of(tuple(table.column_names))
    names = reading.inputs(table.column_names)
    columns = {name: readable(table[name], structs=name in reading.structs) for name in names}
    query_ids, queries, *sides = _adapted(columns, reading, numbers)
    type = reading.passages(table.schema)
    found = dict(zip(CANONICAL, (query_ids, queries, *(side.lists(type) for side in sides)), strict=True))
    return {**found, SUBSET: as_text(columns[SUBSET])} if _mixes_subsets(table.schema) else found


def _mixes_subsets(schema: pa.Schema | None) -> bool:
    """Whether subsets are of several kinds, as 'nq' and 7, and become texts."""
    return schema is not None and SUBSET in schema.names and is_json(schema.field(SUBSET).type)


def keeps_rows(columns: Iterable[str]) -> bool:
    """Whether :func:`adapt_dataset` makes one row of each row, so that it may be cut before it is adapted.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    return not reading_of(tuple(columns)).grouped


def _adapted(columns: Mapping[str, Values], reading: Reading, numbers: Sequence[int] | None) -> Adapted:
    try:
        return _computed(columns, reading)
    except BrokenRow as broken:
        if broken.row:  # a row before it may break its form in a way that is looked for later
            _adapted({name: values[: broken.row] for name, values in columns.items()}, reading, numbers)
        raise broken.named(columns, reading.query, numbers) from None


def _computed(columns: Mapping[str, Values], reading: Reading) -> Adapted:
    queries = read(columns[reading.query], flat.QUERY_TEXT, reading.query)
    if reading.sides is None:
        raise BrokenRow(0, reading.no_corpus) if len(queries) else SchemaError(reading.no_corpus)
    sides = checked(*(passages.with_docids() for passages in reading.sides(columns)))
    given = read(columns[QUERY_ID], flat.ID, QUERY_ID) if QUERY_ID in columns else pa.nulls(len(queries), STRING)
    missing = np.flatnonzero(arrow.is_null(given))
    if len(missing):
        subsets = [flat.value_at(columns[SUBSET], row) if SUBSET in columns else None for row in missing.tolist()]
        made = [
            stable_query_id(query, subset if isinstance(subset, str) else None)
            for query, subset in zip(arrow.taken(queries, missing).to_pylist(), subsets, strict=True)
        ]
        given = flat.filled(given, pa.array(made, STRING))
    return given, queries, *sides


# --- the map callable -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapt(ColumnTransform):
    """:func:`adapt_rows` for ``Dataset.map``: one row stays one row, and the columns of the other form go.

    Raises:
        SchemaError: as :func:`adapt_rows`.
    """

    NAME: ClassVar[str] = "adapt"
    VERSION: ClassVar[int] = ADAPT_REVISION

    @property
    def required(self) -> tuple[str, ...]:
        """None: the form is recognised from the columns."""
        return ()

    def identity(self) -> dict[str, Any]:
        """Nothing but the version."""
        return {}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The canonical columns of each row."""
        return adapt_rows(rows)

    def compute(self, table: pa.Table) -> Mapping[str, Any]:
        """The canonical columns of the rows of a table."""
        return adapt_columns(table)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Strings, and lists of passages with whatever fields the input's passages have."""
        passages = None if schema is None else reading_of(tuple(schema.names)).passages(schema)
        types = dict(zip(CANONICAL, (STRING, STRING, passages, passages), strict=True))
        return {**types, SUBSET: STRING} if _mixes_subsets(schema) else types

    def dropped(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns of the other form, which become the canonical ones, so that nobody needs them any more."""
        return reading_of(tuple(columns)).consumed

    def _inputs(self, columns: Iterable[str]) -> list[str]:
        names = tuple(columns)
        return reading_of(names).inputs(names)

    def _is_batch(self, rows: Mapping[str, Any]) -> bool:
        return is_batch(rows, reading_of(tuple(rows)).query)


adapt = Adapt()


# --- datasets ---------------------------------------------------------------------------------------------------


def adapt_dataset(
    ds: GivenRows | None = None,
    *,
    queries: GivenRows | None = None,
    corpus: GivenRows | None = None,
    qrels: GivenRows | None = None,
    run: GivenRows | None = None,
    negatives: GivenRows | None = None,
    max_negatives: int | None = None,
) -> Dataset | DatasetDict:
    """A dataset of any known form as canonical rows with flat.typed features.

    Either ``ds``, whose form is recognised from its columns, or the BEIR parts. Triplets and n-tuples of the same
    anchor (and query id and subset, where there are such columns) become one row at the place of the first;
    every other form stays row by row. From BEIR parts comes one row per query of the qrels, in the order of
    ``queries``: a document with a score above 0 is a positive; the negatives are the retrieved documents that are
    not, best first, without those that repeat title and text of a positive.

    Args:
        ds: a ``Dataset``, a ``DatasetDict`` (each split on its own) or dicts, one per row.
        queries: rows of ``_id`` and ``text``, or ``{query id: text}``.
        corpus: rows of ``_id`` or ``docid``, ``text`` and optionally ``title``, or ``{docid: row}``; further
            columns are not arrow.taken over. Only the passages that are needed are held.
        qrels: rows of ``query-id``, ``corpus-id`` and ``score``, or ``{query id: {docid: score}}``.
        run: retrieved documents, rows of ``query-id``, ``corpus-id`` and ``rank`` or ``score``, or with a list of
            docids, best first unless scores stand beside them, or ``{query id: {docid: score}}``.
        negatives: in place of ``run``: ids of negatives only, in the forms of ``run`` or ``{query id: [docid]}``.
        max_negatives: keep at most so many retrieved negatives per query.

    Returns:
        A ``Dataset``, or a ``DatasetDict`` where ``ds`` holds splits.

    Raises:
        SchemaError: the columns fit no form, a row breaks its form (:func:`adapt_rows`), an id is not in the
            corpus or the queries, a query has no positive, or the grouped rows of an anchor contradict each other.
        ConfigurationError: arguments that do not belong together, or one that is missing.
    """
    parts = {"queries": queries, "corpus": corpus, "qrels": qrels, "run": run, "negatives": negatives}
    if ds is None:
        features = _features(pa.list_(PASSAGE_TYPE))
        return _dataset(_adapted_tables(tables_of_parts(parts, max_negatives), features), features)
    given = [name for name, part in parts.items() if part is not None and name != "corpus"]
    if given or max_negatives is not None:
        raise ConfigurationError(
            f"{', '.join(given) or 'max_negatives'} cannot be used with a dataset as first argument: give either the "
            "dataset (and its corpus=), or queries=, corpus=, qrels= and run= or negatives=."
        )
    if not isinstance(ds, Mapping):
        return _adapted_dataset(ds, corpus)
    from datasets import DatasetDict

    if isinstance(corpus, Iterator):
        corpus = list(corpus)  # every split reads it
    return DatasetDict({split: _adapted_dataset(rows, corpus) for split, rows in ds.items()})


def _adapted_dataset(ds: Dataset | Iterable[object], corpus: GivenRows | None) -> Dataset:
    from datasets import Dataset

    rows = ds if isinstance(ds, Dataset) else _with_the_same_columns(ds)
    reading = reading_of(tuple(rows.column_names if isinstance(rows, Dataset) else rows[0]))
    if isinstance(rows, Dataset):
        rows = _with_known_fields(rows, reading)
    if reading.ids:
        of_ids = rows if isinstance(rows, Dataset) else dataset_of_ids(rows, reading)
        features = _features_of(of_ids.features, reading)
        return _dataset(_adapted_tables(tables_of_ids(of_ids, reading, corpus), features), features, of_ids.split)
    if corpus is not None:
        raise ConfigurationError("corpus= is for rows that hold document ids; this dataset holds its passages itself.")
    adapted = _mapped(rows, reading) if isinstance(rows, Dataset) else _dataset_of(rows)
    return _grouped(adapted) if reading.grouped else adapted


def _with_known_fields(ds: Dataset, reading: Reading) -> Dataset:
    """The rows with passages of the fields that all of them have, where the dataset holds passages as JSON."""
    from datasets import Features

    types: dict[str, pa.DataType] = {}
    for name in reading.structs:
        if isinstance(readable(ds.data[name].slice(0, 1), structs=True), pa.ChunkedArray):
            for table in ds.select_columns(name).with_format("arrow").iter(flat.ROWS_PER_BATCH):
                found = readable(table[name], structs=True)
                types = united_columns(types, {name: found.type}) if isinstance(found, pa.ChunkedArray) else types
    types = {name: type for name, type in types.items() if type != ds.data.schema.field(name).type}
    if not types:
        return ds
    features = Features({**ds.features, **Features.from_arrow_schema(pa.schema(list(types.items())))})
    arguments = {"types": types, "revision": ADAPT_REVISION}
    return ds.with_format("arrow").map(
        _of_known_fields, batched=True, features=features, fn_kwargs=arguments, desc="Reading passages"
    )


def _of_known_fields(table: pa.Table, *, types: Mapping[str, pa.DataType], revision: int) -> pa.Table:
    for name, type in types.items():
        found = conformed(readable(table[name], structs=True), type)
        table = table.set_column(table.schema.get_field_index(name), name, found)
    return table


def _with_the_same_columns(given: Iterable[object]) -> list[Row]:
    rows: list[Any] = list(given)
    if odd := [flat.found_as(row) for row in rows if not isinstance(row, Mapping)]:
        raise SchemaError(f"Found {odd[0]} among the rows; a dataset, or one dict per row, was expected.")
    if not rows:
        raise SchemaError("There are no rows, so there are no columns to recognise a form by.")
    columns = dict.fromkeys(chain.from_iterable(rows))
    return [{name: row.get(name) for name in columns} for row in rows]


def _mapped(ds: Dataset, reading: Reading) -> Dataset:
    features = _features_of(ds.features, reading)
    if not len(ds):
        return _dataset([], features, ds.split)
    # Through `map`, because it writes to disk; in Arrow, because the columns that pass through stay as they are.
    arguments = {"schema": features.arrow_schema, "revision": ADAPT_REVISION}
    mapped = ds.with_format("arrow").map(
        _adapted_table, batched=True, with_indices=True, features=features, fn_kwargs=arguments, desc="Adapting"
    )
    return mapped.with_format(None)


def _adapted_table(table: pa.Table, numbers: Sequence[int], *, schema: pa.Schema, revision: int) -> pa.Table:
    tables, first = [empty_table(schema)], 0
    for part in parts_of(table):
        adapted = adapt_columns(part, numbers[first:])
        columns = [adapted[name] if name in adapted else part[name] for name in schema.names]
        tables.append(pa.Table.from_arrays(columns, schema=schema))
        first += part.num_rows
    return pa.concat_tables(tables)


def _adapted_tables(tables: Iterable[pa.Table], features: Features) -> Iterator[pa.Table]:
    first = 0
    for table in tables:
        numbers = range(first, first + table.num_rows)
        yield _adapted_table(table, numbers, schema=features.arrow_schema, revision=ADAPT_REVISION)
        first += table.num_rows


def _dataset_of(rows: list[Row]) -> Dataset:
    from datasets import Features

    adapted: list[Row] = []
    for batch in flat.batches_of(rows):
        adapted += adapt_rows(batch, range(len(adapted), len(rows)))
    found = pa.schema([(name, flat.typed([row[name] for row in adapted], name).type) for name in adapted[0]])
    features = _features_of(Features.from_arrow_schema(found), reading_of(tuple(found.names)))
    tables = (pa.Table.from_pylist(batch, schema=features.arrow_schema) for batch in flat.batches_of(adapted))
    return _dataset(tables, features)


def _dataset(tables: Iterable[pa.Table], features: Features, split: NamedSplit | None = None) -> Dataset:
    from datasets import Dataset

    return Dataset(pa.concat_tables([empty_table(features.arrow_schema), *tables]), split=split)


def _features(passages: pa.DataType, passed: Mapping[str, Any] | None = None) -> Features:
    from datasets import Features

    canonical = zip(CANONICAL, (STRING, STRING, passages, passages), strict=True)
    return Features({**Features.from_arrow_schema(pa.schema(list(canonical))), **(passed or {})})


def _features_of(features: Features, reading: Reading) -> Features:
    from datasets import Value

    schema = features.arrow_schema
    passed = {name: features[name] for name in reading.passed(features)}
    if _mixes_subsets(schema):
        passed[SUBSET] = Value("string")
    return _features(reading.passages(schema), passed)


# --- rows of one query --------------------------------------------------------------------------------------------


def _grouped(ds: Dataset) -> Dataset:
    """The canonical rows of one query as one row, at the place of the first."""
    from datasets import Dataset

    found = ds.with_format("arrow")
    groups = _groups(found.select_columns([n for n in (QUERY_ID, QUERY, SUBSET) if n in ds.column_names])[:])
    sizes = np.bincount(groups)
    if len(sizes) == len(ds):
        return ds
    order = np.argsort(groups, kind="stable")
    ends = starts_of(sizes)[1:]
    # Whole groups at a time, some thousand rows.
    cuts = np.flatnonzero(np.append(np.diff(ends // flat.ROWS_PER_BATCH) > 0, True)) + 1
    tables = [empty_table(ds.features.arrow_schema)]
    for own, rows in zip(np.split(sizes, cuts[:-1]), np.split(order, ends[cuts[:-1] - 1]), strict=True):
        tables.append(_merged(found.select(rows)[:], own, rows))
    return Dataset(pa.concat_tables(tables), split=ds.split)


def _groups(keys: pa.Table) -> Integers:
    """The number of each row's group, in the order of the first rows."""
    encoded = (one_array(column).dictionary_encode(null_encoding="encode") for column in keys.columns)
    numbers: dict[tuple[int, ...], int] = {}
    codes = zip(*(column.indices.to_pylist() for column in encoded), strict=True)
    return np.array([numbers.setdefault(code, len(numbers)) for code in codes], np.int64)


def _merged(table: pa.Table, sizes: Integers, numbers: Integers) -> pa.Table:
    """The rows of each group as one row: positives united, negatives united, each passage once."""
    begin = starts_of(sizes)[:-1]
    first = table.take(pa.array(begin))
    columns = dict(zip(first.column_names, first.columns, strict=True))
    lists = [arrow.flat_lists(table, side.passages) for side in LABELLED]
    with naming_rows(columns, QUERY, numbers[begin]):
        try:
            united = [(np.add.reduceat(counts, begin), flat.fields_in(structs)) for counts, structs in lists]
            sides = checked(*(FlatPassages(counts=counts, fields=fields) for counts, fields in united))
        except BrokenRow as broken:
            raise BrokenRow(broken.row, f"after grouping its {sizes[broken.row]} rows, {broken}") from None
        for name in table.column_names:
            if name not in CANONICAL:
                _refuse_differing(table.column(name), sizes, name)
    for side, passages in zip(LABELLED, sides, strict=True):
        columns[side.passages] = passages.lists(table.schema.field(side.passages).type)
    return pa.Table.from_arrays(list(columns.values()), schema=table.schema)


def _refuse_differing(values: pa.ChunkedArray, sizes: Integers, name: str) -> None:
    firsts = np.repeat(starts_of(sizes)[:-1], sizes)
    try:
        codes = one_array(values).dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
        differ = codes != codes[firsts]
    except pa.ArrowNotImplementedError:  # of lists and structs
        found = values.to_pylist()
        differ = np.array([value != found[first] for value, first in zip(found, firsts.tolist(), strict=True)], bool)
    if differ.any():
        group = int(arrow.rows_of(sizes)[differ.argmax()])
        raise BrokenRow(
            group,
            f"column {name!r} differs between the {sizes[group]} rows of this query, so the one row that they "
            f"become cannot keep it. Leave it out first, with ds.remove_columns({name!r}).",
        )
