"""The forms read row by row, as plainly as that can be written: what adaptation over columns is compared with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.values import NUMBER_AS_TEXT
from arhn_datasets.rows.records import shorten, stable_docid, stable_query_id

Row = dict[str, Any]
Sides = tuple[list[Row], list[Row]]

QUERY_ID, QUERY, SUBSET = "query_id", "query", "subset"
POSITIVES, NEGATIVES = "positive_passages", "negative_passages"
CANONICAL = (QUERY_ID, QUERY, POSITIVES, NEGATIVES)


def adapted(row: Mapping[str, Any]) -> Row:
    """One row of any form that keeps its rows, as a canonical row."""
    query_column = next(name for name in ("anchor", QUERY, "question") if name in row)
    with _naming_the_row(row, query_column):
        query = _query_text(row[query_column], query_column)
        sides, consumed = _sides(row)
        positives, negatives = (_distinct(side) for side in sides)
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
    passed = {name: row[name] for name in row if name not in (*canonical, *consumed, query_column)}
    return {**canonical, **passed}


def grouped(rows: list[Row]) -> list[Row]:
    """The rows of one query id, query and subset as one row, at the place of the first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in map(adapted, rows):
        groups.setdefault((row[QUERY_ID], row[QUERY], row.get(SUBSET)), []).append(row)
    united = []
    for group in groups.values():
        sides = {side: _distinct(passage for row in group for passage in row[side]) for side in (POSITIVES, NEGATIVES)}
        _refuse_both_sides(sides[POSITIVES], sides[NEGATIVES])
        united.append({**group[0], **sides})
    return united


def _sides(row: Mapping[str, Any]) -> tuple[Sides, set[str]]:
    """The passages of both sides, and the columns that they stand in."""
    if POSITIVES in row:
        return _struct_sides(row, positives=POSITIVES, negatives=NEGATIVES, docids=("docid",)), set()
    if "positive_ctxs" in row:
        names = ("positive_ctxs", "hard_negative_ctxs")
        docids = ("docid", "passage_id", "psg_id")
        return _struct_sides(row, positives=names[0], negatives=names[1], docids=docids), set(names)
    if "docs" in row:
        return _labelled_sides(row), {"docs", "labels", "doc_ids", "scores"}
    if "pos" in row:
        scored = bool({"pos_scores", "neg_scores"} & set(row))
        return _slots(row, ["pos"], ["neg"], scored=scored), {"pos", "neg", "pos_scores", "neg_scores"}
    positive = next(name for name in ("positive", "positives", "answer") if name in row)
    numbered = [name for name in row if re.fullmatch(r"negative(s|_\d+)?", name)]
    negatives = sorted(numbered, key=lambda name: int(name.partition("_")[2] or -1))
    sides = _slots(row, [positive], negatives, scored="scores" in row)
    return sides, {positive, *negatives, "scores", *(f"{name}_{of}" for name in ("positive", "negative") for of in OF)}


OF = ("id", "ids", "title", "titles")


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


def _struct_sides(row: Mapping[str, Any], *, positives: str, negatives: str, docids: tuple[str, ...]) -> Sides:
    return _structs(row, positives, docids), _structs(row, negatives, docids)


def _slots(row: Mapping[str, Any], positives: list[str], negatives: list[str], *, scored: bool) -> Sides:
    """Texts, or lists of them, with the ids, titles and scores that stand beside them."""
    sides: Sides = ([], [])
    for side, names in zip(sides, (positives, negatives), strict=True):
        for name in names:
            stem = name.rstrip("s")
            beside = {"docid": (f"{stem}_id", f"{stem}_ids"), "title": (f"{stem}_title", f"{stem}_titles")}
            side += _slot(row, name, {**beside, "score": (f"{name}_scores",)})
    together = [*sides[0], *sides[1]]
    there = [found for found in together if found["text"] is not None]
    scores = _list_in(row, "scores", "numbers") if row.get("scores") is not None else []
    if any(score is not None for score in scores):
        targets = together if len(scores) == len(together) else there
        _refuse_unequal("scores", len(scores), len(targets), "the passages of the row")
        for found, score in zip(targets, scores, strict=True):
            found["score"] = _number(score, "scores")
    fields = ["score"] if scored else []
    return tuple([_passage_of(found, fields) for found in side if found["text"] is not None] for side in sides)


def _slot(row: Mapping[str, Any], column: str, beside: Mapping[str, tuple[str, ...]]) -> list[Row]:
    value, alone = row[column], not isinstance(row[column], (list, tuple))
    texts = [value or None] if alone and (value is None or isinstance(value, str)) else _list_in(row, column, "texts")
    if alone and value is None and column in ("pos", "neg", "docs", "positives", "negatives"):
        texts = []
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise SchemaError(f"column {column!r} holds {_found(text)} where the text of one passage was expected.")
    found: list[Row] = [{"text": text} for text in texts]
    for field, names in beside.items():
        name = next((name for name in names if name in row), None)
        if name is None:
            continue
        values = row[name] if isinstance(row[name], (list, tuple)) else [row[name]]
        if all(one is None or (one == "" and field == "docid") for one in values):
            continue
        _refuse_unequal(name, len(values), len(found), column)
        for passage, one in zip(found, values, strict=True):
            passage[field] = _identifier(one, name) if field == "docid" else one
            if field == "score" and one is not None:
                passage[field] = _number(one, name)
    return found


def _passage_of(found: Row, fields: list[str]) -> Row:
    further = {name: found.get(name) for name in fields}
    return _passage(found["text"], "", found.get("title"), found.get("docid"), **further)


def _refuse_unequal(column: str, count: int, expected: int, beside: str) -> None:
    if count != expected:
        raise SchemaError(f"column {column!r} has {count} values and {beside!r} has {expected}; one each is needed.")


def _labelled_sides(row: Mapping[str, Any]) -> Sides:
    documents = _slot(row, "docs", {"docid": ("doc_ids",), "score": ("scores",)})
    labels = _list_in(row, "labels", "numbers")
    _refuse_unequal("labels", len(labels), len(documents), "docs")
    sides: Sides = ([], [])
    for found, label in zip(documents, labels, strict=True):
        if found["text"] is None:
            continue
        if label is None:
            raise SchemaError("column 'labels' holds a null; every passage needs a number, above 0 if positive.")
        sides[label <= 0].append(_passage_of(found, ["score"] if "scores" in row else []))
    return sides


def _structs(row: Mapping[str, Any], column: str, docids: tuple[str, ...]) -> list[Row]:
    value = row[column]
    entries = _rows_of_columns(value, column) if isinstance(value, Mapping) else _list_in(row, column, "passages")
    return [_passage_of_struct(entry, column, docids) for entry in entries if entry is not None]


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


def _number(value: object, column: str) -> float:
    if isinstance(value, str) and re.fullmatch(NUMBER_AS_TEXT, value):
        return float(value)
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
