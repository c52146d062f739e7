"""Runs situations that real files and servers gave through the commands, and says which end right.

usage: cases.py FOLDER [--only PATTERN] [--modes] [--show]

A situation is a folder NN-name with its input and ``command.txt``: the lines to run, of which
``python server.py PORT &`` starts a server on the loopback. What is right for each stands here, by its number.
``--modes`` asks a server of several faults (that of 30 and 41) for each fault that it knows, also those that no
situation has. Prints a line for each run; exits with 1 where one ends wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("refine", "push", "export", "cache", "verify", "evaluate", "audit")
LIMIT_SECONDS = 240.0
OF_THE_MODEL = "--api openai --model m"

TOWER, ORCHARD, TUNNEL, FERRY = (
    "how tall is the Marl tower",
    "who wrote The Glass Orchard",
    "how long is the Senn tunnel",
    "who painted The Red Ferry",
)
TOWERS = (
    "The Marl tower is 212 metres tall and stands in Velden.",
    "Velden lies on the river Ost and has 40,000 inhabitants.",
    "Visitors learn that the Marl tower, at 212 metres, is tall enough to be seen from Ost.",
    "A tower is a tall structure.",
)
ORCHARDS = (
    "The Glass Orchard was written by Ana Verhoeven in 1971.",
    "Orchards of glass were a fashion of the court.",
    "Ana Verhoeven, who wrote The Glass Orchard, lived in Ghent.",
)
TUNNELS = (
    "The Senn tunnel is 4,310 metres long and was opened in 1964.",
    "Senn is a village of 900 people below the pass.",
    "Drivers need five minutes for the Senn tunnel, which is 4,310 metres long.",
)
FERRIES = (
    "The Red Ferry was painted by Ilse Marant in 1911.",
    "Ferries were painted red so that they are seen in fog.",
    "Ilse Marant, who painted The Red Ferry, was born in Senn.",
)
IDS = ("17654321098765432101", "9999999999999999999", "14695981039346656037", "1234567890123456789")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a situation came to: exit code, everything printed, and the folder it ran in."""

    code: int
    printed: str
    folder: Path

    @property
    def said(self) -> str:
        """What was printed, on one line."""
        return " ".join(self.printed.split())

    def rows(self) -> list[Row]:
        """The rows of the result in every configuration."""
        found: dict[str, Row] = {}
        for file in sorted((self.folder / "out").rglob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                if "positive_passages" in row:
                    found[row["query_id"]] = row
        return list(found.values())

    def row(self, query: str) -> Row:
        """The row of a query."""
        return next(row for row in self.rows() if row["query"] == query)


class Wrong(Exception):
    """A run that did not end right."""


Check = Callable[[Run], None]


# --- what is right ------------------------------------------------------------------------------------------------


def texts(row: Row, side: str) -> list[str]:
    """The texts of a list of passages."""
    return [passage["text"] for passage in row.get(f"{side}_passages") or []]


def expect(true: object, what: object) -> None:
    """Raise Wrong where it is not true."""
    if not true:
        raise Wrong(str(what))


def done(run: Run) -> None:
    """It ended well."""
    expect(run.code == 0, f"exit {run.code}: {run.said[-500:]}")


def refused(*words: str) -> Check:
    """It ended with 1 or 2 and a message that has these words."""

    def check(run: Run) -> None:
        expect(run.code in (1, 2), f"exit {run.code}")
        for word in words:
            expect(re.search(word, run.said, re.IGNORECASE), f"the message lacks {word!r}: {run.said[-400:]}")

    return check


def all_of(*checks: Check) -> Check:
    """Each of these."""

    def check(run: Run) -> None:
        for one in checks:
            one(run)

    return check


def any_of(*checks: Check) -> Check:
    """One of these."""

    def check(run: Run) -> None:
        told = []
        for one in checks:
            try:
                return one(run)
            except (Wrong, OSError, LookupError, StopIteration) as error:
                told.append(str(error))
        raise Wrong(" | ".join(told))

    return check


def holds(expected: Mapping[str, Sequence[str]]) -> Check:
    """These queries and no others, each with these passages, in whatever lists."""

    def check(run: Run) -> None:
        done(run)
        sides = ("positive", "negative", "filtered")
        found = {row["query"]: {text for side in sides for text in texts(row, side)} for row in run.rows()}
        expect(found == {query: set(passages) for query, passages in expected.items()}, found)

    return check


def lists(query: str, positive: Sequence[str], negative: Sequence[str], *, ends_well: bool = True) -> Check:
    """The row of a query with exactly these lists."""

    def check(run: Run) -> None:
        if ends_well:
            done(run)
        row = run.row(query)
        found = texts(row, "positive"), texts(row, "negative")
        expect(found == (list(positive), list(negative)), found)

    return check


def said(*words: str) -> Check:
    """The output has these words."""

    def check(run: Run) -> None:
        for word in words:
            expect(re.search(word, run.said, re.IGNORECASE), f"the output lacks {word!r}: {run.said[-400:]}")

    return check


GOOD = lists(TOWER, [TOWERS[0], TOWERS[2]], [TOWERS[1], TOWERS[3]])


def unchanged(run: Run) -> None:
    """Nothing was made of the replies: the row is as it came, or there is no result."""
    if run.code == 0 or (run.folder / "out").exists():
        lists(TOWER, TOWERS[:1], TOWERS[1:], ends_well=False)(run)


def exact_ids(run: Run) -> None:
    """Each id digit by digit."""
    done(run)
    found = json.dumps(run.rows(), default=str)
    expect(all(f'"{one}"' in found for one in IDS), "an id is another one")


def ids_travel(run: Run) -> None:
    """Ids beside the passages are theirs, or were left out with a word."""
    done(run)
    row = run.row(TOWER)
    if "pos_id" in row:
        expect((row["pos_id"], row["neg_id"]) == (["p1", "n2"], ["n1"]), (row["pos_id"], row["neg_id"]))
    else:
        own = [passage["docid"] for passage in row["positive_passages"]]
        expect(own == ["p1", "n2"] or "pos_id" in run.printed, f"pos_id is gone without a word; docids are {own}")


def set_aside(run: Run) -> None:
    """The bad row stands in its file, the good one in the result."""
    done(run)
    bad = (run.folder / "out" / "bad-rows.jsonl").read_text(encoding="utf-8").splitlines()
    expect(len(bad) == 1 and ORCHARD in {row["query"] for row in run.rows()}, bad)


def carried_back(run: Run) -> None:
    """Scores, prompt and type stand in the exported row, where its passages went."""
    done(run)
    [file] = (run.folder / "exported").rglob("*.jsonl")
    row = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    expected = {
        **{"pos": [TUNNELS[0], TUNNELS[2]], "pos_scores": [0.9, 0.8], "neg": [TUNNELS[1]], "neg_scores": [0.1]},
        **{"prompt": "Given a question", "type": "normal"},
    }
    expect({name: row.get(name) for name in expected} == expected, row)


def dates_are_texts(run: Run) -> None:
    """As they were written."""
    done(run)
    expect({row["published"] for row in run.rows()} == {"2020-01-02", "2021-01-02"}, "a date is another one")


def all_9001(run: Run) -> None:
    """All rows of the large file."""
    done(run)
    expect(len(run.rows()) == 9001, len(run.rows()))


def cut_and_relabelled(run: Run) -> None:
    """The long passage was read in part, and became a positive."""
    done(run)
    expect(any(text.startswith("Visitors") for text in texts(run.row(TOWER), "positive")), "it stayed a negative")


def one_error(run: Run) -> None:
    """One passage has no evidence and stayed; the others were refined, and the exit code says that one failed."""
    expect(run.code == 1, f"exit {run.code}: {run.said[-500:]}")
    row = run.row(TOWER)
    expect(texts(row, "positive") == [TOWERS[0], TOWERS[2]], texts(row, "positive"))
    expect(TOWERS[1] in texts(row, "negative"), texts(row, "negative"))


def printed(pattern: str, count: int, never: str = r"\0") -> Check:
    """So many lines that fit a pattern, none that fits another."""

    def check(run: Run) -> None:
        expect(len(re.findall(pattern, run.printed, re.MULTILINE)) == count, run.said[-400:])
        expect(not re.search(never, run.printed), run.said[-400:])

    return check


BOTH_TOWER = {TOWER: TOWERS[:3]}
TWO = {TOWER: TOWERS[:3], ORCHARD: ORCHARDS}
SENN = {TUNNEL: TUNNELS, FERRY: FERRIES}
NOTHING_TOLD = (
    TUNNELS[1],
    "None of the towns below the pass has a tunnel.",
    "The council gave no answer to the letter.",
)


@dataclass(frozen=True)
class Trial:
    """A run of a situation: with another file, mode or option where these are named, and what is right."""

    check: Check
    file: str = ""
    mode: str = ""
    options: str = ""
    before: Sequence[str] = field(default=())


def _files(check: Check, *names: str) -> list[Trial]:
    return [Trial(check, file=name) for name in names]


EXPECTED: Mapping[str, Sequence[Trial]] = {
    "01": [Trial(refused(r"row [01]\b", "pos"))],
    "02": [Trial(refused("query", "1984"))],
    "06": [Trial(refused("score", "threshold|labels"))],
    "07": [
        Trial(
            holds(
                {
                    "what is the chemical symbol of sodium": [
                        "The symbol of sodium is Na.",
                        "NA",
                        "Sodium is a metal.",
                    ],
                    ORCHARD: ORCHARDS,
                }
            )
        )
    ],
    "09": [Trial(lambda run: expect({row["query_id"] for row in run.rows()} == {"0007", "0012"}, "other ids"))],
    "11": [
        Trial(
            holds(
                {
                    "in what year did the Marl tower open": ["1969", "1970"],
                    "in what year did Velden flood": ["1921", "1922"],
                }
            ),
            file="d15_numeric_answers.csv",
        ),
        Trial(
            holds(
                {
                    "what is the code of agent Ost": ["007", "012"],
                    "what is the dialling code of Velden": ["0316", "0317"],
                }
            ),
            file="d15b_leading_zeros.csv",
        ),
        Trial(
            holds({"is the Marl tower tall ?": ["True", "False"], "is Velden old ?": ["True", "False"]}),
            file="g2_csv_true.csv",
        ),
    ],
    "12": [Trial(any_of(exact_ids, refused("string")))],
    "14": [
        Trial(
            holds(
                {
                    "when did the Marl tower open": ["1969-07-20", "1970-01-01", "1969-07-21"],
                    "when was the flood of Velden": ["1921-03-04", "1922-03-04"],
                }
            )
        )
    ],
    "16": [Trial(any_of(holds(TWO), refused("json.loads|literal_eval")))],
    "17": [Trial(holds({TOWER: TOWERS[:3], ORCHARD: ORCHARDS[:2]}))],
    "18": [Trial(holds(BOTH_TOWER))],
    "19": [Trial(ids_travel)],
    "21": [Trial(refused("on-bad-row")), Trial(set_aside, options="--on-bad-row set-aside")],
    "23": [
        *_files(holds({TOWER: TOWERS[:1], ORCHARD: ORCHARDS}), "d02b_neg_null.jsonl"),
        *_files(holds(TWO), "d26b_scores_empty.jsonl"),
    ],
    "24": [Trial(done)],
    "26": [
        *_files(holds(TWO), "d05_swift_response.jsonl"),
        *_files(
            holds(BOTH_TOWER),
            *(
                "d06_swift_messages.jsonl",
                "d07_st_negative_list.jsonl",
                "d08_negatives_plural.jsonl",
                "d08b_contrastors.jsonl",
            ),
        ),
    ],
    "27": [
        *_files(holds({TOWER: TOWERS[:2]}), "d09_labeled_pair.jsonl"),
        *_files(holds(TWO), "h1_st_labeled_list.jsonl"),
        *_files(holds(BOTH_TOWER), "h2_st_labeled_pair.jsonl"),
    ],
    "28": [
        *_files(refused("list", "object"), "d29_colbert_triples.jsonl"),
        *_files(any_of(holds(BOTH_TOWER), refused("header")), "d29b_triples.tsv"),
    ],
    "30": [Trial(any_of(GOOD, unchanged))],
    "32": [Trial(all_of(unchanged, said("cut off")))],
    "34": [Trial(all_of(unchanged, said("cut off")))],
    "35": [Trial(all_of(unchanged, said("cut off")))],
    "36": [Trial(GOOD)],
    "37": [Trial(GOOD)],
    "39": [Trial(one_error)],
    "40": [Trial(refused("does not exist", "--model"))],
    "41": [Trial(cut_and_relabelled)],
    "43": [Trial(GOOD), Trial(refused("think|reason"), mode="reasonnull")],
    "45": [Trial(GOOD)],
    "47": [Trial(GOOD)],
    "48": [Trial(refused("nomic-embed-text:latest", "llama3:latest"))],
    "49": [Trial(refused("redirect", "https://example.invalid"))],
    "50": [Trial(holds({**SENN, "what is Senn": ["Senn is a village.", "Senn lies below the pass.", "x y z"]}))],
    "52": _files(holds(SENN), "in", "in2", "in3"),
    "54": [Trial(all_9001, before=("make.py", kind)) for kind in ("scores", "prompt", "empty", "column")],
    "55": [Trial(lists(TUNNEL, TUNNELS[:1], NOTHING_TOLD))],
    "57": [Trial(holds(SENN))],
    "58": [Trial(lists(TUNNEL, [TUNNELS[0], TUNNELS[2]], TUNNELS[1:2]))],
    "61": [Trial(refused("402|credits", "Insufficient credits"))],
    "63": [Trial(carried_back)],
    "64": [Trial(printed("'d1'", 3, never="expected"))],
    "65": [Trial(printed("^ungrounded expected", 3))],
    "67": [Trial(dates_are_texts)],
    "68": _files(refused("rename"), "decision.jsonl", "ranking.jsonl", "ranks.jsonl"),
    "69": [Trial(cut_and_relabelled)],
    "70": [Trial(done)],
    "71": [Trial(refused("chat template", "--tokenizer"))],
}

_AS_GOOD = (
    *("good", "reasonfield", "nousage", "usagenull", "textplain", "octet", "sse", "think_open_in_template"),
    *(
        "nginx504",
        "err200",
        "choicesnull",
        "temp400",
        "ctk400",
        "ctk422",
        "ctk_generic",
        "imend",
        "harmony",
        "magistral",
    ),
    *("kimi", "nul", "bomjson", "gzip", "cut", "tgi_424", "fenced", "leading_ws", "json_str", "assistant_prefix"),
    *("strusage", "tgi"),
)
_NEVER_WRONG = ("surr", "badutf8", "harmony_rank", "thinktrunc_marker", "br", "zstd")
MODES: Sequence[tuple[str, Trial]] = [
    *(("30", Trial(GOOD, mode=mode)) for mode in _AS_GOOD),
    *(("30", Trial(any_of(GOOD, unchanged), mode=mode)) for mode in _NEVER_WRONG),
    *(("41", Trial(cut_and_relabelled, mode=mode)) for mode in ("qwen400", "gemini400", "vllm400")),
    ("30", Trial(GOOD, mode="multi", options="--model llama3:latest")),
    ("30", Trial(refused("nomic", "llama3:latest"), mode="multi")),
    ("30", Trial(GOOD, mode="info401", options=OF_THE_MODEL)),
    ("30", Trial(one_error, mode="filter")),
    ("30", Trial(one_error, mode="htmlonce")),
    ("30", Trial(refused("filter|refus"), mode="refusal")),
    ("30", Trial(refused("cut off|empty"), mode="emptylen")),
    ("30", Trial(refused("202|queued"), mode="202")),
    ("30", Trial(refused("sign in|HTML"), mode="login")),
    ("30", Trial(any_of(GOOD, refused("HTML|sign in")), mode="spa")),
]


# --- the runs -----------------------------------------------------------------------------------------------------


def commands(folder: Path) -> None:
    """The commands of the package, as files that call this checkout."""
    for name in COMMANDS:
        file = folder / f"arhn-{name}"
        lines = ["import sys", f"from arhn_datasets.cli import {name}_command", f"sys.exit({name}_command())"]
        file.write_text("\n".join([f"#!{sys.executable}", *lines]) + "\n", encoding="utf-8")
        file.chmod(0o755)


def lines_of(case: Path, trial: Trial, port: int) -> tuple[list[str], list[list[str]]]:
    """The lines to run, and the arguments of the servers to start before."""
    found, servers = [], []
    for raw in (case / "command.txt").read_text(encoding="utf-8").splitlines():
        line = re.sub(r"\b184\d\d\b", str(port), raw.split("   #")[0].strip())
        if server := re.match(r"python (server\.py .*?)\s*&", line):
            servers.append([sys.executable, *server[1].split()])
        elif line and not line.startswith(("#", "python -c", "python make.py")):
            found.append(re.sub("^python ", f"{sys.executable} ", line))
        elif making := re.match(r"python make\.py( > \S+)$", line):
            found.append(f"{sys.executable} make.py{making[1]}")
    if trial.file:
        found = [re.sub(r"arhn-refine \S+", f"arhn-refine {trial.file}", found[0])]
        found = [re.sub(r"--output \S+", "--output out", line) for line in found]
    if trial.mode:
        found = [re.sub(rf"(127\.0\.0\.1:{port}/)\w+", rf"\g<1>{trial.mode}", found[0])]
    if trial.options:
        found = [f"{found[0]} {trial.options}"]
    if trial.before:
        found = [" ".join([sys.executable, *trial.before]), found[-1]]
    return found, servers


@contextmanager
def serving(servers: Sequence[Sequence[str]], port: int, folder: Path) -> Iterator[None]:
    """The servers, from when their port is open to the end."""
    started = [subprocess.Popen(server, cwd=folder) for server in servers]
    try:
        for _ in range(100 if started else 0):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        for server in started:
            server.kill()
            server.wait()


def run_of(case: Path, trial: Trial, scratch: Path) -> Run:
    """A situation in a copy of its folder, with caches of its own."""
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "case"
    shutil.copytree(case, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(scratch), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "ARHN_CACHE": str(folder.parent / "replies"),
        "HF_HOME": str(folder.parent / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    lines, servers = lines_of(case, trial, port)
    output, code = "", 0
    with serving(servers, port, folder):
        for line in lines:
            try:
                ended = subprocess.run(
                    line,
                    shell=True,
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    timeout=LIMIT_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return Run(code=124, printed=f"{output} more than {LIMIT_SECONDS:g} seconds", folder=folder)
            output, code = output + ended.stdout + ended.stderr, ended.returncode
            if code:
                break
    return Run(code=code, printed=output, folder=folder)


def verdict_on(run: Run, check: Check) -> str:
    """Empty where it ended right, else what is wrong."""
    if "Traceback" in run.printed:
        return f"a traceback: {run.said[run.said.index('Traceback') :][-300:]}"
    try:
        check(run)
    except (Wrong, OSError, LookupError, StopIteration, ValueError) as error:
        return f"{error or type(error).__name__}"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each run; exit with 1 where one ends wrong."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path)
    made.add_argument("--only", default="", metavar="PATTERN", help="situations or modes whose name it fits")
    made.add_argument("--modes", action="store_true", help="every fault of the server of several")
    made.add_argument("--show", action="store_true", help="also what each run printed")
    options = made.parse_args(arguments)
    by_number = {path.name[:2]: path for path in sorted(options.folder.iterdir()) if (path / "command.txt").is_file()}
    every = MODES if options.modes else [(number, one) for number, trials in EXPECTED.items() for one in trials]
    trials = [(by_number[number], one) for number, one in every if number in by_number]
    trials = [(case, one) for case, one in trials if re.search(options.only, one.mode if options.modes else case.name)]
    if not trials:
        made.error(f"{options.folder} has no situation that is known here and fits {options.only!r}")
    right = 0
    with tempfile.TemporaryDirectory() as scratch:
        commands(Path(scratch))
        for case, trial in trials:
            run = run_of(case, trial, Path(scratch))
            wrong = verdict_on(run, trial.check)
            right += not wrong
            variant = " ".join([trial.file, trial.mode, trial.options, *trial.before[1:]]).strip()
            print(
                f"{case.name:<42}{variant:<34}exit {run.code}  {'WRONG ' + wrong[:400] if wrong else 'right'}",
                flush=True,
            )
            if options.show:
                print(run.printed)
    print(f"{right} of {len(trials)} end right")
    sys.exit(right < len(trials))


if __name__ == "__main__":
    main()
