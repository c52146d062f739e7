"""What is known of a refined dataset's passages, read as numbers: a value for each judged pair and kind of evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks.row_checks import among
from arhn_datasets.checks.squad import contains, covered, is_exact, token_f1
from arhn_datasets.checks.subsets import Subsets
from arhn_datasets.checks.truth import Truth
from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.rows.arrow import (
    Integers,
    Mask,
    Numbers,
    aligned,
    check_canonical,
    field_of,
    flat_field,
    flat_lists,
    lengths_in,
    lists_of,
    rows_of,
    strings_of,
    taken,
)
from arhn_datasets.rows.records import (
    BETTER,
    DECISION,
    FILTERED,
    GROUNDED,
    KINDS,
    NEGATIVE,
    NO_ANSWER,
    NO_MATCH,
    POSITIVE,
    QUERY,
    QUERY_ID,
    RANKING,
    SIDES,
    SUBSET,
    WORSE,
    Side,
    types_of,
)
from arhn_datasets.rules.arhn import Relabel
from arhn_datasets.rules.revert import revert

RELABELLED, EITHER = "relabelled", "either"
STATUS, RANK, GRADE = "status", "rank", "grades"
SIGNALS = (STATUS, "coverage", RANK, "scores", "verdicts", GRADE)
QUALITIES = ("grounded", "exact", "contains", "f1", "offsets")

_WORTH = {NO_MATCH: 0.0, WORSE: 1.0, BETTER: 2.0}

COLUMNS = (QUERY_ID, QUERY, SUBSET, RANKING, DECISION, *types_of(tuple(KINDS)))
"""What is read of the rows, as far as it is there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Numbers of judged pairs, one value a pair: what all measures are made of.

    ``relevant`` is 1, 0, or -1 where the truth does not decide. A pair is a negative or a positive of the source; one
    that stands there twice counts once. ``signals`` are the higher the more relevant, and NaN where there is no
    evidence; ``qualities`` are NaN where no answer is known.
    """

    subset: Integers
    query: Integers
    negative: Mask
    relevant: Integers
    relabelled: Mask
    filtered: Mask
    grade: Numbers
    signals: Mapping[str, Numbers]
    qualities: Mapping[str, Numbers]

    def of(self, subset: int) -> Pairs:
        """The pairs of one subset."""
        return self.where(self.subset == subset)

    def where(self, mask: Mask) -> Pairs:
        """The pairs that a mask chooses."""
        chosen: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in chosen.items():
            within = isinstance(value, Mapping)
            chosen[name] = {key: part[mask] for key, part in value.items()} if within else value[mask]
        return Pairs(**chosen)

    @property
    def moved(self) -> dict[str, Mask]:
        """Which negatives went in each way."""
        ways = {RELABELLED: self.relabelled, FILTERED.label: self.filtered}
        return {**ways, EITHER: self.relabelled | self.filtered}


class Reader:
    """Reads tables of wide rows and keeps numbers of the pairs that the truth knows."""

    def __init__(self, truth: Truth, policies: Mapping[str, Relabel]) -> None:
        self._subsets = Subsets()
        self._truth = truth
        self._policies = dict(policies)
        self._parts: list[dict[str, Any]] = []
        self._policy_parts: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
        self._seen = np.zeros(len(truth), bool)
        self._counted: dict[str, Counter[int]] = {
            name: Counter() for name in ("rows", "rows_without_truth", "unjudged")
        }
        self._example: dict[str, str] = {}

    def read(self, table: pa.Table) -> None:
        """Take what is known of a table's passages."""
        check_canonical(table.column_names)
        missing = [side.origins for side in SIDES if side.origins not in table.column_names]
        if missing:
            raise SchemaError(
                f"The rows lack the columns {missing}: they were not relabelled. Run ds.map(arhn.relabel), or name "
                "what arhn-refine has written."
            )
        if not table.num_rows:
            return
        query_ids = strings_of(table, QUERY_ID)
        queries = self._truth.query_numbers(query_ids)
        subsets = self._subsets_of(table, queries)
        known = queries >= 0
        if not known.all() and "query" not in self._example:
            self._example["query"] = str(query_ids[int(np.argmin(known))])
        self._counted["rows"].update(subsets.tolist())
        self._counted["rows_without_truth"].update(subsets[~known].tolist())
        self._read_known(table, queries, subsets)
        if known.any() and self._policies:
            self._read_policies(table.filter(pa.array(known)), queries[known])

    def _read_known(self, table: pa.Table, queries: Integers, subsets: Integers) -> None:
        for number, side in enumerate(SIDES):
            counts, passages = flat_lists(table, side.passages)
            row, docids = rows_of(counts), field_of(passages, "docid", pa.string())
            pair = self._truth.find(queries[row], docids)
            negative = _negatives_in(table, side, counts)
            unknown = negative & (pair < 0)
            self._counted["unjudged"].update(subsets[row[unknown]].tolist())
            if "docid" not in self._example and (unknown & (queries[row] >= 0)).any():
                self._example["docid"] = str(docids[int(np.argmax(unknown & (queries[row] >= 0)))])
            at = np.flatnonzero(pair >= 0)
            pair = pair[at]
            self._seen[pair] = True
            self._parts.append(
                {
                    "subset": subsets[row[at]],
                    "pair": pair,
                    "query": queries[row[at]],
                    "negative": negative[at],
                    "side": np.full(len(at), number),
                    **_signals(table, side, counts, at),
                    **_qualities(table, side, passages, at, [self._truth.answers[p] for p in pair.tolist()]),
                }
            )

    def _read_policies(self, table: pa.Table, queries: Integers) -> None:
        try:
            source = revert(_without_texts(table))
        except SchemaError:  # no snippets: a run of another rule
            self._policies, self._policy_parts = {}, {}
        for name, policy in list(self._policies.items()):
            try:
                self._read_policy(name, policy(source), queries)
            except SchemaError:  # no ranks
                del self._policies[name], self._policy_parts[name]

    def _read_policy(self, name: str, relabelled: pa.Table, queries: Integers) -> None:
        for number, side in enumerate(SIDES):
            counts, docids = flat_field(relabelled, side.passages, "docid", pa.string())
            pair = self._truth.find(queries[rows_of(counts)], docids)
            at = np.flatnonzero((pair >= 0) & _negatives_in(relabelled, side, counts))
            self._policy_parts[name].append(
                {
                    "subset": np.zeros(len(at), np.int64),
                    "pair": pair[at],
                    "query": queries[rows_of(counts)[at]],
                    "negative": np.ones(len(at), bool),
                    "side": np.full(len(at), number),
                }
            )

    def _subsets_of(self, table: pa.Table, queries: Integers) -> Integers:
        """The number of each row's subset: the row's own, else that of the truth."""
        named = strings_of(table, SUBSET).to_pylist()
        theirs = (self._truth.subsets[query] if query >= 0 else None for query in queries.tolist())
        return np.array(
            [self._subsets.number(own or other) for own, other in zip(named, theirs, strict=True)], np.int64
        )

    @property
    def subsets(self) -> Mapping[str, int]:
        """The number of each subset that was read."""
        return self._subsets.numbers

    def pairs(self, name: Any) -> Pairs:
        """The pairs that were read.

        Raises:
            InputError: there are none.
        """
        if not self._seen.any():
            raise InputError(self._nothing_common(str(name)))
        return _merged(self._parts, self._truth)

    def policy_pairs(self) -> dict[str, Pairs]:
        """The pairs under each policy that the evidence allows."""
        return {name: _merged(parts, self._truth) for name, parts in self._policy_parts.items() if parts}

    def counts(self, subset: str | None) -> dict[str, int]:
        """What was read and what was not, of one subset or of all."""
        if subset is not None:
            return {name: found[self.subsets[subset]] for name, found in self._counted.items()}
        query = np.repeat(np.arange(len(self._truth.queries)), np.diff(self._truth.starts))
        there = np.bincount(query[self._seen], minlength=len(self._truth.queries)) > 0
        return {
            **{name: found.total() for name, found in self._counted.items()},
            "truth_queries": len(self._truth.queries),
            "truth_queries_not_in_data": int((~there).sum()),
            "truth_pairs": len(self._truth),
            "truth_pairs_not_in_data": int((~self._seen).sum()),
            "contradictory": self._truth.contradictory,
        }

    def _nothing_common(self, name: str) -> str:
        rows, without = (self._counted[key].total() for key in ("rows", "rows_without_truth"))
        truth = self._truth
        found = f"{truth.name} was read as {truth.form} with {len(truth.queries):,} queries and {len(truth):,} pairs"
        if rows == without:
            theirs = next(iter(truth.queries))
            return (
                f"{name} and the truth have no query in common. {found}, such as {theirs!r}; the {rows:,} rows have "
                f"query ids such as {self._example.get('query')!r}. Name the truth of these rows."
            )
        return (
            f"{name} and the truth have {rows - without:,} rows and no docid in common. {found}, docids such as "
            f"{truth.docids[0].as_py()!r}; the rows have docids such as {self._example.get('docid')!r}. Name the truth "
            "of these rows; a docid is compared as it is."
        )


def _without_texts(table: pa.Table) -> pa.Table:
    """The rows with docids in place of passages and statuses in place of snippets: labels follow from these."""
    for what, kept in (("passages", "docid"), ("snippets", "status")):
        for column in (side.column(what) for side in SIDES):
            if column in table.column_names:
                counts, values = flat_lists(table, column)
                slim = pa.StructArray.from_arrays([field_of(values, kept, pa.string())], names=[kept])
                table = table.set_column(table.column_names.index(column), column, lists_of(counts, slim))
    return table


def _negatives_in(table: pa.Table, side: Side, counts: Integers) -> Mask:
    """Which passages of a list were negatives in the source; by their list where the row was never relabelled."""
    found, labels = flat_field(table, side.origins, "label", pa.string())
    negative = among(aligned(labels, found, counts), (NEGATIVE.label,))
    return np.where(np.repeat(found == counts, counts), negative, side == NEGATIVE)


def _along(table: pa.Table, column: str, counts: Integers, at: Integers) -> pa.Array | None:
    """The values of a column beside some passages, null where a row has none; None where there is no such column."""
    if column not in table.column_names:
        return None
    found, values = flat_lists(table, column)
    return taken(aligned(values, found, counts), at) if len(values) else None


def _signals(table: pa.Table, side: Side, counts: Integers, at: Integers) -> dict[str, Numbers]:
    """The higher, the more relevant; NaN where there is none."""
    signals = {name: np.full(len(at), np.nan) for name in SIGNALS}
    along = {kind: _along(table, side.column(kind), counts, at) for kind in KINDS}
    if (snippets := along["snippets"]) is not None:
        status = field_of(snippets, "status", pa.string())
        signals[STATUS] = np.select([among(status, (one,)) for one in (GROUNDED, NO_ANSWER)], [1.0, 0.0], np.nan)
        said = pc.extract_regex(field_of(snippets, "detail", pa.string()), r"^coverage (?P<share>\d+(?:\.\d+)?)$")
        signals["coverage"] = _floats(field_of(said, "share", pa.string()))
    if (ranks := along["ranks"]) is not None:
        signals[RANK] = -_floats(ranks)
    if (scores := along["scores"]) is not None:
        signals["scores"] = _floats(scores)
    if (verdicts := along["verdicts"]) is not None:
        verdict = field_of(verdicts, "verdict", pa.string())
        signals["verdicts"] = np.select([among(verdict, (one,)) for one in _WORTH], list(_WORTH.values()), np.nan)
    if (grades := along["grades"]) is not None:
        signals[GRADE] = _floats(field_of(grades, "grade", pa.int32()))
    return signals


def _floats(values: pa.Array) -> Numbers:
    numbers: Numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _qualities(
    table: pa.Table, side: Side, passages: pa.Array, at: Integers, answers: Sequence[tuple[str, ...]]
) -> dict[str, Numbers]:
    """How the snippets of some passages compare with their answers; NaN where no answer is known."""
    qualities = {name: np.full(len(at), np.nan) for name in QUALITIES}
    asked = [i for i, known in enumerate(answers) if known]
    if not asked:
        return qualities
    counts, _ = lengths_in(table, side.passages)
    place = at[asked]
    snippets = _along(table, side.snippets, counts, place)
    given = [None] * len(asked) if snippets is None else snippets.to_pylist()
    texts = {
        name: field_of(passages, name, pa.string()).take(pa.array(place)).to_pylist() for name in ("text", "title")
    }
    for i, number in enumerate(asked):
        snippet = given[i] or {}
        words = snippet.get("snippet") if snippet.get("status") == GROUNDED else None
        known = answers[number]
        qualities["grounded"][number] = words is not None
        for name, compare in (("exact", is_exact), ("contains", contains), ("f1", token_f1)):
            qualities[name][number] = 0.0 if words is None else float(max(compare(words, answer) for answer in known))
        shares = [covered(snippet, {name: values[i] for name, values in texts.items()}, answer) for answer in known]
        qualities["offsets"][number] = max((share for share in shares if share is not None), default=np.nan)
    return qualities


def _merged(parts: Sequence[Mapping[str, Any]], truth: Truth) -> Pairs:
    """The pairs of all parts, each once in its subset and origin."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined["negative"], joined["pair"], joined["subset"]))
    joined = {name: values[order] for name, values in joined.items()}
    changes = [np.diff(joined[name].astype(np.int64)) != 0 for name in ("negative", "pair", "subset")]
    starts = np.flatnonzero(np.append(True, np.logical_or.reduce(changes))[: len(order)])
    moved = {side: joined["negative"] & (joined["side"] == SIDES.index(side)) for side in (POSITIVE, FILTERED)}
    if len(starts):
        moved = {side: np.logical_or.reduceat(mask, starts) for side, mask in moved.items()}
    joined = {name: values[starts] for name, values in joined.items()}
    return Pairs(
        subset=joined["subset"],
        query=joined["query"],
        negative=joined["negative"],
        relevant=truth.relevant[joined["pair"]],
        relabelled=moved[POSITIVE],
        filtered=moved[FILTERED],
        grade=truth.grades[joined["pair"]],
        signals={name: joined[name] for name in SIGNALS if name in joined},
        qualities={name: joined[name] for name in QUALITIES if name in joined},
    )
