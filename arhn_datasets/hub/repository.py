"""A dataset repository on the Hub, and one commit that replaces what it holds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arhn_datasets.errors import AccessDenied, ArhnError, OutputError
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE
from arhn_datasets.folder.readme import merge_card
from arhn_datasets.folder.run import RUN_FILE, is_refined
from arhn_datasets.rows import retries

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import CommitInfo, RepoFile
    from tenacity import RetryCallState, Retrying

    from arhn_datasets.hub.publication import Publication

logger = logging.getLogger(__name__)

CHARTS = "charts"
STORAGE_SECONDS = 30.0
LOG_IN = (
    "Log in with hf auth login, set HF_TOKEN, or give --token; make one with write access at "
    "https://huggingface.co/settings/tokens."
)
HEAD_READ, UPLOADED = 1, 2
ATTEMPTS = 8
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
MOVED = frozenset({409, 412})
LONGEST_PAUSE_SECONDS = 30.0

T = TypeVar("T")
_LOST = frozenset({"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "JSONDecodeError"})


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The newest commit of the branch: its files, the README, and whether an earlier push has made it."""

    sha: str
    files: Mapping[str, RepoFile]
    card: str | None
    ours: bool


@dataclass
class _Sent:
    """What the last attempt has sent, and on which head; the pull requests that were there before.

    Attempts are counted anew when one gets further than all before it: a large upload may break off often.
    """

    pull_requests: Mapping[str, str]
    head: _Head | None = None
    operations: list[CommitOperationAdd | CommitOperationDelete] = field(default_factory=list)
    reached: int = 0
    failures: int = 0

    def reach(self, step: int) -> None:
        """A step is done."""
        if step > self.reached:
            self.reached, self.failures = step, 0

    def is_over(self, _: RetryCallState) -> bool:
        """Whether another attempt is one too many."""
        self.failures += 1
        return self.failures >= ATTEMPTS


def replaced(there: Sequence[str], new: Sequence[str], *, ours: bool) -> list[str]:
    """The files that go when ``new`` ones come: those of an earlier version that the new one does not have.

    In a repository that no push of ours has made, only what lies where the new files come.
    """
    from arhn_datasets.formats.format import known_formats

    folders = {DATA, *(path.split("/")[0] for path in new if "/" in path)}
    if ours:
        tables = [table.name for format in known_formats().values() for table in format.tables]
        folders |= {DROPPED, EVIDENCE, CHARTS, *known_formats(), *tables}
    return sorted(path for path in set(there) - set(new) if "/" in path and path.split("/")[0] in folders)


class Repository:
    """A dataset repository on the Hub, as one push sees it."""

    def __init__(self, repo_id: str, revision: str | None, create_pr: bool, token: str | None, scratch: Path) -> None:
        from huggingface_hub import HfApi

        self.repo_id = repo_id
        self.branch = revision or "main"
        self.create_pr = create_pr
        self.token = token
        self.scratch = scratch
        self.api = HfApi(token=token)
        self.user: Mapping[str, Any] = {}
        self.uncertain = False

    def check_rights(self) -> bool | None:
        """Whether the repository is private; ``None`` where there is none yet.

        Raises:
            AccessDenied: no push can succeed.
        """
        from huggingface_hub import get_token
        from huggingface_hub.utils import RepositoryNotFoundError

        if not (self.token or get_token()):
            raise AccessDenied(f"There is no token of the Hub to write to {self.repo_id} with. {LOG_IN}")
        self.user = persistent(self.api.whoami)
        role = self.user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise self._denied("the token may only read: it lacks the right to write")
        namespace = self.repo_id.split("/")[0]
        mine = [self.user.get("name"), *(org.get("name") for org in self.user.get("orgs", ()))]
        if namespace not in mine and not self.create_pr:
            raise self._denied(f"it lacks the right to write in {namespace}, and may write in {', '.join(mine)}")
        try:
            info = persistent(self.api.dataset_info, self.repo_id)
        except RepositoryNotFoundError as error:
            if self.create_pr:
                raise OutputError(
                    f"There is no dataset {self.repo_id} on the Hub that this token sees, so nothing can be proposed "
                    "to it. Check the name, or push without --create-pr to make it."
                ) from error
            return None
        return bool(info.private)

    def create(self, private: bool) -> None:
        """Make the repository."""
        persistent(self.api.create_repo, self.repo_id, repo_type="dataset", private=private, exist_ok=True)

    def replace(self, publication: Publication, message: str, license: str | None) -> CommitInfo:
        """One commit on the head that it has read; on a new one when that has moved or the reply got lost."""
        sent = _Sent(pull_requests=self._pull_requests() if self.create_pr else {})

        def attempt() -> CommitInfo:
            return self._found(sent, message) or self._sent(publication, sent, message, license)

        try:
            return attempts(may_pass, sent.is_over)(attempt)
        except Exception as error:
            self.uncertain &= is_transient(error)
            with suppress(Exception):  # the Hub is away, and the first error says it
                if found := self._found(sent, message):
                    return found
                self.uncertain = False
            raise

    def _sent(self, publication: Publication, sent: _Sent, message: str, license: str | None) -> CommitInfo:
        """Read the head, upload what is to be committed on it, and commit it."""
        head = self._head()
        if sent.head is None or head.sha != sent.head.sha:
            sent.operations = self._operations(publication, head, license, sent.operations)
        sent.head, self.uncertain = head, False
        sent.reach(HEAD_READ)
        self._upload(sent.operations)
        sent.reach(UPLOADED)
        self.uncertain = True
        return self.api.create_commit(
            self.repo_id,
            sent.operations,
            commit_message=message,
            repo_type="dataset",
            revision=self.branch,
            create_pr=self.create_pr,
            parent_commit=head.sha,
        )

    def _upload(self, operations: Sequence[CommitOperationAdd | CommitOperationDelete]) -> None:
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # Where the Hub is too busy to take files, the library of the Xet storage would ask for ever.
        url = f"{self.api.endpoint}/api/datasets/{self.repo_id}/xet-write-token/{self.branch.replace('/', '%2F')}"
        reply = get_session().get(url, headers=build_hf_headers(token=self.token), timeout=STORAGE_SECONDS)
        if reply.status_code in TRANSIENT:
            hf_raise_for_status(reply)
        self.api.preupload_lfs_files(
            self.repo_id,
            [operation for operation in operations if isinstance(operation, CommitOperationAdd)],
            repo_type="dataset",
            revision=self.branch,
            create_pr=self.create_pr,
            free_memory=False,
        )

    def _head(self) -> _Head:
        from huggingface_hub.utils import RevisionNotFoundError

        try:
            sha = self._sha()
        except RevisionNotFoundError as error:
            if self.create_pr or self.branch.startswith("refs/"):
                raise OutputError(
                    f"{self.repo_id} has no branch {self.branch} to build on. Name one that it has, or leave "
                    "--revision out."
                ) from error
            self.api.create_branch(self.repo_id, repo_type="dataset", branch=self.branch, exist_ok=True)
            sha = self._sha()
        files = self._files(sha)
        there = {name: self._download(name, sha) for name in (RUN_FILE, CARD_FILE) if name in files}
        card = there[CARD_FILE].read_bytes().decode("utf-8", errors="replace") if CARD_FILE in there else None
        return _Head(sha=sha, files=files, card=card, ours=RUN_FILE in there and is_refined(there[RUN_FILE].parent))

    def _sha(self) -> str:
        return str(self.api.dataset_info(self.repo_id, revision=self.branch).sha)

    def _files(self, revision: str) -> dict[str, RepoFile]:
        listed = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=revision, recursive=True)
        return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}

    def _download(self, name: str, sha: str) -> Path:
        folder = self.scratch / sha
        return Path(self.api.hf_hub_download(self.repo_id, name, repo_type="dataset", revision=sha, local_dir=folder))

    def _operations(
        self,
        publication: Publication,
        head: _Head,
        license: str | None,
        earlier: Sequence[CommitOperationAdd | CommitOperationDelete],
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        """Everything on a head.

        What the Hub said of a file at an earlier head (same content, nothing to do) is not taken over: another writer
        may have changed it since. Its hash is.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        card = publication.card
        if head.card is not None:
            card = merge_card(head.card, card, license_given=license is not None)
        hashed = {operation.path_in_repo: operation for operation in earlier}
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for path, _ in publication.files:
            content = card.encode() if path == CARD_FILE else str(publication.path / path)
            addition = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            before = hashed.get(path)
            if path != CARD_FILE and isinstance(before, CommitOperationAdd):
                addition.upload_info = before.upload_info
            operations.append(addition)
        new = [operation.path_in_repo for operation in operations]
        gone = replaced(list(head.files), new, ours=head.ours)
        return [*operations, *(CommitOperationDelete(path_in_repo=path) for path in gone)]

    def _found(self, sent: _Sent, message: str) -> CommitInfo | None:
        """The commit whose reply got lost."""
        from huggingface_hub import CommitInfo

        if not self.uncertain or sent.head is None:
            return None
        url = f"{self.api.endpoint}/datasets/{self.repo_id}"
        if self.create_pr:
            new = {ref: sha for ref, sha in self._pull_requests().items() if ref not in sent.pull_requests}
        else:
            new = {self.branch: self._sha()}
        for ref, sha in new.items():
            if sha != sent.head.sha and _holds(self._files(sha), sent.operations):
                return CommitInfo(
                    commit_url=f"{url}/commit/{sha}",
                    commit_message=message,
                    commit_description="",
                    oid=sha,
                    pr_url=f"{url}/discussions/{ref.rsplit('/', 1)[-1]}" if self.create_pr else None,
                )
        return None

    def _pull_requests(self) -> dict[str, str]:
        refs = persistent(self.api.list_repo_refs, self.repo_id, repo_type="dataset", include_pull_requests=True)
        return {pull_request.ref: pull_request.target_commit for pull_request in refs.pull_requests or ()}

    def _denied(self, why: str) -> AccessDenied:
        user = self.user.get("name")
        return AccessDenied(
            f"The Hub does not let {f'the token of {user}' if user else 'this token'} write to {self.repo_id}: {why}. "
            "Nothing was changed. Use a token with write access (https://huggingface.co/settings/tokens, then hf auth "
            "login or --token), another name, or propose it with --create-pr."
        )

    def explained(self, error: Exception) -> ArhnError:
        """What an error of the Hub means, and what to do."""
        status, said = status_of(error), said_by(error)
        if status == 401 and "expired" in said:
            return AccessDenied(
                f"The token of the Hub has expired ({said}). Nothing was changed. Make a new one at "
                "https://huggingface.co/settings/tokens, then hf auth login, or give it by --token."
            )
        if status == 401:
            return AccessDenied(f"The Hub does not know this token ({said}). Nothing was changed. {LOG_IN}")
        if status == 403:
            return self._denied(f"it lacks the right to write ({said})")
        state = "What was there before is unchanged and loads as it did."
        if self.uncertain and is_transient(error):
            state = (
                "Its last reply got lost, so look there before you go on: readers see either all of the new dataset or "
                "what was there before."
            )
        why = f"{type(error).__name__}: {said}" if status is None else f"{status}: {said}"
        again = "Run arhn-push again: what was uploaded is not uploaded twice."
        if status is not None and status not in TRANSIENT | MOVED:
            again = "Check the name and the message, then run arhn-push again."
        return OutputError(f"The Hub did not take {self.repo_id} ({why}). {state} {again}")


def _holds(files: Mapping[str, RepoFile], operations: Sequence[CommitOperationAdd | CommitOperationDelete]) -> bool:
    """Whether the files are what the operations lead to."""
    from huggingface_hub import CommitOperationAdd

    for operation in operations:
        there = files.get(operation.path_in_repo)
        if not isinstance(operation, CommitOperationAdd):
            if there is not None:
                return False
            continue
        if there is None or there.size != operation.upload_info.size:
            return False
        if there.lfs is not None:
            if there.lfs.sha256 != operation.upload_info.sha256.hex():
                return False
            continue
        with operation.as_file() as file:
            content = file.read()
        if there.blob_id != hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest():
            return False
    return True


# -- how the Hub is asked: again where it only was busy or away, and what its errors say -------------------------------


def persistent(ask: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Ask the Hub, again where it only was busy."""
    return attempts(is_transient)(ask, *arguments, **options)


def attempts(
    again: Callable[[BaseException], bool], stop: int | Callable[[RetryCallState], bool] = ATTEMPTS
) -> Retrying:
    """What calls a function again after the errors that ``again`` names, telling each time; by default 8 times."""
    from tenacity import Retrying

    return Retrying(
        **retries.policy(
            again=again, stop=stop, first=1.0, longest=LONGEST_PAUSE_SECONDS, asked=_pause_asked, tell=_say_again
        )
    )


def _say_again(error: BaseException, pause: float) -> None:
    status = status_of(error)
    why = f"the Hub answered {status}" if status else f"no reply of the Hub ({type(error).__name__})"
    logger.warning("%s; trying again in %.0f seconds", why, pause)


def _pause_asked(error: BaseException) -> float | None:
    return retries.seconds_of(_header(error, "Retry-After"))


def _header(error: BaseException, name: str) -> str | None:
    """What a header of the first reply that has it says."""
    for cause in _causes(error):
        value = getattr(getattr(cause, "response", None), "headers", {}).get(name)
        if value:
            return str(value)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: the library wraps what an upload raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, None where there was no reply."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help: the Hub was busy or away, or the connection broke."""
    if isinstance(error, ArhnError):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    return any(cls.__name__ in _LOST for cause in _causes(error) for cls in type(cause).__mro__)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt on what is there then may succeed."""
    return is_transient(error) or status_of(error) in MOVED


def said_by(error: BaseException) -> str:
    """What the Hub said, in a line."""
    told = _header(error, "X-Error-Message")
    if told:
        return told[:300]
    if any(type(cause).__name__ == "JSONDecodeError" for cause in _causes(error)):
        return "no JSON, as from a gateway whose server is away"
    return " ".join(str(error).split())[:300]
