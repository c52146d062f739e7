"""Texts as the lexical baseline reads them: sentences, the terms in them, and the form that a question asks for.

What answers "When was the tower built?" holds a date, whatever words it shares with the question (the answer types of
Li and Roth, COLING 2002, as far as a pattern tells them). Known for English alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
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

Cue = Callable[[str, Mapping[str, float]], float]
"""The share, from 0 to 1, to which a sentence has the form; the weights are those of the query's terms."""

_MANY = re.compile(
    r"\bhow (?:many|much|long|far|old|tall|high|large|big|often|fast|deep|wide|heavy)\b"
    r"|\b(?:what|which) (?:percent|percentage|number|amount|age|fraction|proportion)\b"
    r"|\b(?:number|percentage|population|amount) of\b"
)
_WHEN = re.compile(r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|century|decade)\b")
_WHAT_IS = re.compile(r"(?:what|who)(?:'s| is| are| was| were)(?: \(?are\)?)? (.+)")
_DEFINE = re.compile(
    r"(?:define|what does|what do) (.+?)(?: means?)?$|(?:.*\b)?(?:definition|meaning) of (.+)|(.+) definition$"
    r"|(?:.*\b)?information (?:about|on) (.+)|tell me about (.+)"
)
_INNER = frozenset(("a", "an", "and", "of", "or"))  # the only scaffold within the name of a thing

_NUMBER = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozens?|hundreds?|thousands?|millions?"
    r"|billions?|half|third|quarter)\b",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\b[12]\d{3}|\bcentur|\b(?:january|february|march|april|may|june|july|august|september|october|november|december"
    r"|monday|tuesday|wednesday|thursday|friday|saturday|sunday)\b",
    re.IGNORECASE,
)

_COPULA = re.compile(
    r"\b(is|are|was|were|refers? to|means?|describes?|denotes?)\b"
    r"(?: (?:also|usually|generally|often|actually|simply|not|sometimes|typically|both)\b)*(?: (\w+))?",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"\([^()]*\)|\[[^\[\]]*\]|,[^,]*,(?=\s*(?:is|are|was|were|refers?|means?|describes?|denotes?)\b)", re.IGNORECASE
)
_TOKEN = re.compile(r"\w+(?:[-'’/]\w+)*|[^\w\s]")
_KINDS = frozenset(("a", "an", "the", "one", "any", "another", "when", "among", "part"))  # of what a thing is
_SUBJECT = 200  # characters: a name is no longer
_PARTICIPLE = re.compile(r"(?:ed|ing|ly)$")


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


def cue_of(query: str, language: str | None) -> Cue | None:
    """The form that an answer to ``query`` has; None where the query tells none."""
    if language != ENGLISH:
        return None
    asked = " ".join(query.casefold().split()).rstrip("?.! ")
    if _MANY.search(asked):
        return _holds(_NUMBER)
    if _WHEN.search(asked):
        return _holds(_DATE)
    return _defines if _names_a_thing(asked) else None


def _names_a_thing(asked: str) -> bool:
    """Whether nothing but what a thing is is asked: "what is tin", and not "what is the melting point of tin"."""
    match = _WHAT_IS.match(asked) or _DEFINE.match(asked)
    thing = next((group for group in match.groups() if group), "") if match else ""
    words = re.findall(r"\w+", thing)
    return bool(words) and not any(word not in _INNER and terms(word) & scaffold(ENGLISH) for word in words)


def _holds(pattern: re.Pattern[str]) -> Cue:
    return lambda sentence, _: float(pattern.search(sentence) is not None)


def _defines(sentence: str, weights: Mapping[str, float]) -> float:
    """The share of the thing's name that stands as the subject of "... is a ..."."""
    sentence, best = _ASIDE.sub(" ", sentence), 0.0
    for match in _COPULA.finditer(sentence):
        verb, word = match[1].casefold(), (match[2] or "").casefold()
        if verb in ("is", "was") and word not in _KINDS:
            continue
        if verb in ("are", "were") and _PARTICIPLE.search(word):
            continue
        best = max(best, _subject(sentence[max(0, match.start() - _SUBJECT) : match.start()], weights))
    return best


def _subject(head: str, weights: Mapping[str, float]) -> float:
    """The share of the query's terms at the end of ``head``, where no other word stands before them."""
    found: set[str] = set()
    for token in reversed(_TOKEN.findall(head)):
        if not token[0].isalnum():
            break
        held = terms(token)
        if not held & weights.keys():
            if held <= scaffold(ENGLISH):
                continue
            return 0.0
        found |= held
    return sum(weight for term, weight in weights.items() if term in found)
