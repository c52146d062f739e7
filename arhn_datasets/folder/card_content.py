"""All that a card says, and the metadata at its top, which tell the Hub and `datasets` what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from arhn_datasets.folder.facts import Facts
from arhn_datasets.folder.markdown import one_line
from arhn_datasets.folder.readme import BASELINE_TAG
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.templates import said
from arhn_datasets.rows.records import Row

if TYPE_CHECKING:
    from datasets import Features

REFINED, PUBLISHED = "refined", "published"

TAGS = ("arhn", "hard-negatives", "sentence-transformers", "information-retrieval")
TASK_CATEGORIES = ("text-retrieval", "text-ranking", "sentence-similarity")
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration of the repository.

    ``splits`` has the path pattern of each split, ``sizes`` its number of rows and of bytes. ``content`` is what the
    card says is in it, where ``dataset_cards/configurations.md`` does not.
    """

    splits: Mapping[str, str]
    features: Features | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    content: str = ""


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
    facts: Facts | None = None
    license: str | None = None

    @property
    def stated(self) -> Facts:
        """The facts, empty where there are none."""
        return self.facts or Facts()

    @property
    def given_license(self) -> str | None:
        """The licence that the publisher gives."""
        return self.license or self.stated.license

    @property
    def title(self) -> str:
        """The name that the publisher gives, or one made of the source's."""
        return self.stated.pretty_name or said("top", "title", source=self.run["source"]["name"])

    @property
    def by_baseline(self) -> bool:
        """Whether no LLM was asked."""
        return bool(self.run["annotator"].get("baseline"))


def metadata_of(content: CardContent) -> dict[str, Any]:
    """The metadata of a card; what nobody has said is not in them."""
    facts, source = content.stated, content.run["source"]
    rows = content.report.total.rows
    sources = [*facts.source_datasets, *([source["name"]] if source["kind"] == "hub" else [])]
    own = [BASELINE_TAG] if content.by_baseline else []
    data = {
        "pretty_name": one_line(content.title),
        "license": content.given_license or source.get("license"),
        "language": list(facts.language or source.get("languages") or ()),
        "annotations_creators": ["machine-generated"],
        "task_categories": list(TASK_CATEGORIES),
        "source_datasets": list(dict.fromkeys(sources)),
        "size_categories": [next((name for limit, name in SIZES if rows < limit), "n>1B")],
        "tags": list(dict.fromkeys([*TAGS, *own, *facts.tags])),
        "configs": [_config_entry(content, name, config) for name, config in content.configs.items()],
        "dataset_info": [_info_entry(content, name, config) for name, config in content.configs.items()],
    }
    return {name: value for name, value in data.items() if value}


def _config_entry(content: CardContent, name: str, config: Config) -> dict[str, Any]:
    return {
        "config_name": name,
        "data_files": [{"split": split, "path": path} for split, path in config.splits.items()],
        # `load_dataset` of a folder caches by this entry and not by the files: without something of the run in
        # it, another run in a folder of the same name would be served from the cache.
        "description": f"arhn_datasets run {content.run['id']}",
        **({"default": True} if name == "default" else {}),
    }


def _info_entry(content: CardContent, name: str, config: Config) -> dict[str, Any]:
    entry: dict[str, Any] = {"config_name": name}
    if config.features is not None:
        entry["features"] = config.features._to_yaml_list()  # what push_to_hub of `datasets` writes
    if set(config.sizes) == set(config.splits):
        entry["splits"] = [
            {"name": split, "num_bytes": size, "num_examples": rows} for split, (rows, size) in config.sizes.items()
        ]
        sizes = [size for _, size in config.sizes.values()]
        stored = [
            file["bytes"]
            for path, file in (content.run.get("files") or {}).items()
            if any(fnmatchcase(path, pattern) for pattern in config.splits.values())
        ]
        entry |= {"download_size": sum(stored or sizes), "dataset_size": sum(sizes)}
    return entry
