"""What a verification checks, how often it did, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FILES, ROWS, PASSAGES, STATUSES = "files", "rows", "passages", "statuses"
SNIPPETS, RANKS, LABELS, COUNTS, FORMATS = "snippets", "ranks", "labels", "counts", "formats"

CHECKS: Mapping[str, str] = {
    FILES: "files as they were written",
    ROWS: "rows, as many as the source had",
    PASSAGES: "passages of the source, each in one list",
    STATUSES: "statuses known",
    SNIPPETS: "snippets word for word in their passage",
    RANKS: "ranks in order",
    LABELS: "rows labelled as the policy says",
    COUNTS: "counts in run.json and card",
    FORMATS: "rows of trainers' formats",
}
"""What each check counts."""

MOST_KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What is not as it must be, and where; ``row`` counts in its split, rows that a guard dropped last."""

    check: str
    message: str
    split: str | None = None
    row: int | None = None
    query_id: str | None = None

    def __str__(self) -> str:
        place = [] if self.split is None else [f"split {self.split}"]
        place += [] if self.row is None else [f"row {self.row}"]
        where = ", ".join(place) + (f" (query_id {self.query_id!r})" if self.row is not None else "")
        return f"{self.check}: {f'{where}: ' if where else ''}{self.message}"


@dataclass
class Record:
    """The state of a verification; of each check only the first hundred violations are kept."""

    checks: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def done(self, check: str, count: int) -> None:
        """So many things were checked."""
        self.checks[check] = self.checks.get(check, 0) + count

    def violated(self, check: str, message: str, **place: Any) -> None:
        """Something is not as it must be."""
        self.found[check] = self.found.get(check, 0) + 1
        if self.found[check] <= MOST_KEPT:
            self.violations.append(Violation(check=check, message=message, **place))
