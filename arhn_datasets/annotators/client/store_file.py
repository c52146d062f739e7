"""One file of stored replies: its tables, how it is opened, and what is read from it and added to it.

sqlite3 in WAL mode: several processes may share one file on a local disk. Values are JSON; nothing in a key or a value
names a URL or a token.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arhn_datasets.errors import InputError, StoreError
from arhn_datasets.rows.records import digest

FILE_NAME = "answers.sqlite3"  # never another name: what was paid for has to be found after an update
APPLICATION_ID = 0x4152484E  # "ARHN", so that a foreign sqlite file is recognised
FORMAT = 2
BATCH = 64
BUSY_SECONDS = 60.0
JOURNAL_BYTES = 64 * 1024 * 1024

ADVICE = (
    "Name another folder (ARHN_CACHE, cache=, --cache DIR) or none at all (--cache none); the file was left as it is."
)
ROWS = "FROM replies AS r LEFT JOIN origins AS o ON o.id = r.origin"


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


@lru_cache(maxsize=64)
def origin_of(model: str | None, revision: str | None, kind: str) -> Origin | None:
    """The origin of a reply, None where nothing names its model."""
    if not model:
        return None
    return Origin(_storable(model), revision and _storable(revision), _storable(kind))


def _storable(text: str) -> str:
    # JSON may hold half of a surrogate pair, and sqlite refuses it.
    return text.encode("utf-8", "replace").decode()


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


def read_replies(directory: Path) -> Iterator[Stored]:
    """Every reply of a store, one after the other.

    Raises:
        InputError: there is no store.
        StoreError: it cannot be read.
    """
    with existing(directory) as connection:
        query = f"SELECT r.k, o.model, o.revision, o.kind, r.stored, r.v {ROWS} ORDER BY r.rowid"
        yield from (_stored(*columns) for columns in connection.execute(query))


def page(directory: Path, after: int, most: int) -> tuple[list[Stored], int]:
    """Up to ``most`` replies that a store has taken since the one of number ``after``, and the number of the last.

    Numbers are those of this file, from 1 on and in the order of storing. Without a file there is none.

    Raises:
        StoreError: it cannot be read.
    """
    if not (directory / FILE_NAME).exists():
        return [], after
    with existing(directory) as connection:
        query = f"SELECT r.rowid, r.k, o.model, o.revision, o.kind, r.stored, r.v {ROWS} WHERE r.rowid > ? "
        rows = connection.execute(f"{query} ORDER BY r.rowid LIMIT ?", (after, most)).fetchall()
    return [_stored(*columns) for _, *columns in rows], rows[-1][0] if rows else after


def _stored(key: Any, model: Any, revision: Any, kind: Any, stored: Any, reply: Any) -> Stored:
    return Stored(key, None if model is None else Origin(model, revision, kind), stored, reply)


def add_replies(directory: Path, replies: Iterable[Stored]) -> tuple[int, int]:
    """Add what a store does not hold yet; how many were new, and how many came.

    Raises:
        InputError: ``replies`` came upon an entry that is none; those before it are kept.
        StoreError: the store cannot be opened or written.
    """
    new = came = 0
    replies = iter(replies)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The store of replies cannot be made in {directory} ({error}). {ADVICE}") from error
    with existing(directory, make=True) as connection:
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
            new += insert(connection, batch, {stored.origin for stored in batch if stored.origin}, "IGNORE")
    if trouble is not None:
        raise InputError(f"{trouble} The {came:,} replies before it were taken; run the command again after a repair.")
    return new, came


def insert(connection: sqlite3.Connection, batch: Sequence[Stored], origins: Iterable[Origin], conflict: str) -> int:
    """Write replies, and the origins among theirs that the file may not have; how many were written."""
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


@contextmanager
def existing(directory: Path, *, make: bool = False) -> Iterator[sqlite3.Connection]:
    """The file of a folder, opened for a while; made where it is not there and ``make`` says so.

    Raises:
        InputError: there is none.
        StoreError: it cannot be opened, read or written.
    """
    path = directory / FILE_NAME
    if not make and not path.exists():
        raise InputError(
            f"There is no store of replies in {directory}: no {FILE_NAME}. Name the folder of one with --cache DIR or "
            "ARHN_CACHE; a run with an LLM makes it."
        )
    try:
        connection = connect(path, BUSY_SECONDS)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"The store of replies {path} cannot be used ({error}). Expected a file of this package, whole, on a disk "
            "with room. Name another folder with --cache DIR, or move this file away to start a new one."
        ) from error


def connect(path: Path, seconds: float) -> sqlite3.Connection:
    """Open a file and bring it to the present format, waiting so long for the lock of another process."""
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
            if not is_locked(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _check_length(connection: sqlite3.Connection, path: Path) -> None:
    # sqlite takes a last page that was cut off for whole. Asked by stat: closing an open file would drop its locks.
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    if path.stat().st_size % page and not size_of(path.with_name(f"{path.name}-wal")):
        raise sqlite3.DatabaseError("database disk image is malformed: its end is missing")


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
