"""What servers say where they give no completion: the wordings of many of them, and what they must not be taken for."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from arhn_datasets import errors
from arhn_datasets.annotators.client import outlook
from arhn_datasets.annotators.client.contract import ChatRequest, Completion, parse_completion, parse_context
from arhn_datasets.annotators.client.cutting import Cutting
from arhn_datasets.annotators.client.refusals import (
    error_of,
    error_within,
    excerpt,
    json_of,
    place_of,
    refused_option,
)
from arhn_datasets.rows.records import alike
from tests.annotators.client.test_contract import ask, chat, client_of, named, plain
from tests.fakes.served import CHAT, NO_INFO, always, completion, said, served, when


def said_so(message, **fields):
    """The body of an error as OpenAI words it."""
    return {"error": {"message": message, **fields}}


TALL = "It is 212 metres tall."


# -- too long ---------------------------------------------------------------------------------------------------------

TOO_LONG = [
    # SGLang
    (
        400,
        {"object": "error", "message": "Input length (2168 tokens) exceeds the maximum allowed length (600 tokens)."},
    ),
    (400, {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."}),
    (400, {"message": "Requested token count exceeds the model's maximum context length of 4096 tokens."}),
    # OpenAI, Azure, Groq, Cerebras
    (400, said_so("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")),
    (400, said_so("Your input exceeds the context window of this model. Please adjust your input and try again.")),
    (400, said_so("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000.")),
    (
        400,
        said_so("Invalid 'messages[0].content': string too long. Expected 10485760.", code="string_above_max_length"),
    ),
    (400, said_so("Please reduce the length of the messages or completion.", code="context_length_exceeded")),
    (400, said_so("Current length is 9000 while limit is 8192")),
    (429, said_so("Please reduce the length.", code="context_length_exceeded")),
    # vLLM
    (400, said_so("This model's maximum context length is 2048 tokens. However, your prompt contains 2049.", code=400)),
    (400, {"message": "The decoder prompt (length 3000) is longer than the maximum model length of 2048."}),
    (
        400,
        said_so(
            "max_tokens is too large: 384. This model's maximum context length is 2048 tokens and your request has"
        ),
    ),
    # TensorRT-LLM
    (500, {"error": "Prompt length (5000) exceeds maximum input length (4096). Set log level to info"}),
    (400, {"message": "The sum of prompt length (9000.0), query length (0) should not exceed max_num_tokens (8192)"}),
    (500, {"detail": "default_max_tokens (-4) must be greater than 0, default_max_tokens = max_seq_len (512) - 516"}),
    # llama.cpp, llama-cpp-python
    (400, said_so("request (9031 tokens) exceeds the available context size (8192 tokens)", code=400)),
    (500, said_so("the request exceeds the available context size. try increasing the context size")),
    (400, said_so("no words of it", type="exceed_context_size_error", n_ctx=8192)),
    (500, said_so("Requested tokens (5000) exceed context window of 4096", code="context_length_exceeded")),
    # DashScope
    (400, said_so("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 600]")),
    # Zhipu, Baidu, Perplexity, AI21, Snowflake
    (400, said_so("Prompt 超长", code="1261")),
    (400, said_so("the max input characters is 516096", code="invalid_argument")),
    (400, said_so("Messages have 700 tokens, which exceeds the max limit of 600 tokens.")),
    (400, {"detail": "Request has 2168 tokens, which exceed the limit of 600"}),
    (400, {"message": "max tokens of 600 exceeded"}),
    # Anthropic, Bedrock
    (400, {"type": "error", **said_so("prompt is too long: 210000 tokens > 200000 maximum")}),
    (400, said_so("input length and `max_tokens` exceed context limit: 190000 + 20000 > 204698")),
    (413, said_so("Request exceeds the maximum size", type="request_too_large")),
    (400, {"message": "Input is too long for requested model."}),
    # Gemini, Vertex
    (400, [said_so("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).")]),
    (
        400,
        said_so("Unable to submit request because the input token count is 40000 but model only supports up to 32768"),
    ),
    (400, said_so("Request payload size exceeds the limit: 20971520 bytes.")),
    # text-generation-inference
    (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"}),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1900"}),
    (413, "length limit exceeded"),
    (413, "<html><head><title>413 Request Entity Too Large</title></head></html>"),
    # Ollama, LM Studio
    (400, said_so("the input length exceeds the context length")),
    (500, {"error": "prompt too long; exceeded max context length by 12 tokens"}),
    (400, {"error": "Trying to keep the first 5000 tokens when context the overflows. The context length is 4096."}),
    # Mistral, xAI, Moonshot, Fireworks, Cohere, Databricks, OpenRouter, LiteLLM
    (400, {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"}),
    (400, {"error": "This model's maximum prompt length is 131072 but the request contains 150000 tokens."}),
    (400, said_so("Invalid request: Your request exceeded model token limit: 8192", type="invalid_request_error")),
    (400, said_so("The prompt is too long: 10000, model maximum context length: 8192")),
    (400, {"message": "too many tokens: size limit exceeded by 11326 tokens."}),
    (400, said_so("Exceeded max input token size. Input tokens exceed 4096")),
    (400, said_so("litellm.ContextWindowExceededError: it is too much", code="400")),
    (
        400,
        said_so(
            "Provider returned error", code=400, metadata={"raw": json.dumps(said_so("prompt is too long: 9 > 8"))}
        ),
    ),
]
NOT_TOO_LONG = [
    (
        429,
        said_so("Rate limit reached on tokens per min (TPM): Limit 30000, Requested 1000.", code="rate_limit_exceeded"),
    ),
    (429, said_so("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 34567.")),
    (400, said_so("Rate limit: input tokens exceed the limit per minute")),
    (400, said_so("max_tokens is too large: 5000. This model supports at most 4096 completion tokens")),
    (400, said_so("`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens`")),
    (422, {"error": "Input validation error: `max_new_tokens` must be strictly positive"}),
    (400, said_so("'temperature' is too large: 3")),
    (500, said_so("The request took too long to process")),
    (504, "<html>504 Gateway Time-out</html>"),
    (500, {"error": "CUDA out of memory"}),
    (401, said_so("Your key has no access to models with a context length of 1M")),
    (404, said_so("The model `foo-128k-context window` does not exist")),
    (400, said_so("Template error: unknown filter")),
    (400, said_so("The prompt was blocked")),
]


def error_for(status, body):
    """The error of a status and a body, as text or as JSON."""
    return error_of(status, (body if isinstance(body, str) else json.dumps(body)).encode())


@pytest.mark.parametrize(("status", "body"), TOO_LONG, ids=lambda value: str(value)[:60])
def test_a_prompt_that_is_too_long_in_the_words_of_many_servers(status, body):
    """By code, type or wording, with any status: the passage is cut, and asked again."""
    assert type(error_for(status, body)) is errors.PromptTooLong


@pytest.mark.parametrize(("status", "body"), NOT_TOO_LONG, ids=lambda value: str(value)[:60])
def test_what_only_sounds_like_too_long(status, body):
    """A limit of rates, a parameter, a slow server: cutting a passage would lose its end for nothing."""
    assert type(error_for(status, body)) is not errors.PromptTooLong


@pytest.mark.parametrize("sent", [TOO_LONG[0], TOO_LONG[14], TOO_LONG[20]], ids=["sglang", "tensorrt", "dashscope"])
def test_a_passage_that_is_too_long_is_cut(sent):
    """The part that fits is read, and the detail says how much it was."""
    import arhn_datasets as arhn

    status, body = sent
    long = when(lambda request: len(str(request.body)) > 2500, lambda: web.json_response(body, status=status))
    row = {"query": "how tall is it", "positive_passages": [], "negative_passages": []}
    row["negative_passages"] = [{"docid": "n", "title": "", "text": "It is 212 metres tall. " + "And so on. " * 2000}]
    with served(reply="It is 212 metres tall.", faults=[NO_INFO], intercept=long) as server:
        (snippet,) = arhn.snippets.with_options(endpoint=server.url, cache="none")(row)["negative_snippets"]
    assert (snippet["status"], snippet["snippet"]) == ("grounded", "It is 212 metres tall.")
    assert "of the passage was read" in snippet["detail"]


# -- named errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "said", "advice", "lasting"),
    [
        (402, said_so("Insufficient credits"), "402, no credits or quota: Insufficient credits", "credits", True),
        (429, said_so("You exceeded", code="insufficient_quota"), "429, no credits or quota", "credits", True),
        (400, said_so("Your credit balance is too low"), "400, no credits or quota: Your credit", "credits", True),
        (401, said_so("Incorrect API key"), "401: Incorrect API key", "ARHN_API_KEY", True),
        (400, said_so("Authentication Error, Invalid proxy server token passed"), "400: Auth", "ARHN_API_KEY", True),
        (500, said_so("Authentication Error, No api key passed in."), "500: Auth", "ARHN_API_KEY", True),
        (403, "<title>Blocked</title><h1>Sorry</h1>", "403: Blocked Sorry", "firewall", False),
        (403, said_so("Your input was flagged"), "403, content filter: Your input", None, False),
        (400, said_so("It was filtered", code="content_filter"), "400, content filter: It was filtered", None, False),
        (404, said_so("The model `foo` does not exist."), "404: The model `foo` does not exist.", "--model", True),
        (400, said_so("Invalid model name passed in model=xx", code="400"), "400: Invalid model", "--model", True),
        (404, {"detail": "Not Found"}, "404: Not Found", "check the URL", True),
        (405, "", "405: no message", "check the URL", False),
        (400, said_so("no"), "400: no", None, False),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "is wrong"}]}, "422: body.n: is wrong", None, False),
    ],
)
def test_refusals_by_name_in_the_words_of_the_server(status, body, said, advice, lasting):
    """What it says, and what to do where it says so of every request."""
    error = error_for(status, body)
    assert type(error) is errors.RequestRejected
    assert str(error).startswith(said)
    assert (advice or "") in (error.advice or "")
    assert (error.advice is None) == (advice is None)
    assert error.lasting == lasting


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "Rate limit exceeded", "code": 429}, "user_id": "u"}, errors.EndpointOverloaded),
        ({"error": {"message": "Rate limit exceeded", "code": "rate_limit_exceeded"}}, errors.EndpointOverloaded),
        ({"error": {"message": "m", "code": "503"}, "choices": None}, errors.EndpointUnavailable),
        ({"error": {"message": "Provider returned error", "code": 502}}, errors.EndpointUnavailable),
        ({"error": {"message": "Model is overloaded"}}, errors.EndpointUnavailable),
        ({"error": {"message": "what", "code": 1234}}, errors.EndpointFailure),
        ({"error": "what"}, errors.EndpointFailure),
        ({"object": "error", "message": "too many requests"}, errors.EndpointOverloaded),
        ({"error": {"message": "Insufficient credits", "code": 402}}, errors.RequestRejected),
        ({"error": {"message": "prompt is too long: 9 > 8", "code": 400}}, errors.PromptTooLong),
        ({"id": None, "choices": None, "model": None}, errors.EndpointFailure),
        (
            {"choices": [{"message": {"content": "hal"}, "error": {"code": 502, "message": "m"}}]},
            errors.EndpointUnavailable,
        ),
        ({"choices": [{"message": {"content": "hal"}, "finish_reason": "error"}]}, errors.EndpointFailure),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_an_error_inside_a_200(body, kind, separators):
    """It is that error, with the status that it names, and what stands beside it is no reply."""
    with pytest.raises(errors.EndpointError) as caught:
        parse_completion(json.dumps(body, separators=separators).encode())
    assert type(caught.value) is kind


@pytest.mark.parametrize("text", ['{"error": "none"}', '"choices": null', 'it says "error"', "error"])
def test_a_reply_that_speaks_of_errors_is_a_reply(text):
    """Only what the server says itself is an error; null says that there is none."""
    body = {**completion(text), "error": None}
    assert parse_completion(json.dumps(body).encode()).text == text


def test_a_rate_limit_in_a_200_costs_no_attempt():
    """The limit is lowered and the request waits, as it does for the status."""
    busy = when(
        lambda request: request.number <= 8,
        lambda: web.json_response(said_so("Rate limit exceeded", code=429)),
    )

    async def main(client):
        await asyncio.gather(*(chat(client) for _ in range(6)))
        return client.statistics

    with served(reply="x", faults=[NO_INFO], intercept=busy) as server:
        found = ask(server.url, main, attempts=1, backoff=0.01)
    assert (found.overloads, found.failures, found.replies) == (8, 0, 6)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["error", "message", "detail", "code", "type", "choices", "msg", "loc", "metadata", "raw", "x"]
                ),
                inner,
            )
        ),
    ),
    st.integers(300, 599),
)
def test_no_body_is_too_odd(value, status):
    """Whatever JSON comes with whatever status is an error of ours with a message that Arrow takes."""
    body = json.dumps(value).encode()
    error = error_of(status, body)
    assert isinstance(error, errors.EndpointError)
    assert str(error).encode().startswith(str(status).encode())
    assert error_within(body) is None or isinstance(error_within(body), errors.EndpointError)
    assert json_of(body) == value
    assert refused_option(status, body, {"n": 1}) is None
    alike(str(error))


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (
            "<!DOCTYPE html><title>Attention!</title><style>p {}</style><h1>Sorry &amp; bye</h1>",
            "Attention! Sorry & bye",
        ),
        ("<html><script>var x = '<p>';</script><body>Down</body></html>", "Down"),
        ("<400> InternalError.Algo: no page", "<400> InternalError.Algo: no page"),
        ("<html></html>", "<html></html>"),
    ],
)
def test_a_page_is_told_as_its_text(page, text):
    """Without tags, styles and scripts; what only begins like one stays."""
    assert excerpt(page) == text or excerpt(page) == ""


# -- options that a server takes not ----------------------------------------------------------------------------------

SENT = {"model": "m", "messages": [], "max_tokens": 9, "temperature": 0, "stream": False, "chat_template_kwargs": {}}


@pytest.mark.parametrize(
    ("body", "option"),
    [
        (said_so("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), "max_tokens"),
        (said_so("It is not supported", param="temperature", code="unsupported_value"), "temperature"),
        (said_so("'temperature' does not support 0 with this model."), "temperature"),
        (said_so("`temperature` is deprecated for this model."), "temperature"),
        (said_so("temperature: Input should be greater than 0"), "temperature"),
        (said_so("`temperature` must be strictly positive"), "temperature"),
        (said_so("chat_template is not supported for Mistral tokenizers."), "chat_template_kwargs"),
        (said_so("Unrecognized request argument supplied: chat_template_kwargs"), "chat_template_kwargs"),
        ({"detail": [{"loc": ["body", "chat_template_kwargs"], "msg": "no"}]}, "chat_template_kwargs"),
        (said_so("Extra inputs are not permitted"), "chat_template_kwargs"),
        (said_so("Unknown parameter: 'enable_thinking'"), "chat_template_kwargs"),
        (said_so("max_tokens is too large: 5000. This model supports at most 4096 completion tokens"), None),
        (said_so("Extra inputs are not permitted: messages"), None),
        (said_so("Template error"), None),
    ],
)
def test_which_option_is_refused(body, option):
    """By its name in the message or beside it; a value out of range is another matter."""
    assert refused_option(400, json.dumps(body).encode(), SENT) == option
    assert refused_option(500, json.dumps(body).encode(), SENT) is None


def test_refused_options_are_left_out_and_a_sampled_reply_is_no_greedy_one(tmp_path):
    """All three in turn, once; the store keeps what was sampled under another key."""
    import arhn_datasets as arhn

    def refuse(request):
        for name in ("chat_template_kwargs", "max_tokens", "temperature"):
            if request.path == CHAT and name in request.body:
                return web.json_response(said_so(f"Unsupported parameter: '{name}'"), status=400)
        return None

    row = {"query": "q", "positive_passages": [], "negative_passages": [{"docid": "n", "title": "", "text": TALL}]}
    with served(reply=TALL, faults=[NO_INFO], intercept=refuse) as server:
        stage = arhn.snippets.with_options(endpoint=server.url, cache=str(tmp_path))
        assert stage(row)["negative_snippets"][0]["status"] == "grounded"
        assert server.stats.requests == 4
        assert server.bodies[-1]["max_completion_tokens"] == 64  # what a snippet of so short a passage can need
        stage(row)
        assert server.stats.requests == 4
        greedy = arhn.snippets.with_options(endpoint=server.url, cache=str(tmp_path), timeout=99)
        server.intercept = None
        greedy(row)
        assert server.stats.requests == 5


# -- redirects and models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_url_to_give(status):
    """From /v1/models, and from the chat alone; the message has no password, and nothing follows it."""
    place = {"Location": "https://user:word@there.invalid/base/v1/chat/completions"}
    away = always(lambda: web.Response(status=status, headers=place), path=None)
    with served(faults=[NO_INFO], intercept=away) as server:
        with pytest.raises(
            errors.ConfigurationError, match=r"redirects to https://there\.invalid/base.*Name that"
        ) as one:
            ask(server.url)
        with pytest.raises(errors.AccessDenied, match=r"Name that server: https://there\.invalid/base$") as two:
            ask(server.url, model="m", api="openai")
    assert "word" not in f"{one.value} {two.value}"
    assert place_of("http://h/p/", "/other") == "http://h/other"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500])
def test_a_list_of_models_that_is_refused_is_no_obstacle_for_a_named_one(status):
    """The chat's own status decides; without a name the server's own words are told."""
    with named(lambda: web.json_response(said_so("wrong key of yours"), status=status)) as server:
        server.reply = "x"
        assert ask(server.url, model="m").text == "x"
        with pytest.raises(errors.ArhnError, match="wrong key of yours"):
            ask(server.url, attempts=1)


def test_a_wrong_model_of_several_names_them_all():
    """And no other is asked in its place."""
    with named(lambda: web.json_response({"data": [{"id": "a:latest"}, {"id": "b"}]})) as server:
        with pytest.raises(errors.ConfigurationError, match="has no model a; it has a:latest, b"):
            ask(server.url, model="a")
        assert not server.stats.requests


# -- when the run ends ------------------------------------------------------------------------------------------------


def asked_of(server, count, **options):
    """What so many requests at once end with."""

    async def main():
        client = client_of(server.url, **options)
        try:
            return await asyncio.gather(*(chat(client) for _ in range(count)), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(main())


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 302])
def test_one_refusal_is_its_own_and_all_of_them_end_the_run(status):
    """Also where the refused one is the first of all, and is answered before the others."""

    def refusal():
        return plain(status, "<h1>Blocked</h1>", headers={"Location": "/x"})

    with served(reply=said, intercept=when(lambda request: request.number == 1, refusal)) as server:
        found = asked_of(server, 7)
    assert [type(one) for one in found].count(errors.RequestRejected) == 1
    assert [type(one) for one in found].count(Completion) == 6
    with served(reply=said, intercept=always(refusal)) as server:
        found = asked_of(server, 7)
    assert {type(one) for one in found} == {errors.AccessDenied}
    assert str(status) in str(found[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: web.json_response(said_so("no such thing as n"), status=400), "32 x 400: no such thing as n"),
        (lambda: web.json_response(said_so("out of order"), status=500), "32 x 500: out of order"),
        (lambda: web.json_response(completion(None)), "32 x the server answered 200 without a completion"),
        (lambda: web.json_response(completion(None, "length")), "32 x the model used all tokens before its first word"),
    ],
)
def test_a_run_of_which_nothing_is_answered_ends_early(make, said):
    """After some tens that failed alike, with the server's words; a few are errors of their own."""
    with served(intercept=always(make)) as server:
        few = asked_of(server, 5, attempts=1)
        many = asked_of(server, 200, attempts=1)
    assert errors.AccessDenied not in {type(one) for one in few}
    told = [str(one) for one in many if isinstance(one, errors.AccessDenied)]
    assert told
    assert said in told[0]
    assert "same command again" in told[0]


def settled(*events, known=False):
    """What an outlook makes of a sequence of events, one after the other: True for an answer, else an error."""

    async def main():
        found, view = [], outlook.Outlook("it", lambda: known)
        for event in events:
            if event is True:
                view.answered()
                continue
            try:
                await view.failed(event, lambda: 1)
                found.append("own")
            except errors.AccessDenied:
                found.append("end")
        return found

    return asyncio.run(main())


def test_refusals_after_answers():
    """One that may be of a prompt never ends a run in which others are answered; a lasting one does after some tens."""
    blocked = errors.RequestRejected("403: no", advice="see")
    unpaid = errors.RequestRejected("402: no", advice="pay", lasting=True)
    long = errors.PromptTooLong("400: long")
    assert settled(True, *[blocked] * 99) == ["own"] * 99
    assert settled(True, *[blocked] * 255, True, *[blocked] * 256) == ["own"] * 510 + ["end"]
    assert settled(True, *[blocked] * 300, known=True) == ["own"] * 300
    assert settled(*[blocked] * 99, known=True) == ["own"] * 99
    assert settled(True, *[unpaid] * 31, True, *[unpaid] * 32) == ["own"] * 62 + ["end"]
    assert settled(blocked) == settled(unpaid) == ["end"]
    assert settled(*[long] * 99) == ["own"] * 99


# -- a server that cuts the prompt ------------------------------------------------------------------------------------


def prompt(characters, text="lorem ipsum "):
    """A request of so many characters."""
    return ChatRequest(messages=({"role": "user", "content": (text * characters)[:characters]},), max_tokens=100)


def judged(cutting, characters, tokens, **fields):
    """Whether a completion of so many tokens is taken as the reply to a whole prompt."""
    try:
        cutting.check(prompt(characters), Completion(text="x", prompt_tokens=tokens, **fields))
    except errors.PromptTooLong:
        return False
    return True


def test_a_context_that_the_server_declares():
    """A prompt that filled it was cut, and one that cannot fit is not asked."""
    cutting = Cutting()
    cutting.context = 4096
    assert judged(cutting, 12_000, 3000, completion_tokens=9)
    assert not judged(cutting, 12_000, 4096)
    assert not judged(cutting, 12_000, 4000, completion_tokens=95)
    cutting.foresee(prompt(12_000))
    with pytest.raises(errors.PromptTooLong, match="a context of 4,096 tokens") as caught:
        cutting.foresee(prompt(40_000))
    assert 0.2 < caught.value.ratio < 0.5


@pytest.mark.parametrize(
    ("asked", "whole"),
    [
        ([(35_000, 4096)], [False]),  # far below what any tokenizer makes of it
        ([(6_200, 1024)], [False]),  # a round number, and fewer tokens than a text has
        ([(6_200, 924)], [False]),  # the same, with room for the reply
        ([(5_000, 1300), (7_000, 1300)], [True, False]),  # stands at one value
        ([(5_000, 1300), (5_100, 1300)], [True, True]),
        ([(35_000, 1000), (4_000, 1001)], [False, True]),  # it was no limit
        ([(1_200, 10), (9_000, 10), (50_000, 10)], [True, True, True]),  # a server that counts nothing
        ([(1_200, 0), (9_000, 1)], [True, True]),
        ([(4_500, 1000), (9_000, 2000), (9_000, 4000)], [True, True, True]),
    ],
)
def test_a_context_that_counts_of_tokens_show(asked, whole):
    """Only a count that no whole prompt has makes its reply void."""
    cutting = Cutting()
    assert [judged(cutting, *one) for one in asked] == whole


@given(st.lists(st.tuples(st.integers(300, 40_000), st.floats(1.5, 4.9)), max_size=40))
def test_honest_counts_are_believed(asked):
    """Whatever the lengths, as long as no two different prompts have the very same highest count."""
    cutting, seen = Cutting(), set()
    for characters, per_token in asked:
        tokens = int(characters / per_token)
        if tokens not in seen:
            assert judged(cutting, characters, tokens)
        seen.add(tokens)


def test_runs_of_signs_are_few_tokens():
    """A long line of dots or blanks is no prompt that was cut."""
    cutting = Cutting()
    dots = ChatRequest(messages=({"role": "user", "content": "word " * 2000 + "." * 20_000},), max_tokens=100)
    cutting.check(dots, Completion(text="x", prompt_tokens=2600))


@pytest.mark.parametrize(
    ("body", "context"),
    [
        ({"models": [{"name": "other", "context_length": 1}, {"name": "m", "context_length": 4096}]}, 4096),
        ({"models": [{"model": "m", "context_length": "4096"}]}, None),
        ({"models": [{"name": "m"}]}, None),
        ({"models": []}, None),
        ({"default_generation_settings": {"n_ctx": 8192}, "total_slots": 4}, 8192),
        ({"default_generation_settings": []}, None),
        ([], None),
    ],
)
def test_the_context_of_a_loaded_model(body, context):
    """Of the model that is asked, as Ollama and llama-server say it."""
    assert parse_context(json.dumps(body).encode(), "m") == context


@pytest.mark.parametrize("told", ["before", "after", "never"])
def test_a_reply_to_a_prompt_that_was_cut_is_no_evidence(told, tmp_path):
    """As Ollama does it: the passage is cut to what is read, and nothing of a cut prompt is stored."""
    import arhn_datasets as arhn

    context, loaded = 1024, [told == "before"]

    def cuts(request):
        if request.path == "/api/ps" and told != "never":
            models = [{"name": "some/model", "context_length": context}] if loaded[0] else []
            return web.json_response({"models": models})
        if request.path != CHAT:
            return None
        loaded[0] = True
        text = "\n".join(message["content"] for message in request.body["messages"])
        tokens = len(text) // 4
        if tokens > context:
            text, tokens = text[:16] + text[-4 * context :], context
        body = completion("It is 212 metres tall." if "It is 212 metres tall." in text else "NO_ANSWER")
        return web.json_response({**body, "usage": {"prompt_tokens": tokens, "completion_tokens": 9}})

    row = {"query": "how tall is it", "positive_passages": [], "negative_passages": []}
    row["negative_passages"] = [{"docid": "n", "title": "", "text": "It is 212 metres tall. " + "And so on. " * 2000}]
    with served(faults=[NO_INFO], intercept=cuts) as server:
        stage = arhn.snippets.with_options(endpoint=server.url, cache=str(tmp_path))
        (snippet,) = stage(row)["negative_snippets"]
        asked = server.stats.requests
        assert stage(row)["negative_snippets"] == [snippet]
    assert (snippet["status"], snippet["snippet"]) == ("grounded", "It is 212 metres tall.")
    assert "of the passage was read" in snippet["detail"]
    assert asked >= 1


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached for m on requests per min (RPM): Limit 3, Used 3. Please try again in 20s. Visit ...", 20),
        ("No deployments available for selected model, Try again in 60 seconds. Passed model=m.", 60),
        ("Please try again in 6m0s.", 300),
        ("try again in 1m1.5s", 61.5),
        ("try again in 20ms", 0.02),
        ("try again in 250 milliseconds", 0.25),
        ("Please retry in 34.5s.", 34.5),
        ("Please retry after 15 seconds.", 15),
        ("Requests rate limit exceeded, retry after 5", 5),
        ("please wait 2 minutes", 120),
        ("Try again in 45 seconds or ask for a higher limit", 45),
        ("try again in 1h2m3s", 300),
        ("wait for another 3 min", 180),
        ("try again later", None),
        ("wait a moment, 3 models are busy", None),
        ("retry after 3 models are loaded", None),
        ("Limit 100 per minute", None),
        ("try again in 0s", None),
    ],
)
def test_a_message_that_says_when_to_come_back(message, seconds):
    """Like Retry-After, which comes first where there are both."""
    body = json.dumps({"error": {"message": message}}).encode()
    assert error_of(429, body).retry_after == seconds
    assert error_of(429, body, "7").retry_after == 7
