"""Ray Data as the engine: the same stages on a pool of actors, on one machine or on many.

Rows are read on the driver's machine and go to the actors in blocks; relabelled blocks come back in the order of the
rows, so that one writer writes them as any other engine's. What nodes share is Ray alone:

* Each actor takes one slice of the endpoint's limit. The pool has a fixed size, so the slices are known before it
  starts and their sum never goes beyond the limit.
* Actors on the driver's machine use its store of replies. Those of another node have a store there. A new actor brings
  the store of its node up to date first. What is new on the nodes is handed over while the run goes on and at its end:
  keys name the content, so a merge is a union. An actor that is lost is started again, on any node, and finds its
  replies; a lost node takes with it the replies of the last `HAND_OVER_SECONDS`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import signal
import socket
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from arhn_datasets.annotators.client import store as answers
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.local import Local
from arhn_datasets.errors import ArhnError, ClusterError, ConfigurationError, MissingDependencyError
from arhn_datasets.folder.description import describe_run
from arhn_datasets.folder.place import check_output
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.writer import Refinement, write_run
from arhn_datasets.inputs.sources import Input
from arhn_datasets.rows.arrow import empty_table
from arhn_datasets.rows.background import every
from arhn_datasets.runs.progress import live
from arhn_datasets.runs.refine import Stages, prepared, spent_since_now
from arhn_datasets.runs.streaming import Position, annotated

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

BLOCK_ROWS = 1024  # each block ends with slots that have nothing left to do
BLOCKS_PER_ACTOR = 4  # at least, where there are rows for it
SLICE_ROWS = 16  # of a block: the first slices are ranked while the last ones are still read
HAND_OVER_SECONDS = 10.0
TELL_SECONDS = 1.0
PAGE = 5000


def refine_on_ray(
    source: Input,
    output: str | os.PathLike[str],
    stages: Stages,
    *,
    address: str | None = None,
    actors: int | None = None,
) -> Refinement:
    """What :func:`arhn_datasets.runs.refine.refine` does, on a pool of Ray actors; the rows are the same.

    Args:
        source: The input, read on this machine.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced; written here.
        stages: The configured transforms.
        address: See :func:`running`.
        actors: See :func:`running`.

    Raises:
        MissingDependencyError: Ray is not installed.
        ClusterError: the cluster cannot be reached, or Ray has ended the run.
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    from datasets.utils import tqdm

    target = Path(output)
    check_output(target)
    library()
    stages.annotator.identity("snippets")  # an endpoint that is not there is told before any work
    durations: dict[str, float] = {}
    splits, stages, provenance = prepared(source, stages, durations)
    started = time.monotonic()
    with running(splits, stages, address=address, actors=actors) as run:
        spent = spent_since_now(run.statistics)
        rows = sum(map(len, splits.values()))
        with live("refine", run.statistics), tqdm(total=rows, unit=" rows", desc="refine") as bar:

            def counted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
                for table in tables:
                    yield table
                    bar.update(table.num_rows)

            def described(report: Report, rows: Mapping[str, int]) -> Mapping[str, Any]:
                seconds = {**durations, "ray": time.monotonic() - started}
                where = {**provenance, "rows": dict(rows)}
                described = describe_run(where, stages.transforms, report, seconds, spent())
                return {**described, "engine": run.description()}

            return write_run(target, {name: counted(tables) for name, tables in run.tables().items()}, described)


class Run:
    """A run under way on a pool: the relabelled rows, and what it has asked so far."""

    def __init__(self, splits: Mapping[str, Dataset], stages: Stages, actors: int, keeper: Any) -> None:
        self.actors = actors
        self._splits, self._stages, self._keeper = splits, stages, keeper
        self._blocks: Generator[pa.Table, None, None] | None = None
        self._left: pa.Table | None = None

    def tables(self) -> dict[str, Iterator[pa.Table]]:
        """The relabelled rows of each split, to be read in this order of splits and once."""
        return {name: self._split(dataset) for name, dataset in self._splits.items()}

    def statistics(self) -> dict[str, Any]:
        """What all actors together have asked."""
        import ray

        return {**dict.fromkeys(self._stages.annotator.statistics(), 0), **ray.get(self._keeper.told.remote())}

    def close(self) -> None:
        """Let go of the pool, while there is a Ray to tell."""
        if self._blocks is not None:
            self._blocks.close()

    def description(self) -> dict[str, Any]:
        """The engine, for ``run.json``."""
        import ray

        alive = sum(bool(node["Alive"]) for node in ray.nodes())
        return {"engine": "ray", "version": ray.__version__, "actors": self.actors, "nodes": alive}

    def _split(self, dataset: Dataset) -> Iterator[pa.Table]:
        schema = dataset.features.arrow_schema
        if not len(dataset):
            yield relabelled(self._stages, empty_table(schema))
            return
        wanted = len(dataset)
        while wanted:
            table = self._next()
            if table.num_rows > wanted:
                self._left = table.slice(wanted)
                table = table.slice(0, wanted)
            wanted -= table.num_rows
            yield table.replace_schema_metadata(schema.metadata)  # the features of what passes through

    def _next(self) -> pa.Table:
        if self._left is not None:
            table, self._left = self._left, None
            return table
        if self._blocks is None:
            self._blocks = self._pipeline()
        try:
            return next(self._blocks)
        except ArhnError:
            raise
        except Exception as error:  # Ray has many, and none of them says which of ours it was
            raise self._told_of(error) from error

    def _told_of(self, error: Exception) -> Exception:
        import ray

        try:
            found: Exception | None = ray.get(self._keeper.error.remote())
        except ray.exceptions.RayError:
            found = None
        return found or ClusterError(
            f"Ray has ended the run: {type(error).__name__}: {_first_line(error)}. Every reply that was handed over is "
            "kept: look at Ray's logs, and run the same command again; only the rest is asked."
        )

    def _pipeline(self) -> Generator[pa.Table, None, None]:
        import ray
        from ray.data import ActorPoolStrategy

        rows = sum(map(len, self._splits.values()))
        block = max(1, min(BLOCK_ROWS, math.ceil(rows / (self.actors * BLOCKS_PER_ACTOR))))
        spans = [
            pa.table({"split": [name], "start": [start], "stop": [min(start + block, len(dataset))]})
            for name, dataset in self._splits.items()
            for start in range(0, len(dataset), block)
        ]
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        here = {f"node:{ray.util.get_node_ip_address()}": 0.6}  # of what Ray gives each node: one reader at a time
        relabelled = (
            ray.data.from_arrow(spans)
            .map_batches(partial(_read, ray.put(dict(self._splits))), num_cpus=0, resources=here, **whole)
            .map_batches(
                _Refiner,
                fn_constructor_args=(self._stages, self._keeper),
                compute=ActorPoolStrategy(size=self.actors),
                **_needs(self._stages.annotator, self.actors),
                **whole,
            )
        )
        yield from relabelled.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@contextmanager
def running(
    splits: Mapping[str, Dataset], stages: Stages, *, address: str | None = None, actors: int | None = None
) -> Iterator[Run]:
    """A run of ``stages`` over canonical rows; the pool ends with the block.

    Args:
        splits: Canonical rows, on files of this machine.
        stages: The configured transforms.
        address: Of a Ray cluster that this machine belongs to, ``HOST:PORT``, ``"auto"`` or ``"local"``; by default
            ``RAY_ADDRESS``, else the Ray that runs here, else one of its own that ends with the run.
        actors: Processes of the pool; by default one for each node, or one for each CPU where nothing is waited for.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigurationError: ``address`` is of a kind that cannot work.
        ClusterError: the cluster cannot be reached, or Ray has ended the run.
    """
    folders: list[Path] = []

    def noted(folder: Path) -> Path:
        folders.append(folder.absolute())
        return folder.absolute()

    stages = stages.asking(stages.annotator.kept_at(noted))
    with ExitStack() as stack:
        stack.enter_context(connected(address))
        stack.enter_context(_quiet())
        count = pool_size(stages.annotator, actors, sum(map(len, splits.values())))
        keeper = _start_keeper(sorted(set(folders)))
        stack.enter_context(_handing_over(keeper))
        run = Run(splits, stages.asking(stages.annotator.shared_by(count)), count, keeper)
        stack.callback(run.close)
        yield run


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray: the one that there is in this process, or one that ends with the block.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigurationError: ``address`` is that of a Ray client.
        ClusterError: the cluster cannot be reached.
    """
    ray = library()
    if address is not None and "://" in address:
        raise ConfigurationError(
            f"{address!r} is not the address of a Ray cluster that this machine belongs to; HOST:PORT, auto or local "
            "was expected. From outside the cluster, submit the command to it: ray job submit -- arhn-refine ..."
        )
    if ray.is_initialized():
        yield
        return
    _check_there(address or os.environ.get("RAY_ADDRESS", ""))
    interrupted = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and those of its transport
        raise _unreachable(address or "this machine", error) from error
    if threading.current_thread() is threading.main_thread():
        for number, told in interrupted.items():
            signal.signal(number, told or signal.SIG_DFL)  # Ray would end this process without a word
    try:
        yield
    finally:
        ray.shutdown()


def _check_there(address: str) -> None:
    """Refuse an address at which nothing listens: there Ray ends the whole process after a minute."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ClusterError:
    return ClusterError(
        f"There is no Ray cluster that answers at {address} ({_first_line(error)}). Check the address with ray status "
        "on a machine of the cluster, or leave --ray-address out to start Ray on this machine alone."
    )


def pool_size(annotator: Annotator, wanted: int | None, rows: int) -> int:
    """How many actors: as wanted, or as the cluster is; no more than the endpoint takes requests, or there are rows."""
    import ray

    resources = ray.cluster_resources()
    if wanted is None:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        wanted = nodes if annotator.awaits else int(resources.get("CPU", 1))
        if isinstance(annotator, Local):
            wanted = int(resources.get("GPU", 0)) or nodes
    most = annotator.most_processes()
    return max(1, min(wanted, rows, *([] if most is None else [most])))


def _needs(annotator: Annotator, actors: int) -> dict[str, Any]:
    """What Ray keeps free for an actor: half of its part of the cluster, so that those of a lost node find a place."""
    import ray

    resources = ray.cluster_resources()
    needs = {"num_cpus": min(0.5, math.floor(resources.get("CPU", 1) / actors * 500) / 1000)}
    if isinstance(annotator, Local) and resources.get("GPU"):
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
        self._stages = _at_home(stages, keeper)
        if stages.annotator.awaits:
            threading.Thread(target=self._tell_often, name="arhn-tell", daemon=True).start()

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        try:
            return relabelled(self._stages, table)
        except ArhnError as error:
            ray.get(self._keeper.failed.remote(error))
            raise
        finally:
            answers.flush_all()  # Ray kills an actor that it needs no more
            ray.get(self._tell())

    def _tell(self) -> Any:
        return self._keeper.tell.remote(f"{platform.node()}-{os.getpid()}", self._stages.annotator.statistics())

    def _tell_often(self) -> None:
        pause = threading.Event()
        while not pause.wait(TELL_SECONDS):
            self._tell()


def relabelled(stages: Stages, table: pa.Table) -> pa.Table:
    """The rows through all stages; while the last of them are annotated, the first ones are ranked already."""
    *asking, relabel = stages.transforms
    if not stages.annotator.awaits or not table.num_rows:
        return relabel(asking[1](asking[0](table)))
    parts = (table.slice(start, SLICE_ROWS) for start in range(0, table.num_rows, SLICE_ROWS))
    nowhere = Position(state={}, rows=0)
    return relabel(pa.concat_tables([part for part, _ in annotated(((part, nowhere) for part in parts), asking)]))


class _Keeper:
    """An actor on the driver's machine: its stores of replies, what the pool has counted, and why it has failed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        self._run, self._folders = uuid.uuid4().hex, folders
        self._gathered: dict[tuple[str, Path], int] = {}
        self._gathering = threading.Lock()
        self._told: dict[str, Mapping[str, Any]] = {}
        self._error: Exception | None = None

    def facts(self) -> tuple[str, str, Sequence[Path]]:
        """The driver's node, a name of the run, and the folders of its stores."""
        return self._node, self._run, self._folders

    def page(self, folder: Path, after: int) -> tuple[list[answers.Stored], int]:
        """What a store of the driver holds beyond so many."""
        return answers.page(folder, after, PAGE)

    def gather(self) -> int:
        """Take over what is new in the stores of the other nodes; how many replies were new here."""
        import ray

        new = 0
        with self._gathering:
            for node in ray.nodes():
                if node["Alive"] and node["NodeID"] != self._node:
                    for folder in self._folders:
                        try:
                            new += self._gather(node["NodeID"], folder)
                        except ray.exceptions.RayError as error:
                            logger.info("the replies of %s could not be read: %s", node["NodeID"], error)
        return new

    def _gather(self, node: str, folder: Path) -> int:
        import ray

        new = 0
        while True:
            after = self._gathered.get((node, folder), 0)
            asked = ray.remote(_page_of_node).options(num_cpus=0, scheduling_strategy=_there(node), max_retries=0)
            page, last = ray.get(asked.remote(folder, after), timeout=60)
            if not page:
                return new
            new += answers.add_replies(folder, page)[0]
            self._gathered[node, folder] = last

    def tell(self, actor: str, statistics: Mapping[str, Any]) -> None:
        """Note what an actor has counted since it started."""
        self._told[actor] = statistics

    def told(self) -> dict[str, Any]:
        """What all of them have counted, those that were lost included."""
        total: dict[str, Any] = {}
        for statistics in list(self._told.values()):
            for name, value in statistics.items():
                total[name] = bool(value or total.get(name)) if isinstance(value, bool) else total.get(name, 0) + value
        return total

    def failed(self, error: Exception) -> None:
        """Note why the run ends."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        """Why the run ends."""
        return self._error


def _there(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _start_keeper(folders: Sequence[Path]) -> Any:
    import ray

    here = _there(ray.get_runtime_context().get_node_id())
    keeper = ray.remote(_Keeper).options(num_cpus=0, scheduling_strategy=here, max_concurrency=16).remote(folders)
    ray.get(keeper.gather.remote())  # what an earlier run has left on the nodes
    return keeper


@contextmanager
def _handing_over(keeper: Any) -> Iterator[None]:
    """Take over what is new on the nodes from time to time, and once more at the end, whatever that is."""
    import ray

    def gather() -> None:
        try:
            ray.get(keeper.gather.remote())
        except Exception as error:  # the run itself will tell
            logger.info("no replies were handed over: %s", error)

    try:
        with every(HAND_OVER_SECONDS, gather, name="arhn-hand-over"):
            yield
    finally:
        try:
            ray.get(keeper.gather.remote())
        except ray.exceptions.RayError as error:
            logger.warning("The last replies of the other nodes stayed there: %s", _first_line(error))
        ray.kill(keeper)


def _at_home(stages: Stages, keeper: Any) -> Stages:
    """The stages with the store of replies of this node, which is brought up to date; on its machine the driver's."""
    import ray

    node, run, folders = ray.get(keeper.facts.remote())
    ray.get(keeper.gather.remote())  # an actor that was lost may have left something on another node
    if ray.get_runtime_context().get_node_id() == node:
        return stages
    for folder in folders:
        _fetch(keeper, folder, run)
    return stages.asking(stages.annotator.kept_at(_on_this_node))


def _fetch(keeper: Any, folder: Path, run: str) -> None:
    import ray

    place = _on_this_node(folder)
    noted = place / "fetched.json"  # how far this node has come in this run
    try:
        found = json.loads(noted.read_text(encoding="utf-8"))
        after = found["after"] if found["run"] == run else 0
    except (OSError, ValueError, LookupError):
        after = 0
    while True:
        page, after = ray.get(keeper.page.remote(folder, after))
        if not page:
            return
        answers.add_replies(place, page)
        noted.write_text(json.dumps({"run": run, "after": after}), encoding="utf-8")


def _on_this_node(folder: Path) -> Path:
    """The folder of this node's store. It names the node: where several see one disk, sqlite must not be shared."""
    return folder / "nodes" / platform.node()


def _page_of_node(folder: Path, after: int) -> tuple[list[answers.Stored], int]:
    return answers.page(_on_this_node(folder), after, PAGE)


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


def library() -> Any:
    """Ray.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError.of(error.name or "ray", "ray", "The engine ray") from error
    return ray


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300].rstrip(".")
