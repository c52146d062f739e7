"""Counts, tables and rows for a reader."""

from __future__ import annotations

import heapq
import json
from collections import Counter

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.folder import report as reporting
from arhn_datasets.folder.report import (
    Cause,
    ChangedRows,
    Tally,
    changed_rows,
    format_report,
    format_row,
    format_table,
)
from arhn_datasets.rows import records
from arhn_datasets.rows.records import (
    ALL_EVIDENCE_TYPES,
    DECISION_STATUSES,
    JUDGEMENT_STATUSES,
    PASSAGE_TYPE,
    RANKING_STATUSES,
    SNIPPET_STATUSES,
)
from tests.conftest import build_report, tables_of
from tests.folder.test_evidence_table import in_other_buffers

SIDES = tuple(side.label for side in records.SIDES)
KINDS = {"snippets": SNIPPET_STATUSES, "verdicts": JUDGEMENT_STATUSES, "grades": JUDGEMENT_STATUSES}


def statuses(known, rest=("other",)):
    """Values of a column of structs, of which some are null and some have a status that there is not."""
    return st.none() | st.fixed_dictionaries({"status": st.sampled_from([*known, *rest, None])})


ROW = st.fixed_dictionaries(
    {
        "subset": st.sampled_from([None, "", "a", "b", "c"]),
        "decision": st.fixed_dictionaries(
            {
                "status": st.sampled_from(DECISION_STATUSES),
                "relabelled": st.integers(0, 2),
                "filtered": st.integers(0, 3),
            }
        ),
        "ranking": statuses(RANKING_STATUSES),
        **{
            f"{side}_passages": st.lists(st.just({"docid": "d", "title": "", "text": "é"}), max_size=1)
            for side in SIDES
        },
        **{
            f"{side}_origins": st.lists(st.fixed_dictionaries({"label": st.sampled_from(SIDES[:2])}), max_size=3)
            for side in SIDES
        },
        **{
            f"{side}_{kind}": st.none() | st.lists(statuses(known), max_size=3)
            for side in SIDES
            for kind, known in KINDS.items()
        },
    }
)


def table_from(rows, without=()):
    """Rows with the types of relabelled ones."""
    types = {"subset": pa.string(), **dict.fromkeys([f"{side}_passages" for side in SIDES], pa.list_(PASSAGE_TYPE))}
    types |= ALL_EVIDENCE_TYPES
    kept = [name for name in ROW_COLUMNS if name not in without]
    return pa.Table.from_pylist(rows, pa.schema([(name, types[name]) for name in kept]))


ROW_COLUMNS = (
    *("subset", "decision", "ranking"),
    *(f"{side}_{kind}" for kind in ("passages", "origins", *KINDS) for side in SIDES),
)


def naive_report(rows, most):
    """The counts row by row, as JSON."""
    subsets = {}
    for row in rows:
        name = row.get("subset") or "(no subset)"
        if name not in subsets and len(subsets) >= most:
            name = "(other subsets)"
        count = subsets.setdefault(name, Counter())
        origins = [origin["label"] for side in SIDES for origin in row[f"{side}_origins"]]
        count.update(rows=1, positives=origins.count("positive"), negatives=origins.count("negative"))
        count.update({name: row["decision"][name] for name in ("relabelled", "filtered")})
        count["decisions", row["decision"]["status"]] += 1
        count["dropped"] += len(row["negative_origins"]) * (row["decision"]["status"] == "dropped")
        if row.get("ranking"):
            count["rankings", row["ranking"]["status"]] += 1
        for kind in KINDS:
            for side in SIDES:
                count.update((kind, one["status"]) for one in row.get(f"{side}_{kind}") or () if one)
    subsets = {"all": sum(subsets.values(), Counter()), **subsets}
    known = {"decisions": DECISION_STATUSES, "snippets": SNIPPET_STATUSES, "rankings": RANKING_STATUSES, **KINDS}
    found = {}
    for name, count in subsets.items():
        found[name] = {key: count[key] for key in ("rows", "positives", "negatives", "relabelled", "filtered")}
        found[name] |= {"dropped": count["dropped"]} if count["dropped"] else {}
        found[name]["kept"] = count["negatives"] - count["relabelled"] - count["filtered"] - count["dropped"]
        for kind, names in known.items():
            counted = {status: count[kind, status] for status in names if count[kind, status]}
            found[name] |= {kind: counted} if counted or kind not in ("verdicts", "grades") else {}
    return found


def naive_changed(rows, most):
    """The changed rows to show, chosen row by row."""
    seen, keyed = Counter(), []
    for at, row in enumerate(rows):
        if row["decision"]["status"] == "changed":
            of = row["decision"]["relabelled"] == 0, row.get("subset")
            keyed.append(((of[0], seen[of], at), row))
            seen[of] += 1
    return [row for _, row in heapq.nsmallest(most, keyed, key=lambda pair: pair[0])]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ROW, max_size=8),
    st.sampled_from(["plain", "sliced", "chunked", "large"]),
    st.integers(1, 4),
    st.sampled_from([(), ("subset",), ("ranking", "positive_verdicts", "filtered_snippets")]),
)
def test_counts_and_changed_rows_are_what_plain_python_says(rows, kind, step, without):
    """In any memory layout and any tables; in one go, and stopped and gone on with."""
    whole = table_from(rows, without)
    rows = whole.to_pylist()
    tables = [in_other_buffers(whole.slice(at, step), kind) for at in range(0, len(rows), step)]
    expected = naive_report(rows, reporting.MOST_SUBSETS)
    tally = Tally()
    for table in tables:
        tally = Tally.from_json(json.loads(json.dumps(tally.to_json())))
        tally.add(table)
    found = tally.report().to_json()
    assert found == expected
    assert list(found) == list(expected)
    at_once = Tally()
    for table in tables:
        at_once.add(table)
    assert list(at_once.report().to_json().items()) == list(expected.items())
    for most in (0, 2, 5):
        assert changed_rows(tables, most) == naive_changed(rows, most)


@pytest.mark.parametrize("type", [pa.null(), pa.int64(), pa.dictionary(pa.int32(), pa.string())])
def test_a_subset_of_any_type_is_a_name(type):
    """Integers are named by their digits, codes by what they stand for, and nulls and zeros by none."""
    rows = [{"decision": {"status": "unchanged", "relabelled": 0, "filtered": 0}} for _ in range(3)]
    values = {pa.null(): [None] * 3, pa.int64(): [7, None, 0]}.get(type, ["7", "", None])
    table = table_from(rows, ["subset"]).append_column("subset", pa.array(values, type))
    tally = Tally()
    tally.add(table)
    names = ["(no subset)"] if type == pa.null() else ["7", "(no subset)"]
    assert list(tally.report().subsets) == names


def test_very_many_subsets_are_merged_into_the_rest(monkeypatch):
    """Over several tables: the first names, the rest in one line, and no row lost."""
    monkeypatch.setattr(reporting, "MOST_SUBSETS", 3)
    rows = [
        {"subset": f"s{i}", "decision": {"status": "unchanged", "relabelled": 0, "filtered": 0}}
        for i in (0, 1, 0, 2, 3, 4)
    ]
    tally = Tally()
    tally.add(table_from(rows[:2]))
    tally.add(table_from(rows[2:]))
    assert {name: counts.rows for name, counts in tally.report().rows()} == {
        **{"s0": 2, "s1": 1, "s2": 1},
        **{"(other subsets)": 2, "all": 6},
    }


def test_a_dataset_that_was_filtered_is_counted(sample):
    """A dataset with an order of its own, and without a single row."""
    dataset = refined(sample[:6])
    chosen = dataset.select([4, 1, 3])
    assert build_report([chosen]).to_json() == build_report([Dataset.from_list(chosen.to_list())]).to_json()
    assert build_report([dataset.select([])]).total.rows == 0
    found = ChangedRows(10)
    for table in tables_of(chosen):
        found.add(table)
    assert found.rows() == naive_changed(chosen.to_list(), 10)


def refined(rows, **options):
    """The rows after all stages with the lexical baseline."""
    dataset = Dataset.from_list(rows)
    for stage in (
        arhn.Snippets(annotator=arhn.Lexical(of_best=0.5)),
        arhn.Ranks(annotator=arhn.Lexical()),
        arhn.Relabel(**options),
    ):
        dataset = dataset.map(stage)
    return dataset


def test_the_counts_add_up(sample):
    """Relabelled, filtered, dropped and kept are the source's negatives, in each subset and in all."""
    dataset = refined(sample)
    report = build_report([dataset.select(range(30)), dataset.select(range(30, len(sample)))])
    assert list(report.subsets) == ["qa", "claims", "arguments", "titles"]
    for name, counts in report.rows():
        rows = [row for row in sample if name in ("all", row["subset"])]
        assert counts.rows == len(rows) == sum(counts.decisions.values()) == sum(counts.rankings.values())
        assert counts.positives == sum(len(row["positive_passages"]) for row in rows)
        assert counts.negatives == sum(len(row["negative_passages"]) for row in rows)
        assert counts.relabelled + counts.filtered + counts.dropped + counts.kept == counts.negatives
        assert sum(counts.snippets.values()) == counts.positives + counts.negatives
    assert report.to_json()["all"]["rows"] == len(sample)
    assert report.total.errors == 0


def test_rows_without_a_subset_and_with_very_many(sample, monkeypatch):
    """One nameless subset shows the total alone; past a limit the rest is one line."""
    bare = [{name: value for name, value in row.items() if name != "subset"} for row in sample[:4]]
    assert [name for name, _ in build_report([refined(bare)]).rows()] == ["all"]
    monkeypatch.setattr(reporting, "MOST_SUBSETS", 2)
    many = [{**row, "subset": f"s{i}"} for i, row in enumerate(sample[:5])]
    assert list(build_report([refined(many)]).subsets) == ["s0", "s1", "(other subsets)"]


def test_a_policy_without_ranks_is_counted(sample):
    """The filter policy needs no ranking stage, and the report none either."""
    dataset = Dataset.from_list(sample[:5]).map(arhn.Snippets(annotator=arhn.Lexical()))
    report = build_report([dataset.map(arhn.Relabel(policy="filter"))])
    assert report.total.rankings == {}
    assert "rankings" not in format_report(report)


def test_tables_align():
    """The first column to the left, the others to the right."""
    assert format_table(("a", "bb"), [("xxx", "1")]).splitlines() == ["a    bb", "---  --", "xxx   1"]


def test_changed_rows_come_from_every_subset_and_read_well(sample):
    """Relabelled rows first, one of each subset before the second; each passage with its snippet."""
    dataset = refined(sample)
    rows = changed_rows(tables_of(dataset), 3)
    assert len({row["subset"] for row in rows}) == 3
    assert all(row["decision"]["relabelled"] for row in rows)
    assert changed_rows(tables_of(dataset), 1000)[-1]["decision"]["relabelled"] == 0
    text = format_row(rows[0])
    assert text.startswith("query      ")
    assert "positive   [" in text
    assert "+ now pos  [" in text
    assert "negatives" in text.splitlines()[-1]
    filtered = next(row for row in changed_rows(tables_of(dataset), 1000) if row["decision"]["filtered"])
    assert "- left     [" in format_row(filtered)
    unsupported = next(row for row in dataset if row["decision"]["reference"] == "unsupported")
    assert "(no_answer)" in format_row(unsupported)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(SNIPPET_STATUSES), st.sampled_from([None, *"abc"]), st.integers(0, 99))))
def test_causes_count_every_reply_that_was_no_evidence(given_snippets):
    """Messages that differ in a number are one cause, whose example is the first; stopped and gone on with, too."""
    snippets = [
        {"status": status, "detail": detail and f"EndpointFailure: 500: {detail} {number}"}
        for status, detail, number in given_snippets
    ]
    tally = Tally()
    for snippet in snippets:
        row = {"decision": {"status": "unchanged", "relabelled": 0, "filtered": 0}, "negative_snippets": [snippet]}
        tally = Tally.from_json(json.loads(json.dumps(tally.to_json())))
        tally.add(table_from([row]))
    report = tally.report()
    expected = Counter(one["status"] for one in snippets if one["status"] in ("ungrounded", "unparsed", "error"))
    counted = Counter()
    for cause in report.causes:
        counted[cause.status] += cause.count
    assert counted == expected
    shapes = {one["detail"] and one["detail"].split()[2] for one in snippets if one["status"] == "error"}
    assert sum(cause.status == "error" for cause in report.causes) == len(shapes)
    assert report.unread == pytest.approx(sum(expected.values()) / max(1, len(snippets)))


@pytest.mark.parametrize(
    ("example", "told", "passing"),
    [
        ("EndpointFailure: 500: down", "2 x 500: down", True),
        ("RequestRejected: 400: no", "2 x 400: no", False),
        ("EmptyReply: nothing", "2 x nothing", False),
        ("no server of mine: away", "2 x no server of mine: away", True),
    ],
)
def test_a_cause_in_words(example, told, passing):
    """Without the name of our error, which tells whether asking again can help."""
    cause = Cause(status="error", count=2, example=example)
    assert (str(cause), cause.passing) == (told, passing)
