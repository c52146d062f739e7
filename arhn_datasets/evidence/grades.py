"""Pointwise grades: how relevant each passage is, from 0 to 3, as soft labels.

An LLM as the judge of every pair of a query and a passage, as UniME-V2 (arXiv 2510.13515) makes its semantic matching
scores, on the four grades that are usual for TREC judgements. Nothing but the text of the reply is read, because not
every server gives the probabilities of tokens: a grade is a whole number, and no expected value over the digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arhn_datasets.annotators.interface import Grade, GradeRequest
from arhn_datasets.evidence.stage import AnnotatedTransform, unparsed
from arhn_datasets.rows import records
from arhn_datasets.rows.records import Passage, Row


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
    ASKS: ClassVar[str] = "grade"
    VERSION: ClassVar[int] = 2

    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""
        asked = self.configured
        return await self.each_passage(row, GradeRequest, asked.screened_grades, asked.grade, checked)


def checked(reply: Grade, passage: Passage) -> Grade:
    """The reply of any annotator; unparsed where it is no known grade, whatever the passage."""
    if not isinstance(reply, Grade):
        return unparsed(Grade, f"{reply!r}; a Grade was expected")
    if reply.status not in records.JUDGEMENT_STATUSES:
        return unparsed(Grade, f"grade {reply.grade!r} with status {reply.status!r}")
    if reply.status != records.JUDGED:
        return reply if reply.grade is None else Grade(status=reply.status, detail=reply.detail)
    if type(reply.grade) is int and reply.grade in records.GRADES:
        return reply
    return unparsed(Grade, f"grade {reply.grade!r}; one of {list(records.GRADES)} was expected")


grades = Grades()
