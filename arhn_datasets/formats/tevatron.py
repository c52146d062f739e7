"""``tevatron``: ``query_id, query, positive_passages, negative_passages``, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import TEXT, Format, Made, Options, Passages, Table, queries, query_ids, without
from arhn_datasets.rows.arrow import taken
from arhn_datasets.rows.records import LABELLED, PASSAGE_TYPE, QUERY, QUERY_ID, types_of


def _types(options: Options) -> Mapping[str, pa.DataType]:
    return {QUERY_ID: TEXT, QUERY: TEXT, **types_of(("passages",), LABELLED)}


def _columns(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in LABELLED]
    kept = (sides[0].counts > 0) & (sides[1].counts > 0)
    at = np.flatnonzero(kept)
    columns = {QUERY_ID: taken(query_ids(rows), at), QUERY: taken(queries(rows), at)}
    for side, passages in zip(LABELLED, sides, strict=True):
        fields = [passages.ids(), passages.field("title"), passages.field("text")]
        columns[side.passages] = passages.lists(pa.StructArray.from_arrays(fields, fields=list(PASSAGE_TYPE)), kept)
    return columns, without(sides[0], kept)


TEVATRON = Format(
    name="tevatron",
    place=6,
    purpose="Tevatron",
    # The card has said of the rows what these columns are.
    tables=(Table(name="tevatron", types=_types, columns=_columns, describe=lambda names, options: ""),),
    loads=("default",),  # it leaves the further columns of the rows alone
)
