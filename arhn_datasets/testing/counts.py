"""What the emulator has seen and done."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stats:
    """A snapshot of the counters.

    Requests are those that ask for text, or of a server of scores for those of ``texts``; times are in seconds.
    ``duplicates`` are requests whose body came before, ``served_twice`` those of them that were also answered before,
    with a 200. ``busy_seconds`` is the sum of the service times, ``wasted_seconds`` of those for clients that were
    gone, ``span_seconds`` from the first service to the end of the last.
    """

    requests: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    by_path: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    peak_in_flight: int = 0
    slots: int = 0
    queued: int = 0
    running: int = 0
    busy_seconds: float = 0.0
    wasted_seconds: float = 0.0
    span_seconds: float = 0.0
    texts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    distinct: int = 0
    duplicates: int = 0
    served: int = 0
    served_twice: int = 0
    cancelled: int = 0
    sampled: int = 0
    penalised: int = 0
    grammars_compiled: int = 0
    connections: int = 0

    @property
    def utilisation(self) -> float:
        """Busy share of the slots between the first service and the end of the last."""
        return self.busy_seconds / (self.slots * self.span_seconds) if self.span_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Every counter, and the utilisation."""
        return {**asdict(self), "utilisation": self.utilisation}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Stats:
        """The snapshot that :meth:`to_json` gave."""
        return cls(**{name: one for name, one in value.items() if name != "utilisation"})

    def summary(self) -> str:
        """One line for people."""
        status = ", ".join(f"{count} x {name}" for name, count in sorted(self.by_status.items())) or "none"
        return (
            f"{self.requests} requests ({status}), {self.duplicates} repeated, {self.cancelled} cancelled, "
            f"at most {self.peak_in_flight} in flight; {self.prompt_tokens} tokens in ({self.cached_tokens} cached), "
            f"{self.generated_tokens} out; {self.busy_seconds:.1f} s busy, utilisation {self.utilisation:.3f}"
        )


class Counts:
    """The running counters; changed on the server's loop, read from any thread."""

    def __init__(self, in_flight: int = 0) -> None:
        self.numbers, self.by_status, self.by_path, self.failures, self.faults = (Counter[str]() for _ in range(5))
        self.in_flight = self.peak_in_flight = in_flight
        self._answered: dict[int, bool] = {}  # by the hash of a body

    def see(self, body: bytes) -> int:
        """Count a request for text; its number, from 1."""
        key = hash(body)
        self.numbers["requests"] += 1
        self.numbers["duplicates"] += key in self._answered
        self._answered.setdefault(key, False)
        return self.numbers["requests"]

    def serve(self, body: bytes) -> None:
        """Count a reply with a 200."""
        key = hash(body)
        self.numbers["served"] += 1
        self.numbers["served_twice"] += self._answered.get(key, False)
        self._answered[key] = True

    def enter(self, permits: int) -> None:
        """Count permits taken."""
        self.in_flight += permits
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def snapshot(self, **gauges: Any) -> Stats:
        """The counters now, with what the server adds."""
        tables = {name: dict(getattr(self, name)) for name in ("by_status", "by_path", "failures", "faults")}
        own = {name: getattr(self, name) for name in ("in_flight", "peak_in_flight")}
        return Stats(distinct=len(self._answered), **{**tables, **own, **self.numbers, **gauges})
