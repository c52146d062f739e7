"""Batch rounds: planned, handed over, read back, and the folder of the live run."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arhn_datasets import cli
from arhn_datasets.annotators.client import doubts, ingesting, planning
from arhn_datasets.annotators.client.ingesting import Ingestion
from arhn_datasets.annotators.client.planning import AGAIN, ANSWERED, FAILED, OUT, Plan
from arhn_datasets.annotators.client.request_files import FileLimits, check_file, requests_in
from arhn_datasets.annotators.client.store_upkeep import read_replies
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.cli import batching
from arhn_datasets.errors import InputError, NotYetAnsweredError, OutputError
from arhn_datasets.rows import background
from arhn_datasets.testing import Emulator
from arhn_datasets.testing.batches import answered
from benchmarks.rounds import DAMAGE, damaged
from tests.conftest import SAMPLE

MODEL = "emulated/lexical"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(tmp_path, sample):
    """A file with twelve rows of the sample."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sample[:12]), encoding="utf-8")
    return path


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The folder of a plan."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "plan"


def refined(rows, plan, *more):
    """The exit code of a round."""
    given = [str(rows), "--plan", str(plan), "--model", MODEL, "--output", str(plan.parent / "out"), *map(str, more)]
    return cli.refine_command(given)


def replies_to(path, speaker=None):
    """The output lines of a file of requests."""

    async def read():
        return [line async for line in answered(requests_in(path), speaker or Lexical(threshold=0.3))]

    return asyncio.run(read())


def written(lines, path):
    """These lines as an output file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def count(plan, status):
    """How many requests of a plan have a status."""
    with Plan(plan) as opened:
        return opened.count(status)


def store():
    """The folder of the store."""
    return Path(os.environ["ARHN_CACHE"])


def same(one, other):
    """Refuse two folders that differ in more than times and the id of the run."""
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    ids = [json.loads((folder / "run.json").read_text())["id"].encode() for folder in (one, other)]
    for name in files:
        found = [(folder / name).read_bytes().replace(own, b"") for folder, own in zip((one, other), ids, strict=True)]
        if name.name == "run.json":
            runs = [json.loads(content) for content in found]
            for run in runs:
                del run["created"], run["durations_seconds"]
            found = runs
        assert found[0] == found[1], name


def test_rounds_through_a_provider_give_the_folder_of_the_live_run(rows, plan, tmp_path, capsys, monkeypatch):
    """Plan, submit, collect, and again for the rankings: byte for byte the folder of a run that asks by itself."""
    with Emulator(model=MODEL) as server:
        live = [str(rows), "--endpoint", server.url, "--api", "openai", "--model", MODEL]
        assert cli.refine_command([*live, "--output", "live", "--cache", str(tmp_path / "other")]) == 0
        background.close()
        capsys.readouterr()
        for number in (1, 2):
            assert refined(rows, plan, "--price-per-million", 1, 2) == 0
            told = capsys.readouterr().out
            (path,) = plan.glob(f"requests-{number:05d}.jsonl")
            assert f"planned   {len(list(requests_in(path)))} requests in 1 files" in told
            assert "price " in told
            assert not (tmp_path / "out").exists()
            assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0
            assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0  # nothing is left to submit
            assert "to submit 0 requests" in capsys.readouterr().out
            assert cli.batch_command(["collect", str(plan), "--wait", "--poll", "0.05"]) == 0
        assert refined(rows, plan) == 0
    same(tmp_path / "live", tmp_path / "out")


def test_a_plan_is_what_a_provider_takes(rows, plan):
    """One model and one URL a file, ids of 64 characters at most, files of so many lines, and none twice."""
    assert refined(rows, plan, "--lines", 20, "--messages") == 0
    files = sorted(plan.glob("requests-*.jsonl"))
    lines = [entry for path in files for entry in requests_in(path)]
    assert [len(list(requests_in(path))) for path in files] == [20, 20, 20, 12]
    assert len({line["custom_id"] for line in lines}) == len(lines) == 72
    assert {len(line["custom_id"]) for line in lines} == {32}
    assert {(line["url"], line["body"]["model"]) for line in lines} == {("/v1/chat/completions", MODEL)}
    table = pq.read_table(plan / "requests-00001.parquet").to_pylist()
    assert [row["messages"] for row in table] == [line["body"]["messages"] for line in lines[:20]]
    before = {path: path.read_bytes() for path in files}
    assert refined(rows, plan) == 0  # nothing is planned twice
    assert {path: path.read_bytes() for path in sorted(plan.glob("requests-*.jsonl"))} == before
    assert refined(rows, plan, "--replan") == 0  # unless that is asked
    assert len(list(requests_in(plan / "requests-00005.jsonl"))) == 72


def test_the_limit_of_bytes_splits_a_plan(rows, plan):
    """A file is never larger than it may be."""
    assert refined(rows, plan, "--megabytes", 0.02) == 0
    sizes = [path.stat().st_size for path in plan.glob("requests-*.jsonl")]
    assert len(sizes) > 3
    assert max(sizes) <= 20_000


def openai_error(custom_id, status, **error):
    """A line of an error file."""
    response = {"status_code": status, "request_id": "r", "body": {"error": error}}
    return {"id": "b", "custom_id": custom_id, "response": response, "error": None}


def vllm_error(custom_id, status, message):
    """A failed line of vLLM's run-batch."""
    error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    response = {"status_code": status, "request_id": "r", "body": None}
    return {"id": "v", "custom_id": custom_id, "response": response, "error": error}


def with_body(line, **change):
    """A line with something else in its body."""
    return {**line, "response": {**line["response"], "body": {**line["response"]["body"], **change}}}


def with_end(line, reason, text="The colour"):
    """A line whose reply ended so."""
    return with_body(line, choices=[{"index": 0, "message": {"content": text}, "finish_reason": reason}])


REFUSED = {
    "an error in a 200": (lambda line: with_body(line, choices=None, error={"message": "x", "code": 502}), AGAIN),
    "another model": (lambda line: with_body(line, model="another/model"), AGAIN),
    "no reason of the end": (lambda line: with_end(line, None), AGAIN),
    "an unknown reason": (lambda line: with_end(line, "tool_calls"), AGAIN),
    "cut off": (lambda line: with_end(line, "length"), planning.CUT),
    "no text": (lambda line: with_end(line, "stop", "  "), AGAIN),
    "no choices": (lambda line: with_body(line, choices=[]), AGAIN),
    "too many tokens": (lambda line: with_body(line, usage={"prompt_tokens": 5, "completion_tokens": 999}), AGAIN),
    "no body": (lambda line: {**line, "response": {"status_code": 200, "body": None}}, AGAIN),
    "429": (lambda line: openai_error(line["custom_id"], 429, message="rate limit"), AGAIN),
    "a key": (lambda line: openai_error(line["custom_id"], 401, message="bad key"), AGAIN),
    "a filter": (lambda line: openai_error(line["custom_id"], 400, code="content_filter", message="x"), FAILED),
    "too long": (lambda line: vllm_error(line["custom_id"], 400, "maximum context length is 2048"), FAILED),
    "an option": (
        lambda line: openai_error(
            line["custom_id"], 400, message="Unrecognized request argument supplied: chat_template_kwargs"
        ),
        AGAIN,
    ),
    "expired": (
        lambda line: {**line, "response": None, "error": {"code": "batch_expired", "message": "not executed"}},
        AGAIN,
    ),
    "an unknown id": (lambda line: {**line, "custom_id": "0" * 32}, OUT),
    "an id of another kind": (lambda line: {**line, "custom_id": 7}, OUT),
    "no id": (lambda line: {"response": line["response"]}, OUT),
    "a request": (lambda line: {"custom_id": line["custom_id"], "body": {}}, OUT),
    "no object": (lambda line: [line], AGAIN),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_whole_reply_is_not_stored(kind, rows, plan, tmp_path, capsys):
    """Each is counted by its reason, and what can be asked again is planned again."""
    change, status = REFUSED[kind]
    assert refined(rows, plan) == 0
    first, *others = replies_to(plan / "requests-00001.jsonl")
    output = written([change(first), *others], tmp_path / "output.jsonl")
    capsys.readouterr()
    assert cli.cache_command(["ingest", str(output), str(output), "--plan", str(plan)]) == 0
    told = capsys.readouterr().out
    assert "stored    71 replies" in told
    assert ("cut off   2" if kind == "cut off" else "not taken") in told
    kept = {stored.key.hex() for stored in read_replies(store())}
    assert kept == {line["custom_id"] for line in others}
    assert (count(plan, status), count(plan, ANSWERED)) == (1, 71)


def test_a_good_reply_after_a_failure_is_taken_and_a_failure_after_it_is_not(rows, plan, tmp_path):
    """Outputs come in any order."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    bad = [openai_error(line["custom_id"], 500, message="died") for line in lines]
    files = [written(lines[:30] + bad[30:], tmp_path / "a"), written(bad[:30] + lines[30:], tmp_path / "b")]
    with Plan(plan) as opened:
        assert Ingestion(opened, store()).read(files).stored == 72
        assert opened.count(ANSWERED) == 72


def test_the_first_of_two_replies_is_kept(rows, plan, tmp_path, capsys):
    """And the second one is told; where both stand in one file, neither is believed."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    other = with_end(lines[0], "stop", "another reply")
    assert (
        cli.cache_command(["ingest", str(written(lines, tmp_path / "a")), str(written([other], tmp_path / "b"))]) == 0
    )
    assert "1 of those known say something else than the first" in capsys.readouterr().out
    key = lines[0]["custom_id"]
    said = {stored.key.hex(): json.loads(stored.reply)["text"] for stored in read_replies(store())}
    assert said[key] == lines[0]["response"]["body"]["choices"][0]["message"]["content"]


def test_two_replies_of_one_file_under_one_id_are_both_refused(rows, plan, tmp_path):
    """One of them is that of another request, and nothing says which."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    lines[5] = {**lines[40], "custom_id": lines[5]["custom_id"]}
    lines.insert(9, {**lines[50], "custom_id": lines[5]["custom_id"], "id": "other"})
    lines[9] = with_end(lines[9], "stop", "Tin is soft.")
    with Plan(plan) as opened:
        done = Ingestion(opened, store()).read([written(lines, tmp_path / "a")])
        assert done.reasons[ingesting.CONFLICT] == 2
        assert opened.known(bytes.fromhex(lines[5]["custom_id"])).status == AGAIN


def test_a_file_may_come_in_pieces(rows, plan, tmp_path, capsys):
    """An unfinished line is told, its request stays out, and the whole file is read later."""
    assert refined(rows, plan) == 0
    whole = written(replies_to(plan / "requests-00001.jsonl"), tmp_path / "whole.jsonl")
    half = tmp_path / "half.jsonl"
    half.write_bytes(whole.read_bytes()[:20_000])
    capsys.readouterr()
    assert refined(rows, plan, "--ingest", half) == 0
    told = capsys.readouterr().out
    assert "not at their end: half.jsonl" in told
    assert refined(rows, plan, "--ingest", half, whole) == 0
    keys = [entry["custom_id"] for path in plan.glob("requests-*.jsonl") for entry in requests_in(path)]
    assert len(keys) == len(set(keys)) > 72  # rankings followed, and nothing was planned twice


def test_a_request_that_fails_is_planned_again_and_in_the_end_an_error(rows, plan, tmp_path, capsys):
    """Six tries as of a live run; then its passage stays where it was, and the exit code says that it failed."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    key = lines[3]["custom_id"]
    for number in range(1, 7):
        path = plan / f"requests-{number:05d}.jsonl"
        lines = [
            line if line["custom_id"] != key else openai_error(key, 500, message=f"{number}")
            for line in replies_to(path)
        ]
        assert key in {line["custom_id"] for line in lines}
        code = 1 if number == 6 else 0
        assert refined(rows, plan, "--ingest", written(lines, tmp_path / "o")) == code
        assert refined(rows, plan, "--ingest", tmp_path / "o") == code  # the same again changes nothing
    assert count(plan, FAILED) == 1
    assert (tmp_path / "out").exists()
    assert "1 requests failed" in capsys.readouterr().err


def test_too_long_a_prompt_is_planned_shorter(rows, plan, tmp_path):
    """As a live run cuts it."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    lines[0] = vllm_error(lines[0]["custom_id"], 400, "This model's maximum context length is 2048 tokens")
    assert refined(rows, plan, "--ingest", written(lines, tmp_path / "o")) == 0
    first = next(iter(requests_in(plan / "requests-00001.jsonl")))
    texts = [entry["body"]["messages"][-1]["content"] for entry in requests_in(plan / "requests-00002.jsonl")]
    head = first["body"]["messages"][-1]["content"][:30]
    assert any(text.startswith(head) and len(text) < len(first["body"]["messages"][-1]["content"]) for text in texts)


def test_a_refused_option_is_left_out_from_then_on(rows, plan, tmp_path):
    """It costs one round, and no try."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    said = "Unrecognized request argument supplied: chat_template_kwargs"
    bad = [openai_error(line["custom_id"], 400, message=said) for line in lines]
    assert refined(rows, plan, "--ingest", written(bad, tmp_path / "o")) == 0
    assert all("chat_template_kwargs" not in entry["body"] for entry in requests_in(plan / "requests-00002.jsonl"))


def test_where_all_is_refused_nothing_is_made_of_it(rows, plan, tmp_path, capsys):
    """A wrong parameter is told in the provider's words, and everything is planned again."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    bad = [openai_error(line["custom_id"], 400, message="no such thing") for line in lines]
    assert refined(rows, plan, "--ingest", written(bad, tmp_path / "o")) == 1
    assert "no such thing" in capsys.readouterr().err
    assert count(plan, AGAIN) == 72


def test_a_response_column_is_read(rows, plan, tmp_path, capsys):
    """A row with nothing but a text is taken where it says why it ended, or is known to be whole."""
    assert refined(rows, plan) == 0
    table = [
        {"custom_id": line["custom_id"], "response": line["response"]["body"]["choices"][0]["message"]["content"]}
        for line in replies_to(plan / "requests-00001.jsonl")
    ]
    path = tmp_path / "responses.parquet"
    pq.write_table(pa.Table.from_pylist(table), path)
    assert cli.cache_command(["ingest", str(path)]) == 0
    assert "stored    0 replies" in capsys.readouterr().out
    assert cli.cache_command(["ingest", str(path), "--whole-below", "16384"]) == 0
    assert "stored    72 replies" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist([{**row, "finish_reason": "stop"} for row in table]), path)
    assert cli.cache_command(["ingest", str(path)]) == 0
    assert "72 lines more were known" in capsys.readouterr().out


def test_what_failed_is_planned_again_without_the_rows(rows, plan, tmp_path, capsys):
    """From the plan's own files; what is out only where that is asked."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    bad = [openai_error(line["custom_id"], 500, message="died") for line in lines[:4]]
    assert cli.cache_command(["ingest", str(written(bad + lines[4:60], tmp_path / "o"))]) == 0
    assert cli.cache_command(["plan", str(plan)]) == 0
    assert [entry["custom_id"] for entry in requests_in(plan / "requests-00002.jsonl")] == [
        line["custom_id"] for line in lines[:4]
    ]
    assert cli.cache_command(["plan", str(plan), "--replan"]) == 0
    assert len(list(requests_in(plan / "requests-00003.jsonl"))) == 16


COMMAND = """#!{python}
import sys
from arhn_datasets import cli
sys.exit(cli.{name}_command())
"""
FAKE_VLLM = """#!{python}
import asyncio, json, sys
from arhn_datasets.annotators.client.request_files import requests_in
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.testing.batches import answered
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
async def answer():
    with open(given["-o"], "w") as file:
        async for line in answered(requests_in(given["-i"]), Lexical(threshold=0.3)):
            file.write(json.dumps(line) + chr(10))
asyncio.run(answer())
"""


@pytest.mark.exhaustive
def test_the_script_of_the_page_walks_all_rounds(rows, tmp_path):
    """As it is written, with a stand-in for vLLM; only its folders are others. A second job asks for nothing."""
    page = (ROOT / "docs" / "rounds.md").read_text(encoding="utf-8")
    script = page.partition("```python\n")[2].partition("```")[0].replace("/tmp/", f"{tmp_path}/job/")
    (tmp_path / "rounds.py").write_text(script, encoding="utf-8")
    commands = {"arhn-refine": "refine", "arhn-cache": "cache"}
    made = {name: COMMAND.format(python=sys.executable, name=own) for name, own in commands.items()}
    for name, text in {**made, "vllm": FAKE_VLLM.format(python=sys.executable)}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    given = [sys.executable, str(tmp_path / "rounds.py"), str(rows), MODEL, str(tmp_path / "out")]
    for number in (1, 2):
        (tmp_path / "job").mkdir()
        done = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "refined" / "run.json").exists()
        assert len(list((tmp_path / "job" / "plan").glob("requests-*"))) == (2 if number == 1 else 0)
        (tmp_path / "job").rename(tmp_path / f"job{number}")
        (tmp_path / "out" / "refined").rename(tmp_path / f"refined{number}")


ENDS = {
    "killed": signal.SIGKILL,
    "Ctrl-C": signal.SIGINT,
}


@pytest.mark.parametrize("end", ENDS)
def test_planning_goes_on_after_any_end(end, plan, tmp_path):
    """Whole files stay, half a file goes, and nothing is planned twice or left out."""
    code = (
        "import os, sys; from arhn_datasets import cli; from arhn_datasets.annotators.client import planning\n"
        "whole = planning.check_file\n"
        "def check(path, *more):\n"
        f"    if '00003' in path.name: os.kill(os.getpid(), {int(ENDS[end])})\n"
        "    whole(path, *more)\n"
        "planning.check_file = check\n"
        "sys.exit(cli.refine_command(sys.argv[1:]))\n"
    )
    given = [str(SAMPLE), "--plan", str(plan), "--model", MODEL, "--lines", "50"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *given], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (-signal.SIGKILL, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert refined(SAMPLE, plan, "--lines", "50") == 0
    files = sorted(path.name for path in plan.glob("requests-*"))
    assert files == [f"requests-{number:05d}.jsonl" for number in range(1, 9)]
    keys = [entry["custom_id"] for path in plan.glob("requests-*") for entry in requests_in(path)]
    assert len(keys) == len(set(keys)) == 400 == count(plan, OUT)


def test_reading_goes_on_after_any_end(rows, plan, tmp_path, monkeypatch):
    """What is in the store and not yet in the state is known when it comes again."""
    assert refined(rows, plan) == 0
    output = written(replies_to(plan / "requests-00001.jsonl"), tmp_path / "o")
    parts = []

    def insert(connection, batch, *more):
        parts.append(len(batch))
        if len(parts) == 2:
            raise KeyboardInterrupt
        return whole(connection, batch, *more)

    whole = ingesting.insert
    with monkeypatch.context() as patched:
        patched.setattr(ingesting, "insert", insert)
        assert cli.cache_command(["ingest", str(output)]) == 1
    assert count(plan, OUT) == 72
    with Plan(plan) as opened:
        done = Ingestion(opened, store()).read([output])
        assert (done.stored, done.known) == (8, 64)
        assert opened.count(ANSWERED) == 72


@pytest.mark.parametrize("evidence", ["verdicts", "grades"])
def test_other_evidence_takes_one_round(evidence, rows, plan, tmp_path, capsys):
    """Whatever a stage asks goes by the same way."""
    assert refined(rows, plan, "--evidence", evidence) == 0
    output = written(replies_to(plan / "requests-00001.jsonl"), tmp_path / "o")
    capsys.readouterr()
    assert refined(rows, plan, "--evidence", evidence, "--ingest", output) == 0
    assert "written " in capsys.readouterr().out


def test_a_file_whose_name_was_not_given_yet_gets_it(rows, plan):
    """The state is written before, so that no request is in a file that the state does not know."""
    assert refined(rows, plan) == 0
    path = plan / "requests-00001.jsonl"
    path.rename(path.with_name(f"{path.name}.partial"))
    (plan / "requests-00002.jsonl.partial").write_bytes(b"{")
    with Plan(plan):
        assert sorted(one.name for one in plan.glob("requests-*")) == ["requests-00001.jsonl"]


def test_two_processes_do_not_work_on_one_plan(rows, plan, monkeypatch):
    """The second is told to wait."""
    monkeypatch.setattr(planning, "BUSY_SECONDS", 0.05)
    assert refined(rows, plan) == 0
    with Plan(plan), pytest.raises(OutputError, match="Another command works on the plan"):
        Plan(plan)


def test_a_folder_without_a_plan_is_told(tmp_path):
    """With the way to make one."""
    with pytest.raises(InputError, match=r"arhn-refine ROWS --plan DIR"):
        Plan(tmp_path)
    (tmp_path / planning.STATE).write_bytes(b"no database" * 100)
    with pytest.raises(OutputError, match="cannot be used"):
        Plan(tmp_path)


BAD_LINES = {
    "cut": b'{"custom_id": "0',
    "no id": b'{"method": "POST"}\n',
    "a number": json.dumps({"custom_id": "0" * 32, "body": {"messages": [{"role": "user", "content": 1}]}}).encode(),
    "no list": json.dumps({"custom_id": "0" * 32, "body": {"messages": "x"}}).encode() + b"\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_file_is_checked_before_it_is_handed_over(line, tmp_path):
    """One line that does not validate ends the whole run of vLLM."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(line)
    with pytest.raises(OutputError, match="Line 1"):
        check_file(path, FileLimits(), MODEL)


WRONG_USAGE = {
    "no model": ["--plan", "p"],
    "an option alone": ["--lines", "5"],
    "nothing was planned": ["--ingest", "f", "--model", "m"],
    "no store": ["--plan", "p", "--model", "m", "--cache", "none"],
    "an engine": ["--plan", "p", "--model", "m", "--engine", "ray"],
    "an estimate": ["--plan", "p", "--model", "m", "--estimate"],
    "no file": ["--plan", "p", "--model", "m", "--ingest", "absent"],
    "a price of nothing": ["--output", "o", "--annotator", "lexical", "--price-per-million", "1", "2"],
}


@pytest.mark.parametrize("given", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_what_cannot_be_meant_is_refused(given, rows, plan, capsys):
    """With exit code 2, and what to do."""
    assert cli.refine_command([str(rows), *given]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_expired_batch_is_planned_again(rows, plan, capsys):
    """What it has answered is taken; the rest is planned again, once."""
    with Emulator(model=MODEL, batch_lines=32) as server:
        assert refined(rows, plan) == 0
        assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0
        assert cli.batch_command(["status", str(plan)]) == 0
        assert cli.batch_command(["collect", str(plan), "--wait", "--poll", "0.05"]) == 0
        assert "stored    32 replies" in capsys.readouterr().out
        assert refined(rows, plan) == 0
    planned = [entry["custom_id"] for entry in requests_in(plan / "requests-00002.jsonl")]
    first = [entry["custom_id"] for entry in requests_in(plan / "requests-00001.jsonl")]
    assert set(first[32:]) <= set(planned)
    assert set(first[:32]).isdisjoint(planned)


def test_a_provider_that_is_not_there_changes_nothing(rows, plan, capsys, monkeypatch):
    """The command says so, and the same command submits later, once."""
    monkeypatch.setattr(batching, "ConnectionOptions", partial(batching.ConnectionOptions, attempts=1))
    assert refined(rows, plan) == 0
    assert cli.batch_command(["submit", str(plan), "--url", "http://127.0.0.1:9", "--timeout", "1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    with Emulator(model=MODEL) as server:
        assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0
    assert "submitted requests-00001.jsonl" in capsys.readouterr().out


def test_a_batch_that_fails_or_is_cancelled_is_told_and_planned_again(rows, plan, capsys):
    """The provider's words for the first; what was answered before the end of the second is taken."""
    assert refined(rows, plan, "--lines", 40) == 0
    with Emulator(model=MODEL, batch_seconds=0.3) as server:
        good = (plan / "requests-00001.jsonl").read_bytes()
        assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0
        first, second = re.findall(r"as (batch_\d+)", capsys.readouterr().out)
        asyncio.run(cancelled(server.url, second))
        server._batches._files[server._batches._batches[first]["input_file_id"]] = {}, b"{}\n"
        batch = server._batches._batches[first]
        batch["status"], batch["errors"] = "failed", {"data": [{"message": "not parseable", "line": 3}]}
        assert cli.batch_command(["collect", str(plan), "--wait", "--poll", "0.1"]) == 1
    told = capsys.readouterr().out
    assert "failed, 0 of 40 done: line 3: not parseable" in told
    assert "requests-00002.jsonl  cancelled" in told
    assert count(plan, AGAIN) == 72
    assert good == (plan / "requests-00001.jsonl").read_bytes()


async def cancelled(url, batch):
    """Cancel a batch, as its owner does at the provider."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=10)
    place = f"{url}/v1/batches/{batch}/cancel"
    async with aiohttp.ClientSession(timeout=timeout) as session, session.post(place) as reply:
        assert (await reply.json())["status"] == "cancelling"


def test_a_batch_whose_answer_was_lost_is_not_made_twice(rows, plan, capsys):
    """The provider's list tells that it is there."""
    from arhn_datasets.annotators.client import batches

    assert refined(rows, plan) == 0
    with Emulator(model=MODEL) as server:
        assert cli.batch_command(["submit", str(plan), "--url", server.url]) == 0
        first = capsys.readouterr().out
        with Plan(plan) as opened:  # as if the process had ended before the answer
            (file,) = opened.files()
            batches.note(opened, file, batch=None, starting=True)
        assert cli.batch_command(["submit", str(plan)]) == 0
        again = capsys.readouterr().out
    name = next(line for line in first.splitlines() if line.startswith("submitted"))
    assert name in again


def test_a_wrong_key_is_told(rows, plan, capsys, monkeypatch):
    """In the provider's words, with exit code 1, and the key in none of them."""
    assert refined(rows, plan) == 0
    with Emulator(model=MODEL, api_key="right") as server:
        given = ["submit", str(plan), "--url", server.url]
        assert cli.batch_command([*given, "--api-key", "wrong-key"]) == 1
        told = capsys.readouterr().err
        assert "Incorrect API key" in told
        assert "wrong-key" not in told
        monkeypatch.setenv("ARHN_API_KEY", "right")
        assert cli.batch_command(given) == 0


def test_rows_wait_alone(rows, plan, tmp_path):
    """A row whose snippets are all there is ranked in the next round, whatever another row lacks."""
    assert refined(rows, plan) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    assert refined(rows, plan, "--ingest", written(lines[:-3], tmp_path / "o")) == 0
    ranked = [entry["body"]["messages"][-1]["content"] for entry in requests_in(plan / "requests-00002.jsonl")]
    assert ranked
    assert all("Candidates:" in text for text in ranked)


def test_what_waits_in_one_task_lets_the_others_plan():
    """The first reply that is not there yet ends no other task of its row."""
    planned = []

    async def ask(name):
        await asyncio.sleep(0.001 * len(name))
        planned.append(name)
        raise NotYetAnsweredError(name)

    async def all_of_them():
        await background.gathered(ask(name) for name in ("", "a", "bb"))

    with pytest.raises(NotYetAnsweredError):
        asyncio.run(all_of_them())
    assert planned == ["", "a", "bb"]


ORDERS = {
    "grown": ([1, 2, 3, 4, 5], set()),
    "with gaps": ([1, 5, 9, 20], set()),
    "exchanged far": ([1, 9, 3, 4, 5, 6, 7, 8, 2, 10], {1, 8}),
    "at random": ([7, 3, 9, 1, 8, 2, 6, 4, 0, 5], None),
    "none": ([], set()),
}


@pytest.mark.parametrize(("places", "odd"), ORDERS.values(), ids=ORDERS)
def test_lines_out_of_order_are_found(places, odd):
    """Where the others are in order, and only there."""
    assert doubts.out_of_order(places) == odd


@settings(max_examples=60)
@given(st.integers(20, 60), st.data())
def test_every_exchange_in_a_file_that_keeps_its_order_is_found(count, data):
    """Both of its lines, near or far, whatever else is missing."""
    places = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count, unique=True).map(sorted))
    one, other = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    places[one], places[other] = places[other], places[one]
    assert {one, other} <= doubts.out_of_order(places)


def test_counts_of_tokens_that_do_not_fit_are_found():
    """An exchange of two prompts of different lengths shows in both."""
    draw = random.Random(0)
    texts = [" ".join(["word"] * draw.randrange(50, 400)) + "!" * draw.randrange(9) for _ in range(200)]
    extents = [doubts.extent_of([text]) for text in texts]
    tokens = [round(1.3 * extent.pieces) + 20 + draw.randrange(-2, 3) for extent in extents]
    found = doubts.counting(extents, tokens)
    assert doubts.oddly_counted(found, extents, tokens) == set()
    one, other = tokens.index(min(tokens)), tokens.index(max(tokens))
    tokens[one], tokens[other] = tokens[other], tokens[one]
    assert doubts.oddly_counted(doubts.counting(extents, tokens), extents, tokens) == {one, other}
    few = [one, other, 5, 6, 7, 8, 9, 10]  # are held against those of before
    odd = doubts.oddly_counted(found, [extents[at] for at in few], [tokens[at] for at in few])
    assert odd == {0, 1}
    assert doubts.counting(extents[:9], tokens[:9]) is None


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.3]))
def test_a_damaged_output_stores_no_wrong_reply(seed, share, tmp_path_factory):
    """Missing, doubled, exchanged, cut, failed in every form: what is stored is what the whole output says."""

    class Options:
        kinds, shuffle = None, False

    folder = tmp_path_factory.mktemp("damaged")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)[:15]), encoding="utf-8")
    cli.refine_command([str(rows), "--plan", str(folder / "plan"), "--model", MODEL, "--cache", str(folder)])
    lines = replies_to(folder / "plan" / "requests-00001.jsonl")
    right = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    out, _ = damaged(lines, random.Random(seed), share, Options)
    (folder / "o").write_bytes(b"".join(out))
    with Plan(folder / "plan") as plan:
        Ingestion(plan, folder).read([folder / "o"])
    stored = {one.key.hex(): json.loads(one.reply)["text"] for one in read_replies(folder)}
    assert {key: text for key, text in stored.items() if right[key] != text} == {}
    assert set(DAMAGE) >= {"swapped", "cut"}


def test_packs_go_in_rounds(rows, plan, tmp_path):
    """A pack is one request of a plan; what it gives no line of is asked alone in the round of the others' rankings."""
    packed = ("--passages-per-request", "4")
    with Emulator(model=MODEL) as server:
        live = [str(rows), "--endpoint", server.url, "--api", "openai", "--model", MODEL, *packed]
        assert cli.refine_command([*live, "--output", "live", "--cache", str(tmp_path / "other")]) == 0
        background.close()
    assert refined(rows, plan, *packed) == 0
    lines = replies_to(plan / "requests-00001.jsonl")
    assert len(lines) == 24
    message = lines[0]["response"]["body"]["choices"][0]["message"]
    message["content"], _, gone = message["content"].rpartition("\n")
    assert gone.startswith("[4] ")
    assert refined(rows, plan, *packed, "--ingest", written(lines[:20], tmp_path / "first.jsonl")) == 0
    second = list(requests_in(plan / "requests-00002.jsonl"))
    alone = [line for line in second if "<passage>" in line["body"]["messages"][0]["content"]]
    assert len(alone) == 1
    assert not any("\nPassages:\n" in line["body"]["messages"][0]["content"] for line in second), (
        "none is planned again"
    )
    files = [written(lines[20:], tmp_path / "rest.jsonl")]
    for number in (2, 3):
        path = plan / f"requests-{number:05d}.jsonl"
        if path.exists():
            files.append(written(replies_to(path), tmp_path / f"{number}.jsonl"))
        assert refined(rows, plan, *packed, "--ingest", *files) == 0
        files = []
    path = plan / "requests-00004.jsonl"
    if path.exists():
        assert refined(rows, plan, *packed, "--ingest", written(replies_to(path), tmp_path / "4.jsonl")) == 0
    tables = [pq.read_table(tmp_path / name / "data" / "train-00000-of-00001.parquet") for name in ("live", "out")]
    assert tables[0].equals(tables[1])


def test_passages_of_two_rows_are_planned_in_one_pack(plan, tmp_path):
    """Rows of one query share passages: each is in one request of the plan, also when it is planned again."""
    texts = [f"Metal {at} melts at {at * 7 + 100} degrees." for at in range(9)]
    path = tmp_path / "rows.jsonl"
    lines = [{"query_id": str(n), "query": "When?", "pos": [texts[n]], "neg": texts[2:]} for n in (0, 1)]
    others = [
        {"query_id": f"o{n}", "query": f"Of {n}?", "pos": [f"{n} is a number."], "neg": ["No."]} for n in range(600)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], *others, lines[1])), encoding="utf-8")
    for _ in range(2):
        assert refined(path, plan, "--passages-per-request", "4") == 0
    (found,) = plan.glob("requests-*.jsonl")
    prompts = [line["body"]["messages"][0]["content"] for line in requests_in(found)]
    assert [sum(text in prompt for prompt in prompts) for text in texts] == [1] * 9


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "message", "code"]), inner),
    max_leaves=6,
)
PLACES = [
    ("id",),
    ("custom_id",),
    ("response",),
    ("error",),
    ("response", "status_code"),
    ("response", "body"),
    ("response", "body", "model"),
    ("response", "body", "choices"),
    ("response", "body", "usage"),
    ("response", "body", "error"),
    ("response", "body", "choices", 0),
    ("response", "body", "choices", 0, "message"),
    ("response", "body", "choices", 0, "finish_reason"),
    ("response", "body", "choices", 0, "message", "content"),
    ("response", "body", "usage", "prompt_tokens"),
    ("response", "body", "usage", "completion_tokens"),
]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan of a row, and the lines of its output."""
    folder = tmp_path_factory.mktemp("planned")
    rows = folder / "rows.jsonl"
    rows.write_text(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    cli.refine_command([str(rows), "--plan", str(folder / "plan"), "--model", MODEL, "--cache", str(folder)])
    return folder, replies_to(folder / "plan" / "requests-00001.jsonl")


@settings(max_examples=25)
@given(place=st.sampled_from(PLACES), value=ODD, at=st.integers(0, 3))
def test_whatever_stands_in_a_line_ends_nothing(place, value, at, planned, tmp_path_factory):
    """Any value anywhere is taken or refused, never an error of ours, and no other text than the reply's is stored."""
    folder, lines = planned
    store = tmp_path_factory.getbasetemp() / "odd"
    line = json.loads(json.dumps(lines[at]))
    inner = line
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    written([line, lines[4]], folder / "o")
    with Plan(folder / "plan") as plan:
        Ingestion(plan, store).read([folder / "o"])
    right = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in lines}
    stored = {one.key.hex(): json.loads(one.reply)["text"] for one in read_replies(store)}
    if place[-1] not in ("content", "message", "response", "body") and not isinstance(place[-1], int):
        assert all(right[key] == text for key, text in stored.items() if key == line.get("custom_id"))
    assert stored[lines[4]["custom_id"]] == right[lines[4]["custom_id"]]
