"""What rules by scores share: negatives are compared with the score of the positive, and what is too near leaves.

The scores are those of :class:`arhn.Scores <arhn_datasets.Scores>`, or any ``positive_scores`` and ``negative_scores``
in which higher is more relevant. A negative without a score, null or not a finite number, stays where it is, and so do
all negatives of a row in which a rule that compares with the positives finds no score of one. What a rule takes out of
the negatives stands in ``filtered_passages``, with its evidence: :class:`arhn.Revert <arhn_datasets.Revert>` brings it
back.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.rows.arrow import Codes, Integers, Mask, Numbers, extremes, starts_of, within
from arhn_datasets.rows.options import Option, check_choices
from arhn_datasets.rules.moves import Evidence, Names
from arhn_datasets.rules.rule import Decision, states_of


def _means(values: Numbers, rows: Integers, count: int) -> Numbers:
    """The mean of the known values of each row, rounded once, as :func:`math.fsum` does."""
    known = ~np.isnan(values)
    values, rows = values[known], rows[known]
    numbers = np.bincount(rows, minlength=count)
    sums = np.bincount(rows, values, minlength=count)  # of up to two values the same
    starts = starts_of(numbers)
    for row in np.flatnonzero(numbers > 2):
        sums[row] = math.fsum(values[starts[row] : starts[row + 1]])
    means: Numbers = np.divide(sums, numbers, out=np.full(count, np.nan), where=numbers > 0)
    return means


REFERENCE_SCORES: Mapping[str, Callable[[Numbers, Integers, int], Numbers]] = {
    "min": partial(extremes, largest=False),
    "max": partial(extremes, largest=True),
    "mean": _means,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRule(Decision):
    """A rule that compares the scores of the negatives with that of the positives."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "reference": Option(help="with several positives", choices=tuple(REFERENCE_SCORES)),
        **{name: Decision.OPTIONS[name] for name in ("min_negatives", "on_shortage")},  # nothing becomes a positive
    }

    evidence_kinds = ("scores",)

    reference: str = "min"

    def __post_init__(self) -> None:
        check_choices(self, {"reference": tuple(REFERENCE_SCORES)})
        super().__post_init__()

    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The states of the references, ``supported`` or ``unknown``, and the verdicts.

        A verdict is ``above`` (too much like a positive), ``below`` (not chosen) or ``nothing``.
        """
        references = REFERENCE_SCORES[self.reference](positives.of("scores"), positives.rows, len(positives.counts))
        return states_of(~np.isnan(references)), self.verdicts(references, negatives, names)

    @abstractmethod
    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """The verdicts on negatives by their scores and the reference of each row; NaN is no score."""

    @property
    def _called(self) -> str:
        # The name of all rules is that of the stage, which nobody called.
        own = type(self).__module__.startswith("arhn_datasets.")
        return f"{'arhn.' if own else ''}{type(self).__name__}"

    def _advice(self, missing: Sequence[str]) -> str:
        if all(column.endswith("_scores") for column in missing):
            return "Run arhn.Scores first: ds.map(arhn.Scores(model)), or with columns= or field= for scores of yours."
        return super()._advice(missing)


def beyond(most: int, keys: Numbers, rows: Integers, among: Mask | None = None) -> Integers:
    """Where a row's keys stand that are not the ``most`` highest, the earlier of equal ones first."""
    places = np.arange(len(keys)) if among is None else np.flatnonzero(among)
    places = places[np.lexsort((-keys[places], rows[places]))]
    numbers = np.bincount(rows[places]) if len(places) else np.zeros(0, np.int64)
    return places[within(numbers) >= most]


def share_of(score: Any, share: Any) -> Any:
    """``score - |score| (1 - share)``, exactly ``score * share`` where it is positive."""
    return score * np.where(score >= 0, share, 2.0 - share)
