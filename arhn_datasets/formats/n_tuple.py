"""``n-tuple``: ``anchor, positive, negative_1, ..., negative_n``, a row for each positive.

Soft labels are a column ``score``: of the positive, then of the negatives. It is not named ``scores``, nor ``label``:
PyLate would take these for those of two columns, and learn nothing without a word.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import SCORE, SCORES, TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.rows.arrow import Integers, lists_of, rows_of, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE


class Groups:
    """A positive with negatives of a fixed number, for each positive of the rows.

    ``row`` is the row of each, ``own`` its positive, ``places`` those of its negatives, one array each.
    """

    def __init__(self, rows: pa.Table, options: Options) -> None:
        self.positives, self.negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
        least = options.negatives if options.short == "drop" else 1
        enough = self.negatives.counts >= least
        short = (self.positives.counts > 0) & (self.negatives.counts > 0) & ~enough
        self.left_out = without(self.positives, self.negatives.counts > 0)
        self.left_out[f"fewer than {least} negatives"] = int(short.sum())
        self.row: Integers = rows_of(np.where(enough, self.positives.counts, 0))
        self.own: Integers = np.flatnonzero(np.repeat(enough, self.positives.counts))
        begin, counts = self.negatives.starts[self.row], self.negatives.counts[self.row]
        self.places: list[Integers] = [begin + i % counts for i in range(options.negatives)]
        self._width = options.negatives + 1

    def scores(self) -> pa.Array:
        """The scores of each positive and its negatives, as lists."""
        return self.lists(pa.array(self.positives.scores()), pa.array(self.negatives.scores()))

    def texts(self, separator: str) -> pa.Array:
        """The texts, as lists."""
        return self.lists(self.positives.texts(separator), self.negatives.texts(separator))

    def lists(self, positives: pa.Array, negatives: pa.Array) -> pa.Array:
        """Values of the positives and the negatives as a list for each positive."""
        places = np.stack([self.own, *(len(positives) + at for at in self.places)], axis=1).reshape(-1)
        return lists_of(np.full(len(self.row), self._width), taken(pa.concat_arrays([positives, negatives]), places))


def _types(options: Options) -> Mapping[str, pa.DataType]:
    names = ("anchor", "positive", *(f"negative_{i + 1}" for i in range(options.negatives)))
    return {**dict.fromkeys(names, TEXT), **({SCORE: SCORES} if options.soft else {})}


def _columns(rows: pa.Table, options: Options) -> Made:
    groups = Groups(rows, options)
    positives, negatives = (side.texts(options.separator) for side in (groups.positives, groups.negatives))
    columns = {"anchor": taken(queries(rows), groups.row), "positive": taken(positives, groups.own)}
    columns |= {f"negative_{i + 1}": taken(negatives, at) for i, at in enumerate(groups.places)}
    if options.soft:
        columns[SCORE] = groups.scores()
    return columns, groups.left_out


def _description(names: str, options: Options) -> str:
    short = "is left out" if options.short == "drop" else "repeats its own"
    width = f"`negative_1` up to `negative_{options.negatives}`"
    scores = ", `score` of each" if options.soft else ""
    return f"`anchor`, `positive`, {width}{scores}; a row with fewer negatives {short}"


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
