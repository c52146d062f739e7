"""Relabelling: a pure function of the evidence that loses nothing and can be undone."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.records import BETTER, EVIDENCE_TYPES, NO_MATCH, PASSAGE_TYPE, SNIPPET_STATUSES, WORSE
from arhn_datasets.rules.arhn import POLICIES, REFERENCES, TIES, UNSUPPORTED
from arhn_datasets.rules.rule import GUARDS
from tests.conftest import snippet
from tests.rules.drawn import judgement

LISTS = ("positive", "negative", "filtered")
EVIDENCE = ("positive_snippets", "negative_snippets", "positive_ranks", "negative_ranks", "ranking")

ranks = st.none() | st.integers(1, 4)
statuses = st.sampled_from(SNIPPET_STATUSES)
options = st.builds(
    arhn.Relabel,
    policy=st.sampled_from(POLICIES),
    reference=st.sampled_from(REFERENCES),
    unsupported=st.sampled_from(UNSUPPORTED),
    ties=st.sampled_from(TIES),
    min_negatives=st.integers(0, 3),
    on_shortage=st.sampled_from(GUARDS),
    max_relabelled=st.none() | st.integers(0, 3),
    on_excess=st.sampled_from(GUARDS),
)
judged = st.tuples(statuses, ranks, st.sampled_from("abc"))
cases = st.tuples(st.lists(judged, max_size=3), st.lists(judged, max_size=6))


def row_of(positives, negatives, **columns):
    """A row with evidence; each passage is a tuple of snippet status, rank and, optionally, text."""
    row = {"query_id": "q", "query": "why?", "other": [1, None]}
    for label, passages in (("positive", positives), ("negative", negatives)):
        texts = [text[0] if text else f"{label} {i}" for i, (_, _, *text) in enumerate(passages)]
        row[f"{label}_passages"] = [{"docid": text, "title": "", "text": text} for text in texts]
        row[f"{label}_snippets"] = [
            snippet(status, text, detail=f"{label} {i}")
            for i, ((status, *_), text) in enumerate(zip(passages, texts, strict=True))
        ]
        row[f"{label}_ranks"] = [rank for _, rank, *_ in passages]
    ranking = {"status": "ranked", "candidates": 2, "permutations": 1, "agreement": None, "detail": None}
    return {**row, "ranking": ranking, **columns}


rows = cases.map(lambda case: row_of(*case))


def random_rows(count=40, seed=0):
    """As many rows as one wants for a dataset."""
    rng = random.Random(seed)

    def passages(most):
        return [
            (rng.choice(["grounded", *SNIPPET_STATUSES]), rng.choice([None, 1, 2, 3]))
            for _ in range(rng.randint(0, most))
        ]

    return [row_of(passages(3), passages(6)) for _ in range(count)]


def dataset_of(rows, **passages):
    """A dataset with the types of the stages; ``passages`` are the types of a side's passages."""
    types = {"query_id": pa.string(), "query": pa.string(), "other": pa.list_(pa.int64())}
    for side in ("positive_passages", "negative_passages"):
        types[side] = pa.list_(passages.get(side, PASSAGE_TYPE))
    types |= {column: EVIDENCE_TYPES[column] for column in EVIDENCE}
    schema = pa.schema([(name, type) for name, type in types.items() if name in rows[0]])
    return Dataset(pa.Table.from_pylist(rows, schema=schema))


def origins(row):
    """Of each list, where its passages came from."""
    return {label: [(o["label"], o["position"]) for o in row[f"{label}_origins"]] for label in LISTS}


def without_guards(options):
    """The same policy, in every row."""
    return options.with_options(on_shortage="allow", on_excess="allow")


@settings(deadline=None)
@given(rows, options)
def test_every_passage_stays_exactly_once_with_all_that_belongs_to_it(row, options):
    """Positives, negatives and filtered passages are the input's, each with its own snippet, rank and origin."""
    before = copy.deepcopy(row)
    result = options(row)
    assert row == before
    came_from = [origin for label in LISTS for origin in origins(result)[label]]
    assert Counter(came_from) == Counter(
        (label, i) for label in LISTS[:2] for i in range(len(row[f"{label}_passages"]))
    )
    for label in LISTS:
        for kind in ("passages", "snippets", "ranks"):
            expected = [row[f"{side}_{kind}"][position] for side, position in origins(result)[label]]
            assert result[f"{label}_{kind}"] == expected


@settings(deadline=None)
@given(rows, options, options)
def test_a_policy_after_another_is_the_policy_alone(row, first, second):
    """What was relabelled before does not show in the result of other options."""
    assert second(first(row)) == second(row)
    assert arhn.revert(second(first(row))) == row


@settings(deadline=None)
@given(rows, options)
def test_only_negatives_that_hold_a_snippet_move(row, options):
    """Positives stay where they are and in their order; a negative without a grounded snippet stays one."""
    result = options(row)
    moved = origins(result)
    positives = len(row["positive_passages"])
    assert moved["positive"][:positives] == [("positive", i) for i in range(positives)]
    for label, position in moved["positive"][positives:] + moved["filtered"]:
        assert label == "negative"
        assert row["negative_snippets"][position]["status"] == "grounded"
    for label in LISTS:
        own = [position for side, position in moved[label] if side == "negative"]
        assert own == sorted(own)


@settings(deadline=None)
@given(rows, options)
def test_the_decision_counts_what_moved_and_guards_keep_the_row(row, options):
    """Status, counts and detail say what happened; a guarded or dropped row is as it came."""
    result, free = options(row), without_guards(options)(row)
    decision = result["decision"]
    positives = len(row["positive_passages"])
    assert decision["relabelled"] == len(result["positive_passages"]) - positives
    assert decision["filtered"] == len(result["filtered_passages"])
    assert decision["policy"] == options.policy
    excess = options.max_relabelled is not None and free["decision"]["relabelled"] > options.max_relabelled
    short = len(free["negative_passages"]) < options.min_negatives
    stopped = [c for hit, c in ((excess, options.on_excess), (short, options.on_shortage)) if hit and c != "allow"]
    if stopped:
        assert decision["status"] == {"keep": "guarded", "drop": "dropped"}[stopped[0]]
        assert ("max_relabelled" if excess and options.on_excess != "allow" else "min_negatives") in decision["detail"]
        assert origins(result)["negative"] == [("negative", i) for i in range(len(row["negative_passages"]))]
        assert arhn.is_kept(result) == (stopped[0] == "keep")
    else:
        assert {**result, "decision": None} == {**free, "decision": None}
        moved = decision["relabelled"] + decision["filtered"]
        assert decision["status"] == ("changed" if moved else "unchanged")
        assert decision["detail"] is None
        assert arhn.is_kept(result)


G, NO, FAILED = ("grounded", 2), ("no_answer", None), ("error", None)


@pytest.mark.parametrize(
    ("positives", "options", "expected"),
    [
        ([G], {}, "pff-"),
        ([G], {"ties": "above"}, "pff-"),
        ([("grounded", 3)], {}, "ppf-"),
        ([("grounded", 3)], {"ties": "below"}, "pff-"),
        ([("grounded", 3)], {"policy": "relabel", "ties": "above"}, "pp--"),
        ([("grounded", 3)], {"policy": "filter"}, "fff-"),
        ([("grounded", 1), ("grounded", 3)], {"ties": "below"}, "fff-"),
        ([("grounded", 1), ("grounded", 3)], {"reference": "worst", "ties": "below"}, "pff-"),
        ([("no_answer", 5), ("grounded", 1)], {"reference": "worst", "ties": "below"}, "fff-"),
        ([NO], {}, "fff-"),
        ([NO, NO], {"unsupported": "keep"}, "----"),
        ([NO], {"unsupported": "relabel"}, "ppp-"),
        ([NO], {"policy": "relabel"}, "----"),
        ([NO], {"policy": "relabel", "unsupported": "keep"}, "----"),
        ([NO], {"policy": "relabel", "unsupported": "relabel"}, "ppp-"),
        ([NO], {"policy": "filter"}, "fff-"),
        ([NO], {"policy": "filter", "unsupported": "keep"}, "----"),
        ([NO], {"policy": "filter", "unsupported": "relabel"}, "fff-"),
        ([FAILED], {}, "----"),
        ([NO, FAILED], {"unsupported": "relabel"}, "----"),
        ([FAILED], {"policy": "filter"}, "fff-"),
        ([("grounded", None)], {}, "----"),
        ([("grounded", None)], {"policy": "filter"}, "fff-"),
    ],
)
def test_cases(positives, options, expected):
    """Where negatives of ranks 1, 3, 4 and one without a snippet go, per policy and state of the positives."""
    row = row_of(positives, [("grounded", 1), ("grounded", 3), ("grounded", 4), ("ungrounded", None)])
    moved = origins(arhn.Relabel(min_negatives=0, **options)(row))
    letters = {"positive": "p", "filtered": "f", "negative": "-"}
    assert expected == "".join(
        next(letters[label] for label in LISTS if ("negative", i) in moved[label]) for i in range(4)
    )


@pytest.mark.parametrize(
    ("positives", "state"),
    [
        ([G, NO], "supported"),
        ([("grounded", None), NO], "unranked"),
        ([NO, NO], "unsupported"),
        ([NO, FAILED], "unknown"),
        ([], "unknown"),
        ([("ungrounded", None)], "unknown"),
    ],
)
def test_the_decision_names_the_state_of_the_reference(positives, state):
    """The decision tells what there was to rank against."""
    assert arhn.relabel(row_of(positives, [G]))["decision"]["reference"] == state


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, ("ranking",)), ({"policy": "filter"}, ("positive_ranks", "negative_ranks", "ranking"))],
)
@pytest.mark.parametrize("way", ["row", "map", "table"])
def test_columns_that_a_policy_does_not_need_may_be_missing(options, missing, way):
    """Filter alone works straight after the snippets, can be reverted, and relabelled again."""
    source = [{c: v for c, v in row.items() if c not in missing} for row in random_rows()]
    relabel = arhn.Relabel(min_negatives=0, **options)
    dataset = dataset_of(source)
    relabelled, again, reverted = {
        "row": lambda: tuple([f(row) for row in source] for f in chain(relabel)),
        "map": lambda: tuple(list(f(dataset, "map")) for f in chain(relabel)),
        "table": lambda: tuple(f(dataset.data.table).to_pylist() for f in chain(relabel)),
    }[way]()
    assert reverted == source
    assert again == relabelled
    assert any(row["filtered_passages"] for row in relabelled)
    assert not set(missing) & set(relabelled[0])


def chain(relabel):
    """Relabel, relabel twice, relabel and revert: of rows and tables, and of datasets with ``"map"``."""

    def applied(*transforms):
        def call(value, how=None):
            for transform in transforms:
                value = value.map(transform) if how else transform(value)
            return value

        return call

    return applied(relabel), applied(relabel, relabel), applied(relabel, arhn.revert)


WITH_SCORE = {
    kind: pa.struct([*PASSAGE_TYPE, ("score", type)])
    for kind, type in (("float", pa.float64()), ("int", pa.int64()), ("null", pa.null()))
} | {"none": PASSAGE_TYPE}


@pytest.mark.parametrize("way", ["map", "batches", "table"])
@pytest.mark.parametrize(
    ("positive", "negative"),
    [("none", "float"), ("float", "none"), ("int", "float"), ("float", "int"), ("null", "float"), ("int", "null")],
)
def test_fields_that_one_side_alone_has(positive, negative, way):
    """A passage takes its extra fields along, whatever the fields of the other side are."""
    values = {"float": 0.5, "int": 1, "null": None}
    source = random_rows()
    for row in source:
        for side, kind in (("positive_passages", positive), ("negative_passages", negative)):
            for passage in row[side]:
                passage.update({"score": values[kind]} if kind in values else {})
    dataset = dataset_of(source, positive_passages=WITH_SCORE[positive], negative_passages=WITH_SCORE[negative])

    def run(transform, rows):
        if way == "table":
            return transform(rows)
        return rows.map(transform, batched=way == "batches")

    relabelled = run(arhn.relabel, dataset.data.table if way == "table" else dataset)
    reverted = run(arhn.revert, relabelled)
    to_rows = pa.Table.to_pylist if way == "table" else list
    for row, new, back in zip(source, to_rows(relabelled), to_rows(reverted), strict=True):
        assert sorted(map(repr_of, row["positive_passages"] + row["negative_passages"])) == sorted(
            repr_of(passage) for label in LISTS for passage in new[f"{label}_passages"]
        )
        for side in ("positive_passages", "negative_passages"):
            assert [repr_of(passage) for passage in back[side]] == [repr_of(passage) for passage in row[side]]
    assert any(
        row["positive_origins"][-1]["label"] == "negative" for row in to_rows(relabelled) if row["positive_origins"]
    )


def repr_of(passage):
    """A passage without its nulls; numbers compare by value."""
    return str(sorted((name, float(v) if name == "score" else v) for name, v in passage.items() if v is not None))


def test_fields_of_other_types_are_refused():
    """Where a field has types that no column can hold together, the message says so."""
    source = [row_of([G], [("grounded", 1), G])]
    for passage in source[0]["negative_passages"]:
        passage["score"] = 1
    for passage in source[0]["positive_passages"]:
        passage["score"] = [1]
    with pytest.raises(SchemaError, match="positive_passages.*negative_passages"):
        Dataset.from_list(source).map(arhn.relabel)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("way", ["rows", "batches", "table"])
def test_numbers_that_the_type_of_the_other_side_cannot_hold_are_refused(way, nested):
    """Whole numbers beyond 2^53 have no place beside floats: the field and both types are named."""
    source = [row_of([G], [("grounded", 1), G])]
    for side, number in (("positive_passages", 2**53 + 1), ("negative_passages", 0.5)):
        for passage in source[0][side]:
            passage["meta" if nested else "number"] = {"number": number} if nested else number
    dataset = Dataset.from_list(source)
    field = "meta.number" if nested else "number"
    run = {
        "rows": lambda: dataset.map(arhn.relabel),
        "batches": lambda: dataset.map(arhn.relabel, batched=True),
        "table": lambda: arhn.relabel(dataset.data.table),
    }[way]
    with pytest.raises(SchemaError, match=rf"'positive_passages\.{field}' holds int64.*double.*Cast"):
        run()


def test_rows_whose_rank_columns_are_null():
    """A part of the rows that was never ranked (concatenated datasets) costs the others no evidence."""
    ranked, unranked = row_of([G], [("grounded", 1), G]), row_of([G], [("grounded", 1), G])
    unranked |= {"positive_ranks": None, "negative_ranks": None, "ranking": None}
    relabel = arhn.Relabel(min_negatives=0)
    for source in ([ranked, unranked], [unranked, ranked]):
        for result in (dataset_of(source).map(relabel), dataset_of(source).map(relabel, batched=True)):
            by_state = {row["decision"]["reference"]: row for row in result}
            assert by_state["supported"]["positive_ranks"] == [2, 1, 2]
            assert by_state["unranked"]["positive_ranks"] is None
            assert by_state["unranked"]["decision"]["status"] == "unchanged"
            assert [arhn.revert(row) for row in result] == source


def test_passages_whose_text_is_the_same_are_not_confused():
    """Equal passages on both sides each keep their own evidence."""
    row = row_of([("grounded", 1, "x")], [("no_answer", None, "x"), ("grounded", 1, "x"), ("grounded", 2, "x")])
    moved = origins(arhn.relabel(row))
    assert moved == {
        "positive": [("positive", 0), ("negative", 1)],
        "negative": [("negative", 0)],
        "filtered": [("negative", 2)],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "both"}, "policy is 'both'; one of relabel, filter, relabel\\+filter was expected"),
        ({"reference": "first"}, "reference is 'first'; one of best, worst"),
        ({"unsupported": "drop"}, "unsupported is 'drop'; one of filter, keep, relabel"),
        ({"ties": "equal"}, "ties is 'equal'; one of above, below"),
        ({"on_shortage": "raise"}, "on_shortage is 'raise'; one of keep, drop, allow"),
        ({"on_excess": None}, "on_excess is None; one of keep, drop, allow"),
        ({"min_negatives": -1}, "min_negatives is -1; a whole number from 0 was expected"),
        ({"min_negatives": "3"}, "min_negatives is '3'; a whole number from 0 was expected"),
        ({"min_negatives": 1.5}, r"min_negatives is 1\.5; a whole number from 0 was expected"),
        ({"min_negatives": True}, "min_negatives is True; a whole number from 0 was expected"),
        ({"min_negatives": None}, "min_negatives is None; a whole number from 0 was expected"),
        ({"max_relabelled": -1}, "max_relabelled is -1; a whole number from 0, or None, was expected"),
        ({"max_relabelled": "2"}, "max_relabelled is '2'; a whole number from 0, or None, was expected"),
        ({"max_matches": 1.0}, r"max_matches is 1\.0; a whole number from 0, or None, was expected"),
        ({"max_matches": -1}, "max_matches is -1; a whole number from 0, or None, was expected"),
        ({"threshold": 2.0}, r"threshold is 2\.0; a grade from 1 to 3"),
        ({"threshold": True}, "threshold is True; a grade from 1 to 3"),
        ({"threshold": "2"}, "threshold is '2'; a grade from 1 to 3"),
    ],
)
def test_wrong_options(options, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        arhn.relabel.with_options(**options)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("positive_ranks",), r"needs the columns \['positive_ranks'\].*ds.map\(arhn.ranks\)"),
        (("positive_snippets", "positive_ranks"), r"ds.map\(arhn.snippets\), then ds.map\(arhn.ranks\)"),
        (("positive_passages", "positive_snippets"), r"ds.map\(arhn.adapt\)"),
        (("negative_passages",), r"ds.map\(arhn.adapt\)"),
        (("negative_ranks",), r"needs the columns \['negative_ranks'\].*ds.map\(arhn.ranks\)"),
        (("negative_snippets",), r"ds.map\(arhn.snippets\), then ds.map\(arhn.ranks\)"),
    ],
)
def test_missing_columns(missing, message):
    """The message names the stage that writes the missing columns."""
    with pytest.raises(SchemaError, match=message):
        arhn.relabel({c: v for c, v in row_of([G], [G]).items() if c not in missing})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("positive_snippets", []),
        ("positive_snippets", None),
        ("negative_snippets", []),
        ("negative_snippets", None),
        ("positive_ranks", []),
        ("negative_ranks", []),
    ],
)
def test_misaligned_evidence(column, value):
    """Evidence that does not fit the passages is refused with the column, the counts and the query."""
    with pytest.raises(SchemaError, match=rf"'{column}' has 0 values for 1 passages.*'why\?'"):
        arhn.relabel(row_of([G], [G], **{column: value}))


def test_identity_holds_every_option():
    """Any other option is another fingerprint."""
    assert arhn.relabel.identity() != arhn.relabel.with_options(ties="below").identity()
    assert arhn.revert.identity() != arhn.Revert(keep_evidence=False).identity()
    assert set(arhn.relabel.identity()) == {
        "policy", "reference", "unsupported", "ties", "min_negatives", "on_shortage", "max_relabelled", "on_excess"
    }  # fmt: skip


def test_sides_without_any_passage_take_the_plain_type():
    """A dataset in which no row has a passage is typed all the same."""
    table = pa.Table.from_pylist(
        [row_of([], [])],
        schema=pa.schema(
            [("query_id", pa.string()), ("query", pa.string())]
            + [(f"{label}_passages", pa.list_(pa.null())) for label in LISTS[:2]]
            + [(column, EVIDENCE_TYPES[column]) for column in EVIDENCE]
        ),
    )
    assert arhn.relabel(table).schema.field("filtered_passages").type == EVIDENCE_TYPES["filtered_passages"]


@pytest.mark.parametrize("batched", [False, True])
def test_rows_that_were_relabelled_beside_rows_that_were_not(batched):
    """In concatenated datasets each row is relabelled, and reverted, from its own evidence."""
    source = random_rows(12)
    dataset = dataset_of(source)
    mixed = concatenate_datasets([dataset.map(arhn.Relabel(policy="filter")), dataset])
    found = list(mixed.map(arhn.relabel, batched=batched))
    expected = [arhn.relabel(row) for row in source]
    assert found == expected * 2
    assert list(mixed.map(arhn.revert, batched=batched)) == source * 2


# -- verdicts and grades -----------------------------------------------------------------------------------------------


def judged_row(name, positives, negatives):
    """A row with verdicts or grades alone."""
    row = {"query_id": "q", "query": "why?"}
    for label, values in (("positive", positives), ("negative", negatives)):
        row[f"{label}_passages"] = [{"docid": f"{label} {i}", "title": "", "text": f"{i}"} for i in range(len(values))]
        row[f"{label}_{name}s"] = [judgement(name, value) for value in values]
    return row


def letters(row):
    """Where each negative went."""
    places = origins(row)
    short = {"positive": "p", "filtered": "f", "negative": "-"}
    count = sum(label == "negative" for found in places.values() for label, _ in found)
    return "".join(next(short[label] for label in LISTS if ("negative", i) in places[label]) for i in range(count))


@pytest.mark.parametrize(
    ("policy", "expected"), [("relabel", "p----"), ("filter", "ff---"), ("relabel+filter", "pf---")]
)
def test_verdicts_by_hand(policy, expected):
    """Better becomes a positive, worse is ambiguous; no match, and no verdict, stay."""
    row = judged_row("verdict", [None], [BETTER, WORSE, NO_MATCH, None])
    row["negative_passages"].append({"docid": "n", "title": "", "text": "n"})
    row["negative_verdicts"].append(None)
    rule = arhn.Relabel(evidence="verdicts", policy=policy)
    result = rule(row)
    assert letters(result) == expected
    assert result["decision"]["policy"] == f"verdicts:{policy}"
    assert result["decision"]["reference"] == "supported"
    without = rule(judged_row("verdict", [], [BETTER, NO_MATCH]))
    assert letters(without) == ("f-" if policy == "filter" else "--")
    assert without["decision"]["reference"] == "unknown"


@pytest.mark.parametrize(
    ("positives", "options", "expected"),
    [
        ([2], {}, "pp---"),
        ([3], {}, "pf---"),
        ([3], {"ties": "below"}, "ff---"),
        ([3], {"threshold": 3}, "p----"),
        ([3], {"threshold": 1}, "pff--"),
        ([0], {}, "pp---"),
        ([3, 2], {}, "pf---"),
        ([3, 2], {"reference": "worst"}, "pp---"),
        ([None], {}, "-----"),
        ([None], {"policy": "filter"}, "ff---"),
        ([None, 2], {"policy": "relabel", "ties": "below"}, "p----"),
    ],
)
def test_grades_by_hand(positives, options, expected):
    """Where negatives of the grades 3, 2, 1, 0 and none go."""
    row = judged_row("grade", positives, [3, 2, 1, 0, None])
    assert letters(arhn.Relabel(evidence="grades", **options)(row)) == expected


def test_too_many_matches_drop_the_row():
    """RLHN drops a row with more than 8 matches, whatever the policy; 8 are fine."""
    rule = arhn.Relabel(evidence="verdicts", policy="relabel", max_matches=8)
    many = rule(judged_row("verdict", [None], [BETTER] * 5 + [WORSE] * 4 + [NO_MATCH]))
    assert many["decision"]["status"] == "dropped"
    assert many["decision"]["detail"] == "9 negatives match, max_matches is 8"
    assert not arhn.is_kept(many)
    assert letters(many) == "-" * 10
    few = rule(judged_row("verdict", [None], [BETTER] * 4 + [WORSE] * 4 + [NO_MATCH]))
    assert letters(few) == "pppp-----"


@pytest.mark.parametrize(
    ("options", "expected", "kept"),
    [
        ({"policy": "filter", "max_matches": 0}, "-----", False),  # "remove": a row with any match goes
        ({"policy": "filter", "max_matches": 8}, "fff--", True),  # "hn_remove": the matches leave the negatives
        ({"policy": "relabel", "max_matches": 8}, "pp---", True),  # "rlhn" of the matches that are no worse
    ],
)
def test_the_techniques_of_rlhn_by_hand(options, expected, kept):
    """A query with two negatives at least as good as the positive and one that is worse, as in the paper's method."""
    row = judged_row("verdict", [None], [BETTER, BETTER, WORSE, NO_MATCH, NO_MATCH])
    result = arhn.Relabel(evidence="verdicts", **options)(row)
    assert (letters(result), arhn.is_kept(result)) == (expected, kept)
