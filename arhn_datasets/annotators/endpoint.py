"""The annotator behind an LLM server."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from arhn_datasets.annotators.client import contract
from arhn_datasets.annotators.client.http import ChatTransport, HttpTransport
from arhn_datasets.annotators.client.hub import HubTransport
from arhn_datasets.annotators.client.pool import Pool
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.llm import MODEL_OPTIONS, model_options, shared
from arhn_datasets.annotators.packing import PackingAnnotator
from arhn_datasets.errors import ConfigurationError, EndpointError
from arhn_datasets.rows import background
from arhn_datasets.rows.options import Option

if TYPE_CHECKING:
    from huggingface_hub import AsyncInferenceClient


SLOTS_AHEAD = 1.25  # requests under way for each slot, so that the next ones are ready when it is free ...
SIZE_AHEAD = 2.0  # ... also where the server may be asked twice as many in a moment


@contract.documented
@dataclass(frozen=True, eq=False)
class Endpoint(PackingAnnotator, contract.ConnectionOptions):
    """An LLM behind a text-generation-inference or OpenAI-compatible chat server.

    Args:
        url: The server's URL, or several servers of the same model.
        client: Instead of a URL, a ``huggingface_hub.AsyncInferenceClient`` of yours (provider routing, billing, own
            headers); slower, with the same limits, retries, store and statuses.
        model: The model that has to answer; by default the one that the server names. Naming it, with its revision,
            lets a rerun find its fingerprint without asking the server.
        revision: Commit sha of the model; by default the one that the server names.

    Raises:
        ConfigurationError: a value is out of range, or the URL is none.
    """

    NAME: ClassVar[str] = "tgi"
    SUMMARY: ClassVar[str] = "an LLM server, also an OpenAI-compatible one"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "endpoint": Option(
            help="an LLM server; repeatable; default: ARHN_ENDPOINT (with commas)", metavar="URL", repeatable=True
        ),
        **MODEL_OPTIONS,
        "provider": Option(help="an inference provider of the Hub instead of an endpoint", metavar="NAME"),
        "constrained": Option(help="hold the model to JSON, where the server can", switch=True),
        **contract.CONNECTION,
    }

    url: str | tuple[str, ...] | None = None
    _: KW_ONLY
    client: AsyncInferenceClient | None = field(default=None, repr=False)
    model: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.client is None) == (not self.urls):
            raise ConfigurationError(
                "url is empty; the URL of an endpoint was expected, or several, or client= and no URL."
            )
        object.__setattr__(self, "url", tuple(contract.base_url(url) for url in self.urls) or None)
        self.check_connection()

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Endpoint:
        """The endpoints that ``--endpoint`` or the environment names, or a provider of the Hub.

        Raises:
            ConfigurationError: none is named, or the options do not fit each other.
        """
        options = {name: value for name, value in given.items() if name in contract.CONNECTION and value is not None}
        options |= {**model_options(given), "model": given["model"], "constrained": given["constrained"]}
        if given["provider"]:
            return cls(client=_provided(given, options.get("timeout", cls.timeout)), **options)
        urls = given["endpoint"] or urls_of_environment()
        if not urls:
            raise ConfigurationError(
                "--annotator tgi needs --endpoint URL (or ARHN_ENDPOINT), e.g. http://localhost:8080."
            )
        return cls(tuple(urls), **{**options, "model": given["model"] or os.environ.get("ARHN_MODEL")})

    def __repr__(self) -> str:
        where = tuple(contract.shown_url(url) for url in self.urls) if self.client is None else "a client"
        return f"{type(self).__name__}({where}, model={self.model!r}, revision={self.revision!r})"

    @property
    def urls(self) -> tuple[str, ...]:
        """The roots of the servers."""
        return () if self.url is None else (self.url,) if isinstance(self.url, str) else self.url

    def complete(self, request: contract.ChatRequest) -> Coroutine[Any, Any, contract.Completion]:
        """The reply of one of the servers."""
        return self._pool().chat(request)

    def samples(self) -> bool:
        """Whether one of the servers takes no temperature."""
        return any("temperature" in server.transport.refused for server in self._pool().servers)

    async def model_identity(self) -> dict[str, Any]:
        """Model and revision, as configured or as the servers name them."""
        info = await self.server()
        return {"model": self.model or info.model, "revision": self.revision or info.revision}

    async def server(self) -> contract.ServerInfo:
        """What the servers say of themselves.

        Raises:
            ConfigurationError: they serve different models, or another one than was asked for.
        """
        pool = self._pool()
        served = await pool.info()
        for name, wanted, found in (("model", self.model, served.model), ("revision", self.revision, served.revision)):
            if wanted and found and wanted != found:
                raise ConfigurationError(
                    f"{pool.servers[0].transport.name} serves the {name} {found!r}, and {wanted!r} was asked for. "
                    f"Name the one that is served, or leave {name} out to take it."
                )
        return served

    def shared_by(self, processes: int) -> Annotator:
        """This annotator with one of ``processes`` parts of its limit, and with the key that this process has."""
        api_key = self.api_key or os.environ.get("ARHN_API_KEY")  # another machine has another environment
        return replace(self, processes=self.processes * processes, api_key=api_key)

    def most_processes(self) -> int | None:
        """The requests that the narrowest of the servers takes at once: each process needs one."""

        async def read() -> int | None:
            try:
                await self.server()
            except EndpointError:  # nobody knows yet
                return self.concurrency
            return min(server.sizing.most for server in self._pool().servers)

        return background.run(read())

    def statistics(self) -> dict[str, Any]:
        """Requests, retries and tokens so far in this process."""

        async def read() -> dict[str, Any]:
            pool = self._pool()
            sent = sum(server.limit.in_flight for server in pool.servers)
            return {**asdict(pool.statistics), "in_flight": sent, **shared().counts}

        return background.run(read())

    def told(self) -> list[str]:
        """How many requests each server that was asked has got at once, and why."""

        async def read() -> list[str]:
            return [server.sized() for server in self._pool().servers if server.sizing.latency is not None]

        return background.run(read())

    def identity(self, stage: str) -> dict[str, Any]:
        """Model, revision, prompt and parameters; asks the server for the model where none is configured."""
        if self.model is not None:
            model = {"model": self.model, "revision": self.revision}
        else:
            model = background.run(self.known_model())
        return {"annotator": "llm", **model, **self._stage_identity(stage)}

    def description(self) -> dict[str, Any]:
        """Model, revision, server and prompts, for the card."""

        async def read() -> tuple[contract.ServerInfo, bool]:
            return await self.server(), self.samples()

        info, sampled = background.run(read())
        return {
            "annotator": "LLM behind an endpoint",
            "baseline": False,
            "model": self.model or info.model,
            "revision": self.revision or info.revision,
            "server": "text-generation-inference" if info.api == "tgi" else "OpenAI-compatible chat",
            "server_version": info.version,
            **({"sampling": "the server's own: it takes no temperature"} if sampled else {}),
            **self._prompt_description(),
        }

    def _most_under_way(self) -> int:
        slots = self._pool().slots
        measured = any(server.sizing.measures for server in self._pool().servers)
        ahead = SIZE_AHEAD if measured else SLOTS_AHEAD
        return super()._most_under_way() if slots is None else int(ahead * slots) + 1

    def _pool(self) -> Pool:
        """The pool of all annotators with these servers and options."""
        api_key = self.api_key or os.environ.get("ARHN_API_KEY")  # a notebook may set another one
        known: WeakKeyDictionary[Endpoint, tuple[str | None, Pool]] = background.resource("pools", WeakKeyDictionary)
        found = known.get(self)
        if found is None or found[0] != api_key:
            options = contract.ConnectionOptions(**{**self.connection(), "api_key": (api_key or "").strip() or None})

            def make() -> Pool:
                here: list[ChatTransport] = [HttpTransport(url, options, self.model) for url in self.urls]
                before = shared().counts["stored"]
                transports = here if self.client is None else [HubTransport(self.client, self.model)]
                return Pool(transports, options, lambda: shared().counts["stored"] > before)

            client = None if self.client is None else id(self.client)
            key = ("pool", self.urls, client, self.model, *options.connection().values())
            found = known[self] = api_key, background.resource(key, make)
        return found[1]


def urls_of_environment() -> tuple[str, ...]:
    """The servers in ``ARHN_ENDPOINT``, which holds one or several with commas."""
    return tuple(url.strip() for url in os.environ.get("ARHN_ENDPOINT", "").split(",") if url.strip())


def _provided(given: Mapping[str, Any], timeout: float) -> AsyncInferenceClient:
    """The Hub's client of ``--provider``."""
    key = given["api_key"] or os.environ.get("ARHN_API_KEY")
    if not (key and given["model"]) or given["endpoint"]:
        raise ConfigurationError(
            "--provider goes with --model ID and a key of the Hub in ARHN_API_KEY (or --api-key), and without "
            "--endpoint; the key that is stored on this machine is never sent by itself."
        )
    from huggingface_hub import AsyncInferenceClient

    return AsyncInferenceClient(provider=given["provider"], api_key=key, timeout=timeout)
