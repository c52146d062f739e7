"""Evaluate a sentence-transformers model on retrieval sets: nDCG@10, RR@10 and R@100 by ir-measures, exact search.

usage: evaluate_retriever.py --model intfloat/e5-base --dataset FOLDER --output runs
           --query-prompt "query: " --passage-prompt "passage: "
       evaluate_retriever.py --model e5-arhn --beir nfcorpus,scifact,fiqa --output runs --resume

Needs: pip install 'arhn_datasets[train]'. A set is a folder in BEIR's form (corpus.jsonl, queries.jsonl and
qrels/SPLIT.tsv), a repository of the Hub with the configurations corpus, queries and qrels (or default, or a repository
NAME-qrels beside it), or a set of BEIR by its name. --output keeps a TREC run and the values of each query.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from arhn_datasets.folder.report import format_table

MEASURES = ("nDCG@10", "RR@10", "R@100")
DEPTH = 100  # of a run
CHUNK = 20_000  # most passages that are encoded and searched at once
SCORES = 1 << 26  # of queries with passages at once; 256 MB
SIMILARITIES = ("cosine", "dot")

FORUMS = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)
BEIR: dict[str, tuple[str, ...]] = {
    # The repositories of the Hub that hold a set, in the order in which they are tried.
    **{
        name: (f"BeIR/{name}", f"mteb/{name}")
        for name in (
            *("msmarco", "trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "quora", "scidocs", "fever"),
            *("climate-fever", "scifact"),
        )
    },
    "webis-touche2020": ("BeIR/webis-touche2020", "mteb/touche2020"),
    "dbpedia-entity": ("BeIR/dbpedia-entity", "mteb/dbpedia"),
    **{f"cqadupstack-{forum}": (f"mteb/cqadupstack-{forum}",) for forum in FORUMS},
}
ELSEWHERE = ("bioasq", "signal1m", "trec-news", "robust04")  # of BEIR, and not free to be passed on
SPLITS = {"msmarco": ("validation", "dev")}

DOCID = ("_id", "docid", "id")
QUERY_ID = ("_id", "query_id", "id")

Qrels = dict[str, dict[str, int]]
Rows = Callable[[Sequence[str]], Iterator[dict[str, Any]]]  # anew at each call, with these of the columns


class Source(NamedTuple):
    """Where a retrieval set is, and what of it is searched.

    ``place`` is a folder or the repositories to try; ``corpus``, ``queries``, ``qrels`` and ``docids`` are files in the
    folder, or anywhere. ``group`` is what the figures of several sets are averaged under.
    """

    name: str
    place: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    revision: str | None = None
    corpus: str | None = None
    queries: str | None = None
    qrels: str | None = None
    docids: str | None = None
    group: str | None = None


class Settings(NamedTuple):
    """How queries and passages are encoded and compared; what is None is the model's own."""

    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_seq_length: int | None = None
    similarity: str | None = None
    separator: str = " "
    same_ids: bool = False
    batch_size: int = 64
    device: str | None = None
    bf16: bool = False


class Loaded(NamedTuple):
    """A set that can be searched; ``passages`` gives (docid, text) anew at each call."""

    passages: Callable[[], Iterator[tuple[str, str]]]
    count: int
    queries: dict[str, str]
    qrels: Qrels


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, and print the table."""
    options = parser().parse_args(arguments)
    sources = sources_of(options)
    settings = Settings(**{name: getattr(options, name) for name in Settings._fields})
    found = evaluate(options.model, sources, settings, output=options.output, resume=options.resume)
    groups = grouped(sources, found)
    lines = [[name, *(f"{values[measure]:.4f}" for measure in MEASURES)] for name, values in groups.items()]
    mean = average(groups.values())
    if len(groups) > 1:
        lines.append(["mean", *(f"{mean[measure]:.4f}" for measure in MEASURES)])
    print(format_table([options.model, *MEASURES], lines))
    if options.json:
        print(json.dumps({"model": options.model, "datasets": found, "mean": mean}))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a sentence-transformers model, a Hub id or a folder")
    parser.add_argument("--dataset", action="append", metavar="DIR|REPO_ID", help="a set in BEIR's form; repeatable")
    parser.add_argument("--beir", metavar="NAME,...", help=f"sets of BEIR, or all: {', '.join(beir_names())}")
    parser.add_argument("--split", help="of the qrels; test by default, and of msmarco what BEIR uses")
    parser.add_argument("--revision", help="of a dataset on the Hub")
    parser.add_argument("--corpus", metavar="FILE", help="in the folder; corpus.jsonl by default")
    parser.add_argument("--queries", metavar="FILE", help="in the folder; queries.jsonl or SPLIT.queries.jsonl")
    parser.add_argument("--qrels", metavar="FILE", help="in the folder; qrels/SPLIT.tsv or SPLIT.qrels.tsv")
    parser.add_argument("--docids", metavar="FILE", help="search only in these: a JSON list, or a docid a line")
    parser.add_argument("--query-prompt", help="in front of each query; by default the model's own prompt")
    parser.add_argument("--passage-prompt", help="in front of each passage; by default the model's own prompt")
    parser.add_argument("--separator", default=" ", help="between title and text, as in training")
    parser.add_argument("--max-seq-length", type=int, metavar="TOKENS")
    parser.add_argument("--similarity", choices=SIMILARITIES, help="by default the model's own")
    parser.add_argument("--same-ids", action="store_true", help="keep a hit with the id of its query; BEIR does not")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", help="by default a GPU where there is one")
    parser.add_argument("--bf16", action="store_true", help="encode in bfloat16: faster on a GPU, a little less exact")
    parser.add_argument("--output", metavar="DIR", help="keep NAME.trec and NAME.json, the run and each query's values")
    parser.add_argument("--resume", action="store_true", help="take the sets whose values are in --output from there")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return parser


def sources_of(options: argparse.Namespace) -> list[Source]:
    """The sets that the command line names."""
    files = {name: getattr(options, name) for name in ("revision", "corpus", "queries", "qrels", "docids")}
    given = [f"--{name}" for name, file in files.items() if file is not None]
    if given and not options.dataset:
        fail(f"{', '.join(given)} goes with --dataset.")
    splits = (options.split or "test",)
    sources = [source_of(dataset, splits=splits, **files) for dataset in options.dataset or ()]
    sources += beir_sources(options.beir, options.split) if options.beir is not None else []
    return distinct(sources)


def distinct(sources: Sequence[Source]) -> list[Source]:
    """The sets, if there are some and each has a name of its own, under which its results stand."""
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        fail(f"{f'two sets are named {twice[0]}' if twice else 'no set is named'}; expected --dataset or --beir.")
    return list(sources)


def source_of(dataset: str, *, name: str | None = None, **options: Any) -> Source:
    """A folder or a repository of the Hub as a set."""
    folder = Path(dataset).is_dir()
    files = [f"--{option}" for option in ("corpus", "queries", "qrels") if options.get(option) is not None]
    if files and not folder:
        fail(f"{dataset} is no folder, and {', '.join(files)} names a file in one.")
    name = name or (Path(dataset).resolve().name if folder else dataset.replace("/", "--"))
    return Source(name=name, place=(dataset,), **options)


def beir_names() -> list[str]:
    """The sets of BEIR, the forums of CQADupStack as one."""
    return list(dict.fromkeys(name.partition("-")[0] if name in FORUM_SETS else name for name in BEIR))


FORUM_SETS = tuple(f"cqadupstack-{forum}" for forum in FORUMS)


def beir_sources(names: str, split: str | None = None) -> list[Source]:
    """Sets of BEIR by name; ``all`` are those that the Hub has."""
    wanted = beir_names() if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    sources = []
    for name in wanted:
        group = "cqadupstack" if name in ("cqadupstack", *FORUM_SETS) else name
        for part in FORUM_SETS if name == "cqadupstack" else (name,):
            if part in ELSEWHERE:
                fail(
                    f"{part} is a set of BEIR whose texts are not free, and so not on the Hub. Get it from its makers, "
                    "bring it into BEIR's form, and name the folder: --dataset."
                )
            if part not in BEIR:
                fail(f"{part!r} is no set of BEIR; those on the Hub are {', '.join(beir_names())}.")
            splits = (split,) if split else SPLITS.get(part, ("test",))
            sources.append(Source(name=part, place=BEIR[part], splits=splits, group=group))
    return sources


def evaluate(
    model_name: str,
    sources: Sequence[Source],
    settings: Settings,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    label: str | None = None,
    show: bool = True,
) -> dict[str, dict[str, Any]]:
    """The measures of each set, ``{set: {measure: mean over the queries, "queries", "passages"}}``.

    With ``output``, ``NAME.trec`` has the run and ``NAME.json`` the values of each query. With ``resume``, a set whose
    values are there, of the same model, source and settings, is taken from there; ``label`` is what they know the model
    by, its name unless it is given.
    """
    check_needs()
    folder = None if output is None else Path(output)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"{output} cannot be written: {error}")
    model = None
    results = {}
    for number, source in enumerate(sources, 1):
        asked = asked_of(label or model_name, source, settings)
        known = kept_values(folder, source, asked) if resume else None
        if known is None:
            data = load(source, settings.separator)
            model = model or load_model(model_name, settings)
            if show:
                of = f"{number} of {len(sources)}: " if len(sources) > 1 else ""
                print(f"{of}{source.name}: {len(data.queries):,} queries, {data.count:,} passages", file=sys.stderr)
            run = search(model, data, settings, show=show)
            values = measured(data.qrels, run)
            known = {**asked, "passages": data.count, "queries": values}
            if folder is not None:
                write_run(folder / f"{source.name}.trec", run, tag=label or Path(model_name).name)
                write_whole(folder / f"{source.name}.json", json.dumps(known, indent=1))
        values = known["queries"]
        means = {measure: float(np.mean([query[measure] for query in values.values()])) for measure in MEASURES}
        results[source.name] = {**means, "queries": len(values), "passages": known["passages"]}
    return results


def asked_of(model_name: str, source: Source, settings: Settings) -> dict[str, Any]:
    """What is kept beside the values, to know them again."""
    asked = {"model": model_name, "source": source._asdict(), "settings": settings._asdict()}
    return dict(json.loads(json.dumps(asked)))  # with lists for tuples, as they are read


def kept_values(folder: Path | None, source: Source, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``NAME.json`` holds, where it is of the same model, source and settings."""
    if folder is None:
        fail("--resume takes what an earlier run has left in --output; name that folder.")
    try:
        known: dict[str, Any] = json.loads((folder / f"{source.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if all(known.get(name) == value for name, value in asked.items()) else None


def check_needs() -> None:
    """That the extra is installed."""
    try:
        import ir_measures  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        fail(f"{error}. This script needs: pip install 'arhn_datasets[train]'")


def load_model(name: str, settings: Settings) -> Any:
    """The model, on a GPU where there is one."""
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name, device=settings.device)
    except (OSError, ValueError, RuntimeError) as error:
        fail(f"the model {name} cannot be loaded: {first_line(error)}")
    if settings.max_seq_length:
        model.max_seq_length = settings.max_seq_length
    if settings.bf16:
        model.bfloat16()
    return model.eval()


# -- search ------------------------------------------------------------------------------------------------------------


def search(model: Any, data: Loaded, settings: Settings, *, show: bool = True) -> dict[str, dict[str, float]]:
    """The best :data:`DEPTH` passages of each query, ``{query_id: {docid: score}}``, by exact search.

    Passages are encoded and searched a chunk at a time: memory holds queries, one chunk, docids, and the best hits.
    """
    import torch
    from tqdm import tqdm

    similarity = settings.similarity or str(getattr(model, "similarity_fn_name", None) or "cosine")
    if similarity not in SIMILARITIES:
        fail(f"the model compares by {similarity}; name one of --similarity {', '.join(SIMILARITIES)}.")

    def encoded(side: str, texts: list[str], prompt: str | None) -> Any:
        encode = getattr(model, f"encode_{side}", None)
        if encode is None:  # before sentence-transformers 5
            encode, prompt = model.encode, (model.prompts or {}).get(side) if prompt is None else prompt
        vectors = encode(
            texts,
            prompt=prompt,
            batch_size=settings.batch_size,
            convert_to_tensor=True,
            normalize_embeddings=similarity == "cosine",
            show_progress_bar=False,
        )
        return vectors.float()

    query_ids = list(data.queries)
    queries = encoded("query", list(data.queries.values()), settings.query_prompt)
    depth = min(DEPTH + 1, data.count)  # one more, for the passage that may be the query itself
    scores = torch.full((len(query_ids), 0), -torch.inf, device=queries.device)
    places = torch.zeros((len(query_ids), 0), dtype=torch.long, device=queries.device)
    docids: list[pa.Array] = []
    first = 0
    with tqdm(total=data.count, unit=" passages", unit_scale=True, desc="search", disable=not show) as bar:
        for chunk in chunks(data.passages(), min(CHUNK, max(1000, data.count // 50))):
            docids.append(pa.array([docid for docid, _ in chunk], pa.large_string()))
            passages = encoded("document", [text for _, text in chunk], settings.passage_prompt)
            scores, places = merged(queries, passages, scores, places, first, depth)
            first += len(chunk)
            bar.update(len(chunk))
    named = pa.chunked_array(docids)
    hits, scores = named.take(pa.array(places.flatten().cpu().numpy())).to_pylist(), scores.cpu().tolist()
    run = {}
    for number, query_id in enumerate(query_ids):
        found = zip(hits[number * depth : (number + 1) * depth], scores[number], strict=True)
        kept = [(docid, score) for docid, score in found if settings.same_ids or docid != query_id]
        run[query_id] = dict(kept[:DEPTH])
    return run


def merged(queries: Any, passages: Any, scores: Any, places: Any, first: int, depth: int) -> tuple[Any, Any]:
    """The best so far, with a chunk whose first passage has the number ``first``; queries in blocks."""
    import torch

    rows = max(1, SCORES // len(passages))
    best = []
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        score, place = torch.topk(queries[part] @ passages.T, min(depth, len(passages)))
        score, place = torch.cat([scores[part], score], 1), torch.cat([places[part], place + first], 1)
        score, at = torch.topk(score, min(depth, score.shape[1]))
        best.append((score, place.gather(1, at)))
    return torch.cat([score for score, _ in best]), torch.cat([place for _, place in best])


def chunks(passages: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """The passages in lists of ``size``."""
    chunk = []
    for passage in passages:
        chunk.append(passage)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def measured(qrels: Qrels, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The measures of each query, ``{query_id: {measure: value}}``."""
    import ir_measures

    measures = [ir_measures.parse_measure(measure) for measure in MEASURES]
    values: dict[str, dict[str, float]] = {query_id: {} for query_id in run}
    for metric in ir_measures.iter_calc(measures, qrels, run):
        values[metric.query_id][str(metric.measure)] = float(metric.value)
    return values


def grouped(sources: Sequence[Source], found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The measures by group: those of CQADupStack are the mean of its forums, as BEIR has it."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for source in sources:
        groups.setdefault(source.group or source.name, []).append(found[source.name])
    return {name: average(values) for name, values in groups.items()}


def average(values: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each measure over sets, each set counting alike."""
    listed = list(values)
    return {measure: float(np.mean([value[measure] for value in listed])) for measure in MEASURES}


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """A TREC run, best hit first. White space in an id, which the form does not take, is written as %20."""

    def word(text: str) -> str:
        return re.sub(r"\s", lambda space: quote(space[0]), text) or "-"

    lines = (  # nine digits tell any two floats of 32 bits apart: none are tied that were not
        f"{word(query_id)} Q0 {word(docid)} {rank} {score:.9g} {word(tag)}\n"
        for query_id, hits in run.items()
        for rank, (docid, score) in enumerate(hits.items(), 1)
    )
    write_whole(path, "".join(lines))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it has its name only when it is whole."""
    writing = path.with_name(f".{path.name}.writing")
    writing.write_text(text, encoding="utf-8")
    writing.replace(path)


# -- sets --------------------------------------------------------------------------------------------------------------


def load(source: Source, separator: str = " ") -> Loaded:
    """Queries with a relevant passage, their qrels, and the passages to search in."""
    if len(source.place) == 1 and Path(source.place[0]).is_dir():
        corpus, queries, qrels = from_folder(source)
    else:
        corpus, queries, qrels = from_hub(source)
    wanted = None if source.docids is None else read_docids(source)

    def searched(*fields: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in corpus((*DOCID, *fields)):
            docid = id_of(row, DOCID, source.name)
            if wanted is None or docid in wanted:
                yield docid, row

    def passages() -> Iterator[tuple[str, str]]:
        for docid, row in searched("title", "text"):
            yield docid, joined(row.get("title") or "", row.get("text") or "", separator)

    missing = {docid for judged in qrels.values() for docid in judged}
    count = 0
    for docid, _ in searched():
        count += 1
        missing.discard(docid)
    texts = judged_queries(queries, qrels, source.name)
    if not count or not texts:
        fail(
            f"{source.name} has {count:,} passages to search in and {len(texts):,} queries with a relevant passage in "
            f"the qrels; some of each were expected. Do the ids of queries, qrels and docids belong together?"
        )
    left_out = len(qrels) - len(texts)
    notes = [f"{left_out:,} queries without text or without a relevant passage are left out"] if left_out else []
    notes += [f"{len(missing):,} judged passages are not searched and cannot be found"] if missing else []
    for note in notes:
        print(f"{source.name}: {note}", file=sys.stderr)
    return Loaded(passages, count, texts, {query_id: qrels[query_id] for query_id in texts})


def judged_queries(queries: Rows, qrels: Qrels, name: str) -> dict[str, str]:
    """The texts of the queries that have a relevant passage."""
    relevant = {query_id for query_id, judged in qrels.items() if any(grade > 0 for grade in judged.values())}
    texts = {}
    for row in queries((*QUERY_ID, "text", "query")):
        query_id = id_of(row, QUERY_ID, name)
        if query_id in relevant:
            texts[query_id] = str(row["text"] if "text" in row else row.get("query") or "")
    return texts


def joined(title: str, text: str, separator: str = " ") -> str:
    """Title and text as training has them: one of them alone where the other is empty."""
    return f"{title}{separator}{text}" if title and text else title or text


def from_folder(source: Source) -> tuple[Rows, Rows, Qrels]:
    """Corpus, queries and qrels of a folder."""
    root, split = Path(source.place[0]), source.splits[0]
    corpus = file_in(root, source.corpus, "corpus.jsonl")
    queries = file_in(root, source.queries, "queries.jsonl", f"{split}.queries.jsonl")
    qrels = file_in(root, source.qrels, f"qrels/{split}.tsv", f"{split}.qrels.tsv")
    return lambda _: json_lines(corpus), lambda _: json_lines(queries), read_qrels(qrels)


def file_in(root: Path, given: str | None, *usual: str) -> Path:
    """The file that was named, or the first of the usual ones that is there."""
    named = [root / name for name in usual] if given is None else [root / given, Path(given)]
    found = [path for path in named if path.is_file()]
    if not found:
        there = sorted(path.relative_to(root).as_posix() for path in [*root.glob("*.*"), *root.glob("qrels/*")])
        fail(
            f"{root} has no {given or ' or '.join(usual)}; found {', '.join(there[:12]) or 'nothing'}. Name a --split, "
            "or the files: --corpus, --queries, --qrels, --docids."
        )
    return found[0]


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                fail(f"{path}, line {number}: {error}; a JSON object was expected.")
            if not isinstance(row, dict):
                fail(f"{path}, line {number} is {line.strip()[:40]!r}; a JSON object was expected.")
            yield row


def read_qrels(path: Path) -> Qrels:
    """BEIR's three columns with or without a header, or TREC's four."""
    qrels: Qrels = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.reader(file, delimiter="\t"), 1):
            if len(cells) == 1:
                cells = cells[0].split()
            if not cells or (number == 1 and not is_integer(cells[-1])):
                continue
            if len(cells) not in (3, 4) or not is_integer(cells[-1]):
                fail(
                    f"{path}, line {number} is {cells}; expected query-id, corpus-id and a whole number, or the four "
                    "columns of a TREC qrels file."
                )
            qrels.setdefault(cells[0], {})[cells[-2]] = int(cells[-1])
    return qrels


def is_integer(text: str) -> bool:
    """Whether it is a whole number."""
    return re.fullmatch(r"[+-]?\d+", text.strip()) is not None


def read_docids(source: Source) -> frozenset[str]:
    """The docids to search in."""
    root = Path(source.place[0])
    path = file_in(root if root.is_dir() else Path(), source.docids)
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        return frozenset(line.strip() for line in text.splitlines() if line.strip())
    try:
        return frozenset(str(docid) for docid in json.loads(text))
    except ValueError as error:
        fail(f"{path}: {error}; a JSON list of docids, or a docid a line, was expected.")


def id_of(row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    """The id of a row, under the first of the names that it has."""
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        fail(f"a row of {what} has the columns {', '.join(row)}; an id was expected under one of {', '.join(names)}.")
    return str(found)


def from_hub(source: Source) -> tuple[Rows, Rows, Qrels]:
    """Corpus, queries and qrels of a repository, the first that loads."""
    found, reasons = None, []
    for repo_id in source.place:
        try:
            found = from_repository(repo_id, source)
            break
        except LookupError as error:
            reasons.append(str(error))
    if found is None:
        fail(
            f"{source.name} cannot be loaded: {' '.join(reasons)} Check name, network and login, or fetch it and name "
            "its folder: --dataset."
        )
    return found


def from_repository(repo_id: str, source: Source) -> tuple[Rows, Rows, Qrels]:
    """The same of one repository.

    Raises:
        LookupError: it is not there, or it is not of this form.
    """
    from datasets import get_dataset_config_names
    from datasets.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    configs = loading(repo_id, lambda: get_dataset_config_names(repo_id, revision=source.revision))
    if "corpus" not in configs or "queries" not in configs:
        raise LookupError(f"{repo_id} has the configurations {', '.join(configs)}; expected corpus and queries.")
    tables = {name: config_of(repo_id, name, source.revision, (name,)) for name in ("corpus", "queries")}
    judged = next((name for name in ("qrels", "default") if name in configs), None)
    if judged is not None:
        rows = config_of(repo_id, judged, source.revision, source.splits)
    else:
        rows = config_of(f"{repo_id}-qrels", None, None, source.splits)
    wanted = ("query-id", "corpus-id", "score")
    if not set(wanted) <= set(rows.column_names):
        raise LookupError(f"the qrels of {repo_id} have the columns {', '.join(rows.column_names)}; expected {wanted}.")
    qrels: Qrels = {}
    for batch in rows.select_columns(list(wanted)).iter(10_000):
        for query_id, docid, grade in zip(*(batch[name] for name in wanted), strict=True):
            qrels.setdefault(str(query_id), {})[str(docid)] = int(grade)
    corpus, queries = tables["corpus"], tables["queries"]
    return lambda columns: rows_of(corpus, columns), lambda columns: rows_of(queries, columns), qrels


def rows_of(table: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a dataset."""
    names = [name for name in columns if name in table.column_names]
    for batch in table.select_columns(names).iter(1000):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def config_of(repo_id: str, config: str | None, revision: str | None, splits: Sequence[str]) -> Any:
    """One of the splits of a configuration, or the only one that it has."""
    from datasets import load_dataset

    found = loading(repo_id, lambda: load_dataset(repo_id, config, revision=revision))
    for split in splits:
        if split in found:
            return found[split]
    if len(found) == 1 and config in ("corpus", "queries"):
        return next(iter(found.values()))
    raise LookupError(f"{repo_id} has the splits {', '.join(found)} in {config or 'qrels'}; expected {splits}.")


def loading(repo_id: str, load: Callable[[], Any]) -> Any:
    """What it gives; what the Hub or `datasets` refuses, as LookupError."""
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise LookupError(f"{repo_id}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, without the pages that some add."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def fail(message: str) -> NoReturn:
    """Say what is wrong and end."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
