"""Rows about lighthouses in several forms, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.adaptation import adapt_rows
from arhn_datasets.rows.records import stable_docid, stable_query_id

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
QUERY = "why do lighthouses blink"
YES = "Each lighthouse has its own rhythm, so that a crew can tell which one it sees."
NO = "The keeper's cottage was painted white every spring."
ALSO_NO = "Lamp oil came by ship twice a year."


def adapt_row(row: Row) -> Row:
    """One row as a canonical row, of Python objects throughout."""
    return adapt_rows([row])[0]


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


FLAG = {"query": QUERY, "pos": [YES], "neg": [NO]}
TRIPLET = {"anchor": QUERY, "positive": YES, "negative": NO}
LABELLED = {"query": QUERY, "docs": [YES, NO], "labels": [1, 0]}
# Where a list may stand, a text that reads as one is refused.
words = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and text.strip()[0] not in "[(")
sides = st.lists(words, min_size=2, max_size=8, unique=True).flatmap(
    lambda found: st.integers(1, len(found) - 1).map(lambda cut: (found[:cut], found[cut:]))
)
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


def outcome(read: Callable[[], list[Row]]) -> list[Row] | str:
    """The rows, or what is wrong with one of them."""
    try:
        return read()
    except SchemaError as error:
        return str(error)
