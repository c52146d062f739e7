"""The card: valid YAML, a page that no value can break, and the facts of the run."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from arhn_datasets import card as cards
from arhn_datasets.card import render_card
from arhn_datasets.report import Counts, Report

CONFIGS = {"default": {"train": "data/train-*"}, "dropped": {"train": "dropped/train-*"}}
COUNTS = Counts(
    rows=3,
    positives=3,
    negatives=9,
    relabelled=2,
    filtered=1,
    kept=6,
    snippets={"grounded": 12},
    decisions={"changed": 3},
)


def run(name="rows.jsonl", kind="file", baseline=True, **annotator):
    """The content of a run.json."""
    return {
        "id": "0123abcd",
        "versions": {"arhn_datasets": "9.9"},
        "source": {"name": name, "kind": kind, "revision": "c0ffee" if kind == "hub" else None},
        "annotator": {"annotator": "lexical baseline", "baseline": baseline, **annotator},
        "parameters": {"relabel": {"policy": "relabel+filter", "max_relabeled": None}, "ranks": {"window": 20}},
    }


def parts(text):
    """The YAML and the body of a card."""
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def report(**subsets):
    """A report of equal subsets."""
    return Report(total=COUNTS, subsets=subsets or {"qa": COUNTS})


def test_the_metadata_is_what_the_hub_reads():
    """Configurations with their files, task categories, tags and size; no licence or language is invented."""
    metadata, _ = parts(render_card(run(), report(), configs=CONFIGS))
    assert metadata["configs"][0] == {
        "config_name": "default",
        "data_files": [{"split": "train", "path": "data/train-*"}],
        "description": "arhn_datasets run 0123abcd",
        "default": True,
    }
    assert metadata["configs"][1]["config_name"] == "dropped"
    assert metadata["annotations_creators"] == ["machine-generated"]
    assert set(metadata["task_categories"]) == {"text-retrieval", "text-ranking", "sentence-similarity"}
    assert {"arhn", "sentence-transformers", "lexical-baseline"} <= set(metadata["tags"])
    assert metadata["size_categories"] == ["n<1K"]
    assert not {"license", "language", "source_datasets"} & set(metadata)


def test_a_hub_source_is_linked_at_its_revision():
    """The source dataset stands in YAML and page; an LLM's labels carry no baseline warning."""
    metadata, body = parts(
        render_card(run("user/rows", "hub", baseline=False, model="m", revision="abc"), report(), configs=CONFIGS)
    )
    assert metadata["source_datasets"] == ["user/rows"]
    assert "lexical-baseline" not in metadata["tags"]
    assert "[`user/rows`](https://huggingface.co/datasets/user/rows) at revision `c0ffee`" in body
    assert "not an LLM" not in body
    assert "- model: `m`\n- revision: `abc`" in body


def test_a_baseline_is_flagged_in_bold():
    """Nobody takes the lexical baseline for an LLM."""
    _, body = parts(render_card(run(), report(), configs=CONFIGS))
    assert "> **The annotator was a lexical baseline, not an LLM.**" in body


def test_counts_by_subset_stand_in_a_table():
    """One line each and the total; sizes follow the number of rows."""
    big = Counts(rows=2_000_000)
    text = render_card(run(), Report(total=big, subsets={"a": COUNTS, "b|c": COUNTS}), configs=CONFIGS)
    metadata, body = parts(text)
    assert "| a | 3 | 3 | 9 | 2 | 1 | 6 |" in body
    assert "| b&#124;c | 3 |" in body
    assert "| all | 2,000,000 |" in body
    assert metadata["size_categories"] == ["n>1M"]


@given(st.text(min_size=1, max_size=60))
def test_no_value_breaks_the_yaml_or_the_page(name):
    """A source, a model or a subset may be named anything: the structure of the card stays."""
    text = render_card(
        run(name, "file", model=name), Report(total=COUNTS, subsets={name: COUNTS, "x": COUNTS}), configs=CONFIGS
    )
    metadata, body = parts(text)
    assert metadata["configs"][0]["config_name"] == "default"
    plain = render_card(
        run("n", "file", model="n"), Report(total=COUNTS, subsets={"n": COUNTS, "x": COUNTS}), configs=CONFIGS
    )
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == [
        line for line in parts(plain)[1].splitlines() if line.startswith("#")
    ][1:]
    assert sum(line.startswith("|") for line in body.splitlines()) == sum(
        line.startswith("|") for line in plain.splitlines()
    )


@pytest.mark.parametrize("name", ["a---b", "<script>alert(1)</script>", "${policy} $title", "{{ jinja }}", "a\n# b"])
def test_markup_in_a_name_is_text(name):
    """HTML, template syntax and headings in a value are shown, not obeyed."""
    _, body = parts(render_card(run(name), report(), configs=CONFIGS).replace("a---b", "a-b"))
    assert "<script>" not in body
    assert "\n# b" not in body


def test_a_missing_template_is_told(monkeypatch, tmp_path):
    """A broken installation says which file is missing."""
    monkeypatch.setattr(cards, "files", lambda name: tmp_path)
    monkeypatch.setattr(cards, "__file__", str(tmp_path / "a" / "b.py"))
    with pytest.raises(FileNotFoundError, match=r"dataset_cards/card\.md is missing"):
        render_card(run(), report(), configs=CONFIGS)
