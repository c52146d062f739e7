"""What a server says where it gives no completion: the status, the codes and the words of an error, as ours.

Servers word the same refusal in many ways, and gateways send the error of another server inside a 200. The tables here
are what tells them apart; no I/O.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from arhn_datasets.errors import (
    EndpointError,
    EndpointFailure,
    EndpointOverloaded,
    EndpointUnavailable,
    PromptTooLong,
    RequestRejected,
)
from arhn_datasets.rows.retries import RETRY_AFTER_MAX_SECONDS, seconds_of

MESSAGE_CHARACTERS = 300
PAGE_CHARACTERS = 8000  # of an HTML page that are searched for its text
AWAY_STATUSES = (502, 503, 504, 521, 522, 523, 524)  # a proxy in front of a server that is not there
BUSY_STATUSES = (429, 529)
PASSING_STATUSES = (*BUSY_STATUSES, *AWAY_STATUSES)
OPTIONAL: Mapping[str, str | None] = {
    "chat_template_kwargs": None,
    "max_tokens": "max_completion_tokens",
    "temperature": None,
}
"""What is sent and some servers refuse, with what takes its place; None for nothing."""

_PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|title|center|h1|\?xml)\b", re.IGNORECASE)
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)
_MESSAGES = ("error", "detail", "errors", "message", "msg")
_NAMES = ("code", "type", "error_type", "status", "param")


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Codes and types: OpenAI and its kin, llama.cpp, Anthropic, LiteLLM.
_TOO_LONG_NAMES = _any(
    r"context_?(?:length|size|window)_?exceed",
    r"exceed_context_size",
    r"above_max_length",
    r"(?:request|prompt|input|inputtext)_?too_?(?:large|long)",
)
_TOO_LONG = _any(
    # OpenAI, vLLM, DeepSeek, OpenRouter, Mistral, Fireworks; LM Studio; Ollama; llama-cpp-python; Anthropic
    r"context (?:length|size|window|limit)|ContextWindowExceeded",
    # vLLM, SGLang, xAI, TensorRT-LLM, Ark: of what there is a maximum
    r"(?:max(?:imum)?|longest|allowed) (?:allowed )?(?:sequence|input|model|prompt|total)?[ _]?(?:length|len\b)",
    r"max_(?:seq|model|input|prompt|total|num)_?(?:len|length|tokens)\b",
    # Gemini, its older and its Vertex form; OpenAI of late; Databricks; Cohere
    r"(?:token count|input tokens?|number of tokens)\b.{0,40}\bexceeds?\b",
    r"exceeds? (?:the |its )?(?:max(?:imum)? )?(?:number of|input|configured limit of|model).{0,12}tokens?\b",
    r"token count is \d+ but\b",
    r"too many (?:input |prompt )?tokens|payload size exceeds",
    # Perplexity, AI21; Snowflake; Baidu; Zhipu's own words
    r"\d tokens,? which exceeds?\b|max tokens of \d+ exceeded|max input characters|超长|过长|過長",
    # DashScope; Moonshot; Zhipu; Cerebras
    r"range of input length|exceeded model token limit|current length is \d+ while limit",
    # TGI; our own count
    r"must have less than|`inputs` tokens|length limit exceeded|room for \d+",
    # Anthropic, Bedrock and whoever says it plainly; "took too long" is another thing
    r"(?:prompt|inputs?|messages?|request|text|content)\b[^.]{0,60}(?<!took)(?<!taking)(?<!takes) too (?:long|large)",
    r"(?:prompt|input) (?:length )?(?:\(?\d+[^)]{0,12}\)? )?exceeds?\b",
)
_NOT_TOO_LONG = _any(
    r"rate.?limit|per.(?:minute|min|second|hour|day)\b|\b[TR]P[MDS]\b|quota|timed? ?out|took too long",
    # of a parameter, unless the prompt is named as well
    r"^(?!.*(?:context|prompt|inputs|seq_len)).*max_(?:[a-z]+_)?tokens\W.{0,40}(?:too large|at most|between|must be)",
    r"^(?!.*(?:context|prompt)).*at most \d+ completion tokens",
)
_FILTERED_NAMES = _any(
    r"content_?(?:filter|policy)", r"responsible_?ai", r"data_?inspection", r"moderation", r"\bsafety"
)
_FILTERED = _any(
    r"content.(?:filter|management polic|polic)", r"flagged", r"inappropriate content", r"prompt was blocked"
)
_NO_CREDIT = _any(
    r"budget[_ ](?:has been )?exceeded|insufficient[_ ](?:quota|balance|credits?|funds)",
    r"exceeded_current_quota|billing_(?:hard_limit|not_active)|credit balance|out of credits|payment required",
)
_NO_KEY = _any(r"authentication|unauthori[sz]ed|(?:invalid|incorrect|missing|no).{0,25}(?:api.?key|proxy server token)")
_NO_MODEL = _any(
    r"model\b.{0,120}(?:does not exist|not found|not a valid|identifier is invalid)|model_not_found",
    r"(?:no such|unknown|invalid) model",
)
_UNSUPPORTED = _any(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra[ _](?:inputs|fields|forbidden)|deprecated",
    r"not (?:permitted|allowed)|additional propert|only the default|does not accept| instead\b",
    r"(?:greater|larger|more) than 0\b|strictly positive",  # of a temperature
)
_NAMELESS = _any(
    r"extra (?:inputs|fields)|(?:unrecogni[sz]ed|unknown|unexpected|additional) (?:request )?(?:arg|field|prop)"
)
# Where an error in a 200 has no number.
_STATUS_OF = (
    (429, _any(r"rate.?limit|too many requests|throttl|resource.?exhausted")),
    (503, _any(r"overloaded|unavailable|no (?:instances|provider)|capacity")),
    (401, _NO_KEY),
    (404, _any(r"model_not_found|not_found")),
    (400, _any(r"invalid_request|bad_?request|invalid_argument")),
)
_SPAN = r"(\d+(?:\.\d+)?)(?:\s*(ms|milliseconds?|s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?)(?![a-z])|(?![\d.]*\s*[a-z]))"
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PAUSE = re.compile(
    rf"(?:try(?:ing)? again|retry|wait)(?:,? (?:again|in|after|for|at least|another|about))* ((?:{_SPAN}\s*)+)",
    re.IGNORECASE,
)
WRONG_KEY = (
    "The API key is missing or wrong: set ARHN_API_KEY, or pass api_key= or --api-key (for a server of scores "
    "ARHN_SCORE_API_KEY or --score-api-key); no other token is ever sent."
)
_NO_ROUTE = (
    "Perhaps there is no chat API: a text-generation-inference or OpenAI-compatible server was expected; check the URL "
    "and its path, and the name of the model (--model)."
)
_ADVICE: Mapping[int, str] = {
    401: WRONG_KEY,
    402: "Add credits or raise the limit of this account, or name another server (--endpoint).",
    403: f"{WRONG_KEY} Or it has no right to this model, or a firewall stands before the server.",
    404: _NO_ROUTE,
    405: _NO_ROUTE,
}
_LASTING = (401, 402, 404)  # 403 and 405 are also what a firewall says of one prompt


@dataclass(frozen=True)
class _Said:
    """The message of a body, its codes and types in lower case, and the status that it names."""

    message: str
    names: str = ""
    status: int | None = None


def error_of(status: int, body: bytes, retry_after: str | None = None, location: str | None = None) -> EndpointError:
    """The error of a reply that is not a 200 (JSON, plain text, a page or empty), in the server's own words.

    Args:
        status: Its status.
        body: Its body, without secrets.
        retry_after: Its header of this name.
        location: Where it redirects to, as a whole URL.
    """
    said = _said(body)
    told = f"{status}: {said.message}"
    if is_too_long(status, said):
        return PromptTooLong(told)
    if status < 500 and _FILTERED_NAMES.search(said.names) or status in (400, 403, 422, 451) and _FILTERED.search(told):
        return RequestRejected(f"{status}, content filter: {said.message}")
    if status == 402 or status < 500 and _NO_CREDIT.search(f"{said.names} {said.message}"):
        return RequestRejected(f"{status}, no credits or quota: {said.message}", advice=_ADVICE[402], lasting=True)
    if status in (400, 500) and _NO_KEY.search(f"{said.names} {said.message}"):  # LiteLLM
        return RequestRejected(told, advice=WRONG_KEY, lasting=True)
    if status in BUSY_STATUSES:
        return EndpointOverloaded(told, retry_after=seconds_of(retry_after) or _pause_in(said.message))
    if status in AWAY_STATUSES:
        return EndpointUnavailable(told)
    if status in (408, 424) or status >= 500:
        return EndpointFailure(told)
    if status // 100 == 3 and location:
        return RequestRejected(f"{status}: redirects to {location}", advice=f"Name that server: {_root(location)}")
    if status in (400, 404, 422) and _NO_MODEL.search(f"{said.names} {said.message}"):
        return RequestRejected(told, advice="Check --model, the name that this server knows it by.", lasting=True)
    return RequestRejected(told, advice=_ADVICE.get(status), lasting=status in _LASTING)


def error_within(body: bytes) -> EndpointError | None:
    """The error in the body of a 200, with the status that it names, None where there is none.

    Gateways (OpenRouter, LiteLLM) answer 200 before they know what the server behind them says.
    """
    reply = json_of(body)
    if not isinstance(reply, dict):
        return None
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = reply.get("error") or choice.get("error") or (reply if reply.get("object") == "error" else None)
    if not error and choice.get("finish_reason") == "error":
        error = "the reply ended with an error"
    if not error:
        nothing = "choices" in reply and choices is None
        return EndpointFailure(f"200 without choices: {excerpt(body)}") if nothing else None
    inner = json.dumps({"error": error}).encode()
    said = _said(inner)
    words = f"{said.names} {said.message}"
    status = said.status or next((status for status, named in _STATUS_OF if named.search(words)), 500)
    return error_of(status, inner)


def is_too_long(status: int, said: _Said) -> bool:
    """Whether the prompt has more tokens than the server takes, by its codes, types and wording."""
    if _TOO_LONG_NAMES.search(said.names):
        return True
    if status == 413:
        return True
    if not (400 <= status < 600) or status in (401, 402, 403, 404, 405, *BUSY_STATUSES):
        return False
    return bool(_TOO_LONG.search(said.message)) and not _NOT_TOO_LONG.search(said.message)


def refused_option(status: int, body: bytes, sent: Mapping[str, Any]) -> str | None:
    """Which of :data:`OPTIONAL` that was sent a server refuses, None for none."""
    if status not in (400, 422):
        return None
    said = _said(body)
    words = f"{said.names} {said.message}"
    there = [name for name in OPTIONAL if name in sent]
    if "chat_template_kwargs" in there and re.search("chat_template|enable_thinking", words):
        return "chat_template_kwargs"
    if not _UNSUPPORTED.search(words):
        return None
    named = next((name for name in there if re.search(rf"\b{name}\b", words)), None)
    nameless = "chat_template_kwargs" in there and _NAMELESS.search(words)
    return named or ("chat_template_kwargs" if nameless and not any(name in words for name in sent) else None)


def json_of(body: bytes) -> Any:
    """The value of a body, None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def excerpt(text: str | bytes) -> str:
    """The beginning of a message, on one line; of a page its text."""
    line = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if _PAGE.match(line):
        line = html.unescape(_TAGS.sub(" ", line[:PAGE_CHARACTERS])) or line
    return encodable(" ".join(line[: 4 * MESSAGE_CHARACTERS].split())[:MESSAGE_CHARACTERS])


def encodable(text: str) -> str:
    """``text`` with "?" for halves of surrogate pairs, which JSON can hold and Arrow cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def without(secret: str | None, body: bytes) -> bytes:
    """``body`` in which ``secret`` cannot be read."""
    return body.replace(secret.encode("utf-8", "surrogateescape"), b"***") if secret else body


def place_of(url: str, location: str | None) -> str | None:
    """Where a redirect from ``url`` goes, without user name and password; None where it says no place."""
    if not location:
        return None
    try:
        parts = urlsplit(urljoin(url, location))
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return None


def _pause_in(message: str) -> float | None:
    """The seconds that a message asks to wait: "try again in 6m0s" (OpenAI), "in 60 seconds" (LiteLLM), "in 20ms"."""
    found = _PAUSE.search(message)
    if not found:
        return None
    spans = re.findall(_SPAN, found[1].lower())
    seconds = sum(
        float(number) * (0.001 if unit.startswith(("ms", "mil")) else _SECONDS[unit[:1]]) for number, unit in spans
    )
    return min(seconds, RETRY_AFTER_MAX_SECONDS) or None


def _root(location: str) -> str:
    """The URL to give instead of one that redirects: without the route that was asked."""
    return re.sub(r"/(?:v1/(?:chat/completions|models)|info|generate|health)/?$", "", location)


def _said(body: bytes) -> _Said:
    found = json_of(body)
    layers: list[Mapping[str, Any]] = []
    while isinstance(found, (dict, list)) and found and len(layers) < 5:
        if isinstance(found, list):  # Gemini's, and pydantic's with where each is wrong
            more = [_wrong(one) for one in found[1:5]]
            found = (
                "; ".join([_wrong(found[0]), *more]) if isinstance(found[0], dict) and "msg" in found[0] else found[0]
            )
            continue
        layers.append(found)
        found = next((found[name] for name in _MESSAGES if found.get(name)), None)
    message = found if isinstance(found, str) else ""
    metadata = layers[-1].get("metadata") if layers else None
    if isinstance(metadata, dict) and isinstance(raw := metadata.get("raw"), str):  # OpenRouter: what the provider said
        message = f"{message}: {_said(raw.encode('utf-8', 'replace')).message}"
    values = [value for layer in layers for name in _NAMES if isinstance(value := layer.get(name), (str, int))]
    numbers = [int(value) for value in values if re.fullmatch("[3-5][0-9][0-9]", str(value))]
    names = " ".join(str(value).lower() for value in values if not str(value).isdigit())
    return _Said(excerpt(message or body) or "no message", names, next(iter(numbers), None))


def _wrong(one: Any) -> str:
    if not isinstance(one, dict):
        return str(one)
    where = one.get("loc")
    at = ".".join(map(str, where)) if isinstance(where, list) else ""
    return f"{at}: {one.get('msg')}" if at else str(one.get("msg"))
