"""The garbage collector while requests are in flight: what was there before them is left out of its rounds.

Requests in flight make it look through the whole process again and again. That took an eighth of the client's
processor time (0.40 ms a request without this and 0.35 with it in batches, 0.47 and 0.41 row by row:
``benchmarks/endpoint.py --only cpu``). It is the host's collector, so it is back as it was when the last request has
ended, and ``ARHN_GC_FREEZE=0`` keeps it as it is.
"""

from __future__ import annotations

import gc
import os


def freeze() -> bool:
    """Leave out what is there now; False where somebody else did so, and means it, or where it is switched off."""
    if gc.get_freeze_count() or os.environ.get("ARHN_GC_FREEZE") == "0":
        return False
    gc.collect(1)  # or the young would be frozen before the old, and sockets end before the loops that own them
    gc.freeze()
    return True


def unfreeze() -> None:
    """The collector as it was before."""
    gc.unfreeze()
