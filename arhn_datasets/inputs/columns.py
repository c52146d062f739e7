"""Passages that stand as texts in columns, with what stands beside them, value for value: ids, titles, scores.

A column holds one text a row or a list of them. What stands beside a text travels with it, so that nothing is stale
once a passage changes sides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import passages as flat
from arhn_datasets.inputs.passages import BrokenRow, FlatPassages, ValueKind, Values, each, read, read_lists
from arhn_datasets.rows import arrow
from arhn_datasets.rows.arrow import Integers, aligned, is_null, merged, rows_of, taken
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES

Columns: TypeAlias = Mapping[str, Values]
TwoSides: TypeAlias = tuple[FlatPassages, FlatPassages]  # the positives and the negatives

HIGHEST_GRADE = 10  # whole numbers above it are scores of a model, as percentages are
SCORE = "score"
NULLABLE_TEXT = ValueKind(array=flat.strings_of, expected=flat.OPTIONAL_TEXT.expected, plural="texts")
"""A text, which may be empty, or null where none stands there."""
NULLABLE_TITLE = ValueKind(array=flat.strings_of, expected=flat.TITLE.expected, plural="titles")
FIELD_KINDS: Mapping[str, ValueKind] = {"docid": flat.ID, "title": NULLABLE_TITLE, SCORE: flat.NUMBER}
"""What is known to stand beside texts, by the field of the passage that it becomes."""
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "docid": ("id", "ids", "docid", "docids", "doc_id", "doc_ids", "document_id", "document_ids", "pid", "pids"),
    "title": ("title", "titles"),
    SCORE: ("score", "scores"),
}
_SIDES = (("pos", "positive", "positives"), ("neg", "negative", "negatives", "hard_negative", "hard_negatives"))
_DOCUMENTS = ("doc", "docs", "document", "documents", "passage", "passages")
# A list that is written as text, as a CSV file has it.
_WRITTEN_LIST = r"(?s)^\s*\[\s*(\]|['\"].*['\"]\s*\])\s*$"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A column of texts, or of lists of them, and by their fields the columns that stand beside it."""

    column: str
    beside: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (self.column, *self.beside.values())


def texts_in(column: str, columns: Collection[str], further: Mapping[str, tuple[str, ...]] | None = None) -> Texts:
    """A column of texts with what stands beside it, by their names; ``further`` are names that say it by themselves."""
    beside: dict[str, str] = {}
    for field, suffixes in SUFFIXES.items():
        names = [f"{stem}_{suffix}" for stem in _stems(column) for suffix in suffixes]
        names += [name for name in (further or {}).get(field, ()) if name != column]
        if found := next((name for name in names if name in columns), None):
            beside[field] = found
    return Texts(column=column, beside=beside)


def _stems(column: str) -> tuple[str, ...]:
    alike = next((names for names in (*_SIDES, _DOCUMENTS) if column in names), ())
    return tuple(dict.fromkeys((column, *alike)))


def passages_of(columns: Columns, texts: Texts) -> FlatPassages:
    """The passages of a column, with a null text where a null stands in it; see :func:`there`."""
    counts, found = one_or_many(columns[texts.column], flat.OPTIONAL_TEXT, texts.column)
    fields: dict[str, pa.Array] = {"text": found}
    for field, name in texts.beside.items():
        own, values = one_or_many(columns[name], FIELD_KINDS[field], name)
        expected = np.where(_no_list(columns[texts.column], columns[name]), 0, counts)
        refuse_unequal(_told(own, values), name, expected, texts.column)
        fields[field] = aligned(values, own, counts)
    return FlatPassages(counts=counts, fields=fields)


def _no_list(texts: Values, beside: Values) -> Any:
    """Where a null may be a list or a text, and is no list, for there is one beside it."""
    if isinstance(texts, list):
        return np.array([a is None and isinstance(b, (list, tuple)) for a, b in zip(texts, beside, strict=True)], bool)
    return pa.types.is_null(texts.type) and not isinstance(beside, list) and pa.types.is_nested(beside.type)


def united(sides: Iterable[FlatPassages], fields: Iterable[str] = ()) -> FlatPassages:
    """The passages of several columns in one list each, with the fields of all, and ``fields``, null where none."""
    parts = list(sides)
    names = dict.fromkeys(["text", *fields, *(name for part in parts for name in part.fields)])
    if len(parts) == 1 and len(names) == len(parts[0].fields):
        return parts[0]
    counts, order = merged([part.counts for part in parts])
    together = {}
    for name in names:
        kind = FIELD_KINDS.get(name)
        type = pa.string() if kind is None else kind.type
        values = pa.concat_arrays([part.fields.get(name, pa.nulls(len(part.fields["text"]), type)) for part in parts])
        together[name] = values if len(parts) == 1 else taken(values, order)
    return FlatPassages(counts=counts, fields=together)


def there(side: FlatPassages) -> FlatPassages:
    """Without the places at which no text stands; titles are empty where there is none."""
    fields = {**side.fields}
    if "title" in fields and fields["title"].null_count:
        fields["title"] = pc.fill_null(fields["title"], "")
    side = FlatPassages(counts=side.counts, fields=fields)
    return side.kept(~is_null(fields["text"])) if fields["text"].null_count else side


def one_or_many(values: Values, kind: ValueKind, column: str) -> tuple[Integers, pa.Array]:
    """A column of values of a kind, or of lists of them: how many each row has, and all of them.

    Among the values of texts, an empty one that stands alone is null, as in the tuples of trainers.
    """
    lenient = NULLABLE_TEXT if kind is flat.OPTIONAL_TEXT else kind
    if not isinstance(values, list):
        if pa.types.is_nested(values.type):
            return read_lists(values, lenient, column)
        read_values = read(values, kind, column)
        _refuse_written_lists(read_values, column, kind)
        return np.ones(len(values), np.int64), read_values
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    many = [isinstance(value, (list, tuple)) for value in values]
    if all(many) and values:
        return read_lists(values, lenient, column)
    if not any(many):
        read_values = read(values, kind, column)
        _refuse_written_lists(read_values, column, kind)
        return np.ones(len(values), np.int64), read_values
    parts = each(values, lambda value: one_or_many([value], kind, column))
    return np.concatenate([counts for counts, _ in parts]), pa.concat_arrays([found for _, found in parts])


def _refuse_written_lists(texts: pa.Array, column: str, kind: ValueKind) -> None:
    if kind is not flat.OPTIONAL_TEXT:
        return
    written = pc.fill_null(pc.match_substring_regex(texts, _WRITTEN_LIST), False).to_numpy(zero_copy_only=False)
    if written.any():
        row = int(written.argmax())
        each([None] * row + [texts[row].as_py()], lambda text: flat.list_in(text, column, "texts"))


def _told(found: Integers, values: pa.Array) -> Integers:
    """How many values each row has, 0 where none of them is known."""
    known = np.bincount(rows_of(found)[~is_null(values)], minlength=len(found))
    return np.where(known == 0, 0, found)


def refuse_unequal(found: Integers, column: str, counts: Integers, beside: str) -> None:
    """Refuse a row in which not as many values stand beside the texts; none at all is none known."""
    if (unequal := np.flatnonzero((found != counts) & (found != 0))).size:
        row = int(unequal[0])
        raise BrokenRow(
            row, f"column {column!r} has {found[row]} values and {beside!r} has {counts[row]}; one each is needed."
        )


def with_scores(columns: Columns, name: str, sides: TwoSides) -> TwoSides:
    """Both sides with the scores of a column that holds those of the positives, then those of the negatives.

    The list has one for each column of the tuple, or one for each text that is there.
    """
    counts, order = merged([side.counts for side in sides])
    text = taken(pa.concat_arrays([side.fields["text"] for side in sides]), order)
    stands = ~is_null(text)
    kept = np.bincount(rows_of(counts)[stands], minlength=len(counts))
    found, scores = one_or_many(columns[name], flat.NUMBER, name)
    whole = found == counts
    refuse_unequal(np.where(whole, kept, _told(found, scores)), name, kept, "the passages of the row")
    given = np.where(whole[rows_of(counts)], True, stands & (found == kept)[rows_of(counts)])
    places = np.full(len(text), -1, np.int64)
    places[given] = np.flatnonzero(np.repeat(whole | (found == kept), found))
    back = np.empty(len(order), np.int64)
    back[order] = places
    cut = int(sides[0].counts.sum())
    parts = (taken(scores, back[:cut]), taken(scores, back[cut:]))
    positives, negatives = (
        replace(side, fields={**side.fields, SCORE: values}) for side, values in zip(sides, parts, strict=True)
    )
    return positives, negatives


# --- labels -----------------------------------------------------------------------------------------------------


def labels_of(values: Values, column: str, documents: FlatPassages, beside: str, threshold: float | None) -> pa.Array:
    """The numbers beside documents: labels, or with a threshold anything that is compared with it.

    Raises:
        SchemaError: they are the scores of a model, which do not say what is positive.
        BrokenRow: a document has no number.
    """
    counts, (found, numbers) = documents.counts, one_or_many(values, flat.NUMBER, column)
    unequal = np.flatnonzero(found != counts)
    if unequal.size:
        row = int(unequal[0])
        raise BrokenRow(
            row, f"column {column!r} has {found[row]} values and {beside!r} has {counts[row]}; one each is needed."
        )
    known = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    if threshold is None:
        # Of a column of scores that are no integers a few may be whole numbers by chance: 1.0 and 0.0.
        scores = (known != np.floor(known)) | (known < 0) | (known > HIGHEST_GRADE)
        # Without a 0, whole numbers are ratings as from 1 to 5, which begin above what labels call positive.
        rated = known.size > 0 and known.min() > 0 and known.max() > 1
        if column.startswith(SCORE) and (rated or _are_floats(values)):
            scores |= True
        if scores.any():
            raise SchemaError(
                f"Column {column!r} holds scores, as {known[scores.argmax()]:g}, which do not say what is positive. "
                f"Labels are whole numbers from 0 to {HIGHEST_GRADE}, and positive above 0. Say from which score on a "
                "passage is positive: arhn-refine --label-threshold X, arhn.adapt_dataset(ds, threshold=X) or "
                "arhn.adapt.with_options(threshold=X). Or give the labels in a column 'labels'."
            )
    missing = (is_null(numbers) | np.isnan(known)) & ~is_null(documents.fields["text"])
    if missing.any():
        place = int(missing.argmax())
        raise BrokenRow(
            int(rows_of(counts)[place]),
            f"column {column!r} holds a null; every passage needs a number, above 0 if positive.",
        )
    return pc.fill_null(numbers, 0.0)  # where no document stands


def check_label_names(feature: Any, column: str) -> None:
    """Refuse classes with names (``datasets.ClassLabel``) of which the first does not say that it is the negative.

    Their numbers are places in a list that anybody may have written in any order.

    Raises:
        SchemaError: the first class may be that of the positives.
    """
    while not hasattr(feature, "names") and hasattr(feature, "feature"):
        feature = feature.feature
    names = getattr(feature, "names", None)
    if names and names[0] != "0" and not _NEGATIVE_NAME.match(names[0]):
        raise SchemaError(
            f"Column {column!r} holds the classes {names}, whose numbers do not say which of them is positive: "
            f"{names[0]!r} is 0, and 0 is read as a negative. Give labels that are 0 for negatives, as with "
            f"ds.cast_column({column!r}, Value('int64')) where the first class is theirs."
        )


_NEGATIVE_NAME = re.compile(r"(?i)neg|no(?!rmal)|ir?rel|un|in(?:correct|valid)|dis|fals|wrong|bad|non|low|contra")


def _are_floats(values: Values) -> bool:
    """Whether numbers are no integers by their type, whatever their values are; of texts, as they are written."""
    if not isinstance(values, list):
        type = values.type
        while hasattr(type, "value_type"):
            type = type.value_type
        if not pa.types.is_string(type) and not pa.types.is_large_string(type):
            return bool(pa.types.is_floating(type))
        values = values.to_pylist()
    listed = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    found = [one for value in listed for one in (value if isinstance(value, (list, tuple)) else [value])]
    return any(isinstance(one, float) or (isinstance(one, str) and not one.strip().isdecimal()) for one in found)


# --- what stands beside passages and is not known ------------------------------------------------------------------

_POINTS = re.compile(
    r"(?:(?P<pos>pos|positive|positives|chosen)|(?P<neg>(?:hard_?)?(?:neg|negative|negatives)|rejected)"
    r"|docs?|documents?|passages?|ctxs?|candidates?)(?:_.*)?|(?:.*_)?(?:doc)?(?:ids|titles|texts|urls|sources|"
    r"scores|similarities|distances|logits|prob(?:abilitie)?s|weights|labels|grades|ranks)"
)
_OF_QUERY = re.compile(r"(?:query|queries|question|anchor|answer|row)s?(?:_.*)?")


def points_at_passages(name: str) -> bool:
    """Whether a column says by its name that it is of passages."""
    return bool(_POINTS.fullmatch(name)) and not _OF_QUERY.fullmatch(name)


def lengths_in(values: Values) -> Integers | None:
    """The length of each list, -1 where it is null; None where a column holds none, or passages with their texts."""
    if isinstance(values, list):
        listed = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        if not any(isinstance(value, (list, tuple)) for value in listed):
            return None
        lists = all(value is None or isinstance(value, (list, tuple)) for value in listed)
        if not lists or any(isinstance(one, Mapping) and "text" in one for value in listed for one in value or ()):
            return None
        return np.array([-1 if value is None else len(value) for value in listed], np.int64)
    type = values.type
    if not (arrow.is_list(type) or pa.types.is_fixed_size_list(type)):
        return None
    if pa.types.is_struct(type.value_type) and type.value_type.get_field_index("text") >= 0:
        return None
    lengths: Integers = pc.fill_null(pc.list_value_length(values), -1).to_numpy().astype(np.int64)
    return lengths


def parallel_to(name: str, found: Integers, positives: Integers, negatives: Integers, *, whole: bool) -> bool:
    """Whether a list column that nothing reads stands beside passages, so that it would be stale once these move.

    By its name, and its lengths in every row; by its lengths alone only where a ``whole`` dataset is seen.
    """
    if _OF_QUERY.fullmatch(name) or name.removeprefix("source_") in ALL_EVIDENCE_TYPES:  # as we advise to rename them
        return False
    pointing = _POINTS.fullmatch(name)
    known = found >= 0
    by_chance = not whole or found.max() < 2 or known.sum() < 2
    if not (found > 0).any() or (by_chance and not pointing):
        return False
    varied = found[known].min() < found[known].max()  # every row of triplets has two passages, and some list has two
    against = [positives, negatives, *([positives + negatives] if pointing or varied else [])]
    if pointing and (pointing["pos"] or pointing["neg"]):
        against = [positives if pointing["pos"] else negatives]
    return any(bool((found == counts)[known].all()) for counts in against)


def refuse_parallel(names: list[str]) -> None:
    """Refuse columns that stand beside passages, with both ways out."""
    if names:
        first = names[0]
        raise SchemaError(
            f"The columns {names} hold a list with one value for each passage of a row, and nothing keeps these beside "
            "their passages once one moves. Leave them out: arhn-refine --drop-columns "
            f"{quote(','.join(names))}, or ds.remove_columns({names}). Where one is of the query, rename it: "
            f"arhn-refine --rename {quote(f'{first}=query_{first}')}, or ds.rename_column({first!r}, 'query_{first}')."
        )
