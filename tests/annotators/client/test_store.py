"""The store of replies: what goes in comes out, in any process, and a foreign file is left alone."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.annotators.client import store as store_module
from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import (
    APPLICATION_ID,
    ATTEMPT_SECONDS,
    FILE_NAME,
    FORMAT,
    Replies,
    default_directory,
    directory_of,
    flush_all,
)
from arhn_datasets.annotators.client.store_upkeep import kept
from arhn_datasets.errors import StoreError
from arhn_datasets.rows import background
from arhn_datasets.rows.records import digest
from arhn_datasets.testing import Latency
from tests.conftest import SAMPLE

ROOT = Path(__file__).parents[3]
STORE = "arhn_datasets.annotators.client.store"
KEYS = [digest(number) for number in range(200)]


def written(folder, key=KEYS[0], reply=None):
    """Store one reply and close the file."""
    store = Replies(folder)
    store.put(key, reply or {})
    asyncio.run(store.close())


def in_a_fork(function):
    """The exit status of a forked child that calls ``function``."""
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
        try:
            function()
            flush_all()
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
    store = Replies(tmp_path / "new" / "folder")
    assert store.get(KEYS[0]) is None
    store.put(KEYS[0], reply)
    assert store.get(KEYS[0]) == reply
    assert store.get(KEYS[1]) is None
    asyncio.run(store.close())
    asyncio.run(store.close())
    assert store.get(KEYS[0]) == Replies(tmp_path / "new" / "folder").get(KEYS[0]) == reply


def test_the_last_reply_counts(tmp_path):
    """A key holds one reply."""
    store = Replies(tmp_path)
    for text in "ab":
        store.put(KEYS[0], {"text": text})
    assert (len(store), store.get(KEYS[0])) == (1, {"text": "b"})


def test_the_file(tmp_path):
    """WAL, marked as ours, with the format's number, under the name of every version; killed writers lose nothing."""
    written(tmp_path)
    connection = sqlite3.connect(tmp_path / "answers.sqlite3")
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert [*found, connection.execute("PRAGMA journal_mode").fetchone()[0]] == [APPLICATION_ID, FORMAT, "wal"]
    connection.close()


def test_threads_take_turns(tmp_path):
    """One store, many threads."""
    store = Replies(tmp_path)

    def work(number):
        for key in KEYS[number::8]:
            store.put(key, {"text": key})
            assert store.get(key) == {"text": key}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store) == len(KEYS)


WRITER = """
import sys
from pathlib import Path
from arhn_datasets.annotators.client.store import Replies
from arhn_datasets.rows.records import (digest)

print("ready", flush=True)
sys.stdin.readline()
for file in range(20):
    store = Replies(Path(sys.argv[1]) / str(file))
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
        store = Replies(tmp_path / str(file))
        assert len(store) == 40
        assert store.get(digest(7)) == {"text": "7"}


@pytest.mark.parametrize("look", range(1, 8))
def test_a_file_that_another_process_makes_at_this_moment(tmp_path, monkeypatch, look):
    """Between two looks at a new file somebody else may have made it: it is ours, not foreign."""

    class Interrupted(sqlite3.Connection):
        def execute(self, query, *parameters):
            looks.append(query)
            if len(looks) == look:
                written(tmp_path)
            return super().execute(query, *parameters)

    looks = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **options: connect(*a, **options, factory=Interrupted))
    store = Replies(tmp_path)
    assert len(looks) >= look
    assert len(store) == 1


def test_a_new_file_is_waited_for_while_another_process_holds_it(tmp_path):
    """A lock at the first moment is waited for, not reported."""
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    released = threading.Timer(0.1, holder.execute, ("ROLLBACK",))
    released.start()
    store = Replies(tmp_path)
    store.put(KEYS[0], {})
    released.join(60)
    holder.close()
    assert len(store) == 1


def test_a_lock_that_ignores_the_busy_timeout(tmp_path, monkeypatch):
    """Sqlite reports it at once when several processes switch a new file to WAL; we ask again."""
    prepare, refusals = store_module._prepare, [sqlite3.OperationalError("database is locked")] * 2

    def refuse(connection):
        if refusals:
            raise refusals.pop()
        prepare(connection)

    monkeypatch.setattr(store_module, "_prepare", refuse)
    assert len(Replies(tmp_path)) == 0
    assert not refusals


def test_a_file_that_stays_locked(tmp_path, monkeypatch):
    """After the waiting time the error names the file."""
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=f"{FILE_NAME} cannot be opened .*locked"):
        Replies(tmp_path)
    holder.close()


def test_fork_with_an_open_store(tmp_path):
    """Parent and child both read and write afterwards; each sees the other's replies."""
    store = Replies(tmp_path)
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
    store = Replies(tmp_path)
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
            writer.join(60)
    assert [store.get(key) for key in KEYS[100:105]] == [{"text": "child"}] * 5


DROPPED = """
import faulthandler, os, sys, threading
from pathlib import Path
from arhn_datasets.annotators.client.store import Replies, flush_all
folder, ended, key = Path(sys.argv[1]), threading.Event(), "0" * 64
def use_and_drop(name):
    while not ended.is_set():
        Replies(folder / name).put(key, {"text": "dropped"})
threads = [threading.Thread(target=use_and_drop, args=(name,)) for name in "ab"]
for thread in threads:
    thread.start()
try:
    for _ in range(100):
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(30, exit=True)
            store = Replies(folder / "child")
            store.put(key, {"text": "child"})
            flush_all()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
finally:
    ended.set()
print(Replies(folder / "child").get(key), Replies(folder / "a").get(key))
"""


def test_forks_while_threads_open_and_drop_stores(tmp_path):
    """A store that another thread opens, writes or drops at the moment of a fork leaves no lock in the child."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "{'text': 'child'} {'text': 'dropped'}\n", done.stderr


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
        Replies(tmp_path)
    assert all(way in str(caught.value) for way in (FILE_NAME, "ARHN_CACHE", "--cache none"))
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert os.listdir(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    """A file in its place is said, not overwritten."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot be opened"):
        Replies(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def read_only(store, monkeypatch):
    """The disk refuses writes."""
    store._writer.execute("PRAGMA query_only = ON")


def full(store, monkeypatch):
    """The disk has no room left."""
    store._writer.execute("PRAGMA max_page_count = 1")
    monkeypatch.setitem(AFTER, "text", "after " * 10_000)


def broken_disk(store, monkeypatch):
    """The disk refuses everything."""

    class Broken:
        def execute(self, *_):
            raise sqlite3.OperationalError("disk I/O error")

        def close(self):
            pass

    asyncio.run(store.close())
    store._writer = store._reader = Broken()


def gone(store, monkeypatch):
    """The folder can no longer be opened."""
    asyncio.run(store.close())
    store.path.unlink()
    store.path.mkdir()


AFTER = {"text": "after"}


@pytest.mark.parametrize("trouble", [read_only, full, broken_disk, gone])
def test_a_disk_that_refuses_is_said_once(tmp_path, monkeypatch, caplog, trouble):
    """The run goes on without keeping replies: a store is a help, not a condition."""
    store = Replies(tmp_path)
    store.put(KEYS[0], {"text": "before"})
    assert store.flush()
    trouble(store, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for key in KEYS[1:5]:
            store.put(key, AFTER)
            assert store.flush()
            assert store.get(key) is None
    assert [record.name for record in caplog.records] == ["arhn_datasets.annotators.client.store"]
    assert str(store.path) in caplog.text
    assert store.get(KEYS[0]) == ({"text": "before"} if trouble in (read_only, full) else None)


@pytest.mark.parametrize(
    "refusal",
    [
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("database or disk is full"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
    ids=str,
)
def test_a_disk_that_refuses_from_the_start_is_said_once(tmp_path, monkeypatch, caplog, refusal):
    """Without a place to keep replies the run goes on, too."""

    def refuse(*_):
        raise refusal

    monkeypatch.setattr(store_module, "connect", refuse)
    with caplog.at_level(logging.WARNING):
        store = Replies(tmp_path)
        store.put(KEYS[0], {})
        assert store.get(KEYS[0]) is None
    [record] = caplog.records
    assert "The run goes on" in record.getMessage()


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch, caplog):
    """Sqlite says no more than that it cannot open the file; the folder's rights tell why."""

    def refuse(*_):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(store_module, "connect", refuse)
    with pytest.raises(StoreError, match="unable to open"):
        Replies(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        assert Replies(tmp_path).get(KEYS[0]) is None
    assert "The run goes on" in caplog.text


@pytest.mark.parametrize("value", ["[1]", "{", "", "null"])
def test_a_value_that_is_no_reply_is_asked_again(tmp_path, value):
    """What somebody else wrote into the file ends no run."""
    written(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("UPDATE replies SET v = ?", (value,))
    connection.commit()
    connection.close()
    assert Replies(tmp_path).get(KEYS[0]) is None


# Batches


@pytest.fixture
def slow(monkeypatch):
    """After the first reply nothing is written for a minute, unless a batch is full."""
    monkeypatch.setattr(f"{STORE}.BATCH_SECONDS", 60)


def in_the_file(folder):
    """How many replies another process finds."""
    connection = sqlite3.connect(folder / FILE_NAME)
    count = connection.execute("SELECT count(*) FROM replies").fetchone()[0]
    connection.close()
    return count


def eventually(true, seconds=10):
    """Wait for what another thread does."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return true()


class Pause(threading.Event):
    """The pause between batches, which says that it has begun."""

    begun = False

    def wait(self, timeout=None):
        self.begun = True
        return super().wait(timeout)


def batch(store, keys=KEYS[1:10]):
    """Put one reply, which is written at once, and then some that wait."""
    store._full = Pause()
    store.put(KEYS[0], {"text": "0"})
    assert eventually(lambda: store._full.begun)
    for key in keys:
        store.put(key, {"text": key})


def test_a_batch_is_seen_before_it_is_written(slow, tmp_path):
    """Replies that wait are found, and a second store of this process has them written first."""
    store = Replies(tmp_path)
    batch(store)
    assert in_the_file(tmp_path) == 1
    assert [store.get(key) for key in KEYS[1:10]] == [{"text": key} for key in KEYS[1:10]]
    assert len(Replies(tmp_path)) == 10
    store.put(KEYS[20], {})
    assert len(store) == 11


def test_a_full_batch_is_written_at_once(slow, tmp_path):
    """Sixty-four replies wait for nothing."""
    store = Replies(tmp_path)
    batch(store, KEYS[1 : store_module.BATCH])
    assert in_the_file(tmp_path) == 1
    store.put(KEYS[100], {})
    assert eventually(lambda: in_the_file(tmp_path) == store_module.BATCH + 1)


def test_a_reply_is_in_the_file_after_a_moment(tmp_path):
    """Nothing needs to be closed, and the thread that writes ends when there is nothing to write."""
    store = Replies(tmp_path)
    batch(store)
    assert eventually(lambda: in_the_file(tmp_path) == 10)
    assert eventually(lambda: store._thread is None)
    store.put(KEYS[50], {})
    assert eventually(lambda: in_the_file(tmp_path) == 11)


def test_a_fork_writes_the_batch_first(slow, tmp_path):
    """The child finds what waited, and writes none of it again; the parent goes on."""
    store = Replies(tmp_path)
    batch(store)

    def child():
        assert not store._waiting
        assert len(store) == 10
        store.put(KEYS[50], {"text": "child"})

    assert in_a_fork(child) == 0
    store.put(KEYS[51], {"text": "parent"})
    assert len(store) == 12


def test_where_no_thread_starts_a_reply_is_written_at_once(tmp_path, monkeypatch):
    """At the end of a process there are no new threads."""

    def refuse(_):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    store = Replies(tmp_path)
    store.put(KEYS[0], {})
    assert in_the_file(tmp_path) == 1


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the file."""
    written(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_a_locked_file_holds_up_nobody(holder, tmp_path):
    """Replies wait in memory and are found there; they are written when the lock is gone."""
    store = Replies(tmp_path)
    slowest = 0.0
    for key in KEYS:
        started = time.perf_counter()
        store.put(key, {"text": key})
        assert store.get(key) == {"text": key}
        slowest = max(slowest, time.perf_counter() - started)
    assert not store.flush()
    assert slowest < ATTEMPT_SECONDS / 2
    assert in_the_file(tmp_path) == 1
    holder.execute("ROLLBACK")
    assert eventually(lambda: in_the_file(tmp_path) == len(KEYS))


def test_a_file_that_stays_locked_is_said_once(holder, tmp_path, monkeypatch, caplog):
    """The run goes on, and at the end the number of lost replies is told."""
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0)
    for name, seconds in (("ATTEMPT", 0.01), ("CLOSING", 0.1)):
        monkeypatch.setattr(f"{STORE}.{name}_SECONDS", seconds)
    store = Replies(tmp_path)
    with caplog.at_level(logging.WARNING):
        for key in KEYS[:3]:
            store.put(key, {})
        assert eventually(lambda: caplog.records)
        assert not store.flush()
        assert "locked by another process for a minute; 3 replies wait" in caplog.records[0].getMessage()
        asyncio.run(store.close())
    assert [("the last 3 replies were not kept" in record.getMessage()) for record in caplog.records] == [False, True]


def test_replies_that_wait_are_bounded(holder, tmp_path, monkeypatch, caplog):
    """Memory stays flat, whatever another process does."""
    monkeypatch.setattr(f"{STORE}.MOST_WAITING", 20)
    store = Replies(tmp_path)
    with caplog.at_level(logging.WARNING):
        for key in KEYS:
            store.put(key, {})
    assert "21 replies wait" in caplog.text
    assert len(caplog.records) == 1
    assert not store._waiting


def test_a_locked_file_at_a_fork(holder, tmp_path, monkeypatch):
    """The parent keeps what waits and writes it later; the child does not write it a second time."""
    monkeypatch.setattr(f"{STORE}.ATTEMPT_SECONDS", 0.01)
    store = Replies(tmp_path)
    store.put(KEYS[1], {"text": "parent"})
    assert in_a_fork(lambda: os._exit(len(store._waiting))) == 0
    holder.execute("ROLLBACK")
    assert eventually(lambda: in_the_file(tmp_path) == 2)


# Processes

ENDS = """
import multiprocess, os, signal, sys, time
from pathlib import Path
from arhn_datasets.annotators.client import store as module
from arhn_datasets.rows.records import (digest)

module.BATCH_SECONDS = 60
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it

def fill(_=None):
    store = module.Replies(Path(sys.argv[1]))
    for number in range(50):
        store.put(digest(number), {"text": str(number)})
        time.sleep(0.005 if number == 0 else 0)

if sys.argv[2] == "worker":
    with multiprocess.Pool(1) as pool:
        pool.map(fill, [0])
        pool.close()
        pool.join()
else:
    fill()
    if sys.argv[2] == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    elif sys.argv[2] == "error":
        raise SystemExit(3)
"""


@pytest.mark.parametrize(("end", "status"), [("plain", 0), ("error", 3), ("interrupted", -2), ("worker", 0)])
def test_the_batch_is_written_when_a_process_ends(tmp_path, end, status):
    """However it ends, the workers of Dataset.map included."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path), end], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ended.returncode == status, ended.stderr
    assert in_the_file(tmp_path) == 50


MANY = """
import sys, time
from pathlib import Path
from arhn_datasets.annotators.client.store import Replies
from arhn_datasets.rows.records import (digest)

print("ready", flush=True)
sys.stdin.readline()
store = Replies(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    store.put(digest(number), {"text": str(number)}, model="m", revision="r")
    if sys.argv[4] == "slowly":
        print(number, time.monotonic(), flush=True)
        time.sleep(0.001)
"""


def many(folder, start, stop, pace="quickly"):
    """A process that stores replies."""
    command = [sys.executable, "-c", MANY, str(folder), str(start), str(stop), pace]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout.readline() == "ready\n"
    return running


def test_processes_write_five_thousand_replies_at_once(tmp_path):
    """Four writers of one new file: all is there, and the file is whole."""
    writers = [many(tmp_path, start, start + 1250) for start in range(0, 5000, 1250)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    store = Replies(tmp_path)
    assert len(store) == 5000
    assert all(store.get(digest(number)) == {"text": str(number)} for number in range(0, 5000, 7))
    assert whole(tmp_path)


def whole(folder):
    """Whether sqlite finds the file intact."""
    connection = sqlite3.connect(folder / FILE_NAME)
    found = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return found == ("ok",)


def test_kill_9_loses_the_last_moment_at_most(tmp_path):
    """The file is whole, what was stored half a second before is in it, and the next run goes on with it."""
    writer = many(tmp_path, 0, 100_000, "slowly")
    writer.stdin.write("go\n")
    writer.stdin.flush()
    times = [float(writer.stdout.readline().split()[1]) for _ in range(800)]
    writer.kill()
    ended = time.monotonic()
    times += [float(line.split()[1]) for line in writer.stdout.read().splitlines() if line.count(" ") == 1]
    writer.wait(10)
    count = in_the_file(tmp_path)
    assert len([at for at in times if at < ended - 0.5]) <= count <= len(times) + 1
    assert count > 100
    assert whole(tmp_path)
    store = Replies(tmp_path)
    assert store.get(digest(0)) == {"text": "0"}
    store.put(digest(-1), {})
    assert len(store) == count + 1


REFINE = "import sys; from arhn_datasets.cli import refine_command; sys.exit(refine_command(sys.argv[1:]))"


def test_sigterm_keeps_the_replies(server, tmp_path):
    """A command that is terminated ends like one that is interrupted."""
    server.latency, server.max_concurrent_requests = Latency(overhead=0.02), 8
    command = [sys.executable, "-c", REFINE, str(SAMPLE), "--endpoint", server.url, "--output", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert eventually(lambda: server.stats.requests >= 60, 30)
    running.terminate()
    _, error = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "Traceback" not in error
    assert "Interrupted. " in error
    assert str(tmp_path / "cache") in error
    assert 30 <= in_the_file(tmp_path / "cache") <= server.stats.requests
    assert whole(tmp_path / "cache")


def test_nothing_secret_is_in_the_file(server, tmp_path):
    """After a run with a key neither it nor the server's address stands in any file of the store."""
    server.api_key = "sk-very-secret"
    annotator = arhn.Endpoint(server.url, api_key=server.api_key, cache=tmp_path / "cache")
    Dataset.from_list([{"query": "Where is tin mined?", **PASSAGES}]).map(arhn.Snippets(annotator=annotator))
    background.close()
    [only] = kept(tmp_path / "cache")
    assert (only.origin.model, only.origin.revision) == (server.model, server.revision)
    content = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert b"finish_reason" in content
    for secret in (server.api_key, "127.0.0.1", server.url.rpartition(":")[2], "Bearer", "Where is tin mined"):
        assert secret.encode() not in content


PASSAGES = {
    "query_id": "1",
    "positive_passages": [{"docid": "p", "title": "", "text": "Tin is mined in Peru."}],
    "negative_passages": [{"docid": "n", "title": "", "text": "Copper is red."}],
}


# Files of before, and broken ones


def test_a_file_of_the_first_format_is_taken_over(tmp_path):
    """Its replies are found, and new ones have their model beside them."""
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE replies (k BLOB PRIMARY KEY, v TEXT NOT NULL)")
    connection.execute("INSERT INTO replies VALUES (?, ?)", (bytes.fromhex(KEYS[0])[:16], '{"text": "old"}'))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = Replies(tmp_path)
    store.put(KEYS[1], {"text": "new"}, model="m", revision="r")
    assert store.get(KEYS[0]) == {"text": "old"}
    assert len(store) == 2
    by_model = {one.origin and one.origin.model: one for one in kept(tmp_path)}
    assert set(by_model) == {None, "m"}
    assert by_model[None].oldest > time.time() - 60


@pytest.mark.parametrize("length", [50, 100, 4096, 5000, 20_000, -4096, -1])
def test_a_half_written_file_is_left_as_it_is(tmp_path, length):
    """A copy that was cut off is told as damaged, not filled up."""
    store = Replies(tmp_path / "whole")
    for key in KEYS:
        store.put(key, {"text": "x" * 500})
    asyncio.run(store.close())
    content = (tmp_path / "whole" / FILE_NAME).read_bytes()[:length]
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(StoreError, match="cannot be opened .*(malformed|not a database)"):
        Replies(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == [FILE_NAME, "whole"]


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


def test_pages_of_what_is_new(tmp_path):
    """Each reply once, in the order of storing; what comes later is on the next page."""
    assert store_upkeep.page(tmp_path / "none", 7, 10) == ([], 7)
    store = Replies(tmp_path)
    for number in range(5):
        store.put(f"{number:032x}", {"text": str(number)}, model="some/model")
        store.flush()
    first, last = store_upkeep.page(tmp_path, 0, 3)
    second, last = store_upkeep.page(tmp_path, last, 3)
    assert [int.from_bytes(stored.key, "big") for stored in (*first, *second)] == [0, 1, 2, 3, 4]
    assert store_upkeep.page(tmp_path, last, 3) == ([], last)
    store.put(f"{9:032x}", {"text": "9"})
    store.flush()
    [stored], _ = store_upkeep.page(tmp_path, last, 3)
    assert (stored.origin, stored.reply) == (None, '{"text": "9"}')
    assert store_upkeep.add_replies(tmp_path / "other", first) == (3, 3)


def test_whoever_puts_waits_for_a_thread_that_is_late(slow, tmp_path, monkeypatch):
    """So that a busy loop leaves the interpreter to it; for a moment, and not where the file is locked."""
    monkeypatch.setattr(f"{STORE}.LATE_SECONDS", 0.0)
    store = Replies(tmp_path)
    asyncio.run(store.keep_up())  # nothing was put
    batch(store)
    waited = []

    async def sleep(seconds):
        waited.append(seconds)
        store._full.set()
        assert eventually(lambda: in_the_file(tmp_path) == 10)
        store._written_at = float("inf")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(store.keep_up())
    assert waited == [60]
    store._written_at, store._locked_since = 0.0, 1.0
    asyncio.run(store.keep_up())
    assert waited == [60]
