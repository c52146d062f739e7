"""``arhn-push``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from arhn_datasets.cli.exporting import add_format_options, format_options
from arhn_datasets.cli.running import DONE, command_parser, guarded
from arhn_datasets.formats.format import Options
from arhn_datasets.hub.pushing import MESSAGE


def push_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-push``."""
    options = push_parser().parse_args(arguments)
    return guarded(
        lambda: _push(options),
        lambda: "Readers see all of the new dataset or what was there before; run the same command again.",
    )


def push_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-push``."""
    parser = command_parser("arhn-push", "Publish a refined dataset on the Hugging Face Hub, in one commit.")
    parser.add_argument("folder", metavar="DIR", help="what arhn-refine --output has written")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", dest="private", action="store_true", default=True, help="the default")
    visibility.add_argument("--public", dest="private", action="store_false", help="of a repository that is made")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to; made where there is none")
    parser.add_argument("--create-pr", action="store_true", help="propose the commit in a pull request")
    add_format_options(parser, required=False, each="becomes a config of its own")
    parser.add_argument("--license", help="publish under this licence and not under that of the source")
    parser.add_argument("--facts", metavar="FILE", help="YAML with what the card cannot know: description, citation")
    parser.add_argument("--message", default=MESSAGE, help="of the commit")
    parser.add_argument("--token", help="of the Hub; default: the one that hf auth login has stored")
    parser.add_argument("--force", action="store_true", help="publish without arhn-verify first")
    parser.add_argument(
        "--allow-private-source", action="store_true", help="make public what came from a private dataset"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files and print the card, without network")
    return parser


def _push(options: argparse.Namespace) -> int:
    from arhn_datasets.folder.readme import load_facts
    from arhn_datasets.hub.pushing import preview, push

    as_given = ("private", "revision", "formats", "license", "force", "allow_private_source")
    chosen: dict[str, Any] = {
        **{name: getattr(options, name) for name in as_given},
        "options": Options(**format_options(options)),
        "facts": load_facts(options.facts) if options.facts else None,
    }
    if options.dry_run:
        seen = preview(options.folder, options.repo_id, **chosen)
        for file in seen.files:
            print(f"{file.size:>14,}  {file.path}")
        print(f"{sum(file.size for file in seen.files):>14,}  in {len(seen.files)} files\n\n{seen.card}")
        return DONE
    pushed = push(
        options.folder,
        options.repo_id,
        create_pr=options.create_pr,
        message=options.message,
        token=options.token,
        **chosen,
    )
    if pushed.pull_request_url:
        print(f"proposed {pushed.pull_request_url}   merge it to publish {pushed.repo_id}")
    else:
        revision = f', revision="{options.revision}"' if options.revision else ""
        print(f'published {pushed.url}   load_dataset("{pushed.repo_id}"{revision}) loads it')
    return DONE
