"""Publishing, against the Hub on loopback: one commit, every fault on the way, and what is said about it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.errors import AccessDenied, ConfigurationError, OutputError
from arhn_datasets.hub.pushing import preview, push
from arhn_datasets.hub.repository import replaced
from arhn_datasets.runs.saving import save
from tests.conftest import SAMPLE
from tests.fakes.hub import STORAGES, TOKEN, USER, both_storages, log_in

REPO = f"{USER}/refined"
COMMAND = "import sys; from arhn_datasets.cli import push_command; sys.exit(push_command(sys.argv[1:]))"


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory):
    """Refined folders of the first four and of the first six rows of the sample."""
    root = tmp_path_factory.mktemp("refined")
    for rows in (4, 6):
        options = ["--annotator", "lexical", "--output", str(root / str(rows)), "--limit", str(rows)]
        assert cli.refine_command([str(SAMPLE), *options]) == 0
    return {rows: root / str(rows) for rows in (4, 6)}


@pytest.fixture
def old(two_runs, tmp_path):
    """Four refined rows."""
    return shutil.copytree(two_runs[4], tmp_path / "old")


@pytest.fixture
def new(two_runs, tmp_path):
    """Six refined rows."""
    return shutil.copytree(two_runs[6], tmp_path / "new")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("arhn_datasets.hub.repository.LONGEST_PAUSE_SECONDS", 0.0)


def number_of_rows(**options):
    return len(datasets.load_dataset(REPO, split="train", **options))


def private_source(folder):
    """As if the rows had come from a private dataset."""
    path = folder / "run.json"
    run = json.loads(path.read_text())
    run["source"] |= {"name": "writer/secret", "kind": "hub", "private": True}
    path.write_text(json.dumps(run))
    return folder


@both_storages
def test_one_commit_carries_everything(hub, old):
    """A private repository is made; its second commit is the whole dataset, and it loads."""
    pushed = push(old, REPO, message="m")
    repository = hub.repositories[REPO]
    assert repository.private
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "m"]
    assert pushed.url == f"{hub.url}/datasets/{REPO}/commit/{hub.head(REPO).sha}"
    assert pushed.pull_request_url is None
    assert {file.path for file in pushed.files} == set(hub.files(REPO)) - {".gitattributes"}
    assert number_of_rows() == 4
    assert not hub.calls("unknown")


@both_storages
def test_a_new_version_replaces_the_old_one(hub, old, new):
    """Shards and configs that are no more are deleted in the same commit; files of others are kept."""
    push(old, REPO, formats=("triplet", "pair"))
    hub.commit(REPO, {"data/train-00001-of-00009.parquet": b"left", "notes/mine.txt": b"kept", "LICENSE": b"kept"})
    push(new, REPO, formats=("pair",))
    files = hub.files(REPO)
    assert {path for path in files if path.startswith(("triplet/", "notes/", "LICENSE"))} == {
        "notes/mine.txt",
        "LICENSE",
    }
    assert "data/train-00001-of-00009.parquet" not in files
    assert any(path.startswith("pair/") for path in files)
    assert number_of_rows() == 6
    assert len(hub.calls("commit")) == 2


def test_a_dataset_that_was_never_ours_keeps_its_other_folders(hub, old):
    """What lies in ``data`` is replaced; a corpus of somebody's is not."""
    hub.repository(REPO)
    hub.commit(
        REPO, {"data/train-0-of-1.parquet": b"x", "corpus/corpus.jsonl": b"{}", "README.md": b"# Hand-written\n"}
    )
    push(old, REPO)
    assert hub.files(REPO)["corpus/corpus.jsonl"] == b"{}"
    assert "data/train-0-of-1.parquet" not in hub.files(REPO)
    assert number_of_rows() == 4


def test_the_same_push_again_changes_nothing(hub, old):
    """No empty commit, and the URL of the one that is there."""
    first = push(old, REPO)
    assert push(old, REPO).url == first.url
    assert len(hub.repositories[REPO].commits) == 2


def relabelled(rows, lexical):
    """The rows after the three stages, as a script makes them."""
    stages = (arhn.Snippets(annotator=lexical), arhn.Ranks(annotator=lexical), arhn.Relabel(policy="relabel"))
    for stage in stages:
        rows = rows.map(stage)
    return rows, stages


def test_rows_of_a_map_are_published_as_they_are(hub, sample):
    """arhn.push takes a DatasetDict, names the transforms in run.json, and what is there holds."""
    lexical = arhn.Lexical.fitted(sample[:10])
    train, stages = relabelled(datasets.Dataset.from_list(sample[:6]), lexical)
    test, _ = relabelled(datasets.Dataset.from_list(sample[6:10]), lexical)
    arhn.push(datasets.DatasetDict(train=train, test=test), REPO, formats=("pair",), transforms=stages)
    loaded = datasets.load_dataset(REPO)
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 6, "test": 4}
    run = json.loads(hub.files(REPO)["run.json"])
    assert run["annotator"]["annotator"] == lexical.description()["annotator"]
    assert run["parameters"]["relabel"]["policy"] == "relabel"
    assert run["source"]["kind"] == "memory"
    assert arhn.verify(REPO).holds


def test_rows_without_their_transforms_are_published_as_such(hub, sample):
    """The policy is that of the rows, the annotator is not recorded, the source is that of their cache."""
    hub.repository("writer/source")
    datasets.Dataset.from_list(sample[:5]).push_to_hub("writer/source")
    rows, _ = relabelled(datasets.load_dataset("writer/source", split="train"), arhn.Lexical.fitted(sample))
    arhn.push(rows, REPO)
    run = json.loads(hub.files(REPO)["run.json"])
    assert run["annotator"] == {"annotator": "not recorded"}
    assert run["parameters"]["relabel"]["policy"] == "relabel"
    assert (run["source"]["name"], run["source"]["revision"]) == ("writer/source", hub.head("writer/source").sha)
    assert arhn.verify(REPO).holds


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda rows: rows.remove_columns("decision"), {}, "were not relabelled"),
        (lambda rows: rows.to_list(), {}, "neither a Dataset nor a DatasetDict"),
        (lambda rows: rows.select([]), {}, "no rows"),
        (lambda rows: rows, {"transforms": [arhn.revert]}, "transforms has"),
        (lambda rows: rows, {"source": "not an id"}, "source is"),
        (lambda rows: rows, {"transforms": [arhn.Relabel(policy="filter")]}, "not what its run has written"),
    ],
)
def test_rows_that_cannot_be_published(hub, sample, change, options, said):
    """What was found, and what to do; nothing reaches the Hub."""
    rows, _ = relabelled(datasets.Dataset.from_list(sample[:4]), arhn.Lexical.fitted(sample))
    with pytest.raises(arhn.ArhnError, match=said):
        arhn.push(change(rows), REPO, **options)
    assert not hub.calls("commit")


def test_another_licence_has_to_be_said_out_loud(hub, old, tmp_path, capsys):
    """Facts that name another one than the source's are refused without --license; with it, both are in the card."""
    run = json.loads((old / "run.json").read_text())
    run["source"]["license"] = "cc-by-nc-4.0"
    (old / "run.json").write_text(json.dumps(run))
    (tmp_path / "facts.yaml").write_text("license: mit\ndescription: Rows of ours.\n")
    command = [str(old), REPO, "--facts", str(tmp_path / "facts.yaml")]
    assert cli.push_command(command) == 2
    assert "--license mit" in capsys.readouterr().err
    assert cli.push_command([*command, "--license", "mit"]) == 0
    card = hub.files(REPO)["README.md"].decode()
    assert "\nlicense: mit\n" in card
    assert "cc-by-nc-4.0" in card
    assert "Rows of ours." in card


def test_formats_have_the_asked_width(hub, old):
    """--negatives is the width of n-tuple."""
    assert cli.push_command([str(old), REPO, "--format", "n-tuple", "--negatives", "2"]) == 0
    rows = datasets.load_dataset(REPO, "n-tuple", split="train")
    assert rows.column_names == ["anchor", "positive", "negative_1", "negative_2"]


LARGE = """
import sys
import pyarrow
from arhn_datasets.cli import push_command
sys.modules["arhn_datasets.folder.parquet"].SHARD_BYTES = 40_000_000
code = push_command(sys.argv[1:])
print(pyarrow.default_memory_pool().max_memory())
sys.exit(code)
"""


@pytest.mark.exhaustive
def test_a_large_dataset_goes_up_in_shards_and_in_bounded_memory(hub, sample, tmp_path):
    """480 MB of text take no more memory than a part of it; the shards are counted, and bars show both steps."""
    short = {**sample[0], "negative_passages": [{"docid": "n", "title": "", "text": "Of something else."}]}
    made, stages = relabelled(datasets.Dataset.from_list([short]), arhn.Lexical.fitted(sample))
    assert made[0]["negative_passages"]
    long = [{"docid": "n", "title": "", "text": os.urandom(10_000).hex()} for _ in range(24_000)]
    rows = datasets.Dataset.from_list([{**made[0], "negative_passages": [one]} for one in long], features=made.features)
    save(rows, tmp_path / "large", transforms=stages)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "large"), REPO, "--format", "triplet"],
        env=hub.environment(TOKEN),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 300_000_000
    shards = [path for path in hub.files(REPO) if path.startswith("data/")]
    assert len(shards) > 1
    assert shards == [f"data/train-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))]
    assert "publish" in done.stderr
    assert "%" in done.stderr.split("publish")[-1]
    assert number_of_rows() == 24_000


def test_a_folder_needs_no_words_about_its_rows(hub, old):
    """source= and transforms= go with rows in memory."""
    with pytest.raises(ConfigurationError, match=r"run\.json"):
        arhn.push(old, REPO, source="writer/source")


@pytest.mark.parametrize("hub", STORAGES, indirect=True)
@pytest.mark.parametrize("status", [503, 429])
def test_a_storage_that_stays_away_ends_the_push(hub, old, new, status):
    """Also where the storage's own library would ask without end; the old data stays."""
    push(old, REPO)
    before = hub.head(REPO).sha
    hub.fail("xet" if hub.storage == "xet" else "lfs", status, times=-1)
    with pytest.raises(OutputError, match="Run arhn-push again"):
        push(new, REPO)
    assert hub.head(REPO).sha == before


paths = st.lists(st.sampled_from(["data/a", "data/b", "dropped/a", "triplet/a", "notes/a", "README.md", "a.txt"]))


@given(there=paths, new=paths, ours=st.booleans())
def test_only_what_a_push_has_written_is_deleted(there, new, ours):
    """Never a file of the new version, nor one at the root or in a folder that is not ours."""
    gone = set(replaced(there, new, ours=ours))
    assert gone <= set(there) - set(new)
    assert not gone & {"README.md", "a.txt"}
    assert "notes/a" not in gone or any(path.startswith("notes/") for path in new)
    if ours:
        assert gone >= (set(there) - set(new)) & {"data/a", "data/b", "dropped/a", "triplet/a"}


@both_storages
def test_a_branch_is_made(hub, old, new):
    """``revision`` is committed to and the main branch stays."""
    push(old, REPO)
    for _ in range(2):
        push(new, REPO, revision="v2")
    assert number_of_rows() == 4
    assert number_of_rows(revision="v2") == 6


@both_storages
def test_a_pull_request_proposes(hub, old, new):
    """The main branch changes when it is merged."""
    push(old, REPO)
    pushed = push(new, REPO, create_pr=True)
    assert pushed.pull_request_url == f"{hub.url}/datasets/{REPO}/discussions/1"
    assert number_of_rows() == 4
    assert number_of_rows(revision="refs/pr/1") == 6


def test_a_reader_may_propose(hub, old, new, monkeypatch):
    """Who cannot write to a repository of others is told of --create-pr, and can use it."""
    push(old, REPO, private=False)
    log_in(hub.user("guest", "hf_guest"), monkeypatch)
    with pytest.raises(AccessDenied, match=r"right to write in writer, and may write in guest.*--create-pr"):
        push(old, REPO)
    assert push(new, REPO, create_pr=True).pull_request_url


# Faults.


@both_storages
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 0])
def test_a_busy_hub_is_asked_again(hub, old, new, status, monkeypatch):
    """Each route fails once or twice: the push succeeds, with one commit."""
    push(old, REPO)
    storage = ["xet"] if hub.storage == "xet" else ["lfs", "put", "verify"]
    routes = ["whoami", "info", "tree", "resolve", "validate", "preupload", "commit", *storage]
    for route in routes:
        hub.fail(route, status, times=2 if route == "commit" else 1)
    pushed = push(new, REPO)
    monkeypatch.undo()
    assert [call.status for call in hub.calls("commit")][1:] == [status, status, 200]
    assert pushed.url.endswith(hub.head(REPO).sha)
    assert len(hub.repositories[REPO].commits) == 3
    failed = {call.route for call in hub.log if call.status == status}
    assert failed == set(routes)


@pytest.mark.parametrize("route", ["create", "branch"])
@pytest.mark.parametrize("status", [503, 429, 0])
def test_making_a_repository_or_branch_is_tried_again(hub, old, route, status):
    """Also where it was made and the reply got lost."""
    hub.fail(route, status, lost=status == 0)
    push(old, REPO, revision="v1")
    assert number_of_rows(revision="v1") == 4


@pytest.mark.parametrize("as_pull_request", [False, True])
@pytest.mark.parametrize("status", [0, 503, 504])
def test_a_commit_whose_reply_got_lost_is_not_made_twice(hub, old, new, status, as_pull_request):
    """The head is read again, and is found to be what was sent."""
    push(old, REPO)
    hub.fail("commit", status, lost=True)
    pushed = push(new, REPO, create_pr=as_pull_request)
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 3
    if as_pull_request:
        assert pushed.pull_request_url == f"{hub.url}/datasets/{REPO}/discussions/1"
        assert list(repository.pull_requests) == [1]
    else:
        assert pushed.url.endswith(hub.head(REPO).sha)
        assert number_of_rows() == 6


def test_a_lost_reply_and_another_writer(hub, old, new):
    """The first attempt did not go through and somebody else has committed: the push goes on top of that."""
    push(old, REPO)
    hub.fail("commit", 503)
    hub.before("commit", lambda: hub.commit(REPO, {"notes.txt": b"theirs"}))
    push(new, REPO)
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    assert number_of_rows() == 6


@both_storages
def test_a_changed_parent_is_read_again(hub, old, new):
    """Another writer comes between: 412, and the second attempt has seen what he did."""
    push(old, REPO)
    left = "data/train-00007-of-00009.parquet"

    def another():
        card = hub.files(REPO)["README.md"]
        hub.commit(REPO, {left: b"theirs", "mine.txt": b"theirs", "README.md": card + b"\nwritten by hand\n"})

    hub.before("commit", another)
    push(new, REPO)
    assert [call.status for call in hub.calls("commit")][1:] == [412, 200]
    files = hub.files(REPO)
    assert left not in files
    assert files["mine.txt"] == b"theirs"
    assert b"written by hand" in files["README.md"]
    assert number_of_rows() == 6


def test_a_file_that_another_writer_changed_meanwhile_is_sent_again(hub, old, new):
    """Equal to ours at the head that was read first, so nothing to do there, and not equal any more."""
    push(old, REPO)
    [shard] = [path for path in hub.files(REPO) if path.startswith("data/")]
    good = hub.files(REPO)[shard]
    hub.before("commit", lambda: hub.commit(REPO, {shard: b"broken"}))
    push(old, REPO, formats=["pair"])
    assert hub.files(REPO)[shard] == good


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "route", ["whoami", "info", "tree", "resolve", "validate", "preupload", "lfs", "put", "commit"]
)
@pytest.mark.parametrize("status", [503, 429, 412, 400, 0])
def test_a_hub_that_stays_away_leaves_the_old_data(hub, old, new, route, status, caplog, capsys):
    """The error says what happened, that nothing changed and what to run; the old rows load."""
    caplog.set_level(logging.CRITICAL)
    push(old, REPO)
    hub.fail(route, status, times=-1, message="out of order")
    assert cli.push_command([str(new), REPO]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert REPO in said
    assert "arhn-push" in said
    assert str(status) in said or status == 0 or route == "validate"
    hub._faults.clear()
    assert number_of_rows() == 4
    push(new, REPO)
    assert number_of_rows() == 6


@both_storages
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_killed_between_upload_and_commit(hub, old, new, signal_number):
    """Everything is uploaded and the process dies: the old rows load, and the same command ends it."""
    push(old, REPO)
    reached, go_on = threading.Event(), threading.Event()

    def hold():
        reached.set()
        go_on.wait(60)

    # Of the commit: the server holds it before it looks at it, and by then the client is dead.
    hub.before("commit", hold)
    hub.fail("commit", 0)
    running = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(new), REPO], env=hub.environment(), stderr=subprocess.PIPE, text=True
    )
    assert reached.wait(60)
    running.send_signal(signal_number)
    error = running.communicate(timeout=60)[1] if signal_number == signal.SIGKILL else ""
    go_on.set()
    error = error or running.communicate(timeout=60)[1]
    assert running.returncode == (-signal.SIGKILL if signal_number == signal.SIGKILL else 1)
    assert signal_number == signal.SIGKILL or "run the same command again" in error
    assert number_of_rows() == 4
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(new), REPO],
        env=hub.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"published {hub.url}/datasets/{REPO}/commit/{hub.head(REPO).sha}" in done.stdout
    assert number_of_rows() == 6


# Rights and names.


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "There is no token.*hf auth login.*--token"),
        ("hf_wrong", "does not know this token.*hf auth login.*--token"),
        ("hf_old", "has expired.*hf auth login.*--token"),
        ("hf_reader", "may only read: it lacks the right to write.*write access"),
        ("hf_other", "the token of other write to writer/refined: it lacks the right to write in writer"),
    ],
)
def test_who_may_not_write_is_told_why(hub, old, new, token, says, monkeypatch, capsys):
    """Nothing is built or sent, exit code 1, the token is not printed."""
    push(old, REPO)
    hub.user(USER, "hf_old", expired=True)
    hub.user(USER, "hf_reader", "read")
    hub.user("other", "hf_other")
    log_in(token, monkeypatch)
    uploads = len(hub.calls("preupload"))
    with pytest.raises(AccessDenied, match=says):
        push(new, REPO)
    assert cli.push_command([str(new), REPO]) == 1
    said = capsys.readouterr().err
    assert token is None or token not in said
    assert len(hub.calls("preupload")) == uploads
    log_in(TOKEN, monkeypatch)
    assert number_of_rows() == 4


def test_a_member_without_the_right_to_write_is_told_by_the_hub(hub, old, monkeypatch):
    """What whoami cannot know comes from the refusal itself."""
    hub.organization("lab", guest="read", writer="write")
    hub.repository("lab/rows", private=True)
    log_in(hub.user("guest", "hf_guest"), monkeypatch)
    for name in ("lab/rows", "lab/new"):
        with pytest.raises(AccessDenied, match="the token of guest.*lacks the right to write.*--create-pr"):
            push(old, name)
    log_in(TOKEN, monkeypatch)
    push(old, "lab/rows")
    assert "run.json" in hub.files("lab/rows")


def test_a_token_may_be_given(hub, old, monkeypatch):
    """And comes before that of the environment."""
    log_in("hf_wrong", monkeypatch)
    assert push(old, REPO, token=TOKEN).repo_id == REPO


@pytest.mark.parametrize(
    "name", ["refined", "a/b/c", "user/", "/name", "user/a b", "user/a--b", "user/é", "", "u/x.git"]
)
def test_a_malformed_name_is_refused_without_network(hub, old, name, capsys):
    """Also in a dry run."""
    for options in ([], ["--dry-run"]):
        assert cli.push_command([str(old), name, *options]) == 2
        assert "Expected user/name" in capsys.readouterr().err
    assert hub.log == []


def test_a_malformed_branch_or_message_is_refused_without_network(hub, old):
    """As git would."""
    for branch in ("", "a b", "a..b", "a/", "-x", "x.lock", "a^"):
        with pytest.raises(ConfigurationError, match="name of a branch"):
            push(old, REPO, revision=branch)
    with pytest.raises(ConfigurationError, match="message"):
        push(old, REPO, message=" ")
    assert hub.log == []


def test_nothing_can_be_proposed_to_what_does_not_exist(hub, old):
    """A pull request needs a repository, and a branch to build on."""
    with pytest.raises(OutputError, match="no dataset writer/refined.*without --create-pr"):
        push(old, REPO, create_pr=True)
    push(old, REPO)
    with pytest.raises(OutputError, match="no branch nowhere"):
        push(old, REPO, create_pr=True, revision="nowhere")


def test_what_is_private_stays_private(hub, old, capsys):
    """Refused for a new public repository and for one that is public already, unless it is asked for."""
    private_source(old)
    with pytest.raises(ConfigurationError, match=r"writer/secret is private.*--allow-private-source"):
        push(old, REPO, private=False, force=True)
    assert cli.push_command([str(old), REPO, "--public", "--dry-run", "--force"]) == 2
    assert "--allow-private-source" in capsys.readouterr().err
    assert REPO not in hub.repositories
    push(old, REPO, force=True)
    assert hub.repositories[REPO].private
    hub.repositories[REPO].private = False
    before = hub.head(REPO).sha
    with pytest.raises(ConfigurationError, match="private"):
        push(old, REPO, force=True)
    assert hub.head(REPO).sha == before
    assert cli.push_command([str(old), f"{REPO}-2", "--public", "--allow-private-source", "--force"]) == 0
    assert not hub.repositories[f"{REPO}-2"].private


# The folder.


def test_only_a_refined_folder_is_published(hub, tmp_path, old, capsys):
    """One that is not there, not ours, or half-written."""
    assert cli.push_command([str(tmp_path / "no"), REPO]) == 2
    (tmp_path / "other").mkdir()
    assert cli.push_command([str(tmp_path / "other"), REPO]) == 2
    for path in (old / "data").iterdir():
        path.unlink()
    assert cli.push_command([str(old), REPO]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert hub.log == []


def test_a_folder_that_was_edited_is_published_by_force_only(hub, old, capsys):
    """``arhn-verify`` runs first."""
    [shard] = (old / "data").iterdir()
    datasets.Dataset.from_parquet(str(shard), cache_dir=str(old.parent / "cache")).select([0, 1]).to_parquet(shard)
    for options in ([], ["--dry-run"]):
        assert cli.push_command([str(old), REPO, *options]) == 2
        said = capsys.readouterr().err
        assert "arhn-verify" in said
        assert "--force" in said
    assert hub.log == []
    assert cli.push_command([str(old), REPO, "--force"]) == 0
    assert number_of_rows() == 2


def test_other_data_is_refused(hub):
    """With the class that was given."""
    with pytest.raises(ConfigurationError, match="int is neither a Dataset nor a DatasetDict"):
        push(3, REPO)


def test_a_dry_run_needs_no_network(hub, old, capsys):
    """Every file with its size, and the card; the same that a push sends."""
    hub.close()
    assert cli.push_command([str(old), REPO, "--dry-run", "--format", "pair"]) == 0
    printed = capsys.readouterr().out
    seen = preview(old, REPO, formats=["pair"])
    for file in seen.files:
        assert f"{file.size:>14,}  {file.path}\n" in printed
    assert any(file.path.startswith("pair/") for file in seen.files)
    assert seen.card in printed
    assert hub.log == []


def test_the_command_says_where_it_is(hub, old, new, capsys):
    """The commit and the line that loads it; the pull request."""
    assert cli.push_command([str(old), REPO, "--public", "--revision", "v1"]) == 0
    printed = capsys.readouterr().out
    assert f"published {hub.url}/datasets/{REPO}/commit/{hub.head(REPO, 'v1').sha}" in printed
    assert f'load_dataset("{REPO}", revision="v1")' in printed
    assert not hub.repositories[REPO].private
    assert cli.push_command([str(new), REPO, "--create-pr", "--message", "more rows"]) == 0
    assert f"proposed {hub.url}/datasets/{REPO}/discussions/1" in capsys.readouterr().out
    assert hub.head(REPO, "refs/pr/1").title == "more rows"
