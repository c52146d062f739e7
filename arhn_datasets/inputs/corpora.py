"""Rows whose passages stand in a corpus: ids of documents, and the parts of BEIR (queries, corpus, qrels, run)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.forms import (
    CANONICAL,
    GRADE_NAMES,
    NEGATIVE_IDS,
    NO_CORPUS,
    POSITIVE_IDS,
    QUERY_ID_NAMES,
    RUN_DOCID_NAMES,
    Reading,
    first_of,
)
from arhn_datasets.inputs.values import (
    DOCID,
    ID,
    QUERY_TEXT,
    ROWS_PER_BATCH,
    TEXT,
    TITLE,
    BrokenRow,
    Values,
    array_of,
    batches_of,
    found_as,
    lengths,
    list_in,
    read,
    read_lists,
)
from arhn_datasets.rows.arrow import Integers, field_of, lists_of, merged, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, QUERY, QUERY_ID, Row, shorten

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Source: TypeAlias = "Dataset | DatasetDict | Mapping[Any, Any] | Iterable[Mapping[str, Any]]"
Ids: TypeAlias = tuple[Integers, pa.Array]  # of the documents of one side: how many each row has, and those of all

QUERY_KEY_NAMES = (*QUERY_ID_NAMES, "_id", "id")
QUERY_TEXT_NAMES = ("text", QUERY, "query_text")
DOCID_NAMES = ("docid", "_id", "id", "doc_id")
# More than 2 GB of texts fit into one array of this type.
CORPUS_TYPE = pa.struct([("docid", pa.string()), ("title", pa.large_string()), ("text", pa.large_string())])

NAMED_AT_MOST = 5


# --- ids of documents -------------------------------------------------------------------------------------------


def tables_of_ids(ds: Dataset, reading: Reading, corpus: Source | None) -> Iterator[pa.Table]:
    """The rows of ids with query and passages in the canonical columns.

    Raises:
        SchemaError: there is no corpus, a document is not in it, or an id is none.
    """
    if corpus is None:
        raise SchemaError(NO_CORPUS)
    needed: dict[str, None] = {}
    for _, ids in _ids_in(ds, reading):
        counts, flat = zip(*ids, strict=True)
        _, order = merged(counts)  # row by row, so that messages name the first ones
        needed.update(dict.fromkeys(taken(pa.concat_arrays(flat), order).unique().to_pylist()))
    passages, places = _passages_in(corpus, needed)
    for table, ids in _ids_in(ds, reading):
        if reading.query != QUERY:
            table = table.append_column(QUERY, table[reading.query])
        for name, (number, docids) in zip((POSITIVE.passages, NEGATIVE.passages), ids, strict=True):
            found = pa.array([places[docid] for docid in docids.to_pylist()], pa.int64())
            table = table.append_column(name, lists_of(number, passages.take(found)))
        yield table


def dataset_of_ids(rows: list[Row], reading: Reading) -> Dataset:
    """Rows of ids as a dataset: ids that come in several types become strings."""
    from datasets import Dataset

    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    try:
        columns |= {name: lists_of(*read_lists(columns[name], DOCID, name)) for name in (POSITIVE_IDS, NEGATIVE_IDS)}
        if QUERY_ID in columns:
            columns[QUERY_ID] = read(columns[QUERY_ID], ID, QUERY_ID)
    except BrokenRow as broken:
        raise broken.named(columns, reading.query, range(len(rows))) from None
    return Dataset(
        pa.table(
            {n: array_of(values, None, n) if isinstance(values, list) else values for n, values in columns.items()}
        )
    )


def _ids_in(ds: Dataset, reading: Reading) -> Iterator[tuple[pa.Table, list[Ids]]]:
    start = 0
    for table in _tables_of(ds):
        columns = _columns_of(table)
        try:
            ids = [read_lists(columns[name], DOCID, name) for name in (POSITIVE_IDS, NEGATIVE_IDS)]
        except BrokenRow as broken:
            raise broken.named(columns, reading.query, range(start, start + len(table))) from None
        yield table, ids
        start += len(table)


# --- queries, corpus, qrels and run -----------------------------------------------------------------------------


def tables_of_parts(parts: Mapping[str, Source | None], max_negatives: int | None) -> Iterator[pa.Table]:
    """One row a query of the qrels, in the canonical columns.

    Raises:
        ConfigurationError: a part is missing, or there are too many.
        SchemaError: the parts do not fit together.
    """
    queries, corpus, qrels, run, negatives = parts.values()
    retrieved_by = run if run is not None else negatives
    if queries is None or corpus is None or qrels is None or retrieved_by is None or None not in (run, negatives):
        raise ConfigurationError(
            "Give a dataset, or queries=, corpus=, qrels= and one of run= and negatives=. "
            f"Given: {[name for name, part in parts.items() if part is not None] or 'nothing'}."
        )
    if max_negatives is not None and max_negatives < 0:
        raise ConfigurationError(f"max_negatives is {max_negatives}; a number of passages, or None, was expected.")
    positives = _positives(qrels)
    texts = _texts_of(queries, positives)
    retrieved = _retrieved(retrieved_by, "negatives" if run is None else "run")
    wanted = {query_id: retrieved.get(query_id, []) for query_id in texts}
    needed = dict.fromkeys(chain.from_iterable([*positives[query_id], *wanted[query_id]] for query_id in texts))
    passages, places = _passages_in(corpus, needed)
    contents = _contents(passages).tolist()

    def sides(query_id: str) -> tuple[list[int], list[int]]:
        labelled = [places[docid] for docid in positives[query_id]]
        others = [places[docid] for docid in wanted[query_id]]
        if run is not None:
            # A run ranks the positives too, and copies of them under other docids; those are not negatives.
            known = {contents[place] for place in labelled}
            others = [place for place in others if contents[place] not in known]
        return labelled, others[:max_negatives]

    for batch in batches_of(texts):
        lists = [_lists_at(passages, side) for side in zip(*map(sides, batch), strict=True)]
        yield pa.table([array_of(batch), array_of([texts[query_id] for query_id in batch]), *lists], names=CANONICAL)


def _lists_at(passages: pa.Array, places: Sequence[list[int]]) -> pa.Array:
    return lists_of(lengths(places), passages.take(pa.array(list(chain.from_iterable(places)), pa.int64())))


def _positives(qrels: Source) -> dict[str, list[str]]:
    graded = _by_query(qrels, "qrels", lambda row: _numbers(row, GRADE_NAMES, "qrels"))
    positives = {query_id: [docid for grade, docid in found if grade > 0] for query_id, found in graded.items()}
    if not positives:
        raise SchemaError("The qrels are empty: no query has a positive.")
    without = [query_id for query_id, docids in positives.items() if not docids]
    if without:
        raise SchemaError(
            f"{len(without)} of {len(positives)} queries of the qrels have no positive, a document with a score above "
            f"0: {', '.join(map(repr, without[:NAMED_AT_MOST]))}. Leave them out of the qrels."
        )
    return {query_id: list(dict.fromkeys(docids)) for query_id, docids in positives.items()}


def _retrieved(run: Source, name: str) -> dict[str, list[str]]:
    def sort_keys(row: Mapping[str, Any]) -> list[float]:
        if row.get("rank") is not None:
            return _numbers(row, ("rank",), name)
        if row.get("score") is not None:
            return [-score for score in _numbers(row, ("score",), name)]
        return [0.0] * len(_column(row, RUN_DOCID_NAMES, name))

    found = _by_query(run, name, sort_keys)
    # `sorted` is stable, so documents without rank or score, and ties, stay in the order in which they came.
    ordered = {query_id: sorted(pairs, key=lambda pair: pair[0]) for query_id, pairs in found.items()}
    return {query_id: list(dict.fromkeys(docid for _, docid in pairs)) for query_id, pairs in ordered.items()}


def _texts_of(queries: Source, positives: Mapping[str, list[str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in _records(queries, "queries"):
        query_id = ID.value(_value(row, QUERY_KEY_NAMES, "queries"), QUERY_ID)
        if query_id is None or query_id not in positives:
            continue
        text = QUERY_TEXT.value(_value(row, QUERY_TEXT_NAMES, "queries"), "text")
        if texts.setdefault(query_id, text) != text:
            raise SchemaError(f"The queries have two different texts with the id {query_id!r}.")
    _refuse_missing([key for key in positives if key not in texts], len(positives), "query ids", "queries")
    return texts


def _by_query(
    source: Source, name: str, numbers: Callable[[Mapping[str, Any]], list[float]]
) -> dict[str, list[tuple[float, str]]]:
    """For each query its documents, each behind its number."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in _records(source, name):
        query_id = ID.value(_value(row, QUERY_ID_NAMES, name), QUERY_ID)
        if query_id is None:
            raise SchemaError(f"A row of the {name} has no query id: {shorten(repr(dict(row)), 100)}.")
        docids = [DOCID.value(docid, "docid") for docid in _column(row, RUN_DOCID_NAMES, name)]
        values = numbers(row)
        if len(docids) != len(values):
            raise SchemaError(
                f"In the {name}, query {query_id!r} has {len(docids)} docids and {len(values)} scores or ranks."
            )
        found.setdefault(query_id, []).extend(zip(values, docids, strict=True))
    return found


def _column(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[Any]:
    """The values of the first of the columns that is there: one row a document, or lists of them."""
    value = _value(row, names, name)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _numbers(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[float]:
    return [_number(value, name) for value in _column(row, names, name)]


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))  # files of qrels and runs come as text
    except ValueError:
        raise SchemaError(f"A score or rank of the {name} is {found_as(value)}; a number was expected.") from None


# --- a corpus ---------------------------------------------------------------------------------------------------


def _passages_in(corpus: Source, needed: Mapping[str, None]) -> tuple[pa.Array, dict[str, int]]:
    """The passages with these docids, and at which place each of them stands."""
    passages = pa.concat_arrays([pa.nulls(0, CORPUS_TYPE), *_parts_of_corpus(corpus, needed)])
    docids = field_of(passages, "docid", pa.string()).to_pylist()
    places: dict[str, int] = {}
    for place, docid in enumerate(docids):
        places.setdefault(docid, place)
    if len(places) < len(docids):
        contents = _contents(passages).tolist()
        for docid, content in zip(docids, contents, strict=True):
            if content != contents[places[docid]]:
                raise SchemaError(f"The corpus has two different passages with the docid {docid!r}.")
    _refuse_missing([docid for docid in needed if docid not in places], len(needed), "documents", "corpus")
    return passages, places


def _parts_of_corpus(corpus: Source, needed: Mapping[str, None]) -> Iterator[pa.Array]:
    from datasets import Dataset

    source = _only_split(corpus, "corpus")
    titles: Values
    if isinstance(source, Dataset):
        for table in _tables_of(source):
            columns = _columns_of(table)
            docids = read(_value(columns, DOCID_NAMES, "corpus"), ID, "docid")
            here = pa.array([docid in needed for docid in docids.to_pylist()], pa.bool_())
            texts = _value(columns, ("text",), "corpus").filter(here)
            titles = columns["title"].filter(here) if "title" in columns else [None] * len(texts)
            yield _structs_of(docids.filter(here), titles, texts)
        return
    for batch in batches_of(_records(source, "corpus")):
        ids = [ID.value(_value(row, DOCID_NAMES, "corpus"), "docid") for row in batch]
        found = [(docid, row) for docid, row in zip(ids, batch, strict=True) if docid in needed]
        texts = [_value(row, ("text",), "corpus") for _, row in found]
        yield _structs_of(array_of([docid for docid, _ in found]), [row.get("title") for _, row in found], texts)


def _structs_of(docids: pa.Array, titles: Values, texts: Values) -> pa.Array:
    arrays = (docids, read(titles, TITLE, "text"), read(texts, TEXT, "text"))
    typed = [pc.cast(values, field.type) for values, field in zip(arrays, CORPUS_TYPE, strict=True)]
    return pa.StructArray.from_arrays(typed, fields=list(CORPUS_TYPE))


def _contents(passages: pa.Array) -> Integers:
    """A number for each passage, equal where title and text are."""
    titles, texts = (
        field_of(passages, name, pa.large_string()).dictionary_encode().indices.to_numpy(zero_copy_only=False)
        for name in ("title", "text")
    )
    contents: Integers = titles.astype(np.int64) * (len(texts) + 1) + texts
    return contents


def _refuse_missing(missing: list[str], total: int, what: str, where: str) -> None:
    if missing:
        first = ", ".join(map(repr, missing[:NAMED_AT_MOST])) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        raise SchemaError(
            f"{len(missing)} of {total} {what} are not in the {where}: {first}. Give the {where} that the ids belong "
            "to; ids are compared as strings."
        )


# --- the rows of a part -----------------------------------------------------------------------------------------


def _value(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> Any:
    column = first_of(names, row)
    if column is None:
        raise SchemaError(f"The columns of the {name} are {sorted(row)}; one of {', '.join(names)} was expected.")
    return row[column]


def _records(source: Source, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a part, also where it is a mapping from ids or a ``DatasetDict`` of one split."""
    from datasets import Dataset

    source = _only_split(source, name)
    if isinstance(source, Dataset):
        for table in _tables_of(source):
            yield from table.to_pylist()
    elif isinstance(source, Mapping):
        yield from (_keyed(key, value, name) for key, value in source.items())
    else:
        yield from source


def _tables_of(ds: Dataset) -> Iterator[pa.Table]:
    tables: Iterator[pa.Table] = ds.with_format("arrow").iter(ROWS_PER_BATCH)
    return tables


def _columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _only_split(source: Source, name: str) -> Source:
    from datasets import DatasetDict

    if not isinstance(source, DatasetDict):
        return source
    if len(source) != 1:
        raise SchemaError(f"The splits of the {name} are {sorted(source)}; give one of them.")
    return next(iter(source.values()))


def _keyed(key: object, value: object, name: str) -> Row:
    if name in ("queries", "corpus"):
        key_name = QUERY_ID if name == "queries" else "docid"
        return {**(value if isinstance(value, Mapping) else {"text": value}), key_name: key}
    if isinstance(value, Mapping):
        return {QUERY_ID: key, "docid": list(value), "score": list(value.values())}
    return {QUERY_ID: key, "docid": list_in(value, name, f"docids for query {key!r}")}
