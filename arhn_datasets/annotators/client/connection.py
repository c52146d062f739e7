"""The options of a connection, each said once: its default, what it may be, its words and its place in a command.

A field more here is an option of ``arhn.Endpoint``, of every stage and, where it has a metavar or choices, of the
commands.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

from arhn_datasets.annotators.client.contract import APIS
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.options import check_choice, check_integer, check_seconds

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option as people read it; with a metavar, choices or as a switch it is one of the commands, too."""

    help: str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    switch: bool = False
    repeatable: bool = False


def _check_key(name: str, value: str | None) -> None:
    key = (value or "").strip()
    if not (key.isprintable() and key.isascii()):
        raise ConfigurationError(
            "The API key holds a character that no HTTP header can carry. Expected one line of plain characters; "
            f"look at ARHN_API_KEY, {name}= or --api-key."
        )


def _option(
    default: object,
    check: Callable[[str, Any], None],
    help: str,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    *,
    repr: bool = True,
) -> Any:
    metadata = {"check": check, "option": Option(help=help, metavar=metavar, choices=choices)}
    return field(default=default, repr=repr, metadata=metadata)


# 0 would be no limit at all, and a request that hangs would hang the run.
_seconds = check_seconds
_pause = partial(check_seconds, above_zero=False)
_count = partial(check_integer, least=1)
_count_or_none = partial(check_integer, least=1, optional=True)
_api = partial(check_choice, choices=APIS, optional=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConnectionOptions:
    """How to reach servers; none of it changes a reply, so none of it enters an identity.

    Raises:
        ConfigurationError: a value is out of range.
    """

    api_key: str | None = _option(
        None, _check_key, "sent to the endpoint alone, as a bearer token; by default ARHN_API_KEY", "KEY", repr=False
    )
    api: str | None = _option(None, _api, "what the endpoint speaks; by default it is asked", choices=APIS)
    timeout: float = _option(300.0, _seconds, "seconds for each attempt", "SECONDS")
    deadline: float = _option(
        3600.0, _seconds, "seconds for all attempts of a request, waiting for a busy or absent server included"
    )
    give_up_after: float = _option(
        600.0, _seconds, "seconds without any endpoint that answers before the run ends", "SECONDS"
    )
    concurrency: int | None = _option(
        None, _count_or_none, "requests in flight for each server; by default just below the server's own limit", "N"
    )
    processes: int = _option(
        1,
        _count,
        "how many processes share the servers, on one machine or on many: each takes that part of the requests in "
        "flight, rounded down, and at least one",
    )
    attempts: int = _option(
        6, _count, "tries for each request, the first included; a busy or absent server uses up none"
    )
    backoff: float = _option(0.5, _pause, "seconds before the second try, doubled and jittered after")

    def __post_init__(self) -> None:
        self.check_connection()

    def check_connection(self) -> None:
        """Refuse values that are out of range.

        Raises:
            ConfigurationError: names the option, what it is and what was expected.
        """
        for one in fields(ConnectionOptions):
            one.metadata["check"](one.name, getattr(self, one.name))

    def connection(self) -> dict[str, Any]:
        """The options by name: keywords for whatever takes them."""
        return {one.name: getattr(self, one.name) for one in fields(ConnectionOptions)}


CONNECTION: Mapping[str, Option] = {one.name: one.metadata["option"] for one in fields(ConnectionOptions)}
"""The options by name, in words."""
DEFAULTS: Mapping[str, Any] = {one.name: one.default for one in fields(ConnectionOptions)}


def documented(cls: type[T]) -> type[T]:
    """The class with the options of the connection in its docstring."""
    lines = []
    for name, option in CONNECTION.items():
        default = "" if DEFAULTS[name] is None else f"; {DEFAULTS[name]:g} by default"
        said = f"{name}: {option.help[0].upper()}{option.help[1:]}{default}."
        lines.append(textwrap.fill(said, 100, initial_indent=" " * 4, subsequent_indent=" " * 8))
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Options of the connection:", *lines])
    return cls


documented(ConnectionOptions)
