"""The lexical baseline: training-free, deterministic, and no LLM."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.records import (
    BETTER,
    GROUNDED,
    JUDGED,
    NEGATIVES,
    NO_ANSWER,
    NO_MATCH,
    POSITIVES,
    RANKED,
    WORSE,
    Grade,
    GradeRequest,
    Passage,
    Ranking,
    RankingRequest,
    Snippet,
    SnippetRequest,
    Verdict,
    VerdictRequest,
    digest,
    passages_of,
    text_of,
)

VERSION = 1  # raised whenever the same text gets another figure
FITTED_THRESHOLD, ROW_THRESHOLD = 0.4, 0.3
DECIMALS = 9  # figures are compared rounded, so that the order of a sum cannot break a tie

_WORD = re.compile(r"\w+")
# Ends of sentences: a stop before white space and a new start, a stop of scripts without spaces, an empty line.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*(?=\s+[\"'“‘«(\[]*[^\W_a-z])|[。！？｡؟।]+[」』”）)]*|\n\s*\n"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexical(Annotator):
    """Best sentence by IDF-weighted coverage of the query's terms; the ranking is by the same figure.

    It cannot tell a passage that answers from one that talks about the subject, so its labels are a baseline to
    compare an LLM with, or a way to try the pipeline without one.

    Args:
        threshold: Share of the query's IDF mass that a sentence must cover to be a snippet, from 0 to 1; below it the
            passage has ``no_answer``. By default 0.4 with ``frequencies`` and 0.3 without.
        language: Snowball stemmer for the terms, ``None`` for none. Scripts without spaces are compared in bigrams.
        frequencies: Document frequency of each term, from :meth:`fitted`. Without them the passages of the row are
            the collection, which is a poor one.
        documents: Size of that collection, in passages.

    Raises:
        ConfigurationError: a value is out of range, or the stemmer is unknown.
    """

    awaits: ClassVar[bool] = False
    baseline: ClassVar[bool] = True

    threshold: float | None = None
    language: str | None = "english"
    frequencies: Mapping[str, int] | None = field(default=None, repr=False)
    documents: int = 0

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", ROW_THRESHOLD if self.frequencies is None else FITTED_THRESHOLD)
        if not 0 <= self._least <= 1:
            raise ConfigurationError(f"threshold is {self.threshold}; a share from 0 to 1 was expected.")
        if self.frequencies is not None and self.documents < 1:
            raise ConfigurationError("frequencies were given without documents; use Lexical.fitted(dataset).")
        _stemmer(self.language)

    @classmethod
    def fitted(cls, rows: Iterable[Mapping[str, Any]], **options: Any) -> Lexical:
        """A baseline whose term statistics come from the passages of canonical ``rows``, each passage counted once."""
        language = options.get("language", "english")
        frequencies: Counter[str] = Counter()
        seen: set[int] = set()
        for row in rows:
            for column in (POSITIVES, NEGATIVES):
                for passage in passages_of(row, column):
                    text = text_of(passage)
                    if hash(text) not in seen:
                        seen.add(hash(text))
                        frequencies.update(terms(text, language))
        return cls(frequencies=dict(frequencies), documents=max(1, len(seen)), **options)

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The sentence that covers most of the query; the first of equals."""
        weights = self._weights(request.query, request.background)
        name = _field_of(request.passage)
        text = str(request.passage.get(name) or "")
        best, span = -1.0, (0, 0)
        for start, end in sentences(text):
            figure = self._coverage(text[start:end], weights)
            if figure > best:
                best, span = figure, (start, end)
        if best < self._least or best <= 0:
            return Snippet(status=NO_ANSWER, detail=f"coverage {max(best, 0):.3f}")
        start, end = span
        return Snippet(
            status=GROUNDED, snippet=text[start:end], start=start, end=end, field=name, detail=f"coverage {best:.3f}"
        )

    async def ranking(self, request: RankingRequest) -> Ranking:
        """The candidates by the coverage of their best sentence; equal figures share a tier."""
        weights = self._weights(request.query, request.background)
        figures = [
            max((self._coverage(text[start:end], weights) for start, end in sentences(text)), default=0.0)
            for text in request.candidates
        ]
        order = sorted(range(len(figures)), key=lambda i: -figures[i])
        tiers = tuple(tuple(tier) for _, tier in groupby(order, key=lambda i: figures[i]))
        return Ranking(status=RANKED, tiers=tiers)

    def coverage(self, request: SnippetRequest) -> float:
        """The share of the query's IDF mass that the best sentence of the passage covers."""
        weights = self._weights(request.query, request.background)
        text = str(request.passage.get(_field_of(request.passage)) or "")
        return max((self._coverage(text[start:end], weights) for start, end in sentences(text)), default=0.0)

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """A candidate with a snippet is ``better`` where that ranks with the best positive or above it."""
        snippets = [await self._snippet_in(text, request) for text in (*request.positives, *request.candidates)]
        held = [i for i, snippet in enumerate(snippets) if snippet.status == GROUNDED]
        ranking = await self.ranking(
            RankingRequest(
                query=request.query,
                candidates=tuple(str(snippets[i].snippet) for i in held),
                task=request.task,
                background=request.background,
            )
        )
        tier_of = {held[at]: number for number, tier in enumerate(ranking.tiers) for at in tier}
        first, none = len(request.positives), len(held)
        best = min((tier_of.get(i, none) for i in range(first)), default=none)
        return tuple(
            Verdict(
                status=JUDGED,
                verdict=NO_MATCH if i not in tier_of else BETTER if tier_of[i] <= best else WORSE,
                detail=snippets[i].detail,
            )
            for i in range(first, len(snippets))
        )

    async def grade(self, request: GradeRequest) -> Grade:
        """0 without a snippet, else 1 to 3 by the third of the way from the threshold to full coverage."""
        snippet = await self._snippet_in(request.passage, request)
        if snippet.status != GROUNDED:
            return Grade(status=JUDGED, grade=0, detail=snippet.detail)
        covered = self._coverage(str(snippet.snippet), self._weights(request.query, request.background))
        share = (covered - self._least) / (1 - self._least) if self._least < 1 else 1.0
        return Grade(status=JUDGED, grade=min(3, 1 + math.floor(3 * max(0.0, share))), detail=snippet.detail)

    async def _snippet_in(self, shown: Passage | str, request: VerdictRequest | GradeRequest) -> Snippet:
        passage = {"title": "", "text": shown} if isinstance(shown, str) else shown
        return await self.snippet(
            SnippetRequest(query=request.query, passage=passage, task=request.task, background=request.background)
        )

    def identity(self, stage: str) -> dict[str, Any]:
        """The parameters, and a hash of the term statistics."""
        statistics = None if self.frequencies is None else digest([dict(self.frequencies), self.documents])
        return {
            "annotator": "lexical",
            "version": VERSION,
            "threshold": self.threshold,
            "language": self.language,
            "statistics": statistics,
        }

    def description(self) -> dict[str, Any]:
        """The parameters, for the card."""
        return {
            "annotator": "lexical baseline",
            "baseline": True,
            "threshold": self.threshold,
            "language": self.language,
            "fitted_on_passages": self.documents or None,
        }

    @property
    def _least(self) -> float:
        assert self.threshold is not None  # set in __post_init__
        return self.threshold

    def _weights(self, query: str, background: tuple[str, ...]) -> dict[str, float]:
        """The share of each query term in the query's IDF mass."""
        wanted = sorted(terms(query, self.language))
        if self.frequencies is None:
            collection = [terms(text, self.language) for text in dict.fromkeys(background)]
            size, counts = len(collection), {term: sum(term in found for found in collection) for term in wanted}
        else:
            size, counts = self.documents, {term: self.frequencies.get(term, 0) for term in wanted}
        # A term that no passage holds tells none from another; its weight would only make every coverage small.
        held = [term for term in wanted if counts[term]]
        idf = {term: math.log(1 + (size - counts[term] + 0.5) / (counts[term] + 0.5)) for term in held}
        mass = sum(idf.values())
        return {term: value / mass for term, value in idf.items()} if mass else {}

    def _coverage(self, sentence: str, weights: Mapping[str, float]) -> float:
        found = terms(sentence, self.language)
        return round(sum(weight for term, weight in weights.items() if term in found), DECIMALS)


@lru_cache(maxsize=16384)
def terms(text: str, language: str | None = "english") -> frozenset[str]:
    """The distinct terms of ``text``: folded, stemmed words, and bigrams where a script has no spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return frozenset(term for word in _WORD.findall(folded) for term in _terms_of_word(word, language))


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of ``text`` as start and end offsets, without surrounding white space."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    spans = []
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        piece = text[start:end]
        inner = piece.strip()
        if inner:
            first = start + piece.index(inner[0])
            spans.append((first, first + len(inner)))
    return spans


@lru_cache(maxsize=65536)
def _terms_of_word(word: str, language: str | None) -> tuple[str, ...]:
    if not word.isascii() and any("\u3040" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" for c in word):
        return tuple(word[i : i + 2] for i in range(max(1, len(word) - 1)))
    stemmer = _stemmer(language)
    return (stemmer.stemWord(word) if stemmer else word,)


@lru_cache(maxsize=8)
def _stemmer(language: str | None) -> Any:
    import snowballstemmer

    if language is None:
        return None
    try:
        return snowballstemmer.stemmer(language)
    except KeyError:
        known = ", ".join(snowballstemmer.algorithms())
        raise ConfigurationError(f"There is no stemmer for {language!r}; expected one of {known}, or None.") from None


def _field_of(passage: Passage) -> str:
    return "text" if str(passage.get("text") or "").strip() else "title"
