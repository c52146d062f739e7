"""Rows by split that can be read again and again: those of a folder, and those of datasets in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.reading import BATCH_BYTES, BATCH_ROWS, DATA, Folder, open_folder
from arhn_datasets.rows.arrow import check_canonical
from arhn_datasets.rows.records import DECISION
from arhn_datasets.rules.moves import ORIGINS, check_origins

if TYPE_CHECKING:
    from datasets import Dataset

_ANY_SPLIT = re.compile(r"\w+(\.\w+)*")


class SplitRows(Protocol):
    """Rows by split."""

    splits: tuple[str, ...]

    def count(self, split: str) -> int:
        """The number of rows of a split."""

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of a split for trainers, with those of the columns that they have."""


class FolderRows:
    """The rows of a folder that no guard dropped."""

    def __init__(self, folder: Folder, splits: tuple[str, ...] | None = None) -> None:
        self.splits, self._folder = splits or folder.splits, folder

    def count(self, split: str) -> int:
        """The number of rows of a split."""
        return self._folder.count(split)

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows as the folder gives them."""
        kept = [column for column in columns if column != DECISION]  # the dropped rows stand in a part of their own
        return self._folder.tables(split, part=DATA, columns=kept)


class DatasetRows:
    """The rows of datasets, each a split."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self.splits, self._datasets = tuple(datasets), datasets

    def count(self, split: str) -> int:
        """The number of rows of a split."""
        return len(self._datasets[split])

    def tables(self, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows in batches of a bounded size, whose origins fit their passages."""
        dataset = self._datasets[split]
        check_canonical(dataset.column_names)
        average = dataset.data.nbytes / max(1, dataset.data.num_rows)
        size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, average))))
        kept = [column for column in columns if column in dataset.column_names]
        origins = [column for column in ORIGINS if column in dataset.column_names]
        for table in dataset.select_columns([*kept, *origins]).with_format("arrow").iter(size):
            check_origins(table, shortened=True)
            yield table.select(kept)


def split_rows_of(given: Any, split: str | None) -> SplitRows:
    """The rows of a Dataset, a DatasetDict or a folder, of one split or of all.

    Raises:
        ConfigurationError: it is something else, or has no such split.
    """
    if isinstance(given, (str, os.PathLike)):
        given = open_folder(given)
    if isinstance(given, Folder):
        return FolderRows(given, _chosen(given.splits, split, str(given.path)))
    from datasets import Dataset, DatasetDict

    if isinstance(given, Dataset):
        named = _ANY_SPLIT.match(str(given.split or "train"))
        name = split if split is not None and given.split is None else named[0] if named else "train"
        given = {name: given}
    elif not isinstance(given, DatasetDict):
        raise ConfigurationError(
            f"export got {type(given).__name__}; expected a Dataset, a DatasetDict or a folder that arhn-refine has "
            "written. Load the dataset without streaming."
        )
    return DatasetRows({name: given[name] for name in _chosen(tuple(given), split, "The dataset")})


def _chosen(splits: tuple[str, ...], split: str | None, what: str) -> tuple[str, ...]:
    if split is not None and split not in splits:
        raise ConfigurationError(f"{what} has no split {split!r}; its splits are {list(splits)}.")
    return splits if split is None else (split,)
