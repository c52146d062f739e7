"""Stage 1, snippets: for each (query, passage), the words that answer, or that there are none (ARHN, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import ClassVar

from arhn_datasets.annotators.interface import Snippet, SnippetRequest
from arhn_datasets.evidence.stage import AnnotatedTransform, unparsed
from arhn_datasets.rows import records
from arhn_datasets.rows.records import Passage, Row, shorten

FIELDS = ("text", "title")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snippets(AnnotatedTransform):
    """Adds ``positive_snippets`` and ``negative_snippets``, aligned with the passage lists.

    Each value is a struct of ``snippet``, ``start`` and ``end`` (offsets in characters into the passage's ``field``),
    ``status`` (``grounded``, ``no_answer``, ``ungrounded``, ``unparsed`` or ``error``) and ``detail``. Whoever the
    annotator is, what is ``grounded`` stands in the passage at these offsets; all else has none.

    Raises:
        SchemaError: the rows are not in the canonical form.
        ConfigurationError: no annotator is configured, or no request to it can succeed.
    """

    NAME: ClassVar[str] = "snippets"
    ASKS: ClassVar[str] = "snippet"
    ORDER: ClassVar[int] = 0
    VERSION: ClassVar[int] = 2

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        asked = self.configured
        return await self.each_passage(row, SnippetRequest, asked.screened_snippets, asked.snippet, checked)


def checked(reply: Snippet, passage: Passage) -> Snippet:
    """The reply of any annotator; ungrounded where it does not stand in the passage, unparsed where it says nothing."""
    if not isinstance(reply, Snippet):
        return unparsed(Snippet, f"{reply!r}; a Snippet was expected")
    if reply.status == records.GROUNDED:
        return _standing(reply, passage)
    if reply.status not in records.SNIPPET_STATUSES:
        expected = ", ".join(records.SNIPPET_STATUSES)
        return unparsed(Snippet, f"status {reply.status!r}; one of {expected} was expected")
    if reply.status == records.NO_ANSWER and reply.snippet:  # which of both it means is not known
        return unparsed(Snippet, f"{records.NO_ANSWER} beside the snippet {reply.snippet!r}")
    if (reply.snippet, reply.start, reply.end, reply.field) == (None, None, None, None):
        return reply
    return Snippet(status=reply.status, detail=reply.detail)


def _standing(reply: Snippet, passage: Passage) -> Snippet:
    """A grounded reply, ungrounded where the passage does not say these words at these offsets."""
    words, name = reply.snippet, reply.field
    try:
        start, end = index(reply.start), index(reply.end)  # type: ignore[arg-type]
    except TypeError:
        start, end = -1, -1
    if (
        isinstance(words, str)
        and name in FIELDS
        and 0 <= start < end == start + len(words)
        and not words.isspace()
        and str(passage.get(name) or "").startswith(words, start)
    ):
        # Offsets of numpy are numbers that neither JSON nor every table takes.
        return reply if type(reply.start) is type(reply.end) is int else replace(reply, start=start, end=end)
    said = f"the passage does not say it at {name}[{reply.start}:{reply.end}]: {words!r}"
    return Snippet(status=records.UNGROUNDED, detail=shorten(said))


snippets = Snippets()
