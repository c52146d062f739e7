"""How long a request takes: a batch of slots behind a FIFO queue, and a cost for every token.

One timer a request. A slot that falls free hands its exact end on as the start of the next request, so that late
timers of a busy event loop do not add up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

from arhn_datasets.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds of service; ``Latency()`` answers at once.

    Args:
        prefill: For each input token that is not in the prefix cache.
        decode: For each generated token.
        overhead: For each request.
        grammar: For compiling a grammar that is not among the last 32; everybody waits meanwhile.
        tail: Probability that a request takes ``tail_factor`` times as long; decided by its body and ``seed``, so the
            same request is slow in every run.
        tail_factor: How much longer.
        seed: Of the tail.
        time_scale: Factor on everything; 0 answers at once.
        slower_after: Requests that are served at this speed; those after them take ``slower_factor`` times as long. 0
            for all.
        slower_factor: How much longer.
    """

    prefill: float = 0.0
    decode: float = 0.0
    overhead: float = 0.0
    grammar: float = 0.0
    tail: float = 0.0
    tail_factor: float = 10.0
    seed: int = 0
    time_scale: float = 1.0
    slower_after: int = 0
    slower_factor: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "seed" and not 0 <= value < float("inf"):
                raise ConfigurationError(f"latency: {name} is {value}; a number of 0 or more was expected.")
        if self.tail > 1:
            raise ConfigurationError(f"latency: tail is {self.tail}; a probability from 0 to 1 was expected.")

    def seconds(self, body: bytes, new_inputs: int, outputs: int, served: int = 0) -> float:
        """The service time of one request, of which so many were ``served`` before."""
        plain = self.overhead + self.prefill * new_inputs + self.decode * outputs
        if self.tail and plain and crc32(body, self.seed) < self.tail * 2**32:
            plain *= self.tail_factor
        if 0 < self.slower_after <= served:
            plain *= self.slower_factor
        return plain * self.time_scale


class PrefixCache:
    """Which blocks of tokens the server holds from finished prompts, least recently used first.

    ``block`` 0 switches it off, 1 is exact to the token.
    """

    def __init__(self, block: int, blocks: int = 65_536) -> None:
        self._block = block
        self._most = blocks
        self._held: OrderedDict[int, None] = OrderedDict()

    def cached(self, pieces: Sequence[str]) -> int:
        """How many of the first tokens of a prompt need no prefill; the last token always does."""
        count = 0
        for key in self._keys(pieces):
            if key not in self._held or count + self._block >= len(pieces):
                break
            self._held.move_to_end(key)
            count += self._block
        return count

    def insert(self, pieces: Sequence[str]) -> None:
        """Keep a finished prompt; generated tokens are not kept."""
        for key in self._keys(pieces):
            self._held[key] = None
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def _keys(self, pieces: Sequence[str]) -> list[int]:
        keys: list[int] = []
        for start in range(0, len(pieces) - self._block + 1, self._block) if self._block else ():
            keys.append(hash((keys[-1] if keys else 0, *pieces[start : start + self._block])))
        return keys


@dataclass(eq=False, slots=True)
class Entry:
    """A request in the queue or in a slot; times are those of the event loop."""

    cost: Callable[[], float]
    arrived: float
    fails: Exception | None = None
    started_at: float | None = None
    due: float = 0.0
    ended: bool = False
    left: bool = False
    error: Exception | None = None
    timer: asyncio.TimerHandle | None = None
    _waiter: asyncio.Future[None] | None = None

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for what comes with its start or its end."""
        while not reached():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def changed(self) -> None:
        """Wake who waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Batch:
    """The running batch and its queue; lives on one event loop.

    ``busy_seconds`` is the sum of the service times, ``wasted_seconds`` the part of it for callers that were gone,
    ``first`` and ``last`` when the first began and the last ended. Without ``drops`` the work for such callers goes on.
    """

    def __init__(self, slots: int, *, drops: bool = True) -> None:
        self.slots, self.drops = slots, drops
        self.running: dict[Entry, None] = {}
        self.queue: deque[Entry] = deque()
        self.busy_seconds = self.wasted_seconds = 0.0
        self.first: float | None = None
        self.last: float | None = None
        self._loop = asyncio.get_running_loop()

    def submit(self, cost: Callable[[], float], fails: Exception | None = None) -> Entry:
        """Take a place; ``cost`` is called when a slot is free, and tells the service time from there.

        With ``fails`` the backend fails half-way, and everybody in the batch gets that error.
        """
        entry = Entry(cost, self._loop.time(), fails)
        if len(self.running) < self.slots:
            self._start(entry, entry.arrived)
        else:
            self.queue.append(entry)
        return entry

    async def begin(self, entry: Entry) -> None:
        """Wait until ``entry`` has a slot; a caller that is cancelled gives up its place where that is noticed."""
        await self._until(entry, lambda: entry.started_at is not None)

    async def finish(self, entry: Entry) -> None:
        """Wait for the end of ``entry``; a caller that is cancelled frees its place at once where that is noticed."""
        await self._until(entry, lambda: entry.ended)
        if entry.error is not None:
            raise entry.error

    async def _until(self, entry: Entry, reached: Callable[[], bool]) -> None:
        try:
            await entry.until(reached)
        except BaseException:
            self.leave(entry)
            raise

    def leave(self, entry: Entry) -> None:
        """Give up a place, in the queue or in a slot."""
        entry.left = True
        if not self.drops:
            return
        if entry in self.running:
            self._release(entry, self._loop.time())
        elif entry in self.queue:
            self.queue.remove(entry)

    def reset(self) -> None:
        """Begin to measure afresh."""
        self.busy_seconds, self.wasted_seconds, self.first, self.last = 0.0, 0.0, None, None

    def stall(self, seconds: float) -> None:
        """Everybody in the batch takes so much longer."""
        for entry in self.running:
            entry.due += seconds

    def fail(self, error: Exception) -> None:
        """Every request in the batch gets ``error``."""
        now = self._loop.time()
        for entry in list(self.running):
            entry.error = error
            self._release(entry, now, refill=False)
        self._refill(now)

    def _start(self, entry: Entry, at: float) -> None:
        self.running[entry] = None
        entry.started_at = at
        self.first = at if self.first is None else self.first
        try:
            service = entry.cost()
        except Exception as error:
            self.fail(error)  # the backend fell over this request, and takes the batch with it
            return
        entry.due = at + (service / 2 if entry.fails else service)
        if service:
            entry.timer = self._loop.call_at(entry.due, self._end, entry)
            entry.changed()
        else:
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        if entry.due > self._loop.time() + 0.001:  # stalled since
            entry.timer = self._loop.call_at(entry.due, self._end, entry)
        elif entry.fails:
            self.fail(entry.fails)
        else:
            self._release(entry, entry.due)

    def _release(self, entry: Entry, at: float, *, refill: bool = True) -> None:
        del self.running[entry]
        if entry.timer:
            entry.timer.cancel()
        entry.ended = True
        entry.changed()
        assert entry.started_at is not None  # it was running
        seconds = max(0.0, at - entry.started_at)
        self.busy_seconds += seconds
        self.wasted_seconds += seconds * entry.left
        self.last = at if self.last is None else max(self.last, at)
        if refill:
            self._refill(at)

    def _refill(self, at: float) -> None:
        while self.queue and len(self.running) < self.slots:
            following = self.queue.popleft()
            self._start(following, max(at, following.arrived))
