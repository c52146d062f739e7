"""The persistent store of LLM replies, keyed by everything that changes them.

An interrupted `Dataset.map` keeps none of its rows, so every reply is written here as it arrives and a rerun asks only
what is missing. sqlite3 in WAL mode: several processes may share one file on a local disk. Values are JSON; errors are
never stored; nothing in a key or a value names a URL or a token.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arhn_datasets.errors import StoreError

logger = logging.getLogger(__name__)

FILE_NAME = "answers.sqlite3"
APPLICATION_ID = 0x4152484E  # "ARHN", so that a foreign sqlite file is recognised
FORMAT = 1
BUSY_SECONDS = 60
JOURNAL_BYTES = 64 * 1024 * 1024

_UNSET = "none"


def default_directory() -> Path | None:
    """Where replies are kept by default: ``$ARHN_CACHE``, else the user's cache folder."""
    named = os.environ.get("ARHN_CACHE")
    if named:
        return directory_of(named)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return _expanded(root) / "arhn_datasets"


def directory_of(cache: str | os.PathLike[str]) -> Path | None:
    """The folder that ``cache`` names, None where it is the word "none"."""
    return None if str(cache).lower() == _UNSET else _expanded(cache)


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise StoreError(
            f"The store of replies {path} has no place, because this user has no home folder. Name a folder "
            "(ARHN_CACHE, cache=, --cache DIR) or none at all (--cache none)."
        ) from error


class Answers:
    """A store of replies in a folder.

    Threads take turns. A fork finds it closed, because sqlite must not be carried into a child; each side opens it
    again when it needs it.

    Raises:
        StoreError: the file is foreign, damaged, of a newer format, or cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self.lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._readable = self._writable = True
        _stores.add(self)
        with self.lock:
            self._opened()

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply stored under ``key`` (hexadecimal), or None, also where the disk refuses."""
        if not self._readable:
            return None
        try:
            with self.lock:
                found = self._opened().execute("SELECT v FROM replies WHERE k = ?", (_short(key),)).fetchone()
        except (sqlite3.Error, StoreError) as error:
            self._readable = False
            self._refused(error)
            return None
        if found is None:
            return None
        value: dict[str, Any] = json.loads(found[0])
        return value

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Store ``reply`` under ``key``; where the disk refuses, say so once and go on without."""
        if not self._writable:
            return
        try:
            with self.lock:
                self._opened().execute(
                    "INSERT OR REPLACE INTO replies (k, v) VALUES (?, ?)", (_short(key), json.dumps(reply))
                )
        except (sqlite3.Error, StoreError) as error:
            self._refused(error)

    def __len__(self) -> int:
        with self.lock:
            count: int = self._opened().execute("SELECT count(*) FROM replies").fetchone()[0]
        return count

    async def close(self) -> None:
        """Close the file; it opens again when it is used again."""
        with self.lock:
            self.close_file()

    def close_file(self) -> None:
        """Close the file; the caller holds the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refused(self, error: Exception) -> None:
        if self._writable:
            logger.warning(
                "The store of replies %s cannot be used (%s). The run goes on; its replies are not kept from here.",
                self.path,
                error,
            )
        self._writable = False

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = _connect(self.path)
            except (OSError, sqlite3.Error) as error:
                raise StoreError(
                    f"The store of replies {self.path} cannot be opened ({error}). Expected a file of this package, in "
                    "a folder that can be written. Name another folder (ARHN_CACHE, cache=, --cache DIR) or none at "
                    "all (--cache none); the file was left as it is."
                ) from error
        return self._connection


def _connect(path: Path) -> sqlite3.Connection:
    # Switching a new file to WAL ignores the busy timeout when several processes do it at once.
    until = time.monotonic() + BUSY_SECONDS
    while True:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            _prepare(connection)
            return connection
        except BaseException as error:
            connection.close()
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


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
    if tables:
        return
    connection.execute("BEGIN IMMEDIATE")
    # A rowid table: random keys in a WITHOUT ROWID table measured five times the size and half the speed.
    connection.execute("CREATE TABLE IF NOT EXISTS replies (k BLOB PRIMARY KEY, v TEXT NOT NULL)")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


_stores: weakref.WeakSet[Answers] = weakref.WeakSet()
_forking: list[Answers] = []


def _before_fork() -> None:
    for store in list(_stores):
        store.lock.acquire()
        store.close_file()
        _forking.append(store)


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _short(key: str) -> bytes:
    return bytes.fromhex(key)[:16]
