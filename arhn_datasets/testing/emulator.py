"""The emulator: its options, its life, and what it has counted.

Server contract: text-generation-inference 3.3.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing.batches import Batches
from arhn_datasets.testing.counts import Counts, Stats
from arhn_datasets.testing.faults import Fault, FaultScript
from arhn_datasets.testing.latency import Latency
from arhn_datasets.testing.parameters import Limits
from arhn_datasets.testing.replies import Speaker
from arhn_datasets.testing.responses import Request, json_response
from arhn_datasets.testing.service import Service
from arhn_datasets.testing.shapes import VERSION, Body

if TYPE_CHECKING:
    from typing_extensions import Self

BACKLOG = 4096
START_SECONDS = 10.0
KEEPALIVE_SECONDS = 3600.0  # TGI's server closes no idle connection

Intercepted = web.StreamResponse | None


@dataclass(kw_only=True, eq=False)
class Emulator:
    """A server of text-generation-inference's HTTP contract without a model.

    ``with Emulator(...) as server:`` runs it in a thread of its own and ``server.url`` is where; ``async with`` runs
    it on the current loop. While it runs ``api_key``, ``intercept``, ``latency``, ``model``, ``reply``, ``revision``
    and ``max_concurrent_requests`` may be set, and the faults replaced.

    Args:
        host: Where to listen.
        port: 0 for any free one.
        model: Model id of ``/info``.
        revision: Its commit sha.
        api_key: Bearer token that the routes for text and ``/tokenize`` ask for.
        reply: Who answers our prompts: an annotator, or a function of the templated prompt, or one text for all. The
            function may be a coroutine function; a request holds its permit while that waits.
        slots: Size of the running batch.
        latency: The cost of a request; by default none.
        prefix_block: Tokens in a block of the prefix cache, 0 for no cache.
        max_concurrent_requests: Permits; above, 429.
        declared: Whether the server says who it is and what it takes; without, ``/info`` and ``/metrics`` are 404, as
            at an OpenAI-compatible server.
        drops: Whether it ends the work for a client that is gone; many servers do not.
        max_input_tokens: Limit of a prompt.
        max_total_tokens: Limit of prompt and new tokens.
        payload_limit: Largest body in bytes.
        chat_template: Whether there is one; without, every chat is a ``template_error``.
        system_role: Whether the template takes system messages; without, roles have to alternate, too.
        thinking: Words of ``<think>`` before each reply, 0 for a model that does not think.
        grammars: Whether constrained output is supported.
        faults: The fault script.
        intercept: Asked before each reply, with the request (``method``, ``path``, ``headers``, ``body``, ``number``;
            GETs, too, numbered by their path). The aiohttp response that it returns, or an awaitable of one, is sent
            instead of ours, None goes on: for what no fault describes, such as the errors of a gateway of yours.
        batch_seconds: How long a batch is validated.
        batch_lines: How many lines of a batch are answered before it expires; by default all.
        record: How many of the last requests for text are kept in ``requests``.

    Raises:
        ConfigurationError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 0
    model: str = "emulated/lexical"
    revision: str | None = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4"
    api_key: str | None = field(default=None, repr=False)
    reply: Speaker = field(default_factory=lambda: Lexical(threshold=0.3))
    slots: int = 32
    latency: Latency = field(default_factory=Latency)
    prefix_block: int = 0
    max_concurrent_requests: int = 128
    declared: bool = True
    drops: bool = True
    max_input_tokens: int = 8191
    max_total_tokens: int = 8192
    payload_limit: int = 2_000_000
    chat_template: bool = True
    system_role: bool = True
    thinking: int = 0
    grammars: bool = True
    faults: Iterable[Fault] = ()
    intercept: Callable[[Request], Intercepted | Awaitable[Intercepted]] | None = None
    batch_seconds: float = 0.0
    batch_lines: int | None = None
    record: int = 1000

    def __post_init__(self) -> None:
        for name in ("slots", "max_concurrent_requests", "max_input_tokens", "max_total_tokens", "payload_limit"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; a number of 1 or more was expected.")
        if self.max_input_tokens >= self.max_total_tokens:
            raise ConfigurationError(
                f"max_input_tokens is {self.max_input_tokens} and max_total_tokens {self.max_total_tokens}; "
                "the first has to be the smaller one."
            )
        if not 0 <= self.port < 65536 or self.prefix_block < 0 or self.thinking < 0 or self.record < 0:
            raise ConfigurationError(
                "port, prefix_block, thinking and record have to be 0 or more, a port below 65536."
            )
        self.limits = Limits(max_input_tokens=self.max_input_tokens, max_total_tokens=self.max_total_tokens)
        self.script = FaultScript(self.faults)
        self.requests: deque[Request] = deque(maxlen=self.record)
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    # -------------------------------------------------------------------------------------- life

    def __enter__(self) -> Self:
        """Serve from a thread."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="emulator", daemon=True)
        self._thread.start()
        started.result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(START_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, started: Future[None]) -> None:
        try:
            await self.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._ended.wait()
        await self.stop()

    async def start(self) -> None:
        """Serve from the running event loop.

        Raises:
            OSError: the port is taken.
        """
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._service = self._service_of()
        self._batches = Batches(self)
        # A handler is cancelled when its client goes away, and its place in the batch with it.
        self._server = web.Server(
            self._answer, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS
        )
        await self._listen()
        self.url = f"http://{self.host}:{self.port}"

    def _service_of(self) -> Service:
        """What the routes do."""
        return Service(self)

    async def stop(self) -> None:
        """Close the port and every connection."""
        for task in list(self._tasks):
            task.cancel()
        self._batches.stop()
        self._hang_up()
        await self._server.shutdown(1.0)
        await asyncio.sleep(0)

    def restart(self, seconds: float) -> None:
        """Reset every connection, refuse new ones for so long, and come back empty; called on the server's loop."""

        async def come_back() -> None:
            self._hang_up()
            self._service.forget()
            await asyncio.sleep(seconds)
            while True:
                try:
                    return await self._listen()
                except OSError:  # the port is taken for a moment
                    await asyncio.sleep(0.05)

        task = self._loop.create_task(come_back())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            self._server, self.host, self.port, backlog=BACKLOG, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def _hang_up(self) -> None:
        self._listener.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    # -------------------------------------------------------------------------------------- state

    @property
    def stats(self) -> Stats:
        """The counters now."""
        batch = self._service.batch
        return self._service.counts.snapshot(
            slots=batch.slots,
            queued=len(batch.queue),
            running=len(batch.running),
            busy_seconds=batch.busy_seconds,
            wasted_seconds=batch.wasted_seconds,
            span_seconds=batch.last - batch.first if batch.last is not None and batch.first is not None else 0.0,
            connections=len(self._server.connections),
        )

    @property
    def bodies(self) -> list[Body]:
        """The bodies of the requests for text that are kept."""
        return [request.body for request in list(self.requests)]

    def set_faults(self, *faults: Fault) -> None:
        """Begin another fault script, from any thread."""
        self.script.replace(faults)

    def add_fault(self, fault: Fault) -> None:
        """Go on with one more fault, from any thread."""
        self.script.add(fault)

    def reset_stats(self) -> None:
        """Begin to count afresh, requests' numbers included; best between runs."""
        self._service.counts = Counts(self._service.counts.in_flight)
        self._service.batch.reset()
        self.requests.clear()

    def info(self) -> Body:
        """What ``/info`` says."""
        return {
            "model_id": self.model,
            "model_sha": self.revision,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_best_of": self.limits.max_best_of,
            "max_stop_sequences": self.limits.max_stop_sequences,
            "max_input_tokens": self.max_input_tokens,
            "max_total_tokens": self.max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": self.limits.max_client_batch_size,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }

    # -------------------------------------------------------------------------------------- administration

    async def _answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        if raw.path.startswith("/_emulator/"):
            return await self._administer(raw)
        if raw.path.startswith(("/v1/files", "/v1/batches")):
            return await self._batches.answer(raw)
        return await self._service.answer(raw)

    async def _administer(self, raw: web.BaseRequest) -> web.Response:
        """``/_emulator/stats`` (GET, DELETE) and ``/_emulator/faults`` (GET, PUT or POST, DELETE)."""
        if raw.path == "/_emulator/stats":
            if raw.method == "DELETE":
                self.reset_stats()
            return json_response(self.stats.to_json())
        if raw.path != "/_emulator/faults":
            return web.Response(status=404)
        try:
            given = json.loads(await raw.content.read()) if raw.method in ("PUT", "POST") else []
            faults = [Fault.from_json(one) for one in (given if isinstance(given, list) else [given])]
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=422)
        if raw.method in ("PUT", "DELETE"):
            self.script.replace(faults)
        for fault in faults if raw.method == "POST" else ():
            self.script.add(fault)
        return json_response([fault.to_json() for fault in self.script if not callable(fault.on)])
