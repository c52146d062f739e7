"""Counts, tables and rows for a reader."""

from __future__ import annotations

from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets import report as reporting
from arhn_datasets.report import build_report, changed_rows, format_report, format_row, format_table


def refined(rows, **options):
    """The rows after all stages with the lexical baseline."""
    dataset = Dataset.from_list(rows)
    for stage in (
        arhn.Snippets(annotator=arhn.Lexical()),
        arhn.Ranks(annotator=arhn.Lexical()),
        arhn.Relabel(**options),
    ):
        dataset = dataset.map(stage)
    return dataset


def test_the_counts_add_up(sample):
    """Relabelled, filtered and kept are the source's negatives, in each subset and in all."""
    dataset = refined(sample)
    report = build_report([dataset.select(range(30)), dataset.select(range(30, len(sample)))])
    assert list(report.subsets) == ["qa", "claims", "arguments", "titles"]
    for name, counts in report.rows():
        rows = [row for row in sample if name in ("all", row["subset"])]
        assert counts.rows == len(rows) == sum(counts.decisions.values()) == sum(counts.rankings.values())
        assert counts.positives == sum(len(row["positive_passages"]) for row in rows)
        assert counts.negatives == sum(len(row["negative_passages"]) for row in rows)
        assert counts.relabelled + counts.filtered + counts.kept == counts.negatives
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
    assert "rankings  none" in format_report(report)


def test_tables_align():
    """The first column to the left, the others to the right."""
    assert format_table(("a", "bb"), [("xxx", "1")]).splitlines() == ["a    bb", "---  --", "xxx   1"]


def test_changed_rows_come_from_every_subset_and_read_well(sample):
    """Relabelled rows first, one of each subset before the second; each passage with its snippet."""
    dataset = refined(sample)
    rows = changed_rows(dataset, 3)
    assert len({row["subset"] for row in rows}) == 3
    assert all(row["decision"]["relabelled"] for row in rows)
    assert changed_rows(dataset, 1000)[-1]["decision"]["relabelled"] == 0
    text = format_row(rows[0])
    assert text.startswith("query      ")
    assert "positive   [" in text
    assert "+ now pos  [" in text
    assert "negatives" in text.splitlines()[-1]
    filtered = next(row for row in changed_rows(dataset, 1000) if row["decision"]["filtered"])
    assert "- left     [" in format_row(filtered)
    unsupported = next(row for row in dataset if row["decision"]["reference"] == "unsupported")
    assert "(no_answer)" in format_row(unsupported)
