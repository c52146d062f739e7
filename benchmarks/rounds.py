"""Batch rounds: the memory of planning many rows, and what comes of outputs that are damaged in every way.

    python benchmarks/rounds.py scale --rows 680000      # peak memory, requests a second, size of the state
    python benchmarks/rounds.py damage --lines 100000    # wrong labels, and what was planned again without need
    python benchmarks/rounds.py vllm --command vllm --model FOLDER    # the rounds with the real vllm run-batch

The replies are those of the lexical baseline, without a server. The rows are synthetic, a positive and a negative each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from arhn_datasets import cli
from arhn_datasets.annotators.client.ingesting import Ingestion
from arhn_datasets.annotators.client.planning import Plan
from arhn_datasets.annotators.client.request_files import requests_in
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.testing.batches import answered

WORDS = ("tin", "copper", "zinc", "lead", "iron", "melts", "boils", "about", "degrees", "soft", "red", "metal", "was")
MODEL = "synthetic/model"


def write_rows(path: Path, count: int, negatives: int, seed: int = 0) -> None:
    draw = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            subject, value = f"{draw.choice(WORDS)}{number}", draw.randrange(10_000)
            answer = f"The {subject} melts at {value} degrees."

            def passage(answers: bool, at: int, answer: str = answer, number: int = number) -> dict:
                around = [" ".join(draw.choices(WORDS, k=draw.randrange(8, 40))) + "." for _ in range(2)]
                text = f"{around[0]} {answer} {around[1]}" if answers else " ".join(around)
                return {"docid": f"d{number}-{at}", "title": "", "text": text}

            row = {
                "query_id": f"q{number}",
                "query": f"At what temperature does {subject} melt?",
                "positive_passages": [passage(True, 0)],
                "negative_passages": [passage(draw.random() < 0.3, at + 1) for at in range(negatives)],
            }
            file.write(json.dumps(row) + "\n")


def refine(rows: Path, folder: Path, *more: str) -> int:
    arguments = [str(rows), "--plan", str(folder / "plan"), "--model", MODEL, "--cache", str(folder / "cache")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return cli.refine_command([*arguments, "--output", str(folder / "refined"), *more])


def scale(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", options.rows, options.negatives)
        code = (
            "import sys, resource; from arhn_datasets.cli import refine_command; "
            "code = refine_command(sys.argv[1:]); "
            "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MB'); sys.exit(code)"
        )
        arguments = [str(folder / "rows.jsonl"), "--plan", str(folder / "plan"), "--model", MODEL]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--cache", str(folder / "cache")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - started
        lines = done.stdout.splitlines()
        size = sum(path.stat().st_size for path in (folder / "plan").iterdir()) / 1e6
        state = (folder / "plan" / "state.sqlite3").stat().st_size / 1e6
        print(lines[0])
        print(
            f"rows {options.rows:,}, {seconds:.0f} s, {lines[-1]}, plan {size:,.0f} MB of which state {state:,.0f} MB"
        )


def _body(**change: object) -> Callable[[dict, random.Random], None]:
    return lambda entry, draw: entry["response"]["body"].update(change)


def _ended(reason: str | None) -> Callable[[dict, random.Random], None]:
    def end(entry: dict, draw: random.Random) -> None:
        entry["response"]["body"]["choices"][0].update(finish_reason=reason)
        entry["response"]["body"]["choices"][0]["message"]["content"] = "The colour"

    return end


def _failed(status: int, body: object, error: object) -> Callable[[dict, random.Random], None]:
    return lambda entry, draw: entry.update(response={"status_code": status, "body": body}, error=error)


def _cut(entry: dict, draw: random.Random) -> None:
    entry["raw"] = [json.dumps(entry)[: draw.randrange(1, 150)].encode() + b"\n"]


DAMAGE: dict[str, Callable[[dict, random.Random], None]] = {
    "missing": lambda entry, draw: entry.update(raw=[]),
    "doubled": lambda entry, draw: entry.update(raw=[json.dumps(entry).encode() + b"\n"] * 2),
    "cut": _cut,
    "an error in a 200": _body(error={"message": "Upstream failed", "code": 502}, choices=None),
    "another model": _body(model="another/model"),
    "an unknown id": lambda entry, draw: entry.update(custom_id=f"{draw.getrandbits(128):032x}"),
    "no reason": _ended(None),
    "an odd reason": _ended("tool_calls"),
    "500 of vLLM": _failed(500, None, {"error": {"message": "engine died", "type": "InternalServerError"}}),
    "429": _failed(429, {"error": {"message": "rate limit"}}, None),
    "expired": _failed(0, None, {"code": "batch_expired", "message": "This request could not be executed."}),
    "no text": _body(choices=[{"index": 0, "message": {"content": " "}, "finish_reason": "stop"}]),
    "swapped": lambda entry, draw: None,
}


def damaged(
    lines: list[dict], draw: random.Random, share: float, options: argparse.Namespace
) -> tuple[list[bytes], set[str]]:
    """The lines of an output, some of them damaged, and the ids of those that are not as they were."""
    hurt: set[str] = set()
    lines = [json.loads(json.dumps(entry)) for entry in lines]
    for entry in lines:
        kind = draw.choice(options.kinds or list(DAMAGE))
        if draw.random() >= share or entry["custom_id"] in hurt:
            continue
        other = draw.choice(lines)
        if kind == "swapped" and (other["custom_id"] in hurt or other is entry):
            continue
        if kind != "doubled":
            hurt.add(entry["custom_id"])
        if kind == "swapped":
            hurt.add(other["custom_id"])
            entry["custom_id"], other["custom_id"] = other["custom_id"], entry["custom_id"]
        DAMAGE[kind](entry, draw)
    out = [raw for entry in lines for raw in (entry["raw"] if "raw" in entry else [json.dumps(entry).encode() + b"\n"])]
    if options.shuffle:
        draw.shuffle(out)
    return out, hurt


async def answers(path: Path) -> list[dict]:
    return [line async for line in answered(requests_in(path), Lexical(threshold=0.3))]


def rounds(rows: Path, folder: Path, share: float, options: argparse.Namespace, most: int = 12) -> dict[str, int]:
    """Refine in rounds whose outputs are damaged; the last ones are whole."""
    draw, told = random.Random(options.seed), {"lines": 0, "damaged": 0, "again": 0, "rounds": 0}
    store, good = folder / "cache", set[str]()
    for number in range(most):
        assert refine(rows, folder) == 0
        if (folder / "refined").exists():
            break
        told["rounds"] += 1
        for path in sorted((folder / "plan").glob("requests-*.jsonl")):
            output = path.with_name(path.name.replace("requests", "output"))
            if output.exists():
                continue
            lines = asyncio.run(answers(path))
            told["again"] += len(good & {line["custom_id"] for line in lines})
            out, hurt = damaged(lines, draw, share if number < most - 3 else 0, options)
            good |= {line["custom_id"] for line in lines} - hurt
            told["lines"] += len(out)
            told["damaged"] += len(hurt)
            output.write_bytes(b"".join(out))
            with Plan(folder / "plan") as plan:
                reading = Ingestion(plan, store)
                reading.read([output, output])
                file = next(one for one in plan.files() if one.name == path.name)
                reading.end(file.number)
    return told


def labels(folder: Path) -> list[tuple]:
    from arhn_datasets.folder.reading import open_folder

    opened = open_folder(folder / "refined")
    found = []
    for split in opened.splits:
        for table in opened.tables(split):
            for row in table.to_pylist():
                for side in ("positive", "negative", "filtered"):
                    found += [(row["query_id"], one["docid"], side) for one in row[f"{side}_passages"]]
    return sorted(found)


def damage(options: argparse.Namespace) -> None:
    count = max(1, options.lines // (options.negatives + 2))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", count, options.negatives)
        rounds(folder / "rows.jsonl", folder / "whole", 0.0, options)
        told = rounds(folder / "rows.jsonl", folder / "damaged", options.share, options)
        whole, other = labels(folder / "whole"), labels(folder / "damaged")
        wrong = len(set(whole) - set(other))
        print(", ".join(f"{name} {value:,}" for name, value in told.items()))
        print(f"labels {len(whole):,}, wrong {wrong:,}")


def vllm(options: argparse.Namespace) -> None:
    """The rounds of a few rows of the sample, answered by the real program."""
    import arhn_datasets

    sample = Path(arhn_datasets.__file__).parent / "samples" / "questions.jsonl"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(sample.read_text(encoding="utf-8").splitlines(keepends=True)[: options.rows]))
        given = [str(rows), "--plan", str(folder / "plan"), "--model", MODEL, "--cache", str(folder / "cache")]
        given += ["--output", str(folder / "refined"), "--max-unread", "1"]
        outputs: list[str] = []
        while True:
            code = cli.refine_command([*given, *(["--ingest", *outputs] if outputs else [])])
            if code or (folder / "refined").exists():
                break
            for path in sorted((folder / "plan").glob("requests-*.jsonl")):
                output = path.with_name(path.name.replace("requests", "output"))
                if not output.exists():
                    files = ["-i", str(path), "-o", str(output), "--served-model-name", MODEL]
                    command = [options.command, "run-batch", *files, "--model", options.model, *options.more]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    outputs.append(str(output))
        print(f"exit code {code}, rounds {len(outputs)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("scale", "damage", "vllm"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.2, help="of lines that are damaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=tuple(DAMAGE), help="of damage; default: all")
    parser.add_argument("--shuffle", action="store_true", help="outputs in no order")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--command", default="vllm", help="vLLM's program")
    parser.add_argument("--model", help="id or folder of the model that vLLM loads")
    options, more = parser.parse_known_args()
    options.more = [one for one in more if one != "--"]  # of vllm run-batch
    {"scale": scale, "damage": damage, "vllm": vllm}[options.what](options)


if __name__ == "__main__":
    main()
