"""Whether a folder is what its run has written: every kind of damage is found, and an untouched folder has none."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.checks.row_checks import (
    impossible_ranks,
    misplaced_passages,
    ungrounded_snippets,
    unknown_statuses,
    wrong_labels,
)
from arhn_datasets.checks.verification import StoredRows, verify, verify_folder
from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder.reading import open_folder, read_rows, read_tables, sha256_of
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.inputs.sources import folder_or_repository
from arhn_datasets.rows.records import PASSAGE_TYPE, SNIPPET_TYPE
from arhn_datasets.runs.refine import Input, Stages, refine
from arhn_datasets.testing import Fault
from tests.conftest import SAMPLE
from tests.folder.test_evidence_table import in_other_buffers


def refined(folder, source=SAMPLE, **options):
    """A refined folder of the sample."""
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical),
        ranks=arhn.Ranks(annotator=lexical),
        relabel=arhn.Relabel(**options),
    )
    return refine(Input(name=str(source)), folder, stages).path


FORMATS = ("triplet", "n-tuple", "labeled-list", "pair", "labeled-pair", "flagembedding", "mteb")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A refined folder that nobody touched, with rows that a guard dropped."""
    return refined(tmp_path_factory.mktemp("whole") / "refined", min_negatives=4, on_shortage="drop")


@pytest.fixture(scope="module")
def whole_published(whole, tmp_path_factory):
    """The same as it is published, in every format."""
    target = tmp_path_factory.mktemp("published") / "published"
    build_publication(open_folder(whole), target, formats=FORMATS)
    return target


@pytest.fixture(params=["refined", "published"])
def folder(request, tmp_path):
    """A copy to damage."""
    made = request.getfixturevalue("whole" if request.param == "refined" else "whole_published")
    return Path(shutil.copytree(made, tmp_path / request.param))


def found(path):
    """The checks that are violated."""
    return set(verify_folder(path).found)


def edit_run(folder, edit):
    """Change run.json by hand."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    edit(run)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")


def rewrite(folder, part, edit, *, known=True):
    """Change the rows of the first shard in a part of a folder; ``known`` makes run.json know the new content."""
    path = sorted((folder / part).glob("*.parquet"))[0]
    schema = pq.read_schema(path)
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(edit(rows) or rows, schema=schema), path)
    if known:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        edit_run(folder, lambda run: run["files"][name].update(facts))


@pytest.mark.parametrize(
    "options",
    [
        {
            "policy": policy,
            "min_negatives": least,
            "on_shortage": shortage,
            "max_relabelled": most,
            "on_excess": shortage,
        }
        for policy in ("relabel", "filter", "relabel+filter")
        for shortage in ("keep", "drop", "allow")
        for least, most in ((1, None), (4, 1))
    ]
    + [{"unsupported": name, "reference": "worst", "ties": "below"} for name in ("keep", "relabel")],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_untouched_folders_hold(options, tmp_path):
    """Every policy and every guard: nothing is violated, and everything was looked at."""
    done = verify_folder(refined(tmp_path / "out", **options))
    assert done.holds, done.violations
    assert done.notes == []
    assert done.checks["rows"] == done.checks["labels"] == 69
    assert done.checks["passages"] == 400
    assert done.checks["snippets"] > 90


@pytest.mark.parametrize(
    "options",
    [
        {"rank_by": "passage"},
        {"rank_by": "passage", "window": 3, "stride": 1, "permutations": 3},
        {"window": 3, "stride": 2, "permutations": 2},
    ],
)
@pytest.mark.parametrize("policy", ["filter", "relabel+filter"])
def test_rankings_of_every_kind_hold(options, policy, server, tmp_path):
    """Windows, permutations, whole passages; refused requests and replies that nothing can be read from."""
    server.set_faults(
        Fault(kind="text_422", on=lambda seen: seen.number % 5 == 0),
        Fault(kind="garbage", text="[2] > [1] I cannot say.", on=lambda seen: seen.number % 7 == 0),
    )
    endpoint = arhn.Endpoint(server.url, attempts=1, cache="none")
    stages = Stages(
        snippets=arhn.Snippets(annotator=endpoint),
        ranks=arhn.Ranks(annotator=endpoint, **options),
        relabel=arhn.Relabel(policy=policy),
    )
    done = refine(Input(name=str(SAMPLE)), tmp_path / "out", stages)
    assert done.report.total.errors > 0
    assert verify_folder(done.path).violations == []
    build_publication(open_folder(done.path), tmp_path / "published", formats=["triplet"])
    assert verify_folder(tmp_path / "published").violations == []


def test_a_published_folder_holds(folder, capsys):
    """Both layouts, with the command: a line for each check, and exit code 0."""
    (folder / "NOTES.md").write_text("By hand.", encoding="utf-8")
    (folder / "data" / "NOTES.txt").write_text("By hand, too.", encoding="utf-8")
    assert cli.verify_command([str(folder)]) == 0
    printed = capsys.readouterr()
    for line in (
        "rows                69  rows, as",
        "labels              69  rows",
        "passages           400  passages",
    ):
        assert f"\n{line}" in printed.out
    assert ("formats" in printed.out) == (folder.name == "published")
    assert f"{folder} is what its run has written" in printed.out
    assert printed.err == ""


# What is done to the files.


def shard_missing(folder):
    next((folder / "data").glob("*.parquet")).unlink()


def dropped_missing(folder):
    next((folder / "dropped").glob("*.parquet")).unlink()


def shard_added(folder):
    shutil.copy(next((folder / "data").glob("*.parquet")), folder / "data" / "train-extra.parquet")


def shard_doubled(folder):
    shutil.copy(next((folder / "data").glob("*.parquet")), folder / "data" / "train-00001-of-00001.parquet")


def shard_cut(folder):
    path = next((folder / "data").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])


def text_edited(folder):
    def edit(rows):
        rows[0]["negative_passages"][0]["text"] += " "

    rewrite(folder, "data", edit, known=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shard_missing, "data/train-00000-of-00001.parquet is missing"),
        (dropped_missing, "dropped/train-00000-of-00001.parquet is missing"),
        (shard_added, "data/train-extra.parquet was added"),
        (shard_doubled, "data/train-00001-of-00001.parquet was added"),
        (shard_cut, "data/train-00000-of-00001.parquet was changed"),
        (text_edited, "data/train-00000-of-00001.parquet was changed: its SHA-256 is"),
    ],
)
def test_damaged_files(damage, message, folder, capsys):
    """A shard that is missing, added, cut or edited is named, with exit code 1 and no traceback."""
    damage(folder)
    assert cli.verify_command([str(folder)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "is not what its run has written" in error
    assert "Traceback" not in error
    assert "files" in found(folder)


# What is done to the rows, by layout, with a run.json that knows the new content.


def grounded(row):
    """The first positive with a snippet."""
    return next((i for i, snippet in enumerate(row["positive_snippets"]) if snippet["status"] == "grounded"), None)


def some(rows, where):
    """The first row for which something holds."""
    return next(row for row in rows if where(row))


def offset(rows):
    row = some(rows, lambda row: grounded(row) is not None)
    row["positive_snippets"][grounded(row)]["start"] += 1


def beyond(rows):
    row = some(rows, lambda row: grounded(row) is not None)
    row["positive_snippets"][grounded(row)]["start"] = -1


def words(rows):
    row = some(rows, lambda row: grounded(row) is not None)
    row["positive_snippets"][grounded(row)]["snippet"] = "Other words."


def kept_words(rows):
    row = some(rows, lambda row: grounded(row) is not None)
    row["positive_snippets"][grounded(row)]["status"] = "no_answer"


def no_field(rows):
    row = some(rows, lambda row: grounded(row) is not None)
    row["positive_snippets"][grounded(row)]["field"] = "body"


def snippet_status(rows):
    rows[0]["negative_snippets"][0]["status"] = "maybe"


def ranking_status(rows):
    rows[0]["ranking"]["status"] = "maybe"


def rank(rows):
    row = some(rows, lambda row: row["ranking"]["status"] == "ranked")
    row["positive_ranks"] = [rank + 1 if rank else None for rank in row["positive_ranks"]]


def no_rank(rows):
    row = some(rows, lambda row: row["ranking"]["status"] == "ranked")
    for side in ("positive", "negative", "filtered"):
        row[f"{side}_ranks"] = [None for _ in row[f"{side}_ranks"]]


def candidates(rows):
    some(rows, lambda row: row["ranking"]["status"] == "ranked")["ranking"]["candidates"] += 1


def ALONG(side):
    return [f"{side}_{name}" for name in ("passages", "snippets", "ranks", "origins")]


def flipped(rows):
    """A negative becomes a positive without evidence."""
    row = some(rows, lambda row: row["decision"]["status"] == "unchanged")
    for source, target in zip(ALONG("negative"), ALONG("positive"), strict=True):
        row[target].append(row[source].pop())


def moved_back(rows):
    """A passage that was filtered is put back."""
    row = some(rows, lambda row: row["filtered_passages"])
    for source, target in zip(ALONG("filtered"), ALONG("negative"), strict=True):
        row[target].append(row[source].pop())


def shuffled(rows):
    row = some(rows, lambda row: len(row["negative_passages"]) > 1)
    for column in ALONG("negative"):
        row[column].reverse()


def doubled(rows):
    """A passage takes the place of another one."""
    row = some(rows, lambda row: len(row["negative_origins"]) > 1)
    row["negative_origins"][0] = dict(row["negative_origins"][1])


def lost(rows):
    """A passage in the middle is taken out with all its evidence."""
    row = some(rows, lambda row: len(row["negative_origins"]) > 2)
    for column in ALONG("negative"):
        del row[column][0]


def last_lost(rows):
    """The last passage of the source is taken out: only the counts know."""
    row = some(rows, lambda row: row["decision"]["status"] == "unchanged")
    for column in ALONG("negative"):
        del row[column][-1]


def renamed(rows):
    rows[0]["negative_origins"][0]["label"] = "other"


def snippet_lost(rows):
    rows[0]["negative_snippets"].pop()


def decided(rows):
    some(rows, lambda row: row["decision"]["status"] == "unchanged")["decision"]["status"] = "changed"


def guarded(rows):
    some(rows, lambda row: row["decision"]["status"] == "changed")["decision"]["policy"] = "relabel"


def put_among_the_kept(rows):
    some(rows, lambda row: row["decision"]["status"] == "unchanged")["decision"]["status"] = "dropped"


def undecided(rows):
    rows[0]["decision"] = None


def row_lost(rows):
    return rows[1:]


@pytest.mark.parametrize(
    ("damage", "check", "message"),
    [
        (
            offset,
            "snippets",
            r"positive \d+ is grounded, with the snippet “.*” at \d+:\d+ of its text, where there is “",
        ),
        (beyond, "snippets", "words and their place in text or title were expected"),
        (words, "snippets", "with the snippet “Other words.”"),
        (kept_words, "snippets", "is no_answer and has a snippet or offsets"),
        (no_field, "snippets", "of its body"),
        (snippet_status, "statuses", "negative_snippets has the status 'maybe'; one of grounded, no_answer"),
        (ranking_status, "statuses", "ranking has the status 'maybe'"),
        (rank, "ranks", "its ranks are"),
        (no_rank, "ranks", r"ranking is ranked, and 0 of \d+ candidates have a rank"),
        (candidates, "ranks", "ranking has"),
        (flipped, "labels", r"docid '.*', negative \d+ of the source, stands in positive_passages; policy relabel"),
        (moved_back, "labels", "stands in negative_passages; .* puts it into filtered_passages by this evidence"),
        (shuffled, "labels", "in another order"),
        (doubled, "passages", r"negatives at \[.*\]; every place from 0 on was expected once"),
        (lost, "passages", "One was lost or doubled"),
        (last_lost, "counts", "run.json says that negatives of 'all' is 322; the rows make 321"),
        (renamed, "passages", "neithers? at"),
        (snippet_lost, "passages", r"negative_snippets has \d+ values for \d+ passages"),
        (decided, "labels", "its decision says status 'changed'; policy relabel.filter makes status 'unchanged'"),
        (guarded, "labels", "its decision says policy 'relabel'"),
        (put_among_the_kept, "labels", "its decision is dropped, and it stands in data/"),
        (undecided, "statuses", "decision has the status None"),
        (row_lost, "rows", "68 rows; run.json says that the source had 69"),
    ],
)
def test_damaged_rows(damage, check, message, whole, tmp_path, capsys):
    """Also when the hash in run.json fits: what the rows say is recomputed; split, row and query are named."""
    folder = Path(shutil.copytree(whole, tmp_path / "refined"))
    rewrite(folder, "data", damage)
    done = verify_folder(folder)
    assert check in done.found
    assert "files" not in done.found
    [violation, *_] = [
        violation for violation in done.violations if violation.check == check and re.search(message, violation.message)
    ]
    assert cli.verify_command([str(folder), "--show", "1"]) == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) <= 3
    if check in ("snippets", "ranks", "labels", "passages", "statuses"):
        assert (violation.split, violation.row is not None, bool(violation.query_id)) == ("train", True, True)
        [*rows] = [
            row for table in read_tables(folder / "data/train-00000-of-00001.parquet") for row in table.to_pylist()
        ]
        assert rows[violation.row]["query_id"] == violation.query_id


def test_the_first_violations_are_shown_and_all_are_counted(whole, tmp_path, capsys):
    """--show limits what is printed; of a check no more than a hundred are kept."""

    def edit(rows):
        for row in rows:
            for snippet in row["negative_snippets"]:
                snippet["status"] = "maybe"

    folder = Path(shutil.copytree(whole, tmp_path / "refined"))
    rewrite(folder, "data", edit)
    done = verify_folder(folder)
    assert done.found["statuses"] > 100
    assert sum(violation.check == "statuses" for violation in done.violations) == 100
    assert cli.verify_command([str(folder), "--show", "3"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n  ") == 4
    assert "shows more" in error


# What is done to run.json and to the card.


@pytest.mark.parametrize(
    ("edit", "check", "message"),
    [
        (lambda run: run["parameters"]["relabel"].update(policy="filter"), "labels", "policy filter"),
        (lambda run: run["parameters"]["relabel"].update(policy="all"), "labels", "the relabel parameters in run.json"),
        (lambda run: run["parameters"]["relabel"].update(speed=3), "labels", "the relabel parameters in run.json"),
        (
            lambda run: run["parameters"]["relabel"].update(min_negatives=0),
            "labels",
            "of the source, stands in",
        ),
        (lambda run: run["parameters"]["ranks"].update(rank_by="passage"), "ranks", "candidates"),
        (
            lambda run: run["counts"]["all"].update(relabelled=9999),
            "counts",
            "relabelled of 'all' is 9999; the rows make",
        ),
        (lambda run: run["counts"].pop("qa"), "counts", "of 'qa' is None; the rows make"),
        (lambda run: run.pop("counts"), "counts", "is None"),
        (lambda run: run["source"]["rows"].update(train=70), "rows", "69 rows; run.json says that the source had 70"),
        (lambda run: run["source"]["rows"].update(test=7), "files", "lacks the splits"),
        (lambda run: run["files"].update({"../run.json": {}}), "files", "is no entry of run.json"),
    ],
)
def test_an_edited_run(edit, check, message, folder):
    """Another policy, other counts, other rows of the source: the rows do not follow."""
    edit_run(folder, edit)
    done = verify_folder(folder)
    assert check in done.found
    assert any(re.search(message, violation.message) for violation in done.violations if violation.check == check)


def test_a_run_from_before_files_were_listed(folder, capsys):
    """Nothing is violated, and a note says what was not checked."""
    edit_run(folder, lambda run: run.pop("files"))
    assert cli.verify_command([str(folder)]) == 0
    assert "note: run.json lists no files" in capsys.readouterr().err


def card_number(text):
    return re.sub(r"(\| all \| )69( \|)", r"\g<1>70\2", text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (card_number, "it lacks the line | all | 69 |"),
        (lambda text: re.sub(r"num_examples: (\d+)", r"num_examples: 1\1", text), "says that config 'default' has 1"),
        (lambda text: text.replace("path: data/", "path: dropped/"), "the default config of README.md loads 1 files"),
        (lambda text: text.replace("---\n", "", 1), "has no metadata that can be read"),
        (lambda text: text.replace("configs:", "configs: ["), "has no metadata that can be read"),
    ],
)
def test_an_edited_card(edit, message, folder):
    """A count, and what the metadata loads; what is written beside is free."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\n## Mine\n\nBy hand.\n", encoding="utf-8")
    assert found(folder) == set()
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")
    done = verify_folder(folder)
    assert set(done.found) == {"counts"}
    assert any(message in violation.message for violation in done.violations)
    path.unlink()
    assert "counts" in found(folder)


def test_a_title_of_dashes_ends_no_metadata(folder):
    """Three dashes end the metadata on a line of their own alone."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub("pretty_name: .*", "pretty_name: Retrieval, part two ---", text), encoding="utf-8")
    assert found(folder) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run.json of arhn_datasets"),
        ("[]", "no run.json of arhn_datasets"),
        ('{"versions": {"other": "1"}}', "no run.json of arhn_datasets"),
        ("", "run.json cannot be read: Expecting value.*half-written"),
        ('{"versions": {"arhn_d', "run.json cannot be read: Unterminated string.*half-written"),
    ],
)
def test_what_is_no_folder_of_ours(content, message, tmp_path, capsys):
    """Wrong usage, which names what was expected; a file that is there and half-written is no absent one."""
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    assert cli.verify_command([str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(ConfigurationError, match="a revision"):
        verify(tmp_path, revision="main")


def test_splits_that_are_empty_or_many(tmp_path, sample):
    """Each split is checked by itself, under its own name."""
    DatasetDict({"train": Dataset.from_list(sample[:9]), "test": Dataset.from_list(sample[9:12])}).save_to_disk(
        str(tmp_path / "in")
    )
    folder = refined(tmp_path / "out", tmp_path / "in")
    assert verify_folder(folder).checks["rows"] == 12
    path = folder / "data" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["decision"]["status"] = "guarded"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    assert {violation.split for violation in verify_folder(folder).violations if violation.check == "labels"} == {
        "test"
    }


# Published: rows and evidence are two files.


def evidence_offset(rows):
    some(rows, lambda row: row["start"] is not None)["start"] += 1


def evidence_label(rows):
    """Of the last negative of a row, which becomes filtered: the default rows have it still."""
    at = next(i for i, row in enumerate(rows[:-1]) if row["label"] == "negative" and rows[i + 1]["row"] != row["row"])
    rows[at]["label"] = "filtered"


def evidence_added(rows):
    return [*rows, {**rows[-1], "row": rows[-1]["row"] + 1}]


def evidence_lost(rows):
    return rows[1:]


def default_flipped(rows):
    rows[0]["positive_passages"].append(rows[0]["negative_passages"].pop())


@pytest.mark.parametrize(
    ("part", "damage", "check"),
    [
        ("evidence", evidence_offset, "snippets"),
        ("evidence", evidence_label, "passages"),
        ("evidence", evidence_added, "passages"),
        ("evidence", evidence_lost, "passages"),
        ("data", default_flipped, "passages"),
        ("data", row_lost, "passages"),
        ("triplet", row_lost, "formats"),
        ("triplet", lambda rows: [*rows, rows[0]], "formats"),
        ("labeled-list", lambda rows: [{**row, "labels": row["labels"][::-1]} for row in rows], "formats"),
        ("corpus", row_lost, "formats"),
        ("qrels", lambda rows: [{**row, "score": 1 - row["score"]} for row in rows], "formats"),
    ],
)
def test_damaged_publications(part, damage, check, whole_published, tmp_path):
    """A label in one of the two files only, evidence that was edited, a format that does not follow from the rows."""
    folder = Path(shutil.copytree(whole_published, tmp_path / "published"))
    rewrite(folder, part, damage)
    assert check in found(folder)


def test_lines_and_formats_that_do_not_follow(whole_published, tmp_path):
    """A line of the JSON file, and formats in run.json that there are not."""
    folder = Path(shutil.copytree(whole_published, tmp_path / "published"))
    [path, *_] = sorted((folder / "flagembedding").rglob("*.jsonl"))
    name = path.relative_to(folder).as_posix()
    path.write_text(path.read_text(encoding="utf-8").replace('"pos": ["', '"pos": ["By hand. ', 1), encoding="utf-8")
    edit_run(folder, lambda run: run["files"][name].update(sha256=sha256_of(path)))
    [violation] = verify_folder(folder).violations
    assert str(violation) == f"formats: {name} is not what the rows make."
    edit_run(folder, lambda run: run["published"].update(formats=["poem"]))
    [violation] = verify_folder(folder).violations
    assert "the formats in run.json are none: The format is ['poem']" in violation.message


def test_a_repository(hub, whole_published, capsys):
    """It is downloaded and checked; a revision, a wrong name and a missing right are told."""
    hub.repository("writer/rows", private=True)
    paths = [path for path in whole_published.rglob("*") if path.is_file()]
    files = {path.relative_to(whole_published).as_posix(): path.read_bytes() for path in paths}
    good = hub.commit("writer/rows", files)
    hub.commit("writer/rows", {"README.md": b"# Mine"})
    assert cli.verify_command(["writer/rows", "--revision", good]) == 0
    assert f"writer/rows at {good} is what its run has written" in capsys.readouterr().out
    assert cli.verify_command(["writer/rows"]) == 1
    assert "counts: README.md" in capsys.readouterr().err
    assert cli.verify_command(["writer/rows", "--token", hub.user("reader", "hf_reader")]) == 2
    # Not the copy that is in the cache by now.
    assert "--token where it is private" in capsys.readouterr().err
    for name in ("writer/nothing", "no such/name/at all"):
        with pytest.raises(InputError, match="is no folder and cannot be downloaded"):
            verify(name)


@pytest.mark.parametrize("command", [["verify"], ["evaluate", str(SAMPLE.with_name("questions.truth.jsonl"))]])
def test_a_hub_that_cannot_be_reached(command):
    """What the transport raises is told in a line, whichever library it is of, with the address that was asked."""
    name, *further = command
    code = f"import sys; from arhn_datasets import cli; sys.exit(cli.{name}_command(sys.argv[1:]))"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    run = [sys.executable, "-c", code, "me/x", *further]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 2
    assert "me/x is no folder and cannot be downloaded: " in done.stderr
    assert "Check the connection to http://127.0.0.1:9 (HF_ENDPOINT)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_that_stops(hub, monkeypatch):
    """Timeouts of the transport as well, which are no OSError; files that came are kept."""

    class ReadTimeout(Exception):
        pass

    def timed_out(*args, **options):
        raise ReadTimeout("The read operation\ntimed out")

    hub.repository("writer/rows")
    hub.commit("writer/rows", {"README.md": b"# Mine"})
    monkeypatch.setattr("huggingface_hub.snapshot_download", timed_out)
    with pytest.raises(InputError, match="ReadTimeout: The read operation timed out. Check the connection to http"):
        folder_or_repository("writer/rows")


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="these datasets have no type for values of several types")
def test_values_of_several_types(sample, tmp_path):
    """JSON inside of lists, structs and passages: refined as it came, verified and published."""
    sample = copy.deepcopy(sample)  # that of all tests stays as it is
    for at, row in enumerate(sample):
        row |= {"meta": [1, "a"], "facts": {"a": [1, {"b": 2}]}}
        for passage in row["positive_passages"] + row["negative_passages"]:
            passage["score"] = 0.5 if at % 2 else "high"
    source, options = tmp_path / "rows.jsonl", ["--annotator", "lexical", "--on-shortage", "drop"]
    source.write_text("".join(json.dumps(row) + "\n" for row in sample), encoding="utf-8")
    out = tmp_path / "out"
    assert cli.refine_command([str(source), "--output", str(out), *options]) == 0
    assert cli.verify_command([str(out)]) == 0
    rows = {
        row["query_id"]: row for row in Dataset.from_parquet([str(path) for path in open_folder(out).shards("train")])
    }
    for row in sample:
        found = rows[row["query_id"]]
        assert (found["meta"], found["facts"]) == (row["meta"], row["facts"])
        scores = {passage["score"] for passage in found["positive_passages"] + found["negative_passages"]}
        assert scores == {row["positive_passages"][0]["score"]}
    build_publication(open_folder(out), tmp_path / "published", formats=["triplet", "labeled-list"])
    assert cli.verify_command([str(tmp_path / "published")]) == 0


# The checks alone.


EMPTY = ("positive", "negative", "filtered")


@given(rows=st.lists(st.integers(0, 30), max_size=8), takes=st.lists(st.integers(1, 9), max_size=40))
@settings(max_examples=40, deadline=None)
def test_stored_rows_are_compared_across_files(rows, takes, tmp_path_factory):
    """However rows lie in files and are taken, equal ones have no difference, and the end is seen."""
    numbers = iter(range(1000))
    folder = tmp_path_factory.mktemp("stored")
    paths = []
    for i, count in enumerate(rows):
        paths.append(folder / f"{i}.parquet")
        pq.write_table(pa.table({"x": pa.array([next(numbers) for _ in range(count)], pa.int64())}), paths[-1])
    stored, first, total = StoredRows("x", paths), 0, sum(rows)
    for take in takes:
        made = pa.table({"x": pa.array(range(first, first + take), pa.int64())})
        difference = stored.difference(made)
        if first + take > total:
            assert difference == f'row {total} of x is no row; the rows make {{"x":{total}}}.'
            return
        assert difference is None
        first += take
    assert (stored.difference(None) is None) == (first == total)


WORDS = st.text("aé€\U0001f600 ", max_size=4)
PLACES = st.none() | st.integers(-1, 6)
SNIPPETS = st.fixed_dictionaries(
    {
        "snippet": st.none() | WORDS,
        "start": PLACES,
        "end": PLACES,
        "field": st.sampled_from(["text", "text", "title", "docid", None]),
        "status": st.sampled_from(["grounded", "grounded", "grounded", "no_answer"]),
    }
)
PASSAGES = st.fixed_dictionaries({"docid": st.just("d"), "title": st.none() | WORDS, "text": st.none() | WORDS})


@given(
    rows=st.lists(st.none() | st.lists(st.tuples(PASSAGES, SNIPPETS), max_size=3), max_size=4),
    kind=st.sampled_from(["plain", "sliced", "chunked", "large"]),
)
@settings(max_examples=150, deadline=None)
def test_snippets_are_sought_in_characters(rows, kind):
    """As Python slices the text, whatever bytes its characters have; nulls, offsets past the end, any memory layout."""
    columns = {column: [] for side in EMPTY for column in (f"{side}_passages", f"{side}_snippets")}
    expected = []
    for at, pairs in enumerate(rows):
        for side in EMPTY:
            there = side == "negative"
            passages = [{"text": "without evidence"}] if pairs is None else [p for p, _ in pairs]
            columns[f"{side}_passages"].append(passages if there else [])
            columns[f"{side}_snippets"].append((None if pairs is None else [s for _, s in pairs]) if there else [])
        for passage, snippet in pairs or ():
            text = passage.get(snippet["field"]) if snippet["field"] in ("text", "title") else None
            words, start, end = (snippet[name] for name in ("snippet", "start", "end"))
            if snippet["status"] != "grounded":
                if any(snippet[name] is not None for name in ("snippet", "start", "end", "field")):
                    expected.append((at, "none were expected"))
            elif None in (text, words, start, end) or not 0 <= start < end:
                expected.append((at, "words and their place"))
            elif text[start:end] != words:
                expected.append((at, "where there is"))
    types = {"passages": pa.list_(PASSAGE_TYPE), "snippets": pa.list_(SNIPPET_TYPE)}
    table = pa.table({name: pa.array(values, types[name.split("_")[1]]) for name, values in columns.items()})
    found = sorted(ungrounded_snippets(in_other_buffers(table, kind)))
    assert [row for row, _ in found] == sorted(row for row, _ in expected)
    for row, message in found:
        assert any(row == at and said in message for at, said in expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_checks_of_rows_find_any_one_change(data, wide_rows):
    """Whatever single fact of the evidence is changed, some check of rows sees it, and sees that row alone."""
    rows = [json.loads(json.dumps(row)) for row in wide_rows]
    at = data.draw(st.integers(0, len(rows) - 1))
    side = data.draw(st.sampled_from([side for side in EMPTY if rows[at][f"{side}_passages"]]))
    i = data.draw(st.integers(0, len(rows[at][f"{side}_passages"]) - 1))
    snippet, origin = rows[at][f"{side}_snippets"][i], rows[at][f"{side}_origins"][i]
    kind = data.draw(st.sampled_from(["status", "origin", "label", "start", "rank", "text"]))
    if kind == "status":
        snippet["status"] = data.draw(st.sampled_from(["", "Grounded", "ok"]))
    elif kind == "origin":
        origin["position"] += data.draw(st.integers(1, 30))
    elif kind == "label":
        origin["label"] = {"positive": "negative", "negative": "positive"}[origin["label"]]
    elif kind == "rank":
        rows[at][f"{side}_ranks"][i] = (rows[at][f"{side}_ranks"][i] or 0) + data.draw(st.integers(1, 9)) + 20
    elif snippet["status"] != "grounded":
        snippet["start"] = 3
    elif kind == "start":
        snippet["start"] += 1
    else:
        passage = rows[at][f"{side}_passages"][i]
        passage[snippet["field"]] = "\U0001f600" + passage[snippet["field"]]
    assert violated(rows) == {at}


def violated(rows):
    """The rows of which some check says something."""
    table = pa.Table.from_pylist(rows, schema=wide_schema_of(rows))
    broken = {row for row, _ in misplaced_passages(table)}
    findings = [
        *unknown_statuses(table, unranked=False),
        *ungrounded_snippets(table),
        *impossible_ranks(table, "snippet"),
    ]
    if not broken:
        findings += wrong_labels(table, arhn.Relabel())
    return broken | {row for row, _ in findings}


def wide_schema_of(rows):
    """The types of wide rows."""
    from arhn_datasets.folder.evidence_table import wide_schema

    return wide_schema(Dataset.from_list([{k: rows[0][k] for k in CANONICAL}]).features.arrow_schema.remove_metadata())


CANONICAL = ("query_id", "query", "positive_passages", "negative_passages", "subset")


@pytest.fixture(scope="module")
def wide_rows(tmp_path_factory):
    """Refined rows, with characters outside of the basic plane before the snippets of some."""
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()][:12]
    for row in rows[::2]:
        for passage in (*row["positive_passages"], *row["negative_passages"]):
            passage["text"] = "\U0001f600 e\u0301 " + passage["text"]
    path = tmp_path_factory.mktemp("wide") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = list(read_rows(refined(path.parent / "out", path)))
    assert violated(made) == set()
    return made


def test_the_command_is_light():
    """--help needs no dataset library."""
    done = subprocess.run(
        [sys.executable, "-c", "from arhn_datasets.cli import verify_command; verify_command(['--help'])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "REPO_ID|DIR" in done.stdout
