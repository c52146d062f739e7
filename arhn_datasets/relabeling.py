"""Stage 3, relabel: from the evidence columns to new labels, and back (ARHN, section 3.3).

A pure function of the evidence: another rule or policy costs no LLM call. :class:`Decision` moves the passages, guards
the row and records why, whatever the rule; :class:`Relabel` is the rule of ARHN. There, only a negative that holds a
grounded snippet can move, and only as far as the policy and the evidence on it go; whatever failed stays where it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.records import (
    ALL_EVIDENCE_TYPES,
    BETTER,
    CHANGED,
    DECISION,
    DROPPED,
    FILTERED,
    FILTERED_ORIGINS,
    FILTERED_RANKS,
    FILTERED_SNIPPETS,
    GRADES,
    GROUNDED,
    GUARDED,
    NEGATIVE_ORIGINS,
    NEGATIVE_RANKS,
    NEGATIVE_SNIPPETS,
    NEGATIVES,
    NO_ANSWER,
    PASSAGE_TYPE,
    POSITIVE_ORIGINS,
    POSITIVE_RANKS,
    POSITIVE_SNIPPETS,
    POSITIVES,
    QUERY,
    QUERY_ID,
    RANKING,
    UNCHANGED,
    WORSE,
    Row,
    passages_of,
)
from arhn_datasets.transform import Transform

POLICIES = ("relabel", "filter", "relabel+filter")
REFERENCES = ("best", "worst")
UNSUPPORTED = ("filter", "keep", "relabel")
TIES = ("above", "below")
GUARDS = ("keep", "drop", "allow")

# What the evidence says of one negative.
ABOVE, BELOW, UNRANKED, NOTHING = "above", "below", "unranked", "nothing"

# What a policy does about it; whatever is not named stays in the negatives.
ACTIONS: Mapping[str, Mapping[str, str]] = {
    "relabel": {ABOVE: POSITIVES},
    "filter": {ABOVE: FILTERED, BELOW: FILTERED, UNRANKED: FILTERED},
    "relabel+filter": {ABOVE: POSITIVES, BELOW: FILTERED},
}

# What evidence there can be of a passage: the end of its columns, and its name in :class:`Judged`.
EVIDENCE_KINDS: Mapping[str, str] = {
    "snippets": "snippet",
    "ranks": "rank",
    "scores": "score",
    "verdicts": "verdict",
    "grades": "grade",
}
EVIDENCES = ("snippets", "verdicts", "grades")

# The passage list, and the columns of ARHN that go along with it.
ALONG: Mapping[str, tuple[str, str, str]] = {
    POSITIVES: (POSITIVE_SNIPPETS, POSITIVE_RANKS, POSITIVE_ORIGINS),
    NEGATIVES: (NEGATIVE_SNIPPETS, NEGATIVE_RANKS, NEGATIVE_ORIGINS),
    FILTERED: (FILTERED_SNIPPETS, FILTERED_RANKS, FILTERED_ORIGINS),
}
ADDED = (FILTERED, FILTERED_SNIPPETS, FILTERED_RANKS, POSITIVE_ORIGINS, NEGATIVE_ORIGINS, FILTERED_ORIGINS, DECISION)
WRITTEN = (FILTERED, POSITIVE_ORIGINS, NEGATIVE_ORIGINS, FILTERED_ORIGINS, DECISION)  # by every rule


def column_of(side: str, kind: str) -> str:
    """The column of a kind of evidence on a list of passages."""
    return f"{side.removesuffix('_passages')}_{kind}"


_EVIDENCE = {side: tuple(column_of(side, kind) for kind in EVIDENCE_KINDS) for side in ALONG}
_GONE = tuple(dict.fromkeys((*ADDED, *_EVIDENCE[FILTERED])))  # what reverting removes


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision(Transform):
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
    OPTIONAL: ClassVar[tuple[str, ...]] = (
        *_EVIDENCE[POSITIVES],
        *_EVIDENCE[NEGATIVES],
        RANKING,
        *ADDED,
        *(column for column in _EVIDENCE[FILTERED] if column not in ADDED),
    )

    min_negatives: int = 1
    on_shortage: str = "keep"
    max_relabeled: int | None = None
    on_excess: str = "keep"

    def __post_init__(self) -> None:
        self._check_choices({"on_shortage": GUARDS, "on_excess": GUARDS})
        if self.min_negatives < 0 or (self.max_relabeled is not None and self.max_relabeled < 0):
            raise ConfigurationError(
                f"min_negatives is {self.min_negatives} and max_relabeled is {self.max_relabeled}; "
                "numbers from 0 were expected."
            )

    @property
    @abstractmethod
    def label(self) -> str:
        """The rule and its policy in a word: the ``policy`` of the ``decision`` column."""

    @property
    @abstractmethod
    def evidence_kinds(self) -> tuple[str, ...]:
        """The kinds of evidence that the rule cannot do without, of :data:`EVIDENCE_KINDS`."""

    @property
    def actions(self) -> Mapping[str, str]:
        """The list into which a verdict moves a negative; with any other verdict it stays."""
        return ACTIONS["filter"]

    @abstractmethod
    def judge(self, row: Row, positives: Sequence[Judged], negatives: Sequence[Judged]) -> tuple[str, list[str]]:
        """The state of the reference, and a verdict on every negative; a pure function."""

    def refusal(self, verdicts: Sequence[str]) -> str | None:
        """Why a row with these verdicts is dropped, whatever the guards; None where it is not."""
        return None

    @property
    def required(self) -> tuple[str, ...]:
        """The passages, and the evidence that the rule looks at."""
        sides = (POSITIVES, NEGATIVES)
        return (QUERY, *sides, *(column_of(side, kind) for kind in self.evidence_kinds for side in sides))

    def identity(self) -> dict[str, Any]:
        """The rule, and every option."""
        return {"rule": type(self).__name__, **{option.name: getattr(self, option.name) for option in fields(self)}}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The relabelled rows."""
        return [relabel_row(row, self) for row in rows]

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
        if not {QUERY, POSITIVES, NEGATIVES}.isdisjoint(missing):
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
      technique ``rlhn`` is the policy ``"relabel"`` with ``max_matches=8``.
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
        if self.threshold not in GRADES[1:]:
            raise ConfigurationError(f"threshold is {self.threshold!r}; a grade from 1 to {GRADES[-1]} was expected.")
        if self.max_matches is not None and self.max_matches < 0:
            raise ConfigurationError(f"max_matches is {self.max_matches}; a number from 0, or None, was expected.")

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
    def actions(self) -> Mapping[str, str]:
        """Those of the policy."""
        return ACTIONS[self.policy]

    def judge(self, row: Row, positives: Sequence[Judged], negatives: Sequence[Judged]) -> tuple[str, list[str]]:
        """The verdicts of the evidence."""
        rules = {"snippets": judge, "verdicts": judge_by_verdicts, "grades": judge_by_grades}
        return rules[self.evidence](positives, negatives, self)

    def refusal(self, verdicts: Sequence[str]) -> str | None:
        """Too many matches: the query is too broad, or the annotator was wrong."""
        matches = sum(verdict != NOTHING for verdict in verdicts)
        if self.max_matches is None or matches <= self.max_matches:
            return None
        return f"{matches} negatives match, max_matches is {self.max_matches}"

    def identity(self) -> dict[str, Any]:
        """Every option; those of other evidence only where it is used."""
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        unused: dict[str, Any] = {"evidence": "snippets", "max_matches": None}
        unused |= {} if self.evidence == "grades" else {"threshold": self.threshold}
        return {name: value for name, value in options.items() if name not in unused or value != unused[name]}


@dataclass(frozen=True, kw_only=True, eq=False)
class Revert(Transform):
    """Undoes :class:`Relabel` and every other rule: every passage goes back to its list and its place.

    Args:
        keep_evidence: Keep the columns of snippets, ranks and all other evidence, so that another rule can follow;
            without them the rows are the source rows.

    Raises:
        SchemaError: the rows were not relabelled.
    """

    NAME: ClassVar[str] = "revert"
    OPTIONAL: ClassVar[tuple[str, ...]] = Decision.OPTIONAL

    keep_evidence: bool = True

    @property
    def required(self) -> tuple[str, ...]:
        """The three passage lists and their origins, and the decision."""
        return (QUERY, POSITIVES, NEGATIVES, *WRITTEN)

    def identity(self) -> dict[str, Any]:
        """Every option."""
        return {"keep_evidence": self.keep_evidence}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as they were before relabelling."""
        gone = self._gone()
        return [{c: v for c, v in revert_row(row).items() if c != QUERY and c not in gone} for row in rows]

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        passages = passage_list_type(schema)
        kept = {column: ALL_EVIDENCE_TYPES[column] for side in (POSITIVES, NEGATIVES) for column in _EVIDENCE[side]}
        return {POSITIVES: passages, NEGATIVES: passages, **(kept if self.keep_evidence else {})}

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
        evidence = (*_EVIDENCE[POSITIVES], *_EVIDENCE[NEGATIVES], RANKING)
        return _GONE if self.keep_evidence else (*_GONE, *evidence)

    def _advice(self, missing: Sequence[str]) -> str:
        return "Only rows that arhn.relabel has written, with all their columns, can be reverted."


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a guard did not drop this relabelled row: ``ds.filter(arhn.is_kept)`` leaves what trainers can take."""
    decision = row.get(DECISION)
    return decision is None or bool(decision["status"] != DROPPED)


def relabel_row(row: Row, options: Decision) -> dict[str, Any]:
    """The relabelled passage lists of a row with what goes along, and the decision."""
    if row.get(DECISION) is not None:
        row = revert_row(row)
    lists = {side: _judged(row, side, options.evidence_kinds) for side in (POSITIVES, NEGATIVES)}
    reference, verdicts = options.judge(row, lists[POSITIVES], lists[NEGATIVES])
    actions = options.actions
    moved: dict[str, list[Judged]] = {POSITIVES: list(lists[POSITIVES]), NEGATIVES: [], FILTERED: []}
    for negative, verdict in zip(lists[NEGATIVES], verdicts, strict=True):
        moved[actions.get(verdict, NEGATIVES)].append(negative)
    relabelled, filtered = len(moved[POSITIVES]) - len(lists[POSITIVES]), len(moved[FILTERED])
    reason = options.refusal(verdicts)
    guard, reason = (DROPPED, reason) if reason else _guard(relabelled, len(moved[NEGATIVES]), options)
    if guard is not None:
        moved, relabelled, filtered = {**lists, FILTERED: []}, 0, 0
    decision = {
        "status": guard or (CHANGED if relabelled or filtered else UNCHANGED),
        "policy": options.label,
        "reference": reference,
        "relabelled": relabelled,
        "filtered": filtered,
        "detail": reason,
    }
    return {**_columns(moved, row), DECISION: decision}


def judge(positives: Sequence[Judged], negatives: Sequence[Judged], options: Relabel) -> tuple[str, list[str]]:
    """The state of the reference positive, and a verdict on every negative, by snippets and ranks.

    The state is ``supported`` (a positive with a snippet is ranked), ``unranked`` (with a snippet, but not ranked),
    ``unsupported`` (every positive has no answer) or ``unknown`` (the evidence on the positives failed). The verdicts
    are ``above``, ``below``, ``unranked`` (a snippet, and nothing to place it by) or ``nothing`` (no snippet).
    """
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
    return state, [_verdict(negative, state, rank, options) for negative in negatives]


def _verdict(negative: Judged, state: str, reference: int | None, options: Relabel) -> str:
    if negative.snippet["status"] != GROUNDED:
        return NOTHING
    if state == "unsupported":
        return {"filter": BELOW, "relabel": ABOVE, "keep": NOTHING}[options.unsupported]
    if reference is None or negative.rank is None:
        return UNRANKED
    if negative.rank == reference:
        return options.ties
    return ABOVE if negative.rank < reference else BELOW


def judge_by_verdicts(
    positives: Sequence[Judged], negatives: Sequence[Judged], options: Relabel
) -> tuple[str, list[str]]:
    """The same by set-wise verdicts: the comparison is in the evidence. Without positives there was none."""
    state = "supported" if positives else "unknown"
    found = {BETTER: ABOVE, WORSE: BELOW} if positives else {BETTER: UNRANKED, WORSE: UNRANKED}
    given = ("" if negative.verdict is None else negative.verdict["verdict"] for negative in negatives)
    return state, [found.get(verdict, NOTHING) for verdict in given]


def judge_by_grades(
    positives: Sequence[Judged], negatives: Sequence[Judged], options: Relabel
) -> tuple[str, list[str]]:
    """The same by grades; where no positive has one, there is nothing to place a negative by."""
    known = [grade for grade in map(_grade, positives) if grade is not None]
    reference = (max(known) if options.reference == "best" else min(known)) if known else None

    def verdict(grade: int | None) -> str:
        if grade is None or grade < options.threshold:
            return NOTHING
        if reference is None:
            return UNRANKED
        if grade == reference:
            return options.ties
        return ABOVE if grade > reference else BELOW

    return "unknown" if reference is None else "supported", [verdict(_grade(negative)) for negative in negatives]


def _grade(judged: Judged) -> int | None:
    grade: int | None = None if judged.grade is None else judged.grade["grade"]
    return grade


def _guard(relabelled: int, negatives: int, options: Decision) -> tuple[str | None, str | None]:
    """The status of a row that must not be changed, and why."""
    for broken, choice, reason in (
        (
            options.max_relabeled is not None and relabelled > options.max_relabeled,
            options.on_excess,
            f"{relabelled} negatives would become positives, max_relabeled is {options.max_relabeled}",
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


def revert_row(row: Row) -> Row:
    """A relabelled row as it was: passages and evidence in the lists and places that their origins name."""
    if row[DECISION] is None:  # never relabelled, and concatenated with rows that were
        return {column: value for column, value in row.items() if column not in _GONE}
    back: dict[str, list[tuple[int, Judged]]] = {POSITIVES: [], NEGATIVES: []}
    for side in ALONG:
        for judged, origin in zip(_judged(row, side), row[column_of(side, "origins")], strict=True):
            back[f"{origin['label']}_passages"].append((origin["position"], judged))
    lists = {side: [judged for _, judged in sorted(pairs, key=lambda pair: pair[0])] for side, pairs in back.items()}
    names = {column: row[column] for column in (QUERY, QUERY_ID) if column in row}
    return {**names, **{c: v for c, v in _columns(lists, row).items() if c not in _GONE}}


def passage_list_type(schema: pa.Schema | None) -> pa.DataType | None:
    """The list type that holds the positives as well as the negatives of a schema; None without a schema.

    Fields that only one side has are null on the other.

    Raises:
        SchemaError: a field has types on the two sides that nothing holds together.
    """
    if schema is None:
        return None
    found = [schema.field(side).type.value_type for side in (POSITIVES, NEGATIVES)]
    structs = [type for type in found if pa.types.is_struct(type)] or [PASSAGE_TYPE]
    try:
        merged = pa.unify_schemas([pa.schema(list(struct)) for struct in structs], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(
            f"The passages of {POSITIVES!r} and of {NEGATIVES!r} cannot stand in one list: {error}. "
            "Cast or remove the field on one side."
        ) from error
    return pa.list_(pa.struct(list(merged)))


def _judged(row: Row, side: str, needed: Sequence[str] = ()) -> list[Judged]:
    """The passages of a list with the evidence on them; a list of evidence that is null is not there."""
    passages = passages_of(row, side)
    evidence: dict[str, Sequence[Any]] = {}
    for kind, name in EVIDENCE_KINDS.items():
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


def _columns(lists: Mapping[str, Sequence[Judged]], row: Row) -> dict[str, Any]:
    """The columns of passage lists with what goes along; evidence where ``row`` has it, null where its is."""
    columns: dict[str, Any] = {}
    kinds = [kind for kind in EVIDENCE_KINDS if column_of(POSITIVES, kind) in row]
    known = {
        kind for kind in kinds if any(row.get(column_of(side, kind)) is not None for side in (POSITIVES, NEGATIVES))
    }
    for side, judged in lists.items():
        columns[side] = [one.passage for one in judged]
        for kind in kinds:
            name = EVIDENCE_KINDS[kind]
            columns[column_of(side, kind)] = [getattr(one, name) for one in judged] if kind in known else None
        columns[column_of(side, "origins")] = [{"label": one.label, "position": one.position} for one in judged]
    return columns


def _check_pairs(found: Sequence[str]) -> None:
    """Evidence of one side alone would not move along."""
    for kind in EVIDENCE_KINDS:
        positive, negative = column_of(POSITIVES, kind), column_of(NEGATIVES, kind)
        if (positive in found) != (negative in found):
            missing, there = (positive, negative) if negative in found else (negative, positive)
            raise SchemaError(
                f"The rows have the column {there!r} and lack {missing!r}; both or none were expected, or the evidence "
                f"would not go along with its passages. Run {_STAGES[kind]} on them, or remove the column."
            )


def _unwritten(found: Sequence[str]) -> list[str]:
    """What rows that were relabelled must have, and these have not."""
    filtered = [column_of(FILTERED, kind) for kind in EVIDENCE_KINDS if column_of(POSITIVES, kind) in found]
    return [column for column in (*WRITTEN, *filtered) if column not in found]


relabel = Relabel()
revert = Revert()
