"""``run.json``: what a run was and has counted, read and checked once for all of its readers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.folder.report import Counts
from arhn_datasets.rows.records import shorten

RUN_FILE = "run.json"
RUN_FORMAT = 1  # of what is written; a newer one is refused
HALF_WRITTEN = (
    "It was half-written, or files were removed: run arhn-refine again with the same arguments, or fetch the dataset "
    "anew."
)


@dataclass(frozen=True, kw_only=True)
class ShardPlace:
    """Which part of its input a run has refined."""

    index: int
    of: int
    whole: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """Where the rows of a run came from, and under which terms these are there."""

    name: str
    kind: str
    config: str | None = None
    revision: str | None = None
    license: str | Sequence[str] | None = None
    languages: Sequence[str] = ()
    private: Any = None
    limit: int | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    shard: ShardPlace | None = None


@dataclass(frozen=True, kw_only=True)
class RunAnnotator:
    """Who was asked; what else describes an annotator differs from one to the other."""

    annotator: str
    baseline: Any = None


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A data file as it was written."""

    sha256: str | None = None
    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A share or a kappa, with its interval, from a number of judged pairs; None where it cannot be computed."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class RunAudit:
    """What a human audit of the labels has found."""

    rows: int
    kappa: float | None = None
    low: float | None = None
    high: float | None = None
    answering: Mapping[str, Agreement] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Published:
    """How a run was published."""

    formats: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(Mapping[str, Any]):
    """What ``run.json`` says.

    What readers rely on are attributes, with a default where an earlier version did not write it. As a mapping it is
    all that stands in the file, in its order: what is written again.
    """

    id: str = field(metadata={"expected": "the id of a run"})
    versions: Mapping[str, str]
    source: RunSource
    annotator: RunAnnotator
    parameters: Mapping[str, Mapping[str, Any]]
    format: int = RUN_FORMAT
    created: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    counts: Mapping[str, Counts] = field(default_factory=dict)
    durations_seconds: Mapping[str, float] = field(default_factory=dict)
    requests: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, WrittenFile] | None = None
    audit: RunAudit | None = None
    published: Published | None = None
    content: Mapping[str, Any] = field(metadata={"whole": True})

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> Run:
        """The run of a file's content.

        Raises:
            ConfigurationError: a part of it is not what a run writes; ``path`` is what the message calls the file.
        """
        try:
            found: Run = _read(cls, content, "")
            relabel = _read(Mapping[str, Any], found.parameters.get("relabel"), "parameters.relabel")
            for name in ("rule", "policy", "evidence", "unsupported"):
                optional = name != "policy" or relabel.get("rule") is not None
                _read(str | None if optional else str, relabel.get(name), f"parameters.relabel.{name}")
            if found.source.shard is not None:  # by these the shards of one run are known
                for name, kind in (("created", str), ("identity", Mapping[str, Any]), ("prompts", Mapping[str, Any])):
                    _read(kind, content.get(name), name)
        except _Misfit as misfit:
            raise ConfigurationError(
                f"{path} has the {misfit}. It was edited or damaged: run arhn-refine again with the same arguments, "
                "which writes it anew, or fetch the dataset anew."
            ) from None
        return found

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def relabel(self) -> Mapping[str, Any]:
        """The rule that has made the labels, with its options."""
        return self.parameters["relabel"]

    def rows_of(self, path: str) -> int:
        """The rows of a data file, by its path in the folder, 0 where nothing is said of it."""
        file = (self.files or {}).get(path)
        return 0 if file is None else file.rows or 0


def read_run(root: Path, name: str | None = None) -> Run:
    """The run of a folder; ``name`` is what messages call the folder.

    Raises:
        ConfigurationError: there is no ``run.json``, or it cannot be read, is of another program or a newer version, or
            a part of it is not what a run writes.
    """
    expected = "Expected a folder that arhn-refine --output has written, or a copy of what arhn-push has published."
    where, path = name or root, Path(name or root) / RUN_FILE
    try:
        content: Any = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = f"no {RUN_FILE} of arhn_datasets in it" if root.is_dir() else "no such folder"
        raise ConfigurationError(f"{where}: {found}. {expected}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. {HALF_WRITTEN}") from error
    versions = content.get("versions") if isinstance(content, dict) else None
    if not isinstance(versions, dict) or "arhn_datasets" not in versions:
        raise ConfigurationError(
            f"{where}: no {RUN_FILE} of arhn_datasets in it, but another one, whose versions are "
            f"{shorten(repr(versions), 100)}. {expected}"
        )
    if isinstance(format := content.get("format"), int) and format > RUN_FORMAT:  # it may differ in everything else
        raise ConfigurationError(
            f"{path} has the format {format}; arhn_datasets {version('arhn_datasets')} reads up to {RUN_FORMAT}. "
            "Update the package, which is older than the one that wrote this."
        )
    return Run.of(content, path)


def is_refined(folder: Path) -> bool:
    """Whether a folder was written by this package: refined or published."""
    try:
        return "arhn_datasets" in json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def as_json(run: Mapping[str, Any]) -> str:
    """The text of ``run.json``."""
    return json.dumps(dict(run), indent=2, ensure_ascii=False) + "\n"


# -- typed parts of JSON -----------------------------------------------------------------------------------------------

_SCALARS: Mapping[type, tuple[Any, str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}


class _Misfit(Exception):
    def __init__(self, name: str, found: Any, expected: str) -> None:
        super().__init__(f"{name} {shorten(repr(found), 100)}; {expected} was expected")


def _read(kind: Any, found: Any, name: str) -> Any:
    """A value as the type of an annotation: a dataclass, a mapping, a list of texts, a text, a number, or a union."""
    if kind is Any:
        return found
    if get_origin(kind) in (Union, UnionType):
        return _read_one_of([one for one in get_args(kind) if one is not NoneType], found, name)
    if kind in _SCALARS:
        types, expected = _SCALARS[kind]
        if not isinstance(found, types) or isinstance(found, bool):
            raise _Misfit(name, found, expected)
        return found
    if get_origin(kind) is Sequence:
        if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
            raise _Misfit(name, found, "a list of texts")
        return tuple(found)
    if not isinstance(found, Mapping):
        raise _Misfit(name, found, "an object")
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**_fields(kind, found, name))
    _, values = get_args(kind)
    return {key: _read(values, value, f"{name}.{key}") for key, value in found.items()}


def _read_one_of(kinds: Sequence[Any], found: Any, name: str) -> Any:
    if found is None:
        return None
    if len(kinds) == 1:
        return _read(kinds[0], found, name)
    for kind in kinds:
        try:
            return _read(kind, found, name)
        except _Misfit:
            pass
    raise _Misfit(name, found, "a text, or a list of texts,")


def _fields(kind: Any, found: Mapping[str, Any], name: str) -> dict[str, Any]:
    values, types = {}, get_type_hints(kind)
    for one in fields(kind):
        value = found if one.metadata.get("whole") else found.get(one.name)
        within = f"{name}.{one.name}".lstrip(".")
        if value is None and (one.default is not MISSING or one.default_factory is not MISSING):
            continue
        if (expected := one.metadata.get("expected")) and not isinstance(value, str):
            raise _Misfit(within, value, expected)
        values[one.name] = _read(types[one.name], value, within)
    return values
