"""Snippets: one request a passage, and each reply beside its passage."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Ranking, Snippet
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.records import SNIPPET_STATUSES, SNIPPET_TYPE


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


NOTHING_FOUND = {"snippet": None, "start": None, "end": None, "field": None}


def stored(given, row):
    """What is stored where the annotator gives this on every passage; the same on all of them."""
    result = arhn.Snippets(annotator=Recording(lambda _: given))(row)
    first = result["positive_snippets"][0]
    assert result["positive_snippets"] + result["negative_snippets"] == [first] * 4
    assert list(first) == [field.name for field in SNIPPET_TYPE]
    return first


@pytest.mark.parametrize("status", SNIPPET_STATUSES[1:])
def test_statuses_pass_through(row, status):
    """What the annotator says is what is stored, a failure too; nothing is raised."""
    assert stored(Snippet(status=status, detail="why"), row) == {**NOTHING_FOUND, "status": status, "detail": "why"}


@pytest.mark.parametrize("number", [int, np.int64])
@pytest.mark.parametrize("field", ["text", "title"])
def test_a_snippet_that_stands_in_the_passage_passes_through(row, field, number):
    """At its offsets, in the text or in the title, which are stored as whole numbers whatever they came as."""
    row = {**row, "negative_passages": [{"docid": "n", "title": "Tin, 錫", "text": "Tin, 錫 is soft."}]}
    given = Snippet(status="grounded", snippet="錫", start=number(5), end=number(6), field=field, detail="why")
    result = arhn.Snippets(annotator=Recording(lambda _: given))(row)
    (found,) = result["negative_snippets"]
    assert found == {"snippet": "錫", "start": 5, "end": 6, "field": field, "status": "grounded", "detail": "why"}
    assert {type(found["start"]), type(found["end"])} == {int}
    assert result["positive_snippets"][0]["status"] == "ungrounded"


@pytest.mark.parametrize(
    "wrong",
    [
        {"snippet": "invented", "end": 8},
        {"snippet": "in", "end": 2},
        {"start": 100_000, "end": 100_003},
        {"end": 100_000},
        {"end": 2},
        {"start": -22, "end": -19},
        {"start": 3, "end": 0},
        {"start": None, "end": None},
        {"start": "0", "end": "3"},
        {"start": 0.0, "end": 3.0},
        {"field": "title"},
        {"field": "docid"},
        {"field": None},
        {"snippet": ""},
        {"snippet": "", "end": 0},
        {"snippet": b"Tin"},
        {"snippet": None, "start": None, "end": None, "field": None},
    ],
)
def test_a_snippet_that_does_not_stand_there_is_ungrounded(row, wrong):
    """Of annotators of one's own, too, only what the passage says at these offsets counts; the detail says the rest."""
    row = {**row, "positive_passages": [{"docid": "p", "title": None, "text": "Tin is soft, and melts."}]}
    given = Snippet(**{"status": "grounded", "snippet": "Tin", "start": 0, "end": 3, "field": "text", **wrong})
    (found,) = arhn.Snippets(annotator=Recording(lambda _: given))(row)["positive_snippets"]
    assert found == {**NOTHING_FOUND, "status": "ungrounded", "detail": found["detail"]}
    assert repr(given.snippet) in found["detail"]
    assert f"{given.field}[{given.start}:{given.end}]" in found["detail"]


@pytest.mark.parametrize(
    ("given", "status", "detail"),
    [
        (Snippet(status="great", snippet="Tin", start=0, end=3, field="text"), "unparsed", "status 'great'; one of"),
        (Snippet(status=None), "unparsed", "status None; one of grounded, no_answer"),
        (Snippet(status="error", snippet="Tin", start=0, end=3, field="text", detail="why"), "error", "why"),
        (Snippet(status="ungrounded", start=100_000, detail="why"), "ungrounded", "why"),
        (Snippet(status="no_answer", snippet="", start=0, end=0, field="text", detail="why"), "no_answer", "why"),
        (Snippet(status="no_answer", snippet="Tin"), "unparsed", "no_answer beside the snippet 'Tin'"),
        (None, "unparsed", "None; a Snippet was expected"),
        ("Tin", "unparsed", "'Tin'; a Snippet was expected"),
        ({"status": "grounded"}, "unparsed", "a Snippet was expected"),
    ],
)
def test_what_no_annotator_may_say_is_no_snippet(row, given, status, detail):
    """Unknown statuses, offsets beside a failure and what is no snippet at all are no evidence, and raise nothing."""
    found = stored(given, row)
    assert found == {**NOTHING_FOUND, "status": status, "detail": found["detail"]}
    assert detail in found["detail"]


@pytest.mark.parametrize(("snippet", "start"), [("invented", 0), (None, None), ("Tin", 100_000)])
def test_invented_snippets_move_no_label(row, snippet, start):
    """Through all stages: no passage leaves its list."""
    annotator = Recording(lambda _: Snippet(status="grounded", snippet=snippet, start=start, end=start, field="text"))
    result = arhn.Ranks(annotator=annotator)(arhn.Snippets(annotator=annotator)(row))
    assert result["ranking"]["status"] == "skipped"
    for policy in ("relabel", "filter", "relabel+filter"):
        assert arhn.Relabel(policy=policy)(result)["negative_passages"] == row["negative_passages"]


def test_a_screen_is_checked_as_well(row):
    """What is known without asking stands under the same condition."""

    class Screen(Recording):
        async def screened_snippets(self, positives, negatives):
            return [Snippet(status="grounded", snippet="invented", start=0, end=8, field="text")] * 4

    result = arhn.Snippets(annotator=Screen())(row)
    assert {s["status"] for s in result["positive_snippets"] + result["negative_snippets"]} == {"ungrounded"}


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


STAGES = (arhn.snippets, arhn.ranks, arhn.verdicts, arhn.grades)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.NAME)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotator": arhn.Lexical}, r"annotator is the class Lexical; .*annotator=arhn\.Lexical\(\.\.\.\)"),
        ({"annotator": Recording}, r"annotator is the class Recording; .*annotator=Recording\(\.\.\.\)"),
        ({"annotator": "http://me:secret@x"}, r"annotator is 'http://x'; .*endpoint=\"http://localhost:8080\""),
        ({"annotator": object}, r"annotator is <class 'object'>; an arhn.Annotator .*arhn.Lexical\(\)"),
        ({"annotator": 5}, r"annotator is 5; an arhn.Annotator"),
        ({"endpoint": arhn.Endpoint("http://x")}, r"endpoint is Endpoint\(.*; .*annotator=arhn.Endpoint\("),
        ({"endpoint": arhn.Lexical()}, r"endpoint is Lexical\(.*; the URL .*annotator="),
        ({"endpoint": 8080}, r"endpoint is 8080; the URL of a server.*\"http://localhost:8080\""),
        ({"endpoint": ["http://me:secret@x", None]}, r"endpoint is \['http://x', None\]; the URL"),
        ({"annotator": "http://[secret"}, "annotator is 'a URL that cannot be read'; an arhn.Annotator"),
        ({"endpoint": "http://x", "concurrency": "4"}, "concurrency is '4'; a whole number from 1, or None"),
        ({"endpoint": "http://x", "concurrency": 0}, "concurrency is 0; a (whole )?number from 1"),
        ({"endpoint": "http://x", "concurrency": 2.0}, "concurrency is 2.0; a whole number"),
        ({"endpoint": "http://x", "timeout": "300"}, "timeout is '300'; a number of seconds above 0"),
    ],
)
def test_what_is_no_annotator_is_refused_at_once(stage, options, message):
    """Where it is given, not in the first row; the message says what was given and how to say it."""
    with pytest.raises(ConfigurationError, match=message) as refused:
        stage.with_options(**options)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.NAME)
@pytest.mark.parametrize("query", [None, 5])
def test_a_row_without_a_query(row, stage, query):
    """The message names the row and what to do, whoever the annotator is; nobody is asked."""
    found = arhn.Snippets(annotator=arhn.Lexical())(row)
    annotator = Recording()
    rows = [found, {**found, "query_id": "q2", "query": query}]
    batch = {column: [row[column] for row in rows] for column in found}
    for asked in (rows[1], batch):
        message = rf"arhn\.{stage.NAME} .*{'null' if query is None else 'int'} \(query_id 'q2'\); a text .*ds\.filter"
        with pytest.raises(SchemaError, match=message):
            stage.with_options(annotator=annotator)(asked)
    del rows[1]["query_id"]
    with pytest.raises(SchemaError, match="no query_id"):
        stage.with_options(annotator=annotator)(rows[1])
    assert annotator.requests == []


def test_identity():
    """The annotator's identity and the tasks decide; the same ones give the same."""
    base = arhn.Snippets(annotator=Recording())
    assert base.identity() == arhn.Snippets(annotator=Recording()).identity()
    assert base.identity() != base.with_options(tasks="claim").identity()
    assert base.identity() != base.with_options(tasks={"metals": "claim"}).identity()
    assert base.identity() != base.with_options(annotator=arhn.Lexical()).identity()
