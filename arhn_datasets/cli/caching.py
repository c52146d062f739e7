"""``arhn-cache``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from arhn_datasets.annotators.client import store_upkeep
from arhn_datasets.annotators.client.store import FILE_NAME, directory_of
from arhn_datasets.cli.rounds import add_ingesting, add_planning, ingest_alone, plan_again
from arhn_datasets.cli.running import DONE, command_parser, guarded, not_negative
from arhn_datasets.errors import ConfigurationError

MEGABYTE = 1_000_000


def cache_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-cache``."""
    options = cache_parser().parse_args(arguments)
    return guarded(lambda: _cache(options), lambda: "The store is whole; run the same command again to go on.")


def cache_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-cache``."""
    parser = command_parser(
        "arhn-cache", "Look at the store of LLM replies, shorten it, or carry replies between machines."
    )
    folder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    folder.add_argument("--cache", metavar="DIR", help="folder of the store; default: ARHN_CACHE or the user's cache")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, description: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=description, description=description, parents=[folder], allow_abbrev=False)

    action("info", "print path, size and replies by model")
    prune = action("prune", "remove replies and shrink the file")
    prune.add_argument("--older-than", type=not_negative, metavar="DAYS", help="what was stored before")
    prune.add_argument("--model", metavar="ID", help="of this model, ID or ID@REVISION")
    prune.add_argument("--max-size", type=not_negative, metavar="MB", help="then the oldest, until the file fits")
    prune.add_argument("--dry-run", action="store_true", help="print what would go, remove nothing")
    action("export", "write a JSON line for each reply").add_argument("file", metavar="FILE.jsonl", type=Path)
    action("import", "add the replies of an exported file").add_argument("file", metavar="FILE.jsonl", type=Path)
    merge = action("merge", "add the replies of other stores")
    merge.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="folder of another store")
    plan = action("plan", "write the requests of a plan that failed again, from its own files and without the rows")
    plan.add_argument("plan", metavar="DIR", type=Path, help="folder that arhn-refine ROWS --plan DIR has written")
    plan.add_argument(
        "--price-per-million", type=not_negative, nargs=2, metavar=("IN", "OUT"), help="tokens in and out"
    )
    add_planning(plan)
    ingest = action("ingest", "read output and error files of batches, without the rows")
    ingest.add_argument("files", nargs="+", metavar="FILE", type=Path, help="JSONL, or Parquet with a response column")
    ingest.add_argument("--plan", metavar="DIR", type=Path, help="folder of their requests; default: the last one")
    add_ingesting(ingest)
    return parser


def _cache(options: argparse.Namespace) -> int:
    folder = directory_of(options.cache)
    if folder is None:
        raise ConfigurationError("No store of replies is in use (none). Name the folder of one: --cache DIR.")
    if options.action == "info":
        _print_info(folder)
    elif options.action == "prune":
        _prune(options, folder)
    elif options.action == "export":
        print(f"exported {store_upkeep.export_file(folder, options.file):,} replies to {options.file}")
    elif options.action == "plan":
        plan_again(options)
    elif options.action == "ingest":
        ingest_alone(folder, options)
    elif options.action == "import":
        _print_added(options.file, folder, *store_upkeep.import_file(folder, options.file))
    else:
        for other in options.folders:
            _print_added(other, folder, *store_upkeep.merge(folder, other))
    return DONE


def _print_info(folder: Path) -> None:
    if folder.is_file():
        raise ConfigurationError(f"{folder} is a file; --cache takes the folder of a store, in which {FILE_NAME} lies.")
    print(f"path     {folder / FILE_NAME}")
    if not (folder / FILE_NAME).exists():
        print("replies  none yet: there is no such file")
        return
    kept = store_upkeep.kept(folder)
    print(f"size     {_megabytes(store_upkeep.store_size(folder))}")
    print(f"replies  {sum(part.replies for part in kept):,}")
    _print_kept(kept)


def _prune(options: argparse.Namespace, folder: Path) -> None:
    if options.older_than is options.model is options.max_size is None:
        raise ConfigurationError(
            "Nothing was named to go. Name it by --older-than DAYS, --model ID, --max-size MB, or several of them; "
            "--dry-run shows it first."
        )
    done = store_upkeep.prune(
        folder,
        older_than=options.older_than,
        model=options.model,
        max_bytes=None if options.max_size is None else options.max_size * MEGABYTE,
        dry_run=options.dry_run,
    )
    print(f"{'would remove' if options.dry_run else 'removed'}  {sum(part.replies for part in done.removed):,} replies")
    _print_kept(done.removed)
    if not options.dry_run:
        print(f"size     {_megabytes(done.before)} before, {_megabytes(done.after)} now")
    if done.trouble:
        print(
            f"The file did not shrink ({done.trouble}). Run the command again when no other process uses the store.",
            file=sys.stderr,
        )


def _print_added(source: Path, folder: Path, new: int, came: int) -> None:
    print(f"added    {new:,} of {came:,} replies of {source} to {folder}; the others were there")


def _print_kept(kept: Sequence[store_upkeep.Kept]) -> None:
    for part in kept:
        name = "model not recorded"
        if part.origin is not None:
            name = f"{part.origin.model}@{part.origin.revision}" if part.origin.revision else part.origin.model
        oldest, newest = (time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (part.oldest, part.newest))
        print(f"  {part.replies:>11,}  {_megabytes(part.size):>12}  {oldest} to {newest}  {name}")


def _megabytes(size: float) -> str:
    return f"{size / MEGABYTE:,.1f} MB"
