"""A `huggingface_hub.AsyncInferenceClient` of the user's as the transport: provider routing, billing, own headers.

It costs several times the CPU of our own client and brings neither retries nor a limit; the pool adds both.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arhn_datasets.annotators.client import contract, refusals
from arhn_datasets.annotators.client.contract import ChatRequest, Completion, ServerInfo
from arhn_datasets.annotators.client.http import ChatTransport
from arhn_datasets.errors import ConfigurationError, EmptyReply, EndpointUnavailable, RequestRejected

if TYPE_CHECKING:
    from huggingface_hub import AsyncInferenceClient


_NO_COMPLETION = (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, LookupError, AssertionError)
_NO_REPLY = "Invalid input data for", "Invalid data type"  # a ValueError of the hub, which reads whatever came


class HubTransport(ChatTransport):
    """The chat API behind a client that the user made."""

    def __init__(self, client: AsyncInferenceClient, model: str | None = None) -> None:
        self._client = client
        own = getattr(client, "model", None)
        self._own = None if own is None or "://" in own else str(own)  # of base_url= it makes a model, too
        self._model = model or self._own
        self.name = f"the AsyncInferenceClient ({getattr(client, 'provider', None) or 'no provider'})"

    async def info(self) -> ServerInfo:
        """The model that the client was made for.

        Raises:
            ConfigurationError: nothing names one.
        """
        if self._model and self._own and self._model != self._own:
            raise ConfigurationError(
                f"{self.name} was made for {self._own!r}, and {self._model!r} was asked for. Name one model only."
            )
        if not self._model:
            raise ConfigurationError(
                f"{self.name} names no model; say which one answers there, with model= or --model, since every reply "
                "is kept under its model."
            )
        return ServerInfo(api=contract.OPENAI, model=self._model)

    async def probe(self) -> None:
        """A provider has no health route; the next request tells."""

    async def close(self) -> None:
        """The client is the user's, and stays open."""

    async def _ask(self, info: ServerInfo, request: ChatRequest) -> Completion:
        body = contract.chat_body(info, request, refused=("chat_template_kwargs",))
        try:
            reply = await self._client.chat_completion(**body)
        except Exception as error:
            raise _translated(error, self.name, getattr(self._client, "token", None)) from error
        return contract.parse_completion(json.dumps(reply, default=vars).encode())


def _translated(error: Exception, name: str, secret: str | None) -> Exception:
    """Our error for one of the hub's; its transports differ between hub 0.x (aiohttp), 1.x and 2.x (httpx)."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        body = getattr(response, "content", b"") if response is not None else str(error).encode()
        headers = getattr(response, "headers", None) or {}
        try:
            said = bytes(body)
        except Exception:  # a streamed body that nobody has read
            said = str(error).encode()
        said = refusals.without(secret, said)
        found = refusals.error_of(status, said, headers.get("Retry-After"))
        if status in (401, 403) and isinstance(found, RequestRejected) and found.advice:
            found.advice = (
                "Its token is missing or wrong, or has no right to this model. Make the client with another one."
            )
        return found
    if isinstance(error, TimeoutError):
        return EndpointUnavailable(f"no reply from {name} in time", own=True)
    if type(error).__name__ == "OfflineModeIsEnabled":
        return ConfigurationError(f"{name} is switched off by HF_HUB_OFFLINE; unset it to ask a provider.")
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "aiohttp") or isinstance(
        error, OSError
    ):
        return EndpointUnavailable(f"no connection through {name}: {refusals.excerpt(str(error))}")
    message = refusals.excerpt(refusals.without(secret, str(error).encode("utf-8", "replace")))
    if isinstance(error, _NO_COMPLETION) or str(error).startswith(_NO_REPLY):
        return EmptyReply(f"the provider answered without a completion ({type(error).__name__}: {message})")
    if isinstance(error, ValueError):
        return ConfigurationError(f"{name} can send no request: {message}")
    return error
