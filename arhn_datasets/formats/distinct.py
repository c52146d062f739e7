"""Each id once, over any number of rows and in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import one_array, taken

if TYPE_CHECKING:
    from arhn_datasets.formats.format import Options, Table
    from arhn_datasets.formats.split_rows import SplitRows


class Distinct:
    """Which ids of a table are new, over all batches, and that each stands for one text.

    Of an id and its text 8 bytes each are kept, as hashes, in sorted arrays of growing length.
    """

    def __init__(self, id_column: str, table: Table, options: Options, rows: SplitRows) -> None:
        self._id_column, self._table, self._options, self._rows = id_column, table, options, rows
        self._levels: list[tuple[Any, Any]] = []

    def first(self, table: pa.Table) -> pa.Table:
        """The rows whose id was not there before.

        Raises:
            SchemaError: an id stands for two texts.
        """
        ids = one_array(table.column("_id"))
        _, first, code = np.unique(_hashes(ids), return_index=True, return_inverse=True)
        for column in table.column_names[1:]:
            values = one_array(table.column(column))
            differs = ~pc.equal(values, taken(values, first[code])).to_numpy(zero_copy_only=False)
            if differs.any():
                self._refuse(ids[int(np.argmax(differs))].as_py())
        kept = table.take(pa.array(np.sort(first)))
        keys = _hashes(one_array(kept.column("_id")))
        contents = np.zeros(len(keys), np.uint64)
        for column in table.column_names[1:]:
            contents = contents * np.uint64(1_000_003) + _hashes(one_array(kept.column(column)))
        new = np.ones(len(keys), bool)
        for known, texts in self._levels:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            there = known[at] == keys
            differs = there & (texts[at] != contents)
            if differs.any():
                self._refuse(kept.column("_id")[int(np.argmax(differs))].as_py())
            new &= ~there
        self._add(keys[new], contents[new])
        return kept.filter(pa.array(new))

    def _add(self, keys: Any, contents: Any) -> None:
        if not len(keys):
            return
        self._levels.append((keys, contents))
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            last, before = self._levels.pop(), self._levels.pop()
            self._levels.append((np.concatenate([before[0], last[0]]), np.concatenate([before[1], last[1]])))
        keys, contents = self._levels[-1]
        order = np.argsort(keys)
        self._levels[-1] = (keys[order], contents[order])

    def _refuse(self, id: str) -> None:
        """Only hashes are kept: both texts are looked up in the rows."""
        texts: dict[str, None] = {}
        for split in self._rows.splits:
            for rows in self._rows.tables(split, self._table.needs(self._options)):
                table, _ = self._table.of(rows, self._options)
                for row in table.filter(pc.equal(table.column("_id"), id)).to_pylist():
                    texts[" ".join(f"{row.get('title', '')} {row['text']}".split())[:80]] = None
                if len(texts) > 1:
                    break
        shown = " and ".join(repr(text) for text in list(texts)[:2])
        name = self._id_column
        raise SchemaError(
            f"The {name} {id!r} stands for two texts, {shown}; one was expected, since the {self._table.name} names "
            f"each by its id. Give different texts different ids; without a {name} column arhn.adapt_dataset(ds) "
            "makes them from the texts."
        )


def _hashes(values: pa.Array) -> Any:
    from pandas.util import hash_array  # type: ignore[import-untyped]

    return hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
