"""An annotator for tests of runs."""

from __future__ import annotations

from arhn_datasets.annotators.interface import Annotator, Ranking, Snippet
from arhn_datasets.rows.records import NO_ANSWER, RANKED


class Failing(Annotator):
    """Finds nothing, and fails at one query."""

    awaits = False

    def __init__(self, at=None):
        self.at = at

    async def snippet(self, request):
        """No answer."""
        if request.query == self.at:
            raise OSError("the annotator is gone")
        return Snippet(status=NO_ANSWER)

    async def ranking(self, request):
        """All alike."""
        return Ranking(status=RANKED, tiers=(tuple(range(len(request.candidates))),))

    def identity(self, stage):
        """A name."""
        return {"annotator": "failing"}
