"""``arhn-export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from arhn_datasets.cli.running import DONE, FAILED, command_parser, guarded, whole
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.report import format_table
from arhn_datasets.formats.format import LABEL_CHOICES, SHORT, known_formats

MOST_NEGATIVES = 1000  # each is a column, and the longest rows have some hundred


def export_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-export``."""
    options = export_parser().parse_args(arguments)
    return guarded(
        lambda: _export(options), lambda: f"Nothing was written to {options.output}; run the same command again."
    )


def export_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-export``."""
    parser = command_parser("arhn-export", "Write a refined dataset in the formats of trainers.")
    parser.add_argument(
        "folder", metavar="DIR", help="what arhn-refine --output has written, or a copy of a published dataset"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="a folder that does not exist or is empty")
    parser.add_argument("--split", help="only this split")
    add_format_options(parser, required=True, each="goes into a folder of its name in the output")
    return parser


def add_format_options(parser: argparse.ArgumentParser, *, required: bool, each: str) -> None:
    """The formats, of which ``each`` says where one goes, and what can be chosen in them."""
    known, of = known_formats(), {name: _listed(formats) for name, formats in _formats_of_options().items()}
    scored = _listed([name for name, format in known.items() if format.scored])
    parser.add_argument(
        "--format",
        dest="formats",
        choices=tuple(known),
        action="append",
        default=[],
        required=required,
        help=f"of a trainer, which {each}; repeatable",
    )
    parser.add_argument(
        "--negatives",
        type=whole(1, MOST_NEGATIVES),
        metavar="N",
        help=f"in each row of {of['negatives']}, default: 7; the first ones",
    )
    parser.add_argument(
        "--short",
        choices=SHORT,
        help=f"what becomes of a row of {of['short']} with fewer: its own are repeated, or it is left out; "
        "default: repeat",
    )
    parser.add_argument(
        "--grades",
        action="store_true",
        help=f"labels of {of['grades']}: 2 positive, 1 filtered, 0 negative, instead of 1 and 0 without the filtered "
        "ones",
    )
    parser.add_argument(
        "--labels",
        choices=LABEL_CHOICES,
        default="hard",
        help=f"soft: the scores of the passages, in {scored}; default: hard",
    )


def format_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was chosen in the formats.

    Raises:
        ConfigurationError: no format is written in which a choice has an effect.
    """
    of = _formats_of_options()
    given = {name: value for name in of if (value := getattr(options, name))}
    for name in given:
        if not set(of[name]) & set(options.formats):
            asked = f"the formats are {', '.join(options.formats)}" if options.formats else "no format was named"
            raise ConfigurationError(
                f"--{name} goes with --format {' or '.join(of[name])}, and {asked}; add it, or leave --{name} out."
            )
    return {**given, "labels": options.labels}


def _formats_of_options() -> dict[str, list[str]]:
    """The options that have an effect in some formats alone, and which."""
    of: dict[str, list[str]] = {}
    for name, format in known_formats().items():
        for option in format.options:
            of.setdefault(option, []).append(name)
    return of


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _export(options: argparse.Namespace) -> int:
    from arhn_datasets.formats.exporting import export

    report = export(options.folder, options.formats, options.output, **format_options(options), split=options.split)
    lines = [
        (
            format,
            f"{sum(written.rows.values()):,}",
            f"{sum(size for _, size in written.files):,}",
            ", ".join(f"{number:,} {reason}" for reason, number in written.left_out.items()) or "-",
        )
        for format, written in report.formats.items()
    ]
    print(format_table(("format", "rows", "bytes", "rows left out"), lines))
    print(f"written to {report.path}")
    empty = [format for format, written in report.formats.items() if not sum(written.rows.values())]
    if empty:
        print(f"error: no row could be written as {', '.join(empty)}; no trainer can load that.", file=sys.stderr)
        return FAILED
    return DONE
