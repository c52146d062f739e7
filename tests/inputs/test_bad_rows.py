"""Rows that break their form are all told at once, or set aside, and none is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.inputs.bad_rows import BadRow
from tests.inputs import rowwise
from tests.inputs.lighthouses import FLAG, NO, QUERY, YES, Row, outcome
from tests.inputs.test_columns import PASSED, ROWS_OF

GROUPED = ("n-tuple", "triplet", "lists", "scored tuple")


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["dicts", "dataset"])
@pytest.mark.parametrize("form", [name for name in ROWS_OF if name not in GROUPED])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_comes_in_is_adapted_or_set_aside(
    make: Callable[[list[Row]], Any], form: str, data: st.DataObject
) -> None:
    """Each row is either what it is alone, or bad for the reason that it has alone, under its number."""
    rows = data.draw(st.lists(st.fixed_dictionaries({**ROWS_OF[form], **PASSED}), min_size=1, max_size=6))
    alone = [outcome(lambda row=row: [rowwise.adapted(row)]) for row in rows]
    bad: list[BadRow] = []

    adapted = adapt_dataset(make(rows), on_bad_row=bad.append)

    assert [row.row for row in bad] == [at for at, found in enumerate(alone) if isinstance(found, str)]
    assert all(row.reason in alone[row.row] for row in bad)
    assert len(adapted) + len(bad) == len(rows)
    assert adapted["query"][:] == [found[0]["query"] for found in alone if not isinstance(found, str)]
    if bad:
        with pytest.raises(SchemaError, match=f"{len(bad)} of {len(rows)} rows break their form"):
            adapt_dataset(make(rows))


pairs = st.fixed_dictionaries(
    {
        "query": st.sampled_from(["a", "b", ""]),
        "positive": st.sampled_from(["p", "q", None]),
        "negative": st.sampled_from(["m", "n", "p"]),
    }
)


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["dicts", "dataset"])
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(pairs, min_size=1, max_size=7))
def test_of_a_group_only_the_contradicting_rows_are_set_aside(
    make: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    """The others of their anchor stay, and without the bad rows nothing is refused and the result is the same."""
    bad: list[BadRow] = []

    adapted = adapt_dataset(make(rows), on_bad_row=bad.append)

    numbers = {row.row for row in bad}
    assert len(numbers) == len(bad)
    assert all(row.content == rows[row.row] for row in bad)
    good = [row for at, row in enumerate(rows) if at not in numbers]
    assert sum(len({(row["positive"], row["negative"]) for row in good if row["query"] == q}) > 0 for q in "ab") == len(
        adapted
    )
    if good:
        assert adapt_dataset(good).to_list() == adapted.to_list()
    for row in good:
        [found] = [one for one in adapted if one["query"] == row["query"]]
        assert row["positive"] in [p["text"] for p in found["positive_passages"]]
        assert row["negative"] in [p["text"] for p in found["negative_passages"]]


def test_a_query_without_a_positive_is_set_aside_with_all_its_pairs() -> None:
    """Of labelled pairs none is bad alone; all of a query are that have no positive."""
    rows = [{"query": q, "passage": f"{q} {i}", "label": int(q == "a" and i == 0)} for i in range(2) for q in "ab"]
    bad: list[BadRow] = []

    adapted = adapt_dataset(rows, on_bad_row=bad.append)

    assert adapted["query"][:] == ["a"]
    assert [row.row for row in bad] == [1, 3]
    assert all("no positive" in row.reason for row in bad)


def test_the_first_bad_rows_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The message counts all and shows five; set aside without a place, they are told in a warning."""
    rows = [{**FLAG, "query": f"q{at}", "neg": [YES if at % 2 else NO]} for at in range(16)]

    with pytest.raises(SchemaError, match=r"(?s)^8 of 16 rows.*row 1,.*row 9,.*and 3 more\n.*--on-bad-row set-aside"):
        adapt_dataset(Dataset.from_list(rows))
    assert len(adapt_dataset(rows, on_bad_row="set-aside")) == 8
    assert "8 of 16 rows break their form" in caplog.text
    with pytest.raises(ConfigurationError, match="on_bad_row is 'skip'"):
        adapt_dataset(rows, on_bad_row="skip")


def test_a_cached_result_tells_its_bad_rows_again(tmp_path: Any) -> None:
    """What `map` has kept from an earlier call still knows which rows were bad."""
    Dataset.from_list([FLAG, {**FLAG, "query": " "}]).save_to_disk(str(tmp_path / "rows"))
    for _ in range(2):
        bad: list[BadRow] = []
        adapted = adapt_dataset(Dataset.load_from_disk(str(tmp_path / "rows")), on_bad_row=bad.append)
        assert (len(adapted), [row.row for row in bad]) == (1, [1])


def test_columns_that_number_rows_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning, where rows are grouped; where none is, they stay."""
    rows = [
        {"Unnamed: 0": at, "id": f"x{at}", "anchor": QUERY, "positive": YES, "negative": f"{NO} {at}"} for at in (0, 1)
    ]

    assert set(adapt_dataset(rows).column_names) == {"query_id", "query", "positive_passages", "negative_passages"}
    assert "number rows" in caplog.text
    assert adapt_dataset(rows[:1])["id"][:] == ["x0"]
    both = adapt_dataset({"train": rows, "test": rows[:1]})
    assert both["test"].column_names == both["train"].column_names


@pytest.mark.parametrize("neg", [None, [], [None], [NO, None, NO]])
def test_nulls_among_passages_are_none(neg: list[str | None] | None) -> None:
    """As in the places of n-tuples; and an empty list of scores is none known."""
    row = {**FLAG, "neg": neg, "pos_scores": [], "neg_scores": [] if neg != [NO, None, NO] else [0.5, None, 0.5]}
    for make in (list, Dataset.from_list):
        [found] = adapt_dataset(make([row])).to_list()
        assert [p["text"] for p in found["negative_passages"]] == ([NO] if neg and NO in neg else [])
