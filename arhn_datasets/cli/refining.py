"""``arhn-refine``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arhn_datasets.annotators.client.store import directory_of
from arhn_datasets.cli.rounds import add_rounds, plan_of, planned_round, what_a_plan_keeps
from arhn_datasets.cli.running import DONE, FAILED, command_parser, guarded, not_negative, positive, share, whole
from arhn_datasets.cli.stages import add_stage_options, configured_stages, keeps_replies, refuse, unread_evidence
from arhn_datasets.errors import ConfigurationError, NotYetAnsweredError
from arhn_datasets.inputs.bad_rows import FILE as BAD_ROWS
from arhn_datasets.inputs.bad_rows import ON_BAD_ROW, STOP
from arhn_datasets.rows.records import ERROR

if TYPE_CHECKING:
    from arhn_datasets.folder.report import Report
    from arhn_datasets.folder.writer import Refinement
    from arhn_datasets.inputs.sources import Input
    from arhn_datasets.runs.preparing import Stages

ENGINES = ("process", "ray")
ESTIMATED_ROWS = 32
MAX_UNREAD = 0.5
CAUSES_TOLD = 5
BASELINE_WARNING = (
    "Warning: the lexical annotator is a baseline, not an LLM. It measures word overlap and cannot tell an answer "
    "from a passage about the same subject."
)
UNREAD_WARNING = (
    "Warning: the rule ({rule}) does not read {kinds}. What they cost is paid, and they decide nothing; they stay in "
    "the rows, for another rule or an evaluation."
)
CUT_PAIRS = {
    "cut_pairs": "are longer than the model of the scores reads: their score is that of their beginning",
    "perhaps_cut_pairs": "are long, and the server does not say how much it reads: their score may be in part",
}
CUT_OFF_ADVICE = (
    "they count for nothing and are not stored, so a rerun asks again. Expected were whole replies: give snippets more "
    "room with --max-tokens, take a model that does not think or switch its thinking off, or hold it to JSON with "
    "--constrained."
)


def refine_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-refine``, and ``arhn-refine merge``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["merge"]:
        merging = merge_parser().parse_args(given[1:])
        return guarded(lambda: _merge(merging), lambda: f"Nothing was written to {merging.output}.")
    options = refine_parser().parse_args(given)
    return guarded(lambda: _refine(options), lambda: what_is_kept(options))


def merge_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-refine merge``."""
    parser = command_parser(
        "arhn-refine merge", "Write the shards of one run as the one folder that the run would have written at once."
    )
    parser.add_argument("output", metavar="OUT", help="folder to write, laid out as a Hub dataset")
    parser.add_argument(
        "folders", metavar="SHARD_DIR", nargs="+", help="what --shard-index I --num-shards N has written, each once"
    )
    return parser


def _merge(options: argparse.Namespace) -> int:
    from arhn_datasets.folder.report import format_report
    from arhn_datasets.runs.shards import merge

    done = merge(options.output, options.folders)
    print(format_report(done.report))
    print(f'\nmerged    {len(options.folders)} shards\nwritten   {done.path}   load_dataset("{done.path}") loads it')
    return DONE


def refine_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-refine``."""
    parser = command_parser("arhn-refine", "Repair the hard negatives of a retrieval training set.")
    parser.epilog = (
        "arhn-refine merge OUT SHARD_DIR ... puts the shards of one run together (an INPUT of that name: ./merge)."
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="files (.jsonl, .json, .ndjson, .parquet, .csv, .tsv, .arrow, also .gz, .bz2, .xz, .zst), folders or "
        "patterns of them, - for what a pipe brings, a save_to_disk folder, a BEIR folder with a run, or a Hub id: "
        "user/name[@revision], hf://datasets/user/name/path",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write, laid out as a Hub dataset")
    _add_source(parser)
    add_stage_options(parser)
    _add_run(parser)
    add_rounds(parser)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("input")
    source.add_argument("--config", help="configuration of a Hub dataset")
    source.add_argument("--split", help="only this split; that of a single file is train")
    source.add_argument("--revision", help="commit, branch or tag of a Hub dataset")
    source.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each split")
    source.add_argument(
        "--drop-columns", action="append", default=[], metavar="A,B", help="leave these columns out; repeatable"
    )
    source.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="another name for a column; repeatable"
    )
    source.add_argument(
        "--label-threshold",
        type=float,
        metavar="X",
        help="of scores beside documents: at or above X a passage is positive, below it negative",
    )
    source.add_argument(
        "--on-bad-row",
        choices=ON_BAD_ROW,
        default=STOP,
        help=f"rows that break their form end the run, or go with their reasons into {BAD_ROWS} in the output",
    )
    source.add_argument("--shard-index", type=int, metavar="I", help="only this shard of each split, from 0")
    source.add_argument("--num-shards", type=positive, metavar="N", help="of so many")


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--batch-size", type=positive, metavar="N", help="rows that go through the stages together")
    run.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="where the stages run: in this process, or on Ray"
    )
    run.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the Ray cluster that this machine belongs to, HOST:PORT or auto; default: RAY_ADDRESS, else Ray on "
        "this machine alone",
    )
    run.add_argument("--ray-actors", type=positive, metavar="N", help="processes of the pool; default: one a node")
    run.add_argument("--estimate", action="store_true", help="annotate a sample, print what the run will cost, end")
    run.add_argument(
        "--estimate-rows", type=positive, metavar="N", help=f"rows of that sample; default: {ESTIMATED_ROWS}"
    )
    run.add_argument("--price-per-hour", type=not_negative, metavar="MONEY", help="of all endpoints together")
    run.add_argument(
        "--price-per-million",
        type=not_negative,
        nargs=2,
        metavar=("IN", "OUT"),
        help="tokens in and out, instead of hours; also of what --plan writes",
    )
    run.add_argument(
        "--max-unread",
        type=share,
        default=MAX_UNREAD,
        metavar="SHARE",
        help="largest share of requests without a readable reply (failed, unparsed, ungrounded) with which the run "
        f"counts as done; default: {MAX_UNREAD:g}",
    )
    run.add_argument("--show", type=whole(0), default=0, metavar="N", help="print N changed rows at the end")


def _refine(options: argparse.Namespace) -> int:
    with plan_of(options):
        return _refined(options)


def _refined(options: argparse.Namespace) -> int:
    from arhn_datasets.inputs.files import piped
    from arhn_datasets.inputs.sources import Input, Shard
    from arhn_datasets.runs.refine import refine

    _check_prices(options)
    stages = configured_stages(options)
    if any(annotator.baseline for annotator in stages.annotators):
        print(BASELINE_WARNING, file=sys.stderr)
    if unread := unread_evidence(stages):
        print(UNREAD_WARNING.format(rule=stages.rule.label, kinds=" and ".join(unread)), file=sys.stderr)
    shard = (options.shard_index, options.num_shards)
    if None in shard and shard != (None, None):
        raise ConfigurationError("--shard-index I and --num-shards N go together; give both, or neither.")
    name, *more = (str(piped()) if name == "-" else name for name in options.input)
    source = Input(
        name=name,
        more=tuple(more),
        config=options.config,
        split=options.split,
        revision=options.revision,
        limit=options.limit,
        shard=None if shard == (None, None) else Shard(index=options.shard_index, of=options.num_shards),
        drop_columns=tuple(name for names in options.drop_columns for name in names.split(",") if name),
        rename=_renamed(options.rename),
        label_threshold=options.label_threshold,
        on_bad_row=options.on_bad_row,
    )
    if options.estimate:
        return _estimate(source, stages, options)
    if options.opened is not None:
        return _round(source, stages, options)
    if not options.output:
        raise ConfigurationError("--output DIR is missing: the folder to write.")
    if options.engine == "ray":
        from arhn_datasets.runs.ray import on_ray

        refuse(options, ("batch_size",), "--engine process, for that of Ray cuts its blocks itself")
        engine = on_ray(options.ray_address, options.ray_actors)
        return _summary(refine(source, options.output, stages, opened=engine), stages, options)
    refuse(options, ("ray_address", "ray_actors"), "--engine ray")
    return _summary(refine(source, options.output, stages, batch_size=options.batch_size), stages, options)


def _check_prices(options: argparse.Namespace) -> None:
    if not options.estimate:
        refuse(options, ("estimate_rows", "price_per_hour"), "--estimate")
        if options.opened is None:
            refuse(options, ("price_per_million",), "--estimate or --plan")
    if options.price_per_hour is not None and options.price_per_million is not None:
        raise ConfigurationError(
            "There are --price-per-hour and --price-per-million, and a run is paid by one of them; leave the other out."
        )


def _round(source: Input, stages: Stages, options: argparse.Namespace) -> int:
    """Write the refined folder, where every reply is there, or else plan what is missing."""
    from arhn_datasets.runs.refine import refine
    from arhn_datasets.runs.rounds import one_round

    refuse(options, ("batch_size", "ray_address", "ray_actors"), "a run that asks by itself, not with --plan")
    try:
        done = refine(source, options.output, stages, opened=one_round)
    except NotYetAnsweredError:
        return planned_round(options)
    code = _summary(done, stages, options)
    if done.report.total.errors or done.run["requests"].get("cut_off"):
        print(
            "In batch rounds, requests that failed or were cut off are only asked again by --replan.", file=sys.stderr
        )
    return code


def _renamed(named: Sequence[str]) -> dict[str, str]:
    """The new name of each column that ``--rename`` names."""
    if odd := [one for one in named if not all(one.partition("="))]:
        raise ConfigurationError(f"--rename got {odd[0]!r}; OLD=NEW was expected.")
    return dict(one.split("=", 1) for one in named)


def _estimate(source: Input, stages: Stages, options: argparse.Namespace) -> int:
    if source.shard:
        raise ConfigurationError("--estimate reads the whole input and tells of the whole run; leave the shard out.")
    from arhn_datasets.runs.estimate import estimate, format_estimate

    sample = options.estimate_rows or ESTIMATED_ROWS
    print(f"annotating {sample} rows ...", file=sys.stderr)
    per_hour, per_million = options.price_per_hour, options.price_per_million
    print(format_estimate(estimate(source, stages, sample=sample, per_hour=per_hour, per_million=per_million)))
    return DONE


def _summary(done: Refinement, stages: Stages, options: argparse.Namespace) -> int:
    from arhn_datasets.folder.reading import open_folder
    from arhn_datasets.folder.report import changed_rows, format_report, format_row
    from arhn_datasets.rows.records import DROPPED

    if options.show:
        folder = open_folder(done.path)
        tables = (table for split in folder.splits for table in folder.tables(split))
        for row in changed_rows(tables, options.show):
            print(format_row(row), end="\n\n")
    print(format_report(done.report))
    seconds = sum(done.run["durations_seconds"].values())
    print(f"\nannotator {done.run['annotator']['annotator']}, {seconds:.1f} seconds")
    _tell_requests(done.run["requests"], [line for one in stages.annotators for line in one.told()])
    if reused := done.run["source"].get("reused"):
        print(f"reused    {', '.join(reused)} of {done.run.source.name}: asked about there, and not again")
    if done.run["annotator"].get("baseline"):
        print(BASELINE_WARNING)
    if bad := sum(done.run.source.bad_rows.values()):
        print(f"set aside {bad:,} rows that break their form, with their reasons: {done.path / BAD_ROWS}")
    total = done.report.total
    everything = total.rows and total.decisions.get(DROPPED) == total.rows
    print(f'written   {done.path}   load_dataset("{done.path}"{", " + repr(DROPPED) if everything else ""}) loads it')
    if everything:
        print(
            f"A guard dropped every row, so that none is left to train on: min_negatives is "
            f"{done.run.relabel['min_negatives']}, and the decision of each row says why. --on-shortage says what else "
            "becomes of rows with fewer.",
            file=sys.stderr,
        )
    return max(_outcome(done.report, options.max_unread), _unscored(done.run["requests"].get("failed_pairs", 0)))


def _tell_requests(asked: Mapping[str, int], learnt: Sequence[str]) -> None:
    if not asked:
        return
    pairs = asked.get("pairs")
    stored = "" if pairs and not asked["stored"] else f", {asked['stored']:,} from the store"
    print(f"requests  {asked['replies']:,} replies{stored}, {asked['retries']:,} retries")
    print(f"          {asked['prompt_tokens']:,} tokens in, {asked['completion_tokens']:,} out")
    for line in learnt:
        print(f"          {line}")
    if alone := asked.get("asked_alone"):
        print(f"          {alone:,} passages were asked about alone, as their pack had no plain line of them")
    if cut := asked.get("cut_off"):
        print(f"warning   replies that were cut off: {cut:,}; {CUT_OFF_ADVICE}")
    if pairs:
        print(f"scores    {pairs:,} pairs, {asked['stored_pairs']:,} from the store")
    for name, said in CUT_PAIRS.items():
        if cut := asked.get(name):
            print(f"          {cut:,} passages {said}")


def _unscored(failed: int) -> int:
    """Tell of passages that a server of scores has failed on; the exit code."""
    if failed:
        print(
            f"{failed:,} passages have no score, for their requests failed, as the warnings above say; the rule has "
            "left them where they were. Run the same command again: only these are asked anew.",
            file=sys.stderr,
        )
    return FAILED if failed else DONE


def _outcome(report: Report, most: float) -> int:
    """Tell what gave no evidence, and why; the exit code: a failure is any failed request, and much that is unread."""
    total, errors = report.total, [cause for cause in report.causes if cause.status == ERROR]
    unread = [cause for cause in report.causes if cause.status != ERROR]
    if total.errors:
        again = "Run the same command again: only these are asked anew."
        if not any(cause.passing for cause in errors):
            again = "Asking again cannot help before the cause is mended; then run the same command again."
        causes = "".join(f"\n  {cause}" for cause in errors[:CAUSES_TOLD])
        told = f"{total.errors:,} requests failed; their passages stayed where they were:"
        print(f"{told}{causes}\n{again}", file=sys.stderr)
    if report.unread > most and unread:
        causes = "".join(f"\n  {cause}" for cause in unread)
        print(
            f"Warning: {report.unread:.0%} of the requests gave no readable reply, and --max-unread is {most:g}; the "
            f"result says little.{causes}\nLook at what the model replies: it may need more tokens (--max-tokens), a "
            "chat template, or --constrained, or it may be too small for these prompts.",
            file=sys.stderr,
        )
    return FAILED if report.unread > most or total.errors else DONE


def what_is_kept(options: argparse.Namespace) -> str:
    """What an interrupted run tells: where its replies are, and how to go on."""
    from arhn_datasets.runs.refine import is_unfinished, work_folder

    if options.plan or options.ingest:
        return what_a_plan_keeps(options)
    named = directory_of(options.cache)
    nothing = f"Nothing was written to {options.output}."
    unfinished = options.output is not None and is_unfinished(Path(options.output))
    if unfinished:
        nothing += f" What is finished of it is kept in {work_folder(Path(options.output))}."
    if not keeps_replies(options) or named is None:
        return f"{nothing} Run the same command to {'go on from there' if unfinished else 'start again'}."
    return f"{nothing} Every reply so far is kept in {named}; run the same command again and only the rest is asked."
