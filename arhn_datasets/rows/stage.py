"""The base of every stage: one object for rows, batches, Arrow tables, scripts and notebooks.

What a stage gives is a pure function of rows or of columns. How `datasets` comes to call it is in ``map_hooks``.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import NotYetAnsweredError, SchemaError
from arhn_datasets.rows import background, map_hooks
from arhn_datasets.rows.records import QUERY, Row

MOST_BYTES = 256_000_000  # of the rows of a table that are computed at once; Arrow's strings end at 2 GB

T = TypeVar("T")
Self = TypeVar("Self", bound="Transform")


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform(map_hooks.MapCallable):
    """A stage for ``Dataset.map``: immutable configuration, and a pure function of rows.

    Call it with a row (a dict of values), a batch (a dict of lists) or a ``pyarrow.Table``; the same kind comes back,
    with the new columns.
    """

    ORDER: ClassVar[int] = 2
    """The place among the stages of a run: snippets, ranks, other evidence, the rule."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Input columns that a row may lack."""

    @property
    @abstractmethod
    def required(self) -> tuple[str, ...]:
        """Input columns that a row must have."""

    @abstractmethod
    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The new values of each row, column by column; every row has the same columns."""

    @abstractmethod
    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """The Arrow types of the columns that :meth:`apply` may give; ``schema`` is the input's, where it has one.

        None stands for a type that only the values know.
        """

    def dropped(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Input columns that do not belong to the result.

        `Dataset.map` drops them; `IterableDataset.map` wants to be told: ``remove_columns=t.dropped(columns)``.
        """
        return ()

    def with_options(self: Self, **options: Any) -> Self:
        """The same transform with other options."""
        return replace(self, **options)

    # -- one object, every way of calling ---------------------------------------------------------------------------

    def transformed(self, rows: Any, *, owned: bool) -> Any:
        """The rows with the new columns; ``owned`` by `datasets`, or else handed in by a user."""
        given = self._read(rows)
        results = background.run(self.apply(given)) if self.awaits else _finish(self.apply(given))
        return self._write(rows, results, owned=owned)

    async def awaited(self, rows: Any) -> Any:
        """The same for `datasets`, on its own loop."""
        return self._write(rows, await background.wait(self.apply(self._read(rows))), owned=True)

    async def on_loop(self, rows: Any) -> Any:
        """What a call gives, awaited on the background loop: for engines that keep many tables under way."""
        if not self.awaits:
            return self.transformed(rows, owned=False)
        return self._write(rows, await self.apply(self._read(rows)), owned=False)

    async def answered(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The rows of a table whose replies are all there, as :meth:`on_loop` gives them, and the others as they were.

        For batch rounds, in which every row asks by itself.
        """
        if not self.awaits:
            return self.transformed(table, owned=False), table.slice(table.num_rows)
        rows = self._read(table)
        found = await asyncio.gather(*(self.apply([row]) for row in rows), return_exceptions=True)
        whole = [one for one in found if not isinstance(one, BaseException)]
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, NotYetAnsweredError):
                raise one
        there = pa.array([not isinstance(one, BaseException) for one in found], pa.bool_())
        done = self._write(table.filter(there), [row for one in whole for row in one], owned=False)
        return done, table.filter(pc.invert(there))

    @property
    def _called(self) -> str:
        """What its user calls it."""
        return f"arhn.{self.NAME}"

    def _inputs(self, columns: Iterable[str]) -> list[str]:
        found = list(columns)
        missing = [column for column in self.required if column not in found]
        if missing:
            raise SchemaError(
                f"{self._called} needs the columns {missing}; the columns found are {found}. {self._advice(missing)}"
            )
        return list(dict.fromkeys([*self.required, *(column for column in self.OPTIONAL if column in found)]))

    def _is_batch(self, rows: Mapping[str, Any]) -> bool:
        return is_batch(rows)

    def _advice(self, missing: Sequence[str]) -> str:
        return "Bring the rows into the canonical form first: ds.map(arhn.adapt) or arhn.adapt_dataset(ds)."

    def _read(self, rows: Any) -> list[Row]:
        if isinstance(rows, pa.Table):
            table: list[Row] = rows.select(self._inputs(rows.column_names)).to_pylist()
            return table
        columns = self._inputs(rows)
        values = {column: rows[column] for column in columns}
        if not self._is_batch(rows):
            return [values]
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def _write(self, rows: Any, results: Sequence[Row], *, owned: bool) -> Any:
        table = isinstance(rows, pa.Table)
        types = self.types(rows.schema if table else map_hooks.schema_of(rows))
        types = {column: type for column, type in types.items() if not results or column in results[0]}
        if table:
            arrays = {name: pa.array([result[name] for result in results], type=type) for name, type in types.items()}
            return self._joined(rows, arrays)
        gone = self.dropped(list(rows))
        batch = self._is_batch(rows)
        if owned:
            map_hooks.forget(rows, gone)
        if batch:
            new: dict[str, Any] = {column: [result[column] for result in results] for column in types}
            new |= {c: map_hooks.TypedList(new[c], type) for c, type in types.items() if type is not None}
        elif map_hooks.is_lazy(rows):
            new = {column: pa.array([results[0][column]], type=type) for column, type in types.items()}
        else:
            new = {column: results[0][column] for column in types}
        if map_hooks.is_lazy(rows):
            return new
        return {**{column: value for column, value in rows.items() if column not in gone}, **new}

    def _joined(self, table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
        table = table.drop_columns(list(self.dropped(table.column_names)))
        for column, values in columns.items():
            at = table.schema.get_field_index(column)
            table = table.append_column(column, values) if at < 0 else table.set_column(at, column, values)
        return table


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnTransform(Transform):
    """A stage that is a function of columns: what is in Arrow stays there, with no Python object a passage.

    Tables, and the rows and batches of `Dataset.map`, go through :meth:`compute`; those whose values are Python objects
    already through :meth:`apply`, which may make a table of them.
    """

    @abstractmethod
    def compute(self, table: pa.Table) -> Mapping[str, pa.Array]:
        """The new columns of the rows of a table that has the input columns, of the types of :meth:`types`."""

    def transformed(self, rows: Any, *, owned: bool) -> Any:
        """The rows with the new columns; ``owned`` by `datasets`, or else handed in by a user."""
        if isinstance(rows, pa.Table):
            return self._joined(rows, self._computed(rows))
        table = map_hooks.stored_behind(rows, self._inputs(rows))
        if table is None:
            return super().transformed(rows, owned=owned)
        columns = self._computed(table)
        if not owned and map_hooks.is_lazy_batch(rows):  # but for a function of the user's, who expects lists
            return {column: map_hooks.TypedList(values.to_pylist(), values.type) for column, values in columns.items()}
        if owned:
            map_hooks.forget(rows, self.dropped(list(rows)))
        return map_hooks.ArrowColumns(columns) if map_hooks.is_lazy_batch(rows) else columns

    def _computed(self, table: pa.Table) -> dict[str, Any]:
        """The new columns, computed on so many rows at once that no array outgrows its offsets."""
        table = table.select(self._inputs(table.column_names))
        parts = [self.compute(part) for part in parts_of(table)]
        if len(parts) == 1:
            return dict(parts[0])
        joined = pa.concat_tables([pa.table(dict(part)) for part in parts])
        return dict(zip(joined.column_names, joined.columns, strict=True))


def parts_of(table: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts of up to :data:`MOST_BYTES`, as far as rows are not longer."""
    if table.num_rows <= 1 or table.nbytes <= MOST_BYTES:
        yield table
        return
    half = table.num_rows // 2
    yield from parts_of(table.slice(0, half))
    yield from parts_of(table.slice(half))


def is_batch(rows: Mapping[str, Any], query: str = QUERY) -> bool:
    """Whether ``rows`` is a batch: its ``query`` column is a list (or an array) of queries, not one query."""
    if map_hooks.is_lazy(rows):
        return map_hooks.is_lazy_batch(rows)
    return isinstance(rows.get(query), (list, tuple)) or hasattr(rows.get(query), "tolist")


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    coroutine.close()
    raise RuntimeError("an annotator with awaits = False has awaited something")
