"""Documentation that cannot rot: code that runs, flags and names that exist, links that lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from tests.fakes.hub import USER

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def flags_of(parser):
    """The long options of a parser."""
    found = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    actions = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return found.union(*(flags_of(sub) for choices in actions for sub in choices.values()))


OTHER_FLAGS = {"--lowest", "--host", "--port", "--dataset"}  # of scripts
PARSERS = [
    cli.refine_parser(),
    cli.push_parser(),
    cli.cache_parser(),
    cli.batch_parser(),
    cli.export_parser(),
    cli.verify_parser(),
    cli.audit_parser(),
    cli.evaluate_parser(),
]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_the_python_of_the_readme_runs(code, server, hub, sample, tmp_path, monkeypatch):
    """Each block is executed against a server and a Hub on loopback, in a folder with the files it names."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in sample[:5]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARHN_ENDPOINT", server.url)
    assert cli.refine_command(["rows.jsonl", "--annotator", "lexical", "--output", "refined"]) == 0
    code = code.replace("http://localhost:8080", server.url).replace('"user/', f'"{USER}/')
    exec(compile(code, "README.md", "exec"), {})


def commands_of(heading):
    """The console lines of a section of the README."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_sections_on_publishing_and_training_run_as_they_are_written(
    hub, sample, tmp_path, monkeypatch, script, encoder
):
    """Each line in its order, on a Hub on loopback; only the names of user and base model are others."""
    pytest.importorskip("sentence_transformers")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample[:12]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.refine_command(["rows.jsonl", "--annotator", "lexical", "--output", "refined"]) == 0
    commands = {"arhn-push": cli.push_command, "arhn-verify": cli.verify_command, "arhn-export": cli.export_command}
    lines = [*commands_of("Publish"), *commands_of("Train")]
    assert len(lines) == 6
    for line in lines:
        name, *arguments = line.replace("user/", f"{USER}/").split()
        if name in commands:
            assert commands[name](arguments) == 0, line
            continue
        path, *arguments = arguments
        options = dict(zip((flag.removeprefix("--") for flag in arguments[::2]), arguments[1::2], strict=True))
        code, _, said = script(
            Path(path).stem, **{**options, "model": encoder}, max_steps=1, batch_size=2, max_seq_length=32
        )
        assert code == 0, said


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_flag_is_documented_and_every_documented_flag_exists(parser):
    """The README names each option of each command, and none that is not there."""
    assert {flag for flag in flags_of(parser) if flag not in README} - {"--help", "--version"} == set()
    known = set().union(*(flags_of(parser) for parser in PARSERS)) | OTHER_FLAGS
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README)) <= known


def test_every_public_name_stands_in_the_readme():
    """What users may rely on is named where they look first."""
    assert [name for name in arhn.__all__ if not re.search(rf"\b{name}\b", README)] == []


def test_links_lead_somewhere():
    """Every relative link of a page is a file of the repository."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_starts_with_the_two_commands():
    """A stranger with ten minutes sees scripts/demo and scripts/test first."""
    first = README.split("```")[1]
    assert "scripts/demo" in first
    assert "scripts/test" in first


def test_the_changelog_knows_this_version():
    """The version of the package has a heading."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (\[?{re.escape(arhn.__version__)}\b|Unreleased)", changelog, re.MULTILINE)


def test_every_dependency_has_its_reason():
    """CONTRIBUTING.md says of each dependency why it is there."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    section = project[project.index("\ndependencies = [") :]
    names = {re.match(r"[\w-]+", quoted).group() for quoted in re.findall(r'"([\w-]+(?:\[\w+\])?[>=]=[^"]+)"', section)}
    assert {name for name in names if f"`{name}`" not in contributing} == set()


def test_the_repository_names_no_machine():
    """No page, script or source names a path of somebody's machine."""
    for path in [*PAGES, *ROOT.glob("scripts/*"), *ROOT.glob("arhn_datasets/**/*.py")]:
        if path.is_file():
            assert not re.search(r"/home/\w+/|/root/|/Users/\w+/", path.read_text(encoding="utf-8")), path
