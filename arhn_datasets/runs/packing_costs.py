"""What a run takes with so many passages in a request for snippets, from what a sample of it took with another number.

Tokens are measured with the number of the run. For another one the prompts of the sample are made and not asked: their
characters against those that were asked say how many tokens they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import pyarrow as pa

from arhn_datasets.annotators.prompts import Message, Prompts
from arhn_datasets.evidence.snippets import Snippets
from arhn_datasets.rows.records import LABELLED, QUERY, Row, passages_of

COMPARED = (1, 8)
LINE_TOKENS = 4  # "[12] " and the end of the line


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a whole run takes with so many passages in a request; ``cached`` of the tokens in are in a prefix cache."""

    passages_per_request: int
    requests: int
    tokens_in: int
    tokens_out: int
    cached: int
    price: float | None = None


def costs(
    stage: Snippets,
    prompts: Prompts,
    sample: Sequence[pa.Table],
    requests: Callable[[Snippets], int],
    *,
    prompt_tokens: int,
    alone: int,
    whole: Cost,
) -> list[Cost]:
    """The costs of a run with the numbers that are compared, and with its own, which is ``whole``.

    Args:
        stage: That of the run.
        prompts: What an LLM is asked with.
        sample: The rows that it was asked about.
        requests: How many requests a stage takes for all rows of the run.
        prompt_tokens: Those of the snippets of the sample.
        alone: How many of its passages were asked about alone after their pack.
        whole: What the run takes with its own number.
    """
    own, one_by_one = stage.passages_per_request, stage.with_options(passages_per_request=1)
    passages, sampled = requests(one_by_one), max(1, sum(map(one_by_one.requests, sample)))
    single, shared = _characters(stage, prompts, sample, 1)

    def taken(k: int) -> tuple[float, float, float]:
        """Requests, and characters of the sample, and of them those of a prefix."""
        if k == 1:
            return passages, single, shared
        characters, prefix = _characters(stage, prompts, sample, k)
        again = alone / sampled
        asked = requests(stage.with_options(passages_per_request=k))
        return asked + again * passages, characters + again * single, prefix + again * shared

    asked, characters, _ = taken(own)
    found, a_character = [], prompt_tokens / max(1, characters) * passages / sampled
    for k in sorted({*COMPARED, own}):
        others, longer, prefix = taken(k)
        found.append(
            Cost(
                passages_per_request=k,
                requests=whole.requests + round(others - asked),
                tokens_in=whole.tokens_in + round(a_character * (longer - characters)),
                tokens_out=max(0, whole.tokens_out + LINE_TOKENS * passages * ((k > 1) - (own > 1))),
                cached=round(a_character * prefix),
            )
        )
    return found


def _characters(stage: Snippets, prompts: Prompts, sample: Iterable[pa.Table], k: int) -> tuple[int, int]:
    """The characters of the prompts of a sample, and of what each of them begins with as the one before it did."""
    total, shared, before = 0, 0, ""
    for table in sample:
        for row in table.to_pylist():
            for messages in _asked(row, prompts, stage.task(row), k):
                text = "\n".join(message["content"] for message in messages)
                total, shared = total + len(text), shared + len(commonprefix([before, text]))
                before = text
    return total, shared


def _asked(row: Row, prompts: Prompts, task: str, k: int) -> Iterator[list[Message]]:
    passages = [passage for side in LABELLED for passage in passages_of(row, side.passages)]
    if k == 1:
        yield from (prompts.snippet_messages(row[QUERY], passage, task) for passage in passages)
        return
    for first in range(0, len(passages), k):
        yield prompts.packed_messages(row[QUERY], passages[first : first + k], task)
