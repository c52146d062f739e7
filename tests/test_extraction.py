"""Snippets: one request a passage, and each reply beside its passage."""

from __future__ import annotations

import asyncio

import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.records import SNIPPET_STATUSES, SNIPPET_TYPE, Ranking, Snippet


class Recording(arhn.Annotator):
    """Replies with ``reply(request)``, and keeps the requests."""

    awaits = False

    def __init__(self, reply=lambda request: Snippet(status="no_answer", detail=request.passage["docid"])):
        self.reply = reply
        self.requests = []

    async def snippet(self, request):
        self.requests.append(request)
        return self.reply(request)

    async def ranking(self, request):
        return Ranking(status="unparsed")

    def identity(self, stage):
        return {"annotator": "recording"}


class Waiting(Recording):
    """Replies later the earlier it was asked."""

    awaits = True

    async def snippet(self, request):
        self.requests.append(request)
        await asyncio.sleep(0.02 / len(self.requests))
        return self.reply(request)


def docids(row, column):
    """What :class:`Recording` wrote beside each passage."""
    return [snippet["detail"] for snippet in row[column]]


@pytest.mark.parametrize("annotator", [Recording, Waiting])
def test_snippets_are_aligned_with_the_passages(row, annotator):
    """Each reply stands at the place of its passage, whatever the order in which replies arrive."""
    result = arhn.Snippets(annotator=annotator())(row)
    assert docids(result, "positive_snippets") == ["p1"]
    assert docids(result, "negative_snippets") == ["n1", "n2", "n3"]
    assert {column: result[column] for column in row} == row


@pytest.mark.parametrize("status", SNIPPET_STATUSES)
def test_statuses_pass_through(row, status):
    """What the annotator says is what is stored, a failure too; nothing is raised."""
    given = Snippet(status=status, snippet="s", start=1, end=2, field="title", detail="why")
    result = arhn.Snippets(annotator=Recording(lambda _: given))(row)
    stored = {"snippet": "s", "start": 1, "end": 2, "field": "title", "status": status, "detail": "why"}
    assert result["positive_snippets"] == [stored]
    assert result["negative_snippets"] == [stored] * 3
    assert list(stored) == [field.name for field in SNIPPET_TYPE]


def test_requests(row):
    """A request holds the query, the whole passage, the task, and the texts of the row in an order of their own."""
    annotator = Recording()
    arhn.Snippets(annotator=annotator)(row)
    assert [request.passage for request in annotator.requests] == row["positive_passages"] + row["negative_passages"]
    assert {request.query for request in annotator.requests} == {row["query"]}
    (background,) = {request.background for request in annotator.requests}
    assert background == tuple(sorted(background))
    assert len(background) == 4
    assert "Tin\nThe melting temperature of tin is 232 °C. It is cheap." in background


@pytest.mark.parametrize(
    ("subset", "tasks", "task"),
    [
        ("fever", None, "claim"),
        ("metals", None, "question"),
        (None, None, "question"),
        ("metals", {"metals": "title"}, "title"),
        ("fever", "argument", "argument"),
    ],
)
def test_the_task_follows_the_subset(row, subset, tasks, task):
    """Each row is asked in the words of its task."""
    annotator = Recording()
    arhn.Snippets(annotator=annotator, tasks=tasks)({**row, "subset": subset})
    assert {request.task for request in annotator.requests} == {task}


def test_rows_of_several_subsets(row):
    """In one batch every row has its own task; without the column all are questions."""
    annotator = Recording()
    rows = [{**row, "subset": subset} for subset in ("fever", "scidocs", "nq")]
    Dataset.from_list(rows).map(arhn.Snippets(annotator=annotator), batched=True, load_from_cache_file=False)
    annotator = Recording()
    batch = {column: [row[column] for row in rows] for column in row}
    arhn.Snippets(annotator=annotator)(batch)
    assert [request.task for request in annotator.requests] == ["claim"] * 4 + ["title"] * 4 + ["question"] * 4
    annotator = Recording()
    arhn.Snippets(annotator=annotator)({column: value for column, value in batch.items() if column != "subset"})
    assert {request.task for request in annotator.requests} == {"question"}


def test_empty_lists(row):
    """A row without passages needs no request and has empty lists, typed in a dataset."""
    annotator = Recording()
    rows = [{**row, "positive_passages": [], "negative_passages": []}, row]
    result = arhn.Snippets(annotator=annotator)(rows[0])
    assert (result["positive_snippets"], result["negative_snippets"], annotator.requests) == ([], [], [])
    dataset = Dataset.from_list(rows[::-1]).map(arhn.Snippets(annotator=Recording()))
    assert [len(row["negative_snippets"]) for row in dataset] == [3, 0]
    assert dataset.features.arrow_schema.field("positive_snippets").type.value_type == SNIPPET_TYPE


def test_passages_that_are_a_title_alone(row):
    """A title is searched where there is no text, and the offsets are those into the title."""
    titled = {**row, "positive_passages": [{"docid": "t", "title": "Tin can melt at a temperature", "text": ""}]}
    (snippet,) = arhn.Snippets(annotator=arhn.Lexical())(titled)["positive_snippets"]
    assert (snippet["field"], snippet["status"]) == ("title", "grounded")
    assert titled["positive_passages"][0]["title"][snippet["start"] : snippet["end"]] == snippet["snippet"]


@pytest.mark.parametrize("column", ["query", "positive_passages", "negative_passages"])
def test_missing_columns(row, column):
    """The message names the column and how to bring rows into the canonical form."""
    del row[column]
    with pytest.raises(SchemaError, match=rf"needs the columns \['{column}'\].*arhn.adapt"):
        arhn.Snippets(annotator=Recording())(row)


@pytest.mark.parametrize("value", [None, "text", {"docid": ["p"]}])
def test_columns_that_hold_no_passages(row, value):
    """A column of another shape is refused, not read."""
    with pytest.raises(SchemaError, match="'positive_passages' holds .* was expected"):
        arhn.Snippets(annotator=Recording())({**row, "positive_passages": value})


def test_without_an_annotator(row):
    """The message names the three ways to configure one."""
    with pytest.raises(
        ConfigurationError, match=r"(?s)ARHN_ENDPOINT.*arhn.snippets.with_options\(endpoint.*annotator="
    ):
        arhn.snippets(row)


def test_identity():
    """The annotator's identity and the tasks decide; the same ones give the same."""
    base = arhn.Snippets(annotator=Recording())
    assert base.identity() == arhn.Snippets(annotator=Recording()).identity()
    assert base.identity() != base.with_options(tasks="claim").identity()
    assert base.identity() != base.with_options(tasks={"metals": "claim"}).identity()
    assert base.identity() != base.with_options(annotator=arhn.Lexical()).identity()
