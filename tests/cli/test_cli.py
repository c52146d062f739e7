"""The commands as a user types them: output, exit codes, and no traceback for bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from datasets import load_dataset

from arhn_datasets import cli
from arhn_datasets.annotators.client.store import Replies
from arhn_datasets.annotators.endpoint import Endpoint
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.annotators.local import Local
from arhn_datasets.cli.refining import what_is_kept
from arhn_datasets.cli.running import guarded
from arhn_datasets.hub import pushing
from arhn_datasets.hub.pushing import Pushed
from arhn_datasets.testing import Fault
from tests.conftest import SAMPLE
from tests.fakes.served import always, completion, served

BIN = Path(sys.executable).parent


@pytest.fixture
def refined(tmp_path, capsys):
    """A refined folder."""
    out = tmp_path / "refined"
    assert cli.refine_command([str(SAMPLE), "--annotator", "lexical", "--output", str(out), "--limit", "20"]) == 0
    capsys.readouterr()
    return out


def test_the_summary_has_the_counts_the_statuses_and_the_warning(tmp_path, capsys):
    """A table by subset, the status histogram, changed rows, and that a baseline gave the labels."""
    out = tmp_path / "out"
    assert cli.refine_command([str(SAMPLE), "--annotator", "lexical", "--output", str(out), "--show", "2"]) == 0
    printed = capsys.readouterr()
    header = "subset     rows  positives  negatives  relabelled  filtered  kept"
    assert header in printed.out
    for name in ("qa", "claims", "arguments", "titles", "all"):
        assert f"\n{name}" in printed.out
    for line in ("snippets  grounded", "rankings  ranked", "rows      changed"):
        assert line in printed.out
    assert printed.out.count("\nquery      ") + printed.out.startswith("query      ") == 2
    assert "+ now pos" in printed.out
    assert "baseline, not an LLM" in printed.out
    assert "baseline, not an LLM" in printed.err
    assert f'load_dataset("{out}") loads it' in printed.out


def test_the_summary_counts_the_replies_that_were_cut_off(tmp_path, capsys):
    """It says that they count for nothing, and what to do; no row is changed by any of them."""
    with served() as server:
        server.intercept = always(lambda: web.json_response(completion("NO_ANSWER", "length")))
        out = tmp_path / "out"
        assert cli.refine_command([str(SAMPLE), "--endpoint", server.url, "--limit", "2", "--output", str(out)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"warning   replies that were cut off: \d+; they count for nothing", printed)
    assert "--max-tokens" in printed
    assert "--constrained" in printed
    assert json.loads((out / "run.json").read_text())["requests"]["cut_off"] > 0
    assert "unchanged 2 (100.0%)" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--endpoint URL .*--annotator local --model ID .*--annotator lexical"),
        (["--annotator", "tgi"], "needs --endpoint"),
        (["--annotator", "local"], "needs --model"),
        (["--annotator", "lexical", "--endpoint", "http://x"], "--endpoint goes with --annotator tgi"),
        (["--endpoint", "localhost"], "is not the URL of an endpoint"),
        (["--annotator", "lexical", "--stride", "30"], "stride is 30 and window is 20"),
        (["--annotator", "lexical", "--task", "poem"], "Unknown task 'poem'"),
        (["--annotator", "lexical", "--task", "claim", "--task", "qa=claim"], "expected one task for all rows"),
        (["--annotator", "lexical", "--min-negatives", "-1"], "a whole number from 0"),
        (
            ["--annotator", "lexical", "--model", "m"],
            "--model goes with --annotator local or tgi, not with",
        ),
        (["--annotator", "lexical", "--concurrency", "4", "--api", "tgi"], "--api, --concurrency go with"),
        (["--annotator", "lexical", "--constrained"], "--constrained goes with"),
        (["--annotator", "lexical", "--max-tokens", "64"], "--max-tokens goes with"),
        (["--endpoint", "http://x", "--max-tokens", "1025"], "max_tokens is 1025; a number from 1 to 1024"),
        (["--annotator", "lexical", "--timeout", "300"], "--timeout goes with"),
        (["--annotator", "lexical", "--give-up-after", "600"], "--give-up-after goes with"),
        (["--annotator", "lexical", "--api-key", "k"], "--api-key goes with"),
        (["--annotator", "local", "--model", "m", "--api-key", "k"], "--api-key goes with .* --annotator local"),
        (["--annotator", "lexical", "--estimate-rows", "9"], "--estimate-rows goes with --estimate"),
        (["--annotator", "lexical", "--price-per-hour", "4"], "--price-per-hour goes with --estimate"),
        (["--annotator", "lexical", "--price-per-million", "1", "2"], "--price-per-million goes with --estimate"),
        (
            ["--annotator", "lexical", "--estimate", "--price-per-hour", "4", "--price-per-million", "1", "2"],
            "--price-per-hour and --price-per-million",
        ),
    ],
)
def test_arguments_that_cannot_work_exit_with_2(arguments, message, tmp_path, capsys):
    """One line says what was found, what was expected and what to do."""
    import re

    assert cli.refine_command([str(SAMPLE), "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--streaming"],
            ["--num-proc", "2"],
            ["--limit", "0"],
            ["--limit", "x"],
            ["--policy", "all"],
            ["--annotator", "gpt"],
            ["--endpoints", "http://x"],
        ),
        *(["--batch-size", "9" * 20], ["--show", "-3"], ["--permutations", "101"], ["--price-per-hour", "-4"]),
        *(["--price-per-hour", "nan"], ["--price-per-million", "1", "-2"], ["--timeout", "nan"]),
    ],
)
def test_arguments_that_argparse_refuses_exit_with_2(arguments, tmp_path, capsys):
    """Also what the parser itself refuses is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        cli.refine_command([str(SAMPLE), "--output", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert "usage: arhn-refine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "c"], "--config .* is a file"),
        (["--revision", "r"], "--revision .* is a file"),
        (["--split", "foo"], r"has no split 'foo'; its splits are \['train'\]"),
    ],
)
def test_what_a_single_file_does_not_have_is_wrong_usage(arguments, message, tmp_path, capsys):
    """A configuration, a revision, and another split than train."""
    lexical = ["--annotator", "lexical", "--output", str(tmp_path / "out")]
    assert cli.refine_command([str(SAMPLE), *lexical, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_split_of_a_single_file_is_train(tmp_path, capsys):
    """--split train of a file is all of it."""
    command = [str(SAMPLE), "--annotator", "lexical", "--limit", "2", "--split", "train"]
    assert cli.refine_command([*command, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/data/train-00000-of-00001.parquet").exists()


def test_names_that_the_system_refuses_are_wrong_usage(refined, tmp_path, capsys):
    """A name of 300 characters gives a message with the name, and no traceback, wherever it is given."""
    long = "x" * 300
    lexical = ["--annotator", "lexical", "--output"]
    for command in (
        lambda: cli.refine_command([f"{long}.jsonl", *lexical, str(tmp_path / "out")]),
        lambda: cli.refine_command([str(SAMPLE), *lexical, str(tmp_path / long)]),
        lambda: cli.refine_command([str(SAMPLE), *lexical, str(tmp_path / long[:250])]),  # a hidden one is longer
        lambda: cli.export_command([str(refined), "--format", "pair", "--output", str(tmp_path / long)]),
        lambda: cli.audit_command([str(refined), "--output", str(tmp_path / f"{long}.csv")]),
        lambda: cli.verify_command([str(tmp_path / long)]),
    ):
        assert command() == 2
        error = capsys.readouterr().err
        assert "xxx" in error
        assert "error: " in error
    assert [path.name for path in tmp_path.iterdir()] == ["refined"]


def test_errors_of_the_system_are_messages_and_those_of_the_program_are_not(capsys):
    """What could not be done, with its file and reason; a mistake of ours keeps its traceback."""

    def fails(error):
        def command():
            raise error

        return lambda: guarded(command, str)

    assert fails(PermissionError(13, "Permission denied", "/some/file"))() == 1
    assert re.search("^error: .*/some/file.*Permission denied", capsys.readouterr().err)
    assert fails(OSError("told otherwise"))() == 1
    assert "told otherwise" in capsys.readouterr().err
    with pytest.raises(KeyError):
        fails(KeyError("ours"))()


@pytest.mark.parametrize("command", ["verify", "refine", "cache", "help"])
def test_a_closed_pipe_ends_a_command_quietly(command, refined, tmp_path):
    """`| true`: no traceback, also none at the interpreter's end, exit code 1, and what was written stays.

    A long --help is given up by argparse itself, without an error.
    """
    out = tmp_path / "out"
    given = {
        "verify": ["arhn-verify", refined],
        "refine": ["arhn-refine", SAMPLE, "--annotator", "lexical", "--show", "69", "--output", out],
        "cache": ["arhn-cache", "info", "--cache", tmp_path],
        "help": ["arhn-refine", "--help"],
    }[command]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [str(BIN / given[0]), *map(str, given[1:])],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    os.close(write)
    assert done.returncode == 1 or (done.returncode == 0 and command == "help")
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr
    assert command != "refine" or (out / "run.json").exists()


def test_a_full_disk_behind_the_output_is_told(tmp_path):
    """What was printed and did not arrive is no success."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [str(BIN / "arhn-cache"), "info", "--cache", str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--format", "pair", "--grades"], "--grades goes with --format labeled-list"),
        (["--format", "triplet", "--negatives", "7"], "--negatives goes with --format n-tuple"),
        (["--format", "beir", "--short", "repeat"], "--short goes with --format n-tuple"),
    ],
)
def test_choices_of_a_format_that_is_not_written_are_refused(given, message, refined, tmp_path, capsys):
    """What would have no effect is wrong usage, in arhn-export and in arhn-push."""
    assert cli.export_command([str(refined), *given, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert cli.push_command([str(refined), "user/name", *given, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_numbers_out_of_range_exit_with_2(refined, tmp_path, capsys):
    """More negatives than a row has, and seeds that there are not."""
    for command in (
        lambda: cli.export_command(
            [str(refined), "--format", "n-tuple", "--negatives", "1001", "--output", str(tmp_path / "out")]
        ),
        lambda: cli.evaluate_command([str(refined), "truth.jsonl", "--seed", "-1"]),
    ):
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 2
        assert "is not a whole number from" in capsys.readouterr().err


def test_wrong_names_and_contents(tmp_path, capsys):
    """A missing file is wrong usage; rows in no known form and a foreign output folder fail the run."""
    lexical = ["--annotator", "lexical", "--output", str(tmp_path / "out")]
    assert cli.refine_command(["nowhere.jsonl", *lexical]) == 2
    assert "There is nothing at nowhere.jsonl" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    assert cli.refine_command([str(tmp_path / "rows.jsonl"), *lexical]) == 1
    assert "Tevatron, RLHN" in capsys.readouterr().err
    assert cli.refine_command([str(SAMPLE), "--annotator", "lexical", "--output", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_endpoints_that_refuse_or_are_not_there_exit_with_1(server, tmp_path, capsys, monkeypatch):
    """A wrong key names its variable; a dead URL is told with the URL, both without a row lost or written."""
    server.api_key = "right"
    base = [str(SAMPLE), "--output", str(tmp_path / "out"), "--limit", "2", "--endpoint"]
    assert cli.refine_command([*base, server.url, "--api-key", "wrong"]) == 1
    assert "ARHN_API_KEY" in capsys.readouterr().err
    monkeypatch.setattr("arhn_datasets.annotators.client.pool.BACKOFF_MAX_SECONDS", 0.01)
    assert cli.refine_command([*base, "http://127.0.0.1:9"]) == 1
    assert "no connection to http://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_limit_of_a_snippet_reply_changes_what_is_asked_and_known(server, tmp_path):
    """It goes to the server, into run.json and the identity; the same limit asks nothing again, another one does."""
    base = [str(SAMPLE), "--output", str(tmp_path / "out"), "--limit", "2", "--endpoint", server.url]

    def identity(*limit):
        assert cli.refine_command([*base, *limit]) == 0
        run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
        assert run["annotator"]["max_tokens"] == (int(limit[1]) if limit else 384)
        return run["identity"]

    limited = identity("--max-tokens", "100")
    snippets = [body for body in server.bodies if "<passage>" in body["messages"][-1]["content"]]
    assert {body["max_tokens"] for body in snippets} == {100}
    asked = server.stats.requests
    assert identity("--max-tokens", "100") == limited
    assert server.stats.requests == asked
    assert identity() != limited
    assert server.stats.requests == asked + len(snippets)


def test_requests_that_fail_exit_with_1(server, tmp_path, capsys):
    """All or some; the rows are written unchanged, with the cause and its count; the advice is what can help."""
    base = [str(SAMPLE), "--output", str(tmp_path / "out"), "--limit", "3", "--endpoint", server.url]
    server.set_faults(Fault(kind="text_422"))
    assert cli.refine_command(base) == 1
    told = capsys.readouterr().err
    assert "requests failed; their passages stayed where they were" in told
    assert " x 422: Failed to deserialize" in told
    assert "only these are asked anew" not in told
    cli.refine_command([*base[:1], "--endpoint", server.url, "--estimate", "--estimate-rows", "1"])
    assert " x 422: Failed to deserialize" in "".join(capsys.readouterr())
    server.set_faults(Fault(kind="text_422", on=lambda seen: seen.number % 5 == 0))
    assert cli.refine_command(base) == 1
    assert "Asking again cannot help before the cause is mended" in capsys.readouterr().err
    (cause,) = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["causes"]
    assert cause["status"] == "error"
    assert cause["example"].startswith("RequestRejected: 422")
    server.set_faults()
    assert cli.refine_command(base) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("reply", "most", "code"),
    [("Sorry?!", None, 1), ("Sorry?!", "1", 0), ("NO_ANSWER", None, 0), ("NO_ANSWER", "0", 0)],
)
def test_a_run_of_which_most_is_unreadable_says_so_and_exits_with_1(server, reply, most, code, tmp_path, capsys):
    """With an example of what the model replied; a model that finds nothing is no such run."""
    server.reply = reply
    base = [str(SAMPLE), "--output", str(tmp_path / "out"), "--limit", "3", "--endpoint", server.url]
    assert cli.refine_command([*base, *(() if most is None else ("--max-unread", most))]) == code
    told = capsys.readouterr().err
    assert ("100% of the requests gave no readable reply" in told) == (code == 1)
    assert ("e.g. Sorry?!" in told) == (code == 1)
    with pytest.raises(SystemExit):
        cli.refine_command([*base, "--max-unread", "1.5"])


def test_arguments_reach_the_stages(monkeypatch):
    """Every option of the command line is an option of a stage."""
    monkeypatch.setenv("ARHN_ENDPOINT", "http://a,http://b")
    monkeypatch.setenv("ARHN_MODEL", "m")
    parse = cli.refine_parser().parse_args
    base = ["in", "--output", "o"]
    (annotator,) = cli.configured_stages(parse(base)).annotators
    assert isinstance(annotator, Endpoint)
    assert (annotator.url, annotator.model) == (("http://a", "http://b"), "m")
    given = (
        "in --output o --annotator local --model x --model-revision r --cache none --task qa=claim --rank-by passage "
        "--window 9 --stride 3 --permutations 2 --seed 5 --policy filter --reference worst --unsupported keep "
        "--ties below --min-negatives 2 --on-shortage keep --max-relabelled 3 --on-excess allow --max-tokens 99"
    )
    stages = cli.configured_stages(parse(given.split()))
    (annotator,), (snippets, ranks, relabel) = stages.annotators, stages.transforms
    assert isinstance(annotator, Local)
    assert (annotator.model, annotator.revision, annotator.cache) == ("x", "r", "none")
    assert annotator.max_tokens == 99
    assert snippets.tasks == {"qa": "claim"}
    assert (ranks.rank_by, ranks.window, ranks.stride, ranks.permutations, ranks.seed) == ("passage", 9, 3, 2, 5)
    assert (relabel.policy, relabel.reference, relabel.unsupported) == ("filter", "worst", "keep")
    assert (relabel.ties, relabel.on_shortage, relabel.on_excess) == ("below", "keep", "allow")
    assert (relabel.min_negatives, relabel.max_relabelled) == (2, 3)
    lexical = cli.configured_stages(parse([*base, "--annotator", "lexical", "--task", "claim"]))
    assert isinstance(lexical.annotators[0], Lexical)
    assert lexical.evidence[0].tasks == "claim"
    assert (lexical.rule.on_shortage, lexical.rule.on_excess) == ("drop", "keep")


def test_a_run_that_drops_every_row_says_so(tmp_path, capsys):
    """The only negative proves false: the row is in `dropped`, and the command says where and why."""
    text = "The Senn tunnel is 4,310 metres long."
    row = {"query": "how long is the Senn tunnel", "pos": [text], "neg": [f"Yes: {text}"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    assert cli.refine_command([str(tmp_path / "rows.jsonl"), "--annotator", "lexical", "--output", str(out)]) == 0
    said = capsys.readouterr()
    assert f"load_dataset(\"{out}\", 'dropped') loads it" in said.out
    assert "dropped 1 (100.0%)" in said.out
    assert "A guard dropped every row, so that none is left to train on" in said.err
    assert cli.verify_command([str(out)]) == 0
    assert load_dataset(str(out), "dropped", split="train")[0]["negative_passages"][0]["text"] == row["neg"][0]


def test_ctrl_c_keeps_the_replies_and_says_how_to_go_on(server, tmp_path):
    """SIGINT in the middle: exit code 1, no traceback, no output folder, and the rerun asks only the rest."""
    server.max_concurrent_requests = 4
    server.set_faults(Fault(kind="hang", on=lambda seen: seen.number > 45))  # it cannot end by itself
    command = [str(BIN / "arhn-refine"), str(SAMPLE), "--endpoint", server.url, "--output", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "store")]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    while server.stats.requests < 48:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, error = running.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert running.returncode == 1
    assert "Traceback" not in error
    assert f"Every reply so far is kept in {tmp_path / 'store'}; run the same command again" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    kept, asked = len(Replies(tmp_path / "store")), server.stats.requests
    assert kept >= 20
    server.set_faults()
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "snippets  grounded" in finished.stdout
    assert server.stats.requests - asked <= 422 + 69 - kept


def test_interrupted_messages(tmp_path):
    """What is kept depends on the annotator and the store."""
    parse = cli.refine_parser().parse_args
    base = ["in", "--output", "o"]
    assert "start again" in what_is_kept(parse([*base, "--annotator", "lexical"]))
    assert "start again" in what_is_kept(parse([*base, "--cache", "none"]))
    assert os.environ["ARHN_CACHE"] in what_is_kept(parse(base))


def test_push_lists_everything_without_network(refined, capsys, monkeypatch):
    """--dry-run names each file with its size and prints the card."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli.push_command([str(refined), "user/name", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for path in ("README.md", "data/train-00000-of-00001.parquet", "run.json"):
        assert re.search(rf"^ +[\d,]+  {path}$", printed, re.MULTILINE)
    assert "annotations_creators:" in printed


def test_push_of_something_else_exits_with_2(tmp_path, capsys):
    """Only a refined folder is published."""
    assert cli.push_command([str(tmp_path), "user/name"]) == 2
    assert "no run.json of arhn_datasets" in capsys.readouterr().err
    assert cli.push_command([str(tmp_path / "no"), "user/name"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_push_prints_the_commit(refined, capsys, monkeypatch):
    """The URL of the commit, and the line that loads the result; Ctrl-C publishes nothing."""
    monkeypatch.setattr(
        pushing,
        "push",
        lambda *_, **options: Pushed(
            url=f"https://hub/{options['private']}", repo_id="user/name", pull_request_url=None, files=()
        ),
    )
    assert cli.push_command([str(refined), "user/name", "--public"]) == 0
    assert 'published https://hub/False   load_dataset("user/name") loads it' in capsys.readouterr().out

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "push", interrupted)
    assert cli.push_command([str(refined), "user/name"]) == 1
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["arhn-refine", "arhn-push"])
def test_help_and_version_start_fast_and_light(command):
    """--help and --version need no dataset library."""
    for flag in ("--help", "--version"):
        done = subprocess.run([str(BIN / command), flag], capture_output=True, text=True, check=True, timeout=120)
        assert command in done.stdout
    assert json.dumps(done.stderr) == '""'
