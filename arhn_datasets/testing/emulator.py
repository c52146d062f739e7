"""The emulator: TGI's routes over a batch, a fault script and an annotator.

Server contract: text-generation-inference 3.3. The order of checks is that of the router: authorisation, media type,
size, JSON, fields, chat template, permit (429), parameters, lengths, grammar, queue, batch. In a stream whatever comes
after the template arrives as an event, with status 200.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import contract
from arhn_datasets.testing.contract import Body, Generated, Limits, Problem, dumps
from arhn_datasets.testing.counts import Counts, Stats
from arhn_datasets.testing.faults import Fault, FaultScript, Seen
from arhn_datasets.testing.grammar import Grammar, read_grammar
from arhn_datasets.testing.latency import Batch, Entry, Latency, PrefixCache
from arhn_datasets.testing.replies import Replies, spoken
from arhn_datasets.testing.tokens import count, generated, pieces, room, tokenised

if TYPE_CHECKING:
    from typing_extensions import Self

GRAMMARS_KEPT = 32
BACKLOG = 4096
START_SECONDS = 10.0
KEEPALIVE_SECONDS = 3600.0  # TGI's server closes no idle connection

_PAGE = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr>nginx</body></html>\n"
_REASONS = {502: "502 Bad Gateway", 503: "503 Service Temporarily Unavailable", 504: "504 Gateway Time-out"}
_SYLLABLES = ("ka", "\u2582", "lo", " ", "{", "]", "zu", "0", ">", "\u00e9n", "mi", '"', "tr", "[", "9")


@dataclass(kw_only=True, eq=False)
class Emulator:
    """A server of text-generation-inference's HTTP contract without a model.

    ``with Emulator(...) as server:`` runs it in a thread of its own and ``server.url`` is where; ``async with`` runs
    it on the current loop. While it runs ``latency``, ``model`` and ``revision`` may be set, and the faults replaced.

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
        max_input_tokens: Limit of a prompt.
        max_total_tokens: Limit of prompt and new tokens.
        payload_limit: Largest body in bytes.
        chat_template: Whether there is one; without, every chat is a ``template_error``.
        system_role: Whether the template takes system messages; without, roles have to alternate, too.
        thinking: Words of ``<think>`` before each reply, 0 for a model that does not think.
        grammars: Whether constrained output is supported.
        faults: The fault script.
        record: How many of the last requests for text are kept in ``requests``.

    Raises:
        ConfigurationError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 0
    model: str = "emulated/lexical"
    revision: str | None = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4"
    api_key: str | None = field(default=None, repr=False)
    reply: Annotator | Callable[[str], str | Awaitable[str]] | str = field(
        default_factory=lambda: Lexical(threshold=0.3)
    )
    slots: int = 32
    latency: Latency = field(default_factory=Latency)
    prefix_block: int = 0
    max_concurrent_requests: int = 128
    max_input_tokens: int = 8191
    max_total_tokens: int = 8192
    payload_limit: int = 2_000_000
    chat_template: bool = True
    system_role: bool = True
    thinking: int = 0
    grammars: bool = True
    faults: Iterable[Fault] = ()
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
        self.script = FaultScript(self.faults)
        self.requests: deque[Request] = deque(maxlen=self.record)
        self.url = ""
        self._counts = Counts()
        self._limits = Limits(max_input_tokens=self.max_input_tokens, max_total_tokens=self.max_total_tokens)
        self._replies = Replies(self.reply)
        self._prefixes = PrefixCache(self.prefix_block)
        self._compiled: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._gets: dict[str, Callable[[], web.Response]] = {
            "/": self._health,
            "/health": self._health,
            "/ping": self._health,
            "/info": lambda: _json(self.info()),
            "/v1/models": self._models,
            "/metrics": self._metrics,
        }
        self._posts: dict[str, Callable[[Request], Awaitable[web.StreamResponse]]] = {
            "/": self._compatible,
            "/generate": self._generate,
            "/generate_stream": self._generate,
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/tokenize": self._tokenize,
            "/chat_tokenize": self._chat_tokenize,
        }

    # -------------------------------------------------------------------------------------- life

    def __enter__(self) -> Self:
        """Serve from a thread."""
        started: list[BaseException | None] = []
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started, ready), name="emulator", daemon=True)
        self._thread.start()
        if not ready.wait(START_SECONDS):
            raise TimeoutError("the emulator did not start")  # pragma: no cover
        if started[0] is not None:
            self._thread.join()
            raise started[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        assert self._thread is not None  # set in __enter__
        self._thread.join(START_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve from the running event loop.

        Raises:
            OSError: the port is taken.
        """
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._batch = Batch(self.slots)
        # A handler is cancelled when its client goes away, and its place in the batch with it.
        self._server = web.Server(
            self._answer, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS
        )
        await self._listen()
        self.url = f"http://{self.host}:{self.port}"

    async def stop(self) -> None:
        """Close the port and every connection."""
        for task in list(self._tasks):
            task.cancel()
        self._listener.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._server.shutdown(1.0)
        await asyncio.sleep(0)

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            self._server, self.host, self.port, backlog=BACKLOG, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def _serve(self, started: list[BaseException | None], ready: threading.Event) -> None:
        async def main() -> None:
            try:
                await self.start()
            except BaseException as error:
                started.append(error)
                ready.set()
                return
            started.append(None)
            ready.set()
            await self._ended.wait()
            await self.stop()

        asyncio.run(main())

    # -------------------------------------------------------------------------------------- state

    @property
    def stats(self) -> Stats:
        """The counters now."""
        batch = self._batch
        return self._counts.snapshot(
            slots=batch.slots,
            queued=len(batch.queue),
            running=len(batch.running),
            busy_seconds=batch.busy_seconds,
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
        permits, self._counts = self._counts.in_flight, Counts()
        self._counts.in_flight = self._counts.peak_in_flight = permits
        self._batch.busy_seconds, self._batch.first, self._batch.last = 0.0, None, None
        self.requests.clear()

    def info(self) -> Body:
        """What ``/info`` says."""
        return {
            "model_id": self.model,
            "model_sha": self.revision,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_best_of": self._limits.max_best_of,
            "max_stop_sequences": self._limits.max_stop_sequences,
            "max_input_tokens": self.max_input_tokens,
            "max_total_tokens": self.max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": self._limits.max_client_batch_size,
            "router": "text-generation-router",
            "version": contract.VERSION,
            "sha": None,
            "docker_label": None,
        }

    # -------------------------------------------------------------------------------------- requests

    async def _answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        path = raw.path
        if path.startswith("/_emulator/"):
            return await self._administer(raw)
        self._counts.by_path[path] += 1
        if raw.method in ("GET", "HEAD") and path in self._gets:
            return self._get(path)
        if path not in self._posts:
            return web.Response(status=405 if path in self._gets else 404)
        if raw.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        counted = not path.endswith("tokenize")
        try:
            response = await self._post(raw, counted)
        except Problem as problem:
            if problem.label:
                self._counts.failures[problem.label] += 1
            response = _refusal(problem)
        except asyncio.CancelledError:
            self._counts.numbers["cancelled"] += counted
            self._counts.failures["dropped"] += counted
            raise
        if counted:
            self._counts.by_status[str(response.status)] += 1
        return response

    def _get(self, path: str) -> web.Response:
        fault = self.script.pick(Seen(number=self._counts.by_path[path], path=path, body={}), path)
        if fault is None:
            return self._gets[path]()
        self._counts.faults[fault.kind] += 1
        if fault.kind == "info_missing":
            return web.Response(status=404)
        return _refusal(Problem.named(503, "healthcheck", "unhealthy"))

    async def _post(self, raw: web.BaseRequest, counted: bool) -> web.StreamResponse:
        path = raw.path
        key = f"Bearer {self.api_key}".casefold()
        if self.api_key and path != "/chat_tokenize" and raw.headers.get("Authorization", "").casefold() != key:
            return web.Response(status=401)
        data = await raw.content.read()
        if raw.content_type != "application/json":
            raise Problem(415, "Expected request with `Content-Type: application/json`")
        if len(data) > self.payload_limit:
            raise Problem(413, "Failed to buffer the request body: length limit exceeded")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"Failed to parse the request body as JSON: {error}") from None
        request = Request(raw=raw, path=path, data=data, body=body if isinstance(body, dict) else {})
        request.arrived = time.perf_counter()
        if counted:
            request.number = self._counts.see(data)
            self.requests.append(request)
            seen = Seen(number=request.number, path=path, body=request.body)
            request.fault = self.script.pick(seen)
            if request.fault is not None:
                self._counts.faults[request.fault.kind] += 1
                early = await self._early(request, request.fault)
                if early is not None:
                    return early
        contract.deserialise(body, _FIELDS[path], len(data))
        return await self._posts[path](request)

    async def _early(self, request: Request, fault: Fault) -> web.StreamResponse | None:
        """What a fault does before the request is looked at."""
        kind = fault.kind
        headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
        if kind in ("502", "503", "504"):
            page = _PAGE.format(_REASONS[int(kind)])
            return web.Response(status=int(kind), text=page, content_type="text/html", headers=headers)
        if kind == "html_200":
            return web.Response(text=_PAGE.format("Sign in"), content_type="text/html")
        if kind == "401":
            return web.Response(status=401)
        if kind in _PROBLEMS:
            problem = _PROBLEMS[kind]()
            self._counts.failures[problem.label] += 1
            return _refusal(problem, headers)
        if kind == "reset_before":
            _reset(request.raw)
            return web.Response(status=500)
        if kind == "restart":
            task = self._loop.create_task(self._restart(10.0 if fault.seconds is None else fault.seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(60.0)  # until its connection is reset
        if kind == "model_change":
            self.model = fault.model or f"{self.model}-changed"
            self.revision = fault.revision
        return None

    async def _restart(self, seconds: float) -> None:
        self._listener.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        self._compiled.clear()
        self._prefixes = PrefixCache(self.prefix_block)
        await asyncio.sleep(seconds)
        while True:
            try:
                return await self._listen()
            except OSError:  # the port is taken for a moment
                await asyncio.sleep(0.05)

    @contextmanager
    def _permits(self, count: int) -> Any:
        """Hold permits for the whole request; there is no waiting for one."""
        counts = self._counts
        if counts.in_flight + count > self.max_concurrent_requests:
            raise contract.overloaded()
        counts.enter(count)
        try:
            yield
        finally:
            self._counts.in_flight -= count

    # -------------------------------------------------------------------------------------- routes

    async def _chat(self, request: Request) -> web.StreamResponse:
        body = request.body
        prompt = self._templated(body)
        last = body["messages"][-1] if body["messages"] else {}
        call = Call(
            request=request,
            prompt=prompt,
            parameters=contract.chat_parameters(body),
            prefill=contract.content_of(last).rstrip() if last.get("role") == "assistant" else "",
        )
        self._counts.numbers["penalised"] += body.get("presence_penalty") is not None
        named = body.get("model")
        model = self.model if named in (None, "tgi") else str(named)
        logprobs = bool(body.get("logprobs"))
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self._stream(
                [call], lambda done: contract.chat_chunks(done, model, usage=usage, logprobs=logprobs), closing=True
            )
        return await self._reply(call, lambda done: contract.chat_completion(done, model, logprobs=logprobs))

    async def _generate(self, request: Request) -> web.StreamResponse:
        return await self._generation(request, stream=request.path == "/generate_stream", full_text=False, listed=False)

    async def _compatible(self, request: Request) -> web.StreamResponse:
        return await self._generation(request, stream=bool(request.body.get("stream")), full_text=True, listed=True)

    async def _generation(self, request: Request, *, stream: bool, full_text: bool, listed: bool) -> web.StreamResponse:
        # Without the object TGI's own default is to sample, with an empty one it is not.
        parameters = request.body.get("parameters", {"do_sample": True})
        call = Call(request=request, prompt=request.body["inputs"], parameters=parameters)
        asked = parameters.get("return_full_text")
        full = full_text if asked is None else asked
        if stream:
            return await self._stream(
                [call], lambda done: contract.generate_chunks(done, parameters, full_text=full), closing=False
            )

        def shaped(done: Generated) -> Any:
            reply = contract.generate_response(done, parameters, full_text=full)
            return [reply] if listed else reply

        return await self._reply(call, shaped)

    async def _completions(self, request: Request) -> web.StreamResponse:
        body = request.body
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if body.get("suffix") is not None:
            raise Problem.named(422, "suffix not supported", "Suffix is not supported and can be achieved otherwise.")
        if len(prompts) > self._limits.max_client_batch_size:
            raise Problem.named(
                422,
                "batch size exceeded",
                f"Number of prompts exceeds the maximum allowed batch size of {self._limits.max_client_batch_size}",
            )
        parameters = contract.completion_parameters(body)
        calls = [Call(request=request, prompt=prompt, parameters=parameters) for prompt in prompts]
        model = self.model if body.get("model") in (None, "tgi") else str(body["model"])
        if body.get("stream"):
            return await self._stream(calls, lambda done: contract.completion_chunks(done, model), closing=True)
        finished: list[tuple[int, Generated]] = []

        async def one(index: int) -> None:
            finished.append((index, await self._run(calls[index])))

        with self._permits(len(calls)):
            await asyncio.gather(*map(one, range(len(calls))))
            return await self._sent(request, contract.text_completion(finished, model), {})

    async def _tokenize(self, request: Request) -> web.StreamResponse:
        return _json(tokenised(request.body["inputs"]))

    async def _chat_tokenize(self, request: Request) -> web.StreamResponse:
        prompt = self._templated(request.body)
        return _json({"tokenize_response": tokenised(prompt), "templated_text": prompt})

    def _templated(self, body: Body) -> str:
        if not self.chat_template:
            raise contract.template_error("template not found")
        return contract.templated(body["messages"], system_role=self.system_role)

    def _health(self) -> web.Response:
        return web.Response()

    def _models(self) -> web.Response:
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": self.model}
        return _json({"object": "list", "data": [entry]})

    def _metrics(self) -> web.Response:
        stats = self.stats
        lines = [
            f"# TYPE {name} {kind}\n{name} {value}"
            for name, kind, value in (
                ("tgi_queue_size", "gauge", stats.queued),
                ("tgi_batch_current_size", "gauge", stats.running),
                ("tgi_request_count", "counter", stats.requests),
                ("tgi_request_success", "counter", stats.served),
            )
        ]
        lines.append("# TYPE tgi_request_failure counter")
        lines += [f'tgi_request_failure{{err="{name}"}} {count}' for name, count in sorted(stats.failures.items())]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    # -------------------------------------------------------------------------------------- generation

    async def _reply(self, call: Call, shaped: Callable[[Generated], Any]) -> web.StreamResponse:
        with self._permits(call.parameters.get("best_of") or 1):
            done = await self._run(call)
            entry = call.entry
            assert entry is not None  # it was run
            started = entry.started_at or entry.arrived
            total = time.perf_counter() - call.request.arrived
            headers = contract.timing_headers(
                done,
                total=total,
                validation=max(0.0, total - (self._loop.time() - entry.arrived)),
                queue=started - entry.arrived,
                inference=entry.due - started,
            )
            return await self._sent(call.request, shaped(done), headers)

    async def _run(self, call: Call) -> Generated:
        """Validate, queue and generate."""
        await self._prepare(call)
        entry = self._submit(call)
        await self._batch.finish(entry)
        return self._finished(call)

    async def _prepare(self, call: Call) -> None:
        """Every check behind the permit, and what the model is going to say."""
        parameters = call.parameters
        contract.check_parameters(parameters, call.prompt, self._limits)
        if parameters.get("truncate"):
            call.prompt = "".join(pieces(call.prompt)[-parameters["truncate"] :])
        call.inputs = count(call.prompt)
        wanted = parameters.get("max_new_tokens")
        contract.check_lengths(call.inputs, wanted, self._limits)
        call.grammar = read_grammar(parameters.get("grammar"), supported=self.grammars)
        fault = call.request.fault
        if fault is not None and fault.kind == "hang":
            await asyncio.sleep(fault.seconds if fault.seconds is not None else 10**6)
        answer = await self._replies.reply(call.prompt)
        if fault is not None and fault.kind in ("empty_text", "garbage"):
            said = "" if fault.kind == "empty_text" else _garbage(fault, call.request.number)
        elif call.grammar is not None:
            try:
                said = call.grammar.constrain(answer)
            except Problem as problem:
                call.failure, said = problem, ""  # found out in the batch
        else:
            said = spoken(answer, call.prompt, thinking=self.thinking, prefill=call.prefill)
        limit = room(wanted, call.inputs, self.max_input_tokens, self.max_total_tokens)
        call.pieces, call.tokens, call.reason = generated(said, limit, parameters.get("stop") or ())

    def _submit(self, call: Call) -> Entry:
        fault = call.request.fault

        def cost() -> float:
            if call.failure is not None:
                raise call.failure
            call.cached = self._prefixes.cached(pieces(call.prompt)) if self.prefix_block else 0
            seconds = self.latency.seconds(call.request.data, call.inputs - call.cached, call.tokens)
            if fault is not None and fault.kind == "slow":
                seconds += fault.seconds or 0.0
            return seconds + self._compile(call.grammar)

        fails = contract.batch_failed() if fault is not None and fault.kind == "424_batch" else None
        call.entry = self._batch.submit(cost, fails)
        return call.entry

    def _compile(self, grammar: Grammar | None) -> float:
        """The seconds that a grammar costs, and everybody in the batch with it; the last 32 cost nothing."""
        if grammar is None:
            return 0.0
        known = grammar.key in self._compiled
        self._compiled[grammar.key] = None
        self._compiled.move_to_end(grammar.key)
        if known:
            return 0.0
        if len(self._compiled) > GRAMMARS_KEPT:
            self._compiled.popitem(last=False)
        self._counts.numbers["grammars_compiled"] += 1
        seconds = self.latency.grammar * self.latency.time_scale
        self._batch.stall(seconds)
        return seconds

    def _finished(self, call: Call) -> Generated:
        if self.prefix_block:
            self._prefixes.insert(pieces(call.prompt))
        sampled = contract.is_sampled(call.parameters)
        numbers = self._counts.numbers
        numbers["prompt_tokens"] += call.inputs
        numbers["cached_tokens"] += call.cached
        numbers["generated_tokens"] += call.tokens
        numbers["sampled"] += sampled
        return Generated(
            pieces=call.pieces,
            prompt=call.prompt,
            prompt_tokens=call.inputs,
            tokens=call.tokens,
            reason=call.reason,
            sampled=sampled,
            seed=call.parameters.get("seed"),
        )

    async def _sent(self, request: Request, value: Any, headers: Mapping[str, str]) -> web.StreamResponse:
        """A 200 with ``value``, or what a fault makes of it."""
        self._counts.serve(request.data)
        data = dumps(value).encode("utf-8", "replace")
        fault = request.fault
        kind = "" if fault is None else fault.kind
        if kind == "truncated_json":
            data = data[: len(data) // 2]
        if kind == "wrong_content_type":
            return web.Response(body=data, headers=headers, content_type="text/html")
        response = web.Response(body=data, headers=headers, content_type="application/json")
        if fault is None:
            return response
        if kind == "reset_middle":
            half = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
            await half.prepare(request.raw)
            await half.write(data[: len(data) // 2])
            await asyncio.sleep(0.01)
            _close(request.raw)
            return half
        if kind == "reset_after" and not fault.late:
            _reset(request.raw)
        elif kind == "reset_after":
            await response.prepare(request.raw)
            await response.write_eof()
            self._loop.call_later(0.01, _close, request.raw)
        return response

    async def _stream(
        self, calls: Sequence[Call], chunked: Callable[[Generated], list[Body]], *, closing: bool
    ) -> web.StreamResponse:
        """Server-sent events, one for each token, in the time that they take; errors are events, too."""
        request = calls[0].request
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "x-compute-type": "cpu+emulated",
                "x-compute-characters": str(sum(len(call.prompt) for call in calls)),
            }
        )
        await response.prepare(request.raw)
        try:
            with self._permits(len(calls)):
                for call in calls:
                    await self._events(response, call, chunked)
            self._counts.serve(request.data)
        except Problem as problem:
            self._counts.failures[problem.label] += 1
            if closing:  # the routes in OpenAI's form name every error 422
                event: Body = {"error": {"message": problem.message, "http_status_code": 422}}
            else:
                event = json.loads(problem.body)
            await response.write(_event(event))
        if closing:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _events(
        self, response: web.StreamResponse, call: Call, chunked: Callable[[Generated], list[Body]]
    ) -> None:
        await self._prepare(call)
        entry = self._submit(call)
        await self._batch.begin(entry)
        assert entry.started_at is not None  # it was waited for
        fault = call.request.fault
        try:
            chunks = [] if entry.error else chunked(self._finished(call))
            for at, chunk in enumerate(chunks):
                await asyncio.sleep((entry.due - entry.started_at) / len(chunks))
                if entry.error:
                    break
                if fault is not None and fault.kind == "reset_middle" and at >= len(chunks) // 2:
                    _close(call.request.raw)
                await response.write(_event(chunk))
            await self._batch.finish(entry)
        finally:
            self._batch.leave(entry)

    # -------------------------------------------------------------------------------------- administration

    async def _administer(self, raw: web.BaseRequest) -> web.Response:
        """``/_emulator/stats`` (GET, DELETE) and ``/_emulator/faults`` (GET, PUT or POST, DELETE)."""
        if raw.path == "/_emulator/stats":
            if raw.method == "DELETE":
                self.reset_stats()
            return _json(self.stats.to_json())
        if raw.path != "/_emulator/faults":
            return web.Response(status=404)
        try:
            if raw.method in ("PUT", "POST"):
                given = json.loads(await raw.content.read())
                faults = [Fault.from_json(one) for one in (given if isinstance(given, list) else [given])]
                if raw.method == "PUT":
                    self.script.replace(faults)
                for fault in faults if raw.method == "POST" else ():
                    self.script.add(fault)
            elif raw.method == "DELETE":
                self.script.replace(())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=422)
        return _json([fault.to_json() for fault in self.script if not callable(fault.on)])


@dataclass(kw_only=True, eq=False)
class Request:
    """A request for text: its number, and what came with it."""

    raw: web.BaseRequest = field(repr=False)
    path: str
    data: bytes = field(repr=False)
    body: Body
    number: int = 0
    fault: Fault | None = None
    arrived: float = 0.0

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as they came, of any case."""
        return self.raw.headers


@dataclass(kw_only=True, eq=False)
class Call:
    """One generation of a request, as it is prepared."""

    request: Request
    prompt: str
    parameters: Body
    prefill: str = ""
    inputs: int = 0
    cached: int = 0
    grammar: Grammar | None = None
    failure: Problem | None = None
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    reason: str = ""
    entry: Entry | None = None


_FIELDS: Mapping[str, Mapping[str, contract.Kind]] = {
    "/": contract.GENERATE_FIELDS,
    "/generate": contract.GENERATE_FIELDS,
    "/generate_stream": contract.GENERATE_FIELDS,
    "/tokenize": contract.GENERATE_FIELDS,
    "/v1/chat/completions": contract.CHAT_FIELDS,
    "/chat_tokenize": contract.CHAT_FIELDS,
    "/v1/completions": contract.COMPLETION_FIELDS,
}
_PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "429": contract.overloaded,
    "500": contract.incomplete,
    "413": lambda: Problem(413, "Failed to buffer the request body: length limit exceeded", label="validation"),
    "text_422": lambda: contract.undeserialisable("messages: missing field `role`", 0),
}


def _json(value: Any) -> web.Response:
    return web.Response(body=dumps(value).encode("utf-8", "replace"), content_type="application/json")


def _refusal(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    data = problem.body.encode("utf-8", "replace")
    return web.Response(
        status=problem.status, body=data, headers={**(headers or {}), "Content-Type": problem.content_type}
    )


def _event(value: Any) -> bytes:
    return b"data: " + dumps(value).encode("utf-8", "replace") + b"\n\n"


def _garbage(fault: Fault, number: int) -> str:
    """Random text, the same for the same number."""
    if fault.text is not None:
        return fault.text
    draw = fault.draw(number)
    return "".join(draw.choice(_SYLLABLES) for _ in range(draw.randrange(5, 60)))


def _reset(raw: web.BaseRequest) -> None:
    """Reset the connection: the client sees ECONNRESET."""
    if raw.transport is not None:
        connection = raw.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.transport.abort()


def _close(raw: web.BaseRequest) -> None:
    """End the connection; what was written still arrives."""
    if raw.transport is not None:
        raw.transport.close()
