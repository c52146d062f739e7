"""What a 200 says in the forms that servers give it, and why it ended."""

from __future__ import annotations

import json
from typing import Any

from arhn_datasets.errors import EmptyReply, RequestRejected
from arhn_datasets.rows.records import shorten

# Why servers say that they ended a reply, where it says nothing: it was as long as it may be, a filter, a failure.
_CUT = (
    *("length", "max_length", "max_tokens", "max_new_tokens", "max_output_tokens", "max_completion_tokens"),
    *("model_length", "context_length", "token_limit", "model_context_window_exceeded", "incomplete"),
)
_WHOLE = ("stop", "stop_sequence", "eos", "eos_token", "eot", "end_turn", "complete", "completed", "finished", "done")
_HELD_BACK = ("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content")
_BROKEN = ("error", "abort", "aborted", "cancelled", "canceled", "insufficient_system_resource")


def completed(reply: Any) -> tuple[Any, ...]:
    """Text, reason of the end and token counts of a chat completion.

    Raises:
        RequestRejected: a content filter or the model has held the reply back.
        EmptyReply: there are thoughts alone.
        ValueError: the server stopped before the end.
    """
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (None, None)
    message, reason = choice["message"], choice.get("finish_reason")
    text = message.get("content")
    if reason == "stop" and isinstance(text, str) and "native_finish_reason" not in choice:  # the usual case
        return text, reason, *tokens
    if is_cut(
        choice.get("native_finish_reason")
    ):  # of a provider behind a gateway, which may have called it another end
        reason = choice["native_finish_reason"]
    parts = [text] if isinstance(text, dict) else text
    if isinstance(parts, list):  # among which may be thoughts
        text = "".join(part["text"] for part in parts if part.get("type", "text") in ("text", "output_text"))
    if is_held_back(reason):
        raise RequestRejected(f"the server's content filter held the reply back (finish_reason {reason!r})")
    if text is None and message.get("refusal"):
        raise RequestRejected(f"the model refused to reply: {shorten(str(message['refusal']))}")
    if str(reason).lower() in _BROKEN:
        raise ValueError("the server stopped before the end")
    if text is None and not is_cut(reason) and (message.get("reasoning_content") or message.get("reasoning")):
        raise EmptyReply("the server answered 200 with thoughts alone: the model used its tokens for thinking")
    # All that there was room for are thoughts, which stand elsewhere.
    return "" if text is None and is_cut(reason) else text, reason, *tokens


def is_cut(reason: str | None) -> bool:
    """Whether a reply ended because it was as long as it may be."""
    return str(reason).lower() in _CUT


def is_whole(reason: str | None) -> bool:
    """Whether a reply is known to have ended by itself."""
    return str(reason).lower() in _WHOLE


def is_held_back(reason: str | None) -> bool:
    """Whether a filter has ended a reply."""
    return str(reason).lower() in _HELD_BACK


def loaded(body: bytes) -> Any:
    """The JSON of a 200, also where it is a stream that nobody has asked for."""
    if body[:1] == b"{" or not body.lstrip().startswith((b"data:", b"event:", b":")):
        return json.loads(body)
    lines = (line[5:].strip() for line in body.splitlines() if line.startswith(b"data:"))
    chunks = [json.loads(line) for line in lines if line != b"[DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    (reason,) = {choice["finish_reason"] for choice in choices if choice.get("finish_reason")}
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    usage = next((chunk["usage"] for chunk in chunks if chunk.get("usage")), None)
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": usage}
