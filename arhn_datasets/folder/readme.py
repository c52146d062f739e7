"""A README with metadata at its top: read, written, and merged with one that is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arhn_datasets.errors import InputError
from arhn_datasets.folder.markdown import one_line

BEGIN, END = "<!-- arhn_datasets:begin -->", "<!-- arhn_datasets:end -->"
BASELINE_TAG = "lexical-baseline"
# What describes the files: an older README is wrong about them.
OWN_KEYS = ("configs", "dataset_info", "size_categories")


def rendered(metadata: Mapping[str, Any], page: str) -> str:
    """A README: metadata, and the page in a marked block that :func:`merge_card` can replace."""
    # No value may end the block; a word joiner is not seen.
    body = re.sub(r"<!--(?=\s*arhn_datasets:)", "<!--\u2060", page.strip("\n"))
    return f"---\n{_dump(metadata)}---\n\n{BEGIN}\n{body}\n{END}\n"


def parsed(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a README, found as `huggingface_hub` finds them, and the text behind them as it is.

    Their values are read as the Hub reads them, by YAML 1.2; `huggingface_hub` itself reads ``language: no`` as false.

    Raises:
        ValueError: the metadata are no YAML.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    bare = text.removeprefix("\ufeff")
    block = REGEX_YAML_BLOCK.search(bare)
    metadata = read_yaml(f"{block.group(2)}\n") if block else None
    if block is None or not (isinstance(metadata, dict) or not block.group(2).strip()):
        return {}, text  # two rules with text between them are no metadata
    return metadata or {}, bare[block.end() :]


def merge_card(existing: str, card: str, *, license_given: bool = False) -> str:
    """``card`` in an existing README: its block replaces an earlier one or follows the text that is there.

    Metadata that this package does not know stays, lists are united, and single values stay as they are there, except
    for what describes the files, and for the licence where ``license_given`` says that the publisher gave it now. Text
    outside of the block stays byte for byte. Merging twice is merging once.

    Raises:
        InputError: the existing metadata are no YAML.
    """
    try:
        theirs, text = parsed(existing)
    except ValueError as error:
        raise InputError(
            f"The metadata at the top of the existing README.md are no YAML: {one_line(error)[:300]}. Nothing was "
            "changed: correct them there, or remove them, and run this again."
        ) from error
    ours, page = parsed(card)
    block = page.strip("\n")
    earlier = re.search(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", text, re.DOTALL)
    if earlier:
        text = text[: earlier.start()] + block + text[earlier.end() :]
    elif text:
        gap = "" if text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        text = f"{text}{gap}{block}\n"
    else:
        text = f"\n{block}\n"
    if not theirs and not text.startswith(("\n", "\r")):
        text = f"\n{text}"
    return f"---\n{_dump(_merged(theirs, ours, license_given))}---\n{text}"


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any], license_given: bool) -> dict[str, Any]:
    merged, before_theirs = dict(theirs), {*OWN_KEYS, *(["license"] if license_given else [])}
    for name, value in ours.items():
        if name in before_theirs or not theirs.get(name):
            merged[name] = value
        elif isinstance(value, list):
            there = theirs[name] if isinstance(theirs[name], list) else [theirs[name]]
            # Ours as it is now: a tag of an earlier run may be wrong of this one.
            merged[name] = [*value, *(one for one in there if one not in value and one != BASELINE_TAG)]
    # What an earlier run has said of its files, and this one does not say.
    return {name: value for name, value in merged.items() if name not in OWN_KEYS or name in ours}


def read_yaml(text: str) -> Any:
    """The value of a YAML text as YAML 1.2 reads it, which the Hub does: ``no`` is a language, not false.

    Raises:
        ValueError: it is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error


def _dump(metadata: Mapping[str, Any]) -> str:
    import yaml
    from huggingface_hub.utils import yaml_dump

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        # Unquoted or in single quotes, the line ends of Unicode would be read back as spaces.
        style = '"' if any(end in value for end in "\x85\u2028\u2029") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml_dump(dict(metadata), sort_keys=False, width=float("inf"), Dumper=Dumper))


def metadata_of(path: Path) -> dict[str, Any] | None:
    """The metadata of a README file; None where there are none, or they are no YAML mapping."""
    try:
        return parsed(path.read_text(encoding="utf-8"))[0] or None
    except ValueError:  # of text that is no UTF-8 as well
        return None
