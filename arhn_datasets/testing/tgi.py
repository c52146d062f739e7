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
from arhn_datasets.testing.process import default_of, emulator_of


def parser() -> argparse.ArgumentParser:
    """The arguments; what is not given is as `Emulator` has it."""
    made = argparse.ArgumentParser(
        prog="python -m arhn_datasets.testing.tgi",
        description="text-generation-inference's HTTP contract without a model; the lexical baseline replies.",
        epilog="faults: " + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("--host", help=f"default {default_of('host')}")
    made.add_argument("--port", type=int, default=8080, help="0 for any free one; default 8080")
    made.add_argument("--model", metavar="ID", help=f"default {default_of('model')}")
    made.add_argument("--revision", metavar="SHA", help="of the model")
    made.add_argument("--api-key", metavar="KEY", help="bearer token to ask for")
    made.add_argument("--reply", metavar="TEXT", help="one reply for every prompt, instead of the baseline's")
    made.add_argument("--slots", type=int, metavar="N", help=f"size of the batch, default {default_of('slots')}")
    made.add_argument(
        "--max-concurrent-requests",
        type=int,
        metavar="N",
        help=f"above, 429; default {default_of('max_concurrent_requests')}",
    )
    made.add_argument("--max-input-tokens", type=int, metavar="N", help=f"default {default_of('max_input_tokens')}")
    made.add_argument("--max-total-tokens", type=int, metavar="N", help=f"default {default_of('max_total_tokens')}")
    made.add_argument(
        "--prefix-block", type=int, metavar="N", help="tokens in a block of the prefix cache, default 0: none"
    )
    made.add_argument("--thinking", type=int, nargs="?", const=64, metavar="WORDS", help="think before each reply")
    made.add_argument(
        "--no-chat-template", dest="chat_template", action="store_false", help="chats are refused with 422"
    )
    made.add_argument("--no-system-role", dest="system_role", action="store_false", help="system messages, too")
    made.add_argument("--no-grammar", dest="grammars", action="store_false", help="constrained output is refused")
    made.add_argument(
        "--fault",
        dest="faults",
        action="append",
        metavar="KIND[:WHEN]",
        help="with every request, that of a NUMBER, those FROM-TO, or with a PROBABILITY such as 0.1; repeatable",
    )
    latency = made.add_argument_group("latency, in seconds")
    latency.add_argument("--prefill", type=float, metavar="S", help="for each input token")
    latency.add_argument("--decode", type=float, metavar="S", help="for each generated token")
    latency.add_argument("--overhead", "--latency", type=float, metavar="S", help="for each request")
    latency.add_argument("--grammar", type=float, metavar="S", help="for each new grammar")
    latency.add_argument("--tail", type=float, metavar="P", help="probability of a slow request")
    latency.add_argument("--tail-factor", type=float, metavar="X", help="how much slower it is; default 10")
    latency.add_argument("--time-scale", type=float, metavar="X", help="factor on all of these")
    latency.add_argument("--seed", type=int, metavar="N", help="of the slow ones")
    made.add_argument("--config", type=json.loads, help=argparse.SUPPRESS)
    made.add_argument("--until-eof", action="store_true", default=False, help=argparse.SUPPRESS)
    return made


def configured(options: dict[str, Any]) -> Emulator:
    """The emulator that the arguments describe.

    Raises:
        ConfigurationError: they describe none.
    """
    if "config" in options:
        return emulator_of(options["config"])
    values = dict(options)
    values["latency"] = {one.name: values.pop(one.name) for one in fields(Latency) if one.name in values}
    values["faults"] = [Fault.from_text(text) for text in values.get("faults", ())]
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
