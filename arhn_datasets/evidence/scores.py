"""Scores of passages, by a bi-encoder or a cross-encoder, or those that the rows came with: evidence without an LLM.

After the stage stand the models of sentence-transformers: which one it is exactly, and how it is asked.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from arhn_datasets.annotators.local import hash_of_folder
from arhn_datasets.errors import ConfigurationError, MissingDependencyError, SchemaError
from arhn_datasets.evidence.stage import EvidenceStage, check_source
from arhn_datasets.rows import records
from arhn_datasets.rows.options import Option, check_choice, check_integer
from arhn_datasets.rows.records import LABELLED, NEGATIVE, POSITIVE, QUERY, Row, passages_of, text_of

BI_ENCODER, CROSS_ENCODER = "bi-encoder", "cross-encoder"
MODEL_KINDS = (BI_ENCODER, CROSS_ENCODER)
PAIRS_AT_ONCE = 8192
SIMILARITIES = ("cosine", "dot")
REPLACE, MEAN, RRF = "replace", "mean", "rrf"
FUSIONS = (REPLACE, MEAN, RRF)
DTYPES = ("float32", "float16", "bfloat16")
_COLUMNS = tuple(side.scores for side in LABELLED)
Texts = tuple[list[str], list[str]]
"""The distinct queries and passages of some rows, in the order in which they came."""

RRF_K = 60  # Cormack et al., SIGIR 2009


@dataclass(frozen=True, eq=False)
class Scores(EvidenceStage):
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
    OPTIONAL: ClassVar[tuple[str, ...]] = (records.QUERY_ID, records.DECISION, POSITIVE.scores, NEGATIVE.scores)
    SOURCES: ClassVar[Mapping[str, Option]] = {
        "score_model": Option(help="a bi-encoder or cross-encoder in this process", metavar="ID_OR_FOLDER"),
        "score_field": Option(help="instead, a field of the passages with scores of their own", metavar="NAME"),
        "score_columns": Option(help="instead, the columns with scores of both sides", metavar="POSITIVE,NEGATIVE"),
    }
    """Whose scores a command can name; one of them."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SOURCES,
        "score_revision": Option(help="commit, branch or tag of the model", metavar="SHA"),
        "score_kind": Option(help="by default what the files of the model say", choices=MODEL_KINDS),
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
        check_choice("kind", self.kind, MODEL_KINDS, optional=True)
        check_choice("similarity", self.similarity, SIMILARITIES, optional=True)
        check_choice("dtype", self.dtype, DTYPES, optional=True)
        check_choice("fuse", self.fuse, FUSIONS)
        if self.kind == CROSS_ENCODER and self.similarity is not None:
            raise ConfigurationError("A cross-encoder has no similarity; leave it out, or name a bi-encoder.")
        check_integer("batch_size", self.batch_size, least=1)

    @classmethod
    def from_options(cls, given: Mapping[str, Any], annotator: object = None, tasks: object = None) -> Scores:
        """The scores that the options of a command name; ``given`` has None for what was not given.

        Raises:
            ConfigurationError: not one source is named, or an option does not go with it.
        """
        options = {name.removeprefix("score_"): given[name] for name in cls.OPTIONS if given.get(name) is not None}
        flags = {name: f"--{name.replace('_', '-')} {option.metavar}" for name, option in cls.SOURCES.items()}
        named = [flag for name, flag in flags.items() if given.get(name) is not None]
        if len(named) != 1:
            found = f"got {' and '.join(named)}" if named else "says not whose scores these are"
            raise ConfigurationError(f"--evidence scores {found}; one of {', '.join(flags.values())} was expected.")
        if options.get("model") is None and len(options) > 1:
            others = [
                f"--score-{name.replace('_', '-')}" for name in list(options) if f"score_{name}" not in cls.SOURCES
            ]
            raise ConfigurationError(
                f"{named[0]} was given, and {', '.join(others)} is of --score-model; leave one of both out."
            )
        if columns := options.get("columns"):
            options["columns"] = tuple(columns.split(","))
        return cls(**options)

    @property
    def on_gpu(self) -> bool:
        """Whether each process that works on it needs a GPU of its own, where there are some."""
        return self.model is not None

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
        return records.types_of((self.NAME,), LABELLED)

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The scores of each row; all texts of all rows go through the model together.

        Raises:
            SchemaError: a row was relabelled, or lacks its scores, or the query that a model reads.
        """
        for row in rows:
            check_source(self.NAME, row, asks=self.model is not None)
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


@dataclass(frozen=True)
class Model:
    """A model, and which one it is exactly."""

    path: str
    name: str
    revision: str | None
    commit: str
    kind: str

    def identity(self) -> dict[str, Any]:
        """What changes the scores."""
        return {"model": self.name, "revision": self.commit, "kind": self.kind}


def finite(value: float | None) -> float | None:
    """The value, None where it is no finite number."""
    return value if value is not None and math.isfinite(value) else None


class LoadedModel:
    """A loaded model."""

    def __init__(self, found: Model, device: str | None, dtype: str | None) -> None:
        library = _library()
        options: dict[str, Any] = {"device": device, "revision": found.revision}
        if dtype is not None:
            options["model_kwargs"] = {"torch_dtype": dtype}
        self._crosses = found.kind == CROSS_ENCODER
        make = library.CrossEncoder if self._crosses else library.SentenceTransformer
        self._model: Any = make(found.path, **options)
        if self._crosses and getattr(self._model, "num_labels", 1) != 1:
            raise ConfigurationError(
                f"{found.name} is a cross-encoder with {self._model.num_labels} labels; one with a single score was "
                "expected."
            )

    def scores(self, options: Scores, texts: Texts, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        """The score of each pair of a query and a passage, by their numbers in the texts."""
        if not pairs:
            return []
        values = self._crossed(options, texts, pairs) if self._crosses else self._compared(options, texts, pairs)
        return [finite(value) for value in values]

    def _crossed(self, options: Scores, texts: Texts, pairs: Sequence[tuple[int, int]]) -> list[float]:
        queries, passages = texts
        before, within = options.query_prompt or "", options.passage_prompt or ""
        distinct = {pair: at for at, pair in enumerate(dict.fromkeys(pairs))}
        asked = [(f"{before}{queries[query]}", f"{within}{passages[passage]}") for query, passage in distinct]
        found = self._model.predict(asked, batch_size=options.batch_size, show_progress_bar=False)
        values: list[float] = found.astype("float64").reshape(len(asked)).tolist()
        return [values[distinct[pair]] for pair in pairs]

    def _compared(self, options: Scores, texts: Texts, pairs: Sequence[tuple[int, int]]) -> list[float]:
        import torch

        queries = self._encode("query", texts[0], options.query_prompt, options.batch_size)
        passages = self._encode("document", texts[1], options.passage_prompt, options.batch_size)
        values: list[float] = []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):  # the vectors of each pair stand beside each other
            places = torch.tensor(pairs[start : start + PAIRS_AT_ONCE], device=queries.device)
            compared = self._similarity(options.similarity)(queries[places[:, 0]], passages[places[:, 1]])
            values += compared.double().cpu().tolist()
        return values

    def _encode(self, role: str, texts: list[str], prompt: str | None, batch_size: int) -> Any:
        options = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        encode = getattr(self._model, f"encode_{role}", None)
        if encode is not None:
            return encode(texts, prompt=prompt, **options)
        if prompt is None:  # sentence-transformers before 5.0 does not know of the two roles
            names = ("query",) if role == "query" else ("document", "passage", "corpus")
            prompt = next((self._model.prompts[name] for name in names if name in self._model.prompts), None)
        return self._model.encode(texts, prompt=prompt, **options)

    def _similarity(self, name: str | None) -> Any:
        if name is None:
            return self._model.similarity_pairwise
        from sentence_transformers import util

        return util.pairwise_cos_sim if name == "cosine" else util.pairwise_dot_score


_PARENT = os.getpid()


@lru_cache(maxsize=2)
def load(found: Model, device: str | None, dtype: str | None, process: int) -> LoadedModel:
    """The model of a process, whose two last are kept."""
    if process != _PARENT:
        # A forked worker of num_proc has none of its parent's threads: a parallel region would wait for them for ever.
        import torch

        torch.set_num_threads(1)
    return LoadedModel(found, device, dtype)


def model_of(model: str, revision: str | None, kind: str | None) -> Model:
    """Which model a folder or a name of the Hub stands for."""
    folder = Path(model)
    if folder.is_dir():
        files: dict[str, Path | None] = {name: folder / name for name in _TELLING}
        commit = "files-" + hash_of_folder(folder)
        return Model(model, folder.resolve().name, None, commit, kind or _kind_of(files))
    return _find_published(model, revision, kind)


@lru_cache(maxsize=16)
def _find_published(model: str, revision: str | None, kind: str | None) -> Model:
    """A model of the Hub at the commit that the files are of, which is the one to be loaded."""
    _library()
    from transformers.utils import cached_file

    try:
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        paths = {name: cached_file(model, name, revision=revision, **quiet) for name in _TELLING}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The model {model!r}{f' at {revision}' if revision else ''} cannot be found: "
            f"{' '.join(str(error).split())[:300]} Name a folder, or the id of a model on the Hub."
        ) from error
    files = {name: None if path is None else Path(path) for name, path in paths.items()}
    there = [path for path in files.values() if path is not None]
    if not there:
        raise ConfigurationError(
            f"There is no folder {model!r}, and no such model on the Hub or in its cache that sentence-transformers "
            "could load. Check the name, and HF_HUB_OFFLINE."
        )
    commits = [path.parts[path.parts.index("snapshots") + 1] for path in there if "snapshots" in path.parts]
    commit = commits[0] if commits else revision
    return Model(model, model, commit, str(commit), kind or _kind_of(files))


_TELLING = ("config_sentence_transformers.json", "config.json", "modules.json")


def _kind_of(files: Mapping[str, Path | None]) -> str:
    """What the files of a model say that it is."""
    said = {name: _json(path) for name, path in files.items()}
    type = said["config_sentence_transformers.json"].get("model_type")
    if type is not None:
        return CROSS_ENCODER if type == "CrossEncoder" else BI_ENCODER
    architectures = said["config.json"].get("architectures") or []
    crosses = any(str(name).endswith("ForSequenceClassification") for name in architectures)
    return CROSS_ENCODER if crosses and not said["modules.json"] else BI_ENCODER


def _json(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {"": found}


def _library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingDependencyError.of(
            error.name or "sentence_transformers", "train", "Scoring passages with a model"
        ) from error
    return sentence_transformers
