"""Ranking: what is asked, and which ranks the replies can carry."""

from __future__ import annotations

import random

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import Ranking
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.evidence.ranks import Order, consensus, windows
from arhn_datasets.rows.records import ERROR, PARTIAL, RANKED, UNPARSED
from tests.conftest import snippet


class Recording(arhn.Annotator):
    """Replies to the n-th request with ``reply(n, candidates)``, and keeps the requests."""

    awaits = False

    def __init__(self, reply):
        self.reply = reply
        self.requests = []
        self.replies = []

    async def snippet(self, request):
        raise AssertionError("a ranking asks for no snippet")

    async def ranking(self, request):
        self.requests.append(request)
        self.replies.append(self.reply(len(self.requests) - 1, request.candidates))
        return self.replies[-1]

    def identity(self, stage):
        return {"annotator": "recording", "stage": stage}

    @property
    def shown(self):
        return [request.candidates for request in self.requests]


def honest(candidates, place=int):
    """A full ranking by ``place``; equal places share a tier."""
    places = sorted({place(text) for text in candidates})
    return Ranking(
        status=RANKED,
        tiers=tuple(tuple(i for i, text in enumerate(candidates) if place(text) == value) for value in places),
    )


def in_order(*texts):
    """An annotator that always ranks in the order of ``texts``."""
    return Recording(lambda _, candidates: honest(candidates, texts.index))


def row_of(positives, negatives):
    """A row whose passages hold the given snippets; None is a passage without one."""
    row = {"query_id": "q", "query": "why?", "subset": "fever"}
    for label, texts in (("positive", positives), ("negative", negatives)):
        row[f"{label}_passages"] = [{"docid": f"{label}{i}", "title": "", "text": f"{t}"} for i, t in enumerate(texts)]
        row[f"{label}_snippets"] = [snippet("no_answer") if t is None else snippet(text=t) for t in texts]
    return row


def rank(annotator, row, **options):
    """The ranks of the positives and of the negatives, and how it went."""
    result = arhn.Ranks(annotator=annotator, **options)(row)
    return result["positive_ranks"], result["negative_ranks"], result["ranking"]


def ranks_by_text(row, positives, negatives):
    """The rank of each snippet."""
    return {
        s["snippet"]: rank
        for snippets, ranks in ((row["positive_snippets"], positives), (row["negative_snippets"], negatives))
        for s, rank in zip(snippets, ranks, strict=True)
    }


@st.composite
def splits(draw, most):
    """Positives and negatives, whose texts are the numbers of a hidden order."""
    places = draw(st.permutations(range(draw(st.integers(2, most)))))
    cut = draw(st.integers(1, min(3, len(places) - 1)))
    return row_of([str(place) for place in places[:cut]], [str(place) for place in places[cut:]])


@st.composite
def sizes(draw, most=7):
    """A window and a stride below it."""
    window = draw(st.integers(2, most))
    return {"window": window, "stride": draw(st.integers(1, window - 1))}


@given(st.integers(0, 60), sizes())
def test_windows_cover_every_candidate_back_to_front(candidates, size):
    """Windows overlap, move to the front, and are as full as they can be."""
    found = windows(candidates, **size)
    if candidates < 2:
        assert found == []
        return
    assert {i for start, end in found for i in range(start, end)} == set(range(candidates))
    assert found[0][1] == candidates
    assert found[-1][0] == 0
    for (start, end), (before, after) in zip(found[1:], found, strict=False):
        assert start < before < end < after
    assert {end - start for start, end in found[:-1]} <= {size["window"]}
    assert found[-1][1] - found[-1][0] <= size["window"]


@settings(deadline=None)
@given(splits(12), st.integers(1, 3), st.integers(0, 5))
def test_honest_replies_give_the_hidden_order(row, permutations, seed):
    """In one window the ranks are the places of the hidden order, whatever the shown order."""
    positives, negatives, ranking = rank(
        Recording(lambda _, candidates: honest(candidates)), row, permutations=permutations, seed=seed
    )
    assert all(int(text) == rank - 1 for text, rank in ranks_by_text(row, positives, negatives).items())
    assert ranking == {
        "status": "ranked",
        "candidates": len(positives) + len(negatives),
        "permutations": permutations,
        "agreement": 1.0 if permutations > 1 else None,
        "detail": None,
    }


@settings(max_examples=400, deadline=None)
@given(splits(30), sizes(), st.integers(1, 4), st.integers(0, 3))
def test_windows_never_contradict_the_hidden_order(row, size, permutations, seed):
    """In long lists a candidate is ranked above a positive only if it is better, below only if it is worse."""
    annotator = Recording(lambda _, candidates: honest(candidates))
    positives, negatives, ranking = rank(annotator, row, permutations=permutations, seed=seed, **size)
    ranks = ranks_by_text(row, positives, negatives)
    for positive in (s["snippet"] for s in row["positive_snippets"]):
        for text, found in ranks.items():
            if text != positive and None not in (found, ranks[positive]):
                assert (found < ranks[positive]) == (int(text) < int(positive)), (text, positive)
                assert found != ranks[positive]
    assert len(annotator.requests) == permutations * len(windows(len(ranks), **size))
    assert (ranking["status"] == "ranked") == (None not in ranks.values())


def unreliable(rng):
    """Replies that leave out, fail or are not understood, at random."""

    def reply(_, candidates):
        status = rng.choice([RANKED, PARTIAL, PARTIAL, UNPARSED, ERROR])
        if status in (UNPARSED, ERROR):
            return Ranking(status=status, detail="why")
        given = rng.sample(range(len(candidates)), len(candidates))
        given = given if status == RANKED else given[: rng.randint(1, len(given))]
        tiers = []
        for position in given:
            if tiers and rng.random() < 0.2:
                tiers[-1] += (position,)
            else:
                tiers.append((position,))
        return Ranking(status=status, tiers=tuple(tiers), detail=None if status == RANKED else "why")

    return reply


def claims(annotator):
    """What the replies said: of each candidate those that it is at least as good as."""
    better = {}
    for candidates, reply in zip(annotator.shown, annotator.replies, strict=True):
        tiers = [[candidates[i] for i in tier] for tier in reply.tiers]
        for number, tier in enumerate(tiers):
            for text in tier:
                worse = {other for later in tiers[number:] for other in later}
                better[text] = better.get(text, set()) | worse
    return better


def reaches(better, start):
    """Everything that a chain of replies puts at or below ``start``."""
    found, waiting = set(), [start]
    while waiting:
        text = waiting.pop()
        for other in better.get(text, ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


@settings(max_examples=300, deadline=None)
@given(splits(14), sizes(), st.integers(0, 10**6))
def test_a_rank_needs_replies_that_carry_it(row, size, seed):
    """Only candidates that a reply named have a rank, and a chain of replies joins each to the ranked positives."""
    annotator = Recording(unreliable(random.Random(seed)))
    positives, negatives, ranking = rank(annotator, row, **size)
    ranks, better = ranks_by_text(row, positives, negatives), claims(annotator)
    assert all(text in better for text, found in ranks.items() if found is not None)
    for positive in (s["snippet"] for s in row["positive_snippets"]):
        for text, found in ranks.items():
            if text != positive and None not in (found, ranks[positive]):
                first, last = (text, positive) if found <= ranks[positive] else (positive, text)
                assert last in reaches(better, first)
    statuses = [reply.status for reply in annotator.replies]
    if ranking["status"] == "ranked":
        assert set(statuses) == {RANKED}
        assert None not in ranks.values()
    elif ranking["status"] in (UNPARSED, ERROR):
        assert not better
        assert (ranking["status"] == ERROR) == (ERROR in statuses)
        assert ranking["detail"] == "why"
    given_ranks = sorted(found for found in ranks.values() if found is not None)
    assert given_ranks[:1] in ([], [1])
    assert all(found == 1 + sum(other < found for other in given_ranks) for found in given_ranks)


@settings(max_examples=300, deadline=None)
@given(splits(8), st.integers(1, 4), st.integers(0, 10**6))
def test_a_negative_above_a_positive_has_the_better_mean(row, permutations, seed):
    """With complete replies a negative is above a positive only where the mean of the permutations is better."""
    rng = random.Random(seed)

    def reply(_, candidates):
        order = rng.sample(range(len(candidates)), len(candidates))
        return Ranking(status=RANKED, tiers=tuple((position,) for position in order))

    annotator = Recording(reply)
    positives, negatives, ranking = rank(annotator, row, permutations=permutations)
    places = {}
    for shown, reply in zip(annotator.shown, annotator.replies, strict=True):
        for place, (position,) in enumerate(reply.tiers):
            places[shown[position]] = places.get(shown[position], 0) + place
    for positive, of_positive in zip(row["positive_snippets"], positives, strict=True):
        for negative, of_negative in zip(row["negative_snippets"], negatives, strict=True):
            difference = places[negative["snippet"]] - places[positive["snippet"]]
            assert (of_negative < of_positive) == (difference < 0)
            if of_negative == of_positive:
                pytest.fail("no two of them shared a place in every permutation")
    assert permutations == 1 or 0 <= ranking["agreement"] <= 1


votes = st.lists(st.dictionaries(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(votes, st.sets(st.integers(0, 6)), st.randoms())
def test_consensus(positions, reference, rng):
    """Candidates that most permutations placed stand in one tier each, in an order that these permutations carry."""
    tiers, agreement = consensus(positions, reference)
    tier_of = {candidate: number for number, tier in enumerate(tiers) for candidate in tier}
    majority = {c for c in range(7) if sum(c in order for order in positions) * 2 > len(positions)}
    assert sum(map(len, tiers)) == len(tier_of)
    assert all(tiers)
    assert tier_of.keys() <= majority
    if all(order.keys() == positions[0].keys() for order in positions):
        assert tier_of.keys() == majority
    for a in tier_of:
        for b in reference & tier_of.keys() - {a}:
            apart = [order[a] - order[b] for order in positions if a in order and b in order]
            assert apart
            if a in reference:
                assert sum(apart) * (tier_of[a] - tier_of[b]) >= 0
            elif tier_of[a] < tier_of[b]:
                assert sum(apart) < 0
            elif tier_of[a] == tier_of[b]:
                assert sum(apart) == 0
            else:
                assert sum(apart) >= 0
    assert agreement is None or 0 <= agreement <= 1
    shuffled = list(positions)
    rng.shuffle(shuffled)
    again, same = consensus(shuffled, reference)
    assert ([set(tier) for tier in again], same) == ([set(tier) for tier in tiers], agreement)


def test_means_over_other_permutations_contradict_no_reply():
    """A candidate above the positive wherever both were placed is not ranked below it by a mean over fewer."""
    positions = [{0: 9, 1: 10}, {0: 9, 1: 10}, {1: 0}]
    assert consensus(positions, {1}) == ([[1]], None)
    assert consensus(positions[:2], {1}) == ([[0], [1]], 1.0)


def test_a_chain_is_needed():
    """Without a reply that joins it to the positive, a candidate has no place."""
    order = Order([0, 1, 2, 3])
    order.place(2, 4, Ranking(status=RANKED, tiers=((0,), (1,))))
    order.place(0, 2, Ranking(status=RANKED, tiers=((1,), (0,))))
    assert order.sequence == [1, 0, 2, 3]
    assert order.positions({1}) == {1: 0, 0: 1}
    assert order.positions({3}) == {2: 0, 3: 1}
    assert order.positions({0, 3}) == {}
    assert order.positions(set()) == {1: 0, 0: 1, 2: 2, 3: 3}


def test_a_later_window_overrules_an_earlier_one():
    """Of two replies about one pair the later one counts, and what it left out is behind, uncompared."""
    order = Order([0, 1, 2])
    order.place(1, 3, Ranking(status=RANKED, tiers=((1,), (0,))))
    order.place(0, 2, Ranking(status=PARTIAL, tiers=((1,),)))
    assert order.sequence == [2, 0, 1]
    assert order.positions({2}) == {2: 0, 1: 1}
    order.place(0, 3, Ranking(status=RANKED, tiers=((2,), (0, 1))))
    assert order.positions({2}) == {1: 0, 2: 1, 0: 1}


def test_a_negative_that_always_shares_the_tier_shares_the_rank():
    """Ties that the annotator gives are ties in the ranks, and count every passage above them."""
    annotator = Recording(lambda _, candidates: honest(candidates, lambda text: text[0]))
    positives, negatives, _ = rank(annotator, row_of(["b1"], ["a", "b2", "c", "a "]), permutations=3)
    assert (positives, negatives) == ([3], [1, 3, 5, 1])


@pytest.mark.parametrize("permutations", [2, 4])
def test_a_disagreement_puts_no_negative_above_the_positive(permutations):
    """Where half of the permutations have the negative above, the positive comes first, whichever side is named."""
    for positive, negative in ("ab", "ba"):
        annotator = Recording(lambda n, c: honest(c, "ab".index if n % 2 else "ba".index))
        positives, negatives, ranking = rank(annotator, row_of([positive], [negative]), permutations=permutations)
        assert (positives, negatives) == ([1], [2])
        assert ranking["agreement"] == 0.5


def test_permutations_show_other_orders():
    """Each permutation shows the same candidates in an order of its own."""
    annotator = in_order(*"abcdefgh")
    rank(annotator, row_of(["a"], list("bcdefgh")), permutations=3)
    assert len(set(annotator.shown)) == 3
    assert {tuple(sorted(shown)) for shown in annotator.shown} == {tuple("abcdefgh")}


def test_a_permutation_that_failed_is_outvoted():
    """A candidate counts where more than half of the permutations placed it; one of three replies does not do."""

    def reply(failures):
        return lambda n, c: Ranking(status=ERROR, detail="down") if n < failures else honest(c, "ab".index)

    assert rank(Recording(reply(1)), row_of(["b"], ["a"]), permutations=3)[:2] == ([2], [1])
    positives, negatives, ranking = rank(Recording(reply(2)), row_of(["b"], ["a"]), permutations=3)
    assert (positives, negatives, ranking["status"], ranking["detail"]) == ([None], [None], "partial", "down")


def test_equal_words_are_one_candidate():
    """Snippets that differ in white space alone are shown once, and share a rank."""
    annotator = in_order("a", "x y", "z")
    positives, negatives, ranking = rank(annotator, row_of(["x y"], ["z", "x\n y", "a"]))
    assert [sorted(shown) for shown in annotator.shown] == [["a", "x y", "z"]]
    assert (positives, negatives) == ([2], [4, 2, 1])
    assert ranking["candidates"] == 4


def test_nothing_but_equal_words_needs_no_request():
    """A row whose candidates all hold the same words is ranked without asking."""
    annotator = in_order()
    positives, negatives, ranking = rank(annotator, row_of(["x", "x"], ["x"]), permutations=2)
    assert (positives, negatives, ranking["status"]) == ([1, 1], [1], "ranked")
    assert "same words" in ranking["detail"]
    assert not annotator.requests


@pytest.mark.parametrize("rank_by", ["snippet", "passage"])
@pytest.mark.parametrize(
    ("positives", "negatives", "reason"),
    [
        (["a"], [None], "no negative holds a snippet"),
        (["a"], [], "no negative holds a snippet"),
        ([None], ["b"], "no positive holds a snippet"),
        ([], ["b"], "no positive holds a snippet"),
        ([], [], "no negative holds a snippet"),
    ],
)
def test_rows_that_nothing_could_change_are_not_asked(rank_by, positives, negatives, reason):
    """Without an answer on either side there is no request, and the reason is recorded."""
    annotator = in_order("a", "b")
    result = rank(annotator, row_of(positives, negatives), rank_by=rank_by)
    ranking = {"status": "skipped", "candidates": 0, "permutations": 0, "agreement": None, "detail": reason}
    assert result == ([None] * len(positives), [None] * len(negatives), ranking)
    assert not annotator.requests


@pytest.mark.parametrize("status", ["no_answer", "ungrounded", "unparsed", "error"])
def test_ranking_by_snippet_takes_grounded_ones_alone(status):
    """Whatever is not grounded is no candidate and has no rank."""
    row = row_of(["a", "b"], ["c", "d"])
    row["positive_snippets"][1] = row["negative_snippets"][0] = snippet(status)
    annotator = in_order("d", "a")
    assert rank(annotator, row)[:2] == ([2, None], [None, 1])
    assert [sorted(shown) for shown in annotator.shown] == [["a", "d"]]


def test_ranking_by_passage_takes_all():
    """Whole passages, title first, on one line; those without a snippet too."""
    row = row_of(["p"], ["n", None])
    row["negative_passages"][0] = {"docid": "n", "title": "Title", "text": "two\nlines"}
    annotator = in_order("Title two lines", "None", "p")
    positives, negatives, ranking = rank(annotator, row, rank_by="passage")
    assert (positives, negatives, ranking["candidates"]) == ([3], [1, 2], 3)


@settings(deadline=None)
@given(splits(12), sizes(), st.integers(1, 2), st.randoms(), st.sampled_from(["snippet", "passage"]))
def test_the_order_of_the_row_changes_nothing(row, size, permutations, rng, rank_by):
    """Passages in another order are asked with the very same requests and have the same ranks."""
    other = dict(row)
    for label in ("positive", "negative"):
        pairs = list(zip(row[f"{label}_passages"], row[f"{label}_snippets"], strict=True))
        rng.shuffle(pairs)
        other[f"{label}_passages"], other[f"{label}_snippets"] = map(list, zip(*pairs, strict=True))
    first, second = (Recording(lambda _, candidates: honest(candidates)) for _ in range(2))
    options = {"permutations": permutations, "rank_by": rank_by, **size}
    found = ranks_by_text(row, *rank(first, row, **options)[:2])
    assert found == ranks_by_text(other, *rank(second, other, **options)[:2])
    assert first.requests == second.requests


def test_requests_carry_query_task_and_background():
    """The annotator is told the query, the task of the subset and the texts of the row."""
    annotator = in_order("a", "b")
    rank(annotator, row_of(["b"], ["a", None]))
    (request,) = annotator.requests
    assert (request.query, request.task, request.background) == ("why?", "claim", ("None", "a", "b"))


def test_the_seed_decides_the_shown_order():
    """The same seed shows the same order, another seed and another query another one."""
    row = row_of(["0"], [str(i) for i in range(1, 12)])

    def shown(row, seed):
        annotator = Recording(lambda _, candidates: honest(candidates))
        rank(annotator, row, seed=seed)
        return annotator.shown[0]

    assert shown(row, 1) == shown(row, 1)
    assert len({shown(row, 1), shown(row, 2), shown({**row, "query": "how?"}, 1)}) == 3


def test_ranks_of_a_dataset():
    """Through `Dataset.map` the columns are typed and aligned with the passages."""
    rows = [row_of(["b"], ["a", None]), row_of(["b"], [None])]
    annotator = in_order("a", "b")
    result = Dataset.from_list(rows).map(arhn.Ranks(annotator=annotator))
    assert [(row["positive_ranks"], row["negative_ranks"]) for row in result] == [([2], [1, None]), ([None], [None])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_by": "text"}, "rank_by is 'text'; one of snippet, passage was expected"),
        ({"window": 1}, "stride is 10 and window is 1; windows overlap only with 1 <= stride < window"),
        ({"window": 5, "stride": 5}, "stride is 5 and window is 5"),
        ({"stride": 0}, "stride is 0"),
        ({"permutations": 0}, "permutations is 0; a whole number from 1"),
        ({"permutations": "2"}, "permutations is '2'; a whole number from 1 was expected"),
        ({"permutations": 2.0}, "permutations is 2.0; a whole number"),
        ({"permutations": True}, "permutations is True; a whole number"),
        ({"permutations": None}, "permutations is None; a whole number"),
        ({"window": "20"}, "window is '20'; a whole number"),
        ({"stride": 2.5}, "stride is 2.5; a whole number"),
        ({"seed": "0"}, "seed is '0'; a whole number was expected"),
        ({"tasks": "poem"}, "Unknown task 'poem'"),
    ],
)
def test_wrong_options(options, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        arhn.ranks.with_options(**options)


@pytest.mark.parametrize(
    "option",
    [{"rank_by": "passage"}, {"window": 21}, {"stride": 9}, {"permutations": 2}, {"seed": 1}, {"tasks": "claim"}],
)
def test_every_option_is_part_of_the_identity(option):
    """Another option is another fingerprint."""
    base = arhn.Ranks(annotator=in_order())
    assert base.identity() == base.with_options(annotator=in_order()).identity()
    assert base.identity() != base.with_options(**option).identity()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["negative_snippets"], r"\['negative_snippets'\].*ds.map\(arhn.snippets\)"),
        (["positive_snippets", "negative_snippets"], r"ds.map\(arhn.snippets\)"),
        (["positive_passages", "positive_snippets"], r"ds.map\(arhn.adapt\)"),
    ],
)
def test_missing_columns(missing, message):
    """The message names the stage that writes the missing columns."""
    row = {column: value for column, value in row_of(["a"], ["b"]).items() if column not in missing}
    with pytest.raises(SchemaError, match=message):
        rank(in_order("a", "b"), row)


@pytest.mark.parametrize(("value", "count"), [(None, "none"), ([], "0")])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_misaligned_snippets(side, value, count):
    """Snippets that do not fit the passages are refused."""
    with pytest.raises(SchemaError, match=rf"'{side}_snippets' has {count} snippets for 1 passages.*'why\?'"):
        rank(in_order("a", "b"), {**row_of(["a"], ["b"]), f"{side}_snippets": value})


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("value", [None, {**snippet(), "snippet": None}])
def test_snippets_without_words(side, value):
    """Written by hand or by an annotator that was not checked, they are refused, not a crash."""
    with pytest.raises(SchemaError, match=rf"'{side}_snippets' .*query 'why\?'.*ds.map\(arhn.snippets\)"):
        rank(in_order("a", "b"), {**row_of(["a"], ["b"]), f"{side}_snippets": [value]})


@pytest.mark.parametrize(
    "reply",
    [
        Ranking(status=RANKED, tiers=((-1,), (0,))),
        Ranking(status=RANKED, tiers=((0,), (2,))),
        Ranking(status=RANKED, tiers=((1,), (0, 1))),
        Ranking(status=ERROR, tiers=((0,), (1,)), detail="Error: 1 of 0"),
        Ranking(status=UNPARSED, tiers=((0,), (1,)), detail="?"),
        Ranking(status="great", tiers=((0,), (1,)), detail="?"),
        Ranking(status=RANKED, tiers=(0, 1)),
        Ranking(status=RANKED, tiers=(("0",), ("1",))),
        Ranking(status=RANKED, tiers=(([0],), ([1],))),
        Ranking(status=RANKED, tiers=((0.0,), (1.0,))),
        Ranking(status=RANKED, tiers=None),
        None,
        (0, 1),
    ],
)
def test_tiers_of_ill_replies_are_no_evidence(reply):
    """An annotator of one's own that gives impossible positions, or positions beside a failure, ranks nothing."""
    positives, negatives, ranking = rank(Recording(lambda *_: reply), row_of(["b"], ["a"]))
    assert (positives, negatives) == ([None], [None])
    assert ranking["status"] in (UNPARSED, ERROR)
    assert ranking["detail"]


def test_a_full_status_with_a_part_of_the_candidates_is_partial():
    """What an annotator calls ranked is so only when every candidate has a rank."""
    one = Recording(lambda *_: Ranking(status=RANKED, tiers=((0,),)))
    positives, negatives, ranking = rank(one, row_of(["b"], ["a"]))
    assert sorted([*positives, *negatives], key=str) == [1, None]
    assert ranking["status"] == "partial"
