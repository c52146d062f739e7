"""``triplet``: ``anchor, positive, negative``, a row for each positive with each negative.

Soft labels are a column ``score``: of the positive and of the negative.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import SCORE, SCORES, TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.rows.arrow import lists_of, rows_of, taken, within
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


def _types(options: Options) -> Mapping[str, pa.DataType]:
    names = ("anchor", "positive", "negative")
    return {**dict.fromkeys(names, TEXT), **({SCORE: SCORES} if options.soft else {})}


def _columns(rows: pa.Table, options: Options) -> Made:
    positives, negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
    counts = positives.counts * negatives.counts
    row, at = rows_of(counts), within(counts)
    own = positives.starts[row] + at // negatives.counts[row]
    other = negatives.starts[row] + at % negatives.counts[row]
    columns = {
        "anchor": taken(queries(rows), row),
        "positive": taken(positives.texts(options.separator), own),
        "negative": taken(negatives.texts(options.separator), other),
    }
    if options.soft:
        both = np.stack([positives.scores()[own], negatives.scores()[other]], axis=1)
        columns[SCORE] = lists_of(np.full(len(row), 2), pa.array(both.reshape(-1)))
    return columns, without(positives, negatives.counts > 0)


TABLE = Table(name="triplet", types=_types, columns=_columns, scored=True)
TRIPLET = Format(
    name="triplet",
    place=1,
    purpose="sentence-transformers",
    tables=(TABLE,),
    repeats=True,
    example="tuples",
    row="a row for each positive and negative",
)
