"""From judged pairs to measures: finding false negatives, agreement, what evidence tells, and intervals over queries.

Intervals are percentiles of a bootstrap that draws whole queries with replacement (Efron, Annals of Statistics 7,
1979), since the passages of one query are not independent. Everything here is a pure function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from arhn_datasets.checks.agreement import RELABELLED, cohen_kappa, kappas_of
from arhn_datasets.checks.pairs import EITHER, GRADE, QUALITIES, RANK, SIGNALS, STATUS, Pairs
from arhn_datasets.rows.arrow import Mask, Numbers
from arhn_datasets.rows.records import FILTERED

Interval = list[float]
"""From low to high."""

WAYS = (RELABELLED, FILTERED.label, EITHER)
RATES = ("precision", "recall", "f1")
LEVEL = (2.5, 97.5)  # percentiles of the samples: an interval of 95 %

_BLOCK = 4_000_000  # drawn numbers at once


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How well false negatives were found in one way; a measure is None where nothing defines it.

    ``moved`` source negatives went that way, ``found`` of them are false negatives. ``ci`` holds 95 % intervals of the
    three measures, by name.
    """

    moved: int
    found: int
    precision: float | None
    recall: float | None
    f1: float | None
    ci: Mapping[str, Interval | None]

    @property
    def lost_per_found(self) -> float | None:
        """True negatives that went the same way for each false negative."""
        return (self.moved - self.found) / self.found if self.found else None

    def to_json(self) -> dict[str, Any]:
        """Precision, recall, F1 and their intervals."""
        return {**{name: getattr(self, name) for name in RATES}, "ci": dict(self.ci)}


@dataclass(frozen=True, kw_only=True)
class SnippetQuality:
    """Snippets of relevant passages beside known answers: means over ``pairs``, 0 where there is no snippet.

    ``exact``, ``contains`` and ``f1`` compare normalised words as SQuAD's evaluation does (Rajpurkar et al.,
    arXiv 1606.05250, section 6.1), with the best of several answers. ``offsets`` is the share of an answer's characters
    in the passage that the snippet covers, where the answer stands there word for word.
    """

    pairs: int
    grounded: float | None
    exact: float | None
    contains: float | None
    f1: float | None
    offsets: float | None
    ci: Mapping[str, Interval | None]

    def to_json(self) -> dict[str, Any]:
        """Every measure."""
        return {"pairs": self.pairs, **{name: getattr(self, name) for name in QUALITIES}, "ci": dict(self.ci)}


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one subset, or of all rows; one is None where nothing defines it.

    Attributes:
        found: A :class:`Finding` for ``relabelled``, ``filtered`` and ``either``.
        true_negatives_lost: The share of the true negatives that left the negatives, either way.
        kappa: Cohen's kappa (Educational and Psychological Measurement 20, 1960). With a truth of two levels
            unweighted, between relevant and left the negatives; with a graded one between its grades and kept,
            filtered, relabelled as three grades on the same scale, with quadratic weights (``kappa_weights``).
        kappas: Kappas by name: unweighted ones of the three ways; of a graded truth ``linear`` and ``quadratic``, and
            ``grades`` (quadratic) between its grades and an annotator's.
        auc: Area under the ROC curve of the first of ``aucs`` that there is.
        aucs: How well evidence tells relevant from irrelevant passages, judged positives among them: ``status`` (a
            snippet or no answer), ``coverage`` (the number that the lexical baseline leaves), ``rank``, ``scores``,
            ``verdicts``, ``grades``.
        snippets: See :class:`SnippetQuality`; None where no answers are known.
        counts: Of queries and passages; what was left out is among them.
        ci: Intervals of ``true_negatives_lost``, ``kappa``, and ``auc`` where that is of ``status``.
    """

    found: Mapping[str, Finding]
    true_negatives_lost: float | None
    kappa: float | None
    kappa_weights: str | None
    kappas: Mapping[str, float | None]
    auc: float | None
    aucs: Mapping[str, float | None]
    snippets: SnippetQuality | None
    counts: Mapping[str, int]
    ci: Mapping[str, Interval | None]

    @property
    def relabelled(self) -> Finding:
        """Negatives that became positives."""
        return self.found[RELABELLED]

    @property
    def filtered(self) -> Finding:
        """Negatives that left without becoming positives."""
        return self.found[FILTERED.label]

    @property
    def either(self) -> Finding:
        """Negatives that left, either way."""
        return self.found[EITHER]

    def to_json(self) -> dict[str, Any]:
        """Every measure; None for those that nothing defines, never a NaN."""
        return {
            **{name: finding.to_json() for name, finding in self.found.items()},
            "true_negatives_lost": self.true_negatives_lost,
            "true_negatives_lost_per_false_negative": {n: finding.lost_per_found for n, finding in self.found.items()},
            **{name: getattr(self, name) for name in ("kappa", "kappa_weights", "kappas", "auc", "aucs")},
            "snippets": None if self.snippets is None else self.snippets.to_json(),
            "counts": dict(self.counts),
            "ci": dict(self.ci),
        }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision and recall of finding false negatives, at every threshold of one signal from the lowest on."""

    name: str
    precision: Sequence[float]
    recall: Sequence[float]


class Bootstrap(NamedTuple):
    """How intervals are made: of how many samples, 0 for none, and from which seed."""

    samples: int
    seed: int

    def measured(
        self, query: Any, columns: Sequence[Any], measure: Callable[[Numbers], Mapping[str, Numbers]]
    ) -> tuple[dict[str, Any], dict[str, Interval | None]]:
        """Measures of sums over pairs, with intervals over queries; ``measure`` takes a row of sums for each sample."""
        number, inverse = np.unique(query, return_inverse=True)
        sums: Numbers = np.column_stack(
            [np.bincount(inverse, weights=np.asarray(column, np.float64), minlength=len(number)) for column in columns]
        )
        point = {name: _defined(values[0]) for name, values in measure(sums.sum(axis=0, keepdims=True)).items()}
        ci: dict[str, Interval | None] = dict.fromkeys(point)
        if self.samples and len(number) > 1:
            for name, values in measure(resampled(sums, self.samples, self.seed)).items():
                defined = values[~np.isnan(values)]
                if point[name] is not None and len(defined):
                    ci[name] = np.percentile(defined, LEVEL).tolist()
        return point, ci

    def interval(self, query: Any, columns: Sequence[Any], measure: Callable[[Numbers], Numbers]) -> Interval | None:
        """The interval of one measure of sums over pairs."""
        return self.measured(query, columns, lambda sums: {"one": measure(sums)})[1]["one"]


def resampled(sums: Numbers, samples: int, seed: int) -> Numbers:
    """The sums over as many queries as there are, drawn with replacement: (queries, columns) to (samples, columns).

    Queries with the same values are drawn together, as one that has their number as its weight.
    """
    generator = np.random.default_rng(seed)
    queries = len(sums)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    if len(kinds) * 8 > queries:
        drawn = (generator.integers(0, queries, queries) for _ in range(samples))
        return np.array([np.bincount(numbers, minlength=queries) @ sums for numbers in drawn])
    block = max(1, _BLOCK // len(kinds))
    sizes = [min(block, samples - start) for start in range(0, samples, block)]
    return np.concatenate([generator.multinomial(queries, counts / queries, size=size) @ kinds for size in sizes])


def measures_of(
    pairs: Pairs, counts: Mapping[str, int], levels: Sequence[float] | None, bootstrap: Bootstrap
) -> Measures:
    """All measures of some pairs, undecided ones among them; ``counts`` is what else was counted.

    ``levels`` are the grades of the truth, ascending, where it is a graded one.
    """
    undecided = int(((pairs.relevant < 0) & pairs.negative).sum())
    pairs = pairs.where(pairs.relevant >= 0)
    negatives, positives = pairs.where(pairs.negative), pairs.where(~pairs.negative)
    found, lost, lost_ci = findings(negatives, bootstrap)
    kappa, weights, kappas, kappa_ci = _agreement(pairs, negatives, levels, bootstrap)
    aucs = {name: auc for name in SIGNALS if (auc := _auc(pairs, name)) is not None}
    false = negatives.relevant == 1
    return Measures(
        found=found,
        true_negatives_lost=lost,
        kappa=kappa,
        kappa_weights=weights,
        kappas=kappas,
        auc=next(iter(aucs.values()), None),
        aucs=aucs,
        snippets=_snippets(pairs, bootstrap),
        counts={
            "queries": len(np.unique(negatives.query)),
            "judged": len(false),
            "false_negatives": int(false.sum()),
            "true_negatives": int((~false).sum()),
            **{name: finding.moved for name, finding in found.items()},
            "undecided": undecided,
            "positives_judged": len(positives.relevant),
            "positives_relevant": int((positives.relevant == 1).sum()),
            "evidence_failed": int(np.isnan(pairs.signals[STATUS]).sum()) if STATUS in aucs else 0,
            **counts,
        },
        ci={
            "true_negatives_lost": lost_ci,
            "kappa": kappa_ci,
            "auc": _status_interval(pairs, bootstrap) if STATUS in aucs else None,
        },
    )


def findings(negatives: Pairs, bootstrap: Bootstrap) -> tuple[dict[str, Finding], float | None, Interval | None]:
    """How well each way found false negatives, and the share of the true ones that was lost, with its interval."""
    false, moved = negatives.relevant == 1, negatives.moved
    columns = [false, ~false]
    for way in WAYS:
        columns += [moved[way], moved[way] & false]

    def measured(sums: Numbers) -> dict[str, Numbers]:
        wanted, true = sums[:, 0], sums[:, 1]
        named: dict[str, Numbers] = {}
        for at, way in enumerate(WAYS):
            went, right = sums[:, 2 + 2 * at], sums[:, 3 + 2 * at]
            named[f"{way} precision"] = _ratio(right, went)
            named[f"{way} recall"] = _ratio(right, wanted)
            named[f"{way} f1"] = _ratio(2 * right, went + wanted)
            named[f"{way} lost"] = _ratio(went - right, true)
        return named

    point, ci = bootstrap.measured(negatives.query, columns, measured)
    found = {
        way: Finding(
            moved=int(moved[way].sum()),
            found=int((moved[way] & false).sum()),
            **{name: point[f"{way} {name}"] for name in RATES},
            ci={name: ci[f"{way} {name}"] for name in RATES},
        )
        for way in WAYS
    }
    return found, point[f"{EITHER} lost"], ci[f"{EITHER} lost"]


def curve_of(pairs: Pairs, name: str) -> Curve | None:
    """Precision and recall over one signal; None where it has fewer than three values, or nothing is to be found."""
    from sklearn.metrics import precision_recall_curve

    false, signal = _with_signal(pairs.where(pairs.negative & (pairs.relevant >= 0)), name)
    if len(np.unique(signal)) < 3 or not false.any():
        return None
    precision, recall, _ = precision_recall_curve(false, signal)
    return Curve(name=name, precision=precision[:-1].tolist(), recall=recall[:-1].tolist())


def levels_of(grades: Numbers) -> list[float] | None:
    """The grades of a graded truth: three or more, and one for every decided pair."""
    levels = np.unique(grades)
    return None if np.isnan(levels).any() or len(levels) < 3 else [float(level) for level in levels]


def _agreement(
    pairs: Pairs, negatives: Pairs, levels: Sequence[float] | None, bootstrap: Bootstrap
) -> tuple[float | None, str | None, dict[str, float | None], Interval | None]:
    query, false, left = negatives.query, negatives.relevant == 1, negatives.moved[EITHER]
    kappas = {way: cohen_kappa(false, moved) for way, moved in negatives.moved.items()}
    columns: list[Any] = [false & left, false & ~left, ~false & left, ~false & ~left]
    if levels is None:
        return kappas[EITHER], None, kappas, bootstrap.interval(query, columns, lambda sums: kappas_of(*sums.T))
    # Kept, filtered and relabelled, and the grades of the truth, spread over one scale of whole numbers.
    top = math.lcm(2, len(levels) - 1)
    theirs = np.searchsorted(levels, negatives.grade) * (top // (len(levels) - 1))
    ours = np.where(negatives.relabelled, top, np.where(negatives.filtered, top // 2, 0))
    kappas |= {w: cohen_kappa(theirs, ours, weights=w, labels=range(top + 1)) for w in ("linear", "quadratic")}
    graded = pairs.where(~np.isnan(pairs.signals[GRADE]))
    if len(graded.relevant):
        given = graded.signals[GRADE].astype(int)
        kappas[GRADE] = cohen_kappa(graded.grade.astype(int), given, weights="quadratic")
    columns = [(theirs - ours) ** 2, theirs, theirs**2, ours, ours**2, np.ones(len(ours))]
    return kappas["quadratic"], "quadratic", kappas, bootstrap.interval(query, columns, _quadratic_kappa)


def _quadratic_kappa(sums: Numbers) -> Numbers:
    """Chance's mean squared difference follows from means of each side and of its squares."""
    apart, one, one_squared, other, other_squared, whole = sums.T
    chance = _ratio(one_squared + other_squared, whole) - 2 * _ratio(one, whole) * _ratio(other, whole)
    return 1 - _ratio(_ratio(apart, whole), chance)


def _with_signal(pairs: Pairs, name: str) -> tuple[Mask, Numbers]:
    """Relevance and the signal of the pairs that have one."""
    signal = pairs.signals[name]
    if np.isnan(signal).all():
        return np.zeros(0, bool), np.zeros(0)
    if name == RANK:  # what is no candidate comes behind all that are
        signal = np.where(np.isnan(signal), np.nanmin(signal) - 1, signal)
    there = ~np.isnan(signal)
    return pairs.relevant[there] == 1, signal[there]


def _auc(pairs: Pairs, name: str) -> float | None:
    from sklearn.metrics import roc_auc_score

    relevant, signal = _with_signal(pairs, name)
    return None if len(np.unique(relevant)) < 2 else _defined(roc_auc_score(relevant, signal))


def _status_interval(pairs: Pairs, bootstrap: Bootstrap) -> Interval | None:
    judged = pairs.where(~np.isnan(pairs.signals[STATUS]))
    relevant, grounded = judged.relevant == 1, judged.signals[STATUS] == 1

    def auc(sums: Numbers) -> Numbers:
        hits, wanted, alarms, others = sums.T
        return (_ratio(hits, wanted) + 1 - _ratio(alarms, others)) / 2

    return bootstrap.interval(judged.query, [relevant & grounded, relevant, ~relevant & grounded, ~relevant], auc)


def _snippets(pairs: Pairs, bootstrap: Bootstrap) -> SnippetQuality | None:
    asked = pairs.where((pairs.relevant == 1) & ~np.isnan(pairs.qualities["grounded"]))
    if not len(asked.query):
        return None
    columns = [asked.qualities[name] for name in QUALITIES]

    def measured(sums: Numbers) -> dict[str, Numbers]:
        return {name: _ratio(sums[:, i], sums[:, len(QUALITIES) + i]) for i, name in enumerate(QUALITIES)}

    sums = [np.nan_to_num(column) for column in columns] + [~np.isnan(column) for column in columns]
    point, ci = bootstrap.measured(asked.query, sums, measured)
    return SnippetQuality(pairs=len(asked.query), **point, ci=ci)


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    """NaN where there is nothing to divide by."""
    ratio: Numbers = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole != 0)
    return ratio


def _defined(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
