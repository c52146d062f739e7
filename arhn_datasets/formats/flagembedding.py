"""``flagembedding``: JSON lines ``{"query", "pos", "neg"}``, a file for each subset where there are several.

What the source brought for FlagEmbedding goes along: scores, prompts, type and sizes. Soft labels are the scores
``pos_scores`` and ``neg_scores`` in every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.formats.format import SCORE, SCORES, TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.formats.writers import Lines, LinesWriter
from arhn_datasets.rows.arrow import lists_of, one_array, rows_of, strings_of, taken
from arhn_datasets.rows.records import LABELLED, SCORE_TYPE, SUBSET

NAMES = ("pos", "neg")  # of the two sides
MOST_FILES = 1000  # of a split; further subsets share one
PROMPTS = ("prompt", "query_prompt", "passage_prompt")
CARRIED = {
    **dict.fromkeys((*PROMPTS, "type"), TEXT),
    **dict.fromkeys(("batch_size", "train_group_size"), pa.int64()),
    SCORE: SCORE_TYPE,
}


def _types(options: Options) -> Mapping[str, pa.DataType]:
    scores = {f"{name}_scores": SCORES for name in NAMES} if options.soft or SCORE in options.carried else {}
    further = {name: type for name, type in CARRIED.items() if name in options.carried - {SCORE}}
    return {"query": TEXT, **dict.fromkeys(NAMES, pa.list_(TEXT)), **scores, **further}


def _columns(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in LABELLED]
    kept = (sides[0].counts > 0) & (sides[1].counts > 0)
    at, scored = np.flatnonzero(kept), _scored(rows)
    columns = {"query": taken(queries(rows), at)}
    for name, side in zip(NAMES, sides, strict=True):
        columns[name] = side.lists(side.texts(options.separator), kept)
        if not (options.soft or SCORE in options.carried):
            continue
        scores = pa.array(side.scores(), from_pandas=True)
        values = taken(scores, np.flatnonzero(np.repeat(kept & scored, side.counts)))
        columns[f"{name}_scores"] = lists_of((side.counts * scored)[kept], values, absent=~scored[kept])
    for name in options.carried - {SCORE}:
        values = one_array(rows.column(name)).cast(CARRIED[name]) if name in rows.column_names else pa.nulls(len(kept))
        # FlagEmbedding writes a prompt that is null before the query as "None".
        columns[name] = taken(pc.fill_null(values.cast(TEXT), "") if name in PROMPTS else values, at)
    return columns, without(sides[0], kept)


def _scored(rows: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The rows of which a passage has a score."""
    scored = np.zeros(rows.num_rows, bool)
    for side in LABELLED:
        passages = Passages(rows, side)
        scored[rows_of(passages.counts)[np.isfinite(passages.scores())]] = True
    return scored


def _is_plain(rows: pa.Table, column: str) -> bool:
    return column in rows.column_names and not pa.types.is_nested(rows.schema.field(column).type)


class _SubsetsWriter(LinesWriter):
    """A file for each subset and type, since FlagEmbedding takes a file for a data set: batches are of one.

    Rows with scores and rows without have files of their own: its reader takes the columns from the first rows.
    Where there is one alone, it is that of the split.
    """

    def begin(self, split: str) -> None:
        """Start a split."""
        self._split = split
        self._options = self._options.beside(self._rows, split, self._format)
        self._outs: dict[tuple[str, ...], Lines] = {}

    def write(self, rows: pa.Table) -> None:
        """Add rows, each to the file of its kind."""
        [table] = self._format.tables
        brought = SCORE in self._options.carried and not self._options.soft
        names = [SUBSET if _is_plain(rows, SUBSET) else "", "type" if "type" in self._options.carried else ""]
        apart = [strings_of(rows, name) for name in names]
        marks = np.where(_scored(rows), "", "without scores") if brought else np.full(rows.num_rows, "")
        keys = list(zip(*(pc.fill_null(one, "").to_pylist() for one in apart), marks.tolist(), strict=True))
        keys = [key if key in self._outs or len(self._outs) < MOST_FILES else ("other", "", key[2]) for key in keys]
        for key in dict.fromkeys(keys):
            part, left_out = table.of(rows.filter(pa.array([one == key for one in keys], pa.bool_())), self._options)
            self._left_out += left_out
            if part.num_rows:
                self._out_of(key).write(part)

    def end(self) -> None:
        """Finish the split."""
        [table], folder = self._format.tables, self._root / self._format.name
        if not self._outs:
            self._out_of(("", "", ""))
        for out in self._outs.values():
            self._paths += out.close()
        if len(self._outs) == 1:
            [path] = self._paths[-1:]
            self._paths[-1] = path.rename(folder / f"{self._split}.jsonl")
            path.parent.rmdir()
        outs = self._outs.values()
        self._sizes[table][self._split] = (sum(out.rows for out in outs), sum(out.bytes for out in outs))

    def _out_of(self, key: tuple[str, ...]) -> Lines:
        if key not in self._outs:
            name = quote("-".join(filter(None, key)).replace(" ", "-"), safe="-_+,")[:150].lstrip(".") or "rest"
            there = {out.path.name.lower() for out in self._outs.values()}
            while f"{name}.jsonl".lower() in there:  # on a disk that does not tell cases apart
                name += "_"
            self._outs[key] = Lines(self._root / self._format.name / self._split / f"{name}.jsonl")
        return self._outs[key]


FLAGEMBEDDING = Format(
    name="flagembedding",
    place=7,
    purpose="FlagEmbedding",
    tables=(Table(name="flagembedding", types=_types, columns=_columns, scored=True, carries=CARRIED),),
    open=_SubsetsWriter,
    files="`flagembedding/SPLIT.jsonl`, or `flagembedding/SPLIT/SUBSET.jsonl` of several subsets: `query`, "
    "`pos`, `neg` for FlagEmbedding, with the scores, prompts and types of the source",
)
