"""What stands beside passages travels with them or is refused, and scores are never taken for labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset, adapt_rows
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES
from tests.inputs.lighthouses import ALSO_NO, FLAG, NO, QUERY, TRIPLET, YES, Row, canonical, passage, words

WAYS: dict[str, Callable[[list[Row]], Any]] = {
    "dict": lambda rows: [arhn.adapt(row) for row in rows],
    "rows": lambda rows: adapt_rows(rows),
    "map": lambda rows: Dataset.from_list(rows).map(arhn.adapt, batched=True),
    "map of rows": lambda rows: Dataset.from_list(rows).map(arhn.adapt),
    "table": lambda rows: arhn.adapt(Dataset.from_list(rows).data.table),
    "dataset": lambda rows: adapt_dataset(Dataset.from_list(rows)),
    "dicts": lambda rows: adapt_dataset(rows),
}
BESIDE: dict[str, Row] = {
    "pos_id": {**FLAG, "pos_id": ["p"], "neg_id": ["n"]},
    "ids and titles": {**FLAG, "pos_ids": ["p"], "neg_docids": ["n"], "pos_title": ["T"], "neg_titles": ["U"]},
    "of a triplet": {**TRIPLET, "positive_id": "p", "negative_id": "n", "positive_title": "T", "negative_title": "U"},
    "of a list": {"query": QUERY, "docs": [YES, NO], "labels": [1, 0], "doc_ids": ["p", "n"], "titles": ["T", "U"]},
}


@pytest.mark.parametrize("name", BESIDE)
def test_ids_and_titles_travel_with_their_texts(name: str) -> None:
    """They are docids and titles of the passages, and no columns any more."""
    titled = any("title" in column for column in BESIDE[name])
    for make in (list, Dataset.from_list):
        [row] = adapt_dataset(make([BESIDE[name]])).to_list()
        assert row["positive_passages"] == [passage(YES, "p", "T" if titled else "")]
        assert row["negative_passages"] == [passage(NO, "n", "U" if titled else "")]
        assert set(row) == {"query_id", "query", "positive_passages", "negative_passages"}


@pytest.mark.parametrize(
    "row",
    [
        {**FLAG, "pos": [YES, QUERY], "pos_urls": ["a", "b"]},
        {**FLAG, "neg": [NO, ALSO_NO], "neg_source": ["bm25", "dense"]},
        {**FLAG, "neg": [NO, None, ALSO_NO], "neg_source": ["bm25", "x", "dense"]},
        {**canonical(), "negative_ids": ["a", "b"]},
        {"query": QUERY, "docs": [YES, NO], "labels": [1, 0], "doc_ranks": [1, 2]},
        {**TRIPLET, "negative": [NO, ALSO_NO], "negative_ranks_of_bm25": [1, 2]},
        {**FLAG, "neg": [NO, ALSO_NO], "neg_metadata": [{"from": "bm25"}, {"from": "dense"}]},
        {**FLAG, "neg": [NO, ALSO_NO], "neg_spans": [[0, 4], [2, 9]]},
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_other_lists_beside_passages_are_refused(row: Row, way: str) -> None:
    """By their names and lengths, with both ways out, in every way of calling."""
    with pytest.raises(SchemaError, match=r"one value for each passage.*--drop-columns.*--rename"):
        WAYS[way]([row])


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1))
@settings(max_examples=20, deadline=None)
def test_a_list_of_the_length_of_a_side_in_every_row_is_refused(sizes: list[int]) -> None:
    """Whatever its name is; one that differs somewhere, or that is the query's by its name, passes through."""
    rows = [
        {"query": f"q{at}", "pos": [f"p{at}"], "neg": [f"n{at} {i}" for i in range(size)], "mined": list(range(size))}
        for at, size in enumerate(sizes)
    ]
    with pytest.raises(SchemaError, match="'mined'.* hold a list with one value for each passage"):
        adapt_dataset(rows)
    other = [*rows[:-1], {**rows[-1], "mined": [*rows[-1]["mined"], 9]}]
    assert [row["mined"] for row in adapt_dataset(other)] == [row["mined"] for row in other]
    renamed = [{"query_mined" if name == "mined" else name: value for name, value in row.items()} for row in rows]
    assert [row["query_mined"] for row in adapt_dataset(renamed)] == [row["mined"] for row in rows]


@pytest.mark.parametrize("value", [7, [0.5, 0.25], {"from": "bm25"}], ids=["numbers", "lists", "objects"])
def test_what_is_beside_the_documents_of_a_list_is_refused(value: object) -> None:
    """One value for each of both sides in every row, of any kind; lists of passages of their own pass through."""
    rows = [
        {"query": f"q{size}", "docs": ["p", *(f"n{at}" for at in range(size))], "labels": [1, *[0] * size]}
        for size in (1, 2)
    ]
    with pytest.raises(SchemaError, match="'source url'.*--drop-columns 'source url',"):
        adapt_dataset([{**row, "source url": [value] * len(row["docs"])} for row in rows])
    passages = [[{"text": YES}, {"text": NO}], [{"text": YES}, {"text": NO}, {"text": ALSO_NO}]]
    kept = adapt_dataset([{**row, "easy": own} for row, own in zip(rows, passages, strict=True)])
    assert [row["easy"] for row in kept] == passages


@pytest.mark.parametrize("name", sorted(ALL_EVIDENCE_TYPES))
@pytest.mark.parametrize("form", [FLAG, canonical()], ids=["FlagEmbedding", "canonical"])
def test_a_column_with_the_name_of_ours_is_refused(form: Row, name: str) -> None:
    """In every way of calling, with the rename that mends it, which then is taken."""
    if form is FLAG and name in ("positive_scores", "negative_scores"):
        return  # these stand beside pos and neg, and travel with them
    rows = [{**form, name: "by hand"}]
    for call in WAYS.values():
        with pytest.raises(SchemaError, match=f"'{name}'.* that a run adds.*--rename {name}=source_{name}"):
            call(rows)
    assert adapt_dataset([{**form, f"source_{name}": "by hand"}])[f"source_{name}"][:] == ["by hand"]


@settings(max_examples=40, deadline=None)
@given(
    docs=st.lists(words, min_size=2, max_size=4, unique=True),
    rows=st.integers(1, 3),
    column=st.sampled_from(["labels", "label", "scores", "score"]),
    data=st.data(),
)
def test_scores_are_never_labels(docs: list[str], rows: int, column: str, data: st.DataObject) -> None:
    """A fraction, a negative number or a large one anywhere refuses all, whatever stands in the other rows."""
    count = len(docs)
    labels = [data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count)) for _ in range(rows)]
    odd = data.draw(st.one_of(st.floats(0.01, 0.99), st.floats(-9, -0.01), st.integers(11, 99).map(float)))
    labels[data.draw(st.integers(0, rows - 1))][data.draw(st.integers(0, count - 1))] = odd
    given_rows = [{"query": f"q{at}", "docs": docs, column: own} for at, own in enumerate(labels)]

    for name in ("dataset", "dicts", "table", "rows", "dict"):
        with pytest.raises(SchemaError):
            WAYS[name](given_rows)
    bad: list[Any] = []
    with pytest.raises(SchemaError, match="holds scores"):
        adapt_dataset(given_rows, on_bad_row=bad.append)
    assert not bad


@pytest.mark.parametrize("column", ["score", "scores"])
def test_ratings_from_one_on_are_scores(column: str) -> None:
    """Whole numbers among which is no 0 call nothing negative; with a 0 they are grades."""
    rows = [{"query": QUERY, "docs": [YES, NO], column: [5, 1]}, {"query": "why?", "docs": [YES, NO], column: [4, 2]}]
    with pytest.raises(SchemaError, match="--label-threshold"):
        adapt_dataset(rows)
    [row, _] = adapt_dataset(rows, threshold=3)
    assert [p["text"] for p in row["negative_passages"]] == [NO]
    graded = adapt_dataset([{"query": QUERY, "docs": [YES, NO, ALSO_NO], column: [2, 1, 0]}])
    assert [p["text"] for p in graded[0]["negative_passages"]] == [ALSO_NO]


@pytest.mark.parametrize("score", ["0.8", "1.0", "-1", "87", "high"])
def test_scores_that_are_written_as_text_are_none_either(score: str) -> None:
    """As CSV files hold them."""
    with pytest.raises(SchemaError, match="holds scores, as|where a number was expected"):
        adapt_dataset([{"query": QUERY, "passage": YES, "score": score}])


def test_a_threshold_goes_with_labels_alone() -> None:
    """Elsewhere it would do nothing, and a threshold that is no number compares with none."""
    with pytest.raises(ConfigurationError, match=r"threshold .0\.5. goes with labels"):
        adapt_dataset([FLAG], threshold=0.5)
    with pytest.raises(ConfigurationError, match="a number was expected"):
        adapt_dataset([{"query": QUERY, "docs": [YES, NO], "scores": [0.9, 0.1]}], threshold=float("nan"))


def test_a_number_beside_a_tuple_is_refused() -> None:
    """A label, or a margin, says nothing of a single passage."""
    with pytest.raises(SchemaError, match=r"'label', which does not say of which it is.*--drop-columns label"):
        adapt_dataset([{**TRIPLET, "label": 0.7}])


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["negative", "positive"], True),
        (["0", "1"], True),
        (["irrelevant", "relevant"], True),
        (["not relevant", "relevant"], True),
        (["False", "True"], True),
        (["relevant", "irrelevant"], False),
        (["positive", "negative"], False),
        (["true", "false"], False),
        (["1", "0"], False),
        (["a", "b"], False),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_the_first_class_has_to_be_that_of_the_negatives(names: list[str], taken: bool, listed: bool) -> None:
    """The numbers of classes with names are places in a list, which may begin with the positives."""
    from datasets import ClassLabel, Dataset

    row = {"query": "q", "docs": ["a", "b"], "labels": [1, 0]}
    rows = [row] if listed else [{"query": "q", "passage": "a", "label": 1}, {"query": "q", "passage": "b", "label": 0}]
    column = "labels" if listed else "label"
    ds = Dataset.from_list(rows)
    classes: Any = ClassLabel(names=names)
    ds = ds.cast_column(column, type(ds.features[column])(classes) if listed else classes)
    if taken:
        (found,) = arhn.adapt_dataset(ds)
        assert [one["text"] for one in found["positive_passages"]] == ["a"]
        assert [one["text"] for one in found["negative_passages"]] == ["b"]
        return
    with pytest.raises(SchemaError, match="do not say which of them is positive"):
        arhn.adapt_dataset(ds)
    assert len(arhn.adapt_dataset(ds, threshold=1)) == 1
