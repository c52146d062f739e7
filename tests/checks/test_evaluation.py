"""Whether figures are what scikit-learn and plain sets say, from every form of truth; null where nothing is known."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.checks.evaluation import draw_curves, evaluate, format_evaluation
from arhn_datasets.checks.measures import levels_of, resampled
from arhn_datasets.checks.pairs import contains, covered, is_exact, normalised, token_f1
from arhn_datasets.checks.truth import JUDGED_PASSAGES, LABELLED_DATASET, QRELS, read_truth
from arhn_datasets.errors import ConfigurationError, InputError, MissingDependencyError, OutputError, SchemaError
from arhn_datasets.folder.reading import open_folder, read_rows
from arhn_datasets.hub.publication import build_publication
from arhn_datasets.runs.refine import Input, Stages, refine
from arhn_datasets.runs.saving import save
from tests.conftest import SAMPLE, snippet

metrics = pytest.importorskip("sklearn.metrics")

TRUTH = SAMPLE.with_suffix(".truth.jsonl")
WAYS = ("relabelled", "filtered", "either")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The refined sample."""
    lexical = arhn.Lexical()
    stages = Stages(
        snippets=arhn.Snippets(annotator=lexical), ranks=arhn.Ranks(annotator=lexical), relabel=arhn.Relabel()
    )
    return refine(Input(name=str(SAMPLE)), tmp_path_factory.mktemp("sample") / "refined", stages).path


def truth_rows():
    return [json.loads(line) for line in TRUTH.read_text(encoding="utf-8").splitlines()]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def relabelled(negatives, *, query_id="q", positive="grounded", subset=None):
    """A wide row whose negatives are (docid, place) pairs; the place is kept, filtered or relabelled."""
    lists = {"positive": [("p", "positive", 0)], "negative": [], "filtered": []}
    for position, (docid, place) in enumerate(negatives):
        side = {"relabelled": "positive", "filtered": "filtered", "kept": "negative"}[place]
        lists[side].append((docid, "negative", position))
    row = {"query_id": query_id, "query": "Which?", "subset": subset}
    for side, entries in lists.items():
        row[f"{side}_passages"] = [{"docid": docid, "title": "", "text": f"The {docid}."} for docid, _, _ in entries]
        row[f"{side}_origins"] = [{"label": label, "position": at} for _, label, at in entries]
        row[f"{side}_snippets"] = [snippet("no_answer" if side == "negative" else "grounded", "The") for _ in entries]
    return row


def judged(pairs, query_id="q", **more):
    """A truth row whose negatives are {docid: relevant}."""
    return {"query_id": query_id, "negatives": [{"docid": d, "relevant": r} for d, r in pairs.items()], **more}


def dataset(*rows):
    """Wide rows as a dataset with the types that the stages give."""
    import pyarrow as pa

    from arhn_datasets.rows.records import EVIDENCE_TYPES, PASSAGE_TYPE

    types = {column: EVIDENCE_TYPES.get(column, pa.list_(PASSAGE_TYPE)) for column in rows[0] if "_" in column}
    types |= dict.fromkeys(("query_id", "query", "subset"), pa.string())
    return Dataset(pa.Table.from_pylist(list(rows), schema=pa.schema(types.items())))


def test_the_figures_of_the_sample_are_those_of_scikit_learn(folder):
    """Precision, recall, F1, kappa and AUC, computed here from the rows and the truth file in a few lines."""
    known = {(row["query_id"], n["docid"]): n["relevant"] for row in truth_rows() for n in row["negatives"]}
    positives = {(row["query_id"], p["docid"]): p["relevant"] for row in truth_rows() for p in row["positives"]}
    false, moved, status = [], {way: [] for way in WAYS}, []
    for row in read_rows(folder):
        for side in ("positive", "negative", "filtered"):
            for passage, origin, said in zip(
                row[f"{side}_passages"], row[f"{side}_origins"], row[f"{side}_snippets"], strict=True
            ):
                pair = row["query_id"], passage["docid"]
                status.append(((known if origin["label"] == "negative" else positives)[pair], said["status"]))
                if origin["label"] == "negative":
                    false.append(known[pair])
                    moved["relabelled"].append(side == "positive")
                    moved["filtered"].append(side == "filtered")
                    moved["either"].append(side != "negative")
    found = evaluate(folder, TRUTH).to_json()["all"]
    for way in WAYS:
        expected = metrics.precision_recall_fscore_support(false, moved[way], average="binary")[:3]
        assert [found[way][name] for name in ("precision", "recall", "f1")] == pytest.approx(list(expected))
        assert found["kappas"][way] == pytest.approx(metrics.cohen_kappa_score(false, moved[way]))
    assert found["kappa"] == found["kappas"]["either"]
    lost = np.array(moved["either"])[np.array(false) == 0].mean()
    assert found["true_negatives_lost"] == pytest.approx(lost)
    relevant = [value for value, _ in status]
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(relevant, [said == "grounded" for _, said in status]))
    assert found["counts"]["judged"] == len(false)
    assert found["counts"]["positives_judged"] == len(positives)
    for way in WAYS:
        for name, (low, high) in found[way]["ci"].items():
            assert low <= found[way][name] <= high
    for name in ("kappa", "auc", "true_negatives_lost"):
        assert found["ci"][name][0] < found[name] < found["ci"][name][1]


def test_every_layout_gives_the_same_figures(folder, tmp_path):
    """A refined folder, a published one, a Dataset and a DatasetDict."""
    build_publication(open_folder(folder), tmp_path / "published")
    loaded = Dataset.from_parquet([str(path) for path in open_folder(folder).shards("train")])
    expected = evaluate(folder, TRUTH, samples=20).to_json()
    assert set(expected) == {"all", "qa", "claims", "arguments", "titles"}
    for other in (tmp_path / "published", loaded, DatasetDict({"train": loaded})):
        assert evaluate(other, TRUTH, samples=20).to_json() == expected


def test_a_repository_is_evaluated_like_its_folder(hub, folder, capsys):
    """The snapshot is downloaded; a labelled dataset of the Hub is a truth."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub.repository("writer/rows")
    hub.commit("writer/rows", files)
    assert cli.evaluate_command(["writer/rows", str(TRUTH), "--json", "--samples", "5"]) == 0
    assert json.loads(capsys.readouterr().out) == evaluate(folder, TRUTH, samples=5).to_json()
    assert cli.evaluate_command(["writer/none", str(TRUTH)]) == 2
    assert cli.evaluate_command([str(folder), str(TRUTH), "--revision", "main"]) == 2


def forms(tmp_path):
    """One truth in every form: a and c are relevant, b and d are not."""
    grades = {"a": 1, "b": 0, "c": 1, "d": 0}
    passages = {d: {"docid": d, "title": "", "text": f"The {d}."} for d in grades}
    labelled = {
        "query_id": "q",
        "query": "Which?",
        "positive_passages": [passages["a"], passages["c"]],
        "negative_passages": [passages["b"], passages["d"]],
    }
    lines = {
        "headed.tsv": ["query-id\tcorpus-id\tscore", *(f"q\t{d}\t{g}" for d, g in grades.items())],
        "bare.tsv": [f"q\t{d}\t{g}" for d, g in grades.items()],
        "swapped.tsv": ["score\tdocid\tqid", *(f"{g}\t{d}\tq" for d, g in grades.items())],
        "comma.csv": ["query_id,docid,relevance", *(f"q,{d},{g}" for d, g in grades.items())],
        "trec.txt": ["", *(f"q 0 {d} {g}" for d, g in grades.items())],
    }
    lines |= {
        "quoted.csv": ['"query-id","corpus-id","score"', *(f'"q","{d}",{g}' for d, g in grades.items())],
        "quoted.tsv": ['"query-id"\t"corpus-id"\t"score"', *(f'"q"\t"{d}"\t"{g}"' for d, g in grades.items())],
        "spaced.csv": ["query-id, corpus-id, score", *(f'q, "{d}", {g}' for d, g in grades.items())],
    }
    for name, content in lines.items():
        (tmp_path / name).write_text("\n".join(content) + "\n", encoding="utf-8")
        yield name, QRELS, tmp_path / name
    rows = [{"query-id": "q", "corpus-id": d, "score": g} for d, g in grades.items()]
    yield "flat jsonl", QRELS, written(tmp_path / "flat.jsonl", rows)
    yield (
        "lists",
        QRELS,
        written(tmp_path / "lists.jsonl", [{"qid": "q", "docids": [*grades], "scores": [*grades.values()]}]),
    )
    yield "grouped", QRELS, written(tmp_path / "grouped.jsonl", [{"query_id": "q", "qrels": grades}])
    (tmp_path / "whole.json").write_text(json.dumps({"q": grades}, indent=1), encoding="utf-8")
    yield "mapping in a file", QRELS, tmp_path / "whole.json"
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    yield "list in a file", QRELS, tmp_path / "list.json"
    yield "mapping", QRELS, {"q": grades}
    Dataset.from_list(rows).to_parquet(tmp_path / "qrels.parquet")
    yield "qrels in parquet", QRELS, tmp_path / "qrels.parquet"
    yield "qrels as a dataset", QRELS, Dataset.from_list(rows)
    for format in ("numpy", "arrow", "pandas"):
        yield f"qrels in {format}", QRELS, Dataset.from_list(rows).with_format(format)
        yield f"judged in {format}", JUDGED_PASSAGES, Dataset.from_list([judged(grades)]).with_format(format)
        yield (
            f"labelled in {format}",
            LABELLED_DATASET,
            DatasetDict({"a": Dataset.from_list([labelled]).with_format(format)}),
        )
    yield "qrels in a mapped stream", QRELS, Dataset.from_list(rows).to_iterable_dataset().map(lambda row: row)
    yield "labelled in a mapped stream", LABELLED_DATASET, Dataset.from_list([labelled]).to_iterable_dataset().map(dict)
    yield "judged", JUDGED_PASSAGES, written(tmp_path / "judged.jsonl", [judged(grades)])
    yield (
        "judged by grade",
        JUDGED_PASSAGES,
        [{"query_id": "q", "negatives": [{"docid": d, "grade": g} for d, g in grades.items()]}],
    )
    yield "labelled", LABELLED_DATASET, written(tmp_path / "labelled.jsonl", [labelled])
    Dataset.from_list([labelled]).to_parquet(tmp_path / "labelled.parquet")
    yield "labelled in parquet", LABELLED_DATASET, tmp_path / "labelled.parquet"
    Dataset.from_list([labelled]).save_to_disk(tmp_path / "saved")
    yield "labelled on disk", LABELLED_DATASET, tmp_path / "saved"
    yield "labelled in memory", LABELLED_DATASET, [labelled]
    yield "labelled dataset", LABELLED_DATASET, DatasetDict({"train": Dataset.from_list([labelled])})


def test_every_form_of_truth_says_the_same(tmp_path):
    """Judged negatives, qrels as text, JSON, parquet and mapping, and a labelled dataset in every place."""
    rows = dataset(relabelled([("a", "relabelled"), ("b", "filtered"), ("c", "kept"), ("d", "kept")]))
    for name, form, truth in forms(tmp_path):
        found = evaluate(rows, truth, samples=0)
        assert found.form == form, name
        figures = found.to_json()["all"]
        either = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "ci": {"precision": None, "recall": None, "f1": None}}
        assert figures["either"] == either, name
        assert (figures["true_negatives_lost"], figures["relabelled"]["precision"]) == (0.5, 1.0), name


def test_the_command_takes_every_form_of_truth(folder, sample, tmp_path, capsys):
    """Judged negatives, qrels and a second, labelled dataset of the sample: one JSON object, and the same labels."""
    grades = {
        (row["query_id"], one["docid"]): one["relevant"]
        for row in truth_rows()
        for side in ("positives", "negatives")
        for one in row[side]
    }
    qrels = tmp_path / "qrels.tsv"
    lines = [f"{query}\t{docid}\t{grade}\n" for (query, docid), grade in grades.items()]
    qrels.write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]), encoding="utf-8")
    second = []
    for row in sample:
        passages = [*row["positive_passages"], *row["negative_passages"]]
        sides = {
            side: [passage for passage in passages if grades[row["query_id"], passage["docid"]] == grade]
            for grade, side in ((1, "positive_passages"), (0, "negative_passages"))
        }
        second.append({"query_id": row["query_id"], "query": row["query"], **sides})
    found = []
    for truth in (TRUTH, qrels, written(tmp_path / "second.jsonl", second)):
        assert cli.evaluate_command([str(folder), str(truth), "--json", "--samples", "20"]) == 0
        lines = capsys.readouterr().out.splitlines()
        found.append(json.loads(lines[-1])["all"])
        assert len(lines) == 1
    for way in WAYS:
        assert set(found[0][way]) == {"precision", "recall", "f1", "ci"}
        assert set(found[0][way]["ci"]) == {"precision", "recall", "f1"}
    for name in (*WAYS, "true_negatives_lost", "kappa", "auc"):
        assert found[0][name] == found[1][name] == found[2][name] is not None, name
    assert found[0]["snippets"]["pairs"] > 0
    assert found[1]["snippets"] is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no judged pair"),
        ("hello\n", "line 1 is 'hello'"),
        ("q\td\t1\nq\td\n", "line 2"),
        ("q\td\tx\nq\te\tmuch\n", "line 1"),
        ("q 0 d 1\nq 0 e high\n", "line 2"),
        ('{"id": 1, "text": "t"}\n', "has the fields ['id', 'text']"),
        ('{"query_id": "q", "negatives": [{"docid": "d"}]}\n', "not said to be relevant"),
        ('{"query_id": "q", "negatives": [{"relevant": 1}]}\n', "no docid"),
        ('{"query_id": "q", "negatives": [{"docid": "d", "relevant": "yes"}]}\n', "where a number was expected"),
        ('{"query_id": "q", "docids": ["a"], "scores": [1, 2]}\n', "1 docids and 2 scores"),
        ('{"query_id": "q", "negatives": []}\n', "no judged pair"),
        ('{"query_id": "q", "negatives": [{"docid": "d", "relevant": 1}]}\nno\n', "line 2 is no JSON"),
        ("[1, 2]", "row 1 is 1"),
    ],
)
def test_a_truth_in_no_known_form_is_named(content, said, tmp_path):
    """The message tells what was found, where, and which forms there are."""
    path = tmp_path / "truth.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="Expected JSONL") as raised:
        read_truth(path)
    assert said in str(raised.value)


@pytest.mark.parametrize("ids", [("q,1", "d 1"), ("a b", "c d"), ('q "1"', 'd"1'), ('"q', "d"), ("q'1", "d,1")])
def test_ids_with_commas_and_quotes_are_read_as_csv_writes_them(ids, tmp_path):
    """Through csv.writer, with commas or tabs, an id comes back as it was."""
    for delimiter in (",", "\t"):
        path = tmp_path / "qrels.txt"
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, delimiter=delimiter)
            lines.writerows([("query-id", "corpus-id", "score"), (*ids, 1), ("other", "d", 0)])
        truth = read_truth(path)
        assert (list(truth.queries), truth.docids.to_pylist()) == ([ids[0], "other"], [ids[1], "d"])


def test_a_quote_that_nobody_closes_is_a_part_of_an_id(tmp_path):
    """Lines with tabs that no csv.writer wrote are taken as they are; with commas the line is named."""
    path = tmp_path / "qrels.txt"
    path.write_text('"q\td"1\t1\n', encoding="utf-8")
    assert list(read_truth(path).queries) == ['"q']
    path.write_text('q,d,1\n"q,d,1\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_truth(path)
    path.write_text(f'q,d,1\nq,"{"d" * 200_000}",1\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2.*field"):
        read_truth(path)


@pytest.mark.parametrize("truth", [None, 5, 0.5, b"qrels"])
def test_a_truth_that_is_none_is_named(truth):
    """What is no rows at all is told by its type."""
    rows = dataset(relabelled([("a", "kept")]))
    with pytest.raises(InputError, match=f"{type(truth).__name__}.*Expected JSONL"):
        evaluate(rows, truth)


def test_a_stream_without_known_columns_is_refused():
    """A mapped stream does not say which columns it has; one that does is read."""
    rows = dataset(relabelled([("a", "relabelled"), ("b", "kept")]))
    truth = {"q": {"a": 1, "b": 0}}
    stream = rows.to_iterable_dataset()
    assert evaluate(stream, truth, samples=0).to_json() == evaluate(rows, truth, samples=0).to_json()
    for mapped in (stream.map(lambda row: row), IterableDatasetDict({"train": stream.map(lambda row: row)})):
        with pytest.raises(InputError, match=r"no column names.*Dataset\.from_list\(list\(stream\)\)"):
            evaluate(mapped, truth)
    listed = Dataset.from_list(list(stream.map(lambda row: row)))
    assert evaluate(listed, truth, samples=0).to_json() == evaluate(rows, truth, samples=0).to_json()


def test_columns_left_from_before_a_revert_are_refused(sample):
    """Figures over passages that are on both sides say nothing: what was found, and what to do."""
    lexical = arhn.Lexical()
    rows = Dataset.from_list(sample).map(arhn.Snippets(annotator=lexical)).map(arhn.Ranks(annotator=lexical))
    left = rows.map(arhn.relabel, batched=True).map(lambda batch: arhn.revert(batch), batched=True)
    with pytest.raises(SchemaError, match=r"_origins' has \d+ values for \d+ passages.*map arhn\.revert itself"):
        evaluate(left, TRUTH)


def test_a_truth_that_cannot_be_read_is_named(tmp_path):
    """No file, no text, no rows."""
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("none.jsonl", "binary.jsonl", "broken.parquet"):
        with pytest.raises(InputError, match=name):
            read_truth(tmp_path / name)


def test_a_truth_of_other_rows_is_an_error(folder, tmp_path, capsys):
    """Neither another collection's queries nor other docids give figures."""
    truth = written(tmp_path / "other.jsonl", [judged({"d": 1}, query_id="other")])
    assert cli.evaluate_command([str(folder), str(truth)]) == 2
    said = capsys.readouterr().err
    assert "no query in common" in said
    assert "'other'" in said
    assert "qa-001" in said
    with pytest.raises(InputError, match="no docid in common"):
        evaluate(folder, [judged({"d": 1}, query_id="qa-001")])


def test_rows_that_were_not_relabelled_are_an_error(sample):
    """The message names the stage that is missing."""
    with pytest.raises(SchemaError, match=r"arhn\.relabel"):
        evaluate(Dataset.from_list(sample), TRUTH)
    with pytest.raises(InputError, match="list"):
        evaluate([], TRUTH)
    with pytest.raises(ConfigurationError, match="samples"):
        evaluate(Dataset.from_list(sample), TRUTH, samples=-1)


places = st.sampled_from(["relabelled", "filtered", "kept"])
worlds = st.lists(st.lists(st.tuples(places, st.sampled_from([0, 1, None])), max_size=6), min_size=1, max_size=5)


@given(world=worlds)
@settings(deadline=None, max_examples=60)
def test_figures_are_those_of_plain_sets(world):
    """For any labels and any truth: undecided pairs count nowhere, and what nothing defines is null."""
    rows, truth = [], [judged({"p": 0}, query_id="0")]
    pairs = {}
    for number, row in enumerate(world):
        query_id = str(number)
        rows.append(relabelled([(f"d{i}", place) for i, (place, _) in enumerate(row)], query_id=query_id))
        truth.append(judged({f"d{i}": relevant for i, (_, relevant) in enumerate(row)}, query_id=query_id))
        pairs |= {(query_id, i): pair for i, pair in enumerate(row)}
    found = evaluate(dataset(*rows), truth, samples=5)
    text = json.dumps(found.to_json(), allow_nan=False)
    figures = json.loads(text)["all"]
    false = {key for key, (_, relevant) in pairs.items() if relevant == 1}
    true = {key for key, (_, relevant) in pairs.items() if relevant == 0}
    went = {way: {k for k in false | true if pairs[k][0] == way} for way in WAYS[:2]}
    went["either"] = went["relabelled"] | went["filtered"]
    for way, moved in went.items():
        assert figures[way]["precision"] == (len(moved & false) / len(moved) if moved else None)
        assert figures[way]["recall"] == (len(moved & false) / len(false) if false else None)
        whole = len(moved) + len(false)
        assert figures[way]["f1"] == (pytest.approx(2 * len(moved & false) / whole) if whole else None)
    assert figures["true_negatives_lost"] == (len(went["either"] & true) / len(true) if true else None)
    assert figures["counts"]["undecided"] == len(pairs) - len(false) - len(true)
    assert format_evaluation(found)


def test_what_is_judged_and_not_there_is_counted_and_the_other_way_round():
    """Queries and docids of either side that the other lacks, pairs judged both ways, and pairs that stand twice."""
    rows = dataset(
        relabelled([("a", "relabelled"), ("a", "relabelled"), ("b", "kept"), ("c", "kept")], subset="one"),
        relabelled([("a", "kept")], query_id="r", subset="two"),
    )
    truth = [judged({"a": 1, "z": 0, "c": 1}), judged({"c": 0}), judged({"a": 1}, query_id="elsewhere")]
    found = evaluate(rows, truth, samples=0)
    counts = found.to_json()["all"]["counts"]
    assert (counts["judged"], counts["relabelled"], counts["undecided"], counts["unjudged"]) == (1, 1, 1, 2)
    assert (counts["rows"], counts["rows_without_truth"]) == (2, 1)
    assert (counts["truth_queries_not_in_data"], counts["truth_pairs_not_in_data"]) == (1, 2)
    assert counts["contradictory"] == 1
    assert any("both ways" in note for note in found.notes)
    assert list(found.subsets) == ["one", "two"]
    assert found.subsets["two"].to_json()["either"]["f1"] is None


def test_subsets_come_from_the_rows_or_else_from_the_truth():
    """Rows without a subset take the truth's; where neither has one, there is only the total."""
    rows = dataset(relabelled([("a", "kept")]))
    assert list(evaluate(rows, [judged({"a": 1}, subset="named")]).to_json()) == ["named", "all"]
    assert list(evaluate(rows, [judged({"a": 1})]).to_json()) == ["all"]
    odd = dataset(relabelled([("a", "kept")], subset="all"))
    assert list(evaluate(odd, [judged({"a": 1})]).to_json()) == ["all (subset)", "all"]


def test_qrels_of_relevant_passages_alone_say_so(capsys, tmp_path, folder):
    """Without a true negative, precision says nothing; a grade is relevant from where it is asked."""
    rows = dataset(relabelled([("a", "relabelled"), ("b", "kept")]))
    found = evaluate(rows, {"q": {"a": 1, "b": 2}})
    assert found.total.true_negatives_lost is None
    assert any("precision" in note for note in found.notes)
    assert evaluate(rows, {"q": {"a": 1, "b": 2}}, relevant_from=2).total.either.precision == 0
    only_positives = evaluate(rows, {"q": {"p": 1}})
    assert only_positives.total.counts["judged"] == 0
    assert any("positives" in note for note in only_positives.notes)


def test_graded_kappas_are_those_of_scikit_learn():
    """Kept, filtered and relabelled on the scale of the truth's grades, by squared and by linear distance."""
    places = ["kept", "filtered", "relabelled", "kept", "relabelled", "kept", "filtered", "kept"]
    grades = [0, 1, 3, 2, 3, 0, 2, 1]
    rows = [relabelled([(f"d{i}", place)], query_id=str(i)) for i, place in enumerate(places)]
    found = evaluate(dataset(*rows), {str(i): {f"d{i}": grade} for i, grade in enumerate(grades)}, relevant_from=2)
    ours = [{"kept": 0, "filtered": 3, "relabelled": 6}[place] for place in places]
    for weights in ("linear", "quadratic"):
        expected = metrics.cohen_kappa_score([2 * g for g in grades], ours, weights=weights, labels=list(range(7)))
        assert found.total.kappas[weights] == pytest.approx(expected)
    assert found.total.kappa == found.total.kappas["quadratic"]
    assert found.total.kappa_weights == "quadratic"
    low, high = found.total.ci["kappa"]
    assert low < found.total.kappa < high
    assert levels_of(np.array([0.0, 1.0])) is None
    assert levels_of(np.array([0.0, 1.0, 2.0, np.nan])) is None


def test_scores_and_grades_beside_the_passages_are_evidence_too():
    """Columns of scores, grades and verdicts give an AUC each; an annotator's grades give a kappa."""
    row = relabelled([("a", "relabelled"), ("b", "kept"), ("c", "kept")])
    told = {"status": "judged", "detail": ""}
    more = {
        "positive_scores": [0.9, 0.8],
        "negative_scores": [0.7, None],
        "filtered_scores": [],
        "positive_grades": [{"grade": 3, **told}, {"grade": 2, **told}],
        "negative_grades": [{"grade": 0, **told}, {"grade": 1, **told}],
        "positive_verdicts": [{"verdict": None, **told}, {"verdict": "better", **told}],
        "negative_verdicts": [{"verdict": "no_match", **told}] * 2,
    }
    found = evaluate(Dataset.from_list([{**row, **more}]), {"q": {"p": 3, "a": 2, "b": 0, "c": 1}}, relevant_from=2)
    assert {name: found.total.aucs[name] for name in ("scores", "grades", "verdicts")} == {
        "scores": 1.0,
        "grades": 1.0,
        "verdicts": 1.0,
    }
    assert found.total.kappas["grades"] == 1.0


def test_answers_are_compared_as_squad_does():
    """Articles, case and punctuation count nothing; F1 counts each word as often as both have it."""
    assert normalised("The  Cat, a dog!") == "cat dog"
    assert is_exact("the Cat.", "cat")
    assert not is_exact("cat dog", "cat")
    assert contains("It is the big cat.", "Big Cat")
    assert not contains("Bigger cats", "big")
    assert contains("The", "The")
    assert token_f1("big cat", "the cat") == pytest.approx(2 / 3)
    assert token_f1("cat cat dog", "cat") == pytest.approx(0.5)
    assert token_f1("the", "a") == 1
    assert token_f1("the", "cat") == 0


@given(
    words=st.lists(st.sampled_from(["ab", "cd", "ef", "the"]), max_size=6),
    other=st.lists(st.sampled_from(["ab", "cd"])),
)
def test_token_f1_is_symmetric_and_whole_for_equals(words, other):
    """Between 0 and 1, the same both ways, 1 for the same words in any order."""
    one, two = " ".join(words), " ".join(other)
    assert token_f1(one, two) == token_f1(two, one)
    assert 0 <= token_f1(one, two) <= 1
    assert token_f1(one, " ".join(reversed(words))) == 1


def test_offsets_are_measured_where_the_answer_stands():
    """The occurrence that the snippet covers best; nothing is known where the answer is not in the passage."""
    passage = {"text": "tin and tin", "title": "tin"}
    found = snippet(text="tin", start=8, end=11)
    assert covered(found, passage, "tin") == 1
    assert covered(snippet(text="ti", start=0, end=2), {"text": "tin", "title": ""}, "tin") == pytest.approx(2 / 3)
    assert covered(snippet("no_answer"), passage, "tin") == 0
    assert covered(found, passage, "lead") is None


def test_snippet_quality_is_a_mean_over_known_answers():
    """A passage without a snippet counts as 0; one whose truth has no answer counts nowhere."""
    row = relabelled([("a", "relabelled"), ("b", "kept"), ("c", "relabelled")])
    row["positive_snippets"][1] = snippet(text="The a", start=0, end=5)
    truth = {
        "query_id": "q",
        "positives": [{"docid": "p", "answer": None}],
        "negatives": [
            {"docid": "a", "relevant": 1, "answer": "a."},
            {"docid": "b", "relevant": 1, "answers": ["The b", "b"]},
            {"docid": "c", "relevant": 1},
        ],
    }
    quality = evaluate(dataset(row), [truth]).total.snippets
    assert (quality.pairs, quality.grounded, quality.exact, quality.offsets) == (2, 0.5, 0.5, 0.25)
    assert evaluate(dataset(row), [judged({"a": 1})]).total.snippets is None


def test_bootstrap_draws_whole_queries():
    """Drawing kinds of queries and drawing queries have the same mean and spread; equal seeds, equal samples."""
    generator = np.random.default_rng(1)
    few = generator.integers(0, 3, (2000, 2)).astype(float)  # nine kinds
    many = few + np.linspace(0, 1e-9, len(few))[:, None]  # each its own kind
    drawn = [resampled(sums, 2000, 0) for sums in (few, many)]
    for samples in drawn:
        assert samples.shape == (2000, 2)
        assert samples.mean(axis=0) == pytest.approx(few.sum(axis=0), rel=0.005)
        assert samples.std(axis=0) == pytest.approx(few.std(axis=0) * np.sqrt(len(few)), rel=0.1)
    assert (resampled(few, 50, 3) == resampled(few, 50, 3)).all()
    assert (resampled(few, 50, 3) != resampled(few, 50, 4)).any()


@pytest.mark.parametrize(
    ("kind", "positive", "values", "policies"),
    [
        # a becomes a positive, b leaves, c and d stay: of a and c, which are relevant, one is found.
        ("verdicts", None, ["better", "worse", "no_match", None], {"relabel": 1, "filter": 2, "relabel+filter": 2}),
        ("grades", 3, [3, 2, 1, None], {"relabel": 1, "filter": 2, "relabel+filter": 2}),
    ],
)
def test_the_rules_over_verdicts_and_grades_are_evaluated(tmp_path, kind, positive, values, policies):
    """From a dataset and from its folder, where the policies are those over the same evidence."""
    import pyarrow as pa

    from arhn_datasets.rows.records import ALL_EVIDENCE_TYPES, PASSAGE_TYPE

    def given(value):
        return {kind.removesuffix("s"): value, "status": "error" if value is None else "judged", "detail": None}

    row, types = {"query_id": "q", "query": "Which?"}, {"query_id": pa.string(), "query": pa.string()}
    for side, docids, told in (("positive", "p", [positive]), ("negative", "abcd", values)):
        row[f"{side}_passages"] = [{"docid": docid, "title": "", "text": f"The {docid}."} for docid in docids]
        row[f"{side}_{kind}"] = [given(value) for value in told] if positive or side == "negative" else [None]
        types[f"{side}_passages"] = pa.list_(PASSAGE_TYPE)
        types[f"{side}_{kind}"] = ALL_EVIDENCE_TYPES[f"{side}_{kind}"]
    rule = arhn.Relabel(evidence=kind)
    rows = Dataset(pa.Table.from_pylist([row], pa.schema(types.items()))).map(rule, batched=True)
    truth = [judged({"a": 1, "b": 0, "c": 1, "d": 0})]
    save(rows, tmp_path / "refined", transforms=[rule])
    whole = evaluate(tmp_path / "refined", truth, samples=0, curves=True)
    assert {name: finding.moved for name, finding in whole.policies.items()} == policies
    assert {curve.name for curve in whole.curves} == {kind}
    for found in (whole.total, evaluate(rows, truth, samples=0).total):
        either, relabelled = found.either, found.relabelled
        assert (either.precision, either.recall, either.f1) == (0.5, 0.5, 0.5)
        assert (relabelled.precision, relabelled.recall, relabelled.f1) == (1.0, 0.5, pytest.approx(2 / 3))
        assert (found.filtered.precision, found.true_negatives_lost, found.kappa) == (0.0, 0.5, 0.0)
        assert list(found.aucs) == [kind]


def test_the_policy_of_the_run_is_one_of_the_operating_points(folder):
    """Relabelling the evidence again gives what the folder has, and every curve ends where everything moves."""
    found = evaluate(folder, TRUTH, curves=True, samples=30)
    assert list(found.policies) == ["relabel", "filter", "relabel+filter"]
    assert found.policies["relabel+filter"] == found.total.either
    assert found.policies["relabel"].moved <= found.policies["filter"].moved
    share = found.total.counts["false_negatives"] / found.total.counts["judged"]
    for curve in found.curves:
        assert curve.recall[0] == 1
        assert curve.precision[0] == pytest.approx(share)
    assert "policies" in found.to_json()["all"]
    bare = dataset(relabelled([("a", "kept")])).remove_columns(["negative_snippets"])
    assert not evaluate(bare, [judged({"a": 1})], curves=True).policies


def test_the_command_prints_tables_or_one_object(folder, tmp_path, capsys):
    """The last line of stdout is JSON with --json; --plot draws a picture of the policies."""
    from matplotlib.image import imread

    assert cli.evaluate_command([str(folder), str(TRUTH), "--plot", str(tmp_path / "new" / "pr.png")]) == 0
    shown = capsys.readouterr().out
    assert "relabelled" in shown
    assert "token F1" in shown
    assert "policy on this evidence" in shown
    picture = imread(tmp_path / "new" / "pr.png")
    assert min(picture.shape[:2]) > 500
    assert picture[0, 0, :3].tolist() == [1, 1, 1]
    assert cli.evaluate_command([str(folder), str(TRUTH), "--json", "--seed", "3", "--samples", "10"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["all"]["relabelled"]) == {"precision", "recall", "f1", "ci"}
    assert {"relabelled", "filtered", "either", "true_negatives_lost", "kappa"} <= set(found["qa"])
    assert cli.evaluate_command([str(folder), str(TRUTH), "--plot", str(tmp_path / "pr.svg")]) == 2
    assert cli.evaluate_command([str(tmp_path), str(TRUTH)]) == 2


def test_a_plot_that_cannot_be_written_is_an_error(folder, tmp_path):
    """A file stands where the folder was to be."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="another file"):
        draw_curves(evaluate(folder, TRUTH, samples=0), tmp_path / "file" / "pr.png")


@pytest.mark.parametrize(("module", "plot"), [("sklearn", None), ("sklearn.metrics", None), ("matplotlib", "pr.png")])
def test_a_package_that_is_missing_is_named(module, plot, folder, monkeypatch, capsys):
    """The message has the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.evaluate_command([str(folder), str(TRUTH), *(["--plot", plot] if plot else [])]) == 2
    assert "pip install 'arhn_datasets[evaluation]'" in capsys.readouterr().err
    if module.startswith("sklearn"):
        with pytest.raises(MissingDependencyError):
            arhn.evaluate(folder, TRUTH)
