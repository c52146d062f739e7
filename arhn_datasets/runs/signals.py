"""What SIGINT and SIGTERM do to this process: the one place that sets their handlers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(received: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block by KeyboardInterrupt; their numbers are noted in ``received``."""

    def end(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    with kept_handlers():
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                signal.signal(number, end)
        yield


@contextmanager
def kept_handlers() -> Iterator[None]:
    """The handlers of before are there again after the block; only the main thread has any."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
