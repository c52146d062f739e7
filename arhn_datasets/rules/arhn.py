"""The rule of ARHN (section 3.3), by snippets and ranks or by what stands in their place.

Only a negative that holds a grounded snippet can move, and only as far as the policy and the evidence on it go;
whatever failed stays where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.arrow import Codes, Numbers, extremes
from arhn_datasets.rows.options import Option, check_choices, check_integer
from arhn_datasets.rows.records import GRADES, Side
from arhn_datasets.rules import rule
from arhn_datasets.rules.moves import Evidence, Names
from arhn_datasets.rules.rule import ABOVE, ACTIONS, BELOW, NOTHING, UNRANKED, Decision, states_of

POLICIES = tuple(ACTIONS)
REFERENCES = ("best", "worst")
UNSUPPORTED = ("filter", "keep", "relabel")
TIES = ("above", "below")


def _by_snippets(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
    """The state of each row's reference positive, and a verdict on every negative, by snippets and ranks.

    The state is ``supported`` (a positive with a snippet is ranked), ``unranked`` (with a snippet, but not ranked),
    ``unsupported`` (every positive has no answer) or ``unknown`` (the evidence on the positives failed). The verdicts
    are ``above``, ``below``, ``unranked`` (a snippet, and nothing to place it by) or ``nothing`` (no snippet).
    """
    grounded, no_answer = range(2)
    statuses, rows, count = positives.of("snippets"), positives.rows, len(positives.counts)
    held = statuses == grounded
    ranks = np.where(held, positives.of("ranks"), np.nan)
    reference = extremes(ranks, rows, count, largest=options.reference == "worst")
    denied = np.bincount(rows[statuses == no_answer], minlength=count)
    states = np.where((denied == positives.counts) & (denied > 0), rule.ANSWERLESS, rule.UNKNOWN)
    states[rows[held]] = rule.UNPLACED
    states[~np.isnan(reference)] = rule.SUPPORTED
    verdicts = _placed(-negatives.of("ranks"), -reference[negatives.rows], options)
    answerless = {"filter": BELOW, "relabel": ABOVE, "keep": NOTHING}[options.unsupported]
    verdicts = np.where(states[negatives.rows] == rule.ANSWERLESS, answerless, verdicts)
    return states, np.where(negatives.of("snippets") == grounded, verdicts, NOTHING)


def _by_verdicts(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
    """The same by set-wise verdicts: the comparison is in the evidence. Without positives there was none."""
    better, worse = range(2)
    compared, said = positives.counts > 0, negatives.of("verdicts")
    verdicts = np.select([said == better, said == worse], [ABOVE, BELOW], NOTHING)
    alone = (verdicts != NOTHING) & ~compared[negatives.rows]
    return states_of(compared), np.where(alone, UNRANKED, verdicts)


def _by_grades(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
    """The same by grades; where no positive has one, there is nothing to place a negative by."""
    largest = options.reference == "best"
    reference = extremes(positives.of("grades"), positives.rows, len(positives.counts), largest=largest)
    grades = negatives.of("grades")
    verdicts = _placed(grades, reference[negatives.rows], options)
    return states_of(~np.isnan(reference)), np.where(grades >= options.threshold, verdicts, NOTHING)


def _placed(values: Numbers, references: Numbers, options: Relabel) -> Codes:
    """The verdicts where a higher value is better; NaN cannot be placed."""
    tie = {"above": ABOVE, "below": BELOW}[options.ties]
    cases = [values > references, values < references, values == references]
    return np.select(cases, [ABOVE, BELOW, tie], UNRANKED)


_JUDGES: Mapping[str, Callable[[Evidence, Evidence, Relabel], tuple[Codes, Codes]]] = {
    "snippets": _by_snippets,
    "verdicts": _by_verdicts,
    "grades": _by_grades,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabel(Decision):
    """Moves passages by a policy and adds where each came from and why.

    The result holds every passage that came in exactly once, in ``positive_passages``, ``negative_passages`` or
    ``filtered_passages``, each with its evidence and origin; ``decision`` says what was done to the row.
    A row that was relabelled before is reverted first, so any policy can follow any other.

    The evidence is that of ARHN, snippets and ranks (section 3.3), or that of another method:

    * ``"verdicts"`` of RLHN (arXiv 2505.16967): ``better`` than the positives is above, ``worse`` is below. There, the
      technique ``rlhn`` on verdicts of ``better`` alone is the policy ``"relabel"`` with ``max_matches=8``; the release
      of two stages made positives of what is ``worse``, too, which no policy here does.
    * ``"grades"``: a grade from ``threshold`` on is above where it is at least the reference's, else below.

    Args:
        policy: ``"relabel"`` (above the reference becomes a positive), ``"filter"`` (every answer-bearing negative
            leaves the negatives) or ``"relabel+filter"`` (above becomes a positive, below leaves).
        reference: With several positives, compare with the ``"best"`` or the ``"worst"`` ranked or graded one.
        unsupported: What becomes of answer-bearing negatives where no positive has an answer: ``"filter"``,
            ``"keep"`` or ``"relabel"``, as far as the policy does such a thing. Of snippets alone.
        ties: Whether a negative that shares the reference's rank, because it holds the very same words, or its grade,
            counts as ``"above"`` or ``"below"``.
        min_negatives: Fewest negatives that a row must have left.
        on_shortage: With fewer, ``"drop"`` marks the row as dropped (see :func:`is_kept`) and leaves its passages as
            they came, ``"keep"`` leaves the row among the others as it came, with negatives that proved false,
            ``"allow"`` lets it pass.
        max_relabelled: Most negatives that may become positives in a row; None for any number.
        on_excess: With more, the same choices; by default ``"keep"``.
        evidence: ``"snippets"`` (with ranks), ``"verdicts"`` or ``"grades"``.
        threshold: The lowest grade of a passage that answers.
        max_matches: A row with more negatives than these that are above or below the reference is dropped; None for
            any number.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no evidence columns, or they do not fit the passages.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "policy": Option(help="which moves are made", choices=POLICIES),
        "reference": Option(help="with several positives", choices=REFERENCES, with_evidence=("snippets", "grades")),
        "unsupported": Option(help="where no positive answers", choices=UNSUPPORTED, with_evidence=("snippets",)),
        "ties": Option(help="negatives level with the reference", choices=TIES, with_evidence=("snippets", "grades")),
        "threshold": Option(
            help="the lowest grade of a passage that answers", metavar="NUMBER", with_evidence=("grades",)
        ),
        "max_matches": Option(help="a row with more negatives that answer is dropped", metavar="NUMBER"),
        **Decision.OPTIONS,
    }
    WAYS: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"evidence": kind} for kind in _JUDGES)

    policy: str = "relabel+filter"
    reference: str = "best"
    unsupported: str = "filter"
    ties: str = "above"
    evidence: str = "snippets"
    threshold: int = 2
    max_matches: int | None = None

    def __post_init__(self) -> None:
        known = {"policy": POLICIES, "reference": REFERENCES, "unsupported": UNSUPPORTED, "ties": TIES}
        check_choices(self, {**known, "evidence": tuple(_JUDGES)})
        super().__post_init__()
        if type(self.threshold) is not int or self.threshold not in GRADES[1:]:
            raise ConfigurationError(f"threshold is {self.threshold!r}; a grade from 1 to {GRADES[-1]} was expected.")
        check_integer("max_matches", self.max_matches, 0, optional=True)

    @property
    def label(self) -> str:
        """The policy, behind the evidence where it is not that of ARHN."""
        return self.policy if self.evidence == "snippets" else f"{self.evidence}:{self.policy}"

    @property
    def evidence_kinds(self) -> tuple[str, ...]:
        """The evidence, and of ARHN's the ranks where the policy looks at them."""
        if self.evidence != "snippets":
            return (self.evidence,)
        return ("snippets",) if self.policy == "filter" else ("snippets", "ranks")

    @property
    def actions(self) -> Mapping[int, Side]:
        """Those of the policy."""
        return ACTIONS[self.policy]

    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The verdicts of the evidence."""
        return _JUDGES[self.evidence](positives, negatives, self)

    def identity(self) -> dict[str, Any]:
        """Every option; those of other evidence only where it is used."""
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        unused: dict[str, Any] = {"evidence": "snippets", "max_matches": None}
        unused |= {} if self.evidence == "grades" else {"threshold": self.threshold}
        return {name: value for name, value in options.items() if name not in unused or value != unused[name]}


relabel = Relabel()
