"""benchmarks/scores.py, evaluation.py and fuzz_replies.py run, and compare like with like. No time is asserted."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.conftest import SCRIPTS

BENCHMARKS = SCRIPTS.parent / "benchmarks"


@pytest.fixture
def printed(capsys):
    """Run a script: what it printed."""

    def run(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"{name}_under_test", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        module.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def test_scores_beside_the_library(printed, encoder):
    """Both have a rate for each round but the first, and the ratio is that of the rounds."""
    pytest.importorskip("sentence_transformers")
    found = json.loads(printed("scores", encoder, "--rows", "6", "--rounds", "2", "--device", "cpu", "--json"))
    assert (found["rows"], found["kind"], found["device"]) == (6, "bi-encoder", "cpu")
    assert {name: len(rates) for name, rates in found["texts a second"].items()} == {"library": 2, "arhn.Scores": 2}
    assert min(found["ratios"]) <= found["ratio"] <= max(found["ratios"])


def test_a_cross_encoder_beside_the_library(printed, encoder, tmp_path):
    """There, what is counted are pairs."""
    library = pytest.importorskip("sentence_transformers")
    library.CrossEncoder(encoder, num_labels=1, device="cpu").save_pretrained(str(tmp_path / "crosses"))
    options = (tmp_path / "crosses", "--rows", "3", "--rounds", "1", "--device", "cpu")
    found = json.loads(printed("scores", *options, "--json"))
    assert (found["kind"], found["device"], found["rows"]) == ("cross-encoder", "cpu", 3)
    assert found["texts"] > 3 * 4


def test_the_library_is_given_the_texts_that_scores_encodes(printed, encoder, monkeypatch):
    """The same distinct texts on both sides, in every round."""
    transformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    seen, encode = [], transformer.encode

    def kept(self, *args, **options):
        seen.append(
            list(args[0] if args else next(options[name] for name in ("inputs", "sentences") if name in options))
        )
        return encode(self, *args, **options)

    monkeypatch.setattr(transformer, "encode", kept)
    found = json.loads(printed("scores", encoder, "--rows", "5", "--rounds", "1", "--device", "cpu", "--json"))
    assert len(seen) == 2 * 2 * 2  # queries and passages, on each side, twice
    assert all(sorted(one) in (sorted(seen[0]), sorted(seen[1])) for one in seen)
    assert len(seen[0]) + len(seen[1]) == found["texts"]


def test_the_evaluation_is_timed_as_a_command(printed):
    """There are as many judged pairs as were asked for, or a copy of the sample more, and a time for both ways."""
    pytest.importorskip("sklearn.metrics")
    pytest.importorskip("matplotlib")
    found = json.loads(printed("evaluation", "--pairs", "500", "--rounds", "1", "--json"))
    assert 500 <= found["judged"] < 1000
    assert found["answers"] > 0
    assert set(found["seconds"]) == {"arhn-evaluate", "arhn-evaluate --plot"}


def test_no_reply_gives_evidence_that_it_does_not_hold(printed):
    """A round of random replies through each parser: nothing invented, and nothing plain lost."""
    out = printed("fuzz_replies", "--count", 2000, "--seed", 7)
    *_, header, snippets, rankings, verdicts, grades, packed = out.splitlines()
    assert header.split() == ["replies", "evidence", "plain", "lost", "invented"]
    for line in (snippets, rankings, verdicts, grades, packed):
        _, replies, evidence, _, lost, invented = line.split()
        assert (replies, lost, invented) == ("400", "0", "0")
        assert int(evidence) > 100
