"""What is finished of a run stays after any end of it, and the same call goes on from there."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from arhn_datasets import cli
from arhn_datasets.folder import parquet
from arhn_datasets.folder import writer as output
from arhn_datasets.inputs.sources import Input
from arhn_datasets.runs import refine as engine
from arhn_datasets.runs.refine import CHECKPOINT, refine, work_folder
from arhn_datasets.testing import Emulator, Latency
from tests.runs.annotators import Failing
from tests.runs.test_refine import stages


def files(root):
    """The content of the data files of a folder, by path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


@pytest.fixture
def small_shards(monkeypatch):
    """A shard and a checkpoint every few rows."""
    monkeypatch.setattr(parquet, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(output, "TYPED_BYTES", 1)
    monkeypatch.setattr(engine, "WINDOW_ROWS", 8)


SMALL = """
import sys
from arhn_datasets.folder import writer as output
from arhn_datasets.runs import refine as engine
from arhn_datasets import cli
sys.modules["arhn_datasets.folder.parquet"].SHARD_BYTES = 30_000
sys.modules["arhn_datasets.folder.parquet"].GROUP_BYTES = 10_000
output.TYPED_BYTES = 1
engine.WINDOW_ROWS = 8
sys.exit(cli.refine_command(sys.argv[1:]))
"""


@pytest.mark.parametrize("cache", ["none", pytest.param("store", marks=pytest.mark.exhaustive)])
def test_killed_and_run_again_goes_on_behind_the_last_shard(jsonl, tmp_path, sample, small_shards, cache):
    """After kill -9 rows of finished shards are not asked again, nor what is in the store; the folder is the same."""
    arguments = [str(jsonl), "--batch-size", "4", "--on-shortage", "drop", "--min-negatives", "3"]
    store = "none" if cache == "none" else str(tmp_path / "store")
    work = work_folder(tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with Emulator(latency=Latency(overhead=0.01), slots=4, max_concurrent_requests=5) as server:
        command = [*arguments, "--endpoint", server.url]
        whole = tmp_path / "whole"
        assert cli.refine_command([*command, "--output", str(whole), "--cache", "none"]) == 0
        needed = server.stats.requests
        server.reset_stats()
        command += ["--output", str(tmp_path / "out"), "--cache", store]
        running = subprocess.Popen([sys.executable, "-c", SMALL, *command], env=environment, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (work / CHECKPOINT).exists():
            assert time.monotonic() < end, "no checkpoint"
            assert running.poll() is None, "it ended"
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait(timeout=60)
        assert not (tmp_path / "out").exists()
        checkpoint = json.loads((work / CHECKPOINT).read_text())["checkpoint"]
        spent = server.stats.requests
        assert spent < needed
        time.sleep(0.2)
        server.reset_stats()
        assert cli.refine_command(command) == 0
        again = server.stats.requests
    assert 0 < checkpoint["position"]["rows"] < len(sample)
    if cache == "none":
        assert again == needed - checkpoint["requests"]["replies"] + ahead(checkpoint, whole)
    else:
        assert spent + again <= needed + 4 * 5  # what was in flight or on its way into the store
    assert files(tmp_path / "out") == files(whole)
    runs = [json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "out", whole)]
    assert runs[0]["counts"] == runs[1]["counts"]
    assert runs[0]["source"] == runs[1]["source"]
    cards = [(folder / "README.md").read_text().partition("## Changed")[2] for folder in (tmp_path / "out", whole)]
    assert cards[0].partition("```python")[0] == cards[1].partition("```python")[0]
    assert not work.exists()


def ahead(checkpoint, whole):
    """How many replies of the first run were to rows behind its checkpoint, whose shards were not finished."""
    rows = {}
    for part in ("data", "dropped"):
        for path in sorted((whole / part).glob("*.parquet")):
            rows |= {row["query_id"]: row for row in pq.read_table(path).to_pylist()}
    source = [json.loads(line)["query_id"] for line in (whole.parent / "rows.jsonl").read_text().splitlines()]

    def requests(row):
        sides = ("positive_snippets", "negative_snippets", "filtered_snippets")
        return sum(len(row[side] or ()) for side in sides) + (row["ranking"]["status"] != "skipped")

    before = sum(requests(rows[query_id]) for query_id in source[: checkpoint["position"]["rows"]])
    return checkpoint["requests"]["replies"] - before


def test_any_end_leaves_what_is_finished_and_another_run_starts_anew(jsonl, tmp_path, sample, small_shards, caplog):
    """The same call goes on; one with another policy, or on other files, says so and does not."""
    whole = refine(Input(name=str(jsonl)), tmp_path / "whole", stages(Failing()), batch_size=4)
    source, out = Input(name=str(jsonl)), tmp_path / "out"
    work = work_folder(out)

    def fail(at=60, **options):
        with pytest.raises(OSError, match="is gone"):
            refine(source, out, stages(Failing(sample[at]["query"]), **options), batch_size=4)

    fail(at=2)
    assert not work.exists(), "nothing was finished"
    fail()
    assert (work / CHECKPOINT).exists()
    with caplog.at_level(logging.WARNING):
        fail(at=61)
        assert not caplog.records, "it went on"
        fail(policy="filter")
        assert "differs in: parameters" in caplog.text
        caplog.clear()
        jsonl.write_text(jsonl.read_text() + "\n")
        fail(policy="filter")
        assert "differs in: input" in caplog.text
        caplog.clear()
        (work / CHECKPOINT).write_text("{")
        fail()
        assert "cannot be read" in caplog.text
    done = refine(source, out, stages(Failing()), batch_size=4)
    assert files(out) == files(whole.path)
    assert done.report == whole.report
    assert not work.exists()


def test_ctrl_c_tells_where_the_finished_part_is(tmp_path):
    """The folder beside the output, when there is one."""
    parse = cli.refine_parser().parse_args
    options = parse(["in", "--output", str(tmp_path / "out"), "--annotator", "lexical"])
    assert "start again" in cli.refining.what_is_kept(options)
    work_folder(tmp_path / "out").mkdir()
    (work_folder(tmp_path / "out") / CHECKPOINT).touch()
    assert f"kept in {work_folder(tmp_path / 'out')}. Run the same command to go on" in cli.refining.what_is_kept(
        options
    )
