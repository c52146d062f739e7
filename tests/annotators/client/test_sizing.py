"""How much a server is asked at once, and how fast, against simulated servers: no clock and no network."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arhn_datasets.annotators.client.sizing import MOST, START, UNMEASURED, Pace, Sizing

GAP = 0.001  # from the end of a service to the next request
SEEDS = (0, 1, 2)


def two_point(draw):
    """One request in fifty takes five times as long."""
    return 5.0 if draw.random() < 0.02 else 1.0


def lognormal(draw):
    """Lengths of replies as models give them: mean 1, a few of them ten times the usual."""
    return draw.lognormvariate(-0.32, 0.8)


@dataclass
class Queue:
    """A server of so many slots behind a FIFO queue, that works on whatever becomes of a request."""

    slots: int
    service: float
    law: object = two_point
    seed: int = 0
    cold: float = 0.0
    slower: tuple[float, float] = (float("inf"), 1.0)  # from when on, and how many times
    busy: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self):
        self.draw = random.Random(self.seed)
        self.free = [self.cold] * self.slots

    def takes(self, now):
        """When the reply to a request of ``now`` comes."""
        seconds = self.service * self.law(self.draw) * (self.slower[1] if now >= self.slower[0] else 1.0)
        start = max(now, self.free[0])
        heapq.heapreplace(self.free, start + seconds)
        self.busy.append((start, start + seconds))
        return start + seconds

    def utilisation(self, first, last):
        """The busy share of the slots between the starts of two services."""
        starts = sorted(start for start, _ in self.busy)
        since, until = starts[first], starts[last]
        spent = sum(max(0.0, min(end, until) - max(start, since)) for start, end in self.busy)
        return spent / (self.slots * (until - since))


def driven(server, sizing, requests, limit=float("inf")):
    """Keep ``server`` as busy as ``sizing`` says; the sizes with their times, and the requests that took too long."""
    now, sent, under_way, late, sizes = 0.0, 0, [], 0, [(0.0, sizing.size)]
    while sent < requests or under_way:
        while sent < requests and len(under_way) < sizing.size:
            heapq.heappush(under_way, (server.takes(now) + GAP, sent, now))
            sent += 1
        now, _, began = under_way[0]
        late += now - began > max(limit, sizing.patience)
        sizing.answered(now, began, len(under_way))
        heapq.heappop(under_way)
        if sizing.size != sizes[-1][1]:
            sizes.append((now, sizing.size))
    return sizes, late


@pytest.mark.parametrize("law", [two_point, lognormal])
@pytest.mark.parametrize("service", [0.3, 3.0])
@pytest.mark.parametrize("slots", [2, 8, 32, 128])
def test_a_queue_of_any_width_is_kept_busy_and_short(slots, service, law):
    """After 20 requests a slot it is busy, and no request waits so long that it would be given up."""
    found = []
    for seed in SEEDS:
        server = Queue(slots, service, law, seed)
        sizes, late = driven(server, Sizing(), 60 * slots, limit=10 * service)
        assert late == 0
        assert max(size for _, size in sizes) <= max(32, 8 * slots)
        found.append(server.utilisation(20 * slots, -2 * slots))
    assert sum(found) / len(found) >= 0.95
    assert min(found) >= 0.8


@pytest.mark.parametrize("slots", [1, 3, 24, 100])
def test_the_size_stays_near_the_slots(slots):
    """Also where their number is none that doubling meets: a few services of latency, not a hundred."""
    for seed in SEEDS:
        sizes, _ = driven(Queue(slots, 0.3, seed=seed), Sizing(), 80 * slots + 400)
        assert slots <= sizes[-1][1] <= max(20, 4 * slots)


@pytest.mark.parametrize("slots", [8, 32])
def test_the_first_requests_of_a_cold_server_are_no_measure(slots):
    """A minute of compiling makes none of them slow, and the mean latency is that of the others."""
    sizing = Sizing()
    server = Queue(slots, 0.3, cold=60.0)
    driven(server, sizing, 40 * slots)
    assert server.utilisation(20 * slots, -2 * slots) >= 0.95
    assert sizing.latency < 2.0


def test_a_server_that_comes_back_is_cold_again():
    """Its first replies are left out once more."""
    sizing = Sizing()
    sizing.answered(1.0, 0.5, 1)
    sizing.answered(2.0, 1.5, 1)
    assert sizing.latency == 0.5
    sizing.cold()
    sizing.answered(102.0, 2.0, 1)
    assert sizing.latency == 0.5


@pytest.mark.parametrize("slots", [2, 8, 32, 128])
def test_half_the_speed_costs_no_request_its_time(slots):
    """The time that a request has grows with the latency, and the server stays busy."""
    server = Queue(slots, 0.3, slower=(30.0, 2.0))
    _, late = driven(server, Sizing(), slots * 200, limit=3.0)
    assert late == 0
    assert server.utilisation(slots * 110, -2 * slots) >= 0.95


def batched(sizing, most, kept, requests, seed=0):
    """The seconds for ``requests`` at an engine with continuous batching, ``sizing`` or a fixed number in flight.

    A step takes 1 and what each request in the batch adds, so that each gets slower long before the batch is full.
    """
    draw = random.Random(seed)
    now, steps, sent, done, running, queue = 0.0, 0.0, 0, 0, [], []
    while done < requests:
        while sent < requests and len(running) + len(queue) < (kept or sizing.size):
            queue.append((now, 40 * draw.lognormvariate(0, 0.6)))
            sent += 1
        while queue and len(running) < most:
            began, length = queue.pop(0)
            heapq.heappush(running, (steps + length, done, sent, began))
        end, *_, began = running[0]
        now, steps = now + (end - steps) * 0.02 * (1 + len(running) / 16), end
        done += 1
        if kept is None:
            sizing.answered(now, began, len(running) + len(queue))
        heapq.heappop(running)
    return now


def test_continuous_batching_is_not_taken_for_a_queue():
    """Latency grows with the batch from the first request on, and so does the throughput: as fast as the best size."""
    best = min(batched(None, 256, kept, 4000) for kept in (8, 16, 32, 64))
    found = [batched(Sizing(UNMEASURED), 256, None, 4000, seed) for seed in SEEDS]
    assert best / (sum(found) / len(found)) >= 0.95


def test_what_a_server_says_of_its_queue_spares_the_measure():
    """Nobody waits: twice as many, up to a bound; a hundred wait: fewer; a few wait: as it is."""
    sizing = Sizing()
    for size in (2 * START, 4 * START, UNMEASURED, UNMEASURED):
        sizing.told(sizing.size, 0)
        assert sizing.size == size
    sizing.told(10, 100)
    assert sizing.size == 14
    sizing.told(10, 4)
    assert sizing.size == 14


def test_a_declared_size_is_lowered_by_the_queue_and_comes_back():
    """A server whose batch is smaller than what it lets in keeps a few waiting; a wider one is filled."""
    sizing = Sizing(250, 250, measures=False)
    for _ in range(12):
        sizing.told(128, sizing.size - 128)
    assert 128 + 16 <= sizing.size <= 128 + 33
    for _ in range(12):
        sizing.told(sizing.size, 0)
    assert sizing.size == 250


def test_a_size_that_was_given_follows_nothing():
    """Neither replies nor timeouts; but they tell how long a request may take."""
    sizing = Sizing(5, 5, measures=False)
    for number in range(1000):
        sizing.answered(number + 8.0, float(number), 5)
    assert sizing.patience == 96
    sizing.timed_out(2000.0, 5, 300.0)
    assert (sizing.size, sizing.patience) == (5, 600)


def test_a_timeout_is_congestion():
    """Fewer from then on, once for what comes of one excess, and twice the time for the next."""
    sizing = Sizing(64)
    sizing.answered(1.0, 0.0, 64)
    sizing.answered(2.0, 1.0, 64)
    for _ in range(5):
        sizing.timed_out(300.0, 64, 300.0)
    assert sizing.size == 44
    assert sizing.patience == 600


def test_refusals_without_a_word_of_when_set_the_size():
    """A server that takes ten and refuses the rest is asked by fewer than that."""
    sizing = Sizing(16)
    for in_flight in (16, 15, 14, 13, 12, 11):
        sizing.congested(5.0, in_flight)
    assert 1 <= sizing.size <= 11


@given(
    st.lists(
        st.tuples(st.sampled_from("atcq"), st.floats(0, 100), st.integers(1, 600), st.integers(0, 600)), max_size=80
    )
)
def test_whatever_happens_the_size_is_one(events):
    """From 1 to the most, and the patience no less than a multiple of the latency."""
    sizing, now = Sizing(), 0.0
    for kind, seconds, in_flight, count in events:
        now += seconds
        if kind == "a":
            sizing.answered(now, now - seconds, in_flight)
        elif kind == "t":
            sizing.timed_out(now, in_flight, seconds)
        elif kind == "c":
            sizing.congested(now, in_flight)
        else:
            sizing.told(in_flight, count)
        assert 1 <= sizing.size <= MOST
        assert sizing.patience >= 10 * (sizing.latency or 0.0)


# -- a pace -----------------------------------------------------------------------------------------------------------


def paced(limit, window, seconds, size=12, service=0.3, told=True):
    """A server that takes ``limit`` requests in each ``window`` and refuses the rest: those taken, and refused."""
    pace, now, under_way, taken, refused, used = Pace(), 0.0, [], 0, 0, {}
    while now < seconds:
        opens = pace.opens_at()
        free = len(under_way) < (1 if pace.alone else size)
        if free and opens <= now:
            pace.sends(now)
            span = int(now / window)
            ok = used.get(span, 0) < limit
            used[span] = used.get(span, 0) + ok
            heapq.heappush(under_way, (now + (service if ok else 0.01), ok, span))
            continue
        ends = under_way[0][0] if under_way else float("inf")
        now = min(ends, opens if free and opens > now else float("inf"))
        if now == ends:
            _, ok, span = heapq.heappop(under_way)
            if ok:
                taken += 1
                pace.accepted(now)
            else:
                refused += 1
                pace.refused(now, (span + 1) * window - now if told else window)
    return taken, refused


@pytest.mark.parametrize(("limit", "window"), [(100, 60.0), (20, 60.0), (600, 60.0), (10, 1.0)])
@pytest.mark.parametrize("told", [True, False])
def test_a_limit_by_time_becomes_a_pace(limit, window, told):
    """Most of what it allows is used, and few requests are refused; also where the pause is told too long."""
    taken, refused = paced(limit, window, 10 * window if window > 1 else 120.0, told=told)
    allowed = limit * (10 if window > 1 else 120)
    assert taken >= 0.75 * min(allowed, 12 / 0.3 * 10 * window)
    assert refused <= max(14, 0.06 * taken)
