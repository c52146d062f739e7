"""The benchmark of the client, at a size that measures nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "endpoint.py"


@pytest.mark.exhaustive
@pytest.mark.integration
def test_every_section_reports_what_it_promises():
    """One JSON object as the last line, behind a table for each section."""
    sections = [part for name in ("utilisation", "cpu", "paid_twice", "tokens", "store") for part in ("--only", name)]
    modes = ["--mode", "row"]
    command = [sys.executable, str(SCRIPT), "--json", "--requests", "110", *modes, *sections]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["utilisation"]) == {"row"}
    assert all(0 < value <= result["utilisation_ideal"] * 1.1 for value in result["utilisation"].values())
    assert set(result["cpu_ms_per_request"]) == {"aiohttp", "arhn", "arhn_row", "AsyncInferenceClient"}
    assert min(result["cpu_ms_per_request"].values()) > 0
    twice = result["paid_twice"]
    assert {"extra_requests", "in_flight_at_kill"} <= set(twice)
    assert 0 <= twice["extra_requests"] <= twice["needed"]
    assert twice["third_run"] == twice["repeated_rows"] == twice["second_policy"] == 0
    tokens = result["tokens_per_query"]
    assert 0 < tokens["arhn"] < tokens["naive"]
    assert tokens["equal_labels"] == 1
    for sizes in result["packed_tokens"].values():
        assert all(one["equal"] for one in sizes.values())
    assert sizes["8"]["prompt"] < sizes["4"]["prompt"] < sizes["1"]["prompt"]
    rambling = result["rambling_tokens"]
    assert rambling["by passage"] < rambling["for all"] / 2
    assert result["store"]["gets_per_s"] > 0
    for title in ("Utilisation", "CPU of the client", "Paid twice", "Prompt tokens", "The store"):
        assert title in done.stdout


def test_unknown_sections_are_refused():
    """With the names that there are."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--only", "speed"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "utilisation" in done.stderr
