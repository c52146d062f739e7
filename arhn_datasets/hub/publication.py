"""What goes to the Hub, built in a folder: every configuration, the card, its charts, and the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from arhn_datasets.errors import ConfigurationError, MissingDependencyError
from arhn_datasets.folder.card import CHANGED_ROWS, render_card
from arhn_datasets.folder.chart import draw_chart
from arhn_datasets.folder.evidence_table import canonical_of, evidence_of, evidence_schema, further_of
from arhn_datasets.folder.parquet import Shards, features_of
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, describe_files
from arhn_datasets.folder.readme import PUBLISHED, CardContent, Config, Facts
from arhn_datasets.folder.report import ALL, Report, changed_rows
from arhn_datasets.folder.run import RUN_FILE, as_json
from arhn_datasets.folder.writer import CONFIGS, naming
from arhn_datasets.formats.exporting import check_empty
from arhn_datasets.formats.format import Options, chosen_formats, examples_of, known_formats
from arhn_datasets.formats.writers import Writer, Written, split_rows_of
from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, FILTERED

logger = logging.getLogger(__name__)

CHARTS: Mapping[str, str] = {theme: f"charts/counts-{theme}.png" for theme in ("light", "dark")}


class PublishedFile(NamedTuple):
    """A file as it goes to the Hub; ``size`` in bytes."""

    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A folder that is ready for the Hub, and what is in it."""

    path: Path
    files: tuple[PublishedFile, ...]
    report: Report
    card: str
    formats: Mapping[str, Written]


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
    chosen = chosen_formats(formats, options) if formats else {}
    report, charts = _report(folder), dict(CHARTS)
    with naming(target):
        check_empty(target)
        target.mkdir(parents=True, exist_ok=True)
        rows, configs = split_rows_of(folder), dict[str, Config]()
        writers = {name: format.open(format, target, options, rows, True) for name, format in chosen.items()}
        changed = changed_rows(_passing(folder, target, list(writers.values()), configs), CHANGED_ROWS)
        written = {name: writer.close() for name, writer in writers.items()}
        for one in written.values():
            configs |= one.configs
        try:
            draw_chart(report, target / charts["light"], target / charts["dark"])
        except MissingDependencyError as error:
            charts = {}
            logger.warning("The card has no charts. %s", error)
        run = {
            **folder.run,
            "published": {"formats": list(chosen), "options": options.to_json(), "license": license},
            "files": describe_files(target),
        }
        content = CardContent(
            run=run,
            report=report,
            configs=configs,
            files=[format.files for name, format in known_formats().items() if format.files and name in chosen],
            examples=examples_of({*configs, *chosen}),
            layout=PUBLISHED,
            repo_id=repo_id,
            changed=changed,
            charts=charts,
            facts=facts or Facts(),
            license=license,
        )
        card = render_card(content)
        (target / CARD_FILE).write_text(card, encoding="utf-8")
        # Last, because it tells that the folder is whole.
        (target / RUN_FILE).write_text(as_json(run), encoding="utf-8")
        files = [path for path in target.rglob("*") if path.is_file()]
        sizes = sorted(PublishedFile(path.relative_to(target).as_posix(), path.stat().st_size) for path in files)
    return Publication(path=target, files=tuple(sizes), report=report, card=card, formats=written)


def _passing(folder: Folder, target: Path, writers: Sequence[Writer], configs: dict[str, Config]) -> Iterator[pa.Table]:
    """The wide rows, of which the card shows some: everything is written as they go by, and ``configs`` is filled."""
    from datasets.utils import tqdm

    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    schemas: dict[str, pa.Schema] = {}

    def finish(part: str, split: str, shards: Shards) -> None:
        shards.close()
        sizes.setdefault(part, {})[split] = (shards.rows, shards.bytes)
        schemas.setdefault(part, shards.schema)

    total = sum(folder.count(split, part) for split in folder.splits for part in (DATA, DROPPED))
    with tqdm(total=total, unit=" rows", desc="publish") as bar:
        for split in folder.splits:
            wide, first = folder.schema(split), 0
            passage = wide.field(FILTERED.passages).type.value_type
            evidence = Shards(target / EVIDENCE, split, evidence_schema(passage, further_of(wide.names)))
            for part, formats in ((DATA, writers), (DROPPED, ())):
                if part == DROPPED and not folder.count(split, part):
                    continue
                shards = Shards(target / part, split, _canonical_schema(folder.features_schema(split)))
                for writer in formats:
                    writer.begin(split)
                for table in folder.tables(split, part=part):
                    shards.write(canonical_of(table))
                    evidence.write(evidence_of(table, first))
                    first += table.num_rows
                    for writer in formats:
                        writer.write(table)
                    bar.update(table.num_rows)
                    yield table
                for writer in formats:
                    writer.end()
                finish(part, split, shards)
            finish(EVIDENCE, split, evidence)
    for part, schema in schemas.items():
        configs[CONFIGS[part]] = Config(folder=part, sizes=sizes[part], features=features_of(schema))


def _canonical_schema(found: pa.Schema) -> pa.Schema:
    """The columns of ``data`` without the evidence, with the features that the source gave them."""
    from datasets import Features

    kept = [column for column in found.names if column not in ALL_EVIDENCE_TYPES]
    features = features_of(found)
    metadata = Features({column: features[column] for column in kept}).arrow_schema.metadata
    return pa.schema([found.field(column) for column in kept], metadata=metadata)


def _report(folder: Folder) -> Report:
    """The counts that the run has recorded; arhn-verify holds them against the rows."""
    counts = folder.run.counts
    if ALL not in counts:
        raise ConfigurationError(
            f"The counts in {folder.path / RUN_FILE} lack {ALL!r}; those that arhn-refine has written were expected. "
            "Refine again, or restore the file."
        )
    return Report(total=counts[ALL], subsets={name: one for name, one in counts.items() if name != ALL})
