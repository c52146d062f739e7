"""What an option may be: a check raises ConfigurationError, which names it and says what was given and expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from arhn_datasets.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option as people read it; with a metavar, choices or as a switch it is one of the commands, too."""

    help: str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    switch: bool = False
    repeatable: bool = False
    with_evidence: Collection[str] = ()
    """The kinds of evidence with which alone it has an effect; none for any."""


def check_integer(name: str, value: object, least: int | None = None, *, optional: bool = False) -> None:
    """Refuse what is no whole number, or below ``least``, as the option ``name``; None only where ``optional``."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        expected = "a whole number" + ("" if least is None else f" from {least}") + (", or None," if optional else "")
        raise ConfigurationError(f"{name} is {value!r}; {expected} was expected.")


def check_seconds(name: str, value: object, *, above_zero: bool = True) -> None:
    """Refuse what is no finite number of seconds, or none above 0, as the option ``name``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf or (above_zero and value == 0):  # type: ignore[operator]
        expected = "above 0" if above_zero else "from 0"
        raise ConfigurationError(f"{name} is {value!r}; a number of seconds {expected} was expected.")


def check_choice(name: str, value: object, choices: Collection[str], *, optional: bool = False) -> None:
    """Refuse what is none of ``choices`` as the option ``name``; None only where it is ``optional``."""
    if not (optional and value is None) and value not in choices:
        none = ", or None," if optional else ""
        raise ConfigurationError(f"{name} is {value!r}; one of {', '.join(choices)}{none} was expected.")


def check_choices(options: object, known: Mapping[str, Collection[str]]) -> None:
    """Refuse a value of the attributes of ``options`` that is none of those known."""
    for name, choices in known.items():
        check_choice(name, getattr(options, name), choices)


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
