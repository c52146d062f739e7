"""A human audit of a refined dataset: a blind sample to answer, and what the answers say of its labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arhn_datasets.checks.agreement import Audit, Stratum, summarize
from arhn_datasets.checks.audit_sample import choose_pairs, prefix_of, shown_pairs, strata_of
from arhn_datasets.checks.audit_sheet import (
    CELL_CHARACTERS,
    SUFFIXES,
    instructions_of,
    read_answers,
    refuse_lines,
    sheet_of,
)
from arhn_datasets.errors import ConfigurationError, OutputError
from arhn_datasets.folder.card import audit_sentence
from arhn_datasets.folder.reading import CARD_FILE, DATA, DROPPED, EVIDENCE, Folder, open_folder
from arhn_datasets.folder.readme import BEGIN, END
from arhn_datasets.folder.run import RUN_FILE, as_json
from arhn_datasets.folder.writer import replace_files

AUDITED = "A human audit of "  # begins what the card says of an audit


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A sample that was written: where, how many pairs, and of each stratum its size and how many were drawn.

    ``cut`` counts passages that are too long for a cell of a spreadsheet and were cut.
    """

    path: Path
    instructions: Path
    rows: int
    strata: Mapping[Stratum, tuple[int, int]]
    cut: int = 0


def draw_audit(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, rows: int = 100, seed: int = 0
) -> Drawn:
    """Draw a blind, stratified sample of pairs and write it, with instructions beside it, for a human to answer.

    The folder is read twice, in bounded memory, and stays as it is.

    Args:
        folder: A refined or a published folder.
        output: A ``.csv`` or ``.jsonl`` file that does not exist; ``FILE.README.txt`` comes beside it.
        rows: How many pairs; fewer where there are fewer.
        seed: Another seed draws another sample, in another order.

    Raises:
        ConfigurationError: there is no such folder, nothing can be drawn of it, or an argument cannot work.
        OutputError: the file is there already or cannot be written.
    """
    target, opened = Path(output), open_folder(folder)
    instructions = target.with_name(f"{target.name}.README.txt")
    _check_output(opened, target, rows)
    sizes, chosen = choose_pairs(opened, rows, seed)
    if not chosen:
        raise ConfigurationError(f"{opened.path} has no hard negatives of its source; there is nothing to audit.")
    limit = CELL_CHARACTERS if target.suffix == ".csv" else None
    shown = dict(shown_pairs(opened, chosen, limit))
    pairs = sorted(chosen, key=lambda pair: pair.turn)
    prefix = prefix_of(opened.run)
    content = sheet_of([(pair.code, *shown[pair.place][:2]) for pair in pairs], prefix, target.suffix)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_files({instructions: instructions_of(target.name, prefix, len(pairs)), target: content})
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}. Free some space or name another file.") from error
    drawn = Counter(pair.stratum for pair in chosen)
    return Drawn(
        path=target,
        instructions=instructions,
        rows=len(pairs),
        strata={stratum: (size, drawn[stratum]) for stratum, size in sizes.items()},
        cut=sum(cut for *_, cut in shown.values()),
    )


def _check_output(folder: Folder, target: Path, rows: int) -> None:
    if rows < 1:
        raise ConfigurationError(f"rows is {rows}; a number from 1 was expected.")
    if target.suffix not in SUFFIXES:
        raise ConfigurationError(f"{target} has the suffix {target.suffix!r}; {' or '.join(SUFFIXES)} was expected.")
    if target.exists():
        raise OutputError(f"{target} is there already, perhaps with answers in it; name another file, or move it.")
    root, place = folder.path.resolve(), target.resolve()
    if place.is_relative_to(root) and len(place.relative_to(root).parts) > 1:
        part = place.relative_to(root).parts[0]
        listed = {Path(path).parts[0] for path in folder.run.files or ()}
        if part in {DATA, DROPPED, EVIDENCE, *listed}:
            raise ConfigurationError(f"{target} is among the data of {folder.path}; name a file outside of {part}/.")


def read_audit(
    folder: str | os.PathLike[str],
    answers: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    write: bool = True,
    seed: int = 0,
) -> Audit:
    """Read the answers of one annotator or of several, compare them with the labels, and record what they say.

    With several files, each is one annotator's. Their answers are pooled by majority; a pair on which as many say yes
    as say no is unsure. ``run.json`` gets ``"audit"``, and the README the line on it; an earlier audit is replaced. All
    else in both files stays as it is.

    Args:
        folder: A refined or a published folder of the run that the answers are to.
        answers: CSV files, with any of ``, ; tab`` between the cells, or ``.jsonl`` files.
        write: Whether to change ``run.json`` and ``README.md``.
        seed: Of the bootstrap.

    Raises:
        ConfigurationError: there is no such folder.
        InputError: a file cannot be read, is of another run, holds what is no answer, or answers nothing.
        MissingDependencyError: scikit-learn is not installed.
        OutputError: the folder cannot be written.
    """
    opened = open_folder(folder)
    named = [answers] if isinstance(answers, (str, os.PathLike)) else list(answers)
    paths = [Path(path) for path in named]
    twice = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice or not paths:
        found = f"names {twice[0]} more than once" if twice else "names no file"
        raise ConfigurationError(f"answers {found}; one file of each annotator was expected.")
    files = [read_answers(path, prefix_of(opened.run)) for path in paths]
    populations, strata = strata_of(opened, {one.code for said in files for one in said})
    for path, said in zip(paths, files, strict=True):
        unknown = [one.line for one in said if one.code not in strata]
        refuse_lines(path, [f"line {line}: the id is of no pair of this run" for line in unknown])
    annotators = [{one.code: one.verdict for one in said} for said in files]
    audit = summarize(annotators, populations, strata, seed=seed)
    return _recorded(opened, audit) if write else audit


def _recorded(folder: Folder, audit: Audit) -> Audit:
    """Write the audit into ``run.json``, then into the card; a card that an interruption left behind is mended."""
    run_path, card_path = folder.path / RUN_FILE, folder.path / CARD_FILE
    run = {**folder.run, "audit": audit.to_json()}
    contents = {run_path: as_json(run).encode()}
    notes = list(audit.notes)
    try:
        card = with_audit(card_path.read_bytes().decode(), run["audit"])
    except (OSError, UnicodeDecodeError) as error:
        card = None
        notes.append(f"{card_path} cannot be read and stays as it is: {error}.")
    else:
        if card is None:
            notes.append(f"{card_path} has no section on the limits as arhn_datasets writes it, and stays as it is.")
    if card is not None:
        contents[card_path] = card.encode()
    try:
        replace_files(contents)
    except OSError as error:
        raise OutputError(
            f"{folder.path} cannot be written: {error}. It is as it was; copy it to where you may write."
        ) from error
    return replace(audit, notes=tuple(notes))


def with_audit(readme: str, audit: Mapping[str, Any]) -> str | None:
    """A README with what the card says of the audit replaced in its generated block; None where that has no limits.

    The rest of the block stays as well: what a publisher has told for it stands nowhere else.
    """
    start, end = readme.find(BEGIN), readme.rfind(END)
    lines = readme[start:end].split("\n") if 0 <= start < end else []
    heading = max((at for at, line in enumerate(lines) if line.startswith("## Limits")), default=len(lines))
    listed = [at for at, line in enumerate(lines) if at > heading and line.startswith("- ")]
    if not listed:
        return None
    said, ending = f"- {audit_sentence(audit)}", "\r" * lines[listed[0]].endswith("\r")
    for at in listed:
        if lines[at].startswith((f"- {audit_sentence(None)}", f"- {AUDITED}")):
            lines[at] = said + ending
            break
    else:
        lines.insert(listed[0], said + ending)
    return readme[:start] + "\n".join(lines) + readme[end:]
