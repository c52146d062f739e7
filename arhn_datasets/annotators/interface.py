"""The interface of an annotator: who gives snippets and rankings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from arhn_datasets.records import Ranking, RankingRequest, Snippet, SnippetRequest


class Annotator(ABC):
    """Gives a snippet for a query and a passage, and a ranking for a query and candidates.

    Subclass it to bring your own; an instance has to be picklable, and :meth:`identity` has to name everything that
    changes what it gives.
    """

    awaits: ClassVar[bool] = True
    """Whether the two coroutines really wait (for a server, for a batch). Where not, no event loop is involved."""

    baseline: ClassVar[bool] = False
    """Whether this is no LLM: its evidence is a baseline's, and the card and the summary say so."""

    async def turn(self, requests: int) -> None:
        """Wait until so many more requests should be made: a map hands over more rows than can be worked on.

        Awaited before the requests of each row; by default at once.
        """
        return

    @abstractmethod
    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The answer snippet of one passage; a failure is a status, never an exception."""

    @abstractmethod
    async def ranking(self, request: RankingRequest) -> Ranking:
        """The candidates in the order in which they answer the query; a failure is a status."""

    @abstractmethod
    def identity(self, stage: str) -> dict[str, Any]:
        """What changes the evidence of ``stage`` ("snippets" or "ranks"), as JSON; no URL, no token."""

    def statistics(self) -> dict[str, Any]:
        """What was asked so far in this process, for the progress bar and ``run.json``; empty for none."""
        return {}

    def description(self) -> dict[str, Any]:
        """What a reader of the card or of ``run.json`` has to know; at least ``annotator``, a name."""
        return {"annotator": type(self).__name__, "baseline": self.baseline}
