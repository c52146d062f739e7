"""Every known training form to canonical rows, recognised from the columns.

::

    ds = ds.map(arhn.adapt)                        # one row stays one row
    ds = arhn.adapt_dataset(ds)                    # triplets and n-tuples: rows of one anchor become one row
    ds = arhn.adapt_dataset(ds, corpus=corpus)     # document ids become passages
    ds = arhn.adapt_dataset(queries=queries, corpus=corpus, qrels=qrels, run=run)

The forms and their columns are in :data:`KNOWN_FORMS`. What a form holds beside them passes through untouched.
Nothing is guessed: columns that fit no form or two, and rows that a trainer could not read as they are meant,
raise a ``SchemaError`` that names the row, the column, what was found and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, groupby, islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.records import (
    NEGATIVES,
    PASSAGE_TYPE,
    POSITIVES,
    QUERY,
    QUERY_ID,
    SUBSET,
    Row,
    shorten,
    stable_docid,
    stable_query_id,
)
from arhn_datasets.transform import Transform, is_batch

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, NamedSplit

Source: TypeAlias = "Dataset | DatasetDict | Mapping[Any, Any] | Iterable[Mapping[str, Any]]"
Rows: TypeAlias = "Dataset | list[Row]"
Sides: TypeAlias = tuple[list[Row], list[Row]]

ADAPT_REVISION = 1  # raise it when the same input gives other rows: cached results of `map` depend on it

KNOWN_FORMS = {
    "Tevatron/RLHN": "query, positive_passages, negative_passages [query_id]",
    "FlagEmbedding": "query, pos, neg [pos_scores, neg_scores, prompt, type]",
    "sentence-transformers triplet or n-tuple": (
        "anchor|query|question, positive|answer, negative and/or negative_0, negative_1, ..."
    ),
    "sentence-transformers labelled list": "anchor|query|question, docs|documents, labels|label|scores|score",
    "DPR": "question, positive_ctxs, hard_negative_ctxs",
    "Tevatron ids": (
        "query_text|query, positive_document_ids, negative_document_ids, by arhn.adapt_dataset(ds, corpus=...)"
    ),
    "BEIR": "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...), or negatives=... for run",
}

CANONICAL = (QUERY_ID, QUERY, POSITIVES, NEGATIVES)
ANCHORS = ("anchor", QUERY, "question")
NEGATIVE_COLUMN = re.compile(r"negative(?:_(\d+))?")
POSITIVE_IDS, NEGATIVE_IDS = "positive_document_ids", "negative_document_ids"
DPR_DOCIDS = ("docid", "passage_id", "psg_id")

QUERY_ID_NAMES = (QUERY_ID, "query-id", "qid")
QUERY_KEY_NAMES = (*QUERY_ID_NAMES, "_id", "id")
QUERY_TEXT_NAMES = ("text", QUERY, "query_text")
DOCID_NAMES = ("docid", "_id", "id", "doc_id")
RUN_DOCID_NAMES = ("docid", "corpus-id", "corpus_id", "doc_id", "corpus-ids", "docids")
GRADE_NAMES = ("score", "relevance")

ROWS_PER_BATCH = 1000
NAMED_AT_MOST = 5


# --- rows -------------------------------------------------------------------------------------------------------


def adapt_row(row: Mapping[str, Any]) -> Row:
    """One row of any form that keeps its rows, as a canonical row.

    Missing docids become a stable hash of title and text, missing query ids one of query and subset, null titles
    ``""``; numeric ids become strings. A passage that stands twice in one list is kept once. Scores of the
    passages go to a field ``score`` of each passage, other fields of the passages are kept.

    Args:
        row: one row; a triplet or n-tuple stays one row (:func:`adapt_dataset` groups the rows of an anchor).

    Returns:
        ``query_id``, ``query``, ``positive_passages``, ``negative_passages``, then the columns passed through.

    Raises:
        SchemaError: the columns fit no form, or the row breaks its form: an empty query, no positive, a string
            where a list belongs, a passage that is both positive and negative, one docid for two texts.
    """
    reading = _reading(tuple(row))
    with _naming_the_row(row, reading.query):
        query = _query_text(row[reading.query], reading.query)
        positives, negatives = (_distinct(side) for side in reading.passages(row))
        if not any(passage["text"].strip() or passage["title"].strip() for passage in positives):
            raise SchemaError("it has no positive passage. Leave such rows out before adapting, with ds.filter(...).")
        _refuse_both_sides(positives, negatives)
        query_id = _identifier(row.get(QUERY_ID), QUERY_ID)
    subset = row.get(SUBSET)
    canonical: Row = {
        QUERY_ID: query_id or stable_query_id(query, subset if isinstance(subset, str) else None),
        QUERY: query,
        POSITIVES: positives,
        NEGATIVES: negatives,
    }
    passed = {name: row[name] for name in row if name not in canonical and name not in reading.consumed}
    return {**canonical, **passed}


def consumed_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that the recognised form turns into canonical ones, so that nobody needs them any more.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    return _reading(tuple(columns)).consumed


def keeps_rows(columns: Iterable[str]) -> bool:
    """Whether :func:`adapt_dataset` makes one row of each row, so that it may be cut before it is adapted.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    return not _reading(tuple(columns)).grouped


@contextmanager
def _naming_the_row(row: Mapping[str, Any], query: str) -> Iterator[None]:
    try:
        yield
    except SchemaError as error:
        named = QUERY if row.get(QUERY_ID) in (None, "") else QUERY_ID
        value = row[query] if named == QUERY else row[QUERY_ID]
        raise SchemaError(f"In the row with {named} {shorten(repr(value), 100)}: {error}") from None


def _distinct(passages: Iterable[Row]) -> list[Row]:
    kept: dict[str, Row] = {}
    for passage in passages:
        first = kept.setdefault(passage["docid"], passage)
        if _content(first) != _content(passage):
            raise SchemaError(
                f"docid {passage['docid']!r} stands for two texts, {_quoted(first)} and {_quoted(passage)}. "
                "Give each text its own docid, or null docids to have them made."
            )
    return list(kept.values())


def _refuse_both_sides(positives: list[Row], negatives: list[Row]) -> None:
    # By docid alone: a copy of a positive under another docid is a false negative, and refining finds it. Where docids
    # are made here, equal texts have equal ones.
    docids = {passage["docid"] for passage in positives}
    for passage in negatives:
        if passage["docid"] in docids:
            raise SchemaError(
                f"the passage {passage['docid']!r} ({_quoted(passage)}) is both positive and negative. "
                "Decide which it is and remove it from the other side."
            )


def _content(passage: Row) -> tuple[str, str]:
    return passage["title"], passage["text"]


def _quoted(passage: Row) -> str:
    return repr(shorten(passage["text"] or passage["title"], 60))


# --- forms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How the rows of one set of columns are read.

    ``structs`` are the columns whose passages may bring further fields, ``scored`` says that scores become one;
    ``grouped`` that several rows may belong to one query, ``by_id`` that the passages stand in a corpus.
    """

    query: str
    consumed: tuple[str, ...]
    passages: Callable[[Mapping[str, Any]], Sides]
    structs: tuple[str, ...] = ()
    scored: bool = False
    grouped: bool = False
    by_id: bool = False


@lru_cache(maxsize=128)
def _reading(columns: tuple[str, ...]) -> _Reading:
    if {QUERY, POSITIVES, NEGATIVES} <= set(columns):
        return _Reading(
            query=QUERY,
            consumed=(),
            passages=partial(_struct_sides, positives=POSITIVES, negatives=NEGATIVES, docids=("docid",)),
            structs=(POSITIVES, NEGATIVES),
        )
    forms = (_flag_embedding, _tuples, _labelled_list, _dpr, _document_ids)
    readings = [reading for form in forms if (reading := form(columns))]
    if not readings:
        raise _unknown(columns)
    if len(readings) > 1:
        raise SchemaError(
            f"The columns fit more than one form: {sorted(columns)}. Remove those of the other form first, with "
            f"ds.remove_columns(...). Known forms:\n{_known_forms()}"
        )
    reading = readings[0]
    shadowed = [name for name in CANONICAL[1:] if name in columns and name not in (reading.query, *reading.consumed)]
    if shadowed:
        raise SchemaError(
            f"The columns {sorted(reading.consumed)} would become {', '.join(CANONICAL[1:])}, but there is a column "
            f"{shadowed[0]!r} already. Rename or remove one of them; columns found: {sorted(columns)}."
        )
    return reading


def _flag_embedding(columns: Collection[str]) -> _Reading | None:
    if not {QUERY, "pos", "neg"} <= set(columns):
        return None
    scores = tuple(name for name in ("pos_scores", "neg_scores") if name in columns)
    return _Reading(
        query=QUERY,
        consumed=("pos", "neg", *scores),
        passages=partial(_text_sides, scored=bool(scores)),
        scored=bool(scores),
    )


def _tuples(columns: Collection[str]) -> _Reading | None:
    query, positive = _first_of(ANCHORS, columns), _first_of(("positive", "answer"), columns)
    negatives = sorted((name for name in columns if NEGATIVE_COLUMN.fullmatch(name)), key=_position)
    if not (query and positive and negatives):
        return None
    return _Reading(
        query=query,
        consumed=_beyond_canonical(query, positive, *negatives),
        passages=partial(_tuple_sides, positive=positive, negatives=tuple(negatives)),
        grouped=True,
    )


def _labelled_list(columns: Collection[str]) -> _Reading | None:
    query, documents = _first_of(ANCHORS, columns), _first_of(("docs", "documents"), columns)
    labels = _first_of(("labels", "label", "scores", "score"), columns)
    if not (query and documents and labels):
        return None
    # A label says the side and is stale once a passage changes sides; a score is a model's and stays with it.
    scored = labels in ("scores", "score")
    return _Reading(
        query=query,
        consumed=_beyond_canonical(query, documents, labels),
        passages=partial(_labelled_sides, documents=documents, labels=labels, scored=scored),
        scored=scored,
    )


def _dpr(columns: Collection[str]) -> _Reading | None:
    positives, negatives = "positive_ctxs", "hard_negative_ctxs"
    if not {"question", positives, negatives} <= set(columns):
        return None
    return _Reading(
        query="question",
        consumed=("question", positives, negatives),
        passages=partial(_struct_sides, positives=positives, negatives=negatives, docids=DPR_DOCIDS),
        structs=(positives, negatives),
    )


def _document_ids(columns: Collection[str]) -> _Reading | None:
    query = _first_of(("query_text", QUERY), columns)
    if query is None or not {POSITIVE_IDS, NEGATIVE_IDS} <= set(columns):
        return None
    return _Reading(
        query=query,
        consumed=_beyond_canonical(query, POSITIVE_IDS, NEGATIVE_IDS),
        passages=_refuse_document_ids,
        by_id=True,
    )


def _unknown(columns: Collection[str]) -> SchemaError:
    if all(_first_of(names, columns) for names in (QUERY_ID_NAMES, RUN_DOCID_NAMES, GRADE_NAMES)):
        return SchemaError(
            f"The columns {sorted(columns)} are those of qrels or of a run, which hold ids and no texts. Call "
            "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...)."
        )
    return SchemaError(
        f"The columns fit no known form: {sorted(columns)}. Rename them to those of one of the known forms, with "
        f"ds.rename_columns({{...}}):\n{_known_forms()}"
    )


def _known_forms() -> str:
    return "\n".join(f"  {name}: {columns}" for name, columns in KNOWN_FORMS.items())


def _first_of(names: Iterable[str], columns: Collection[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _beyond_canonical(*columns: str) -> tuple[str, ...]:
    return tuple(name for name in columns if name not in CANONICAL)


def _position(column: str) -> int:
    # By number, not by name: negative_10 comes after negative_9, and a plain `negative` before all.
    _, _, number = column.partition("_")
    return int(number) if number else -1


# --- the passages of a row --------------------------------------------------------------------------------------


def _struct_sides(row: Mapping[str, Any], *, positives: str, negatives: str, docids: tuple[str, ...]) -> Sides:
    return _structs(row, positives, docids), _structs(row, negatives, docids)


def _text_sides(row: Mapping[str, Any], *, scored: bool) -> Sides:
    return _texts(row, "pos", "pos_scores", scored), _texts(row, "neg", "neg_scores", scored)


def _tuple_sides(row: Mapping[str, Any], *, positive: str, negatives: tuple[str, ...]) -> Sides:
    # A tuple with fewer negatives than columns has nulls or empty strings in the rest of them.
    return (
        [_passage(row[name], name) for name in (positive,) if row[name]],
        [_passage(row[name], name) for name in negatives if row[name]],
    )


def _labelled_sides(row: Mapping[str, Any], *, documents: str, labels: str, scored: bool) -> Sides:
    texts = _list_in(row, documents, "texts")
    numbers = _numbers(row, labels, len(texts), documents)
    sides: Sides = ([], [])
    for text, number in zip(texts, numbers, strict=True):
        if number is None:
            raise SchemaError(f"column {labels!r} holds a null; every passage needs a number, above 0 if positive.")
        passage = _passage(text, documents, score=number) if scored else _passage(text, documents)
        sides[number <= 0].append(passage)
    return sides


def _refuse_document_ids(row: Mapping[str, Any]) -> Sides:
    raise SchemaError(
        f"the columns {POSITIVE_IDS!r} and {NEGATIVE_IDS!r} hold ids, and the texts stand in a corpus. "
        "Call arhn.adapt_dataset(ds, corpus=...)."
    )


def _texts(row: Mapping[str, Any], column: str, scores: str, scored: bool) -> list[Row]:
    texts = _list_in(row, column, "texts")
    if not scored:
        return [_passage(text, column) for text in texts]
    numbers = _numbers(row, scores, len(texts), column) if row.get(scores) is not None else [None] * len(texts)
    return [_passage(text, column, score=number) for text, number in zip(texts, numbers, strict=True)]


def _structs(row: Mapping[str, Any], column: str, docids: tuple[str, ...]) -> list[Row]:
    value = row[column]
    entries = _rows_of_columns(value, column) if isinstance(value, Mapping) else _list_in(row, column, "passages")
    return [_passage_of_struct(entry, column, docids) for entry in entries]


def _passage_of_struct(entry: object, column: str, docids: tuple[str, ...]) -> Row:
    if not isinstance(entry, Mapping):
        raise SchemaError(f"column {column!r} holds {_found(entry)} in its list; {{docid, title, text}} was expected.")
    given = (_identifier(entry.get(name), f"{column}.{name}") for name in docids)
    passage = _passage(entry.get("text"), column, entry.get("title"), next(filter(None, given), None))
    if docids != ("docid",):
        return {**passage, **{name: entry[name] for name in entry if name not in (*passage, *docids)}}
    return {**entry, **passage}  # the order of the fields of a canonical passage stays as it is


def _passage(text: object, column: str, title: object = None, docid: str | None = None, **fields: float | None) -> Row:
    if not isinstance(text, str):
        raise SchemaError(f"column {column!r} holds {_found(text)} where the text of one passage was expected.")
    if not isinstance(title, str | None):
        raise SchemaError(f"column {column!r} holds {_found(title)} as a title; a string or null was expected.")
    return {"docid": docid or stable_docid(title or "", text), "title": title or "", "text": text, **fields}


def _rows_of_columns(columns: Mapping[str, Any], column: str) -> list[Row]:
    # `Sequence({...})` of older versions of datasets stores a list of structs as a struct of lists.
    lists = {name: _list_in(columns, name, f"one value per passage of {column!r}") for name in columns}
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise SchemaError(f"column {column!r} holds lists of unequal lengths: {lengths}.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _list_in(row: Mapping[str, Any], column: str, of: str) -> list[Any]:
    value = row[column]
    if value is None:
        return []
    if hasattr(value, "tolist"):  # rows of a dataset formatted as numpy or torch
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise SchemaError(
            f"column {column!r} holds {_found(value)}; a list of {of} was expected. A single value becomes a list "
            f"with ds.map(lambda row: {{{column!r}: [row[{column!r}]]}})."
        )
    return list(value)


def _numbers(row: Mapping[str, Any], column: str, count: int, beside: str) -> list[float | None]:
    numbers = _list_in(row, column, "numbers")
    if len(numbers) != count:
        raise SchemaError(
            f"column {column!r} has {len(numbers)} values and {beside!r} has {count}; one each is needed."
        )
    return [None if number is None else _number(number, column) for number in numbers]


def _number(value: object, column: str) -> float:
    if not isinstance(value, Real):
        raise SchemaError(f"column {column!r} holds {_found(value)} where a number was expected.")
    return float(value)


def _query_text(value: object, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SchemaError(f"column {column!r} holds {_found(value)} where the text of a query was expected.")
    return value


def _identifier(value: object, column: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of a column of integers with gaps
        return str(int(value))
    if isinstance(value, (str, Integral)) and not isinstance(value, bool):
        return str(value)
    raise SchemaError(f"column {column!r} holds {_found(value)} as an id; a string or an integer was expected.")


def _found(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__} ({shorten(repr(value), 60)})"


# --- datasets ---------------------------------------------------------------------------------------------------


def adapt_dataset(
    ds: Source | None = None,
    *,
    queries: Source | None = None,
    corpus: Source | None = None,
    qrels: Source | None = None,
    run: Source | None = None,
    negatives: Source | None = None,
    max_negatives: int | None = None,
) -> Dataset | DatasetDict:
    """A dataset of any known form as canonical rows with typed features.

    Either ``ds``, whose form is recognised from its columns, or the BEIR parts. Triplets and n-tuples of the same
    anchor (and query id and subset, where there are such columns) become one row at the place of the first;
    every other form stays row by row. From BEIR parts comes one row per query of the qrels, in the order of
    ``queries``: a document with a score above 0 is a positive; the negatives are the retrieved documents that are
    not, best first, without those that repeat title and text of a positive.

    Args:
        ds: a ``Dataset``, a ``DatasetDict`` (each split on its own) or dicts, one per row.
        queries: rows of ``_id`` and ``text``, or ``{query id: text}``.
        corpus: rows of ``_id`` or ``docid``, ``text`` and optionally ``title``, or ``{docid: row}``; further
            columns are not taken over. Only the passages that are needed are held.
        qrels: rows of ``query-id``, ``corpus-id`` and ``score``, or ``{query id: {docid: score}}``.
        run: retrieved documents, rows of ``query-id``, ``corpus-id`` and ``rank`` or ``score``, or with a list of
            docids, best first unless scores stand beside them, or ``{query id: {docid: score}}``.
        negatives: in place of ``run``: ids of negatives only, in the forms of ``run`` or ``{query id: [docid]}``.
        max_negatives: keep at most so many retrieved negatives per query.

    Returns:
        A ``Dataset``, or a ``DatasetDict`` where ``ds`` holds splits.

    Raises:
        SchemaError: the columns fit no form, a row breaks its form (:func:`adapt_row`), an id is not in the
            corpus or the queries, a query has no positive, or the grouped rows of an anchor contradict each other.
        ConfigurationError: arguments that do not belong together, or one that is missing.
    """
    parts = {"queries": queries, "corpus": corpus, "qrels": qrels, "run": run, "negatives": negatives}
    if ds is None:
        return _assembled(parts, max_negatives)
    given = [name for name, part in parts.items() if part is not None and name != "corpus"]
    if given or max_negatives is not None:
        raise ConfigurationError(
            f"{', '.join(given) or 'max_negatives'} cannot be used with a dataset as first argument: give either the "
            "dataset (and its corpus=), or queries=, corpus=, qrels= and run= or negatives=."
        )
    if not isinstance(ds, Mapping):
        return _adapted(ds, corpus)
    from datasets import DatasetDict

    if isinstance(corpus, Iterator):
        corpus = list(corpus)  # every split reads it
    return DatasetDict({split: _adapted(rows, corpus) for split, rows in ds.items()})


def _adapted(ds: Dataset | Iterable[object], corpus: Source | None) -> Dataset:
    from datasets import Dataset

    rows = ds if isinstance(ds, Dataset) else _with_the_same_columns(ds)
    reading = _reading(tuple(rows.column_names if isinstance(rows, Dataset) else rows[0]))
    if reading.by_id:
        adapted: Iterable[Row] = _with_passages(rows, reading, corpus)
    elif corpus is not None:
        raise ConfigurationError("corpus= is for rows that hold document ids; this dataset holds its passages itself.")
    elif reading.grouped:
        adapted = _grouped(rows, reading)
    elif isinstance(rows, Dataset) and len(rows):
        return _mapped(rows, reading)
    else:
        adapted = map(adapt_row, _stored(rows))
    if isinstance(rows, Dataset):
        return _dataset(adapted, _features_of(rows, reading), rows.split)
    adapted = list(adapted)
    return _dataset(adapted, _features_found_in(adapted))


def _with_the_same_columns(given: Iterable[object]) -> list[Row]:
    rows: list[Mapping[str, Any]] = []
    for row in given:
        if not isinstance(row, Mapping):
            raise SchemaError(f"Found {_found(row)} among the rows; a dataset, or one dict per row, was expected.")
        rows.append(row)
    if not rows:
        raise SchemaError("There are no rows, so there are no columns to recognise a form by.")
    columns = dict.fromkeys(chain.from_iterable(rows))
    return [{name: row.get(name) for name in columns} for row in rows]


def _stored(rows: Rows) -> Iterator[Row]:
    if isinstance(rows, list):
        yield from rows
        return
    for table in rows.with_format("arrow").iter(ROWS_PER_BATCH):
        yield from table.to_pylist()


def _mapped(ds: Dataset, reading: _Reading) -> Dataset:
    # Through `map`, because it writes to disk; in Arrow, because the columns that pass through stay as they are.
    features = _features_of(ds, reading)
    read = [name for name in ds.column_names if name in (*CANONICAL, SUBSET, *reading.consumed)]
    arguments = {"read": read, "schema": features.arrow_schema, "revision": ADAPT_REVISION}
    mapped = ds.with_format("arrow").map(
        _adapted_table, batched=True, features=features, fn_kwargs=arguments, desc="Adapting"
    )
    return mapped.with_format(None)


def _adapted_table(table: pa.Table, *, read: list[str], schema: pa.Schema, revision: int) -> pa.Table:
    rows = [adapt_row(row) for row in table.select(read).to_pylist()]
    columns = [
        pa.array([row[field.name] for row in rows], field.type) if field.name in CANONICAL else table[field.name]
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _dataset(rows: Iterable[Row], features: Features, split: NamedSplit | None = None) -> Dataset:
    from datasets import Dataset

    schema, rows = features.arrow_schema, iter(rows)
    tables = [schema.empty_table()]
    while batch := list(islice(rows, ROWS_PER_BATCH)):
        tables.append(pa.Table.from_pylist(batch, schema=schema))
    return Dataset(pa.concat_tables(tables), split=split)


# --- features ---------------------------------------------------------------------------------------------------


def _features_of(ds: Dataset, reading: _Reading) -> Features:
    from datasets import Features

    fields = _fields_of([ds.features.arrow_schema.field(name).type for name in reading.structs], reading)
    passed = {name: ds.features[name] for name in ds.features if name not in (*CANONICAL, *reading.consumed)}
    return Features({**_canonical_features(fields), **passed})


def _fields_of(types: list[pa.DataType], reading: _Reading) -> dict[str, pa.DataType]:
    fields = _passage_fields(types, canonical=reading.structs == (POSITIVES, NEGATIVES))
    if reading.scored:
        fields["score"] = pa.float64()
    return fields


def _features_found_in(rows: list[Row]) -> Features:
    from datasets import Features

    types = {name: _type_of([row[name] for row in rows], name) for name in rows[0]}
    fields = _passage_fields([types[POSITIVES], types[NEGATIVES]], canonical=True)
    passed = pa.schema([(name, type_) for name, type_ in types.items() if name not in CANONICAL])
    return Features({**_canonical_features(fields), **Features.from_arrow_schema(passed)})


def _type_of(values: list[Any], column: str) -> pa.DataType:
    try:
        return pa.array(values).type
    except pa.ArrowException as error:
        raise SchemaError(
            f"Column {column!r} holds values of different types ({error}). Give them one type, or leave the column out."
        ) from error


def _canonical_features(fields: Mapping[str, pa.DataType]) -> Features:
    from datasets import Features

    passages = pa.list_(pa.struct(list(fields.items())))
    types = {QUERY_ID: pa.string(), QUERY: pa.string(), POSITIVES: passages, NEGATIVES: passages}
    return Features.from_arrow_schema(pa.schema(list(types.items())))


def _passage_fields(types: list[pa.DataType], *, canonical: bool) -> dict[str, pa.DataType]:
    """The fields of the passages of both lists, so that a passage can move from one to the other.

    Canonical columns keep the order of their fields; those of another form begin with docid, title and text.
    """
    expected = {field.name: field.type for field in PASSAGE_TYPE}
    sides = [pa.schema(_struct_fields(type_)) for type_ in types]
    replaced = {*expected, *(() if canonical else DPR_DOCIDS)}
    further = [pa.schema([field for field in side if field.name not in replaced]) for side in sides]
    try:
        # The empty schema stands for the forms whose passages are bare texts.
        unified = pa.unify_schemas([pa.schema([]), *further], promote_options="permissive")
    except pa.ArrowException as error:
        raise SchemaError(
            f"The positive and the negative passages have fields of one name and different types ({error}). "
            "Cast one of them first, with ds.cast_column(...)."
        ) from error
    fields = {**expected, **{field.name: field.type for field in unified}}
    order = chain.from_iterable(side.names for side in sides) if canonical else ()
    return {name: fields[name] for name in dict.fromkeys([*order, *fields])}


def _struct_fields(passages: pa.DataType) -> list[pa.Field]:
    if pa.types.is_struct(passages):  # a struct of lists, see _rows_of_columns
        return [field.with_type(field.type.value_type) for field in passages if hasattr(field.type, "value_type")]
    struct = getattr(passages, "value_type", None)
    return list(struct) if struct is not None and pa.types.is_struct(struct) else []


# --- the rows of one anchor -------------------------------------------------------------------------------------


def _grouped(rows: Rows, reading: _Reading) -> Iterator[Row]:
    columns_found = rows[0] if isinstance(rows, list) else rows.column_names
    columns = [name for name in (QUERY_ID, reading.query, SUBSET) if name in columns_found]
    key = partial(_anchor, columns=columns, query=reading.query)
    places: dict[tuple[Any, ...], list[int]] = {}
    # Two passes, first over the keys alone: the passages of all anchors need not be held at once.
    for place, row in enumerate(_stored(rows if isinstance(rows, list) else rows.select_columns(columns))):
        places.setdefault(key(row), []).append(place)
    order = list(chain.from_iterable(places.values()))
    gathered = (rows[place] for place in order) if isinstance(rows, list) else _stored(rows.select(order))
    for _, group in groupby(gathered, key):
        yield _merged([adapt_row(row) for row in group])


def _anchor(row: Row, *, columns: list[str], query: str) -> tuple[Any, ...]:
    with _naming_the_row(row, query):
        _query_text(row[query], query)
    return tuple(row[name] for name in columns)


def _merged(rows: list[Row]) -> Row:
    """The rows of one anchor as one row: positives united, negatives united, each passage once."""
    first = rows[0]
    positives, negatives = (
        _distinct(chain.from_iterable(row[side] for row in rows)) for side in (POSITIVES, NEGATIVES)
    )
    with _naming_the_row(first, QUERY):
        try:
            _refuse_both_sides(positives, negatives)
        except SchemaError as error:
            raise SchemaError(f"after grouping its {len(rows)} rows, {error}") from None
        for name in first:
            if name not in CANONICAL and any(row[name] != first[name] for row in rows):
                raise SchemaError(
                    f"column {name!r} differs between the {len(rows)} rows of this query, so the one row that they "
                    f"become cannot keep it. Leave it out first, with ds.remove_columns({name!r})."
                )
    return {**first, POSITIVES: positives, NEGATIVES: negatives}


# --- passages from a corpus -------------------------------------------------------------------------------------


def _with_passages(rows: Rows, reading: _Reading, corpus: Source | None) -> Iterator[Row]:
    if corpus is None:
        raise SchemaError(
            f"The columns {POSITIVE_IDS!r} and {NEGATIVE_IDS!r} hold ids, and the texts stand in a corpus. "
            "Call arhn.adapt_dataset(ds, corpus=...)."
        )
    needed: dict[str, None] = {}
    for row in _stored(rows):
        with _naming_the_row(row, reading.query):
            needed.update(dict.fromkeys([*_docids(row, POSITIVE_IDS), *_docids(row, NEGATIVE_IDS)]))
    passages = _passages_in(corpus, needed)
    for row in _stored(rows):
        passed = {name: row[name] for name in row if name not in reading.consumed}
        sides = ([passages[docid] for docid in _docids(row, name)] for name in (POSITIVE_IDS, NEGATIVE_IDS))
        positives, negatives = sides
        yield adapt_row({**passed, QUERY: row[reading.query], POSITIVES: positives, NEGATIVES: negatives})


def _docids(row: Mapping[str, Any], column: str) -> list[str]:
    docids = [_identifier(value, column) for value in _list_in(row, column, "docids")]
    if None in docids:
        raise SchemaError(f"column {column!r} holds a null or empty docid.")
    return [docid for docid in docids if docid]


def _passages_in(corpus: Source, needed: Mapping[str, None]) -> dict[str, Row]:
    passages: dict[str, Row] = {}
    for row in _records(corpus, "corpus"):
        docid = _identifier(_value(row, DOCID_NAMES, "corpus"), "docid")
        if docid is None or docid not in needed:
            continue
        passage = _passage(_value(row, ("text",), "corpus"), "text", row.get("title"), docid)
        if passages.setdefault(docid, passage) != passage:
            raise SchemaError(f"The corpus has two different passages with the docid {docid!r}.")
    _refuse_missing([docid for docid in needed if docid not in passages], len(needed), "documents", "corpus")
    return passages


def _refuse_missing(missing: list[str], total: int, what: str, where: str) -> None:
    if missing:
        first = ", ".join(map(repr, missing[:NAMED_AT_MOST])) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        raise SchemaError(
            f"{len(missing)} of {total} {what} are not in the {where}: {first}. Give the {where} that the ids belong "
            "to; ids are compared as strings."
        )


# --- queries, corpus, qrels and run -----------------------------------------------------------------------------


def _assembled(parts: Mapping[str, Source | None], max_negatives: int | None) -> Dataset:
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
    passages = _passages_in(corpus, needed)

    def rows() -> Iterator[Row]:
        for query_id, text in texts.items():
            labelled = [passages[docid] for docid in positives[query_id]]
            others = [passages[docid] for docid in wanted[query_id]]
            if run is not None:
                # A run ranks the positives too, and copies of them under other docids; those are not negatives.
                known = {_content(passage) for passage in labelled}
                others = [passage for passage in others if _content(passage) not in known]
            row = {QUERY_ID: query_id, QUERY: text, POSITIVES: labelled, NEGATIVES: others[:max_negatives]}
            yield adapt_row(row)

    return _dataset(rows(), _canonical_features({field.name: field.type for field in PASSAGE_TYPE}))


def _positives(qrels: Source) -> dict[str, list[str]]:
    positives: dict[str, list[str]] = {}
    for query_id, row in _by_query(qrels, "qrels"):
        docids, grades = _documents(row, "qrels"), _column(row, GRADE_NAMES, "qrels")
        _refuse_unequal(docids, grades, query_id, "qrels")
        relevant = [docid for docid, grade in zip(docids, grades, strict=True) if _grade(grade, "qrels") > 0]
        positives.setdefault(query_id, []).extend(relevant)
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
    found: dict[str, list[tuple[float, str]]] = {}
    for query_id, row in _by_query(run, name):
        docids, keys = _documents(row, name), _sort_keys(row, name)
        _refuse_unequal(docids, keys, query_id, name)
        found.setdefault(query_id, []).extend(zip(keys, docids, strict=True))
    # `sorted` is stable, so documents without rank or score, and ties, stay in the order in which they came.
    ordered = {query_id: sorted(pairs, key=lambda pair: pair[0]) for query_id, pairs in found.items()}
    return {query_id: list(dict.fromkeys(docid for _, docid in pairs)) for query_id, pairs in ordered.items()}


def _sort_keys(row: Mapping[str, Any], name: str) -> list[float]:
    if row.get("rank") is not None:
        return [_grade(rank, name) for rank in _column(row, ("rank",), name)]
    if row.get("score") is not None:
        return [-_grade(score, name) for score in _column(row, ("score",), name)]
    return [0.0] * len(_documents(row, name))


def _texts_of(queries: Source, positives: Mapping[str, list[str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in _records(queries, "queries"):
        query_id = _identifier(_value(row, QUERY_KEY_NAMES, "queries"), QUERY_ID)
        if query_id is None or query_id not in positives:
            continue
        text = _query_text(_value(row, QUERY_TEXT_NAMES, "queries"), "text")
        if texts.setdefault(query_id, text) != text:
            raise SchemaError(f"The queries have two different texts with the id {query_id!r}.")
    _refuse_missing([key for key in positives if key not in texts], len(positives), "query ids", "queries")
    return texts


def _by_query(source: Source, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in _records(source, name):
        query_id = _identifier(_value(row, QUERY_ID_NAMES, name), QUERY_ID)
        if query_id is None:
            raise SchemaError(f"A row of the {name} has no query id: {shorten(repr(dict(row)), 100)}.")
        yield query_id, row


def _documents(row: Mapping[str, Any], name: str) -> list[str]:
    return _docids({"docid": _column(row, RUN_DOCID_NAMES, name)}, "docid")


def _column(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[Any]:
    """The values of the first of the columns that is there: one row a document, or lists of them."""
    value = _value(row, names, name)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _refuse_unequal(docids: list[str], values: list[Any], query_id: str, name: str) -> None:
    if len(docids) != len(values):
        raise SchemaError(
            f"In the {name}, query {query_id!r} has {len(docids)} docids and {len(values)} scores or ranks."
        )


def _grade(value: object, name: str) -> float:
    try:
        return float(str(value))  # files of qrels and runs come as text
    except (TypeError, ValueError):
        raise SchemaError(f"A score or rank of the {name} is {_found(value)}; a number was expected.") from None


def _value(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> object:
    column = _first_of(names, row)
    if column is None:
        raise SchemaError(f"The columns of the {name} are {sorted(row)}; one of {', '.join(names)} was expected.")
    return row[column]


def _records(source: Source, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a part, also where it is a mapping from ids or a ``DatasetDict`` of one split."""
    from datasets import Dataset, DatasetDict

    if isinstance(source, DatasetDict):
        if len(source) != 1:
            raise SchemaError(f"The splits of the {name} are {sorted(source)}; give one of them.")
        source = next(iter(source.values()))
    if isinstance(source, Dataset):
        yield from _stored(source)
    elif isinstance(source, Mapping):
        yield from (_keyed(key, value, name) for key, value in source.items())
    else:
        yield from source


def _keyed(key: object, value: object, name: str) -> Row:
    if name in ("queries", "corpus"):
        key_name = QUERY_ID if name == "queries" else "docid"
        return {**(value if isinstance(value, Mapping) else {"text": value}), key_name: key}
    if isinstance(value, Mapping):
        return {QUERY_ID: key, "docid": list(value), "score": list(value.values())}
    return {QUERY_ID: key, "docid": _list_in({name: value}, name, f"docids for query {key!r}")}


# --- the map callable -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapt(Transform):
    """:func:`adapt_row` for ``Dataset.map``: one row stays one row, and the columns of the other form go.

    Raises:
        SchemaError: as :func:`adapt_row`.
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
        adapted = (adapt_row(row) for row in rows)
        return [{name: row[name] for name in CANONICAL} for row in adapted]

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Strings, and lists of passages with whatever fields the input's passages have."""
        passages = None
        if schema is not None:
            reading = _reading(tuple(schema.names))
            types = [schema.field(name).type for name in reading.structs]
            passages = pa.list_(pa.struct(list(_fields_of(types, reading).items())))
        return {QUERY_ID: pa.string(), QUERY: pa.string(), POSITIVES: passages, NEGATIVES: passages}

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The columns of the other form."""
        return consumed_columns(columns)

    def _inputs(self, columns: Iterable[str]) -> list[str]:
        found = list(columns)
        read = {*CANONICAL, SUBSET, *_reading(tuple(found)).consumed}
        return [name for name in found if name in read]

    def _is_batch(self, rows: Mapping[str, Any]) -> bool:
        return is_batch(rows, _reading(tuple(rows)).query)


adapt = Adapt()
