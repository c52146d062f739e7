"""Precision, recall and F1 of finding false negatives: a refined folder against a truth file.

usage: compare_with_truth.py DIR TRUTH.jsonl

A line of the truth file holds ``query_id`` and ``negatives``, a list of ``{docid, relevant}`` where relevant is 1 for a
false negative, 0 for a true one, and null where it is not known; those count nowhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from arhn_datasets.folder import is_refined, read_rows
from arhn_datasets.report import format_table

SIDES = ("positive", "negative", "filtered")


def main(folder: str, truth_file: str) -> None:
    """Print the table."""
    if not is_refined(Path(folder)) or not Path(truth_file).is_file():
        sys.exit(f"error: expected a folder of arhn-refine and a truth file; got {folder} and {truth_file}")
    with open(truth_file, encoding="utf-8") as lines:
        truth = {
            (row["query_id"], negative["docid"]): negative["relevant"]
            for row in map(json.loads, lines)
            for negative in row["negatives"]
        }
    found = {"relabelled": set(), "filtered": set()}
    known = set()
    for row in read_rows(folder):
        for side in SIDES:
            for passage, origin in zip(row[f"{side}_passages"], row[f"{side}_origins"], strict=True):
                key = (row["query_id"], passage["docid"])
                if origin["label"] == "negative" and truth.get(key) is not None:
                    known.add(key)
                    if side != "negative":
                        found["relabelled" if side == "positive" else "filtered"].add(key)
    found["either"] = found["relabelled"] | found["filtered"]
    false = {key for key in known if truth[key]}
    lines = []
    for name, moved in found.items():
        precision, recall = len(moved & false) / max(1, len(moved)), len(moved & false) / max(1, len(false))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        lines.append((name, str(len(moved)), str(len(moved & false)), f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}"))
    print(format_table(("negatives", "moved", "of them false", "precision", "recall", "F1"), lines))
    print(f"\n{len(known)} negatives with a known truth, {len(false)} of them false")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
