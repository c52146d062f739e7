"""Datasets of any form, and the map callable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Sequence, Value

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages
from arhn_datasets.inputs.adaptation import adapt_dataset, keeps_rows
from tests.inputs.lighthouses import (
    ALSO_NO,
    FLAG,
    NO,
    QUERY,
    ROOT,
    TRIPLET,
    YES,
    Row,
    adapt_row,
    canonical,
    passage,
    texts,
)


def test_only_tuples_may_lose_rows() -> None:
    """The rows of triplets and n-tuples are grouped by their anchor; those of every other form stay."""
    assert not keeps_rows(["anchor", "positive", "negative_0"])
    assert keeps_rows(["query", "pos", "neg"])
    assert keeps_rows(["query_text", "positive_document_ids", "negative_document_ids"])


def test_a_flag_embedding_dataset_has_typed_features() -> None:
    """The canonical columns come first and typed; the features of the others are kept."""
    features = Features(
        {
            "subset": ClassLabel(names=["nq", "fever"]),
            "query": Value("string"),
            "pos": Sequence(Value("string")),
            "neg": Sequence(Value("string")),
            "neg_scores": Sequence(Value("float32")),
        }
    )
    rows = [{"subset": 1, "query": QUERY, "pos": [YES], "neg": [NO], "neg_scores": [0.5]}]
    ds = Dataset.from_list(rows, features=features, split="train")

    adapted = adapt_dataset(ds)

    assert adapted.column_names == ["query_id", "query", "positive_passages", "negative_passages", "subset"]
    assert features["subset"] == adapted.features["subset"]
    assert adapted.features["positive_passages"] == adapted.features["negative_passages"]
    assert {"docid", "title", "text", "score"} == set(adapted[0]["positive_passages"][0])
    assert {**adapt_row(rows[0]), "subset": 1} == adapted[0]
    assert (str(adapted.split), adapted.format["type"]) == ("train", None)


def test_a_canonical_dataset_comes_back_with_equal_rows_and_features() -> None:
    """Adapting what is canonical changes neither rows nor features, also in the order docid, text, title."""
    fields = {"docid": Value("string"), "text": Value("string"), "title": Value("string"), "score": Value("float32")}
    features = Features(
        {"query_id": Value("string"), "query": Value("string"), "positive_passages": [fields]}
        | {"negative_passages": [fields], "subset": Value("string")}
    )
    row = canonical(subset="nq", positive_passages=[passage(YES, "d1", score=2.0)])
    row["negative_passages"] = [passage(NO, "d2", score=1.0)]
    ds = Dataset.from_list([row], features=features)

    adapted = adapt_dataset(ds)

    assert [row] == adapted.to_list()
    assert ds.features.arrow_schema == adapted.features.arrow_schema


def test_a_dataset_of_old_sequences_is_read() -> None:
    """A struct of lists in the features becomes a list of structs."""
    old = Sequence({"docid": Value("string"), "text": Value("string")})
    features = Features({"query": Value("string"), "positive_passages": old, "negative_passages": old})
    row = {
        "query": QUERY,
        "positive_passages": {"docid": ["d1"], "text": [YES]},
        "negative_passages": {"docid": [], "text": []},
    }
    ds = Dataset.from_dict({name: [value] for name, value in row.items()}, features=features)

    adapted = adapt_dataset(ds)

    assert [passage(YES, "d1")] == adapted[0]["positive_passages"]
    assert adapted.features["positive_passages"] == adapted.features["negative_passages"]


def test_dpr_scores_of_two_types_become_one() -> None:
    """An integer score of the positives and a float one of the negatives meet as floats."""
    row = {"question": QUERY, "positive_ctxs": [{"text": YES, "passage_id": 1, "score": 1000}]}
    row["hard_negative_ctxs"] = [{"text": NO, "passage_id": 2, "score": 0.5}]

    for ds in (Dataset.from_list([row]), [row]):
        adapted = adapt_dataset(ds)
        assert [passage(YES, "1", score=1000.0)] == adapted[0]["positive_passages"]
        assert adapted.features["positive_passages"] == adapted.features["negative_passages"]


def test_fields_of_two_types_are_refused() -> None:
    """A field that is a number on one side and text on the other has no type."""
    row = {"question": QUERY, "positive_ctxs": [{"text": YES, "score": 1}]}
    row["hard_negative_ctxs"] = [{"text": NO, "score": "low"}]

    with pytest.raises(SchemaError, match="fields of one name and different types"):
        adapt_dataset(Dataset.from_list([row]))


def test_an_empty_dataset_is_adapted_by_its_columns() -> None:
    """No rows still give the typed canonical columns."""
    for row in (FLAG, TRIPLET):
        adapted = adapt_dataset(Dataset.from_list([row]).select([]))

        names = ["query_id", "query", "positive_passages", "negative_passages"]
        assert (len(adapted), adapted.column_names) == (0, names)


def test_dicts_with_different_keys_are_rows() -> None:
    """Keys that some of the rows lack are null there, as in JSON Lines."""
    adapted = adapt_dataset([FLAG, {**FLAG, "query": "who painted it", "prompt": "Find it"}])

    assert adapted["prompt"][:] == [None, "Find it"]
    assert texts(adapted[1]["positive_passages"]) == [YES]


def test_every_split_is_adapted() -> None:
    """A DatasetDict, or a dict of rows, becomes a DatasetDict."""
    for splits in (DatasetDict(train=Dataset.from_list([FLAG]), test=Dataset.from_list([TRIPLET])), {"dev": [FLAG]}):
        adapted = adapt_dataset(splits)
        assert isinstance(adapted, DatasetDict)
        assert list(splits) == list(adapted)
        assert all(texts(split[0]["positive_passages"]) == [YES] for split in adapted.values())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "There are no rows"),
        (["query"], "Found a str .* among the rows"),
        ([{**FLAG, "lang": "en"}, {**FLAG, "lang": [1]}], "'lang' holds values of different types"),
        ([{**FLAG, "pos": 3}], "'pos' holds a int"),
        (Dataset.from_list([{**FLAG, "neg": 3}]), "'neg' holds a int"),
    ],
)
def test_datasets_without_a_form_are_refused(rows: Dataset | list[Row], message: str) -> None:
    """Rows that are none, no rows at all, and columns without a type."""
    with pytest.raises(SchemaError, match=message):
        adapt_dataset(rows)


def test_the_module_is_light_to_import() -> None:
    """Rows can be adapted in a worker that never imports datasets."""
    heavy = "{'datasets', 'pandas', 'torch', 'transformers', 'aiohttp'}"
    code = f"import sys, arhn_datasets.inputs.adaptation; found = {heavy} & set(sys.modules); assert not found, found"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


ROWS_IN = {
    "flag": [{"query": f"q{i}", "pos": [f"yes {i}"], "neg": [f"no {i}", f"never {i}"], "kind": "x"} for i in range(3)],
    "triplet": [{"anchor": f"q{i}", "positive": f"yes {i}", "negative": f"no {i}", "kind": "x"} for i in range(3)],
    "dpr": [
        {
            "question": f"q{i}",
            "positive_ctxs": [{"title": "t", "text": f"yes {i}", "psg_id": i}],
            "hard_negative_ctxs": [{"title": "", "text": f"no {i}", "psg_id": 10 + i}],
            "kind": "x",
        }
        for i in range(3)
    ],
    "scored": [
        {"query": f"q{i}", "pos": ["y"], "neg": ["n"], "pos_scores": [0.5], "neg_scores": [1]} for i in range(3)
    ],
}


def stream(rows: list[Row]) -> IterableDataset:
    """A stream, where `datasets` drops only the columns that it is told to."""
    return Dataset.from_list(rows).to_iterable_dataset()


WAYS = {
    "function": lambda rows: [arhn.adapt(row) for row in rows],
    "rows": lambda rows: list(Dataset.from_list(rows).map(arhn.adapt)),
    "batches": lambda rows: list(Dataset.from_list(rows).map(arhn.adapt, batched=True, batch_size=2)),
    "num_proc": lambda rows: list(Dataset.from_list(rows).map(arhn.adapt, num_proc=2)),
    "stream": lambda rows: list(stream(rows).map(arhn.adapt, remove_columns=arhn.adapt.dropped(rows[0]))),
    "stream of batches": lambda rows: list(
        stream(rows).map(arhn.adapt, batched=True, remove_columns=arhn.adapt.dropped(rows[0]))
    ),
    "table": lambda rows: arhn.adapt(Dataset.from_list(rows).data.table).to_pylist(),
    "adapt_dataset": lambda rows: list(arhn.adapt_dataset(Dataset.from_list(rows))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ROWS_IN)
def test_every_way_of_adapting_gives_the_same_rows(form: str, way: str) -> None:
    """The canonical columns come, those of the other form go, and the rest passes through."""
    rows = ROWS_IN[form]
    assert [dict(row) for row in WAYS[way](rows)] == [adapt_row(row) for row in rows]


def test_a_row_given_to_adapt_stays_as_it_was() -> None:
    """A plain call makes a new row; only what `datasets` hands over is changed in place."""
    row = dict(ROWS_IN["flag"][0])
    arhn.adapt(row)
    assert row == ROWS_IN["flag"][0]


def test_a_batched_map_stays_in_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Dataset.map` with batched=True makes no Python object of a value, and drops the columns that it is told to."""
    rows = [{"query": f"q{number}", "pos": ["yes"], "neg": [f"no {number}"], "kind": "x"} for number in range(5)]
    ds = Dataset.from_list(rows)
    monkeypatch.setattr(passages, "typed", None)
    monkeypatch.setattr(passages, "each", None)

    adapted = ds.map(arhn.adapt, batched=True, batch_size=2, remove_columns=ds.column_names)

    assert adapted.column_names == ["query", "query_id", "positive_passages", "negative_passages"]
    assert [texts(found) for found in adapted["negative_passages"]] == [row["neg"] for row in rows]


def test_a_batch_inside_a_function_of_the_user_is_of_lists() -> None:
    """A function around arhn.adapt gets lists, which it can change."""

    def shortened(batch: Any) -> Row:
        adapted = arhn.adapt(batch)
        return {**adapted, "negative_passages": [found[:1] for found in adapted["negative_passages"]]}

    ds = Dataset.from_list([{"query": "q", "pos": [YES], "neg": [NO, ALSO_NO]}]).map(shortened, batched=True)

    assert texts(ds[0]["negative_passages"]) == [NO]


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_a_broken_row_of_a_dataset_is_numbered(make: Callable[[list[Row]], Any]) -> None:
    """The message says which row it is, of how many, and how to go on without it."""
    rows = [{**FLAG, "query": f"q{number}"} for number in range(1200)]
    rows[1105] = {**FLAG, "neg": [YES]}

    with pytest.raises(SchemaError, match=r"(?s)1 of 1,200 .*\(row 1105, counted from 0\): .*both pos.*--on-bad-row"):
        adapt_dataset(make(rows))


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="these datasets have no type for values of several types")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("meta", [[1, "a"], {"a": [1, {"b": 2}]}])
def test_values_of_several_types_pass_through(grouped, meta):
    """JSON inside of lists and structs, of which Arrow makes no empty table: in mapped rows and in grouped ones."""
    rows = [{"anchor": QUERY, "positive": YES, "negative": negative, "meta": meta} for negative in (NO, ALSO_NO)]
    if not grouped:
        rows = [{**row, "anchor": f"{QUERY} {at}"} for at, row in enumerate(rows)]
    of_lists = datasets.List(datasets.Json())
    features = Features(
        {
            **dict.fromkeys(("anchor", "positive", "negative"), Value("string")),
            "meta": of_lists if isinstance(meta, list) else {"a": of_lists},
        }
    )
    found = adapt_dataset(Dataset.from_list(rows, features=features))
    assert [row["meta"] for row in found] == [meta] * (1 if grouped else 2)
    assert found.features["meta"] == features["meta"]
    none = adapt_dataset(Dataset.from_list(rows, features=features).select([]))
    assert (len(none), none.features) == (0, found.features)


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="these datasets have no type for values of several types")
def test_passages_may_hold_fields_of_several_types():
    """A score that is a number in one passage and a string in another stays what it is."""
    row = canonical()
    scored = [{**one, "score": score} for one, score in zip(row["negative_passages"], (0.5, "high"), strict=True)]
    one = {"docid": Value("string"), "title": Value("string"), "text": Value("string"), "score": datasets.Json()}
    sides = dict.fromkeys(("positive_passages", "negative_passages"), datasets.List(one))
    features = Features({"query_id": Value("string"), "query": Value("string"), **sides})
    given = {
        **row,
        "positive_passages": [{**p, "score": 1} for p in row["positive_passages"]],
        "negative_passages": scored,
    }
    found = adapt_dataset(Dataset.from_list([given], features=features))
    assert [p["score"] for p in found[0]["negative_passages"]] == [0.5, "high"]
    assert found[0]["positive_passages"][0]["score"] == 1
