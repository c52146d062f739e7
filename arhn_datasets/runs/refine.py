"""The one way from an input to a refined folder, which is laid out as a Hub dataset repository.

Canonical tables of each split go through the stages and into the writer, in memory that does not grow with the rows.
What takes them through the stages is an :class:`Engine`: this process, or a cluster (:mod:`arhn_datasets.runs.ray`).
When a file of the output is full, a checkpoint in a hidden folder beside its place notes where the run is: the same
call goes on from there after any end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from arhn_datasets.annotators.scorer import PAIRS
from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.writer import Refinement, RunWriter, check_output, configuration, describe_run
from arhn_datasets.inputs.bad_rows import SET_ASIDE
from arhn_datasets.inputs.sources import Input, stamp_of
from arhn_datasets.rows import background
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.rows.stage import Transform
from arhn_datasets.runs.preparing import Position, Prepared, Stages, prepare, through

logger = logging.getLogger(__name__)

CHECKPOINT = ".checkpoint.json"
FORMAT = 3
WAITING_ROWS, OWN_ROWS = 16, 64  # of a table, where a stage waits for others, and where none does
# What is under way at most: as many rows as `Dataset.map` has, fewer where they are long.
WINDOW_ROWS, WINDOW_BYTES = 1000, 64_000_000
REFRESH_SECONDS, LINE_SECONDS = 0.5, 30.0  # of the progress bar; of a line each, where nobody watches it move
ASKED = ("requests", "replies", "stored", "retries", "overloads", "failures")
TOTALS = (*ASKED, "prompt_tokens", "completion_tokens", "screened", "cut_off", "asked_alone", *PAIRS)

P = TypeVar("P")


class Engine:
    """What takes the tables of a run through its stages: this process, with as many under way as its annotator takes.

    Args:
        prepared: The splits and the stages.
        batch_size: Rows in a table; by default 16 where a stage waits for others, and 64 where none does.
    """

    def __init__(self, prepared: Prepared, batch_size: int | None = None) -> None:
        self.splits, self.stages = prepared.splits, prepared.stages
        self._rows = batch_size or (WAITING_ROWS if self.stages.awaits else OWN_ROWS)

    def relabelled(self, split: str, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        """The relabelled rows of a split from ``at`` on, in their order, and the position behind each table.

        Splits are asked for in their order, each once.
        """
        return annotated(self.splits[split].tables(at, self._rows), self.stages.transforms)

    def statistics(self) -> Mapping[str, Any]:
        """What was asked so far."""
        return self.stages.statistics()

    def description(self) -> Mapping[str, Any]:
        """What ``run.json`` says of it."""
        return {}


Opened = Callable[[Prepared], AbstractContextManager[Engine]]


def refine(
    source: Input,
    output: str | os.PathLike[str],
    stages: Stages,
    *,
    batch_size: int | None = None,
    opened: Opened | None = None,
) -> Refinement:
    """Read, adapt, annotate, relabel and write a dataset.

    A dataset of the Hub is read as it is needed, and anything else from a copy of `datasets` on this disk. A lexical
    annotator without term statistics is fitted on the input, also where only a shard of that is refined. Nothing is
    written to ``output`` before everything is done: what is finished so far is kept in a hidden folder beside it, from
    which the same call goes on.

    Args:
        source: The input.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        stages: The configured transforms.
        batch_size: As of :class:`Engine`.
        opened: Opens another engine than this process, for splits that are no streams.

    Raises:
        ConfigurationError: a shard that there is not, or ``output`` lies in the input.
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    target = Path(output)
    check_output(target)
    if inside := next((place for place in source.places if place.is_dir() and _lies_in(target, place)), None):
        raise ConfigurationError(
            f"The output {target} lies in the input {inside}, so that the next run would read it as rows. Name a "
            "folder outside of it as --output, or the files of the input alone."
        )
    stages.check()
    prepared = prepare(source, stages, streamed=opened is None)
    with opened(prepared) if opened else nullcontext(Engine(prepared, batch_size)) as engine:
        try:
            return _Work(source, target, prepared, engine).written()
        finally:
            if not is_unfinished(target):  # done, or nothing to go on from
                shutil.rmtree(work_folder(target), ignore_errors=True)


def _lies_in(target: Path, place: Path) -> bool:
    found, folder = target.resolve(), place.expanduser().resolve()
    return found != folder and found.is_relative_to(folder)


class _Work:
    """A run under way, from its beginning or from the checkpoint of an earlier one."""

    def __init__(self, source: Input, target: Path, prepared: Prepared, engine: Engine) -> None:
        self._source, self._prepared, self._engine = source, prepared, engine
        self._work = work_folder(target)
        where = {**prepared.provenance, "rows": {}}
        # All that changes the result: a checkpoint of another key is not gone on from.
        self._key = {
            "input": {**where, "files": stamp_of(source) if where["kind"] != "hub" else []},
            **configuration(prepared.stages.transforms),
            "versions": {name: version(name) for name in ("arhn_datasets", "datasets")},
        }
        self._before = Checkpoint.found(self._work, self._key)
        self._started, self._asked = time.monotonic(), engine.statistics()
        if self._before.split is None:
            shutil.rmtree(self._work, ignore_errors=True)
            self._writer = RunWriter(target, self._work)
        else:
            self._writer = RunWriter.resumed(target, self._work, self._before.writer)
        at = self._before.position
        prepared.noted.open(self._work, 0 if at is None else at.set_aside)

    def written(self) -> Refinement:
        """The folder, when all splits are in it."""
        from datasets.utils import tqdm

        writer, before, names = self._writer, self._before, list(self._prepared.splits)
        known = self._prepared.datasets.values()
        total = sum(map(len, known)) if len(known) == len(names) else None
        shown: dict[str, Any] = {
            "total": total,
            "initial": sum(writer.rows.values()),
            "unit": " rows",
            "desc": "refine",
        }
        if not _is_watched():
            shown |= {"file": _Lines(), "mininterval": LINE_SECONDS}
        with writer, tqdm(**shown) as bar, live(bar, self._engine.statistics):
            for name in names[0 if before.split is None else names.index(before.split) :]:
                for rows in self._write(name, before.position if before.split == name else None):
                    bar.update(rows)
            if not any(writer.rows.values()) and self._source.shard is None:
                raise InputError(f"{self._source.name} has no rows; nothing can be refined.")
            return writer.finish(self._described)

    def _write(self, name: str, at: Position | None) -> Iterator[int]:
        """Write what is left of a split; the rows of each table that is written."""
        split, writer = self._prepared.splits[name], self._writer
        writer.begin(name)
        metadata = split.schema.metadata  # the features of what passes through
        for table, position in self._engine.relabelled(name, at):
            writer.write(table.replace_schema_metadata(metadata))
            yield table.num_rows
            if writer.due:
                seconds, requests = self._spent()
                kept = writer.checkpoint()
                checkpoint = Checkpoint(split=name, position=position, seconds=seconds, requests=requests, writer=kept)
                checkpoint.save(self._work, self._key)
        if not writer.rows[name]:
            empty = through(empty_table(split.schema), self._prepared.stages.transforms)
            writer.write(empty.replace_schema_metadata(metadata))

    def _spent(self) -> tuple[float, dict[str, int]]:
        """The seconds and requests of this run, and of those that it goes on from."""
        now, known = self._engine.statistics(), self._before.requests
        asked = {name: now[name] - self._asked.get(name, 0) for name in TOTALS if name in now}
        seconds = time.monotonic() - self._started + self._before.seconds
        return seconds, {name: known.get(name, 0) + asked.get(name, 0) for name in {**known, **asked}}

    def _described(self, report: Report, rows: Mapping[str, int]) -> Mapping[str, Any]:
        seconds, requests = self._spent()
        durations = {**self._prepared.seconds, "refine": seconds}
        where = {**self._prepared.provenance, "rows": dict(rows)}
        if self._source.on_bad_row == SET_ASIDE:
            where["bad_rows"] = dict(self._prepared.noted.rows)
        transforms = self._prepared.stages.transforms
        return {**describe_run(where, transforms, report, durations, requests), **self._engine.description()}


# --- what is under way --------------------------------------------------------------------------------------------


def annotated(tables: Iterable[tuple[pa.Table, P]], transforms: Sequence[Transform]) -> Iterator[tuple[pa.Table, P]]:
    """The tables through all transforms, in the order in which they came, with what stands beside each.

    Each goes through all stages by itself, so that the annotator has work from rows in every stage.
    """
    last = max((at + 1 for at, transform in enumerate(transforms) if transform.awaits), default=0)
    if not last:
        yield from ((through(table, transforms), beside) for table, beside in tables)
        return
    waiting: deque[tuple[Future[pa.Table], P, int, int]] = deque()  # the last two: its rows and bytes

    def first() -> tuple[pa.Table, P]:
        table = waiting[0][0].result()  # until then it is among those to be cancelled
        return through(table, transforms[last:]), waiting.popleft()[1]

    def full() -> bool:
        return sum(one[2] for one in waiting) >= WINDOW_ROWS or sum(one[3] for one in waiting) >= WINDOW_BYTES

    try:
        for table, beside in tables:
            future = background.submit(_awaited(table, transforms[:last]))
            waiting.append((future, beside, table.num_rows, table.nbytes))
            while waiting and (waiting[0][0].done() or full()):
                yield first()
        while waiting:
            yield first()
    finally:
        for future, *_ in waiting:
            future.cancel()


async def _awaited(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    background.heard()
    for transform in transforms:
        table = await transform.on_loop(table)
        await asyncio.sleep(0)
    return table


@contextmanager
def live(bar: Any, statistics: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Keep what stands behind a bar up to date with ``statistics``, where these are of anything."""
    before, started = statistics(), time.monotonic()

    def refresh() -> None:
        bar.set_postfix_str(format_statistics(statistics(), before, time.monotonic() - started))

    seconds = REFRESH_SECONDS if _is_watched() else LINE_SECONDS
    with background.every(seconds, refresh, name="arhn-progress") if before else nullcontext():
        yield


def _is_watched() -> bool:
    """Whether the bar moves on a terminal; the log of a job would have two lines a second."""
    return sys.stderr is not None and sys.stderr.isatty()


class _Lines:
    """Standard error for a bar that is not on a terminal: each of its states on a line of its own."""

    def write(self, text: str) -> None:
        if sys.stderr is not None and (line := text.strip()):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()


def format_statistics(now: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> str:
    """The difference of two statistics as a line for a progress bar."""
    if not now:
        return ""
    since = {name: int(now.get(name, 0)) - int(before.get(name, 0)) for name in TOTALS}
    counts = {
        "from the store": since["stored"],
        "tokens/s": round((since["prompt_tokens"] + since["completion_tokens"]) / seconds) if seconds > 0 else 0,
        "retries": since["retries"],
        "failed": since["failures"],
        "in flight": now.get("in_flight", 0),
    }
    parts = [f"{since['replies']:,} replies", *(f"{count:,} {what}" for what, count in counts.items() if count)]
    if now.get("loading"):
        parts.append("loading the model")
    return ", ".join([*parts, "WAITING for the endpoint"] if now.get("waiting_for_servers") else parts)


# --- checkpoints ------------------------------------------------------------------------------------------------


def work_folder(target: Path) -> Path:
    """Where an unfinished run is kept."""
    return target.with_name(f".{target.name}.unfinished")


def is_unfinished(target: Path) -> bool:
    """Whether there is something to go on from."""
    return (work_folder(target) / CHECKPOINT).exists()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The position in a split, what it took until there, and what the writer goes on from; at first in none."""

    split: str | None = None
    position: Position | None = None
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)
    writer: Mapping[str, Any] = field(default_factory=dict)

    def save(self, work: Path, key: Mapping[str, Any]) -> None:
        """Write it as the one of the run that ``key`` tells: all that changes the result."""
        new = work / f"{CHECKPOINT}.new"
        new.write_text(json.dumps({"format": FORMAT, "key": key, "checkpoint": asdict(self)}), encoding="utf-8")
        os.replace(new, work / CHECKPOINT)

    @classmethod
    def found(cls, work: Path, key: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint in a folder, when it is of the same run; another one is told in a warning."""
        try:
            found = json.loads((work / CHECKPOINT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            logger.warning("The checkpoint in %s cannot be read (%s); the run starts anew.", work, error)
            return cls()
        ours, theirs = json.loads(json.dumps(key)), found.get("key") or {}
        if found.get("format") != FORMAT or theirs != ours:
            differ = ", ".join(name for name in ours if theirs.get(name) != ours[name]) or "its format"
            told = "The unfinished run in %s is another one (it differs in: %s); this one starts anew and replaces it."
            logger.warning(told, work, differ)
            return cls()
        known = found["checkpoint"]
        position = Position(**known["position"])
        logger.info("going on behind row %d of %s", position.rows, known["split"])
        return cls(**{**known, "position": position})
