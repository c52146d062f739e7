"""The types of the fields of a request, and how serde refuses a body that does not have them.

Server contract: text-generation-inference 3.3. Unknown fields are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arhn_datasets.testing.problems import Problem, undeserialisable


@dataclass(frozen=True)
class Kind:
    """The type of a field: its name in messages, and whether ``null`` stands for its absence."""

    name: str
    nullable: bool = True
    required: bool = False


def _each(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


_SWITCH = Kind("a boolean", nullable=False)  # null is refused
_TEXT, _FLOAT, _U32, _SIZE = Kind("a string"), Kind("f32"), Kind("u32"), Kind("usize")
_STREAM_OPTIONS = Kind("struct StreamOptions", nullable=False)

CHAT_FIELDS: Mapping[str, Kind] = {
    "messages": Kind("messages", nullable=False, required=True),
    **_each(_TEXT, "model", "tool_prompt"),
    **_each(_FLOAT, "frequency_penalty", "presence_penalty", "temperature", "top_p"),
    **_each(_U32, "top_logprobs", "max_tokens", "max_completion_tokens", "n"),
    "logit_bias": Kind("f32s"),
    "logprobs": Kind("a boolean"),
    "stop": Kind("strings"),
    "stream": _SWITCH,
    "seed": Kind("u64"),
    "tools": Kind("a sequence"),
    "response_format": Kind("grammar"),
    "stream_options": _STREAM_OPTIONS,
}
PARAMETER_FIELDS: Mapping[str, Kind] = {
    **_each(_SIZE, "best_of", "truncate"),
    **_each(_FLOAT, "temperature", "repetition_penalty", "frequency_penalty", "top_p", "typical_p"),
    **_each(_U32, "max_new_tokens", "top_n_tokens"),
    **_each(_SWITCH, "do_sample", "watermark", "details", "decoder_input_details"),
    "top_k": Kind("i32"),
    "return_full_text": Kind("a boolean"),
    "stop": Kind("strings", nullable=False),
    "seed": Kind("u64"),
    "grammar": Kind("grammar"),
    "adapter_id": _TEXT,
}
GENERATE_FIELDS: Mapping[str, Kind] = {
    "inputs": Kind("a string", nullable=False, required=True),
    "parameters": Kind("parameters", nullable=False),
    "stream": _SWITCH,
}
_AS_IN_A_CHAT = ("model", "frequency_penalty", "max_tokens", "seed", "stop", "stream", "temperature", "top_p")
COMPLETION_FIELDS: Mapping[str, Kind] = {
    "prompt": Kind("prompt", nullable=False, required=True),
    **{name: CHAT_FIELDS[name] for name in _AS_IN_A_CHAT},
    "repetition_penalty": _FLOAT,
    "suffix": _TEXT,
    "stream_options": _STREAM_OPTIONS,
}
# text-embeddings-inference's
RERANK_FIELDS: Mapping[str, Kind] = {
    "query": Kind("a string", nullable=False, required=True),
    "texts": Kind("strings", nullable=False, required=True),
    **_each(_SWITCH, "raw_scores", "return_text"),
    "truncate": Kind("a boolean"),
}
EMBED_FIELDS: Mapping[str, Kind] = {
    "inputs": Kind("input", nullable=False, required=True),
    "normalize": _SWITCH,
    "truncate": Kind("a boolean"),
    "prompt_name": _TEXT,
}
VERTEX_FIELDS: Mapping[str, Kind] = {"instances": Kind("instances", nullable=False, required=True)}
_BITS = {"u32": 32, "u64": 64, "usize": 64}


class Doubled(dict[str, Any]):
    """An object of JSON with the names that it holds twice, which serde refuses where they are fields."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = Counter(name for name, _ in pairs) if len(self) < len(pairs) else {}
        self.doubled = {name for name, count in names.items() if count > 1}


_HALF_PAIR = re.compile("[\ud800-\udfff]")


def parsed(data: bytes) -> Any:
    """A body as the router reads JSON: what follows the first value is left alone.

    Raises:
        Problem: 400 as text/plain, it is none; Python's reader takes NaN, numbers out of range and half of a pair.
    """
    try:
        text = data.decode()
        value, _ = _DECODER.raw_decode(text, len(text) - len(text.lstrip()))
        if "\\u" in text and _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("unexpected end of hex escape")
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"Failed to parse the request body as JSON: {error}") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError("expected value")


def _in_range(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=Doubled, parse_constant=_no_constant, parse_float=_in_range)


def deserialise(body: Any, fields: Mapping[str, Kind], size: int) -> dict[str, Any]:
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
    for name in fields:
        if name in getattr(body, "doubled", ()):
            raise _Mismatch(f"{path}duplicate field `{name}`")
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
    good = True
    if kind in _STRUCTURES:
        _STRUCTURES[kind](value, path)
    elif kind in _BITS or kind == "i32":
        low, high = (-(2**31), 2**31) if kind == "i32" else (0, 2 ** _BITS[kind])
        if number and not low <= value < high:
            raise _Mismatch(f"{path}: invalid value: integer `{value}`, expected {kind}")
        good = number
    else:
        good = isinstance(value, _PYTHON[kind]) or (kind == "f32" and number)
    if not good:
        raise _Mismatch(f"{path}: invalid type: {_shown(value)}, expected {kind}")


def _check_each(kind: str) -> Callable[[Any, str], None]:
    def check(value: Any, path: str) -> None:
        _check(value, "a sequence", path)
        for at, entry in enumerate(value):
            _check(entry, kind, f"{path}[{at}]")

    return check


def _check_message(message: Any, path: str) -> None:
    _check(message, "struct Message", path)
    if not isinstance(message.get("role"), str):
        raise _Mismatch(f"{path}: missing field `role`")
    if not isinstance(message.get("name", ""), str | None):
        raise _Mismatch(f"{path}.name: invalid type: {_shown(message['name'])}, expected a string")
    if not (_is_content(message.get("content")) or isinstance(message.get("tool_calls"), list)):
        raise _Mismatch(f"{path}: data did not match any variant of untagged enum MessageBody")


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
    _check(value, "internally tagged enum GrammarType", path)
    if "type" not in value:
        raise _Mismatch(f"{path}: missing field `type`")
    if not isinstance(value["type"], str):  # its name is read before the rest, as text
        raise Problem(400, f"Failed to parse the request body as JSON: {path}.type: expected value")
    if value["type"] not in ("json", "json_object", "regex", "json_schema"):
        raise _Mismatch(
            f"{path}: unknown variant `{value['type']}`, expected one of `json`, `json_object`, `regex`, `json_schema`"
        )
    if "value" not in value:
        raise _Mismatch(f"{path}: missing field `value`")
    if value["type"] == "regex":
        _check(value["value"], "a string", path)
    if value["type"] == "json_schema":
        _check(value["value"], "struct JsonSchemaConfig", path)
        if "schema" not in value["value"]:
            raise _Mismatch(f"{path}: missing field `schema`")


def _check_parameters(value: Any, path: str) -> None:
    if isinstance(value, list):  # a structure may be written as the list of its fields
        value = dict(zip(PARAMETER_FIELDS, value, strict=False))
    _check(value, "struct GenerateParameters", path)
    _check_fields(value, PARAMETER_FIELDS, f"{path}.")


def _check_prompt(value: Any, path: str) -> None:
    if value == []:
        raise _Mismatch(f"{path}: Empty array detected. Do not use an empty array for the prompt.")
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise _Mismatch(f"{path}: data did not match any variant of untagged enum Prompt")


def _check_input(value: Any, path: str) -> None:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise _Mismatch(f"{path}: data did not match any variant of untagged enum Input")


def _check_instance(value: Any, path: str) -> None:
    if not isinstance(value, Mapping) or not ("inputs" in value or "messages" in value):
        raise _Mismatch(f"{path}: data did not match any variant of untagged enum VertexInstance")
    _check_fields(value, GENERATE_FIELDS if "inputs" in value else CHAT_FIELDS, f"{path}.")


_OBJECTS = ("Message", "StreamOptions", "JsonSchemaConfig", "GenerateParameters")
_PYTHON: Mapping[str, type] = {
    "a string": str,
    "a boolean": bool,
    "a sequence": list,
    "f32": float,
    "internally tagged enum GrammarType": dict,
    **{f"struct {name}": dict for name in _OBJECTS},
}
_STRUCTURES: Mapping[str, Callable[[Any, str], None]] = {
    "strings": _check_each("a string"),
    "f32s": _check_each("f32"),
    "message": _check_message,
    "messages": _check_each("message"),
    "instance": _check_instance,
    "instances": _check_each("instance"),
    "grammar": _check_grammar,
    "parameters": _check_parameters,
    "prompt": _check_prompt,
    "input": _check_input,
}
_EXPECTED = {
    "strings": "a sequence",
    "messages": "a sequence",
    "instances": "a sequence",
    "parameters": "struct GenerateParameters",
}


def _shown(value: Any) -> str:
    """A JSON value as serde names it."""
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f"string {json.dumps(value, ensure_ascii=False)}"
    return "null" if value is None else "sequence" if isinstance(value, list) else "map"
