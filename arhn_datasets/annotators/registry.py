"""The annotators that commands can name: every file of this folder that has a class with a ``NAME``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from arhn_datasets import annotators
from arhn_datasets.annotators.interface import Annotator


def registered() -> dict[str, type[Annotator]]:
    """The classes by their names, in the order of these; those of a user's modules, once imported, among them."""
    for module in pkgutil.iter_modules(annotators.__path__, f"{annotators.__name__}."):
        if not module.ispkg:
            importlib.import_module(module.name)
    return {cls.NAME: cls for cls in sorted(_named(Annotator), key=lambda cls: cls.NAME)}


def _named(parent: type[Any]) -> Iterator[type[Annotator]]:
    for cls in parent.__subclasses__():
        if vars(cls).get("NAME"):
            yield cls
        yield from _named(cls)
