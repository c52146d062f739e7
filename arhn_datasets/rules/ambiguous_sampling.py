"""Ambiguous negatives of SimANS: a sample around the score of the positive."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.rows.arrow import Codes, Numbers
from arhn_datasets.rows.options import Option, check_integer, check_numbers
from arhn_datasets.rows.records import QUERY_ID
from arhn_datasets.rules.by_score import ScoreRule, beyond
from arhn_datasets.rules.moves import Evidence, Names
from arhn_datasets.rules.rule import BELOW, NOTHING, Decision


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
        min_negatives: As of :class:`Relabel`, like ``on_shortage``; nothing becomes a positive, so none is in excess.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no scores, or they do not fit the passages.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = (*Decision.OPTIONAL, QUERY_ID)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "a": Option(help="how sharp the peak of the probabilities is", metavar="NUMBER"),
        "b": Option(help="where the peak is, from the positive's score on", metavar="NUMBER"),
        "num_hard_negatives": Option(help="how many negatives are drawn", metavar="NUMBER"),
        "seed": Option(help="of the sample", metavar="NUMBER"),
        **ScoreRule.OPTIONS,
    }
    label = "SimANS"

    a: float = 1.0
    b: float = 0.0
    num_hard_negatives: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "a", least=0)
        check_numbers(self, "b")
        check_integer("num_hard_negatives", self.num_hard_negatives, least=1)
        check_integer("seed", self.seed)

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
                gumbel = -np.log(-np.log(np.maximum(uniform, 5e-324)))
                keys = self._logit(scores[asked], references[rows[asked]]) + gumbel
            verdicts[asked[beyond(self.num_hard_negatives, keys, rows[asked])]] = BELOW
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
