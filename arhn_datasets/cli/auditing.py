"""``arhn-audit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arhn_datasets.cli.running import DONE, command_parser, guarded, positive
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.report import format_table

if TYPE_CHECKING:
    from arhn_datasets.checks.agreement import Audit
    from arhn_datasets.checks.auditing import Drawn
    from arhn_datasets.folder.run import Agreement

ROWS = 100
# What the share of answering passages is called, by label.
SHARES = {
    "relabelled": "precision of relabelled",
    "filtered": "precision of filtered",
    "kept": "false negatives among kept",
}


def audit_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-audit``."""
    options = audit_parser().parse_args(arguments)
    return guarded(lambda: _audit(options), lambda: "Run the same command again; an audit is recorded as a whole.")


def audit_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-audit``."""
    parser = command_parser(
        "arhn-audit",
        "Let a human judge the labels of a refined dataset: --output draws a sample that does not tell the labels, "
        "--answers compares it, once answered, with the labels, and records the result in run.json and the card.",
    )
    parser.add_argument(
        "folder", metavar="DIR", help="what arhn-refine --output has written, or a copy of a published dataset"
    )
    draw = parser.add_argument_group("draw")
    draw.add_argument("--output", metavar="FILE", help=".csv or .jsonl, to be made; FILE.README.txt comes beside it")
    draw.add_argument("--rows", type=positive, metavar="N", help=f"pairs of query and passage; default {ROWS}")
    draw.add_argument("--seed", type=int, metavar="N", help="another one draws another sample; default 0")
    read = parser.add_argument_group("read")
    read.add_argument("--answers", action="append", metavar="FILE", help="answered; repeatable, one of each annotator")
    read.add_argument("--dry-run", action="store_true", help="print the result, and record nothing")
    return parser


def _audit(options: argparse.Namespace) -> int:
    from arhn_datasets.checks.auditing import draw_audit, read_audit

    if bool(options.output) == bool(options.answers):
        found = "both --output and --answers" if options.output else "neither --output nor --answers"
        raise ConfigurationError(
            f"arhn-audit got {found}; expected one: --output FILE draws a sample, --answers FILE reads it back."
        )
    if options.answers:
        drawing = [name for name in ("rows", "seed") if getattr(options, name) is not None]
        if drawing:
            raise ConfigurationError(f"--{drawing[0]} goes with --output, not with --answers; leave it out.")
        done = read_audit(options.folder, options.answers, write=not options.dry_run)
        _print_audit(done)
        if not options.dry_run:
            print(f"\nrecorded in {options.folder}")
        return DONE
    if options.dry_run:
        raise ConfigurationError("--dry-run goes with --answers, not with --output; leave it out.")
    rows, seed = options.rows or ROWS, options.seed or 0
    _print_drawn(draw_audit(options.folder, options.output, rows=rows, seed=seed), rows)
    return DONE


def _print_drawn(drawn: Drawn, asked: int) -> None:
    lines = [(subset, label, f"{size:,}", f"{number:,}") for (label, subset), (size, number) in drawn.strata.items()]
    print(format_table(("subset", "label", "passages", "drawn"), lines))
    print(f"\nwritten   {drawn.path}, {drawn.rows:,} rows; {drawn.instructions} tells how to answer")
    if drawn.rows < asked:
        print(f"note: {asked:,} rows were asked for, and there are {drawn.rows:,} hard negatives.", file=sys.stderr)
    if without := sum(size > 0 and not number for size, number in drawn.strata.values()):
        print(f"note: {without:,} strata have no row in the sample; --rows takes more.", file=sys.stderr)
    if drawn.cut:
        print(
            f"note: {drawn.cut:,} passages are too long for a cell of a spreadsheet and were cut; .jsonl holds all.",
            file=sys.stderr,
        )


def _print_audit(audit: Audit) -> None:
    header = ("subset", "label", "passages", "yes", "no", "unsure")
    lines = [
        (one.subset, one.label, f"{one.population:,}", f"{one.yes:,}", f"{one.no:,}", f"{one.unsure:,}")
        for one in audit.strata
    ]
    print(format_table(header, lines))
    estimates = [
        ("kappa on the sample", audit.kappa),
        ("kappa without filtered", audit.relabelled_kappa),
        ("kappa, weighted by stratum", audit.weighted_kappa),
        *((f"{SHARES[label]}, weighted", share) for label, share in audit.answering.items()),
        *((f"kappa of annotators {a} and {b}", kappa) for (a, b), kappa in audit.between_annotators.items()),
    ]
    print()
    print(format_table(("", "estimate", "95 % interval", "rows"), [_line(name, one) for name, one in estimates]))
    if audit.unanswered:
        print(f"\n{audit.unanswered:,} rows have no answer.")
    for note in audit.notes:
        print(f"note: {note}", file=sys.stderr)


def _line(name: str, found: Agreement) -> tuple[str, str, str, str]:
    value = "not defined" if found.value is None else f"{found.value:.3f}"
    interval = "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
    return name, value, interval, f"{found.rows:,}"
