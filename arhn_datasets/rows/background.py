"""The one background event loop that owns clients, limits and the store of replies.

`Dataset.map` makes a new event loop for every call, a notebook has one running already, and forked workers inherit a
copy of the parent's: a pooled client survives none of them. So every process has one daemon thread with one loop, and
what lives on it is kept by key in :func:`resource`, never on an object that is hashed or pickled. What else a process
does around a fork is registered here, too.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # another one than the built-in before Python 3.11
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from arhn_datasets.errors import NotYetAnsweredError

T = TypeVar("T")
Act = Callable[[], None]

CLOSING_SECONDS = 5.0


class _Loop:
    """A running event loop on a daemon thread, and what it owns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.resources: dict[Hashable, Any] = {}
        self.thread = threading.Thread(target=self.loop.run_forever, name="arhn-background", daemon=True)
        self.thread.start()


_lock = threading.Lock()
_current: _Loop | None = None
# A forked child must never close or collect the parent's loop: both share one epoll set, and closing
# it would silence the parent's sockets. Kept alive here instead.
_graveyard: list[_Loop] = []


def _running() -> _Loop:
    global _current
    current = _current
    if current is not None:  # many times for each request
        return current
    with _lock:
        if _current is None:
            _current = _Loop()
        return _current


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start ``coroutine`` on the background loop; the future can be cancelled."""
    return asyncio.run_coroutine_threadsafe(coroutine, _running().loop)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the background loop and wait for it, from any thread but the loop's own."""
    future = submit(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C reaches the waiting thread, not the loop
        raise


def heard() -> None:
    """Take the running task's error for heard: who waited for it may have been cancelled in the meantime."""
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the background loop and await it from another loop."""
    return await asyncio.wrap_future(submit(coroutine))


async def gathered(awaitables: Iterable[Awaitable[T]], *, concurrently: bool = True) -> list[T]:
    """The results in order: of all at once on a loop, or one after the other where nothing waits.

    The first error ends the others: what is left of a call that fails must neither ask on nor be waited for. But where
    a reply of a batch round is not there yet, the others go on, because their requests are planned as well.
    """
    if not concurrently:
        return [await awaitable for awaitable in awaitables]
    listed = list(awaitables)
    if len(listed) == 1:  # needs no task of its own
        return [await listed[0]]
    tasks = [asyncio.ensure_future(awaitable) for awaitable in listed]
    try:
        try:
            return list(await asyncio.gather(*tasks))
        except NotYetAnsweredError:
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, NotYetAnsweredError):
                    raise result from None
            raise
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def resource(key: Hashable, make: Callable[[], T]) -> T:
    """What lives on the background loop of this process under ``key``, made at first use.

    Call it on the background loop. An object with an ``async def close()`` is closed when the process ends; after a
    fork the child starts without any.
    """
    resources = _running().resources
    if key not in resources:
        resources[key] = make()
    value: T = resources[key]
    return value


@contextmanager
def every(seconds: float, act: Callable[[], object], *, name: str) -> Iterator[None]:
    """Do something every so many seconds, in a thread of its own, until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def close() -> None:
    """Close every resource and stop the loop; the next use starts afresh."""
    global _current
    with _lock:
        ended, _current = _current, None
    if ended is None:
        return
    closing = asyncio.run_coroutine_threadsafe(_close_all(ended), ended.loop)
    try:
        closing.result(CLOSING_SECONDS)
    finally:
        ended.loop.call_soon_threadsafe(ended.loop.stop)
        ended.thread.join(CLOSING_SECONDS)
        if not ended.thread.is_alive():
            ended.loop.close()


async def _close_all(ended: _Loop) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    closing = [value.close() for value in ended.resources.values() if hasattr(value, "close")]
    for result in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def around_forks(*, before: Act = lambda: None, in_parent: Act = lambda: None, in_child: Act) -> None:
    """Call these at every fork of this process from now on; those of ``before`` last registered first."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def when_a_worker_ends(act: Act) -> None:
    """Call ``act`` at the end of this process if it is a worker, which ends without atexit.

    Workers are those of multiprocessing, and of multiprocess, which `Dataset.map` uses.
    """
    for name in ("multiprocessing.util", "multiprocess.util"):
        if name in sys.modules:
            sys.modules[name].Finalize(None, act, exitpriority=100)


def _after_fork() -> None:
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _graveyard.append(_current)
        _current = None


def _at_exit() -> None:
    with suppress(FutureTimeout):  # thousands of requests may be under way on a busy machine; they end with it
        close()


atexit.register(_at_exit)
around_forks(in_child=_after_fork)
