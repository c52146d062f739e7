"""``nemo``: JSON lines of ``question_id``, ``query``, ``pos_doc`` and ``neg_doc``, a row for each positive.

NeMo AutoModel takes the first positive of a row alone, and the first negatives.
"""

from __future__ import annotations

import pyarrow as pa

from arhn_datasets.formats.format import (
    TEXT,
    Format,
    Made,
    Options,
    Passages,
    Table,
    each_positive,
    queries,
    query_ids,
    without,
)
from arhn_datasets.formats.writers import LinesWriter
from arhn_datasets.rows.arrow import lists_of, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


def _columns(rows: pa.Table, options: Options) -> Made:
    positives, negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
    row, own, counts, others = each_positive(positives, negatives)
    columns = {
        "question_id": taken(query_ids(rows), row),
        "query": taken(queries(rows), row),
        "pos_doc": taken(positives.texts(options.separator), own),
        "neg_doc": lists_of(counts, taken(negatives.texts(options.separator), others)),
    }
    return columns, without(positives, negatives.counts > 0)


TYPES = {**dict.fromkeys(("question_id", "query", "pos_doc"), TEXT), "neg_doc": pa.list_(TEXT)}
NEMO = Format(
    name="nemo",
    place=12,
    purpose="NeMo AutoModel",
    tables=(Table(name="nemo", types=lambda options: TYPES, columns=_columns),),
    open=LinesWriter,
    repeats=True,
    files="`nemo/SPLIT.jsonl`: `question_id`, `query`, `pos_doc`, `neg_doc` for NeMo AutoModel",
)
