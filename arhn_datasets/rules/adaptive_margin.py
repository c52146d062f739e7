"""The adaptive margin of LG-ANNA-Embedding: a share of the positive's score that may depend on that score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.rows.arrow import Codes, Numbers
from arhn_datasets.rows.options import Option, check_numbers, check_share
from arhn_datasets.rules.by_score import ScoreRule, share_of
from arhn_datasets.rules.moves import Evidence, Names
from arhn_datasets.rules.rule import ABOVE, NOTHING


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveMargin(ScoreRule):
    """LG-ANNA-Embedding's adaptive margin (arXiv 2506.07438): how near a negative may come depends on the positive.

    The report's abstract says that negatives are filtered which are ambiguous by their similarity to the positives. The
    form of the margin was not available to the authors of this package but through reviews of the paper that followed
    it: a highest negative score, "95 % of the positive", taken over from NV-Retriever. They note that the text there
    excludes candidates *under* that score, against its own source and abstract; here those over it leave. With
    ``slope=0`` this is :class:`PositiveAware` with ``TopK-PercPos``; what makes it adapt further is ours: with
    ``slope`` the share falls as the positive's score does, so that about a positive of which the teacher itself is not
    certain fewer negatives are trusted. No constant but 0.95 is known from the source.

    The limit is ``s - |s| m`` with ``m = (1 - margin) + slope * max(0, certain - s)``, of a positive's score ``s``.

    The report's other part, continuous relevance labels from a retriever and a reranker, is :class:`arhn.Scores
    <arhn_datasets.Scores>` (``fuse="rrf"``, then a cross-encoder) and ``labels="soft"`` of the format ``labeled-list``.
    Which loss it trains with them is not stated, as far as those reviews tell.

    Args:
        margin: Share of the positive's score that a negative may reach, from 0 to 1.
        slope: How much the share falls for each unit that the positive's score lies under ``certain``.
        certain: The positive's score from which on the share is ``margin``.
        reference: With several positives that have a score, their ``"min"``, ``"max"`` or ``"mean"``.
        min_negatives: As of :class:`Relabel`, like ``on_shortage``; nothing becomes a positive, so none is in excess.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "margin": Option(help="share of the positive's score that a negative may reach", metavar="NUMBER"),
        "slope": Option(help="how much it falls for a unit of the score under --certain", metavar="NUMBER"),
        "certain": Option(help="the positive's score from which on it does not fall", metavar="NUMBER"),
        **ScoreRule.OPTIONS,
    }
    label = "AdaptiveMargin"

    margin: float = 0.95
    slope: float = 0.0
    certain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "margin")
        check_numbers(self, "slope", least=0)
        check_numbers(self, "certain")

    def limit(self, reference: Any) -> Any:
        """The highest score of a negative that stays, of one reference or of an array; NaN where it cannot be told."""
        return share_of(reference, self.margin - self.slope * np.maximum(0.0, self.certain - reference))

    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """``above`` over the limit."""
        return np.where(negatives.of("scores") > self.limit(references)[negatives.rows], ABOVE, NOTHING)
