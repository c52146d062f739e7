"""From a source on the Hub to a trained model, and back: every command, as a user types them, in both storages."""

from __future__ import annotations

import datasets
import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from tests.fakes.hub import USER, both_storages

SOURCE, REPO = f"{USER}/source", f"{USER}/source-arhn"


@both_storages
def test_refine_push_load_train_revert_verify(hub, sample, tmp_path, capsys, script, encoder):
    """The published dataset loads in every config, trains both kinds of model, holds, and leads back to the source."""
    pytest.importorskip("sentence_transformers")
    source = datasets.Dataset.from_list(sample)
    source.push_to_hub(SOURCE, private=True)
    out = str(tmp_path / "refined")
    assert cli.refine_command([SOURCE, "--annotator", "lexical", "--output", out]) == 0
    formats = [part for name in ("triplet", "n-tuple", "labeled-list", "mteb") for part in ("--format", name)]
    assert cli.push_command([out, REPO, *formats, "--format", "flagembedding"]) == 0
    assert REPO in capsys.readouterr().out

    assert cli.verify_command([REPO]) == 0
    loaded = {name: datasets.load_dataset(REPO, name) for name in datasets.get_dataset_config_names(REPO)}
    assert {"default", "evidence", "triplet", "n-tuple", "labeled-list", "corpus", "queries", "qrels"} <= set(loaded)
    assert loaded["triplet"]["train"].column_names == ["anchor", "positive", "negative"]
    assert set(loaded["default"]["train"].column_names) == set(source.column_names)
    assert {f"flagembedding/train/{row['subset']}.jsonl" for row in sample} <= set(hub.files(REPO))

    code, _, said = script(
        "train_retriever",
        dataset=REPO,
        config="n-tuple",
        model=encoder,
        output=tmp_path / "retriever",
        max_steps=2,
        batch_size=4,
        max_seq_length=32,
    )
    assert code == 0, said
    code, _, said = script(
        "train_reranker",
        dataset=REPO,
        model=encoder,
        output=tmp_path / "reranker",
        max_steps=2,
        batch_size=2,
        max_seq_length=64,
    )
    assert code == 0, said

    wide = arhn.with_evidence(loaded["default"], loaded["evidence"])
    back = wide.map(arhn.revert.with_options(keep_evidence=False))["train"]
    assert back.select_columns(source.column_names).to_list() == source.to_list()
    again = wide.map(arhn.relabel.with_options(policy="filter"))["train"]
    assert any(again["filtered_passages"])
