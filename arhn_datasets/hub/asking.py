"""How the Hub is asked: again where it only was busy or away, and what its errors say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from arhn_datasets.errors import ArhnError
from arhn_datasets.rows import retries

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

logger = logging.getLogger(__name__)

ATTEMPTS = 8
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
MOVED = frozenset({409, 412})
LONGEST_PAUSE_SECONDS = 30.0

T = TypeVar("T")
_LOST = frozenset({"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "JSONDecodeError"})


def persistent(ask: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Ask the Hub, again where it only was busy."""
    return attempts(is_transient)(ask, *arguments, **options)


def attempts(
    again: Callable[[BaseException], bool], stop: int | Callable[[RetryCallState], bool] = ATTEMPTS
) -> Retrying:
    """What calls a function again after the errors that ``again`` names, telling each time; by default 8 times."""
    from tenacity import Retrying

    return Retrying(
        **retries.policy(
            again=again, stop=stop, first=1.0, longest=LONGEST_PAUSE_SECONDS, asked=_pause_asked, tell=_say_again
        )
    )


def _say_again(error: BaseException, pause: float) -> None:
    status = status_of(error)
    why = f"the Hub answered {status}" if status else f"no reply of the Hub ({type(error).__name__})"
    logger.warning("%s; trying again in %.0f seconds", why, pause)


def _pause_asked(error: BaseException) -> float | None:
    return retries.seconds_of(_header(error, "Retry-After"))


def _header(error: BaseException, name: str) -> str | None:
    """What a header of the first reply that has it says."""
    for cause in _causes(error):
        value = getattr(getattr(cause, "response", None), "headers", {}).get(name)
        if value:
            return str(value)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: the library wraps what an upload raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, None where there was no reply."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help: the Hub was busy or away, or the connection broke."""
    if isinstance(error, ArhnError):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    return any(cls.__name__ in _LOST for cause in _causes(error) for cls in type(cause).__mro__)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt on what is there then may succeed."""
    return is_transient(error) or status_of(error) in MOVED


def said_by(error: BaseException) -> str:
    """What the Hub said, in a line."""
    told = _header(error, "X-Error-Message")
    if told:
        return told[:300]
    if any(type(cause).__name__ == "JSONDecodeError" for cause in _causes(error)):
        return "no JSON, as from a gateway whose server is away"
    return " ".join(str(error).split())[:300]
