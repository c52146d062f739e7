"""Scores, prompts and types of a source on their way into every format that has a place for them."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.checks.verification import verify_folder
from arhn_datasets.cli import export_command, refine_command
from arhn_datasets.errors import SchemaError
from arhn_datasets.folder.reading import open_folder
from arhn_datasets.formats.format import Options, known_formats, table_of
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.rows.records import PASSAGE_TYPE, SCORE_TYPE

SCORED = [name for name, format in known_formats().items() if format.scored]
BARE = [name for name in known_formats() if name not in SCORED]
WITH_SCORE = pa.list_(pa.struct([*PASSAGE_TYPE, ("score", SCORE_TYPE)]))

# A passage is named by its score, so that any two that were mixed up are seen.
numbers = st.lists(st.integers(-9, 9), unique=True, max_size=4)
ROWS = st.lists(st.tuples(numbers, numbers, st.booleans()), max_size=4)


def table_from(rows, *, evidence):
    """Rows whose passages have scores in themselves, or in the columns of a stage; the last may lack one."""
    made = []
    for at, (positives, negatives, whole) in enumerate(rows):
        row = {"query_id": str(at), "query": f"query {at}"}
        for side, own in (("positive", positives), ("negative", negatives)):
            scores = [float(one) for one in own]
            if not whole and side == "negative" and scores:
                scores[-1] = None
            texts = [{"docid": f"{side}{one}", "title": "", "text": str(one)} for one in own]
            row[f"{side}_scores"] = scores
            row[f"{side}_passages"] = [{**text, "score": score} for text, score in zip(texts, scores, strict=True)]
        made.append(row)
    types = {"query_id": pa.string(), "query": pa.string()}
    types |= dict.fromkeys(
        ("positive_passages", "negative_passages"), pa.list_(PASSAGE_TYPE) if evidence else WITH_SCORE
    )
    types |= dict.fromkeys(("positive_scores", "negative_scores"), pa.list_(SCORE_TYPE)) if evidence else {}
    return pa.Table.from_pylist(made, pa.schema(list(types.items())))


def pairs_in(format, row):
    """The texts of a row of a format with the scores that it gives them."""
    if format in ("triplet", "n-tuple"):
        return list(zip([row[name] for name in row if name not in ("anchor", "score")], row["score"], strict=True))
    if format == "labeled-pair":
        return [(row["passage"], row["score"])]
    if format == "labeled-list":
        return list(zip(row["docs"], row["labels"], strict=True))
    if format == "pylate":
        return list(zip(row["documents"], row["scores"], strict=True))
    if format == "flagembedding":
        return [pair for side in ("pos", "neg") for pair in zip(row[side], row[f"{side}_scores"], strict=True)]
    return [(p["text"], p["score"]) for side in ("positive", "negative") for p in row[f"{side}_passages"]]


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from(SCORED), st.booleans(), st.integers(1, 3))
def test_a_score_stays_with_its_passage(rows, format, evidence, negatives):
    """In every format with a place for it, from either source; a row in which one is missing is left out."""
    table = table_from(rows, evidence=evidence)
    made, left_out = table_of(format, table, Options(labels="soft", negatives=negatives))
    found = [pair for row in made.to_pylist() for pair in pairs_in(format, row)]
    assert all(float(text) == score for text, score in found)
    assert left_out["a passage without a score"] == sum(not whole and bool(n) for _, n, whole in rows)
    if format in ("flagembedding", "tevatron", "labeled-list"):
        usable = [(p, n) for p, n, whole in rows if p and n and whole]
        assert Counter(text for text, _ in found) == Counter(str(one) for p, n in usable for one in [*p, *n])


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_a_soft_list_is_in_the_order_of_its_scores(rows):
    """ListMLE takes the order of a list for its ranking."""
    made, _ = table_of("labeled-list", table_from(rows, evidence=False), Options(labels="soft"))
    for row in made.to_pylist():
        assert row["labels"] == sorted(row["labels"], reverse=True)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_pylate_reads_lists_of_one_width(rows, negatives):
    """Documents and scores are as many in every row; no tuple has a column that it would take for their labels."""
    table = table_from(rows, evidence=True)
    made, _ = table_of("pylate", table, Options(negatives=negatives))
    assert {len(row[name]) for row in made.to_pylist() for name in ("documents", "scores")} <= {negatives + 1}
    for name in ("n-tuple", "triplet"):
        columns = table_of(name, table, Options(labels="soft"))[0].column_names
        assert not {"label", "scores"} & set(columns)


FLAG = {
    "query": "how long is the Senn tunnel",
    "pos": ["The Senn tunnel is 4,310 metres long and was opened in 1964."],
    "neg": ["Senn is a village of 900 people below the pass.", "Drivers know: the Senn tunnel is 4,310 metres long."],
    "pos_scores": [0.9],
    "neg_scores": [0.1, 0.8],
    "prompt": "Given a question",
    "type": "normal",
    "subset": "one",
}
OTHERS = [
    {**FLAG, "query": "how high is the Senn", "pos": ["It is 1,200 metres high."], "prompt": None, "subset": "Two/2"},
    {**FLAG, "query": "who built it", "pos": ["A man of Senn."], "pos_scores": None, "neg_scores": None},
    {**FLAG, "query": "when was it built", "pos": ["In 1964."], "type": "only_1neg"},
]
SCORES = dict(zip([*FLAG["pos"], *FLAG["neg"]], [0.9, 0.1, 0.8], strict=True))


def refined(tmp_path, rows):
    """A folder that the command has refined."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--annotator", "lexical", "--output", str(tmp_path / "refined"), "--on-shortage", "allow"]
    assert refine_command([str(source), *arguments]) == 0
    return tmp_path / "refined"


def lines_of(path):
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_flagembedding_comes_back_as_it_came(tmp_path):
    """The scores go with the passages that moved; prompt and type are those of the source."""
    folder = refined(tmp_path, [{name: value for name, value in FLAG.items() if name != "subset"}])
    assert export_command([str(folder), "--format", "flagembedding", "--output", str(tmp_path / "out")]) == 0
    [row] = lines_of(tmp_path / "out/flagembedding/train.jsonl")
    assert list(row) == ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"]
    assert (row["prompt"], row["type"]) == ("Given a question", "normal")
    assert len(row["pos"]) == 2
    assert row["pos_scores"] == [SCORES[text] for text in row["pos"]]
    assert row["neg_scores"] == [SCORES[text] for text in row["neg"]]


def test_flagembedding_has_a_file_for_each_subset(tmp_path):
    """And for each type, and for rows without scores; a prompt that is missing is empty, not the word None."""
    folder = refined(tmp_path, [FLAG, *OTHERS])
    arhn.export(folder, ["flagembedding", "ms-swift"], tmp_path / "out")
    found = {path.name: lines_of(path) for path in (tmp_path / "out/flagembedding/train").iterdir()}
    names = {"one-normal.jsonl", "Two%2F2-normal.jsonl", "one-normal-without-scores.jsonl", "one-only_1neg.jsonl"}
    assert set(found) == names
    assert all({tuple(row) for row in rows} == {tuple(rows[0])} for rows in found.values())
    assert [row["prompt"] for row in found["Two%2F2-normal.jsonl"]] == [""]
    assert "pos_scores" not in found["one-normal-without-scores.jsonl"][0]
    assert sum(map(len, found.values())) == 4
    swift = lines_of(tmp_path / "out/ms-swift/train.jsonl")
    assert [len(row["messages"]) for row in swift if "high" in row["messages"][-1]["content"]] == [1]
    assert swift[0]["messages"][0] == {"role": "system", "content": "Given a question"}


def test_what_one_split_alone_has_is_carried(tmp_path):
    """The prompt of the second split is not lost, and the first has none in place of the global instruction."""
    rows = [{"query_id": "q", "query": "a"}]
    for side in ("positive", "negative"):
        rows[0][f"{side}_passages"] = [{"docid": side, "title": "", "text": side}]
    splits = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list([{**rows[0], "prompt": "Find it"}]))
    arhn.export(splits, ["flagembedding", "ms-swift"], tmp_path / "out")
    prompts = [lines_of(tmp_path / f"out/flagembedding/{split}.jsonl")[0].get("prompt") for split in splits]
    assert prompts == [None, "Find it"]
    first = [lines_of(tmp_path / f"out/ms-swift/{split}.jsonl")[0]["messages"][0]["role"] for split in splits]
    assert first == ["user", "system"]


def test_a_column_of_another_kind_is_no_prompt(tmp_path):
    """Only texts are carried; scores that are no numbers are none."""
    rows = [{"query_id": "q", "query": "a", "prompt": 3, "positive_passages": [], "negative_passages": []}]
    for side in ("positive", "negative"):
        rows[0][f"{side}_passages"] = [{"docid": side, "title": "", "text": side, "score": "high"}]
    arhn.export(Dataset.from_list(rows), ["flagembedding", "ms-swift"], tmp_path / "out")
    assert lines_of(tmp_path / "out/flagembedding/train.jsonl") == [
        {"query": "a", "pos": ["positive"], "neg": ["negative"]}
    ]
    with pytest.raises(SchemaError, match="lack the column 'positive_scores', and their passages a number 'score'"):
        arhn.export(Dataset.from_list(rows), "n-tuple", tmp_path / "soft", labels="soft")


@pytest.mark.parametrize("format", BARE)
def test_soft_labels_without_a_place_are_refused(tmp_path, capsys, format):
    """Before anything is read: what would be lost, and which formats have a place."""
    assert export_command([str(tmp_path), "--format", format, "--labels", "soft", "--output", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert f"no place for scores in {format}; they would be lost" in said
    assert "choose some of triplet, n-tuple" in said


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_what_is_published_with_scores_holds(tmp_path, labels):
    """The check makes the formats again with what the source brought."""
    folder = open_folder(refined(tmp_path, [FLAG, *OTHERS]))
    formats = SCORED if labels == "soft" else [name for name in known_formats() if name != "pylate"]
    build_publication(folder, tmp_path / "published", formats=formats, options=Options(labels=labels))
    assert verify_folder(tmp_path / "published").violations == []


def test_reranking_has_the_passages_of_each_query(tmp_path):
    """All of a query, also where it has two rows, in an order that tells nothing; under names that MTEB looks for."""
    folder = refined(tmp_path, [FLAG, *OTHERS])
    arhn.export(folder, "mteb-reranking", tmp_path / "out")
    path = str(tmp_path / "out/mteb-reranking")
    assert set(get_dataset_config_names(path)) == {"corpus", "queries", "default", "top_ranked"}
    ranked = {row["query-id"]: row["corpus-ids"] for row in load_dataset(path, "top_ranked", split="train")}
    expected = {
        row["query_id"]: sorted(
            p["docid"] for side in ("positive", "negative", "filtered") for p in row[f"{side}_passages"]
        )
        for row in open_folder(folder).rows()
    }
    assert ranked == expected
    build_publication(open_folder(folder), tmp_path / "published", formats=["mteb", "mteb-reranking"])
    names = set(get_dataset_config_names(str(tmp_path / "published")))
    assert {f"{of}-{name}" for of in ("arhn", "arhn-reranking") for name in ("corpus", "queries", "qrels")} <= names
    assert "arhn-reranking-top_ranked" in names
    assert not {"top_ranked", "arhn-top_ranked"} & names  # which would make the other task one of reranking


def test_an_id_that_beir_cannot_read_is_refused(tmp_path):
    """Its readers end a line at a carriage return, whatever stands around it."""
    passages = {side: [{"docid": f"{side}\r1", "title": "", "text": side}] for side in ("positive", "negative")}
    rows = Dataset.from_list(
        [{"query_id": "q", "query": "a", **{f"{side}_passages": passages[side] for side in passages}}]
    )
    with pytest.raises(SchemaError, match=r"corpus-id 'positive\\r1' holds a carriage return"):
        arhn.export(rows, "beir", tmp_path / "out")
    arhn.export(rows, "mteb", tmp_path / "out")
