"""The only module that writes to the Hub: a refined dataset, in one commit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arhn_datasets.errors import AccessDenied, ArhnError, ConfigurationError, OutputError
from arhn_datasets.folder.facts import Facts
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, open_folder
from arhn_datasets.folder.readme import merge_card
from arhn_datasets.folder.run import RUN_FILE
from arhn_datasets.formats.format import Options
from arhn_datasets.rows.stage import Transform

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import CommitInfo, RepoFile
    from tenacity import RetryCallState, Retrying

    from arhn_datasets.hub.publication import Publication

logger = logging.getLogger(__name__)

MESSAGE = "Refine hard negatives with ARHN"
ATTEMPTS = 8
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
MOVED = frozenset({409, 412})
CHARTS = "charts"

_T = TypeVar("_T")
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|\.$|/$))[\w][\w./+@-]*")
_LOST = frozenset({"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "JSONDecodeError"})
LONGEST_PAUSE_SECONDS = 30.0
STORAGE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file as it goes to the Hub; ``size`` in bytes."""

    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push has made: the commit at ``url``, which a pull request proposes where one was asked for."""

    url: str
    repo_id: str
    pull_request_url: str | None
    files: tuple[PushedFile, ...]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a push would send: the files and the text of the card."""

    files: tuple[PushedFile, ...]
    card: str


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The newest commit of the branch: its files, the README, and whether an earlier push has made it."""

    sha: str
    files: Mapping[str, RepoFile]
    card: str | None
    ours: bool


@dataclass
class _Sent:
    """What the last attempt has sent, and on which head; the pull requests that were there before."""

    pull_requests: Mapping[str, str]
    head: _Head | None = None
    operations: list[CommitOperationAdd | CommitOperationDelete] = field(default_factory=list)


def push(
    data: str | os.PathLike[str] | Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    formats: Sequence[str] = (),
    options: Options | None = None,
    license: str | None = None,
    message: str = MESSAGE,
    token: str | None = None,
    force: bool = False,
    allow_private_source: bool = False,
    facts: Facts | None = None,
    source: str | None = None,
    transforms: Sequence[Transform] = (),
) -> Pushed:
    """Publish a refined dataset in one commit: a reader sees the old dataset or the new one, never a mixture.

    What fails on the way is tried again; a push that failed is repeated as it was, and does not upload twice what is
    there.

    Args:
        data: What ``arhn-refine --output`` has written, or the relabelled rows of ``Dataset.map``; those of a stream
            are written to a temporary folder as they come.
        repo_id: ``user/name`` on the Hub; made where it does not exist.
        private: Visibility of a repository that is made; an existing one keeps its own.
        revision: Branch to commit to, made where it does not exist; by default the main one.
        create_pr: Propose the commit in a pull request.
        formats: Of trainers, each as a config of its own.
        options: Of the formats.
        license: Publish under this licence and not under that of the source.
        message: Of the commit.
        token: Of the Hub; by default the one that ``hf auth login`` has stored.
        force: Do not verify the data first.
        allow_private_source: Publish what came from a private dataset where everybody can read it.
        facts: What the card cannot know: description, citation, ...
        source: With rows: the Hub id, ``user/name@revision``, of the dataset that they were made from; by default the
            one in whose cache of ``load_dataset`` they are.
        transforms: With rows: the transforms that made them, so that the card can name the model, the prompts and the
            parameters.

    Raises:
        ConfigurationError: the names cannot be ones, or the data is not ours, half-written or changed by hand.
        AccessDenied: no token, or one without the right to write there.
        OutputError: the Hub did not take it.
    """
    _check_names(repo_id, revision, message)
    with _as_folder(data, source, transforms) as path, tempfile.TemporaryDirectory(prefix="arhn-push-") as scratch:
        folder = _checked(path, force)
        repository = _Repository(repo_id, revision, create_pr, token, Path(scratch) / "there")
        try:
            is_private = repository.check_rights()
            public = not (private if is_private is None else is_private)
            if public and not allow_private_source:
                refuse_private(folder, repo_id)
            publication = _built(folder, Path(scratch) / "new", repo_id, formats, options, license, facts)
            if is_private is None:
                repository.create(private)
            commit = repository.replace(publication, message, license)
        except ArhnError:
            raise
        except Exception as error:  # no public name covers what the transports of hub 0.x, 1.x and 2.x raise
            raise repository.explained(error) from error
    return Pushed(
        url=str(commit.commit_url),
        repo_id=repo_id,
        pull_request_url=commit.pr_url,
        files=_listed(publication),
    )


def preview(
    data: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    formats: Sequence[str] = (),
    options: Options | None = None,
    license: str | None = None,
    force: bool = False,
    allow_private_source: bool = False,
    facts: Facts | None = None,
) -> Preview:
    """What :func:`push` would send to a new repository; nothing is asked of the Hub.

    Raises:
        ConfigurationError: as for :func:`push`.
    """
    _check_names(repo_id, revision, MESSAGE)
    with tempfile.TemporaryDirectory(prefix="arhn-push-") as scratch:
        folder = _checked(Path(data), force)
        if not private and not allow_private_source:
            refuse_private(folder, repo_id)
        publication = _built(folder, Path(scratch) / "new", repo_id, formats, options, license, facts)
        return Preview(files=_listed(publication), card=publication.card)


def refuse_private(source: Folder, repo_id: str) -> None:
    """Refuse to publish what came from a private dataset.

    Raises:
        ConfigurationError: it did.
    """
    origin = source.run.source
    if origin.private:
        raise ConfigurationError(
            f"The source {origin.name} is private on the Hub, and everybody could read {repo_id}. Push it to a "
            "private repository (--private, to one that is not public already), or say --allow-private-source if you "
            "may publish it."
        )


def _check_names(repo_id: str, revision: str | None, message: str) -> None:
    """Refuse what no Hub would take."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        fault = None if repo_id.count("/") == 1 else "no user or organization before the name"
        fault = fault or (None if repo_id.isascii() else "a character that no name can have")
    except HFValidationError as error:
        fault = " ".join(str(error).split()).rstrip(".")
    if fault:
        raise ConfigurationError(
            f"{repo_id!r} cannot be the name of a dataset on the Hub: {fault}. Expected user/name, of letters, digits, "
            "'-', '_' and '.', as in user/dataset-arhn."
        )
    if revision is not None and not _BRANCH.fullmatch(revision):
        raise ConfigurationError(f"{revision!r} cannot be the name of a branch. Expected one like 'v2', or none.")
    if not message.strip():
        raise ConfigurationError("The message of the commit is empty; say what is published, or leave it out.")


@contextmanager
def _as_folder(data: Any, source: str | None, transforms: Sequence[Transform]) -> Iterator[Path]:
    """The folder that holds ``data``."""
    if isinstance(data, (str, os.PathLike)):
        if source is not None or transforms:
            raise ConfigurationError(
                f"{data} is a folder, whose {RUN_FILE} says where its rows are from and how they were made; source= "
                "and transforms= go with a Dataset. Leave them out."
            )
        yield Path(data)
        return
    from arhn_datasets.runs.refine import save

    with tempfile.TemporaryDirectory(prefix="arhn-push-") as scratch:
        yield save(data, Path(scratch) / "refined", source=source, transforms=transforms).path


def _checked(path: Path, force: bool) -> Folder:
    """The folder, when it is what a run has written and nothing else."""
    folder = open_folder(path)
    if force:
        return folder
    from arhn_datasets.checks.verification import verify_folder

    violations = verify_folder(path).violations
    if violations:
        first = violations[0]
        more = f" (and {len(violations) - 1:,} more)" if len(violations) > 1 else ""
        raise ConfigurationError(
            f"{path} is not what its run has written: {first.message}{more}. Nothing was published: see all of it with "
            f"arhn-verify {path}, refine again, or publish it as it is with --force."
        )
    return folder


def _built(
    source: Folder,
    target: Path,
    repo_id: str,
    formats: Sequence[str],
    options: Options | None,
    license: str | None,
    facts: Facts | None,
) -> Publication:
    """The content of the repository; what its present README says is merged into the card at each attempt."""
    from arhn_datasets.hub.publication import build_publication

    inherited = source.run.source.license
    if license is None and facts is not None and facts.license and inherited and facts.license != inherited:
        raise ConfigurationError(
            f"The facts name the licence {facts.license}, and the source is under {inherited}. Say it again with "
            f"--license {facts.license} if you may publish under it, or leave it out of the facts."
        )
    target.mkdir(parents=True)
    publication = build_publication(
        source, target, formats=tuple(formats), options=options, repo_id=repo_id, license=license, facts=facts
    )
    for note in publication.notes:
        logger.warning("%s", note)
    return publication


def _listed(publication: Publication) -> tuple[PushedFile, ...]:
    return tuple(PushedFile(path=path, size=size) for path, size in sorted(publication.files))


def replaced(there: Sequence[str], new: Sequence[str], *, ours: bool) -> list[str]:
    """The files that go when ``new`` ones come: those of an earlier version that the new one does not have.

    In a repository that no push of ours has made, only what lies where the new files come.
    """
    from arhn_datasets.formats.registry import known_formats

    folders = {DATA, *(path.split("/")[0] for path in new if "/" in path)}
    if ours:
        tables = [table.name for format in known_formats().values() for table in format.tables]
        folders |= {DROPPED, EVIDENCE, CHARTS, *known_formats(), *tables}
    return sorted(path for path in set(there) - set(new) if "/" in path and path.split("/")[0] in folders)


class _Repository:
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
            raise AccessDenied(
                f"There is no token of the Hub to write to {self.repo_id} with. Log in with hf auth login, set "
                "HF_TOKEN, or give --token; make one with write access at https://huggingface.co/settings/tokens."
            )
        self.user = _persistent(self.api.whoami)
        role = self.user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise self._denied("the token may only read: it lacks the right to write")
        namespace = self.repo_id.split("/")[0]
        mine = [self.user.get("name"), *(org.get("name") for org in self.user.get("orgs", ()))]
        if namespace not in mine and not self.create_pr:
            raise self._denied(f"it lacks the right to write in {namespace}, and may write in {', '.join(mine)}")
        try:
            info = _persistent(self.api.dataset_info, self.repo_id)
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
        _persistent(self.api.create_repo, self.repo_id, repo_type="dataset", private=private, exist_ok=True)

    def replace(self, publication: Publication, message: str, license: str | None) -> CommitInfo:
        """One commit on the head that it has read; on a new one when that has moved or the reply got lost."""
        sent = _Sent(pull_requests=self._pull_requests() if self.create_pr else {})
        try:
            for attempt in _attempts(_may_pass):
                # Reading and uploading have attempts of their own; these here are for the commit.
                found = _attempts(_may_pass)(self._found, sent, message)
                if found is not None:
                    return found
                _attempts(_may_pass)(self._prepare, publication, sent, license)
                with attempt:
                    return self._commit(sent, message)
        except Exception as error:
            if not _is_transient(error):
                self.uncertain = False
            found = None
            with suppress(Exception):  # the Hub is away, and the first error says it
                found = self._found(sent, message)
                self.uncertain = False
            if found:
                return found
            raise
        raise AssertionError("the last attempt returns or raises")

    def _prepare(self, publication: Publication, sent: _Sent, license: str | None) -> None:
        """Read the head and upload what is to be committed on it."""
        head = self._head()
        if sent.head is None or head.sha != sent.head.sha:
            sent.operations = self._operations(publication, head, license, sent.operations)
        sent.head, self.uncertain = head, False
        self._upload(sent.operations)

    def _commit(self, sent: _Sent, message: str) -> CommitInfo:
        assert sent.head is not None
        self.uncertain = True
        return self.api.create_commit(
            self.repo_id,
            sent.operations,
            commit_message=message,
            repo_type="dataset",
            revision=self.branch,
            create_pr=self.create_pr,
            parent_commit=sent.head.sha,
        )

    def _upload(self, operations: Sequence[CommitOperationAdd | CommitOperationDelete]) -> None:
        from huggingface_hub import CommitOperationAdd

        self._check_storage()
        self.api.preupload_lfs_files(
            self.repo_id,
            [operation for operation in operations if isinstance(operation, CommitOperationAdd)],
            repo_type="dataset",
            revision=self.branch,
            create_pr=self.create_pr,
            free_memory=False,
        )

    def _check_storage(self) -> None:
        """Raise where the Hub is too busy to take files: the library of the Xet storage would ask for ever."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = f"{self.api.endpoint}/api/datasets/{self.repo_id}/xet-write-token/{self.branch.replace('/', '%2F')}"
        reply = get_session().get(url, headers=build_hf_headers(token=self.token), timeout=STORAGE_SECONDS)
        if reply.status_code in TRANSIENT:
            hf_raise_for_status(reply)

    def _head(self) -> _Head:
        from huggingface_hub.utils import RevisionNotFoundError

        sha = None
        try:
            sha = self.api.dataset_info(self.repo_id, revision=self.branch).sha
        except RevisionNotFoundError as error:
            if self.create_pr or self.branch.startswith("refs/"):
                raise OutputError(
                    f"{self.repo_id} has no branch {self.branch} to build on. Name one that it has, or leave "
                    "--revision out."
                ) from error
        if sha is None:
            self.api.create_branch(self.repo_id, repo_type="dataset", branch=self.branch, exist_ok=True)
            sha = self.api.dataset_info(self.repo_id, revision=self.branch).sha
        assert sha is not None
        files = self._files(sha)
        run = self._text(RUN_FILE, sha) if RUN_FILE in files else None
        return _Head(
            sha=sha,
            files=files,
            card=self._text(CARD_FILE, sha) if CARD_FILE in files else None,
            ours=_is_run(run),
        )

    def _files(self, revision: str) -> dict[str, RepoFile]:
        listed = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=revision, recursive=True)
        return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}

    def _text(self, name: str, sha: str) -> str:
        path = self.api.hf_hub_download(
            self.repo_id, name, repo_type="dataset", revision=sha, local_dir=self.scratch / sha
        )
        return Path(path).read_bytes().decode("utf-8", errors="replace")

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
        for path in (path for path, _ in sorted(publication.files)):
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
            new = {self.branch: str(self.api.dataset_info(self.repo_id, revision=self.branch).sha)}
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
        refs = _persistent(self.api.list_repo_refs, self.repo_id, repo_type="dataset", include_pull_requests=True)
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
        status, said = _status(error), _said(error)
        if status == 401 and "expired" in said:
            return AccessDenied(
                f"The token of the Hub has expired ({said}). Nothing was changed. Make a new one at "
                "https://huggingface.co/settings/tokens, then hf auth login, or give it by --token."
            )
        if status == 401:
            return AccessDenied(
                f"The Hub does not know this token ({said}). Nothing was changed. Log in with hf auth login, set "
                "HF_TOKEN, or give --token; make one with write access at https://huggingface.co/settings/tokens."
            )
        if status == 403:
            return self._denied(f"it lacks the right to write ({said})")
        state = "What was there before is unchanged and loads as it did."
        if self.uncertain and _is_transient(error):
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
            same = there.lfs.sha256 == operation.upload_info.sha256.hex()
        else:
            with operation.as_file() as file:
                content = file.read()
            same = there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if not same:
            return False
    return True


def _is_run(text: str | None) -> bool:
    try:
        return text is not None and "arhn_datasets" in json.loads(text)["versions"]
    except (ValueError, LookupError, TypeError):
        return False


def _attempts(again: Callable[[BaseException], bool]) -> Retrying:
    from tenacity import Retrying, retry_if_exception, stop_after_attempt

    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        retry=retry_if_exception(again),
        before_sleep=_say_again,
        reraise=True,
    )


def _persistent(ask: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Ask the Hub, again where it only was busy."""
    return _attempts(_is_transient)(ask, *arguments, **options)


def _say_again(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    status = None if error is None else _status(error)
    why = f"the Hub answered {status}" if status else f"no reply of the Hub ({type(error).__name__})"
    logger.warning(
        "%s; trying again in %.0f seconds (%d of %d)",
        why,
        state.next_action.sleep if state.next_action else 0,
        state.attempt_number + 1,
        ATTEMPTS,
    )


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the Hub asks for, or more and more."""
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome else None
    for cause in _causes(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return min(300.0, float(asked))
    return wait_random_exponential(multiplier=1, max=LONGEST_PAUSE_SECONDS)(state)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: the library wraps what an upload raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_transient(error: BaseException) -> bool:
    """Whether asking again may help: the Hub was busy or away, or the connection broke."""
    if isinstance(error, ArhnError):
        return False
    status = _status(error)
    if status is not None:
        return status in TRANSIENT
    return any(cls.__name__ in _LOST for cause in _causes(error) for cls in type(cause).__mro__)


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt on what is there then may succeed."""
    return _is_transient(error) or _status(error) in MOVED


def _said(error: BaseException) -> str:
    """What the Hub said, in a line."""
    for cause in _causes(error):
        told = getattr(getattr(cause, "response", None), "headers", {}).get("X-Error-Message")
        if told:
            return str(told)[:300]
    if any(type(cause).__name__ == "JSONDecodeError" for cause in _causes(error)):
        return "no JSON, as from a gateway whose server is away"
    return " ".join(str(error).split())[:300]
