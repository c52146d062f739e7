"""Rules by other evidence than snippets, from a dataset to folders, formats and back."""

from __future__ import annotations

import json
import math
import random

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings

import arhn_datasets as arhn
from arhn_datasets.checks.verification import verify_folder
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder.evidence_table import canonical_of, evidence_of, join_evidence
from arhn_datasets.folder.reading import open_folder
from arhn_datasets.formats.format import Options, table_of
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, BETTER, NO_MATCH, PASSAGE_TYPE, WORSE
from arhn_datasets.runs.saving import save
from tests.rules.drawn import LISTS, cases, judgement
from tests.rules.test_by_score import row_of
from tests.rules.test_rule import same


@settings(max_examples=50, deadline=None)
@given(cases(most=4))
def test_evidence_apart_and_joined_again(case):
    """In a table of its own the evidence of any rule keeps everything; null lists of scores come back as nulls."""
    rule, rows, kinds = case
    rows = [rule(row) for row in rows]
    passages = pa.list_(PASSAGE_TYPE)
    types = {"query_id": pa.string(), "query": pa.string(), "other": pa.int64()}
    types |= {"positive_passages": passages, "negative_passages": passages}
    types |= {column: type for column, type in ALL_EVIDENCE_TYPES.items() if column in rows[0]}
    table = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    joined = join_evidence(canonical_of(table), evidence_of(table))
    for row, back in zip(rows, joined.to_pylist(), strict=True):
        for kind in kinds:
            columns = [f"{label}_{kind}" for label in LISTS]
            values = [value for column in columns for value in row[column] or ()]
            if kind == "ranks" or (kind == "scores" and row[columns[0]] is None):
                assert all(value is None for column in columns for value in back[column] or ()) or kind == "ranks"
            elif any(value is not None for value in values):
                assert same([back[column] for column in columns], [row[column] for column in columns])
            else:  # nothing says that anybody was asked
                assert not any(value for column in columns for value in back[column] or ())
        for label in LISTS:
            assert back[f"{label}_passages"] == row[f"{label}_passages"]
            assert back[f"{label}_origins"] == row[f"{label}_origins"]
    bare = arhn.Revert(keep_evidence=False)
    assert bare(joined).to_pylist() == bare(table).to_pylist()


def scored_sample(sample):
    """The sample with scores by the words that a passage shares with its query."""

    def scores(row, side):
        words = set(row["query"].lower().split())
        return [
            len(words & set(passage["text"].lower().split())) / len(words) - (0.1 if i % 7 == 6 else 0.0)
            for i, passage in enumerate(row[f"{side}_passages"])
        ]

    rows = [{**row, **{f"{side}_scores": scores(row, side) for side in LISTS[:2]}} for row in sample]
    rows[3]["negative_scores"][0] = None
    return rows


@pytest.mark.parametrize("way", ["map", "batched", "num_proc", "iterable", "table"])
def test_every_way_of_calling(sample, way):
    """Rows, batches, processes, streams and tables give what a row alone gives."""
    rows = scored_sample(sample)
    rule = arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2)
    expected = [rule(row) for row in rows]
    dataset = Dataset.from_list(rows)
    found = {
        "map": lambda: dataset.map(rule),
        "batched": lambda: dataset.map(rule, batched=True, batch_size=7),
        "num_proc": lambda: dataset.map(rule, num_proc=2),
        "iterable": lambda: dataset.to_iterable_dataset().map(rule),
        "table": lambda: rule(dataset.data.table).to_pylist(),
    }[way]()
    for row, wanted in zip(found, expected, strict=True):
        assert {column: row[column] for column in wanted} == wanted


def test_rows_that_were_never_scored_beside_rows_that_were(sample):
    """In concatenated datasets null lists of scores move nothing, and revert restores them."""
    rows = scored_sample(sample)[:6]
    bare = [{**row, "positive_scores": None, "negative_scores": None} for row in rows]
    features = Dataset.from_list(rows).features
    dataset = concatenate_datasets([Dataset.from_list(part, features=features) for part in (rows, bare)])
    result = dataset.map(arhn.PositiveAware(), batched=True)
    assert any(row["filtered_passages"] for row in result)
    assert not any(row["filtered_passages"] for row in result.select(range(6, 12)))
    assert list(result.map(arhn.revert)) == list(dataset)


RULED = {
    "TopK-PercPos": arhn.PositiveAware(percentage_margin=0.8),
    "AdaptiveMargin": arhn.AdaptiveMargin(margin=0.9, slope=0.5),
    "SimANS": arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2, min_negatives=2, on_shortage="drop"),
}


@pytest.mark.parametrize("label", RULED)
def test_a_folder_of_a_rule_can_be_published_verified_and_reverted(sample, tmp_path, label):
    """Without snippets: run.json names the rule, both layouts hold, and the evidence gives the source back."""
    rule, rows = RULED[label], scored_sample(sample)
    scores = arhn.Scores(columns=("positive_scores", "negative_scores"))
    dataset = Dataset.from_list(rows).map(scores).map(rule, batched=True)
    save(dataset, tmp_path / "refined", transforms=[scores, rule])
    run = json.loads((tmp_path / "refined" / "run.json").read_text())
    assert run["parameters"]["relabel"] == rule.identity()
    assert run["annotator"]["annotator"] == "passage scores"
    assert {row["decision"]["policy"] for row in dataset} == {label}
    assert verify_folder(tmp_path / "refined").violations == []
    build_publication(
        open_folder(tmp_path / "refined"),
        tmp_path / "published",
        formats=["labeled-list", "n-tuple", "flagembedding"],
        options=Options(labels="soft"),
    )
    assert verify_folder(tmp_path / "published").violations == []
    card = (tmp_path / "published" / "README.md").read_text()
    assert "its label is the score" in card
    assert f"The rule was `{type(rule).__name__}`" in card
    published = open_folder(tmp_path / "published")
    read = list(published.rows())
    assert published.schema("train").names == list(read[0])
    by_query = {row["query_id"]: row for row in dataset}
    for row in read:
        before = by_query[row["query_id"]]
        assert {column: row[column] for column in before} == before
    restored = {row["query_id"]: arhn.Revert(keep_evidence=False)(row) for row in read}
    assert all(restored[row["query_id"]] == row for row in sample)


def test_a_changed_label_is_found(sample, tmp_path):
    """A sample that another seed would have drawn is not what run.json says."""
    rule = arhn.AmbiguousSampling(a=5.0, num_hard_negatives=2)
    dataset = Dataset.from_list(scored_sample(sample)).map(rule.with_options(seed=9), batched=True)
    save(dataset, tmp_path / "refined", transforms=[rule])
    found = verify_folder(tmp_path / "refined")
    assert found.found["labels"] > 0
    assert "policy SimANS" in found.violations[0].message


def test_a_rule_has_to_be_named_when_its_rows_are_saved(sample, tmp_path):
    """The parameters of a rival are not in its rows, and cannot be guessed."""
    dataset = Dataset.from_list(scored_sample(sample)).map(arhn.PositiveAware())
    with pytest.raises(ConfigurationError, match="rule 'TopK-PercPos', whose parameters"):
        save(dataset, tmp_path / "refined")


@pytest.mark.parametrize(("evidence", "max_matches"), [("verdicts", 1), ("grades", None)])
def test_folders_of_verdicts_and_grades(sample, tmp_path, evidence, max_matches):
    """Their evidence is counted, published and verified, too."""
    rng, name = random.Random(0), evidence.removesuffix("s")
    values = {"verdicts": [BETTER, WORSE, NO_MATCH, None], "grades": [0, 1, 2, 3, None]}[evidence]
    types = {f"{side}_{evidence}": ALL_EVIDENCE_TYPES[f"{side}_{evidence}"] for side in LISTS[:2]}
    table = pa.Table.from_pylist(sample)
    for side in LISTS[:2]:
        judged = [
            [
                None if evidence == "verdicts" and side == "positive" else judgement(name, rng.choice(values))
                for _ in row[f"{side}_passages"]
            ]
            for row in sample
        ]
        table = table.append_column(f"{side}_{evidence}", pa.array(judged, types[f"{side}_{evidence}"]))
    rule = arhn.Relabel(evidence=evidence, max_matches=max_matches)
    dataset = Dataset(table).map(rule, batched=True)
    refinement = save(dataset, tmp_path / "refined", transforms=[rule])
    counts = refinement.run["counts"]["all"]
    assert counts[evidence]["judged"] > counts[evidence]["error"] > 0
    assert "snippets" in counts
    assert verify_folder(tmp_path / "refined").violations == []
    build_publication(open_folder(tmp_path / "refined"), tmp_path / "published")
    assert verify_folder(tmp_path / "published").violations == []
    for row in open_folder(tmp_path / "published").rows():
        before = next(one for one in dataset if one["query_id"] == row["query_id"])
        assert {column: row[column] for column in before} == before
    default, joined = (Dataset.from_parquet(str(tmp_path / "published" / part / "*")) for part in ("data", "evidence"))
    if max_matches is None:
        assert list(arhn.with_evidence(default, joined).select_columns(dataset.column_names)) == list(dataset)


def test_wrong_judgements_are_found(sample, tmp_path):
    """A verdict that there is not, and one of a passage whose reply could not be read."""
    rows = [
        {
            **row,
            "positive_verdicts": [None for _ in row["positive_passages"]],
            "negative_verdicts": [judgement("verdict", NO_MATCH) for _ in row["negative_passages"]],
        }
        for row in sample[:4]
    ]
    rows[0]["negative_verdicts"][0] = {"verdict": "best", "status": "judged", "detail": None}
    rows[1]["negative_verdicts"][0] = {"verdict": BETTER, "status": "error", "detail": None}
    rows[2]["negative_verdicts"][0] = {"verdict": None, "status": "lost", "detail": None}
    types = {f"{side}_verdicts": ALL_EVIDENCE_TYPES[f"{side}_verdicts"] for side in LISTS[:2]}
    table = pa.Table.from_pylist([{c: v for c, v in row.items() if c not in types} for row in rows])
    for column, type in types.items():
        table = table.append_column(column, pa.array([row[column] for row in rows], type))
    rule = arhn.Relabel(evidence="verdicts")
    save(Dataset(table).map(rule), tmp_path / "refined", transforms=[rule])
    found = verify_folder(tmp_path / "refined")
    assert found.found["statuses"] == 3
    messages = " ".join(violation.message for violation in found.violations)
    assert all(said in messages for said in ("'best'", "error with the verdict 'better'; none", "status 'lost'"))


def soft(format, rows, **options):
    """Rows in a format with soft labels, and what was left out."""
    types = {c: t for c, t in ALL_EVIDENCE_TYPES.items() if c in rows[0]}
    schema = [("query_id", pa.string()), ("query", pa.string())]
    schema += [(f"{side}_passages", pa.list_(PASSAGE_TYPE)) for side in LISTS[:2]]
    table, left_out = table_of(
        format, pa.Table.from_pylist(rows, pa.schema([*schema, *types.items()])), Options(labels="soft", **options)
    )
    return table.to_pylist(), left_out


def test_soft_labels():
    """Scores stand beside the passages they are of, in the formats that have a place for them."""
    rows = [
        row_of([0.9, 0.8], [0.3, 0.2, 0.1]),
        row_of([0.7], [0.4]),
        row_of([0.7], [None]),
        row_of([math.nan], [0.1]),
        row_of([], [0.1]),
        {**row_of([0.7], [0.4]), "negative_scores": None},
    ]
    found, left_out = soft("labeled-list", rows)
    assert [row["labels"] for row in found] == [[0.9, 0.8, 0.3, 0.2, 0.1], [0.7, 0.4]]
    assert [row["docs"][0] for row in found] == ["positive 0", "positive 0"]
    assert left_out == {"a passage without a score": 3, "no positive": 1}
    found, _ = soft("n-tuple", rows, negatives=2)
    assert [row["score"] for row in found] == [[0.9, 0.3, 0.2], [0.8, 0.3, 0.2], [0.7, 0.4, 0.4]]
    assert list(found[0]) == ["anchor", "positive", "negative_1", "negative_2", "score"]
    found, _ = soft("flagembedding", rows)
    assert [(row["pos_scores"], row["neg_scores"]) for row in found] == [([0.9, 0.8], [0.3, 0.2, 0.1]), ([0.7], [0.4])]
    found, _ = soft("labeled-pair", rows[:2])
    assert [row["score"] for row in found] == [0.9, 0.8, 0.3, 0.2, 0.1, 0.7, 0.4]
    with pytest.raises(SchemaError, match=r"lack the column 'positive_scores'.*arhn.Scores"):
        soft("n-tuple", [{c: v for c, v in rows[0].items() if not c.endswith("_scores")}])
    with pytest.raises(ConfigurationError, match="either soft or grades"):
        Options(labels="soft", grades=True)
    with pytest.raises(ConfigurationError, match="labels is 'none'; one of hard, soft"):
        Options(labels="none")


def test_soft_labels_of_what_a_rule_left(sample):
    """The scores go with the negatives that stayed, and with nothing that left."""
    dataset = Dataset.from_list(scored_sample(sample)).map(arhn.PositiveAware(percentage_margin=0.8), batched=True)
    table, _ = table_of("labeled-list", dataset.with_format("arrow")[:], Options(labels="soft"))
    by_query = {row["query"]: row for row in dataset}
    for row in table.to_pylist():
        source = by_query[row["query"]]
        assert row["labels"] == sorted(source["positive_scores"] + source["negative_scores"], reverse=True)
