"""What several formats take from canonical rows: the passages of a side as flat columns, queries, ids and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, lists_of, merged, starts_of, strings_of, taken
from arhn_datasets.rows.records import QUERY, QUERY_ID, SCORE_TYPE, Side

NO_POSITIVE, NO_NEGATIVE = "no positive", "no negative"


class Passages:
    """The passages of one side: the length of each list, and the flat values."""

    def __init__(self, rows: pa.Table, side: Side) -> None:
        self._rows, self._side = rows, side
        if side.passages in rows.column_names:
            self.counts, self.values = flat_lists(rows, side.passages)
        else:
            self.counts, self.values = np.zeros(rows.num_rows, np.int64), pa.nulls(0)
        self.starts = starts_of(self.counts)

    def field(self, name: str) -> pa.Array:
        """A field of the passages, ``""`` where it is null."""
        return _no_nulls(field_of(self.values, name, pa.string()))

    def ids(self) -> pa.Array:
        """The docids."""
        return _ids(field_of(self.values, "docid", pa.string()), "passage", "docid")

    def texts(self, separator: str) -> pa.Array:
        """Title and text as one text; one of them alone where the other is empty."""
        titles, texts = self.field("title"), self.field("text")
        titled = pc.not_equal(titles, "")
        if not pc.any(titled).as_py():
            return texts
        between = pc.if_else(pc.and_(titled, pc.not_equal(texts, "")), separator, "")
        return pc.binary_join_element_wise(titles, texts, between)

    def scores(self) -> Any:
        """Their scores."""
        return flat_lists(self._rows, self._side.scores)[1].cast(SCORE_TYPE).to_numpy(zero_copy_only=False)

    def lists(self, values: pa.Array, rows: Any) -> pa.Array:
        """Flat values as the lists of the rows in which ``rows`` is true."""
        if not rows.all():
            values = taken(values, np.flatnonzero(np.repeat(rows, self.counts)))
        return lists_of(self.counts[rows], values)


def queries(rows: pa.Table) -> pa.Array:
    """The queries, ``""`` where there is none."""
    return _no_nulls(strings_of(rows, QUERY))


def query_ids(rows: pa.Table) -> pa.Array:
    """The ids of the queries, each of which has one."""
    return _ids(strings_of(rows, QUERY_ID), "row", QUERY_ID)


def usable(positives: Passages, negatives: Passages) -> Any:
    """The rows that have both."""
    return (positives.counts > 0) & (negatives.counts > 0)


def without(positives: Passages, negatives: Passages | None = None) -> dict[str, int]:
    """How many rows have no positive, and of the others no negative."""
    reasons = {NO_POSITIVE: int((positives.counts == 0).sum())}
    if negatives is not None:
        reasons[NO_NEGATIVE] = int(((positives.counts > 0) & (negatives.counts == 0)).sum())
    return reasons


def labelled(rows: pa.Table, separator: str, labels: Mapping[Side, int]) -> tuple[Integers, Integers, pa.Array, Any]:
    """The passages of several sides in one list each: counts, the order of the flat values, texts and labels."""
    sides = [Passages(rows, side) for side in labels]
    counts, order = merged([side.counts for side in sides])
    texts = pa.concat_arrays([side.texts(separator) for side in sides])
    values = np.repeat(np.array(list(labels.values()), np.int64), [len(side.values) for side in sides])
    return counts, order, taken(texts, order), values[order]


def _no_nulls(texts: pa.Array) -> pa.Array:
    return pc.fill_null(texts, "") if texts.null_count else texts


def _ids(ids: pa.Array, what: str, name: str) -> pa.Array:
    if ids.null_count:
        raise SchemaError(
            f"A {what} has no {name}, which this format needs. Bring the rows into the canonical form, which gives "
            f"every {what} one: arhn.adapt_dataset(ds)."
        )
    return ids
