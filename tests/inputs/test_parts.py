"""Queries, corpus, qrels and a run become rows."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset
from tests.inputs.lighthouses import (
    ALSO_NO,
    CORPUS,
    FLAG,
    NO,
    QUERY,
    YES,
    Row,
    canonical,
    passage,
    texts,
)

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
        {"run": RUN, "qrels": [{"query-id": "q1", "corpus-id": "d1"}]},
        {"run": RUN, "qrels": {"q1": ["d1"]}},
        {"run": RUN, "qrels": {"q1": {"d1"}}},
        {
            "qrels": [{"query_id": "q1", "document_ids": ["d3", "d2", "d1"], "scores": [0.1, 0.2, 0.9]}],
            "threshold": 0.5,
        },
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


def test_an_embedding_qa_dataset_is_read() -> None:
    """LlamaIndex's three mappings have no negatives; those that are given beside it are taken."""
    whole = {"queries": {"q1": QUERY}, "corpus": {"d1": YES, "d2": NO}, "relevant_docs": {"q1": ["d1"]}, "mode": "text"}

    [alone] = adapt_dataset(whole)
    [mined] = adapt_dataset(whole, negatives={"q1": ["d2"]})

    assert (alone["positive_passages"], alone["negative_passages"]) == ([passage(YES, "d1")], [])
    assert mined["negative_passages"] == [passage(NO, "d2")]


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
        ({"qrels": [{"qid": "q1", "text": "d1"}]}, r"The columns of the qrels are \['qid', 'text'\]; one of docid"),
        ({"qrels": [{"qid": "q1", "docid": "d1", "score": 0.7}]}, "The qrels hold scores, as 0.7"),
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
