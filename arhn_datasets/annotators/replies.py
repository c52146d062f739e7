"""From the text of a reply to evidence, and from nothing else.

The parsers accept little and invent nothing: what is not plainly a snippet of the passage, the marker
``NO_ANSWER``, a list of identifiers, the two lists of a verdict or one grade is recorded as such and moves no passage.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from arhn_datasets.annotators.client.completions import is_cut, is_whole
from arhn_datasets.annotators.decorations import answer_of
from arhn_datasets.annotators.grounding import fold, ground
from arhn_datasets.annotators.interface import Grade, Ranking, Snippet, Verdict
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER
from arhn_datasets.rows import records
from arhn_datasets.rows.records import Passage, shorten

VERSION = 2  # raised whenever the same reply is read differently; part of every LLM annotator's identity
CUT_OFF = "cut off after"  # how the detail of a reply begins that was not finished

MOST_JSON = 20_000  # characters of a reply that are tried as JSON
_LABEL = re.compile(r"([^\n:：]{1,80}?)(?:,? or no_answer)?\s*(?:[:：]|\s[-–—]\s)\s*(?:\*\*|__)?\s*", re.IGNORECASE)
_BULLET = re.compile(r"\A(?:[-*•·]\s+|\d{1,2}[.)]\s+|#{1,6}\s+)")
_MARKUP = re.compile(r"\*\*|__|`|^\s*(?:>+|#{1,6})\s*", re.MULTILINE)
_TITLE = re.compile(r"title\s*:\s*")
_AFTER_TITLE = re.compile(r"[\s:.\-\"'|]+(?:(?:text|passage|content)\s*:\s*)?")
_NO_LETTER = re.compile(r"[\W_]+")
_WRAPPERS = "\"'`*“”‘’«»‹›„「」『』 \t\r\n"
_OUTER = f"{_WRAPPERS}.…()[]{{}}"
_TAG = re.compile(r"</?[a-z_]\w*>", re.IGNORECASE)
# A reply in which there is nothing to unwrap, as most are.
_BARE = re.compile(rf"[^\W\d_][^\n:：<\-–—]*[^\n:：<\-–—{re.escape(_WRAPPERS)}]")
# What leads to an answer, word by word: whatever else stands before it may say that it is none.
_LEAD_WORDS = (
    "a above according after all an and answer answering answers are as based because below best by candidate "
    "candidates certainly comparing considering copied course descending document documents evidence exact "
    "excerpt extracted final finally first following follows for from given hence here here's how i identifier "
    "identifiers in into is it least list listed model most my of ok okay on order ordered output passage "
    "passages prefer put query question quote quoted rank ranked ranking reading reads reason relevance "
    "relevant reply response result says sentence sentences snippet snippets so sorted span states sure text "
    "that the their them therefore these this thus to top verbatim which will with words would yields antwort "
    "ausschnitt auszug rangfolge rangliste reihenfolge textstelle réponse extrait classement ordre respuesta "
    "fragmento clasificación orden risposta estratto classifica ordine resposta trecho classificação ordem "
    "ответ фрагмент ранжирование порядок 答案 回答 答え 排序 排名 摘录 原文 順位 ランキング 답 답변 순위"
)
_LEADS = frozenset(_LEAD_WORDS.split())
_LEAD_WORD = re.compile(r"[^\W\d_][\w'’]*")
_TAGS = ("<passage>", "</passage>")

# What a refusal says alone, or before a stop: compared by its letters.
_REFUSALS = (
    "no answer;none;n/a;n.a.;nil;null;nan;nothing;unknown;undefined;empty;blank;not found;no match;no matches;"
    "no result;no results;"
    "no snippet;no text;no quote;no evidence;no information;no relevant text;no relevant information;"
    "no relevant snippet;no relevant passage;no such text;no answer found;no answer given;no answer provided;"
    "no answer available;no answer in passage;no answer in the passage;no answer in the text;no answer is given;"
    "there is no answer;there is none;none found;none given;none of it;none of the above;none of these;not available;"
    "not applicable;not stated;not given;not mentioned;not specified;not provided;not answered;not relevant;irrelevant;"
    "not enough information;insufficient information;nothing found;nothing to copy;there is nothing to copy;"
    "nothing relevant;does not answer;doesn't answer;doesn't say;unanswerable;"
    "cannot answer;can't answer;cannot be answered;cannot be determined;cannot determine;"
    "not found in passage;not found in the passage;not found in text;not found in the text;no hay respuesta;"
    "no se menciona;keine antwort im text;pas de réponse dans le texte;文中没有答案;文中没有提到;文中未提及;"
    "無回答;答えはありません;回答はありません;記載なし;답이 없습니다;답이 없음;정답 없음;해당 없음;"
    "لا توجد إجابة;कोई उत्तर नहीं;yanıt yok;cevap yok;brak odpowiedzi;inget svar;ingen svar;intet svar;"
    "ei vastausta;không có câu trả lời;tidak ada jawaban;ไม่มีคำตอบ;אין תשובה;καμία απάντηση;žádná odpověď;"
    "nincs válasz;niciun răspuns;немає відповіді;няма отговор;"
    "i don't know;i do not know;don't know;idk;keine;keine antwort;nichts;unbekannt;aucun;aucune;aucune réponse;"
    "pas de réponse;rien;inconnu;ninguno;ninguna;ninguna respuesta;sin respuesta;nada;desconocido;nessuno;nessuna;"
    "nessuna risposta;nenhum;nenhuma;sem resposta;geen;geen antwoord;onbekend;нет;нет ответа;неизвестно;无;無;没有;"
    "无答案;無答案;没有答案;未知;未提及;なし;該当なし;回答なし;答えなし;不明;없음;답 없음;답변 없음;لا يوجد;لا شيء"
)
_STOP = re.compile(r"[.,:;!?\n(–—]| - ")
LONGEST_REFUSAL = 40  # characters, with what stands around it
# Without any of these there is no sentence that refuses.
_DENIALS = (
    *("no ", "not ", "n't", "nothing", "none", "cannot", "never", "neither", "lack", "fail", "silent", "sorry"),
    *("unclear", "unknown", "unable", "unrelated", "unfortunately", "irrelevant", "insufficient"),
)
_TEXT = r"(?:passage|text|document|article|context|paragraph|excerpt|snippet|content|source|abstract)s?"
_SAID = (
    r"(?:state|mention|answer|contain|provid|say|said|give|specif|includ|address|discuss|describ|expla|indicat|support"
    r"|offer|tell|relevan|enough|sufficien|explicit|direct|relat|match|appear|found|about\b"
    r"|have (?:any|enough|an?|the)\b)"
)
_NEGATED = r"(?:do|does|did|is|are|was|were|can|could|has|have) ?(?:not|n't)|cannot|never|fails? to"
# What a refusal says of the passage or of itself: never a snippet, whatever the passage holds.
_ABOUT_THE_TEXT = re.compile(
    rf"(?:(?:i am|i'm)? ?sorry,? ?(?:but )?|unfortunately,? )?(?:(?:based on|according to|in|from) [^,.]{{0,60}}, )?(?:"
    rf"(?:the|this|that|given|provided)(?: \w+){{0,3}}? {_TEXT}(?: \w+){{0,4}}? "
    rf"(?:(?:{_NEGATED})\b(?: [\w-]+){{0,3}}? {_SAID}"
    r"|(?:contain|provid|giv|offer|stat|say|includ|hold|mak|mention|answer)e?s? (?:no|nothing|neither)\b"
    r"|(?:has|have) no (?:\w+ )?(?:answer|information|mention|detail|evidence|data)|lacks? (?:any|the|an|information)\b"
    r"|is (?:silent|unclear|irrelevant|unrelated|about something else))"
    rf"|there(?: is|'s| are| was| were)(?: no|n't| not| nothing)(?: [\w-]+){{0,4}}? "
    rf"(?:answer|snippet|mention|copy|{_TEXT})\b"
    r"|i (?:cannot|can not|can't|could not|couldn't|do not|don't|am unable|was unable)(?: \w+){0,3}? "
    r"(?:find|answer|determine|locate|see|know|copy|identify)\b"
    rf"|(?:no|none of the|nothing in the)(?: [\w-]+){{0,3}}? (?:answers?|snippets?|sentences?|{_TEXT})\b"
    rf"|not in (?:the|this) {_TEXT}"
    r"|[^.\n]{0,80}?\bnot (?:\w+ )?(?:stated|mentioned|found|specified|given|provided|answered) (?:in|by) "
    rf"(?:the|this) (?:\w+ )?{_TEXT}"
    rf"|it (?:{_NEGATED})(?: \w+)? (?:say|state|mention|specif|answer)\w*\b"
    r"|no (?:\w+ )?(?:information|evidence|data|details?) (?:\w+ )?(?:found|given|available|provided|present)\b"
    rf"|(?:the|this) (?:answer|question|query|claim)(?: \w+){{0,4}}? (?:{_NEGATED})(?: \w+){{0,4}}? {_SAID})"
)
# The same in words that passages have as well: no snippet where the passage does not say them.
_OF_NOTHING = re.compile(
    rf"there (?:is|are|was|were)(?: no|n't| not)\b|it (?:{_NEGATED})(?: \w+){{0,3}} {_SAID}|unable to|"
    r"no (?:\w+ )?(?:information|evidence|data|details?|mention)\b|"
    r"not (?:stated|mentioned|specified|given|provided|answered|enough|sufficient)|insufficient|it is un(?:clear|known)"
)
_CONTRAST = re.compile(r"\b(?:but|however|although|though|except|yet|nevertheless)\b|\"")

_ID = r"\[{1,2}\s*\d{1,6}\s*\]{1,2}"
_ARROW = re.compile(r"[-=]+>|[→≻⟩]")
_CHAIN = re.compile(r"\[\s*\d{1,6}\s*\](?:\s*>+\s*\[\s*\d{1,6}\s*\])+")
_LISTED = re.compile(r"\[\s*\d{1,6}\s*\](?:[\s,;]*\[\s*\d{1,6}\s*\])*")
_BRACKETED_ID = re.compile(r"\[\s*(\d{1,6})\s*\]")
# Whatever else in a reply may order candidates: chains and lists of any signs, a list of JSON, "passage 2".
_ORDERED = re.compile(
    rf"{_ID}(?:[ \t>,;=~→≻|/&-]*{_ID})*|\[\s*\d{{1,6}}(?:\s*,\s*\d{{1,6}})+\s*\]|\d{{1,6}}(?:\s*[>→≻]+\s*\d{{1,6}})+"
    r"|\d{1,6}(?:\s*,\s*\d{1,6})+(?![\d.])|^\W*\d{1,6}(?: +\d{1,6})+\W*$|(?<![a-z] )\d{1,6}(?=:\s| (?:is|beats|wins)\b)"
    r"|(?:candidate|passage|document|doc|snippet|text|option|item|number|no\.|#|answer|response|sentence|entry|winner|best"
    r"|\bid|top:|kandidat|candidato|candidat|pasaje|antwort|候选|候補|第|후보|кандидат)[\s_:#]{0,3}\(?\d{1,6}(?!\d)"
    r"|\b[a-z]\d{1,2}\b",
    re.IGNORECASE | re.MULTILINE,
)
# Words beside an order that say whose it is, or which end is the best.
_NOT_MINE = re.compile(
    r"\bform(?:at)?\b|example|\be\.g\.|for instance|such as|\b(?:as|were|was|are) (?:given|shown|listed|presented)\b"
    r"|\b(?:given|shown|listed|presented|initial|input|default|current|previous|random|reversed?|ascending) ?"
    r"(?:as|order|ranking|list)|\border (?:given|shown|listed)|original|draft|tentative|unsorted|\bworst"
    r"|\bleast\b(?! as)"
    r"|\b(?:cannot|can't|unable|impossible|never|wrong|instead of|rather than)\b|incorrect|\bnot (?:the|my|be|sure)\b"
    r"|\b(?:wait|hmm+|actually|sorry|revers\w*|unsure|perhaps|maybe|could be|might be|look like|like$|increasing)\b"
    r"|^\W*thinking(?: process)?\W*$"
    r"|\b(?:first|second|third|fourth|last)\W+(?:one|candidate|passage|snippet|document|text)\b|\b(?:number|top:) one\b"
    r"|[^\s>][ \t]*[>→≻⟩]"  # a chain of anything else
    r"|^\W*(?:given|input|before|not)\W*$|\b(?:beispiel|vorgegeben|gegeben|exemple|ejemplo|donné|dado)|[给給]定|原始|例如|格式",
    re.IGNORECASE | re.MULTILINE,
)
_RANKED_IN = re.compile(r"rank|order|sort|answer|result|output|response|identifiers", re.IGNORECASE)
_GRADED_IN = re.compile(r"grade|score|relevance|rating|answer|result|output|response|label", re.IGNORECASE)

# "better: [2], [5]", "**Worse:** none"; the list is [2], [5] or [2, 5], an empty one is none or [].
_GROUP = re.compile(r"[-*_#` ]{0,4}(better|worse)\b[*_` ]{0,4}:[*_` ]{0,4}(.*)", re.IGNORECASE)
_GROUPED = re.compile(r"\[\s*\d{1,6}(?:\s*,\s*\d{1,6})*\s*\](?:[\s,;]*\[\s*\d{1,6}(?:\s*,\s*\d{1,6})*\s*\])*")
_EMPTY = ("none", "[]")
# "2", "2.", "**2**", "[2]", "Grade: 2"; a sign, a fraction or a word more is something else.
_GRADE = re.compile(r"""\**(?:grade\** ?: ?\** ?)?[*`"'\[(]{0,3}([0-3])[*`"'\]).]{0,4}""", re.IGNORECASE)


def cut_off(reason: str | None, tokens: int | None, most: int) -> str | None:
    """Why a reply of so many tokens holds no evidence, of ``most`` that were asked for; None where it is whole."""
    cut = is_cut(reason) or (tokens is not None and tokens >= most and not is_whole(reason))
    return f"{CUT_OFF} {most if tokens is None else tokens} tokens" if cut else None


def parse_snippet(reply: str, passage: Passage) -> Snippet:
    """The evidence in a reply to a snippet prompt.

    Returns ``grounded`` with the offsets in the original passage, ``no_answer`` for the marker, ``ungrounded`` for a
    text that does not occur in the passage, and ``unparsed`` for anything that is neither.
    """
    said = _json_text(answer_of(reply))
    if not _worded(said):
        return Snippet(status=records.UNPARSED, detail=shorten(f"no text in the reply: {reply}"))
    unwrapped = _unwrapped(said)
    refused = _refusal(unwrapped, passage)
    if refused:
        return Snippet(status=refused, detail=None if refused == records.NO_ANSWER else shorten(said))
    found = _found(said, passage)
    if not found and unwrapped != said:
        found = _found(unwrapped, passage)
    # from the plain reading to the most unwrapped
    for form in () if found else (unwrapped.strip(_OUTER), _MARKUP.sub("", unwrapped), html.unescape(unwrapped)):
        found = found or (_found(form, passage) if form != unwrapped else None)
    if found:
        return found
    return Snippet(status=records.UNGROUNDED, detail=shorten(said))


def _found(form: str, passage: Passage) -> Snippet | None:
    """The snippet that ``form`` is: in the text, in the title, or in the text after its title."""
    text, title = (str(passage.get(name) or "") for name in ("text", "title"))
    for name, original, words in (("text", text, form), ("title", title, form), ("text", text, None)):
        words = _after_title(form, title) if words is None else words
        span = ground(words, original) if words else None
        if span:
            start, end = span
            return Snippet(status=records.GROUNDED, snippet=original[start:end], start=start, end=end, field=name)
    return None


def _after_title(said: str, title: str) -> str | None:
    """What follows the title where a reply begins with it, since a prompt shows both together; None where not."""
    wanted, folded = fold(title)[0].strip(), fold(said)[0].strip()
    label = _TITLE.match(folded)
    folded = folded[label.end() :] if label else folded
    after = _AFTER_TITLE.match(folded, len(wanted)) if wanted and folded.startswith(wanted) else None
    return folded[after.end() :] if after else None


def _refusal(said: str, passage: Passage) -> str | None:
    """The status of a reply that refuses in whatever words, None for any other one.

    ``unparsed`` is what may be a copy as well, or goes on as if there were an answer.
    """
    marked = said.replace("\\_", "_").upper().startswith(NO_ANSWER_MARKER)
    if _refuses(said):
        all_of_it = not marked and _letters(said) in (
            _letters(str(passage.get(name) or "")) for name in ("text", "title")
        )
        return records.UNPARSED if all_of_it else records.NO_ANSWER
    stop = _STOP.search(said, 0, LONGEST_REFUSAL)
    if stop and _refuses(said[: stop.start()]):
        rest = said[stop.end() :]
        goes_on = stop[0] == "\n" and rest.lstrip()[:1].islower()
        copied = any(_found(line, passage) for line in (*rest.splitlines(), *([] if marked else [said])))
        return records.UNPARSED if goes_on or copied else records.NO_ANSWER
    if marked or ("\n" in said and any(map(_refuses, said.splitlines()[1:]))):
        return records.UNPARSED
    folded = fold(said)[0].strip()
    if not any(map(folded.__contains__, _DENIALS)):
        return None
    strict = _ABOUT_THE_TEXT.match(folded)
    if not strict and not _OF_NOTHING.match(folded):
        return None
    if _found(said, passage):
        return records.UNPARSED if strict else None
    also = _CONTRAST.search(folded, strict.end() if strict else 0) or any(
        _found(line, passage) for line in said.splitlines()[1:]
    )
    return records.UNPARSED if also else records.NO_ANSWER


def _refuses(said: str) -> bool:
    return len(said) <= LONGEST_REFUSAL and _letters(said) in _refusals()


def _letters(text: str) -> str:
    return _NO_LETTER.sub("", fold(text)[0])


@lru_cache(maxsize=1)
def _refusals() -> frozenset[str]:
    return frozenset(map(_letters, _REFUSALS.split(";")))


def parse_ranking(reply: str, candidates: int) -> Ranking:
    """The evidence in a reply to a ranking prompt over ``candidates`` candidates, shown as 1 to ``candidates``.

    Returns ``ranked`` for a full permutation, ``partial`` where identifiers are missing, repeated or out of range (only
    those that were given exactly once count), ``unparsed`` for anything that is not one list of identifiers.
    """
    said = answer_of(reply)
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
    said = answer_of(reply)
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
    said = answer_of(reply)
    digit = _GRADE.fullmatch(said.strip())
    if digit:
        return Grade(status=records.JUDGED, grade=int(digit[1]))
    grade = _json_value(said, _GRADED_IN)
    if type(grade) is int and grade in records.GRADES:
        return Grade(status=records.JUDGED, grade=grade)
    return Grade(
        status=records.UNPARSED,
        detail=shorten(f"no single grade from {records.GRADES[0]} to {records.GRADES[-1]}: {said}"),
    )


def _worded(text: str) -> bool:
    return text[:1].isalnum() or any(map(str.isalnum, text))


def _json(text: str, opening: str, **options: Any) -> Any:
    """The JSON that a reply is, which opens with one of these characters; None where it is none."""
    if text[:1] not in tuple(opening) or len(text) > MOST_JSON:
        return None
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError):
        return None


def _json_text(said: str) -> str:
    """The text of a reply that is JSON with one string in it, as constrained output is; any other as it is."""
    value = _json(said, '{["', strict=False)
    for _ in range(2):  # {"snippet": ["..."]}
        if isinstance(value, (dict, list)) and len(value) == 1:
            (value,) = value.values() if isinstance(value, dict) else value
    if value is None:
        return NO_ANSWER_MARKER if said[:1] in ("{", "[") and said.rstrip("]} \n").endswith("null") else said
    return value.strip() if isinstance(value, str) else said


def _unwrapped(said: str) -> str:
    if _BARE.fullmatch(said):
        return said
    text = said
    for tag in _TAGS:
        text = text.replace(tag, "")
    text = _BULLET.sub("", text.strip().lstrip("> ")).strip(_WRAPPERS)
    label = _LABEL.match(text)
    if label and _LEAD_WORD.search(label[1]) and leads(f"{label[1]}:"):  # "16:38 metres" has no lead
        text = text[label.end() :]
    first, _, rest = text.partition("\n")
    if first.rstrip(" *").endswith(":") and _worded(rest):
        text = rest
    return _BULLET.sub("", text.strip(_WRAPPERS)).strip(_WRAPPERS)


def _identifiers(said: str) -> list[int] | None:
    """The identifiers of the one order that the reply holds, None where it holds none or several."""
    text = unicodedata.normalize("NFKC", html.unescape(said)).replace("\\", "")
    text = _ARROW.sub(">", text).strip(" \t\r\n`*.\"'“”")
    if _CHAIN.fullmatch(text) or _LISTED.fullmatch(text):
        return _numbers(text)  # nothing stands beside it
    value = _json_value(text, _RANKED_IN) or _json(text, "[")
    if value and _is_numbers(value):
        given = list(value)
    else:
        lines = [line for line in text.splitlines() if _worded(line)]
        given = max((chain for line in lines if (chain := _chain_of(line))), key=len, default=[])
        if not all(leads(before) for before, line in zip(lines, lines[1:], strict=False) if _chain_of(line)):
            return None
    if not given:
        return None
    beside = _NOT_MINE.search(_TAG.sub(" ", _ORDERED.sub(" ", text)).replace("_", " "))
    *orders, mentioned = _orders(text)
    agrees = mentioned[:1] in ([], given[:1]) and all(_within(order, given) for order in (*orders, mentioned))
    return given if agrees and not beside else None


def _orders(text: str) -> Iterator[list[int]]:
    """Every order of candidates in a text: each chain and list, and the others in the order of their mention.

    Whoever is mentioned first is taken for the best: "so [1] is the best" contradicts a chain that begins with [2].
    """
    mentioned: list[int] = []
    for match in _ORDERED.finditer(text):
        numbers = [int(number) for number in re.findall(r"\d+", match[0])]
        if len(numbers) > 1:
            yield numbers
        elif mentioned[-1:] != numbers:
            mentioned += numbers
    yield mentioned


def leads(line: str) -> bool:
    """Whether a line that ends with a colon leads to an answer, as far as its words are known."""
    text = line.strip(" \t*_`>•-#")
    return not text.endswith((":", "：")) or all(word.lower() in _LEADS for word in _LEAD_WORD.findall(text))


def _within(order: Sequence[int], given: Sequence[int]) -> bool:
    """Whether an order says nothing else than the given one."""
    left = iter(given)
    return all(number in left for number in order)


def _chain_of(line: str) -> list[int] | None:
    """The identifiers of a line that is nothing but a ranking, after an optional label with a colon."""
    start = line.find("[")
    if start < 0:
        return None
    label = line[:start].strip(" \t*_`>•-")
    if label and not (label.endswith(":") and leads(label)):
        return None
    chain = line[start:].strip(" \t*_`.")
    return _numbers(chain) if _CHAIN.fullmatch(chain) else None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _BRACKETED_ID.findall(text)]


def _groups(said: str) -> dict[str, list[int]] | None:
    """The two lists of a reply to a prompt for verdicts, None where it is anything else."""
    text = said
    value = json_object(text)
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


def json_object(text: str) -> dict[str, Any]:
    """The object that a reply is, an empty one where it is none or says a name twice."""
    pairs = _json(text, "{", object_pairs_hook=list) or []
    value = dict(pairs) if all(isinstance(pair, tuple) for pair in pairs) else {}
    return value if len(value) == len(pairs) else {}


def _json_value(text: str, named: re.Pattern[str]) -> Any:
    """The one value in the object that a reply is, under a name that says what it is; None where it is none."""
    value = json_object(text)
    return next((one for name, one in value.items() if len(value) == 1 and named.search(name)), None)
