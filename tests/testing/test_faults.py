"""The emulator's fault script, each fault as a client that we did not write sees it; and its intercept."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import time
import warnings

import aiohttp
import pytest
from aiohttp import web

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import KINDS, Emulator, Fault, Latency, Seen
from arhn_datasets.testing.faults import FaultScript
from tests.testing.test_contract import CHAT, HELLO, ask, events


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "said"),
    [
        ("429", 429, "application/json", '{"error":"Model is overloaded","error_type":"overloaded"}'),
        ("500", 500, "application/json", '{"error":"Incomplete generation","error_type":"incomplete_generation"}'),
        ("502", 502, "text/html", "<html><head><title>502 Bad Gateway"),
        ("503", 503, "text/html", "<html><head><title>503 Service"),
        ("504", 504, "text/html", "<html><head><title>504 Gateway"),
        ("text_422", 422, "text/plain", "Failed to deserialize the JSON body"),
        ("413", 413, "text/plain", "Failed to buffer the request body"),
        ("401", 401, "", ""),
        ("html_200", 200, "text/html", "<html>"),
        ("wrong_content_type", 200, "text/html", '{"object":"chat.completion"'),
    ],
)
def test_refusals_and_foreign_pages(kind, status, content_type, said):
    """The second request gets it, the first and the third are answered."""
    with Emulator(reply="fine", faults=[Fault(kind=kind, on=2, retry_after=3)]) as server:
        replies = [ask(server, CHAT, HELLO) for _ in range(3)]
        assert server.stats.faults == {kind: 1}
    assert [reply[0] for reply in replies] == [200, status, 200]
    _, headers, text = replies[1]
    assert text.startswith(said)
    assert not content_type or headers.get_content_type() == content_type
    if kind in ("429", "503"):
        assert headers["Retry-After"] == "3"


def test_replies_that_are_none():
    """Half a JSON, an empty text, and random text that is the same for the same request."""
    faults = [Fault(kind="truncated_json", on=1), Fault(kind="empty_text", on=2), Fault(kind="garbage", on=range(3, 5))]
    with Emulator(reply="fine", faults=faults) as server:
        replies = [ask(server, CHAT, HELLO) for _ in range(4)]
        server.reset_stats()
        server.set_faults(*faults, Fault(kind="garbage", on=5, text="said"))
        again = [ask(server, CHAT, HELLO)[2] for _ in range(5)]
    assert {status for status, _, _ in replies} == {200}
    with pytest.raises(ValueError, match="line 1"):
        json.loads(replies[0][2])
    texts = [json.loads(said)["choices"][0]["message"]["content"] for said in (replies[1][2], *again[2:])]
    assert texts[0] == ""
    assert texts[3] == "said"
    assert len({*texts, "fine"}) == 5
    assert [json.loads(said)["choices"][0]["message"]["content"] for _, _, said in replies[2:]] == texts[1:3]


@pytest.mark.parametrize("kind", ["reset_before", "reset_middle", "reset_after"])
def test_connections_that_break(kind):
    """Before, in the middle of, and after the work: the client sees no whole reply, and may ask again."""
    with Emulator(reply="fine", faults=[Fault(kind=kind, times=1)]) as server:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, CHAT, HELLO)
        assert ask(server, CHAT, HELLO)[0] == 200
        stats = server.stats
    assert stats.served == (1 if kind == "reset_before" else 2)
    assert stats.duplicates == 1


def test_a_connection_that_breaks_behind_the_reply():
    """The reply arrives, and the pooled connection is dead for the next request."""

    async def main(url):
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with session.post(url + CHAT, json=HELLO) as reply:
                    assert reply.status == 200
                    await reply.read()
                await asyncio.sleep(0.1)

    with Emulator(reply="fine", faults=[Fault(kind="reset_after", late=True, on=1)]) as server:
        asyncio.run(main(server.url))
        assert server.stats.served == 2


def test_a_stream_that_breaks():
    """Some events, and then nothing."""
    with Emulator(reply="one two three", faults=[Fault(kind="reset_middle", on=1)]) as server:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, CHAT, {**HELLO, "stream": True})
        assert events(ask(server, CHAT, {**HELLO, "stream": True})[2])[-1] == "data: [DONE]"


def test_a_backend_error_takes_the_whole_batch():
    """Who is in the running batch gets 424, who waits in the queue is served after."""

    async def main(url):
        async with aiohttp.ClientSession() as session:

            async def post(number):
                async with session.post(url + CHAT, json={**HELLO, "seed": number}) as reply:
                    return reply.status, await reply.json()

            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(post(number)))
                await asyncio.sleep(0.02)
            return await asyncio.gather(*tasks)

    faults = [Fault(kind="424_batch", on=2)]
    with Emulator(reply="fine", slots=4, latency=Latency(overhead=0.4), faults=faults) as server:
        replies = asyncio.run(main(server.url))
        assert server.stats.failures["generation"] == 4
    assert [status for status, _ in replies] == [424] * 4 + [200] * 2
    message = "Request failed during generation: Server error: "
    assert all(said["error"].startswith(message) and said["error_type"] == "generation" for _, said in replies[:4])


def test_a_hang_holds_a_permit_until_the_client_goes():
    """Nothing comes; a client with a deadline frees the permit."""

    async def main(server):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
            with pytest.raises(asyncio.TimeoutError):
                await session.post(server.url + CHAT, json=HELLO)
        await asyncio.sleep(0.1)

    with Emulator(reply="fine", faults=[Fault(kind="hang", on=1), Fault(kind="hang", on=2, seconds=0.1)]) as server:
        asyncio.run(main(server))
        assert (server.stats.in_flight, server.stats.cancelled) == (0, 1)
        start = time.perf_counter()
        assert ask(server, CHAT, HELLO)[0] == 200
        assert time.perf_counter() - start >= 0.1


def test_a_slow_request():
    """It takes the seconds more, in its slot."""
    with Emulator(reply="fine", faults=[Fault(kind="slow", seconds=0.2, on=1)]) as server:
        _, headers, _ = ask(server, CHAT, HELLO)
        assert int(headers["x-inference-time"]) >= 199
        assert server.stats.busy_seconds == pytest.approx(0.2, abs=0.01)


def test_a_restart_resets_refuses_and_comes_back_on_its_port():
    """Every connection breaks, new ones are refused, and then all is as before."""
    with Emulator(reply="fine", faults=[Fault(kind="restart", seconds=0.5, on=2)]) as server:
        url = server.url
        assert ask(server, CHAT, HELLO)[0] == 200
        start = time.perf_counter()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, CHAT, HELLO)
        with pytest.raises(ConnectionRefusedError):
            ask(server, "/health")
        while time.perf_counter() - start < 5:
            try:
                assert ask(server, CHAT, HELLO)[0] == 200
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        assert 0.45 < time.perf_counter() - start < 3
        assert server.url == url


def test_a_server_can_be_stopped_while_it_is_down():
    """The restart that is under way ends with it."""
    with Emulator(reply="fine", faults=[Fault(kind="restart", seconds=60, on=1)]) as server:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, CHAT, HELLO)
        start = time.perf_counter()
    assert time.perf_counter() - start < 2


def test_info_missing_health_failing_and_another_model():
    """What the server says of itself changes."""
    with Emulator(reply="fine", faults=[Fault(kind="info_missing", on=1), Fault(kind="unhealthy", on=1)]) as server:
        assert [ask(server, "/info")[0] for _ in range(2)] == [404, 200]
        status, _, said = ask(server, "/health")
        assert (status, json.loads(said)) == (503, {"error": "unhealthy", "error_type": "healthcheck"})
        server.add_fault(Fault(kind="model_change", on=1, model="other/model", revision="1234"))
        assert json.loads(ask(server, CHAT, {**HELLO, "model": "tgi"})[2])["model"] == "other/model"
        info = json.loads(ask(server, "/info")[2])
        assert (info["model_id"], info["model_sha"]) == ("other/model", "1234")


def test_when_a_fault_strikes():
    """By number, range, list, text, function, probability, and so many times."""

    def struck(fault):
        script = FaultScript([fault])
        seen = (Seen(number=number, path=CHAT, body={"text": f"no. {number}"}) for number in range(1, 11))
        return [one.number for one in seen if script.pick(one)]

    assert struck(Fault(kind="500", on=3)) == [3]
    assert struck(Fault(kind="500", on=range(2, 4))) == [2, 3]
    assert struck(Fault(kind="500", on=[1, 9])) == [1, 9]
    assert struck(Fault(kind="500", match="no. 4")) == [4]
    assert struck(Fault(kind="500", on=lambda seen: seen.number % 5 == 0)) == [5, 10]
    assert struck(Fault(kind="500", times=2)) == [1, 2]
    some = struck(Fault(kind="500", probability=0.5))
    assert some == struck(Fault(kind="500", probability=0.5))
    assert 0 < len(some) < 10
    assert some != struck(Fault(kind="500", probability=0.5, seed=1))


def test_faults_as_json_and_as_text():
    """What goes to another process comes back the same; what is none is refused."""
    for fault in (
        Fault(kind="429", on=range(1, 5), times=2, retry_after=1.0),
        Fault(kind="hang", on=(1, 2)),
        Fault(kind="500", on=7, match="x"),
        Fault(kind="garbage", probability=0.01, seed=3),
    ):
        again = Fault.from_json(json.loads(json.dumps(fault.to_json())))
        assert again.to_json() == fault.to_json()
    assert Fault.from_text("500:2-3") == Fault(kind="500", on=range(2, 4))
    assert Fault.from_text("500:2").on == range(2, 3)
    assert Fault.from_text("garbage:0.01") == Fault(kind="garbage", probability=0.01)
    assert Fault(kind=429).kind == "429"
    for wrong in ("none", "500:x", "500:0.x"):
        with pytest.raises(ConfigurationError):
            Fault.from_text(wrong)
    for wrong in ({}, {"kind": "500", "x": 1}, [], {"kind": "nothing"}):
        with pytest.raises(ConfigurationError):
            Fault.from_json(wrong)
    with pytest.raises(ConfigurationError, match="another process"):
        Fault(kind="500", on=lambda _: True).to_json()
    assert all(KINDS.values())


def test_faults_and_counters_over_http():
    """Another process can put, add, read and remove faults, and read and reset the counters."""
    path = "/_emulator/faults"
    with Emulator(reply="fine", api_key="k") as server:
        assert (
            json.loads(ask(server, path, [{"kind": "500", "on": {"from": 1, "to": 9}}], "PUT")[2])[0]["kind"] == "500"
        )
        assert len(json.loads(ask(server, path, {"kind": "429"}, "POST")[2])) == 2
        assert ask(server, CHAT, HELLO, Authorization="Bearer k")[0] == 500
        assert ask(server, path, [{"kind": "x"}], "PUT")[0] == 422
        assert ask(server, path, "{", "PUT")[0] == 422
        assert json.loads(ask(server, path, method="DELETE")[2]) == []
        assert ask(server, "/_emulator/nothing")[0] == 404
        stats = json.loads(ask(server, "/_emulator/stats")[2])
        assert (stats["requests"], stats["by_status"], stats["by_path"]) == (1, {"500": 1}, {CHAT: 1})
        assert json.loads(ask(server, "/_emulator/stats", method="DELETE")[2])["requests"] == 0


def test_starting_and_stopping_leaves_nothing_behind():
    """No warning of a resource, a task or a thread, also with requests under way and connections open."""

    async def leave(url):
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.post(url + CHAT, json=HELLO))
            await asyncio.sleep(0.1)
            return session, task, url

    async def main():
        async with Emulator(reply="fine", latency=Latency(overhead=30)) as server:
            session = aiohttp.ClientSession()
            task = asyncio.create_task(session.post(server.url + CHAT, json=HELLO))
            await asyncio.sleep(0.1)
        with pytest.raises(aiohttp.ClientError):
            await task
        await session.close()

    gc.collect()  # what other tests left: `datasets` never closes its event loops
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        for _ in range(3):
            with Emulator(reply="fine") as server:
                connection = http.client.HTTPConnection(server.host, server.port)
                connection.request("GET", "/health")
                connection.getresponse().read()
            connection.close()
        del server, connection
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_port_that_is_taken_is_told_to_the_caller():
    """In the thread that starts it."""
    with (
        Emulator(reply="fine") as server,
        pytest.raises(OSError, match="address already in use"),
        Emulator(port=server.port),
    ):
        pass


def test_an_intercept_answers_instead_and_lets_the_rest_go_on():
    """It sees GETs and POSTs with what came with them, may wait, is asked before the faults, and counts as a reply."""
    seen = []

    async def late(request):
        await asyncio.sleep(0)
        return web.json_response({"error": "no credit"}, status=402) if request.number == 1 else None

    def intercept(request):
        seen.append((request.method, request.path, request.number, request.headers["Host"]))
        if request.path == "/info":
            return web.Response(status=403)
        return late(request) if request.path == CHAT else None

    with Emulator(reply="x", intercept=intercept, faults=[Fault(kind="500", on=[1, 2])]) as server:
        host = server.url.removeprefix("http://")
        assert ask(server, "/info")[0] == 403
        assert ask(server, "/health")[0] == 200
        assert [ask(server, CHAT, HELLO)[0] for _ in range(3)] == [402, 500, 200]
        assert ask(server, "/tokenize", {"inputs": "x"})[0] == 200
        assert server.stats.by_status == {"402": 1, "500": 1, "200": 1}
        assert server.bodies == [HELLO] * 3
        server.intercept = None
        assert ask(server, "/info")[0] == 200
    asked = [("GET", "/info", 1), ("GET", "/health", 1), *(("POST", CHAT, number) for number in (1, 2, 3))]
    assert seen == [(*one, host) for one in [*asked, ("POST", "/tokenize", 1)]]


def test_what_may_change_while_it_runs():
    """The reply, the key and the permits are those of the moment."""
    with Emulator(reply="before") as server:
        assert "before" in ask(server, CHAT, HELLO)[2]
        server.reply = lambda prompt: "after"
        assert "after" in ask(server, CHAT, HELLO)[2]
        server.max_concurrent_requests = 0
        assert ask(server, CHAT, HELLO)[0] == 429
        server.api_key = "k"
        assert ask(server, CHAT, HELLO)[0] == 401
