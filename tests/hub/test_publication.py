"""What goes to the Hub: every configuration loads, the source can be restored from it, and nothing else was touched."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets, get_dataset_config_names, load_dataset

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, OutputError
from arhn_datasets.folder.evidence_table import evidence_of
from arhn_datasets.folder.reading import open_folder, sha256_of
from arhn_datasets.folder.readme import Facts, merge_card
from arhn_datasets.formats.format import Options, known_formats, table_of
from arhn_datasets.hub import publication
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.rows.records import EVIDENCE_TYPES
from arhn_datasets.runs.refine import Input, Stages, refine

KIND = ClassLabel(names=["even", "odd"])
FORMATS = tuple(name for name in known_formats() if name != "pylate")  # which needs scores
RETRIEVAL = ("corpus", "queries", "qrels")
ROWWISE = {name for name in FORMATS if known_formats()[name].rowwise}


def source_of(rows):
    """Rows with a class beside them, which has to pass through."""
    dataset = Dataset.from_list(rows).add_column("kind", [i % 2 for i in range(len(rows))])
    return dataset.cast_column("kind", KIND)


def refined(root, sample, **options):
    """A refined folder of two splits."""
    splits = DatasetDict(train=source_of(sample[:50]), test=source_of(sample[50:]))
    splits.save_to_disk(str(root / "source"))
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical),
        ranks=arhn.Ranks(annotator=lexical),
        relabel=arhn.Relabel(**options),
    )
    refine(Input(name=str(root / "source")), root / "refined", stages)
    return root / "refined"


@pytest.fixture(scope="module")
def dropping(tmp_path_factory, sample):
    """A folder in which a guard dropped rows, and its publication in every format."""
    root = tmp_path_factory.mktemp("publication")
    folder = refined(root, sample, min_negatives=4, on_shortage="drop")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    made = build_publication(open_folder(folder), root / "published", formats=FORMATS, repo_id="user/name")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return folder, made


def test_default_is_the_source_where_nothing_changed(dropping, sample):
    """The columns, types and values of the source for untouched rows, and no evidence column anywhere."""
    _, made = dropping
    source = {row["query_id"]: row for split in (sample[:50], sample[50:]) for row in source_of(split)}
    wide = {row["query_id"]: row for row in open_folder(made.path).rows()}
    loaded = load_dataset(str(made.path))
    assert list(loaded) == ["train", "test"]
    assert loaded["train"].features == source_of(sample).features
    untouched = 0
    for rows in loaded.values():
        for row in rows:
            if wide[row["query_id"]]["decision"]["status"] == "unchanged":
                assert row == source[row["query_id"]]
                assert list(row) == list(source[row["query_id"]])
                untouched += 1
    assert untouched > 5
    for path in (made.path / "data").iterdir():
        assert EVIDENCE_TYPES.keys().isdisjoint(pq.read_schema(path).names)


def test_default_and_evidence_restore_the_source(dropping, sample):
    """As a user does it: load both, join, revert; with the dropped rows, all of the source is there."""
    _, made = dropping
    default, dropped, evidence = (load_dataset(str(made.path), name) for name in ("default", "dropped", "evidence"))
    revert = arhn.revert.with_options(keep_evidence=False)
    for split, rows in (("train", sample[:50]), ("test", sample[50:])):
        expected = {row["query_id"]: row for row in source_of(rows)}
        alone = arhn.with_evidence(default[split], evidence[split]).map(revert, batched=True)
        assert list(alone) == [expected[row["query_id"]] for row in default[split]]
        both = concatenate_datasets([default[split], dropped[split]])
        whole = arhn.with_evidence(both, evidence[split]).map(revert, batched=True)
        assert {row["query_id"]: row for row in whole} == expected
        assert whole.features == source_of(rows).features


def test_every_configuration_loads_with_the_rows_of_its_format(dropping):
    """Also through the sizes in dataset_info, which load_dataset holds against the files."""
    folder, made = dropping
    names = {"default", "dropped", "evidence", *RETRIEVAL, *(f"arhn-{name}" for name in RETRIEVAL), *ROWWISE}
    names |= {f"arhn-reranking-{name}" for name in (*RETRIEVAL, "top_ranked")}
    assert set(get_dataset_config_names(str(made.path))) == names
    source = open_folder(folder)
    for name in ROWWISE:
        loaded = load_dataset(str(made.path), name)
        for split in source.splits:
            expected = [r for t in source.tables(split, part="data") for r in table_of(name, t)[0].to_pylist()]
            assert loaded[split].to_list() == expected
    assert len(load_dataset(str(made.path), "qrels", split="train")) > 40
    evidence = load_dataset(str(made.path), "evidence", split="train").to_list()
    first, expected = 0, []
    for table in source.tables("train", 9):
        expected += evidence_of(table, first).to_pylist()
        first += table.num_rows
    assert evidence == expected
    assert {(made.path / path).stat().st_size == size for path, size in made.files} == {True}


def test_the_run_describes_every_data_file(dropping):
    """run.json is that of the run, with the published formats and the hash, rows and bytes of each file."""
    folder, made = dropping
    before, run = (json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (folder, made.path))
    assert run["published"]["formats"] == list(FORMATS)
    assert run["published"]["options"] == {"negatives": 7, "short": "repeat", "grades": False, "separator": " "}
    assert {**run, "files": 0, "published": 0} == {**before, "files": 0, "published": 0}
    data = [path for path, _ in made.files if path.endswith((".parquet", ".jsonl", ".tsv"))]
    assert sorted(run["files"]) == sorted(data)
    for path, facts in run["files"].items():
        assert facts["sha256"] == sha256_of(made.path / path)
        assert facts["bytes"] == (made.path / path).stat().st_size
    assert made.report.total.rows == sum(
        facts["rows"] for path, facts in run["files"].items() if path.startswith(("data/", "dropped/"))
    )


def test_the_card_says_where_it_is_and_shows_charts(dropping):
    """The repository and both pictures."""
    pytest.importorskip("matplotlib")
    _, made = dropping
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == made.card
    assert 'load_dataset("user/name"' in card
    for path in publication.CHARTS.values():
        assert path in card
        assert (made.path / path).read_bytes().startswith(b"\x89PNG")


def test_a_published_folder_can_be_published_again(dropping, tmp_path):
    """In other formats: the same rows and evidence, bit for bit."""
    _, made = dropping
    again = build_publication(open_folder(made.path), tmp_path / "again", formats=["pair"])
    for folder in ("data", "dropped", "evidence"):
        for path in (made.path / folder).iterdir():
            assert path.read_bytes() == (again.path / folder / path.name).read_bytes()
    assert again.formats["pair"].rows == made.formats["pair"].rows
    assert not (again.path / "triplet").exists()
    assert list(open_folder(again.path).rows()) == list(open_folder(made.path).rows())


def test_without_dropped_rows_and_without_matplotlib(tmp_path, sample, monkeypatch, caplog):
    """No dropped configuration; no charts, and a note that says how to have them."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = open_folder(refined(tmp_path, sample))
    options = Options(negatives=2)
    made = build_publication(folder, tmp_path / "out", formats=["n-tuple"], options=options)
    assert set(get_dataset_config_names(str(made.path))) == {"default", "evidence", "n-tuple"}
    assert load_dataset(str(made.path), "n-tuple", split="train").column_names[-1] == "negative_2"
    assert "pip install 'arhn_datasets[charts]'" in caplog.text
    assert not (made.path / "charts").exists()
    assert "charts/" not in made.card


def test_the_licence_and_the_existing_card(dropping, tmp_path):
    """The licence that is given stands in the card; what somebody wrote by hand stays."""
    folder, _ = dropping
    made = build_publication(
        open_folder(folder),
        tmp_path / "out",
        license="cc-by-4.0",
        facts=Facts(pretty_name="Named by hand"),
    )
    card = merge_card("---\nlicense: mit\nmine: 1\n---\n\nWritten by hand.\n", made.card, license_given=True)
    for said in ("license: cc-by-4.0", "mine: 1", "Written by hand.", "Named by hand"):
        assert said in card


def test_what_cannot_be_built(dropping, tmp_path):
    """An unknown format, a folder with something in it, a run without counts."""
    folder, _ = dropping
    source = open_folder(folder)
    with pytest.raises(ConfigurationError, match="'colbert'.*expected some of"):
        build_publication(source, tmp_path / "out", formats=["colbert"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="is not empty; found"):
        build_publication(source, tmp_path / "full")
    bare = replace(source, run=replace(source.run, counts={}))
    with pytest.raises(ConfigurationError, match="counts in .*run.json lack 'all'"):
        build_publication(bare, tmp_path / "out")
