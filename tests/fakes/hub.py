"""A Hub on loopback for datasets: repositories, rights, uploads by LFS or Xet, commits, and faults on demand.

It is written from what ``huggingface_hub`` and ``datasets`` send and accept, and was never compared with the real one.
Large files live on a second port, as they live on another host at the real Hub, which refuses a Hub token.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.fakes.hub_routes import HANDLERS, NAMES, ROUTES, STORAGE_ROUTES, Api, Routes
from tests.fakes.repositories import TOKEN, USER, Refused, Reply, Request

__all__ = ["STORAGES", "TOKEN", "USER", "Hub", "both_storages", "log_in", "point_at", "running"]


@dataclass(frozen=True)
class Call:
    """A request that came in, and what it was answered; status 0 where the connection was dropped."""

    route: str
    method: str
    path: str
    user: str | None
    status: int


@dataclass
class Fault:
    """What goes wrong at a route; ``after`` as many good requests, ``times`` times (-1: always)."""

    route: str
    status: int
    times: int
    after: int
    lost: bool
    message: str
    headers: Mapping[str, str]


class Hub(Api):
    """A running Hub. ``storage`` is lfs or xet."""

    def __init__(self, folder: Path, storage: str = "lfs") -> None:
        super().__init__(folder, storage)
        self.log: list[Call] = []
        self._faults: list[Fault] = []
        self._hooks: list[tuple[str, Callable[[], object]]] = []
        self._servers = [_serve(self, ROUTES), _serve(self, STORAGE_ROUTES)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def close(self) -> None:
        """Stop both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def calls(self, route: str) -> list[Call]:
        """The requests of a route so far."""
        return [call for call in self.log if call.route == route]

    def fail(
        self,
        route: str,
        status: int = 503,
        *,
        times: int = 1,
        after: int = 0,
        lost: bool = False,
        message: str = "Service Unavailable",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer a route with an error; status 0 drops the connection, ``lost`` does the work before that."""
        assert route in NAMES, f"no such route: {route}"
        self._faults.append(Fault(route, status, times, after, lost, message, headers or {}))

    def before(self, route: str, function: Callable[[], object]) -> None:
        """Run a function once, before the next request of a route is looked at."""
        assert route in NAMES, f"no such route: {route}"
        self._hooks.append((route, function))

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a process that is to talk to this Hub, and of which nothing else is kept."""
        dropped = ("HF_", "HUGGING", "XDG_CACHE", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        more = {"HF_TOKEN": token} if token else {}
        return {
            **kept,
            **more,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "0" if self.storage == "xet" else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

    # Dispatch.

    def answer(self, request: Request, routes: Routes) -> Reply | None:
        """The reply to a request; ``None`` drops the connection."""
        for pattern, methods, name in routes:
            if request.method in methods and (match := re.fullmatch(pattern, request.path)):
                return self._answer(request, name, match, routes is ROUTES)
        self.log.append(Call("unknown", request.method, request.path, None, 404))
        return Refused(404, "Not Found").reply

    def _answer(self, request: Request, name: str, match: re.Match[str], authenticated: bool) -> Reply | None:
        for index, (route, function) in enumerate(self._hooks):
            if route == name:
                del self._hooks[index]
                function()
                break
        fault = self._fault(name)
        reply: Reply | None = None
        if fault is None or fault.lost:
            reply = self._reply(request, name, match, authenticated)
        if fault and fault.status:
            reply = _broken(fault)
        elif fault:
            reply = None
        self.log.append(Call(name, request.method, request.path, request.user, reply.status if reply else 0))
        return reply

    def _fault(self, name: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.route != name or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _reply(self, request: Request, name: str, match: re.Match[str], authenticated: bool) -> Reply:
        groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
        try:
            with self._lock:
                if authenticated:
                    self._authenticate(request)
                elif "Authorization" in request.headers:
                    raise Refused(400, "Only one auth mechanism allowed")
                return getattr(self, HANDLERS.get(name, name))(request, **groups)
        except Refused as refused:
            return refused.reply


def _broken(fault: Fault) -> Reply:
    """The page of a gateway for a failure of the server, JSON for the rest."""
    if fault.status < 500:
        reply = Refused(fault.status, fault.message).reply
    else:
        page = f"<html><body><h1>{fault.status} {fault.message}</h1></body></html>"
        reply = Reply(fault.status, page.encode(), {"Content-Type": "text/html"})
    reply.headers |= fault.headers
    return reply


def _serve(hub: Hub, routes: Routes) -> ThreadingHTTPServer:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _any(self) -> None:
            url = urlsplit(self.path)
            request = Request(
                self.command, url.path, parse_qs(url.query, keep_blank_values=True), self.headers, self._body()
            )
            reply = hub.answer(request, routes)
            if reply is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            size = reply.file.stat().st_size if reply.file else len(reply.body)
            for key, value in {**reply.headers, "Content-Length": str(size)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD" or reply.status == 304:
                return
            if reply.file:
                with reply.file.open("rb") as file:
                    while block := file.read(1 << 20):
                        self.wfile.write(block)
            else:
                self.wfile.write(reply.body)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            blocks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(blocks)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _any

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, OSError):
                """The client has gone; a killed one is what some tests are about."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries of this process, which read their environment when they were imported, use a Hub.

    Their caches become its own: `datasets` serves a cached copy where access is denied. Nothing sleeps between
    the library's own retries.
    """
    import datasets
    import huggingface_hub
    import huggingface_hub.utils._http as http
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    home = hub.home
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": hub.storage != "xet",
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    # Before 1.0 this module had a copy of it.
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False
    )
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
    }.items():
        monkeypatch.setattr(datasets.config, name, value, raising=False)
    clock = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    clock.sleep = lambda _: None
    monkeypatch.setattr(http, "time", clock)
    HfFileSystem.clear_instance_cache()
    assert huggingface_hub.HfApi().endpoint == hub.url


def log_in(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a token, or none, for whatever this process asks of the Hub from now on."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def _no_xet() -> bool:
    try:
        from hf_xet import XetSession  # noqa: F401
    except ImportError:
        return True
    return False


STORAGES = ["lfs", pytest.param("xet", marks=pytest.mark.skipif(_no_xet(), reason="no hf_xet with sessions"))]
both_storages = pytest.mark.parametrize("hub", STORAGES, indirect=True)
"""Runs a test that uses the fixture ``hub`` in both storage modes."""


@contextmanager
def running(folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub to which this process is logged in as its writer."""
    hub = Hub(folder, storage)
    try:
        point_at(hub, monkeypatch)
        log_in(TOKEN, monkeypatch)
        yield hub
    finally:
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()
        hub.close()
