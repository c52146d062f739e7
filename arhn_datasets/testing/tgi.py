"""``python -m arhn_datasets.testing.tgi``: the emulator as a server to try the HTTP path with.

It prints its URL in one line, and one line of counts when it ends (Ctrl-C or SIGTERM). Errors of usage exit with 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing.emulator import Emulator
from arhn_datasets.testing.faults import KINDS, Fault
from arhn_datasets.testing.latency import Latency
from arhn_datasets.testing.process import emulator_of

_NUMBERS = {
    "slots": "size of the batch, default {}",
    "max_concurrent_requests": "above, 429; default {}",
    "max_input_tokens": "default {}",
    "max_total_tokens": "default {}",
    "prefix_block": "tokens in a block of the prefix cache, default {}: none",
}
_LATENCY = {
    "prefill": ("S", "for each input token"),
    "decode": ("S", "for each generated token"),
    "overhead": ("S", "for each request"),
    "grammar": ("S", "for each new grammar"),
    "tail": ("P", "probability of a slow request"),
    "tail_factor": ("X", f"how much slower it is; default {Latency.tail_factor:g}"),
    "time_scale": ("X", "factor on all of these"),
    "seed": ("N", "of the slow ones"),
    "slower_after": ("N", "requests that are served at this speed, later ones take longer; default 0: all"),
    "slower_factor": ("X", f"how much longer; default {Latency.slower_factor:g}"),
}


def parser() -> argparse.ArgumentParser:
    """The arguments; what is not given is as `Emulator` has it."""
    made = argparse.ArgumentParser(
        prog="python -m arhn_datasets.testing.tgi",
        description="text-generation-inference's HTTP contract without a model; the lexical baseline replies.",
        epilog="faults: " + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
        argument_default=argparse.SUPPRESS,
    )
    add = made.add_argument
    add("--host", help=f"default {Emulator.host}")
    add("--port", type=int, default=8080, help="0 for any free one; default 8080")
    add("--model", metavar="ID", help=f"default {Emulator.model}")
    add("--revision", metavar="SHA", help="of the model")
    add("--api-key", metavar="KEY", help="bearer token to ask for")
    add("--reply", metavar="TEXT", help="one reply for every prompt, instead of the baseline's")
    for name, what in _NUMBERS.items():
        add(_flag(name), type=int, metavar="N", help=what.format(getattr(Emulator, name)))
    add("--thinking", type=int, nargs="?", const=64, metavar="WORDS", help="think before each reply")
    add("--no-chat-template", dest="chat_template", action="store_false", help="chats are refused with 422")
    add(
        "--undeclared", dest="declared", action="store_false", help="no /info, no /metrics: an OpenAI-compatible server"
    )
    add("--no-drops", dest="drops", action="store_false", help="the work for a client that is gone goes on")
    add("--no-system-role", dest="system_role", action="store_false", help="system messages, too")
    add("--no-grammar", dest="grammars", action="store_false", help="constrained output is refused")
    when = "with every request, that of a NUMBER, those FROM-TO, or with a PROBABILITY such as 0.1; repeatable"
    add("--fault", dest="faults", action="append", metavar="KIND[:WHEN]", help=when)
    latency = made.add_argument_group("latency, in seconds")
    for name, (metavar, what) in _LATENCY.items():
        flags = [_flag(name), *(["--latency"] if name == "overhead" else [])]
        latency.add_argument(
            *flags, type=int if name in ("seed", "slower_after") else float, metavar=metavar, help=what
        )
    add("--config", type=json.loads, help=argparse.SUPPRESS)
    add("--until-eof", action="store_true", default=False, help=argparse.SUPPRESS)
    return made


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def configured(options: dict[str, Any]) -> Emulator:
    """The emulator that the arguments describe.

    Raises:
        ConfigurationError: they describe none.
    """
    if "config" in options:
        return emulator_of(options["config"])
    values = dict(options)
    values["latency"] = {one.name: values.pop(one.name) for one in fields(Latency) if one.name in values}
    values["faults"] = [Fault.from_text(text).to_json() for text in values.get("faults", ())]
    return emulator_of(values)


async def serve(emulator: Emulator, *, until_eof: bool) -> None:
    """Serve until a signal comes, or the end of standard input."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await emulator.start()
    if until_eof:

        def read() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                ended.set()

        loop.add_reader(sys.stdin.fileno(), read)
    _say(emulator.url)
    await ended.wait()
    stats = emulator.stats
    await emulator.stop()
    _say(stats.summary())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    made = parser()
    options = vars(made.parse_args(arguments))
    until_eof = options.pop("until_eof")
    try:
        asyncio.run(serve(configured(options), until_eof=until_eof))
    except (ConfigurationError, OSError) as error:
        made.error(str(error))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
