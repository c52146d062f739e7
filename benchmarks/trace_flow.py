"""Follows one row with seven passages through ``arhn-refine`` and counts how often the way changes modules.

usage: trace_flow.py [--package DIR] [--push] [--top N]

The row is the second of the shipped sample, which is ranked; the emulator replies from another process, and the store
of replies is new. ``--push`` follows ``arhn-push --dry-run`` of the refined row instead. DIR is a checkout; it is
imported as it is, and every module of it before anything is counted.

A *call* is what ``sys.setprofile`` tells as one, in any thread, of code in the package: also of a comprehension, and
each time that a generator or a coroutine goes on. A *function* is a name in a module. A *switch* is a call in another
module than the one before it in the same thread; a pair of modules has *traffic both ways* where there are switches
from each to the other. Switches outside ``rows`` are those where neither module is of the folder ``rows`` (or is one of
those that it is made of); *without rows* are those that remain where its calls are left out, so that a way through it
from one module to another counts. The flat package before the folders (4600e3c) gave 36 modules, 503 functions and 980
switches, and 19, 271 and 505 with ``--push``. A run of the same code gives the same numbers, but for a few switches.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("rows", "records", "columns", "transform", "background")  # the last four until there is the first
HELP = "from {} import {} as command; command(['--help'])"
LIMIT_SECONDS = 120.0


def followed(entry: str, output: str, arguments: list[str]) -> None:
    """Run a command in this process, and write the modules and names of its calls, in order, for each thread."""
    package = importlib.import_module("arhn_datasets")
    for module in pkgutil.walk_packages(package.__path__, "arhn_datasets."):
        importlib.import_module(module.name)
    module_name, function = entry.split(":")
    command, root = getattr(sys.modules[module_name], function), f"{package.__path__[0]}{os.sep}"
    calls: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            module = frame.f_code.co_filename[len(root) :].removesuffix(".py").removesuffix("/__init__")
            calls[threading.get_ident()].append((module, frame.f_code.co_name))

    threading.setprofile(seen)
    sys.setprofile(seen)
    code = command(arguments)
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
    Path(output).write_text(json.dumps(list(calls.values())), encoding="utf-8")
    sys.exit(code)


def switches(threads: Iterable[Iterable[str]]) -> Counter[tuple[str, str]]:
    """How often one follows another."""
    return Counter((a, b) for places in threads for a, b in pairwise(places) if a != b)


def report(calls: list[list[tuple[str, str]]], top: int) -> None:
    """Print the counts by module and by folder, the pairs with the most traffic, and the functions."""
    for title, of in (("modules", str), ("folders, and modules at the top", lambda module: module.split("/")[0])):
        threads = [[of(module) for module, _ in thread] for thread in calls]
        found = switches(threads)
        outside = sum(number for pair, number in found.items() if not any(map(in_rows, pair)))
        without = switches([[place for place in thread if not in_rows(place)] for thread in threads])
        mutual = sum((b, a) in found for a, b in found) // 2
        print(f"{title}: {len({place for thread in threads for place in thread})} entered")
        print(f"  {sum(found.values())} switches, {outside} outside rows, {sum(without.values())} without rows")
        print(f"  {mutual} pairs with traffic both ways; the most of both directions:")
        both = Counter({(a, b): found[a, b] + found[b, a] for a, b in found if a < b or (b, a) not in found})
        for (a, b), number in both.most_common(top):
            print(f"  {number:>6}  {a} - {b}")
    functions = Counter(tuple(call) for thread in calls for call in thread)
    print(f"functions: {len(functions)} entered, {sum(functions.values()):,} calls; the most:")
    for (module, name), number in functions.most_common(top):
        print(f"  {number:>6}  {module}: {name}")


def in_rows(place: str) -> bool:
    return place.split("/")[0] in ROWS


def main() -> None:
    """Follow the command in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT, metavar="DIR", help="a checkout; default: this one")
    parser.add_argument("--push", action="store_true", help="follow arhn-push --dry-run")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="pairs and functions to print; default: 12")
    options = parser.parse_args()
    package = options.package.resolve()
    project = (package / "pyproject.toml").read_text(encoding="utf-8")
    entries = dict(re.findall(r'^(arhn-\w+) = "([\w.:]+)"$', project, re.MULTILINE))
    sample = (package / "arhn_datasets" / "samples" / "questions.jsonl").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "row.jsonl").write_text(sample.splitlines()[1] + "\n", encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(package), "HF_HOME": scratch}
        run: dict[str, Any] = {"cwd": scratch, "env": environment, "stdout": subprocess.PIPE, "text": True}
        serving = [sys.executable, "-m", "arhn_datasets.testing.tgi", "--port", "0"]

        def follow(command: str, *arguments: str) -> None:
            following = [sys.executable, str(Path(__file__).resolve()), "--follow", entries[command], "calls.json"]
            subprocess.run([*following, *arguments], **run, check=True, timeout=LIMIT_SECONDS)

        with subprocess.Popen(serving, **run) as server:
            try:
                url = server.stdout.readline().strip() if server.stdout else ""
                asking = HELP.format(*entries["arhn-refine"].split(":"))
                known = subprocess.run([sys.executable, "-c", asking], **run, timeout=LIMIT_SECONDS)
                streaming = ["--streaming"] if "--streaming" in known.stdout else []
                follow("arhn-refine", "row.jsonl", "--endpoint", url, "--cache", "s", "--output", "refined", *streaming)
                if options.push:
                    follow("arhn-push", "refined", "user/refined", "--dry-run")
            finally:
                server.terminate()
                server.communicate(timeout=LIMIT_SECONDS)
        report(json.loads(Path(scratch, "calls.json").read_text(encoding="utf-8")), options.top)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--follow"]:
        followed(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
