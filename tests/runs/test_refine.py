"""From an input to a folder that `load_dataset` loads, and everything that can stand in the way."""

from __future__ import annotations

import errno
import json

import datasets
import pytest
from datasets import Dataset, DatasetDict, load_dataset

import arhn_datasets as arhn
from arhn_datasets.checks.verification import verify_folder
from arhn_datasets.errors import ConfigurationError, InputError, OutputError, SchemaError
from arhn_datasets.folder import parquet
from arhn_datasets.folder import writer as output
from arhn_datasets.folder.reading import read_rows
from arhn_datasets.folder.run import is_refined
from arhn_datasets.folder.writer import check_output
from arhn_datasets.inputs import sources
from arhn_datasets.inputs.sources import Input
from arhn_datasets.runs.refine import Stages, refine
from arhn_datasets.testing import Emulator, Fault
from tests.fakes.together import Together


def stages(annotator=None, **options):
    """The stages of a run, with the lexical baseline unless said otherwise."""
    annotator = annotator or arhn.Lexical()
    return Stages(
        snippets=arhn.Snippets(annotator=annotator),
        ranks=arhn.Ranks(annotator=annotator),
        relabel=arhn.Relabel(**options),
    )


def source_rows(rows):
    """Refined rows as they were in the source."""
    return [arhn.revert.with_options(keep_evidence=False)(row) for row in rows]


def test_a_file_becomes_a_loadable_repository(jsonl, tmp_path, sample):
    """README.md, data/*.parquet and run.json; load_dataset loads it, and revert gives the source rows."""
    done = refine(Input(name=str(jsonl)), tmp_path / "out", stages())
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"README.md", "run.json", "data/train-00000-of-00001.parquet"}
    loaded = load_dataset(str(tmp_path / "out"), split="train")
    assert source_rows(loaded) == sample
    assert list(loaded) == list(done.rows()) == list(done.rows("train"))
    total = done.report.total
    assert total.relabelled + total.filtered + total.kept == total.negatives == 322
    assert total.relabelled == sum(row["decision"]["relabelled"] for row in loaded)
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["counts"]["all"]["rows"] == len(sample)
    assert run["parameters"]["relabel"]["policy"] == "relabel+filter"
    assert run["source"]["rows"] == {"train": len(sample)}
    assert run["annotator"]["fitted_on_passages"] > 300


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "folder", "save_to_disk", "splits", "refined"])
def test_every_kind_of_input_gives_the_same_rows(kind, tmp_path, sample):
    """Files of each type, a folder, save_to_disk and a result of before: the same source rows."""
    rows, where = sample[:6], tmp_path / "in"
    dataset = Dataset.from_list(rows)
    if kind == "json":
        where = tmp_path / "in.json"
        where.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "parquet":
        where = tmp_path / "in.parquet"
        dataset.to_parquet(str(where))
    elif kind == "csv":
        where = tmp_path / "in.csv"
        rows = [
            {"anchor": row["query"], "positive": row["positive_passages"][0]["text"], "negative": negative["text"]}
            for row in rows
            for negative in row["negative_passages"]
        ]
        Dataset.from_list(rows).to_csv(str(where))
    elif kind == "folder":
        where.mkdir()
        dataset.to_json(str(where / "train.jsonl"))
    elif kind == "save_to_disk":
        dataset.save_to_disk(str(where))
    elif kind == "splits":
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(where))
    else:
        dataset.to_json(str(tmp_path / "first.jsonl"))
        refine(Input(name=str(tmp_path / "first.jsonl")), where, stages())
    done = refine(Input(name=str(where), split="train" if kind == "splits" else None), tmp_path / "out", stages())
    got = source_rows(read_rows(done.path))
    if kind == "csv":
        assert [row["query"] for row in got] == [row["query"] for row in sample[:6]]
    else:
        assert got == rows
    assert set(load_dataset(str(done.path))) == {"train"}


def test_splits_subsets_and_limits(tmp_path, sample):
    """Every split is refined; --limit takes the first rows of each; grouped forms are cut after grouping."""
    DatasetDict({"train": Dataset.from_list(sample[:9]), "test": Dataset.from_list(sample[9:12])}).save_to_disk(
        str(tmp_path / "in")
    )
    done = refine(Input(name=str(tmp_path / "in"), limit=4), tmp_path / "out", stages())
    assert done.run["source"]["rows"] == {"train": 4, "test": 3}
    loaded = load_dataset(str(tmp_path / "out"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 4, "test": 3}
    triplets = [{"anchor": f"q{i // 2}", "positive": f"p{i // 2}", "negative": f"n{i}"} for i in range(8)]
    Dataset.from_list(triplets).to_json(str(tmp_path / "t.jsonl"))
    done = refine(Input(name=str(tmp_path / "t.jsonl"), limit=3), tmp_path / "out", stages())
    assert [len(row["negative_passages"]) for row in done.rows()] == [2, 2, 2]


def test_rows_that_a_guard_drops_are_kept_apart(jsonl, tmp_path, sample):
    """on_shortage="drop": the default configuration is what trainers can take, and nothing is lost."""
    done = refine(Input(name=str(jsonl)), tmp_path / "out", stages(min_negatives=4, on_shortage="drop"))
    dropped = done.report.total.decisions["dropped"]
    assert dropped > 0
    kept = load_dataset(str(tmp_path / "out"), split="train")
    assert len(kept) == len(sample) - dropped
    assert all(len(row["negative_passages"]) >= 4 for row in kept)
    assert len(load_dataset(str(tmp_path / "out"), "dropped", split="train")) == dropped
    assert sorted(row["query_id"] for row in done.rows()) == sorted(row["query_id"] for row in sample)


def test_a_row_whose_every_negative_proved_false_is_dropped(tmp_path, sample):
    """By default: it stands in `dropped` as it came, counts and card know its negatives, and nothing is lost."""
    rows = [dict(row) for row in sample[:12]]
    for row in rows[:3]:
        row["negative_passages"] = [{**row["positive_passages"][0], "docid": f"{row['query_id']}-again"}]
    Dataset.from_list(rows).to_json(str(tmp_path / "rows.jsonl"))
    done = refine(Input(name=str(tmp_path / "rows.jsonl")), tmp_path / "out", stages())
    kept, dropped = (load_dataset(str(done.path), name, split="train") for name in ("default", "dropped"))
    assert {row["query_id"] for row in rows[:3]} <= set(dropped["query_id"])
    assert all(row["negative_passages"] for row in kept)
    back = [*kept.map(arhn.Revert(keep_evidence=False)), *dropped.map(arhn.Revert(keep_evidence=False))]
    assert {row["query_id"]: row for row in back} == {row["query_id"]: row for row in rows}
    total = done.report.total
    assert total.decisions["dropped"] == len(dropped)
    assert total.dropped == sum(map(len, dropped["negative_passages"]))
    assert total.relabelled + total.filtered + total.dropped + total.kept == total.negatives
    assert f"{total.dropped} left with rows that were dropped" in " ".join(
        (done.path / "README.md").read_text().split()
    )
    assert verify_folder(done.path).holds
    stay = refine(Input(name=str(tmp_path / "rows.jsonl")), tmp_path / "keep", stages(on_shortage="keep"))
    assert stay.report.total.dropped == 0


def test_large_results_are_sharded(jsonl, tmp_path, monkeypatch, sample):
    """Shards are named as on the Hub and hold all rows in order."""
    monkeypatch.setattr(parquet, "SHARD_BYTES", 40_000)
    done = refine(Input(name=str(jsonl)), tmp_path / "out", stages(), batch_size=7)
    names = sorted(path.name for path in (done.path / "data").iterdir())
    assert len(names) > 2
    assert names[0] == f"train-00000-of-{len(names):05d}.parquet"
    assert [row["query_id"] for row in done.rows()] == [row["query_id"] for row in sample]


def test_an_earlier_run_is_replaced_and_nothing_else_is(jsonl, tmp_path):
    """A folder of ours is replaced whole; anything else is refused before any work and left as it is."""
    out = tmp_path / "out"
    refine(Input(name=str(jsonl), limit=2), out, stages())
    (out / "data" / "old.parquet").write_bytes(b"x")
    refine(Input(name=str(jsonl), limit=3), out, stages())
    assert [path.name for path in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    other = tmp_path / "other"
    other.mkdir()
    refine(Input(name=str(jsonl), limit=2), other, stages())
    (other / "run.json").write_text('{"somebody": "else"}', encoding="utf-8")
    with pytest.raises(OutputError, match="is not empty and holds no earlier run.*Nothing was touched"):
        refine(Input(name="nowhere.jsonl"), other, stages())
    assert not is_refined(other)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file")


def test_load_dataset_sees_every_new_run_in_the_same_folder(jsonl, tmp_path):
    """`load_dataset` of a folder caches by its card: each run has another entry there, so none is served stale."""
    for limit in (2, 3):
        for folder in ("one", "two"):
            refine(Input(name=str(jsonl), limit=limit), tmp_path / folder / "out", stages())
            assert len(load_dataset(str(tmp_path / folder / "out"), split="train")) == limit
        limit += 2


def test_a_failed_rename_or_write_leaves_the_old_run(jsonl, tmp_path, monkeypatch):
    """When the new folder cannot take its place, the old one is back and no temporary folder is left."""
    out = tmp_path / "out"
    refine(Input(name=str(jsonl), limit=2), out, stages())
    rename = output.Path.rename

    def failing(path, target):
        if path.name == ".out.unfinished":
            raise OSError("no space left on device")
        return rename(path, target)

    monkeypatch.setattr(output.Path, "rename", failing)
    with pytest.raises(OutputError, match="no space left on device"):
        refine(Input(name=str(jsonl), limit=3), out, stages())
    assert len(list(read_rows(out))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_no_permission_is_told_before_any_work(jsonl, tmp_path, monkeypatch):
    """The message names the folder in which nothing may be written."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission in"):
        refine(Input(name=str(jsonl)), tmp_path / "deep" / "out", stages())


@pytest.mark.parametrize("where", ["file/out", "file/deep/out", "/proc/x/y"])
def test_a_place_that_cannot_be_made_is_told_before_any_work(where, tmp_path):
    """Nothing is read or asked, and the advice is not to free space."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written: .*Name another folder") as told:
        refine(Input(name="nowhere.jsonl"), tmp_path / where, stages())
    assert "space" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_can_be_made_is_left_as_it_was(tmp_path):
    """The attempt leaves no folder behind, beside others or where there was none."""
    check_output(tmp_path / "deep" / "er" / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_what_helps(jsonl, tmp_path, monkeypatch):
    """Only where space is the trouble the advice is to free some."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "render_card", full)
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        refine(Input(name=str(jsonl), limit=2), tmp_path / "out", stages())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "There is nothing at .*missing.jsonl.*save_to_disk.*Hub"),
        ("./no/such/folder", None, "There is nothing at"),
        ("rows.txt", "x", "is no .jsonl, .json, .ndjson, .parquet, .csv, .tsv, .arrow file"),
        ("broken.jsonl", '{"query": "q"\n{]', "broken.jsonl, line 2 is no JSON: .*found"),
        ("broken.parquet", "PAR", "cannot be read"),
        ("empty.jsonl", "", "empty.jsonl is empty"),
        ("empty.csv", "", "empty.csv is empty"),
        ("blank.jsonl", "\n\n", "blank.jsonl holds no rows"),
        ("list.json", "[]", "list.json holds no rows"),
        ("header.csv", "anchor,positive,negative\n", "header.csv has no rows"),
    ],
)
def test_inputs_that_are_not_there_or_broken(name, content, message, tmp_path, monkeypatch):
    """The message says what was named and what can be named."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as told:
        refine(Input(name=name), tmp_path / "out", stages())
    assert "--revision" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rows.jsonl", "folder", "saved"])
def test_what_only_the_hub_has_is_refused_for_files(name, jsonl, tmp_path, sample):
    """A configuration or revision that would be ignored, and recorded, is told."""
    (tmp_path / "folder").mkdir()
    Dataset.from_list(sample[:2]).to_json(str(tmp_path / "folder" / "train.jsonl"))
    Dataset.from_list(sample[:2]).save_to_disk(str(tmp_path / "saved"))
    for options in ({"config": "c"}, {"revision": "main"}):
        if (name, *options) == ("folder", "config"):
            continue  # a folder can have configurations
        with pytest.raises(ConfigurationError, match=f"--{next(iter(options))} .*{name} is a f"):
            refine(Input(name=str(tmp_path / name), **options), tmp_path / "out", stages())


def test_the_split_of_a_single_dataset_is_not_renamed(jsonl, tmp_path):
    """A split that a file does not have is told with the one that it has."""
    with pytest.raises(InputError, match=r"has no split 'dev'; its splits are \['train'\]"):
        refine(Input(name=str(jsonl), split="dev"), tmp_path / "out", stages())
    assert set(sources.load_input(Input(name=str(jsonl), split="train"), undo=arhn.revert)[0]) == {"train"}


def test_unknown_columns_and_splits(tmp_path, sample, monkeypatch):
    """Unknown columns are refused with the known forms, a missing split with those there are."""
    (tmp_path / "a.jsonl").write_text('{"question": "q", "reply": "a"}\n', encoding="utf-8")
    with pytest.raises(SchemaError, match="reply.*"):
        refine(Input(name=str(tmp_path / "a.jsonl")), tmp_path / "out", stages())
    DatasetDict({"train": Dataset.from_list(sample[:1])}).save_to_disk(str(tmp_path / "in"))
    with pytest.raises(InputError, match=r"has no split 'dev'; its splits are \['train'\]"):
        refine(Input(name=str(tmp_path / "in"), split="dev"), tmp_path / "out", stages())
    monkeypatch.setattr(sources, "dataset_of", lambda *_, **__: Dataset.from_list(sample[:1]).select([]))
    with pytest.raises(InputError, match="has no rows"):
        refine(Input(name=str(tmp_path / "a.jsonl")), tmp_path / "out", stages())


def test_a_hub_id_is_pinned_to_a_commit(monkeypatch, sample):
    """The commit that the Hub names is loaded and recorded; offline the asked revision stands."""
    import huggingface_hub

    asked = []

    def load(name, config, revision):
        asked.append((name, config, revision))
        return DatasetDict({"train": Dataset.from_list(sample[:1])})

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Info())
    _, provenance = sources.load_input(Input(name="user/rows", config="c"), undo=arhn.revert)
    assert asked == [("user/rows", "c", "c0ffee")]
    assert (provenance["kind"], provenance["name"], provenance["revision"]) == ("hub", "user/rows", "c0ffee")

    def offline(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert sources.load_input(Input(name="user/rows", revision="v1"), undo=arhn.revert)[1]["revision"] == "v1"


def test_a_run_through_an_endpoint_records_the_model_and_no_secret(server, jsonl, tmp_path):
    """Model, revision and server stand in run.json and the card; URL and key nowhere."""
    server.api_key = "s3cret"
    annotator = arhn.Endpoint(server.url, api_key="s3cret")
    done = refine(Input(name=str(jsonl), limit=12), tmp_path / "out", stages(annotator))
    assert done.report.total.relabelled > 0
    card, run = ((done.path / name).read_text(encoding="utf-8") for name in ("README.md", "run.json"))
    for text in (card, run):
        assert "some/model" in text
        assert "0123abcd" in text
        assert "s3cret" not in text
        assert "127.0.0.1" not in text
    asked = server.stats.requests
    refine(Input(name=str(jsonl), limit=12), tmp_path / "out", stages(annotator, policy="filter"))
    assert server.stats.requests == asked, "another policy costs no call"


def test_an_endpoint_is_kept_full(jsonl, tmp_path):
    """As many requests at once as the server takes, and as many as there are passages and rankings."""
    with Emulator(max_concurrent_requests=48, reply=Together(47, arhn.Lexical(threshold=0.3))) as server:
        done = refine(Input(name=str(jsonl)), tmp_path / "out", stages(arhn.Endpoint(server.url, cache="none")))
        assert server.stats.peak_in_flight == 47
        assert done.run["requests"]["replies"] == server.stats.requests
    total = done.report.total
    ranked = sum(total.rankings.values()) - total.rankings["skipped"]
    assert server.stats.requests == sum(total.snippets.values()) + ranked


def test_failed_requests_are_asked_again_by_the_next_run(server, jsonl, tmp_path):
    """Errors are recorded with their status, move nothing, and a rerun asks only for them."""
    server.set_faults(Fault(kind="text_422", on=lambda seen: seen.number % 3 == 0))
    annotator = arhn.Endpoint(server.url, attempts=1)
    first = refine(Input(name=str(jsonl), limit=8), tmp_path / "out", stages(annotator))
    failed = first.report.total.errors
    assert failed > 0
    server.set_faults()
    asked = server.stats.requests
    second = refine(Input(name=str(jsonl), limit=8), tmp_path / "out", stages(annotator))
    assert second.report.total.errors == 0
    assert failed <= server.stats.requests - asked <= failed + 8
    whole = refine(Input(name=str(jsonl), limit=8), tmp_path / "fresh", stages(arhn.Endpoint(server.url, cache="none")))
    assert list(second.rows()) == list(whole.rows())


def test_the_terms_of_a_hub_source_are_recorded(monkeypatch, sample):
    """Licence, languages and visibility: as the Hub tags them, else as the README has them, else nothing."""
    import huggingface_hub
    from huggingface_hub import DatasetCardData

    class Info:
        sha, private, gated = "c0ffee", True, "manual"
        tags, card_data = ["license:cc-by-4.0", "language:en", "language:de", "other"], None

    def read():
        return sources.load_input(Input(name="user/rows"), undo=arhn.revert)[1]

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: DatasetDict({"train": Dataset.from_list(sample[:1])})
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Info())
    source = read()
    assert (source["license"], source["languages"]) == ("cc-by-4.0", ["en", "de"])
    assert (source["private"], source["gated"]) == (True, "manual")
    Info.tags, Info.card_data = [], DatasetCardData(license=["mit", "apache-2.0"], language="nl")
    source = read()
    assert (source["license"], source["languages"]) == (["mit", "apache-2.0"], ["nl"])
    Info.card_data = None
    assert (read()["license"], read()["languages"]) == (None, [])


def test_refining_a_result_inherits_the_terms_of_its_source(jsonl, tmp_path):
    """A private source stays one after a second run on the first one's folder."""
    done = refine(Input(name=str(jsonl), limit=3), tmp_path / "one", stages())
    run = {**done.run, "source": {**done.run["source"], "private": True, "license": "mit", "revision": "c0ffee"}}
    (done.path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    source = refine(Input(name=str(done.path)), tmp_path / "two", stages()).run["source"]
    assert (source["private"], source["license"], source["revision"]) == (True, "mit", None)


def test_the_run_names_every_data_file_with_its_hash(jsonl, tmp_path):
    """What stands in run.json is what is on the disk, and the card has rows and sizes of it."""
    import hashlib

    import yaml

    done = refine(Input(name=str(jsonl)), tmp_path / "out", stages(min_negatives=4, on_shortage="drop"))
    run = json.loads((done.path / "run.json").read_text(encoding="utf-8"))
    assert run == done.run
    assert set(run["files"]) == {p.relative_to(done.path).as_posix() for p in done.path.rglob("*.parquet")}
    for path, facts in run["files"].items():
        content = (done.path / path).read_bytes()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert facts["bytes"] == len(content)
    assert sum(facts["rows"] for facts in run["files"].values()) == run["counts"]["all"]["rows"]
    card = yaml.safe_load((done.path / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    infos = {info["config_name"]: info["splits"][0]["num_examples"] for info in card["dataset_info"]}
    assert infos["default"] + infos["dropped"] == run["counts"]["all"]["rows"]


def test_the_prompts_of_a_run_are_recorded_as_they_are_sent(server, jsonl, tmp_path):
    """The constant text of each task with places for query and passages; the baseline has none."""
    done = refine(Input(name=str(jsonl), limit=2), tmp_path / "out", stages(arhn.Endpoint(server.url)))
    prompts = done.run["prompts"]
    assert set(prompts) == {"question", "claim", "argument", "title"}
    question = prompts["question"]
    assert question["snippet"].startswith(arhn.PROMPTS.tasks["question"].snippet_instructions)
    assert "Question: {query}\n\n<passage>\n{passage}\n</passage>" in question["snippet"]
    assert "[1] {snippet}\n[2] {snippet}" in question["ranking"]
    assert len({prompt["hash"] for prompt in prompts.values()}) == 4
    card = (done.path / "README.md").read_text(encoding="utf-8")
    assert question["snippet"] in card
    assert question["hash"] in card
    assert refine(Input(name=str(jsonl), limit=2), tmp_path / "other", stages()).run["prompts"] == {}
