"""Every trainer's format, from refined rows or any canonical rows.

=================  =====================================================================================================
``triplet``        ``anchor, positive, negative``: a row for each positive with each negative
``n-tuple``        ``anchor, positive, negative_1, ..., negative_n``: a row for each positive
``pair``           ``anchor, positive``: a row for each positive
``labeled-pair``   ``query, passage, label``: a row for each positive (1) and each negative (0)
``labeled-list``   ``query, docs, labels``: a row for each query
``flagembedding``  JSON lines ``{"query", "pos", "neg"}``
``tevatron``       ``query_id, query, positive_passages, negative_passages``, and nothing else
``beir``           ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``
``mteb``           ``corpus``, ``queries`` and qrels as three configurations
=================  =====================================================================================================

Trainers read every column as an input, crash on an empty list and on a null: no format has a further column, and a row
that cannot be written in a format is left out and counted. In ``tevatron``, ``beir`` and ``mteb`` the title stands
beside the text, in the others in front of it.

With ``labels="soft"`` the scores of the passages go along, for losses that distil a teacher: as ``labels`` of
``labeled-list``, as a column ``scores`` of ``n-tuple`` (of the positive, then of the negatives), and as ``pos_scores``
and ``neg_scores`` of ``flagembedding``. A row in which a passage has no score is left out there.

The grades of the qrels are 2 for a positive and 1 for a filtered passage, which answers the query less directly.
Negatives are not in them: BEIR and MTEB take what is not there as not relevant, and some readers take whatever is there
as relevant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.arrow import (
    Integers,
    check_canonical,
    field_of,
    flat_lists,
    is_null,
    lists_of,
    merged,
    one_array,
    rows_of,
    starts_of,
    strings_of,
    taken,
    within,
)
from arhn_datasets.rows.records import (
    DECISION,
    DROPPED,
    FILTERED,
    NEGATIVE,
    PASSAGE_TYPE,
    POSITIVE,
    QUERY,
    QUERY_ID,
    SCORE_TYPE,
)

FORMATS = (
    *("triplet", "n-tuple", "labeled-list", "pair", "labeled-pair"),
    *("flagembedding", "beir", "mteb", "tevatron"),
)
RETRIEVAL = ("beir", "mteb")
CORPUS, QUERIES, QRELS = "corpus", "queries", "qrels"
SHORT = ("repeat", "drop")
LABELS = ("hard", "soft")
SOFT = ("n-tuple", "labeled-list", "flagembedding")  # what has a place for scores
POSITIVE_GRADE, FILTERED_GRADE = 2, 1
NO_POSITIVE, NO_NEGATIVE, DROPPED_ROW = "no positive", "no negative", "dropped by a guard"
NO_SCORE = "a passage without a score"

Columns = dict[str, pa.Array]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen in the formats.

    Args:
        negatives: The number of negatives in a row of ``n-tuple``; the first ones of each row.
        short: What becomes of a row with fewer: ``"repeat"`` takes its own ones again, ``"drop"`` leaves it out.
        grades: Labels of ``labeled-list``: 2 for positives, 1 for filtered passages, which otherwise are not in the
            list, and 0 for negatives, instead of 1 and 0.
        separator: Between title and text.
        labels: ``"soft"`` for the scores of the passages, which ``arhn.Scores`` gives, beside or instead of ``"hard"``
            labels; in :data:`SOFT`, the other formats have no place for them.

    Raises:
        ConfigurationError: a value is out of range.
    """

    negatives: int = 7
    short: str = "repeat"
    grades: bool = False
    separator: str = " "
    labels: str = "hard"

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ConfigurationError(f"negatives is {self.negatives}; a number from 1 was expected.")
        if self.short not in SHORT:
            raise ConfigurationError(f"short is {self.short!r}; one of {', '.join(SHORT)} was expected.")
        if self.labels not in LABELS:
            raise ConfigurationError(f"labels is {self.labels!r}; one of {', '.join(LABELS)} was expected.")
        if self.soft and self.grades:
            raise ConfigurationError("Labels are either soft or grades; leave one of them out.")

    @property
    def soft(self) -> bool:
        """Whether scores go along."""
        return self.labels == "soft"

    def to_json(self) -> dict[str, Any]:
        """Every option; ``labels`` only where they are soft, as earlier versions read this."""
        return {name: value for name, value in asdict(self).items() if name != "labels" or self.soft}


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once.

    Raises:
        ConfigurationError: there is no such format, or none is named.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigurationError(f"The format is {unknown or 'not named'}; expected some of {', '.join(FORMATS)}.")
    return tuple(dict.fromkeys(formats))


def schema_of(format: str, options: Options | None = None) -> pa.Schema:
    """The columns of a format, or of ``corpus``, ``queries`` and ``qrels``, the tables of ``beir`` and ``mteb``."""
    text, texts = pa.string(), pa.list_(pa.string())
    options = options or Options()
    width, scores = options.negatives, pa.list_(SCORE_TYPE)
    columns: dict[str, dict[str, pa.DataType]] = {
        "triplet": {"anchor": text, "positive": text, "negative": text},
        "n-tuple": {
            **{"anchor": text, "positive": text, **{f"negative_{i + 1}": text for i in range(width)}},
            **({"scores": scores} if options.soft else {}),
        },
        "pair": {"anchor": text, "positive": text},
        "labeled-pair": {"query": text, "passage": text, "label": pa.int64()},
        "labeled-list": {"query": text, "docs": texts, "labels": scores if options.soft else pa.list_(pa.int64())},
        "flagembedding": {
            **{"query": text, "pos": texts, "neg": texts},
            **({"pos_scores": scores, "neg_scores": scores} if options.soft else {}),
        },
        "tevatron": {
            **{QUERY_ID: text, QUERY: text},
            **{column: pa.list_(PASSAGE_TYPE) for column in (POSITIVE.passages, NEGATIVE.passages)},
        },
        CORPUS: {"_id": text, "title": text, "text": text},
        QUERIES: {"_id": text, "text": text},
        QRELS: {"query-id": text, "corpus-id": text, "score": pa.int32()},
    }
    if format not in columns:
        raise ConfigurationError(f"The format is {format!r}; a table of one of {', '.join(columns)} was expected.")
    return pa.schema(list(columns[format].items()))


def columns_of(format: str, options: Options) -> tuple[str, ...]:
    """The columns of the rows that a format needs, as far as a row has them."""
    filtered = format in (*RETRIEVAL, CORPUS, QRELS) or (format == "labeled-list" and options.grades)
    scores = (POSITIVE.scores, NEGATIVE.scores) if options.soft and format in SOFT else ()
    return (
        QUERY_ID,
        QUERY,
        POSITIVE.passages,
        NEGATIVE.passages,
        *((FILTERED.passages,) if filtered else ()),
        *scores,
        DECISION,
    )


def table_of(format: str, rows: pa.Table, options: Options | None = None) -> tuple[pa.Table, Counter[str]]:
    """Rows in a format, in their order, and how many were left out by reason.

    ``beir`` and ``mteb`` are three tables, ``corpus``, ``queries`` and ``qrels``; here a docid or a query that is in
    several rows is in the table several times.

    Raises:
        ConfigurationError: no such format.
        SchemaError: the rows are not canonical.
    """
    options = options or Options()
    schema = schema_of(format, options)
    check_canonical(rows.column_names)
    left_out: Counter[str] = Counter()
    if DECISION in rows.column_names:
        status = field_of(one_array(rows.column(DECISION)), "status", pa.string())
        dropped = pc.fill_null(pc.equal(status, DROPPED), False).to_numpy(zero_copy_only=False)
        if dropped.any():
            left_out[DROPPED_ROW] = int(dropped.sum())
            rows = rows.filter(pa.array(~dropped))
    if options.soft and format in SOFT:
        rows, unscored = _scored(rows)
        left_out.update({NO_SCORE: unscored} if unscored else {})
    columns, reasons = _TABLES[format](rows, options)
    left_out.update({reason: number for reason, number in reasons.items() if number})
    arrays = [columns[name].cast(schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema), left_out


def _scored(rows: pa.Table) -> tuple[pa.Table, int]:
    """The rows in which every passage has a score, and how many have not."""
    known = np.ones(rows.num_rows, bool)
    for passages, column in ((POSITIVE.passages, POSITIVE.scores), (NEGATIVE.passages, NEGATIVE.scores)):
        if column not in rows.column_names:
            raise SchemaError(
                f"The rows lack the column {column!r}, which soft labels need. Score them: "
                "ds.map(arhn.Scores(model), batched=True)."
            )
        counts, _ = flat_lists(rows, passages)
        found, scores = flat_lists(rows, column)
        missing = is_null(scores) | ~np.isfinite(pc.fill_null(scores.cast(SCORE_TYPE), 0.0).to_numpy())
        known &= (found == counts) & (np.bincount(rows_of(found)[missing], minlength=rows.num_rows) == 0)
    return rows.filter(pa.array(known)), int((~known).sum())


class _Passages:
    """The passages of one column: the length of each list, and the flat values."""

    def __init__(self, rows: pa.Table, column: str) -> None:
        if column in rows.column_names:
            self.counts, self.values = flat_lists(rows, column)
        else:
            self.counts, self.values = np.zeros(rows.num_rows, np.int64), pa.nulls(0)
        self.starts = starts_of(self.counts)

    def field(self, name: str) -> pa.Array:
        """A field of the passages, ``""`` where it is null."""
        return _no_nulls(field_of(self.values, name, pa.string()))

    def ids(self) -> pa.Array:
        """The docids."""
        return _ids(field_of(self.values, "docid", pa.string()), "passage", "docid")

    def texts(self, separator: str) -> pa.Array:
        """Title and text as one text; one of them alone where the other is empty."""
        titles, texts = self.field("title"), self.field("text")
        titled = pc.not_equal(titles, "")
        if not pc.any(titled).as_py():
            return texts
        between = pc.if_else(pc.and_(titled, pc.not_equal(texts, "")), separator, "")
        return pc.binary_join_element_wise(titles, texts, between)


def _triplets(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    positives, negatives = _Passages(rows, POSITIVE.passages), _Passages(rows, NEGATIVE.passages)
    counts = positives.counts * negatives.counts
    row, at = rows_of(counts), within(counts)
    columns = {
        "anchor": taken(_queries(rows), row),
        "positive": taken(positives.texts(options.separator), positives.starts[row] + at // negatives.counts[row]),
        "negative": taken(negatives.texts(options.separator), negatives.starts[row] + at % negatives.counts[row]),
    }
    return columns, _without(positives, negatives)


def _tuples(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    positives, negatives = _Passages(rows, POSITIVE.passages), _Passages(rows, NEGATIVE.passages)
    least = options.negatives if options.short == "drop" else 1
    enough = negatives.counts >= least
    row = rows_of(np.where(enough, positives.counts, 0))
    texts = negatives.texts(options.separator)
    at = np.flatnonzero(np.repeat(enough, positives.counts))
    columns = {
        "anchor": taken(_queries(rows), row),
        "positive": taken(positives.texts(options.separator), at),
    }
    for i in range(options.negatives):
        columns[f"negative_{i + 1}"] = taken(texts, negatives.starts[row] + i % negatives.counts[row])
    if options.soft:
        own, others = _scores(rows, POSITIVE.scores), _scores(rows, NEGATIVE.scores)
        places = [others[negatives.starts[row] + i % negatives.counts[row]] for i in range(options.negatives)]
        together = np.stack([own[at], *places], axis=1)
        columns["scores"] = lists_of(np.full(len(row), options.negatives + 1), pa.array(together.reshape(-1)))
    short = (positives.counts > 0) & (negatives.counts > 0) & ~enough
    return columns, {**_without(positives, negatives), f"fewer than {least} negatives": int(short.sum())}


def _pairs(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    positives = _Passages(rows, POSITIVE.passages)
    columns = {
        "anchor": taken(_queries(rows), rows_of(positives.counts)),
        "positive": positives.texts(options.separator),
    }
    return columns, _without(positives)


def _labeled_pairs(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    counts, passages, labels = _labeled(rows, options, {POSITIVE.passages: 1, NEGATIVE.passages: 0})
    columns = {"query": taken(_queries(rows), rows_of(counts)), "passage": passages, "label": labels}
    return columns, {"no passage": int((counts == 0).sum())}


def _labeled_lists(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    positives = _Passages(rows, POSITIVE.passages).counts
    grades = (
        {POSITIVE.passages: 2, FILTERED.passages: 1, NEGATIVE.passages: 0}
        if options.grades
        else {POSITIVE.passages: 1, NEGATIVE.passages: 0}
    )
    counts, passages, labels = _labeled(rows, options, grades)
    if options.soft:
        _, order = merged([flat_lists(rows, column)[0] for column in grades])
        labels = pa.array(np.concatenate([_scores(rows, c) for c in (POSITIVE.scores, NEGATIVE.scores)])[order])
    usable = (positives > 0) & (counts > positives)  # a list of one label teaches no order
    kept = np.flatnonzero(np.repeat(usable, counts))
    columns = {
        "query": taken(_queries(rows), np.flatnonzero(usable)),
        "docs": lists_of(counts[usable], passages if usable.all() else taken(passages, kept)),
        "labels": lists_of(counts[usable], taken(labels, kept)),
    }
    reasons = {NO_POSITIVE: int((positives == 0).sum()), NO_NEGATIVE: int(((positives > 0) & ~usable).sum())}
    return columns, reasons


def _labeled(rows: pa.Table, options: Options, labels: Mapping[str, int]) -> tuple[Integers, pa.Array, pa.Array]:
    """The passages of several columns in one list each, as counts, texts and labels."""
    sides = [_Passages(rows, column) for column in labels]
    counts, order = merged([side.counts for side in sides])
    texts = pa.concat_arrays([side.texts(options.separator) for side in sides])
    values = np.repeat(np.array(list(labels.values()), np.int64), [len(side.values) for side in sides])
    return counts, taken(texts, order), pa.array(values[order])


def _flag_rows(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    sides = {"pos": _Passages(rows, POSITIVE.passages), "neg": _Passages(rows, NEGATIVE.passages)}
    usable = _usable(*sides.values())
    columns = {"query": taken(_queries(rows), np.flatnonzero(usable))}
    for name, side in sides.items():
        columns[name] = _kept_lists(side, side.texts(options.separator), usable)
        if options.soft:
            scores = _scores(rows, POSITIVE.scores if name == "pos" else NEGATIVE.scores)
            columns[f"{name}_scores"] = _kept_lists(side, pa.array(scores), usable)
    return columns, _without(*sides.values())


def _scores(rows: pa.Table, column: str) -> Any:
    """The scores of a column, one after the other."""
    return flat_lists(rows, column)[1].cast(SCORE_TYPE).to_numpy(zero_copy_only=False)


def _tevatron_rows(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    sides = {
        POSITIVE.passages: _Passages(rows, POSITIVE.passages),
        NEGATIVE.passages: _Passages(rows, NEGATIVE.passages),
    }
    usable = _usable(*sides.values())
    columns = {
        QUERY_ID: taken(_ids(strings_of(rows, QUERY_ID), "row", QUERY_ID), np.flatnonzero(usable)),
        QUERY: taken(_queries(rows), np.flatnonzero(usable)),
    }
    for name, side in sides.items():
        fields = [side.ids(), side.field("title"), side.field("text")]
        columns[name] = _kept_lists(side, pa.StructArray.from_arrays(fields, fields=list(PASSAGE_TYPE)), usable)
    return columns, _without(*sides.values())


def _corpus(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    sides = [_Passages(rows, column) for column in (POSITIVE.passages, NEGATIVE.passages, FILTERED.passages)]
    _, order = merged([side.counts for side in sides])
    gathered = {
        "_id": [side.ids() for side in sides],
        "title": [side.field("title") for side in sides],
        "text": [side.field("text") for side in sides],
    }
    return {name: taken(pa.concat_arrays(values), order) for name, values in gathered.items()}, {}


def _query_rows(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    positives = _Passages(rows, POSITIVE.passages)
    judged = np.flatnonzero(positives.counts > 0)
    ids = _ids(strings_of(rows, QUERY_ID), "row", QUERY_ID)
    return {"_id": taken(ids, judged), "text": taken(_queries(rows), judged)}, _without(positives)


def _judgements(rows: pa.Table, options: Options) -> tuple[Columns, Mapping[str, int]]:
    grades = {POSITIVE.passages: POSITIVE_GRADE, FILTERED.passages: FILTERED_GRADE}
    sides = [_Passages(rows, column) for column in grades]
    counts, order = merged([side.counts for side in sides])
    row = rows_of(counts)
    scores = np.repeat(np.array(list(grades.values()), np.int32), [len(side.values) for side in sides])[order]
    kept = sides[0].counts[row] > 0
    columns = {
        "query-id": taken(_ids(strings_of(rows, QUERY_ID), "row", QUERY_ID), row[kept]),
        "corpus-id": taken(pa.concat_arrays([side.ids() for side in sides]), order[kept]),
        "score": pa.array(scores[kept]),
    }
    return columns, _without(sides[0])


_TABLES = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "pair": _pairs,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
    "flagembedding": _flag_rows,
    "tevatron": _tevatron_rows,
    CORPUS: _corpus,
    QUERIES: _query_rows,
    QRELS: _judgements,
}


def _queries(rows: pa.Table) -> pa.Array:
    return _no_nulls(strings_of(rows, QUERY))


def _no_nulls(texts: pa.Array) -> pa.Array:
    return pc.fill_null(texts, "") if texts.null_count else texts


def _ids(ids: pa.Array, what: str, name: str) -> pa.Array:
    if ids.null_count:
        raise SchemaError(
            f"A {what} has no {name}, which this format needs. Bring the rows into the canonical form, which gives "
            f"every {what} one: arhn.adapt_dataset(ds)."
        )
    return ids


def _usable(positives: _Passages, negatives: _Passages) -> Any:
    return (positives.counts > 0) & (negatives.counts > 0)


def _without(positives: _Passages, negatives: _Passages | None = None) -> dict[str, int]:
    reasons = {NO_POSITIVE: int((positives.counts == 0).sum())}
    if negatives is not None:
        reasons[NO_NEGATIVE] = int(((positives.counts > 0) & (negatives.counts == 0)).sum())
    return reasons


def _kept_lists(side: _Passages, values: pa.Array, usable: Any) -> pa.Array:
    if not usable.all():
        values = taken(values, np.flatnonzero(np.repeat(usable, side.counts)))
    return lists_of(side.counts[usable], values)
