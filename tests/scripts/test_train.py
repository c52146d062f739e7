"""The training scripts, a few steps on a tiny random model: what they load, what they leave, and wrong inputs."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers")

import arhn_datasets as arhn  # noqa: E402
from arhn_datasets.folder.reading import open_folder  # noqa: E402
from arhn_datasets.formats.format import Options  # noqa: E402
from arhn_datasets.hub.publication import build_publication  # noqa: E402
from arhn_datasets.runs.refine import Input, Stages, refine  # noqa: E402
from tests.conftest import SAMPLE  # noqa: E402

SCRIPTS = Path(__file__).parents[2] / "scripts"
FORMATS = ("triplet", "n-tuple", "pair", "labeled-list", "labeled-pair")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The sample, refined and built for the Hub with a config for each format that these scripts train on."""
    root, lexical = tmp_path_factory.mktemp("rows"), arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical), ranks=arhn.Ranks(annotator=lexical), relabel=arhn.Relabel()
    )
    done = refine(Input(name=str(SAMPLE)), root / "refined", stages)
    build_publication(open_folder(done.path), root / "published", formats=FORMATS, options=Options(negatives=3))
    return str(root / "published")


def outcome(printed):
    """Steps and loss of the last line."""
    steps, loss, folder = re.fullmatch(
        r"trained ([\d,]+) steps, loss (\S+), model in (.+)", printed.splitlines()[-1]
    ).groups()
    return int(steps), float(loss), folder


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("triplet", {"query_prompt": "query: ", "passage_prompt": "passage: "}),
        ("n-tuple", {"gradient_cache": True, "mini_batch_size": 2}),
        ("pair", {}),
    ],
)
def test_the_retriever(config, options, script, published, encoder, tmp_path):
    """Each config trains, on a plain base model; the model that is left embeds, with the prompts of the training."""
    from sentence_transformers import SentenceTransformer

    options = {"max_steps": 3, "batch_size": 4, "max_seq_length": 32, **options}
    code, printed, error = script(
        "train_retriever", dataset=published, config=config, model=encoder, output=tmp_path / "model", **options
    )
    assert code == 0, error
    assert re.search(rf"[\d,]+ rows of {published}, {config}, train: anchor, positive", printed)
    steps, loss, folder = outcome(printed)
    assert (steps, folder) == (3, str(tmp_path / "model"))
    assert math.isfinite(loss)
    assert loss > 0
    model = SentenceTransformer(folder)
    assert model.max_seq_length == 32
    assert model.encode(["Tin melts."]).shape == (1, 32)
    assert (model.prompts.get("query") or "") == options.get("query_prompt", "")
    assert (model.prompts.get("document") or "") == options.get("passage_prompt", "")


@pytest.mark.parametrize(
    "config", ["n-tuple", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("triplet", "pair"))]
)
def test_no_text_is_a_negative_of_its_own_query(config, script, published, encoder, tmp_path, monkeypatch):
    """In a batch no anchor stands twice: the other positives of a query, and its other rows, are not in it."""
    from sentence_transformers import SentenceTransformerTrainer

    batches = []
    loss = SentenceTransformerTrainer.compute_loss

    def seen(self, model, inputs, *arguments, **options):
        batches.append([tuple(anchor) for anchor in inputs["anchor_input_ids"].tolist()])
        return loss(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(SentenceTransformerTrainer, "compute_loss", seen)
    options = {"dataset": published, "model": encoder, "output": tmp_path / "model", "max_steps": 5}
    assert script("train_retriever", config=config, batch_size=16, **options)[0] == 0
    assert len(batches) == 5
    assert all(len(set(batch)) == len(batch) == 16 for batch in batches)


def test_a_repository_on_the_hub(hub, script, published, encoder, tmp_path):
    """--dataset is a repository as well, and --revision a branch or a commit of it."""
    files = {path.relative_to(published).as_posix(): path for path in Path(published).rglob("*") if path.is_file()}
    hub.repository("writer/rows", private=True)
    first = hub.commit("writer/rows", {path: file.read_bytes() for path, file in files.items()})
    hub.commit("writer/rows", dict.fromkeys(files))
    options = {"dataset": "writer/rows", "model": encoder, "output": tmp_path / "model", "max_steps": 2}
    for name, config in (("train_retriever", "n-tuple"), ("train_reranker", "labeled-list")):
        code, printed, error = script(name, config=config, revision=first, batch_size=2, **options)
        assert code == 0, error
        assert outcome(printed)[0] == 2
    code, _, error = script("train_retriever", **options)
    assert code == 2
    assert "writer/rows" in error


@pytest.mark.parametrize("loss", ["lambda", "list-net", "binary"])
def test_the_reranker(loss, script, published, encoder, tmp_path):
    """Each loss trains on its config, with lists of different lengths in a batch; the model that is left ranks."""
    from sentence_transformers.cross_encoder import CrossEncoder

    code, printed, error = script(
        "train_reranker",
        dataset=published,
        model=encoder,
        output=tmp_path / "model",
        loss=loss,
        max_steps=3,
        batch_size=4,
        max_seq_length=64,
    )
    assert code == 0, error
    steps, value, folder = outcome(printed)
    assert steps == 3
    assert math.isfinite(value)
    assert value > 0
    assert len(CrossEncoder(folder).rank("When does tin melt?", ["Tin melts at 232 °C.", "Copper is red."])) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("train_retriever", {"config": "triplets"}, "has no config 'triplets'; its configs are .*triplet"),
        ("train_retriever", {"config": "labeled-list"}, "has the columns query, docs, labels; anchor, positive and"),
        ("train_reranker", {"config": "triplet"}, "has the columns anchor, positive, negative; query, docs, labels"),
        ("train_retriever", {"split": "dev"}, "cannot be loaded: .*dev"),
        ("train_retriever", {"dataset": "no/such-set"}, "the dataset no/such-set cannot be loaded"),
        ("train_reranker", {"dataset": "no/such-set"}, "the dataset no/such-set cannot be loaded"),
        ("train_retriever", {"model": "./no-model"}, "the model ./no-model cannot be loaded"),
        ("train_reranker", {"model": "./no-model"}, "the model ./no-model cannot be loaded"),
        ("train_reranker", {"output": str(SAMPLE)}, "questions.jsonl cannot be written"),
        ("train_reranker", {"loss": "hinge"}, "invalid choice: 'hinge'.*lambda"),
        ("train_retriever", {"max_steps": "few"}, "invalid int value"),
    ],
)
def test_wrong_inputs(name, options, message, script, published, encoder, tmp_path):
    """Exit code 2 and a line that says what was found and what goes, without a traceback."""
    options = {"dataset": published, "model": encoder, "output": tmp_path / "model", **options}
    code, _, error = script(name, **options)
    assert code == 2
    assert re.search(message, error)
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["train_retriever", "train_reranker"])
def test_what_is_not_there(name, script, published, encoder, tmp_path, monkeypatch):
    """Without the extra the message names it; bf16 on a machine that cannot is told before any training."""
    options = {"dataset": published, "model": encoder, "output": tmp_path / "model"}
    if not torch_has_bf16():
        code, _, error = script(name, bf16=True, max_steps=1, **options)
        assert code == 0 or (code == 2 and "bf16" in error)  # older versions of transformers train with it
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers.cross_encoder", None)
    code, _, error = script(name, **options)
    assert code == 2
    assert "pip install 'arhn_datasets[train]'" in error


def torch_has_bf16():
    """Whether the trainer takes --bf16 on this machine."""
    from transformers.utils import is_torch_bf16_gpu_available

    return is_torch_bf16_gpu_available()
