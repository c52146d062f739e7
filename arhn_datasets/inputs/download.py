"""The files of a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from arhn_datasets.errors import InputError
from arhn_datasets.rows.records import shorten


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
