"""Whatever a server does wrong: a whole pipeline keeps every row, invents no label, and ends as without the fault."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
from aiohttp import web
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets import errors
from arhn_datasets.annotators.client import limits, outlook
from arhn_datasets.annotators.client.store import FILE_NAME
from arhn_datasets.rows import background
from arhn_datasets.rows.records import (
    ERROR,
    GROUNDED,
    NEGATIVE,
    POSITIVE,
    RANKING,
    RANKING_STATUSES,
    SNIPPET_STATUSES,
    UNGROUNDED,
    UNPARSED,
)
from arhn_datasets.testing import Emulator, Fault, Latency

ROWS = 8
WORK = Latency(overhead=0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "PROBE_SECONDS_MAX", 0.2)
    monkeypatch.setattr(limits, "RECOVERY_SECONDS", 0.05)


@pytest.fixture(scope="module")
def rows(sample):
    """A few rows of the sample."""
    return sample[:ROWS]


def pipeline(rows, *urls, **options):
    """Snippets, ranks and labels, all requests of all rows at once; the evidence, and the labels."""
    patience = {"cache": "none", "backoff": 0.005, "deadline": 30, "timeout": 20, "give_up_after": 20}
    annotator = arhn.Endpoint(urls, **{**patience, **options})
    found = Dataset.from_list(rows)
    for stage in (arhn.Snippets(annotator=annotator), arhn.Ranks(annotator=annotator)):
        found = found.map(stage, batched=True, batch_size=len(rows))
    return found.to_list(), found.map(arhn.Relabel()).to_list()


@pytest.fixture(scope="module")
def clean(rows):
    """What a run without any fault gives, and how many requests it takes."""
    with Emulator() as server:
        evidence, labels = pipeline(rows, server.url)
        requests = server.stats.requests
    background.close()
    assert {NEGATIVE.passages, RANKING} <= labels[0].keys()
    assert labels != rows
    assert not failed(evidence)
    return evidence, labels, requests


def snippets(row):
    """All snippet values of a row."""
    return [*row[POSITIVE.snippets], *row[NEGATIVE.snippets]]


def failed(evidence):
    """How many statuses are errors; all have to be known ones."""
    given = [value["status"] for row in evidence for value in snippets(row)]
    ranked = [row[RANKING]["status"] for row in evidence if row[RANKING] is not None]
    assert set(given) <= set(SNIPPET_STATUSES)
    assert set(ranked) <= set(RANKING_STATUSES)
    return [*given, *ranked].count(ERROR)


def docids(row, name):
    """Who is in a list of passages."""
    return {passage["docid"] for passage in row[name]}


def invents_nothing(found, clean):
    """All rows are there, none has a positive that the fault-free run has not, and errors moved nothing."""
    evidence, labels = found
    assert [row["query_id"] for row in labels] == [row["query_id"] for row in clean[1]]
    for row, good in zip(labels, clean[1], strict=True):
        assert docids(row, POSITIVE.passages) <= docids(good, POSITIVE.passages)
    for row in evidence:
        for value in snippets(row):
            assert (value["snippet"] is not None) == (value["status"] == GROUNDED)


def dead_url():
    """Where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


# -- what passes ------------------------------------------------------------------------------------------------------


def survives(rows, clean, *faults, server=None, **options):
    """Run with faults that pass: the result is that of the fault-free run; the server's counts."""
    with Emulator(**{"latency": WORK, "faults": faults, **(server or {})}) as running:
        found = pipeline(rows, running.url, **options)
        stats = running.stats
    assert found == clean[:2]
    assert all(stats.faults.get(fault.kind) for fault in faults)
    return stats


def test_429_storm(rows, clean):
    """The server takes 8 requests, the client believes in 128."""
    stats = survives(rows, clean, server={"max_concurrent_requests": 8, "slots": 8}, concurrency=128)
    assert stats.by_status["429"] > 20
    assert stats.peak_in_flight == 8


def test_429_with_retry_after(rows, clean):
    """A proxy says how long to wait."""
    survives(rows, clean, Fault(kind="429", on=range(3, 6), retry_after=0.2))


def test_424_for_a_batch(rows, clean):
    """One request's failure takes everybody in the batch with it."""
    stats = survives(rows, clean, Fault(kind="424_batch", on=[10, 60]), server={"slots": 16})
    assert stats.by_status["424"] > 2


def test_500s(rows, clean):
    """Incomplete generations."""
    survives(rows, clean, Fault(kind="500", on=range(1, 100, 3)))


@pytest.mark.parametrize("kind", ["502", "503", "504"])
def test_a_gateway_without_a_server(rows, clean, kind):
    """Twenty pages in a row; nothing is lost, and no page is a reply."""
    survives(rows, clean, Fault(kind=kind, on=range(5, 25)), attempts=2)


@pytest.mark.parametrize("kind", ["reset_before", "reset_middle", "reset_after"])
def test_connection_reset(rows, clean, kind):
    """Before, in the middle of and after the reply."""
    survives(rows, clean, Fault(kind=kind, on=range(2, 40, 7)))


def test_connection_reset_behind_the_reply(rows, clean):
    """The pooled connection is dead when it is used again."""
    survives(rows, clean, Fault(kind="reset_after", on=range(1, 40, 5), late=True), concurrency=4)


def test_hang(rows, clean):
    """No reply for ever: the attempt ends, and another one succeeds."""
    survives(rows, clean, Fault(kind="hang", on=[2, 5, 9]), timeout=0.5)


@pytest.mark.parametrize("kind", ["truncated_json", "empty_text", "html_200"])
def test_a_200_without_a_reply(rows, clean, kind):
    """Half a JSON, no text, or the page of a proxy: asked again once."""
    survives(rows, clean, Fault(kind=kind, on=range(1, 8, 2)))  # no second attempt comes that early


def test_wrong_content_type(rows, clean):
    """A good reply is a good reply."""
    stats = survives(rows, clean, Fault(kind="wrong_content_type"))
    assert stats.requests == clean[2]


def test_info_missing(rows, clean):
    """The server is spoken to as any chat server, with the same result."""
    with Emulator(faults=[Fault(kind="info_missing")]) as server:
        assert pipeline(rows, server.url) == clean[:2]


@pytest.mark.parametrize("seconds", [1.0, 10.0])
def test_a_server_restarted_in_the_middle(rows, clean, seconds):
    """Seconds away; what was in flight is asked again."""
    survives(rows, clean, Fault(kind="restart", on=20, seconds=seconds), concurrency=8)


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_one_of_two_replicas_dead(rows, clean, when):
    """The other one does the work."""
    away = [Fault(kind="restart", on=10, seconds=60)] if when == "in the middle" else []
    with Emulator(latency=WORK) as living, Emulator(latency=WORK, faults=away) as dying:
        second = dying.url if away else dead_url()
        assert pipeline(rows, living.url, second, concurrency=8) == clean[:2]
        lost = living.stats.served + dying.stats.served - clean[2]  # replies that were sent into broken connections
        assert 0 <= lost <= (8 if away else 0)
        assert (dying.stats.served > 0) == bool(away)


def test_everything_at_once(rows, clean):
    """A bad day, with the same result."""
    kinds = ("429", "500", "503", "reset_before", "reset_middle", "truncated_json")
    faults = [Fault(kind=kind, probability=0.06, seed=number) for number, kind in enumerate(kinds)]
    with Emulator(latency=WORK, faults=faults, max_concurrent_requests=16) as server:
        found = pipeline(rows, server.url, concurrency=64, attempts=12)
    invents_nothing(found, clean)
    if not failed(found[0]):  # two unreadable replies in a row are an error
        assert found == clean[:2]


# -- what does not pass by itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "detail"), [("text_422", "RequestRejected: 422: Failed to deserialize"), ("413", "")])
def test_refused_requests(rows, clean, tmp_path, kind, detail):
    """422 as text/plain costs one passage its evidence, 413 its end; a rerun asks for these alone and heals them."""
    with Emulator(latency=WORK, faults=[Fault(kind=kind, on=[3, 11])]) as server:
        found = pipeline(rows, server.url, cache=tmp_path)
        invents_nothing(found, clean)
        told = [value for row in found[0] for value in snippets(row) if value["detail"]]
        if kind == "text_422":
            assert failed(found[0]) >= 2
            assert all(value["status"] != ERROR or value["detail"].startswith(detail) for value in told)
        else:
            assert not failed(found[0])
            assert sum("of the passage was read" in value["detail"] for value in told) == 2
        before = server.stats.requests
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        assert 0 < server.stats.requests - before < 8


def test_401_ends_at_once(rows, monkeypatch):
    """And says which variable to set; the key that was tried is not shown."""
    monkeypatch.setenv("ARHN_API_KEY", "wrong-key-12")
    with Emulator(api_key="right-key-12", latency=WORK) as server:
        with pytest.raises(errors.AccessDenied, match="ARHN_API_KEY") as caught:
            pipeline(rows, server.url, concurrency=4)
        assert not server.stats.served
    assert "key-12" not in str(caught.value)


def test_401_in_the_middle_keeps_the_replies(rows, clean, tmp_path):
    """A key that runs out ends the run; with the new one it goes on from there."""
    with Emulator(latency=WORK, faults=[Fault(kind="401", on=range(5, 1000))]) as server:
        with pytest.raises(errors.AccessDenied):
            pipeline(rows, server.url, cache=tmp_path, concurrency=4)
        background.close()
        server.set_faults()
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        assert server.stats.served <= clean[2] + 4


def test_one_percent_garbage(sample):
    """It is no snippet and no ranking: its status says so, and only those rows differ."""
    with Emulator() as server:
        clean = pipeline(sample, server.url)
    background.close()
    with Emulator(latency=WORK, faults=[Fault(kind="garbage", probability=0.01, seed=3)]) as server:
        found = pipeline(sample, server.url)
        count = server.stats.faults["garbage"]
    invents_nothing(found, clean)
    wrong = 0
    for row, good in zip(found[0], clean[0], strict=True):
        changed = [value for value, meant in zip(snippets(row), snippets(good), strict=True) if value != meant]
        assert {value["status"] for value in changed} <= {UNGROUNDED, UNPARSED}
        wrong += len(changed)
        if not changed and row != good:
            assert row[RANKING]["status"] not in (good[RANKING]["status"], ERROR)
            wrong += 1
    assert 0 < wrong <= count


def test_servers_that_stay_away_end_the_run_and_keep_the_replies(rows, clean, tmp_path):
    """Nobody answers any more: an error that says how to go on, and the next run does."""
    with Emulator(latency=WORK, faults=[Fault(kind="restart", on=30, seconds=1.2)]) as server:
        with pytest.raises(errors.EndpointsDead, match="same command"):
            pipeline(rows, server.url, cache=tmp_path, concurrency=4, give_up_after=0.4)
        background.close()
        time.sleep(1.0)
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        assert server.stats.served <= clean[2] + 4


def test_the_model_changed_between_runs(rows, clean, tmp_path):
    """Nothing of the other model's replies is served; back at the first model nothing is asked again."""
    with Emulator() as server:
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        server.model, server.revision, model = "another/model", "ffff", (server.model, server.revision)
        background.close()
        server.reset_stats()
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        assert server.stats.requests == clean[2]
        server.model, server.revision = model
        background.close()
        server.reset_stats()
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
        assert server.stats.requests == 0


def test_the_model_changed_while_the_server_was_away(rows, tmp_path):
    """The run ends rather than mixing two models."""
    faults = [Fault(kind="restart", on=20, seconds=0.3)]
    with Emulator(latency=WORK, faults=faults) as server:

        def change(seen):
            if seen.number == 20:
                server.model = "another/model"
            return False

        server.set_faults(Fault(kind="slow", on=change), *faults)
        with pytest.raises(errors.ConfigurationError, match="serves another/model@.* now, and the run began with"):
            pipeline(rows, server.url, cache=tmp_path, concurrency=8)


# -- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["database or disk is full", "attempt to write a readonly database"])
def test_a_store_that_cannot_be_written(rows, clean, tmp_path, monkeypatch, caplog, said):
    """A full disk or a read-only folder: it is said once, and the run goes on without."""

    def refuse(*_):
        raise sqlite3.OperationalError(said)

    monkeypatch.setattr("arhn_datasets.annotators.client.store.insert", refuse)
    with Emulator(latency=WORK) as server:
        assert pipeline(rows, server.url, cache=tmp_path) == clean[:2]
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1


# -- the client's own end ---------------------------------------------------------------------------------------------


def away(seconds, status=424, health=503):
    """An intercept: after some chats every one fails for so many seconds; with how many failed."""
    count = {"chats": 0, "failed": 0}
    begun = []

    def intercept(request):
        if not begun and count["chats"] >= 10:
            begun.append(time.monotonic())
        gone = bool(begun) and time.monotonic() - begun[0] < seconds
        if request.path == "/health":
            return web.json_response({"error": "unhealthy"}, status=health) if gone else None
        if request.path != "/v1/chat/completions":
            return None
        count["failed" if gone else "chats"] += 1
        return web.json_response({"error": "Request failed: the GPU is gone"}, status=status) if gone else None

    return intercept, count


@pytest.mark.parametrize(("status", "health"), [(424, 503), (500, 200), (200, 404)])
def test_a_server_whose_every_request_fails_is_waited_for(rows, clean, status, health):
    """Whatever its status code, and whatever its health route says: nothing is lost, and little is asked in vain."""
    intercept, count = away(1.0, status, health)
    with Emulator(intercept=intercept) as server:
        evidence, labels = pipeline(rows, server.url, concurrency=4, attempts=4)
    assert not failed(evidence)
    assert labels == clean[1]
    assert 0 < count["failed"] < 60


@pytest.mark.parametrize("status", [424, 429])
def test_a_server_whose_every_request_fails_for_good_ends_the_run_in_its_words(rows, status):
    """After ``give_up_after``, and not one request after the other."""
    intercept, _ = away(600, status)
    with Emulator(intercept=intercept) as server, pytest.raises(errors.EndpointsDead, match="the GPU is gone"):
        pipeline(rows, server.url, concurrency=4, give_up_after=1)


def test_requests_that_always_fail_are_their_own_errors(rows):
    """A server that answers what it has answered before is there, so that whatever fails to the end is recorded."""
    poison = rows[0]["negative_passages"][0]["text"][:40]

    def intercept(request):
        bad = request.path == "/v1/chat/completions" and poison in json.dumps(request.body, ensure_ascii=False)
        return web.json_response({"error": "assert triggered"}, status=500) if bad else None

    with Emulator(intercept=intercept) as server:
        evidence, _ = pipeline(rows, server.url, concurrency=2)
    assert 0 < failed(evidence) <= 3


REFINE = "import sys; from arhn_datasets.cli import refine_command; sys.exit(refine_command(sys.argv[1:]))"


@pytest.fixture
def refine(rows, tmp_path):
    """Start arhn-refine on the rows, in a process of its own, on one store."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = []

    def start(server, output="out", **environment):
        arguments = [tmp_path / "rows.jsonl", "--output", tmp_path / output, "--endpoint", server.url]
        process = subprocess.Popen(
            [sys.executable, "-c", REFINE, *map(str, arguments), "--cache", str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def refined(folder):
    """The labels in a folder that arhn-refine has written."""
    from datasets import load_dataset

    return load_dataset(str(folder), split="train").to_list()


def until(condition, seconds=30):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


SLOTS = 4


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "SIGTERM", "kill -9"])
def test_ended_in_the_middle_and_run_again(rows, clean, tmp_path, refine, end):
    """It ends soon; the rerun pays at most for what was in flight, and ends as if nothing had been."""
    options = {"max_concurrent_requests": SLOTS + 1, "slots": SLOTS, "latency": Latency(overhead=0.05)}
    with Emulator(**options) as server:
        running = refine(server)
        until(lambda: server.stats.served >= clean[2] // 3)
        server.latency = Latency(overhead=60)  # so that a busy machine does not come to the end before the signal
        running.send_signal(end)
        _, said = running.communicate(timeout=30)
        assert running.returncode != 0
        if end != signal.SIGKILL:
            assert "Traceback" not in said
            assert re.search("run|same command", said)
        assert server.stats.served < clean[2]
        assert not (tmp_path / "out").exists()
        time.sleep(0.1)
        server.latency = options["latency"]
        again = refine(server)
        out, said = again.communicate(timeout=60)
        assert again.returncode == 0, said
        # The store writes within a twentieth of a second: what came in then may be lost with what was in flight.
        assert server.stats.served <= clean[2] + (4 * SLOTS if end == signal.SIGKILL else SLOTS)
        stats = server.stats
    assert stats.by_status.get("429", 0) <= 2 * SLOTS
    assert [docids(row, POSITIVE.passages) for row in refined(tmp_path / "out")] == kept(clean)


def kept(clean):
    """The positives of the rows that are not dropped."""
    return [docids(row, POSITIVE.passages) for row in clean[1] if row["decision"]["status"] != "dropped"]


def test_two_runs_share_one_store(rows, clean, tmp_path, refine):
    """At the same time: both end well, the store is whole, and a third run asks nothing."""
    with Emulator(latency=WORK) as server:
        both = [refine(server, output) for output in ("one", "two")]
        for process in both:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
        assert clean[2] <= server.stats.served <= 2 * clean[2]
        server.reset_stats()
        third = refine(server, "three")
        third.communicate(timeout=60)
        assert third.returncode == 0
        assert server.stats.requests == 0
    labels = [refined(tmp_path / output) for output in ("one", "two", "three")]
    assert labels[0] == labels[1] == labels[2]
    with sqlite3.connect(tmp_path / "store" / FILE_NAME) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


def test_what_is_left_of_a_failed_map_asks_no_more(sample, monkeypatch):
    """The error of one row ends the requests of the others, and a map with a sound server waits for none of them."""
    monkeypatch.setattr(outlook, "HELD_SECONDS", 0.2)
    hanging = [Fault(kind="hang", on=range(1, 5)), Fault(kind="401", on=range(5, 1000))]
    given = Dataset.from_list(sample)
    with Emulator(max_concurrent_requests=16, faults=hanging) as broken, Emulator() as sound:
        with pytest.raises(errors.AccessDenied):
            given.map(arhn.Snippets(endpoint=broken.url, cache="none", timeout=600), batched=True)
        until = time.monotonic() + 20
        while broken.stats.in_flight and time.monotonic() < until:
            time.sleep(0.02)
        assert broken.stats.in_flight == 0
        asked = broken.stats.requests
        found = given.map(arhn.Snippets(endpoint=sound.url, cache="none"), batched=True)
        assert broken.stats.requests == asked < len(sample)
    assert ERROR not in {one["status"] for row in found for one in row[NEGATIVE.snippets]}
