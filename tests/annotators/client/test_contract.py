"""The client of an LLM server: request bodies, errors, retries, limits, and what never leaves this machine."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from aiohttp import web

from arhn_datasets import errors
from arhn_datasets.annotators.client.contract import (
    OPENAI,
    TGI,
    ChatRequest,
    Completion,
    ConnectionOptions,
    ServerInfo,
    base_url,
    chat_body,
    is_loopback,
    parse_completion,
    parse_generated,
    parse_queue,
    parse_slots,
    parse_tokens,
    shown_url,
    slots_of,
)
from arhn_datasets.annotators.client.http import HttpTransport
from arhn_datasets.annotators.client.pool import Pool
from arhn_datasets.annotators.client.refusals import error_of
from arhn_datasets.annotators.client.sizing import START
from arhn_datasets.testing import Fault, Latency
from tests.fakes.served import CHAT, MODEL, NO_INFO, REVISION, always, completion, once, said, served, when
from tests.fakes.together import Together

MESSAGES = [{"role": "system", "content": "Copy."}, {"role": "user", "content": "What?"}]
REQUEST = ChatRequest(messages=tuple(MESSAGES), max_tokens=8)
KEY = "secret-key-1234"


def chat(client):
    """One request."""
    return client.chat(REQUEST)


def client_of(url, model=None, **options):
    """A pool of one server, with little patience."""
    options = ConnectionOptions(**{"backoff": 0.001, "attempts": 3, "deadline": 60, **options})
    return Pool([HttpTransport(base_url(url), options, model)], options)


def ask(url, call=chat, **options):
    """Make a client, call it on a loop of its own, close it."""

    async def main():
        client = client_of(url, **options)
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(main())


def together(requests):
    """So many requests at once."""
    return lambda client: asyncio.gather(*(chat(client) for _ in range(requests)))


def plain(status, text, **options):
    """A response that is not JSON."""
    return web.Response(status=status, text=text, **options)


def problem(status, **fields):
    """A response as TGI words its errors."""
    return web.json_response(fields, status=status)


async def reset(request):
    """Drop the connection without a word."""
    request.raw.transport.abort()
    return web.Response()


async def cut(request):
    """Promise a thousand bytes, send a few, and hang up."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request.raw)
    await response.write(b'{"choices": [')
    request.raw.transport.close()
    return response


def kept_headers(server):
    """The headers of all requests that come from now on."""
    headers = []
    server.intercept = lambda request: headers.append(dict(request.headers))
    return headers


def named(models):
    """An OpenAI-compatible server that lists what ``models()`` gives."""
    return served(reply=said, faults=[NO_INFO], intercept=always(models, "/v1/models"))


@pytest.fixture
def echo():
    """A server whose reply is the prompt."""
    with served(reply=said) as running:
        yield running


@pytest.fixture
def free_url():
    """The URL of a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pasted", "root"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        (" http://localhost:8080/ \n", "http://localhost:8080"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("http://h:1/v1/chat/completions", "http://h:1"),
        ("http://h:1/v1/chat/completions/?a=b#c", "http://h:1"),
        ("http://h:1/v1/models", "http://h:1"),
        ("http://h:1/generate", "http://h:1"),
        ("http://h:1/info", "http://h:1"),
        ("https://h/some/proxy/v1", "https://h/some/proxy"),
        ("https://h/some/proxy", "https://h/some/proxy"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
        ("http://user:word@h/v1", "http://user:word@h"),
        ("HTTP://h", "http://h"),
    ],
)
def test_the_root_of_any_url_that_users_paste(pasted, root):
    """Routes, slashes, queries and white space go; a path before the route stays."""
    assert base_url(pasted) == root


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "h",
        "ftp://user:word@h",
        "http://",
        "http:///v1",
        "http://user:word@",
        "http://user:word@:80",
        "http://user:word@[::1",
        "http://user:word@h:port",
        "http://user:word@h:99999",
        "user:word@h:80",
    ],
)
def test_what_is_no_url_is_refused_without_its_password(url):
    """The message names the form that was expected, and never a password."""
    with pytest.raises(errors.ConfigurationError, match="http://localhost:8080") as caught:
        base_url(url)
    assert "word" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_shown_urls_hold_no_password():
    """User name, password and query stay out of messages."""
    assert shown_url("https://user:w@rd@h:8/p?token=1#f") == "https://h:8/p"


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:1", True),
        ("http://tgi.localhost", True),
        ("http://127.0.0.1", True),
        ("http://127.1.2.3:80", True),
        ("http://[::1]:80", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
        ("http://example.org", False),
        ("nothing", False),
    ],
)
def test_loopback(url, loopback):
    """This machine, by name or by address."""
    assert is_loopback(url) is loopback


# -- request bodies and replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "model", "more"),
    [(TGI, "tgi", {}), (OPENAI, "some/model", {"chat_template_kwargs": {"enable_thinking": False}})],
)
def test_the_body_is_greedy_and_holds_no_trap(api, model, more):
    """Temperature 0 and nothing that would sample, penalise or choose an adapter."""
    body = chat_body(ServerInfo(api=api, model="some/model"), ChatRequest(messages=tuple(MESSAGES), max_tokens=12))
    assert body == {
        "model": model,
        "messages": MESSAGES,
        "max_tokens": 12,
        "temperature": 0,
        "stream": False,
        **more,
    }


@pytest.mark.parametrize(("api", "faults"), [("tgi", []), ("openai", [NO_INFO])])
def test_what_goes_over_the_wire(api, faults):
    """The server sees that body, as JSON, and no Authorization where no key is set."""
    with served(reply=said, faults=faults) as server:
        headers = kept_headers(server)
        assert ask(server.url).text == "What?"
    assert server.bodies == [chat_body(ServerInfo(api=api, model=MODEL), REQUEST)]
    assert headers[-1]["Content-Type"] == "application/json"
    assert not any("Authorization" in sent for sent in headers)


def test_a_completion():
    """Text, the reason of the end and the token counts are kept."""
    wanted = Completion(text="ü", finish_reason="length", prompt_tokens=10, completion_tokens=5)
    assert parse_completion(json.dumps(completion("ü", "length")).encode()) == wanted


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": "none"}, {"usage": [1]}])
def test_a_completion_without_usage(usage):
    """Servers that count no tokens are understood too."""
    body = {"choices": [{"message": {"content": ""}}], **usage}
    assert parse_completion(json.dumps(body).encode()) == Completion(text="")


PARTS = [
    ([{"type": "text", "text": "ü"}], "ü"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "ü"}], "ü"),
    ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
    ([{"type": "output_text", "text": "ü"}], "ü"),
    ([{"type": "thinking", "thinking": "hm"}], ""),
    ([{"text": "ü"}], "ü"),
    ({"type": "text", "text": "ü"}, "ü"),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_a_content_of_parts(content, text):
    """The texts among the parts are joined; thoughts are none of them."""
    assert parse_completion(json.dumps(completion(content)).encode()).text == text


def test_the_end_of_a_provider_behind_a_gateway():
    """A reply that its provider has cut off is cut off, whatever the gateway calls it."""
    body = completion("ü")
    body["choices"][0]["native_finish_reason"] = "MAX_TOKENS"
    assert parse_completion(json.dumps(body).encode()).finish_reason == "MAX_TOKENS"


def stream(*chunks, done=True):
    """A body of events, as servers send it that stream unasked."""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if done else "")


def test_a_stream_that_nobody_asked_for():
    """Its pieces are joined; one without an end, or with an error, is no completion."""
    pieces = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in ("a ", "ü")]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    wanted = Completion(text="a ü", finish_reason="length", prompt_tokens=3, completion_tokens=2)
    for before in ("", ": OPENROUTER PROCESSING\n\n", "event: message\n"):
        assert parse_completion((before + stream(*pieces, end, usage)).encode()) == wanted
    for body in (stream(*pieces), stream(*pieces, done=False), stream({"error": {"message": "no"}}), "data: [DONE]"):
        with pytest.raises(errors.EmptyReply, match="without a completion"):
            parse_completion(body.encode())


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("content_filter", errors.RequestRejected),
        ("SAFETY", errors.RequestRejected),
        ("abort", errors.EmptyReply),
        ("error", errors.EndpointFailure),
    ],
)
def test_an_end_that_leaves_no_reply(reason, error):
    """What a filter or a failure has ended is no completion, whatever its text."""
    with pytest.raises(error):
        parse_completion(json.dumps(completion("tin", reason)).encode())


def test_a_refusal_beside_the_content_is_told():
    """Where a model refuses in a field of its own, the error has its words."""
    body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I cannot help with that."
    with pytest.raises(errors.RequestRejected, match=r"the model refused to reply: I cannot help"):
        parse_completion(json.dumps(body).encode())


NOT_COMPLETIONS = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"<html>Bad gateway</html>",
    b'{"choices": [',
    b'{"choices": []}',
    b'{"choices": {}}',
    b'{"choices": [null]}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"role": "assistant", "tool_calls": []}}]}',
    b'{"choices": [{"message": {"content": null}}]}',
    b'{"choices": [{"message": {"content": ["a"]}}]}',
    b'\xff\xfe{"choices"',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", NOT_COMPLETIONS, ids=lambda body: repr(body[:40]))
def test_a_200_that_is_no_completion_is_a_failure(body):
    """Nothing in such a body is ever taken for a text."""
    for parse in (parse_completion, parse_generated):
        with pytest.raises(errors.EmptyReply, match="without a completion"):
            parse(body)


def test_half_a_surrogate_pair_does_not_reach_arrow():
    """A reply that was cut inside an emoji can be written as UTF-8."""
    body = b'{"choices": [{"message": {"content": "tin \\ud83d"}}]}'
    assert parse_completion(body).text.encode() == b"tin ?"
    assert str(error_of(500, b'{"error": "tin \\ud83d"}')).encode() == b"500: tin ?"


# -- errors -------------------------------------------------------------------------------------------------------

BODIES = {
    "tgi": (b'{"error": "said so", "error_type": "validation"}', "said so"),
    "openai": (b'{"error": {"message": "said so", "code": 1}}', "said so"),
    "fastapi": (b'{"detail": "said so"}', "said so"),
    "message": (b'{"message": "said so"}', "said so"),
    "plain": (b"said\n  so", "said so"),
    "long": (b"x" * 10_000, "x" * 300),
    "empty": (b"", "no message"),
    "blank": (b" \n", "no message"),
    "null": (b'{"error": null}', '{"error": null}'),
    "list": (b"[1]", "[1]"),
    "no text": (b"\xff\x00", "\ufffd\x00"),
    "no message": (b'{"error": {}}', '{"error": {}}'),
}
KINDS = {
    400: errors.RequestRejected,
    401: errors.RequestRejected,
    403: errors.RequestRejected,
    404: errors.RequestRejected,
    405: errors.RequestRejected,
    408: errors.EndpointFailure,
    413: errors.PromptTooLong,
    415: errors.RequestRejected,
    422: errors.RequestRejected,
    424: errors.EndpointFailure,
    429: errors.EndpointOverloaded,
    500: errors.EndpointFailure,
    502: errors.EndpointUnavailable,
    503: errors.EndpointUnavailable,
    504: errors.EndpointUnavailable,
    522: errors.EndpointUnavailable,
    529: errors.EndpointOverloaded,
    599: errors.EndpointFailure,
}


@pytest.mark.parametrize("status", KINDS)
@pytest.mark.parametrize("body", BODIES)
def test_the_error_of_a_reply(status, body):
    """Status gives the class; the message is what the server said, JSON or not."""
    sent, said = BODIES[body]
    error = error_of(status, sent)
    assert type(error) is KINDS[status]
    assert str(error) == f"{status}: {said}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("2", 2.0),
        ("0.5", 0.5),
        ("0", None),
        ("-1", None),
        ("nan", None),
        ("86400", 300.0),
        ("soon", None),
        ("Fri, 01 Jan 1999 00:00:00 GMT", None),
        ("Fri, 01 Jan 2199 00:00:00 GMT", 300.0),
    ],
)
def test_retry_after(header, seconds):
    """In seconds or as a date, and never for longer than five minutes."""
    assert error_of(429, b"", header).retry_after == seconds


@pytest.mark.parametrize(("limit", "slots"), [(None, None), (1, 1), (2, 1), (10, 9), (128, 125)])
def test_slots(limit, slots):
    """Two in a hundred of the server's limit are left alone."""
    assert slots_of(ServerInfo(api=TGI, model="m", max_concurrent_requests=limit)) == slots


@pytest.mark.parametrize(("slots", "most"), [(1, 3), (4, 6), (64, 80)])
def test_slots_that_work_at_once(slots, most):
    """A few more than that, so that the next one is there when a slot is free."""
    assert slots_of(ServerInfo(api=OPENAI, model="m", slots=slots)) == most


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        (b'{"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}}', 4),
        (b'{"total_slots": 0}', None),
        (b'{"total_slots": true}', None),
        (b'{"total_slots": "4"}', None),
        (b"[]", None),
        (b"", None),
    ],
)
def test_the_slots_of_llama_server(body, slots):
    """As its /props tell, where they are a number."""
    assert parse_slots(body) == slots


@pytest.mark.parametrize(
    ("body", "queue"),
    [
        (
            "# HELP vllm:num_requests_running Number of requests.\n# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{engine="0",model_name="smol"} 16.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="smol"} 3.0\n'
            'vllm:num_requests_waiting_by_reason{engine="0",model_name="smol",reason="capacity"} 3.0\n',
            (16, 3),
        ),
        (
            'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n'
            'vllm:num_requests_waiting{engine="0",reason="capacity"} 9.0\n'
            'vllm:num_requests_waiting{engine="0"} 0.0\nvllm:num_requests_waiting{engine="1"} 1.0\n',
            (5, 1),
        ),
        ('sglang:num_running_reqs{model_name="m"} 8.0\nsglang:num_queue_reqs{model_name="m"} 1e+02\n', (8, 100)),
        ("tgi_queue_size 5\ntgi_batch_current_size 128\ntgi_request_count 900\n", (128, 5)),
        ("llamacpp:requests_processing 4\nllamacpp:requests_deferred 2\n", (4, 2)),
        ("tgi_queue_size 5\n", None),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting 1\n", None),
        ("process_cpu_seconds_total 4.2\n", None),
        ("<html>tgi_queue_size 5 tgi_batch_current_size 3</html>", None),
        ("", None),
    ],
)
def test_the_queue_of_a_server(body, queue):
    """Running and waiting requests, over all replicas, where the metrics name both."""
    assert parse_queue(body.encode()) == queue


@pytest.mark.parametrize(
    ("body", "count"), [(b'[{"id": 1}, {"id": 2}]', 2), (b"[]", 0), (b"{}", None), (b"", None), (b"[" * 99_999, None)]
)
def test_counted_tokens(body, count):
    """What is no list counts nothing, and is no error."""
    assert parse_tokens(body) == count


# -- faults over HTTP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda: problem(429, error="Model is overloaded", error_type="overloaded"),
        lambda: problem(424, error="Request failed during generation", error_type="generation"),
        lambda: problem(500, error="Incomplete generation", error_type="incomplete_generation"),
        lambda: plain(502, ""),
        lambda: plain(503, "<html>Service Unavailable</html>", content_type="text/html"),
        lambda: reset,
        lambda: cut,
        lambda: plain(200, '{"choices": ['),
        lambda: plain(200, '{"choices": []}'),
        lambda: plain(200, "", headers={"Content-Encoding": "gzip"}),
        lambda: web.json_response(completion(None)),
    ],
    ids=["429", "424", "500", "502", "503", "reset", "cut", "truncated", "no choices", "bad gzip", "null"],
)
def test_a_passing_fault_is_retried(echo, fault):
    """What may succeed on the next attempt is asked again, and the reply is that of the next attempt."""
    echo.intercept = once(fault)
    assert ask(echo.url).text == "What?"
    assert echo.stats.requests == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: plain(424, ""), errors.EndpointFailure, "424: no message"),
        (lambda: plain(500, "<html>Down</html>"), errors.EndpointFailure, "500: Down"),
        (lambda: reset, errors.EndpointUnavailable, "no connection to http://127.0.0.1:"),
        (lambda: cut, errors.EndpointUnavailable, "no connection to http://127.0.0.1:"),
    ],
)
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_lasting_fault_ends_after_the_attempts(echo, make, error, message, attempts):
    """The last error is raised as it is, after exactly that many requests."""
    echo.intercept = always(make)
    with pytest.raises(error) as caught:
        ask(echo.url, attempts=attempts)
    assert message in str(caught.value)
    assert echo.stats.requests == attempts


@pytest.mark.parametrize("body", ["{}", json.dumps(completion("")), json.dumps(completion(" \n"))])
def test_an_empty_reply_is_asked_again_once(echo, body):
    """However many attempts there are: the model may well have nothing to say."""
    echo.intercept = always(lambda: plain(200, body))
    with pytest.raises(errors.EmptyReply, match="answered 200"):
        ask(echo.url, attempts=5)
    assert echo.stats.requests == 2


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_is_away_is_waited_for_until_the_deadline(echo, status):
    """It uses up no attempts, and the last error says what the gateway said."""
    echo.intercept = always(lambda: plain(status, "<html>Down</html>"))
    with pytest.raises(errors.EndpointUnavailable, match=f"^({status}: Down|.* does not answer)$"):
        ask(echo.url, attempts=1, deadline=0.1)
    assert echo.stats.requests > 1


def test_a_server_that_stays_overloaded(echo):
    """It is asked on until the deadline is over, more often than a failing one, and not for ever."""
    echo.intercept = always(lambda: problem(429, error="Model is overloaded"))
    with pytest.raises(errors.EndpointOverloaded, match="^429: Model is overloaded$"):
        ask(echo.url, deadline=1, attempts=2)
    assert 2 < echo.stats.requests < 1000


@pytest.mark.parametrize("status", [429, 503])
def test_those_who_wait_use_up_no_attempts(echo, status):
    """A server that is overloaded or away for a while is spared, and costs nobody a reply."""
    echo.intercept = when(lambda request: request.number <= 6, lambda: plain(status, ""))

    def thirty(client):
        return asyncio.gather(*(chat(client) for _ in range(30)))

    assert len(ask(echo.url, thirty, concurrency=2, attempts=1, deadline=5)) == 30
    assert echo.stats.requests == 30 + 6


def test_a_shared_server_above_its_limit():
    """Several clients that together exceed the limit of a server all get their replies in the end."""

    async def main():
        clients = [client_of(server.url, concurrency=8, backoff=0.01, deadline=20) for _ in range(3)]
        try:
            return await asyncio.gather(*(chat(client) for client in clients for _ in range(40)))
        finally:
            for client in clients:
                await client.close()

    with served(reply="What?", max_concurrent_requests=4, latency=Latency(overhead=0.01)) as server:
        assert len(asyncio.run(main())) == 120


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            lambda: plain(422, "Failed to deserialize the JSON body"),
            errors.RequestRejected,
            "422: Failed to deserialize",
        ),
        (lambda: plain(413, "length limit exceeded"), errors.PromptTooLong, "413: length limit exceeded"),
        (lambda: problem(400, error="Template error"), errors.RequestRejected, "400: Template error"),
        (lambda: plain(401, ""), errors.AccessDenied, "ARHN_API_KEY"),
        (lambda: plain(403, ""), errors.AccessDenied, "ARHN_API_KEY"),
        (lambda: plain(404, ""), errors.AccessDenied, "there is no chat API.*check the URL"),
        (
            lambda: plain(302, "", headers={"Location": "/elsewhere"}),
            errors.AccessDenied,
            "302: redirects to .*/elsewhere",
        ),
    ],
)
def test_what_cannot_succeed_is_asked_once(echo, fault, error, message):
    """A refusal of this request, or of all, ends at once."""
    echo.intercept = once(fault)
    with pytest.raises(error, match=message):
        ask(echo.url)
    assert echo.stats.requests == 1


def test_a_hanging_server(echo):
    """No reply in time is said with the URL and the time, after all attempts."""
    echo.set_faults(Fault(kind="hang"))
    with pytest.raises(errors.EndpointUnavailable, match=f"no reply from {echo.url} within 0.05 seconds"):
        ask(echo.url, timeout=0.05, attempts=2)
    assert echo.stats.requests == 2


def test_no_server_there(free_url):
    """A refused connection names the URL, and never a password in it."""
    with pytest.raises(errors.EndpointUnavailable) as caught:
        ask(free_url.replace("//", "//user:word@") + "/v1", attempts=2)
    assert f"no connection to {free_url}: " in str(caught.value)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_refuses(monkeypatch, reply, scheme):
    """The password of the proxy is in no message."""

    async def main():
        async def answer(reader, writer):
            await reader.read(1)
            writer.write(reply)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as raw:
            port = raw.sockets[0].getsockname()[1]
            monkeypatch.setenv("https_proxy", f"{scheme}://user:word@127.0.0.1:{port}")
            client = client_of("https://llm.test", attempts=1)
            try:
                await chat(client)
            finally:
                await client.close()

    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(errors.EndpointUnavailable, match=r"no connection to https://llm\.test: .*//127") as caught:
        asyncio.run(main())
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""])
def test_what_speaks_no_http(reply):
    """Whatever listens there, the error is one of ours and shows no password."""

    async def main():
        async def answer(reader, writer):
            await reader.read(1)
            writer.write(reply)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as raw:
            url = f"http://user:word@127.0.0.1:{raw.sockets[0].getsockname()[1]}"
            client = client_of(url, attempts=2)
            try:
                await chat(client)
            finally:
                await client.close()

    with pytest.raises(errors.EndpointUnavailable, match=r"no connection to http://127\.0\.0\.1:") as caught:
        asyncio.run(main())
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 422])
def test_template_options_are_dropped_once_where_they_are_refused(status):
    """Servers that do not know chat_template_kwargs are asked without, also those already asked at that moment."""

    async def refused(_):
        await asyncio.sleep(0.1)
        return plain(status, "Extra inputs are not permitted: chat_template_kwargs")

    async def waves(client):
        await together(4)(client)
        return await together(4)(client)

    intercept = when(lambda request: "chat_template_kwargs" in request.body, lambda: refused)
    with served(reply=said, faults=[NO_INFO], intercept=intercept) as server:
        assert [reply.text for reply in ask(server.url, waves, attempts=1, deadline=5)] == ["What?"] * 4
    assert server.stats.requests == 4 + 4 + 4
    assert not any("chat_template_kwargs" in body for body in server.bodies[4:])


def test_template_options_that_are_not_the_trouble():
    """A refusal that names them although they were not sent is an error, not a loop."""
    intercept = always(lambda: plain(422, "chat_template_kwargs"))
    with served(faults=[NO_INFO], intercept=intercept) as server, pytest.raises(errors.RequestRejected):
        ask(server.url)
    assert server.stats.requests == 2


# -- secrets ------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_no_other_token(echo, monkeypatch, tmp_path):
    """The configured key is the only credential: not the Hub's token, not that of ~/.netrc."""
    monkeypatch.setenv("HF_TOKEN", "hf_user_token")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_user_token")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    echo.api_key, headers = KEY, kept_headers(echo)
    assert ask(echo.url, api_key=KEY).text == "What?"
    assert {sent.get("Authorization") for sent in headers} == {f"Bearer {KEY}"}
    assert "hf_user_token" not in str(headers)


@pytest.mark.parametrize("key", [None, KEY])
def test_netrc_stays_at_home_behind_a_proxy(echo, monkeypatch, tmp_path, key):
    """A host that is not loopback is reached through the environment's proxy, without the user's ~/.netrc."""
    (tmp_path / "netrc").write_text("machine llm.test login user password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", echo.url)
    monkeypatch.delenv("no_proxy", raising=False)
    headers = kept_headers(echo)
    assert ask("http://llm.test:80", api_key=key).text == "What?"
    assert {sent["Host"] for sent in headers} <= {"llm.test", "llm.test:80"}
    assert {sent.get("Authorization") for sent in headers} == {key and f"Bearer {key}"}


def test_no_proxy_on_loopback(echo, monkeypatch, free_url):
    """This machine is reached directly, whatever http_proxy says."""
    monkeypatch.setenv("http_proxy", free_url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(echo.url, attempts=1).text == "What?"


def test_no_proxy_is_heeded(monkeypatch, free_url):
    """A host named in no_proxy is reached directly."""
    monkeypatch.setenv("http_proxy", free_url)
    monkeypatch.setenv("no_proxy", "llm.invalid")
    with pytest.raises(errors.EndpointUnavailable, match=r"llm\.invalid"):
        ask("http://llm.invalid", attempts=1)


@pytest.mark.parametrize(("method", "path"), [("GET", "/info"), ("POST", CHAT)])
def test_a_redirect_is_refused(echo, method, path):
    """The key never follows a redirect to a second server."""
    with served() as other:
        away = {"Location": other.url + path}
        echo.intercept = when(
            lambda request: request.method == method, lambda: web.Response(status=307, headers=away), path=None
        )
        with pytest.raises(errors.ArhnError, match="307"):
            ask(echo.url, api_key=KEY)
        assert not other.stats.by_path


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_is_in_no_message(echo, status):
    """Not even where the server says it back; replies end up in columns that are published."""
    echo.intercept = always(lambda: web.json_response({"error": f"Incorrect API key: {KEY}"}, status=status))
    with pytest.raises(errors.ArhnError) as caught:
        ask(echo.url, api_key=KEY, attempts=1, deadline=0.1)
    shown = caught.value
    while shown is not None:
        assert KEY not in f"{shown} {shown!r}"
        shown = shown.__cause__


def test_the_key_is_in_no_repr():
    """Options may be printed or logged."""
    assert KEY not in repr(ConnectionOptions(api_key=KEY))


@pytest.mark.parametrize(
    ("url", "key"),
    [("", "two\nlines"), ("", "nul\0"), ("user:word@", KEY)],
)
def test_credentials_that_cannot_be_sent(echo, url, key):
    """A key that no header can carry, or a key beside a password in the URL, ends the run with a plain message."""
    with pytest.raises(errors.ConfigurationError, match="API key") as caught:
        ask(echo.url.replace("//", f"//{url}"), api_key=key)
    assert key not in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")
    assert not echo.stats.requests


# -- what the server says of itself ---------------------------------------------------------------------------------


def test_info_of_tgi(echo):
    """Model, revision, version and limits come from /info."""
    assert ask(echo.url, Pool.info) == ServerInfo(
        api=TGI,
        model=MODEL,
        revision=REVISION,
        version="3.3.6-dev0",
        max_concurrent_requests=32,
        max_input_tokens=4095,
        max_total_tokens=4096,
    )
    assert "/v1/models" not in echo.stats.by_path


@pytest.mark.parametrize(
    "info",
    [
        lambda: None,
        lambda: plain(200, "OK"),
        lambda: plain(200, "[]"),
        lambda: plain(200, "[" * 100_000),
        lambda: plain(401, ""),
        lambda: plain(405, ""),
        lambda: plain(500, ""),
        lambda: web.json_response({}),
    ],
    ids=["404", "plain", "list", "deep", "401", "405", "500", "other"],
)
def test_info_of_openai_servers(info):
    """Where /info is missing or something else, /v1/models names the model."""
    with served(faults=[NO_INFO], intercept=always(info, "/info")) as server:
        assert ask(server.url, Pool.info) == ServerInfo(api=OPENAI, model=MODEL)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_gateway_that_fails_once_does_not_hide_a_tgi(echo, status):
    """Taken for an OpenAI server, it would get another body, and its replies another key."""
    echo.intercept = once(lambda: plain(status, ""), "/info")
    assert ask(echo.url, Pool.info).api == TGI


@pytest.mark.parametrize(
    "models",
    [
        lambda: plain(404, ""),
        lambda: plain(200, "<html></html>"),
        lambda: web.json_response({"data": {"id": "m"}}),
        lambda: web.json_response({"data": None}),
        lambda: web.json_response([]),
    ],
)
def test_what_is_no_llm_server(models):
    """Neither /info nor /v1/models: the message says so, and hides the password."""
    refused = pytest.raises(errors.ConfigurationError, match="no LLM server that this package knows")
    with named(models) as server, refused as caught:
        ask(server.url.replace("//", "//user:word@"), Pool.info)
    assert "word" not in str(caught.value)
    assert server.stats.by_path == {"/info": 1, "/v1/models": 1}


@pytest.mark.parametrize(
    ("listed", "wanted", "model"),
    [
        ([{"id": "a"}], None, "a"),
        ([{"id": "a"}, {"id": "b"}], "b", "b"),
        ([1, "id", None, {"name": "m"}, {"id": None}, {"id": "a"}], None, "a"),
        ([], "b", "b"),
    ],
)
def test_the_model_of_an_openai_server(listed, wanted, model):
    """The one that is served, or the wanted one of several; `Endpoint` refuses any other than the wanted one."""

    async def main():
        client = client_of(server.url, wanted)
        try:
            return (await client.info()).model, (await chat(client)).text
        finally:
            await client.close()

    with named(lambda: web.json_response({"data": listed})) as server:
        assert asyncio.run(main()) == (model, "What?")
    assert server.bodies[0]["model"] == model


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "names no model"),
        ([{"id": None}], "names no model"),
        ([{"id": str(number)} for number in range(9)], r"several models \(0, 1, 2, 3, 4, 5, 6, 7, 8\)"),
    ],
)
def test_a_model_has_to_be_named(listed, message):
    """Where a server names none, or several, the message says how to choose."""
    refused = pytest.raises(errors.ConfigurationError, match=f"{message}.*; say which .* model= or --model")
    with named(lambda: web.json_response({"data": listed})) as server, refused:
        ask(server.url, Pool.info)


@pytest.mark.parametrize(
    ("status", "error", "times"),
    [
        (401, errors.AccessDenied, 1),
        (403, errors.AccessDenied, 1),
        (500, errors.EndpointFailure, 3),
        (503, errors.EndpointUnavailable, 3),
    ],
)
def test_models_that_cannot_be_read(status, error, times):
    """A refused key ends at once, a starting server is asked again."""
    # 429: test_a_server_that_stays_overloaded
    with named(lambda: plain(status, "")) as server:
        with pytest.raises(error):
            ask(server.url, Pool.info)
        assert server.stats.by_path["/v1/models"] == times


def test_info_is_asked_once_under_concurrency(echo):
    """However many requests begin together."""
    assert len(ask(echo.url, together(20))) == 20
    assert echo.stats.by_path["/info"] == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, errors.EndpointUnavailable), (404, errors.ConfigurationError)],
)
def test_info_is_asked_again_after_a_failure(status, error):
    """All who waited get the error; the next request asks anew, so that a notebook can go on with its client."""

    async def main(client):
        for _ in range(2):
            failed = await asyncio.gather(*(chat(client) for _ in range(5)), return_exceptions=True)
            assert {type(reply) for reply in failed} == {error}
        server.intercept = None
        return await chat(client)

    intercept = when(lambda request: request.method == "GET", lambda: plain(status, ""), path=None)
    with served(reply=said, intercept=intercept) as server:
        assert ask(server.url, main, attempts=1).text == "What?"
    assert server.stats.by_path["/info"] == 3


def test_info_survives_an_impatient_caller(echo):
    """A caller that gives up does not take the question away from the others."""

    async def main(client):
        first, second = (asyncio.ensure_future(client.info()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert ask(echo.url, main).model == "some/model"
    assert echo.stats.by_path["/info"] == 1


@pytest.mark.parametrize(
    ("limit", "concurrency", "most"),
    [(10, None, 9), (1, None, 1), (10, 3, 3), (2, 5, 5)],
)
def test_never_more_in_flight_than_the_limit(echo, limit, concurrency, most):
    """98 % of what /info states, else the option."""
    info = {**echo.info(), "max_concurrent_requests": limit}
    echo.intercept = always(lambda: web.json_response(info), "/info")
    echo.reply = Together(most, "x")
    ask(echo.url, together(20), concurrency=concurrency, deadline=120)
    assert echo.stats.peak_in_flight == most
    assert echo.stats.requests == 20


@pytest.mark.parametrize("limit", ["10", None, True])
def test_a_limit_that_is_no_number_is_none(echo, limit):
    """Few are asked at first, all of them in the end."""
    info = {**echo.info(), "max_concurrent_requests": limit}
    echo.intercept = always(lambda: web.json_response(info), "/info")
    echo.reply = Together(START, "x")
    ask(echo.url, together(20), deadline=120)
    assert START <= echo.stats.peak_in_flight < 20
    assert echo.stats.requests == 20


def test_requests_in_flight_are_counted(echo):
    """The count that balances servers goes up with each request and back to zero, also after failures."""

    async def main(client):
        waiting = asyncio.gather(*(chat(client) for _ in range(3)), return_exceptions=True)
        seen = 0
        while not waiting.done():  # at each turn of the loop: the refused one may be gone soon
            seen = max(seen, client.statistics.in_flight)
            await asyncio.sleep(0)
        return seen, client.statistics.in_flight

    echo.latency = Latency(overhead=0.02)
    echo.set_faults(Fault(kind="text_422", on=1))
    assert ask(echo.url, main) == (3, 0)


def test_a_client_that_was_never_used_closes():
    """There is nothing to close."""
    ask("http://localhost:1", lambda client: asyncio.sleep(0))
