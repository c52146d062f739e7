"""scripts/evaluate_retriever.py: its figures against others' and by hand, every form of a set, and wrong inputs."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sentence_transformers")
pytest.importorskip("ir_measures")

import arhn_datasets as arhn  # noqa: E402
from arhn_datasets.formats.format import table_of  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_retriever.py"


@pytest.fixture(scope="module")
def module():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("evaluate_retriever_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beir(sample, tmp_path):
    """The sample in BEIR's form."""
    from datasets import Dataset

    arhn.export(Dataset.from_list(sample), "beir", tmp_path / "exported", split="test")
    return tmp_path / "exported" / "beir"


def last(printed):
    """The JSON object in the last line."""
    return json.loads(printed.splitlines()[-1])


def lines(path):
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judgements(path):
    """Qrels of three columns with a header."""
    qrels = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query_id, docid, grade = line.split("\t")
        qrels.setdefault(query_id, {})[docid] = int(grade)
    return qrels


def test_the_figures(script, beir, encoder, tmp_path):
    """Hits are the best of a plain dense product; each measure is what its definition gives on them."""
    from sentence_transformers import SentenceTransformer

    code, printed, error = script(
        "evaluate_retriever", model=encoder, dataset=beir, output=tmp_path / "runs", json=True
    )
    assert code == 0, error
    model, qrels = SentenceTransformer(encoder), judgements(beir / "qrels" / "test.tsv")
    corpus, queries = lines(beir / "corpus.jsonl"), lines(beir / "queries.jsonl")
    texts = [" ".join(part for part in (row["title"], row["text"]) if part) for row in corpus]
    vectors = model.encode(texts, normalize_embeddings=True)
    expected = {"nDCG@10": [], "RR@10": [], "R@100": []}
    places, hits = {row["_id"]: at for at, row in enumerate(corpus)}, {}
    for query_id, _, docid, *_ in map(str.split, (tmp_path / "runs" / "beir.trec").read_text().splitlines()):
        hits.setdefault(query_id, []).append(places[docid])
    for query in queries:
        scores = vectors @ model.encode(query["text"], normalize_embeddings=True)
        order = hits[query["_id"]]
        best = -np.sort(-scores)[: len(order)]
        assert scores[order] == pytest.approx(best, abs=1e-6)  # another batch may round another way
        grades = [qrels[query["_id"]].get(corpus[at]["_id"], 0) for at in order]
        ideal = sorted(qrels[query["_id"]].values(), reverse=True)
        dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(values[:10])) for values in (grades, ideal))
        first = next((i for i, grade in enumerate(grades[:10]) if grade), None)
        expected["nDCG@10"].append(dcg / best)
        expected["RR@10"].append(0 if first is None else 1 / (first + 1))
        expected["R@100"].append(sum(grade > 0 for grade in grades[:100]) / len(ideal))
    found = last(printed)["datasets"]["beir"]
    assert (found["queries"], found["passages"]) == (len(queries), len(corpus))
    for measure, values in expected.items():
        assert found[measure] == pytest.approx(np.mean(values), abs=1e-6)
    assert re.search(rf"beir +{found['nDCG@10']:.4f} +{found['RR@10']:.4f} +{found['R@100']:.4f}", printed)
    kept = json.loads((tmp_path / "runs" / "beir.json").read_text())
    assert kept["queries"][queries[3]["_id"]]["RR@10"] == pytest.approx(expected["RR@10"][3])
    run = [line.split() for line in (tmp_path / "runs" / "beir.trec").read_text().splitlines()]
    assert len(run) == len(queries) * min(100, len(corpus))
    assert {len(line) for line in run} == {6}
    assert [int(line[3]) for line in run[:100]] == list(range(1, 101))
    assert all(float(one[4]) >= float(other[4]) for one, other in zip(run[:99], run[1:100], strict=True))


def test_the_run_file_gives_the_same_figures(script, beir, encoder, tmp_path):
    """What is kept is a TREC run: read back by ir-measures, with BEIR's qrels, it has the printed figures."""
    import ir_measures

    code, printed, _ = script("evaluate_retriever", model=encoder, dataset=beir, output=tmp_path / "runs", json=True)
    assert code == 0
    found = last(printed)["mean"]
    run = ir_measures.read_trec_run(str(tmp_path / "runs" / "beir.trec"))
    measures = [ir_measures.parse_measure(measure) for measure in found]
    again = ir_measures.calc_aggregate(measures, judgements(beir / "qrels" / "test.tsv"), run)
    assert {str(measure): value for measure, value in again.items()} == pytest.approx(found, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-200, 200, width=32) | st.sampled_from([0.9999999, 0.9999998, 0.99999976]), min_size=12),
        min_size=1,
        max_size=3,
    )
)
def test_a_kept_run_is_the_run(module, tmp_path_factory, scores):
    """Hits that differ in the last digit of their scores keep their order, so that a reader finds the same figures."""
    import ir_measures

    run = {
        f"q{number}": {f"d{place}": score for place, score in enumerate(sorted(values, reverse=True))}
        for number, values in enumerate(scores)
    }
    qrels = {query_id: {"d3": 1, "d7": 2} for query_id in run}
    path = tmp_path_factory.mktemp("run") / "kept.trec"
    module.write_run(path, run, tag="kept")
    again: dict = {}
    for hit in ir_measures.read_trec_run(str(path)):
        again.setdefault(hit.query_id, {})[hit.doc_id] = hit.score
    assert module.measured(qrels, again) == module.measured(qrels, run)


def test_a_worked_example(module):
    """Grades 0, 2, none and 1 in this order, and one relevant passage not found: the measures by hand."""
    qrels = {"q": {"a": 2, "b": 1, "c": 1, "d": 0}}
    found = module.measured(qrels, {"q": {"d": 4.0, "a": 3.0, "x": 2.0, "b": 1.0}})["q"]
    dcg, ideal = 2 / math.log2(3) + 1 / math.log2(5), 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx({"nDCG@10": dcg / ideal, "RR@10": 1 / 2, "R@100": 2 / 3})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.integers(0, 10_000))
def test_search_in_chunks_is_exact(module, count, queries, depth, chunk, seed):
    """Whatever the chunks and the blocks of queries, the best hits are those of the whole product."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vectors, asked = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (count, queries))
    scores, places = torch.zeros(queries, 0, dtype=torch.float64), torch.zeros(queries, 0, dtype=torch.long)
    blocks, module.SCORES = module.SCORES, 2 * chunk
    try:
        for first in range(0, count, chunk):
            part = vectors[first : first + chunk]
            scores, places = module.merged(asked, part, scores, places, first, min(depth, count))
    finally:
        module.SCORES = blocks
    expected, order = torch.sort(asked @ vectors.T, descending=True, stable=True)
    assert places.tolist() == order[:, :depth].tolist()
    assert torch.allclose(scores, expected[:, :depth])


@pytest.mark.parametrize("title", ["", "Tin"])
@pytest.mark.parametrize("text", ["", "It melts."])
def test_titles_are_joined_as_in_training(module, row, title, text):
    """A passage is encoded as the text that the trainers' formats hold."""
    import pyarrow as pa

    row["positive_passages"] = [{"docid": "p", "title": title, "text": text}]
    trained, _ = table_of("pair", pa.Table.from_pylist([row]))
    assert [module.joined(title, text)] == trained.column("positive").to_pylist()


def test_other_names_of_files(script, beir, encoder, tmp_path):
    """SPLIT.queries.jsonl and qrels in TREC's form, rows with query_id and docid, and a part to search in."""
    other = tmp_path / "other"
    other.mkdir()
    corpus, queries = lines(beir / "corpus.jsonl"), lines(beir / "queries.jsonl")
    rows = [{"docid": row["_id"], "title": row["title"], "text": row["text"]} for row in corpus]
    (other / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"query_id": row["_id"], "query": row["text"]} for row in queries]
    (other / "test.queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels = judgements(beir / "qrels" / "test.tsv")
    judged = [(query_id, docid, grade) for query_id, grades in qrels.items() for docid, grade in grades.items()]
    (other / "test.qrels.tsv").write_text("".join(f"{q}\t0\t{d}\t{grade}\n" for q, d, grade in judged))
    _, one, _ = script("evaluate_retriever", model=encoder, dataset=beir, json=True)
    code, two, error = script("evaluate_retriever", model=encoder, dataset=other, json=True)
    assert code == 0, error
    assert last(one)["datasets"]["beir"] == last(two)["datasets"]["other"]
    docids = [row["_id"] for row in corpus][:50]
    for name, text in (("part.json", json.dumps(docids)), ("part.txt", "\n".join(docids))):
        (other / name).write_text(text)
        code, three, error = script("evaluate_retriever", model=encoder, dataset=other, docids=name, json=True)
        assert code == 0
        assert last(three)["datasets"]["other"]["passages"] == 50
        missing = len({docid for _, docid, _ in judged} - set(docids))
        assert f"{missing} judged passages are not searched" in error
    files = {"corpus": beir / "corpus.jsonl", "queries": "test.queries.jsonl", "qrels": beir / "qrels" / "test.tsv"}
    code, four, error = script("evaluate_retriever", model=encoder, dataset=other, json=True, **files)
    assert code == 0, error
    assert last(four)["datasets"]["other"] == last(one)["datasets"]["beir"]


def test_a_query_does_not_find_itself(script, encoder, tmp_path):
    """A passage with the id of the query is no hit, as in BEIR, unless --same-ids is given."""
    folder = tmp_path / "arguments"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": "", "text": text} for name, text in (("a", "Tin melts."), ("b", "Tin is soft."))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "a", "text": "Tin melts."}\n{"_id": "unjudged", "text": "?"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\tb\t1\nwithout text\tb\t1\n")
    for options, value in (({}, 1.0), ({"same_ids": True}, 0.5)):
        code, printed, error = script("evaluate_retriever", model=encoder, dataset=folder, json=True, **options)
        assert code == 0, error
        assert last(printed)["mean"]["RR@10"] == value
        assert last(printed)["datasets"]["arguments"]["queries"] == 1
        assert "1 queries without text or without a relevant passage are left out" in error


def test_prompts(script, beir, encoder, tmp_path):
    """Prompts that a model was saved with are used unasked, and those of the command line come before them."""
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "cheap copper of red silver: ", "document": "gold: "}
    SentenceTransformer(encoder, prompts=prompts).save(str(tmp_path / "prompted"))
    asked = {"query_prompt": prompts["query"], "passage_prompt": prompts["document"]}
    found = {}
    for name, model, options in (
        ("none", encoder, {}),
        ("own", tmp_path / "prompted", {}),
        ("asked", encoder, asked),
        ("other", tmp_path / "prompted", {"query_prompt": "", "passage_prompt": ""}),
    ):
        code, printed, error = script(
            "evaluate_retriever", model=model, dataset=beir, output=tmp_path / name, json=True, **options
        )
        assert code == 0, error
        found[name] = (tmp_path / name / "beir.trec").read_text().replace(" prompted\n", f" {Path(encoder).name}\n")
    assert found["own"] == found["asked"] != found["none"] == found["other"]


def test_what_is_there_is_not_evaluated_again(script, beir, encoder, tmp_path, monkeypatch):
    """--resume takes the values of the same question and no others, without loading any model."""
    import sentence_transformers

    options = {"model": encoder, "dataset": beir, "output": tmp_path / "runs", "resume": True, "json": True}
    code, first, _ = script("evaluate_retriever", **options)
    assert code == 0

    def refuse(*arguments, **options):
        raise ValueError("loaded")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", refuse)
    code, second, error = script("evaluate_retriever", **options)
    assert code == 0, error
    assert first == second
    for changed in ({"query_prompt": "query: "}, {"model": "another"}, {"resume": False}):
        code, _, error = script("evaluate_retriever", **{key: v for key, v in {**options, **changed}.items() if v})
        assert code == 2
        assert "loaded" in error
    (tmp_path / "runs" / "beir.json").write_text('{"half')
    code, _, error = script("evaluate_retriever", **options)
    assert (code, "loaded" in error) == (2, True)


def parquet(rows):
    """Rows as the bytes of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def configs(**files):
    """The README by which `load_dataset` finds each configuration, ``{config: (split, path)}``."""
    named = [
        {"config_name": name, "data_files": [{"split": split, "path": path}]} for name, (split, path) in files.items()
    ]
    return f"---\nconfigs: {json.dumps(named)}\n---\n".encode()


def test_a_repository_on_the_hub(hub, script, sample, beir, encoder, tmp_path):
    """An exported set on the Hub has the figures of the folder; so has what arhn-push would publish, with qrels."""
    from datasets import Dataset

    _, local, _ = script("evaluate_retriever", model=encoder, dataset=beir, json=True)
    arhn.export(Dataset.from_list(sample), "mteb", tmp_path / "mteb", split="test")
    folder = tmp_path / "mteb" / "mteb"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repository("writer/set")
    first = hub.commit("writer/set", files)
    hub.commit("writer/set", dict.fromkeys(files))
    hub.repository("writer/published")
    hub.commit("writer/published", {**files, "README.md": files["README.md"].replace(b'"default"', b'"qrels"')})
    for options in ({"dataset": "writer/set", "revision": first}, {"dataset": "writer/published"}):
        code, printed, error = script("evaluate_retriever", model=encoder, json=True, **options)
        assert code == 0, error
        assert last(printed)["mean"] == pytest.approx(last(local)["mean"])
        assert list(last(printed)["datasets"]) == [options["dataset"].replace("/", "--")]
    code, _, error = script("evaluate_retriever", model=encoder, dataset="writer/published", split="dev")
    assert code == 2
    assert "has the splits test in qrels; expected ('dev',)" in error


def test_the_suite_by_name(hub, script, beir, encoder, tmp_path):
    """BeIR/NAME with its qrels in a repository beside it, mteb/NAME where that fails, msmarco's own split, the mean."""
    corpus, queries = lines(beir / "corpus.jsonl"), lines(beir / "queries.jsonl")
    number = {row["_id"]: at for rows in (corpus, queries) for at, row in enumerate(rows)}  # BEIR has numbers as ids
    texts = [{**row, "_id": str(number[row["_id"]]), "metadata": {"url": ""}} for row in corpus]
    asked = [{**row, "_id": str(number[row["_id"]])} for row in queries]
    qrels = judgements(beir / "qrels" / "test.tsv")
    judged = [
        {"query-id": number[query_id], "corpus-id": number[docid], "score": grade}
        for query_id, grades in qrels.items()
        for docid, grade in grades.items()
    ]
    both = {"c.parquet": parquet(texts), "q.parquet": parquet(asked)}
    card = configs(corpus=("corpus", "c.parquet"), queries=("queries", "q.parquet"))
    for name in ("BeIR/msmarco", "BeIR/msmarco-qrels", "mteb/scifact"):
        hub.repository(name)
    hub.commit("BeIR/msmarco", {**both, "README.md": card})
    table = (
        "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, row.values())) + "\n" for row in judged)
    ).encode()
    hub.commit("BeIR/msmarco-qrels", {"validation.tsv": table})
    card = configs(corpus=("corpus", "c.parquet"), queries=("queries", "q.parquet"), default=("test", "d.parquet"))
    hub.commit("mteb/scifact", {**both, "d.parquet": parquet(judged), "README.md": card})
    _, local, _ = script("evaluate_retriever", model=encoder, dataset=beir, json=True, same_ids=True)
    code, printed, error = script("evaluate_retriever", model=encoder, beir="msmarco,scifact", json=True, same_ids=True)
    assert code == 0, error
    found = last(printed)
    assert list(found["datasets"]) == ["msmarco", "scifact"]
    for name in ("msmarco", "scifact"):
        assert found["datasets"][name]["nDCG@10"] == pytest.approx(last(local)["mean"]["nDCG@10"])
    assert re.search(r"\nmean +\d\.\d{4}", printed)
    code, _, error = script("evaluate_retriever", model=encoder, beir="nq")
    assert code == 2
    assert re.search(r"nq cannot be loaded: BeIR/nq: .* mteb/nq: .*--dataset", error)


def test_forums_are_one_set(module):
    """The twelve forums of CQADupStack are averaged before the suite is."""
    sources = module.beir_sources("cqadupstack,nq")
    assert len(sources) == 13
    found = {source.name: dict.fromkeys(module.MEASURES, 0.1 if source.name == "nq" else 0.5) for source in sources}
    groups = module.grouped(sources, found)
    assert {name: round(values["RR@10"], 6) for name, values in groups.items()} == {"cqadupstack": 0.5, "nq": 0.1}
    assert module.average(groups.values())["RR@10"] == pytest.approx(0.3)
    assert len(module.beir_sources("all")) == 14 + 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": None}, "no set is named; expected --dataset or --beir"),
        ({"model": "./no-model"}, "the model ./no-model cannot be loaded"),
        ({"split": "dev"}, r"has no qrels/dev.tsv or dev.qrels.tsv; found .*corpus.jsonl, .*qrels/test.tsv.*--split"),
        ({"dataset": "no/such-set"}, "no--such-set cannot be loaded: no/such-set: "),
        ({"dataset": "no/such-set", "queries": "q.jsonl"}, "no/such-set is no folder, and --queries names a file"),
        ({"dataset": None, "beir": "scifakt"}, "'scifakt' is no set of BEIR; those on the Hub are msmarco, "),
        ({"dataset": None, "beir": "robust04"}, "robust04 is a set of BEIR whose texts are not free"),
        ({"dataset": None, "beir": "nq", "docids": "d.json"}, "--docids goes with --dataset"),
        ({"docids": "none.json"}, "has no none.json; found .*corpus.jsonl"),
        ({"docids": "broken.json"}, "broken.json: .*a JSON list of docids, or a docid a line"),
        ({"docids": "empty.txt"}, "has 0 passages to search in and .* Do the ids"),
        ({"qrels": "words.tsv"}, r"words.tsv, line 2 is \['q', 'd', 'much'\]; expected query-id"),
        ({"queries": "words.tsv"}, "words.tsv, line 1: .*a JSON object was expected"),
        ({"queries": "lists.jsonl"}, r"lists.jsonl, line 1 is '\[1\]'; a JSON object was expected"),
        ({"queries": "other.jsonl"}, "a row of beir has the columns qid, text; an id was expected under one of _id"),
        ({"output": "words.tsv"}, "words.tsv cannot be written"),
        ({"resume": True}, "--resume takes what an earlier run has left in --output"),
        ({"similarity": "euclidean"}, "invalid choice: 'euclidean'"),
    ],
)
def test_wrong_inputs(options, message, script, beir, encoder):
    """Exit code 2 and a line that says what was found and what goes, without a traceback."""
    for name, text in (
        *(("broken.json", "[1"), ("empty.txt", ""), ("words.tsv", "query-id\tcorpus-id\tscore\nq\td\tmuch\n")),
        *(("lists.jsonl", "[1]\n"), ("other.jsonl", '{"qid": "1", "text": ""}\n')),
    ):
        (beir / name).write_text(text)
    options = {"model": encoder, "dataset": beir, **options}
    if options.get("output"):
        options["output"] = beir / options["output"]
    code, _, error = script("evaluate_retriever", **{name: value for name, value in options.items() if value})
    assert code == 2
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_what_is_not_there(script, beir, encoder, monkeypatch):
    """Without the extra the message names it."""
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    code, _, error = script("evaluate_retriever", model=encoder, dataset=beir)
    assert code == 2
    assert "pip install 'arhn_datasets[train]'" in error


def test_before_sentence_transformers_5(script, beir, encoder, tmp_path, monkeypatch):
    """Without encode_query and encode_document, a model's own prompts are used all the same."""
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "cheap copper of red silver: ", "document": "gold: "}
    SentenceTransformer(encoder, prompts=prompts).save(str(tmp_path / "prompted"))
    runs = []
    for name in ("now", "before"):
        options = {"model": tmp_path / "prompted", "dataset": beir, "output": tmp_path / name}
        assert script("evaluate_retriever", **options)[0] == 0
        runs.append((tmp_path / name / "beir.trec").read_text())
        for method in ("encode_query", "encode_document"):
            monkeypatch.delattr(SentenceTransformer, method, raising=False)
    assert runs[0] == runs[1]
