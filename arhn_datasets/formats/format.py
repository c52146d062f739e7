"""What a format is. Each stands in a file of this folder with all that the rest of the package says of it.

Trainers read every column as an input, crash on an empty list and on a null: no format has a further column, and a row
that cannot be written in a format is left out and counted. Where a passage is one text, its title stands in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets import formats
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.formats.writers import SplitRows, Writer
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, Numbers, field_of, flat_lists, taken
from arhn_datasets.rows.extensions import modules_in
from arhn_datasets.rows.options import check_choices
from arhn_datasets.rows.records import DECISION, DROPPED, LABELLED, QUERY, QUERY_ID, SCORE_TYPE, SUBSET, Side

SHORT = ("repeat", "drop")
LABEL_CHOICES = ("hard", "soft")
DROPPED_ROW, NO_SCORE = "dropped by a guard", "a passage without a score"

SCORE = "score"  # the field of a passage in which a source has brought its score
TEXT, SCORES = pa.string(), pa.list_(SCORE_TYPE)

Made = tuple[dict[str, pa.Array], Mapping[str, int]]
"""The columns of a table, and how many rows are not in it by reason."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen in the formats.

    Args:
        negatives: The number of negatives in a row of fixed length; the first ones of each row.
        short: What becomes of a row with fewer: ``"repeat"`` takes its own ones again, ``"drop"`` leaves it out.
        grades: Labels of lists: 2 for positives, 1 for filtered passages, which otherwise are not in the list, and 0
            for negatives, instead of 1 and 0.
        separator: Between title and text.
        labels: ``"soft"`` for the scores of the passages beside or instead of ``"hard"`` labels, for losses that distil
            a teacher: those of ``arhn.Scores``, else those that the source brought. A row in which a passage has none
            is left out; a format without a place for them is refused.
        carried: What a split holds for trainers beside the passages, which :meth:`beside` finds.

    Raises:
        ConfigurationError: a value is out of range.
    """

    negatives: int = 7
    short: str = "repeat"
    grades: bool = False
    separator: str = " "
    labels: str = "hard"
    carried: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ConfigurationError(f"negatives is {self.negatives}; a number from 1 was expected.")
        check_choices(self, {"short": SHORT, "labels": LABEL_CHOICES})
        if self.soft and self.grades:
            raise ConfigurationError("Labels are either soft or grades; leave one of them out.")

    @property
    def soft(self) -> bool:
        """Whether scores go along."""
        return self.labels == "soft"

    def to_json(self) -> dict[str, Any]:
        """Every option; ``labels`` only where they are soft, as earlier versions read this."""
        unsaid = {"carried", *(() if self.soft else ("labels",))}
        return {name: value for name, value in asdict(self).items() if name not in unsaid}

    def beside(self, rows: SplitRows, split: str, format: Format) -> Options:
        """The same with what a split holds of the columns that a format carries: a value somewhere, of their type."""
        wanted = {name: type for table in format.tables for name, type in table.carries.items()}
        return replace(self, carried=frozenset(name for name, type in wanted.items() if _has(rows, split, name, type)))


def _has(rows: SplitRows, split: str, name: str, type: pa.DataType) -> bool:
    """Whether a row of a split has a value of a column, or a score; of columns of another type none has."""
    asked = [QUERY_ID, QUERY, *(side.passages for side in LABELLED)] if name == SCORE else [name]
    fits = pa.types.is_integer if pa.types.is_integer(type) else _is_text
    for table in rows.tables(split, asked):
        if name == SCORE:
            scores = [scores_in(flat_lists(table, side.passages)[1]) for side in LABELLED]
            values = [one for one in scores if one is not None]
        else:
            values = [table[name]] if name in table.column_names and fits(table[name].type) else []
        if not values or any(one.null_count < len(one) for one in values):
            return bool(values)
    return False


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A table for trainers, under a configuration of its name.

    Args:
        name: Of its folder and its configuration.
        types: Its columns.
        columns: These, from canonical rows that no guard dropped.
        sides: Whose passages are read.
        scored: Whether it has a place for the scores of the passages; ``always``, that it is nothing without them.
        always: See ``scored``.
        carries: The columns of a source for which it has a place where the rows hold them, and :data:`SCORE` for the
            scores that the source brought.
        describe: What the card says is in it, from the names of its columns.
    """

    name: str
    types: Callable[[Options], Mapping[str, pa.DataType]]
    columns: Callable[[pa.Table, Options], Made]
    sides: Callable[[Options], Sequence[Side]] = lambda options: LABELLED
    scored: bool = False
    always: bool = False
    carries: Mapping[str, pa.DataType] = field(default_factory=dict)
    describe: Callable[[str, Options], str] = lambda names, options: names

    def schema(self, options: Options | None = None) -> pa.Schema:
        """The columns as Arrow has them."""
        return pa.schema(list(self.types(options or Options()).items()))

    def content(self, options: Options) -> str:
        """What the card says is in it."""
        return self.describe(", ".join(f"`{name}`" for name in self.schema(options).names), options)

    def needs(self, options: Options) -> list[str]:
        """The columns of the rows that are read, as far as a row has them."""
        scores = [side.scores for side in LABELLED] if self._is_soft(options) else []
        further = [SUBSET, *(name for name in self.carries if name != SCORE)] if self.carries else []
        return [QUERY_ID, QUERY, *(side.passages for side in self.sides(options)), *scores, *further, DECISION]

    def _is_soft(self, options: Options) -> bool:
        return self.always or (self.scored and options.soft)

    def of(self, rows: pa.Table, options: Options | None = None) -> tuple[pa.Table, Counter[str]]:
        """The table of some rows, in their order, and how many were left out by reason.

        Raises:
            SchemaError: the rows are not canonical.
        """
        options, left_out = options or Options(), Counter[str]()
        schema = self.schema(options)
        arrow.check_canonical(rows.column_names)
        if DECISION in rows.column_names:
            status = field_of(arrow.one_array(rows.column(DECISION)), "status", pa.string())
            dropped = pc.fill_null(pc.equal(status, DROPPED), False).to_numpy(zero_copy_only=False)
            if dropped.any():
                left_out[DROPPED_ROW] = int(dropped.sum())
                rows = rows.filter(pa.array(~dropped))
        if self._is_soft(options):
            known = _scored(rows)
            left_out[NO_SCORE] = int((~known).sum())
            rows = rows.filter(pa.array(known))
        columns, reasons = self.columns(rows, options)
        left_out.update(reasons)
        arrays = [columns[name].cast(schema.field(name).type) for name in schema.names]
        return pa.Table.from_arrays(arrays, schema=schema), +left_out


@dataclass(frozen=True, kw_only=True, eq=False)
class Format:
    """A trainer's format: what is written, and what the card, the commands and the README say of it.

    Args:
        name: Of ``--format`` and of the folder.
        place: Among the others, in lists.
        purpose: For whom it is, in the README.
        tables: What it is made of.
        options: Those of :class:`Options` that have an effect in some formats alone.
        open: What writes it into the repository at a path, alone or, where the last argument is true, beside the rows.
        repeats: Whether a passage may stand in many rows, so that few rows make many.
        files: What the card says of files that no configuration loads.
        example: The template in ``dataset_cards/formats/`` that shows how it is loaded, if not that of its name.
        row: What a row is, where one example shows several formats.
        loads: The configurations or formats that the example loads, if not its own.
        title: Of its README, where an export of it is a repository of its own.
    """

    name: str
    place: int = 100
    purpose: str
    tables: tuple[Table, ...]
    options: tuple[str, ...] = ()
    open: Callable[[Format, Path, Options, SplitRows, bool], Writer] = Writer
    repeats: bool = False
    files: str = ""
    example: str = ""
    row: str = ""
    loads: tuple[str, ...] = ()
    title: str = ""

    @property
    def rowwise(self) -> bool:
        """Whether it is one parquet table, each row of which comes of one row."""
        return not self.files and len(self.tables) == 1

    @property
    def scored(self) -> bool:
        """Whether it has a place for the scores of the passages."""
        return any(table.scored for table in self.tables)

    def needs(self, options: Options) -> list[str]:
        """The columns of the rows that are read, as far as a row has them."""
        return list(dict.fromkeys(column for table in self.tables for column in table.needs(options)))


def scores_in(passages: pa.Array) -> pa.Array | None:
    """The scores that passages hold in themselves, as a source brought them; None where there is no place for them."""
    place = passages.type.get_field_index(SCORE) if pa.types.is_struct(passages.type) else -1
    if place < 0 or not (pa.types.is_floating(type := passages.type[place].type) or pa.types.is_integer(type)):
        return None
    return field_of(passages, SCORE, SCORE_TYPE)


def _scored(rows: pa.Table) -> Any:
    """In which rows every passage has a score."""
    known = np.ones(rows.num_rows, bool)
    for side in LABELLED:
        passages = Passages(rows, side)
        if side.scores not in rows.column_names and len(passages.values) and scores_in(passages.values) is None:
            raise SchemaError(
                f"The rows lack the column {side.scores!r}, and their passages a number {SCORE!r}, one of which soft "
                "labels need. Score them: ds.map(arhn.Scores(model), batched=True); or refine rows that bring "
                "pos_scores and neg_scores."
            )
        missing = ~np.isfinite(passages.scores())
        known &= np.bincount(arrow.rows_of(passages.counts)[missing], minlength=rows.num_rows) == 0
    return known


# -- what several formats take from canonical rows ---------------------------------------------------------------------


class Passages:
    """The passages of one side: the length of each list, and the flat values."""

    def __init__(self, rows: pa.Table, side: Side) -> None:
        self._rows, self._side = rows, side
        if side.passages in rows.column_names:
            self.counts, self.values = flat_lists(rows, side.passages)
        else:
            self.counts, self.values = np.zeros(rows.num_rows, np.int64), pa.nulls(0)
        self.starts = arrow.starts_of(self.counts)

    def field(self, name: str) -> pa.Array:
        """A field of the passages, ``""`` where it is null."""
        return pc.fill_null(field_of(self.values, name, pa.string()), "")

    def ids(self) -> pa.Array:
        """The docids."""
        return _ids(field_of(self.values, "docid", pa.string()), "passage", "docid")

    def texts(self, separator: str) -> pa.Array:
        """Title and text as one text; one of them alone where the other is empty."""
        titles, texts = self.field("title"), self.field("text")
        titled = pc.not_equal(titles, "")
        if not pc.any(titled).as_py():
            return texts
        between = pc.if_else(pc.and_(titled, pc.not_equal(texts, "")), separator, "")
        return pc.binary_join_element_wise(titles, texts, between)

    def scores(self) -> Numbers:
        """Their scores: those of a stage, else those that the source brought; NaN where there is none."""
        if self._side.scores in self._rows.column_names:
            lengths, found = flat_lists(self._rows, self._side.scores)
            found = arrow.aligned(found.cast(SCORE_TYPE), lengths, self.counts)
        else:
            found = scores_in(self.values)
            found = pa.nulls(len(self.values), SCORE_TYPE) if found is None else found
        numbers: Numbers = found.to_numpy(zero_copy_only=False)
        return np.where(np.isfinite(numbers), numbers, np.nan)

    def lists(self, values: pa.Array, rows: Any) -> pa.Array:
        """Flat values as the lists of the rows in which ``rows`` is true."""
        if not rows.all():
            values = taken(values, np.flatnonzero(np.repeat(rows, self.counts)))
        return arrow.lists_of(self.counts[rows], values)


def queries(rows: pa.Table) -> pa.Array:
    """The queries, ``""`` where there is none."""
    return pc.fill_null(arrow.strings_of(rows, QUERY), "")


def query_ids(rows: pa.Table) -> pa.Array:
    """The ids of the queries, each of which has one."""
    return _ids(arrow.strings_of(rows, QUERY_ID), "row", QUERY_ID)


def without(positives: Passages, others: Any = True) -> dict[str, int]:
    """How many rows have no positive, and how many of the others no negative, which is where ``others`` is false."""
    there = positives.counts > 0
    return {"no positive": int((~there).sum()), "no negative": int((there & np.logical_not(others)).sum())}


def labelled(rows: pa.Table, separator: str, labels: Mapping[Side, int]) -> tuple[Integers, Integers, pa.Array, Any]:
    """The passages of several sides in one list each: counts, the order of the flat values, texts and labels."""
    sides = [Passages(rows, side) for side in labels]
    counts, order = arrow.merged([side.counts for side in sides])
    texts = pa.concat_arrays([side.texts(separator) for side in sides])
    values = np.repeat(np.array(list(labels.values()), np.int64), [len(side.values) for side in sides])
    return counts, order, taken(texts, order), values[order]


def each_positive(positives: Passages, negatives: Passages) -> tuple[Integers, Integers, Integers, Integers]:
    """Each positive with all negatives: its row and its place, how many negatives, and the places of all of these."""
    there = negatives.counts > 0
    row = arrow.rows_of(np.where(there, positives.counts, 0))
    counts: Integers = negatives.counts[row]
    own = np.flatnonzero(np.repeat(there, positives.counts))
    return row, own, counts, np.repeat(negatives.starts[row], counts) + arrow.within(counts)


def _ids(ids: pa.Array, what: str, name: str) -> pa.Array:
    if ids.null_count:
        raise SchemaError(
            f"A {what} has no {name}, which this format needs. Bring the rows into the canonical form, which gives "
            f"every {what} one: arhn.adapt_dataset(ds)."
        )
    return ids


# -- the formats that there are: what the files of this folder hold, found by looking ----------------------------------


@cache
def known_formats() -> Mapping[str, Format]:
    """Every format by its name, in their places."""
    values = [value for module in modules_in(formats) for value in vars(module).values()]
    ordered = sorted({value for value in values if isinstance(value, Format)}, key=lambda one: (one.place, one.name))
    return {format.name: format for format in ordered}


def chosen_formats(names: Sequence[str], options: Options | None = None) -> dict[str, Format]:
    """The formats of these names, each once.

    Raises:
        ConfigurationError: there is no such format, none is named, or one has no place for soft labels.
    """
    known = known_formats()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(f"The format is {unknown or 'not named'}; expected some of {', '.join(known)}.")
    bare = [name for name in names if not known[name].scored]
    if bare and options and options.soft:
        raise ConfigurationError(
            f"The labels are soft, and there is no place for scores in {', '.join(dict.fromkeys(bare))}; they would be "
            f"lost. Write these formats in a run of their own with hard labels, or choose some of "
            f"{', '.join(name for name, format in known.items() if format.scored)}."
        )
    return {name: known[name] for name in names}


def table_named(name: str) -> Table:
    """The table of a configuration.

    Raises:
        ConfigurationError: no format has such a table.
    """
    tables = {table.name: table for format in known_formats().values() for table in format.tables}
    if name not in tables:
        raise ConfigurationError(f"The format is {name!r}; a table of one of {', '.join(tables)} was expected.")
    return tables[name]


def table_of(name: str, rows: pa.Table, options: Options | None = None) -> tuple[pa.Table, Counter[str]]:
    """The table of a configuration from rows, and how many were left out by reason; see :meth:`Table.of`.

    In the tables of a corpus, a docid or a query that is in several rows is there several times.
    """
    return table_named(name).of(rows, options)


def examples_of(there: Collection[str]) -> dict[str, dict[str, str]]:
    """The examples of loading what is there, as the card takes them: by template, the formats and what a row is."""
    examples: dict[str, dict[str, str]] = {}
    for format in known_formats().values():
        if set(format.loads or [format.name]) <= set(there):
            examples.setdefault(format.example or format.name, {})[format.name] = format.row
    return examples
