"""Stage 1, snippets: for each (query, passage), the words that answer, or that there are none (ARHN, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from arhn_datasets.annotators.interface import Annotator, Snippet, SnippetRequest
from arhn_datasets.annotators.prompts import Prompts
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.evidence.stage import AnnotatedTransform, unparsed
from arhn_datasets.rows import records
from arhn_datasets.rows.arrow import lengths_in
from arhn_datasets.rows.options import Option, check_integer
from arhn_datasets.rows.records import LABELLED, Passage, Row, shorten

if TYPE_CHECKING:
    import pyarrow as pa

FIELDS = ("text", "title")
MOST_PASSAGES = 64  # in a request; a reply of more lines would not fit into its tokens


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snippets(AnnotatedTransform):
    """Adds ``positive_snippets`` and ``negative_snippets``, aligned with the passage lists.

    Each value is a struct of ``snippet``, ``start`` and ``end`` (offsets in characters into the passage's ``field``),
    ``status`` (``grounded``, ``no_answer``, ``ungrounded``, ``unparsed`` or ``error``) and ``detail``. Whoever the
    annotator is, what is ``grounded`` stands in the passage at these offsets; all else has none.

    Args:
        passages_per_request: How many passages of a row an LLM is shown in one request, with one line a passage in the
            reply. A passage without a line of its own is asked about alone. Several are for strong models on servers
            without a prefix cache: fewer tokens and requests. With 1 each is asked about alone.
        seed: Of the order in which these are shown.

    Raises:
        SchemaError: the rows are not in the canonical form.
        ConfigurationError: no annotator is configured, or no request to it can succeed.
    """

    NAME: ClassVar[str] = "snippets"
    ASKS: ClassVar[str] = "snippet"
    ORDER: ClassVar[int] = 0
    VERSION: ClassVar[int] = 2

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "passages_per_request": Option(
            help="passages of a row that an LLM is shown in one request; with 8 a strong one without a prefix cache "
            "reads half of the tokens or less, and --estimate tells both prices",
            metavar="K",
        ),
        "seed": Option(help="of the shown orders", metavar="NUMBER"),
    }

    passages_per_request: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("passages_per_request", self.passages_per_request, least=1)
        if self.passages_per_request > MOST_PASSAGES:
            raise ConfigurationError(
                f"passages_per_request is {self.passages_per_request}; a number from 1 to {MOST_PASSAGES} was expected."
            )
        check_integer("seed", self.seed)

    @classmethod
    def from_options(cls, given: Mapping[str, Any], annotator: Annotator | None, tasks: Any) -> Snippets:
        """The stage with this annotator; a baseline is shown no passages together."""
        stage = super().from_options(given, annotator, tasks)
        if stage.passages_per_request > 1 and stage.configured.baseline:
            raise ConfigurationError("--passages-per-request goes with an LLM; leave it out.")
        return stage

    @property
    def prompts_of(self) -> tuple[str, ...]:
        """Those for one passage, and for several where these are asked about."""
        return (self.NAME, *([f"packed {self.NAME}"] if self.passages_per_request > 1 else []))

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        asked, most, packed = self.configured, self.passages_per_request, None
        if most > 1:
            packed = partial(asked.packed_snippets, most=most, seed=self.seed), most
        return await self.each_passage(row, SnippetRequest, asked.screened_snippets, asked.snippet, checked, packed)

    def requests(self, rows: pa.Table) -> int:
        """How many requests rows need: one a passage, or one a pack, where every line of its reply can be read."""
        passages = sum(lengths_in(rows, side.passages)[0] for side in LABELLED)
        return int(np.sum(-(-passages // self.passages_per_request)))

    def identity(self) -> dict[str, Any]:
        """The annotator's identity and, of several passages in a request, how they are shown."""
        if self.passages_per_request == 1:  # as before there were others
            return super().identity()
        prompts = getattr(self.configured, "prompts", None)
        packed = {"packed_prompts": prompts.hash_of("packed snippets")} if isinstance(prompts, Prompts) else {}
        shown = {name: getattr(self, name) for name in ("passages_per_request", "seed")}
        return {**super().identity(), **shown, **packed}


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
