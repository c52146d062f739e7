"""The lexical baseline: deterministic, and exact about where its sentences stand."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.interface import RankingRequest, SnippetRequest
from arhn_datasets.annotators.lexical import OF_BEST, THRESHOLD
from arhn_datasets.annotators.prompts import one_line
from arhn_datasets.annotators.words import cue_of, sentences, terms
from arhn_datasets.errors import ConfigurationError

QUERY = "At what temperature does tin melt?"
TEXT = "Tin is a metal. The melting temperature of tin is 232 °C!  Copper is red."
OTHERS = ("Copper is red.", "Iron rusts.", "Tin is soft.")

PIECES = [". ", "! ", "?\n", "…", "\n\n", "。", "」", '"', " ", "\u00a0", "A", "tin", "É", "ß", "melt", "金属", "3.5"]
prose = st.lists(st.sampled_from(PIECES)).map("".join)


def drive(coroutine):
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")


def snippet(text=TEXT, query=QUERY, background=OTHERS, title="", **options):
    """The snippet of one passage."""
    passage = {"docid": "d", "title": title, "text": text}
    request = SnippetRequest(query=query, passage=passage, task="question", background=background)
    return drive(arhn.Lexical(**options).snippet(request))


def ranking(*candidates, query=QUERY, background=OTHERS, **options):
    """The tiers of a ranking."""
    request = RankingRequest(query=query, candidates=candidates, task="question", background=background)
    return drive(arhn.Lexical(**options).ranking(request)).tiers


def test_the_best_sentence_with_its_offsets():
    """The sentence that covers most of the query is copied from where it stands."""
    found = snippet(background=(TEXT, *OTHERS))
    assert (found.status, found.snippet) == ("grounded", "The melting temperature of tin is 232 °C!")
    assert (found.field, TEXT[found.start : found.end]) == ("text", found.snippet)
    assert found.detail.startswith("coverage ")


@given(prose, st.text(max_size=30), st.lists(prose, max_size=3).map(tuple))
def test_any_snippet_stands_in_the_passage(text, query, background):
    """Offsets are right and the reply is the same the second time, whatever the texts."""
    found = snippet(text, f"tin {query}", (text, *background), threshold=0)
    assert found == snippet(text, f"tin {query}", (text, *background), threshold=0)
    if found.status == "grounded":
        assert found.snippet == text[found.start : found.end]
        assert (found.start, found.end) in sentences(text)
    else:
        assert (found.status, found.snippet, found.start) == ("no_answer", None, None)


@pytest.mark.parametrize(
    ("text", "options", "status"),
    [
        (TEXT, {"threshold": 0}, "grounded"),
        (TEXT, {}, "grounded"),
        ("Tin is soft.", {"threshold": 0.9}, "no_answer"),
        ("Tin is soft.", {"threshold": 0}, "no_answer"),
        ("Tin is soft.", {"threshold": 0, "of_best": 0}, "grounded"),
        ("Gold glitters.", {"threshold": 0}, "no_answer"),
        ("", {"threshold": 0}, "no_answer"),
        ("Tin melts at a temperature.", {"threshold": 1.0, "language": "english"}, "no_answer"),
        ("At what temperature does tin melt, then?", {"threshold": 1.0}, "grounded"),
    ],
)
def test_the_threshold(text, options, status):
    """A sentence below the threshold or far below the best of the row, or that covers nothing, is no answer."""
    assert snippet(text, background=(QUERY, text, *OTHERS), **options).status == status


def test_the_best_of_the_row_is_that_of_its_passages():
    """A passage that is none of the row's is compared with the threshold alone."""
    assert snippet("Tin is soft.", background=(QUERY,), threshold=0.1).status == "grounded"
    assert snippet("Tin is soft.", background=(QUERY, "Tin is soft."), threshold=0.1).status == "no_answer"


@given(st.lists(prose, min_size=1, max_size=5), st.floats(0, 1))
def test_the_best_passage_of_a_row_always_answers(texts, of_best):
    """Whatever the share is, the best passage reaches it; with a higher share no other passage answers."""
    background = tuple(sorted(texts))

    def answering(share):
        found = [snippet(text, "tin melt", background, threshold=0, of_best=share) for text in texts]
        assert found == [snippet(text, "tin melt", background[::-1], threshold=0, of_best=share) for text in texts]
        return {text for text, one in zip(texts, found, strict=True) if one.status == "grounded"}

    assert answering(1.0) <= answering(of_best) <= answering(0.0)
    assert bool(answering(1.0)) == bool(answering(0.0)) == any(terms("tin melt") & terms(text) for text in texts)


def test_a_term_that_all_passages_of_the_row_hold_weighs_little():
    """What tells the passages apart decides, though in the collection that term is the more common one."""
    texts = [f"{word} {i}" for word, times in (("melts", 3), ("tin", 2)) for i in range(times)]
    fitted = arhn.Lexical.fitted([{"positive_passages": [{"text": text} for text in texts], "negative_passages": []}])
    assert fitted.frequencies["melt"] > fitted.frequencies["tin"]
    background = ("Tin melts.", "It melts.", *(f"Tin is {word}." for word in ("soft", "grey", "old", "dear", "new")))
    request = RankingRequest(query="tin melts", candidates=background, task="question", background=background)
    assert drive(fitted.ranking(request)).tiers == ((0,), (1,), (2, 3, 4, 5, 6))


def test_neighbours_of_the_query_are_better_side_by_side():
    """Of two sentences with the same terms, the one that keeps their order is ahead."""
    texts = ("A type of cell that is 1.", "A cell of type 1.", "Of type 1.")
    assert ranking(*texts, query="type 1", background=texts) == ((1, 2), (0,))


def test_words_of_which_questions_are_built_weigh_nothing():
    """Unless the question holds nothing else."""
    texts = ("What are these, and where?", "Some tin.")
    assert ranking(*texts, query="What are the uses of tin?", background=texts) == ((1,), (0,))
    assert ranking(*texts, query="What are these?", background=texts) == ((0,), (1,))
    assert ranking(*texts, query="What are the uses of tin?", background=texts, language="german")[0] == (0,)


@pytest.mark.parametrize(
    ("query", "sentence", "expected"),
    [
        ("How many people live there?", "It has 3,000 inhabitants.", 1),
        ("how much is it", "It costs two million.", 1),
        ("What is the population of Rome?", "It is large.", 0),
        ("When was it built?", "It was built in 1889.", 1),
        ("In which year was it built?", "It was built in May.", 1),
        ("When was it built?", "It was built by 300 workers.", 0),
        ("What is tin?", "Tin is a soft metal.", 1),
        ("What is (are) Tin ore ?", "A tin ore is any mineral with tin.", 1),
        ("What are tin ores?", "Tin ores (stannum) are minerals.", 1),
        ("Define tin", "Tin, also called stannum, is a metal.", 1),
        ("information about tin", "Key facts: tin refers to a metal.", 1),
        ("What does tin mean?", "Tin is one of the metals.", 1),
        ("What is tin?", "Tin is soft.", 0),
        ("What is tin?", "Tin is mined in Cornwall.", 0),
        ("What are tin ores?", "Tin ores are mined in Cornwall.", 0),
        ("What is tin?", "Most users of tin are people.", 0),
        ("What is tin?", "Copper is a metal.", 0),
        ("What is tin?", "What about tin?", 0),
    ],
)
def test_the_form_that_a_question_asks_for(query, sentence, expected):
    """A number, a date, or what a thing is."""
    cue = cue_of(query, "english")
    wanted = terms(query) & terms("tin ore")
    assert round(cue(sentence, {term: 1 / len(wanted) for term in wanted}), 9) == expected


@pytest.mark.parametrize("language", ["german", None])
@pytest.mark.parametrize("query", ["When is it?", "How many?", "What is tin?"])
def test_forms_are_known_for_english_alone(query, language):
    """Another language has none, and no wrong one."""
    assert cue_of(query, language) is None


@pytest.mark.parametrize(
    "query", ["tin", "", "?", "What is the melting point of tin?", "Is tin a metal?", "What is it?", "Why is tin soft?"]
)
def test_a_question_that_asks_for_no_form(query):
    """Most questions do not."""
    assert cue_of(query, "english") is None


def test_what_a_thing_is_goes_before_what_is_said_of_it():
    """The passage that says what is asked is ahead of those that hold the same words."""
    texts = ("Tin is mined.", "Tin is a soft metal.", "The uses of tin.", "Copper is a metal.")
    assert ranking(*texts, query="What is tin?", background=texts) == ((1,), (0, 2), (3,))
    found = [snippet(text, "What is tin?", texts).status for text in texts]
    assert found == ["no_answer", "grounded", "no_answer", "no_answer"]


@given(st.lists(prose.map(one_line), min_size=1, max_size=4), prose)
def test_snippets_and_passages_are_ranked_by_the_figure_of_the_snippet(texts, query):
    """The same figures order snippets and whole passages, and say which passages answer."""
    background = tuple(sorted(texts))
    whole = ranking(*texts, query=query, background=background)
    found = [snippet(text, query, background, threshold=0, of_best=0) for text in texts]
    figures = [{figure(found[i]) for i in tier} for tier in whole]
    assert figures == sorted(figures, key=max, reverse=True)
    assert all(len(tier) == 1 for tier in figures)
    held = [one.snippet for one in found if one.status == "grounded"]
    shown = ranking(*held, query=query, background=background)
    assert [{figure(snippet(held[i], query, background, threshold=0, of_best=0)) for i in tier} for tier in shown] == [
        tier for tier in figures if max(tier) > 0
    ]


def figure(found):
    """The figure of a snippet."""
    return float(found.detail.removeprefix("coverage "))


def test_the_first_of_equal_sentences():
    """Of sentences that cover the same, the first one counts."""
    text = "Tin can melt. Tin can melt. Tin can melt."
    assert snippet(text, background=(text,)).start == 0


@pytest.mark.parametrize(("title", "text", "field"), [("Tin melts", "", "title"), ("Tin melts", " \n", "title")])
def test_a_title_alone(title, text, field):
    """Where there is no text the title is read."""
    found = snippet(text, title=title, background=(title,))
    assert (found.field, found.snippet) == (field, title)


def test_text_goes_before_title():
    """With a text the title is not read, though it would say more."""
    assert snippet("Copper is red.", title=QUERY, background=(QUERY, *OTHERS)).status == "no_answer"


def test_candidates_of_equal_figures_share_a_tier():
    """The ranking is by the best sentence of each candidate, ties in one tier."""
    candidates = ("Iron. Tin is here.", "Iron.", "A temperature of tin.", "", "Soft tin.")
    assert ranking(*candidates, background=(QUERY, "x")) == ((2,), (0, 4), (1, 3))


@given(st.lists(prose, min_size=1, max_size=6).map(tuple), st.randoms())
def test_rankings_do_not_depend_on_the_shown_order(candidates, rng):
    """Every candidate stands in exactly one tier, the same one in any shown order."""
    tiers = ranking(*candidates, background=candidates)
    assert sorted(i for tier in tiers for i in tier) == list(range(len(candidates)))
    order = list(range(len(candidates)))
    rng.shuffle(order)
    again = ranking(*(candidates[i] for i in order), background=candidates)
    assert [{order[i] for i in tier} for tier in again] == [set(tier) for tier in tiers]


def test_statistics_of_the_row_and_of_a_collection():
    """A term that no passage holds has no weight; fitted statistics know it, and weigh common terms less."""
    rows = [
        {"positive_passages": [{"text": f"{word} tin"} for word in "abcd"], "negative_passages": [{"text": "melt"}]}
    ]
    fitted = arhn.Lexical.fitted(rows * 2)
    assert fitted.description() == {
        "annotator": "lexical baseline",
        "baseline": True,
        "threshold": THRESHOLD,
        "of_best": OF_BEST,
        "language": "english",
        "fitted_on_passages": 5,
    }
    assert fitted.frequencies["tin"] == 4
    assert fitted.frequencies["melt"] == 1
    both = {"query": "tin melt", "candidates": ("tin", "melt", "gold"), "task": "question"}
    for background in ((), ("tin", "melt", "gold")):
        assert drive(fitted.ranking(RankingRequest(**both, background=background))).tiers == ((1,), (0,), (2,))
    assert drive(arhn.Lexical().ranking(RankingRequest(**both, background=("tin",)))).tiers == ((0,), (1, 2))
    assert drive(arhn.Lexical().ranking(RankingRequest(**both))).tiers == ((0, 1, 2),)
    assert arhn.Lexical().description()["fitted_on_passages"] is None


def test_fitted_on_nothing():
    """Without passages there are no statistics, and nothing answers."""
    fitted = arhn.Lexical.fitted([], threshold=0)
    request = SnippetRequest(query="tin", passage={"text": "tin"}, task="question", background=("tin",))
    assert drive(fitted.snippet(request)).status == "no_answer"


def test_identity_changes_with_all_that_changes_the_evidence():
    """Threshold, language, statistics and size of the collection are in the identity."""
    variants = [
        arhn.Lexical(),
        arhn.Lexical(threshold=0.5),
        arhn.Lexical(of_best=0.5),
        arhn.Lexical(language=None),
        arhn.Lexical(threshold=THRESHOLD, frequencies={"a": 1}, documents=2),
        arhn.Lexical(threshold=THRESHOLD, frequencies={"a": 2}, documents=2),
        arhn.Lexical(threshold=THRESHOLD, frequencies={"a": 1}, documents=3),
    ]
    identities = [str(annotator.identity("snippets")) for annotator in variants]
    assert len(set(identities)) == len(variants)
    assert arhn.Lexical(threshold=THRESHOLD).identity("ranks") == arhn.Lexical().identity("ranks")
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert arhn.Lexical(frequencies=one, documents=2).identity("") == arhn.Lexical(
        frequencies=other, documents=2
    ).identity("")


def test_the_same_in_any_process():
    """Neither the hash seed nor the order of the rows shows in the statistics or in the figures."""
    code = (
        "import arhn_datasets as arhn, json, sys\n"
        "texts = 'tin melts', 'red gold', 'a'\n"
        "rows = [{'positive_passages': [{'text': text}], 'negative_passages': []} for text in texts]\n"
        "a = arhn.Lexical.fitted(rows[::int(sys.argv[1])])\n"
        "ask = arhn.annotators.interface.SnippetRequest\n"
        "requests = [ask(query='red tin gold melts', passage={'text': text}, task='question',\n"
        "    background=texts) for text in texts]\n"
        "print(json.dumps([a.identity('ranks'), [a.coverage(request) for request in requests]]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, step],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed, step in (("1", "1"), ("2", "-1"))
    }
    assert len(found) == 1


@given(st.one_of(st.text(max_size=200), prose))
def test_sentences_cover_the_text(text):
    """Sentences are in order, apart, without surrounding white space, and hold everything else."""
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It is 3.5 m. Fine.", ["It is 3.5 m.", "Fine."]),
        ('He said "no." Then "Yes!"', ['He said "no."', 'Then "Yes!"']),
        ("Wait... what? So.", ["Wait... what?", "So."]),
        ("Ça va. Été.", ["Ça va.", "Été."]),
        ("東京です。大阪です。「はい。」", ["東京です。", "大阪です。", "「はい。」"]),
        ("A heading\n\nA text\nof lines", ["A heading", "A text\nof lines"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("", []),
        (" \n ", []),
        ("...", ["..."]),
    ],
)
def test_sentences(text, expected):
    """Sentences end at a stop before a new start, at the stops of other scripts, and at empty lines."""
    assert [text[start:end] for start, end in sentences(text)] == expected


@pytest.mark.parametrize(
    "text",
    ["." * 40_000, "?!" * 20_000 + '"' * 20_000, ". " * 20_000, "\n " * 20_000, "x" * 40_000],
    ids=["dots", "marks", "spaced dots", "lines", "letters"],
)
def test_sentences_of_odd_texts_are_quick(text):
    """A table of contents full of dots takes no longer than prose."""
    started = time.perf_counter()
    sentences(text)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Melting melts MELT", "english", {"melt"}),
        ("Melting melts MELT", None, {"melting", "melts", "melt"}),
        ("東京都", "english", {"東京", "京都"}),
        ("東", "english", {"東"}),
        ("ｶﾀｶﾅ", "english", {"カタ", "タカ", "カナ"}),
        ("２３２ °C", "english", {"232", "c"}),
        ("Straße", None, {"strasse"}),
        ("", "english", set()),
    ],
)
def test_terms(text, language, expected):
    """Words are folded and stemmed; runs of scripts without spaces give bigrams."""
    assert terms(text, language) == expected


def test_chinese_is_matched():
    """A question without spaces finds its sentence."""
    text = "铜是红色的。锡的熔点是232度。"
    assert snippet(text, "锡的熔点是多少", (text, "铁会生锈。")).snippet == "锡的熔点是232度。"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.1}, "threshold is 1.1; a share from 0 to 1 was expected"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"of_best": 2}, "of_best is 2; a share from 0 to 1 was expected"),
        ({"frequencies": {"a": 1}}, r"without documents; use Lexical.fitted\(dataset\)"),
        ({"language": "klingon"}, "no stemmer for 'klingon'; expected one of .*english.*german.*, or None"),
    ],
)
def test_wrong_options(options, message):
    """Every option names what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        arhn.Lexical(**options)
