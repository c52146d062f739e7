"""Every rule over columns is the rule row by row, whatever form the rows come in."""

from __future__ import annotations

import copy
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.rows import stage as transform
from arhn_datasets.rows.records import (
    ALL_EVIDENCE_TYPES,
    PASSAGE_TYPE,
)
from tests.conftest import snippet
from tests.rules.drawn import LISTS, cases
from tests.rules.oracle import relabelled, reverted


def table_of(rows, *, large=False):
    """Rows as a table with the types of the stages, or with large lists and strings."""
    passages = pa.list_(PASSAGE_TYPE)
    types = {"query_id": pa.string(), "query": pa.string(), "other": pa.int64()}
    types |= {f"{label}_passages": passages for label in LISTS if f"{label}_passages" in rows[0]}
    types |= {c: type for c, type in ALL_EVIDENCE_TYPES.items() if c in rows[0] and c not in types}
    schema = pa.schema([(column, larger(type) if large else type) for column, type in types.items()])
    return pa.Table.from_pylist(rows, schema)


def larger(type):
    """A type with 64-bit offsets all the way down."""
    if pa.types.is_string(type):
        return pa.large_string()
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(larger(field.type)) for field in type])
    return pa.large_list(larger(type.value_type)) if pa.types.is_list(type) else type


def viewed(table):
    """A table whose lists are views, in another order than their values."""
    for at, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            lists = table.column(at).combine_chunks()
            order = list(range(len(lists)))[::-1]
            turned = lists.take(pa.array(order, pa.int64()))
            sizes = pc.fill_null(pc.list_value_length(turned), 0).to_pylist()
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            column = pa.ListViewArray.from_arrays(
                pa.array([starts[i] for i in order], pa.int32()),
                pa.array([sizes[i] for i in order], pa.int32()),
                turned.flatten(),
                mask=pc.is_null(lists),
            )
            table = table.set_column(at, field.name, column)
    return table


def split(table):
    """A table in chunks of one and more rows, some of them empty."""
    return pa.concat_tables([table.slice(0, 1), table.slice(0, 0), table.slice(1, 1), table.slice(2)])


def inside(table):
    """A table that is a part of a longer one."""
    return pa.concat_tables([table, table, table]).combine_chunks().slice(table.num_rows, table.num_rows)


def batched(rows):
    """Rows as a dict of lists."""
    return {column: [row[column] for row in rows] for column in rows[0]}


def unbatched(batch):
    """A dict of lists as rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


FORMS = {
    "row": lambda t, rows: [t(row) for row in rows],
    "batch": lambda t, rows: unbatched(t(batched(rows))),
    "table": lambda t, rows: t(table_of(rows)).to_pylist(),
    "chunks": lambda t, rows: t(split(table_of(rows))).to_pylist(),
    "slice": lambda t, rows: t(inside(table_of(rows))).to_pylist(),
    "large": lambda t, rows: t(table_of(rows, large=True)).to_pylist(),
}
if tuple(map(int, pa.__version__.split(".")[:2])) >= (20, 0):  # older ones do not know the size of a view
    FORMS["views"] = lambda t, rows: t(viewed(table_of(rows))).to_pylist()


def same_rows(rows, others):
    """Equal rows, whatever the order of their columns; NaN equals itself."""
    return all(repr(sorted(a.items())) == repr(sorted(b.items())) for a, b in zip(rows, others, strict=True))


@settings(max_examples=100, deadline=None)
@given(cases(most=5, one_side=True), st.sampled_from(list(FORMS)))
def test_every_form_of_rows_gives_what_the_rule_gives_row_by_row(case, form):
    """Rows, batches and tables: relabelled, relabelled again, mixed with others and reverted as plain Python does."""
    rule, rows, _ = case
    before = copy.deepcopy(rows)
    expected = [relabelled(row, rule) for row in rows]
    # Some rows of a dataset were relabelled, those that were concatenated to them were not.
    added = {column: None for column in expected[0] if column not in rows[0]}
    mixed = [row if i % 2 else {**source, **added} for i, (row, source) in enumerate(zip(expected, rows, strict=True))]
    back = [reverted(row) for row in expected]
    bare = [reverted(row, keep_evidence=False) for row in expected]
    mixed_back = [reverted(row) for row in mixed]
    call = FORMS[form]
    assert same_rows(call(rule, rows), expected)
    assert same_rows(call(rule, expected), expected)
    assert same_rows(call(rule, mixed), expected)
    assert same_rows(call(arhn.revert, expected), back)
    assert same_rows(call(arhn.Revert(keep_evidence=False), expected), bare)
    assert same_rows(call(arhn.revert, mixed), mixed_back)
    assert same_rows(rows, before)


@settings(max_examples=30, deadline=None)
@given(cases(most=5, one_side=True))
def test_no_passage_is_lost_in_any_part_of_a_table(case):
    """However small the parts are that a table is computed in, all rows and passages come out, and go back."""
    rule, rows, _ = case
    table = table_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "MOST_BYTES", 1)
        result = rule(table)
        assert result.column("decision").num_chunks == len(rows)
        back = arhn.revert(result)
    assert same_rows(back.to_pylist(), [reverted(row) for row in result.to_pylist()])
    assert same_rows(result.to_pylist(), rule(table).to_pylist())
    for row, source in zip(result.to_pylist(), rows, strict=True):
        places = [(o["label"], o["position"]) for label in LISTS for o in row[f"{label}_origins"]]
        passages = [passage["docid"] for label in LISTS for passage in row[f"{label}_passages"]]
        assert sorted(places) == [
            (label, i) for label in ("negative", "positive") for i in range(len(source[f"{label}_passages"]))
        ]
        assert [f"{label}{position}" for label, position in places] == passages


# -- tables -----------------------------------------------------------------------------------------------------------


def relabel_row(**columns):
    """A row of which one negative becomes a positive and one leaves."""
    passages = {"positive": ["grounded", 2], "negative": ["grounded", 1]}
    row = {"query_id": "q", "query": "why?", "other": 1}
    for label, (status, rank) in passages.items():
        count = 1 if label == "positive" else 3
        row[f"{label}_passages"] = [{"docid": f"{label}{i}", "title": "", "text": "t"} for i in range(count)]
        row[f"{label}_snippets"] = [snippet(status if i < 2 else "no_answer") for i in range(count)]
        row[f"{label}_ranks"] = [rank + 2 * i for i in range(count)]
    return {**row, **columns}


def test_columns_that_no_rule_touches_are_passed_by_reference():
    """Text that does not move is not copied."""
    table = table_of([relabel_row()])
    result = arhn.relabel(table)
    for column in ("query_id", "query", "other"):
        assert result.column(column).chunk(0).buffers()[1].address == table.column(column).chunk(0).buffers()[1].address


def test_a_table_without_rows_has_all_columns_with_their_types():
    """Of any rule, back and forth."""
    table = table_of([relabel_row()]).slice(0, 0)
    result = arhn.relabel(table)
    assert result.num_rows == 0
    assert result.schema.field("filtered_snippets").type == ALL_EVIDENCE_TYPES["filtered_snippets"]
    assert result.schema == arhn.relabel(table_of([relabel_row()])).schema
    assert arhn.revert(result).schema == table.schema


def test_large_lists_stay_large_and_evidence_has_its_types():
    """Passages keep the kind of their lists and strings."""
    result = arhn.relabel(table_of([relabel_row()], large=True))
    assert result.schema.field("filtered_passages").type == larger(pa.list_(PASSAGE_TYPE))
    for column in ("positive_snippets", "negative_ranks", "filtered_origins"):
        assert result.schema.field(column).type == ALL_EVIDENCE_TYPES[column]


def test_fields_of_evidence_in_another_order_or_missing():
    """Evidence is read by the names of its fields, and written in the order of the stages."""
    row = relabel_row()
    for label in LISTS[:2]:
        row[f"{label}_snippets"] = [
            {"status": held["status"], "snippet": held["snippet"]} for held in row[f"{label}_snippets"]
        ]
    table = pa.Table.from_pylist([row])
    result = arhn.relabel(table)
    assert result.schema.field("positive_snippets").type == ALL_EVIDENCE_TYPES["positive_snippets"]
    assert result.column("decision")[0].as_py()["relabelled"] == 1
    assert result.column("positive_snippets")[0].as_py()[1] == {
        "snippet": "s", "start": None, "end": None, "field": None, "status": "grounded", "detail": None
    }  # fmt: skip


@pytest.mark.parametrize("form", ["row", "batch", "table"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative_snippets": []}, r"'negative_snippets' has 0 values for 3 passages.*'why\?'"),
        ({"positive_snippets": None}, r"'positive_snippets' has 0 values for 1 passages.*'why\?'"),
        ({"negative_passages": None}, r"'negative_passages' holds nothing"),
    ],
)
def test_rows_that_do_not_fit_name_their_query(form, changes, message):
    """The one wrong row among others is told by its query."""
    rows = [relabel_row(query="fine"), relabel_row(**changes), relabel_row(query="fine too")]
    with pytest.raises(SchemaError, match=message):
        FORMS[form](arhn.relabel, rows)


@pytest.mark.parametrize("form", ["row", "batch", "table"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("filtered_passages", None, "'filtered_passages' holds nothing"),
        ("filtered_origins", [], "'filtered_origins' has 0 values for 1 passages"),
        ("negative_origins", [{"label": "filtered", "position": 0}], "names no place in the source"),
        ("negative_origins", [{"label": "negative", "position": None}], "names no place in the source"),
    ],
)
def test_damaged_rows_are_neither_reverted_nor_relabelled(form, column, value, message):
    """A passage whose place is not known would be lost."""
    rows = [arhn.relabel(relabel_row()) | changes for changes in ({}, {column: value})]
    for stage in (arhn.revert, arhn.relabel):
        with pytest.raises(SchemaError, match=message):
            FORMS[form](stage, rows)


def test_a_column_of_passages_that_is_no_list():
    """The message names the type and the way out."""
    with pytest.raises(SchemaError, match="'positive_passages' holds str"):
        arhn.relabel(relabel_row(positive_passages="text"))
    table = table_of([relabel_row()])
    passages, ranks = (table.schema.get_field_index(f"negative_{kind}") for kind in ("passages", "ranks"))
    with pytest.raises(SchemaError, match="'negative_ranks' holds string; a list was expected"):
        arhn.relabel(table.set_column(ranks, "negative_ranks", pa.array(["a"])))
    with pytest.raises(SchemaError, match="'negative_passages' holds string; a list was expected"):
        arhn.relabel(table.set_column(passages, "negative_passages", pa.array(["a"])))


def test_passages_of_python_objects_are_the_same_objects():
    """Whatever a passage of a dict holds, it is moved and not copied or converted."""
    row = relabel_row()
    thing = object()
    row["negative_passages"] = [{"docid": i, "thing": thing} for i in range(3)]
    result = arhn.relabel(row)
    assert result["positive_passages"][1] is row["negative_passages"][0]
    assert result["filtered_snippets"][0] is row["negative_snippets"][1]
    assert arhn.revert(result)["negative_passages"] == row["negative_passages"]


# -- datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_python_values(monkeypatch):
    """No list of Arrow is turned into Python objects, and no rows are computed on Python objects."""

    def refused(*_, **__):
        raise AssertionError("a row was turned into Python objects")

    monkeypatch.setattr(arhn.Relabel, "apply", refused)
    monkeypatch.setattr(arhn.Revert, "apply", refused)
    calls = []

    def watch(frame, event, argument):
        if event == "c_call" and argument.__name__ in ("to_pylist", "as_py", "to_pydict"):
            calls.append(type(getattr(argument, "__self__", None)).__name__)

    sys.setprofile(watch)
    yield calls
    sys.setprofile(None)


@pytest.mark.parametrize("way", ["batched", "arrow batches", "arrow rows", "stream"])
def test_maps_stay_in_arrow(way, no_python_values):
    """Through `Dataset.map` no passage becomes a Python object, and the result is that of the table."""
    table = table_of([relabel_row(query_id=f"q{i}", other=i) for i in range(40)])
    dataset = Dataset(table)
    expected, reverted = arhn.relabel(table), arhn.revert(arhn.relabel(table))

    def chained(data, **options):
        first = data.map(arhn.relabel, **options)
        return first, first.map(arhn.revert, **options)

    if way == "stream":
        stream = dataset.to_iterable_dataset(num_shards=2).with_format("arrow")
        found = [pa.concat_tables(list(part)) for part in chained(stream, batched=True, batch_size=16)]
    else:
        options = {"batched": True, "batch_size": 16} if "batch" in way else {}
        source = dataset.with_format("arrow") if "arrow" in way else dataset
        found = [part.with_format("arrow")[:] for part in chained(source, **options)]
    assert not [name for name in no_python_values if "List" in name or "Struct" in name or "String" in name]
    for part, wanted in zip(found, (expected, reverted), strict=True):
        assert part.select(wanted.column_names).replace_schema_metadata(None).equals(wanted)


def test_columns_to_remove_are_those_of_the_source():
    """A column that is removed and computed anew is kept, as with any function; the others are gone."""
    dataset = Dataset(table_of([relabel_row()] * 3))
    whole = dataset.map(arhn.relabel, batched=True)
    new = dataset.map(arhn.relabel, batched=True, remove_columns=dataset.column_names)
    assert set(whole.column_names) - set(new.column_names) == {"query_id", "query", "other"}
    assert new[0]["positive_passages"] == whole[0]["positive_passages"]
    assert "other" not in dataset.map(arhn.relabel, batched=True, remove_columns=["other"]).column_names


def test_a_function_around_a_stage_gets_lists():
    """A user's own function may look at the result, change it, and pass on what it has changed before."""
    dataset = Dataset(table_of([relabel_row()] * 3))

    def around(batch):
        result = arhn.relabel(batch)
        result["moved"] = [decision["relabelled"] for decision in result["decision"]]
        return result

    def before(batch):
        batch["negative_ranks"] = [[9, 9, 9] for _ in batch["negative_ranks"]]
        return arhn.relabel(batch)

    found = dataset.map(around, batched=True)
    assert found["moved"][:] == [1, 1, 1]
    assert found.features["filtered_snippets"] == dataset.map(arhn.relabel, batched=True).features["filtered_snippets"]
    changed = dataset.map(before, batched=True)
    assert [row["decision"]["relabelled"] for row in changed] == [0, 0, 0]
    assert changed[0]["filtered_ranks"] == [9, 9]


def test_a_selection_and_a_concatenation_of_a_dataset():
    """Indices, chunks and several files behind a dataset change nothing."""
    dataset = Dataset(table_of([relabel_row(query_id=f"q{i}", other=i) for i in range(10)]))
    mixed = concatenate_datasets([dataset.select([7, 2, 2]), dataset.select([0])])
    found = mixed.map(arhn.relabel, batched=True, batch_size=3)
    assert found["query_id"][:] == ["q7", "q2", "q2", "q0"]
    assert list(found) == [{**arhn.relabel(row)} for row in mixed]
    stream = IterableDataset.from_generator(lambda: iter(list(mixed)))
    assert list(stream.map(arhn.relabel, batched=True)) == list(found)


@pytest.mark.parametrize("way", ["rows", "batches", "arrow"])
def test_is_kept_in_every_form(way):
    """`ds.filter(arhn.is_kept)` takes rows, batches and tables."""
    rule = arhn.Relabel(min_negatives=2, on_shortage="drop")
    rows = [relabel_row(), relabel_row(negative_snippets=[snippet("error")] * 3)] * 3
    dataset = Dataset(table_of(rows)).map(rule, batched=True)
    source = dataset.with_format("arrow") if way == "arrow" else dataset
    kept = source.filter(arhn.is_kept, batched=way != "rows").with_format(None)
    assert len(kept) == 3
    assert {row["decision"]["status"] for row in kept} == {"unchanged"}
