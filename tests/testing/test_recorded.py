"""The emulator against what the real router replied: text-generation-inference 3.3.6, 1,724 recorded requests.

A line of the record has a request and of the reply what does not depend on the model: status, media type, the type of
an error, the names of headers. ``{word *6000}`` in a body stands for so many times ``word ``.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from arhn_datasets.testing import Emulator, Latency

RECORDED = Path(__file__).with_name("recorded.jsonl.gz")
# The tokens of a prompt are counted otherwise; an expression that is none is found by the model's process alone.
OTHERWISE = ("word word", '"regex", "value": "("')


def body_of(case):
    """The bytes of a recorded body."""
    if case["body"] is None:
        return None
    body = re.sub(r"\{(word |x)\s?\*(\d+)\}", lambda found: found[1] * int(found[2]), case["body"])
    return body.encode("latin-1") if case.get("body_is") else body.encode("utf-8", "surrogatepass")


def said_by(server, case):
    """Status, media type, type of error and the headers of the emulator's reply."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    headers = {name: value for name, value in {"Content-Type": "application/json", **case["headers"]}.items() if value}
    try:
        connection.request(case["method"], case["path"], body_of(case), headers)
        reply = connection.getresponse()
        body, kind = reply.read(), (reply.getheader("content-type") or "").partition(";")[0]
        kind = "" if (body, kind) == (b"", "application/octet-stream") else kind  # older versions of aiohttp
        named = json.loads(body).get("error_type") if reply.status >= 400 and kind == "application/json" else None
        return (reply.status, kind, named), {name.lower() for name in reply.headers}
    finally:
        connection.close()


@pytest.fixture(scope="module")
def recorded():
    """All requests and replies."""
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_status_media_type_and_error_type_are_those_of_the_router(recorded):
    """Of every recorded request but the two that the model's side decides."""
    wrong = []
    with Emulator(max_input_tokens=2048, max_total_tokens=4096, latency=Latency(time_scale=0), reply=str) as server:
        for case in recorded:
            reply = case["reply"]
            expected = (reply["status"], (reply.get("type") or "").partition(";")[0], reply.get("error_type"))
            found, headers = said_by(server, case)
            assert {"vary", "access-control-allow-origin"} <= headers
            if found != expected:
                wrong.append((case["name"], case["body"], expected, found))
    assert len(wrong) <= len(OTHERWISE), wrong
    assert all(any(words in f"{name} {body}" for words in OTHERWISE) for name, body, *_ in wrong), wrong
