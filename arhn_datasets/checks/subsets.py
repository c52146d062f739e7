"""Subsets as a report has them: numbered in order of appearance, those beyond the first counted together."""

from __future__ import annotations

from arhn_datasets.folder.report import MOST_SUBSETS, NO_SUBSET, OTHER_SUBSETS


class Subsets:
    """The subsets that were seen, by name."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """The number of a subset."""
        name = name or NO_SUBSET
        if name not in self.numbers and len(self.numbers) >= MOST_SUBSETS:
            name = OTHER_SUBSETS
        return self.numbers.setdefault(name, len(self.numbers))
