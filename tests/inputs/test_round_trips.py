"""What is exported is read again: every format that has the queries' rows, and the forms of other trainers."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from arhn_datasets.errors import SchemaError
from arhn_datasets.formats.format import Options, known_formats
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.inputs.forms import FORMS
from tests.inputs.lighthouses import ALSO_NO, NO, QUERY, YES, Row, adapted_to, passage, sides, texts, words

PAIRS = ("pair",)  # without negatives
WRITTEN = [name for form in FORMS for name in form.written.split(", ") if name]
OTHERS = ("beir", "mteb", "mteb-reranking", "pylate")  # of several tables, or with scores in place of labels
ROWWISE = [name for name in WRITTEN if name in known_formats() and name not in OTHERS]

rows_of_texts = st.dictionaries(words, sides, min_size=1, max_size=4)


def canonical_rows(rows: dict[str, tuple[list[str], list[str]]]) -> list[Row]:
    """Rows of texts as canonical ones."""
    return adapt_dataset([{"query": q, "pos": pos, "neg": neg} for q, (pos, neg) in rows.items()]).to_list()


def without_ids(rows: list[Row]) -> dict[str, tuple[set[str], set[str]]]:
    """The texts of each query, by their sides."""
    return {
        row["query"]: tuple(set(texts(row[f"{side}_passages"])) for side in ("positive", "negative")) for row in rows
    }


def test_the_forms_name_formats_that_there_are() -> None:
    """Each format is that of one form, in which it is read again."""
    assert set(known_formats()) <= set(WRITTEN)
    assert len(set(WRITTEN)) == len(WRITTEN)


@pytest.mark.parametrize("name", ROWWISE)
@settings(max_examples=10, deadline=None)
@given(rows=rows_of_texts)
def test_an_export_is_read_again(name: str, rows: dict[str, tuple[list[str], list[str]]]) -> None:
    """The rows of every format, as dicts and as a dataset, give back the queries with their passages."""
    given_rows = canonical_rows(rows)
    [table] = known_formats()[name].tables
    exported, left_out = table.of(pa.Table.from_pylist(given_rows), Options())
    assert not left_out
    expected = given_rows if name not in PAIRS else [{**row, "negative_passages": []} for row in given_rows]

    for read in (exported.to_pylist(), Dataset(exported)):
        assert without_ids(adapt_dataset(read).to_list()) == without_ids(expected)
    if name == "flagembedding":
        assert adapt_dataset(exported.to_pylist()).to_list() == expected


SCORED = {"query": QUERY, "positive": YES, "negatives": [NO, ALSO_NO], "scores": [0.9, 0.5, 0.25]}
ONE = adapted_to([YES], [NO, ALSO_NO])


def said(text: str, role: str = "assistant") -> list[Row]:
    """A conversation of one message."""
    return [{"role": role, "content": text}]


ASKED = said(QUERY, "user")
THEIRS: dict[str, list[Row]] = {
    "ms-swift responses": [{"query": QUERY, "response": YES, "rejected_response": [NO, ALSO_NO]}],
    "nomic": [{"query": QUERY, "document": YES, "negatives": [NO, ALSO_NO]}],
    "a list of negatives": [{"anchor": QUERY, "positive": YES, "negative": [NO, ALSO_NO]}],
    "pos as a text": [{"question": QUERY, "pos": YES, "neg": [NO, ALSO_NO]}],
    "MTEB reranking": [{"query": QUERY, "positive": [YES], "negative": [NO, ALSO_NO]}],
    "numbered": [{"query": QUERY, "positive": YES, "negative_2": ALSO_NO, "negative_1": NO}],
    "labelled pairs": [
        {"query": QUERY, "passage": text, "label": label} for text, label in ((NO, 0), (YES, 1), (ALSO_NO, 0))
    ],
    "labelled pairs of a CSV file": [
        {"query": QUERY, "passage": text, "label": label} for text, label in ((NO, "0"), (YES, "1"), (ALSO_NO, "0"))
    ],
    "scores of a CSV file that are labels": [
        {"query": QUERY, "passage": text, "score": label} for text, label in ((NO, "0"), (YES, "1"), (ALSO_NO, "0"))
    ],
    "mined labelled pairs": [
        {"query": QUERY, "answer": text, "label": label} for text, label in ((YES, 1), (NO, 0), (ALSO_NO, 0))
    ],
    "mined labelled list": [{"query": QUERY, "answer": [YES, NO, ALSO_NO], "labels": [1, 0, 0]}],
    "labels that are bools": [{"query": QUERY, "docs": [YES, NO, ALSO_NO], "labels": [True, False, False]}],
    "graded labels as floats": [{"query": QUERY, "docs": [YES, NO, ALSO_NO], "labels": [2.0, 0.0, 0.0]}],
    "messages": [
        {"messages": ASKED, "positive_messages": [said(YES)], "negative_messages": [said(NO, "user"), said(ALSO_NO)]}
    ],
    "messages with the reply": [
        {"messages": [*ASKED, *said(YES)], "rejected_messages": [[*ASKED, *said(NO)], said(ALSO_NO)]}
    ],
    "messages of parts": [
        {
            "messages": ASKED,
            "positive_messages": [[{"role": "assistant", "content": [{"type": "text", "text": YES}]}]],
            "rejected_messages": [said(NO), said(ALSO_NO)],
        }
    ],
    "NeMo": [{"question": QUERY, "pos_doc": {"text": YES}, "neg_doc": [{"text": NO}, {"text": ALSO_NO}]}],
    "NeMo texts": [{"query": QUERY, "pos_doc": YES, "neg_doc": [NO, ALSO_NO]}],
}


@pytest.mark.parametrize("form", THEIRS)
def test_forms_of_other_trainers_are_read(form: str) -> None:
    """Rows as these trainers write them, of dicts and in Arrow, are the one row that they mean."""
    for read in (lambda rows: rows, Dataset.from_list):
        rows: Any = THEIRS[form]
        if form == "messages of parts" and read is Dataset.from_list:
            continue  # content of two types
        assert adapt_dataset(read(rows)).to_list() == [ONE], read


def test_an_instruction_becomes_a_prompt() -> None:
    """The system message in front of the query is kept beside it."""
    rows = [{**THEIRS["messages"][0], "messages": [*said("Find it", "system"), *ASKED]}]

    for read in (rows, Dataset.from_list(rows)):
        assert adapt_dataset(read).to_list() == [{**ONE, "prompt": "Find it"}]


@pytest.mark.parametrize("messages", [None, [], said(YES), [*ASKED, *said(YES), *ASKED], [{"role": "user"}], "why"])
def test_messages_that_ask_nothing_or_twice_are_refused(messages: Any) -> None:
    """The query is one message of the user."""
    with pytest.raises(SchemaError, match=r"messages'? holds"):
        adapt_dataset([{**THEIRS["messages"][0], "messages": messages}])


def test_ids_of_nemo_are_looked_up() -> None:
    """Rows of ids get their texts from a corpus, and without one the message says so."""
    rows = [
        {"question_id": 7, "question": QUERY, "corpus_id": "c", "pos_doc": [{"id": "d1"}], "neg_doc": [{"id": "d2"}]}
    ]
    corpus = [{"id": "d1", "text": YES}, {"id": "d2", "text": NO}]

    for read in (rows, Dataset.from_list(rows)):
        [row] = adapt_dataset(read, corpus=corpus).to_list()
        assert (row["query_id"], row["positive_passages"]) == ("7", [passage(YES, "d1")])
        assert row["negative_passages"] == [passage(NO, "d2")]
        with pytest.raises(SchemaError, match="corpus="):
            adapt_dataset(read)


def test_scores_of_mined_tuples_stay_with_their_passages() -> None:
    """The list has the positive's first, then those of the negatives, in every output format of the miner."""
    triplets = [
        {"anchor": QUERY, "positive": YES, "negative": NO, "scores": [0.9, 0.5]},
        {"anchor": QUERY, "positive": YES, "negative": ALSO_NO, "scores": [0.9, 0.25]},
    ]
    n_tuple = [{"anchor": QUERY, "positive": YES, "negative_1": NO, "negative_2": ALSO_NO, "scores": [0.9, 0.5, 0.25]}]
    for rows in (triplets, n_tuple, [SCORED]):
        for read in (rows, Dataset.from_list(rows)):
            [row] = adapt_dataset(read).to_list()
            assert [p["score"] for p in row["positive_passages"]] == [0.9]
            assert [p["score"] for p in row["negative_passages"]] == [0.5, 0.25]
