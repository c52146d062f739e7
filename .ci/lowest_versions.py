"""Print pip constraints that pin each dependency to the oldest version that pyproject.toml admits."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("local", "ray")


def main() -> None:
    """Print one ``name==version`` a line."""
    # tomllib is part of Python from 3.11 on; two lists of strings need no parser.
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    lists = [re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)]
    lists += [re.search(rf"^{extra} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE) for extra in EXTRAS]
    for found in lists:
        assert found, "pyproject.toml has no such list"
        for quoted in re.findall(r'"([^"]+)"', found.group(1)):
            requirement = Requirement(quoted)
            floor = next(spec.version for spec in requirement.specifier if spec.operator == ">=")
            if requirement.name != "torch":  # the CPU build has one version
                print(f"{requirement.name}=={floor}")


if __name__ == "__main__":
    main()
