"""``arhn-batch``."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arhn_datasets.annotators.client import batches
from arhn_datasets.annotators.client.contract import ConnectionOptions
from arhn_datasets.annotators.client.ingesting import Ingestion
from arhn_datasets.annotators.client.planning import Plan, Sums
from arhn_datasets.cli.rounds import MILLION, add_ingesting, print_ingested, store_of
from arhn_datasets.cli.running import DONE, FAILED, command_parser, guarded, not_negative
from arhn_datasets.errors import ConfigurationError, OutputError

POLL_SECONDS = 30.0


def batch_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-batch``."""
    options = batch_parser().parse_args(arguments)
    kept = "Batches that were made are noted in the plan, and nothing is handed over twice; run the same command again."
    return guarded(lambda: _batch(options), lambda: kept)


def batch_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-batch``."""
    parser = command_parser(
        "arhn-batch", "Hand the files of a plan to a provider of /v1/batches, and fetch the replies."
    )
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("plan", metavar="DIR", type=Path, help="folder that arhn-refine ROWS --plan DIR has written")
    shared.add_argument("--url", help="of the provider, e.g. https://api.openai.com; default: where it was submitted")
    shared.add_argument("--api-key", metavar="KEY", help="sent there alone; default: ARHN_API_KEY")
    shared.add_argument("--timeout", type=not_negative, default=300.0, metavar="SECONDS", help="for each request")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, description: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=description, description=description, parents=[shared], allow_abbrev=False)

    submit = action("submit", "hand over every file that is not yet, as a batch each")
    submit.add_argument(
        "--price-per-million", type=not_negative, nargs=2, metavar=("IN", "OUT"), help="print what it will cost"
    )
    submit.add_argument(
        "--again",
        action="store_true",
        help="also a file whose batch may have been made, where the provider cannot tell (it may be paid twice)",
    )
    action("status", "print how far each batch is")
    collect = action("collect", "fetch what has ended, and read it into the store of replies")
    collect.add_argument("--cache", metavar="DIR", help="folder of the store; default: ARHN_CACHE or the user's cache")
    collect.add_argument("--wait", action="store_true", help="until every batch has ended")
    collect.add_argument(
        "--poll", type=not_negative, default=POLL_SECONDS, metavar="SECONDS", help="between two looks; default: 30"
    )
    add_ingesting(collect)
    return parser


def _batch(options: argparse.Namespace) -> int:
    with Plan(options.plan) as plan:
        url = options.url or next((url for file in plan.files() if (url := batches.noted_in(file).get("url"))), None)
        if url is None:
            raise ConfigurationError("--url is missing: that of the provider, e.g. https://api.openai.com.")
        key = options.api_key or os.environ.get("ARHN_API_KEY")
        connection = ConnectionOptions(api_key=key, timeout=options.timeout)
        return asyncio.run(_acted(plan, batches.Provider(url, connection), options))


async def _acted(plan: Plan, provider: batches.Provider, options: argparse.Namespace) -> int:
    async with provider:
        if options.action == "submit":
            return await _submit(plan, provider, options)
        if options.action == "status":
            found = await batches.look(plan, provider)
            _print_progress([progress for progress, _ in found])
            return DONE
        return await _collect(plan, provider, options)


async def _submit(plan: Plan, provider: batches.Provider, options: argparse.Namespace) -> int:
    left = [file for file in plan.files() if not batches.noted_in(file).get("batch")]
    sums = Sums(
        requests=sum(file.lines for file in left),
        characters=sum(file.characters for file in left),
        most=sum(file.most for file in left),
    )
    tokens_in, tokens_out, how = plan.tokens(sums)
    print(f"to submit {sums.requests:,} requests in {len(left):,} files")
    print(f"tokens    {tokens_in:,} in, {tokens_out:,} out, estimated: {how}")
    if options.price_per_million is not None:
        price = (options.price_per_million[0] * tokens_in + options.price_per_million[1] * tokens_out) / MILLION
        print(f"price     {price:,.2f}", flush=True)
    for file, batch in await batches.submit(plan, provider, again=options.again):
        print(f"submitted {file.name} as {batch}")
    print(f"next      arhn-batch collect {plan.folder} --wait")
    return DONE


async def _collect(plan: Plan, provider: batches.Provider, options: argparse.Namespace) -> int:
    store = store_of(options.cache)
    while True:
        found = await batches.look(plan, provider)
        for progress, batch in found:
            if progress.ended and not batches.noted_in(progress.file).get("ended"):
                await _take(plan, provider, store, progress, batch, options)
        waiting = [progress for progress, _ in found if not progress.ended and progress.status != "not submitted"]
        if not waiting or not options.wait:
            break
        await asyncio.sleep(max(0.05, options.poll))
    _print_progress([progress for progress, _ in found])
    failed = [progress for progress, _ in found if progress.status == "failed"]
    if waiting:
        print(f"next      {len(waiting):,} batches are under way: run this command again, or with --wait")
    else:
        print("next      the arhn-refine command with --plan plans what is missing, or writes the refined folder")
    return FAILED if failed else DONE


async def _take(
    plan: Plan,
    provider: batches.Provider,
    store: Path,
    progress: batches.Progress,
    batch: Any,
    options: argparse.Namespace,
) -> None:
    """Fetch what a batch has brought, read it, and only then say that nothing more comes of it."""
    paths = await batches.fetch(plan, provider, progress.file, batch)
    reading = Ingestion(plan, store, options.served_as, options.whole_below)
    done = reading.read(paths)
    if done.lines < progress.completed:
        raise OutputError(
            f"{paths[0].parent if paths else options.plan} has {done.lines:,} lines of {progress.file.name}, and the "
            f"provider has completed {progress.completed:,}. What came is kept. Remove the files of this batch there "
            "and run the same command again, which fetches them anew."
        )
    again = reading.end(progress.file.number)
    kept = {name: batch.get(name) for name in ("status", "request_counts", "errors")}
    batches.note(plan, progress.file, ended=kept, at=int(time.time()))
    print(f"collected {progress.file.name}: {progress.status}")
    print_ingested(done, plan)
    if again:
        print(f"          {again:,} requests have no line in what came, and are planned again")


def _print_progress(found: Sequence[batches.Progress]) -> None:
    for one in found:
        told = f", {one.completed:,} of {one.file.lines:,} done" if one.status != "not submitted" else ""
        failed = f", {one.failed:,} failed" if one.failed else ""
        print(f"{one.file.name}  {one.status}{told}{failed}{f': {one.message}' if one.message else ''}")
