"""What a request asks of the model: its prompt by the template, its parameters, and TGI's rules for their values.

Server contract: text-generation-inference 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arhn_datasets.testing.problems import Problem, invalid, template_error
from arhn_datasets.testing.tokens import CHUNK


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server states of itself on ``/info``, and two limits that it does not state."""

    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_client_batch_size: int = 4
    max_top_n_tokens: int = 5


def templated(messages: Sequence[Mapping[str, Any]], *, system_role: bool) -> str:
    """The prompt of ``messages`` in ChatML; a last message of the assistant is continued, its end trimmed.

    Raises:
        Problem: the template refuses a system role, or roles that do not alternate (``system_role`` False).
    """
    if not system_role:
        if messages and messages[0]["role"] == "system":
            raise template_error("invalid operation: System role not supported (in <string>:1)")
        if any(message["role"] != ("user", "assistant")[at % 2] for at, message in enumerate(messages)):
            raise template_error(
                "invalid operation: Conversation roles must alternate user/assistant/user/assistant/... (in <string>:1)"
            )
    prompt = "".join(f"<|im_start|>{one['role']}\n{content_of(one)}<|im_end|>\n" for one in messages)
    if messages and messages[-1]["role"] == "assistant":
        return prompt.removesuffix("<|im_end|>\n").rstrip()
    return prompt + "<|im_start|>assistant\n"


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message: its parts joined with nothing, images as Markdown."""
    content = message.get("content")
    if not isinstance(content, list):
        return content or ""
    return "".join(part["text"] if part["type"] == "text" else f"![]({part['image_url']['url']})" for part in content)


def chat_parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of ``/generate`` that a chat request comes to.

    A temperature of 0 is greedy, and none samples; ``presence_penalty`` x is a repetition penalty of x + 2.

    Raises:
        Problem: a grammar together with tools.
    """
    if body.get("response_format") and body.get("tools"):
        raise Problem.named(422, "tool_error", "Tool error: Grammar and tools are mutually exclusive")
    temperature, penalty = body.get("temperature"), body.get("presence_penalty")
    limit = body.get("max_tokens")
    return {
        "do_sample": temperature != 0,
        "temperature": temperature or None,
        "top_p": body.get("top_p"),
        "repetition_penalty": None if penalty is None else penalty + 2.0,
        "frequency_penalty": body.get("frequency_penalty"),
        "max_new_tokens": body.get("max_completion_tokens") if limit is None else limit,
        "stop": body.get("stop") or [],
        "seed": body.get("seed"),
        "top_n_tokens": body.get("top_logprobs"),
        "grammar": body.get("response_format"),
        "details": True,
    }


def check_tool_call(text: str) -> None:
    """Refuse a reply to a request with tools that is no JSON: it is read as the call of one.

    Raises:
        Problem: 422 ``tool_error``.
    """
    try:
        json.loads(text)
    except ValueError as error:
        said = f'Tool error: Failed to parse generated text: {error} "{text}"'
        raise Problem.named(422, "tool_error", said) from None


def completion_parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of ``/generate`` that a completion request comes to."""
    return {**chat_parameters(body), "repetition_penalty": body.get("repetition_penalty")}


def is_sampled(parameters: Mapping[str, Any]) -> bool:
    """Whether the reply would be drawn at random: ``top_p`` and its like force it, even with temperature 0."""
    named = ("temperature", "top_k", "top_p", "typical_p")
    return bool(parameters.get("do_sample")) or any(parameters.get(name) is not None for name in named)


def check_parameters(parameters: Mapping[str, Any], inputs: str, limits: Limits) -> None:
    """Refuse values out of range, in TGI's order.

    Raises:
        Problem: 422 ``validation``.
    """
    best_of, seed = parameters.get("best_of"), parameters.get("seed")
    if best_of is not None and best_of > limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if (best_of or 1) > 1 and not is_sampled(parameters):
        raise invalid("you must use sampling when `best_of` is > 1")
    for name, accepts, message in _RANGES:
        value = parameters.get(name)
        if value is not None and not accepts(value):
            raise invalid(f"`{name}` must be {message}")
    stops = len(parameters.get("stop") or ())
    if stops > limits.max_stop_sequences:
        raise invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {stops}")
    if seed is not None and (best_of or 1) > 1:
        raise invalid("`seed` must not be set when `best_of` > 1")
    top_n = parameters.get("top_n_tokens") or 0
    if top_n > limits.max_top_n_tokens:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {top_n}")
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    truncate = parameters.get("truncate")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        )


_RANGES: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("temperature", lambda value: value > 0, "strictly positive"),
    ("repetition_penalty", lambda value: value > 0, "strictly positive"),
    ("frequency_penalty", lambda value: -2 <= value <= 2, ">= -2.0 and <= 2.0"),
    ("top_k", lambda value: value > 0, "strictly positive"),
    ("top_p", lambda value: 0 < value < 1, "> 0.0 and < 1.0"),
    ("typical_p", lambda value: 0 < value < 1, "> 0.0 and < 1.0"),
    ("max_new_tokens", lambda value: value > 0, "strictly positive"),
)


def check_lengths(inputs: int, wanted: int | None, limits: Limits) -> None:
    """Refuse a prompt of ``inputs`` tokens that does not fit; the total is checked first, with at most 1024 new ones.

    Raises:
        Problem: 422 ``validation``.
    """
    new = max(0, limits.max_total_tokens - inputs) if wanted is None else min(wanted, CHUNK)
    if inputs + new > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {inputs} `inputs` tokens and {new} `max_new_tokens`"
        )
    if inputs > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {inputs}")
