"""What every rule shares: it moves the passages of a row by a verdict on each negative, guards the row, and says why.

A pure function of the evidence: another rule or policy costs no LLM call. A rule is computed on whole columns: from the
evidence on the passages of all rows to one code a negative. It is one file of this folder, found by its class.
"""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows import records
from arhn_datasets.rows.arrow import Codes, Integers, Mask, field_of, one_array
from arhn_datasets.rows.extensions import modules_in, subclasses_of
from arhn_datasets.rows.options import Option, check_choices, check_integer
from arhn_datasets.rows.records import DECISION, FILTERED, KINDS, LABELLED, NEGATIVE, POSITIVE, SIDES, Side
from arhn_datasets.rows.stage import is_batch
from arhn_datasets.rules.moves import ORIGINS, Evidence, MovingTransform, Names, Undecided, passage_list_type, words_of

GUARDS = ("keep", "drop", "allow")

# What the evidence says of one negative.
VERDICT_CODES = ABOVE, BELOW, UNRANKED, NOTHING = range(4)

# What it says of the positives: one with evidence is placed, has nothing to place it by, none has an answer, or it
# failed. The names are those of the ``reference`` in the ``decision`` column.
STATES = ("supported", "unranked", "unsupported", "unknown")
SUPPORTED, UNPLACED, ANSWERLESS, UNKNOWN = range(len(STATES))

# What a policy does about it; whatever is not named stays in the negatives.
ACTIONS: Mapping[str, Mapping[int, Side]] = {
    "relabel": {ABOVE: POSITIVE},
    "filter": {ABOVE: FILTERED, BELOW: FILTERED, UNRANKED: FILTERED},
    "relabel+filter": {ABOVE: POSITIVE, BELOW: FILTERED},
}

EVIDENCE_COLUMNS = tuple(side.column(kind) for side in LABELLED for kind in records.EVIDENCE_KINDS)
WRITTEN = (FILTERED.passages, *ORIGINS, DECISION)  # by every rule
ADDED = (*WRITTEN, *(FILTERED.column(kind) for kind in records.EVIDENCE_KINDS))  # by a rule over rows with all evidence


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision(MovingTransform):
    """Moves passages by a rule over their evidence, and says why, as :class:`~arhn_datasets.Relabel` does.

    A subclass gives the rule, :meth:`judge`, and what becomes of each verdict, :attr:`actions`. With an option
    ``max_matches`` a row with more verdicts than these, of any but :data:`NOTHING`, is dropped, whatever the guards.
    """

    NAME: ClassVar[str] = "relabel"
    ORDER: ClassVar[int] = 3
    OPTIONAL: ClassVar[tuple[str, ...]] = (*EVIDENCE_COLUMNS, records.RANKING, *ADDED)

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "min_negatives": Option(help="fewest that a row has left", metavar="NUMBER"),
        "on_shortage": Option(help="what becomes of a row with fewer", choices=GUARDS),
        "max_relabelled": Option(help="most new positives in a row", metavar="NUMBER"),
        "on_excess": Option(help="what becomes of a row with more", choices=GUARDS),
    }
    """The options of a command that go with it, by the names of its own."""

    WAYS: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    """Options of which each reads other evidence; a command takes those that read the evidence that is asked for."""

    min_negatives: int = 1
    on_shortage: str = "drop"
    max_relabelled: int | None = None
    on_excess: str = "keep"

    def __post_init__(self) -> None:
        check_choices(self, {"on_shortage": GUARDS, "on_excess": GUARDS})
        check_integer("min_negatives", self.min_negatives, 0)
        check_integer("max_relabelled", self.max_relabelled, 0, optional=True)

    @property
    @abstractmethod
    def label(self) -> str:
        """The rule and its policy in a word: the ``policy`` of the ``decision`` column."""

    @property
    @abstractmethod
    def evidence_kinds(self) -> tuple[str, ...]:
        """The kinds of evidence that the rule cannot do without, of :data:`~arhn_datasets.rows.KINDS`."""

    @property
    def actions(self) -> Mapping[int, Side]:
        """The list into which a verdict moves a negative; with any other verdict it stays."""
        return ACTIONS["filter"]

    @abstractmethod
    def judge(self, positives: Evidence, negatives: Evidence, names: Names) -> tuple[Codes, Codes]:
        """The state of each row's reference, and a verdict on every negative; a pure function.

        ``names`` gives the names of some rows, by their numbers.
        """

    @property
    def required(self) -> tuple[str, ...]:
        """The passages, and the evidence that the rule looks at."""
        return (records.QUERY, *(side.column(kind) for kind in ("passages", *self.evidence_kinds) for side in LABELLED))

    def identity(self) -> dict[str, Any]:
        """The rule, and every option."""
        return {"rule": type(self).__name__, **{option.name: getattr(self, option.name) for option in fields(self)}}

    def moved(self, table: pa.Table, types: Mapping[str, Any]) -> Mapping[str, pa.Array]:
        """The columns of the relabelled rows.

        Raises:
            SchemaError: the evidence does not fit the passages.
        """
        source = Undecided(table, self.evidence_kinds)
        positives, negatives = source.evidence(POSITIVE), source.evidence(NEGATIVE)
        states, verdicts = self.judge(positives, negatives, source.names)
        kept, rows, count = SIDES.index(NEGATIVE), negatives.rows, table.num_rows
        targets = np.array([SIDES.index(self.actions.get(code, NEGATIVE)) for code in VERDICT_CODES])[verdicts]

        def number(which: Mask) -> Integers:
            return np.bincount(rows[which], minlength=count)

        relabelled, left = number(targets == SIDES.index(POSITIVE)), number(targets == kept)
        status, detail = _guarded(self, number(verdicts != NOTHING), relabelled, left)
        stopped = status >= 0
        if stopped.any():
            targets = np.where(stopped[rows], kept, targets)
            relabelled, left = np.where(stopped, 0, relabelled), np.where(stopped, negatives.counts, left)
        filtered = negatives.counts - relabelled - left
        columns = [  # of DECISION_TYPE, in its order
            words_of(records.DECISION_STATUSES, np.where(stopped, status, relabelled + filtered == 0)),
            pa.repeat(self.label, count),
            words_of(STATES, states),
            pa.array(relabelled.astype(np.int32)),
            pa.array(filtered.astype(np.int32)),
            detail,
        ]
        decision = pa.StructArray.from_arrays(columns, fields=list(records.DECISION_TYPE))
        return source.moved(types, targets, decision)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        columns = [
            *(side.column(kind) for side in SIDES for kind in (*records.ARHN_KINDS, "origins")),
            DECISION,
            *(side.column(kind) for side in SIDES for kind in records.FURTHER_KINDS),
        ]
        passages = dict.fromkeys((side.passages for side in SIDES), passage_list_type(schema))
        return {**passages, **{column: records.ALL_EVIDENCE_TYPES[column] for column in columns}}

    def _inputs(self, columns: Any) -> list[str]:
        inputs = super()._inputs(given := list(columns))
        check_pairs(given)
        if any(column in given for column in ADDED) and (missing := unwritten(given)):
            raise SchemaError(
                f"The rows were relabelled and lack {missing}; without these, passages would be lost. "
                "Relabel rows with all the columns that arhn.relabel has written, or those of before."
            )
        return inputs

    def _advice(self, missing: Sequence[str]) -> str:
        if not {records.QUERY, *(side.passages for side in LABELLED)}.isdisjoint(missing):
            return super()._advice(missing)
        kinds = [kind for kind in records.EVIDENCE_KINDS if {side.column(kind) for side in SIDES} & set(missing)]
        if kinds == ["snippets"] and "ranks" in self.evidence_kinds:
            kinds.append("ranks")  # which are ranks of snippets
        return f"Run the stages before first: {', then '.join(f'ds.map({KINDS[kind].stage})' for kind in kinds)}."


def is_kept(rows: Any) -> Any:
    """Whether a guard did not drop this relabelled row: ``ds.filter(arhn.is_kept)`` leaves what trainers can take.

    Of a batch or a table, as in ``ds.filter(arhn.is_kept, batched=True)``, it is a list or an array, and nothing but
    the decisions is read. Rows that no rule has decided upon are kept.
    """
    if isinstance(rows, pa.Table):
        if DECISION not in rows.column_names:
            return pa.repeat(True, rows.num_rows)
        statuses = field_of(one_array(rows.column(DECISION)), "status", pa.string())
        return pc.fill_null(pc.not_equal(statuses, records.DROPPED), True)
    decision = rows.get(DECISION)
    if decision is None and is_batch(rows):
        return [True] * len(rows[next(iter(rows))])
    if isinstance(decision, list) or hasattr(decision, "tolist"):  # of NumPy or pandas
        return [one is None or one["status"] != records.DROPPED for one in decision]
    return decision is None or bool(decision["status"] != records.DROPPED)


def states_of(placed: Mask) -> Codes:
    """The states of references that are known where ``placed`` is true, and nothing else."""
    return np.where(placed, SUPPORTED, UNKNOWN)


def _guarded(options: Decision, matches: Integers, relabelled: Integers, left: Integers) -> tuple[Codes, pa.Array]:
    """The status of each row that must not be changed, -1 of the others, and why."""
    most = getattr(options, "max_matches", None)  # with more the query is too broad, or the annotator was wrong
    status, detail = np.full(len(matches), -1), pa.nulls(len(matches), pa.string())
    for numbers, breaks, limit, choice, reason in (
        (matches, np.greater, most, "drop", "match, max_matches"),
        (relabelled, np.greater, options.max_relabelled, options.on_excess, "would become positives, max_relabelled"),
        (left, np.less, options.min_negatives, options.on_shortage, "would be left, min_negatives"),
    ):
        if limit is None or choice == "allow":
            continue
        broken = breaks(numbers, limit) & (status < 0)
        if broken.any():
            status[broken] = records.DECISION_STATUSES.index(records.DROPPED if choice == "drop" else records.GUARDED)
            why = f"negatives {reason} is {limit}"
            said = pc.binary_join_element_wise(pa.array(numbers).cast(pa.string()), why, " ")
            detail = pc.if_else(pa.array(broken), said, detail)
    return status, detail


def check_pairs(columns: Sequence[str]) -> None:
    """Refuse evidence of one side alone, which would not move along.

    Raises:
        SchemaError: says which column there is and which there is not.
    """
    for kind in records.EVIDENCE_KINDS:
        missing = [side.column(kind) for side in LABELLED if side.column(kind) not in columns]
        if len(missing) == 1:
            there = next(side.column(kind) for side in LABELLED if side.column(kind) in columns)
            raise SchemaError(
                f"The rows have the column {there!r} and lack {missing[0]!r}; both or none were expected, or the "
                f"evidence would not go along with its passages. Run {KINDS[kind].stage} on them, or remove the column."
            )


def unwritten(columns: Sequence[str]) -> list[str]:
    """What rows that were relabelled must have, and rows with these columns have not."""
    filtered = [FILTERED.column(kind) for kind in records.EVIDENCE_KINDS if POSITIVE.column(kind) in columns]
    return [column for column in (*WRITTEN, *filtered) if column not in columns]


@cache
def known_rules() -> Mapping[str, type[Decision]]:
    """Every rule by the name under which ``run.json`` has it, that of its class."""
    from arhn_datasets import rules

    names = [module.__name__ for module in modules_in(rules)]
    found = [cls for cls in subclasses_of(Decision) if cls.__module__ in names and not inspect.isabstract(cls)]
    return {cls.__name__: cls for cls in sorted(found, key=lambda cls: cls.__module__)}


def called(rule: type[Decision]) -> str:
    """What commands call a rule."""
    return re.sub(r"\B[A-Z]", r"-\g<0>", str(rule.__name__)).lower()


def rule_of(parameters: Mapping[str, Any]) -> Decision:
    """The rule of the ``relabel`` parameters in ``run.json``; without a name that of ARHN.

    Raises:
        ConfigurationError: there is no such rule, or a value is out of range.
        TypeError: the rule has no such option.
    """
    options = dict(parameters)
    name = options.pop("rule", "Relabel")  # whose identity has no name
    if name not in known_rules():
        raise ConfigurationError(f"The rule is {name!r}; one of {', '.join(known_rules())} was expected.")
    return known_rules()[name](**options)
