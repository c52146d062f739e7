"""A README: what it says of a dataset, its metadata, and how it is merged with one that is there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder.report import Report
from arhn_datasets.rows.records import Row, shorten

if TYPE_CHECKING:
    from datasets import Features

REFINED, PUBLISHED = "refined", "published"
BEGIN, END = "<!-- arhn_datasets:begin -->", "<!-- arhn_datasets:end -->"
BASELINE_TAG = "lexical-baseline"
TAGS = ("arhn", "hard-negatives", "sentence-transformers", "information-retrieval")
TASK_CATEGORIES = ("text-retrieval", "text-ranking", "sentence-similarity")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
# What describes the files: an older README is wrong about them.
OWN_KEYS = ("configs", "dataset_info", "size_categories")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration of the repository: the parquet files of a folder in it.

    ``sizes`` has the number of rows and of bytes of each split. ``content`` is what the card says is in it, where
    ``dataset_cards/configurations.md`` does not.
    """

    folder: str
    sizes: Mapping[str, tuple[int, int]]
    features: Features | None = None
    content: str = ""

    @property
    def splits(self) -> dict[str, str]:
        """The path pattern of each split."""
        return {split: f"{self.folder}/{split}-*" for split in self.sizes}


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


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """All that a card says.

    Args:
        run: The content of ``run.json``.
        report: The counts.
        configs: The configurations, ``default`` among them.
        layout: ``"refined"`` or ``"published"``.
        files: What no configuration loads: `datasets` reads all those of a repository as files of one type.
        examples: Templates in ``dataset_cards/formats/`` that show how it is loaded; of each, the configurations that
            it shows with what a row of them is.
        repo_id: Where the dataset will be loaded from.
        changed: Some changed rows with all evidence columns.
        charts: ``"light"`` and ``"dark"`` to a path in the repository.
        facts: What the publisher says.
        license: The licence that the publisher gives; by default that of ``facts``, else that of the source.
    """

    run: Mapping[str, Any]
    report: Report
    configs: Mapping[str, Config]
    layout: str
    files: Sequence[str] = ()
    examples: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    repo_id: str | None = None
    changed: Sequence[Row] = ()
    charts: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    license: str | None = None

    @property
    def given_license(self) -> str | None:
        """The licence that the publisher gives."""
        return self.license or self.facts.license


def stated_metadata(content: CardContent, title: str) -> dict[str, Any]:
    """The metadata of a card, which tell the Hub and `datasets` what is there; what nobody has said is not in them."""
    facts, source = content.facts, content.run["source"]
    digits = len(str(content.report.total.rows))
    sources = [*facts.source_datasets, *([source["name"]] if source["kind"] == "hub" else [])]
    # `load_dataset` of a folder caches by these entries and not by the files: without something of the run in them,
    # another run in a folder of the same name would be served from the cache.
    description = f"arhn_datasets run {content.run['id']}"
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in config.splits.items()],
            "description": description,
            **({"default": True} if name == "default" else {}),
        }
        for name, config in content.configs.items()
    ]
    own = [BASELINE_TAG] if content.run["annotator"].get("baseline") else []
    data = {
        "pretty_name": title,
        "license": content.given_license or source.get("license"),
        "language": list(facts.language or source.get("languages") or ()),
        "annotations_creators": ["machine-generated"],
        "task_categories": list(TASK_CATEGORIES),
        "source_datasets": list(dict.fromkeys(sources)),
        "size_categories": [SIZES[min(max(digits - 3, 0), len(SIZES) - 1)]],
        "tags": list(dict.fromkeys([*TAGS, *own, *facts.tags])),
        "configs": configs,
        "dataset_info": [_info_entry(content, name, config) for name, config in content.configs.items()],
    }
    return {name: value for name, value in data.items() if value}


def _info_entry(content: CardContent, name: str, config: Config) -> dict[str, Any]:
    entry: dict[str, Any] = {"config_name": name}
    if config.features is not None:
        entry["features"] = config.features._to_yaml_list()  # what push_to_hub of `datasets` writes
    sizes = [size for _, size in config.sizes.values()]
    stored = [
        file["bytes"]
        for path, file in (content.run.get("files") or {}).items()
        if any(fnmatchcase(path, pattern) for pattern in config.splits.values())
    ]
    entry["splits"] = [
        {"name": split, "num_bytes": size, "num_examples": rows} for split, (rows, size) in config.sizes.items()
    ]
    return entry | {"download_size": sum(stored or sizes), "dataset_size": sum(sizes)}


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
            f"{path} cannot be read: {shorten(str(error), 300)}. Expected a YAML file; {example}."
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
            f"The metadata at the top of the existing README.md are no YAML: {shorten(str(error), 300)}. Nothing was "
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
