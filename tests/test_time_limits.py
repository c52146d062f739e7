"""Nothing that a test starts is waited for without a limit; `timeout` in pyproject.toml ends what hangs otherwise."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
STARTS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output")}


def endless_waits(source):
    """The lines that wait for a process, a thread, an event or a server without a limit.

    A coroutine's waits are left out: an event of asyncio has no limit of its own.
    """

    def found(node, in_coroutine):
        in_coroutine = isinstance(node, ast.AsyncFunctionDef) or (
            in_coroutine and not isinstance(node, ast.FunctionDef)
        )
        if isinstance(node, ast.Call) and "timeout" not in {keyword.arg for keyword in node.keywords}:
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            bare = name in ("wait", "join") and "." in called and not node.args and not in_coroutine
            if called in STARTS or name in ("communicate", "urlopen") or bare:
                yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from found(child, in_coroutine)

    return sorted(found(ast.parse(source), False))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_wait_has_a_limit(path):
    """Each call that starts or awaits a process, a thread or a reply says for how long."""
    assert endless_waits(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("subprocess.run(command)", [1]),
        ("subprocess.run(command, timeout=1)", []),
        ("\nprocess.communicate('input')", [2]),
        ("process.communicate(timeout=1)", []),
        ("process.wait()\nprocess.wait(1)\nthread.join()", [1, 3]),
        ("','.join(names)", []),
        ("async def main():\n    await event.wait()", []),
        ("async def main():\n    def inner():\n        event.wait()", [3]),
        ("urllib.request.urlopen(url)", [1]),
    ],
)
def test_waits_without_a_limit_are_found(source, lines):
    """A limit is an argument of the call, and only coroutines wait without one."""
    assert endless_waits(source) == lines
