"""The client of LLM servers: contract (pure), HTTP, limits, breakers, and the pool that joins them."""

from arhn_datasets.endpoint.contract import (
    APIS,
    OPENAI,
    TGI,
    ChatRequest,
    Completion,
    ConnectionOptions,
    ServerInfo,
    base_url,
    shown_url,
)
from arhn_datasets.endpoint.http import HttpTransport
from arhn_datasets.endpoint.hub import HubTransport
from arhn_datasets.endpoint.pool import Pool, Statistics, Transport

__all__ = [
    "APIS",
    "OPENAI",
    "TGI",
    "ChatRequest",
    "Completion",
    "ConnectionOptions",
    "HttpTransport",
    "HubTransport",
    "Pool",
    "ServerInfo",
    "Statistics",
    "Transport",
    "base_url",
    "shown_url",
]
