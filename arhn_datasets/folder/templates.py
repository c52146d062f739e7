"""The prose of the card, which stands in ``dataset_cards/``: pages with places for values, and lists of sentences."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

_SENTENCE = re.compile(r"^- `([^`]+)`: (.*(?:\n  .*)*)", re.MULTILINE)


def filled(name: str, /, **values: str) -> str:
    """A page with values in their places, without the line end of the file."""
    return Template(_text(name)).substitute(values).strip("\n")


def sentences(name: str) -> dict[str, str]:
    """The sentences of a list by their names: lines ``- `name`: sentence``, which go on where they are indented."""
    return {key: said.replace("\n  ", " ") for key, said in _SENTENCE.findall(_text(name))}


def said(name: str, key: str, /, **values: str) -> str:
    """A sentence of a list, with values in their places."""
    return Template(sentences(f"sentences/{name}")[key]).substitute(values)


def is_there(name: str) -> bool:
    """Whether there is a page of this name, which may come from outside."""
    folder, _, own = name.partition("/")
    return any(f"{own}.md" in {file.name for file in (root / folder).iterdir()} for root in _roots())


def _text(name: str) -> str:
    for root in _roots():
        if (root / f"{name}.md").is_file():
            return (root / f"{name}.md").read_text(encoding="utf-8")
    raise FileNotFoundError(f"dataset_cards/{name}.md is missing from this installation; reinstall arhn_datasets.")


def _roots() -> list[Path]:
    # The templates are at the top of the repository; the wheel carries them inside the package.
    roots = (Path(str(files("arhn_datasets"))), Path(__file__).parents[2])
    return [root / "dataset_cards" for root in roots if (root / "dataset_cards").is_dir()]
