"""The inputs and the calls of the public API that ``same_output.py`` makes, each in a process of its own.

usage: output_scenarios.py NAME, from a folder that holds the sample of the package

Nothing here knows a module inside the package: it uses its public names alone.
"""

from __future__ import annotations

import asyncio
import csv
import functools
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

import arhn_datasets as arhn

SAMPLE, TRUTH = "questions.jsonl", "questions.truth.jsonl"
TRAINERS = ("triplet", "n-tuple", "pair", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "beir", "mteb")
FORMS = (
    *("tevatron", "no-ids", "flagembedding", "flagembedding-bare"),
    *("triplets", "n-tuples", "labelled", "scored-list", "dpr"),
)


def sample() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(SAMPLE).read_text(encoding="utf-8").splitlines()]


def number(*of: object) -> int:
    """A number that follows from some values, the same in every process."""
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:8], 16)


def score(passage: Mapping[str, Any]) -> float | None:
    """A score with some ties, and some nulls."""
    found = number(passage["docid"])
    return None if found % 13 == 0 else found % 40 / 40


def forms() -> dict[str, list[dict[str, Any]]]:
    """Rows of the sample in each form, with columns that pass through."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMS}
    for row in sample()[::4]:
        query, positives, negatives = row["query"], row["positive_passages"], row["negative_passages"]
        pos, neg = [one["text"] for one in positives], [one["text"] for one in negatives]
        more = {"subset": row["subset"], "weight": len(query) / 8, "tags": [query[:3], None], "note": None}
        scores = [number(text) % 100 / 100 for text in neg]
        flag = {"query": query, "pos": pos, "neg": neg, **more}
        columns = [f"negative_{place}" for place in range(11)]
        rows = {
            "tevatron": [{**row, **more}],
            "no-ids": [
                {
                    "query": query,
                    "positive_passages": [{"text": text} for text in pos],
                    "negative_passages": [{"text": text} for text in neg],
                }
            ],
            "flagembedding": [
                {**flag, "pos_scores": [0.9] * len(pos), "neg_scores": scores, "prompt": f"Find {query[:9]}"}
            ],
            "flagembedding-bare": [flag],
            "triplets": [{"anchor": query, "positive": a, "negative": b, **more} for a in pos for b in neg],
            "n-tuples": [
                {"query": query, "answer": one, **dict(itertools.zip_longest(columns, neg[: len(columns)]))}
                for one in pos
            ],
            "labelled": [{"query": query, "docs": pos + neg, "labels": [1] * len(pos) + [0] * len(neg), **more}],
            "scored-list": [
                {"anchor": query, "documents": pos + neg, "scores": [0.5] * len(pos) + [each - 2 for each in scores]}
            ],
            "dpr": [
                {
                    "question": query,
                    "positive_ctxs": [{"passage_id": one["docid"], **one, "score": 1.5} for one in positives],
                    "hard_negative_ctxs": [{"passage_id": one["docid"], **one, "score": 0.5} for one in negatives],
                    "answers": pos[:1],
                    **more,
                }
            ],
        }
        for name, some in rows.items():
            made[name].extend(some)
    return made


def inputs() -> None:
    """Write every form, and one form in every kind of file."""
    here = Path("inputs")
    (here / "folder").mkdir(parents=True)
    for name, rows in forms().items():
        (here / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    plain = [{name: row[name] for name in ("anchor", "positive", "negative", "subset")} for row in forms()["triplets"]]
    with (here / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(plain[0]))
        table.writeheader()
        table.writerows(plain)
    whole = sample()
    pq.write_table(pa.Table.from_pylist(whole[:20]), here / "table.parquet", row_group_size=6)
    (here / "list.json").write_text(json.dumps(whole[20:30]), encoding="utf-8")
    for part in range(2):
        rows = whole[part * 12 : part * 12 + 12]
        pq.write_table(pa.Table.from_pylist(rows), here / "folder" / f"train-{part}.parquet", row_group_size=6)
    splits = {"train": whole[30:40], "validation": whole[40:46]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    saved.save_to_disk(here / "saved")


# --- the public API -------------------------------------------------------------------------------------------------


def ways(stage: Any, rows: Any) -> Iterator[tuple[str, Any]]:
    """What a stage gives in each way in which it can be called."""
    yield "batched", rows.map(stage, batched=True, batch_size=16)
    yield "row-by-row", rows.map(stage)
    yield "stream", rows.to_iterable_dataset().map(stage, batched=True, batch_size=16)
    yield "stream-of-arrow", rows.to_iterable_dataset().with_format("arrow").map(stage, batched=True, batch_size=16)
    yield "table", stage(rows.with_format("arrow")[:])
    yield "dicts", [stage(row) for row in rows]
    yield "dict-of-lists", stage(rows[:])


def dump(path: str, found: Any) -> None:
    """Rows as JSON lines, below their schema where they have one."""
    schema = "no schema"
    if isinstance(found, pa.Table):
        found, schema = found.to_pylist(), found.schema.to_string(show_schema_metadata=False)
    elif isinstance(found, Mapping):
        names = list(found)
        found = [dict(zip(names, values, strict=True)) for values in zip(*found.values(), strict=True)]
    elif getattr(found, "features", None) is not None:
        schema = found.features.arrow_schema.to_string(show_schema_metadata=False)
    lines = (each.to_pylist() if isinstance(each, pa.Table) else [each] for each in found)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in itertools.chain.from_iterable(lines))
    Path(path).write_text(f"{schema}\n{text}", encoding="utf-8")


def adapted() -> None:
    """Every form by ``arhn.adapt`` and ``arhn.adapt_dataset``, with a corpus and from BEIR's parts as well."""
    for name, rows in forms().items():
        found = datasets.Dataset.from_list(rows)
        for way, result in ways(arhn.adapt, found):
            dump(f"adapted/{name}/{way}.jsonl", result)
        dump(f"adapted/{name}/dataset.jsonl", arhn.adapt_dataset(found))
        dump(f"adapted/{name}/rows.jsonl", arhn.adapt_dataset(rows))
    whole = sample()
    passages = {one["docid"]: one for row in whole for one in (*row["positive_passages"], *row["negative_passages"])}
    ids = [
        {
            "query_text": row["query"],
            "positive_document_ids": [one["docid"] for one in row["positive_passages"]],
            "negative_document_ids": [one["docid"] for one in row["negative_passages"]],
            "subset": row["subset"],
        }
        for row in whole
    ]
    dump("adapted/ids.jsonl", arhn.adapt_dataset(datasets.Dataset.from_list(ids), corpus=list(passages.values())))
    parts = {
        "queries": {row["query_id"]: row["query"] for row in whole},
        "corpus": passages,
        "qrels": {row["query_id"]: {one["docid"]: 1 for one in row["positive_passages"]} for row in whole},
        "run": {
            row["query_id"]: {one["docid"]: number(one["docid"]) % 99 for one in row["negative_passages"]}
            for row in whole
        },
    }
    dump("adapted/beir.jsonl", arhn.adapt_dataset(**parts, max_negatives=4))


def told() -> Any:
    """An annotator whose replies follow from the texts, with every status among them."""

    class Told(arhn.Annotator):
        """Changes what the lexical baseline says, so that no class of the package has to be named."""

        def identity(self, stage: str) -> dict[str, Any]:
            return {"annotator": "told", "stage": stage}

        async def snippet(self, request: Any) -> Any:
            found = await arhn.Lexical().snippet(request)
            if (drawn := number(request.query, request.passage["text"])) % 11 > 1:
                return found
            nothing = dict.fromkeys(("snippet", "start", "end", "field"))
            return replace(found, **nothing, status=("error", "unparsed")[drawn % 11], detail="told so")

        async def ranking(self, request: Any) -> Any:
            await asyncio.sleep(0)
            return await arhn.Lexical().ranking(request)

        async def verdicts(self, request: Any) -> Any:
            found = await arhn.Lexical().verdicts(request)
            drawn = (number(request.query, text) for text in request.candidates)
            said = (("better", "worse", "no_match", "no_match", None)[each % 5] for each in drawn)
            return tuple(
                replace(each, verdict=verdict, status="judged" if verdict else "unparsed")
                for each, verdict in zip(found, said, strict=True)
            )

        async def grade(self, request: Any) -> Any:
            found = await arhn.Lexical().grade(request)
            drawn = number(request.query, request.passage["text"]) % 9
            return replace(found, grade=drawn // 2 if drawn < 8 else None, status="judged" if drawn < 8 else "error")

    return Told()


def chains() -> dict[str, list[Any]]:
    """Every rule, behind the stages that give its evidence."""
    columns = arhn.Scores(columns=("of_positives", "of_negatives"))
    annotator = told()
    arhns = [arhn.Snippets(annotator=annotator), arhn.Ranks(annotator=annotator)]
    by_passage = arhn.Ranks(annotator=annotator, rank_by="passage", window=3, stride=2)
    cascade = arhn.Cascade(arhn.Lexical(), annotator)
    grades, verdicts = arhn.Grades(annotator=annotator), arhn.Verdicts(annotator=annotator, window=4)
    screened = arhn.Verdicts(annotator=annotator, screen=arhn.Lexical())
    by_grades, by_verdicts = (functools.partial(arhn.Relabel, evidence=kind) for kind in ("grades", "verdicts"))
    return {
        "scored-0": [columns, arhn.PositiveAware(method="TopK-Abs", threshold=0.5, min_negatives=2)],
        "scored-1": [columns, arhn.PositiveAware(method="TopK-MarginPos", absolute_margin=0.1, top_k=3)],
        "scored-2": [columns, arhn.PositiveAware(reference="mean", min_negatives=3, on_shortage="drop")],
        "scored-3": [columns, arhn.AdaptiveMargin(slope=0.2, reference="max", on_shortage="allow")],
        "scored-4": [columns, arhn.AmbiguousSampling(a=5.0, b=0.1, num_hard_negatives=2, seed=4)],
        "arhn": [*arhns, arhn.relabel],
        "arhn-passages": [arhns[0], by_passage, arhn.Relabel(unsupported="relabel")],
        "cascade": [arhn.Snippets(annotator=cascade), arhn.Ranks(annotator=cascade), arhn.Relabel(policy="relabel")],
        "verdicts": [verdicts, by_verdicts(max_matches=3)],
        "verdicts-screened": [screened, by_verdicts(policy="filter")],
        "grades": [grades, by_grades(ties="below", reference="worst")],
        "grades-2": [grades, by_grades(threshold=1, policy="relabel", unsupported="keep")],
        "grades-cascade": [arhn.Grades(annotator=cascade), by_grades()],
    }


def rows_of_scores() -> Any:
    """The sample as a Dataset, with a column of scores for each side."""
    sides = (("of_positives", "positive_passages"), ("of_negatives", "negative_passages"))
    return datasets.Dataset.from_list(
        [{**row, **{name: [score(one) for one in row[side]] for name, side in sides}} for row in sample()]
    )


def ruled() -> None:
    """The rows of every rule and of its way back, called in each way; a policy after another one."""
    for name, stages in chains().items():
        rows = rows_of_scores()
        for stage in stages:
            before, rows = rows, rows.map(stage, batched=True)
            kind = type(stage).__name__
            for way, found in ways(stage, before):
                dump(f"rules/{name}/{kind}/{way}.jsonl", found)
        for way, found in ways(arhn.Revert(keep_evidence=False), rows):
            dump(f"rules/{name}/revert/{way}.jsonl", found)
        dump(f"rules/{name}/revert/evidence.jsonl", rows.map(arhn.revert, batched=True))
        dump(f"rules/{name}/kept.jsonl", rows.filter(arhn.is_kept))
        if name.startswith("arhn"):
            other = arhn.Relabel(policy="filter", ties="below")
            dump(f"rules/{name}/other-policy.jsonl", rows.map(other, batched=True))
    twice = rows_of_scores().map(arhn.Scores(columns=("of_positives", "of_negatives")), batched=True)
    for fuse in ("mean", "rrf"):
        fused = arhn.Scores(columns=("of_positives", "of_negatives"), fuse=fuse)
        dump(f"rules/fused-{fuse}.jsonl", twice.map(fused, batched=True))


def pushed() -> None:
    """Every rule's rows on the Hub and in every format, by the API."""
    for name, stages in chains().items():
        rows = rows_of_scores()
        for stage in stages:
            rows = rows.map(stage, batched=True)
        arhn.push(rows, f"writer/{name}", formats=["n-tuple", "labeled-list"], transforms=stages)
        arhn.export(rows, TRAINERS, f"exports/{name}", negatives=3, grades=True, separator=" | ")
        print(json.dumps(arhn.evaluate(rows, TRUTH, samples=20, seed=2).to_json()))


def joined() -> None:
    """Published rows with their evidence, the way back from there, and another policy."""
    for name in chains():
        repository = f"writer/{name}"
        known = datasets.get_dataset_config_names(repository)
        default, evidence, *dropped = (
            datasets.load_dataset(repository, config, split="train")
            for config in ("default", "evidence", "dropped")
            if config in known
        )
        wide = arhn.with_evidence(datasets.concatenate_datasets([default, *dropped]), evidence)
        dump(f"joined/{name}/wide.jsonl", wide)
        dump(f"joined/{name}/source.jsonl", wide.map(arhn.Revert(keep_evidence=False), batched=True))
        dump(f"joined/{name}/again.jsonl", wide.map(chains()[name][-1], batched=True))


def identified() -> None:
    """Copies of refined folders with one known id: the ids and the order of an audit follow from that of the run."""
    for name in ("lexical", "emulator", "policies/emulator-3"):
        copy = Path("audits", name.replace("/", "-"))
        shutil.copytree(name, copy)
        own = json.loads((copy / "run.json").read_text(encoding="utf-8"))["id"]
        for path in (copy / "run.json", copy / "README.md"):
            path.write_text(path.read_text(encoding="utf-8").replace(own, "0123456789abcdef" * 2), encoding="utf-8")


def answered() -> None:
    """The sheet of an audit with answers."""
    with open("audits/emulator.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    with open("audits/answered.csv", "w", newline="", encoding="utf-8") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        for row in rows:
            drawn = number(row["query"], row["passage"]) % 5
            sheet.writerow({**row, "answers": ("yes", "no", "no", "yes", "unsure")[drawn]})


SCENARIOS = {one.__name__: one for one in (inputs, adapted, ruled, pushed, identified, answered, joined)}

if __name__ == "__main__":
    datasets.disable_caching()
    SCENARIOS[sys.argv[1]]()
