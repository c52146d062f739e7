"""Random rows of every form, from files to labels and back: is a passage lost, is a label moved without evidence?

usage: fuzz_rows.py [--count ROWS] [--seed N] [--form PATTERN] [--json]

Each round draws rows, writes them in one of the forms into a file of one of the kinds, reads that as arhn-refine does,
draws evidence (of every status, also contradicting), relabels by a drawn rule, and reverts. What is right is known from
how the rows were drawn, not from the package:

    damaged     a query, id, text or score that is not what was written, or a row too many or too few
    lost        a passage of the source that stands in no list, or in two
    invented    a negative that moved without a grounded snippet, or became a positive and is ranked below all of them
    unreverted  a row that revert does not give back

The table has a line for each form; exits with 1 where one of these is not 0.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gzip
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Annotator, Ranking, Snippet
from arhn_datasets.inputs.sources import Input, load_input, silent
from arhn_datasets.rows.records import digest
from arhn_datasets.rules.revert import Revert

ROUND = 250  # rows
FAULTS = ("damaged", "lost", "invented", "unreverted")
SIDES = ("positive", "negative")
PIECES = (
    *(
        "the",
        "tower",
        "Ost",
        "1969",
        "007",
        "12.5",
        "NA",
        "null",
        "None",
        "True",
        '"quoted"',
        "back\\slash",
        "tab\there",
    ),
    *(
        "line\nbreak",
        "comma, ",
        "semi; colon",
        "Öl",
        "東京",
        "🗼",
        "1969-07-20",
        "[1] > [2]",
        "{}",
        "<b>",
        "’",
        "a" * 40,
    ),
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A row as it was drawn: texts of both sides, and the scores that go with them."""

    number: int
    query: str
    positive: Sequence[str]
    negative: Sequence[str]
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)


def drawn_rows(rng: random.Random, count: int) -> list[Drawn]:
    """Rows of distinct queries; no text stands twice in a row, many stand in several."""
    shared = [_text(rng) for _ in range(count)]
    rows = []
    for number in range(count):
        texts = list(dict.fromkeys(t for _ in range(rng.randint(2, 9)) if (t := _some(rng, shared)).strip()))
        cut = min(len(texts), rng.choice((1, 1, 1, 2, 3)))
        sides = {"positive": texts[:cut], "negative": texts[cut:]}
        scores = {side: [round(rng.uniform(-2, 2), 3) for _ in one] for side, one in sides.items()}
        query = f"{_text(rng)} {number}?"
        rows.append(Drawn(number=number, query=query, scores=scores, **sides))
    return [row for row in rows if row.positive]


def _some(rng: random.Random, shared: Sequence[str]) -> str:
    return rng.choice(shared) if rng.random() < 0.3 else _text(rng)


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8))).strip() or "x"


# --- forms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Form:
    """How rows of a form are written; ``of_one`` where it holds one positive a row, ``flat`` where a CSV can."""

    write: Callable[[Drawn], list[Row]]
    of_one: bool = False
    flat: bool = False
    scored: bool = False
    needs_negatives: bool = False


FORMS: dict[str, Form] = {}


def form(name: str, **traits: bool) -> Callable[[Callable[[Drawn], list[Row]]], Callable[[Drawn], list[Row]]]:
    """Registers the writer of a form."""

    def registered(write: Callable[[Drawn], list[Row]]) -> Callable[[Drawn], list[Row]]:
        FORMS[name] = Form(write=write, **traits)
        return write

    return registered


def _passages(row: Drawn, side: str, id_name: str) -> list[Row]:
    texts = getattr(row, side)
    return [{id_name: f"{row.number}-{side[0]}{i}", "title": "", "text": text} for i, text in enumerate(texts)]


@form("canonical")
def _canonical(row: Drawn) -> list[Row]:
    lists = {f"{side}_passages": _passages(row, side, "docid") for side in SIDES}
    return [{"query_id": f"{row.number:04}", "query": row.query, **lists}]


@form("DPR")
def _dpr(row: Drawn) -> list[Row]:
    names = {"positive": "positive_ctxs", "negative": "hard_negative_ctxs"}
    return [{"question": row.query, **{name: _passages(row, side, "passage_id") for side, name in names.items()}}]


@form("FlagEmbedding")
def _flag_embedding(row: Drawn) -> list[Row]:
    return [{"query": row.query, "pos": list(row.positive), "neg": list(row.negative)}]


@form("FlagEmbedding with scores", scored=True)
def _flag_embedding_scored(row: Drawn) -> list[Row]:
    scores = {"pos_scores": list(row.scores["positive"]), "neg_scores": list(row.scores["negative"])}
    return [{**_flag_embedding(row)[0], **scores, "prompt": "Find: "}]


@form("triplet", of_one=True, flat=True, needs_negatives=True)
def _triplet(row: Drawn) -> list[Row]:
    return [{"anchor": row.query, "positive": row.positive[0], "negative": text} for text in row.negative]


@form("n-tuple", of_one=True, flat=True, needs_negatives=True)
def _n_tuple(row: Drawn) -> list[Row]:
    negatives = {f"negative_{i}": row.negative[i] if i < len(row.negative) else None for i in range(9)}
    return [{"anchor": row.query, "positive": row.positive[0], **negatives}]


@form("labelled list")
def _labelled_list(row: Drawn) -> list[Row]:
    labels = [1] * len(row.positive) + [0] * len(row.negative)
    return [{"query": row.query, "docs": [*row.positive, *row.negative], "labels": labels}]


@form("labelled list under the positive's name")
def _labelled_answers(row: Drawn) -> list[Row]:
    labels = [1] * len(row.positive) + [0] * len(row.negative)
    return [{"query": row.query, "answer": [*row.positive, *row.negative], "labels": labels}]


@form("labelled pairs", flat=True)
def _labelled_pairs(row: Drawn) -> list[Row]:
    sides = [(row.positive, 1), (row.negative, 0)]
    return [{"query": row.query, "passage": text, "label": label} for texts, label in sides for text in texts]


@form("triplets with scores", of_one=True, needs_negatives=True)
def _scored_triplets(row: Drawn) -> list[Row]:
    first = row.scores["positive"][0]
    scores = [[first, score] for score in row.scores["negative"]]
    return [{**one, "scores": pair} for one, pair in zip(_triplet(row), scores, strict=True)]


@form("a positive and a list", of_one=True)
def _one_and_list(row: Drawn) -> list[Row]:
    return [{"anchor": row.query, "positive": row.positive[0], "negatives": list(row.negative)}]


@form("MTEB reranking")
def _reranking(row: Drawn) -> list[Row]:
    return [{"query": row.query, "positive": list(row.positive), "negative": list(row.negative)}]


@form("ms-swift messages")
def _messages(row: Drawn) -> list[Row]:
    def said(role: str, text: str) -> list[Row]:
        return [{"role": role, "content": text}]

    sides = {f"{side}_messages": [said("assistant", text) for text in getattr(row, side)] for side in SIDES}
    return [{"messages": said("user", row.query), **sides}]


# --- kinds of files -----------------------------------------------------------------------------------------------


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_json(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def _write_gzip(path: Path, rows: Sequence[Row]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def _write_csv(path: Path, rows: Sequence[Row], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write_tsv(path: Path, rows: Sequence[Row]) -> None:
    _write_csv(path, rows, "\t")


NESTED: Mapping[str, Callable[[Path, Sequence[Row]], None]] = {
    "rows.jsonl": _write_jsonl,
    "rows.json": _write_json,
    "rows.jsonl.gz": _write_gzip,
    "rows.parquet": _write_parquet,
}
FLAT: Mapping[str, Callable[[Path, Sequence[Row]], None]] = {"rows.csv": _write_csv, "rows.tsv": _write_tsv}


# --- evidence -----------------------------------------------------------------------------------------------------


class Dice(Annotator):
    """Draws each snippet and each ranking, always the same for the same question."""

    awaits = False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def snippet(self, request: Any) -> Snippet:
        """Of any status; a grounded one is a part of the text."""
        text = request.passage["text"]
        rng = random.Random(digest([self.seed, request.query, text]))
        status = rng.choice(("grounded", "grounded", "no_answer", "ungrounded", "unparsed", "error"))
        if status != "grounded":
            return Snippet(status=status, detail="drawn")
        start = rng.randrange(len(text))
        end = rng.randint(start + 1, len(text))
        return Snippet(snippet=text[start:end], start=start, end=end, field="text", status=status)

    async def ranking(self, request: Any) -> Ranking:
        """Of any status; some candidates are left out of a partial one."""
        rng = random.Random(digest([self.seed, request.query, list(request.candidates)]))
        status = rng.choice(("ranked", "ranked", "ranked", "partial", "unparsed", "error"))
        order = list(range(len(request.candidates)))
        rng.shuffle(order)
        if status in ("unparsed", "error"):
            return Ranking(status=status, detail="drawn")
        return Ranking(status=status, tiers=tuple((i,) for i in (order[:-1] if status == "partial" else order)))

    def identity(self, stage: str) -> dict[str, Any]:
        """The seed."""
        return {"annotator": "dice", "seed": self.seed}


def _rule(rng: random.Random) -> arhn.Relabel:
    return arhn.Relabel(
        policy=rng.choice(("relabel", "filter", "relabel+filter")),
        reference=rng.choice(("best", "worst")),
        ties=rng.choice(("above", "below")),
        unsupported=rng.choice(("keep", "filter")),
        min_negatives=rng.choice((0, 1, 2)),
        max_relabelled=rng.choice((None, 1, 3)),
        on_shortage=rng.choice(("keep", "drop")),
    )


# --- what is right ------------------------------------------------------------------------------------------------


def judged(expected: Sequence[Drawn], form: Form, before: list[Row], after: list[Row], back: list[Row]) -> Counter[str]:
    """How often each fault was found in a round."""
    found: Counter[str] = Counter(rows=len(before))
    by_query = {row["query"]: row for row in before}
    found["damaged"] += abs(len(before) - len(expected)) + len(before) - len(by_query)
    for row in expected:
        read = by_query.get(row.query)
        positives = row.positive[:1] if form.of_one else row.positive
        if read is None or not _as_written(read, row, positives, form):
            found["damaged"] += 1
    for source, moved, reverted in zip(before, after, back, strict=True):
        found["lost"] += not _all_there(source, moved)
        found["invented"] += _invented(moved)
        found["unreverted"] += reverted != source
        found["moves"] += moved["decision"]["relabelled"] + moved["decision"]["filtered"]
    return found


def _as_written(read: Row, row: Drawn, positives: Sequence[str], form: Form) -> bool:
    texts = {side: [p["text"] for p in read[f"{side}_passages"]] for side in SIDES}
    if texts != {"positive": list(positives), "negative": list(row.negative)}:
        return False
    if not form.scored:
        return True
    scores = {side: [p["score"] for p in read[f"{side}_passages"]] for side in SIDES}
    return scores == {side: list(row.scores[side]) for side in SIDES}


def _all_there(source: Row, moved: Row) -> bool:
    def texts(row: Row, *names: str) -> Counter[str]:
        return Counter(json.dumps(p, sort_keys=True) for name in names for p in row.get(f"{name}_passages") or [])

    return texts(source, *SIDES) == texts(moved, *SIDES, "filtered")


def _invented(moved: Row) -> int:
    """Moves that the evidence beside them does not allow, whatever the rule."""
    faults = 0
    own = [
        rank for rank, o in _with_origins(moved, "positive", "ranks") if o["label"] == "positive" and rank is not None
    ]
    for name in ("positive", "filtered"):
        snippets = _with_origins(moved, name, "snippets")
        ranks = _with_origins(moved, name, "ranks")
        for (snippet, origin), (rank, _) in zip(snippets, ranks, strict=True):
            if origin["label"] == "negative":
                above = name == "filtered" or (rank is not None and own and rank <= max(own))
                faults += snippet["status"] != "grounded" or not above
    return faults


def _with_origins(row: Row, name: str, kind: str) -> list[tuple[Any, Any]]:
    return list(zip(row[f"{name}_{kind}"] or [], row[f"{name}_origins"] or [], strict=True))


# --- the run ------------------------------------------------------------------------------------------------------


def one_round(rng: random.Random, name: str, folder: Path) -> Counter[str]:
    """Rows of a form through everything."""
    chosen = FORMS[name]
    rows = [row for row in drawn_rows(rng, ROUND) if row.negative or not chosen.needs_negatives]
    kinds = {**NESTED, **(FLAT if chosen.flat else {})}
    file = rng.choice(sorted(kinds))
    kinds[file](folder / file, [line for row in rows for line in chosen.write(row)])
    undo = Revert(keep_evidence=False)
    splits, _ = load_input(Input(name=str(folder / file)), undo=undo)
    table = splits["train"].with_format("arrow")[:]
    dice, rule = Dice(rng.randrange(10**6)), _rule(rng)
    evidence = arhn.Ranks(annotator=dice)(arhn.Snippets(annotator=dice)(table))
    moved = rule(evidence)
    return judged(
        rows, chosen, table.to_pylist(), moved.to_pylist(), undo(moved).select(table.column_names).to_pylist()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit with 1 where a fault was found."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--count", type=int, default=100_000, metavar="ROWS", help="default: 100000")
    made.add_argument("--seed", type=int, default=None, metavar="N", help="default: another each time, printed")
    made.add_argument("--form", default="*", metavar="PATTERN", help="only these forms")
    made.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = made.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    rng, names = random.Random(seed), fnmatch.filter(FORMS, options.form)
    if not names:
        made.error(f"no form fits {options.form!r}; the forms are {', '.join(FORMS)}")
    totals: dict[str, Counter[str]] = {name: Counter() for name in names}
    done = 0
    with silent(), tempfile.TemporaryDirectory() as scratch:
        while done < options.count:
            for name in names:
                folder = Path(tempfile.mkdtemp(dir=scratch))
                totals[name] += (found := one_round(rng, name, folder))
                done += found["rows"]
    print(f"seed {seed}: {done:,} rows")
    print(f"{'form':<28}{'rows':>9}{'moves':>9}" + "".join(f"{fault:>12}" for fault in FAULTS))
    for name, found in totals.items():
        figures = "".join(f"{found[fault]:>12,}" for fault in FAULTS)
        print(f"{name:<28}{found['rows']:>9,}{found['moves']:>9,}{figures}")
    if options.json:
        print(json.dumps({"seed": seed, "rows": done, "forms": {n: dict(c) for n, c in totals.items()}}))
    sys.exit(any(found[fault] for found in totals.values() for fault in FAULTS))


if __name__ == "__main__":
    main()
