"""Upkeep of stores of replies: what one holds, what goes from it, and replies carried from one to another."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arhn_datasets.annotators.client import store
from arhn_datasets.annotators.client.store import FILE_NAME, Origin, Stored, insert, origin_of, reply_of, size_of
from arhn_datasets.errors import InputError, OutputError, StoreError

ROWS = "FROM replies AS r LEFT JOIN origins AS o ON o.id = r.origin"
LATEST = 253_402_300_800  # the year 10000


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


def read_replies(directory: Path) -> Iterator[Stored]:
    """Every reply of a store, one after the other; raises as :func:`existing` does."""
    with existing(directory) as connection:
        query = f"SELECT r.k, o.model, o.revision, o.kind, r.stored, r.v {ROWS} ORDER BY r.rowid"
        yield from (_stored(*columns) for columns in connection.execute(query))


def page(directory: Path, after: int, most: int) -> tuple[list[Stored], int]:
    """Up to ``most`` replies that a store has taken since the one of number ``after``, and the number of the last.

    Numbers are those of this file, from 1 on and in the order of storing. Without a file there is none.
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
        raise StoreError(f"The store of replies cannot be made in {directory} ({error}). {store.ADVICE}") from error
    with existing(directory, make=True) as connection:
        trouble: InputError | None = None
        while trouble is None:
            batch: list[Stored] = []
            try:
                for stored in islice(replies, store.BATCH):
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
        connection = store.connect(path, store.BUSY_SECONDS)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"The store of replies {path} cannot be used ({error}). Expected a file of this package, whole, on a disk "
            "with room. Name another folder with --cache DIR, or move this file away to start a new one."
        ) from error


_KEPT = (
    "SELECT o.model, o.revision, o.kind, count(*), sum(length(CAST(r.v AS BLOB))), min(r.stored), max(r.stored) "
    f"{ROWS} {{}} GROUP BY o.id ORDER BY count(*) DESC, o.model, o.revision"
)


def store_size(directory: Path) -> int:
    """The bytes of the file and its journal; 0 where there is none."""
    return size_of(directory / FILE_NAME) + size_of(directory / f"{FILE_NAME}-wal")


def kept(directory: Path) -> list[Kept]:
    """What a store holds, by origin, the most replies first; raises as :func:`existing` does."""
    with existing(directory) as connection:
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
    """
    before = store_size(directory)
    with existing(directory) as connection:
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


def merge(directory: Path, other: Path) -> tuple[int, int]:
    """Add the replies of ``other`` that ``directory`` does not hold; how many were new, and how many came.

    Raises:
        InputError: ``other`` has no store, or is ``directory`` itself.
    """
    ours, theirs = directory / FILE_NAME, other / FILE_NAME
    if ours.exists() and theirs.exists() and ours.samefile(theirs):
        raise InputError(f"{other} is the store that replies would go to. Name another folder, or another --cache DIR.")
    with existing(other):  # before ours is made
        return add_replies(directory, read_replies(other))


def export_file(directory: Path, path: Path) -> int:
    """Write every reply as a line of JSON; how many.

    Raises:
        InputError: there is no store.
        OutputError: there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise OutputError(f"There is a file {path} already. Name another one, or remove it.")
    count, partial = 0, path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with existing(directory), open(partial, "x", encoding="utf-8") as file:
            for key, origin, stored, reply in read_replies(directory):
                model, revision, kind = origin or (None, None, "chat")
                entry = {"key": key.hex(), "model": model, "revision": revision, "kind": kind, "stored": stored}
                file.write(f"{json.dumps({**entry, 'reply': reply_of(reply)})}\n")
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
    """
    try:
        with open(path, "rb") as lines:
            return add_replies(directory, _imported_lines(lines, path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). Expected a file of arhn-cache export.") from error


def _imported_lines(lines: Iterable[bytes], path: Path) -> Iterator[Stored]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield _imported(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"Line {number} of {path} is no stored reply ({error}). Expected a line of arhn-cache export: a JSON "
                "object with key (32 hexadecimal digits), model, revision, stored (seconds) and reply (an object with "
                "a text)."
            ) from error


def _imported(entry: Any) -> Stored:
    if not isinstance(entry, dict):
        raise ValueError(f"found {type(entry).__name__}")
    key, reply, stored = entry.get("key"), entry.get("reply"), entry.get("stored")
    model, revision, kind = entry.get("model"), entry.get("revision"), entry.get("kind", "chat")
    try:
        short = bytes.fromhex(key) if isinstance(key, str) else b""
    except ValueError:
        short = b""
    if len(short) != 16:
        raise ValueError(f"its key is {str(key)[:80]!r}")
    if not isinstance(reply, dict) or not isinstance(reply.get("text"), str) or not reply["text"].strip():
        raise ValueError("its reply has no text")
    if type(stored) is not int or not 0 <= stored < LATEST:
        raise ValueError(f"stored is {str(stored)[:80]!r}")
    if not isinstance(kind, str) or not all(name is None or isinstance(name, str) for name in (model, revision)):
        raise ValueError("model, revision or kind is no text")
    return Stored(short, origin_of(model, revision, kind), stored, json.dumps(reply))


def _kept(connection: sqlite3.Connection, where: str = "") -> list[Kept]:
    return [
        Kept(None if model is None else Origin(model, revision, kind), *counts)
        for model, revision, kind, *counts in connection.execute(_KEPT.format(where))
    ]
