"""What each stage costs on many rows, beside pyarrow that reads and writes the same rows, and beside plain Python.

usage: scale.py [--rows N] [--json] [--folder DIR]

Rows shaped like those of RLHN-680K (7 subsets, passage counts and lengths; the words are invented) are generated with
all evidence columns and written as parquet shards. Every stage reads shards and writes shards, in a fresh process, at
three numbers of rows: N and about a 7th and a 68th of it. The *floor* is pyarrow that reads the same shards and writes
their rows into shards of the same kind. *Plain* is the same result in Python dicts with ``Dataset.map``, on fewer rows.
The full size takes about 20 GB of disk in the scratch folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FULL = 680_000
SIZES = (10_000, 100_000, FULL)
PLAIN_ROWS = 20_000
REPEATED = range(1_000, 30_000)  # so many rows go three times through every stage, others once
SEED = 680
BATCH_ROWS = 1_000
GROUP_BYTES, SHARD_BYTES = 32_000_000, 500_000_000

LEAST_RELABEL, LEAST_EXPORT, LEAST_OVER_PLAIN = 0.5, 0.3, 10.0
MOST_MEMORY_MB = 4_096
MOST_EXPONENT = 1.1


# ---------------------------------------------------------------------------------------- synthetic rows


@dataclass(frozen=True)
class Subset:
    """The shape of a subset: its share of the rows, passages in a row, and characters in a passage."""

    name: str
    share: float
    positives: float
    negatives: int
    characters: int


# 16.9 kB a row in memory on average, as 10,961,970,907 bytes are in the 648,766 rows of rlhn/rlhn-680K.
SUBSETS = (
    Subset("msmarco_passage", 0.714, 1.1, 25, 540),
    Subset("hotpotqa", 0.124, 2.0, 20, 620),
    Subset("nq", 0.086, 1.1, 25, 680),
    Subset("fever", 0.043, 1.3, 20, 880),
    Subset("scidocsrr", 0.019, 4.0, 25, 1_000),
    Subset("fiqa", 0.008, 2.6, 15, 900),
    Subset("arguana", 0.006, 1.0, 12, 1_100),
)
STATUSES = ("grounded", "no_answer", "ungrounded", "unparsed", "error")
OF_POSITIVES = (0.90, 0.07, 0.01, 0.01, 0.01)
OF_NEGATIVES = (0.15, 0.82, 0.01, 0.01, 0.01)
POOL = 60_000  # most different passages, of which every row draws
STEP = 37  # between the passages of a row in the pool, so that none is twice in it


class Pool:
    """Passages and a snippet of each, the same in every process."""

    def __init__(self, passages: int) -> None:
        import numpy as np
        import pyarrow as pa

        draw = random.Random(SEED)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
        words += [word.replace("a", "ä", 1) for word in words[:400]]  # some rare words are not ASCII
        weights = [1 / (rank + 8) for rank in range(len(words))]
        stream = draw.choices(words, weights, k=20 * passages)
        text = " ".join(stream)
        starts = np.concatenate([[0], np.cumsum([len(word) + 1 for word in stream])])
        numbers = np.random.default_rng(SEED)
        columns: dict[str, list[Any]] = {"docid": [], "text": [], "snippet": [], "start": [], "end": []}
        self.first, self.sizes = [], []
        for subset in SUBSETS:
            size = max(500, int(passages * subset.share))
            size += size % STEP == 0
            mean = subset.characters / (starts[-1] / len(stream))
            counts = np.clip(numbers.lognormal(math.log(mean) - 0.125, 0.5, size), 12, 1_000).astype(np.int64)
            begin = numbers.choice(len(stream) - 1_000, size, replace=False)
            lengths = np.minimum(counts, numbers.integers(4, 24, size))
            at = begin + (numbers.random(size) * (counts - lengths + 1)).astype(np.int64)
            self.first.append(len(columns["docid"]))
            self.sizes.append(size)
            bounds = (starts[begin], starts[begin + counts] - 1, starts[at], starts[at + lengths] - 1)
            for number, (start, end, left, right) in enumerate(zip(*(b.tolist() for b in bounds), strict=True)):
                columns["docid"].append(f"{subset.name}-{number}")
                columns["text"].append(text[start:end])
                columns["snippet"].append(text[left:right])
                columns["start"].append(left - start)
                columns["end"].append(right - start)
        self.docids, self.texts, self.snippets = (pa.array(columns[name]) for name in ("docid", "text", "snippet"))
        self.starts, self.ends = (pa.array(columns[name], pa.int32()) for name in ("start", "end"))
        self.queries = pa.array([" ".join(draw.choices(stream, k=draw.randint(5, 12))) for _ in range(20_000)])


def generated(rows: int) -> Iterator[Any]:
    """Tables of canonical rows with snippets and ranks, always the same ones."""
    pool = Pool(min(POOL, max(2_000, 20 * rows)))
    for first in range(0, rows, BATCH_ROWS):
        yield _generated(pool, first, min(BATCH_ROWS, rows - first))


def _generated(pool: Pool, first: int, rows: int) -> Any:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    draw = np.random.default_rng((SEED, first))
    chances = np.array([subset.share for subset in SUBSETS])
    subset = draw.choice(len(SUBSETS), rows, p=chances / chances.sum())
    mean = np.array([one.negatives for one in SUBSETS])[subset]
    counts = {
        "positive": 1 + draw.poisson(np.array([one.positives - 1 for one in SUBSETS])[subset]),
        "negative": draw.integers((0.8 * mean).astype(int), (1.2 * mean).astype(int) + 1),
    }
    row = {side: np.repeat(np.arange(rows), count) for side, count in counts.items()}
    offsets = {side: pa.array(np.append(0, np.cumsum(count)).astype(np.int32)) for side, count in counts.items()}
    columns: Json = {
        "query_id": pc.utf8_lpad(pa.array(np.arange(first, first + rows)).cast(pa.string()), 32, "0"),
        "query": pool.queries.take(pa.array(draw.integers(0, len(pool.queries), rows))),
    }
    grounded, snippets = {}, {}
    start, shift = draw.random(rows), {"positive": np.zeros(rows, np.int64), "negative": counts["positive"]}
    for side, chances in (("positive", OF_POSITIVES), ("negative", OF_NEGATIVES)):
        of = subset[row[side]]
        sizes = np.array(pool.sizes)[of]
        place = np.arange(len(of)) - np.repeat(np.cumsum(counts[side]) - counts[side], counts[side])
        drawn = (start[row[side]] * sizes).astype(np.int64) + STEP * (place + shift[side][row[side]])
        ids = pa.array(np.array(pool.first)[of] + drawn % sizes)
        passages = [pool.docids.take(ids), pool.texts.take(ids).cast(pa.string()), pa.array([""] * len(of))]
        structs = pa.StructArray.from_arrays(passages, ["docid", "text", "title"])
        columns[f"{side}_passages"] = pa.ListArray.from_arrays(offsets[side], structs)
        status = draw.choice(len(STATUSES), len(of), p=chances)
        grounded[side] = status == 0
        held = pa.array(ids.to_numpy(), mask=~grounded[side])
        failed = pa.array(np.zeros(len(of), np.int64), mask=status < 2)
        snippet = {
            "snippet": pool.snippets.take(held),
            "start": pool.starts.take(held),
            "end": pool.ends.take(held),
            "field": pa.array(["text"]).take(pa.array(np.zeros(len(of), np.int64), mask=~grounded[side])),
            "status": pa.array(STATUSES).take(pa.array(status)),
            "detail": pa.array(["the reply begins: these are no words of the passage"]).take(failed),
        }
        structs = pa.StructArray.from_arrays(list(snippet.values()), list(snippet))
        snippets[f"{side}_snippets"] = pa.ListArray.from_arrays(offsets[side], structs)
    columns["subset"] = pa.array([one.name for one in SUBSETS]).take(pa.array(subset))
    held = [np.bincount(row[side][grounded[side]], minlength=rows) for side in counts]
    ranked = (held[0] > 0) & (held[1] > 0)
    rows_of = np.concatenate(list(row.values()))
    candidate = np.flatnonzero(np.concatenate(list(grounded.values())) & ranked[rows_of])
    favour = np.where(candidate < len(row["positive"]), 0.6, 1.0)  # a positive is more often the better one
    order = candidate[np.lexsort((draw.random(len(candidate)) * favour, rows_of[candidate]))]
    begin = np.append(0, np.cumsum(np.where(ranked, held[0] + held[1], 0)))
    ranks = np.zeros(len(rows_of), np.int32)
    ranks[order] = np.arange(len(order)) - begin[rows_of[order]] + 1
    parts = np.split(ranks, [len(row["positive"])])
    ranking = {
        "status": pa.array(["skipped", "ranked"]).take(pa.array(ranked.astype(int))),
        "candidates": pa.array(np.where(ranked, held[0] + held[1], 0).astype(np.int32)),
        "permutations": pa.array(ranked.astype(np.int32)),
        "agreement": pa.nulls(rows, pa.float64()),
        "detail": pa.nulls(rows, pa.string()),
    }
    columns |= snippets
    for side, part in zip(counts, parts, strict=True):
        columns[f"{side}_ranks"] = pa.ListArray.from_arrays(offsets[side], pa.array(part, mask=part == 0))
    columns["ranking"] = pa.StructArray.from_arrays(list(ranking.values()), list(ranking))
    return pa.table(columns)


def foreign(table: Any) -> Any:
    """The rows as those of FlagEmbedding: texts alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {"query": table.column("query")}
    for name, passages in (("pos", "positive_passages"), ("neg", "negative_passages")):
        lists = table.column(passages).combine_chunks()
        columns[name] = pa.ListArray.from_arrays(lists.offsets, pc.struct_field(lists.values, "text"))
    return pa.table(columns)


# ---------------------------------------------------------------------------------------- the same in plain Python


def plain_relabel(row: Json) -> Json:
    """ARHN's rule with its default policy, on dicts."""
    statuses = [snippet["status"] for snippet in row["positive_snippets"]]
    pairs = list(zip(statuses, row["positive_ranks"], strict=True))
    ranks = [rank for status, rank in pairs if status == "grounded" and rank is not None]
    unsupported = bool(statuses) and set(statuses) == {"no_answer"}
    state = "supported" if ranks else "unsupported" if unsupported else "unknown"
    if not ranks and "grounded" in statuses:
        state = "unranked"
    lists: dict[str, list[Any]] = {"positive": [], "negative": [], "filtered": []}
    for label in ("positive", "negative"):
        along = (row[f"{label}_{kind}"] for kind in ("passages", "snippets", "ranks"))
        for position, (passage, snippet, rank) in enumerate(zip(*along, strict=True)):
            side = label
            if label == "negative" and snippet["status"] == "grounded":
                if ranks and rank is not None:
                    side = "positive" if rank <= min(ranks) else "filtered"
                elif unsupported:
                    side = "filtered"
            lists[side].append((passage, snippet, rank, {"label": label, "position": position}))
    relabelled, filtered = len(lists["positive"]) - len(statuses), len(lists["filtered"])
    status, detail = "changed" if relabelled or filtered else "unchanged", None
    if not lists["negative"]:
        moved = sorted((each for side in lists.values() for each in side), key=lambda each: each[3]["position"])
        lists = {label: [each for each in moved if each[3]["label"] == label] for label in lists}
        status, detail = "dropped", "0 negatives would be left, min_negatives is 1"
        relabelled = filtered = 0
    columns: Json = {}
    for side, moved in lists.items():
        for at, kind in enumerate(("passages", "snippets", "ranks", "origins")):
            columns[f"{side}_{kind}"] = [each[at] for each in moved]
    decision = {"status": status, "policy": "relabel+filter", "reference": state}
    columns["decision"] = {**decision, "relabelled": relabelled, "filtered": filtered, "detail": detail}
    return columns


def _joined(passage: Json) -> str:
    return f"{passage['title']} {passage['text']}" if passage["title"] else passage["text"]


def plain_triplets(batch: Json) -> Json:
    """Every positive with every negative."""
    found: Json = {"anchor": [], "positive": [], "negative": []}
    for query, positives, negatives in zip(
        batch["query"], batch["positive_passages"], batch["negative_passages"], strict=True
    ):
        for positive in positives:
            for negative in negatives:
                found["anchor"].append(query)
                found["positive"].append(_joined(positive))
                found["negative"].append(_joined(negative))
    return found


def plain_tuples(batch: Json) -> Json:
    """Every positive with seven negatives, a row's own ones again where it has fewer."""
    found: Json = {"anchor": [], "positive": [], **{f"negative_{i + 1}": [] for i in range(7)}}
    for query, positives, negatives in zip(
        batch["query"], batch["positive_passages"], batch["negative_passages"], strict=True
    ):
        for positive in positives if negatives else ():
            found["anchor"].append(query)
            found["positive"].append(_joined(positive))
            for i in range(7):
                found[f"negative_{i + 1}"].append(_joined(negatives[i % len(negatives)]))
    return found


# ---------------------------------------------------------------------------------------- jobs: what a process does


class Parquet:
    """Shards of parquet with row groups as the package writes them, by pyarrow alone."""

    def __init__(self, folder: str) -> None:
        self._folder, self._number, self._written = Path(folder), 0, 0
        self._waiting: list[Any] = []
        self._bytes = 0
        self._writer: Any = None
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, table: Any) -> None:
        """Add rows."""
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        if self._writer is not None and self._written > SHARD_BYTES:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            path = self._folder / f"train-{self._number:05d}.parquet"
            self._writer, self._number, self._written = pq.ParquetWriter(path, table.schema), self._number + 1, 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._written += self._bytes
        self._waiting, self._bytes = [], 0


def read(folder: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(Path(folder).glob("*.parquet")):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


def generate_job(*, rows: int, output: str, form: str) -> Json:
    """Rows as parquet shards, or as an Arrow file for `Dataset.from_file`."""
    import pyarrow as pa

    tables, size = generated(rows), 0
    if form == "arrow":
        first = next(tables)
        with pa.OSFile(output, "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
            for table in (first, *tables):
                writer.write_table(table)
        return {"bytes": Path(output).stat().st_size}
    shards = Parquet(output)
    for table in tables:
        made = foreign(table) if form == "foreign" else table
        size += made.nbytes
        shards.write(made)
    shards.close()
    return {"bytes": size}


def floor_job(*, source: str, output: str, columns: Sequence[str] | None = None) -> Json:
    shards = Parquet(output)
    for table in read(source, columns):
        shards.write(table)
    shards.close()
    return {}


def table_job(*, source: str, output: str, transform: str) -> Json:
    """A transform of tables into shards, as the package reads and writes them."""
    import arhn_datasets as arhn
    from arhn_datasets.folder.parquet import Shards
    from arhn_datasets.folder.reading import read_tables

    apply, shards = getattr(arhn, transform), None
    for path in sorted(Path(source).glob("*.parquet")):
        for table in read_tables(path, BATCH_ROWS):
            made = apply(table)
            if shards is None:
                shards = Shards(Path(output), "train", made.schema)
            shards.write(made)
    assert shards is not None
    shards.close()
    return {"rows": shards.rows}


def tally_job(*, source: str) -> Json:
    """Counts of all rows, of the columns that are counted."""
    from arhn_datasets.folder.reading import open_folder
    from arhn_datasets.folder.report import COUNTED, Tally

    tally = Tally()
    for table in open_folder(source).tables("train", columns=COUNTED):
        tally.add(table)
    return {"counts": tally.report().to_json()["all"]}


def folder_job(*, source: str, output: str) -> Json:
    """Relabelled rows as a folder of arhn-refine: shards with their hashes, counts, card and run.json."""
    import arhn_datasets as arhn
    from arhn_datasets.folder.reading import read_tables
    from arhn_datasets.folder.writer import describe_run, write_run

    paths = sorted(Path(source).glob("*.parquet"))
    tables = (arhn.relabel(table) for path in paths for table in read_tables(path, BATCH_ROWS))
    unknown = dict.fromkeys(("config", "revision", "license", "private", "gated", "split", "limit"))
    provenance = {"name": "generated rows", "kind": "memory", "languages": [], "fingerprints": {}, **unknown}

    def describe(report: Any, rows: Mapping[str, int]) -> Json:
        return describe_run({**provenance, "rows": dict(rows)}, [arhn.relabel], report, {})

    return {"rows": write_run(Path(output), {"train": tables}, describe).report.total.rows}


def export_job(*, source: str, output: str, format: str) -> Json:
    import arhn_datasets as arhn

    report = arhn.export(source, format, output)
    return {"rows": report.formats[format].rows["train"]}


def verify_job(*, source: str) -> Json:
    import arhn_datasets as arhn

    found = arhn.verify(source)
    if not found.holds:
        raise RuntimeError(f"what was written does not verify: {[str(one) for one in found.violations[:3]]}")
    return {"checks": dict(found.checks)}


def map_floor_job(*, source: str, output: str) -> Json:
    """The rows of an Arrow file into another one, in the batches of `Dataset.map`."""
    import pyarrow as pa

    with pa.memory_map(source) as file, pa.ipc.open_stream(file) as reader, pa.OSFile(output, "wb") as sink:
        table = reader.read_all()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            for start in range(0, table.num_rows, BATCH_ROWS):
                writer.write_table(table.slice(start, BATCH_ROWS).combine_chunks())
    return {}


def map_job(*, source: str, output: str, how: str) -> Json:
    """``Dataset.map`` with the package's transform in batches, or with the plain function row by row."""
    from datasets import Dataset

    import arhn_datasets as arhn

    function, options = (plain_relabel, {}) if how == "plain" else (arhn.relabel, {"batched": True})
    dataset = Dataset.from_file(source)
    # The first map of a process imports and compiles what the next ones find.
    dataset.select(range(min(10, len(dataset)))).map(function, keep_in_memory=True, new_fingerprint="warm", **options)
    wall, cpu = time.perf_counter(), time.process_time()
    mapped = dataset.map(
        function, cache_file_name=output, load_from_cache_file=False, new_fingerprint="scale", **options
    )
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {"rows": len(mapped), **seconds}


def dataset_export_job(*, source: str, output: str, format: str, how: str) -> Json:
    """An Arrow file of relabelled rows into a format: by the package, or with a plain function."""
    from datasets import Dataset

    import arhn_datasets as arhn

    dataset = Dataset.from_file(source)
    if how == "plain":
        function = {"triplet": plain_triplets, "n-tuple": plain_tuples}[format]
        made = dataset.map(
            function,
            batched=True,
            batch_size=100,
            remove_columns=dataset.column_names,
            cache_file_name=f"{output}.arrow",
            load_from_cache_file=False,
            new_fingerprint="scale",
        )
        made.to_parquet(output)
        return {"rows": len(made)}
    report = arhn.export(dataset, format, output)
    return {"rows": report.formats[format].rows["train"]}


def same_job(*, ours: str, plain: str) -> Json:
    """Whether both relabellings have made the same rows."""
    from datasets import Dataset

    found = (Dataset.from_file(path).with_format("arrow")[:] for path in (ours, plain))
    first, second = (table.select(sorted(table.column_names)) for table in found)
    return {"same": first.to_pylist() == second.to_pylist()}


JOBS: Mapping[str, Callable[..., Json]] = {
    name.removesuffix("_job"): found for name, found in list(globals().items()) if name.endswith("_job")
}


def _in_process(connection: Connection, name: str, options: Json, cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import pyarrow as pa

    pa.set_cpu_count(cores)
    wall, cpu = time.perf_counter(), time.process_time()
    found = JOBS[name](**options)
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    connection.send({**seconds, **found, "rss_mb": peak_mb()})


def peak_mb() -> float:
    """The most memory that this process had resident."""
    with open("/proc/self/status") as file:
        found = next(line for line in file if line.startswith("VmHWM"))
    return int(found.split()[1]) / 1024


class Runner:
    """Runs jobs, each in a process of its own: forked from one that has only imported, before it does anything."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pyarrow.parquet", "datasets", "arhn_datasets.hub.pushing"])

    def run(self, job: str, what: str = "", **options: Any) -> Json:
        """The result of a job, with its time and its peak memory."""
        print(f"\r\033[K{what or job} ...", end="", file=sys.stderr, flush=True)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_process, args=(sender, job, options, self._cores))
        process.start()
        sender.close()
        try:
            result: Json = receiver.recv()
        except EOFError:
            raise RuntimeError(f"{what or job} ended without a result") from None
        finally:
            process.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)
        return result


# ---------------------------------------------------------------------------------------- what is measured

STAGES = ("floor", "relabel", "folder", "revert", "tally", "verify", "triplet", "n-tuple", "adapt")

FLOOR_OF = {"relabel": "floor", "folder": "floor", "adapt": "floor of texts"}  # of all others that of refined rows


def removed(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def one_size(runner: Runner, rows: int, work: Path) -> Json:
    """Every stage at one number of rows, and a floor beside those that are held against it; medians of the rounds."""
    rounds = 3 if rows in REPEATED else 1
    found: dict[str, list[Json]] = {}

    def measure(stage: str, job: str, **options: Any) -> None:
        found.setdefault(stage, []).append(runner.run(job, what=f"{rows:,} rows: {stage}", **options))

    wide, refined, scratch = work / "wide", work / "refined", work / "scratch"
    size = runner.run("generate", what=f"{rows:,} rows: generate", rows=rows, output=str(wide), form="wide")["bytes"]
    for _ in range(rounds):
        measure("floor", "floor", source=str(wide), output=str(scratch))
        removed(scratch)
        measure("relabel", "table", source=str(wide), output=str(scratch), transform="relabel")
        removed(scratch, refined)
        measure("folder", "folder", source=str(wide), output=str(refined))
    stored = sum(path.stat().st_size for path in wide.iterdir())
    removed(wide)
    for _ in range(rounds):
        measure("tally", "tally", source=str(refined))
        measure("verify", "verify", source=str(refined))
        measure("revert", "table", source=str(refined / "data"), output=str(scratch), transform="revert")
        removed(scratch)
        for format in ("triplet", "n-tuple"):
            measure("floor of refined", "floor", source=str(refined / "data"), output=str(scratch))
            removed(scratch)
            measure(format, "export", source=str(refined), output=str(scratch), format=format)
            removed(scratch)
    removed(refined)
    runner.run("generate", what=f"{rows:,} rows: generate", rows=rows, output=str(wide), form="foreign")
    for _ in range(rounds):
        measure("floor of texts", "floor", source=str(wide), output=str(scratch))
        removed(scratch)
        measure("adapt", "table", source=str(wide), output=str(scratch), transform="adapt")
        removed(scratch)
    removed(wide)
    stages = {stage: _summary(runs, rows, size) for stage, runs in found.items()}
    for stage, one in stages.items():
        floor = stage if stage.startswith("floor") else FLOOR_OF.get(stage, "floor of refined")
        one["vs_floor"] = stages[floor]["seconds"] / one["seconds"]
        one["vs_floor_cpu"] = stages[floor]["cpu_seconds"] / one["cpu_seconds"]
    return {"rows": rows, "bytes": size, "stored_bytes": stored, "stages": stages}


def _summary(runs: Sequence[Json], rows: int, size: int) -> Json:
    seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "rows_per_s": rows / seconds,
        "gb_per_s": size / seconds / 1e9,
        "rss_mb": max(run["rss_mb"] for run in runs),
        "all_seconds": [run["seconds"] for run in runs],
    }


def beside_plain(runner: Runner, rows: int, rounds: int, work: Path) -> Json:
    """`Dataset.map` with the package and with plain Python, in turns, and the copying of the same Arrow file."""
    found: dict[str, list[Json]] = {}

    def measure(name: str, job: str, **options: Any) -> Json:
        result = runner.run(job, what=f"{rows:,} rows, beside plain Python: {name}", **options)
        found.setdefault(name, []).append(result)
        return result

    source = str(work / "wide.arrow")
    runner.run("generate", rows=rows, output=source, form="arrow")
    paths = {how: str(work / f"{how}.arrow") for how in ("floor", "arhn", "plain")}
    for _ in range(rounds):
        measure("relabel floor", "map_floor", source=source, output=paths["floor"])
        for how in ("arhn", "plain"):
            measure(f"relabel {how}", "map", source=source, output=paths[how], how=how)
    if not runner.run("same", ours=paths["arhn"], plain=paths["plain"])["same"]:
        raise RuntimeError("plain Python and arhn.relabel made different rows")
    for _ in range(rounds):
        for format in ("triplet", "n-tuple"):
            written = {}
            for how in ("arhn", "plain"):
                output = str(work / f"{format}-{how}")
                options = {"source": paths["arhn"], "output": output, "format": format, "how": how}
                written[how] = measure(f"{format} {how}", "dataset_export", **options)["rows"]
                removed(Path(output))
            if written["arhn"] != written["plain"]:
                raise RuntimeError(f"as {format} plain Python makes {written['plain']} rows, the package otherwise")
    rate, rate_cpu = (
        {name: rows / statistics.median(run[time] for run in runs) for name, runs in found.items()}
        for time in ("seconds", "cpu_seconds")
    )
    stages = ("relabel", "triplet", "n-tuple")
    return {
        "rows": rows,
        "rows_per_s": rate,
        "map_vs_floor": rate["relabel arhn"] / rate["relabel floor"],
        **{stage: rate[f"{stage} arhn"] / rate[f"{stage} plain"] for stage in stages},
        "cpu": {stage: rate_cpu[f"{stage} arhn"] / rate_cpu[f"{stage} plain"] for stage in stages},
    }


def exponent(points: Sequence[tuple[int, float]]) -> float | None:
    """The slope of the logarithm of time over that of rows, by least squares; None where there is one point."""
    pairs = [(math.log(rows), math.log(seconds)) for rows, seconds in points]
    mean = [statistics.fmean(values) for values in zip(*pairs, strict=True)]
    spread = sum((x - mean[0]) ** 2 for x, _ in pairs)
    return sum((x - mean[0]) * (y - mean[1]) for x, y in pairs) / spread if spread else None


def run(options: argparse.Namespace, work: Path) -> Json:
    runner = Runner(options.cores)
    sizes = sorted({max(1, round(options.rows * size / FULL)) for size in SIZES})
    measured = []
    for rows in sizes:
        measured.append(one_size(runner, rows, work))
        show_size(measured[-1])
    rows = min(options.rows, options.plain_rows)
    plain = beside_plain(runner, rows, 3 if rows in REPEATED else 1, work)
    names = measured[-1]["stages"]
    slopes, cpu_slopes = (
        {name: exponent([(one["rows"], one["stages"][name][time]) for one in measured]) for name in names}
        for time in ("seconds", "cpu_seconds")
    )
    largest = measured[-1]["stages"]
    counted = [name for name in STAGES if name != "floor"]

    def figures(stage: str, over: float) -> Json:
        one = largest[stage]
        return {
            **{name: one[name] for name in ("rows_per_s", "gb_per_s", "vs_floor", "vs_floor_cpu", "rss_mb")},
            "vs_plain": over,
        }

    found = {
        "rows": options.rows,
        "bytes": measured[-1]["bytes"],
        "cores": options.cores,
        "relabel": {**figures("relabel", plain["relabel"]), "map_vs_floor": plain["map_vs_floor"]},
        "export": {
            "triplet": figures("triplet", plain["triplet"]),
            "n_tuple": figures("n-tuple", plain["n-tuple"]),
        },
        "peak_rss_mb": max(largest[name]["rss_mb"] for name in counted),
        "growth_exponent": max((slopes[name] for name in counted if slopes[name] is not None), default=None),
        "growth": slopes,
        "growth_cpu": cpu_slopes,
        "sizes": measured,
        "plain": plain,
    }
    show_growth(found)
    show_plain(plain)
    return found


# ---------------------------------------------------------------------------------------- the report


def verdict(good: bool) -> str:
    return "reached" if good else "MISSED"


def print_table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    print(f"\n{title}\n")
    for line in (head, ["-" * width for width in widths], *lines):
        cells = (
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


def show_size(one: Json) -> None:
    least = {"relabel": LEAST_RELABEL, "triplet": LEAST_EXPORT, "n-tuple": LEAST_EXPORT}
    lines = []
    for stage, figures in one["stages"].items():
        target = least.get(stage)
        cells = (
            f"{figures['seconds']:.2f}",
            f"{figures['rows_per_s']:,.0f}",
            f"{figures['gb_per_s']:.3f}",
            f"{figures['vs_floor']:.2f}",
            f"{figures['vs_floor_cpu']:.2f}",
            f"{figures['rss_mb']:,.0f}",
        )
        reached = f">= {target} of the floor: {verdict(figures['vs_floor'] >= target)}" if target else ""
        lines.append((stage, *cells, reached))
    print_table(
        f"{one['rows']:,} rows, {one['bytes'] / 1e9:.2f} GB in memory, {one['stored_bytes'] / 1e9:.2f} in parquet",
        ("stage", "s", "rows/s", "GB/s", "x floor", "x floor, CPU", "peak MB", "target"),
        lines,
    )


def show_growth(found: Json) -> None:
    slopes = [(name, *(found[which][name] for which in ("growth", "growth_cpu"))) for name in found["growth"]]
    lines = [(name, *("" if slope is None else f"{slope:.2f}" for slope in both), "") for name, *both in slopes]
    worst, memory = found["growth_exponent"], found["peak_rss_mb"]
    linear = "" if worst is None else f"<= {MOST_EXPONENT}: {verdict(worst <= MOST_EXPONENT)}"
    lines.append(("the most of a stage", "" if worst is None else f"{worst:.2f}", "", linear))
    print_table("Growth: exponent of the time over the rows", ("stage", "wall", "CPU", "target"), lines)
    print(f"\nPeak memory of a stage: {memory:,.0f} MB (<= {MOST_MEMORY_MB:,}: {verdict(memory <= MOST_MEMORY_MB)}).")


def show_plain(plain: Json) -> None:
    lines = []
    for name in ("relabel", "triplet", "n-tuple"):
        ours, theirs = (plain["rows_per_s"][f"{name} {how}"] for how in ("arhn", "plain"))
        target = f">= {LEAST_OVER_PLAIN:.0f}: {verdict(plain[name] >= LEAST_OVER_PLAIN)}" if name == "relabel" else ""
        times = (f"{plain[name]:.1f}", f"{plain['cpu'][name]:.1f}")
        lines.append((name, f"{ours:,.0f}", f"{theirs:,.0f}", *times, target))
    print_table(
        f"Beside plain Python in Dataset.map: {plain['rows']:,} rows",
        ("stage", "rows/s", "plain rows/s", "times", "times, CPU", "target"),
        lines,
    )
    print(
        f"\nDataset.map(arhn.relabel, batched=True) goes at {plain['map_vs_floor']:.2f} of pyarrow that copies the "
        f"same Arrow file ({plain['rows_per_s']['relabel floor']:,.0f} rows/s)."
    )


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is no number from 1")
    return number


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--json", action="store_true", help="one JSON object as the last line")
    made.add_argument("--rows", type=positive, default=FULL, metavar="N", help=f"by default {FULL:,}")
    made.add_argument("--plain-rows", type=positive, default=PLAIN_ROWS, metavar="N", help="beside plain Python")
    made.add_argument("--cores", type=positive, default=2, metavar="N", help="that a stage may use, by default 2")
    made.add_argument("--folder", type=Path, metavar="DIR", help="where the scratch folder is made")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.folder is not None and not options.folder.is_dir():
        parser().error(f"--folder {options.folder} is no folder; name one that is there, with room for the rows.")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    with tempfile.TemporaryDirectory(prefix="arhn-bench-", dir=options.folder) as work:
        os.environ["HF_DATASETS_CACHE"] = str(Path(work) / "datasets")
        found = run(options, Path(work))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
