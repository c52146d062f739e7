"""What batch runs have replied, into the store: the output and error files of OpenAI's kin and of vLLM's run-batch.

A file may come in pieces, twice, unfinished or in any order. Only a whole, successful reply to a request of the plan is
stored. The rest is counted by its reason; a request that failed is planned again, and one without any line is out.
A reply does not say what was asked, so a reply under the id of another request is found by what surrounds it: two
different replies under one id are both refused, and so is what :mod:`arhn_datasets.annotators.client.doubts` finds odd.
Such a request is asked once more, and believed when the second reply counts the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from arhn_datasets.annotators.client import planning
from arhn_datasets.annotators.client.completions import is_cut, is_whole
from arhn_datasets.annotators.client.contract import DEFAULTS, ChatRequest, Completion, parse_completion
from arhn_datasets.annotators.client.cutting import Cutting
from arhn_datasets.annotators.client.doubts import Counting, Extent, counting, oddly_counted, out_of_order
from arhn_datasets.annotators.client.planning import AGAIN, ANSWERED, CUT, FAILED, MEASURED, OUT, Plan, Planned
from arhn_datasets.annotators.client.refusals import error_of, error_within, refused_option
from arhn_datasets.annotators.client.store import Stored, insert, origin_of, reply_of
from arhn_datasets.annotators.client.store_upkeep import existing
from arhn_datasets.errors import (
    AccessDenied,
    EmptyReply,
    EndpointError,
    EndpointFailure,
    InputError,
    PromptTooLong,
    RequestRejected,
)

MOST_TOKENS = 10**9
TOGETHER = 50_000  # lines that are looked at together, so that a line out of order is seen
_KEY = re.compile(r"[0-9a-f]{32}")
_DATED = re.compile(r"[-@:](?:\d[\d.-]*|latest)")
_ENDED = re.compile(r"batch_(?:expired|cancelled|canceled)", re.IGNORECASE)

CUT_JSON, UNKNOWN, NO_REPLY = "cut or broken JSON", "an id that was not planned", "no reply in the line"
OTHER_MODEL, NO_REASON = "another model than planned", "no known reason of the end (finish_reason)"
TOO_MANY = "another number of tokens than can be"
CONFLICT, OUT_OF_ORDER = "different replies under one id", "out of order, perhaps under the id of another request"
ODD_COUNT = "a count of tokens that its prompt cannot have, perhaps under the id of another request"
DOUBTS = (CONFLICT, OUT_OF_ORDER, ODD_COUNT)
KNOWN, DIFFERENT = "known", "different"


class Line(NamedTuple):
    """A line of an output: under which id, what it says, and a hash of all of it."""

    key: bytes
    said: Completion | EndpointError
    model: str | None
    options: tuple[str, ...]
    hash: str


@dataclass(kw_only=True)
class Ingested:
    """What was read: lines, replies that are new, that were there, and what was not taken, by its reason."""

    files: int = 0
    lines: int = 0
    stored: int = 0
    known: int = 0
    cut: int = 0
    failed: int = 0
    different: int = 0
    unfinished: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)

    def refuse(self, reason: str, example: str) -> None:
        """Count what was not taken."""
        self.reasons[reason] += 1
        self.example.setdefault(reason, example)


class Ingestion:
    """The way of replies into a store; ``served_as`` are other names under which the planned model answers."""

    def __init__(self, plan: Plan, directory: Path, served_as: Collection[str] = (), whole_below: int = 0) -> None:
        self._plan, self._directory, self._whole_below = plan, directory, whole_below
        self._names = {name.casefold() for name in served_as}
        self._files = {file.number: file for file in plan.files()}
        self._cutting = Cutting()
        self.done = Ingested()

    def read(self, paths: Sequence[Path]) -> Ingested:
        """Read the files, one after the other.

        Raises:
            InputError: one cannot be read; those before it are taken.
            AccessDenied: not one request of the plan was answered, and all were refused.
            StoreError: the store cannot be used.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in paths:
            self.done.files += 1
            lines = self._lines(path)
            while batch := list(islice(lines, TOGETHER)):
                self._take([line for line in batch if line is not None])
        self._check_any()
        return self.done

    def end(self, file: int) -> int:
        """Say that nothing more comes of a file of requests: what has no reply is planned again; how many."""
        query = "UPDATE requests SET status = ? WHERE status = ? AND file = ?"
        return self._plan.connection.execute(query, (AGAIN, OUT, file)).rowcount

    # -- lines --------------------------------------------------------------------------------------------------------

    def _lines(self, path: Path) -> Iterator[Line | None]:
        try:
            for number, (raw, entry) in enumerate(_entries(path), 1):
                self.done.lines += 1
                if entry is None and not raw.endswith(b"\n"):
                    self.done.unfinished.append(path.name)
                yield self._line(raw, entry, f"line {number} of {path.name}")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error}). Expected an output file of a batch: JSONL, or Parquet."
            ) from error

    def _line(self, raw: bytes, entry: Any, where: str) -> Line | None:
        """A line of a planned request, None for what is none, which is counted."""
        if not isinstance(entry, dict):
            self.done.refuse(CUT_JSON, where)
            self._broken(raw)
            return None
        name = entry.get("custom_id")
        key = bytes.fromhex(name) if isinstance(name, str) and _KEY.fullmatch(name) else None
        known = None if key is None else self._plan.known(key)
        if key is None or known is None:
            self.done.refuse(UNKNOWN, f"{where}: {str(name)[:64]!r}")
            return None
        hashed = hashlib.blake2b(raw.strip(), digest_size=8).hexdigest()
        sent = tuple(self._plan.body_of(known)) if entry.get("response") is None or _status(entry) != 200 else ()
        found = _said(entry, self._whole_below)
        if found is None:
            self.done.refuse(NO_REPLY, where)
            return None
        return Line(key, found[0], found[1], sent, hashed)

    def _broken(self, raw: bytes) -> None:
        """A whole line that is broken is a reply that is lost; one without an end may still be written."""
        found = re.search(rb'"custom_id"\s*:\s*"([0-9a-f]{32})"', raw)
        if found and raw.endswith(b"\n"):
            key = bytes.fromhex(found[1].decode())
            known = self._plan.known(key)
            if known is not None and known.status == OUT:
                hashed = hashlib.blake2b(raw.strip(), digest_size=8).hexdigest()
                self._failed(Line(key, EmptyReply(CUT_JSON), None, (), hashed), known, again=True)

    # -- what becomes of them -----------------------------------------------------------------------------------------

    def _take(self, lines: Sequence[Line]) -> None:
        """Store what is whole, and note what failed; first the store, then the state, so that no reply is lost."""
        doubted = self._doubted(lines)
        new: dict[bytes, tuple[Stored, Planned, Completion]] = {}
        with existing(self._directory, make=True) as store:
            notes: list[tuple[Line, Planned, str | EndpointError | Completion]] = []
            for line in lines:
                known = self._plan.known(line.key)
                assert known is not None
                verdict = self._verdict(line, known, doubted.get(line.key))
                if isinstance(verdict, Completion) and not is_cut(verdict.finish_reason):
                    self._keep(store, line, known, verdict, new)
                else:
                    notes.append((line, known, verdict))
            stored = [one for one, *_ in new.values()]
            for at in range(0, len(stored), 64):
                part = stored[at : at + 64]
                insert(store, part, {one.origin for one in part if one.origin}, "REPLACE")
        self._plan.connection.execute("BEGIN")
        try:
            for key in {line.key for line in lines} - {line.key for line, *_ in notes} | new.keys():
                self._plan.connection.execute(
                    "UPDATE requests SET status = ?, said = NULL WHERE k = ?", (ANSWERED, key)
                )
            self._measure([(known, completion) for _, known, completion in new.values()])
            for line, _, verdict in notes:
                known = self._plan.known(line.key)
                if known is not None and known.status != ANSWERED:
                    self._noted(line, known, verdict)
                else:
                    self.done.known += 1
            self._plan.connection.execute("COMMIT")
        except BaseException:
            self._plan.connection.execute("ROLLBACK")
            raise

    def _keep(
        self,
        store: sqlite3.Connection,
        line: Line,
        known: Planned,
        completion: Completion,
        new: dict[bytes, tuple[Stored, Planned, Completion]],
    ) -> None:
        """Count a whole reply, and take it where the store has none."""
        row = store.execute("SELECT v FROM replies WHERE k = ?", (line.key,)).fetchone()
        before = reply_of(new[line.key][0].reply) if line.key in new else reply_of(row[0]) if row else None
        usable = before is not None and isinstance(before.get("text"), str) and not is_cut(before.get("finish_reason"))
        if usable and before is not None:
            self.done.known += 1
            if before["text"] != completion.text:
                self.done.different += 1
            return
        file = self._files[known.file]
        reply = {name: value for name, value in asdict(completion).items() if name != "sampled"}
        origin = origin_of(file.model, file.revision, "chat")
        new[line.key] = Stored(line.key, origin, int(time.time()), json.dumps(reply)), known, completion
        self.done.stored += 1

    def _verdict(self, line: Line, known: Planned, doubt: str | None) -> Completion | EndpointError | str:
        """What a line is worth: a reply, an error of its request, or the reason why it is not taken."""
        said = line.said
        if not isinstance(said, Completion):
            return said
        file = self._files[known.file]
        if line.model is not None and not self._is_model(line.model, file.model):
            return OTHER_MODEL
        if is_cut(said.finish_reason):
            return doubt or said
        if not said.text.strip():
            return EmptyReply("the server answered 200 with an empty text")
        if not is_whole(said.finish_reason):
            return NO_REASON
        if not 0 <= (said.completion_tokens or 0) <= known.most + 1 or not 0 <= (said.prompt_tokens or 0) < MOST_TOKENS:
            return TOO_MANY
        if doubt and not _confirms(line, known):
            return doubt
        try:
            self._cutting.check(cast(ChatRequest, _Sent(self._plan, known)), said)
        except PromptTooLong as error:
            return error
        return said

    def _is_model(self, found: str, planned: str) -> bool:
        found, planned = found.casefold(), planned.casefold()
        if found in (planned, *self._names):
            return True
        one, other = found.rpartition("/")[2], planned.rpartition("/")[2]
        return one == other or (one.startswith(other) and bool(_DATED.fullmatch(one[len(other) :])))

    def _doubted(self, lines: Sequence[Line]) -> dict[bytes, str]:
        """The ids whose replies may be those of others, and why."""
        firsts: dict[bytes, Completion] = {}
        doubted: dict[bytes, str] = {}
        for line in lines:
            if isinstance(line.said, Completion) and firsts.setdefault(line.key, line.said).text != line.said.text:
                doubted[line.key] = CONFLICT
        asked = {key: planned for key in firsts if (planned := self._plan.known(key)) is not None}
        keys = list(firsts)
        moved = out_of_order([(asked[key].file, asked[key].at) for key in keys])
        if moved is not None:  # and counts of tokens, which now and then are odd, are not needed
            return {**{keys[at]: OUT_OF_ORDER for at in moved}, **doubted}
        counted = [(key, count) for key in keys if 0 < (count := firsts[key].prompt_tokens or 0) < MOST_TOKENS]
        extents, tokens = [asked[key].extent for key, _ in counted], [count for _, count in counted]
        for at in oddly_counted(self._counting(extents, tokens), extents, tokens):
            doubted.setdefault(counted[at][0], ODD_COUNT)
        return doubted

    def _counting(self, extents: Sequence[Extent], tokens: Sequence[int]) -> Counting | None:
        """How these are counted or, where they are few, those of before."""
        found = counting(extents, tokens)
        if found is not None:
            self._plan.note("counting", json.dumps(found))
            return found
        noted = json.loads(self._plan.fact("counting") or "null")
        return None if noted is None else Counting(tuple(noted[0]), noted[1])

    def _noted(self, line: Line, known: Planned, verdict: str | EndpointError | Completion) -> None:
        if isinstance(verdict, Completion):
            self.done.cut += 1
            self._note(line, known, CUT, json.dumps(asdict(verdict)))
        elif isinstance(verdict, str):
            self.done.refuse(verdict, line.key.hex())
            doubt = None
            if verdict in DOUBTS and isinstance(line.said, Completion):
                doubt = json.dumps({"doubted": line.said.prompt_tokens, "text": line.said.text, "line": line.hash})
            self._failed(line, known, again=doubt is not None, said=doubt)
        else:
            self.done.failed += 1
            self.done.refuse(f"{type(verdict).__name__}: {verdict}"[:200], line.key.hex())
            option = self._refused_option(line, known, verdict)
            again = bool(option) or bool(_ENDED.search(str(verdict))) or getattr(verdict, "lasting", False)
            final = isinstance(verdict, RequestRejected) and not again
            self._failed(line, known, again=again, final=final, said=planning.said_of(verdict))

    def _refused_option(self, line: Line, known: Planned, error: EndpointError) -> str | None:
        """The option that a provider refuses, which is left out from now on."""
        status = re.match(r"(\d{3}): ", str(error))
        if status is None:
            return None
        words = json.dumps({"error": {"message": str(error)}}).encode()
        option = refused_option(int(status[1]), words, dict.fromkeys(line.options))
        if option is not None:
            self._plan.refuse(self._files[known.file].model, option)
        return option

    def _failed(self, line: Line, known: Planned, *, again: bool, final: bool = False, said: str | None = None) -> None:
        """Note a request that failed, each line once: the file of an earlier round may come again."""
        seen = (known.seen or "").split()
        if line.hash in seen or known.status in (ANSWERED, FAILED, CUT):
            return
        tries = known.tries + (not again)
        most = int(DEFAULTS["attempts"])
        status = FAILED if final or tries >= most else AGAIN
        if said is None:
            said = planning.said_of(EndpointFailure(self._reason_of(line)))
        self._note(line, known._replace(tries=tries, seen=" ".join([*seen[-most:], line.hash])), status, said)

    def _reason_of(self, line: Line) -> str:
        return str(line.said) if not isinstance(line.said, Completion) else "no reply of this request could be taken"

    def _note(self, line: Line, known: Planned, status: int, said: str) -> None:
        self._plan.connection.execute(
            "UPDATE requests SET status = ?, tries = ?, said = ?, seen = ? WHERE k = ?",
            (status, known.tries, said, known.seen, line.key),
        )

    def _measure(self, taken: Sequence[tuple[Planned, Completion]]) -> None:
        """Add to what estimates are made of."""
        counted = [(known, one) for known, one in taken if one.prompt_tokens and one.completion_tokens]
        sums = (
            sum(known.characters for known, _ in counted),
            sum(one.prompt_tokens or 0 for _, one in counted),
            sum(one.completion_tokens or 0 for _, one in counted),
            len(counted),
        )
        for name, more in zip(MEASURED, sums, strict=True):
            self._plan.note(name, str(int(self._plan.fact(name) or 0) + more))

    def _check_any(self) -> None:
        """Where a provider refuses all, it is no matter of one prompt, and nothing is to be made of it."""
        query = "SELECT said FROM requests WHERE status = ? AND said NOT LIKE '%PromptTooLong%'"
        row = self._plan.connection.execute(query, (FAILED,)).fetchone()
        if row is None or self._plan.count(ANSWERED) or self._plan.count(CUT):
            return
        failed, message = self._plan.count(FAILED), json.loads(row[0]).get("message")
        self._plan.connection.execute("UPDATE requests SET status = ?, tries = 0 WHERE status = ?", (AGAIN, FAILED))
        raise AccessDenied(
            f"No request of the plan was answered, and {failed:,} were refused: {message}. Expected replies. Mend the "
            "cause (the model, the key, the limits of the provider); the same command then plans them again."
        )


class _Sent:
    """A request of the plan, whose text is read from its file only where it is needed."""

    def __init__(self, plan: Plan, known: Planned) -> None:
        self._plan, self._known, self.max_tokens = plan, known, known.most

    def characters(self) -> int:
        """As of the request."""
        return self._known.characters

    @property
    def messages(self) -> Sequence[dict[str, str]]:
        """As of the request; none where its file is gone."""
        return self._plan.body_of(self._known).get("messages") or ()


def _confirms(line: Line, known: Planned) -> bool:
    """Whether this is the second reply to a request that was doubted, and counts the same tokens as the first."""
    said = json.loads(known.said or "{}")
    if "doubted" not in said or said["line"] == line.hash or not isinstance(line.said, Completion):
        return False
    if line.said.prompt_tokens is not None:
        return bool(said["doubted"] == line.said.prompt_tokens)
    return bool(said["text"] == line.said.text)


def _entries(path: Path) -> Iterator[tuple[bytes, Any]]:
    """The lines of a file and what they hold, None for what is no JSON; of Parquet each row as a line."""
    if path.suffix == ".parquet":
        yield from _rows(path)
        return
    with open(path, "rb") as lines:
        for raw in lines:
            if raw.strip():
                try:
                    yield raw, json.loads(raw)
                except (ValueError, RecursionError):
                    yield raw, None


def _rows(path: Path) -> Iterator[tuple[bytes, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                row = {name: value for name, value in row.items() if name != "messages"}
                yield json.dumps(row, default=str).encode() + b"\n", row
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file ({error}). Expected one with custom_id and response.") from error


def _status(entry: Any) -> Any:
    response = entry.get("response")
    return response.get("status_code") if isinstance(response, dict) else 200


def _said(entry: Any, whole_below: int) -> tuple[Completion | EndpointError, str | None] | None:
    """What a line says of its request and which model says it; None for nothing."""
    response, error = entry.get("response"), entry.get("error")
    if isinstance(response, str):
        return _text(entry, response, whole_below), entry.get("served_model")
    if not isinstance(response, dict):
        return (_error(500, error), None) if error else None
    status, body = response.get("status_code"), response.get("body")
    if error or status != 200:
        # The error stands beside the response, or is its body.
        status = status if type(status) is int and status >= 300 else 500
        return _error(status, error or body or "no message"), None
    if isinstance(body, str):
        body = _json(body)
    if not isinstance(body, dict):
        return EmptyReply("200 without a body"), None
    model = body.get("model")
    try:
        return parse_completion(json.dumps(body).encode()), model if isinstance(model, str) else None
    except EndpointError as found:
        return found, model if isinstance(model, str) else None


def _error(status: int, error: Any) -> EndpointError:
    if isinstance(error, dict) and isinstance(error.get("error"), dict):  # vLLM has it in another one
        error = error["error"]
    if status == 500:
        named = error_within(json.dumps({"error": error}).encode())
        if named is not None:
            return named
    return error_of(status, json.dumps({"error": error}).encode())


def _text(entry: Any, text: str, whole_below: int) -> Completion:
    """A row with nothing but the text of a reply, which cannot have been cut off where it has fewer bytes than that."""
    reason = entry.get("finish_reason")
    if reason is None and len(text.encode("utf-8", "replace")) < whole_below:
        reason = "stop"
    read, written = (
        value if type(value := entry.get(name)) is int else None for name in ("prompt_tokens", "completion_tokens")
    )
    reason = reason if isinstance(reason, str) else None
    return Completion(text=text, finish_reason=reason, prompt_tokens=read, completion_tokens=written)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
