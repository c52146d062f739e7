"""The fuzz of rows: a short one finds nothing, and each fault that is planted is found."""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_rows.py"


@pytest.fixture(scope="module")
def fuzz():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fuzz_rows", SCRIPT)
    module = sys.modules["fuzz_rows"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz_rows"]


def test_every_form_comes_through(fuzz, capsys):
    """Each form once, with a seed that is printed."""
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--count", "1", "--seed", "3"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert all(name in printed for name in (*fuzz.FORMS, "seed 3"))


def _judged(fuzz, plant):
    """The faults found where ``plant`` changed a row as it was read, moved and put back."""
    row = fuzz.Drawn(number=1, query="why?", positive=["a b"], negative=["c d", "e f"])
    source = fuzz.FORMS["canonical"].write(row)[0]
    grounded = {"snippet": "c", "start": 0, "end": 1, "field": "text", "status": "grounded", "detail": None}
    none = {"snippet": None, "start": None, "end": None, "field": None, "status": "no_answer", "detail": None}
    moved = {
        **source,
        "positive_passages": [*source["positive_passages"], source["negative_passages"][0]],
        "negative_passages": source["negative_passages"][1:],
        "positive_snippets": [grounded, grounded],
        "negative_snippets": [none],
        "positive_ranks": [2, 1],
        "negative_ranks": [None],
        "positive_origins": [{"label": "positive", "position": 0}, {"label": "negative", "position": 0}],
        "filtered_passages": [],
        "filtered_snippets": [],
        "filtered_ranks": [],
        "filtered_origins": [],
        "decision": {"relabelled": 1, "filtered": 0},
    }
    before, after, back = (copy.deepcopy(one) for one in (source, moved, source))
    plant(before, after, back)
    return fuzz.judged([row], fuzz.FORMS["canonical"], [before], [after], [back])


@pytest.mark.parametrize(
    ("fault", "plant"),
    [
        (None, lambda before, after, back: None),
        (
            "damaged",
            lambda before, after, back: [each["negative_passages"][0].update(text='"c d"') for each in (before, back)],
        ),
        ("damaged", lambda before, after, back: [each.update(query="why") for each in (before, back)]),
        ("lost", lambda before, after, back: after["negative_passages"].clear()),
        ("lost", lambda before, after, back: after["filtered_passages"].extend(after["negative_passages"])),
        ("invented", lambda before, after, back: after["positive_snippets"][1].update(status="ungrounded")),
        ("invented", lambda before, after, back: after["positive_ranks"].__setitem__(1, 3)),
        ("unreverted", lambda before, after, back: back["positive_passages"].clear()),
    ],
)
def test_a_planted_fault_is_found(fuzz, fault, plant):
    """One of each kind, and none where nothing is wrong."""
    found = _judged(fuzz, plant)
    named = {name for name in fuzz.FAULTS if found[name]}
    assert fault in named if fault else not named


def test_drawn_rows_hold_no_text_twice(fuzz):
    """What the judge counts by is distinct within a row."""
    for row in fuzz.drawn_rows(random.Random(1), 200):
        texts = [*row.positive, *row.negative]
        assert len(set(texts)) == len(texts)
        assert row.positive
