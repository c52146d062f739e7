"""What is decided on whole datasets: the rows of one query as one row, and columns that cannot pass through."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.bad_rows import halved
from arhn_datasets.inputs.columns import lengths_in, parallel_to, refuse_parallel
from arhn_datasets.inputs.forms import CANONICAL, Reading, reading_of
from arhn_datasets.inputs.passages import BrokenRow, FlatPassages, checked
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, empty_table, one_array, starts_of
from arhn_datasets.rows.records import (
    ALL_EVIDENCE_TYPES,
    LABELLED,
    NEGATIVE,
    POSITIVE,
    QUERY,
    QUERY_ID,
    SUBSET,
    shorten,
)

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


# --- rows of one query --------------------------------------------------------------------------------------------

# Columns that number rows: of rows that become one, none of these is the number.
_INDEX = re.compile(
    r"(?i)|unnamed: ?\d+|__index_level_\d+__|_*(?:(?:row|example|sample|pair|triplet|line|record|source)?[_ ]?"
    r"(?:id|idx|index|no|nr|number|line)|uid|uuid|guid|row)"
)


def grouped(ds: Dataset, numbers: Integers, reading: Reading) -> tuple[Dataset, list[tuple[int, str]]]:
    """The canonical rows of one query as one row, at the place of the first; and those that contradict these before.

    ``numbers`` are those of the rows in their source.
    """
    from datasets import Dataset

    found = ds.with_format("arrow")
    # What a form makes of a row, as a system message, is of the query, too: nobody could leave it out.
    keys = [name for name in (QUERY_ID, QUERY, SUBSET, *reading.made) if name in ds.column_names]
    groups = _groups(found.select_columns(keys)[:])
    sizes = np.bincount(groups)
    if len(sizes) == len(ds) and not reading.partial:
        return ds, []
    order = np.argsort(groups, kind="stable")
    gone = _differing(found, sizes, order, numbers)
    found, ds = found.remove_columns(gone), ds.remove_columns(gone)
    ends = starts_of(sizes)[1:]
    # Whole groups at a time, some thousand rows.
    cuts = np.flatnonzero(np.append(np.diff(ends // flat.ROWS_PER_BATCH) > 0, True)) + 1
    tables, bad = [empty_table(ds.features.arrow_schema)], list[tuple[int, str]]()
    for own, rows in zip(np.split(sizes, cuts[:-1]), np.split(order, ends[cuts[:-1] - 1]), strict=True):
        if not len(own):
            continue
        merged, contradicting = _merged_or_not(found.select(rows)[:], own)
        tables += merged
        bad += [(int(numbers[rows[at]]), reason) for at, reason in contradicting]
    return Dataset(pa.concat_tables(tables), split=ds.split), bad


def _groups(keys: pa.Table) -> Integers:
    """The number of each row's group, in the order of the first rows."""
    encoded = (one_array(column).dictionary_encode(null_encoding="encode") for column in keys.columns)
    numbers: dict[tuple[int, ...], int] = {}
    codes = zip(*(column.indices.to_pylist() for column in encoded), strict=True)
    return np.array([numbers.setdefault(code, len(numbers)) for code in codes], np.int64)


def _merged_or_not(table: pa.Table, sizes: Integers) -> tuple[list[pa.Table], list[tuple[int, str]]]:
    """The groups of a table, each as one row, and the rows that contradict those before them in their group."""
    begin = starts_of(sizes)

    def merged(start: int, end: int) -> tuple[int, pa.Table]:
        return start, _merged(table.slice(begin[start], begin[end] - begin[start]), sizes[start:end])

    good, broken = halved(len(sizes), merged)
    bad: list[tuple[int, str]] = []
    for group, _ in broken:
        kept: list[int] = []
        for row in range(begin[group], begin[group + 1]):
            try:
                _merged(table.take([*kept, row]), np.array([len(kept) + 1]), positive=False)
                kept.append(row)
            except BrokenRow as contradicting:
                bad.append((row, f"beside the {len(kept)} rows of its query before it, {contradicting}"))
        try:
            good.append((group, _merged(table.take(kept), np.array([len(kept)]))))
        except BrokenRow as left:
            bad += [(row, f"among the {len(kept)} rows of its query {left}") for row in kept]
    return [found for _, found in sorted(good, key=lambda one: one[0])], bad


def _merged(table: pa.Table, sizes: Integers, *, positive: bool = True) -> pa.Table:
    """The rows of each group as one row: positives united, negatives united, each passage once."""
    begin = starts_of(sizes)[:-1]
    first = table.take(pa.array(begin))
    columns = dict(zip(first.column_names, first.columns, strict=True))
    lists = [arrow.flat_lists(table, side.passages) for side in LABELLED]
    united = [(np.add.reduceat(counts, begin), flat.fields_in(structs)) for counts, structs in lists]
    sides = checked(*(FlatPassages(counts=counts, fields=fields) for counts, fields in united), positive=positive)
    for side, passages in zip(LABELLED, sides, strict=True):
        columns[side.passages] = passages.lists(table.schema.field(side.passages).type)
    return pa.Table.from_arrays(list(columns.values()), schema=table.schema)


def _differing(ds: Dataset, sizes: Integers, order: Integers, numbers: Integers) -> list[str]:
    """The columns that number rows, and so differ between those of one query; any other that differs is refused.

    Raises:
        SchemaError: columns differ that are no numbers of rows.
    """
    firsts = np.repeat(starts_of(sizes)[:-1], sizes)
    differing: dict[str, int] = {}
    for name in ds.column_names:
        if name in (*CANONICAL, SUBSET):
            continue
        values = one_array(ds.select_columns([name])[:].column(name)).take(pa.array(order))
        try:
            codes = values.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
            differ = codes != codes[firsts]
        except pa.ArrowNotImplementedError:  # of lists and structs
            found = values.to_pylist()
            differ = np.array([value != found[first] for value, first in zip(found, firsts.tolist(), strict=True)])
        if differ.any():
            differing[name] = int(differ.argmax())
    gone = [name for name in differing if _INDEX.fullmatch(name)]
    if gone:
        logger.warning("The columns %s number rows of which several become one: they are left out.", gone)
    if refused := [name for name in differing if name not in gone]:
        at = differing[refused[0]]
        query, rows = ds[int(order[at])][QUERY][0].as_py(), sorted(int(numbers[order[i]]) for i in (firsts[at], at))
        raise SchemaError(
            f"The columns {refused} differ between rows of one query, so the one row that these become cannot keep "
            f"them: {refused[0]!r} in the rows {rows[0]} and {rows[1]} (counted from 0) of the query "
            f"{shorten(repr(query), 100)}. Leave them out: arhn-refine --drop-columns {quote(','.join(refused))}, or "
            f"ds.remove_columns({refused})."
        )
    return gone


# --- columns that pass through ------------------------------------------------------------------------------------


def alike(splits: Mapping[str, tuple[Sequence[str], Dataset]]) -> dict[str, Dataset]:
    """Adapted splits, each beside the columns that it had, without those columns that one of them had to leave out."""
    gone = {
        name
        for before, adapted in splits.values()
        for name in before
        if _INDEX.fullmatch(name)
        and name not in adapted.column_names
        and name not in reading_of(tuple(before)).consumed
    }
    return {
        split: adapted.remove_columns([name for name in adapted.column_names if name in gone]) if gone else adapted
        for split, (_, adapted) in splits.items()
    }


def names_of(rows: Any) -> list[str]:
    """The columns of a dataset, or of dicts."""
    if hasattr(rows, "column_names"):
        return list(rows.column_names)
    return list(dict.fromkeys(chain.from_iterable(rows))) if isinstance(rows, Sequence) else []


def refuse_lists_of_passages(ds: Dataset) -> None:
    """Refuse lists that pass through and in every row have as many values as there are passages on a side."""
    passing = {name: type for name, type in zip(ds.features, ds.features.arrow_schema.types, strict=True)}
    names = [
        name
        for name, type in passing.items()
        if name not in (*CANONICAL, *ALL_EVIDENCE_TYPES) and lengths_in(pa.chunked_array([], type)) is not None
    ]
    if not names or not len(ds):
        return
    sides = [side.passages for side in LABELLED]
    found: dict[str, list[Integers]] = {name: [] for name in (*names, *sides)}
    for table in ds.select_columns([*names, *sides]).with_format("arrow").iter(flat.ROWS_PER_BATCH):
        for name in names:
            lengths = lengths_in(table.column(name))
            found[name].append(np.zeros(0, np.int64) if lengths is None else lengths)
        for name in sides:
            found[name].append(arrow.lengths_in(table, name)[0])
    lengths_of = {name: np.concatenate(parts) for name, parts in found.items()}
    counts = lengths_of[POSITIVE.passages], lengths_of[NEGATIVE.passages]
    refuse_parallel([name for name in names if parallel_to(name, lengths_of[name], *counts, whole=True)])
