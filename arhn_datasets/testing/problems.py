"""How the server refuses: TGI's errors, and the words of its messages.

Server contract: text-generation-inference 3.3. Deserialisation refuses with text/plain (axum, before any code of TGI),
everything behind it with ``{"error", "error_type"}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
_LABELS = {"template_error": "template", "incomplete_generation": "incomplete", "tool_error": "validation"}

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Any) -> str:
    """JSON without spaces and escapes, as serde writes it."""
    return _encode(value)


class Problem(Exception):
    """A reply that is an error: status, body and content type; ``label`` is its name in the metrics."""

    def __init__(
        self, status: int, body: str = "", content_type: str = TEXT, *, label: str = "", message: str = ""
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.content_type = content_type
        self.label = label
        self.message = message or body
        self.headers: Mapping[str, str] = {}

    @classmethod
    def named(cls, status: int, error_type: str, message: str) -> Problem:
        """TGI's own form: a JSON object with ``error`` and ``error_type``."""
        body = dumps({"error": message, "error_type": error_type})
        return cls(status, body, JSON, label=_LABELS.get(error_type, error_type), message=message)


def overloaded() -> Problem:
    """No permit is left: at once, without waiting."""
    return Problem.named(429, "overloaded", "Model is overloaded")


def invalid(message: str) -> Problem:
    """A parameter or a length that the server does not take."""
    return Problem.named(422, "validation", f"Input validation error: {message}")


def template_error(message: str) -> Problem:
    """The chat template is missing, or refuses the messages."""
    return Problem.named(422, "template_error", f"Template error: {message}")


def batch_failed(message: str = "CANCELLED") -> Problem:
    """What every request of a batch gets when the backend fails."""
    return Problem.named(424, "generation", f"Request failed during generation: Server error: {message}")


def incomplete() -> Problem:
    """The backend ended a generation without its last token."""
    return Problem.named(500, "incomplete_generation", "Incomplete generation")


def too_large(label: str = "") -> Problem:
    """A body above the limit of its size."""
    return Problem(413, "Failed to buffer the request body: length limit exceeded", label=label)


def undeserialisable(message: str, size: int) -> Problem:
    """The rejection of a body of the wrong form; the column is the end of the body, as for a whole document."""
    said = f"Failed to deserialize the JSON body into the target type: {message} at line 1 column {size}"
    return Problem(422, said, label="validation")
