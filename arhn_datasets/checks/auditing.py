"""A human audit of a refined dataset: a blind sample to answer, and what the answers say of its labels.

The sample is of hard negatives of the source in the rows for trainers, stratified by what became of them (relabelled,
filtered, kept) and by subset. Labels have equal shares, and so have the subsets of a label, as far as there are that
many; within a stratum the sample is a simple random one, and depends on the run and the seed alone.

It is blind. An id is a keyed bijection of a place (split, row, position in the source's negatives), which is the same
whatever became of the passage; the order is by a hash of the id and the seed. No key file is needed: reading recomputes
the id of every pair, in the refined and in the published folder of the same run.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.checks import audit_sheet
from arhn_datasets.checks.agreement import KEPT, LABELS, RELABELLED, Audit, Stratum, summarize
from arhn_datasets.checks.row_checks import check_relabelled
from arhn_datasets.errors import ConfigurationError, OutputError, SchemaError
from arhn_datasets.folder.card import audit_sentence
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, open_folder
from arhn_datasets.folder.readme import BEGIN, END
from arhn_datasets.folder.report import counted_as
from arhn_datasets.folder.run import RUN_FILE, Run, as_json
from arhn_datasets.folder.writer import replace_files
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, rows_of, strings_of
from arhn_datasets.rows.records import FILTERED, NEGATIVE, POSITIVE, QUERY, SIDES, SUBSET, Side

AUDITED = "A human audit of "  # begins what the card says of an audit
# Where the negatives of each label are now.
SIDE_OF: Mapping[str, Side] = {RELABELLED: POSITIVE, FILTERED.label: FILTERED, KEPT: NEGATIVE}

_POSITION_BITS, _ROW_BITS = 20, 36


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A sample that was written: where, how many pairs, and of each stratum its size and how many were drawn.

    ``cut`` counts passages that are too long for a cell of a spreadsheet and were cut.
    """

    path: Path
    instructions: Path
    rows: int
    strata: Mapping[Stratum, tuple[int, int]]
    cut: int = 0


def draw_audit(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, rows: int = 100, seed: int = 0
) -> Drawn:
    """Draw a blind, stratified sample of pairs and write it, with instructions beside it, for a human to answer.

    The folder is read twice, in bounded memory, and stays as it is.

    Args:
        folder: A refined or a published folder.
        output: A ``.csv`` or ``.jsonl`` file that does not exist; ``FILE.README.txt`` comes beside it.
        rows: How many pairs; fewer where there are fewer.
        seed: Another seed draws another sample, in another order.

    Raises:
        ConfigurationError: there is no such folder, nothing can be drawn of it, or an argument cannot work.
        OutputError: the file is there already or cannot be written.
    """
    target, opened = Path(output), open_folder(folder)
    instructions = target.with_name(f"{target.name}.README.txt")
    _check_output(opened, target, rows)
    sizes, chosen = choose_pairs(opened, rows, seed)
    if not chosen:
        raise ConfigurationError(f"{opened.path} has no hard negatives of its source; there is nothing to audit.")
    limit = audit_sheet.CELL_CHARACTERS if target.suffix == ".csv" else None
    shown = {pair.place: shown for pair, shown in _shown_pairs(opened, chosen, limit)}
    prefix = _prefix_of(opened.run)
    pairs = [(pair.code, *shown[pair.place][:2]) for pair in sorted(chosen, key=lambda pair: pair.turn)]
    contents = {
        instructions: audit_sheet.instructions_of(target.name, prefix, len(pairs)),
        target: audit_sheet.sheet_of(pairs, prefix, target.suffix),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_files(contents)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another file.") from error
    drawn = Counter(pair.stratum for pair in chosen)
    return Drawn(
        path=target,
        instructions=instructions,
        rows=len(pairs),
        strata={stratum: (size, drawn[stratum]) for stratum, size in sizes.items()},
        cut=sum(cut for *_, cut in shown.values()),
    )


def _check_output(folder: Folder, target: Path, rows: int) -> None:
    if rows < 1:
        raise ConfigurationError(f"rows is {rows}; a number from 1 was expected.")
    if target.suffix not in audit_sheet.SUFFIXES:
        expected = " or ".join(audit_sheet.SUFFIXES)
        raise ConfigurationError(f"{target} has the suffix {target.suffix!r}; {expected} was expected.")
    if target.exists():
        raise OutputError(f"{target} is there already, perhaps with answers in it; name another file, or move it.")
    root, place = folder.path.resolve(), target.resolve()
    if place.is_relative_to(root) and len(place.relative_to(root).parts) > 1:
        part = place.relative_to(root).parts[0]
        if part in {DATA, DROPPED, EVIDENCE, *(Path(path).parts[0] for path in folder.run.files or ())}:
            raise ConfigurationError(f"{target} is among the data of {folder.path}; name a file outside of {part}/.")


def read_audit(
    folder: str | os.PathLike[str],
    answers: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    write: bool = True,
    seed: int = 0,
) -> Audit:
    """Read the answers of one annotator or of several, compare them with the labels, and record what they say.

    With several files, each is one annotator's. Their answers are pooled by majority; a pair on which as many say yes
    as say no is unsure. ``run.json`` gets ``"audit"``, and the README the line on it; an earlier audit is replaced. All
    else in both files stays as it is.

    Args:
        folder: A refined or a published folder of the run that the answers are to.
        answers: CSV files, with any of ``, ; tab`` between the cells, or ``.jsonl`` files.
        write: Whether to change ``run.json`` and ``README.md``.
        seed: Of the bootstrap.

    Raises:
        ConfigurationError: there is no such folder.
        InputError: a file cannot be read, is of another run, holds what is no answer, or answers nothing.
        MissingDependencyError: scikit-learn is not installed.
        OutputError: the folder cannot be written.
    """
    opened = open_folder(folder)
    paths = [Path(path) for path in ([answers] if isinstance(answers, (str, os.PathLike)) else answers)]
    twice = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice or not paths:
        found = f"names {twice[0]} more than once" if twice else "names no file"
        raise ConfigurationError(f"answers {found}; one file of each annotator was expected.")
    files = [audit_sheet.read_answers(path, _prefix_of(opened.run)) for path in paths]
    sizes: Counter[Stratum] = Counter()
    strata: dict[int, Stratum] = {}
    # More can be spelled than there are codes.
    wanted = np.array(sorted({code for said in files for code in said if code < 1 << 64}), dtype=np.uint64)
    for stratum, _, codes in _negatives(opened):
        sizes[stratum] += len(codes)
        strata |= dict.fromkeys(codes[np.isin(codes, wanted)].tolist(), stratum)
    for path, said in zip(paths, files, strict=True):
        unknown = [line for code, (_, line) in said.items() if code not in strata]
        audit_sheet.refuse_lines(path, [f"line {line}: the id is of no pair of this run" for line in unknown])
    annotators = [{code: verdict for code, (verdict, _) in said.items()} for said in files]
    audit = summarize(annotators, _by_label(sizes), strata, seed=seed)
    return _recorded(opened, audit) if write else audit


def _recorded(folder: Folder, audit: Audit) -> Audit:
    """Write the audit into ``run.json``, then into the card; a card that an interruption left behind is mended."""
    card_path, notes = folder.path / CARD_FILE, list(audit.notes)
    run = {**folder.run, "audit": audit.to_json()}
    contents = {folder.path / RUN_FILE: as_json(run).encode()}
    try:
        card = with_audit(card_path.read_bytes().decode(), run["audit"])
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{card_path} cannot be read and stays as it is: {error}.")
    else:
        if card is None:
            notes.append(f"{card_path} has no section on the limits as arhn_datasets writes it, and stays as it is.")
        else:
            contents[card_path] = card.encode()
    try:
        replace_files(contents)
    except OSError as error:
        raise OutputError(
            f"{folder.path} cannot be written: {error}. It is as it was; copy it to where you may write."
        ) from error
    return replace(audit, notes=tuple(notes))


def with_audit(readme: str, audit: Mapping[str, Any]) -> str | None:
    """A README with what the card says of the audit replaced in its generated block; None where that has no limits.

    The rest of the block stays as well: what a publisher has told for it stands nowhere else.
    """
    start, end = readme.find(BEGIN), readme.rfind(END)
    lines = readme[start:end].split("\n") if 0 <= start < end else []
    heading = max((at for at, line in enumerate(lines) if line.startswith("## Limits")), default=len(lines))
    listed = [at for at, line in enumerate(lines) if at > heading and line.startswith("- ")]
    if not listed:
        return None
    said = f"- {audit_sentence(audit)}" + "\r" * lines[listed[0]].endswith("\r")
    earlier = [at for at in listed if lines[at].startswith((f"- {audit_sentence(None)}", f"- {AUDITED}"))]
    if earlier:
        lines[earlier[0]] = said
    else:
        lines.insert(listed[0], said)
    return readme[:start] + "\n".join(lines) + readme[end:]


# --- the sample -------------------------------------------------------------------------------------------------------


class SampledPair(NamedTuple):
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
        best[stratum] = found[:, np.argsort(found[0], kind="stable")[:rows]]
    ordered = _by_label(sizes)
    chosen = []
    for stratum, share in shares(ordered, rows).items():
        _, codes, places = best[stratum][:, :share]
        for code, place, turn in zip(codes.tolist(), places.tolist(), _hashed(codes ^ turns).tolist(), strict=True):
            chosen.append(SampledPair(stratum, code, place, turn))
    return ordered, chosen


def _by_label(sizes: Mapping[Stratum, int]) -> dict[Stratum, int]:
    return {stratum: size for label in LABELS for stratum, size in sizes.items() if stratum[0] == label}


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
    key, columns = _key(f"run {folder.run.id}"), [SUBSET, *(side.origins for side in SIDES)]
    subsets: dict[str, int] = {}
    for number, split in enumerate(folder.splits):
        first = number << _ROW_BITS
        for table in folder.tables(split, part=DATA, columns=columns):
            check_relabelled(table)
            named = (counted_as(name, subsets) for name in strings_of(table, SUBSET).to_pylist())
            numbers = np.array([subsets.setdefault(name, len(subsets)) for name in named], np.int64)
            names = list(subsets)
            for label, side in SIDE_OF.items():
                rows, positions = _positions(table, side.origins)
                places = ((rows + first).astype(np.uint64) << np.uint64(_POSITION_BITS)) | positions.astype(np.uint64)
                for subset in np.unique(numbers[rows]):
                    members = places[numbers[rows] == subset]
                    yield (label, names[subset]), members, _hashed(members ^ key)
            first += table.num_rows


def _positions(table: pa.Table, column: str) -> tuple[Integers, Integers]:
    """Rows and positions of the passages in a list that were negatives of the source."""
    counts, origins = flat_lists(table, column)
    negative = pc.equal(field_of(origins, "label", pa.string()), NEGATIVE.label).fill_null(False)
    negative = negative.to_numpy(zero_copy_only=False)
    positions = field_of(origins, "position", pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)[negative]
    if len(positions) and not (positions.min() >= 0 and positions.max() < 1 << _POSITION_BITS):
        raise SchemaError(
            f"{column} has the position {positions.min()} to {positions.max()}; places in a list of passages, from 0 "
            "on, were expected. arhn-verify tells what else is wrong."
        )
    return rows_of(counts)[negative], positions


def _shown_pairs(
    folder: Folder, wanted: Iterable[SampledPair], limit: int | None
) -> Iterator[tuple[SampledPair, tuple[str, str, bool]]]:
    """Query and passage of each pair, its sentence marked, and whether the passage was cut."""
    columns = [QUERY, *(side.column(kind) for side in SIDES for kind in ("passages", "snippets", "origins"))]
    by_row: dict[int, list[SampledPair]] = defaultdict(list)
    for pair in wanted:
        by_row[pair.place >> _POSITION_BITS].append(pair)
    splits = {at >> _ROW_BITS for at in by_row}
    for number, split in enumerate(folder.splits):
        first = number << _ROW_BITS
        for table in folder.tables(split, part=DATA, columns=columns) if number in splits else ():
            for at in sorted(by_row.keys() & range(first, first + table.num_rows)):
                row = table.slice(at - first, 1).to_pylist()[0]
                for pair in by_row[at]:
                    side, position = SIDE_OF[pair.stratum[0]], pair.place & (1 << _POSITION_BITS) - 1
                    origins = [(one["label"], one["position"]) for one in row[side.origins]]
                    i = origins.index((NEGATIVE.label, position))
                    passage, snippets = row[side.passages][i], row.get(side.snippets)
                    snippet = snippets[i] if snippets else None
                    yield (
                        pair,
                        (row[QUERY], *audit_sheet.marked_passage(row[QUERY], passage, snippet, pair.code, limit)),
                    )
            first += table.num_rows


def _prefix_of(run: Run) -> str:
    """What the ids of a run begin with."""
    return audit_sheet.spelled(int(_key(f"prefix {run.id}")), 6)


def _hashed(values: Any) -> Any:
    """A bijection of 64-bit numbers that looks random."""
    from pandas.util import hash_array  # type: ignore[import-untyped]

    return hash_array(values, categorize=False)


def _key(text: str) -> Any:
    return np.uint64(int.from_bytes(hashlib.sha256(f"arhn audit {text}".encode()).digest()[:8], "big"))
