"""What a run reads: files, folders and datasets of the Hub, loaded or as a stream, and where they came from."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, InputError, SchemaError
from arhn_datasets.inputs.adaptation import adapt_dataset, keeps_rows
from arhn_datasets.inputs.bad_rows import STOP, OnBadRow
from arhn_datasets.inputs.files import READ_FILES, READERS, dataset_of, is_read
from arhn_datasets.inputs.folders import files_under, found_in, splits_of_parts
from arhn_datasets.inputs.forms import reading_of
from arhn_datasets.inputs.grouping import alike
from arhn_datasets.rows.arrow import holds_json
from arhn_datasets.rows.records import DECISION, DECISION_TYPE, shorten
from arhn_datasets.rows.stage import Transform

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

RESHARDED_FILES = 1000  # more take too long to look into first
CHANGES = ("drop_columns", "rename", "label_threshold")  # of the rows, before a form is recognised
UNPUBLISHED: Mapping[str, Any] = {"revision": None, "license": None, "languages": [], "private": None, "gated": None}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_AT_REVISION = re.compile(r"([\w.-]+/[\w.-]+)@([\w.%/-]+)")
_HF_PATH = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?")
# Where load_dataset keeps a dataset of the Hub, and map what was made of it: USER___NAME/CONFIG/VERSION/COMMIT.
_HUB_CACHE = re.compile(r".*[/\\]([\w.-]+?)___([\w.-]+)[/\\][^/\\]+[/\\][\d.]+[/\\]([0-9a-f]{40})[/\\]")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A contiguous part of each split: number ``index``, from 0, of ``of`` parts; refused where there is none."""

    index: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise ConfigurationError(
                f"The shard {self.index} of {self.of} was asked for; the shards of {self.of} are 0 to {self.of - 1}."
            )


@dataclass(frozen=True, kw_only=True)
class Input:
    """What to read: files, folders of them, a ``save_to_disk`` folder, or a Hub id; all of it, or a shard.

    ``name`` is one of them, or a pattern as ``data/*.jsonl``; ``more`` are others beside it. A Hub id may be
    ``user/name@revision``, and also ``hf://datasets/user/name/path``, with the path of files ``inside`` of it.
    """

    name: str
    more: tuple[str, ...] = ()
    inside: str = ""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None
    shard: Shard | None = None
    drop_columns: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    label_threshold: float | None = None
    on_bad_row: str = STOP

    def kept(self, names: Iterable[str]) -> dict[str, str]:
        """The columns that stay, before a form is recognised, each with the name that it then has.

        Raises:
            ConfigurationError: one that is dropped or renamed is not there, or two have one name.
        """
        found = list(names)
        if missing := [name for name in (*self.drop_columns, *self.rename) if name not in found]:
            raise ConfigurationError(
                f"{self.name} has no columns {missing} to drop or rename; its columns are {sorted(found)}."
            )
        kept = {name: self.rename.get(name, name) for name in found if name not in self.drop_columns}
        if twice := sorted(name for name, count in Counter(kept.values()).items() if count > 1):
            raise ConfigurationError(f"--rename would make several columns of the name {twice}; choose another name.")
        return kept

    def __post_init__(self) -> None:
        on_hub = _HF_PATH.fullmatch(self.name) if self.name.startswith("hf://") else _AT_REVISION.fullmatch(self.name)
        if self.name.startswith("hf://") and not on_hub:
            raise ConfigurationError(
                f"{self.name} is no path of the Hub; hf://datasets/USER/NAME[@REVISION][/PATH] is."
            )
        if on_hub is None or self.path.exists():
            return
        name, revision, inside = (*on_hub.groups(), "")[:3]
        if revision and self.revision not in (None, unquote(revision)):
            raise ConfigurationError(f"--revision {self.revision} and {self.name} name two revisions; leave one out.")
        if inside and self.config is not None:
            raise ConfigurationError(
                f"{self.name} names files and --config {self.config} a configuration; leave one out."
            )
        known = {"name": name, "revision": unquote(revision) if revision else self.revision, "inside": inside or ""}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def path(self) -> Path:
        """Where it is on this disk, if it is there."""
        return Path(self.name).expanduser()

    @property
    def is_published(self) -> bool:
        """Whether the name can only be that of a dataset of the Hub."""
        named = not self.path.exists() and not is_read(self.path) and bool(_HUB_ID.fullmatch(self.name))
        return named and not self.more

    @property
    def places(self) -> list[Path]:
        """The files and folders on this disk that are named, where a pattern is, those that fit it."""
        found: dict[Path, None] = {}
        for name in (self.name, *self.more):
            path = Path(name).expanduser()
            fits = [] if path.exists() else sorted(map(Path, glob(str(path), recursive=True)))
            found |= dict.fromkeys(fits or [path])
        return list(found)


def load_input(
    source: Input, *, undo: Transform, on_bad_row: OnBadRow = STOP
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The canonical rows of each split, also where a shard is named, in files on this disk, and where they came from.

    Args:
        source: What to read.
        undo: Gives the source rows of an earlier result.
        on_bad_row: As of :func:`~arhn_datasets.inputs.adaptation.adapt_dataset`.

    Raises:
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
    """
    loaded, kind, told = _load(source, on_bad_row)
    put_together = told.get("put_together", False)
    told = {name: value for name, value in told.items() if name != "put_together"}
    raw = _splits_of(loaded, source)
    raw = {name: _reshaped(dataset, source) for name, dataset in raw.items()}
    rows = replace(source, label_threshold=None) if put_together else source  # where the grades are read already
    adapted = {name: _canonical(dataset, rows, undo, name, on_bad_row) for name, dataset in raw.items()}
    splits = alike({name: (raw[name].column_names, dataset) for name, dataset in adapted.items()})
    if any(map(len, raw.values())) and not any(map(len, splits.values())):
        raise InputError(
            f"Every row of {source.name} breaks its form; nothing can be refined. --on-bad-row stop tells why."
        )
    if not any(len(dataset) for dataset in splits.values()):
        raise InputError(f"{source.name} has no rows; nothing can be refined.")
    provenance = {
        **_provenance(source, kind, told),
        "rows": {name: len(dataset) for name, dataset in splits.items()},
        "fingerprints": {name: dataset._fingerprint for name, dataset in raw.items()},
    }
    return splits, provenance


def _reshaped(dataset: Dataset, source: Input) -> Dataset:
    """The dataset with the columns that are to stay, under their new names."""
    kept = source.kept(dataset.column_names)
    dataset = dataset.select_columns(list(kept)) if len(kept) < len(dataset.column_names) else dataset
    changed = {old: new for old, new in kept.items() if old != new}
    return dataset.rename_columns(changed) if changed else dataset


def _canonical(dataset: Dataset, source: Input, undo: Transform, split: str, on_bad_row: OnBadRow) -> Dataset:
    limit = source.limit
    if is_refined(dataset.features.arrow_schema):
        dataset = dataset.map(undo, batched=True)
    if limit and keeps_rows(dataset.column_names):
        dataset = dataset.select(range(min(limit, len(dataset))))
    adapted: Dataset = adapt_dataset({split: dataset}, threshold=source.label_threshold, on_bad_row=on_bad_row)[split]
    return adapted.select(range(min(limit, len(adapted)))) if limit else adapted


def stream(source: Input) -> tuple[dict[str, IterableDataset], dict[str, Any]] | None:
    """The rows of each split of a dataset of the Hub as they are and as they come, and where they came from.

    None where :func:`load_input` has to read: a file or folder, columns that only the rows would tell, and a Hub that
    does not answer, for the dataset may be in the cache.

    Raises:
        InputError: there is no such split.
    """
    from datasets import load_dataset

    if not source.is_published or source.inside:
        return None
    published = _hub_facts(source)
    try:
        opened = load_dataset(source.name, source.config, revision=published["revision"], streaming=True)
    except Exception as error:  # any, and loading tells it
        logger.info("%s is no stream: %s", source.name, error)
        return None
    splits = _splits_of(opened, source)
    if any(split.features is None or _is_open(split.features.arrow_schema, source) for split in splits.values()):
        return None
    return {name: _by_groups(split) for name, split in splits.items()}, _provenance(source, "hub", published)


def _is_open(schema: pa.Schema, source: Input) -> bool:
    """Whether the fields of passages are known only of all rows."""
    kept = source.kept(schema.names)
    columns = {kept[name]: type for name, type in zip(schema.names, schema.types, strict=True) if name in kept}
    return any(holds_json(columns[name]) for name in reading_of(tuple(columns)).structs)


def _by_groups(split: IterableDataset) -> IterableDataset:
    """The same rows, each row group of a parquet file for itself, where this version of `datasets` can.

    The scanner of a parquet file reads far ahead of a slow consumer, but not beyond its part.
    """
    groups: Any = split
    return groups.reshard() if hasattr(split, "reshard") and split.num_shards <= RESHARDED_FILES else split


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
    where = _provenance(Input(name=name or "rows in memory"), "memory" if name is None else "hub", published)
    prints = {split: rows._fingerprint for split, rows in splits.items() if hasattr(rows, "_fingerprint")}
    return {**where, "fingerprints": prints}


def stamp_of(source: Input) -> list[Any]:
    """What changes when the files of an input do: their names, sizes and times; nothing of a dataset of the Hub."""
    files = [
        (found, place) for place in source.places for found in ([place] if place.is_file() else files_under(place))
    ]
    return [[found.relative_to(at).as_posix(), (s := found.stat()).st_size, s.st_mtime_ns] for found, at in files]


def _provenance(source: Input, kind: str, published: Mapping[str, Any]) -> dict[str, Any]:
    changes = {name: getattr(source, name) for name in CHANGES}
    return {
        "name": source.name if kind == "hub" else ", ".join(Path(name).name for name in (source.name, *source.more)),
        "kind": kind,
        "config": source.config,
        **published,
        "split": source.split,
        "limit": source.limit,
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in changes.items()
            if value not in ((), {}, None)
        },
        "rows": {},
    }


def is_refined(schema: pa.Schema) -> bool:
    """Whether rows are those of an earlier result, by the type of their decisions."""
    at = schema.get_field_index(DECISION)
    found = schema.field(at).type if at >= 0 else pa.null()
    return bool(pa.types.is_struct(found)) and {one.name for one in DECISION_TYPE} <= {one.name for one in found}


def _splits_of(loaded: Any, source: Input) -> dict[str, Any]:
    wanted = source.split
    if not isinstance(loaded, dict):  # of save_to_disk it may have another name of its own
        loaded = {wanted if wanted and wanted == str(loaded.split) else "train": loaded}
    if wanted and wanted not in loaded:
        raise InputError(f"{source.name} has no split {wanted!r}; its splits are {sorted(loaded)}.")
    return {wanted: loaded[wanted]} if wanted else dict(loaded)


def _load(source: Input, on_bad_row: OnBadRow) -> tuple[Any, str, Mapping[str, Any]]:
    """The dataset, the kind of its source, and what is told of it: revision, licence, ..., and files left out."""
    from datasets import load_dataset, load_from_disk

    if source.is_published:
        with reading(source):
            told = _hub_facts(source)
            if not source.inside:
                return load_dataset(source.name, source.config, revision=told["revision"]), "hub", told
            places = _downloaded(source, told["revision"])
        loaded, left_out = _of_files(places, source, None, on_bad_row)
        return loaded, "hub", {**told, "inside": source.inside, **left_out}
    places = source.places
    for place in places:
        _check(place)
    first = places[0]
    saved = len(places) == 1 and any((first / name).is_file() for name in ("state.json", "dataset_dict.json"))
    kind = "several places" if len(places) > 1 else "a file" if first.is_file() else "a folder"
    # What would be ignored must not stand in `run.json`.
    if source.config is not None and (saved or kind != "a folder"):
        kind = "a folder of save_to_disk" if saved else kind
        raise ConfigurationError(f"--config names a part of a Hub dataset, and {source.name} is {kind}; leave it out.")
    if source.revision is not None:
        raise ConfigurationError(f"--revision names a state of a Hub dataset, and {first} is {kind}; leave it out.")
    if saved:
        with reading(source):
            return load_from_disk(str(first)), "folder", UNPUBLISHED
    loaded, left_out = _of_files(places, source, source.config, on_bad_row)
    return loaded, kind.split()[-1], {**UNPUBLISHED, **left_out}


def _check(place: Path) -> None:
    """Refuse what is not there, and a file that holds no rows."""
    if not place.exists():
        raise InputError(
            f"There is nothing at {place}. Expected {READ_FILES}, folders of them, a pattern for their names, a folder "
            "written by save_to_disk, or the id of a dataset on the Hub (user/name)."
        )
    if place.is_file() and not is_read(place):
        raise InputError(f"{place} is no {', '.join(READERS)} file; convert it, or name one of these.")
    if place.is_file() and not place.stat().st_size:
        raise InputError(f"{place} is empty; rows were expected. Name another file, or make this one again.")


def _of_files(
    places: Sequence[Path], source: Input, config: str | None, on_bad_row: OnBadRow
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The splits that stand in files, and which files of the folders are left out, where there are such."""
    found = found_in(places, config)
    if found.left_out:
        named = ", ".join(found.left_out[:10]) + (", ..." if len(found.left_out) > 10 else "")
        logger.warning(
            "%d files of the input hold no rows that can be read and are left out: %s", len(found.left_out), named
        )
    left_out = {"left_out": list(found.left_out)} if found.left_out else {}
    if found.parts:
        splits = splits_of_parts(places[0], found.parts, source.label_threshold, on_bad_row)
        return splits, {**left_out, "put_together": True}
    read = {split: dataset_of(files, split) for split, files in found.splits.items()}
    splits = {split: rows for split, rows in read.items() if rows is not None}
    if not splits:
        named = ", ".join(str(place) for place in places)
        raise InputError(f"{named} holds no rows; nothing can be refined. Name another input.")
    return splits, left_out


def _downloaded(source: Input, revision: str | None) -> list[Path]:
    """The files of a dataset of the Hub that are named inside of it."""
    from huggingface_hub import snapshot_download

    inside = source.inside.strip("/")
    patterns = [inside, f"{inside}/**"]
    root = snapshot_download(source.name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    found = [Path(root) / inside] if (Path(root) / inside).exists() else sorted(Path(root).glob(inside))
    if not found:
        raise InputError(f"{source.name} has nothing at {inside}; name a file, a folder or a pattern in it.")
    return found


@contextmanager
def reading(source: Input) -> Iterator[None]:
    """Name the input in what a loader raises, which may be anything that its file system or parser raises."""
    try:
        yield
    except (InputError, SchemaError):
        raise
    except Exception as error:
        path = source.path
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
    stated = (getattr(info, "card_data", None) or {}).get(name)
    return [str(one) for one in (stated if isinstance(stated, list) else [stated]) if one]


# --- the files of a repository ------------------------------------------------------------------------------------


def folder_or_repository(
    name: str | os.PathLike[str], revision: str | None = None, token: str | None = None
) -> tuple[Path, str | None]:
    """A folder as it is; else the files of the repository of that name, and the commit that they are of.

    Raises:
        ConfigurationError: a revision was named, of a folder.
        InputError: there is neither, or the repository cannot be downloaded.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ConfigurationError(f"{name} is a folder, and a revision ({revision}) goes with a repository.")
        return Path(name), None
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository = os.fspath(name)
    try:
        # The commit first: a download alone would fall back to a cached copy where access is denied or there is no net.
        commit = str(HfApi(token=token).dataset_info(repository, revision=revision).sha)
        return Path(snapshot_download(repository, repo_type="dataset", revision=commit, token=token)), commit
    except Exception as error:  # no public name covers what the transports of hub 0.x, 1.x and 2.x raise
        hint = "Check the name, the --revision, and the --token where it is private."
        if not isinstance(error, HFValidationError) and getattr(error, "response", None) is None:
            hint = (
                f"Check the connection to {constants.ENDPOINT} (HF_ENDPOINT), and the room in the cache "
                f"{constants.HF_HUB_CACHE} (HF_HOME), then run this again: what was downloaded is kept."
            )
        raise InputError(
            f"{name}{f' at {revision}' if revision else ''} is no folder and cannot be downloaded: "
            f"{type(error).__name__}: {shorten(' '.join(str(error).split()), 300).rstrip('.')}. {hint}"
        ) from error
