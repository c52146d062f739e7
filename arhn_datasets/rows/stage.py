"""The base of every map callable: one object for rows, batches, Arrow tables, scripts and notebooks.

How `Dataset.map` behaves decides the shape (measured on datasets 3.4 to 5.2):

* It awaits a function only when ``inspect.iscoroutinefunction`` says so, which is false for an instance with an
  ``async def __call__``. An instance with the attributes of a function is asked for its ``__code__``: here a property
  that shows a coroutine's code where waiting pays and no loop runs, and plain code in a notebook.
* Its fingerprint pickles the callable. Only there a transform is pickled as its identity, one JSON text; a worker of
  ``num_proc`` gets the whole object.
* Its writer fixes a column's type on the first rows. Results carry their Arrow types, so that a thousand nulls at the
  start change nothing and nobody passes ``features=``.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from types import CodeType
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from arhn_datasets.errors import ArhnError, SchemaError
from arhn_datasets.rows import background
from arhn_datasets.rows.records import QUERY, Row, canonical_json

MOST_BYTES = 256_000_000  # of the rows of a table that are computed at once; Arrow's strings end at 2 GB

T = TypeVar("T")
Self = TypeVar("Self", bound="Transform")


class TypedList(list[Any]):
    """A list that Arrow reads with a type of its own, whatever its values are."""

    def __init__(self, values: Iterable[Any], type: pa.DataType) -> None:
        super().__init__(values)
        self.type = type

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.array(list(self), type=type or self.type)


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform(ABC):
    """A stage for ``Dataset.map``: immutable configuration, and a pure function of rows.

    Call it with a row (a dict of values), a batch (a dict of lists) or a ``pyarrow.Table``; the same kind comes back,
    with the new columns.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1
    """Raised whenever the same configuration gives other results: a new fingerprint."""

    ORDER: ClassVar[int] = 2
    """The place among the stages of a run: snippets, ranks, other evidence, the rule."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Input columns that a row may lack."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that changes the result, as JSON. No URL, token, timeout or concurrency."""

    @property
    def awaits(self) -> bool:
        """Whether rows wait for something other than this processor."""
        return False

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

    def __call__(self, rows: Any) -> Any:
        """The rows with the new columns; an awaitable where `datasets` awaits it."""
        caller = sys._getframe(1)
        self._check(rows, caller.f_globals)
        if self.awaits and _awaits(caller.f_globals, caller.f_code):
            return self._call_async(rows)
        return self._transformed(rows, owned=_is_datasets(caller.f_globals))

    def _transformed(self, rows: Any, *, owned: bool) -> Any:
        return self._write(rows, self._run(self._read(rows)), owned=owned)

    async def _call_async(self, rows: Any) -> Any:
        inputs = self._read(rows)
        async with _in_order():
            results = await background.wait(self.apply(inputs))
        return self._write(rows, results, owned=True)

    async def on_loop(self, rows: Any) -> Any:
        """What a call gives, awaited on the background loop: for engines that keep many tables under way."""
        if not self.awaits:
            return self._transformed(rows, owned=False)
        return self._write(rows, await self.apply(self._read(rows)), owned=False)

    def _run(self, inputs: Sequence[Row]) -> list[Row]:
        return background.run(self.apply(inputs)) if self.awaits else _finish(self.apply(inputs))

    def _check(self, rows: Any, caller: Mapping[str, Any]) -> None:
        """Refuse what holds no rows, and rows whose values a format has turned into others.

        In numpy, pandas and torch a null is another value, and `datasets` drops no column from such rows.
        """
        if isinstance(rows, pa.Table) or _is_lazy(rows):
            return
        kind = type(rows)
        plain = isinstance(rows, Mapping) and kind.__module__.partition(".")[0] != "datasets"
        query = type(rows.get(QUERY)) if plain else kind
        formatted = plain and hasattr(query, "__array__")
        if formatted or caller.get("__name__") == "datasets.arrow_dataset":
            found = query if formatted else kind
            raise SchemaError(
                f"arhn.{self.NAME} was given formatted rows ({found.__module__}.{found.__qualname__}); the values as "
                'they are stored were expected. Map ds.with_format(None), or ds.with_format("arrow").'
            )
        if not plain:
            raise SchemaError(
                f"arhn.{self.NAME} was called with {'nothing' if rows is None else f'a {kind.__qualname__}'}; a row "
                "(a dict of values), a batch (a dict of lists) or a pyarrow.Table was expected. A dataset calls it: "
                f"ds.map(arhn.{self.NAME}, batched=True)."
            )

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
        return [*self.required, *(column for column in self.OPTIONAL if column in found)]

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
        if isinstance(rows, pa.Table):
            return self._write_table(rows, results)
        types = self._types(_schema_of(rows), results)
        gone = self.dropped(list(rows))
        batch = self._is_batch(rows)
        if owned and isinstance(rows, MutableMapping):
            # `datasets` keeps whatever is left in the mapping that it handed over.
            for column in gone:
                rows.pop(column, None)
        if batch:
            new: dict[str, Any] = {
                column: _typed([result[column] for result in results], type) for column, type in types.items()
            }
        elif _is_lazy(rows):
            new = {column: pa.array([results[0][column]], type=type) for column, type in types.items()}
        else:
            new = {column: results[0][column] for column in types}
        if _is_lazy(rows):
            return new
        return {**{column: value for column, value in rows.items() if column not in gone}, **new}

    def _types(self, schema: pa.Schema | None, results: Sequence[Row]) -> dict[str, pa.DataType | None]:
        types = self.types(schema)
        return {column: type for column, type in types.items() if not results or column in results[0]}

    def _write_table(self, table: pa.Table, results: Sequence[Row]) -> pa.Table:
        types = self._types(table.schema, results).items()
        return self._joined(table, {c: pa.array([result[c] for result in results], type=type) for c, type in types})

    def _joined(self, table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
        table = table.drop_columns(list(self.dropped(table.column_names)))
        for column, values in columns.items():
            at = table.schema.get_field_index(column)
            table = table.append_column(column, values) if at < 0 else table.set_column(at, column, values)
        return table

    # -- the attributes of a function -------------------------------------------------------------------------------

    __defaults__ = None
    __kwdefaults__ = None

    @property
    def __name__(self) -> str:
        return self.NAME

    @property
    def __code__(self) -> CodeType:
        function: Any = Transform._call_async if self.awaits and not _loop_runs() else Transform._write
        code: CodeType = function.__code__
        return code

    # -- identity ---------------------------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        pickler = sys._getframe(1).f_locals.get("self")
        if type(pickler).__module__ == "datasets.utils._dill":
            try:
                identity = self.identity()
            except ArhnError:  # the first row will tell; `datasets` would only say that it cannot hash this
                identity = {"unknown": uuid.uuid4().hex}
            return str, (canonical_json({"transform": self.NAME, "version": self.VERSION, **identity}),)
        return _rebuild, (type(self), {field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnTransform(Transform):
    """A stage that is a function of columns: what is in Arrow stays there, with no Python object a passage.

    Tables, and the batches of `Dataset.map`, go through :meth:`compute`; batches whose values are Python objects
    already, and single rows, for which that is quicker, through :meth:`apply`.
    """

    @abstractmethod
    def compute(self, table: pa.Table) -> Mapping[str, pa.Array]:
        """The new columns of the rows of a table that has the input columns, of the types of :meth:`types`."""

    def _transformed(self, rows: Any, *, owned: bool) -> Any:
        if isinstance(rows, pa.Table):
            return self._joined(rows, self._computed(rows))
        if type(rows).__name__ != "LazyBatch" or not rows.keys_to_format.issuperset(self._inputs(rows)):
            try:
                return super()._transformed(rows, owned=owned)
            except pa.ArrowInvalid:  # a value has no place in the type of its column: there, the field has a name
                if _is_lazy(rows):
                    self._computed(rows.pa_table)
                raise
        columns = self._computed(rows.pa_table)
        if not owned:  # but a function of the user's, who expects lists
            return {column: TypedList(values.to_pylist(), values.type) for column, values in columns.items()}
        for column in self.dropped(list(rows)):
            rows.pop(column, None)
        return _Written(columns)

    def _computed(self, table: pa.Table) -> dict[str, Any]:
        """The new columns, computed on so many rows at once that no array outgrows its offsets."""
        table = table.select(self._inputs(table.column_names))
        parts = [self.compute(part) for part in parts_of(table)]
        if len(parts) == 1:
            return dict(parts[0])
        joined = pa.concat_tables([pa.table(dict(part)) for part in parts])
        return dict(zip(joined.column_names, joined.columns, strict=True))


class _Written(Mapping[str, Any]):
    """Arrow columns as the result of a batch.

    `Dataset.map` wants all values of a batch to be lists, and then takes them by their names into the batch that it
    writes. There they may be Arrow arrays, as the columns are that pass through, and are written as they are: lists
    would be looked through object by object.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def __getitem__(self, column: str) -> Any:
        return self._columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def values(self) -> Any:
        """Lists of the right lengths."""
        return [[None] * len(values) for values in self._columns.values()]


def parts_of(table: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts of up to :data:`MOST_BYTES`, as far as rows are not longer."""
    if table.num_rows <= 1 or table.nbytes <= MOST_BYTES:
        yield table
        return
    half = table.num_rows // 2
    yield from parts_of(table.slice(0, half))
    yield from parts_of(table.slice(half))


def _rebuild(cls: type[Self], options: Mapping[str, Any]) -> Self:
    return cls(**options)


def is_batch(rows: Mapping[str, Any], query: str = QUERY) -> bool:
    """Whether ``rows`` is a batch: its ``query`` column is a list (or an array) of queries, not one query."""
    if _is_lazy(rows):
        return type(rows).__name__ == "LazyBatch"
    return isinstance(rows.get(query), (list, tuple)) or hasattr(rows.get(query), "tolist")


class _Queue:
    """The calls of one map in the order in which they began; the first that are ready leave together."""

    def __init__(self) -> None:
        self._calls: deque[tuple[list[bool], asyncio.Future[None]]] = deque()

    def enter(self) -> tuple[list[bool], asyncio.Future[None]]:
        call: tuple[list[bool], asyncio.Future[None]] = ([False], asyncio.get_running_loop().create_future())
        self._calls.append(call)
        return call

    def ready(self, call: tuple[list[bool], asyncio.Future[None]]) -> None:
        call[0][0] = True
        while self._calls and self._calls[0][0][0]:
            _, leave = self._calls.popleft()
            if not leave.done():
                leave.set_result(None)


_queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = weakref.WeakKeyDictionary()


@asynccontextmanager
async def _in_order() -> AsyncIterator[None]:
    """End in the order in which the calls on this loop began.

    `Dataset.map` waits for any of its tasks and then for the first one: with tasks that are done behind one that is
    not, each of its turns ends at once, and it spins on a whole core that the replies need.
    """
    queue = _queues.setdefault(asyncio.get_running_loop(), _Queue())
    call = queue.enter()
    try:
        yield
    except BaseException:
        queue.ready(call)
        raise
    queue.ready(call)
    await call[1]


def _typed(values: list[Any], type: pa.DataType | None) -> list[Any]:
    return values if type is None else TypedList(values, type)


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    coroutine.close()
    raise RuntimeError("an annotator with awaits = False has awaited something")


async def gather(awaitables: Iterable[Awaitable[T]], *, concurrently: bool) -> list[T]:
    """The results in order: all at once on a loop, or one after the other where nothing waits."""
    if not concurrently:
        return [await awaitable for awaitable in awaitables]
    listed = list(awaitables)
    if len(listed) == 1:  # needs no task of its own
        return [await listed[0]]
    return await background.gathered(listed)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_datasets(caller: Mapping[str, Any]) -> bool:
    return str(caller.get("__name__", "")).partition(".")[0] == "datasets"


def _awaits(caller: Mapping[str, Any], code: CodeType) -> bool:
    """Whether the caller is a coroutine of `datasets`, which awaits what it gets; a notebook's cell does not."""
    return _is_datasets(caller) and bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE


def _is_lazy(rows: Mapping[str, Any]) -> bool:
    return type(rows).__name__ in ("LazyRow", "LazyBatch")


def _schema_of(rows: Any) -> pa.Schema | None:
    return rows.pa_table.schema if _is_lazy(rows) else None
