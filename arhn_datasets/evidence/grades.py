"""Pointwise grades: how relevant each passage is, from 0 to 3, as soft labels.

An LLM as the judge of every pair of a query and a passage, as UniME-V2 (arXiv 2510.13515) makes its semantic matching
scores, on the four grades that are usual for TREC judgements. Nothing but the text of the reply is read, because not
every server gives the probabilities of tokens: a grade is a whole number, and no expected value over the digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from arhn_datasets.annotators.requests import Grade, GradeRequest
from arhn_datasets.evidence.stage import AnnotatedTransform
from arhn_datasets.rows.records import (
    GRADE_TYPE,
    GRADES,
    JUDGED,
    JUDGEMENT_STATUSES,
    NEGATIVE,
    POSITIVE,
    UNPARSED,
    Row,
    shorten,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Grades(AnnotatedTransform):
    """Adds ``positive_grades`` and ``negative_grades``, aligned with the passage lists.

    Each value is a struct of ``grade`` (3: answers directly and completely; 2: answers in part; 1: same subject;
    0: another subject; null: not known), ``status`` (``judged``, ``unparsed`` or ``error``) and ``detail``.
    ``arhn.Relabel(evidence="grades")`` decides by them; exports for distillation take them as labels.

    One request a passage. As in UniME-V2 (arXiv 2510.13515) an LLM judges each pair by itself; the labels are whole
    numbers, not probabilities of a token.

    Raises:
        SchemaError: the rows are not in the canonical form.
        ConfigurationError: no annotator is configured, or it gives no grades.
    """

    NAME: ClassVar[str] = "grades"
    VERSION: ClassVar[int] = 2

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Lists of :data:`~arhn_datasets.rows.records.GRADE_TYPE`."""
        return {POSITIVE.grades: pa.list_(GRADE_TYPE), NEGATIVE.grades: pa.list_(GRADE_TYPE)}

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        asked = self.configured
        positives, negatives = await self.each_passage(row, GradeRequest, asked.screened_grades, asked.grade)
        return {
            POSITIVE.grades: [checked(grade).to_struct() for grade in positives],
            NEGATIVE.grades: [checked(grade).to_struct() for grade in negatives],
        }


def checked(reply: Grade) -> Grade:
    """The reply of any annotator; unparsed where it is no known grade."""
    if not isinstance(reply, Grade):
        return Grade(status=UNPARSED, detail=shorten(f"{reply!r}; a Grade was expected"))
    if reply.status not in JUDGEMENT_STATUSES:
        return Grade(status=UNPARSED, detail=shorten(f"grade {reply.grade!r} with status {reply.status!r}"))
    if reply.status != JUDGED:
        return reply if reply.grade is None else Grade(status=reply.status, detail=reply.detail)
    if type(reply.grade) is int and reply.grade in GRADES:
        return reply
    return Grade(status=UNPARSED, detail=shorten(f"grade {reply.grade!r}; one of {list(GRADES)} was expected"))


grades = Grades()
