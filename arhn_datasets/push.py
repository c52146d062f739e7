"""The only module that writes to the Hub: a refined folder, in one commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arhn_datasets.errors import ConfigurationError, OutputError
from arhn_datasets.refine import RUN_FILE, is_refined


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of a refined folder as it goes to the Hub; ``size`` in bytes."""

    path: str
    size: int


def files_to_push(folder: str | os.PathLike[str]) -> list[PushedFile]:
    """The files that a push uploads, sorted by path.

    Raises:
        ConfigurationError: the folder was not written by ``arhn-refine``.
    """
    root = Path(folder)
    if not is_refined(root):
        found = "no such folder" if not root.is_dir() else f"no {RUN_FILE} of arhn_datasets in it"
        raise ConfigurationError(f"{root}: {found}. Expected a folder that arhn-refine --output has written.")
    return [PushedFile(path=path.relative_to(root).as_posix(), size=path.stat().st_size) for path in _files(root)]


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Refine hard negatives with ARHN",
    token: str | None = None,
) -> str:
    """Publish a refined folder as a dataset repository, in one commit, and return the URL of that commit.

    Args:
        folder: What ``arhn-refine --output`` has written.
        repo_id: ``user/name`` on the Hub; made where it does not exist.
        private: Visibility of a repository that is made; an existing one keeps its own.
        revision: Branch to commit to; by default the main one.
        message: Of the commit.
        token: Of the Hub; by default the one that ``hf auth login`` has stored.

    Raises:
        ConfigurationError: the folder was not written by ``arhn-refine``.
        OutputError: the Hub refused.
    """
    from huggingface_hub import HfApi

    files_to_push(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=str(folder),
            repo_id=repo_id,
            repo_type="dataset",
            revision=revision,
            commit_message=message,
            delete_patterns=["data/*.parquet", "dropped/*.parquet"],
        )
    except Exception as error:  # no public name covers what the transports of hub 0.x, 1.x and 2.x raise
        raise OutputError(
            f"The Hub did not take {folder} as {repo_id}: {' '.join(str(error).split())[:400]}. What was there before "
            "is unchanged. Check the name and that you may write there (hf auth login), then run the command again."
        ) from error
    return str(commit.commit_url)


def _files(root: Path) -> Iterator[Path]:
    yield from sorted(path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts)
