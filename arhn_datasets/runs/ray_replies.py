"""How the replies of a run on Ray get from node to node, and what its actors tell.

Actors on the driver's machine use its store of replies. Those of another node have a store there. A new actor brings
the store of its node up to date first. What is new on the nodes is handed over while the run goes on and at its end:
keys name the content, so a merge is a union.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import Stored
from arhn_datasets.rows.background import every
from arhn_datasets.runs.preparing import Stages

logger = logging.getLogger(__name__)

HAND_OVER_SECONDS = 10.0
PAGE = 5000


class Keeper:
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

    def page(self, folder: Path, after: int) -> tuple[list[Stored], int]:
        """What a store of the driver holds beyond so many."""
        return store_upkeep.page(folder, after, PAGE)

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

        asked = ray.remote(_page_of_node).options(num_cpus=0, scheduling_strategy=there(node), max_retries=0)
        new = 0
        while True:
            page, last = ray.get(asked.remote(folder, self._gathered.get((node, folder), 0)), timeout=60)
            if not page:
                return new
            new += store_upkeep.add_replies(folder, page)[0]
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


def there(node: str) -> Any:
    """The scheduling of what has to run on a node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def start_keeper(folders: Sequence[Path]) -> Any:
    """A keeper on this machine, which has what an earlier run has left on the nodes."""
    import ray

    here = there(ray.get_runtime_context().get_node_id())
    keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here, max_concurrency=16).remote(folders)
    ray.get(keeper.gather.remote())
    return keeper


@contextmanager
def handing_over(keeper: Any) -> Iterator[None]:
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
            logger.warning("The last replies of the other nodes stayed there: %s", first_line(error))
        ray.kill(keeper)


def at_home(stages: Stages, keeper: Any) -> Stages:
    """The stages with the store of replies of this node, which is brought up to date; on its machine the driver's."""
    import ray

    node, run, folders = ray.get(keeper.facts.remote())
    ray.get(keeper.gather.remote())  # an actor that was lost may have left something on another node
    if ray.get_runtime_context().get_node_id() == node:
        return stages
    for folder in folders:
        noted = on_this_node(folder) / "fetched.json"  # how far this node has come in this run
        after = 0
        with suppress(OSError, ValueError, LookupError):
            found = json.loads(noted.read_text(encoding="utf-8"))
            after = found["after"] if found["run"] == run else 0
        page, after = ray.get(keeper.page.remote(folder, after))
        while page:
            store_upkeep.add_replies(noted.parent, page)
            noted.write_text(json.dumps({"run": run, "after": after}), encoding="utf-8")
            page, after = ray.get(keeper.page.remote(folder, after))
    return stages.asking(lambda one: one.kept_at(on_this_node)).changed(lambda one: one.kept_at(on_this_node))


def on_this_node(folder: Path) -> Path:
    """The folder of this node's store. It names the node: where several see one disk, sqlite must not be shared."""
    return folder / "nodes" / platform.node()


def _page_of_node(folder: Path, after: int) -> tuple[list[Stored], int]:
    return store_upkeep.page(on_this_node(folder), after, PAGE)


def first_line(error: BaseException) -> str:
    """The beginning of what an error of Ray says, which may be pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300].rstrip(".")
