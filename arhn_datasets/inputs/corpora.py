"""Passages that stand in a corpus: those of rows of ids, and of BEIR's queries, qrels and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.forms import CANONICAL, GRADE_NAMES, QUERY_ID_NAMES, RUN_DOCID_NAMES, Reading, first_of
from arhn_datasets.inputs.passages import Values, batches_of, naming_rows, read, read_lists
from arhn_datasets.inputs.values import readable
from arhn_datasets.rows.arrow import Integers, decoded, field_of, lists_of, merged, taken
from arhn_datasets.rows.records import LABELLED, QUERY, QUERY_ID, Row, shorten

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

GivenRows: TypeAlias = "Dataset | DatasetDict | Mapping[Any, Any] | Iterable[Mapping[str, Any]]"
"""What a caller may give as rows: also as a mapping from ids, or as the only split of a ``DatasetDict``."""
Ids: TypeAlias = tuple[Integers, pa.Array]  # of the documents of one side: how many each row has, and those of all

QUERY_KEY_NAMES = (*QUERY_ID_NAMES, "_id", "id")
QUERY_TEXT_NAMES = ("text", QUERY, "query_text")
DOCID_NAMES = ("docid", "_id", "id", "doc_id", "document_id")
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
    passages, places = _passages_in(corpus, needed)
    for table, ids in _ids_in(ds, reading):
        for name, column in ((QUERY, reading.query), (QUERY_ID, reading.query_id)):
            if column != name:
                table = table.append_column(name, table[column])
        for side, (counts, docids) in zip(LABELLED, ids, strict=True):
            at = pa.array([places[docid] for docid in docids.to_pylist()], pa.int64())
            table = table.append_column(side.passages, lists_of(counts, passages.take(at)))
        yield table.drop_columns([name for name in reading.consumed if name in table.column_names])


def dataset_of_ids(rows: list[Row], reading: Reading) -> Dataset:
    """Rows of ids as a dataset: ids that come in several types become strings."""
    from datasets import Dataset

    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    with naming_rows(columns, reading.query, range(len(rows))):
        read_columns = {name: lists_of(*_docids_in(columns[name], name)) for name in reading.ids}
        if reading.query_id in columns:
            read_columns[reading.query_id] = read(columns[reading.query_id], flat.ID, reading.query_id)
    rest = {name: flat.typed(values, name) for name, values in columns.items() if name not in read_columns}
    return Dataset(pa.table({**columns, **rest, **read_columns}))  # in the order of the columns


def parts_of(given: object) -> dict[str, Any] | None:
    """The parts of BEIR in LlamaIndex's ``{"queries", "corpus", "relevant_docs"}``, without negatives; else None."""
    if not isinstance(given, Mapping) or not {"queries", "corpus", "relevant_docs"} <= set(given):
        return None
    return {"queries": given["queries"], "corpus": given["corpus"], "qrels": given["relevant_docs"], "negatives": {}}


def _ids_in(ds: Dataset, reading: Reading) -> Iterator[tuple[pa.Table, list[Ids]]]:
    start = 0
    for table in _tables_of(ds):
        with naming_rows(columns := _columns_of(table), reading.query, range(start, start + len(table))):
            ids = [_docids_in(readable(columns[name], structs=True), name) for name in reading.ids]
        yield table, ids
        start += len(table)


def _docids_in(values: Values, name: str) -> Ids:
    """The docids of a column of lists of them, or of ``{"id"}``."""
    found = values if isinstance(values, list) else values.to_pylist() if _holds_structs(values.type) else None
    if found is None:
        return read_lists(values, flat.DOCID, name)
    listed = [[value] if isinstance(value, Mapping) else value for value in found]

    def id_of(one: Any) -> Any:
        return next((one[key] for key in DOCID_NAMES if one.get(key) is not None), None) if hasattr(one, "get") else one

    plain = [[id_of(one) for one in value] if isinstance(value, (list, tuple)) else value for value in listed]
    return read_lists(plain, flat.DOCID, name)


def _holds_structs(type: pa.DataType) -> bool:
    return bool(pa.types.is_struct(type) or pa.types.is_struct(getattr(type, "value_type", pa.null())))


# --- a corpus ---------------------------------------------------------------------------------------------------


def _passages_in(corpus: GivenRows, needed: Mapping[str, None]) -> tuple[pa.Array, dict[str, int]]:
    """The passages with these docids, and at which place each of them stands."""
    passages = pa.concat_arrays([pa.nulls(0, CORPUS_TYPE), *_parts_of_corpus(corpus, needed)])
    docids = field_of(passages, "docid", pa.string()).to_pylist()
    places: dict[str, int] = {}
    for place, docid in enumerate(docids):
        places.setdefault(docid, place)
    if len(places) < len(docids):
        contents = _contents_of(passages).tolist()
        for docid, content in zip(docids, contents, strict=True):
            if content != contents[places[docid]]:
                raise SchemaError(f"The corpus has two different passages with the docid {docid!r}.")
    _refuse_missing([docid for docid in needed if docid not in places], len(needed), "documents", "corpus")
    return passages, places


def _parts_of_corpus(corpus: GivenRows, needed: Mapping[str, None]) -> Iterator[pa.Array]:
    from datasets import Dataset

    corpus = _only_split(corpus, "corpus")
    titles: Values
    if isinstance(corpus, Dataset):
        for table in _tables_of(corpus):
            columns = _columns_of(table)
            docids = read(_value_in(columns, DOCID_NAMES, "corpus"), flat.ID, "docid")
            here = pa.array([docid in needed for docid in docids.to_pylist()], pa.bool_())
            texts = _value_in(columns, ("text",), "corpus").filter(here)
            titles = columns["title"].filter(here) if "title" in columns else [None] * len(texts)
            yield _structs_of(docids.filter(here), titles, texts)
        return
    for batch in batches_of(_records(corpus, "corpus")):
        ids = read([_value_in(row, DOCID_NAMES, "corpus") for row in batch], flat.ID, "docid").to_pylist()
        found = [(docid, row) for docid, row in zip(ids, batch, strict=True) if docid in needed]
        texts = [_value_in(row, ("text",), "corpus") for _, row in found]
        docids = pa.array([docid for docid, _ in found], pa.string())
        yield _structs_of(docids, [row.get("title") for _, row in found], texts)


def _structs_of(docids: pa.Array, titles: Values, texts: Values) -> pa.Array:
    fields = (docids, read(titles, flat.TITLE, "text"), read(texts, flat.TEXT, "text"))
    arrays = [pc.cast(values, field.type) for values, field in zip(fields, CORPUS_TYPE, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(CORPUS_TYPE))


def _contents_of(passages: pa.Array) -> Integers:
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


# --- the rows that are given -----------------------------------------------------------------------------------------


def _value_in(row: Mapping[str, Any], names: tuple[str, ...], part: str) -> Any:
    """The value of the first of the columns that a row of a part has."""
    column = first_of(names, row)
    if column is None:
        raise SchemaError(f"The columns of the {part} are {sorted(row)}; one of {', '.join(names)} was expected.")
    return row[column]


def _records(given: GivenRows, part: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a part as Python objects."""
    from datasets import Dataset

    given = _only_split(given, part)
    if isinstance(given, Dataset):
        for table in _tables_of(given):
            columns = {name: decoded(values) for name, values in _columns_of(table).items()}
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    elif isinstance(given, Mapping):
        yield from (_keyed(key, value, part) for key, value in given.items())
    else:
        yield from given


def _tables_of(ds: Dataset) -> Iterator[pa.Table]:
    tables: Iterator[pa.Table] = ds.with_format("arrow").iter(flat.ROWS_PER_BATCH)
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
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    return {QUERY_ID: key, "docid": flat.list_in(value, part, f"docids for query {key!r}")}


# --- the parts of BEIR --------------------------------------------------------------------------------------------


def tables_of_parts(
    parts: Mapping[str, GivenRows | None], max_negatives: int | None, threshold: float | None = None
) -> Iterator[pa.Table]:
    """One row a query of the qrels, in the canonical columns.

    Raises:
        ConfigurationError: a part is missing, or there are too many.
        SchemaError: the parts do not fit together.
    """
    queries, corpus, qrels, run, negatives = parts.values()
    if threshold is not None and (run, negatives) == (None, None):
        negatives = _below(qrels, threshold)  # a teacher's scores say both
    retrieved_by = run if run is not None else negatives
    if queries is None or corpus is None or qrels is None or retrieved_by is None or None not in (run, negatives):
        raise ConfigurationError(
            "Give a dataset, or queries=, corpus=, qrels= and one of run= and negatives=. "
            f"Given: {[name for name, part in parts.items() if part is not None] or 'nothing'}."
        )
    if max_negatives is not None and max_negatives < 0:
        raise ConfigurationError(f"max_negatives is {max_negatives}; a number of passages, or None, was expected.")
    positives = _positives(qrels, threshold)
    texts = _texts_of(queries, positives)
    retrieved = _retrieved(retrieved_by, "negatives" if run is None else "run")
    wanted = {query_id: retrieved.get(query_id, []) for query_id in texts}
    needed = dict.fromkeys(chain.from_iterable([*positives[query_id], *wanted[query_id]] for query_id in texts))
    passages, places = _passages_in(corpus, needed)
    contents = _contents_of(passages).tolist()

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
        queries_of_batch = pa.array([texts[query_id] for query_id in batch], pa.string())
        yield pa.table([pa.array(batch, pa.string()), queries_of_batch, *lists], names=CANONICAL)


def _lists_at(passages: pa.Array, places: Sequence[list[int]]) -> pa.Array:
    return lists_of(flat.lengths(places), passages.take(pa.array(list(chain.from_iterable(places)), pa.int64())))


def _judged(qrels: GivenRows | None, threshold: float | None) -> dict[str, list[tuple[float, str]]]:
    """For each query its documents, each behind its grade: 1 where the qrels have none."""

    def grades(row: Mapping[str, Any]) -> list[float]:
        if first_of(GRADE_NAMES, row) is None:
            return [1.0] * len(_column(row, RUN_DOCID_NAMES, "qrels"))
        return _numbers(row, GRADE_NAMES, "qrels")

    graded = _by_query(() if qrels is None else qrels, "qrels", grades)
    scores = [grade for found in graded.values() for grade, _ in found if threshold is None and grade != int(grade)]
    if scores:
        raise SchemaError(
            f"The qrels hold scores, as {scores[0]:g}, which do not say what is relevant; grades are whole numbers. "
            "Say from which score on a document is positive (arhn-refine --label-threshold X, threshold=X), or give "
            "the scores as run=."
        )
    return graded


def _below(qrels: GivenRows | None, threshold: float) -> dict[str, list[str]]:
    """The documents of each query whose scores are below the threshold, best first."""
    return {
        query_id: [docid for grade, docid in sorted(found, key=lambda pair: -pair[0]) if grade < threshold]
        for query_id, found in _judged(qrels, threshold).items()
    }


def _positives(qrels: GivenRows, threshold: float | None = None) -> dict[str, list[str]]:
    graded = _judged(qrels, threshold)
    positives = {
        query_id: [docid for grade, docid in found if (grade > 0 if threshold is None else grade >= threshold)]
        for query_id, found in graded.items()
    }
    if not positives:
        raise SchemaError("The qrels are empty: no query has a positive.")
    without = [query_id for query_id, docids in positives.items() if not docids]
    if without:
        least = "above 0" if threshold is None else f"of at least {threshold:g}"
        raise SchemaError(
            f"{len(without)} of {len(positives)} queries of the qrels have no positive, a document with a score "
            f"{least}: {', '.join(map(repr, without[:NAMED_AT_MOST]))}. Leave them out of the qrels."
        )
    return {query_id: list(dict.fromkeys(docids)) for query_id, docids in positives.items()}


def _retrieved(run: GivenRows, name: str) -> dict[str, list[str]]:
    def sort_keys(row: Mapping[str, Any]) -> list[float]:
        if row.get("rank") is not None:
            return _numbers(row, ("rank",), name)
        if (scores := first_of(("score", "scores"), row)) and row[scores] is not None:
            return [-score for score in _numbers(row, (scores,), name)]
        return [0.0] * len(_column(row, RUN_DOCID_NAMES, name))

    found = _by_query(run, name, sort_keys)
    # `sorted` is stable, so documents without rank or score, and ties, stay in the order in which they came.
    ordered = {query_id: sorted(pairs, key=lambda pair: pair[0]) for query_id, pairs in found.items()}
    return {query_id: list(dict.fromkeys(docid for _, docid in pairs)) for query_id, pairs in ordered.items()}


def _texts_of(queries: GivenRows, positives: Mapping[str, list[str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for batch in batches_of(_records(queries, "queries")):
        query_ids = read([_value_in(row, QUERY_KEY_NAMES, "queries") for row in batch], flat.ID, QUERY_ID).to_pylist()
        labelled = [(query_id, row) for query_id, row in zip(query_ids, batch, strict=True) if query_id in positives]
        found = read([_value_in(row, QUERY_TEXT_NAMES, "queries") for _, row in labelled], flat.QUERY_TEXT, "text")
        for (query_id, _), text in zip(labelled, found.to_pylist(), strict=True):
            if texts.setdefault(query_id, text) != text:
                raise SchemaError(f"The queries have two different texts with the id {query_id!r}.")
    _refuse_missing([key for key in positives if key not in texts], len(positives), "query ids", "queries")
    return texts


def _by_query(
    given: GivenRows, part: str, numbers: Callable[[Mapping[str, Any]], list[float]]
) -> dict[str, list[tuple[float, str]]]:
    """For each query its documents, each behind its number."""
    found: dict[str, list[tuple[float, str]]] = {}
    for batch in batches_of(_records(given, part)):
        query_ids = read([_value_in(row, QUERY_ID_NAMES, part) for row in batch], flat.ID, QUERY_ID).to_pylist()
        lists = [_column(row, RUN_DOCID_NAMES, part) for row in batch]
        docids = iter(read(list(chain.from_iterable(lists)), flat.DOCID, "docid").to_pylist())
        for row, query_id, own in zip(batch, query_ids, lists, strict=True):
            if query_id is None:
                raise SchemaError(f"A row of the {part} has no query id: {shorten(repr(dict(row)), 100)}.")
            values = numbers(row)
            if len(own) != len(values):
                raise SchemaError(
                    f"In the {part}, query {query_id!r} has {len(own)} docids and {len(values)} scores or ranks."
                )
            found.setdefault(query_id, []).extend(zip(values, islice(docids, len(own)), strict=True))
    return found


def _column(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[Any]:
    """The same as a list: there is one row a document, or lists of them."""
    value = _value_in(row, names, name)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _numbers(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[float]:
    return [_number(value, name) for value in _column(row, names, name)]


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))  # files of qrels and runs come as text
    except ValueError:
        raise SchemaError(f"A score or rank of the {name} is {flat.found_as(value)}; a number was expected.") from None
