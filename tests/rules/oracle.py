"""The rules row by row, as plain Python: what the ones over columns are held against."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.records import (
    BETTER,
    CHANGED,
    DECISION,
    DROPPED,
    FILTERED,
    GROUNDED,
    GUARDED,
    NEGATIVE,
    NO_ANSWER,
    POSITIVE,
    QUERY,
    QUERY_ID,
    UNCHANGED,
    WORSE,
    passages_of,
)

ABOVE, BELOW, UNRANKED, NOTHING = "above", "below", "unranked", "nothing"
ACTIONS = {
    "relabel": {ABOVE: POSITIVE.passages},
    "filter": {ABOVE: FILTERED.passages, BELOW: FILTERED.passages, UNRANKED: FILTERED.passages},
    "relabel+filter": {ABOVE: POSITIVE.passages, BELOW: FILTERED.passages},
}
KINDS = {"snippets": "snippet", "ranks": "rank", "scores": "score", "verdicts": "verdict", "grades": "grade"}
LISTS = (POSITIVE.passages, NEGATIVE.passages, FILTERED.passages)


def column_of(side, kind):
    """The column of a kind of evidence on a list of passages."""
    return f"{side.removesuffix('_passages')}_{kind}"


GONE = {FILTERED.passages, DECISION, *(column_of(side, "origins") for side in LISTS)}
GONE |= {column_of(FILTERED.passages, kind) for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One passage with all that is known of it: what moves as a whole."""

    passage: Any
    snippet: Any = None
    rank: int | None = None
    score: float | None = None
    verdict: Any = None
    grade: Any = None
    label: str
    position: int


def relabelled(row, rule):
    """A row after a rule, its columns in no order."""
    source = revert_row(row) if row.get(DECISION) is not None else row
    return {**row, **relabel_row(source, rule)}


def reverted(row, *, keep_evidence=True):
    """A row as it was before any rule."""
    back = {**{column: value for column, value in row.items() if column not in GONE}, **revert_row(row)}
    gone = () if keep_evidence else {*(column_of(side, kind) for side in LISTS for kind in KINDS), "ranking"}
    return {column: value for column, value in back.items() if column not in gone}


def relabel_row(row, options):
    """The relabelled passage lists of a row with what goes along, and the decision."""
    lists = {side: judged_in(row, side, options.evidence_kinds) for side in (POSITIVE.passages, NEGATIVE.passages)}
    reference, verdicts = verdicts_of(options, row, lists[POSITIVE.passages], lists[NEGATIVE.passages])
    actions = ACTIONS[options.policy if isinstance(options, arhn.Relabel) else "filter"]
    moved = {POSITIVE.passages: list(lists[POSITIVE.passages]), NEGATIVE.passages: [], FILTERED.passages: []}
    for negative, verdict in zip(lists[NEGATIVE.passages], verdicts, strict=True):
        moved[actions.get(verdict, NEGATIVE.passages)].append(negative)
    relabelled, filtered = len(moved[POSITIVE.passages]) - len(lists[POSITIVE.passages]), len(moved[FILTERED.passages])
    reason = refusal(verdicts, options)
    guard, reason = (DROPPED, reason) if reason else guard_of(relabelled, len(moved[NEGATIVE.passages]), options)
    if guard is not None:
        moved, relabelled, filtered = {**lists, FILTERED.passages: []}, 0, 0
    decision = {
        "status": guard or (CHANGED if relabelled or filtered else UNCHANGED),
        "policy": options.label,
        "reference": reference,
        "relabelled": relabelled,
        "filtered": filtered,
        "detail": reason,
    }
    return {**columns_of(moved, row), DECISION: decision}


def verdicts_of(rule, row, positives, negatives):
    """The state of the reference, and a verdict on every negative, by any rule."""
    if isinstance(rule, arhn.Relabel):
        rules = {"snippets": judge, "verdicts": judge_by_verdicts, "grades": judge_by_grades}
        return rules[rule.evidence](positives, negatives, rule)
    known = [score for score in map(score_of, positives) if score is not None]
    means = {"min": min, "max": max, "mean": lambda found: math.fsum(found) / len(found)}
    reference = means[rule.reference](known) if known else None
    scores = {i: score for i, negative in enumerate(negatives) if (score := score_of(negative)) is not None}
    rules = {arhn.PositiveAware: aware, arhn.AdaptiveMargin: adaptive, arhn.AmbiguousSampling: sampled}
    verdicts = rules[type(rule)](rule, reference, scores, row)
    return "unknown" if reference is None else "supported", [verdicts.get(i, NOTHING) for i in range(len(negatives))]


def refusal(verdicts, options):
    """Too many matches."""
    most = options.max_matches if isinstance(options, arhn.Relabel) else None
    matches = sum(verdict != NOTHING for verdict in verdicts)
    return None if most is None or matches <= most else f"{matches} negatives match, max_matches is {most}"


def judge(positives, negatives, options):
    """By snippets and ranks."""
    held = [positive for positive in positives if positive.snippet["status"] == GROUNDED]
    ranks = [positive.rank for positive in held if positive.rank is not None]
    if ranks:
        state, rank = "supported", min(ranks) if options.reference == "best" else max(ranks)
    elif held:
        state, rank = "unranked", None
    elif positives and all(positive.snippet["status"] == NO_ANSWER for positive in positives):
        state, rank = "unsupported", None
    else:
        state, rank = "unknown", None
    return state, [verdict_of(negative, state, rank, options) for negative in negatives]


def verdict_of(negative, state, reference, options):
    """The verdict on a negative by its rank."""
    if negative.snippet["status"] != GROUNDED:
        return NOTHING
    if state == "unsupported":
        return {"filter": BELOW, "relabel": ABOVE, "keep": NOTHING}[options.unsupported]
    if reference is None or negative.rank is None:
        return UNRANKED
    if negative.rank == reference:
        return options.ties
    return ABOVE if negative.rank < reference else BELOW


def judge_by_verdicts(positives, negatives, options):
    """The same by set-wise verdicts: the comparison is in the evidence. Without positives there was none."""
    state = "supported" if positives else "unknown"
    found = {BETTER: ABOVE, WORSE: BELOW} if positives else {BETTER: UNRANKED, WORSE: UNRANKED}
    given = ("" if negative.verdict is None else negative.verdict["verdict"] for negative in negatives)
    return state, [found.get(verdict, NOTHING) for verdict in given]


def judge_by_grades(positives, negatives, options):
    """The same by grades; where no positive has one, there is nothing to place a negative by."""
    known = [grade for grade in map(grade_of, positives) if grade is not None]
    reference = (max(known) if options.reference == "best" else min(known)) if known else None

    def verdict(grade):
        if grade is None or grade < options.threshold:
            return NOTHING
        if reference is None:
            return UNRANKED
        if grade == reference:
            return options.ties
        return ABOVE if grade > reference else BELOW

    return "unknown" if reference is None else "supported", [verdict(grade_of(negative)) for negative in negatives]


def grade_of(judged):
    """The grade of a passage, or None."""
    return None if judged.grade is None else judged.grade["grade"]


def score_of(judged):
    """The score of a passage, where it is one."""
    return judged.score if judged.score is not None and math.isfinite(judged.score) else None


def share_of(score, share):
    """A share of the distance from 0."""
    return score * share if score >= 0 else score * (2.0 - share)


def aware(rule, reference, scores, row):
    """PositiveAware."""
    if reference is None and rule.method != "TopK-Abs":
        return {}
    limit = {
        "TopK-Abs": lambda: rule.threshold,
        "TopK-MarginPos": lambda: reference - rule.absolute_margin,
        "TopK-PercPos": lambda: share_of(reference, rule.percentage_margin),
    }[rule.method]()
    found = {i: ABOVE for i, score in scores.items() if score > limit}
    if rule.top_k is not None:
        rest = sorted((i for i in scores if i not in found), key=lambda i: (-scores[i], i))
        found |= dict.fromkeys(rest[rule.top_k :], BELOW)
    return found


def adaptive(rule, reference, scores, row):
    """AdaptiveMargin."""
    if reference is None:
        return {}
    limit = share_of(reference, rule.margin - rule.slope * max(0.0, rule.certain - reference))
    return {i: ABOVE for i, score in scores.items() if score > limit}


def sampled(rule, reference, scores, row):
    """AmbiguousSampling."""
    if reference is None or len(scores) <= rule.num_hard_negatives:
        return {}
    name = row[QUERY] if row.get(QUERY_ID) is None else row[QUERY_ID]
    drawn, keys = random.Random(f"{rule.seed} {name}"), {}
    for i, score in scores.items():
        distance = score - reference - rule.b
        keys[i] = -rule.a * distance * distance - math.log(-math.log(max(drawn.random(), 5e-324)))
    order = sorted(keys, key=lambda i: (-keys[i], i))
    return dict.fromkeys(order[rule.num_hard_negatives :], BELOW)


def guard_of(relabelled, negatives, options):
    """The status of a row that must not be changed, and why."""
    for broken, choice, reason in (
        (
            options.max_relabelled is not None and relabelled > options.max_relabelled,
            options.on_excess,
            f"{relabelled} negatives would become positives, max_relabelled is {options.max_relabelled}",
        ),
        (
            negatives < options.min_negatives,
            options.on_shortage,
            f"{negatives} negatives would be left, min_negatives is {options.min_negatives}",
        ),
    ):
        if broken and choice != "allow":
            return (DROPPED if choice == "drop" else GUARDED), reason
    return None, None


def revert_row(row):
    """A relabelled row as it was: passages and evidence in the lists and places that their origins name."""
    if row[DECISION] is None:  # never relabelled, and concatenated with rows that were
        return {column: value for column, value in row.items() if column not in GONE}
    back = {POSITIVE.passages: [], NEGATIVE.passages: []}
    for side in LISTS:
        for judged, origin in zip(judged_in(row, side), row[column_of(side, "origins")], strict=True):
            back[f"{origin['label']}_passages"].append((origin["position"], judged))
    lists = {side: [judged for _, judged in sorted(pairs, key=lambda pair: pair[0])] for side, pairs in back.items()}
    names = {column: row[column] for column in (QUERY, QUERY_ID) if column in row}
    return {**names, **{c: v for c, v in columns_of(lists, row).items() if c not in GONE}}


def judged_in(row, side, needed=()):
    """The passages of a list with the evidence on them; a list of evidence that is null is not there."""
    passages = passages_of(row, side)
    evidence = {}
    for kind, name in KINDS.items():
        column = column_of(side, kind)
        values = row.get(column)
        if values is None:
            if kind != "snippets" or kind not in needed:
                continue
            values = []
        if len(values) != len(passages):
            raise SchemaError(
                f"Column {column!r} has {len(values)} values for {len(passages)} passages in {side!r} (query "
                f"{row[QUERY]!r}); one each was expected. Run the stages before again on these rows."
            )
        evidence[name] = values
    label = side.removesuffix("_passages")
    return [
        Judged(
            passage=passage,
            label=label,
            position=i,
            **{name: values[i] for name, values in evidence.items()},
        )
        for i, passage in enumerate(passages)
    ]


def columns_of(lists, row):
    """The columns of passage lists with what goes along; evidence where ``row`` has it, null where its is."""
    columns = {}
    kinds = [kind for kind in KINDS if column_of(POSITIVE.passages, kind) in row]
    known = {
        kind
        for kind in kinds
        if any(row.get(column_of(side, kind)) is not None for side in (POSITIVE.passages, NEGATIVE.passages))
    }
    for side, judged in lists.items():
        columns[side] = [one.passage for one in judged]
        for kind in kinds:
            name = KINDS[kind]
            columns[column_of(side, kind)] = [getattr(one, name) for one in judged] if kind in known else None
        columns[column_of(side, "origins")] = [{"label": one.label, "position": one.position} for one in judged]
    return columns
