"""What a cascade saves and what it costs: requests and labels against the strong annotator alone.

usage: measure_cascade.py INPUT [--endpoint URL] [--truth FILE] [--rows N] [--floors 0.6,0.7,0.8] [--verdicts]

INPUT is what arhn-refine reads. The screen is the lexical baseline with the term statistics of INPUT, once for each
floor (see ``arhn.Cascade``). The strong annotator is the LLM at --endpoint, whose replies are kept in the store. To try
the script without one, it is an emulated server; with a truth file (one that arhn-evaluate reads), an annotator that
finds an answer in exactly the relevant passages. The first stand-in is lexical itself and so agrees with the screen
more than an LLM would; the second shows what the screen takes from a perfect annotator.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Ranking, RankingRequest, Snippet, SnippetRequest, Verdict, VerdictRequest
from arhn_datasets.folder.report import format_table
from arhn_datasets.inputs.sources import Input, load_input, silent
from arhn_datasets.rows.records import DECISION, GROUNDED, JUDGED, NO_ANSWER, RANKED, text_of

FLOORS = "0.5,0.6,0.7,0.8,0.9,1"
THRESHOLDS = "0.3,0.4,0.5,0.6,0.7,0.8"
STRICT = 0.6  # of the emulated model: it has to flag a few passages, as an LLM does, and not whatever is on the subject
LABELS = {"positive": "relabelled", "negative": "negative", "filtered": "filtered"}

Labels = dict[tuple[int, int], Any]


class Counted(arhn.Annotator):
    """An annotator, and how often it was asked."""

    def __init__(self, annotator: arhn.Annotator) -> None:
        self.annotator, self.requests = annotator, 0
        self.awaits = annotator.awaits

    async def turn(self, requests: int) -> None:
        """As it does."""
        await self.annotator.turn(requests)

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """Its snippet."""
        self.requests += 1
        return await self.annotator.snippet(request)

    async def ranking(self, request: RankingRequest) -> Ranking:
        """Its ranking."""
        self.requests += 1
        return await self.annotator.ranking(request)

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """Its verdicts."""
        self.requests += 1
        return await self.annotator.verdicts(request)

    def identity(self, stage: str) -> dict[str, Any]:
        """Its identity."""
        return self.annotator.identity(stage)


class Truth(arhn.Annotator):
    """Finds an answer in exactly the passages that a truth file calls relevant, and all of them equally good."""

    awaits = False

    def __init__(self, rows: Iterable[dict[str, Any]], path: str) -> None:
        with open(path, encoding="utf-8") as lines:
            known = {row["query_id"]: row["negatives"] for row in map(json.loads, lines)}
        self.relevant: set[tuple[str, str]] = set()
        for row in rows:
            docids = {negative["docid"] for negative in known.get(row["query_id"], ()) if negative["relevant"]}
            negatives = [passage for passage in row["negative_passages"] if passage["docid"] in docids]
            passages = (*row["positive_passages"], *negatives)
            self.relevant |= {(row["query"], words(text_of(passage))) for passage in passages}

    async def snippet(self, request: SnippetRequest) -> Snippet:
        """The whole text of a relevant passage."""
        text = request.passage["text"]
        if (request.query, words(text_of(request.passage))) not in self.relevant:
            return Snippet(status=NO_ANSWER)
        return Snippet(status=GROUNDED, snippet=text, start=0, end=len(text), field="text")

    async def ranking(self, request: RankingRequest) -> Ranking:
        """One tier."""
        return Ranking(status=RANKED, tiers=(tuple(range(len(request.candidates))),))

    async def verdicts(self, request: VerdictRequest) -> tuple[Verdict, ...]:
        """Better or no match."""
        found = [(request.query, words(text)) in self.relevant for text in request.candidates]
        return tuple(Verdict(status=JUDGED, verdict="better" if one else "no_match") for one in found)

    def identity(self, stage: str) -> dict[str, Any]:
        """Its name."""
        return {"annotator": "truth"}


def words(text: str) -> str:
    """A text as candidates are compared."""
    return " ".join(text.split())


def labels(rows: Any, annotator: arhn.Annotator, verdicts: bool) -> Labels:
    """What becomes of each negative, by row and position."""
    options = {"load_from_cache_file": False, **({} if annotator.awaits else {"batched": True, "batch_size": 64})}
    if verdicts:
        judged = rows.map(arhn.Verdicts(annotator=annotator), **options)
        return {
            (number, position): verdict["verdict"]
            for number, row in enumerate(judged)
            for position, verdict in enumerate(row["negative_verdicts"])
        }
    for stage in (arhn.Snippets(annotator=annotator), arhn.Ranks(annotator=annotator)):
        rows = rows.map(stage, **options)
    # Without guards, so that each label is compared by itself.
    rows = rows.map(arhn.Relabel(min_negatives=0), batched=True, load_from_cache_file=False)
    assert {decision["status"] for decision in rows[DECISION]} <= {"changed", "unchanged"}
    return {
        (number, origin["position"]): label
        for number, row in enumerate(rows)
        for side, label in LABELS.items()
        for origin in row[f"{side}_origins"]
        if origin["label"] == "negative"
    }


def table(rows: Any, strong: Counted, screen: arhn.Lexical, floors: Sequence[float], verdicts: bool) -> str:
    """A line for the strong annotator alone and one for each floor."""
    still = (None, "no_match" if verdicts else "negative")
    alone = labels(rows, strong, verdicts)
    whole = strong.requests
    flagged = {negative for negative, label in alone.items() if label not in still}
    lines = [("strong alone", str(whole), "", "", str(len(flagged)), "", "")]
    for floor in floors:
        cheap = replace(screen, threshold=floor) if verdicts else screen
        strong.requests = 0
        found = labels(rows, arhn.Cascade(cheap, strong, floor=floor), verdicts)
        changed = Counter(found[negative] == label for negative, label in alone.items())[False]
        now = {negative for negative, label in found.items() if label not in still}
        lines.append(
            (
                f"floor {floor:g}",
                str(strong.requests),
                f"{1 - strong.requests / max(1, whole):.1%}",
                f"{changed / max(1, len(alone)):.2%}",
                str(len(now)),
                str(len(flagged - now)),
                str(len(now - flagged)),
            )
        )
    names = ("annotator", "requests", "saved", "labels changed", "flagged", "lost", "gained")
    return (
        f"{format_table(names, lines)}\n\n{len(rows)} rows, {len(alone)} negatives; requests are those to the strong "
        "annotator, flagged are negatives that leave"
    )


def main() -> None:
    """Print the table."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("input")
    made.add_argument("--endpoint")
    made.add_argument("--truth")
    made.add_argument("--rows", type=int)
    made.add_argument("--floors", help=f"by default {FLOORS}, for verdicts {THRESHOLDS}")
    made.add_argument("--verdicts", action="store_true", help="of arhn.Verdicts: floors are thresholds of the screen")
    options = made.parse_args()
    with contextlib.ExitStack() as opened:
        opened.enter_context(silent())
        try:
            default = THRESHOLDS if options.verdicts else FLOORS
            floors = [float(floor) for floor in (options.floors or default).split(",")]
            splits, _ = load_input(Input(name=options.input, limit=options.rows), undo=arhn.Revert(keep_evidence=False))
            rows = next(iter(splits.values()))
            if options.truth:
                strong = Counted(Truth(rows, options.truth))
            elif options.endpoint:
                strong = Counted(arhn.Endpoint(options.endpoint))
            else:
                from arhn_datasets.testing import Emulator

                server = opened.enter_context(Emulator(reply=arhn.Lexical.fitted(rows, threshold=STRICT)))
                cache = opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                strong = Counted(arhn.Endpoint(server.url, cache=cache))
            print(table(rows, strong, arhn.Lexical.fitted(rows), floors, options.verdicts))
        except (arhn.ArhnError, OSError, ValueError) as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
