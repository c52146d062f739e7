"""What every rule shares: nothing is lost, all can be undone, and guards keep rows that trainers could not take."""

from __future__ import annotations

import copy
from collections import Counter

import pyarrow as pa
import pytest
from datasets import concatenate_datasets
from hypothesis import given, settings

import arhn_datasets as arhn
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES
from arhn_datasets.rules.rule import known_rules
from tests.rules.drawn import LISTS, cases
from tests.rules.test_arhn import dataset_of, random_rows


def same(one, other):
    """Equal, where NaN equals itself."""
    return repr(one) == repr(other)


def moved(row):
    """Of each list, the places in the source that its passages came from."""
    return {label: [(o["label"], o["position"]) for o in row[f"{label}_origins"]] for label in LISTS}


@settings(max_examples=200, deadline=None)
@given(cases())
def test_nothing_is_lost_and_revert_restores_the_row(case):
    """Every rule: each passage once with all evidence on it, and back bit for bit, with and without the evidence."""
    rule, (row,), kinds = case
    before = copy.deepcopy(row)
    result = rule(row)
    assert same(row, before)
    places = Counter(origin for label in LISTS for origin in moved(result)[label])
    assert places == Counter((label, i) for label in LISTS[:2] for i in range(len(row[f"{label}_passages"])))
    for label in LISTS:
        for kind in ("passages", *kinds):
            if row[f"positive_{kind}"] is None:
                assert result[f"{label}_{kind}"] is None
            else:
                expected = [row[f"{side}_{kind}"][position] for side, position in moved(result)[label]]
                assert same(result[f"{label}_{kind}"], expected)
    back = arhn.revert(result)
    assert back.keys() == row.keys()
    assert all(same(back[column], row[column]) for column in row)
    bare = arhn.Revert(keep_evidence=False)(result)
    assert same({c: bare[c] for c in sorted(bare)}, {c: row[c] for c in sorted(row) if c not in ALL_EVIDENCE_TYPES})
    assert same(rule(result), result)
    decision = result["decision"]
    assert decision["policy"] == rule.label
    if decision["status"] in ("guarded", "dropped"):
        assert decision["detail"]
        assert moved(result)["filtered"] == []
    assert decision["filtered"] == len(result["filtered_passages"])


@settings(max_examples=100, deadline=None)
@given(cases(), cases())
def test_a_rule_after_another_is_the_rule_alone(one, other):
    """What was decided before by any rule does not show in the result of the next."""
    (first, (row,), kinds), (second, _, _) = one, other
    if set(second.evidence_kinds) <= set(kinds) and "snippets" not in second.evidence_kinds:
        assert same(sorted(second(first(row)).items()), sorted(second(row).items()))


@pytest.mark.parametrize("rule", known_rules().values(), ids=lambda rule: rule.__name__)
def test_a_row_that_cannot_be_trained_on_is_dropped_by_default(rule):
    """Every rule; what was left as it came would be the worst rows of a set."""
    assert rule().on_shortage == "drop"


@settings(max_examples=200, deadline=None)
@given(cases(most=4))
def test_kept_and_dropped_rows_are_the_source(case):
    """No kept row has fewer negatives than asked for, a dropped one is as it came, and all go back to the source."""
    rule, rows, _ = case
    results = [rule.with_options(on_shortage="drop")(row) for row in rows]
    for result, row in zip(results, rows, strict=True):
        if arhn.is_kept(result) and result["decision"]["status"] != "guarded":
            assert len(result["negative_passages"]) >= rule.min_negatives
        elif not arhn.is_kept(result):
            assert [result[f"{side}_passages"] for side in LISTS] == [
                row["positive_passages"],
                row["negative_passages"],
                [],
            ]
    parts = [[one for one in results if bool(arhn.is_kept(one)) is kept] for kept in (True, False)]
    back = sorted((arhn.revert(row) for part in parts for row in part), key=lambda row: row["other"])
    assert all(same(one[column], row[column]) for one, row in zip(back, rows, strict=True) for column in row)


def test_is_kept_filters_what_a_guard_dropped():
    """`ds.filter(arhn.is_kept)` leaves rows with enough negatives."""
    dataset = dataset_of(random_rows()).map(arhn.Relabel(min_negatives=2, on_shortage="drop"))
    kept = dataset.filter(arhn.is_kept)
    assert 0 < len(kept) < len(dataset)
    assert all(len(row["negative_passages"]) >= 2 for row in kept)
    assert {row["decision"]["status"] for row in kept} <= {"changed", "unchanged"}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("format", [None, "arrow", "numpy", "pandas"])
def test_is_kept_takes_rows_without_a_decision(format, batched):
    """Rows of before any rule, and rows whose decision is null, stand in every form; none of them is dropped."""
    if format == "arrow" and not batched:
        return  # datasets has no such filter: it wants mappings
    source = dataset_of(random_rows(6))

    def formatted(rows):  # ragged lists have no form in numpy for every version of datasets
        columns = [column for column in ("query", "decision") if column in rows.column_names]
        return rows.select_columns(columns).with_format(format)

    assert len(formatted(source).filter(arhn.is_kept, batched=batched)) == 6
    decided = source.map(arhn.Relabel(min_negatives=2, on_shortage="drop"))
    kept = len(decided.filter(arhn.is_kept))
    assert 0 < kept < 6
    mixed = concatenate_datasets([decided, source])
    assert len(formatted(mixed).filter(arhn.is_kept, batched=batched)) == kept + 6
    nothing = formatted(source.select([]))
    assert len(nothing.filter(arhn.is_kept, batched=batched)) == 0


def test_is_kept_says_as_many_as_there_are():
    """A list for a batch, an array for a table, one value for a row."""
    batch = {column: [value] * 3 for column, value in random_rows(1)[0].items()}
    assert arhn.is_kept(batch) == [True] * 3
    assert arhn.is_kept(random_rows(1)[0]) is True
    assert arhn.is_kept(pa.table({"query": ["a", "b"]})).equals(pa.array([True, True]))
