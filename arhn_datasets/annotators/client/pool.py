"""One or several servers of one model: each with a limit and a breaker; routing, retries, and an end to waiting."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arhn_datasets.annotators.client.contract import (
    DEFAULT_CONCURRENCY,
    ChatRequest,
    Completion,
    ConnectionOptions,
    ServerInfo,
    slice_of,
    slots_of,
)
from arhn_datasets.annotators.client.outlook import Asking, Outlook
from arhn_datasets.errors import (
    ArhnError,
    ConfigurationError,
    EmptyReply,
    EndpointError,
    EndpointFailure,
    EndpointOverloaded,
    EndpointsDead,
    EndpointUnavailable,
)
from arhn_datasets.rows import retries

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from arhn_datasets.annotators.client.http import ChatTransport

logger = logging.getLogger(__name__)

DECREASE = 0.5
RECOVERY_SECONDS = 1.0  # one burst of 429 comes from one excess: it lowers the limit once
FAILURES = 5  # in a row, before a server counts as dead
PROBE_SECONDS, PROBE_SECONDS_MAX = 0.5, 10.0
BACKOFF_MAX_SECONDS = 10.0
AFFINITY_SLACK = 8  # requests by which the preferred replica may be busier than the idlest one
NO_WORD = "the model used all tokens before its first word, for thinking: more --max-tokens, or one that does not think"
WAITING_SECONDS = 1.0  # between two looks at whether all servers have been dead for too long

RETRYABLE = (EndpointUnavailable, EndpointOverloaded, EndpointFailure)


class AdaptiveLimit:
    """A limit of requests in flight that follows the server.

    A 429 halves it, at most once a second; every success raises it by its inverse, so by one each time that all slots
    were used, up to ``ceiling``. Waiting requests are served in order. Lives on one event loop.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._limit = float(ceiling)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lowered_at = float("-inf")
        self._closed_until = float("-inf")

    @property
    def current(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    def resize(self, ceiling: int) -> None:
        """Take a new ceiling, as the server names it."""
        self._limit = float(ceiling) if self._limit >= self.ceiling else min(self._limit, float(ceiling))
        self.ceiling = ceiling
        self._admit()

    async def __aenter__(self) -> None:
        """Take one of the slots, waiting for it in order."""
        if not self._waiting and self._admits():
            self.in_flight += 1
        else:
            await self._wait()

    async def __aexit__(self, *_: object) -> None:
        """Give the slot back to those that wait."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """A request was answered."""
        if self._limit < self.ceiling:
            self._limit = min(float(self.ceiling), self._limit + 1 / self._limit)
            self._admit()

    def overloaded(self, retry_after: float | None = None) -> None:
        """A request was refused for overload; ``retry_after`` seconds nothing more is to be sent."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._lowered_at >= RECOVERY_SECONDS:
            self._lowered_at = loop.time()
            self._limit = max(1.0, min(self._limit, float(self.in_flight)) * DECREASE)
        if retry_after:
            self._closed_until = max(self._closed_until, loop.time() + retry_after)
            loop.call_later(retry_after, self._admit)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted and cancelled at once: hand the slot on
                self.in_flight -= 1
            self._admit()  # leaves out those that nobody waits for any more
            raise

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0].done() or self._admits()):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _admits(self) -> bool:
        return self.in_flight < self.current and asyncio.get_running_loop().time() >= self._closed_until


class Breaker:
    """Closed while the server answers; opened by failures in a row, closed again by a probe that succeeds.

    Lives on one event loop. ``probe`` raises where the server still does not answer.
    """

    def __init__(self, name: str, probe: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.opened_at: float | None = None
        self._probe = probe
        self._failures = 0
        self.closed = asyncio.Event()  # set while the server answers
        self.closed.set()
        self._probing: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether the server counts as dead."""
        return self.opened_at is not None

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0

    def failed(self, *, dead: bool = False) -> None:
        """A request to the server failed; ``dead`` opens the breaker at once."""
        self._failures += 1
        if not self.open and (dead or self._failures >= FAILURES):
            self.opened_at = asyncio.get_running_loop().time()
            self.closed.clear()
            self._probing = asyncio.get_running_loop().create_task(self._until_it_answers())
            logger.warning("%s does not answer; waiting for it and asking again", self.name)

    def stop(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()

    async def _until_it_answers(self) -> None:
        pause = PROBE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PROBE_SECONDS_MAX)
            try:
                await self._probe()
            except Exception as error:
                logger.debug("%s: %s", self.name, error)
                continue
            self.opened_at, self._failures = None, 0
            self.closed.set()
            logger.warning("%s answers again", self.name)
            return


@dataclass
class Statistics:
    """What was asked so far; tokens where the servers state them."""

    requests: int = 0
    replies: int = 0
    retries: int = 0
    overloads: int = 0
    failures: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waiting_for_servers: bool = False


class Server:
    """A server with its limit and its breaker."""

    def __init__(self, transport: ChatTransport, options: ConnectionOptions) -> None:
        self.transport = transport
        self.limit = AdaptiveLimit(slice_of(options.concurrency or DEFAULT_CONCURRENCY, options.processes))
        self.breaker = Breaker(transport.name, self._reopen)
        self.info: ServerInfo | None = None
        self.expected: ServerInfo | None = None  # the run's model, also where this server was away at first
        self.changed: ConfigurationError | None = None
        self.load = 0
        self.said: EndpointError | None = None  # when it failed last
        self._options = options
        self._answered: ChatRequest | None = None  # the last one that was
        self._doubted = False

    async def open(self) -> ServerInfo:
        """Read what the server says of itself."""
        found = await self.transport.info()
        if self.info is None or found.api == self.info.api:  # a gateway may hide /info for a while
            self.info = found
        if self._options.concurrency is None:
            self.limit.resize(slice_of(slots_of(found), self._options.processes))
        return found

    async def send(self, asking: Asking) -> Completion:
        """One attempt, within the limit; its outcome moves the limit and the breaker."""
        assert self.info is not None
        queued_at = asyncio.get_running_loop().time()
        async with self.limit:
            asking.queued += asyncio.get_running_loop().time() - queued_at
            if self.breaker.open:
                raise EndpointUnavailable(f"{self.transport.name} does not answer")
            try:
                completion = await self.transport.chat(self.info, asking.request)
            except EndpointOverloaded as error:
                self.said = error
                self.limit.overloaded(error.retry_after)
                raise
            except EndpointUnavailable as error:
                self.said = error
                self.breaker.failed()
                raise
            except EndpointFailure as error:
                # One fails for its prompt, all fail for the server: a request that it has answered before will tell.
                self.said, self._doubted = error, self._answered is not None
                (self.breaker.failed if self._doubted else self.breaker.succeeded)()
                raise
            except (EndpointError, ArhnError):
                self.breaker.succeeded()  # it answered
                raise
        self.limit.succeeded()
        self.breaker.succeeded()
        self._answered, self._doubted = asking.request, False
        return completion

    async def _reopen(self) -> None:
        await self.transport.probe()
        found, expected = await self.open(), self.expected
        revised = expected and found.revision and expected.revision and found.revision != expected.revision
        if expected is not None and (revised or found.model != expected.model):
            self.changed = ConfigurationError(
                f"{self.transport.name} serves {found.model}@{found.revision} now, and the run began with "
                f"{expected.model}@{expected.revision}. One run takes one model: start the run again."
            )
        elif self._doubted and self._answered:
            await self.transport.chat(found, self._answered)
            self._doubted = False


class Pool:
    """The servers of a run. Make and use it on the background loop.

    ``known`` tells whether replies of before are at hand.
    """

    def __init__(
        self,
        transports: Sequence[ChatTransport],
        options: ConnectionOptions,
        known: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options = options
        self.servers = [Server(transport, options) for transport in transports]
        self.statistics = Statistics()
        self.outlook = Outlook(", ".join(transport.name for transport in transports), known)
        self._info: ServerInfo | None = None
        self._opening: asyncio.Future[ServerInfo] | None = None
        self._dead_since: float | None = None

    @property
    def slots(self) -> int | None:
        """Requests that the servers take at once, None where they have not said so yet."""
        return None if self._info is None else sum(server.limit.ceiling for server in self.servers)

    async def info(self) -> ServerInfo:
        """What the servers say of themselves, asked once; those that do not answer yet are waited for later.

        Raises:
            EndpointUnavailable: none of them answers.
            ConfigurationError: they serve different models, or one of them is no LLM server.
        """
        if self._info is None:
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._open())
            opening = self._opening
            try:
                self._info = await asyncio.shield(opening)
            except ArhnError:
                if self._opening is opening:
                    self._opening = None
                raise
        return self._info

    async def chat(self, request: ChatRequest) -> Completion:
        """The reply to ``request``, from whichever server gives it.

        Raises:
            EndpointError: after all attempts, or at once where another attempt cannot help.
            AccessDenied: no request can succeed.
            EndpointsDead: no server has answered for ``give_up_after`` seconds.
        """
        await self.info()
        asking = Asking(request, self.options)
        self.statistics.requests += 1
        self.statistics.in_flight += 1
        try:
            try:
                completion = await self._attempt(asking)  # the usual case, without the price of a retrying object
            except RETRYABLE as error:
                completion = await self._retried(asking, error)
        except EndpointError as error:
            self.statistics.failures += 1
            await self.outlook.failed(error, lambda: self.statistics.in_flight)
            raise
        finally:
            self.statistics.in_flight -= 1
            self.outlook.settle(self.statistics.in_flight)
        if completion.text.strip():
            self.outlook.answered()
        else:  # cut off before its first word: evidence of nothing, and of a run in which all are
            await self.outlook.failed(EmptyReply(NO_WORD), lambda: self.statistics.in_flight)
        self.statistics.replies += 1
        self.statistics.prompt_tokens += completion.prompt_tokens or 0
        self.statistics.completion_tokens += completion.completion_tokens or 0
        return completion

    async def _retried(self, asking: Asking, first: EndpointError) -> Completion:
        """The reply after a first attempt that failed."""
        from tenacity import AsyncRetrying

        failed = [first]

        async def attempt() -> Completion:
            if failed:
                raise failed.pop()
            return await self._attempt(asking)

        def count(error: BaseException, _: float) -> None:
            self.statistics.retries += 1
            self.statistics.overloads += isinstance(error, EndpointOverloaded)

        completion: Completion = await AsyncRetrying(**self._policy(asking.is_over, count))(attempt)
        return completion

    def _policy(
        self, stop: int | Callable[[RetryCallState], bool], tell: Callable[[BaseException, float], None] | None = None
    ) -> dict[str, Any]:
        return retries.policy(
            again=lambda error: isinstance(error, RETRYABLE),
            stop=stop,
            first=self.options.backoff,
            longest=BACKOFF_MAX_SECONDS,
            asked=lambda error: error.retry_after if isinstance(error, EndpointOverloaded) else None,
            tell=tell,
        )

    async def close(self) -> None:
        """Let go of every connection."""
        for server in self.servers:
            server.breaker.stop()
            await server.transport.close()

    async def _open(self) -> ServerInfo:
        from tenacity import AsyncRetrying

        async def opened() -> list[ServerInfo]:
            results = await asyncio.gather(*(server.open() for server in self.servers), return_exceptions=True)
            failed = [result for result in results if isinstance(result, BaseException)]
            fatal = [error for error in failed if not isinstance(error, RETRYABLE)]
            if fatal or len(failed) == len(results):
                raise (fatal or failed)[0]
            return [result for result in results if isinstance(result, ServerInfo)]

        infos: list[ServerInfo] = await AsyncRetrying(**self._policy(self.options.attempts))(opened)
        for server in self.servers:
            server.expected = infos[0]
            if server.info is None:
                server.breaker.failed(dead=True)
        (first_name, first), *others = [(server.transport.name, server.info) for server in self.servers if server.info]
        for name, info in others:
            if (info.model, info.revision) != (first.model, first.revision):
                raise ConfigurationError(
                    f"The endpoints serve different models: {first_name} has {first.model}@{first.revision}, {name} "
                    f"has {info.model}@{info.revision}. One run takes one model; name only endpoints that serve it."
                )
        return infos[0]

    async def _attempt(self, asking: Asking) -> Completion:
        server = await self._choose(asking)
        server.load += 1
        try:
            completion = await server.send(asking)
        except EndpointError as error:
            asking.failed(server, error)
            waited_for = isinstance(error, EndpointOverloaded) and not any(one.limit.in_flight for one in self.servers)
            if waited_for or isinstance(error, EndpointUnavailable) and not error.own:
                self._end_if_dead(asyncio.get_running_loop().time())
            elif not isinstance(error, (EndpointUnavailable, EndpointOverloaded)):
                self._dead_since = None
            raise
        finally:
            server.load -= 1
        self._dead_since = None  # only an answer tells that there is a server: health routes say much
        return completion

    async def _choose(self, asking: Asking) -> Server:
        """The server that has the request's prefix in its cache, unless it is much busier than another.

        One on which the request has failed is left out where there is another.
        """
        while True:
            for server in self.servers:
                if server.changed:
                    raise server.changed
            alive = [server for server in self.servers if not server.breaker.open]
            if alive:
                self.statistics.waiting_for_servers = False
                break
            await self._wait_for_any(asking)
        alive = [server for server in alive if server not in asking.failed_on] or alive
        idlest = min(alive, key=lambda server: server.load / server.limit.current)
        affinity = asking.request.affinity
        if len(alive) == 1 or not affinity:
            return idlest
        start = int.from_bytes(hashlib.blake2b(affinity.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        preferred = self.servers[start % len(self.servers)]
        if preferred not in alive or preferred.load > idlest.load + AFFINITY_SLACK:
            return idlest
        return preferred

    async def _wait_for_any(self, asking: Asking) -> None:
        now = asyncio.get_running_loop().time()
        self.statistics.waiting_for_servers = True
        left = self._end_if_dead(min(server.breaker.opened_at or now for server in self.servers))
        if asking.seconds_left <= 0:
            raise asking.last or EndpointUnavailable(f"{self.servers[0].transport.name} does not answer")
        waits = [asyncio.ensure_future(server.breaker.closed.wait()) for server in self.servers]
        try:
            await asyncio.wait(
                waits, timeout=min(left, asking.seconds_left, WAITING_SECONDS), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()

    def _end_if_dead(self, since: float) -> float:
        """The seconds left until the run ends, for want of an answer ``since`` then or before; EndpointsDead at 0."""
        if self._dead_since is None:
            self._dead_since = since
        now = asyncio.get_running_loop().time()
        if now - self._dead_since >= self.options.give_up_after:
            names = ", ".join(server.transport.name for server in self.servers)
            said = next((f" It said last: {str(one.said).rstrip('.')}." for one in self.servers if one.said), "")
            raise EndpointsDead(
                f"No endpoint has answered for {now - self._dead_since:.0f} seconds ({names}).{said} Every reply so "
                "far is kept: start the server again and run the same command, and only the rest is asked."
            )
        return self.options.give_up_after - (now - self._dead_since)
