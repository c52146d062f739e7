"""The parts of BEIR: queries, corpus, qrels, and a run or lists of negatives, as one row a query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.inputs.corpora import (
    NAMED_AT_MOST,
    GivenRows,
    contents_of,
    passages_in,
    records,
    refuse_missing,
    value_in,
)
from arhn_datasets.inputs.forms import CANONICAL, GRADE_NAMES, QUERY_ID_NAMES, RUN_DOCID_NAMES
from arhn_datasets.inputs.values import DOCID, ID, QUERY_TEXT, batches_of, found_as, lengths, read
from arhn_datasets.rows.arrow import lists_of
from arhn_datasets.rows.records import QUERY, QUERY_ID, shorten

QUERY_KEY_NAMES = (*QUERY_ID_NAMES, "_id", "id")
QUERY_TEXT_NAMES = ("text", QUERY, "query_text")


def tables_of_parts(parts: Mapping[str, GivenRows | None], max_negatives: int | None) -> Iterator[pa.Table]:
    """One row a query of the qrels, in the canonical columns.

    Raises:
        ConfigurationError: a part is missing, or there are too many.
        SchemaError: the parts do not fit together.
    """
    queries, corpus, qrels, run, negatives = parts.values()
    retrieved_by = run if run is not None else negatives
    if queries is None or corpus is None or qrels is None or retrieved_by is None or None not in (run, negatives):
        raise ConfigurationError(
            "Give a dataset, or queries=, corpus=, qrels= and one of run= and negatives=. "
            f"Given: {[name for name, part in parts.items() if part is not None] or 'nothing'}."
        )
    if max_negatives is not None and max_negatives < 0:
        raise ConfigurationError(f"max_negatives is {max_negatives}; a number of passages, or None, was expected.")
    positives = _positives(qrels)
    texts = _texts_of(queries, positives)
    retrieved = _retrieved(retrieved_by, "negatives" if run is None else "run")
    wanted = {query_id: retrieved.get(query_id, []) for query_id in texts}
    needed = dict.fromkeys(chain.from_iterable([*positives[query_id], *wanted[query_id]] for query_id in texts))
    passages, places = passages_in(corpus, needed)
    contents = contents_of(passages).tolist()

    def sides(query_id: str) -> tuple[list[int], list[int]]:
        labelled = [places[docid] for docid in positives[query_id]]
        others = [places[docid] for docid in wanted[query_id]]
        if run is not None:
            # A run ranks the positives too, and copies of them under other docids; those are not negatives.
            known = {contents[place] for place in labelled}
            others = [place for place in others if contents[place] not in known]
        return labelled, others[:max_negatives]

    for batch in batches_of(texts):
        lists = [_lists_at(passages, side) for side in zip(*map(sides, batch), strict=True)]
        queries_of_batch = pa.array([texts[query_id] for query_id in batch], pa.string())
        yield pa.table([pa.array(batch, pa.string()), queries_of_batch, *lists], names=CANONICAL)


def _lists_at(passages: pa.Array, places: Sequence[list[int]]) -> pa.Array:
    return lists_of(lengths(places), passages.take(pa.array(list(chain.from_iterable(places)), pa.int64())))


def _positives(qrels: GivenRows) -> dict[str, list[str]]:
    graded = _by_query(qrels, "qrels", lambda row: _numbers(row, GRADE_NAMES, "qrels"))
    positives = {query_id: [docid for grade, docid in found if grade > 0] for query_id, found in graded.items()}
    if not positives:
        raise SchemaError("The qrels are empty: no query has a positive.")
    without = [query_id for query_id, docids in positives.items() if not docids]
    if without:
        raise SchemaError(
            f"{len(without)} of {len(positives)} queries of the qrels have no positive, a document with a score above "
            f"0: {', '.join(map(repr, without[:NAMED_AT_MOST]))}. Leave them out of the qrels."
        )
    return {query_id: list(dict.fromkeys(docids)) for query_id, docids in positives.items()}


def _retrieved(run: GivenRows, name: str) -> dict[str, list[str]]:
    def sort_keys(row: Mapping[str, Any]) -> list[float]:
        if row.get("rank") is not None:
            return _numbers(row, ("rank",), name)
        if row.get("score") is not None:
            return [-score for score in _numbers(row, ("score",), name)]
        return [0.0] * len(_column(row, RUN_DOCID_NAMES, name))

    found = _by_query(run, name, sort_keys)
    # `sorted` is stable, so documents without rank or score, and ties, stay in the order in which they came.
    ordered = {query_id: sorted(pairs, key=lambda pair: pair[0]) for query_id, pairs in found.items()}
    return {query_id: list(dict.fromkeys(docid for _, docid in pairs)) for query_id, pairs in ordered.items()}


def _texts_of(queries: GivenRows, positives: Mapping[str, list[str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for batch in batches_of(records(queries, "queries")):
        query_ids = read([value_in(row, QUERY_KEY_NAMES, "queries") for row in batch], ID, QUERY_ID).to_pylist()
        labelled = [(query_id, row) for query_id, row in zip(query_ids, batch, strict=True) if query_id in positives]
        found = read([value_in(row, QUERY_TEXT_NAMES, "queries") for _, row in labelled], QUERY_TEXT, "text")
        for (query_id, _), text in zip(labelled, found.to_pylist(), strict=True):
            if texts.setdefault(query_id, text) != text:
                raise SchemaError(f"The queries have two different texts with the id {query_id!r}.")
    refuse_missing([key for key in positives if key not in texts], len(positives), "query ids", "queries")
    return texts


def _by_query(
    given: GivenRows, part: str, numbers: Callable[[Mapping[str, Any]], list[float]]
) -> dict[str, list[tuple[float, str]]]:
    """For each query its documents, each behind its number."""
    found: dict[str, list[tuple[float, str]]] = {}
    for batch in batches_of(records(given, part)):
        query_ids = read([value_in(row, QUERY_ID_NAMES, part) for row in batch], ID, QUERY_ID).to_pylist()
        lists = [_column(row, RUN_DOCID_NAMES, part) for row in batch]
        docids = iter(read(list(chain.from_iterable(lists)), DOCID, "docid").to_pylist())
        for row, query_id, own in zip(batch, query_ids, lists, strict=True):
            if query_id is None:
                raise SchemaError(f"A row of the {part} has no query id: {shorten(repr(dict(row)), 100)}.")
            values = numbers(row)
            if len(own) != len(values):
                raise SchemaError(
                    f"In the {part}, query {query_id!r} has {len(own)} docids and {len(values)} scores or ranks."
                )
            found.setdefault(query_id, []).extend(zip(values, islice(docids, len(own)), strict=True))
    return found


def _column(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[Any]:
    """The values of the first of the columns that is there: one row a document, or lists of them."""
    value = value_in(row, names, name)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _numbers(row: Mapping[str, Any], names: tuple[str, ...], name: str) -> list[float]:
    return [_number(value, name) for value in _column(row, names, name)]


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))  # files of qrels and runs come as text
    except ValueError:
        raise SchemaError(f"A score or rank of the {name} is {found_as(value)}; a number was expected.") from None
