"""The emulator against TGI's HTTP contract: routes, order of checks, refusals, shapes."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from urllib.parse import urlsplit

import pytest

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import Emulator, Latency
from arhn_datasets.testing.tokens import count, generated, pieces, room, tokenised

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Say hello"}], "temperature": 0}


def ask(server, path, body=None, method=None, **headers):
    """Status, headers and body of one request; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        data = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        sent = {"Content-Type": "application/json"} if data is not None else {}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read().decode()
    finally:
        connection.close()


def chat(server, **fields):
    """The reply to a chat request that has to succeed."""
    status, _, said = ask(server, CHAT, {**HELLO, **fields})
    assert status == 200, said
    return json.loads(said)


def refused(server, path, body):
    """Status, error type (None for text/plain) and message of a refusal."""
    status, headers, said = ask(server, path, body)
    if headers.get_content_type() == "text/plain":
        return status, None, said
    value = json.loads(said)
    assert set(value) == {"error", "error_type"}
    return status, value["error_type"], value["error"]


def events(said):
    """The events of a stream, the closing one as it is."""
    lines = [line for line in said.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@pytest.fixture(scope="module")
def server():
    """A server that answers everything with one sentence."""
    with Emulator(reply="Tin melts at 232 degrees.", max_input_tokens=200, max_total_tokens=1400) as running:
        yield running


def test_info_names_model_revision_and_limits(server):
    """/info has the fields that TGI 3.3 has, and no others."""
    status, _, said = ask(server, "/info")
    info = json.loads(said)
    assert status == 200
    assert set(info) == {
        *("model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of", "router", "version"),
        *("max_stop_sequences", "max_input_tokens", "max_total_tokens", "validation_workers", "sha", "docker_label"),
        "max_client_batch_size",
    }
    assert (info["max_concurrent_requests"], info["max_total_tokens"]) == (128, 1400)


def test_health_models_and_unknown_routes(server):
    """Health has an empty body, /v1/models one entry; other routes and methods are refused with an empty body."""
    assert ask(server, "/health")[::2] == (200, "")
    assert ask(server, "/")[::2] == (200, "")
    models = json.loads(ask(server, "/v1/models")[2])
    assert [entry["id"] for entry in models["data"]] == [server.model]
    assert ask(server, "/nothing")[::2] == (404, "")
    assert ask(server, CHAT)[::2] == (405, "")
    assert ask(server, "/info", "{}")[::2] == (405, "")


def test_the_reply_of_a_chat_has_tgis_shape(server):
    """The id is empty, the keys stand in TGI's order, usage adds up, the end of the text counts as a token."""
    reply = chat(server)
    assert list(reply) == ["object", "id", "created", "model", "system_fingerprint", "choices", "usage"]
    assert (reply["object"], reply["id"], reply["model"]) == ("chat.completion", "", server.model)
    [choice] = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Tin melts at 232 degrees."}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    usage = reply["usage"]
    assert usage["completion_tokens"] == len(pieces("Tin melts at 232 degrees.")) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_model_is_echoed_but_tgi_becomes_the_real_one(server):
    """Any other string is taken for an adapter, falls back to the base model, and comes back as it was sent."""
    assert chat(server, model="tgi")["model"] == server.model
    assert chat(server, model="dummy")["model"] == "dummy"


def test_unknown_fields_are_ignored(server):
    """chat_template_kwargs is one of them: the template never sees it."""
    assert chat(server, chat_template_kwargs={"enable_thinking": False}, top_k=3, n=4)["choices"][0]["index"] == 0


def test_timing_headers_stand_on_replies_and_not_on_errors(server):
    """The x- headers of a 200 are numbers; a refusal and a stream carry none of them."""
    _, headers, _ = ask(server, CHAT, HELLO)
    names = {name for name in headers if name.startswith("x-")}
    assert names == {
        *("x-compute-type", "x-compute-time", "x-compute-characters", "x-total-time", "x-validation-time"),
        *("x-queue-time", "x-inference-time", "x-time-per-token", "x-prompt-tokens", "x-generated-tokens"),
    }
    assert int(headers["x-prompt-tokens"]) > 0
    _, headers, _ = ask(server, CHAT, {**HELLO, "top_p": 1.0})
    assert not [name for name in headers if name.startswith("x-")]
    _, headers, _ = ask(server, CHAT, {**HELLO, "stream": True})
    assert {name.lower() for name in headers if name.lower().startswith("x-")} == {
        *("x-compute-type", "x-compute-characters", "x-accel-buffering"),
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages: invalid type: null, expected a sequence"),
        ({"messages": "hi"}, 'messages: invalid type: string "hi", expected a sequence'),
        ({"messages": [{"role": "user", "content": None}]}, "untagged enum MessageBody"),
        ({"messages": [{"content": "x"}]}, "messages[0]: missing field `role`"),
        ({"stop": "\n"}, 'stop: invalid type: string "\\n", expected a sequence'),
        ({"stop": [1]}, "stop[0]: invalid type: integer `1`, expected a string"),
        ({"seed": -1}, "seed: invalid value: integer `-1`, expected u64"),
        ({"max_tokens": -1}, "expected u32"),
        ({"max_tokens": 1.5}, "max_tokens: invalid type: floating point `1.5`, expected u32"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "duplicate field `max_tokens`"),
        ({"temperature": "0"}, 'temperature: invalid type: string "0", expected f32'),
        ({"temperature": False}, "expected f32"),
        ({"stream": None}, "stream: invalid type: null"),
        ({"stream_options": None}, "stream_options: invalid type: null"),
        ({"logit_bias": {"1": 2}}, "logit_bias: invalid type: map"),
        ({"response_format": {"type": "json_object"}}, "response_format: missing field `value`"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format: missing field `value`"),
        ({"response_format": {"type": "text"}}, "response_format: unknown variant `text`"),
        ({"response_format": {"type": "json_schema", "value": {}}}, "missing field `schema`"),
    ],
)
def test_a_body_of_the_wrong_form_is_refused_as_plain_text(server, fields, message):
    """Deserialisation comes before any code of TGI: 422, and no JSON."""
    status, kind, said = refused(server, CHAT, {**HELLO, **fields})
    assert (status, kind) == (422, None)
    assert said.startswith("Failed to deserialize the JSON body into the target type: ")
    assert message in said
    assert re.search(r" at line 1 column \d+$", said)


@pytest.mark.parametrize("body", [{"inputs": 1}, {"parameters": {}}, {"inputs": "x", "parameters": {"stop": None}}, []])
def test_generate_refuses_a_body_of_the_wrong_form(server, body):
    """The same on /generate."""
    assert refused(server, "/generate", body)[:2] == (422, None)


def test_media_type_json_and_size(server):
    """415, 400 and 413 are plain text."""
    assert ask(server, CHAT, "{}", Content_Type="text/plain")[0] == 415
    status, headers, said = ask(server, CHAT, "{broken")
    assert (status, headers.get_content_type()) == (400, "text/plain")
    assert said.startswith("Failed to parse the request body as JSON")
    status, _, said = ask(server, CHAT, json.dumps({**HELLO, "pad": "x" * 2_000_000}))
    assert (status, said) == (413, "Failed to buffer the request body: length limit exceeded")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"temperature": -1}, "`temperature` must be strictly positive"),
        ({"max_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_logprobs": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"presence_penalty": -2.0}, "`repetition_penalty` must be strictly positive"),
    ],
)
def test_values_out_of_range_are_refused_as_json(server, fields, message):
    """Validation names the rule in TGI's words."""
    assert refused(server, CHAT, {**HELLO, **fields}) == (422, "validation", f"Input validation error: {message}")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 200. Given: 0"),
    ],
)
def test_generate_has_rules_of_its_own(server, parameters, message):
    """A temperature of 0 is greedy in a chat and an error here."""
    body = {"inputs": "Say hello", "parameters": parameters}
    assert refused(server, "/generate", body) == (422, "validation", f"Input validation error: {message}")


def test_empty_inputs_are_refused(server):
    """And not answered with an empty text."""
    assert refused(server, "/generate", {"inputs": ""})[2] == "Input validation error: `inputs` cannot be empty"


def test_lengths_are_checked_total_first_with_at_most_1024_new_tokens(server):
    """max_tokens 5000 is taken where the prompt and 1024 fit; a longer prompt is refused by its length."""
    assert chat(server, max_tokens=5000)["choices"][0]["finish_reason"] == "stop"
    long = {"messages": [{"role": "user", "content": "word " * 250}], "temperature": 0}
    status, kind, said = refused(server, CHAT, {**long, "max_tokens": 10})
    assert (status, kind) == (422, "validation")
    given = int(re.fullmatch(r"Input validation error: `inputs` must have less than 200 tokens. Given: (\d+)", said)[1])
    assert given > 250
    longer = {"messages": [{"role": "user", "content": "word " * 400}], "temperature": 0, "max_tokens": 5000}
    said = refused(server, CHAT, longer)[2]
    assert "`inputs` tokens + `max_new_tokens` must be <= 1400" in said
    assert "1024 `max_new_tokens`" in said


def test_greedy_and_sampled_requests_are_told_apart():
    """Temperature 0 is greedy; none, or a top_p beside it, samples; without `parameters` /generate samples."""
    with Emulator(reply="x") as server:
        chat(server)
        ask(server, "/generate", {"inputs": "x", "parameters": {}})
        assert server.stats.sampled == 0
        ask(server, CHAT, {"messages": HELLO["messages"]})
        chat(server, top_p=0.9)
        ask(server, "/generate", {"inputs": "x"})
        assert server.stats.sampled == 3


def test_a_presence_penalty_is_recorded():
    """Even 0.0 is a repetition penalty of 2.0 in TGI; a client must never send it."""
    with Emulator(reply="x") as server:
        chat(server, presence_penalty=0.0)
        assert server.stats.penalised == 1


def test_the_seed_comes_back_in_details_only_when_sampled(server):
    """Greedy replies have none."""
    for parameters, seed in (({"details": True, "seed": 3}, None), ({"details": True, "seed": 3, "top_k": 5}, 3)):
        said = ask(server, "/generate", {"inputs": "x", "parameters": parameters})[2]
        assert json.loads(said)["details"]["seed"] == seed


def test_stop_text_is_kept_and_the_reason_is_stop_sequence(server):
    """A stop string fires only where it ends with a token, and stays in the text."""
    choice = chat(server, stop=[" 232"])["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Tin melts at 232", "stop_sequence")
    choice = chat(server, stop=["mel"])["choices"][0]
    assert choice["finish_reason"] == "stop"


def test_the_limit_goes_before_the_end_of_the_text_and_before_stop_strings():
    """What ends with its last allowed token ends by length."""
    words = pieces("one two three")
    assert generated("one two three", 2, ()) == (words[:2], 2, "length")
    assert generated("one two three", 4, ()) == (words, 4, "length")
    assert generated("one two three", 5, ()) == (words, 4, "eos_token")
    assert generated("one two three", 2, [" two"]) == (words[:2], 2, "length")
    assert generated("one two three", 3, [" two"]) == (words[:2], 2, "stop_sequence")
    assert generated("", 3, [""]) == ([], 1, "eos_token")


def test_more_than_1024_tokens_come_in_rounds():
    """1500 wanted may become 2048, unless the prompt leaves no room for another round."""
    assert room(1024, 10, 8000, 8192) == 1024
    assert room(1500, 10, 8000, 8192) == 2048
    assert room(1500, 10, 500, 8192) == 1024
    assert room(None, 192, 500, 8192) == 8000
    assert room(5000, 8000, 8100, 8192) == 192


def test_tokens_join_to_the_text_and_are_counted_alike():
    """/tokenize, the usage and the counts agree, whatever the text."""
    for text in (
        "",
        "Tin melts at 232 °C.",
        "a_b\n\n  c\t<|im_end|>\u2060 熔点 e\u0301 12345 internationalisation",
        "\r\n",
        "  a  _b \n c ",
    ):
        found = tokenised(text)
        assert "".join(one["text"] for one in found) == text
        assert all(text[one["start"] : one["stop"]] == one["text"] for one in found)
        assert len(found) == count(text) == len(pieces(text))


def test_tokenize_routes(server):
    """/tokenize gives a bare list; /chat_tokenize the templated text with it, and asks for no key."""
    prompt = json.loads(ask(server, "/chat_tokenize", HELLO)[2])
    assert prompt["templated_text"] == "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"
    assert len(prompt["tokenize_response"]) == chat(server)["usage"]["prompt_tokens"]
    assert json.loads(ask(server, "/tokenize", {"inputs": "tin"})[2]) == tokenised("tin")


def test_truncation_keeps_the_end():
    """/generate cuts a prompt on the left."""
    with Emulator(reply=lambda prompt: prompt) as server:
        body = {"inputs": "one two three", "parameters": {"truncate": 2}}
        assert json.loads(ask(server, "/generate", body)[2]) == {"generated_text": " two three"}


def test_generate_details_and_the_compatible_route(server):
    """Details only where asked for; / answers with a list and the prompt before the text."""
    text = "Tin melts at 232 degrees."
    assert json.loads(ask(server, "/generate", {"inputs": "x"})[2]) == {"generated_text": text}
    said = json.loads(ask(server, "/generate", {"inputs": "x", "parameters": {"details": True}})[2])
    assert said["details"]["finish_reason"] == "eos_token"
    assert "".join(token["text"] for token in said["details"]["tokens"]) == text
    assert json.loads(ask(server, "/", {"inputs": "x "})[2]) == [{"generated_text": f"x {text}"}]
    plain = {"inputs": "x ", "parameters": {"return_full_text": False}}
    assert json.loads(ask(server, "/", plain)[2]) == [{"generated_text": text}]
    assert events(ask(server, "/", {"inputs": "x ", "stream": True})[2])[-1]["generated_text"] == f"x {text}"


def test_a_streamed_chat_has_an_event_for_each_token(server):
    """Deltas join to the text, the last has the reason, usage comes only where asked for, then [DONE]."""
    whole = chat(server)
    found = events(ask(server, CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})[2])
    *chunks, usage, done = found
    assert done == "data: [DONE]"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len(chunks) == whole["usage"]["completion_tokens"]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_generate_stream_ends_with_the_whole_text(server):
    """The text and the details stand on the last event; there is no [DONE]."""
    found = events(ask(server, "/generate_stream", {"inputs": "x", "parameters": {"details": True}})[2])
    assert [event["index"] for event in found] == list(range(1, len(found) + 1))
    assert found[-1]["generated_text"] == "Tin melts at 232 degrees."
    assert found[-1]["details"]["generated_tokens"] == len(found)


def test_errors_in_streams_come_with_a_200(server):
    """Chat names every error 422; /generate_stream has its own form; a refused template is no stream at all."""
    status, _, said = ask(server, CHAT, {**HELLO, "stream": True, "top_p": 1.0})
    message = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    assert status == 200
    assert events(said) == [{"error": {"message": message, "http_status_code": 422}}, "data: [DONE]"]
    status, _, said = ask(server, "/generate_stream", {"inputs": "", "parameters": {}})
    assert (status, events(said)[0]["error_type"]) == (200, "validation")


def test_logprobs_have_openais_form(server):
    """One entry for each token of the text."""
    found = chat(server, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in found] == pieces("Tin melts at 232 degrees.")


def test_completions(server):
    """Several prompts take as many permits; suffixes and long lists are refused."""
    reply = json.loads(ask(server, "/v1/completions", {"prompt": ["a", "b"], "temperature": 0})[2])
    assert sorted(choice["index"] for choice in reply["choices"]) == [0, 1]
    assert reply["object"] == "text_completion"
    assert refused(server, "/v1/completions", {"prompt": "a", "suffix": "b"})[1] == "suffix not supported"
    assert refused(server, "/v1/completions", {"prompt": list("abcde")})[1] == "batch size exceeded"
    assert refused(server, "/v1/completions", {"prompt": 1})[:2] == (422, None)
    found = events(ask(server, "/v1/completions", {"prompt": "a", "stream": True, "temperature": 0})[2])
    assert "".join(event["choices"][0]["text"] for event in found[:-1]) == "Tin melts at 232 degrees."


def test_the_key_is_asked_for_where_tgi_asks_for_it():
    """401 with an empty body, before anything is read; information and /chat_tokenize need none."""
    with Emulator(reply="x", api_key="Secret") as server:
        for path in ("/", "/generate", "/generate_stream", CHAT, "/v1/completions", "/tokenize"):
            assert ask(server, path, "{broken")[::2] == (401, "")
        assert ask(server, CHAT, HELLO, Authorization="Bearer wrong")[0] == 401
        assert ask(server, CHAT, HELLO, Authorization="bearer SECRET")[0] == 200
        assert [ask(server, path)[0] for path in ("/info", "/health", "/metrics", "/v1/models")] == [200] * 4
        assert ask(server, "/chat_tokenize", HELLO)[0] == 200
        assert "Secret" not in repr(server)


def test_429_comes_at_once_after_the_template_and_before_validation():
    """No permit is waited for; a bad template is told first, a bad parameter last; streams say it with a 200."""
    import aiohttp

    async def storm(url):
        async with aiohttp.ClientSession() as session:

            async def post(body):
                async with session.post(url + CHAT, json=body) as reply:
                    return reply.status, await reply.text()

            held = [asyncio.create_task(post({**HELLO, "seed": seed})) for seed in range(2)]
            await asyncio.sleep(0.1)
            system = {"messages": [{"role": "system", "content": "x"}]}
            more = [await post(body) for body in ({**HELLO, "top_p": 1.0}, system, {**HELLO, "stream": True})]
            return more, [await task for task in held]

    latency = Latency(overhead=0.4)
    with Emulator(reply="x", latency=latency, max_concurrent_requests=2, slots=1, system_role=False) as server:
        more, held = asyncio.run(storm(server.url))
        stats = server.stats
    assert [status for status, _ in more] == [429, 422, 200]
    assert json.loads(more[0][1]) == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert json.loads(more[1][1])["error_type"] == "template_error"
    assert events(more[2][1])[0] == {"error": {"message": "Model is overloaded", "http_status_code": 422}}
    assert [status for status, _ in held] == [200, 200]
    assert (stats.peak_in_flight, stats.failures["overloaded"], stats.failures["template"]) == (2, 2, 1)


def test_metrics_have_tgis_names(server):
    """Gauges of queue and batch, counters of requests, failures by cause."""
    ask(server, CHAT, {**HELLO, "top_p": 1.0})
    said = ask(server, "/metrics")[2]
    for name in ("tgi_queue_size", "tgi_batch_current_size", "tgi_request_count", "tgi_request_success"):
        assert re.search(rf"^{name} \d+$", said, re.MULTILINE)
    assert re.search(r'^tgi_request_failure\{err="validation"\} [1-9]', said, re.MULTILINE)


def test_without_a_chat_template_only_generate_works():
    """Every chat is a template_error; so is /chat_tokenize."""
    with Emulator(reply="x", chat_template=False) as server:
        expected = (422, "template_error", "Template error: template not found")
        assert refused(server, CHAT, HELLO) == expected
        assert refused(server, "/chat_tokenize", HELLO) == expected
        assert refused(server, CHAT, {**HELLO, "stream": True}) == expected
        assert ask(server, "/generate", {"inputs": "x"})[0] == 200


def test_a_strict_template_refuses_system_messages_and_roles_that_do_not_alternate():
    """422 template_error, whatever else is right."""
    user, system = {"role": "user", "content": "x"}, {"role": "system", "content": "x"}
    with Emulator(reply="x", system_role=False) as server:
        for messages in ([system, user], [user, user], [user, system]):
            assert refused(server, CHAT, {"messages": messages})[1] == "template_error"
        assert chat(server)["choices"]
    with Emulator(reply="x") as server:
        assert chat(server, messages=[system, user])["choices"]


def test_grammar_and_tools_exclude_each_other(server):
    """422 tool_error."""
    grammar = {"type": "regex", "value": "x"}
    assert refused(server, CHAT, {**HELLO, "response_format": grammar, "tools": [{}]})[1] == "tool_error"


def test_message_parts_are_joined_with_nothing():
    """Images become Markdown."""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}]
    with Emulator(reply=lambda prompt: prompt) as server:
        text = chat(server, messages=[{"role": "user", "content": parts}])["choices"][0]["message"]["content"]
    assert "a![](u)<|im_end|>" in text


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"max_input_tokens": 100, "max_total_tokens": 100},
        {"port": 70_000},
        {"thinking": -1},
    ],
)
def test_options_that_cannot_work_are_refused(options):
    """Before a port is opened."""
    with pytest.raises(ConfigurationError):
        Emulator(**options)
