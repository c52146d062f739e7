"""What goes to the Hub, built in a folder: every configuration, the card, its charts, and the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, MissingDependencyError, OutputError
from arhn_datasets.folder.card import CHANGED_ROWS, render_card
from arhn_datasets.folder.card_content import CardContent, Config
from arhn_datasets.folder.chart import draw_chart
from arhn_datasets.folder.evidence_table import canonical_of, evidence_of, evidence_schema, further_of
from arhn_datasets.folder.facts import Facts
from arhn_datasets.folder.parquet import Shards, features_of
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, PUBLISHED, Folder, describe_files
from arhn_datasets.folder.report import ALL, Counts, Report, changed_rows
from arhn_datasets.folder.run import RUN_FILE
from arhn_datasets.formats.format import Format, Options
from arhn_datasets.formats.registry import chosen_formats, examples_of, known_formats
from arhn_datasets.formats.split_rows import FolderRows
from arhn_datasets.formats.writers import Written
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, FILTERED

CHARTS: Mapping[str, str] = {theme: f"charts/counts-{theme}.png" for theme in ("light", "dark")}

# The configuration of each part of a folder.
_CONFIGS = {DATA: "default", DROPPED: "dropped", EVIDENCE: "evidence"}


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A folder that is ready for the Hub; ``files`` are its paths with their bytes, ``notes`` what it lacks and why."""

    path: Path
    files: tuple[tuple[str, int], ...]
    report: Report
    card: str
    formats: Mapping[str, Written]
    notes: tuple[str, ...] = ()


def build_publication(
    folder: Folder,
    target: Path,
    *,
    formats: Sequence[str] = (),
    options: Options | None = None,
    repo_id: str | None = None,
    facts: Facts | None = None,
    license: str | None = None,
) -> Publication:
    """Build the published layout of a folder, reading it once, in bounded memory; the folder stays as it is.

    Args:
        folder: A refined folder, or a published one that is to be published in other formats.
        target: A folder that does not exist or is empty.
        formats: Of trainers, each a configuration or files without one.
        options: Of the formats.
        repo_id: Where the card says that the dataset is.
        facts: What the publisher says in the card.
        license: The licence, if another than that of the source.

    Raises:
        ConfigurationError: a format is unknown, or the counts of the run are missing.
        OutputError: ``target`` cannot be written.
    """
    options = options or Options()
    chosen = chosen_formats(formats) if formats else {}
    report, notes = _report(folder), []
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} is not an empty folder; name one that does not exist or is empty.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        writing = _Writing(folder, target, chosen, options)
        changed = changed_rows(writing.tables(), CHANGED_ROWS)
        written = writing.close()
        charts = dict(CHARTS)
        try:
            draw_chart(report, target / charts["light"], target / charts["dark"])
        except MissingDependencyError as error:
            charts = {}
            notes.append(f"The card has no charts. {error}")
        run = {
            **folder.run,
            "published": {"formats": list(chosen), "options": options.to_json(), "license": license},
            "files": describe_files(target),
        }
        content = CardContent(
            run=run,
            report=report,
            configs=writing.configs,
            files=[format.files for name, format in known_formats().items() if format.files and name in chosen],
            examples=examples_of({*writing.configs, *chosen}),
            layout=PUBLISHED,
            repo_id=repo_id,
            changed=changed,
            charts=charts,
            facts=facts,
            license=license,
        )
        card = render_card(content)
        (target / CARD_FILE).write_text(card, encoding="utf-8")
        # Last, because it tells that the folder is whole.
        (target / RUN_FILE).write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        files = sorted(path for path in target.rglob("*") if path.is_file())
        sizes = tuple((path.relative_to(target).as_posix(), path.stat().st_size) for path in files)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another folder.") from error
    return Publication(path=target, files=sizes, report=report, card=card, formats=written, notes=tuple(notes))


class _Writing:
    """The one pass over the rows: every configuration is written as they go by."""

    def __init__(self, folder: Folder, target: Path, formats: Mapping[str, Format], options: Options) -> None:
        self.configs: dict[str, Config] = {}
        self._folder, self._target = folder, target
        self._writers = {
            name: format.open(format, target, options, FolderRows(folder), True) for name, format in formats.items()
        }

    def tables(self) -> Iterator[pa.Table]:
        """Write everything; the wide rows as they go by, of which the card shows some."""
        from datasets.utils import tqdm

        counts = [self._folder.count(split, part) for split in self._folder.splits for part in (DATA, DROPPED)]
        with tqdm(total=sum(counts), unit=" rows", desc="publish") as bar:
            yield from self._rows(bar)

    def _rows(self, bar: Any) -> Iterator[pa.Table]:
        for split in self._folder.splits:
            wide = self._folder.schema(split)
            passage = wide.field(FILTERED.passages).type.value_type
            evidence = Shards(self._target / EVIDENCE, split, evidence_schema(passage, further_of(wide.names)))
            first = 0
            for part in (DATA, DROPPED):
                if part == DROPPED and not self._folder.count(split, part):
                    continue
                schema = _canonical_schema(self._folder.features_schema(split))
                shards = Shards(self._target / part, split, schema)
                writers = list(self._writers.values()) if part == DATA else []
                for writer in writers:
                    writer.begin(split)
                for table in self._folder.tables(split, part=part):
                    shards.write(canonical_of(table))
                    evidence.write(evidence_of(table, first))
                    first += table.num_rows
                    for writer in writers:
                        writer.write(table)
                    bar.update(table.num_rows)
                    yield table
                for writer in writers:
                    writer.end()
                self._close(part, split, shards, schema)
            self._close(EVIDENCE, split, evidence, evidence.schema)

    def close(self) -> dict[str, Written]:
        """Finish the formats."""
        written = {format: writer.close() for format, writer in self._writers.items()}
        for one in written.values():
            self.configs |= one.configs
        return written

    def _close(self, part: str, split: str, shards: Shards, schema: pa.Schema) -> None:
        shards.close()
        name = _CONFIGS[part]
        before = self.configs.get(name)
        self.configs[name] = Config(
            splits={**(before.splits if before else {}), split: f"{part}/{split}-*"},
            features=before.features if before else features_of(schema),
            sizes={**(before.sizes if before else {}), split: (shards.rows, shards.bytes)},
        )


def _canonical_schema(found: pa.Schema) -> pa.Schema:
    """The columns of ``data`` without the evidence, with the features that the source gave them."""
    from datasets import Features

    kept = [column for column in found.names if column not in ALL_EVIDENCE_TYPES]
    features = Features.from_arrow_schema(found)
    metadata = Features({column: features[column] for column in kept}).arrow_schema.metadata
    return pa.schema([found.field(column) for column in kept], metadata=metadata)


def _report(folder: Folder) -> Report:
    """The counts that the run has recorded; arhn-verify holds them against the rows."""
    counts: Any = folder.run.get("counts")
    try:
        subsets = {name: Counts(**values) for name, values in counts.items() if name != ALL}
        return Report(total=Counts(**counts[ALL]), subsets=subsets)
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The counts in {folder.path / RUN_FILE} cannot be read: {error!r}. Expected those that arhn-refine has "
            "written; refine again, or restore the file."
        ) from error
