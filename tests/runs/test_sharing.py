"""Several processes at one endpoint: one limit, one store, and the rows of a single process."""

from __future__ import annotations

import pickle

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.annotators.client.contract import slice_of
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing import Emulator
from arhn_datasets.testing.latency import Latency
from arhn_datasets.testing.process import EmulatorProcess

LIMIT = 8


def refined(rows, annotator, **options):
    """The rows through the three stages, each a map."""
    for stage in (arhn.Snippets(annotator=annotator), arhn.Ranks(annotator=annotator), arhn.Relabel()):
        rows = rows.map(stage, **options)
    return rows


@given(slots=st.integers(1, 10_000), processes=st.integers(1, 10_000))
def test_slices_are_no_more_than_the_whole(slots, processes):
    """Nor less than the whole by a request for each process; beyond one process a slot there is nothing to share."""
    one = slice_of(slots, processes)
    assert one >= 1
    if processes <= slots:
        assert slots - processes < one * processes <= slots


@pytest.mark.parametrize(
    ("options", "limit", "most"), [({}, 100, 98), ({"concurrency": 5}, 100, 5), ({}, 1, 1), ({"processes": 7}, 100, 14)]
)
def test_the_most_processes(options, limit, most):
    """As many as the server takes requests, stated or given, or as this share of them."""
    with Emulator(max_concurrent_requests=limit) as server:
        endpoint = arhn.Endpoint(server.url, **options)
        assert endpoint.most_processes() == most
        assert arhn.Cascade(arhn.Lexical(), endpoint).most_processes() == most
    assert arhn.Lexical().most_processes() is None


def test_the_narrowest_server_decides():
    """Each process has a request at each server."""
    with Emulator(max_concurrent_requests=10) as wide, Emulator(max_concurrent_requests=3) as narrow:
        assert arhn.Endpoint((wide.url, narrow.url)).most_processes() == 2


def test_a_share_is_the_same_annotator(monkeypatch):
    """Its identity is the same, and a share of a share is smaller; the key of this process goes with it, unseen."""
    monkeypatch.setenv("ARHN_API_KEY", "secret")
    endpoint = arhn.Endpoint("http://localhost:1", model="some/model")
    share = pickle.loads(pickle.dumps(endpoint.shared_by(3).shared_by(2)))
    assert (share.processes, share.api_key) == (6, "secret")
    assert "secret" not in repr(share)
    assert share.identity("snippets") == endpoint.identity("snippets")
    cascade = arhn.Cascade(arhn.Lexical(), endpoint).shared_by(4)
    assert (cascade.cheap.shared_by(4), cascade.strong.processes) == (cascade.cheap, 4)


def test_no_process_is_none():
    """At least one has to ask."""
    with pytest.raises(ConfigurationError, match="processes is 0"):
        arhn.Endpoint("http://localhost:1", processes=0)


def test_a_store_moves_with_its_annotator(tmp_path):
    """Where there is none, there is none elsewhere; both annotators of a cascade are asked."""

    def place(folder):
        return folder / "here"

    endpoint = arhn.Endpoint("http://localhost:1", model="m", cache=tmp_path)
    assert endpoint.kept_at(place).cache == tmp_path / "here"
    assert arhn.Endpoint("http://localhost:1", model="m", cache="none").kept_at(place).cache == "none"
    lexical = arhn.Lexical()
    assert lexical.kept_at(place) is lexical
    moved = arhn.Cascade(endpoint, arhn.Endpoint("http://localhost:1", model="n", cache=tmp_path / "n")).kept_at(place)
    assert (moved.cheap.cache, moved.strong.cache) == (tmp_path / "here", tmp_path / "n" / "here")


def test_processes_share_the_limit_and_the_store(tmp_path, sample):
    """Never more in flight than the server takes, the rows of one process, and no reply is asked for twice."""
    rows = Dataset.from_list(sample[:16])
    with EmulatorProcess(max_concurrent_requests=LIMIT, latency=Latency(overhead=0.01)) as server:

        def run(cache, processes):
            annotator = arhn.Endpoint(server.url, cache=tmp_path / cache, processes=processes)
            return list(refined(rows, annotator, num_proc=processes))

        expected = run("a", 1)
        alone = server.stats
        server.reset_stats()
        assert run("b", 3) == expected
        assert 3 <= server.stats.peak_in_flight <= LIMIT
        assert (server.stats.requests, server.stats.duplicates) == (alone.requests, 0)
        server.reset_stats()
        assert run("b", 4) == expected
        assert server.stats.requests == 0


def test_as_many_processes_as_the_server_takes_requests(sample):
    """Each of them has one request in flight."""
    with EmulatorProcess(max_concurrent_requests=2, latency=Latency(overhead=0.01)) as server:
        annotator = arhn.Endpoint(server.url, cache="none")
        most = annotator.most_processes()
        refined(Dataset.from_list(sample[:8]), annotator.shared_by(most), num_proc=most)
        assert server.stats.peak_in_flight <= 2
        assert server.stats.by_status == {"200": server.stats.requests}
