"""A refined dataset in a folder: its files, and its rows in bounded memory.

There are two layouts. ``arhn-refine`` writes wide rows, that is rows with their evidence columns (*refined*). What goes
to the Hub has the rows for trainers in ``data`` and the evidence beside them (*published*). Both are read as wide rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.evidence_table import ROW, join_evidence, joined_of, wide_schema
from arhn_datasets.rows.arrow import Integers, one_array
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, Row, shorten

RUN_FILE = "run.json"
RUN_FORMAT = 1  # of what output.py writes; a newer one is refused
CARD_FILE = "README.md"
DATA, DROPPED, EVIDENCE = "data", "dropped", "evidence"
REFINED, PUBLISHED = "refined", "published"
BATCH_ROWS = 1000
BATCH_BYTES = 64_000_000  # of the largest batch that is read, whatever the number of rows

_SHARD = re.compile(r"(?P<split>[^/]+)-(?P<index>\d{5})-of-(?P<shards>\d{5})\.parquet")
_EVIDENCE_ROWS = 20_000
_HASHED = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that ``arhn-refine`` has written, or one that was built for the Hub.

    ``splits`` are in the order of the source. The rows of a split are those for trainers, then those that a guard
    dropped; a row's number in this order is what the evidence names it by.
    """

    path: Path
    run: Mapping[str, Any]
    layout: str
    splits: tuple[str, ...]

    def shards(self, split: str, part: str = DATA) -> list[Path]:
        """The files of a split in a part of the folder, in order."""
        return sorted((self.path / part).glob(f"{split}-*-of-*.parquet"))

    def schema(self, split: str) -> pa.Schema:
        """The columns of the wide rows."""
        import pyarrow.parquet as pq

        found = self.features_schema(split).remove_metadata()
        if self.layout == REFINED:
            return found
        return wide_schema(found, joined_of(pq.read_schema(self.shards(split, EVIDENCE)[0]).names))

    def features_schema(self, split: str) -> pa.Schema:
        """The columns as they stand in ``data``, with the metadata of `datasets`."""
        import pyarrow.parquet as pq

        return pq.read_schema(self.shards(split)[0])

    def count(self, split: str, part: str = DATA) -> int:
        """The number of rows of a split in a part of the folder."""
        import pyarrow.parquet as pq

        return sum(pq.ParquetFile(path).metadata.num_rows for path in self.shards(split, part))

    def tables(
        self,
        split: str,
        batch_rows: int = BATCH_ROWS,
        *,
        part: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Wide rows in tables of up to ``batch_rows``, fewer where rows are long.

        Args:
            split: One of :attr:`splits`.
            batch_rows: Most rows in a table.
            part: :data:`DATA` or :data:`DROPPED` alone; by default these one after the other.
            columns: Only these, as far as they are there.
        """
        if split not in self.splits:
            raise ConfigurationError(f"{self.path} has no split {split!r}; its splits are {list(self.splits)}.")
        joins = self.layout == PUBLISHED and (columns is None or not ALL_EVIDENCE_TYPES.keys().isdisjoint(columns))
        first = self.count(split) if joins and part == DROPPED else 0
        evidence = _Evidence(self.shards(split, EVIDENCE))
        for name in (DATA, DROPPED) if part is None else (part,):
            for path in self.shards(split, name):
                for table in read_tables(path, batch_rows, None if joins else columns):
                    if joins:
                        wide = join_evidence(table, evidence.take(first, table.num_rows))
                        first += table.num_rows
                        yield wide if columns is None else wide.select([c for c in columns if c in wide.column_names])
                    else:
                        yield table

    def rows(self, split: str | None = None) -> Iterator[Row]:
        """Wide rows of one split or of all."""
        for name in self.splits if split is None else (split,):
            for table in self.tables(name, 64):
                yield from table.to_pylist()


class _Evidence:
    """The evidence of a split, read forwards."""

    def __init__(self, shards: list[Path]) -> None:
        self._tables = (table for path in shards for table in read_tables(path, _EVIDENCE_ROWS))
        self._read: list[tuple[pa.Table, Integers]] = []

    def take(self, first: int, count: int) -> pa.Table:
        """The evidence of ``count`` rows from number ``first`` on; none of what was before can be asked again."""
        end = first + count
        while not self._read or not len(self._read[-1][1]) or self._read[-1][1][-1] < end:
            table = next(self._tables, None)
            if table is None:
                break
            self._read.append((table, _numbers(table)))
        taken, kept = [], []
        for table, numbers in self._read:
            start, stop = np.searchsorted(numbers, (first, end))
            taken.append(table.slice(start, stop - start))
            kept += [(table.slice(stop), numbers[stop:])] if stop < table.num_rows else []
        self._read = kept
        if not taken:
            raise SchemaError(f"The evidence ends before row {first}. Fetch the published files again.")
        return pa.concat_tables(taken)


def _numbers(table: pa.Table) -> Integers:
    numbers: Integers = one_array(table.column(ROW)).to_numpy()
    if (np.diff(numbers) < 0).any():
        raise SchemaError(
            f"The evidence of row {numbers.max()} stands before that of another row; it was expected in the order of "
            "the rows. Fetch the published files again."
        )
    return numbers


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Open a refined or a published folder.

    Raises:
        ConfigurationError: it is no such folder, or a part of it is missing or cannot be read.
    """
    root = Path(path)
    run = read_run(root)
    layout = PUBLISHED if "published" in run else REFINED
    parts = {part: _shards(root / part) for part in (DATA, DROPPED, EVIDENCE)}
    if not parts[DATA]:
        raise ConfigurationError(f"{root} has a {RUN_FILE} and no {DATA}/SPLIT-*.parquet. {_AGAIN}")
    splits = tuple(dict.fromkeys([name for name in _run_splits(run) if name in parts[DATA]] + sorted(parts[DATA])))
    missing = [name for name in _run_splits(run) if name not in parts[DATA]]
    if missing:
        raise ConfigurationError(f"{root} lacks the splits {missing} that its {RUN_FILE} names. {_AGAIN}")
    without = [name for name in splits if layout == PUBLISHED and name not in parts[EVIDENCE]]
    if without:
        raise ConfigurationError(f"{root} lacks the {EVIDENCE} of the splits {without}. {_AGAIN}")
    for part, found in parts.items():
        for split, shards in found.items():
            _check_shards(root / part, split, shards)
    return Folder(path=root, run=run, layout=layout, splits=splits)


def is_refined(folder: Path) -> bool:
    """Whether a folder was written by this package: refined or published."""
    try:
        return "arhn_datasets" in json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def read_rows(folder: str | os.PathLike[str], split: str | None = None) -> Iterator[Row]:
    """The wide rows of a folder, of one split or of all, in each those that a guard dropped behind the others."""
    return open_folder(folder).rows(split)


def read_tables(path: Path, batch_rows: int = BATCH_ROWS, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a parquet file in tables of up to ``batch_rows``, and of some :data:`BATCH_BYTES`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:  # or it holds every group that it has read
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
        limit = max(1, min(batch_rows, int(BATCH_BYTES / max(1, largest))))
        found = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(limit, columns=found):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def describe_files(root: Path) -> dict[str, dict[str, Any]]:
    """SHA-256, rows and bytes of every data file in a folder, by its path there; what ``run.json`` says of them."""
    found = sorted(path for suffix in ("parquet", "jsonl", "tsv") for path in root.rglob(f"*.{suffix}"))
    return {
        path.relative_to(root).as_posix(): {"sha256": sha256_of(path), "rows": _rows_in(path), "bytes": _size(path)}
        for path in found
        if not any(name.startswith(".") for name in path.relative_to(root).parts)
    }


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED):
            found.update(chunk)
    return found.hexdigest()


_AGAIN = (
    "It was half-written, or files were removed: run arhn-refine again with the same arguments, or fetch the dataset "
    "anew."
)


def read_run(root: Path, name: str | None = None) -> Mapping[str, Any]:
    """The content of ``run.json``, in the form that every reader relies on; ``name`` is what messages call the folder.

    Raises:
        ConfigurationError: it is not there, cannot be read, is of another program or a newer version, or a part of it
            is not what a run writes.
    """
    expected = "Expected a folder that arhn-refine --output has written, or a copy of what arhn-push has published."
    where, path = name or root, Path(name or root) / RUN_FILE
    try:
        run: Any = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = f"no {RUN_FILE} of arhn_datasets in it" if root.is_dir() else "no such folder"
        raise ConfigurationError(f"{where}: {found}. {expected}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. {_AGAIN}") from error
    versions = run.get("versions") if isinstance(run, dict) else None
    if not isinstance(versions, dict) or "arhn_datasets" not in versions:
        raise ConfigurationError(
            f"{where}: no {RUN_FILE} of arhn_datasets in it, but another one, whose versions are "
            f"{shorten(repr(versions), 100)}. {expected}"
        )
    found_run: Mapping[str, Any] = run
    _check_run(found_run, path)
    return found_run


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_EXPECTED: Mapping[Callable[[Any], bool], str] = {
    _text: "a text",
    _texts: "a list of texts",
    _mapping: "an object",
    _whole: "a whole number",
    _number: "a number",
}
_COUNTED = ("rows", "positives", "negatives", "relabelled", "filtered", "kept")
_STATUSES = ("decisions", "snippets", "rankings", "verdicts", "grades")

# What the readers of run.json rely on; * is every name. A parent stands before its parts.
_NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "versions.arhn_datasets": _text,
    "id": _text,
    "source": _mapping,
    "source.name": _text,
    "source.kind": _text,
    "annotator": _mapping,
    "annotator.annotator": _text,
    "parameters": _mapping,
    "parameters.*": _mapping,
    "parameters.relabel": _mapping,
}
# What may be null or missing, as an earlier version did not write it.
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "format": _whole,
    "created": _text,
    "source.revision": _text,
    "source.config": _text,
    "source.license": lambda value: _text(value) or _texts(value),
    "source.languages": _texts,
    "source.rows": _mapping,
    "source.rows.*": _whole,
    "source.limit": _whole,
    "source.shard": _mapping,
    "parameters.relabel.policy": _text,
    "parameters.relabel.rule": _text,
    "parameters.relabel.evidence": _text,
    "parameters.relabel.unsupported": _text,
    "identity": _mapping,
    "prompts": _mapping,
    "prompts.*": _mapping,
    "prompts.*.snippet": _text,
    "prompts.*.ranking": _text,
    "counts": _mapping,
    "counts.*": _mapping,
    **{f"counts.*.{name}": _whole for name in _COUNTED},
    **{f"counts.*.{kind}": _mapping for kind in _STATUSES},
    **{f"counts.*.{kind}.*": _whole for kind in _STATUSES},
    "durations_seconds": _mapping,
    "durations_seconds.*": _number,
    "requests": _mapping,
    "requests.*": _number,
    "files": _mapping,
    "files.*.rows": _whole,
    "files.*.bytes": _whole,
    "audit": _mapping,
    **{f"audit.{name}": _number for name in ("kappa", "low", "high")},
    "audit.answering": _mapping,
    "audit.answering.*": _mapping,
    **{f"audit.answering.*.{name}": _number for name in ("value", "low", "high")},
    "published": _mapping,
    "published.formats": _texts,
    "published.options": _mapping,
}
# What is needed where another part is there.
_NEEDED_WITH: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "source.shard": {
        "source.shard.index": _whole,
        "source.shard.of": _whole,
        "created": _text,
        "identity": _mapping,
        "prompts": _mapping,
    },
    "audit": {"audit.rows": _whole},
}
_SAID = {"id": "the id of a run", "source.license": "a text, or a list of texts,"}


def _check_run(run: Mapping[str, Any], path: Path) -> None:
    """Refuse a ``run.json`` that is not as a run writes it, once for all of its readers."""
    format: Any = run.get("format")
    if _whole(format) and format > RUN_FORMAT:  # it may differ in everything else
        raise ConfigurationError(
            f"{path} has the format {format}; arhn_datasets {version('arhn_datasets')} reads up to {RUN_FORMAT}. "
            "Update the package, which is older than the one that wrote this."
        )
    for key, fits in _NEEDED.items():
        _check_part(run, path, key, fits, needed=True)
    for key, fits in _OPTIONAL.items():
        _check_part(run, path, key, fits, needed=False)
    for key, parts in _NEEDED_WITH.items():
        if any(value is not None for _, value in _parts(run, key)):
            for part, fits in parts.items():
                _check_part(run, path, part, fits, needed=True)
    relabel = run["parameters"]["relabel"]
    if relabel.get("rule") is None:
        _check_part(run, path, "parameters.relabel.policy", _text, needed=True)


def _check_part(run: Mapping[str, Any], path: Path, key: str, fits: Callable[[Any], bool], *, needed: bool) -> None:
    for name, value in _parts(run, key):
        if fits(value) or (value is None and not needed):
            continue
        raise ConfigurationError(
            f"{path} has the {name} {shorten(repr(value), 100)}; {_SAID.get(key) or _EXPECTED[fits]} was expected. It "
            "was edited or damaged: run arhn-refine again with the same arguments, which writes it anew, or fetch the "
            "dataset anew."
        )


def _parts(run: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """The values that a key of the tables stands for, by their names; None where there is none."""
    found: list[tuple[str, Any]] = [("", run)]
    for part in key.split("."):
        within = [(name, value) for name, value in found if isinstance(value, Mapping)]
        found = [
            (f"{name}.{one}".lstrip("."), value.get(one))
            for name, value in within
            for one in (list(value) if part == "*" else [part])
        ]
    return found


def _run_splits(run: Mapping[str, Any]) -> list[str]:
    source = run.get("source")
    rows = source.get("rows") if isinstance(source, Mapping) else None
    return list(rows) if isinstance(rows, Mapping) else []


def _shards(folder: Path) -> dict[str, list[re.Match[str]]]:
    found: dict[str, list[re.Match[str]]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        match = _SHARD.fullmatch(path.name)
        if match:
            found.setdefault(match["split"], []).append(match)
    return found


def _check_shards(folder: Path, split: str, shards: list[re.Match[str]]) -> None:
    import pyarrow.parquet as pq

    count = int(shards[0]["shards"])
    wrong = [shard[0] for shard in shards if int(shard["shards"]) != count or int(shard["index"]) >= count]
    there = Counter(int(shard["index"]) for shard in shards)
    missing = [f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count) if index not in there]
    if wrong or missing:
        raise ConfigurationError(
            f"{folder} holds {len(shards)} files of the split {split!r}, and {count} were expected; "
            f"{'missing: ' + missing[0] if missing else 'not of the others: ' + wrong[0]}. {_AGAIN}"
        )
    for shard in shards:
        try:
            pq.read_metadata(folder / shard[0])
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{folder / shard[0]} cannot be read: {error}. {_AGAIN}") from error


def _rows_in(path: Path) -> int:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    with path.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_HASHED), b""))
    return lines - (path.suffix == ".tsv")  # its header


def _size(path: Path) -> int:
    return path.stat().st_size
