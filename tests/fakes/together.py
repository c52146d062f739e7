"""Replies that wait for each other, so that a test sees how many requests a client sends at once, however slowly."""

from __future__ import annotations

import asyncio

from arhn_datasets.testing.replies import Replies

PATIENCE_SECONDS = 60  # behind this the replies come all the same, and the test fails on its count


class Together:
    """The ``reply`` of an emulator that holds the first replies until ``expected`` requests wait for theirs.

    From then on all replies come at once. ``reply`` is what they say: anything that the emulator itself takes.
    """

    def __init__(self, expected, reply):
        self._expected = expected
        self._replies = Replies(reply)
        self._waiting = 0
        self._all_here = asyncio.Event()

    async def __call__(self, prompt):
        self._waiting += 1
        if self._waiting >= self._expected:
            self._all_here.set()
        try:
            await asyncio.wait_for(self._all_here.wait(), PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            self._all_here.set()
        finally:
            self._waiting -= 1
        return await self._replies.reply(prompt)
