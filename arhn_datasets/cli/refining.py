"""``arhn-refine``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arhn_datasets.annotators.client.contract import APIS
from arhn_datasets.annotators.client.store import default_directory, directory_of
from arhn_datasets.annotators.endpoint import Endpoint
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.annotators.llm import MAX_TOKENS
from arhn_datasets.annotators.local import Local
from arhn_datasets.annotators.prompts import TASKS
from arhn_datasets.cli.running import DONE, FAILED, command_parser, guarded, not_negative, positive, whole
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rules.arhn import POLICIES, REFERENCES, TIES, UNSUPPORTED
from arhn_datasets.rules.rule import GUARDS

if TYPE_CHECKING:
    from arhn_datasets.folder.writer import Refinement
    from arhn_datasets.inputs.sources import Input, Shard
    from arhn_datasets.runs.refine import Stages

ENGINES = ("datasets", "ray")
ESTIMATED_ROWS = 32
MOST_PERMUTATIONS = 100  # each asks for all windows of every row again
# What only an LLM server takes, and what only an LLM has.
OF_SERVER = ("api_key", "api", "constrained", "timeout", "give_up_after", "concurrency")
OF_MODEL = ("model", "model_revision", "max_tokens")
ANNOTATORS = ("lexical", "local", "tgi")
BASELINE_WARNING = (
    "Warning: the lexical annotator is a baseline, not an LLM. It measures word overlap and cannot tell an answer "
    "from a passage about the same subject."
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
        help="a .jsonl, .json, .parquet or .csv file, a folder of them, a save_to_disk folder, or a Hub id",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write, laid out as a Hub dataset")
    source = parser.add_argument_group("input")
    source.add_argument("--config", help="configuration of a Hub dataset")
    source.add_argument("--split", help="only this split; that of a single file is train")
    source.add_argument("--revision", help="commit, branch or tag of a Hub dataset")
    source.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each split")
    source.add_argument(
        "--streaming", action="store_true", help="read rows as they are needed, in bounded memory; goes on after an end"
    )
    source.add_argument("--shard-index", type=int, metavar="I", help="only this shard of each split, from 0")
    source.add_argument("--num-shards", type=positive, metavar="N", help="of so many")
    annotator = parser.add_argument_group("annotator")
    annotator.add_argument(
        "--annotator",
        choices=ANNOTATORS,
        help="who gives the evidence: an LLM server (tgi, also OpenAI-compatible), a transformers model in this "
        "process (local), or the word-overlap baseline (lexical); default: tgi if an endpoint is given",
    )
    annotator.add_argument(
        "--endpoint", action="append", metavar="URL", help="an LLM server; repeatable; default: ARHN_ENDPOINT"
    )
    annotator.add_argument("--model", help="the model that has to answer; with --annotator local the id or folder")
    annotator.add_argument("--model-revision", metavar="SHA", help="its commit")
    annotator.add_argument("--api-key", metavar="KEY", help="sent to the endpoint alone; default: ARHN_API_KEY")
    annotator.add_argument("--provider", metavar="NAME", help="an inference provider of the Hub instead of an endpoint")
    annotator.add_argument("--api", choices=APIS, help="what the endpoint speaks; default: it is asked")
    annotator.add_argument("--constrained", action="store_true", help="hold the model to JSON, where the server can")
    annotator.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help=f"most tokens of a snippet reply, up to {MAX_TOKENS}; default: {Endpoint.max_tokens}",
    )
    annotator.add_argument(
        "--timeout", type=not_negative, metavar="SECONDS", help=f"for each attempt; default: {Endpoint.timeout:g}"
    )
    annotator.add_argument(
        "--give-up-after",
        type=not_negative,
        metavar="SECONDS",
        help=f"end the run when no endpoint answers; default: {Endpoint.give_up_after:g}",
    )
    annotator.add_argument("--concurrency", type=positive, metavar="N", help="requests in flight for each server")
    annotator.add_argument(
        "--cache", metavar="DIR|none", help="store of replies, kept between runs; default: ARHN_CACHE or user cache"
    )
    annotator.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK|SUBSET=TASK",
        help=f"prompts for all rows or for a subset, one of {', '.join(TASKS)}; repeatable; default: by subset",
    )
    ranking = parser.add_argument_group("ranking")
    ranking.add_argument("--rank-by", choices=("snippet", "passage"), default="snippet")
    ranking.add_argument("--window", type=positive, default=20, metavar="N", help="most candidates in a request")
    ranking.add_argument("--stride", type=positive, default=10, metavar="N", help="shift of the next window")
    ranking.add_argument(
        "--permutations",
        type=whole(1, MOST_PERMUTATIONS),
        default=1,
        metavar="K",
        help=f"rankings of each set, up to {MOST_PERMUTATIONS}",
    )
    ranking.add_argument("--seed", type=int, default=0, help="of the shown orders")
    policy = parser.add_argument_group("policy")
    policy.add_argument("--policy", choices=POLICIES, default="relabel+filter")
    policy.add_argument("--reference", choices=REFERENCES, default="best", help="with several positives")
    policy.add_argument("--unsupported", choices=UNSUPPORTED, default="filter", help="where no positive answers")
    policy.add_argument("--ties", choices=TIES, default="above", help="negatives with the reference's very words")
    policy.add_argument("--min-negatives", type=int, default=1, metavar="N", help="fewest that a row has left")
    policy.add_argument("--on-shortage", choices=GUARDS, default="keep", help="what becomes of a row with fewer")
    policy.add_argument("--max-relabelled", type=int, metavar="N", help="most new positives in a row")
    policy.add_argument("--on-excess", choices=GUARDS, default="keep", help="what becomes of a row with more")
    run = parser.add_argument_group("run")
    run.add_argument("--num-proc", type=positive, metavar="N", help="processes, that share the limit of the endpoint")
    run.add_argument("--batch-size", type=positive, metavar="N", help="rows in a call")
    run.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs the stages; default: datasets")
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
        help="tokens in and out, instead of hours",
    )
    run.add_argument("--show", type=whole(0), default=0, metavar="N", help="print N changed rows at the end")
    return parser


def configured_stages(options: argparse.Namespace) -> Stages:
    """The transforms that the arguments of ``arhn-refine`` name.

    Raises:
        ConfigurationError: the arguments do not fit each other.
    """
    from arhn_datasets.evidence.ranks import Ranks
    from arhn_datasets.evidence.snippets import Snippets
    from arhn_datasets.rules.arhn import Relabel
    from arhn_datasets.runs.refine import Stages

    annotator = _annotator(options)
    tasks = _tasks(options.task)
    return Stages(
        snippets=Snippets(annotator=annotator, tasks=tasks),
        ranks=Ranks(
            annotator=annotator,
            tasks=tasks,
            rank_by=options.rank_by,
            window=options.window,
            stride=options.stride,
            permutations=options.permutations,
            seed=options.seed,
        ),
        relabel=Relabel(
            policy=options.policy,
            reference=options.reference,
            unsupported=options.unsupported,
            ties=options.ties,
            min_negatives=options.min_negatives,
            on_shortage=options.on_shortage,
            max_relabelled=options.max_relabelled,
            on_excess=options.on_excess,
        ),
    )


def _annotator(options: argparse.Namespace) -> Annotator:
    urls = options.endpoint or [url for url in os.environ.get("ARHN_ENDPOINT", "").split(",") if url.strip()]
    if options.provider:
        return _provided(options)
    kind = options.annotator or ("tgi" if urls else None)
    if kind is None:
        raise ConfigurationError(
            "No annotator was named. Choose one: --endpoint URL (an LLM server; or set ARHN_ENDPOINT), "
            "--annotator local --model ID (a transformers model in this process), or --annotator lexical "
            "(a word-overlap baseline that needs no LLM)."
        )
    if kind != "tgi" and options.endpoint:
        raise ConfigurationError(f"--endpoint goes with --annotator tgi, not with {kind}; leave one of them out.")
    if kind == "lexical":
        _refuse(options, (*OF_MODEL, *OF_SERVER), "an LLM, not with --annotator lexical")
        return Lexical()
    if kind == "local":
        _refuse(options, OF_SERVER, "an LLM server, not with --annotator local")
        if not options.model:
            raise ConfigurationError("--annotator local needs --model: a Hub id such as Qwen/Qwen3-4B, or a folder.")
        return Local(
            options.model, revision=options.model_revision, max_tokens=_max_tokens(options), cache=options.cache
        )
    if not urls:
        raise ConfigurationError("--annotator tgi needs --endpoint URL (or ARHN_ENDPOINT), e.g. http://localhost:8080.")
    timeout, give_up_after = _patience(options)
    return Endpoint(
        tuple(urls),
        model=options.model or os.environ.get("ARHN_MODEL"),
        revision=options.model_revision,
        api_key=options.api_key,
        api=options.api,
        max_tokens=_max_tokens(options),
        constrained=options.constrained,
        timeout=timeout,
        give_up_after=give_up_after,
        concurrency=options.concurrency,
        cache=options.cache,
    )


def _refuse(options: argparse.Namespace, names: Sequence[str], place: str) -> None:
    """Refuse what was given and would have no effect."""
    if given := [name for name in names if _is_given(getattr(options, name))]:
        goes, it = ("goes", "it") if len(given) == 1 else ("go", "them")
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigurationError(f"{flags} {goes} with {place}; leave {it} out.")


def _is_given(value: object) -> bool:
    return value is not None and value is not False  # 0 is a value


def _max_tokens(options: argparse.Namespace) -> int:
    """The limit of a snippet reply; its default is no default of the parser, which hides what was given."""
    return Endpoint.max_tokens if options.max_tokens is None else int(options.max_tokens)


def _patience(options: argparse.Namespace) -> tuple[float, float]:
    """The timeout, and when to give up; their defaults are no defaults of the parser, which hide what was given."""
    return (
        Endpoint.timeout if options.timeout is None else options.timeout,
        Endpoint.give_up_after if options.give_up_after is None else options.give_up_after,
    )


def _provided(options: argparse.Namespace) -> Annotator:
    key = options.api_key or os.environ.get("ARHN_API_KEY")
    if not (key and options.model) or options.endpoint or options.annotator in ("lexical", "local"):
        raise ConfigurationError(
            "--provider goes with --model ID and a key of the Hub in ARHN_API_KEY (or --api-key), and without "
            "--endpoint; the key that is stored on this machine is never sent by itself."
        )
    from huggingface_hub import AsyncInferenceClient

    timeout, give_up_after = _patience(options)
    return Endpoint(
        client=AsyncInferenceClient(provider=options.provider, api_key=key, timeout=timeout),
        model=options.model,
        revision=options.model_revision,
        max_tokens=_max_tokens(options),
        constrained=options.constrained,
        timeout=timeout,
        give_up_after=give_up_after,
        concurrency=options.concurrency,
        cache=options.cache,
    )


def _tasks(named: Sequence[str]) -> str | Mapping[str, str] | None:
    whole = [task for task in named if "=" not in task]
    by_subset = dict(task.rsplit("=", 1) for task in named if "=" in task)
    if len(whole) > 1 or (whole and by_subset):
        raise ConfigurationError(f"--task got {list(named)}; expected one task for all rows, or SUBSET=TASK for each.")
    return whole[0] if whole else by_subset or None


def _refine(options: argparse.Namespace) -> int:
    from arhn_datasets.inputs.sources import Input
    from arhn_datasets.runs.refine import refine

    if not options.estimate:
        _refuse(options, ("estimate_rows", "price_per_hour", "price_per_million"), "--estimate")
    if options.price_per_hour is not None and options.price_per_million is not None:
        raise ConfigurationError(
            "There are --price-per-hour and --price-per-million, and a run is paid by one of them; leave the other out."
        )
    stages = configured_stages(options)
    if stages.annotator.baseline:
        print(BASELINE_WARNING, file=sys.stderr)
    source = Input(
        name=options.input,
        config=options.config,
        split=options.split,
        revision=options.revision,
        limit=options.limit,
        shard=_shard(options),
    )
    if options.estimate:
        return _estimate(source, stages, options)
    if not options.output:
        raise ConfigurationError("--output DIR is missing: the folder to write.")
    if options.engine == "ray":
        return _summary(_refine_on_ray(source, stages, options), options)
    if options.ray_address or options.ray_actors:
        raise ConfigurationError("--ray-address and --ray-actors go with --engine ray; add it, or leave them out.")
    done = refine(
        source,
        options.output,
        stages,
        num_proc=options.num_proc,
        batch_size=options.batch_size,
        streaming=options.streaming,
    )
    return _summary(done, options)


def _refine_on_ray(source: Input, stages: Stages, options: argparse.Namespace) -> Refinement:
    from arhn_datasets.runs.ray import refine_on_ray

    given = {"--num-proc": options.num_proc, "--batch-size": options.batch_size, "--streaming": options.streaming}
    if others := [name for name, value in given.items() if value]:
        raise ConfigurationError(
            f"{', '.join(others)} belongs to the engine datasets; with --engine ray only --ray-actors N says how many "
            "processes there are. Leave it out."
        )
    return refine_on_ray(source, options.output, stages, address=options.ray_address, actors=options.ray_actors)


def _shard(options: argparse.Namespace) -> Shard | None:
    from arhn_datasets.inputs.sources import Shard

    given = (options.shard_index, options.num_shards)
    if given == (None, None):
        return None
    if None in given:
        raise ConfigurationError("--shard-index I and --num-shards N go together; give both, or neither.")
    return Shard(index=options.shard_index, of=options.num_shards)


def _estimate(source: Input, stages: Stages, options: argparse.Namespace) -> int:
    if options.streaming or source.shard:
        raise ConfigurationError(
            "--estimate reads the whole input and tells of the whole run; leave --streaming and the shard out."
        )
    from arhn_datasets.runs.estimate import Prices, estimate, format_estimate

    sample = options.estimate_rows or ESTIMATED_ROWS
    per_in, per_out = options.price_per_million or (None, None)
    prices = Prices(per_hour=options.price_per_hour, per_million_in=per_in, per_million_out=per_out)
    print(f"annotating {sample} rows ...", file=sys.stderr)
    found = estimate(source, stages, sample=sample, prices=prices)
    print(format_estimate(found))
    return DONE


def _summary(done: Refinement, options: argparse.Namespace) -> int:
    from arhn_datasets.folder.reading import open_folder
    from arhn_datasets.folder.report import changed_rows, format_report, format_row

    if options.show:
        folder = open_folder(done.path)
        tables = (table for split in folder.splits for table in folder.tables(split))
        for row in changed_rows(tables, options.show):
            print(format_row(row), end="\n\n")
    print(format_report(done.report))
    seconds = sum(done.run["durations_seconds"].values())
    print(f"\nannotator {done.run['annotator']['annotator']}, {seconds:.1f} seconds")
    if asked := done.run["requests"]:
        tokens = f"{asked['prompt_tokens']:,} tokens in, {asked['completion_tokens']:,} out"
        print(
            f"requests  {asked['replies']:,} replies, {asked['stored']:,} from the store, {asked['retries']:,} retries"
        )
        print(f"          {tokens}")
    if done.run["annotator"].get("baseline"):
        print(BASELINE_WARNING)
    print(f'written   {done.path}   load_dataset("{done.path}") loads it')
    total = done.report.total
    if not total.errors:
        return DONE
    print(
        f"{total.errors:,} requests failed; their passages stayed where they were. "
        "Run the same command again: only these are asked anew.",
        file=sys.stderr,
    )
    return FAILED if total.errors == sum(total.snippets.values()) + total.rankings.get("error", 0) else DONE


def what_is_kept(options: argparse.Namespace) -> str:
    """What an interrupted run tells: where its replies are, and how to go on."""
    from arhn_datasets.runs.streaming import work_folder

    named = default_directory() if options.cache is None else directory_of(options.cache)
    nothing = f"Nothing was written to {options.output}."
    if options.streaming and (unfinished := work_folder(Path(options.output))).exists():
        nothing += f" What is finished of it is kept in {unfinished}."
        if options.annotator == "lexical" or named is None:
            return f"{nothing} Run the same command to go on from there."
    if options.annotator == "lexical" or named is None:
        return f"{nothing} Run the same command to start again."
    return f"{nothing} Every reply so far is kept in {named}; run the same command again and only the rest is asked."
