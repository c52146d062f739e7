"""Files of text as tables, in whatever way they are compressed: JSON and CSV, each value as it is written."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa

from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.inputs.forms import reading_of
from arhn_datasets.inputs.values import array_of, type_of, united
from arhn_datasets.rows.records import shorten

Tables: TypeAlias = Iterator[pa.Table]
Sized: TypeAlias = tuple[dict[str, Any], int]  # an object, and how many characters it took

ROWS, CHARACTERS = 1000, 8_000_000  # of a table, at most
CHUNK = 1_000_000  # characters
HEADER_WORDS = 8  # more in a name of a column, and it is a text

COMPRESSED: Mapping[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: pa.input_stream(path, compression="zstd"),
}
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # at the beginning of a file
_DELIMITERS = ",\t;|"


# --- opening ----------------------------------------------------------------------------------------------------------


def suffix_of(path: Path) -> str:
    """What kind of file it is by its name, in whatever way it is compressed."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


@contextmanager
def bytes_of(path: Path) -> Iterator[Any]:
    """A file, open, as it is behind its compression."""
    opened: Any = COMPRESSED.get(path.suffix.lower(), _as_it_is)(str(path))
    with opened:
        yield opened


def _as_it_is(path: str) -> Any:
    return open(path, "rb")


@contextmanager
def _text_of(path: Path, newline: str) -> Iterator[IO[str]]:
    with bytes_of(path) as opened:
        mark = opened.read(2)
        again = io.BufferedReader(_Behind(mark, opened), CHUNK)
        yield io.TextIOWrapper(again, encoding=_MARKS.get(mark, "utf-8-sig"), newline=newline)


class _Behind(io.RawIOBase):
    """Bytes that were read already, and then the rest of their file."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._first or self._rest.read(len(buffer))
        self._first = b""
        buffer[: len(found)] = found
        return len(found)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise InputError(f"an object has the key {twice!r} twice, and only one of the values can be kept")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_SPACE = re.compile(r"\s*")
NO_TABLE = (
    "One object for each row was expected, with the columns of one of the known forms. Rows of ids are put together by "
    "arhn.adapt_dataset(queries=..., corpus=..., qrels=..., negatives=...)."
)


def json_tables(path: Path) -> Tables:
    """The objects of a file as rows, whatever columns each of them has."""
    with _text_of(path, "\n") as text:
        head = text.read(CHUNK)
        while head and not head.strip():
            head = text.read(CHUNK)
        if head.lstrip()[:1] == "[":
            rows = _items(path, text, head)
        else:
            objects = _objects(path, text, head)
            first = list(islice(objects, 2))
            one = len(first) == 1
            rows = ((row, 1) for row in _rows_of_document(path, first[0][0])) if one else chain(first, objects)
        number = 0
        for batch in _batches(rows):
            yield table_of(batch, number)
            number += len(batch)


def _batches(rows: Iterable[Sized]) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    characters = 0
    for row, size in rows:
        held.append(row)
        characters += size
        if len(held) >= ROWS or characters >= CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


def table_of(rows: list[dict[str, Any]], number: int) -> pa.Table:
    """Objects as a table of the types that hold all of their values; ``number`` is that of the first row."""
    columns = {}
    if not any(rows):
        raise SchemaError(f"rows {number} to {number + len(rows) - 1} are objects without a key. Leave them out.")
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = array_of(values, name)
        except SchemaError as error:
            raise SchemaError(f"row {number + odd_row(values, name)}, counted from 0: {error}. {ONE_KIND}") from error
        except UnicodeEncodeError as error:
            raise SchemaError(
                f"a text of column {name!r} holds half of a surrogate pair, which no dataset can store: "
                f"{shorten(ascii(error.object), 60)}. Repair it first: text.encode('utf-16', 'surrogatepass')"
                ".decode('utf-16', 'replace')."
            ) from error
    return pa.table(columns)


ONE_KIND = "Give its values one kind, as strings, or leave the column out."


def odd_row(values: Sequence[Any], name: str, before: pa.DataType | None = None) -> int:
    """The first value whose kind does not go with those before it."""
    found = before or pa.null()
    for row, value in enumerate(values):
        try:
            found = united(found, type_of(value, name), name)
        except SchemaError:
            return row
    return 0


def _objects(path: Path, text: IO[str], head: str) -> Iterator[Sized]:
    """The objects of a file: one a line, or one after the other."""
    lines = _lines(text, head)
    first = ""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            if not first and line.lstrip()[:1] == "{":  # an object of several lines
                yield from _documents(path, chain([line], (line for _, line in lines)), number)
                return
            raise InputError(
                f"{path}, line {number} is no JSON: {error.msg} at character {error.colno}: {shorten(line, 80)!r}. "
                "One object a line was expected; repair that line, or leave it out."
            ) from error
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}. Rename one of them.") from error
        first = first or line
        yield _object(path, value, f"line {number}"), len(line)


def _lines(text: IO[str], head: str) -> Iterator[tuple[int, str]]:
    begun = re.findall(r"[^\n]*\n|[^\n]+", head)
    if begun and not begun[-1].endswith("\n"):
        begun[-1] += text.readline()
    return enumerate(chain(begun, text), 1)


def _object(path: Path, value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    kinds = {list: "a list", str: "a string", type(None): "null"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    raise InputError(f"{path}, {where} is {kind}: {shorten(repr(value), 60)}. {NO_TABLE}")


def _items(path: Path, text: IO[str], head: str) -> Iterator[Sized]:
    """The objects of a list that is the whole file."""
    line, _, rest = head.strip().partition("\n")
    by_line = line.rstrip().endswith("]") and rest.lstrip()[:1] == "["
    if by_line:
        raise InputError(f"{path}: its lines are lists, objects were expected: {shorten(line, 60)}. {NO_TABLE}")
    values = _Values(path, text, head)
    values.skip("[")
    while not values.at("]"):
        item = values.next()
        yield _object(path, item, f"an item of its list, line {values.line},"), values.size
        if not values.at("]"):
            values.skip(",")
    values.skip("]")
    if not values.at(""):
        raise InputError(f"{path} goes on behind the end of its list, in line {values.line}. {NO_TABLE}")


def _documents(path: Path, lines: Iterator[str], number: int) -> Iterator[Sized]:
    values = _Values(path, None, "", lines, number)
    while not values.at(""):
        yield _object(path, values.next(), f"line {values.line}"), values.size


class _Values:
    """The values of a text that is read as far as they need it."""

    def __init__(
        self, path: Path, text: IO[str] | None, head: str, lines: Iterator[str] | None = None, line: int = 1
    ) -> None:
        self._path, self._held, self._place, self._line = path, head, 0, line
        self._more: Iterator[str] = lines or iter(lambda: text.read(CHUNK) if text else "", "")
        self.size = 0

    @property
    def line(self) -> int:
        """The line of the place that is read."""
        return self._line + self._held.count("\n", 0, self._place)

    def _read(self, least: int) -> bool:
        self._line += self._held.count("\n", 0, self._place)
        parts, size = [self._held[self._place :]], 0
        for part in self._more:
            parts.append(part)
            size += len(part)
            if size >= least:
                break
        self._held, self._place = "".join(parts), 0
        return size > 0

    def at(self, sign: str) -> bool:
        """Whether that sign is next, or the end where it is none."""
        while True:
            self._place = _SPACE.match(self._held, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._held):
                return bool(sign) and self._held[self._place] == sign
            if not self._read(1):
                return not sign

    def skip(self, sign: str) -> None:
        """Go on behind a sign."""
        if not self.at(sign):
            self._refuse(f"{sign!r} was expected")
        self._place += 1

    def next(self) -> Any:
        """The next value."""
        least = CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._place)
            except json.JSONDecodeError as error:
                # Only near its end the error can be that the text goes on.
                if self._read(least):
                    least *= 2
                    continue
                self._place = error.pos
                self._refuse(error.msg)
            except InputError as error:
                raise InputError(f"{self._path}, line {self.line}: {error}. Rename one of them.") from error
            else:
                self.size, self._place = end - self._place, end
                return value

    def _refuse(self, reason: str) -> None:
        found = self._held[self._place : self._place + 80].split("\n")[0]
        raise InputError(
            f"{self._path}, line {self.line} is no JSON: {reason}; found {found!r}. Repair the file, or write it "
            "anew, one object a line."
        )


def _rows_of_document(path: Path, found: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of the only object of a file, which is a row, or holds a table."""
    if suffix_of(path) != ".json" or _fits(found):
        return [found]
    tables = {
        key: value
        for key, value in found.items()
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    }
    fitting = [key for key, rows in tables.items() if _fits(rows[0])]
    if len(fitting) == 1:
        return tables[fitting[0]]
    if not tables and not all(isinstance(value, dict) for value in found.values()):
        return [found]  # of whose columns the forms tell
    looks = "; ".join(f"{key!r} holds {len(rows)} objects" for key, rows in tables.items()) or "none of them is a table"
    raise InputError(f"{path} is one object with the keys {sorted(found)}: {looks}. Write the rows alone. {NO_TABLE}")


def _fits(row: Mapping[str, Any]) -> bool:
    try:
        return bool(reading_of(tuple(row)))
    except SchemaError:
        return False


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """The module csv has one limit for the whole process, which other readers count on."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def csv_tables(path: Path) -> Tables:
    """The cells of a file as text; its first line has the names of the columns."""
    with _cells_of_any_size(), _text_of(path, "") as text:
        style = _style(path)
        rows = csv.reader(text, strict=True, **style)
        header = _next(path, rows)
        if not header:
            return
        if len(header) > 1 and not header[0].strip():
            header[0] = "Unnamed: 0"  # the index that pandas writes, under the name that it reads it
        _check_header(path, header)
        yield pa.table({name: pa.nulls(0, pa.string()) for name in header})
        held: list[list[str]] = []
        size = 0
        while (row := _next(path, rows)) is not None:
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {rows.line_num}: the row has {len(row)} cells, and the header has {len(header)}: "
                    f"{shorten(repr(row), 100)}. Put texts that hold {style['delimiter']!r}, quotes or new lines into "
                    'quotes ("), and write a quote in them twice.'
                )
            held.append(row)
            size += sum(map(len, row))
            if len(held) >= ROWS or size >= CHARACTERS:
                yield _text_table(header, held)
                held, size = [], 0
        yield _text_table(header, held)


def _text_table(header: list[str], rows: list[list[str]]) -> pa.Table:
    # Only an empty cell is absent: NA, None and null are words.
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    texts = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
    return pa.table(dict(zip(header, texts, strict=True)))


def _next(path: Path, rows: Any) -> list[str] | None:
    """The next row that is no empty line."""
    try:
        return next((row for row in rows if row), None)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {rows.line_num}: {error}. Put a text that holds a quote into quotes, and write that quote "
            'twice: "the ""Red"" ferry".'
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    odd = next((name for at, name in enumerate(header) if not name.strip() or name in header[:at]), None)
    long = next((name for name in header if len(name.split()) > HEADER_WORDS), None)
    if odd is not None or long is not None:
        what = f"the text {shorten(long, 60)!r}" if long else f"{odd!r} twice" if odd else "a column without a name"
        raise InputError(
            f"{path}: its first line has to be a header, the names of the columns, and has {what}. Write the names as "
            f"the first line, such as: query{_style(path)['delimiter']}positive{_style(path)['delimiter']}negative"
        )


def _style(path: Path) -> dict[str, Any]:
    """How cells are parted and quoted: by the delimiter with which the first rows all have the most cells."""
    best = "\t" if suffix_of(path) == ".tsv" else ","
    with _text_of(path, "") as text:
        head = text.read(CHUNK)
    width = 1
    for delimiter in sorted(_DELIMITERS, key=lambda one: one != best):
        widths = _widths(head, delimiter)
        if len(set(widths)) == 1 and widths[0] > width:
            best, width = delimiter, widths[0]
    if width == 1:  # rows differ: what the header says, if anything
        counts = {one: head.partition("\n")[0].count(one) for one in _DELIMITERS}
        best = best if counts[best] else max(counts, key=counts.__getitem__) if any(counts.values()) else best
    if best == "\t" and not _is_quoted(path):
        return {"delimiter": best, "quoting": csv.QUOTE_NONE}
    return {"delimiter": best}


def _widths(head: str, delimiter: str) -> list[int]:
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    widths = [len(row) for row in islice(rows, 100) if row]
    return widths[:-1] if len(widths) > 1 and len(head) == CHUNK else widths  # the last may be cut


def _is_quoted(path: Path) -> bool:
    """Whether a file of tabs is right when quotes are those of CSV; in many such files they are signs like others."""
    try:
        with _text_of(path, "") as text:
            return len({len(row) for row in csv.reader(text, strict=True, delimiter="\t") if row}) < 2
    except csv.Error:
        return False
