"""How `datasets` calls a stage, and what has to be arranged for that: all that leans on its insides is in this file.

How `Dataset.map` behaves decides the shape (measured on datasets 3.4 to 5.2):

* It awaits a function only when ``inspect.iscoroutinefunction`` says so, which is false for an instance with an
  ``async def __call__``. An instance with the attributes of a function is asked for its ``__code__``: here a property
  that shows a coroutine's code where waiting pays and no loop runs, and plain code in a notebook.
* Its fingerprint pickles the callable. Only there a transform is pickled as its identity, one JSON text; a worker of
  ``num_proc`` gets the whole object.
* Its writer fixes a column's type on the first rows. Results carry their Arrow types, so that a thousand nulls at the
  start change nothing and nobody passes ``features=``.
* It hands over rows that read their values from an Arrow table at first use, and keeps whatever is left in them.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from types import CodeType, FrameType
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from arhn_datasets.errors import ArhnError, SchemaError
from arhn_datasets.rows.records import QUERY, canonical_json

Self = TypeVar("Self", bound="MapCallable")


class MapCallable(ABC):
    """An object that `Dataset.map` takes for the function it would have been, a coroutine where waiting pays."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1
    """Raised whenever the same configuration gives other results: a new fingerprint."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that changes the result, as JSON. No URL, token, timeout or concurrency."""

    @property
    def awaits(self) -> bool:
        """Whether rows wait for something other than this processor."""
        return False

    @abstractmethod
    def transformed(self, rows: Any, *, owned: bool) -> Any:
        """The rows with the new columns; ``owned`` by `datasets`, or else handed in by a user."""

    @abstractmethod
    async def awaited(self, rows: Any) -> Any:
        """The same for `datasets`, on its own loop."""

    def __call__(self, rows: Any) -> Any:
        """The rows with the new columns; an awaitable where `datasets` awaits it."""
        caller = sys._getframe(1)
        owned = str(caller.f_globals.get("__name__", "")).partition(".")[0] == "datasets"
        self._check(rows, caller)
        # A coroutine of `datasets` awaits what it gets; a notebook's cell is one, too, and does not.
        if self.awaits and owned and caller.f_code.co_flags & 0x80:  # inspect.CO_COROUTINE
            return self._awaited_in_order(rows)
        return self.transformed(rows, owned=owned)

    async def _awaited_in_order(self, rows: Any) -> Any:
        async with _in_order():
            return await self.awaited(rows)

    def _check(self, rows: Any, caller: FrameType) -> None:
        """Refuse what holds no rows, and rows whose values a format has turned into others.

        In numpy, pandas and torch a null is another value, and `datasets` drops no column from such rows.
        """
        if isinstance(rows, pa.Table) or is_lazy(rows):
            return
        kind = type(rows)
        plain = isinstance(rows, Mapping) and kind.__module__.partition(".")[0] != "datasets"
        query = type(rows.get(QUERY)) if plain else kind
        formatted = plain and hasattr(query, "__array__")
        if formatted or caller.f_globals.get("__name__") == "datasets.arrow_dataset":
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

    __defaults__ = None
    __kwdefaults__ = None

    @property
    def __name__(self) -> str:
        return self.NAME

    @property
    def __code__(self) -> CodeType:
        function: Any = MapCallable._awaited_in_order if self.awaits and not _loop_runs() else MapCallable._check
        code: CodeType = function.__code__
        return code

    def __reduce_ex__(self, protocol: Any) -> Any:
        pickler = sys._getframe(1).f_locals.get("self")
        if type(pickler).__module__ == "datasets.utils._dill":
            try:
                identity = self.identity()
            except ArhnError:  # the first row will tell; `datasets` would only say that it cannot hash this
                identity = {"unknown": uuid.uuid4().hex}
            return str, (canonical_json({"transform": self.NAME, "version": self.VERSION, **identity}),)
        own: Any = self  # a dataclass
        return _rebuild, (type(self), {field.name: getattr(self, field.name) for field in fields(own)})


def _rebuild(cls: type[Self], options: Mapping[str, Any]) -> Self:
    return cls(**options)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- rows of `datasets` -----------------------------------------------------------------------------------------


def is_lazy(rows: Any) -> bool:
    """Whether rows are a row or a batch of `datasets` that reads its values when they are asked for."""
    return type(rows).__name__ in ("LazyRow", "LazyBatch")


def is_lazy_batch(rows: Any) -> bool:
    """Whether rows are such a batch."""
    return type(rows).__name__ == "LazyBatch"


def schema_of(rows: Any) -> pa.Schema | None:
    """The schema of the table behind such rows; None of any other."""
    return rows.pa_table.schema if is_lazy(rows) else None


def stored_behind(rows: Any, columns: Sequence[str]) -> pa.Table | None:
    """The table behind such rows, where nobody has read these columns, and maybe changed their values."""
    return rows.pa_table if is_lazy(rows) and rows.keys_to_format.issuperset(columns) else None


def forget(rows: Any, columns: Sequence[str]) -> None:
    """Take columns out of rows that `datasets` owns, which keeps whatever is left in the mapping it handed over."""
    if isinstance(rows, MutableMapping):
        for column in columns:
            rows.pop(column, None)


class TypedList(list[Any]):
    """A list that Arrow reads with a type of its own, whatever its values are."""

    def __init__(self, values: Iterable[Any], type: pa.DataType) -> None:
        super().__init__(values)
        self.type = type

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.array(list(self), type=type or self.type)


class ArrowColumns(Mapping[str, Any]):
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


# --- the order of its tasks -------------------------------------------------------------------------------------


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
