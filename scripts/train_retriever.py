"""Train a dense retriever on a dataset that arhn_datasets has published or exported.

usage: train_retriever.py --dataset user/msmarco-arhn --model intfloat/e5-base-unsupervised --output e5-arhn
           --query-prompt "query: " --passage-prompt "passage: " --bf16 --gradient-cache --batch-size 1024

Needs: pip install 'arhn_datasets[train]'. Any base model will do; one that is no sentence-transformers model gets mean
pooling. The loss is InfoNCE over the row's own hard negatives and over the passages of the other rows in the batch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

CONFIGS = ("triplet", "n-tuple", "pair")


def main(command: Sequence[str] | None = None) -> None:
    """Load, train, save."""
    options = arguments(command)
    if options.temperature <= 0:
        fail(f"--temperature is {options.temperature}; a number above 0 was expected.")
    try:
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from transformers import set_seed
    except ImportError as error:
        fail(f"{error}. This script needs: pip install 'arhn_datasets[train]'")
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{options.output} cannot be written: {error}")
    rows = load_rows(options.dataset, options.config, options.split, options.revision)
    print(f"{len(rows):,} rows of {options.dataset}, {options.config}, {options.split}: {', '.join(rows.column_names)}")
    set_seed(options.seed)
    anchor, *passages = rows.column_names
    prompts = given({anchor: options.query_prompt, **dict.fromkeys(passages, options.passage_prompt)})
    # These are saved with the model: encode_query and encode_document will use them.
    saved_prompts = given({"query": options.query_prompt, "document": options.passage_prompt})
    try:
        model = SentenceTransformer(options.model, prompts=saved_prompts or None)
    except (OSError, ValueError) as error:
        fail(f"the model {options.model} cannot be loaded: {first_line(error)}")
    if options.max_seq_length:
        model.max_seq_length = options.max_seq_length
    steps = options.max_steps
    if steps < 0:
        batch = options.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        steps = math.ceil(options.epochs * math.ceil(len(rows) / batch))
    try:
        settings = SentenceTransformerTrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=math.ceil(steps * options.warmup_ratio),
            seed=options.seed,
            bf16=options.bf16,
            prompts=prompts,
            # A query has a row for each of its positives (and, as triplets, for each negative). Two of them in one
            # batch would make one positive a negative of the other row: no text stands in a batch twice.
            batch_sampler="no_duplicates",
            logging_steps=options.logging_steps,
            save_strategy="no",
            report_to="none",
        )
    except ValueError as error:  # such as --bf16 on a machine that cannot
        fail(first_line(error))
    trainer = SentenceTransformerTrainer(model=model, train_dataset=rows, loss=loss_of(model, options), args=settings)
    result = trainer.train()
    trainer.save_model(options.output)
    print(f"trained {result.global_step:,} steps, loss {result.training_loss:.4f}, model in {options.output}")


def arguments(command: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="REPO_ID|DIR", help="published or exported")
    parser.add_argument("--config", default="triplet", metavar="NAME", help=", ".join(CONFIGS))
    parser.add_argument("--split", default="train")
    parser.add_argument("--revision", help="of the dataset")
    parser.add_argument("--model", required=True, help="the base model, a Hub id or a folder")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max-steps", type=int, default=-1, help="instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="rows on each device")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--max-seq-length", type=int, metavar="TOKENS")
    parser.add_argument("--query-prompt", default="", help='in front of each query, as "query: " for E5')
    parser.add_argument("--passage-prompt", default="", help='in front of each passage, as "passage: " for E5')
    parser.add_argument("--temperature", type=float, default=0.05, help="of the loss; E5 was trained with 0.01")
    parser.add_argument("--gradient-cache", action="store_true", help="large batches in little memory (GradCache)")
    parser.add_argument("--mini-batch-size", type=int, default=32, help="rows at once with --gradient-cache")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--logging-steps", type=int, default=50)
    return parser.parse_args(command)


def load_rows(name: str, config: str, split: str, revision: str | None) -> Any:
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
    fits = rows.column_names[:2] == ["anchor", "positive"]
    if not fits or not all(column.startswith("negative") for column in rows.column_names[2:]):
        fail(
            f"{config} of {name} has the columns {', '.join(rows.column_names)}; anchor, positive and negatives were "
            f"expected. Name a --config of {', '.join(CONFIGS)}."
        )
    if not len(rows):
        fail(f"{config} of {name} has no rows in {split}.")
    return rows


def loss_of(model: Any, options: argparse.Namespace) -> Any:
    """InfoNCE with in-batch and hard negatives."""
    try:
        from sentence_transformers.sentence_transformer import losses
    except ImportError:  # before 5.4
        from sentence_transformers import losses

    scale = 1 / options.temperature
    if options.gradient_cache:
        return losses.CachedMultipleNegativesRankingLoss(model, scale, mini_batch_size=options.mini_batch_size)
    return losses.MultipleNegativesRankingLoss(model, scale)


def given(prompts: dict[str, str]) -> dict[str, str]:
    """The prompts that are not empty."""
    return {name: text for name, text in prompts.items() if text}


def first_line(error: Exception) -> str:
    """What an error says, without the pages that some add."""
    return str(error).strip().split("\n")[0][:500] or type(error).__name__


def fail(message: str) -> NoReturn:
    """Say what is wrong and end."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
