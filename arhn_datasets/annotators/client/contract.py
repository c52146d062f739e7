"""The options of a connection, what is said to LLM servers and what they say: shapes, traps and errors, no I/O.

A field more in ``ConnectionOptions`` is an option of ``arhn.Endpoint``, of every stage and, where it has a metavar or
choices, of the commands.

Server contract: TGI 3.3 Messages API, ``POST /v1/chat/completions``; ``GET /info`` names model, revision and limits.
The traps that shape the request body: ``temperature`` 0 is greedy and its absence samples at 1.0; ``top_p`` 1.0 is
refused; ``presence_penalty`` 0 becomes a repetition penalty of 2.0; TGI reads any ``model`` but ``"tgi"`` as a LoRA
adapter, never parses thinking, and takes its own shape of constrained output.
"""

from __future__ import annotations

import inspect
import ipaddress
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from arhn_datasets.annotators.client.completions import completed, loaded
from arhn_datasets.annotators.client.refusals import OPTIONAL, encodable, error_within, excerpt, json_of, without
from arhn_datasets.errors import ConfigurationError, EmptyReply
from arhn_datasets.rows.options import Option, check_choice, check_integer, check_seconds

T = TypeVar("T")

TGI, OPENAI = "tgi", "openai"
APIS = (TGI, OPENAI)
HEADROOM = 0.02  # share of TGI's max_concurrent_requests that is left alone: above the limit it answers 429
TEMPLATE_TOKENS = 64  # what a chat template may add to the messages
MODELS_TOLD = 100  # in a message, of those that a server lists

# Models that think unless told otherwise. TGI passes no template options on, so the thinking is closed before it opens.
_THINKING = re.compile(
    r"qwen3(?!.*(?:instruct|coder|2507|embedding|reranker))|qwq|deepseek-r1|-thinking|magistral", re.IGNORECASE
)
# What engines call the requests that run and those that wait.
QUEUES = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    ("tgi_batch_current_size", "tgi_queue_size"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
)
_GAUGE = re.compile(
    rf"^({'|'.join(name for pair in QUEUES for name in pair)})"
    r"(\{[^}\n]*\})?[ \t]+([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]+)?)\b",
    re.MULTILINE,
)
_KNOWN_ROUTES = (
    *("/v1/chat/completions", "/v1/models", "/v1/rerank", "/v2/rerank", "/v1/embeddings", "/v1"),
    *("/generate", "/info", "/rerank", "/embed", "/embeddings"),
)


def _check_key(name: str, value: str | None) -> None:
    key = (value or "").strip()
    if not (key.isprintable() and key.isascii()):
        raise ConfigurationError(
            "The API key holds a character that no HTTP header can carry. Expected one line of plain characters; "
            f"look at ARHN_API_KEY, {name}= or --api-key."
        )


def _option(default: object, check: Callable[[str, Any], None], help: str, *, repr: bool = True, **words: Any) -> Any:
    return field(default=default, repr=repr, metadata={"check": check, "option": Option(help=help, **words)})


_count = partial(check_integer, least=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConnectionOptions:
    """How to reach servers; none of it changes a reply, so none of it enters an identity.

    Raises:
        ConfigurationError: a value is out of range.
    """

    api_key: str | None = _option(
        None,
        _check_key,
        "sent to the endpoint alone, as a bearer token; by default ARHN_API_KEY",
        metavar="KEY",
        repr=False,
    )
    api: str | None = _option(
        None,
        partial(check_choice, choices=APIS, optional=True),
        "what the endpoint speaks; by default it is asked",
        choices=APIS,
    )
    # 0 would be no limit at all, and a request that hangs would hang the run.
    timeout: float = _option(
        300.0, check_seconds, "seconds for each attempt; more where a server is seen to need more", metavar="SECONDS"
    )
    deadline: float = _option(
        3600.0, check_seconds, "seconds for all attempts of a request, waiting for a busy or absent server included"
    )
    give_up_after: float = _option(
        600.0, check_seconds, "seconds without any endpoint that answers before the run ends", metavar="SECONDS"
    )
    concurrency: int | None = _option(
        None,
        partial(check_integer, least=1, optional=True),
        "requests in flight for each server; by default just below the limit that the server states, else as many as "
        "it is found to be quicker with",
        metavar="N",
    )
    tokenizer: str | None = _option(
        None,
        lambda name, value: None,
        "id or folder of the served model's tokenizer, whose chat template is used where the server (TGI) has none",
        metavar="ID_OR_FOLDER",
    )
    processes: int = _option(
        1,
        _count,
        "how many processes share the servers, on one machine or on many: each takes that part of the requests in "
        "flight, rounded down, and at least one",
    )
    attempts: int = _option(
        6, _count, "tries for each request, the first included; a busy or absent server uses up none"
    )
    backoff: float = _option(
        0.5, partial(check_seconds, above_zero=False), "seconds before the second try, doubled and jittered after"
    )

    def __post_init__(self) -> None:
        self.check_connection()

    def check_connection(self) -> None:
        """Raise a ConfigurationError that names the option, what it is and what was expected."""
        for one in fields(ConnectionOptions):
            one.metadata["check"](one.name, getattr(self, one.name))

    def connection(self) -> dict[str, Any]:
        """The options by name: keywords for whatever takes them."""
        return {one.name: getattr(self, one.name) for one in fields(ConnectionOptions)}


CONNECTION: Mapping[str, Option] = {one.name: one.metadata["option"] for one in fields(ConnectionOptions)}
"""The options by name, in words."""
DEFAULTS: Mapping[str, Any] = {one.name: one.default for one in fields(ConnectionOptions)}


def documented(cls: type[T]) -> type[T]:
    """The class with the options of the connection in its docstring."""
    lines = []
    for name, option in CONNECTION.items():
        default = "" if DEFAULTS[name] is None else f"; {DEFAULTS[name]:g} by default"
        said = f"{name}: {option.help[0].upper()}{option.help[1:]}{default}."
        lines.append(textwrap.fill(said, 100, initial_indent=" " * 4, subsequent_indent=" " * 8))
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Options of the connection:", *lines])
    return cls


documented(ConnectionOptions)


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says of itself.

    ``max_concurrent_requests`` is None where the server names no limit; ``slots`` are those that work at once, behind
    which it queues; ``revision`` is the model's commit sha.
    """

    api: str
    model: str
    revision: str | None = None
    version: str | None = None
    max_concurrent_requests: int | None = None
    slots: int | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A reply: its text, why it ended in the server's words (``"stop"``, ``"length"``) and its tokens, where stated.

    ``sampled`` tells that the server took no ``temperature``, so that the reply is not the greedy one.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    sampled: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A greedy chat request.

    ``schema`` is a JSON schema for constrained output, None for none; ``affinity`` names what the prompt shares with
    others (the query), so that they can go to the replica that has its prefix; ``copied`` is what the reply may copy,
    where that bounds it, and is not sent.
    """

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    affinity: str = ""
    copied: Any = field(default=None, repr=False, compare=False)

    def size(self) -> int:
        """Bytes of the prompt: no tokenizer makes more tokens of it."""
        texts = [message["content"] for message in self.messages]
        return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)

    def characters(self) -> int:
        """Characters of the prompt."""
        return sum(len(message["content"]) for message in self.messages)


def base_url(url: str) -> str:
    """The root of a server from any URL of it that users paste; a ConfigurationError where it is no http(s) URL."""
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a broken IPv6 address or port
        known = False
    if not known:
        raise ConfigurationError(
            f"{url.rpartition('@')[2]!r} is not the URL of an endpoint; expected something like http://localhost:8080."
        )
    path = parts.path.rstrip("/")
    known_route = next((route for route in _KNOWN_ROUTES if path.endswith(route)), "")
    return urlunsplit((parts.scheme, parts.netloc, path.removesuffix(known_route), "", ""))


def shown_url(url: str) -> str:
    """``url`` without user name and password, for messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def chat_body(info: ServerInfo, request: ChatRequest, *, refused: Collection[str] = ()) -> dict[str, Any]:
    """The body of a greedy chat request in the shape that ``info.api`` takes, without the options that were refused.

    On TGI thinking is switched off by a closed, empty thought as the beginning of the reply; a constrained reply
    cannot think anyway. Elsewhere the chat template is asked.
    """
    messages = [dict(message) for message in request.messages]
    body: dict[str, Any] = {
        "model": "tgi" if info.api == TGI else info.model,
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": False,
    }
    if info.api == TGI:
        if request.schema:
            body["response_format"] = {"type": "json", "value": request.schema}
        elif thinks(info.model):
            messages.append({"role": "assistant", "content": "<think>\n\n</think>"})
        return body
    if request.schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": request.schema, "strict": True},
        }
    body["chat_template_kwargs"] = {"enable_thinking": False}
    for name in refused:
        value, instead = body.pop(name), OPTIONAL[name]
        if instead is not None:
            body[instead] = value
    return body


def generate_body(prompt: str, request: ChatRequest) -> dict[str, Any]:
    """The body of the same request to TGI's ``/generate``; without sampling parameters it is greedy there."""
    parameters: dict[str, Any] = {"max_new_tokens": request.max_tokens, "details": True, "return_full_text": False}
    if request.schema:
        parameters["grammar"] = {"type": "json", "value": request.schema}
    return {"inputs": prompt, "parameters": parameters}


@lru_cache(maxsize=64)
def thinks(model: str) -> bool:
    """Whether a model of this name writes its thoughts before it answers."""
    return bool(_THINKING.search(model))


def room(info: ServerInfo, max_tokens: int) -> int | None:
    """Most tokens of a prompt with a reply of ``max_tokens``, None where the server names no limit."""
    limits = [info.max_input_tokens - 1] if info.max_input_tokens else []
    limits += [info.max_total_tokens - max_tokens] if info.max_total_tokens else []
    return max(1, min(limits) - TEMPLATE_TOKENS) if limits else None


def parse_info(body: bytes) -> ServerInfo | None:
    """What TGI's ``/info`` says, None where it is none."""
    found = _object_of(body)
    if "model_id" not in found:
        return None

    def number(name: str) -> int | None:
        value = found.get(name)
        return value if type(value) is int and value > 0 else None

    return ServerInfo(
        api=TGI,
        model=str(found["model_id"]),
        revision=found.get("model_sha"),
        version=found.get("version"),
        max_concurrent_requests=number("max_concurrent_requests"),
        max_input_tokens=number("max_input_tokens"),
        max_total_tokens=number("max_total_tokens"),
    )


def parse_models(body: bytes) -> list[str] | None:
    """The model names in the body of ``/v1/models``, None where it is none."""
    listed = _object_of(body).get("data")
    if not isinstance(listed, list):
        return None
    return [str(entry["id"]) for entry in listed if isinstance(entry, dict) and entry.get("id")]


def parse_tokens(body: bytes) -> int | None:
    """How many tokens the body of ``/tokenize`` lists, None where it is no list."""
    listed = json_of(body)
    return len(listed) if isinstance(listed, list) else None


def slice_of(slots: int, processes: int) -> int:
    """The slots of one of ``processes`` that share a server; together they have no more than there are.

    With more processes than slots there is none left to share, and each has one.
    """
    return max(1, slots // processes)


def slots_of(info: ServerInfo) -> int | None:
    """Requests to keep in flight, None where the server does not say.

    Just below its limit, because above it answers 429 without waiting; a few more than it has slots, so that the next
    one is there when a slot is free.
    """
    limit = info.max_concurrent_requests
    if limit:
        return max(1, limit - math.ceil(limit * HEADROOM))
    return info.slots + max(2, info.slots // 4) if info.slots else None


def parse_generated(body: bytes, secret: str | None = None) -> Completion:
    """The completion in the body of a 200 of ``/generate``, as :func:`parse_completion` gives it."""
    return _parsed(body, _generated, secret)


def _generated(reply: Any) -> tuple[Any, ...]:
    details = reply.get("details") or {}
    return reply["generated_text"], details.get("finish_reason"), None, details.get("generated_tokens")


def parse_completion(body: bytes, secret: str | None = None) -> Completion:
    """The completion in the body of a 200; ``secret`` is left out of the message.

    Raises:
        EmptyReply: the body is not a chat completion, or holds no text.
        RequestRejected: a content filter has held the reply back.
        EndpointError: it holds an error instead, which is that of a server behind a gateway.
    """
    # No text of a reply has these bytes, for its quotes are escaped.
    no_choice = b'"error"' in body or b'"choices":null' in body or b'"choices": null' in body
    if no_choice and (error := error_within(without(secret, body))):
        raise error
    return _parsed(body, completed, secret)


def _parsed(body: bytes, read: Callable[[Any], tuple[Any, ...]], secret: str | None) -> Completion:
    try:
        text, reason, prompt_tokens, completion_tokens = read(loaded(body))
        if not isinstance(text, str):
            raise TypeError("content is not a text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = excerpt(without(secret, body))
        raise EmptyReply(f"the server answered 200 without a completion: {said!r}") from error
    return Completion(
        text=encodable(text),
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=prompt_tokens if type(prompt_tokens) is int else None,
        completion_tokens=completion_tokens if type(completion_tokens) is int else None,
    )


def chosen_model(served: Sequence[str], wanted: str | None, url: str) -> str:
    """The model to ask an OpenAI-compatible server for; a ConfigurationError where nothing says which one.

    Some servers list none, and take the name they were started with.
    """
    if wanted and (wanted in served or not served):
        return wanted
    if len(served) == 1:
        return served[0]
    more = f", and {len(served) - MODELS_TOLD:,} more" if len(served) > MODELS_TOLD else ""
    there = ", ".join(served[:MODELS_TOLD]) + more
    if wanted:
        raise ConfigurationError(
            f"{shown_url(url)} has no model {wanted}; it has {there}. Name one of them with model= or --model."
        )
    named = f"has several models ({there})" if served else "names no model"
    raise ConfigurationError(f"{shown_url(url)} {named}; say which one has to answer, with model= or --model.")


def is_loopback(url: str) -> bool:
    """Whether ``url`` points at this machine, where no proxy belongs."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for ``url``; aiohttp's ``trust_env`` would send ~/.netrc along."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def _object_of(body: bytes) -> dict[str, Any]:
    value = json_of(body)
    return value if isinstance(value, dict) else {}


def parse_slots(body: bytes) -> int | None:
    """How many requests llama-server works on at once, in the body of its ``/props``."""
    slots = _object_of(body).get("total_slots")
    return slots if type(slots) is int and slots > 0 else None


def parse_queue(body: bytes) -> tuple[int, int] | None:
    """The requests that run and those that wait, in the body of ``/metrics``; None where it does not name both.

    An engine may count them in parts (by replica, by reason), which are added up.
    """
    found: dict[str, float] = {}
    for name, labels, value in _GAUGE.findall(body.decode("utf-8", "replace")):
        if "reason=" not in labels:  # the same ones again, in parts
            found[name] = found.get(name, 0.0) + float(value)
    for running, waiting in QUEUES:
        if running in found and waiting in found:
            return int(found[running]), int(found[waiting])
    return None


def parse_context(body: bytes, model: str) -> int | None:
    """The context of a loaded model in the body of Ollama's ``/api/ps`` or llama-server's ``/props``, where it is said.

    That of Ollama's ``/api/show`` is the model's own, and larger.
    """
    found = _object_of(body)
    loaded, settings = found.get("models"), found.get("default_generation_settings")
    if isinstance(loaded, list):
        names = {model, f"{model}:latest"}
        mine = [one for one in loaded if isinstance(one, dict) and names & {one.get("name"), one.get("model")}]
        size = mine[0].get("context_length") if mine else None
    else:
        size = settings.get("n_ctx") if isinstance(settings, dict) else None
    return size if type(size) is int and size > 0 else None
