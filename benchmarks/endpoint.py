"""What the client of LLM servers costs and reaches, against the emulator in a process of its own.

usage: endpoint.py [--json] [--quick] [--peers] [--only SECTION ...]

Sections: utilisation (how busy the server is kept), undeclared (how busy one that does not say what it takes), cpu
(processor time of the client for each request), paid_twice (requests asked again after kill -9), tokens (prompt tokens
for each query), store (look-ups among stored replies) and memory (of a long map; only where it is named or in the full
run with --memory-rows), ray (what Ray adds to a run; only where it is named). Every client runs in a process of its
own. ``--peers`` makes an environment for each foreign client with venv and pip, and needs a package index.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import os
import random
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PACKED = (1, 4, 8, 11)  # passages in a request
SECTIONS = ("utilisation", "undeclared", "cpu", "paid_twice", "tokens", "store", "memory", "ray")
MODES = ("row", "batched", "streaming", "num_proc")
BATCH_ROWS = 64
SLOTS, PERMITS = 128, 256  # the size of the batch, and what may wait for it
PASSAGES = 11  # one positive and ten negatives
CPU_CONCURRENCY = 64
PROMPT_BYTES = 2048
ANSWER = "This very sentence is the one that answers it."
SERVICE = {"overhead": 0.2, "prefill": 0.00025, "tail": 0.02, "tail_factor": 5.0}
MODEL = "emulated/lexical"

LEAST_UTILISATION, MOST_WASTED = 0.95, 0.03
MOST_OVER_SINGLE = 1.5
MOST_OVER_AIOHTTP, MOST_OVER_HUB = 2.0, 1 / 3
LEAST_LOOKUPS = 20_000
MOST_MEMORY_MB = 300

PEERS: Mapping[str, tuple[str, ...]] = {
    "AsyncOpenAI": ("openai",),
    "ds.map+InferenceClient": ("datasets", "huggingface_hub"),
    "distilabel": ("distilabel[hf-inference-endpoints]==1.5.3", "requests"),
    "curator": ("bespokelabs-curator",),
}


# ---------------------------------------------------------------------------------------- synthetic rows


class Texts:
    """Sentences of invented words, the same in every process."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        self.words = ["".join(self.draw.choices(syllables, k=self.draw.randint(2, 4))) for _ in range(4000)]
        self.sentences = [self.sentence(self.draw.randint(8, 22)) for _ in range(3000)]

    def sentence(self, words: int) -> str:
        """So many words."""
        return " ".join(self.draw.choices(self.words, k=words)).capitalize() + "."

    def passage(self, number: str, characters: float) -> str:
        """Sentences of so many characters, and among them the one that the server replies with."""
        found, size = [f"Passage {number}."], 0
        while size < characters:
            found.append(self.draw.choice(self.sentences))
            size += len(found[-1]) + 1
        found.insert(self.draw.randrange(len(found)) + 1, ANSWER)
        return " ".join(found)


def synthetic_rows(
    count: int, seed: int = 0, passages: int = PASSAGES, characters: int | None = None
) -> Iterator[Json]:
    """Rows of one positive and negatives; lengths are lognormal around 700 characters where none is given."""
    texts = Texts(seed)
    for i in range(count):
        found = [
            {
                "docid": f"{seed}-{i}-{j}",
                "title": "",
                "text": texts.passage(f"{seed}-{i}-{j}", characters or 700 * texts.draw.lognormvariate(0, 0.5)),
            }
            for j in range(passages)
        ]
        yield {
            "query_id": f"{seed}-{i}",
            "query": f"What of {' '.join(texts.draw.choices(texts.words, k=6))} in {seed}-{i}?",
            "positive_passages": found[:1],
            "negative_passages": found[1:],
        }


def lexical_rows(count: int, seed: int = 0, sentences: tuple[int, int] = (4, 12)) -> list[Json]:
    """Rows in which the lexical baseline finds something: some passages have a sentence of the query's words."""
    texts, rows = Texts(seed), []
    for i in range(count):
        words = texts.draw.sample(texts.words, 8)
        answers = (0.9, *(0.3 if i % 3 else 0.0 for _ in range(PASSAGES - 1)))
        found = []
        for j, chance in enumerate(answers):
            body = [texts.draw.choice(texts.sentences) for _ in range(texts.draw.randint(*sentences))]
            shared = texts.draw.sample(words, texts.draw.randint(4, 8)) if texts.draw.random() < chance else []
            if shared:
                noise = texts.draw.sample(texts.words, texts.draw.randint(4, 8))
                body[texts.draw.randrange(len(body))] = " ".join((*shared, *noise)).capitalize() + f" {i} and {j}."
            found.append({"docid": f"{i}-{j}", "title": "", "text": " ".join(body)})
        rows.append(
            {
                "query_id": str(i),
                "query": " ".join(words) + "?",
                "positive_passages": found[:1],
                "negative_passages": found[1:],
            }
        )
    return rows


def padded(size: int) -> int:
    """Characters of a passage with which a snippet prompt has ``size`` bytes."""
    from arhn_datasets.annotators.prompts import PROMPTS

    row = next(synthetic_rows(1, characters=1))
    (message,) = PROMPTS.snippet_messages(row["query"], row["positive_passages"][0], "question")
    return max(1, size - len(message["content"]) - 60)


# ---------------------------------------------------------------------------------------- jobs: what a client does


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def mapped(dataset: Any, transform: Any, mode: str) -> Any:
    if mode == "streaming":
        return list(dataset.map(transform))
    options = {"batched": {"batched": True, "batch_size": BATCH_ROWS}, "num_proc": {"num_proc": 2}}.get(mode, {})
    return dataset.map(transform, **options)


def map_job(
    *,
    url: str,
    mode: str,
    cache: str,
    rows: int,
    seed: int = 0,
    passages: int = PASSAGES,
    characters: int | None = None,
    concurrency: int | None = None,
    timeout: float = 300.0,
    warm: int = 0,
    repeat: int = 1,
    answer: bool = True,
) -> Json:
    """The snippets stage over synthetic rows; the wall time is that of the map, with its start and its end."""
    import datasets

    import arhn_datasets as arhn

    datasets.disable_progress_bars()
    processes = 2 if mode == "num_proc" else 1
    annotator = arhn.Endpoint(url, cache=cache, concurrency=concurrency, timeout=timeout, processes=processes)
    transform = arhn.Snippets(annotator=annotator)
    if warm:
        mapped(
            datasets.Dataset.from_list(list(synthetic_rows(warm, seed + 9000, passages, characters))), transform, mode
        )
    listed = list(synthetic_rows(rows, seed, passages, characters)) * repeat
    dataset = datasets.Dataset.from_list(listed)
    if mode == "streaming":
        dataset = dataset.to_iterable_dataset()
    del listed
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = mapped(dataset, transform, mode)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    statuses: dict[str, int] = {}
    for row in result:
        for snippet in (*row["positive_snippets"], *row["negative_snippets"]):
            statuses[snippet["status"]] = statuses.get(snippet["status"], 0) + 1
    if answer and statuses != {"grounded": rows * repeat * passages}:
        raise RuntimeError(f"every passage holds the reply, and the statuses are {statuses}")
    return {"wall": wall, "cpu": cpu, "requests": rows * repeat * passages, "statuses": statuses}


def chat_job(*, client: str, url: str, bodies: str, warm: int) -> Json:
    """The same chat requests through another client, so many at once."""
    asked = [json.loads(line) for line in Path(bodies).read_text("utf-8").splitlines()]
    return asyncio.run(CLIENTS[client](url, asked, warm))


async def in_turns(ask: Callable[[Json], Awaitable[str]], asked: Sequence[Json], warm: int) -> Json:
    async def worker(left: Iterator[Json]) -> None:
        for body in left:
            if not await ask(body):
                raise RuntimeError("an empty reply")

    async def run(some: Sequence[Json]) -> None:
        left = iter(some)
        await asyncio.gather(*(worker(left) for _ in range(CPU_CONCURRENCY)))

    await run(asked[:warm])
    cpu, wall = cpu_seconds(), time.perf_counter()
    await run(asked[warm:])
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "requests": len(asked) - warm}


async def aiohttp_client(url: str, asked: Sequence[Json], warm: int) -> Json:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(body: Json) -> str:
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                return json.loads(await reply.read())["choices"][0]["message"]["content"]

        return await in_turns(ask, asked, warm)


async def hub_client(url: str, asked: Sequence[Json], warm: int) -> Json:
    from huggingface_hub import AsyncInferenceClient

    async with AsyncInferenceClient(base_url=url, api_key="none") as client:

        async def ask(body: Json) -> str:
            reply = await client.chat_completion(
                body["messages"], model=MODEL, max_tokens=body["max_tokens"], temperature=0
            )
            return reply.choices[0].message.content

        return await in_turns(ask, asked, warm)


async def openai_client(url: str, asked: Sequence[Json], warm: int) -> Json:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

        async def ask(body: Json) -> str:
            return (await client.chat.completions.create(**body)).choices[0].message.content

        return await in_turns(ask, asked, warm)


CLIENTS: Mapping[str, Callable[[str, Sequence[Json], int], Awaitable[Json]]] = {
    "aiohttp": aiohttp_client,
    "AsyncInferenceClient": hub_client,
    "AsyncOpenAI": openai_client,
}


def sync_map_job(*, url: str, bodies: str, warm: int) -> Json:
    """``ds.map`` with a synchronous client, one request after the other."""
    import datasets
    from huggingface_hub import InferenceClient

    datasets.disable_progress_bars()
    asked = [json.loads(line) for line in Path(bodies).read_text("utf-8").splitlines()]
    client = InferenceClient(base_url=url, api_key="none")

    def ask(row: Json) -> Json:
        reply = client.chat_completion(row["messages"], model=MODEL, max_tokens=row["max_tokens"], temperature=0)
        return {"reply": reply.choices[0].message.content}

    datasets.Dataset.from_list(asked[:warm]).map(ask)
    dataset = datasets.Dataset.from_list(asked[warm:])
    cpu, wall = cpu_seconds(), time.perf_counter()
    dataset.map(ask)
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "requests": len(dataset)}


def distilabel_job(*, url: str, bodies: str, warm: int) -> Json:
    """Distilabel's pipeline with its client of endpoints; its processes count."""
    from distilabel.models import InferenceEndpointsLLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    asked = [json.loads(line) for line in Path(bodies).read_text("utf-8").splitlines()][warm:]
    tokens = asked[0]["max_tokens"]

    def run(some: Sequence[Json]) -> None:
        with Pipeline(name=f"bench-{len(some)}") as pipeline:
            load = LoadDataFromDicts(data=[{"instruction": one["messages"][0]["content"]} for one in some])
            llm = InferenceEndpointsLLM(
                base_url=url, api_key="none", generation_kwargs={"max_new_tokens": tokens, "temperature": 0.01}
            )
            load >> TextGeneration(llm=llm, input_batch_size=CPU_CONCURRENCY)
        rows = pipeline.run(use_cache=False)["default"]["train"]
        if not all(rows["generation"]):
            raise RuntimeError("distilabel gave rows without a reply")

    base = cpu_seconds()
    run(asked[:CPU_CONCURRENCY])
    cpu, wall = cpu_seconds(), time.perf_counter()
    run(asked)
    # A pipeline starts processes each time; what a tiny one costs is not the requests' price.
    start = cpu - base
    return {
        "wall": time.perf_counter() - wall,
        "cpu": max(0.0, cpu_seconds() - cpu - start),
        "requests": len(asked) - CPU_CONCURRENCY,
    }


def curator_job(*, url: str, bodies: str, warm: int) -> Json:
    """Curator's online processor with the OpenAI backend."""
    os.environ.setdefault("TELEMETRY_ENABLED", "0")
    os.environ.update(CURATOR_VIEWER="0", CURATOR_DISABLE_CACHE="1", OPENAI_API_KEY="none")
    from bespokelabs import curator

    asked = [json.loads(line)["messages"][0]["content"] for line in Path(bodies).read_text("utf-8").splitlines()]
    limits = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10, "require_all_responses": True}
    limits["max_concurrent_requests"] = CPU_CONCURRENCY
    llm = curator.LLM(
        model_name="tgi", backend="openai", backend_params={"base_url": f"{url}/v1", "api_key": "none", **limits}
    )
    llm(asked[:warm])
    cpu, wall = cpu_seconds(), time.perf_counter()
    llm(asked[warm:])
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "requests": len(asked) - warm}


def store_job(*, cache: str, replies: int, lookups: int) -> Json:
    """Fill a store, then read from it in random order."""
    from arhn_datasets.annotators.client.store import Replies
    from arhn_datasets.rows.records import digest

    store = Replies(Path(cache))
    start = time.perf_counter()
    for i in range(replies):
        store.put(digest(i), {"text": f"{i} " * 60, "finish_reason": "stop"}, model=MODEL)
        if i % 512 == 511:
            store.flush()
    store.flush()
    written = time.perf_counter() - start
    draw, base = random.Random(0), resident_mb()
    keys = [digest(draw.randrange(replies)) for _ in range(min(lookups, 100_000))]
    start = time.perf_counter()
    found = sum(store.get(key) is not None for key in itertools.islice(itertools.cycle(keys), lookups))
    seconds = time.perf_counter() - start
    if found != lookups:
        raise RuntimeError(f"{lookups - found} replies were not found again")
    return {"puts_per_s": replies / written, "gets_per_s": lookups / seconds, "memory_mb": resident_mb() - base}


def memory_job(*, url: str, cache: str, rows: int, distinct: int) -> Json:
    """A long map over few distinct rows: memory after a tenth of it, and the most until its end."""
    import datasets

    import arhn_datasets as arhn

    datasets.disable_progress_bars()
    transform = arhn.Snippets(endpoint=url, cache=cache)
    listed = list(synthetic_rows(distinct, 5, 2, 400))

    def repeated() -> Iterator[Json]:
        for i in range(rows):
            yield {**listed[i % distinct], "query_id": str(i)}

    dataset = datasets.Dataset.from_generator(repeated, cache_dir=cache)
    datasets.Dataset.from_list(listed).map(transform)
    base, most, ended = resident_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max(most, resident_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    dataset.map(transform)
    ended.set()
    thread.join()
    return {"rows": rows, "base_mb": base, "growth_mb": most - base, "rows_per_s": rows / (time.perf_counter() - start)}


def refine_job(*, url: str, cache: str, rows: int, actors: int, concurrency: int | None = CPU_CONCURRENCY) -> Json:
    """A whole run, in one process or on so many Ray actors."""
    import arhn_datasets as arhn
    from arhn_datasets.inputs.sources import Input
    from arhn_datasets.runs.ray import on_ray
    from arhn_datasets.runs.refine import Stages, refine

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    given = Path(cache) / "rows.jsonl"
    with given.open("w", encoding="utf-8") as file:
        for row in synthetic_rows(rows, characters=padded(PROMPT_BYTES)):
            file.write(json.dumps(row) + "\n")
    annotator = arhn.Endpoint(url, cache=cache, concurrency=concurrency)
    stages = Stages(
        snippets=arhn.Snippets(annotator=annotator), ranks=arhn.Ranks(annotator=annotator), relabel=arhn.Relabel()
    )
    start = time.perf_counter()
    refine(Input(name=str(given)), Path(cache) / "out", stages, opened=on_ray("local", actors) if actors else None)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time()}


JOBS: Mapping[str, Callable[..., Json]] = {
    "map": map_job,
    "chat": chat_job,
    "sync_map": sync_map_job,
    "distilabel": distilabel_job,
    "curator": curator_job,
    "store": store_job,
    "memory": memory_job,
    "refine": refine_job,
}


# ---------------------------------------------------------------------------------------- running jobs


class Progress:
    """One line on stderr: what runs, how far it is, and how long it will take."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.last = 0.0

    def show(self, what: str, done: float, total: float, since: float) -> None:
        """Twice a second on a terminal, else every 20 seconds."""
        now = time.monotonic()
        if now - self.last < (0.5 if self.shown else 20.0):
            return
        self.last = now
        eta = f"{(now - since) * (total - done) / done:4.0f} s left" if done else ""
        line = f"{what}: {done:,.0f} of {total:,.0f} {eta}"
        print(f"\r{line:<78}" if self.shown else line, end="" if self.shown else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a table."""
        if self.shown:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)


PROGRESS = Progress()


def start_job(name: str, python: str = sys.executable, **options: Any) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARHN_")}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    else:
        environment.pop("PYTHONPATH", None)
    command = [python, str(Path(__file__).resolve()), "--job", json.dumps({"job": name, **options})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def run_job(name: str, server: Any = None, expected: int = 0, what: str = "", **options: Any) -> Json:
    process, since = start_job(name, **options), time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.25)
            if server is not None and expected:
                PROGRESS.show(what or name, server.stats.served, expected, since)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    PROGRESS.clear()
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{what or name} ended with {process.returncode}")
    result: Json = json.loads(output.strip().splitlines()[-1])
    return result


def folder() -> str:
    return tempfile.mkdtemp(prefix="arhn-bench-", dir=WORK)


WORK: str | None = None


# ---------------------------------------------------------------------------------------- sections


def utilisation(requests: int, permits: int, repeats: int, modes: Sequence[str]) -> Json:
    """Sum of service times over slots x wall time of the map."""
    from arhn_datasets.testing import EmulatorProcess, Latency

    rows = max(1, round(requests / PASSAGES))
    found: Json = {}
    for at, mode in ((at, mode) for at in range(repeats) for mode in modes):
        latency = Latency(**SERVICE, seed=at)
        with EmulatorProcess(reply=ANSWER, slots=SLOTS, max_concurrent_requests=permits, latency=latency) as server:
            job = run_job(
                "map",
                server,
                rows * PASSAGES,
                f"utilisation, {mode}",
                url=server.url,
                mode=mode,
                cache=folder(),
                rows=rows,
            )
            stats = server.stats
        one = found.setdefault(
            mode, {"values": [], "walls": [], "cpu_ms": [], "refused": [], "requests": rows * PASSAGES, "busy": []}
        )
        one["values"].append(stats.busy_seconds / (SLOTS * job["wall"]))
        one["busy"].append(stats.utilisation)
        one["walls"].append(job["wall"])
        one["cpu_ms"].append(1000 * job["cpu"] / job["requests"])
        one["refused"].append(stats.by_status.get("429", 0))
        one["service_s"] = stats.busy_seconds / stats.served
    return found


def undeclared(sizes: Sequence[int], service: float, concurrency: int | None) -> Json:
    """Useful work of a server that says nothing of its slots, after the first 20 requests for each of them.

    It queues, refuses nothing, and works on for a client that is gone. A request has 10 mean services of time. In the
    last line each size is half as fast after 40 requests for each slot.
    """
    from arhn_datasets.testing import EmulatorProcess, Latency

    found: Json = {}
    for slots, slower in [*((slots, 0) for slots in sizes), (sizes[len(sizes) // 2], 40)]:
        rows = round(max((60 + slower) * slots, 220) / PASSAGES)
        requests = rows * PASSAGES
        latency = Latency(overhead=service, tail=0.02, tail_factor=5.0, seed=slots, slower_after=slower * slots)
        options: Json = {"reply": ANSWER, "slots": slots, "max_concurrent_requests": 10**6, "latency": latency}
        with EmulatorProcess(**options, declared=False, drops=False) as server:
            common: Json = {"cache": folder(), "characters": 200, "concurrency": concurrency, "answer": False}
            process = start_job("map", url=server.url, mode="batched", rows=rows, timeout=10 * service * 1.08, **common)
            seen, most, ends, since = [], 0, (20 * slots, requests - 3 * slots), time.monotonic()
            while process.poll() is None:
                time.sleep(0.02)
                stats = server.stats
                most = max(most, stats.running + stats.queued)
                if len(seen) < 2 and stats.served >= ends[len(seen)]:
                    seen.append((time.monotonic(), stats.busy_seconds - stats.wasted_seconds))
                PROGRESS.show(f"undeclared, {slots} slots", stats.served, requests, since)
            PROGRESS.clear()
            job = json.loads(process.communicate()[0].strip().splitlines()[-1])
            stats = server.stats
        (start, before), (end, after) = seen
        found[f"{slots}, slower" if slower else str(slots)] = {
            "utilisation": (after - before) / (slots * (end - start)),
            "most": most,
            "timeouts": stats.cancelled,
            "wasted": stats.wasted_seconds / stats.busy_seconds,
            "wall": job["wall"],
            "ideal_wall": (stats.busy_seconds - stats.wasted_seconds) / slots,
        }
    return found


def ideal_utilisation(requests: int) -> float:
    """What no client can pass: every free slot is given the next request at once."""
    draw = random.Random(0)
    tokens = [330 + 0.21 * 700 * draw.lognormvariate(0, 0.5) for _ in range(requests)]
    service = [
        (SERVICE["overhead"] + SERVICE["prefill"] * count)
        * (SERVICE["tail_factor"] if draw.random() < SERVICE["tail"] else 1)
        for count in tokens
    ]
    ends = [0.0] * SLOTS
    for seconds in service:
        heapq.heapreplace(ends, ends[0] + seconds)
    return sum(service) / (SLOTS * max(ends))


def write_bodies(requests: int, path: Path) -> None:
    from arhn_datasets.annotators.client.contract import ChatRequest, ServerInfo, chat_body
    from arhn_datasets.annotators.prompts import PROMPTS

    info, characters = ServerInfo(api="tgi", model=MODEL), padded(PROMPT_BYTES)
    with path.open("w", encoding="utf-8") as file:
        for row in synthetic_rows(requests, 77, 1, characters):
            messages = PROMPTS.snippet_messages(row["query"], row["positive_passages"][0], "question")
            body = chat_body(info, ChatRequest(messages=tuple(messages), max_tokens=384))
            file.write(json.dumps(body) + "\n")


def cpu_per_request(requests: int, repeats: int, peers: Mapping[str, str]) -> Json:
    """Milliseconds of processor time of the client, side by side; the median over the rounds."""
    from arhn_datasets.testing import EmulatorProcess

    rows, warm = max(1, requests // PASSAGES), max(CPU_CONCURRENCY, requests // 10)
    path, characters = Path(folder()) / "bodies.jsonl", padded(PROMPT_BYTES)
    write_bodies(requests + warm, path)
    found: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    common: Json = {"bodies": str(path), "warm": warm}
    arhn: Json = {"rows": rows, "warm": max(1, warm // PASSAGES), "characters": characters}
    arhn["concurrency"] = CPU_CONCURRENCY
    jobs: dict[str, Json] = {
        "aiohttp": {"name": "chat", "client": "aiohttp", **common},
        "arhn": {"name": "map", "mode": "batched", **arhn},
        "arhn_row": {"name": "map", "mode": "row", **arhn},
        "AsyncInferenceClient": {"name": "chat", "client": "AsyncInferenceClient", **common},
    }
    for name, python in peers.items():
        own = {"distilabel": "distilabel", "curator": "curator", "ds.map+InferenceClient": "sync_map"}
        job = {"name": own[name]} if name in own else {"name": "chat", "client": name}
        jobs[name] = {**job, "python": python, **common}
    with EmulatorProcess(reply=ANSWER, slots=PERMITS, max_concurrent_requests=PERMITS) as server:
        for name, job in ((name, job) for _ in range(repeats) for name, job in jobs.items()):
            server.reset_stats()
            options = {"cache": folder(), **job} if job["name"] == "map" else dict(job)
            try:
                result = run_job(
                    options.pop("name"), server, requests + warm, f"cpu, {name}", url=server.url, **options
                )
            except RuntimeError as error:
                if name not in peers:
                    raise
                print(f"{name}: {error}", file=sys.stderr)
                continue
            found.setdefault(name, []).append(1000 * result["cpu"] / result["requests"])
            rates.setdefault(name, []).append(result["requests"] / result["wall"])
    return {
        "ms": {name: statistics.median(values) for name, values in found.items()},
        "all_ms": found,
        "requests_per_s": {name: statistics.median(values) for name, values in rates.items()},
    }


def paid_twice(requests: int) -> Json:
    """Requests asked again after kill -9 half-way, for repeated rows, and for another policy."""
    from arhn_datasets.testing import EmulatorProcess, Latency

    rows = max(1, round(requests / PASSAGES))
    needed, cache = rows * PASSAGES, folder()
    latency = Latency(**SERVICE, time_scale=0.5)
    with EmulatorProcess(reply=ANSWER, slots=SLOTS, max_concurrent_requests=PERMITS, latency=latency) as server:
        options: Json = {"url": server.url, "mode": "row", "cache": cache, "rows": rows, "seed": 3}
        process = start_job("map", **options)
        since = time.monotonic()
        while process.poll() is None and server.stats.served < needed / 2:
            PROGRESS.show("paid twice, first half", server.stats.served, needed / 2, since)
            time.sleep(0.02)
        if process.poll() is not None:
            raise RuntimeError("the map ended before it could be killed")
        os.kill(process.pid, signal.SIGSTOP)  # frozen, so that the count and the kill are of one moment
        at_kill, unread = server.stats, in_sockets(server.url)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        while server.stats.in_flight:
            time.sleep(0.05)
        first, kept = server.stats.requests, stored_replies(cache)
        run_job("map", server, needed, "paid twice, the rerun", **options)
        extra = server.stats.requests - needed
        server.reset_stats()
        run_job("map", server, 0, "paid twice, a third run", **options)
        third = server.stats.requests
        few = max(1, rows // 4)
        server.reset_stats()
        run_job(
            "map",
            server,
            few * PASSAGES,
            "paid twice, repeated rows",
            **{**options, "rows": few, "repeat": 3, "seed": 4},
        )
        repeated = server.stats.requests - few * PASSAGES
    with EmulatorProcess() as server:
        policy = second_policy(server, cache, min(50, rows))
    return {
        "extra_requests": extra,
        "in_flight_at_kill": at_kill.in_flight + unread,
        "unread_at_kill": unread,
        "needed": needed,
        "served_at_kill": at_kill.served,
        "stored_at_kill": kept,
        "first_run": first,
        "third_run": third,
        "repeated_rows": repeated,
        "second_policy": policy,
    }


def in_sockets(url: str) -> int:
    """Replies that wait in a socket for a client that does not run, and requests that the server has not yet read."""
    port = int(url.rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return sum(f":{port:04X}" in one[1] + one[2] and int(one[4].split(":")[1], 16) > 0 for one in fields)


def stored_replies(cache: str) -> int:
    """How many replies a store holds."""
    from arhn_datasets.annotators.client.store_upkeep import kept

    return sum(one.replies for one in kept(Path(cache)))


def second_policy(server: Any, cache: str, rows: int) -> int:
    """Requests that another policy costs, over the whole pipeline in another process's cache."""
    import datasets

    import arhn_datasets as arhn

    datasets.disable_progress_bars()
    stages = {"endpoint": server.url, "cache": cache}
    counts = []
    for policy in ("relabel", "relabel+filter"):
        before = server.stats.requests
        dataset = datasets.Dataset.from_list(lexical_rows(rows, 8))  # made anew: nothing is taken from its cache
        for transform in (arhn.Snippets(**stages), arhn.Ranks(**stages), arhn.Relabel(policy=policy)):
            dataset = dataset.map(transform)
        counts.append(server.stats.requests - before)
    if not counts[0]:
        raise RuntimeError("the first policy has asked nothing")
    return counts[1]


class Tap:
    """A port on loopback that passes everything on to another one, and counts the bytes in both directions."""

    def __init__(self, url: str) -> None:
        self.sent = self.received = 0
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._loop = asyncio.new_event_loop()
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(self._host, int(self._port))
        await asyncio.gather(self._passed(reader, there, "sent"), self._passed(back, writer, "received"))

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                writer.write(data)
                await writer.drain()
        writer.close()


def tokens_per_query(rows: int) -> Json:
    """Prompt tokens as the server counts them, ours and with every passage ranked whole in every row."""
    import datasets

    import arhn_datasets as arhn
    from arhn_datasets.annotators.client.store import flush_all
    from arhn_datasets.testing import EmulatorProcess

    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(lexical_rows(rows, 6))
    found: Json = {"rows": rows}

    def unskipped(row: Json) -> Json:
        """Snippets that leave no passage and no row out of the ranking."""
        said = {"snippet": "x", "start": 0, "end": 1, "field": "text", "status": "grounded", "detail": None}
        return {f"{side}_snippets": [said] * len(row[f"{side}_passages"]) for side in ("positive", "negative")}

    def ranked_whole(ranks: Any, snippets: Any) -> Any:
        plain = snippets.remove_columns(["positive_snippets", "negative_snippets"])
        ranks = plain.map(unskipped).map(ranks.with_options(rank_by="passage"))
        own = ["positive_ranks", "negative_ranks", "ranking"]
        return datasets.concatenate_datasets([snippets, ranks.select_columns(own)], axis=1)

    def labels(refined: Any) -> list[Any]:
        sides = ("positive_passages", "negative_passages", "filtered_passages")
        return [[sorted(passage["docid"] for passage in row[side] or ()) for side in sides] for row in refined]

    with EmulatorProcess(prefix_block=16, max_input_tokens=32_000, max_total_tokens=33_000) as server:
        tap, cache = Tap(server.url), folder()
        stages: Json = {"endpoint": tap.url, "cache": cache}

        def counted(name: str, make: Callable[[], Any]) -> Any:
            server.reset_stats()
            result = make()
            stats = server.stats
            found[name] = stats.prompt_tokens / rows
            found[f"{name}_cached"] = stats.cached_tokens / rows
            found[f"{name}_requests"] = stats.requests / rows
            found[f"{name}_completion"] = stats.generated_tokens / rows
            return result

        PROGRESS.show("tokens", 0, 1, time.monotonic())
        snippets = counted("snippets", lambda: dataset.map(arhn.Snippets(**stages)))
        ranked = counted("arhn_ranking", lambda: snippets.map(arhn.Ranks(**stages)))
        found["sent_bytes"], found["received_bytes"] = tap.sent / rows, tap.received / rows
        flush_all()
        with sqlite3.connect(next(Path(cache).glob("*.sqlite3"))) as store:
            store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found["stored_bytes"] = next(Path(cache).glob("*.sqlite3")).stat().st_size / rows
        whole = counted("naive_ranking", lambda: ranked_whole(arhn.Ranks(**stages), snippets))
        served = [labels(one.map(arhn.Relabel())) for one in (ranked, whole)]
    # With ties kept: the server's replies are a strict order, and break ties by the order shown.
    lexical = arhn.Lexical()
    snippets = dataset.map(arhn.Snippets(annotator=lexical))
    ours = labels(snippets.map(arhn.Ranks(annotator=lexical)).map(arhn.Relabel()))
    theirs = labels(ranked_whole(arhn.Ranks(annotator=lexical), snippets).map(arhn.Relabel()))
    PROGRESS.clear()
    return {
        "arhn": found["snippets"] + found["arhn_ranking"],
        "naive": found["snippets"] + found["naive_ranking"],
        **found,
        "equal_labels": sum(a == b for a, b in zip(ours, theirs, strict=True)) / rows,
        "equal_labels_served": sum(a == b for a, b in zip(*served, strict=True)) / rows,
        "moved_rows": sum(len(row[0]) > 1 or bool(row[2]) for row in ours) / rows,
    }


def packed_tokens(rows: int) -> Json:
    """Prompt tokens of the snippets as the server counts them, with so many passages in a request, without a cache."""
    import datasets

    import arhn_datasets as arhn
    from arhn_datasets.testing import EmulatorProcess

    datasets.disable_progress_bars()
    samples = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
    sets = {"the shipped sample": arhn.adapt_dataset(datasets.Dataset.from_json(str(samples)))}
    for sentences in ((2, 6), (4, 9), (4, 12)):
        made = datasets.Dataset.from_list(lexical_rows(rows, 6, sentences))
        words = [len(one["text"].split()) for row in made for one in row["negative_passages"]]
        sets[f"{PASSAGES} passages of {statistics.mean(words):.0f} words"] = made
    found: Json = {}
    with EmulatorProcess(max_input_tokens=32_000, max_total_tokens=33_000) as server:
        for name, dataset in sets.items():
            evidence, found[name] = [], {}
            for most in PACKED:
                server.reset_stats()
                stage = arhn.Snippets(endpoint=server.url, cache="none", passages_per_request=most)
                evidence.append(dataset.map(stage, batched=True)["negative_snippets"])
                stats = server.stats
                found[name][most] = {
                    "prompt": stats.prompt_tokens / len(dataset),
                    "completion": stats.generated_tokens / len(dataset),
                    "requests": stats.requests / len(dataset),
                    "equal": list(evidence[-1]) == list(evidence[0]),
                }
    return found


def rambling_tokens() -> Json:
    """Completion tokens a passage of a model that goes on to its limit: one by the passage, and one for all."""
    import datasets

    import arhn_datasets as arhn
    from arhn_datasets.annotators.reply_forms import SNIPPET_TOKENS
    from arhn_datasets.testing import EmulatorProcess

    samples = Path(arhn.__file__).parent / "samples" / "questions.jsonl"
    dataset = arhn.adapt_dataset(datasets.Dataset.from_json(str(samples)))
    passages = sum(len(row["positive_passages"]) + len(row["negative_passages"]) for row in dataset)
    found: Json = {}
    with EmulatorProcess(reply="One could see that from more than one side. " * 100) as server:
        for name, most in (("by passage", None), ("for all", SNIPPET_TOKENS)):
            server.reset_stats()
            annotator = arhn.Endpoint(server.url, cache="none", max_tokens=most)
            # A limit that changes no reply has the fingerprint of the other one.
            dataset.map(arhn.Snippets(annotator=annotator), batched=True, load_from_cache_file=False)
            found[name] = server.stats.generated_tokens / passages
    return found


def tree_cpu(root: int) -> dict[str, float]:
    """Processor seconds of a process, and of what descends from it: the actors, and whatever else Ray runs."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            seconds[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = {"client": seconds.get(root, 0.0), "actors": 0.0, "Ray's own": 0.0}
    for pid, used in seconds.items():
        above = pid
        while above and above != root:
            above = parents.get(above, 0)
        if above == root != pid:
            with suppress(OSError):
                actor = b"_Refiner" in Path(f"/proc/{pid}/cmdline").read_bytes()
                found["actors" if actor else "Ray's own"] += used
    return found


def ray_cost(requests: int) -> Json:
    """Milliseconds of processor time for each request of a whole run, without what it takes to start.

    Of all processes of the client: with Ray its daemons, the reader and the driver with its writer, too. There it is
    measured half-way through, when all actors are there and do everything at once.
    """
    from arhn_datasets.testing import EmulatorProcess

    rows = max(1, requests // PASSAGES)
    found: Json = {}
    for name, actors, window in (("single process", 0, (0.1,)), ("ray, 2 actors", 2, (0.5, 0.9))):
        with EmulatorProcess(reply=ANSWER, slots=PERMITS, max_concurrent_requests=PERMITS) as server:
            process = start_job("refine", url=server.url, cache=folder(), rows=rows, actors=actors)
            since, seen = time.monotonic(), []
            for share in window:
                while (served := server.stats.served) < share * requests and process.poll() is None:
                    PROGRESS.show(f"ray, {name}", served, requests, since)
                    time.sleep(0.05)
                seen.append((served, tree_cpu(process.pid)))
            PROGRESS.clear()
            output = process.communicate()[0]
            if process.returncode:
                raise RuntimeError(f"{name} ended with {process.returncode}")
            job = json.loads(output.strip().splitlines()[-1])
            if not actors:
                seen.append((server.stats.served, {**seen[0][1], "client": job["cpu"]}))
        (first, before), (last, after) = seen
        parts = {part: 1000 * (after[part] - before[part]) / max(1, last - first) for part in after}
        found[name] = {"ms": sum(parts.values()), "parts": parts, "wall": job["wall"]}
    found["ratio"] = found["ray, 2 actors"]["ms"] / found["single process"]["ms"]
    return found


def memory(rows: int) -> Json:
    """Resident memory of a long map."""
    from arhn_datasets.testing import EmulatorProcess

    with EmulatorProcess(reply=ANSWER, slots=PERMITS, max_concurrent_requests=PERMITS) as server:
        return run_job("memory", what="memory", url=server.url, cache=folder(), rows=rows, distinct=min(rows, 1000))


# ---------------------------------------------------------------------------------------- peers


def peer_pythons(names: Sequence[str], root: Path) -> dict[str, str]:
    """An environment for each peer, made where it is not there; a peer that cannot be installed is left out."""
    found = {}
    for name in names:
        at = root / "".join(c if c.isalnum() else "-" for c in name)
        python, done = at / "bin" / "python", at / "installed"
        if not done.exists():
            print(f"installing {name} in {at}", file=sys.stderr)
            venv.create(at, with_pip=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *PEERS[name]]
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                print(f"{name} cannot be installed and is left out", file=sys.stderr)
                continue
            done.touch()
        found[name] = str(python)
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


def listed(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def show_utilisation(found: Json, ideal: float, permits: int) -> None:
    lines = []
    for mode, one in found.items():
        value = statistics.median(one["values"])
        target = f">= {LEAST_UTILISATION}: {verdict(value >= LEAST_UTILISATION)}" if mode in ("row", "batched") else ""
        cells = (
            listed(one["values"], ".3f"),
            f"{ideal:.3f}",
            listed(one["walls"], ".1f"),
            listed(one["cpu_ms"], ".2f"),
        )
        lines.append((mode, *cells, listed(one["refused"], "d"), target))
    first = next(iter(found.values()))
    print_table(
        f"Utilisation: {first['requests']:,} requests, {SLOTS} slots, {permits} permits, "
        f"{1000 * first['service_s']:.0f} ms of service, 2 % of the requests 5 times as long",
        ("mode", "utilisation", "ideal", "wall s", "client CPU ms/request", "429", "target"),
        lines,
    )


def show_undeclared(found: Json, service: float) -> None:
    lines = []
    for slots, one in found.items():
        good = one["utilisation"] >= LEAST_UTILISATION and not one["timeouts"] and one["wasted"] <= MOST_WASTED
        cells = (f"{one['utilisation']:.3f}", "1.000", str(one["most"]), str(one["timeouts"]), f"{one['wasted']:.1%}")
        target = f">= {LEAST_UTILISATION}, 0, <= {MOST_WASTED:.0%}: {verdict(good)}"
        lines.append((slots, *cells, f"{one['wall']:.1f}", f"{one['ideal_wall']:.1f}", target))
    head = ("slots", "utilisation", "ideal", "most at the server", "timeouts", "wasted", "wall s", "ideal s", "target")
    print_table(
        f"A server that says nothing: {1000 * service:.0f} ms of service, 2 % of the requests 5 times as long, a limit "
        "of 10 services",
        head,
        lines,
    )


def show_cpu(found: Json) -> None:
    ms = found["ms"]
    lines = []
    for name, value in ms.items():
        target = ""
        if name.startswith("arhn"):
            floor, hub = value / ms["aiohttp"], value / ms["AsyncInferenceClient"]
            good = floor <= MOST_OVER_AIOHTTP and hub <= MOST_OVER_HUB
            target = f"<= {MOST_OVER_AIOHTTP} x aiohttp, <= 1/3 of AsyncInferenceClient: {verdict(good)}"
        cells = (f"{value:.3f}", listed(found["all_ms"][name], ".3f"), f"{value / ms['aiohttp']:.2f}")
        lines.append(
            (name, *cells, f"{value / ms['AsyncInferenceClient']:.2f}", f"{found['requests_per_s'][name]:,.0f}", target)
        )
    print_table(
        f"CPU of the client for each request, an instantly answering server, {PROMPT_BYTES} bytes of prompt, "
        f"{CPU_CONCURRENCY} at once",
        ("client", "ms", "rounds", "x aiohttp", "x AsyncInferenceClient", "requests/s", "target"),
        lines,
    )


def show_paid_twice(found: Json) -> None:
    good = found["extra_requests"] <= found["in_flight_at_kill"]
    print_table(
        f"Paid twice: {found['needed']:,} requests needed, kill -9 after {found['served_at_kill']:,} "
        f"replies, {found['stored_at_kill']:,} of them in the store",
        ("what", "requests too many", "target"),
        (
            (
                "kill -9 and a rerun",
                str(found["extra_requests"]),
                f"<= {found['in_flight_at_kill']} in flight at the kill, {found['unread_at_kill']} of them "
                f"in a socket: {verdict(good)}",
            ),
            ("a third run", str(found["third_run"]), "0: " + verdict(not found["third_run"])),
            (
                "every row three times in the input",
                str(found["repeated_rows"]),
                "0: " + verdict(not found["repeated_rows"]),
            ),
            ("a second policy", str(found["second_policy"]), "0: " + verdict(not found["second_policy"])),
        ),
    )


def show_tokens(found: Json) -> None:
    lines = [
        (name, *(f"{found[key]:,.0f}" for key in (stage, f"{stage}_cached")), f"{found[f'{stage}_requests']:.2f}")
        for name, stage in (
            ("snippets, in both", "snippets"),
            ("ranking of snippets (arhn)", "arhn_ranking"),
            ("ranking of whole passages, all rows (naive)", "naive_ranking"),
        )
    ]
    lines += [
        ("arhn, both stages", f"{found['arhn']:,.0f}", "", ""),
        ("naive, both stages", f"{found['naive']:,.0f}", "", ""),
    ]
    print_table(
        f"Prompt tokens for each query, {found['rows']} rows of {PASSAGES} passages",
        ("stage", "tokens", "of them in the prefix cache", "requests"),
        lines,
    )
    asked = found["snippets_requests"] + found["arhn_ranking_requests"]
    amounts = {
        "completion tokens": found["snippets_completion"] + found["arhn_ranking_completion"],
        "bytes to the server, with HTTP's own": found["sent_bytes"],
        "bytes from the server": found["received_bytes"],
        "bytes in the store of replies": found["stored_bytes"],
    }
    print_table(
        f"Traffic and store of both stages (arhn) for each query, {asked:.2f} requests",
        ("what", "a query", "a request"),
        [(name, f"{value:,.0f}", f"{value / asked:,.1f}") for name, value in amounts.items()],
    )
    print(
        f"\nEqual labels in {found['equal_labels']:.1%} of the rows with the lexical baseline, which keeps ties "
        f"({found['equal_labels_served']:.1%} through the server, whose replies order ties as they are shown); labels "
        f"move in {found['moved_rows']:.1%}."
    )


def show_packed(found: Json) -> None:
    lines = []
    for name, sizes in found.items():
        single = sizes[PACKED[0]]["prompt"]
        for most, one in sizes.items():
            good = "" if most != 8 else "<= 0.5: reached" if one["prompt"] <= single / 2 else "<= 0.5: MISSED"
            amounts = (f"{one['requests']:.2f}", f"{one['prompt']:,.0f}", f"{one['completion']:,.0f}")
            share = f"{one['prompt'] / single:.2f}"
            lines.append(
                (name if most == PACKED[0] else "", str(most), *amounts, share, good, "yes" if one["equal"] else "NO")
            )
    print_table(
        "Snippets of a query by passages a request, without a prefix cache",
        ("rows", "passages a request", "requests", "prompt tokens", "completion tokens", "of single", "target", "same"),
        lines,
    )


def show_store(found: Json, replies: int) -> None:
    good = found["gets_per_s"] >= LEAST_LOOKUPS
    print_table(
        f"The store: {replies:,} replies",
        ("what", "value", "target"),
        (
            ("look-ups a second", f"{found['gets_per_s']:,.0f}", f">= {LEAST_LOOKUPS:,}: {verdict(good)}"),
            ("memory that they took, MB", f"{found['memory_mb']:.0f}", "flat"),
            ("written a second", f"{found['puts_per_s']:,.0f}", ""),
        ),
    )


def show_memory(found: Json) -> None:
    good = found["growth_mb"] <= MOST_MEMORY_MB
    print_table(
        f"Memory: a map of {found['rows']:,} rows, 1,000 of them distinct",
        ("what", "value", "target"),
        (
            ("growth over the base, MB", f"{found['growth_mb']:.0f}", f"<= {MOST_MEMORY_MB}: {verdict(good)}"),
            ("base, MB", f"{found['base_mb']:.0f}", ""),
            ("rows a second", f"{found['rows_per_s']:,.0f}", ""),
        ),
    )


def show_ray(found: Json) -> None:
    target = f"<= {MOST_OVER_SINGLE} x: {verdict(found['ratio'] <= MOST_OVER_SINGLE)}"
    lines = [
        (name, f"{one['ms']:.3f}", *(f"{part:.3f}" for part in one["parts"].values()), f"{one['wall']:.1f}")
        for name, one in found.items()
        if name != "ratio"
    ]
    head = ("engine", "CPU ms/request", *found["single process"]["parts"], "wall s")
    print_table("Ray: what a request costs the client", head, lines)
    print(f"\n{found['ratio']:.2f} times the single process, {target}")


def run(options: argparse.Namespace) -> Json:
    result: Json = {"requests": options.requests, "cores": os.cpu_count()}
    wanted = options.only or SECTIONS
    if "utilisation" in wanted:
        found = utilisation(options.requests, options.permits, options.repeats, options.modes)
        ideal = ideal_utilisation(options.requests)
        show_utilisation(found, ideal, options.permits)
        result["utilisation"] = {mode: statistics.median(one["values"]) for mode, one in found.items()}
        result |= {"utilisation_ideal": ideal, "utilisation_details": found}
    if "undeclared" in wanted:
        result["undeclared"] = undeclared(options.slots or (2, 8, 32, 128), options.service, options.concurrency)
        show_undeclared(result["undeclared"], options.service)
    if "cpu" in wanted:
        peers = peer_pythons(options.peer or list(PEERS), Path(options.peer_root)) if options.peers else {}
        found = cpu_per_request(options.cpu_requests, options.cpu_rounds, peers)
        show_cpu(found)
        result |= {"cpu_ms_per_request": found["ms"], "cpu_details": found}
    if "paid_twice" in wanted:
        result["paid_twice"] = paid_twice(options.kill_requests)
        show_paid_twice(result["paid_twice"])
    if "tokens" in wanted:
        result["tokens_per_query"] = tokens_per_query(options.token_rows)
        show_tokens(result["tokens_per_query"])
        result["packed_tokens"] = packed_tokens(max(1, options.token_rows // 4))
        show_packed(result["packed_tokens"])
        result["rambling_tokens"] = rambling_tokens()
        told = ", ".join(f"{tokens:.0f} with a limit {name}" for name, tokens in result["rambling_tokens"].items())
        print(f"\nTokens a passage of a model that rambles: {told}.")
    if "store" in wanted:
        what: Json = {"replies": options.replies, "lookups": min(options.replies, 200_000)}
        result["store"] = run_job("store", cache=folder(), **what)
        show_store(result["store"], options.replies)
    if "ray" in (options.only or ()):
        result["ray"] = ray_cost(2 * options.cpu_requests)
        show_ray(result["ray"])
    if "memory" in wanted and options.memory_rows:
        result["memory"] = memory(options.memory_rows)
        show_memory(result["memory"])
    return result


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--json", action="store_true", help="one JSON object as the last line")
    made.add_argument("--quick", action="store_true", help="in under a minute; the start and the end weigh more")
    made.add_argument("--peers", action="store_true", help="foreign clients too, each in an environment of its own")
    made.add_argument("--peer", action="append", choices=list(PEERS), help="only this peer; repeatable")
    made.add_argument("--peer-root", default=str(Path(tempfile.gettempdir()) / "arhn-bench-peers"), metavar="DIR")
    made.add_argument("--only", action="append", choices=SECTIONS, help="only this section; repeatable")
    made.add_argument("--mode", dest="modes", action="append", choices=MODES, help="only this calling mode; repeatable")
    made.add_argument("--permits", type=int, default=PERMITS, help="max_concurrent_requests of the server")
    made.add_argument(
        "--slots", type=int, action="append", metavar="N", help="of a server that says nothing; repeatable"
    )
    made.add_argument("--service", type=float, default=0.3, metavar="SECONDS", help="that it takes for a request")
    made.add_argument("--concurrency", type=int, metavar="N", help="a fixed one for it, for comparison")
    made.add_argument("--repeats", type=int, default=1, metavar="N", help="of each calling mode")
    made.add_argument("--memory-rows", type=int, metavar="N", help="rows of the long map, by default none")
    made.add_argument("--requests", type=int, metavar="N", help=argparse.SUPPRESS)
    made.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return made


def main() -> None:
    global WORK
    options = parser().parse_args()
    if options.job is not None:
        job = JOBS[options.job.pop("job")]
        print(json.dumps(job(**options.job)))
        return
    quick = options.quick or options.requests is not None
    options.modes = options.modes or list(MODES)
    options.requests = options.requests or (600 if quick else 20_000)
    options.cpu_requests = min(options.requests, 2_000) if quick else 8_000
    options.cpu_rounds = 1 if quick else 3
    options.kill_requests = min(options.requests, 2_000) if quick else 10_000
    options.token_rows = max(12, options.requests // 100) if quick else 400
    options.replies = 20 * options.requests if quick else 1_000_000
    with tempfile.TemporaryDirectory(prefix="arhn-bench-") as work:
        WORK = work
        os.environ["HF_DATASETS_CACHE"] = str(Path(work) / "datasets")
        result = run(options)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
