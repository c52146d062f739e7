"""TGI's routes over a batch, a fault script and an annotator.

Server contract: text-generation-inference 3.3. The order of checks is that of the router: authorisation, media type,
size, JSON, fields, chat template, permit (429), parameters, lengths, grammar, queue, batch. In a stream whatever comes
after the template arrives as an event, with status 200.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from arhn_datasets.testing import shapes
from arhn_datasets.testing.counts import Counts
from arhn_datasets.testing.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    GENERATE_FIELDS,
    VERTEX_FIELDS,
    Kind,
    deserialise,
    parsed,
)
from arhn_datasets.testing.grammar import Grammar, read_grammar
from arhn_datasets.testing.latency import Batch, Entry, PrefixCache
from arhn_datasets.testing.parameters import (
    chat_parameters,
    check_lengths,
    check_parameters,
    check_tool_call,
    completion_parameters,
    content_of,
    is_sampled,
    templated,
)
from arhn_datasets.testing.problems import Problem, batch_failed, overloaded, template_error, too_large
from arhn_datasets.testing.replies import Replies, spoken
from arhn_datasets.testing.responses import Request, close, event, garbage, json_response, refusal, served, unserved
from arhn_datasets.testing.shapes import Body
from arhn_datasets.testing.tokens import count, generated, pieces, room, tokenised

if TYPE_CHECKING:
    from arhn_datasets.testing.emulator import Emulator

GRAMMARS_KEPT = 32


@dataclass(kw_only=True, eq=False)
class Call(shapes.Generation):
    """One generation of a request, as it is prepared."""

    request: Request
    prefill: str = ""
    cached: int = 0
    grammar: Grammar | None = None
    failure: Problem | None = None


class Service:
    """What the routes do for as long as the server runs; lives on its event loop."""

    def __init__(self, server: Emulator) -> None:
        self.counts = Counts()
        self.batch = Batch(server.slots, drops=server.drops)
        self._server = server
        self._replies = Replies(server.reply)
        self.forget()
        self._gets: dict[str, Callable[[], web.Response]] = {
            "/": web.Response,
            "/health": web.Response,
            "/ping": web.Response,
            "/info": lambda: json_response(server.info()),
            "/v1/models": self._models,
            "/metrics": self._metrics,
        }
        self._posts: dict[str, tuple[Mapping[str, Kind], Callable[[Request], Awaitable[web.StreamResponse]]]] = {
            "/": (GENERATE_FIELDS, self._generate),
            "/invocations": (GENERATE_FIELDS, self._generate),
            "/generate": (GENERATE_FIELDS, self._generate),
            "/generate_stream": (GENERATE_FIELDS, self._generate),
            "/vertex": (VERTEX_FIELDS, self._vertex),
            "/tokenize": (GENERATE_FIELDS, self._tokenize),
            "/v1/chat/completions": (CHAT_FIELDS, self._chat),
            "/chat_tokenize": (CHAT_FIELDS, self._chat_tokenize),
            "/v1/completions": (COMPLETION_FIELDS, self._completions),
        }

    def forget(self) -> None:
        """Begin with empty caches."""
        self._prefixes = PrefixCache(self._server.prefix_block)
        self._compiled: OrderedDict[str, None] = OrderedDict()

    # -------------------------------------------------------------------------------------- requests

    async def answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        """The response to one request, with the headers that the router adds to all."""
        response = await self._answer(raw)
        if not response.prepared:
            response.headers.update(shapes.ON_EVERY_REPLY)
        return response

    async def _answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        path = raw.path
        self.counts.by_path[path] += 1
        if not self._server.declared and path in ("/info", "/metrics"):
            return web.Response(status=404)
        if raw.method in ("GET", "HEAD") and path in self._gets:
            return await self._get(raw)
        allowed = ", ".join(
            [*(["GET", "HEAD"] if path in self._gets else []), *(["POST"] if path in self._posts else [])]
        )
        if not allowed:
            return web.Response(status=404)
        if raw.method not in allowed.split(", "):
            return web.Response(status=200 if raw.method == "OPTIONS" else 405, headers={"Allow": allowed})
        counted = not path.endswith("tokenize")
        try:
            response = await self._post(raw, counted)
        except Problem as problem:
            if problem.label:
                self.counts.failures[problem.label] += 1
            response = refusal(problem)
        except asyncio.CancelledError:
            self.counts.numbers["cancelled"] += counted
            self.counts.failures["dropped"] += counted
            raise
        if counted:
            self.counts.by_status[str(response.status)] += 1
        return response

    async def _get(self, raw: web.BaseRequest) -> web.StreamResponse:
        request = Request(raw=raw, path=raw.path, number=self.counts.by_path[raw.path], body={})
        given = await self._intercepted(request) if self._server.intercept else None
        if given is not None:
            return given
        fault = self._server.script.pick(request, request.path)
        if fault is None:
            return self._gets[request.path]()
        self.counts.faults[fault.kind] += 1
        if fault.kind == "info_missing":
            return web.Response(status=404)
        return refusal(Problem.named(503, "healthcheck", "unhealthy"))

    async def _post(self, raw: web.BaseRequest, counted: bool) -> web.StreamResponse:
        server, path = self._server, raw.path
        key = f"Bearer {server.api_key}".casefold()
        if server.api_key and path != "/chat_tokenize" and raw.headers.get("Authorization", "").casefold() != key:
            return web.Response(status=401)
        data = await raw.content.read()
        if not re.fullmatch(r"application/(.+\+)?json", raw.content_type):
            raise Problem(415, "Expected request with `Content-Type: application/json`")
        if len(data) > server.payload_limit:
            raise too_large()
        body = parsed(data)
        request = Request(raw=raw, path=path, data=data, body=body if isinstance(body, dict) else {}, number=0)
        request.arrived = time.perf_counter()
        request.number = self.counts.see(data) if counted else self.counts.by_path[path]
        if counted:
            server.requests.append(request)
        early = await self._intercepted(request) if server.intercept else None
        if early is None and counted:
            early = await self._struck(request)
        if early is not None:
            return early
        fields, route = self._posts[path]
        deserialise(body, fields, len(data))
        return await route(request)

    async def _intercepted(self, request: Request) -> web.StreamResponse | None:
        intercept = self._server.intercept
        given = None if intercept is None else intercept(request)
        return await given if inspect.isawaitable(given) else given

    async def _struck(self, request: Request) -> web.StreamResponse | None:
        """What a fault does before the request is looked at."""
        fault = request.fault = self._server.script.pick(request)
        if fault is None:
            return None
        self.counts.faults[fault.kind] += 1
        if fault.kind == "restart":
            self._server.restart(10.0 if fault.seconds is None else fault.seconds)
            await asyncio.sleep(60.0)  # until its connection is reset
        if fault.kind == "model_change":
            self._server.model = fault.model or f"{self._server.model}-changed"
            self._server.revision = fault.revision
        return unserved(request, fault)

    @contextmanager
    def _permits(self, count: int) -> Iterator[None]:
        """Hold permits for the whole request; there is no waiting for one."""
        if self.counts.in_flight + count > self._server.max_concurrent_requests:
            raise overloaded()
        self.counts.enter(count)
        try:
            yield
        finally:
            self.counts.in_flight -= count

    # -------------------------------------------------------------------------------------- routes

    async def _chat(self, request: Request) -> web.StreamResponse:
        body = request.body
        prompt = self._templated(body)
        last = body["messages"][-1] if body["messages"] else {}
        prefill = content_of(last).rstrip() if last.get("role") == "assistant" else ""
        call = Call(request=request, prompt=prompt, parameters=chat_parameters(body), prefill=prefill)
        self.counts.numbers["penalised"] += body.get("presence_penalty") is not None
        said: Body = {"model": self._model_of(body), "logprobs": bool(body.get("logprobs"))}
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self._stream([call], partial(shapes.chat_chunks, usage=usage, **said), closing=True)

        def shaped(done: Call) -> Any:
            if body.get("tools") is not None:
                check_tool_call(done.text)
            return shapes.chat_completion(done, **said)

        return await self._reply(call, shaped)

    async def _generate(self, request: Request) -> web.StreamResponse:
        compatible = request.path in ("/", "/invocations")  # with the interface of a pipeline
        # Without the object TGI's own default is to sample, with an empty one it is not.
        parameters = request.body.get("parameters", {"do_sample": True})
        call = Call(request=request, prompt=request.body["inputs"], parameters=parameters)
        asked = parameters.get("return_full_text")
        full = compatible if asked is None else asked
        if request.path == "/generate_stream" or (compatible and request.body.get("stream")):
            return await self._stream([call], partial(shapes.generate_chunks, full_text=full), closing=False)

        def shaped(done: Call) -> Any:
            reply = shapes.generate_response(done, full_text=full)
            return [reply] if compatible else reply

        return await self._reply(call, shaped)

    async def _completions(self, request: Request) -> web.StreamResponse:
        body, most = request.body, self._server.limits.max_client_batch_size
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if body.get("suffix") is not None:
            raise Problem.named(422, "suffix not supported", "Suffix is not supported and can be achieved otherwise.")
        if len(prompts) > most:
            said = f"Number of prompts exceeds the maximum allowed batch size of {most}"
            raise Problem.named(422, "batch size exceeded", said)
        parameters, model = completion_parameters(body), self._model_of(body)
        calls = [Call(request=request, prompt=prompt, parameters=parameters) for prompt in prompts]
        if body.get("stream"):
            return await self._stream(calls, partial(shapes.completion_chunks, model=model), closing=True)
        finished: list[tuple[int, Call]] = []

        async def one(index: int) -> None:
            await self._run(calls[index])
            finished.append((index, calls[index]))

        with self._permits(len(calls)):
            await asyncio.gather(*map(one, range(len(calls))))
            return await self._sent(request, shapes.text_completion(finished, model), {})

    async def _vertex(self, request: Request) -> web.StreamResponse:
        calls = []
        for instance in request.body["instances"]:
            if "inputs" in instance:
                prompt, parameters = instance["inputs"], instance.get("parameters", {})
            else:
                prompt, parameters = self._templated(instance), chat_parameters(instance)
            calls.append(Call(request=request, prompt=prompt, parameters=parameters))
        with self._permits(len(calls)):
            await asyncio.gather(*map(self._run, calls))
            return await self._sent(request, {"predictions": [call.text for call in calls]}, {})

    async def _tokenize(self, request: Request) -> web.StreamResponse:
        return json_response(tokenised(request.body["inputs"]))

    async def _chat_tokenize(self, request: Request) -> web.StreamResponse:
        prompt = self._templated(request.body)
        return json_response({"tokenize_response": tokenised(prompt), "templated_text": prompt})

    def _templated(self, body: Mapping[str, Any]) -> str:
        if not self._server.chat_template:
            raise template_error("template not found")
        return templated(body["messages"], system_role=self._server.system_role)

    def _model_of(self, body: Mapping[str, Any]) -> str:
        named = body.get("model")
        return self._server.model if named in (None, "tgi") else str(named)

    def _models(self) -> web.Response:
        model = self._server.model
        return json_response(
            {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": model}]}
        )

    def _metrics(self) -> web.Response:
        stats = self._server.stats
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

    async def _reply(self, call: Call, shaped: Callable[[Call], Any]) -> web.StreamResponse:
        with self._permits(call.parameters.get("best_of") or 1):
            entry = await self._run(call)
            started = entry.started_at or entry.arrived
            total = time.perf_counter() - call.request.arrived
            waited = asyncio.get_running_loop().time() - entry.arrived
            headers = shapes.timing_headers(
                call,
                total=total,
                validation=max(0.0, total - waited),
                queue=started - entry.arrived,
                inference=entry.due - started,
            )
            return await self._sent(call.request, shaped(call), headers)

    async def _run(self, call: Call) -> Entry:
        """Validate, queue and generate."""
        await self._prepare(call)
        entry = self._submit(call)
        await self.batch.finish(entry)
        self._count(call)
        return entry

    async def _prepare(self, call: Call) -> None:
        """Every check behind the permit, and what the model is going to say."""
        server, parameters, fault = self._server, call.parameters, call.request.fault
        check_parameters(parameters, call.prompt, server.limits)
        if parameters.get("truncate"):
            call.prompt = "".join(pieces(call.prompt)[-parameters["truncate"] :])
        call.inputs = count(call.prompt)
        wanted = parameters.get("max_new_tokens")
        check_lengths(call.inputs, wanted, server.limits)
        call.grammar = read_grammar(parameters.get("grammar"), supported=server.grammars)
        if fault is not None and fault.kind == "hang":
            await asyncio.sleep(fault.seconds if fault.seconds is not None else 10**6)
        if self._replies.speaker is not server.reply:
            self._replies = Replies(server.reply)
        answer = await self._replies.reply(call.prompt)
        if fault is not None and fault.kind in ("empty_text", "garbage"):
            said = "" if fault.kind == "empty_text" else garbage(fault, call.request.number)
        elif call.grammar is not None:
            try:
                said = call.grammar.constrain(answer)
            except Problem as problem:
                call.failure, said = problem, ""  # found out in the batch
        else:
            said = spoken(answer, call.prompt, thinking=server.thinking, prefill=call.prefill)
        limit = room(wanted, call.inputs, server.max_input_tokens, server.max_total_tokens)
        call.pieces, call.tokens, call.reason = generated(said, limit, parameters.get("stop") or ())

    def _submit(self, call: Call) -> Entry:
        request, latency = call.request, self._server.latency

        def cost() -> float:
            if call.failure is not None:
                raise call.failure
            call.cached = self._prefixes.cached(pieces(call.prompt)) if self._server.prefix_block else 0
            served = self.counts.numbers["served"]
            seconds = latency.seconds(request.data, call.inputs - call.cached, call.tokens, served)
            if request.fault is not None and request.fault.kind == "slow":
                seconds += request.fault.seconds or 0.0
            return seconds + self._compile(call.grammar)

        return self.batch.submit(cost, batch_failed() if request.trouble == "424_batch" else None)

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
        self.counts.numbers["grammars_compiled"] += 1
        seconds = self._server.latency.grammar * self._server.latency.time_scale
        self.batch.stall(seconds)
        return seconds

    def _count(self, call: Call) -> None:
        if self._server.prefix_block:
            self._prefixes.insert(pieces(call.prompt))
        numbers = self.counts.numbers
        numbers["prompt_tokens"] += call.inputs
        numbers["cached_tokens"] += call.cached
        numbers["generated_tokens"] += call.tokens
        numbers["sampled"] += is_sampled(call.parameters)

    async def _sent(self, request: Request, value: Any, headers: Mapping[str, str]) -> web.StreamResponse:
        self.counts.serve(request.data)
        return await served(request, value, headers)

    async def _stream(
        self, calls: Sequence[Call], chunked: Callable[[Call], list[Body]], *, closing: bool
    ) -> web.StreamResponse:
        """Server-sent events, one for each token, in the time that they take; errors are events, too."""
        request = calls[0].request
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **shapes.ON_EVERY_REPLY,
                "x-compute-type": "cpu+emulated",
                "x-compute-characters": str(sum(len(call.prompt) for call in calls)),
            }
        )
        await response.prepare(request.raw)
        try:
            with self._permits(len(calls)):
                for call in calls:
                    await self._events(response, call, chunked)
            self.counts.serve(request.data)
        except Problem as problem:
            self.counts.failures[problem.label] += 1
            # The routes in OpenAI's form name every error 422.
            named = {"error": {"message": problem.message, "http_status_code": 422}}
            await response.write(event(named if closing else json.loads(problem.body)))
        if closing:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _events(self, response: web.StreamResponse, call: Call, chunked: Callable[[Call], list[Body]]) -> None:
        await self._prepare(call)
        entry = self._submit(call)
        await self.batch.begin(entry)
        assert entry.started_at is not None  # it was waited for
        try:
            if not entry.error:
                self._count(call)
            chunks = [] if entry.error else chunked(call)
            for at, chunk in enumerate(chunks):
                await asyncio.sleep((entry.due - entry.started_at) / len(chunks))
                if entry.error:
                    break
                if call.request.trouble == "reset_middle" and at >= len(chunks) // 2:
                    close(call.request.raw)
                await response.write(event(chunk))
            await self.batch.finish(entry)
        finally:
            self.batch.leave(entry)
