"""A human audit of a refined dataset: a blind sample to answer, and what the answers say of its labels.

**The sample** is of hard negatives of the source in the rows for trainers, stratified by what became of them
(relabelled, filtered, kept) and by subset. Labels have equal shares, and so have the subsets of a label, as far as
there are that many; within a stratum the sample is a simple random one, and depends on the run and the seed alone.

**It is blind.** An id is a keyed bijection of a place (split, row, position in the source's negatives), which is the
same whatever became of the passage; the order is by a hash of the id and the seed. No key file is needed: reading
recomputes the id of every pair, in the refined and in the published folder of the same run. Ids are consonants alone,
so that no spreadsheet makes a number, a date or a formula of them.

**One sentence is marked in every passage** that has a text: the one that shares most with the snippet where there is
a snippet, and the one that shares most words with the query where there is none. Marking snippets alone would tell the
label, since most kept negatives have none; so would their length, or marks in titles. A mark says where to look first.

**Weights.** Kappa on the sample is that of a balanced sample. What the dataset is like is estimated with each pair
weighted by the size of its stratum over the number of its pairs that were judged (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.annotators.words import sentences, terms
from arhn_datasets.errors import ConfigurationError, InputError, MissingDependencyError, OutputError, SchemaError
from arhn_datasets.folder.card import BEGIN, END, audit_sentence
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, open_folder
from arhn_datasets.folder.report import MOST_SUBSETS, NO_SUBSET, OTHER_SUBSETS
from arhn_datasets.folder.run import RUN_FILE
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, rows_of, strings_of
from arhn_datasets.rows.records import FILTERED, GROUNDED, NEGATIVE, POSITIVE, QUERY, SUBSET, Passage, Row, shorten

RELABELLED, KEPT = "relabelled", "kept"
FILTERED_LABEL = "filtered"
LABELS = (RELABELLED, FILTERED_LABEL, KEPT)
COLUMNS = ("id", "query", "passage", "answers")
ID, ANSWERS = "id", "answers"
OPENING, CLOSING = "⟦", "⟧"
CELL_CHARACTERS = 15_000  # of a CSV: spreadsheets break a cell of more than 32,767 UTF-16 units
SUFFIXES = (".csv", ".jsonl")
RESAMPLES, CONFIDENCE = 2000, 0.95

YES, NO, UNSURE = "yes", "no", "unsure"
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("yes", "y", "1", "1.0", "true"), YES),
    **dict.fromkeys(("no", "n", "0", "0.0", "false"), NO),
    **dict.fromkeys(("unsure", "?"), UNSURE),
    "": "",
}
EXPECTED = "yes, no, y, n, 1, 0, true, false, unsure or nothing"

_SIDES = {
    RELABELLED: (POSITIVE.passages, POSITIVE.snippets, POSITIVE.origins),
    FILTERED_LABEL: (FILTERED.passages, FILTERED.snippets, FILTERED.origins),
    KEPT: (NEGATIVE.passages, NEGATIVE.snippets, NEGATIVE.origins),
}
_LETTERS = "bcdfghjklmnpqrstvwxz"
_ID = re.compile(f"([{_LETTERS}]{{6}})-([{_LETTERS}]{{15}})")
_POSITION_BITS, _ROW_BITS = 20, 36
_SHOWN_PROBLEMS = 20
_AUDIT_LINE = re.compile(r"^- (?:No human audit of these labels was made\.|A human audit of [^\r\n]*)", re.MULTILINE)
# What spreadsheets take for a formula, and the mark of an escaped cell itself.
_FORMULA = re.compile(r"[=+\-@\t\r'＝＋－＠]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")

Stratum = tuple[str, str]
"""A label, of :data:`LABELS`, and a subset."""


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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share or a kappa, with its interval, from a number of judged pairs; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A stratum: its size in the dataset, and the answers to the pairs that were drawn of it."""

    label: str
    subset: str
    population: int
    yes: int
    no: int
    unsure: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the answers say.

    ``kappa`` is Cohen's between the pooled answers and the labels on the sample as it was drawn (relabelled and
    filtered: answers the query; kept: does not); ``relabelled_kappa`` leaves filtered ones out, ``weighted_kappa``
    estimates it for the dataset. ``answering`` has, by label, the estimated share of passages that answer their query:
    the precision of relabelling, that of filtering, and the rate of false negatives among the kept.
    ``between_annotators`` has the kappa of each pair of files, in the order in which they were named. ``notes`` says
    what is not as it should be.
    """

    kappa: Estimate
    relabelled_kappa: Estimate
    weighted_kappa: Estimate
    answering: Mapping[str, Estimate]
    strata: Sequence[Judged]
    between_annotators: Mapping[tuple[int, int], Estimate]
    annotators: int
    unanswered: int
    date: str
    notes: Sequence[str] = field(default=())

    @property
    def rows(self) -> int:
        """How many pairs were judged yes or no."""
        return self.kappa.rows

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` says of the audit."""
        return {
            "kappa": self.kappa.value,
            "low": self.kappa.low,
            "high": self.kappa.high,
            "rows": self.rows,
            "date": self.date,
            "confidence": CONFIDENCE,
            "annotators": self.annotators,
            "unanswered": self.unanswered,
            "relabelled_kappa": asdict(self.relabelled_kappa),
            "weighted_kappa": asdict(self.weighted_kappa),
            "answering": {label: asdict(share) for label, share in self.answering.items()},
            "between_annotators": [
                {"annotators": list(pair), **asdict(kappa)} for pair, kappa in self.between_annotators.items()
            ],
            "strata": [asdict(one) for one in self.strata],
        }


# Drawing.


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
    limit = CELL_CHARACTERS if target.suffix == ".csv" else None
    found = dict(_shown(opened, {pair.place: pair for pair in chosen}, limit))
    shown = [(pair, *found[pair.place]) for pair in sorted(chosen, key=lambda pair: pair.turn)]
    prefix = _prefix(opened.run)
    lines = [(f"{prefix}-{_spelled(pair.code)}", query, passage, "") for pair, query, passage, _ in shown]
    content = _as_csv(lines) if target.suffix == ".csv" else _as_jsonl(lines)
    told = _INSTRUCTIONS.format(name=target.name, run=prefix, rows=len(lines), opening=OPENING, closing=CLOSING)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace({instructions: told.encode(), target: content})
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another file.") from error
    drawn = Counter(pair.stratum for pair in chosen)
    return Drawn(
        path=target,
        instructions=instructions,
        rows=len(lines),
        strata={stratum: (size, drawn[stratum]) for stratum, size in sizes.items()},
        cut=sum(cut for *_, cut in shown),
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair of a sample: its id as a number, its place, and its turn in the file."""

    stratum: Stratum
    code: int
    place: int
    turn: int


def choose_pairs(folder: Folder, rows: int, seed: int) -> tuple[dict[Stratum, int], list[Pair]]:
    """The size of every stratum, and the pairs that are drawn of it."""
    best: dict[Stratum, Any] = {}
    sizes: Counter[Stratum] = Counter()
    draws, turns = _key(f"draw {seed}"), _key(f"turn {seed}")
    for stratum, places, codes in _negatives(folder):
        sizes[stratum] += len(places)
        found = np.stack([_mixed(codes ^ draws), codes, places])
        found = np.concatenate([best[stratum], found], axis=1) if stratum in best else found
        if found.shape[1] > rows:
            found = found[:, np.argsort(found[0], kind="stable")[:rows]]
        best[stratum] = found
    ordered = {(label, subset): sizes[label, subset] for label in LABELS for of, subset in sizes if of == label}
    chosen = []
    for stratum, share in shares(ordered, rows).items():
        _, codes, places = best[stratum][:, np.argsort(best[stratum][0], kind="stable")[:share]]
        for code, place, turn in zip(codes.tolist(), places.tolist(), _mixed(codes ^ turns).tolist(), strict=True):
            chosen.append(Pair(stratum=stratum, code=code, place=place, turn=turn))
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
    key, names = _key(f"run {_run_id(folder.run)}"), _Subsets()
    columns = [SUBSET, *(origins for _, _, origins in _SIDES.values())]
    for number, split in enumerate(folder.splits):
        first = 0
        for table in folder.tables(split, part=DATA, columns=columns):
            _check_columns(table)
            subsets = names.of(table)
            for label, (_, _, column) in _SIDES.items():
                rows, positions = _places(table, column)
                places = (
                    (np.uint64(number) << np.uint64(_ROW_BITS + _POSITION_BITS))
                    | ((rows + first).astype(np.uint64) << np.uint64(_POSITION_BITS))
                    | positions.astype(np.uint64)
                )
                for code in np.unique(subsets[rows]):
                    members = places[subsets[rows] == code]
                    yield (label, names.names[code]), members, _mixed(members ^ key)
            first += table.num_rows


def _check_columns(table: pa.Table) -> None:
    missing = [origins for _, _, origins in _SIDES.values() if origins not in table.column_names]
    if missing:
        raise SchemaError(f"The rows lack the columns {missing}; rows that arhn.relabel has written were expected.")


def _places(table: pa.Table, column: str) -> tuple[Integers, Integers]:
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


class _Subsets:
    """The subsets as a report has them, in order of appearance: the ones beyond the first are counted together."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}

    def of(self, table: pa.Table) -> Integers:
        return np.array([self._code(value) for value in strings_of(table, SUBSET).to_pylist()], dtype=np.int64)

    def _code(self, value: str | None) -> int:
        name = value or NO_SUBSET
        if name not in self._codes and len(self._codes) >= MOST_SUBSETS:
            name = OTHER_SUBSETS
        if name not in self._codes:
            self._codes[name] = len(self.names)
            self.names.append(name)
        return self._codes[name]


def _shown(
    folder: Folder, wanted: Mapping[int, Pair], limit: int | None
) -> Iterator[tuple[int, tuple[str, str, bool]]]:
    """Query and passage of each place, its sentence marked, and whether the passage was cut."""
    columns = [QUERY, *(column for side in _SIDES.values() for column in side)]
    by_split: dict[int, dict[int, list[Pair]]] = defaultdict(lambda: defaultdict(list))
    for place, pair in wanted.items():
        row = place >> _POSITION_BITS & (1 << _ROW_BITS) - 1
        by_split[place >> _ROW_BITS + _POSITION_BITS][row].append(pair)
    for number, split in enumerate(folder.splits):
        first, rows = 0, by_split[number]
        for table in folder.tables(split, part=DATA, columns=columns) if rows else ():
            for at in sorted(row for row in rows if first <= row < first + table.num_rows):
                row = table.slice(at - first, 1).to_pylist()[0]
                for pair in rows[at]:
                    passage, snippet = _passage_at(row, pair.stratum[0], pair.place & (1 << _POSITION_BITS) - 1)
                    yield pair.place, (row[QUERY], *marked_passage(row[QUERY], passage, snippet, pair.code, limit))
            first += table.num_rows


def _passage_at(row: Row, label: str, position: int) -> tuple[Passage, Mapping[str, Any] | None]:
    passages, snippets, origins = _SIDES[label]
    at = next(
        i for i, origin in enumerate(row[origins]) if origin["label"] == "negative" and origin["position"] == position
    )
    found = row.get(snippets)
    return row[passages][at], found[at] if found else None


def marked_passage(
    query: str, passage: Passage, snippet: Mapping[str, Any] | None, code: int, limit: int | None = None
) -> tuple[str, bool]:
    """Title and text with one sentence of the text marked, and whether it was cut to some ``limit`` characters.

    Which sentence: see the module. ``code`` decides between sentences that share as much with the query.
    """
    title, text = str(passage.get("title") or ""), str(passage.get("text") or "")
    span = _marked_span(query, text, snippet, code)
    start, end = span or (0, 0)
    cut = limit is not None and len(text) > limit
    if limit is not None and cut:
        end = min(end, start + limit // 2)
        begin = max(0, min((start + end - limit) // 2, len(text) - limit))
        before = f"[… {begin:,} characters are not shown …] " if begin else ""
        left = len(text) - begin - limit
        after = f" [… {left:,} characters are not shown …]" if left else ""
    else:
        begin, before, after = 0, "", ""
    stop = len(text) if limit is None else begin + limit
    body = text[begin:stop]
    if span:
        body = f"{text[begin:start]}{OPENING}{text[start:end]}{CLOSING}{text[end:stop]}"
    title = title if limit is None else title[:limit]
    return "\n".join(part for part in (title, f"{before}{body}{after}") if part), cut


def _marked_span(query: str, text: str, snippet: Mapping[str, Any] | None, code: int) -> tuple[int, int] | None:
    spans = sentences(text)
    if not spans:
        return None
    if snippet and snippet.get("status") == GROUNDED and snippet.get("field") == "text":
        start, end = snippet["start"], snippet["end"]
        return max(spans, key=lambda span: min(end, span[1]) - max(start, span[0]))
    wanted = terms(query)
    figures = [len(wanted & terms(text[start:end])) for start, end in spans]
    equal = [span for span, figure in zip(spans, figures, strict=True) if figure == max(figures)]
    return equal[code % len(equal)]


def _check_output(folder: Folder, target: Path, rows: int) -> None:
    if rows < 1:
        raise ConfigurationError(f"rows is {rows}; a number from 1 was expected.")
    if target.suffix not in SUFFIXES:
        raise ConfigurationError(f"{target} has the suffix {target.suffix!r}; {' or '.join(SUFFIXES)} was expected.")
    if target.exists():
        raise OutputError(f"{target} is there already, perhaps with answers in it; name another file, or move it.")
    root, place = folder.path.resolve(), target.resolve()
    if place.is_relative_to(root) and len(place.relative_to(root).parts) > 1:
        part = place.relative_to(root).parts[0]
        listed = {Path(path).parts[0] for path in folder.run.get("files") or ()}
        if part in {DATA, DROPPED, EVIDENCE, *listed}:
            raise ConfigurationError(f"{target} is among the data of {folder.path}; name a file outside of {part}/.")


# Ids.


def _mixed(values: Any) -> Any:
    """A bijection of 64-bit numbers that looks random: the finaliser of SplitMix64 (Steele and others 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(text: str) -> Any:
    return np.uint64(int.from_bytes(hashlib.sha256(f"arhn audit {text}".encode()).digest()[:8], "big"))


def _spelled(number: int, length: int = 15) -> str:
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(reversed(letters))


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * len(_LETTERS) + _LETTERS.index(letter)
    return number


def _run_id(run: Mapping[str, Any]) -> str:
    found = run.get("id")
    if not isinstance(found, str) or not found:
        raise ConfigurationError(
            f"{RUN_FILE} has the id {found!r}; the id of a run was expected, by which answers are known as answers to "
            "it. Restore the file, or refine again."
        )
    return found


def _prefix(run: Mapping[str, Any]) -> str:
    """What the ids of a run begin with."""
    return _spelled(int(_key(f"prefix {_run_id(run)}")), 6)


# Files.


def escaped_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; :func:`plain_cell` is its inverse.

    An apostrophe is put before what begins with one of ``= + - @``, a tab, a carriage return, or an apostrophe.
    Control characters, which neither a spreadsheet nor every CSV reader takes, become U+FFFD.
    """
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return f"'{text}" if _FORMULA.match(text) else text


def plain_cell(cell: str) -> str:
    """The text of a cell that :func:`escaped_cell` has made."""
    return cell.removeprefix("'")


def _as_csv(lines: Sequence[tuple[str, ...]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([COLUMNS, *([escaped_cell(cell) for cell in line] for line in lines)])
    return file.getvalue().encode("utf-8-sig")


def _as_jsonl(lines: Sequence[tuple[str, ...]]) -> bytes:
    objects = (json.dumps(dict(zip(COLUMNS, line, strict=True)), ensure_ascii=False) for line in lines)
    return "".join(f"{line}\n" for line in objects).encode()


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Write all files beside their places, then rename them there, in this order; before that, nothing changes."""
    fresh: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            fresh[path] = Path(name)
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes it private
            fresh[path].chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR if path.exists() else 0o644)
        for path, made in fresh.items():
            made.replace(path)
    finally:
        for made in fresh.values():
            made.unlink(missing_ok=True)


_INSTRUCTIONS = """\
{rows} pairs of a query and a passage to judge, in {name}.

For each row, one question: does the passage answer the query? Write into the column "answers":

  yes      the passage holds the answer to the query, or what the query asks for. A passage that answers in other
           words, or among much else, answers.
  no       it does not: it may be about the same subject, and still does not say what was asked.
  unsure   you cannot tell. It is not counted; better than a guess.

y, n, 1, 0, true and false mean the same. Leave it empty where you did not look.

- Judge by the passage alone, not by what you know. Do not look the pairs up in the dataset: you are not to know how
  they were labelled, and neither the id nor the order tells.
- In each passage one sentence stands in {opening}brackets{closing}. It was chosen by a program as the place to look
  first, and it means nothing else: in passages that do not answer, there is one, too. Read the whole passage.
- An apostrophe at the beginning of a cell was put there so that a spreadsheet takes no text for a formula.
- You may sort the rows, add columns, and save as CSV with commas, semicolons or tabs. Leave the column "id" as it is:
  an answer is known by it alone. Its first letters, {run}, are those of the run that was audited.

Then: arhn-audit DIR --answers {name}
Several people: give each a copy, and name each file: --answers one.csv --answers other.csv
"""


# Reading.


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a file says of a pair: the id as a number, :data:`YES`, :data:`NO`, :data:`UNSURE` or ``""``, its line."""

    code: int
    verdict: str
    line: int


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
    named = [answers] if isinstance(answers, (str, os.PathLike)) else list(answers)
    paths = [Path(path) for path in named]
    twice = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice or not paths:
        found = f"names {twice[0]} more than once" if twice else "names no file"
        raise ConfigurationError(f"answers {found}; one file of each annotator was expected.")
    files = [read_answers(path, _prefix(opened.run)) for path in paths]
    populations, strata = _strata_of(opened, {one.code for said in files for one in said})
    for path, said in zip(paths, files, strict=True):
        unknown = [one.line for one in said if one.code not in strata]
        _refuse(path, [f"line {line}: the id is of no pair of this run" for line in unknown])
    annotators = [{one.code: one.verdict for one in said} for said in files]
    audit = summarize(annotators, populations, strata, seed=seed)
    return _recorded(opened, audit) if write else audit


def read_answers(path: Path, prefix: str) -> list[Answer]:
    """The answers of a file, each pair once.

    Raises:
        InputError: it cannot be read, is of another run than the one whose ids begin with ``prefix``, or holds what is
            no answer; the message names the lines.
    """
    problems: list[str] = []
    answers: dict[int, Answer] = {}
    others: Counter[str] = Counter()
    rows = 0
    for line, id, said in _lines(path, problems):
        verdict = _verdict(said)
        if not id and not said:
            continue  # an empty line, or one that somebody has added
        rows += 1
        match = _ID.fullmatch(id.lower())
        if match is None:
            problems.append(f"line {line}: the id is {id!r}; one as it was drawn was expected, {prefix}-…")
        elif match[1] != prefix:
            others[match[1]] += 1
        elif verdict is None:
            problems.append(f"line {line}: the answer is {shorten(said, 60)!r}; {EXPECTED} was expected")
        else:
            _add(answers, Answer(code=_number(match[2]), verdict=verdict, line=line), problems)
    if others:
        run, count = others.most_common(1)[0]
        raise InputError(
            f"{path} has {count:,} of {rows:,} answers to another run: their ids begin with {run}, those of this "
            f"folder with {prefix}. Name the folder that they were drawn from, or its published copy."
        )
    _refuse(path, problems)
    if not any(one.verdict in (YES, NO) for one in answers.values()):
        raise InputError(
            f"{path} answers nothing: of {rows:,} rows, none has yes or no in the column {ANSWERS!r}. Fill it in first."
        )
    return list(answers.values())


def _add(answers: dict[int, Answer], one: Answer, problems: list[str]) -> None:
    before = answers.get(one.code)
    if before is None or not before.verdict:
        answers[one.code] = one
    elif one.verdict and one.verdict != before.verdict:
        problems.append(
            f"line {one.line}: the answer is {one.verdict!r}, and in line {before.line} the same pair has "
            f"{before.verdict!r}; one answer was expected"
        )


def _verdict(said: str) -> str | None:
    return WORDS.get(plain_cell(said).strip().lower())


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        shown = "\n".join(f"  {problem}." for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS:,} more." if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputError(
            f"{path} has {len(problems):,} rows that cannot be read. Nothing was changed: correct them and run this "
            f"again.\n{shown}{more}"
        )


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    """Line, id and answer of each row of a file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error}. Expected a file that arhn-audit --output has made."
        ) from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{path} is a workbook of a spreadsheet; save it as CSV and name that file.")
    text = _decoded(content)
    yield from _jsonl_lines(text, problems) if path.suffix == ".jsonl" else _csv_lines(path, text)


def _decoded(content: bytes) -> str:
    """Text as spreadsheets save it; what is read of it is ASCII, so any code page will do."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _jsonl_lines(text: str, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    for line, said in enumerate(text.split("\n"), 1):
        if not said.strip():
            continue
        try:
            found = json.loads(said)
        except ValueError as error:
            problems.append(f"line {line}: no JSON ({error}); an object with {ID!r} and {ANSWERS!r} was expected")
            continue
        if not isinstance(found, dict) or ID not in found:
            problems.append(f"line {line}: {shorten(said, 60)}; an object with {ID!r} and {ANSWERS!r} was expected")
            continue
        answer = found.get(ANSWERS)
        yield line, str(found[ID]).strip(), "" if answer is None else str(answer).strip()


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    with _any_field_size():
        delimiter, skipped = _dialect(path, text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        last = 0
        try:
            header: list[str] | None = None
            for cells in reader:
                line, last = last + 1, reader.line_num
                if line <= skipped or not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [cell.strip().lower() for cell in cells]
                    continue
                named = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
                yield line, plain_cell(named[ID].strip()).strip(), named[ANSWERS].strip()
        except csv.Error as error:
            raise InputError(
                f"{path} cannot be read after line {last}: {error}. Expected CSV as spreadsheets save it; look for a "
                "quotation mark without its other one."
            ) from error


def _dialect(path: Path, text: str) -> tuple[str, int]:
    """What stands between the cells, and how many lines stand before the header."""
    lines = text.splitlines()[:20]
    for skipped, line in enumerate(lines):
        for delimiter in ",;\t|":
            cells = next(csv.reader([line], delimiter=delimiter), [])
            if {ID, ANSWERS} <= {cell.strip().lower() for cell in cells}:
                return delimiter, skipped
        if line.strip() and not line.lower().startswith("sep="):
            break
    found = shorten(next((line for line in lines if line.strip()), "nothing"), 80)
    raise InputError(
        f"{path} begins with {found!r}; a first line with the columns {ID} and {ANSWERS} was expected. Name the file "
        "that arhn-audit --output has made."
    )


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Passages may be longer than the module takes; its limit is one for the whole process."""
    before = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _strata_of(folder: Folder, codes: set[int]) -> tuple[dict[Stratum, int], dict[int, Stratum]]:
    """The size of every stratum, and the stratum of each of ``codes`` that is a pair of this run."""
    wanted = np.array(sorted(codes), dtype=np.uint64)
    sizes: Counter[Stratum] = Counter()
    strata: dict[int, Stratum] = {}
    for stratum, _, found in _negatives(folder):
        sizes[stratum] += len(found)
        strata |= dict.fromkeys(found[np.isin(found, wanted)].tolist(), stratum)
    return {(label, subset): sizes[label, subset] for label in LABELS for of, subset in sizes if of == label}, strata


# What the answers say.


def summarize(
    annotators: Sequence[Mapping[int, str]],
    populations: Mapping[Stratum, int],
    strata: Mapping[int, Stratum],
    *,
    seed: int = 0,
) -> Audit:
    """The agreement of answers with labels, by stratum and as a whole.

    Args:
        annotators: For each, the verdict on each pair.
        populations: The size of every stratum.
        strata: The stratum of each pair.
        seed: Of the bootstrap.

    Raises:
        InputError: no pair has a verdict on which the annotators agree.
        MissingDependencyError: scikit-learn is not installed.
    """
    pooled = {code: _pooled([said.get(code, "") for said in annotators]) for code in sorted(set().union(*annotators))}
    tally: dict[Stratum, Counter[str]] = defaultdict(Counter)
    for code, verdict in pooled.items():
        tally[strata[code]][verdict] += 1
    judged = [
        Judged(
            label=stratum[0],
            subset=stratum[1],
            population=size,
            **{verdict: tally[stratum][verdict] for verdict in (YES, NO, UNSURE)},
        )
        for stratum, size in populations.items()
        if any(tally[stratum][verdict] for verdict in (YES, NO, UNSURE))
    ]
    answered = [one for one in judged if one.yes + one.no]
    if not answered:
        raise InputError("No pair was judged yes or no by a majority of the annotators; nothing can be compared.")
    kappas = {
        "kappa": _kappa(answered, seed),
        "relabelled_kappa": _kappa([one for one in answered if one.label != FILTERED_LABEL], seed),
        "weighted_kappa": _kappa(answered, seed, weighted=True),
    }
    between = {
        (one + 1, other + 1): _kappa_between(annotators[one], annotators[other], seed)
        for one, other in combinations(range(len(annotators)), 2)
    }
    return Audit(
        **kappas,
        answering={label: _share([one for one in answered if one.label == label]) for label in LABELS},
        strata=judged,
        between_annotators=between,
        annotators=len(annotators),
        unanswered=sum(not verdict for verdict in pooled.values()),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        notes=_notes(answered, populations, kappas["kappa"]),
    )


def _notes(answered: Sequence[Judged], populations: Mapping[Stratum, int], kappa: Estimate) -> tuple[str, ...]:
    notes = []
    there = {(one.label, one.subset) for one in answered}
    without = [stratum for stratum, size in populations.items() if size and stratum not in there]
    if without:
        left = sum(populations[stratum] for stratum in without)
        named = ", ".join(f"{label} of {subset}" for label, subset in without[:3]) + (" …" if len(without) > 3 else "")
        notes.append(
            f"{len(without):,} strata have no judged pair ({named}): the estimates leave out {left:,} of "
            f"{sum(populations.values()):,} passages. Answer more rows, or draw more with --rows."
        )
    if kappa.value is None:
        notes.append("Kappa is not defined: all answers and all labels are the same.")
    elif kappa.low == kappa.high:
        notes.append("Every resample gives the same kappa: so few rows, or so equal ones, tell no interval.")
    return tuple(notes)


def _pooled(verdicts: Sequence[str]) -> str:
    """What most say; unsure where as many say yes as no, or only that."""
    yes, no = verdicts.count(YES), verdicts.count(NO)
    if yes != no:
        return YES if yes > no else NO
    return UNSURE if yes or UNSURE in verdicts else ""


def _kappa(judged: Sequence[Judged], seed: int, *, weighted: bool = False) -> Estimate:
    """Cohen's kappa of answers and labels; the interval is of a bootstrap within the strata.

    Of a stratum only the number that says yes differs between resamples, and that is binomial.
    """
    yes, no = np.array([one.yes for one in judged]), np.array([one.no for one in judged])
    if not len(judged):
        return Estimate(value=None, low=None, high=None, rows=0)
    size = yes + no
    weights = np.array([one.population for one in judged]) / size if weighted else np.ones(len(judged))
    positive = np.array([one.label != KEPT for one in judged])
    value = _cohen(
        np.tile(positive, 2), np.repeat([True, False], len(judged)), np.concatenate([yes * weights, no * weights])
    )
    draws = np.random.default_rng(seed).binomial(size, yes / size, (RESAMPLES, len(judged)))
    held, not_held = draws * weights, (size - draws) * weights
    resampled = _kappas(
        held[:, positive].sum(1), not_held[:, positive].sum(1), held[:, ~positive].sum(1), not_held[:, ~positive].sum(1)
    )
    return _estimate(value, resampled, int(size.sum()))


def _kappa_between(one: Mapping[int, str], other: Mapping[int, str], seed: int) -> Estimate:
    """Cohen's kappa of two annotators on the pairs that both judged."""
    pairs = Counter((one[code], other[code]) for code in one if {one[code], other.get(code)} <= {YES, NO})
    total = sum(pairs.values())
    if not total:
        return Estimate(value=None, low=None, high=None, rows=0)
    cells = [(YES, YES), (YES, NO), (NO, YES), (NO, NO)]
    counts = np.array([pairs[cell] for cell in cells])
    value = _cohen(np.array([a == YES for a, _ in cells]), np.array([b == YES for _, b in cells]), counts)
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, RESAMPLES)
    return _estimate(value, _kappas(*drawn.T), total)


def _cohen(one: Any, other: Any, weights: Any) -> float | None:
    """Cohen's kappa (1960) of two weighted lists of truth values; None where both are one and the same value."""
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError as error:
        raise MissingDependencyError.of("scikit-learn", "evaluation", "The kappa of an audit") from error
    there = weights > 0
    if len(set(one[there].tolist()) | set(other[there].tolist())) < 2:
        return None
    return float(cohen_kappa_score(one, other, sample_weight=weights, labels=[False, True]))


def _kappas(both: Any, first: Any, second: Any, neither: Any) -> Any:
    """Kappa of many tables of two by two at once; nan where it is not defined."""
    total = both + first + second + neither
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (both + neither) / total
        chance = ((both + first) * (both + second) + (second + neither) * (first + neither)) / total**2
        return (observed - chance) / (1 - chance)


def _estimate(value: float | None, resampled: Any, rows: int) -> Estimate:
    defined = resampled[np.isfinite(resampled)]
    if value is None or not len(defined):
        return Estimate(value=value, low=None, high=None, rows=rows)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), rows=rows)


def _share(judged: Sequence[Judged]) -> Estimate:
    """The share of a label's passages that answer: a weighted mean over the subsets.

    The interval is Wilson's (1927), which is none of zero width where all answers are equal, for the number of rows
    that an unweighted sample as exact would have (Kish 1965).
    """
    if not judged:
        return Estimate(value=None, low=None, high=None, rows=0)
    size = np.array([one.yes + one.no for one in judged])
    weights = np.array([one.population for one in judged], dtype=float)
    weights /= weights.sum()
    share = float((weights * np.array([one.yes for one in judged]) / size).sum())
    n = 1 / float((weights**2 / size).sum())
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Estimate(value=share, low=low, high=high, rows=int(size.sum()))


# run.json and the card.


def _recorded(folder: Folder, audit: Audit) -> Audit:
    """Write the audit into ``run.json``, then into the card; a card that an interruption left behind is mended."""
    run_path, card_path = folder.path / RUN_FILE, folder.path / CARD_FILE
    run = {**folder.run, "audit": audit.to_json()}
    contents = {run_path: (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode()}
    notes = list(audit.notes)
    try:
        card = with_audit(card_path.read_bytes().decode(), folder.run.get("audit"), run["audit"])
    except (OSError, UnicodeDecodeError) as error:
        card = None
        notes.append(f"{card_path} cannot be read and stays as it is: {error}.")
    else:
        if card is None:
            notes.append(f"{card_path} has no section on the limits as arhn_datasets writes it, and stays as it is.")
    if card is not None:
        contents[card_path] = card.encode()
    try:
        _replace(contents)
    except OSError as error:
        raise OutputError(
            f"{folder.path} cannot be written: {error}. It is as it was; copy it to where you may write."
        ) from error
    return replace(audit, notes=tuple(notes))


def with_audit(readme: str, before: Mapping[str, Any] | None, audit: Mapping[str, Any]) -> str | None:
    """A README with the line on the audit replaced in its generated block; None where there is no such block.

    The rest of the block stays as well: what a publisher has told for it stands nowhere else.
    """
    start, end = readme.find(BEGIN), readme.rfind(END)
    if start < 0 or end < start:
        return None
    block, line = readme[start:end], f"- {audit_sentence(audit)}"
    at = block.rfind("\n## Limits")
    limits = block[at:] if at >= 0 else ""
    known = f"- {audit_sentence(before)}"
    found = re.search(rf"^{re.escape(known)}(?=\r?$)", block, re.MULTILINE)
    if found is None and (found_there := _AUDIT_LINE.search(limits)):
        found = _AUDIT_LINE.search(block, at + found_there.start())
    if found is not None:
        block = block[: found.start()] + line + block[found.end() :]
    elif listed := re.search(r"^- ", limits, re.MULTILINE):
        block = block[: at + listed.start()] + f"{line}\n" + block[at + listed.start() :]
    else:
        return None
    return readme[:start] + block + readme[end:]
