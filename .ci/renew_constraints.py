"""Write constraints.txt anew: the newest versions of all that the environments of the repository install.

usage: .venv/bin/python .ci/renew_constraints.py

The interpreter that runs this decides the versions, with every extra. Each other one that is here takes the same where
they exist for it, and gets lines of its own where not. Nothing is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
BUILD = ("hatchling", "editables")  # what builds the package, in environments of pip's own
EVERYTHING = (".[dev,serving]", *BUILD)
ELSEWHERE = (".[charts,evaluation,tests]", *BUILD)  # what .ci/setup --python installs
HEAD = """\
# The exact versions that .ci/setup installs; .ci/renew_constraints.py writes this file.
"""

Pins = dict[str, str]


class Resolved(NamedTuple):
    """What pip would install: versions, and the interpreters that these are for."""

    versions: Pins
    pythons: Pins


def resolve(python: str, wanted: tuple[str, ...], constraints: Pins) -> Resolved | None:
    """What pip of that interpreter would install into an empty environment, None where nothing fits."""
    with tempfile.TemporaryDirectory() as work:
        report, limits = Path(work) / "report.json", Path(work) / "constraints.txt"
        limits.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(limits), *wanted]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return None
        found: list[dict[str, Any]] = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    named = {canonicalize_name(one["name"]): one for one in found if canonicalize_name(one["name"]) != "arhn-datasets"}
    return Resolved(
        # A build's own mark, as in 2.13.0+cpu, is no part of a version that another machine can ask for.
        {name: one["version"].partition("+")[0] for name, one in named.items()},
        {name: one["requires_python"] for name, one in named.items() if one.get("requires_python")},
    )


def lines(main: Resolved, others: dict[str, Pins]) -> list[str]:
    """One requirement for each package and version, with a marker where an interpreter takes another one."""
    found = {name: version for pins in others.values() for name, version in pins.items()} | main.versions
    written = []
    for name, version in sorted(found.items()):
        own = {python: pins[name] for python, pins in others.items() if pins.get(name, version) != version}
        allowed = SpecifierSet(main.pythons.get(name, ""))
        apart = sorted({*own, *(python for python in others if not allowed.contains(f"{python}.99"))}, key=_order)
        marker = " and ".join(f'python_version != "{python}"' for python in apart)
        written.append(f"{name}=={version}" + (f" ; {marker}" if marker else ""))
        written += [f'{name}=={own[python]} ; python_version == "{python}"' for python in apart if python in own]
    return written


def main() -> None:
    """Ask pip, and write the file."""
    newest = resolve(sys.executable, EVERYTHING, {})
    if newest is None:
        sys.exit("pip finds no versions that fit together; what it said stands above.")
    others: dict[str, Pins] = {}
    for python in subprocess.run([".ci/interpreters"], cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout.split("\n"):
        if python and (version := _version(python)) != _version(sys.executable):
            print(f"Python {version} ...", file=sys.stderr)
            found = resolve(python, ELSEWHERE, newest.versions) or resolve(python, ELSEWHERE, {})
            if found is None:
                sys.exit(f"pip finds no versions for Python {version}; what it said stands above.")
            others[version] = found.versions
    FILE.write_text(HEAD + "".join(f"{line}\n" for line in lines(newest, others)), encoding="utf-8")


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], text=True, check=True, stdout=subprocess.PIPE).stdout.strip()


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    main()
