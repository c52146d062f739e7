"""Rules over scores: the hand-worked examples of their papers, and what they refuse."""

from __future__ import annotations

import math
import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rules.positive_aware import METHODS
from tests.rules.drawn import finite
from tests.rules.test_rule import moved


def row_of(positives, negatives, **columns):
    """A row with scores and nothing else."""
    row = {"query_id": "q", "query": "why?", "other": [1, None]}
    for label, values in (("positive", positives), ("negative", negatives)):
        texts = [f"{label} {i}" for i in range(len(values))]
        row[f"{label}_passages"] = [{"docid": text, "title": "", "text": text} for text in texts]
        row[f"{label}_scores"] = list(values)
    return {**row, **columns}


def kept(row):
    """The places of the negatives that stayed."""
    return [position for _, position in moved(row)["negative"]]


def scored(rule, positives, negatives):
    """The places of the negatives that stay, whatever the guards."""
    return kept(rule.with_options(min_negatives=0)(row_of(positives, negatives)))


# -- each rule, by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "positives", "stay"),
    [
        ({"method": "TopK-Abs", "threshold": 0.7}, [0.8], [2, 3, 4]),
        ({"method": "TopK-Abs", "threshold": 0.7}, [], [2, 3, 4]),
        ({"method": "TopK-MarginPos", "absolute_margin": 0.05}, [0.8], [2, 3, 4]),
        ({"method": "TopK-MarginPos", "absolute_margin": 0.0}, [0.8], [1, 2, 3, 4]),
        ({"method": "TopK-PercPos", "percentage_margin": 0.95}, [0.8], [1, 2, 3, 4]),
        ({"method": "TopK-PercPos", "percentage_margin": 0.9}, [0.8], [2, 3, 4]),
        ({"method": "TopK-PercPos", "percentage_margin": 0.5}, [0.8], [3, 4]),
        ({"method": "TopK-PercPos", "top_k": 2}, [0.8], [1, 2]),
        ({"method": "TopK-Abs", "threshold": 0.7, "top_k": 1}, [0.8], [2]),
        ({"reference": "min", "percentage_margin": 1.0}, [0.8, 0.5], [3, 4]),
        ({"reference": "max", "percentage_margin": 1.0}, [0.8, 0.5], [1, 2, 3, 4]),
        ({"reference": "mean", "percentage_margin": 1.0}, [0.8, 0.5], [3, 4]),
        ({}, [None, math.nan], [0, 1, 2, 3, 4]),
        ({}, [None, 0.8], [1, 2, 3, 4]),
        ({}, [], [0, 1, 2, 3, 4]),
    ],
)
def test_positive_aware_by_hand(options, positives, stay):
    """NV-Retriever's three limits on negatives of 0.9, 0.76, 0.7, 0.4 and 0.1; a tie stays."""
    assert scored(arhn.PositiveAware(**options), positives, [0.9, 0.76, 0.7, 0.4, 0.1]) == stay


def test_a_negative_score_of_the_positive_is_no_higher_limit():
    """95 % of -2 would be -1.9, above the positive: the limit is -2.1."""
    rule = arhn.PositiveAware(method="TopK-PercPos", percentage_margin=0.95)
    assert scored(rule, [-2.0], [-1.95, -2.0, -2.05, -2.1, -2.2]) == [3, 4]
    assert rule.limit(-2.0) == pytest.approx(-2.1)
    assert scored(rule, [0.0], [0.01, 0.0, -0.01]) == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_not_there_move_nothing(method):
    """A negative of null, NaN or infinite score stays, and takes no place among the top k."""
    rule = arhn.PositiveAware(method=method, top_k=1)
    assert scored(rule, [0.8], [None, math.nan, math.inf, 0.5, 0.4]) == [0, 1, 2, 3]
    assert scored(rule, [0.8], [None]) == [0]
    assert scored(rule, [0.8], [0.5]) == [0]
    assert scored(rule, [0.8], []) == []


def test_equal_scores_go_by_their_place():
    """The top k of equal scores are the first ones, in their order."""
    assert scored(arhn.PositiveAware(top_k=2), [0.8], [0.1, 0.5, 0.5, 0.5]) == [1, 2]


def test_adaptive_margin_by_hand():
    """The share of the positive; with a slope it falls with the positive's score; without one it is TopK-PercPos."""
    negatives = [0.79, 0.75, 0.7, 0.5, 0.35, 0.1]
    assert scored(arhn.AdaptiveMargin(), [0.8], negatives) == [1, 2, 3, 4, 5]
    assert scored(arhn.AdaptiveMargin(slope=1.0), [0.8], negatives) == [3, 4, 5]  # 0.8 (0.95 - 0.2) = 0.6
    assert scored(arhn.AdaptiveMargin(slope=1.0), [1.2], negatives) == list(range(6))
    assert scored(arhn.AdaptiveMargin(slope=1.0, certain=0.8), [0.8], negatives) == [1, 2, 3, 4, 5]
    assert arhn.AdaptiveMargin(slope=1.0).limit(-0.5) == pytest.approx(-0.5 * (1 + 0.05 + 1.5))
    assert scored(arhn.AdaptiveMargin(), [None], negatives) == list(range(6))


@settings(deadline=None)
@given(finite, st.lists(finite, max_size=6))
def test_without_a_slope_the_margin_is_a_share(positive, negatives):
    """AdaptiveMargin(margin) and TopK-PercPos are one rule, then."""
    other = arhn.PositiveAware(method="TopK-PercPos", percentage_margin=0.9)
    assert scored(arhn.AdaptiveMargin(margin=0.9), [positive], negatives) == scored(other, [positive], negatives)


def test_probabilities_of_simans_by_hand():
    """exp(-a (s - s_pos - b)^2), normalised."""
    rule = arhn.AmbiguousSampling(a=2.0, b=0.5)
    weights = [math.exp(-2 * (s - 1.0 - 0.5) ** 2) for s in (1.5, 1.0, 0.0)]
    assert rule.probabilities(1.0, [1.5, 1.0, 0.0]) == pytest.approx([w / sum(weights) for w in weights])
    assert arhn.AmbiguousSampling(a=1000.0).probabilities(9.0, [0.0, 0.0]) == [0.5, 0.5]


def test_simans_draws_without_replacement_by_these_probabilities():
    """Over many queries the drawn pairs come as often as successive draws without replacement do."""
    rule, negatives = arhn.AmbiguousSampling(a=3.0, num_hard_negatives=2, min_negatives=0), [0.9, 0.6, 0.3, 0.0]
    p = rule.probabilities(0.8, negatives)
    expected = {(i, j): p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i in range(4) for j in range(i + 1, 4)}
    count = 4000
    rows = pa.Table.from_pylist([{**row_of([0.8], negatives), "query_id": f"q{i}"} for i in range(count)])
    found = Counter(tuple(kept(row)) for row in rule(rows).to_pylist())
    assert set(found) <= set(expected)
    for pair, probability in expected.items():
        sd = math.sqrt(probability * (1 - probability) / count)
        assert abs(found[pair] / count - probability) < 5 * sd


def test_simans_is_seeded_by_the_row():
    """The same query_id and seed draw the same, whatever rows are about; another seed or row draws others."""
    rng = random.Random(1)
    rows = [
        {**row_of([0.5], [rng.random() for _ in range(10)]), "query_id": f"q{i}", "query": f"why {i}?"}
        for i in range(30)
    ]
    rule = arhn.AmbiguousSampling(num_hard_negatives=3)
    found = [kept(rule(row)) for row in rows]
    assert all(len(places) == 3 for places in found)
    assert [kept(row) for row in reversed([rule(row) for row in reversed(rows)])] == found
    assert [kept(rule.with_options(seed=1)(row)) for row in rows] != found
    assert len({tuple(places) for places in found}) > 5
    unnamed = [{**row, "query_id": None} for row in rows]
    assert len({tuple(kept(rule(row))) for row in unnamed}) > 5


@pytest.mark.parametrize(
    ("positives", "negatives", "stay"),
    [
        ([], [0.1, 0.2, 0.3], [0, 1, 2]),
        ([None], [0.1, 0.2, 0.3], [0, 1, 2]),
        ([0.5], [0.1], [0]),
        ([0.5], [0.1, 0.2], [0, 1]),
        ([0.5], [None, 0.1, math.nan, 0.2], [0, 1, 2, 3]),
        ([0.5], [None, -1e200, 0.5, 0.5], [0, 2, 3]),
    ],
)
def test_simans_edges(positives, negatives, stay):
    """No reference, few negatives, or none with a score: nothing moves; the hopeless one is not drawn."""
    assert scored(arhn.AmbiguousSampling(a=1.0, num_hard_negatives=2), positives, negatives) == stay


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arhn.PositiveAware(method="TopK"), "method is 'TopK'; one of TopK-Abs, TopK-MarginPos, TopK-PercPos"),
        (lambda: arhn.PositiveAware(reference="best"), "reference is 'best'; one of min, max, mean"),
        (lambda: arhn.PositiveAware(percentage_margin=1.5), "percentage_margin is 1.5; a share from 0 to 1"),
        (lambda: arhn.PositiveAware(threshold=math.nan), "threshold is nan; a finite number"),
        (lambda: arhn.PositiveAware(top_k=0), "top_k is 0; a whole number from 1, or None, was expected"),
        (lambda: arhn.PositiveAware(top_k="2"), "top_k is '2'; a whole number from 1, or None"),
        (lambda: arhn.PositiveAware(top_k=2.0), "top_k is 2.0; a whole number from 1"),
        (lambda: arhn.AmbiguousSampling(num_hard_negatives="2"), "num_hard_negatives is '2'; a whole number from 1"),
        (lambda: arhn.AmbiguousSampling(num_hard_negatives=1.5), "num_hard_negatives is 1.5; a whole number"),
        (lambda: arhn.AmbiguousSampling(seed="1"), "seed is '1'; a whole number was expected"),
        (lambda: arhn.PositiveAware(on_shortage="raise"), "on_shortage is 'raise'; one of keep, drop, allow"),
        (lambda: arhn.AdaptiveMargin(margin=-0.1), "margin is -0.1; a share"),
        (lambda: arhn.AdaptiveMargin(slope=-1), "slope is -1; a number from 0"),
        (lambda: arhn.AmbiguousSampling(a=-1), "a is -1; a number from 0"),
        (lambda: arhn.AmbiguousSampling(num_hard_negatives=0), "num_hard_negatives is 0"),
        (lambda: arhn.AmbiguousSampling(b=None), "b is None; a finite number"),
        (lambda: arhn.Relabel(evidence="scores"), "evidence is 'scores'; one of snippets, verdicts, grades"),
        (lambda: arhn.Relabel(threshold=0), "threshold is 0; a grade from 1 to 3"),
        (lambda: arhn.Relabel(max_matches=-1), "max_matches is -1; a (whole )?number from 0"),
    ],
)
def test_wrong_options(make, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("rule", [arhn.PositiveAware, arhn.AdaptiveMargin, arhn.AmbiguousSampling])
def test_the_rule_that_lacks_scores_is_named(rule):
    """Not arhn.relabel, which was not called; with what to run first."""
    row = row_of([0.5], [0.9, 0.1])
    name, both = rf"^arhn\.{rule.__name__} needs the columns ", r"\['positive_scores', 'negative_scores'\]"
    with pytest.raises(SchemaError, match=rf"{name}{both}.*Run arhn.Scores first: ds"):
        rule()({c: v for c, v in row.items() if not c.endswith("_scores")})
    with pytest.raises(SchemaError, match=rf"{name}\['query', 'negative_scores'\].*ds.map\(arhn.adapt\)"):
        rule()({c: v for c, v in row.items() if c not in ("query", "negative_scores")})

    class Mine(rule):
        pass

    with pytest.raises(SchemaError, match="^Mine needs the columns"):
        Mine()({"query": "why?"})


def test_wrong_rows():
    """Rows without scores, with too few of them, with those of one side, or with part of what a rule has written."""
    row = row_of([0.5], [0.9, 0.1])
    with pytest.raises(SchemaError, match=r"needs the columns \['positive_scores'.*ds.map\(arhn.Scores\(model\)\)"):
        arhn.PositiveAware()({c: v for c, v in row.items() if not c.endswith("_scores")})
    with pytest.raises(SchemaError, match="'negative_scores' has 1 values for 2 passages"):
        arhn.PositiveAware()({**row, "negative_scores": [0.9]})
    with pytest.raises(SchemaError, match="has the column 'negative_grades' and lack 'positive_grades'|lack 'positive"):
        arhn.PositiveAware()({**row, "negative_grades": [None, None]})
    result = arhn.PositiveAware()(row)
    del result["filtered_scores"]
    for transform in (arhn.PositiveAware(), arhn.revert):
        with pytest.raises(SchemaError, match="filtered_scores"):
            transform(result)
