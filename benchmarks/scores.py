"""Throughput of arhn.Scores beside the library that it stands on, on the same texts.

usage: scores.py MODEL [--input ROWS] [--rows N] [--rounds N] [--json]

Both encode the distinct queries and passages of the rows, on one device, in batches of one size; the models are loaded
and both have run once before anything is timed. arhn.Scores is timed as users call it, in Dataset.map: reading rows,
joining titles, finding equal texts, comparing vectors and writing Arrow are in its time, and not in that of encode.
Rounds alternate, so that what else the machine does falls on both; the ratio is the median of the rounds' ratios. A
cross-encoder is compared with CrossEncoder.predict on the distinct pairs.

Needs: pip install 'arhn_datasets[train]'. The rows are what arhn-refine reads; by default the sample of this package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import arhn_datasets as arhn
from arhn_datasets.inputs.sources import Input, load_input, silent
from arhn_datasets.rows.records import NEGATIVE, POSITIVE

SAMPLE = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
TARGET = 0.9


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both throughputs and their ratio."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model")
    made.add_argument("--input", default=str(SAMPLE), metavar="ROWS")
    made.add_argument("--rows", type=int, metavar="N", help="only the first N")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    made.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts at once; default: 32")
    made.add_argument("--map-batch-size", type=int, default=1000, metavar="N", help="rows at once; default: 1000")
    made.add_argument("--device", metavar="NAME")
    made.add_argument("--threads", type=int, metavar="N", help="of torch on the processor; fewer where others use it")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    options = made.parse_args(arguments)
    try:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        with silent():
            found = measured(options)
    except (arhn.ArhnError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['texts']:,} texts of {found['rows']:,} rows, {found['kind']} {found['model']}, {found['device']}")
    for name, rates in found["texts a second"].items():
        print(f"{name:<12}{statistics.median(rates):>10,.0f} texts a second   {', '.join(f'{r:,.0f}' for r in rates)}")
    reached = "reached" if found["ratio"] >= TARGET else "MISSED"
    print(f"ratio       {found['ratio']:>10.3f}   target >= {TARGET}: {reached}")
    print(f"            {found['processor ratio']:>10.3f}   of processor time, which other jobs disturb less")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The rates of all rounds."""
    splits, _ = load_input(Input(name=options.input, limit=options.rows), undo=arhn.Revert(keep_evidence=False))
    rows = next(iter(splits.values()))
    scores = arhn.Scores(options.model, batch_size=options.batch_size, device=options.device)
    kind = scores.identity()["kind"]
    theirs, texts, device = library(kind, rows, options)

    def ours() -> None:
        rows.map(
            scores,
            batched=True,
            batch_size=options.map_batch_size,
            load_from_cache_file=False,
            keep_in_memory=True,
        )

    seconds: dict[str, list[float]] = {"library": [], "arhn.Scores": []}
    processor: dict[str, list[float]] = {"library": [], "arhn.Scores": []}
    for number in range(options.rounds + 1):
        calls: list[tuple[str, Callable[[], Any]]] = [("library", theirs), ("arhn.Scores", ours)]
        for name, call in calls if number % 2 else reversed(calls):
            began, worked = time.perf_counter(), time.process_time()
            call()
            if number:  # the first is not timed
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - worked)
    ratios, work = (
        [a / b for a, b in zip(of["library"], of["arhn.Scores"], strict=True)] for of in (seconds, processor)
    )
    return {
        "model": Path(options.model).name,
        "kind": kind,
        "device": device,
        "rows": len(rows),
        "texts": texts,
        "batch_size": options.batch_size,
        "texts a second": {name: [texts / taken for taken in found] for name, found in seconds.items()},
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "processor ratios": work,
        "processor ratio": statistics.median(work),
    }


def library(kind: str, rows: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], int, str]:
    """What sentence-transformers itself does: a call, how many texts or pairs it takes, and where."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    settings = {"batch_size": options.batch_size, "show_progress_bar": False}
    pairs = dict.fromkeys(
        (row["query"], " ".join(part for part in (passage.get("title"), passage["text"]) if part))
        for row in rows
        for side in (POSITIVE.passages, NEGATIVE.passages)
        for passage in row[side]
    )
    if kind == "cross-encoder":
        crosses = CrossEncoder(options.model, device=options.device)
        asked = list(pairs)
        return lambda: crosses.predict(asked, **settings), len(asked), str(next(crosses.model.parameters()).device)
    encoder = SentenceTransformer(options.model, device=options.device)
    texts = [list(dict.fromkeys(query for query, _ in pairs)), list(dict.fromkeys(text for _, text in pairs))]
    return (
        lambda: [encoder.encode(some, convert_to_tensor=True, **settings) for some in texts],
        sum(map(len, texts)),
        str(encoder.device),
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
