"""Every kind of evidence and every rule, from the command line to what a trainer reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web
from datasets import load_dataset

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.runs import refine as running
from arhn_datasets.testing import Fault, ScoreEmulator
from tests.conftest import SAMPLE
from tests.fakes.served import always, completion

ASKED = ("snippets", "verdicts", "grades")
SAID = {"snippets": "copied the words", "verdicts": "compared the negatives", "grades": "gave a grade"}
REQUESTS = {"snippets": 400 + 28, "verdicts": 69, "grades": 400}
RULES = {
    "positive-aware": ("arhn.PositiveAware()", "NV-Retriever"),
    "adaptive-margin": ("arhn.AdaptiveMargin()", "LG-ANNA-Embedding"),
    "ambiguous-sampling": ("arhn.AmbiguousSampling()", "SimANS"),
}


def refined(out, *arguments, source=SAMPLE):
    """The exit code of a run."""
    return cli.refine_command([str(source), *map(str, arguments), "--output", str(out)])


def run_of(out):
    """What ``run.json`` says."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def columns_of(out):
    """The columns of the rows."""
    return set(load_dataset(str(out), split="train").column_names)


def holds_and_is_read(out, tmp_path):
    """The folder verifies, exports in two formats, is audited, and can be published."""
    assert cli.verify_command([str(out)]) == 0
    exported = tmp_path / "exported"
    formats = ["--format", "triplet", "--format", "labeled-list"]
    assert cli.export_command([str(out), *formats, "--output", str(exported)]) == 0
    assert len(load_dataset(str(exported), "triplet", split="train")) > 0
    assert cli.audit_command([str(out), "--rows", "9", "--output", str(tmp_path / "audit.csv")]) == 0
    assert cli.push_command([str(out), "user/rows", "--dry-run", "--format", "triplet"]) == 0


@pytest.mark.parametrize("kind", ASKED)
def test_a_kind_of_evidence_goes_all_the_way(kind, server, tmp_path, capsys):
    """Refined with as many requests as it costs, verified, exported, audited, and told by card and summary."""
    out = tmp_path / "out"
    assert refined(out, "--endpoint", server.url, "--evidence", kind, "--show", 1) == 0
    printed = capsys.readouterr().out
    assert server.stats.requests == REQUESTS[kind]
    assert f"\n{kind:<9} " in printed
    assert all(f"\n{other:<9} " not in printed for other in ASKED if other != kind)
    run, card = run_of(out), (out / "README.md").read_text(encoding="utf-8")
    assert list(run["prompts"]["claim"])[2:] == {"snippets": ["snippet", "ranking"]}.get(kind, [kind[:-1]])
    assert set(run["identity"]) == {kind, *(["ranks"] if kind == "snippets" else [])}
    assert [f"`*_{other}`" in card for other in ASKED] == [other == kind for other in ASKED]
    assert [said in card for said in SAID.values()] == [other == kind for other in ASKED]
    again = "" if kind == "snippets" else f'evidence="{kind}", '
    assert f'arhn.relabel.with_options({again}policy="filter")' in card
    assert {f"{side}_{kind}" for side in ("positive", "negative", "filtered")} <= columns_of(out)
    holds_and_is_read(out, tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_over_scores_goes_all_the_way(rule, encoder, tmp_path, capsys):
    """A local model's scores, no annotator and no request; the card names model, rule and how to try another."""
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "out"
    options = {"ambiguous-sampling": ["--num-hard-negatives", 3, "--a", 100]}.get(rule, ["--on-shortage", "allow"])
    arguments = ["--evidence", "scores", "--score-model", encoder, "--rule", rule, *options, "--show", 1, "--limit", 8]
    assert refined(out, *arguments) == 0
    printed, card = capsys.readouterr().out, (out / "README.md").read_text(encoding="utf-8")
    assert "score 0." in printed
    assert "requests" not in printed
    assert all(said in card for said in (*RULES[rule], "The scores are those of a model", "`*_scores`"))
    assert "language model" not in card
    assert "snippet" not in card.partition("### Check it")[0].partition("arhn_datasets:begin")[2]
    assert cli.verify_command([str(out)]) == 0
    assert columns_of(out) >= {"positive_scores", "negative_scores", "filtered_scores"}
    assert refined(tmp_path / "other", *arguments, "--estimate", "--estimate-rows", 4) == 0
    assert "requests   0" in capsys.readouterr().out


def test_scores_that_the_rows_have_need_no_model(tmp_path, capsys):
    """A field of the passages, and columns beside them; a negative that scores too near its positive leaves."""
    rows = [{"query": f"q {i}", "pos": [f"good {i}"], "neg": [f"near {i}", f"far {i}"]} for i in range(3)]
    scored = [{**row, "pos_scores": [0.9], "neg_scores": [0.89, 0.1]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    command = ["--evidence", "scores", "--rule", "positive-aware", "--score-field", "score"]
    assert refined(tmp_path / "out", *command, source=tmp_path / "rows.jsonl") == 0
    left = load_dataset(str(tmp_path / "out"), split="train")
    assert [[one["text"] for one in row["negative_passages"]] for row in left] == [[f"far {i}"] for i in range(3)]
    assert refined(tmp_path / "none", *command[:-1], "grade", source=tmp_path / "rows.jsonl") == 1
    assert "have no field 'grade'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("said", ["I cannot tell.", "", "better: [1], [1]\nworse: [1]\n7", "<think>hm"])
def test_replies_that_cannot_be_read_label_nothing(kind, said, server, tmp_path, capsys):
    """No passage moves, the run tells why, and it ends with 1."""
    server.reply = lambda prompt: said
    out = tmp_path / "out"
    code = refined(out, "--endpoint", server.url, "--evidence", kind, "--limit", 4, "--give-up-after", 2)
    assert code == 1
    if out.exists():
        counts = run_of(out)["counts"]["all"]
        assert (counts["relabelled"], counts["filtered"]) == (0, 0)
        assert cli.verify_command([str(out)]) == 0


@pytest.mark.parametrize("kind", ASKED)
def test_a_run_of_nothing_but_failures_ends_with_1(kind, server, tmp_path, capsys):
    """Every request refused or cut off: nothing moves, and the exit code is that of a failure."""
    server.set_faults(Fault(kind="text_422"))
    assert refined(tmp_path / "out", "--endpoint", server.url, "--evidence", kind, "--limit", 4) == 1
    server.set_faults()
    server.intercept = always(lambda: web.json_response(completion("3", "length")))
    out = tmp_path / "cut"
    assert refined(out, "--endpoint", server.url, "--evidence", kind, "--limit", 4) == 1
    assert run_of(out)["counts"]["all"]["kept"] == run_of(out)["counts"]["all"]["negatives"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ASKED)
def test_what_a_refined_folder_has_is_not_paid_again(kind, server, tmp_path, capsys):
    """No store, another policy: no request, and the labels are those of a run from the source."""
    first, again, plain = tmp_path / "first", tmp_path / "again", tmp_path / "plain"
    given = ["--endpoint", server.url, "--evidence", kind, "--cache", "none", "--on-shortage", "keep"]
    assert refined(first, *given) == 0
    asked = server.stats.requests
    assert refined(again, *given, "--policy", "filter", source=first) == 0
    assert server.stats.requests == asked
    assert f"reused    {kind}" in capsys.readouterr().out
    assert refined(plain, *given, "--policy", "filter") == 0
    ours, theirs = (load_dataset(str(out), split="train") for out in (again, plain))
    assert list(ours) == list(theirs.select_columns(ours.column_names))
    assert cli.verify_command([str(again)]) == 0
    asked = server.stats.requests
    other = {"snippets": "verdicts", "verdicts": "grades", "grades": "verdicts"}[kind]
    assert refined(tmp_path / "other", *given, "--evidence", other, "--rule", "relabel", source=first) == 0
    assert server.stats.requests - asked == REQUESTS[other]


def test_rows_in_which_a_request_has_failed_are_asked_about_again(server, tmp_path):
    """What came through is kept; the rows with an error have all of their evidence anew."""
    server.set_faults(Fault(kind="text_422", on=lambda seen: seen.number == 5))
    given = ["--endpoint", server.url, "--evidence", "verdicts", "--cache", "none"]
    refined(tmp_path / "first", *given, "--on-shortage", "keep")
    assert run_of(tmp_path / "first")["counts"]["all"]["verdicts"]["error"] > 0
    server.set_faults()
    asked = server.stats.requests
    assert refined(tmp_path / "again", *given, source=tmp_path / "first") == 0
    assert server.stats.requests - asked == 1
    assert "error" not in run_of(tmp_path / "again")["counts"]["all"]["verdicts"]


def test_a_folder_that_was_changed_or_made_otherwise_is_asked_about(server, tmp_path):
    """Another window is another evidence; a file that is not as it was written is no evidence of its rows."""
    given = ["--endpoint", server.url, "--evidence", "verdicts", "--cache", "none", "--limit", 5]
    assert refined(tmp_path / "first", *given) == 0
    asked = server.stats.requests
    assert refined(tmp_path / "other", *given, "--window", 1, source=tmp_path / "first") == 0
    assert server.stats.requests - asked > 5
    run = run_of(tmp_path / "first")
    path = next(iter(run["files"]))
    run["files"][path]["sha256"] = "0" * 64
    (tmp_path / "first" / "run.json").write_text(json.dumps(run))
    asked = server.stats.requests
    assert refined(tmp_path / "again", *given, source=tmp_path / "first") == 0
    assert server.stats.requests > asked


@pytest.mark.parametrize("kind", ["verdicts", "grades"])
def test_a_killed_run_goes_on(kind, server, tmp_path):
    """Kill -9 in the middle, then the same command: the store has what was said, and the folder is whole."""
    server.max_concurrent_requests = 4
    server.set_faults(Fault(kind="hang", on=lambda seen: seen.number > 30))
    code = "import sys; from arhn_datasets import cli; sys.exit(cli.refine_command(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(SAMPLE), "--endpoint", server.url, "--evidence", kind]
    command += ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "store")]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while server.stats.requests < 32 and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.5)  # the store writes in batches
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=30)
    server.set_faults()
    asked = server.stats.requests
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0
    assert server.stats.requests - asked <= REQUESTS[kind] - 25
    assert cli.verify_command([str(tmp_path / "out")]) == 0


def test_another_evidence_starts_an_unfinished_run_anew(server, tmp_path, caplog):
    """The checkpoint is of what was asked for; rows of two kinds are never mixed."""
    out = tmp_path / "out"
    work = running.work_folder(out)
    work.mkdir()
    checkpoint = {"format": running.FORMAT, "key": {"parameters": {"grades": {}}}, "checkpoint": {}}
    (work / running.CHECKPOINT).write_text(json.dumps(checkpoint))
    assert refined(out, "--endpoint", server.url, "--evidence", "verdicts", "--limit", 3) == 0
    assert "is another one (it differs in: " in caplog.text
    assert "positive_grades" not in columns_of(out)


@pytest.mark.parametrize("kind", ["verdicts", "grades"])
def test_shards_are_merged(kind, server, tmp_path):
    """Two shards give the rows of the whole run."""
    given = ["--endpoint", server.url, "--evidence", kind]
    assert refined(tmp_path / "whole", *given) == 0
    for at in (0, 1):
        assert refined(tmp_path / f"part{at}", *given, "--shard-index", at, "--num-shards", 2) == 0
    parts = [str(tmp_path / f"part{at}") for at in (0, 1)]
    assert cli.refine_command(["merge", str(tmp_path / "merged"), *parts]) == 0
    merged, whole = (load_dataset(str(tmp_path / name), split="train") for name in ("merged", "whole"))
    assert list(merged) == list(whole)
    assert cli.verify_command([str(tmp_path / "merged")]) == 0


def test_the_code_of_a_card_over_verdicts_runs(server, tmp_path):
    """Another policy follows from the same verdicts, without a request."""
    out = tmp_path / "out"
    assert refined(out, "--endpoint", server.url, "--evidence", "verdicts", "--limit", 9) == 0
    _, _, code = (out / "README.md").read_text(encoding="utf-8").partition("source = ds.map(arhn.revert)\n")
    names = {"arhn": arhn, "ds": load_dataset(str(out), split="train")}
    exec(code.partition("\n")[0], names)
    assert all(row["decision"]["relabelled"] == 0 for row in names["other"])


def test_scores_of_a_server_are_not_paid_again(tmp_path):
    """A refined folder with the scores of the same model: another rule asks nothing, without a store as well."""
    with ScoreEmulator() as server:
        given = ["--evidence", "scores", "--score-endpoint", server.url, "--cache", "none", "--on-shortage", "keep"]
        assert refined(tmp_path / "first", *given, "--rule", "positive-aware", "--limit", 9) == 0
        asked = server.stats.requests
        assert asked > 0
        again = [*given, "--rule", "ambiguous-sampling", "--num-hard-negatives", 2]
        assert refined(tmp_path / "again", *again, source=tmp_path / "first") == 0
        assert server.stats.requests == asked
    assert run_of(tmp_path / "first")["parameters"]["scores"] == run_of(tmp_path / "again")["parameters"]["scores"]
    assert cli.verify_command([str(tmp_path / "again")]) == 0


@pytest.mark.parametrize("evidence", [["verdicts"], ["grades"], ["verdicts", "grades"]])
def test_rounds_give_the_folder_of_the_live_run(evidence, server, tmp_path):
    """Planned, replied to by a provider, and written: one round, with the labels of the run that asks by itself."""
    kinds = [part for kind in evidence for part in ("--evidence", kind)] + ["--rule", "relabel", "--limit", 9]
    given = [*kinds, "--plan", tmp_path / "plan", "--model", "emulated/lexical"]
    assert refined(tmp_path / "out", *given) == 0
    assert not (tmp_path / "out").exists()
    assert cli.batch_command(["submit", str(tmp_path / "plan"), "--url", server.url]) == 0
    assert cli.batch_command(["collect", str(tmp_path / "plan"), "--wait", "--poll", "0.05"]) == 0
    assert refined(tmp_path / "out", *given) == 0
    assert refined(tmp_path / "live", *kinds, "--endpoint", server.url, "--cache", "none") == 0
    ours, theirs = (load_dataset(str(tmp_path / name), split="train") for name in ("out", "live"))
    assert list(ours) == list(theirs)
    assert cli.verify_command([str(tmp_path / "out")]) == 0
