"""What the progress bar says."""

from __future__ import annotations

import sys
import time

import pytest

from arhn_datasets.runs import progress
from arhn_datasets.runs.progress import format_statistics, live


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


def test_the_bar_of_the_stage_is_kept_up_to_date(monkeypatch):
    """The bar that `datasets` shows for the stage gets the line; others do not."""
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import tqdm

    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(sys.modules["datasets.utils.tqdm"], "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    seen = {"replies": 0}
    enable_progress_bars()
    try:
        with live("snippets", lambda: dict(seen)), tqdm(desc="snippets", total=3) as bar, tqdm(desc="other") as other:
            seen["replies"] = 7
            until = time.monotonic() + 5
            while not bar.postfix and time.monotonic() < until:
                time.sleep(0.01)
            assert bar.postfix == "7 replies"
            assert not other.postfix
    finally:
        disable_progress_bars()


def test_an_annotator_that_counts_nothing_needs_no_thread():
    """The lexical baseline asks nobody."""
    with live("snippets", dict):
        pass
