"""``arhn-push``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from arhn_datasets.cli.running import DONE, command_parser, guarded


def push_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-push``."""
    options = push_parser().parse_args(arguments)
    return guarded(lambda: _push(options), lambda: "Nothing was published; run the same command again.")


def push_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-push``."""
    parser = command_parser("arhn-push", "Publish a refined dataset on the Hugging Face Hub, in one commit.")
    parser.add_argument("folder", metavar="DIR", help="what arhn-refine --output has written")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", dest="private", action="store_true", default=True, help="the default")
    visibility.add_argument("--public", dest="private", action="store_false", help="of a repository that is made")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to")
    parser.add_argument("--message", default="Refine hard negatives with ARHN", help="of the commit")
    parser.add_argument("--token", help="of the Hub; default: the one that hf auth login has stored")
    parser.add_argument("--dry-run", action="store_true", help="list the files and print the card, without network")
    return parser


def _push(options: argparse.Namespace) -> int:
    from arhn_datasets.push import files_to_push, push

    files = files_to_push(options.folder)
    if options.dry_run:
        for file in files:
            print(f"{file.size:>14,}  {file.path}")
        with open(os.path.join(options.folder, "README.md"), encoding="utf-8") as card:
            print(f"\n{card.read()}")
        return DONE
    url = push(
        options.folder,
        options.repo_id,
        private=options.private,
        revision=options.revision,
        message=options.message,
        token=options.token,
    )
    print(f'published {url}   load_dataset("{options.repo_id}") loads it')
    return DONE
