"""A request as the emulator keeps it, and what is sent back: whole, refused, or broken by a fault."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from arhn_datasets.testing.faults import Fault, Seen
from arhn_datasets.testing.problems import Problem, dumps, incomplete, overloaded, too_large, undeserialisable

_PAGE = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr>nginx</body></html>\n"
_REASONS = {"502": "502 Bad Gateway", "503": "503 Service Temporarily Unavailable", "504": "504 Gateway Time-out"}
_PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "429": overloaded,
    "500": incomplete,
    "413": lambda: too_large("validation"),
    "text_422": lambda: undeserialisable("messages: missing field `role`", 0),
}
_SYLLABLES = ("ka", "\u2582", "lo", " ", "{", "]", "zu", "0", ">", "\u00e9n", "mi", '"', "tr", "[", "9")


@dataclass(kw_only=True, eq=False)
class Request(Seen):
    """A request: its number, and what came with it."""

    raw: web.BaseRequest = field(repr=False)
    data: bytes = field(default=b"", repr=False)
    fault: Fault | None = None
    arrived: float = 0.0
    tokens: int = 0

    @property
    def method(self) -> str:
        """GET or POST."""
        return self.raw.method

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as they came, of any case."""
        return self.raw.headers

    @property
    def trouble(self) -> str:
        """The kind of its fault, empty where it has none."""
        return "" if self.fault is None else self.fault.kind


def encoded(value: Any) -> bytes:
    """JSON in UTF-8, whatever the text of a reply is made of."""
    return dumps(value).encode("utf-8", "replace")


def json_response(value: Any) -> web.Response:
    """A 200 with JSON."""
    return web.Response(body=encoded(value), content_type="application/json")


def refusal(problem: Problem) -> web.Response:
    """What is sent for a problem."""
    headers = {**problem.headers, "Content-Type": problem.content_type}
    return web.Response(status=problem.status, body=problem.body.encode("utf-8", "replace"), headers=headers)


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + encoded(value) + b"\n\n"


def unserved(request: Request, fault: Fault) -> web.Response | None:
    """What a fault sends before the request is looked at, None where it strikes later.

    Raises:
        Problem: the fault is one of the server's own refusals.
    """
    kind = fault.kind
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    if kind in _REASONS:
        page = _PAGE.format(_REASONS[kind])
        return web.Response(status=int(kind), text=page, content_type="text/html", headers=headers)
    if kind == "html_200":
        return web.Response(text=_PAGE.format("Sign in"), content_type="text/html")
    if kind == "401":
        return web.Response(status=401)
    if kind in _PROBLEMS:
        problem = _PROBLEMS[kind]()
        problem.headers = headers
        raise problem
    if kind == "reset_before":
        _reset(request.raw)
        return web.Response(status=500)
    return None


async def served(request: Request, value: Any, headers: Mapping[str, str]) -> web.StreamResponse:
    """A 200 with ``value``, or what a fault makes of it."""
    data, fault = encoded(value), request.fault
    if request.trouble == "truncated_json":
        data = data[: len(data) // 2]
    kind = "text/html" if request.trouble == "wrong_content_type" else "application/json"
    response = web.Response(body=data, headers=headers, content_type=kind)
    if fault is None:
        return response
    if fault.kind == "reset_middle":
        half = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
        await half.prepare(request.raw)
        await half.write(data[: len(data) // 2])
        await asyncio.sleep(0.01)
        close(request.raw)
        return half
    if fault.kind == "reset_after" and not fault.late:
        _reset(request.raw)
    elif fault.kind == "reset_after":
        await response.prepare(request.raw)
        await response.write_eof()
        asyncio.get_running_loop().call_later(0.01, close, request.raw)
    return response


def garbage(fault: Fault, number: int) -> str:
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


def close(raw: web.BaseRequest) -> None:
    """End the connection; what was written still arrives."""
    if raw.transport is not None:
        raw.transport.close()
