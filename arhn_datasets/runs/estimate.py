"""What a run will cost, before it runs: a small sample is really annotated, and its replies stay in the store."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from arhn_datasets.annotators.prompts import Prompts
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.evidence.snippets import Snippets
from arhn_datasets.evidence.stage import EvidenceStage
from arhn_datasets.folder.report import Cause, Tally
from arhn_datasets.inputs.sources import Input
from arhn_datasets.rows.records import DECISION, ERROR, LABELLED, NEGATIVE, SIDES, Row
from arhn_datasets.runs.packing_costs import Cost, costs
from arhn_datasets.runs.preparing import Stages, prepare

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0
RESAMPLES = 2000
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A share with its 95 % interval, by resampling rows."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of the whole run, from a sample of its rows.

    ``requests`` counts those of the whole run, ``stored`` the replies that the sample found or left in the store.
    Tokens and seconds are None where the annotator states none; ``seconds`` is at the rate of the sample, which is
    short: a long run fills the servers better.
    """

    rows: int
    sampled_rows: int
    requests: int
    stored: int
    tokens_in: int | None
    tokens_out: int | None
    requests_per_second: float | None
    seconds: float | None
    gpu_hours: float | None
    price: float | None
    relabelled: Interval
    filtered: Interval
    errors: int
    causes: Sequence[Cause] = ()
    packed: Sequence[Cost] = ()
    """What it costs with other numbers of passages in a request, where an LLM is asked."""


def estimate(
    source: Input,
    stages: Stages,
    *,
    sample: int = 32,
    per_hour: float | None = None,
    per_million: tuple[float, float] | None = None,
) -> Estimate:
    """Annotate ``sample`` rows, drawn at random, and extrapolate.

    Args:
        source: The input of the run.
        stages: The configured transforms of the run.
        sample: Rows to annotate.
        per_hour: Money for an hour of all endpoints.
        per_million: Or else for a million tokens in, and out.

    Raises:
        InputError, SchemaError, EndpointError: as the run itself.
    """
    if sample < 1:
        raise ConfigurationError(f"The sample has {sample} rows; 1 or more was expected.")
    stages.check()
    prepared = prepare(source, stages, streamed=False)
    stages, rows = prepared.stages, sum(map(len, prepared.datasets.values()))
    drawn = list(_drawn(prepared.datasets, sample))
    before, started = stages.statistics(), time.monotonic()
    tally, refined, given, spent_by = Tally(), [], [], defaultdict[str, Counter[str]](Counter)
    for table in drawn:
        for stage in stages.evidence:
            so_far = stages.statistics()
            table = stage(table)
            spent_by[stage.NAME] += _since(so_far, stages.statistics())
        given.append(table)
        table = stages.rule(table)
        tally.add(table)
        refined.extend(table.to_pylist())
    seconds, after = time.monotonic() - started, stages.statistics()
    spent, scale = _since(before, after), rows / len(refined)
    alone = spent["asked_alone"]  # beside the packs that did not tell of them
    requests = sum(_requests(stage, prepared.datasets, given) for stage in stages.evidence) + round(alone * scale)
    asked, known = spent["replies"], spent["replies"] + spent["stored"]
    packing = next((one for one in stages.evidence if isinstance(one, Snippets)), None)
    if packing is not None and packing.passages_per_request > 1:  # of which the store knows passages
        known = sum(stage.requests(table) or 0 for stage in stages.evidence for table in given)
        known += alone - spent["failures"]
    rate = asked / seconds if asked and seconds else None
    tokens = (spent[f"{of}_tokens"] + spent[f"stored_{of}_tokens"] for of in ("prompt", "completion"))
    tokens_in, tokens_out = (round(count / known * requests) if known and count else None for count in tokens)
    duration = max(0, requests - known) / rate if rate else None
    endpoints = sum(len(getattr(annotator, "urls", ())) for annotator in stages.annotators) or 1
    packed: list[Cost] = []
    prompts = None if packing is None else getattr(packing.configured, "prompts", None)
    if packing and isinstance(prompts, Prompts) and not packing.known_by and tokens_in and tokens_out is not None:
        told = spent_by[packing.NAME]
        packed = costs(
            packing,
            prompts,
            drawn,
            lambda stage: _requests(stage, prepared.datasets, given),
            prompt_tokens=told["prompt_tokens"] + told["stored_prompt_tokens"],
            alone=alone,
            whole=Cost(passages_per_request=0, requests=requests, tokens_in=tokens_in, tokens_out=tokens_out, cached=0),
        )
    price = None
    if per_hour is not None:
        price = None if duration is None else per_hour * duration / 3600
    elif per_million is not None and tokens_in is not None and tokens_out is not None:
        price = _price(per_million, tokens_in, tokens_out)
        packed = [replace(one, price=_price(per_million, one.tokens_in, one.tokens_out)) for one in packed]
    return Estimate(
        rows=rows,
        sampled_rows=len(refined),
        requests=requests if after else 0,
        stored=known,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        requests_per_second=rate,
        seconds=duration,
        gpu_hours=None if duration is None else duration / 3600 * endpoints,
        price=price,
        relabelled=_interval(refined, "relabelled"),
        filtered=_interval(refined, "filtered"),
        errors=spent["failures"],
        causes=[cause for cause in tally.report().causes if cause.status == ERROR],
        packed=packed,
    )


def _since(before: Mapping[str, Any], after: Mapping[str, Any]) -> Counter[str]:
    return Counter({name: int(after[name]) - int(before.get(name, 0)) for name in after})


def _price(per_million: tuple[float, float], tokens_in: int, tokens_out: int) -> float:
    return (per_million[0] * tokens_in + per_million[1] * tokens_out) / MILLION


def format_estimate(found: Estimate, *, command: str = "the same command without --estimate") -> str:
    """The estimate as lines for a terminal."""
    lines = [
        ("rows", f"{found.rows:,}, of which {found.sampled_rows:,} were annotated"),
        ("requests", f"{found.requests:,}, of which {found.stored:,} are in the store now"),
    ]
    if found.tokens_in is not None and found.tokens_out is not None:
        lines.append(("tokens", f"{found.tokens_in:,} in, {found.tokens_out:,} out"))
    if found.seconds is not None and found.gpu_hours is not None and found.requests_per_second is not None:
        minutes, seconds = divmod(round(found.seconds), 60)
        long = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
        lines.append(("duration", f"{long} at the {found.requests_per_second:.1f} requests/s of the sample"))
        lines.append(("GPU-hours", f"{found.gpu_hours:.2f}, at one GPU an endpoint"))
    elif found.requests:
        lines.append(("duration", _unmeasured(found)))
    if found.price is not None:
        lines.append(("price", f"{found.price:,.2f}"))
    for at, one in enumerate(found.packed):
        price = "" if one.price is None else f", price {one.price:,.2f} without such a cache"
        said = f"{one.requests:,} requests, {one.tokens_in:,} tokens in, {one.tokens_out:,} out"
        cached = f"up to {one.cached:,} in come from a prefix cache"
        lines.append(("" if at else "packed", f"{one.passages_per_request} a request: {said}; {cached}{price}"))
    for name, share in (("relabelled", found.relabelled), ("filtered", found.filtered)):
        lines.append((name, f"{share.share:.1%} of the negatives ({share.low:.1%} to {share.high:.1%})"))
    if found.errors:
        lines.append(("failed", f"{found.errors:,} requests of the sample"))
        lines.extend(("", str(cause)) for cause in found.causes)
    lines.append(("next", f"{command} goes on from these replies"))
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def _unmeasured(found: Estimate) -> str:
    """Why there is no duration, and what to do."""
    if found.requests <= found.stored:
        return "none: every request of the run is in the store"
    if not found.stored:
        return "cannot be told: no request of the sample was replied to"
    return (
        "duration, GPU-hours and a price by the hour cannot be told: every reply of the sample was in the store, so "
        f"nothing was measured. --estimate-rows above {found.sampled_rows} asks for rows that are not there yet; so "
        "does another --cache"
    )


def _requests(stage: EvidenceStage, splits: Mapping[str, Dataset], sample: Sequence[pa.Table]) -> int:
    """The requests of a stage, of all rows where their passages tell, else as many a row as those of the sample."""
    columns, known = [side.passages for side in LABELLED], stage.known_by
    found: list[int | None] = []
    rows = 0
    for dataset in splits.values():
        for batch in dataset.select_columns([*columns, *known]).with_format("arrow").iter(1000):
            for column in known:
                batch = batch.filter(pc.is_null(batch.column(column)))
            found.append(stage.requests(batch))
            rows += batch.num_rows
    asked = sum(stage.requests(table) or 0 for table in sample) if None in found else 0
    share = rows / sum(table.num_rows for table in sample)
    return sum(one or 0 for one in found) + int(asked * share + 0.5)


def _drawn(splits: Mapping[str, Dataset], sample: int) -> Iterator[pa.Table]:
    """Rows drawn at random from all splits, the same for the same input; a table of each split."""
    total = sum(map(len, splits.values()))
    chosen, first = sorted(random.Random(SEED).sample(range(total), min(sample, total))), 0
    for dataset in splits.values():
        own = [at - first for at in chosen if first <= at < first + len(dataset)]
        first += len(dataset)
        if own:
            yield dataset.select(own).with_format("arrow")[:]


def _interval(rows: Sequence[Row], moved: str) -> Interval:
    """The share of the source's negatives that were ``moved``, with an interval from resampled rows."""
    origins = [[origin["label"] for side in SIDES for origin in row[side.origins]] for row in rows]
    counts = [(int(row[DECISION][moved]), own.count(NEGATIVE.label)) for row, own in zip(rows, origins, strict=True)]
    generator = random.Random(SEED)

    def share(pairs: Sequence[tuple[int, int]]) -> float:
        return sum(pair[0] for pair in pairs) / max(1, sum(pair[1] for pair in pairs))

    shares = sorted(share(generator.choices(counts, k=len(counts))) for _ in range(RESAMPLES))
    return Interval(share=share(counts), low=shares[RESAMPLES // 40], high=shares[-RESAMPLES // 40 - 1])
