"""Asking again: how often, and how long the pauses are."""

from __future__ import annotations

import pytest
from tenacity import Retrying

from arhn_datasets.rows.retries import policy


class Busy(Exception):
    """An error that asks for a pause."""

    def __init__(self, pause=None):
        self.pause = pause


def attempted(errors, stop=10, first=0.0, longest=0.0):
    """The result after these errors, the pauses that were made, and the errors that were told."""
    slept, told, left = [], [], list(errors)

    def act():
        if left:
            raise left.pop(0)
        return "done"

    policies = policy(
        again=lambda error: isinstance(error, Busy),
        stop=stop,
        first=first,
        longest=longest,
        asked=lambda error: error.pause,
        tell=lambda error, pause: told.append((error, pause)),
    )
    return Retrying(sleep=slept.append, **policies)(act), slept, told


def test_a_pause_that_was_asked_for_is_the_least():
    """Also where the pauses of one's own are shorter; each is told before it is made."""
    errors = [Busy(7.0), Busy(), Busy(2.5)]
    result, slept, told = attempted(errors)
    assert result == "done"
    assert slept == [7.0, 0.0, 2.5]
    assert told == list(zip(errors, slept, strict=True))


def test_pauses_of_ones_own_are_bounded():
    """They grow up to the longest, each a random part of what it may be."""
    _, slept, _ = attempted([Busy() for _ in range(9)], first=1.0, longest=4.0)
    assert all(0 <= pause <= min(4.0, 2.0**at) for at, pause in enumerate(slept))


@pytest.mark.parametrize("stop", [3, lambda state: state.attempt_number >= 3])
def test_the_last_error_is_raised(stop):
    """After the most attempts, and at once where another attempt cannot help."""
    errors = [Busy() for _ in range(9)]
    with pytest.raises(Busy) as raised:
        attempted(errors, stop)
    assert raised.value is errors[2]
    with pytest.raises(KeyError):
        attempted([Busy(), KeyError("x")])
