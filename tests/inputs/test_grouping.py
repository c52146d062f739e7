"""The rows of one anchor become one row."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset
from tests.inputs import rowwise
from tests.inputs.lighthouses import (
    ALSO_NO,
    NO,
    QUERY,
    TRIPLET,
    YES,
    Row,
    outcome,
    sides,
    texts,
    words,
)

ANCHORED = [
    {"anchor": QUERY, "positive": YES, "negative": NO, "lang": "en"},
    {"anchor": "who feeds the gulls", "positive": "Tourists do.", "negative": NO, "lang": "en"},
    {"anchor": QUERY, "positive": YES, "negative": ALSO_NO, "lang": "en"},
    {"anchor": QUERY, "positive": "So that sailors know where they are.", "negative": NO, "lang": "en"},
]


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_rows_of_one_anchor_become_one(make: Callable[[list[Row]], Any]) -> None:
    """In the order of first appearance, with positives and negatives united and each passage once."""
    adapted = adapt_dataset(make(ANCHORED))

    assert adapted["query"][:] == [QUERY, "who feeds the gulls"]
    assert texts(adapted[0]["positive_passages"]) == [YES, "So that sailors know where they are."]
    assert texts(adapted[0]["negative_passages"]) == [NO, ALSO_NO]
    assert adapted["lang"][:] == ["en", "en"]


def test_system_messages_keep_queries_apart() -> None:
    """A row each, as no column of the source could be left out; rows of one system message become one."""
    row = {"messages": [{"role": "user", "content": QUERY}], "positive_messages": [YES]}
    told = {**row, "messages": [{"role": "system", "content": "Find it."}, *row["messages"]]}
    rows = [{**told, "negative_messages": [NO]}, {**row, "negative_messages": [NO]}]
    found = adapt_dataset([*rows, {**told, "negative_messages": [ALSO_NO]}])
    assert [(one["prompt"], texts(one["negative_passages"])) for one in found] == [
        ("Find it.", [NO, ALSO_NO]),
        (None, [NO]),
    ]


def test_query_id_and_subset_keep_anchors_apart() -> None:
    """The same words in two subsets, or under two ids, are two queries."""
    rows = [{**TRIPLET, "query_id": 1, "subset": "a"}, {**TRIPLET, "query_id": 1, "subset": "b"}]

    assert adapt_dataset(Dataset.from_list(rows))["subset"][:] == ["a", "b"]
    assert adapt_dataset([{**TRIPLET, "query_id": 1}, {**TRIPLET, "query_id": 2}])["query_id"][:] == ["1", "2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"anchor": QUERY, "positive": NO, "negative": ALSO_NO},
            "row 1, counted from 0.: beside the 1 rows of its query before it, the passage .*cottage",
        ),
        (
            {**TRIPLET, "negative": ALSO_NO, "lang": "de"},
            "'lang'.* differ between rows of one query.*why do lighthouses blink.*--drop-columns lang",
        ),
        ({**TRIPLET, "negative": ALSO_NO, "tags": ["sea", "night"]}, "'tags'.* differ between rows of one query"),
        ({**TRIPLET, "anchor": None}, "'anchor' holds null"),
    ],
)
def test_rows_of_an_anchor_that_contradict_each_other_are_refused(second: Row, message: str) -> None:
    """A passage on both sides of the grouped row, or a column with two values, has no right reading."""
    with pytest.raises(SchemaError, match=message):
        adapt_dataset(Dataset.from_list([{"lang": "en", "tags": ["sea"], **row} for row in (TRIPLET, second)]))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(words, sides, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_exploded_triplets_are_grouped_back(rows: dict[str, tuple[list[str], list[str]]], random: Random) -> None:
    """All (positive, negative) pairs of a query, in any order, hold the row that they came from."""
    exploded = [
        {"anchor": query, "positive": positive, "negative": negative}
        for query, (positives, negatives) in rows.items()
        for positive in positives
        for negative in negatives
    ]
    random.shuffle(exploded)

    for ds in (exploded, Dataset.from_list(exploded)):
        adapted = adapt_dataset(ds)
        found = {
            row["query"]: (sorted(texts(row["positive_passages"])), sorted(texts(row["negative_passages"])))
            for row in adapted
        }
        assert list(dict.fromkeys(row["anchor"] for row in exploded)) == list(adapted["query"])
        assert {query: (sorted(pos), sorted(neg)) for query, (pos, neg) in rows.items()} == found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "query": st.sampled_from(["a", "b"]),
                "positive": st.sampled_from(["p", "q"]),
                "negative": st.sampled_from(["m", "n", "p"]),
                "subset": st.sampled_from(["s", None]),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_grouped_rows_are_the_rows_united_one_by_one(rows: list[Row]) -> None:
    """Groups in the order of their first rows, passages in the order of the rows; or both refuse."""
    expected = outcome(lambda: rowwise.grouped(rows))
    found = outcome(lambda: adapt_dataset(rows).to_list())

    assert isinstance(expected, str) == isinstance(found, str)
    if not isinstance(expected, str):
        assert found == expected
