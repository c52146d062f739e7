"""The plan of batch rounds: a folder with files of requests to hand over, and a small state of each request.

A request is known by the key of its reply in the store, so a plan and a store belong together. Files of requests are
never changed once they have their name. The state is one sqlite file; what it says of a file of requests and of those
in it comes in one transaction, before the file gets its name, so a plan is whole after any end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from arhn_datasets import errors
from arhn_datasets.annotators.client import contract
from arhn_datasets.annotators.client.contract import ChatRequest, Completion, ServerInfo
from arhn_datasets.annotators.client.doubts import Extent, extent_of
from arhn_datasets.annotators.client.pool import Statistics
from arhn_datasets.annotators.client.refusals import OPTIONAL
from arhn_datasets.annotators.client.request_files import MEGABYTE, FileLimits, check_file, line_of, not_taken_by
from arhn_datasets.errors import ConfigurationError, EndpointError, InputError, NotYetAnsweredError, OutputError

STATE = "state.sqlite3"
APPLICATION_ID = 0x4152484F
FORMAT = 1
BUSY_SECONDS = 5.0
CHARACTERS_A_TOKEN = 4.0  # before replies have told it
OUT, AGAIN, ANSWERED, FAILED, CUT = range(5)
"""What is known of a request: handed over; to be asked again; replied to; refused for good; cut off at its limit."""

_TABLES = """
CREATE TABLE requests (k BLOB PRIMARY KEY, file INTEGER NOT NULL, at INTEGER NOT NULL, characters INTEGER NOT NULL,
    wide INTEGER NOT NULL, pieces INTEGER NOT NULL, most INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, said TEXT, seen TEXT);
CREATE TABLE files (number INTEGER PRIMARY KEY, model TEXT NOT NULL, revision TEXT, lines INTEGER NOT NULL,
    bytes INTEGER NOT NULL, characters INTEGER NOT NULL, most INTEGER NOT NULL, batch TEXT);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX by_status ON requests (status);
"""
_BUSY = "Another command works on the plan {}. Wait for its end, then run this one again."


class Planned(NamedTuple):
    """A request of a plan: in which file and where it stands, its size, and what is known of it."""

    file: int
    at: int
    characters: int
    wide: int
    pieces: int
    most: int
    status: int
    tries: int
    said: str | None
    seen: str | None

    @property
    def extent(self) -> Extent:
        """What its tokens follow from."""
        return Extent(self.characters, self.wide, self.pieces)


class RequestFile(NamedTuple):
    """A file of requests: for which model, its size, and the batch that it became, as JSON."""

    number: int
    model: str
    revision: str | None
    lines: int
    bytes: int
    characters: int
    most: int
    batch: str | None

    @property
    def name(self) -> str:
        """Its name in the folder of the plan."""
        return name_of(self.number)


@dataclass(kw_only=True)
class Sums:
    """Requests and what they hold: characters of prompts, and the most tokens of replies."""

    requests: int = 0
    characters: int = 0
    most: int = 0


def name_of(number: int) -> str:
    """The name of a file of requests."""
    return f"requests-{number:05d}.jsonl"


def short_key(key: str) -> bytes:
    """The key under which the store has a reply; its hexadecimal digits are the ``custom_id``."""
    return bytes.fromhex(key)[:16]


@dataclass(eq=False)
class Plan:
    """The plan in a folder, to itself until it is closed; a context manager.

    Args:
        folder: Where it is; made where ``make`` says so.
        make: Whether there need not be one yet.
        limits: The size of the files to write.
        replan: Whether requests are planned again that were handed over and have no reply, or were refused.

    Raises:
        InputError: there is no plan.
        OutputError: another process works on it, or it cannot be read or written.
    """

    folder: Path
    make: bool = False
    limits: FileLimits = field(default_factory=FileLimits)
    replan: bool = False

    def __post_init__(self) -> None:
        if not self.make and not (self.folder / STATE).exists():
            raise InputError(
                f"There is no plan in {self.folder}: no {STATE}. Name the folder that arhn-refine ROWS --plan DIR made."
            )
        self._lock = threading.RLock()
        self.served, self.new, self.out = Statistics(), Sums(), 0
        self.files_written: list[Path] = []
        self._file: IO[bytes] | None = None
        self._lines = self._bytes = self._characters = self._most = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.connection = self._opened()
            self._settle()
        except (OSError, sqlite3.Error) as error:
            raise self.trouble(error) from error
        self.number = self.first = self._number("SELECT coalesce(max(number), 0) + 1 FROM files")
        self._refused: frozenset[str] | None = None

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> sqlite3.Connection:
        path = self.folder / STATE
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # one process at a time, also between transactions
        connection.execute("BEGIN EXCLUSIVE")
        tables, application, version = (
            connection.execute(query).fetchone()[0]
            for query in ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
        )
        if not tables:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif (application, version) != (APPLICATION_ID, FORMAT):
            connection.close()
            raise sqlite3.DatabaseError("it is no state of a plan, or one of another version of this package")
        connection.execute("COMMIT")
        connection.execute("CREATE TEMP TABLE told (k BLOB PRIMARY KEY) WITHOUT ROWID")
        return connection

    def _settle(self) -> None:
        """Finish or undo what an earlier process has left half done."""
        known = {name_of(number) for (number,) in self.connection.execute("SELECT number FROM files")}
        for partial in self.folder.glob("requests-*.jsonl.partial"):
            name = partial.name.removesuffix(".partial")
            if name in known and not (self.folder / name).exists():
                partial.replace(self.folder / name)
            else:
                partial.unlink()

    def trouble(self, error: BaseException) -> OutputError:
        """The error of the system or of sqlite as ours."""
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return OutputError(_BUSY.format(self.folder))
        return OutputError(
            f"The plan {self.folder} cannot be used ({error}). Expected a folder of arhn-refine --plan on a disk with "
            "room that can be written. Name another folder, or move this one away to plan afresh."
        )

    def _number(self, query: str, *values: Any) -> int:
        value: int = self.connection.execute(query, values).fetchone()[0]
        return value

    # -- what is known ------------------------------------------------------------------------------------------------

    def known(self, key: bytes) -> Planned | None:
        """What is known of a request, None where it was never planned."""
        row = self.connection.execute(
            "SELECT file, at, characters, wide, pieces, most, status, tries, said, seen FROM requests WHERE k = ?",
            (key,),
        ).fetchone()
        return None if row is None else Planned(*row)

    def files(self) -> list[RequestFile]:
        """The files of requests, in their order."""
        return [RequestFile(*row) for row in self.connection.execute("SELECT * FROM files ORDER BY number")]

    def count(self, status: int) -> int:
        """How many requests have this status."""
        return self._number("SELECT count(*) FROM requests WHERE status = ?", status)

    def refused(self, model: str | None) -> frozenset[str]:
        """The options of a request that the provider of this model does not take."""
        if self._refused is None:
            found = self.fact(f"refused {model}")
            self._refused = not_taken_by(model or "") if found is None else frozenset(json.loads(found))
        return self._refused

    def refuse(self, model: str, option: str) -> None:
        """Leave an option out of what is planned from now on."""
        listed = sorted(self.refused(model) | {option})
        self.note(f"refused {model}", json.dumps(listed))
        self._refused = frozenset(listed)

    def fact(self, name: str) -> str | None:
        """A fact that was noted."""
        row = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def note(self, name: str, value: str) -> None:
        """Note a fact."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def identity(self) -> str:
        """A name of this plan that no other one has."""
        found = self.fact("identity")
        if found is None:
            found = uuid.uuid4().hex
            self.note("identity", found)
        return found

    def body_of(self, planned: Planned) -> dict[str, Any]:
        """The body of a request, read from its file; empty where that is gone."""
        try:
            with open(self.folder / name_of(planned.file), "rb") as file:
                file.seek(planned.at)
                body: dict[str, Any] = json.loads(file.readline())["body"]
                return body
        except (OSError, ValueError, LookupError):
            return {}

    # -- planning -----------------------------------------------------------------------------------------------------

    def asked(self, key: str, request: ChatRequest, model: Mapping[str, Any]) -> Completion:
        """What is known of a request that the store has no reply to; it is planned where that is to be done.

        Raises:
            NotYetAnsweredError: it was planned, here or before.
            EndpointError: it was refused for good.
        """
        short = short_key(key)
        with self._lock:
            before = self.known(short)
            # Where a reply had come, the store is another one now, or was pruned.
            ask = before is None or before.status in (AGAIN, ANSWERED) or (self.replan and before.file < self.first)
            if ask and self.replan and before is not None and before.status in (FAILED, CUT):
                before = before._replace(tries=0)
            if not ask and before is not None and before.status in (FAILED, CUT):
                return self._ended(short, before)
            if ask:
                body = contract.chat_body(
                    ServerInfo(api=contract.OPENAI, model=model["model"]), request, refused=self.refused(model["model"])
                )
                extent = extent_of([message["content"] for message in request.messages])
                self._write(short, line_of(short, body), extent, request.max_tokens, model, before)
            elif before is not None and before.file < self.first and self._first_time(short):
                self.out += 1
        raise NotYetAnsweredError("A request of this round has no reply yet; its row goes on in the next round.")

    def answered(self, key: str, completion: Completion) -> bool:
        """Count a reply of the store as one of these rounds, the first time that it is read; whether it is one."""
        short = short_key(key)
        with self._lock:
            known = self.known(short)
            if known is None or not self._first_time(short):
                return False
        self._count(completion)
        return True

    def _ended(self, key: bytes, known: Planned) -> Completion:
        said, first = json.loads(known.said or "{}"), self._first_time(key)
        if known.status == CUT:
            completion = Completion(**said)
            if first:
                self._count(completion)
            return completion
        if first:
            self.served.requests += 1
            self.served.failures += 1
        raise error_from(said)

    def _count(self, completion: Completion) -> None:
        self.served.requests += 1
        self.served.replied(completion)

    def _first_time(self, key: bytes) -> bool:
        return self.connection.execute("INSERT OR IGNORE INTO told VALUES (?)", (key,)).rowcount > 0

    def _write(
        self, key: bytes, line: bytes, extent: Extent, most: int, model: Mapping[str, Any], before: Planned | None
    ) -> None:
        room = self.limits.megabytes * MEGABYTE
        if len(line) > room:
            raise ConfigurationError(
                f"One request has {len(line):,} bytes, more than a file may have ({self.limits.megabytes:g} MB). "
                "Expected shorter passages, or larger files: --megabytes."
            )
        if self._file is not None and (self._lines >= self.limits.lines or self._bytes + len(line) > room):
            self.finish_file()
        try:
            if self._file is None:
                self._file = open(self.folder / f"{name_of(self.number)}.partial", "wb", buffering=1 << 20)  # noqa: SIM115
                self._lines = self._bytes = self._characters = self._most = 0
                self._model = model["model"], model.get("revision")
                self.connection.execute("BEGIN")
            at = self._bytes
            self._file.write(line)
        except OSError as error:
            raise self.trouble(error) from error
        tries, said, seen = (0, None, None) if before is None else (before.tries, before.said, before.seen)
        self.connection.execute(
            "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, self.number, at, *extent, most, OUT, tries, said, seen),
        )
        self._lines += 1
        self._bytes += len(line)
        self._characters += extent.characters
        self._most += most

    def finish_file(self) -> None:
        """Check the file under way and give it its name; nothing where there is none.

        Raises:
            OutputError: it cannot be written, or is not what a provider takes.
        """
        with self._lock:
            if self._file is None:
                return
            partial = self.folder / f"{name_of(self.number)}.partial"
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                check_file(partial, self.limits, self._model[0])
                self.connection.execute(
                    "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                    (self.number, *self._model, self._lines, self._bytes, self._characters, self._most),
                )
                self.connection.execute("COMMIT")
                partial.replace(self.folder / name_of(self.number))
            except (OSError, sqlite3.Error) as error:
                raise self.trouble(error) from error
            self.files_written.append(self.folder / name_of(self.number))
            self.new.requests += self._lines
            self.new.characters += self._characters
            self.new.most += self._most
            self.number += 1
            self._file = None

    def plan_again(self) -> None:
        """Plan from the files of before what is to be asked again, and with ``replan`` what is out."""
        wanted = (AGAIN, OUT, FAILED, CUT) if self.replan else (AGAIN,)
        marks = ",".join("?" * len(wanted))
        models = {file.number: {"model": file.model, "revision": file.revision} for file in self.files()}
        listed = f"SELECT k FROM requests WHERE status IN ({marks}) AND file < ? ORDER BY file, at"
        for (key,) in self.connection.execute(listed, (*wanted, self.first)).fetchall():
            known = self.known(key)
            assert known is not None
            model = models[known.file]
            body = self.body_of(known)
            if not body:
                raise InputError(
                    f"{self.folder / name_of(known.file)} is gone or was changed, so its requests cannot be planned "
                    "again from it. Plan from the rows: arhn-refine ROWS --plan DIR."
                )
            for option in self.refused(model["model"]) & body.keys():
                instead = OPTIONAL[option]
                value = body.pop(option)
                if instead is not None:
                    body[instead] = value
            if self._file is not None and self._model[0] != model["model"]:
                self.finish_file()
            self._write(key, line_of(key, body), known.extent, known.most, model, known)
        self.finish_file()

    def close(self) -> None:
        """Undo the file under way and let go of the folder."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
                (self.folder / f"{name_of(self.number)}.partial").unlink(missing_ok=True)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.connection.close()

    # -- what it will cost --------------------------------------------------------------------------------------------

    def tokens(self, sums: Sums) -> tuple[int, int, str]:
        """Estimated tokens of prompts and of replies, and how they were estimated."""
        characters, prompt, completion, replies = (int(self.fact(name) or 0) for name in MEASURED)
        if replies and prompt:
            how = f"as in the {replies:,} replies so far"
            return round(sums.characters * prompt / characters), round(sums.requests * completion / replies), how
        how = f"{CHARACTERS_A_TOKEN:g} characters a token, and the most that the replies may have"
        return round(sums.characters / CHARACTERS_A_TOKEN), sums.most, how


MEASURED = ("measured characters", "measured prompt tokens", "measured completion tokens", "measured replies")


def said_of(error: EndpointError) -> str:
    """An error as the state keeps it."""
    ratio = getattr(error, "ratio", None)
    return json.dumps({"error": type(error).__name__, "message": str(error), "ratio": ratio})


def error_from(said: Mapping[str, Any]) -> EndpointError:
    """The error that :func:`said_of` has kept."""
    kind = getattr(errors, str(said.get("error")), errors.RequestRejected)
    message = str(said.get("message"))
    if kind is errors.PromptTooLong:
        return errors.PromptTooLong(message, said.get("ratio"))
    error: EndpointError = kind(message)
    return error
