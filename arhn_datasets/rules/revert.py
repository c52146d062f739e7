"""The way back: from the rows of any rule to the rows of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.arrow import gathered, lists_in, shaped
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, LABELLED, QUERY, RANKING
from arhn_datasets.rules.moves import MovingTransform, Undecided, decided_rows, passage_list_type
from arhn_datasets.rules.rule import ADDED, EVIDENCE_COLUMNS, WRITTEN, Decision, check_pairs, unwritten


@dataclass(frozen=True, kw_only=True, eq=False)
class Revert(MovingTransform):
    """Undoes :class:`Relabel` and every other rule: every passage goes back to its list and its place.

    Args:
        keep_evidence: Keep the columns of snippets, ranks and all other evidence, so that another rule can follow;
            without them the rows are the source rows.

    Raises:
        ConfigurationError: a value is none of its own.
        SchemaError: the rows were not relabelled.
    """

    NAME: ClassVar[str] = "revert"
    OPTIONAL: ClassVar[tuple[str, ...]] = Decision.OPTIONAL

    keep_evidence: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.keep_evidence, bool):
            raise ConfigurationError(f"keep_evidence is {self.keep_evidence!r}; True or False was expected.")

    @property
    def required(self) -> tuple[str, ...]:
        """The three passage lists and their origins, and the decision."""
        return (QUERY, *(side.passages for side in LABELLED), *WRITTEN)

    def identity(self) -> dict[str, Any]:
        """Every option."""
        return {"keep_evidence": self.keep_evidence}

    def moved(self, table: pa.Table, types: Mapping[str, Any]) -> Mapping[str, pa.Array]:
        """The columns of the rows as they were before relabelling."""
        decided = decided_rows(table)
        if decided.all():
            return Undecided(table).moved(types)
        # The others were never relabelled, and concatenated with rows that were: they stay as they are.
        there = [column for column in types if column in table.column_names]
        own = {column: shaped(lists_in(table, column), types[column], column) for column in there}
        if not decided.any():
            return own
        back = self.moved(table.filter(pa.array(decided)), types)
        order = np.where(decided, np.cumsum(decided) - 1, int(decided.sum()) + np.arange(len(decided)))
        return {column: gathered([values, own[column]], order) for column, values in back.items()}

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        kept = {column: ALL_EVIDENCE_TYPES[column] for column in EVIDENCE_COLUMNS if self.keep_evidence}
        return {**dict.fromkeys((side.passages for side in LABELLED), passage_list_type(schema)), **kept}

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The columns that relabelling added, and the evidence where it is not kept."""
        gone = ADDED if self.keep_evidence else (*ADDED, *EVIDENCE_COLUMNS, RANKING)
        return tuple(column for column in columns if column in gone)

    def _inputs(self, columns: Any) -> list[str]:
        inputs = super()._inputs(given := list(columns))
        check_pairs(given)
        if missing := unwritten(given):
            raise SchemaError(f"arhn.revert needs the columns {missing}. {self._advice(missing)}")
        return inputs

    def _advice(self, missing: Sequence[str]) -> str:
        return "Only rows that arhn.relabel has written, with all their columns, can be reverted."


revert = Revert()
