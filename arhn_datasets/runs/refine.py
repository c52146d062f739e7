"""From an input to a refined dataset in a folder that is laid out as a Hub dataset repository."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.annotators.cascade import Cascade
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.ranks import Ranks
from arhn_datasets.evidence.scores import Scores
from arhn_datasets.evidence.snippets import Snippets
from arhn_datasets.evidence.stage import AnnotatedTransform
from arhn_datasets.folder.description import configuration, describe_run
from arhn_datasets.folder.place import check_output
from arhn_datasets.folder.reading import BATCH_BYTES, BATCH_ROWS
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.types import united
from arhn_datasets.folder.writer import Refinement, write_run
from arhn_datasets.inputs.sources import Input, load_input, open_input, provenance_of, sharded, silent, stamp_of
from arhn_datasets.rows.arrow import empty_table, field_of
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, DECISION, FILTERED, NEGATIVE, POSITIVE, Row
from arhn_datasets.rows.stage import ColumnTransform, Transform
from arhn_datasets.rules.arhn import POLICIES, Relabel
from arhn_datasets.rules.rule import Decision
from arhn_datasets.runs.progress import live
from arhn_datasets.runs.streaming import read, refine_stream, through

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

WAITING_ROWS, MAPPED_ROWS = 16, 64  # of a call, where the annotator waits in a stream, and where it does not wait
COLUMN_ROWS = 1000  # of a call, where a stage is a function of columns
Statistics = Callable[[], Mapping[str, Any]]
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


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The three transforms of a run, with an annotator for the first two."""

    snippets: Snippets
    ranks: Ranks
    relabel: Relabel

    @property
    def annotator(self) -> Annotator:
        """Who gives the evidence."""
        return self.snippets.source

    @property
    def transforms(self) -> tuple[Snippets, Ranks, Relabel]:
        """The three in order."""
        return self.snippets, self.ranks, self.relabel

    def asking(self, annotator: Annotator) -> Stages:
        """The same stages with another annotator, or with the same one in another form."""
        return replace(self, snippets=self.snippets.asking(annotator), ranks=self.ranks.asking(annotator))


def refine(
    source: Input,
    output: str | os.PathLike[str],
    stages: Stages,
    *,
    num_proc: int | None = None,
    batch_size: int | None = None,
    streaming: bool = False,
) -> Refinement:
    """Read, adapt, annotate, relabel and write a dataset.

    A lexical annotator without term statistics is fitted on the input, also where only a shard of that is refined.
    Nothing is written to ``output`` before everything is done.

    Args:
        source: The input.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        stages: The configured transforms.
        num_proc: Processes of ``Dataset.map``, that share the limits of the endpoint; no more than it takes requests.
        batch_size: Rows in a call; by default one where a stage waits, 64 where its annotator does not, and 1,000 where
            it has none.
        streaming: Read rows as they are needed and keep none of them, neither in memory nor in a cache. What is
            written so far is kept in a hidden folder beside ``output``, from which the same call goes on. A lexical
            annotator is fitted in a pass over the stream before the one that refines.

    Raises:
        ConfigurationError: ``num_proc`` for a stream, or a shard that there is not.
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form, or, for a stream, in one whose rows come of several.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    target = Path(output)
    check_output(target)
    if streaming and num_proc is not None and num_proc > 1:
        raise ConfigurationError(
            f"A stream is read by one process, and num_proc is {num_proc}. Leave it out; to use several processes, run "
            "one for each shard and merge what they have written."
        )
    stages.annotator.identity("snippets")  # an endpoint that is not there is told before any work
    if streaming:
        return _refine_stream(source, target, stages, batch_size)
    durations: dict[str, float] = {}
    splits, stages, provenance = prepared(source, stages, durations)
    statistics: Statistics = stages.annotator.statistics
    if num_proc is not None and num_proc > 1:
        statistics = dict  # other processes ask
        num_proc = min(num_proc, stages.annotator.most_processes() or num_proc)
        stages = stages.asking(stages.annotator.shared_by(num_proc))
    with tempfile.TemporaryDirectory(prefix="arhn-", ignore_cleanup_errors=True) as scratch:
        spent = spent_since_now(statistics)
        for stage in stages.transforms:
            options = _map_options(stage, num_proc, batch_size)
            with _timed(durations, stage.NAME), live(stage.NAME, statistics):
                splits = {
                    name: _map(dataset, stage, Path(scratch) / f"{name}-{stage.NAME}.arrow", options)
                    for name, dataset in splits.items()
                }
        with silent():
            return write_run(
                target,
                {name: _relabelled(dataset, stages.transforms) for name, dataset in splits.items()},
                lambda report, rows: describe_run(
                    {**provenance, "rows": dict(rows)}, stages.transforms, report, durations, spent()
                ),
            )


def prepared(
    source: Input, stages: Stages, durations: dict[str, float]
) -> tuple[dict[str, Dataset], Stages, dict[str, Any]]:
    """The canonical rows to refine, the stages, fitted on the whole input, and where the rows came from."""
    with _timed(durations, "load"), silent():
        splits, provenance = load_input(source)
    if unfitted(stages.annotator) is not None:
        with _timed(durations, "fit"):
            stages = fitted(stages, splits)
    splits, shard = sharded(splits, source)
    return splits, stages, {**provenance, **shard}


def _refine_stream(source: Input, target: Path, stages: Stages, batch_size: int | None) -> Refinement:
    with silent():
        streams, provenance = open_input(source)
    durations: dict[str, float] = {}
    if unfitted(stages.annotator) is not None:
        whole, _ = open_input(replace(source, shard=None)) if source.shard else (streams, None)
        with _timed(durations, "fit"):
            stages = fitted(stages, {name: _rows_of(stream, source) for name, stream in whole.items()})
    batch_rows = batch_size or (WAITING_ROWS if stages.annotator.awaits else MAPPED_ROWS)
    where = {**provenance, "rows": {}}

    def described(
        report: Report, rows: Mapping[str, int], seconds: Mapping[str, float], requests: Mapping[str, int]
    ) -> Mapping[str, Any]:
        return describe_run(
            {**provenance, "rows": dict(rows)}, stages.transforms, report, {**durations, **seconds}, requests
        )

    return refine_stream(
        source,
        target,
        streams,
        stages.transforms,
        key={
            "input": {**where, "files": stamp_of(source) if provenance["kind"] != "hub" else []},
            **configuration(stages.transforms),
            "versions": {name: version(name) for name in ("arhn_datasets", "datasets")},
        },
        batch_rows=batch_rows,
        statistics=stages.annotator.statistics,
        spent=spent_since_now(stages.annotator.statistics),
        describe=described,
    )


def _rows_of(stream: IterableDataset, source: Input) -> Iterator[Row]:
    """The rows of a stream, for a first pass over them."""
    from datasets.utils import tqdm

    with tqdm(unit=" rows", desc="fit") as bar:
        for table, _ in read(stream, source, None, MAPPED_ROWS):
            yield from table.select([POSITIVE.passages, NEGATIVE.passages]).to_pylist()
            bar.update(table.num_rows)


def spent_since_now(statistics: Statistics) -> Callable[[], dict[str, int]]:
    """A function that tells what an annotator was asked since now."""
    before = statistics()

    def spent() -> dict[str, int]:
        asked = statistics()
        return {name: asked[name] - before.get(name, 0) for name in TOTALS if name in asked}

    return spent


def save(
    dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    transforms: Sequence[Transform] = (),
) -> Refinement:
    """Write rows that ``map`` has relabelled into a folder, as :func:`refine` does; a stream in bounded memory.

    The columns of a stream get their types from its first rows, where it has no features; those of the evidence have
    types of their own.

    Args:
        dataset: Rows that went through ``arhn.snippets``, ``arhn.ranks`` and ``arhn.relabel``, or through other
            evidence and a rule over it.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        source: The Hub id, ``user/name`` or ``user/name@revision``, of the dataset that they were made from; by default
            the one in whose cache of ``load_dataset`` they are.
        transforms: Those that made the rows. Without them the folder can name neither model nor parameters, and takes
            the policy from the rows, where it is one of ARHN's.

    Raises:
        ConfigurationError: ``dataset`` is no dataset, or a transform gives no evidence and is no rule.
        SchemaError: the rows were not relabelled, or those of a stream have several types in one column.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits: dict[str, Any] = dict(dataset)
    elif isinstance(dataset, (Dataset, IterableDataset)):
        splits = {str(dataset.split or "train"): dataset}
    else:
        raise ConfigurationError(
            f"{type(dataset).__name__} is neither a Dataset nor a DatasetDict, nor a stream of them; the rows that "
            "arhn.relabel has written were expected, or the folder of arhn-refine."
        )
    target = Path(output)
    check_output(target)
    given = _known(transforms)
    policies: set[str] = set()
    with silent():
        streams = {name: _decided(name, _tables_of(rows), policies) for name, rows in splits.items()}
        provenance = provenance_of(splits, source)

        def described(report: Report, rows: Mapping[str, int]) -> Mapping[str, Any]:
            if not any(rows.values()):
                raise SchemaError("There are no rows; nothing can be written.")
            return describe_run({**provenance, "rows": dict(rows)}, _made_by(given, policies), report, {})

        return write_run(target, streams, described)


def _decided(split: str, tables: Iterable[pa.Table], policies: set[str]) -> Iterator[pa.Table]:
    """The tables as they are, when they were relabelled; their policies are noted."""
    for table in tables:
        missing = [column for column in (FILTERED.passages, DECISION) if column not in table.column_names]
        if missing:
            raise SchemaError(
                f"The rows of {split!r} lack {missing}: they were not relabelled. Run the three stages first: "
                "ds.map(arhn.snippets).map(arhn.ranks).map(arhn.relabel)."
            )
        found = pc.unique(field_of(table.column(DECISION), "policy", pa.string())).to_pylist()
        policies.update(policy for policy in found if policy is not None)
        yield table


def _known(transforms: Sequence[Transform]) -> dict[str, Transform]:
    made = {transform.NAME: transform for transform in transforms}
    unknown = [name for name, found in made.items() if not isinstance(found, (AnnotatedTransform, Scores, Decision))]
    if unknown:
        raise ConfigurationError(
            f"transforms has {unknown}; those were expected that made the rows: arhn.Snippets, arhn.Ranks or other "
            "evidence, and arhn.Relabel or another rule."
        )
    return made


def _made_by(made: Mapping[str, Transform], policies: set[str]) -> list[Transform]:
    """The transforms as they were given, and a relabelling with the policy of the rows where there was none."""
    made = dict(made)
    if Relabel.NAME not in made:
        if len(policies) != 1:
            raise SchemaError(
                f"The rows were relabelled by {sorted(policies) or 'no policy'}; one policy was expected. Relabel all "
                "of them with one: ds.map(arhn.relabel)."
            )
        (policy,) = policies
        if policy not in POLICIES:
            raise ConfigurationError(
                f"The rows were made by the rule {policy!r}, whose parameters are not in them. Name it: "
                "transforms=[..., the rule that was mapped]."
            )
        made[Relabel.NAME] = Relabel(policy=policy)
    return sorted(made.values(), key=lambda transform: _STAGES.get(type(transform), isinstance(transform, Decision)))


_STAGES: Mapping[type[Transform], float] = {Snippets: -2, Ranks: -1}  # then other evidence, and the rule last


def unfitted(annotator: Annotator) -> Lexical | None:
    """The lexical annotator that has no term statistics yet: this one, or the screen of a cascade."""
    found = annotator.cheap if isinstance(annotator, Cascade) else annotator
    return found if isinstance(found, Lexical) and found.frequencies is None else None


def fitted(stages: Stages, splits: Mapping[str, Iterable[Row]]) -> Stages:
    """The stages with a lexical annotator whose term statistics come from ``splits``."""
    annotator = unfitted(stages.annotator)
    assert annotator is not None
    rows = (row for dataset in splits.values() for row in dataset)
    fitted: Annotator = Lexical.fitted(
        rows, threshold=annotator.threshold, of_best=annotator.of_best, language=annotator.language
    )
    if isinstance(stages.annotator, Cascade):
        fitted = replace(stages.annotator, cheap=fitted)
    return stages.asking(fitted)


def _map_options(stage: Transform, num_proc: int | None, batch_size: int | None) -> dict[str, Any]:
    batched = batch_size is not None or not stage.awaits
    rows = COLUMN_ROWS if isinstance(stage, ColumnTransform) else MAPPED_ROWS
    return {
        "batched": batched,
        **({"batch_size": batch_size or rows} if batched else {}),
        **({"num_proc": num_proc} if num_proc and num_proc > 1 else {}),
        # The store of replies makes a rerun cheap; the cache of `map` would serve failed requests again.
        "load_from_cache_file": False,
    }


def _map(dataset: Dataset, stage: Transform, cache_file: Path, options: Mapping[str, Any]) -> Dataset:
    if not len(dataset):
        return dataset
    processes = min(options.get("num_proc", 1), len(dataset))
    return dataset.map(
        stage,
        cache_file_name=str(cache_file),
        desc=f"{stage.NAME:<8}",
        **{**options, **({"num_proc": processes} if processes > 1 else {"num_proc": None})},
    )


# -- rows as tables ----------------------------------------------------------------------------------------------------


def _relabelled(dataset: Dataset, transforms: Sequence[Transform]) -> Iterator[pa.Table]:
    """The rows that went through ``map``; without any, a table that the transforms have given its columns."""
    if len(dataset):
        yield from _tables_of(dataset)
        return
    yield through(empty_table(dataset.features.arrow_schema), transforms)


def _tables_of(rows: Dataset | IterableDataset) -> Iterator[pa.Table]:
    """The rows in tables, of which the first has the features; at least one, where the columns are known."""
    from datasets import Dataset

    features = rows.features
    schema: Any = None if features is None else features.arrow_schema
    if not isinstance(rows, Dataset):
        batches = rows.with_format(None).iter(MAPPED_ROWS)
        tables = (_table_of(batch) if schema is None else pa.table(batch, schema=schema) for batch in batches)
        yield from tables if schema is None else chain([empty_table(schema)], tables)
        return
    average = rows.data.nbytes / max(1, rows.data.num_rows)
    size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, average))))
    yield empty_table(schema)
    yield from rows.with_format("arrow").iter(size)


def _table_of(batch: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Rows as Python objects, the evidence in its own types, whatever is null in them."""
    types = dict(ALL_EVIDENCE_TYPES)
    sides = [name for name in (POSITIVE.passages, NEGATIVE.passages, FILTERED.passages) if name in batch]
    # One type for all: a passage can move from one list to the other.
    types |= dict.fromkeys(sides, reduce(united, (pa.array(batch[name]).type for name in sides), pa.null()))
    return pa.table({name: pa.array(values, types.get(name)) for name, values in batch.items()})


@contextmanager
def _timed(durations: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        durations[stage] = durations.get(stage, 0.0) + time.monotonic() - start
