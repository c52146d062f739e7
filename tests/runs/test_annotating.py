"""Tables through the stages: how many at once, in which order, and what an error leaves."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from arhn_datasets.annotators.interface import Snippet
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.records import NO_ANSWER
from arhn_datasets.runs import refine as engine
from arhn_datasets.runs.refine import annotated
from tests.runs.annotators import Failing
from tests.runs.test_refine import stages


class Together(Failing):
    """Answers nobody before so many wait for it; after the query of ``failing`` nobody at all."""

    awaits = True

    def __init__(self, expected=1, failing=None):
        super().__init__()
        self.expected, self.failing = expected, failing
        self.waiting = self.cancelled = 0
        self.here = asyncio.Event()

    async def snippet(self, request):
        """No answer, in the end."""
        self.waiting += 1
        if self.waiting >= self.expected:
            self.here.set()
        try:
            await asyncio.wait_for(self.here.wait(), 60)
            if request.query == self.failing:
                raise ConfigurationError("the annotator is gone")
            await asyncio.sleep(60 if self.failing else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Snippet(status=NO_ANSWER)


def tables_of(rows, size):
    """The rows in tables, each with its number."""
    whole = pa.Table.from_pylist(rows)
    yield from ((whole.slice(start, size), start) for start in range(0, len(rows), size))


def passages(rows):
    """How many there are."""
    return sum(len(row["positive_passages"]) + len(row["negative_passages"]) for row in rows)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_all_rows_of_the_window_ask_together(sample, size):
    """Nobody is answered before all passages of all rows are asked about, and the rows come in their order."""
    annotator = Together(passages(sample))
    found = list(annotated(tables_of(sample, size), stages(annotator).transforms))
    assert [number for _, number in found] == list(range(0, len(sample), size))
    assert [row["query_id"] for table, _ in found for row in table.to_pylist()] == [row["query_id"] for row in sample]
    assert annotator.waiting == passages(sample)


@pytest.mark.parametrize("name", ["WINDOW_ROWS", "WINDOW_BYTES"])
def test_no_more_is_read_than_the_window_holds(sample, name, monkeypatch):
    """Where the first rows take long, no table beyond the window is taken from the input."""
    size = sum(table.nbytes for table, _ in tables_of(sample[:8], 4))
    monkeypatch.setattr(engine, name, 8 if name == "WINDOW_ROWS" else size)
    annotator, taken = Together(passages(sample[:8])), []

    def read():
        for table, number in tables_of(sample, 4):
            taken.append(number)
            yield table, number

    rows = annotated(read(), stages(annotator).transforms)
    next(rows)
    assert taken == [0, 4]
    rows.close()


def test_an_error_ends_what_is_under_way(sample):
    """It is raised at its row, and what waits is cancelled."""
    annotator = Together(passages(sample), failing=sample[0]["query"])
    with pytest.raises(ConfigurationError, match="is gone"):
        list(annotated(tables_of(sample, 4), stages(annotator).transforms))
    assert annotator.cancelled > 0
