"""constraints.txt: exact versions of all that pyproject.toml asks for, and how the file is written."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

requirements = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).parents[1]
OWN_NAME = "arhn-datasets"
NOWHERE = {"vllm"}  # in no environment of the repository: it brings gigabytes, and the tests have a stand-in


def wanted():
    """The requirements of pyproject.toml, of every extra, by name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib is part of Python from 3.11 on
    project = text[text.index("\ndependencies = [") : text.index("\n[project.scripts]")]
    found = [requirements.Requirement(quoted) for quoted in re.findall(r'"([a-zA-Z][^"]+)"', project)]
    return {plain(one.name): one for one in found if plain(one.name) not in {OWN_NAME, *NOWHERE}}


def plain(name):
    """A package's name as an index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned():
    """The requirements of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [requirements.Requirement(line) for line in lines if not line.startswith("#")]


def test_everything_that_is_asked_for_has_an_exact_version_that_fits():
    """Each package has one version for each interpreter, within what pyproject.toml admits, and no address."""
    pins = pinned()
    for name, requirement in wanted().items():
        versions = [next(iter(pin.specifier)).version for pin in pins if pin.name == name]
        assert versions, name
        assert all(requirement.specifier.contains(version) for version in versions), (name, versions)
    for pin in pins:
        assert [spec.operator for spec in pin.specifier] == ["=="], str(pin)
        assert pin.url is None
        assert pin.name == plain(pin.name)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        here = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert len(here) == len(set(here)), python


@pytest.fixture(scope="module")
def renewal():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("renew_constraints", ROOT / ".ci" / "renew_constraints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_interpreter_with_other_versions_gets_lines_of_its_own(renewal):
    """What is the same is written once; what an interpreter cannot have is left free there."""
    main = renewal.Resolved(
        {"a": "1", "b": "2.1", "c": "3", "d": "4"}, {"b": ">=3.11", "c": ">=3.11,<4", "d": ">=3.8, !=3.9.*"}
    )
    others = {"3.10": {"a": "1", "b": "2.0", "e": "5"}, "3.13": {"a": "1", "b": "2.1"}}
    assert renewal.lines(main, others) == [
        "a==1",
        'b==2.1 ; python_version != "3.10"',
        'b==2.0 ; python_version == "3.10"',
        'c==3 ; python_version != "3.10"',
        "d==4",
        "e==5",
    ]
    assert renewal.lines(main, {}) == ["a==1", "b==2.1", "c==3", "d==4"]
