"""The way back: rows as they were, whatever a rule has done."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.records import EVIDENCE_TYPES
from arhn_datasets.rules.rule import ADDED
from tests.rules.test_arhn import EVIDENCE, G, dataset_of, options, random_rows, row_of, rows


@settings(deadline=None)
@given(rows, options)
def test_revert_restores_the_row(row, options):
    """Reverting gives the row with its evidence; without evidence the source row; both bit for bit."""
    result = options(row)
    kept = copy.deepcopy(result)
    assert arhn.revert(result) == row
    assert arhn.Revert(keep_evidence=False)(result) == {c: v for c, v in row.items() if c not in EVIDENCE}
    assert result == kept


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_a_reverted_dataset_is_the_dataset_before(batched, keep):
    """Through `Dataset.map` the added columns are gone, and rows and features are those before."""
    before = dataset_of(random_rows())
    after = before.map(arhn.relabel, batched=batched).map(arhn.Revert(keep_evidence=keep), batched=batched)
    expected = before if keep else before.remove_columns(list(EVIDENCE))
    assert sorted(after.column_names) == sorted(expected.column_names)
    assert not set(ADDED) & set(after.column_names)
    assert list(after) == list(expected)
    assert after.select_columns(expected.column_names).features.arrow_schema == expected.features.arrow_schema


def reverted_by_hand(rows, batched=True):
    """Reverted in a function of the user's, whose result `datasets` lays over the columns that are there."""
    return rows.map(lambda batch: arhn.revert(batch), batched=batched)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("transform", [arhn.relabel, arhn.revert])
def test_columns_left_from_before_a_revert_are_named_as_such(transform, batched):
    """The message names the function around arhn.revert, and what it advises works."""
    relabelled = dataset_of(random_rows()).map(arhn.relabel)
    left = reverted_by_hand(relabelled, batched)
    with pytest.raises(SchemaError, match=r"'positive_origins' has \d+ values.*map arhn\.revert itself") as raised:
        left.map(transform, batched=batched)
    assert "ds.remove_columns(arhn.revert.dropped(ds.column_names))" in str(raised.value)
    whole = left.remove_columns(arhn.revert.dropped(left.column_names))
    assert list(whole) == list(relabelled.map(arhn.revert))


@pytest.mark.parametrize("value", ["no", 0, None])
def test_whether_to_keep_evidence_is_yes_or_no(value):
    """A word that is true to Python keeps nothing that was not asked for."""
    with pytest.raises(ConfigurationError, match=f"keep_evidence is {value!r}; True or False was expected"):
        arhn.Revert(keep_evidence=value)


@pytest.mark.parametrize("column", ["negative_passages", "filtered_passages"])
def test_passages_that_are_none(column):
    """A null list of passages is refused."""
    row = arhn.relabel(row_of([G], [G])) | {column: None}
    with pytest.raises(SchemaError, match=f"'{column}' holds nothing"):
        arhn.revert(row)


@pytest.mark.parametrize(
    "column", [column for column in ADDED if column in EVIDENCE_TYPES and column != "filtered_ranks"]
)
def test_part_of_what_relabelling_wrote_is_refused(column):
    """Without one of its columns a relabelled row can neither be reverted nor relabelled: passages would be lost."""
    row = arhn.Relabel(min_negatives=0)(row_of([G], [("grounded", 3), ("grounded", 1)]))
    del row[column]
    for transform in (arhn.relabel, arhn.revert):
        with pytest.raises(SchemaError, match=column):
            transform(row)


def test_revert_of_rows_that_were_not_relabelled():
    """The message says what can be reverted."""
    with pytest.raises(SchemaError, match="Only rows that arhn.relabel has written"):
        arhn.revert(row_of([G], [G]))
