"""Rows in the formats of trainers, as a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arhn_datasets.errors import OutputError
from arhn_datasets.folder.reading import CARD_FILE, Folder
from arhn_datasets.folder.readme import Config
from arhn_datasets.folder.writer import naming
from arhn_datasets.formats.format import Format, Options, chosen_formats
from arhn_datasets.formats.writers import SplitRows, Written, split_rows_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Where an export is, and what was written in each format."""

    path: Path
    formats: Mapping[str, Written]

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Every data file with its bytes."""
        return tuple(file for written in self.formats.values() for file in written.files)


def export(
    source: Dataset | DatasetDict | Folder | str | os.PathLike[str],
    format: str | Sequence[str],
    output: str | os.PathLike[str],
    *,
    negatives: int = 7,
    short: str = "repeat",
    grades: bool = False,
    separator: str = " ",
    labels: str = "hard",
    split: str | None = None,
) -> ExportReport:
    """Write rows in the format of a trainer, or in several, each in a folder of its own in ``output``.

    Rows that a guard dropped take no part. Memory stays bounded, but for 16 bytes a docid and the qrels of a split
    where a corpus is written.

    Args:
        source: A folder of arhn-refine, a copy of a published dataset, or canonical rows as Dataset or DatasetDict.
        format: One or several; ``arhn-export --help`` lists them.
        output: A folder that does not exist or is empty.
        negatives: See :class:`Options`.
        short: See :class:`Options`.
        grades: See :class:`Options`.
        separator: See :class:`Options`.
        labels: See :class:`Options`.
        split: Only this one. A Dataset without a split name may be given any.

    Raises:
        ConfigurationError: an unknown format, split or folder, or soft labels in a format without a place for them.
        SchemaError: rows that are not canonical, an id that stands for two different texts, or columns of relabelling
            beside the passages of before.
        OutputError: ``output`` cannot be written.
    """
    options = Options(negatives=negatives, short=short, grades=grades, separator=separator, labels=labels)
    formats = chosen_formats([format] if isinstance(format, str) else format, options)
    rows = split_rows_of(source, split)
    target = Path(output)
    with naming(target):
        check_empty(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            written = _export(rows, formats, fresh, options)
            fresh.chmod(0o755)  # mkdtemp makes it private
            if target.is_dir():
                target.rmdir()
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return ExportReport(path=target, formats=written)


def _export(rows: SplitRows, formats: Mapping[str, Format], root: Path, options: Options) -> dict[str, Written]:
    from datasets.utils import tqdm

    writers = {name: format.open(format, root, options, rows, False) for name, format in formats.items()}
    columns = tuple(dict.fromkeys(column for format in formats.values() for column in format.needs(options)))
    with tqdm(total=sum(map(rows.count, rows.splits)), unit=" rows", desc="export") as bar:
        for split in rows.splits:
            for writer in writers.values():
                writer.begin(split)
            for table in rows.tables(split, columns):
                for writer in writers.values():
                    writer.write(table)
                bar.update(table.num_rows)
            for writer in writers.values():
                writer.end()
    written = {name: writer.close() for name, writer in writers.items()}
    together: dict[str, Config] = {}
    for name, one in written.items():
        if formats[name].title:
            _write_readme(root, name, f"{formats[name].title}, exported by arhn-export", one.configs)
        else:
            together |= one.configs
    if together:
        _write_readme(root, "", "Exported by arhn-export", together)
    return written


def _write_readme(root: Path, folder: str, title: str, configs: Mapping[str, Config]) -> None:
    """A README by which `load_dataset` finds each configuration of the folder."""
    # It caches by these entries and not by the files: without something new in them, another export into a folder of
    # the same name would be served from the cache.
    description = json.dumps(f"arhn_datasets export {uuid.uuid4().hex}")
    text = "---\nconfigs:\n"
    for name, config in configs.items():
        text += f"- config_name: {json.dumps(name)}\n  description: {description}\n  data_files:\n"
        for split, path in config.splits.items():
            text += f"  - split: {json.dumps(split)}\n    path: {json.dumps(path.removeprefix(f'{folder}/'))}\n"
    text += f"---\n\n# {title}\n\n```python\nfrom datasets import load_dataset\n\n"
    text += "".join(f'load_dataset("THIS_FOLDER", "{name}")\n' for name in configs) + "```\n"
    (root / folder / CARD_FILE).write_text(text, encoding="utf-8")


def check_empty(target: Path) -> None:
    """Refuse to write where something is.

    Raises:
        OutputError: ``target`` is a file, or a folder that is not empty.
    """
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; the name of a folder to make was expected.")
    if target.is_dir() and any(target.iterdir()):
        there = ", ".join(sorted(path.name for path in target.iterdir())[:5])
        raise OutputError(
            f"{target} is not empty; found {there}. Nothing was touched: name another folder, or empty it."
        )
