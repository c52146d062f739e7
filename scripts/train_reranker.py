"""Train a cross-encoder reranker on a dataset that arhn_datasets has published or exported.

usage: train_reranker.py --dataset user/msmarco-arhn --model answerdotai/ModernBERT-base --output reranker-arhn --bf16

Needs: pip install 'arhn_datasets[train]'. The listwise losses (lambda, list-net) train on the config labeled-list, a
row for each query with all its passages; binary trains on labeled-pair, a row for each passage.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

LIST, PAIR = "labeled-list", "labeled-pair"
COLUMNS = {LIST: ["query", "docs", "labels"], PAIR: ["query", "passage", "label"]}
LOSSES = {
    "lambda": ("LambdaLoss", LIST),
    "list-net": ("ListNetLoss", LIST),
    "binary": ("BinaryCrossEntropyLoss", PAIR),
}


def main() -> None:
    """Load, train, save."""
    options = arguments()
    try:
        from sentence_transformers.cross_encoder import (
            CrossEncoder,
            CrossEncoderTrainer,
            CrossEncoderTrainingArguments,
            losses,
        )
        from transformers import set_seed
    except ImportError as error:
        fail(f"{error}. This script needs: pip install 'arhn_datasets[train]'")
    loss, config = LOSSES[options.loss]
    config = options.config or config
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{options.output} cannot be written: {error}")
    rows = load_rows(options.dataset, config, options.split, options.revision, COLUMNS[LOSSES[options.loss][1]])
    print(f"{len(rows):,} rows of {options.dataset}, {config}, {options.split}: {', '.join(rows.column_names)}")
    set_seed(options.seed)  # also of the head that a plain base model gets
    try:
        model = CrossEncoder(options.model, num_labels=1, max_length=options.max_seq_length)
    except (OSError, ValueError) as error:
        fail(f"the model {options.model} cannot be loaded: {first_line(error)}")
    # The listwise losses take all pairs of a batch apart again; this many go through the model at once.
    mini = {} if options.loss == "binary" else {"mini_batch_size": options.mini_batch_size}
    steps = options.max_steps
    if steps < 0:
        batch = options.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        steps = math.ceil(options.epochs * math.ceil(len(rows) / batch))
    try:
        settings = CrossEncoderTrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=math.ceil(steps * options.warmup_ratio),
            seed=options.seed,
            bf16=options.bf16,
            logging_steps=options.logging_steps,
            save_strategy="no",
            report_to="none",
        )
    except ValueError as error:  # such as --bf16 on a machine that cannot
        fail(first_line(error))
    trainer = CrossEncoderTrainer(
        model=model,
        train_dataset=rows,
        loss=getattr(losses, loss)(model, **mini),
        args=settings,
    )
    result = trainer.train()
    trainer.save_model(options.output)
    print(f"trained {result.global_step:,} steps, loss {result.training_loss:.4f}, model in {options.output}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="REPO_ID|DIR", help="published or exported")
    parser.add_argument("--config", metavar="NAME", help=f"default: {LIST}, with --loss binary {PAIR}")
    parser.add_argument("--split", default="train")
    parser.add_argument("--revision", help="of the dataset")
    parser.add_argument("--model", required=True, help="the base model, a Hub id or a folder")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--loss", choices=LOSSES, default="lambda")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max-steps", type=int, default=-1, help="instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=16, help="rows on each device")
    parser.add_argument("--mini-batch-size", type=int, default=32, help="passages at once, with a listwise loss")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--max-seq-length", type=int, metavar="TOKENS", help="of query and passage together")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--logging-steps", type=int, default=50)
    return parser.parse_args()


def load_rows(name: str, config: str, split: str, revision: str | None, expected: list[str]) -> Any:
    """The rows of a repository, or of a folder that was published or exported."""
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        configs = get_dataset_config_names(name, revision=revision)
        if config not in configs:
            fail(
                f"{name} has no config {config!r}; its configs are {', '.join(configs)}. "
                f"Publish or export it with --format {config}, or name another --config."
            )
        rows = load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        fail(f"the dataset {name} cannot be loaded: {first_line(error)}")
    if rows.column_names != expected:
        fail(
            f"{config} of {name} has the columns {', '.join(rows.column_names)}; {', '.join(expected)} were expected. "
            "Name the --config that goes with the --loss."
        )
    if not len(rows):
        fail(f"{config} of {name} has no rows in {split}.")
    return rows


def first_line(error: Exception) -> str:
    """What an error says, without the pages that some add."""
    return str(error).strip().split("\n")[0][:500] or type(error).__name__


def fail(message: str) -> NoReturn:
    """Say what is wrong and end."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
