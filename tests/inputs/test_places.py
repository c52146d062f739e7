"""Where an input can be: compressed files, patterns, several places, folders of any kind, pipes, paths of the Hub."""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.errors import ConfigurationError, InputError, SchemaError
from arhn_datasets.inputs.files import piped
from arhn_datasets.inputs.sources import Input, load_input, stamp_of
from arhn_datasets.inputs.values import json_type
from arhn_datasets.runs.refine import refine
from tests.runs.test_refine import stages


def row(name):
    """A row of FlagEmbedding's form."""
    return {"query": name, "pos": [f"{name} is here"], "neg": ["something else"]}


def write(path, *rows):
    """Rows as JSON lines, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(one) + "\n" for one in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def queries(*names, **options):
    """The queries of each split of an input."""
    splits, _ = load_input(Input(name=str(names[0]), more=tuple(map(str, names[1:])), **options), undo=arhn.revert)
    return {split: rows["query"][:] for split, rows in splits.items()}


def test_every_file_of_a_folder_is_read_or_named(tmp_path, caplog):
    """Other names and suffixes, sub-folders, compressed ones; what is not read is in a warning and in the source."""
    write(tmp_path / "in" / "hn_train.jsonl", row("a"))
    write(tmp_path / "in" / "simcse.jsonl", {**row("b"), "category": "art"})
    write(tmp_path / "in" / "nq" / "part.jsonl.gz", row("c"))
    write(tmp_path / "in" / "nq" / "dev.ndjson", row("d"))
    Dataset.from_list([row("e")]).to_parquet(str(tmp_path / "in" / "z.parquet"))
    for name in ("README.md", ".hidden.jsonl", "notes.xlsx", "old/rows.jsonl.zip", "LICENSE"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("x", encoding="utf-8")
    assert queries(tmp_path / "in") == {"train": ["a", "c", "b", "e"], "validation": ["d"]}
    assert (
        "2 files of the input hold no rows that can be read and are left out: notes.xlsx, old/rows.jsonl.zip"
        in caplog.text
    )
    _, told = load_input(Input(name=str(tmp_path / "in")), undo=arhn.revert)
    assert told["left_out"] == ["notes.xlsx", "old/rows.jsonl.zip"]
    assert told["rows"] == {"train": 4, "validation": 1}


def test_linked_files_and_folders_are_read_once(tmp_path):
    """Also folders that lie elsewhere, and one that leads back to where it is."""
    write(tmp_path / "elsewhere" / "c.jsonl", row("c"))
    write(tmp_path / "one.jsonl", row("b"))
    write(tmp_path / "in" / "a.jsonl", row("a"))
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "one.jsonl")
    for name, target in {"d": "elsewhere", "e": "elsewhere", "loop": "in"}.items():
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    assert queries(tmp_path / "in") == {"train": ["a", "b", "c"]}
    before = stamp_of(Input(name=str(tmp_path / "in")))
    write(tmp_path / "elsewhere" / "c.jsonl", row("changed"))
    assert stamp_of(Input(name=str(tmp_path / "in"))) != before


def test_an_output_in_its_input_is_refused(tmp_path):
    """The next run would read it as rows; beside the files it can be, where these are named."""
    file = write(tmp_path / "in" / "a.jsonl", row("a"))
    with pytest.raises(ConfigurationError, match="lies in the input.*Name a folder outside of it"):
        refine(Input(name=str(tmp_path / "in")), tmp_path / "in" / "x" / "out", stages())
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jsonl"]
    assert refine(Input(name=str(file)), tmp_path / "in" / "out", stages()).report.total.rows == 1


def test_patterns_and_several_places(tmp_path):
    """Files that fit a pattern, files and folders beside each other, each once; a single file is all of train."""
    one, two = write(tmp_path / "a" / "x1.jsonl", row("1")), write(tmp_path / "a" / "x2.jsonl", row("2"))
    dev = write(tmp_path / "b" / "dev.jsonl", row("3"))
    assert queries(tmp_path / "a" / "x*.jsonl") == {"train": ["1", "2"]}
    assert queries(tmp_path / "**" / "*.jsonl") == {"train": ["1", "2"], "validation": ["3"]}
    assert queries(two, one) == {"train": ["2", "1"]}
    assert queries(tmp_path / "a", dev, one) == {"train": ["1", "2"], "validation": ["3"]}
    assert queries(dev) == {"train": ["3"]}
    source = Input(name=str(one), more=(str(tmp_path / "b"),))
    before = stamp_of(source)
    write(dev, row("4"))
    assert stamp_of(source) != before
    assert load_input(source, undo=arhn.revert)[1]["name"] == "x1.jsonl, b"
    with pytest.raises(InputError, match=r"There is nothing at .*y\*\.jsonl"):
        queries(one, tmp_path / "y*.jsonl")


def test_configurations_of_a_folder(tmp_path):
    """Those that the README names: the default one, another by its name, and a folder that has none."""
    folder = tmp_path / "in"
    for name in ("main/train-00000-of-00001", "main/odd-00000-of-00001", "other/x"):
        write(folder / f"{name}.jsonl", row(name[:6]))
    write(folder / "stray.jsonl", row("stray"))
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: odd\n    path:\n    - main/odd-*\n- config_name: more\n  data_files: other/*.jsonl\n---\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    assert queries(folder) == {"train": ["main/t"], "odd": ["main/o"]}
    assert queries(folder, config="more") == {"train": ["other/"]}
    assert load_input(Input(name=str(folder)), undo=arhn.revert)[1]["left_out"] == ["stray.jsonl"]
    with pytest.raises(
        ConfigurationError, match=r"no configuration 'third': its README.md names \['default', 'more'\]. Name"
    ):
        queries(folder, config="third")
    (folder / "README.md").write_text(card.replace("config_name: default", "config_name: first"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="several configurations"):
        queries(folder)
    (folder / "README.md").write_text(card.replace("main/train", "gone/train"), encoding="utf-8")
    with pytest.raises(InputError, match="names files of the split train that are not there"):
        queries(folder)
    with pytest.raises(ConfigurationError, match=r"no configuration 'x'.*Leave out --config"):
        queries(folder / "main", config="x")


def test_a_pipe_is_a_file_named_by_its_content(tmp_path, monkeypatch, capsys):
    """JSON lines, also compressed, and CSV; the same rows again are the same file, so that a run can go on."""
    data = write(tmp_path / "x.jsonl", row("a")).read_bytes()
    found = []
    for content in (data, gzip.compress(data, mtime=0), b"query,positive,negative\na,b,c\n", data):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        found.append((piped(), (path := piped_again(content, monkeypatch)).stat().st_mtime_ns))
        assert queries(path) == {"train": ["a"]}
    assert found[0] == found[3]
    assert [path.name.partition(".")[2] for path, _ in found] == ["jsonl", "jsonl.gz", "csv", "jsonl"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert cli.refine_command(["-", "--annotator", "lexical", "--output", str(tmp_path / "out")]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["source"]["rows"] == {"train": 1}
    assert run["source"]["name"].startswith("stdin-")
    capsys.readouterr()


def piped_again(content, monkeypatch):
    """The file of the same content once more."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return piped()


def beir(folder, **further):
    """A folder in BEIR's form, with whatever further files."""
    write(folder / "corpus.jsonl", *({"_id": f"d{at}", "title": "", "text": f"text {at}"} for at in range(4)))
    write(folder / "queries.jsonl", {"_id": "q1", "text": "one"}, {"_id": "007", "text": "seven"})
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n007\td1\t2\n", encoding="utf-8")
    for name, text in further.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_of_beir_is_put_together(tmp_path):
    """A split for each file of qrels; the negatives are those of a run, or of a file of negatives."""
    run = "query-id\tcorpus-id\tscore\nq1\td0\t3\nq1\td2\t2\nq1\td3\t1\n007\td1\t9\n007\td0\t8\n"
    splits, told = load_input(Input(name=str(beir(tmp_path / "a", run__tsv=run, notes__txt="x"))), undo=arhn.revert)
    assert {split: rows["query_id"][:] for split, rows in splits.items()} == {"train": ["q1"], "test": ["007"]}
    assert [one["docid"] for one in splits["train"][0]["negative_passages"]] == ["d2", "d3"]
    assert told["left_out"] == ["notes.txt"]
    again = load_input(Input(name=str(tmp_path / "a")), undo=arhn.revert)[1]
    assert again == told
    negatives = '{"query-id": "q1", "corpus-id": "d3"}\n{"query-id": "007", "corpus-id": "d2"}\n'
    splits, _ = load_input(Input(name=str(beir(tmp_path / "b", negatives__jsonl=negatives))), undo=arhn.revert)
    assert [one["docid"] for one in splits["test"][0]["negative_passages"]] == ["d2"]
    with pytest.raises(InputError, match=r"no hard negatives. Put one file .* run.tsv"):
        load_input(Input(name=str(beir(tmp_path / "c"))), undo=arhn.revert)


def test_grades_and_bad_rows_of_a_folder_of_beir(tmp_path):
    """The threshold says which grades are positive; a bad row of a split is refused or set aside."""
    negatives = '{"query-id": "q1", "corpus-id": "d2"}\n{"query-id": "007", "corpus-id": "d1"}\n'
    folder = beir(tmp_path / "a", negatives__jsonl=negatives)
    qrels = "query-id\tcorpus-id\tscore\nq1\td0\t2\nq1\td2\t1\n"
    (folder / "qrels" / "train.tsv").write_text(qrels, encoding="utf-8")
    bad, source = [], Input(name=str(folder), label_threshold=2)
    splits, told = load_input(source, undo=arhn.revert, on_bad_row=bad.append)
    assert {split: rows["query_id"][:] for split, rows in splits.items()} == {"train": ["q1"], "test": []}
    sides = [[one["docid"] for one in splits["train"][0][f"{side}_passages"]] for side in ("positive", "negative")]
    assert sides == [["d0"], ["d2"]]
    assert [(row.split, row.content["query_id"]) for row in bad] == [("test", "007")]
    assert "put_together" not in told
    with pytest.raises(SchemaError, match="1 of 1 rows break their form"):
        load_input(source, undo=arhn.revert)
    with pytest.raises(SchemaError, match="no positive, a document with a score of at least 3"):
        load_input(Input(name=str(folder), label_threshold=3), undo=arhn.revert)


def test_our_own_reranking_export_is_refined_again(sample, tmp_path, capsys):
    """Its passages to rank that are not in the qrels are the negatives; the folder is the one that was named."""
    given = str(write(tmp_path / "x.jsonl", *sample[:3]))
    export = ["--format", "mteb-reranking", "--output", str(tmp_path / "e")]
    assert cli.refine_command([given, "--annotator", "lexical", "--output", str(tmp_path / "r")]) == 0
    assert cli.export_command([str(tmp_path / "r"), *export]) == 0
    capsys.readouterr()
    splits, _ = load_input(Input(name=str(tmp_path / "e"), label_threshold=2), undo=arhn.revert)
    again = {one["query_id"]: one for one in splits["train"]}
    assert again
    assert set(again) <= {one["query_id"] for one in sample[:3]}
    for one in Dataset.from_parquet(str(tmp_path / "r" / "data" / "train-00000-of-00001.parquet")):
        if one["query_id"] in again:
            mine = again[one["query_id"]]
            for name, sides in {"positive": ("positive",), "negative": ("negative", "filtered")}.items():
                texts = {entry["text"] for side in sides for entry in one[f"{side}_passages"]}
                assert {entry["text"] for entry in mine[f"{name}_passages"]} == texts


@pytest.mark.parametrize("format_", ["beir", "mteb"])
def test_our_own_retrieval_exports_are_known(format_, sample, tmp_path, capsys):
    """What arhn-export writes is refined again once a run stands beside it."""
    given, rows = str(write(tmp_path / "x.jsonl", *sample[:3])), sample[:3]
    assert cli.refine_command([given, "--annotator", "lexical", "--output", str(tmp_path / "r")]) == 0
    assert cli.export_command([str(tmp_path / "r"), "--format", format_, "--output", str(tmp_path / "e")]) == 0
    capsys.readouterr()
    folder = next(path.parent for path in (tmp_path / "e").rglob("corpus*") if path.suffix in ("", ".jsonl"))
    with pytest.raises(InputError, match="no hard negatives"):
        load_input(Input(name=str(folder)), undo=arhn.revert)
    lines = [f"{one['query_id']}\t{other['docid']}\t1" for one in rows for other in one["negative_passages"][:2]]
    (folder / "run.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")
    splits, _ = load_input(Input(name=str(folder)), undo=arhn.revert)
    assert set(splits["train"]["query_id"]) <= {one["query_id"] for one in rows}
    assert len(splits["train"])


def test_paths_and_revisions_of_the_hub(hub, tmp_path):
    """user/name@revision, hf:// with and without a path; files inside of it are read by our own readers."""
    rows = DatasetDict(train=Dataset.from_list([row("a"), row("b")]), test=Dataset.from_list([row("c")]))
    rows.push_to_hub("writer/source")
    sha = hub.head("writer/source").sha
    for name in (f"writer/source@{sha}", f"hf://datasets/writer/source@{sha}", "hf://datasets/writer/source"):
        splits, told = load_input(Input(name=name), undo=arhn.revert)
        assert {split: len(own) for split, own in splits.items()} == {"train": 2, "test": 1}
        assert (told["name"], told["kind"], told["revision"]) == ("writer/source", "hub", sha)
    for inside in ("data/train-00000-of-00001.parquet", "data/train-*"):
        splits, told = load_input(Input(name=f"hf://datasets/writer/source@main/{inside}"), undo=arhn.revert)
        assert {split: own["query"][:] for split, own in splits.items()} == {"train": ["a", "b"]}
        assert (told["name"], told["revision"], told["inside"]) == ("writer/source", sha, inside)
    assert set(load_input(Input(name="hf://datasets/writer/source/data"), undo=arhn.revert)[0]) == {"train", "test"}
    with pytest.raises(InputError, match="has nothing at gone"):
        load_input(Input(name="hf://datasets/writer/source/gone"), undo=arhn.revert)
    with pytest.raises(ConfigurationError, match="two revisions"):
        Input(name="writer/source@a", revision="b")
    with pytest.raises(ConfigurationError, match="no path of the Hub"):
        Input(name="hf://models/x")


def test_a_list_written_as_text_is_not_wrapped(tmp_path):
    """The advice reads the list, of Python or of JSON, and none is given where numpy has glued its items."""
    from arhn_datasets.inputs.values import list_advice

    assert "ds.map(lambda row: {'pos': list(ast.literal_eval(row['pos']))})" in list_advice("['a', 'it''s']", "pos")
    assert "ds.map(lambda row: {'pos': list(json.loads(row['pos']))})" in list_advice('["a", null]', "pos")
    assert "cannot be read back" in list_advice("['a' 'b']", "pos")
    assert "cannot be read back" in list_advice("['a'\n 'b']", "pos")
    assert "[row['pos']]" in list_advice("a text [1]", "pos")
    (tmp_path / "x.csv").write_text("query,pos,neg\nq,\"['a', 'b']\",\"['c']\"\n", encoding="utf-8")
    with pytest.raises(arhn.errors.SchemaError, match=r"import ast, and read this column"):
        load_input(Input(name=str(tmp_path / "x.csv")), undo=arhn.revert)


def test_nothing_is_said_of_files_where_all_are_read(tmp_path, caplog):
    """No warning, and no entry in the source."""
    write(tmp_path / "in" / "a.jsonl", row("a"))
    with caplog.at_level(logging.WARNING):
        assert "left_out" not in load_input(Input(name=str(tmp_path / "in")), undo=arhn.revert)[1]
    assert not caplog.records


@pytest.mark.skipif(json_type() is None, reason="this version of datasets has no type Json")
def test_values_of_several_kinds_on_the_hub(hub, tmp_path):
    """A stream of JSON refuses a number among texts, keeps texts as they are, and reads subsets as texts."""
    api = HfApi()
    good = [{**row('say "a"'), "subset": "nq"}, {**row("b"), "subset": 7}]
    passages = [{"docid": "d", "text": 'say "c"'}, {"docid": 7, "text": "d", "title": "t", "score": 0.5}]
    structs = [{"query": "q", "positive_passages": passages[:1], "negative_passages": passages[1:]}]
    for name, rows in (("good", good), ("bad", [*good, row(1984)]), ("structs", structs)):
        api.create_repo(f"writer/{name}", repo_type="dataset")
        path = write(tmp_path / f"{name}.jsonl", *rows)
        api.upload_file(path_or_fileobj=path, path_in_repo="rows.jsonl", repo_id=f"writer/{name}", repo_type="dataset")
    done = refine(Input(name="writer/good"), tmp_path / "out", stages())
    assert [(one["query"], one["subset"]) for one in done.rows()] == [('say "a"', "nq"), ("b", "7")]
    with pytest.raises(SchemaError, match=r"holds a int \(1984\)"):
        refine(Input(name="writer/bad"), tmp_path / "bad", stages())
    done = refine(Input(name="writer/structs"), tmp_path / "structs", stages())
    [one] = arhn.revert.with_options(keep_evidence=False)(next(iter(done.rows())))["negative_passages"]
    assert (one["docid"], one["text"], one["score"]) == ("7", "d", 0.5)
