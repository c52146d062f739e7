"""A run with rows that break their form: they stop it before any work, or are set aside beside the others."""

from __future__ import annotations

import json

import pytest
from datasets import load_dataset

from arhn_datasets import cli
from arhn_datasets.errors import SchemaError
from arhn_datasets.folder import parquet
from arhn_datasets.folder import writer as output
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.bad_rows import FILE
from arhn_datasets.inputs.sources import Input, Shard
from arhn_datasets.runs import refine as engine
from arhn_datasets.runs.refine import CHECKPOINT, refine, work_folder
from arhn_datasets.runs.shards import merge
from tests.runs.annotators import Failing
from tests.runs.test_refine import stages

BAD = (0, 7, 30, 31, 47)


@pytest.fixture
def given(tmp_path, sample):
    """A file in which some rows are bad, each in another way."""
    rows = [dict(row) for row in sample[:48]]
    rows[0]["query"] = " "
    rows[7]["negative_passages"] = rows[7]["positive_passages"]
    rows[30]["positive_passages"] = []
    rows[31]["positive_passages"] = [{**rows[31]["positive_passages"][0], "text": None}]
    rows[47]["query"] = None
    path = tmp_path / "given" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def set_aside(folder):
    """The numbers of the rows that were, as the file, run.json and the card have them."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))["source"]["bad_rows"]
    assert told == {"train": len(lines)}
    assert f"{len(lines)} rows of the source broke its form" in (folder / "README.md").read_text(encoding="utf-8")
    return [json.loads(line)["row"] for line in lines]


def ids(folder):
    """The ids of the queries in a folder."""
    return load_dataset(str(folder), split="train")["query_id"][:]


def test_the_command_sets_bad_rows_aside(given, tmp_path, capsys, sample):
    """The default ends with 1 and the number of all; the option refines the others, verified and reverted as ever."""
    arguments = [str(given), "--annotator", "lexical", "--output", str(tmp_path / "out")]

    assert cli.refine_command(arguments) == 1
    assert "5 of 48 rows break their form" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.refine_command([*arguments, "--on-bad-row", "set-aside"]) == 0

    assert "set aside 5 rows" in capsys.readouterr().out
    assert set_aside(tmp_path / "out") == list(BAD)
    assert ids(tmp_path / "out") == [row["query_id"] for at, row in enumerate(sample[:48]) if at not in BAD]
    first = json.loads((tmp_path / "out" / FILE).read_text(encoding="utf-8").splitlines()[0])
    assert (first["content"]["query"], first["split"]) == (" ", "train")
    assert "'query' holds a str" in first["reason"]
    assert cli.verify_command([str(tmp_path / "out")]) == 0


def test_shards_hold_each_bad_row_once(given, tmp_path):
    """Merged, they are the run that was not cut, with its file of bad rows."""
    whole = refine(Input(name=str(given), on_bad_row="set-aside"), tmp_path / "whole", stages())
    for index in range(3):
        shard = Input(name=str(given), on_bad_row="set-aside", shard=Shard(index=index, of=3))
        refine(shard, tmp_path / f"{index}", stages())
    merged = merge(tmp_path / "merged", [tmp_path / f"{index}" for index in range(3)])

    assert set_aside(merged.path) == set_aside(whole.path) == list(BAD)
    assert (merged.path / FILE).read_bytes() == (whole.path / FILE).read_bytes()
    assert ids(merged.path) == ids(whole.path)


def stream_of(folder):
    """The rows of a folder as a stream that knows its columns, which older versions tell of parquet alone."""
    rows = load_dataset(str(folder), split="train", streaming=True)
    return rows if rows.features else rows._resolve_features()


@pytest.fixture
def streamed(given, monkeypatch):
    """The same rows as a stream."""
    rows = stream_of(given.parent)
    source = Input(name=str(given.parent), on_bad_row="set-aside")
    monkeypatch.setattr(sources, "stream", lambda source: ({"train": rows}, sources._provenance(source, "hub", {})))
    return source


def test_a_stream_goes_on_with_its_bad_rows(streamed, tmp_path, sample, monkeypatch):
    """After an end none is there twice, and none is missing; and without the option the first one ends the run."""
    monkeypatch.setattr(parquet, "SHARD_BYTES", 15_000)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 5_000)
    monkeypatch.setattr(output, "TYPED_BYTES", 1)
    monkeypatch.setattr(engine, "WINDOW_ROWS", 8)
    out = tmp_path / "out"

    with pytest.raises(OSError, match="is gone"):
        refine(streamed, out, stages(Failing(sample[40]["query"])), batch_size=4)
    assert (work_folder(out) / CHECKPOINT).exists()
    done = refine(streamed, out, stages(Failing()), batch_size=4)

    assert set_aside(done.path) == list(BAD)
    assert ids(out) == [row["query_id"] for at, row in enumerate(sample[:48]) if at not in BAD]
    with pytest.raises(SchemaError, match=r"of 4 rows break their form.*\n.*row 0, counted from 0"):
        refine(Input(name=streamed.name), tmp_path / "stopped", stages(Failing()), batch_size=4)
    assert set_aside(refine(streamed, tmp_path / "fitted", stages()).path) == list(BAD)


@pytest.mark.parametrize("as_stream", [False, True])
def test_columns_are_dropped_and_renamed_first(given, tmp_path, sample, monkeypatch, as_stream):
    """Before a form is recognised, in files and in streams, and run.json tells it."""
    rows = [{"q": row["query"], "pos": ["yes"], "neg": ["no"], "pos_rank": [3], "score": 0.5} for row in sample[:6]]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Input(name=str(given.parent), rename={"q": "query"}, drop_columns=("pos_rank",))
    if as_stream:
        opened = stream_of(given.parent)
        monkeypatch.setattr(
            sources, "stream", lambda source: ({"train": opened}, sources._provenance(source, "hub", {}))
        )

    done = refine(source, tmp_path / "out", stages(Failing()))

    assert [row["query"] for row in done.rows()] == [row["query"] for row in sample[:6]]
    assert "pos_rank" not in next(done.rows())
    assert (done.run["source"]["rename"], done.run["source"]["drop_columns"]) == ({"q": "query"}, ["pos_rank"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--drop-columns", "nothing"], "no columns ['nothing'] to drop or rename"),
        (["--rename", "query"], "--rename got 'query'; OLD=NEW was expected"),
        (["--rename", "query_id=query"], "several columns of the name ['query']"),
        (["--label-threshold", "0.5"], "goes with labels or scores beside documents"),
    ],
)
def test_changes_that_cannot_be_made_are_wrong_usage(given, tmp_path, capsys, arguments, said):
    """The message names the columns that there are."""
    command = [str(given), "--annotator", "lexical", "--output", str(tmp_path / "out"), *arguments]
    assert cli.refine_command(command) == 2
    assert said in capsys.readouterr().err


def test_scores_with_a_threshold_are_refined(given, tmp_path, capsys):
    """Without it the command ends before any work and names the option; with it the scores stay with the passages."""
    row = {
        "query": "how tall is the tower",
        "docs": ["212 metres tall", "a river", "a hill"],
        "scores": [0.8, 0.4, 0.7],
    }
    given.write_text(json.dumps(row) + "\n", encoding="utf-8")
    command = [str(given), "--annotator", "lexical", "--output", str(tmp_path / "out")]

    assert cli.refine_command(command) == 1
    assert "--label-threshold" in capsys.readouterr().err
    assert cli.refine_command([*command, "--label-threshold", "0.8"]) == 0

    [found] = load_dataset(str(tmp_path / "out"), split="train")
    assert [p["score"] for p in found["positive_passages"]] == [0.8]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["source"]["label_threshold"] == 0.8
