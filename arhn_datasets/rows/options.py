"""Checks of the options that stages take; each raises a ConfigurationError that says what was given and expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from arhn_datasets.errors import ConfigurationError


def check_integer(name: str, value: object, least: int | None = None, *, optional: bool = False) -> None:
    """Refuse what is no whole number, or below ``least``, as the option ``name``; None only where ``optional``."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        expected = "a whole number" + ("" if least is None else f" from {least}") + (", or None," if optional else "")
        raise ConfigurationError(f"{name} is {value!r}; {expected} was expected.")


def check_choices(options: object, known: Mapping[str, Sequence[object]]) -> None:
    """Refuse a value of the attributes of ``options`` that is none of those known."""
    for name, choices in known.items():
        value = getattr(options, name)
        if value not in choices:
            raise ConfigurationError(f"{name} is {value!r}; one of {', '.join(map(str, choices))} was expected.")


def check_numbers(options: object, *names: str, least: float = -math.inf) -> None:
    """Refuse what is no finite number, or below ``least``, among these attributes of ``options``."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigurationError(f"{name} is {value!r}; a finite number was expected.")
        if value < least:
            raise ConfigurationError(f"{name} is {value}; a number from {least:g} was expected.")


def check_share(options: object, name: str) -> None:
    """Refuse what is no number from 0 to 1 in this attribute of ``options``."""
    check_numbers(options, name)
    if not 0 <= getattr(options, name) <= 1:
        raise ConfigurationError(f"{name} is {getattr(options, name)}; a share from 0 to 1 was expected.")
