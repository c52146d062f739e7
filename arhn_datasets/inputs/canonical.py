"""Rows of a form as canonical columns: computed on the flat passages of both sides, whatever the rows are held in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.bad_rows import halved
from arhn_datasets.inputs.columns import lengths_in, parallel_to, refuse_parallel
from arhn_datasets.inputs.forms import CANONICAL, Reading, reading_of, refuse_reserved
from arhn_datasets.inputs.passages import STRING, BrokenRow, FlatPassages, Values, checked, read
from arhn_datasets.inputs.values import as_text, readable
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, empty_table, is_json
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, SUBSET, Row, fits, stable_query_id
from arhn_datasets.rows.stage import parts_of

Adapted: TypeAlias = tuple[pa.Array, pa.Array, FlatPassages, FlatPassages]  # what becomes of the columns of CANONICAL


def canonical_rows(rows: Sequence[Mapping[str, Any]], reading: Reading, *, alone: bool) -> list[Row]:
    """Rows of dicts in the order of the canonical columns; ``alone`` where a row is all that there is of its query.

    Raises:
        BrokenRow: one breaks its form.
    """
    columns: dict[str, Values] = {name: [row[name] for row in rows] for name in reading.inputs(rows[0])}
    query_ids, queries, *sides = _computed(columns, reading, alone=alone)
    made = {name: values(columns).to_pylist() for name, values in reading.made.items()}
    values = [query_ids.to_pylist(), queries.to_pylist(), *(side.dicts() for side in sides), *made.values()]
    passed = reading.passed(rows[0])
    return [
        {**dict(zip((*CANONICAL, *made), canonical, strict=True)), **{name: row[name] for name in passed}}
        for row, canonical in zip(rows, zip(*values, strict=True), strict=True)
    ]


def canonical_columns(table: pa.Table, reading: Reading, *, alone: bool) -> dict[str, Any]:
    """The canonical columns of a table, and those that its form makes; as :func:`canonical_rows`."""
    names = reading.inputs(table.column_names)
    columns = {name: readable(table[name], structs=name in reading.structs) for name in names}
    query_ids, queries, *sides = _computed(columns, reading, alone=alone)
    type = reading.passages(table.schema)
    canonical = dict(zip(CANONICAL, (query_ids, queries, *(side.lists(type) for side in sides)), strict=True))
    made = {name: values(columns) for name, values in reading.made.items()}
    return canonical | made | ({SUBSET: as_text(columns[SUBSET])} if mixes_subsets(table.schema) else {})


def mixes_subsets(schema: pa.Schema | None) -> bool:
    """Whether subsets are of several kinds, as 'nq' and 7, and become texts."""
    return schema is not None and SUBSET in schema.names and is_json(schema.field(SUBSET).type)


def _computed(columns: Mapping[str, Values], reading: Reading, *, alone: bool) -> Adapted:
    refuse_reserved([name for name in columns if name in reading.passed(columns) and is_foreign(name, columns[name])])
    if reading.queries is None:
        queries = read(columns[reading.query], flat.QUERY_TEXT, reading.query)
    else:
        queries = reading.queries(columns)
    if reading.sides is None:
        raise BrokenRow(0, reading.no_corpus) if len(queries) else SchemaError(reading.no_corpus)
    raw = [passages.with_docids() for passages in reading.sides(columns)]
    _refuse_parallel(columns, reading, *(side.counts for side in raw))
    sides = checked(raw[0], raw[1], positive=alone or not reading.partial)
    name = reading.query_id
    given = read(columns[name], flat.ID, name) if name in columns else pa.nulls(len(queries), STRING)
    missing = np.flatnonzero(arrow.is_null(given))
    if len(missing):
        subsets = [flat.value_at(columns[SUBSET], row) if SUBSET in columns else None for row in missing.tolist()]
        made = [
            stable_query_id(query, subset if isinstance(subset, str) else None)
            for query, subset in zip(arrow.taken(queries, missing).to_pylist(), subsets, strict=True)
        ]
        given = flat.filled(given, pa.array(made, STRING))
    return given, queries, *sides


def is_foreign(name: str, values: Values) -> bool:
    """Whether a column has the name of one that a run adds, and is another one by its values."""
    if name not in ALL_EVIDENCE_TYPES:
        return False
    known = (value if isinstance(values, list) else value.as_py() for value in values)
    return not fits(next((value for value in known if value is not None), None), ALL_EVIDENCE_TYPES[name])


def _refuse_parallel(columns: Mapping[str, Values], reading: Reading, *counts: Integers) -> None:
    """Refuse lists that stand beside passages by their names and lengths, and travel with none."""
    passing = [name for name in columns if name in reading.passed(columns) and name not in ALL_EVIDENCE_TYPES]
    found = {name: lengths for name in passing if (lengths := lengths_in(columns[name])) is not None}
    if not found:
        return
    # As the lists came, too: with the nulls and repeated passages that are left out.
    came = [lengths_in(columns[name]) for name in reading.columns if name in columns]
    pairs = [(counts[0], counts[1]), *((lengths, lengths) for lengths in came if lengths is not None)]
    refuse_parallel(
        [name for name, own in found.items() if any(parallel_to(name, own, *pair, whole=False) for pair in pairs)]
    )


def sort_out(
    table: pa.Table, schema: pa.Schema | None = None, *, threshold: float | None = None, alone: bool = True
) -> tuple[pa.Table, list[tuple[int, str]]]:
    """The good rows of a table as canonical ones, and of those that break their form the places, with the reasons."""
    reading, tables, bad = reading_of(tuple(table.column_names), threshold), [], list[tuple[int, str]]()
    passed = reading.passed(table.column_names)
    if schema is None:
        passages = reading.passages(table.schema)
        canonical = zip(CANONICAL, (STRING, STRING, passages, passages), strict=True)
        made = [(name, STRING) for name in reading.made]
        if mixes_subsets(table.schema):
            made.append((SUBSET, STRING))
        known = {name for name, _ in made}
        rest = (table.schema.field(name) for name in passed if name not in known)
        schema = pa.schema([*canonical, *made, *rest], table.schema.metadata)
    names, first = schema.names, 0
    for part in parts_of(table):

        def read_part(start: int, end: int, part: pa.Table = part) -> pa.Table:
            rows = part.slice(start, end - start)
            columns = canonical_columns(rows, reading, alone=alone)
            arrays = [columns[name] if name in columns else rows[name] for name in names]
            return pa.Table.from_arrays(arrays, schema=schema)

        good, broken = halved(part.num_rows, read_part)
        tables += good
        bad += [(first + row, reason) for row, reason in broken]
        first += part.num_rows
    if not tables:
        canonical_columns(table.slice(0, 0), reading, alone=alone)
        return empty_table(schema), bad
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables), bad
