"""Where an unfinished run is, in a hidden folder beside its place: the same call goes on from there after any end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arhn_datasets.runs.splits import Position

logger = logging.getLogger(__name__)

CHECKPOINT = ".checkpoint.json"
FORMAT = 1


def work_folder(target: Path) -> Path:
    """Where an unfinished run is kept."""
    return target.with_name(f".{target.name}.unfinished")


def is_unfinished(target: Path) -> bool:
    """Whether there is something to go on from."""
    return (work_folder(target) / CHECKPOINT).exists()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The position in a split, what it took until there, and what the writer goes on from."""

    split: str
    position: Position
    seconds: float
    requests: dict[str, int]
    writer: Mapping[str, Any]

    def save(self, work: Path, key: Mapping[str, Any]) -> None:
        """Write it as the one of the run that ``key`` tells: all that changes the result."""
        new = work / f"{CHECKPOINT}.new"
        new.write_text(
            json.dumps(
                {
                    "format": FORMAT,
                    "key": key,
                    "split": self.split,
                    "rows": self.position.rows,
                    "state": self.position.state,
                    "seconds": self.seconds,
                    "requests": self.requests,
                    "writer": self.writer,
                }
            ),
            encoding="utf-8",
        )
        os.replace(new, work / CHECKPOINT)

    @classmethod
    def found(cls, work: Path, key: Mapping[str, Any]) -> Checkpoint | None:
        """The checkpoint in a folder, when it is of the same run; another one is told in a warning."""
        try:
            found = json.loads((work / CHECKPOINT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("The checkpoint in %s cannot be read (%s); the run starts anew.", work, error)
            return None
        ours, theirs = json.loads(json.dumps(key)), found.get("key") or {}
        if found.get("format") != FORMAT or theirs != ours:
            differ = [name for name in ours if theirs.get(name) != ours[name]]
            logger.warning(
                "The unfinished run in %s is another one (it differs in: %s); this one starts anew and replaces it.",
                work,
                ", ".join(differ) or "its format",
            )
            return None
        logger.info("going on behind row %d of %s", found["rows"], found["split"])
        return cls(
            split=found["split"],
            position=Position(rows=found["rows"], state=found["state"]),
            seconds=found["seconds"],
            requests=found["requests"],
            writer=found["writer"],
        )
