"""Scores by real models of sentence-transformers, small and random, and scores that the rows came with."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, MissingDependencyError, SchemaError
from arhn_datasets.evidence import score_models
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES
from tests.evidence.ways import WAYS, called

pytest.importorskip("sentence_transformers")

SIDES = ("positive", "negative")


def texts_of(row, side, separator=" "):
    """The texts of passages as models read them."""
    passages = row[f"{side}_passages"]
    return [separator.join(part for part in (p["title"], p["text"]) if part) for p in passages]


def naive(row, model, **prompts):
    """The cosine of each passage, one text at a time."""
    query = model.encode(prompts.get("query", "") + row["query"], convert_to_numpy=True)
    found = {}
    for side in SIDES:
        vectors = [model.encode(prompts.get("passage", "") + text) for text in texts_of(row, side)]
        found[side] = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in vectors]
    return found


def test_a_bi_encoder_gives_the_cosine(bi_encoder, sample):
    """The scores are those of encoding every text alone, with the prompts of the model, of the caller, or without."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(bi_encoder, device="cpu")
    rows = Dataset.from_list(sample[:6])
    for options, prompts in (
        ({}, {"query": "question: ", "passage": "text: "}),
        ({"query_prompt": "", "passage_prompt": ""}, {}),
        ({"query_prompt": "q: ", "passage_prompt": "p: ", "similarity": "cosine"}, {"query": "q: ", "passage": "p: "}),
    ):
        found = rows.map(arhn.Scores(bi_encoder, device="cpu", **options), batched=True)
        for row in found:
            expected = naive(row, model, **prompts)
            for side in SIDES:
                assert row[f"{side}_scores"] == pytest.approx(expected[side], abs=1e-5)


def test_dot_products(bi_encoder, sample):
    """Without normalisation the score is the product of the vectors."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(bi_encoder, device="cpu")
    row = arhn.Scores(bi_encoder, similarity="dot", device="cpu")(sample[0])
    query = model.encode("question: " + row["query"])
    expected = [float(model.encode("text: " + text) @ query) for text in texts_of(row, "negative")]
    assert row["negative_scores"] == pytest.approx(expected, rel=1e-4)


def test_a_cross_encoder_reads_pairs(cross_encoder, sample):
    """The kind is found in the files; the scores are those of predict, prompts in front of the texts."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(cross_encoder, device="cpu")
    scores = arhn.Scores(cross_encoder, device="cpu", passage_prompt="passage: ")
    assert scores.identity()["kind"] == "cross-encoder"
    for row in Dataset.from_list(sample[:4]).map(scores, batched=True):
        for side in SIDES:
            pairs = [(row["query"], "passage: " + text) for text in texts_of(row, side)]
            assert row[f"{side}_scores"] == pytest.approx(model.predict(pairs).tolist(), abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_calling(bi_encoder, sample, way):
    """Rows, batches, processes, streams and tables have the same scores, in typed columns."""
    rows, scores = sample[:8], arhn.Scores(bi_encoder, device="cpu")
    expected = Dataset.from_list(rows).map(scores, batched=True)
    assert expected.features["positive_scores"] == Dataset.from_dict({"a": [[0.5]]}).features["a"]
    found = called(scores, rows, way, batch_size=3)
    for row, wanted in zip(found, expected, strict=True):
        for side in SIDES:
            assert row[f"{side}_scores"] == pytest.approx(wanted[f"{side}_scores"], abs=1e-5)
            assert row[f"{side}_passages"] == wanted[f"{side}_passages"]


def test_each_text_goes_through_the_model_once(bi_encoder, sample, monkeypatch):
    """Passages that several rows share are encoded once, and all texts of a call together."""
    scores = arhn.Scores(bi_encoder, device="cpu")
    shown = []
    encode = score_models.LoadedModel._encode

    def seen(self, role, texts, *rest):
        shown.append((role, list(texts)))
        return encode(self, role, texts, *rest)

    monkeypatch.setattr(score_models.LoadedModel, "_encode", seen)
    table = Dataset.from_list([*sample[:5], *sample[:5]]).data.table
    found = scores(table).to_pylist()
    assert [role for role, _ in shown] == ["query", "document"]
    assert all(len(texts) == len(set(texts)) for _, texts in shown)
    assert len(shown[0][1]) == 5
    assert [row["negative_scores"] for row in found[:5]] == [row["negative_scores"] for row in found[5:]]


def test_rows_without_passages_or_words(bi_encoder, cross_encoder):
    """Empty lists have empty scores, empty texts some score, and titles count."""
    empty = {"query": "why?", "positive_passages": [], "negative_passages": []}
    words = [{"docid": "a", "title": "", "text": ""}, {"docid": "b", "title": "Tin", "text": "melts"}]
    words += [{"docid": "c", "title": None, "text": "melts"}]
    for model in (bi_encoder, cross_encoder):
        scores = arhn.Scores(model, device="cpu")
        assert scores(empty)["positive_scores"] == scores(empty)["negative_scores"] == []
        found = scores({**empty, "negative_passages": words})["negative_scores"]
        assert all(isinstance(score, float) for score in found)
        assert found[1] != found[2]


def test_identity_is_model_revision_and_prompts(bi_encoder, cross_encoder, tmp_path):
    """A copy of a folder is the same model, a changed one is not; device and batch size are no part of it."""
    scores = arhn.Scores(bi_encoder)
    copy = tmp_path / "elsewhere" / Path(bi_encoder).name
    shutil.copytree(bi_encoder, copy)
    same = arhn.Scores(str(copy), batch_size=2, device="cpu")
    assert same.identity() == scores.identity()
    assert scores.identity()["revision"].startswith("files-")
    for options in ({"query_prompt": "q"}, {"similarity": "dot"}, {"separator": "\n"}, {"dtype": "bfloat16"}):
        assert scores.with_options(**options).identity() != scores.identity()
    assert arhn.Scores(cross_encoder).identity() != scores.identity()
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"changed": True}))
    assert arhn.Scores(str(copy)).identity() != scores.identity()
    assert pickle.loads(pickle.dumps(scores)).identity() == scores.identity()
    assert arhn.Scores(field="score").identity() != arhn.Scores(field="other").identity()
    json.dumps(scores.description())


def test_a_lower_precision(bi_encoder, sample):
    """The model can be loaded in half precision; the scores are near those of full precision."""
    full, half = (arhn.Scores(bi_encoder, device="cpu", dtype=dtype)(sample[0]) for dtype in (None, "bfloat16"))
    assert half["negative_scores"] == pytest.approx(full["negative_scores"], abs=0.05)
    assert half["negative_scores"] != full["negative_scores"]


def test_existing_scores():
    """Columns or a field become the evidence columns; what is no finite number becomes null."""
    passages = [{"docid": str(i), "title": "", "text": "t", "score": score} for i, score in enumerate([3, None])]
    row = {"query": "why?", "positive_passages": passages[:1], "negative_passages": passages}
    found = arhn.Scores(field="score")(row)
    assert (found["positive_scores"], found["negative_scores"]) == ([3.0], [3.0, None])
    given = {**row, "pos_scores": np.array([0.5]), "neg_scores": [math.nan, math.inf]}
    found = arhn.Scores(columns=("pos_scores", "neg_scores"))(given)
    assert (found["positive_scores"], found["negative_scores"]) == ([0.5], [None, None])
    assert arhn.Scores(columns=("pos_scores", "neg_scores"))({**given, "neg_scores": None})["negative_scores"] == [
        None,
        None,
    ]


def test_scores_of_flagembedding(tmp_path):
    """FlagEmbedding's pos_scores and neg_scores come in through arhn.adapt."""
    rows = [{"query": "why?", "pos": ["because"], "neg": ["no", "yes"], "pos_scores": [0.9], "neg_scores": [0.1, 0.8]}]
    adapted = arhn.adapt_dataset(Dataset.from_list(rows))
    found = adapted.map(arhn.Scores(field="score"))[0]
    assert (found["positive_scores"], found["negative_scores"]) == ([0.9], [0.1, 0.8])
    assert arhn.PositiveAware(percentage_margin=0.8)(found)["filtered_scores"] == [0.8]


@pytest.mark.parametrize(
    ("fuse", "positive", "negative"),
    [
        ("replace", [2.0], [4.0, None, 1.0]),
        ("mean", [1.25], [2.25, None, None]),
        ("rrf", [1 / 62 + 1 / 62], [1 / 61 + 1 / 61, None, None]),
    ],
)
def test_fusion_with_scores_that_are_there(fuse, positive, negative):
    """The mean, or reciprocal ranks within the row; of one score alone there is nothing to fuse."""
    row = {
        "query": "why?",
        "positive_passages": [{"docid": "p", "text": "p", "s": 2.0}],
        "negative_passages": [{"docid": str(i), "text": "n", "s": s} for i, s in enumerate([4.0, None, 1.0])],
        "positive_scores": [0.5],
        "negative_scores": [0.5, 0.4, None],
    }
    if fuse == "rrf":  # equal scores share the better rank
        positive = [1 / 61 + 1 / 62]
    found = arhn.Scores(field="s", fuse=fuse)(row)
    assert found["positive_scores"] == pytest.approx(positive)
    assert [None if s is None else pytest.approx(s) for s in negative] == found["negative_scores"]
    first = {c: v for c, v in row.items() if not c.endswith("_scores")}
    assert arhn.Scores(field="s", fuse=fuse)(first)["positive_scores"] == [2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of a model, endpoint=, columns= and field="),
        ({"model": "m", "field": "score"}, "one of a model, endpoint=, columns= and field="),
        ({"model": object()}, "model is a object; a Hub id or a folder"),
        ({"columns": ("one",)}, "the names of two columns"),
        ({"columns": "scores"}, "the names of two columns"),
        ({"model": "m", "kind": "colbert"}, "kind is 'colbert'; one of bi-encoder, cross-encoder"),
        ({"model": "m", "similarity": "l2"}, "similarity is 'l2'; one of cosine, dot"),
        ({"model": "m", "kind": "cross-encoder", "similarity": "dot"}, "has no similarity"),
        ({"model": "m", "dtype": "int8"}, "dtype is 'int8'"),
        ({"model": "m", "batch_size": 0}, "batch_size is 0; a whole number from 1"),
        ({"model": "m", "batch_size": "32"}, "batch_size is '32'; a whole number from 1 was expected"),
        ({"model": "m", "batch_size": 32.0}, "batch_size is 32.0; a whole number"),
        ({"field": "score", "fuse": "max"}, "fuse is 'max'; one of replace, mean, rrf"),
    ],
)
def test_wrong_options(options, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        arhn.Scores(**options)


def test_wrong_rows(cross_encoder, bi_encoder):
    """Missing and misaligned scores, relabelled rows, and a similarity of a cross-encoder."""
    passage = {"docid": "a", "title": "", "text": "t"}
    row = {"query": "why?", "positive_passages": [passage], "negative_passages": [passage, passage]}
    with pytest.raises(SchemaError, match=r"have no field 'score'.*\['docid', 'text', 'title'\]"):
        arhn.Scores(field="score")(row)
    columns = arhn.Scores(columns=("a", "b"))
    with pytest.raises(SchemaError, match=r"needs the columns \['a', 'b'\].*Name the columns"):
        columns(row)
    with pytest.raises(SchemaError, match="Column 'b' has 1 values for 2 passages"):
        columns({**row, "a": [1], "b": [1]})
    with pytest.raises(SchemaError, match="A score is no number"):
        columns({**row, "a": [1], "b": [1, "2"]})
    with pytest.raises(SchemaError, match="arhn.adapt"):
        arhn.Scores(bi_encoder)({"query": "why?"})
    for asked in ({**row, "query_id": "q7", "query": None}, {**row, "query_id": "q7", "query": 5}):
        with pytest.raises(SchemaError, match=r"arhn\.scores .*query_id 'q7'.*a text was expected.*ds\.filter"):
            arhn.Scores(bi_encoder)(asked)
    assert columns({**row, "query": None, "a": [1], "b": [2, 0]})["positive_scores"] == [1]  # no query is read
    scored = columns({**row, "a": [1], "b": [2, 0]})
    with pytest.raises(SchemaError, match="got a relabelled row"):
        columns(arhn.PositiveAware()(scored))
    with pytest.raises(ConfigurationError, match="is a cross-encoder and has no similarity"):
        arhn.Scores(cross_encoder, similarity="dot")(row)


def test_a_cross_encoder_of_several_labels(encoder, tmp_path):
    """Of classes there is no one score."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(encoder, num_labels=3, device="cpu").save_pretrained(str(tmp_path))
    passage = {"docid": "a", "title": "", "text": "t"}
    with pytest.raises(ConfigurationError, match="cross-encoder with 3 labels"):
        arhn.Scores(str(tmp_path))({"query": "q", "positive_passages": [passage], "negative_passages": []})


@pytest.fixture
def offline(monkeypatch):
    """No network but what is in the cache of the Hub's client."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Path(constants.HF_HUB_CACHE)


def test_a_model_of_the_hub_is_named_by_its_commit(offline, bi_encoder, sample):
    """The identity holds the commit that the files are of, and these are the ones that are loaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = offline / "models--someone--tiny"
    shutil.copytree(bi_encoder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    scores = arhn.Scores("someone/tiny", device="cpu")
    assert scores.identity()["model"] == "someone/tiny"
    assert scores.identity()["revision"] == commit
    expected = arhn.Scores(bi_encoder, device="cpu")(sample[0])
    assert scores(sample[0])["negative_scores"] == pytest.approx(expected["negative_scores"], abs=1e-6)


def test_a_model_that_is_not_there(offline, monkeypatch):
    """The message says where was looked; without the library, what to install."""
    with pytest.raises(ConfigurationError, match="nobody/nothing"):
        arhn.Scores("nobody/nothing").identity()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match="train"):
        score_models._library()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"method": "TopK-Abs", "threshold": 0.9}, {"max_score": 0.9}),
        ({"method": "TopK-MarginPos", "absolute_margin": 0.02}, {"absolute_margin": 0.02}),
        ({"method": "TopK-MarginPos", "absolute_margin": -0.1}, {"absolute_margin": -0.1}),
        ({"method": "TopK-PercPos", "percentage_margin": 0.97}, {"relative_margin": 0.03}),
        ({"method": "TopK-PercPos", "percentage_margin": 0.8}, {"relative_margin": 0.2}),
    ],
)
@pytest.mark.parametrize(("positives", "crossed"), [(1, False), (2, False), (2, True)])
def test_positive_aware_is_what_mine_hard_negatives_does(
    encoder, cross_encoder, sample, ours, theirs, positives, crossed
):
    """On the same scores, with several positives and negative scores, too: the same negatives, in the same order."""
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    rows = sample[: 4 if crossed else 8]
    corpus = sorted({text for row in rows for side in SIDES for text in texts_of(row, side)})
    own = {row["query"]: (texts_of(row, "positive") + texts_of(row, "negative"))[:positives] for row in rows}
    pairs = Dataset.from_list([{"query": q, "positive": text} for q, texts in own.items() for text in texts])
    model = SentenceTransformer(encoder, device="cpu")
    count = 5
    mined = mine_hard_negatives(
        pairs,
        model,
        anchor_column_name="query",
        positive_column_name="positive",
        cross_encoder=CrossEncoder(cross_encoder, device="cpu") if crossed else None,
        corpus=corpus,
        range_max=len(corpus),
        num_negatives=count,
        output_format="labeled-list",
        output_scores=False,
        verbose=False,
        **theirs,
    )
    passages = {text: {"docid": text, "title": "", "text": text} for text in corpus}
    wide = Dataset.from_list(
        [
            {
                "query_id": query,
                "query": query,
                "positive_passages": [passages[text] for text in texts],
                "negative_passages": [passages[text] for text in corpus if text not in texts],
            }
            for query, texts in own.items()
        ]
    )
    scores = arhn.Scores(cross_encoder if crossed else encoder, device="cpu")
    rule = arhn.PositiveAware(top_k=count, reference="min", min_negatives=0, **ours)
    scored = wide.map(scores, batched=True)
    known = {
        (row["query"], passage["text"]): score
        for row in scored
        for score, passage in zip(row["negative_scores"], row["negative_passages"], strict=True)
    }
    decided = scored.map(rule, batched=True)
    found = {}
    for row in decided:
        pairs_there = zip(row["negative_scores"], row["negative_passages"], strict=True)
        found[row["query"]] = [p["text"] for _, p in sorted(pairs_there, key=lambda pair: -pair[0])]
    expected = {}
    for row in mined:
        labels = next(value for name, value in row.items() if name in ("labels", "label", "scores"))
        texts = next(value for value in row.values() if isinstance(value, list) and isinstance(value[0], str))
        expected[row["query"]] = [text for text, label in zip(texts, labels, strict=True) if not label]
    # Rows without any negative are left out there.
    assert {query for query, texts in found.items() if texts} == {query for query, texts in expected.items() if texts}
    for query, texts in found.items():  # by their scores: what is nearly equal may be ordered either way
        ours_there, theirs_there = ([known[query, text] for text in some] for some in (texts, expected.get(query, [])))
        assert ours_there == pytest.approx(theirs_there, abs=1e-5)
    assert any(row["filtered_passages"] for row in decided)


def test_the_columns_are_the_agreed_ones():
    """Scores are doubles, whatever the precision of the model."""
    assert {f"{side}_scores" for side in (*SIDES, "filtered")} <= set(ALL_EVIDENCE_TYPES)
    assert str(ALL_EVIDENCE_TYPES["positive_scores"]) == "list<item: double>"
