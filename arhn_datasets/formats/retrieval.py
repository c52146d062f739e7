"""Corpus, queries and graded qrels, as evaluations read them: the files of BEIR, and the configurations of MTEB.

The grades of the qrels are 2 for a positive and 1 for a filtered passage, which answers the query less directly.
Negatives are not in them: BEIR and MTEB take what is not there as not relevant, and some readers take whatever is there
as relevant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from arhn_datasets.folder.card_content import Config
from arhn_datasets.folder.parquet import Shards, features_of
from arhn_datasets.formats.columns import Passages, queries, query_ids, without
from arhn_datasets.formats.distinct import Distinct
from arhn_datasets.formats.format import TEXT, Format, Made, Options, Table
from arhn_datasets.formats.split_rows import SplitRows
from arhn_datasets.formats.writers import Lines, TabbedLines, Written, sized
from arhn_datasets.rows.arrow import merged, rows_of, taken
from arhn_datasets.rows.records import FILTERED, NEGATIVE, POSITIVE, QUERY_ID

GRADES = {POSITIVE: 2, FILTERED: 1}
ALL_SIDES = (POSITIVE, NEGATIVE, FILTERED)


def _passages(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in ALL_SIDES]
    _, order = merged([side.counts for side in sides])
    parts = {
        "_id": [side.ids() for side in sides],
        "title": [side.field("title") for side in sides],
        "text": [side.field("text") for side in sides],
    }
    return {name: taken(pa.concat_arrays(values), order) for name, values in parts.items()}, {}


def _judged_queries(rows: pa.Table, options: Options) -> Made:
    positives = Passages(rows, POSITIVE)
    judged = np.flatnonzero(positives.counts > 0)
    return {"_id": taken(query_ids(rows), judged), "text": taken(queries(rows), judged)}, without(positives)


def _judgements(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in GRADES]
    counts, order = merged([side.counts for side in sides])
    row = rows_of(counts)
    grades = np.repeat(np.array(list(GRADES.values()), np.int32), [len(side.values) for side in sides])[order]
    kept = sides[0].counts[row] > 0
    columns = {
        "query-id": taken(query_ids(rows), row[kept]),
        "corpus-id": taken(pa.concat_arrays([side.ids() for side in sides]), order[kept]),
        "score": pa.array(grades[kept]),
    }
    return columns, without(sides[0])


CORPUS = Table(
    name="corpus",
    types=lambda options: {"_id": TEXT, "title": TEXT, "text": TEXT},
    columns=_passages,
    sides=lambda options: ALL_SIDES,
    describe=lambda names, options: f"{names} of every passage",
)
QUERIES = Table(
    name="queries",
    types=lambda options: {"_id": TEXT, "text": TEXT},
    columns=_judged_queries,
    describe=lambda names, options: f"{names} of every query",
)
QRELS = Table(
    name="qrels",
    types=lambda options: {"query-id": TEXT, "corpus-id": TEXT, "score": pa.int32()},
    columns=_judgements,
    sides=lambda options: ALL_SIDES,
    describe=lambda names, options: f"{names}: 2 is a positive, 1 a filtered passage",
)


class _BeirWriter:
    """A corpus and queries over all splits, and the qrels of each, as files."""

    def __init__(self, format: Format, root: Path, options: Options, rows: SplitRows, published: bool) -> None:
        self._format, self._root, self._options, self._published = format, root, options, published
        self._distinct = {
            table: Distinct(name, table, options, rows) for name, table in (("docid", CORPUS), (QUERY_ID, QUERIES))
        }
        self._tables = {table: self._open(table, table.name) for table in self._distinct}
        self._counts: dict[str, int] = {}
        self._paths: list[Path] = []
        self._sizes: dict[Table, dict[str, tuple[int, int]]] = {table: {} for table in format.tables}
        self._left_out: Counter[str] = Counter()

    def begin(self, split: str) -> None:
        """Start a split."""
        self._split, self._qrels = split, [QRELS.schema().empty_table()]

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        for table, distinct in self._distinct.items():
            made, left_out = table.of(rows, self._options)
            self._left_out += left_out if table is QUERIES else Counter()
            self._tables[table].write(distinct.first(made))
        self._qrels.append(QRELS.of(rows, self._options)[0])

    def end(self) -> None:
        """Finish the split. The same passage can be judged in two rows of a query: the higher grade counts."""
        schema, found = QRELS.schema(), pa.concat_tables(self._qrels)
        best = found.group_by(["query-id", "corpus-id"], use_threads=False).aggregate([("score", "max")])
        table = best.rename_columns([name.removesuffix("_max") for name in best.column_names]).select(schema.names)
        self._counts[self._split] = table.num_rows
        out = self._open(QRELS, self._split)
        out.write(table.cast(schema))
        self._close(QRELS, self._split, out)

    def close(self) -> Written:
        """Finish the format."""
        for table, out in self._tables.items():
            self._close(table, table.name, out)
        return Written(
            format=self._format.name,
            files=sized(self._root, self._paths),
            rows=self._counts,
            left_out=self._left_out,
            configs=self._configs(),
        )

    def _close(self, table: Table, split: str, out: Shards | Lines) -> None:
        self._paths += out.close()
        self._sizes[table][split] = (out.rows, out.bytes)

    def _open(self, table: Table, split: str) -> Shards | Lines:
        folder = self._root / self._format.name
        if table is QRELS:
            return TabbedLines(folder / QRELS.name / f"{split}.tsv")
        return Lines(folder / f"{table.name}.jsonl")

    def _configs(self) -> Mapping[str, Config]:
        return {}


class _MtebWriter(_BeirWriter):
    """The same as parquet files, each table under a configuration.

    Alone, it is a repository of its own, with qrels under the name ``default``, where MTEB looks first. Among other
    configurations, where ``default`` is taken, they are named ``qrels``.
    """

    def __init__(self, format: Format, root: Path, options: Options, rows: SplitRows, published: bool) -> None:
        super().__init__(format, root, options, rows, published)
        self._names = {} if published else {QRELS.name: "default"}

    def _open(self, table: Table, split: str) -> Shards | Lines:
        folder = self._root if self._published else self._root / self._format.name
        return Shards(folder / table.name, split, table.schema())

    def _configs(self) -> Mapping[str, Config]:
        prefix = "" if self._published else f"{self._format.name}/"
        return {
            self._names.get(table.name, table.name): Config(
                splits={split: f"{prefix}{table.name}/{split}-*" for split in sizes},
                features=features_of(table.schema()),
                sizes=sizes,
                content=table.content(self._options),
            )
            for table, sizes in self._sizes.items()
        }


BEIR = Format(
    name="beir",
    place=9,
    purpose="evaluation",
    tables=(CORPUS, QUERIES, QRELS),
    open=_BeirWriter,
    files="`beir/`: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` in BEIR's form",
)
MTEB = Format(
    name="mteb",
    place=8,
    purpose="evaluation",
    tables=(CORPUS, QUERIES, QRELS),
    open=_MtebWriter,
    loads=("corpus", "queries", "qrels"),
    title="Corpus, queries and qrels",
)
