"""Queries and passages that stand in messages, as ms-swift has them: ``{"role", "content"}``, a list for each text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.passages import STRING, FlatPassages, Values, each
from arhn_datasets.rows.records import shorten

Message = tuple[str, str]
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


def queries_in(values: Values) -> pa.Array:
    """The one message of the user in each list."""
    return pa.array(each(values, _query), STRING)


def instructions_in(values: Values) -> pa.Array:
    """The system message of each list, null where there is none."""
    found = each(values, lambda value: [text for role, text in _messages(value, "messages") if role == SYSTEM])
    return pa.array([texts[0] if texts else None for texts in found], STRING)


def replies_in(values: Values) -> FlatPassages:
    """The messages of the assistant as passages."""
    return _passages(each(values, lambda value: [t for role, t in _messages(value, "messages") if role == ASSISTANT]))


def answers_in(values: Values, column: str) -> FlatPassages:
    """The passages of a column of conversations, of one, or of texts: the last message of each."""
    return _passages(each(values, lambda value: _answers(value, column)))


def none_of(others: FlatPassages) -> FlatPassages:
    """No passage in any of the rows."""
    return _passages([[] for _ in others.counts])


def _passages(texts: list[list[str]]) -> FlatPassages:
    flat_texts = pa.array(list(chain.from_iterable(texts)), STRING)
    return FlatPassages(counts=np.array([len(one) for one in texts], np.int64), fields={"text": flat_texts})


def _query(value: Any) -> str:
    asked = [text for role, text in _messages(value, "messages") if role == USER]
    if len(asked) != 1 or not asked[0].strip():
        raise SchemaError(
            f"column 'messages' holds {len(asked)} messages of the user with a text; one was expected, the query."
        )
    return asked[0]


def _answers(value: Any, column: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value else []
    found = flat.list_in(value, column, "messages")
    if any(isinstance(one, Mapping) for one in found):
        found = [found]  # one conversation
    texts = []
    for one in found:
        if one is None:
            continue
        told = [(None, one)] if isinstance(one, str) else [m for m in _messages(one, column) if m[0] != SYSTEM]
        if not told or len(told) > 2 or (len(told) == 2 and told[0][0] != USER):
            raise SchemaError(
                f"column {column!r} holds a conversation of {len(told)} messages ({shorten(repr(one), 60)}); one "
                "message with the text of a passage was expected."
            )
        texts.append(told[-1][1])
    return texts


def _messages(value: Any, column: str) -> list[Message]:
    found = []
    for one in flat.list_in(value, column, "messages"):
        content = one.get("content") if isinstance(one, Mapping) else None
        if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(content, str) or not isinstance(one.get("role"), str):
            raise SchemaError(
                f"column {column!r} holds {flat.found_as(one)}; a message {{role, content}} with a text was expected."
            )
        found.append((one["role"], content))
    return found
