"""What is known of a refinement's passages: for (query id, docid) whether it is relevant, and with which answer.

It comes from judged negatives, from qrels, or from a second, human-labelled dataset; the content says which.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.folder.reading import read_tables
from arhn_datasets.inputs.adaptation import adapt_dataset
from arhn_datasets.inputs.sources import Input, load_input, silent
from arhn_datasets.rows.arrow import Integers, flat_field, rows_of, starts_of, strings_of, taken, within
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, QUERY_ID, SUBSET, shorten
from arhn_datasets.rules.revert import Revert

JUDGED_PASSAGES, QRELS, LABELLED_DATASET = "judged passages", "qrels", "a labelled dataset"

QUERY_ID_NAMES = (QUERY_ID, "query-id", "qid", "queryid", "topic")
DOCID_NAMES = ("docid", "corpus-id", "corpus_id", "doc_id", "doc-id", "docno", "docids", "corpus-ids")
GRADE_NAMES = ("score", "relevance", "relevant", "rel", "label", "grade", "scores")
LISTS = ("positives", "negatives")  # of judged passages in a row

EXPECTED = (
    "Expected JSONL with query_id and negatives, a list of {docid, relevant} with 1, 0 or null; qrels, as lines of "
    "query-id, corpus-id and score, as lines of TREC (query, 0, docid, grade), or as JSONL; or a labelled dataset with "
    "positive_passages and negative_passages."
)

Judgement = tuple[int, float, tuple[str, ...]]  # relevant (1, 0, or -1 where undecided), grade, answers

_ROWS_AT_ONCE = 1000


class Truth:
    """What is known, pair by pair; the pairs of a query stand together.

    ``relevant`` is 1, 0, or -1 where it is not decided; ``grades`` are null where there are none, and so are the
    ``subsets`` of the queries. ``contradictory`` counts the pairs that are judged both ways, which decides nothing.
    """

    def __init__(self, read: _Judgements, form: str) -> None:
        for query_id, docid in read.contradicted:
            read.found[query_id][docid] = (-1, math.nan, ())
        judgements = [judgement for pairs in read.found.values() for judgement in pairs.values()]
        if not judgements:
            raise InputError(f"{read.name} holds no judged pair of a query and a docid. {EXPECTED}")
        relevant, grades, answers = zip(*judgements, strict=True)
        self.name, self.form = read.name, form
        self.queries = {query_id: number for number, query_id in enumerate(read.found)}
        self.starts = starts_of(np.array([len(pairs) for pairs in read.found.values()], np.int64))
        self.docids = pa.array([docid for pairs in read.found.values() for docid in pairs], pa.string())
        self.relevant, self.grades = np.array(relevant, np.int64), np.array(grades, np.float64)
        self.answers: Sequence[tuple[str, ...]] = answers
        self.subsets = [read.subsets.get(query_id) for query_id in read.found]
        self.contradictory = len(read.contradicted)

    def __len__(self) -> int:
        return len(self.relevant)

    def find(self, queries: Integers, docids: pa.Array) -> Integers:
        """The pair of each query number and docid, -1 where nothing is known of it."""
        known = np.unique(queries[queries >= 0])
        counts = self.starts[known + 1] - self.starts[known]
        places = np.repeat(self.starts[known], counts) + within(counts)
        found = pc.index_in(
            _keys(queries, docids), value_set=_keys(np.repeat(known, counts), self.docids.take(pa.array(places)))
        )
        at = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(at < 0, -1, places[at] if len(places) else -1)


def read_truth(truth: Any, *, relevant_from: float = 1) -> Truth:
    """What is known, from anything that says it.

    Args:
        truth: A file, a folder or the Hub id of a dataset; or in memory a ``Dataset``, a ``DatasetDict``, rows as
            dicts, or ``{query id: {docid: grade}}``. Of a labelled dataset, a passage among the positives of its query
            is relevant, one among the negatives is not, and nothing is known of others.
        relevant_from: The lowest grade of a relevant passage, where the truth has grades and does not say.

    Raises:
        InputError: there is nothing, or it is in no known form; the message says what was found.
        SchemaError: a labelled dataset whose rows are in no known form.
    """
    if isinstance(truth, Truth):
        return truth
    if isinstance(truth, (str, os.PathLike)):
        path = Path(truth).expanduser()
        if not path.is_file():
            return _Judgements(os.fspath(truth), relevant_from).of_dataset()
        try:
            return _Judgements(str(path), relevant_from).of_file(path)
        except (InputError, SchemaError):
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read: {shorten(str(error))}. {EXPECTED}") from error
    judgements = _Judgements("the truth", relevant_from)
    if hasattr(truth, "column_names") and hasattr(truth, "with_format"):  # Dataset, DatasetDict
        splits = truth if isinstance(truth, Mapping) else {"": truth}
        return judgements.of_splits([rows.with_format(None) for rows in splits.values()])
    if isinstance(truth, Mapping):
        return judgements.of_rows([truth])
    if isinstance(truth, (bytes, bytearray)) or not isinstance(truth, Iterable):
        raise InputError(f"The truth is {shorten(repr(truth), 60)}, of the type {type(truth).__name__}. {EXPECTED}")
    return judgements.of_rows(truth)


def _form_of(columns: Iterable[str]) -> str | None:
    """The form that names of columns tell."""
    names = {*columns}
    if {POSITIVE.passages, NEGATIVE.passages} <= names:
        return LABELLED_DATASET
    if names.isdisjoint(QUERY_ID_NAMES):
        return None
    if not names.isdisjoint(LISTS):
        return JUDGED_PASSAGES
    return None if names.isdisjoint(DOCID_NAMES) or names.isdisjoint(GRADE_NAMES) else QRELS


@dataclass
class _Judgements:
    """The pairs read so far, by query and docid, from what messages call ``name``."""

    name: str
    relevant_from: float
    found: dict[str, dict[str, Judgement]] = field(default_factory=dict)
    subsets: dict[str, str] = field(default_factory=dict)
    contradicted: set[tuple[str, str]] = field(default_factory=set)

    def add(self, query_id: str, docid: str, relevant: int, grade: float, answers: tuple[str, ...] = ()) -> None:
        pairs = self.found.setdefault(query_id, {})
        before = pairs.get(docid)
        if before is not None:
            if -1 not in (relevant, before[0]) and relevant != before[0]:
                self.contradicted.add((query_id, docid))
            relevant, answers = max(relevant, before[0]), before[2] or answers
            grade = grade if math.isnan(before[1]) else before[1] if math.isnan(grade) else max(grade, before[1])
        pairs[docid] = (relevant, grade, answers)

    def add_grade(self, query_id: str, docid: Any, grade: Any) -> None:
        value = _number(grade)
        self.add(query_id, _identifier(docid), self._relevant(value), value)

    def _relevant(self, grade: float) -> int:
        return -1 if math.isnan(grade) else int(grade >= self.relevant_from)

    def of_file(self, path: Path) -> Truth:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            if _form_of(pq.read_schema(path).names) not in (JUDGED_PASSAGES, QRELS):
                return self.of_dataset()
            return self.of_rows(row for table in read_tables(path, _ROWS_AT_ONCE) for row in table.to_pylist())
        with path.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            if not first.lstrip().startswith(("{", "[")):
                return self._of_lines(lines)
            try:
                row = json.loads(first)
            except ValueError:  # one value over several lines
                row = None
            if isinstance(row, dict):
                return self.of_dataset() if _form_of(row) == LABELLED_DATASET else self.of_rows(self._parsed(lines))
            whole = json.load(lines)
            return self.of_rows(whole if isinstance(whole, list) else [whole])

    def _parsed(self, lines: Iterable[str]) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    found = f"{self.name}: line {number} is no JSON ({error}): {shorten(line, 60)}"
                    raise InputError(f"{found}. {EXPECTED}") from error

    def of_dataset(self) -> Truth:
        """Any dataset that `arhn-refine` reads."""
        with silent():
            splits, _ = load_input(Input(name=self.name), undo=Revert(keep_evidence=False))
        return self.of_splits([*splits.values()])

    def of_splits(self, splits: Sequence[Any]) -> Truth:
        names = [rows.column_names for rows in splits]
        # Streams that were mapped have no names of columns: the rows tell.
        if None in names or not {JUDGED_PASSAGES, QRELS}.isdisjoint(map(_form_of, names)):
            return self.of_rows(row for split in splits for row in split)
        for rows in splits:
            canonical = {QUERY_ID, POSITIVE.passages, NEGATIVE.passages} <= {*rows.column_names}
            for table in (rows if canonical else adapt_dataset(rows)).with_format("arrow").iter(_ROWS_AT_ONCE):
                self._add_table(table)
        return Truth(self, LABELLED_DATASET)

    def _add_table(self, table: pa.Table) -> None:
        query_ids = strings_of(table, QUERY_ID)
        for relevant, column in ((1, POSITIVE.passages), (0, NEGATIVE.passages)):
            counts, docids = flat_field(table, column, "docid", pa.string())
            of_each = taken(query_ids, rows_of(counts)).to_pylist()
            for query_id, docid in zip(of_each, docids.to_pylist(), strict=True):
                if docid is not None:
                    self.add(str(query_id), docid, relevant, float(relevant))
        for query_id, subset in zip(query_ids.to_pylist(), strings_of(table, SUBSET).to_pylist(), strict=True):
            if subset:
                self.subsets.setdefault(str(query_id), subset)

    def of_rows(self, rows: Iterable[Any]) -> Truth:
        form, left = QRELS, iter(rows)
        for number, row in enumerate(left, 1):
            if not isinstance(row, Mapping):
                raise InputError(f"{self.name}: row {number} is {_shown(row)}; an object was expected. {EXPECTED}")
            if number == 1 and _form_of(row) == LABELLED_DATASET:
                return self.of_splits([adapt_dataset([row, *left])])
            try:
                form = self._add_row(row)
            except (ValueError, TypeError) as error:
                raise InputError(f"{self.name}: row {number} {error}. {EXPECTED}") from error
        return Truth(self, form)

    def _add_row(self, row: Mapping[str, Any]) -> str:
        """Add what a row says, and tell its form.

        Raises:
            ValueError: it is in no known form; the message goes on after "row 1".
        """
        query_id = _named(row, QUERY_ID_NAMES)
        form = None if query_id is None else _form_of(row)
        if form == JUDGED_PASSAGES:
            self._add_judged(_identifier(query_id), row)
            return JUDGED_PASSAGES
        if form == QRELS:
            docids, grades = (_listed(_named(row, names)) for names in (DOCID_NAMES, GRADE_NAMES))
            if len(docids) != len(grades):
                raise ValueError(f"has {len(docids)} docids and {len(grades)} scores")
            for docid, grade in zip(docids, grades, strict=True):
                self.add_grade(_identifier(query_id), docid, grade)
            return QRELS
        # A row is {docid: grade} beside its query, or {query: {docid: grade}}.
        groups = [value for value in row.values() if isinstance(value, Mapping)]
        beside = query_id is not None and len(groups) == 1
        if not beside and not 0 < len(groups) == len(row):
            raise ValueError(f"has the fields {list(row)[:8]}")
        for name, graded in ({_identifier(query_id): groups[0]} if beside else row).items():
            for docid, grade in graded.items():
                self.add_grade(str(name), docid, grade)
        return QRELS

    def _add_judged(self, query_id: str, row: Mapping[str, Any]) -> None:
        if isinstance(row.get(SUBSET), str):
            self.subsets.setdefault(query_id, row[SUBSET])
        for side, entry in ((name, entry) for name in LISTS for entry in row.get(name) or ()):
            if not isinstance(entry, Mapping):
                entry = {"docid": entry}
            elif _named(entry, DOCID_NAMES) is None:
                raise ValueError(f"has {_shown(entry)} among its passages, which has no docid")
            grade = _number(entry.get("grade"))
            if "relevant" in entry:
                given = _number(entry["relevant"])
                relevant = -1 if math.isnan(given) else int(given > 0)
            elif side == "positives":
                relevant = 1
            elif "grade" in entry:
                relevant = self._relevant(grade)
            else:
                raise ValueError(f"has {_shown(entry)} among its negatives, which is not said to be relevant or not")
            answers = _answers(entry) or (_answers(row) if relevant == 1 else ())
            self.add(query_id, _identifier(_named(entry, DOCID_NAMES)), relevant, grade, answers)

    def _of_lines(self, lines: Iterable[str]) -> Truth:
        """Qrels as text: three columns or TREC's four, with or without a header."""
        places: tuple[int, ...] = ()
        separator = None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                if not places:
                    separator = _separator_of(line)
                fields = _fields_of(line, separator)
                if not places and (places := _header(fields)):
                    continue
                places = places or {3: (0, 1, 2), 4: (0, 2, 3)}.get(len(fields), ())
                if len(fields) <= max(places, default=len(fields)):
                    raise ValueError(f"{len(fields)} columns")
                query_id, docid, grade = (fields[place] for place in places)
                self.add_grade(query_id, docid, grade)
            except (ValueError, csv.Error) as error:
                found = f"{self.name}: line {number} is {shorten(line, 80)!r} ({error})"
                raise InputError(f"{found}; a query, a docid and a grade were expected. {EXPECTED}") from error
        return Truth(self, QRELS)


def _separator_of(line: str) -> str | None:
    """What stands between the columns, as the first line has it; None for any white space."""
    if "\t" in line:
        return "\t"
    words = line.split()
    spaced = all(word.endswith(",") for word in words[:-1])
    quoted = line.lstrip().startswith('"') or ',"' in line
    return "," if "," in line and (spaced or quoted or len(words) < 3) else None


def _fields_of(line: str, separator: str | None) -> list[str]:
    if separator is None or separator not in line:
        return line.split()
    fields = line.rstrip("\r\n").split(separator)
    if '"' in line:
        quoted = next(csv.reader([line.rstrip("\r\n")], delimiter=separator, skipinitialspace=True))
        # Nobody has a tab in an id: where one would be, the quotes are not those of CSV.
        fields = quoted if separator == "," or len(quoted) == len(fields) else fields
    return [field.strip() for field in fields]


def _header(fields: Sequence[str]) -> tuple[int, ...]:
    """Where query, docid and grade stand, when this line is a header; nowhere when it names them in no known way."""
    try:
        float(fields[-1])
    except ValueError:
        named = [name.strip("#\"' ").lower() for name in fields]
        places = {name: named.index(name) for name in named}
        known = [_named(places, names) for names in (QUERY_ID_NAMES, DOCID_NAMES, GRADE_NAMES)]
        return tuple(known) if None not in known else ()
    return ()


def _keys(queries: Integers, docids: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.array(queries).cast(pa.string()), docids.cast(pa.string()), " ")


def _named(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"has {_shown(value)} where an id was expected")
    return str(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(value: Any) -> float:
    """A grade; not a number where it is null."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"has {_shown(value)} where a number was expected")
    return number


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = _listed(_named(row, ("answer", "answers")))
    return tuple(answer for answer in given if isinstance(answer, str) and answer.strip())


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 60)
