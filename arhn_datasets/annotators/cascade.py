"""A cheap annotator first, and a strong one only where its reply could change a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from arhn_datasets.annotators import interface
from arhn_datasets.annotators.llm import OF_THE_PROCESS, LLMAnnotator
from arhn_datasets.annotators.prompts import Prompts
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows import background
from arhn_datasets.rows.records import JUDGED, NO_ANSWER, NO_MATCH, shorten

T = TypeVar("T")
Reply = TypeVar("Reply", interface.Snippet, interface.Grade, interface.Verdict)

VERSION = 1  # raised whenever the same replies of the two give other evidence
FLOOR = 0.6


@dataclass(frozen=True, eq=False)
class Cascade(interface.Annotator):
    """Asks the strong annotator only about what the cheap one, the screen, does not rule out.

    A negative without an answer stays where it is, so the screen reads the negatives of a row first. Those in which it
    finds no answer are not asked about again; where it finds one in none of them, nothing of the row is. The positives
    of all other rows, their flagged negatives and their ranking are the strong annotator's. Verdicts go as in the
    cascade of RLHN (arXiv 2505.16967): a row, or a window of a long one, in which the screen flags a negative is judged
    again as a whole. Negatives that the screen grades 0 keep that grade; positives are always graded by the strong one.

    Only what the screen plainly says rules anything out: after an error, or a reply that could not be read, the strong
    annotator is asked. Only what the strong annotator says moves a passage. ``detail`` tells what the screen said.

    What it costs depends on the false negatives: a lexical screen overlooks those that answer in other words. Against a
    perfect strong annotator, with the default floor: on windows of SQuAD paragraphs 52 % of the requests are saved and
    0.2 % of the labels changed; on MedQuAD 27 % and 0.8 %; on the sample of this package, whose false negatives are
    paraphrases, 46 % and 12 %. Measure it on your rows (``scripts/measure_cascade.py``), or take a small LLM for it.

    Args:
        cheap: The screen: :class:`~arhn_datasets.Lexical`, or a small model.
        strong: Who is asked about the rest.
        floor: Where the screen measures coverage, as the lexical one does, a negative is asked about when it covers at
            least this share of what the best covered positive of its row covers, whatever the screen's threshold is;
            None for the screen's own snippets. A lower floor loses fewer labels and saves fewer requests.

    Raises:
        ConfigurationError: one of the two is no annotator, or is a cascade itself, or ``floor`` is out of range.
    """

    cheap: interface.Annotator
    strong: interface.Annotator
    _: KW_ONLY
    floor: float | None = FLOOR

    def __post_init__(self) -> None:
        for name, given in (("cheap", self.cheap), ("strong", self.strong)):
            if not isinstance(given, interface.Annotator) or isinstance(given, Cascade):
                raise ConfigurationError(
                    f"{name} is {given!r}; an annotator that is no cascade itself was expected, such as "
                    "arhn.Lexical() for cheap and arhn.Endpoint(url) for strong."
                )
        if self.floor is not None and not 0 <= self.floor < float("inf"):
            raise ConfigurationError(f"floor is {self.floor}; a share from 0 on was expected, or None.")
        object.__setattr__(self, "awaits", self.cheap.awaits or self.strong.awaits)
        object.__setattr__(self, "baseline", self.strong.baseline)
        object.__setattr__(self, "on_gpu", self.cheap.on_gpu or self.strong.on_gpu)

    @property
    def needs_fitting(self) -> bool:
        """Whether the screen does."""
        return self.cheap.needs_fitting

    def fitted_on(self, rows: Iterable[Mapping[str, Any]]) -> Cascade:
        """A cascade with the screen fitted."""
        return replace(self, cheap=self.cheap.fitted_on(rows))

    @property
    def prompts(self) -> Prompts | None:
        """The prompts of the strong annotator, where it has any."""
        return self.strong.prompts if isinstance(self.strong, LLMAnnotator) else None

    async def turn(self, requests: int) -> None:
        """Wait until each of the two should be asked more."""
        await self.cheap.turn(requests)
        await self.strong.turn(requests)

    async def screened_snippets(
        self, positives: Sequence[interface.SnippetRequest], negatives: Sequence[interface.SnippetRequest]
    ) -> list[interface.Snippet | None]:
        """The screen's snippets of what it rules out; the positives are ruled out only with all negatives."""
        ruled_out = self._uncovered(positives, negatives)
        if ruled_out is None:
            snippets = await self._all(self.cheap.snippet(request) for request in negatives)
            ruled_out = [_marked(snippet) if snippet.status == NO_ANSWER else None for snippet in snippets]
        first: list[interface.Snippet | None] = [None] * len(positives)
        if negatives and None not in ruled_out:
            first = [_marked(one) for one in await self._all(self.cheap.snippet(request) for request in positives)]
        return self._counted([*first, *ruled_out])

    def _uncovered(
        self, positives: Sequence[interface.SnippetRequest], negatives: Sequence[interface.SnippetRequest]
    ) -> list[interface.Snippet | None] | None:
        """For each negative that covers too little a snippet that says so; None where the screen does not measure."""
        held = [] if self.floor is None else [self.cheap.coverage(request) for request in (*positives, *negatives)]
        covered = [coverage for coverage in held if coverage is not None]
        if self.floor is None or len(covered) < len(held):
            return None
        best = max(covered[: len(positives)], default=0.0)
        uncovered: list[interface.Snippet | None] = []
        for coverage in covered[len(positives) :]:
            detail = f"coverage {coverage:.3f}, that of the best positive is {best:.3f}"
            low = coverage < self.floor * best
            uncovered.append(_marked(interface.Snippet(status=NO_ANSWER, detail=detail)) if low else None)
        return uncovered

    async def screened_grades(
        self, positives: Sequence[interface.GradeRequest], negatives: Sequence[interface.GradeRequest]
    ) -> list[interface.Grade | None]:
        """The screen's grades of the negatives that it grades 0; positives are always asked about."""
        grades = await self._all(self.cheap.grade(request) for request in negatives)
        ruled_out = [_marked(one) if one.status == JUDGED and one.grade == 0 else None for one in grades]
        return self._counted([*[None] * len(positives), *ruled_out])

    async def snippet(self, request: interface.SnippetRequest) -> interface.Snippet:
        """The strong annotator's snippet."""
        return await self.strong.snippet(request)

    async def packed_snippets(
        self, requests: Sequence[interface.SnippetRequest], most: int, seed: int
    ) -> list[interface.Snippet]:
        """The strong annotator's snippets."""
        return await self.strong.packed_snippets(requests, most, seed)

    async def ranking(self, request: interface.RankingRequest) -> interface.Ranking:
        """The strong annotator's ranking: there is one only of rows in which it has found an answer in a negative."""
        return await self.strong.ranking(request)

    async def verdicts(self, request: interface.VerdictRequest) -> tuple[interface.Verdict, ...]:
        """The screen's verdicts where it flags nothing, else the strong annotator's, with the screen's beside them."""
        screened = await self.cheap.verdicts(request)
        if len(screened) == len(request.candidates) and all(
            one.status == JUDGED and one.verdict == NO_MATCH for one in screened
        ):
            self._asked["screened"] += 1
            return tuple(_marked(one) for one in screened)
        found = await self.strong.verdicts(request)
        if len(screened) != len(found):
            return found
        return tuple(
            replace(one, detail=shorten(f"screen: {first.verdict or first.status}. {one.detail or ''}"))
            for one, first in zip(found, screened, strict=True)
        )

    def check_gives(self, method: str, kind: str) -> None:
        """Both have to give it."""
        self.cheap.check_gives(method, kind)
        self.strong.check_gives(method, kind)

    async def grade(self, request: interface.GradeRequest) -> interface.Grade:
        """The strong annotator's grade."""
        return await self.strong.grade(request)

    def identity(self, stage: str) -> dict[str, Any]:
        """Both identities, and the floor."""
        return {
            "annotator": "cascade",
            "version": VERSION,
            "screen": self.cheap.identity(stage),
            "strong": self.strong.identity(stage),
            "floor": self.floor,
        }

    def shared_by(self, processes: int) -> interface.Annotator:
        """A cascade of what both are for each of so many processes."""
        return self._both(lambda one: one.shared_by(processes))

    def most_processes(self) -> int | None:
        """The fewer of the two."""
        both = self.cheap.most_processes(), self.strong.most_processes()
        return min((most for most in both if most is not None), default=None)

    def kept_at(self, place: Callable[[Path], Path]) -> interface.Annotator:
        """A cascade of both with their stores there."""
        return self._both(lambda one: one.kept_at(place))

    def statistics(self) -> dict[str, Any]:
        """What both were asked, added up, and ``screened``: what the strong one was not asked."""
        both = [self.cheap.statistics(), self.strong.statistics()]
        shared = isinstance(self.cheap, LLMAnnotator) and isinstance(self.strong, LLMAnnotator)
        total: dict[str, Any] = {}
        for name in dict.fromkeys(name for one in both for name in one):
            values = [one.get(name, 0) for one in both]
            if isinstance(values[0], bool) or isinstance(values[1], bool):
                total[name] = any(values)
            else:
                total[name] = max(values) if shared and name in OF_THE_PROCESS else sum(values)
        return {**total, **self._asked}

    def told(self) -> list[str]:
        """What both have learnt."""
        return [*self.cheap.told(), *self.strong.told()]

    def description(self) -> dict[str, Any]:
        """The strong annotator's facts, and the screen's with ``screen_`` before their names."""
        strong, screen = self.strong.description(), self.cheap.description()
        return {
            **strong,
            "annotator": f"cascade: {screen['annotator']}, then {strong['annotator']}",
            "baseline": self.baseline,
            "screen_floor": self.floor,
            **{f"screen_{name}": value for name, value in screen.items() if name != "baseline"},
        }

    def _both(self, change: Callable[[interface.Annotator], interface.Annotator]) -> Cascade:
        return replace(self, cheap=change(self.cheap), strong=change(self.strong))

    @cached_property
    def _asked(self) -> Counter[str]:
        return Counter(screened=0)

    def _counted(self, known: list[T]) -> list[T]:
        self._asked["screened"] += sum(one is not None for one in known)
        return known

    async def _all(self, replies: Iterable[Awaitable[T]]) -> list[T]:
        if not self.cheap.awaits:
            return [await reply for reply in replies]
        return await background.gathered(replies)


def _marked(reply: Reply) -> Reply:
    """What the screen said, where nobody else was asked."""
    return replace(reply, detail=shorten(f"by the screen alone. {reply.detail or ''}"))
