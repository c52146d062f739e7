"""A run over a stream: the same folder as without, in bounded memory, and the rest of it after any end."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDatasetDict, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.requests import Ranking, Snippet
from arhn_datasets.errors import ConfigurationError, InputError, OutputError, SchemaError
from arhn_datasets.folder import parquet
from arhn_datasets.folder import writer as output
from arhn_datasets.inputs.sources import Input, Shard, open_input
from arhn_datasets.rows.records import NO_ANSWER, RANKED
from arhn_datasets.runs import streaming
from arhn_datasets.runs.refine import refine, save
from arhn_datasets.runs.streaming import CHECKPOINT, read, work_folder
from arhn_datasets.testing import Emulator, Latency
from tests.fakes.together import Together
from tests.hub.test_pushing import REPO
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
    monkeypatch.setattr(streaming, "WINDOW_ROWS", 8)


@pytest.fixture
def jsonl(tmp_path, sample):
    """The sample as a file."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sample), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["json", "parquet", "save_to_disk", "refined", "folder", "flagembedding"])
def test_a_stream_gives_the_folder_of_a_map(kind, tmp_path, sample):
    """Rows in order, types, features, dropped rows, counts: all as without streaming, from every kind of input."""
    where = tmp_path / "in"
    dataset = Dataset.from_list(sample).add_column("kind", [i % 2 for i in range(len(sample))])
    if kind != "json":
        dataset = dataset.cast_column("kind", ClassLabel(names=["even", "odd"]))
    if kind == "json":
        where = tmp_path / "in.jsonl"
        dataset.to_json(str(where))
    elif kind == "parquet":
        where = tmp_path / "in.parquet"
        dataset.to_parquet(str(where), batch_size=20)
    elif kind == "save_to_disk":
        DatasetDict(train=dataset.select(range(50)), test=dataset.select(range(50, 69))).save_to_disk(str(where))
    elif kind == "folder":
        where.mkdir()
        for name, rows in (("train-0", range(30)), ("train-1", range(30, 60)), ("test", range(60, 69))):
            dataset.select(rows).to_parquet(str(where / f"{name}.parquet"))
    elif kind == "refined":
        dataset.to_parquet(str(tmp_path / "first.parquet"))
        refine(Input(name=str(tmp_path / "first.parquet")), where, stages())
    else:
        where = tmp_path / "in.jsonl"
        rows = [
            {
                "query": row["query"],
                "pos": [p["text"] for p in row["positive_passages"]],
                "neg": [p["text"] for p in row["negative_passages"]],
                "type": "normal",
            }
            for row in sample
        ]
        Dataset.from_list(rows).to_json(str(where))
    options = {"min_negatives": 3, "on_shortage": "drop"}
    plain = refine(Input(name=str(where)), tmp_path / "plain", stages(**options))
    streamed = refine(Input(name=str(where)), tmp_path / "streamed", stages(**options), streaming=True, batch_size=7)
    assert streamed.report == plain.report
    assert list(streamed.report.subsets) == list(plain.report.subsets)
    assert list(streamed.rows()) == list(plain.rows())
    for path in files(plain.path):
        assert pq.read_schema(streamed.path / path).equals(pq.read_schema(plain.path / path), check_metadata=True), path
    for name in ("identity", "parameters", "annotator"):
        assert streamed.run[name] == plain.run[name]
    assert streamed.run["source"]["rows"] == plain.run["source"]["rows"]
    assert arhn.verify(streamed.path).holds
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_limits_and_splits_of_a_stream(tmp_path, sample):
    """--limit ends each split after so many rows, --split takes one, a wrong one is told."""
    splits = DatasetDict(train=Dataset.from_list(sample[:20]), test=Dataset.from_list(sample[20:23]))
    splits.save_to_disk(str(tmp_path / "in"))
    source = Input(name=str(tmp_path / "in"), limit=5)
    done = refine(source, tmp_path / "out", stages(), streaming=True, batch_size=3)
    assert done.run["source"]["rows"] == {"train": 5, "test": 3}
    assert [row["query_id"] for row in done.rows("train")] == [row["query_id"] for row in sample[:5]]
    one = refine(Input(name=str(tmp_path / "in"), split="test"), tmp_path / "one", stages(), streaming=True)
    assert one.run["source"]["rows"] == {"test": 3}
    with pytest.raises(InputError, match="has no split 'dev'"):
        refine(Input(name=str(tmp_path / "in"), split="dev"), tmp_path / "out", stages(), streaming=True)


def test_an_endpoint_is_kept_full_and_asked_the_same(jsonl, tmp_path, sample):
    """As many requests as without streaming, as many of them at once as the server takes, and the same rows."""
    with Emulator(max_concurrent_requests=48) as server:
        plain = refine(Input(name=str(jsonl)), tmp_path / "plain", stages(arhn.Endpoint(server.url, cache="none")))
        asked = server.stats.requests
    with Emulator(max_concurrent_requests=48, reply=Together(47, arhn.Lexical(threshold=0.3))) as server:
        streamed = refine(
            Input(name=str(jsonl)),
            tmp_path / "streamed",
            stages(arhn.Endpoint(server.url, cache="none")),
            streaming=True,
        )
        assert server.stats.requests == asked
        assert server.stats.peak_in_flight == 47
    assert list(streamed.rows()) == list(plain.rows())
    assert streamed.run["requests"]["replies"] == plain.run["requests"]["replies"] == asked
    assert streamed.report == plain.report


SMALL = """
import sys
from arhn_datasets.folder import writer as output
from arhn_datasets.runs import streaming
from arhn_datasets import cli
sys.modules["arhn_datasets.folder.parquet"].SHARD_BYTES = 30_000
sys.modules["arhn_datasets.folder.parquet"].GROUP_BYTES = 10_000
output.TYPED_BYTES = 1
streaming.WINDOW_ROWS = 8
sys.exit(cli.refine_command(sys.argv[1:]))
"""


@pytest.mark.parametrize("cache", ["none", pytest.param("store", marks=pytest.mark.exhaustive)])
def test_killed_and_run_again_goes_on_behind_the_last_shard(jsonl, tmp_path, sample, small_shards, cache):
    """After kill -9 rows of finished shards are not asked again, nor what is in the store; the folder is the same."""
    arguments = [str(jsonl), "--streaming", "--batch-size", "4", "--on-shortage", "drop", "--min-negatives", "3"]
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
        checkpoint = json.loads((work / CHECKPOINT).read_text())
        spent = server.stats.requests
        assert spent < needed
        time.sleep(0.2)
        server.reset_stats()
        assert cli.refine_command(command) == 0
        again = server.stats.requests
    assert 0 < checkpoint["rows"] < len(sample)
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

    before = sum(requests(rows[query_id]) for query_id in source[: checkpoint["rows"]])
    return checkpoint["requests"]["replies"] - before


class Failing(Annotator):
    """Finds nothing, and fails at one query."""

    awaits = False

    def __init__(self, at=None):
        self.at = at

    async def snippet(self, request):
        """No answer."""
        if request.query == self.at:
            raise OSError("the annotator is gone")
        return Snippet(status=NO_ANSWER)

    async def ranking(self, request):
        """All alike."""
        return Ranking(status=RANKED, tiers=(tuple(range(len(request.candidates))),))

    def identity(self, stage):
        """A name."""
        return {"annotator": "failing"}


def test_any_end_leaves_what_is_finished_and_another_run_starts_anew(jsonl, tmp_path, sample, small_shards, caplog):
    """The same call goes on; one with another policy, or on other files, says so and does not."""
    whole = refine(Input(name=str(jsonl)), tmp_path / "whole", stages(Failing()), streaming=True, batch_size=4)
    source, out = Input(name=str(jsonl)), tmp_path / "out"
    work = work_folder(out)

    def fail(at=60, **options):
        with pytest.raises(OSError, match="is gone"):
            refine(source, out, stages(Failing(sample[at]["query"]), **options), streaming=True, batch_size=4)

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
    done = refine(source, out, stages(Failing()), streaming=True, batch_size=4)
    assert files(out) == files(whole.path)
    assert done.report == whole.report
    assert not work.exists()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stream_goes_on_at_any_row(data, tmp_path_factory):
    """Files, row groups and tables of any sizes: the position behind a table is where the next one begins."""
    root = tmp_path_factory.mktemp("rows")
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3), label="files")
    group = data.draw(st.integers(1, 5), label="group")
    batch = data.draw(st.integers(1, 6), label="batch")
    number = iter(range(1000))
    for i, size in enumerate(sizes):
        passage = {"docid": "p", "title": "", "text": "t"}
        rows = [
            {"query_id": str(next(number)), "query": "q", "positive_passages": [passage], "negative_passages": []}
            for _ in range(size)
        ]
        table = pa.Table.from_pylist(rows).set_column(
            3, "negative_passages", pa.array([[]] * size, pa.list_(pa.struct([(n, pa.string()) for n in passage])))
        )
        pq.write_table(table, root / f"train-{i}.parquet", row_group_size=group)
    source = Input(name=str(root))

    def opened():
        return open_input(source)[0]["train"]

    whole = [(table.column("query_id").to_pylist(), at) for table, at in read(opened(), source, None, batch)]
    assert [id for ids, _ in whole for id in ids] == [str(i) for i in range(sum(sizes))]
    at = data.draw(st.integers(0, len(whole) - 1), label="at")
    position = streaming.Position(state=json.loads(json.dumps(whole[at][1].state)), rows=whole[at][1].rows)
    rest = [table.column("query_id").to_pylist() for table, _ in read(opened(), source, position, batch)]
    assert rest == [ids for ids, _ in whole[at + 1 :]]
    assert position.rows == sum(len(ids) for ids, _ in whole[: at + 1])


def test_a_split_without_rows_has_the_columns_of_the_others(tmp_path, sample):
    """It is written as a file without rows; load_dataset itself reads no empty split."""
    (tmp_path / "in").mkdir()
    for name, rows in (("train", 3), ("test", 0)):
        Dataset.from_list(sample[:3]).select(range(rows)).to_parquet(str(tmp_path / "in" / f"{name}.parquet"))
    done = refine(Input(name=str(tmp_path / "in")), tmp_path / "out", stages(), streaming=True)
    assert done.run["source"]["rows"] == {"train": 3, "test": 0}
    schemas = {path.name[:4]: pq.read_schema(path) for path in (tmp_path / "out" / "data").iterdir()}
    assert schemas["trai"].equals(schemas["test"], check_metadata=True)
    assert arhn.verify(done.path).holds


def test_what_cannot_be_a_stream_is_told(tmp_path, sample, capsys, jsonl):
    """Rows that come of several, several processes, an estimate, columns that nobody knows."""
    triplets = [{"anchor": "q", "positive": "p", "negative": f"n{i}"} for i in range(4)]
    Dataset.from_list(triplets).to_json(str(tmp_path / "t.jsonl"))
    with pytest.raises(SchemaError, match="triplets or n-tuples.*Run without streaming"):
        refine(Input(name=str(tmp_path / "t.jsonl")), tmp_path / "out", stages(), streaming=True)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(SchemaError, match="fit no known form"):
        refine(Input(name=str(tmp_path / "a.jsonl")), tmp_path / "out", stages(), streaming=True)
    (tmp_path / "broken.jsonl").write_text('{"query": "q"\n{]')
    with pytest.raises(InputError, match="cannot be read"):
        refine(Input(name=str(tmp_path / "broken.jsonl")), tmp_path / "out", stages(Failing()), streaming=True)
    Dataset.from_list(sample[:1]).select([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(InputError, match="has no rows"):
        refine(Input(name=str(tmp_path / "none.parquet")), tmp_path / "out", stages(Failing()), streaming=True)
    lexical = [str(jsonl), "--streaming", "--annotator", "lexical", "--output", str(tmp_path / "out")]
    assert cli.refine_command([*lexical, "--num-proc", "2"]) == 2
    assert "read by one process" in capsys.readouterr().err
    assert cli.refine_command([*lexical, "--estimate"]) == 2
    assert "leave --streaming" in capsys.readouterr().err
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        refine(Input(name=str(jsonl)), tmp_path / "out", stages(), streaming=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_ctrl_c_tells_where_the_finished_part_is(tmp_path):
    """The folder beside the output, when there is one."""
    parse = cli.refine_parser().parse_args
    options = parse(["in", "--output", str(tmp_path / "out"), "--streaming", "--annotator", "lexical"])
    assert "start again" in cli.refining.what_is_kept(options)
    work_folder(tmp_path / "out").mkdir()
    assert f"kept in {work_folder(tmp_path / 'out')}. Run the same command to go on" in cli.refining.what_is_kept(
        options
    )


MEMORY = """
import sys
import pyarrow
from pathlib import Path
from tests.runs.test_streaming import Failing, stages
from arhn_datasets.folder import writer as output
from arhn_datasets.runs import streaming
from arhn_datasets.inputs.sources import Input, open_input
from arhn_datasets.runs.refine import refine, save
sys.modules["arhn_datasets.folder.parquet"].GROUP_BYTES = output.TYPED_BYTES = streaming.WINDOW_BYTES = 1_000_000
class Waiting(Failing):
    awaits = True
source, target = Input(name=sys.argv[1]), Path(sys.argv[2])
done = []
most = pyarrow.default_memory_pool().max_memory
for annotator in (Failing(), Waiting()):
    done.append(refine(source, target, stages(annotator), streaming=True))
    print(most(), file=sys.stderr)
rows = open_input(source)[0]["train"]
for stage in stages(Failing()).transforms:
    rows = rows.map(stage)
done.append(save(rows, target))
print(*(one.report.total.rows for one in done), most())
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """24 MB of text that no compression makes smaller take half of it, in each way of reading."""
    passages = pa.list_(pa.struct([(name, pa.string()) for name in ("docid", "title", "text")]))
    schema = pa.schema([("query_id", pa.string()), ("query", pa.string())])
    schema = schema.append(pa.field("positive_passages", passages)).append(pa.field("negative_passages", passages))
    (tmp_path / "in").mkdir()
    for start in range(0, 600, 20):  # files: older versions of datasets read each of them ahead
        rows = [
            {
                "query_id": str(i),
                "query": f"q{i}",
                "positive_passages": [{"docid": f"p{i}", "title": "", "text": os.urandom(10_000).hex()}],
                "negative_passages": [{"docid": f"n{i}", "title": "", "text": os.urandom(10_000).hex()}],
            }
            for i in range(start, start + 20)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in" / f"train-{start:04d}.parquet")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "in"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    *rows, most = map(int, done.stdout.split())
    assert rows == [600, 600, 600]
    assert most < 14_000_000


def test_columns_get_their_types_from_the_first_rows_of_a_stream(jsonl, tmp_path, sample):
    """A column that is null at first is what it is later; one that changes its type too late is refused."""
    extra = [{**row, "note": None if i < 40 else {"by": "x"}, "tags": []} for i, row in enumerate(sample)]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in extra))
    stream = load_dataset("json", data_files=str(jsonl), split="train", streaming=True)
    lexical = arhn.Lexical()
    for stage in stages(lexical).transforms:
        stream = stream.map(stage)
    done = save(stream, tmp_path / "out")
    assert [row["note"] for row in done.rows()] == [row["note"] for row in extra]
    first = pa.table({"a": pa.array([1, 2])})
    for later, message in (
        (pa.table({"a": ["x"]}), "holds int64 in the first rows and string in later ones"),
        (pa.table({"b": [1]}), r"columns \['a', 'b'\]"),
    ):
        with pytest.raises(SchemaError, match=message):
            output.conformed(later, first.schema)
    assert output.conformed(pa.table({"a": pa.array([None], pa.null())}), first.schema).schema == first.schema
    nested = pa.schema([("p", pa.list_(pa.struct([("x", pa.string())])))])
    with pytest.raises(SchemaError, match="further fields"):
        output.conformed(pa.table({"p": [[{"x": "1", "y": "2"}]]}), nested)
    with pytest.raises(SchemaError, match="without a table"):
        output.write_run(tmp_path / "none", {"train": []}, lambda *_: {})


def relabelled_stream(path, annotator):
    """Rows that were mapped over a stream."""
    stream = load_dataset("json", data_files=str(path), split="train", streaming=True)
    for stage in stages(annotator).transforms:
        stream = stream.map(stage)
    return stream


def test_mapped_streams_are_written_and_pushed_as_datasets_are(hub, jsonl, tmp_path, sample):
    """Saved and pushed of an IterableDataset, alone or in splits: the rows, the policy and the card of the map."""
    lexical = arhn.Lexical.fitted(sample)
    used = stages(lexical).transforms
    rows = load_dataset("json", data_files=str(jsonl), split="train")
    for stage in used:
        rows = rows.map(stage)
    plain = save(rows, tmp_path / "plain", transforms=used)
    stream = relabelled_stream(jsonl, lexical)
    streamed = save(stream, tmp_path / "streamed", transforms=used)
    assert list(streamed.rows()) == list(plain.rows())
    assert streamed.report == plain.report
    assert streamed.run["parameters"] == plain.run["parameters"]
    bare = save(IterableDatasetDict(dev=stream.take(9)), tmp_path / "bare")
    assert bare.run["parameters"]["relabel"]["policy"] == "relabel+filter"
    assert bare.run["source"]["rows"] == {"dev": 9}
    arhn.push(stream, REPO, transforms=used)
    assert load_dataset(REPO, split="train").num_rows == len(sample)
    assert arhn.verify(REPO).holds
    with pytest.raises(SchemaError, match="were not relabelled"):
        save(load_dataset("json", data_files=str(jsonl), split="train", streaming=True), tmp_path / "x")
    with pytest.raises(ConfigurationError, match="transforms has"):
        save(stream, tmp_path / "x", transforms=[arhn.revert])
    both = stream.take(2).map(lambda row: {"decision": {**row["decision"], "policy": row["query_id"]}})
    with pytest.raises(SchemaError, match="were relabelled by"):
        save(both, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_dataset_of_the_hub_streams(hub, tmp_path, sample):
    """By its id and revision; the commit is recorded."""
    Dataset.from_list(sample[:12]).push_to_hub("writer/source")
    done = refine(Input(name="writer/source", revision="main"), tmp_path / "out", stages(), streaming=True)
    assert done.run["source"]["revision"] == hub.head("writer/source").sha
    assert [row["query_id"] for row in done.rows()] == [row["query_id"] for row in sample[:12]]


def test_shards_of_a_stream_are_its_files(tmp_path, sample):
    """Contiguous files, one after the other; more shards than files are refused, and so is a limit."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        Dataset.from_list(sample[i * 10 : i * 10 + 10]).to_parquet(str(tmp_path / "in" / f"train-{i}.parquet"))
    found = []
    for index in range(2):
        source = Input(name=str(tmp_path / "in"), shard=Shard(index=index, of=2))
        done = refine(source, tmp_path / str(index), stages(), streaming=True)
        found += [row["query_id"] for row in done.rows()]
    assert found == [row["query_id"] for row in sample[:30]]
    with pytest.raises(ConfigurationError, match="cut into shards by its files.*'train': [36]"):
        refine(Input(name=str(tmp_path / "in"), shard=Shard(index=0, of=4)), tmp_path / "x", stages(), streaming=True)
    source = Input(name=str(tmp_path / "in"), limit=4, shard=Shard(index=0, of=2))
    with pytest.raises(ConfigurationError, match="leave --limit out"):
        refine(source, tmp_path / "x", stages(), streaming=True)
