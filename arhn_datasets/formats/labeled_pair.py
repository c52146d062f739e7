"""``labeled-pair``: ``query, passage, label``, a row for each positive (1) and each negative (0)."""

from __future__ import annotations

import pyarrow as pa

from arhn_datasets.formats.format import TEXT, Format, Made, Options, Table, labelled, queries
from arhn_datasets.rows.arrow import rows_of, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


def _columns(rows: pa.Table, options: Options) -> Made:
    counts, _, passages, labels = labelled(rows, options.separator, {POSITIVE: 1, NEGATIVE: 0})
    columns = {"query": taken(queries(rows), rows_of(counts)), "passage": passages, "label": pa.array(labels)}
    return columns, {"no passage": int((counts == 0).sum())}


TYPES = {"query": TEXT, "passage": TEXT, "label": pa.int64()}
TABLE = Table(name="labeled-pair", types=lambda options: TYPES, columns=_columns)
LABELED_PAIR = Format(name="labeled-pair", place=5, purpose="binary rerankers", tables=(TABLE,))
