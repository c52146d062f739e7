"""The annotator behind an LLM server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from arhn_datasets import background
from arhn_datasets.annotators.llm import LLMAnnotator
from arhn_datasets.endpoint import Client, Completion, ConnectionOptions, ServerInfo, base_url, shown_url
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.prompts import Message


@dataclass(frozen=True, eq=False)
class Endpoint(LLMAnnotator):
    """An LLM behind a text-generation-inference or OpenAI-compatible chat server.

    Args:
        url: The server's URL, or several servers of the same model.
        model: The model that has to answer; by default the one that the server names. Naming it, with its revision,
            lets a rerun find its fingerprint without asking the server.
        revision: Commit sha of the model; by default the one that the server names.
        api_key: Sent to ``url`` alone, as a bearer token; by default ``ARHN_API_KEY``. No other token is ever sent.
        timeout: Seconds for each request.
        concurrency: Requests in flight for each server; by default just below the server's own limit.
        attempts: Tries for each request, the first included.
        backoff: Seconds before the second try, doubled and jittered after.

    Raises:
        ConfigurationError: a value is out of range, or the URL is none.
    """

    url: str | tuple[str, ...]
    _: KW_ONLY
    model: str | None = None
    revision: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    concurrency: int | None = None
    attempts: int = 6
    backoff: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        urls = (self.url,) if isinstance(self.url, str) else tuple(self.url)
        if not urls:
            raise ConfigurationError("url is empty; the URL of an endpoint was expected, or several.")
        object.__setattr__(self, "url", tuple(base_url(url) for url in urls))
        # 0 would be no limit at all, and a request that hangs would hang the run.
        if not 0 < self.timeout < float("inf"):
            raise ConfigurationError(f"timeout is {self.timeout}; a number of seconds above 0 was expected.")
        if not 0 <= self.backoff < float("inf"):
            raise ConfigurationError(f"backoff is {self.backoff}; a number of seconds, 0 or more, was expected.")
        if self.attempts < 1 or (self.concurrency is not None and self.concurrency < 1):
            raise ConfigurationError(
                f"attempts is {self.attempts} and concurrency is {self.concurrency}; both have to be 1 or more."
            )

    def __repr__(self) -> str:
        urls = tuple(shown_url(url) for url in self.url)
        return f"{type(self).__name__}(url={urls}, model={self.model!r}, revision={self.revision!r})"

    async def complete(self, messages: Sequence[Message], max_tokens: int) -> Completion:
        """The reply of the server with the fewest requests in flight."""
        client = min(self._clients(), key=lambda client: client.in_flight)
        return await client.chat(messages, max_tokens)

    async def model_identity(self) -> dict[str, Any]:
        """Model and revision, as configured or as the servers name them."""
        info = await self.server()
        return {"model": self.model or info.model, "revision": self.revision or info.revision}

    async def server(self) -> ServerInfo:
        """What the servers say of themselves.

        Raises:
            ConfigurationError: they serve different models, or another one than was asked for.
        """
        clients = self._clients()
        infos = await asyncio.gather(*(client.info() for client in clients))
        for client, info in zip(clients, infos, strict=True):
            if (info.model, info.revision) != (infos[0].model, infos[0].revision):
                raise ConfigurationError(
                    f"The endpoints serve different models: {shown_url(clients[0].url)} has {infos[0].model}@"
                    f"{infos[0].revision}, {shown_url(client.url)} has {info.model}@{info.revision}. "
                    "One run takes one model; name only endpoints that serve it."
                )
        served = infos[0]
        for name, wanted, found in (("model", self.model, served.model), ("revision", self.revision, served.revision)):
            if wanted and found and wanted != found:
                raise ConfigurationError(
                    f"{shown_url(clients[0].url)} serves the {name} {found!r}, and {wanted!r} was asked for. "
                    f"Name the one that is served, or leave {name} out to take it."
                )
        return served

    def identity(self, stage: str) -> dict[str, Any]:
        """Model, revision, prompt and parameters; asks the server for the model where none is configured."""
        if self.model is not None:
            model = {"model": self.model, "revision": self.revision}
        else:
            model = background.run(self.model_identity())
        return {"annotator": "llm", **model, **self._stage_identity(stage)}

    def description(self) -> dict[str, Any]:
        """Model, revision, server and prompts, for the card."""
        info = background.run(self.server())
        return {
            "annotator": "LLM behind an endpoint",
            "baseline": False,
            "model": self.model or info.model,
            "revision": self.revision or info.revision,
            "server": "text-generation-inference" if info.api == "tgi" else "OpenAI-compatible chat",
            "server_version": info.version,
            **self._prompt_description(),
        }

    def _clients(self) -> list[Client]:
        options = ConnectionOptions(
            api_key=(self.api_key or os.environ.get("ARHN_API_KEY") or "").strip() or None,
            timeout=self.timeout,
            concurrency=self.concurrency,
            attempts=self.attempts,
            backoff=self.backoff,
        )
        return [_client(url, options, self.model) for url in self.url]


def _client(url: str, options: ConnectionOptions, model: str | None) -> Client:
    return background.resource(("client", url, options, model), lambda: Client(url, options, model))
