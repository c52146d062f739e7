"""What is found by lying in its folder: the modules of a package, and the classes that they define."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def modules_in(package: ModuleType) -> list[ModuleType]:
    """The modules of a package, imported, in the order of their names; not the packages in it."""
    found = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(one.name) for one in found if not one.ispkg]


def subclasses_of(parent: type[Any]) -> Iterator[type[Any]]:
    """The classes below ``parent``, at any depth, of all modules that are imported."""
    for cls in parent.__subclasses__():
        yield cls
        yield from subclasses_of(cls)
