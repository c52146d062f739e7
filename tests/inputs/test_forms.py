"""Every known form becomes canonical rows, and what could mislead a trainer is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.adaptation import adapt_rows
from arhn_datasets.inputs.forms import FORMS
from arhn_datasets.rows.records import stable_query_id
from tests.inputs.lighthouses import (
    ALSO_NO,
    FLAG,
    LABELLED,
    NO,
    QUERY,
    ROOT,
    TRIPLET,
    YES,
    Row,
    adapt_row,
    adapted_to,
    canonical,
    passage,
    sides,
    texts,
    words,
)


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


@pytest.mark.parametrize("column", ["labels", "label", "scores", "score"])
def test_scores_of_a_list_need_a_threshold(column: str) -> None:
    """From the threshold on a passage is positive, and its score stays with it."""
    row = {"query": QUERY, "docs": [NO, YES, ALSO_NO], column: [-0.5, 0.7, 0.25]}

    [adapted] = adapt_rows([row], threshold=0.7)

    assert [passage(YES, score=0.7)] == adapted["positive_passages"]
    assert [passage(NO, score=-0.5), passage(ALSO_NO, score=0.25)] == adapted["negative_passages"]
    assert arhn.adapt.with_options(threshold=0.7)(row) == adapted
    with pytest.raises(SchemaError, match=r"holds scores, as .*--label-threshold X.*threshold=X"):
        adapt_row(row)


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


def test_unknown_columns_are_refused_with_the_known_forms() -> None:
    """The message names the columns found and every form."""
    with pytest.raises(SchemaError, match=r"no known form: \['pos', 'utterance'\]") as caught:
        adapt_row({"utterance": QUERY, "pos": [YES]})

    assert all(form.label in str(caught.value) for form in FORMS)


def test_the_readme_has_a_line_for_every_form() -> None:
    """Its table of forms is the list of forms."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Training forms that are recognised")[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")]
    written = [", ".join(f"`{name}`" for name in form.written.split(", ") if name) for form in FORMS]
    assert lines[1:] == [
        f"| {form.label} | `{form.columns}` | {names} |".replace("  |", " |")
        for form, names in zip(FORMS, written, strict=True)
    ]


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**FLAG, "pos": f"['{YES}']"}, r"query 'why do lighthouses blink'.*'pos' holds a str.*a list of texts"),
        ({**FLAG, "neg": "[]"}, "'neg' holds a str"),
        ({**FLAG, "neg": [["no"]]}, "'neg' holds a list .* where the text"),
        ({**FLAG, "query": "  "}, "'query' holds a str .* where the text of a query"),
        ({**FLAG, "query": None}, "'query' holds null"),
        ({**FLAG, "pos": []}, "no positive passage"),
        ({**FLAG, "pos": None}, "no positive passage"),
        ({**FLAG, "pos": [""]}, "no positive passage"),
        ({**FLAG, "neg": [NO, YES]}, "both positive and negative"),
        ({**FLAG, "pos_scores": [1.0, 2.0]}, "'pos_scores' has 2 values and 'pos' has 1"),
        ({**FLAG, "pos_scores": ["high"]}, "'pos_scores' holds a str .* where a number"),
        ({**TRIPLET, "positive": None}, "no positive passage"),
        ({**TRIPLET, "negative": [[NO]]}, "'negative' holds a list .* where the text of one passage"),
        ({**TRIPLET, "scores": [0.5, 0.2, 0.1]}, "'scores' has 3 values and 'the passages of the row' has 2"),
        ({**TRIPLET, "scores": 0.5}, "'scores' has 1 values and 'the passages of the row' has 2"),
        ({"query": QUERY, "passage": NO, "label": 0}, "no positive passage"),
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


def test_values_of_several_types_are_read_each_by_itself() -> None:
    """Ids may be strings here and integers there, of any size; a value of another kind is the one that is named."""
    ids = [1, "b", 8.0, 2**64 - 1, None]
    rows = [canonical(query_id=found, query=f"q{place}") for place, found in enumerate(ids)]

    found = [row["query_id"] for row in adapt_rows(rows)]

    assert found == ["1", "b", "8", str(2**64 - 1), stable_query_id("q4")]
    for wrong in (1.5, True, b"c", object(), [1]):
        named = f"query_id .* \\(row 1, .*'query_id' holds a {type(wrong).__name__} .* as an id"
        with pytest.raises(SchemaError, match=named):
            adapt_rows([rows[0], {**rows[1], "query_id": wrong}, *rows[2:]], range(5))
    with pytest.raises(SchemaError, match="'neg' holds a int .3. where the text of one passage"):
        adapt_row({**FLAG, "neg": [NO, 3]})


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


def test_a_copy_of_a_positive_under_another_docid_is_read() -> None:
    """Such a negative is false, and finding it is what refining is for."""
    row = canonical(negative_passages=[passage(YES, "d2")])
    assert [p["docid"] for p in adapt_row(row)["negative_passages"]] == ["d2"]


def test_half_a_surrogate_pair_is_refused() -> None:
    """A text that no file can hold is named before it is written."""
    with pytest.raises(SchemaError, match=r"surrogate pair.*'surrogatepass'"):
        adapt_row({**FLAG, "neg": ["half \ud83d"]})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("-2e-3", -0.002),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("nan", None),
        ("0x1", None),
        (" 1", None),
        ("", None),
    ],
)
def test_a_number_that_is_written_as_text_is_a_number(text, number):
    """CSV has only texts; whatever else is no decimal number is refused as before."""
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [text], "neg_scores": ["1"]}
    if number is None:
        with pytest.raises(SchemaError, match="where a number was expected"):
            arhn.adapt(row)
        return
    assert arhn.adapt(row)["positive_passages"][0]["score"] == number


@pytest.mark.parametrize(
    ("column", "value", "advice"),
    [
        ("pos", [datetime.date(1969, 7, 20)], "make dates of texts that look like them; arhn-refine FILE"),
        ("pos", [datetime.datetime(1969, 7, 20)], "make dates of texts that look like them"),
        ("query_id", 1.4695981039346655e19, "long ids, and digits are lost"),
    ],
)
def test_what_a_loader_has_made_of_a_file_is_told(column, value, advice):
    """A date where a text was, and a float where a long id was: how the file is read as it is written."""
    with pytest.raises(SchemaError, match=advice):
        arhn.adapt({"query": "q", "pos": ["p"], "neg": ["n"], column: value})
