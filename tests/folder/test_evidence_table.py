"""Wide rows taken apart into rows and evidence, and put together again, on Arrow alone."""

from __future__ import annotations

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.evidence_table import (
    EVIDENCE_ROW,
    canonical_of,
    evidence_of,
    evidence_schema,
    join_evidence,
    wide_schema,
)
from arhn_datasets.rows.records import EVIDENCE_TYPES, PASSAGE_TYPE
from arhn_datasets.rules.arhn import Relabel
from tests.conftest import snippet

SCORED = pa.struct([*PASSAGE_TYPE, ("score", pa.float64())])
SIDES = ("positive", "negative", "filtered")
RANKS = ("positive_ranks", "negative_ranks", "filtered_ranks")
texts = st.text(st.characters(codec="utf-8"), max_size=6)


@st.composite
def relabelled(draw):
    """Rows as the stages leave them: any lists, rank lists that may be null, any policy."""
    rows = []
    extra = draw(st.booleans())
    for number in range(draw(st.integers(0, 5))):
        ranked = draw(st.booleans())
        row = {"query_id": f"q{number}", "query": draw(texts), "note": number}
        for side in ("positive", "negative"):
            size = draw(st.integers(0, 4))
            passages = [{"docid": f"{side[0]}{i}", "title": draw(texts), "text": draw(texts)} for i in range(size)]
            row[f"{side}_passages"] = [{**p, "score": draw(st.none() | st.just(0.5))} if extra else p for p in passages]
            statuses = st.sampled_from(["grounded", "no_answer", "error"])
            row[f"{side}_snippets"] = [snippet(draw(statuses), text="s") for _ in range(size)]
            ranks = st.lists(st.none() | st.integers(1, 9), min_size=size, max_size=size)
            row[f"{side}_ranks"] = draw(ranks) if ranked else None
        row["ranking"] = {"status": "ranked", "candidates": 2, "permutations": 1, "agreement": None, "detail": None}
        row["ranking"] = row["ranking"] if ranked else None
        policy = draw(st.sampled_from(["relabel", "filter", "relabel+filter"]))
        row = Relabel(policy=policy, min_negatives=draw(st.integers(0, 1)))(row)
        rows.append(row)
    subset = draw(st.booleans())
    return table_of_rows([{**row, **({"subset": "s"} if subset else {})} for row in rows], subset, extra)


def table_of_rows(rows, subset=False, extra=False):
    """Wide rows with the types of the stages."""
    passages = pa.list_(SCORED if extra else PASSAGE_TYPE)
    types = {"query_id": pa.string(), "query": pa.string(), "positive_passages": passages}
    types |= {"negative_passages": passages, "note": pa.int16(), **({"subset": pa.string()} if subset else {})}
    types |= {**EVIDENCE_TYPES, "filtered_passages": passages}
    return pa.Table.from_pylist(rows, pa.schema(list(types.items())))


def naive_evidence(rows, first):
    """The same rows of evidence, written down in plain Python."""
    found = []
    for number, row in enumerate(rows, first):
        decision, ranking = row["decision"], row.get("ranking") or {}
        common = {"row": number, "query_id": row["query_id"], "subset": row.get("subset")}
        common |= {f"ranking_{name}": ranking.get(name) for name in ("status", "detail")}
        common |= {name: ranking.get(name) for name in ("candidates", "permutations", "agreement")}
        common |= {"row_status": decision["status"], "row_detail": decision["detail"]}
        common |= {name: decision[name] for name in ("policy", "reference")}
        of_row = []
        for side in SIDES:
            for at, passage in enumerate(row[f"{side}_passages"]):
                evidence, origin = row[f"{side}_snippets"][at], row[f"{side}_origins"][at]
                ranks = row.get(f"{side}_ranks")
                of_row.append(
                    {
                        **{"docid": passage["docid"], "label": side, "rank": ranks[at] if ranks else None},
                        **{"origin": origin["label"], "position": origin["position"]},
                        **{name: evidence[name] for name in ("snippet", "start", "end", "field")},
                        **{f"snippet_{name}": evidence[name] for name in ("status", "detail")},
                        "passage": passage if side == "filtered" else None,
                    }
                )
        found += [{**common, **one} for one in of_row or [{}]]
    return [{name: row.get(name) for name in (*EVIDENCE_ROW.names, "passage")} for row in found]


def large(type):
    """A type with 64-bit offsets throughout."""
    if pa.types.is_list(type):
        return pa.large_list(large(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(field.name, large(field.type)) for field in type])
    return pa.large_string() if pa.types.is_string(type) else type


def in_other_buffers(table, kind):
    """The same values in another memory layout."""
    if kind == "sliced":
        return pa.concat_tables([table, table, table]).combine_chunks().slice(table.num_rows, table.num_rows)
    if kind == "chunked":
        return pa.concat_tables([table.slice(i, 1) for i in range(table.num_rows)]) if table.num_rows else table
    if kind == "large":
        return table.cast(pa.schema([(field.name, large(field.type)) for field in table.schema]))
    return table


@settings(max_examples=150, deadline=None)
@given(relabelled(), st.sampled_from(["plain", "sliced", "chunked", "large"]), st.integers(0, 3))
def test_evidence_is_what_plain_python_says_and_joins_to_the_rows(table, kind, first):
    """Any rows in any memory layout: equal to a naive version, and the join gives the wide rows back."""
    rows = table.to_pylist()
    wide = in_other_buffers(table, kind)
    evidence = evidence_of(wide, first)
    passage = wide.schema.field("filtered_passages").type.value_type
    assert evidence.schema.equals(evidence_schema(passage))
    assert evidence.to_pylist() == naive_evidence(rows, first)
    canonical = canonical_of(wide)
    assert EVIDENCE_TYPES.keys().isdisjoint(canonical.column_names)
    joined = join_evidence(canonical, in_other_buffers(evidence, "chunked" if kind == "chunked" else "sliced"))
    assert joined.schema.equals(wide_schema(canonical.schema))
    assert joined.select(table.column_names).to_pylist() == rows


@settings(max_examples=50, deadline=None)
@given(relabelled())
def test_without_ranks_the_rest_is_the_same(table):
    """A policy that needs no ranks leaves no rank columns: they come back as nulls."""
    bare = table.drop_columns([*RANKS, "ranking"])
    joined = join_evidence(canonical_of(bare), evidence_of(bare))
    assert joined.select(bare.column_names).to_pylist() == bare.to_pylist()
    for column in (*RANKS, "ranking"):
        assert joined.column(column).null_count == table.num_rows


@settings(max_examples=50, deadline=None)
@given(relabelled())
def test_reverting_the_joined_rows_restores_the_source(table):
    """Columns, order and values are those from before."""
    joined = join_evidence(canonical_of(table), evidence_of(table))
    revert = arhn.revert.with_options(keep_evidence=False)
    before, after = revert(table), revert(joined)
    assert after.column_names == before.column_names
    assert after.to_pylist() == before.to_pylist()


@pytest.fixture
def wide(sample):
    """The sample as a dataset of wide rows, with a class as another column."""
    dataset = Dataset.from_list(sample).add_column("kind", [i % 2 for i in range(len(sample))])
    dataset = dataset.cast_column("kind", ClassLabel(names=["a", "b"]))
    lexical = arhn.Lexical.fitted(sample)
    for stage in (arhn.Snippets(annotator=lexical), arhn.Ranks(annotator=lexical), arhn.Relabel()):
        dataset = dataset.map(stage, batched=True)
    return dataset


def apart(wide):
    """Its two published configurations."""
    table = wide.with_format("arrow")[:]
    evidence = Dataset(evidence_of(table))
    return wide.remove_columns([c for c in wide.column_names if c in EVIDENCE_TYPES]), evidence


def test_with_evidence_gives_a_dataset_that_the_stages_take(wide, sample):
    """Revert gives the source rows, another policy the rows of that policy; features and types are kept."""
    default, evidence = apart(wide)
    joined = arhn.with_evidence(default, evidence)
    assert joined.features == wide.features
    assert list(joined) == list(wide)
    restored = joined.map(arhn.revert.with_options(keep_evidence=False), batched=True).remove_columns("kind")
    assert list(restored) == sample
    other = arhn.Relabel(policy="filter")
    assert list(joined.map(other, batched=True)) == list(wide.map(other, batched=True))
    both = arhn.with_evidence(DatasetDict(train=default, test=default), DatasetDict(train=evidence, test=evidence))
    assert list(both["test"]) == list(wide)
    assert len(arhn.with_evidence(default.select([]), evidence)) == 0
    assert arhn.with_evidence(default.select([]), evidence).features == wide.features


def test_rows_that_a_guard_dropped_continue_the_numbers(wide):
    """The evidence of more rows than there are is left alone; default and dropped together take all of it."""
    default, evidence = apart(wide)
    first, second = default.select(range(60)), default.select(range(60, len(default)))
    assert list(arhn.with_evidence(first, evidence)) == list(wide)[:60]
    assert list(arhn.with_evidence(concatenate_datasets([first, second]), evidence)) == list(wide)
    with pytest.raises(SchemaError, match="query_id"):
        arhn.with_evidence(second, evidence)


def test_what_does_not_fit_is_named(wide):
    """Shuffled rows, another revision, missing columns and streams: which row or docid, and what to do."""
    default, evidence = apart(wide)
    with pytest.raises(SchemaError, match="evidence of row 0 is of query_id.*before you select or shuffle"):
        arhn.with_evidence(default.select([1, 0]), evidence)
    with pytest.raises(SchemaError, match="no evidence|no such row"):
        arhn.with_evidence(concatenate_datasets([default, default]), evidence)
    with pytest.raises(SchemaError, match="evidence lacks the columns.*'passage'"):
        arhn.with_evidence(default, evidence.remove_columns("passage"))
    with pytest.raises(SchemaError, match="arhn.adapt_dataset"):
        arhn.with_evidence(default.remove_columns("query"), evidence)
    with pytest.raises(ConfigurationError, match="without streaming"):
        arhn.with_evidence(default.to_iterable_dataset(), evidence)
    with pytest.raises(ConfigurationError, match="no split \\['test'\\]"):
        arhn.with_evidence(DatasetDict(test=default), DatasetDict(train=evidence))
    table, rows = canonical_of(wide.with_format("arrow")[:]), evidence.to_list()
    remade = [*rows[:1], {**rows[1], "docid": "another"}, *rows[2:]]
    with pytest.raises(SchemaError, match="'another'"):
        join_evidence(table, pa.Table.from_pylist(remade, evidence.data.table.schema))
    for broken, message in (
        ([*rows[:2], *rows[3:]], "passages in"),
        ([*rows[:-2], rows[-1], rows[-2]], "label|docid"),
        ([rows[-1], *rows[:-1]], "stands behind|no such row"),
        ([{**row, "row_status": None} for row in rows], "row_status"),
        ([{**row, "label": "other"} for row in rows], "'other'"),
        (rows[len([r for r in rows if r["row"] == 0]) :], "query_id|no evidence"),
    ):
        with pytest.raises(SchemaError, match=message):
            join_evidence(table, pa.Table.from_pylist(broken, evidence.data.table.schema))


def test_rows_that_cannot_be_taken_apart(wide):
    """Rows before relabelling, rows with a null decision, lists of different lengths."""
    table = wide.with_format("arrow")[:]
    with pytest.raises(SchemaError, match="arhn.relabel has written"):
        evidence_of(canonical_of(table))
    rows = wide.to_list()[:2]
    rows[1]["decision"] = None
    with pytest.raises(SchemaError, match="never relabelled"):
        evidence_of(table_of_rows([{**row, "note": 0} for row in rows]))
    rows = wide.to_list()[:2]
    rows[1]["negative_snippets"] = rows[1]["negative_snippets"][1:]
    with pytest.raises(SchemaError, match=r"Row 1 .*'negative_snippets'"):
        evidence_of(table_of_rows([{**row, "note": 0} for row in rows]))
