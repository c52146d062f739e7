"""A `huggingface_hub.AsyncInferenceClient` of the user's as the transport: the same statuses, retries and store."""

from __future__ import annotations

import asyncio
import json
import socket
from importlib.metadata import version

import pytest
from aiohttp import web
from datasets import Dataset
from huggingface_hub import AsyncInferenceClient, constants

import arhn_datasets as arhn
from arhn_datasets import cli, errors
from arhn_datasets.annotators.client.contract import ChatRequest, ConnectionOptions
from arhn_datasets.annotators.client.hub import HubTransport
from arhn_datasets.annotators.client.pool import Pool
from arhn_datasets.annotators.interface import SnippetRequest
from arhn_datasets.rows import background
from arhn_datasets.rows.records import ERROR
from arhn_datasets.testing import Emulator, Fault
from tests.conftest import SAMPLE
from tests.fakes.served import always, served
from tests.fakes.together import Together

only_newer_hub = pytest.mark.skipif(
    version("huggingface_hub").startswith("0."), reason="before 1.0 the hub's client says less of what went wrong"
)

MODEL = "emulated/lexical"
KEY = "secret-key-1234"
REQUEST = ChatRequest(messages=({"role": "user", "content": "What?"},), max_tokens=8)
ASKED = SnippetRequest(
    query="When does tin melt?", passage={"docid": "d", "title": "", "text": "Tin melts at 232 °C."}, task="question"
)


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def hub(url, **options):
    """A client as users make it."""
    return AsyncInferenceClient(base_url=url, **{"api_key": KEY, **options})


def evidence(client, *requests, **options):
    """What an annotator with that client makes of snippet requests; the client belongs to the background loop."""
    made = {"model": MODEL, "attempts": 2, "backoff": 0.001, "deadline": 60, **options}
    annotator = arhn.Endpoint(client=client, **made)

    async def all_of():
        return await asyncio.gather(*(annotator.snippet(request) for request in requests))

    return background.run(all_of())


def fails(url, client=None, **options):
    """The error of one request, with as much patience as a slow machine needs."""

    async def main():
        made = ConnectionOptions(**{"backoff": 0.001, "attempts": 2, "deadline": 60, **options})
        pool = Pool([HubTransport(client or hub(url), "m")], made)
        try:
            await pool.chat(REQUEST)
        finally:
            await pool.close()

    with pytest.raises(errors.ArhnError) as caught:
        asyncio.run(main())
    return caught.value


def test_the_same_evidence_as_over_our_own_client(sample):
    """Row by row, with the same store: what one has paid for the other finds, where it is the same model."""
    rows = Dataset.from_list(sample[:4])
    with Emulator() as server:
        ours = rows.map(arhn.Snippets(endpoint=server.url, cache="none"))
        asked = server.stats.requests
        server.reset_stats()
        theirs = rows.map(arhn.Snippets(client=hub(server.url), model=MODEL))
        assert server.stats.requests == asked
        assert server.bodies[0]["model"] == MODEL
        assert server.bodies[0]["temperature"] == 0
        again = rows.map(arhn.Snippets(client=hub(server.url), model=MODEL))
        assert server.stats.requests == asked
    assert ours.to_list() == theirs.to_list() == again.to_list()


def test_passing_faults_are_asked_again():
    """The hub's client tries nothing twice; the pool does."""
    kinds = ["429", "500", "424_batch", "reset_before", "truncated_json", "empty_text"]
    for kind in kinds:
        with Emulator(faults=[Fault(kind=kind, on=1)]) as server:
            (found,) = evidence(hub(server.url), ASKED, cache="none", deadline=5)
            assert (found.status, server.stats.requests) == ("grounded", 2), kind


def test_no_more_in_flight_than_asked_for():
    """The limit is the pool's."""
    requests = [SnippetRequest(query=f"q{n}", passage=ASKED.passage, task="question") for n in range(20)]
    with Emulator(reply=Together(3, "x")) as server:
        found = evidence(hub(server.url), *requests, concurrency=3, deadline=120)
        assert server.stats.peak_in_flight == 3
    assert ERROR not in {snippet.status for snippet in found}


@pytest.mark.parametrize(
    ("status", "kind", "requests"),
    [
        (401, errors.AccessDenied, 1),
        (403, errors.AccessDenied, 1),
        (404, errors.AccessDenied, 1),
        (413, errors.PromptTooLong, 1),
        (422, errors.RequestRejected, 1),
        (424, errors.EndpointFailure, 2),
        (500, errors.EndpointFailure, 2),
    ],
)
def test_statuses(status, kind, requests):
    """Each is our own error; what cannot succeed is asked once, and no message shows the token."""
    with served(intercept=always(lambda: web.json_response({"error": f"no {KEY}"}, status=status))) as server:
        error = fails(server.url)
    assert type(error) is kind
    assert str(status) in str(error)
    assert server.stats.requests == requests
    while error is not None and isinstance(error, errors.ArhnError):
        assert KEY not in str(error)
        error = error.__cause__ if isinstance(error.__cause__, errors.ArhnError) else None


@pytest.mark.parametrize("body", ["", "null", "[]", "[1]", '"x"', '{"choices": []}', "<html>"])
def test_a_200_that_is_no_completion(body):
    """Whatever the hub makes of it, it is asked again once and never ends the run."""
    with served(intercept=always(lambda: web.Response(text=body, content_type="application/json"))) as server:
        assert type(fails(server.url)) is errors.EmptyReply
    assert server.stats.requests == 2


@pytest.mark.parametrize(("status", "kind"), [(429, errors.EndpointOverloaded), (503, errors.EndpointUnavailable)])
def test_an_overloaded_or_absent_provider_is_waited_for(status, kind):
    """Until the deadline, without using up attempts."""
    with served(intercept=always(lambda: web.json_response({"error": "later"}, status=status))) as server:
        assert type(fails(server.url, deadline=3)) is kind
    assert server.stats.requests > 2


@only_newer_hub
def test_retry_after():
    """The header of the provider is heeded."""
    with Emulator(faults=[Fault(kind="429", on=1, retry_after=0.3)], reply="x") as server:

        async def main():
            pool = Pool([HubTransport(hub(server.url), "m")], ConnectionOptions(backoff=0.001))
            started = asyncio.get_running_loop().time()
            await pool.chat(REQUEST)
            return asyncio.get_running_loop().time() - started

        assert asyncio.run(main()) > 0.25


def test_a_timeout():
    """Of the client's own setting: an attempt, and in the end an error."""
    with Emulator(faults=[Fault(kind="hang")]) as server:
        error = fails(server.url, hub(server.url, timeout=0.05))
        assert type(error) is errors.EndpointUnavailable
        assert "in time" in str(error)
        assert server.stats.requests == 2


def test_nobody_there():
    """A refused connection is waited for, and the run ends when nobody has answered for too long."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    error = fails(url, deadline=1)
    assert type(error) is errors.EndpointUnavailable
    assert "no connection through the AsyncInferenceClient" in str(error)
    assert type(fails(url, give_up_after=0.1)) is errors.EndpointsDead


@only_newer_hub
def test_offline(monkeypatch):
    """HF_HUB_OFFLINE forbids every request of this client, and the message says so."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with Emulator() as server:
        error = fails(server.url)
        assert type(error) is errors.ConfigurationError
        assert "HF_HUB_OFFLINE" in str(error)
        assert not server.stats.requests


def test_a_model_has_to_be_named():
    """A URL is no model, and neither is none."""
    for client in (hub("http://127.0.0.1:1"), AsyncInferenceClient(api_key=KEY)):
        with pytest.raises(errors.ConfigurationError, match="names no model.*model= or --model"):
            evidence(client, ASKED, model=None)
    with pytest.raises(errors.ConfigurationError, match="was made for 'a/b', and 'c/d' was asked for"):
        evidence(AsyncInferenceClient("a/b", api_key=KEY), ASKED, model="c/d")


def test_the_clients_own_model_is_taken():
    """Where it was made for one."""
    transport = HubTransport(AsyncInferenceClient("a/b", api_key=KEY))
    assert asyncio.run(transport.info()).model == "a/b"


@only_newer_hub
def test_constrained_output_and_its_refusal():
    """The schema goes along, and where the server takes none it is left out."""
    with Emulator() as server:
        (found,) = evidence(hub(server.url), ASKED, constrained=True)
        assert server.bodies[0]["response_format"]["value"]["required"] == ["snippet"]
        assert found.status == "grounded"
    with Emulator(grammars=False) as server:
        (found,) = evidence(hub(server.url), ASKED, constrained=True, cache="none")
        assert found.status == "grounded"
        assert ["response_format" in body for body in server.bodies] == [True, False]


def test_nothing_secret_is_kept_or_shown(tmp_path):
    """Neither in the store nor in a repr."""
    client = hub("http://127.0.0.1:1")
    stage = arhn.Snippets(client=client, model=MODEL)
    assert KEY not in repr(stage)
    assert KEY not in json.dumps(stage.identity())
    with Emulator() as server:
        evidence(hub(server.url), ASKED, cache=str(tmp_path))
    background.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"232" in stored
    assert KEY.encode() not in stored


@only_newer_hub
def test_a_provider_at_the_command_line(tmp_path, monkeypatch, capsys):
    """--provider asks through the hub's client, with the key that was named for it and no other."""
    from huggingface_hub.hf_api import InferenceProviderMapping
    from huggingface_hub.inference._providers import _common

    mapping = InferenceProviderMapping(
        provider="together", hf_model_id=MODEL, providerId=MODEL, task="conversational", status="live"
    )
    monkeypatch.setitem(_common.HARDCODED_MODEL_INFERENCE_MAPPING["together"], MODEL, mapping)
    monkeypatch.setattr(_common, "get_token", lambda: pytest.fail("the stored token was looked up"))
    out = tmp_path / "out"
    command = [str(SAMPLE), "--limit", "3", "--provider", "together", "--model", MODEL, "--output", str(out)]
    assert cli.refine_command(command) == 2
    assert "ARHN_API_KEY" in capsys.readouterr().err
    with Emulator(api_key="hf_named") as server:
        monkeypatch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", server.url)
        monkeypatch.setenv("ARHN_API_KEY", "hf_named")
        assert cli.refine_command(command) == 0
        assert server.stats.served > 10
    run = (out / "run.json").read_text(encoding="utf-8")
    assert MODEL in run
    assert "hf_named" not in run
