"""Every known form becomes canonical rows, and what could mislead a trainer is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs import adaptation, values
from arhn_datasets.inputs.adaptation import adapt_dataset, adapt_row, keeps_rows
from arhn_datasets.inputs.forms import KNOWN_FORMS
from arhn_datasets.rows import stage
from arhn_datasets.rows.records import stable_docid, stable_query_id
from tests.inputs import rowwise

Row = dict[str, Any]

QUERY = "why do lighthouses blink"
YES = "Each lighthouse has its own rhythm, so that a crew can tell which one it sees."
NO = "The keeper's cottage was painted white every spring."
ALSO_NO = "Lamp oil came by ship twice a year."


def passage(text: str, docid: str | None = None, title: str = "", **fields: object) -> Row:
    """A canonical passage with the docid that a missing one is replaced by."""
    return {"docid": docid or stable_docid(title, text), "title": title, "text": text, **fields}


def canonical(**columns: object) -> Row:
    """A canonical row about lighthouses."""
    row = {
        "query_id": "q1",
        "query": QUERY,
        "positive_passages": [passage(YES, "d1", "Signals")],
        "negative_passages": [passage(NO, "d2"), passage(ALSO_NO, "d3")],
    }
    return {**row, **columns}


def texts(passages: list[Row]) -> list[str]:
    """The texts of a passage list."""
    return [entry["text"] for entry in passages]


def adapted_to(positives: list[str], negatives: list[str]) -> Row:
    """The canonical row of the lighthouse query with these texts and every id made."""
    return {
        "query_id": stable_query_id(QUERY),
        "query": QUERY,
        "positive_passages": [passage(text) for text in positives],
        "negative_passages": [passage(text) for text in negatives],
    }


# --- canonical rows ---


def test_a_canonical_row_comes_back_equal() -> None:
    """Rows that are canonical already are not changed, extra columns and passage fields included."""
    row = canonical(subset="nq", answers=["rhythm"], positive_passages=[passage(YES, "d1", score=0.5)])

    assert row == adapt_row(row)


def test_the_order_of_passage_fields_stays() -> None:
    """A published set with docid, text, title keeps that order."""
    row = canonical(positive_passages=[{"docid": "d1", "text": YES, "title": None}])

    assert list(adapt_row(row)["positive_passages"][0]) == ["docid", "text", "title"]


def test_missing_ids_and_titles_are_filled() -> None:
    """A null title becomes an empty one, missing ids become stable hashes, numeric ids strings."""
    row = canonical(
        query_id=None,
        subset="nq",
        positive_passages=[{"docid": None, "title": None, "text": YES}],
        negative_passages=[{"docid": 7, "title": None, "text": NO}, {"docid": 8.0, "title": "", "text": ALSO_NO}],
    )

    adapted = adapt_row(row)

    assert stable_query_id(QUERY, "nq") == adapted["query_id"]
    assert [passage(YES)] == adapted["positive_passages"]
    assert [passage(NO, "7"), passage(ALSO_NO, "8")] == adapted["negative_passages"]


def test_a_row_without_query_id_column_gets_one_in_front() -> None:
    """The query id of a row without that column is a hash of the query; a numeric one becomes a string."""
    row = canonical()
    del row["query_id"]

    assert stable_query_id(QUERY) == adapt_row(row)["query_id"]
    assert next(iter(adapt_row(row))) == "query_id"
    assert adapt_row(canonical(query_id=np.int64(12)))["query_id"] == "12"


def test_columns_of_lists_are_read_as_passages() -> None:
    """The struct of lists of an old Sequence feature means the same passages."""
    row = canonical(positive_passages={"docid": np.array(["d1"]), "title": ["Signals"], "text": [YES]})

    assert canonical() == adapt_row(row)


def test_null_negatives_are_an_empty_list() -> None:
    """A row whose negatives are null has none."""
    assert adapt_row(canonical(negative_passages=None))["negative_passages"] == []


def test_a_repeated_passage_is_kept_once() -> None:
    """The same docid with the same text twice in one list is one passage; other docids are others."""
    twice = [passage(NO, "d2"), passage(NO, "d2"), passage(NO, "d9")]

    assert [passage(NO, "d2"), passage(NO, "d9")] == adapt_row(canonical(negative_passages=twice))["negative_passages"]


# --- foreign forms, one row each ---


def test_flag_embedding_without_scores() -> None:
    """The texts of pos and neg become passages; prompt and type pass through."""
    row = {"query": QUERY, "pos": [YES], "neg": [NO, ALSO_NO], "prompt": "Find it", "type": "normal"}

    assert {**adapted_to([YES], [NO, ALSO_NO]), "prompt": "Find it", "type": "normal"} == adapt_row(row)
    assert arhn.adapt.dropped(row) == ("pos", "neg")


def test_flag_embedding_scores_stand_in_every_passage() -> None:
    """With one column of scores, both sides have the field, so that the passages of both have one type."""
    row = {"query": QUERY, "pos": [YES], "neg": [NO, ALSO_NO], "pos_scores": None, "neg_scores": [1, None]}

    adapted = adapt_row(row)

    assert [passage(YES, score=None)] == adapted["positive_passages"]
    assert [passage(NO, score=1.0), passage(ALSO_NO, score=None)] == adapted["negative_passages"]
    assert arhn.adapt.dropped(row) == ("pos", "neg", "pos_scores", "neg_scores")
    assert adapted == adapt_row(adapted)


@pytest.mark.parametrize(
    ("row", "consumed"),
    [
        ({"anchor": QUERY, "positive": YES, "negative": NO}, ("anchor", "positive", "negative")),
        ({"query": QUERY, "answer": YES, "negative": NO}, ("answer", "negative")),
        ({"question": QUERY, "answer": YES, "negative_1": NO}, ("question", "answer", "negative_1")),
        (
            {"query": QUERY, "positive": YES, "negative_1": "", "negative_0": NO, "negative_2": None},
            ("positive", "negative_0", "negative_1", "negative_2"),
        ),
    ],
)
def test_a_tuple_stays_one_row(row: Row, consumed: tuple[str, ...]) -> None:
    """Triplets and n-tuples of either numbering become one row; empty places of an n-tuple are no passages."""
    assert adapted_to([YES], [NO]) == adapt_row(row)
    assert consumed == arhn.adapt.dropped(row)


def test_only_tuples_may_lose_rows() -> None:
    """The rows of triplets and n-tuples are grouped by their anchor; those of every other form stay."""
    assert not keeps_rows(["anchor", "positive", "negative_0"])
    assert keeps_rows(["query", "pos", "neg"])
    assert keeps_rows(["query_text", "positive_document_ids", "negative_document_ids"])


def test_negatives_of_an_n_tuple_come_in_the_order_of_their_numbers() -> None:
    """negative_10 comes after negative_9, whatever the order of the columns."""
    row = {"anchor": QUERY, "positive": YES} | {f"negative_{number}": f"text {number}" for number in (10, 9, 1)}

    assert texts(adapt_row({**row})["negative_passages"]) == ["text 1", "text 9", "text 10"]


@pytest.mark.parametrize("columns", [("query", "docs", "labels"), ("anchor", "documents", "label")])
def test_labels_above_zero_are_positive(columns: tuple[str, str, str]) -> None:
    """A labelled list is split by its labels, which are not kept: the side says it."""
    query, documents, labels = columns
    row = {query: QUERY, documents: [NO, YES, ALSO_NO], labels: [0, 2, 0], "lang": "en"}

    assert {**adapted_to([YES], [NO, ALSO_NO]), "lang": "en"} == adapt_row(row)


@pytest.mark.parametrize("column", ["scores", "score"])
def test_scores_of_a_list_are_kept(column: str) -> None:
    """Scores above zero are positive as well, and stay with their passage."""
    adapted = adapt_row({"query": QUERY, "docs": [NO, YES], column: [-0.5, 3]})

    assert [passage(YES, score=3.0)] == adapted["positive_passages"]
    assert [passage(NO, score=-0.5)] == adapted["negative_passages"]


def test_dpr_contexts_become_passages() -> None:
    """DPR's ids become docids, its scores stay, its answers and random negatives pass through."""
    row = {
        "question": QUERY,
        "answers": ["rhythm"],
        "positive_ctxs": [{"title": "Signals", "text": YES, "score": 1000, "passage_id": "p1"}],
        "hard_negative_ctxs": [{"title": None, "text": NO, "score": 3.5, "psg_id": 4}, {"text": ALSO_NO}],
        "negative_ctxs": [{"title": "Herring", "text": "Herring swim in shoals."}],
    }

    adapted = adapt_row(row)

    assert [passage(YES, "p1", "Signals", score=1000)] == adapted["positive_passages"]
    assert [passage(NO, "4", score=3.5), passage(ALSO_NO)] == adapted["negative_passages"]
    assert (row["answers"], row["negative_ctxs"]) == (adapted["answers"], adapted["negative_ctxs"])
    assert {"question", "positive_ctxs", "hard_negative_ctxs"}.isdisjoint(adapted)


def test_rows_of_a_formatted_dataset_are_read() -> None:
    """Lists that come as numpy arrays are lists."""
    ds = Dataset.from_list([{"query": QUERY, "pos": [YES], "neg": [NO, ALSO_NO]}]).with_format("numpy")

    assert adapted_to([YES], [NO, ALSO_NO]) == adapt_row(ds[0])


# --- refusals of adapt_row ---


def test_unknown_columns_are_refused_with_the_known_forms() -> None:
    """The message names the columns found and every form."""
    with pytest.raises(SchemaError, match=r"no known form: \['pos', 'utterance'\]") as caught:
        adapt_row({"utterance": QUERY, "pos": [YES]})

    assert all(form in str(caught.value) for form in KNOWN_FORMS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("query-id", "corpus-id", "score"), "those of qrels or of a run"),
        (("query", "pos", "neg", "positive", "negative"), "more than one form"),
        (("query", "question", "positive_ctxs", "hard_negative_ctxs"), "a column 'query' already"),
        (("anchor", "query", "positive", "negative"), "a column 'query' already"),
        (("query", "pos", "neg", "positive_passages"), "a column 'positive_passages' already"),
    ],
)
def test_columns_that_could_be_read_two_ways_are_refused(columns: tuple[str, ...], message: str) -> None:
    """Columns of two forms, or a column that the canonical one would overwrite, are never guessed about."""
    with pytest.raises(SchemaError, match=message):
        arhn.adapt.dropped(columns)


def test_document_ids_need_a_corpus() -> None:
    """A row of ids cannot be adapted alone, and the message says what to call."""
    row = {"query_id": "q1", "query_text": QUERY, "positive_document_ids": ["d1"], "negative_document_ids": []}

    with pytest.raises(SchemaError, match=r"query_id 'q1'.*adapt_dataset\(ds, corpus=\.\.\.\)"):
        adapt_row(row)
    assert arhn.adapt.dropped(row) == ("query_text", "positive_document_ids", "negative_document_ids")


FLAG = {"query": QUERY, "pos": [YES], "neg": [NO]}
TRIPLET = {"anchor": QUERY, "positive": YES, "negative": NO}
LABELLED = {"query": QUERY, "docs": [YES, NO], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**FLAG, "pos": YES}, r"query 'why do lighthouses blink'.*'pos' holds a str.*a list of texts was expected"),
        ({**FLAG, "neg": NO}, "'neg' holds a str"),
        ({**FLAG, "neg": [None]}, "'neg' holds null where the text"),
        ({**FLAG, "query": "  "}, "'query' holds a str .* where the text of a query"),
        ({**FLAG, "query": None}, "'query' holds null"),
        ({**FLAG, "pos": []}, "no positive passage"),
        ({**FLAG, "pos": None}, "no positive passage"),
        ({**FLAG, "pos": [""]}, "no positive passage"),
        ({**FLAG, "neg": [NO, YES]}, "both positive and negative"),
        ({**FLAG, "pos_scores": [1.0, 2.0]}, "'pos_scores' has 2 values and 'pos' has 1"),
        ({**FLAG, "pos_scores": ["high"]}, "'pos_scores' holds a str .* where a number"),
        ({**TRIPLET, "positive": None}, "no positive passage"),
        ({**TRIPLET, "negative": [NO]}, "'negative' holds a list .* where the text of one passage"),
        ({**LABELLED, "labels": [1]}, "'labels' has 1 values and 'docs' has 2"),
        ({**LABELLED, "labels": [1, None]}, "'labels' holds a null"),
        (canonical(positive_passages=YES), "q1.*'positive_passages' holds a str .* a list of passages"),
        (canonical(positive_passages=[YES]), "'positive_passages' holds a str .* in its list"),
        (canonical(positive_passages=[{"docid": "d1", "text": None}]), "holds null where the text"),
        (canonical(positive_passages=[{"docid": "d1", "text": YES, "title": 3}]), "a int .* as a title"),
        (canonical(positive_passages=[{"docid": True, "text": YES}]), r"'positive_passages\.docid' holds a bool"),
        (canonical(positive_passages={"docid": ["d1", "d2"], "text": [YES]}), "unequal lengths"),
        (canonical(positive_passages={"docid": ["d1"], "text": YES}), "'text' holds a str"),
        (canonical(negative_passages=[passage(NO, "d2"), passage(ALSO_NO, "d2")]), "'d2' stands for two texts"),
        (canonical(negative_passages=[passage(NO, "d1")]), "'d1' .* both positive and negative"),
        (canonical(query_id=1.5), "'query_id' holds a float"),
    ],
)
def test_rows_that_break_their_form_are_refused(row: Row, message: str) -> None:
    """The message names the row, the column, what was found and what was expected."""
    with pytest.raises(SchemaError, match=message):
        adapt_row(row)


# --- properties of adapt_row ---

words = st.text(min_size=1, max_size=12).filter(str.strip)
sides = st.lists(words, min_size=2, max_size=8, unique=True).flatmap(
    lambda found: st.integers(1, len(found) - 1).map(lambda cut: (found[:cut], found[cut:]))
)


@given(query=words, split=sides)
def test_no_passage_of_a_flag_embedding_row_is_lost(query: str, split: tuple[list[str], list[str]]) -> None:
    """Every text comes back once, on its side, in its place, and the result is a fixed point."""
    adapted = adapt_row({"query": query, "pos": split[0], "neg": split[1]})

    assert split == (texts(adapted["positive_passages"]), texts(adapted["negative_passages"]))
    assert adapted == adapt_row(adapted)


@given(query=words, split=sides, first=st.sampled_from([0, 1]))
def test_no_passage_of_an_n_tuple_is_lost(query: str, split: tuple[list[str], list[str]], first: int) -> None:
    """Every negative column comes back as a passage, whichever number the columns begin with."""
    numbered = {f"negative_{number}": text for number, text in enumerate(split[1], first)}

    adapted = adapt_row({"anchor": query, "positive": split[0][0], **numbered})

    assert split[1] == texts(adapted["negative_passages"])
    assert not set(arhn.adapt.dropped(("anchor", "positive", *numbered))) & set(adapted)


# --- datasets, row by row ---


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
        ([{**FLAG, "pos": YES}], "'pos' holds a str"),
        (Dataset.from_list([{**FLAG, "neg": NO}]), "'neg' holds a str"),
    ],
)
def test_datasets_without_a_form_are_refused(rows: Dataset | list[Row], message: str) -> None:
    """Rows that are none, no rows at all, and columns without a type."""
    with pytest.raises(SchemaError, match=message):
        adapt_dataset(rows)


# --- the rows of an anchor ---

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


def test_query_id_and_subset_keep_anchors_apart() -> None:
    """The same words in two subsets, or under two ids, are two queries."""
    rows = [{**TRIPLET, "query_id": 1, "subset": "a"}, {**TRIPLET, "query_id": 1, "subset": "b"}]

    assert adapt_dataset(Dataset.from_list(rows))["subset"][:] == ["a", "b"]
    assert adapt_dataset([{**TRIPLET, "query_id": 1}, {**TRIPLET, "query_id": 2}])["query_id"][:] == ["1", "2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"anchor": QUERY, "positive": NO, "negative": ALSO_NO}, "after grouping its 2 rows, the passage .*cottage"),
        ({**TRIPLET, "negative": ALSO_NO, "lang": "de"}, "'lang' differs between the 2 rows"),
        ({**TRIPLET, "negative": ALSO_NO, "tags": ["sea", "night"]}, "'tags' differs between the 2 rows"),
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


# --- ids and a corpus ---

CORPUS = [
    {"docid": "d1", "title": "Signals", "text": YES, "url": "https://example.org/1"},
    {"docid": "d2", "title": None, "text": NO, "url": None},
    {"docid": "d3", "title": "", "text": ALSO_NO, "url": None},
    {"docid": None, "title": "", "text": "A note without an id.", "url": None},
]
ID_ROW = {
    "query_id": "q1",
    "query_text": QUERY,
    "positive_document_ids": ["d1"],
    "negative_document_ids": ["d2", "d3"],
    "source": "harbour",
}


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_document_ids_become_passages(make: Callable[[list[Row]], Any]) -> None:
    """The passages come from the corpus with docid, title and text; other columns pass through."""
    adapted = adapt_dataset(make([ID_ROW]), corpus=make(CORPUS))

    assert [canonical(source="harbour")] == adapted.to_list()


def test_splits_share_a_corpus_that_can_be_read_once() -> None:
    """A generator of passages serves every split, and the names of BEIR are understood."""
    corpus = ({"_id": int(row["docid"][1]), "text": row["text"]} for row in CORPUS[:3])
    row = {"query": QUERY, "positive_document_ids": [1], "negative_document_ids": [2]}

    adapted = adapt_dataset({"train": [row], "test": [row]}, corpus=corpus)

    expected = {**adapted_to([], []), "positive_passages": [passage(YES, "1")], "negative_passages": [passage(NO, "2")]}
    assert [expected] == adapted["train"].to_list() == adapted["test"].to_list()


@pytest.mark.parametrize(
    ("changes", "corpus", "message"),
    [
        ({}, None, r"adapt_dataset\(ds, corpus=\.\.\.\)"),
        ({"negative_document_ids": list("abcdef")}, CORPUS, r"6 of 7 documents are not in the corpus: .*'e', \.\.\."),
        ({"negative_document_ids": ["x"]}, CORPUS, r"1 of 2 documents are not in the corpus: 'x'\. Give"),
        ({"negative_document_ids": "d2"}, CORPUS, "q1.*'negative_document_ids' holds a str"),
        ({"negative_document_ids": [None]}, CORPUS, "q1.*null or empty docid"),
        ({"negative_document_ids": ["d1"]}, CORPUS, "both positive and negative"),
        ({"positive_document_ids": []}, CORPUS, "no positive"),
        ({}, [{"docid": "d1"}], "The columns of the corpus are"),
        ({}, [*CORPUS, passage(NO, "d1")], "two different passages with the docid 'd1'"),
        (
            {},
            DatasetDict(a=Dataset.from_list(CORPUS), b=Dataset.from_list(CORPUS)),
            r"splits of the corpus are \['a', 'b'\]",
        ),
    ],
)
def test_ids_that_cannot_be_looked_up_are_refused(
    changes: Row, corpus: DatasetDict | list[Row] | None, message: str
) -> None:
    """Without a corpus, without the documents in it, or with ids that are none."""
    with pytest.raises(SchemaError, match=message):
        adapt_dataset([{**ID_ROW, **changes}], corpus=corpus)


def test_a_corpus_beside_passages_is_refused() -> None:
    """A corpus that would not be read is a mistake."""
    with pytest.raises(ConfigurationError, match="corpus= is for rows that hold document ids"):
        adapt_dataset([FLAG], corpus=CORPUS)


# --- queries, corpus, qrels and run ---

QUERIES = [{"_id": "q9", "text": "unlabelled"}, {"_id": "q1", "text": QUERY}]
QRELS = [
    {"query-id": "q1", "corpus-id": "d1", "score": 1},
    {"query-id": "q1", "corpus-id": "d3", "score": 0},
]
RUN = [
    {"query-id": "q1", "corpus-id": "d3", "score": 7.5},
    {"query-id": "q1", "corpus-id": "d2", "score": 9.0},
    {"query-id": "q1", "corpus-id": "d1", "score": 8.0},
    {"query-id": "q9", "corpus-id": "d7", "score": 1.0},
]


@pytest.mark.parametrize(
    "parts",
    [
        {"run": RUN},
        {"run": Dataset.from_list(RUN)},
        {"run": [{"qid": "q1", "docid": "d3", "rank": "2"}, {"qid": "q1", "docid": "d2", "rank": "1"}]},
        {"run": [{"qid": "q1", "docid": ["d3", "d1", "d2"], "score": [1, 2, 3]}]},
        {"run": [{"query-id": "q1", "corpus-ids": ["d1", "d2", "d3", "d2"]}]},
        {"run": {"q1": {"d3": 0.1, "d2": 0.2}}},
        {"negatives": {"q1": ["d2", "d3"]}},
        {"negatives": [{"query_id": "q1", "doc_id": "d2"}, {"query_id": "q1", "doc_id": "d3"}]},
        {
            "queries": {"q1": QUERY, "q9": {"text": "unlabelled"}},
            "corpus": {row["docid"]: row for row in CORPUS[:3]},
            "qrels": {"q1": {"d1": 2, "d3": 0}},
            "run": RUN,
        },
        {
            "queries": DatasetDict(queries=Dataset.from_list(QUERIES)),
            "corpus": Dataset.from_list(CORPUS),
            "qrels": [{"qid": "q1", "docid": ["d1", "d3"], "score": ["1", "0"]}],
            "run": RUN,
        },
    ],
)
def test_beir_parts_become_rows(parts: Row) -> None:
    """Rows, lists, mappings and datasets of the parts give the same row: best retrieved negatives first."""
    expected = canonical()
    expected["negative_passages"] = [passage(NO, "d2"), passage(ALSO_NO, "d3")]

    adapted = adapt_dataset(**{"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, **parts})

    assert [expected] == adapted.to_list()
    assert adapted.column_names == ["query_id", "query", "positive_passages", "negative_passages"]


def test_max_negatives_cuts_what_is_left_after_the_positives() -> None:
    """The positive in the run does not count, and zero is a number."""
    parts = {"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, "run": [{"qid": "q1", "docid": ["d1", "d2", "d3"]}]}

    assert texts(adapt_dataset(**parts, max_negatives=1)[0]["negative_passages"]) == [NO]
    assert adapt_dataset(**parts, max_negatives=0)[0]["negative_passages"] == []


def test_a_copy_of_the_positive_in_a_run_is_no_negative() -> None:
    """The same title and text under another docid is the positive again."""
    corpus = [*CORPUS, {"docid": "d4", "title": "Signals", "text": YES}]

    adapted = adapt_dataset(queries=QUERIES, corpus=corpus, qrels=QRELS, run={"q1": ["d4", "d2"]})

    assert [passage(NO, "d2")] == adapted[0]["negative_passages"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"qrels": [{**QRELS[0], "query-id": "q5"}]}, "1 of 1 query ids are not in the queries: 'q5'"),
        ({"qrels": []}, "qrels are empty"),
        ({"qrels": QRELS[1:]}, "1 of 1 queries of the qrels have no positive.*'q1'"),
        ({"qrels": [{"qid": "q1", "docid": "d1"}]}, r"The columns of the qrels are \['docid', 'qid'\]; one of score"),
        ({"qrels": [{"qid": "q1", "docid": ["d1", "d2"], "score": [1]}]}, "query 'q1' has 2 docids and 1 scores"),
        ({"qrels": [{"qid": None, "docid": "d1", "score": 1}]}, "A row of the qrels has no query id"),
        ({"run": [{"qid": "q1", "docid": "d1", "score": "good"}]}, "A score or rank of the run is a str"),
        ({"run": {"q1": ["d8"]}}, "1 of 2 documents are not in the corpus: 'd8'"),
        ({"run": None, "negatives": {"q1": ["d1"]}}, "both positive and negative"),
        ({"run": None, "negatives": {"q1": "d2"}}, "'negatives' holds a str"),
        ({"queries": [*QUERIES, {"_id": "q1", "text": "other"}]}, "two different texts with the id 'q1'"),
        ({"queries": [{"_id": "q1", "text": ""}]}, "where the text of a query was expected"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts: Row, message: str) -> None:
    """Ids that lead nowhere, queries without a positive, and columns of no known name."""
    with pytest.raises(SchemaError, match=message):
        adapt_dataset(**{"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, "run": RUN, **parts})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Given: nothing"),
        ({"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS}, r"Given: \['queries', 'corpus', 'qrels'\]"),
        ({"queries": QUERIES, "corpus": CORPUS, "run": RUN}, "qrels="),
        ({"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, "run": RUN, "negatives": {}}, "one of run= and neg"),
        (
            {"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, "run": RUN, "max_negatives": -1},
            "max_negatives is -1",
        ),
        ({"ds": [FLAG], "run": RUN}, "run cannot be used with a dataset"),
        ({"ds": [FLAG], "max_negatives": 3}, "max_negatives cannot be used"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(arguments: Row, message: str) -> None:
    """A dataset or the parts, never half of either."""
    with pytest.raises(ConfigurationError, match=message):
        adapt_dataset(**arguments)


def test_the_module_is_light_to_import() -> None:
    """Rows can be adapted in a worker that never imports datasets."""
    heavy = "{'datasets', 'pandas', 'torch', 'transformers', 'aiohttp'}"
    code = f"import sys, arhn_datasets.inputs.adaptation; found = {heavy} & set(sys.modules); assert not found, found"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


# --- the map callable ---


FORMS = {
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
@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_adapting_gives_the_same_rows(form: str, way: str) -> None:
    """The canonical columns come, those of the other form go, and the rest passes through."""
    rows = FORMS[form]
    assert [dict(row) for row in WAYS[way](rows)] == [adapt_row(row) for row in rows]


def test_a_row_given_to_adapt_stays_as_it_was() -> None:
    """A plain call makes a new row; only what `datasets` hands over is changed in place."""
    row = dict(FORMS["flag"][0])
    arhn.adapt(row)
    assert row == FORMS["flag"][0]


def test_a_copy_of_a_positive_under_another_docid_is_read() -> None:
    """Such a negative is false, and finding it is what refining is for."""
    row = canonical(negative_passages=[passage(YES, "d2")])
    assert [p["docid"] for p in adapt_row(row)["negative_passages"]] == ["d2"]


# --- in Arrow, against the forms read row by row ---

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
        "labels": st.lists(st.one_of(st.none(), st.integers(-1, 1)), min_size=2, max_size=3),
    },
    "scores": {
        "query": words,
        "docs": st.lists(words, min_size=2, max_size=2),
        "scores": st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2),
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
    "scores": {"docs": pa.list_(pa.string()), "scores": pa.list_(pa.float64())},
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


def outcome(read: Callable[[], list[Row]]) -> list[Row] | str:
    """The rows, or what is wrong with one of them."""
    try:
        return read()
    except SchemaError as error:
        return str(error)


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
    """Dictionaries are read; a null in place of a passage is refused, in a list of structs as among Python objects."""
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
    for broken in (None, {**row["negative_passages"][0], "text": None}):
        with pytest.raises(SchemaError, match="'negative_passages' holds null"):
            arhn.adapt(pa.Table.from_pylist([{**row, "negative_passages": [*row["negative_passages"], broken]}]))


def test_a_field_of_one_side_is_null_on_the_other() -> None:
    """In Arrow the passages of both sides have one type."""
    table = pa.Table.from_pylist([canonical(positive_passages=[passage(YES, "d1", score=0.5)])])

    adapted = arhn.adapt(table)

    assert [found["score"] for found in adapted["negative_passages"][0].as_py()] == [None, None]
    assert adapted.schema.field("positive_passages").type == adapted.schema.field("negative_passages").type


def test_a_row_of_broken_ids_in_a_dataset_is_numbered() -> None:
    """Ids are read before any corpus is."""
    ds = Dataset.from_list([ID_ROW, {**ID_ROW, "negative_document_ids": [None]}])

    with pytest.raises(SchemaError, match=r"'q1' \(row 1, .*null or empty docid"):
        adapt_dataset(ds, corpus=CORPUS)


def test_ids_as_whole_floats_are_integers() -> None:
    """What pandas makes of integers with gaps; any other float is refused."""
    ids = pa.array([1.0, None])
    table = pa.Table.from_pylist([FLAG, FLAG]).append_column("query_id", ids)

    assert arhn.adapt(table)["query_id"].to_pylist() == ["1", stable_query_id(QUERY)]
    with pytest.raises(SchemaError, match="'query_id' holds a float"):
        arhn.adapt(table.set_column(3, "query_id", pa.array([1.0, 1.5])))


def test_a_batched_map_stays_in_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Dataset.map` with batched=True makes no Python object of a value, and drops the columns that it is told to."""
    rows = [{"query": f"q{number}", "pos": ["yes"], "neg": [f"no {number}"], "kind": "x"} for number in range(5)]
    ds = Dataset.from_list(rows)
    monkeypatch.setattr(values, "each", None)
    monkeypatch.setattr(adaptation, "_adapted_rows", None)

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
    """The message says which row it is, of how many have come before, and how to go on without it."""
    rows = [{**FLAG, "query": f"q{number}"} for number in range(1200)]
    rows[1105] = {**FLAG, "neg": [YES]}

    with pytest.raises(SchemaError, match=r"\(row 1105, counted from 0\): .*both positive .*number != 1105"):
        adapt_dataset(make(rows))


def test_half_a_surrogate_pair_is_refused() -> None:
    """A text that no file can hold is named before it is written."""
    with pytest.raises(SchemaError, match=r"surrogate pair.*'surrogatepass'"):
        adapt_row({**FLAG, "neg": ["half \ud83d"]})


def test_passages_of_a_corpus_of_dicts_and_of_a_dataset_are_the_same() -> None:
    """Repeated passages of a corpus are one, and ids of several types are strings."""
    corpus = [{"_id": number, "text": f"passage {number}", "title": None} for number in (3, 1, 2, 1)]
    rows = [{"query": "q", "positive_document_ids": ["1"], "negative_document_ids": ["3", "2"], "lang": "en"}]

    adapted = [
        adapt_dataset(make(rows), corpus=other(corpus)).to_list()
        for make in (list, Dataset.from_list)
        for other in (list, Dataset.from_list)
    ]

    assert texts(adapted[0][0]["negative_passages"]) == ["passage 3", "passage 2"]
    assert all(found == adapted[0] for found in adapted)


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
