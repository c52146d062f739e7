"""The known training forms: recognised from the names of columns, and read into flat passages.

Nothing is guessed: columns that fit no form, or two, are refused. A form is one function, marked with what it is called
and with its columns in the words of messages and of the README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs import chats
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.columns import (
    SCORE,
    Columns,
    Texts,
    TwoSides,
    labels_of,
    passages_of,
    points_at_passages,
    texts_in,
    there,
    united,
    with_scores,
)
from arhn_datasets.inputs.passages import FlatPassages, Values
from arhn_datasets.rows.arrow import is_list, lists_of, one_array
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, NEGATIVE, PASSAGE_TYPE, POSITIVE, QUERY, QUERY_ID, SUBSET

CANONICAL = (QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages)
ANCHORS = ("anchor", QUERY, "question")
MADE = ("prompt",)
"""Further columns that a form may give."""

LABEL_NAMES = ("labels", "label", "scores", "score")

QUERY_ID_NAMES = (QUERY_ID, "query-id", "qid")
RUN_DOCID_NAMES = ("docid", "corpus-id", "corpus_id", "doc_id", "corpus-ids", "docids", "document_ids", "document_id")
GRADE_NAMES = ("score", "relevance", "scores")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of one set of columns are read.

    ``sides`` reads ``columns``; it is None where these are ``ids`` and the passages stand in a corpus. ``structs`` are
    the columns whose passages may bring further fields, ``docids`` the fields that are their docids; ``scored`` says
    that scores become a field, ``grouped`` that several rows may belong to one query, ``partial`` that one of these may
    have no positive. ``queries`` reads the queries where they are no texts, and ``made`` gives further columns.
    ``above`` is the same with the score from which on a passage is positive.
    """

    query: str
    columns: tuple[str, ...]
    sides: Callable[[Columns], TwoSides] | None = None
    ids: tuple[str, ...] = ()
    structs: tuple[str, ...] = ()
    docids: tuple[str, ...] = ()
    scored: bool = False
    grouped: bool = False
    partial: bool = False
    query_id: str = QUERY_ID
    queries: Callable[[Columns], pa.Array] | None = None
    made: Mapping[str, Callable[[Columns], pa.Array]] = field(default_factory=dict)
    above: Callable[[float], Reading] | None = None

    @property
    def consumed(self) -> tuple[str, ...]:
        """The columns that become the canonical ones; none where they are canonical already."""
        return tuple(name for name in (self.query_id, self.query, *self.columns) if name not in CANONICAL)

    @property
    def no_corpus(self) -> str:
        """What to do where there are ids and no corpus."""
        return (
            f"The columns {' and '.join(map(repr, self.ids))} hold ids, and the texts stand in a corpus. "
            "Call arhn.adapt_dataset(ds, corpus=...)."
        )

    def inputs(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that are read, or looked at because of their names."""
        known = (*CANONICAL, SUBSET, *self.consumed, *ALL_EVIDENCE_TYPES)
        return [name for name in columns if name in known or points_at_passages(name)]

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
    if pa.types.is_struct(passages):  # one passage, or a struct of lists
        return [one.with_type(one.type.value_type) if is_list(one.type) else one for one in passages]
    struct = getattr(passages, "value_type", None)
    return list(struct) if struct is not None and pa.types.is_struct(struct) else []


Recognise: TypeAlias = Callable[[Collection[str]], "Reading | str | None"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A training form, with its line in messages and in the README, and the formats in which we write it.

    ``recognise`` tells from the names of columns how their rows are read, or what to do as they hold no rows of the
    form but a part of it; None where they are of another form.
    """

    label: str
    columns: str
    written: str
    recognise: Recognise


FORMS: list[Form] = []


def _form(label: str, columns: str, written: str = "") -> Callable[[Recognise], Recognise]:
    def known(recognise: Recognise) -> Recognise:
        FORMS.append(Form(label=label, columns=columns, written=written, recognise=recognise))
        return recognise

    return known


@lru_cache(maxsize=128)
def reading_of(columns: tuple[str, ...], threshold: float | None = None) -> Reading:
    """How rows of these columns are read; ``threshold`` is the score from which on a passage is positive.

    Raises:
        SchemaError: the columns fit no known form, or more than one, or one has the name of a column that a run adds.
        ConfigurationError: there is a threshold, and the form has no labels.
    """
    reading = _reading_of(columns)
    if threshold is None:
        return reading
    if not np.isfinite(threshold):
        raise ConfigurationError(f"The threshold is {threshold}; a number was expected.")
    if reading.above is None:
        raise ConfigurationError(
            f"A threshold ({threshold:g}) goes with labels or scores beside documents; the columns are "
            f"{sorted(columns)}. Leave it out."
        )
    return reading.above(threshold)


def _reading_of(columns: tuple[str, ...]) -> Reading:
    recognised = [found for form in FORMS if (found := form.recognise(columns))]
    readings = [found for found in recognised if isinstance(found, Reading)]
    if canonical := [reading for reading in readings if not reading.consumed]:
        return canonical[0]
    lines = "\n".join(f"  {form.label}: {form.columns}" for form in FORMS)
    if len(readings) > 1:
        raise SchemaError(
            f"The columns fit more than one form: {sorted(columns)}. Remove those of the other form first, with "
            f"ds.remove_columns(...) or arhn-refine --drop-columns. Known forms:\n{lines}"
        )
    if not readings:
        unknown = (
            f"The columns fit no known form: {sorted(columns)}. Rename them to those of one of the known forms, with "
            f"ds.rename_columns({{...}}) or arhn-refine --rename OLD=NEW:\n{lines}"
        )
        raise SchemaError(f"The columns {sorted(columns)} {recognised[0]}" if recognised else unknown)
    [reading] = readings
    shadowed = [name for name in CANONICAL[1:] if name in columns and name not in (reading.query, *reading.consumed)]
    if shadowed:
        raise SchemaError(
            f"The columns {sorted(reading.consumed)} would become {', '.join(CANONICAL[1:])}, but there is a column "
            f"{shadowed[0]!r} already. Rename or remove one of them, with arhn-refine --rename {shadowed[0]}=NEW or "
            f"--drop-columns {shadowed[0]}; columns found: {sorted(columns)}."
        )
    refuse_reserved([name for name in reading.passed(columns) if name in ALL_EVIDENCE_TYPES])
    return reading


def refuse_reserved(names: list[str]) -> None:
    """Refuse columns of a source with names of those that a run adds."""
    if names:
        renamed = {name: f"source_{name}" for name in names}
        flags = " ".join(f"--rename {old}={new}" for old, new in renamed.items())
        raise SchemaError(
            f"The columns {names} have the names of columns that a run adds: they would be replaced, and the source "
            f"could not be had back. Rename them first: ds.rename_columns({renamed}), or arhn-refine {flags}."
        )


def first_of(names: Iterable[str], columns: Collection[str]) -> str | None:
    """The first of the names that is one of the columns."""
    return next((name for name in names if name in columns), None)


# --- the forms --------------------------------------------------------------------------------------------------

POSITIVES = ("positive", "positives", "answer", "response", "document", "pos")
NEGATIVES = ("negative", "negatives", "rejected_response", "hard_negative", "hard_negatives", "neg")
LISTS = ("docs", "documents", "passages", "texts")
PAIRED = ("passage", "doc", "text", *POSITIVES)
_ALONE = {
    "docid": ("docid", "doc_id", "docids", "doc_ids", "passage_id", "pid", "document_ids"),
    "title": ("title", "titles"),
}


@_form("Tevatron, RLHN", "query, positive_passages, negative_passages [query_id, subset]", "tevatron")
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


@_form("FlagEmbedding", "query, pos, neg [pos_scores, neg_scores, pos_id, neg_id, prompt, type]", "flagembedding")
def _flag_embedding(columns: Collection[str]) -> Reading | None:
    return _texts_reading(columns, QUERY, "pos", ["neg"]) if {QUERY, "pos", "neg"} <= set(columns) else None


@_form(
    "one or more positives and negatives: sentence-transformers, ms-swift, nomic, MTEB reranking",
    "anchor/query/question, positive(s)/answer/response/document/pos, negative(s)/hard_negative(s)/rejected_response/"
    "neg and/or negative_0, negative_1, ... [scores, positive_id, negative_id, ...]; texts or lists of texts; repeated "
    "anchors are grouped",
    "triplet, n-tuple",
)
def _tuples(columns: Collection[str]) -> Reading | str | None:
    rest = [name for name in columns if name not in ("pos", "neg")] if _flag_embedding(columns) else columns
    query, positive = first_of(ANCHORS, rest), first_of(POSITIVES, rest)
    # By number, not by name: negative_10 comes after negative_9, and a plain `negative` before all.
    numbers = {name: int(found[1]) for name in rest if (found := re.fullmatch(r"(?:negative|neg)_(\d+)", name))}
    negatives = [*(name for name in NEGATIVES if name in rest), *sorted(numbers, key=numbers.__getitem__)]
    if query is None or positive is None or not negatives:
        return None
    if labels := [name for name in LABEL_NAMES[:2] if name in columns]:
        return (
            f"are positives and negatives, and beside them {labels[0]!r}, which does not say of which it is. "
            f"Leave it out: ds.remove_columns({labels[0]!r}), or arhn-refine --drop-columns {labels[0]}. Where it is "
            f"of the query, rename it, with arhn-refine --rename {labels[0]}=query_{labels[0]}."
        )
    reading = _texts_reading(columns, query, positive, negatives, scores=first_of(LABEL_NAMES[2:], columns))
    return replace(reading, grouped=True)


def _texts_reading(
    columns: Collection[str], query: str, positive: str, negatives: list[str], scores: str | None = None
) -> Reading:
    own, others = texts_in(positive, columns), [texts_in(name, columns) for name in negatives]
    scored = scores is not None or any(SCORE in texts.beside for texts in (own, *others))

    def sides(columns: Columns) -> TwoSides:
        fields = (SCORE,) if scored else ()
        positives = united([passages_of(columns, own)], fields)
        parts = [passages_of(columns, texts) for texts in others] or [chats.none_of(positives)]
        found = (positives, united(parts, fields))
        if scores is not None:
            found = with_scores(columns, scores, found)
        return there(found[0]), there(found[1])

    slots = (own, *others)
    beside = chain.from_iterable(texts.beside.values() for texts in slots)
    read = (*(texts.column for texts in slots), *beside, *([scores] if scores else []))
    return Reading(query=query, columns=read, sides=sides, scored=scored)


@_form("pairs", "anchor/query/question, positive/answer, and no other column; they have no negatives", "pair")
def _pairs(columns: Collection[str]) -> Reading | None:
    query, positive = first_of(ANCHORS, columns), first_of(("positive", "answer"), columns)
    if query is None or positive is None or set(columns) - {query, positive, QUERY_ID, SUBSET}:
        return None
    return replace(_texts_reading(columns, query, positive, []), grouped=True)


@_form(
    "labelled list",
    "anchor/query/question, docs/documents/passages/texts, labels/label/scores/score: whole numbers, positive above 0, "
    "or any with a threshold",
    "labeled-list, pylate",
)
def _labelled_list(columns: Collection[str], threshold: float | None = None) -> Reading | None:
    return _labelled(columns, LISTS, threshold, _labelled_list)


@_form(
    "labelled pair, or the labelled list of mine_hard_negatives",
    "anchor/query/question, passage/doc/text/positive/answer/response/document, label/labels/score/scores as of a "
    "labelled list; repeated anchors are grouped",
    "labeled-pair",
)
def _labelled_pair(columns: Collection[str], threshold: float | None = None) -> Reading | None:
    if first_of(LISTS, columns):
        return None
    reading = _labelled(columns, PAIRED, threshold, _labelled_pair)
    return None if reading is None else replace(reading, grouped=True, partial=True)


def _labelled(
    columns: Collection[str], names: tuple[str, ...], threshold: float | None, again: Callable[..., Any]
) -> Reading | None:
    query, documents, labels = first_of(ANCHORS, columns), first_of(names, columns), first_of(LABEL_NAMES, columns)
    if query is None or documents is None or labels is None or _has_negatives(columns):
        return None
    texts = texts_in(documents, columns, _ALONE)
    beside = {name: found for name, found in texts.beside.items() if found != labels}
    if SCORE not in beside and labels in LABEL_NAMES[:2] and (scores := first_of(LABEL_NAMES[2:], columns)):
        beside[SCORE] = scores
    texts = Texts(column=documents, beside=beside)
    scored = SCORE in beside or threshold is not None

    def sides(columns: Columns) -> TwoSides:
        found = passages_of(columns, texts)
        numbers = labels_of(columns[labels], labels, found, documents, threshold)
        if scored and SCORE not in found.fields:
            found = replace(found, fields={**found.fields, SCORE: numbers})
        known = numbers.to_numpy(zero_copy_only=False)
        positive = known > 0 if threshold is None else known >= threshold
        return there(found.kept(positive)), there(found.kept(~positive))

    return Reading(
        query=query, columns=(*texts.columns, labels), sides=sides, scored=scored, above=partial(again, columns)
    )


def _has_negatives(columns: Collection[str]) -> bool:
    return any(name in NEGATIVES or re.fullmatch(r"(?:negative|neg)_\d+", name) for name in columns)


@_form(
    "ms-swift messages",
    "messages, positive_messages, negative_messages or rejected_messages; a system message becomes the column prompt; "
    "repeated queries are grouped",
    "ms-swift",
)
def _messages(columns: Collection[str]) -> Reading | None:
    negatives = [name for name in ("negative_messages", "rejected_messages", "rejected_response") if name in columns]
    positives = [name for name in ("positive_messages",) if name in columns]
    if "messages" not in columns or not negatives and not positives:
        return None

    def sides(columns: Columns) -> TwoSides:
        answers = [chats.answers_in(columns[name], name) for name in positives] or [
            chats.replies_in(columns["messages"])
        ]
        others = [chats.answers_in(columns[name], name) for name in negatives]
        return united(answers), united(others) if others else chats.none_of(answers[0])

    return Reading(
        query="messages",
        columns=(*positives, *negatives),
        sides=sides,
        queries=lambda columns: chats.queries_in(columns["messages"]),
        grouped=True,
        made={} if "prompt" in columns else {"prompt": lambda columns: chats.instructions_in(columns["messages"])},
    )


@_form(
    "NeMo AutoModel",
    "question/query, pos_doc, neg_doc [question_id]; texts or {text}, or ids with a corpus; repeated queries are "
    "grouped",
    "nemo",
)
def _nemo(columns: Collection[str]) -> Reading | None:
    query, names = first_of(("question", QUERY), columns), ("pos_doc", "neg_doc")
    if query is None or not set(names) <= set(columns):
        return None
    query_id = "question_id" if "question_id" in columns and QUERY_ID not in columns else QUERY_ID
    docids = ("docid", "id", "_id")

    def side(columns: Columns, name: str) -> FlatPassages:
        values = columns[name]
        if isinstance(values, list):
            values = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
            if not any(isinstance(one, Mapping) for value in values for one in value):
                return there(passages_of({name: values}, Texts(column=name, beside={})))
            values = [[{"text": one} if isinstance(one, str) else one for one in value] for value in values]
        elif pa.types.is_struct(values.type):
            values = pa.chunked_array([lists_of(np.ones(len(values), np.int64), one_array(values))])
        if not isinstance(values, list) and not pa.types.is_struct(getattr(values.type, "value_type", pa.null())):
            return there(passages_of(columns, Texts(column=name, beside={})))
        if _without_texts(values):
            raise SchemaError(reading.no_corpus)
        return flat.structs_of(values, name, docids)

    reading = Reading(
        query=query,
        columns=names,
        sides=lambda columns: (side(columns, names[0]), side(columns, names[1])),
        ids=names,
        structs=names,
        docids=docids,
        query_id=query_id,
        grouped=True,
    )
    return reading


def _without_texts(values: Values) -> bool:
    if not isinstance(values, list):
        return bool(values.type.value_type.get_field_index("text") < 0)
    found = [one for value in values for one in value if isinstance(one, Mapping)]
    return bool(found) and not any("text" in one for one in found)


@_form(
    "Tevatron ids",
    "query_text/query, positive_document_ids, negative_document_ids, by arhn.adapt_dataset(ds, corpus=...)",
)
def _document_ids(columns: Collection[str]) -> Reading | None:
    query, ids = first_of(("query_text", QUERY), columns), ("positive_document_ids", "negative_document_ids")
    return Reading(query=query, columns=ids, ids=ids) if query is not None and set(ids) <= set(columns) else None


@_form(
    "BEIR, MTEB, NanoBEIR, LlamaIndex, PyLate ids",
    "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...), or negatives=... for run; also "
    "arhn.adapt_dataset({queries, corpus, relevant_docs})",
    "beir, mteb, mteb-reranking",
)
def _beir(columns: Collection[str]) -> str | None:
    if {"queries", "corpus", "relevant_docs"} <= set(columns):
        return "are those of an EmbeddingQAFinetuneDataset. Call arhn.adapt_dataset(json.load(open(FILE)))."
    if not all(first_of(names, columns) for names in (QUERY_ID_NAMES, RUN_DOCID_NAMES)):
        return None
    return (
        "are those of qrels or of a run, which hold ids and no texts. Call "
        "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., run=...)."
    )
