"""A small deterministic tokenizer, and where a generation ends.

Pieces are words of up to seven letters with the space before them, numbers of up to three digits, and single signs;
joined they are the text again. Good English comes to about 1.3 pieces a word, as with real vocabularies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any
from zlib import crc32

_PIECE = re.compile(r" ?[^\W\d_]{1,7}| ?\d{1,3}| ?[^\w\s]|_|\s")
VOCABULARY = 32_000
WORDS_KEPT = 100_000
CHUNK = 1024  # TGI schedules a generation in rounds of so many tokens

pieces = _PIECE.findall


class _WordCounts(dict[str, int]):
    """The number of pieces of a word with the space before it: a piece holds a space at its beginning only."""

    def __missing__(self, word: str) -> int:
        if len(self) >= WORDS_KEPT:
            self.clear()
        self[word] = found = len(pieces(f" {word}"))
        return found


_words = _WordCounts()


def count(text: str) -> int:
    """The number of pieces, at a quarter of the price of making them."""
    first, *others = text.split(" ")
    return len(pieces(first)) + sum(map(_words.__getitem__, others))


def token_id(piece: str) -> int:
    """The id of a piece, the same in every process."""
    return crc32(piece.encode("utf-8", "surrogatepass")) % VOCABULARY


def tokenised(text: str) -> list[dict[str, Any]]:
    """``text`` as ``/tokenize`` gives it: id, text, and start and stop in characters."""
    found, start = [], 0
    for piece in pieces(text):
        found.append({"id": token_id(piece), "text": piece, "start": start, "stop": start + len(piece)})
        start += len(piece)
    return found


def room(wanted: int | None, inputs: int, max_input: int, max_total: int) -> int:
    """How many tokens a generation may have.

    More than 1024 are made in rounds of 1024: 1500 wanted can become 2048, and no round begins with more than
    ``max_input`` tokens (server contract 1.8).
    """
    left = max_total - inputs
    if wanted is None or wanted <= CHUNK:
        return left if wanted is None else min(wanted, left)
    rounds = 1
    while rounds * CHUNK < wanted and inputs + rounds * CHUNK <= max_input:
        rounds += 1
    return min(rounds * CHUNK, left)


def generated(text: str, limit: int, stops: Sequence[str]) -> tuple[list[str], int, str]:
    """What is left of a reply: its pieces, the number of tokens, and ``length``, ``eos_token`` or ``stop_sequence``.

    Checked after every token in this order: the limit, the end of the text (a token of its own), the stop strings,
    which count only where they end with a token and stay in the text (server contract 1.11).
    """
    found: list[str] = pieces(text)
    stopped = _stopped(text, found, stops) if stops else None
    if stopped is not None and stopped < limit:
        return found[:stopped], stopped, "stop_sequence"
    if len(found) + 1 < limit:
        return found, len(found) + 1, "eos_token"
    return found[:limit], limit, "length"


def _stopped(text: str, found: Sequence[str], stops: Sequence[str]) -> int | None:
    """After how many tokens the first stop string fires."""
    for count, end in enumerate(accumulate(map(len, found)), 1):
        if any(text.endswith(stop, 0, end) for stop in stops if stop):
            return count
    return None
