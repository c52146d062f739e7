"""The emulator in a process of its own, for benchmarks and for what kills its client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, Request, build_opener

import arhn_datasets
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing.counts import Stats
from arhn_datasets.testing.emulator import Emulator
from arhn_datasets.testing.faults import Fault
from arhn_datasets.testing.latency import Latency

if TYPE_CHECKING:
    from typing_extensions import Self

STOP_SECONDS = 10.0

_local = build_opener(ProxyHandler({}))  # loopback needs no proxy


class EmulatorProcess:
    """``with EmulatorProcess(slots=128, latency=Latency(decode=0.01)) as server:`` serves from another process.

    It takes what `Emulator` takes, except for a ``reply`` that is no text and faults with a function. The process ends
    with the block, or when this one dies. ``summary`` is its last line, ``lines`` what it printed.
    """

    def __init__(self, **options: Any) -> None:
        self._config = config_json(options)
        self.url = ""
        self.summary = ""

    def __enter__(self) -> Self:
        paths = [str(Path(arhn_datasets.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arhn_datasets.testing.tgi", "--config", self._config, "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the client
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert self._process.stdout is not None  # a pipe
        self.url = self._process.stdout.readline().strip()
        if not self.url.startswith("http"):
            self.__exit__()
            raise ConfigurationError(f"The emulator did not start: {self.url or 'see its message above'}.")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # end of file alone may not reach it: forked workers hold the pipe, too
        try:
            self.summary = self._process.communicate(timeout=STOP_SECONDS)[0].strip()
        except subprocess.TimeoutExpired:  # pragma: no cover - a safety net
            self._process.kill()
            self._process.communicate()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def stats(self) -> Stats:
        """The counters now."""
        return Stats.from_json(self._ask("GET", "stats"))

    def reset_stats(self) -> None:
        """Begin to count afresh."""
        self._ask("DELETE", "stats")

    def set_faults(self, *faults: Fault) -> None:
        """Begin another fault script."""
        self._ask("PUT", "faults", [fault.to_json() for fault in faults])

    def add_fault(self, fault: Fault) -> None:
        """Go on with one more fault."""
        self._ask("POST", "faults", [fault.to_json()])

    def _ask(self, method: str, name: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = Request(f"{self.url}/_emulator/{name}", data=data, method=method)
        with _local.open(request, timeout=STOP_SECONDS) as reply:
            return json.load(reply)


def config_json(options: dict[str, Any]) -> str:
    """Options of `Emulator` as one JSON text.

    Raises:
        ConfigurationError: one cannot be sent to another process, or there is none of that name.
    """
    values = dict(options)
    unknown = sorted(values.keys() - {one.name for one in fields(Emulator)})
    if unknown:
        raise ConfigurationError(f"The emulator has no option {', '.join(unknown)}.")
    if not isinstance(values.get("reply", ""), str) or values.get("intercept") is not None:
        raise ConfigurationError("Only a text can be the reply of an emulator in another process, and no intercept.")
    if "latency" in values:
        values["latency"] = asdict(values["latency"])
    values["faults"] = [fault.to_json() for fault in values.get("faults", ())]
    return json.dumps(values)


def emulator_of(config: dict[str, Any]) -> Emulator:
    """The emulator that :func:`config_json` describes.

    Raises:
        ConfigurationError: it describes none.
    """
    values = dict(config)
    try:
        values["latency"] = Latency(**values.get("latency", {}))
        values["faults"] = [Fault.from_json(one) for one in values.get("faults", ())]
        return Emulator(**values)
    except TypeError as error:
        raise ConfigurationError(f"The configuration describes no emulator: {error}.") from error
