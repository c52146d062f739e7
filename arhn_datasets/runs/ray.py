"""Ray Data as the engine: the same stages on a pool of actors, on one machine or on many.

Rows are read on the driver's machine and go to the actors in blocks; relabelled blocks come back in the order of the
rows, so that one writer writes them as any other engine's. What nodes share is Ray alone:

* Each actor takes one slice of the endpoint's limit. The pool has a fixed size, so the slices are known before it
  starts and their sum never goes beyond the limit.
* Replies get to where they are needed (:mod:`arhn_datasets.runs.ray_replies`). An actor that is lost is started again,
  on any node, and finds its replies; a lost node takes with it those of the last seconds.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from arhn_datasets.annotators.client import store
from arhn_datasets.errors import ArhnError, ClusterError, ConfigurationError, MissingDependencyError
from arhn_datasets.runs.preparing import Position, Prepared, Stages, through
from arhn_datasets.runs.ray_replies import at_home, first_line, handing_over, start_keeper
from arhn_datasets.runs.refine import Engine, Opened, annotated
from arhn_datasets.runs.signals import kept_handlers

BLOCK_ROWS = 1024  # each block ends with slots that have nothing left to do
BLOCKS_PER_ACTOR = 4  # at least, where there are rows for it
SLICE_ROWS = 16  # of a block: the first slices are ranked while the last ones are still read
TELL_SECONDS = 1.0


def on_ray(address: str | None = None, actors: int | None = None) -> Opened:
    """The engine of :func:`arhn_datasets.runs.refine.refine` that works on a pool of Ray actors; the rows are the same.

    Args:
        address: Of a Ray cluster that this machine belongs to, ``HOST:PORT``, ``"auto"`` or ``"local"``; by default
            ``RAY_ADDRESS``, else the Ray that runs here, else one of its own that ends with the run.
        actors: Processes of the pool; by default one for each node, or one for each CPU where nothing is waited for.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigurationError: ``address`` is of a kind that cannot work; when it is opened.
        ClusterError: the cluster cannot be reached, or Ray has ended the run; when it is opened.
    """
    _library()
    return partial(_running, address=address, actors=actors)


class ActorPool(Engine):
    """The engine of a run on a pool of actors: the relabelled rows, and what it has asked so far."""

    def __init__(self, prepared: Prepared, actors: int, keeper: Any) -> None:
        super().__init__(prepared)
        self._datasets, self._actors, self._keeper = prepared.datasets, actors, keeper
        self._blocks: Generator[pa.Table, None, None] | None = None
        self._left: pa.Table | None = None

    def relabelled(self, split: str, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        """The relabelled rows of a split from ``at`` on; the pool works on all splits from there on."""
        rows, wanted = 0 if at is None else at.rows, len(self._datasets[split])
        if self._blocks is None:
            self._blocks = self._pipeline(split, rows)
        while rows < wanted:
            table = self._next(self._blocks) if self._left is None else self._left
            self._left = table.slice(wanted - rows) if table.num_rows > wanted - rows else None
            table = table.slice(0, wanted - rows)
            rows += table.num_rows
            yield table, Position(rows=rows)

    def statistics(self) -> dict[str, Any]:
        """What all actors together have asked."""
        import ray

        return {**dict.fromkeys(self.stages.statistics(), 0), **ray.get(self._keeper.told.remote())}

    def close(self) -> None:
        """Let go of the pool, while there is a Ray to tell."""
        if self._blocks is not None:
            self._blocks.close()

    def description(self) -> dict[str, Any]:
        """The engine, for ``run.json``."""
        import ray

        alive = sum(bool(node["Alive"]) for node in ray.nodes())
        return {"engine": {"engine": "ray", "version": ray.__version__, "actors": self._actors, "nodes": alive}}

    def _next(self, blocks: Iterator[pa.Table]) -> pa.Table:
        try:
            return next(blocks)
        except ArhnError:
            raise
        except Exception as error:  # Ray has many, and none of them says which of ours it was
            import ray

            ours: Exception | None = None
            with suppress(ray.exceptions.RayError):
                ours = ray.get(self._keeper.error.remote())
            raise ours or ClusterError(
                f"Ray has ended the run: {type(error).__name__}: {first_line(error)}. Every reply that was handed over "
                "is kept: look at Ray's logs, and run the same command again; only the rest is asked."
            ) from error

    def _pipeline(self, split: str, first: int) -> Generator[pa.Table, None, None]:
        """The relabelled rows from a row of a split on, and those of all splits behind it."""
        import ray
        from ray.data import ActorPoolStrategy

        names = list(self._datasets)[list(self._datasets).index(split) :]
        ranges = {name: range(first if name == split else 0, len(self._datasets[name])) for name in names}
        rows = sum(map(len, ranges.values()))
        block = max(1, min(BLOCK_ROWS, math.ceil(rows / (self._actors * BLOCKS_PER_ACTOR))))
        spans = [
            pa.table({"split": [name], "start": [start], "stop": [min(start + block, left.stop)]})
            for name, left in ranges.items()
            for start in left[::block]
        ]
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        here = {f"node:{ray.util.get_node_ip_address()}": 0.6}  # of what Ray gives each node: one reader at a time
        relabelled = (
            ray.data.from_arrow(spans)
            .map_batches(partial(_read, ray.put(self._datasets)), num_cpus=0, resources=here, **whole)
            .map_batches(
                _Refiner,
                fn_constructor_args=(self.stages, self._keeper),
                compute=ActorPoolStrategy(size=self._actors),
                **_needs(self.stages, self._actors),
                **whole,
            )
        )
        yield from relabelled.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@contextmanager
def _running(prepared: Prepared, *, address: str | None, actors: int | None) -> Iterator[ActorPool]:
    """The pool of a run, which ends with the block."""
    folders: list[Path] = []

    def noted(folder: Path) -> Path:
        folders.append(folder.absolute())
        return folder.absolute()

    stages = prepared.stages.asking(lambda one: one.kept_at(noted)).changed(lambda one: one.kept_at(noted))
    with ExitStack() as stack:
        stack.enter_context(_connected(address))
        stack.enter_context(_quiet())
        count = _pool_size(stages, actors, sum(map(len, prepared.datasets.values())))
        keeper = start_keeper(sorted(set(folders)))
        stack.enter_context(handing_over(keeper))
        shared = stages.asking(lambda one: one.shared_by(count)).changed(lambda one: one.shared_by(count))
        pool = ActorPool(replace(prepared, stages=shared), count, keeper)
        stack.callback(pool.close)
        yield pool


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to Ray: the one that there is in this process, or one that ends with the block."""
    ray = _library()
    if address is not None and "://" in address:
        raise ConfigurationError(
            f"{address!r} is not the address of a Ray cluster that this machine belongs to; HOST:PORT, auto or local "
            "was expected. From outside the cluster, submit the command to it: ray job submit -- arhn-refine ..."
        )
    if ray.is_initialized():
        yield
        return
    there = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = there.rpartition(":")
    try:
        if host and port.isdigit():  # where nothing listens Ray ends the whole process after a minute
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        if there in ("", "local"):  # Ray starts its workers with niceness 15, so that on a busy machine they hardly run
            os.environ.setdefault("RAY_worker_niceness", "0")
        with kept_handlers():  # Ray's would end this process without a word
            ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and those of its transport
        raise ClusterError(
            f"There is no Ray cluster that answers at {there or 'this machine'} ({first_line(error)}). Check the "
            "address with ray status on a machine of the cluster, or leave --ray-address out to start Ray on this "
            "machine alone."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _pool_size(stages: Stages, wanted: int | None, rows: int) -> int:
    """How many actors: as wanted, or as the cluster is; no more than the endpoint takes requests, or there are rows."""
    import ray

    resources = ray.cluster_resources()
    if wanted is None:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        wanted = nodes if stages.awaits else int(resources.get("CPU", 1))
        if stages.on_gpu:
            wanted = int(resources.get("GPU", 0)) or nodes
    most = stages.most_processes()
    return max(1, min(wanted, rows, *([] if most is None else [most])))


def _needs(stages: Stages, actors: int) -> dict[str, Any]:
    """What Ray keeps free for an actor: half of its part of the cluster, so that those of a lost node find a place."""
    import ray

    resources = ray.cluster_resources()
    needs = {"num_cpus": min(0.5, math.floor(resources.get("CPU", 1) / actors * 500) / 1000)}
    if stages.on_gpu and resources.get("GPU"):
        needs["num_gpus"] = min(1.0, math.floor(resources["GPU"] / actors * 1000) / 1000)
    return needs


def _read(splits: Any, span: pa.Table) -> pa.Table:
    """The rows of a span, on the driver's machine, where their files are."""
    import ray

    [where] = span.to_pylist()
    return ray.get(splits)[where["split"]].with_format("arrow")[where["start"] : where["stop"]]


class _Refiner:
    """An actor of the pool: one background loop, one slice of the endpoint's limit, one store of replies."""

    def __init__(self, stages: Stages, keeper: Any) -> None:
        self._keeper = keeper
        self._stages = at_home(stages, keeper)
        if stages.awaits:
            threading.Thread(target=self._tell_often, name="arhn-tell", daemon=True).start()

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        try:
            return relabelled(self._stages, table)
        except ArhnError as error:
            ray.get(self._keeper.failed.remote(error))
            raise
        finally:
            store.flush_all()  # Ray kills an actor that it needs no more
            ray.get(self._tell())

    def _tell(self) -> Any:
        return self._keeper.tell.remote(f"{platform.node()}-{os.getpid()}", self._stages.statistics())

    def _tell_often(self) -> None:
        pause = threading.Event()
        while not pause.wait(TELL_SECONDS):
            self._tell()


def relabelled(stages: Stages, table: pa.Table) -> pa.Table:
    """The rows through all stages; while the last of them are annotated, the first ones are ranked already."""
    *asking, rule = stages.transforms
    if not stages.awaits or not table.num_rows:
        return through(table, stages.transforms)
    parts = (table.slice(start, SLICE_ROWS) for start in range(0, table.num_rows, SLICE_ROWS))
    return rule(pa.concat_tables([part for part, _ in annotated(((part, None) for part in parts), asking)]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Rows in their order; none of Ray's own bars, and none of its reports of errors that are reported anyway."""
    import ray

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    ordered, bars, level = context.execution_options.preserve_order, context.enable_progress_bars, log.level
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = ordered, bars
        log.setLevel(level)


def _library() -> Any:
    """Ray; a MissingDependencyError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError.of(error.name or "ray", "ray", "The engine ray") from error
    return ray
