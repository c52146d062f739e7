"""When to ask no more: a request that was tried enough, and a run of which no request can succeed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from arhn_datasets.annotators.client.contract import ChatRequest, ConnectionOptions
from arhn_datasets.errors import (
    AccessDenied,
    EmptyReply,
    EndpointError,
    EndpointFailure,
    EndpointOverloaded,
    EndpointUnavailable,
    PromptTooLong,
    RequestRejected,
)
from arhn_datasets.rows.records import alike

MOST = (
    256  # refusals in a row where there were answers and no replies of before: of that many prompts it is not the fault
)
ENOUGH = 32  # failures without an answer, after which none is expected
HELD_SECONDS = 30.0  # at most, for others that hang
TOLD = 3  # of the causes, in the message
EMPTY_ATTEMPTS = 2  # an empty or broken 200 is asked again once
_OTHERWISE = "Mend what the server names, and run the same command again."


class Outlook:
    """What failures mean for the requests to come. Lives on one event loop.

    A refusal may be the fault of one prompt (a firewall, a filter) or of all (the key, the model, the credits), and its
    status does not tell. So one that may be of all is held until another request is answered, which makes it an error
    of its own, or until nothing else is under way, which ends the run. ``known`` tells whether replies of before are at
    hand: then few requests are left to ask, perhaps those that are always refused.
    """

    def __init__(self, name: str, known: Callable[[], bool]) -> None:
        self.held: list[asyncio.Future[bool]] = []
        self._name, self._known = name, known
        self._answered = False
        self._lasting = self._refused = 0  # in a row
        self._causes: Counter[str] = Counter()
        self._said: dict[str, str] = {}

    def answered(self) -> None:
        """A request was answered."""
        self._refused = 0
        if self._answered and not self._lasting:
            return
        self._answered, self._lasting = True, 0
        self._causes.clear()
        self._release(ended=False)

    async def failed(self, error: EndpointError, under_way: Callable[[], int]) -> None:
        """A request has failed for good; returns where that is its own error, perhaps after a while.

        Args:
            error: Why.
            under_way: Requests that are under way, this one among them.

        Raises:
            AccessDenied: no request can succeed.
        """
        if isinstance(error, (PromptTooLong, EndpointUnavailable, EndpointOverloaded)):
            return  # it reads prompts, or will be waited for
        rejected = error if isinstance(error, RequestRejected) else None
        advice, lasting = (rejected.advice, rejected.lasting) if rejected else (None, False)
        shape = alike(str(error))
        self._said.setdefault(shape, str(error))
        self._causes[shape] += 1
        self._lasting += lasting
        self._refused += 1
        hopeless = self._lasting >= ENOUGH or self._refused >= MOST and not self._known()
        if hopeless or not self._hopeful and self._causes.total() >= ENOUGH:
            ended = True
            self._release(ended=True)
        elif advice is None or self._hopeful:
            return
        else:
            verdict = asyncio.get_running_loop().create_future()
            self.held.append(verdict)
            self.settle(under_way())
            try:
                ended = await asyncio.wait_for(verdict, HELD_SECONDS)
            except asyncio.TimeoutError:
                ended = lasting
            finally:
                if verdict in self.held:  # who waited was cancelled
                    self.held.remove(verdict)
        if ended:
            raise self._end(advice or _OTHERWISE)

    def settle(self, under_way: int) -> None:
        """End the run where every request that is under way is held, and nothing says that others are answered."""
        if self.held and len(self.held) >= under_way:
            self._release(ended=not self._hopeful)

    @property
    def _hopeful(self) -> bool:
        return self._answered or self._known()

    def _release(self, *, ended: bool) -> None:
        held, self.held = self.held, []
        for verdict in held:
            if not verdict.done():
                verdict.set_result(ended)

    def _end(self, advice: str) -> AccessDenied:
        said = "; ".join(f"{count} x {self._said[shape]}" for shape, count in self._causes.most_common(TOLD))
        return AccessDenied(f"{self._name} answers no request: {said.rstrip('.')}. {advice}")


class Asking:
    """A request on its way: what was tried, and when to stop.

    An overloaded server, or one that is away, uses up no attempts: the request waits for it until its deadline. A
    request that fails on a living server has its attempts, and an empty reply is asked again once. Time in our own
    queue counts for nothing: thousands of rows may stand in it.
    """

    def __init__(self, request: ChatRequest, options: ConnectionOptions) -> None:
        self.request = request
        self.queued = 0.0
        self.failed_on: set[object] = set()
        self.last: EndpointError | None = None
        self._options = options
        self._started = asyncio.get_running_loop().time()
        self._failures = 0
        self._empty = 0

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self._options.deadline + self.queued - (asyncio.get_running_loop().time() - self._started)

    def failed(self, server: object, error: EndpointError) -> None:
        """Count an attempt that failed."""
        self.last = error
        own = isinstance(error, EndpointFailure) or (isinstance(error, EndpointUnavailable) and error.own)
        self._failures += own
        self._empty += isinstance(error, EmptyReply)
        if own:
            self.failed_on.add(server)

    def is_over(self, _: object) -> bool:
        """Whether another attempt is one too many."""
        return self.seconds_left <= 0 or self._empty >= EMPTY_ATTEMPTS or self._failures >= self._options.attempts
