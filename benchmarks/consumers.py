"""Loads every export with the loading code of those who read it, and compares what they see with our rows.

usage: consumers.py [--only NAME,...] [--environments DIR] [--seed N]

Each consumer has an environment of its own, made of the packages of this one and what is named in CONSUMERS, which pip
installs; it loads the files in a process there. No model is loaded: texts, sides and scores are taken where the trainer
would tokenise them. The rows are those of the sample with a random score on each passage and a prompt for each query,
refined by the lexical baseline. Exits with 1 where a consumer sees something else than was written. With
``--environments`` the environments stay and are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Row = tuple[str, list[str], list[str], "list[float] | None"]
"""A query, its positives, its other passages, and the scores of all of these."""

SOFT = ("triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "pylate")
HARD = (*SOFT[:-1], "pair", "ms-swift", "nemo", "beir", "mteb", "mteb-reranking")
NEGATIVES = 50  # more than a row has, so that none is cut off
INSTALL_SECONDS, LOAD_SECONDS = 900, 600


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """What is installed, with its dependencies or without them, and what it loads: a function for each export."""

    loads: Mapping[str, Callable[[Path], Iterable[Row]]]
    packages: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    refuses: frozenset[str] = field(default_factory=frozenset)


# --- what each reads, in its own environment --------------------------------------------------------------------------


def columns_of(name: str, soft: bool = False) -> Callable[[Path], Iterable[Row]]:
    """Of sentence-transformers: what its collators of both kinds of model make of the columns."""

    def load(folder: Path) -> Iterator[Row]:
        from datasets import load_dataset
        from sentence_transformers.base.data_collator import BaseDataCollator
        from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator

        def read(texts: list[Any], **_: Any) -> dict[str, list[Any]]:
            return {"texts": texts}

        collators = (BaseDataCollator(preprocess_fn=read), CrossEncoderDataCollator(preprocess_fn=read))
        for row in load_dataset(str(folder), name, split="train"):
            seen = []
            for collator in collators[1:] if name == "labeled-list" else collators:
                batch = collator([row])
                label = batch.pop("label", None)
                label = label[0].tolist() if label is not None else None
                texts = [v[0] for k, v in batch.items() if isinstance(v, list) and not k.endswith("prompt")]
                seen.append((texts, label))
            if any(one != seen[0] for one in seen):
                raise ValueError(f"the two kinds of model see different things: {seen}")
            (query, *texts), label = seen[0]
            texts = texts[0] if name == "labeled-list" else texts
            if name in ("triplet", "n-tuple", "pair"):
                yield query, texts[:1], texts[1:], label if soft else None
                continue
            labels = label if isinstance(label, list) else [label]
            if soft:
                if labels != sorted(labels, reverse=True):
                    raise ValueError("the list is not in the order of its scores, which ListMLE takes for the ranking")
                yield query, [], texts, labels
            else:
                sides = [[t for t, is_one in zip(texts, labels, strict=True) if is_one == side] for side in (1, 0)]
                yield query, *sides, None

    return load


def flagembedding(distils: bool, same_dataset: bool = False) -> Callable[[Path], Iterable[Row]]:
    """Its data sets of the embedder, drawn from again and again, so that every passage comes."""

    def load(folder: Path) -> Iterator[Row]:
        from FlagEmbedding.abc.finetune import embedder

        arguments = SimpleNamespace(
            train_data=[str(path) for path in (folder / "flagembedding").glob("train*")],
            cache_path=str(folder / "cache"),
            max_example_num_per_dataset=10**6,
            knowledge_distillation=distils,
            train_group_size=NEGATIVES + 1,
            shuffle_ratio=0.0,
            small_threshold=0,
            drop_threshold=0,
            query_instruction_for_retrieval="the global instruction",
            query_instruction_format="{}|{}",
            passage_instruction_for_retrieval=None,
            passage_instruction_format="{}{}",
        )
        if same_dataset:
            batches = embedder.AbsEmbedderSameDatasetTrainDataset(arguments, 4, 0, None)
            lines = (folder.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()
            subsets = {row["query"]: row["subset"] for row in map(json.loads, lines)}
            for _ in range(60):
                batches.refresh_epoch()
                for at in range(len(batches)):
                    queries, passages, _, _ = batches[at]
                    drawn = [
                        _drawn(query, passages[place * (NEGATIVES + 1) :][: NEGATIVES + 1], None)
                        for place, query in enumerate(queries)
                    ]
                    if len({subsets[query] for query, *_ in drawn}) > 1:
                        raise ValueError("a batch holds two subsets")
                    yield from drawn
            return
        rows = embedder.AbsEmbedderTrainDataset(arguments, None)
        for at in range(len(rows)):
            for _ in range(60):
                yield _drawn(*rows[at])

    return load


def _drawn(prompted: str, passages: list[str], scores: list[float] | None) -> Row:
    prompt, _, query = prompted.partition("|")
    if prompt != f"prompt of {query}":
        raise ValueError(f"the prompt of {query!r} is {prompt!r}")
    return query, passages[:1], passages[1:], scores


def pylate(name: str) -> Callable[[Path], Iterable[Row]]:
    """What its collator gives the loss: the query, the documents of all rows in one list, and the scores."""

    def load(folder: Path) -> Iterator[Row]:
        from datasets import load_dataset
        from pylate.utils import ColBERTCollator

        def tokenize(texts: list[Any], **_: Any) -> dict[str, list[Any]]:
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("something else than texts is to be tokenised")
            return {"texts": texts}

        collator = ColBERTCollator(tokenize_fn=tokenize)
        rows = list(load_dataset(str(folder), name, split="train"))
        batch = collator(rows)
        columns = [value for key, value in batch.items() if key.endswith("_texts")]
        width = len(columns[1]) // len(rows)
        for at, query in enumerate(columns[0]):
            texts = columns[1][at * width : (at + 1) * width] + [column[at] for column in columns[2:]]
            yield query, texts[:1], texts[1:], batch["label"][at].tolist() if "label" in batch else None

    return load


def ms_swift(folder: Path) -> Iterator[Row]:
    """Its data set and the inputs of its template; an embedding trainer takes the first positive alone."""
    from swift.dataset import load_dataset
    from swift.template.template_inputs import TemplateInputs

    rows, _ = load_dataset(str(folder / "ms-swift" / "train.jsonl"))
    for row in rows:
        inputs = TemplateInputs.from_dict(dict(row))
        [question] = inputs.chosen.messages
        query = question["content"]
        if inputs.chosen.system != f"prompt of {query}":
            raise ValueError(f"the instruction of {query!r} is {inputs.chosen.system!r}")
        texts = [[one.messages[0]["content"] for one in side] for side in (inputs.positive[:1], inputs.negative)]
        yield query, *texts, None


def nemo(folder: Path) -> Iterator[Row]:
    """Its inline data set, and the transform that takes the first positive and the first negatives."""
    from nemo_automodel.components.datasets.llm import retrieval_dataset_inline as inline

    rows, _ = inline.load_datasets(str(folder / "nemo" / "train.jsonl"))
    for row in rows:
        seen = inline._retrieval_transform_func(row, NEGATIVES, {})
        yield seen["question"], seen["doc_text"][:1], seen["doc_text"][1:], None


def tevatron(folder: Path) -> Iterator[Row]:
    """Its preprocessor of training rows, with a tokeniser that gives the text back."""
    from datasets import load_dataset
    from tevatron.datasets.preprocessor import TrainPreProcessor

    encode = TrainPreProcessor(SimpleNamespace(encode=lambda text, **_: text), separator=" ")
    for row in load_dataset(str(folder), "tevatron", split="train"):
        seen = encode(row)
        yield seen["query"], [text.strip() for text in seen["positives"]], [t.strip() for t in seen["negatives"]], None


def tevatron_scores(folder: Path) -> Iterator[Row]:
    """By the rule of its distillation, which stands in git alone: a score in each passage."""
    from datasets import load_dataset

    for row in load_dataset(str(folder), "tevatron", split="train"):
        sides = [row[f"{side}_passages"] for side in ("positive", "negative")]
        texts = [[f"{one['title']} {one['text']}".strip() for one in side] for side in sides]
        yield row["query"], *texts, [one["score"] for side in sides for one in side]


def beir(loader: str, **where: str) -> Callable[[Path], Iterable[Row]]:
    """Both of its loaders, of files and of a repository."""

    def load(folder: Path) -> Iterator[Row]:
        if loader == "GenericDataLoader":
            from beir.datasets.data_loader import GenericDataLoader

            corpus, queries, qrels = GenericDataLoader(str(folder / "beir")).load(split="train")
        else:
            from beir.datasets.data_loader_hf import HFDataLoader

            found = HFDataLoader(**{name: str(folder / path) for name, path in where.items()}).load(split="train")
            corpus = {row["id"]: row for row in found[0]}
            queries, qrels = {row["id"]: row["text"] for row in found[1]}, found[2]
        yield from _judged(corpus, queries, qrels)

    return load


def mteb(path: str, config: str | None = None, ranks: bool = False) -> Callable[[Path], Iterable[Row]]:
    """Its loader of retrieval tasks; a task of reranking has candidates."""

    def load(folder: Path) -> Iterator[Row]:
        from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

        found = RetrievalDatasetLoader(str(folder / path), "main", split="train", config=config).load()
        if (found["top_ranked"] is not None) != ranks:
            raise ValueError("the task is one of reranking, or is not and should be")
        corpus, queries = ({row["id"]: row for row in found[name]} for name in ("corpus", "queries"))
        texts = {id: row["text"] for id, row in queries.items()}
        yield from _judged(corpus, texts, found["relevant_docs"], found["top_ranked"])

    return load


def _judged(corpus: Any, queries: Any, qrels: Any, ranked: Any = None) -> Iterator[Row]:
    texts = {id: f"{row['title']} {row['text']}".strip() for id, row in corpus.items()}
    for id, grades in qrels.items():
        best = [texts[docid] for docid, grade in grades.items() if grade == 2]
        others = [docid for docid in (grades if ranked is None else ranked[id]) if grades.get(docid) != 2]
        yield queries[id], best, [texts[docid] for docid in others], None


CONSUMERS: Mapping[str, Consumer] = {
    "sentence-transformers": Consumer(
        loads={
            **{f"hard {name}": columns_of(name) for name in ("triplet", "n-tuple", "pair", *SOFT[2:4])},
            **{f"soft {name}": columns_of(name, soft=True) for name in SOFT[:4]},
        }
    ),
    "FlagEmbedding": Consumer(
        packages=("transformers==5.3.0",),  # later ones cannot import it
        bare=("FlagEmbedding", "peft", "sentencepiece", "ir-datasets"),
        loads={
            "hard flagembedding": flagembedding(False),
            "hard flagembedding, same dataset": flagembedding(False, same_dataset=True),
            "soft flagembedding": flagembedding(True),
        },
    ),
    "beir": Consumer(
        bare=("beir", "pytrec-eval-terrier"),
        loads={
            "hard beir": beir("GenericDataLoader"),
            "hard beir, HFDataLoader": beir("HFDataLoader", data_folder="beir"),
            "hard mteb, HFDataLoader": beir("HFDataLoader", hf_repo="mteb", hf_repo_qrels="mteb"),
        },
    ),
    "mteb": Consumer(
        bare=("mteb", "polars", "polars-runtime-32"),
        loads={
            "hard mteb": mteb("mteb"),
            "hard mteb-reranking": mteb("mteb-reranking", ranks=True),
            "hard mteb, published": mteb("published", config="arhn"),
            "hard mteb-reranking, published": mteb("published", config="arhn-reranking", ranks=True),
        },
    ),
    "pylate": Consumer(
        bare=("pylate",),
        loads={
            **{f"hard {name}": pylate(name) for name in ("triplet", "n-tuple", "pair")},
            **{f"soft {name}": pylate(name) for name in ("pylate", "triplet", "n-tuple")},
        },
        refuses=frozenset(("soft triplet", "soft n-tuple")),  # of which it would read the first passage alone
    ),
    "ms-swift": Consumer(
        packages=("modelscope", "cffi"), bare=("ms-swift", "peft", "json_repair"), loads={"hard ms-swift": ms_swift}
    ),
    "nemo": Consumer(bare=("nemo-automodel",), loads={"hard nemo": nemo}),
    "tevatron": Consumer(
        bare=("tevatron",), loads={"hard tevatron": tevatron, "soft tevatron, by its rule": tevatron_scores}
    ),
}


# --- what was written, and the comparison -----------------------------------------------------------------------------


def write_exports(root: Path, seed: int) -> list[dict[str, Any]]:
    """Every format in ``hard`` and in ``soft``, and a published folder; the rows that they are made of."""
    import arhn_datasets as arhn
    from arhn_datasets.folder.reading import open_folder
    from arhn_datasets.hub.publication import build_publication
    from arhn_datasets.runs.refine import Input, Stages, refine

    draw = random.Random(seed)
    sample = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
    rows = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["prompt"] = f"prompt of {row['query']}"
        for passage in (*row["positive_passages"], *row["negative_passages"]):
            passage["score"] = draw.randrange(10**6) / 2**20  # exact as float32, which trainers have
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical), ranks=arhn.Ranks(annotator=lexical), relabel=arhn.Relabel()
    )
    done = refine(Input(name=str(root / "rows.jsonl")), root / "refined", stages)
    arhn.export(done.path, HARD, root / "hard", negatives=NEGATIVES)
    arhn.export(done.path, SOFT, root / "soft", negatives=NEGATIVES, labels="soft")
    build_publication(open_folder(done.path), root / "hard" / "published", formats=("mteb", "mteb-reranking"))
    return [row for row in done.rows() if arhn.is_kept(row)]


def expected(rows: Sequence[Mapping[str, Any]], export: str) -> set[Any]:
    """The passages of each query with their sides and scores, as an export has to give them, in plain Python."""
    kind, name = export.split(",")[0].split(" ", 1)
    seen: list[Row] = []
    for row in rows:
        sides = [row[f"{side}_passages"] for side in ("positive", "negative", "filtered")]
        texts = [[f"{one['title']} {one['text']}".strip() for one in side] for side in sides]
        positives, negatives, filtered = texts
        others = {"beir": filtered, "mteb": filtered, "mteb-reranking": [*negatives, *filtered], "pair": []}
        scores = [one["score"] for side in sides[:2] for one in side] if kind == "soft" else None
        if kind == "soft" and name in ("labeled-pair", "labeled-list"):
            positives, negatives = [], [*positives, *negatives]
        seen.append((row["query"], positives, others.get(name, negatives), scores))
    return facts_of(seen)


def facts_of(rows: Iterable[Row]) -> set[Any]:
    """What the rows say, however they cut a query into several: query, passage, side and score."""
    facts = set()
    for query, positives, others, scores in rows:
        sides = [True] * len(positives) + [False] * len(others)
        known = scores if scores is not None else [None] * len(sides)
        facts |= {(query, *fact) for fact in zip([*positives, *others], sides, known, strict=True)}
    return facts


def load_all(name: str, root: Path) -> None:
    """Print what a consumer sees of each export, or why it sees nothing: a line of JSON each."""
    for export, load in CONSUMERS[name].loads.items():
        try:
            rows: Any = list(load(root / export.split(" ", 1)[0]))
        except Exception as error:
            rows = f"{type(error).__name__}: {error}"
        print("\n" + json.dumps([export, rows]), flush=True)


def environment(name: str, consumer: Consumer, root: Path) -> str:
    """The Python of a consumer's environment, which is made where it is not there."""
    if not (consumer.packages or consumer.bare):
        return sys.executable
    python = root / name / "bin" / "python"
    if not python.exists():
        venv.create(root / name, with_pip=False)
        site = root / name / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (site / "these.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python), "install"]
    for flags, packages in (([], consumer.packages), (["--no-deps"], consumer.bare)):
        if packages:
            subprocess.run(
                [*pip, *flags, *packages], check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True
            )
    return str(python)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(CONSUMERS)}")
    made.add_argument("--environments", metavar="DIR", type=Path, help="where they stay")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the scores, default: 0")
    made.add_argument("--load", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if options.load:
        load_all(options.load[0], Path(options.load[1]))
        return 0
    names = options.only.split(",") if options.only else list(CONSUMERS)
    if unknown := [name for name in names if name not in CONSUMERS]:
        made.error(f"there is no consumer {', '.join(unknown)}; expected some of {', '.join(CONSUMERS)}")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        rows = write_exports(root, options.seed)
        print(f"seed {options.seed}, {len(rows)} rows\n\n{'consumer':<22} {'export':<32} {'rows':>6}  result")
        for name in names:
            for export, seen in _seen(name, root, (options.environments or root / "environments").resolve()):
                refused = export in CONSUMERS[name].refuses
                if isinstance(seen, str):
                    right, result, count = refused, seen[:90] if not refused else "refused by it, as it should", 0
                else:
                    found, wanted, count = facts_of(seen), expected(rows, export), len(seen)
                    right = found == wanted and not refused
                    result = f"equal: {len(wanted)} passages" if right else f"{len(found ^ wanted)} passages differ"
                failed |= not right
                print(f"{name:<22} {export:<32} {count:>6,}  {'' if right else 'WRONG: '}{result}", flush=True)
    return int(failed)


def _seen(name: str, root: Path, environments: Path) -> Iterator[tuple[str, Any]]:
    """What a consumer sees of each export; one message where it cannot be installed."""
    try:
        python = environment(name, CONSUMERS[name], environments)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines() or ["?"]
        yield "(not installed)", said[-1]
        return
    command = [python, __file__, "--load", name, str(root)]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(root / "hf"), "USE_HF": "1"}
    quiet |= {"MODELSCOPE_CACHE": str(root / "modelscope")}
    done = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('["')]
    yield from (json.loads(line) for line in lines)
    if len(lines) < len(CONSUMERS[name].loads):
        yield "(ended early)", (done.stderr.strip().splitlines() or ["?"])[-1]


if __name__ == "__main__":
    sys.exit(main())
