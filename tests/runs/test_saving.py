"""Rows that were mapped over a dataset or a stream, as a folder."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from datasets import IterableDatasetDict, load_dataset

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.parquet import conformed
from arhn_datasets.folder.writer import write_run
from arhn_datasets.runs.saving import save
from tests.hub.test_pushing import REPO
from tests.runs.test_refine import stages


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
            conformed(later, first.schema)
    assert conformed(pa.table({"a": pa.array([None], pa.null())}), first.schema).schema == first.schema
    nested = pa.schema([("p", pa.list_(pa.struct([("x", pa.string())])))])
    with pytest.raises(SchemaError, match="further fields"):
        conformed(pa.table({"p": [[{"x": "1", "y": "2"}]]}), nested)
    with pytest.raises(SchemaError, match="without a table"):
        write_run(tmp_path / "none", {"train": []}, lambda *_: {})


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
