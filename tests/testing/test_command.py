"""The emulator in a process of its own, and its command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import Emulator, EmulatorProcess, Fault, Latency, tgi
from arhn_datasets.testing.process import config_json, emulator_of
from arhn_datasets.testing.tgi import configured, parser
from tests.testing.test_contract import CHAT, HELLO, ask

COMMAND = [sys.executable, "-m", "arhn_datasets.testing.tgi"]


def options(*arguments):
    """The emulator that these arguments describe."""
    given = vars(parser().parse_args(arguments))
    given.pop("until_eof")
    return configured(given)


def test_another_process_serves_and_is_driven():
    """Faults and counters cross the processes; a line of counts comes at the end."""
    with EmulatorProcess(reply="fine", slots=3, faults=[Fault(kind="500", on=1)]) as server:
        assert [ask(server, CHAT, HELLO)[0] for _ in range(2)] == [500, 200]
        stats = server.stats
        assert (stats.requests, stats.slots, stats.by_status) == (2, 3, {"500": 1, "200": 1})
        server.set_faults(Fault(kind="429"))
        assert ask(server, CHAT, HELLO)[0] == 429
        server.set_faults()
        server.add_fault(Fault(kind="502"))
        assert ask(server, CHAT, HELLO)[0] == 502
        server.reset_stats()
        assert server.stats.requests == 0
        pid = server.pid
    assert re.fullmatch(r"0 requests \(none\), 0 repeated, .* utilisation 0\.000", server.summary)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_cannot_start_says_so():
    """With the options it was given."""
    with Emulator(reply="x") as taken, pytest.raises(ConfigurationError, match="did not start"):
        EmulatorProcess(port=taken.port).__enter__()
    with pytest.raises(ConfigurationError, match="no option slot"):
        EmulatorProcess(slot=1)
    with pytest.raises(ConfigurationError, match="Only a text"):
        EmulatorProcess(reply=str.upper)
    with pytest.raises(ConfigurationError, match="no intercept"):
        EmulatorProcess(intercept=print)


def test_options_cross_the_processes_unchanged():
    """Latency and faults included."""
    given = {"slots": 4, "latency": Latency(decode=0.1, seed=3), "faults": [Fault(kind="hang", on=range(2, 5))]}
    made = emulator_of(json.loads(config_json(given)))
    assert (made.slots, made.latency) == (4, given["latency"])
    assert list(made.script) == given["faults"]
    with pytest.raises(ConfigurationError, match="describes no emulator"):
        emulator_of({"colour": "red"})


def test_the_command_prints_its_url_and_a_summary():
    """Two lines, and exit code 0 on SIGTERM."""
    process = subprocess.Popen([*COMMAND, "--port", "0", "--api-key", "k"], stdout=subprocess.PIPE, text=True)
    with process:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert len(rest) == 1
    assert rest[0].startswith("0 requests")


def test_the_command_serves_until_a_signal(monkeypatch):
    """The same in this process: the URL, then the counts, exit code 0."""
    said = []

    def say(line):
        said.append(line)
        if len(said) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tgi, "_say", say)
    before = signal.getsignal(signal.SIGTERM)  # coverage has one of its own
    try:
        assert tgi.main(["--port", "0"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said[0].startswith("http://127.0.0.1:")
    assert said[1].startswith("0 requests")


@pytest.mark.parametrize(
    "arguments",
    [("--slots", "0"), ("--fault", "none"), ("--port", "x"), ("--colour",), ("--tail", "2"), ("--config", "{")],
)
def test_errors_of_usage_exit_with_2(arguments, capsys):
    """And say what is wrong."""
    with pytest.raises(SystemExit) as caught:
        tgi.main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_arguments_become_options():
    """Each flag its field; what is not given is as the emulator has it."""
    made = options(
        *("--slots", "4", "--thinking", "--no-grammar", "--no-chat-template", "--no-system-role", "--decode", "0.5"),
        *("--fault", "500:2-3", "--fault", "garbage:0.01", "--latency", "0.1", "--reply", "x", "--model", "a/b"),
    )
    assert (made.slots, made.thinking, made.grammars, made.chat_template, made.system_role) == (
        4,
        64,
        False,
        False,
        False,
    )
    assert made.latency == Latency(decode=0.5, overhead=0.1)
    assert [fault.kind for fault in made.script] == ["500", "garbage"]
    assert (made.reply, made.model, made.port) == ("x", "a/b", 8080)
    assert options("--port", "0").max_total_tokens == Emulator().max_total_tokens


def test_importing_the_package_stays_light():
    """The emulator's server library is imported with arhn_datasets.testing, not with arhn_datasets."""
    code = (
        "import sys, arhn_datasets; assert 'aiohttp' not in sys.modules and 'arhn_datasets.testing' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
