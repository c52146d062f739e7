"""Asking a server or the Hub again: pauses grow, are jittered, and are never less than a ``Retry-After``."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenacity import RetryCallState

RETRY_AFTER_MAX_SECONDS = 300.0


def policy(
    *,
    again: Callable[[BaseException], bool],
    stop: int | Callable[[RetryCallState], bool],
    first: float,
    longest: float,
    asked: Callable[[BaseException], float | None],
    tell: Callable[[BaseException, float], None] | None = None,
) -> dict[str, Any]:
    """How to ask again, as keywords for tenacity's ``Retrying`` and ``AsyncRetrying``; the last error is raised.

    Args:
        again: Whether another attempt may help after this error.
        stop: The most attempts, or what says that another one is too many.
        first: Seconds of the first pause, doubled from then on, of which each pause is a random part.
        longest: Most seconds of a pause that nobody asked for.
        asked: The pause that the error asks for, None for none.
        tell: Called with the error and the pause before each further attempt.
    """
    from tenacity import retry_if_exception, stop_after_attempt, wait_random_exponential

    jittered = wait_random_exponential(multiplier=first, max=longest)

    def error_of(state: RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        return error

    def before_sleep(state: RetryCallState) -> None:
        if tell is not None:
            tell(error_of(state), state.next_action.sleep if state.next_action else 0.0)

    return {
        "retry": retry_if_exception(again),
        "stop": stop_after_attempt(stop) if isinstance(stop, int) else stop,
        "wait": lambda state: max(asked(error_of(state)) or 0.0, jittered(state)),
        "before_sleep": before_sleep,
        "reraise": True,
    }


def seconds_of(retry_after: str | None) -> float | None:
    """The pause that a ``Retry-After`` header asks for, in seconds or as a date; None for none."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(seconds, RETRY_AFTER_MAX_SECONDS) if seconds > 0 else None
