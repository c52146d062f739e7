"""``flagembedding``: JSON lines ``{"query", "pos", "neg"}``; soft labels are ``pos_scores`` and ``neg_scores``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arhn_datasets.formats.format import SCORES, TEXT, Format, Made, Options, Passages, Table, queries, without
from arhn_datasets.formats.writers import LinesWriter
from arhn_datasets.rows.arrow import taken
from arhn_datasets.rows.records import LABELLED

NAMES = ("pos", "neg")  # of the two sides


def _types(options: Options) -> Mapping[str, pa.DataType]:
    scores = {f"{name}_scores": SCORES for name in NAMES} if options.soft else {}
    return {"query": TEXT, **dict.fromkeys(NAMES, pa.list_(TEXT)), **scores}


def _columns(rows: pa.Table, options: Options) -> Made:
    sides = [Passages(rows, side) for side in LABELLED]
    kept = (sides[0].counts > 0) & (sides[1].counts > 0)
    columns = {"query": taken(queries(rows), np.flatnonzero(kept))}
    for name, side in zip(NAMES, sides, strict=True):
        columns[name] = side.lists(side.texts(options.separator), kept)
        if options.soft:
            columns[f"{name}_scores"] = side.lists(pa.array(side.scores()), kept)
    return columns, without(sides[0], kept)


FLAGEMBEDDING = Format(
    name="flagembedding",
    place=7,
    purpose="FlagEmbedding",
    tables=(Table(name="flagembedding", types=_types, columns=_columns, scored=True),),
    open=LinesWriter,
    files="`flagembedding/SPLIT.jsonl`: `query`, `pos`, `neg` for FlagEmbedding",
)
