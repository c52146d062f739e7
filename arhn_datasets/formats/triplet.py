"""``triplet``: ``anchor, positive, negative``, a row for each positive with each negative."""

from __future__ import annotations

import pyarrow as pa

from arhn_datasets.formats.format import TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.rows.arrow import rows_of, taken, within
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


def _columns(rows: pa.Table, options: Options) -> Made:
    positives, negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
    counts = positives.counts * negatives.counts
    row, at = rows_of(counts), within(counts)
    columns = {
        "anchor": taken(queries(rows), row),
        "positive": taken(positives.texts(options.separator), positives.starts[row] + at // negatives.counts[row]),
        "negative": taken(negatives.texts(options.separator), negatives.starts[row] + at % negatives.counts[row]),
    }
    return columns, without(positives, negatives.counts > 0)


NAMES = ("anchor", "positive", "negative")
TABLE = Table(name="triplet", types=lambda options: dict.fromkeys(NAMES, TEXT), columns=_columns)
TRIPLET = Format(
    name="triplet",
    place=1,
    purpose="sentence-transformers",
    tables=(TABLE,),
    repeats=True,
    example="tuples",
    row="a row for each positive and negative",
)
