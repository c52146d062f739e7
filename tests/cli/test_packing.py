"""Several passages in a request, as a user runs it: the command, the folder, the card, and what is paid."""

from __future__ import annotations

import json

import pytest

from arhn_datasets import cli
from tests.conftest import SAMPLE
from tests.fakes.served import served


def refined(server, output, *options):
    """The exit code of a run over some rows of the sample."""
    return cli.refine_command(
        [str(SAMPLE), "--limit", "12", "--endpoint", server.url, "--output", str(output), *options]
    )


def test_a_packed_run_is_the_run_of_single_requests_with_fewer(tmp_path, capsys):
    """The same rows; run.json and the card name the size and the prompts; another size asks nothing again."""
    with served() as server:
        assert refined(server, tmp_path / "one") == 0
        single, tokens = server.stats.requests, server.stats.prompt_tokens
        server.reset_stats()
        assert refined(server, tmp_path / "eight", "--passages-per-request", "8") == 0
        assert server.stats.requests < single / 2
        assert server.stats.prompt_tokens < tokens / 2
        server.reset_stats()
        assert refined(server, tmp_path / "three", "--passages-per-request", "3") == 0
        assert server.stats.requests == 0
    assert "asked about alone" not in capsys.readouterr().out
    files = [
        (tmp_path / name / "data" / "train-00000-of-00001.parquet").read_bytes() for name in ("one", "eight", "three")
    ]
    assert len(set(files)) == 1
    runs = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "eight")}
    assert "passages_per_request" not in runs["one"]["parameters"]["snippets"]
    assert runs["eight"]["parameters"]["snippets"]["passages_per_request"] == 8
    told = runs["eight"]["prompts"]["question"]
    assert "[2] {passage}" in told["packed snippets"]
    assert told["hash"] != runs["one"]["prompts"]["question"]["hash"]
    assert "packed snippets" not in runs["one"]["prompts"]["question"]
    card = (tmp_path / "eight" / "README.md").read_text(encoding="utf-8")
    assert "| snippets | passages_per_request | `8` |" in card
    assert "Copy word for word from each passage" in card
    assert cli.verify_command([str(tmp_path / "eight")]) == 0


def test_the_summary_says_how_many_were_asked_alone(tmp_path, capsys):
    """Of a model that gives no lines, all; a rerun from the store says so as well and asks nothing."""
    with served(reply="NO_ANSWER") as server:
        for _ in range(2):
            assert refined(server, tmp_path / "out", "--passages-per-request", "8") == 0
            asked = server.stats.requests
        run = json.loads((tmp_path / "out" / "run.json").read_text())
    passages = run["requests"]["asked_alone"]
    assert asked == passages + 12
    assert f"{passages:,} passages were asked about alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--annotator", "lexical", "--passages-per-request", "8"], "goes with an LLM"),
        (["--endpoint", "http://127.0.0.1:9", "--passages-per-request", "65"], "a number from 1 to 64 was expected"),
        (
            ["--endpoint", "http://127.0.0.1:9", "--evidence", "grades", "--passages-per-request", "8"],
            "--evidence snippets",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, capsys, options, said):
    """Before any work, with what to do."""
    assert cli.refine_command([str(SAMPLE), "--output", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
