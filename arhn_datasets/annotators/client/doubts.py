"""Which replies of a batch may stand under the id of another request: what surrounds them tells, for they do not.

Pure functions of what a file holds. A doubt costs one more request, so each looks for what is odd among its like, and
says nothing where there is no like.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from operator import mul
from statistics import median
from typing import Any, NamedTuple

import numpy as np

IN_ORDER = 0.7  # share of lines that keep the order of the requests, in a file that keeps it but for moved lines
AT_PLACE = 0.4  # share of lines that stand where they are expected, in one that keeps it but for exchanged lines
NEAR = 2  # lines within which an exchange does not show which one is at its place
FEWEST = 40  # lines that tell how tokens are counted
MOST_ODD = 0.25  # of them; with more, tokens follow from something else
ODD = 16.0  # times the usual distance of the nearer ones: some seven standard deviations
FAR = 0.25  # of its tokens, from what those of other prompts give
_PIECES = re.compile(r"\w+|[^\w\s]")


class Extent(NamedTuple):
    """What the tokens of a prompt follow from: its characters, those beyond ASCII, its words and signs."""

    characters: int
    wide: int
    pieces: int


def extent_of(texts: Sequence[str]) -> Extent:
    """The extent of a prompt."""
    text = "\n".join(texts)
    wide = 0 if text.isascii() else sum(1 for character in text if character > "\x7f")
    return Extent(len(text), wide, sum(1 for _ in _PIECES.finditer(text)))


def out_of_order(places: Sequence[Any]) -> set[int] | None:
    """Which of these different places are not where they are expected; None in a sequence that keeps no order."""
    kept = _longest_growing(places)
    if len(kept) == len(places):
        return set()
    if len(kept) >= IN_ORDER * len(places):
        moved = set(range(len(places))) - kept
        expected = {place: at for at, place in enumerate(sorted(places))}
        for at in sorted(at for at in moved if abs(expected[places[at]] - at) <= 2 * NEAR):
            for near in range(max(0, at - NEAR), min(len(places), at + NEAR + 1)):
                if near != at and (places[near] < places[at]) != (near < at):
                    moved.add(near)
        return moved
    elsewhere = {at for at, (one, other) in enumerate(zip(places, sorted(places), strict=True)) if one != other}
    return elsewhere if len(elsewhere) <= (1 - AT_PLACE) * len(places) else None


def _longest_growing(places: Sequence[Any]) -> set[int]:
    tails: list[Any] = []
    ends: list[int] = []
    before: list[int] = []
    for at, place in enumerate(places):
        to = bisect_left(tails, place)
        before.append(ends[to - 1] if to else -1)
        tails[to : to + 1] = [place]
        ends[to : to + 1] = [at]
    kept: set[int] = set()
    at = ends[-1] if ends else -1
    while at >= 0:
        kept.add(at)
        at = before[at]
    return kept


class Counting(NamedTuple):
    """How prompts were counted so far: weights of their extents, and the usual distance from what these give."""

    weights: tuple[float, ...]
    usual: float


def counting(extents: Sequence[Extent], tokens: Sequence[int]) -> Counting | None:
    """How the tokens follow from the extents of most of these prompts; None for too few of them."""
    if len(tokens) < FEWEST:
        return None
    used, weights, away = list(range(len(tokens))), [0.0], [0.0]
    for _ in range(3):  # each time without what is furthest away
        rows = np.array([(1.0, *extents[at]) for at in used])
        weights = np.linalg.lstsq(rows, np.array([tokens[at] for at in used], float), rcond=None)[0].tolist()
        away = _away(weights, extents, tokens)
        limit = sorted(away)[int(0.7 * len(away))]
        used = [at for at, distance in enumerate(away) if distance <= limit]
    return Counting(tuple(weights), max(0.5, median(away[at] for at in used)))


def oddly_counted(found: Counting | None, extents: Sequence[Extent], tokens: Sequence[int]) -> set[int]:
    """Which prompts cannot have the tokens that stand with their replies; none where most are odd, or none is known."""
    if found is None:
        return set()
    away = _away(found.weights, extents, tokens)
    # Few prompts may be of another kind than those of before.
    least = [0.0] * len(tokens) if len(tokens) >= FEWEST else [FAR * counted for counted in tokens]
    odd = {at for at, distance in enumerate(away) if distance > max(ODD * found.usual, least[at])}
    return odd if len(odd) <= max(2, MOST_ODD * len(tokens)) else set()


def _away(weights: Sequence[float], extents: Sequence[Extent], tokens: Sequence[int]) -> list[float]:
    rows = ((1.0, *extent) for extent in extents)
    return [abs(sum(map(mul, weights, row)) - counted) for row, counted in zip(rows, tokens, strict=True)]
