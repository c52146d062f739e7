"""Refine parquet files, or a dataset of the Hub, with Ray Data: a start for a pipeline of your own, to copy.

usage: refine_ray.py INPUT OUTPUT --endpoint URL [--actors N] [--address ADDRESS]

INPUT is a folder of parquet files with canonical rows, on a path that all nodes see, or the id of a dataset on the
Hub; OUTPUT is a folder for parquet files, written by all nodes. ``arhn-refine --engine ray`` does more: any known form
of rows, rows in their order, one store of replies for all nodes, and a folder with a card that ``arhn-push`` publishes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

import arhn_datasets as arhn

BLOCK_ROWS = 512  # enough to keep an actor's slice of the endpoint busy


class Refine:
    """The three stages in an actor, with its slice of the endpoint's limit."""

    def __init__(self, annotator: arhn.Annotator) -> None:
        self.snippets = arhn.Snippets(annotator=annotator)
        self.ranks = arhn.Ranks(annotator=annotator)
        self.relabel = arhn.Relabel(policy="relabel+filter")

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with their evidence, relabelled."""
        return self.relabel(self.ranks(self.snippets(rows)))


def rows_of(name: str) -> ray.data.Dataset:
    if Path(name).exists():
        return ray.data.read_parquet(name)
    from datasets import load_dataset

    return ray.data.from_huggingface(load_dataset(name, split="train"))


def main() -> None:
    """Refine what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--endpoint", action="append", required=True, metavar="URL", help="repeatable")
    parser.add_argument("--actors", type=int, default=2, metavar="N")
    parser.add_argument("--address", help="of a Ray cluster; default: Ray on this machine")
    options = parser.parse_args()
    if not ray.is_initialized():
        ray.init(address=options.address)
    annotator = arhn.Endpoint(tuple(options.endpoint)).shared_by(options.actors)
    pool: dict[str, Any] = {"compute": ray.data.ActorPoolStrategy(size=options.actors), "num_cpus": 0.5}
    rows = rows_of(options.input).map_batches(
        Refine, fn_constructor_args=(annotator,), batch_size=BLOCK_ROWS, batch_format="pyarrow", **pool
    )
    rows.write_parquet(options.output)


if __name__ == "__main__":
    main()
