"""Seconds that arhn-evaluate takes for 100,000 judged pairs: the command as a whole, its start included.

usage: evaluation.py [--pairs N] [--rounds N] [--json]

The rows are those of the sample, refined by the lexical baseline and repeated under new query ids until they have that
many judged negatives; the truth has an answer for each relevant passage, so that snippets are compared, too. Each round
runs the command in a process of its own, without and with --plot. Needs: pip install 'arhn_datasets[evaluation]'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import arhn_datasets as arhn
from arhn_datasets.inputs.sources import silent
from arhn_datasets.runs.saving import save

SAMPLE = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from arhn_datasets.cli import evaluate_command; sys.exit(evaluate_command())",
)
TARGET = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the seconds of both."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", type=int, default=100_000, metavar="N", help="default: 100000")
    made.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    options = made.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts = write_inputs(Path(folder), options.pairs)
        seconds: dict[str, list[float]] = {name: [] for name in ("arhn-evaluate", "arhn-evaluate --plot")}
        processor: dict[str, list[float]] = {name: [] for name in seconds}
        for _ in range(options.rounds):
            for name, flags in zip(seconds, ([], ["--plot", f"{folder}/curves.png"]), strict=True):
                began, worked = time.perf_counter(), sum(os.times()[2:4])  # of child processes
                done = subprocess.run(
                    [*COMMAND, f"{folder}/refined", f"{folder}/truth.jsonl", "--json", *flags],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(sum(os.times()[2:4]) - worked)
        judged = json.loads(done.stdout.splitlines()[-1])["all"]["counts"]["judged"]
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    work = {name: statistics.median(taken) for name, taken in processor.items()}
    if options.json:
        print(json.dumps({**counts, "judged": judged, "seconds": seconds, "medians": medians, "processor": work}))
        return
    print(f"{judged:,} judged negatives of {counts['queries']:,} queries, {counts['answers']:,} with an answer")
    for name, taken in medians.items():
        reached = f"target < {TARGET}: {'reached' if taken < TARGET else 'MISSED'}" if judged <= 100_500 else ""
        print(f"{name:<22}{taken:>7.2f} s, {work[name]:.2f} s of a processor; {reached}")


def write_inputs(folder: Path, pairs: int) -> dict[str, int]:
    """A refined folder and its truth, with so many judged negatives."""
    from datasets import Dataset, concatenate_datasets

    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    truth = [json.loads(line) for line in SAMPLE.with_suffix(".truth.jsonl").read_text(encoding="utf-8").splitlines()]
    copies = -(-pairs // sum(len(row["negative_passages"]) for row in rows))
    stages = (arhn.Snippets(annotator=arhn.Lexical.fitted(rows)), arhn.Ranks(annotator=arhn.Lexical.fitted(rows)))
    with silent():
        refined = Dataset.from_list(rows)
        for stage in (*stages, arhn.Relabel()):
            refined = refined.map(stage)
        ids = [f"{row['query_id']}-{copy}" for copy in range(copies) for row in rows]
        whole = concatenate_datasets([refined] * copies).remove_columns("query_id").add_column("query_id", ids)
        save(whole, folder / "refined", transforms=(*stages, arhn.Relabel()))
    answers = 0
    with (folder / "truth.jsonl").open("w", encoding="utf-8") as file:
        for copy in range(copies):
            for row in truth:
                file.write(json.dumps({**row, "query_id": f"{row['query_id']}-{copy}"}, ensure_ascii=False) + "\n")
                answers += sum(bool(one.get("answer")) for side in ("positives", "negatives") for one in row[side])
    return {"queries": len(ids), "answers": answers}


if __name__ == "__main__":
    main()
