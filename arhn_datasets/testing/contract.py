"""TGI's HTTP contract as pure functions: what a request may hold, how it is refused, what a reply looks like.

Server contract: text-generation-inference 3.3. A body passes three gates. Deserialisation refuses with text/plain
(axum, before any code of TGI); validation with ``{"error", "error_type"}``; both are 422. Unknown fields are ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arhn_datasets.testing.tokens import CHUNK, token_id

Body = dict[str, Any]

VERSION = "3.3.6-dev0"
FINGERPRINT = f"{VERSION}-native"
JSON, TEXT = "application/json", "text/plain; charset=utf-8"
FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop_sequence"}


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

    @classmethod
    def named(cls, status: int, error_type: str, message: str) -> Problem:
        """TGI's own form: a JSON object with ``error`` and ``error_type``."""
        label = _LABELS.get(error_type, error_type)
        return cls(status, dumps({"error": message, "error_type": error_type}), JSON, label=label, message=message)


_LABELS = {"template_error": "template", "incomplete_generation": "incomplete", "tool_error": "validation"}


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


def undeserialisable(message: str, size: int) -> Problem:
    """The rejection of a body of the wrong form; the column is the end of the body, as for a whole document."""
    return Problem(
        422,
        f"Failed to deserialize the JSON body into the target type: {message} at line 1 column {size}",
        label="validation",
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server states of itself on ``/info``, and two limits that it does not state."""

    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_client_batch_size: int = 4
    max_top_n_tokens: int = 5


# ---------------------------------------------------------------------------------------- deserialisation


@dataclass(frozen=True)
class Kind:
    """The type of a field: its name in messages, and whether ``null`` stands for its absence."""

    name: str
    nullable: bool = True
    required: bool = False


CHAT_FIELDS: Mapping[str, Kind] = {
    "messages": Kind("messages", nullable=False, required=True),
    "model": Kind("a string"),
    "frequency_penalty": Kind("f32"),
    "logit_bias": Kind("f32s"),
    "logprobs": Kind("a boolean"),
    "top_logprobs": Kind("u32"),
    "max_tokens": Kind("u32"),
    "max_completion_tokens": Kind("u32"),
    "n": Kind("u32"),
    "presence_penalty": Kind("f32"),
    "stop": Kind("strings"),
    "stream": Kind("a boolean", nullable=False),
    "seed": Kind("u64"),
    "temperature": Kind("f32"),
    "top_p": Kind("f32"),
    "tools": Kind("a sequence"),
    "tool_prompt": Kind("a string"),
    "response_format": Kind("grammar"),
    "stream_options": Kind("struct StreamOptions", nullable=False),
}
PARAMETER_FIELDS: Mapping[str, Kind] = {
    "best_of": Kind("usize"),
    "temperature": Kind("f32"),
    "repetition_penalty": Kind("f32"),
    "frequency_penalty": Kind("f32"),
    "top_k": Kind("i32"),
    "top_p": Kind("f32"),
    "typical_p": Kind("f32"),
    "do_sample": Kind("a boolean", nullable=False),
    "max_new_tokens": Kind("u32"),
    "return_full_text": Kind("a boolean"),
    "stop": Kind("strings", nullable=False),
    "truncate": Kind("usize"),
    "watermark": Kind("a boolean", nullable=False),
    "details": Kind("a boolean", nullable=False),
    "decoder_input_details": Kind("a boolean", nullable=False),
    "seed": Kind("u64"),
    "top_n_tokens": Kind("u32"),
    "grammar": Kind("grammar"),
    "adapter_id": Kind("a string"),
}
GENERATE_FIELDS: Mapping[str, Kind] = {
    "inputs": Kind("a string", nullable=False, required=True),
    "parameters": Kind("parameters", nullable=False),
    "stream": Kind("a boolean", nullable=False),
}
COMPLETION_FIELDS: Mapping[str, Kind] = {
    "prompt": Kind("prompt", nullable=False, required=True),
    **{
        name: CHAT_FIELDS[name]
        for name in ("model", "frequency_penalty", "max_tokens", "seed", "stop", "stream", "temperature", "top_p")
    },
    "repetition_penalty": Kind("f32"),
    "suffix": Kind("a string"),
    "stream_options": Kind("struct StreamOptions", nullable=False),
}
_BITS = {"u32": 32, "u64": 64, "usize": 64}


def deserialise(body: Any, fields: Mapping[str, Kind], size: int) -> Body:
    """``body`` when its fields have the right types.

    Raises:
        Problem: 422 as text/plain.
    """
    if not isinstance(body, dict):
        raise undeserialisable(f"invalid type: {_shown(body)}, expected a JSON object", size)
    try:
        _check_fields(body, fields, "")
    except _Mismatch as mismatch:
        raise undeserialisable(str(mismatch), size) from None
    return body


class _Mismatch(Exception):
    """The message of serde, path first."""


def _check_fields(body: Mapping[str, Any], fields: Mapping[str, Kind], path: str) -> None:
    if body.keys() >= {"max_tokens", "max_completion_tokens"}:
        raise _Mismatch(f"{path}duplicate field `max_tokens`")
    for name, kind in fields.items():
        if name not in body:
            if kind.required:
                raise _Mismatch(f"{path[:-1]}{': ' if path else ''}missing field `{name}`")
        elif body[name] is not None:
            _check(body[name], kind.name, path + name)
        elif not kind.nullable:
            raise _Mismatch(f"{path}{name}: invalid type: null, expected {_EXPECTED.get(kind.name, kind.name)}")


def _check(value: Any, kind: str, path: str) -> None:
    number = isinstance(value, int) and not isinstance(value, bool)
    if kind in _BITS or kind == "i32":
        low, high = (-(2**31), 2**31) if kind == "i32" else (0, 2 ** _BITS[kind])
        if number and not low <= value < high:
            raise _Mismatch(f"{path}: invalid value: integer `{value}`, expected {kind}")
        good = number
    elif kind in _STRUCTURES:
        _STRUCTURES[kind](value, path)
        good = True
    else:
        good = number if kind == "f32" and number else isinstance(value, _PYTHON[kind])
    if not good:
        raise _Mismatch(f"{path}: invalid type: {_shown(value)}, expected {kind}")


def _check_each(kind: str) -> Callable[[Any, str], None]:
    def check(value: Any, path: str) -> None:
        _check(value, "a sequence", path)
        for at, entry in enumerate(value):
            _check(entry, kind, f"{path}[{at}]")

    return check


def _check_messages(value: Any, path: str) -> None:
    _check(value, "a sequence", path)
    for at, message in enumerate(value):
        if not isinstance(message, dict):
            raise _Mismatch(f"{path}[{at}]: invalid type: {_shown(message)}, expected struct Message")
        if not isinstance(message.get("role"), str):
            raise _Mismatch(f"{path}[{at}]: missing field `role`")
        if not (_is_content(message.get("content")) or isinstance(message.get("tool_calls"), list)):
            raise _Mismatch(f"{path}[{at}]: data did not match any variant of untagged enum MessageBody")


def _is_content(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, dict) and _is_part(part) for part in value)
    return isinstance(value, str)


def _is_part(part: Mapping[str, Any]) -> bool:
    if part.get("type") == "text":
        return isinstance(part.get("text"), str)
    image = part.get("image_url")
    return part.get("type") == "image_url" and isinstance(image, dict) and isinstance(image.get("url"), str)


def _check_grammar(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise _Mismatch(f"{path}: invalid type: {_shown(value)}, expected internally tagged enum GrammarType")
    if "type" not in value:
        raise _Mismatch(f"{path}: missing field `type`")
    if value["type"] not in ("json", "json_object", "regex", "json_schema"):
        raise _Mismatch(
            f"{path}: unknown variant `{value['type']}`, expected one of `json`, `json_object`, `regex`, `json_schema`"
        )
    if "value" not in value:
        raise _Mismatch(f"{path}: missing field `value`")
    if value["type"] == "regex":
        _check(value["value"], "a string", path)
    if value["type"] == "json_schema":
        if not isinstance(value["value"], dict):
            raise _Mismatch(f"{path}: invalid type: {_shown(value['value'])}, expected struct JsonSchemaConfig")
        if "schema" not in value["value"]:
            raise _Mismatch(f"{path}: missing field `schema`")


def _check_parameters(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise _Mismatch(f"{path}: invalid type: {_shown(value)}, expected struct GenerateParameters")
    _check_fields(value, PARAMETER_FIELDS, f"{path}.")


def _check_prompt(value: Any, path: str) -> None:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise _Mismatch(f"{path}: data did not match any variant of untagged enum Prompt")


_PYTHON: Mapping[str, type | tuple[type, ...]] = {
    "a string": str,
    "a boolean": bool,
    "a sequence": list,
    "f32": float,
    "struct StreamOptions": dict,
}
_STRUCTURES: Mapping[str, Callable[[Any, str], None]] = {
    "strings": _check_each("a string"),
    "f32s": _check_each("f32"),
    "messages": _check_messages,
    "grammar": _check_grammar,
    "parameters": _check_parameters,
    "prompt": _check_prompt,
}
_EXPECTED = {"strings": "a sequence", "messages": "a sequence", "parameters": "struct GenerateParameters"}


def _shown(value: Any) -> str:
    """A JSON value as serde names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f"string {json.dumps(value, ensure_ascii=False)}"
    return "sequence" if isinstance(value, list) else "map"


# ---------------------------------------------------------------------------------------- templates and parameters


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


def chat_parameters(body: Mapping[str, Any]) -> Body:
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


def completion_parameters(body: Mapping[str, Any]) -> Body:
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
    if best_of is not None and not 0 < best_of <= limits.max_best_of:
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


# ---------------------------------------------------------------------------------------- replies


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A finished generation: its pieces, and what there is to say about it."""

    pieces: Sequence[str]
    prompt: str
    prompt_tokens: int
    tokens: int
    reason: str
    sampled: bool
    seed: int | None = None

    @property
    def text(self) -> str:
        """The text as it is sent, stop string included."""
        return "".join(self.pieces)

    @property
    def usage(self) -> Body:
        """The token counts in OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Any) -> str:
    """JSON without spaces and escapes, as serde writes it."""
    return _encode(value)


def _head(kind: str, model: str) -> Body:
    return {
        "object": kind,
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def chat_completion(done: Generated, model: str, *, logprobs: bool = False) -> Body:
    """The reply of ``/v1/chat/completions``: the id is empty, and a stop string is no OpenAI ``stop``."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": done.text},
        "logprobs": {"content": [_logprob(piece) for piece in done.pieces]} if logprobs else None,
        "finish_reason": FINISH[done.reason],
    }
    return {**_head("chat.completion", model), "choices": [choice], "usage": done.usage}


def chat_chunks(done: Generated, model: str, *, usage: bool, logprobs: bool = False) -> list[Body]:
    """The events of a streamed chat reply, one for each token."""
    chunks = []
    for piece, last in _steps(done):
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": piece},
            "logprobs": {"content": [_logprob(piece)]} if logprobs else None,
            "finish_reason": FINISH[done.reason] if last else None,
        }
        chunks.append({**_head("chat.completion.chunk", model), "choices": [choice], "usage": None})
    if usage:
        chunks.append({**_head("chat.completion.chunk", model), "choices": [], "usage": done.usage})
    return chunks


def text_completion(done: Sequence[tuple[int, Generated]], model: str) -> Body:
    """The reply of ``/v1/completions``: the choices in the order in which they were finished."""
    choices = [
        {"index": index, "text": one.text, "logprobs": None, "finish_reason": FINISH[one.reason]} for index, one in done
    ]
    prompt, new = sum(one.prompt_tokens for _, one in done), sum(one.tokens for _, one in done)
    usage = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    return {**_head("text_completion", model), "choices": choices, "usage": usage}


def completion_chunks(done: Generated, model: str) -> list[Body]:
    """The events of a streamed completion."""
    return [
        {
            **_head("text_completion", model),
            "choices": [
                {"index": 0, "text": piece, "logprobs": None, "finish_reason": FINISH[done.reason] if last else None}
            ],
        }
        for piece, last in _steps(done)
    ]


def generate_response(done: Generated, parameters: Mapping[str, Any], *, full_text: bool) -> Body:
    """The reply of ``/generate``; details only where they were asked for."""
    reply: Body = {"generated_text": (done.prompt if full_text else "") + done.text}
    if parameters.get("details") or parameters.get("decoder_input_details"):
        reply["details"] = {
            "finish_reason": done.reason,
            "generated_tokens": done.tokens,
            "seed": _seed(done),
            "prefill": [],
            "tokens": [_token(piece) for piece in done.pieces],
        }
    return reply


def generate_chunks(done: Generated, parameters: Mapping[str, Any], *, full_text: bool) -> list[Body]:
    """The events of ``/generate_stream``; the last one has the whole text."""
    chunks: list[Body] = []
    for piece, last in _steps(done):
        chunk: Body = {"index": len(chunks) + 1, "token": _token(piece), "generated_text": None, "details": None}
        if last:
            chunk["generated_text"] = (done.prompt if full_text else "") + done.text
            if parameters.get("details"):
                chunk["details"] = {
                    "finish_reason": done.reason,
                    "generated_tokens": done.tokens,
                    "seed": _seed(done),
                    "input_length": done.prompt_tokens,
                }
        chunks.append(chunk)
    return chunks


def _steps(done: Generated) -> list[tuple[str, bool]]:
    """The text of each token, an empty one for the end of the text, and whether it is the last."""
    steps = [*done.pieces, *[""] * (done.tokens - len(done.pieces))]
    return [(piece, at == len(steps)) for at, piece in enumerate(steps, 1)]


def _token(piece: str) -> Body:
    return {"id": token_id(piece), "text": piece or "<|im_end|>", "logprob": -0.125, "special": not piece}


def _logprob(piece: str) -> Body:
    return {"token": piece, "logprob": -0.125, "top_logprobs": [{"token": piece, "logprob": -0.125}]}


def _seed(done: Generated) -> int | None:
    if not done.sampled:
        return None
    return done.seed if done.seed is not None else token_id(done.prompt)


def timing_headers(done: Generated, *, total: float, validation: float, queue: float, inference: float) -> Body:
    """The ``x-*`` headers of a reply that is no stream, from times in seconds."""

    def milliseconds(seconds: float) -> str:
        return str(int(seconds * 1000))

    return {
        "x-compute-type": "cpu+emulated",
        "x-compute-time": str(total),
        "x-compute-characters": str(len(done.prompt)),
        "x-total-time": milliseconds(total),
        "x-validation-time": milliseconds(validation),
        "x-queue-time": milliseconds(queue),
        "x-inference-time": milliseconds(inference),
        "x-time-per-token": milliseconds(inference / max(1, done.tokens)),
        "x-prompt-tokens": str(done.prompt_tokens),
        "x-generated-tokens": str(done.tokens),
    }
