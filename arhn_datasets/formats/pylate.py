"""``pylate``: ``query, documents, scores``, a row for each positive, of a fixed width, as PyLate distils a teacher."""

from __future__ import annotations

import pyarrow as pa

from arhn_datasets.formats.format import SCORES, TEXT, Format, Made, Options, Table, queries
from arhn_datasets.formats.n_tuple import Groups
from arhn_datasets.rows.arrow import taken


def _columns(rows: pa.Table, options: Options) -> Made:
    groups = Groups(rows, options)
    columns = {
        "query": taken(queries(rows), groups.row),
        "documents": groups.texts(options.separator),
        "scores": groups.scores(),
    }
    return columns, groups.left_out


def _description(names: str, options: Options) -> str:
    return f"{names}: a positive and {options.negatives} negatives, with the score of each"


TYPES = {"query": TEXT, "documents": pa.list_(TEXT), "scores": SCORES}
PYLATE = Format(
    name="pylate",
    place=10,
    purpose="PyLate, distillation",
    tables=(
        Table(
            name="pylate",
            types=lambda options: TYPES,
            columns=_columns,
            scored=True,
            always=True,
            describe=_description,
        ),
    ),
    options=("negatives", "short"),
    repeats=True,
)
