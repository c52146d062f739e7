"""The one writer of a refined folder: tables of relabelled rows in, a repository that `load_dataset` loads out.

Every engine ends here: ``Dataset.map``, a stream, a cluster, and the merging of shards. An engine is whatever gives,
for each split, tables of relabelled rows in the order of the source::

    write_run(Path("refined"), {"train": tables}, lambda report, rows: describe_run(...))

Memory is bounded by the tables and a row group or two, whatever the number of rows.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.annotators.prompts import Prompts
from arhn_datasets.errors import OutputError, SchemaError
from arhn_datasets.evidence.stage import AnnotatedTransform, EvidenceStage
from arhn_datasets.folder.card import CHANGED_ROWS, render_card
from arhn_datasets.folder.parquet import Shards, common_schema, conformed, features_of
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, describe_files, read_rows
from arhn_datasets.folder.readme import REFINED, CardContent, Config
from arhn_datasets.folder.report import ChangedRows, Report, Tally
from arhn_datasets.folder.run import RUN_FILE, RUN_FORMAT, Run, as_json, is_refined
from arhn_datasets.rows.arrow import field_of
from arhn_datasets.rows.records import DECISION, Row, digest
from arhn_datasets.rows.records import DROPPED as DROPPED_STATUS
from arhn_datasets.rows.stage import Transform

# Of the first rows of a split, from which its columns get their types.
TYPED_BYTES = 32_000_000

CONFIGS = {DATA: "default", DROPPED: "dropped", EVIDENCE: "evidence"}
"""The configuration of each part of a folder."""
VERSIONED = ("datasets", "huggingface_hub", "pyarrow")

Describe = Callable[[Report, Mapping[str, int]], Mapping[str, Any]]
"""What ``run.json`` says, from the counts and the rows of each split, when all rows are written."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A finished run: where it is, what it did, and what ``run.json`` says of it."""

    path: Path
    report: Report
    run: Run

    def rows(self, split: str | None = None) -> Iterator[Row]:
        """The rows that were written, of one split or of all."""
        return read_rows(self.path, split)


def write_run(
    target: Path,
    streams: Mapping[str, Iterable[pa.Table]],
    describe: Describe,
    joined: Mapping[str, Sequence[Path]] | None = None,
) -> Refinement:
    """Write relabelled rows as a refined folder, which is at ``target`` when all of it is written.

    Args:
        target: A folder that does not exist, is empty, or holds an earlier run, which is replaced.
        streams: For each split, in their order, its rows in tables of one schema, at least one table, perhaps empty.
            Metadata of `datasets` in the first tell the features.
        describe: Gives the content of ``run.json``; see :func:`describe_run`.
        joined: Files to write beside the rows, each of the files that are there one after the other.

    Raises:
        SchemaError: a split has no table, or tables that do not fit each other.
        OutputError: ``target`` holds something else, or cannot be written.
    """
    check_output(target)
    with RunWriter(target) as writer:
        for split, tables in streams.items():
            writer.begin(split)
            for table in tables:
                writer.write(table)
        for name, parts in (joined or {}).items():
            writer.join(name, [part for part in parts if part.exists()])
        return writer.finish(describe)


class RunWriter:
    """A refined folder that is being written, in a hidden one beside its place.

    ``begin`` a split, ``write`` its rows, and so on; then ``finish``. As a context manager it removes what it has
    written when it ends otherwise, unless ``work`` names a folder that is to be kept for going on: then ``checkpoint``
    makes what is written so far whole, and :meth:`resumed` goes on from what it gave.
    """

    def __init__(self, target: Path, work: Path | None = None) -> None:
        self.rows: dict[str, int] = {}
        self._target, self._kept = target, work is not None
        self._tally, self._changed = Tally(), ChangedRows(CHANGED_ROWS)
        self._splits: dict[str, _Split] = {}
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if work is None:
                self._work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                self._work.chmod(0o755)  # mkdtemp makes it private
            else:
                self._work = work
                work.mkdir(exist_ok=True)

    @classmethod
    def resumed(cls, target: Path, work: Path, state: Mapping[str, Any]) -> RunWriter:
        """Go on in ``work`` from what :meth:`checkpoint` has given; what was written after it is removed."""
        writer = cls(target, work)
        writer._tally = Tally.from_json(state["tally"])
        writer._changed = ChangedRows.from_json(CHANGED_ROWS, state["changed"])
        writer.rows = dict(state["rows"])
        writer._splits = {name: _Split.resumed(work, name, parts) for name, parts in state["splits"].items()}
        known = {path for shards in writer._shards for path in shards.finished}
        for part in (DATA, DROPPED):
            for path in (work / part).glob(".*.writing"):
                if path not in known:
                    path.unlink()
        return writer

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for shards in self._shards:
            shards.close_file()
        if not self._kept:
            shutil.rmtree(self._work, ignore_errors=True)

    def begin(self, split: str) -> None:
        """Start a split; nothing where it was begun before the checkpoint that this goes on from."""
        if split in self._splits:
            return
        with naming(self._target):
            for before in self._splits.values():  # or each would hold rows and a file to the end
                self._take(before.settle())
                before.finish_files()
        self._splits[split] = _Split(self._work, split)
        self.rows[split] = 0

    def write(self, table: pa.Table) -> None:
        """Add relabelled rows to the split that was begun last."""
        split = next(reversed(self._splits))
        with naming(self._target):
            self.rows[split] += table.num_rows
            self._take(self._splits[split].write(table))

    def join(self, name: str, parts: Sequence[Path]) -> None:
        """Write a file beside the rows, of files one after the other; nothing of none."""
        with naming(self._target):
            for part in parts:
                with part.open("rb") as source, (self._work / name).open("ab") as file:
                    shutil.copyfileobj(source, file)

    @property
    def due(self) -> bool:
        """Whether a shard is full, so that it is time for a checkpoint."""
        return any(shards.full for shards in self._shards)

    def checkpoint(self) -> dict[str, Any]:
        """Finish the files that are being written; what to go on from, as JSON, without any of the rows so far."""
        with naming(self._target):
            for split in self._splits.values():
                self._take(split.settle())
            return {
                "splits": {name: split.finish_files() for name, split in self._splits.items()},
                "rows": self.rows,
                "tally": self._tally.to_json(),
                "changed": self._changed.to_json(),
            }

    def finish(self, describe: Describe) -> Refinement:
        """Write what is left, the card and ``run.json``, and put the folder in its place."""
        with naming(self._target):
            sizes: dict[str, dict[str, tuple[int, int]]] = {}
            schemas: dict[str, pa.Schema] = {}
            for name, split in self._splits.items():
                self._take(split.settle())
                for part, shards in split.shards.items():
                    written = sum(path.stat().st_size for path in shards.close())
                    sizes.setdefault(part, {})[name] = (shards.rows, written)
                    schemas.setdefault(part, shards.schema)
            report = self._tally.report()
            described = {**describe(report, self.rows), "files": describe_files(self._work)}
            run = Run.of(described, self._target / RUN_FILE)
            content = CardContent(
                run=described,
                report=report,
                configs={
                    CONFIGS[part]: Config(folder=part, sizes=sizes[part], features=features_of(schema))
                    for part, schema in schemas.items()
                },
                layout=REFINED,
                changed=self._changed.rows(),
            )
            (self._work / CARD_FILE).write_text(render_card(content), encoding="utf-8")
            # Last, because it tells that the folder is whole.
            (self._work / RUN_FILE).write_text(as_json(described), encoding="utf-8")
            for path in self._work.glob(".*"):  # notes of the engine
                path.unlink()
            swap(self._work, self._target)
        return Refinement(path=self._target, report=report, run=run)

    @property
    def _shards(self) -> Iterator[Shards]:
        return (shards for split in self._splits.values() for shards in split.shards.values())

    def _take(self, tables: Iterable[pa.Table]) -> None:
        for table in tables:
            self._tally.add(table)
            self._changed.add(table)


class _Split:
    """The files of a split: the rows for trainers, and those that a guard dropped where there are any."""

    def __init__(self, root: Path, name: str) -> None:
        self.shards: dict[str, Shards] = {}
        self._root, self._name = root, name
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    @classmethod
    def resumed(cls, root: Path, name: str, parts: Mapping[str, Mapping[str, Any]]) -> _Split:
        split = cls(root, name)
        for part, state in parts.items():
            split.shards[part] = Shards.resumed(root / part, name, state)
            split._schema = split.shards[part].schema
        return split

    def write(self, table: pa.Table) -> list[pa.Table]:
        """Add rows; those that went into files, as they are there."""
        if self._schema is None:
            self._waiting.append(table)
            self._bytes += table.nbytes
            return self.settle() if self._bytes >= TYPED_BYTES else []
        table = conformed(table, self._schema)
        kept = pc.fill_null(pc.not_equal(field_of(table.column(DECISION), "status", pa.string()), DROPPED_STATUS), True)
        if pc.all(kept, min_count=0).as_py():
            self._part(DATA).write(table)
        else:
            self._part(DATA).write(table.filter(kept))
            self._part(DROPPED).write(table.filter(pc.invert(kept)))
        return [table]

    def settle(self) -> list[pa.Table]:
        """Give the columns their types, if they have none yet, and write what has waited for them."""
        if self._schema is not None:
            return []
        if not self._waiting:
            raise SchemaError(f"The split {self._name!r} came without a table; one was expected, perhaps without rows.")
        self._schema, waiting = common_schema(self._waiting), self._waiting
        self._waiting = []
        self._part(DATA)
        return [written for table in waiting for written in self.write(table)]

    def finish_files(self) -> dict[str, dict[str, Any]]:
        return {part: shards.checkpoint() for part, shards in self.shards.items()}

    def _part(self, part: str) -> Shards:
        if part not in self.shards:
            assert self._schema is not None
            self.shards[part] = Shards(self._root / part, self._name, self._schema)
        return self.shards[part]


# -- what run.json says ------------------------------------------------------------------------------------------------


def describe_run(
    provenance: Mapping[str, Any],
    transforms: Sequence[Transform],
    report: Report,
    durations: Mapping[str, float],
    requests: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``run.json``: everything needed to repeat the run, and nothing secret."""
    evidence = [found for found in transforms if isinstance(found, EvidenceStage)]
    return {
        "format": RUN_FORMAT,
        "id": uuid.uuid4().hex,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "arhn_datasets": version("arhn_datasets"),
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONED},
        },
        "source": dict(provenance),
        "annotator": _described(evidence),
        **configuration(transforms),
        "prompts": _prompt_texts(evidence),
        "counts": report.to_json(),
        "causes": [asdict(cause) for cause in report.causes],
        "durations_seconds": {stage: round(seconds, 3) for stage, seconds in durations.items()},
        "requests": dict(requests or {}),
    }


def configuration(transforms: Sequence[Transform]) -> dict[str, Any]:
    """What changes the result of a run beside its input: the identities of the annotators, and the parameters."""
    parameters, annotators = {}, {}
    for transform in transforms:
        identity = transform.identity()
        if isinstance(transform, AnnotatedTransform):
            annotators[transform.NAME] = identity.pop("annotator")
        parameters[transform.NAME] = identity
    return {"identity": annotators, "parameters": parameters}


def _described(evidence: Sequence[EvidenceStage]) -> dict[str, Any]:
    """Who was asked; where nobody was, whose the evidence is."""
    found = sorted(evidence, key=lambda one: not isinstance(one, AnnotatedTransform))
    return found[0].description() if found else {"annotator": "not recorded"}


def _prompt_texts(evidence: Sequence[EvidenceStage]) -> dict[str, dict[str, str]]:
    """What an LLM was asked in each task, with places for what differs; nothing where there are no prompts."""
    asked = {name: one.configured for one in evidence if isinstance(one, AnnotatedTransform) for name in one.prompts_of}
    found = {stage: getattr(annotator, "prompts", None) for stage, annotator in asked.items()}
    known = {stage: prompts for stage, prompts in found.items() if isinstance(prompts, Prompts)}
    texts: dict[str, dict[str, str]] = {}
    for task in (task for prompts in list(known.values())[:1] for task in prompts.tasks):
        text: dict[str, str] = {}
        for stage, prompts in known.items():
            text |= prompts.example_of(stage, task)
        version = next(iter(known.values())).version
        texts[task] = {"version": version, "hash": digest(text)[:16], **text}
    return texts


# -- the place of a folder: whether it can be written, and how the new one takes that of the old one -------------------


def check_output(target: Path) -> None:
    """Refuse to write over anything but an earlier run, and where nothing can be written; before any work.

    Raises:
        OutputError: ``target`` is a file, holds something else, or cannot be made.
    """
    with naming(target):
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
        # As a run makes it, but below a temporary folder: other runs may be making the same parents.
        parent = target.absolute().parent
        there = _existing_parent(parent)
        with tempfile.TemporaryDirectory(prefix=".arhn-", dir=there, ignore_cleanup_errors=True) as scratch:
            below = Path(scratch) / parent.relative_to(there)
            below.mkdir(parents=True, exist_ok=True)
            tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=below)  # the longest name that a run makes


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
        advice = _ADVICE.get(error.errno, "Name another folder, in which you may write.")
        raise OutputError(f"{target} cannot be written: {error}. {advice}") from error


_ADVICE: Mapping[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space or name another folder."),
    errno.ENAMETOOLONG: "Name another folder, with a shorter name.",
}
