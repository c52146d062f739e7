"""Several servers as one, and each API in its own shape: routing, waiting, constrained output, lengths."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace

import pytest
from aiohttp import web

import arhn_datasets as arhn
from arhn_datasets import errors
from arhn_datasets.annotators.client import limits
from arhn_datasets.annotators.client import pool as pools
from arhn_datasets.annotators.client.contract import (
    OPENAI,
    TGI,
    ChatRequest,
    Completion,
    ConnectionOptions,
    chat_body,
    generate_body,
    room,
    thinks,
)
from arhn_datasets.annotators.client.contract import ServerInfo as Info
from arhn_datasets.annotators.client.http import HttpTransport
from arhn_datasets.annotators.client.pool import AFFINITY_SLACK, Pool
from arhn_datasets.annotators.client.sizing import START, Sizing
from arhn_datasets.annotators.interface import RankingRequest, SnippetRequest
from arhn_datasets.annotators.reply_forms import MAX_GRAMMARS, ranking_schema
from arhn_datasets.rows import background
from arhn_datasets.rows.records import ERROR, GROUNDED, NO_ANSWER, RANKED
from arhn_datasets.testing import Emulator, Fault, Latency
from tests.fakes.served import always, completion, when
from tests.fakes.together import Together

SCHEMA = {"type": "object", "properties": {"snippet": {"type": "string"}}, "required": ["snippet"]}
SAID = "Tin melts at 232 °C."
CALL_SECONDS = 120  # of a test that hangs; none takes as many


@pytest.fixture(autouse=True)
def _quick_probes(monkeypatch):
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(limits, "PROBE_SECONDS_MAX", 0.05)


def request(number=0, affinity="", **options):
    """A short request; all with the same affinity share a query."""
    return ChatRequest(
        messages=({"role": "user", "content": f"{affinity} {number}"},), max_tokens=8, affinity=affinity, **options
    )


class Fake:
    """A transport that needs no network; ``reply`` may raise."""

    def __init__(self, name, reply=None, model="m", revision=None, **limit):
        self.name = name
        self.found = Info(api=TGI, model=model, revision=revision, **limit)
        self.reply = reply or (lambda number: Completion(text=name, prompt_tokens=3, completion_tokens=2))
        self.away = False
        self.seconds = 0.0
        self.asked = []
        self.in_flight = self.most = 0

    async def info(self):
        await self.probe()
        return self.found

    async def probe(self):
        if self.away:
            raise errors.EndpointUnavailable(f"no connection to {self.name}")

    async def chat(self, info, request):
        self.asked.append(request.affinity)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            await self.probe()
            return self.reply(len(self.asked))
        finally:
            self.in_flight -= 1

    async def queue(self):
        """It does not say."""

    async def close(self):
        """Nothing is open."""


def pooled(transports, call, **options):
    """Make a pool, call it on a loop of its own, close it; the pool and the result."""

    async def main():
        made = ConnectionOptions(**{"backoff": 0.001, "attempts": 3, "deadline": 5, **options})
        pool = Pool([make(made) if callable(make) else make for make in transports], made)
        try:
            return pool, await asyncio.wait_for(call(pool), CALL_SECONDS)
        finally:
            await pool.close()

    return asyncio.run(main())


def at(server, model=None):
    """The transport to a server."""
    return lambda options: HttpTransport(server.url, options, model)


def all_of(requests):
    """So many requests at once."""
    return lambda pool: asyncio.gather(*(pool.chat(one) for one in requests))


def raising(error):
    """A reply that is an error."""

    def reply(_):
        raise error

    return reply


# -- routing ----------------------------------------------------------------------------------------------------------


def test_the_requests_of_a_query_go_to_one_server():
    """They share a prefix; different queries spread over both."""
    servers = [Fake("a"), Fake("b")]
    pooled(servers, all_of([request(number, f"q{number // 4}") for number in range(160)]), concurrency=200)
    queries = [set(server.asked) for server in servers]
    assert min(map(len, queries)) >= 10
    assert len(queries[0] & queries[1]) <= 8  # only those that were moved for load


def test_a_busy_server_loses_its_queries_to_an_idle_one():
    """One query's requests alone may not keep one server busy while the other has nothing to do."""
    servers = [Fake("a"), Fake("b")]
    for server in servers:
        server.seconds = 0.05
    pooled(servers, all_of([request(number, "q") for number in range(100)]))
    counts = sorted(len(server.asked) for server in servers)
    assert counts[1] - counts[0] <= AFFINITY_SLACK + 1


def test_requests_without_affinity_go_to_the_idlest():
    """Measured by what each server takes."""
    servers = [Fake("a", max_concurrent_requests=30), Fake("b", max_concurrent_requests=10)]
    for server in servers:
        server.seconds = 0.02
    pooled(servers, all_of([request(number) for number in range(36)]))
    assert [server.most for server in servers] == [27, 9]


def test_a_replica_that_is_dead_from_the_start():
    """The other one does the work, and the dead one joins in when it answers."""
    servers = [Fake("a"), Fake("b")]
    servers[0].away = True

    async def call(pool):
        first = await asyncio.gather(*(pool.chat(request(number, f"q{number}")) for number in range(20)))
        servers[0].away = False
        await pool.servers[0].breaker.closed.wait()
        second = await asyncio.gather(*(pool.chat(request(number, f"q{number}")) for number in range(20)))
        return {reply.text for reply in first}, {reply.text for reply in second}

    _, found = pooled(servers, call)
    assert found == ({"b"}, {"a", "b"})


def test_a_replica_that_joins_late_has_to_serve_the_same_model():
    """Its replies would be kept under the name of the other's model."""
    servers = [Fake("a", model="other"), Fake("b")]
    servers[0].away = True

    async def call(pool):
        await pool.chat(request())
        servers[0].away = False
        await pool.servers[0].breaker.closed.wait()
        await pool.chat(request())

    with pytest.raises(errors.ConfigurationError, match=r"a serves other@None now, and the run began with m@None"):
        pooled(servers, call)
    assert not servers[0].asked


def test_a_replica_that_dies_in_the_middle():
    """What it had in flight is asked of the other one, which costs no attempt; nothing is lost."""
    servers = [Fake("a"), Fake("b")]
    for server in servers:
        server.seconds = 0.01

    def dying(number):
        servers[0].away = number >= 20
        return Completion(text="a")

    servers[0].reply = dying
    pool, found = pooled(
        servers, all_of([request(number, f"q{number}") for number in range(200)]), attempts=1, concurrency=8
    )
    assert {reply.text for reply in found} == {"a", "b"}
    assert (pool.statistics.replies, pool.statistics.failures) == (200, 0)
    assert pool.statistics.retries >= 5


@pytest.mark.parametrize(
    "error",
    [
        errors.EndpointFailure("500: Incomplete generation"),
        errors.EndpointUnavailable("no reply in time", own=True),
        errors.EmptyReply("nothing"),
    ],
)
def test_a_replica_that_fails_every_request_loses_them_to_the_other(error):
    """A server that answers 500 to all, or never, does not use up the attempts of its queries."""
    servers = [Fake("a", raising(error)), Fake("b")]
    pool, found = pooled(servers, all_of([request(number, f"q{number}") for number in range(60)]), attempts=2)
    assert {reply.text for reply in found} == {"b"}
    assert pool.statistics.failures == 0


def test_a_server_that_restarts():
    """Requests wait for it, use up no attempt, and go on."""
    server = Fake("a")

    async def call(pool):
        await pool.chat(request())
        server.away = True
        waiting = [asyncio.create_task(pool.chat(request(number))) for number in range(20)]
        await asyncio.sleep(0.2)
        seen = pool.statistics.waiting_for_servers, any(task.done() for task in waiting)
        server.away = False
        return seen, await asyncio.gather(*waiting)

    pool, (seen, replies) = pooled([server], call, attempts=1)
    assert seen == (True, False)
    assert len(replies) == 20
    assert not pool.statistics.waiting_for_servers


@pytest.mark.parametrize("found", [{"model": "other"}, {"revision": "ffff"}])
def test_a_model_that_changes_while_running(found):
    """After a restart the server is asked who it is, and another model ends the run."""
    server = Fake("a", revision="0123")

    async def call(pool):
        await pool.chat(request())
        server.away = True
        waiting = asyncio.gather(*(pool.chat(request(number)) for number in range(10)), return_exceptions=True)
        await asyncio.sleep(0.1)
        asked = len(server.asked)
        server.found, server.away = replace(server.found, **found), False
        return await waiting, len(server.asked) - asked

    _, (results, more) = pooled([server], call)
    assert {type(result) for result in results} == {errors.ConfigurationError}
    assert "now, and the run began with m@0123" in str(results[0])
    assert more == 0


def test_a_gateway_that_hides_the_revision_for_a_while_is_no_other_model():
    """Where /info is not there after a restart, the name of the model has to do, and the API stays."""
    server = Fake("a", revision="0123")

    async def call(pool):
        await pool.info()
        pool.servers[0].breaker.failed(dead=True)
        server.found = Info(api=OPENAI, model="m")
        await pool.servers[0].breaker.closed.wait()
        await pool.chat(request())
        return pool.servers[0].info.api

    assert pooled([server], call)[1] == TGI


@pytest.mark.parametrize("healthy", [False, True])
def test_servers_that_stay_dead_end_the_run(healthy):
    """Also where only their health route answers; the message names them and says how to go on."""
    servers = [Fake("http://a"), Fake("http://b")]

    async def call(pool):
        await pool.info()
        for server in servers:
            server.away = not healthy
            server.reply = raising(errors.EndpointUnavailable("503: Down"))
        await pool.chat(request())

    with pytest.raises(errors.EndpointsDead, match=r"answered for \d+ seconds \(http://a, http://b\).*same command"):
        pooled(servers, call, give_up_after=0.3, deadline=10)


def test_an_answer_of_any_kind_is_a_sign_of_life():
    """What a living server refuses does not count towards giving up."""
    server = Fake("a")

    async def call(pool):
        await pool.info()
        for _ in range(4):
            server.away = True
            waiting = asyncio.create_task(pool.chat(request()))
            await asyncio.sleep(0.15)
            server.away, server.reply = False, raising(errors.RequestRejected("422: no"))
            with pytest.raises(errors.RequestRejected):
                await waiting

    pooled([server], call, give_up_after=0.4)


def test_a_request_waits_for_a_dead_server_until_its_deadline():
    """Not for as long as the run would; the error is the last one that it met."""
    server = Fake("a")

    async def call(pool):
        await pool.info()
        server.away = True
        await pool.chat(request())

    with pytest.raises(errors.EndpointUnavailable, match="no connection to a"):
        pooled([server], call, deadline=0.2, give_up_after=60)


def test_time_in_our_own_queue_counts_towards_no_deadline():
    """The last of thousands of rows still has its attempts."""
    server = Fake("a")
    server.seconds = 0.3

    def failing_late(number):
        if number == 8:
            raise errors.EndpointFailure("500")
        return Completion(text="a")

    server.reply = failing_late
    _, found = pooled([server], all_of([request(number) for number in range(8)]), concurrency=1, deadline=2)
    assert len(found) == 8


# -- limits and counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("concurrency", "most"), [(None, 31), (5, 5)])
def test_at_most_so_many_requests_in_flight(concurrency, most):
    """Just below the server's limit, or as the option says; the server never refuses one."""
    with Emulator(max_concurrent_requests=32, slots=32, reply=Together(most, "x")) as server:
        pool, found = pooled([at(server)], all_of([request(number) for number in range(200)]), concurrency=concurrency)
        stats = server.stats
    assert len(found) == 200
    assert stats.peak_in_flight == most
    assert stats.by_status == {"200": 200}
    assert pool.statistics.retries == 0


def test_a_limit_that_nobody_told_us_is_found(monkeypatch):
    """A server that takes 8 and a client that believes in 128: everything is answered, and few refusals are met."""
    monkeypatch.setattr(limits, "RECOVERY_SECONDS", 0.05)
    with Emulator(max_concurrent_requests=8, slots=8, latency=Latency(overhead=0.01), reply="x") as server:
        pool, found = pooled(
            [at(server)], all_of([request(number) for number in range(400)]), concurrency=128, backoff=0.02, deadline=15
        )
    assert len(found) == 400
    assert pool.statistics.overloads < 1200
    assert pool.servers[0].limit.current < 40


def test_statistics_add_up():
    """Requests are replies and failures, retries those that were asked again, and nothing stays in flight."""
    script = {
        1: errors.EndpointOverloaded("429"),
        2: errors.EndpointFailure("500"),
        3: errors.EndpointUnavailable("reset", own=True),
        4: errors.EmptyReply("empty"),
        5: errors.RequestRejected("422"),
    }

    def reply(number):
        if number in script:
            raise script[number]
        return Completion(text="a", prompt_tokens=3, completion_tokens=2 if number % 2 else None)

    async def call(pool):
        return await asyncio.gather(*(pool.chat(request(number)) for number in range(20)), return_exceptions=True)

    server = Fake("a", reply)
    pool, found = pooled([server], call, concurrency=1)
    counted = pool.statistics
    assert (counted.requests, counted.replies, counted.failures) == (20, 19, 1)
    assert (counted.retries, counted.overloads, counted.in_flight) == (4, 1, 0)
    assert len(server.asked) == counted.requests + counted.retries
    assert counted.prompt_tokens == 19 * 3
    assert counted.completion_tokens == 2 * sum(number % 2 for number in range(6, 25))
    assert sum(isinstance(reply, Completion) for reply in found) == 19


# -- which API --------------------------------------------------------------------------------------------------------


def test_info_missing():
    """A TGI whose /info is hidden is spoken to as an OpenAI server, and answers."""
    with Emulator(faults=[Fault(kind="info_missing")], reply=SAID) as server:
        pool, found = pooled([at(server)], lambda pool: pool.chat(request()))
        assert found.text == SAID
        assert pool.servers[0].info == Info(api=OPENAI, model=server.model)
        assert server.bodies[0]["model"] == server.model


def test_the_api_can_be_forced():
    """TGI where /info is hidden, OpenAI where it is there, and either where only the option names the model."""
    with Emulator(faults=[Fault(kind="info_missing")], reply=SAID) as server:
        pooled([at(server)], lambda pool: pool.chat(request()), api=TGI)
        pooled([at(server)], lambda pool: pool.chat(request()), api=OPENAI)
        assert [body["model"] for body in server.bodies] == ["tgi", server.model]
        assert server.stats.by_path["/info"] == 1
    hidden = when(lambda request: request.method == "GET", lambda: web.Response(status=404), path=None)
    with Emulator(reply=SAID, intercept=hidden) as server:
        pooled([at(server, "named/model")], lambda pool: pool.chat(request()), api=OPENAI)
        pooled([at(server, "named/model")], lambda pool: pool.chat(request()), api=TGI)
        with pytest.raises(errors.ConfigurationError, match="name the API and the model"):
            pooled([at(server)], lambda pool: pool.chat(request()), api=TGI)
    assert [body["model"] for body in server.bodies] == ["named/model", "tgi"]


# -- thinking and constrained output ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("Qwen/Qwen3-8B", True),
        ("Qwen/QwQ-32B", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", True),
        ("Qwen/Qwen3-4B-Thinking", True),
        ("Qwen/Qwen3-4B-Instruct-2507", False),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct", False),
        ("meta-llama/Llama-3.3-70B-Instruct", False),
    ],
)
def test_which_models_think(model, thinking):
    """By their names."""
    assert thinks(model) is thinking


def test_a_thinking_model_on_tgi_gets_a_closed_thought():
    """It answers at once instead of filling the reply with thoughts; under a schema it cannot think anyway."""
    with Emulator(model="Qwen/Qwen3-8B", thinking=50, reply=SAID) as server:
        _, found = pooled([at(server)], lambda pool: pool.chat(replace(request(), max_tokens=40)))
        _, held = pooled([at(server)], lambda pool: pool.chat(replace(request(), max_tokens=40, schema=SCHEMA)))
        plain, constrained = server.bodies
    assert found.text.strip() == SAID
    assert plain["messages"][-1] == {"role": "assistant", "content": "<think>\n\n</think>"}
    assert constrained["messages"][-1]["role"] == "user"
    assert json.loads(held.text) == {"snippet": SAID}


def test_the_shapes_of_constrained_output():
    """Each API takes its own only."""
    asked = request(schema=SCHEMA)
    assert chat_body(Info(api=TGI, model="m"), asked)["response_format"] == {"type": "json", "value": SCHEMA}
    assert chat_body(Info(api=OPENAI, model="m"), asked)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True},
    }
    assert generate_body("x", asked)["parameters"]["grammar"] == {"type": "json", "value": SCHEMA}
    for api in (TGI, OPENAI):
        assert "response_format" not in chat_body(Info(api=api, model="m"), request())


def test_a_server_that_takes_no_grammars_is_asked_without(caplog):
    """Each of those already under way once more, later ones at once; it is said once, and costs no attempt."""
    with Emulator(grammars=False, reply=SAID, latency=Latency(overhead=0.02)) as server:

        async def waves(pool):
            await all_of([request(number, schema=SCHEMA) for number in range(4)])(pool)
            return await all_of([request(number, schema=SCHEMA) for number in range(4, 8)])(pool)

        _, found = pooled([at(server)], waves, attempts=1)
        bodies = server.bodies
    assert {reply.text for reply in found} == {SAID}
    assert len(bodies) == 4 + 4 + 4
    assert not any("response_format" in body for body in bodies[8:])
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "takes no constrained output (422: Input validation error: grammar is not supported)" in said[0]


def test_another_refusal_is_no_reason_to_drop_the_schema():
    """The error comes out, and the next request has its schema."""
    with Emulator(reply=SAID, faults=[Fault(kind="text_422", on=1)]) as server:

        async def two(pool):
            with pytest.raises(errors.RequestRejected, match="deserialize"):
                await pool.chat(request(schema=SCHEMA))
            await pool.chat(request(schema=SCHEMA))

        pooled([at(server)], two)
        assert all("response_format" in body for body in server.bodies)


def test_at_most_32_grammars():
    """One for snippets, one for each length of ranking up to a bound, and none above."""
    schemas = [ranking_schema(count) for count in range(1, 200)]
    assert len({json.dumps(schema) for schema in schemas if schema}) == MAX_GRAMMARS - 1


def test_constrained_evidence():
    """Snippets and rankings come as JSON of their schema, and are read."""
    with Emulator() as server:
        annotator = arhn.Endpoint(server.url, constrained=True)

        async def both():
            return await asyncio.gather(
                annotator.snippet(snippet_request("Copper is red. Tin melts at 232 °C.")),
                annotator.ranking(ranking_request("Copper is red.", "Tin melts at 232 °C.")),
            )

        snippet, ranking = background.run(both())
        assert all(body["response_format"]["type"] == "json" for body in server.bodies)
    assert (snippet.status, ranking.status) == (GROUNDED, RANKED)
    assert ranking.tiers == ((1,), (0,))


# -- no chat template -------------------------------------------------------------------------------------------------


class Tokenizer:
    """As much of a tokenizer as is needed."""

    chat_template = "{{ messages }}"
    loaded = 0

    @classmethod
    def from_pretrained(cls, model, revision=None, local_files_only=False):
        cls.loaded += 1
        assert (model, revision) in (("some/model", "0123"), ("a/folder", None))
        return cls()

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, enable_thinking):
        assert (tokenize, add_generation_prompt, enable_thinking) == (False, True, False)
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def test_a_server_without_a_chat_template(monkeypatch, caplog):
    """The template is rendered here, loaded once by however many, and /generate is asked from then on."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizer)
    monkeypatch.setattr(Tokenizer, "loaded", 0)
    with Emulator(model="some/model", revision="0123", chat_template=False, reply=SAID) as server:

        async def waves(pool):
            first = await all_of([request(number) for number in range(5)])(pool)
            more = await all_of([replace(request(number, schema=SCHEMA), max_tokens=40) for number in range(5)])(pool)
            return [reply.text for reply in first], {json.loads(reply.text)["snippet"] for reply in more}

        _, (plain, constrained) = pooled([at(server)], waves, attempts=1)
        stats, bodies = server.stats, server.bodies
    assert (plain, constrained) == ([SAID] * 5, {SAID})
    assert Tokenizer.loaded == 1
    assert (stats.by_path["/v1/chat/completions"], stats.by_path["/generate"], stats.sampled) == (5, 10, 0)
    assert {body["inputs"] for body in bodies[5:]} == {f"<user> {number}<assistant>" for number in range(5)}
    assert len([record for record in caplog.records if "no chat template" in record.message]) == 1


@pytest.mark.parametrize("trouble", ["missing", "no template"])
def test_no_chat_template_anywhere(monkeypatch, trouble):
    """Where the tokenizer does not help either, no request can succeed, and the message says why."""
    transformers = pytest.importorskip("transformers")

    class Poor(Tokenizer):
        chat_template = None

        @classmethod
        def from_pretrained(cls, model, revision=None, local_files_only=False):
            cls.loaded += 1
            if trouble == "missing":
                raise OSError("some/model is not a local folder")
            return cls()

    monkeypatch.setattr(transformers, "AutoTokenizer", Poor)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: 1 / 0)
    with Emulator(model="some/model", chat_template=False) as server:
        with pytest.raises(errors.ConfigurationError, match="chat template.*--tokenizer"):
            pooled([at(server)], all_of([request(number) for number in range(5)]))
        assert server.stats.requests <= 5
    assert Poor.loaded == 1


def test_a_tokenizer_that_is_named(monkeypatch):
    """It is loaded before the first request, renders every prompt, and the router's count of tokens is taken."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizer)
    monkeypatch.setattr(Tokenizer, "loaded", 0)
    with Emulator(model="some/model", revision="0123", chat_template=False, reply=SAID) as server:
        transport = HttpTransport(server.url, ConnectionOptions(tokenizer="a/folder"))
        _, reply = pooled([transport], lambda pool: pool.chat(request()))
        assert (Tokenizer.loaded, server.stats.by_path.get("/v1/chat/completions")) == (1, None)
    assert reply.text == SAID
    assert reply.prompt_tokens


# -- prompts that are too long ----------------------------------------------------------------------------------------


def snippet_request(text):
    """A question about one passage."""
    passage = {"docid": "d", "title": "", "text": text}
    query = "At what temperature does tin melt?"
    return SnippetRequest(query=query, passage=passage, task="question")


def ranking_request(*candidates):
    """The same question about several texts."""
    return RankingRequest(query="At what temperature does tin melt?", candidates=candidates, task="question")


def evidence(server, asked, **options):
    """What the annotator makes of one request."""
    annotator = arhn.Endpoint(server.url, **{"cache": "none", "backoff": 0.001, "deadline": 2, **options})
    call = annotator.snippet if isinstance(asked, SnippetRequest) else annotator.ranking
    return background.run(call(asked))


LONG = "Tin melts at 232 °C. " + "Copper is red. " * 2000


def test_room():
    """The smaller of the two limits, less what the template may add; at least one token."""
    assert room(Info(api=TGI, model="m"), 100) is None
    assert room(Info(api=TGI, model="m", max_input_tokens=1000, max_total_tokens=2000), 100) == 999 - 64
    assert room(Info(api=TGI, model="m", max_input_tokens=1000, max_total_tokens=1050), 100) == 950 - 64
    assert room(Info(api=TGI, model="m", max_input_tokens=10), 100) == 1


@pytest.mark.parametrize(("tokens", "tokenize"), [(1500, True), (7000, True), (1500, False), (1500, "broken")])
def test_a_passage_that_is_too_long_is_cut(monkeypatch, tokens, tokenize):
    """By the server's own count, or by an estimate; the server refuses nothing, and offsets are those of the whole."""
    counts = {
        True: None,
        False: always(lambda: web.Response(status=404), "/tokenize"),
        "broken": always(lambda: web.Response(text="<html>"), "/tokenize"),
    }
    with Emulator(max_input_tokens=tokens, max_total_tokens=tokens + 384, intercept=counts[tokenize]) as server:
        found = evidence(server, snippet_request(LONG))
        stats = server.stats
    assert found.status == GROUNDED
    assert LONG[found.start : found.end] == found.snippet
    assert "232" in found.snippet
    assert found.detail.startswith("the first ")
    assert "of the passage was read" in found.detail
    assert stats.by_status.get("200") == 1
    assert tokenize is not True or stats.requests == 1


def test_a_passage_that_is_far_too_long_is_cut(monkeypatch):
    """However little of it fits."""
    with Emulator(max_input_tokens=1000, max_total_tokens=1384) as server:
        found = evidence(server, snippet_request(LONG * 10))
    assert found.status == GROUNDED
    assert found.detail.startswith("the first ")


@pytest.mark.parametrize("status", [413, 422, 400])
def test_a_limit_that_only_the_server_knows(status):
    """Its refusal is understood, and the passage halved until it fits."""
    said = {413: "length limit exceeded", 422: '{"error": "inputs too long"}', 400: "maximum context length is 4096"}

    def intercept(request):
        if request.path == "/info":
            return web.json_response({"model_id": "some/model", "router": "text-generation-router"})
        long = "messages" in request.body and len(request.body["messages"][-1]["content"]) > 9000
        return web.Response(status=status, text=said[status]) if long else None

    with Emulator(reply="Tin melts at 232 °C.", max_total_tokens=100_000, intercept=intercept) as server:
        found = evidence(server, snippet_request(LONG))
        assert [len(body["messages"][-1]["content"]) > 9000 for body in server.bodies] == [True] * 2 + [False]
    assert (found.status, found.snippet) == (GROUNDED, "Tin melts at 232 °C.")
    assert found.detail.startswith("the first 25.0% of the passage was read")


def test_candidates_that_are_too_long_are_cut_evenly():
    """Each to the same share, so that the ranking stays whole."""
    with Emulator(max_input_tokens=3000, max_total_tokens=4000) as server:
        found = evidence(server, ranking_request("Copper is red. " * 900, LONG))
        assert server.stats.by_status == {"200": 1}
    assert found.status == RANKED
    assert found.tiers == ((1,), (0,))
    assert "of each candidate was read" in found.detail


def test_a_long_text_without_an_answer():
    """The status is that of the part that was read, and the detail says so."""
    with Emulator(max_input_tokens=1500, max_total_tokens=2000) as server:
        found = evidence(server, snippet_request("Copper is red. " * 3000))
    assert found.status == NO_ANSWER
    assert "of the passage was read" in found.detail


def test_a_query_that_leaves_no_room_is_an_error():
    """Nothing of the passage could be read, so nothing is said about it."""
    asked = replace(snippet_request("Tin melts at 232 °C. " * 3), query="why? " * 5000)
    with Emulator(max_input_tokens=1000, max_total_tokens=1384) as server:
        found = evidence(server, asked)
        assert not server.stats.requests
    assert found.status == ERROR
    assert found.detail.startswith("PromptTooLong: ")


# -- how much a server is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "options", "size", "why"),
    [
        ({}, {}, START, "found by its rate of replies"),
        ({"slots": 4}, {}, 6, "its slots and a few"),
        ({"max_concurrent_requests": 100}, {}, 98, "just below the limit that it states"),
        ({"max_concurrent_requests": 100, "slots": 4}, {}, 98, "just below the limit that it states"),
        ({}, {"concurrency": 30}, 30, "as given"),
        ({"slots": 4}, {"concurrency": 30}, 30, "as given"),
        ({"slots": 8}, {"processes": 5}, 2, "its slots and a few"),
    ],
)
def test_where_the_size_comes_from(limits, options, size, why):
    """From the user, from the server, or from what it does; and the summary says so."""
    pool, _ = pooled([Fake("a", **limits)], lambda pool: pool.chat(request()), **options)
    assert pool.servers[0].sized() == f"{size} requests at once at a: {why}"
    assert pool.servers[0].sizing.measures == ("rate" in why)


def test_a_server_that_says_nothing_is_asked_by_more_and_more():
    """As long as it answers as quickly: from a few to many at once, and never all of them at the start."""
    server = Fake("a")
    server.seconds = 0.01
    pool, found = pooled([server], all_of([request(number) for number in range(600)]))
    assert len(found) == 600
    assert pool.servers[0].sizing.size > 4 * START
    assert server.most <= 2 * pool.servers[0].sizing.size


def test_a_size_that_was_given_stays():
    """Whatever the server does."""
    server = Fake("a")
    server.seconds = 0.002
    pool, _ = pooled([server], all_of([request(number) for number in range(300)]), concurrency=7)
    assert (server.most, pool.servers[0].limit.ceiling) == (7, 7)


def test_a_request_has_more_time_where_the_server_needs_more():
    """Six at once on one slot take longer than the limit, which is that of one alone: nothing is asked twice."""
    with Emulator(slots=1, latency=Latency(overhead=0.1), reply="x", declared=False, drops=False) as server:
        pool, found = pooled(
            [at(server)], all_of([request(number) for number in range(18)]), concurrency=6, timeout=0.45, deadline=60
        )
        stats = server.stats
    assert len(found) == 18
    assert (stats.requests, stats.wasted_seconds) == (18, 0)
    assert pool.servers[0].sizing.latency > 0.45


def test_the_queue_of_a_server_is_kept_short(monkeypatch):
    """One that lets in many more than it works on tells so in its metrics, and is asked less."""
    monkeypatch.setattr(pools, "QUEUE_SECONDS", 0.05)
    sizes, told = [], Sizing.told

    def noted(sizing, running, waiting):
        told(sizing, running, waiting)
        sizes.append(sizing.size)

    monkeypatch.setattr(Sizing, "told", noted)
    with Emulator(slots=4, max_concurrent_requests=100, latency=Latency(overhead=0.05), reply="x") as server:
        pool, found = pooled([at(server)], all_of([request(number) for number in range(200)]), deadline=60)
    assert len(found) == 200
    assert min(sizes) <= 4 + 8  # at the end nobody waits any more, and it is asked more again
    assert "a few of them waiting" in pool.servers[0].sized()


@pytest.mark.parametrize("header", [True, False])
def test_a_limit_by_time_costs_few_requests(header):
    """Ten in each second, the rest refused with how long to wait: most requests are sent once."""
    used = {}

    async def limited(request):
        span = int(time.monotonic())
        used[span] = used.get(span, 0) + 1
        if used[span] <= 10:
            return web.json_response(completion("x"))
        headers = {"Retry-After": "1"} if header else {}
        return web.json_response({"error": {"message": "Try again in 1 seconds."}}, status=429, headers=headers)

    with Emulator(intercept=always(lambda: limited), declared=False) as server:
        pool, found = pooled([at(server)], all_of([request(number) for number in range(30)]), deadline=60)
        asked = server.stats.requests
    assert len(found) == 30
    assert asked <= 30 + 15
    assert "a minute, since it refuses more" in pool.servers[0].sized()


def test_a_slow_replica_is_not_waited_for():
    """What a query's own replica has no room for goes to another one that has."""
    slow, fast = Fake("slow", slots=1), Fake("fast", max_concurrent_requests=200)
    slow.seconds, fast.seconds = 0.5, 0.01
    pooled([slow, fast], all_of([request(number, f"q{number // 8}") for number in range(400)]), deadline=60)
    assert len(slow.asked) <= 3 + AFFINITY_SLACK + 3
