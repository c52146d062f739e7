"""Stage 1, snippets: for each (query, passage), the words that answer, or that there are none (ARHN, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from arhn_datasets.annotation import AnnotatedTransform
from arhn_datasets.records import (
    NEGATIVE_SNIPPETS,
    POSITIVE_SNIPPETS,
    SNIPPET_TYPE,
    Row,
    SnippetRequest,
)


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
        positives, negatives = await self.each_passage(row, SnippetRequest, source.screened_snippets, source.snippet)
        return {
            POSITIVE_SNIPPETS: [snippet.to_struct() for snippet in positives],
            NEGATIVE_SNIPPETS: [snippet.to_struct() for snippet in negatives],
        }


snippets = Snippets()
