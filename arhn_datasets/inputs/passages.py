"""The flat passages of many rows: their docids, each passage of a list once, and none that is labelled twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.inputs.values import STRING, BrokenRow, blank, filled
from arhn_datasets.rows.arrow import Integers, is_null, lists_of, rows_of, shaped, starts_of, taken
from arhn_datasets.rows.records import Row, shorten, stable_docid

CONTROLS = bytes(range(32))
PASSAGES_AT_ONCE = 10_000


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
        count = len(self.fields["text"])
        arrays = [
            shaped(self.fields.get(field.name, pa.nulls(count)), field.type, field.name) for field in type.value_type
        ]
        return lists_of(self.counts, pa.StructArray.from_arrays(arrays, fields=list(type.value_type)))

    def dicts(self) -> list[list[Row]]:
        """The passages as Python objects, a list a row."""
        values = zip(*(array.to_pylist() for array in self.fields.values()), strict=True)
        passages = [dict(zip(self.fields, passage, strict=True)) for passage in values]
        if self.objects is not None:
            passages = [{**whole, **read} for whole, read in zip(self.objects, passages, strict=True)]
        starts = starts_of(self.counts).tolist()
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
    passages = zip(_bytes_of(titles), _bytes_of(texts), strict=True)
    hashes = [made.get(found) or made.setdefault(found, _stable_docid(*found)) for found in passages]
    return pa.array(hashes, STRING)


def _stable_docid(title: bytes, text: bytes) -> str:
    escaped = b'["%b","%b"]' % (_escaped(title), _escaped(text))
    if len(escaped.translate(None, CONTROLS)) < len(escaped):
        return stable_docid(title.decode(), text.decode())
    return hashlib.sha256(escaped).hexdigest()[:32]


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") if text else text


def _bytes_of(texts: pa.Array) -> Iterator[bytes]:
    for start in range(0, len(texts), PASSAGES_AT_ONCE):
        yield from texts[start : start + PASSAGES_AT_ONCE].cast(pa.binary()).to_pylist()


def checked(positives: FlatPassages, negatives: FlatPassages) -> tuple[FlatPassages, FlatPassages]:
    """Each side with each passage of a row once, at its first place; a row needs a positive, and none on both sides.

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
    _refuse_no_positive(positives)
    both = np.isin(keys[cut:], keys[:cut]) if repeated else np.zeros(0, bool)
    if both.any():
        place = int(both.argmax())
        raise BrokenRow(
            int(rows_of(negatives.counts)[place]),
            f"the passage {negatives.fields['docid'][place].as_py()!r} ({negatives.quoted(place)}) is both positive "
            "and negative. Decide which it is and remove it from the other side.",
        )
    return kept


def _refuse_no_positive(positives: FlatPassages) -> None:
    there = np.zeros(len(positives.counts), bool)
    for name in ("text", "title"):
        if not there.all():
            there[rows_of(positives.counts)[~blank(positives.fields[name])]] = True
    if not there.all():
        raise BrokenRow(
            int(there.argmin()),
            "it has no positive passage. Leave such rows out before adapting, with ds.filter(...).",
        )


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
