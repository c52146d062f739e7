"""The rows of a split from any of them on, of files and of streams, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import InputError
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.sources import Input, Shard
from arhn_datasets.runs.preparing import Loaded, Position, Streamed, prepare
from arhn_datasets.runs.refine import refine
from arhn_datasets.runs.shards import merge
from tests.runs.test_refine import stages

HUB = "writer/source"


def files(root):
    """The data files of a folder, by path."""
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.parquet"))}


def is_stream(done):
    """Whether a run has read a stream: what is on this disk has fingerprints."""
    return "fingerprints" not in done.run["source"]


@pytest.mark.parametrize("kind", ["labels", "splits", "refined", "flagembedding"])
def test_a_stream_of_the_hub_gives_the_folder_of_its_files(kind, hub, tmp_path, sample):
    """Rows in order, types, features, dropped rows and counts."""
    dataset = Dataset.from_list(sample).add_column("kind", [i % 2 for i in range(len(sample))])
    dataset = dataset.cast_column("kind", ClassLabel(names=["even", "odd"]))
    if kind == "splits":
        dataset = DatasetDict(train=dataset.select(range(50)), test=dataset.select(range(50, 69)))
    elif kind == "refined":
        dataset.to_parquet(str(tmp_path / "first.parquet"))
        refine(Input(name=str(tmp_path / "first.parquet")), tmp_path / "first", stages())
        dataset = load_dataset(str(tmp_path / "first"), split="train")
    elif kind == "flagembedding":
        texts = {name: f"{side}_passages" for name, side in (("pos", "positive"), ("neg", "negative"))}
        rows = [{name: [one["text"] for one in row[column]] for name, column in texts.items()} for row in sample]
        dataset = Dataset.from_list([{"query": row["query"], **own} for row, own in zip(sample, rows, strict=True)])
    dataset.push_to_hub(HUB)
    dataset.save_to_disk(str(tmp_path / "in"))
    options = {"min_negatives": 3, "on_shortage": "drop"}
    plain = refine(Input(name=str(tmp_path / "in")), tmp_path / "plain", stages(**options))
    streamed = refine(Input(name=HUB), tmp_path / "streamed", stages(**options), batch_size=7)
    assert is_stream(streamed)
    assert not is_stream(plain)
    assert streamed.report == plain.report
    assert list(streamed.report.subsets) == list(plain.report.subsets)
    assert {name: path.read_bytes() for name, path in files(streamed.path).items()} == {
        name: path.read_bytes() for name, path in files(plain.path).items()
    }
    for name in ("identity", "parameters", "annotator"):
        assert streamed.run[name] == plain.run[name]
    assert streamed.run["source"]["rows"] == plain.run["source"]["rows"]
    assert streamed.run["source"]["revision"] == hub.head(HUB).sha
    assert arhn.verify(streamed.path).holds
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_limits_and_splits_of_a_stream(hub, tmp_path, sample):
    """A limit ends each split after so many rows, a split is taken alone, a wrong one is told."""
    DatasetDict(train=Dataset.from_list(sample[:20]), test=Dataset.from_list(sample[20:23])).push_to_hub(HUB)
    done = refine(Input(name=HUB, limit=5, revision="main"), tmp_path / "out", stages(), batch_size=3)
    assert is_stream(done)
    assert done.run["source"]["rows"] == {"train": 5, "test": 3}
    assert [row["query_id"] for row in done.rows("train")] == [row["query_id"] for row in sample[:5]]
    one = refine(Input(name=HUB, split="test"), tmp_path / "one", stages())
    assert one.run["source"]["rows"] == {"test": 3}
    with pytest.raises(InputError, match="has no split 'dev'"):
        refine(Input(name=HUB, split="dev"), tmp_path / "out", stages())


def test_a_split_without_rows_has_the_columns_of_the_others(hub, tmp_path, sample):
    """It is written as a file without rows; load_dataset itself reads no empty split of files."""
    rows = Dataset.from_list(sample[:3])
    DatasetDict(train=rows, test=rows.select([])).push_to_hub(HUB)
    done = refine(Input(name=HUB), tmp_path / "out", stages())
    assert is_stream(done)
    assert done.run["source"]["rows"] == {"train": 3, "test": 0}
    schemas = {path.name[:4]: pq.read_schema(path) for path in (tmp_path / "out" / "data").iterdir()}
    assert schemas["trai"].equals(schemas["test"], check_metadata=True)
    assert arhn.verify(done.path).holds
    rows.select([]).push_to_hub("writer/nothing")
    with pytest.raises(InputError, match=r"writer/nothing has no rows"):
        refine(Input(name="writer/nothing"), tmp_path / "nothing", stages())
    assert not (tmp_path / "nothing").exists()


def test_what_cannot_be_a_stream_is_loaded(hub, tmp_path, sample):
    """Rows of which several become one, more shards than parts, and a limit and shards."""
    triplets = [{"anchor": f"q{i // 2}", "positive": f"p{i // 2}", "negative": f"n{i}"} for i in range(8)]
    Dataset.from_list(triplets).push_to_hub("writer/triplets")
    done = refine(Input(name="writer/triplets"), tmp_path / "triplets", stages())
    assert [len(row["negative_passages"]) + len(row["filtered_passages"]) for row in done.rows()] == [2] * 4
    assert not is_stream(done)
    Dataset.from_list(sample[:9]).push_to_hub(HUB)
    for options in ({"shard": Shard(index=1, of=4)}, {"shard": Shard(index=0, of=1), "limit": 4}):
        prepared = prepare(Input(name=HUB, **options), stages(), streamed=True)
        assert all(isinstance(split, Loaded) for split in prepared.splits.values())


@pytest.mark.parametrize("kind", ["no Hub", "no columns"])
def test_what_does_not_open_as_a_stream_is_loaded(kind, hub, monkeypatch, sample):
    """It may be in the cache where there is no Hub, and some versions of datasets know the columns only of the rows."""
    import datasets

    Dataset.from_list(sample[:3]).push_to_hub(HUB)
    whole = datasets.load_dataset

    def load(*arguments, streaming=False, **options):
        if streaming and kind == "no Hub":
            raise ConnectionError
        if streaming:
            return datasets.IterableDatasetDict(train=datasets.IterableDataset.from_generator(lambda: iter(sample)))
        return whole(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    prepared = prepare(Input(name=HUB), stages(), streamed=True)
    assert len(prepared.splits["train"].dataset) == 3


def test_shards_of_a_stream_are_its_parts(hub, tmp_path, sample):
    """Contiguous files, one after the other, and merged the rows and identities of the whole."""
    Dataset.from_list(sample[:15]).push_to_hub(HUB, num_shards=3)
    whole = refine(Input(name=HUB), tmp_path / "whole", stages())
    found = [
        refine(Input(name=HUB, shard=Shard(index=index, of=2)), tmp_path / str(index), stages()) for index in range(2)
    ]
    assert all(map(is_stream, found))
    assert [row["query_id"] for done in found for row in done.rows()] == [row["query_id"] for row in sample[:15]]
    merged = merge(tmp_path / "merged", [done.path for done in found])
    assert list(merged.rows()) == list(whole.rows())
    assert merged.run["identity"] == whole.run["identity"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_split_goes_on_at_any_row(data, tmp_path_factory):
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
    streamed = data.draw(st.booleans(), label="streamed")

    def opened():
        if streamed:
            return Streamed(sources._by_groups(load_dataset(str(root), split="train", streaming=True)), source)
        return Loaded(sources.load_input(source, undo=arhn.revert)[0]["train"])

    whole = [(table.column("query_id").to_pylist(), at) for table, at in opened().tables(None, batch)]
    assert [id for ids, _ in whole for id in ids] == [str(i) for i in range(sum(sizes))]
    at = data.draw(st.integers(0, len(whole) - 1), label="at")
    position = Position(state=json.loads(json.dumps(whole[at][1].state)), rows=whole[at][1].rows)
    rest = [table.column("query_id").to_pylist() for table, _ in opened().tables(position, batch)]
    assert rest == [ids for ids, _ in whole[at + 1 :]]
    assert position.rows == sum(len(ids) for ids, _ in whole[: at + 1])


MEMORY = """
import sys
import pyarrow
from contextlib import contextmanager
from pathlib import Path
from datasets import load_dataset
from tests.runs.annotators import Failing
from tests.runs.test_refine import stages
from arhn_datasets.folder import parquet, writer
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.sources import Input
from arhn_datasets.runs import refine as engine
from arhn_datasets.runs.refine import refine
from arhn_datasets.runs.saving import save
parquet.GROUP_BYTES = writer.TYPED_BYTES = engine.WINDOW_BYTES = 1_000_000
class Waiting(Failing):
    awaits = True
source, target, kind = Input(name=sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rows = sources._by_groups(load_dataset(sys.argv[1], split="train", streaming=True))
if kind == "streamed":
    opened = {"train": rows}, sources._provenance(source, "folder", {})
    sources.stream = lambda source: opened
done = [refine(source, target, stages(annotator)) for annotator in (Failing(), Waiting())]
if kind == "streamed":
    for stage in stages(Failing()).transforms:
        rows = rows.map(stage)
    done.append(save(rows, target))
print(*(one.report.total.rows for one in done), pyarrow.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize(
    ("kind", "count", "length"),
    [("streamed", 600, 10_000), pytest.param("loaded", 6_000, 1_000, marks=pytest.mark.exhaustive)],
)
def test_memory_does_not_grow_with_the_rows(kind, count, length, tmp_path):
    """24 MB of text that no compression makes smaller take half of it, read and written in any way."""
    passages = pa.list_(pa.struct([(name, pa.string()) for name in ("docid", "title", "text")]))
    schema = pa.schema([("query_id", pa.string()), ("query", pa.string())])
    schema = schema.append(pa.field("positive_passages", passages)).append(pa.field("negative_passages", passages))
    (tmp_path / "in").mkdir()
    for start in range(0, count, count // 30):  # files: older versions of datasets read each of them ahead
        rows = [
            {
                "query_id": str(i),
                "query": f"q{i}",
                "positive_passages": [{"docid": f"p{i}", "title": "", "text": os.urandom(length).hex()}],
                "negative_passages": [{"docid": f"n{i}", "title": "", "text": os.urandom(length).hex()}],
            }
            for i in range(start, start + count // 30)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in" / f"train-{start:04d}.parquet")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "in"), str(tmp_path / "out"), kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    *rows, most = map(int, done.stdout.split())
    assert set(rows) == {count}
    assert most < 14_000_000
