"""The Hub of these tests, used by what it is made for: the installed ``huggingface_hub`` and ``datasets``."""

from __future__ import annotations

import re
import subprocess
import sys

import datasets
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.utils import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    get_session,
)

from tests.fakes.hub import TOKEN, USER, both_storages, log_in, running

REPO = f"{USER}/rows"


def rows(first=0, count=5):
    return datasets.Dataset.from_dict({"n": list(range(first, first + count)), "t": ["x" * 50] * count})


def add(path, content):
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def commit(*operations, message="edit", **options):
    return HfApi().create_commit(REPO, list(operations), commit_message=message, repo_type="dataset", **options)


def status(error):
    return error.value.response.status_code


@both_storages
def test_a_dataset_makes_the_round_trip(hub):
    """push_to_hub and load_dataset, whole and streamed, with two configs, and again after an overwrite."""
    datasets.DatasetDict(train=rows(), test=rows(5)).push_to_hub(REPO, private=True)
    rows(100).push_to_hub(REPO, config_name="other", private=True)
    loaded = datasets.load_dataset(REPO)
    assert {name: loaded[name]["n"][:] for name in loaded} == {"train": [0, 1, 2, 3, 4], "test": [5, 6, 7, 8, 9]}
    assert datasets.load_dataset(REPO, "other", split="train")["n"][:] == [100, 101, 102, 103, 104]
    streamed = datasets.load_dataset(REPO, split="test", streaming=True)
    assert [row["n"] for row in streamed] == [5, 6, 7, 8, 9]
    rows(50).push_to_hub(REPO, split="train")
    assert datasets.load_dataset(REPO, split="train")["n"][:] == [50, 51, 52, 53, 54]
    assert not hub.calls("unknown")
    uploads = {"lfs": "put", "xet": "xet"}[hub.storage]
    assert hub.calls(uploads)
    assert not hub.calls({"lfs": "xet", "xet": "put"}[hub.storage])


@both_storages
def test_a_folder_makes_the_round_trip(hub, tmp_path):
    """upload_folder and snapshot_download give the same bytes, large and small files, names with signs in them."""
    files = {"data/a b#1.parquet": b"P" * 70_000, "README.md": b"# hello\n", "deep/er/x.txt": b"x", "empty.txt": b""}
    for path, content in files.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "folder", repo_type="dataset")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "folder", repo_type="dataset")
    assert len(hub.calls("commit")) == 1, "nothing had changed"
    there = snapshot_download(REPO, repo_type="dataset")
    for path, content in files.items():
        with open(f"{there}/{path}", "rb") as file:
            assert file.read() == content
        assert hub.files(REPO)[path] == content
    sizes = {
        file.path: file.size
        for file in api.list_repo_tree(REPO, repo_type="dataset", recursive=True)
        if hasattr(file, "size")
    }
    assert {path: sizes[path] for path in files} == {path: len(content) for path, content in files.items()}
    [large] = api.get_paths_info(REPO, ["data/a b#1.parquet"], repo_type="dataset")
    assert large.lfs.size == 70_000
    assert bool(getattr(large, "xet_hash", None)) == (hub.storage == "xet")


@both_storages
def test_what_was_uploaded_is_not_uploaded_again(hub):
    """Blobs are known by their content; one without a commit is not seen by readers."""
    HfApi().create_repo(REPO, repo_type="dataset")
    before = hub.head(REPO).sha
    operation = add("data/a.parquet", b"rows" * 999)
    HfApi().preupload_lfs_files(REPO, [operation], repo_type="dataset", free_memory=False)
    assert hub.head(REPO).sha == before
    assert "data/a.parquet" not in hub.files(REPO)
    commit(add("data/a.parquet", b"rows" * 999))
    assert len(hub.calls("put")) <= 1
    assert hub.files(REPO)["data/a.parquet"] == b"rows" * 999


def test_large_files_come_in_parts(hub):
    """The multipart transfer of LFS."""
    hub.multipart = 1000
    HfApi().create_repo(REPO, repo_type="dataset")
    content = bytes(range(256)) * 11
    commit(add("a.parquet", content))
    assert len(hub.calls("put")) == 3
    assert hub.files(REPO)["a.parquet"] == content


def test_a_commit_of_a_blob_that_never_came_is_refused(hub):
    """The order is upload, then commit."""
    HfApi().create_repo(REPO, repo_type="dataset")
    operation = add("a.parquet", b"x")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    operation._should_ignore, operation._remote_oid = False, None
    with pytest.raises(HfHubHTTPError) as error:
        commit(operation)
    assert status(error) == 400


def test_the_parent_is_checked(hub):
    """A commit on what is no longer the head: 412, and nothing happens."""
    HfApi().create_repo(REPO, repo_type="dataset")
    parent = hub.head(REPO).sha
    first = commit(add("a.txt", b"1"), parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as error:
        commit(add("a.txt", b"2"), parent_commit=parent)
    assert status(error) == 412
    assert hub.head(REPO).sha == first.oid
    commit(add("a.txt", b"2"), parent_commit=first.oid)
    assert [c.title for c in HfApi().list_repo_commits(REPO, repo_type="dataset")] == ["edit", "edit", "initial commit"]


def test_deletions(hub):
    """A file, a folder, and one that is not there."""
    HfApi().create_repo(REPO, repo_type="dataset")
    commit(*(add(path, b"x") for path in ("a.txt", "b.txt", "f/1.parquet", "f/g/2.txt")))
    commit(CommitOperationDelete("a.txt"), CommitOperationDelete("f/"))
    assert set(hub.files(REPO)) == {".gitattributes", "b.txt"}
    with pytest.raises(EntryNotFoundError):
        commit(CommitOperationDelete("a.txt"))
    HfApi().delete_repo(REPO, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().dataset_info(REPO)


def test_branches_tags_and_revisions(hub):
    """Each ref has its own files; an unknown one is told."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    api.create_branch(REPO, branch="v/2", repo_type="dataset")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(REPO, branch="v/2", repo_type="dataset")
    assert status(error) == 409
    sha = commit(add("a.txt", b"2"), revision="v/2").oid
    api.create_tag(REPO, tag="t", revision="v/2", repo_type="dataset")
    for revision in ("v/2", sha, "t"):
        with open(hf_hub_download(REPO, "a.txt", repo_type="dataset", revision=revision), "rb") as file:
            assert file.read() == b"2"
        assert api.dataset_info(REPO, revision=revision).sha == sha
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "a.txt", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "a.txt", repo_type="dataset", revision="none")
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert [ref.name for ref in refs.branches] == ["main", "v/2"]
    assert [ref.name for ref in refs.tags] == ["t"]


@both_storages
def test_pull_requests(hub):
    """One who may only read can propose; the main branch changes when it is merged."""
    hub.repository("other/rows")
    hub.tokens["hf_other"] = type(hub.tokens[TOKEN])("other")
    api = HfApi()
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit("other/rows", [add("a.parquet", b"1")], commit_message="m", repo_type="dataset")
    assert status(error) == 403
    made = api.create_commit(
        "other/rows", [add("a.parquet", b"1")], commit_message="m", repo_type="dataset", create_pr=True
    )
    assert made.pr_url == f"{hub.url}/datasets/other/rows/discussions/1"
    assert made.pr_revision == "refs/pr/1"
    assert "a.parquet" not in hub.files("other/rows")
    path = hf_hub_download("other/rows", "a.parquet", repo_type="dataset", revision="refs/pr/1")
    with open(path, "rb") as file:
        assert file.read() == b"1"
    HfApi(token="hf_other").merge_pull_request("other/rows", 1, repo_type="dataset")
    assert hub.files("other/rows")["a.parquet"] == b"1"


@pytest.mark.parametrize(
    ("token", "sees"),
    [(TOKEN, True), ("hf_reader", True), ("hf_friend", True), ("hf_other", False), (None, False), ("hf_bad", False),
     ("hf_old", False)],
)  # fmt: skip
def test_who_sees_a_private_dataset(hub, monkeypatch, token, sees):
    """The owner and whom he lets read do; nobody else, not from a cache either."""
    hub.user(USER, "hf_reader", "read")
    hub.user("friend", "hf_friend")
    hub.user("other", "hf_other")
    hub.user(USER, "hf_old", expired=True)
    rows().push_to_hub(REPO, private=True)
    hub.repositories[REPO].readers.add("friend")
    log_in(token, monkeypatch)
    if sees:
        assert len(datasets.load_dataset(REPO, split="train")) == 5
        assert HfApi().dataset_info(REPO).private
        return
    with pytest.raises(HfHubHTTPError if token == "hf_bad" else datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset(REPO)
    with pytest.raises(HfHubHTTPError) as error:
        HfApi().dataset_info(REPO)
    assert status(error) == (404 if token == "hf_other" else 401)
    assert isinstance(error.value, RepositoryNotFoundError) == (token != "hf_bad")


@pytest.mark.parametrize(
    ("token", "code", "says"),
    [("hf_reader", 403, "write token"), ("hf_other", 403, "create_pr=1"), ("hf_member", 200, ""),
     ("hf_bad", 401, "Invalid credentials"), ("hf_old", 401, "expired"), (None, 401, "Invalid username")],
)  # fmt: skip
def test_who_writes(hub, monkeypatch, token, code, says):
    """To a public repository of an organization."""
    hub.organization("lab", writer="write", member="write", looker="read")
    hub.user(USER, "hf_reader", "read")
    hub.user("other", "hf_other")
    hub.user("member", "hf_member")
    hub.user(USER, "hf_old", expired=True)
    hub.repository("lab/rows")
    log_in(token, monkeypatch)
    if code == 200:
        HfApi().create_commit("lab/rows", [add("a.txt", b"")], commit_message="m", repo_type="dataset")
        HfApi().create_repo("lab/new", repo_type="dataset")
        return
    for write in (
        lambda: HfApi().create_commit("lab/rows", [add("a.txt", b"")], commit_message="m", repo_type="dataset"),
        lambda: HfApi().create_branch("lab/rows", branch="b", repo_type="dataset"),
    ):
        with pytest.raises(HfHubHTTPError, match=re.escape(says)) as error:
            write()
        assert status(error) == code
    with pytest.raises(HfHubHTTPError) as error:
        HfApi().create_repo("lab/new", repo_type="dataset")
    assert status(error) == code


def test_names(hub):
    """A repository is made once, under a name that can be one."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset", private=True)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO, repo_type="dataset")
    assert status(error) == 409
    assert api.create_repo(REPO, repo_type="dataset", exist_ok=True).repo_id == REPO
    assert hub.repositories[REPO].private
    assert api.whoami()["name"] == USER


@both_storages
def test_etags_and_ranges(hub):
    """A large file is redirected to another host with its size and hash; parts of it can be asked for."""
    HfApi().create_repo(REPO, repo_type="dataset")
    content = bytes(range(256)) * 40
    commit(add("a.parquet", content), add("b.txt", content))
    for name in ("a.parquet", "b.txt"):
        url = f"{hub.url}/datasets/{REPO}/resolve/main/{name}"
        for given, wanted in {
            "bytes=5-9": content[5:10],
            "bytes=-7": content[-7:],
            "bytes=10000-": content[10000:],
        }.items():
            reply = get_session().get(url, headers={"Range": given})
            assert (reply.status_code, reply.content) == (206, wanted)
        assert get_session().get(url, headers={"Range": "bytes=99999-"}).status_code == 416
        head = get_session().head(url)
        again = get_session().get(url, headers={"If-None-Match": head.headers["ETag"]})
        assert again.status_code in (200, 304)
    with HfApi().dataset_info(REPO) and open(hf_hub_download(REPO, "a.parquet", repo_type="dataset"), "rb") as file:
        assert file.read() == content


def test_a_card_with_broken_metadata_is_refused(hub):
    """validate-yaml stands before a commit with a README."""
    HfApi().create_repo(REPO, repo_type="dataset")
    for card in ("---\na: [\n---\n", "---\nconfigs:\n- data_files: x\n---\n", "---\ntags: x\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            commit(add("README.md", card.encode()))
    commit(add("README.md", b"---\ntags:\n- x\n---\n# T\n"))
    assert HfApi().dataset_info(REPO).card_data.tags == ["x"]


def test_long_listings_come_in_pages(hub):
    """More files than a page holds."""
    hub.repository(REPO)
    hub.commit(REPO, {f"d/{n:04}.txt": b"" for n in range(1203)})
    files = list(HfApi().list_repo_tree(REPO, repo_type="dataset", recursive=True))
    assert len(files) == len({file.path for file in files}) == 1205


def test_faults_and_hooks(hub):
    """An error as often as asked and not more; work done and no answer; a function in between."""
    HfApi().create_repo(REPO, repo_type="dataset")
    hub.fail("commit", 503, times=2)
    hub.fail("preupload", 429, times=2)
    for _ in range(4):  # the library asks again itself after a 429 at preupload, since 1.0
        with pytest.raises(HfHubHTTPError) as error:
            commit(add("a.txt", b"1"))
        if sum(call.status == 503 for call in hub.calls("commit")) == 2:
            break
    assert status(error) == 503
    assert [call.status for call in hub.calls("preupload")] == [429, 429, 200, 200]
    hub.fail("commit", 0, lost=True)
    with pytest.raises(Exception, match=r"(?i)disconnected|aborted|closed|reset"):
        commit(add("a.txt", b"1"))
    assert hub.files(REPO)["a.txt"] == b"1"
    hub.before("commit", lambda: hub.commit(REPO, {"b.txt": b"2"}))
    commit(add("a.txt", b"3"))
    assert hub.files(REPO) | {".gitattributes": b""} == {".gitattributes": b"", "a.txt": b"3", "b.txt": b"2"}


@both_storages
def test_another_process_uses_it_by_its_environment(hub):
    """What a command line or a training script sees."""
    rows().push_to_hub(REPO, private=True)
    code = f"import datasets; print(len(datasets.load_dataset({REPO!r}, split='train')))"
    for token, succeeds in ((TOKEN, True), (None, False)):
        environment = hub.environment(token) | {"HF_HOME": str(hub.home / str(token))}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == succeeds, done.stderr
        assert ("5" in done.stdout) == succeeds


def test_nothing_of_one_hub_reaches_the_next(tmp_path, monkeypatch):
    """The same name with other content on a second Hub in the same process."""
    for turn in (1, 2):
        with monkeypatch.context() as patch, running(tmp_path / str(turn), "lfs", patch):
            rows(turn * 10).push_to_hub(REPO)
            assert datasets.load_dataset(REPO, split="train")["n"][0] == turn * 10
