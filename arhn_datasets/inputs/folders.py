"""Which files of a folder are read: every one, each in a split, or it is named as left out.

A folder may be that of a dataset repository, whose README names its configurations, or one of the parts of BEIR.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.inputs.bad_rows import BadRow, OnBadRow
from arhn_datasets.inputs.files import READ_FILES, dataset_of, is_read
from arhn_datasets.rows.records import stable_docid

if TYPE_CHECKING:
    from datasets import Dataset

Splits: TypeAlias = "dict[str, list[Path]]"

# As datasets names splits by the words in the names of files and folders.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What lies beside the rows of a dataset and holds none.
_NO_ROWS = re.compile(
    r".*\.(md|lock|py|png|jpe?g|svg)|(license|notice|readme|citation)(\.(txt|rst|cff))?|(cache-|tmp).*\.arrow"
    r"|(dataset_infos?|state|dataset_dict|run|config|configuration)\.json",
    re.IGNORECASE,
)
CORPUS, QUERIES, QRELS = BEIR = ("corpus", "queries", "qrels")
RETRIEVED = {"run": ("run", "runs", "top_ranked"), "negatives": ("negatives", "hard_negatives", "hard-negatives")}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files to read: of each split, or of each part of BEIR, and those whose rows are left out."""

    splits: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    parts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def found_in(places: Sequence[Path], config: str | None = None) -> Found:
    """What is to be read of files and folders.

    Raises:
        ConfigurationError: there is no such configuration, or several and none was named.
        InputError: there is nothing to read.
    """
    if len(places) == 1 and places[0].is_dir():
        return _of_a_folder(places[0], config)
    if len(places) == 1:
        return Found(splits={"train": places})  # whatever its name says
    found: dict[str, list[Path]] = {}
    left: list[str] = []
    for place in places:
        inside = _of_a_folder(place, None) if place.is_dir() else Found(splits={split_of(Path(place.name)): [place]})
        if inside.parts:
            raise InputError(f"{place} is a folder in BEIR's form; name it alone.")
        for split, paths in inside.splits.items():
            readable = [path for path in paths if is_read(path)]
            found.setdefault(split, []).extend(path for path in readable if path not in found.get(split, ()))
            left += [str(path) for path in paths if path not in readable]
        left += [f"{place.name}/{name}" for name in inside.left_out]
    return Found(splits=found, left_out=left)


def _of_a_folder(folder: Path, config: str | None) -> Found:
    listed = _listed(folder)
    files = [path for path in listed if is_read(path)]
    configs, default = _configurations(folder)
    parts = _parts(folder, files)
    inner = {folder / path.relative_to(folder).parts[0] for path in files}
    if not configs and len(inner) == 1 and (alone := inner.pop()).is_dir() and _parts(alone, files):
        return _of_a_folder(alone, config)  # as `arhn-export` writes it
    of_parts = {path for paths in parts.values() for path in paths}
    if parts and config is None and of_parts.issuperset(_paths(configs.get(default or "", {}))):
        return Found(parts=parts, left_out=_names(folder, listed, of_parts))
    if not configs and config is None:
        splits = _by_split({path: path.relative_to(folder) for path in files})
        left_out = _names(folder, listed, set(files))
        if not files:
            what = f"none of {', '.join(left_out[:5])} is one" if left_out else "it holds none"
            raise InputError(f"{folder} has no file to read: {READ_FILES} were expected, and {what}.")
        return Found(splits=splits, left_out=left_out)
    chosen = config or default
    if chosen is None or chosen not in configs:
        what = f"no configuration {config!r}" if config else "several configurations"
        raise ConfigurationError(
            f"{folder} has {what}: its README.md names {sorted(configs)}. "
            f"{'Name one of them with' if configs else 'Leave out'} --config."
        )
    for split, paths in configs[chosen].items():
        if not paths or not all(map(is_read, paths)):
            raise InputError(
                f"The README.md of {folder} names files of the split {split} that are not there. Fetch it anew."
            )
    every = {path for splits in configs.values() for path in _paths(splits)}
    return Found(splits=configs[chosen], left_out=_names(folder, listed, every))


def _paths(splits: Splits) -> list[Path]:
    return [path for paths in splits.values() for path in paths]


def _names(folder: Path, listed: Sequence[Path], read: Collection[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in listed if path not in read]


def _listed(folder: Path) -> list[Path]:
    return [path for path in files_under(folder) if _is_seen(path.relative_to(folder))]


def files_under(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, also of those that are links; each folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [path for name in names if (path := Path(root, name)).is_file()]
    return sorted(found)


def _is_seen(path: Path) -> bool:
    return not any(part.startswith((".", "__")) for part in path.parts) and not _NO_ROWS.fullmatch(path.name)


def _by_split(files: Mapping[Path, Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path, name in files.items():
        found.setdefault(split_of(name), []).append(path)
    order = [*SPLIT_WORDS, *found]
    return dict(sorted(found.items(), key=lambda one: order.index(one[0])))


def split_of(name: Path) -> str:
    """The split that the name of a file tells, else that of the nearest folder which tells one, else ``train``."""
    if sharded := re.match(r"(\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}", name.name):
        return sharded[1]
    for part in reversed(name.parts):
        words = set(re.split(r"[\W\d_]+", part.lower()))
        told = [split for split, known in SPLIT_WORDS.items() if words.intersection(known)]
        if len(told) == 1:
            return told[0]
    return "train"


def _configurations(folder: Path) -> tuple[dict[str, Splits], str | None]:
    """The files of each split of the configurations that a README names, and which of these is the default."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        metadata = (metadata_load(card) or {}) if card.is_file() else {}
    except ValueError as error:
        raise InputError(
            f"The metadata of {card} cannot be read: {error}. Repair it, or take the file away."
        ) from error
    entries = [entry for entry in metadata.get("configs") or [] if isinstance(entry, dict)]
    known = {
        str(entry.get("config_name", "default")): entry for entry in entries if {"data_files", "data_dir"} & {*entry}
    }
    first = [name for name, entry in known.items() if name == "default" or entry.get("default") is True]
    default = first[0] if first else next(iter(known)) if len(known) == 1 else None
    return {name: _files_of(folder, entry) for name, entry in known.items()}, default


def _files_of(folder: Path, entry: Mapping[str, Any]) -> Splits:
    root, given = folder / (entry.get("data_dir") or ""), entry.get("data_files")
    if not given:
        return _by_split({path: path.relative_to(folder) for path in _listed(root) if is_read(path)})
    named = [one if isinstance(one, dict) else {"path": one} for one in (given if isinstance(given, list) else [given])]
    splits: Splits = {}
    for one in named:
        patterns = one["path"] if isinstance(one["path"], list) else [one["path"]]
        found = [path for pattern in patterns for path in sorted(root.glob(str(pattern))) if path.is_file()]
        splits.setdefault(str(one.get("split", "train")), []).extend(found)
    return splits


# --- BEIR -------------------------------------------------------------------------------------------------------------


def _parts(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each part of BEIR; none where one of corpus, queries and qrels is missing."""
    known = {word: name for name, words in {**{part: (part,) for part in BEIR}, **RETRIEVED}.items() for word in words}
    parts: dict[str, list[Path]] = {}
    for path in files:
        inside = path.relative_to(folder).parts[0]
        part = known.get(inside.partition(".")[0].lower())
        if part:
            parts.setdefault(part, []).append(path)
    return parts if set(BEIR) <= set(parts) else {}


def splits_of_parts(
    folder: Path, parts: Mapping[str, Sequence[Path]], threshold: float | None, on_bad_row: OnBadRow
) -> dict[str, Dataset]:
    """The rows of each file of qrels, put together from the parts of BEIR; as :func:`adapt_dataset`.

    Raises:
        InputError: nothing says which documents are negatives.
    """
    retrieved = [name for name in RETRIEVED if name in parts]
    if len(retrieved) != 1:
        raise InputError(
            f"{folder} holds corpus, queries and qrels, and {'two kinds of' if retrieved else 'no'} hard negatives. "
            "Put one file of retrieved documents beside them: run.tsv (query-id, corpus-id, score), or negatives.jsonl "
            '({"query-id": ..., "corpus-id": ...} a line).'
        )
    [kind] = retrieved
    by_split = {part: _by_name(parts[part]) for part in (QRELS, kind)}
    read = {part: _read(parts[part], part) for part in (CORPUS, QUERIES)}
    splits = {}
    for split, files in by_split[QRELS].items():
        own = by_split[kind].get(split) or by_split[kind].get(kind) or parts[kind]
        given = {**read, QRELS: _read(files, f"{QRELS}.{split}"), kind: _read(own, f"{kind}.{split}")}
        given_to = partial(_of_split, on_bad_row, split) if callable(on_bad_row) else on_bad_row
        splits[split] = adapt_dataset(**given, threshold=threshold, on_bad_row=given_to)
        splits[split]._fingerprint = stable_docid("", " ".join(rows._fingerprint for rows in given.values()))[:16]
    return splits


def _of_split(on_bad_row: Callable[[BadRow], object], split: str, row: BadRow) -> None:
    on_bad_row(replace(row, split=split))


def _by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files:
        name = re.sub(r"-\d{5,}-of-\d{5,}$", "", path.name.partition(".")[0])
        found.setdefault("train" if name == QRELS else re.sub(r"\W", "_", name), []).append(path)
    return found


def _read(files: Sequence[Path], name: str) -> Dataset:
    found = dataset_of(files, name)
    if found is None:
        raise InputError(f"{', '.join(map(str, files))} holds no rows; rows of {name} were expected.")
    return found
