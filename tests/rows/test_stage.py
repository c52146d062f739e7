"""One object, every way of calling it, and the same rows from all of them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from datasets.fingerprint import Hasher

import arhn_datasets as arhn
from arhn_datasets import errors
from arhn_datasets.rows.map_hooks import TypedList
from arhn_datasets.rows.records import EVIDENCE_TYPES, RANKING
from arhn_datasets.rows.stage import is_batch
from arhn_datasets.testing import Emulator
from tests.fakes.served import served
from tests.fakes.together import Together

ROWS = 12


def stages(annotator):
    """The three transforms with one annotator."""
    return (
        arhn.Snippets(annotator=annotator),
        arhn.Ranks(annotator=annotator, permutations=2),
        arhn.Relabel(),
    )


def apply(dataset, transforms, **options):
    """Map one transform after the other."""
    for transform in transforms:
        dataset = dataset.map(transform, **options)
    return dataset


def in_a_running_loop(function):
    """Call a plain function as the cell of a notebook is called: on a thread with a running loop."""

    async def cell():
        return function()

    return asyncio.run(cell())


def as_table(rows, transforms):
    """The transforms on a pyarrow.Table."""
    table = Dataset.from_list(rows).data.table
    for transform in transforms:
        table = transform(table)
    return table.to_pylist()


WAYS = {
    "plain function": lambda rows, ts: [functools.reduce(lambda row, t: t(row), ts, row) for row in rows],
    "rows": lambda rows, ts: list(apply(Dataset.from_list(rows), ts)),
    "batches": lambda rows, ts: list(apply(Dataset.from_list(rows), ts, batched=True, batch_size=5)),
    "num_proc": lambda rows, ts: list(apply(Dataset.from_list(rows), ts, num_proc=2)),
    "num_proc batches": lambda rows, ts: list(apply(Dataset.from_list(rows), ts, num_proc=2, batched=True)),
    "DatasetDict": lambda rows, ts: list(apply(DatasetDict({"a": Dataset.from_list(rows)}), ts)["a"]),
    "IterableDataset": lambda rows, ts: list(apply(iterable(rows), ts)),
    "IterableDataset batches": lambda rows, ts: list(apply(iterable(rows), ts, batched=True, batch_size=5)),
    "streamed Dataset": lambda rows, ts: list(apply(Dataset.from_list(rows).to_iterable_dataset(), ts)),
    "notebook rows": lambda rows, ts: in_a_running_loop(lambda: list(apply(Dataset.from_list(rows), ts))),
    "notebook batches": lambda rows, ts: in_a_running_loop(
        lambda: list(apply(Dataset.from_list(rows), ts, batched=True, batch_size=5))
    ),
    "notebook function": lambda rows, ts: in_a_running_loop(lambda: WAYS["plain function"](rows, ts)),
    "notebook IterableDataset": lambda rows, ts: in_a_running_loop(lambda: list(apply(iterable(rows), ts))),
    "batch of lists": lambda rows, ts: unbatched(
        functools.reduce(lambda batch, t: t(batch), ts, {name: [row[name] for row in rows] for name in rows[0]})
    ),
    "pyarrow.Table": as_table,
    "arrow format": lambda rows, ts: list(
        apply(Dataset.from_list(rows).with_format("arrow"), ts, batched=True).with_format(None)
    ),
    "partial": lambda rows, ts: list(apply(Dataset.from_list(rows), [functools.partial(t) for t in ts])),
}


def iterable(rows):
    """A stream without features."""
    return IterableDataset.from_generator(lambda: iter(rows))


def unbatched(batch):
    """A dict of lists as rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


@pytest.fixture(scope="module")
def expected_rows(request):
    """The rows of the sample after the three stages, by annotator kind; the first way sets what is expected."""
    return {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["lexical", "endpoint"])
def test_every_way_of_calling_gives_the_same_rows(way, kind, sample, expected_rows):
    """Rows, batches, streams, tables, processes and notebooks: the results are equal."""
    rows = sample[:ROWS]
    with served() as server:
        annotator = arhn.Lexical() if kind == "lexical" else arhn.Endpoint(server.url)
        if kind not in expected_rows:
            expected_rows[kind] = WAYS["plain function"](rows, stages(annotator))
        got = WAYS[way](rows, stages(annotator))
    assert any(row["decision"]["relabelled"] for row in got)
    assert [dict(row) for row in got] == expected_rows[kind]


@pytest.mark.parametrize("batched", [False, True])
def test_columns_are_typed_when_the_first_rows_hold_only_nulls(batched, row):
    """A thousand rows without any snippet, then one with: the types are those of the evidence all along."""
    empty = {**row, "query": "zzz qqq", "positive_passages": row["positive_passages"][:1], "negative_passages": []}
    dataset = Dataset.from_list([{**empty, "query_id": str(i)} for i in range(1100)] + [row])
    for transform in stages(arhn.Lexical(of_best=0)):
        dataset = dataset.map(transform, batched=batched)
    passages = dataset.features.arrow_schema.field("negative_passages").type  # older pyarrow sorts the fields of dicts
    for column, type in {**EVIDENCE_TYPES, "filtered_passages": passages}.items():
        assert dataset.features.arrow_schema.field(column).type == type, column
    assert dataset[1100]["decision"]["relabelled"] == 2


def test_other_columns_keep_their_features(row):
    """A ClassLabel or an int32 beside the rows is as it was, in every column order."""
    given = Dataset.from_list([row]).features
    features = Features({**given, "label": ClassLabel(names=["a", "b"]), "n": Value("int32")})
    dataset = Dataset.from_list([{**row, "label": 1, "n": 7}], features=features)
    mapped = apply(dataset, stages(arhn.Lexical()))
    assert mapped.features["label"] == features["label"]
    assert mapped.features["n"] == features["n"]
    arrow = apply(dataset.with_format("arrow"), stages(arhn.Lexical()), batched=True).with_format(None)
    assert arrow.features["label"] == features["label"]
    assert arrow[0] == mapped[0]


def test_an_empty_dataset_gets_its_columns(row):
    """No rows, and still typed columns."""
    table = Dataset.from_list([row]).data.table.slice(0, 0)
    for transform in stages(arhn.Lexical()):
        table = transform(table)
    assert table.num_rows == 0
    assert table.schema.field("decision").type == EVIDENCE_TYPES["decision"]


def test_many_rows_wait_for_the_server_together(sample):
    """Row by row in a script, the endpoint is filled up to its own limit."""
    with Emulator(max_concurrent_requests=32, reply=Together(31, arhn.Lexical())) as server:
        Dataset.from_list(sample[:ROWS]).map(arhn.Snippets(endpoint=server.url))
        assert server.stats.peak_in_flight == 31


def test_a_client_survives_a_second_map(sample):
    """Every map has its own event loop; the pool lives on ours."""
    with served() as server:
        transform = arhn.Snippets(endpoint=server.url, cache="none")
        first = list(Dataset.from_list(sample[:2]).map(transform))
        assert list(Dataset.from_list(sample[:2]).map(transform, batched=True)) == first
    assert server.stats.by_path["/info"] == 1


# -- identity ---------------------------------------------------------------------------------------------------------


PROMPTS = arhn.Prompts(version="mine", tasks=arhn.PROMPTS.tasks)
SAME = [
    {"endpoint": "http://elsewhere:1"},
    {"api_key": "other"},
    {"timeout": 1.0},
    {"concurrency": 3},
    {"cache": "none"},
]
BASE = {"endpoint": "http://localhost:1", "model": "m", "api_key": "k"}


def endpoint(**options):
    """An endpoint annotator with a model that needs no asking."""
    return arhn.Endpoint("http://localhost:1", **{"model": "m", **options})


OTHER = [
    (arhn.Snippets(**{**BASE, "model": "n"}), "model"),
    (arhn.Snippets(**BASE, revision="abc"), "revision"),
    (arhn.Snippets(**BASE, tasks="claim"), "task"),
    (arhn.Snippets(**BASE, tasks={"msmarco": "claim"}), "task of a subset"),
    (arhn.Snippets(annotator=endpoint(prompts=PROMPTS)), "prompt"),
    (arhn.Snippets(annotator=endpoint(max_tokens=99)), "reply length"),
    (arhn.Snippets(annotator=arhn.Lexical()), "annotator"),
    (arhn.Snippets(annotator=arhn.Lexical(threshold=0.5)), "threshold"),
    (arhn.Snippets(annotator=arhn.Lexical(frequencies={"a": 1}, documents=2)), "statistics"),
    (arhn.Ranks(**BASE), "stage"),
    (arhn.Ranks(**BASE, window=9, stride=3), "window"),
    (arhn.Ranks(**BASE, stride=9), "stride"),
    (arhn.Ranks(**BASE, permutations=2), "permutations"),
    (arhn.Ranks(**BASE, seed=1), "seed"),
    (arhn.Ranks(**BASE, rank_by="passage"), "rank_by"),
    (arhn.Ranks(annotator=endpoint(prompts=PROMPTS)), "ranking prompt"),
    (arhn.Relabel(), "relabel"),
    (arhn.Relabel(policy="filter"), "policy"),
    (arhn.Relabel(min_negatives=2), "guard"),
    (arhn.Revert(), "revert"),
    (arhn.adapt, "adapt"),
]


@pytest.mark.parametrize("options", SAME, ids=lambda options: next(iter(options)))
def test_how_to_reach_a_server_is_no_part_of_the_fingerprint(options):
    """URL, key, timeout, concurrency and store change no result, so they change no fingerprint."""
    assert Hasher.hash(arhn.Snippets(**BASE)) == Hasher.hash(arhn.Snippets(**{**BASE, **options}))


def test_whatever_changes_the_result_changes_the_fingerprint():
    """Model, revision, prompt, task and every parameter: all fingerprints differ."""
    hashes = {Hasher.hash(arhn.Snippets(**BASE)): "base"}
    for transform, what in OTHER:
        assert hashes.setdefault(Hasher.hash(transform), what) == what
    assert len(hashes) == len(OTHER) + 1


def test_a_snippet_fingerprint_outlives_an_edited_ranking_prompt():
    """Each stage's identity holds its own prompt only."""
    tasks = {
        name: arhn.PROMPTS.tasks[name].__class__(
            query_label=task.query_label,
            snippet_instructions=task.snippet_instructions,
            ranking_instructions=task.ranking_instructions + "More.",
        )
        for name, task in arhn.PROMPTS.tasks.items()
    }
    edited = arhn.Prompts(version=arhn.PROMPTS.version, tasks=tasks)
    plain, other = endpoint(), endpoint(prompts=edited)
    assert Hasher.hash(arhn.Snippets(annotator=plain)) == Hasher.hash(arhn.Snippets(annotator=other))
    assert Hasher.hash(arhn.Ranks(annotator=plain)) != Hasher.hash(arhn.Ranks(annotator=other))


def test_a_code_version_is_part_of_the_fingerprint(monkeypatch):
    """The hash of an importable class does not see its code; VERSION stands for it."""
    before = Hasher.hash(arhn.relabel)
    monkeypatch.setattr(arhn.Relabel, "VERSION", 2)
    assert Hasher.hash(arhn.relabel) != before


def test_the_model_that_the_server_names_is_the_identity(server):
    """Without model= the server is asked, and its model and revision are hashed, not its URL."""
    asked = arhn.Snippets(endpoint=server.url)
    assert asked.identity()["annotator"]["model"] == "some/model"
    named = arhn.Snippets(endpoint="http://x", model="some/model", revision="0123abcd")
    assert Hasher.hash(asked) == Hasher.hash(named)


FINGERPRINTS = """
import json, sys
import arhn_datasets as arhn
from datasets import Dataset
url, key = sys.argv[1:]
ds = Dataset.from_list([{"query": "q"}])
t = arhn.Snippets(endpoint=url, model="m", api_key=key, timeout=float(len(key)))
from datasets.fingerprint import Hasher
print(json.dumps([Hasher.hash(t), Hasher.hash(arhn.Ranks(annotator=arhn.Lexical())), Hasher.hash(arhn.relabel)]))
"""


def test_fingerprints_are_equal_in_two_processes():
    """Another process, another hash seed, another URL and key: the same fingerprints."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINTS, url, key],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for url, key, seed in (("http://a:1", "one", "1"), ("http://b:2", "three", "2"))
    }
    assert len(outputs) == 1
    assert len(set(json.loads(outputs.pop()))) == 3


def test_a_second_process_reuses_the_cached_map(server, sample, tmp_path):
    """The cache of `map` is found again from another process, with another token, without a single request."""
    Dataset.from_list(sample[:3]).to_parquet(str(tmp_path / "rows.parquet"))
    script = textwrap.dedent(f"""
        import sys, arhn_datasets as arhn
        from datasets import load_dataset
        ds = load_dataset("parquet", data_files={str(tmp_path / "rows.parquet")!r}, split="train",
                          cache_dir={str(tmp_path / "cache")!r})
        ds.map(arhn.Snippets(endpoint={server.url!r}, model="some/model", api_key=sys.argv[1]))
    """)
    environment = {**os.environ, "ARHN_CACHE": "none"}
    counts = []
    for key in ("one", "two"):
        subprocess.run(
            [sys.executable, "-c", script, key], check=True, capture_output=True, env=environment, timeout=120
        )
        counts.append(server.stats.requests)
    assert counts[0] > 0
    assert counts[1] == counts[0]


# -- configuration ----------------------------------------------------------------------------------------------------


def test_without_configuration_the_error_says_the_three_ways(row):
    """The message names the environment, the endpoint and the annotator."""
    with pytest.raises(errors.ConfigurationError) as raised:
        arhn.snippets(row)
    for way in ("export ARHN_ENDPOINT=", "with_options(endpoint=", "with_options(annotator="):
        assert way in str(raised.value)
    with pytest.raises(errors.ConfigurationError, match=r"arhn\.ranks"):
        Dataset.from_list([arhn.Snippets(annotator=arhn.Lexical(of_best=0))(row)]).map(arhn.ranks)


def test_the_environment_configures_the_instances(row, server, monkeypatch):
    """ARHN_ENDPOINT, ARHN_MODEL and ARHN_API_KEY are read when the first row comes."""
    server.api_key = "secret"
    monkeypatch.setenv("ARHN_ENDPOINT", f"{server.url}, {server.url}/v1")
    monkeypatch.setenv("ARHN_API_KEY", "secret")
    dataset = Dataset.from_list([row]).map(arhn.snippets).map(arhn.ranks).map(arhn.relabel)
    assert dataset[0]["decision"]["relabelled"] == 2
    assert arhn.snippets.identity()["annotator"]["model"] == "some/model"
    monkeypatch.setenv("ARHN_MODEL", "another/model")
    with pytest.raises(errors.ConfigurationError, match="serves the model 'some/model', and 'another/model' was asked"):
        arhn.snippets(row)


def test_options_are_validated_and_immutable():
    """Wrong options are refused at once, and with_options makes another object."""
    for wrong in (
        {"endpoint": "localhost:8080"},
        {"endpoint": ()},
        {"endpoint": "http://x", "annotator": arhn.Lexical()},
        {"tasks": "poem"},
        {"tasks": {"fever": "poem"}},
        {"tasks": ["claim"]},
        {"endpoint": "http://x", "timeout": -1},
        {"endpoint": "http://x", "concurrency": 0},
    ):
        with pytest.raises(errors.ConfigurationError):
            arhn.Snippets(**wrong)
    with pytest.raises(TypeError):
        arhn.Snippets("http://x")
    with pytest.raises(AttributeError):
        arhn.relabel.policy = "filter"
    other = arhn.relabel.with_options(policy="filter")
    assert (arhn.relabel.policy, other.policy) == ("relabel+filter", "filter")
    assert arhn.Snippets(endpoint=["http://a", "http://b"]).configured.url == ("http://a", "http://b")
    assert "k" not in repr(arhn.Snippets(**{**BASE, "api_key": "KKK"})).replace("api_key", "").split("KKK")[1:]


def test_a_transform_pickles_with_its_connection():
    """A worker of num_proc gets URL and key, which the fingerprint leaves out."""
    import dill

    copy = dill.loads(dill.dumps(arhn.Snippets(**BASE)))
    assert (copy.endpoint, copy.api_key, copy.model) == ("http://localhost:1", "k", "m")


def test_datasets_sees_a_coroutine_function_only_where_waiting_pays():
    """An endpoint in a script is awaited; in a notebook, or with the lexical baseline, the call is plain."""
    served, lexical = arhn.Snippets(**BASE), arhn.Snippets(annotator=arhn.Lexical())
    assert inspect.iscoroutinefunction(served)
    assert not inspect.iscoroutinefunction(lexical)
    assert not inspect.iscoroutinefunction(arhn.relabel)
    assert not in_a_running_loop(lambda: inspect.iscoroutinefunction(served))
    assert served.__name__ == "snippets"


def test_rows_in_another_form_are_refused_with_the_way_out():
    """The message names the missing and the found columns and arhn.adapt."""
    with pytest.raises(errors.SchemaError, match=r"needs the columns \['positive_passages'.*found are .*'pos'.*adapt"):
        arhn.Snippets(annotator=arhn.Lexical())({"query": "q", "pos": ["p"], "neg": ["n"]})
    with pytest.raises(errors.SchemaError, match=r"holds nothing.*adapt"):
        arhn.Snippets(annotator=arhn.Lexical())({"query": "q", "positive_passages": None, "negative_passages": []})
    with pytest.raises(errors.SchemaError, match=r"stage before first: ds.map\(arhn.snippets\)"):
        arhn.Ranks(annotator=arhn.Lexical())({"query": "q", "positive_passages": [], "negative_passages": []})
    with pytest.raises(errors.SchemaError, match=r"adapt"):
        arhn.Ranks(annotator=arhn.Lexical())({"query": "q"})


def test_relabelled_rows_are_not_annotated_again(row):
    """Their lists are no longer the source's; the message names the way back, which works."""
    first, ranks, relabel = stages(arhn.Lexical())
    done = relabel(ranks(first(row)))
    for stage in (first, ranks):
        with pytest.raises(errors.SchemaError, match=r"got a relabelled row.*ds\.map\(arhn\.revert\)"):
            stage(done)
    assert relabel(ranks(first(arhn.revert(done)))) == done


def test_a_server_that_was_never_there_ends_the_map(row):
    """Rows full of errors would look like a result; the message names the URL and what to check."""
    transform = arhn.Snippets(annotator=arhn.Endpoint("http://127.0.0.1:9", model="m", attempts=1))
    with pytest.raises(errors.AnnotatorError, match=r"no model to ask: no connection to http://127\.0\.0\.1:9"):
        Dataset.from_list([row]).map(transform)


def test_what_is_shown_of_a_transform_holds_no_secret():
    """`datasets` logs the callable when it cannot hash it."""
    shown = repr(arhn.Snippets(endpoint="http://user:hidden@localhost:1", api_key="KKK"))
    assert "localhost" in shown
    assert "hidden" not in shown
    assert "KKK" not in shown
    assert "environment" in repr(arhn.snippets)


def test_an_annotator_that_waits_must_say_so(row):
    """An annotator with awaits = False that awaits is a programming error, told as such."""

    class Waiting(arhn.Lexical):
        async def snippet(self, request):
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaits = False"):
        arhn.Snippets(annotator=Waiting())(row)


def test_helpers():
    """A batch is known by its query column; a typed list keeps its type when empty or null."""
    assert is_batch({"query": ["a"]})
    assert not is_batch({"query": "a"})
    assert is_batch({"query": pa.array(["a"]).to_numpy(zero_copy_only=False)})
    assert pa.array(TypedList([None], pa.list_(pa.int32()))).type == pa.list_(pa.int32())
    assert RANKING in EVIDENCE_TYPES


@pytest.mark.parametrize("options", [{}, {"batched": True}], ids=["rows", "batches"])
@pytest.mark.parametrize("form", ["numpy", "pandas", "torch"])
def test_formatted_rows_are_refused(sample, form, options):
    """Their nulls are other values, and `datasets` keeps columns that a stage drops: no stage goes on from them."""
    if form == "torch":
        pytest.importorskip("torch")
    plain = apply(Dataset.from_list(sample[:4]), stages(arhn.Lexical()), batched=True)
    for stage in (*stages(arhn.Lexical()), arhn.Revert(), arhn.Adapt()):
        with pytest.raises(errors.SchemaError, match=r"formatted rows .*with_format\(None\)"):
            plain.with_format(form).map(stage, **options)
    relabelled = plain.with_format("arrow").map(arhn.Relabel(), batched=True)
    assert relabelled.with_format(None).to_list() == plain.to_list()
    with pytest.raises(errors.SchemaError, match=r"formatted rows \(numpy"):
        next(iter(plain.to_iterable_dataset().with_format("numpy").map(arhn.Relabel())))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda rows: Dataset.from_list(rows), "a Dataset"),
        (lambda rows: DatasetDict(train=Dataset.from_list(rows)), "a DatasetDict"),
        (lambda rows: rows, "a list"),
        (lambda rows: pa.RecordBatch.from_pylist(rows), "a RecordBatch"),
        (lambda rows: None, "nothing"),
    ],
)
def test_what_holds_no_rows_is_refused(sample, given, found):
    """With what it was, not with its content, and how to call."""
    with pytest.raises(errors.SchemaError, match="batched=True") as refused:
        arhn.relabel(given(sample[:2]))
    assert f"called with {found};" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_stage_that_cannot_be_identified_says_so_itself(sample, caplog):
    """Without a server, the error is that of the stage; `datasets` says nothing of hashes before it."""
    with pytest.raises(errors.ConfigurationError, match="ARHN_ENDPOINT"):
        Dataset.from_list(sample[:2]).map(arhn.snippets)
    assert "hash" not in caplog.text
