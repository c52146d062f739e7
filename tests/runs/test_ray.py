"""Ray Data as the engine, on a cluster of this machine, against the emulator in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arhn_datasets as arhn
from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import Stored
from arhn_datasets.cli import refine_command
from arhn_datasets.errors import AccessDenied
from arhn_datasets.folder import parquet, writer
from arhn_datasets.folder.reading import open_folder, read_rows
from arhn_datasets.inputs.sources import Input
from arhn_datasets.runs import ray as cluster
from arhn_datasets.runs import ray_replies
from arhn_datasets.runs.preparing import Loaded, Prepared
from arhn_datasets.runs.refine import Checkpoint, Stages, is_unfinished, refine
from arhn_datasets.testing.latency import Latency
from arhn_datasets.testing.process import EmulatorProcess
from tests.runs.annotators import Failing

pytest.importorskip("ray")
pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SAMPLE = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
LIMIT, ACTORS = 8, 2
# No usage reports, no token in the user's home, and workers that need not wait for whatever else runs here.
OPTIONS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
KEY = "a-key-that-nobody-prints"


@pytest.fixture(scope="module")
def on_ray():
    """A cluster of two nodes, both on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in OPTIONS.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        size = {"num_cpus": 2, "object_store_memory": 100_000_000}
        nodes = Cluster(
            initialize_head=True,
            connect=True,
            head_node_args={**size, "include_dashboard": False},
        )
        nodes.other = nodes.add_node(**size)
        nodes.wait_for_nodes()
        try:
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The sample twice, refined in one process: its input and its folder."""
    folder = tmp_path_factory.mktemp("plain")
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    rows = [
        {**row, "query_id": f"{turn}-{row['query_id']}", "query": f"{row['query']} {'?' * turn}"}
        for turn in range(2)
        for row in lines
    ]
    given = folder / "rows.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with EmulatorProcess() as server:
        refine(Input(name=str(given)), folder / "refined", stages(server.url, folder / "cache"))
    return given, folder / "refined"


def stages(url, cache):
    return stages_of(arhn.Endpoint(url, cache=cache))


def stages_of(annotator):
    return Stages(
        snippets=arhn.Snippets(annotator=annotator), ranks=arhn.Ranks(annotator=annotator), relabel=arhn.Relabel()
    )


def slow_server(seconds=0.01, **options):
    return EmulatorProcess(max_concurrent_requests=LIMIT, latency=Latency(overhead=seconds), **options)


def same_rows(folder, other):
    assert list(read_rows(folder)) == list(read_rows(other))
    ours, theirs = (pq.read_schema(open_folder(path).shards("train")[0]) for path in (folder, other))
    assert ours.equals(theirs, check_metadata=True)


def refined(given, output, stages, actors=ACTORS):
    return refine(Input(name=str(given)), output, stages, opened=cluster.on_ray(actors=actors))


def test_the_command(on_ray, plain, tmp_path, capsys, monkeypatch):
    """Rows as in one process, never more in flight than the server takes, all replies in the driver's store.

    It prints the summary of a plain run, takes the key to the actors and nowhere else, and a rerun asks nothing.
    """
    given, expected = plain
    monkeypatch.setenv("ARHN_API_KEY", KEY)
    with slow_server(api_key=KEY) as server:
        arguments = [str(given), "--output", str(tmp_path / "out"), "--endpoint", server.url]
        arguments += ["--cache", str(tmp_path / "cache"), "--engine", "ray", "--ray-actors", str(ACTORS)]
        assert refine_command(arguments) == 0
        first = server.stats
        again = refined(given, tmp_path / "again", stages(server.url, tmp_path / "cache"), actors=1)
        assert server.stats.requests == first.requests
    assert ACTORS < first.peak_in_flight <= LIMIT
    assert first.duplicates == 0
    for folder in ("out", "again"):
        same_rows(tmp_path / folder, expected)
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["engine"] == {"engine": "ray", "version": ray_version(), "actors": ACTORS, "nodes": 2}
    assert run["requests"]["replies"] == again.run["requests"]["stored"] == first.requests
    assert len(list(store_upkeep.read_replies(tmp_path / "cache"))) == first.requests
    [other] = (tmp_path / "cache" / "nodes").iterdir()  # that of the second node, on the same host
    assert 0 < len(list(store_upkeep.read_replies(other))) <= first.requests

    printed = capsys.readouterr()
    assert f"{first.requests:,} replies" in printed.out
    written = [path.read_bytes() for path in Path(on_ray.head_node.get_session_dir_path()).rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in text for text in [*written, printed.out.encode(), printed.err.encode()])
    assert KEY not in json.dumps(run)


def ray_version():
    import ray

    return ray.__version__


def test_a_killed_actor(on_ray, plain, tmp_path):
    """Nothing is lost, no row is doubled, and only what was in flight is asked again."""
    given, expected = plain
    with slow_server(0.03) as server:
        killing = threading.Thread(target=kill_one, args=(server, 150))
        killing.start()
        refined(given, tmp_path / "refined", stages(server.url, tmp_path / "cache"))
        killing.join(60)
        assert server.stats.served_twice <= LIMIT // ACTORS
        assert server.stats.peak_in_flight <= LIMIT
    same_rows(tmp_path / "refined", expected)


def test_a_new_actor_knows_what_was_answered(on_ray, tmp_path):
    """On each node, the driver's included: an actor that was lost may be started again on any of them."""
    import ray

    stages = stages_of(arhn.Endpoint("http://127.0.0.1:9", cache=tmp_path))
    keeper = ray_replies.start_keeper([tmp_path])
    key = bytes(32)
    store_upkeep.add_replies(ray_replies.on_this_node(tmp_path), [Stored(key, None, 0, "{}")])
    here = ray_replies.there(ray.get_runtime_context().get_node_id())
    actor = ray.remote(cluster._Refiner).options(num_cpus=0, scheduling_strategy=here).remote(stages, keeper)
    try:
        ray.get(actor.__ray_ready__.remote())
        assert [reply.key for reply in store_upkeep.read_replies(tmp_path)] == [key]
    finally:
        ray.kill(actor)
        ray.kill(keeper)


def kill_one(server, after):
    while server.stats.served < after:
        time.sleep(0.05)
    while not (found := pool()):
        time.sleep(0.05)
    os.kill(found[0], signal.SIGKILL)


def pool():
    """The processes of the actors, which Ray names after what they do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
            if name.startswith(b"ray::") and b"_Refiner" in name:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_an_error_of_an_actor_ends_the_run(on_ray, plain, tmp_path):
    """As the error that it is there, and not one of Ray's."""
    given, _ = plain
    with slow_server(api_key=KEY) as server, pytest.raises(AccessDenied, match="401"):
        refined(given, tmp_path / "out", stages(server.url, tmp_path / "cache"), actors=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_the_script(on_ray, plain, tmp_path, script):
    """It writes parquet files with the same rows, in its own order."""
    given, expected = plain
    (tmp_path / "in").mkdir()
    rows = [json.loads(line) for line in given.read_text(encoding="utf-8").splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "rows.parquet")
    with slow_server(0.0) as server:
        code, _, _ = script("refine_ray", tmp_path / "in", tmp_path / "out", endpoint=server.url)
        assert code == 0
        assert server.stats.peak_in_flight <= LIMIT
    assert by_query(pq.read_table(tmp_path / "out").to_pylist()) == by_query(read_rows(expected))


def by_query(rows):
    return sorted(rows, key=lambda row: row["query_id"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--engine", "ray", "--batch-size", "2"], 2, "--batch-size"),
        (["--ray-actors", "2"], 2, "--engine ray"),
        (["--engine", "ray", "--ray-address", "ray://127.0.0.1:1"], 2, "ray job submit"),
    ],
)
def test_options_that_cannot_work(plain, tmp_path, capsys, arguments, code, said):
    """They are refused before anything is read."""
    given, _ = plain
    options = [str(given), "--output", str(tmp_path / "out"), "--annotator", "lexical"]
    assert refine_command([*options, *arguments]) == code
    assert said in capsys.readouterr().err


def test_blocks_go_to_their_splits(sample):
    """In order, wherever a block ends, with the rows of the split behind each."""
    rows = datasets.Dataset.from_list(sample[:9])
    splits = {"a": rows.select(range(2)), "none": rows.select([]), "b": rows.select(range(2, 9))}
    lexical = stages_of(arhn.Lexical())
    table = cluster.relabelled(lexical, rows.with_format("arrow")[:])
    prepared = Prepared(
        splits={name: Loaded(one) for name, one in splits.items()}, stages=lexical, provenance={}, seconds={}
    )
    pool = cluster.ActorPool(prepared, 1, None)
    pool._blocks = (table.slice(start, 4) for start in (0, 4, 8))
    found = {name: list(pool.relabelled(name, None)) for name in splits}
    assert {name: [at.rows for _, at in tables] for name, tables in found.items()} == {
        "a": [2],
        "none": [],
        "b": [2, 6, 7],
    }
    assert [row for tables in found.values() for one, _ in tables for row in one.to_pylist()] == table.to_pylist()


def test_without_ray(plain, tmp_path, capsys, monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "ray", None)
    options = [str(plain[0]), "--output", str(tmp_path / "out"), "--annotator", "lexical"]
    assert refine_command([*options, "--engine", "ray"]) == 2
    assert "arhn_datasets[ray]" in capsys.readouterr().err


def test_no_cluster_at_the_address(plain, tmp_path):
    """It is said in a line, by a process that has no Ray yet."""
    code = "import sys; from arhn_datasets.cli import refine_command; sys.exit(refine_command())"
    options = [str(plain[0]), "--output", str(tmp_path / "out"), "--annotator", "lexical", "--engine", "ray"]
    environment = {**os.environ, **OPTIONS, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: There is no Ray cluster that answers at 127.0.0.1:1")
    assert "Traceback" not in done.stderr


def test_a_run_that_ended_goes_on(on_ray, plain, tmp_path, monkeypatch):
    """Behind the last file that was full: a row before it, at which the second run would fail, is not asked again."""
    given, _ = plain
    monkeypatch.setattr(parquet, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(writer, "TYPED_BYTES", 1)
    queries = [json.loads(line)["query"] for line in given.read_text(encoding="utf-8").splitlines()]
    whole = refine(Input(name=str(given)), tmp_path / "whole", stages_of(Failing()))
    save = Checkpoint.save

    def save_and_end(checkpoint, *arguments):
        save(checkpoint, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_end)
    with pytest.raises(KeyboardInterrupt):
        refined(given, tmp_path / "out", stages_of(Failing()), actors=1)
    monkeypatch.setattr(Checkpoint, "save", save)
    assert is_unfinished(tmp_path / "out")
    refined(given, tmp_path / "out", stages_of(Failing(queries[0])), actors=1)
    same_rows(tmp_path / "out", whole.path)
    assert not is_unfinished(tmp_path / "out")


@pytest.mark.exhaustive
def test_a_lost_node(on_ray, plain, tmp_path, monkeypatch):
    """It costs what it has not handed over, and its rows are made elsewhere; it is the last test of this cluster."""
    given, expected = plain
    monkeypatch.setattr(ray_replies, "HAND_OVER_SECONDS", 0.2)
    with slow_server(0.03) as server:

        def lose():
            while server.stats.served < 150:
                time.sleep(0.05)
            on_ray.remove_node(on_ray.other, allow_graceful=False)

        losing = threading.Thread(target=lose)
        losing.start()
        refined(given, tmp_path / "refined", stages(server.url, tmp_path / "cache"))
        losing.join(60)
        requests, twice = server.stats.requests, server.stats.served_twice
        assert twice < requests / 10
    same_rows(tmp_path / "refined", expected)
