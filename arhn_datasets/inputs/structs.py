"""Passages that are structs of docid, title, text and further fields, in lists; or that are structs of lists."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.passages import FlatPassages
from arhn_datasets.inputs.values import ID, TEXT, TITLE, Values, each, found_as, in_lists, lengths, list_in, read
from arhn_datasets.rows.arrow import Integers, flat_lists
from arhn_datasets.rows.records import PASSAGE_TYPE

FIELDS = tuple(field.name for field in PASSAGE_TYPE)


def structs_of(values: Values, column: str, docids: tuple[str, ...]) -> FlatPassages:
    """The passages of a column; a docid is the first of the fields ``docids`` that is there.

    Raises:
        BrokenRow: a value is no list of passages.
    """
    flat = None if isinstance(values, list) else _flat(values)
    counts, fields, objects = (*flat, None) if flat else _flat_objects(values, column, docids)
    nothing = pa.nulls(int(counts.sum()))
    with in_lists(counts):
        ids = [read(fields.pop(name, nothing), ID, f"{column}.{name}") for name in docids]
        titles, texts = fields.pop("title", nothing), fields.pop("text", nothing)
        known = {"title": read(titles, TITLE, column), "text": read(texts, TEXT, column)}
    docid = pc.coalesce(*ids) if len(ids) > 1 else ids[0]
    given = None
    if not isinstance(values, list) and flat and not pa.types.is_struct(values.type):
        given = None if values.null_count or docid.null_count or titles.null_count else values
    return FlatPassages(counts=counts, fields={"docid": docid, **known, **fields}, objects=objects, given=given)


def _flat(values: pa.ChunkedArray) -> tuple[Integers, dict[str, Any]] | None:
    """The length of each list, and the fields of the passages of all; None where one of them is no passage."""
    try:
        if not pa.types.is_struct(values.type):
            counts, structs = flat_lists(pa.table({"": values}), "")
            if not len(structs):
                return counts, {}
            return (counts, fields_in(structs)) if pa.types.is_struct(structs.type) and not structs.null_count else None
        # `Sequence({...})` of older versions of datasets stores a list of structs as a struct of lists.
        lists = pa.table(fields_in(values))
        flat = {name: flat_lists(lists, name) for name in lists.column_names}
    except SchemaError:  # of something else than a list
        return None
    counts = next((counts for counts, _ in flat.values()), np.zeros(len(values), np.int64))
    unequal = any((other != counts).any() for other, _ in flat.values())
    return None if unequal else (counts, {name: array for name, (_, array) in flat.items()})


def fields_in(structs: Any) -> dict[str, Any]:
    """The fields of structs as they are in memory."""
    return {field.name: pc.struct_field(structs, place) for place, field in enumerate(structs.type)}


def _flat_objects(
    values: Values, column: str, docids: tuple[str, ...]
) -> tuple[Integers, dict[str, Any], list[Mapping[str, Any]]]:
    """The same of Python objects, which may have any further fields: these stay in the objects."""
    lists = each(values, lambda value: _objects_in(value, column))
    counts, objects = lengths(lists), list(chain.from_iterable(lists))
    fields: dict[str, Any] = {name: [passage.get(name) for passage in objects] for name in (*docids, "title", "text")}
    if docids != ("docid",):
        objects = [{**dict.fromkeys(FIELDS), **{n: p[n] for n in p if n not in docids}} for p in objects]
    return counts, fields, objects


def _objects_in(value: Any, column: str) -> list[Any]:
    if not isinstance(value, Mapping):
        passages = list_in(value, column, "passages")
    else:
        lists = {name: list_in(values, name, f"one value per passage of {column!r}") for name, values in value.items()}
        counts = {name: len(values) for name, values in lists.items()}
        if len(set(counts.values())) > 1:
            raise SchemaError(f"column {column!r} holds lists of unequal lengths: {counts}.")
        passages = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    for passage in passages:
        if not isinstance(passage, Mapping):
            raise SchemaError(
                f"column {column!r} holds {found_as(passage)} in its list; {{docid, title, text}} was expected."
            )
    return passages
