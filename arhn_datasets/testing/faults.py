"""The fault script: what goes wrong, and with which request."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from arhn_datasets.errors import ConfigurationError

KINDS: Mapping[str, str] = {
    "429": "overloaded, with Retry-After where `retry_after` is given",
    "424_batch": "the backend fails half-way through: everybody in the running batch gets 424",
    "500": "incomplete generation",
    "502": "a gateway's HTML page",
    "503": "a gateway's HTML page, with Retry-After where `retry_after` is given",
    "504": "a gateway's HTML page",
    "reset_before": "the connection is reset before anything is done",
    "reset_middle": "half of the reply, then the connection ends",
    "reset_after": "served, then the connection is reset: before the reply is sent, or with `late` behind it",
    "hang": "no reply for `seconds`, by default for ever; a permit is held",
    "truncated_json": "200 with the first half of the JSON",
    "empty_text": "200 whose text is empty",
    "text_422": "422 as text/plain, as axum refuses a body",
    "413": "413 as text/plain",
    "401": "401 with an empty body",
    "wrong_content_type": "the right reply as text/html",
    "html_200": "200 with the HTML page of a proxy",
    "garbage": "200 with random text, or with `text`",
    "slow": "`seconds` more of service",
    "restart": "connections are reset and refused for `seconds`, then the server is back on its port",
    "model_change": "from now on another `model` and `revision`",
    "info_missing": "404 on /info; requests are counted for themselves",
    "unhealthy": "503 on /health; requests are counted for themselves",
}
_ROUTES = {"info_missing": "/info", "unhealthy": "/health"}


@dataclass(kw_only=True, eq=False)
class Seen:
    """A request as a predicate of a fault sees it; ``number`` counts from 1."""

    number: int
    path: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One line of the script.

    Args:
        kind: One of ``KINDS``.
        on: The number of a request for text, counted from 1, a range or list of numbers, or a function of the
            request; every one by default.
        match: Text that the request's body has to hold.
        probability: Of striking, drawn from ``seed`` and the number of the request.
        times: How often at most.
        seconds: Of ``hang``, ``slow`` and ``restart``.
        retry_after: The header of a 429 or 503.
        late: ``reset_after`` comes behind the reply.
        text: Of ``garbage``.
        model: Of ``model_change``.
        revision: Of ``model_change``.
        seed: Of ``probability``.

    Raises:
        ConfigurationError: there is no such kind.
    """

    kind: str
    on: int | Sequence[int] | Callable[[Seen], bool] | None = None
    match: str | None = None
    probability: float = 1.0
    times: int | None = None
    seconds: float | None = None
    retry_after: float | None = None
    late: bool = False
    text: str | None = None
    model: str | None = None
    revision: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", str(self.kind))
        if self.kind not in KINDS:
            raise ConfigurationError(f"There is no fault {self.kind!r}; the kinds are {', '.join(KINDS)}.")

    @property
    def route(self) -> str | None:
        """The route whose requests are counted, None for those that ask for text."""
        return _ROUTES.get(self.kind)

    def is_for(self, seen: Seen) -> bool:
        """Whether it strikes this request, leaving aside ``times``."""
        return (
            self._is_numbered(seen)
            and (self.match is None or self.match in str(seen.body))
            and (self.probability >= 1 or self.draw(seen.number).random() < self.probability)
        )

    def _is_numbered(self, seen: Seen) -> bool:
        if callable(self.on):
            return self.on(seen)
        if self.on is None or isinstance(self.on, int):
            return self.on in (None, seen.number)
        return seen.number in self.on

    def draw(self, number: int) -> random.Random:
        """The random numbers of this fault for the request of that number."""
        return random.Random(f"{self.seed} {self.kind} {number}")

    def to_json(self) -> dict[str, Any]:
        """As the admin route takes it; a range becomes ``{"from", "to"}``, both included.

        Raises:
            ConfigurationError: ``on`` is a function.
        """
        if callable(self.on):
            raise ConfigurationError("A fault with a function cannot be sent to another process; use match= or on=.")
        on: Any = self.on
        if isinstance(on, range) and on.step == 1:
            on = {"from": on.start, "to": on.stop - 1}
        elif isinstance(on, Sequence):
            on = list(on)
        values = {**asdict(self), "on": on}
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    @classmethod
    def from_json(cls, value: Any) -> Fault:
        """The fault that ``value`` describes.

        Raises:
            ConfigurationError: it describes none.
        """
        try:
            on = value.get("on")
            if isinstance(on, Mapping):
                on = range(int(on["from"]), int(on["to"]) + 1)
            return cls(**{**value, "on": on})
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"{value!r} describes no fault: {error}.") from error

    @classmethod
    def from_text(cls, text: str) -> Fault:
        """The fault of a command line: ``KIND``, ``KIND:NUMBER``, ``KIND:FROM-TO`` or ``KIND:PROBABILITY``.

        Raises:
            ConfigurationError: it is none of these.
        """
        kind, _, rest = text.partition(":")
        try:
            if not rest:
                return cls(kind=kind)
            if "." in rest:
                return cls(kind=kind, probability=float(rest))
            first, _, last = rest.partition("-")
            return cls(kind=kind, on=range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise ConfigurationError(f"{text!r} is no fault: {error}") from error


class FaultScript:
    """The faults that are still to come; safe to use from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._left: list[list[Any]] = []
        self.replace(faults)

    def __iter__(self) -> Any:
        with self._lock:
            return iter([fault for fault, _ in self._left])

    def replace(self, faults: Iterable[Fault]) -> None:
        """Begin another script."""
        left = [[fault, fault.times] for fault in faults]
        with self._lock:
            self._left = left

    def add(self, fault: Fault) -> None:
        """Go on with one more fault."""
        with self._lock:
            self._left.append([fault, fault.times])

    def pick(self, seen: Seen, route: str | None = None) -> Fault | None:
        """The first fault that strikes this request, counted down."""
        if not self._left:
            return None
        with self._lock:
            for entry in self._left:
                fault, times = entry
                if fault.route == route and times != 0 and fault.is_for(seen):
                    entry[1] = None if times is None else times - 1
                    return fault  # type: ignore[no-any-return]
        return None
