"""What hypothesis draws for rules: rules with any options, and rows with any evidence."""

from __future__ import annotations

import math

from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.rows.records import BETTER, EVIDENCE_KINDS, NO_MATCH, SNIPPET_STATUSES, WORSE
from arhn_datasets.rules.arhn import POLICIES, REFERENCES, TIES, UNSUPPORTED
from arhn_datasets.rules.by_score import REFERENCE_SCORES
from arhn_datasets.rules.positive_aware import METHODS
from arhn_datasets.rules.rule import GUARDS
from tests.conftest import snippet

LISTS = ("positive", "negative", "filtered")

finite = st.floats(-2, 2).map(lambda score: round(score, 1))
guards = {
    "min_negatives": st.integers(0, 3),
    "on_shortage": st.sampled_from(GUARDS),
    "max_relabelled": st.none() | st.integers(0, 2),
    "on_excess": st.sampled_from(GUARDS),
}
references = st.sampled_from(list(REFERENCE_SCORES))
rules = st.one_of(
    st.builds(
        arhn.Relabel,
        evidence=st.sampled_from(["snippets", "snippets", "verdicts", "grades"]),
        policy=st.sampled_from(POLICIES),
        reference=st.sampled_from(REFERENCES),
        unsupported=st.sampled_from(UNSUPPORTED),
        ties=st.sampled_from(TIES),
        threshold=st.integers(1, 3),
        max_matches=st.none() | st.integers(0, 3),
        **guards,
    ),
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
)


def judgement(name, value):
    """A value of a column of verdicts or grades."""
    return {name: value, "status": "error" if value is None else "judged", "detail": None}


VALUES = {
    "snippets": st.sampled_from(["grounded", *SNIPPET_STATUSES]).map(lambda status: snippet(status)),
    "ranks": st.none() | st.integers(1, 4),
    "scores": st.none() | st.sampled_from([math.nan, math.inf]) | finite,
    "verdicts": st.none()
    | st.sampled_from([None, BETTER, WORSE, NO_MATCH]).map(lambda verdict: judgement("verdict", verdict)),
    "grades": st.none() | (st.none() | st.integers(0, 3)).map(lambda grade: judgement("grade", grade)),
}


@st.composite
def rows_with(draw, kinds, *, needed=(), number=0, one_side=False):
    """A row with such evidence on its passages; of each kind it may have no list, with ``one_side`` on one side alone.

    Snippets that are needed are never missing.
    """
    row = {"query_id": draw(st.none() | st.just(f"q{number}")), "query": f"why {number}?", "other": number}
    sizes = {"positive": draw(st.integers(0, 3)), "negative": draw(st.integers(0, 6))}
    for label, size in sizes.items():
        row[f"{label}_passages"] = [{"docid": f"{label}{i}", "title": "", "text": f"{i}" * i} for i in range(size)]
    for kind in kinds:
        absent = LISTS[:2] if draw(st.integers(0, 5)) == 0 else ()
        if absent and one_side:
            absent = draw(st.sets(st.sampled_from(absent)))
        for label, size in sizes.items():
            values = draw(st.lists(VALUES[kind], min_size=size, max_size=size))
            kept = kind == "snippets" and kind in needed and (size or not one_side)
            row[f"{label}_{kind}"] = None if label in absent and not kept else values
    return row


@st.composite
def cases(draw, most=1, one_side=False):
    """A rule, up to ``most`` rows with what it needs and any other evidence, and the kinds of evidence."""
    rule = draw(rules)
    others = draw(st.sets(st.sampled_from(EVIDENCE_KINDS)))
    kinds = [kind for kind in EVIDENCE_KINDS if kind in others or kind in rule.evidence_kinds]
    rows = [
        draw(rows_with(kinds, needed=rule.evidence_kinds, number=number, one_side=one_side))
        for number in range(draw(st.integers(1, most)))
    ]
    return rule, rows, kinds
