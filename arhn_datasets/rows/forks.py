"""What a process does around a fork: `Dataset.map` with ``num_proc`` forks while loops, locks and files are in use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def nothing() -> None:
    """Where one of the hooks is not needed."""


def around_forks(
    *, before: Callable[[], None] = nothing, in_parent: Callable[[], None] = nothing, in_child: Callable[[], None]
) -> None:
    """Call these at every fork of this process from now on; those of ``before`` last registered first."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def when_a_worker_ends(act: Callable[[], None]) -> None:
    """Call ``act`` at the end of this process if it is a worker, which ends without atexit.

    Workers are those of multiprocessing, and of multiprocess, which `Dataset.map` uses.
    """
    for name in ("multiprocessing.util", "multiprocess.util"):
        if name in sys.modules:
            sys.modules[name].Finalize(None, act, exitpriority=100)
