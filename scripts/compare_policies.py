"""Does a refinement help training? One base model on each policy's rows, several seeds, equal steps, in one table.

usage: compare_policies.py CONFIG.yaml

policies.example.yaml beside this file explains every entry of CONFIG. Needs: pip install 'arhn_datasets[train]'.

Every policy starts from the source rows with their evidence (arhn.revert), so they can be those of arhn-refine or any
transforms of arhn_datasets. Each is trained by train_retriever.py for the same number of steps and evaluated by
evaluate_retriever.py. What is finished is kept in the output folder: after a kill, the same command goes on.

Significance against raw: a paired randomisation test over queries (sign flips of the differences of nDCG@10, a query's
values averaged over the seeds, two-sided; Smucker, Allan and Carterette, CIKM 2007), the statistic being the mean over
the sets, with Holm's correction over the policies. It says nothing of other seeds: for those there is the deviation.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the other scripts, from wherever this one is loaded

import evaluate_retriever
import train_retriever
from evaluate_retriever import MEASURES, Settings, Source, fail, first_line, write_whole

import arhn_datasets as arhn
from arhn_datasets.folder.parquet import with_features
from arhn_datasets.folder.reading import Folder, open_folder, sha256_of
from arhn_datasets.folder.report import format_table
from arhn_datasets.folder.run import is_refined
from arhn_datasets.rows.records import DECISION, FILTERED, NEGATIVE, POSITIVE, canonical_json, digest
from arhn_datasets.rules.arhn import POLICIES

RAW, UNTRAINED = "raw", "untrained"
MEASURE = "nDCG@10"
FLIPS = 9999
CLASS, TRANSFORM = "class", "transform"

ENTRIES: dict[str, Any] = {
    "dataset": None,
    "revision": None,
    "split": "train",
    "model": None,
    "output": None,
    "seeds": [0, 1, 2],
    "format": "n-tuple",
    "negatives": 7,
    "training": {},
    "evaluation": [],
    "encoding": {},
    "evidence": [],
    "policies": [RAW, *POLICIES],
    "untrained": True,
    "keep-models": False,
}
NEEDED = ("dataset", "model", "output", "training", "evaluation")
OURS = ("dataset", "config", "split", "revision", "model", "output", "seed", "epochs")  # not to be set in training


class Policy(NamedTuple):
    """A name for the table, and the transforms from the source rows with their evidence to the rows to train on."""

    name: str
    transforms: tuple[Any, ...]

    @property
    def slug(self) -> str:
        """The name as a part of a path."""
        return "".join(letter if letter.isalnum() or letter in "+-." else "-" for letter in self.name)


class Rows(NamedTuple):
    """The rows of a policy in the trainer's format."""

    folder: Path
    key: str  # of all that made them
    counts: dict[str, int]


class Config(NamedTuple):
    """One comparison, see policies.example.yaml."""

    dataset: str
    revision: str | None
    split: str
    model: str
    output: Path
    seeds: tuple[int, ...]
    format: str
    negatives: int
    training: dict[str, Any]
    sources: tuple[Source, ...]
    settings: Settings
    evidence: tuple[Any, ...]
    policies: tuple[Policy, ...]
    untrained: bool
    keep_models: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml")
    parser.add_argument("--config", dest="named", metavar="CONFIG.yaml", help="the same")
    parser.add_argument("--output", metavar="DIR", help="instead of the one in CONFIG")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object, as in comparison.json")
    options = parser.parse_args(arguments)
    if (options.config is None) == (options.named is None):
        parser.error("one CONFIG.yaml was expected")
    config = read_config(Path(options.config or options.named), options.output)
    evaluate_retriever.check_needs()
    try:
        rows = prepare(config)
        values = train_and_evaluate(config, rows)
    except arhn.ArhnError as error:
        fail(first_line(error))
    found = compare(config, values, {policy: part.counts for policy, part in rows.items()})
    write_whole(config.output / "comparison.json", json.dumps(found, indent=1))
    table = table_of(found)
    write_whole(config.output / "comparison.txt", f"{table}\n")
    print(table)
    if options.json:
        print(json.dumps(found))


# -- the configuration -------------------------------------------------------------------------------------------------


def read_config(path: Path, output: str | None = None) -> Config:
    """The comparison that a YAML file describes."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        fail(f"{path} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(given, dict):
        fail(f"{path} holds {type(given).__name__}; entries as in policies.example.yaml were expected.")
    given = {**given, **({"output": output} if output else {})}
    unknown = [str(name) for name in given if name not in ENTRIES]
    missing = [name for name in NEEDED if not given.get(name)]
    if unknown or missing:
        what = f"unknown entries {', '.join(unknown)}" if unknown else f"no entry {', '.join(missing)}"
        fail(f"{path} has {what}; those that there are: {', '.join(ENTRIES)}.")
    values = {name: given.get(name, default) for name, default in ENTRIES.items()}
    policies = policies_of(values["policies"])
    training = training_of(values["training"])
    try:
        seeds, negatives = tuple(int(seed) for seed in values["seeds"]), int(values["negatives"])
    except (TypeError, ValueError) as error:
        fail(f"{path}: {first_line(error)}; seeds is a list of whole numbers, and negatives is one.")
    if not seeds or len(set(seeds)) < len(seeds):
        fail(f"seeds is {list(seeds)}; different whole numbers were expected.")
    sources = sources_of(values["evaluation"])
    settings = settings_of(values["encoding"], training)
    return Config(
        dataset=str(values["dataset"]),
        revision=values["revision"],
        split=str(values["split"]),
        model=str(values["model"]),
        output=Path(values["output"]),
        seeds=seeds,
        format=str(values["format"]),
        negatives=negatives,
        training=training,
        sources=tuple(sources),
        settings=settings,
        evidence=tuple(build(transform) for transform in values["evidence"]),
        policies=policies,
        untrained=bool(values["untrained"]),
        keep_models=bool(values["keep-models"]),
    )


def training_of(given: Any) -> dict[str, Any]:
    """Options of train_retriever.py, the same for every run."""
    if not isinstance(given, dict) or not given.get("max-steps"):
        fail("training has no max-steps; every policy is trained for the same number of steps, whatever its rows.")
    own = [name for name in given if name in OURS]
    if own:
        fail(f"training sets {', '.join(own)}; this is set for each run. Remove it.")
    return {str(name): value for name, value in given.items()}


def training_arguments(training: Mapping[str, Any]) -> list[str]:
    """The options as on the command line; true is a flag, false and null are left out."""
    arguments: list[str] = []
    for name, value in training.items():
        if value is not None and value is not False:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments


def sources_of(given: Any) -> list[Source]:
    """The sets to evaluate on."""
    sources: list[Source] = []
    for entry in [given] if isinstance(given, dict) else given:
        if not isinstance(entry, dict) or ("beir" in entry) == ("dataset" in entry):
            fail(f"evaluation has {entry!r}; dataset: FOLDER or beir: NAME was expected.")
        known = ("beir", "split") if "beir" in entry else ("dataset", "name", "split", *Source._fields[3:])
        unknown = [name for name in entry if name not in known]
        if unknown:
            fail(f"evaluation has {', '.join(unknown)} in {entry!r}; those that there are: {', '.join(known)}.")
        if "beir" in entry:
            names = entry["beir"] if isinstance(entry["beir"], str) else ",".join(entry["beir"])
            sources += evaluate_retriever.beir_sources(names, entry.get("split"))
        else:
            rest = {name: value for name, value in entry.items() if name not in ("dataset", "split")}
            splits = (str(entry.get("split", "test")),)
            sources.append(evaluate_retriever.source_of(str(entry["dataset"]), splits=splits, **rest))
    return evaluate_retriever.distinct(sources)


def settings_of(given: Any, training: Mapping[str, Any]) -> Settings:
    """How to encode: with the prompts and the length of the training, unless something else is given."""
    shared = {name: training.get(name) for name in ("query-prompt", "passage-prompt", "max-seq-length")}
    named = {name.replace("-", "_"): value for name, value in {**shared, **given}.items() if value is not None}
    unknown = [name for name in named if name not in Settings._fields]
    if unknown:
        fail(f"encoding has {', '.join(unknown)}; those that there are: {', '.join(Settings._fields)}.")
    return Settings(**named)


def policies_of(given: Any) -> tuple[Policy, ...]:
    """The policies to compare; raw is always among them."""
    if not isinstance(given, list):
        fail(f"policies is {given!r}; a list was expected.")
    found = [policy_of(entry) for entry in given]
    if RAW not in [policy.name for policy in found]:
        found.insert(0, Policy(RAW, ()))
    names = [policy.slug for policy in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or UNTRAINED in names:
        fail(f"policies has {(twice or [UNTRAINED])[0]!r} twice; give each a name of its own.")
    return tuple(found)


def policy_of(given: Any) -> Policy:
    """``raw``, a policy of arhn.Relabel by its name, or a mapping with the name and the transforms."""
    if isinstance(given, str):
        if given != RAW and given not in POLICIES:
            fail(f"policies has {given!r}; {RAW}, {', '.join(POLICIES)} or a transform with its parameters go.")
        return Policy(given, () if given == RAW else (arhn.Relabel(policy=given),))
    if not isinstance(given, dict) or not ({TRANSFORM, "transforms"} & given.keys()):
        fail(f"policies has {given!r}; a name, or a mapping with transform: NAME and its parameters, was expected.")
    rest = {name: value for name, value in given.items() if name != "name"}
    listed = rest.get("transforms", [rest])
    if not isinstance(listed, list) or ("transforms" in rest and len(rest) > 1):
        fail(f"policies has {given!r}; with transforms, a list, nothing but a name was expected.")
    name = given.get("name") or "+".join(str(transform.get(TRANSFORM)) for transform in listed)
    return Policy(str(name), tuple(build(transform) for transform in listed))


def build(given: Any) -> Any:
    """``{transform: NAME, ...}`` as ``arhn_datasets.NAME(...)``; in its parameters ``{class: NAME, ...}`` likewise."""
    if isinstance(given, list):
        return tuple(build(value) for value in given)
    key = next((key for key in (TRANSFORM, CLASS) if isinstance(given, dict) and key in given), None)
    if key is None:
        return given
    name = given[key]
    found = getattr(arhn, str(name), None) if str(name) in arhn.__all__ else None
    if not inspect.isclass(found):
        there = ", ".join(name for name in arhn.__all__ if inspect.isclass(getattr(arhn, name)))
        fail(f"{key} is {name!r}; a class of arhn_datasets was expected: {there}.")
    try:
        return found(**{option: build(value) for option, value in given.items() if option != key})
    except TypeError as error:
        fail(f"{name}: {first_line(error).replace('__init__()', name)}. Its parameters: {inspect.signature(found)}.")
    except arhn.ArhnError as error:
        fail(f"{name}: {error}")


# -- the rows of each policy -------------------------------------------------------------------------------------------


def prepare(config: Config) -> dict[str, Rows]:
    """The rows of each policy in the trainer's format, in the output folder."""
    folder = source_folder(config)
    if config.split not in folder.splits:
        fail(f"{config.dataset} has no split {config.split!r}; its splits are {', '.join(folder.splits)}.")
    # run.json names the SHA-256 of every data file.
    source = [sha256_of(folder.path / "run.json"), config.split, config.format, config.negatives, arhn.__version__]
    evidence = [identity(transform) for transform in config.evidence]
    rows, missing = {}, []
    for policy in config.policies:
        key = digest([source, evidence, [identity(transform) for transform in policy.transforms]])[:12]
        path = config.output / "rows" / f"{policy.slug}-{key}"
        counts = read_json(path / "counts.json")
        rows[policy.name] = Rows(path, key, counts or {})
        missing += [policy] if counts is None else []
    if missing:
        cache = config.output / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        wide = wide_rows(folder, config, cache)
        for policy in missing:
            print(f"rows of {policy.name}", file=sys.stderr)
            rows[policy.name] = write_rows(wide, policy, rows[policy.name], config)
        del wide
        shutil.rmtree(cache, ignore_errors=True)
    return rows


def source_folder(config: Config) -> Folder:
    """The refined or published folder, or the copy of a repository."""
    path = Path(config.dataset)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(config.dataset, repo_type="dataset", revision=config.revision))
        except (OSError, ValueError) as error:
            fail(f"the dataset {config.dataset} is no folder and cannot be downloaded: {first_line(error)}")
    if not is_refined(path):
        fail(f"{config.dataset} has no run.json of arhn_datasets; expected what arhn-refine or arhn-push has written.")
    return open_folder(path)


def wide_rows(folder: Folder, config: Config, cache: Path) -> Any:
    """The source rows with their evidence, those that a guard had dropped included."""
    import pyarrow as pa
    from datasets import Dataset

    path = cache / "wide.arrow"
    schema = with_features(folder.schema(config.split))
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for table in folder.tables(config.split):
            stream.write_table(table.cast(schema))
    rows = Dataset.from_file(str(path))
    if DECISION in rows.column_names:
        rows = mapped(rows, arhn.Revert())
    for transform in config.evidence:
        rows = mapped(rows, transform)
    return rows


def mapped(rows: Any, transform: Any) -> Any:
    """The rows after a transform."""
    return rows.map(transform, batched=True, batch_size=256, desc=transform.NAME, load_from_cache_file=False)


def write_rows(wide: Any, policy: Policy, rows: Rows, config: Config) -> Rows:
    """Apply a policy and export what it keeps."""
    done = wide
    for transform in policy.transforms:
        done = mapped(done, transform)
    writing = rows.folder.with_name(f".{rows.folder.name}.writing")
    for old in (writing, rows.folder):  # what a kill has left
        shutil.rmtree(old, ignore_errors=True)
    rows.folder.parent.mkdir(parents=True, exist_ok=True)
    report = arhn.export(done, config.format, writing, negatives=config.negatives, split="train")
    written = report.formats[config.format]
    counts = {"queries": len(done), "rows": sum(written.rows.values()), "left out": sum(written.left_out.values())}
    counts |= passages_in(done)
    if not counts["rows"]:
        fail(f"{policy.name} leaves no row to train on: {json.dumps(dict(written.left_out))}")
    write_whole(writing / "counts.json", json.dumps(counts))
    writing.rename(rows.folder)
    return rows._replace(counts=counts)


def passages_in(rows: Any) -> dict[str, int]:
    """How many passages there are under each label, over all rows."""
    import pyarrow.compute as pc

    columns = [
        column for column in (POSITIVE.passages, NEGATIVE.passages, FILTERED.passages) if column in rows.column_names
    ]
    return {
        column.removesuffix("_passages"): int(pc.sum(pc.list_value_length(rows.data.column(column))).as_py() or 0)
        for column in columns
    }


def identity(transform: Any) -> str:
    """What changes the result of a transform."""
    return canonical_json({"transform": transform.NAME, "version": transform.VERSION, **transform.identity()})


# -- training and evaluation -------------------------------------------------------------------------------------------

Values = dict[str, dict[str, dict[str, float]]]  # {set: {query: {measure: value}}}


def train_and_evaluate(config: Config, rows: Mapping[str, Rows]) -> dict[tuple[str, int], Values]:
    """The values of each policy and seed; those of the base model under ``untrained``."""
    keys = {(name, seed): run_key(config, rows[name], seed) for name in rows for seed in config.seeds}
    slugs = {policy.name: policy.slug for policy in config.policies}
    folders = {run: config.output / "runs" / f"{slugs[run[0]]}-seed-{run[1]}-{key}" for run, key in keys.items()}
    values: dict[tuple[str, int], Values] = {}
    if config.untrained:
        folder = config.output / "runs" / f"{UNTRAINED}-{digest([config.model, model_files(config.model)])[:12]}"
        values[UNTRAINED, 0] = evaluated(config, folder, config.model)
    missing = [run for run, folder in folders.items() if not is_finished(config, folder)]
    began = time.monotonic()
    for run, folder in folders.items():
        if run in missing:
            at = missing.index(run)
            left = f", about {duration((time.monotonic() - began) / at * (len(missing) - at))} left" if at else ""
            print(f"run {at + 1} of {len(missing)}: {run[0]}, seed {run[1]}{left}", file=sys.stderr)
            train(config, rows[run[0]], run[1], folder)
        values[run] = evaluated(config, folder, str(folder / "model"))
        if not config.keep_models:
            shutil.rmtree(folder / "model", ignore_errors=True)
    return values


def run_key(config: Config, rows: Rows, seed: int) -> str:
    """What a run is of: rows, model, training and seed."""
    return digest([rows.key, config.model, model_files(config.model), config.training, seed])[:12]


def model_files(model: str) -> list[list[Any]]:
    """Names, sizes and times of the files of a model in a folder: it may be another one under the same name."""
    root = Path(model)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def is_finished(config: Config, folder: Path) -> bool:
    """Whether a run needs no model any more: it was evaluated on every set, as asked now."""
    return (folder / "model").is_dir() or all(
        evaluate_retriever.kept_values(folder, source, asked_of(config, folder, source)) is not None
        for source in config.sources
    )


def asked_of(config: Config, folder: Path, source: Source) -> dict[str, Any]:
    """What evaluate_retriever.py keeps beside the values."""
    return evaluate_retriever.asked_of(folder.name, source, config.settings)


def train(config: Config, rows: Rows, seed: int, folder: Path) -> None:
    """Train a model into ``folder/model``, which has its name when it is whole."""
    writing = folder / "model.writing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["--dataset", str(rows.folder), "--config", config.format, "--model", config.model]
    command += ["--output", str(writing), "--seed", str(seed), *training_arguments(config.training)]
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        train_retriever.main(command)
    about = {"command": ["train_retriever.py", *command], "seconds": time.monotonic() - began, **machine()}
    write_whole(folder / "training.json", json.dumps(about, indent=1))
    writing.rename(folder / "model")


def evaluated(config: Config, folder: Path, model: str) -> Values:
    """The values of each query in each set; what was evaluated before a kill is read again."""
    found = evaluate_retriever.evaluate(
        model, config.sources, config.settings, output=folder, resume=True, label=folder.name
    )
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["queries"] for name in found}


def machine() -> dict[str, Any]:
    """Device and versions."""
    import sentence_transformers
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    modules = (arhn, sentence_transformers, torch, transformers)
    return {"device": device, "versions": {module.__name__: str(module.__version__) for module in modules}}


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def read_json(path: Path) -> Any:
    """What a file holds; None where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# -- comparison --------------------------------------------------------------------------------------------------------


def compare(
    config: Config, values: Mapping[tuple[str, int], Values], counts: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of every measure, and the test against raw, for each policy."""
    names = [UNTRAINED, *counts] if config.untrained else list(counts)
    policies: dict[str, dict[str, Any]] = {}
    for name in names:
        seeds = [0] if name == UNTRAINED else list(config.seeds)
        runs = [values[name, seed] for seed in seeds]
        policies[name] = {**counts.get(name, {}), "seeds": seeds, **spread([means_of(config, run) for run in runs])}
        sets = {source.group or source.name: None for source in config.sources}
        policies[name]["sets"] = {group: spread([means_of(config, run, group) for run in runs]) for group in sets}
    raw = averaged([values[RAW, seed] for seed in config.seeds])
    tested = [name for name in counts if name != RAW]
    p_values = []
    for name in tested:
        other = averaged([values[name, seed] for seed in config.seeds])
        differences, weights = paired(config, other, raw)
        p_values.append(randomisation(differences, weights))
        by_seed = [
            means_of(config, values[name, seed])[MEASURE] - means_of(config, values[RAW, seed])[MEASURE]
            for seed in config.seeds
        ]
        policies[name]["against raw"] = {
            "difference": float((differences * weights).sum()),
            "by seed": by_seed,
            "p": p_values[-1],
        }
    for name, p_value in zip(tested, holm(p_values), strict=True):
        policies[name]["against raw"]["p, Holm"] = p_value
    return {
        "dataset": config.dataset,
        "model": config.model,
        "training": config.training,
        "format": config.format,
        "negatives": config.negatives,
        "evaluation": [source._asdict() for source in config.sources],
        "test": f"paired randomisation over queries, {FLIPS} sign flips, of {MEASURE}; Holm over the policies",
        "policies": policies,
    }


def means_of(config: Config, run: Values, group: str | None = None) -> dict[str, float]:
    """Each measure of a run: the mean over the groups of sets, or of one group."""
    sources = [source for source in config.sources if group in (None, source.group or source.name)]
    found = {
        source.name: {
            measure: float(np.mean([query[measure] for query in run[source.name].values()])) for measure in MEASURES
        }
        for source in sources
    }
    return evaluate_retriever.average(evaluate_retriever.grouped(sources, found).values())


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation (n - 1; None for a single seed) over the seeds."""
    return {
        measure: {
            "mean": float(np.mean([run[measure] for run in runs])),
            "sd": float(np.std([run[measure] for run in runs], ddof=1)) if len(runs) > 1 else None,
        }
        for measure in MEASURES
    }


def averaged(runs: Sequence[Values]) -> dict[str, dict[str, float]]:
    """The measure that is tested, of each query in each set, as the mean over seeds."""
    return {
        name: {query_id: float(np.mean([run[name][query_id][MEASURE] for run in runs])) for query_id in queries}
        for name, queries in runs[0].items()
    }


def paired(
    config: Config, one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]
) -> tuple[Any, Any]:
    """The differences of all queries, and the weight of each in the mean over the sets."""
    groups = [source.group or source.name for source in config.sources]
    differences, weights = [], []
    for source, group in zip(config.sources, groups, strict=True):
        queries = one[source.name]
        differences += [value - other[source.name][query_id] for query_id, value in queries.items()]
        weights += [1 / (len(set(groups)) * groups.count(group) * len(queries))] * len(queries)
    return np.array(differences), np.array(weights)


def randomisation(differences: Any, weights: Any, flips: int = FLIPS, seed: int = 0) -> float:
    """The two-sided p-value of the weighted sum of the differences under random signs.

    Of at most 2^n sign patterns, all are looked at where these are no more than ``flips``.
    """
    terms = differences * weights
    terms = terms[terms != 0]
    observed = abs(terms.sum()) - 1e-9 * np.abs(terms).sum()  # equal sums are equal, whatever the order of the addition
    if 2 ** len(terms) <= flips:
        patterns = np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms)) & 1
        return float((np.abs((2 * patterns - 1) @ terms) >= observed).mean())
    found, random = 0, np.random.default_rng(seed)
    step = max(1, 10_000_000 // len(terms))
    for start in range(0, flips, step):
        signs = random.integers(0, 2, (min(step, flips - start), len(terms)), dtype=np.int8)
        found += int((np.abs(2 * (signs @ terms) - terms.sum()) >= observed).sum())
    return (found + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction, in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def table_of(found: Mapping[str, Any]) -> str:
    """The comparison as text."""
    header = ["policy", "rows", "positive", "negative", "filtered", *MEASURES, f"{MEASURE} - raw", "p", "p, Holm"]
    lines = []
    for name, policy in found["policies"].items():
        counts = [f"{policy[key]:,}" if key in policy else "" for key in header[1:5]]
        against = policy.get("against raw")
        tested = ["", "", ""]
        if against is not None:
            tested = [f"{against['difference']:+.4f}", f"{against['p']:.4f}", f"{against['p, Holm']:.4f}"]
        lines.append([name, *counts, *(shown(policy[measure]) for measure in MEASURES), *tested])
    seeds = next(policy["seeds"] for name, policy in found["policies"].items() if name != UNTRAINED)
    sets = len(found["policies"][RAW]["sets"])
    named = ", ".join(map(str, seeds))
    what = "mean ± standard deviation" if len(seeds) > 1 else "mean"
    note = f"{what} over seeds {named}; evaluation sets: {sets}; "
    parts = [format_table(header, lines), f"{note}p: {found['test']}"]
    if sets > 1:
        parts.insert(1, format_table([MEASURE, *found["policies"]], list(set_lines(found))))
    return "\n\n".join(parts)


def set_lines(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line for each evaluation set."""
    for name in found["policies"][RAW]["sets"]:
        yield [name, *(shown(policy["sets"][name][MEASURE]) for policy in found["policies"].values())]


def shown(value: Mapping[str, float | None]) -> str:
    """A mean with its deviation."""
    deviation = value["sd"]
    return f"{value['mean']:.4f}" + ("" if deviation is None or math.isnan(deviation) else f" ± {deviation:.4f}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept, and the same command goes on")
