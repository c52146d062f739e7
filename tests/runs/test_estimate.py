"""What a run will cost, from a sample that is really annotated."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.runs.estimate import estimate, format_estimate
from arhn_datasets.runs.refine import Input, Stages
from arhn_datasets.testing import Fault, Latency
from tests.conftest import SAMPLE


def stages(annotator, **options):
    """The stages of a run, with options of the snippets."""
    return Stages(
        snippets=arhn.Snippets(annotator=annotator, **options),
        ranks=arhn.Ranks(annotator=annotator),
        relabel=arhn.Relabel(),
    )


def test_the_sample_is_paid_once_and_extrapolated(server):
    """Requests, tokens, time and rates follow from the sample, whose replies the real run finds in the store."""
    annotator = arhn.Endpoint(server.url)
    found = estimate(Input(name=str(SAMPLE)), stages(annotator), sample=20, per_hour=3.6)
    assert (found.rows, found.sampled_rows, found.errors) == (69, 20, 0)
    assert found.stored == server.stats.requests
    assert 400 < found.requests <= 400 + 69
    share = found.requests / found.stored
    assert found.tokens_in == pytest.approx(server.stats.prompt_tokens * share, rel=0.01)
    assert found.tokens_out == pytest.approx(server.stats.generated_tokens * share, rel=0.01)
    assert found.seconds == pytest.approx((found.requests - found.stored) / found.requests_per_second)
    assert found.price == pytest.approx(found.seconds * 0.001)
    assert found.gpu_hours == pytest.approx(found.seconds / 3600)
    for share in (found.relabelled, found.filtered):
        assert 0 <= share.low <= share.share <= share.high <= 1
    again = estimate(Input(name=str(SAMPLE)), stages(annotator), sample=20)
    assert again.stored == server.stats.requests, "the second estimate asked nothing"
    assert (again.relabelled, again.tokens_in, again.seconds) == (found.relabelled, found.tokens_in, None)
    json.dumps(asdict(again))


def test_a_sample_that_is_in_the_store_says_why_nothing_was_measured(server):
    """No rate, so no duration, GPU-hours or price, and what to do; nothing is missing where all is in the store."""
    annotator = arhn.Endpoint(server.url)
    estimate(Input(name=str(SAMPLE)), stages(annotator), sample=8)
    again = estimate(Input(name=str(SAMPLE)), stages(annotator), sample=8, per_hour=4.0)
    assert (again.seconds, again.gpu_hours, again.price) == (None, None, None)
    text = format_estimate(again)
    assert "duration, GPU-hours and a price by the hour cannot be told" in text
    assert "--estimate-rows above 8" in text
    larger = estimate(Input(name=str(SAMPLE)), stages(annotator), sample=24)
    assert larger.seconds is not None
    whole = Input(name=str(SAMPLE), limit=4)
    estimate(whole, stages(annotator), sample=4)
    done = format_estimate(estimate(whole, stages(annotator), sample=4))
    assert "cannot be told" not in done
    assert "every request of the run is in the store" in done


@pytest.mark.parametrize("own", [1, 8, 3])
def test_both_prices_of_packs_are_told_whichever_is_asked(server, own):
    """Those of the run as they are, the others from the same sample: within a tenth of what a run really takes."""
    annotator, prices = arhn.Endpoint(server.url, cache="none"), (2.0, 10.0)
    asked = stages(annotator, passages_per_request=own)
    found = estimate(Input(name=str(SAMPLE)), asked, sample=69, per_million=prices)
    told = {one.passages_per_request: one for one in found.packed}
    assert list(told) == sorted({1, 8, own})
    mine = told[own]
    assert (mine.requests, mine.tokens_in, mine.tokens_out) == (found.requests, found.tokens_in, found.tokens_out)
    assert (found.requests, found.price) == (found.stored, mine.price), "the whole input was asked"
    for k in {1, 8} - {own}:
        server.reset_stats()
        estimate(Input(name=str(SAMPLE)), stages(annotator, passages_per_request=k), sample=69)
        assert told[k].requests == server.stats.requests
        assert told[k].tokens_in == pytest.approx(server.stats.prompt_tokens, rel=0.1)
        assert told[k].tokens_out == pytest.approx(server.stats.generated_tokens, rel=0.1)
    assert told[8].tokens_in < told[1].tokens_in / 2
    assert told[8].cached < told[1].cached < told[1].tokens_in
    assert f"8 a request: {told[8].requests:,} requests, {told[8].tokens_in:,} tokens in" in format_estimate(found)


def test_passages_that_are_asked_alone_are_in_the_price(server):
    """Of a model that gives no lines, packs and single requests; a second estimate from the store says the same."""
    server.reply = "NO_ANSWER"
    annotator = arhn.Endpoint(server.url)
    asked = stages(annotator, passages_per_request=8)
    found = estimate(Input(name=str(SAMPLE)), asked, sample=69)
    assert found.requests == found.stored == server.stats.requests == 469
    assert found.tokens_in == server.stats.prompt_tokens
    assert {one.passages_per_request: one.requests for one in found.packed} == {1: 400, 8: 469}
    again = estimate(Input(name=str(SAMPLE)), asked, sample=69)
    assert (again.requests, again.stored, again.tokens_in) == (469, 469, found.tokens_in)
    assert server.stats.requests == 469


def test_prices_by_token_and_a_baseline_without_requests(server):
    """Tokens times their price; the lexical baseline costs nothing and says only its rates."""
    prices = (2.0, 10.0)
    found = estimate(Input(name=str(SAMPLE), limit=9), stages(arhn.Endpoint(server.url)), sample=50, per_million=prices)
    assert found.sampled_rows == 9
    assert found.price == pytest.approx((2 * found.tokens_in + 10 * found.tokens_out) / 1e6)
    free = estimate(Input(name=str(SAMPLE)), stages(arhn.Lexical()), per_million=prices)
    assert (free.requests, free.tokens_in, free.price, free.seconds) == (0, None, None, None)
    assert "tokens" not in format_estimate(free)


def test_failures_and_long_runs_are_told(server):
    """Requests of the sample that failed are counted, and hours are shown as hours."""
    server.set_faults(Fault(kind="text_422", on=lambda seen: seen.number % 2 == 1))
    server.latency = Latency(overhead=0.05)
    found = estimate(Input(name=str(SAMPLE), limit=8), stages(arhn.Endpoint(server.url, concurrency=1)), sample=4)
    assert found.errors > 0
    text = format_estimate(found)
    assert "failed" in text
    assert "2 h 05 min" in format_estimate(replace(found, seconds=7500.0, gpu_hours=2.1, requests_per_second=1.0))
    with pytest.raises(ConfigurationError, match="The sample has 0 rows"):
        estimate(Input(name=str(SAMPLE)), stages(arhn.Lexical()), sample=0)


def test_the_command_prints_it_and_writes_nothing(server, tmp_path, capsys, monkeypatch):
    """--estimate needs no output folder and makes none."""
    monkeypatch.chdir(tmp_path)
    command = [str(SAMPLE), "--endpoint", server.url, "--estimate", "--estimate-rows", "5"]
    assert cli.refine_command([*command, "--price-per-million", "1", "2"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "rows       69, of which 5",
        "requests",
        "tokens",
        "duration",
        "GPU-hours",
        "price",
        "relabelled",
        "next",
    ):
        assert f"{line}" in printed
    assert list(tmp_path.iterdir()) == []
    assert cli.refine_command([str(SAMPLE), "--endpoint", server.url]) == 2
    assert "--output DIR is missing" in capsys.readouterr().err
