"""Exported files in the loading code of Tevatron and FlagEmbedding, where installed, and by these loaders' rules."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_dataset

import arhn_datasets as arhn
from arhn_datasets.formats.exporting import export
from arhn_datasets.runs.refine import Input, Stages, refine
from tests.conftest import SAMPLE

TEVATRON_COLUMNS = ["query_id", "query", "positive_passages", "negative_passages"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The sample after filtering without a guard, so that some rows have no negatives left, in both formats."""
    root = tmp_path_factory.mktemp("exported")
    stages = Stages(
        snippets=arhn.Snippets(annotator=arhn.Lexical()),
        ranks=arhn.Ranks(annotator=arhn.Lexical()),
        relabel=arhn.Relabel(on_shortage="allow"),
    )
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    rows = [{name: value for name, value in row.items() if name != "subset"} for row in rows]  # for one file
    for row in rows[:4]:  # every negative repeats the positive, and becomes one
        row["negative_passages"] = [
            {**row["positive_passages"][0], "docid": f"{row['query_id']}-again-{i}"} for i in range(2)
        ]
    source = root / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = refine(Input(name=str(source)), root / "refined", stages)
    assert any(not row["negative_passages"] for row in done.rows())
    export(done.path, ["tevatron", "flagembedding"], root / "out")
    return SimpleNamespace(rows=list(done.rows()), folder=root / "out", lines=root / "out/flagembedding/train.jsonl")


# The rules, in our words. Both trainers draw passages while they train, so a row that breaks a rule ends a run
# hours after it began.


def flagembedding_row(row, group_size=8, draw=random.Random(0)):  # noqa: B008
    """The texts of one training step as FlagEmbedding takes them: one positive, ``group_size - 1`` negatives."""
    if not isinstance(row["pos"], list) or not isinstance(row["neg"], list):
        raise TypeError("pos and neg are lists; a string would be read letter by letter")
    positive = row["pos"][draw.choice(range(len(row["pos"])))]
    wanted = group_size - 1
    places = list(range(len(row["neg"])))
    if len(places) < wanted:
        places *= math.ceil(wanted / len(places))
    return row["query"], [positive, *(row["neg"][i] for i in draw.sample(places, wanted))]


def tevatron_row(row, group_size=8, draw=random.Random(0), separator=" "):  # noqa: B008
    """The texts of one training step as Tevatron takes them; the title goes in front of the text."""
    texts = {
        side: [
            passage["title"] + separator + passage["text"] if "title" in passage else passage["text"]
            for passage in row[f"{side}_passages"]
        ]
        for side in ("positive", "negative")
    }
    positive = texts["positive"][draw.randrange(1000) % len(texts["positive"])]
    wanted = group_size - 1
    if len(texts["negative"]) < wanted:
        negatives = draw.choices(texts["negative"], k=wanted)
    else:
        negatives = draw.sample(texts["negative"], wanted)
    return row["query"], [positive, *negatives]


GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}
PASSAGE = {"docid": "d", "title": "", "text": "t"}
WIDE = {"query_id": "1", "query": "q", "positive_passages": [PASSAGE], "negative_passages": [PASSAGE]}


@pytest.mark.parametrize(
    ("loader", "row", "error"),
    [
        (flagembedding_row, {**GOOD, "neg": []}, ZeroDivisionError),
        (flagembedding_row, {**GOOD, "pos": []}, IndexError),
        (flagembedding_row, {**GOOD, "pos": "p"}, TypeError),
        (tevatron_row, {**WIDE, "negative_passages": []}, IndexError),
        (tevatron_row, {**WIDE, "positive_passages": []}, ZeroDivisionError),
        (tevatron_row, {**WIDE, "positive_passages": [{**PASSAGE, "title": None}]}, TypeError),
    ],
)
def test_the_rules_refuse_what_crashes_the_trainers(loader, row, error):
    """An empty list, a string for a list, a null title: these tests would see each of them."""
    with pytest.raises(error):
        loader(row)
    assert loader(GOOD if loader is flagembedding_row else WIDE)


def test_every_exported_line_trains_in_flagembedding(exported):
    """By its rules, whatever the group size; the lines have these three keys and nothing else."""
    lines = [json.loads(line) for line in exported.lines.read_text(encoding="utf-8").splitlines()]
    usable = [row for row in exported.rows if row["positive_passages"] and row["negative_passages"]]
    assert 0 < len(lines) == len(usable) < len(exported.rows)
    for line, row in zip(lines, usable, strict=True):
        assert list(line) == ["query", "pos", "neg"]
        assert len(line["pos"]) == len(row["positive_passages"])
        assert len(line["neg"]) == len(row["negative_passages"])
        for size in (2, 8, 40):
            query, passages = flagembedding_row(line, size)
            assert query == row["query"]
            assert len(passages) == size
            assert all(isinstance(passage, str) and passage for passage in passages)


def test_every_exported_row_trains_in_tevatron(exported):
    """By its rules; exactly the four columns, since some loaders know the format by them."""
    rows = load_dataset(str(exported.folder), "tevatron", split="train")
    assert rows.column_names == TEVATRON_COLUMNS
    assert 0 < len(rows) < len(exported.rows)
    for row in rows:
        for size in (2, 8, 40):
            query, passages = tevatron_row(row, size)
            assert query == row["query"]
            assert len(passages) == size


# The libraries themselves. Neither is a dependency, and both pin much that is not needed to load a file:
# pip install --no-deps tevatron FlagEmbedding peft ir-datasets sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of words."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        SAMPLE.read_text(encoding="utf-8").splitlines(), trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def test_flagembedding_itself_loads_the_file(exported, tokenizer, tmp_path):
    """Its dataset class gives every row, and its collator makes batches of them."""
    embedder = pytest.importorskip("FlagEmbedding.abc.finetune.embedder")
    arguments = SimpleNamespace(
        train_data=[str(exported.lines)],
        cache_path=str(tmp_path),
        max_example_num_per_dataset=1000,
        knowledge_distillation=False,
        train_group_size=8,
        shuffle_ratio=0.0,
        query_instruction_for_retrieval=None,
        query_instruction_format="{}{}",
        passage_instruction_for_retrieval=None,
        passage_instruction_format="{}{}",
    )
    dataset = embedder.AbsEmbedderTrainDataset(arguments, tokenizer)
    rows = [dataset[i] for i in range(len(dataset))]
    assert len(rows) == len(exported.lines.read_text(encoding="utf-8").splitlines())
    assert all(len(passages) == 8 for _, passages, _ in rows)
    batch = embedder.AbsEmbedderCollator(tokenizer, return_tensors="pt")(rows[:4])
    assert len(batch["queries"]["input_ids"]) == 4
    assert len(batch["passages"]["input_ids"]) == 32


def test_tevatron_itself_loads_the_rows(exported, tokenizer):
    """Its preprocessor and its dataset class give every row."""
    preprocessing = pytest.importorskip("tevatron.datasets.preprocessor")
    rows = load_dataset(str(exported.folder), "tevatron", split="train")
    encoded = rows.map(preprocessing.TrainPreProcessor(tokenizer), remove_columns=rows.column_names)
    assert encoded.column_names == ["query", "positives", "negatives"]
    assert [len(row["negatives"]) for row in encoded] == [len(row["negative_passages"]) for row in rows]
    assert all(row["query"] and row["positives"] and row["negatives"] for row in encoded)


def test_rows_of_a_dataset_are_exported_alike(exported, tmp_path):
    """The same files come from the folder and from its rows as a Dataset."""
    rows = Dataset.from_list([{column: row[column] for column in TEVATRON_COLUMNS} for row in exported.rows])
    export(rows, "flagembedding", tmp_path / "out")
    assert (tmp_path / "out/flagembedding/train.jsonl").read_bytes() == exported.lines.read_bytes()
