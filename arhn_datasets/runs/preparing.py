"""What a run starts with: the canonical rows of each split in tables, from any row on, and stages that know them.

A split is a dataset in files on this disk, or a stream.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.llm import OF_THE_PROCESS
from arhn_datasets.evidence.stage import AnnotatedTransform, EvidenceStage
from arhn_datasets.folder.run import RUN_FILE, is_refined
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.adaptation import keeps_rows
from arhn_datasets.inputs.bad_rows import SET_ASIDE, STOP, BadRow, Noted, check_choice, told
from arhn_datasets.inputs.canonical import sort_out
from arhn_datasets.inputs.sources import UNPUBLISHED, Input, Shard
from arhn_datasets.rows.arrow import empty_table, row_at
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, QUERY, QUERY_ID, Row, canonical_json
from arhn_datasets.rows.stage import Transform
from arhn_datasets.rules.rule import Decision
from arhn_datasets.runs.reusing import SourceRows, known_stages

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

TABLE_BYTES = 4_000_000
FITTED_ROWS = 64  # of a table that the annotator is fitted on


class Stages:
    """The transforms of a run by the names of their stages: those that give evidence, and the rule over it.

    ``transforms`` are all of them in the order in which they work; those that wait for nobody come behind the others.
    """

    def __init__(self, **named: Transform) -> None:
        self.transforms = tuple(sorted(named.values(), key=lambda one: (one.ORDER, not one.awaits)))

    @property
    def evidence(self) -> tuple[EvidenceStage, ...]:
        """The stages before the rule."""
        return tuple(one for one in self.transforms if isinstance(one, EvidenceStage))

    @property
    def rule(self) -> Decision:
        """The rule."""
        return next(one for one in self.transforms if isinstance(one, Decision))

    @property
    def annotators(self) -> tuple[Annotator, ...]:
        """Who is asked, each once; nobody where the evidence is made by models that are no annotators."""
        asked = (one.configured for one in self.transforms if isinstance(one, AnnotatedTransform))
        return tuple({id(annotator): annotator for annotator in asked}.values())

    @property
    def awaits(self) -> bool:
        """Whether one of the stages waits for others than this process."""
        return any(one.awaits for one in self.transforms)

    @property
    def on_gpu(self) -> bool:
        """Whether each process that works on them needs a GPU of its own."""
        return any(getattr(one, "on_gpu", False) for one in (*self.annotators, *self.evidence))

    def check(self) -> None:
        """Refuse, before any work, whoever is not there or cannot give what is asked."""
        for one in self.evidence:
            if isinstance(one, AnnotatedTransform):
                one.check_annotator_gives()
            one.identity()

    def asking(self, change: Callable[[Annotator], Annotator]) -> Stages:
        """The same stages with what ``change`` makes of their annotators, of each once."""
        made = {id(annotator): change(annotator) for annotator in self.annotators}
        return self.changed(
            lambda one: one.asking(made[id(one.configured)]) if isinstance(one, AnnotatedTransform) else one
        )

    def changed(self, change: Callable[[EvidenceStage], EvidenceStage]) -> Stages:
        """The same stages with what ``change`` makes of those that give evidence."""
        return Stages(**{one.NAME: change(one) if isinstance(one, EvidenceStage) else one for one in self.transforms})

    def most_processes(self) -> int | None:
        """How many processes may share the annotators; None for any number."""
        most = [found for annotator in self.annotators if (found := annotator.most_processes()) is not None]
        return min(most, default=None)

    def statistics(self) -> dict[str, Any]:
        """What was asked so far in this process; empty for nothing that is counted."""
        total: dict[str, Any] = {}
        for annotator in self.annotators:
            for name, value in annotator.statistics().items():
                before = total.get(name, value)
                of_all = name in OF_THE_PROCESS or isinstance(value, bool)
                total[name] = value if name not in total else max(before, value) if of_all else before + value
        for one in self.evidence:
            for name, value in one.statistics().items():
                total[name] = value or total.get(name, value) if isinstance(value, bool) else total.get(name, 0) + value
        return total


def through(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    """A table through transforms, one after the other."""
    for transform in transforms:
        table = transform(table)
    return table


# --- splits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a split is behind a table: its rows so far and, of a stream, its state, and the bad rows of the run."""

    rows: int
    state: Mapping[str, Any] = field(default_factory=dict)
    set_aside: int = 0


@dataclass(frozen=True)
class Loaded:
    """A dataset of canonical rows in files on this disk: any row is at hand."""

    dataset: Dataset

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows, with the features of the source in the metadata."""
        return self.dataset.features.arrow_schema

    def tables(self, at: Position | None, most_rows: int) -> Iterator[tuple[pa.Table, Position]]:
        """Tables of up to ``most_rows`` from ``at`` on, fewer where rows are long, and the position behind each.

        They are slices of the files, which the system holds in memory as long as it has room.
        """
        data, rows = self.dataset.data, self.dataset.with_format("arrow")
        average = data.nbytes / max(1, data.num_rows)
        size = max(1, min(most_rows, int(TABLE_BYTES / max(1, average))))
        for start in range(0 if at is None else at.rows, len(rows), size):
            table = rows[start : start + size]
            yield table, Position(rows=start + table.num_rows)

    def cut(self, shard: Shard) -> Loaded:
        """A contiguous part: so many rows as any other part has, or one more."""
        count = len(self.dataset)
        first, end = (count * index // shard.of for index in (shard.index, shard.index + 1))
        return Loaded(self.dataset.select(range(first, end))) if count else self

    def extent(self) -> dict[str, Any]:
        """What is the same for all who cut this split, wherever its files lie: how many rows, and a hash of queries."""
        found = hashlib.sha256()
        for table in self.dataset.select_columns([QUERY_ID, QUERY]).with_format("arrow").iter(1000):
            values = [column.to_pylist() for column in table.columns]
            found.update(canonical_json(values).encode("utf-8", "surrogatepass"))
        return {"rows": len(self.dataset), "queries": found.hexdigest()}


@dataclass(frozen=True)
class Streamed:
    """A stream of rows of any form that keeps its rows: they are read as they are needed, and none is kept."""

    stream: IterableDataset
    source: Input
    name: str = ""
    noted: Noted = field(default_factory=Noted)

    @property
    def schema(self) -> pa.Schema:
        """As of :class:`Loaded`."""
        raw = self.stream.features.arrow_schema
        return self._canonical(empty_table(raw), 0).schema.with_metadata(raw.metadata)

    def tables(self, at: Position | None, most_rows: int) -> Iterator[tuple[pa.Table, Position]]:
        """As of :class:`Loaded`; the stream is read by whoever takes them."""
        held: list[pa.Table] = []
        size, position = 0, at or Position(rows=0)
        for row, behind in self._rows(at):
            if held and (len(held) >= most_rows or size >= TABLE_BYTES or not row.schema.equals(held[0].schema)):
                yield from self._good(held, position)
                held, size = [], 0
            held.append(row)
            size += row.nbytes
            position = behind
        if held:
            yield from self._good(held, position)

    def _good(self, held: Sequence[pa.Table], position: Position) -> Iterator[tuple[pa.Table, Position]]:
        table = self._canonical(held, position.rows)
        if table.num_rows:
            yield table, replace(position, set_aside=self.noted.total)

    def _canonical(self, held: Sequence[pa.Table] | pa.Table, end: int) -> pa.Table:
        """The good rows as canonical ones, of an earlier result as its source rows; bad ones are noted, or the end."""
        table = held if isinstance(held, pa.Table) else pa.concat_tables(held).combine_chunks()
        kept = self.source.kept(table.column_names)
        table = table.select(list(kept)).rename_columns(list(kept.values()))
        source = SourceRows()(table) if sources.is_refined(table.schema) else table
        good, bad = sort_out(source, threshold=self.source.label_threshold)
        rows = [
            BadRow(row=end - len(table) + at, reason=why, content=row_at(source, at), split=self.name)
            for at, why in bad
        ]
        told(rows, end, self.noted.add if self.source.on_bad_row == SET_ASIDE else STOP)
        return good

    def _rows(self, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        stream = self.stream.with_format("arrow")
        if at is not None:
            stream.load_state_dict(dict(at.state))
        # One by one: in older versions the state is that of the next row only then.
        rows = iter(stream.iter(batch_size=1))
        taken = 0 if at is None else at.rows
        while self.source.limit is None or taken < self.source.limit:
            with sources.reading(self.source):
                row = next(rows, None)
            if row is None:
                return
            taken += 1
            yield row, Position(rows=taken, state=stream.state_dict())

    def cut(self, shard: Shard) -> Streamed:
        """A contiguous part: whole files or, where the stream knows them, row groups."""
        return replace(self, stream=self.stream.shard(num_shards=shard.of, index=shard.index, contiguous=True))

    def extent(self) -> dict[str, Any]:
        """The number of parts into which it can be cut."""
        return {"parts": self.stream.num_shards}


Split: TypeAlias = Loaded | Streamed


# --- from an input ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The splits to refine, the stages, fitted on the whole input, where the rows came from, and what it took."""

    splits: Mapping[str, Split]
    stages: Stages
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    noted: Noted = field(default_factory=Noted)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """The splits that are no streams."""
        return {name: split.dataset for name, split in self.splits.items() if isinstance(split, Loaded)}


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
    check_choice(source.on_bad_row)
    noted = Noted()
    with _timed(seconds, "load"), sources.silent():
        known = known_stages(source, stages.evidence)
        stages = stages.changed(lambda one: one.with_options(reuse=True) if one in known else one)
        undo = SourceRows(kept=tuple(column for one in known for column in one.types(None)))
        splits, provenance = (_streams(source, noted) if streamed else None) or _loaded(source, noted, undo)
        provenance |= {"reused": [one.NAME for one in known]} if known else {}
    if any(annotator.needs_fitting for annotator in stages.annotators):
        with _timed(seconds, "fit"):
            stages = stages.asking(lambda one: one.fitted_on(_passages(splits)) if one.needs_fitting else one)
    if any(isinstance(split, Streamed) for split in splits.values()):
        noted.keep([])  # a stream is read again, and its bad rows are found again
    if source.shard is not None:
        whole = {name: split.extent() for name, split in splits.items()}
        splits = {name: split.cut(source.shard) for name, split in splits.items()}
        noted.keep(noted.part(source.shard.index, source.shard.of))
        provenance["shard"] = {"index": source.shard.index, "of": source.shard.of, "whole": whole}
    return Prepared(splits=splits, stages=stages, provenance=provenance, seconds=seconds, noted=noted)


def _loaded(source: Input, noted: Noted, undo: SourceRows) -> tuple[dict[str, Split], dict[str, Any]]:
    on_bad_row = noted.add if source.on_bad_row == SET_ASIDE else STOP
    splits, provenance = sources.load_input(source, undo=undo, on_bad_row=on_bad_row)
    if is_refined(source.path):  # refining twice takes away none of the terms of the first source
        first = json.loads((source.path / RUN_FILE).read_text(encoding="utf-8")).get("source", {})
        provenance |= {name: first.get(name, default) for name, default in UNPUBLISHED.items()} | {"revision": None}
    return {name: Loaded(dataset) for name, dataset in splits.items()}, provenance


def _streams(source: Input, noted: Noted) -> tuple[dict[str, Split], dict[str, Any]] | None:
    """The splits as streams; None where rows of one anchor become one row, or where a shard is not whole parts."""
    opened = sources.stream(source)
    if opened is None or source.shard and source.limit:
        return None
    streams, provenance = opened
    parts = 1 if source.shard is None else source.shard.of
    for stream in streams.values():
        if not keeps_rows(source.kept(stream.features).values()) or stream.num_shards < parts:
            return None
    return {name: Streamed(stream, source, name, noted) for name, stream in streams.items()}, provenance


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
