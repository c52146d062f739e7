"""The cascade: what the screen rules out, whom the rest is asked, and what that changes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import pickle
import re
import sys

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Ranking, Snippet, SnippetRequest
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.records import GROUNDED, NO_ANSWER, SNIPPET_STATUSES
from arhn_datasets.runs.estimate import estimate
from arhn_datasets.runs.refine import Input, Stages, refine
from arhn_datasets.testing import Emulator
from tests.conftest import SAMPLE, SCRIPTS

QUERY = "At what temperature does tin melt?"
TEXTS = ["Copper is red.", "Tin is soft.", "Tin can melt.", "Tin melts at a temperature of 232 °C.", QUERY]


class Known(arhn.Annotator):
    """Has a status for each text, finds the whole text where it is grounded, and ranks candidates as they come."""

    awaits = False

    def __init__(self, statuses=None, name="known"):
        self.statuses = statuses or {}
        self.name = name
        self.asked = []

    async def snippet(self, request):
        text = request.passage["text"]
        self.asked.append(text)
        status = self.statuses.get(text, GROUNDED)
        if status != GROUNDED:
            return Snippet(status=status, detail="why")
        return Snippet(status=GROUNDED, snippet=text, start=0, end=len(text), field="text")

    async def ranking(self, request):
        self.asked.append(request.candidates)
        order = sorted(range(len(request.candidates)), key=lambda i: request.candidates[i])
        return Ranking(status="ranked", tiers=tuple((i,) for i in order))

    def identity(self, stage):
        return {"annotator": self.name, "stage": stage}

    def statistics(self):
        return {"requests": len(self.asked), "waiting_for_servers": self.name == "waiting"}


class Waiting(Known):
    """The same, later."""

    awaits = True

    async def snippet(self, request):
        await asyncio.sleep(0)
        return await super().snippet(request)


def row_of(positives, negatives, query=QUERY):
    """A row with these texts."""
    sides = {"positive_passages": positives, "negative_passages": negatives}
    passages = {
        side: [{"docid": f"{side[0]}{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        for side, texts in sides.items()
    }
    return {"query_id": "q", "query": query, "subset": "s", **passages}


def statuses(row, side="negative"):
    """The status of each snippet."""
    return [snippet["status"] for snippet in row[f"{side}_snippets"]]


@pytest.mark.parametrize("kind", [Known, Waiting])
def test_only_what_the_screen_does_not_rule_out_is_asked(kind):
    """Flagged negatives and all positives of such a row; what is ruled out says so."""
    screen, strong = kind({"b": NO_ANSWER, "p": NO_ANSWER}), kind({"c": NO_ANSWER})
    row = arhn.Snippets(annotator=arhn.Cascade(screen, strong))(row_of(["p"], ["a", "b", "c"]))
    assert (statuses(row, "positive"), statuses(row)) == ([GROUNDED], [GROUNDED, NO_ANSWER, NO_ANSWER])
    assert sorted(strong.asked) == ["a", "c", "p"]
    assert sorted(screen.asked) == ["a", "b", "c"]
    assert [snippet["detail"] for snippet in row["negative_snippets"]] == [None, "by the screen alone. why", "why"]


def test_a_row_in_which_the_screen_finds_nothing_is_not_asked():
    """Its positives have the screen's snippets, and nothing of it is ranked."""
    screen, strong = Known(dict.fromkeys("ab", NO_ANSWER)), Known()
    cascade = arhn.Cascade(screen, strong)
    row = arhn.Ranks(annotator=cascade)(arhn.Snippets(annotator=cascade)(row_of(["p"], ["a", "b"])))
    assert (statuses(row, "positive"), statuses(row)) == ([GROUNDED], [NO_ANSWER] * 2)
    assert row["positive_snippets"][0]["detail"] == "by the screen alone."
    assert (row["ranking"]["status"], strong.asked) == ("skipped", [])
    assert cascade.statistics() == {"requests": 3, "waiting_for_servers": False, "screened": 3}
    assert arhn.Relabel()(row)["decision"]["status"] == "unchanged"


@pytest.mark.parametrize("status", [s for s in SNIPPET_STATUSES if s not in (GROUNDED, NO_ANSWER)])
def test_a_screen_that_fails_rules_nothing_out(status):
    """Only a plain NO_ANSWER does."""
    strong = Known()
    row = arhn.Snippets(annotator=arhn.Cascade(Known({"a": status}), strong))(row_of(["p"], ["a"]))
    assert (statuses(row), sorted(strong.asked)) == ([GROUNDED], ["a", "p"])


@settings(deadline=None)
@given(st.lists(st.sampled_from(TEXTS), max_size=6), st.lists(st.sampled_from(TEXTS), max_size=2), st.floats(0, 1.2))
def test_a_lexical_screen_compares_with_the_best_positive(negatives, positives, floor):
    """A negative is asked about when it covers the floor's share of what the best positive covers."""
    lexical, strong = arhn.Lexical.fitted([row_of(TEXTS, [])]), Known()
    cascade = arhn.Cascade(lexical, strong, floor=floor)
    row = arhn.Snippets(annotator=cascade)(row_of(positives, negatives))
    background = tuple(sorted(positives + negatives))

    def coverage(text):
        return lexical.coverage(
            SnippetRequest(query=QUERY, passage={"text": text}, task="question", background=background)
        )

    best = max(map(coverage, positives), default=0.0)
    for text, snippet in zip(negatives, row["negative_snippets"], strict=True):
        assert (snippet["detail"] is None) == (coverage(text) >= floor * best)
    asked = sum(snippet["detail"] is None for snippet in row["negative_snippets"])
    assert len(strong.asked) == (asked + len(positives) if asked or not negatives else 0)


def test_without_a_floor_the_screens_own_snippets_decide():
    """Its threshold, not the best positive."""
    strong = Known()
    cascade = arhn.Cascade(arhn.Lexical.fitted([row_of(TEXTS, [])], threshold=0.95), strong, floor=None)
    arhn.Snippets(annotator=cascade)(row_of([QUERY], TEXTS))
    assert strong.asked == [QUERY, QUERY]


def test_rankings_are_the_strong_annotators():
    """The screen is not asked to rank."""
    screen, strong = Known(), Known()
    cascade = arhn.Cascade(screen, strong)
    row = arhn.Snippets(annotator=cascade)(row_of(["p"], ["a"]))
    screen.asked.clear()
    strong.asked.clear()
    assert arhn.Ranks(annotator=cascade)(row)["negative_ranks"] == [1]
    assert (screen.asked, len(strong.asked)) == ([], 1)


def test_identity_statistics_and_description():
    """Of both; the floor and either of the two make it another one."""
    made = [
        arhn.Cascade(Known(name="a"), Known(name="b")),
        arhn.Cascade(Known(name="b"), Known(name="a")),
        arhn.Cascade(Known(name="a"), Known(name="b"), floor=0.5),
        arhn.Cascade(arhn.Lexical(), Known(name="b")),
        arhn.Cascade(arhn.Lexical(threshold=0.5), Known(name="b")),
    ]
    assert len({str(one.identity("snippets")) for one in made}) == len(made)
    assert made[0].identity("snippets") != made[0].identity("ranks")
    both = arhn.Cascade(Known(name="waiting"), Known())
    assert both.statistics() == {"requests": 0, "waiting_for_servers": True, "screened": 0}
    described = arhn.Cascade(arhn.Lexical(), Known()).description()
    assert described["annotator"] == "cascade: lexical baseline, then Known"
    assert (described["baseline"], described["screen_threshold"], described["screen_floor"]) == (False, 0.3, 0.6)
    assert arhn.Cascade(Known(), arhn.Lexical()).baseline
    assert (made[0].awaits, arhn.Cascade(Waiting(), Known()).awaits) == (False, True)
    copy = pickle.loads(pickle.dumps(made[3]))
    assert copy.identity("snippets") == made[3].identity("snippets")
    assert copy.awaits is False


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, Known()), {}, "cheap is None"),
        ((Known(), "http://localhost"), {}, "strong is 'http://localhost'"),
        ((Known(), arhn.Lexical), {}, "strong is <class"),
        ((arhn.Cascade(Known(), Known()), Known()), {}, "no cascade itself"),
        ((Known(), Known()), {"floor": -0.1}, "floor is -0.1"),
        ((Known(), Known()), {"floor": float("nan")}, "floor is nan"),
    ],
)
def test_wrong_options(arguments, options, message):
    """They are refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        arhn.Cascade(*arguments, **options)


def test_no_annotator_of_one_is_asked_for_more(row):
    """The messages of the screen and of the strong one name the class."""
    with pytest.raises(ConfigurationError, match="Known has no method verdicts"):
        arhn.Verdicts(annotator=arhn.Cascade(Known(), arhn.Lexical()))(row)


# -- with an endpoint -------------------------------------------------------------------------------------------------


def test_it_saves_requests_and_changes_few_labels(sample):
    """On the sample, against the same server alone: a third of the requests saved, and at most 1 % of the labels."""
    rows = Dataset.from_list(sample)

    def refined(annotator):
        made = rows.map(arhn.Snippets(annotator=annotator)).map(arhn.Ranks(annotator=annotator))
        made = made.map(arhn.Relabel(min_negatives=0))
        return [[passage["docid"] for passage in row["negative_passages"]] for row in made]

    with Emulator(reply=arhn.Lexical.fitted(sample, threshold=0.6)) as server:
        endpoint = arhn.Endpoint(server.url, cache="none")
        alone = refined(endpoint)
        whole = endpoint.statistics()["replies"]
        cascade = arhn.Cascade(arhn.Lexical.fitted(sample), endpoint)
        found = refined(cascade)
        asked = cascade.statistics()
    changed = sum(len(set(one) ^ set(other)) for one, other in zip(alone, found, strict=True))
    assert changed <= 0.01 * sum(len(row["negative_passages"]) for row in sample)
    assert asked["replies"] - whole <= 0.67 * whole
    saved = whole - (asked["replies"] - whole)  # rankings of rows in which the screen flags nothing are among them
    assert saved - len(sample) <= asked["screened"] <= saved


def test_a_run_fits_the_screen_and_names_both(tmp_path):
    """The term statistics come from the input; run.json has both and what was not asked."""
    with Emulator() as server:
        cascade = arhn.Cascade(arhn.Lexical(), arhn.Endpoint(server.url))
        stages = Stages(
            snippets=arhn.Snippets(annotator=cascade), ranks=arhn.Ranks(annotator=cascade), relabel=arhn.Relabel()
        )
        done = refine(Input(name=str(SAMPLE), limit=12), tmp_path / "refined", stages)
        assert estimate(Input(name=str(SAMPLE), limit=12), stages, sample=4).rows == 12
    assert done.run["annotator"]["annotator"] == "cascade: lexical baseline, then LLM behind an endpoint"
    assert done.run["annotator"]["screen_fitted_on_passages"] > 12
    assert done.run["prompts"]["question"]["version"] == "1"
    assert done.run["identity"]["snippets"]["screen"]["statistics"]
    assert done.run["requests"]["screened"] > 0
    details = [snippet["detail"] for row in done.rows() for snippet in row["negative_snippets"]]
    assert any("by the screen alone. coverage 0." in str(detail) for detail in details)
    assert "lexical baseline" in (tmp_path / "refined" / "README.md").read_text()


def test_two_endpoints_count_stored_replies_once(sample):
    """Those of the process are told by both."""
    with Emulator() as small, Emulator(model="some/larger") as large:
        cascade = arhn.Cascade(arhn.Endpoint(small.url), arhn.Endpoint(large.url))
        rows = Dataset.from_list(sample[:4])
        for _ in range(2):
            rows.map(arhn.Snippets(annotator=cascade), load_from_cache_file=False)
        counted = cascade.statistics()
        assert counted["replies"] == small.stats.requests + large.stats.requests
        assert counted["stored"] == counted["replies"]


# -- the script -------------------------------------------------------------------------------------------------------


def measured(monkeypatch, capsys, *arguments):
    """What the script prints, as columns by line."""
    spec = importlib.util.spec_from_file_location("measure_cascade", SCRIPTS / "measure_cascade.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["measure_cascade.py", *arguments])
    module.main()
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("verdicts", [[], ["--verdicts"]])
def test_the_script_measures_both(monkeypatch, capsys, verdicts):
    """A floor of 0 saves nothing and changes nothing; a high one saves all."""
    printed = measured(monkeypatch, capsys, str(SAMPLE), "--rows", "12", "--floors", "0,0.7,1", *verdicts)
    (alone,) = [line for line in printed if line[:2] == ["strong", "alone"]]
    floors = {line[1]: line[2:] for line in printed if line[:1] == ["floor"]}
    assert floors["0"][1:3] == ["0.0%", "0.00%"] or verdicts
    assert [int(floors[floor][0]) for floor in ("0", "0.7", "1")] == sorted(
        (int(floors[floor][0]) for floor in floors), reverse=True
    )
    assert int(alone[2]) >= int(floors["1"][0])


def test_it_saves_and_changes_what_its_docstring_states(monkeypatch, capsys):
    """On the sample, against a perfect strong annotator: the two figures of the docstring, printed by the script."""
    truth = SAMPLE.with_name("questions.truth.jsonl")
    printed = measured(monkeypatch, capsys, str(SAMPLE), "--truth", str(truth), "--floors", f"{arhn.Cascade.floor}")
    (saved, changed) = next(line[3:5] for line in printed if line[:1] == ["floor"])
    said = " ".join(arhn.Cascade.__doc__.split())
    stated = re.search(r"on the sample of this package, .*?, (\d+) % and (\d+) %", said)
    assert (round(float(saved[:-1])), round(float(changed[:-1]))) == tuple(map(int, stated.groups()))


def test_where_answers_share_the_words_of_the_query_no_label_changes(monkeypatch, capsys, tmp_path):
    """Hand-written: half of the requests are saved, and every false negative still leaves."""
    rows, judged = tmp_path / "rows.jsonl", tmp_path / "truth.jsonl"
    made, truth = [], []
    for metal, degrees in (("tin", 232), ("lead", 328), ("zinc", 420), ("gold", 1064)):
        texts = [
            f"The temperature at which {metal} melts is {degrees} degrees.",
            f"{metal.title()} is sold by the kilogram.",
            "Copper is red.",
            "Rain fell on the hills all week.",
            "The harbour was closed in winter.",
        ]
        query = f"At what temperature does {metal} melt?"
        made.append({**row_of([f"{metal.title()} melts at a temperature of {degrees} degrees."], texts, query)})
        made[-1]["query_id"] = metal
        negatives = [{"docid": f"n{i}", "relevant": int(i == 0)} for i in range(len(texts))]
        truth.append({"query_id": metal, "negatives": negatives})
    for path, lines in ((rows, made), (judged, truth)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    printed = measured(monkeypatch, capsys, str(rows), "--truth", str(judged), "--floors", f"{arhn.Cascade.floor}")
    (found,) = [line for line in printed if line[:1] == ["floor"]]
    assert float(found[3][:-1]) >= 50
    assert found[4:] == ["0.00%", "4", "0", "0"]


def test_the_script_with_a_truth_file(monkeypatch, capsys):
    """Alone, the truth flags its false negatives and nothing else."""
    truth = SAMPLE.with_name("questions.truth.jsonl")
    false = sum(
        bool(negative["relevant"])
        for line in truth.read_text(encoding="utf-8").splitlines()
        for negative in json.loads(line)["negatives"]
    )
    printed = measured(monkeypatch, capsys, str(SAMPLE), "--truth", str(truth), "--floors", "0")
    (alone,) = [line for line in printed if line[:2] == ["strong", "alone"]]
    assert int(alone[3]) == false
