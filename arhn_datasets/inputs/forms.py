"""The known training forms: recognised from the names of columns, and read into flat passages.

Nothing is guessed: columns that fit no form, or two, are refused. A form is one function, marked with what it is called
and with its columns in the words of messages and of the README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.passages import BrokenRow, FlatPassages, Values, read, read_lists
from arhn_datasets.rows.arrow import Integers, aligned, is_null, rows_of, taken
from arhn_datasets.rows.records import NEGATIVE, PASSAGE_TYPE, POSITIVE, QUERY, QUERY_ID, SUBSET

Columns: TypeAlias = "Mapping[str, Values]"
TwoSides: TypeAlias = tuple[FlatPassages, FlatPassages]  # the positives and the negatives

CANONICAL = (QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages)
ANCHORS = ("anchor", QUERY, "question")

QUERY_ID_NAMES = (QUERY_ID, "query-id", "qid")
RUN_DOCID_NAMES = ("docid", "corpus-id", "corpus_id", "doc_id", "corpus-ids", "docids")
GRADE_NAMES = ("score", "relevance")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of one set of columns are read.

    ``sides`` reads ``columns``; it is None where these are ``ids`` and the passages stand in a corpus. ``structs`` are
    the columns whose passages may bring further fields, ``docids`` the fields that are their docids; ``scored`` says
    that scores become a field, ``grouped`` that several rows may belong to one query.
    """

    query: str
    columns: tuple[str, ...]
    sides: Callable[[Columns], TwoSides] | None = None
    ids: tuple[str, ...] = ()
    structs: tuple[str, ...] = ()
    docids: tuple[str, ...] = ()
    scored: bool = False
    grouped: bool = False

    @property
    def consumed(self) -> tuple[str, ...]:
        """The columns that become the canonical ones; none where they are canonical already."""
        return tuple(name for name in (self.query, *self.columns) if name not in CANONICAL)

    @property
    def no_corpus(self) -> str:
        """What to do where there are ids and no corpus."""
        return (
            f"The columns {' and '.join(map(repr, self.ids))} hold ids, and the texts stand in a corpus. "
            "Call arhn.adapt_dataset(ds, corpus=...)."
        )

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
        sides = [pa.schema(_struct_fields(schema.field(name).type)) for name in self.structs]
        replaced = (*flat.FIELDS, *self.docids)
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
        order = () if self.consumed else chain.from_iterable(side.names for side in sides)
        return pa.list_(pa.struct([(name, types[name]) for name in dict.fromkeys([*order, *types])]))


def _struct_fields(passages: pa.DataType) -> list[pa.Field]:
    if pa.types.is_struct(passages):  # a struct of lists
        return [field.with_type(field.type.value_type) for field in passages if hasattr(field.type, "value_type")]
    struct = getattr(passages, "value_type", None)
    return list(struct) if struct is not None and pa.types.is_struct(struct) else []


Recognise: TypeAlias = Callable[[Collection[str]], "Reading | str | None"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A training form, with its line in messages and in the README.

    ``recognise`` tells from the names of columns how their rows are read, or what to do as they hold no rows of the
    form but a part of it; None where they are of another form.
    """

    label: str
    columns: str
    recognise: Recognise


FORMS: list[Form] = []


def _form(label: str, columns: str) -> Callable[[Recognise], Recognise]:
    def known(recognise: Recognise) -> Recognise:
        FORMS.append(Form(label=label, columns=columns, recognise=recognise))
        return recognise

    return known


@lru_cache(maxsize=128)
def reading_of(columns: tuple[str, ...]) -> Reading:
    """How rows of these columns are read.

    Raises:
        SchemaError: the columns fit no known form, or more than one.
    """
    recognised = [found for form in FORMS if (found := form.recognise(columns))]
    readings = [found for found in recognised if isinstance(found, Reading)]
    if canonical := [reading for reading in readings if not reading.consumed]:
        return canonical[0]
    lines = "\n".join(f"  {form.label}: {form.columns}" for form in FORMS)
    if len(readings) > 1:
        raise SchemaError(
            f"The columns fit more than one form: {sorted(columns)}. Remove those of the other form first, with "
            f"ds.remove_columns(...). Known forms:\n{lines}"
        )
    if not readings:
        unknown = (
            f"The columns fit no known form: {sorted(columns)}. Rename them to those of one of the known forms, with "
            f"ds.rename_columns({{...}}):\n{lines}"
        )
        raise SchemaError(f"The columns {sorted(columns)} {recognised[0]}" if recognised else unknown)
    [reading] = readings
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


# --- the forms --------------------------------------------------------------------------------------------------


@_form("Tevatron, RLHN", "query, positive_passages, negative_passages [query_id, subset]")
def _canonical(columns: Collection[str]) -> Reading | None:
    return _struct_reading(columns, QUERY, CANONICAL[2:], docids=("docid",))


@_form("DPR", "question, positive_ctxs, hard_negative_ctxs")
def _dpr(columns: Collection[str]) -> Reading | None:
    names = ("positive_ctxs", "hard_negative_ctxs")
    return _struct_reading(columns, "question", names, docids=("docid", "passage_id", "psg_id"))


def _struct_reading(
    columns: Collection[str], query: str, names: tuple[str, ...], docids: tuple[str, ...]
) -> Reading | None:
    def sides(columns: Columns) -> TwoSides:
        positives, negatives = (flat.structs_of(columns[name], name, docids) for name in names)
        return positives, negatives

    there = {query, *names} <= set(columns)
    return Reading(query=query, columns=names, sides=sides, structs=names, docids=docids) if there else None


@_form("FlagEmbedding", "query, pos, neg [pos_scores, neg_scores, prompt, type]")
def _flag_embedding(columns: Collection[str]) -> Reading | None:
    if not {QUERY, "pos", "neg"} <= set(columns):
        return None
    scores = tuple(name for name in ("pos_scores", "neg_scores") if name in columns)

    def side(columns: Columns, name: str) -> FlatPassages:
        counts, texts = read_lists(columns[name], flat.TEXT, name)
        fields = {"text": texts}
        if scores:
            fields["score"] = _scores(columns, f"{name}_scores", counts, name)
        return FlatPassages(counts=counts, fields=fields)

    def sides(columns: Columns) -> TwoSides:
        return side(columns, "pos"), side(columns, "neg")

    return Reading(query=QUERY, columns=("pos", "neg", *scores), sides=sides, scored=bool(scores))


def _scores(columns: Columns, name: str, counts: Integers, beside: str) -> pa.Array:
    """The scores of passages; null in the rows that have none, and everywhere without the column."""
    if name not in columns:
        return pa.nulls(int(counts.sum()), flat.NUMBER.type)
    found, numbers = read_lists(columns[name], flat.NUMBER, name)
    _refuse_unequal(found, name, np.where(flat.absent(columns[name]), 0, counts), beside)
    return aligned(numbers, found, counts)


@_form(
    "sentence-transformers triplet or n-tuple",
    "anchor/query/question, positive/answer, negative and/or negative_0, negative_1, ...; repeated anchors are grouped",
)
def _tuples(columns: Collection[str]) -> Reading | None:
    query, positive = first_of(ANCHORS, columns), first_of(("positive", "answer"), columns)
    # By number, not by name: negative_10 comes after negative_9, and a plain `negative` before all.
    numbers = {name: int(found[1] or -1) for name in columns if (found := re.fullmatch(r"negative(?:_(\d+))?", name))}
    negatives = sorted(numbers, key=numbers.__getitem__)
    if query is None or positive is None or not negatives:
        return None

    def sides(columns: Columns) -> TwoSides:
        return _optional(columns, [positive]), _optional(columns, negatives)

    return Reading(query=query, columns=(positive, *negatives), sides=sides, grouped=True)


def _optional(columns: Columns, names: list[str]) -> FlatPassages:
    # A tuple with fewer negatives than columns has nulls or empty strings in the rest of them.
    texts = pa.concat_arrays([read(columns[name], flat.OPTIONAL_TEXT, name) for name in names])
    there = ~is_null(texts).reshape(len(names), -1)
    # From the columns one after the other to the places in them row by row.
    places = np.arange(len(texts)).reshape(there.shape).T[there.T]
    return FlatPassages(counts=there.sum(axis=0, dtype=np.int64), fields={"text": taken(texts, places)})


@_form("sentence-transformers labelled list", "anchor/query/question, docs/documents, labels/label/scores/score")
def _labelled_list(columns: Collection[str]) -> Reading | None:
    query, documents = first_of(ANCHORS, columns), first_of(("docs", "documents"), columns)
    labels = first_of(("labels", "label", "scores", "score"), columns)
    if query is None or documents is None or labels is None:
        return None
    # A label says the side and is stale once a passage changes sides; a score is a model's and stays with it.
    scored = labels in ("scores", "score")

    def sides(columns: Columns) -> TwoSides:
        counts, texts = read_lists(columns[documents], flat.TEXT, documents)
        found, numbers = read_lists(columns[labels], flat.NUMBER, labels)
        _refuse_unequal(found, labels, counts, documents)
        if numbers.null_count:
            raise BrokenRow(
                int(rows_of(counts)[is_null(numbers).argmax()]),
                f"column {labels!r} holds a null; every passage needs a number, above 0 if positive.",
            )
        passages = FlatPassages(counts=counts, fields={"text": texts, **({"score": numbers} if scored else {})})
        negative = numbers.to_numpy(zero_copy_only=False) <= 0
        return passages.kept(~negative), passages.kept(negative)

    return Reading(query=query, columns=(documents, labels), sides=sides, scored=scored)


def _refuse_unequal(counts: Integers, column: str, expected: Integers, beside: str) -> None:
    if (unequal := np.flatnonzero(counts != expected)).size:
        row = int(unequal[0])
        raise BrokenRow(
            row,
            f"column {column!r} has {counts[row]} values and {beside!r} has {expected[row]}; one each is needed.",
        )


@_form(
    "Tevatron ids",
    "query_text/query, positive_document_ids, negative_document_ids, by arhn.adapt_dataset(ds, corpus=...)",
)
def _document_ids(columns: Collection[str]) -> Reading | None:
    query, ids = first_of(("query_text", QUERY), columns), ("positive_document_ids", "negative_document_ids")
    return Reading(query=query, columns=ids, ids=ids) if query is not None and set(ids) <= set(columns) else None


@_form("BEIR", "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...), or negatives=... for run")
def _beir(columns: Collection[str]) -> str | None:
    if not all(first_of(names, columns) for names in (QUERY_ID_NAMES, RUN_DOCID_NAMES, GRADE_NAMES)):
        return None
    return (
        "are those of qrels or of a run, which hold ids and no texts. Call "
        "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...)."
    )
