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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs import bad_rows
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.bad_rows import STOP, BadRow, OnBadRow, halved
from arhn_datasets.inputs.canonical import canonical_columns, canonical_rows, mixes_subsets, sort_out
from arhn_datasets.inputs.columns import check_label_names
from arhn_datasets.inputs.corpora import GivenRows, dataset_of_ids, parts_of, tables_of_ids, tables_of_parts
from arhn_datasets.inputs.forms import CANONICAL, MADE, Reading, reading_of
from arhn_datasets.inputs.grouping import alike, grouped, names_of, refuse_lists_of_passages
from arhn_datasets.inputs.passages import STRING, BrokenRow, Values
from arhn_datasets.inputs.values import conformed, readable, united_columns
from arhn_datasets.rows import arrow, map_hooks
from arhn_datasets.rows.arrow import Integers, empty_table, one_array
from arhn_datasets.rows.records import PASSAGE_TYPE, SUBSET, Row
from arhn_datasets.rows.stage import ColumnTransform, is_batch

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, NamedSplit

ADAPT_REVISION = 3  # raise it when the same input gives other rows: cached results of `map` depend on it
REASON = "arhn: why this row is bad"  # a column beside the rows of a map, whose result may come from a cache


# --- rows and tables --------------------------------------------------------------------------------------------


def adapt_rows(
    rows: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None = None, *, threshold: float | None = None
) -> list[Row]:
    """Rows of the same columns, of any form that keeps its rows, as canonical rows.

    Missing docids become a stable hash of title and text, missing query ids one of query and subset, null titles
    ``""``; numeric ids become strings. A passage that stands twice in one list is kept once, and a null in place of a
    passage is none. Scores of the passages go to a field ``score`` of each passage; other fields of the passages, and
    the columns that pass through, stay the objects that they are.

    Args:
        rows: a triplet or n-tuple stays one row (:func:`adapt_dataset` groups the rows of an anchor).
        numbers: of each row, for the messages.
        threshold: the score from which on a document of a labelled list or pair is positive.

    Returns:
        ``query_id``, ``query``, ``positive_passages``, ``negative_passages``, then the columns passed through.

    Raises:
        SchemaError: the columns fit no form, or a row breaks its form: an empty query, no positive, a string
            where a list belongs, a passage that is both positive and negative, one docid for two texts.
    """
    if not rows:
        return []
    reading = reading_of(tuple(rows[0]), threshold)

    def read_rows(start: int, end: int) -> list[Row]:
        return canonical_rows(rows[start:end], reading, alone=True)

    with _named(len(rows), read_rows, lambda row: [rows[row]], reading, numbers):
        return read_rows(0, len(rows))


def adapt_columns(
    table: pa.Table, numbers: Sequence[int] | None = None, *, threshold: float | None = None
) -> dict[str, Any]:
    """The canonical columns of the rows of a table, as :func:`adapt_rows`; those that are canonical come as they are.

    Where docids are missing, one Python loop hashes each distinct passage once; nothing else makes a Python object of a
    passage.
    """
    reading = reading_of(tuple(table.column_names), threshold)

    def read_columns(start: int, end: int) -> dict[str, Any]:
        return canonical_columns(table.slice(start, end - start), reading, alone=True)

    with _named(table.num_rows, read_columns, lambda row: [arrow.row_at(table, row)], reading, numbers):
        return read_columns(0, table.num_rows)


def keeps_rows(columns: Iterable[str]) -> bool:
    """Whether :func:`adapt_dataset` makes one row of each row, so that it may be cut before it is adapted.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    return not reading_of(tuple(columns)).grouped


@contextmanager
def _named(
    count: int,
    read: Callable[[int, int], object],
    row_at: Callable[[int], list[Mapping[str, Any]]],
    reading: Reading,
    numbers: Sequence[int] | None,
) -> Iterator[None]:
    """Name the first row that is broken, as if the rows were read one by one."""
    try:
        yield
    except BrokenRow as error:
        start, end, broken = 0, count, error
        while end - start > 1:  # a row before it may break its form in a way that is looked for later
            middle = (start + end) // 2
            try:
                read(start, middle)
                start = middle
            except BrokenRow:
                end = middle
        try:
            read(start, end)
        except BrokenRow as alone:
            broken = alone
        [row] = row_at(start)
        columns: dict[str, Values] = {name: [value] for name, value in row.items()}
        number = None if numbers is None else [int(numbers[start])]
        raise BrokenRow(0, broken).named(columns, reading.query, number) from None


# --- the map callable -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapt(ColumnTransform):
    """:func:`adapt_rows` for ``Dataset.map``: one row stays one row, and the columns of the other form go.

    Args:
        threshold: The score from which on a document of a labelled list is positive; without one, scores are refused.

    Raises:
        SchemaError: as :func:`adapt_rows`.
    """

    NAME: ClassVar[str] = "adapt"
    VERSION: ClassVar[int] = ADAPT_REVISION

    threshold: float | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """None: the form is recognised from the columns."""
        return ()

    def identity(self) -> dict[str, Any]:
        """The threshold where there is one, beside the version."""
        return {} if self.threshold is None else {"threshold": self.threshold}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The canonical columns of each row."""
        return adapt_rows(rows, threshold=self.threshold)

    def compute(self, table: pa.Table) -> Mapping[str, Any]:
        """The canonical columns of the rows of a table."""
        return adapt_columns(table, threshold=self.threshold)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Strings, and lists of passages with whatever fields the input's passages have."""
        if schema is None:
            return {**dict(zip(CANONICAL, (STRING, STRING, None, None), strict=True)), **dict.fromkeys(MADE)}
        reading = self._reading(schema.names)
        passages = reading.passages(schema)
        types = dict(zip(CANONICAL, (STRING, STRING, passages, passages), strict=True))
        further = [*reading.made, *([SUBSET] if mixes_subsets(schema) else [])]
        return {**types, **dict.fromkeys(further, STRING)}

    def dropped(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns of the other form, which become the canonical ones, so that nobody needs them any more."""
        return self._reading(columns).consumed

    def _reading(self, columns: Iterable[str]) -> Reading:
        return reading_of(tuple(columns), self.threshold)

    def _inputs(self, columns: Iterable[str]) -> list[str]:
        names = tuple(columns)
        return self._reading(names).inputs(names)

    def _is_batch(self, rows: Mapping[str, Any]) -> bool:
        reading = self._reading(rows)
        if reading.queries is not None and not map_hooks.is_lazy(rows):  # a query is a list of messages
            return not any(isinstance(one, Mapping) for one in rows[reading.query])
        return is_batch(rows, reading.query)


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
    threshold: float | None = None,
    on_bad_row: OnBadRow = STOP,
) -> Dataset | DatasetDict:
    """A dataset of any known form as canonical rows with typed features.

    Either ``ds``, whose form is recognised from its columns, or the BEIR parts. Tuples and labelled pairs of the same
    anchor (and query id and subset, where there are such columns) become one row at the place of the first;
    every other form stays row by row. From BEIR parts comes one row per query of the qrels, in the order of
    ``queries``: a document with a grade above 0, or without grades each one, is a positive; the negatives are the
    retrieved documents that are not, best first, without those that repeat title and text of a positive.

    Args:
        ds: a ``Dataset``, a ``DatasetDict`` (each split on its own), dicts, one per row, or LlamaIndex's
            ``{"queries", "corpus", "relevant_docs"}``.
        queries: rows of ``_id`` and ``text``, or ``{query id: text}``.
        corpus: rows of ``_id`` or ``docid``, ``text`` and optionally ``title``, or ``{docid: row}``; further
            columns are not taken over. Only the passages that are needed are held.
        qrels: rows of ``query-id``, ``corpus-id`` and optionally ``score``, or ``{query id: {docid: score}}``, or
            ``{query id: docids}``.
        run: retrieved documents, rows of ``query-id``, ``corpus-id`` and ``rank`` or ``score``, or with a list of
            docids, best first unless scores stand beside them, or ``{query id: {docid: score}}``.
        negatives: in place of ``run``: ids of negatives only, in the forms of ``run`` or ``{query id: [docid]}``.
        max_negatives: keep at most so many retrieved negatives per query.
        threshold: the score from which on a document of a labelled list, a labelled pair or the qrels is positive.
            Without one, scores that are no labels are refused.
        on_bad_row: what becomes of rows that break their form: ``"stop"`` refuses the dataset, and tells how many there
            are; ``"set-aside"`` leaves them out with a warning; a function, as ``list.append``, takes each of them.

    Returns:
        A ``Dataset``, or a ``DatasetDict`` where ``ds`` holds splits.

    Raises:
        SchemaError: the columns fit no form, rows break their form (:func:`adapt_rows`), an id is not in the
            corpus or the queries, a query has no positive, or the grouped rows of an anchor contradict each other.
        ConfigurationError: arguments that do not belong together, or one that is missing.
    """
    bad_rows.check_choice(on_bad_row)
    parts = {"queries": queries, "corpus": corpus, "qrels": qrels, "run": run, "negatives": negatives}
    if (whole := parts_of(ds)) is not None:
        ds, parts = None, {**parts, **whole, **({} if (run, negatives) == (None, None) else {"negatives": negatives})}
    if ds is None:
        features = _features(pa.list_(PASSAGE_TYPE))
        schema = features.arrow_schema
        tables = (
            pa.Table.from_arrays([conformed(table[own.name], own.type) for own in schema], schema=schema)
            for table in tables_of_parts(parts, max_negatives, threshold)
        )
        return _sorted_out(_flagged_tables(tables, features, None), None, on_bad_row, CANONICAL)
    given = [name for name, part in parts.items() if part is not None and name != "corpus"]
    if given or max_negatives is not None:
        raise ConfigurationError(
            f"{', '.join(given) or 'max_negatives'} cannot be used with a dataset as first argument: give either the "
            "dataset (and its corpus=), or queries=, corpus=, qrels= and run= or negatives=."
        )
    if not isinstance(ds, Mapping):
        return _adapted_dataset(ds, corpus, threshold, on_bad_row)
    from datasets import DatasetDict

    if isinstance(corpus, Iterator):
        corpus = list(corpus)  # every split reads it
    splits = {split: _adapted_dataset(rows, corpus, threshold, on_bad_row, split) for split, rows in ds.items()}
    return DatasetDict(alike({split: (names_of(ds[split]), adapted) for split, adapted in splits.items()}))


def _adapted_dataset(
    ds: Dataset | Iterable[object],
    corpus: GivenRows | None,
    threshold: float | None,
    on_bad_row: OnBadRow,
    split: str | None = None,
) -> Dataset:
    from datasets import Dataset

    rows = ds if isinstance(ds, Dataset) else _with_the_same_columns(ds)
    names = tuple(rows.column_names if isinstance(rows, Dataset) else rows[0])
    reading, came = reading_of(names, threshold), rows
    if isinstance(rows, Dataset):
        for name in reading.consumed if threshold is None else ():
            check_label_names(rows.features.get(name), name)
        rows = _with_known_fields(rows, reading)
    if reading.ids and (corpus is not None or reading.sides is None):
        of_ids = rows if isinstance(rows, Dataset) else dataset_of_ids(rows, reading)
        features = _features_of(of_ids.features, reading)
        flagged = _flagged_tables(tables_of_ids(of_ids, reading, corpus), features, of_ids.split)
        return _sorted_out(flagged, of_ids, on_bad_row, names, split=split)
    if corpus is not None:
        raise ConfigurationError("corpus= is for rows that hold document ids; this dataset holds its passages itself.")
    flagged = _mapped(rows, reading, threshold) if isinstance(rows, Dataset) else _dataset_of(rows, reading)
    return _sorted_out(flagged, came, on_bad_row, names, reading=reading, split=split)


def _sorted_out(
    flagged: Dataset,
    rows: Dataset | Sequence[Row] | None,
    on_bad_row: OnBadRow,
    names: Sequence[str],
    *,
    reading: Reading | None = None,
    split: str | None = None,
) -> Dataset:
    """The good ones of rows with a column of reasons, grouped where that is wanted, when the others are told."""
    reasons = one_array(flagged.data.column(REASON))
    empty = [
        name for name in (reading.made if reading else ()) if not flagged.data.column(name).null_count < len(flagged)
    ]
    good = flagged.remove_columns([REASON, *empty])
    numbers: Integers = np.arange(len(good))
    found: list[tuple[int, str]] = []
    if reasons.null_count < len(reasons):
        numbers = np.flatnonzero(arrow.is_null(reasons))
        found = [(at, reasons[at].as_py()) for at in np.flatnonzero(~arrow.is_null(reasons)).tolist()]
        good = good.select(numbers)
    refuse_lists_of_passages(good)
    if reading is not None and reading.grouped:
        good, contradicting = grouped(good, numbers, reading)
        found = sorted([*found, *contradicting])
    source = flagged if rows is None else rows
    bad = [BadRow(row=at, reason=reason, content=_content(source, at, names), split=split) for at, reason in found]
    bad_rows.told(bad, len(flagged), on_bad_row)
    return good


def _content(rows: Dataset | Sequence[Row], at: int, names: Sequence[str]) -> Row:
    """All that a row holds, as it came."""
    row = rows[at] if isinstance(rows, Sequence) else arrow.row_at(rows.with_format("arrow")[at : at + 1], 0)
    return {name: row[name] for name in names}


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


def _mapped(ds: Dataset, reading: Reading, threshold: float | None) -> Dataset:
    features = _features_of(ds.features, reading)
    if not len(ds):
        return _dataset([], _with_reasons(features), ds.split)
    # Through `map`, because it writes to disk; in Arrow, because the columns that pass through stay as they are.
    arguments = {"schema": features.arrow_schema, "revision": ADAPT_REVISION, "threshold": threshold}
    mapped = ds.with_format("arrow").map(
        _flagged_table, batched=True, features=_with_reasons(features), fn_kwargs=arguments, desc="Adapting"
    )
    return mapped.with_format(None)


def _flagged_table(table: pa.Table, *, schema: pa.Schema, revision: int, threshold: float | None = None) -> pa.Table:
    """The canonical rows of a table, with the reason beside each that is bad; it stands there if it is canonical."""
    good, bad = sort_out(table, schema, threshold=threshold, alone=False)
    if not bad:
        return good.append_column(REASON, pa.nulls(good.num_rows, STRING))
    places = np.full(table.num_rows, -1, np.int64)
    kept = np.isin(np.arange(table.num_rows), [row for row, _ in bad], invert=True)
    places[kept] = np.arange(good.num_rows)
    reasons = dict(bad)
    if table.schema.equals(schema):  # of the parts of BEIR there is no other row to show
        places[~kept] = good.num_rows + np.arange(len(bad))
        good = pa.concat_tables([good, table.filter(pa.array(~kept)).cast(schema)])
    index = pa.array(np.where(places < 0, 0, places), mask=places < 0)
    whole = pa.Table.from_arrays([column.take(index) for column in good.columns], schema=schema)
    return whole.append_column(REASON, pa.array([reasons.get(row) for row in range(table.num_rows)], STRING))


def _flagged_tables(tables: Iterable[pa.Table], features: Features, split: NamedSplit | None) -> Dataset:
    schema = features.arrow_schema
    flagged = (_flagged_table(table, schema=schema, revision=ADAPT_REVISION) for table in tables)
    return _dataset(flagged, _with_reasons(features), split)


def _dataset_of(rows: list[Row], reading: Reading) -> Dataset:
    from datasets import Features

    adapted: list[Row] = []
    reasons: list[str | None] = []
    for batch in flat.batches_of(rows):

        def read_batch(start: int, end: int, batch: list[Row] = batch) -> list[Row]:
            return canonical_rows(batch[start:end], reading, alone=False)

        good, bad = halved(len(batch), read_batch)
        known = dict(bad)
        left = iter(list(chain.from_iterable(good)))
        reasons += [known.get(at) for at in range(len(batch))]
        adapted += [{} if at in known else next(left) for at in range(len(batch))]
    names = list(dict.fromkeys([*CANONICAL, *reading.made, *reading.passed(rows[0])]))
    types = {name: flat.typed([row[name] for row in adapted if row], name).type for name in names}
    if not any(adapted):
        types |= dict(zip(CANONICAL, (STRING, STRING, *[pa.list_(PASSAGE_TYPE)] * 2), strict=True))
    found = Features.from_arrow_schema(pa.schema(list(types.items())))
    features = _with_reasons(_features_of(found, reading_of(CANONICAL)))
    flagged = ({**row, REASON: reason} for row, reason in zip(adapted, reasons, strict=True))
    tables = (pa.Table.from_pylist(batch, schema=features.arrow_schema) for batch in flat.batches_of(flagged))
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
    passed = {**{name: Value("string") for name in reading.made}, **passed}
    if mixes_subsets(schema):
        passed[SUBSET] = Value("string")
    return _features(reading.passages(schema), passed)


def _with_reasons(features: Features) -> Features:
    from datasets import Features, Value

    return Features({**features, REASON: Value("string")})
