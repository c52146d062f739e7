"""Files of requests at a provider of OpenAI's ``/v1/files`` and ``/v1/batches``: handed over, looked at, fetched.

What is paid for is handed over once: before a batch is made, the state says so, and where the answer is lost, the
provider's own list tells whether there is one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.annotators.client import contract, refusals
from arhn_datasets.annotators.client.contract import ConnectionOptions, shown_url
from arhn_datasets.annotators.client.planning import Plan, RequestFile
from arhn_datasets.annotators.client.pool import RETRYABLE
from arhn_datasets.annotators.client.request_files import URL, FileLimits, check_file
from arhn_datasets.errors import (
    AccessDenied,
    EndpointError,
    EndpointFailure,
    EndpointOverloaded,
    EndpointsDead,
    EndpointUnavailable,
    OutputError,
    RequestRejected,
)
from arhn_datasets.rows import retries

if TYPE_CHECKING:
    import aiohttp

ENDED = ("completed", "failed", "expired", "cancelled")
REPLIES = "replies"  # folder of what was fetched
WINDOW = "24h"
MARK = "arhn_requests"  # in the metadata of a batch
PAGE_BYTES = 1 << 20
LONGEST_PAUSE = 60.0
MOST_PAGES = 100


@dataclass(kw_only=True)
class Progress:
    """A file of requests and the batch that it is: its state there, and how many requests have ended."""

    file: RequestFile
    status: str = "not submitted"
    completed: int = 0
    failed: int = 0
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in ENDED


class Provider:
    """The API of a provider at a URL; an asynchronous context manager."""

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        self.url, self._options = contract.base_url(url), options
        self.name = shown_url(self.url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Provider:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._options.timeout, sock_read=self._options.timeout)
        key = (self._options.api_key or "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session = aiohttp.ClientSession(timeout=timeout, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def upload(self, path: Path) -> str:
        """Hand a file over; its id there. A file alone costs nothing."""
        import aiohttp

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData()
            data.add_field("purpose", "batch")
            data.add_field("file", path.open("rb"), filename=path.name, content_type="application/jsonl")
            return data

        return str((await self._object("POST", "/v1/files", form=form))["id"])

    async def start(self, file_id: str, mark: str) -> dict[str, Any]:
        """Make a batch of a file. Asked once alone: a lost answer may be that of a batch that is paid for."""
        body = {"input_file_id": file_id, "endpoint": URL, "completion_window": WINDOW, "metadata": {MARK: mark}}
        return await self._object("POST", "/v1/batches", body=body, once=True)

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """What is said of a batch."""
        return await self._object("GET", f"/v1/batches/{batch_id}")

    async def marked(self, mark: str, file_id: str | None) -> dict[str, Any] | None:
        """The batch with this mark or of this file among all of the account, None where there is none."""
        after = ""
        for _ in range(MOST_PAGES):
            page = await self._object("GET", f"/v1/batches?limit=100{after}")
            listed = [one for one in page.get("data") or [] if isinstance(one, dict)]
            for one in listed:
                if (one.get("metadata") or {}).get(MARK) == mark or one.get("input_file_id") == file_id:
                    return one
            if not page.get("has_more") or not listed:
                return None
            after = f"&after={listed[-1].get('id')}"
        return None

    async def fetch(self, file_id: str, target: Path) -> None:
        """Write the content of a file; it has its name when it is whole."""
        partial = target.with_name(f"{target.name}.partial")

        async def read() -> None:
            async with self._session_request("GET", f"/v1/files/{file_id}/content") as reply:
                if reply.status != 200:
                    raise self._error(reply.status, await reply.read(), reply.headers)
                with open(partial, "wb") as file:
                    async for piece in reply.content.iter_chunked(PAGE_BYTES):
                        file.write(piece)

        await self._again(read)
        partial.replace(target)

    # -- one request --------------------------------------------------------------------------------------------------

    async def _object(
        self, method: str, path: str, *, body: Any = None, form: Any = None, once: bool = False
    ) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            sent = {"json": body} if form is None else {"data": form()}
            async with self._session_request(method, path, **sent) as reply:
                data = await reply.read()
                if reply.status not in (200, 201):
                    raise self._error(reply.status, data, reply.headers)
            found = refusals.json_of(data)
            if not isinstance(found, dict):
                said = refusals.excerpt(refusals.without(self._options.api_key, data))
                raise EndpointFailure(f"{method} {path.partition('?')[0]} answered 200 without an object: {said!r}")
            return found

        answered: dict[str, Any] = await (self._told(ask) if once else self._again(ask))
        return answered

    def _session_request(self, method: str, path: str, **sent: Any) -> Any:
        assert self._session is not None
        proxy = contract.proxy_of(self.url)
        return self._session.request(method, self.url + path, allow_redirects=False, proxy=proxy, **sent)

    def _error(self, status: int, data: bytes, headers: Mapping[str, str]) -> EndpointError:
        data = refusals.without(self._options.api_key, data)
        place = refusals.place_of(f"{self.url}/", headers.get("Location"))
        return refusals.error_of(status, data, headers.get("Retry-After"), place)

    async def _told(self, ask: Any) -> Any:
        """One attempt, whose errors of the network are ours."""
        import aiohttp

        try:
            return await ask()
        except asyncio.TimeoutError as error:
            raise EndpointUnavailable(f"no reply from {self.name} within {self._options.timeout:g} seconds") from error
        except aiohttp.ClientError as error:
            raise EndpointUnavailable(f"no connection to {self.name}: {refusals.excerpt(str(error))}") from error

    async def _again(self, ask: Any) -> Any:
        from tenacity import AsyncRetrying

        policy = retries.policy(
            again=lambda error: isinstance(error, RETRYABLE),
            stop=self._options.attempts,
            first=self._options.backoff,
            longest=LONGEST_PAUSE,
            asked=lambda error: error.retry_after if isinstance(error, EndpointOverloaded) else None,
        )

        async def attempt() -> Any:
            return await self._told(ask)

        try:
            return await AsyncRetrying(**policy)(attempt)
        except RETRYABLE as error:
            raise EndpointsDead(
                f"{self.name} does not answer ({error}). Nothing is lost and nothing is handed over twice: run the "
                "same command again."
            ) from error
        except RequestRejected as error:
            raise AccessDenied(
                f"{self.name} answered {error}. {error.advice or 'Expected a provider of /v1/files and /v1/batches.'}"
            ) from error


# --- the files of a plan ------------------------------------------------------------------------------------------


def noted_in(file: RequestFile) -> dict[str, Any]:
    """What the state knows of the batch of a file."""
    found: dict[str, Any] = json.loads(file.batch or "{}")
    return found


def note(plan: Plan, file: RequestFile, **facts: Any) -> None:
    """Note more of the batch of a file, at once."""
    row = plan.connection.execute("SELECT batch FROM files WHERE number = ?", (file.number,)).fetchone()
    kept = json.dumps({**json.loads(row[0] or "{}"), **facts})
    plan.connection.execute("UPDATE files SET batch = ? WHERE number = ?", (kept, file.number))


async def submit(plan: Plan, provider: Provider, *, again: bool = False) -> list[tuple[RequestFile, str]]:
    """Hand over every file of the plan that is not yet; the new ones and the ids of their batches.

    Where the answer of the provider was lost, its list tells whether there is a batch, or ``again`` says to make one.

    Raises:
        OutputError: a file is gone, or is no longer what was planned.
        AccessDenied, EndpointsDead: the provider refuses, or does not answer.
    """
    done = []
    for file in plan.files():
        known = noted_in(file)
        if known.get("batch"):
            continue
        path = plan.folder / file.name
        check_file(path, FileLimits(lines=max(1, file.lines), megabytes=max(1.0, file.bytes / 1e6)), file.model)
        if path.stat().st_size != file.bytes:
            raise OutputError(f"{path} has {path.stat().st_size:,} bytes, {file.bytes:,} were planned. Plan again.")
        mark = known.get("mark") or f"{plan.identity()}-{file.number:05d}"
        batch = await provider.marked(mark, known.get("input")) if known.get("starting") and not again else None
        if batch is None:
            uploaded = known.get("input") if known.get("url") == provider.url else None
            uploaded = uploaded or await provider.upload(path)
            note(plan, file, url=provider.url, input=uploaded, mark=mark, starting=True)
            try:
                batch = await provider.start(uploaded, mark)
            except RETRYABLE as error:
                raise EndpointsDead(
                    f"{provider.name} did not answer as the batch of {file.name} was made ({error}). It may be there: "
                    "the same command looks for it before it makes one."
                ) from error
            except RequestRejected as error:
                note(plan, file, starting=False, input=None)
                raise AccessDenied(
                    f"{provider.name} answered {error}. {error.advice or 'Expected that it makes a batch.'}"
                ) from error
        note(plan, file, url=provider.url, batch=str(batch["id"]), starting=False)
        done.append((file, str(batch["id"])))
    return done


async def look(plan: Plan, provider: Provider) -> list[tuple[Progress, Mapping[str, Any]]]:
    """How far the batches of a plan are, and what the provider says of each."""
    found: list[tuple[Progress, Mapping[str, Any]]] = []
    for file in plan.files():
        known = noted_in(file)
        batch: Mapping[str, Any] = {}
        progress = Progress(file=file)
        if known.get("batch"):
            batch = known["ended"] if known.get("ended") else await provider.batch(known["batch"])
            counts = batch.get("request_counts") or {}
            progress = Progress(
                file=file,
                status=str(batch.get("status")),
                completed=int(counts.get("completed") or 0),
                failed=int(counts.get("failed") or 0),
                message=_message(batch),
            )
        found.append((progress, batch))
    return found


async def fetch(plan: Plan, provider: Provider, file: RequestFile, batch: Mapping[str, Any]) -> list[Path]:
    """Fetch the outputs of a batch that has ended, where they are not here yet; their paths."""
    folder = plan.folder / REPLIES
    folder.mkdir(exist_ok=True)
    paths = []
    for name, kind in (("output_file_id", "output"), ("error_file_id", "errors")):
        if batch.get(name):
            path = folder / f"{kind}-{file.number:05d}.jsonl"
            if not path.exists():
                await provider.fetch(str(batch[name]), path)
            paths.append(path)
    return paths


def _message(batch: Mapping[str, Any]) -> str:
    """Why a batch has failed, in the provider's words."""
    errors = batch.get("errors")
    listed: list[Any] = []
    with suppress(AttributeError, TypeError):
        listed = list((errors or {}).get("data") or [])
    return "; ".join(_lines(listed))


def _lines(listed: list[Any]) -> Iterator[str]:
    for one in listed[:3]:
        if isinstance(one, dict):
            at = "" if one.get("line") is None else f"line {one['line']}: "
            yield f"{at}{refusals.excerpt(str(one.get('message')))}"
