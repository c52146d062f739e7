"""One table of every rule on every set with a truth: who finds the false negatives, and what it costs.

usage: evaluate_rules.py NAME=ROWS,TRUTH [NAME=ROWS,TRUTH ...] [--model MODEL ...] [--endpoint URL] [--json]

ROWS is what arhn-refine reads, TRUTH what arhn-evaluate reads; several sets stand side by side. Snippets, rankings,
verdicts and grades are the lexical baseline's, with the term statistics of the set, or those of the LLM at --endpoint.
Scores are those of each --model, a bi-encoder or cross-encoder of sentence-transformers; the model "lexical", which is
the default, stands for the coverage that the lexical annotator measures.

Each rule has the parameters that its source recommends, as far as they are known, and the guards of this package, which
--no-guards lifts. A line is a rule and a way in which it moves negatives: relabelled, filtered, or either; a rule that
knows one way has one line. Brackets hold 95 % bootstrap intervals over queries.

Needs: pip install 'arhn_datasets[evaluation]', and for a --model 'arhn_datasets[train]'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import SnippetRequest
from arhn_datasets.checks.measures import WAYS, Interval, Measures
from arhn_datasets.checks.truth import read_truth
from arhn_datasets.inputs.sources import Input, load_input, silent
from arhn_datasets.rows.records import DECISION, DROPPED, GUARDED, NEGATIVE, POSITIVE
from arhn_datasets.rules.arhn import POLICIES

LEXICAL = "lexical"
SNIPPETS, PASSAGES, VERDICTS, GRADES, CASCADE = "snippets", "passages", "verdicts", "grades", "cascade"
SHARPNESS = 100  # of SimANS: scores here differ by hundredths, those of the paper by whole units
DRAWN = 7
FIGURES = ("precision", "recall", "f1")


class Set(NamedTuple):
    """Rows and their truth."""

    name: str
    rows: str
    truth: str


class Rule(NamedTuple):
    """A rule, and the evidence that it looks at."""

    name: str
    evidence: str
    rule: Any


class Outcome(NamedTuple):
    """What a rule has found on a set, and the share of the rows that its guards left as they came, or dropped."""

    figures: Measures
    guarded: float


Outcomes = Mapping[str, Mapping[str, Outcome]]  # {set: {rule: outcome}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parser().parse_args(arguments)
    sets = [set_of(given) for given in options.sets]
    if len({one.name for one in sets}) < len(sets):
        fail("two sets have the same name; give each a name of its own.")
    models = list(dict.fromkeys(options.model or [LEXICAL]))
    try:
        rules = rules_of(names_of(models), cascade=options.endpoint is not None)
        if options.no_guards:
            rules = [one._replace(rule=one.rule.with_options(min_negatives=0)) for one in rules]
        found = {one.name: evaluated(one, rules, models, options) for one in sets}
    except (arhn.ArhnError, OSError, ValueError) as error:
        fail(str(error))
    if options.json:
        made = {"annotator": "LLM" if options.endpoint else LEXICAL, "samples": options.samples, "seed": options.seed}
        figures = {
            rule.name: {
                "evidence": rule.evidence,
                "parameters": rule.rule.identity(),
                "sets": {
                    name: {**of[rule.name].figures.to_json(), "rows_guarded": of[rule.name].guarded}
                    for name, of in found.items()
                },
            }
            for rule in rules
        }
        print(json.dumps({**made, "rules": figures}, ensure_ascii=False, allow_nan=False))
    else:
        print(table_of(found, rules))


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("sets", nargs="+", metavar="NAME=ROWS,TRUTH")
    made.add_argument("--model", action="append", metavar="MODEL", help="whose scores; may be repeated")
    made.add_argument("--endpoint", metavar="URL", help="of the LLM that gives snippets, rankings, verdicts and grades")
    made.add_argument("--no-guards", action="store_true", help="let rows lose all their negatives (min_negatives=0)")
    made.add_argument("--rows", type=int, metavar="N", help="only the first N rows of each set")
    made.add_argument("--samples", type=int, default=1000, metavar="N", help="bootstrap samples; default: 1000")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples; default: 0")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return made


def set_of(given: str) -> Set:
    """``NAME=ROWS,TRUTH``."""
    name, _, files = given.partition("=")
    rows, _, truth = files.rpartition(",")
    if not (name and rows and truth):
        fail(f"{given!r} is no set; NAME=ROWS,TRUTH was expected, such as dev=dev.jsonl,dev.truth.jsonl.")
    return Set(name, rows, truth)


def names_of(models: Sequence[str]) -> dict[str, str]:
    """Each model in the table: the last part of its id or folder, all of it where two would have one name."""
    last = [Path(model).name for model in models]
    named = {model: model if last.count(name) > 1 else name for model, name in zip(models, last, strict=True)}
    return {model: "lexical coverage" if model == LEXICAL else name for model, name in named.items()}


def rules_of(models: Mapping[str, str], *, cascade: bool) -> list[Rule]:
    """Every rule, those over scores once for each model."""
    rules = [Rule("move everything", LEXICAL, arhn.PositiveAware(method="TopK-Abs", threshold=-1e9, min_negatives=0))]
    rules += [Rule(f"ARHN {policy}", SNIPPETS, arhn.Relabel(policy=policy)) for policy in POLICIES]
    rules.append(Rule("ARHN relabel+filter, whole passages ranked", PASSAGES, arhn.Relabel()))
    if cascade:
        rules.append(Rule("ARHN relabel+filter, cascade", CASCADE, arhn.Relabel()))
    rlhn = arhn.Relabel(evidence="verdicts", policy="relabel", max_matches=8)
    rules.append(Rule("RLHN relabel", VERDICTS, rlhn))
    rules.append(Rule("RLHN verdicts, relabel+filter", VERDICTS, rlhn.with_options(policy="relabel+filter")))
    rules.append(Rule("grades, relabel+filter", GRADES, arhn.Relabel(evidence="grades")))
    over_scores = {
        "TopK-Abs 0.7": arhn.PositiveAware(method="TopK-Abs", threshold=0.7),
        "TopK-MarginPos 0.05": arhn.PositiveAware(method="TopK-MarginPos", absolute_margin=0.05),
        "TopK-PercPos 0.95": arhn.PositiveAware(method="TopK-PercPos", percentage_margin=0.95),
        "AdaptiveMargin 0.95": arhn.AdaptiveMargin(margin=0.95),
        "AdaptiveMargin 0.95, slope 0.5": arhn.AdaptiveMargin(margin=0.95, slope=0.5),
        f"SimANS a={SHARPNESS}, {DRAWN} drawn": arhn.AmbiguousSampling(a=SHARPNESS, num_hard_negatives=DRAWN),
    }
    return rules + [
        Rule(f"{name}, {shown}", model, rule) for model, shown in models.items() for name, rule in over_scores.items()
    ]


def evaluated(
    one: Set, rules: Sequence[Rule], models: Sequence[str], options: argparse.Namespace
) -> dict[str, Outcome]:
    """What each rule finds on a set."""
    splits, _ = load_input(Input(name=one.rows, limit=options.rows), undo=arhn.Revert(keep_evidence=False))
    if len(splits) > 1:
        fail(f"{one.rows} has the splits {', '.join(splits)}; one was expected.")
    (rows,) = splits.values()
    print(f"{one.name}: {len(rows):,} queries", file=sys.stderr)
    lexical = arhn.Lexical.fitted(rows)
    strong = arhn.Endpoint(options.endpoint) if options.endpoint else lexical
    evidence = {SNIPPETS: mapped(mapped(rows, arhn.Snippets(annotator=strong)), arhn.Ranks(annotator=strong))}
    evidence[PASSAGES] = mapped(evidence[SNIPPETS], arhn.Ranks(annotator=strong, rank_by="passage"))
    evidence[VERDICTS] = mapped(rows, arhn.Verdicts(annotator=strong))
    evidence[GRADES] = mapped(rows, arhn.Grades(annotator=strong))
    if options.endpoint:
        cascade = arhn.Cascade(lexical, strong)
        evidence[CASCADE] = mapped(mapped(rows, arhn.Snippets(annotator=cascade)), arhn.Ranks(annotator=cascade))
    for model in dict.fromkeys((LEXICAL, *models)):
        evidence[model] = covered(rows, lexical) if model == LEXICAL else mapped(rows, arhn.Scores(model))
    truth = read_truth(one.truth)  # once, and not for every rule
    return {rule.name: outcome_of(mapped(evidence[rule.evidence], rule.rule), truth, options) for rule in rules}


def outcome_of(rows: Any, truth: Any, options: argparse.Namespace) -> Outcome:
    """The figures of relabelled rows."""
    held = sum(decision["status"] in (GUARDED, DROPPED) for decision in rows[DECISION][:])
    figures = arhn.evaluate(rows, truth, samples=options.samples, seed=options.seed).total
    return Outcome(figures, held / len(rows))


def mapped(rows: Any, transform: Any) -> Any:
    """The rows after a transform; one that waits for a server is given row by row, so that it can fill it."""
    batches = {} if transform.awaits else {"batched": True, "batch_size": 256}
    with silent():
        return rows.map(transform, load_from_cache_file=False, keep_in_memory=True, **batches)


def covered(rows: Any, lexical: arhn.Lexical) -> Any:
    """The rows with the coverage of each passage as its score."""
    task = arhn.Snippets(annotator=lexical).task
    background = ()  # the statistics are those of the whole set

    def coverage(row: Mapping[str, Any], side: str) -> list[float]:
        return [
            lexical.coverage(SnippetRequest(query=row["query"], passage=passage, task=task(row), background=background))
            for passage in row[side]
        ]

    columns = {"positive_scores": POSITIVE.passages, "negative_scores": NEGATIVE.passages}
    values = {column: [coverage(row, side) for row in rows] for column, side in columns.items()}
    for column, scores in values.items():
        rows = rows.add_column(column, scores)
    return mapped(rows, arhn.Scores(columns=tuple(columns)))


# -- the table ---------------------------------------------------------------------------------------------------------


def table_of(found: Outcomes, rules: Sequence[Rule]) -> str:
    """The figures as a table in Markdown that can be read as it is."""
    header = ["rule", "moved"]
    for name in found:
        header += [f"{name}: precision", "recall", "F1", "true negatives lost", "rows guarded"]
    lines = [
        [rule.name if at == 0 else "", way, *cells_of(found, rule.name, way, whole=at == len(ways) - 1)]
        for rule in rules
        for ways in [ways_of(found, rule.name)]
        for at, way in enumerate(ways)
    ]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    ruled = [header, ["-" * width for width in widths], *lines]
    aligned = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in ruled)
    notes = [size_of(name, of) for name, of in found.items()]
    notes += [
        "In brackets: 95 % intervals over queries. Lost: the true negatives that leave the negatives, in whatever way. "
        "Guarded: the rows in which a guard undid everything, since too few negatives would be left, or dropped.",
        "SimANS samples: it leaves out what it does not draw, the far too easy ones too, and calls none of it false.",
    ]
    return "\n".join(f"| {line} |" for line in aligned) + "\n\n" + "\n".join(notes)


def ways_of(found: Outcomes, rule: str) -> list[str]:
    """The ways in which a rule moves anything on any set; all three where there are two."""
    used = [way for way in WAYS[:2] if any(of[rule].figures.found[way].moved for of in found.values())]
    return list(WAYS) if len(used) > 1 else used or [WAYS[-1]]


def cells_of(found: Outcomes, rule: str, way: str, *, whole: bool) -> list[str]:
    """The cells of a line; on the last one of a rule those that are about the rule as a whole."""
    cells = []
    for of in found.values():
        figures, guarded = of[rule]
        finding = figures.found[way]
        cells += [shown(getattr(finding, name), finding.ci[name]) for name in FIGURES]
        lost = shown(figures.true_negatives_lost, figures.ci["true_negatives_lost"])
        cells += [lost, f"{guarded:.0%}"] if whole else ["", ""]
    return cells


def shown(value: float | None, interval: Interval | None) -> str:
    """A figure with its interval."""
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def size_of(name: str, of: Mapping[str, Outcome]) -> str:
    """How much is decided on a set."""
    counts = next(iter(of.values())).figures.counts
    return (
        f"{name}: {counts['judged']:,} negatives of {counts['queries']:,} queries are decided, "
        f"{counts['false_negatives']:,} of them false."
    )


def fail(message: str) -> NoReturn:
    """Say what is wrong and end."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
