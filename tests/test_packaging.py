"""What is shipped: the sample with its truth, the card template, the typing marker."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.inputs.adaptation import adapt_rows
from tests.conftest import SAMPLE

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_what_it_needs(tmp_path):
    """Typing marker, sample, truth and card template are in the wheel, and no test is."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "samples/questions.jsonl", "samples/questions.truth.jsonl", "dataset_cards/card.md"):
        assert f"arhn_datasets/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "scripts"))]


def test_the_sample_is_canonical_and_its_truth_fits(sample):
    """Sixty rows or more, each a fixed point of adapt, with two positives or an unsupported one here and there."""
    truth = [json.loads(line) for line in SAMPLE.with_suffix(".truth.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(sample) >= 60
    assert [row["query_id"] for row in sample] == [row["query_id"] for row in truth]
    assert adapt_rows(sample) == sample
    assert sum(len(row["positive_passages"]) > 1 for row in sample) >= 5
    assert sum(not any(p["relevant"] for p in row["positives"]) for row in truth) >= 5
    for row, known in zip(sample, truth, strict=True):
        for side in ("positive", "negative"):
            passages = row[f"{side}_passages"]
            assert [p["docid"] for p in passages] == [p["docid"] for p in known[f"{side}s"]]
            for passage, fact in zip(passages, known[f"{side}s"], strict=True):
                assert fact["answer"] is None or fact["answer"] in passage["text"]


def test_the_version_is_the_one_that_is_installed():
    """One version, in the code and in the metadata."""
    from importlib.metadata import version

    assert arhn.__version__ == version("arhn_datasets")


def test_the_canonical_sample_loads_as_a_dataset(sample):
    """Passages are lists of structs of strings."""
    features = Dataset.from_list(sample).features
    assert set(features) == {"query_id", "query", "positive_passages", "negative_passages", "subset"}
