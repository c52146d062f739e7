"""Every rule there is: each is a file of this folder with a subclass of :class:`~arhn_datasets.rules.rule.Decision`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from arhn_datasets import rules
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rules.rule import Decision

UNNAMED = "Relabel"
"""The rule of parameters without a name: that of ARHN, whose identity has none."""


@cache
def known_rules() -> Mapping[str, type[Decision]]:
    """Every rule by the name under which ``run.json`` has it, that of its class."""
    modules = [importlib.import_module(f"{rules.__name__}.{one.name}") for one in pkgutil.iter_modules(rules.__path__)]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Decision) and value.__module__ == module.__name__
        if not inspect.isabstract(value)
    }


def rule_of(parameters: Mapping[str, Any]) -> Decision:
    """The rule of the ``relabel`` parameters in ``run.json``; without a name that of ARHN.

    Raises:
        ConfigurationError: there is no such rule, or a value is out of range.
        TypeError: the rule has no such option.
    """
    options = dict(parameters)
    name = options.pop("rule", UNNAMED)
    if name not in known_rules():
        raise ConfigurationError(f"The rule is {name!r}; one of {', '.join(known_rules())} was expected.")
    return known_rules()[name](**options)
