"""Every trainer's format: what is in it, what is left out, and files that the loaders load."""

from __future__ import annotations

import csv
import errno
import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, NamedSplit, concatenate_datasets, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.cli import export_command
from arhn_datasets.errors import ConfigurationError, OutputError, SchemaError
from arhn_datasets.folder import parquet
from arhn_datasets.folder.reading import open_folder
from arhn_datasets.formats import writers
from arhn_datasets.formats.format import Options, known_formats, table_named, table_of
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.rows.records import DECISION_TYPE, PASSAGE_TYPE
from arhn_datasets.runs.refine import Input, Stages, refine
from tests.folder.test_evidence_table import in_other_buffers

FORMATS = tuple(name for name in known_formats() if name != "pylate")  # which needs scores
TABLES = tuple(name for name, format in known_formats().items() if len(format.tables) == 1)
texts = st.text("ab é", max_size=3)


def passages(least=0):
    """Lists of passages with an extra field, titles that are empty, null or there."""
    passage = st.fixed_dictionaries(
        {"docid": st.sampled_from("abcdef"), "title": st.none() | texts, "text": texts, "score": st.just(0.5)}
    )
    return st.lists(passage, min_size=least, max_size=4)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "query_id": st.sampled_from("qrs"),
            "query": texts,
            "positive_passages": passages(),
            "negative_passages": passages(),
            "filtered_passages": passages(),
            "status": st.sampled_from(["changed", "unchanged", "dropped", None]),
        }
    ),
    max_size=5,
)


def table_from(rows, *, wide=True):
    """Rows with types; with the columns of relabelling that count here, or merely canonical."""
    scored = pa.list_(pa.struct([*PASSAGE_TYPE, ("score", pa.float64())]))
    types = {"query_id": pa.string(), "query": pa.string()}
    types |= dict.fromkeys(["positive_passages", "negative_passages", "filtered_passages"], scored)
    decisions = [None if row["status"] is None else {"status": row["status"]} for row in rows]
    table = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    table = table.append_column("decision", pa.array(decisions, DECISION_TYPE))
    return table if wide else table.drop_columns(["filtered_passages", "decision"])


def joined(passage, separator=" "):
    """A passage as one text."""
    title, text = passage["title"] or "", passage["text"]
    return f"{title}{separator}{text}" if title and text else title or text


def naive(format, rows, options):  # noqa: C901
    """The same in plain Python: the rows, and the reasons of what is left out."""
    found, left_out = [], Counter()
    for row in rows:
        if row.get("status") == "dropped":
            left_out["dropped by a guard"] += 1
            continue
        positives, negatives, filtered = (
            [joined(passage, options.separator) for passage in row[f"{side}_passages"]]
            for side in ("positive", "negative", "filtered")
        )
        pair = {"anchor": row["query"]}
        if format == "labeled-pair":
            labels = [(text, 1) for text in positives] + [(text, 0) for text in negatives]
            found += [{"query": row["query"], "passage": text, "label": label} for text, label in labels]
            left_out["no passage"] += not labels
        elif not positives:
            left_out["no positive"] += 1
        elif format == "pair":
            found += [{**pair, "positive": text} for text in positives]
        elif format == "labeled-list":
            between = filtered if options.grades else []
            docs = [*positives, *between, *negatives]
            labels = [2 if options.grades else 1] * len(positives) + [1] * len(between) + [0] * len(negatives)
            left_out["no negative"] += len(docs) == len(positives)
            found += [{"query": row["query"], "docs": docs, "labels": labels}] if len(docs) > len(positives) else []
        elif not negatives:
            left_out["no negative"] += 1
        elif format == "triplet":
            found += [{**pair, "positive": one, "negative": other} for one in positives for other in negatives]
        elif format == "n-tuple":
            if options.short == "drop" and len(negatives) < options.negatives:
                left_out[f"fewer than {options.negatives} negatives"] += 1
                continue
            chosen = {f"negative_{i + 1}": negatives[i % len(negatives)] for i in range(options.negatives)}
            found += [{**pair, "positive": text, **chosen} for text in positives]
        elif format == "pylate":
            if options.short == "drop" and len(negatives) < options.negatives:
                left_out[f"fewer than {options.negatives} negatives"] += 1
                continue
            chosen = [negatives[i % len(negatives)] for i in range(options.negatives)]
            scores = [0.5] * (1 + options.negatives)
            found += [{"query": row["query"], "documents": [text, *chosen], "scores": scores} for text in positives]
        elif format == "nemo":
            common = {"question_id": row["query_id"], "query": row["query"]}
            found += [{**common, "pos_doc": text, "neg_doc": negatives} for text in positives]
        elif format == "ms-swift":
            question = {"messages": [{"role": "user", "content": row["query"]}]}
            replies = [[{"role": "assistant", "content": text}] for text in (*positives, *negatives)]
            others = replies[len(positives) :]
            found += [
                {**question, "positive_messages": [one], "negative_messages": others}
                for one in replies[: len(positives)]
            ]
        elif format == "flagembedding":
            found.append({"query": row["query"], "pos": positives, "neg": negatives})
        else:
            kept = {
                side: [{**{k: p[k] for k in ("docid", "text")}, "title": p["title"] or ""} for p in row[side]]
                for side in ("positive_passages", "negative_passages")
            }
            found.append({"query_id": row["query_id"], "query": row["query"], **kept})
    return found, +left_out


@settings(max_examples=300, deadline=None)
@given(
    ROWS,
    st.sampled_from(TABLES),
    st.sampled_from(["plain", "sliced", "chunked", "large"]),
    st.booleans(),
    st.builds(
        Options,
        negatives=st.integers(1, 5),
        short=st.sampled_from(["repeat", "drop"]),
        grades=st.booleans(),
        separator=st.sampled_from([" ", "\n"]),
    ),
)
def test_formats_are_what_plain_python_says(rows, format, layout, wide, options):
    """Any rows in any memory layout, wide or canonical: the same rows, and neither a null nor an empty list."""
    if not wide:
        rows = [{**row, "filtered_passages": [], "status": None} for row in rows]
    table, left_out = table_of(format, in_other_buffers(table_from(rows, wide=wide), layout), options)
    expected, reasons = naive(format, rows, options)
    assert table.schema.equals(table_named(format).schema(options))
    assert table.to_pylist() == expected
    assert left_out == reasons
    for column in table.columns:
        assert column.null_count == 0
        if pa.types.is_list(column.type) and len(column):
            assert pc.min(pc.list_value_length(column)).as_py() > 0
            assert pc.list_flatten(column).null_count == 0


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from(["plain", "sliced", "chunked", "large"]))
def test_the_tables_of_retrieval_hold_every_passage_and_judgement(rows, layout):
    """Corpus: all passages; queries: rows with a positive; qrels: 2 for positives and 1 for filtered passages."""
    table = in_other_buffers(table_from(rows), layout)
    rows = [row for row in rows if row["status"] != "dropped"]
    corpus, queries, qrels = (table_of(name, table)[0].to_pylist() for name in ("corpus", "queries", "qrels"))
    sides = ("positive_passages", "negative_passages", "filtered_passages")
    assert corpus == [
        {"_id": p["docid"], "title": p["title"] or "", "text": p["text"]}
        for row in rows
        for side in sides
        for p in row[side]
    ]
    judged = [row for row in rows if row["positive_passages"]]
    assert queries == [{"_id": row["query_id"], "text": row["query"]} for row in judged]
    assert qrels == [
        {"query-id": row["query_id"], "corpus-id": passage["docid"], "score": score}
        for row in judged
        for side, score in (("positive_passages", 2), ("filtered_passages", 1))
        for passage in row[side]
    ]


def canonical(number, positives, negatives, query_id=None):
    """A row whose passages are named by one letter each."""
    sides = {"positive_passages": positives, "negative_passages": negatives}
    row = {"query_id": query_id or f"q{number}", "query": f"query {query_id or number}"}
    return row | {s: [{"docid": d, "title": "", "text": f"text of {d}"} for d in docs] for s, docs in sides.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, sample):
    """A refined folder of two splits with dropped rows, and its publication."""
    root = tmp_path_factory.mktemp("exports")
    splits = {"train": Dataset.from_list(sample[:50]), "test": Dataset.from_list(sample[50:])}
    DatasetDict(splits).save_to_disk(str(root / "source"))
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical),
        ranks=arhn.Ranks(annotator=lexical),
        relabel=arhn.Relabel(min_negatives=4, on_shortage="drop"),
    )
    refine(Input(name=str(root / "source")), root / "refined", stages)
    build_publication(open_folder(root / "refined"), root / "published")
    return root


def content(folder):
    """Every file but the README, whose entries are new each time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_source_gives_the_same_files(folders, tmp_path):
    """A refined folder, a published one, and a DatasetDict of wide rows, in every format, with grades."""
    folder = open_folder(folders / "refined")
    dataset = DatasetDict({split: Dataset.from_list(list(folder.rows(split))) for split in folder.splits})
    reports = [
        arhn.export(source, FORMATS, tmp_path / name, grades=True)
        for name, source in (("a", folders / "refined"), ("b", str(folders / "published")), ("c", dataset))
    ]
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")
    for report in reports:
        assert {path: size for path, size in report.files} == {
            path: len(data) for path, data in content(report.path).items()
        }
    dropped = sum(row["decision"]["status"] == "dropped" for row in folder.rows())
    assert [report.formats["pair"].left_out for report in reports] == [{}, {}, {"dropped by a guard": dropped}]
    bare = DatasetDict(
        {
            split: rows.filter(arhn.is_kept).select_columns(
                ["query_id", "query", "positive_passages", "negative_passages"]
            )
            for split, rows in dataset.items()
        }
    )
    arhn.export(bare, ["triplet", "tevatron"], tmp_path / "d")
    assert content(tmp_path / "d").items() <= content(tmp_path / "a").items()


def test_load_dataset_loads_every_configuration(folders, tmp_path):
    """From one folder, each with its own columns, features and rows; MTEB's is a repository of its own."""
    report = arhn.export(folders / "refined", FORMATS, tmp_path / "out")
    rows = open_folder(folders / "refined")
    lines = {"flagembedding", "ms-swift", "nemo"}
    for format in set(TABLES) - {*lines, "pylate"}:
        loaded = load_dataset(str(tmp_path / "out"), format)
        assert loaded["train"].features == Features.from_arrow_schema(table_named(format).schema())
        for split in ("train", "test"):
            tables = [table_of(format, table)[0] for table in rows.tables(split, part="data")]
            assert loaded[split].to_list() == pa.concat_tables(tables).to_pylist()
            assert report.formats[format].rows[split] == len(loaded[split])
    for format in lines:
        files = [str(path) for path in sorted((tmp_path / "out" / format).rglob("*.jsonl")) if "train" in str(path)]
        loaded = load_dataset("json", data_files=files, split="train").to_list()
        tables = [table_of(format, table)[0] for table in rows.tables("train", part="data")]
        expected = pa.concat_tables(tables).to_pylist()
        assert sorted(map(json.dumps, loaded)) == sorted(map(json.dumps, expected))
    corpus, queries, qrels = (
        load_dataset(str(tmp_path / "out/mteb"), name) for name in ("corpus", "queries", "default")
    )
    assert set(qrels) == {"train", "test"}
    assert qrels["train"].features["score"].dtype == "int32"
    ids = corpus["corpus"]["_id"][:]
    assert len(ids) == len(set(ids))
    for split in qrels.values():
        assert set(split["corpus-id"]) <= set(ids)
        assert set(split["query-id"]) <= set(queries["queries"]["_id"])
    assert {1, 2} == set(qrels["train"]["score"]) | set(qrels["test"]["score"])


def test_one_split_alone(folders, tmp_path):
    """Only its files; an unknown one is told."""
    report = arhn.export(folders / "refined", "pair", tmp_path / "out", split="test")
    assert [path for path, _ in report.files] == ["pair/test-00000-of-00001.parquet"]
    with pytest.raises(ConfigurationError, match=r"no split 'dev'; its splits are \['train', 'test'\]"):
        arhn.export(folders / "refined", "pair", tmp_path / "more", split="dev")
    rows = Dataset.from_list([canonical(0, "a", "b")])
    assert arhn.export(rows, "pair", tmp_path / "named", split="dev").formats["pair"].rows == {"dev": 1}


def test_a_dataset_with_a_split_name_has_no_other_split(tmp_path):
    """Rows of one split are not written under the name of another; a slice of a split goes by its name."""
    rows = Dataset.from_list([canonical(0, "a", "b")])
    for name in ("train", "train[:10%]"):
        named = Dataset(rows.data, split=NamedSplit(name))
        out = tmp_path / f"named {len(name)}"
        assert arhn.export(named, "pair", out, split="train").formats["pair"].rows == {"train": 1}
        with pytest.raises(ConfigurationError, match=r"The dataset has no split 'nosuch'; its splits are \['train'\]"):
            arhn.export(named, "pair", tmp_path / "other", split="nosuch")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("format", ["labeled-list", "pair", "beir"])
def test_columns_left_from_before_a_revert_are_refused(sample, tmp_path, format):
    """One text would be a positive and a negative: what was found, and advice that works."""
    lexical = arhn.Lexical()
    rows = Dataset.from_list(sample[:12]).map(arhn.Snippets(annotator=lexical)).map(arhn.Ranks(annotator=lexical))
    rows = rows.map(arhn.relabel, batched=True)
    left = rows.map(lambda batch: arhn.revert(batch), batched=True)
    said = r"'negative_origins' has \d+ values for \d+ passages in 'negative_passages' \(query '"
    with pytest.raises(SchemaError, match=said) as raised:
        arhn.export(left, format, tmp_path / "left", grades=True)
    assert "ds.remove_columns(arhn.revert.dropped(ds.column_names))" in str(raised.value)
    assert not (tmp_path / "left").exists()
    whole = left.remove_columns(arhn.revert.dropped(left.column_names))
    for name, source in {"whole": whole, "mapped": rows.map(arhn.revert, batched=True)}.items():
        arhn.export(source, "labeled-list", tmp_path / name, grades=True)
    assert content(tmp_path / "whole") == content(tmp_path / "mapped")
    fewer = rows.map(lambda row: {"negative_passages": row["negative_passages"][:2]})
    assert arhn.export(fewer, "pair", tmp_path / "fewer").formats["pair"].rows["train"] > len(rows)
    mixed = concatenate_datasets([rows, whole])  # where origins are null, nothing was relabelled
    assert arhn.export(mixed, "pair", tmp_path / "mixed").formats["pair"].rows["train"] > len(mixed)


def test_json_lines_are_read_by_any_reader(tmp_path):
    """UTF-8 as it is, one object a line, whatever line separators the text holds."""
    row = canonical(0, "a", "b")
    row["query"] = "wie heißt\u2028das? \U0001f600"
    arhn.export(Dataset.from_list([row, canonical(1, "a", ""), canonical(2, "", "b")]), "flagembedding", tmp_path / "o")
    text = (tmp_path / "o/flagembedding/train.jsonl").read_bytes().decode()
    assert "heißt" in text
    assert [json.loads(line) for line in text.split("\n")[:-1]] == [
        {"query": row["query"], "pos": ["text of a"], "neg": ["text of b"]}
    ]


def test_beir_files_are_those_of_beir(tmp_path):
    """Two splits share corpus and queries, and the qrels of each have a header and integer grades."""
    rows = [canonical(0, "ab", "cd"), canonical(1, "c", "ae"), canonical(2, "a", "b")]
    data = DatasetDict(train=Dataset.from_list(rows[:2]), test=Dataset.from_list(rows[2:]))
    arhn.export(data, "beir", tmp_path / "out")
    folder = tmp_path / "out" / "beir"
    corpus, queries = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries")
    )
    assert [(one["_id"], one["title"], one["text"]) for one in corpus] == [(d, "", f"text of {d}") for d in "abcde"]
    assert queries == [{"_id": f"q{i}", "text": f"query {i}"} for i in range(3)]
    with (folder / "qrels" / "train.tsv").open(newline="") as file:
        lines = list(csv.reader(file, delimiter="\t"))
    assert lines == [["query-id", "corpus-id", "score"], ["q0", "a", "2"], ["q0", "b", "2"], ["q1", "c", "2"]]
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("batch", [1, 1000])
def test_the_same_query_in_two_rows_is_one_query(tmp_path, monkeypatch, batch):
    """It stands once in the queries, and a passage that both rows judge has the higher grade."""
    monkeypatch.setattr(writers, "BATCH_ROWS", batch)
    first, second = canonical(0, "a", "b", "same"), canonical(1, "bc", "d", "same")
    table = pa.Table.from_pylist(
        [{**first, "filtered_passages": second["positive_passages"]}, {**second, "filtered_passages": []}]
    )
    arhn.export(Dataset(table), "mteb", tmp_path / "out")
    queries, qrels = (load_dataset(str(tmp_path / "out/mteb"), name) for name in ("queries", "default"))
    assert queries["queries"].to_list() == [{"_id": "same", "text": "query same"}]
    assert [(row["corpus-id"], row["score"]) for row in qrels["train"]] == [("a", 2), ("b", 2), ("c", 2)]


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_large_corpus_has_each_docid_once(tmp_path, monkeypatch, batch):
    """Over any number of batches, in the order of the first appearance."""
    monkeypatch.setattr(writers, "BATCH_ROWS", batch)
    docs = [[f"d{(7 * i + j * j) % 60}" for j in range(4)] for i in range(40)]
    arhn.export(Dataset.from_list([canonical(i, d[:1], d[1:]) for i, d in enumerate(docs)]), "mteb", tmp_path / "out")
    corpus = pq.read_table(next((tmp_path / "out/mteb/corpus").iterdir()))
    assert corpus.column("_id").to_pylist() == list(dict.fromkeys(d for row in docs for d in row))


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("format", ["beir", "mteb"])
def test_an_id_for_two_texts_is_refused(tmp_path, monkeypatch, batch, format):
    """The message names the id and the beginning of both, also when they are in different batches."""
    monkeypatch.setattr(writers, "BATCH_ROWS", batch)
    rows = [canonical(0, "a", "b"), canonical(1, "c", "d"), canonical(2, "e", "a")]
    rows[2]["negative_passages"][0]["title"] = "Another title"
    with pytest.raises(SchemaError, match="docid 'a' stands for two texts, 'text of a' and 'Another title text of a'"):
        arhn.export(Dataset.from_list(rows), format, tmp_path / "out")
    rows = [canonical(0, "a", "b"), {**canonical(1, "c", "d"), "query_id": "q0"}]
    with pytest.raises(SchemaError, match="query_id 'q0' stands for two texts, 'query 0' and 'query 1'"):
        arhn.export(Dataset.from_list(rows), format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    rows[1]["query_id"] = "q1"
    rows[1]["positive_passages"][0]["docid"] = None
    with pytest.raises(SchemaError, match="A passage has no docid"):
        arhn.export(Dataset.from_list(rows), format, tmp_path / "out")


def test_large_exports_are_sharded(folders, tmp_path, monkeypatch):
    """Shards are named as on the Hub, none is larger than the limit, and they hold all rows in order."""
    arhn.export(folders / "refined", "triplet", tmp_path / "whole", split="train")
    monkeypatch.setattr(parquet, "GROUP_BYTES", 15_000)
    monkeypatch.setattr(parquet, "SHARD_BYTES", 35_000)
    monkeypatch.setattr(writers, "EXPANDED_BYTES", 30_000)
    report = arhn.export(folders / "refined", "triplet", tmp_path / "out", split="train")
    names = [path for path, _ in report.files]
    assert len(names) > 1
    assert names == [f"triplet/train-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))]
    assert max(size for _, size in report.files) <= 35_000
    whole, shards = (
        load_dataset(str(tmp_path / name), "triplet", split="train").to_list() for name in ("whole", "out")
    )
    assert shards == whole


def test_a_split_without_rows_is_an_empty_file(tmp_path):
    """It has its columns, and load_dataset knows them."""
    data = DatasetDict(train=Dataset.from_list([canonical(0, "a", "b")]))
    data["test"] = data["train"].select([])
    arhn.export(data, ["pair", "mteb"], tmp_path / "out")
    table = pq.read_table(tmp_path / "out/pair/test-00000-of-00001.parquet")
    assert (table.num_rows, table.column_names) == (0, ["anchor", "positive"])
    assert pq.read_table(tmp_path / "out/mteb/qrels/test-00000-of-00001.parquet").num_rows == 0


def test_wrong_arguments_are_told_before_anything_is_written(folders, tmp_path):
    """Formats, options, sources and outputs, each with what was expected."""
    rows = Dataset.from_list([canonical(0, "a", "b")])
    for arguments, options, error, message in (
        ((rows, "colbert"), {}, ConfigurationError, "'colbert'.*expected some of triplet"),
        ((rows, []), {}, ConfigurationError, "not named"),
        ((rows, "n-tuple"), {"negatives": 0}, ConfigurationError, "a number from 1"),
        ((rows, "n-tuple"), {"short": "pad"}, ConfigurationError, "one of repeat, drop"),
        ((rows.to_iterable_dataset(), "pair"), {}, ConfigurationError, "without streaming"),
        ((rows.remove_columns("query"), "pair"), {}, SchemaError, "arhn.adapt_dataset"),
        ((rows.map(lambda _: {"negative_passages": "x"}), "triplet"), {}, SchemaError, "a list was expected"),
        ((tmp_path / "absent", "pair"), {}, ConfigurationError, "no such folder"),
    ):
        with pytest.raises(error, match=message):
            arhn.export(*arguments, tmp_path / "out", **options)
    with pytest.raises(ConfigurationError, match="a table of one of"):
        table_of("mteb", rows.with_format("arrow")[:])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="not empty; found mine. Nothing was touched"):
        arhn.export(rows, "pair", tmp_path / "out")
    with pytest.raises(OutputError, match="is a file"):
        arhn.export(rows, "pair", tmp_path / "out" / "mine")


def test_a_failed_export_leaves_nothing(folders, tmp_path, monkeypatch):
    """A full disk is told, and an empty folder that was there stays empty."""
    (tmp_path / "out").mkdir()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(parquet.Shards, "close", full)
    with pytest.raises(OutputError, match="no space left on device. Free some space"):
        arhn.export(folders / "refined", "pair", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_the_command_prints_what_it_wrote(folders, tmp_path, capsys):
    """A table with the rows that were left out, exit code 0; into an empty folder as well."""
    (tmp_path / "out").mkdir()
    formats = ["--format", "n-tuple", "--format", "beir"]
    more = ["--negatives", "5", "--short", "drop", "--split", "train", "--output", str(tmp_path / "out")]
    assert export_command([str(folders / "refined"), *formats, *more]) == 0
    out = capsys.readouterr().out
    assert "rows left out" in out
    assert "fewer than 5 negatives" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "beir", "n-tuple"]
    assert len(load_dataset(str(tmp_path / "out"), "n-tuple", split="train").column_names) == 7


def test_the_command_says_what_is_wrong(folders, tmp_path, capsys):
    """Exit code 2 for what cannot be read, 1 for what cannot be written or holds no row."""
    where = str(folders / "refined")
    assert export_command([str(tmp_path), "--format", "pair", "--output", str(tmp_path / "o")]) == 2
    assert "no run.json" in capsys.readouterr().err
    assert export_command([where, "--format", "pair", "--output", where]) == 1
    assert "not empty" in capsys.readouterr().err
    many = ["--format", "n-tuple", "--negatives", "99", "--short", "drop"]
    assert export_command([where, *many, "--output", str(tmp_path / "many")]) == 1
    assert "no row could be written as n-tuple" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        export_command([where, "--format", "colbert", "--output", str(tmp_path / "o")])
    assert ended.value.code == 2
