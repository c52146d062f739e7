"""``ms-swift``: JSON lines of ``messages``, ``positive_messages`` and ``negative_messages``, a row for each positive.

Each list of the latter two is one of conversations. Its embedding trainer takes the first positive of a row alone. The
prompt that a source brought is the system message, which ms-swift takes for the instruction.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.formats.format import TEXT, Format, Made, Options, Passages, Table, each_positive, queries, without
from arhn_datasets.formats.writers import LinesWriter
from arhn_datasets.rows.arrow import lists_of, merged, strings_of, taken
from arhn_datasets.rows.records import NEGATIVE, POSITIVE

PROMPT = "prompt"
MESSAGE = pa.struct({"role": TEXT, "content": TEXT})


def _columns(rows: pa.Table, options: Options) -> Made:
    positives, negatives = Passages(rows, POSITIVE), Passages(rows, NEGATIVE)
    row, own, counts, others = each_positive(positives, negatives)
    replies = [_conversations(side.texts(options.separator)) for side in (positives, negatives)]
    columns = {
        "messages": taken(_questions(rows, options), row),
        "positive_messages": lists_of(np.ones_like(counts), taken(replies[0], own)),
        "negative_messages": lists_of(counts, taken(replies[1], others)),
    }
    return columns, without(positives, negatives.counts > 0)


def _questions(rows: pa.Table, options: Options) -> pa.Array:
    """A conversation for each query, behind its prompt where it has one."""
    prompts = pc.fill_null(strings_of(rows, PROMPT if PROMPT in options.carried else ""), "")
    there = pc.not_equal(prompts, "").to_numpy(zero_copy_only=False)
    counts, order = merged([there.astype(np.int64), np.ones(rows.num_rows, np.int64)])
    messages = [_messages("system", prompts.filter(pa.array(there, pa.bool_()))), _messages("user", queries(rows))]
    return lists_of(counts, taken(pa.concat_arrays(messages), order))


def _conversations(texts: pa.Array) -> pa.Array:
    """A conversation of one reply for each text."""
    return lists_of(np.ones(len(texts), np.int64), _messages("assistant", texts))


def _messages(role: str, texts: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([pa.repeat(role, len(texts)), texts], fields=list(MESSAGE))


TYPES = {
    "messages": pa.list_(MESSAGE),
    "positive_messages": pa.list_(pa.list_(MESSAGE)),
    "negative_messages": pa.list_(pa.list_(MESSAGE)),
}
MS_SWIFT = Format(
    name="ms-swift",
    place=11,
    purpose="ms-swift",
    tables=(Table(name="ms-swift", types=lambda options: TYPES, columns=_columns, carries={PROMPT: TEXT}),),
    open=LinesWriter,
    repeats=True,
    files="`ms-swift/SPLIT.jsonl`: `messages`, `positive_messages`, `negative_messages` for ms-swift",
)
