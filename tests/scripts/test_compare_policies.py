"""scripts/compare_policies.py: a whole comparison on a tiny random model, a kill, the statistics, wrong inputs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("sentence_transformers")
pytest.importorskip("ir_measures")

import arhn_datasets as arhn  # noqa: E402
from arhn_datasets.folder.reading import open_folder  # noqa: E402
from arhn_datasets.hub.publication import build_publication  # noqa: E402
from arhn_datasets.runs.refine import Input, Stages, refine  # noqa: E402
from tests.conftest import SAMPLE  # noqa: E402

SCRIPTS = Path(__file__).parents[2] / "scripts"
STRICT = {"name": "strict", "transform": "Relabel", "policy": "filter", "unsupported": "keep", "on_shortage": "drop"}


@pytest.fixture(scope="module")
def module():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("compare_policies_under_test", SCRIPTS / "compare_policies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sample, refined, and as a set in BEIR's form."""
    from datasets import Dataset

    root, lexical = tmp_path_factory.mktemp("made"), arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical), ranks=arhn.Ranks(annotator=lexical), relabel=arhn.Relabel()
    )
    refine(Input(name=str(SAMPLE)), root / "refined", stages)
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    arhn.export(Dataset.from_list(rows), "beir", root / "exported", split="test")
    return root


@pytest.fixture
def config(made, encoder, tmp_path):
    """Write a configuration: its path."""

    def write(**entries):
        training = {"max-steps": 2, "batch-size": 4, "max-seq-length": 16, "learning-rate": 1e-3}
        entries = {
            "dataset": str(made / "refined"),
            "model": encoder,
            "output": str(tmp_path / "compared"),
            "seeds": [0, 1],
            "negatives": 2,
            "training": training,
            "evaluation": [{"dataset": str(made / "exported" / "beir")}],
            "policies": ["raw", "relabel+filter", STRICT],
            **entries,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in entries.items() if value is not ...}))
        return path

    return write


@pytest.fixture
def trainings(module, monkeypatch):
    """The seeds and rows of every training; ``stop`` interrupts the run of that number."""
    import train_retriever

    class Seen(list):
        stop = None

    seen, train = Seen(), train_retriever.main

    def recorded(command):
        if len(seen) == seen.stop:
            raise KeyboardInterrupt
        given = dict(zip(command[::2], command[1::2], strict=True))
        seen.append((Path(given["--dataset"]).name.rsplit("-", 1)[0], int(given["--seed"]), given["--max-steps"]))
        train(command)

    monkeypatch.setattr(train_retriever, "main", recorded)
    return seen


def trained_rows(folder):
    """The exported rows of a policy."""
    from datasets import load_dataset

    return load_dataset(str(folder), "n-tuple", split="train").to_list()


@pytest.mark.exhaustive
def test_a_whole_comparison(script, made, config, trainings, tmp_path):
    """Every policy and seed is trained for equal steps on its own rows; the table and the JSON have all figures."""
    code, printed, error = script("compare_policies", config=config(), json=True)
    assert code == 0, error
    assert trainings == [(name, seed, "2") for name in ("raw", "relabel+filter", "strict") for seed in (0, 1)]
    found = json.loads(printed.splitlines()[-1])
    output = tmp_path / "compared"
    assert found == json.loads((output / "comparison.json").read_text())
    assert list(found["policies"]) == ["untrained", "raw", "relabel+filter", "strict"]
    runs = {path.name.rsplit("-", 1)[0]: path for path in (output / "runs").iterdir()}
    per_seed = {}
    for name in ("raw", "relabel+filter", "strict"):
        values = []
        for seed in (0, 1):
            run = runs[f"{name}-seed-{seed}"]
            assert not (run / "model").exists()
            assert (run / "beir.trec").is_file()
            assert json.loads((run / "training.json").read_text())["command"][:2] == ["train_retriever.py", "--dataset"]
            queries = json.loads((run / "beir.json").read_text())["queries"]
            values.append({query_id: query["nDCG@10"] for query_id, query in queries.items()})
        per_seed[name] = values
        means = [np.mean(list(one.values())) for one in values]
        assert found["policies"][name]["nDCG@10"]["mean"] == pytest.approx(np.mean(means))
        assert found["policies"][name]["nDCG@10"]["sd"] == pytest.approx(np.std(means, ddof=1))
    against = found["policies"]["strict"]["against raw"]
    differences = [
        np.mean([one[query_id] - raw[query_id] for query_id in raw])
        for one, raw in zip(per_seed["strict"], per_seed["raw"], strict=True)
    ]
    assert against["by seed"] == pytest.approx(differences)
    assert against["difference"] == pytest.approx(np.mean(differences))
    assert 0 < against["p"] <= against["p, Holm"] <= 1
    assert re.search(r"\nraw +\d[\d,]* .*0\.\d{4} ± 0\.\d{4}", printed)
    assert f"{against['difference']:+.4f}  {against['p']:.4f}" in printed
    assert printed.startswith((output / "comparison.txt").read_text())
    assert "filtered" not in found["policies"]["raw"]
    assert found["policies"]["relabel+filter"]["positive"] > found["policies"]["raw"]["positive"]
    assert found["policies"]["strict"]["filtered"] > 0
    assert not (output / "cache").exists()


@pytest.mark.exhaustive
def test_the_rows_of_each_policy(script, made, config, sample, trainings, tmp_path):
    """Raw rows are those of the source, a policy's those of its transform; from a refined or a published folder."""
    from datasets import Dataset

    build_publication(open_folder(made / "refined"), tmp_path / "published", formats=())
    source = Dataset.from_list(sample)
    evidence = Dataset.from_list(list(open_folder(made / "refined").rows())).map(arhn.Revert())
    strict = arhn.Relabel(policy="filter", unsupported="keep", on_shortage="drop")
    expected = {}
    for name, rows in (("raw", source), ("strict", evidence.map(strict))):
        arhn.export(rows, "n-tuple", tmp_path / name, negatives=2, split="train")
        expected[name] = trained_rows(tmp_path / name)
    assert expected["raw"] != expected["strict"]
    for folder in (made / "refined", tmp_path / "published"):
        path = config(dataset=str(folder), seeds=[0], policies=["raw", STRICT], untrained=False)
        code, _, error = script("compare_policies", config=path, output=tmp_path / folder.name)
        assert code == 0, error
        for rows in (tmp_path / folder.name / "rows").iterdir():
            assert trained_rows(rows) == expected[rows.name.rsplit("-", 1)[0]]
    assert len(trainings) == 4


@pytest.mark.exhaustive
def test_after_a_kill(script, config, trainings, tmp_path):
    """What was finished is not trained again, half-finished runs are, and the figures are those without a kill."""
    whole = config(output=str(tmp_path / "whole"), policies=["raw", "filter"])
    code, expected, error = script("compare_policies", config=whole)
    assert code == 0, error
    del trainings[:]
    path, output = config(policies=["raw", "filter"]), tmp_path / "compared"
    trainings.stop = 2
    with pytest.raises(KeyboardInterrupt):
        script("compare_policies", config=path)
    trainings.stop = None
    half = next((output / "runs").glob("raw-seed-1-*"))
    (half / "beir.json").unlink()
    code, printed, error = script("compare_policies", config=path)
    assert code == 0, error
    assert [run[:2] for run in trainings] == [("raw", 0), ("raw", 1), ("raw", 1), ("filter", 0), ("filter", 1)]
    assert "run 1 of 3: raw, seed 1" in error
    assert printed == expected
    code, printed, _ = script("compare_policies", config=path)
    assert (code, printed, len(trainings)) == (0, expected, 5)


@pytest.mark.exhaustive
def test_what_changes_a_run(script, config, trainings, tmp_path):
    """Other training trains anew, beside what is there; another policy adds its runs and no others; models can stay."""
    one = {"seeds": [0], "policies": ["raw"], "untrained": False}
    assert script("compare_policies", config=config(**one))[0] == 0
    code, printed, error = script("compare_policies", config=config(**{**one, "policies": ["raw", "relabel"]}))
    assert code == 0, error
    assert [name for name, *_ in trainings] == ["raw", "relabel"]
    assert "±" not in printed.split("mean over")[0]
    training = {"max-steps": 3, "batch-size": 4, "max-seq-length": 16}
    assert script("compare_policies", config=config(**one, training=training, **{"keep-models": True}))[0] == 0
    assert trainings[2:] == [("raw", 0, "3")]
    models = list((tmp_path / "compared" / "runs").glob("*/model/model.safetensors"))
    assert len(models) == 1


@pytest.mark.exhaustive
def test_several_sets_and_evidence(script, made, config, trainings, tmp_path, monkeypatch):
    """With several sets there is a line for each and the mean counts them alike; evidence is made once for all."""
    from datasets import Dataset

    few = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()][:9]
    arhn.export(Dataset.from_list(few), "beir", tmp_path / "few", split="test")
    sets = [
        {"dataset": str(made / "exported" / "beir"), "name": "all"},
        {"dataset": str(tmp_path / "few" / "beir"), "name": "few"},
    ]
    seen, apply = [], arhn.Snippets.apply

    async def counted(self, rows):
        seen.extend(rows)
        return await apply(self, rows)

    monkeypatch.setattr(arhn.Snippets, "apply", counted)
    snippets = {"transform": "Snippets", "annotator": {"class": "Lexical"}}
    path = config(
        evaluation=sets, evidence=[snippets], seeds=[0], policies=["raw", "filter"], encoding={"batch-size": 8}
    )
    code, printed, error = script("compare_policies", config=path, json=True)
    assert code == 0, error
    found = json.loads(printed.splitlines()[-1])["policies"]
    for policy in found.values():
        means = {name: values["nDCG@10"]["mean"] for name, values in policy["sets"].items()}
        assert policy["nDCG@10"]["mean"] == pytest.approx(np.mean(list(means.values())))
        assert list(means) == ["all", "few"]
    assert re.search(r"\nfew +0\.\d{4} +0\.\d{4} +0\.\d{4}\n", printed)
    assert len(seen) == 69


RIVALS = [
    {"name": "TopK-PercPos", "transform": "PositiveAware", "method": "TopK-PercPos", "percentage_margin": 0.99},
    {"transform": "AdaptiveMargin", "margin": 0.995},
    {"transform": "AmbiguousSampling", "num_hard_negatives": 3},
    {
        "name": "RLHN",
        "transforms": [
            {"transform": "Verdicts", "annotator": {"class": "Lexical"}},
            {"transform": "Relabel", "evidence": "verdicts", "policy": "relabel"},
        ],
    },
]


@pytest.mark.exhaustive
def test_the_rivals(script, config, encoder, trainings):
    """Rivals stand in the same table, over scores that are made once for all and over verdicts of their own."""
    scores = {"transform": "Scores", "model": encoder}
    training = {"max-steps": 1, "batch-size": 4, "max-seq-length": 16}
    path = config(evidence=[scores], seeds=[0], policies=RIVALS, untrained=False, training=training)
    code, printed, error = script("compare_policies", config=path, json=True)
    assert code == 0, error
    found = json.loads(printed.splitlines()[-1])["policies"]
    assert list(found) == ["raw", "TopK-PercPos", "AdaptiveMargin", "AmbiguousSampling", "RLHN"]
    assert len(trainings) == 5
    total = found["raw"]["positive"] + found["raw"]["negative"]
    for name in list(found)[1:]:
        assert sum(found[name][label] for label in ("positive", "negative", "filtered")) == total
        assert found[name]["negative"] < found["raw"]["negative"]


@settings(max_examples=40, deadline=None)
@example([2, 4, -2, 0, -4], 0)  # a sum of nothing but rounding
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9), st.integers(0, 99))
def test_the_randomisation_test_is_exact(module, differences, seed):
    """With few queries it is scipy's exact permutation test of a paired difference."""
    from scipy.stats import permutation_test

    values = np.array(differences) / 8
    exact = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    weights = np.full(len(values), 1 / len(values))
    assert module.randomisation(values, weights, seed=seed) == pytest.approx(exact.pvalue)


def test_the_randomisation_test_with_many_queries(module):
    """With many it is near the paired t-test, finds a clear difference and none where there is none."""
    from scipy.stats import ttest_1samp

    random = np.random.default_rng(0)
    for shift in (0.0, 0.02, 0.03, 0.2):
        values = random.normal(shift, 0.2, 300)
        found = module.randomisation(values, np.full(300, 1 / 300))
        assert found == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.02)
        assert found >= 1 / 10_000
    assert module.randomisation(np.zeros(5), np.full(5, 0.2)) == 1


def test_holm(module):
    """A worked example (0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02), and no p-value above 1."""
    assert module.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert module.holm([0.7, 0.9]) == [1.0, 1.0]
    assert module.holm([]) == []


def test_the_example(module):
    """The configuration that is shipped can be read as it stands, with every class that it names."""
    config = module.read_config(SCRIPTS / "policies.example.yaml")
    names = [policy.name for policy in config.policies]
    assert names[:4] == ["raw", "relabel", "filter", "relabel+filter"]
    assert len(config.seeds) >= 3


def test_the_run_of_the_paper(module, tmp_path):
    """The configuration in docs/experiments.md can be read; it is of 16 sets and of every row of the paper's table."""
    page = (SCRIPTS.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    (tmp_path / "paper.yaml").write_text(page.split("```yaml\n")[-1].split("```")[0])
    config = module.read_config(tmp_path / "paper.yaml")
    assert len(config.sources) == 16
    assert [policy.name for policy in config.policies][:4] == ["raw", "relabel", "filter", "relabel+filter"]
    module.train_retriever.arguments(
        ["--dataset", "d", "--model", "m", "--output", "o", *module.training_arguments(config.training)]
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"seed": 1}, "unknown entries seed; those that there are: dataset, "),
        ({"model": ...}, "has no entry model"),
        ({"seeds": ["one"]}, "seeds is a list of whole numbers"),
        ({"seeds": [1, 1]}, "different whole numbers were expected"),
        ({"training": {"epochs": 1}}, "training has no max-steps"),
        ({"training": {"max-steps": 1, "seed": 1}}, "training sets seed; this is set for each run"),
        ({"training": {"max-steps": 1, "batchsize": 1}}, "unrecognized arguments: --batchsize 1"),
        ({"evaluation": ["beir"]}, "evaluation has 'beir'; dataset: FOLDER or beir: NAME"),
        ({"evaluation": [{"dataset": "d", "docid": 1}]}, "evaluation has docid in"),
        ({"evaluation": [{"beir": ["nq", "nfcorpora"]}]}, "'nfcorpora' is no set of BEIR"),
        ({"encoding": {"batch": 1}}, "encoding has batch; those that there are: query_prompt, "),
        ({"policies": "raw"}, "policies is 'raw'; a list was expected"),
        ({"policies": ["rlhn"]}, "policies has 'rlhn'; raw, relabel, filter, relabel.filter or a transform"),
        ({"policies": ["raw", "raw"]}, "policies has 'raw' twice"),
        ({"policies": [{"name": "x"}]}, "a mapping with transform: NAME"),
        ({"policies": [{"transform": "Positive"}]}, "transform is 'Positive'; a class of arhn_datasets .*Relabel"),
        ({"policies": [{"transform": "export"}]}, "transform is 'export'; a class of arhn_datasets"),
        ({"policies": [{"transform": "Relabel", "tie": 1}]}, "Relabel: .*'tie'.* Its parameters: .*ties"),
        ({"policies": [{"transform": "Relabel", "ties": "x"}]}, "Relabel: ties is 'x'; one of above, below"),
        ({"format": "pairs"}, "The format is .*pairs"),
        ({"split": "dev"}, "has no split 'dev'; its splits are train"),
        ({"dataset": "no/such-set"}, "the dataset no/such-set is no folder and cannot be downloaded"),
        ({"dataset": str(SCRIPTS)}, "has no run.json of arhn_datasets; expected what arhn-refine"),
        ({"model": "./no-model"}, "the model ./no-model cannot be loaded"),
    ],
)
def test_wrong_inputs(entries, message, script, config):
    """Exit code 2 and a line that says what was found and what goes, without a traceback."""
    code, _, error = script("compare_policies", config=config(**entries))
    assert code == 2
    assert re.search(message, error), error
    assert "Traceback" not in error
