"""Set-wise verdicts: which negatives answer, and whether as well as the positives or less (RLHN, arXiv 2505.16967).

One request shows the positives of a row as references and its negatives as a numbered list. What RLHN's code takes for
evidence and is none counts for nothing here: a number that stands for no candidate, a candidate that is in both groups,
and a reply that cannot be read are recorded as such, and the passages concerned have no verdict.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.annotators.cascade import Cascade
from arhn_datasets.annotators.interface import Annotator, Verdict, VerdictRequest
from arhn_datasets.annotators.prompts import one_line
from arhn_datasets.evidence.stage import AnnotatedTransform, background_of, check_annotator, unparsed
from arhn_datasets.rows import records
from arhn_datasets.rows.arrow import lengths_in
from arhn_datasets.rows.background import gathered
from arhn_datasets.rows.options import Option, check_integer
from arhn_datasets.rows.records import LABELLED, NEGATIVE, POSITIVE, QUERY, Row, digest, passages_of, text_of


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Verdicts(AnnotatedTransform):
    """Adds ``negative_verdicts``, and ``positive_verdicts`` of nulls, aligned with the passage lists.

    Each value is a struct of ``verdict`` (``better``: relevant, and at least as good as the positives; ``worse``:
    relevant, and less good; ``no_match``: not relevant; null: not known), ``status`` (``judged``, ``partial``,
    ``unparsed``, ``error`` or ``skipped``) and ``detail``. ``arhn.Relabel(evidence="verdicts")`` decides by them.

    The prompt is of this package. Negatives with the same words are one candidate. The shown order is a seeded shuffle.

    Args:
        screen: A cheap annotator that judges every row first; the one that is configured judges those rows in which
            this one flags a negative (RLHN's cascade). The same as ``annotator=arhn.Cascade(screen, ...)``.
        window: Most negatives in one request; a row with more of them is asked in several.
        seed: Of the shown orders.

    Raises:
        SchemaError: the rows are not in the canonical form.
        ConfigurationError: a value is out of range, no annotator is configured, or it gives no verdicts.
    """

    NAME: ClassVar[str] = "verdicts"
    ASKS: ClassVar[str] = "verdicts"
    VERSION: ClassVar[int] = 2
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "window": Option(help="most candidates in a request", metavar="N"),
        "seed": Option(help="of the shown orders", metavar="NUMBER"),
    }

    screen: Annotator | None = None
    window: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_annotator("screen", self.screen)
        check_integer("window", self.window, least=1)
        check_integer("seed", self.seed)

    @property
    def configured(self) -> Annotator:
        """The configured annotator, behind the screen where there is one."""
        found = super().configured
        if self.screen is None:
            return found
        made: dict[Any, Annotator] = self.__dict__.setdefault("_cascades", {})  # no field: it is not pickled
        return made.setdefault(id(found), Cascade(self.screen, found))

    def asking(self, annotator: Annotator) -> Verdicts:
        """The same stage with another annotator, which is behind the screen already."""
        return super().asking(annotator).with_options(screen=None)

    def requests(self, rows: pa.Table) -> int | None:
        """One a window of the negatives of a row that has a positive."""
        positives, negatives = (lengths_in(rows, side.passages)[0].tolist() for side in LABELLED)
        pairs = zip(positives, negatives, strict=True)
        return sum(-(-int(shown) // self.window) for references, shown in pairs if references)

    def identity(self) -> dict[str, Any]:
        """The annotator's identity and every option of the verdicts."""
        return {**super().identity(), "window": self.window, "seed": self.seed}

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        positives, negatives = (
            [one_line(text_of(passage)) for passage in passages_of(row, side.passages)] for side in LABELLED
        )
        if positives:
            verdicts = await self._judged(row, list(dict.fromkeys(positives)), negatives)
        else:
            skipped = Verdict(status=records.SKIPPED, detail="the row has no positive to compare with")
            verdicts = dict.fromkeys(negatives, skipped)
        return {
            POSITIVE.verdicts: [None] * len(positives),
            NEGATIVE.verdicts: [dict(vars(verdicts[text])) for text in negatives],
        }

    async def _judged(self, row: Row, positives: Sequence[str], negatives: Sequence[str]) -> dict[str, Verdict]:
        """The verdict on each distinct text of the negatives."""
        # The shown order follows from the texts alone: another order of the passages in the row asks nothing new.
        shown = sorted(set(negatives))
        random.Random(digest([self.seed, row[QUERY], shown])).shuffle(shown)
        windows = [tuple(shown[start : start + self.window]) for start in range(0, len(shown), self.window)]
        annotator, background, task = self.configured, background_of(row), self.task(row)
        await annotator.turn(len(windows))
        asked = {"query": row[QUERY], "positives": tuple(sorted(positives)), "task": task, "background": background}
        requests = (annotator.verdicts(VerdictRequest(**asked, candidates=window)) for window in windows)
        replies = await gathered(requests, concurrently=annotator.awaits)
        return {
            text: verdict
            for window, reply in zip(windows, replies, strict=True)
            for text, verdict in zip(window, checked(reply, len(window)), strict=True)
        }


def checked(reply: Sequence[Verdict], candidates: int) -> list[Verdict]:
    """The reply of any annotator; unparsed where it is not one known verdict a candidate."""
    if not isinstance(reply, (list, tuple)) or len(reply) != candidates:
        said = f"{len(reply)} verdicts" if isinstance(reply, (list, tuple)) else f"{reply!r} and no verdicts"
        return [unparsed(Verdict, f"{said} on {candidates} candidates")] * candidates
    return [_checked(verdict) for verdict in reply]


def _checked(reply: Verdict) -> Verdict:
    if not isinstance(reply, Verdict):
        return unparsed(Verdict, f"{reply!r}; a Verdict was expected")
    if reply.status in records.JUDGEMENT_STATUSES:
        says = reply.status in (records.JUDGED, records.PARTIAL)
        if reply.verdict in records.VERDICTS if says else reply.verdict is None:
            return reply
    return unparsed(Verdict, f"{reply.verdict!r} with status {reply.status!r}")


verdicts = Verdicts()
