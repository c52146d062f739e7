"""The models of sentence-transformers behind the scores: which one it is exactly, and how it is asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.annotators.client.scoring import BI_ENCODER, CROSS_ENCODER
from arhn_datasets.annotators.local import hash_of_folder
from arhn_datasets.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from arhn_datasets.evidence.scores import Scores

PAIRS_AT_ONCE = 8192
Texts = tuple[list[str], list[str]]
"""The distinct queries and passages of some rows, in the order in which they came."""


@dataclass(frozen=True)
class Model:
    """A model, and which one it is exactly."""

    path: str
    name: str
    revision: str | None
    commit: str | None
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
