"""What is known of a refined dataset's passages, read as numbers: a value for each judged pair and kind of evidence.

Snippets are compared with answers as SQuAD's evaluation does (arXiv 1606.05250, section 6.1).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks.agreement import RELABELLED
from arhn_datasets.checks.row_checks import among, check_relabelled, with_one_field
from arhn_datasets.checks.truth import Truth
from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.folder.report import counted_as
from arhn_datasets.rows import arrow, records
from arhn_datasets.rows.arrow import Integers, Mask, Numbers, field_of, flat_lists
from arhn_datasets.rows.records import FILTERED, GROUNDED, KINDS, NEGATIVE, POSITIVE, SIDES, Side
from arhn_datasets.rules.arhn import Relabel
from arhn_datasets.rules.revert import revert

EITHER = "either"
STATUS, RANK, GRADE = "status", "rank", "grades"
SIGNALS = (STATUS, "coverage", RANK, "scores", "verdicts", GRADE)
QUALITIES = ("grounded", "exact", "contains", "f1", "offsets")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

COLUMNS = (
    *(records.QUERY_ID, records.QUERY, records.SUBSET, records.RANKING, records.DECISION),
    *records.types_of(tuple(KINDS)),
)
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
    """Reads tables of wide rows and keeps numbers of the pairs that the truth knows.

    Attributes:
        subsets: The number of each subset that was read.
        policies: Each policy that the evidence allows, and the reader of what it makes of the same rows.
    """

    def __init__(self, truth: Truth, policies: Sequence[Relabel] = (), *, evidence: bool = True) -> None:
        self.subsets: dict[str, int] = {}
        self.policies = [(policy, Reader(truth, evidence=False)) for policy in policies]
        self._truth, self._evidence = truth, evidence
        self._parts: list[dict[str, Any]] = []
        self._seen = np.zeros(len(truth), bool)
        self._counted: dict[str, Counter[int]] = {of: Counter() for of in ("rows", "rows_without_truth", "unjudged")}
        self._example: dict[str, str] = {}

    def read(self, table: pa.Table) -> None:
        """Take what is known of a table's passages."""
        check_relabelled(table)
        if not table.num_rows:
            return
        query_ids = arrow.strings_of(table, records.QUERY_ID)
        queries = np.array([self._truth.queries.get(id, -1) for id in query_ids.to_pylist()], np.int64)
        subsets, known = self._subsets_of(table, queries), queries >= 0
        if not known.all():
            self._example.setdefault("query", str(query_ids[int(np.argmin(known))]))
        self._counted["rows"].update(subsets.tolist())
        self._counted["rows_without_truth"].update(subsets[~known].tolist())
        for side in SIDES:
            self._read_side(table, side, queries, subsets)
        if known.any() and self.policies:
            self._read_policies(table.filter(pa.array(known)))

    def _subsets_of(self, table: pa.Table, queries: Integers) -> Integers:
        """The number of each row's subset: the row's own, else that of the truth."""
        named = arrow.strings_of(table, records.SUBSET).to_pylist()
        theirs = (self._truth.subsets[query] if query >= 0 else None for query in queries.tolist())
        names = (counted_as(own or other, self.subsets) for own, other in zip(named, theirs, strict=True))
        return np.array([self.subsets.setdefault(name, len(self.subsets)) for name in names], np.int64)

    def _read_side(self, table: pa.Table, side: Side, queries: Integers, subsets: Integers) -> None:
        counts, passages = flat_lists(table, side.passages)
        row, docids = arrow.rows_of(counts), field_of(passages, "docid", pa.string())
        pair = self._truth.find(queries[row], docids)
        # By their list where the row was never relabelled.
        found, labels = arrow.flat_field(table, side.origins, "label", pa.string())
        negative = among(arrow.aligned(labels, found, counts), (NEGATIVE.label,))
        negative = np.where(np.repeat(found == counts, counts), negative, side == NEGATIVE)
        unknown = negative & (pair < 0)
        self._counted["unjudged"].update(subsets[row[unknown]].tolist())
        if (unknown & (queries[row] >= 0)).any():
            self._example.setdefault("docid", str(docids[int(np.argmax(unknown & (queries[row] >= 0)))]))
        at = np.flatnonzero(pair >= 0)
        pair, row = pair[at], row[at]
        self._seen[pair] = True
        part: dict[str, Any] = {"subset": subsets[row], "pair": pair, "query": queries[row], "negative": negative[at]}
        part["side"] = np.full(len(at), SIDES.index(side))
        if self._evidence:
            part |= _signals(table, side, counts, at)
            part |= _qualities(table, side, passages, at, [self._truth.answers[one] for one in pair.tolist()])
        self._parts.append(part)

    def _read_policies(self, table: pa.Table) -> None:
        try:
            source = revert(_without_texts(table))
        except SchemaError:  # no snippets: a run of another rule
            self.policies = []
        for one in list(self.policies):
            policy, reader = one
            try:
                reader.read(policy(source))
            except SchemaError:  # no ranks
                self.policies.remove(one)

    def pairs(self, name: Any = "The dataset") -> Pairs:
        """The pairs that were read, each once in its subset and origin.

        Raises:
            InputError: there are none; the message calls the rows ``name``.
        """
        if not self._seen.any():
            raise InputError(self._nothing_common(str(name)))
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        order = np.lexsort((joined["negative"], joined["pair"], joined["subset"]))
        joined = {name: values[order] for name, values in joined.items()}
        changes = [np.diff(joined[name].astype(np.int64)) != 0 for name in ("negative", "pair", "subset")]
        starts = np.flatnonzero(np.append(True, np.logical_or.reduce(changes)))
        relabelled, filtered = (
            np.logical_or.reduceat(joined["negative"] & (joined["side"] == SIDES.index(side)), starts)
            for side in (POSITIVE, FILTERED)
        )
        joined = {name: values[starts] for name, values in joined.items()}
        return Pairs(
            **{name: joined[name] for name in ("subset", "query", "negative")},
            relevant=self._truth.relevant[joined["pair"]],
            relabelled=relabelled,
            filtered=filtered,
            grade=self._truth.grades[joined["pair"]],
            signals={name: joined[name] for name in SIGNALS if name in joined},
            qualities={name: joined[name] for name in QUALITIES if name in joined},
        )

    def counts(self, subset: str | None) -> dict[str, int]:
        """What was read and what was not, of one subset or of all."""
        if subset is not None:
            return {name: found[self.subsets[subset]] for name, found in self._counted.items()}
        truth = self._truth
        query = np.repeat(np.arange(len(truth.queries)), np.diff(truth.starts))
        return {
            **{name: found.total() for name, found in self._counted.items()},
            "truth_queries": len(truth.queries),
            "truth_queries_not_in_data": len(truth.queries) - len(np.unique(query[self._seen])),
            "truth_pairs": len(truth),
            "truth_pairs_not_in_data": int((~self._seen).sum()),
            "contradictory": truth.contradictory,
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
    """The rows with docids in place of passages and statuses in place of snippets, and without a subset of their own.

    Labels follow from these, and a pair that stands in several subsets counts once.
    """
    columns = {name: table.column(name) for name in table.column_names if name != records.SUBSET}
    for kind, kept in (("passages", "docid"), ("snippets", "status")):
        for column in (side.column(kind) for side in SIDES):
            if column in columns:
                columns[column] = with_one_field(table, column, kept)
    return pa.table(columns)


# --- evidence ---------------------------------------------------------------------------------------------------------


def _along(table: pa.Table, column: str, counts: Integers, at: Integers) -> pa.Array:
    """The values of a column beside some passages; null where a row has none, or there is no such column."""
    found, values = flat_lists(table, column) if column in table.column_names else (counts, pa.nulls(counts.sum()))
    return arrow.taken(arrow.aligned(values, found, counts), at)


def _signals(table: pa.Table, side: Side, counts: Integers, at: Integers) -> dict[str, Numbers]:
    """The higher, the more relevant; NaN where there is none."""
    snippets, ranks, scores, verdicts, grades = (
        _along(table, side.column(kind), counts, at) for kind in ("snippets", "ranks", "scores", "verdicts", "grades")
    )
    said = pc.extract_regex(field_of(snippets, "detail", pa.string()), r"^coverage (?P<share>\d+(?:\.\d+)?)$")
    return {
        STATUS: _worth(field_of(snippets, "status", pa.string()), {GROUNDED: 1.0, records.NO_ANSWER: 0.0}),
        "coverage": _floats(field_of(said, "share", pa.string())),
        RANK: -_floats(ranks),
        "scores": _floats(scores),
        "verdicts": _worth(
            field_of(verdicts, "verdict", pa.string()), {records.NO_MATCH: 0.0, records.WORSE: 1.0, records.BETTER: 2.0}
        ),
        GRADE: _floats(field_of(grades, "grade", pa.int32())),
    }


def _worth(values: pa.Array, worth: Mapping[str, float]) -> Numbers:
    return np.select([among(values, (one,)) for one in worth], list(worth.values()), np.nan)


def _floats(values: pa.Array) -> Numbers:
    numbers: Numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _qualities(
    table: pa.Table, side: Side, passages: pa.Array, at: Integers, answers: Sequence[tuple[str, ...]]
) -> dict[str, Numbers]:
    """How the snippets of some passages compare with their answers; NaN where no answer is known."""
    qualities = {name: np.full(len(at), np.nan) for name in QUALITIES}
    asked = [i for i, known in enumerate(answers) if known]
    if not asked or side.snippets not in table.column_names:  # the run asked for no snippets
        return qualities
    place = at[asked]
    snippets = _along(table, side.snippets, arrow.lengths_in(table, side.passages)[0], place).to_pylist()
    asked_of = passages.take(pa.array(place))
    texts = {name: field_of(asked_of, name, pa.string()).to_pylist() for name in ("text", "title")}
    for i, number in enumerate(asked):
        snippet, known = snippets[i] or {}, answers[number]
        words = snippet.get("snippet") if snippet.get("status") == GROUNDED else None
        qualities["grounded"][number] = words is not None
        for name, compare in (("exact", is_exact), ("contains", contains), ("f1", token_f1)):
            qualities[name][number] = 0.0 if words is None else float(max(compare(words, answer) for answer in known))
        shares = [covered(snippet, {name: values[i] for name, values in texts.items()}, answer) for answer in known]
        qualities["offsets"][number] = max((share for share in shares if share is not None), default=np.nan)
    return qualities


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
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


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
