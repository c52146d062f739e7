"""A server with the chat API of text-generation-inference on loopback, in a thread of its own.

Its replies come from a function of the prompt, and a script of faults can stand before them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

from aiohttp import web

from arhn_datasets import Lexical
from arhn_datasets.annotators.prompts import WORD_JOINER
from arhn_datasets.annotators.requests import RankingRequest, SnippetRequest

INFO = {
    "model_id": "some/model",
    "model_sha": "0123abcd",
    "max_concurrent_requests": 32,
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "version": "3.3.6",
    "router": "text-generation-router",
}


def parts_of(prompt):
    """Query, and passage text or candidates, of one of our prompts."""
    prompt = prompt.replace(WORD_JOINER, "")
    head, _, tail = prompt.rpartition("\n\n<passage>\n")
    if head:
        return head.rpartition("\n\n")[2].partition(": ")[2], tail.rpartition("\n</passage>\n\n")[0]
    head, _, tail = prompt.rpartition("\n\nCandidates:\n")
    listed = tail.rpartition("\n\nRanking of all")[0].splitlines()
    return head.rpartition("\n\n")[2].partition(": ")[2], [line.partition("] ")[2] for line in listed]


def lexical_reply(prompt):
    """What a model that works like the lexical baseline would reply."""
    query, shown = parts_of(prompt)
    annotator = Lexical(threshold=0.3)
    if isinstance(shown, str):
        passage = {"text": shown.partition("\n\n")[2] or shown}
        request = SnippetRequest(query=query, passage=passage, task="question", background=(query,))
        return drive(annotator.snippet(request)).snippet or "NO_ANSWER"
    request = RankingRequest(query=query, candidates=tuple(shown), task="question", background=(query,))
    return " > ".join(f"[{i + 1}]" for tier in drive(annotator.ranking(request)).tiers for i in tier)


def drive(coroutine):
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")


def completion(text, finish_reason="stop", model="some/model"):
    """The body of a chat completion as TGI serialises it."""
    return {
        "object": "chat.completion",
        "id": "",
        "created": 0,
        "model": model,
        "system_fingerprint": "3.3.6-native",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


class Server:
    """``with Server(reply) as server: server.url``.

    Attributes set before the first request: ``api`` ("tgi" or "openai"), ``info``, ``api_key``, ``delay`` in seconds.
    ``fault(number, prompt)`` may return a response instead of the reply, for the request of that number;
    ``get_fault(number, path)`` the same for the GET of that number. A coroutine is awaited, a function called with
    the request.
    """

    def __init__(self, reply, *, api="tgi"):
        self.reply = reply
        self.api = api
        self.info = dict(INFO)
        self.api_key = None
        self.delay = 0.0
        self.fault = self.get_fault = None
        self.bodies = []
        self.headers = []
        self.paths = Counter()
        self.in_flight = self.most_in_flight = 0

    def __enter__(self):
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def requests(self):
        """How many chat requests came in."""
        return len(self.bodies)

    def _serve(self, ready):
        async def main():
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            app = web.Application()
            app.router.add_route("*", "/{tail:.*}", self._answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(main())

    async def _answer(self, request):
        self.paths[request.path] += 1
        self.headers.append(dict(request.headers))
        if self.get_fault and request.method == "GET":
            number = self.paths["/info"] + self.paths["/v1/models"]
            fault = self.get_fault(number, request.path)
            if fault is not None:
                return await _response(fault, request)
        if request.path == "/info":
            return web.json_response(self.info) if self.api == "tgi" else web.Response(status=404)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.Response(status=401)
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": self.info["model_id"], "object": "model"}]})
        if request.path != "/v1/chat/completions":
            return web.Response(status=404)
        body = await request.json()
        self.bodies.append(body)
        number = len(self.bodies)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await asyncio.sleep(self.delay)
            prompt = body["messages"][-1]["content"]
            fault = self.fault(number, prompt) if self.fault else None
            if fault is not None:
                return await _response(fault, request)
            return web.json_response(completion(self.reply(prompt), model=self.info["model_id"]))
        finally:
            self.in_flight -= 1


async def _response(fault, request):
    fault = fault(request) if callable(fault) else fault
    return await fault if asyncio.iscoroutine(fault) else fault
