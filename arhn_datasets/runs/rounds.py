"""A run in batch rounds: the same stages, where rows whose replies are not there yet wait for the next round.

Each stage plans the requests of a row whose earlier stages have all their replies, so a ranking is only planned for
whole snippets. Nothing is labelled while a reply is missing anywhere: then the run ends, and writes no folder.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from arhn_datasets.errors import NotYetAnsweredError
from arhn_datasets.rows import background
from arhn_datasets.rows.stage import Transform
from arhn_datasets.runs.preparing import Position, Prepared, through
from arhn_datasets.runs.refine import OWN_ROWS, Engine

COLLECTED_TABLES = 50  # what is not answered yet ends by errors, and those are garbage in rings


class Round(Engine):
    """The engine of one round: it gives relabelled rows until a reply is missing, and then only plans."""

    _tables = 0

    def relabelled(self, split: str, at: Position | None) -> Iterator[tuple[pa.Table, Position]]:
        """As of :class:`Engine`; raises NotYetAnsweredError when everything that can be planned now is."""
        from datasets.utils import tqdm

        names = list(self.splits)
        behind = [(name, None) for name in names[names.index(split) + 1 :]]
        missing, bar = False, None
        try:
            for name, start in [(split, at), *behind]:
                for table, position in self.splits[name].tables(start, self._rows):
                    done = self._advanced(table)
                    missing = missing or done is None
                    if done is not None and not missing:
                        yield done, position
                        continue
                    if bar is None:
                        bar = tqdm(unit=" rows", desc="plan", initial=position.rows - table.num_rows)
                    bar.update(table.num_rows)
                if not missing:
                    return
        finally:
            if bar is not None:
                bar.close()
        raise NotYetAnsweredError("Replies of this round are not there yet.")

    def _advanced(self, table: pa.Table) -> pa.Table | None:
        """The relabelled rows of a table, None where a reply is missing."""
        transforms = self.stages.transforms
        last = max((at + 1 for at, transform in enumerate(transforms) if transform.awaits), default=0)
        self._tables += 1
        if not self._tables % COLLECTED_TABLES:
            gc.collect()
        done = background.run(advanced(table, transforms[:last]))
        return None if done is None or done.num_rows < table.num_rows else through(done, transforms[last:])


async def advanced(table: pa.Table, transforms: Sequence[Transform], *, lacking: bool = False) -> pa.Table | None:
    """The rows whose replies are all there, through transforms that ask; None where there is no such row.

    Another row, ``lacking`` what a transform would have given, goes through those of the others that do not need it.
    """
    for at, transform in enumerate(transforms):
        if lacking and not set(transform.required) <= set(table.column_names):
            continue
        table, waiting = await transform.answered(table)
        if waiting.num_rows:
            await advanced(waiting, transforms[at + 1 :], lacking=True)
        if not table.num_rows:
            return None
    return table


@contextmanager
def one_round(prepared: Prepared) -> Iterator[Round]:
    """Opens the engine of one round, for :func:`arhn_datasets.runs.refine.refine`."""
    yield Round(prepared, OWN_ROWS)
