"""The sample of an audit: which pairs are drawn, and the ids by which they are known again.

The sample is of hard negatives of the source in the rows for trainers, stratified by what became of them (relabelled,
filtered, kept) and by subset. Labels have equal shares, and so have the subsets of a label, as far as there are that
many; within a stratum the sample is a simple random one, and depends on the run and the seed alone.

It is blind. An id is a keyed bijection of a place (split, row, position in the source's negatives), which is the same
whatever became of the passage; the order is by a hash of the id and the seed. No key file is needed: reading recomputes
the id of every pair, in the refined and in the published folder of the same run.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks.agreement import KEPT, LABELS, RELABELLED, Stratum
from arhn_datasets.checks.audit_sheet import marked_passage, spelled
from arhn_datasets.checks.subsets import Subsets
from arhn_datasets.errors import SchemaError
from arhn_datasets.folder.reading import DATA, Folder
from arhn_datasets.folder.run import Run
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, rows_of, strings_of
from arhn_datasets.rows.records import FILTERED, NEGATIVE, POSITIVE, QUERY, SIDES, SUBSET, Passage, Row, Side

# Where the negatives of each label are now.
SIDE_OF: Mapping[str, Side] = {RELABELLED: POSITIVE, FILTERED.label: FILTERED, KEPT: NEGATIVE}

_POSITION_BITS, _ROW_BITS = 20, 36


@dataclass(frozen=True, kw_only=True)
class SampledPair:
    """A pair of a sample: its id as a number, its place, and its turn in the file."""

    stratum: Stratum
    code: int
    place: int
    turn: int


def choose_pairs(folder: Folder, rows: int, seed: int) -> tuple[dict[Stratum, int], list[SampledPair]]:
    """The size of every stratum, and the pairs that are drawn of it."""
    best: dict[Stratum, Any] = {}
    sizes: Counter[Stratum] = Counter()
    draws, turns = _key(f"draw {seed}"), _key(f"turn {seed}")
    for stratum, places, codes in _negatives(folder):
        sizes[stratum] += len(places)
        found = np.stack([_hashed(codes ^ draws), codes, places])
        found = np.concatenate([best[stratum], found], axis=1) if stratum in best else found
        if found.shape[1] > rows:
            found = found[:, np.argsort(found[0], kind="stable")[:rows]]
        best[stratum] = found
    ordered = {(label, subset): sizes[label, subset] for label in LABELS for of, subset in sizes if of == label}
    chosen = []
    for stratum, share in shares(ordered, rows).items():
        _, codes, places = best[stratum][:, np.argsort(best[stratum][0], kind="stable")[:share]]
        for code, place, turn in zip(codes.tolist(), places.tolist(), _hashed(codes ^ turns).tolist(), strict=True):
            chosen.append(SampledPair(stratum=stratum, code=code, place=place, turn=turn))
    return ordered, chosen


def shares(sizes: Mapping[Stratum, int], rows: int) -> dict[Stratum, int]:
    """How many pairs of each stratum: as many of each label, and within it of each subset, as far as there are."""
    labels = {label: sum(size for (of, _), size in sizes.items() if of == label) for label in LABELS}
    result: dict[Stratum, int] = {}
    for label, share in _evenly(labels, rows).items():
        result |= _evenly({stratum: size for stratum, size in sizes.items() if stratum[0] == label}, share)
    return result


def _evenly(sizes: Mapping[Any, int], rows: int) -> dict[Any, int]:
    """Equal shares, and where one has less than its share the others more; single ones left go to the largest."""
    given = dict.fromkeys(sizes, 0)
    while rows and (open_ := [name for name, size in sizes.items() if given[name] < size]):
        share = rows // len(open_)
        for name in sorted(open_, key=lambda name: -sizes[name]):
            more = min(max(share, 1), sizes[name] - given[name], rows)
            given[name] += more
            rows -= more
    return given


def _negatives(folder: Folder) -> Iterator[tuple[Stratum, Any, Any]]:
    """The source's negatives in the rows for trainers, batch by batch: their stratum, places and codes."""
    key, subsets = _key(f"run {folder.run.id}"), Subsets()
    columns = [SUBSET, *(side.origins for side in SIDES)]
    for number, split in enumerate(folder.splits):
        first = 0
        for table in folder.tables(split, part=DATA, columns=columns):
            _check_columns(table)
            numbers = np.array([subsets.number(name) for name in strings_of(table, SUBSET).to_pylist()], np.int64)
            names = list(subsets.numbers)
            for label, side in SIDE_OF.items():
                rows, positions = _positions(table, side.origins)
                places = (
                    (np.uint64(number) << np.uint64(_ROW_BITS + _POSITION_BITS))
                    | ((rows + first).astype(np.uint64) << np.uint64(_POSITION_BITS))
                    | positions.astype(np.uint64)
                )
                for subset in np.unique(numbers[rows]):
                    members = places[numbers[rows] == subset]
                    yield (label, names[subset]), members, _hashed(members ^ key)
            first += table.num_rows


def _check_columns(table: pa.Table) -> None:
    missing = [side.origins for side in SIDES if side.origins not in table.column_names]
    if missing:
        raise SchemaError(f"The rows lack the columns {missing}; rows that arhn.relabel has written were expected.")


def _positions(table: pa.Table, column: str) -> tuple[Integers, Integers]:
    """Rows and positions of the passages in a list that were negatives of the source."""
    counts, origins = flat_lists(table, column)
    negative = pc.equal(field_of(origins, "label", pa.string()), "negative").fill_null(False)
    negative = negative.to_numpy(zero_copy_only=False)
    positions = field_of(origins, "position", pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)[negative]
    if len(positions) and not (positions.min() >= 0 and positions.max() < 1 << _POSITION_BITS):
        raise SchemaError(
            f"{column} has the position {positions.min()} to {positions.max()}; places in a list of passages, from 0 "
            "on, were expected. arhn-verify tells what else is wrong."
        )
    return rows_of(counts)[negative], positions


def strata_of(folder: Folder, codes: set[int]) -> tuple[dict[Stratum, int], dict[int, Stratum]]:
    """The size of every stratum, and the stratum of each of ``codes`` that is a pair of this run."""
    wanted = np.array(sorted(codes), dtype=np.uint64)
    sizes: Counter[Stratum] = Counter()
    strata: dict[int, Stratum] = {}
    for stratum, _, found in _negatives(folder):
        sizes[stratum] += len(found)
        strata |= dict.fromkeys(found[np.isin(found, wanted)].tolist(), stratum)
    return {(label, subset): sizes[label, subset] for label in LABELS for of, subset in sizes if of == label}, strata


def shown_pairs(
    folder: Folder, wanted: Iterable[SampledPair], limit: int | None
) -> Iterator[tuple[int, tuple[str, str, bool]]]:
    """Query and passage of each place, its sentence marked, and whether the passage was cut."""
    columns = [QUERY, *(side.column(kind) for side in SIDES for kind in ("passages", "snippets", "origins"))]
    by_split: dict[int, dict[int, list[SampledPair]]] = defaultdict(lambda: defaultdict(list))
    for pair in wanted:
        row = pair.place >> _POSITION_BITS & (1 << _ROW_BITS) - 1
        by_split[pair.place >> _ROW_BITS + _POSITION_BITS][row].append(pair)
    for number, split in enumerate(folder.splits):
        first, rows = 0, by_split[number]
        for table in folder.tables(split, part=DATA, columns=columns) if rows else ():
            for at in sorted(row for row in rows if first <= row < first + table.num_rows):
                row = table.slice(at - first, 1).to_pylist()[0]
                for pair in rows[at]:
                    position = pair.place & (1 << _POSITION_BITS) - 1
                    passage, snippet = _passage_at(row, SIDE_OF[pair.stratum[0]], position)
                    yield pair.place, (row[QUERY], *marked_passage(row[QUERY], passage, snippet, pair.code, limit))
            first += table.num_rows


def _passage_at(row: Row, side: Side, position: int) -> tuple[Passage, Mapping[str, Any] | None]:
    origins = row[side.origins]
    at = next(i for i, one in enumerate(origins) if one["label"] == NEGATIVE.label and one["position"] == position)
    snippets = row.get(side.snippets)
    return row[side.passages][at], snippets[at] if snippets else None


def prefix_of(run: Run) -> str:
    """What the ids of a run begin with."""
    return spelled(int(_key(f"prefix {run.id}")), 6)


def _hashed(values: Any) -> Any:
    """A bijection of 64-bit numbers that looks random."""
    from pandas.util import hash_array  # type: ignore[import-untyped]

    return hash_array(values, categorize=False)


def _key(text: str) -> Any:
    return np.uint64(int.from_bytes(hashlib.sha256(f"arhn audit {text}".encode()).digest()[:8], "big"))
