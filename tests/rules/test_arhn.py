"""Relabelling: a pure function of the evidence that loses nothing and can be undone."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows.records import EVIDENCE_TYPES, PASSAGE_TYPE, SNIPPET_STATUSES
from arhn_datasets.rules.arhn import ADDED, GUARDS, POLICIES, REFERENCES, TIES, UNSUPPORTED
from tests.conftest import snippet

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
    max_relabeled=st.none() | st.integers(0, 3),
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


def destinations(row, options):
    """The rule of the paper for each negative, written the long way."""
    found = []
    positives = list(zip(row["positive_snippets"], row["positive_ranks"], strict=True))
    reference = [rank for s, rank in positives if s["status"] == "grounded" and rank is not None]
    for held, rank in zip(row["negative_snippets"], row["negative_ranks"], strict=True):
        above = below = None
        if reference and rank is not None:
            best = sorted(reference)[0 if options.reference == "best" else -1]
            above = rank < best or (rank == best and options.ties == "above")
            below = not above
        if positives and all(s["status"] == "no_answer" for s, _ in positives):
            above, below = options.unsupported == "relabel", options.unsupported == "filter"
        if held["status"] != "grounded" or above is below is False:
            found.append("negative")
        elif options.policy == "filter":
            found.append("filtered")
        elif above:
            found.append("positive")
        elif below and options.policy == "relabel+filter":
            found.append("filtered")
        else:
            found.append("negative")
    return found


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


@given(rows, options)
def test_revert_restores_the_row(row, options):
    """Reverting gives the row with its evidence; without evidence the source row; both bit for bit."""
    result = options(row)
    kept = copy.deepcopy(result)
    assert arhn.revert(result) == row
    assert arhn.Revert(keep_evidence=False)(result) == {c: v for c, v in row.items() if c not in EVIDENCE}
    assert result == kept


@given(rows, options, options)
def test_a_policy_after_another_is_the_policy_alone(row, first, second):
    """What was relabelled before does not show in the result of other options."""
    assert second(first(row)) == second(row)
    assert arhn.revert(second(first(row))) == row


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


@given(rows, options)
def test_the_rule_of_the_paper(row, options):
    """Every negative goes where the rule, written naively, puts it."""
    result = origins(without_guards(options)(row))
    expected = destinations(row, options)
    assert expected == [
        next(label for label in LISTS if ("negative", i) in result[label]) for i in range(len(row["negative_passages"]))
    ]


@given(rows, options)
def test_the_decision_counts_what_moved_and_guards_keep_the_row(row, options):
    """Status, counts and detail say what happened; a guarded or dropped row is as it came."""
    result, free = options(row), without_guards(options)(row)
    decision = result["decision"]
    positives = len(row["positive_passages"])
    assert decision["relabelled"] == len(result["positive_passages"]) - positives
    assert decision["filtered"] == len(result["filtered_passages"])
    assert decision["policy"] == options.policy
    excess = options.max_relabeled is not None and free["decision"]["relabelled"] > options.max_relabeled
    short = len(free["negative_passages"]) < options.min_negatives
    stopped = [c for hit, c in ((excess, options.on_excess), (short, options.on_shortage)) if hit and c != "allow"]
    if stopped:
        assert decision["status"] == {"keep": "guarded", "drop": "dropped"}[stopped[0]]
        assert ("max_relabeled" if excess and options.on_excess != "allow" else "min_negatives") in decision["detail"]
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


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_a_reverted_dataset_is_the_dataset_before(batched, keep):
    """Through `Dataset.map` the added columns are gone, and rows and features are those before."""
    before = dataset_of(random_rows())
    after = before.map(arhn.relabel, batched=batched).map(arhn.Revert(keep_evidence=keep), batched=batched)
    expected = before if keep else before.remove_columns(list(EVIDENCE))
    assert sorted(after.column_names) == sorted(expected.column_names)
    assert not set(ADDED) & set(after.column_names)
    assert list(after) == list(expected)
    assert after.select_columns(expected.column_names).features.arrow_schema == expected.features.arrow_schema


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


def reverted_by_hand(rows, batched=True):
    """Reverted in a function of the user's, whose result `datasets` lays over the columns that are there."""
    return rows.map(lambda batch: arhn.revert(batch), batched=batched)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("transform", [arhn.relabel, arhn.revert])
def test_columns_left_from_before_a_revert_are_named_as_such(transform, batched):
    """The message names the function around arhn.revert, and what it advises works."""
    relabelled = dataset_of(random_rows()).map(arhn.relabel)
    left = reverted_by_hand(relabelled, batched)
    with pytest.raises(SchemaError, match=r"'positive_origins' has \d+ values.*map arhn\.revert itself") as raised:
        left.map(transform, batched=batched)
    assert "ds.remove_columns(arhn.revert.dropped(ds.column_names))" in str(raised.value)
    whole = left.remove_columns(arhn.revert.dropped(left.column_names))
    assert list(whole) == list(relabelled.map(arhn.revert))


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


def test_is_kept_filters_what_a_guard_dropped():
    """`ds.filter(arhn.is_kept)` leaves rows with enough negatives."""
    dataset = dataset_of(random_rows()).map(arhn.Relabel(min_negatives=2, on_shortage="drop"))
    kept = dataset.filter(arhn.is_kept)
    assert 0 < len(kept) < len(dataset)
    assert all(len(row["negative_passages"]) >= 2 for row in kept)
    assert {row["decision"]["status"] for row in kept} <= {"changed", "unchanged"}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("format", [None, "arrow", "numpy", "pandas"])
def test_is_kept_takes_rows_without_a_decision(format, batched):
    """Rows of before any rule, and rows whose decision is null, stand in every form; none of them is dropped."""
    if format == "arrow" and not batched:
        return  # datasets has no such filter: it wants mappings
    source = dataset_of(random_rows(6))

    def formatted(rows):  # ragged lists have no form in numpy for every version of datasets
        columns = [column for column in ("query", "decision") if column in rows.column_names]
        return rows.select_columns(columns).with_format(format)

    assert len(formatted(source).filter(arhn.is_kept, batched=batched)) == 6
    decided = source.map(arhn.Relabel(min_negatives=2, on_shortage="drop"))
    kept = len(decided.filter(arhn.is_kept))
    assert 0 < kept < 6
    mixed = concatenate_datasets([decided, source])
    assert len(formatted(mixed).filter(arhn.is_kept, batched=batched)) == kept + 6
    nothing = formatted(source.select([]))
    assert len(nothing.filter(arhn.is_kept, batched=batched)) == 0


def test_is_kept_says_as_many_as_there_are():
    """A list for a batch, an array for a table, one value for a row."""
    batch = {column: [value] * 3 for column, value in random_rows(1)[0].items()}
    assert arhn.is_kept(batch) == [True] * 3
    assert arhn.is_kept(random_rows(1)[0]) is True
    assert arhn.is_kept(pa.table({"query": ["a", "b"]})).equals(pa.array([True, True]))


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
        ({"max_relabeled": -1}, "max_relabeled is -1; a whole number from 0, or None, was expected"),
        ({"max_relabeled": "2"}, "max_relabeled is '2'; a whole number from 0, or None, was expected"),
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


@pytest.mark.parametrize("value", ["no", 0, None])
def test_whether_to_keep_evidence_is_yes_or_no(value):
    """A word that is true to Python keeps nothing that was not asked for."""
    with pytest.raises(ConfigurationError, match=f"keep_evidence is {value!r}; True or False was expected"):
        arhn.Revert(keep_evidence=value)


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


@pytest.mark.parametrize("column", ["negative_passages", "filtered_passages"])
def test_passages_that_are_none(column):
    """A null list of passages is refused."""
    row = arhn.relabel(row_of([G], [G])) | {column: None}
    with pytest.raises(SchemaError, match=f"'{column}' holds nothing"):
        arhn.revert(row)


@pytest.mark.parametrize("column", [column for column in ADDED if column != "filtered_ranks"])
def test_part_of_what_relabelling_wrote_is_refused(column):
    """Without one of its columns a relabelled row can neither be reverted nor relabelled: passages would be lost."""
    row = arhn.Relabel(min_negatives=0)(row_of([G], [("grounded", 3), ("grounded", 1)]))
    del row[column]
    for transform in (arhn.relabel, arhn.revert):
        with pytest.raises(SchemaError, match=column):
            transform(row)


def test_revert_of_rows_that_were_not_relabelled():
    """The message says what can be reverted."""
    with pytest.raises(SchemaError, match="Only rows that arhn.relabel has written"):
        arhn.revert(row_of([G], [G]))


def test_identity_holds_every_option():
    """Any other option is another fingerprint."""
    assert arhn.relabel.identity() != arhn.relabel.with_options(ties="below").identity()
    assert arhn.revert.identity() != arhn.Revert(keep_evidence=False).identity()
    assert set(arhn.relabel.identity()) == {
        "policy", "reference", "unsupported", "ties", "min_negatives", "on_shortage", "max_relabeled", "on_excess"
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
