"""Rules over scores: hand-worked examples of the papers, naive versions, and what every rule shares."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.checks.verification import verify_folder
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.evidence_table import canonical_of, evidence_of, join_evidence
from arhn_datasets.folder.reading import open_folder
from arhn_datasets.formats.format import Options
from arhn_datasets.formats.registry import table_of
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, BETTER, NO_MATCH, PASSAGE_TYPE, WORSE
from arhn_datasets.rules.arhn import GUARDS, POLICIES
from arhn_datasets.rules.by_score import METHODS, REFERENCE_SCORES, RULES, rule_of
from arhn_datasets.rules.moves import EVIDENCE_KINDS
from arhn_datasets.runs.saving import save
from tests.conftest import snippet

LISTS = ("positive", "negative", "filtered")

finite = st.floats(-2, 2).map(lambda score: round(score, 2))
scores = st.none() | st.just(math.nan) | finite
guards = {
    "min_negatives": st.integers(0, 3),
    "on_shortage": st.sampled_from(GUARDS),
    "max_relabeled": st.none() | st.integers(0, 2),
    "on_excess": st.sampled_from(GUARDS),
}
references = st.sampled_from(REFERENCE_SCORES)
rules = st.one_of(
    st.builds(
        arhn.PositiveAware,
        method=st.sampled_from(METHODS),
        threshold=finite,
        absolute_margin=finite,
        percentage_margin=st.floats(0, 1),
        top_k=st.none() | st.integers(1, 4),
        reference=references,
        **guards,
    ),
    st.builds(arhn.AdaptiveMargin, margin=st.floats(0, 1), slope=st.floats(0, 2), reference=references, **guards),
    st.builds(
        arhn.AmbiguousSampling,
        a=st.floats(0, 100),
        b=finite,
        num_hard_negatives=st.integers(1, 4),
        seed=st.integers(0, 3),
        reference=references,
        **guards,
    ),
    st.builds(
        arhn.Relabel,
        evidence=st.sampled_from(["verdicts", "grades"]),
        policy=st.sampled_from(POLICIES),
        threshold=st.integers(1, 3),
        max_matches=st.none() | st.integers(0, 3),
        **guards,
    ),
)


def row_of(positives, negatives, **columns):
    """A row with scores and nothing else."""
    row = {"query_id": "q", "query": "why?", "other": [1, None]}
    for label, values in (("positive", positives), ("negative", negatives)):
        texts = [f"{label} {i}" for i in range(len(values))]
        row[f"{label}_passages"] = [{"docid": text, "title": "", "text": text} for text in texts]
        row[f"{label}_scores"] = list(values)
    return {**row, **columns}


def judgement(name, value):
    """A value of a column of verdicts or grades."""
    return {name: value, "status": "error" if value is None else "judged", "detail": None}


@st.composite
def rows_with(draw, *kinds):
    """A row with such evidence on passages, which may be null as a whole unless the rule needs it."""
    row = {"query_id": draw(st.sampled_from("abc")), "query": "why?", "other": draw(st.integers(0, 9))}
    values = {
        "snippets": st.sampled_from(["grounded", "no_answer", "error"]).map(lambda status: snippet(status)),
        "ranks": st.none() | st.integers(1, 4),
        "scores": scores,
        "verdicts": st.none()
        | (st.none() | st.sampled_from([BETTER, WORSE, NO_MATCH])).map(lambda verdict: judgement("verdict", verdict)),
        "grades": st.none() | (st.none() | st.integers(0, 3)).map(lambda grade: judgement("grade", grade)),
    }
    absent = {kind for kind in kinds if draw(st.integers(0, 9)) == 0}
    for label in LISTS[:2]:
        size = draw(st.integers(0, 3 if label == "positive" else 6))
        row[f"{label}_passages"] = [{"docid": f"{label} {i}", "title": "", "text": f"{i}"} for i in range(size)]
        for kind in kinds:
            column = draw(st.lists(values[kind], min_size=size, max_size=size))
            row[f"{label}_{kind}"] = None if kind in absent else column
    return row


@st.composite
def cases(draw):
    """A rule, and a row with what it needs and any other evidence."""
    rule = draw(rules)
    others = draw(st.sets(st.sampled_from(list(EVIDENCE_KINDS))))
    kinds = [kind for kind in EVIDENCE_KINDS if kind in others or kind in rule.evidence_kinds]
    return rule, draw(rows_with(*kinds)), kinds


def same(one, other):
    """Equal, where NaN equals itself."""
    return repr(one) == repr(other)


def moved(row):
    """Of each list, the places in the source that its passages came from."""
    return {label: [(o["label"], o["position"]) for o in row[f"{label}_origins"]] for label in LISTS}


def kept(row):
    """The places of the negatives that stayed."""
    return [position for _, position in moved(row)["negative"]]


def scored(rule, positives, negatives):
    """The places of the negatives that stay, whatever the guards."""
    return kept(rule.with_options(min_negatives=0)(row_of(positives, negatives)))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_nothing_is_lost_and_revert_restores_the_row(case):
    """Every rule: each passage once with all evidence on it, and back bit for bit, with and without the evidence."""
    rule, row, kinds = case
    before = copy.deepcopy(row)
    result = rule(row)
    assert same(row, before)
    places = Counter(origin for label in LISTS for origin in moved(result)[label])
    assert places == Counter((label, i) for label in LISTS[:2] for i in range(len(row[f"{label}_passages"])))
    for label in LISTS:
        for kind in ("passages", *kinds):
            if row[f"positive_{kind}"] is None:
                assert result[f"{label}_{kind}"] is None
            else:
                expected = [row[f"{side}_{kind}"][position] for side, position in moved(result)[label]]
                assert same(result[f"{label}_{kind}"], expected)
    back = arhn.revert(result)
    assert back.keys() == row.keys()
    assert all(same(back[column], row[column]) for column in row)
    bare = arhn.Revert(keep_evidence=False)(result)
    assert same({c: bare[c] for c in sorted(bare)}, {c: row[c] for c in sorted(row) if c not in ALL_EVIDENCE_TYPES})
    assert same(rule(result), result)
    decision = result["decision"]
    assert decision["policy"] == rule.label
    if decision["status"] in ("guarded", "dropped"):
        assert decision["detail"]
        assert moved(result)["filtered"] == []
    assert decision["filtered"] == len(result["filtered_passages"])


@settings(max_examples=100, deadline=None)
@given(cases(), cases())
def test_a_rule_after_another_is_the_rule_alone(one, other):
    """What was decided before by any rule does not show in the result of the next."""
    (first, row, kinds), (second, _, _) = one, other
    if set(second.evidence_kinds) <= set(kinds):
        assert same(sorted(second(first(row)).items()), sorted(second(row).items()))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_parameters_of_a_run_make_the_rule_again(case):
    """What run.json holds gives a rule that decides the same."""
    rule, row, _ = case
    again = rule_of(json.loads(json.dumps(rule.identity())))
    assert type(again) is type(rule)
    assert again.identity() == rule.identity()
    assert same(again(row), rule(row))


@settings(max_examples=50, deadline=None)
@given(st.lists(cases(), min_size=1, max_size=4), st.data())
def test_evidence_apart_and_joined_again(found, data):
    """In a table of its own the evidence of any rule keeps everything; null lists of scores come back as nulls."""
    rule, _, kinds = found[0]
    rows = [rule(data.draw(rows_with(*kinds))) for _ in found]
    passages = pa.list_(PASSAGE_TYPE)
    types = {"query_id": pa.string(), "query": pa.string(), "other": pa.int64()}
    types |= {"positive_passages": passages, "negative_passages": passages}
    types |= {column: type for column, type in ALL_EVIDENCE_TYPES.items() if column in rows[0]}
    table = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    joined = join_evidence(canonical_of(table), evidence_of(table))
    for row, back in zip(rows, joined.to_pylist(), strict=True):
        for kind in kinds:
            columns = [f"{label}_{kind}" for label in LISTS]
            values = [value for column in columns for value in row[column] or ()]
            if kind == "ranks" or (kind == "scores" and row[columns[0]] is None):
                assert all(value is None for column in columns for value in back[column] or ()) or kind == "ranks"
            elif any(value is not None for value in values):
                assert same([back[column] for column in columns], [row[column] for column in columns])
            else:  # nothing says that anybody was asked
                assert not any(value for column in columns for value in back[column] or ())
        for label in LISTS:
            assert back[f"{label}_passages"] == row[f"{label}_passages"]
            assert back[f"{label}_origins"] == row[f"{label}_origins"]
    bare = arhn.Revert(keep_evidence=False)
    assert bare(joined).to_pylist() == bare(table).to_pylist()


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


@settings(deadline=None)
@given(
    st.lists(scores, max_size=3),
    st.lists(scores, max_size=8),
    st.sampled_from(METHODS),
    st.sampled_from(REFERENCE_SCORES),
    st.none() | st.integers(1, 4),
)
def test_positive_aware_is_the_naive_rule(positives, negatives, method, reference, top_k):
    """Written the long way, one negative after the other."""
    known = [score for score in positives if score is not None and not math.isnan(score)]
    limit = 0.3 if method == "TopK-Abs" else None
    if known and limit is None:
        at = {"min": min(known), "max": max(known), "mean": sum(known) / len(known)}[reference]
        limit = at - 0.1 if method == "TopK-MarginPos" else (at * 0.9 if at >= 0 else at * 1.1)
    stay = []
    for i, score in enumerate(negatives):
        if score is None or math.isnan(score) or limit is None:
            stay.append(i)
        elif score <= limit + 1e-12:
            better = [
                j
                for j, other in enumerate(negatives)
                if other is not None and other <= limit + 1e-12 and (other > score or (other == score and j < i))
            ]
            if top_k is None or len(better) < top_k:
                stay.append(i)
    rule = arhn.PositiveAware(
        method=method, threshold=0.3, absolute_margin=0.1, percentage_margin=0.9, reference=reference, top_k=top_k
    )
    edge = limit is not None and any(s is not None and abs(s - limit) < 1e-9 for s in negatives)
    if not edge:
        assert scored(rule, positives, negatives) == stay


def test_adaptive_margin_by_hand():
    """The share of the positive; with a slope it falls with the positive's score; without one it is TopK-PercPos."""
    negatives = [0.79, 0.75, 0.7, 0.5, 0.35, 0.1]
    assert scored(arhn.AdaptiveMargin(), [0.8], negatives) == [1, 2, 3, 4, 5]
    assert scored(arhn.AdaptiveMargin(slope=1.0), [0.8], negatives) == [3, 4, 5]  # 0.8 (0.95 - 0.2) = 0.6
    assert scored(arhn.AdaptiveMargin(slope=1.0), [1.2], negatives) == list(range(6))
    assert scored(arhn.AdaptiveMargin(slope=1.0, certain=0.8), [0.8], negatives) == [1, 2, 3, 4, 5]
    assert arhn.AdaptiveMargin(slope=1.0).limit(-0.5) == pytest.approx(-0.5 * (1 + 0.05 + 1.5))
    assert scored(arhn.AdaptiveMargin(), [None], negatives) == list(range(6))


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
    found = Counter(tuple(kept(rule({**row_of([0.8], negatives), "query_id": f"q{i}"}))) for i in range(count))
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


# -- verdicts and grades -----------------------------------------------------------------------------------------------


def judged_row(name, positives, negatives):
    """A row with verdicts or grades alone."""
    row = row_of(positives, negatives)
    for label, values in (("positive", positives), ("negative", negatives)):
        del row[f"{label}_scores"]
        row[f"{label}_{name}s"] = [judgement(name, value) for value in values]
    return row


def letters(row):
    """Where each negative went."""
    places = moved(row)
    short = {"positive": "p", "filtered": "f", "negative": "-"}
    count = sum(label == "negative" for found in places.values() for label, _ in found)
    return "".join(next(short[label] for label in LISTS if ("negative", i) in places[label]) for i in range(count))


@pytest.mark.parametrize(
    ("policy", "expected"), [("relabel", "p----"), ("filter", "ff---"), ("relabel+filter", "pf---")]
)
def test_verdicts_by_hand(policy, expected):
    """Better becomes a positive, worse is ambiguous; no match, and no verdict, stay."""
    row = judged_row("verdict", [None], [BETTER, WORSE, NO_MATCH, None])
    row["negative_passages"].append({"docid": "n", "title": "", "text": "n"})
    row["negative_verdicts"].append(None)
    rule = arhn.Relabel(evidence="verdicts", policy=policy)
    result = rule(row)
    assert letters(result) == expected
    assert result["decision"]["policy"] == f"verdicts:{policy}"
    assert result["decision"]["reference"] == "supported"
    without = rule(judged_row("verdict", [], [BETTER, NO_MATCH]))
    assert letters(without) == ("f-" if policy == "filter" else "--")
    assert without["decision"]["reference"] == "unknown"


@pytest.mark.parametrize(
    ("positives", "options", "expected"),
    [
        ([2], {}, "pp---"),
        ([3], {}, "pf---"),
        ([3], {"ties": "below"}, "ff---"),
        ([3], {"threshold": 3}, "p----"),
        ([3], {"threshold": 1}, "pff--"),
        ([0], {}, "pp---"),
        ([3, 2], {}, "pf---"),
        ([3, 2], {"reference": "worst"}, "pp---"),
        ([None], {}, "-----"),
        ([None], {"policy": "filter"}, "ff---"),
        ([None, 2], {"policy": "relabel", "ties": "below"}, "p----"),
    ],
)
def test_grades_by_hand(positives, options, expected):
    """Where negatives of the grades 3, 2, 1, 0 and none go."""
    row = judged_row("grade", positives, [3, 2, 1, 0, None])
    assert letters(arhn.Relabel(evidence="grades", **options)(row)) == expected


def test_too_many_matches_drop_the_row():
    """RLHN drops a row with more than 8 matches, whatever the policy; 8 are fine."""
    rule = arhn.Relabel(evidence="verdicts", policy="relabel", max_matches=8)
    many = rule(judged_row("verdict", [None], [BETTER] * 5 + [WORSE] * 4 + [NO_MATCH]))
    assert many["decision"]["status"] == "dropped"
    assert many["decision"]["detail"] == "9 negatives match, max_matches is 8"
    assert not arhn.is_kept(many)
    assert letters(many) == "-" * 10
    few = rule(judged_row("verdict", [None], [BETTER] * 4 + [WORSE] * 4 + [NO_MATCH]))
    assert letters(few) == "pppp-----"


@pytest.mark.parametrize(
    ("options", "expected", "kept"),
    [
        ({"policy": "filter", "max_matches": 0}, "-----", False),  # "remove": a row with any match goes
        ({"policy": "filter", "max_matches": 8}, "fff--", True),  # "hn_remove": the matches leave the negatives
        ({"policy": "relabel", "max_matches": 8}, "pp---", True),  # "rlhn" of the matches that are no worse
    ],
)
def test_the_techniques_of_rlhn_by_hand(options, expected, kept):
    """A query with two negatives at least as good as the positive and one that is worse, as in the paper's method."""
    row = judged_row("verdict", [None], [BETTER, BETTER, WORSE, NO_MATCH, NO_MATCH])
    result = arhn.Relabel(evidence="verdicts", **options)(row)
    assert (letters(result), arhn.is_kept(result)) == (expected, kept)


def test_the_identity_of_arhn_is_what_it_was():
    """Options of other evidence show only where they are used: fingerprints of before stay."""
    assert set(arhn.Relabel().identity()) == set(arhn.Relabel(threshold=3).identity())
    assert "threshold" not in arhn.Relabel(evidence="verdicts").identity()
    assert arhn.Relabel(evidence="grades").identity()["threshold"] == 2
    assert arhn.Relabel(max_matches=8).identity()["max_matches"] == 8
    identities = {json.dumps(rule().identity(), sort_keys=True) for rule in RULES.values()}
    assert len(identities) == len(RULES)


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
        (lambda: rule_of({"rule": "Magic"}), "The rule is 'Magic'; one of Relabel, PositiveAware"),
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


# -- datasets, folders and formats -------------------------------------------------------------------------------------


def scored_sample(sample):
    """The sample with scores by the words that a passage shares with its query."""

    def scores(row, side):
        words = set(row["query"].lower().split())
        return [
            len(words & set(passage["text"].lower().split())) / len(words) - (0.1 if i % 7 == 6 else 0.0)
            for i, passage in enumerate(row[f"{side}_passages"])
        ]

    rows = [{**row, **{f"{side}_scores": scores(row, side) for side in LISTS[:2]}} for row in sample]
    rows[3]["negative_scores"][0] = None
    return rows


@pytest.mark.parametrize("way", ["map", "batched", "num_proc", "iterable", "table"])
def test_every_way_of_calling(sample, way):
    """Rows, batches, processes, streams and tables give what a row alone gives."""
    rows = scored_sample(sample)
    rule = arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2)
    expected = [rule(row) for row in rows]
    dataset = Dataset.from_list(rows)
    found = {
        "map": lambda: dataset.map(rule),
        "batched": lambda: dataset.map(rule, batched=True, batch_size=7),
        "num_proc": lambda: dataset.map(rule, num_proc=2),
        "iterable": lambda: dataset.to_iterable_dataset().map(rule),
        "table": lambda: rule(dataset.data.table).to_pylist(),
    }[way]()
    for row, wanted in zip(found, expected, strict=True):
        assert {column: row[column] for column in wanted} == wanted


def test_rows_that_were_never_scored_beside_rows_that_were(sample):
    """In concatenated datasets null lists of scores move nothing, and revert restores them."""
    rows = scored_sample(sample)[:6]
    bare = [{**row, "positive_scores": None, "negative_scores": None} for row in rows]
    features = Dataset.from_list(rows).features
    dataset = concatenate_datasets([Dataset.from_list(part, features=features) for part in (rows, bare)])
    result = dataset.map(arhn.PositiveAware(), batched=True)
    assert any(row["filtered_passages"] for row in result)
    assert not any(row["filtered_passages"] for row in result.select(range(6, 12)))
    assert list(result.map(arhn.revert)) == list(dataset)


RULED = {
    "TopK-PercPos": arhn.PositiveAware(percentage_margin=0.8),
    "AdaptiveMargin": arhn.AdaptiveMargin(margin=0.9, slope=0.5),
    "SimANS": arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2, min_negatives=2, on_shortage="drop"),
}


@pytest.mark.parametrize("label", RULED)
def test_a_folder_of_a_rule_can_be_published_verified_and_reverted(sample, tmp_path, label):
    """Without snippets: run.json names the rule, both layouts hold, and the evidence gives the source back."""
    rule, rows = RULED[label], scored_sample(sample)
    scores = arhn.Scores(columns=("positive_scores", "negative_scores"))
    dataset = Dataset.from_list(rows).map(scores).map(rule, batched=True)
    save(dataset, tmp_path / "refined", transforms=[scores, rule])
    run = json.loads((tmp_path / "refined" / "run.json").read_text())
    assert run["parameters"]["relabel"] == rule.identity()
    assert run["annotator"]["annotator"] == "passage scores"
    assert {row["decision"]["policy"] for row in dataset} == {label}
    assert verify_folder(tmp_path / "refined").violations == []
    build_publication(
        open_folder(tmp_path / "refined"),
        tmp_path / "published",
        formats=["labeled-list", "n-tuple", "flagembedding"],
        options=Options(labels="soft"),
    )
    assert verify_folder(tmp_path / "published").violations == []
    card = (tmp_path / "published" / "README.md").read_text()
    assert "its label is the score" in card
    assert f"The rule was `{type(rule).__name__}`" in card
    published = open_folder(tmp_path / "published")
    read = list(published.rows())
    assert published.schema("train").names == list(read[0])
    by_query = {row["query_id"]: row for row in dataset}
    for row in read:
        before = by_query[row["query_id"]]
        assert {column: row[column] for column in before} == before
    restored = {row["query_id"]: arhn.Revert(keep_evidence=False)(row) for row in read}
    assert all(restored[row["query_id"]] == row for row in sample)


def test_a_changed_label_is_found(sample, tmp_path):
    """A sample that another seed would have drawn is not what run.json says."""
    rule = arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2)
    dataset = Dataset.from_list(scored_sample(sample)).map(rule.with_options(seed=9), batched=True)
    save(dataset, tmp_path / "refined", transforms=[rule])
    found = verify_folder(tmp_path / "refined")
    assert found.found["labels"] > 0
    assert "policy SimANS" in found.violations[0].message


def test_a_rule_has_to_be_named_when_its_rows_are_saved(sample, tmp_path):
    """The parameters of a rival are not in its rows, and cannot be guessed."""
    dataset = Dataset.from_list(scored_sample(sample)).map(arhn.PositiveAware())
    with pytest.raises(ConfigurationError, match="rule 'TopK-PercPos', whose parameters"):
        save(dataset, tmp_path / "refined")


@pytest.mark.parametrize(("evidence", "max_matches"), [("verdicts", 1), ("grades", None)])
def test_folders_of_verdicts_and_grades(sample, tmp_path, evidence, max_matches):
    """Their evidence is counted, published and verified, too."""
    rng, name = random.Random(0), evidence.removesuffix("s")
    values = {"verdicts": [BETTER, WORSE, NO_MATCH, None], "grades": [0, 1, 2, 3, None]}[evidence]
    types = {f"{side}_{evidence}": ALL_EVIDENCE_TYPES[f"{side}_{evidence}"] for side in LISTS[:2]}
    table = pa.Table.from_pylist(sample)
    for side in LISTS[:2]:
        judged = [
            [
                None if evidence == "verdicts" and side == "positive" else judgement(name, rng.choice(values))
                for _ in row[f"{side}_passages"]
            ]
            for row in sample
        ]
        table = table.append_column(f"{side}_{evidence}", pa.array(judged, types[f"{side}_{evidence}"]))
    rule = arhn.Relabel(evidence=evidence, max_matches=max_matches)
    dataset = Dataset(table).map(rule, batched=True)
    refinement = save(dataset, tmp_path / "refined", transforms=[rule])
    counts = refinement.run["counts"]["all"]
    assert counts[evidence]["judged"] > counts[evidence]["error"] > 0
    assert "snippets" in counts
    assert verify_folder(tmp_path / "refined").violations == []
    build_publication(open_folder(tmp_path / "refined"), tmp_path / "published")
    assert verify_folder(tmp_path / "published").violations == []
    for row in open_folder(tmp_path / "published").rows():
        before = next(one for one in dataset if one["query_id"] == row["query_id"])
        assert {column: row[column] for column in before} == before
    default, joined = (Dataset.from_parquet(str(tmp_path / "published" / part / "*")) for part in ("data", "evidence"))
    if max_matches is None:
        assert list(arhn.with_evidence(default, joined).select_columns(dataset.column_names)) == list(dataset)


def test_wrong_judgements_are_found(sample, tmp_path):
    """A verdict that there is not, and one of a passage whose reply could not be read."""
    rows = [
        {
            **row,
            "positive_verdicts": [None for _ in row["positive_passages"]],
            "negative_verdicts": [judgement("verdict", NO_MATCH) for _ in row["negative_passages"]],
        }
        for row in sample[:4]
    ]
    rows[0]["negative_verdicts"][0] = {"verdict": "best", "status": "judged", "detail": None}
    rows[1]["negative_verdicts"][0] = {"verdict": BETTER, "status": "error", "detail": None}
    rows[2]["negative_verdicts"][0] = {"verdict": None, "status": "lost", "detail": None}
    types = {f"{side}_verdicts": ALL_EVIDENCE_TYPES[f"{side}_verdicts"] for side in LISTS[:2]}
    table = pa.Table.from_pylist([{c: v for c, v in row.items() if c not in types} for row in rows])
    for column, type in types.items():
        table = table.append_column(column, pa.array([row[column] for row in rows], type))
    rule = arhn.Relabel(evidence="verdicts")
    save(Dataset(table).map(rule), tmp_path / "refined", transforms=[rule])
    found = verify_folder(tmp_path / "refined")
    assert found.found["statuses"] == 3
    messages = " ".join(violation.message for violation in found.violations)
    assert all(said in messages for said in ("'best'", "error with the verdict 'better'; none", "status 'lost'"))


def soft(format, rows, **options):
    """Rows in a format with soft labels, and what was left out."""
    types = {c: t for c, t in ALL_EVIDENCE_TYPES.items() if c in rows[0]}
    schema = [("query_id", pa.string()), ("query", pa.string())]
    schema += [(f"{side}_passages", pa.list_(PASSAGE_TYPE)) for side in LISTS[:2]]
    table, left_out = table_of(
        format, pa.Table.from_pylist(rows, pa.schema([*schema, *types.items()])), Options(labels="soft", **options)
    )
    return table.to_pylist(), left_out


def test_soft_labels():
    """Scores stand beside the passages they are of, in the three formats that have a place for them."""
    rows = [
        row_of([0.9, 0.8], [0.3, 0.2, 0.1]),
        row_of([0.7], [0.4]),
        row_of([0.7], [None]),
        row_of([math.nan], [0.1]),
        row_of([], [0.1]),
        {**row_of([0.7], [0.4]), "negative_scores": None},
    ]
    found, left_out = soft("labeled-list", rows)
    assert [row["labels"] for row in found] == [[0.9, 0.8, 0.3, 0.2, 0.1], [0.7, 0.4]]
    assert [row["docs"][0] for row in found] == ["positive 0", "positive 0"]
    assert left_out == {"a passage without a score": 3, "no positive": 1}
    found, _ = soft("n-tuple", rows, negatives=2)
    assert [row["scores"] for row in found] == [[0.9, 0.3, 0.2], [0.8, 0.3, 0.2], [0.7, 0.4, 0.4]]
    assert list(found[0]) == ["anchor", "positive", "negative_1", "negative_2", "scores"]
    found, _ = soft("flagembedding", rows)
    assert [(row["pos_scores"], row["neg_scores"]) for row in found] == [([0.9, 0.8], [0.3, 0.2, 0.1]), ([0.7], [0.4])]
    assert "label" in soft("labeled-pair", rows)[0][0]
    with pytest.raises(SchemaError, match=r"lack the column 'positive_scores'.*arhn.Scores"):
        soft("n-tuple", [{c: v for c, v in rows[0].items() if not c.endswith("_scores")}])
    with pytest.raises(ConfigurationError, match="either soft or grades"):
        Options(labels="soft", grades=True)
    with pytest.raises(ConfigurationError, match="labels is 'none'; one of hard, soft"):
        Options(labels="none")


def test_soft_labels_of_what_a_rule_left(sample):
    """The scores go with the negatives that stayed, and with nothing that left."""
    dataset = Dataset.from_list(scored_sample(sample)).map(arhn.PositiveAware(percentage_margin=0.8), batched=True)
    table, _ = table_of("labeled-list", dataset.with_format("arrow")[:], Options(labels="soft"))
    by_query = {row["query"]: row for row in dataset}
    for row in table.to_pylist():
        source = by_query[row["query"]]
        assert row["labels"] == source["positive_scores"] + source["negative_scores"]
