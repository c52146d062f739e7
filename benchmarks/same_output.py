"""Proves that a change keeps every output byte for byte, aside from times, ids and durations.

usage: same_output.py make FOLDER [--package DIR] [--ray]
       same_output.py compare OLD NEW [--ignore-json-fields a,b.c] [--skip PATTERN]

``make`` runs the commands and the public API of the package in DIR, a checkout (by default the one of this file), over
the shipped sample and over small inputs of every known form, and leaves in FOLDER what they wrote and printed: refined
folders (lexical, emulator, streamed, sharded and merged, every policy, every form), the rows of every rule, exports,
cards, audits, evaluations and what a Hub holds after the pushes. ``compare`` tells each difference of two such folders,
and exits with 1 where there is one.

Make one before a change and one after it, with the same Python and the same dependencies, for instance:

    git worktree add ../before HEAD~1
    python benchmarks/same_output.py make /tmp/old --package ../before
    python benchmarks/same_output.py make /tmp/new
    python benchmarks/same_output.py compare /tmp/old /tmp/new

Nothing here knows a module inside the package: only its public names, the commands of ``[project.scripts]``, the
emulator ``python -m arhn_datasets.testing.tgi``, and the Hub of the tests. A command gets ``--streaming`` only where
its ``--help`` has it. Files are kept as they are, but for the patterns of ``MASKS`` in texts; a Parquet file is never
touched. ``printed/`` has what the commands said, without progress bars; ``rules/`` and ``adapted/`` have rows as JSON
lines below their Arrow schema. What a change means to leave out of run.json is named by ``--ignore-json-fields``, with
dots into objects; files that it means to change by ``--skip``, a pattern such as ``'printed/estimate*'``, repeatable.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = "output_scenarios.py"
LIMIT_SECONDS = 600.0  # of one command
AT_ONCE = 2
SAMPLE, TRUTH, STORE = "questions.jsonl", "questions.truth.jsonl", "store.jsonl"
INPUTS = (
    *("tevatron.jsonl", "no-ids.jsonl", "flagembedding.jsonl", "flagembedding-bare.jsonl", "labelled.jsonl"),
    *("scored-list.jsonl", "dpr.jsonl", "triplets.jsonl", "n-tuples.jsonl", "table.csv", "table.parquet", "list.json"),
    *("folder", "saved"),
)
GROUPED = ("triplets.jsonl", "n-tuples.jsonl", "table.csv")  # no stream has their rows
FORMATS = ("triplet", "n-tuple", "pair", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "beir", "mteb")
EVERY_FORMAT = [part for name in FORMATS for part in ("--format", name)]
MASKS = (
    (r'("(?:durations_seconds|fingerprints)": )\{[^}]*\}', r"\1{}"),
    (r'("(?:id|run)": ")[0-9a-f]{32}"', r'\1<id>"'),
    (r"\b(run|export) [0-9a-f]{32}\b", r"\1 <id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?", "<time>"),
    (r"\b\d[\d.,]* seconds\b", "<seconds>"),
    (r'("stored": )[\d.]+', r"\1<time>"),
    (r"127\.0\.0\.1:\d+", "<server>"),
    (r"(?m)^(duration +).* requests/s", r"\1<time>"),
    (r"(?m)^ *[\d,]+(  run\.json)$", r"<size>\1"),
    (r"(?m)^ *[\d,]+(  in \d+ files)$", r"<size>\1"),
)
PROGRESS = re.compile(r"\d+%\||\[\d\d:\d\d|it/s|rows/s|examples/s")
EMULATORS: Mapping[str, Sequence[str]] = {
    "plain": (),
    "thinking": ("--thinking", "16"),
    "silent": ("--reply", "Nobody knows."),
    "refusing": ("--fault", "413"),
}
RENAMED = {"--streaming": "", "--max-relabeled": "--max-relabelled"}  # where --help has not the first
# Each value of each option at least once, and those together that meet in the same branch.
POLICIES = (
    "--policy relabel --reference worst --unsupported keep --ties below",
    "--policy filter --unsupported relabel --rank-by passage",
    "--policy relabel+filter --reference worst --unsupported relabel --permutations 3 --window 3 --stride 2 --seed 7",
    "--policy relabel --unsupported relabel --min-negatives 4 --on-shortage drop",
    "--ties below --rank-by passage --min-negatives 4 --on-shortage allow",
    "--max-relabeled 0 --on-excess drop --show 3",
    "--max-relabeled 0 --on-excess allow --policy relabel --unsupported relabel",
    "--max-relabeled 0 --on-excess keep --min-negatives 5 --on-shortage keep",
    "--task claim --batch-size 7 --limit 30",
    "--task qa=claim --task titles=argument --limit 50 --permutations 2",
)


# --- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command of the package, or a scenario of ``output_scenarios.py``; ``label`` names what it printed."""

    label: str
    command: str
    arguments: Sequence[str]


@dataclass
class Runner:
    """Runs jobs in processes of their own, from ``folder``, with the package of a checkout."""

    package: Path
    folder: Path
    environment: Mapping[str, str]
    entries: Mapping[str, tuple[str, str]] = field(init=False)
    known: Collection[str] = field(init=False)

    def __post_init__(self) -> None:
        text = (self.package / "pyproject.toml").read_text(encoding="utf-8")
        found = re.findall(r'^(arhn-\w+) = "([\w.]+):(\w+)"$', text, re.MULTILINE)
        self.entries = {name: (module, function) for name, module, function in found}
        self.known = ()
        self.known = set(re.findall(r"--[\w-]+", self.run(Job("help", "arhn-refine", ["--help"]))[1]))
        imported = self._python("-c", "import arhn_datasets; print(arhn_datasets.__file__)").stdout.strip()
        if self.package not in Path(imported).parents:
            sys.exit(f"error: {sys.executable} imports {imported or 'nothing'}, which is not in {self.package}.")

    def all(self, jobs: Sequence[Job]) -> None:
        """Run them in parallel, and keep what they printed."""
        (self.folder / "printed").mkdir(exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._keep, jobs))

    def _keep(self, job: Job) -> None:
        code, printed, said = self.run(job)
        said = "" if "ray" in job.arguments else said  # a cluster says something else each time
        errors = "".join(line for line in re.split(r"(?<=[\n\r])", said) if not PROGRESS.search(line) and line.strip())
        text = f"{job.command} {shlex.join(job.arguments)}\nexit code {code}\n{printed}--- stderr\n{errors}"
        (self.folder / "printed" / f"{job.label}.txt").write_text(text, encoding="utf-8")

    def run(self, job: Job) -> tuple[int, str, str]:
        """The exit code, and what was printed."""
        start, arguments = [str(Path(__file__).with_name(job.command))], job.arguments
        if job.command in self.entries:
            module, function = self.entries[job.command]
            start = ["-c", f"import sys\nfrom {module} import {function}\nsys.exit({function}())"]
            arguments = [one if one in self.known else RENAMED.get(one, one) for one in arguments]
        done = self._python(*start, *filter(None, arguments))
        return done.returncode, done.stdout, done.stderr

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )

    @contextmanager
    def emulator(self, options: Sequence[str]) -> Iterator[str]:
        """The URL of the package's emulator, in a process of its own."""
        command = [sys.executable, "-m", "arhn_datasets.testing.tgi", "--port", "0", *options]
        server = subprocess.Popen(command, env=dict(self.environment), stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None  # a pipe
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(30)


def make(options: argparse.Namespace) -> int:
    """Run everything, and leave the outputs in the folder."""
    package, folder = options.package.resolve(), options.folder.resolve()
    folder.mkdir(parents=True)
    sys.path.insert(0, str(package))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no emulator stays behind
    started = time.monotonic()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-output-")))
        hub = hub_of(package)(scratch / "hub")
        stack.callback(hub.close)
        kept = {name: value for name, value in hub.environment().items() if not name.startswith("ARHN_")}
        paths = {"PYTHONPATH": str(package), "ARHN_CACHE": str(scratch / "store"), "TMPDIR": str(scratch)}
        runner = Runner(package, folder, {**kept, **paths, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"})
        urls = {name: stack.enter_context(runner.emulator(given)) for name, given in EMULATORS.items()}
        for name in (SAMPLE, TRUTH):
            shutil.copy(package / "arhn_datasets" / "samples" / name, folder)
        runner.all([scenario("inputs")])
        runner.all([*refinements(urls), *of_forms(), *(of_ray(urls) if options.ray else [])])
        runner.all([scenario("identified")])
        runner.all([*merges(), *rules(), *readings(), *first_pushes()])
        runner.all(second_pushes(hub))
        keep_published(hub, folder)
        runner.all(after_pushes())
        (folder / STORE).write_text("".join(sorted((folder / STORE).open())), encoding="utf-8")  # as they arrived
        mask(folder, {str(folder): "<folder>", str(scratch): "<scratch>", str(package): "<package>", **commits(hub)})
    failed = [path.stem for path in sorted((folder / "printed").iterdir()) if "exit code 0\n" not in path.read_text()]
    print(f"{sum(path.is_file() for path in folder.rglob('*'))} files in {time.monotonic() - started:.0f} s: {folder}")
    print(f"exit code other than 0, which is an output like any other: {', '.join(failed) or 'none'}")
    return 0


def hub_of(package: Path) -> Callable[[Path], Any]:
    """The class of the Hub on loopback that the package's tests have."""
    name = "tests.hub" if (package / "tests" / "hub.py").exists() else "tests.fakes.hub"
    found: Callable[[Path], Any] = importlib.import_module(name).Hub
    return found


def keep_published(hub: Any, folder: Path) -> None:
    """The files that the newest commit of each repository has."""
    for name in hub.repositories:
        shutil.rmtree(folder / "published" / name, ignore_errors=True)
        for path, content in hub.files(name).items():
            place = folder / "published" / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def commits(hub: Any) -> dict[str, str]:
    """A mask for the sha of each commit: it follows from the id of the run."""
    return {sha: "<commit>" for repository in hub.repositories.values() for sha in repository.commits}


def mask(folder: Path, words: Mapping[str, str]) -> None:
    """Put a placeholder for every time, id and path in the texts."""
    known = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))
    for path in (path for path in folder.rglob("*") if path.is_file()):
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        for pattern, placeholder in MASKS:
            text = re.sub(pattern, placeholder, text)
        path.write_bytes(known.sub(lambda found: words[found[0]], text).encode())


# --- what is run ----------------------------------------------------------------------------------------------------


def refine(output: str, source: str, *arguments: str) -> Job:
    return Job(output.replace("/", "-"), "arhn-refine", [source, "--output", output, *arguments])


def scenario(name: str) -> Job:
    return Job(name, SCENARIOS, [name])


def refinements(urls: Mapping[str, str]) -> list[Job]:
    """The sample through both annotators: plain, streamed, in shards, by every policy, and what goes wrong."""
    asked = {name: ("--endpoint", url, "--cache", "none") for name, url in urls.items()}
    ways = {"lexical": ("--annotator", "lexical"), "emulator": asked["plain"]}
    jobs = []
    for name, way in ways.items():
        jobs.append(refine(name, SAMPLE, *way, "--show", "4"))
        jobs.append(refine(f"{name}-streamed", SAMPLE, *way, "--streaming"))
        for shard in "012":
            jobs.append(refine(f"shards/{name}-{shard}", SAMPLE, *way, "--shard-index", shard, "--num-shards", "3"))
        for shard in "01":
            parts = ("--streaming", "--shard-index", shard, "--num-shards", "2")
            jobs.append(refine(f"shards/{name}-streamed-{shard}", "inputs/folder", *way, *parts))
        for number, policy in enumerate(POLICIES):
            jobs.append(refine(f"policies/{name}-{number}", SAMPLE, *way, *shlex.split(policy)))
    for name in ("thinking", "silent", "refusing"):
        jobs.append(refine(f"replies/{name}", SAMPLE, *asked[name], "--limit", "12"))
    jobs.append(refine("replies/constrained", SAMPLE, *asked["plain"], "--constrained", "--limit", "12"))
    jobs.append(refine("replies/stored", SAMPLE, "--endpoint", urls["plain"]))
    prices = ("--estimate", "--estimate-rows", "8", "--price-per-million", "1", "2")
    jobs.append(Job("wrong-usage", "arhn-refine", [SAMPLE, "--annotator", "lexical", "--timeout", "3"]))
    jobs.append(Job("estimate", "arhn-refine", [SAMPLE, *asked["plain"], *prices]))
    return jobs


def of_forms() -> list[Job]:
    """Every input, whole and streamed."""
    jobs = []
    for name in INPUTS:
        output = f"forms/{name.removesuffix('.jsonl').replace('.', '-')}"
        jobs.append(refine(output, f"inputs/{name}", "--annotator", "lexical"))
        if name not in GROUPED:
            jobs.append(refine(f"{output}-streamed", f"inputs/{name}", "--annotator", "lexical", "--streaming"))
    return jobs


def of_ray(urls: Mapping[str, str]) -> list[Job]:
    engine = ("--engine", "ray", "--ray-actors", "1")
    return [
        refine("ray/lexical", SAMPLE, "--annotator", "lexical", *engine),
        refine("ray/emulator", SAMPLE, "--endpoint", urls["plain"], "--cache", "none", *engine),
    ]


def merges() -> list[Job]:
    jobs = []
    for name, count in (("lexical", 3), ("emulator", 3), ("lexical-streamed", 2), ("emulator-streamed", 2)):
        shards = [f"shards/{name}-{shard}" for shard in range(count)]
        jobs.append(Job(f"merged-{name}", "arhn-refine", ["merge", f"merged/{name}", *shards]))
    return jobs


def rules() -> list[Job]:
    return [scenario(name) for name in ("ruled", "adapted", "pushed")]


def readings() -> list[Job]:
    """Verification, evaluation, audits, exports and the store, of folders that are there."""
    folders = ["lexical", "lexical-streamed", "emulator", *(f"policies/emulator-{number}" for number in range(8))]
    jobs = [Job(f"verify-{name.replace('/', '-')}", "arhn-verify", [name]) for name in (*folders, "replies/refusing")]
    drawn = ("--rows", "40", "--output")
    for name in ("lexical", "emulator", "policies/emulator-3"):
        label, seeded = name.replace("/", "-"), ("--seed", "5", "--samples", "200")
        jobs.append(Job(f"evaluate-{label}", "arhn-evaluate", [name, TRUTH, *seeded]))
        plot = ("--json", "--plot", f"{label}.png")
        jobs.append(Job(f"evaluate-json-{label}", "arhn-evaluate", [name, TRUTH, *seeded, *plot]))
        jobs.append(Job(f"audit-{label}", "arhn-audit", [f"audits/{label}", *drawn, f"audits/{label}.csv"]))
        jobs.append(Job(f"export-{label}", "arhn-export", [name, *EVERY_FORMAT, "--output", f"exports/{label}"]))
    lists = "--format n-tuple --format labeled-list --negatives 3 --short drop --grades --split train"
    jobs.append(Job("export-options", "arhn-export", ["emulator", *shlex.split(lists), "--output", "exports/options"]))
    jobs.append(Job("audit-jsonl", "arhn-audit", ["audits/emulator", "--seed", "3", "--output", "audits/sheet.jsonl"]))
    jobs.append(Job("cache-info", "arhn-cache", ["info"]))
    jobs.append(Job("cache-export", "arhn-cache", ["export", STORE]))
    return jobs


def first_pushes() -> list[Job]:
    jobs = [Job("push-emulator", "arhn-push", ["emulator", "writer/emulator", *EVERY_FORMAT])]
    for name, given in {
        "lexical": "",
        "emulator": "--format n-tuple --negatives 2 --short drop --license mit",
        "policies/emulator-3": "--format labeled-list --grades --format beir",
        "forms/flagembedding": "--format flagembedding --format mteb",
    }.items():
        arguments = [name, "writer/dry", *shlex.split(given), "--dry-run"]
        jobs.append(Job(f"dry-run-{name.replace('/', '-')}", "arhn-push", arguments))
    return jobs


def second_pushes(hub: Any) -> list[Job]:
    """A push over another one, whose card somebody has edited, and the answers of an audit."""
    card = hub.files("writer/emulator")["README.md"].decode()
    edited = card.replace("\n---\n", "\nlanguage:\n- en\n---\nWords of mine.\n\n", 1) + "\nMore words of mine.\n"
    hub.commit("writer/emulator", {"README.md": edited.encode(), "notes.txt": b"mine"})
    return [
        Job("push-over", "arhn-push", ["policies/emulator-3", "writer/emulator", "--format", "triplet", "--public"]),
        scenario("answered"),
    ]


def after_pushes() -> list[Job]:
    """What reads a published dataset, from the Hub and from a copy."""
    copy = ["published/writer/scored-2"]
    soft = "--format n-tuple --format labeled-list --format flagembedding --labels soft --output exports/soft"
    return [
        Job("verify-published", "arhn-verify", ["writer/emulator"]),
        Job("evaluate-published", "arhn-evaluate", ["writer/emulator", TRUTH, "--samples", "50"]),
        refine("refined-again", "writer/emulator", "--annotator", "lexical"),
        Job("export-soft", "arhn-export", [*copy, *shlex.split(soft)]),
        Job("audit-answers", "arhn-audit", ["audits/emulator", "--answers", "audits/answered.csv"]),
        Job("dry-run-audited", "arhn-push", ["audits/emulator", "writer/audited", "--dry-run"]),
        scenario("joined"),
    ]


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> int:
    """Print each difference; 1 where there is one."""
    ignored = [path.split(".") for path in options.ignore_json_fields.split(",") if path]
    trees = [
        {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (options.old, options.new)
    ]
    names = [name for name in dict.fromkeys((*trees[0], *trees[1])) if not any_of(options.skip, name)]
    different = 0
    for name in names:
        old, new = (tree.get(name) for tree in trees)
        if old is None or new is None:
            found = [f"only in {options.new if old is None else options.old}"]
        else:
            found = differences(old, new, ignored)
        if found:
            different += 1
            shown = [*found[: options.lines], f"... {len(found) - options.lines} more lines"][: max(len(found), 1)]
            print(f"{name}\n" + "\n".join(f"    {line}" for line in shown))
    print(f"{len(names):,} files compared, {different:,} differ")
    return 1 if different or not names else 0


def any_of(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def differences(old: Path, new: Path, ignored: Sequence[Sequence[str]]) -> list[str]:
    """What differs in two files; nothing where they are equal."""
    contents = [path.read_bytes() for path in (old, new)]
    if contents[0] == contents[1]:
        return []
    if old.suffix == ".parquet":
        return of_tables(old, new)
    try:
        texts = [content.decode() for content in contents]
    except UnicodeDecodeError:
        return [f"{len(contents[0]):,} and {len(contents[1]):,} bytes differ"]
    if old.suffix == ".json" and ignored and all(is_json(text) for text in texts):  # a masked number is none
        texts = [json.dumps(without(json.loads(text), ignored), indent=2, ensure_ascii=False) for text in texts]
    lines = difflib.unified_diff(*(text.splitlines() for text in texts), "old", "new", lineterm="", n=1)
    return [line if len(line) < 400 else f"{line[:400]}..." for line in lines] or ([] if ignored else ["ends of lines"])


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def without(value: Any, ignored: Sequence[Sequence[str]]) -> Any:
    """A JSON object without some of its fields."""
    if not isinstance(value, dict):
        return value
    own = {first: [rest for name, *rest in ignored if name == first and rest] for first, *_ in ignored}
    return {
        name: without(item, own.get(name, ()))
        for name, item in value.items()
        if not any(name == first and not rest for first, *rest in ignored)
    }


def of_tables(old: Path, new: Path) -> list[str]:
    """Where two Parquet files differ: in their schema, in a value, or only in how they are written."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in (old, new)]
    schemas = [table.schema.to_string().splitlines() for table in tables]
    if schemas[0] != schemas[1]:
        return ["the schemas differ", *difflib.unified_diff(*schemas, "old", "new", lineterm="", n=1)]
    if tables[0].num_rows != tables[1].num_rows:
        return [f"{tables[0].num_rows:,} and {tables[1].num_rows:,} rows"]
    found = []
    for name in tables[0].column_names:
        pairs = enumerate(zip(*(table[name].to_pylist() for table in tables), strict=True))
        rows = [(row, *pair) for row, pair in pairs if repr(pair[0]) != repr(pair[1])]
        if rows:
            row, before, after = rows[0]
            found.append(f"column {name}: {len(rows)} rows, the first {row}: {before!r:.300} and {after!r:.300}")
    return found or ["equal rows, but other bytes: row groups, compression or metadata of the file"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="make|compare")
    making = commands.add_parser("make", help="write the outputs of a package into a folder that is not there")
    making.add_argument("folder", type=Path)
    making.add_argument("--package", type=Path, default=ROOT, metavar="DIR", help="a checkout; default: this one")
    making.add_argument("--ray", action="store_true", help="through the engine Ray as well")
    making.set_defaults(run=make)
    comparing = commands.add_parser("compare", help="print what differs in two folders")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--ignore-json-fields", default="", metavar="a,b.c", help="of .json files")
    comparing.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="of paths; repeatable")
    comparing.add_argument("--lines", type=int, default=20, metavar="N", help="of each difference; default: 20")
    comparing.set_defaults(run=compare)
    options = parser.parse_args(arguments)
    done: int = options.run(options)
    return done


if __name__ == "__main__":
    sys.exit(main())
