"""The persistent store of LLM replies, keyed by everything that changes them.

An interrupted `Dataset.map` keeps none of its rows, so every reply is written here as it arrives and a rerun asks only
what is missing. sqlite3 in WAL mode: several processes may share one file on a local disk. Values are JSON; errors are
never stored; nothing in a key or a value names a URL or a token.

Replies are written in batches, by a thread that lives while there are any, so that neither the disk nor another
process's lock holds up the event loop. A process that is killed loses the last `BATCH_SECONDS` as a rule.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import json
import logging
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arhn_datasets.errors import InputError, OutputError, StoreError
from arhn_datasets.rows.records import digest

logger = logging.getLogger(__name__)

FILE_NAME = "answers.sqlite3"
APPLICATION_ID = 0x4152484E  # "ARHN", so that a foreign sqlite file is recognised
FORMAT = 2
BATCH = 64
BATCH_SECONDS = 0.002
LATE_SECONDS = 0.01
BUSY_SECONDS = 60.0
ATTEMPT_SECONDS = 0.5  # a fork waits for the attempt under way
CLOSING_SECONDS = 3.0
MOST_WAITING = 100_000
LATEST = 253_402_300_800  # the year 10000
JOURNAL_BYTES = 64 * 1024 * 1024

_UNSET = "none"
_ADVICE = (
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


class Origin(NamedTuple):
    """Who replied, and to what kind of request."""

    model: str
    revision: str | None
    kind: str

    @property
    def number(self) -> int:
        """Its key in every file, so that files can be merged."""
        return _number(self)


@lru_cache(maxsize=64)
def _number(origin: Origin) -> int:
    return int(digest(list(origin))[:15], 16)


class Stored(NamedTuple):
    """A reply as it stands in a file; ``reply`` is JSON, ``stored`` seconds since 1970."""

    key: bytes
    origin: Origin | None
    stored: int
    reply: str


class Answers:
    """A store of replies in a folder.

    Threads take turns. A fork finds it written and closed, because sqlite must not be carried into a child; each side
    opens it again when it needs it. Where the disk refuses (full, read-only), this is said once and the store holds
    nothing from there.

    Raises:
        StoreError: the file is foreign, damaged, of a newer format, or cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        # Two connections, since in WAL mode a reader waits for no writer. Taken in this order where several are needed.
        self._writing, self._reading, self._changing = (threading.Lock() for _ in range(3))
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._waiting: dict[bytes, Stored] = {}
        self._written: set[int] = set()  # origins
        self._full = threading.Event()
        self._thread: threading.Thread | None = None
        self._locked_since: float | None = None
        self._written_at = self._yielded_at = 0.0
        self._readable = self._writable = True
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

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply stored under ``key`` (hexadecimal), or None, also where the disk refuses."""
        short = _short(key)
        waiting = self._waiting.get(short)
        if waiting is not None:
            return _value(waiting.reply)
        if not self._readable:
            return None
        try:
            with self._reading:
                self._reader = self._opened(self._reader)
                found = self._reader.execute("SELECT v FROM replies WHERE k = ?", (short,)).fetchone()
        except (sqlite3.Error, StoreError) as error:
            if not _is_locked(error):
                self._readable = False
                self._refused(error)
            return None
        return None if found is None else _value(found[0])

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
        stored = Stored(_short(key), _origin(model, revision, kind), int(time.time()), json.dumps(reply))
        with self._changing:
            self._waiting[stored.key] = stored
            waiting = len(self._waiting)
            started = self._thread is not None or self._started()
        if not started:
            self.flush()
        elif waiting >= BATCH:
            self._full.set()
        self._yield_if_late()
        if waiting > MOST_WAITING:
            self._refused(StoreError(f"it has been locked for long and {waiting:,} replies wait"))

    def _yield_if_late(self) -> None:
        # A busy event loop gives up the GIL and takes it back before a waiting thread wakes up, for seconds on end.
        now = time.monotonic()
        if now - max(self._written_at, self._yielded_at) > LATE_SECONDS and self._locked_since is None:
            time.sleep(0.002)
            self._yielded_at = now

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
        _flush_when_a_worker_ends()
        thread = threading.Thread(target=self._write, name="arhn-answers", daemon=True)
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
            new = {stored.origin for stored in batch if stored.origin and stored.origin.number not in self._written}
            _insert(self._writer, batch, new, "REPLACE")
            self._written.update(origin.number for origin in new)
        except (sqlite3.Error, StoreError) as error:
            if _is_locked(error):
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
            return _connect(self.path, BUSY_SECONDS if seconds is None else seconds)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The store of replies {self.path} cannot be opened ({error}). Expected a file of this package, in a "
                f"folder that can be written. {_ADVICE}"
            ) from error


class Kept(NamedTuple):
    """The replies of one origin: how many, their bytes, and when they were stored."""

    origin: Origin | None
    replies: int
    size: int
    oldest: int
    newest: int


class Pruned(NamedTuple):
    """What was removed, and the size of the file before and after; ``trouble`` says why it did not shrink."""

    removed: Sequence[Kept]
    before: int
    after: int
    trouble: str | None = None


_ROWS = "FROM replies AS r LEFT JOIN origins AS o ON o.id = r.origin"
_KEPT = (
    "SELECT o.model, o.revision, o.kind, count(*), sum(length(CAST(r.v AS BLOB))), min(r.stored), max(r.stored) "
    f"{_ROWS} {{}} GROUP BY o.id ORDER BY count(*) DESC, o.model, o.revision"
)


def store_size(directory: Path) -> int:
    """The bytes of the file and its journal; 0 where there is none."""
    return _size(directory / FILE_NAME) + _size(directory / f"{FILE_NAME}-wal")


def kept(directory: Path) -> list[Kept]:
    """What a store holds, by origin; the most replies first.

    Raises:
        InputError: there is no store.
        StoreError: it cannot be read.
    """
    with _existing(directory) as connection:
        return _kept(connection)


def prune(
    directory: Path,
    *,
    older_than: float | None = None,
    model: str | None = None,
    max_bytes: float | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove replies and shrink the file.

    ``older_than`` (days) and ``model`` (``ID`` or ``ID@REVISION``) together name what goes; after that the oldest
    replies go until the file has ``max_bytes``.

    Raises:
        InputError: there is no store, or no reply of that model.
        StoreError: it cannot be changed.
    """
    before = store_size(directory)
    with _existing(directory) as connection:
        connection.execute("CREATE TEMP TABLE going (id INTEGER PRIMARY KEY)")
        if model is not None or older_than is not None:
            _mark(connection, older_than, model)
        if max_bytes is not None:
            _mark_oldest(connection, max_bytes)
        removed = _kept(connection, "WHERE r.rowid IN (SELECT id FROM going)")
        too_large = max_bytes is not None and before > max_bytes
        if dry_run or not (removed or too_large):
            return Pruned(removed, before, before)
        trouble = _remove_marked(connection)
    return Pruned(removed, before, store_size(directory), trouble)


def _mark(connection: sqlite3.Connection, older_than: float | None, model: str | None) -> None:
    conditions, values = ["1"], []
    if older_than is not None:
        conditions.append("stored < ?")
        values.append(time.time() - older_than * 86_400)
    if model is not None:
        origins = connection.execute("SELECT id, model, revision FROM origins").fetchall()
        numbers = [number for number, name, revision in origins if model in (name, f"{name}@{revision}")]
        if not numbers:
            names = sorted({f"{name}@{revision}" if revision else name for _, name, revision in origins})
            raise InputError(
                f"No reply of the model {model!r} is stored. Name one of these, with or without its revision: "
                f"{', '.join(names) or 'none, the store names no model'}."
            )
        conditions.append(f"origin IN ({','.join(map(str, numbers))})")
    connection.execute(f"INSERT INTO going SELECT rowid FROM replies WHERE {' AND '.join(conditions)}", values)


def _mark_oldest(connection: sqlite3.Connection, max_bytes: float) -> None:
    """Mark the oldest replies that do not fit; the file's overhead is spread over them evenly."""
    size = "length(CAST(v AS BLOB)) + 64"
    total = connection.execute(f"SELECT total({size}) FROM replies").fetchone()[0]
    pages, free, page = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    empty = 6 * page  # the smallest store
    room = max(0.0, max_bytes - empty) * 0.97 * total / max(1, (pages - free) * page)
    newest_first = connection.execute(
        f"SELECT rowid, stored, {size} FROM replies WHERE rowid NOT IN (SELECT id FROM going) "
        "ORDER BY stored DESC, rowid DESC"
    )
    for row, stored, bytes_ in newest_first:
        room -= bytes_
        if room < 0:
            newest_first.close()
            connection.execute(
                "INSERT OR IGNORE INTO going SELECT rowid FROM replies WHERE (stored, rowid) <= (?, ?)", (stored, row)
            )
            return


def _remove_marked(connection: sqlite3.Connection) -> str | None:
    """Remove in short transactions, so that a run that goes on can write between them."""
    last = 0
    while True:
        rows = [row for (row,) in connection.execute("SELECT id FROM going WHERE id > ? LIMIT 5000", (last,))]
        if not rows:
            break
        connection.execute(
            "DELETE FROM replies WHERE rowid IN (SELECT id FROM going WHERE id > ? AND id <= ?)", (last, rows[-1])
        )
        last = rows[-1]
    try:
        connection.execute("VACUUM")
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError as error:
        return str(error)
    return "another process reads it" if busy else None


def read_replies(directory: Path) -> Iterator[Stored]:
    """Every reply of a store, one after the other.

    Raises:
        InputError: there is no store.
        StoreError: it cannot be read.
    """
    with _existing(directory) as connection:
        query = f"SELECT r.k, o.model, o.revision, o.kind, r.stored, r.v {_ROWS} ORDER BY r.rowid"
        yield from (_stored(*found) for found in connection.execute(query))


def page(directory: Path, after: int, most: int) -> tuple[list[Stored], int]:
    """Up to ``most`` replies that a store has taken since the one of number ``after``, and the number of the last.

    Numbers are those of this file, from 1 on and in the order of storing. Without a file there is none.

    Raises:
        StoreError: it cannot be read.
    """
    if not (directory / FILE_NAME).exists():
        return [], after
    with _existing(directory) as connection:
        query = f"SELECT r.rowid, r.k, o.model, o.revision, o.kind, r.stored, r.v {_ROWS} WHERE r.rowid > ? "
        found = connection.execute(f"{query} ORDER BY r.rowid LIMIT ?", (after, most)).fetchall()
    return [_stored(*columns) for _, *columns in found], found[-1][0] if found else after


def _stored(key: Any, model: Any, revision: Any, kind: Any, stored: Any, reply: Any) -> Stored:
    return Stored(key, None if model is None else Origin(model, revision, kind), stored, reply)


def add_replies(directory: Path, replies: Iterable[Stored]) -> tuple[int, int]:
    """Add what a store does not hold yet; how many were new, and how many came.

    Raises:
        InputError: ``replies`` has found an entry that is none; those before it are kept.
        StoreError: the store cannot be opened or written.
    """
    new = came = 0
    replies = iter(replies)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The store of replies cannot be made in {directory} ({error}). {_ADVICE}") from error
    with _existing(directory, make=True) as connection:
        trouble: InputError | None = None
        while trouble is None:
            batch: list[Stored] = []
            try:
                for stored in islice(replies, BATCH):
                    batch.append(stored)
            except InputError as error:
                trouble = error
            if not batch:
                break
            came += len(batch)
            new += _insert(connection, batch, {stored.origin for stored in batch if stored.origin}, "IGNORE")
    if trouble is not None:
        raise InputError(f"{trouble} The {came:,} replies before it were taken; run the command again after a repair.")
    return new, came


def merge(directory: Path, other: Path) -> tuple[int, int]:
    """Add the replies of ``other`` that ``directory`` does not hold; how many were new, and how many came.

    Raises:
        InputError: ``other`` has no store, or is ``directory`` itself.
        StoreError: one of them cannot be read or written.
    """
    ours, theirs = directory / FILE_NAME, other / FILE_NAME
    if ours.exists() and theirs.exists() and ours.samefile(theirs):
        raise InputError(f"{other} is the store that replies would go to. Name another folder, or another --cache DIR.")
    with _existing(other):  # before ours is made
        return add_replies(directory, read_replies(other))


def export_file(directory: Path, path: Path) -> int:
    """Write every reply as a line of JSON; how many.

    Raises:
        InputError: there is no store.
        OutputError: there is such a file already, or it cannot be written.
        StoreError: the store cannot be read.
    """
    if path.exists():
        raise OutputError(f"There is a file {path} already. Name another one, or remove it.")
    count, partial = 0, path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with _existing(directory), open(partial, "x", encoding="utf-8") as file:
            for stored in read_replies(directory):
                file.write(f"{_exported(stored)}\n")
                count += 1
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error}). Expected a folder that can be written, with room."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def import_file(directory: Path, path: Path) -> tuple[int, int]:
    """Add the replies of an exported file that ``directory`` does not hold; how many were new, and how many came.

    Raises:
        InputError: there is no such file, or a line of it is no stored reply; those before it are kept.
        StoreError: the store cannot be opened or written.
    """
    try:
        with open(path, "rb") as lines:
            return add_replies(directory, _imported_lines(lines, path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). Expected a file of arhn-cache export.") from error


def _exported(stored: Stored) -> str:
    model, revision, kind = stored.origin or (None, None, "chat")
    entry = {"key": stored.key.hex(), "model": model, "revision": revision, "kind": kind, "stored": stored.stored}
    return json.dumps({**entry, "reply": _value(stored.reply)})


def _imported_lines(lines: Iterable[bytes], path: Path) -> Iterator[Stored]:
    for number, line in enumerate(lines, 1):
        try:
            stored = _imported(json.loads(line)) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"Line {number} of {path} is no stored reply ({error}). Expected a line of arhn-cache export: a JSON "
                "object with key (32 hexadecimal digits), model, revision, stored (seconds) and reply (an object with "
                "a text)."
            ) from error
        if stored is not None:
            yield stored


class _NoReply(ValueError):
    """What is wrong with a line."""


def _imported(entry: Any) -> Stored:
    if not isinstance(entry, dict):
        raise _NoReply(f"found {type(entry).__name__}")
    key, reply, stored = entry.get("key"), entry.get("reply"), entry.get("stored")
    model, revision, kind = entry.get("model"), entry.get("revision"), entry.get("kind", "chat")
    try:
        short = bytes.fromhex(key) if isinstance(key, str) else b""
    except ValueError:
        short = b""
    if len(short) != 16:
        raise _NoReply(f"its key is {str(key)[:80]!r}")
    if not isinstance(reply, dict) or not isinstance(reply.get("text"), str) or not reply["text"].strip():
        raise _NoReply("its reply has no text")
    if type(stored) is not int or not 0 <= stored < LATEST:
        raise _NoReply(f"stored is {str(stored)[:80]!r}")
    if not isinstance(kind, str) or not all(name is None or isinstance(name, str) for name in (model, revision)):
        raise _NoReply("model, revision or kind is no text")
    return Stored(short, _origin(model, revision, kind), stored, json.dumps(reply))


@contextmanager
def _existing(directory: Path, *, make: bool = False) -> Iterator[sqlite3.Connection]:
    path = directory / FILE_NAME
    if not make and not path.exists():
        raise InputError(
            f"There is no store of replies in {directory}: no {FILE_NAME}. Name the folder of one with --cache DIR or "
            "ARHN_CACHE; a run with an LLM makes it."
        )
    try:
        connection = _connect(path, BUSY_SECONDS)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"The store of replies {path} cannot be used ({error}). Expected a file of this package, whole, on a disk "
            "with room. Name another folder with --cache DIR, or move this file away to start a new one."
        ) from error


def _kept(connection: sqlite3.Connection, where: str = "") -> list[Kept]:
    return [
        Kept(None if model is None else Origin(model, revision, kind), *counts)
        for model, revision, kind, *counts in connection.execute(_KEPT.format(where))
    ]


def _insert(connection: sqlite3.Connection, batch: Sequence[Stored], origins: Iterable[Origin], conflict: str) -> int:
    for origin in origins:
        connection.execute("INSERT OR IGNORE INTO origins VALUES (?, ?, ?, ?)", (origin.number, *origin))
    # One statement, so one transaction and one release of the GIL: row by row, a busy loop takes it back for 5 ms each.
    values = [
        value
        for stored in batch
        for value in (stored.key, stored.origin and stored.origin.number, stored.stored, stored.reply)
    ]
    rows = ",".join(["(?,?,?,?)"] * len(batch))
    done = connection.execute(f"INSERT OR {conflict} INTO replies (k, origin, stored, v) VALUES {rows}", values)
    return done.rowcount


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    # Switching a new file to WAL ignores the busy timeout when several processes do it at once.
    until = time.monotonic() + seconds
    while True:
        connection = sqlite3.connect(path, timeout=seconds, check_same_thread=False, isolation_level=None)
        try:
            _prepare(connection)
            _check_length(connection, path)
            return connection
        except BaseException as error:
            connection.close()
            if not _is_locked(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _check_length(connection: sqlite3.Connection, path: Path) -> None:
    # sqlite takes a last page that was cut off for whole. Asked by stat: closing an open file would drop its locks.
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    if path.stat().st_size % page and not _size(path.with_name(f"{path.name}-wal")):
        raise sqlite3.DatabaseError("database disk image is malformed: its end is missing")


def _size(path: Path) -> int:
    # The last process that closes a file removes its journal, at any moment.
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


def _is_locked(error: BaseException | None) -> bool:
    error = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _disk_refuses(error: BaseException | None, directory: Path) -> bool:
    """Whether the disk is full or read-only, and not the file a wrong one."""
    if isinstance(error, sqlite3.OperationalError):
        closed = "unable to open" in str(error) and directory.is_dir() and not os.access(directory, os.W_OK)
        return closed or any(words in str(error) for words in ("readonly", "disk is full", "disk I/O error"))
    return isinstance(error, OSError) and error.errno in _REFUSALS


def _value(reply: str) -> dict[str, Any] | None:
    try:
        value = json.loads(reply)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_stores: weakref.WeakSet[Answers] = weakref.WeakSet()
_forking: list[Answers] = []
_worker: int | None = None


def flush_all() -> None:
    """Write what waits in any store of this process."""
    for store in list(_stores):
        store.flush()


def _flush_when_a_worker_ends() -> None:
    # Workers of multiprocessing, and of multiprocess, which Dataset.map uses, end without atexit.
    global _worker
    if _worker != os.getpid():
        _worker = os.getpid()
        for name in ("multiprocessing.util", "multiprocess.util"):
            if name in sys.modules:
                sys.modules[name].Finalize(None, flush_all, exitpriority=100)


def _before_fork() -> None:
    for store in list(_stores):
        store.flush()
        for lock in (store._writing, store._reading, store._changing):
            lock.acquire()
        store._close_file()
        _forking.append(store)


def _after_fork() -> None:
    while _forking:
        store = _forking.pop()
        for lock in (store._changing, store._reading, store._writing):
            lock.release()


def _after_fork_in_child() -> None:
    for store in _forking:
        store._waiting.clear()  # put in between, or the file is locked: the parent writes it
        store._thread, store._full = None, threading.Event()
    _after_fork()


atexit.register(flush_all)
if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _short(key: str) -> bytes:
    return bytes.fromhex(key)[:16]


@lru_cache(maxsize=64)
def _origin(model: str | None, revision: str | None, kind: str) -> Origin | None:
    if not model:
        return None
    return Origin(_storable(model), revision and _storable(revision), _storable(kind))


def _storable(text: str) -> str:
    # JSON may hold half of a surrogate pair, and sqlite refuses it.
    return text.encode("utf-8", "replace").decode()
