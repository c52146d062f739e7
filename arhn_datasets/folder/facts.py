"""What a publisher says of a dataset, in a YAML file."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.markdown import one_line
from arhn_datasets.folder.readme import read_yaml


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What no run can know of a dataset, from its publisher.

    ``description`` and ``limitations`` are Markdown, ``citation`` is BibTeX, ``license`` and ``language`` are the ids
    of the Hub.
    """

    pretty_name: str | None = None
    description: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    citation: str | None = None
    tags: tuple[str, ...] = ()
    source_datasets: tuple[str, ...] = ()
    homepage: str | None = None
    limitations: str | None = None


def load_facts(path: str | os.PathLike[str]) -> Facts:
    """The facts of a YAML file; ``dataset_cards/facts.example.yaml`` explains each.

    Raises:
        ConfigurationError: the file is not there or no YAML, or holds something else.
    """
    known = [one.name for one in fields(Facts)]
    example = "see dataset_cards/facts.example.yaml"
    try:
        values = read_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {one_line(error)}. Expected a YAML file; {example}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"{path} holds {type(values).__name__}; a mapping with {', '.join(known)} was expected; {example}."
        )
    if unknown := [str(name) for name in values if name not in known]:
        raise ConfigurationError(
            f"{path} has the unknown {', '.join(unknown)}; known are {', '.join(known)}; {example}."
        )
    return Facts(**{name: _fact(path, name, value) for name, value in values.items() if value is not None})


def _fact(path: str | os.PathLike[str], name: str, value: Any) -> Any:
    several = isinstance(getattr(Facts(), name), tuple)
    values = value if isinstance(value, list) and several else [value]
    if not all(isinstance(one, str) and one.strip() for one in values):
        expected = "a text, or a list of texts," if several else "a text"
        raise ConfigurationError(
            f"{path}: {name} is {value!r}; {expected} was expected. Quote what YAML reads otherwise."
        )
    return tuple(one.strip() for one in values) if several else value.strip()
