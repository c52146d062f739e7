"""Cohen's kappa (Educational and Psychological Measurement 20, 1960)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from arhn_datasets.errors import MissingDependencyError


def cohen_kappa(
    one: Any,
    other: Any,
    *,
    labels: Sequence[Any] | None = None,
    weights: str | None = None,
    sample_weight: Any = None,
) -> float | None:
    """The kappa of two lists of labels; None where all are one and the same, so that there is no chance to disagree.

    Args:
        one: A label for each thing.
        other: Another one.
        labels: All that there are, in their order, where some may not occur.
        weights: ``linear`` or ``quadratic``, for labels that are grades.
        sample_weight: How often each thing counts.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError as error:
        raise MissingDependencyError.of("scikit-learn", "evaluation", "A kappa") from error
    there = slice(None) if sample_weight is None else sample_weight > 0
    if len(np.union1d(one[there], other[there])) < 2:
        return None
    kappa = float(cohen_kappa_score(one, other, labels=labels, weights=weights, sample_weight=sample_weight))
    return None if math.isnan(kappa) else kappa


def kappas_of(both: Any, first: Any, second: Any, neither: Any) -> Any:
    """The kappas of many tables of two by two at once; not a number where it is not defined."""
    total = both + first + second + neither
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (both + neither) / total
        chance = ((both + first) * (both + second) + (second + neither) * (first + neither)) / total**2
        return (observed - chance) / (1 - chance)
