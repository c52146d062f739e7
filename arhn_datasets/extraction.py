"""Stage 1, snippets: for each (query, passage), the words that answer, or that there are none (ARHN, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from arhn_datasets.annotation import AnnotatedTransform, background_of
from arhn_datasets.records import (
    NEGATIVE_SNIPPETS,
    NEGATIVES,
    POSITIVE_SNIPPETS,
    POSITIVES,
    QUERY,
    SNIPPET_TYPE,
    Row,
    SnippetRequest,
    passages_of,
)
from arhn_datasets.transform import gather


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snippets(AnnotatedTransform):
    """Adds ``positive_snippets`` and ``negative_snippets``, aligned with the passage lists.

    Each value is a struct of ``snippet``, ``start`` and ``end`` (offsets in characters into the passage's ``field``),
    ``status`` (``grounded``, ``no_answer``, ``ungrounded``, ``unparsed`` or ``error``) and ``detail``.

    Raises:
        SchemaError: the rows are not in the canonical form.
        ConfigurationError: no annotator is configured, or no request to it can succeed.
    """

    NAME: ClassVar[str] = "snippets"

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Lists of :data:`~arhn_datasets.records.SNIPPET_TYPE`."""
        return {POSITIVE_SNIPPETS: pa.list_(SNIPPET_TYPE), NEGATIVE_SNIPPETS: pa.list_(SNIPPET_TYPE)}

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        source = self.source
        background, task = background_of(row), self.task(row)
        positives, negatives = (
            [
                SnippetRequest(query=row[QUERY], passage=passage, task=task, background=background)
                for passage in passages_of(row, column)
            ]
            for column in (POSITIVES, NEGATIVES)
        )
        await source.turn(len(positives) + len(negatives))
        known = await source.screened_snippets(positives, negatives)
        asked = (
            source.snippet(request) for request, one in zip((*positives, *negatives), known, strict=True) if one is None
        )
        replies = iter(await gather(asked, concurrently=source.awaits))
        snippets = [(next(replies) if one is None else one).to_struct() for one in known]
        return {POSITIVE_SNIPPETS: snippets[: len(positives)], NEGATIVE_SNIPPETS: snippets[len(positives) :]}


snippets = Snippets()
