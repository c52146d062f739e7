"""Which files of a folder are read: every one, each in a split, or it is named as left out.

A folder may be that of a dataset repository, whose README names its configurations, or one of the parts of BEIR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.inputs.files import READ_FILES, dataset_of, is_read
from arhn_datasets.rows.records import stable_docid

if TYPE_CHECKING:
    from datasets import Dataset

# As datasets names splits by the words in the names of files and folders.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What lies beside the rows of a dataset and holds none.
_NO_ROWS = re.compile(
    r".*\.(md|lock)|(license|notice|readme|citation)(\.(txt|rst|cff))?|(cache-|tmp).*\.arrow"
    r"|(dataset_infos?|state|dataset_dict|run|config|configuration)\.json",
    re.IGNORECASE,
)
CORPUS, QUERIES, QRELS = BEIR = ("corpus", "queries", "qrels")
RETRIEVED = {"run": ("run", "runs"), "negatives": ("negatives", "hard_negatives", "hard-negatives")}


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
    configured = _configured(folder, config)
    listed = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_seen(path.relative_to(folder))]
    files = [path for path in listed if is_read(path)]
    left_out = [path.relative_to(folder).as_posix() for path in listed if not is_read(path)]
    parts = _parts(folder, files)
    if parts and config is None:
        named = {path for paths in parts.values() for path in paths}
        left_out += [path.relative_to(folder).as_posix() for path in files if path not in named]
        return Found(parts=parts, left_out=sorted(left_out))
    if configured is not None:
        every, splits = configured
        left_out += [path.relative_to(folder).as_posix() for path in files if path not in every]
        return Found(splits=splits, left_out=sorted(left_out))
    if not files:
        what = f"none of {', '.join(left_out[:5])} is one" if left_out else "it holds none"
        raise InputError(f"{folder} has no file to read: {READ_FILES} were expected, and {what}.")
    return Found(splits=_by_split({path: path.relative_to(folder) for path in files}), left_out=left_out)


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


def _configured(folder: Path, config: str | None) -> tuple[set[Path], dict[str, list[Path]]] | None:
    """The files of all configurations that a README names, and those of each split of one of them."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    metadata = (metadata_load(card) or {}) if card.is_file() else {}
    known = {
        str(entry.get("config_name", "default")): entry
        for entry in metadata.get("configs") or []
        if isinstance(entry, dict) and (entry.get("data_files") or entry.get("data_dir"))
    }
    if not known:
        if config is not None:
            raise ConfigurationError(f"{folder} has no configurations in a README.md; leave --config {config} out.")
        return None
    marked = [name for name, entry in known.items() if entry.get("default") is True]
    chosen = config or ("default" if "default" in known else (marked or [*known])[0])
    if chosen not in known or (not config and chosen != "default" and not marked and len(known) > 1):
        raise ConfigurationError(
            f"{folder} has {f'no configuration {config!r}' if config else 'several configurations'}: {sorted(known)}. "
            "Name one of them with --config."
        )
    files = {name: _files_of(folder, entry) for name, entry in known.items()}
    return {path for splits in files.values() for paths in splits.values() for path in paths}, files[chosen]


def _files_of(folder: Path, entry: Mapping[str, Any]) -> dict[str, list[Path]]:
    root, given = folder / (entry.get("data_dir") or ""), entry.get("data_files")
    if not given:
        return {split: list(paths) for split, paths in _of_a_folder(root, None).splits.items()}
    entries = given if isinstance(given, list) else [given]
    named = [one if isinstance(one, dict) else {"path": one} for one in entries]
    splits: dict[str, list[Path]] = {}
    for one in named:
        for pattern in one["path"] if isinstance(one["path"], list) else [one["path"]]:
            found = sorted(path for path in root.glob(str(pattern)) if path.is_file())
            if not found:
                raise InputError(
                    f"The README.md of {folder} names {pattern}, and there is no such file. Fetch it anew."
                )
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


def splits_of_parts(folder: Path, parts: Mapping[str, Sequence[Path]]) -> dict[str, Dataset]:
    """The rows of each file of qrels, put together from the parts of BEIR.

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
        splits[split] = adapt_dataset(**given)
        splits[split]._fingerprint = stable_docid("", " ".join(rows._fingerprint for rows in given.values()))[:16]
    return splits


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
