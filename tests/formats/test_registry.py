"""The formats that there are: found by their files, described in the README, and a further one in one file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

import arhn_datasets as arhn
from arhn_datasets import formats
from arhn_datasets.folder.card import is_there
from arhn_datasets.formats.format import Options, examples_of, known_formats

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROW = {
    "query_id": "q",
    "query": "a query",
    "positive_passages": [{"docid": "a", "title": "", "text": "a text"}],
    "negative_passages": [],
}


def test_the_table_of_the_readme_is_the_registry():
    """Every format has its line there, with those for whom it is, and no line is of another."""
    table = README.split("| `--format` | for | content |\n")[1].split("\n\n")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines()[1:]]
    told = {name: purpose.strip() for names, purpose in lines for name in re.findall(r"`([\w-]+)`", names)}
    assert told == {name: format.purpose for name, format in known_formats().items()}


def test_every_format_has_an_example_and_a_place():
    """The card shows how each is loaded, and they come in one order."""
    assert all(is_there(f"formats/{format.example or name}") for name, format in known_formats().items())
    retrieval = ["corpus", "queries", "qrels"]
    reranking = [f"arhn-reranking-{name}" for name in (*retrieval, "top_ranked")]
    there = [*known_formats(), "default", *retrieval, *reranking]
    assert {name for shown in examples_of(there).values() for name in shown} == set(known_formats())
    places = [format.place for format in known_formats().values()]
    assert len(set(places)) == len(places)


@pytest.fixture
def further_format(tmp_path, monkeypatch):
    """A folder with the file of a format beside those of the package, which is forgotten afterwards."""
    (tmp_path / "bare_query.py").write_text(
        """
from arhn_datasets.formats.format import queries
from arhn_datasets.formats.format import TEXT, Format, Table

TABLE = Table(
    name="bare-query",
    types=lambda options: {"query": TEXT},
    columns=lambda rows, options: ({"query": queries(rows)}, {}),
)
FORMAT = Format(name="bare-query", purpose="tests", tables=(TABLE,))
"""
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    known_formats.cache_clear()
    yield "bare-query"
    known_formats.cache_clear()
    sys.modules.pop("arhn_datasets.formats.bare_query", None)


def test_a_further_format_is_one_file(further_format, tmp_path):
    """It is exported and loads, the command offers it, and the card knows its columns."""
    from arhn_datasets.cli import export_parser

    arhn.export(Dataset.from_list([ROW]), further_format, tmp_path / "out")
    assert load_dataset(str(tmp_path / "out"), further_format, split="train").to_list() == [{"query": "a query"}]
    assert further_format in export_parser().format_help()
    assert known_formats()[further_format].tables[0].content(Options()) == "`query`"
