"""Scores of passages, by a bi-encoder or a cross-encoder, or those that the rows came with: evidence without an LLM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.score_models import (
    BI_ENCODER,
    CROSS_ENCODER,
    KINDS,
    Loaded,
    Model,
    Texts,
    finite,
    load,
    model_of,
)
from arhn_datasets.evidence.stage import check_not_relabelled, check_query
from arhn_datasets.rows.options import check_choice, check_integer
from arhn_datasets.rows.records import (
    DECISION,
    LABELLED,
    NEGATIVE,
    POSITIVE,
    QUERY,
    QUERY_ID,
    Row,
    passages_of,
    types_of,
)
from arhn_datasets.rows.stage import Transform

SIMILARITIES = ("cosine", "dot")
REPLACE, MEAN, RRF = "replace", "mean", "rrf"
FUSIONS = (REPLACE, MEAN, RRF)
DTYPES = ("float32", "float16", "bfloat16")
_COLUMNS = tuple(side.scores for side in LABELLED)
RRF_K = 60  # Cormack et al., SIGIR 2009


@dataclass(frozen=True, eq=False)
class Scores(Transform):
    """Adds ``positive_scores`` and ``negative_scores``, aligned with the passage lists: higher is more relevant.

    The scores come from one of three: a ``model`` of sentence-transformers; ``columns`` that the rows have; a ``field``
    of the passages, such as the ``score`` that ``arhn.adapt`` makes of FlagEmbedding's ``pos_scores`` and
    ``neg_scores``. A score that is null or not a finite number becomes null.

    A model is asked about all rows of a call at once, each text only once, so map it in batches:
    ``ds.map(arhn.Scores("intfloat/e5-base-v2", query_prompt="query: ", passage_prompt="passage: "), batched=True)``.
    A cosine is from -1 to 1, what a cross-encoder gives depends on it.

    Args:
        model: Hub id or folder of a bi-encoder or a cross-encoder.
        revision: Commit sha, branch or tag on the Hub.
        kind: ``"bi-encoder"`` or ``"cross-encoder"``; by default what the files of the model say.
        similarity: Of a bi-encoder, ``"cosine"`` or ``"dot"``; by default the model's own.
        query_prompt: Text in front of each query; by default the model's own prompt for queries, ``""`` for none. A
            cross-encoder has none of its own.
        passage_prompt: The same for passages.
        separator: Between title and text.
        batch_size: Texts, or pairs, that go through the model together.
        device: ``"cuda"``, ``"cpu"``, ...; by default a GPU where there is one.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; by default as sentence-transformers loads the model.
        columns: The names of the columns with the scores of positives and of negatives.
        field: The name of the field of the passages.
        fuse: What becomes of scores that are there already: ``"replace"``, or the ``"mean"`` of old and new, or
            ``"rrf"``, reciprocal rank fusion (``1 / (60 + rank)``, summed) within the row. A passage that has only one
            of both keeps no score.

    Raises:
        ConfigurationError: a value is out of range, not one source is named, or the model gives several scores.
        MissingDependencyError: sentence-transformers is not installed.
        SchemaError: the rows are not in the canonical form, were relabelled, or lack the scores that they should have.
    """

    NAME: ClassVar[str] = "scores"
    OPTIONAL: ClassVar[tuple[str, ...]] = (QUERY_ID, DECISION, POSITIVE.scores, NEGATIVE.scores)

    model: str | None = None
    _: KW_ONLY
    revision: str | None = None
    kind: str | None = None
    similarity: str | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    separator: str = " "
    batch_size: int = 32
    device: str | None = None
    dtype: str | None = None
    columns: tuple[str, str] | None = None
    field: str | None = None
    fuse: str = REPLACE

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.model, self.columns, self.field)) != 1:
            raise ConfigurationError(
                "arhn.Scores takes one of a model, columns= and field=; for example "
                'arhn.Scores("intfloat/e5-base-v2") or arhn.Scores(field="score").'
            )
        if self.model is not None and not isinstance(self.model, (str, os.PathLike)):
            raise ConfigurationError(
                f"model is a {type(self.model).__name__}; a Hub id or a folder was expected, which every process can "
                "load. Save a model of yours first: model.save_pretrained(folder)."
            )
        if self.model is not None:
            object.__setattr__(self, "model", os.fspath(self.model))
        if self.columns is not None:
            columns = tuple(self.columns) if not isinstance(self.columns, str) else (self.columns,)
            if len(columns) != 2:
                raise ConfigurationError(f"columns is {self.columns!r}; the names of two columns were expected.")
            object.__setattr__(self, "columns", columns)
        check_choice("kind", self.kind, KINDS, optional=True)
        check_choice("similarity", self.similarity, SIMILARITIES, optional=True)
        check_choice("dtype", self.dtype, DTYPES, optional=True)
        check_choice("fuse", self.fuse, FUSIONS)
        if self.kind == CROSS_ENCODER and self.similarity is not None:
            raise ConfigurationError("A cross-encoder has no similarity; leave it out, or name a bi-encoder.")
        check_integer("batch_size", self.batch_size, least=1)

    @property
    def required(self) -> tuple[str, ...]:
        """The canonical columns, and those with the scores."""
        return (QUERY, POSITIVE.passages, NEGATIVE.passages, *(self.columns or ()))

    def identity(self) -> dict[str, Any]:
        """Model, revision and all that changes the scores; batch size and device are no part of it."""
        fused = {"fuse": self.fuse}
        if self.columns is not None:
            return {"columns": list(self.columns), **fused}
        if self.field is not None:
            return {"field": self.field, **fused}
        model = self._exact_model()
        options = {
            name: getattr(self, name)
            for name in ("similarity", "query_prompt", "passage_prompt", "separator", "dtype")
            if name != "similarity" or model.kind == BI_ENCODER
        }
        return {**model.identity(), **options, **fused}

    def description(self) -> dict[str, Any]:
        """Where the scores are from, for the card."""
        return {"annotator": "passage scores", "baseline": False, **self.identity()}

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Lists of doubles."""
        return types_of((self.NAME,), LABELLED)

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The scores of each row; all texts of all rows go through the model together.

        Raises:
            SchemaError: a row was relabelled, or lacks its scores, or the query that a model reads.
        """
        for row in rows:
            if self.model is not None:
                check_query(self.NAME, row)
            check_not_relabelled(self.NAME, row)
        scored = self._by_model(rows) if self.model is not None else [self._of_row(row) for row in rows]
        return [self._fused(row, scores) for row, scores in zip(rows, scored, strict=True)]

    def _advice(self, missing: Sequence[str]) -> str:
        if set(missing) <= set(self.columns or ()):
            return "Name the columns with the scores of positives and of negatives: arhn.Scores(columns=(...))."
        return super()._advice(missing)

    def _of_row(self, row: Row) -> Row:
        """The scores that a row came with."""
        scores = {}
        for at, side in enumerate(LABELLED):
            passages = passages_of(row, side.passages)
            if self.columns is not None:
                values = row[self.columns[at]]
                values = [None] * len(passages) if values is None else values
                if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != len(passages):
                    said = f"{len(values)} values" if hasattr(values, "__len__") else repr(values)
                    raise SchemaError(
                        f"Column {self.columns[at]!r} has {said} for {len(passages)} passages in {side.passages!r} "
                        f"(query {row[QUERY]!r}); one score each was expected."
                    )
            else:
                field = str(self.field)
                values = [passage.get(field) for passage in passages]
                if passages and not any(field in passage for passage in passages):
                    raise SchemaError(
                        f"The passages in {side.passages!r} have no field {field!r} (query {row[QUERY]!r}); their "
                        f"fields are {sorted(passages[0])}."
                    )
            scores[side.scores] = [_number(value, row) for value in values]
        return scores

    def _by_model(self, rows: Sequence[Row]) -> list[Row]:
        texts = Texts()
        pairs = [
            (texts.query(row[QUERY]), texts.passage(passage, self.separator))
            for row in rows
            for side in LABELLED
            for passage in passages_of(row, side.passages)
        ]
        scores = iter(self._loaded().scores(self, texts, pairs))
        return [{side.scores: [next(scores) for _ in row[side.passages]] for side in LABELLED} for row in rows]

    def _fused(self, row: Row, new: Row) -> Row:
        if self.fuse == REPLACE or any(row.get(column) is None for column in _COLUMNS):
            return new
        old = {column: [finite(value) for value in row[column]] for column in _COLUMNS}
        if self.fuse == RRF:
            old, new = _reciprocal_ranks(old), _reciprocal_ranks(new)
        share = 1.0 if self.fuse == RRF else 0.5
        fused = {}
        for column in _COLUMNS:
            if len(old[column]) != len(new[column]):
                raise SchemaError(
                    f"Column {column!r} has {len(old[column])} values for {len(new[column])} passages (query "
                    f"{row[QUERY]!r}); one each was expected. Remove it and score the rows again."
                )
            pairs = zip(old[column], new[column], strict=True)
            fused[column] = [None if None in pair else share * (pair[0] + pair[1]) for pair in pairs]
        return fused

    def _exact_model(self) -> Model:
        assert self.model is not None
        return model_of(self.model, self.revision, self.kind)

    def _loaded(self) -> Loaded:
        model = self._exact_model()
        if self.similarity is not None and model.kind == CROSS_ENCODER:
            raise ConfigurationError(f"{self.model} is a cross-encoder and has no similarity; leave it out.")
        return load(model, self.device, self.dtype, os.getpid())


def _number(value: Any, row: Row) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bool)) or not isinstance(value, (int, float)):
        try:
            value = None if isinstance(value, (str, bool)) else value.item()  # a number of numpy
        except AttributeError:
            value = None
        if value is None:
            raise SchemaError(f"A score is no number (query {row[QUERY]!r}); a number or null was expected.")
    return finite(float(value))


def _reciprocal_ranks(scores: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """``1 / (60 + rank)`` of each passage of a row by its score; equal scores share the best rank."""
    known = sorted((score for values in scores.values() for score in values if score is not None), reverse=True)
    rank: dict[float, int] = {}
    for at, score in enumerate(known, 1):
        rank.setdefault(score, at)
    return {
        column: [None if score is None else 1.0 / (RRF_K + rank[score]) for score in values]
        for column, values in scores.items()
    }
