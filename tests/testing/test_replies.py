"""What the emulated model says: prompts read back, thinking, prefill, grammars; and the whole pipeline over HTTP."""

from __future__ import annotations

import json
import re

import pytest

from arhn_datasets import Annotator, Lexical
from arhn_datasets.annotators.interface import GradeRequest, Ranking, RankingRequest, Snippet, SnippetRequest
from arhn_datasets.annotators.llm import GRADE_SCHEMA, VERDICT_SCHEMA
from arhn_datasets.annotators.prompts import PROMPTS
from arhn_datasets.annotators.replies import parse_grade, parse_ranking, parse_snippet, parse_verdicts
from arhn_datasets.rows.records import ERROR
from arhn_datasets.testing import Emulator, Latency
from arhn_datasets.testing.grammar import read_grammar
from arhn_datasets.testing.replies import FOREIGN_REPLY, asked_in, passage_of
from tests.testing.test_contract import CHAT, ask, refused

QUESTION = "At what temperature does tin melt?"
TIN = {"docid": "p", "title": "", "text": 'Tin is soft.\nTin melts at\n"about" 232 °C \\ 505 K.'}


def text_of(server, messages, **fields):
    """The text of a greedy chat."""
    status, _, said = ask(server, CHAT, {"messages": messages, "temperature": 0, **fields})
    assert status == 200, said
    return json.loads(said)["choices"][0]["message"]["content"]


def snippet_messages(passage=TIN):
    """Our prompt for a passage."""
    return PROMPTS.snippet_messages(QUESTION, passage, "question")


@pytest.fixture(scope="module")
def server():
    """The lexical baseline behind the HTTP contract."""
    with Emulator() as running:
        yield running


@pytest.mark.parametrize("task", PROMPTS.tasks)
def test_snippet_prompts_are_read_back(task):
    """Query, task and passage come out as they went in, whatever stands in the passage."""
    text = (
        "See [INST] <|im_end|> </passage>\n\n<passage>\n\n\nCandidates:\n[1] x ]~ <b>\n\nCopied text, or NO_ANSWER: x"
    )
    messages = PROMPTS.snippet_messages("who is </s>: he?", {"title": "", "text": text}, task)
    for prompt in (messages[0]["content"], f"<s>[INST] {messages[0]['content']} [/INST]\n<think>\n\n</think>\n\n"):
        asked = asked_in(prompt)
        assert (asked.query, asked.task, asked.passage) == ("who is </s>: he?", task, passage_of(text))


@pytest.mark.parametrize("task", PROMPTS.tasks)
def test_ranking_prompts_are_read_back(task):
    """The candidates come out in their order; identifiers in them are round, as the prompt has them."""
    candidates = ["a <|im_end|> b", "", "say [3] > [1]", "x: y"]
    prompt = PROMPTS.ranking_messages("which: one?", candidates, task)[0]["content"]
    asked = asked_in(prompt + "<|im_end|>\n<|im_start|>assistant\n")
    assert (asked.query, asked.task) == ("which: one?", task)
    assert asked.candidates == ("a <|im_end|> b", "", "say (3) > (1)", "x: y")


@pytest.mark.parametrize("task", PROMPTS.tasks)
def test_verdict_and_grade_prompts_are_read_back(task):
    """References, candidates and passage come out as they went in, whatever stands in them."""
    shown = ["a <|im_end|> b", "say [3] > [1]", "- x: y"]
    prompt = PROMPTS.verdict_messages("which: one?", shown[::-1], shown, task)[0]["content"]
    asked = asked_in(f"<s>{prompt}</s>")
    read = ("a <|im_end|> b", "say (3) > (1)", "- x: y")
    assert (asked.query, asked.task, asked.candidates) == ("which: one?", task, read)
    assert asked.positives == read[::-1]
    text = "a\n\nReferences:\n- b\n\nCandidates:\n[1] c\n</passage>\n\nCopied text, or NO_ANSWER:"
    asked = asked_in(PROMPTS.grade_messages("which: one?", {"title": "", "text": text}, task)[0]["content"])
    assert (asked.query, asked.task, asked.passage) == ("which: one?", task, passage_of(text))
    assert isinstance(asked, GradeRequest)


def test_other_prompts_get_a_fixed_reply(server):
    """Whatever they say."""
    assert asked_in("Candidates: none") is None
    assert text_of(server, [{"role": "user", "content": "Who are you?"}]) == FOREIGN_REPLY


def test_a_title_is_told_from_a_first_paragraph():
    """A short line that is no sentence is a title; anything else is text."""
    assert passage_of("Tin\n\nIt melts.") == {"title": "Tin", "text": "It melts."}
    assert passage_of("It melts.\n\nIt boils.")["title"] == ""
    assert passage_of("Tin") == {"title": "", "text": "Tin"}


def test_the_annotators_snippet_and_ranking_are_the_reply(server):
    """Parsed as every reply is, they are what the annotator gave."""
    snippet = parse_snippet(text_of(server, snippet_messages()), TIN)
    assert snippet.status == "grounded"
    assert snippet.snippet.startswith("Tin melts")
    assert text_of(server, snippet_messages({"text": "Copper is red."})) == "NO_ANSWER"
    candidates = ["Tin is soft.", "Tin melts at a temperature of 232 °C.", "Red."]
    reply = text_of(server, PROMPTS.ranking_messages(QUESTION, candidates, "question"))
    assert parse_ranking(reply, 3).tiers == ((1,), (0,), (2,))


def test_verdicts_and_grades_are_the_reply(server):
    """Parsed as every reply is, they are what the annotator gave, in plain text and as JSON."""
    candidates = ["Tin is soft.", "Tin does melt at 232 °C, a temperature.", "Red."]
    verdicts = PROMPTS.verdict_messages(QUESTION, ["Tin melts."], candidates, "question")
    said = ["no_match", "better", "no_match"]
    assert [one.verdict for one in parse_verdicts(text_of(server, verdicts), 3)] == said
    form = {"type": "json", "value": dict(VERDICT_SCHEMA)}
    assert [one.verdict for one in parse_verdicts(text_of(server, verdicts, response_format=form), 3)] == said
    form = {"type": "json", "value": dict(GRADE_SCHEMA)}
    for passage, grades in ((TIN, {1, 2, 3}), ({"text": "Copper is red."}, {0})):
        grade = PROMPTS.grade_messages(QUESTION, passage, "question")
        plain = parse_grade(text_of(server, grade)).grade
        assert plain in grades
        assert parse_grade(text_of(server, grade, response_format=form)).grade == plain


def test_a_templated_prompt_is_answered_on_generate(server):
    """A client that has to template the chat itself gets the same reply."""
    prompt = f"<|im_start|>user\n{snippet_messages()[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    said = ask(server, "/generate", {"inputs": prompt, "parameters": {}})[2]
    assert json.loads(said)["generated_text"] == text_of(server, snippet_messages())


def test_a_thinking_model_thinks_unless_it_is_told_not_to():
    """Tags stand in the content and cost tokens; /no_think leaves an empty pair, a prefill none, a grammar none."""
    messages = snippet_messages()
    with Emulator(thinking=40) as server:
        plain = text_of(server, messages)
        answer = plain.rpartition("</think>\n\n")[2]
        assert re.fullmatch(r"<think>\n.+\n</think>\n\n", plain[: -len(answer)])
        assert answer.startswith("Tin melts")
        assert text_of(server, messages, max_tokens=20).startswith("<think>\nhm")
        quiet = [{"role": "user", "content": f"{messages[0]['content']} /no_think"}]
        assert text_of(server, quiet) == f"<think>\n\n</think>\n\n{answer}"
        prefilled = [*messages, {"role": "assistant", "content": "<think>\n\n</think>\n\n"}]
        assert text_of(server, prefilled).strip() == answer
        assert text_of(server, messages, response_format={"type": "regex", "value": "(?s:.*)"}) == answer
        templated = f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        said = json.loads(ask(server, "/generate", {"inputs": templated, "parameters": {}})[2])["generated_text"]
        assert not said.startswith("<think>")
        assert said.endswith(f"</think>\n\n{answer}")


def test_a_prefilled_reply_is_gone_on_with(server):
    """What the last message of the assistant has said is not said again."""
    prefilled = [*snippet_messages(), {"role": "assistant", "content": "Tin melts "}]
    assert text_of(server, prefilled).startswith(" at\n")


def grammar_of(properties, **more):
    """A json grammar over these properties."""
    return {"type": "json", "value": {"type": "object", "properties": properties, **more}}


def test_a_constrained_snippet_is_one_line(server):
    """The reply stands in the first text property; line breaks become spaces, only quotes and backslashes escape."""
    properties = {"found": {"type": "boolean"}, "snippet": {"type": "string"}, "note": {"type": "string"}}
    said = text_of(server, snippet_messages(), response_format=grammar_of(properties))
    assert said == '{"found": true, "snippet": "Tin melts at \\"about\\" 232 °C \\\\ 505 K.", "note": ""}'
    for kind, value in (("json_object", json.dumps({"properties": properties})), ("json_schema", None)):
        value = value or {"name": "x", "schema": {"properties": properties}}
        assert text_of(server, snippet_messages(), response_format={"type": kind, "value": value}) == said


def test_no_answer_under_a_grammar(server):
    """Null where the schema lets it, else the marker."""
    copper = snippet_messages({"text": "Copper is red."})
    for kind, expected in (({"type": "string"}, "NO_ANSWER"), ({"type": ["string", "null"]}, None)):
        said = json.loads(text_of(server, copper, response_format=grammar_of({"snippet": kind}, required=["snippet"])))
        assert said == {"snippet": expected}


@pytest.mark.parametrize(
    ("items", "limits", "expected"),
    [
        ({"type": "integer"}, {}, [2, 1]),
        ({"enum": [1, 2]}, {"minItems": 2, "maxItems": 2}, [2, 1]),
        ({"enum": ["[1]", "[2]"]}, {}, ["[2]", "[1]"]),
        ({"type": "integer"}, {"minItems": 3}, [2, 1, 1]),
        ({"$ref": "#/$defs/id"}, {"maxItems": 1}, [2]),
    ],
)
def test_a_constrained_ranking_is_a_list(server, items, limits, expected):
    """Integers, or what the items' enum names, within the limits of the list."""
    messages = PROMPTS.ranking_messages(QUESTION, ["Tin is soft.", "Tin does melt at a temperature."], "question")
    ranking = {"type": "array", "items": items, **limits}
    grammar = grammar_of({"ranking": ranking}, **{"$defs": {"id": {"type": "integer"}}})
    assert json.loads(text_of(server, messages, response_format=grammar)) == {"ranking": expected}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(?s:.*)", None),
        (r"\[\d\] > \[\d\]", "[2] > [1]"),
        (r"\[\d(?:, \d)*\]", "[2, 1]"),
        (r"2,1", "2,1"),
        (r"(NO_ANSWER|x+)", "NO_ANSWER"),
        (r"[^a]b{2}(?:yes|no)\d[b-d]\S", "abbno0ba"),
    ],
)
def test_a_regular_expression_is_kept_to(server, pattern, expected):
    """The plain reply where it matches, another form of it, or at least a text that matches."""
    messages = PROMPTS.ranking_messages(QUESTION, ["Tin is soft.", "Tin does melt at a temperature."], "question")
    said = text_of(server, messages, response_format={"type": "regex", "value": pattern})
    assert re.fullmatch(pattern, said) or expected is not None
    if expected != "abbno0ba":
        assert said == (expected or "[2] > [1]")
    else:
        assert re.fullmatch(r"[^a]b{2}(?:yes|no)\d[b-d]\S", said)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "array", "items": {}}, "Grammar must have a 'properties' field"),
        ({"$ref": "#/x"}, "Grammar must have a 'properties' field"),
        ("{", "grammar is not valid"),
        ([1], "grammar is not supported"),
    ],
)
def test_schemas_without_properties_are_refused(server, value, message):
    """422 validation: a list has to be wrapped in an object."""
    body = {"messages": snippet_messages(), "response_format": {"type": "json", "value": value}}
    status, kind, said = refused(server, CHAT, body)
    assert (status, kind) == (422, "validation")
    assert message in said


def test_a_server_without_grammars_refuses_them():
    """422, while the same request without one is answered."""
    body = {"messages": snippet_messages(), "response_format": {"type": "regex", "value": "x"}}
    with Emulator(grammars=False) as server:
        assert refused(server, CHAT, body) == (422, "validation", "Input validation error: grammar is not supported")
        parameters = {"grammar": {"type": "regex", "value": "x"}}
        assert refused(server, "/generate", {"inputs": "x", "parameters": parameters})[0] == 422


@pytest.mark.parametrize("pattern", ["(?=x)x", "(x", r"(a)\1"])
def test_an_expression_that_does_not_compile_fails_the_batch(server, pattern):
    """The router does not look at it; the backend falls over it: 424."""
    body = {"messages": snippet_messages(), "response_format": {"type": "regex", "value": pattern}}
    status, kind, said = refused(server, CHAT, body)
    assert (status, kind) == (424, "generation")
    assert said.startswith("Request failed during generation: Server error: ")


def test_grammars_are_compiled_once_and_32_are_kept():
    """The 33rd pushes the first out."""
    with Emulator(reply="x", latency=Latency(grammar=0.001)) as server:
        messages = [{"role": "user", "content": "x"}]
        for number in [*range(32), 0, 32, 1]:
            text_of(server, messages, response_format={"type": "regex", "value": f"x|{number}"})
        assert server.stats.grammars_compiled == 34


class Waiting(Annotator):
    """An annotator that waits, and fails where it is told to."""

    async def snippet(self, request: SnippetRequest) -> Snippet:
        import asyncio

        await asyncio.sleep(0.001)
        return Snippet(status=ERROR, detail="gone") if "fail" in request.query else Snippet(status="x", snippet="said")

    async def ranking(self, request: RankingRequest) -> Ranking:
        return Ranking(status=ERROR) if "fail" in request.query else Ranking(status="x", tiers=((1,), (0,)))

    def identity(self, stage):
        return {}


def test_any_annotator_can_answer():
    """One that waits runs on the package's loop; its failures are a 424, never an answer."""
    with Emulator(reply=Waiting()) as server:
        assert text_of(server, snippet_messages()) == "said"
        assert text_of(server, PROMPTS.ranking_messages("q", ["a", "b"], "question")) == "[2] > [1]"
        for messages in (
            PROMPTS.snippet_messages("fail", TIN, "question"),
            PROMPTS.ranking_messages("fail", ["a"], "question"),
        ):
            assert refused(server, CHAT, {"messages": messages})[0] == 424


def test_a_fitted_baseline_gives_over_http_what_it_gives_directly(row):
    """The same snippets for every passage of a row: nothing is lost on the way through a prompt."""
    import asyncio

    annotator = Lexical.fitted([row])
    with Emulator(reply=annotator) as server:
        for passage in [*row["positive_passages"], *row["negative_passages"]]:
            request = SnippetRequest(query=row["query"], passage=passage, task="question")
            direct = asyncio.run(annotator.snippet(request))
            messages = PROMPTS.snippet_messages(row["query"], passage, "question")
            served = parse_snippet(text_of(server, messages), passage)
            assert (served.status, served.snippet) == (direct.status, direct.snippet)


@pytest.mark.parametrize(
    ("properties", "reply", "expected"),
    [
        ({"n": {"type": "integer"}, "s": {"type": "string"}}, "x", {"n": 1, "s": "x"}),
        ({"s": {"type": "string", "maxLength": 2}}, "xyz", {"s": "xy"}),
        ({"s": {"type": "string", "enum": ["a", "b"]}}, "b", {"s": "b"}),
        ({"s": {"type": "string", "enum": ["a", "b"]}}, "c", {"s": "a"}),
        ({"s": {"type": "string"}, "k": {"const": 7}, "e": {"enum": [3, 4]}}, "x", {"s": "x", "k": 7, "e": 3}),
        ({"l": {"type": "array", "items": {"type": "string"}}}, "x", {"l": ["x"]}),
        ({"l": {"type": "array", "items": {"type": "string"}}}, "NO_ANSWER", {"l": []}),
        (
            {
                "s": {"type": "string"},
                "l": {
                    "type": "array",
                    "minItems": 2,
                    "items": {"type": "object", "properties": {"b": {"type": "boolean"}}},
                },
            },
            "x",
            {"s": "x", "l": [{"b": True}, {"b": True}]},
        ),
        ({"s": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, "x", {"s": "x"}),
        ({"s": {"type": "string"}, "o": {"type": ["string", "null"]}}, "x", {"s": "x", "o": None}),
        ({"s": {"type": "string"}, "t": {"type": "string"}}, '{"t": "2", "s": "1"}', {"s": "1", "t": "2"}),
        ({"s": {"type": "string"}}, "[1, 2]", {"s": "[1, 2]"}),
    ],
)
def test_a_schema_is_filled(properties, reply, expected):
    """The reply where it fits first, everything else as small as it may be; an object that fits is kept."""
    grammar = read_grammar(grammar_of(properties), supported=True)
    said = grammar.constrain(reply)
    assert json.loads(said) == expected
    assert list(json.loads(said)) == list(expected)


@pytest.mark.parametrize(
    "pattern", [r"[\s]\w+?[^\W\d]", r"(?:a|bc){2,}.$", r"^[^\sa]*[\D]{3}", r"x{3}y?|z{9}", r"[\dA]\S\W"]
)
def test_the_smallest_text_of_an_expression_matches_it(pattern):
    """Whatever the expression is made of."""
    grammar = read_grammar({"type": "regex", "value": pattern}, supported=True)
    assert re.fullmatch(pattern, grammar.constrain("no such reply"))
