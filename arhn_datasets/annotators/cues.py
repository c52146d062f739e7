"""The form of the sentence that a question asks for: a number, a date, a definition.

What answers "When was the tower built?" holds a date, whatever words it shares with the question (the answer types of
Li and Roth, COLING 2002, as far as a pattern tells them). Known for English alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from arhn_datasets.annotators.words import ENGLISH, scaffold, terms

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


def cue_of(query: str, language: str | None) -> Cue | None:
    """The form that an answer to ``query`` has; None where the query tells none."""
    if language != ENGLISH:
        return None
    asked = " ".join(query.casefold().split()).rstrip("?.! ")
    if _MANY.search(asked):
        return _has_number
    if _WHEN.search(asked):
        return _has_date
    return _defines if _names_a_thing(asked) else None


def _names_a_thing(asked: str) -> bool:
    """Whether nothing but what a thing is is asked: "what is tin", and not "what is the melting point of tin"."""
    match = _WHAT_IS.match(asked) or _DEFINE.match(asked)
    thing = next((group for group in match.groups() if group), "") if match else ""
    words = re.findall(r"\w+", thing)
    return bool(words) and not any(word not in _INNER and terms(word) & scaffold(ENGLISH) for word in words)


def _has_number(sentence: str, weights: Mapping[str, float]) -> float:
    return float(_NUMBER.search(sentence) is not None)


def _has_date(sentence: str, weights: Mapping[str, float]) -> float:
    return float(_DATE.search(sentence) is not None)


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
