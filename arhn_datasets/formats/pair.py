"""``pair``: ``anchor, positive``, a row for each positive."""

from __future__ import annotations

import pyarrow as pa

from arhn_datasets.formats.format import TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.rows.arrow import rows_of, taken
from arhn_datasets.rows.records import POSITIVE


def _columns(rows: pa.Table, options: Options) -> Made:
    positives = Passages(rows, POSITIVE)
    anchors = taken(queries(rows), rows_of(positives.counts))
    return {"anchor": anchors, "positive": positives.texts(options.separator)}, without(positives)


PAIR = Format(
    name="pair",
    place=3,
    purpose="in-batch negatives",
    tables=(Table(name="pair", types=lambda options: {"anchor": TEXT, "positive": TEXT}, columns=_columns),),
    example="tuples",
    row="a row for each positive, the negatives are those of the batch",
)
