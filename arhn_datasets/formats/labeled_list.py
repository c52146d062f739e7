"""``labeled-list``: ``query, docs, labels``, a row for each query. Soft labels are the scores, best first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import (
    SCORES,
    TEXT,
    Format,
    Made,
    Options,
    Passages,
    Table,
    labelled,
    queries,
    without,
)
from arhn_datasets.rows.arrow import lists_of, rows_of, taken
from arhn_datasets.rows.records import FILTERED, NEGATIVE, POSITIVE, Side


def _types(options: Options) -> Mapping[str, pa.DataType]:
    return {"query": TEXT, "docs": pa.list_(TEXT), "labels": SCORES if options.soft else pa.list_(pa.int64())}


def _grades(options: Options) -> Mapping[Side, int]:
    """The label of each side, in the order of the list."""
    return {POSITIVE: 2, FILTERED: 1, NEGATIVE: 0} if options.grades else {POSITIVE: 1, NEGATIVE: 0}


def _columns(rows: pa.Table, options: Options) -> Made:
    grades = _grades(options)
    counts, order, passages, labels = labelled(rows, options.separator, grades)
    if options.soft:
        labels = np.concatenate([Passages(rows, side).scores() for side in grades])[order]
        # Losses as ListMLE take the order of a list for its ranking.
        best = np.lexsort((-labels, rows_of(counts)))
        labels, passages = labels[best], taken(passages, best)
    positives = Passages(rows, POSITIVE)
    usable = (positives.counts > 0) & (counts > positives.counts)  # a list of one label teaches no order
    kept = np.flatnonzero(np.repeat(usable, counts))
    columns = {
        "query": taken(queries(rows), np.flatnonzero(usable)),
        "docs": lists_of(counts[usable], passages if usable.all() else taken(passages, kept)),
        "labels": lists_of(counts[usable], pa.array(labels[kept])),
    }
    return columns, without(positives, usable)


def _description(names: str, options: Options) -> str:
    if options.soft:
        return f"{names}: its label is the score of the passage, best first"
    return f"{names}: {'2 is a positive, 1 a filtered passage, 0 a negative' if options.grades else '1 is a positive'}"


TABLE = Table(
    name="labeled-list",
    types=_types,
    columns=_columns,
    sides=lambda options: tuple(_grades(options)),
    scored=True,
    describe=_description,
)
LABELED_LIST = Format(name="labeled-list", place=4, purpose="listwise rerankers", tables=(TABLE,), options=("grades",))
