"""The benchmark of scale, at a size that measures nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import arhn_datasets as arhn
from arhn_datasets.rows.records import EVIDENCE_TYPES, FILTERED, NEGATIVE, POSITIVE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def bench():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_of_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    """The script as a command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.mark.exhaustive
@pytest.mark.integration
def test_every_stage_is_measured(tmp_path):
    """One JSON object as the last line, behind the tables; the scratch folder is gone, and progress is elsewhere."""
    done = run("--rows", "700", "--plain-rows", "100", "--json", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 700
    assert [one["rows"] for one in found["sizes"]] == [10, 103, 700]
    for figures in (found["relabel"], *found["export"].values()):
        assert all(figures[name] > 0 for name in ("rows_per_s", "vs_floor", "vs_plain", "rss_mb"))
    assert set(found["export"]) == {"triplet", "n_tuple"}
    stages = {"floor", "relabel", "folder", "revert", "tally", "verify", "triplet", "n-tuple", "adapt"}
    assert stages <= set(found["growth"])
    assert 50 < found["peak_rss_mb"] < 4096
    assert isinstance(found["growth_exponent"], float)
    for title in ("700 rows", "Growth", "Beside plain Python"):
        assert title in done.stdout
    assert "..." not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_rows_have_the_shape_that_they_promise(bench):
    """Always the same rows, of the lengths of RLHN-680K, with evidence that the package's own types hold."""
    table = next(bench.generated(1000))
    assert table.equals(next(bench.generated(1000)))
    assert 14_000 < table.nbytes / table.num_rows < 20_000
    assert len(set(table.column("subset").to_pylist())) == 7
    made = arhn.relabel(table)
    for column in set(EVIDENCE_TYPES) - {*table.column_names, FILTERED.passages}:
        assert made.schema.field(column).type == EVIDENCE_TYPES[column]
    moved = made.column("decision").to_pylist()
    assert 0.5 < sum(one["relabelled"] for one in moved) / len(moved) < 3
    assert 1 < sum(one["filtered"] for one in moved) / len(moved) < 4
    for row in table.slice(0, 50).to_pylist():
        for passages, snippets in ((POSITIVE.passages, "positive_snippets"), (NEGATIVE.passages, "negative_snippets")):
            for passage, snippet in zip(row[passages], row[snippets], strict=True):
                if snippet["status"] == "grounded":
                    assert passage["text"][snippet["start"] : snippet["end"]] == snippet["snippet"]
        docids = [passage["docid"] for side in (POSITIVE.passages, NEGATIVE.passages) for passage in row[side]]
        assert len(set(docids)) == len(docids)


def test_the_plain_way_is_the_same_rule(bench):
    """Every row of it is the row of the package, or the comparison would be one of different results."""
    table = next(bench.generated(300))
    made = arhn.relabel(table).to_pylist()
    for row, expected in zip(table.to_pylist(), made, strict=True):
        assert {**row, **bench.plain_relabel(row)} == expected


def test_the_exponent_is_the_slope(bench):
    """Of the times over the rows, both as logarithms."""
    assert bench.exponent([(10, 1.0), (100, 10.0), (1000, 100.0)]) == pytest.approx(1)
    assert bench.exponent([(10, 1.0), (1000, 10_000.0)]) == pytest.approx(2)
    assert bench.exponent([(10, 1.0)]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0"], "0 is no number from 1"),
        (["--rows", "many"], "--rows"),
        (["--cores", "-1"], "-1 is no number from 1"),
        (["--folder", "no such folder"], "is no folder"),
        (["--speed"], "--speed"),
    ],
)
def test_wrong_arguments_are_told(arguments, said):
    """With exit code 2, before anything is generated."""
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
