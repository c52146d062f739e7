"""What every transport does about constrained output: asks without where the server refuses it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace

from arhn_datasets.annotators.client import contract
from arhn_datasets.annotators.client.contract import ChatRequest, Completion, ServerInfo
from arhn_datasets.errors import EmptyReply, RequestRejected

logger = logging.getLogger(__name__)


class ChatTransport(ABC):
    """One server; a subclass sends a request as it stands."""

    name: str
    _grammar = True

    async def chat(self, info: ServerInfo, request: ChatRequest) -> Completion:
        """The reply to one request.

        Raises:
            EndpointError: this attempt failed.
            AccessDenied: no request can succeed.
        """
        if not self._grammar:
            request = replace(request, schema=None)
        try:
            completion = await self._ask(info, request)
        except RequestRejected as error:
            if request.schema is None or not contract.refuses_grammar(error):
                raise
            if self._grammar:  # those under way at the same time are refused, too
                logger.warning("%s takes no constrained output (%s); asking without", self.name, error)
            self._grammar = False
            completion = await self._ask(info, replace(request, schema=None))
        if not completion.text.strip():
            raise EmptyReply("the server answered 200 with an empty text")
        return completion

    @abstractmethod
    async def _ask(self, info: ServerInfo, request: ChatRequest) -> Completion:
        """The reply to one request as it stands."""
