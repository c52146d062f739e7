"""Shards of a run, refined apart and merged: the run that was not cut, or a word about why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_dataset

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.inputs.sources import Input, Shard
from arhn_datasets.runs.refine import refine
from arhn_datasets.runs.shards import merge
from tests.runs.test_refine import stages

DROPPING = {"min_negatives": 4, "on_shortage": "drop"}


def run_of(folder):
    """What run.json says."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory, sample):
    """Two splits, with a column that is null in most of the shards."""
    root = tmp_path_factory.mktemp("source") / "in"
    rows = [{**row, "note": "x" if i == 40 else None} for i, row in enumerate(sample)]
    whole = Dataset.from_list(rows)
    DatasetDict(train=whole.select(range(60)), test=whole.select(range(60, 62))).save_to_disk(str(root))
    return str(root)


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    """Folders of the three shards of a run in which a guard drops rows; the second split is in two of them."""
    root = tmp_path_factory.mktemp("shards")
    for index in range(3):
        refine(Input(name=source, shard=Shard(index=index, of=3)), root / str(index), stages(**DROPPING))
    return [root / str(index) for index in range(3)]


def test_shards_are_contiguous_parts_and_say_so(source, shards, sample):
    """Every row is in one shard, in order; a shard is a refined folder of its own."""
    assert [run_of(shard)["source"]["shard"]["index"] for shard in shards] == [0, 1, 2]
    assert [run_of(shard)["source"]["rows"] for shard in shards] == [
        {"train": 20, "test": 0},
        {"train": 20, "test": 1},
        {"train": 20, "test": 1},
    ]
    for index, shard in enumerate(shards):
        ids = {row["query_id"] for row in load_dataset(str(shard), split="train")}
        ids |= {row["query_id"] for row in load_dataset(str(shard), "dropped", split="train")}
        assert ids == {row["query_id"] for row in sample[index * 20 : index * 20 + 20]}
        assert arhn.verify(shard).holds


def test_merged_shards_are_the_run_that_was_not_cut(source, shards, tmp_path):
    """Rows, types, counts, and the term statistics of the whole input; in any order of the folders."""
    whole = refine(Input(name=source), tmp_path / "whole", stages(**DROPPING))
    merged = merge(tmp_path / "merged", [shards[2], shards[0], shards[1]])
    for split in ("train", "test"):
        assert list(merged.rows(split)) == list(whole.rows(split))
    assert merged.report == whole.report
    for part in ("identity", "parameters", "annotator", "prompts", "counts", "requests"):
        assert merged.run[part] == whole.run[part], part
    for config in ("default", "dropped"):
        both = [load_dataset(str(folder), config) for folder in (tmp_path / "whole", tmp_path / "merged")]
        assert both[0]["train"].features == both[1]["train"].features
    assert merged.run["source"] == {**whole.run["source"], "fingerprints": merged.run["source"]["fingerprints"]}
    assert [one["id"] for one in merged.run["merged"]] == [run_of(shard)["id"] for shard in shards]
    total = sum(run_of(shard)["durations_seconds"]["refine"] for shard in shards)
    assert merged.run["durations_seconds"]["refine"] == pytest.approx(total, abs=0.01)
    assert arhn.verify(merged.path).holds
    again = merge(tmp_path / "merged", shards)
    assert again.run["id"] != merged.run["id"]


def test_requests_are_added_up_and_stores_may_be_shared(server, source, tmp_path):
    """What all shards together asked is what the run asks."""
    whole = refine(
        Input(name=source, split="train"), tmp_path / "whole", stages(arhn.Endpoint(server.url, cache="none"))
    )
    asked = server.stats.requests
    folders = []
    for index in range(2):
        annotator = arhn.Endpoint(server.url, cache=tmp_path / f"store-{index}")
        part = Input(name=source, split="train", shard=Shard(index=index, of=2))
        folders.append(refine(part, tmp_path / str(index), stages(annotator)).path)
    assert server.stats.requests == 2 * asked
    merged = merge(tmp_path / "merged", folders)
    assert merged.run["requests"]["replies"] == asked
    assert list(merged.rows()) == list(whole.rows())
    assert "some/model" in (merged.path / "README.md").read_text(encoding="utf-8")


def test_more_shards_than_rows(tmp_path, sample):
    """A shard without rows is a folder, too, so that no task of an array fails for it."""
    Dataset.from_list(sample[:2]).to_json(str(tmp_path / "in.jsonl"))
    name = str(tmp_path / "in.jsonl")
    folders = [refine(Input(name=name, shard=Shard(index=i, of=3)), tmp_path / str(i), stages()).path for i in range(3)]
    assert sorted(run_of(folder)["source"]["rows"]["train"] for folder in folders) == [0, 1, 1]
    merged = merge(tmp_path / "merged", folders)
    assert [row["query_id"] for row in merged.rows()] == [row["query_id"] for row in sample[:2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shards, other: shards[:2], "2 of 3 shards were named; missing: 2"),
        (lambda shards, other: shards[1:2], "missing: 0, 2"),
        (lambda shards, other: [*shards, shards[0]], "both shard 0"),
        (lambda shards, other: [*shards[:2], other(policy="filter")], "parameters.relabel"),
        (lambda shards, other: [*shards[:2], other(annotator=arhn.Lexical(language=None))], "identity"),
        (lambda shards, other: [*shards[:2], other(split="train")], "source.split"),
        (lambda shards, other: [*shards[:2], other(changed=True)], "the whole input"),
        (lambda shards, other: [*shards[:2], other(of=4)], "one of 3 shards and .* one of 4"),
        (lambda shards, other: [*shards[:2], other(of=None)], "is not a shard"),
        (lambda shards, other: [*shards[:2], shards[0].parent], "no run.json"),
    ],
)
def test_what_does_not_belong_together_is_told(source, shards, tmp_path, sample, change, message):
    """Missing, double and foreign shards: which, and what differs; nothing is written."""

    def other(of=3, split=None, changed=False, annotator=None, **options):
        name = source
        if changed:
            name = str(tmp_path / "in")
            rows = Dataset.from_list([{**row, "note": None} for row in sample])
            rows = rows.map(lambda row: {"query": row["query"] + "?"})
            DatasetDict(train=rows.select(range(60)), test=rows.select(range(60, 62))).save_to_disk(name)
        shard = Shard(index=2, of=of) if of else None
        used = stages(annotator or arhn.Lexical(), **(options or DROPPING))
        return refine(Input(name=name, split=split, shard=shard), tmp_path / "other", used).path

    with pytest.raises(ConfigurationError, match=message):
        merge(tmp_path / "merged", change(list(shards), other))
    assert not (tmp_path / "merged").exists()


def test_the_command_merges(shards, tmp_path, capsys, monkeypatch, source):
    """`arhn-refine merge OUT DIR...`: the counts and the folder; wrong usage exits with 2; ./merge is an input."""
    named = [str(shard) for shard in shards]
    assert cli.refine_command(["merge", str(tmp_path / "out"), *named]) == 0
    printed = capsys.readouterr().out
    assert "merged    3 shards" in printed
    assert f'load_dataset("{tmp_path / "out"}") loads it' in printed
    assert cli.refine_command(["merge", str(tmp_path / "x"), *named[:2]]) == 2
    assert "missing: 2" in capsys.readouterr().err
    copy = shutil.copytree(shards[0], tmp_path / "copy")
    assert cli.refine_command(["merge", str(copy), str(copy), *named[1:]]) == 2
    assert "is one of the shards" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.refine_command(["merge", "--output", "x"])
    assert ended.value.code == 2
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, tmp_path / "merge")
    assert cli.refine_command(["./merge", "--annotator", "lexical", "--limit", "2", "--output", "y"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-index", "0"], "go together"),
        (["--num-shards", "2"], "go together"),
        (["--shard-index", "2", "--num-shards", "2"], "the shards of 2 are 0 to 1"),
        (["--shard-index", "-1", "--num-shards", "2"], "0 to 1"),
        (["--shard-index", "0", "--num-shards", "2", "--estimate"], "tells of the whole run"),
    ],
)
def test_shards_that_cannot_be(arguments, message, source, tmp_path, capsys):
    """Wrong usage, told in a line."""
    command = [source, "--annotator", "lexical", "--output", str(tmp_path / "out"), *arguments]
    assert cli.refine_command(command) == 2
    assert message in capsys.readouterr().err


PAGE = (Path(arhn.__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_the_recipes_name_options_that_exist():
    """Each line of ours on the page is one that its command takes."""
    text = re.sub(r'\$\{?(\w+)[^\s"/]*', "1", "\n".join(BLOCKS).replace("\\\n", " "))
    lines = re.findall(r"\b(arhn-(?:refine|cache|verify) [^\n;&]*?)(?:'?;.*|' EXIT|\"|&&.*)?$", text, re.MULTILINE)
    parsers = {"arhn-refine": cli.refine_parser(), "arhn-cache": cli.cache_parser(), "arhn-verify": cli.verify_parser()}
    assert len(lines) >= 9
    for line in lines:
        name, *arguments = shlex.split(line.replace('"', ""))
        if arguments[0] == "merge":
            cli.refining.merge_parser().parse_args(arguments[1:])
        else:
            parsers[name].parse_args(arguments)


@pytest.mark.exhaustive
def test_the_slurm_recipe_runs(server, source, sample, tmp_path):
    """Two tasks one after the other, one of them again after a failure; then the merge."""
    script = next(block for block in BLOCKS if block.startswith("#!/bin/bash")).replace("shards=16", "shards=2")
    (tmp_path / "refine.sh").write_text(script)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample[:6]))
    base = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "INPUT": str(tmp_path / "in.jsonl"),
        "ARHN_ENDPOINT": server.url,
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "SLURM_ARRAY_JOB_ID": "7",
    }

    def task(index):
        environment = {**base, "SLURM_ARRAY_TASK_ID": str(index)}
        command = ["bash", str(tmp_path / "refine.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    for index in range(2):
        done = task(index)
        assert done.returncode == 0, done.stderr
    asked = server.stats.requests
    for folder in (tmp_path / "out" / "shard-1", tmp_path / "arhn-7-1"):
        shutil.rmtree(folder)
    assert task(1).returncode == 0
    assert server.stats.requests == asked, "the replies were imported"
    merged = merge(tmp_path / "refined", sorted((tmp_path / "out").glob("shard-*")))
    assert [row["query_id"] for row in merged.rows()] == [row["query_id"] for row in sample[:6]]
