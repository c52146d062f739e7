"""OpenAI's ``/v1/files`` and ``/v1/batches`` over the emulator's own chats.

A batch is ``validating``, ``in_progress``, ``finalizing`` and ``completed``; ``failed`` where a line of its file is no
request, ``cancelling`` and ``cancelled`` on demand, ``expired`` where the emulator is to answer only so many lines.
Answers stand in one file in the order of the requests, failures in another one, as OpenAI has it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, ClientTimeout, web

from arhn_datasets.testing.replies import Replies, Speaker

if TYPE_CHECKING:
    from arhn_datasets.testing.emulator import Emulator

Body = dict[str, Any]

CHAT = "/v1/chat/completions"
AT_ONCE = 16
SECONDS = 60.0  # for a chat
ENDED = ("completed", "failed", "expired", "cancelled")


class Batches:
    """The files and batches of an emulator; lives on its event loop."""

    def __init__(self, server: Emulator) -> None:
        self._server = server
        self._files: dict[str, tuple[Body, bytes]] = {}
        self._batches: dict[str, Body] = {}
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        """The response to a request of one of the routes."""
        if self._server.api_key and raw.headers.get("Authorization") != f"Bearer {self._server.api_key}":
            return _refused(401, "Incorrect API key provided", "invalid_api_key")
        _, _, kind, *rest = raw.path.split("/")
        if kind == "files":
            if raw.method == "POST" and not rest:
                return await self._upload(raw)
            if rest and rest[0] in self._files:
                about, content = self._files[rest[0]]
                return web.Response(body=content) if rest[1:] == ["content"] else web.json_response(about)
            return _refused(404, f"No such File object: {'/'.join(rest)}", "not_found")
        if raw.method == "POST" and not rest:
            return self._start(json.loads(await raw.content.read()))
        if not rest:
            listed = list(reversed(self._batches.values()))
            return web.json_response({"object": "list", "data": listed, "has_more": False})
        batch = self._batches.get(rest[0])
        if batch is None:
            return _refused(404, f"No such Batch object: {rest[0]}", "not_found")
        if rest[1:] == ["cancel"] and batch["status"] not in ENDED:
            batch["status"] = "cancelling"
        return web.json_response(batch)

    def stop(self) -> None:
        """Leave what is under way."""
        for task in self._tasks:
            task.cancel()

    async def _upload(self, raw: web.BaseRequest) -> web.Response:
        fields: Body = {}
        reader = await raw.multipart()
        async for part in reader:
            fields[getattr(part, "name", None) or ""] = bytes(await part.read())  # type: ignore[union-attr]
        if "file" not in fields or fields.get("purpose") != b"batch":
            return _refused(400, "'file' and the purpose 'batch' were expected", "invalid_request_error")
        return web.json_response(self._keep("file", fields["file"], "batch"))

    def _keep(self, kind: str, content: bytes, purpose: str) -> Body:
        name = f"{kind}-{next(self._numbers)}"
        about = {"id": name, "object": "file", "bytes": len(content), "purpose": purpose, "created_at": _now()}
        self._files[name] = about, content
        return about

    def _start(self, body: Mapping[str, Any]) -> web.Response:
        source = self._files.get(str(body.get("input_file_id")))
        if source is None or body.get("endpoint") != CHAT or body.get("completion_window") != "24h":
            return _refused(400, "Invalid input_file_id, endpoint or completion_window", "invalid_request_error")
        batch: Body = {
            "id": f"batch_{next(self._numbers)}",
            "object": "batch",
            "endpoint": CHAT,
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": _now(),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        self._batches[batch["id"]] = batch
        task = asyncio.get_running_loop().create_task(self._work(batch, source[1]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response(batch)

    async def _work(self, batch: Body, content: bytes) -> None:
        await asyncio.sleep(self._server.batch_seconds)
        lines = content.splitlines()
        wrong = [number for number, line in enumerate(lines, 1) if not _is_request(line)]
        if wrong:
            errors = [{"code": "invalid_json_line", "message": "not parseable", "line": wrong[0], "param": None}]
            batch.update(status="failed", errors={"object": "list", "data": errors})
            return
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        batch["request_counts"]["total"] = len(lines)
        most = len(lines) if self._server.batch_lines is None else self._server.batch_lines
        told: list[Body] = []
        async with ClientSession(timeout=ClientTimeout(total=SECONDS)) as session:
            for at in range(0, min(most, len(lines)), AT_ONCE):
                if batch["status"] == "cancelling":
                    most = at
                    break
                requests = [json.loads(line) for line in lines[at : min(at + AT_ONCE, most)]]
                told += await asyncio.gather(*(self._asked(session, one) for one in requests))
                batch["request_counts"]["completed"] = sum(one["error"] is None for one in told)
        ending = {"cancelling": "cancelled"}.get(batch["status"], "completed" if most >= len(lines) else "expired")
        if ending != "completed":
            left = [json.loads(line)["custom_id"] for line in lines[most:]]
            error = {"code": f"batch_{ending}", "message": f"This request was not executed: the batch was {ending}."}
            told += [_line(self._number(), name, None, error) for name in left]
        batch["status"] = "finalizing"
        await asyncio.sleep(0)
        good = [one for one in told if one["response"] and one["response"]["status_code"] == 200]
        bad = [one for one in told if one not in good] if len(good) < len(told) else []
        batch["request_counts"]["failed"] = len(bad)
        for name, listed in (("output_file_id", good), ("error_file_id", bad)):
            if listed:
                body = "".join(json.dumps(one) + "\n" for one in listed).encode()
                batch[name] = self._keep("file", body, "batch_output")["id"]
        batch["status"] = ending

    def _number(self) -> str:
        return f"batch_req_{next(self._numbers)}"

    async def _asked(self, session: ClientSession, request: Mapping[str, Any]) -> Body:
        key = self._server.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with session.post(self._server.url + CHAT, json=request["body"], headers=headers) as reply:
            data = await reply.read()
        try:
            body = json.loads(data)
        except ValueError:
            body = {"error": {"message": data.decode("utf-8", "replace"), "type": "server_error"}}
        response = {"status_code": reply.status, "request_id": self._number(), "body": body}
        return _line(self._number(), request["custom_id"], response, None)


def _line(name: str, custom_id: str, response: Body | None, error: Body | None) -> Body:
    return {"id": name, "custom_id": custom_id, "response": response, "error": error}


def _is_request(line: bytes) -> bool:
    try:
        request = json.loads(line)
        return request["url"] == CHAT and request["method"] == "POST" and bool(request["custom_id"] and request["body"])
    except (ValueError, LookupError, TypeError):
        return False


def _refused(status: int, message: str, code: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


def _now() -> int:
    return int(time.time())


async def answered(requests: Iterable[Mapping[str, Any]], speaker: Speaker) -> AsyncIterator[Body]:
    """The lines of the output of a batch run, without a server: for tests of what reads them."""
    replies = Replies(speaker)
    for number, request in enumerate(requests):
        body = request["body"]
        prompt = "\n".join(message["content"] for message in body["messages"])
        said = await replies.reply(prompt)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(said.split()) + 1}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        completion = {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        response = {"status_code": 200, "request_id": f"{number}", "body": completion}
        yield _line(f"batch_req_{number}", request["custom_id"], response, None)
