"""``n-tuple``: ``anchor, positive, negative_1, ..., negative_n``, a row for each positive.

Soft labels are a column ``scores``: of the positive, then of the negatives.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import SCORES, TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.rows.arrow import lists_of, rows_of, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


def _types(options: Options) -> Mapping[str, pa.DataType]:
    names = ("anchor", "positive", *(f"negative_{i + 1}" for i in range(options.negatives)))
    return {**dict.fromkeys(names, TEXT), **({"scores": SCORES} if options.soft else {})}


def _columns(rows: pa.Table, options: Options) -> Made:
    positives, negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
    least = options.negatives if options.short == "drop" else 1
    enough = negatives.counts >= least
    row = rows_of(np.where(enough, positives.counts, 0))
    own = np.flatnonzero(np.repeat(enough, positives.counts))
    places = [negatives.starts[row] + i % negatives.counts[row] for i in range(options.negatives)]
    texts = negatives.texts(options.separator)
    columns = {"anchor": taken(queries(rows), row), "positive": taken(positives.texts(options.separator), own)}
    columns |= {f"negative_{i + 1}": taken(texts, at) for i, at in enumerate(places)}
    if options.soft:
        scores = negatives.scores()
        together = np.stack([positives.scores()[own], *(scores[at] for at in places)], axis=1)
        columns["scores"] = lists_of(np.full(len(row), options.negatives + 1), pa.array(together.reshape(-1)))
    short = (positives.counts > 0) & (negatives.counts > 0) & ~enough
    return columns, {**without(positives, negatives.counts > 0), f"fewer than {least} negatives": int(short.sum())}


def _description(names: str, options: Options) -> str:
    short = "is left out" if options.short == "drop" else "repeats its own"
    width = f"`negative_1` up to `negative_{options.negatives}`"
    return f"`anchor`, `positive`, {width}; a row with fewer negatives {short}"


N_TUPLE = Format(
    name="n-tuple",
    place=2,
    purpose="sentence-transformers",
    tables=(Table(name="n-tuple", types=_types, columns=_columns, scored=True, describe=_description),),
    options=("negatives", "short"),
    repeats=True,
    example="tuples",
    row="a row for each positive, with the same number of negatives in every row",
)
