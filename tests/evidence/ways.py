"""The ways in which a stage is called."""

from __future__ import annotations

from datasets import Dataset

WAYS = ("row", "map", "batched", "num_proc", "iterable", "table")


def called(stage, rows, way, *, batch_size):
    """What a stage makes of rows, called in one of these ways."""
    dataset = Dataset.from_list(rows)
    return {
        "row": lambda: [stage(row) for row in rows],
        "map": lambda: dataset.map(stage),
        "batched": lambda: dataset.map(stage, batched=True, batch_size=batch_size),
        "num_proc": lambda: dataset.map(stage, batched=True, num_proc=2),
        "iterable": lambda: dataset.to_iterable_dataset().map(stage, batched=True, batch_size=batch_size),
        "table": lambda: stage(dataset.data.table).to_pylist(),
    }[way]()
