"""``arhn-verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from arhn_datasets.cli.running import DONE, FAILED, command_parser, guarded, positive

SHOWN = 10


def verify_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-verify``."""
    options = verify_parser().parse_args(arguments)
    return guarded(lambda: _verify(options), lambda: "Nothing was changed; run the same command again.")


def verify_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-verify``."""
    parser = command_parser(
        "arhn-verify",
        "Check that a refined dataset is what its run has written: files, passages, snippets, ranks, labels, counts. "
        "No LLM is needed. Exit code 1 with the first violations.",
    )
    parser.add_argument("dataset", metavar="REPO_ID|DIR", help="a repository of the Hub, or a folder")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--token", help="of the Hub; default: the one that hf auth login has stored")
    parser.add_argument("--show", type=positive, default=SHOWN, metavar="N", help=f"violations; default {SHOWN}")
    return parser


def _verify(options: argparse.Namespace) -> int:
    from arhn_datasets.checks.verification import CHECKS, verify

    done = verify(options.dataset, revision=options.revision, token=options.token, progress=True)
    name = options.dataset + (f" at {done.revision}" if done.revision else "")
    for check, count in done.checks.items():
        found = done.found.get(check, 0)
        print(f"{check:<9} {count:>12,}  {CHECKS[check]}" + (f": {found:,} violated" if found else ""))
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if done.holds:
        print(f"\n{name} is what its run has written.")
        return DONE
    total = sum(done.found.values())
    print(f"error: {name} is not what its run has written: {total:,} violations.", file=sys.stderr)
    for violation in done.violations[: options.show]:
        print(f"  {violation}", file=sys.stderr)
    if total > options.show:
        print(f"  … --show {min(total, len(done.violations))} shows more.", file=sys.stderr)
    return FAILED
