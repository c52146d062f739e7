"""Rows that `map` has relabelled, or a stream of them, as a refined folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.stage import EvidenceStage
from arhn_datasets.folder.parquet import united
from arhn_datasets.folder.reading import BATCH_BYTES, BATCH_ROWS
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.writer import Refinement, check_output, describe_run, write_run
from arhn_datasets.inputs.sources import provenance_of, silent
from arhn_datasets.rows.arrow import empty_table, field_of
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, DECISION, FILTERED, SIDES
from arhn_datasets.rows.stage import Transform
from arhn_datasets.rules.arhn import POLICIES, Relabel
from arhn_datasets.rules.rule import Decision

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

STREAMED_ROWS = 64  # of a table


def save(
    dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    transforms: Sequence[Transform] = (),
) -> Refinement:
    """Write rows that ``map`` has relabelled into a folder, as a run does; a stream in bounded memory.

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
    given = {transform.NAME: transform for transform in transforms}
    unknown = [name for name, found in given.items() if not isinstance(found, (EvidenceStage, Decision))]
    if unknown:
        raise ConfigurationError(
            f"transforms has {unknown}; those were expected that made the rows: arhn.Snippets, arhn.Ranks or other "
            "evidence, and arhn.Relabel or another rule."
        )
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
    return sorted(made.values(), key=lambda transform: transform.ORDER)


def _tables_of(rows: Dataset | IterableDataset) -> Iterator[pa.Table]:
    """The rows in tables, of which the first has the features; at least one, where the columns are known."""
    from datasets import Dataset

    features = rows.features
    schema: Any = None if features is None else features.arrow_schema
    if not isinstance(rows, Dataset):
        batches = rows.with_format(None).iter(STREAMED_ROWS)
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
    sides = [side.passages for side in SIDES if side.passages in batch]
    # One type for all: a passage can move from one list to the other.
    types |= dict.fromkeys(sides, reduce(united, (pa.array(batch[name]).type for name in sides), pa.null()))
    return pa.table({name: pa.array(values, types.get(name)) for name, values in batch.items()})
