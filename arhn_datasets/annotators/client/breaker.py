"""A circuit breaker: a server that does not answer is left alone, and probed until it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

FAILURES = 5  # in a row, before a server counts as dead
PROBE_SECONDS, PROBE_SECONDS_MAX = 0.5, 10.0


class Breaker:
    """Closed while the server answers; opened by failures in a row, closed again by a probe that succeeds.

    Lives on one event loop. ``probe`` raises where the server still does not answer.
    """

    def __init__(self, name: str, probe: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.opened_at: float | None = None
        self._probe = probe
        self._failures = 0
        self._closed = asyncio.Event()
        self._closed.set()
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
            self._closed.clear()
            self._probing = asyncio.get_running_loop().create_task(self._until_it_answers())
            logger.warning("%s does not answer; waiting for it and asking again", self.name)

    def stop(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()

    async def closed(self) -> None:
        """Wait until the server answers."""
        await self._closed.wait()

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
            self._closed.set()
            logger.warning("%s answers again", self.name)
            return
