"""In Arrow, against the forms read row by row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.rows import stage
from arhn_datasets.rows.records import stable_docid, stable_query_id
from tests.inputs import rowwise
from tests.inputs.lighthouses import (
    ALSO_NO,
    FLAG,
    NO,
    QUERY,
    YES,
    Row,
    adapt_row,
    canonical,
    outcome,
    passage,
    words,
)

texts_or_none = st.one_of(words, st.sampled_from(["", " ", "\u3000", 'a "quoted" \\ line\n\t', "\x00 \x1f", "ß 🙂"]))
SIDES = ("positive_passages", "negative_passages")
docids = st.one_of(st.none(), st.sampled_from(["", "d1", "d2", "d3", "d4"]), words)


def passages_of(ids: st.SearchStrategy[Any], **further: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    """Lists of passages whose ids, titles and texts may repeat, and stand for two texts."""
    fields = {"docid": ids, "title": st.one_of(st.none(), texts_or_none), "text": texts_or_none}
    return st.lists(st.fixed_dictionaries({**fields, **further}), max_size=4)


scores = st.lists(st.one_of(st.none(), st.floats(-2, 2, width=32)), max_size=4)
PASSED = {"lang": st.sampled_from(["en", "de", None]), "rank": st.one_of(st.none(), st.integers(0, 9))}
ROWS_OF = {
    "canonical": {
        "query": words,
        "positive_passages": passages_of(docids, score=st.one_of(st.none(), st.floats(-2, 2, width=32))),
        "negative_passages": passages_of(docids, score=st.one_of(st.none(), st.floats(-2, 2, width=32))),
        "query_id": docids,
        "subset": st.sampled_from(["nq", None]),
    },
    "integer ids": {
        "query": words,
        "query_id": st.one_of(st.none(), st.integers(0, 3)),
        "positive_passages": passages_of(st.one_of(st.none(), st.integers(0, 6))),
        "negative_passages": st.one_of(st.none(), passages_of(st.one_of(st.none(), st.integers(0, 6)))),
    },
    "DPR": {
        "question": words,
        "positive_ctxs": passages_of(st.just(None), passage_id=docids, psg_id=docids, score=st.integers(0, 9)),
        "hard_negative_ctxs": passages_of(docids, passage_id=docids, psg_id=docids, score=st.integers(0, 9)),
    },
    "texts": {"query": words, "pos": st.lists(texts_or_none, max_size=3), "neg": st.lists(words, max_size=4)},
    "scored": {
        "query": words,
        "pos": st.lists(words, min_size=1, max_size=1),
        "pos_scores": st.one_of(st.none(), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=1)),
        "neg": st.one_of(st.none(), st.lists(words, max_size=2)),
        "neg_scores": st.one_of(st.none(), scores),
    },
    "n-tuple": {
        "anchor": words,
        "positive": st.one_of(st.none(), texts_or_none),
        **{f"negative_{number}": st.one_of(st.none(), texts_or_none) for number in (2, 10, 1)},
    },
    "triplet": {"query": words, "answer": words, "negative": words, "subset": st.sampled_from(["nq", None])},
    "labels": {
        "query": words,
        "docs": st.lists(texts_or_none, min_size=2, max_size=3),
        "labels": st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=2, max_size=3),
    },
    "scores": {
        "query": words,
        "docs": st.lists(st.one_of(st.none(), words), min_size=2, max_size=2),
        "doc_ids": st.one_of(st.none(), st.lists(docids, min_size=2, max_size=2)),
        "labels": st.lists(st.booleans(), min_size=2, max_size=2),
        "scores": st.one_of(st.none(), st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2)),
    },
    "lists": {
        "query": words,
        "positives": st.lists(st.one_of(st.none(), words), max_size=2),
        "negatives": st.lists(st.one_of(st.none(), texts_or_none), max_size=3),
        "negative_ids": st.one_of(st.none(), st.lists(docids, max_size=3)),
        "negative_titles": st.one_of(st.none(), st.lists(st.one_of(st.none(), words), max_size=3)),
    },
    "scored tuple": {
        "anchor": words,
        "positive": st.one_of(st.none(), texts_or_none),
        "positive_id": docids,
        **{f"negative_{number}": st.one_of(st.none(), texts_or_none) for number in (1, 2)},
        "scores": st.one_of(st.none(), st.lists(st.floats(-2, 2, width=32), max_size=3)),
    },
}
"""Rows of each form, most of which are as they should be."""
FIELD = {"docid": pa.string(), "title": pa.string(), "text": pa.string()}
SCHEMAS = {
    "canonical": {side: pa.list_(pa.struct([*FIELD.items(), ("score", pa.float64())])) for side in SIDES}
    | {"query_id": pa.string()},
    "integer ids": {side: pa.list_(pa.struct(list({**FIELD, "docid": pa.int64()}.items()))) for side in SIDES}
    | {"query_id": pa.int32()},
    "DPR": {
        side: pa.list_(
            pa.struct([*FIELD.items(), ("passage_id", pa.string()), ("psg_id", pa.string()), ("score", pa.int64())])
        )
        for side in ("positive_ctxs", "hard_negative_ctxs")
    },
    "texts": {side: pa.list_(pa.string()) for side in ("pos", "neg")},
    "scored": {side: pa.list_(pa.string()) for side in ("pos", "neg")}
    | {side: pa.list_(pa.float32()) for side in ("pos_scores", "neg_scores")},
    "n-tuple": {},
    "triplet": {},
    "labels": {"docs": pa.list_(pa.string()), "labels": pa.list_(pa.int8())},
    "scores": {"docs": pa.list_(pa.string()), "doc_ids": pa.list_(pa.string()), "labels": pa.list_(pa.bool_())}
    | {"scores": pa.list_(pa.float64())},
    "lists": dict.fromkeys(("positives", "negatives", "negative_ids", "negative_titles"), pa.list_(pa.string())),
    "scored tuple": {"scores": pa.list_(pa.float64())},
}


def table_of(form: str, rows: list[Row]) -> pa.Table:
    """The rows in Arrow, with the types of the form; columns that it does not name hold strings or integers."""
    types = {**{name: pa.int64() if name == "rank" else pa.string() for name in rows[0]}, **SCHEMAS[form]}
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, types[name]) for name in rows[0]]))


def large(type: pa.DataType) -> pa.DataType:
    """The type with 64-bit offsets throughout."""
    if pa.types.is_string(type):
        return pa.large_string()
    if pa.types.is_list(type):
        return pa.large_list(large(type.value_type))
    return pa.struct([(field.name, large(field.type)) for field in type]) if pa.types.is_struct(type) else type


def viewed(table: pa.Table) -> dict[str, pa.Table]:
    """The same rows in other chunks, as a slice of more rows, and in types with 64-bit offsets."""
    around = pa.concat_tables([table.slice(0, 1), table, table.slice(0, 1)]).combine_chunks()
    return {
        "table": table,
        "chunks": pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)]),
        "slice": around.slice(1, table.num_rows),
        "large": table.cast(pa.schema([(field.name, large(field.type)) for field in table.schema])),
    }


def with_all_fields(rows: list[Row] | str) -> list[Row] | str:
    """The rows as they are in Arrow: a field that one passage has is null in the others."""
    if isinstance(rows, str):
        return rows
    fields = {name: None for row in rows for side in SIDES for found in row[side] for name in found}
    return [{**row, **{side: [{**fields, **found} for found in row[side]] for side in SIDES}} for row in rows]


@pytest.mark.parametrize("form", ROWS_OF)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_way_in_arrow_is_the_way_row_by_row(form: str, data: st.DataObject) -> None:
    """Rows, a batch, a table, its slices, chunks and large types: the same rows, ids and errors as one by one."""
    rows = data.draw(st.lists(st.fixed_dictionaries({**ROWS_OF[form], **PASSED}), min_size=1, max_size=4))
    expected = outcome(lambda: [rowwise.adapted(row) for row in rows])

    assert outcome(lambda: [adapt_row(row) for row in rows]) == expected
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    assert outcome(lambda: rows_in(arhn.adapt(batch))) == expected
    for name, table in viewed(table_of(form, rows)).items():
        found = outcome(lambda table=table: arhn.adapt(table).to_pylist())
        assert with_all_fields(found) == with_all_fields(expected), name


def rows_in(batch: Row) -> list[Row]:
    """The rows of a batch."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


@given(st.lists(st.tuples(texts_or_none, texts_or_none), min_size=1, max_size=5))
def test_made_docids_are_those_of_the_records(passages: list[tuple[str, str]]) -> None:
    """The hash that is put together from bytes is the hash of the JSON text, whatever has to be escaped."""
    rows = [{"docid": None, "title": title, "text": text, "score": None} for title, text in passages]
    row = {**canonical(), "positive_passages": [*rows, passage("there", "x", score=None)], "negative_passages": []}

    found = arhn.adapt(table_of("canonical", [row])).column("positive_passages")[0].as_py()

    assert {entry["docid"] for entry in found} == {*(stable_docid(*entry) for entry in passages), "x"}


def test_what_is_canonical_moves_by_reference() -> None:
    """No buffer of complete canonical passages is copied, and of null titles nothing but the titles is made."""
    rows = [canonical(query_id=f"q{number}") for number in range(3)]
    table = table_of("canonical", [{**row, "subset": None} for row in rows])

    adapted = arhn.adapt(table)

    for side in SIDES:
        before, after = (found.column(side).chunk(0).buffers() for found in (table, adapted))
        assert [buffer and buffer.address for buffer in before] == [buffer and buffer.address for buffer in after]
    untitled = pa.compute.struct_field(pa.compute.list_flatten(table.column("negative_passages")), 2)
    names = {"query": "question", SIDES[0]: "positive_ctxs", SIDES[1]: "hard_negative_ctxs"}
    foreign = table.rename_columns([names.get(name, name) for name in table.column_names])
    moved = pa.compute.struct_field(pa.compute.list_flatten(arhn.adapt(foreign).column("negative_passages")), 2)
    assert untitled.chunk(0).buffers()[2].address == moved.chunk(0).buffers()[2].address


def test_a_table_beyond_the_most_bytes_is_adapted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts come back in their order, and a docid does not depend on them."""
    rows = [{"query": f"q{number}", "pos": [f"yes {number}"], "neg": [NO, ALSO_NO]} for number in range(7)]
    monkeypatch.setattr(stage, "MOST_BYTES", 150)

    adapted = arhn.adapt(pa.Table.from_pylist(rows))

    assert [adapt_row(row) for row in rows] == adapted.to_pylist() == arhn.adapt(adapted).to_pylist()
    assert list(Dataset.from_list(rows).map(arhn.adapt, batched=True)) == adapted.to_pylist()
    assert adapt_dataset(Dataset.from_list(rows)).to_list() == adapted.to_pylist()
    with pytest.raises(SchemaError, match="row 5, counted from 0"):
        adapt_dataset(Dataset.from_list([*rows[:5], {**rows[5], "neg": rows[5]["pos"]}, rows[6]]))


def test_a_table_without_rows_has_the_typed_columns() -> None:
    """No rows of any form give the canonical columns of no rows."""
    for form, columns in ROWS_OF.items():
        types = {**dict.fromkeys(columns, pa.string()), **SCHEMAS[form]}
        adapted = arhn.adapt(pa.schema([(name, types[name]) for name in columns]).empty_table())
        assert adapted.num_rows == 0
        assert pa.types.is_list(adapted.schema.field("negative_passages").type)
    assert arhn.adapt({"query": [], "pos": [], "neg": []})["positive_passages"] == []


@pytest.mark.parametrize(
    "type",
    [pa.list_(pa.string(), 2), pa.list_(pa.dictionary(pa.int32(), pa.string()))],
    ids=["lists of a fixed length", "dictionaries"],
)
def test_other_types_of_arrow_are_read_value_by_value(type: pa.DataType) -> None:
    """What is a list of texts in Python is one in whatever type Arrow stores it."""
    row = {**FLAG, "neg": [NO, ALSO_NO]}
    table = pa.Table.from_pylist([row]).select(["query", "pos"]).append_column("neg", pa.array([row["neg"]], type))

    assert arhn.adapt(table).to_pylist() == [adapt_row(row)]


def coded(type: pa.DataType) -> pa.DataType:
    """The type with the strings in lists of structs as dictionaries."""
    fields = [(field.name, pa.dictionary(pa.int32(), pa.string())) for field in type.value_type]
    return pa.list_(pa.struct([*fields, ("score", pa.float64())]))


def test_passages_of_other_types_and_of_nulls_are_read_one_by_one() -> None:
    """Dictionaries are read; a null in place of a passage is none, in a list of structs as among Python objects."""
    row = canonical()
    table = pa.Table.from_pylist([row])
    arrays = [
        pa.array([[{**found, "score": 0.5} for found in row[side]]], coded(table.field(side).type)) for side in SIDES
    ]
    other = table.select(["query_id", "query"])
    for side, array in zip(SIDES, arrays, strict=True):
        other = other.append_column(side, array)
    scored = {side: [{**found, "score": 0.5} for found in row[side]] for side in SIDES}

    assert arhn.adapt(other).to_pylist() == [{**row, **scored}]
    with_null = [row["negative_passages"][0], None, *row["negative_passages"][1:]]
    assert arhn.adapt(pa.Table.from_pylist([{**row, "negative_passages": with_null}])).to_pylist() == [row]
    assert adapt_row({**row, "negative_passages": with_null}) == row
    broken = {**row["negative_passages"][0], "text": None}
    with pytest.raises(SchemaError, match="'negative_passages' holds null"):
        arhn.adapt(pa.Table.from_pylist([{**row, "negative_passages": [*row["negative_passages"], broken]}]))


def test_a_field_of_one_side_is_null_on_the_other() -> None:
    """In Arrow the passages of both sides have one type."""
    table = pa.Table.from_pylist([canonical(positive_passages=[passage(YES, "d1", score=0.5)])])

    adapted = arhn.adapt(table)

    assert [found["score"] for found in adapted["negative_passages"][0].as_py()] == [None, None]
    assert adapted.schema.field("positive_passages").type == adapted.schema.field("negative_passages").type


def test_ids_as_whole_floats_are_integers() -> None:
    """What pandas makes of integers with gaps; any other float is refused."""
    ids = pa.array([1.0, None])
    table = pa.Table.from_pylist([FLAG, FLAG]).append_column("query_id", ids)

    assert arhn.adapt(table)["query_id"].to_pylist() == ["1", stable_query_id(QUERY)]
    with pytest.raises(SchemaError, match="'query_id' holds a float"):
        arhn.adapt(table.set_column(3, "query_id", pa.array([1.0, 1.5])))
