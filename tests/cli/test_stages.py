"""Which evidence, whose it is, and which rule: what the arguments of the command choose, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.cli.stages import asked_for
from arhn_datasets.evidence.stage import known_stages
from arhn_datasets.rows.options import Option
from arhn_datasets.rows.records import EVIDENCE_KINDS
from arhn_datasets.rules.rule import called, known_rules
from tests.conftest import SAMPLE

SCORED = ["--score-field", "score"]
AWARE = ["--evidence", "scores", "--rule", "positive-aware", *SCORED]
LEXICAL = ["--annotator", "lexical"]
REFUSED = [
    (["--evidence", "verdicts", "--evidence", "verdicts"], "--evidence verdicts was given more than once"),
    (["--evidence", "scores", *SCORED], "read by several rules: .*positive-aware.*--rule"),
    (["--evidence", "scores", "--rule", "positive-aware"], "--score-model ID_OR_FOLDER, --score-field NAME"),
    ([*AWARE, "--score-model", "m"], "one of .* was expected"),
    ([*AWARE, "--score-kind", "bi-encoder"], "--score-kind does not go with --score-field"),
    (
        ["--rule", "positive-aware"],
        "reads scores, and snippets, the default, would be .* Give --evidence scores",
    ),
    (["--rule", "relabel", "--evidence", "scores", *SCORED], "reads snippets, verdicts or grades, and scores would"),
    (
        ["--evidence", "verdicts", "--evidence", "grades"],
        "No rule reads verdicts and grades together: .*--rule",
    ),
    ([*AWARE, *LEXICAL], "--annotator goes with --evidence"),
    ([*AWARE, "--task", "claim"], "--task goes with --evidence"),
    (
        [*AWARE, "--policy", "filter"],
        "--policy goes with --rule rel",
    ),
    ([*AWARE, "--seed", "3"], "--seed goes with .*sampling"),
    ([*AWARE, "--on-excess", "drop"], "--on-excess goes with"),
    ([*AWARE, "--reference", "best"], "one of min, max, mean"),
    ([*LEXICAL, "--evidence", "verdicts", "--unsupported", "keep"], "--unsupported goes with .*--evidence snippets"),
    ([*LEXICAL, "--evidence", "verdicts", "--threshold", "3"], "--threshold goes with .*--evidence grades"),
    ([*LEXICAL, "--evidence", "verdicts", "--stride", "3"], "--stride goes with --evidence snippets"),
    (
        [*LEXICAL, "--evidence", "grades", "--window", "3"],
        "--window goes with --evidence snippets or --ev",
    ),
    ([*LEXICAL, "--evidence", "grades", "--threshold", "0.5"], "a grade from 1 to 3"),
    ([*LEXICAL, "--evidence", "grades", "--reference", "min"], "one of best, worst"),
    ([*LEXICAL, "--margin", "0.5"], "--margin goes with --rule adaptive-margin"),
    ([*LEXICAL, "--score-model", "m"], "--score-model goes with --evidence scores"),
    ([*LEXICAL, "--seed", "1.5"], "seed is 1.5; a whole number"),
    (["--evidence", "verdicts"], "No annotator was named"),
]


def made(*arguments):
    """The stages that arguments name."""
    return cli.configured_stages(cli.refine_parser().parse_args(["in", *arguments]))


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_does_not_fit_is_refused_before_anything_is_read(arguments, message, tmp_path, capsys):
    """Exit code 2, one line that names the option to give or to leave out, and no folder."""
    assert cli.refine_command([str(SAMPLE), *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "kinds", "rule", "evidence"),
    [
        ([], ["snippets", "ranks"], "Relabel", "snippets"),
        (["--evidence", "snippets"], ["snippets", "ranks"], "Relabel", "snippets"),
        (["--evidence", "verdicts"], ["verdicts"], "Relabel", "verdicts"),
        (["--evidence", "grades", "--rule", "relabel"], ["grades"], "Relabel", "grades"),
        (["--evidence", "grades", "--evidence", "verdicts", "--rule", "relabel"], None, "Relabel", "grades"),
        (["--evidence", "verdicts", "--evidence", "grades", "--rule", "relabel"], None, "Relabel", "verdicts"),
        (["--evidence", "scores", "--evidence", "verdicts", "--rule", "relabel", *SCORED], None, "Relabel", "verdicts"),
    ],
)
def test_the_rule_follows_from_the_evidence(arguments, kinds, rule, evidence):
    """The one that reads it; of several kinds that a named rule could read, the first that is named."""
    stages = made(*LEXICAL, *arguments)
    assert kinds is None or [one.NAME for one in stages.evidence] == kinds
    assert (type(stages.rule).__name__, stages.rule.evidence) == (rule, evidence)


def test_each_rule_is_named_and_gets_its_options():
    """The class in small letters; its options with the types that they have."""
    rule = made("--evidence", "scores", *SCORED, "--rule", "positive-aware", "--threshold", "2", "--top-k", "4").rule
    assert rule.identity() == arhn.PositiveAware(threshold=2, top_k=4).identity()
    rule = made("--evidence", "scores", *SCORED, "--rule", "ambiguous-sampling", "--a", "1e2", "--seed", "7").rule
    assert rule.identity() == arhn.AmbiguousSampling(a=100.0, seed=7).identity()
    stages = made(*LEXICAL, "--evidence", "verdicts", "--window", "4", "--seed", "5", "--max-matches", "8")
    assert (stages.evidence[0].window, stages.evidence[0].seed, stages.rule.max_matches) == (4, 5, 8)
    prompts = ["--score-query-prompt", "query: ", "--score-passage-prompt", "", "--score-batch-size", "8"]
    (scores,) = made("--evidence", "scores", "--rule", "adaptive-margin", "--score-model", "m", *prompts).evidence
    assert (scores.model, scores.query_prompt, scores.passage_prompt, scores.batch_size) == ("m", "query: ", "", 8)
    columns = ["--score-columns", "good,bad"]
    assert made("--evidence", "scores", "--rule", "adaptive-margin", *columns).evidence[0].columns == ("good", "bad")


def test_kinds_annotators_and_rules_are_those_of_their_folders():
    """The command knows each kind with a stage, and each rule; every option of them is one of their fields."""
    assert list(known_stages()) == list(EVIDENCE_KINDS)
    assert set(asked_for()) == set(EVIDENCE_KINDS) - {"ranks"}
    assert [called(cls) for cls in known_rules().values()] == [
        *("adaptive-margin", "ambiguous-sampling", "relabel", "positive-aware")
    ]
    for cls in chain(known_stages().values(), known_rules().values()):
        names = {{"score_raw": "raw_scores"}.get(name, name.removeprefix("score_")) for name in cls.OPTIONS}
        assert names <= set(cls.__dataclass_fields__), cls
        assert all(isinstance(option, Option) and option.help for option in cls.OPTIONS.values())


def test_an_annotator_that_gives_no_such_evidence_is_refused_before_the_run(tmp_path, capsys):
    """An annotator without verdicts: exit code 2, and nothing was asked."""
    asked = []

    class Terse(Annotator):
        """Gives snippets and rankings alone."""

        NAME: ClassVar[str] = "terse"

        async def snippet(self, request):
            """Noted."""
            asked.append(request)

        async def ranking(self, request):
            """Noted."""
            asked.append(request)

        def identity(self, stage):
            """A name."""
            return {"annotator": "terse"}

    try:
        for kind, method in (("verdicts", "verdicts"), ("grades", "grade")):
            command = [str(SAMPLE), "--annotator", "terse", "--evidence", kind, "--output", str(tmp_path / "out")]
            assert cli.refine_command(command) == 2
            assert f"Terse has no method {method}(), so that it gives no {kind}" in capsys.readouterr().err
        with pytest.raises(arhn.ArhnError, match="Terse has no method grade"):
            arhn.Cascade(arhn.Lexical(), Terse()).check_gives("grade", "grades")
    finally:
        Terse.NAME = ""
    assert asked == []
    assert not (tmp_path / "out").exists()


def test_what_the_rule_does_not_read_is_told_before_it_is_paid(tmp_path, capsys):
    """A warning that names the kind; the evidence is in the rows, and the labels are those without it."""
    out = tmp_path / "out"
    command = [str(SAMPLE), *LEXICAL, "--limit", "5", "--rule", "relabel", "--output"]
    assert cli.refine_command([*command, str(out), "--evidence", "verdicts", "--evidence", "grades"]) == 0
    warned = capsys.readouterr().err
    assert "Warning: the rule (verdicts:relabel+filter) does not read grades" in warned
    assert cli.refine_command([*command, str(tmp_path / "plain"), "--evidence", "verdicts"]) == 0
    assert "does not read" not in capsys.readouterr().err
    counts = [json.loads((path / "run.json").read_text())["counts"]["all"] for path in (out, tmp_path / "plain")]
    assert counts[0].pop("grades")
    assert counts[0] == counts[1]


KINDS = st.lists(st.sampled_from(["snippets", "verdicts", "grades", "scores"]), max_size=4)
RULES = st.sampled_from([None, "relabel", "positive-aware", "adaptive-margin", "ambiguous-sampling"])


@settings(max_examples=60)
@given(kinds=KINDS, rule=RULES)
def test_any_evidence_and_any_rule_fit_or_are_refused(kinds, rule):
    """What is made asks for what was named and for all that the rule reads; all else is an error of ours."""
    arguments = [part for kind in kinds for part in ("--evidence", kind)] + (["--rule", rule] if rule else [])
    arguments += LEXICAL if not kinds or set(kinds) - {"scores"} else []
    arguments += SCORED if "scores" in kinds else []
    try:
        stages = made(*arguments)
    except arhn.ArhnError:
        return
    given_ = {one.NAME for one in stages.evidence}
    assert given_ - {"ranks"} == set(kinds or ["snippets"])
    assert set(stages.rule.evidence_kinds) <= given_
    assert rule in (None, called(type(stages.rule)))
    assert ("ranks" in given_) == ("snippets" in given_)


IMPORTS = """
from dataclasses import dataclass
import numpy as np
from arhn_datasets.annotators.interface import GradeRequest
from arhn_datasets.evidence.stage import AnnotatedTransform
from arhn_datasets.rows.options import Option
from arhn_datasets.rules.rule import ABOVE, NOTHING, Decision, states_of
"""
STARS = """
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stars(AnnotatedTransform):
    NAME, ASKS = "stars", "grade"

    async def annotate(self, row):
        asked = self.configured
        found = await self.each_passage(row, GradeRequest, asked.screened_grades, asked.grade, lambda reply, _: reply)
        return {name: [{**one, "stars": one.pop("grade")} for one in values] for name, values in found.items()}
"""
FEW_STARS = """
@dataclass(frozen=True, kw_only=True, eq=False)
class FewStars(Decision):
    OPTIONS = {"most": Option(help="most stars of a negative", metavar="NUMBER"), **Decision.OPTIONS}
    label, evidence_kinds = "FewStars", ("stars",)
    most: int = 0

    def judge(self, positives, negatives, names):
        return states_of(positives.counts > 0), np.where(negatives.of("stars") > self.most, ABOVE, NOTHING)
"""
KIND = """    "stars": Kind(
        type=pa.struct({"stars": _COUNT, "status": _TEXT, "detail": _TEXT}),
        shown_as={"stars": "stars", "stars_status": "status", "stars_detail": "detail"},
        stage="arhn.Stars()", reads="stars", statuses=JUDGEMENT_STATUSES, values=(0, 1, 2, 3),
    ),
"""


def test_a_kind_of_evidence_is_an_entry_and_a_file_and_a_rule_is_a_file(tmp_path):
    """In a copy of the package that has one more of each: asked for, read, counted, verified, with its option."""
    package, copy = Path(arhn.__file__).parent, tmp_path / "arhn_datasets"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if (package.parent / "dataset_cards").is_dir():
        shutil.copytree(package.parent / "dataset_cards", tmp_path / "dataset_cards")
    records = (copy / "rows" / "records.py").read_text(encoding="utf-8")
    before, place, after = records.partition('}\n"""What stands on each passage')
    (copy / "rows" / "records.py").write_text(f"{before}{KIND}{place}{after}", encoding="utf-8")
    (copy / "evidence" / "stars.py").write_text(IMPORTS + STARS, encoding="utf-8")
    (copy / "rules" / "few_stars.py").write_text(IMPORTS + FEW_STARS, encoding="utf-8")
    code = (
        "import sys; from arhn_datasets import cli; command = ['--annotator', 'lexical', '--output', 'out']; "
        "command += [sys.argv[1], '--evidence', 'stars', '--most', '1']; "
        "sys.exit(cli.refine_command(command) or cli.verify_command(['out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "\nstars     judged 400 (100.0%)" in done.stdout
    assert "out is what its run has written" in done.stdout
    assert "1. **Stars.**" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["parameters"]["relabel"]["most"] == 1
