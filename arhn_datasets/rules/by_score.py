"""Known repairs of hard negatives by scores: rules over score columns, in the shape of :class:`~arhn_datasets.Relabel`.

The scores are those of :class:`arhn.Scores <arhn_datasets.Scores>`, or any ``positive_scores`` and ``negative_scores``
in which higher is more relevant. A negative without a score, null or not a finite number, stays where it is, and so do
all negatives of a row in which a rule that compares with the positives finds no score of one. What a rule takes out of
the negatives stands in ``filtered_passages``, with its evidence: :class:`arhn.Revert <arhn_datasets.Revert>` brings it
back.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.arrow import Codes, Integers, Mask, Numbers, extremes, starts_of, within
from arhn_datasets.rows.options import check_integer
from arhn_datasets.rows.records import QUERY_ID
from arhn_datasets.rules.arhn import ABOVE, BELOW, NOTHING, Decision, Relabel, states_of
from arhn_datasets.rules.moves import Evidence, Names

REFERENCE_SCORES = ("min", "max", "mean")
TOPK_ABS, TOPK_MARGIN_POS, TOPK_PERC_POS = "TopK-Abs", "TopK-MarginPos", "TopK-PercPos"
METHODS = (TOPK_ABS, TOPK_MARGIN_POS, TOPK_PERC_POS)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRule(Decision):
    """A rule that compares the scores of the negatives with that of the positives.

    Args:
        reference: With several positives that have a score, their ``"min"``, ``"max"`` or ``"mean"``.
    """

    reference: str = "min"

    def __post_init__(self) -> None:
        self._check_choices({"reference": REFERENCE_SCORES})
        super().__post_init__()

    @property
    def evidence_kinds(self) -> tuple[str, ...]:
        """Scores."""
        return ("scores",)

    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The states of the references, ``supported`` or ``unknown``, and the verdicts.

        A verdict is ``above`` (too much like a positive), ``below`` (not chosen) or ``nothing``.
        """
        references = _REFERENCES[self.reference](positives.of("scores"), positives.rows, len(positives.counts))
        return states_of(~np.isnan(references)), self.verdicts(references, negatives, names)

    @abstractmethod
    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """The verdicts on negatives by their scores and the reference of each row; NaN is no score."""

    @property
    def _called(self) -> str:
        # The name of all rules is that of the stage, which nobody called.
        return f"{'arhn.' if type(self) in RULES.values() else ''}{type(self).__name__}"

    def _advice(self, missing: Sequence[str]) -> str:
        if all(column.endswith("_scores") for column in missing):
            return "Run arhn.Scores first: ds.map(arhn.Scores(model)), or with columns= or field= for scores of yours."
        return super()._advice(missing)


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
        min_negatives: As of :class:`Relabel`, like the three after it.
        on_shortage: What becomes of a row with fewer.
        max_relabeled: Of no use here: nothing becomes a positive.
        on_excess: The same.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    method: str = TOPK_PERC_POS
    threshold: float = 0.7
    absolute_margin: float = 0.05
    percentage_margin: float = 0.95
    top_k: int | None = None

    def __post_init__(self) -> None:
        self._check_choices({"method": METHODS})
        super().__post_init__()
        _check_numbers(self, "threshold", "absolute_margin", "percentage_margin")
        _check_share(self, "percentage_margin")
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
        return _share_of(reference, self.percentage_margin)

    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """``above`` over the limit, ``below`` what is not among the ``top_k``."""
        scores, rows = negatives.of("scores"), negatives.rows
        limits = self.limit(references)[rows]
        verdicts = np.where(scores > limits, ABOVE, NOTHING)
        if self.top_k is not None:
            verdicts[_beyond(self.top_k, scores, rows, scores <= limits)] = BELOW
        return verdicts


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
        min_negatives: As of :class:`Relabel`, like the three after it.
        on_shortage: What becomes of a row with fewer.
        max_relabeled: Of no use here: nothing becomes a positive.
        on_excess: The same.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    margin: float = 0.95
    slope: float = 0.0
    certain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "margin", "slope", "certain")
        _check_share(self, "margin")
        if self.slope < 0:
            raise ConfigurationError(f"slope is {self.slope}; a number from 0 was expected.")

    @property
    def label(self) -> str:
        """The rule."""
        return "AdaptiveMargin"

    def limit(self, reference: Any) -> Any:
        """The highest score of a negative that stays, of one reference or of an array; NaN where it cannot be told."""
        return _share_of(reference, self.margin - self.slope * np.maximum(0.0, self.certain - reference))

    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """``above`` over the limit."""
        return np.where(negatives.of("scores") > self.limit(references)[negatives.rows], ABOVE, NOTHING)


@dataclass(frozen=True, kw_only=True, eq=False)
class AmbiguousSampling(ScoreRule):
    """SimANS (arXiv 2210.11773, section 4): sample negatives that score near the positive.

    A negative of the score ``s`` is drawn with a probability proportional to ``exp(-a (s - s_pos - b)^2)``: those far
    over the positive may be false negatives, those far under it teach little. The paper samples anew for each training
    step, with replacement in its published code; a dataset holds one sample, so it is drawn here without replacement,
    by the Gumbel top-k rule. The same row, by its ``query_id``, and seed give the same sample in any dataset.

    ``a`` has to fit the scores: the paper's are inner products that differ by whole units, those of a cosine differ by
    some hundredths and want an ``a`` of hundreds. Negatives that were not drawn stand in ``filtered_passages``.

    Args:
        a: How sharp the peak of the probabilities is, from 0 (uniform).
        b: Where the peak is, from the positive's score on.
        num_hard_negatives: How many are drawn; a row with no more than these stays as it is.
        seed: Of the sample.
        reference: With several positives that have a score, their ``"min"``, ``"max"`` or ``"mean"``.
        min_negatives: As of :class:`Relabel`, like the three after it.
        on_shortage: What becomes of a row with fewer.
        max_relabeled: Of no use here: nothing becomes a positive.
        on_excess: The same.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = (*Decision.OPTIONAL, QUERY_ID)

    a: float = 1.0
    b: float = 0.0
    num_hard_negatives: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "a", "b")
        check_integer("num_hard_negatives", self.num_hard_negatives, least=1)
        check_integer("seed", self.seed)
        if self.a < 0:
            raise ConfigurationError(f"a is {self.a}; a number from 0 was expected.")

    @property
    def label(self) -> str:
        """The rule."""
        return "SimANS"

    def probabilities(self, reference: float, scores: Sequence[float]) -> list[float]:
        """The probability of each negative to be drawn first; they sum up to 1."""
        logits = [self._logit(score, reference) for score in scores]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        return [weight / sum(weights) for weight in weights]

    def verdicts(self, references: Numbers, negatives: Evidence, names: Names) -> Codes:
        """``below`` what was not drawn."""
        scores, rows = negatives.of("scores"), negatives.rows
        known = ~np.isnan(scores) & ~np.isnan(references)[rows]
        numbers = np.bincount(rows[known], minlength=len(references))
        drawn = numbers > self.num_hard_negatives
        asked = np.flatnonzero(known & drawn[rows])
        verdicts = np.full(len(scores), NOTHING)
        if len(asked):
            which = np.flatnonzero(drawn)
            named = zip(names(which), numbers[which].tolist(), strict=True)
            uniform = np.concatenate([self._uniform(name, number) for name, number in named])
            with np.errstate(over="ignore"):  # the hopeless ones
                keys = self._logit(scores[asked], references[rows[asked]]) + _gumbel(uniform)
            verdicts[asked[_beyond(self.num_hard_negatives, keys, rows[asked])]] = BELOW
        return verdicts

    def _uniform(self, name: Any, number: int) -> Numbers:
        """As many numbers as ``random.Random.random`` would give, one after the other."""
        # Not numpy's generators: what those give may change with its version.
        bits = random.Random(f"{self.seed} {name}").getrandbits(64 * number)
        words = np.frombuffer(bits.to_bytes(8 * number, "little"), "<u4")
        uniform: Numbers = ((words[0::2] >> 5) * 67108864.0 + (words[1::2] >> 6)) / 9007199254740992.0
        return uniform

    def _logit(self, score: Any, reference: Any) -> Any:
        distance = score - reference - self.b
        return -self.a * distance * distance


RULES: Mapping[str, type[Decision]] = {
    "Relabel": Relabel,
    "PositiveAware": PositiveAware,
    "AdaptiveMargin": AdaptiveMargin,
    "AmbiguousSampling": AmbiguousSampling,
}
"""Every rule by the name under which ``run.json`` has it."""


def rule_of(parameters: Mapping[str, Any]) -> Decision:
    """The rule of the ``relabel`` parameters in ``run.json``; without a name that of ARHN.

    Raises:
        ConfigurationError: there is no such rule, or a value is out of range.
        TypeError: the rule has no such option.
    """
    options = dict(parameters)
    name = options.pop("rule", "Relabel")
    if name not in RULES:
        raise ConfigurationError(f"The rule is {name!r}; one of {', '.join(RULES)} was expected.")
    return RULES[name](**options)


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


_REFERENCES: Mapping[str, Callable[[Numbers, Integers, int], Numbers]] = {
    "min": partial(extremes, largest=False),
    "max": partial(extremes, largest=True),
    "mean": _means,
}


def _beyond(most: int, keys: Numbers, rows: Integers, among: Mask | None = None) -> Integers:
    """Where a row's keys stand that are not the ``most`` highest, the earlier of equal ones first."""
    places = np.arange(len(keys)) if among is None else np.flatnonzero(among)
    places = places[np.lexsort((-keys[places], rows[places]))]
    numbers = np.bincount(rows[places]) if len(places) else np.zeros(0, np.int64)
    return places[within(numbers) >= most]


def _share_of(score: Any, share: Any) -> Any:
    """``score - |score| (1 - share)``, exactly ``score * share`` where it is positive."""
    return score * np.where(score >= 0, share, 2.0 - share)


def _gumbel(uniform: Numbers) -> Numbers:
    gumbel: Numbers = -np.log(-np.log(np.maximum(uniform, 5e-324)))
    return gumbel


def _check_numbers(rule: ScoreRule, *names: str) -> None:
    for name in names:
        value = getattr(rule, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigurationError(f"{name} is {value!r}; a finite number was expected.")


def _check_share(rule: ScoreRule, name: str) -> None:
    if not 0 <= getattr(rule, name) <= 1:
        raise ConfigurationError(f"{name} is {getattr(rule, name)}; a share from 0 to 1 was expected.")
