"""The place that a folder is written to: whether it can be, and how the new one takes the place of the old one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arhn_datasets.errors import OutputError
from arhn_datasets.folder.run import RUN_FILE, is_refined


def check_output(target: Path) -> None:
    """Refuse to write over anything but an earlier run, and where nothing can be written; before any work.

    Raises:
        OutputError: ``target`` is a file, holds something else, or cannot be made.
    """
    with naming(target):
        _check_output(target)
        _try(target)


def _check_output(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; --output takes the name of a folder to make.")
    if target.is_dir() and any(target.iterdir()) and not is_refined(target):
        found = ", ".join(sorted(path.name for path in target.iterdir())[:5])
        raise OutputError(
            f"{target} is not empty and holds no earlier run ({RUN_FILE} of arhn_datasets); found {found}. "
            "Nothing was touched: name another folder, or empty this one."
        )
    if not os.access(_existing_parent(target), os.W_OK):
        raise OutputError(f"{target} cannot be written: no permission in {_existing_parent(target)}.")


def _try(target: Path) -> None:
    """Make the folder of a run, as one is made, but below a temporary one: other runs may be making the same parents.

    Raises:
        OSError: it cannot be made.
    """
    parent = target.absolute().parent
    there = _existing_parent(parent)
    scratch = Path(tempfile.mkdtemp(prefix=".arhn-", dir=there))
    try:
        below = scratch / parent.relative_to(there)
        below.mkdir(parents=True, exist_ok=True)
        tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=below)  # the longest name that a run makes
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def swap(fresh: Path, target: Path) -> None:
    """Put ``fresh`` in the place of ``target``; the old one is removed only when the new one is there."""
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / "run")
    try:
        fresh.rename(target)
    except OSError:
        (old / "run").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files beside their places, then rename them there, in this order; before that, nothing changes."""
    fresh: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            fresh[path] = Path(name)
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes it private
            fresh[path].chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR if path.exists() else 0o644)
        for path, made in fresh.items():
            made.replace(path)
    finally:
        for made in fresh.values():
            made.unlink(missing_ok=True)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Name the folder in what a file system raises, with what to do about it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. {_ADVICE.get(error.errno, _OTHERWISE)}") from error


_OTHERWISE = "Name another folder, in which you may write."
_FULL = "Free some space or name another folder."
_ADVICE: Mapping[int | None, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENAMETOOLONG: "Name another folder, with a shorter name.",
}
