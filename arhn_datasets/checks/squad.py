"""Snippets beside answers, as the evaluation of SQuAD compares them (arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from arhn_datasets.rows.records import GROUNDED

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
