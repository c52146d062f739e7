"""Columns of several kinds, which `datasets` holds as JSON text, in every way in which `adapt` is called."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import SchemaError
from arhn_datasets.inputs import values
from arhn_datasets.inputs.values import array_of, conformed, json_type, united
from arhn_datasets.rows.arrow import decoded, is_json

pytestmark = pytest.mark.skipif(json_type() is None, reason="this version of datasets has no type Json")

P, N = {"docid": "p", "title": "", "text": 'a "b"\n\\u00e9 é'}, {"docid": "n", "title": "", "text": "c"}
PLAIN = {"query": "q", "positive_passages": [P], "negative_passages": [N]}
FLAG = {"query": "q", "pos": ['say "hi"\n\\u00e9 é'], "neg": ["c"]}
NTUPLE = {"anchor": "q", "positive": 'say "hi"\né', "negative": "c"}


def of_json(rows, tmp_path):
    """The rows as load_dataset has them, whose columns of several kinds are Json."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


WAYS = {
    "row": lambda ds: ds.map(arhn.adapt),
    "batch": lambda ds: ds.map(arhn.adapt, batched=True),
    "small batches": lambda ds: ds.map(arhn.adapt, batched=True, batch_size=1),
    "arrow": lambda ds: ds.with_format("arrow").map(arhn.adapt, batched=True).with_format(None),
    "dataset": arhn.adapt_dataset,
    "table": lambda ds: Dataset(arhn.adapt(ds.with_format("arrow")[:])),
    "stream": lambda ds: list(ds.to_iterable_dataset().map(arhn.adapt)),
    "streamed batches": lambda ds: list(ds.to_iterable_dataset().map(arhn.adapt, batched=True)),
}
MIXED = {
    "a number in a message": (
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "p"}],
            "negative_messages": [[{"role": "user", "content": "n"}]],
        },
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "p"}],
            "negative_messages": [[{"role": "user", "content": 7}]],
        },
    ),
    "a number among queries": ({**FLAG}, {**FLAG, "query": 1984}),
    "a number among texts": ({**FLAG}, {**FLAG, "pos": ["x", 212]}),
    "a number among negatives": ({**FLAG}, {**FLAG, "neg": [True, "x"]}),
    "a number for a list": ({**FLAG}, {**FLAG, "neg": 7}),
    "an object among texts": ({**FLAG}, {**FLAG, "neg": ["x", {"text": "y"}]}),
    "a number as text of a passage": (PLAIN, {**PLAIN, "negative_passages": [{**N, "text": 7}]}),
    "a text for a passage": (PLAIN, {**PLAIN, "negative_passages": [N, "y"]}),
    "a number as the positive": (NTUPLE, {**NTUPLE, "anchor": "r", "positive": 7}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", MIXED)
def test_a_value_of_another_kind_is_refused_as_in_a_dict(case, way, tmp_path):
    """The message has the value as it is in the file, in every way of calling."""
    rows = MIXED[case]
    ds = of_json(rows, tmp_path)
    assert any(is_json(type) or "json" in str(type) for type in ds.features.arrow_schema.types)
    with pytest.raises(SchemaError) as alone:
        arhn.adapt(dict(rows[1]))
    with pytest.raises(SchemaError) as told:
        WAYS[way](ds)
    reason = str(alone.value).split(": column ", 1)[1]
    assert reason.split(". ")[0] in str(told.value)


def chat(query, positives, negatives):
    """A row of ms-swift, from what stands in its messages."""
    return {
        "messages": [{"role": "user", "content": query}],
        "positive_messages": [[{"role": "user", "content": one}] for one in positives],
        "negative_messages": [[{"role": "assistant", "content": one}] for one in negatives],
    }


PARTS = [{"type": "text", "text": 'in "parts"\n'}]
GOOD = {
    "messages": [chat('say "hi"\n\\u00e9 é', ["a"], ['b "c"']), chat(PARTS, ["d", PARTS], ["e", [*PARTS, *PARTS]])],
    "ids": [{"query_id": "a", **PLAIN}, {"query_id": 7, **PLAIN}],
    "docids": [PLAIN, {**PLAIN, "negative_passages": [{**N, "docid": 12345678901234567}, {**N, "docid": "x"}]}],
    "subsets": [{**PLAIN, "subset": "nq"}, {**PLAIN, "subset": 7}, {**PLAIN, "subset": None}],
    "no title": [PLAIN, {**PLAIN, "negative_passages": [N, {"docid": "m", "text": 'd "e"'}]}],
    "beside": [{**FLAG, "note": {"a": 1}}, {**FLAG, "note": ["x"]}, {**FLAG, "note": 'y "z"'}],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", GOOD)
def test_values_of_several_kinds_are_read_as_in_a_dict(case, way, tmp_path):
    """Texts have no quotes and escapes of JSON, ids are strings, subsets texts, and what passes stays what it is."""
    rows = GOOD[case]
    found = WAYS[way](of_json(rows, tmp_path))
    alone = [arhn.adapt(dict(row)) for row in rows]
    for one, own in zip(found, alone, strict=True):
        assert [one[name] for name in ("query_id", "query", "positive_passages", "negative_passages")] == [
            own[name] for name in ("query_id", "query", "positive_passages", "negative_passages")
        ]
        if "note" in own and "stream" not in way:
            assert one["note"] == own["note"]
    if case == "subsets" and "stream" not in way:
        assert found["subset"] == ["nq", "7", None]


def test_further_fields_of_json_passages_stay_or_are_refused(tmp_path):
    """A dataset is looked through for the fields of all passages; a batch that cannot know them is refused."""
    rows = [PLAIN, {**PLAIN, "negative_passages": [N, {**N, "docid": "m", "score": 0.5}]}]
    ds = of_json(rows, tmp_path)
    found = arhn.adapt_dataset(ds)
    assert found[1]["negative_passages"][1]["score"] == 0.5
    assert found[0]["negative_passages"] == [{**N, "score": None}]
    with pytest.raises(SchemaError, match=r"further fields \['score'\].*adapt_dataset"):
        ds.map(arhn.adapt, batched=True)


@pytest.mark.parametrize("case", MIXED)
def test_a_bad_row_is_handed_over_as_it_came(case, tmp_path):
    """Its values are those of the file, and not JSON text of them; the row beside it is read."""
    rows, bad = MIXED[case], []
    assert len(arhn.adapt_dataset(of_json(rows, tmp_path), on_bad_row=bad.append)) == 1
    given = rows[bad[0].row]
    assert {name: bad[0].content[name] for name in given} == given


def test_parts_of_several_kinds_are_read(tmp_path):
    """Ids of a corpus, of queries and of qrels are those of the file, in a column of several kinds as well."""
    made = {
        "queries": [{"_id": "a", "text": 'x "y"'}, {"_id": 7, "text": "z"}],
        "corpus": [{"_id": "d", "text": "t"}, {"_id": 8, "text": 'u "v"'}],
        "qrels": [{"query-id": "a", "corpus-id": 8, "score": 1}, {"query-id": 7, "corpus-id": "d", "score": 1}],
        "negatives": [{"query-id": "a", "corpus-id": "d"}, {"query-id": 7, "corpus-id": 8}],
    }
    for name in made:
        (tmp_path / name).mkdir()
    found = arhn.adapt_dataset(**{name: of_json(rows, tmp_path / name) for name, rows in made.items()})
    assert found.to_list() == arhn.adapt_dataset(**made).to_list()
    assert found["query_id"] == ["a", "7"]


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-9, 9), st.floats(allow_nan=False), st.text()
).filter(lambda one: not isinstance(one, str) or one.isascii() or one.encode("utf-8", "replace"))
THINGS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


def same(one, other):
    """Whether two values are the same, but for fields that are null in one and absent in the other, and 1 as 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(same(one.get(name), other.get(name)) for name in {*one, *other})
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) or isinstance(other, dict):
        return not (one or other) or (other is None and not any(map(bool, one.values())))
    if isinstance(other, int) and not -(2**63) <= other < 2**64:
        return str(one) == str(other)  # digits among values of other kinds, for datasets reads no such numbers
    return one == other and isinstance(one, str) == isinstance(other, str) and (one is True) == (other is True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(THINGS, max_size=4), min_size=1, max_size=3))
def test_any_values_are_exact_in_the_type_of_all(parts):
    """Values of JSON of any kinds, in several parts, stay what they are in the one type of the parts."""
    arrays = [array_of(part, "x") for part in parts]
    for wide in (False, True):
        type = pa.null()
        for array in arrays:
            type = united(type, values.plain(array.type), "x", wide=wide)
        try:
            conformed_ = [conformed(array, type) for array in arrays]
            break
        except SchemaError:
            assert not wide
    for part, array, fitted in zip(parts, arrays, conformed_, strict=True):
        assert same(decoded(array), part)
        assert same(decoded(fitted), part)


@pytest.mark.parametrize("values_", [[0.5, True], [[0.5], [False, 1]], [{"a": 0.5}, {"a": True}], [None, 1.5, False]])
def test_true_is_no_number(values_):
    """Arrow alone makes 1.0 of true behind a fraction."""
    assert [str(one) for one in decoded(array_of(values_, "x"))] == [str(one) for one in values_]
