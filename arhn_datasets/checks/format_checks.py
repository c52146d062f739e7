"""Whether the trainers' formats of a published folder are what its rows make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from arhn_datasets.checks.violations import FORMATS, Record
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.reading import Folder, read_tables, sha256_of
from arhn_datasets.folder.run import RUN_FILE, Published
from arhn_datasets.formats.format import Format, Options, chosen_formats, table_of
from arhn_datasets.formats.writers import split_rows_of
from arhn_datasets.rows.records import canonical_json, shorten

FORMAT_ROWS = 100  # rows at once to make a format of, which can be many times as long


class Formats:
    """The trainers' formats of a published folder, made again from its rows as they are read, and compared.

    Where a row of a format depends on others, as in a corpus, it is written again and compared at the end.
    """

    def __init__(self, folder: Folder, scratch: Path, record: Record) -> None:
        self.abandoned = False
        self._folder, self._scratch, self._record = folder, scratch, record
        self._split = ""
        self._stored: list[Stored] = []
        published = folder.run.published or Published()
        try:
            self._options = Options(**published.options)
            formats: Mapping[str, Format] = chosen_formats(published.formats) if published.formats else {}
        except (ConfigurationError, TypeError) as error:
            record.violated(FORMATS, f"the formats in {RUN_FILE} are none: {error}")
            self._options, formats = Options(), {}
        self._tables = [name for name, format in formats.items() if format.rowwise]
        self._writers = {
            name: format.open(format, scratch, self._options, split_rows_of(folder), True)
            for name, format in formats.items()
            if not format.rowwise
        }

    def begin(self, split: str) -> None:
        """Start a split."""
        self._split = split
        for writer in self._writers.values():
            writer.begin(split)
        self._stored = [self._stored_in(name, split) for name in self._tables]

    def write(self, rows: pa.Table) -> None:
        """Make the formats of further rows, and compare those that follow from a row alone."""
        for writer in self._writers.values():
            writer.write(rows)
        for start in range(0, rows.num_rows, FORMAT_ROWS):
            for stored in self._stored:
                self._compare(stored, table_of(stored.name, rows.slice(start, FORMAT_ROWS), self._options)[0])

    def end(self) -> None:
        """End the split: a format has no more rows than were made."""
        for writer in self._writers.values():
            writer.end()
        for stored in self._stored:
            self._compare(stored, None)

    def close(self) -> None:
        """Compare what was written again."""
        if self.abandoned:
            return
        tables: dict[tuple[str, str], list[Path]] = {}
        for writer in self._writers.values():
            for path, _ in writer.close().files:
                made = self._scratch / path
                if made.suffix == ".parquet":
                    tables.setdefault((Path(path).parent.as_posix(), made.name.rsplit("-", 3)[0]), []).append(made)
                    continue
                self._record.done(FORMATS, self._folder.run.rows_of(path))
                if not (self._folder.path / path).is_file() or sha256_of(self._folder.path / path) != sha256_of(made):
                    self._record.violated(FORMATS, f"{path} is not what the rows make.")
        for (name, self._split), files in tables.items():
            stored = self._stored_in(name, self._split)
            for file in sorted(files):
                for table in read_tables(file):
                    self._compare(stored, table)
            self._compare(stored, None)

    def _stored_in(self, name: str, split: str) -> Stored:
        return Stored(name, sorted((self._folder.path / name).glob(f"{split}-*-of-*.parquet")))

    def _compare(self, stored: Stored, made: pa.Table | None) -> None:
        before = stored.rows
        if difference := stored.difference(made):
            self._record.violated(FORMATS, difference, split=self._split)
        self._record.done(FORMATS, stored.rows - before)


class Stored:
    """The rows of a format as they are in the folder, to be compared from the first to the last."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.rows = name, 0
        self._tables = (table for path in paths for table in read_tables(path))
        self._rest: pa.Table | None = None
        self._differs = False

    def difference(self, made: pa.Table | None) -> str | None:
        """How the next rows differ from these, or with ``None`` from none at all; said once, the first time."""
        if self._differs or (made is not None and not made.num_rows):
            return None
        first = self.rows
        found = self._take(1 if made is None else made.num_rows)
        message = None
        if made is None:
            message = f"{self.name} has more rows than the {first:,} that the rows make." if found.num_rows else None
        elif found.num_rows and found.schema != made.schema:
            message = f"{self.name} has the columns {found.schema.names}; its format has {made.schema.names}."
        elif not found.equals(made):
            at, there, wanted = _first_difference(found, made)
            message = f"row {first + at} of {self.name} is {there}; the rows make {wanted}."
        self._differs = message is not None
        return message

    def _take(self, count: int) -> pa.Table:
        """The next rows; fewer at the end."""
        taken: list[pa.Table] = []
        while count > 0:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._tables, None)
                if self._rest is None:
                    break
            taken.append(self._rest.slice(0, count))
            self._rest = self._rest.slice(taken[-1].num_rows)
            count -= taken[-1].num_rows
            self.rows += taken[-1].num_rows
        return pa.concat_tables(taken) if taken else pa.table({})


def _first_difference(found: pa.Table, made: pa.Table) -> tuple[int, str, str]:
    rows, wanted = ([shorten(canonical_json(row), 1000) for row in table.to_pylist()] for table in (found, made))
    rows += ["no row"] * (len(wanted) - len(rows))
    at = next((at for at, pair in enumerate(zip(rows, wanted, strict=True)) if pair[0] != pair[1]), 0)
    return at, shorten(rows[at]), shorten(wanted[at])
