"""Tables through the stages, with as many under way as the annotator can wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from arhn_datasets.rows import background
from arhn_datasets.rows.stage import Transform
from arhn_datasets.runs.stages import through

# What is under way at most: as many rows as `Dataset.map` has, fewer where they are long.
WINDOW_ROWS, WINDOW_BYTES = 1000, 64_000_000

P = TypeVar("P")


@dataclass(frozen=True)
class _UnderWay(Generic[P]):
    future: Future[pa.Table]
    beside: P
    rows: int
    bytes: int


def annotated(tables: Iterable[tuple[pa.Table, P]], transforms: Sequence[Transform]) -> Iterator[tuple[pa.Table, P]]:
    """The tables through all transforms, in the order in which they came, with what stands beside each.

    Each goes through all stages by itself, so that the annotator has work from rows in every stage.
    """
    last = max((at + 1 for at, transform in enumerate(transforms) if transform.awaits), default=0)
    if not last:
        yield from ((through(table, transforms), beside) for table, beside in tables)
        return
    waiting: deque[_UnderWay[P]] = deque()
    try:
        for table, beside in tables:
            future = background.submit(_awaited(table, transforms[:last]))
            waiting.append(_UnderWay(future, beside, table.num_rows, table.nbytes))
            while waiting and (waiting[0].future.done() or _full(waiting)):
                yield _first(waiting, transforms[last:])
        while waiting:
            yield _first(waiting, transforms[last:])
    finally:
        for one in waiting:
            one.future.cancel()


def _full(waiting: Iterable[_UnderWay[P]]) -> bool:
    return sum(one.rows for one in waiting) >= WINDOW_ROWS or sum(one.bytes for one in waiting) >= WINDOW_BYTES


def _first(waiting: deque[_UnderWay[P]], transforms: Sequence[Transform]) -> tuple[pa.Table, P]:
    """The first table, when it is there, and through the stages that wait for nobody."""
    table = waiting[0].future.result()  # until then it is among those to be cancelled
    return through(table, transforms), waiting.popleft().beside


async def _awaited(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    for transform in transforms:
        table = await transform.on_loop(table)
        await asyncio.sleep(0)
    return table
