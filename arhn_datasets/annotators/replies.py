"""From the text of a reply to evidence, and from nothing else.

The parsers accept little and invent nothing: what is not plainly a snippet of the passage, the marker
``NO_ANSWER``, a list of identifiers, the two lists of a verdict or one grade is recorded as such and moves no passage.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from arhn_datasets.annotators.interface import Grade, Ranking, Snippet, Verdict
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER
from arhn_datasets.rows import records
from arhn_datasets.rows.records import Passage, shorten

VERSION = 1  # raised whenever the same reply is read differently; part of every LLM annotator's identity

_QUOTES = {**dict.fromkeys("‘’‚‛′‵`´‹›", "'"), **dict.fromkeys("“”„‟″‶«»", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
_FENCE = re.compile(r"```[\w+-]*\n(.*?)\n?```", re.DOTALL)
_LABEL = re.compile(r"(?:\*\*)?(?:answer |copied )?(?:snippet|text|answer)(?:\*\*)?\s*:\s*(?:\*\*)?\s*", re.IGNORECASE)
# The marker counts alone, on a line of its own, or before a stop; "NO_ANSWER is wrong" is neither this nor that.
_MARKER = re.compile(rf"{NO_ANSWER_MARKER}\s*(?:$|\n|[.,:;(–—-])", re.IGNORECASE)
MOST_JSON = 20_000  # characters of a reply that are tried as JSON
_WRAPPERS = "\"'`*“”‘’«»„ \t\r\n"
_TAGS = ("<passage>", "</passage>")

_CHAIN = re.compile(r"\[\s*\d{1,6}\s*\](?:\s*>+\s*\[\s*\d{1,6}\s*\])+")
_LISTED = re.compile(r"\[\s*\d{1,6}\s*\](?:[\s>,;]*\[\s*\d{1,6}\s*\])*")
_BRACKETED_ID = re.compile(r"\[\s*(\d{1,6})\s*\]")

# "better: [2], [5]", "**Worse:** none"; the list is [2], [5] or [2, 5], an empty one is none or [].
_GROUP = re.compile(r"[-*_#` ]{0,4}(better|worse)\b[*_` ]{0,4}:[*_` ]{0,4}(.*)", re.IGNORECASE)
_GROUPED = re.compile(r"\[\s*\d{1,6}(?:\s*,\s*\d{1,6})*\s*\](?:[\s,;]*\[\s*\d{1,6}(?:\s*,\s*\d{1,6})*\s*\])*")
_EMPTY = ("none", "[]")
# "2", "2.", "**2**", "[2]", "Grade: 2"; a sign, a fraction or a word more is something else.
_GRADE = re.compile(r"""\**(?:grade\** ?: ?\** ?)?[*`"'\[(]{0,3}([0-3])[*`"'\]).]{0,4}""", re.IGNORECASE)

# Scripts that put no spaces between words: a match inside a run of them splits no word.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HANGUL", "TIBETAN")


def parse_snippet(reply: str, passage: Passage) -> Snippet:
    """The evidence in a reply to a snippet prompt.

    Returns ``grounded`` with the offsets in the original passage, ``no_answer`` for the marker, ``ungrounded`` for a
    text that does not occur in the passage, and ``unparsed`` for anything that is neither.
    """
    said = after_thinking(reply)
    if not _worded(said):
        return Snippet(status=records.UNPARSED, detail=shorten(f"no text in the reply: {reply}"))
    said = _json_text(said) or said
    unwrapped = _unwrapped(said)
    bare = unwrapped.replace("\\_", "_")
    if _MARKER.match(bare):
        return Snippet(status=records.NO_ANSWER)
    for form in (said, unwrapped, unwrapped.rstrip(".…")):  # from the plain reading to the most unwrapped
        for name in ("text", "title"):
            original = str(passage.get(name) or "")
            span = ground(form, original)
            if span:
                start, end = span
                return Snippet(status=records.GROUNDED, snippet=original[start:end], start=start, end=end, field=name)
    status = records.UNPARSED if bare.upper().startswith(NO_ANSWER_MARKER) else records.UNGROUNDED
    return Snippet(status=status, detail=shorten(said))


def parse_ranking(reply: str, candidates: int) -> Ranking:
    """The evidence in a reply to a ranking prompt over ``candidates`` candidates, shown as 1 to ``candidates``.

    Returns ``ranked`` for a full permutation, ``partial`` where identifiers are missing, repeated or out of range (only
    those that were given exactly once count), ``unparsed`` for anything that is not one list of identifiers.
    """
    said = after_thinking(reply)
    given = _identifiers(said)
    if given is None:
        return Ranking(status=records.UNPARSED, detail=shorten(f"no single list of identifiers: {said}"))
    times = Counter(given)
    kept = [number for number in given if 1 <= number <= candidates and times[number] == 1]
    if not kept:
        return Ranking(status=records.UNPARSED, detail=shorten(f"no identifier given once and in range: {said}"))
    tiers = tuple((number - 1,) for number in kept)
    if len(kept) == candidates == len(given):
        return Ranking(status=records.RANKED, tiers=tiers)
    return Ranking(status=records.PARTIAL, tiers=tiers, detail=shorten(said))


def parse_verdicts(reply: str, candidates: int) -> tuple[Verdict, ...]:
    """The evidence in a reply to a prompt for verdicts on ``candidates`` candidates, shown as 1 to ``candidates``.

    Returns one verdict a candidate: ``judged`` where the reply is the two lists and every identifier in them is one of
    the candidates, given once. Else a candidate that was given several times has none (``unparsed``), the others are
    ``partial``. A reply that is not the two lists and nothing else gives no verdict at all.
    """
    said = after_thinking(reply)
    groups = _groups(said)
    times = Counter(number for numbers in (groups or {}).values() for number in numbers)
    in_range = [1 <= number <= candidates for number in times]
    if groups is None or (times and not any(in_range)):
        why = "not the two lists that were asked for" if groups is None else "no identifier in range"
        return (Verdict(status=records.UNPARSED, detail=shorten(f"{why}: {said}")),) * candidates
    plain = all(in_range) and all(count == 1 for count in times.values())
    of = {number: verdict for verdict, numbers in groups.items() for number in numbers}
    found = []
    for number in range(1, candidates + 1):
        verdict = of.get(number, records.NO_MATCH)
        if plain:
            found.append(Verdict(status=records.JUDGED, verdict=verdict))
        elif times[number] > 1:
            detail = shorten(f"[{number}] is given {times[number]} times: {said}")
            found.append(Verdict(status=records.UNPARSED, detail=detail))
        else:
            found.append(Verdict(status=records.PARTIAL, verdict=verdict, detail=shorten(said)))
    return tuple(found)


def parse_grade(reply: str) -> Grade:
    """The evidence in a reply to a prompt for a grade: one digit from 0 to 3 and nothing else."""
    said = after_thinking(reply)
    digit = _GRADE.fullmatch(said.strip())
    if digit:
        return Grade(status=records.JUDGED, grade=int(digit[1]))
    value = _json_object(said)
    if len(value) == 1 and type(grade := next(iter(value.values()))) is int and grade in records.GRADES:
        return Grade(status=records.JUDGED, grade=grade)
    return Grade(
        status=records.UNPARSED,
        detail=shorten(f"no single grade from {records.GRADES[0]} to {records.GRADES[-1]}: {said}"),
    )


def after_thinking(reply: str) -> str:
    """``reply`` without its ``<think>`` part; empty where the thinking was cut off before it ended."""
    tail = reply.rpartition("</think>")[2]
    return tail.partition("<think>")[0].strip()


def ground(snippet: str, text: str) -> tuple[int, int] | None:
    """Where ``snippet`` occurs in ``text``, as start and end offsets in characters, or None.

    Compared after folding compatibility forms (NFKC), white space, quotation marks, dashes and case, and ignoring
    invisible format characters. A match that would split a word, or that holds next to nothing, is none.
    """
    folded_snippet, _ = fold(snippet)
    wanted = folded_snippet.strip()
    if not _telling(wanted):
        return None
    folded, origins = fold(text)
    at = folded.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if not (_joined(folded, origins, at) or _joined(folded, origins, end)):
            return origins[at], origins[end - 1] + 1
        at = folded.find(wanted, at + 1)
    return None


@lru_cache(maxsize=256)
def fold(text: str) -> tuple[str, Sequence[int]]:
    """``text`` folded for comparison, and for each folded character the offset of the original one."""
    if text.isascii():
        folded_ascii = text.translate(_FOLDED_ASCII)
        if "  " not in folded_ascii:  # one for one
            return folded_ascii, range(len(text))
    folded: list[str] = []
    origins: list[int] = []
    for run in _RUNS.finditer(text):
        plain, start = run[0], run.start()
        if plain.isascii():
            plain = plain.translate(_FOLDED_ASCII)
            if "  " not in plain and not (plain[0] == " " and folded and folded[-1][-1] == " "):
                folded.append(plain)
                origins.extend(range(start, run.end()))
                continue
        for offset, character in enumerate(run[0], start):
            for piece in _fold_character(character):
                if piece == " " and folded and folded[-1][-1] == " ":
                    continue
                folded.append(piece)
                origins.append(offset)
    return "".join(folded), tuple(origins)


@lru_cache(maxsize=65536)
def _fold_character(character: str) -> str:
    # Decomposed rather than composed, because composing needs neighbours: equal under NFKC is equal under NFKD.
    if unicodedata.category(character) == "Cf":
        return ""
    if character.isspace():
        return " "
    known = _QUOTES.get(character)
    if known:
        return known
    pieces = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(_QUOTES.get(piece, piece) for piece in pieces if not piece.isspace())


_RUNS = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]+")
_FOLDED_ASCII = {code: _fold_character(chr(code)) for code in range(128)}


def _joined(folded: str, origins: Sequence[int], at: int) -> bool:
    """Whether the characters around ``at`` belong to one word or one original character."""
    if at <= 0 or at >= len(folded):
        return False
    if origins[at - 1] == origins[at]:
        return True
    if unicodedata.combining(folded[at]):
        return folded[at - 1] != " "
    before, after = folded[at - 1], folded[at]
    if unicodedata.combining(before):
        before = "a"
    return before.isalnum() and after.isalnum() and not (_unspaced(before) or _unspaced(after))


def _unspaced(character: str) -> bool:
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


def _telling(folded: str) -> bool:
    """Whether a match of this text says anything: a digit, an unspaced character, or three letters."""
    letters = 0
    for character in folded:
        if character.isalnum():
            letters += 1
            if letters == 3 or character.isdigit() or _unspaced(character):
                return True
    return False


def _worded(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _json(text: str, opening: str, **options: Any) -> Any:
    """The JSON that a reply is, which opens with one of these characters; None where it is none."""
    if text[:1] not in tuple(opening) or len(text) > MOST_JSON:
        return None
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError):
        return None


def _json_text(said: str) -> str | None:
    """The text of a reply that is a JSON object with one string in it, as constrained output is."""
    value = _json(said, "{", strict=False)
    texts = list(value.values()) if isinstance(value, dict) else []
    return texts[0].strip() if len(texts) == 1 and isinstance(texts[0], str) and texts[0].strip() else None


def _unfenced(text: str) -> str:
    fenced = _FENCE.fullmatch(text.strip())
    return fenced.group(1) if fenced else text


def _unwrapped(said: str) -> str:
    text = _unfenced(said)
    for tag in _TAGS:
        text = text.replace(tag, "")
    text = text.strip(_WRAPPERS)
    label = _LABEL.match(text)
    text = text[label.end() :] if label else text
    first, _, rest = text.partition("\n")
    if first.rstrip(" *").endswith(":") and _worded(rest):
        text = rest
    return text.strip(_WRAPPERS)


def _identifiers(said: str) -> list[int] | None:
    """The identifiers of the one list that the reply holds, None where it holds none or several."""
    text = _unfenced(unicodedata.normalize("NFKC", said).strip()).strip(" \t\r\n`*.")
    if _LISTED.fullmatch(text):
        return _numbers(text)
    value = _json(text, "[{")
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if value and _is_numbers(value):
        return list(value)
    chains = {tuple(numbers) for line in text.splitlines() if (numbers := _chain_of(line))}
    return list(chains.pop()) if len(chains) == 1 else None


def _chain_of(line: str) -> list[int] | None:
    """The identifiers of a line that is nothing but a ranking, after an optional label with a colon."""
    start = line.find("[")
    if start < 0:
        return None
    label = line[:start].rstrip(" \t*_`")
    if label and not label.endswith(":"):
        return None
    chain = line[start:].strip(" \t*_`.")
    return _numbers(chain) if _CHAIN.fullmatch(chain) else None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _BRACKETED_ID.findall(text)]


def _groups(said: str) -> dict[str, list[int]] | None:
    """The two lists of a reply to a prompt for verdicts, None where it is anything else."""
    text = _unfenced(said.strip()).strip()
    value = _json_object(text)
    if value:
        two = value.keys() == {records.BETTER, records.WORSE} and all(map(_is_numbers, value.values()))
        return value if two else None
    lines = [line for line in text[:MOST_JSON].splitlines() if line.strip()]
    if len(text) > MOST_JSON or len(lines) != 2:
        return None
    groups: dict[str, list[int]] = {}
    for line in lines:
        named = _GROUP.fullmatch(line.strip())
        listed = named[2].strip(" \t*_`.") if named else ""
        if named and (listed.lower() in _EMPTY or _GROUPED.fullmatch(listed)):
            groups[named[1].lower()] = [int(number) for number in re.findall(r"\d+", listed)]
    return groups if len(groups) == 2 else None


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _json_object(text: str) -> dict[str, Any]:
    """The object that a reply is, an empty one where it is none or says a name twice."""
    pairs = _json(text, "{", object_pairs_hook=list) or []
    value = dict(pairs) if all(isinstance(pair, tuple) for pair in pairs) else {}
    return value if len(value) == len(pairs) else {}
