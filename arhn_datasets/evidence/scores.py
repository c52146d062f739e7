"""Scores of passages, by a bi-encoder or a cross-encoder, or those that the rows came with: evidence without an LLM.

The models of sentence-transformers are asked by :mod:`arhn_datasets.evidence.score_models`, those behind a server by
:mod:`arhn_datasets.annotators.scorer`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.annotators.client.contract import ConnectionOptions, base_url, documented, shown_url
from arhn_datasets.annotators.client.scoring import BI_ENCODER, CROSS_ENCODER, ScoringInfo
from arhn_datasets.annotators.client.store import directory_of
from arhn_datasets.annotators.scorer import Scorer, ServedModel, key_of_environment, scorer_of
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.score_models import Model, finite, load, model_of
from arhn_datasets.evidence.stage import EvidenceStage, check_source, check_urls
from arhn_datasets.rows import background, records
from arhn_datasets.rows.options import Option, check_choice, check_integer
from arhn_datasets.rows.records import LABELLED, NEGATIVE, POSITIVE, QUERY, Row, passages_of, text_of

MODEL_KINDS = (BI_ENCODER, CROSS_ENCODER)
SIMILARITIES = ("cosine", "dot")
REPLACE, MEAN, RRF = "replace", "mean", "rrf"
FUSIONS = (REPLACE, MEAN, RRF)
DTYPES = ("float32", "float16", "bfloat16")
SAME_AS_THE_LLM = ("timeout", "give_up_after", "cache")
"""The options of the connection to an LLM that a command gives to the server of scores as well."""
_OF_AN_ENDPOINT = {"score_endpoint", "score_api_key", "score_raw", "score_field", "score_columns"}
_WITH_AN_ENDPOINT = {f"score_{name}" for name in ("model", "api_key", "raw", "revision", "kind", "similarity")}
_WITH_AN_ENDPOINT |= {"score_query_prompt", "score_passage_prompt"}
_CALLED = {"score_raw": "raw_scores"}
_COLUMNS = tuple(side.scores for side in LABELLED)
RRF_K = 60  # Cormack et al., SIGIR 2009


@documented
@dataclass(frozen=True, eq=False, repr=False)
class Scores(EvidenceStage, ConnectionOptions):
    """Adds ``positive_scores`` and ``negative_scores``, aligned with the passage lists: higher is more relevant.

    The scores come from one of four: a ``model`` of sentence-transformers; a model behind an ``endpoint``; ``columns``
    that the rows have; a ``field`` of the passages, such as the ``score`` that ``arhn.adapt`` makes of FlagEmbedding's
    ``pos_scores`` and ``neg_scores``. A score that is null or not a finite number becomes null.

    A model is asked about all rows of a call at once, each text only once, so map it in batches:
    ``ds.map(arhn.Scores("intfloat/e5-base-v2", query_prompt="query: ", passage_prompt="passage: "), batched=True)``.
    A cosine is from -1 to 1, what a cross-encoder gives depends on it.

    A server (``endpoint``) is asked as that of an LLM: the same limits, retries, waiting and store of replies, which
    holds the score of each pair. It gives what the model gives here, within 1e-3, if it has the same files: a reranker
    of text-embeddings-inference the sigmoid of its logit, as a cross-encoder of sentence-transformers does unless its
    files name another activation (then ``raw_scores=True``); other servers of ``/v1/rerank`` on a scale of their own.
    Vectors are compared here. A reply that is not exactly one finite number for each text that was sent gives no score;
    a passage whose request fails has null, a warning tells why, and the next run asks again. What is longer than the
    model reads is cut, as it is here, and counted (:meth:`statistics`).

    Args:
        model: Hub id or folder of a bi-encoder or a cross-encoder. With ``endpoint`` the model that has to answer
            there, by default the one that the server names.
        endpoint: URL of a server of a reranker or an embedding model, or several of the same model:
            text-embeddings-inference, or one with ``/v1/rerank`` (vLLM, llama-server, Infinity, Cohere) or
            ``/v1/embeddings``.
        revision: Commit sha, branch or tag on the Hub; of a served model its commit sha.
        kind: ``"bi-encoder"`` or ``"cross-encoder"``; by default what the files of the model say, or the server.
        similarity: Of a bi-encoder, ``"cosine"`` or ``"dot"``; by default the model's own, and of a served one the
            cosine.
        query_prompt: Text in front of each query; by default the model's own prompt for queries, ``""`` for none. A
            cross-encoder has none of its own, and of servers only text-embeddings-inference knows the model's.
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
        raw_scores: Of a reranker behind text-embeddings-inference, the logits and not their sigmoid.
        cache: Folder of the store of scores from a server, ``"none"`` for none; by default ``ARHN_CACHE`` or the user's
            cache.
        reuse: Leave rows alone in which every passage has a score already.

    Raises:
        ConfigurationError: a value is out of range, not one source is named, or the model gives several scores.
        MissingDependencyError: sentence-transformers is not installed.
        SchemaError: the rows are not in the canonical form, were relabelled, or lack the scores that they should have.
    """

    NAME: ClassVar[str] = "scores"
    OPTIONAL: ClassVar[tuple[str, ...]] = (records.QUERY_ID, records.DECISION, POSITIVE.scores, NEGATIVE.scores)
    SOURCES: ClassVar[Mapping[str, Option]] = {
        "score_endpoint": Option(help="a server of a reranker or embedding model", metavar="URL", repeatable=True),
        "score_model": Option(
            help="a bi-encoder or cross-encoder in this process; with --score-endpoint the one to ask for there",
            metavar="ID_OR_FOLDER",
        ),
        "score_field": Option(help="instead, a field of the passages with scores of their own", metavar="NAME"),
        "score_columns": Option(help="instead, the columns with scores of both sides", metavar="POSITIVE,NEGATIVE"),
    }
    """Whose scores a command can name; one of them."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SOURCES,
        "score_api_key": Option(
            help="sent to --score-endpoint alone; default: ARHN_SCORE_API_KEY, and never the key of the LLM",
            metavar="KEY",
        ),
        "score_raw": Option(help="of a reranker behind text-embeddings-inference, the logits", switch=True),
        "score_revision": Option(help="commit, branch or tag of the model", metavar="SHA"),
        "score_kind": Option(help="by default what the files of the model say, or the server", choices=MODEL_KINDS),
        "score_similarity": Option(help="of a bi-encoder; by default the model's own", choices=SIMILARITIES),
        "score_query_prompt": Option(help="text in front of each query; by default the model's own", metavar="TEXT"),
        "score_passage_prompt": Option(help="the same for passages", metavar="TEXT"),
        "score_batch_size": Option(help="texts or pairs that go through the model together", metavar="N"),
        "score_device": Option(help="by default a GPU where there is one", metavar="NAME"),
        "score_dtype": Option(help="by default as the model is loaded", choices=DTYPES),
    }

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
    endpoint: str | tuple[str, ...] | None = None
    raw_scores: bool = False
    cache: str | os.PathLike[str] | None = None

    @classmethod
    def from_options(cls, given: Mapping[str, Any], annotator: object = None, tasks: object = None) -> Scores:
        """The scores that the options of a command name; ``given`` has None for what was not given.

        Raises:
            ConfigurationError: not one source is named, or an option does not go with it.
        """
        options = {name: given[name] for name in cls.OPTIONS if given.get(name) not in (None, False, [])}
        flags = {name: f"--{name.replace('_', '-')}" for name in cls.OPTIONS}
        named = [name for name in cls.SOURCES if name in options]
        if named[:2] == ["score_endpoint", "score_model"]:
            named.remove("score_model")  # the one to ask for there
        if len(named) != 1:
            found = f"got {' and '.join(flags[name] for name in named)}" if named else "says not whose scores these are"
            sources = ", ".join(f"{flags[name]} {option.metavar}" for name, option in cls.SOURCES.items())
            raise ConfigurationError(f"--evidence scores {found}; one of {sources} was expected.")
        goes = {"score_endpoint": _WITH_AN_ENDPOINT, "score_model": set(cls.OPTIONS) - _OF_AN_ENDPOINT}
        if others := [flags[name] for name in options if name not in {*named, *goes.get(named[0], ())}]:
            raise ConfigurationError(f"{', '.join(others)} does not go with {flags[named[0]]}; leave one of both out.")
        known = {_CALLED.get(name, name.removeprefix("score_")): value for name, value in options.items()}
        if named == ["score_columns"]:
            known["columns"] = tuple(known["columns"].split(","))
        if named == ["score_endpoint"]:
            # An empty key is none: that of the LLM, in ARHN_API_KEY, is for another server.
            known.setdefault("api_key", os.environ.get("ARHN_SCORE_API_KEY", ""))
            known |= {name: given[name] for name in SAME_AS_THE_LLM if given.get(name) is not None}
        return cls(**known)

    @property
    def on_gpu(self) -> bool:
        """Whether each process that works on it needs a GPU of its own, where there are some."""
        return self.model is not None and self.endpoint is None

    def __post_init__(self) -> None:
        local = self.model if self.endpoint is None else None
        if sum(given is not None for given in (local, self.endpoint, self.columns, self.field)) != 1:
            raise ConfigurationError(
                "arhn.Scores takes one of a model, endpoint=, columns= and field=; for example "
                'arhn.Scores("intfloat/e5-base-v2"), arhn.Scores(endpoint="http://localhost:8080") or '
                'arhn.Scores(field="score").'
            )
        self._check_served()
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
        check_choice("kind", self.kind, MODEL_KINDS, optional=True)
        check_choice("similarity", self.similarity, SIMILARITIES, optional=True)
        check_choice("dtype", self.dtype, DTYPES, optional=True)
        check_choice("fuse", self.fuse, FUSIONS)
        if self.kind == CROSS_ENCODER and self.similarity is not None:
            raise ConfigurationError("A cross-encoder has no similarity; leave it out, or name a bi-encoder.")
        check_integer("batch_size", self.batch_size, least=1)

    def _check_served(self) -> None:
        check_urls(self.endpoint)
        self.check_connection()
        if self.endpoint is not None:
            urls = (self.endpoint,) if isinstance(self.endpoint, str) else tuple(self.endpoint)
            if not urls:
                raise ConfigurationError("endpoint is empty; the URL of a server was expected, or several.")
            object.__setattr__(self, "endpoint", tuple(base_url(url) for url in urls))
        elsewhere = ("device", "dtype") if self.endpoint is not None else ("raw_scores",)
        if given := [name for name in elsewhere if getattr(self, name)]:
            place = "a model in this process" if self.endpoint is not None else "a reranker behind endpoint="
            raise ConfigurationError(f"{given[0]} is for {place}; leave it out.")

    def __repr__(self) -> str:
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        if isinstance(self.endpoint, tuple):
            given["endpoint"] = tuple(map(shown_url, self.endpoint))  # without a password
        given.pop("api_key", None)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

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
        model = self._exact_model() if self.endpoint is None else self._served_model()
        options = {
            name: getattr(self, name)
            for name in ("similarity", "query_prompt", "passage_prompt", "separator", "dtype")
            if name != "similarity" or model.kind == BI_ENCODER
        }
        served = {} if self.endpoint is None else {"served": model.path, "raw_scores": self.raw_scores}
        return {**model.identity(), **options, **served, **fused}

    def description(self) -> dict[str, Any]:
        """Where the scores are from, for the card."""
        return {"annotator": "passage scores", "baseline": False, **self.identity()}

    @property
    def awaits(self) -> bool:
        """Whether a server is asked."""
        return self.endpoint is not None

    def statistics(self) -> dict[str, Any]:
        """Requests and retries so far in this process, and pairs: all, from the store, cut, and without a score.

        Empty where no server is asked.
        """

        async def read() -> dict[str, Any]:
            return self._scorer().statistics()

        return background.run(read()) if self.awaits else {}

    def causes(self) -> Mapping[str, int]:
        """Why pairs have no score, in the server's words, and how many so far in this process."""

        async def read() -> Mapping[str, int]:
            return dict(self._scorer().causes)

        return background.run(read()) if self.awaits else {}

    def requests(self, rows: pa.Table) -> int:
        """About one a row of a server, none of a model in this process."""
        return rows.num_rows if self.awaits else 0

    def kept_at(self, place: Callable[[Path], Path]) -> Scores:
        """These scores with their store in the folder that ``place`` gives for it; none stays none."""
        directory = directory_of(self.cache) if self.awaits else None
        return self if directory is None else replace(self, cache=place(directory))

    def shared_by(self, processes: int) -> Scores:
        """These scores with one of ``processes`` parts of the server's limit, and with this process's key."""
        if not isinstance(self.endpoint, tuple):
            return self
        key = key_of_environment(self.endpoint) if self.api_key is None else self.api_key
        return replace(self, processes=self.processes * processes, api_key=key)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """Lists of doubles."""
        return records.types_of((self.NAME,), LABELLED)

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The scores of each row; all texts of all rows go through the model together.

        Raises:
            SchemaError: a row was relabelled, or lacks its scores, or the query that a model reads.
        """
        for row in rows:
            check_source(self.NAME, row, asks=self.awaits or self.model is not None)
        asked = [row for row in rows if self._known(row) is None]
        if self.awaits:
            scored = await background.gathered(self._by_server(row) for row in asked)
        else:
            scored = self._by_model(asked) if self.model is not None else [self._of_row(row) for row in asked]
        fused = iter([self._fused(row, scores) for row, scores in zip(asked, scored, strict=True)])
        return [next(fused) if (known := self._known(row)) is None else known for row in rows]

    @property
    def reusable(self) -> bool:
        """Whether a model gives the scores, and these alone."""
        return self.columns is None and self.field is None and self.fuse == REPLACE

    def _known(self, row: Row) -> Row | None:
        known = super()._known(row)
        return None if known is None or any(None in values for values in known.values()) else known

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
        queries: dict[str, int] = defaultdict(count().__next__)
        passages: dict[str, int] = defaultdict(count().__next__)
        pairs = [
            (queries[row[QUERY]], passages[text_of(passage, self.separator)])
            for row in rows
            for side in LABELLED
            for passage in passages_of(row, side.passages)
        ]
        model = self._exact_model()
        if self.similarity is not None and model.kind == CROSS_ENCODER:
            raise ConfigurationError(f"{self.model} is a cross-encoder and has no similarity; leave it out.")
        loaded = load(model, self.device, self.dtype, os.getpid())
        scores = iter(loaded.scores(self, (list(queries), list(passages)), pairs))
        return [{side.scores: [next(scores) for _ in row[side.passages]] for side in LABELLED} for row in rows]

    async def _by_server(self, row: Row) -> Row:
        passages = {
            side: [text_of(one, self.separator) for one in passages_of(row, side.passages)] for side in LABELLED
        }
        texts = [text for side in LABELLED for text in passages[side]]
        scores = iter(await self._scorer().scores(row[QUERY], texts) if texts else ())
        return {side.scores: [next(scores) for _ in passages[side]] for side in LABELLED}

    def _scorer(self) -> Scorer:
        """What asks the servers; on the background loop."""
        assert isinstance(self.endpoint, tuple)
        asked = ServedModel(
            urls=self.endpoint,
            model=self.model,
            revision=self.revision,
            kind=self.kind,
            raw=self.raw_scores,
            similarity=self.similarity,
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
            cache=None if self.cache is None else os.fspath(self.cache),
        )
        return scorer_of(asked, ConnectionOptions(**self.connection()))

    def _served_model(self) -> Model:
        """The model as configured, or as the server names it."""
        if self.model is not None and self.revision is not None and self.kind is not None:
            return Model("named", self.model, self.revision, self.revision, self.kind)

        async def read() -> ScoringInfo:
            return await self._scorer().info()

        info = background.run(read())
        return Model(info.api, info.model, info.revision, info.revision, info.kind)

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


def _number(value: Any, row: Row) -> float | None:
    if value is None:
        return None
    plain = isinstance(value, (int, float))
    if isinstance(value, (str, bool)) or not (plain or hasattr(value, "item")):  # of numpy
        raise SchemaError(f"A score is no number (query {row[QUERY]!r}); a number or null was expected.")
    return finite(float(value if plain else value.item()))


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
