"""``arhn-evaluate``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from arhn_datasets.cli.running import DONE, command_parser, guarded, not_negative, positive, whole

SAMPLES = 1000


def evaluate_command(arguments: Sequence[str] | None = None) -> int:
    """``arhn-evaluate``."""
    options = evaluate_parser().parse_args(arguments)
    return guarded(lambda: _evaluate(options), lambda: "Nothing was changed; run the same command again.")


def evaluate_parser() -> argparse.ArgumentParser:
    """The arguments of ``arhn-evaluate``."""
    parser = command_parser(
        "arhn-evaluate",
        "Compare a refined dataset with what is known of its passages: precision, recall and F1 of finding false "
        "negatives, true negatives lost, agreement, snippets. No LLM is needed.",
    )
    parser.add_argument("dataset", metavar="DIR", help="what arhn-refine --output has written, or a repository")
    parser.add_argument(
        "truth",
        metavar="TRUTH",
        help="JSONL of judged negatives (query_id, negatives: [{docid, relevant}]), qrels, or a labelled dataset: a "
        "file, a folder or a repository",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--plot", metavar="FILE", help="PNG of precision and recall: each policy on this evidence, and each threshold"
    )
    parser.add_argument(
        "--samples", type=positive, default=SAMPLES, metavar="N", help=f"bootstrap samples; default: {SAMPLES}"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the samples; default: 0")
    parser.add_argument(
        "--relevant-from",
        type=not_negative,
        default=1.0,
        metavar="GRADE",
        help="lowest grade of a relevant passage in qrels; default: 1",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--token", help="of the Hub; default: the one that hf auth login has stored")
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from arhn_datasets.checks.evaluation import check_plot, draw_curves, evaluate, format_evaluation

    if options.plot:
        check_plot(options.plot)  # before a long run, not after it
    as_given = ("samples", "seed", "relevant_from", "revision", "token")
    chosen = {name: getattr(options, name) for name in as_given}
    found = evaluate(options.dataset, options.truth, curves=bool(options.plot), **chosen)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.plot:
        draw_curves(found, options.plot)
        print(f"drawn     {options.plot}", file=sys.stderr)
    as_json = json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False) if options.json else None
    print(as_json or format_evaluation(found))
    return DONE
