"""What stands around the answer in a reply: special tokens, thoughts, channels and wrappers.

A thought counts for nothing where its own tag closes it before the answer, and makes the whole reply count for nothing
where it does not. What is taken off holds no word of the answer.
"""

from __future__ import annotations

import re

# <|im_end|>, <｜end▁of▁sentence｜>, </s>, <eos>, <end_of_turn>, [/INST], [|endofturn|], [e~[
_SPECIAL = (
    r"(?:<[|｜][^<>\n]{0,60}[|｜]>"
    r"|</?(?:s|bos|eos|eot|eod|eop|pad|unk|sep|cls|mask|start_of_turn|end_of_turn|end_of_utterance|extra_id_\d+)>"
    r"|<turn\|>|<\|turn>|\[/?(?:INST|SYSTEM_PROMPT|BOS|EOS|PAD|UNK|SEP|CLS|gMASK)\]|<</?SYS>>"
    r"|\[\|[^\[\]\n|]{0,40}\|\]|\[e~\[|\]~b\]|\[end of text\]"
    r"|</?(?:(?:answer|final|output|response|result|snippet|text|passage|ranking|grade|copied|quote|span|sentence|excerpt"
    r"|evidence|extract|extracted|relevant|exact)_?){1,3}>)"  # also where the other half was cut away
)
_LEADING = re.compile(rf"{_SPECIAL}(?:(?:assistant|model)(?=\s|<))?|assistant(?=\s*\n)", re.IGNORECASE)
_TRAILING = re.compile(rf"{_SPECIAL}\Z", re.IGNORECASE)
_LONGEST = 70  # characters of a special token
# white space, control characters, a byte order mark, and what stands for a character that is none
_BLANK = "".join(map(chr, [*range(33), 127, 0xA0, 0x200B, 0x2060, 0xFEFF, 0xFFFC, 0xFFFD]))

_NAMES = r"(?:\w+:)?\w*(?:think|thought|reason|reflect|scratchpad|analysis)\w*"
_THOUGHT = re.compile(
    rf"<(?P<c1>/?)(?P<n1>{_NAMES})(?:\s[^<>\n]{{0,80}})?>"
    r"|\[(?P<c2>/?)(?-i:(?P<n2>THINK))\]|◁(?P<c3>/?)(?P<n3>think)▷"
    r"|<[|｜](?P<e4>start|begin|end|/)?_?(?:of_)?(?P<n4>thinking|thought|think)[|｜]>"
    r"|(?P<o5><\|channel>thought\b|<unused94>(?:thought\b)?)|(?P<c5><channel\|>|<unused95>)",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>")
_BARE_CHANNEL = re.compile(
    r"\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z])"
)  # of which the special tokens were left out
_WRAPPED = re.compile(
    r"\$?\$?\\\[?\s*\\?boxed\{(?:\\text\{(?P<inner>[^{}]*)\}|(?P<box>[^{}]*))\}\s*(?:\\\])?\$?\$?"
    r"|```[\w+-]*\n(?P<fenced>.*?)\n?```",
    re.DOTALL | re.IGNORECASE,
)
# Without any of these a reply has no decoration: most have none, and looking for each takes its time.
_MARKS = ("<", "```", "\\boxed", "assistant", "analysis", "commentary", "◁", "｜", "]~b")
_BRACKET = re.compile(r"\[(?:[/|TISBEPUC]|e~|gM|end)")
_DEEPEST = 4  # wrappers in wrappers


def answer_of(reply: str) -> str:
    """``reply`` without thoughts, special tokens and wrappers; empty where a thought was not closed."""
    if not any(map(reply.__contains__, _MARKS)) and not ("[" in reply and _BRACKET.search(reply)):
        return reply.strip(_BLANK)
    text = _plain(_after_thinking(_final(reply)))
    for _ in range(_DEEPEST):
        wrapped = _WRAPPED.fullmatch(text)
        if not wrapped:
            break
        text = _plain(next(part for part in (*wrapped.group("inner", "box", "fenced"), "") if part is not None))
    return text


def holds_thought(reply: str) -> bool:
    """Whether ``reply`` holds a thought, closed or not."""
    if not any(map(reply.__contains__, _MARKS)) and "[" not in reply:
        return False
    return bool(_THOUGHT.search(reply) or _CHANNEL.search(reply) or _BARE_CHANNEL.match(reply))


def _plain(text: str) -> str:
    """``text`` without white space and special tokens at either end."""
    text = text.strip(_BLANK)
    while token := _LEADING.match(text):
        text = text[token.end() :].lstrip(_BLANK)
    while token := _TRAILING.search(text, max(0, len(text) - _LONGEST)):
        text = text[: token.start()].rstrip(_BLANK)
    return text


def _final(reply: str) -> str:
    """What the final channel of a reply in harmony's form says; any other reply as it is."""
    if "<|channel|>" in reply:
        _, *told = _CHANNEL.split(reply)
        finals = [said for channel, said in zip(told[::2], told[1::2], strict=True) if channel.split()[:1] == ["final"]]
        return "\n".join(finals)
    bare = _BARE_CHANNEL.match(reply)
    if not bare:
        return reply
    _, closed, said = reply.rpartition("assistantfinal")
    return said if closed else ""


def _after_thinking(text: str) -> str:
    """What follows the last closed thought; empty where one is left open."""
    opened, start = "", 0
    for tag in _THOUGHT.finditer(text):
        found = tag.groupdict()
        name = (found["n1"] or found["n2"] or found["n3"] or found["n4"] or "channel").lower()
        closes = found["c1"] or found["c2"] or found["c3"] or found["c5"] or (found["e4"] or "").lower() in ("end", "/")
        if closes and opened in ("", name):
            opened, start = "", tag.end()
        elif not closes and not opened:
            opened = name
    return "" if opened else text[start:]
