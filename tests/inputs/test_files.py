"""Files of every kind as datasets: each value as it was written, each type from all rows, each fault told."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import InputError, SchemaError
from arhn_datasets.inputs.files import dataset_of
from arhn_datasets.inputs.folders import split_of
from arhn_datasets.inputs.values import json_type
from arhn_datasets.rows.arrow import decoded

needs_json = pytest.mark.skipif(json_type() is None, reason="this version of datasets has no type Json")


def zst(data):
    """Compressed by the codec of Arrow."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def written(folder, name, data):
    """A file of these bytes, compressed as its name says."""
    path = Path(folder) / name
    path.write_bytes(PACKED[path.suffix if path.suffix in PACKED else ""](data))
    return path


def lines(rows, **options):
    """Rows as JSON lines."""
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def rows_of(*paths):
    """The rows of files, as Python objects."""
    ds = dataset_of(paths, "train")
    table = ds.with_format("arrow")[:]
    columns = [decoded(table[name]) for name in table.column_names]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


# --- what was written is what is read -----------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [
        "2020-01-02",
        "2020-01-02T03:04:05Z",
        "NA",
        "null",
        "007",
        "1e5",
        "True",
        '"',
        "\\u00e9",
        "a\r\nb",
        "['a']",
        "\ufeffx",
    ]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-3, 3) | st.floats(allow_nan=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=2),
    max_leaves=5,
)
OF_A_KIND = [TEXTS, st.none() | TEXTS, NUMBERS, st.integers(2**62, 2**64), st.lists(TEXTS, max_size=3), LEAVES, VALUES]


@st.composite
def tables(draw):
    """Rows of up to four columns, each of one kind or of several, some of which begin late."""
    kinds = draw(st.dictionaries(st.sampled_from(["a", "b c", "ü", "d"]), st.sampled_from(OF_A_KIND), min_size=1))
    rows = draw(st.lists(st.fixed_dictionaries({}, optional=kinds).filter(bool), min_size=1, max_size=8))
    return [*rows, {name: draw(kind) for name, kind in kinds.items()}]


def same(one, other):
    """Whether a value is what was written: a field that is absent is null, and 1 may be 1.0."""
    if isinstance(one, dict) or isinstance(other, dict):
        return all(same((one or {}).get(name), (other or {}).get(name)) for name in {*(one or {}), *(other or {})})
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, int) and not -(2**63) <= other < 2**64:
        return str(one) == str(other)  # among values of other kinds
    return one == other and isinstance(one, str) == isinstance(other, str) and (one is True) == (other is True)


@needs_json
@settings(max_examples=40, deadline=None)
@given(
    tables(),
    st.sampled_from([*PACKED]),
    st.integers(1, 3),
    st.sampled_from(["lines", "list", "pretty", "data"]),
    st.booleans(),
)
def test_json_is_read_as_it_is_written(rows, suffix, parts, layout, ascii_):
    """Any values, in one or several files, a line, a list or an object of several lines each, compressed or not."""
    of = -(-len(rows) // parts)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for at in range(0, len(rows), of):
            part = rows[at : at + of]
            data = {
                "lines": lines(part, ensure_ascii=ascii_),
                "list": json.dumps(part, ensure_ascii=ascii_).encode(),
                "pretty": json.dumps(part, indent=2, ensure_ascii=ascii_).encode(),
                "data": "\n".join(json.dumps(row, indent=1, ensure_ascii=ascii_) for row in part).encode(),
            }[layout]
            name = "jsonl" if layout in ("lines", "data") else "json"
            paths.append(written(folder, f"{at}.{name}{suffix}", b"\xef\xbb\xbf" * (at % 2) + data))
        found = rows_of(*paths)
    assert len(found) == len(rows)
    assert all(map(same, found, rows))


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10) | st.sampled_from(
    [
        "NA",
        "None",
        "null",
        "nan",
        "0007",
        "1.50",
        "True",
        "1e3",
        "a,b;c\td|e",
        'say "hi"',
        "two\nlines",
        "2020-01-02",
        " x ",
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6)
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([*PACKED]),
)
def test_cells_are_texts(cells, delimiter, ending, suffix):
    """Every cell is the text that it was, and only an empty one is absent, whatever parts the cells."""
    header = ["query", "positive", "negative_1", "negative_2"][: len(cells[0])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain"
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
            writer.writerows([header, *cells])
        name = f"x.{'tsv' if delimiter == chr(9) else 'csv'}{suffix}"
        found = rows_of(written(folder, name, path.read_bytes()))
    assert found == [{name: cell or None for name, cell in zip(header, row, strict=True)} for row in cells]


@needs_json
@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 3))
def test_parquet_files_of_other_types_are_united(rows, parts):
    """Each file has the types of its own rows, and all rows are there, each value what it was."""
    from arhn_datasets.inputs.texts import table_of

    of = -(-len(rows) // parts)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for at in range(0, len(rows), of):
            table = table_of(rows[at : at + of], 0)
            paths.append(Path(folder) / f"{at}.parquet")
            pq.write_table(table, paths[-1])
        found = rows_of(*paths)
    assert all(map(same, found, rows))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "query": st.sampled_from(["q 1", '2020-01-02 "x"', "é\n"]),
                "neg": st.lists(TEXTS.filter(str.strip), max_size=2),
            },
            optional={
                "query_id": st.integers(0, 2**70) | TEXTS.filter(bool),
                "note": VALUES,
                "prompt": st.none() | TEXTS,
            },
        ),
        min_size=1,
        max_size=5,
    )
)
@needs_json
def test_rows_of_files_are_adapted_as_dicts(rows):
    """What adapt makes of a file is row by row what it makes of the dicts that were written."""
    rows = [{**row, "pos": [f"positive {at}"]} for at, row in enumerate(rows)]
    # Lists that happen to be as long as the passages are refused, as they may be of these.
    rows = [{**row, "note": {"of": row["note"]}} if isinstance(row.get("note"), list) else row for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = arhn.adapt_dataset(dataset_of([written(folder, "x.jsonl", lines(rows))], "train"))
        table = found.with_format("arrow")[:]
        found = [
            dict(zip(table.column_names, row, strict=True)) for row in zip(*map(decoded, table.columns), strict=True)
        ]
    for one, row in zip(found, rows, strict=True):
        alone = arhn.adapt(row)
        assert {name: one[name] for name in alone if name != "note"} == {
            name: alone[name] for name in alone if name != "note"
        }


def test_late_types_are_those_of_all_rows(tmp_path):
    """A float after integers, a text after nulls, an item after empty lists, a new column, behind many rows."""
    early = [{"a": 1, "b": None, "c": [], "e": {"x": 1}, "f": 1} for _ in range(2500)]
    late = {"a": 0.5, "b": "x", "c": ["y"], "d": "new", "e": {"y": "z"}, "f": 2**63}
    found = rows_of(written(tmp_path, "x.jsonl", lines([*early, late])))
    assert found[0] == {"a": 1.0, "b": None, "c": [], "d": None, "e": {"x": 1, "y": None}, "f": 1}
    assert found[-1] == {**late, "e": {"x": None, "y": "z"}}
    assert found[1] == found[2499]


@needs_json
def test_a_number_that_no_float_holds_is_kept(tmp_path):
    """Integers beyond 2**53 among floats, and negative ones among those beyond 2**63, in tables far from each other."""
    rows = [{"a": 2**53 + 1, "b": -1}] * 1500 + [{"a": 0.5, "b": 2**64 - 1}]
    found = rows_of(written(tmp_path, "x.jsonl", lines(rows)))
    assert (found[0]["a"], found[-1]["a"], found[0]["b"], found[-1]["b"]) == (2**53 + 1, 0.5, -1, 2**64 - 1)
    back = rows_of(written(tmp_path, "y.jsonl", lines(rows[::-1])))
    assert back == found[::-1]


def test_labels_keep_their_names(tmp_path):
    """The features of Parquet files stay; those that contradict each other are refused with the file and the column."""
    for at, names in enumerate((["a", "b"], ["a", "b"], ["b", "a"])):
        features = Features({"query": Value("string"), "kind": ClassLabel(names=names)})
        Dataset.from_dict({"query": ["q"], "kind": [1]}, features=features).to_parquet(str(tmp_path / f"{at}.parquet"))
    files = [tmp_path / f"{at}.parquet" for at in range(3)]
    assert dataset_of(files[:2], "train").features["kind"] == ClassLabel(names=["a", "b"])
    with pytest.raises(SchemaError, match=r"2.parquet.*column 'kind'"):
        dataset_of(files, "train")


def test_what_no_type_holds_is_told(tmp_path):
    """A date and a text in Parquet files: the file, the column and both types."""
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": pa.array([0], pa.timestamp("s"))}), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"b.parquet: row 0.*column 'a' holds string and timestamp\[m?s\]"):
        dataset_of([tmp_path / "a.parquet", tmp_path / "b.parquet"], "train")


def test_without_the_type_of_json_values_of_two_kinds_are_refused(tmp_path, monkeypatch):
    """Older versions of datasets: the file, the row, the column and both types."""
    from arhn_datasets.inputs import values

    monkeypatch.setattr(values, "json_type", lambda: None)
    path = written(tmp_path, "x.jsonl", lines([{"a": "x"}] * 1200 + [{"a": 7}]))
    with pytest.raises(SchemaError, match=r"x.jsonl: row 1200, .*column 'a' holds string and int64.*one kind"):
        dataset_of([path], "train")
    path = written(tmp_path, "y.jsonl", lines([{"a": ["x"]}, {"a": ["x", 7]}]))
    with pytest.raises(SchemaError, match=r"y.jsonl: row 1, .*column 'a' holds string and int64"):
        dataset_of([path], "train")
    assert rows_of(written(tmp_path, "z.jsonl", lines([{"a": {}}, {"b": 1}])))[1] == {"a": None, "b": 1}


def test_the_same_files_are_read_once(tmp_path, monkeypatch):
    """Their rows have one fingerprint, and are found in the cache; a changed file is read anew."""
    from arhn_datasets.inputs import files

    path = written(tmp_path, "x.jsonl", lines([{"a": 1}]))
    first = dataset_of([path], "train")
    with monkeypatch.context() as patched:
        patched.setattr(files, "_write", lambda *_: pytest.fail("it was read again"))
        again = dataset_of([path], "train")
    assert again._fingerprint == first._fingerprint
    written(tmp_path, "x.jsonl", lines([{"a": 1}, {"a": 2}]))
    assert len(dataset_of([path], "train")) == 2


# --- faults -------------------------------------------------------------------------------------------------------

FAULTS = {
    "broken line": ("x.jsonl", b'{"a": 1}\n{"a": }\n', r"x.jsonl, line 2 is no JSON: .*'\{\"a\": \}"),
    "cut line": ("x.jsonl", b'{"a": 1}\n\n{"a": "x', "x.jsonl, line 3 is no JSON"),
    "first line": ("x.jsonl", b'{"a": 1,}\n{"a": 2}\n', "x.jsonl, line 1 is no JSON"),
    "broken list": ("x.json", b'[{"a": 1},\n {"a": 2}\n {"a": 3}]', "x.json, line 3 is no JSON: ',' was expected"),
    "cut list": ("x.json", b'[{"a": 1},\n {"a": 2', "x.json, line 2 is no JSON"),
    "a key twice": ("x.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}', "x.jsonl, line 2: an object has the key 'a' twice"),
    "lists": ("x.jsonl", b"[1, 10, 20]\n[1, 10, 21]\n", r"its lines are lists, objects were expected: \[1, 10, 20\]"),
    "lists of objects": ("x.jsonl", b'[{"a": 1}]\n[{"a": 2}]\n', "its lines are lists"),
    "a list of texts": ("x.json", b'["a", "b"]', "x.json, an item of its list, line 1, is a string: 'a'"),
    "texts": ("x.jsonl", b'"a"\n"b"\n', "x.jsonl, line 1 is a string"),
    "no UTF-8": ("x.jsonl", '{"a": "é"}'.encode("latin1"), r"x.jsonl cannot be read: .*no UTF-8.*iconv"),
    "half a surrogate": (
        "x.jsonl",
        b'{"a": "\\ud800"}',
        "x.jsonl: a text of column 'a' holds half of a surrogate pair",
    ),
    "not compressed": ("x.jsonl.gz", None, "x.jsonl.gz cannot be read: BadGzipFile"),
    "two tables": ("x.json", b'{"train": [{"query": "q"}], "dev": [{"query": "r"}]}', "'train' holds 1 objects; 'dev'"),
    "no keys": ("x.jsonl", b"{}\n{}\n", "x.jsonl: rows 0 to 1 are objects without a key"),
    "maps": (
        "x.json",
        b'{"queries": {"1": "a"}, "corpus": {"2": "b"}}',
        r"keys \['corpus', 'queries'\].*adapt_dataset",
    ),
    "ragged": ("x.csv", b"a,b\n1,2\n3\n", "x.csv, line 3: the row has 1 cells, and the header has 2"),
    "quotes": ("x.csv", b'a,b\n1,"x" y\n', "x.csv, line 2: "),
    "no header": (
        "x.tsv",
        b"how tall\tThe Marl tower is 212 metres tall and stands in Velden.\n1\t2\n",
        "has to be a header",
    ),
    "a name twice": ("x.csv", b"a,a\n1,2\n", "has to be a header.*'a' twice"),
    "no Parquet": ("x.parquet", b"PAR1 and nothing", "x.parquet cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_table_is_told(fault, tmp_path):
    """The file, the line, what was found and what to do."""
    name, data, message = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(data if data is not None else b'{"a": 1}')
    with pytest.raises((InputError, SchemaError), match=message):
        dataset_of([path], "train")


def test_a_cut_compressed_file_is_refused(tmp_path):
    """Half of a file is never taken for all of it."""
    for suffix in [*PACKED][1:]:
        path = written(tmp_path, f"x.jsonl{suffix}", lines([{"a": at * math.pi} for at in range(3000)]))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="cannot be read"):
            dataset_of([path], "train")


ROW = {"query": "q", "pos": ["p"], "neg": ["n"]}
READ = {
    "one document": ("x.json", b'{"_id": "1", "query": "q", "metadata": {}}', 1),
    "a table in an object": ("x.json", json.dumps({"version": "1", "data": [ROW, ROW]}).encode(), 2),
    "one row": ("x.json", json.dumps(ROW, indent=2).encode(), 1),
    "one long line": ("x.json", json.dumps([{**ROW, "neg": ["n" * 300_000]}] * 9).encode(), 9),
    "utf-16": ("x.tsv", "query\tpositive\tnegative\nq\tp\tn\n".encode("utf-16"), 1),
    "quotes in tabs": ("x.tsv", b'query\tpositive\tnegative\nq\t"p" x\tsay "n"\nr\ts\tt\n', 2),
    "one header": ("x.csv", b"query;positive;negative\n\nq;p, a;n, b\n", 1),
    "an Arrow file": ("x.arrow", None, 1),
}


@pytest.mark.parametrize("kind", READ)
def test_layouts_that_hold_rows_are_read(kind, tmp_path):
    """One object with a table, one row, a list in one long line, UTF-16, quotes that are signs, streams of Arrow."""
    name, data, count = READ[kind]
    path = tmp_path / name
    if data is None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("query", pa.string())])) as out:
            out.write_table(pa.table({"query": ["q"]}))
    else:
        path.write_bytes(data)
    found = rows_of(path)
    assert [row["query"] for row in found[:1]] == ["q"]
    assert len(found) == count
    if kind == "quotes in tabs":
        assert (found[0]["positive"], found[0]["negative"]) == ('"p" x', 'say "n"')
    if kind == "one header":
        assert found == [{"query": "q", "positive": "p, a", "negative": "n, b"}]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("msmarco_hn_train.jsonl", "train"),
        ("nq.jsonl", "train"),
        ("dev/nq.jsonl", "validation"),
        ("test/train.jsonl", "train"),
        ("hotpot-dev-v1.1.jsonl.gz", "validation"),
        ("evaluation.csv", "test"),
        ("contest.jsonl", "train"),
        ("train_and_dev.jsonl", "train"),
        ("data/odd.name-00000-of-00002.parquet", "odd.name"),
    ],
)
def test_the_split_of_a_file_is_told_by_its_name(name, split):
    """Words in the name of the file, else of the nearest folder, else train."""
    assert split_of(Path(name)) == split


def test_the_index_that_pandas_writes_has_no_name(tmp_path):
    """A column without a name is named by its place, as pandas does."""
    path = tmp_path / "rows.csv"
    path.write_text(",query,positive,negative\n0,why?,yes,no\n", encoding="utf-8")
    assert dataset_of([path], "train").column_names == ["Unnamed: 0", "query", "positive", "negative"]
