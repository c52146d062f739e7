"""A run over a stream: rows are read, annotated and written as they go by, in memory that does not grow.

Tables of a few rows are under way together, each through all stages, so that the annotator has work from rows in every
stage. They leave in the order in which they came. When a shard of the output is full, a checkpoint beside it notes
where the stream is: the same command goes on from there after any end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.writer import Refinement, RunWriter
from arhn_datasets.inputs.adaptation import adapt, keeps_rows
from arhn_datasets.inputs.sources import Input, reading
from arhn_datasets.rows import background
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.rows.records import DECISION, NEGATIVE, POSITIVE, QUERY, QUERY_ID
from arhn_datasets.rows.stage import Transform
from arhn_datasets.rules.revert import Revert
from arhn_datasets.runs.progress import live

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

CHECKPOINT = ".checkpoint.json"
FORMAT = 1
TABLE_BYTES = 4_000_000
# What is under way at most: as many rows as `Dataset.map` has, fewer where they are long.
WINDOW_ROWS, WINDOW_BYTES = 1000, 64_000_000

Spent = Callable[[], dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a stream is behind a table: the state of its dataset, and the rows of the split so far."""

    state: Mapping[str, Any]
    rows: int


def work_folder(target: Path) -> Path:
    """Where an unfinished run over a stream is kept."""
    return target.with_name(f".{target.name}.unfinished")


def refine_stream(
    source: Input,
    target: Path,
    streams: Mapping[str, IterableDataset],
    transforms: Sequence[Transform],
    *,
    key: Mapping[str, Any],
    batch_rows: int,
    statistics: Callable[[], Mapping[str, Any]],
    spent: Spent,
    describe: Callable[[Report, Mapping[str, int], Mapping[str, float], Mapping[str, int]], Mapping[str, Any]],
) -> Refinement:
    """Refine streams into the folder ``target``, going on from the checkpoint of an earlier run where there is one.

    Args:
        source: The input, for messages and its limit.
        target: The folder to write.
        streams: The rows of each split.
        transforms: The stages, in order.
        key: All that changes the result; a checkpoint of another key is not gone on from.
        batch_rows: Rows in a table.
        statistics: Of the annotator, for the progress bar.
        spent: What was asked in this run.
        describe: Gives ``run.json`` from the counts, the rows, the seconds and what was asked, of all runs together.

    Raises:
        InputError: the input cannot be read, or has no rows.
        SchemaError: its rows are in no known form, or in one that is no stream.
    """
    from datasets.utils import tqdm

    work = work_folder(target)
    found = _checkpoint(work, key)
    before: Mapping[str, Any] = found or {"seconds": 0.0, "requests": {}}
    started = time.monotonic()

    def so_far() -> tuple[float, dict[str, int]]:
        asked = spent()
        known = before["requests"]
        return before["seconds"] + time.monotonic() - started, {
            name: known.get(name, 0) + asked.get(name, 0) for name in (known | asked)
        }

    if found is None:
        shutil.rmtree(work, ignore_errors=True)
    writer = RunWriter(target, work) if found is None else RunWriter.resumed(target, work, found["writer"])
    names = list(streams)
    try:
        with (
            writer,
            live("refine", statistics),
            tqdm(unit=" rows", desc="refine", initial=sum(writer.rows.values())) as bar,
        ):
            for split in names[names.index(found["split"]) if found else 0 :]:
                writer.begin(split)
                at = None
                if found is not None and split == found["split"]:
                    at = Position(state=found["state"], rows=found["rows"])
                metadata = None
                for table, position in annotated(read(streams[split], source, at, batch_rows), transforms):
                    metadata = metadata or _metadata(streams[split])
                    writer.write(table.replace_schema_metadata(metadata))
                    bar.update(table.num_rows)
                    if writer.due:
                        seconds, requests = so_far()
                        _save(
                            work,
                            {
                                "format": FORMAT,
                                "key": key,
                                "split": split,
                                "state": position.state,
                                "rows": position.rows,
                                "seconds": seconds,
                                "requests": requests,
                                "writer": writer.checkpoint(),
                            },
                        )
                if not writer.rows[split]:
                    writer.write(_empty(streams[split], source, split, transforms))
            if not any(writer.rows.values()) and source.shard is None:
                raise InputError(f"{source.name} has no rows; nothing can be refined.")
            seconds, requests = so_far()
            return writer.finish(lambda report, rows: describe(report, rows, {"stream": seconds}, requests))
    finally:
        if not (work / CHECKPOINT).exists():  # done, or nothing to go on from
            shutil.rmtree(work, ignore_errors=True)


def read(
    dataset: IterableDataset, source: Input, at: Position | None, batch_rows: int
) -> Iterator[tuple[pa.Table, Position]]:
    """Canonical tables of up to ``batch_rows`` from ``at`` on, and where the stream is behind each."""
    dataset = dataset.with_format("arrow")
    if at is not None:
        dataset.load_state_dict(dict(at.state))
    taken = 0 if at is None else at.rows
    # One by one: in older versions the state is that of the next row only then.
    rows = iter(dataset.iter(batch_size=1))
    held: list[pa.Table] = []
    size = 0
    state: Mapping[str, Any] = {}

    def table() -> tuple[pa.Table, Position]:
        found = pa.concat_tables(held).combine_chunks(), Position(state=state, rows=taken)
        held.clear()
        return canonical(found[0]), found[1]

    while source.limit is None or taken < source.limit:
        with reading(source):
            row = next(rows, None)
        if row is None:
            break
        if held and (len(held) >= batch_rows or size >= TABLE_BYTES or not row.schema.equals(held[0].schema)):
            yield table()
            size = 0
        held.append(row)
        size += row.nbytes
        taken += 1
        state = dataset.state_dict()
    if held:
        yield table()


def canonical(table: pa.Table) -> pa.Table:
    """The rows of a table of any form that keeps its rows, as canonical rows; an earlier result as its source rows.

    Raises:
        SchemaError: the form is unknown, or one row comes of several.
    """
    if DECISION in table.column_names:
        table = Revert(keep_evidence=False)(table)
    if not keeps_rows(table.column_names):
        raise SchemaError(
            f"The columns {table.column_names} are those of triplets or n-tuples, of which all with the same anchor "
            "become one row: a stream would have to be read to its end for its first row. Run without streaming, or "
            "write them as rows first with arhn.adapt_dataset(ds)."
        )
    adapted = adapt(table)
    first = [QUERY_ID, QUERY, POSITIVE.passages, NEGATIVE.passages]
    return adapted.select([*first, *(name for name in adapted.column_names if name not in first)])


def annotated(
    tables: Iterable[tuple[pa.Table, Position]], transforms: Sequence[Transform]
) -> Iterator[tuple[pa.Table, Position]]:
    """The tables through all transforms, in order, with as many under way as the annotator can wait for."""
    waiting: deque[tuple[Future[pa.Table], Position, int, int]] = deque()
    last = max((at + 1 for at, transform in enumerate(transforms) if transform.awaits), default=0)
    rows = size = 0

    def first() -> tuple[pa.Table, Position]:
        nonlocal rows, size
        future, position, its_rows, its_size = waiting[0]
        table = future.result()
        waiting.popleft()
        rows, size = rows - its_rows, size - its_size
        return through(table, transforms[last:]), position

    try:
        for table, position in tables:
            if not last:
                yield through(table, transforms), position
                continue
            waiting.append(
                (background.submit(_awaited(table, transforms[:last])), position, table.num_rows, table.nbytes)
            )
            rows, size = rows + table.num_rows, size + table.nbytes
            while waiting and (waiting[0][0].done() or rows >= WINDOW_ROWS or size >= WINDOW_BYTES):
                yield first()
        while waiting:
            yield first()
    finally:
        for future, *_ in waiting:
            future.cancel()


async def _awaited(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    for transform in transforms:
        table = await transform.on_loop(table)
        await asyncio.sleep(0)
    return table


def through(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    """A table through transforms, one after the other."""
    for transform in transforms:
        table = transform(table)
    return table


def _metadata(dataset: IterableDataset) -> Mapping[bytes, bytes] | None:
    """The features of the source, for the columns that pass through."""
    return None if dataset.features is None else dict(dataset.features.arrow_schema.metadata)


def _empty(dataset: IterableDataset, source: Input, split: str, transforms: Sequence[Transform]) -> pa.Table:
    """A table without rows, with the columns of the others."""
    if dataset.features is None:
        raise InputError(
            f"The split {split!r} of {source.name} has no rows, and columns that nothing tells. Name the splits that "
            "have rows with --split, or run without streaming."
        )
    return through(canonical(empty_table(dataset.features.arrow_schema)), transforms)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _save(work: Path, state: Mapping[str, Any]) -> None:
    new = work / f"{CHECKPOINT}.new"
    new.write_text(json.dumps(state), encoding="utf-8")
    os.replace(new, work / CHECKPOINT)


def _checkpoint(work: Path, key: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The checkpoint in a folder, when it is of the same run."""
    try:
        found = json.loads((work / CHECKPOINT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("The checkpoint in %s cannot be read (%s); the run starts anew.", work, error)
        return None
    ours = json.loads(json.dumps(key))
    if found.get("format") == FORMAT and found.get("key") == ours:
        logger.info("going on behind row %d of %s", found["rows"], found["split"])
        return dict(found)
    theirs = found.get("key") or {}
    differ = [name for name in ours if theirs.get(name) != ours[name]]
    logger.warning(
        "The unfinished run in %s is another one (it differs in: %s); this one starts anew and replaces it.",
        work,
        ", ".join(differ) or "its format",
    )
    return None
