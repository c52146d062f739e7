"""arhn-cache as a user types it: what is in the store, what goes, and replies that move between machines."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arhn_datasets import cli
from arhn_datasets.annotators.client import store as store_module
from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import APPLICATION_ID, FILE_NAME, Replies
from arhn_datasets.rows.records import digest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DAY = 86_400
KEY, TEXT = "0" * 32, {"text": "a"}


def fill(folder, numbers, model="qwen", revision="r1", text="x" * 300, age=0):
    """Store a reply for each number, so many days ago."""
    new, _ = store_upkeep.add_replies(
        folder,
        [
            store_module.Stored(
                bytes.fromhex(digest(number))[:16],
                store_module.Origin(model, revision, "chat") if model else None,
                int(time.time() - age * DAY),
                json.dumps({"text": f"{number} {text}"}),
            )
            for number in numbers
        ],
    )
    return new


def cache(folder, *arguments):
    """The exit code of arhn-cache on a folder."""
    action, *others = map(str, arguments)
    return cli.cache_command([action, "--cache", str(folder), *others])


def content(folder):
    """Every reply of a store."""
    return {stored.key: stored for stored in store_upkeep.read_replies(folder)}


def test_info(tmp_path, capsys):
    """Path, size, replies, and for each model how many, how large, and from when to when."""
    fill(tmp_path, range(30), age=2)
    fill(tmp_path, range(100, 110), revision="r2")
    fill(tmp_path, [200], model=None)
    assert cache(tmp_path, "info") == 0
    out = capsys.readouterr().out
    assert str(tmp_path / FILE_NAME) in out
    assert "replies  41" in out
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[3:]]
    assert [(line[0], line[-1]) for line in lines] == [
        ("30", "qwen@r1"),
        ("10", "qwen@r2"),
        ("1", "model not recorded"),
    ]
    assert lines[0][2].startswith(time.strftime("%Y-%m-%d", time.localtime(time.time() - 2 * DAY)))


def test_info_of_a_store_in_use(tmp_path, capsys):
    """A run may go on meanwhile."""
    store = Replies(tmp_path)
    store.put(digest(1), TEXT, model="m")
    store.flush()
    assert cache(tmp_path, "info") == 0
    assert re.search(r"\n +1 .* m\n", capsys.readouterr().out)
    store.put(digest(2), TEXT)
    assert len(store) == 2


def test_info_without_a_store_makes_none(tmp_path, capsys, monkeypatch):
    """Before the first run there is nothing to tell, also at the default place."""
    monkeypatch.setenv("ARHN_CACHE", str(tmp_path / "none yet"))
    assert cli.cache_command(["info"]) == 0
    assert "none yet: there is no such file" in capsys.readouterr().out
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "left", "gone"),
    [
        (["--older-than", "5"], {"qwen@r1", "llama@r1"}, 20),
        (["--model", "qwen"], {"llama@r1"}, 40),
        (["--model", "qwen@r2"], {"qwen@r1", "llama@r1"}, 20),
        (["--model", "qwen", "--older-than", "5"], {"qwen@r1", "llama@r1"}, 20),
        (["--model", "llama", "--older-than", "5"], {"qwen@r1", "qwen@r2", "llama@r1"}, 0),
        (["--older-than", "0.5"], {"llama@r1"}, 40),
        (["--max-size", "0"], set(), 60),
        (["--max-size", "100"], {"qwen@r1", "qwen@r2", "llama@r1"}, 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_prune(tmp_path, capsys, arguments, left, gone):
    """A dry run and the real one name the same, and only that goes."""
    fill(tmp_path, range(20), age=1)
    fill(tmp_path, range(20, 40), revision="r2", age=10)
    fill(tmp_path, range(40, 60), model="llama")
    assert cache(tmp_path, "prune", "--dry-run", *arguments) == 0
    dry = capsys.readouterr().out.splitlines()
    assert len(content(tmp_path)) == 60
    assert cache(tmp_path, "prune", *arguments) == 0
    done = capsys.readouterr().out.splitlines()
    assert dry[0] == f"would remove  {gone} replies"
    assert done[0] == f"removed  {gone} replies"
    assert dry[1:] == done[1:-1]
    assert {"@".join(stored.origin[:2]) for stored in content(tmp_path).values()} == left
    assert len(content(tmp_path)) == 60 - gone


def test_prune_shrinks_the_file_to_a_size(tmp_path, capsys):
    """The oldest go, no more than needed, and the file is as small as was asked for."""
    for day in range(10):
        fill(tmp_path, range(day * 500, day * 500 + 500), age=day)
    before = store_upkeep.store_size(tmp_path)
    assert cache(tmp_path, "prune", "--max-size", "1") == 0
    after = store_upkeep.store_size(tmp_path)
    assert before > 2_000_000
    assert 850_000 < after <= 1_000_000
    assert f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now" in capsys.readouterr().out
    left, days = content(tmp_path), len(content(tmp_path)) // 500
    assert days >= 3
    assert all(bytes.fromhex(digest(number))[:16] in left for number in range(days * 500))
    assert not any(bytes.fromhex(digest(number))[:16] in left for number in range(days * 500 + 500, 5000))


def test_prune_while_a_run_goes_on(tmp_path, capsys):
    """Both go on; where another process reads the file, it is said that it did not shrink."""
    fill(tmp_path, range(2000))
    store = Replies(tmp_path)
    reader = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM replies")
    seconds_before = store_module.BUSY_SECONDS
    store_module.BUSY_SECONDS = 0.2
    try:
        assert cache(tmp_path, "prune", "--max-size", "0.1") == 0
    finally:
        store_module.BUSY_SECONDS = seconds_before
        reader.close()
    assert "did not shrink" in capsys.readouterr().err
    store.put(digest("new"), TEXT)
    assert store.flush()
    assert store.get(digest("new")) == TEXT
    asyncio.run(store.close())
    assert cache(tmp_path, "prune", "--max-size", "0.1") == 0
    assert store_upkeep.store_size(tmp_path) <= 100_000


def test_export_and_import(tmp_path, capsys):
    """A line for each reply; another store takes what it does not have, and a run finds it."""
    fill(tmp_path / "a", range(200))
    fill(tmp_path / "a", [200], model=None, text="\u2028 日本語")
    fill(tmp_path / "b", range(190, 200), model="mine")
    file, before = tmp_path / "replies.jsonl", content(tmp_path / "b")
    assert cache(tmp_path / "a", "export", file) == 0
    assert f"exported 201 replies to {file}" in capsys.readouterr().out
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert len(entries) == 201
    assert set(entries[0]) == {"key", "model", "revision", "kind", "stored", "reply"}
    assert (entries[0]["model"], entries[0]["revision"], entries[200]["model"]) == ("qwen", "r1", None)
    for added in (191, 0):
        assert cache(tmp_path / "b", "import", file) == 0
        assert f"added    {added} of 201 replies" in capsys.readouterr().out
    ours = {**content(tmp_path / "a"), **before}
    assert content(tmp_path / "b") == ours
    assert Replies(tmp_path / "b").get(digest(7)) == {"text": f"7 {'x' * 300}"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "replies.jsonl"]


def test_merge(tmp_path, capsys):
    """Stores of several machines become one; a new one may be made of them."""
    for number, name in enumerate("abc"):
        fill(tmp_path / name, range(number * 50, number * 50 + 100), model=name)
    assert cache(tmp_path / "all", "merge", *(tmp_path / name for name in "abc")) == 0
    out = capsys.readouterr().out
    assert re.findall(r"added    (\d+) of (\d+)", out) == [("100", "100"), ("50", "100"), ("50", "100")]
    assert len(content(tmp_path / "all")) == 200
    assert len(content(tmp_path / "a")) == 100
    assert cache(tmp_path / "a", "merge", tmp_path / "a") == 2
    assert "is the store that replies would go to" in capsys.readouterr().err
    assert cache(tmp_path / "new", "merge", tmp_path / "nowhere") == 2
    assert "There is no store of replies" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("no json", "Expecting value"),
        ("[1]", "found list"),
        ("{}", "its key is 'None'"),
        ({"key": "xyz"}, "its key is 'xyz'"),
        ({"key": KEY[:30]}, "its key is '0000"),
        ({"key": 5}, "its key is '5'"),
        ({"reply": None}, "its reply has no text"),
        ({"reply": {"text": " "}}, "its reply has no text"),
        ({"reply": {"text": 3}}, "its reply has no text"),
        ({"stored": "now"}, "stored is 'now'"),
        ({"stored": True}, "stored is 'True'"),
        ({"stored": 10**15}, "stored is '1000"),
        ({"model": 3}, "model, revision or kind is no text"),
        ({"kind": None}, "model, revision or kind is no text"),
        (b'{"key": "\xff"}', "can't decode byte"),
        ("[" * 100_000, "recursion"),
        (f'{{"stored": {"1" * 5000}}}', "(digits|stored is)"),
    ],
    ids=range(17),
)
def test_a_line_that_is_no_reply_is_named(tmp_path, capsys, line, found):
    """The lines before it are taken, and after a repair the command goes on."""
    good = {"key": KEY, "model": "m", "revision": None, "stored": 5, "reply": TEXT}
    if isinstance(line, dict):
        line = json.dumps({**good, **line})
    file = tmp_path / "replies.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(json.dumps(good).encode() + b"\n\n" + bad + b"\n" + json.dumps(good).encode())
    assert cache(tmp_path / "store", "import", file) == 2
    error = capsys.readouterr().err
    assert re.search(rf"error: Line 3 of .*replies.jsonl is no stored reply \(.*{found}", error, re.DOTALL)
    assert "The 1 replies before it were taken" in error
    assert "Traceback" not in error
    assert len(content(tmp_path / "store")) == 1


def test_a_model_that_sqlite_cannot_hold_is_taken(tmp_path):
    """Half of a surrogate pair in a name ends nothing."""
    file = tmp_path / "replies.jsonl"
    file.write_text(json.dumps({"key": KEY, "model": "\ud800", "stored": 5, "reply": {"text": "\ud800"}}))
    assert cache(tmp_path, "import", file) == 0
    assert Replies(tmp_path).get(KEY) == {"text": "\ud800"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "Nothing was named to go"),
        (["prune", "--model", "gpt"], r"No reply of the model 'gpt'.*qwen@r1"),
        (["info", "--cache", "none"], "No store of replies is in use"),
        (["info", "--cache", "there.jsonl"], "there.jsonl is a file.*folder"),
        (["export", "there.jsonl"], "There is a file there.jsonl already"),
        (["export", "nowhere/replies.jsonl"], "nowhere/replies.jsonl cannot be written"),
        (["export", "replies.jsonl", "--cache", "empty"], "There is no store of replies in empty"),
        (["prune", "--max-size", "1", "--cache", "empty"], "There is no store of replies in empty"),
        (["import", "nothing.jsonl"], "nothing.jsonl cannot be read"),
        (["import", "."], "cannot be read"),
        (["import", "there.jsonl"], "Line 1 of there.jsonl is no stored reply"),
        (["import", "good.jsonl", "--cache", "there.jsonl"], "cannot be made in there.jsonl"),
        (["info", "--cache", "foreign"], "it is an sqlite file of another program"),
        (["export", "replies.jsonl", "--cache", "text"], "file is not a database"),
        (["prune", "--max-size", "1", "--cache", "damaged"], "malformed"),
        (["merge", "damaged"], "malformed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said_without_a_traceback(tmp_path, capsys, monkeypatch, arguments, message):
    """One message with what was found and what to do next; 2 for wrong usage, 1 for a store or a disk that fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARHN_CACHE", str(tmp_path / "store"))
    fill(Path("store"), range(10))
    fill(Path("damaged"), range(1000))
    with open(Path("damaged", FILE_NAME), "r+b") as file:
        file.seek(4096 * 4)
        file.write(b"\xff" * 4096 * 20)
    for name in ("text", "foreign"):
        Path(name).mkdir()
    Path("text", FILE_NAME).write_text("my notes\n" * 100)
    connection = sqlite3.connect(Path("foreign", FILE_NAME))
    connection.execute("CREATE TABLE replies (k, v)")
    connection.close()
    Path("there.jsonl").write_text("mine")
    Path("good.jsonl").write_text(json.dumps({"key": KEY, "stored": 5, "reply": TEXT}))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code = cli.cache_command(arguments)
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("error: ")
    failed = ("another program", "not a database", "malformed", "cannot be written", "cannot be made", "already")
    assert code == (1 if any(words in message for words in failed) else 2)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["shrink"],
        ["prune", "--older-than", "-1"],
        ["prune", "--max-size", "big"],
        ["prune", "--max", "1"],
        ["merge"],
    ],
    ids=" ".join,
)
def test_arguments_that_argparse_refuses_exit_with_2(arguments, capsys):
    """Also what the parser itself refuses is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        cli.cache_command(arguments)
    assert ended.value.code == 2
    assert "usage: arhn-cache" in capsys.readouterr().err


def test_an_interrupted_export_leaves_no_file(tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle: exit code 1, no half file, and handlers of signals as they were."""
    fill(tmp_path / "store", range(10))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(store_upkeep, "reply_of", interrupt)
    assert cache(tmp_path / "store", "export", tmp_path / "replies.jsonl") == 1
    assert "Interrupted. The store is whole" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["store"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_in_a_thread(tmp_path, capsys):
    """Signals belong to the main thread; elsewhere a command runs without them."""
    import threading

    codes = []
    thread = threading.Thread(target=lambda: codes.append(cache(tmp_path, "info")))
    thread.start()
    thread.join(60)
    assert codes == [0]


def test_the_command_starts_fast_and_light():
    """--help and --version need no dataset library, and the script entry names a function that is there."""
    code = "import sys; from arhn_datasets.cli import cache_command; cache_command(sys.argv[1:])"
    for flag in ("--help", "--version"):
        command = [sys.executable, "-c", code, flag]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
        assert "arhn-cache" in done.stdout
    assert 'arhn-cache = "arhn_datasets.cli:cache_command"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_action_and_flag_is_documented():
    """The README names them."""
    [actions] = [action for action in cli.cache_parser()._actions if action.dest == "action"]
    for name, parser in actions.choices.items():
        assert f"`{name}" in README
        for action in parser._actions:
            for flag in action.option_strings:
                assert flag in ("-h", "--help") or flag in README


def test_a_store_of_the_first_format_is_read(tmp_path, capsys):
    """Also by arhn-cache alone, before any run."""
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE replies (k BLOB PRIMARY KEY, v TEXT NOT NULL)")
    connection.execute("INSERT INTO replies VALUES (?, ?)", (bytes(16), '{"text": "old"}'))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    assert cache(tmp_path, "info") == 0
    assert "model not recorded" in capsys.readouterr().out
