"""Grades: one request a passage, and a whole number beside each."""

from __future__ import annotations

import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Grade, Ranking, Snippet
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.records import GRADE_TYPE
from arhn_datasets.testing import Emulator


class Judge(arhn.Annotator):
    """Replies to each request with ``reply(text)``, and keeps the requests."""

    awaits = False

    def __init__(self, reply):
        self.reply = reply
        self.requests = []

    async def snippet(self, request):
        return Snippet(status="unparsed")

    async def ranking(self, request):
        return Ranking(status="unparsed")

    async def grade(self, request):
        self.requests.append(request)
        return self.reply(request.passage["text"])

    def identity(self, stage):
        return {"annotator": "judge", "stage": stage}


def told(row, side="negative", field="grade"):
    """One field of each grade."""
    return [grade[field] for grade in row[f"{side}_grades"]]


def test_grades_are_aligned_with_the_passages(row):
    """Each stands at the place of its passage; the request holds the whole passage and the task."""
    order = [passage["text"] for passage in row["negative_passages"] + row["positive_passages"]]
    judge = Judge(lambda text: Grade(status="judged", grade=order.index(text)))
    result = arhn.Grades(annotator=judge, tasks="title")(row)
    assert (told(result, "positive"), told(result)) == ([3], [0, 1, 2])
    assert [request.passage for request in judge.requests] == row["positive_passages"] + row["negative_passages"]
    assert {(request.task, request.query, len(request.background)) for request in judge.requests} == {
        ("title", row["query"], 4)
    }


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Grade(status="judged", grade=4), "unparsed"),
        (Grade(status="judged", grade=-1), "unparsed"),
        (Grade(status="judged", grade=True), "unparsed"),
        (Grade(status="judged", grade=1.5), "unparsed"),
        (Grade(status="judged"), "unparsed"),
        (Grade(status="error", grade=3), "error"),
        (Grade(status="unparsed"), "unparsed"),
        (Grade(status="great"), "unparsed"),
        (Grade(status="great", grade=3), "unparsed"),
        (None, "unparsed"),
        (3, "unparsed"),
    ],
)
def test_what_no_annotator_may_say_is_no_grade(row, reply, status):
    """Of annotators of one's own, too, only whole grades from 0 to 3 count."""
    result = arhn.Grades(annotator=Judge(lambda _: reply))(row)
    assert (told(result), told(result, field="status")) == ([None] * 3, [status] * 3)


def test_columns_are_typed(row):
    """From the first row on, where all grades are null, and in a row without passages."""
    rows = Dataset.from_list([row, {**row, "negative_passages": []}])
    rows = rows.map(arhn.Grades(annotator=Judge(lambda _: Grade(status="error"))))
    for column in ("positive_grades", "negative_grades"):
        assert rows.features.arrow_schema.field(column).type.value_type == GRADE_TYPE
    assert [told(row) for row in rows] == [[None] * 3, []]


def test_without_an_annotator_that_grades(row):
    """The messages name what to do."""
    with pytest.raises(ConfigurationError, match=r"arhn\.grades\.with_options"):
        arhn.grades(row)

    class Plain(Judge):
        grade = arhn.Annotator.grade

    with pytest.raises(ConfigurationError, match=r"Plain has no method grade\(\), so that it gives no grades"):
        arhn.Grades(annotator=Plain(None))(row)


def test_the_lexical_baseline_grades(row):
    """0 without a snippet, and more the more of the query is covered."""
    result = arhn.Grades(annotator=arhn.Lexical(threshold=0.1, of_best=0))(row)
    assert told(result)[2] == 0
    assert told(result)[0] >= told(result)[1] > 0
    full = {**row, "negative_passages": [{"docid": "n", "title": "", "text": row["query"]}]}
    assert told(arhn.Grades(annotator=arhn.Lexical(threshold=1.0))(full)) == [3]


@pytest.mark.parametrize("constrained", [False, True])
def test_an_endpoint_gives_the_grades_of_its_model(sample, constrained):
    """Over HTTP, as plain text and as JSON, they are those of the lexical baseline behind the server."""
    with Emulator() as server:
        rows = Dataset.from_list(sample[:8])
        graded = rows.map(arhn.Grades(annotator=arhn.Endpoint(server.url, constrained=constrained)))
    assert {s for row in graded for s in told(row, field="status")} == {"judged"}
    assert {0, 1} < {grade for row in graded for grade in told(row)} <= {0, 1, 2, 3}


def test_other_replies_are_no_grades(row):
    """A reply that is no single grade is unparsed, whatever digits it holds."""
    with Emulator(reply="I would say 2 or 3.") as server:
        result = arhn.Grades(endpoint=server.url)(row)
    assert (told(result), set(told(result, field="status"))) == ([None] * 3, {"unparsed"})


def test_the_cascade_grades_again_what_the_screen_does_not_rule_out(row):
    """Negatives of grade 0 keep it; positives are always graded by the strong annotator."""
    screen = Judge(lambda text: Grade(status="judged", grade=0 if "Copper" in text else 1))
    strong = Judge(lambda _: Grade(status="judged", grade=3))
    result = arhn.Grades(annotator=arhn.Cascade(screen, strong))(row)
    assert (told(result, "positive"), told(result)) == ([3], [3, 3, 0])
    assert told(result, field="detail")[2].startswith("by the screen alone")
    assert len(strong.requests) == 3
    failing = Judge(lambda _: Grade(status="error"))
    assert told(arhn.Grades(annotator=arhn.Cascade(failing, strong))(row)) == [3, 3, 3]
