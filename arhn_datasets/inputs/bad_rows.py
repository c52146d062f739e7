"""Rows that break their form: found in one pass, then refused all together or set aside with their reasons."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.passages import BrokenRow
from arhn_datasets.rows.records import shorten

T = TypeVar("T")

logger = logging.getLogger(__name__)

STOP, SET_ASIDE = "stop", "set-aside"
ON_BAD_ROW = (STOP, SET_ASIDE)
FILE = "bad-rows.jsonl"
NAMED_AT_MOST = 5
QUERIES = ("query_id", "query", "anchor", "question", "query_text", "messages")


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that breaks its form: its place in the source, counted from 0, what is wrong, and all that it holds."""

    row: int
    reason: str
    content: Mapping[str, Any]
    split: str | None = None

    def line(self) -> str:
        """It as a line of JSON; what JSON cannot hold is there as text."""
        told = {"split": self.split, "row": self.row, "reason": self.reason, "content": dict(self.content)}
        return json.dumps(told, ensure_ascii=True, default=str) + "\n"


OnBadRow: TypeAlias = "str | Callable[[BadRow], object]"
"""``"stop"``, ``"set-aside"``, or what takes each of the rows that are set aside."""


def check_choice(on_bad_row: OnBadRow) -> None:
    """Refuse another choice.

    Raises:
        ConfigurationError: it is none.
    """
    if not callable(on_bad_row) and on_bad_row not in ON_BAD_ROW:
        raise ConfigurationError(
            f"on_bad_row is {on_bad_row!r}; one of {', '.join(ON_BAD_ROW)}, or a function that takes each bad row, was "
            "expected."
        )


def halved(count: int, read: Callable[[int, int], T]) -> tuple[list[T], list[tuple[int, str]]]:
    """What ``read`` gives for the rows from one place to another, without those that break it, and these with reasons.

    Good rows are read together; only a part that breaks is halved, down to the row that is bad.
    """
    good: list[T] = []
    bad: list[tuple[int, str]] = []

    def within(start: int, end: int) -> None:
        try:
            good.append(read(start, end))
        except BrokenRow as broken:
            if end - start <= 1:
                bad.append((start, str(broken)))
                return
            middle = (start + end) // 2
            within(start, middle)
            within(middle, end)

    if count:
        within(0, count)
    return good, bad


def told(bad: Sequence[BadRow], total: int, on_bad_row: OnBadRow) -> None:
    """Refuse the bad rows of a dataset of ``total`` rows, or hand them over.

    Raises:
        SchemaError: there are some, and they shall stop the work.
    """
    if not bad:
        return
    first = [f"In the row {_named(row)}: {row.reason}" for row in bad[:NAMED_AT_MOST]]
    more = [f"... and {len(bad) - NAMED_AT_MOST:,} more"] if len(bad) > NAMED_AT_MOST else []
    if on_bad_row == STOP:
        lines = "\n".join(f"  {line}" for line in [*first, *more])
        raise SchemaError(
            f"{len(bad):,} of {total:,} rows break their form:\n{lines}\nCorrect these rows, or refine the others: "
            f"arhn-refine --on-bad-row {SET_ASIDE} writes these to {FILE}, and "
            f"arhn.adapt_dataset(ds, on_bad_row={SET_ASIDE!r}) leaves them out."
        )
    if callable(on_bad_row):
        for row in bad:
            on_bad_row(row)
    else:
        logger.warning("%d of %d rows break their form and are left out. %s", len(bad), total, " ".join(first))


def _named(row: BadRow) -> str:
    split = f"of {row.split!r} " if row.split else ""
    name = next((name for name in QUERIES if row.content.get(name) not in (None, "")), QUERIES[1])
    return f"{split}with {name} {shorten(repr(row.content.get(name)), 100)} (row {row.row}, counted from 0)"


class Noted:
    """The bad rows of a run that are set aside: in memory, and in a file once it is opened; how many there are."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._waiting: list[BadRow] = []
        self._path: Path | None = None

    @property
    def total(self) -> int:
        """So many so far."""
        return sum(self.rows.values())

    def add(self, row: BadRow) -> None:
        """Note one more."""
        self.rows[row.split or ""] = self.rows.get(row.split or "", 0) + 1
        if self._path is None:
            self._waiting.append(row)
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(row.line())

    def keep(self, rows: Sequence[BadRow]) -> None:
        """These only, of those that wait for a file."""
        self.rows, self._waiting = {}, []
        for row in rows:
            self.add(row)

    def part(self, index: int, of: int) -> Sequence[BadRow]:
        """Those of a shard: each is in one of them."""
        count = len(self._waiting)
        return self._waiting[count * index // of : count * (index + 1) // of]

    def open(self, folder: Path, known: int) -> None:
        """Write them into a folder, behind so many of an earlier run there that this one goes on from."""
        path, waiting = folder / FILE, self._waiting
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:known] if known and path.exists() else []
        if lines or waiting or path.exists():
            path.write_text("".join(lines), encoding="utf-8")
        self._path, self.rows = path, dict(Counter(str(json.loads(line)["split"] or "") for line in lines))
        for row in waiting:
            self.add(row)
        if path.exists() and not path.stat().st_size:
            path.unlink()
