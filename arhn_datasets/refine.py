"""From an input to a refined dataset in a folder that is laid out as a Hub dataset repository."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.adapt import adapt_dataset, keeps_rows
from arhn_datasets.annotation import AnnotatedTransform
from arhn_datasets.annotators import Annotator, Cascade, Lexical
from arhn_datasets.card import CHANGED_ROWS, CardContent, Config, render_card
from arhn_datasets.errors import ConfigurationError, InputError, OutputError, SchemaError
from arhn_datasets.export import GROUP_BYTES, SHARD_BYTES
from arhn_datasets.extraction import Snippets
from arhn_datasets.folder import DATA, DROPPED, RUN_FILE, describe_files, is_refined, read_rows
from arhn_datasets.progress import live
from arhn_datasets.prompts import Prompts
from arhn_datasets.ranking import Ranks
from arhn_datasets.records import DECISION, FILTERED, SUBSET, Row, digest
from arhn_datasets.relabeling import POLICIES, Decision, Relabel, Revert, is_kept
from arhn_datasets.report import Report, build_report, changed_rows
from arhn_datasets.scoring import Scores
from arhn_datasets.transform import Transform

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

LOADERS: Mapping[str, str] = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
RUN_FORMAT = 1
BATCH_ROWS = 64
TOTALS = (
    "requests",
    "replies",
    "stored",
    "retries",
    "overloads",
    "failures",
    "prompt_tokens",
    "completion_tokens",
    "screened",
)
VERSIONED = ("datasets", "huggingface_hub", "pyarrow")
UNPUBLISHED: Mapping[str, Any] = {
    "revision": None,
    "license": None,
    "languages": [],
    "private": None,
    "gated": None,
}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Where load_dataset keeps a dataset of the Hub, and map what was made of it: USER___NAME/CONFIG/VERSION/COMMIT.
_HUB_CACHE = re.compile(r".*[/\\]([\w.-]+?)___([\w.-]+)[/\\][^/\\]+[/\\][\d.]+[/\\]([0-9a-f]{40})[/\\]")


@dataclass(frozen=True, kw_only=True)
class Input:
    """What to read: a file, a folder of files, a ``save_to_disk`` folder, or a Hub id."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The three transforms of a run, with an annotator for the first two."""

    snippets: Snippets
    ranks: Ranks
    relabel: Relabel

    @property
    def annotator(self) -> Annotator:
        """Who gives the evidence."""
        return self.snippets.source


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A finished run: where it is, what it did, and what ``run.json`` says of it."""

    path: Path
    report: Report
    run: Mapping[str, Any]

    def rows(self, split: str | None = None) -> Iterator[Row]:
        """The rows that were written, of one split or of all."""
        return read_rows(self.path, split)


def refine(
    source: Input,
    output: str | os.PathLike[str],
    stages: Stages,
    *,
    num_proc: int | None = None,
    batch_size: int | None = None,
) -> Refinement:
    """Read, adapt, annotate, relabel and write a dataset.

    A lexical annotator without term statistics is fitted on the input. Nothing is written to ``output`` before
    everything is done.

    Args:
        source: The input.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        stages: The configured transforms.
        num_proc: Processes of ``Dataset.map``.
        batch_size: Rows in a call; by default one where the annotator waits, 64 where it does not.

    Raises:
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    target = Path(output)
    check_output(target)
    stages.annotator.identity("snippets")  # an endpoint that is not there is told before any work
    durations: dict[str, float] = {}
    with _timed(durations, "load"), silent():
        splits, provenance = load_input(source)
    if unfitted(stages.annotator) is not None:
        with _timed(durations, "fit"):
            stages = fitted(stages, splits)
    with tempfile.TemporaryDirectory(prefix="arhn-", ignore_cleanup_errors=True) as scratch:
        asked_before = stages.annotator.statistics()
        options = _map_options(stages.annotator, num_proc, batch_size)
        for stage in (stages.snippets, stages.ranks, stages.relabel):
            with _timed(durations, stage.NAME), live(stage.NAME, stages.annotator.statistics):
                splits = {
                    name: _map(dataset, stage, Path(scratch) / f"{name}-{stage.NAME}.arrow", options)
                    for name, dataset in splits.items()
                }
        report = build_report(splits.values())
        asked = stages.annotator.statistics()
        requests = {name: asked[name] - asked_before.get(name, 0) for name in TOTALS if name in asked}
        transforms = (stages.snippets, stages.ranks, stages.relabel)
        run = {**_describe(provenance, transforms, report, durations), "requests": requests}
        with silent():
            run = _write(target, splits, run, report)
    return Refinement(path=target, report=report, run=run)


def save(
    dataset: Dataset | DatasetDict,
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    transforms: Sequence[Transform] = (),
) -> Refinement:
    """Write rows that ``Dataset.map`` has relabelled into a folder, as :func:`refine` does.

    Args:
        dataset: Rows that went through ``arhn.snippets``, ``arhn.ranks`` and ``arhn.relabel``, or through other
            evidence and a rule over it.
        output: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        source: The Hub id, ``user/name`` or ``user/name@revision``, of the dataset that they were made from; by default
            the one in whose cache of ``load_dataset`` they are.
        transforms: Those that made the rows. Without them the folder can name neither model nor parameters, and takes
            the policy from the rows, where it is one of ARHN's.

    Raises:
        ConfigurationError: ``dataset`` is no dataset, or a transform gives no evidence and is no rule.
        SchemaError: the rows were not relabelled.
        OutputError: ``output`` holds something else, or cannot be written.
    """
    from datasets import Dataset, DatasetDict

    if not isinstance(dataset, (Dataset, DatasetDict)):
        raise ConfigurationError(
            f"{type(dataset).__name__} is neither a Dataset nor a DatasetDict; the rows that arhn.relabel has written "
            "were expected, or the folder of arhn-refine."
        )
    splits = dict(dataset) if isinstance(dataset, DatasetDict) else {str(dataset.split or "train"): dataset}
    for name, rows in splits.items():
        missing = [column for column in (FILTERED, DECISION) if column not in rows.column_names]
        if missing:
            raise SchemaError(
                f"The rows of {name!r} lack {missing}: they were not relabelled. Run the three stages first: "
                "ds.map(arhn.snippets).map(arhn.ranks).map(arhn.relabel)."
            )
    if not any(map(len, splits.values())):
        raise SchemaError("There are no rows; nothing can be written.")
    target = Path(output)
    check_output(target)
    with silent():
        report = build_report(splits.values())
        made = _made_by(splits, transforms)
        run = _describe(_provenance_of(splits, source), made, report, {})
        run = _write(target, splits, {**run, "requests": {}}, report)
    return Refinement(path=target, report=report, run=run)


def _made_by(splits: Mapping[str, Dataset], transforms: Sequence[Transform]) -> list[Transform]:
    """The transforms as they were given, and a relabelling with the policy of the rows where there was none."""
    made = {transform.NAME: transform for transform in transforms}
    unknown = [name for name, found in made.items() if not isinstance(found, (AnnotatedTransform, Scores, Decision))]
    if unknown:
        raise ConfigurationError(
            f"transforms has {unknown}; those were expected that made the rows: arhn.Snippets, arhn.Ranks or other "
            "evidence, and arhn.Relabel or another rule."
        )
    if Relabel.NAME not in made:
        policies = {decision["policy"] for rows in splits.values() for decision in rows[DECISION][:] if decision}
        if len(policies) != 1:
            raise SchemaError(
                f"The rows were relabelled by {sorted(policies) or 'no policy'}; one policy was expected. Relabel all "
                "of them with one: ds.map(arhn.relabel)."
            )
        policy = policies.pop()
        if policy not in POLICIES:
            raise ConfigurationError(
                f"The rows were made by the rule {policy!r}, whose parameters are not in them. Name it: "
                "transforms=[..., the rule that was mapped]."
            )
        made[Relabel.NAME] = Relabel(policy=policy)
    return sorted(made.values(), key=lambda transform: _STAGES.get(type(transform), isinstance(transform, Decision)))


_STAGES: Mapping[type[Transform], float] = {Snippets: -2, Ranks: -1}  # then other evidence, and the rule last


def _provenance_of(splits: Mapping[str, Dataset], source: str | None) -> dict[str, Any]:
    """Where rows in memory come from: as the caller says, or as their files in the cache of `load_dataset` tell."""
    files = [file["filename"] for rows in splits.values() for file in rows.cache_files]
    noted = {found.groups() for file in files if (found := _HUB_CACHE.match(file))}
    name, revision = source, None
    if source is None and len(noted) == 1:
        user, name, revision = noted.pop()
        name = f"{user}/{name}"
    elif source is not None and "@" in source:
        name, _, revision = source.partition("@")
    if name is not None and not _HUB_ID.fullmatch(name):
        raise ConfigurationError(
            f"source is {source!r}; the id of a dataset on the Hub was expected, user/name or user/name@revision."
        )
    published = dict(UNPUBLISHED) if name is None else _hub_facts(Input(name=name, revision=revision))
    return {
        "name": name or "rows in memory",
        "kind": "memory" if name is None else "hub",
        "config": None,
        **published,
        "split": None,
        "limit": None,
        "rows": {name: len(rows) for name, rows in splits.items()},
        "fingerprints": {name: rows._fingerprint for name, rows in splits.items()},
    }


def load_input(source: Input) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The canonical rows of each split, and where they came from.

    Raises:
        InputError: the input is not there or cannot be read.
        SchemaError: its rows are in no known form.
    """
    loaded, kind, published = _load(source)
    splits = loaded if isinstance(loaded, dict) else {source.split or "train": loaded}
    if source.split and source.split in splits:
        splits = {source.split: splits[source.split]}
    elif source.split and isinstance(loaded, dict):
        raise InputError(f"{source.name} has no split {source.split!r}; its splits are {sorted(splits)}.")
    canonical = {}
    for name, dataset in splits.items():
        if DECISION in dataset.column_names:  # an earlier result: from its source rows on
            dataset = dataset.map(Revert(keep_evidence=False), batched=True, batch_size=BATCH_ROWS)
        if source.limit and keeps_rows(dataset.column_names):
            dataset = dataset.select(range(min(source.limit, len(dataset))))
        adapted = adapt_dataset(dataset)
        canonical[name] = adapted.select(range(min(source.limit, len(adapted)))) if source.limit else adapted
    if not any(len(dataset) for dataset in canonical.values()):
        raise InputError(f"{source.name} has no rows; nothing can be refined.")
    provenance = {
        "name": source.name if kind == "hub" else Path(source.name).name,
        "kind": kind,
        "config": source.config,
        **published,
        "split": source.split,
        "limit": source.limit,
        "rows": {name: len(dataset) for name, dataset in canonical.items()},
        "fingerprints": {name: dataset._fingerprint for name, dataset in splits.items()},
    }
    return canonical, provenance


def check_output(target: Path) -> None:
    """Refuse to write over anything but an earlier run.

    Raises:
        OutputError: ``target`` is a file, or holds something else.
    """
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; --output takes the name of a folder to make.")
    if target.is_dir() and any(target.iterdir()) and not is_refined(target):
        found = ", ".join(sorted(path.name for path in target.iterdir())[:5])
        raise OutputError(
            f"{target} is not empty and holds no earlier run ({RUN_FILE} of arhn_datasets); found {found}. "
            "Nothing was touched: name another folder, or empty this one."
        )
    if not os.access(_existing_parent(target), os.W_OK):
        raise OutputError(f"{target} cannot be written: no permission in {_existing_parent(target)}.")


def _load(source: Input) -> tuple[Dataset | DatasetDict, str, dict[str, Any]]:
    """The dataset, the kind of its source, and what that says of itself: revision, licence, languages, visibility."""
    from datasets import load_dataset, load_from_disk

    path = Path(source.name).expanduser()
    if path.is_file() and path.suffix not in LOADERS:
        raise InputError(f"{path} is no {', '.join(LOADERS)} file; convert it, or name one of these.")
    if not path.exists() and (not _HUB_ID.fullmatch(source.name) or path.suffix in LOADERS):
        raise InputError(
            f"There is nothing at {source.name}. Expected a {', '.join(LOADERS)} file, a folder of them, a folder "
            "written by save_to_disk, or the id of a dataset on the Hub (user/name)."
        )
    try:
        if path.is_file():
            return load_dataset(LOADERS[path.suffix], data_files=str(path), split="train"), "file", dict(UNPUBLISHED)
        if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return load_from_disk(str(path)), "folder", dict(UNPUBLISHED)
        if path.is_dir():
            return load_dataset(str(path), source.config), "folder", _inherited(path)
        published = _hub_facts(source)
        return load_dataset(source.name, source.config, revision=published["revision"]), "hub", published
    except InputError:
        raise
    except Exception as error:  # a loader may raise anything that its file system or parser raises
        raise InputError(
            f"{source.name} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:400]}. "
            "Check the name, the --config and the --revision, and that the file is what its suffix says."
        ) from error


def _hub_facts(source: Input) -> dict[str, Any]:
    """The commit that the run reads, so that it can be read again, and the terms under which the source is there.

    Where the Hub does not say, the asked revision, and nothing of the terms.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(source.name, revision=source.revision)
    except Exception as error:  # offline, with the dataset in the local cache
        logger.info("the commit of %s is not known: %s", source.name, error)
        return {**UNPUBLISHED, "revision": source.revision}
    licenses = _tagged(info, "license")
    return {
        "revision": info.sha,
        "license": licenses[0] if len(licenses) == 1 else licenses or None,
        "languages": _tagged(info, "language"),
        "private": getattr(info, "private", None),
        "gated": getattr(info, "gated", None),
    }


def _tagged(info: Any, name: str) -> list[str]:
    """The values of a name in the metadata of a dataset: as the Hub tags it, else as its README has them."""
    tags = [str(tag) for tag in getattr(info, "tags", None) or []]
    if found := [tag.removeprefix(f"{name}:") for tag in tags if tag.startswith(f"{name}:")]:
        return found
    card = getattr(info, "card_data", None)
    stated = card.get(name) if card is not None else None
    return [str(one) for one in (stated if isinstance(stated, list) else [stated]) if one]


def _inherited(folder: Path) -> dict[str, Any]:
    """The terms of an earlier run's source: refining twice takes none of them away."""
    if not is_refined(folder):
        return dict(UNPUBLISHED)
    source = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("source", {})
    return {name: source.get(name, default) for name, default in UNPUBLISHED.items()} | {"revision": None}


def unfitted(annotator: Annotator) -> Lexical | None:
    """The lexical annotator that has no term statistics yet: this one, or the screen of a cascade."""
    found = annotator.cheap if isinstance(annotator, Cascade) else annotator
    return found if isinstance(found, Lexical) and found.frequencies is None else None


def fitted(stages: Stages, splits: Mapping[str, Dataset]) -> Stages:
    """The stages with a lexical annotator whose term statistics come from ``splits``."""
    annotator = unfitted(stages.annotator)
    assert annotator is not None
    rows = (row for dataset in splits.values() for row in dataset)
    options: dict[str, Any] = {"language": annotator.language}
    if annotator.threshold not in (None, Lexical(language=annotator.language).threshold):
        options["threshold"] = annotator.threshold
    fitted: Annotator = Lexical.fitted(rows, **options)
    if isinstance(stages.annotator, Cascade):
        fitted = replace(stages.annotator, cheap=fitted)
    return replace(
        stages,
        snippets=stages.snippets.with_options(annotator=fitted),
        ranks=stages.ranks.with_options(annotator=fitted),
    )


def _map_options(annotator: Annotator, num_proc: int | None, batch_size: int | None) -> dict[str, Any]:
    batched = batch_size is not None or not annotator.awaits
    return {
        "batched": batched,
        **({"batch_size": batch_size or BATCH_ROWS} if batched else {}),
        **({"num_proc": num_proc} if num_proc and num_proc > 1 else {}),
        # The store of replies makes a rerun cheap; the cache of `map` would serve failed requests again.
        "load_from_cache_file": False,
    }


def _map(dataset: Dataset, stage: Transform, cache_file: Path, options: Mapping[str, Any]) -> Dataset:
    if not len(dataset):
        return dataset.map(stage, batched=True, load_from_cache_file=False)
    processes = min(options.get("num_proc", 1), len(dataset))
    return dataset.map(
        stage,
        cache_file_name=str(cache_file),
        desc=f"{stage.NAME:<8}",
        **{**options, **({"num_proc": processes} if processes > 1 else {"num_proc": None})},
    )


def _describe(
    provenance: Mapping[str, Any], transforms: Sequence[Transform], report: Report, durations: Mapping[str, float]
) -> dict[str, Any]:
    """The content of ``run.json``: everything needed to repeat the run, and nothing secret."""
    parameters, annotators = {}, {}
    for transform in transforms:
        identity = transform.identity()
        if isinstance(transform, AnnotatedTransform):
            annotators[transform.NAME] = identity.pop("annotator")
        parameters[transform.NAME] = identity
    annotator = next((found.source for found in transforms if isinstance(found, AnnotatedTransform)), None)
    described = annotator or next((found for found in transforms if isinstance(found, Scores)), None)
    return {
        "format": RUN_FORMAT,
        "id": uuid.uuid4().hex,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "arhn_datasets": version("arhn_datasets"),
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONED},
        },
        "source": dict(provenance),
        "annotator": {"annotator": "not recorded"} if described is None else described.description(),
        "identity": annotators,
        "parameters": parameters,
        "prompts": _prompt_texts(annotator),
        "counts": report.to_json(),
        "durations_seconds": {stage: round(seconds, 3) for stage, seconds in durations.items()},
    }


def _prompt_texts(annotator: Annotator | None) -> dict[str, dict[str, str]]:
    """What an LLM was asked in each task, with places for what differs; nothing where there are no prompts."""
    prompts = getattr(annotator, "prompts", None)
    if not isinstance(prompts, Prompts):
        return {}
    texts = {
        task: {
            "snippet": prompts.snippet_messages("{query}", {"title": "", "text": "{passage}"}, task)[0]["content"],
            "ranking": prompts.ranking_messages("{query}", ["{snippet}", "{snippet}"], task)[0]["content"],
        }
        for task in prompts.tasks
    }
    return {task: {"version": prompts.version, "hash": digest(text)[:16], **text} for task, text in texts.items()}


def _write(target: Path, splits: Mapping[str, Dataset], run: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write everything beside ``target`` and rename it into place; returns the run with its files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        configs: dict[str, Config] = {}
        for name, dataset in splits.items():
            for config, folder, rows in _parts(dataset):
                size = _write_shards(rows, fresh / folder, name)
                before = configs.get(config, Config(splits={}))
                configs[config] = Config(
                    splits={**before.splits, name: f"{folder}/{name}-*"},
                    features=rows.features,
                    sizes={**before.sizes, name: (len(rows), size)},
                )
        run = {**run, "files": describe_files(fresh)}
        content = CardContent(
            run=run, report=report, configs=configs, layout="refined", changed=_changed(splits, CHANGED_ROWS)
        )
        (fresh / "README.md").write_text(render_card(content), encoding="utf-8")
        # Last, because it tells that the folder is whole.
        (fresh / RUN_FILE).write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.chmod(0o755)  # mkdtemp makes it private
        _swap(fresh, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another folder.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return run


def _changed(splits: Mapping[str, Dataset], most: int) -> list[Row]:
    """Changed rows for the card; only what chooses them is read of the others."""
    chosen = changed_rows(
        (
            {**row, "at": (name, at)}
            for name, dataset in splits.items()
            for at, row in enumerate(dataset.select_columns([c for c in (DECISION, SUBSET) if c in dataset.features]))
        ),
        most,
    )
    return [splits[name][at] for name, at in (row["at"] for row in chosen)]


def _parts(dataset: Dataset) -> Iterator[tuple[str, str, Dataset]]:
    """The rows for trainers, and those that a guard dropped where there are any."""
    kept = [is_kept({DECISION: decision}) for decision in dataset[DECISION][:]]
    if all(kept):
        yield "default", DATA, dataset
        return
    yield "default", DATA, dataset.select([i for i, keep in enumerate(kept) if keep])
    yield "dropped", DROPPED, dataset.select([i for i, keep in enumerate(kept) if not keep])


def _write_shards(dataset: Dataset, folder: Path, split: str) -> int:
    """Write a split into a folder; the bytes of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    bytes_ = dataset.data.nbytes * len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, math.ceil(bytes_ / SHARD_BYTES))
    for index in range(shards):
        shard = dataset.shard(num_shards=shards, index=index, contiguous=True)
        path = folder / f"{split}-{index:05d}-of-{shards:05d}.parquet"
        # Whoever reads it holds a row group or two in memory.
        shard.to_parquet(str(path), batch_size=max(1, min(1000, int(GROUP_BYTES * len(dataset) / (bytes_ + 1)))))
        written += path.stat().st_size
    return written


def _swap(fresh: Path, target: Path) -> None:
    """Put ``fresh`` in the place of ``target``; the old one is removed only when the new one is there."""
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / "run")
    try:
        fresh.rename(target)
    except OSError:
        (old / "run").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def silent() -> Iterator[None]:
    """No progress bars of `datasets` for what is not one of our stages."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _timed(durations: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        durations[stage] = durations.get(stage, 0.0) + time.monotonic() - start
