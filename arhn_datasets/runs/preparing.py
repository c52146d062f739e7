"""From an input to what a run starts with: canonical rows, stages that know them, and where the rows came from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arhn_datasets.folder.run import RUN_FILE, is_refined
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.adaptation import keeps_rows
from arhn_datasets.inputs.sources import UNPUBLISHED, Input, silent
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, Row
from arhn_datasets.runs.splits import SOURCE_ROWS, Loaded, Split, Streamed
from arhn_datasets.runs.stages import Stages

FITTED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The splits to refine, the stages, fitted on the whole input, where the rows came from, and what it took."""

    splits: Mapping[str, Split]
    stages: Stages
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]


def prepare(source: Input, stages: Stages, *, streamed: bool) -> Prepared:
    """Open an input, fit the annotator on all of it where that is wanted, and cut the shard that the input names.

    Args:
        source: The input.
        stages: The configured transforms.
        streamed: Whether a stream will do, where the input can be one; otherwise each row is at hand.

    Raises:
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"), silent():
        splits, provenance = (_streams(source) if streamed else None) or _loaded(source)
    if stages.annotator.needs_fitting:
        with _timed(seconds, "fit"):
            stages = stages.asking(stages.annotator.fitted_on(_passages(splits)))
    if source.shard is not None:
        whole = {name: split.extent() for name, split in splits.items()}
        splits = {name: split.cut(source.shard) for name, split in splits.items()}
        provenance["shard"] = {"index": source.shard.index, "of": source.shard.of, "whole": whole}
    return Prepared(splits=splits, stages=stages, provenance=provenance, seconds=seconds)


def _loaded(source: Input) -> tuple[dict[str, Split], dict[str, Any]]:
    splits, provenance = sources.load_input(source, undo=SOURCE_ROWS)
    loaded: dict[str, Split] = {name: Loaded(dataset) for name, dataset in splits.items()}
    return loaded, {**provenance, **_inherited(Path(source.name).expanduser())}


def _streams(source: Input) -> tuple[dict[str, Split], dict[str, Any]] | None:
    """The splits as streams; None where rows of one anchor become one row, or where a shard is not whole parts."""
    opened = sources.stream(source)
    if opened is None or source.shard and source.limit:
        return None
    streams, provenance = opened
    parts = 1 if source.shard is None else source.shard.of
    if not all(keeps_rows(stream.features) and stream.num_shards >= parts for stream in streams.values()):
        return None
    return {name: Streamed(stream, source) for name, stream in streams.items()}, provenance


def _inherited(folder: Path) -> dict[str, Any]:
    """The terms of an earlier run's source: refining twice takes none of them away."""
    if not is_refined(folder):
        return {}
    source = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("source", {})
    return {name: source.get(name, default) for name, default in UNPUBLISHED.items()} | {"revision": None}


def _passages(splits: Mapping[str, Split]) -> Iterator[Row]:
    """The passages of each row, for a first pass over all of them."""
    from datasets.utils import tqdm

    with tqdm(unit=" rows", desc="fit") as bar:
        for split in splits.values():
            for table, _ in split.tables(None, FITTED_ROWS):
                yield from table.select([POSITIVE.passages, NEGATIVE.passages]).to_pylist()
                bar.update(table.num_rows)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[step] = time.monotonic() - start
