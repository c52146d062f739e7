"""Stage 3, relabel: from the evidence columns to new labels, and back (ARHN, section 3.3).

A pure function of the evidence: another policy costs no LLM call. Only a negative that holds a grounded snippet can
move, and only as far as the policy and the evidence on it go; whatever failed stays where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.records import (
    CHANGED,
    DECISION,
    DROPPED,
    EVIDENCE_TYPES,
    FILTERED,
    FILTERED_ORIGINS,
    FILTERED_RANKS,
    FILTERED_SNIPPETS,
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
    RANKING,
    UNCHANGED,
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

# The passage list, and the columns that go along with it.
ALONG: Mapping[str, tuple[str, str, str]] = {
    POSITIVES: (POSITIVE_SNIPPETS, POSITIVE_RANKS, POSITIVE_ORIGINS),
    NEGATIVES: (NEGATIVE_SNIPPETS, NEGATIVE_RANKS, NEGATIVE_ORIGINS),
    FILTERED: (FILTERED_SNIPPETS, FILTERED_RANKS, FILTERED_ORIGINS),
}
ADDED = (FILTERED, FILTERED_SNIPPETS, FILTERED_RANKS, POSITIVE_ORIGINS, NEGATIVE_ORIGINS, FILTERED_ORIGINS, DECISION)
WRITTEN = tuple(column for column in ADDED if column != FILTERED_RANKS)  # also by a policy that needs no ranks


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One passage with all that is known of it: what moves as a whole."""

    passage: Any
    snippet: Any
    rank: int | None
    label: str
    position: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabel(Transform):
    """Moves passages by a policy and adds where each came from and why.

    The result holds every passage that came in exactly once, in ``positive_passages``, ``negative_passages`` or
    ``filtered_passages``, each with its snippet, rank and origin; ``decision`` says what was done to the row.
    A row that was relabelled before is reverted first, so any policy can follow any other.

    Args:
        policy: ``"relabel"`` (above the reference becomes a positive), ``"filter"`` (every answer-bearing negative
            leaves the negatives) or ``"relabel+filter"`` (above becomes a positive, below leaves).
        reference: With several positives, compare with the ``"best"`` or the ``"worst"`` ranked one.
        unsupported: What becomes of answer-bearing negatives where no positive has an answer: ``"filter"``,
            ``"keep"`` or ``"relabel"``, as far as the policy does such a thing.
        ties: Whether a negative that shares the reference's rank, because it holds the very same words, counts as
            ``"above"`` or ``"below"``.
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
    OPTIONAL: ClassVar[tuple[str, ...]] = (POSITIVE_RANKS, NEGATIVE_RANKS, RANKING, *ADDED)

    policy: str = "relabel+filter"
    reference: str = "best"
    unsupported: str = "filter"
    ties: str = "above"
    min_negatives: int = 1
    on_shortage: str = "keep"
    max_relabeled: int | None = None
    on_excess: str = "keep"

    def __post_init__(self) -> None:
        for name, known in (
            ("policy", POLICIES),
            ("reference", REFERENCES),
            ("unsupported", UNSUPPORTED),
            ("ties", TIES),
            ("on_shortage", GUARDS),
            ("on_excess", GUARDS),
        ):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; one of {', '.join(known)} was expected.")
        if self.min_negatives < 0 or (self.max_relabeled is not None and self.max_relabeled < 0):
            raise ConfigurationError(
                f"min_negatives is {self.min_negatives} and max_relabeled is {self.max_relabeled}; "
                "numbers from 0 were expected."
            )

    @property
    def required(self) -> tuple[str, ...]:
        """The passages, their snippets, and their ranks where the policy looks at them."""
        ranks = () if self.policy == "filter" else (POSITIVE_RANKS, NEGATIVE_RANKS)
        return (QUERY, POSITIVES, NEGATIVES, POSITIVE_SNIPPETS, NEGATIVE_SNIPPETS, *ranks)

    def identity(self) -> dict[str, Any]:
        """Every option."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The relabelled rows."""
        return [relabel_row(row, self) for row in rows]

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Passages as in the input, and the evidence types."""
        columns = (*ALONG, *(column for along in ALONG.values() for column in along), DECISION)
        passages = passage_list_type(schema)
        return {column: passages if column in ALONG else EVIDENCE_TYPES[column] for column in columns}

    def _inputs(self, columns: Any) -> list[str]:
        found = list(columns)
        missing = [column for column in WRITTEN if column not in found]
        if len(missing) < len(WRITTEN) and missing:
            raise SchemaError(
                f"The rows were relabelled and lack {missing}; without these, passages would be lost. "
                "Relabel rows with all the columns that arhn.relabel has written, or those of before."
            )
        return list(dict.fromkeys(super()._inputs(found)))

    def _advice(self, missing: Sequence[str]) -> str:
        if not {QUERY, POSITIVES, NEGATIVES}.isdisjoint(missing):
            return super()._advice(missing)
        snippets = {POSITIVE_SNIPPETS, NEGATIVE_SNIPPETS}.isdisjoint(missing)
        stages = "ds.map(arhn.ranks)" if snippets else "ds.map(arhn.snippets), then ds.map(arhn.ranks)"
        return f"Run the stages before first: {stages}."


@dataclass(frozen=True, kw_only=True, eq=False)
class Revert(Transform):
    """Undoes :class:`Relabel`: every passage goes back to its list and its place.

    Args:
        keep_evidence: Keep the snippet and rank columns, so that another policy can follow; without them the rows are
            the source rows.

    Raises:
        SchemaError: the rows were not relabelled.
    """

    NAME: ClassVar[str] = "revert"
    OPTIONAL: ClassVar[tuple[str, ...]] = Relabel.OPTIONAL

    keep_evidence: bool = True

    @property
    def required(self) -> tuple[str, ...]:
        """The three passage lists, their snippets and their origins, and the decision."""
        return (QUERY, POSITIVES, NEGATIVES, POSITIVE_SNIPPETS, NEGATIVE_SNIPPETS, *WRITTEN)

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
        kept = {column: EVIDENCE_TYPES[column] for side in (POSITIVES, NEGATIVES) for column in ALONG[side][:2]}
        return {POSITIVES: passages, NEGATIVES: passages, **(kept if self.keep_evidence else {})}

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The columns that relabelling added, and the evidence where it is not kept."""
        return tuple(column for column in columns if column in self._gone())

    def _inputs(self, columns: Any) -> list[str]:
        return list(dict.fromkeys(super()._inputs(columns)))

    def _gone(self) -> tuple[str, ...]:
        evidence = (*ALONG[POSITIVES][:2], *ALONG[NEGATIVES][:2], RANKING)
        return ADDED if self.keep_evidence else (*ADDED, *evidence)

    def _advice(self, missing: Sequence[str]) -> str:
        return "Only rows that arhn.relabel has written, with all their columns, can be reverted."


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a guard did not drop this relabelled row: ``ds.filter(arhn.is_kept)`` leaves what trainers can take."""
    decision = row.get(DECISION)
    return decision is None or bool(decision["status"] != DROPPED)


def relabel_row(row: Row, options: Relabel) -> dict[str, Any]:
    """The relabelled passage lists of a row with what goes along, and the decision."""
    if row.get(DECISION) is not None:
        row = revert_row(row)
    lists = {side: _judged(row, side) for side in (POSITIVES, NEGATIVES)}
    reference, verdicts = judge(lists[POSITIVES], lists[NEGATIVES], options)
    actions = ACTIONS[options.policy]
    moved: dict[str, list[Judged]] = {POSITIVES: list(lists[POSITIVES]), NEGATIVES: [], FILTERED: []}
    for negative, verdict in zip(lists[NEGATIVES], verdicts, strict=True):
        moved[actions.get(verdict, NEGATIVES)].append(negative)
    relabelled, filtered = len(moved[POSITIVES]) - len(lists[POSITIVES]), len(moved[FILTERED])
    guard, reason = _guard(relabelled, len(moved[NEGATIVES]), options)
    if guard is not None:
        moved, relabelled, filtered = {**lists, FILTERED: []}, 0, 0
    decision = {
        "status": guard or (CHANGED if relabelled or filtered else UNCHANGED),
        "policy": options.policy,
        "reference": reference,
        "relabelled": relabelled,
        "filtered": filtered,
        "detail": reason,
    }
    return {**_columns(moved, row), DECISION: decision}


def judge(positives: Sequence[Judged], negatives: Sequence[Judged], options: Relabel) -> tuple[str, list[str]]:
    """The state of the reference positive, and a verdict on every negative.

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


def _guard(relabelled: int, negatives: int, options: Relabel) -> tuple[str | None, str | None]:
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
    """A relabelled row as it was: passages, snippets and ranks in the lists and places that their origins name."""
    if row[DECISION] is None:  # never relabelled, and concatenated with rows that were
        return {column: value for column, value in row.items() if column not in ADDED}
    back: dict[str, list[tuple[int, Judged]]] = {POSITIVES: [], NEGATIVES: []}
    for side in ALONG:
        for judged, origin in zip(_judged(row, side), row[ALONG[side][2]], strict=True):
            back[f"{origin['label']}_passages"].append((origin["position"], judged))
    lists = {side: [judged for _, judged in sorted(pairs, key=lambda pair: pair[0])] for side, pairs in back.items()}
    return {QUERY: row[QUERY], **{c: v for c, v in _columns(lists, row).items() if c not in ADDED}}


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


def _judged(row: Row, side: str) -> list[Judged]:
    passages = passages_of(row, side)
    snippets, ranks = row[ALONG[side][0]], row.get(ALONG[side][1])
    for column, values in ((ALONG[side][0], snippets or []), (ALONG[side][1], ranks)):
        if values is not None and len(values) != len(passages):
            raise SchemaError(
                f"Column {column!r} has {len(values)} values for {len(passages)} passages in {side!r} (query "
                f"{row[QUERY]!r}); one each was expected. Run the stages before again on these rows."
            )
    return [
        Judged(
            passage=passage,
            snippet=snippets[i],
            rank=None if ranks is None else ranks[i],
            label=side.removesuffix("_passages"),
            position=i,
        )
        for i, passage in enumerate(passages)
    ]


def _columns(lists: Mapping[str, Sequence[Judged]], row: Row) -> dict[str, Any]:
    """The columns of passage lists with what goes along; ranks where ``row`` has them, null where its are."""
    columns: dict[str, Any] = {}
    ranked = row.get(POSITIVE_RANKS) is not None or row.get(NEGATIVE_RANKS) is not None
    for side, judged in lists.items():
        snippets, placed, origins = ALONG[side]
        columns[side] = [one.passage for one in judged]
        columns[snippets] = [one.snippet for one in judged]
        if POSITIVE_RANKS in row:
            columns[placed] = [one.rank for one in judged] if ranked else None
        columns[origins] = [{"label": one.label, "position": one.position} for one in judged]
    return columns


relabel = Relabel()
revert = Revert()
