"""The human audit: a sample that tells nothing, answers as spreadsheets save them, and figures that can be checked."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.checks import audit_sheet, auditing
from arhn_datasets.checks.agreement import LABELS, summarize
from arhn_datasets.checks.audit_sheet import (
    CLOSING,
    COLUMNS,
    OPENING,
    escaped_cell,
    marked_passage,
    plain_cell,
    read_answers,
    sheet_of,
)
from arhn_datasets.checks.auditing import choose_pairs, draw_audit, read_audit, shares, with_audit
from arhn_datasets.checks.row_checks import check_relabelled
from arhn_datasets.checks.verification import verify_folder
from arhn_datasets.errors import ConfigurationError, InputError, OutputError, SchemaError
from arhn_datasets.folder import report
from arhn_datasets.folder.card import audit_sentence
from arhn_datasets.folder.reading import DATA, open_folder
from arhn_datasets.folder.readme import BEGIN, END
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.runs.refine import Input, Stages, refine
from arhn_datasets.runs.saving import save
from tests.conftest import SAMPLE

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A refined folder of the sample, with rows that a guard dropped."""
    lexical = arhn.Lexical(of_best=0)
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical),
        ranks=arhn.Ranks(annotator=lexical),
        relabel=arhn.Relabel(min_negatives=1, on_shortage="drop"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=5))  # what is drawn follows the id of the run
        return refine(Input(name=str(SAMPLE)), tmp_path_factory.mktemp("whole") / "refined", stages).path


@pytest.fixture(scope="module")
def whole_published(whole, tmp_path_factory):
    """The same as it is published."""
    target = tmp_path_factory.mktemp("published") / "published"
    build_publication(open_folder(whole), target, formats=["triplet"])
    return target


@pytest.fixture(params=["refined", "published"])
def folder(request, tmp_path):
    """A copy to audit, in both layouts."""
    made = request.getfixturevalue("whole" if request.param == "refined" else "whole_published")
    return Path(shutil.copytree(made, tmp_path / request.param))


def read_csv(path):
    """The rows of a sample."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows, columns=COLUMNS, encoding="utf-8-sig", **options):
    """Rows as a spreadsheet would save them."""
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, columns, **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def key_of(folder, rows=10_000, seed=0):
    """The label of each pair by the letters of its id."""
    _, chosen = choose_pairs(open_folder(folder), rows, seed)
    return {audit_sheet.spelled(pair.code): pair.stratum[0] for pair in chosen}


def label_of(row, key):
    """The label of a row of the sample."""
    return key[row["id"].split("-")[1]]


def answered(folder, path, answer, rows=60):
    """A sample with the answers of a function of label and row number."""
    drawn = draw_audit(folder, path, rows=rows)
    key = key_of(folder)
    found = read_csv(drawn.path)
    for at, row in enumerate(found):
        row["answers"] = answer(label_of(row, key), at)
    return write_csv(path, found)


def perfect(label, at):
    """An annotator who agrees with every label."""
    return "no" if label == "kept" else "yes"


def synthetic(tmp_path, rows=300, negatives=7):
    """A refined folder whose labels are random, in texts that all look alike."""
    rng = np.random.default_rng(5)
    made = []
    for number in range(rows):
        query = f"What is the number of item {number}?"
        texts = []
        for place in range(negatives + 1):
            words = [f"Item {number} has number {number * 10 + place}.", "It is blue.", "It was made in a town."]
            rng.shuffle(words)
            texts.append(" ".join(words))
        made.append(
            {
                "query_id": f"q{number}",
                "query": query,
                "positive_passages": [{"docid": f"{number}-p", "title": "", "text": texts[0]}],
                "negative_passages": [
                    {"docid": f"{number}-{place}", "title": "", "text": text} for place, text in enumerate(texts[1:])
                ],
                "subset": f"s{number % 3}",
            }
        )

    def found(passage, holds):
        start = passage["text"].index("Item")
        end = passage["text"].index(".", start)
        if not holds:
            return dict.fromkeys(("snippet", "start", "end", "field", "detail")) | {"status": "no_answer"}
        words = passage["text"][start:end]
        return {"snippet": words, "start": start, "end": end, "field": "text", "status": "grounded", "detail": None}

    for row in made:
        kinds = rng.integers(0, 3, negatives)  # above the positive, below it, nothing
        row["positive_snippets"] = [found(row["positive_passages"][0], True)]
        row["negative_snippets"] = [
            found(passage, kind < 2) for passage, kind in zip(row["negative_passages"], kinds, strict=True)
        ]
        above, below = np.flatnonzero(kinds == 0), np.flatnonzero(kinds == 1)
        ranks = {int(at): 1 + i for i, at in enumerate(above)}
        ranks |= {int(at): 2 + len(above) + i for i, at in enumerate(below)}
        row["positive_ranks"] = [1 + len(above)]
        row["negative_ranks"] = [ranks.get(at) for at in range(negatives)]
        candidates = 1 + len(ranks)
        row["ranking"] = {
            "status": "ranked",
            "candidates": candidates,
            "permutations": 1,
            "agreement": None,
            "detail": None,
        }
    options = {"min_negatives": 0}
    relabelled = Dataset.from_list(made).map(arhn.Relabel(**options))
    return save(relabelled, tmp_path / "synthetic", transforms=[arhn.Relabel(**options)]).path


# Drawing.


def test_the_sample_has_equal_shares_of_labels_and_subsets(whole, tmp_path):
    """As many relabelled, filtered and kept as there are, the subsets of each as equally, and nothing twice."""
    drawn = draw_audit(whole, tmp_path / "audit.csv", rows=30)
    rows, key = read_csv(drawn.path), key_of(whole)
    assert len(rows) == drawn.rows == 30
    assert list(rows[0]) == list(COLUMNS)
    assert len({row["id"] for row in rows}) == 30
    assert Counter(label_of(row, key) for row in rows) == dict.fromkeys(LABELS, 10)
    assert all(number <= size for size, number in drawn.strata.values())
    kept = [number for (label, _), (_, number) in drawn.strata.items() if label == "kept"]
    assert max(kept) - min(kept) <= 1
    assert "⟦brackets⟧" in drawn.instructions.read_text(encoding="utf-8")


def test_the_sample_holds_the_passages_of_the_folder(whole, tmp_path):
    """Query, title and text of a pair are those of a row, and rows that a guard dropped are not drawn."""
    drawn = draw_audit(whole, tmp_path / "audit.csv", rows=10_000)
    counts = Counter()
    pairs = set()
    opened = open_folder(whole)
    for table in opened.tables("train", part=DATA):
        for row in table.to_pylist():
            for label, column in (("relabelled", "positive"), ("filtered", "filtered"), ("kept", "negative")):
                for passage, origin in zip(row[f"{column}_passages"], row[f"{column}_origins"], strict=True):
                    if origin["label"] == "negative":
                        counts[label, row["subset"]] += 1
                        title, text = passage["title"], passage["text"]
                        pairs.add((row["query"], f"{title}\n{text}" if title else text))
    assert opened.count("train", "dropped")
    assert {stratum: number for stratum, (_, number) in drawn.strata.items()} == counts
    assert all(size == number for size, number in drawn.strata.values())
    shown = {
        (plain_cell(row["query"]), re.sub(f"[{OPENING}{CLOSING}]", "", plain_cell(row["passage"])))
        for row in read_csv(drawn.path)
    }
    assert shown == pairs


def test_the_sample_is_a_function_of_run_and_seed(whole, whole_published, tmp_path):
    """The same bytes again and from the published copy; another seed draws others, in another order."""
    one, same, published, other = (tmp_path / f"{name}.csv" for name in ("one", "same", "published", "other"))
    for path, source, seed in ((one, whole, 0), (same, whole, 0), (published, whole_published, 0), (other, whole, 1)):
        draw_audit(source, path, rows=40, seed=seed)
    assert one.read_bytes() == same.read_bytes() == published.read_bytes()
    ids, others = ([row["id"] for row in read_csv(path)] for path in (one, other))
    assert set(ids) != set(others)
    assert [id for id in ids if id in others] != [id for id in others if id in ids]


def test_ids_and_order_carry_no_label(tmp_path):
    """Over 900 pairs, neither place in the file nor any letter of the id nor the mark goes with the label."""
    folder = synthetic(tmp_path)
    drawn = draw_audit(folder, tmp_path / "audit.csv", rows=900)
    rows, key = read_csv(drawn.path), key_of(folder)
    labels = np.array([LABELS.index(label_of(row, key)) for row in rows])
    assert np.bincount(labels).tolist() == [300, 300, 300]
    # Spread over the file: each tenth has about thirty of each label (five standard deviations).
    tenths = np.stack([np.bincount(part, minlength=3) for part in np.array_split(labels, 10)])
    assert np.abs(tenths - 30).max() < 5 * np.sqrt(90 * 2 / 9)
    # Letters of the ids: chi-square of each place against the label has 38 degrees of freedom.
    for place in range(len(rows[0]["id"].split("-")[1])):
        letters = [row["id"].split("-")[1][place] for row in rows]
        expected, statistic = Counter(letters), 0.0
        for letter, count in expected.items():
            for label in range(3):
                seen = sum(a == letter and b == label for a, b in zip(letters, labels, strict=True))
                statistic += (seen - count / 3) ** 2 / (count / 3)
        assert statistic < 90
    # A mark is one whole sentence in every passage, whatever is known of it.
    marks = [re.findall(f"{OPENING}([^{CLOSING}]*){CLOSING}", row["passage"]) for row in rows]
    assert {len(found) for found in marks} == {1}
    for label in range(3):
        marked = [found[0] for found, of in zip(marks, labels, strict=True) if of == label]
        assert all(re.fullmatch(r"Item \d+ has number \d+\.", found) for found in marked)


def test_ids_do_not_follow_the_label(whole, tmp_path):
    """The same source relabelled by another policy keeps the id of every pair."""
    run = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    rows = [row for table in open_folder(whole).tables("train", part=DATA) for row in table.to_pylist()]
    keys = []
    for policy in ("relabel", "filter"):
        relabelled = Dataset.from_list(rows).map(arhn.Relabel(policy=policy, min_negatives=0))
        path = save(relabelled, tmp_path / policy, transforms=[arhn.Relabel(policy=policy, min_negatives=0)]).path
        found = json.loads((path / "run.json").read_text(encoding="utf-8"))
        (path / "run.json").write_text(json.dumps({**found, "id": run["id"]}), encoding="utf-8")
        keys.append(key_of(path))
    assert keys[0].keys() == keys[1].keys()
    assert keys[0] != keys[1]


@given(
    sizes=st.dictionaries(
        st.tuples(st.sampled_from(LABELS), st.sampled_from("abcd")), st.integers(0, 40), min_size=1, max_size=12
    ),
    rows=st.integers(1, 100),
)
def test_shares_are_all_that_was_asked_for_and_equal(sizes, rows):
    """Their sum is what there is to draw, none has more than it holds, and one with less than another is used up."""
    found = shares(sizes, rows)
    assert sum(found.values()) == min(rows, sum(sizes.values()))
    assert all(0 <= number <= sizes[stratum] for stratum, number in found.items())
    for label in LABELS:
        within = {stratum: number for stratum, number in found.items() if stratum[0] == label}
        for stratum, number in within.items():
            assert number == sizes[stratum] or number >= max(within.values()) - 1


def test_every_pair_of_a_stratum_is_drawn_as_often(whole):
    """Over 400 seeds, each of the pairs of a stratum is drawn about as often as any other."""
    opened = open_folder(whole)
    seen, drawn, sizes = Counter(), 0, {}
    for seed in range(400):
        sizes, chosen = choose_pairs(opened, 30, seed)
        kept = [pair for pair in chosen if pair.stratum == ("kept", "qa")]
        seen.update(pair.code for pair in kept)
        drawn += len(kept)
    size = sizes["kept", "qa"]
    assert len(seen) == size
    mean = drawn / size
    assert max(abs(number - mean) for number in seen.values()) < 5 * mean**0.5


def test_a_mark_is_the_sentence_of_the_snippet_or_the_closest():
    """One sentence: that which holds most of the snippet; with none, or one in the title, that closest to the query."""
    passage = {"title": "Tin", "text": "Tin is soft. Tin melts at 232 °C. It is cheap."}
    text = passage["text"]
    words = "soft. Tin melts at 232"
    start = text.index(words)
    held = {"status": "grounded", "field": "text", "start": start, "end": start + len(words)}
    expected = "Tin\nTin is soft. ⟦Tin melts at 232 °C.⟧ It is cheap."
    assert marked_passage("What is cheap?", passage, held, 0) == (expected, False)
    for none in (None, {"status": "no_answer"}, {"status": "grounded", "field": "title", "start": 0, "end": 3}):
        assert marked_passage("At what does tin melt?", passage, none, 0) == (expected, False)
    assert marked_passage("q", {"title": "Only", "text": ""}, None, 0) == ("Only", False)
    assert marked_passage("q", {"title": None, "text": " "}, None, 0)[0] == " "


@given(code=st.integers(0, 2**64 - 1), length=st.integers(0, 60), at=st.integers(0, 20))
def test_a_long_passage_is_cut_around_its_mark(code, length, at):
    """The marked sentence stays, or its beginning where it alone is too long, and what is left out is told."""
    parts = [f"Filler {i} here." for i in range(20)]
    parts.insert(at, "Tin melts at " + "x" * length + ".")
    text = " ".join(parts)
    shown, cut = marked_passage("tin melts", {"title": "T", "text": text}, None, code, limit=40)
    assert cut
    assert f"{OPENING}Tin melts at " in shown
    assert shown.count(CLOSING) == 1
    hidden = sum(int(number) for number in re.findall(r"\[… (\d+) characters are not shown …\]", shown))
    assert hidden + 40 == len(text)
    whole, uncut = marked_passage("tin melts", {"title": "T", "text": text}, None, code)
    assert not uncut
    assert re.sub(f"[{OPENING}{CLOSING}]", "", whole) == f"T\n{text}"


NASTY = st.text(
    st.one_of(
        st.sampled_from("=+-@'\"\t\r\n,; |⟦⟧＝\ufeff\u2028\u202e😀שלוםمرحبا\x00\x0b"), st.characters(codec="utf-8")
    ),
    max_size=40,
)


@given(texts=st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=8))
def test_csv_holds_any_text(texts):
    """Quotes, line breaks, formulas, emoji and right-to-left text read back; none begins as a formula."""
    content = sheet_of([(0, *text) for text in texts], "bbbbbb", ".csv").decode("utf-8-sig")
    read = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    assert read[0] == list(COLUMNS)
    for line, (query, passage) in zip(read[1:], texts, strict=True):
        assert not re.match("[=+@\t\r＝-]", line[1])
        assert not re.match("[=+@\t\r＝-]", line[2])
        for cell, text in ((line[1], query), (line[2], passage)):
            assert plain_cell(cell) == audit_sheet._CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@given(NASTY)
def test_escaping_a_cell_is_undone(text):
    """Whatever a cell begins with, an apostrophe included."""
    assert plain_cell(escaped_cell(text)) == audit_sheet._CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def test_nasty_texts_go_through_a_whole_audit(tmp_path):
    """A dataset of formulas, quotes, line breaks and emoji, from the draw to the answers."""
    texts = ['=HYPERLINK("http://x","y")', "+1", "-1; DROP", "@x", "'quoted'", 'a\r\nb, "c"; d\te', "😀 שלום", "\ud7ff"]
    rows = [
        {
            "query_id": f"q{i}",
            "query": text,
            "positive_passages": [{"docid": "p", "title": "", "text": "x"}],
            "negative_passages": [{"docid": str(i), "title": text, "text": text} for i, text in enumerate(texts)],
        }
        for i, text in enumerate(texts)
    ]
    lexical = arhn.Lexical()
    snippets, ranks, relabel = arhn.Snippets(annotator=lexical), arhn.Ranks(annotator=lexical), arhn.Relabel()
    made = Dataset.from_list(rows).map(snippets).map(ranks).map(relabel)
    folder = save(made, tmp_path / "nasty", transforms=[snippets, ranks, relabel]).path
    for suffix in ("csv", "jsonl"):
        drawn = draw_audit(folder, tmp_path / f"audit.{suffix}", rows=100)
        assert drawn.rows == 64
    objects = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    cells = read_csv(tmp_path / "audit.csv")
    assert [{name: plain_cell(cell) for name, cell in row.items()} for row in cells] == objects
    assert {row["query"] for row in objects} == set(texts)
    key = key_of(folder)
    for row in cells:
        row["answers"] = perfect(label_of(row, key), 0)
    done = read_audit(folder, write_csv(tmp_path / "answered.csv", cells, delimiter=";"))
    assert done.rows == 64


def test_a_passage_too_long_for_a_cell_is_cut_in_csv_alone(tmp_path):
    """A spreadsheet would break it into several rows."""
    text = "Nothing is here. " * 4000 + "Tin melts at 232 °C."
    rows = [
        {
            "query_id": "q",
            "query": "At what temperature does tin melt?",
            "positive_passages": [{"docid": "p", "title": "", "text": "Tin melts at 232 °C."}],
            "negative_passages": [{"docid": "n", "title": "", "text": text}],
        }
    ]
    lexical = arhn.Lexical()
    snippets, ranks = arhn.Snippets(annotator=lexical), arhn.Ranks(annotator=lexical)
    relabel = arhn.Relabel(min_negatives=0)
    made = Dataset.from_list(rows).map(snippets).map(ranks).map(relabel)
    folder = save(made, tmp_path / "long", transforms=[snippets, ranks, relabel]).path
    assert draw_audit(folder, tmp_path / "a.jsonl").cut == 0
    drawn = draw_audit(folder, tmp_path / "b.csv")
    [row] = read_csv(drawn.path)
    assert drawn.cut == 1
    assert len(row["passage"].encode("utf-16-le")) // 2 < 32_767
    assert f"{OPENING}Tin melts at 232 °C.{CLOSING}" in row["passage"]


# Reading.


def in_a_western_code_page(path, rows):
    """What the code page lacks becomes question marks."""
    for row in rows:
        for name in ("query", "passage"):
            row[name] = row[name].encode("cp1252", "replace").decode("cp1252")
    return write_csv(path, rows, delimiter=";", encoding="cp1252")


def with_columns_and_rows_moved(path, rows):
    """A column of notes, one without a name, and the rows from the last to the first."""
    more = [{**row, "note": "a, b\nc", "": ""} for row in reversed(rows)]
    return write_csv(path, more, ["note", "answers", "", "passage", "id", "query"])


def with_more_lines(path, rows):
    """The separator above, a header in capitals, empty rows."""
    write_csv(path, rows, delimiter=";")
    header, rest = path.read_bytes().decode("utf-8-sig").split("\r\n", 1)
    path.write_bytes(f"sep=;\r\n{header.upper()}\r\n;;;\r\n{rest}\r\n;;;\r\n\r\n".encode("utf-8-sig"))
    return path


def spelled(path, rows):
    """Every word for yes and no, and ids in capitals."""
    words = {"yes": ["YES ", "y", "1", "TRUE", "1.0", "'yes"], "no": [" No", "N", "0", "False", "0.0", "no"]}
    for at, row in enumerate(rows):
        row["id"], row["answers"] = row["id"].upper(), words[row["answers"]][at % 6]
    return write_csv(path, rows)


def as_jsonl(path, rows):
    """Texts, truth values and numbers."""
    values = {"yes": ["yes", True, 1, 1.0], "no": ["no", False, 0, 0.0]}
    lines = [{"id": row["id"], "answers": values[row["answers"]][at % 4]} for at, row in enumerate(rows)]
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


RESAVED = {
    "semicolons": lambda path, rows: write_csv(path, rows, delimiter=";", encoding="utf-8"),
    "tabs in utf-16": lambda path, rows: write_csv(path, rows, delimiter="\t", encoding="utf-16"),
    "western code page": in_a_western_code_page,
    "unix": lambda path, rows: write_csv(path, rows, lineterminator="\n", encoding="utf-8"),
    "all quoted": lambda path, rows: write_csv(path, rows, quoting=csv.QUOTE_ALL),
    "columns and rows moved": with_columns_and_rows_moved,
    "text left out": lambda path, rows: write_csv(path, rows, ["id", "answers"], extrasaction="ignore"),
    "more lines": with_more_lines,
    "spelled": spelled,
    "jsonl": as_jsonl,
}


@pytest.mark.parametrize("way", RESAVED)
def test_answers_survive_a_spreadsheet(whole, tmp_path, way):
    """Separators, code pages, orders, extra columns and spellings: the same result."""
    path = answered(whole, tmp_path / "audit.csv", lambda label, at: ("yes", "no")[at % 3 == 0])
    before = read_audit(whole, path, write=False).to_json()
    after = read_audit(whole, RESAVED[way](path, read_csv(path)), write=False).to_json()
    assert {**after, "date": None} == {**before, "date": None}


def test_unsure_and_empty_answers_are_counted_and_not_compared(whole, tmp_path):
    """Unsure stands in the table, an empty answer beside it, and neither in a kappa."""
    path = answered(
        whole, tmp_path / "a.csv", lambda label, at: ("Unsure", "", "?", perfect(label, at))[at % 4], rows=60
    )
    done = read_audit(whole, path, write=False)
    assert (done.rows, sum(one.unsure for one in done.strata), done.unanswered) == (15, 30, 15)
    assert done.kappa.value == 1.0


def unknown(rows):
    """An id of this run that no pair has."""
    first, known = rows[2]["id"][:-1], {row["id"] for row in rows}
    return next(first + letter for letter in audit_sheet._LETTERS if first + letter not in known)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[2].update(answers="maybe"), r"1 rows .*line \d+: the answer is 'maybe'; yes, no, y, n, 1"),
        (lambda rows: rows[2].update(id="12"), r"line \d+: the id is '12'; one as it was drawn was expected"),
        (lambda rows: rows[2].update(id=""), r"line \d+: the id is ''"),
        (lambda rows: rows[2].update(id=unknown(rows)), r"line \d+: the id is of no pair of this run"),
        (lambda rows: rows[2].update(id=rows[2]["id"][:7] + "z" * 15), r"line \d+: the id is of no pair of this run"),
        (lambda rows: rows.append({**rows[0], "answers": "no"}), r"line \d+: the answer is 'no', and in line \d+"),
        (lambda rows: [row.update(answers="") for row in rows], "answers nothing: of 10 rows"),
        (lambda rows: rows.clear(), "answers nothing: of 0 rows"),
        (lambda rows: [row.update(id="bbbbbb" + row["id"][6:]) for row in rows], "10 of 10 answers to another run"),
    ],
)
def test_rows_that_cannot_be_read_are_told(whole, tmp_path, edit, message):
    """The line, what was found and what was expected; nothing is changed."""
    path = answered(whole, tmp_path / "audit.csv", lambda label, at: "yes", rows=10)
    before = (whole / "run.json").read_bytes()
    rows = read_csv(path)
    edit(rows)
    write_csv(path, rows)
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_audit(whole, path)
    assert (whole / "run.json").read_bytes() == before


def test_the_line_of_an_unreadable_row_is_that_of_the_file(tmp_path):
    """Where a passage has several lines, the one on which its row begins; all of them at once, twenty at most."""
    prefix = "bbbbbb"
    lines = ["id,passage,answers", f'{prefix}-{"c" * 15},"a\nb\nc",yes', f'{prefix}-{"d" * 15},"a\nb",perhaps', "x,,no"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)has 2 rows .*line 5: the answer is 'perhaps'.*line 7: the id is 'x'"):
        read_answers(path, prefix)
    path.write_text("\n".join(["id,answers", *(f"x{i},yes" for i in range(30))]), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)30 rows.*line 21: .*and 10 more"):
        read_answers(path, prefix)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "begins with 'nothing'"),
        ("a.csv", b"one,two\n1,2\n", "begins with 'one,two'; a first line with the columns id and answers"),
        ("a.xlsx", b"PK\x03\x04rest", "save it as CSV"),
        ("a.csv", b'id,answers\n"bbbbbb-ccc,yes\n', "after line 1: .*quotation mark"),
        ("a.csv", b"\x00\xff\xfe\x80", "begins with"),
        ("a.jsonl", b"{\n[1]\n" + b'{"answers": "yes"}\n', "(?s)3 rows.*line 1: no JSON.*line 2: .*line 3: "),
        ("a.csv", None, "cannot be read"),
    ],
)
def test_files_that_are_no_answers_are_refused(whole, tmp_path, name, content, message):
    """What was found and what was expected, without a traceback, and exit code 2."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_audit(whole, path)
    assert cli.audit_command([str(whole), "--answers", str(path)]) == 2


@settings(max_examples=60)
@given(content=st.binary(max_size=200))
def test_any_file_ends_in_a_message(content, tmp_path_factory):
    """Bytes of all kinds are answers or an error of ours."""
    path = tmp_path_factory.mktemp("any") / "a.csv"
    for start in (b"", b"id,answers\n", b"\xff\xfe", b"sep=;\n"):
        path.write_bytes(start + content)
        with pytest.raises(InputError):
            read_answers(path, "bbbbbb")


# Agreement.


def hand_made():
    """40 pairs in four strata, with their answers: relabelled 8 of 10, filtered 5 of 10, kept 1 and 3 of 10."""
    populations = {("relabelled", "a"): 50, ("filtered", "a"): 100, ("kept", "a"): 700, ("kept", "b"): 150}
    yes = {("relabelled", "a"): 8, ("filtered", "a"): 5, ("kept", "a"): 1, ("kept", "b"): 3}
    strata, said = {}, {}
    for stratum in populations:
        for at in range(10):
            code = len(strata)
            strata[code] = stratum
            said[code] = "yes" if at < yes[stratum] else "no"
    return said, populations, strata


def test_kappa_is_that_of_scikit_learn():
    """The raw one, the one without filtered pairs, and the weighted one, against lists written out."""
    from sklearn.metrics import cohen_kappa_score

    said, populations, strata = hand_made()
    done = summarize([said], populations, strata)
    labels = [strata[code][0] != "kept" for code in said]
    answers = [verdict == "yes" for verdict in said.values()]
    assert done.kappa.value == pytest.approx(cohen_kappa_score(labels, answers))
    assert done.kappa.value == pytest.approx((29 / 40 - (20 * 17 + 20 * 23) / 1600) / (1 - (20 * 17 + 20 * 23) / 1600))
    some = [code for code in said if strata[code][0] != "filtered"]
    expected = cohen_kappa_score([labels[code] for code in some], [answers[code] for code in some])
    assert done.relabelled_kappa.value == pytest.approx(expected)
    assert done.relabelled_kappa.rows == 30
    # Every pair as often as it stands for pairs of the dataset.
    times = [populations[strata[code]] // 10 for code in said]
    expected = cohen_kappa_score(np.repeat(labels, times), np.repeat(answers, times))
    assert done.weighted_kappa.value == pytest.approx(expected)


def test_the_shares_undo_the_stratification():
    """Precision and rate of false negatives are those of the dataset, not of the sample; Wilson's interval for one."""
    said, populations, strata = hand_made()
    done = summarize([said], populations, strata)
    assert done.answering["relabelled"].value == pytest.approx(0.8)
    assert done.answering["filtered"].value == pytest.approx(0.5)
    assert done.answering["kept"].value == pytest.approx((0.1 * 700 + 0.3 * 150) / 850)
    assert (done.answering["relabelled"].low, done.answering["relabelled"].high) == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )
    for share in (*done.answering.values(), done.kappa, done.weighted_kappa):
        assert 0 <= share.low <= share.value <= share.high <= 1
    assert {(one.label, one.subset): one.population for one in done.strata} == populations


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of 200 samples from strata of known rates, some 95 % of the intervals hold the kappa of the whole."""
    rng = np.random.default_rng(3)
    rates = {("relabelled", "a"): 0.85, ("filtered", "a"): 0.6, ("kept", "a"): 0.1}
    populations = dict.fromkeys(rates, 1000)
    a, b, c = (rates[stratum] for stratum in rates)
    observed = (a + b + (1 - c)) / 3
    chance = (2 / 3) * ((a + b + c) / 3) + (1 / 3) * (1 - (a + b + c) / 3)
    # Labels have equal shares, so the weighted kappa is the raw one.
    truth = (observed - chance) / (1 - chance)
    held = 0
    for _ in range(200):
        strata = {at * 100 + i: stratum for at, stratum in enumerate(rates) for i in range(50)}
        said = {code: "yes" if rng.random() < rates[stratum] else "no" for code, stratum in strata.items()}
        kappa = summarize([said], populations, strata).kappa
        held += kappa.low <= truth <= kappa.high
    assert 0.88 * 200 <= held <= 200


def test_where_all_is_one_kappa_is_not_defined():
    """Only relabelled pairs, all of which answer: the share has an interval, kappa is null, and the card says so."""
    strata = {code: ("relabelled", "a") for code in range(10)}
    done = summarize([dict.fromkeys(range(10), "yes")], {("relabelled", "a"): 10, ("kept", "a"): 90}, strata)
    assert done.kappa.value is None
    assert done.answering["relabelled"].value == 1
    assert 0.6 < done.answering["relabelled"].low < 0.8
    assert done.answering["kept"].value is None
    assert any("not defined" in note for note in done.notes)
    assert any("kept of a" in note and "90 of 100" in note for note in done.notes)
    assert "kappa is not defined" in audit_sentence(json.loads(json.dumps(done.to_json())))


def test_several_annotators_are_pooled_and_compared():
    """The majority counts, a tie is unsure, and each two are compared on what both have judged."""
    from sklearn.metrics import cohen_kappa_score

    said, populations, strata = hand_made()
    other = {code: verdict if code % 4 else "no" for code, verdict in said.items() if code < 30}
    third = dict.fromkeys(range(35, 40), "yes")
    done = summarize([said, other, third], populations, strata)
    assert done.annotators == 3
    both = range(30)
    expected = cohen_kappa_score([said[code] for code in both], [other[code] for code in both])
    assert done.between_annotators[1, 2].value == pytest.approx(expected)
    assert done.between_annotators[1, 2].rows == 30
    assert done.between_annotators[2, 3].value is None
    assert done.between_annotators[2, 3].rows == 0
    ties = sum(said[code] != other[code] for code in both) + sum(said[code] != "yes" for code in third)
    assert sum(one.unsure for one in done.strata) == ties
    assert done.rows == 40 - ties


def test_annotators_who_agree_on_nothing_are_told():
    """A tie on every pair leaves nothing to compare."""
    with pytest.raises(InputError, match="No pair was judged"):
        summarize([{1: "yes"}, {1: "no"}], {("kept", "a"): 1}, {1: ("kept", "a")})


# run.json and the card.


def test_the_audit_stands_in_run_and_card_and_all_else_stays(folder, tmp_path):
    """Both layouts: the line is replaced, hand-written text stays to the byte, the dataset verifies, twice as once."""
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8")
    written = (
        card.replace(BEGIN, f"Hand-written — before.\r\n\n{BEGIN}") + "\n- No human audit of these labels was made.\n"
    )
    readme.write_bytes(written.encode())
    readme.chmod(0o640)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    wrong = iter(["yes"] * 4)
    path = answered(
        folder,
        tmp_path / "audit.csv",
        lambda label, at: next(wrong, "no") if label == "kept" else perfect(label, at),
    )
    done = read_audit(folder, path)
    assert done.notes == ()
    now = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert now.pop("audit") == json.loads(json.dumps(done.to_json()))
    assert now == run
    line = f"- {audit_sentence(done.to_json())}"
    assert f"kappa {done.kappa.value:.3f} (interval {done.kappa.low:.3f} to {done.kappa.high:.3f})" in line
    assert "of the relabelled (interval" in line
    old = "- No human audit of these labels was made."
    assert readme.read_bytes().decode() == written.replace(old, line, 1)
    assert readme.stat().st_mode & 0o777 == 0o640
    assert verify_folder(folder).holds
    again = read_audit(folder, answered(folder, tmp_path / "other.csv", perfect))
    assert readme.read_bytes().decode() == written.replace(old, f"- {audit_sentence(again.to_json())}", 1)
    assert verify_folder(folder).holds
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_the_audit_goes_along_when_a_folder_is_published(whole, tmp_path):
    """What is built for the Hub afterwards says it, too; and answers to the folder are answers to its copy."""
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    path = answered(folder, tmp_path / "audit.csv", perfect)
    done = read_audit(folder, path)
    published = tmp_path / "published"
    build_publication(open_folder(folder), published)
    assert audit_sentence(done.to_json()) in (published / "README.md").read_text(encoding="utf-8")
    again = read_audit(published, path)
    assert {**again.to_json(), "date": None} == {**done.to_json(), "date": None}
    assert verify_folder(published).holds


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_in_between_the_files_are_old_or_new(folder, tmp_path, monkeypatch, renames):
    """Each file is whole at any moment, the dataset verifies, and the same command mends what was left."""
    path = answered(folder, tmp_path / "audit.csv", perfect)
    before = {name: (folder / name).read_bytes() for name in ("run.json", "README.md")}
    rename, done = Path.replace, []

    def broken(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", broken)
        with pytest.raises(KeyboardInterrupt):
            read_audit(folder, path)
    assert (folder / "README.md").read_bytes() == before["README.md"]
    assert ((folder / "run.json").read_bytes() == before["run.json"]) == (renames == 0)
    json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert verify_folder(folder).holds
    assert not list(folder.glob(".*"))
    again = read_audit(folder, path)
    assert audit_sentence(again.to_json()) in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_stays(folder, tmp_path, monkeypatch):
    """A full disk is an error that says so, and changes nothing."""
    path = answered(folder, tmp_path / "audit.csv", perfect)
    before = (folder / "run.json").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            read_audit(folder, path)
        with pytest.raises(OutputError, match="No space left"):
            draw_audit(folder, tmp_path / "more.csv")
    assert (folder / "run.json").read_bytes() == before
    assert not (tmp_path / "more.csv").exists()
    assert not list(folder.glob(".*"))


def test_a_card_without_our_block_is_left_and_told(folder, tmp_path):
    """run.json has the audit, and a note says why the card has not."""
    path = answered(folder, tmp_path / "audit.csv", perfect)
    (folder / "README.md").write_text("Mine alone.\n", encoding="utf-8")
    done = read_audit(folder, path)
    assert "stays as it is" in done.notes[-1]
    assert (folder / "README.md").read_text(encoding="utf-8") == "Mine alone.\n"
    (folder / "README.md").unlink()
    assert "cannot be read and stays" in read_audit(folder, path).notes[-1]
    assert "audit" in json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_the_line_is_found_in_any_block():
    """As it was written, in other words of an earlier version, or not at all; what a publisher wrote is not it."""
    audit = {"kappa": 0.5, "low": None, "high": None, "rows": 10}
    line = f"- {audit_sentence(audit)}"

    def block(limits, after=""):
        return f"{BEGIN}\n# T\n\n- A human audit of ours.\n\n## Limits\n\n{limits}\n{after}## Source\n{END}\n"

    none = "- a\n- No human audit of these labels was made.\n- b"
    assert with_audit(block(none), audit) == block(f"- a\n{line}\n- b")
    older = "- a\n- A human audit of 5 rows said something.\n- b"
    assert with_audit(block(older), audit) == block(f"- a\n{line}\n- b")
    assert with_audit(block("- a\n- b"), audit) == block(f"{line}\n- a\n- b")
    assert with_audit(block(none).replace("\n", "\r\n"), audit) == block(f"- a\n{line}\n- b").replace("\n", "\r\n")
    assert with_audit("nothing", audit) is None
    assert with_audit(f"{BEGIN}\n- a\n{END}", audit) is None


# The command.


def test_the_command_draws_and_reads(folder, tmp_path, capsys):
    """Sizes by stratum, then the table, the kappas and the estimates; --dry-run records nothing."""
    path = tmp_path / "audit.csv"
    assert cli.audit_command([str(folder), "--rows", "30", "--output", str(path), "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"subset +label +passages +drawn\n", printed.out)
    assert "30 rows" in printed.out
    rows, key = read_csv(path), key_of(folder)
    for at, row in enumerate(rows):
        row["answers"] = "?" if at == 0 else perfect(label_of(row, key), at)
    write_csv(path, rows)
    before = (folder / "run.json").read_bytes()
    assert cli.audit_command([str(folder), "--answers", str(path), "--dry-run"]) == 0
    assert (folder / "run.json").read_bytes() == before
    other = write_csv(tmp_path / "other.csv", [{**row, "answers": "yes"} for row in rows])
    capsys.readouterr()
    assert cli.audit_command([str(folder), "--answers", str(path), "--answers", str(other)]) == 0
    printed = capsys.readouterr()
    for line in ("kappa on the sample", "kappa without filtered", "kappa, weighted", "precision of relabelled"):
        assert re.search(rf"{line}.* +(-?\d\.\d{{3}}|not defined)", printed.out), line
    assert "false negatives among kept" in printed.out
    assert re.search(r"kappa of annotators 1 and 2 .* 29\n", printed.out)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["audit"]["annotators"] == 2
    assert cli.verify_command([str(folder)]) == 0


def test_the_command_says_what_a_sample_lacks(whole, tmp_path, capsys, monkeypatch):
    """Fewer rows than asked for, strata without a row, passages that were cut, rows without an answer."""
    monkeypatch.setattr(audit_sheet, "CELL_CHARACTERS", 50)
    path = tmp_path / "all.csv"
    assert cli.audit_command([str(whole), "--rows", "5000", "--output", str(path)]) == 0
    noted = capsys.readouterr().err
    assert "5,000 rows were asked for" in noted
    assert "passages are too long for a cell" in noted
    few = tmp_path / "few.csv"
    assert cli.audit_command([str(whole), "--rows", "3", "--output", str(few)]) == 0
    assert "strata have no row in the sample" in capsys.readouterr().err
    rows = read_csv(few)
    rows[0]["answers"] = "yes"
    write_csv(few, rows)
    assert cli.audit_command([str(whole), "--answers", str(few), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "2 rows have no answer" in printed.out
    assert "strata have no judged pair" in printed.err


def test_many_subsets_are_counted_together(whole, tmp_path, monkeypatch):
    """Those beyond the first, as in the report; the answers find them again."""
    monkeypatch.setattr(report, "MOST_SUBSETS", 2)
    path = answered(whole, tmp_path / "audit.csv", perfect)
    names = {one.subset for one in read_audit(whole, path, write=False).strata}
    assert names == {"qa", "claims", "(other subsets)"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "neither --output nor --answers"),
        (["--output", "{new}.csv", "--answers", "x.csv"], 2, "both --output and --answers"),
        (["--answers", "x.csv", "--rows", "3"], 2, "--rows goes with --output"),
        (["--output", "{new}.csv", "--dry-run"], 2, "--dry-run goes with --answers"),
        (["--output", "{new}.xlsx"], 2, "suffix '.xlsx'; .csv or .jsonl"),
        (["--output", "{folder}/data/audit.csv"], 2, "among the data"),
        (["--output", "{there}.csv"], 1, "is there already"),
        (["--answers", "{there}.csv", "--answers", "{there}.csv"], 2, "more than once"),
        (["--answers", "{new}.csv"], 2, "cannot be read"),
    ],
)
def test_wrong_usage_ends_with_a_message(whole, tmp_path, capsys, arguments, code, message):
    """What was found and what was expected, and no traceback."""
    (tmp_path / "there.csv").write_text("mine", encoding="utf-8")
    names = {"new": tmp_path / "new", "there": tmp_path / "there", "folder": whole}
    assert cli.audit_command([str(whole), *(part.format(**names) for part in arguments)]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (whole / "data" / "audit.csv").exists()
    assert (tmp_path / "there.csv").read_text(encoding="utf-8") == "mine"


def test_folders_that_cannot_be_audited_are_refused(whole, tmp_path, capsys):
    """None, one without negatives, one whose run has no id: exit code 2."""
    assert cli.audit_command([str(tmp_path / "none"), "--output", str(tmp_path / "a.csv")]) == 2
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**run, "id": None}), encoding="utf-8")
    assert cli.audit_command([str(folder), "--output", str(tmp_path / "a.csv")]) == 2
    assert "the id None; the id of a run was expected" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="rows is 0"):
        draw_audit(whole, tmp_path / "a.csv", rows=0)
    with pytest.raises(ConfigurationError, match="names no file"):
        read_audit(whole, [])
    relabel = arhn.Relabel(min_negatives=0)
    lexical = arhn.Lexical()
    row = {"query_id": "q", "query": "q", "positive_passages": [{"docid": "p", "title": "", "text": "t"}]}
    stages = (arhn.Snippets(annotator=lexical), arhn.Ranks(annotator=lexical), relabel)
    rows = Dataset.from_list([{**row, "negative_passages": []}], features=_features())
    for stage in stages:
        rows = rows.map(stage)
    save(rows, tmp_path / "empty", transforms=stages)
    assert cli.audit_command([str(tmp_path / "empty"), "--output", str(tmp_path / "a.csv")]) == 2
    assert "no hard negatives" in capsys.readouterr().err


def _features():
    from datasets import Features, Value

    passage = {"docid": Value("string"), "title": Value("string"), "text": Value("string")}
    return Features(
        {
            "query_id": Value("string"),
            "query": Value("string"),
            "positive_passages": [passage],
            "negative_passages": [passage],
        }
    )


def test_places_that_are_none_are_refused(whole):
    """A damaged folder is told, not drawn from."""
    table = next(open_folder(whole).tables("train"))
    with pytest.raises(SchemaError, match="lack the columns"):
        check_relabelled(table.drop_columns(["filtered_origins"]))
    broken = table.drop_columns(["negative_origins"]).append_column(
        "negative_origins",
        [[[{"label": "negative", "position": -1} for _ in one] for one in table["negative_origins"].to_pylist()]],
    )
    with pytest.raises(SchemaError, match="position -1"):
        auditing._positions(broken, "negative_origins")


def test_without_scikit_learn_the_extra_is_named(whole, tmp_path, monkeypatch, capsys):
    """The message says what to install; a sample can be drawn all the same."""
    path = answered(whole, tmp_path / "audit.csv", perfect)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    assert cli.audit_command([str(whole), "--answers", str(path), "--dry-run"]) == 2
    assert "pip install 'arhn_datasets[evaluation]'" in capsys.readouterr().err
