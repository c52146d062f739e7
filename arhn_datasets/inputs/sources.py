"""What a run reads: files, folders and datasets of the Hub, whole or as a stream, and where they came from."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder.run import RUN_FILE, is_refined
from arhn_datasets.inputs.adaptation import adapt_dataset, keeps_rows
from arhn_datasets.rows.records import DECISION, QUERY, QUERY_ID, canonical_json
from arhn_datasets.rules.revert import Revert

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

LOADERS: Mapping[str, str] = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
RESHARDED_FILES = 1000  # more take too long to look into first
UNPUBLISHED: Mapping[str, Any] = {
    "revision": None,
    "license": None,
    "languages": [],
    "private": None,
    "gated": None,
}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Where load_dataset keeps a dataset of the Hub, and map what was made of it: USER___NAME/CONFIG/VERSION/COMMIT.
_HUB_CACHE = re.compile(r".*[/\\]([\w.-]+?)___([\w.-]+)[/\\][^/\\]+[/\\][\d.]+[/\\]([0-9a-f]{40})[/\\]")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A contiguous part of each split: number ``index``, from 0, of ``of`` parts.

    Raises:
        ConfigurationError: there is no such part.
    """

    index: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise ConfigurationError(
                f"The shard {self.index} of {self.of} was asked for; the shards of {self.of} are 0 to {self.of - 1}."
            )


@dataclass(frozen=True, kw_only=True)
class Input:
    """What to read: a file, a folder of files, a ``save_to_disk`` folder, or a Hub id; all of it, or a shard."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None
    shard: Shard | None = None


def load_input(source: Input) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The canonical rows of each split, also where a shard is named, and where they came from.

    Raises:
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
    """
    loaded, kind, published = _load(source, streaming=False)
    splits = _splits_of(loaded, source)
    canonical = {}
    for name, dataset in splits.items():
        if DECISION in dataset.column_names:  # an earlier result: from its source rows on
            dataset = dataset.map(Revert(keep_evidence=False), batched=True)
        if source.limit and keeps_rows(dataset.column_names):
            dataset = dataset.select(range(min(source.limit, len(dataset))))
        adapted = adapt_dataset(dataset)
        canonical[name] = adapted.select(range(min(source.limit, len(adapted)))) if source.limit else adapted
    if not any(len(dataset) for dataset in canonical.values()):
        raise InputError(f"{source.name} has no rows; nothing can be refined.")
    provenance = {
        **_provenance(source, kind, published),
        "rows": {name: len(dataset) for name, dataset in canonical.items()},
        "fingerprints": {name: dataset._fingerprint for name, dataset in splits.items()},
    }
    return canonical, provenance


def sharded(splits: Mapping[str, Dataset], source: Input) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The rows of the shard that the input names, and what ``run.json`` says of it; all rows where it names none."""
    if source.shard is None:
        return dict(splits), {}
    whole = {name: {"rows": len(dataset), "queries": _digest(dataset)} for name, dataset in splits.items()}
    parts = {
        name: dataset.select(_contiguous(len(dataset), source.shard)) if len(dataset) else dataset
        for name, dataset in splits.items()
    }
    return parts, {"shard": {"index": source.shard.index, "of": source.shard.of, "whole": whole}}


def open_input(source: Input) -> tuple[dict[str, IterableDataset], dict[str, Any]]:
    """The rows of each split as they come, as streams, and where they came from; of the shard, where one is named.

    Raises:
        InputError: the input is not there or cannot be read.
        ConfigurationError: it has fewer files than shards.
    """
    loaded, kind, published = _load(source, streaming=True)
    streams = {name: _stream_of(dataset) for name, dataset in _splits_of(loaded, source).items()}
    provenance = _provenance(source, kind, published)
    if source.shard is None:
        return streams, provenance
    parts = {name: stream.num_shards for name, stream in streams.items()}
    if source.limit:
        raise ConfigurationError("A stream cannot be cut after N rows and then into shards; leave --limit out.")
    if few := {name: count for name, count in parts.items() if count < source.shard.of}:
        raise ConfigurationError(
            f"A stream is cut into shards by its files, those of parquet by their row groups, and {source.name} has "
            f"{few} of them; {source.shard.of} or more were expected in each split. Ask for fewer shards, or run "
            "without --streaming."
        )
    shard = {"index": source.shard.index, "of": source.shard.of, "whole": {n: {"parts": f} for n, f in parts.items()}}
    return {
        name: stream.shard(num_shards=source.shard.of, index=source.shard.index, contiguous=True)
        for name, stream in streams.items()
    }, {**provenance, "shard": shard}


def _stream_of(dataset: Dataset | IterableDataset) -> IterableDataset:
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, Dataset):
        if len(dataset):
            return dataset.to_iterable_dataset()
        empty: IterableDataset = IterableDataset.from_generator(lambda: iter(()), features=dataset.features)
        return empty
    # The scanner of a parquet file reads far ahead of a slow consumer, but not beyond its shard: a row group then.
    if hasattr(dataset, "reshard") and dataset.num_shards <= RESHARDED_FILES:
        with_groups: IterableDataset = dataset.reshard()
        return with_groups
    return dataset


def provenance_of(splits: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    """Where rows in memory come from: as the caller says, or as their files in the cache of `load_dataset` tell."""
    files = [file["filename"] for rows in splits.values() for file in getattr(rows, "cache_files", ())]
    noted = {found.groups() for file in files if (found := _HUB_CACHE.match(file))}
    name, revision = source, None
    if source is None and len(noted) == 1:
        user, name, revision = noted.pop()
        name = f"{user}/{name}"
    elif source is not None and "@" in source:
        name, _, revision = source.partition("@")
    if name is not None and not _HUB_ID.fullmatch(name):
        raise ConfigurationError(
            f"source is {source!r}; the id of a dataset on the Hub was expected, user/name or user/name@revision."
        )
    published = dict(UNPUBLISHED) if name is None else _hub_facts(Input(name=name, revision=revision))
    return {
        "name": name or "rows in memory",
        "kind": "memory" if name is None else "hub",
        "config": None,
        **published,
        "split": None,
        "limit": None,
        "rows": {},
        "fingerprints": {n: rows._fingerprint for n, rows in splits.items() if hasattr(rows, "_fingerprint")},
    }


def stamp_of(source: Input) -> list[Any]:
    """What changes when the files of an input do: their names, sizes and times; nothing of a dataset of the Hub."""
    path = Path(source.name).expanduser()
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    return [[found.relative_to(path).as_posix(), (s := found.stat()).st_size, s.st_mtime_ns] for found in files]


def _provenance(source: Input, kind: str, published: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": source.name if kind == "hub" else Path(source.name).name,
        "kind": kind,
        "config": source.config,
        **published,
        "split": source.split,
        "limit": source.limit,
        "rows": {},
    }


def _splits_of(loaded: Any, source: Input) -> dict[str, Any]:
    if isinstance(loaded, dict):
        splits = dict(loaded)
    else:  # of save_to_disk it may have another name of its own
        splits = {source.split if source.split and source.split == str(loaded.split) else "train": loaded}
    if source.split and source.split in splits:
        return {source.split: splits[source.split]}
    if source.split:
        raise InputError(f"{source.name} has no split {source.split!r}; its splits are {sorted(splits)}.")
    return splits


def _contiguous(rows: int, shard: Shard) -> range:
    return range(rows * shard.index // shard.of, rows * (shard.index + 1) // shard.of)


def _digest(dataset: Dataset) -> str:
    """A hash of the queries in their order: equal for equal inputs, wherever their files lie."""
    found = hashlib.sha256()
    for table in dataset.select_columns([QUERY_ID, QUERY]).with_format("arrow").iter(1000):
        found.update(canonical_json([column.to_pylist() for column in table.columns]).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _load(source: Input, *, streaming: bool) -> tuple[Any, str, dict[str, Any]]:
    """The dataset, the kind of its source, and what that says of itself: revision, licence, languages, visibility."""
    from datasets import load_dataset, load_from_disk

    path = Path(source.name).expanduser()
    if path.is_file() and path.suffix not in LOADERS:
        raise InputError(f"{path} is no {', '.join(LOADERS)} file; convert it, or name one of these.")
    if not path.exists() and (not _HUB_ID.fullmatch(source.name) or path.suffix in LOADERS):
        raise InputError(
            f"There is nothing at {source.name}. Expected a {', '.join(LOADERS)} file, a folder of them, a folder "
            "written by save_to_disk, or the id of a dataset on the Hub (user/name)."
        )
    saved = path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    _check_options(source, path, saved)
    options: dict[str, Any] = {"streaming": True} if streaming else {}
    with reading(source):
        if path.is_file():
            loaded = load_dataset(LOADERS[path.suffix], data_files=str(path), split="train", **options)
            return loaded, "file", dict(UNPUBLISHED)
        if saved:
            return load_from_disk(str(path)), "folder", dict(UNPUBLISHED)
        if path.is_dir():
            return load_dataset(str(path), source.config, **options), "folder", _inherited(path)
        published = _hub_facts(source)
        return load_dataset(source.name, source.config, revision=published["revision"], **options), "hub", published


def _check_options(source: Input, path: Path, saved: bool) -> None:
    """Refuse what would be ignored and yet stand in ``run.json``, and a file without content."""
    kind = "a file" if path.is_file() else "a folder of save_to_disk" if saved else "a folder"
    if source.config is not None and (saved or path.is_file()):
        raise ConfigurationError(f"--config names a part of a Hub dataset, and {path} is {kind}; leave it out.")
    if source.revision is not None and path.exists():
        raise ConfigurationError(f"--revision names a state of a Hub dataset, and {path} is {kind}; leave it out.")
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{path} is empty; rows were expected. Name another file, or make this one again.")


@contextmanager
def reading(source: Input) -> Iterator[None]:
    """Name the input in what a loader raises, which may be anything that its file system or parser raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        path = Path(source.name).expanduser()
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise InputError(f"{source.name} holds no rows; nothing can be refined. Name another input.") from error
        cause: BaseException = error
        while path.exists() and cause.__cause__ is not None:  # datasets says only that something was wrong
            cause = cause.__cause__
        advice = "Check the name, the --config and the --revision, and that the file is what its suffix says."
        if path.is_file():
            advice = "Check that the file is what its suffix says."
        elif path.exists():
            advice = "Check that its files are what their suffixes say, and the --config where it has several."
        raise InputError(
            f"{source.name} cannot be read: {type(cause).__name__}: {' '.join(str(cause).split())[:400].rstrip('.')}. "
            f"{advice}"
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """No progress bars of `datasets` for what is not one of our stages."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _hub_facts(source: Input) -> dict[str, Any]:
    """The commit that the run reads, so that it can be read again, and the terms under which the source is there.

    Where the Hub does not say, the asked revision, and nothing of the terms.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(source.name, revision=source.revision)
    except Exception as error:  # offline, with the dataset in the local cache
        logger.info("the commit of %s is not known: %s", source.name, error)
        return {**UNPUBLISHED, "revision": source.revision}
    licenses = _tagged(info, "license")
    return {
        "revision": info.sha,
        "license": licenses[0] if len(licenses) == 1 else licenses or None,
        "languages": _tagged(info, "language"),
        "private": getattr(info, "private", None),
        "gated": getattr(info, "gated", None),
    }


def _tagged(info: Any, name: str) -> list[str]:
    """The values of a name in the metadata of a dataset: as the Hub tags it, else as its README has them."""
    tags = [str(tag) for tag in getattr(info, "tags", None) or []]
    if found := [tag.removeprefix(f"{name}:") for tag in tags if tag.startswith(f"{name}:")]:
        return found
    card = getattr(info, "card_data", None)
    stated = card.get(name) if card is not None else None
    return [str(one) for one in (stated if isinstance(stated, list) else [stated]) if one]


def _inherited(folder: Path) -> dict[str, Any]:
    """The terms of an earlier run's source: refining twice takes none of them away."""
    if not is_refined(folder):
        return dict(UNPUBLISHED)
    source = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("source", {})
    return {name: source.get(name, default) for name, default in UNPUBLISHED.items()} | {"revision": None}
