"""One or several servers of one model: each with a limit and a breaker; routing, retries, and an end to waiting."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arhn_datasets.annotators.client.contract import (
    ChatRequest,
    Completion,
    ConnectionOptions,
    ServerInfo,
    slice_of,
    slots_of,
)
from arhn_datasets.annotators.client.limits import BACKOFF_MAX_SECONDS, AdaptiveLimit, Breaker
from arhn_datasets.annotators.client.outlook import Asking, Outlook
from arhn_datasets.annotators.client.sizing import MOST, START, UNMEASURED, Sizing
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

QUEUE_SECONDS, YOUNG_QUEUE_SECONDS = 2.0, 0.25  # between two looks at a server's queue, and while little is known
AFFINITY_SLACK = 8  # requests by which the preferred replica may be busier than the idlest one
NO_WORD = "the model used all tokens before its first word, for thinking: more --max-tokens, or one that does not think"
WAITING_SECONDS = 1.0  # between two looks at whether all servers have been dead for too long

RETRYABLE = (EndpointUnavailable, EndpointOverloaded, EndpointFailure)


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

    def replied(self, completion: Completion) -> None:
        """Count a reply."""
        self.replies += 1
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0


class Server:
    """A server with its limit and its breaker."""

    def __init__(self, transport: ChatTransport, options: ConnectionOptions) -> None:
        self._options = options
        self.transport = transport
        self.sizing = self._sized(options.concurrency or START, declared=options.concurrency is not None)
        self.limit = AdaptiveLimit(self.sizing.size)
        transport.patience = self._patience
        self.breaker = Breaker(transport.name, self._reopen)
        self.info: ServerInfo | None = None
        self.expected: ServerInfo | None = None  # the run's model, also where this server was away at first
        self.changed: ConfigurationError | None = None
        self.load = 0
        self.said: EndpointError | None = None  # when it failed last
        self._watching: asyncio.Task[None] | None = None
        self._tells = False  # of its queue
        self._answered: ChatRequest | None = None  # the last one that was
        self._doubted = False

    async def open(self) -> ServerInfo:
        """Read what the server says of itself."""
        found = await self.transport.info()
        if self.info is None or found.api == self.info.api:  # a gateway may hide /info for a while
            self.info = found
        if self._options.concurrency is None:
            self._size(found)
        self.sizing.cold()
        return found

    def _size(self, found: ServerInfo) -> None:
        """Take the server's word for how much it takes, else find that out; its queue is looked at in either case."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        declared = slots_of(found)
        if declared and (self.sizing.measures or slice_of(declared, self._options.processes) != self.sizing.most):
            self.sizing = self._sized(declared, declared=True)
        self.limit.resize(self.sizing.size)

    def _sized(self, start: int, *, declared: bool) -> Sizing:
        start, most = slice_of(start, self._options.processes), slice_of(MOST, self._options.processes)
        return Sizing(start, start if declared else most, measures=not declared)

    def _patience(self) -> float:
        return min(self.sizing.patience, self._options.deadline)

    async def _watch(self) -> None:
        """Keep the server's own queue short, where it tells of it."""
        told: tuple[int, int] | None = (0, 0)
        while told is not None:
            with suppress(ArhnError):  # it is away, or slow
                told = await self.transport.queue()
                self._tells = told is not None
                if told and self.limit.in_flight:
                    self.sizing.told(*(count // self._options.processes for count in told))
                    self.limit.resize(self.sizing.size)
            young = self.sizing.growing and self.sizing.size < UNMEASURED
            await asyncio.sleep(YOUNG_QUEUE_SECONDS if young else QUEUE_SECONDS)

    def sized(self) -> str:
        """How many requests it is asked at once, and why, in words."""
        if self._options.concurrency is not None:
            why = "as given"
        elif self.sizing.measures:
            why = "found by its rate of replies"
        elif self.info is not None and self.info.max_concurrent_requests:
            why = "just below the limit that it states"
        else:
            why = "its slots and a few"
        queue = "" if not self._tells else ", a few of them waiting by what it says of its queue"
        rate = self.limit.pace.rate
        pace = f"; at most {60 * rate:,.0f} a minute, since it refuses more" if rate else ""
        return f"{self.limit.current} requests at once at {self.transport.name}: {why}{queue}{pace}"

    def stop(self) -> None:
        """Probe and watch no more."""
        self.breaker.stop()
        if self._watching is not None:
            self._watching.cancel()

    async def send(self, asking: Asking) -> Completion:
        """One attempt, within the limit; its outcome moves the limit and the breaker."""
        assert self.info is not None
        loop = asyncio.get_running_loop()
        queued_at = loop.time()
        async with self.limit:
            sent = loop.time()
            if not isinstance(asking.last, EndpointOverloaded):  # else it waits for a busy server
                asking.queued += sent - queued_at
            if self.breaker.open:
                raise EndpointUnavailable(f"{self.transport.name} does not answer")
            try:
                completion = await self.transport.chat(self.info, asking.request)
            except EndpointOverloaded as error:
                self.said = error
                if self.sizing.measures and not error.retry_after:
                    self.sizing.congested(loop.time(), self.limit.in_flight)
                    self.limit.resize(self.sizing.size)
                self.limit.overloaded(error.retry_after)
                raise
            except EndpointUnavailable as error:
                self.said = error
                if error.waited is not None:
                    self.sizing.timed_out(loop.time(), self.limit.in_flight, error.waited)
                    self.limit.resize(self.sizing.size)
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
            now = loop.time()
            self.sizing.answered(now, sent, self.limit.in_flight)
            self.limit.pace.accepted(now)
            if self.sizing.size != self.limit.ceiling:
                self.limit.resize(self.sizing.size)
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
        """Requests that the servers are asked at once, None where they have said nothing yet."""
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
        self.statistics.replied(completion)
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
            server.stop()
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
        # Of what it takes, not of what the others do: replicas differ in speed.
        fair = idlest.load * preferred.limit.current / idlest.limit.current
        return preferred if preferred in alive and preferred.load <= fair + AFFINITY_SLACK else idlest

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
