"""The files of a repository of the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.rows.records import shorten


def folder_or_repository(
    name: str | os.PathLike[str], revision: str | None = None, token: str | None = None
) -> tuple[Path, str | None]:
    """A folder as it is; else the files of the repository of that name, and the commit that they are of.

    Raises:
        ConfigurationError: a revision was named, of a folder.
        InputError: there is neither, or the repository cannot be downloaded.
    """
    if not Path(name).is_dir():
        return downloaded(os.fspath(name), revision, token)
    if revision is not None:
        raise ConfigurationError(f"{name} is a folder, and a revision ({revision}) goes with a repository.")
    return Path(name), None


def downloaded(repo_id: str, revision: str | None = None, token: str | None = None) -> tuple[Path, str]:
    """The files of a repository, and the commit that they are of.

    Raises:
        InputError: there is no such repository, or it cannot be downloaded.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # The commit first: a download alone would fall back to a cached copy where access is denied or there is no net.
        commit = str(HfApi(token=token).dataset_info(repo_id, revision=revision).sha)
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=commit, token=token)), commit
    except Exception as error:  # no public name covers what the transports of hub 0.x, 1.x and 2.x raise
        hint = "Check the name, the --revision, and the --token where it is private."
        if not isinstance(error, HFValidationError) and getattr(error, "response", None) is None:
            hint = (
                f"Check the connection to {constants.ENDPOINT} (HF_ENDPOINT), and the room in the cache "
                f"{constants.HF_HUB_CACHE} (HF_HOME), then run this again: what was downloaded is kept."
            )
        raise InputError(
            f"{repo_id}{f' at {revision}' if revision else ''} is no folder and cannot be downloaded: "
            f"{type(error).__name__}: {shorten(' '.join(str(error).split()), 300).rstrip('.')}. {hint}"
        ) from error
