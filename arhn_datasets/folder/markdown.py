"""Values in Markdown: whatever they hold, they are shown and not obeyed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """A Markdown table; numbers stand to the right, by default in all columns but the first."""
    aligned = range(1, len(header)) if right is None else right
    rule = "|".join("---:" if at in aligned else "---" for at in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def fenced(text: str, language: str) -> str:
    """Text as a code block that nothing in it can end."""
    shown = visible(text.strip("\n"))
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def value_of(value: Any) -> str:
    """A value of JSON, as code where it looks like code."""
    if isinstance(value, Mapping):
        return ", ".join(f"{inline(name)}: {value_of(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_of(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f"`{text}`" if re.fullmatch(r"[\w.,+@/:()=-]+(?: [\w.,+@/:()=-]+)*", text, re.ASCII) else inline(text)


def inline(value: Any) -> str:
    """A value that cannot leave its place in a line of Markdown: one line, no markup, no table bars."""
    return escaped(str(value)).strip() or "(empty)"


def escaped(text: str) -> str:
    """The same with the spaces around it."""
    # An underscore between letters is none of Markdown's marks.
    return re.sub(
        r"[&<>`|\[\]*$~\\]|(?<![^\W_])_|_(?![^\W_])",
        lambda found: f"&#{ord(found.group())};",
        re.sub(r"\s+", " ", visible(text)),
    )


def html(value: Any) -> str:
    """A value in quotes of HTML."""
    return re.sub(r"[&<>\"'\s]", lambda found: f"&#{ord(found.group())};", visible(str(value)))


def one_line(value: Any) -> str:
    """A value on one line, with its markup."""
    return " ".join(visible(str(value)).split())


def visible(text: str) -> str:
    """``text`` without what a file cannot hold or what would turn the direction of the rest of the page."""
    turned = re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)
    return re.sub("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", turned)


def is_url(text: str) -> bool:
    """Whether a text is an address of the web."""
    return re.fullmatch(r"https?://[^\s<>\"]+", text) is not None
