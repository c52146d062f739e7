"""How many requests a server is given at once: additive increase, multiplicative decrease; and turns to begin."""

from __future__ import annotations

import asyncio
from collections import deque

from arhn_datasets.annotators.client import collector

DECREASE = 0.5
AT_ONCE = 16  # new requests in one turn of the event loop, to the end of a row
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

    async def __aenter__(self) -> None:
        """Take one of the slots, waiting for it in order."""
        if not self._waiting and self._admits():
            self.in_flight += 1
        else:
            await self._wait()

    async def __aexit__(self, *_: object) -> None:
        """Give the slot back to those that wait."""
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
    """Lets rows begin a little at a time, and only as many as servers can be kept busy with.

    A map hands over thousands of rows at once. Begun together, all of them would run their first part before a single
    request is sent, and what they hold until their slot is free would keep the garbage collector busy.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._left = AT_ONCE
        self._waiting: deque[tuple[asyncio.Future[None], int, int]] = deque()
        self._scheduled = False
        self._frozen = False

    async def turn(self, requests: int, most: int) -> None:
        """Wait, in order, until fewer than ``most`` requests are under way; so many more are about to follow."""
        self._schedule()
        if self._left > 0 and not self._waiting and self._under_way < most:
            self._left -= requests
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, requests, most))
        await turn

    def __enter__(self) -> None:
        """A request is under way."""
        if not self._under_way:
            self._frozen = collector.freeze()
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        """It is not any more."""
        self._under_way -= 1
        if not self._under_way and self._frozen:
            collector.unfreeze()
        if self._waiting:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Once in each turn of the loop in which there is work."""
        self._scheduled = False
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            turn, requests, most = self._waiting[0]
            if not turn.done():
                if self._under_way >= most:
                    return  # a request that ends comes back here
                self._left -= requests
                turn.set_result(None)
            self._waiting.popleft()
        if self._waiting:
            self._schedule()
