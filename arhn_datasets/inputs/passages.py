"""What stands in the columns of an input: values of a kind, lists of them, and passages, as flat Arrow arrays.

Each :class:`ValueKind` is read in one way, from an array: one of Arrow, or one made of Python objects. Where these have
several types, or one is not of the kind, each is read by itself, which finds the one to name in the message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs.values import list_advice, loader_advice, numbers_in
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, flat_lists, is_null, one_array, rows_of, taken
from arhn_datasets.rows.records import PASSAGE_TYPE, QUERY, QUERY_ID, Row, shorten, stable_docid

Values: TypeAlias = "pa.Array | pa.ChunkedArray | list[Any]"  # a column: of Arrow, or of Python objects
T = TypeVar("T")

STRING = pa.string()
ROWS_PER_BATCH = 1000
FIELDS = tuple(field.name for field in PASSAGE_TYPE)

_CONTROLS = bytes(range(32))
_PASSAGES_AT_ONCE = 10_000


class BrokenRow(SchemaError):
    """What is wrong with a row, before it has a name."""

    def __init__(self, row: int, message: object) -> None:
        super().__init__(str(message))
        self.row = row

    def named(
        self, columns: Mapping[str, Values], query: str, numbers: Sequence[int] | Integers | None = None
    ) -> SchemaError:
        """The same with the query id of the row, or its query, and its number where the rows have some."""
        query_id = value_at(columns[QUERY_ID], self.row) if QUERY_ID in columns else None
        name, value = (QUERY, value_at(columns[query], self.row)) if query_id in (None, "") else (QUERY_ID, query_id)
        where = f"In the row with {name} {shorten(repr(value), 100)}"
        if numbers is None:
            return SchemaError(f"{where}: {self}")
        number = int(numbers[self.row])
        return SchemaError(
            f"{where} (row {number}, counted from 0): {self} Correct that row, or leave it out: "
            f"ds.filter(lambda row, number: number != {number}, with_indices=True)."
        )


@contextmanager
def naming_rows(columns: Mapping[str, Values], query: str, numbers: Sequence[int] | Integers) -> Iterator[None]:
    """Name the row that is broken, as :meth:`BrokenRow.named`."""
    try:
        yield
    except BrokenRow as broken:
        raise broken.named(columns, query, numbers) from None


@contextmanager
def in_lists(counts: Integers) -> Iterator[None]:
    """Of a value that breaks its row, the row in whose list it stands."""
    try:
        yield
    except BrokenRow as broken:
        raise BrokenRow(int(rows_of(counts)[broken.row]), broken) from None


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """What values mean: ``array`` reads an array, or gives None where a value in it is not what was ``expected``."""

    array: Callable[[pa.Array], pa.Array | None]
    expected: str
    needed: bool = False
    plural: str = ""
    type: pa.DataType = STRING


def read(values: Values, kind: ValueKind, column: str) -> pa.Array:
    """A column of values of a kind; a :class:`BrokenRow` where one is not of it."""
    array = None
    if not isinstance(values, list) and arrow.holds_json(values.type):
        values = arrow.decoded(values)
    try:
        array = kind.array(typed(values, column) if isinstance(values, list) else one_array(values))
    except SchemaError as error:  # values of several types, or one that Arrow cannot hold
        if len(values) == 1 and isinstance(values[0], str):  # which no advice on types would help
            raise BrokenRow(0, error) from None
    if array is not None and not (kind.needed and array.null_count):
        return array
    if not isinstance(values, list):
        return read(values.to_pylist(), kind, column)
    if len(values) == 1:
        raise BrokenRow(0, f"column {column!r} holds {found_as(values[0])} {kind.expected}.{loader_advice(values[0])}")
    return pa.concat_arrays([pa.nulls(0, kind.type), *each(values, lambda value: read([value], kind, column))])


def read_lists(values: Values, kind: ValueKind, column: str) -> tuple[Integers, pa.Array]:
    """A column of lists of values of a kind: their lengths, and the values of all; a :class:`BrokenRow` as of one."""
    if not isinstance(values, list) and arrow.is_list(values.type):
        counts, flat = flat_lists(pa.table({column: values}), column)
    else:
        lists = each(values, lambda value: list_in(value, column, kind.plural))
        counts, flat = lengths(lists), list(chain.from_iterable(lists))
    with in_lists(counts):
        return counts, read(flat, kind, column)


def each(values: Values, of: Callable[[Any], T]) -> list[T]:
    """What becomes of each value of a column; a :class:`BrokenRow` has the place of one that is refused."""
    found: list[T] = []
    for value in values if isinstance(values, list) else values.to_pylist():
        try:
            found.append(of(value))
        except SchemaError as error:
            raise BrokenRow(len(found), error) from None
    return found


def value_at(values: Values, row: int) -> Any:
    """The value of a row as a Python object."""
    return values[row] if isinstance(values, list) else values[row].as_py()


def batches_of(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows, so many at a time."""
    left = iter(rows)
    while batch := list(islice(left, ROWS_PER_BATCH)):
        yield batch


def typed(values: list[Any], column: str) -> pa.Array:
    """Python objects as an array of the one type that they have; a SchemaError where Arrow cannot hold them so."""
    try:
        try:
            return pa.array(values)
        except OverflowError:  # integers beyond 64 bits, as hashes are
            return pa.array([Decimal(value) if isinstance(value, int) else value for value in values])
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"A text holds half of a surrogate pair, which no dataset can store: {shorten(ascii(error.object), 60)}. "
            "Repair the texts first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None
    except (pa.ArrowException, OverflowError) as error:
        raise SchemaError(
            f"Column {column!r} holds values of different types ({error}). Give them one type, or leave the column out."
        ) from error


def lengths(lists: Sequence[Sequence[Any]]) -> Integers:
    """The length of each list."""
    return np.array([len(found) for found in lists], np.int64)


def filled(given: pa.Array, made: pa.Array) -> pa.Array:
    """The given values, with one of those that were made in place of each null."""
    return made if len(made) == len(given) else pc.replace_with_mask(given, pc.is_null(given), made)


def blank(texts: pa.Array) -> Any:
    """Where nothing but space stands, as a mask. Almost every other text holds a letter or sign of ASCII."""
    found = ~pc.match_substring_regex(texts, "[!-~]").to_numpy(zero_copy_only=False)
    if found.any():
        trimmed = pc.utf8_trim_whitespace(taken(texts, np.flatnonzero(found)))
        found[found] = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
    return found


def list_in(value: Any, column: str, of: str) -> list[Any]:
    """A value as a list, an empty one where it is null; a SchemaError where it is none."""
    if value is None:
        return []
    if hasattr(value, "tolist"):  # rows of a dataset formatted as numpy or torch
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise SchemaError(
            f"column {column!r} holds {found_as(value)}; a list of {of} was expected. {list_advice(value, column)}"
        )
    return list(value)


def found_as(value: object) -> str:
    """A value in the words of a message."""
    return "null" if value is None else f"a {type(value).__name__} ({shorten(repr(value), 60)})"


# --- the kinds --------------------------------------------------------------------------------------------------


def strings_of(values: pa.Array) -> pa.Array | None:
    """Strings of any type of Arrow; None where it is another one."""
    types = pa.types
    if types.is_string(values.type):
        return values
    if types.is_dictionary(values.type):
        return strings_of(values.dictionary_decode())
    return pc.cast(values, STRING) if types.is_large_string(values.type) or types.is_null(values.type) else None


def _titles(values: pa.Array) -> pa.Array | None:
    titles = strings_of(values)
    return titles if titles is None or not titles.null_count else pc.fill_null(titles, "")


def _optional_texts(values: pa.Array) -> pa.Array | None:
    texts = strings_of(values)
    if texts is None:
        return None
    # Taken, as `if_else` of pyarrow 16 misreads slices of strings.
    empty = pc.fill_null(pc.equal(pc.binary_length(texts), 0), False).to_numpy(zero_copy_only=False)
    return taken(texts, np.where(empty, -1, np.arange(len(texts)))) if empty.any() else texts


def _queries(values: pa.Array) -> pa.Array | None:
    texts = strings_of(values)
    return None if texts is None or texts.null_count or blank(texts).any() else texts


def _is_whole(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or (pa.types.is_decimal(type) and type.scale == 0))


def _ids(values: pa.Array) -> pa.Array | None:
    if pa.types.is_float32(values.type) or pa.types.is_float64(values.type):
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))
        if pc.all(whole).as_py() is False:
            return None
        values = pc.cast(values, pa.int64())  # what pandas makes of a column of integers with gaps
    return pc.cast(values, STRING) if _is_whole(values.type) else _optional_texts(values)


def _numbers(values: pa.Array) -> pa.Array | None:
    if not pa.types.is_null(values.type) and (texts := strings_of(values)) is not None:
        return numbers_in(texts)
    of = (_is_whole, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return pc.cast(values, pa.float64(), safe=False) if any(fits(values.type) for fits in of) else None


_PASSAGE = "where the text of one passage was expected"
_ID = "a string or an integer was expected"

TEXT = ValueKind(array=strings_of, expected=_PASSAGE, needed=True, plural="texts")
TITLE = ValueKind(array=_titles, expected="as a title; a string or null was expected")
"""A title, empty where there is none."""
OPTIONAL_TEXT = ValueKind(array=_optional_texts, expected=_PASSAGE)
"""A text, null where there is none or an empty one."""
QUERY_TEXT = ValueKind(array=_queries, expected="where the text of a query was expected")
ID = ValueKind(array=_ids, expected=f"as an id; {_ID}")
"""An id as a string, null where there is none."""
DOCID = ValueKind(array=_ids, expected=f"as a docid; {_ID}, no null or empty docid", needed=True, plural="docids")
"""An id that has to be there."""
NUMBER = ValueKind(array=_numbers, expected="where a number was expected", plural="numbers", type=pa.float64())
"""A number or null."""


# --- passages in columns ----------------------------------------------------------------------------------------------


def structs_of(values: Values, column: str, docids: tuple[str, ...]) -> FlatPassages:
    """The passages of a column; a docid is the first of the fields ``docids`` that is there."""
    flat = None if isinstance(values, list) else _flat(values)
    counts, fields, objects = (*flat, None) if flat else _flat_objects(values, column, docids)
    nothing = pa.nulls(int(counts.sum()))
    with in_lists(counts):
        ids = [read(fields.pop(name, nothing), ID, f"{column}.{name}") for name in docids]
        titles, texts = fields.pop("title", nothing), fields.pop("text", nothing)
        known = {"title": read(titles, TITLE, column), "text": read(texts, TEXT, column)}
    docid = pc.coalesce(*ids) if len(ids) > 1 else ids[0]
    given = None
    if not isinstance(values, list) and flat and not pa.types.is_struct(values.type):
        given = None if values.null_count or docid.null_count or titles.null_count else values
        if not arrow.is_list(values.type) or (pc.sum(pc.list_value_length(values)).as_py() or 0) != len(docid):
            given = None
    return FlatPassages(counts=counts, fields={"docid": docid, **known, **fields}, objects=objects, given=given)


def _flat(values: pa.ChunkedArray) -> tuple[Integers, dict[str, Any]] | None:
    """The length of each list, and the fields of the passages of all; None where one of them is no passage."""
    try:
        if not pa.types.is_struct(values.type):
            counts, structs = flat_lists(pa.table({"": values}), "")
            if not len(structs):
                return counts, {}
            if structs.null_count:  # a null among the passages is none
                counts = np.bincount(rows_of(counts)[~is_null(structs)], minlength=len(counts))
                structs = structs.drop_null()
            return (counts, fields_in(structs)) if pa.types.is_struct(structs.type) else None
        # `Sequence({...})` of older versions of datasets stores a list of structs as a struct of lists.
        lists = pa.table(fields_in(values))
        flat = {name: flat_lists(lists, name) for name in lists.column_names}
    except SchemaError:  # of something else than a list
        return None
    counts = next((counts for counts, _ in flat.values()), np.zeros(len(values), np.int64))
    unequal = any((other != counts).any() for other, _ in flat.values())
    return None if unequal else (counts, {name: array for name, (_, array) in flat.items()})


def fields_in(structs: Any) -> dict[str, Any]:
    """The fields of structs as they are in memory."""
    return {field.name: pc.struct_field(structs, place) for place, field in enumerate(structs.type)}


def _flat_objects(
    values: Values, column: str, docids: tuple[str, ...]
) -> tuple[Integers, dict[str, Any], list[Mapping[str, Any]]]:
    """The same of Python objects, which may have any further fields: these stay in the objects."""
    lists = each(values, lambda value: _objects_in(value, column))
    counts, objects = lengths(lists), list(chain.from_iterable(lists))
    fields: dict[str, Any] = {name: [passage.get(name) for passage in objects] for name in (*docids, "title", "text")}
    if docids != ("docid",):
        objects = [{**dict.fromkeys(FIELDS), **{n: p[n] for n in p if n not in docids}} for p in objects]
    return counts, fields, objects


def _objects_in(value: Any, column: str) -> list[Any]:
    if not isinstance(value, Mapping):
        passages = list_in(value, column, "passages")
    else:
        lists = {name: list_in(values, name, f"one value per passage of {column!r}") for name, values in value.items()}
        counts = {name: len(values) for name, values in lists.items()}
        if len(set(counts.values())) > 1:
            raise SchemaError(f"column {column!r} holds lists of unequal lengths: {counts}.")
        passages = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    passages = [passage for passage in passages if passage is not None]
    for passage in passages:
        if not isinstance(passage, Mapping):
            raise SchemaError(
                f"column {column!r} holds {found_as(passage)} in its list; {{docid, title, text}} was expected."
            )
    return passages


# --- passages of a side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FlatPassages:
    """The passages of one side of all rows, flat: how many each row has, and one array a field.

    ``fields`` are ``docid`` and ``title``, where there are such, ``text``, and any further ones; of passages that came
    as Python objects, ``objects`` holds these further ones, and the order of all. ``given`` is the column in which the
    lists stand just as they are here.
    """

    counts: Integers
    fields: Mapping[str, pa.Array]
    objects: Sequence[Mapping[str, Any]] | None = None
    given: pa.ChunkedArray | None = None

    def kept(self, mask: Any) -> FlatPassages:
        """Only the passages at which the mask is true."""
        if mask.all():
            return self
        places = np.flatnonzero(mask)
        return FlatPassages(
            counts=np.bincount(rows_of(self.counts)[places], minlength=len(self.counts)),
            fields={name: taken(values, places) for name, values in self.fields.items()},
            objects=None if self.objects is None else [self.objects[place] for place in places.tolist()],
        )

    def with_docids(self) -> FlatPassages:
        """Titles, and docids where there were none."""
        count, fields = len(self.fields["text"]), self.fields
        if not {"docid", "title"} <= fields.keys():
            fields = {"docid": pa.nulls(count, STRING), "title": pa.repeat("", count), **fields}
        docids, contents = fields["docid"], (fields["title"], fields["text"])
        if not docids.null_count:
            return replace(self, fields=fields)
        if docids.null_count < count:
            missing = np.flatnonzero(is_null(docids))
            contents = (taken(contents[0], missing), taken(contents[1], missing))
        return replace(self, fields={**fields, "docid": filled(docids, stable_docids(*contents))}, given=None)

    def lists(self, type: pa.DataType) -> Any:
        """The passages as a column of lists of that type."""
        if self.given is not None and self.given.type == type:
            return self.given
        if further := self.fields.keys() - {field.name for field in type.value_type}:
            raise SchemaError(
                f"The passages have the further fields {sorted(further)}, and the dataset holds its passages as JSON, "
                "whose fields only all rows tell. Call arhn.adapt_dataset(ds), which looks through them first."
            )
        count = len(self.fields["text"])
        fields = list(type.value_type)
        arrays = [arrow.shaped(self.fields.get(own.name, pa.nulls(count)), own.type, own.name) for own in fields]
        return arrow.lists_of(self.counts, pa.StructArray.from_arrays(arrays, fields=fields))

    def dicts(self) -> list[list[Row]]:
        """The passages as Python objects, a list a row."""
        values = zip(*(array.to_pylist() for array in self.fields.values()), strict=True)
        passages = [dict(zip(self.fields, passage, strict=True)) for passage in values]
        if self.objects is not None:
            passages = [{**whole, **read} for whole, read in zip(self.objects, passages, strict=True)]
        starts = arrow.starts_of(self.counts).tolist()
        return [passages[start:end] for start, end in zip(starts, starts[1:], strict=False)]

    def quoted(self, place: int) -> str:
        """The beginning of the passage at a place, for a message."""
        text, title = (self.fields[name][place].as_py() for name in ("text", "title"))
        return repr(shorten(text or title, 60))


def stable_docids(titles: pa.Array, texts: pa.Array) -> pa.Array:
    """:func:`~arhn_datasets.rows.records.stable_docid` of each passage, which hashes each distinct one once.

    The text that is hashed is put together from bytes: no string is decoded, and encoded again, for it.
    """
    made: dict[tuple[bytes, bytes], str] = {}
    hashes: list[str] = []
    for start in range(0, len(texts), _PASSAGES_AT_ONCE):
        parts = (array[start : start + _PASSAGES_AT_ONCE].cast(pa.binary()).to_pylist() for array in (titles, texts))
        for found in zip(*parts, strict=True):
            hashes.append(made.get(found) or made.setdefault(found, _stable_docid(*found)))
    return pa.array(hashes, STRING)


def _stable_docid(title: bytes, text: bytes) -> str:
    escaped = b'["%b","%b"]' % (_escaped(title), _escaped(text))
    if len(escaped.translate(None, _CONTROLS)) < len(escaped):
        return stable_docid(title.decode(), text.decode())
    return hashlib.sha256(escaped).hexdigest()[:32]


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") if text else text


def checked(
    positives: FlatPassages, negatives: FlatPassages, *, positive: bool = True
) -> tuple[FlatPassages, FlatPassages]:
    """Each side with each passage of a row once, at its first place; a row needs a ``positive``, none on both sides.

    By docid alone: a copy of a positive under another docid is a false negative, and refining finds it. Where docids
    are made here, equal texts have equal ones.

    Raises:
        BrokenRow: a row has no positive, a passage on both sides, or one docid for two texts.
    """
    rows = np.concatenate([rows_of(positives.counts), rows_of(negatives.counts)])
    docids = pa.concat_arrays([positives.fields["docid"], negatives.fields["docid"]]).dictionary_encode()
    # One number for each passage, equal where row and docid are.
    keys = rows * (len(docids.dictionary) + 1) + docids.indices.to_numpy(zero_copy_only=False)
    kept = positives, negatives
    cut = int(positives.counts.sum())
    repeated = _repeats(np.sort(keys)).any()
    if repeated:
        kept = _each_once(positives, keys[:cut]), _each_once(negatives, keys[cut:])
    there = np.full(len(positives.counts), not positive)
    for name in ("text", "title"):
        if not there.all():
            there[rows_of(positives.counts)[~blank(positives.fields[name])]] = True
    if not there.all():
        raise BrokenRow(
            int(there.argmin()),
            "it has no positive passage. Leave such rows out before adapting, with ds.filter(...).",
        )
    if repeated and (both := np.isin(keys[cut:], keys[:cut])).any():
        place = int(both.argmax())
        raise BrokenRow(
            int(rows_of(negatives.counts)[place]),
            f"the passage {negatives.fields['docid'][place].as_py()!r} ({negatives.quoted(place)}) is both positive "
            "and negative. Decide which it is and remove it from the other side.",
        )
    return kept


def _each_once(side: FlatPassages, keys: Integers) -> FlatPassages:
    order = np.argsort(keys, kind="stable")
    again = _repeats(keys[order])
    if not again.any():
        return side
    firsts, others = order[np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))][again], order[again]
    differ = np.zeros(len(others), bool)
    for name in ("title", "text"):
        values = side.fields[name]
        differ |= ~pc.equal(taken(values, firsts), taken(values, others)).to_numpy(zero_copy_only=False)
    if differ.any():
        other, first = min(zip(others[differ].tolist(), firsts[differ].tolist(), strict=True))
        raise BrokenRow(
            int(rows_of(side.counts)[other]),
            f"docid {side.fields['docid'][other].as_py()!r} stands for two texts, {side.quoted(first)} and "
            f"{side.quoted(other)}. Give each text its own docid, or null docids to have them made.",
        )
    return side.kept(np.isin(np.arange(len(keys)), others, invert=True))


def _repeats(keys: Integers) -> Any:
    """Where a number is the one before it, as a mask."""
    return np.append(False, keys[1:] == keys[:-1])[: len(keys)]
