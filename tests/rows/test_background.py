"""The background loop: one for a process, whatever calls it, forks it or interrupts it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, TimeoutError

import pytest

from arhn_datasets.rows import background
from tests.annotators.client.test_store import in_a_fork


class Resource:
    """Something that has to be closed, and says in which thread it was."""

    def __init__(self, fails=False):
        self.closed = None
        self.fails = fails

    async def close(self):
        self.closed = threading.current_thread().name
        if self.fails:
            raise OSError("no")


async def value(result, seconds=0.0):
    """``result``, after a while."""
    await asyncio.sleep(seconds)
    return result


async def fail(error):
    """Raise ``error``."""
    raise error


async def kept(key, make=Resource):
    """The resource of that key."""
    return background.resource(key, make)


async def names():
    """Thread and loop of the caller."""
    return threading.current_thread().name, id(asyncio.get_running_loop())


def test_every_way_in_leads_to_one_loop():
    """From this thread, another thread, another loop and a future: the same daemon thread, the same loop."""
    found = {background.run(names()), asyncio.run(background.wait(names())), background.submit(names()).result()}
    thread = threading.Thread(target=lambda: found.add(background.run(names())))
    thread.start()
    thread.join(60)
    assert {name for name, _ in found} == {"arhn-background"}
    assert len(found) == 1


@pytest.mark.parametrize("way", [background.run, lambda c: asyncio.run(background.wait(c))])
@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), StopAsyncIteration()], ids=repr)
def test_errors_come_back(way, error):
    """The error itself, not a copy in another dress."""
    with pytest.raises(type(error)) as caught:
        way(fail(error))
    assert caught.value is error


def test_a_submitted_coroutine_can_be_cancelled():
    """The coroutine sees it at once."""
    seen = threading.Event()

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            seen.set()

    future = background.submit(endless())
    background.run(value(None))
    future.cancel()
    assert seen.wait(5)
    with pytest.raises(CancelledError):
        future.result()


def test_a_cancelled_wait_cancels_the_coroutine():
    """What nobody awaits any more is not carried on."""
    seen = threading.Event()

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            seen.set()

    async def impatient():
        await asyncio.wait_for(background.wait(endless()), 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(impatient())
    assert seen.wait(5)


def test_an_interrupt_cancels_what_was_waited_for():
    """Ctrl-C reaches the waiting thread; the coroutine on the loop ends with it."""
    seen = threading.Event()

    async def interrupted():
        await asyncio.sleep(0.1)  # until the other thread waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            seen.set()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            background.run(interrupted())
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen.wait(5)
    assert background.run(value("still there")) == "still there"


def test_resources_are_made_once_and_closed():
    """One object for a key until the end, closed on its own thread; plain values need no closing."""
    first = background.run(kept(("a", 1)))
    plain = background.run(kept("b", dict))
    assert background.run(kept(("a", 1))) is first
    assert background.run(kept("b", dict)) is plain
    assert first.closed is None
    background.close()
    assert first.closed == "arhn-background"


def test_a_resource_that_cannot_be_made_is_tried_again():
    """A failure is not kept."""

    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        background.run(kept("a", broken))
    assert isinstance(background.run(kept("a")), Resource)


def test_close_and_start_again():
    """The next use starts afresh; closing twice, or before anything, does nothing."""
    background.close()
    first, thread = background.run(kept("a")), background._current.thread
    background.close()
    background.close()
    assert not thread.is_alive()
    assert background.run(kept("a")) is not first


def test_close_ends_what_is_under_way():
    """Tasks are cancelled before the resources that they use are closed."""
    seen = []
    resource = background.run(kept("a"))

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(resource.closed)

    future = background.submit(endless())
    background.run(value(None))
    background.close()
    assert seen == [None]
    assert resource.closed
    with pytest.raises(CancelledError):
        future.result(5)


def test_one_resource_that_does_not_close_keeps_no_other_open():
    """Each is closed, then the trouble is told."""
    resources = [background.run(kept(number, lambda n=number: Resource(fails=n == 0))) for number in range(3)]
    with pytest.raises(OSError, match="no"):
        background.close()
    assert all(resource.closed for resource in resources)
    assert background.run(value(1)) == 1


def test_close_does_not_hang(monkeypatch):
    """A task that does not let itself be cancelled, or that blocks the thread, is left behind after a while."""
    monkeypatch.setattr(background, "CLOSING_SECONDS", 0.05)
    released = threading.Event()

    async def block():
        released.wait(10)

    background.submit(block())
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        background.close()
    assert time.monotonic() - started < 2
    assert background.run(value(1)) == 1
    released.set()


def test_fork():
    """A child has a loop and resources of its own; the parent's go on, also while and after the child ends."""
    resource = background.run(kept("a"))
    loop = background.run(names())
    slow = background.submit(value("parent", 0.2))

    def child():
        assert background.run(kept("a")) is not resource
        assert background.run(names())[0] == "arhn-background"
        background.close()
        assert resource.closed is None

    assert in_a_fork(child) == 0
    assert slow.result(5) == "parent"
    assert background.run(names()) == loop
    assert background.run(kept("a")) is resource
    assert resource.closed is None


def test_fork_before_the_first_use():
    """Nothing to leave behind, nothing to break."""
    background.close()
    assert in_a_fork(lambda: background.run(value(1))) == 0


def test_fork_while_another_thread_holds_the_lock():
    """The child takes a new lock: the holder does not exist there."""
    with background._lock:
        assert in_a_fork(lambda: background.run(value(1))) == 0


SCRIPT = """
import asyncio, os, sys
from arhn_datasets.rows import background

class Resource:
    async def close(self):
        print("closed in", "child" if os.getpid() != parent else "parent", flush=True)

async def keep():
    return background.resource("a", Resource)

parent = os.getpid()
background.run(keep())
endless = background.submit(asyncio.sleep(60))
if not os.fork():
    sys.exit(0)
os.wait()
"""


def test_the_end_of_a_process():
    """Resources are closed by the process that made them, and nothing is written to stderr."""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed in parent\n", "")


def test_an_error_that_nobody_waits_for_any_more_is_no_noise(caplog):
    """Whoever waited was cancelled as the work failed: nothing is told when its task is collected."""
    gone, failing = threading.Event(), threading.Event()

    async def fail():
        background.heard()
        failing.set()
        gone.wait(10)  # holds the loop, so that the cancellation comes after the error
        raise ValueError("no")

    future = background.submit(fail())
    assert failing.wait(10)
    future.cancel()
    gone.set()
    background.run(value(1))
    del future  # which holds the task
    gc.collect()
    background.run(value(1))
    assert "never retrieved" not in caplog.text


def test_a_slow_end_is_no_error(monkeypatch):
    """What is slow to be cancelled at the end of a process prints no traceback."""
    monkeypatch.setattr(background, "CLOSING_SECONDS", 0.05)
    released = threading.Event()

    async def block():
        released.wait(10)

    background.submit(block())
    background._at_exit()
    released.set()
