"""The emulator kept honest by clients that we did not write: huggingface_hub's and OpenAI's; and by our own."""

from __future__ import annotations

import asyncio
import json

import huggingface_hub as hub
import huggingface_hub.constants as hub_constants
import huggingface_hub.errors as hub_errors
import pytest
from packaging.version import Version

import arhn_datasets as arhn
from arhn_datasets.testing import Emulator, Fault, Latency
from arhn_datasets.testing.fields import CHAT_FIELDS, PARAMETER_FIELDS

pytestmark = pytest.mark.skipif(Version(hub.__version__) < Version("1.0"), reason="errors were requests' and aiohttp's")

TEXT = "Tin melts at 232 degrees."
MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    # The client refuses loopback, too, where the Hub is set to be offline, and honours proxies for it.
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def hub_call(server, call, path="", **options):
    """What ``call`` of an AsyncInferenceClient at the server gives."""

    async def main():
        async with hub.AsyncInferenceClient(server.url + path, token="x", **options) as client:
            return await call(client)

    return asyncio.run(main())


def hub_chat(**fields):
    """A chat by that client."""
    return lambda client: client.chat_completion(MESSAGES, **fields)


def hub_generation(**fields):
    """A text generation by that client."""
    return lambda client: client.text_generation("Say hello", **fields)


@pytest.fixture(scope="module")
def server():
    """A server that says one sentence."""
    with Emulator(reply=TEXT, max_input_tokens=200, max_total_tokens=400) as running:
        yield running


def test_the_hubs_client_reads_a_chat(server):
    """Every field of its own type of reply."""
    reply = hub_call(server, hub_chat(max_tokens=20, temperature=0.0))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (TEXT, "stop")
    assert (reply.id, reply.model) == ("", "dummy")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert server.bodies[-1]["temperature"] == 0.0


def test_the_hubs_client_reads_a_streamed_chat(server):
    """Deltas, and a last one with the reason."""

    async def call(client):
        return [chunk async for chunk in await client.chat_completion(MESSAGES, stream=True, max_tokens=20)]

    chunks = hub_call(server, call)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_hubs_client_reads_a_generation(server):
    """With details, without, as a stream, and from the compatible route."""
    assert hub_call(server, hub_generation(), "/generate") == TEXT
    detailed = hub_call(server, hub_generation(details=True, stop=[" 232"]), "/generate")
    assert (detailed.details.finish_reason, detailed.generated_text) == ("stop_sequence", "Tin melts at 232")
    assert hub_call(server, hub_generation(return_full_text=False)) == TEXT

    async def call(client):
        stream = await client.text_generation("Say hello", stream=True, details=True)
        return [event async for event in stream]

    stream = hub_call(server, call, "/generate_stream")
    assert stream[-1].generated_text == TEXT
    assert stream[-1].details.finish_reason == "eos_token"


def test_the_hubs_rewritten_schema_constrains(server):
    """It turns OpenAI's form into TGI's."""
    schema = {"type": "object", "properties": {"snippet": {"type": "string"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = hub_call(server, hub_chat(response_format=asked))
    assert json.loads(reply.choices[0].message.content) == {"snippet": TEXT}
    assert server.bodies[-1]["response_format"]["value"] == schema


@pytest.mark.parametrize(
    ("kind", "status"), [("429", 429), ("424_batch", 424), ("500", 500), ("503", 503), ("504", 504), ("text_422", 422)]
)
def test_the_hubs_errors_of_a_chat(kind, status):
    """One class with the status, whatever the form of the body."""
    faults = [Fault(kind=kind)]
    with Emulator(reply=TEXT, faults=faults) as server, pytest.raises(hub_errors.HfHubHTTPError) as caught:
        hub_call(server, hub_chat())
    assert caught.value.response.status_code == status


@pytest.mark.parametrize(
    ("fault", "fields", "error"),
    [
        ("429", {}, "OverloadedError"),
        ("424_batch", {}, "GenerationError"),
        ("500", {}, "IncompleteGenerationError"),
        (None, {"top_p": 1.0}, "ValidationError"),
        (None, {"temperature": 0.0}, "ValidationError"),
        ("text_422", {}, "HfHubHTTPError"),
        ("502", {}, "HfHubHTTPError"),
    ],
)
def test_the_hubs_errors_of_a_generation(fault, fields, error):
    """By error_type where the body is TGI's, by status where it is not."""
    faults = [Fault(kind=fault)] if fault else ()
    with Emulator(reply=TEXT, faults=faults) as server, pytest.raises(getattr(hub_errors, error)):
        hub_call(server, hub_generation(**fields), "/generate")


def test_the_hubs_error_of_a_stream():
    """It has status 200 and says 422, whatever it is."""

    async def call(client):
        return [chunk async for chunk in await client.chat_completion(MESSAGES, stream=True, top_p=1.0)]

    with Emulator(reply=TEXT) as server, pytest.raises(Exception, match="top_p") as caught:
        hub_call(server, call)
    assert isinstance(caught.value, (hub_errors.TextGenerationError, hub_errors.UnknownError))


def test_the_hubs_client_at_its_limits(server):
    """Too long is a refusal, a deadline its timeout, a wrong key a 401."""
    with pytest.raises(hub_errors.HfHubHTTPError) as caught:
        hub_call(server, lambda client: client.chat_completion([{"role": "user", "content": "word " * 500}]))
    assert caught.value.response.status_code == 422
    with Emulator(reply=TEXT, latency=Latency(overhead=5.0), api_key="k") as slow:
        with pytest.raises(hub_errors.HfHubHTTPError, match="401"):
            hub_call(slow, hub_chat())
        with pytest.raises(hub_errors.InferenceTimeoutError):
            hub_call(slow, hub_chat(), timeout=0.2, headers={"authorization": "Bearer k"})


def test_openais_client_reads_chats_and_errors():
    """The usual client of the other kind of server, as users point it at TGI's /v1."""
    openai = pytest.importorskip("openai")

    async def main(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            create = client.chat.completions.create
            reply = await create(model="tgi", messages=MESSAGES, temperature=0, max_tokens=20)
            stream = await create(model="tgi", messages=MESSAGES, temperature=0, stream=True)
            text = "".join([chunk.choices[0].delta.content async for chunk in stream])
            models = [model.id async for model in client.models.list()]
            with pytest.raises(openai.UnprocessableEntityError):
                await create(model="tgi", messages=MESSAGES, stop="x")
            with pytest.raises(openai.RateLimitError):
                await create(model="tgi", messages=MESSAGES, temperature=0, user="overloaded")
            return reply, text, models

    with Emulator(reply=TEXT, api_key="k", faults=[Fault(kind="429", match="overloaded")]) as server:
        reply, text, models = asyncio.run(main(server.url))
        assert models == [server.model]
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason, text) == (TEXT, "stop", TEXT)


# TGI's schema in a form of our own: what a chat request may hold. Anything else is ignored by the server, silently.
CHAT_TYPES = {
    "messages": list,
    "model": str,
    "max_tokens": int,
    "temperature": (int, float),
    "stream": bool,
    "stop": list,
    "seed": int,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "logprobs": bool,
    "top_logprobs": int,
    "n": int,
    "logit_bias": list,
    "response_format": dict,
    "stream_options": dict,
    "tools": list,
    "tool_prompt": str,
    "tool_choice": (str, dict),
}


def test_our_client_sends_what_the_schema_has(row):
    """Known fields of the right types, one required; greedy, without the traps."""
    with Emulator() as server:
        endpoint = arhn.Endpoint(server.url)
        found = arhn.Snippets(annotator=endpoint)(dict(row))
        ranked = arhn.Ranks(annotator=endpoint, rank_by="passage")({**row, **found})
        bodies, stats = server.bodies, server.stats
    assert ranked["ranking"]["status"] == "ranked"
    assert bodies
    for body in bodies:
        assert "messages" in body
        assert {name for name, value in body.items() if not isinstance(value, CHAT_TYPES.get(name, ()))} == set()
        assert body["temperature"] == 0
        assert body.keys().isdisjoint({"top_p", "presence_penalty", "frequency_penalty", "seed"})
    assert (stats.sampled, stats.penalised, stats.duplicates) == (0, 0, 0)


def test_the_emulator_checks_the_same_fields():
    """The fields of the schema and those that the emulator knows are one, but for tool_choice and an alias."""
    assert set(CHAT_TYPES) - {"tool_choice"} == set(CHAT_FIELDS) - {"max_completion_tokens"}
    assert len(PARAMETER_FIELDS) == 19
