"""Agreement: Cohen's kappa, and what the answers of an audit say of labels, in the sample and in the whole dataset.

Kappa on the sample is that of a balanced sample. What the dataset is like is estimated with each pair weighted by the
size of its stratum over the number of its pairs that were judged (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from arhn_datasets.checks.audit_sheet import NO, UNSURE, YES
from arhn_datasets.errors import InputError, MissingDependencyError
from arhn_datasets.folder.run import Agreement
from arhn_datasets.rows.records import FILTERED

RELABELLED, KEPT = "relabelled", "kept"
LABELS = (RELABELLED, FILTERED.label, KEPT)
RESAMPLES, CONFIDENCE = 2000, 0.95

Stratum = tuple[str, str]
"""A label, of :data:`LABELS`, and a subset."""


@dataclass(frozen=True, kw_only=True)
class StratumAnswers:
    """A stratum: its size in the dataset, and the answers to the pairs that were drawn of it."""

    label: str
    subset: str
    population: int
    yes: int
    no: int
    unsure: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the answers say.

    ``kappa`` is Cohen's between the pooled answers and the labels on the sample as it was drawn (relabelled and
    filtered: answers the query; kept: does not); ``relabelled_kappa`` leaves filtered ones out, ``weighted_kappa``
    estimates it for the dataset. ``answering`` has, by label, the estimated share of passages that answer their query:
    the precision of relabelling, that of filtering, and the rate of false negatives among the kept.
    ``between_annotators`` has the kappa of each pair of files, in the order in which they were named. ``notes`` says
    what is not as it should be.
    """

    kappa: Agreement
    relabelled_kappa: Agreement
    weighted_kappa: Agreement
    answering: Mapping[str, Agreement]
    strata: Sequence[StratumAnswers]
    between_annotators: Mapping[tuple[int, int], Agreement]
    annotators: int
    unanswered: int
    date: str
    notes: Sequence[str] = ()

    @property
    def rows(self) -> int:
        """How many pairs were judged yes or no."""
        return self.kappa.rows

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` says of the audit."""
        return {
            "kappa": self.kappa.value,
            "low": self.kappa.low,
            "high": self.kappa.high,
            "rows": self.rows,
            "date": self.date,
            "confidence": CONFIDENCE,
            "annotators": self.annotators,
            "unanswered": self.unanswered,
            "relabelled_kappa": asdict(self.relabelled_kappa),
            "weighted_kappa": asdict(self.weighted_kappa),
            "answering": {label: asdict(share) for label, share in self.answering.items()},
            "between_annotators": [
                {"annotators": list(pair), **asdict(kappa)} for pair, kappa in self.between_annotators.items()
            ],
            "strata": [asdict(one) for one in self.strata],
        }


def summarize(
    annotators: Sequence[Mapping[int, str]],
    populations: Mapping[Stratum, int],
    strata: Mapping[int, Stratum],
    *,
    seed: int = 0,
) -> Audit:
    """The agreement of answers with labels, by stratum and as a whole.

    Args:
        annotators: For each, the verdict on each pair.
        populations: The size of every stratum.
        strata: The stratum of each pair.
        seed: Of the bootstrap.

    Raises:
        InputError: no pair has a verdict on which the annotators agree.
        MissingDependencyError: scikit-learn is not installed.
    """
    pooled = {code: _pooled([said.get(code, "") for said in annotators]) for code in sorted(set().union(*annotators))}
    tally: dict[Stratum, Counter[str]] = defaultdict(Counter)
    for code, verdict in pooled.items():
        tally[strata[code]][verdict] += 1
    judged = []
    for (label, subset), population in populations.items():
        given = {verdict: tally[label, subset][verdict] for verdict in (YES, NO, UNSURE)}
        if any(given.values()):
            judged.append(StratumAnswers(label=label, subset=subset, population=population, **given))
    answered = [one for one in judged if one.yes + one.no]
    if not answered:
        raise InputError("No pair was judged yes or no by a majority of the annotators; nothing can be compared.")
    kappa = _kappa(answered, seed)
    return Audit(
        kappa=kappa,
        relabelled_kappa=_kappa([one for one in answered if one.label != FILTERED.label], seed),
        weighted_kappa=_kappa(answered, seed, weighted=True),
        answering={label: _share([one for one in answered if one.label == label]) for label in LABELS},
        strata=judged,
        between_annotators={
            (i + 1, j + 1): _kappa_between(annotators[i], annotators[j], seed)
            for i, j in combinations(range(len(annotators)), 2)
        },
        annotators=len(annotators),
        unanswered=sum(not verdict for verdict in pooled.values()),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        notes=_notes(answered, populations, kappa),
    )


def _notes(answered: Sequence[StratumAnswers], populations: Mapping[Stratum, int], kappa: Agreement) -> tuple[str, ...]:
    notes = []
    there = {(one.label, one.subset) for one in answered}
    if without := [stratum for stratum, size in populations.items() if size and stratum not in there]:
        left = sum(populations[stratum] for stratum in without)
        named = ", ".join(f"{label} of {subset}" for label, subset in without[:3]) + (" …" if len(without) > 3 else "")
        notes.append(
            f"{len(without):,} strata have no judged pair ({named}): the estimates leave out {left:,} of "
            f"{sum(populations.values()):,} passages. Answer more rows, or draw more with --rows."
        )
    if kappa.value is None:
        notes.append("Kappa is not defined: all answers and all labels are the same.")
    elif kappa.low == kappa.high:
        notes.append("Every resample gives the same kappa: so few rows, or so equal ones, tell no interval.")
    return tuple(notes)


def _pooled(verdicts: Sequence[str]) -> str:
    """What most say; unsure where as many say yes as no, or only that."""
    yes, no = verdicts.count(YES), verdicts.count(NO)
    if yes != no:
        return YES if yes > no else NO
    return UNSURE if yes or UNSURE in verdicts else ""


def _kappa(judged: Sequence[StratumAnswers], seed: int, *, weighted: bool = False) -> Agreement:
    """Cohen's kappa of answers and labels; the interval is of a bootstrap within the strata.

    Of a stratum only the number that says yes differs between resamples, and that is binomial.
    """
    yes, no = np.array([one.yes for one in judged]), np.array([one.no for one in judged])
    if not len(judged):
        return Agreement()
    size = yes + no
    weights = np.array([one.population for one in judged]) / size if weighted else np.ones(len(judged))
    positive = np.array([one.label != KEPT for one in judged])
    said, times = np.repeat([True, False], len(judged)), np.concatenate([yes * weights, no * weights])
    value = cohen_kappa(np.tile(positive, 2), said, labels=(False, True), sample_weight=times)
    draws = np.random.default_rng(seed).binomial(size, yes / size, (RESAMPLES, len(judged)))
    held, not_held = draws * weights, (size - draws) * weights
    resampled = kappas_of(
        held[:, positive].sum(1), not_held[:, positive].sum(1), held[:, ~positive].sum(1), not_held[:, ~positive].sum(1)
    )
    return _estimate(value, resampled, int(size.sum()))


def _kappa_between(one: Mapping[int, str], other: Mapping[int, str], seed: int) -> Agreement:
    """Cohen's kappa of two annotators on the pairs that both judged."""
    pairs = Counter((one[code], other[code]) for code in one if {one[code], other.get(code)} <= {YES, NO})
    total = sum(pairs.values())
    if not total:
        return Agreement()
    cells = [(YES, YES), (YES, NO), (NO, YES), (NO, NO)]
    counts = np.array([pairs[cell] for cell in cells])
    ours, theirs = np.array(cells).T == YES
    value = cohen_kappa(ours, theirs, labels=(False, True), sample_weight=counts)
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, RESAMPLES)
    return _estimate(value, kappas_of(*drawn.T), total)


def _estimate(value: float | None, resampled: Any, rows: int) -> Agreement:
    defined = resampled[np.isfinite(resampled)]
    if value is None or not len(defined):
        return Agreement(value=value, rows=rows)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Agreement(value=value, low=float(low), high=float(high), rows=rows)


def _share(judged: Sequence[StratumAnswers]) -> Agreement:
    """The share of a label's passages that answer: a weighted mean over the subsets.

    The interval is Wilson's (1927), which is none of zero width where all answers are equal, for the number of rows
    that an unweighted sample as exact would have (Kish 1965).
    """
    if not judged:
        return Agreement()
    size = np.array([one.yes + one.no for one in judged])
    weights = np.array([one.population for one in judged], dtype=float)
    weights /= weights.sum()
    share = float((weights * np.array([one.yes for one in judged]) / size).sum())
    n = 1 / float((weights**2 / size).sum())
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Agreement(value=share, low=low, high=high, rows=int(size.sum()))


def cohen_kappa(one: Any, other: Any, *, sample_weight: Any = None, **options: Any) -> float | None:
    """Cohen's kappa (Educational and Psychological Measurement 20, 1960) of two lists of labels.

    None where all are one and the same, so that there is no chance to disagree; options are those of scikit-learn.

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
    kappa = float(cohen_kappa_score(one, other, sample_weight=sample_weight, **options))
    return None if math.isnan(kappa) else kappa


def kappas_of(both: Any, first: Any, second: Any, neither: Any) -> Any:
    """The kappas of many tables of two by two at once; not a number where it is not defined."""
    total = both + first + second + neither
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (both + neither) / total
        chance = ((both + first) * (both + second) + (second + neither) * (first + neither)) / total**2
        return (observed - chance) / (1 - chance)
