"""Where the words of a reply stand in a passage, and whether so few words say anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_QUOTES = {**dict.fromkeys("‘’‚‛′‵`´‹›", "'"), **dict.fromkeys("“”„‟″‶«»", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}

# Scripts that put no spaces between words: a match inside a run of them splits no word.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HANGUL", "TIBETAN")

# A number with its sign, its separators ("4,310", "1.500.000", "4 310", "12:30", "1/2", "2021-03-04") and its unit of
# ten thousands: whatever begins or ends inside it is another number.
_SPACE = "[ \u00a0\u2009\u202f]"
_NUMBER = re.compile(
    rf"(?:[-−‐‑]|(?<![\w.])[–+±.])?(?:(?<!\d)\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d)|\d+)"
    r"(?:[.,:/'’·٫٬_×^⁄\-−–‐‑]\d+)*[十百千万萬亿億兆]*"
)
_AT_NUMBER = re.compile(r"[ \u00a0\u2009\u202f\d.,:/'’·٫٬_×^⁄\-−–‐‑十百千万萬亿億兆+±]")

_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\s\-–—/,.;:!?()\[\]{}<>'’\"“”„«»*_`|]+")
# What asks, binds, points or agrees, in the languages that most sets have.
_COMMON_WORDS = (
    "a an the this that these those it its he him his she her hers they them their theirs we us our ours you your "
    "yours who whom whose which what when where why how and or but nor not yes yeah no none nothing never all any "
    "both each few many more most much other some such only own same than then there here too very also just even "
    "still yet again once if because as until while of at by for with about against between into through during "
    "before after above below from up down in out on off over under to be am is are was were been being have has had "
    "having do does did doing done can could will would shall should may might must cannot isn aren wasn weren hasn "
    "haven hadn doesn don didn won wouldn couldn shouldn however therefore thus hence though although indeed maybe "
    "perhaps true false okay sure one ones "
    "der die das den dem des ein eine einer eines einem einen und oder aber nicht nein ist sind war waren hat haben "
    "wird werden von mit auf aus bei nach für über unter auch nur noch als wie wenn dass sie ihr sein seine ihre wir "
    "uns sich man kann zum zur dies diese dieser dieses kein keine keiner "
    "les une des est sont était été dans par pour avec sur sous que qui dont mais non oui pas plus elle ils elles "
    "nous vous leur leurs son ses cette ces cet aux ont avait fut aucun aucune "
    "los las una uno unos unas del por para con sin sobre como pero más muy fue era son está esta este estos estas eso "
    "ello ella ellos ellas nos sus hay también ninguno ninguna nada "
    "gli della delle dei degli nel nella con per che non sono era essere anche questo questa nessuno nessuna "
    "dos das nos nas uma umas pelo pela não são foi mas isto isso esse essa nenhum nenhuma "
    "het een van met voor niet zijn werd wordt naar ook maar geen deze dit dat bij "
    "это как что все был была было они она его нет"
)
_COMMON = frozenset(_COMMON_WORDS.split())
BEFORE, BEYOND = 40, 8  # characters around a place that tell whether it lies in a number: tables are full of them
NAMED = 12  # characters of a word that stands for itself without a capital: "photosynthesis"


def ground(snippet: str, text: str) -> tuple[int, int] | None:
    """Where ``snippet`` occurs in ``text``, as start and end offsets in characters, or None.

    Compared after folding compatibility forms (NFKC), white space, quotation marks, dashes and case, and ignoring
    invisible format characters. A match that would split a word or a number, or that holds next to nothing, is none.
    """
    folded_snippet, _ = fold(snippet)
    wanted = folded_snippet.strip()
    if not wanted:
        return None
    folded, origins = fold(text)
    at = folded.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if not (_joined(folded, origins, at) or _joined(folded, origins, end)):
            first, last = origins[at], origins[end - 1] + 1
            if not (_in_number(text, first) or _in_number(text, last)) and _telling(text, first, last):
                return first, last
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


def _in_number(text: str, at: int) -> bool:
    """Whether ``at`` lies inside a number."""
    if not 0 < at < len(text) or not (text[at - 1].isnumeric() or text[at].isnumeric()):
        return False
    start = at
    while start > max(0, at - BEFORE) and _AT_NUMBER.match(text, start - 1):
        start -= 1
    return any(number.start() < at < number.end() for number in _NUMBER.finditer(text, start, at + BEYOND))


def _telling(text: str, start: int, end: int) -> bool:
    """Whether what stands there says anything: a number, two signs of a script without spaces, or words.

    Words have to be two or more with one that is no common word among them, or a single one that stands for itself: a
    name, a long word, or all that the text holds.
    """
    quote = unicodedata.normalize("NFC", text[start:end])
    if _DIGIT.search(quote) or (not quote.isascii() and sum(map(_unspaced, quote)) > 1):
        return True
    telling = ""
    for at, match in enumerate(_WORD.finditer(quote)):
        telling = telling or (match[0] if _is_telling(match[0]) else "")
        if telling and at:
            return True
    if not telling:
        return False
    word, before = telling, text[:start].rstrip(" \t\"'“”‘’«»*_([")
    if word.lower() == word.upper():  # a script without capitals
        named = len(word) > 3
    else:  # a capital at the beginning of a sentence tells nothing
        named = word[1:] != word[1:].lower() or (word != word.lower() and before != "" and before[-1] not in ".!?:;\n")
    return len(word) > 2 and (named or len(word) >= NAMED or not any(map(str.isalnum, text[:start] + text[end:])))


def _is_telling(word: str) -> bool:
    return (len(word) > 2 or (len(word) == 2 and word.isupper())) and word.lower() not in _COMMON
