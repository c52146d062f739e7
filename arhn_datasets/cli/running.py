"""What every command shares: exit codes, errors without a traceback, interrupts, arguments."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import NoReturn, TextIO

from arhn_datasets.errors import AccessDenied, ArhnError, ConfigurationError, InputError
from arhn_datasets.runs.signals import interruptible

DONE, FAILED, WRONG_USAGE = 0, 1, 2
MOST = 2**31 - 1  # beyond it Arrow's numbers overflow


def guarded(command: Callable[[], int], interrupted: Callable[[], str]) -> int:
    """Run a command; every error of ours or of the system becomes a message and an exit code, without a traceback.

    Where nobody reads what is printed (``| head``), the command ends quietly with 1; what it has written stays.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    signals: list[int] = []
    try:
        with interruptible(signals):
            code = command()
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be printed is told here, and not by the interpreter as it ends
            return code
    except (KeyboardInterrupt, Exception) as error:
        unread = _unread(isinstance(error, BrokenPipeError))
        # What was at work may answer an interruption by an error of its own.
        if signals or isinstance(error, KeyboardInterrupt):
            _tell(f"\nInterrupted. {interrupted()}")
            return FAILED
        if unread and isinstance(error, BrokenPipeError):
            return FAILED
        if not isinstance(error, (ArhnError, OSError)):
            raise
        _tell(f"error: {error if isinstance(error, ArhnError) else _of_system(error)}")
        usage = isinstance(error, (ConfigurationError, InputError)) and not isinstance(error, AccessDenied)
        return WRONG_USAGE if usage or _no_name(error) or _no_name(error.__cause__) else FAILED


def _unread(broken: bool) -> bool:
    """Whether what is printed arrives nowhere; then it goes to the null device, or the interpreter's end would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if broken:
                stream.write("\n")  # a long text is not in the buffer any more when its writing has failed
            stream.flush()
        except OSError:
            _to_nowhere(stream)
            return True
        except (AttributeError, ValueError):  # there is no such stream
            pass
    return False


def _to_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # a stream in memory has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _tell(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(sys.stderr)


def _of_system(error: OSError) -> str:
    """What the system has refused, of which file, why, and what to do."""
    name = "the work" if error.filename is None else str(error.filename)
    reason = f"The system refused {name}: {error.strerror or str(error) or type(error).__name__}."
    if _no_name(error):
        return f"{reason} Name another file or folder, with a shorter name."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason} Free some space and run the same command again."
    return f"{reason} Check that it is there and that you may read and write it, and run the same command again."


def _no_name(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(FAILED if _unread(broken=False) and status == DONE else status, message)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with ``--version``."""
    parser = _Parser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('arhn_datasets')}")
    return parser


def whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """The type of an argument: a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        value = int(text) if re.fullmatch("-?[0-9]{1,99}", text) else low - 1
        if not low <= value <= high:
            most = f" to {high}" if high < MOST or value > high else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low}{most}")
        return value

    return read


positive = whole(1)


def not_negative(text: str) -> float:
    """The type of an argument: a finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def number(text: str) -> int | float:
    """The type of an argument: a finite number, a whole one where it is written so."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text) if re.fullmatch("[-+]?[0-9]{1,99}", text) else value


def share(text: str) -> float:
    """The type of an argument: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value
