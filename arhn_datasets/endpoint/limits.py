"""How many requests a server is given at once: additive increase, multiplicative decrease; and turns to begin."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

DECREASE = 0.5
AT_ONCE = 16  # new requests in one turn of the event loop
RECOVERY_SECONDS = 1.0  # one burst of 429 comes from one excess: it lowers the limit once


class AdaptiveLimit:
    """A limit of requests in flight that follows the server.

    A 429 halves it, at most once a second; every success raises it by its inverse, so by one each time that all slots
    were used, up to ``ceiling``. Waiting requests are served in order. Lives on one event loop.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._limit = float(ceiling)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lowered_at = float("-inf")
        self._closed_until = float("-inf")

    @property
    def current(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    def resize(self, ceiling: int) -> None:
        """Take a new ceiling, as the server names it."""
        self._limit = float(ceiling) if self._limit >= self.ceiling else min(self._limit, float(ceiling))
        self.ceiling = ceiling
        self._admit()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the slots, waiting for it in order."""
        if not self._waiting and self._admits():
            self.in_flight += 1
        else:
            await self._wait()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._admit()

    def succeeded(self) -> None:
        """A request was answered."""
        if self._limit < self.ceiling:
            self._limit = min(float(self.ceiling), self._limit + 1 / self._limit)
            self._admit()

    def overloaded(self, retry_after: float | None = None) -> None:
        """A request was refused for overload; ``retry_after`` seconds nothing more is to be sent."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._lowered_at >= RECOVERY_SECONDS:
            self._lowered_at = loop.time()
            self._limit = max(1.0, min(self._limit, float(self.in_flight)) * DECREASE)
        if retry_after:
            self._closed_until = max(self._closed_until, loop.time() + retry_after)
            loop.call_later(retry_after, self._admit)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
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
                self.in_flight += 1
                turn.set_result(None)

    def _admits(self) -> bool:
        return self.in_flight < self.current and not self._paused()

    def _paused(self) -> bool:
        return asyncio.get_running_loop().time() < self._closed_until


class Turns:
    """Lets work begin a little at a time, so that an event loop with thousands of new tasks also serves its sockets.

    Without it, all of them run their first part before a single request is sent.
    """

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def turn(self) -> None:
        """Wait until it is one's turn, in order; at once where few wait."""
        self._schedule()
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Once in each turn of the loop while there is work."""
        self._scheduled = False
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                self._left -= 1
                turn.set_result(None)
        if self._waiting:
            self._schedule()
