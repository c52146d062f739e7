"""``arhn-refine --score-endpoint``: what is written, told and asked again, and how each failure ends."""

from __future__ import annotations

import json

import pytest

from arhn_datasets.cli import refine_command
from arhn_datasets.testing import Emulator, Fault, ScoreEmulator
from arhn_datasets.testing.scoring import COMPATIBLE, EMBEDDING, RERANKER, TEI
from tests.conftest import SAMPLE


def refine(folder, *options, url=None):
    """The exit code of a run over eight rows of the sample."""
    asked = ["--evidence", "scores", "--rule", "positive-aware", "--output", str(folder), "--limit", "8"]
    return refine_command([str(SAMPLE), *asked, *(["--score-endpoint", url] if url else []), *options])


@pytest.mark.parametrize(("kind", "form"), [(RERANKER, TEI), (EMBEDDING, TEI), (RERANKER, COMPATIBLE)])
def test_a_run_and_the_next(tmp_path, capsys, kind, form):
    """The folder names the model and not the server; the summary counts pairs, and a rerun asks for none."""
    with ScoreEmulator(kind=kind, form=form, max_input_length=80) as server:
        assert refine(tmp_path / "out", url=server.url) == 0
        assert "48 pairs, 0 from the store" in capsys.readouterr().out
        texts = server.stats.texts
        assert refine(tmp_path / "out", url=server.url) == 0
        assert "48 pairs, 48 from the store" in capsys.readouterr().out
        assert server.stats.texts <= texts + 4
    written = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(written)["annotator"]["model"] == "emulated/scorer"
    assert "127.0.0.1" not in written
    assert "127.0.0.1" not in (tmp_path / "out" / "README.md").read_text()


def test_passages_without_a_score_end_with_1_and_are_asked_again(tmp_path, capsys):
    """A server that fails on some texts leaves them where they were; the same command asks for these alone."""
    poison = json.loads(SAMPLE.read_text(encoding="utf-8").splitlines()[7])["negative_passages"][0]["text"][:40]
    with ScoreEmulator(faults=[Fault(kind="text_422", match=json.dumps(poison, ensure_ascii=False)[1:-1])]) as server:
        assert refine(tmp_path / "out", url=server.url) == 1
        said = capsys.readouterr()
        assert "have no score, for their requests failed" in said.err
        failed = json.loads((tmp_path / "out" / "run.json").read_text())["requests"]["failed_pairs"]
        assert failed > 0
        server.set_faults()
        before = server.stats.texts
        assert refine(tmp_path / "out", url=server.url) == 0
        assert server.stats.texts == before + failed


def test_how_failures_end(tmp_path, capsys, monkeypatch):
    """Wrong usage is 2 and a run that fails 1, each in one line; the LLM's key goes to no other server."""
    monkeypatch.setenv("ARHN_API_KEY", "of-the-llm")
    with Emulator() as llm, ScoreEmulator(api_key="of-the-llm") as closed:
        for code, said, options, url in (
            (2, "is a server of the LLM emulated/lexical, which gives no scores", (), llm.url),
            (1, "There is no model to ask for scores: no connection", (), "http://127.0.0.1:9"),
            (1, "ARHN_SCORE_API_KEY or --score-api-key", (), closed.url),
            (2, "--score-device does not go with --score-endpoint", ("--score-device", "cpu"), llm.url),
            (2, "--endpoint goes with --evidence", ("--endpoint", llm.url), closed.url),
            (2, "says not whose scores these are", (), None),
        ):
            assert refine(tmp_path / "out", *options, url=url) == code, said
            told = capsys.readouterr().err
            assert said in told
            assert "Traceback" not in told
        assert refine(tmp_path / "out", "--score-api-key", "of-the-llm", "--timeout", "9", url=closed.url) == 0
