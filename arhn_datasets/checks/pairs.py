"""What is known of a refined dataset's passages, read as numbers: a value for each judged pair and kind of evidence."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks.truth import Truth
from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.folder.report import MOST_SUBSETS, NO_SUBSET, OTHER_SUBSETS
from arhn_datasets.rows.arrow import (
    Integers,
    check_canonical,
    field_of,
    flat_lists,
    lists_of,
    rows_of,
    strings_of,
    taken,
)
from arhn_datasets.rows.records import (
    BETTER,
    DECISION,
    GROUNDED,
    NO_ANSWER,
    NO_MATCH,
    QUERY,
    QUERY_ID,
    RANKING,
    SUBSET,
    WORSE,
)
from arhn_datasets.rules.arhn import Relabel
from arhn_datasets.rules.revert import revert

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

RELABELLED, FILTERED, EITHER = "relabelled", "filtered", "either"
STATUS, COVERAGE, RANK, SCORES, VERDICTS, GRADES = "status", "coverage", "rank", "scores", "verdicts", "grades"
SIGNALS = (STATUS, COVERAGE, RANK, SCORES, VERDICTS, GRADES)
QUALITIES = ("grounded", "exact", "contains", "f1", "offsets")

_SIDES = ("positive", "negative", "filtered")
_POSITIVE, _KEPT, _FILTERED = range(3)
_ALONG = ("passages", "snippets", "ranks", "origins", "scores", "verdicts", "grades")
_WORTH = {NO_MATCH: 0.0, WORSE: 1.0, BETTER: 2.0}

COLUMNS = (QUERY_ID, QUERY, SUBSET, RANKING, DECISION, *(f"{side}_{name}" for side in _SIDES for name in _ALONG))
"""What is read of the rows, as far as it is there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Numbers of judged pairs, one value a pair: what all figures are made of.

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

    def of(self, subset: int) -> Judged:
        """The pairs of one subset."""
        return self.where(self.subset == subset)

    def where(self, mask: Mask) -> Judged:
        """The pairs that a mask chooses."""
        chosen: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in chosen.items():
            within = isinstance(value, Mapping)
            chosen[name] = {key: part[mask] for key, part in value.items()} if within else value[mask]
        return Judged(**chosen)

    @property
    def moved(self) -> dict[str, Mask]:
        """Which negatives went in each way."""
        ways = {RELABELLED: self.relabelled, FILTERED: self.filtered}
        return {**ways, EITHER: self.relabelled | self.filtered}


class Reader:
    """Reads tables of wide rows and keeps numbers of the pairs that the truth knows."""

    def __init__(self, truth: Truth, policies: Mapping[str, Relabel]) -> None:
        self.subsets: dict[str, int] = {}
        self._truth = truth
        self._policies = dict(policies)
        self._parts: list[dict[str, Any]] = []
        self._policy_parts: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
        self._seen = np.zeros(len(truth), bool)
        self._rows = {"rows": np.zeros(0, np.int64), "rows_without_truth": np.zeros(0, np.int64)}
        self._unjudged = np.zeros(0, np.int64)
        self._example: dict[str, str] = {}

    def read(self, table: pa.Table) -> None:
        """Take what is known of a table's passages."""
        check_canonical(table.column_names)
        missing = [column for column in (f"{side}_origins" for side in _SIDES) if column not in table.column_names]
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
        self._count("rows", np.bincount(subsets, minlength=len(self.subsets)))
        self._count("rows_without_truth", np.bincount(subsets[~known], minlength=len(self.subsets)))
        self._read_known(table, queries, subsets)
        if known.any() and self._policies:
            self._read_policies(table.filter(pa.array(known)), queries[known])

    def _read_known(self, table: pa.Table, queries: Integers, subsets: Integers) -> None:
        for side in range(len(_SIDES)):
            counts, passages = flat_lists(table, f"{_SIDES[side]}_passages")
            row, docids = rows_of(counts), field_of(passages, "docid", pa.string())
            pair = self._truth.find(queries[row], docids)
            negative = _negatives_in(table, side, counts)
            unknown = negative & (pair < 0)
            self._unjudged = _added(self._unjudged, np.bincount(subsets[row[unknown]], minlength=len(self.subsets)))
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
                    "side": np.full(len(at), side),
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
        for side in range(len(_SIDES)):
            counts, passages = flat_lists(relabelled, f"{_SIDES[side]}_passages")
            pair = self._truth.find(queries[rows_of(counts)], field_of(passages, "docid", pa.string()))
            at = np.flatnonzero((pair >= 0) & _negatives_in(relabelled, side, counts))
            self._policy_parts[name].append(
                {
                    "subset": np.zeros(len(at), np.int64),
                    "pair": pair[at],
                    "query": queries[rows_of(counts)[at]],
                    "negative": np.ones(len(at), bool),
                    "side": np.full(len(at), side),
                }
            )

    def _subsets_of(self, table: pa.Table, queries: Integers) -> Integers:
        """The number of each row's subset: the row's own, else that of the truth."""
        named = strings_of(table, SUBSET).to_pylist()
        numbers = []
        for name, query in zip(named, queries.tolist(), strict=True):
            name = name or (self._truth.subsets[query] if query >= 0 else None) or NO_SUBSET
            if name not in self.subsets and len(self.subsets) >= MOST_SUBSETS:
                name = OTHER_SUBSETS
            numbers.append(self.subsets.setdefault(name, len(self.subsets)))
        return np.array(numbers, np.int64)

    def _count(self, name: str, counts: Integers) -> None:
        self._rows[name] = _added(self._rows[name], counts)

    def judged(self, name: Any) -> Judged:
        """The pairs that were read.

        Raises:
            InputError: there are none.
        """
        if not self._seen.any():
            raise InputError(self._nothing_common(str(name)))
        return _merged(self._parts, self._truth)

    def policy_pairs(self) -> dict[str, Judged]:
        """The pairs under each policy that the evidence allows."""
        return {name: _merged(parts, self._truth) for name, parts in self._policy_parts.items() if parts}

    def counts(self, subset: str | None) -> dict[str, int]:
        """What was read and what was not, of one subset or of all."""

        def of(numbers: Integers) -> int:
            if subset is None:
                return int(numbers.sum())
            at = self.subsets[subset]
            return int(numbers[at]) if at < len(numbers) else 0

        counted = {**{name: of(numbers) for name, numbers in self._rows.items()}, "unjudged": of(self._unjudged)}
        if subset is None:
            query = np.repeat(np.arange(len(self._truth.queries)), np.diff(self._truth.starts))
            there = np.bincount(query[self._seen], minlength=len(self._truth.queries)) > 0
            counted["truth_queries"] = len(self._truth.queries)
            counted["truth_queries_not_in_data"] = int((~there).sum())
            counted["truth_pairs"] = len(self._truth)
            counted["truth_pairs_not_in_data"] = int((~self._seen).sum())
            counted["contradictory"] = self._truth.contradictory
        return counted

    def _nothing_common(self, name: str) -> str:
        rows, without = (int(self._rows[key].sum()) for key in ("rows", "rows_without_truth"))
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
        for column in (f"{side}_{what}" for side in _SIDES):
            if column in table.column_names:
                counts, values = flat_lists(table, column)
                slim = pa.StructArray.from_arrays([field_of(values, kept, pa.string())], names=[kept])
                table = table.set_column(table.column_names.index(column), column, lists_of(counts, slim))
    return table


def _added(numbers: Integers, counts: Integers) -> Integers:
    wide = np.zeros(max(len(numbers), len(counts)), np.int64)
    wide[: len(numbers)] += numbers
    wide[: len(counts)] += counts
    return wide


def _negatives_in(table: pa.Table, side: int, counts: Integers) -> Mask:
    """Which passages of a list were negatives in the source; by their list where the row was never relabelled."""
    found, origins = flat_lists(table, f"{_SIDES[side]}_origins")
    labels = pc.equal(field_of(origins, "label", pa.string()), "negative")
    own = np.full(int(counts.sum()), side == _KEPT)
    aligned = np.repeat(found == counts, counts)
    own[aligned] = pc.fill_null(labels, False).to_numpy(zero_copy_only=False)[np.repeat(found == counts, found)]
    return own


def _along(table: pa.Table, column: str, counts: Integers, at: Integers) -> pa.Array | None:
    """The values of a column beside some passages, null where a row has none; None where there is no such column."""
    if column not in table.column_names:
        return None
    found, values = flat_lists(table, column)
    if len(values) == 0:
        return None
    there = np.repeat((found == counts) & (counts > 0), counts)
    place = np.full(len(there), -1, np.int64)
    place[there] = np.flatnonzero(np.repeat(found == counts, found))
    return taken(values, place[at])


def _signals(table: pa.Table, side: int, counts: Integers, at: Integers) -> dict[str, Numbers]:
    """The higher, the more relevant; NaN where there is none."""
    nothing = np.full(len(at), np.nan)
    signals = {name: nothing for name in SIGNALS}
    snippets = _along(table, f"{_SIDES[side]}_snippets", counts, at)
    if snippets is not None:
        status = field_of(snippets, "status", pa.string())
        signals[STATUS] = np.select([_equal(status, GROUNDED), _equal(status, NO_ANSWER)], [1.0, 0.0], np.nan)
        said = pc.extract_regex(field_of(snippets, "detail", pa.string()), r"^coverage (?P<figure>\d+(?:\.\d+)?)$")
        signals[COVERAGE] = _floats(pc.cast(field_of(said, "figure", pa.string()), pa.float64()))
    ranks = _along(table, f"{_SIDES[side]}_ranks", counts, at)
    if ranks is not None:
        signals[RANK] = -_floats(ranks)
    scores = _along(table, f"{_SIDES[side]}_scores", counts, at)
    if scores is not None:
        signals[SCORES] = _floats(scores)
    verdicts = _along(table, f"{_SIDES[side]}_verdicts", counts, at)
    if verdicts is not None:
        said = field_of(verdicts, "verdict", pa.string())
        signals[VERDICTS] = np.select([_equal(said, one) for one in _WORTH], list(_WORTH.values()), np.nan)
    grades = _along(table, f"{_SIDES[side]}_grades", counts, at)
    if grades is not None:
        signals[GRADES] = _floats(field_of(grades, "grade", pa.int32()))
    return signals


def _equal(values: pa.Array, value: str) -> Mask:
    mask: Mask = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)
    return mask


def _floats(values: pa.Array) -> Numbers:
    numbers: Numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _qualities(
    table: pa.Table, side: int, passages: pa.Array, at: Integers, answers: Sequence[tuple[str, ...]]
) -> dict[str, Numbers]:
    """How the snippets of some passages compare with their answers; NaN where no answer is known."""
    qualities = {name: np.full(len(at), np.nan) for name in QUALITIES}
    asked = [i for i, known in enumerate(answers) if known]
    if not asked:
        return qualities
    counts, _ = flat_lists(table, f"{_SIDES[side]}_passages")
    place = at[asked]
    snippets = _along(table, f"{_SIDES[side]}_snippets", counts, place)
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


def _merged(parts: Sequence[Mapping[str, Any]], truth: Truth) -> Judged:
    """The pairs of all parts, each once in its subset and origin."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined["negative"], joined["pair"], joined["subset"]))
    joined = {name: values[order] for name, values in joined.items()}
    changes = [np.diff(joined[name].astype(np.int64)) != 0 for name in ("negative", "pair", "subset")]
    starts = np.flatnonzero(np.append(True, np.logical_or.reduce(changes))[: len(order)])
    went = {RELABELLED: _POSITIVE, FILTERED: _FILTERED}
    moved = {way: joined["negative"] & (joined["side"] == code) for way, code in went.items()}
    if len(starts):
        moved = {way: np.logical_or.reduceat(mask, starts) for way, mask in moved.items()}
    joined = {name: values[starts] for name, values in joined.items()}
    return Judged(
        subset=joined["subset"],
        query=joined["query"],
        negative=joined["negative"],
        relevant=truth.relevant[joined["pair"]],
        relabelled=moved[RELABELLED],
        filtered=moved[FILTERED],
        grade=truth.grades[joined["pair"]],
        signals={name: joined[name] for name in SIGNALS if name in joined},
        qualities={name: joined[name] for name in QUALITIES if name in joined},
    )


# --- snippets and answers, as the evaluation of SQuAD compares them (arXiv 1606.05250, section 6.1) -------------------

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@lru_cache(maxsize=4096)
def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, words apart by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_exact(snippet: str, answer: str) -> bool:
    """Whether both are the same words."""
    return normalised(snippet) == normalised(answer)


def contains(snippet: str, answer: str) -> bool:
    """Whether the answer's words stand in the snippet, one after the other."""
    words = normalised(answer)
    return f" {words} " in f" {normalised(snippet)} " if words else answer in snippet


def token_f1(snippet: str, answer: str) -> float:
    """The harmonic mean of the shares of words that both have, each word as often as in the rarer of the two."""
    ours, theirs = normalised(snippet).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    left: dict[str, int] = {}
    for word in theirs:
        left[word] = left.get(word, 0) + 1
    same = 0
    for word in ours:
        if left.get(word, 0) > 0:
            left[word] -= 1
            same += 1
    return 2 * same / (len(ours) + len(theirs))


def covered(snippet: Mapping[str, Any], passage: Mapping[str, str | None], answer: str) -> float | None:
    """The share of an answer's characters that a snippet covers, at the place where it covers most of them.

    None where the answer does not stand in the passage word for word.
    """
    best: float | None = None
    for name, text in passage.items():
        at = (text or "").find(answer)
        while at >= 0:
            share = 0.0
            if snippet.get("status") == GROUNDED and snippet.get("field") == name:
                both = min(at + len(answer), snippet["end"]) - max(at, snippet["start"])
                share = max(0, both) / len(answer)
            best = share if best is None else max(best, share)
            at = (text or "").find(answer, at + 1)
    return best
