"""The lexical baseline: training-free, deterministic, and no LLM."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from typing import Any, ClassVar, NamedTuple, TypeVar

from arhn_datasets.annotators.interface import (
    Annotator,
    Grade,
    GradeRequest,
    Ranking,
    RankingRequest,
    Snippet,
    SnippetRequest,
    Verdict,
    VerdictRequest,
)
from arhn_datasets.annotators.prompts import one_line
from arhn_datasets.annotators.words import cue_of, scaffold, sentences, sequence, stemmer, terms
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows import records
from arhn_datasets.rows.records import NEGATIVE, POSITIVE, Passage, digest, passages_of, text_of

K = TypeVar("K")

_STOPS = ("", *".!?…。！？｡؟।")  # of a sentence; and no first line at all
_CLOSING = " \t\r\"'”’»)]」』）"

VERSION = 2  # raised whenever the same text gets another figure
THRESHOLD, OF_BEST = 0.3, 0.85
ORDER = 0.15  # the part of the figure that pairs of neighbouring terms have
CUE = 0.3  # the part of the figure that the form of the sentence has, where the question tells which
DECIMALS = 9  # figures are compared rounded, so that the order of a sum cannot break a tie


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexical(Annotator):
    """Best sentence by weighted coverage of the query's terms; the ranking is by the same figure.

    A term weighs the geometric mean of its IDF in the collection and in the row: what all passages of a row hold tells
    none of them from another. The figure of a sentence is the share of the query's weight that it covers; neighbouring
    terms of the query that stand side by side count too (the sequential dependence model of Metzler and Croft, SIGIR
    2005), and so does the form that the question asks for (a number, a date, a definition). A passage answers when its
    best sentence reaches a share of the figure of the row's best passage.

    It measures words and cannot tell a passage that answers from one that talks about the subject in the same words, so
    its labels are a baseline to compare an LLM with, or a way to try the pipeline without one.

    Args:
        threshold: The least figure of a snippet, from 0 to 1; below it the passage has ``no_answer``.
        of_best: The least share of the best figure in the row, from 0 to 1. It applies where the passage is one of the
            row's; 0 for the threshold alone.
        language: Snowball stemmer for the terms, ``None`` for none. Scripts without spaces are compared in bigrams.
            The words of which questions are built, and the forms that they ask for, are known for English.
        frequencies: Document frequency of each term, from :meth:`fitted`. Without them the passages of the row are
            the collection, which is a poor one.
        documents: Size of that collection, in passages.

    Raises:
        ConfigurationError: a value is out of range, or the stemmer is unknown.
    """

    NAME: ClassVar[str] = "lexical"
    SUMMARY: ClassVar[str] = "the word-overlap baseline"
    awaits: ClassVar[bool] = False
    baseline: ClassVar[bool] = True

    threshold: float = THRESHOLD
    of_best: float = OF_BEST
    language: str | None = "english"
    frequencies: Mapping[str, int] | None = field(default=None, repr=False)
    documents: int = 0

    def __post_init__(self) -> None:
        for name, share in (("threshold", self.threshold), ("of_best", self.of_best)):
            if not 0 <= share <= 1:
                raise ConfigurationError(f"{name} is {share}; a share from 0 to 1 was expected.")
        if self.frequencies is not None and self.documents < 1:
            raise ConfigurationError("frequencies were given without documents; use Lexical.fitted(dataset).")
        stemmer(self.language)

    @classmethod
    def fitted(cls, rows: Iterable[Mapping[str, Any]], **options: Any) -> Lexical:
        """A baseline whose term statistics come from the passages of canonical ``rows``, each passage counted once."""
        language = options.get("language", "english")
        frequencies: Counter[str] = Counter()
        seen: set[int] = set()
        for row in rows:
            for column in (POSITIVE.passages, NEGATIVE.passages):
                for passage in passages_of(row, column):
                    text = text_of(passage)
                    if hash(text) not in seen:
                        seen.add(hash(text))
                        frequencies.update(terms(text, language))
        return cls(frequencies=dict(frequencies), documents=max(1, len(seen)), **options)

    @property
    def needs_fitting(self) -> bool:
        """Whether there are no term statistics yet."""
        return self.frequencies is None

    def fitted_on(self, rows: Iterable[Mapping[str, Any]]) -> Lexical:
        """The same baseline with the term statistics of ``rows``."""
        return self.fitted(rows, **self._parameters())

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The sentence of the highest figure; the first of equals."""
        row, (name, text) = self._row(request), _shown(request.passage)
        figure, start, end = row.best_in(text)
        detail = f"coverage {figure:.3f}"
        if not self._answers(figure, text_of(request.passage), row):
            return Snippet(status=records.NO_ANSWER, detail=detail)
        return Snippet(
            status=records.GROUNDED, snippet=text[start:end], start=start, end=end, field=name, detail=detail
        )

    async def ranking(self, request: RankingRequest) -> Ranking:
        """The candidates by the figure of their best sentence; equal figures share a tier."""
        row = self._row(request)
        figures = [row.figure_of(text) for text in request.candidates]
        order = sorted(range(len(figures)), key=lambda i: -figures[i])
        tiers = tuple(tuple(tier) for _, tier in groupby(order, key=lambda i: figures[i]))
        return Ranking(status=records.RANKED, tiers=tiers)

    def coverage(self, request: SnippetRequest | GradeRequest) -> float:
        """The figure of the best sentence of the passage."""
        return self._row(request).best_in(_shown(request.passage)[1]).figure

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """A candidate with a snippet is ``better`` where its figure is that of the best positive or above it."""
        row = self._row(request)
        figures = {text: row.figure_of(text) for text in (*request.positives, *request.candidates)}
        answers = {text for text, figure in figures.items() if self._answers(figure, text, row)}
        best = max((figures[text] for text in request.positives if text in answers), default=0.0)
        verdicts = []
        for text in request.candidates:
            verdict = records.BETTER if figures[text] >= best else records.WORSE
            said = verdict if text in answers else records.NO_MATCH
            verdicts.append(Verdict(status=records.JUDGED, verdict=said, detail=f"coverage {figures[text]:.3f}"))
        return tuple(verdicts)

    async def grade(self, request: GradeRequest) -> Grade:
        """0 without a snippet, else 1 to 3 by the third of the way from the threshold to the full figure."""
        figure, grade = self.coverage(request), 0
        if self._answers(figure, text_of(request.passage), self._row(request)):
            share = (figure - self.threshold) / (1 - self.threshold) if self.threshold < 1 else 1.0
            grade = min(3, 1 + math.floor(3 * share))
        return Grade(status=records.JUDGED, grade=grade, detail=f"coverage {figure:.3f}")

    def identity(self, stage: str) -> dict[str, Any]:
        """The parameters, and a hash of the term statistics."""
        statistics = None if self.frequencies is None else digest([dict(self.frequencies), self.documents])
        return {"annotator": "lexical", "version": VERSION, **self._parameters(), "statistics": statistics}

    def description(self) -> dict[str, Any]:
        """The parameters, for the card."""
        own = {"annotator": "lexical baseline", "baseline": True}
        return {**own, **self._parameters(), "fitted_on_passages": self.documents or None}

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "of_best": self.of_best, "language": self.language}

    def _row(self, request: SnippetRequest | RankingRequest | VerdictRequest | GradeRequest) -> _Row:
        return _row(self, request.query, request.background)

    def _answers(self, figure: float, text: str, row: _Row) -> bool:
        """Whether the figure of a passage is one of an answer; ``text`` tells whether it is one of the row."""
        least = max(self.threshold, self.of_best * row.best if row.holds(text) else 0.0)
        return figure > 0 and figure >= least


class _Best(NamedTuple):
    """The best sentence of a text, and its figure."""

    figure: float
    start: int = 0
    end: int = 0


class _Row:
    """A query beside the passages of its row: what its terms weigh there, and how well a text covers them."""

    def __init__(self, annotator: Lexical, query: str, background: tuple[str, ...]) -> None:
        self._language = annotator.language
        self._cue = cue_of(query, self._language)
        self._bests: dict[str, _Best] = {}
        self._passages = {one_line(text): text for text in background}
        every = sequence(query, self._language)
        asked = tuple(term for term in every if term not in scaffold(self._language)) or every
        self._weights = self._weigh(annotator, sorted(set(asked)))
        pairs = (pair for pair in pairwise(asked) if pair[0] != pair[1] and self._weights.keys() >= set(pair))
        self._pairs = _shares({pair: min(self._weights[pair[0]], self._weights[pair[1]]) for pair in pairs})

    def best_in(self, text: str) -> _Best:
        """The best sentence; the first of equals."""
        found = self._bests.get(text)
        if found is None:
            figures = (
                _Best(self._figure(text[start:end], terms), start, end)
                for start, end, terms in _read(text, self._language)
            )
            found = self._bests[text] = max(figures, key=lambda one: one.figure, default=_Best(0.0))
        return found

    def figure_of(self, shown: str) -> float:
        """The figure of a text as it is shown to be ranked: of a passage of the row, title and all, or of words."""
        known = self._passages.get(one_line(shown))
        return self.best_in(shown if known is None else _body(known)).figure

    def holds(self, text: str) -> bool:
        """Whether this is the text of a passage of the row."""
        return one_line(text) in self._passages

    @cached_property
    def best(self) -> float:
        """The highest figure of a passage of the row."""
        return max((self.best_in(_body(text)).figure for text in self._passages.values()), default=0.0)

    def _figure(self, sentence: str, read: tuple[str, ...]) -> float:
        """The figure of a sentence, which has the terms ``read``."""
        figure = sum(weight for term, weight in self._weights.items() if term in read)
        if not figure:
            return 0.0
        if self._pairs:
            there = set(pairwise(term for term in read if term not in scaffold(self._language)))
            beside = sum(weight for pair, weight in self._pairs.items() if pair in there)
            figure = (1 - ORDER) * figure + ORDER * beside
        if self._cue is not None:
            figure = (1 - CUE) * figure + CUE * self._cue(sentence, self._weights)
        return round(figure, DECIMALS)

    def _weigh(self, annotator: Lexical, asked: list[str]) -> dict[str, float]:
        """The share of each term in the weight of the query; a term that no passage holds tells none from another."""
        row = [terms(text, self._language) for text in self._passages.values()]
        found = {}
        for term in asked:
            here = sum(term in held for held in row)
            idf = [_idf(here, len(row))] if row else []
            if annotator.frequencies is not None:
                there = annotator.frequencies.get(term, 0)
                idf.append(_idf(there, annotator.documents) if there else 0.0)
            if (here or not row) and idf:
                found[term] = math.prod(idf) ** (1 / len(idf))
        return _shares(found)


@lru_cache(maxsize=32)
def _row(annotator: Lexical, query: str, background: tuple[str, ...]) -> _Row:
    """The row of a request: its requests come one after the other."""
    return _Row(annotator, query, background)


@lru_cache(maxsize=4096)
def _read(text: str, language: str | None) -> list[tuple[int, int, tuple[str, ...]]]:
    """Start, end and terms of each sentence."""
    return [(start, end, sequence(text[start:end], language)) for start, end in sentences(text)]


def _body(text: str) -> str:
    """Title and text of a passage without the title: a first line that ends like no sentence, and is no paragraph.

    :func:`~arhn_datasets.rows.records.text_of` does not say whether there was a title.
    """
    title, _, rest = text.partition("\n")
    ends = title.rstrip(_CLOSING)[-1:] in _STOPS
    return text if ends or rest.startswith("\n") or not rest.strip() else rest


def _shares(weights: dict[K, float]) -> dict[K, float]:
    """The weights as shares of their sum, without those of nothing."""
    total = sum(weights.values())
    return {one: weight / total for one, weight in weights.items() if weight} if total else {}


def _idf(held: int, documents: int) -> float:
    return math.log(1 + (documents - held + 0.5) / (held + 0.5))


def _shown(passage: Passage) -> tuple[str, str]:
    """The field that is read, and what stands there."""
    name = "text" if str(passage.get("text") or "").strip() else "title"
    return name, str(passage.get(name) or "")
