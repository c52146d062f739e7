"""``tevatron``: ``query_id, query, positive_passages, negative_passages``, and nothing else.

Soft labels are a field ``score`` of each passage, where Tevatron's distillation reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import (
    SCORE,
    TEXT,
    Format,
    Made,
    Options,
    Passages,
    Table,
    queries,
    query_ids,
    without,
)
from arhn_datasets.rows.arrow import taken
from arhn_datasets.rows.records import LABELLED, PASSAGE_TYPE, QUERY, QUERY_ID, SCORE_TYPE


def _types(options: Options) -> Mapping[str, pa.DataType]:
    passages = pa.list_(pa.struct(_fields(options)))
    return {QUERY_ID: TEXT, QUERY: TEXT, **{side.passages: passages for side in LABELLED}}


def _fields(options: Options) -> list[pa.Field]:
    return [*PASSAGE_TYPE, *([pa.field(SCORE, SCORE_TYPE)] if options.soft else [])]


def _columns(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in LABELLED]
    kept = (sides[0].counts > 0) & (sides[1].counts > 0)
    at = np.flatnonzero(kept)
    columns = {QUERY_ID: taken(query_ids(rows), at), QUERY: taken(queries(rows), at)}
    for side, passages in zip(LABELLED, sides, strict=True):
        fields = [passages.ids(), passages.field("title"), passages.field("text")]
        fields += [pa.array(passages.scores())] if options.soft else []
        columns[side.passages] = passages.lists(pa.StructArray.from_arrays(fields, fields=_fields(options)), kept)
    return columns, without(sides[0], kept)


TEVATRON = Format(
    name="tevatron",
    place=6,
    purpose="Tevatron",
    # The card has said of the rows what these columns are.
    tables=(Table(name="tevatron", types=_types, columns=_columns, scored=True, describe=lambda names, options: ""),),
    loads=("default",),  # it leaves the further columns of the rows alone
)
