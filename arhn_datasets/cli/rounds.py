"""Batch rounds at the command line: what ``arhn-refine``, ``arhn-cache`` and ``arhn-batch`` share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from arhn_datasets.annotators.client.contract import CONNECTION
from arhn_datasets.annotators.client.planning import AGAIN, OUT, Plan
from arhn_datasets.annotators.client.request_files import MOST_LINES, MOST_MEGABYTES, FileLimits
from arhn_datasets.annotators.client.store import directory_of
from arhn_datasets.annotators.llm import model_options
from arhn_datasets.cli.running import DONE, not_negative, positive, whole
from arhn_datasets.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from arhn_datasets.annotators.client.ingesting import Ingested
    from arhn_datasets.annotators.rounds import Rounds

POINTER = "last-plan.json"  # in the folder of the store
MILLION = 1_000_000
REASONS_TOLD = 12


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``arhn-refine`` for batch rounds."""
    group = parser.add_argument_group("batch rounds")
    group.add_argument(
        "--plan", metavar="DIR", type=Path, help="write the requests that have no reply yet as batch files, and end"
    )
    group.add_argument(
        "--ingest", metavar="FILE", nargs="+", type=Path, help="first read these output and error files of batches"
    )
    add_planning(group)
    add_ingesting(group)
    parser.set_defaults(opened=None)


def add_planning(group: argparse._ActionsContainer) -> None:
    """The arguments of whatever writes files of requests."""
    group.add_argument("--lines", type=positive, metavar="N", help=f"most requests of a file; default: {MOST_LINES:,}")
    group.add_argument(
        "--megabytes", type=not_negative, metavar="MB", help=f"most of a file; default: {MOST_MEGABYTES:g}"
    )
    group.add_argument("--messages", action="store_true", help="also as Parquet with a messages column, a row each")
    group.add_argument(
        "--replan",
        action="store_true",
        help="plan again what was handed over and has no reply, and what was refused or cut off",
    )


def add_ingesting(group: argparse._ActionsContainer) -> None:
    """The arguments of whatever reads outputs."""
    group.add_argument(
        "--served-as",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which the planned model answers; repeatable",
    )
    group.add_argument(
        "--whole-below",
        type=whole(1),
        default=0,
        metavar="BYTES",
        help="of replies that say no finish_reason: shorter ones are whole (the job's own limit of tokens)",
    )


@contextmanager
def plan_of(options: argparse.Namespace) -> Iterator[None]:
    """Open the plan that the arguments name, and read what they say has come in; nothing without a plan."""
    if options.plan is None and options.ingest is None:
        for name in ("lines", "megabytes", "messages", "replan", "served_as", "whole_below"):
            if getattr(options, name):
                raise ConfigurationError(
                    f"--{name.replace('_', '-')} goes with --plan DIR or --ingest FILE; leave it out."
                )
        yield
        return
    if options.estimate or options.engine != "process" or options.annotator not in (None, "tgi"):
        raise ConfigurationError(
            "--plan and --ingest ask nobody; leave --estimate, --engine and --annotator out. The tokens and the price "
            "are printed with the plan."
        )
    store = store_of(options.cache)
    folder = options.plan or _last_plan(store)
    options.model = options.model or os.environ.get("ARHN_MODEL")
    if options.model is None and not options.endpoint:
        raise ConfigurationError(
            "--plan needs --model ID, the model that the batches will ask, by the name that their provider knows it "
            "by (or --endpoint URL of a server that tells it)."
        )
    with Plan(folder, make=True, limits=_limits(options), replan=options.replan) as plan:
        store.mkdir(parents=True, exist_ok=True)
        (store / POINTER).write_text(json.dumps({"plan": str(folder.resolve())}), encoding="utf-8")
        options.plan, options.opened = folder, plan
        options.output = options.output or str(folder / "refined")
        if options.ingest:
            ingest(plan, store, options.ingest, options)
        yield


def store_of(cache: str | None) -> Path:
    """The folder of the store, without which there are no rounds."""
    folder = directory_of(cache)
    if folder is None:
        raise ConfigurationError("Batch rounds need a store of replies, and none is in use. Name one: --cache DIR.")
    return folder


def _limits(options: argparse.Namespace) -> FileLimits:
    given = {"lines": options.lines, "megabytes": options.megabytes}
    return FileLimits(**{name: value for name, value in given.items() if value is not None})


def _last_plan(store: Path) -> Path:
    try:
        return Path(json.loads((store / POINTER).read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, LookupError) as error:
        raise ConfigurationError(
            f"--ingest needs --plan DIR, the folder of the requests: nothing was planned with the store {store} yet."
        ) from error


def annotator_of_rounds(options: argparse.Namespace) -> Rounds:
    """The annotator that plans."""
    from arhn_datasets.annotators.rounds import Rounds

    given = {name: vars(options).get(name) for name in CONNECTION}
    connection = {name: value for name, value in given.items() if value is not None}
    if options.provider:
        raise ConfigurationError("--provider goes with a run that asks by itself, not with --plan; leave it out.")
    return Rounds(
        tuple(options.endpoint or ()) or None,
        plan=options.opened,
        model=options.model,
        constrained=options.constrained,
        **{**connection, **model_options(vars(options))},
    )


def planned_round(options: argparse.Namespace) -> int:
    """Tell what a round has planned, and what comes next."""
    plan: Plan = options.opened
    plan.finish_file()
    print_plan(plan, options)
    if not plan.new.requests and plan.out:
        print(
            f"next      nothing new was planned: {plan.out:,} requests are out. Read their outputs by --ingest "
            "FILE..., or plan them again with --replan when they are lost (they may be paid twice)"
        )
    elif plan.out:
        print(f"out       {plan.out:,} requests of before have no reply yet; they were not planned again")
    if plan.new.requests:
        print(
            f"next      arhn-batch submit {plan.folder} --url URL and arhn-batch collect {plan.folder}, or hand the "
            "files over yourself; then this command again, with --ingest FILE... for what you have fetched yourself"
        )
    return DONE


def plan_again(options: argparse.Namespace) -> None:
    """Plan from the files of a plan what failed, and tell."""
    with Plan(options.plan, limits=_limits(options), replan=options.replan) as plan:
        plan.plan_again()
        print_plan(plan, options)
        print(f"left      {plan.count(AGAIN):,} requests to plan again, {plan.count(OUT):,} out")


def ingest_alone(store: Path, options: argparse.Namespace) -> None:
    """Read files into the store, without the rows."""
    with Plan(options.plan or _last_plan(store)) as plan:
        ingest(plan, store, options.files, options)


def print_plan(plan: Plan, options: argparse.Namespace) -> None:
    """The requests that were planned, their tokens and their price."""
    from arhn_datasets.annotators.client.request_files import write_messages

    new, files = plan.new, plan.files_written
    print(f"planned   {new.requests:,} requests in {len(files):,} files in {plan.folder}")
    if not new.requests:
        return
    tokens_in, tokens_out, how = plan.tokens(new)
    print(f"tokens    {tokens_in:,} in, {tokens_out:,} out, estimated: {how}")
    if options.price_per_million is not None:
        price = (options.price_per_million[0] * tokens_in + options.price_per_million[1] * tokens_out) / MILLION
        print(f"price     {price:,.2f}")
    for path in [*files, *(write_messages(files) if options.messages else ())]:
        print(f"file      {path}")


def ingest(plan: Plan, store: Path, files: Sequence[Path], options: argparse.Namespace) -> Ingested:
    """Read files into the store, and tell what came of them."""
    from arhn_datasets.annotators.client.ingesting import Ingestion

    if absent := [str(path) for path in files if not path.is_file()]:
        raise InputError(f"There is no file {', '.join(absent)}. Expected the output files of batches; none was read.")
    done = Ingestion(plan, store, options.served_as, options.whole_below).read(files)
    print_ingested(done, plan)
    return done


def print_ingested(done: Ingested, plan: Plan) -> None:
    """What was read, what was not taken and why."""
    print(f"read      {done.lines:,} lines of {done.files:,} files")
    print(f"stored    {done.stored:,} replies; {done.known:,} lines more were known")
    if done.different:
        print(f"warning   {done.different:,} of those known say something else than the first reply, which is kept")
    if done.cut:
        print(f"cut off   {done.cut:,} replies were as long as they may be, and are evidence of nothing (--max-tokens)")
    if done.reasons:
        print(f"not taken {sum(done.reasons.values()):,} lines:")
        for reason, count in done.reasons.most_common(REASONS_TOLD):
            print(f"          {count:,} x {reason} ({done.example[reason]})")
    if done.unfinished:
        print(f"warning   not at their end: {', '.join(done.unfinished[:5])}; read them again when they are whole")
    print(f"left      {plan.count(AGAIN):,} requests to plan again, {plan.count(OUT):,} out")


def what_a_plan_keeps(options: argparse.Namespace) -> str:
    """What an interrupted round tells."""
    return (
        f"Nothing was written to {options.output or 'an output'}. Replies that were read are kept in "
        f"{directory_of(options.cache)}, and whole files of requests in {options.plan or 'the plan'}; run the same "
        "command again and only the rest is planned."
    )
