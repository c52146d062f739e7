"""A run with a model in this process that is stopped while it generates: what it says, keeps, and pays for again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from arhn_datasets.annotators.client.store import FILE_NAME, Replies
from tests.conftest import SAMPLE

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
STANDINS = ROOT / "tests" / "fakes" / "standins"
REFINE = "import sys; from arhn_datasets.cli import refine_command; sys.exit(refine_command(sys.argv[1:]))"


@pytest.fixture(scope="module")
def brief(tiny_models, tmp_path_factory):
    """A random model that ends its replies early, at one of the many tokens that are an end for it."""
    folder = tmp_path_factory.mktemp("brief") / "model"
    shutil.copytree(tiny_models["llama"], folder)
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    generation["eos_token_id"] = [*range(1, 1000, 25)]
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return str(folder)


def in_the_file(folder):
    """How many replies another process finds; none where there is no store yet."""
    try:
        with closing(sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM replies").fetchone()[0]
    except sqlite3.Error:
        return 0


def refining(model, tmp_path, *options):
    """The command on some rows, with a store in a folder of its own."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(SAMPLE.read_text(encoding="utf-8").splitlines()[:15]), encoding="utf-8")
    command = [sys.executable, "-c", REFINE, str(rows), "--annotator", "local", "--model", model]
    return [
        *command,
        "--output",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "store"),
        "--max-tokens",
        "24",
        *options,
    ]


def stopped(command, tmp_path, number, kept=8):
    """Start a command, send it a signal when its store has so many replies; its exit code and standard error."""
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    until = time.monotonic() + 90
    while in_the_file(tmp_path / "store") < kept and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert running.poll() is None
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    return running.returncode, error


@pytest.mark.parametrize(
    ("engine", "number"),
    [("transformers", signal.SIGTERM), ("vllm", signal.SIGINT), ("vllm", signal.SIGTERM)],
    ids=["SIGTERM", "Ctrl-C in vLLM", "SIGTERM in vLLM"],
)
def test_a_run_that_is_stopped_while_it_generates(brief, tmp_path, monkeypatch, engine, number):
    """It says its one line and nothing of asyncio's, ends with 1, and the next run asks only what is missing."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STANDINS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("STANDIN_SECONDS", "0.1")
    command = refining(brief, tmp_path, "--local-engine", engine, "--local-option", "batch_size=8")
    code, error = stopped(command, tmp_path, number)
    lines = [line for line in re.split(r"[\r\n]+", error) if line.strip() and not line.startswith("Loading weights")]
    told = f"Every reply so far is kept in {tmp_path / 'store'}; run the same command again and only the rest is asked."
    assert lines == [f"Interrupted. Nothing was written to {tmp_path / 'out'}. {told}"]
    assert code == 1
    kept = len(Replies(tmp_path / "store"))
    assert kept >= 8
    monkeypatch.setenv("STANDIN_SECONDS", "0")
    again = subprocess.run(
        [*command, "--max-unread", "1"], capture_output=True, text=True, cwd=ROOT, timeout=200, check=True
    )
    stored = re.search(r"requests  [\d,]+ replies, ([\d,]+) from the store", again.stdout)[1]
    assert int(stored) == kept
