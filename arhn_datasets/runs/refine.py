"""The one way from an input to a refined folder, which is laid out as a Hub dataset repository.

Canonical tables of each split go through the stages and into the writer, in memory that does not grow with the rows.
When a file of the output is full, a checkpoint notes where the run is. What takes the tables through the stages is an
:class:`Engine`: this process, or a cluster (:mod:`arhn_datasets.runs.ray`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from arhn_datasets.errors import InputError
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.writer import Refinement, RunWriter, check_output, configuration, describe_run
from arhn_datasets.inputs.sources import Input, stamp_of
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.runs.annotating import annotated
from arhn_datasets.runs.checkpoints import Checkpoint, is_unfinished, work_folder
from arhn_datasets.runs.preparing import Prepared, prepare
from arhn_datasets.runs.progress import live
from arhn_datasets.runs.splits import Loaded, Position
from arhn_datasets.runs.stages import Stages, through

WAITING_ROWS, OWN_ROWS = 16, 64  # of a table, where the annotator waits for others, and where it works itself
TOTALS = (
    "requests",
    "replies",
    "stored",
    "retries",
    "overloads",
    "failures",
    "prompt_tokens",
    "completion_tokens",
    "screened",
)


class Engine(Protocol):
    """What takes the tables of a run through its stages."""

    def relabelled(self, split: str, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        """The relabelled rows of a split from ``at`` on, in their order, and the position behind each table.

        Splits are asked for in their order, each once.
        """

    def statistics(self) -> Mapping[str, Any]:
        """What was asked so far."""

    def description(self) -> Mapping[str, Any]:
        """What ``run.json`` says of it."""


Opened = Callable[[Prepared], AbstractContextManager[Engine]]


def refine(
    source: Input, output: str | os.PathLike[str], stages: Stages, *, batch_size: int | None = None
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
        batch_size: Rows in a table; by default 16 where the annotator waits for others, and 64 where it does not.

    Raises:
        ConfigurationError: a shard that there is not.
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
        OutputError: ``output`` holds something else, or cannot be written.
    """

    @contextmanager
    def here(prepared: Prepared) -> Iterator[Engine]:
        yield _InProcess(prepared, batch_size)

    return run(source, output, stages, here, streamed=True)


class _InProcess:
    """This process, with as many rows under way as its annotator can wait for."""

    def __init__(self, prepared: Prepared, batch_size: int | None) -> None:
        self._splits, self._stages = prepared.splits, prepared.stages
        self._rows = batch_size or (WAITING_ROWS if self._stages.annotator.awaits else OWN_ROWS)

    def relabelled(self, split: str, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        return annotated(self._splits[split].tables(at, self._rows), self._stages.transforms)

    def statistics(self) -> Mapping[str, Any]:
        return self._stages.annotator.statistics()

    def description(self) -> Mapping[str, Any]:
        return {}


def run(source: Input, output: str | os.PathLike[str], stages: Stages, opened: Opened, *, streamed: bool) -> Refinement:
    """Refine an input by any engine.

    Args:
        source: The input.
        output: As for :func:`refine`.
        stages: The configured transforms.
        opened: Opens the engine for what is prepared.
        streamed: Whether the engine takes streams, which cannot be entered at any row.

    Raises:
        ArhnError: as :func:`refine`, and as the engine.
    """
    target = Path(output)
    check_output(target)
    stages.annotator.identity("snippets")  # an endpoint that is not there is told before any work
    prepared = prepare(source, stages, streamed=streamed)
    key = _key(source, prepared)
    before = Checkpoint.found(work_folder(target), key)
    with opened(prepared) as engine:
        try:
            return _Work(source, target, prepared, engine, key, before).written()
        finally:
            if not is_unfinished(target):  # done, or nothing to go on from
                shutil.rmtree(work_folder(target), ignore_errors=True)


def _key(source: Input, prepared: Prepared) -> dict[str, Any]:
    """All that changes the result of a run: a checkpoint of another key is not gone on from."""
    where = {**prepared.provenance, "rows": {}}
    return {
        "input": {**where, "files": stamp_of(source) if where["kind"] != "hub" else []},
        **configuration(prepared.stages.transforms),
        "versions": {name: version(name) for name in ("arhn_datasets", "datasets")},
    }


class _Work:
    """A run under way, from its beginning or from the checkpoint of an earlier one."""

    def __init__(
        self,
        source: Input,
        target: Path,
        prepared: Prepared,
        engine: Engine,
        key: Mapping[str, Any],
        before: Checkpoint | None,
    ) -> None:
        self._source, self._prepared, self._engine, self._key, self._before = source, prepared, engine, key, before
        self._started, self._asked = time.monotonic(), engine.statistics()
        self._work = work_folder(target)
        if before is None:
            shutil.rmtree(self._work, ignore_errors=True)
            self._writer = RunWriter(target, self._work)
        else:
            self._writer = RunWriter.resumed(target, self._work, before.writer)

    def written(self) -> Refinement:
        """The folder, when all splits are in it."""
        from datasets.utils import tqdm

        splits, writer, before = self._prepared.splits, self._writer, self._before
        names = list(splits)
        known = [len(split.dataset) for split in splits.values() if isinstance(split, Loaded)]
        total = sum(known) if len(known) == len(names) else None
        shown = {"total": total, "initial": sum(writer.rows.values()), "unit": " rows", "desc": "refine"}
        with writer, tqdm(**shown) as bar, live(bar, self._engine.statistics):
            for name in names[names.index(before.split) if before else 0 :]:
                at = before.position if before and before.split == name else None
                for rows in self._write(name, at):
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
        now, before = self._engine.statistics(), self._before
        known = dict(before.requests) if before else {}
        asked = {name: now[name] - self._asked.get(name, 0) for name in TOTALS if name in now}
        seconds = time.monotonic() - self._started + (before.seconds if before else 0.0)
        return seconds, {name: known.get(name, 0) + asked.get(name, 0) for name in (known | asked)}

    def _described(self, report: Report, rows: Mapping[str, int]) -> Mapping[str, Any]:
        seconds, requests = self._spent()
        durations = {**self._prepared.seconds, "refine": seconds}
        where = {**self._prepared.provenance, "rows": dict(rows)}
        transforms = self._prepared.stages.transforms
        return {**describe_run(where, transforms, report, durations, requests), **self._engine.description()}
