"""The sheet of an audit: the pairs as a human gets them to answer, and the answers as spreadsheets save them.

Ids are consonants alone, so that no spreadsheet makes a number, a date or a formula of them.

**One sentence is marked in every passage** that has a text: the one that shares most with the snippet where there is
a snippet, and the one that shares most words with the query where there is none. Marking snippets alone would tell the
label, since most kept negatives have none; so would their length, or marks in titles. A mark says where to look first.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arhn_datasets.annotators.words import sentences, terms
from arhn_datasets.errors import InputError
from arhn_datasets.rows.records import GROUNDED, Passage, shorten

COLUMNS = ("id", "query", "passage", "answers")
ID, ANSWERS = "id", "answers"
OPENING, CLOSING = "⟦", "⟧"
CELL_CHARACTERS = 15_000  # of a CSV: spreadsheets break a cell of more than 32,767 UTF-16 units
SUFFIXES = (".csv", ".jsonl")

YES, NO, UNSURE = "yes", "no", "unsure"
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("yes", "y", "1", "1.0", "true"), YES),
    **dict.fromkeys(("no", "n", "0", "0.0", "false"), NO),
    **dict.fromkeys(("unsure", "?"), UNSURE),
    "": "",
}
EXPECTED = "yes, no, y, n, 1, 0, true, false, unsure or nothing"

_LETTERS = "bcdfghjklmnpqrstvwxz"
_DIGITS = "0123456789ABCDEFGHIJ"  # of numbers to the base of twenty
_ID = re.compile(f"([{_LETTERS}]{{6}})-([{_LETTERS}]{{15}})")
_SHOWN_PROBLEMS = 20
# What spreadsheets take for a formula, and the mark of an escaped cell itself.
_FORMULA = re.compile(r"[=+\-@\t\r'＝＋－＠]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def spelled(number: int, length: int = 15) -> str:
    """A number in consonants, of which the last ``length`` count."""
    return np.base_repr(number, 20).zfill(length)[-length:].translate(str.maketrans(_DIGITS, _LETTERS))


def marked_passage(
    query: str, passage: Passage, snippet: Mapping[str, Any] | None, code: int, limit: int | None = None
) -> tuple[str, bool]:
    """Title and text with one sentence of the text marked, and whether it was cut to some ``limit`` characters.

    Which sentence: see above. ``code`` decides between sentences that share as much with the query.
    """
    title, text = str(passage.get("title") or ""), str(passage.get("text") or "")
    span = _marked_span(query, text, snippet, code)
    start, end = span or (0, 0)
    begin, stop, before, after = 0, len(text), "", ""
    cut = limit is not None and len(text) > limit
    if limit is not None and cut:
        end = min(end, start + limit // 2)
        begin = max(0, min((start + end - limit) // 2, len(text) - limit))
        stop = begin + limit
        before = f"[… {begin:,} characters are not shown …] " if begin else ""
        after = f" [… {len(text) - stop:,} characters are not shown …]" if stop < len(text) else ""
    body = text[begin:stop]
    if span:
        body = f"{text[begin:start]}{OPENING}{text[start:end]}{CLOSING}{text[end:stop]}"
    return "\n".join(part for part in (title[:limit], f"{before}{body}{after}") if part), cut


def _marked_span(query: str, text: str, snippet: Mapping[str, Any] | None, code: int) -> tuple[int, int] | None:
    spans = sentences(text)
    if not spans:
        return None
    if snippet and snippet.get("status") == GROUNDED and snippet.get("field") == "text":
        start, end = snippet["start"], snippet["end"]
        return max(spans, key=lambda span: min(end, span[1]) - max(start, span[0]))
    wanted = terms(query)
    shared = [len(wanted & terms(text[start:end])) for start, end in spans]
    equal = [span for span, count in zip(spans, shared, strict=True) if count == max(shared)]
    return equal[code % len(equal)]


def escaped_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; :func:`plain_cell` is its inverse.

    An apostrophe is put before what begins with one of ``= + - @``, a tab, a carriage return, or an apostrophe.
    Control characters, which neither a spreadsheet nor every CSV reader takes, become U+FFFD.
    """
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return f"'{text}" if _FORMULA.match(text) else text


def plain_cell(cell: str) -> str:
    """The text of a cell that :func:`escaped_cell` has made."""
    return cell.removeprefix("'")


def sheet_of(pairs: Sequence[tuple[int, str, str]], prefix: str, suffix: str) -> bytes:
    """The sheet of some pairs, each its id as a number, its query and its passage; ids begin with ``prefix``."""
    rows = [(f"{prefix}-{spelled(code)}", query, passage, "") for code, query, passage in pairs]
    if suffix != ".csv":
        objects = (json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows)
        return "".join(f"{one}\n" for one in objects).encode()
    file = io.StringIO(newline="")
    csv.writer(file).writerows([COLUMNS, *([escaped_cell(cell) for cell in row] for row in rows)])
    return file.getvalue().encode("utf-8-sig")


_INSTRUCTIONS = """\
{rows} pairs of a query and a passage to judge, in {name}.

For each row, one question: does the passage answer the query? Write into the column "answers":

  yes      the passage holds the answer to the query, or what the query asks for. A passage that answers in other
           words, or among much else, answers.
  no       it does not: it may be about the same subject, and still does not say what was asked.
  unsure   you cannot tell. It is not counted; better than a guess.

y, n, 1, 0, true and false mean the same. Leave it empty where you did not look.

- Judge by the passage alone, not by what you know. Do not look the pairs up in the dataset: you are not to know how
  they were labelled, and neither the id nor the order tells.
- In each passage one sentence stands in {opening}brackets{closing}. It was chosen by a program as the place to look
  first, and it means nothing else: in passages that do not answer, there is one, too. Read the whole passage.
- An apostrophe at the beginning of a cell was put there so that a spreadsheet takes no text for a formula.
- You may sort the rows, add columns, and save as CSV with commas, semicolons or tabs. Leave the column "id" as it is:
  an answer is known by it alone. Its first letters, {run}, are those of the run that was audited.

Then: arhn-audit DIR --answers {name}
Several people: give each a copy, and name each file: --answers one.csv --answers other.csv
"""


def instructions_of(name: str, prefix: str, rows: int) -> bytes:
    """How to answer a sheet, for the file beside it."""
    return _INSTRUCTIONS.format(name=name, run=prefix, rows=rows, opening=OPENING, closing=CLOSING).encode()


def read_answers(path: Path, prefix: str) -> dict[int, tuple[str, int]]:
    """For the id of each pair in a file, as a number, :data:`YES`, :data:`NO`, :data:`UNSURE` or ``""``, and its line.

    Raises:
        InputError: it cannot be read, is of another run than the one whose ids begin with ``prefix``, or holds what is
            no answer; the message names the lines.
    """
    problems: list[str] = []
    answers: dict[int, tuple[str, int]] = {}
    others: Counter[str] = Counter()
    rows = 0
    for line, id, said in _lines(path, problems):
        if not id and not said:
            continue  # an empty line, or one that somebody has added
        rows += 1
        match, verdict = _ID.fullmatch(id.lower()), WORDS.get(plain_cell(said).strip().lower())
        if match is None:
            problems.append(f"line {line}: the id is {id!r}; one as it was drawn was expected, {prefix}-…")
        elif match[1] != prefix:
            others[match[1]] += 1
        elif verdict is None:
            problems.append(f"line {line}: the answer is {shorten(said, 60)!r}; {EXPECTED} was expected")
        else:
            code = int(match[2].translate(str.maketrans(_LETTERS, _DIGITS)), 20)
            before, at = answers.get(code, ("", 0))
            if not before:
                answers[code] = verdict, line
            elif verdict not in ("", before):
                found = f"the answer is {verdict!r}, and in line {at} the same pair has {before!r}"
                problems.append(f"line {line}: {found}; one answer was expected")
    if others:
        run, count = others.most_common(1)[0]
        raise InputError(
            f"{path} has {count:,} of {rows:,} answers to another run: their ids begin with {run}, those of this "
            f"folder with {prefix}. Name the folder that they were drawn from, or its published copy."
        )
    refuse_lines(path, problems)
    if not any(verdict in (YES, NO) for verdict, _ in answers.values()):
        raise InputError(
            f"{path} answers nothing: of {rows:,} rows, none has yes or no in the column {ANSWERS!r}. Fill it in first."
        )
    return answers


def refuse_lines(path: Path, problems: Sequence[str]) -> None:
    """Refuse a file with lines that cannot be read; the message names the first of them.

    Raises:
        InputError: there are some.
    """
    if problems:
        shown = "\n".join(f"  {problem}." for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS:,} more." if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputError(
            f"{path} has {len(problems):,} rows that cannot be read. Nothing was changed: correct them and run this "
            f"again.\n{shown}{more}"
        )


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    """Line, id and answer of each row of a file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        expected = "Expected a file that arhn-audit --output has made."
        raise InputError(f"{path} cannot be read: {error}. {expected}") from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{path} is a workbook of a spreadsheet; save it as CSV and name that file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # what is read of it is ASCII, so any code page will do
        utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16", "replace") if utf_16 else content.decode("latin-1")
    yield from _jsonl_lines(text, problems) if path.suffix == ".jsonl" else _csv_lines(path, text)


def _jsonl_lines(text: str, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    for line, said in enumerate(text.split("\n"), 1):
        if not said.strip():
            continue
        try:
            found, problem = json.loads(said), shorten(said, 60)
        except ValueError as error:
            found, problem = None, f"no JSON ({error})"
        if not isinstance(found, dict) or ID not in found:
            problems.append(f"line {line}: {problem}; an object with {ID!r} and {ANSWERS!r} was expected")
            continue
        answer = found.get(ANSWERS)
        yield line, str(found[ID]).strip(), "" if answer is None else str(answer).strip()


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    limit = csv.field_size_limit(1 << 30)  # passages may be longer; it is one for the whole process
    last = 0
    try:
        delimiter, skipped = _dialect(path, text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        for cells in reader:
            line, last = last + 1, reader.line_num
            if line <= skipped or not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                continue
            named = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
            yield line, plain_cell(named[ID].strip()).strip(), named[ANSWERS].strip()
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read after line {last}: {error}. Expected CSV as spreadsheets save it; look for a "
            "quotation mark without its other one."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _dialect(path: Path, text: str) -> tuple[str, int]:
    """What stands between the cells, and how many lines stand before the header."""
    lines = text.splitlines()[:20]
    for skipped, line in enumerate(lines):
        for delimiter in ",;\t|":
            cells = next(csv.reader([line], delimiter=delimiter), [])
            if {ID, ANSWERS} <= {cell.strip().lower() for cell in cells}:
                return delimiter, skipped
        if line.strip() and not line.lower().startswith("sep="):
            break
    found = shorten(next((line for line in lines if line.strip()), "nothing"), 80)
    raise InputError(
        f"{path} begins with {found!r}; a first line with the columns {ID} and {ANSWERS} was expected. Name the file "
        "that arhn-audit --output has made."
    )
