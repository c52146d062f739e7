"""The three stages of a run, asked of one annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.evidence.ranks import Ranks
from arhn_datasets.evidence.snippets import Snippets
from arhn_datasets.rows.stage import Transform
from arhn_datasets.rules.arhn import Relabel


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The three transforms of a run, with an annotator for the first two."""

    snippets: Snippets
    ranks: Ranks
    relabel: Relabel

    @property
    def annotator(self) -> Annotator:
        """Who gives the evidence."""
        return self.snippets.configured

    @property
    def transforms(self) -> tuple[Snippets, Ranks, Relabel]:
        """The three in order."""
        return self.snippets, self.ranks, self.relabel

    def asking(self, annotator: Annotator) -> Stages:
        """The same stages with another annotator, or with the same one in another form."""
        return replace(self, snippets=self.snippets.asking(annotator), ranks=self.ranks.asking(annotator))


def through(table: pa.Table, transforms: Sequence[Transform]) -> pa.Table:
    """A table through transforms, one after the other."""
    for transform in transforms:
        table = transform(table)
    return table
