"""Texts as the lexical baseline reads them: sentences, and the terms in them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from arhn_datasets.errors import ConfigurationError

ENGLISH = "english"

# Words that ask or bind, and name nothing. Rare among passages, some of them would else weigh more than what is asked.
_SCAFFOLD = (
    "what which who whom whose when where why how is are was were be been being am do does did has have had having "
    "a an the of in on at to for by with from as and or but if it its this that these those there their they he she "
    "his her him them we us you i me my your our can could will would shall should may might must so than then into "
    "about also such some any many much s t d ll m re ve"
)

_WORD = re.compile(r"\w+")
# Ends of sentences: a stop before white space and a new start, a stop of scripts without spaces, an empty line.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*(?=\s+[\"'“‘«(\[]*[^\W_a-z])|[。！？｡؟।]+[」』”）)]*|\n\s*\n"
)


def terms(text: str, language: str | None = ENGLISH) -> frozenset[str]:
    """The distinct terms of ``text``: folded, stemmed words, and bigrams where a script has no spaces."""
    return frozenset(sequence(text, language))


@lru_cache(maxsize=16384)
def sequence(text: str, language: str | None = ENGLISH) -> tuple[str, ...]:
    """The terms of ``text`` in their order."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(term for word in _WORD.findall(folded) for term in _terms_of_word(word, language))


@lru_cache(maxsize=8)
def scaffold(language: str | None) -> frozenset[str]:
    """The terms of which a question is built and which name nothing; known for English alone."""
    return terms(_SCAFFOLD, language) if language == ENGLISH else frozenset()


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of ``text`` as start and end offsets, without surrounding white space."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    spans = []
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        piece = text[start:end]
        inner = piece.strip()
        if inner:
            first = start + piece.index(inner[0])
            spans.append((first, first + len(inner)))
    return spans


@lru_cache(maxsize=65536)
def _terms_of_word(word: str, language: str | None) -> tuple[str, ...]:
    if not word.isascii() and any("\u3040" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" for c in word):
        return tuple(word[i : i + 2] for i in range(max(1, len(word) - 1)))
    stem = stemmer(language)
    return (stem.stemWord(word) if stem else word,)


@lru_cache(maxsize=8)
def stemmer(language: str | None) -> Any:
    """The Snowball stemmer of a language; None for none.

    Raises:
        ConfigurationError: there is none for this language.
    """
    import snowballstemmer

    if language is None:
        return None
    try:
        return snowballstemmer.stemmer(language)
    except KeyError:
        known = ", ".join(snowballstemmer.algorithms())
        raise ConfigurationError(f"There is no stemmer for {language!r}; expected one of {known}, or None.") from None
