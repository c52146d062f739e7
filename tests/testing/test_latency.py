"""The emulator's time: slots, queue, tail, prefix cache, disconnects, and what the counters say of it."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import Emulator, Fault, Latency
from arhn_datasets.testing.latency import PrefixCache
from tests.testing.test_contract import CHAT


def body(number, text="x", **fields):
    """A chat request like no other."""
    return {"messages": [{"role": "user", "content": f"{text} {number}"}], "temperature": 0, **fields}


async def post(session, server, number, **fields):
    """Status and headers of one chat."""
    async with session.post(server.url + CHAT, json=body(number, **fields)) as reply:
        await reply.read()
        return reply.status, reply.headers


def run(server, count, **fields):
    """So many chats at once: their replies, and the seconds they took."""

    async def main():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            start = time.perf_counter()
            replies = await asyncio.gather(*(post(session, server, number, **fields) for number in range(count)))
            return replies, time.perf_counter() - start

    return asyncio.run(main())


def test_slots_are_shared_first_come_first_served():
    """12 requests of 50 ms on 4 slots take three turns, fully used, and wait their turn in the queue."""
    with Emulator(reply="x", slots=4, latency=Latency(overhead=0.05)) as server:
        replies, seconds = run(server, 12)
        stats = server.stats
    assert 0.15 <= seconds < 0.6
    assert stats.busy_seconds == pytest.approx(0.6, rel=0.01)
    assert (stats.peak_in_flight, stats.slots, stats.served) == (12, 4, 12)
    assert stats.utilisation > 0.8
    waits = sorted(int(headers["x-queue-time"]) for _, headers in replies)
    assert waits[3] < 20 <= waits[4]
    assert 80 <= waits[-1] < 300


def test_tokens_cost_time():
    """Prefill by input tokens, decode by generated ones, all of it scaled; scale 0 answers at once."""
    latency = Latency(prefill=0.001, decode=0.01, overhead=0.02)
    assert latency.seconds(b"", 10, 5) == pytest.approx(0.08)
    assert Latency(prefill=1.0, time_scale=0).seconds(b"", 10, 5) == 0
    with Emulator(reply="one two three", latency=latency) as server:
        [(_, headers)], _ = run(server, 1)
    expected = 20 + int(headers["x-prompt-tokens"]) + 10 * int(headers["x-generated-tokens"])
    assert abs(int(headers["x-inference-time"]) - expected) <= 1


def test_the_tail_is_heavy_and_the_same_in_every_run():
    """About the asked share of the requests is slower by the factor, decided by body and seed."""
    latency = Latency(overhead=0.01, tail=0.1, tail_factor=20.0)
    bodies = [str(number).encode() for number in range(2000)]
    slow = [latency.seconds(one, 0, 0) > 0.1 for one in bodies]
    assert 120 < sum(slow) < 280
    assert slow == [latency.seconds(one, 0, 0) > 0.1 for one in bodies]
    other = Latency(overhead=0.01, tail=0.1, tail_factor=20.0, seed=1)
    assert slow != [other.seconds(one, 0, 0) > 0.1 for one in bodies]


@pytest.mark.parametrize("wrong", [{"tail": 2.0}, {"decode": -1.0}, {"prefill": float("inf")}])
def test_latencies_that_cannot_be_are_refused(wrong):
    """Before anything is served."""
    with pytest.raises(ConfigurationError, match="latency: "):
        Latency(**wrong)


def test_the_prefix_cache_holds_whole_blocks_of_finished_prompts():
    """A block counts when all before it are held; the last token is always computed."""
    cache = PrefixCache(4, blocks=3)
    prompt = list("abcdefghij")
    assert cache.cached(prompt) == 0
    cache.insert(prompt)
    assert cache.cached(prompt) == 8
    assert cache.cached([*"abcd", *"xxxx"]) == 4
    assert cache.cached([*"abcd"]) == 0
    assert cache.cached([*"xbcd", *"efgh"]) == 0
    cache.insert(list("mnopqrst"))
    assert cache.cached(prompt) == 4  # the block that was used last stays
    assert PrefixCache(0).cached(prompt) == 0


def test_cached_tokens_cost_no_prefill():
    """The second of two prompts with one beginning is quicker, and the counters say why."""
    with Emulator(reply="x", latency=Latency(prefill=0.001), prefix_block=16) as server:
        text = "word " * 100
        first, second = (int(run(server, 1, text=f"{text}{at}")[0][0][1]["x-inference-time"]) for at in range(2))
        stats = server.stats
    assert first > 100
    assert second < 40
    assert 90 <= stats.cached_tokens < stats.prompt_tokens / 2


def test_a_disconnect_frees_slot_and_permit_at_once():
    """A client that goes away gives way to the next, in the batch and in the queue."""

    async def main(server):
        async with aiohttp.ClientSession() as session:
            gone = [asyncio.create_task(post(session, server, number)) for number in range(3)]
            await asyncio.sleep(0.15)
            assert (server.stats.running, server.stats.queued, server.stats.in_flight) == (1, 2, 3)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            for _ in range(100):
                if not server.stats.in_flight:
                    break
                await asyncio.sleep(0.01)
            stats = server.stats
            assert (stats.running, stats.queued, stats.in_flight, stats.cancelled) == (0, 0, 0, 3)
            server.latency = Latency()
            assert (await post(session, server, 9))[0] == 200

    with Emulator(reply="x", slots=1, latency=Latency(overhead=30.0)) as server:
        start = time.perf_counter()
        asyncio.run(main(server))
        assert time.perf_counter() - start < 5
        assert server.stats.failures["dropped"] == 3


def test_a_grammar_that_is_compiled_makes_everybody_wait():
    """The compilation stands in the batch's way."""

    async def main(server):
        async with aiohttp.ClientSession() as session:
            plain = asyncio.create_task(post(session, server, 0))
            await asyncio.sleep(0.03)
            grammar = {"type": "regex", "value": "x"}
            await asyncio.gather(plain, post(session, server, 1, response_format=grammar))
            return int(plain.result()[1]["x-inference-time"])

    with Emulator(reply="x", latency=Latency(overhead=0.1, grammar=0.2)) as server:
        assert asyncio.run(main(server)) >= 299


def test_streams_take_their_time_and_hold_a_slot():
    """Events come one by one while the request is served."""

    async def main(server):
        times = []
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.url + CHAT, json=body(0, stream=True)) as reply,
        ):
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter())
        return times

    with Emulator(reply="one two three four", latency=Latency(decode=0.03)) as server:
        times = asyncio.run(main(server))
        stats = server.stats
    assert len(times) == 5
    assert times[-1] - times[0] > 0.09
    assert stats.busy_seconds == pytest.approx(0.15, rel=0.01)


def test_repeated_bodies_are_counted():
    """Seen again and answered again are two things: a request that failed may come back."""
    with Emulator(reply="x", faults=[Fault(kind="500", on=1)]) as server:
        for _ in range(3):
            run(server, 1)
        run(server, 2)
        stats = server.stats
        assert (stats.requests, stats.distinct, stats.duplicates, stats.served_twice) == (5, 2, 3, 2)
        assert stats.by_status == {"500": 1, "200": 4}
        server.reset_stats()
        assert (server.stats.requests, server.bodies) == (0, [])


def test_requests_are_kept_for_a_look():
    """The last ones, with body and headers."""
    with Emulator(reply="x", record=2) as server:
        run(server, 3, seed=1)
        assert [kept.number for kept in server.requests] == [2, 3]
        assert server.bodies[0]["seed"] == 1
        assert server.requests[0].headers["content-type"] == "application/json"


def test_a_server_that_says_nothing():
    """No /info and no /metrics, as at an OpenAI-compatible server; it lists its model and answers."""

    async def main():
        async with aiohttp.ClientSession() as session:
            found = []
            for path in ("/info", "/metrics", "/v1/models", "/health"):
                async with session.get(server.url + path) as reply:
                    found.append(reply.status)
            return found

    with Emulator(reply="x", declared=False) as server:
        assert asyncio.run(main()) == [404, 404, 200, 200]
        assert run(server, 2)[0][0][0] == 200


@pytest.mark.parametrize(("drops", "least", "most"), [(True, 0.0, 0.5), (False, 0.9, 1.1)])
def test_work_for_a_client_that_is_gone(drops, least, most):
    """It is ended, or goes on; what is done of it is wasted."""

    async def main():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05)) as session:
            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await post(session, server, 1)
        for _ in range(500):
            if not (server.stats.running or server.stats.queued):
                return
            await asyncio.sleep(0.01)

    with Emulator(reply="x", slots=1, latency=Latency(overhead=0.5), drops=drops) as server:
        asyncio.run(main())
        stats = server.stats
    assert least <= stats.wasted_seconds <= most
    assert (stats.served, stats.cancelled) == (0, 2)


def test_a_server_that_gets_slower():
    """From so many served requests on."""
    latency = Latency(overhead=0.1, slower_after=10, slower_factor=3.0)
    assert [latency.seconds(b"", 1, 1, served) for served in (0, 9, 10, 11)] == pytest.approx([0.1, 0.1, 0.3, 0.3])
    assert Latency(overhead=0.1).seconds(b"", 1, 1, 10**6) == 0.1
