"""What form a reply is asked to have, and how many tokens it is given.

A model that rambles goes on to its limit. A snippet is no longer than its passage, so a short passage sets a lower one.
It is a guess of what a tokenizer makes of the passage, so a reply that it cuts is no evidence, and is asked for again
with the whole limit wherever more of it could be a copy. The limit is part of a request and not of the key of its
reply: a reply that ended by itself is the same under every limit that it fits in, so what was paid for is still found.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from arhn_datasets.annotators.client.completions import is_cut
from arhn_datasets.annotators.client.contract import Completion, thinks
from arhn_datasets.annotators.decorations import answer_of, holds_thought
from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER, Message
from arhn_datasets.annotators.replies import parse_snippet
from arhn_datasets.rows.records import GRADES, UNGROUNDED, Passage, text_of

MAX_GRAMMARS = 32  # TGI compiles more of them again and again, holding up every other request
SNIPPET_TOKENS, GRADE_TOKENS = 384, 32
MAX_TOKENS = 1024  # TGI generates more than this in a second round that forgets its stop strings
STEP = 64  # few different limits, because a model in this process generates requests of one limit together
MARGIN = 32  # a label, quotation marks, the marker, JSON around it
LINE = 8  # the identifier of a line
_LETTERS = (string.ascii_letters + " ").encode()
LETTER = 0.4  # tokens; 0.25 is usual in English, and more in other languages and in names
ESCAPED = 6  # tokens of "\u00e9"
MOST_HIDDEN = 16  # tokens that a reply may have beyond its bytes, before they must be thoughts that stand elsewhere
_REASONING = re.compile(r"reason|think|gpt-oss|gpt-5|\bo[1-9]\b|\br1\b|gemini-[23]|grok-[34]|magistral", re.IGNORECASE)
CUT_WORDS = 3  # at the end, which may be the beginning of another word or number
LEAST_CHARACTERS = 40  # that tell whether a passage holds them
_OPENED = re.compile(r'\{\s*"\w+"\s*:\s*"')
_UNREADABLE = ("{", "[", "`", "\\", "$")  # JSON and wrappers, which are read only when they are closed


def object_schema(**properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


SNIPPET_SCHEMA = object_schema(snippet={"type": "string"})
# Without limits that depend on the candidates: one grammar for all requests.
VERDICT_SCHEMA = object_schema(**dict.fromkeys(("better", "worse"), {"type": "array", "items": {"type": "integer"}}))
GRADE_SCHEMA = object_schema(grade={"type": "integer", "enum": list(GRADES)})
# Without limits that depend on the pack, either.
PACKED_SCHEMA = object_schema(lines={"type": "array", "items": {"type": "string"}})
_FORMS: Mapping[str, Any] = {
    **{"snippet": "...", "ranking": [2, 1, 3], "better": [2, 5], "worse": [1], "grade": 2},
    "lines": ["[1] ...", f"[2] {NO_ANSWER_MARKER}"],
}


def ranking_schema(candidates: int) -> Mapping[str, Any] | None:
    """The schema of a ranking of so many candidates, None where it would be one grammar too many for a server."""
    if candidates > MAX_GRAMMARS - 1:
        return None
    items = {"type": "integer", "enum": list(range(1, candidates + 1))}
    return object_schema(ranking={"type": "array", "items": items, "minItems": candidates, "maxItems": candidates})


def asking_for_json(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The messages with the form of the reply said at their end."""
    form = {name: _FORMS[name] for name in schema["properties"]}
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\nReply as JSON in this form: {json.dumps(form)}"}]


def ranking_tokens(candidates: int) -> int:
    """Room for a ranking of so many candidates: ``[12] > `` takes up to 6 tokens."""
    return min(MAX_TOKENS, 32 + 8 * candidates)


class Copied(NamedTuple):
    """What a reply may copy, and whether one that was cut can still become a copy of it."""

    passages: Sequence[Passage]
    hopeless: Callable[[str], bool]
    lines: bool = False

    def limit(self, most: int, *, escaped: bool) -> int:
        """Tokens for a copy of all of it, up to ``most``; ``escaped`` where it is held to JSON."""
        wanted = MARGIN + sum(copy_tokens(text_of(one), escaped=escaped) + LINE * self.lines for one in self.passages)
        return min(most, STEP * -(-int(wanted) // STEP))


def copy_tokens(text: str, *, escaped: bool) -> float:
    """Tokens of a verbatim copy, in a tokenizer that knows few words and no character beyond ASCII."""
    raw = text.encode("utf-8", "replace")
    others = len(raw.translate(None, _LETTERS))
    tokens = LETTER * (len(raw) - others) + others
    if escaped:
        beyond = len(text) - len(text.encode("ascii", "ignore"))
        tokens += raw.count(b'"') + raw.count(b"\\") + raw.count(b"\n") + ESCAPED * beyond
    return tokens


@lru_cache(maxsize=64)
def reasons(model: str) -> bool:
    """Whether a model of this name may think before it answers, whatever it is told."""
    return thinks(model) or bool(_REASONING.search(model))


def has_thought(completion: Completion) -> bool:
    """Whether the model thought before it answered, as far as the reply tells."""
    text, tokens = completion.text, completion.completion_tokens
    hidden = tokens is not None and tokens > len(text.encode("utf-8", "replace")) + MOST_HIDDEN
    return hidden or (is_cut(completion.finish_reason) and not text.strip()) or holds_thought(text)


def rambles(text: str, passage: Passage) -> bool:
    """Whether a reply that was cut can be no snippet of the passage, however long it goes on."""
    said = answer_of(text)
    opened = _OPENED.match(said)
    if said.startswith(_UNREADABLE) and not opened:
        return False
    said = said[opened.end() :] if opened else said
    for _ in range(CUT_WORDS):
        said = _without_last_word(said)
        if len(said) < LEAST_CHARACTERS:
            return False
        try:
            read = json.loads(f'"{said}"', strict=False) if opened else said
        except ValueError:
            return False
        if parse_snippet(read, passage).status != UNGROUNDED:
            return False
    return True


def _without_last_word(text: str) -> str:
    words = text.rsplit(maxsplit=1)
    return words[0] if len(words) > 1 else text[:-8]  # signs of a script without spaces
