"""The canonical rows of one query, as those of triplets are, become one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from arhn_datasets.inputs.forms import CANONICAL
from arhn_datasets.inputs.passages import FlatPassages, checked
from arhn_datasets.inputs.structs import fields_in
from arhn_datasets.inputs.values import ROWS_PER_BATCH, BrokenRow, naming_rows
from arhn_datasets.rows.arrow import Integers, empty_table, flat_lists, one_array, rows_of, starts_of
from arhn_datasets.rows.records import LABELLED, QUERY, QUERY_ID, SUBSET

if TYPE_CHECKING:
    from datasets import Dataset


def grouped(ds: Dataset) -> Dataset:
    """The canonical rows of one query as one row, at the place of the first."""
    from datasets import Dataset

    found = ds.with_format("arrow")
    groups = _groups(found.select_columns([n for n in (QUERY_ID, QUERY, SUBSET) if n in ds.column_names])[:])
    sizes = np.bincount(groups)
    if len(sizes) == len(ds):
        return ds
    order = np.argsort(groups, kind="stable")
    ends = starts_of(sizes)[1:]
    # Whole groups at a time, some thousand rows.
    cuts = np.flatnonzero(np.append(np.diff(ends // ROWS_PER_BATCH) > 0, True)) + 1
    tables = [empty_table(ds.features.arrow_schema)]
    for own, rows in zip(np.split(sizes, cuts[:-1]), np.split(order, ends[cuts[:-1] - 1]), strict=True):
        tables.append(_merged(found.select(rows)[:], own, rows))
    return Dataset(pa.concat_tables(tables), split=ds.split)


def _groups(keys: pa.Table) -> Integers:
    """The number of each row's group, in the order of the first rows."""
    encoded = (one_array(column).dictionary_encode(null_encoding="encode") for column in keys.columns)
    numbers: dict[tuple[int, ...], int] = {}
    codes = zip(*(column.indices.to_pylist() for column in encoded), strict=True)
    return np.array([numbers.setdefault(code, len(numbers)) for code in codes], np.int64)


def _merged(table: pa.Table, sizes: Integers, numbers: Integers) -> pa.Table:
    """The rows of each group as one row: positives united, negatives united, each passage once."""
    begin = starts_of(sizes)[:-1]
    first = table.take(pa.array(begin))
    columns = dict(zip(first.column_names, first.columns, strict=True))
    with naming_rows(columns, QUERY, numbers[begin]):
        try:
            sides = checked(*(_united(table, side.passages, begin) for side in LABELLED))
        except BrokenRow as broken:
            raise BrokenRow(broken.row, f"after grouping its {sizes[broken.row]} rows, {broken}") from None
        for name in table.column_names:
            if name not in CANONICAL:
                _refuse_differing(table.column(name), sizes, name)
    for side, passages in zip(LABELLED, sides, strict=True):
        columns[side.passages] = passages.lists(table.schema.field(side.passages).type)
    return pa.Table.from_arrays(list(columns.values()), schema=table.schema)


def _united(table: pa.Table, column: str, begin: Integers) -> FlatPassages:
    counts, structs = flat_lists(table, column)
    return FlatPassages(counts=np.add.reduceat(counts, begin), fields=fields_in(structs))


def _refuse_differing(values: pa.ChunkedArray, sizes: Integers, name: str) -> None:
    firsts = np.repeat(starts_of(sizes)[:-1], sizes)
    try:
        codes = one_array(values).dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
        differ = codes != codes[firsts]
    except pa.ArrowNotImplementedError:  # of lists and structs
        found = values.to_pylist()
        differ = np.array([value != found[first] for value, first in zip(found, firsts.tolist(), strict=True)], bool)
    if differ.any():
        group = int(rows_of(sizes)[differ.argmax()])
        raise BrokenRow(
            group,
            f"column {name!r} differs between the {sizes[group]} rows of this query, so the one row that they "
            f"become cannot keep it. Leave it out first, with ds.remove_columns({name!r}).",
        )
