"""The two layouts of a folder: both give the same wide rows, and what is half-written is refused."""

from __future__ import annotations

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.folder import reading as folders
from arhn_datasets.folder.reading import DATA, DROPPED, describe_files, open_folder, read_rows, sha256_of
from arhn_datasets.folder.run import RUN_FORMAT, is_refined
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.runs.refine import Input, Stages, refine

# What every run.json has, of whatever version.
BARE = {
    "id": "0123",
    "versions": {"arhn_datasets": "0"},
    "source": {"name": "rows.jsonl", "kind": "file"},
    "annotator": {"annotator": "lexical baseline"},
    "parameters": {"relabel": {"policy": "filter"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, sample):
    """A refined folder of two splits in which a guard dropped rows, and its publication."""
    root = tmp_path_factory.mktemp("folders")
    source = root / "source"
    source.mkdir()
    for split, rows in (("train", sample[:50]), ("test", sample[50:])):
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical),
        ranks=arhn.Ranks(annotator=lexical),
        relabel=arhn.Relabel(min_negatives=4, on_shortage="drop"),
    )
    refine(Input(name=str(source)), root / "refined", stages)
    build_publication(open_folder(root / "refined"), root / "published")
    return root


@pytest.fixture(params=["refined", "published"])
def root(request, made, tmp_path):
    """A copy of one of both, to damage."""
    return shutil.copytree(made / request.param, tmp_path / request.param)


def test_both_layouts_have_the_same_rows(made, sample):
    """Splits in the order of the source, in each the rows for trainers and then the dropped ones."""
    refined, published = open_folder(made / "refined"), open_folder(str(made / "published"))
    assert (refined.layout, published.layout) == ("refined", "published")
    assert refined.splits == published.splits == ("train", "test")
    assert list(published.rows()) == list(refined.rows()) == list(read_rows(made / "refined"))
    for split, rows in (("train", sample[:50]), ("test", sample[50:])):
        dropped = [row["decision"]["status"] == "dropped" for row in refined.rows(split)]
        assert any(dropped)
        assert sorted(dropped) == dropped
        assert sorted(row["query_id"] for row in published.rows(split)) == sorted(row["query_id"] for row in rows)
        assert refined.schema(split) == published.schema(split)
        for folder in (refined, published):
            assert folder.count(split) == dropped.count(False)
            assert folder.count(split, DROPPED) == dropped.count(True)
    assert is_refined(made / "published")
    assert not is_refined(made)


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_tables_of_any_size_hold_the_same_rows(made, batch_rows, monkeypatch):
    """Small batches, parts alone and some columns alone, whatever the batches of the evidence are."""
    monkeypatch.setattr(folders, "_EVIDENCE_ROWS", 3)
    rows = list(open_folder(made / "refined").rows("train"))
    for name in ("refined", "published"):
        folder = open_folder(made / name)
        tables = list(folder.tables("train", batch_rows))
        assert max(table.num_rows for table in tables) <= batch_rows
        assert [row for table in tables for row in table.to_pylist()] == rows
        assert all(table.schema.equals(folder.schema("train")) for table in tables)
        kept = folder.count("train")
        for part, expected in ((DATA, rows[:kept]), (DROPPED, rows[kept:])):
            found = [row for table in folder.tables("train", batch_rows, part=part) for row in table.to_pylist()]
            assert found == expected
        for columns in (["query", "absent"], ["query", "decision"]):
            found = [row for t in folder.tables("train", batch_rows, columns=columns) for row in t.to_pylist()]
            assert found == [{name: row[name] for name in columns if name in row} for row in rows]


def test_long_rows_come_in_smaller_tables(made, monkeypatch):
    """The size of a batch is bounded in bytes as well."""
    monkeypatch.setattr(folders, "BATCH_BYTES", 20_000)
    tables = list(open_folder(made / "refined").tables("train"))
    assert len(tables) > 2
    assert sum(table.num_rows for table in tables) == 50


def test_an_unknown_split_is_told(made):
    """With those that there are."""
    with pytest.raises(ConfigurationError, match=r"no split 'dev'; its splits are \['train', 'test'\]"):
        list(open_folder(made / "refined").tables("dev"))


def test_what_is_no_folder_of_ours(tmp_path):
    """No folder, no run, another program's run, a broken one."""
    for content, message in (
        (None, "no run.json of arhn_datasets in it"),
        ('{"some": "body"}', "no run.json of arhn_datasets in it, but another one"),
        ("[]", "but another one"),
        ('{"versions": null}', "but another one, whose versions are None"),
        ("{", "cannot be read.*half-written"),
        ("", "cannot be read.*half-written"),
        (json.dumps(BARE), "no data/SPLIT"),
    ):
        if content is not None:
            (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=message):
            open_folder(tmp_path)
    with pytest.raises(ConfigurationError, match="no such folder.*Expected a folder that arhn-refine"):
        open_folder(tmp_path / "absent")


def edited(root, key, value):
    """Give a part of run.json another value, or with ``...`` take it out."""
    run = json.loads((root / "run.json").read_text(encoding="utf-8"))
    *parents, name = key.split("/")
    part = run
    for parent in parents:
        part = part.setdefault(parent, {})
    part.update({name: value})
    if value is ...:
        del part[name]
    (root / "run.json").write_text(json.dumps(run), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", ..., "has the id None; the id of a run was expected"),
        ("id", 7, "has the id 7; the id of a run was expected"),
        ("annotator", ..., "has the annotator None; an object was expected"),
        ("annotator/annotator", ..., "has the annotator.annotator None; a text was expected"),
        ("source", "rows", "has the source 'rows'; an object was expected"),
        ("source/name", ..., "has the source.name None; a text was expected"),
        ("source/kind", ["file"], "has the source.kind ['file']; a text was expected"),
        ("source/rows/train", "69", "has the source.rows.train '69'; a whole number was expected"),
        ("source/languages", "en", "has the source.languages 'en'; a list of texts was expected"),
        ("source/license", 1, "has the source.license 1; a text, or a list of texts, was expected"),
        ("source/shard", {"index": 0}, "has the source.shard.of None; a whole number was expected"),
        ("parameters", None, "has the parameters None; an object was expected"),
        ("parameters/ranks", 1, "has the parameters.ranks 1; an object was expected"),
        ("parameters/relabel", {}, "has the parameters.relabel.policy None; a text was expected"),
        ("parameters/relabel/policy", ["filter"], "has the parameters.relabel.policy ['filter']; a text"),
        ("prompts", 3, "has the prompts 3; an object was expected"),
        ("prompts/qa", {"snippet": 3}, "has the prompts.qa.snippet 3; a text was expected"),
        ("counts/all", 5, "has the counts.all 5; an object was expected"),
        ("counts/all/rows", True, "has the counts.all.rows True; a whole number was expected"),
        ("counts/all/snippets", {"grounded": "2"}, "has the counts.all.snippets.grounded '2'; a whole number"),
        ("files", [], "has the files []; an object was expected"),
        ("audit", {"kappa": 0.5}, "has the audit.rows None; a whole number was expected"),
        ("published", {"formats": "pair"}, "has the published.formats 'pair'; a list of texts was expected"),
        ("requests/replies", "many", "has the requests.replies 'many'; a number was expected"),
        ("format", "1", "has the format '1'; a whole number was expected"),
        ("format", 99, "has the format 99; arhn_datasets .* reads up to 1. Update the package"),
    ],
)
def test_an_edited_run_is_told_by_every_command(made, tmp_path, capsys, key, value, message):
    """Key, what was found and what was expected, and what writes it anew: exit code 2 and no traceback."""
    root = shutil.copytree(made / "refined", tmp_path / "refined")
    edited(root, key, value)
    expected = message if ".*" in message else re.escape(message)
    with pytest.raises(ConfigurationError, match=expected) as raised:
        open_folder(root)
    assert str(root / "run.json") in str(raised.value)
    assert "Update the package" in str(raised.value) or "run arhn-refine again" in str(raised.value)
    for command, arguments in (
        (cli.verify_command, []),
        (cli.push_command, ["me/x", "--dry-run"]),
        (cli.export_command, ["--format", "pair", "--output", str(tmp_path / "out")]),
        (cli.audit_command, ["--output", str(tmp_path / "audit.csv")]),
    ):
        assert command([str(root), *arguments]) == 2
        assert str(raised.value) in capsys.readouterr().err


@pytest.mark.parametrize("value", [..., None])
@pytest.mark.parametrize("key", ["format", "created", "prompts", "files", "identity", "requests", "source/rows"])
def test_what_an_earlier_version_did_not_write_may_be_missing(made, tmp_path, key, value):
    """The folder opens, and can be published."""
    root = shutil.copytree(made / "refined", tmp_path / "refined")
    edited(root, key, value)
    assert build_publication(open_folder(root), tmp_path / "published").files


def test_the_newest_form_is_the_one_that_is_written(made):
    """What the writer writes, the readers read."""
    assert open_folder(made / "refined").run["format"] == RUN_FORMAT


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "data/train-00000-of-00001.parquet").unlink(), r"lacks the splits \['train'\]"),
        (lambda root: (root / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1"), "cannot be read.*half"),
        (
            lambda root: (root / "data/train-00000-of-00001.parquet").rename(
                root / "data/train-00001-of-00002.parquet"
            ),
            "missing: train-00000-of-00002.parquet",
        ),
        (
            lambda root: shutil.copy(
                root / "data/train-00000-of-00001.parquet", root / "data/train-00000-of-00002.parquet"
            ),
            "2 files of the split 'train', and 1 were expected",
        ),
    ],
)
def test_half_written_folders_are_refused(root, damage, message):
    """A missing split, a cut file, a missing shard, a shard of another version."""
    damage(root)
    with pytest.raises(ConfigurationError, match=message):
        open_folder(root)


def test_evidence_that_is_missing_or_cut(made, tmp_path):
    """Without the files the folder is refused, with too few rows of them the reading ends in an error."""
    root = shutil.copytree(made / "published", tmp_path / "published")
    path = root / "evidence/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"lacks the evidence of the splits \['train'\]"):
        open_folder(root)
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(SchemaError, match="evidence ends before row 0"):
        list(open_folder(root).rows("train"))
    pq.write_table(table.slice(0, table.num_rows - 10), path)
    with pytest.raises(SchemaError, match="has no evidence|passages in"):
        list(open_folder(root).rows("train"))
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    with pytest.raises(SchemaError, match="in the order of the rows"):
        list(open_folder(root).rows("train"))


def test_every_data_file_is_described(made, tmp_path):
    """Hash, rows and bytes of parquet, JSON lines and TSV; what is hidden or no data is left alone."""
    root = tmp_path / "files"
    shutil.copytree(made / "refined" / "data", root / "data")
    (root / "a.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    (root / "q.tsv").write_text("a\tb\n1\t2\n", encoding="utf-8")
    (root / ".cache").mkdir()
    (root / ".cache" / "x.jsonl").write_text("{}\n", encoding="utf-8")
    found = describe_files(root)
    shards = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    assert sorted(found) == ["a.jsonl", *shards, "q.tsv"]
    assert (found["a.jsonl"]["rows"], found["a.jsonl"]["bytes"], found["q.tsv"]["rows"]) == (2, 6, 1)
    assert found[shards[1]]["rows"] == open_folder(made / "refined").count("train")
    assert found[shards[0]]["sha256"] == sha256_of(root / shards[0])
