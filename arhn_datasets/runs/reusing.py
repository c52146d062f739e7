"""The evidence of an earlier run in its folder: what was asked there in the same way is not asked, and paid, again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.evidence.stage import EvidenceStage
from arhn_datasets.folder.reading import sha256_of
from arhn_datasets.folder.run import is_refined, read_run
from arhn_datasets.folder.writer import configuration
from arhn_datasets.inputs.sources import Input
from arhn_datasets.rows.arrow import field_of, flat_field, is_list, one_array
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, ERROR
from arhn_datasets.rules.revert import Revert


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceRows(Revert):
    """The source rows of an earlier result.

    Args:
        kept: The columns of evidence that stay; they are null in a row in which a request has failed.
    """

    NAME: ClassVar[str] = "source_rows"

    kept: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """The columns."""
        return {"kept": list(self.kept)}

    def moved(self, table: pa.Table, types: Mapping[str, Any]) -> Mapping[str, pa.Array]:
        """The columns of the rows as they were, and the evidence that stays."""
        columns, failed = dict(super().moved(table, types)), np.zeros(table.num_rows, bool)
        for name in (name for name in ALL_EVIDENCE_TYPES if name in table.column_names and _has_status(name)):
            rows = np.arange(table.num_rows)
            if is_list(ALL_EVIDENCE_TYPES[name]):
                lengths, statuses = flat_field(table, name, "status", pa.string())
                rows = np.repeat(rows, lengths)
            else:
                statuses = one_array(field_of(table.column(name), "status", pa.string()))
            failed[rows[pc.fill_null(pc.equal(statuses, ERROR), False).to_numpy(zero_copy_only=False)]] = True
        for name in (name for name in columns if name in self.kept):
            columns[name] = pc.if_else(pa.array(failed), pa.scalar(None, columns[name].type), columns[name])
        return columns

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """As of :class:`Revert`, without the evidence that goes."""
        gone = self.dropped(list(ALL_EVIDENCE_TYPES))
        return {name: type for name, type in super().types(schema).items() if name not in gone}

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """What a run has added, but for the evidence that stays."""
        return tuple(column for column in columns if column in ALL_EVIDENCE_TYPES and column not in self.kept)


def _has_status(column: str) -> bool:
    found = ALL_EVIDENCE_TYPES[column]
    found = found.value_type if is_list(found) else found
    return bool(pa.types.is_struct(found)) and found.get_field_index("status") >= 0


def known_stages(source: Input, stages: Sequence[EvidenceStage]) -> list[EvidenceStage]:
    """Those of the stages whose evidence an input has: a refined folder, as it was written, of the same annotator."""
    if source.more or not is_refined(source.path):
        return []
    run, ours = read_run(source.path), json.loads(json.dumps(configuration(stages)))
    same: dict[str, EvidenceStage] = {
        one.NAME: one
        for one in stages
        if one.reusable and all(ours[part].get(one.NAME) == run.get(part, {}).get(one.NAME) for part in ours)
    }
    known = [one for one in same.values() if not one.FOLLOWS or one.FOLLOWS in same]
    files = {source.path / path: file.sha256 for path, file in (run.files or {}).items()} if known else {}
    whole = files and all(path.is_file() and sha256_of(path) == written for path, written in files.items())
    return known if whole and run.versions["arhn_datasets"] == version("arhn_datasets") else []
