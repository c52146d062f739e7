"""The limit of requests in flight, and the circuit breaker."""

from __future__ import annotations

import asyncio
import gc

import pytest

from arhn_datasets.annotators.client import limits
from arhn_datasets.annotators.client.limits import FAILURES, AdaptiveLimit, Breaker
from arhn_datasets.annotators.llm import AT_ONCE, Turns


async def hold(limit, log, number, until=None):
    """Take a slot, write its number down, and keep it until an event."""
    async with limit:
        log.append(number)
        if until is not None:
            await until.wait()


async def settle():
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_slots_are_given_in_order_and_never_more_than_the_limit():
    """Who came first is served first, and the next only when a slot is free."""

    async def main():
        limit, log, gates = AdaptiveLimit(2), [], [asyncio.Event() for _ in range(6)]
        tasks = [asyncio.create_task(hold(limit, log, number, gate)) for number, gate in enumerate(gates)]
        for ended in range(6):
            await settle()
            assert log == list(range(min(6, ended + 2)))
            assert limit.in_flight == min(2, 6 - ended)
            gates[ended].set()
        await asyncio.gather(*tasks)
        assert limit.in_flight == 0

    asyncio.run(main())


def test_a_slot_is_given_back_after_an_error():
    """Whatever happens inside."""

    async def main():
        limit = AdaptiveLimit(1)
        for _ in range(3):
            with pytest.raises(KeyError):
                async with limit:
                    raise KeyError
        assert limit.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["waiting", "admitted", "together"])
def test_who_is_cancelled_takes_no_slot(moment):
    """While waiting, in the moment of admission, or just before: the next one gets the slot."""

    async def main():
        limit, log, gate, last = AdaptiveLimit(1), [], asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(limit, log, 0, gate))
        await settle()
        waiting = [asyncio.create_task(hold(limit, log, number, last)) for number in (1, 2)]
        await settle()
        if moment == "waiting":
            waiting[0].cancel()
            await settle()
            gate.set()
        elif moment == "together":
            waiting[0].cancel()  # its turn is called off, and it has not yet run to say so
            limit._admit()
            gate.set()
        else:
            limit.resize(2)  # admits the first of them, which is cancelled before it runs
            waiting[0].cancel()
            gate.set()
        result = await asyncio.gather(holder, waiting[0], return_exceptions=True)
        assert isinstance(result[1], asyncio.CancelledError)
        await settle()
        assert log == [0, 2]
        assert limit.in_flight == 1
        last.set()
        await waiting[1]
        assert limit.in_flight == 0

    asyncio.run(main())


def test_a_burst_of_refusals_lowers_the_limit_once(monkeypatch):
    """To half of what was in flight; the next burst, later, halves again, down to one."""

    async def main():
        limit, gate = AdaptiveLimit(100), asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, [], number, gate)) for number in range(40)]
        await settle()
        for _ in range(10):
            limit.overloaded()
        assert limit.current == 20
        gate.set()
        await asyncio.gather(*tasks)
        monkeypatch.setattr(limits, "RECOVERY_SECONDS", 0)
        for _ in range(10):
            limit.overloaded()
        assert limit.current == 1

    asyncio.run(main())


def test_the_limit_rises_by_one_for_each_round():
    """Up to the ceiling, and wakes those who wait."""

    async def main():
        limit = AdaptiveLimit(10)
        limit._limit = 4.0
        for _ in range(5):
            limit.succeeded()
        assert limit.current == 5
        for _ in range(1000):
            limit.succeeded()
        assert limit.current == 10
        limit._limit, log, gate = 1.0, [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, log, number, gate)) for number in range(3)]
        await settle()
        assert log == [0]
        limit.succeeded()
        await settle()
        assert log == [0, 1]
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_retry_after_stops_everything_for_so_long():
    """Also requests that come in between, and afterwards they go on by themselves."""

    async def main():
        limit, log, loop = AdaptiveLimit(4), [], asyncio.get_running_loop()
        started = loop.time()
        limit.overloaded(0.05)
        limit.overloaded(0.1)
        limit.overloaded(0.01)
        await asyncio.gather(*(hold(limit, log, number) for number in range(3)))
        assert 0.09 <= loop.time() - started < 0.5
        assert log == [0, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("before", "lowered", "after", "current"),
    [(128, None, 8, 8), (8, None, 128, 128), (128, 4.0, 64, 4), (128, 100.0, 64, 64), (8, 4.0, 128, 4)],
)
def test_a_new_ceiling(before, lowered, after, current):
    """A limit that was lowered is not raised by it."""

    async def main():
        limit = AdaptiveLimit(before)
        limit._limit = lowered or limit._limit
        limit.resize(after)
        assert (limit.current, limit.ceiling) == (current, after)

    asyncio.run(main())


def test_a_higher_ceiling_wakes_those_who_wait():
    """At once."""

    async def main():
        limit, log, gate = AdaptiveLimit(1), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, log, number, gate)) for number in range(5)]
        await settle()
        limit.resize(4)
        await settle()
        assert log == [0, 1, 2, 3]
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_after_a_pause_one_request_goes_first():
    """The others wait for its answer, and then go out at the pace that was kept before."""

    async def main():
        limit, log, loop = AdaptiveLimit(8), [], asyncio.get_running_loop()
        for _ in range(20):
            limit.pace.accepted(loop.time() - 1.0)
        gates = [asyncio.Event() for _ in range(4)]
        limit.overloaded(0.02)
        tasks = [asyncio.create_task(hold(limit, log, number, gate)) for number, gate in enumerate(gates)]
        await settle()
        assert log == []
        await asyncio.sleep(0.1)
        assert log == [0]
        limit.pace.accepted(loop.time())
        gates[0].set()
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)
        assert 10 < limit.pace.rate < 21
        assert log == [0, 1, 2, 3]

    asyncio.run(main())


def test_a_pause_that_ends_while_it_is_looked_at():
    """Who was turned away a moment too early is let in all the same."""

    async def main():
        limit, log, loop = AdaptiveLimit(1), [], asyncio.get_running_loop()
        opens = iter([loop.time() + 100.0])
        limit.pace.opens_at = lambda: next(opens, loop.time() - 1.0)
        await asyncio.wait_for(hold(limit, log, 0), 60)
        assert log == [0]

    asyncio.run(main())


def test_refusals_of_every_request_close_it_for_a_while():
    """Where even one request at once is refused again and again, it is no matter of how many there are."""

    async def main():
        limit, loop = AdaptiveLimit(1), asyncio.get_running_loop()
        for _ in range(FAILURES - 1):
            limit.overloaded()
        assert limit.pace.opens_at() <= loop.time()
        limit.overloaded()
        assert limit.pace.opens_at() > loop.time()

    asyncio.run(main())


# -- the breaker ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quick_probes(monkeypatch):
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.01)


async def answers():
    """A probe of a server that is there."""


def test_failures_in_a_row_open_it():
    """An answer in between begins the count anew."""

    async def main():
        breaker = Breaker("http://h", answers)
        for _ in range(3):
            for _ in range(FAILURES - 1):
                breaker.failed()
            breaker.succeeded()
        assert not breaker.open
        for _ in range(FAILURES):
            breaker.failed()
        assert breaker.open
        assert breaker.opened_at == pytest.approx(asyncio.get_running_loop().time(), abs=0.1)
        breaker.stop()

    asyncio.run(main())


def test_it_closes_by_a_probe_and_wakes_all_who_wait(caplog):
    """It is probed until it answers, by one task however many fail; both moments are logged once."""

    async def main():
        left = [OSError("no"), ValueError("no"), None]
        probed = 0

        async def probe():
            nonlocal probed
            probed += 1
            error = left.pop(0)
            if error:
                raise error

        breaker = Breaker("http://h", probe)
        breaker.failed(dead=True)
        for _ in range(20):
            breaker.failed()
        await asyncio.wait_for(asyncio.gather(*(breaker.closed.wait() for _ in range(5))), 5)
        assert (probed, breaker.open, breaker.opened_at) == (3, False, None)
        await breaker.closed.wait()
        breaker.failed()
        assert not breaker.open, "the failures of before count no more"

    asyncio.run(main())
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "http://h does not answer; waiting for it and asking again",
        "http://h answers again",
    ]


def test_an_answer_while_it_is_open_leaves_it_to_the_probe():
    """A late reply of a dying server is no sign of life."""

    async def main():
        breaker = Breaker("http://h", answers)
        breaker.failed(dead=True)
        breaker.succeeded()
        assert breaker.open
        await asyncio.wait_for(breaker.closed.wait(), 5)
        assert not breaker.open

    asyncio.run(main())


def test_rows_begin_in_order_and_only_as_many_as_are_wanted():
    """With enough requests under way the next row waits, and begins when one of them ends."""

    async def main():
        turns, log, gates = Turns(), [], [asyncio.Event() for _ in range(6)]

        async def row(number):
            await turns.turn(1, lambda: 2)
            with turns:
                log.append(number)
                await gates[number].wait()

        tasks = [asyncio.create_task(row(number)) for number in range(6)]
        await settle()
        began = len(log)
        assert 2 <= began <= AT_ONCE
        for ended in range(6):
            await settle()
            assert log == list(range(len(log)))
            gates[ended].set()
        await asyncio.gather(*tasks)
        assert log == list(range(6))

    asyncio.run(main())


def test_a_full_house_lets_nobody_begin():
    """Not before a request ends; whoever has been cancelled takes no turn."""

    async def main():
        turns, log = Turns(), []

        async def row(number):
            await turns.turn(1, lambda: 1)
            log.append(number)

        with turns:
            tasks = [asyncio.create_task(row(number)) for number in range(3)]
            await settle()
            assert log == []
            tasks[0].cancel()
            await settle()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert log == [1, 2]

    asyncio.run(main())


def test_no_more_than_a_few_begin_in_one_turn_of_the_loop():
    """Thousands of new rows leave the sockets their turns."""

    async def main():
        turns, log = Turns(), []

        async def row(number):
            await turns.turn(1, lambda: 10**6)
            log.append(number)

        tasks = [asyncio.create_task(row(number)) for number in range(10 * AT_ONCE)]
        seen = [0]
        while seen[-1] < len(tasks):
            await asyncio.sleep(0)
            seen.append(len(log))
        assert max(b - a for a, b in zip(seen, seen[1:], strict=False)) <= 2 * AT_ONCE
        assert log == sorted(log)

    asyncio.run(main())


def test_what_was_frozen_ends_in_the_order_in_which_it_was_made():
    """A loop ends before its sockets also where one of several generations was frozen: else its end fails."""
    ended = []

    class Part:
        def __init__(self, name):
            self.name = name

        def __del__(self):
            ended.append(self.name)

    gc.collect()
    owner = Part("owner")
    gc.collect(0)  # older by a generation than what it owns
    owner.owned = Part("owned")
    owner.owned.owner = owner
    turns = Turns()
    with turns:
        del owner
    gc.collect()
    assert ended == ["owner", "owned"]


@pytest.mark.parametrize(("said", "frozen"), [("0", False), ("1", True)])
def test_the_collector_of_the_host(monkeypatch, said, frozen):
    """While requests are in flight it leaves out what was there before, unless that is switched off; then as before."""
    monkeypatch.setenv("ARHN_GC_FREEZE", said)
    with Turns():
        assert bool(gc.get_freeze_count()) == frozen
    assert gc.get_freeze_count() == 0
