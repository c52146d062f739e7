"""Publishing: a refined dataset goes to the Hub in one commit, or a preview says what would go."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arhn_datasets.errors import ArhnError, ConfigurationError
from arhn_datasets.folder.reading import Folder, open_folder
from arhn_datasets.folder.readme import Facts
from arhn_datasets.folder.run import RUN_FILE
from arhn_datasets.formats.format import Options
from arhn_datasets.hub.publication import PublishedFile, build_publication
from arhn_datasets.hub.repository import Repository
from arhn_datasets.rows.stage import Transform

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

MESSAGE = "Refine hard negatives with ARHN"
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|\.$|/$))[\w][\w./+@-]*")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push has made: the commit at ``url``, which a pull request proposes where one was asked for."""

    url: str
    repo_id: str
    pull_request_url: str | None
    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a push would send: the files and the text of the card."""

    files: tuple[PublishedFile, ...]
    card: str


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
    with _as_folder(data, source, transforms) as path, _scratch() as scratch:
        folder = _checked(path, force)
        repository = Repository(repo_id, revision, create_pr, token, scratch / "there")
        try:
            is_private = repository.check_rights()
            public = not (private if is_private is None else is_private)
            _check_terms(folder, repo_id, public and not allow_private_source, license, facts)
            publication = build_publication(
                folder, scratch / "new", formats=formats, options=options, repo_id=repo_id, license=license, facts=facts
            )
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
        files=publication.files,
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
    with _scratch() as scratch:
        folder = _checked(Path(data), force)
        _check_terms(folder, repo_id, not private and not allow_private_source, license, facts)
        publication = build_publication(
            folder, scratch / "new", formats=formats, options=options, repo_id=repo_id, license=license, facts=facts
        )
        return Preview(files=publication.files, card=publication.card)


def _check_terms(source: Folder, repo_id: str, open_only: bool, license: str | None, facts: Facts | None) -> None:
    """Refuse to publish what came from a private dataset, or under a licence that was not given for this source."""
    origin = source.run.source
    if origin.private and open_only:
        raise ConfigurationError(
            f"The source {origin.name} is private on the Hub, and everybody could read {repo_id}. Push it to a "
            "private repository (--private, to one that is not public already), or say --allow-private-source if you "
            "may publish it."
        )
    stated, inherited = facts.license if facts else None, origin.license
    if license is None and stated and inherited and stated != inherited:
        raise ConfigurationError(
            f"The facts name the licence {stated}, and the source is under {inherited}. Say it again with "
            f"--license {stated} if you may publish under it, or leave it out of the facts."
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
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="arhn-push-") as scratch:
        yield Path(scratch)


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
    from arhn_datasets.runs.saving import save

    with _scratch() as scratch:
        yield save(data, scratch / "refined", source=source, transforms=transforms).path


def _checked(path: Path, force: bool) -> Folder:
    """The folder, when it is what a run has written and nothing else."""
    folder = open_folder(path)
    if force:
        return folder
    from arhn_datasets.checks.verification import verify_folder

    if violations := verify_folder(path).violations:
        first = violations[0]
        more = f" (and {len(violations) - 1:,} more)" if len(violations) > 1 else ""
        raise ConfigurationError(
            f"{path} is not what its run has written: {first.message}{more}. Nothing was published: see all of it with "
            f"arhn-verify {path}, refine again, or publish it as it is with --force."
        )
    return folder
