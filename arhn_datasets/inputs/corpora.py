"""Passages that stand in a corpus: of rows that hold their docids, and whatever a caller may give as a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.forms import Reading, first_of
from arhn_datasets.inputs.values import (
    DOCID,
    ID,
    ROWS_PER_BATCH,
    TEXT,
    TITLE,
    Values,
    batches_of,
    list_in,
    naming_rows,
    read,
    read_lists,
    typed,
)
from arhn_datasets.rows.arrow import Integers, field_of, lists_of, merged, taken
from arhn_datasets.rows.records import LABELLED, QUERY, QUERY_ID, Row

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

GivenRows: TypeAlias = "Dataset | DatasetDict | Mapping[Any, Any] | Iterable[Mapping[str, Any]]"
"""What a caller may give as rows: also as a mapping from ids, or as the only split of a ``DatasetDict``."""
Ids: TypeAlias = tuple[Integers, pa.Array]  # of the documents of one side: how many each row has, and those of all

DOCID_NAMES = ("docid", "_id", "id", "doc_id")
# More than 2 GB of texts fit into one array of this type.
CORPUS_TYPE = pa.struct([("docid", pa.string()), ("title", pa.large_string()), ("text", pa.large_string())])

NAMED_AT_MOST = 5


# --- ids of documents -------------------------------------------------------------------------------------------


def tables_of_ids(ds: Dataset, reading: Reading, corpus: GivenRows | None) -> Iterator[pa.Table]:
    """The rows of ids with query and passages in the canonical columns.

    Raises:
        SchemaError: there is no corpus, a document is not in it, or an id is none.
    """
    if corpus is None:
        raise SchemaError(reading.no_corpus)
    needed: dict[str, None] = {}
    for _, ids in _ids_in(ds, reading):
        _, order = merged([counts for counts, _ in ids])  # row by row, so that messages name the first ones
        docids = taken(pa.concat_arrays([docids for _, docids in ids]), order)
        needed.update(dict.fromkeys(docids.unique().to_pylist()))
    passages, places = passages_in(corpus, needed)
    for table, ids in _ids_in(ds, reading):
        if reading.query != QUERY:
            table = table.append_column(QUERY, table[reading.query])
        for side, (counts, docids) in zip(LABELLED, ids, strict=True):
            at = pa.array([places[docid] for docid in docids.to_pylist()], pa.int64())
            table = table.append_column(side.passages, lists_of(counts, passages.take(at)))
        yield table


def dataset_of_ids(rows: list[Row], reading: Reading) -> Dataset:
    """Rows of ids as a dataset: ids that come in several types become strings."""
    from datasets import Dataset

    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    with naming_rows(columns, reading.query, range(len(rows))):
        read_columns = {name: lists_of(*read_lists(columns[name], DOCID, name)) for name in reading.ids}
        if QUERY_ID in columns:
            read_columns[QUERY_ID] = read(columns[QUERY_ID], ID, QUERY_ID)
    rest = {name: typed(values, name) for name, values in columns.items() if name not in read_columns}
    return Dataset(pa.table({**columns, **rest, **read_columns}))  # in the order of the columns


def _ids_in(ds: Dataset, reading: Reading) -> Iterator[tuple[pa.Table, list[Ids]]]:
    start = 0
    for table in _tables_of(ds):
        with naming_rows(columns := _columns_of(table), reading.query, range(start, start + len(table))):
            ids = [read_lists(columns[name], DOCID, name) for name in reading.ids]
        yield table, ids
        start += len(table)


# --- a corpus ---------------------------------------------------------------------------------------------------


def passages_in(corpus: GivenRows, needed: Mapping[str, None]) -> tuple[pa.Array, dict[str, int]]:
    """The passages with these docids, and at which place each of them stands."""
    passages = pa.concat_arrays([pa.nulls(0, CORPUS_TYPE), *_parts_of_corpus(corpus, needed)])
    docids = field_of(passages, "docid", pa.string()).to_pylist()
    places: dict[str, int] = {}
    for place, docid in enumerate(docids):
        places.setdefault(docid, place)
    if len(places) < len(docids):
        contents = contents_of(passages).tolist()
        for docid, content in zip(docids, contents, strict=True):
            if content != contents[places[docid]]:
                raise SchemaError(f"The corpus has two different passages with the docid {docid!r}.")
    refuse_missing([docid for docid in needed if docid not in places], len(needed), "documents", "corpus")
    return passages, places


def _parts_of_corpus(corpus: GivenRows, needed: Mapping[str, None]) -> Iterator[pa.Array]:
    from datasets import Dataset

    corpus = _only_split(corpus, "corpus")
    titles: Values
    if isinstance(corpus, Dataset):
        for table in _tables_of(corpus):
            columns = _columns_of(table)
            docids = read(value_in(columns, DOCID_NAMES, "corpus"), ID, "docid")
            here = pa.array([docid in needed for docid in docids.to_pylist()], pa.bool_())
            texts = value_in(columns, ("text",), "corpus").filter(here)
            titles = columns["title"].filter(here) if "title" in columns else [None] * len(texts)
            yield _structs_of(docids.filter(here), titles, texts)
        return
    for batch in batches_of(records(corpus, "corpus")):
        ids = read([value_in(row, DOCID_NAMES, "corpus") for row in batch], ID, "docid").to_pylist()
        found = [(docid, row) for docid, row in zip(ids, batch, strict=True) if docid in needed]
        texts = [value_in(row, ("text",), "corpus") for _, row in found]
        docids = pa.array([docid for docid, _ in found], pa.string())
        yield _structs_of(docids, [row.get("title") for _, row in found], texts)


def _structs_of(docids: pa.Array, titles: Values, texts: Values) -> pa.Array:
    fields = (docids, read(titles, TITLE, "text"), read(texts, TEXT, "text"))
    arrays = [pc.cast(values, field.type) for values, field in zip(fields, CORPUS_TYPE, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(CORPUS_TYPE))


def contents_of(passages: pa.Array) -> Integers:
    """A number for each passage, equal where title and text are."""
    titles, texts = (
        field_of(passages, name, pa.large_string()).dictionary_encode().indices.to_numpy(zero_copy_only=False)
        for name in ("title", "text")
    )
    contents: Integers = titles.astype(np.int64) * (len(texts) + 1) + texts
    return contents


def refuse_missing(missing: list[str], total: int, what: str, where: str) -> None:
    """Refuse ids that are not where they belong.

    Raises:
        SchemaError: there are some.
    """
    if missing:
        first = ", ".join(map(repr, missing[:NAMED_AT_MOST])) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        raise SchemaError(
            f"{len(missing)} of {total} {what} are not in the {where}: {first}. Give the {where} that the ids belong "
            "to; ids are compared as strings."
        )


# --- the rows that are given -----------------------------------------------------------------------------------------


def value_in(row: Mapping[str, Any], names: tuple[str, ...], part: str) -> Any:
    """The value of the first of the columns that a row of a part has.

    Raises:
        SchemaError: it has none of them.
    """
    column = first_of(names, row)
    if column is None:
        raise SchemaError(f"The columns of the {part} are {sorted(row)}; one of {', '.join(names)} was expected.")
    return row[column]


def records(given: GivenRows, part: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a part as Python objects."""
    from datasets import Dataset

    given = _only_split(given, part)
    if isinstance(given, Dataset):
        for table in _tables_of(given):
            yield from table.to_pylist()
    elif isinstance(given, Mapping):
        yield from (_keyed(key, value, part) for key, value in given.items())
    else:
        yield from given


def _tables_of(ds: Dataset) -> Iterator[pa.Table]:
    tables: Iterator[pa.Table] = ds.with_format("arrow").iter(ROWS_PER_BATCH)
    return tables


def _columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _only_split(given: GivenRows, part: str) -> GivenRows:
    from datasets import DatasetDict

    if not isinstance(given, DatasetDict):
        return given
    if len(given) != 1:
        raise SchemaError(f"The splits of the {part} are {sorted(given)}; give one of them.")
    return next(iter(given.values()))


def _keyed(key: object, value: object, part: str) -> Row:
    if part in ("queries", "corpus"):
        key_name = QUERY_ID if part == "queries" else "docid"
        return {**(value if isinstance(value, Mapping) else {"text": value}), key_name: key}
    if isinstance(value, Mapping):
        return {QUERY_ID: key, "docid": list(value), "score": list(value.values())}
    return {QUERY_ID: key, "docid": list_in(value, part, f"docids for query {key!r}")}
