"""scripts/evaluate_rules.py: every rule on small sets with a known truth, and what is no set."""

from __future__ import annotations

import importlib.util
import json

import pytest

import arhn_datasets as arhn
from arhn_datasets.rules.arhn import POLICIES
from arhn_datasets.rules.positive_aware import METHODS
from arhn_datasets.testing import Emulator
from tests.conftest import SAMPLE, SCRIPTS

pytest.importorskip("sklearn.metrics")

METALS = {"tin": 232, "lead": 328, "zinc": 420, "gold": 1064}
OVER_SCORES = [*METHODS, "AdaptiveMargin", "SimANS"]


def written(folder, name):
    """A set on disk: of each metal one answer is the positive, one a hidden false negative: NAME=ROWS,TRUTH."""
    rows, truth = [], []
    for metal, degrees in METALS.items():
        texts = {
            "p": f"{metal.title()} melts at a temperature of {degrees} degrees.",
            "false": f"The temperature at which {metal} melts is {degrees} degrees.",
            "near": f"{metal.title()} is sold by the kilogram.",
            "far": "Rain fell on the hills all week.",
            "open": "Copper is red.",
        }
        passages = [{"docid": docid, "title": "", "text": text} for docid, text in texts.items()]
        query = f"At what temperature does {metal} melt?"
        rows.append({"query_id": metal, "query": query, "positive_passages": passages[:1]})
        rows[-1]["negative_passages"] = passages[1:]
        relevant = {"false": 1, "near": 0, "far": 0, "open": None}
        truth.append({"query_id": metal, "negatives": [{"docid": d, "relevant": r} for d, r in relevant.items()]})
    paths = []
    for kind, lines in (("rows", rows), ("truth", truth)):
        paths.append(folder / f"{name}.{kind}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return f"{name}={paths[0]},{paths[1]}"


@pytest.fixture
def run(capsys):
    """Run the script: what it printed."""
    spec = importlib.util.spec_from_file_location("evaluate_rules_under_test", SCRIPTS / "evaluate_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        capsys.readouterr()
        module.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def test_one_table_of_every_rule_on_every_set(run, tmp_path):
    """Each rule has its lines, and each set its columns; figures are as counted by hand."""
    sample = f"sample={SAMPLE},{SAMPLE.with_suffix('.truth.jsonl')}"
    printed = run(written(tmp_path, "metals"), sample, "--samples", "20", "--rows", "12").split("\n\n")[0]
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    columns = ["recall", "F1", "true negatives lost", "rows guarded"]
    assert header == ["rule", "moved", "metals: precision", *columns, "sample: precision", *columns]
    rules = [line[0] for line in lines if line[0]]
    for name in (*(f"ARHN {policy}" for policy in POLICIES), "RLHN", "grades", *OVER_SCORES):
        assert any(rule.startswith(name) for rule in rules), name
    everything = lines[rules.index("move everything")]
    # Of three decided negatives of each query one is false: 1/3, 1 and 1/2, and every true one is lost.
    assert [cell.split()[0] for cell in everything[1:7]] == ["filtered", "0.333", "1.000", "0.500", "1.000", "0%"]
    (relabel,) = [line for line in lines if line[0] == "ARHN relabel"]
    assert [cell.split()[0] for cell in relabel[1:7]] == ["relabelled", "1.000", "1.000", "1.000", "0.000", "0%"]
    assert relabel[2] == "1.000 [1.00, 1.00]"
    assert {line[1] for line in lines} == {"relabelled", "filtered", "either"}
    assert all(len(line) == len(header) for line in lines)


def test_the_figures_are_those_of_an_evaluation(run, tmp_path):
    """The JSON of a rule is what arhn.evaluate gives for it, and says what the rule was."""
    given = written(tmp_path, "metals")
    rows, truth = given.partition("=")[2].split(",")
    found = json.loads(run(given, "--samples", "10", "--json"))
    assert (found["annotator"], found["samples"]) == ("lexical", 10)
    percentage = found["rules"]["TopK-PercPos 0.95, lexical coverage"]
    assert percentage["parameters"]["percentage_margin"] == 0.95
    assert percentage["evidence"] == "lexical"
    from datasets import load_dataset

    dataset = load_dataset("json", data_files=rows, split="train")
    lexical = arhn.Lexical.fitted(dataset)
    dataset = dataset.map(arhn.Grades(annotator=lexical)).map(arhn.Relabel(evidence="grades"))
    grades = found["rules"]["grades, relabel+filter"]["sets"]["metals"]
    assert grades.pop("rows_guarded") == 0
    assert grades == json.loads(json.dumps(arhn.evaluate(dataset, truth, samples=10).to_json()["all"]))


def test_guards_can_be_lifted(run, tmp_path):
    """A row that would lose all its negatives is left as it came, and counted, unless the guards are lifted."""
    path = tmp_path / "one"
    passage = {"docid": "n", "title": "", "text": "Tin melts at a temperature of 232 degrees."}
    row = {"query_id": "q", "query": "At what temperature does tin melt?", "negative_passages": [passage]}
    row["positive_passages"] = [{**passage, "docid": "p", "text": "Tin melts at 232 degrees, a low temperature."}]
    path.with_suffix(".rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    path.with_suffix(".truth.jsonl").write_text(
        json.dumps({"query_id": "q", "negatives": [{"docid": "n", "relevant": 1}]}), encoding="utf-8"
    )
    given = f"one={path}.rows.jsonl,{path}.truth.jsonl"
    guarded = json.loads(run(given, "--json"))["rules"]["ARHN filter"]["sets"]["one"]
    assert (guarded["rows_guarded"], guarded["either"]["recall"]) == (1, 0)
    lifted = json.loads(run(given, "--json", "--no-guards"))["rules"]["ARHN filter"]["sets"]["one"]
    assert (lifted["rows_guarded"], lifted["either"]["recall"]) == (0, 1)


def test_scores_of_a_model(run, encoder, tmp_path):
    """The rules over scores have lines for each model, named by the last part of its path."""
    pytest.importorskip("sentence_transformers")
    given = written(tmp_path, "metals")
    found = json.loads(run(given, "--model", encoder, "--model", "lexical", "--samples", "5", "--json"))["rules"]
    for source in (encoder, "lexical"):
        rules = [name for name, rule in found.items() if rule["evidence"] == source and name != "move everything"]
        assert len(rules) == 6
    name = encoder.rpartition("/")[2]
    assert f"TopK-Abs 0.7, {name}" in found
    (tmp_path / name).symlink_to(encoder)
    both = json.loads(run(given, "--model", encoder, "--model", tmp_path / name, "--samples", "5", "--json"))["rules"]
    assert {f"TopK-Abs 0.7, {encoder}", f"TopK-Abs 0.7, {tmp_path / name}"} <= set(both)


def test_an_llm_in_place_of_the_baseline(run, tmp_path):
    """With an endpoint the evidence is the LLM's, and the cascade has a line."""
    with Emulator() as server:
        printed = run(written(tmp_path, "metals"), "--endpoint", server.url, "--samples", "5")
        assert server.stats.requests > len(METALS) * 5
    assert "ARHN relabel+filter, cascade" in printed


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["rows.jsonl"], "NAME=ROWS,TRUTH was expected"),
        (["a=rows.jsonl"], "NAME=ROWS,TRUTH was expected"),
        (["a=no.jsonl,no.truth.jsonl"], "no.jsonl"),
        (["a=x,y", "a=x,z"], "same name"),
    ],
)
def test_what_is_no_set_is_named(run, capsys, tmp_path, monkeypatch, sets, said):
    """The script ends with 2 and says what it expected."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(*sets)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
