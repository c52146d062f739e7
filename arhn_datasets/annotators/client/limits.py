"""How many requests a server gets at once, and whether it gets any: a limit with its queue, and a breaker."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from arhn_datasets.annotators.client.sizing import Pace

logger = logging.getLogger(__name__)

DECREASE = 0.5
RECOVERY_SECONDS = 1.0  # one burst of 429 comes from one excess: it lowers the limit once
FAILURES = 5  # in a row, before a server counts as dead
PROBE_SECONDS, PROBE_SECONDS_MAX = 0.5, 10.0
BACKOFF_MAX_SECONDS = 10.0


class AdaptiveLimit:
    """A limit of requests in flight that follows the server.

    A 429 halves it, at most once a second; every success raises it by its inverse, so by one each time that all slots
    were used, up to ``ceiling``. Waiting requests are served in order, at the ``pace`` of a server that limits them by
    time. Lives on one event loop.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._limit = float(ceiling)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.pace = Pace()
        self._lowered_at = float("-inf")
        self._refused = 0  # in a row
        self._timer: asyncio.TimerHandle | None = None

    @property
    def current(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    def resize(self, ceiling: int) -> None:
        """Take a new ceiling, as the server names it."""
        self._limit = float(ceiling) if self._limit >= self.ceiling else min(self._limit, float(ceiling))
        self.ceiling = ceiling
        self._admit()

    async def __aenter__(self) -> None:
        """Take one of the slots, waiting for it in order."""
        if not self._waiting and self._admits():
            self._let_in()
        else:
            await self._wait()

    async def __aexit__(self, *_: object) -> None:
        """Give the slot back to those that wait."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """A request was answered."""
        self._refused = 0
        if self._limit < self.ceiling:
            self._limit = min(float(self.ceiling), self._limit + 1 / self._limit)
            self._admit()

    def overloaded(self, retry_after: float | None = None) -> None:
        """A request was refused for overload; ``retry_after`` seconds nothing more is to be sent."""
        now = asyncio.get_running_loop().time()
        if now - self._lowered_at >= RECOVERY_SECONDS:
            self._lowered_at = now
            self._limit = max(1.0, min(self._limit, float(self.in_flight)) * DECREASE)
        self._refused += 1
        if self.current == 1 and self._refused >= FAILURES and not retry_after:  # it is no matter of how many at once
            retry_after = min(0.1 * 2 ** min(self._refused - FAILURES, 10), BACKOFF_MAX_SECONDS)
        if retry_after:
            self.pace.refused(now, retry_after)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._come_back()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted and cancelled at once: hand the slot on
                self.in_flight -= 1
            self._admit()  # leaves out those that nobody waits for any more
            raise

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0].done() or self._admits()):
            turn = self._waiting.popleft()
            if not turn.done():
                self._let_in()
                turn.set_result(None)
        self._come_back()

    def _admits(self) -> bool:
        if self.pace.alone and self.in_flight or self.in_flight >= self.current:
            return False
        return asyncio.get_running_loop().time() >= self.pace.opens_at()

    def _let_in(self) -> None:
        self.in_flight += 1
        if self.pace.rate:
            self.pace.sends(asyncio.get_running_loop().time())

    def _come_back(self) -> None:
        """Look again when the pace lets the next one in."""
        answer = self.pace.alone and self.in_flight  # brings us back by itself, like every end of a request
        if self._timer is None and self._waiting and self.in_flight < self.current and not answer:
            # Also where that was a moment ago: it was not yet when it was looked at.
            self._timer = asyncio.get_running_loop().call_at(self.pace.opens_at(), self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._admit()


class Breaker:
    """Closed while the server answers; opened by failures in a row, closed again by a probe that succeeds.

    Lives on one event loop. ``probe`` raises where the server still does not answer.
    """

    def __init__(self, name: str, probe: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.opened_at: float | None = None
        self._probe = probe
        self._failures = 0
        self.closed = asyncio.Event()  # set while the server answers
        self.closed.set()
        self._probing: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether the server counts as dead."""
        return self.opened_at is not None

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0

    def failed(self, *, dead: bool = False) -> None:
        """A request to the server failed; ``dead`` opens the breaker at once."""
        self._failures += 1
        if not self.open and (dead or self._failures >= FAILURES):
            self.opened_at = asyncio.get_running_loop().time()
            self.closed.clear()
            self._probing = asyncio.get_running_loop().create_task(self._until_it_answers())
            logger.warning("%s does not answer; waiting for it and asking again", self.name)

    def stop(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()

    async def _until_it_answers(self) -> None:
        pause = PROBE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PROBE_SECONDS_MAX)
            try:
                await self._probe()
            except Exception as error:
                logger.debug("%s: %s", self.name, error)
                continue
            self.opened_at, self._failures = None, 0
            self.closed.set()
            logger.warning("%s answers again", self.name)
            return
