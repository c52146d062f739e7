"""The client of an LLM server: text-generation-inference (TGI) first, plain OpenAI chat servers beside it.

Server contract: TGI 3.3 Messages API, ``POST /v1/chat/completions``; ``GET /info`` names model, revision and limits.
The traps that shape the request body: ``temperature`` 0 is greedy and its absence samples at 1.0; ``top_p`` 1.0 is
refused; ``presence_penalty`` 0 becomes a repetition penalty of 2.0; TGI reads any ``model`` but ``"tgi"`` as a LoRA
adapter. The client lives on the background loop (see `background`); nothing here is hashed or pickled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from arhn_datasets.errors import (
    AccessDenied,
    ArhnError,
    ConfigurationError,
    EndpointFailure,
    EndpointOverloaded,
    EndpointUnavailable,
    RequestRejected,
)

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

TGI, OPENAI = "tgi", "openai"
DEFAULT_CONCURRENCY = 64  # where the server states no limit
HEADROOM = 0.95  # share of TGI's max_concurrent_requests that is used: above the limit it answers 429
BACKOFF_MAX_SECONDS = 10.0
MESSAGE_CHARACTERS = 300
PASSING_STATUSES = (429, 502, 503, 504)

_USER_INFO = re.compile(r"//[^/\s]*@")
_KNOWN_ROUTES = ("/v1/chat/completions", "/v1/models", "/v1", "/generate", "/info")


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says of itself.

    ``max_concurrent_requests`` is None where the server names no limit; ``revision`` is the model's commit sha.
    """

    api: str
    model: str
    revision: str | None = None
    version: str | None = None
    max_concurrent_requests: int | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A reply: its text, why it ended (``"stop"`` or ``"length"``) and the tokens it took, where stated."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """How to reach a server; none of it changes a reply, so none of it enters an identity.

    ``timeout`` is in seconds for each request; ``concurrency`` in requests, None for what the server allows;
    ``attempts`` counts the first one, and a server that answers 429 is asked on until ``timeout`` is over, too;
    ``backoff`` is the first pause in seconds, doubled and jittered.
    """

    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    concurrency: int | None = None
    attempts: int = 6
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if self.api_key and not (self.api_key.isprintable() and self.api_key.isascii()):
            raise ConfigurationError(
                "The API key holds a character that no HTTP header can carry. Expected one line of plain characters; "
                "look at ARHN_API_KEY, api_key= or --api-key."
            )


def base_url(url: str) -> str:
    """The root of a server from any URL of it that users paste.

    Raises:
        ConfigurationError: it is no http(s) URL.
    """
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
    for route in _KNOWN_ROUTES:
        if path.endswith(route):
            path = path[: -len(route)]
            break
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def shown_url(url: str) -> str:
    """``url`` without user name and password, for messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def request_body(info: ServerInfo, messages: Sequence[Mapping[str, str]], max_tokens: int) -> dict[str, Any]:
    """The body of a greedy chat request in the shape that ``info.api`` takes."""
    body: dict[str, Any] = {
        "model": "tgi" if info.api == TGI else info.model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": False,
    }
    if info.api == OPENAI:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return body


def parse_completion(body: bytes, secret: str | None = None) -> Completion:
    """The completion in the body of a 200; ``secret`` is left out of the message.

    Raises:
        EndpointFailure: the body is not a chat completion.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        text = choice["message"]["content"]
        usage = reply.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("content is not a text")
        return Completion(
            text=_encodable(text),
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = _excerpt(_without(secret, body))
        raise EndpointFailure(f"the server answered 200 without a chat completion: {said!r}") from error


def error_of(status: int, body: bytes, url: str) -> Exception:
    """The error of a reply that is not a 200 (server contract: JSON, plain text or empty)."""
    said = _message(body)
    if status in (401, 403):
        return AccessDenied(
            f"{shown_url(url)} answered {status}: the API key is missing or wrong. Set ARHN_API_KEY, or pass api_key= "
            "or --api-key; no other token is ever sent."
        )
    if status in (404, 405):
        return AccessDenied(
            f"{shown_url(url)} answered {status}: there is no chat API. Expected a text-generation-inference or "
            "OpenAI-compatible server; check the URL and its path."
        )
    if status == 429:
        return EndpointOverloaded(f"429: {said}")
    if status == 424 or status >= 500:
        return EndpointFailure(f"{status}: {said}")
    return RequestRejected(f"{status}: {said}")


def chosen_model(served: Sequence[str], wanted: str | None, url: str) -> str:
    """The model to ask an OpenAI-compatible server for; some list none, and take the name they were started with.

    Raises:
        ConfigurationError: nothing says which one.
    """
    if wanted and (wanted in served or not served):
        return wanted
    if wanted or len(served) == 1:
        return served[0]
    named = f"has several models ({', '.join(served[:5])})" if served else "names no model"
    raise ConfigurationError(f"{shown_url(url)} {named}; say which one has to answer, with model= or --model.")


class Client:
    """One server: an HTTP pool, a limit of requests in flight, and retries.

    Make and use it on the background loop. ``model`` is the one to ask for where the server has several or names none.
    """

    def __init__(self, url: str, options: ConnectionOptions, model: str | None = None) -> None:
        self.url = base_url(url)
        self.model = model
        self.options = options
        self.in_flight = 0
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._opening: asyncio.Future[ServerInfo] | None = None
        self._limit = asyncio.Semaphore(options.concurrency or DEFAULT_CONCURRENCY)
        self._template_options = True

    async def info(self) -> ServerInfo:
        """What the server says of itself, asked once.

        Raises:
            EndpointUnavailable: nothing answers there.
            ConfigurationError: what answers is no LLM server.
        """
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._retry(self._read_info))
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except ArhnError:
            if self._opening is opening:
                self._opening = None
            raise

    async def chat(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Completion:
        """The greedy reply to ``messages``, at most ``max_tokens`` tokens long.

        Raises:
            EndpointError: after all attempts, or at once where another attempt cannot help.
            AccessDenied: no request can succeed.
        """
        info = await self.info()
        body = request_body(info, messages, max_tokens)

        async def post() -> Completion:
            if not self._template_options:
                body.pop("chat_template_kwargs", None)
            status, reply = await self._request("POST", "/v1/chat/completions", body)
            if status == 200:
                return parse_completion(reply, self.options.api_key)
            if "chat_template_kwargs" in body and b"chat_template_kwargs" in reply and status in (400, 422):
                self._template_options = False
                return await post()
            raise self._error_of(status, reply)

        self.in_flight += 1
        try:
            # Pauses included: while the server is overloaded or away, the others wait and use up no attempts.
            async with self._limit:
                return await self._retry(post)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def _read_info(self) -> ServerInfo:
        status, reply = await self._request("GET", "/info")
        if status in PASSING_STATUSES:
            # A gateway's trouble: without /info, TGI would be taken for a server of the other kind.
            raise self._error_of(status, reply)
        found = _json_object(reply) if status == 200 else {}
        if "model_id" in found:
            limit = found.get("max_concurrent_requests")
            limit = limit if type(limit) is int and limit > 0 else None
            if limit and not self.options.concurrency:
                self._limit = asyncio.Semaphore(max(1, int(limit * HEADROOM)))
            return ServerInfo(
                api=TGI,
                model=str(found["model_id"]),
                revision=found.get("model_sha"),
                version=found.get("version"),
                max_concurrent_requests=limit,
                max_input_tokens=found.get("max_input_tokens"),
                max_total_tokens=found.get("max_total_tokens"),
            )
        status, reply = await self._request("GET", "/v1/models")
        listed = _json_object(reply).get("data")
        if status == 200 and isinstance(listed, list):
            names = [str(entry["id"]) for entry in listed if isinstance(entry, dict) and entry.get("id")]
            return ServerInfo(api=OPENAI, model=chosen_model(names, self.model, self.url))
        if status in (401, 403) or status == 429 or status >= 500:
            raise self._error_of(status, reply)
        raise ConfigurationError(
            f"{shown_url(self.url)} is no LLM server that this package knows: /info and /v1/models (status {status}) "
            "name no model. Expected text-generation-inference or an OpenAI-compatible chat server; check the URL."
        )

    def _error_of(self, status: int, reply: bytes) -> Exception:
        return error_of(status, _without(self.options.api_key, reply), self.url)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        import aiohttp

        headers = {"Authorization": f"Bearer {self.options.api_key}"} if self.options.api_key else {}
        session = self._open_session()
        try:
            # Redirects are refused: they could carry the key to another host.
            async with session.request(
                method, self.url + path, json=body, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as reply:
                return reply.status, await reply.read()
        except asyncio.TimeoutError as error:
            raise EndpointUnavailable(
                f"no reply from {shown_url(self.url)} within {self.options.timeout:g} seconds"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            said = _excerpt(_USER_INFO.sub("//", str(error)))  # it may name the proxy
            raise EndpointUnavailable(f"no connection to {shown_url(self.url)}: {said}") from error
        except ValueError as error:
            said = _excerpt(str(error)).rstrip(".")
            raise ConfigurationError(
                f"no request to {shown_url(self.url)} can be sent: {said}. Check that the API key is one line of plain "
                "characters, that the URL holds no password beside it, and the proxy."
            ) from error

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=self.options.timeout),
            )
            self._proxy = proxy_of(self.url)
        return self._session

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

        def is_over(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            busy = isinstance(error, EndpointOverloaded) and (state.seconds_since_start or 0) < self.options.timeout
            return state.attempt_number >= self.options.attempts and not busy

        retrying = AsyncRetrying(
            retry=retry_if_exception_type((EndpointUnavailable, EndpointOverloaded, EndpointFailure)),
            stop=is_over,
            wait=wait_random_exponential(multiplier=self.options.backoff, max=BACKOFF_MAX_SECONDS),
            reraise=True,
        )
        result: T = await retrying(call)
        return result


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


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _message(body: bytes) -> str:
    said = _json_object(body)
    error = said.get("error", said.get("detail", said.get("message")))
    if isinstance(error, dict):
        error = error.get("message")
    return _excerpt(str(error) if error else body) or "no message"


def _excerpt(text: str | bytes) -> str:
    line = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return _encodable(" ".join(line[: 4 * MESSAGE_CHARACTERS].split())[:MESSAGE_CHARACTERS])


def _encodable(text: str) -> str:
    """``text`` with "?" for halves of surrogate pairs, which JSON can hold and Arrow cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _without(secret: str | None, body: bytes) -> bytes:
    return body.replace(secret.encode("utf-8", "surrogateescape"), b"***") if secret else body
