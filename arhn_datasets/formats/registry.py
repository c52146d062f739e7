"""The formats that there are: those that the files of this folder hold, found by looking."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import pyarrow as pa

from arhn_datasets import formats
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.formats.format import Format, Options, Table


@cache
def known_formats() -> Mapping[str, Format]:
    """Every format by its name, in their places."""
    names = [f"{formats.__name__}.{module.name}" for module in pkgutil.iter_modules(formats.__path__)]
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    ordered = sorted({value for value in values if isinstance(value, Format)}, key=lambda one: (one.place, one.name))
    return {format.name: format for format in ordered}


def chosen_formats(names: Sequence[str]) -> dict[str, Format]:
    """The formats of these names, each once.

    Raises:
        ConfigurationError: there is no such format, or none is named.
    """
    known = known_formats()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(f"The format is {unknown or 'not named'}; expected some of {', '.join(known)}.")
    return {name: known[name] for name in names}


def table_named(name: str) -> Table:
    """The table of a configuration.

    Raises:
        ConfigurationError: no format has such a table.
    """
    tables = {table.name: table for format in known_formats().values() for table in format.tables}
    if name not in tables:
        raise ConfigurationError(f"The format is {name!r}; a table of one of {', '.join(tables)} was expected.")
    return tables[name]


def table_of(name: str, rows: pa.Table, options: Options | None = None) -> tuple[pa.Table, Counter[str]]:
    """The table of a configuration from rows, and how many were left out by reason; see :meth:`Table.of`.

    In the tables of a corpus, a docid or a query that is in several rows is there several times.
    """
    return table_named(name).of(rows, options)


def examples_of(there: Collection[str]) -> dict[str, dict[str, str]]:
    """The examples of loading what is there, as the card takes them: by template, the formats and what a row is."""
    examples: dict[str, dict[str, str]] = {}
    for format in known_formats().values():
        if set(format.loads or [format.name]) <= set(there):
            examples.setdefault(format.example or format.name, {})[format.name] = format.row
    return examples
