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
from arhn_datasets.rows.arrow import Integers, field_of, flat_lists, rows_of, strings_of, taken, within
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, QUERY_ID, SUBSET, shorten

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is known, pair by pair; the pairs of a query stand together.

    ``relevant`` is 1, 0, or -1 where it is not decided; ``grades`` are null where there are none, and so are the
    ``subsets`` of the queries. ``contradictory`` counts the pairs that are judged both ways, which decides nothing.
    """

    name: str
    form: str
    queries: Mapping[str, int]
    starts: Integers
    docids: pa.Array
    relevant: Integers
    grades: Any
    answers: Sequence[tuple[str, ...]]
    subsets: Sequence[str | None]
    contradictory: int = 0

    def __len__(self) -> int:
        return len(self.relevant)

    def query_numbers(self, query_ids: pa.Array) -> Integers:
        """The number of each query, -1 where nothing is known of it."""
        return np.array([self.queries.get(query_id, -1) for query_id in query_ids.to_pylist()], np.int64)

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


@dataclass
class _Judgements:
    """The pairs read so far, by query and docid."""

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

    def truth(self, name: str, form: str) -> Truth:
        for query_id, docid in self.contradicted:
            self.found[query_id][docid] = (-1, math.nan, ())
        judgements = [judgement for pairs in self.found.values() for judgement in pairs.values()]
        if not judgements:
            raise InputError(f"{name} holds no judged pair of a query and a docid. {EXPECTED}")
        counts = np.array([len(pairs) for pairs in self.found.values()], np.int64)
        return Truth(
            name=name,
            form=form,
            queries={query_id: number for number, query_id in enumerate(self.found)},
            starts=np.concatenate([[0], np.cumsum(counts)]),
            docids=pa.array([docid for pairs in self.found.values() for docid in pairs], pa.string()),
            relevant=np.array([relevant for relevant, _, _ in judgements], np.int64),
            grades=np.array([grade for _, grade, _ in judgements], np.float64),
            answers=[answers for _, _, answers in judgements],
            subsets=[self.subsets.get(query_id) for query_id in self.found],
            contradictory=len(self.contradicted),
        )


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
        return _truth_at(os.fspath(truth), relevant_from)
    if hasattr(truth, "column_names") and hasattr(truth, "with_format"):  # Dataset, DatasetDict
        splits = truth if isinstance(truth, Mapping) else {"": truth}
        return _truth_of_splits({n: rows.with_format(None) for n, rows in splits.items()}, "the truth", relevant_from)
    if isinstance(truth, Mapping):
        return _truth_of_rows([truth], "the truth", relevant_from)
    if isinstance(truth, (bytes, bytearray)) or not isinstance(truth, Iterable):
        raise InputError(f"The truth is {shorten(repr(truth), 60)}, of the type {type(truth).__name__}. {EXPECTED}")
    return _truth_of_rows(truth, "the truth", relevant_from)


def _truth_at(name: str, relevant_from: float) -> Truth:
    path = Path(name).expanduser()
    if not path.is_file():
        return _truth_of_dataset(name)
    try:
        return _truth_in(path, relevant_from)
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, (InputError, SchemaError)):
            raise
        raise InputError(f"{path} cannot be read: {shorten(str(error))}. {EXPECTED}") from error


def _truth_in(path: Path, relevant_from: float) -> Truth:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        columns = pq.read_schema(path).names
        if not _is_judged(columns) and not _is_qrels(columns):
            return _truth_of_dataset(str(path))
        tables = read_tables(path, _ROWS_AT_ONCE)
        return _truth_of_rows((row for table in tables for row in table.to_pylist()), str(path), relevant_from)
    with path.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        if not first.lstrip().startswith(("{", "[")):
            return _truth_of_lines(lines, str(path), relevant_from)
        if POSITIVE.passages in first and _is_labelled(_first_row(first)):
            return _truth_of_dataset(str(path))
        return _truth_of_rows(_json_rows(lines, path, first), str(path), relevant_from)


def _first_row(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, Mapping) else {}


def _json_rows(lines: Any, path: Path, first: str) -> Iterator[Any]:
    """The values of a file of JSON lines, or of a file that is one list or one mapping."""
    try:
        single = isinstance(json.loads(first), list)
    except ValueError:
        single = True  # one value over several lines
    if single:
        whole = json.load(lines)
        yield from whole if isinstance(whole, list) else [whole]
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                found = f"{path}: line {number} is no JSON ({error}): {shorten(line, 60)}"
                raise InputError(f"{found}. {EXPECTED}") from error


# --- rows and lines ---------------------------------------------------------------------------------------------------


def _truth_of_rows(rows: Iterable[Any], name: str, relevant_from: float) -> Truth:
    pairs, form, left = _Judgements(), QRELS, iter(rows)
    for number, row in enumerate(left, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}: row {number} is {_shown(row)}; an object was expected. {EXPECTED}")
        if number == 1 and _is_labelled(row):
            return _truth_of_labelled([row, *left], name)
        try:
            form = _add_row(row, pairs, relevant_from)
        except (ValueError, TypeError) as error:
            raise InputError(f"{name}: row {number} {error}. {EXPECTED}") from error
    return pairs.truth(name, form)


def _truth_of_labelled(rows: Sequence[Any], name: str) -> Truth:
    from arhn_datasets.inputs.adaptation import adapt_dataset

    return _truth_of_splits({"": adapt_dataset(rows)}, name, 1)


def _is_labelled(columns: Iterable[str]) -> bool:
    return {POSITIVE.passages, NEGATIVE.passages} <= set(columns)


def _is_judged(columns: Iterable[str]) -> bool:
    return not _is_labelled(columns) and not {*LISTS}.isdisjoint(columns) and not {*QUERY_ID_NAMES}.isdisjoint(columns)


def _is_qrels(columns: Iterable[str]) -> bool:
    return all(not {*names}.isdisjoint(columns) for names in (QUERY_ID_NAMES, DOCID_NAMES, GRADE_NAMES))


def _add_row(row: Mapping[str, Any], pairs: _Judgements, relevant_from: float) -> str:
    """Add what a row says, and tell its form.

    Raises:
        ValueError: it is in no known form; the message goes on after "row 1".
    """
    query_id = _named(row, QUERY_ID_NAMES)
    if query_id is not None and _is_judged(row):
        _add_judged(_identifier(query_id), row, pairs, relevant_from)
        return JUDGED_PASSAGES
    if query_id is not None and _is_qrels(row):
        docids, grades = (_listed(_named(row, names)) for names in (DOCID_NAMES, GRADE_NAMES))
        if len(docids) != len(grades):
            raise ValueError(f"has {len(docids)} docids and {len(grades)} scores")
        for docid, grade in zip(docids, grades, strict=True):
            _add_grade(_identifier(query_id), docid, grade, pairs, relevant_from)
        return QRELS
    for name, graded in _groups_of(row, query_id).items():
        for docid, grade in graded.items():
            _add_grade(str(name), docid, grade, pairs, relevant_from)
    return QRELS


def _groups_of(row: Mapping[str, Any], query_id: Any) -> Mapping[str, Mapping[str, Any]]:
    """The grades of each query, where a row is one of ``{docid: grade}`` beside its query, or ``{query: grades}``."""
    groups = [value for value in row.values() if isinstance(value, Mapping)]
    if query_id is not None and len(groups) == 1:
        return {_identifier(query_id): groups[0]}
    if not groups or len(groups) < len(row):
        raise ValueError(f"has the fields {list(row)[:8]}")
    return row


def _add_judged(query_id: str, row: Mapping[str, Any], pairs: _Judgements, relevant_from: float) -> None:
    if isinstance(row.get(SUBSET), str):
        pairs.subsets.setdefault(query_id, row[SUBSET])
    for name in LISTS:
        for entry in row.get(name) or ():
            _add_entry(query_id, entry, row, pairs, relevant_from, positive=name == "positives")


def _add_entry(
    query_id: str, entry: Any, row: Mapping[str, Any], pairs: _Judgements, relevant_from: float, *, positive: bool
) -> None:
    if isinstance(entry, Mapping) and _named(entry, DOCID_NAMES) is None:
        raise ValueError(f"has {_shown(entry)} among its passages, which has no docid")
    if not isinstance(entry, Mapping):
        entry = {"docid": entry}
    grade = _number(entry.get("grade"))
    if "relevant" in entry:
        given = _number(entry["relevant"])
        relevant = -1 if math.isnan(given) else int(given > 0)
    elif "grade" in entry and not positive:
        relevant = -1 if math.isnan(grade) else int(grade >= relevant_from)
    elif positive:
        relevant = 1
    else:
        raise ValueError(f"has {_shown(entry)} among its negatives, which is not said to be relevant or not")
    answers = _answers(entry) or (_answers(row) if relevant == 1 else ())
    pairs.add(query_id, _identifier(_named(entry, DOCID_NAMES)), relevant, grade, answers)


def _add_grade(query_id: str, docid: Any, grade: Any, pairs: _Judgements, relevant_from: float) -> None:
    value = _number(grade)
    relevant = -1 if math.isnan(value) else int(value >= relevant_from)
    pairs.add(query_id, _identifier(docid), relevant, value)


def _truth_of_lines(lines: Iterable[str], name: str, relevant_from: float) -> Truth:
    """Qrels as text: three columns or TREC's four, with or without a header."""
    pairs, places, separator = _Judgements(), None, None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if places is None:
                separator = _separator_of(line)
            fields = _fields_of(line, separator)
            if places is None:
                places = _header(fields)
                if places is not None:
                    continue
                places = {3: (0, 1, 2), 4: (0, 2, 3)}.get(len(fields), ())
            if len(fields) <= max(places, default=len(fields)):
                raise ValueError(f"{len(fields)} columns")
            query_id, docid, grade = (fields[place] for place in places)
            _add_grade(query_id, docid, grade, pairs, relevant_from)
        except (ValueError, csv.Error) as error:
            found = f"{name}: line {number} is {shorten(line, 80)!r} ({error})"
            raise InputError(f"{found}; a query, a docid and a grade were expected. {EXPECTED}") from error
    return pairs.truth(name, QRELS)


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


def _header(fields: Sequence[str]) -> tuple[int, ...] | None:
    """Where query, docid and grade stand, when this line is a header; nowhere when it names them in no known way."""
    try:
        float(fields[-1])
    except ValueError:
        named = [name.strip("#\"' ").lower() for name in fields]
        known = [
            next((named.index(name) for name in names if name in named), None)
            for names in (QUERY_ID_NAMES, DOCID_NAMES, GRADE_NAMES)
        ]
        return tuple(place for place in known if place is not None) if None not in known else None
    return None


# --- labelled datasets ------------------------------------------------------------------------------------------------


def _truth_of_dataset(name: str) -> Truth:
    """Any dataset that `arhn-refine` reads."""
    from arhn_datasets.inputs.sources import Input, load_input, silent
    from arhn_datasets.rules.revert import Revert

    with silent():
        splits, _ = load_input(Input(name=name), undo=Revert(keep_evidence=False))
    return _truth_of_splits(splits, name, 1)


def _truth_of_splits(splits: Mapping[str, Any], name: str, relevant_from: float) -> Truth:
    from arhn_datasets.inputs.adaptation import adapt_dataset

    pairs = _Judgements()
    if any(rows.column_names is None for rows in splits.values()):  # streams that were mapped: the rows tell
        return _truth_of_rows((row for split in splits.values() for row in split), name, relevant_from)
    for rows in splits.values():
        if _is_judged(rows.column_names) or _is_qrels(rows.column_names):
            return _truth_of_rows((row for split in splits.values() for row in split), name, relevant_from)
        adapted = (
            rows if {QUERY_ID, POSITIVE.passages, NEGATIVE.passages} <= set(rows.column_names) else adapt_dataset(rows)
        )
        for table in adapted.with_format("arrow").iter(_ROWS_AT_ONCE):
            _add_table(table, pairs)
    return pairs.truth(name, LABELLED_DATASET)


def _add_table(table: pa.Table, pairs: _Judgements) -> None:
    query_ids = strings_of(table, QUERY_ID)
    for relevant, column in ((1, POSITIVE.passages), (0, NEGATIVE.passages)):
        counts, passages = flat_lists(table, column)
        of_each = taken(query_ids, rows_of(counts)).to_pylist()
        for query_id, docid in zip(of_each, field_of(passages, "docid", pa.string()).to_pylist(), strict=True):
            if docid is not None:
                pairs.add(str(query_id), docid, relevant, float(relevant))
    if SUBSET in table.column_names:
        for query_id, subset in zip(query_ids.to_pylist(), strings_of(table, SUBSET).to_pylist(), strict=True):
            if subset:
                pairs.subsets.setdefault(str(query_id), subset)


# --- values -----------------------------------------------------------------------------------------------------------


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
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"has {_shown(value)} where a number was expected") from None
    if math.isinf(number):
        raise ValueError(f"has {_shown(value)} where a number was expected")
    return number


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("answer") if row.get("answer") is not None else row.get("answers")
    return tuple(answer for answer in _listed(given) if isinstance(answer, str) and answer.strip())


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 60)
