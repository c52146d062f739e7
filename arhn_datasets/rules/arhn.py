"""Stage 3, relabel: from the evidence columns to new labels, and back (ARHN, section 3.3).

A pure function of the evidence: another rule or policy costs no LLM call. :class:`Decision` moves the passages, guards
the row and records why, whatever the rule; :class:`Relabel` is the rule of ARHN. There, only a negative that holds a
grounded snippet can move, and only as far as the policy and the evidence on it go; whatever failed stays where it was.

A rule is computed on whole columns: from the evidence on the passages of all rows to one code a negative.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.arrow import (
    Codes,
    Integers,
    Mask,
    Numbers,
    extremes,
    field_of,
    gathered,
    lists_in,
    one_array,
    shaped,
)
from arhn_datasets.rows.options import check_integer
from arhn_datasets.rows.records import (
    ALL_EVIDENCE_TYPES,
    CHANGED,
    DECISION,
    DECISION_TYPE,
    DROPPED,
    FILTERED,
    GRADES,
    GUARDED,
    NEGATIVE,
    POSITIVE,
    QUERY,
    RANKING,
    UNCHANGED,
    Row,
)
from arhn_datasets.rows.stage import ColumnTransform, is_batch
from arhn_datasets.rules.moves import (
    ALONG,
    EVIDENCE_KINDS,
    SIDES,
    Evidence,
    Moves,
    Names,
    Source,
    column_of,
    decided_rows,
    moved_columns,
    moved_rows,
    passage_list_type,
    table_of_rows,
    words_of,
)

POLICIES = ("relabel", "filter", "relabel+filter")
REFERENCES = ("best", "worst")
UNSUPPORTED = ("filter", "keep", "relabel")
TIES = ("above", "below")
GUARDS = ("keep", "drop", "allow")

# What the evidence says of one negative.
ABOVE, BELOW, UNRANKED, NOTHING = 0, 1, 2, 3

# What it says of the positives: one with evidence is placed, has nothing to place it by, none has an answer, or it
# failed. The names are those of the ``reference`` in the ``decision`` column.
STATES = ("supported", "unranked", "unsupported", "unknown")
SUPPORTED, UNPLACED, ANSWERLESS, UNKNOWN = range(len(STATES))

# What a policy does about it; whatever is not named stays in the negatives.
ACTIONS: Mapping[str, Mapping[int, str]] = {
    "relabel": {ABOVE: POSITIVE.passages},
    "filter": {ABOVE: FILTERED.passages, BELOW: FILTERED.passages, UNRANKED: FILTERED.passages},
    "relabel+filter": {ABOVE: POSITIVE.passages, BELOW: FILTERED.passages},
}

EVIDENCES = ("snippets", "verdicts", "grades")

ADDED = (
    FILTERED.passages,
    FILTERED.snippets,
    FILTERED.ranks,
    POSITIVE.origins,
    NEGATIVE.origins,
    FILTERED.origins,
    DECISION,
)
WRITTEN = (FILTERED.passages, POSITIVE.origins, NEGATIVE.origins, FILTERED.origins, DECISION)  # by every rule


_EVIDENCE = {side: tuple(column_of(side, kind) for kind in EVIDENCE_KINDS) for side in ALONG}
_GONE = tuple(dict.fromkeys((*ADDED, *_EVIDENCE[FILTERED.passages])))  # what reverting removes


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision(ColumnTransform):
    """Moves passages by a rule over their evidence, and adds where each came from and why.

    The result holds every passage that came in exactly once, in ``positive_passages``, ``negative_passages`` or
    ``filtered_passages``, each with its origin and all evidence on it; ``decision`` says what was done to the row.
    A row that was decided upon before is reverted first, so any rule can follow any other.

    A subclass gives the rule, :meth:`judge`, and what becomes of each verdict, :attr:`actions`.

    Args:
        min_negatives: Fewest negatives that a row must have left.
        on_shortage: With fewer, ``"keep"`` leaves the row as it came, ``"drop"`` marks it as dropped (see
            :func:`is_kept`), ``"allow"`` lets it pass.
        max_relabeled: Most negatives that may become positives in a row; None for any number.
        on_excess: With more, the same choices.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no evidence columns, or they do not fit the passages.
    """

    NAME: ClassVar[str] = "relabel"
    ORDER: ClassVar[int] = 3
    OPTIONAL: ClassVar[tuple[str, ...]] = (
        *_EVIDENCE[POSITIVE.passages],
        *_EVIDENCE[NEGATIVE.passages],
        RANKING,
        *ADDED,
        *(column for column in _EVIDENCE[FILTERED.passages] if column not in ADDED),
    )

    min_negatives: int = 1
    on_shortage: str = "keep"
    max_relabeled: int | None = None
    on_excess: str = "keep"

    def __post_init__(self) -> None:
        self._check_choices({"on_shortage": GUARDS, "on_excess": GUARDS})
        check_integer("min_negatives", self.min_negatives, 0)
        check_integer("max_relabeled", self.max_relabeled, 0, optional=True)

    @property
    @abstractmethod
    def label(self) -> str:
        """The rule and its policy in a word: the ``policy`` of the ``decision`` column."""

    @property
    @abstractmethod
    def evidence_kinds(self) -> tuple[str, ...]:
        """The kinds of evidence that the rule cannot do without, of :data:`EVIDENCE_KINDS`."""

    @property
    def actions(self) -> Mapping[int, str]:
        """The list into which a verdict moves a negative; with any other verdict it stays."""
        return ACTIONS["filter"]

    @abstractmethod
    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The state of each row's reference, and a verdict on every negative; a pure function.

        ``names`` gives the names of some rows, by their numbers.
        """

    @property
    def most_matches(self) -> int | None:
        """Most negatives of a row with any verdict but :data:`NOTHING`; with more it is dropped, whatever the guards.

        None for any number.
        """
        return None

    @property
    def required(self) -> tuple[str, ...]:
        """The passages, and the evidence that the rule looks at."""
        sides = (POSITIVE.passages, NEGATIVE.passages)
        return (QUERY, *sides, *(column_of(side, kind) for kind in self.evidence_kinds for side in sides))

    def identity(self) -> dict[str, Any]:
        """The rule, and every option."""
        return {"rule": type(self).__name__, **{option.name: getattr(self, option.name) for option in fields(self)}}

    def compute(self, table: pa.Table) -> Mapping[str, pa.Array]:
        """The columns of the relabelled rows."""
        return moved_columns(table, self.moves(table), self.types(table.schema))

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The relabelled rows."""
        return moved_rows(rows, self.moves(table_of_rows(rows))) if rows else []

    def moves(self, table: pa.Table) -> Moves:
        """Where the passages of rows go, and their decisions; of passages only how many there are is looked at.

        Raises:
            SchemaError: the evidence does not fit the passages.
        """
        source = Source(table, self.evidence_kinds)
        positives, negatives = source.evidence(POSITIVE.passages), source.evidence(NEGATIVE.passages)
        states, verdicts = self.judge(positives, negatives, source.names)
        kept, rows, count = SIDES.index(NEGATIVE.passages), negatives.rows, table.num_rows
        places = [
            SIDES.index(self.actions.get(verdict, NEGATIVE.passages)) for verdict in (ABOVE, BELOW, UNRANKED, NOTHING)
        ]
        targets = np.array(places)[verdicts]

        def number(which: Mask) -> Integers:
            return np.bincount(rows[which], minlength=count)

        relabelled, left = number(targets == SIDES.index(POSITIVE.passages)), number(targets == kept)
        status, detail = _guarded(self, number(verdicts != NOTHING), relabelled, left)
        stopped = status >= 0
        if stopped.any():
            targets = np.where(stopped[rows], kept, targets)
            relabelled, left = np.where(stopped, 0, relabelled), np.where(stopped, negatives.counts, left)
        filtered = negatives.counts - relabelled - left
        fields = {
            "status": words_of(_ROW_STATUSES, np.where(stopped, status, relabelled + filtered == 0)),
            "policy": pa.repeat(self.label, count),
            "reference": words_of(STATES, states),
            "relabelled": pa.array(relabelled.astype(np.int32)),
            "filtered": pa.array(filtered.astype(np.int32)),
            "detail": detail,
        }
        decision = pa.StructArray.from_arrays([fields[one.name] for one in DECISION_TYPE], fields=list(DECISION_TYPE))
        return source.moves(targets, decision)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        passages = passage_list_type(schema)
        arhn = [column for along in ALONG.values() for column in along]
        columns = [*arhn, DECISION, *(column for side in ALONG for column in _EVIDENCE[side] if column not in arhn)]
        return {**dict.fromkeys(ALONG, passages), **{column: ALL_EVIDENCE_TYPES[column] for column in columns}}

    def _check_choices(self, known: Mapping[str, Sequence[str]]) -> None:
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                found = getattr(self, name)
                raise ConfigurationError(f"{name} is {found!r}; one of {', '.join(choices)} was expected.")

    def _inputs(self, columns: Any) -> list[str]:
        found = list(columns)
        inputs = super()._inputs(found)
        _check_pairs(found)
        if any(column in found for column in _GONE) and (missing := _unwritten(found)):
            raise SchemaError(
                f"The rows were relabelled and lack {missing}; without these, passages would be lost. "
                "Relabel rows with all the columns that arhn.relabel has written, or those of before."
            )
        return list(dict.fromkeys(inputs))

    def _advice(self, missing: Sequence[str]) -> str:
        if not {QUERY, POSITIVE.passages, NEGATIVE.passages}.isdisjoint(missing):
            return super()._advice(missing)
        kinds = [kind for kind in EVIDENCE_KINDS if {column_of(s, kind) for s in ALONG} & set(missing)]
        stages = ", then ".join(f"ds.map({_STAGES[kind]})" for kind in kinds)
        if kinds == ["snippets"] and "ranks" in self.evidence_kinds:
            stages += ", then ds.map(arhn.ranks)"
        return f"Run the stages before first: {stages}."


_STAGES = {
    "snippets": "arhn.snippets",
    "ranks": "arhn.ranks",
    "scores": "arhn.Scores(model)",
    "verdicts": "arhn.Verdicts()",
    "grades": "arhn.Grades()",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabel(Decision):
    """Moves passages by a policy and adds where each came from and why.

    The result holds every passage that came in exactly once, in ``positive_passages``, ``negative_passages`` or
    ``filtered_passages``, each with its evidence and origin; ``decision`` says what was done to the row.
    A row that was relabelled before is reverted first, so any policy can follow any other.

    The evidence is that of ARHN, snippets and ranks (section 3.3), or that of a rival:

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
        on_shortage: With fewer, ``"keep"`` leaves the row as it came, ``"drop"`` marks it as dropped (see
            :func:`is_kept`), ``"allow"`` lets it pass.
        max_relabeled: Most negatives that may become positives in a row; None for any number.
        on_excess: With more, the same choices.
        evidence: ``"snippets"`` (with ranks), ``"verdicts"`` or ``"grades"``.
        threshold: The lowest grade of a passage that answers.
        max_matches: A row with more negatives than these that are above or below the reference is dropped; None for
            any number.

    Raises:
        ConfigurationError: a value is out of range.
        SchemaError: the rows have no evidence columns, or they do not fit the passages.
    """

    policy: str = "relabel+filter"
    reference: str = "best"
    unsupported: str = "filter"
    ties: str = "above"
    evidence: str = "snippets"
    threshold: int = 2
    max_matches: int | None = None

    def __post_init__(self) -> None:
        self._check_choices(
            {
                "policy": POLICIES,
                "reference": REFERENCES,
                "unsupported": UNSUPPORTED,
                "ties": TIES,
                "evidence": EVIDENCES,
            }
        )
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
    def actions(self) -> Mapping[int, str]:
        """Those of the policy."""
        return ACTIONS[self.policy]

    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The verdicts of the evidence."""
        rules = {"snippets": judge_by_snippets, "verdicts": judge_by_verdicts, "grades": judge_by_grades}
        return rules[self.evidence](positives, negatives, self)

    @property
    def most_matches(self) -> int | None:
        """With more, the query is too broad, or the annotator was wrong."""
        return self.max_matches

    def identity(self) -> dict[str, Any]:
        """Every option; those of other evidence only where it is used."""
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        unused: dict[str, Any] = {"evidence": "snippets", "max_matches": None}
        unused |= {} if self.evidence == "grades" else {"threshold": self.threshold}
        return {name: value for name, value in options.items() if name not in unused or value != unused[name]}


@dataclass(frozen=True, kw_only=True, eq=False)
class Revert(ColumnTransform):
    """Undoes :class:`Relabel` and every other rule: every passage goes back to its list and its place.

    Args:
        keep_evidence: Keep the columns of snippets, ranks and all other evidence, so that another rule can follow;
            without them the rows are the source rows.

    Raises:
        ConfigurationError: a value is none of its own.
        SchemaError: the rows were not relabelled.
    """

    NAME: ClassVar[str] = "revert"
    OPTIONAL: ClassVar[tuple[str, ...]] = Decision.OPTIONAL

    keep_evidence: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.keep_evidence, bool):
            raise ConfigurationError(f"keep_evidence is {self.keep_evidence!r}; True or False was expected.")

    @property
    def required(self) -> tuple[str, ...]:
        """The three passage lists and their origins, and the decision."""
        return (QUERY, POSITIVE.passages, NEGATIVE.passages, *WRITTEN)

    def identity(self) -> dict[str, Any]:
        """Every option."""
        return {"keep_evidence": self.keep_evidence}

    def compute(self, table: pa.Table) -> Mapping[str, pa.Array]:
        """The columns of the rows as they were before relabelling."""
        types = self.types(table.schema)
        decided = decided_rows(table)
        if decided.all():
            return moved_columns(table, Source(table).moves(), types)
        # The others were never relabelled, and concatenated with rows that were: they stay as they are.
        own = {
            column: shaped(lists_in(table, column), type, column)
            for column, type in types.items()
            if column in table.column_names
        }
        if not decided.any():
            return own
        back = self.compute(table.filter(pa.array(decided)))
        order = np.where(decided, np.cumsum(decided) - 1, int(decided.sum()) + np.arange(len(decided)))
        return {column: gathered([values, own[column]], order) for column, values in back.items()}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as they were before relabelling."""
        columns = [column for column in self.types(None) if column in (rows[0] if rows else ())]
        back = [{column: row[column] for column in columns} for row in rows]
        decided = [i for i, row in enumerate(rows) if row[DECISION] is not None]
        if decided:
            found = [rows[i] for i in decided]
            for i, row in zip(decided, moved_rows(found, Source(table_of_rows(found)).moves()), strict=True):
                back[i] = {column: row[column] for column in columns}
        return back

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        passages = passage_list_type(schema)
        kept = {
            column: ALL_EVIDENCE_TYPES[column]
            for side in (POSITIVE.passages, NEGATIVE.passages)
            for column in _EVIDENCE[side]
        }
        return {POSITIVE.passages: passages, NEGATIVE.passages: passages, **(kept if self.keep_evidence else {})}

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The columns that relabelling added, and the evidence where it is not kept."""
        return tuple(column for column in columns if column in self._gone())

    def _inputs(self, columns: Any) -> list[str]:
        found = list(columns)
        inputs = super()._inputs(found)
        _check_pairs(found)
        if missing := _unwritten(found):
            raise SchemaError(f"arhn.revert needs the columns {missing}. {self._advice(missing)}")
        return list(dict.fromkeys(inputs))

    def _gone(self) -> tuple[str, ...]:
        evidence = (*_EVIDENCE[POSITIVE.passages], *_EVIDENCE[NEGATIVE.passages], RANKING)
        return _GONE if self.keep_evidence else (*_GONE, *evidence)

    def _advice(self, missing: Sequence[str]) -> str:
        return "Only rows that arhn.relabel has written, with all their columns, can be reverted."


def is_kept(rows: Any) -> Any:
    """Whether a guard did not drop this relabelled row: ``ds.filter(arhn.is_kept)`` leaves what trainers can take.

    Of a batch or a table, as in ``ds.filter(arhn.is_kept, batched=True)``, it is a list or an array, and nothing but
    the decisions is read. Rows that no rule has decided upon are kept.
    """
    if isinstance(rows, pa.Table):
        if DECISION not in rows.column_names:
            return pa.repeat(True, rows.num_rows)
        statuses = field_of(one_array(rows.column(DECISION)), "status", pa.string())
        return pc.fill_null(pc.not_equal(statuses, DROPPED), True)
    decision = rows.get(DECISION)
    if decision is None and is_batch(rows):
        return [True] * len(rows[next(iter(rows))])
    if isinstance(decision, list) or hasattr(decision, "tolist"):  # of NumPy or pandas
        return [one is None or one["status"] != DROPPED for one in decision]
    return decision is None or bool(decision["status"] != DROPPED)


_ROW_STATUSES = (CHANGED, UNCHANGED, GUARDED, DROPPED)
_GUARDED, _DROPPED = 2, 3  # their places there


def states_of(placed: Mask) -> Codes:
    """The states of references that are known where ``placed`` is true, and nothing else."""
    return np.where(placed, SUPPORTED, UNKNOWN)


def judge_by_snippets(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
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
    states = np.where((denied == positives.counts) & (denied > 0), ANSWERLESS, UNKNOWN)
    states[rows[held]] = UNPLACED
    states[~np.isnan(reference)] = SUPPORTED
    verdicts = _placed(-negatives.of("ranks"), -reference[negatives.rows], options)
    answerless = {"filter": BELOW, "relabel": ABOVE, "keep": NOTHING}[options.unsupported]
    verdicts = np.where(states[negatives.rows] == ANSWERLESS, answerless, verdicts)
    return states, np.where(negatives.of("snippets") == grounded, verdicts, NOTHING)


def judge_by_verdicts(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
    """The same by set-wise verdicts: the comparison is in the evidence. Without positives there was none."""
    better, worse = range(2)
    compared, found = positives.counts > 0, negatives.of("verdicts")
    verdicts = np.select([found == better, found == worse], [ABOVE, BELOW], NOTHING)
    alone = (verdicts != NOTHING) & ~compared[negatives.rows]
    return states_of(compared), np.where(alone, UNRANKED, verdicts)


def judge_by_grades(positives: Evidence, negatives: Evidence, options: Relabel) -> tuple[Codes, Codes]:
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


def _guarded(options: Decision, matches: Integers, relabelled: Integers, left: Integers) -> tuple[Codes, pa.Array]:
    """The status of each row that must not be changed, -1 of the others, and why."""
    status, detail = np.full(len(matches), -1), pa.nulls(len(matches), pa.string())
    for most, found, choice, reason in (
        (options.most_matches, matches, "drop", "negatives match, max_matches is"),
        (options.max_relabeled, relabelled, options.on_excess, "negatives would become positives, max_relabeled is"),
        (-options.min_negatives, -left, options.on_shortage, "negatives would be left, min_negatives is"),
    ):
        if most is None or choice == "allow":
            continue
        broken = (found > most) & (status < 0)
        if broken.any():
            status[broken] = _DROPPED if choice == "drop" else _GUARDED
            said = pc.binary_join_element_wise(pa.array(np.abs(found)).cast(pa.string()), f"{reason} {abs(most)}", " ")
            detail = pc.if_else(pa.array(broken), said, detail)
    return status, detail


def _check_pairs(found: Sequence[str]) -> None:
    """Evidence of one side alone would not move along."""
    for kind in EVIDENCE_KINDS:
        positive, negative = column_of(POSITIVE.passages, kind), column_of(NEGATIVE.passages, kind)
        if (positive in found) != (negative in found):
            missing, there = (positive, negative) if negative in found else (negative, positive)
            raise SchemaError(
                f"The rows have the column {there!r} and lack {missing!r}; both or none were expected, or the evidence "
                f"would not go along with its passages. Run {_STAGES[kind]} on them, or remove the column."
            )


def _unwritten(found: Sequence[str]) -> list[str]:
    """What rows that were relabelled must have, and these have not."""
    filtered = [
        column_of(FILTERED.passages, kind) for kind in EVIDENCE_KINDS if column_of(POSITIVE.passages, kind) in found
    ]
    return [column for column in (*WRITTEN, *filtered) if column not in found]


relabel = Relabel()
revert = Revert()
