"""What must be true of any refined row: pure checks, a batch of wide rows in, (row in the batch, what is wrong) out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows import arrow, records
from arhn_datasets.rows.arrow import Integers, Mask, field_of, flat_lists, is_null, one_array, rows_of
from arhn_datasets.rows.records import DECISION, EVIDENCE_KINDS, FURTHER_KINDS, GROUNDED, KINDS, RANKING, SIDES
from arhn_datasets.rules.rule import Decision

SNIPPET_COLUMNS = tuple(side.snippets for side in SIDES)
RANK_COLUMNS = tuple(side.ranks for side in SIDES)
OPTIONAL = (*RANK_COLUMNS, RANKING)  # of a policy that needs no ranks

Fault = tuple[int, str]
"""A row of the batch, and what is wrong with it."""


def among(values: pa.Array, known: Sequence[str]) -> Mask:
    """Which values are one of some words."""
    found: Mask = pc.is_in(values, value_set=pa.array(known)).to_numpy(zero_copy_only=False)
    return found


def with_one_field(rows: pa.Table, column: str, name: str) -> pa.Array:
    """A column of lists of structs that have nothing but one field of text."""
    counts, values = flat_lists(rows, column)
    absent = is_null(one_array(rows.column(column)))
    structs = pa.StructArray.from_arrays([field_of(values, name, pa.string())], [name])
    return arrow.lists_of(counts, structs, absent=absent if absent.any() else None)


def check_relabelled(table: pa.Table) -> None:
    """Whether rows have origins.

    Raises:
        SchemaError: they have not.
    """
    missing = [side.origins for side in SIDES if side.origins not in table.column_names]
    if missing:
        raise SchemaError(
            f"The rows lack the columns {missing}: they were not relabelled. Run ds.map(arhn.relabel), or name what "
            "arhn-refine has written."
        )


def misplaced_passages(rows: pa.Table, optional: Sequence[str] = OPTIONAL) -> Iterator[Fault]:
    """Rows in which not every passage of the source stands exactly once, with all that goes along with it.

    ``optional`` are columns of evidence that may be null in a row; further evidence always may.
    """
    known = pa.array([records.POSITIVE.label, records.NEGATIVE.label])
    parts: list[tuple[Integers, Integers, Integers]] = []
    for side in SIDES:
        counts, _ = arrow.lengths_in(rows, side.passages)
        for kind in (*EVIDENCE_KINDS, "origins"):
            column = side.column(kind)
            if column not in rows.column_names:
                continue
            found, absent = arrow.lengths_in(rows, column)
            may_be_null = column in optional or kind in FURTHER_KINDS
            for row in np.flatnonzero((found != counts) & ~(absent & may_be_null)):
                yield int(row), f"{column} has {found[row]} values for {counts[row]} passages in {side.passages}."
        counts, origins = flat_lists(rows, side.origins)
        codes = pc.index_in(field_of(origins, "label", pa.string()), value_set=known)
        parts.append((rows_of(counts), _filled(codes, -1), _filled(field_of(origins, "position", pa.int32()), -1)))
    numbers, labels, places = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((places, labels, numbers))
    numbers, labels, places = numbers[order], labels[order], places[order]
    wrong = (labels < 0) | (places != _since(_starts(numbers) | _starts(labels)))
    for at in np.unique(numbers[wrong]):
        said = "; ".join(
            f"{name}s at {places[(numbers == at) & (labels == code)].tolist()}"
            for code, name in ((0, "positive"), (1, "negative"), (-1, "neither"))
            if ((numbers == at) & (labels == code)).any()
        )
        message = f"its passages come from {said}; every place from 0 on was expected once. One was lost or doubled."
        yield int(at), message


def _filled(values: pa.Array, absent: int) -> Integers:
    filled: Integers = pc.fill_null(values, absent).to_numpy(zero_copy_only=False).astype(np.int64)
    return filled


def _starts(values: Integers) -> Mask:
    """Where a value differs from the one before."""
    return np.append(True, np.diff(values) != 0)[: len(values)]


def _since(first: Mask) -> Integers:
    """How many values come between each and the start of its group."""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


def unknown_statuses(rows: pa.Table, *, unranked: bool) -> Iterator[Fault]:
    """Rows with a status that there is not; ``unranked`` allows rows without a ranking."""
    for kind in (kind for kind in EVIDENCE_KINDS if KINDS[kind].statuses):
        judged = bool(KINDS[kind].values)
        for column in (side.column(kind) for side in SIDES if side.column(kind) in rows.column_names):
            counts, values = flat_lists(rows, column)
            row = rows_of(counts)
            # A passage that was not judged at all, as the positives that others are compared with, is null.
            statuses = field_of(values, "status", pa.string())
            wrong = _wrong_values(column, kind, values) if judged else ()
            for at, message in (*_unknown(column, statuses, KINDS[kind].statuses, judged), *wrong):
                yield int(row[at]), message
    for column, of_row in ((RANKING, records.RANKING_STATUSES), (DECISION, records.DECISION_STATUSES)):
        if column in rows.column_names:
            statuses = field_of(one_array(rows.column(column)), "status", pa.string())
            yield from _unknown(column, statuses, of_row, column == RANKING and unranked)


def _unknown(column: str, statuses: pa.Array, known: Sequence[str], may_be_null: bool) -> Iterator[Fault]:
    for at in np.flatnonzero(~(among(statuses, known) | (is_null(statuses) & may_be_null))):
        said = f"{column} has the status {statuses[at].as_py()!r}"
        yield int(at), f"{said}; one of {', '.join(known)} was expected."


def _wrong_values(column: str, kind: str, values: pa.Array) -> Iterator[Fault]:
    """Verdicts and grades that there are not, and such without one that should have one."""
    name, known = str(KINDS[kind].reads), KINDS[kind].values
    type = KINDS[kind].type.field(name).type
    statuses, given = field_of(values, "status", pa.string()), field_of(values, name, type)
    there = pc.is_in(given, value_set=pa.array(known, type)).to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(there != among(statuses, (records.JUDGED, records.PARTIAL))):
        found, status = given[at].as_py(), statuses[at].as_py()
        expected = f"one of {', '.join(map(str, known))}" if status in (records.JUDGED, records.PARTIAL) else "none"
        yield int(at), f"{column} is {status} with the {name} {found!r}; {expected} expected."


def ungrounded_snippets(rows: pa.Table) -> Iterator[Fault]:
    """Rows with a snippet that does not stand in its passage at its offsets, or with one where there must be none."""
    for side in SIDES:
        counts, snippets = flat_lists(rows, side.snippets)
        lengths, passages = flat_lists(rows, side.passages)
        absent = is_null(one_array(rows.column(side.snippets)))
        if absent.any():  # those of the rows that have snippets
            passages = passages.filter(pa.array(~np.repeat(absent, lengths)))
        row, place = rows_of(counts), arrow.within(counts)
        value = {field.name: field_of(snippets, field.name, field.type) for field in KINDS["snippets"].type}
        grounded = among(value["status"], (GROUNDED,))
        given = ~np.logical_and.reduce([is_null(value[name]) for name in ("snippet", "field", "start", "end")])
        for at in np.flatnonzero(given & ~grounded):
            said = f"{side.label} {place[at]} is {value['status'][at].as_py()}"
            yield int(row[at]), f"{said} and has a snippet or offsets; none were expected."
        where = np.flatnonzero(grounded)
        texts = {name: field_of(passages, name, pa.string()).take(pa.array(where)) for name in ("text", "title")}
        quoted = (value[name].take(pa.array(where)).to_pylist() for name in ("snippet", "field", "start", "end"))
        for i, (words, named, start, end) in enumerate(zip(*quoted, strict=True)):
            text = texts[named][i].as_py() if named in texts else None
            if problem := _misquoted(text, words, start, end, named):
                yield int(row[where[i]]), f"{side.label} {place[where[i]]} is grounded, with {problem}"


def _misquoted(text: str | None, words: str | None, start: int | None, end: int | None, named: str) -> str | None:
    """What is wrong with a snippet, if it does not stand in the text from one character to the other."""
    said = f"the snippet {_quoted(words)} at {start}:{end} of its {named}"
    if text is None or words is None or start is None or end is None or not 0 <= start < end:
        return f"{said}; words and their place in text or title were expected."
    return None if text[start:end] == words else f"{said}, where there is {_quoted(text[start:end])}."


def _quoted(text: str | None) -> str:
    return "null" if text is None else f"“{records.shorten(text, 60)}”"


def impossible_ranks(rows: pa.Table, rank_by: str) -> Iterator[Fault]:
    """Rows whose ranks do not count up from 1, or do not fit the candidates and the status of the ranking."""
    if not {RANKING, records.POSITIVE.ranks, records.NEGATIVE.ranks} <= set(rows.column_names):
        return
    count = rows.num_rows
    parts: list[tuple[Integers, Integers]] = []
    shown = np.zeros(count, np.int64)
    for side in SIDES:
        counts, values = flat_lists(rows, side.ranks)
        parts.append((rows_of(counts), _filled(values, 0)))
        counts, values = flat_lists(rows, side.snippets)
        candidate = among(field_of(values, "status", pa.string()), (GROUNDED,)) | (rank_by == "passage")
        shown += np.bincount(rows_of(counts)[candidate], minlength=count)
    numbers, ranks = (np.concatenate(values) for values in zip(*parts, strict=True))
    numbers, ranks = numbers[ranks != 0], ranks[ranks != 0]
    order = np.lexsort((ranks, numbers))
    numbers, ranks = numbers[order], ranks[order]
    new_row = _starts(numbers)
    # A rank is 1 and the number of passages that are better: equal ones share it and leave a gap.
    expected = 1 + _since(new_row) - _since(new_row | _starts(ranks))
    for at in np.unique(numbers[ranks != expected]):
        found, wanted = ranks[numbers == at].tolist(), expected[numbers == at].tolist()
        yield int(at), f"its ranks are {found}; 1 and the number of better passages would be {wanted}."
    placed = np.bincount(numbers, minlength=count)
    ranking = one_array(rows.column(RANKING))
    status = field_of(ranking, "status", pa.string())
    candidates = _filled(field_of(ranking, "candidates", pa.int32()), 0)
    skipped = among(status, (records.SKIPPED,)) | is_null(status)
    for at in np.flatnonzero(candidates != np.where(skipped, 0, shown)):
        wanted = 0 if skipped[at] else shown[at]
        yield int(at), f"ranking has {candidates[at]} candidates, {status[at].as_py()}; its snippets make {wanted}."
    none = among(status, (records.ERROR, records.UNPARSED)) | skipped
    for at in np.flatnonzero((among(status, (records.RANKED,)) & (placed != candidates)) | (none & (placed != 0))):
        yield int(at), f"ranking is {status[at].as_py()}, and {placed[at]} of {candidates[at]} candidates have a rank."


def wrong_labels(rows: pa.Table, rule: Decision) -> Iterator[Fault]:
    """Rows whose lists or decision are not those that the rule makes of their evidence."""
    decided = ~is_null(one_array(rows.column(DECISION)))
    for at in np.flatnonzero(~decided).tolist():
        yield at, "it has no decision; every row of a run has one."
    numbers = np.flatnonzero(decided)
    rows = rows if decided.all() else rows.take(pa.array(numbers))
    made = pa.table(dict(rule.compute(_slim(rows))))
    moved = np.logical_or.reduce([_lists_differ(rows, made, side.origins) for side in SIDES])
    found, expected = (one_array(table.column(DECISION)) for table in (rows, made))
    differing = {
        field.name: _differ(field_of(found, field.name, field.type), field_of(expected, field.name, field.type))
        for field in records.DECISION_TYPE
    }
    for at in np.flatnonzero(np.logical_or.reduce([moved, *differing.values()])).tolist():
        if moved[at]:
            yield int(numbers[at]), _moved(rows.slice(at, 1), made.slice(at, 1), rule)
            continue
        names = [name for name, differs in differing.items() if differs[at]]
        said = (", ".join(f"{name} {values[at].as_py().get(name)!r}" for name in names) for values in (found, expected))
        found_said, made_said = said
        yield (
            int(numbers[at]),
            f"its decision says {found_said}; policy {rule.label} makes {made_said} of this evidence.",
        )


def _slim(rows: pa.Table) -> pa.Table:
    """The rows with origins in the place of passages, and of the evidence only what relabelling looks at.

    What moves, moves as a whole, and only the labels are in question.
    """
    columns = {name: arrow.strings_of(rows, name) for name in (records.QUERY, records.QUERY_ID)}
    columns[DECISION] = rows.column(DECISION)
    for side in SIDES:
        columns[side.origins] = columns[side.passages] = rows.column(side.origins)
        columns[side.snippets] = with_one_field(rows, side.snippets, "status")
        for column in (side.ranks, *(side.column(kind) for kind in FURTHER_KINDS)):
            if column in rows.column_names:
                columns[column] = rows.column(column)
    return pa.table(columns)


def _lists_differ(rows: pa.Table, others: pa.Table, column: str) -> Mask:
    """The rows in which two lists of origins differ."""
    (counts, found), (wanted, made) = (flat_lists(table, column) for table in (rows, others))
    wrong: Mask = counts != wanted
    here, there = np.flatnonzero(np.repeat(~wrong, counts)), pa.array(np.flatnonzero(np.repeat(~wrong, wanted)))
    for field in KINDS["origins"].type:
        one, other = (field_of(values, field.name, field.type) for values in (found, made))
        wrong[rows_of(counts)[here[_differ(one.take(pa.array(here)), other.take(there))]]] = True
    return wrong


def _differ(one: pa.Array, other: pa.Array) -> Any:
    """Where two arrays differ; null equals null."""
    unequal = pc.fill_null(pc.not_equal(one, other), True)
    both = pc.and_(pc.is_null(one), pc.is_null(other))
    return pc.and_not(unequal, both).to_numpy(zero_copy_only=False)


def _moved(found: pa.Table, made: pa.Table, rule: Decision) -> str:
    """The first passage of a row that stands in another list than the rule puts it into."""
    target = {place: side.label for side in SIDES for place in _places(made, side.origins)}
    for side in SIDES:
        for i, (label, position) in enumerate(_places(found, side.origins)):
            if (wanted := target.get((label, position))) != side.label:
                docid = found.column(side.passages)[0].as_py()[i].get("docid")
                return (
                    f"docid {docid!r}, {label} {position} of the source, stands in {side.passages}; policy "
                    f"{rule.label} puts it into {wanted}_passages by this evidence."
                )
    return f"its passages stand in another order than policy {rule.label} puts them by this evidence."


def _places(row: pa.Table, column: str) -> list[tuple[str, int]]:
    return [(origin["label"], origin["position"]) for origin in row.column(column)[0].as_py()]
