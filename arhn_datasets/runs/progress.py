"""What the progress bar of a run says beside its rows: requests, tokens, retries, and servers that are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from arhn_datasets.rows.background import every

REFRESH_SECONDS = 0.5


def format_statistics(now: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> str:
    """The difference of two statistics as a line for a progress bar."""
    if not now:
        return ""

    def since(name: str) -> int:
        return int(now.get(name, 0)) - int(before.get(name, 0))

    tokens = since("prompt_tokens") + since("completion_tokens")
    parts = [f"{since('replies'):,} replies"]
    parts += [f"{since('stored'):,} from the store"] if since("stored") else []
    parts += [f"{tokens / seconds:,.0f} tokens/s"] if tokens and seconds > 0 else []
    parts += [f"{since('retries'):,} retries"] if since("retries") else []
    parts += [f"{since('failures'):,} failed"] if since("failures") else []
    parts += [f"{now['in_flight']:,} in flight"] if now.get("in_flight") else []
    parts += ["WAITING for the endpoint"] if now.get("waiting_for_servers") else []
    return ", ".join(parts)


@contextmanager
def live(bar: Any, statistics: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Keep what stands behind a bar up to date with ``statistics``, where these are of anything."""
    before, started = statistics(), time.monotonic()

    def refresh() -> None:
        bar.set_postfix_str(format_statistics(statistics(), before, time.monotonic() - started))

    with every(REFRESH_SECONDS, refresh, name="arhn-progress") if before else nullcontext():
        yield
