"""The shards of one run, refined apart, as the one folder that the run would have written at once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.reading import Folder, open_folder
from arhn_datasets.folder.readme import REFINED
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.run import RUN_FILE
from arhn_datasets.folder.writer import Refinement, check_output, describe_run, write_run
from arhn_datasets.inputs.bad_rows import FILE as BAD_ROWS
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.rows.records import shorten

# What differs from shard to shard: their rows, and hashes that depend on where files lie.
_OWN = ("rows", "bad_rows", "fingerprints", "shard")


def merge(output: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]]) -> Refinement:
    """Write the shards of one run as one refined folder, equal row for row to that of the run without shards.

    Counts, requests and durations are those of all shards together.

    Args:
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        folders: What ``arhn-refine --shard-index I --num-shards N`` has written, each of the N once, in any order.

    Raises:
        ConfigurationError: they are not all shards of one run; the message says which are missing or differ.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    target = Path(output)
    check_output(target)
    parts = [open_folder(folder) for folder in folders]
    if any(part.path.resolve() == target.resolve() for part in parts):
        raise ConfigurationError(f"{target} is one of the shards; name another folder for all of them.")
    shards = _in_order(parts)
    _check_alike(shards)
    first, bad = shards[0].run, Counter[str]()
    for shard in shards:
        bad.update(shard.run.source.bad_rows)

    def described(report: Report, rows: Mapping[str, int]) -> Mapping[str, Any]:
        source = {name: value for name, value in first["source"].items() if name != "shard"}
        source |= {"rows": dict(rows), **({"bad_rows": dict(bad)} if "bad_rows" in source else {})}
        run = describe_run(source, (), report, _summed(shards, "durations_seconds"))
        same = {name: first[name] for name in ("annotator", "identity", "parameters", "prompts")}
        merged = [{"id": shard.run.id, "created": shard.run.created} for shard in shards]
        return {**run, **same, "requests": _summed(shards, "requests"), "merged": merged}

    streams = {split: _tables(shards, split) for split in shards[0].splits}
    return write_run(target, streams, described, joined={BAD_ROWS: [shard.path / BAD_ROWS for shard in shards]})


def _in_order(folders: Sequence[Folder]) -> list[Folder]:
    """The folders by their index, each once and all of one number of shards."""
    found: dict[int, Folder] = {}
    of: dict[int, Path] = {}  # a folder for each number of shards that is named
    for folder in folders:
        shard = folder.run.source.shard
        if folder.layout != REFINED or shard is None:
            raise ConfigurationError(
                f"{folder.path} is not a shard: its {RUN_FILE} names none. Expected what arhn-refine --shard-index I "
                "--num-shards N has written."
            )
        of.setdefault(shard.of, folder.path)
        if len(of) > 1:
            (one, at), (other, there) = of.items()
            raise ConfigurationError(
                f"{at} is one of {one} shards and {there} one of {other}; the shards of one run were expected."
            )
        if shard.index in found:
            raise ConfigurationError(
                f"{folder.path} and {found[shard.index].path} are both shard {shard.index}; each was expected once."
            )
        found[shard.index] = folder
    count = next(iter(of), 0)
    missing = [index for index in range(count) if index not in found]
    if missing or not count:
        named = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        raise ConfigurationError(
            f"{len(found)} of {count} shards were named; missing: {named or 'all'}. Refine these with --shard-index, "
            "then merge again."
        )
    return [found[index] for index in range(count)]


def _check_alike(shards: Sequence[Folder]) -> None:
    """Refuse shards that differ in their input or in how it was refined."""
    first = _told(shards[0])
    for shard in shards[1:]:
        other = _told(shard)
        differ = [name for name in first if first[name] != other.get(name)] + [n for n in other if n not in first]
        if differ:
            there, here = (shorten(json.dumps(one.get(differ[0]), ensure_ascii=False), 100) for one in (other, first))
            raise ConfigurationError(
                f"{shard.path} is of another run than {shards[0].path}: {differ[0]} is {there} there and {here} here"
                f"{f' (differing: {differ})' if len(differ) > 1 else ''}. Refine all shards of one input with the same "
                "arguments."
            )


def _told(folder: Folder) -> dict[str, Any]:
    """What has to be equal in all shards, by its name in ``run.json``."""
    run = folder.run
    source = {f"source.{name}": value for name, value in run["source"].items() if name not in _OWN}
    stages = {
        f"{part}.{stage}": value
        for part in ("identity", "parameters", "prompts")
        for stage, value in run.get(part, {}).items()
    }
    return {**source, "the whole input": run["source"]["shard"].get("whole"), **stages}


def _tables(shards: Sequence[Folder], split: str) -> Iterator[pa.Table]:
    # All types are there before the first row, whatever is null in one shard alone.
    for shard in shards:
        yield empty_table(shard.features_schema(split))
    for shard in shards:
        yield from shard.tables(split)


def _summed(shards: Sequence[Folder], name: str) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.run.get(name) or {})
    return {key: round(value, 3) for key, value in total.items()}
