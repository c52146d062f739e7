"""What the progress bar says."""

from __future__ import annotations

import io
import time

import pytest
from tqdm import tqdm

from arhn_datasets.runs import refine as engine
from arhn_datasets.runs.refine import format_statistics, live


@pytest.mark.parametrize(
    ("now", "before", "text"),
    [
        ({}, {}, ""),
        ({"replies": 5}, {"replies": 2}, "3 replies"),
        (
            {"replies": 2000, "stored": 7, "prompt_tokens": 900, "completion_tokens": 100, "in_flight": 64},
            {},
            "2,000 replies, 7 from the store, 500 tokens/s, 64 in flight",
        ),
        (
            {"replies": 1, "retries": 2, "failures": 3, "waiting_for_servers": True},
            {"retries": 1},
            "1 replies, 1 retries, 3 failed, WAITING for the endpoint",
        ),
    ],
)
def test_a_line_of_what_happened_since_the_stage_began(now, before, text):
    """Only what there is to say, and a dead endpoint in capitals."""
    assert format_statistics(now, before, 2.0) == text


class Bar:
    """What a bar says."""

    said = ""

    def set_postfix_str(self, text):
        self.said = text


def test_the_bar_is_kept_up_to_date(monkeypatch):
    """It says what happens while the block runs."""
    monkeypatch.setattr(engine, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(engine, "LINE_SECONDS", 0.01)
    seen, bar = {"replies": 0}, Bar()
    with live(bar, lambda: dict(seen)):
        seen["replies"] = 7
        until = time.monotonic() + 60
        while not bar.said.startswith("7") and time.monotonic() < until:
            time.sleep(0.01)
    assert bar.said == "7 replies"


def test_an_annotator_that_counts_nothing_needs_no_thread():
    """The lexical baseline asks nobody."""
    with live(None, dict):
        pass


def test_off_a_terminal_each_state_is_a_line(monkeypatch):
    """A log has one line for each state, in plain signs, and a model that is being loaded is told."""
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    assert not engine._is_watched()
    with tqdm(total=8, desc="refine", file=engine._Lines()) as bar:
        bar.set_postfix_str(format_statistics({"replies": 3, "loading": True}, {}, 1.0))
    lines = log.getvalue().splitlines()
    assert all(line.startswith("refine:") for line in lines)
    assert "3 replies, loading the model" in lines[-1]
    assert "\r" not in log.getvalue()
    monkeypatch.setattr("sys.stderr", None)
    engine._Lines().write("nowhere")
    engine._Lines().flush()
