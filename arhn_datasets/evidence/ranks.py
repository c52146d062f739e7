"""Stage 2, ranks: the candidates of a row, ordered listwise by how directly they answer (ARHN, section 3.2).

The candidate set is the positives and the negatives that hold a snippet. Candidates with the same words are one
candidate: the annotator cannot order them, so they share a rank. Lists longer than the window are ranked back to front
in overlapping windows (RankGPT, arXiv 2304.09542). A candidate has a rank only where replies, directly or through a
chain of them, compare it with every positive that was ranked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import index
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.annotators.interface import Annotator, Ranking, RankingRequest
from arhn_datasets.annotators.prompts import one_line
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.stage import AnnotatedTransform, background_of, unparsed
from arhn_datasets.rows import records
from arhn_datasets.rows.background import gathered
from arhn_datasets.rows.options import Option, check_choice, check_integer
from arhn_datasets.rows.records import (
    LABELLED,
    NEGATIVE,
    POSITIVE,
    QUERY,
    RANKING,
    Row,
    Side,
    digest,
    passages_of,
    shorten,
)

RANK_BY = ("snippet", "passage")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ranks(AnnotatedTransform):
    """Adds ``positive_ranks`` and ``negative_ranks`` (1 is best, null is not ranked) and ``ranking``.

    ``ranking`` is a struct of ``status`` (``ranked``, ``partial``, ``unparsed``, ``error``, or ``skipped`` where
    nothing could change), ``candidates`` (passages), ``permutations``, ``agreement`` (share of candidate
    pairs in the order of the consensus, over all permutations; null for one) and ``detail``.

    Args:
        rank_by: Show the candidates' ``"snippet"`` or the whole ``"passage"``; with passages every negative is shown.
        window: Most candidates in one request.
        stride: Candidates by which the next window moves to the front.
        permutations: How often the set is ranked in different shown orders; the consensus is the mean position.
        seed: Of the shown orders.

    Raises:
        SchemaError: the rows have no snippets.
        ConfigurationError: a value is out of range, or no annotator is configured.
    """

    NAME: ClassVar[str] = "ranks"
    ASKS: ClassVar[str] = "ranking"
    ORDER: ClassVar[int] = 1
    FOLLOWS: ClassVar[str] = "snippets"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "rank_by": Option(help="what of the candidates is ranked", choices=RANK_BY),
        "window": Option(help="most candidates in a request", metavar="N"),
        "stride": Option(help="shift of the next window", metavar="N"),
        "permutations": Option(help="rankings of each set", metavar="K"),
        "seed": Option(help="of the shown orders", metavar="NUMBER"),
    }

    rank_by: str = "snippet"
    window: int = 20
    stride: int = 10
    permutations: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rank_by", self.rank_by, RANK_BY)
        for name in ("window", "stride", "seed"):
            check_integer(name, getattr(self, name))
        check_integer("permutations", self.permutations, least=1)
        if not 1 <= self.stride < self.window:
            raise ConfigurationError(
                f"stride is {self.stride} and window is {self.window}; windows overlap only with 1 <= stride < window."
            )

    @property
    def required(self) -> tuple[str, ...]:
        """The canonical columns and the snippets."""
        return (*super().required, POSITIVE.snippets, NEGATIVE.snippets)

    def identity(self) -> dict[str, Any]:
        """The annotator's identity and every option of the ranking."""
        return {
            **super().identity(),
            **{name: getattr(self, name) for name in ("rank_by", "window", "stride", "permutations", "seed")},
        }

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """The ranks, and :data:`~arhn_datasets.rows.records.RANKING_TYPE`."""
        return {**super().types(schema), records.RANKING: records.RANKING_TYPE}

    def requests(self, rows: pa.Table) -> int | None:
        """One a window of each permutation of a row that was ranked."""
        if RANKING not in rows.column_names:
            return None
        rankings = rows.column(RANKING).to_pylist()
        sizes = [one["candidates"] for one in rankings if one and one["status"] != records.SKIPPED]
        return self.permutations * sum(len(windows(size, self.window, self.stride)) for size in sizes)

    def _advice(self, missing: Sequence[str]) -> str:
        if {QUERY, POSITIVE.passages, NEGATIVE.passages}.isdisjoint(missing):
            return "Run the stage before first: ds.map(arhn.snippets)."
        return super()._advice(missing)

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        sides = candidates_of(row, self.rank_by)
        if skipped := _why_skipped(row):
            return _result(row, ({}, {}), Ranking(status=records.SKIPPED, detail=skipped), (0, 0, None))
        shown = [text for side in sides for text in side.values()]
        texts = sorted(set(shown))
        reference = {texts.index(text) for text in sides[0].values()}
        annotator = self.configured
        await annotator.turn(self.permutations)
        orders = await gathered(
            (self._permutation(annotator, row, texts, number) for number in range(self.permutations)),
            concurrently=annotator.awaits,
        )
        tiers, agreement = consensus([order.positions(reference) for order in orders], reference)
        ranks = _passage_ranks(tiers, texts, shown)
        outcome = _outcome([reply for order in orders for reply in order.replies], len(ranks) == len(texts))
        figures = (len(shown), self.permutations, agreement if self.permutations > 1 else None)
        return _result(row, [{i: ranks.get(text) for i, text in side.items()} for side in sides], outcome, figures)

    async def _permutation(self, annotator: Annotator, row: Row, texts: Sequence[str], number: int) -> Order:
        # The shown order follows from the texts alone: another order of the passages in the row asks nothing new.
        shown = list(range(len(texts)))
        random.Random(digest([self.seed, number, row[QUERY], list(texts)])).shuffle(shown)
        order = Order(shown)
        background = background_of(row)
        for start, end in windows(len(texts), self.window, self.stride):
            request = RankingRequest(
                query=row[QUERY],
                candidates=tuple(texts[i] for i in order.sequence[start:end]),
                task=self.task(row),
                background=background,
            )
            order.place(start, end, await annotator.ranking(request))
        return order


def candidates_of(row: Row, rank_by: str) -> tuple[dict[int, str], dict[int, str]]:
    """The texts to rank, by position in the positive and in the negative passages.

    Ranking by snippet takes the passages that hold one; ranking by passage takes all.
    """
    sides: list[dict[int, str]] = []
    for side in LABELLED:
        passages, snippets = passages_of(row, side.passages), _snippets_of(row, side)
        if rank_by == "passage":
            sides.append({i: one_line(records.text_of(passage)) for i, passage in enumerate(passages)})
        else:
            held = (i for i, snippet in enumerate(snippets) if snippet["status"] == records.GROUNDED)
            sides.append({i: one_line(snippets[i]["snippet"]) for i in held})
    return sides[0], sides[1]


def windows(candidates: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Start and end of each window over so many candidates, back to front; the last one starts at 0."""
    if candidates < 2:
        return []
    starts = [max(0, candidates - window)]
    while starts[-1] > 0:
        starts.append(max(0, starts[-1] - stride))
    return [(start, min(candidates, start + window)) for start in starts]


class Order:
    """One shown order on its way to a ranking, and the comparisons that replies gave on the way."""

    def __init__(self, sequence: list[int]) -> None:
        self.sequence = sequence
        self.replies: list[Ranking] = []
        self._compared: dict[tuple[int, int], bool] = {}  # (better, worse or equal) -> equal
        self._given: set[int] = set(sequence) if len(sequence) == 1 else set()

    def place(self, start: int, end: int, reply: Ranking) -> None:
        """Reorder a window as its reply says; candidates that the reply left out follow, uncompared."""
        shown = self.sequence[start:end]
        reply = _checked(reply, len(shown))
        self.replies.append(reply)
        tiers = [[shown[i] for i in tier] for tier in reply.tiers]
        given = [candidate for tier in tiers for candidate in tier]
        self.sequence[start:end] = [*given, *(candidate for candidate in shown if candidate not in given)]
        self._given.update(given)
        tier_of = {candidate: number for number, tier in enumerate(tiers) for candidate in tier}
        for i, better in enumerate(given):
            for worse in given[i + 1 :]:
                self._compared.pop((worse, better), None)
                self._compared[better, worse] = tier_of[better] == tier_of[worse]

    def positions(self, reference: set[int]) -> dict[int, int]:
        """The tier of each candidate whose place follows from replies, 0 is best.

        A candidate counts when replies compare it, through a chain in the final order, with every candidate of
        ``reference`` that was given at all.
        """
        chained: dict[int, set[int]] = {}
        for at, candidate in enumerate(self.sequence):
            chained[candidate] = set()
            for earlier in self.sequence[:at]:
                if (earlier, candidate) in self._compared:
                    chained[candidate] |= chained[earlier] | {earlier}
        anchors = reference & self._given
        kept = [
            candidate
            for candidate in self.sequence
            if candidate in self._given
            and all(a == candidate or a in chained[candidate] or candidate in chained[a] for a in anchors)
        ]
        positions: dict[int, int] = {}
        for before, candidate in zip([None, *kept], kept, strict=False):
            equal = before is not None and self._compared.get((before, candidate), False)
            positions[candidate] = positions[before] if equal and before is not None else len(positions)
        return positions


def consensus(positions: Sequence[Mapping[int, int]], reference: set[int]) -> tuple[list[list[int]], float | None]:
    """The tiers of the mean position over permutations, best first, and the agreement with them.

    A candidate counts when more than half of the permutations placed it. Candidates that share a tier in every
    permutation share one; where different places have the same mean, a reference comes first, so that a disagreement
    puts nothing above it. Where means over different permutations contradict those that placed both the candidate and
    a reference, the candidate has no place. The agreement is the share of pairs, over all permutations, in the order
    of the consensus.
    """
    votes: dict[tuple[int | None, ...], list[int]] = {}
    for candidate in sorted({candidate for order in positions for candidate in order}):
        vote = tuple(order.get(candidate) for order in positions)
        if sum(place is not None for place in vote) * 2 > len(positions):
            votes.setdefault(vote, []).append(candidate)

    def key(vote: tuple[int | None, ...]) -> tuple[float, bool]:
        places = [place for place in vote if place is not None]
        return round(sum(places) / len(places), 9), not reference.intersection(votes[vote])

    tiers = [
        [candidate for vote in tied for candidate in votes[vote]] for _, tied in groupby(sorted(votes, key=key), key)
    ]
    tier_of = {candidate: number for number, tier in enumerate(tiers) for candidate in tier}

    def carried(candidate: int, anchor: int) -> bool:
        apart = [order[candidate] - order[anchor] for order in positions if candidate in order and anchor in order]
        said, placed = sum(apart), tier_of[candidate] - tier_of[anchor]
        return bool(apart) and (said * placed > 0 or (said == 0 and (placed >= 0 or candidate in reference)))

    anchors = reference.intersection(tier_of)
    kept = ([candidate for candidate in tier if all(carried(candidate, a) for a in anchors)] for tier in tiers)
    tiers = [tier for tier in kept if tier]
    tier_of = {candidate: number for number, tier in enumerate(tiers) for candidate in tier}
    pairs = [
        (order[a] - order[b]) * (tier_of[a] - tier_of[b])
        for order in positions
        for a in order
        for b in order
        if a < b and a in tier_of and b in tier_of and tier_of[a] != tier_of[b]
    ]
    return tiers, sum(product > 0 for product in pairs) / len(pairs) if pairs else None


def _checked(reply: Ranking, shown: int) -> Ranking:
    """The reply of any annotator, without tiers where it failed or gives positions that there are not, or twice."""
    if not isinstance(reply, Ranking):
        return unparsed(Ranking, f"{reply!r}; a Ranking was expected")
    if reply.status not in (records.RANKED, records.PARTIAL):
        return replace(reply, tiers=())
    try:
        given = [index(position) for tier in reply.tiers for position in tier]
    except TypeError:
        return unparsed(Ranking, f"tiers of positions were expected: {reply.tiers!r}")
    if len(set(given)) < len(given) or not set(given) <= set(range(shown)):
        return unparsed(Ranking, f"positions of {shown} candidates were expected: {given}")
    return reply


def _passage_ranks(tiers: Sequence[Sequence[int]], texts: Sequence[str], shown: Sequence[str]) -> dict[str, int]:
    """The rank of each text: 1 plus the number of passages in better tiers."""
    ranks: dict[str, int] = {}
    better = 0
    for tier in tiers:
        for candidate in tier:
            ranks[texts[candidate]] = better + 1
        better += sum(shown.count(texts[candidate]) for candidate in tier)
    return ranks


def _outcome(replies: Sequence[Ranking], complete: bool) -> Ranking:
    """One status for all replies of a row."""
    failed = [reply for reply in replies if reply.status != records.RANKED]
    if not failed and complete:
        return Ranking(status=records.RANKED, detail=None if replies else "all candidates hold the same words")
    detail = next((reply.detail for reply in failed if reply.detail), None)
    if any(reply.tiers for reply in replies):
        return Ranking(status=records.PARTIAL, detail=detail)
    broken = any(reply.status == records.ERROR for reply in failed)
    return Ranking(status=records.ERROR if broken else records.UNPARSED, detail=detail)


def _why_skipped(row: Row) -> str | None:
    """Why no ranking of this row could change anything, None where one could."""
    for side in (NEGATIVE, POSITIVE):
        if not any(snippet["status"] == records.GROUNDED for snippet in row[side.snippets]):
            return f"no {side.label} holds a snippet"
    return None


def _snippets_of(row: Row, side: Side) -> Sequence[Mapping[str, Any]]:
    found, passages, snippets = row[side.snippets], side.passages, side.snippets
    if found is None or len(found) != len(row[passages]):
        count = "none" if found is None else len(found)
        raise SchemaError(
            f"Column {snippets!r} has {count} snippets for {len(row[passages])} passages in {passages!r} "
            f"(query {row[QUERY]!r}); one each was expected. Run ds.map(arhn.snippets) again on these rows."
        )
    for snippet in found:
        if not isinstance(snippet, Mapping) or (snippet["status"] == records.GROUNDED and not snippet["snippet"]):
            raise SchemaError(
                f"Column {snippets!r} holds {shorten(repr(snippet))} (query {row[QUERY]!r}); a snippet with a status, "
                f"and with words where that is {records.GROUNDED!r}, was expected. Run ds.map(arhn.snippets) on these "
                "rows."
            )
    return list(found)


def _result(
    row: Row, ranks: Sequence[Mapping[int, int | None]], outcome: Ranking, figures: tuple[int, int, float | None]
) -> Row:
    said = (outcome.status, *figures, outcome.detail)
    result: Row = {}
    for side, of_passage in zip(LABELLED, ranks, strict=True):
        result[side.ranks] = [of_passage.get(i) for i in range(len(row[side.passages]))]
    return {**result, records.RANKING: dict(zip((one.name for one in records.RANKING_TYPE), said, strict=True))}


ranks = Ranks()
