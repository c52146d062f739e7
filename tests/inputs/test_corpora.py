"""Rows of ids, whose passages are looked up in a corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset
from tests.inputs.lighthouses import (
    CORPUS,
    FLAG,
    ID_ROW,
    NO,
    QUERY,
    YES,
    Row,
    adapt_row,
    adapted_to,
    canonical,
    passage,
    texts,
)


def test_document_ids_need_a_corpus() -> None:
    """A row of ids cannot be adapted alone, and the message says what to call."""
    row = {"query_id": "q1", "query_text": QUERY, "positive_document_ids": ["d1"], "negative_document_ids": []}

    with pytest.raises(SchemaError, match=r"query_id 'q1'.*adapt_dataset\(ds, corpus=\.\.\.\)"):
        adapt_row(row)
    assert arhn.adapt.dropped(row) == ("query_text", "positive_document_ids", "negative_document_ids")


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


def test_a_row_of_broken_ids_in_a_dataset_is_numbered() -> None:
    """Ids are read before any corpus is."""
    ds = Dataset.from_list([ID_ROW, {**ID_ROW, "negative_document_ids": [None]}])

    with pytest.raises(SchemaError, match=r"'q1' \(row 1, .*null or empty docid"):
        adapt_dataset(ds, corpus=CORPUS)


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
