"""``labeled-pair``: ``query, passage, label``, a row for each positive (1) and each negative (0).

Soft labels are a column ``score`` in place of ``label``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import SCORE, TEXT, Format, Made, Options, Passages, Table, labelled, queries
from arhn_datasets.rows.arrow import rows_of, taken
from arhn_datasets.rows.records import LABELLED, NEGATIVE, POSITIVE, SCORE_TYPE


def _types(options: Options) -> Mapping[str, pa.DataType]:
    return {"query": TEXT, "passage": TEXT, **({SCORE: SCORE_TYPE} if options.soft else {"label": pa.int64()})}


def _columns(rows: pa.Table, options: Options) -> Made:
    counts, order, passages, labels = labelled(rows, options.separator, {POSITIVE: 1, NEGATIVE: 0})
    if options.soft:
        labels = np.concatenate([Passages(rows, side).scores() for side in LABELLED])[order]
    label = SCORE if options.soft else "label"
    columns = {"query": taken(queries(rows), rows_of(counts)), "passage": passages, label: pa.array(labels)}
    return columns, {"no passage": int((counts == 0).sum())}


TABLE = Table(name="labeled-pair", types=_types, columns=_columns, scored=True)
LABELED_PAIR = Format(name="labeled-pair", place=5, purpose="binary rerankers", tables=(TABLE,))
