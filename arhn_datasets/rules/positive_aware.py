"""Positive-aware mining of NV-Retriever: a limit on the scores of negatives, by that of the positive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.rows.arrow import Codes, Numbers
from arhn_datasets.rows.options import Option, check_choices, check_integer, check_numbers, check_share
from arhn_datasets.rules.by_score import ScoreRule, beyond, share_of
from arhn_datasets.rules.moves import Evidence, Names
from arhn_datasets.rules.rule import ABOVE, BELOW, NOTHING

TOPK_ABS, TOPK_MARGIN_POS, TOPK_PERC_POS = "TopK-Abs", "TopK-MarginPos", "TopK-PercPos"
METHODS = (TOPK_ABS, TOPK_MARGIN_POS, TOPK_PERC_POS)


@dataclass(frozen=True, kw_only=True, eq=False)
class PositiveAware(ScoreRule):
    """NV-Retriever's positive-aware mining (arXiv 2407.15831, section 3): drop what scores too near the positive.

    A negative leaves where its score is over a limit, a tie stays:

    ================== ==================================================================================
    ``TopK-Abs``       the limit is ``threshold``, whatever the positive's score
    ``TopK-MarginPos`` the positive's score minus ``absolute_margin``
    ``TopK-PercPos``   ``percentage_margin`` of the positive's score
    ================== ==================================================================================

    The percentage is taken of the distance from 0, so that the limit is under the positive's score where that is
    negative, too: ``s - |s| (1 - percentage_margin)``, as ``mine_hard_negatives`` of sentence-transformers does with
    ``relative_margin = 1 - percentage_margin``. There the other two are ``max_score`` and ``absolute_margin``, and with
    several positives it takes the lowest score, which the paper does not define.

    Args:
        method: One of the three.
        threshold: Of ``TopK-Abs``.
        absolute_margin: Of ``TopK-MarginPos``.
        percentage_margin: Of ``TopK-PercPos``, from 0 to 1.
        top_k: Of the negatives that remain, keep only so many with the highest scores, the earlier of equal ones;
            None for all.
        reference: With several positives that have a score, their ``"min"``, ``"max"`` or ``"mean"``.
        min_negatives: As of :class:`Relabel`, like ``on_shortage``; nothing becomes a positive, so none is in excess.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "method": Option(help="what the limit of a negative's score is", choices=METHODS),
        "threshold": Option(help=f"the limit of {TOPK_ABS}", metavar="NUMBER"),
        "absolute_margin": Option(help=f"of {TOPK_MARGIN_POS}", metavar="NUMBER"),
        "percentage_margin": Option(help=f"of {TOPK_PERC_POS}, from 0 to 1", metavar="NUMBER"),
        "top_k": Option(help="of the negatives that remain, only the best", metavar="NUMBER"),
        **ScoreRule.OPTIONS,
    }

    method: str = TOPK_PERC_POS
    threshold: float = 0.7
    absolute_margin: float = 0.05
    percentage_margin: float = 0.95
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, {"method": METHODS})
        super().__post_init__()
        check_numbers(self, "threshold", "absolute_margin")
        check_share(self, "percentage_margin")
        check_integer("top_k", self.top_k, least=1, optional=True)

    @property
    def label(self) -> str:
        """The method."""
        return self.method

    def limit(self, reference: Any) -> Any:
        """The highest score of a negative that stays, of one reference or of an array; NaN where it cannot be told."""
        if self.method == TOPK_ABS:
            return np.full(np.shape(reference), self.threshold)
        if self.method == TOPK_MARGIN_POS:
            return reference - self.absolute_margin
        return share_of(reference, self.percentage_margin)

    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """``above`` over the limit, ``below`` what is not among the ``top_k``."""
        scores, rows = negatives.of("scores"), negatives.rows
        limits = self.limit(references)[rows]
        verdicts = np.where(scores > limits, ABOVE, NOTHING)
        if self.top_k is not None:
            verdicts[beyond(self.top_k, scores, rows, scores <= limits)] = BELOW
        return verdicts
