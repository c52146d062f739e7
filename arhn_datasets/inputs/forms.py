"""The known training forms: recognised from their columns, and read into flat passages.

Nothing is guessed: columns that fit no form, or two, are refused. A form is one function: from the names of columns to
how they are read, or None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.passages import Side
from arhn_datasets.inputs.values import (
    ID,
    NUMBER,
    OPTIONAL_TEXT,
    TEXT,
    TITLE,
    BrokenRow,
    Values,
    absent,
    array_of,
    each,
    found_as,
    lengths,
    list_in,
    read,
    read_lists,
)
from arhn_datasets.rows.arrow import Integers, aligned, flat_lists, is_list, is_null, rows_of, taken
from arhn_datasets.rows.records import NEGATIVE, PASSAGE_TYPE, POSITIVE, QUERY, QUERY_ID, SUBSET

Columns: TypeAlias = "Mapping[str, Values]"

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

CANONICAL = (QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages)
ANCHORS = ("anchor", QUERY, "question")
NEGATIVE_COLUMN = re.compile(r"negative(?:_(\d+))?")
POSITIVE_IDS, NEGATIVE_IDS = "positive_document_ids", "negative_document_ids"
NO_CORPUS = (
    f"The columns {POSITIVE_IDS!r} and {NEGATIVE_IDS!r} hold ids, and the texts stand in a corpus. "
    "Call arhn.adapt_dataset(ds, corpus=...)."
)
FIELDS = tuple(field.name for field in PASSAGE_TYPE)
DPR_DOCIDS = ("docid", "passage_id", "psg_id")

QUERY_ID_NAMES = (QUERY_ID, "query-id", "qid")
RUN_DOCID_NAMES = ("docid", "corpus-id", "corpus_id", "doc_id", "corpus-ids", "docids")
GRADE_NAMES = ("score", "relevance")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of one set of columns are read.

    ``sides`` gives the positives and the negatives; ``structs`` are the columns whose passages may bring further
    fields, ``scored`` says that scores become one; ``grouped`` that several rows may belong to one query, ``by_id``
    that the passages stand in a corpus.
    """

    query: str
    consumed: tuple[str, ...]
    sides: Callable[[Columns], tuple[Side, Side]]
    structs: tuple[str, ...] = ()
    scored: bool = False
    grouped: bool = False
    by_id: bool = False

    def inputs(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that are read."""
        return [name for name in columns if name in (*CANONICAL, SUBSET, *self.consumed)]

    def passed(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that pass through."""
        return [name for name in columns if name not in (*CANONICAL, *self.consumed)]

    def passages(self, schema: pa.Schema) -> pa.DataType:
        """The type of the lists of both sides, so that a passage can move from one to the other.

        Canonical columns keep the order of their fields; those of another form begin with docid, title and text.
        """
        canonical = not self.consumed
        sides = [pa.schema(_struct_fields(schema.field(name).type)) for name in self.structs]
        replaced = FIELDS if canonical else (*FIELDS, *DPR_DOCIDS)
        further = [pa.schema([field for field in side if field.name not in replaced]) for side in sides]
        try:
            # The empty schema stands for the forms whose passages are bare texts.
            unified = pa.unify_schemas([pa.schema([]), *further], promote_options="permissive")
        except pa.ArrowException as error:
            raise SchemaError(
                f"The positive and the negative passages have fields of one name and different types ({error}). "
                "Cast one of them first, with ds.cast_column(...)."
            ) from error
        types = {field.name: field.type for field in (*PASSAGE_TYPE, *unified)}
        if self.scored:
            types["score"] = pa.float64()
        order = chain.from_iterable(side.names for side in sides) if canonical else ()
        return pa.list_(pa.struct([(name, types[name]) for name in dict.fromkeys([*order, *types])]))


def _struct_fields(passages: pa.DataType) -> list[pa.Field]:
    if pa.types.is_struct(passages):  # a struct of lists, see _entries_in
        return [field.with_type(field.type.value_type) for field in passages if hasattr(field.type, "value_type")]
    struct = getattr(passages, "value_type", None)
    return list(struct) if struct is not None and pa.types.is_struct(struct) else []


@lru_cache(maxsize=128)
def reading_of(columns: tuple[str, ...]) -> Reading:
    """How rows of these columns are read.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    if {QUERY, POSITIVE.passages, NEGATIVE.passages} <= set(columns):
        return _struct_reading(QUERY, (POSITIVE.passages, NEGATIVE.passages), ("docid",))
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


def first_of(names: Iterable[str], columns: Collection[str]) -> str | None:
    """The first of the names that is one of the columns."""
    return next((name for name in names if name in columns), None)


def _unknown(columns: Collection[str]) -> SchemaError:
    if all(first_of(names, columns) for names in (QUERY_ID_NAMES, RUN_DOCID_NAMES, GRADE_NAMES)):
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


def _beyond_canonical(*columns: str) -> tuple[str, ...]:
    return tuple(name for name in columns if name not in CANONICAL)


# --- forms ------------------------------------------------------------------------------------------------------


def _struct_reading(query: str, names: tuple[str, str], docids: tuple[str, ...]) -> Reading:
    return Reading(
        query=query,
        consumed=_beyond_canonical(query, *names),
        sides=lambda columns: (_structs(columns, names[0], docids), _structs(columns, names[1], docids)),
        structs=names,
    )


def _dpr(columns: Collection[str]) -> Reading | None:
    names = ("positive_ctxs", "hard_negative_ctxs")
    return _struct_reading("question", names, DPR_DOCIDS) if {"question", *names} <= set(columns) else None


def _flag_embedding(columns: Collection[str]) -> Reading | None:
    if not {QUERY, "pos", "neg"} <= set(columns):
        return None
    scores = tuple(name for name in ("pos_scores", "neg_scores") if name in columns)

    def side(columns: Columns, name: str) -> Side:
        counts, texts = read_lists(columns[name], TEXT, name)
        fields = {"text": texts}
        if scores:
            fields["score"] = _scores(columns, f"{name}_scores", counts, name)
        return Side(counts=counts, fields=fields)

    return Reading(
        query=QUERY,
        consumed=("pos", "neg", *scores),
        sides=lambda columns: (side(columns, "pos"), side(columns, "neg")),
        scored=bool(scores),
    )


def _scores(columns: Columns, name: str, counts: Integers, beside: str) -> pa.Array:
    """The scores of passages; null in the rows that have none, and everywhere without the column."""
    if name not in columns:
        return pa.nulls(int(counts.sum()), NUMBER.type)
    found, numbers = read_lists(columns[name], NUMBER, name)
    _refuse_unequal(found, name, np.where(absent(columns[name]), 0, counts), beside)
    return aligned(numbers, found, counts)


def _tuples(columns: Collection[str]) -> Reading | None:
    query, positive = first_of(ANCHORS, columns), first_of(("positive", "answer"), columns)
    negatives = sorted((name for name in columns if NEGATIVE_COLUMN.fullmatch(name)), key=_position)
    if query is None or positive is None or not negatives:
        return None
    return Reading(
        query=query,
        consumed=_beyond_canonical(query, positive, *negatives),
        sides=lambda columns: (_optional(columns, [positive]), _optional(columns, negatives)),
        grouped=True,
    )


def _position(column: str) -> int:
    # By number, not by name: negative_10 comes after negative_9, and a plain `negative` before all.
    _, _, number = column.partition("_")
    return int(number) if number else -1


def _optional(columns: Columns, names: list[str]) -> Side:
    # A tuple with fewer negatives than columns has nulls or empty strings in the rest of them.
    texts = pa.concat_arrays([read(columns[name], OPTIONAL_TEXT, name) for name in names])
    there = ~is_null(texts).reshape(len(names), -1)
    # From the columns one after the other to the places in them row by row.
    places = np.arange(len(texts)).reshape(there.shape).T[there.T]
    return Side(counts=there.sum(axis=0, dtype=np.int64), fields={"text": taken(texts, places)})


def _labelled_list(columns: Collection[str]) -> Reading | None:
    query, documents = first_of(ANCHORS, columns), first_of(("docs", "documents"), columns)
    labels = first_of(("labels", "label", "scores", "score"), columns)
    if query is None or documents is None or labels is None:
        return None
    # A label says the side and is stale once a passage changes sides; a score is a model's and stays with it.
    scored = labels in ("scores", "score")

    def sides(columns: Columns) -> tuple[Side, Side]:
        counts, texts = read_lists(columns[documents], TEXT, documents)
        found, numbers = read_lists(columns[labels], NUMBER, labels)
        _refuse_unequal(found, labels, counts, documents)
        if numbers.null_count:
            raise BrokenRow(
                int(rows_of(counts)[is_null(numbers).argmax()]),
                f"column {labels!r} holds a null; every passage needs a number, above 0 if positive.",
            )
        side = Side(counts=counts, fields={"text": texts, "score": numbers} if scored else {"text": texts})
        negative = numbers.to_numpy(zero_copy_only=False) <= 0
        return side.kept(~negative), side.kept(negative)

    consumed = _beyond_canonical(query, documents, labels)
    return Reading(query=query, consumed=consumed, sides=sides, scored=scored)


def _document_ids(columns: Collection[str]) -> Reading | None:
    query = first_of(("query_text", QUERY), columns)
    if query is None or not {POSITIVE_IDS, NEGATIVE_IDS} <= set(columns):
        return None

    def refused(columns: Columns) -> tuple[Side, Side]:
        raise BrokenRow(0, NO_CORPUS) if len(columns[query]) else SchemaError(NO_CORPUS)

    consumed = _beyond_canonical(query, POSITIVE_IDS, NEGATIVE_IDS)
    return Reading(query=query, consumed=consumed, sides=refused, by_id=True)


def _refuse_unequal(found: Integers, column: str, expected: Integers, beside: str) -> None:
    unequal = np.flatnonzero(found != expected)
    if len(unequal):
        row = int(unequal[0])
        raise BrokenRow(
            row,
            f"column {column!r} has {found[row]} values and {beside!r} has {expected[row]}; one each is needed.",
        )


# --- passages as structs ----------------------------------------------------------------------------------------


def _structs(columns: Columns, column: str, docids: tuple[str, ...]) -> Side:
    """The passages of a column of lists of structs, or of structs of lists."""
    values = columns[column]
    if isinstance(values, pa.ChunkedArray) and (side := _side_of_structs(values, docids)) is not None:
        return side
    lists = each(values, lambda value: [_entry(entry, column, docids) for entry in _entries_in(value, column)])
    entries = list(chain.from_iterable(lists))
    fields = {name: array_of([found[place] for found, _ in entries]) for place, name in enumerate(FIELDS)}
    return Side(counts=lengths(lists), fields=fields, entries=[entry for _, entry in entries])


def _side_of_structs(values: pa.ChunkedArray, docids: tuple[str, ...]) -> Side | None:
    """The same from Arrow; None where a value has to be looked at by itself."""
    flat = _flat_structs(values)
    if flat is None:
        return None
    counts, fields = flat
    nothing = pa.nulls(int(counts.sum()))
    kinds = {"title": TITLE, "text": TEXT, **dict.fromkeys(docids, ID)}
    known: dict[str, Any] = {name: kind.array(fields.get(name, nothing)) for name, kind in kinds.items()}
    if any(array is None for array in known.values()):
        return None
    docid = pc.coalesce(*(known[name] for name in docids)) if len(docids) > 1 else known["docid"]
    further = {name: array for name, array in fields.items() if name not in (*FIELDS, *docids)}
    made = docid.null_count or fields.get("title", nothing).null_count
    return Side(
        counts=counts,
        fields={"docid": docid, "title": known["title"], "text": known["text"], **further},
        given=None if made or values.null_count or pa.types.is_struct(values.type) else values,
    )


def _flat_structs(values: pa.ChunkedArray) -> tuple[Integers, dict[str, pa.Array]] | None:
    if pa.types.is_null(values.type) or (is_list(values.type) and pa.types.is_struct(values.type.value_type)):
        counts, structs = flat_lists(pa.table({"": values}), "")
        if structs.null_count:
            return None
        return counts, {} if pa.types.is_null(structs.type) else fields_in(structs)
    if not pa.types.is_struct(values.type) or not values.type.num_fields:
        return None
    # `Sequence({...})` of older versions of datasets stores a list of structs as a struct of lists.
    lists = pa.table(fields_in(values))
    if not all(map(is_list, lists.schema.types)):
        return None
    flat = {name: flat_lists(lists, name) for name in lists.column_names}
    counts = next(iter(flat.values()))[0]
    if any((other != counts).any() for other, _ in flat.values()):
        return None
    return counts, {name: array for name, (_, array) in flat.items()}


def fields_in(structs: Any) -> dict[str, Any]:
    """The fields of structs as they are in memory."""
    return {field.name: pc.struct_field(structs, place) for place, field in enumerate(structs.type)}


def _entries_in(value: Any, column: str) -> list[Any]:
    if not isinstance(value, Mapping):
        return list_in(value, column, "passages")
    lists = {name: list_in(values, name, f"one value per passage of {column!r}") for name, values in value.items()}
    counts = {name: len(values) for name, values in lists.items()}
    if len(set(counts.values())) > 1:
        raise SchemaError(f"column {column!r} holds lists of unequal lengths: {counts}.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _entry(entry: Any, column: str, docids: tuple[str, ...]) -> tuple[tuple[str | None, str, str], Mapping[str, Any]]:
    """Docid, title and text of a passage, and all fields in the order that they shall have."""
    if not isinstance(entry, Mapping):
        raise SchemaError(
            f"column {column!r} holds {found_as(entry)} in its list; {{docid, title, text}} was expected."
        )
    docid = next((found for name in docids if (found := ID.value(entry.get(name), f"{column}.{name}"))), None)
    text, title = TEXT.value(entry.get("text"), column), TITLE.value(entry.get("title"), column)
    if docids == DPR_DOCIDS:
        entry = {**dict.fromkeys(FIELDS), **{name: entry[name] for name in entry if name not in DPR_DOCIDS}}
    return (docid, title, text), entry
