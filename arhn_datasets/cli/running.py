"""What every command shares: exit codes, errors without a traceback, interrupts, arguments."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from arhn_datasets import answers
from arhn_datasets.errors import AccessDenied, ArhnError, ConfigurationError, InputError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def guarded(command: Callable[[], int], interrupted: Callable[[], str]) -> int:
    """Run a command; every error of ours becomes a message and an exit code, without a traceback."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    signals: list[int] = []
    try:
        with _interruptible(signals):
            return command()
    except (KeyboardInterrupt, Exception) as error:
        # With several processes datasets answers an interruption by an error of its own.
        if signals or isinstance(error, KeyboardInterrupt):
            print(f"\nInterrupted. {interrupted()}", file=sys.stderr)
            return FAILED
        if not isinstance(error, ArhnError):
            raise
        print(f"error: {error}", file=sys.stderr)
        usage = isinstance(error, (ConfigurationError, InputError)) and not isinstance(error, AccessDenied)
        return WRONG_USAGE if usage else FAILED


@contextmanager
def _interruptible(received: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command by KeyboardInterrupt; a worker forked from it writes its replies and ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    command = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != command:
            _end_worker(number)
        received.append(number)
        # Between two callbacks of a loop: in the middle of one it would take a task's wake-up with it, and the clean-up
        # of Dataset.map would wait for that task for ever.
        loop = asyncio._get_running_loop() if len(received) == 1 else None
        if loop is None:
            raise KeyboardInterrupt
        loop.call_soon_threadsafe(_interrupt)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _end_worker(number: int) -> None:
    # In a thread, since what was interrupted may hold the store's locks.
    writing = threading.Thread(target=answers.flush_all, daemon=True)
    writing.start()
    writing.join(2)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with ``--version``."""
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('arhn_datasets')}")
    return parser


def positive(text: str) -> Any:
    """The type of an argument: a whole number from 1."""
    value = int(text) if text.lstrip("-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def not_negative(text: str) -> float:
    """The type of an argument: a finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value
