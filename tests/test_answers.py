"""The store of replies: what goes in comes out, in any process, and a foreign file is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arhn_datasets import answers
from arhn_datasets.answers import APPLICATION_ID, FILE_NAME, FORMAT, Answers, default_directory, directory_of
from arhn_datasets.errors import StoreError
from arhn_datasets.records import digest

KEYS = [digest(number) for number in range(200)]


def in_a_fork(function):
    """The exit status of a forked child that calls ``function``."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "It melts at 232 °C.", "finish_reason": "stop", "prompt_tokens": 10, "completion_tokens": None},
        {"text": "日本語 😀 \u202e \x00 \n"},
        {"text": "\ud83d"},
        {"text": "x" * 1_000_000},
        {},
    ],
    ids=["plain", "unicode", "surrogate", "long", "empty"],
)
def test_what_goes_in_comes_out(tmp_path, reply):
    """Any JSON value, under its own key alone, also after the file was closed and from a second store."""
    store = Answers(tmp_path / "new" / "folder")
    assert store.get(KEYS[0]) is None
    store.put(KEYS[0], reply)
    assert store.get(KEYS[0]) == reply
    assert store.get(KEYS[1]) is None
    asyncio.run(store.close())
    asyncio.run(store.close())
    assert store.get(KEYS[0]) == Answers(tmp_path / "new" / "folder").get(KEYS[0]) == reply


def test_the_last_reply_counts(tmp_path):
    """A key holds one reply."""
    store = Answers(tmp_path)
    for text in "ab":
        store.put(KEYS[0], {"text": text})
    assert (len(store), store.get(KEYS[0])) == (1, {"text": "b"})


def test_the_file(tmp_path):
    """WAL, marked as ours, with the format's number; killed writers lose nothing."""
    Answers(tmp_path).put(KEYS[0], {})
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert [*found, connection.execute("PRAGMA journal_mode").fetchone()[0]] == [APPLICATION_ID, FORMAT, "wal"]
    connection.close()


def test_threads_take_turns(tmp_path):
    """One store, many threads."""
    store = Answers(tmp_path)

    def work(number):
        for key in KEYS[number::8]:
            store.put(key, {"text": key})
            assert store.get(key) == {"text": key}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == len(KEYS)


WRITER = """
import sys
from pathlib import Path
from arhn_datasets.answers import Answers
from arhn_datasets.records import digest

print("ready", flush=True)
sys.stdin.readline()
for file in range(20):
    store = Answers(Path(sys.argv[1]) / str(file))
    for number in range(int(sys.argv[2]), 40, 2):
        store.put(digest(number), {"text": str(number)})
"""


def test_processes_make_and_fill_the_same_files_at_once(tmp_path):
    """No lock error, no refusal, nothing lost, however the first moments of a new file interleave."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate(timeout=30)[1] == ""
        assert writer.returncode == 0
    for file in range(20):
        store = Answers(tmp_path / str(file))
        assert len(store) == 40
        assert store.get(digest(7)) == {"text": "7"}


@pytest.mark.parametrize("look", range(1, 8))
def test_a_file_that_another_process_makes_at_this_moment(tmp_path, monkeypatch, look):
    """Between two looks at a new file somebody else may have made it: it is ours, not foreign."""

    class Interrupted(sqlite3.Connection):
        def execute(self, query, *parameters):
            looks.append(query)
            if len(looks) == look:
                Answers(tmp_path).put(KEYS[0], {})
            return super().execute(query, *parameters)

    looks = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **options: connect(*a, **options, factory=Interrupted))
    store = Answers(tmp_path)
    assert len(looks) >= look
    assert len(store) == 1


def test_a_new_file_is_waited_for_while_another_process_holds_it(tmp_path):
    """A lock at the first moment is waited for, not reported."""
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    released = threading.Timer(0.1, holder.execute, ("ROLLBACK",))
    released.start()
    store = Answers(tmp_path)
    store.put(KEYS[0], {})
    released.join()
    holder.close()
    assert len(store) == 1


def test_a_lock_that_ignores_the_busy_timeout(tmp_path, monkeypatch):
    """Sqlite reports it at once when several processes switch a new file to WAL; we ask again."""
    prepare, refusals = answers._prepare, [sqlite3.OperationalError("database is locked")] * 2

    def refuse(connection):
        if refusals:
            raise refusals.pop()
        prepare(connection)

    monkeypatch.setattr(answers, "_prepare", refuse)
    assert len(Answers(tmp_path)) == 0
    assert not refusals


def test_a_file_that_stays_locked(tmp_path, monkeypatch):
    """After the waiting time the error names the file."""
    monkeypatch.setattr(answers, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=f"{FILE_NAME} cannot be opened .*locked"):
        Answers(tmp_path)
    holder.close()


def test_fork_with_an_open_store(tmp_path):
    """Parent and child both read and write afterwards; each sees the other's replies."""
    store = Answers(tmp_path)
    store.put(KEYS[0], {"text": "parent, before"})

    def child():
        assert store.get(KEYS[0]) == {"text": "parent, before"}
        for key in KEYS[1:50]:
            store.put(key, {"text": "child"})

    assert in_a_fork(child) == 0
    for key in KEYS[50:100]:
        store.put(key, {"text": "parent"})
    assert store.get(KEYS[1]) == {"text": "child"}
    assert in_a_fork(lambda: None if len(store) == 100 else os._exit(2)) == 0
    assert sqlite3.connect(store.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_fork_while_threads_write(tmp_path):
    """A fork in the middle of writes leaves no lock behind in the child, and breaks nothing in the parent."""
    store = Answers(tmp_path)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for key in KEYS[:50]:
                store.put(key, {"text": "parent"})

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for key in KEYS[100:105]:
            assert in_a_fork(lambda key=key: store.put(key, {"text": "child"})) == 0
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [store.get(key) for key in KEYS[100:105]] == [{"text": "child"}] * 5


def foreign_database(path):
    """An sqlite file of another program."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE replies (k, v)")
    connection.commit()
    connection.close()


def newer_format(path):
    """A store of a later version of this package."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.execute("CREATE TABLE answers (k, v)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_database, "another program"),
        (newer_format, f"format {FORMAT + 1}, this version of the package reads up to {FORMAT}"),
        (lambda path: path.write_text("my notes\n" * 100), "not a database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000), "cannot be opened"),
    ],
    ids=["foreign", "newer", "text", "damaged"],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path, make, message):
    """The error says what it is and how to name another folder; not a byte changes, no file appears."""
    make(tmp_path / FILE_NAME)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StoreError, match=message) as caught:
        Answers(tmp_path)
    assert all(way in str(caught.value) for way in (FILE_NAME, "ARHN_CACHE", "--cache none"))
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert os.listdir(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    """A file in its place is said, not overwritten."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot be opened"):
        Answers(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def read_only(store, monkeypatch):
    """The disk refuses writes."""
    store._connection.execute("PRAGMA query_only = ON")


def broken_disk(store, monkeypatch):
    """The disk refuses everything."""

    class Broken:
        def execute(self, *_):
            raise sqlite3.OperationalError("disk I/O error")

        def close(self):
            pass

    store._connection.close()
    store._connection = Broken()


def gone(store, monkeypatch):
    """The folder can no longer be opened."""
    asyncio.run(store.close())
    store.path.unlink()
    store.path.mkdir()


@pytest.mark.parametrize("trouble", [read_only, broken_disk, gone])
def test_a_disk_that_refuses_is_said_once(tmp_path, monkeypatch, caplog, trouble):
    """The run goes on without keeping replies: a store is a help, not a condition."""
    store = Answers(tmp_path)
    store.put(KEYS[0], {"text": "before"})
    trouble(store, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for key in KEYS[1:5]:
            assert store.get(key) is None
            store.put(key, {"text": "after"})
    assert [record.name for record in caplog.records] == ["arhn_datasets.answers"]
    assert str(store.path) in caplog.text
    assert store.get(KEYS[0]) == ({"text": "before"} if trouble is read_only else None)


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"ARHN_CACHE": "/some/where"}, Path("/some/where")),
        ({"ARHN_CACHE": "~/there"}, Path("/home/user/there")),
        ({"ARHN_CACHE": "none"}, None),
        ({"ARHN_CACHE": "None", "XDG_CACHE_HOME": "/x"}, None),
        ({"ARHN_CACHE": "", "XDG_CACHE_HOME": "/x"}, Path("/x/arhn_datasets")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/arhn_datasets")),
        ({"XDG_CACHE_HOME": "~/x"}, Path("/home/user/x/arhn_datasets")),
        ({"XDG_CACHE_HOME": ""}, Path("/home/user/.cache/arhn_datasets")),
        ({}, Path("/home/user/.cache/arhn_datasets")),
    ],
)
def test_where_replies_are_kept(monkeypatch, environment, directory):
    """ARHN_CACHE goes before the user's cache folder; the word none keeps nothing."""
    monkeypatch.setenv("HOME", "/home/user")
    for name in ("ARHN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_directory() == directory


@pytest.mark.parametrize(
    ("cache", "directory"),
    [("none", None), ("NONE", None), (Path("none"), None), ("./none", Path("none")), (Path("/a"), Path("/a"))],
)
def test_the_folder_that_an_option_names(cache, directory):
    """A folder that is really called none can be named by a path."""
    assert directory_of(cache) == directory


def test_a_user_without_a_home(monkeypatch):
    """In a container without a home folder the error names the ways out."""
    import pwd

    def unknown(_):
        raise KeyError("uid not found")

    for name in ("ARHN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(StoreError, match="ARHN_CACHE"):
        default_directory()
    monkeypatch.setenv("ARHN_CACHE", "~/there")
    with pytest.raises(StoreError, match="ARHN_CACHE"):
        default_directory()
