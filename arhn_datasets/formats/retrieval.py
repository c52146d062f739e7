"""Corpus, queries and graded qrels, as evaluations read them: the files of BEIR, and the configurations of MTEB.

The grades of the qrels are 2 for a positive and 1 for a filtered passage, which answers the query less directly.
Negatives are not in them: BEIR and MTEB take what is not there as not relevant, and some readers take whatever is there
as relevant.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from arhn_datasets.folder.parquet import Shards
from arhn_datasets.folder.readme import Config
from arhn_datasets.formats.format import TEXT, Format, Made, Options, Passages, Table, queries, query_ids, without
from arhn_datasets.formats.writers import Distinct, Lines, SplitRows, TabbedLines, Writer, Written
from arhn_datasets.rows.arrow import flat_lists, lists_of, merged, one_array, rows_of, taken
from arhn_datasets.rows.records import FILTERED, NEGATIVE, POSITIVE, QUERY_ID

QREL_GRADES = {POSITIVE: 2, FILTERED: 1}
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
    sides = [Passages(rows, side) for side in QREL_GRADES]
    counts, order = merged([side.counts for side in sides])
    row = rows_of(counts)
    grades = np.repeat(np.array(list(QREL_GRADES.values()), np.int32), [len(side.values) for side in sides])[order]
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


def _candidates(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in ALL_SIDES]
    counts, order = merged([side.counts for side in sides])
    kept = sides[0].counts > 0
    ids = taken(pa.concat_arrays([side.ids() for side in sides]), order[np.repeat(kept, counts)])
    columns = {"query-id": taken(query_ids(rows), np.flatnonzero(kept)), "corpus-ids": lists_of(counts[kept], ids)}
    return columns, without(sides[0])


TOP_RANKED = Table(
    name="top_ranked",
    types=lambda options: {"query-id": TEXT, "corpus-ids": pa.list_(TEXT)},
    columns=_candidates,
    sides=lambda options: ALL_SIDES,
    describe=lambda names, options: f"{names}: the passages of each query, in the order of their ids",
)


class _BeirWriter(Writer):
    """A corpus and queries over all splits, and the qrels of each, as files."""

    LOADED = False

    def __init__(self, format: Format, root: Path, options: Options, rows: SplitRows, published: bool) -> None:
        super().__init__(format, root, options, rows, published)
        self._distinct = {
            table: Distinct(name, table, options, rows) for name, table in (("docid", CORPUS), (QUERY_ID, QUERIES))
        }
        self._tables = {table: self._open(table, table.name) for table in self._distinct}

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
        out = self._open(QRELS, self._split)
        out.write(table.cast(schema))
        self._close(QRELS, self._split, out)

    def close(self) -> Written:
        """Finish the format."""
        for table, out in self._tables.items():
            self._close(table, table.name, out)
        return super().close()

    def _open(self, table: Table, split: str) -> Shards | Lines:
        folder = self._root / self._format.name
        if table is QRELS:
            return TabbedLines(folder / QRELS.name / f"{split}.tsv")
        return Lines(folder / f"{table.name}.jsonl")


class _MtebWriter(_BeirWriter):
    """The same as parquet files, each table under a configuration.

    Alone, it is a repository of its own, with qrels under the name ``default``, where MTEB looks first. Among other
    configurations, where ``default`` is taken, they are named ``qrels``, and every table also as MTEB's loader wants it
    that is told :attr:`CONFIG`.
    """

    LOADED = True
    CONFIG = "arhn"

    def _open(self, table: Table, split: str) -> Shards | Lines:
        folder = self._root if self._published else self._root / self._format.name
        return Shards(folder / table.name, split, table.schema())

    def _configs(self) -> dict[str, Config]:
        configs = super()._configs()
        if self._published:
            own = {f"{self.CONFIG}-{name}": config for name, config in configs.items()}
            said = f'the same for MTEB\'s loader, `config="{self.CONFIG}"`'
            return configs | {name: replace(config, content=said) for name, config in own.items()}
        return {
            "default" if name == QRELS.name else name: replace(config, folder=f"{self._format.name}/{config.folder}")
            for name, config in configs.items()
        }


class _RerankingWriter(_MtebWriter):
    """The same with the candidates of each query, which make it a task of reranking."""

    CONFIG = "arhn-reranking"

    def begin(self, split: str) -> None:
        """Start a split."""
        super().begin(split)
        self._candidates = [TOP_RANKED.schema().empty_table()]

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        super().write(rows)
        self._candidates.append(TOP_RANKED.of(rows, self._options)[0])

    def end(self) -> None:
        """Finish the split. A query of several rows has the passages of all; their order tells nothing of labels."""
        super().end()
        found = pa.concat_tables(self._candidates)
        counts, ids = flat_lists(found, "corpus-ids")
        pairs = pa.table({"query-id": taken(one_array(found["query-id"]), rows_of(counts)), "corpus-ids": ids})
        pairs = pairs.group_by(["query-id", "corpus-ids"], use_threads=False).aggregate([]).sort_by("corpus-ids")
        lists = pairs.group_by("query-id", use_threads=False).aggregate([("corpus-ids", "list")])
        lists = lists.rename_columns([name.removesuffix("_list") for name in lists.column_names])
        out = self._open(TOP_RANKED, self._split)
        out.write(lists.select(TOP_RANKED.schema().names).cast(TOP_RANKED.schema()))
        self._close(TOP_RANKED, self._split, out)

    def _open(self, table: Table, split: str) -> Shards | Lines:
        return Shards(self._root / self._format.name / table.name, split, table.schema())

    def _configs(self) -> dict[str, Config]:
        configs = Writer._configs(self)
        place = {name: replace(one, folder=f"{self._format.name}/{one.folder}") for name, one in configs.items()}
        if self._published:
            return {f"{self.CONFIG}-{name}": config for name, config in place.items()}
        return {"default" if name == QRELS.name else name: config for name, config in place.items()}


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
MTEB_RERANKING = Format(
    name="mteb-reranking",
    place=13,
    purpose="evaluation",
    tables=(CORPUS, QUERIES, QRELS, TOP_RANKED),
    open=_RerankingWriter,
    loads=tuple(f"arhn-reranking-{table.name}" for table in (CORPUS, QUERIES, QRELS, TOP_RANKED)),
    title="Corpus, queries, qrels and the passages to rank",
)
