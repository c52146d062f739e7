"""How much a server is asked at once, and how fast, found by what it does: fed with times and events, no clock, no I/O.

A server that declares nothing is asked by few at first. Their number is doubled for as long as that brings more replies
a second, and stays where it only makes each of them slower. From then on it is tried now and then whether more at once
bring more, and, where replies have become slow, whether fewer bring as many. It is the rate of replies that decides,
since on some servers (continuous batching) each reply becomes slower long before there is a queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START, MOST = 4, 512
UNMEASURED = 32  # reached without a measure where the server says that nobody waits there
LEAST = 3  # with fewer at once a server waits for us
STEP = math.sqrt(2.0)  # between two sizes that are compared, once the first growth is over
LEAST_REPLIES, MANY_REPLIES = 6, 32  # that a size is judged by, while it is found and later
ROUNDS = 3  # of all requests at once that a size is judged by later: replies come in bursts
MOST_ROUNDS = 6  # before a comparison that is still open is decided
SPREAD = 0.6  # standard deviation of a service over its mean, as usual with lengths of replies
SURE_GROWTH, GROWTH = 1.25, 1.04  # of the rate: seen at a glance, and as a mean of many
SCALES = 1.6  # of the rate, where twice as many are in flight: there is no queue yet
SAME = 0.96  # of the rate: with fewer at once, this is as many
QUEUED = 1.9  # times the latency without a queue: worth a look whether fewer do
RISE = 1.25  # of what is taken for the latency without a queue, at one look
FULL, SHORT = 0.8, 0.25  # with fewer of the size in flight, at more of the replies, it is us who are slow
MOST_PAUSE = 16  # rounds between two attempts to find more
CUT = 0.7
PATIENCE, PATIENCE_LONGEST = 12.0, 4.0  # times the mean and the longest latency: no living server needs so long
LEAST_QUEUE, QUEUE = 4, 0.25  # requests that may wait at a server, of those that run there
FASTER, RAISES, MOST_RAISES = 1.25, 3, 24  # how a pace is raised, and after how many of the pauses that were asked for
LEAST_PAUSE = 1.0


@dataclass(frozen=True)
class Seen:
    """What a size has brought: replies, replies a second, and seconds a reply."""

    size: int
    replies: int
    rate: float
    latency: float

    def and_before(self, before: Seen | None) -> Seen:
        """The mean of this and of what the same size has brought before, which fades."""
        if before is None or before.size != self.size or not 0.7 < self.rate / before.rate < 1.4:
            return self
        kept = min(before.replies, MOST_ROUNDS * max(MANY_REPLIES, self.size))
        new, old = self.replies / (self.replies + kept), kept / (self.replies + kept)
        rate, latency = new * self.rate + old * before.rate, new * self.latency + old * before.latency
        return Seen(self.size, self.replies + kept, rate, latency)


class Sizing:
    """The number of requests to keep in flight at one server, ``size``.

    Args:
        start: The first one.
        most: Never more.
        measures: Whether the size follows the rate of replies; else it is the server's word, lowered by its queue.
    """

    def __init__(self, start: int = START, most: int = MOST, *, measures: bool = True) -> None:
        self.most = most
        self.size = min(start, most)
        self.measures = measures
        self.growing = measures
        self.latency: float | None = None  # the mean of late
        self._longest = self._cold = 0.0
        self._first_reply: float | None = None
        self._cut_at = -math.inf
        self._unqueued: float | None = None  # the latency where there was no queue
        self._known: Seen | None = None  # of the size that is kept, over some rounds
        self._before: Seen | None = None  # the size that this one is compared with
        self._trying = 0  # 1 and -1 while more or fewer are tried
        self._pause, self._waited = 1, 0
        self._began: float | None = None  # of what is counted now
        self._settling = self._needed = self._replies = self._short = 0
        self._seconds = 0.0
        self._begin(settling=0)

    @property
    def patience(self) -> float:
        """Seconds after which no reply is to be expected any more, by what was seen; 0 where nothing was."""
        mean = self._cold if self.latency is None else self.latency
        return max(PATIENCE * mean, PATIENCE_LONGEST * self._longest)

    def answered(self, now: float, sent: float, in_flight: int) -> None:
        """A request that was ``sent`` then is answered; ``in_flight`` with it."""
        if self._first_reply is None:
            self._first_reply = now
        if sent < self._first_reply:  # it has waited for a model to load, or to compile
            self._cold = max(self._cold, now - sent)
            return
        seconds, weight = now - sent, 1 / max(8, self.size)
        self.latency = seconds if self.latency is None else self.latency + weight * (seconds - self.latency)
        self._longest = max(seconds, self._longest * (1 - weight / 16))
        if not self.measures:
            return
        if self._settling > 0:
            self._settling -= 1
        elif self._began is None:
            self._began = now
        else:
            self._replies += 1
            self._seconds += seconds
            self._short += in_flight < FULL * self.size
            if self._replies >= self._needed and now > self._began:
                replies = self._replies
                seen = Seen(self.size, replies, replies / (now - self._began), self._seconds / replies)
                if self._short > SHORT * replies:
                    self._begin(settling=0)
                else:
                    self._judge(seen)

    def cold(self) -> None:
        """The server has just come up: its first replies are no measure."""
        self._first_reply = None

    def timed_out(self, now: float, in_flight: int, waited: float) -> None:
        """A request was given up after so many seconds: fewer from now on, and more time for each."""
        if self.latency is not None:  # else it has never answered, and may never do
            self._longest = max(self._longest, 2 * waited / PATIENCE_LONGEST)
        if self.measures:
            self.congested(now, in_flight)

    def congested(self, now: float, in_flight: int) -> None:
        """A server had no room for a request; what comes of one excess counts once."""
        if now - self._cut_at > (self.latency or LEAST_PAUSE):
            self._cut_at, self._pause = now, MOST_PAUSE
            self._keep(max(1, int(CUT * min(in_flight, self.size))))
        else:
            self._keep(max(1, min(self.size, in_flight - 1)))

    def told(self, running: int, waiting: int) -> None:
        """What a server says of itself: a few shall wait there, not a hundred."""
        few = max(LEAST_QUEUE, int(QUEUE * running))
        if waiting > few:
            size = max(running + few, self.size - (waiting - few + 1) // 2)
            if size < self.size:
                self._keep(size)
        elif self.growing and not waiting and FULL * self.size <= running and self.size < UNMEASURED:
            self._before = None
            self._take(min(self.most, 2 * self.size))
        elif not self.measures and waiting < few / 2:
            self.size = min(self.most, self.size + few)

    def _keep(self, size: int) -> None:
        self.growing, self._trying, self._before = False, 0, None
        self._take(size)

    def _judge(self, seen: Seen) -> None:
        before = self._before
        if before is None:
            return self._next(seen)
        ratio = seen.rate / before.rate
        error = SPREAD * math.sqrt(1 / seen.replies + 1 / before.replies)
        open_ = seen.replies < MOST_ROUNDS * max(8, seen.size)
        if self.growing:
            if ratio >= SURE_GROWTH + error or ratio >= GROWTH and not open_:
                self._grow(seen, ratio)
            elif open_ and ratio > GROWTH - error / 2:
                self._needed += seen.size
            else:
                self._keep(max(LEAST, math.ceil(before.size * STEP)))
            return None
        mark, above = (GROWTH, 1.5) if self._trying > 0 else (SAME, 1.0)
        if open_ and mark - error < ratio < mark + above * error:
            self._needed += seen.size
        elif ratio >= mark:
            self._pause = 1
            self._keep(seen.size)
        else:
            if self._trying > 0:
                self._pause = min(2 * self._pause, MOST_PAUSE)
            else:
                self._unqueued = min(seen.latency, RISE * (self._unqueued or seen.latency))
            self._keep(before.size)
        return None

    def _next(self, seen: Seen) -> None:
        """Rounds at a size that is not in question are over: what to try."""
        if self.growing:
            return self._grow(seen, math.inf)
        seen = self._known = seen.and_before(self._known)
        self._waited += 1
        self._unqueued = seen.latency if self._unqueued is None else self._unqueued
        if self.size > LEAST and seen.latency > QUEUED * self._unqueued:
            self._try(seen, max(LEAST, math.floor(self.size / STEP)))
        elif self._waited >= self._pause and self.size < self.most:
            self._try(seen, min(self.most, math.ceil(self.size * STEP)))
        else:
            self._begin(settling=0)
        return None

    def _grow(self, seen: Seen, ratio: float) -> None:
        if ratio > SCALES:
            self._unqueued = seen.latency
        if self.size >= self.most:
            return self._keep(self.most)
        self._before = seen
        self._take(min(self.most, 2 * self.size))
        return None

    def _try(self, seen: Seen, size: int) -> None:
        self._trying, self._before, self._waited = (1 if size > self.size else -1), seen, 0
        self._take(size)

    def _take(self, size: int) -> None:
        settling, self.size = (0 if size == self.size else self.size), size
        self._begin(settling)

    def _begin(self, settling: int) -> None:
        self._settling, self._began = settling, None
        self._replies, self._seconds, self._short = 0, 0.0, 0
        least, rounds = (LEAST_REPLIES, 1) if self.growing else (MANY_REPLIES, ROUNDS)
        self._needed = self.size * max(rounds, math.ceil(least / self.size))


class Pace:
    """Requests a second at a server that limits them by time, and says for how long it takes none.

    ``rate`` is None where there is no such limit. While :meth:`closed` nothing is sent; the first request after that is
    alone until it is answered.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self.alone = False
        self._good = 0.0  # a rate that was never refused
        self._pause = 0.0
        self._began: float | None = None
        self._accepted = 0
        self._until = self._next = -math.inf
        self._raised = -math.inf
        self._raises = RAISES

    def opens_at(self) -> float:
        """When the next request may be sent."""
        return max(self._until, self._next)

    def sends(self, now: float) -> None:
        """A request goes out."""
        if self.rate:
            self._next = max(now, self._next) + 1 / self.rate

    def refused(self, now: float, seconds: float) -> None:
        """The server takes nothing for so many seconds; what comes of one excess counts once."""
        if now >= self._until and not self.alone:
            self._pause = max(seconds, LEAST_PAUSE)
            if self.rate:
                self.rate = self._good = min(self._good, self.rate) * (1.0 if self._good < self.rate else 0.9)
                self._raises = min(2 * self._raises, MOST_RAISES)
        self._until, self.alone = max(self._until, now + seconds), True

    def accepted(self, now: float) -> None:
        """A request was answered."""
        self._began = now if self._began is None else self._began
        self._accepted += 1
        if self.alone and now >= self._until:
            self.alone = False
            if self.rate is None and self._began is not None and now > self._began:
                # All that were taken since the beginning, over the time that they were meant to last.
                self.rate = self._good = self._accepted / (now - self._began)
            self._raised = now
        elif self.rate and now - self._raised >= self._raises * self._pause:
            self._good, self.rate, self._raised = self.rate, self.rate * FASTER, now
