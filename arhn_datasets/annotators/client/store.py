"""The persistent store of LLM replies, keyed by everything that changes them.

An interrupted `Dataset.map` keeps none of its rows, so every reply is written here as it arrives and a rerun asks only
what is missing. Errors are never stored.

Replies are written in batches, by a thread that lives while there are any, so that neither the disk nor another
process's lock holds up the event loop. A process that is killed loses the last `BATCH_SECONDS` as a rule.

One file in sqlite3's WAL mode: several processes may share it on a local disk. Values are JSON; nothing in a key or a
value names a URL or a token.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arhn_datasets.errors import StoreError
from arhn_datasets.rows.background import around_forks, when_a_worker_ends
from arhn_datasets.rows.records import digest

logger = logging.getLogger(__name__)

FILE_NAME = "answers.sqlite3"  # never another name: what was paid for has to be found after an update
APPLICATION_ID = 0x4152484E  # "ARHN", so that a foreign sqlite file is recognised
FORMAT = 2
BATCH = 64
BUSY_SECONDS = 60.0
JOURNAL_BYTES = 64 * 1024 * 1024
BATCH_SECONDS = 0.002
LATE_SECONDS, LATEST_SECONDS = 0.01, 1.0
ATTEMPT_SECONDS = 0.5  # a fork waits for the attempt under way
CLOSING_SECONDS = 3.0
MOST_WAITING = 100_000

ADVICE = (
    "Name another folder (ARHN_CACHE, cache=, --cache DIR) or none at all (--cache none); the file was left as it is."
)
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def default_directory() -> Path | None:
    """Where replies are kept by default: ``$ARHN_CACHE``, else the user's cache folder."""
    named = os.environ.get("ARHN_CACHE")
    if named:
        return directory_of(named)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return _expanded(root) / "arhn_datasets"


def directory_of(cache: str | os.PathLike[str] | None) -> Path | None:
    """The folder that ``cache`` names, None where it is the word "none"; the default one where nothing is named."""
    if cache is None:
        return default_directory()
    return None if str(cache).lower() == "none" else _expanded(cache)


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise StoreError(
            f"The store of replies {path} has no place, because this user has no home folder. Name a folder "
            "(ARHN_CACHE, cache=, --cache DIR) or none at all (--cache none)."
        ) from error


class Origin(NamedTuple):
    """Who replied, and to what kind of request."""

    model: str
    revision: str | None
    kind: str


@lru_cache(maxsize=64)
def number_of(origin: Origin) -> int:
    """The key of an origin in every file, so that files can be merged."""
    return int(digest(list(origin))[:15], 16)


@lru_cache(maxsize=64)
def origin_of(model: str | None, revision: str | None, kind: str) -> Origin | None:
    """The origin of a reply, None where nothing names its model."""
    # JSON may hold half of a surrogate pair, and sqlite refuses it.
    names = [name and name.encode("utf-8", "replace").decode() for name in (model, revision, kind)]
    return Origin(*names) if model else None  # type: ignore[arg-type]


class Stored(NamedTuple):
    """A reply as it stands in a file; ``reply`` is JSON, ``stored`` seconds since 1970."""

    key: bytes
    origin: Origin | None
    stored: int
    reply: str


def reply_of(text: str) -> dict[str, Any] | None:
    """A reply as it was put in, None where somebody else wrote what is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Replies:
    """A store of replies in a folder.

    Threads take turns. A fork finds it written and closed, because sqlite must not be carried into a child; each side
    opens it again when it needs it. Where the disk refuses (full, read-only), this is said once and the store holds
    nothing from there.

    Raises:
        StoreError: the file is foreign, damaged, of a newer format, or cannot be opened.
    """

    _writer: sqlite3.Connection | None = None
    _reader: sqlite3.Connection | None = None

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        # Two connections, since in WAL mode a reader waits for no writer. Taken in this order where several are needed.
        self._writing, self._reading, self._changing = (threading.Lock() for _ in range(3))
        self._waiting: dict[bytes, Stored] = {}
        self._written: set[int] = set()  # origins
        self._full = threading.Event()
        self._thread: threading.Thread | None = None
        self._locked_since: float | None = None
        self._written_at = 0.0
        self._readable = self._writable = True
        with _registering:
            for store in list(_stores):
                if store.path == self.path:
                    store.flush()
            _stores.add(self)
            try:
                with self._reading:
                    self._reader = self._opened(None)
            except StoreError as error:
                if not _disk_refuses(error.__cause__, directory):
                    raise
                self._readable = False
                self._refused(error)

    def __del__(self) -> None:
        # Any thread may drop a store, and one that closes it inside sqlite at a fork leaves a lock there in the child.
        dropped = [connection for connection in (self._writer, self._reader) if connection is not None]
        self._writer = self._reader = None
        if not dropped or _closing is None:  # at the end of the interpreter
            return
        if not _closing.acquire(blocking=False):
            _dropped.extend(dropped)
            return
        try:
            for connection in dropped:
                connection.close()
        finally:
            _closing.release()

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply stored under ``key`` (hexadecimal), or None, also where the disk refuses."""
        short = bytes.fromhex(key)[:16]
        waiting = self._waiting.get(short)
        if waiting is not None:
            return reply_of(waiting.reply)
        if not self._readable:
            return None
        try:
            with self._reading:
                self._reader = self._opened(self._reader)
                row = self._reader.execute("SELECT v FROM replies WHERE k = ?", (short,)).fetchone()
        except (sqlite3.Error, StoreError) as error:
            if not is_locked(error):
                self._readable = False
                self._refused(error)
            return None
        return None if row is None else reply_of(row[0])

    def put(
        self,
        key: str,
        reply: Mapping[str, Any],
        *,
        model: str | None = None,
        revision: str | None = None,
        kind: str = "chat",
    ) -> None:
        """Store ``reply`` under ``key`` soon; where the disk refuses, say so once and go on without.

        ``model``, ``revision`` and ``kind`` are for ``arhn-cache``; the key holds all that changes the reply.
        """
        if not self._writable:
            return
        stored = Stored(bytes.fromhex(key)[:16], origin_of(model, revision, kind), int(time.time()), json.dumps(reply))
        with self._changing:
            self._waiting[stored.key] = stored
            waiting = len(self._waiting)
            started = self._thread is not None or self._started()
        if not started:
            self.flush()
        elif waiting >= BATCH:
            self._full.set()
        if waiting > MOST_WAITING:
            self._refused(StoreError(f"it has been locked for long and {waiting:,} replies wait"))

    async def keep_up(self) -> None:
        """Wait until the thread that writes has had its turn, where that is late.

        A busy event loop gives up the GIL and takes it back before a waiting thread wakes up, for seconds on end. Where
        those that put replies wait, the loop has nothing to do and leaves the GIL alone.
        """
        until = time.monotonic() + LATEST_SECONDS
        while self._thread is not None and self._locked_since is None:
            now = time.monotonic()
            if now - self._written_at <= LATE_SECONDS or now > until:
                return
            await asyncio.sleep(BATCH_SECONDS)

    def flush(self) -> bool:
        """Write what waits; False where the file is locked and it goes on waiting."""
        while self._waiting:
            with self._writing:
                if not self._write_batch():
                    return False
        return True

    def __len__(self) -> int:
        self.flush()
        with self._reading:
            self._reader = self._opened(self._reader)
            count: int = self._reader.execute("SELECT count(*) FROM replies").fetchone()[0]
        return count

    async def close(self) -> None:
        """Write what waits and close the file; it opens again when it is used again."""
        until = time.monotonic() + CLOSING_SECONDS
        while not self.flush() and time.monotonic() < until:
            await asyncio.sleep(BATCH_SECONDS)
        if self._waiting:
            logger.warning(
                "The store of replies %s is locked by another process; the last %d replies were not kept.",
                self.path,
                len(self._waiting),
            )
            self._waiting.clear()
        with self._writing, self._reading:
            self._close_file()

    def _close_file(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()
        self._writer = self._reader = None
        self._written.clear()

    def _started(self) -> bool:
        """Start the thread that writes; False at the end of the process, where no thread starts."""
        global _worker
        if _worker != os.getpid():
            _worker = os.getpid()
            when_a_worker_ends(flush_all)
        thread = threading.Thread(target=self._write, name="arhn-replies", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        self._written_at = time.monotonic()
        return True

    def _write(self) -> None:
        # The first reply after a pause is written at once.
        while True:
            self._full.clear()
            self.flush()
            self._full.wait(BATCH_SECONDS)
            with self._changing:
                if not self._waiting:
                    self._thread = None
                    return

    def _write_batch(self) -> bool:
        with self._changing:
            batch = list(islice(self._waiting.values(), BATCH))
        if not batch:
            return True
        try:
            self._writer = self._opened(self._writer, ATTEMPT_SECONDS)
            new = {stored.origin for stored in batch if stored.origin and number_of(stored.origin) not in self._written}
            insert(self._writer, batch, new, "REPLACE")
            self._written.update(number_of(origin) for origin in new)
        except (sqlite3.Error, StoreError) as error:
            if is_locked(error):
                self._say_locked()
                return False
            self._refused(error)
            return True
        self._locked_since = None
        self._written_at = time.monotonic()
        with self._changing:
            for stored in batch:
                if self._waiting.get(stored.key) is stored:
                    del self._waiting[stored.key]
        return True

    def _say_locked(self) -> None:
        now = time.monotonic()
        if self._locked_since is None:
            self._locked_since = now
        elif now - self._locked_since > BUSY_SECONDS:
            logger.warning(
                "The store of replies %s has been locked by another process for a minute; %d replies wait in memory.",
                self.path,
                len(self._waiting),
            )
            self._locked_since = float("inf")

    def _refused(self, error: Exception) -> None:
        if self._writable:
            self._writable = False
            logger.warning(
                "The store of replies %s cannot be used (%s). The run goes on; its replies are not kept from here.",
                self.path,
                error,
            )
        with self._changing:
            self._waiting.clear()

    def _opened(self, connection: sqlite3.Connection | None, seconds: float | None = None) -> sqlite3.Connection:
        if connection is not None:
            return connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return connect(self.path, BUSY_SECONDS if seconds is None else seconds)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The store of replies {self.path} cannot be opened ({error}). Expected a file of this package, in a "
                f"folder that can be written. {ADVICE}"
            ) from error


def insert(connection: sqlite3.Connection, batch: Sequence[Stored], origins: Iterable[Origin], conflict: str) -> int:
    """Write replies, and the origins among theirs that the file may not have; how many were written."""
    for origin in origins:
        connection.execute("INSERT OR IGNORE INTO origins VALUES (?, ?, ?, ?)", (number_of(origin), *origin))
    # One statement, so one transaction and one release of the GIL: row by row, a busy loop takes it back for 5 ms each.
    values = [
        value
        for stored in batch
        for value in (stored.key, stored.origin and number_of(stored.origin), stored.stored, stored.reply)
    ]
    rows = ",".join(["(?,?,?,?)"] * len(batch))
    done = connection.execute(f"INSERT OR {conflict} INTO replies (k, origin, stored, v) VALUES {rows}", values)
    return done.rowcount


def connect(path: Path, seconds: float) -> sqlite3.Connection:
    """Open a file and bring it to the present format, waiting so long for the lock of another process."""
    # Switching a new file to WAL ignores the busy timeout when several processes do it at once.
    until = time.monotonic() + seconds
    while True:
        connection = sqlite3.connect(path, timeout=seconds, check_same_thread=False, isolation_level=None)
        try:
            _prepare(connection)
            # sqlite takes a last page that was cut off for whole. By stat: closing an open file would drop its locks.
            page = connection.execute("PRAGMA page_size").fetchone()[0]
            if path.stat().st_size % page and not size_of(path.with_name(f"{path.name}-wal")):
                raise sqlite3.DatabaseError("database disk image is malformed: its end is missing")
            return connection
        except BaseException as error:
            connection.close()
            if not is_locked(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def size_of(path: Path) -> int:
    """The bytes of a file, 0 where there is none."""
    # The last process that closes a store removes its journal, at any moment.
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _prepare(connection: sqlite3.Connection) -> None:
    # Tables first: another process may be making this very file, and its mark comes with its table.
    tables, application, version = (
        connection.execute(query).fetchone()[0]
        for query in ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
    )
    if tables and application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is an sqlite file of another program")
    if version > FORMAT:
        raise sqlite3.DatabaseError(f"it has format {version}, this version of the package reads up to {FORMAT}")
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses the last commits on a power cut, none when the process is killed.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
    if tables and version == FORMAT:
        return
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
        connection.execute("ALTER TABLE replies ADD COLUMN origin INTEGER")
        connection.execute(f"ALTER TABLE replies ADD COLUMN stored INTEGER NOT NULL DEFAULT {int(time.time())}")
    # A rowid table: random keys in a WITHOUT ROWID table measured five times the size and half the speed.
    connection.execute(
        "CREATE TABLE IF NOT EXISTS replies "
        "(k BLOB PRIMARY KEY, origin INTEGER, stored INTEGER NOT NULL, v TEXT NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS origins (id INTEGER PRIMARY KEY, model TEXT NOT NULL, revision TEXT, kind TEXT)"
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def is_locked(error: BaseException | None) -> bool:
    """Whether the file is only in use by another process."""
    error = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _disk_refuses(error: BaseException | None, directory: Path) -> bool:
    """Whether the disk is full or read-only, and not the file a wrong one."""
    if isinstance(error, sqlite3.OperationalError):
        closed = "unable to open" in str(error) and directory.is_dir() and not os.access(directory, os.W_OK)
        return closed or any(words in str(error) for words in ("readonly", "disk is full", "disk I/O error"))
    return isinstance(error, OSError) and error.errno in _REFUSALS


_stores: weakref.WeakSet[Replies] = weakref.WeakSet()
_registering, _closing = threading.RLock(), threading.Lock()
_dropped: list[sqlite3.Connection] = []  # during a fork: the parent closes them, a child never does
_forking: list[Replies] = []
_worker: int | None = None


def flush_all() -> None:
    """Write what waits in any store of this process."""
    for store in list(_stores):
        store.flush()


def _before_fork() -> None:
    _registering.acquire()
    for store in list(_stores):
        store.flush()
        for lock in (store._writing, store._reading, store._changing):
            lock.acquire()
        store._close_file()
        _forking.append(store)
    _closing.acquire()


def _after_fork() -> None:
    _closing.release()
    while _forking:
        store = _forking.pop()
        for lock in (store._changing, store._reading, store._writing):
            lock.release()
    _registering.release()


def _after_fork_in_parent() -> None:
    while _dropped:
        _dropped.pop().close()
    _after_fork()


def _after_fork_in_child() -> None:
    for store in _forking:
        store._waiting.clear()  # put in between, or the file is locked: the parent writes it
        store._thread, store._full = None, threading.Event()
    _after_fork()


atexit.register(flush_all)
around_forks(before=_before_fork, in_parent=_after_fork_in_parent, in_child=_after_fork_in_child)
