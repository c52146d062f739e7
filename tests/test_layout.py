"""The order of the folders, the public names, and how light the package is to import."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arhn_datasets as arhn

PACKAGE = Path(arhn.__file__).parent
ROOT = PACKAGE.parent

# The way of a row; a folder imports only from those before it.
ORDER = [
    "errors",
    "rows",
    "inputs",
    "annotators",
    "evidence",
    "rules",
    "folder",
    "formats",
    "runs",
    "checks",
    "hub",
    "testing",
    "cli",
]
# What a folder never imports, although it comes before it.
NEVER = {
    "annotators": {"inputs"},
    "rules": {"inputs", "annotators", "evidence"},
    "folder": {"inputs"},
    "formats": {"inputs", "annotators"},
    "checks": {"runs"},
    "hub": {"annotators", "evidence"},
    "cli": {"testing"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted(
    ".".join(("arhn_datasets", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in FILES
)

# The one list of what users may rely on.
PUBLIC = {
    "PROMPTS",
    "Adapt",
    "AdaptiveMargin",
    "AmbiguousSampling",
    "Annotator",
    "ArhnError",
    "Cascade",
    "Endpoint",
    "Evaluation",
    "Grades",
    "Lexical",
    "Local",
    "PositiveAware",
    "Prompts",
    "Ranks",
    "Relabel",
    "Revert",
    "Scores",
    "Snippets",
    "Verdicts",
    "adapt",
    "adapt_dataset",
    "evaluate",
    "export",
    "grades",
    "is_kept",
    "push",
    "ranks",
    "relabel",
    "revert",
    "snippets",
    "verdicts",
    "verify",
    "with_evidence",
}
HEAVY = {"aiohttp", "datasets", "huggingface_hub", "matplotlib", "pandas", "ray", "sklearn", "tenacity", "torch"}
HEAVY |= {"transformers", "yaml"}


def folder_of(path):
    """The folder of a file at the top of the package; of a file there, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parsed(path):
    """The syntax tree of a file."""
    gc.disable()  # what is finalised while it parses can end Python 3.11's parser
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def printed(node):
    """Whether something is printed."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def imports_of(path):
    """The modules of the package that a file imports, in any spelling."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide their folder"
            if node.module == "arhn_datasets":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("arhn_datasets."):
                yield node.module.split(".")[1]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("arhn_datasets."))


def test_the_top_is_the_flow():
    """At the top stand the folders of the flow, the errors and the sample, and nothing else."""
    there = {path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "dataset_cards")}
    folders = set(ORDER) - {"errors"}
    assert there == folders | {"__init__.py", "errors.py", "py.typed", "samples"}


def test_the_flow_is_drawn():
    """The docstring numbers the folders in their order, and each says what it takes, gives and never imports."""
    drawn = [name for name in re.findall(r"^\s*\d+\. (\w+)/", arhn.__doc__, re.MULTILINE)]
    assert drawn == [name for name in ORDER if name in drawn]
    assert len(drawn) == 9
    for name in ORDER[1:]:
        said = inspect.getdoc(importlib.import_module(f"arhn_datasets.{name}"))
        assert re.search(r"In: .*Out: .*Never imports: ", said, re.DOTALL), name


@pytest.mark.parametrize("path", [p for p in FILES if folder_of(p) != "__init__"], ids=lambda p: p.name)
def test_modules_import_only_what_comes_before(path):
    """The data goes one way, and so do the imports."""
    own = folder_of(path)
    before = set(ORDER[: ORDER.index(own) + 1]) - NEVER.get(own, set())
    assert [name for name in imports_of(path) if name not in before] == []


def test_only_commands_print():
    """What a user reads on a terminal is said in one folder."""
    found = {folder_of(path) for path in FILES for node in ast.walk(parsed(path)) if printed(node)}
    assert found <= {"cli", "testing"}


def test_no_module_is_long():
    """A module of more than 500 lines holds two ideas."""
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_module_is_hidden_by_a_function():
    """What is imported under the name of a module is the module."""
    for name in MODULES[1:]:
        parent, _, own = name.rpartition(".")
        module = importlib.import_module(name)
        assert getattr(importlib.import_module(parent), own) is module, name
    assert {name.rpartition(".")[2] for name in MODULES if name.count(".") == 1}.isdisjoint(PUBLIC)


def test_only_the_hub_folder_writes_to_the_hub():
    """No other module names a call of `huggingface_hub` that changes a repository."""
    writing = r"\b(create_commit|create_repo|upload_file|upload_folder|preupload_lfs_files|push_to_hub|delete_repo)\("
    found = {folder_of(path) for path in FILES if re.search(writing, path.read_text(encoding="utf-8"))}
    assert found <= {"hub"}


def test_the_public_names_are_these():
    """__all__, the names of the package and the list above are one."""
    assert set(arhn.__all__) == PUBLIC
    modules = {folder_of(path) for path in FILES}
    names = {name for name in vars(arhn) if not name.startswith("_")}
    assert names - modules - {"annotations"} == PUBLIC - modules


def test_every_public_name_is_documented():
    """Each public class and function has a docstring, and so have its public methods."""
    for name in sorted(PUBLIC - {"PROMPTS"}):
        thing = getattr(arhn, name)
        kind = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
        assert kind.__doc__, name
        if inspect.isclass(kind):
            for member, value in vars(kind).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    assert value.__doc__, f"{name}.{member}"


def test_importing_the_package_is_light():
    """Nothing heavy is imported before it is used."""
    code = "import sys, arhn_datasets, arhn_datasets.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert HEAVY.isdisjoint(loaded)


def test_no_name_promises_nothing():
    """No module is a drawer, and no class a manager."""
    names = {path.stem for path in FILES}
    assert names.isdisjoint({"utils", "helpers", "common", "core", "base", "misc"})
    words = [
        name
        for path in FILES
        for name in re.findall(r"^\s*(?:def|class) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert [word for word in words if re.search(r"Manager|Helper|^_?process_|^_?handle_", word)] == []


def test_the_error_tree_is_drawn_as_it_is():
    """Every error class stands in the drawing, under its parent."""
    from arhn_datasets import errors

    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    names = "Error|Denied|Unavailable|Overloaded|Failure|Rejected|Dead|TooLong|EmptyReply"
    drawn = set(re.findall(rf"\b((?:[A-Z]\w*)?(?:{names}))\b", errors.__doc__))
    assert classes == drawn - {"ValueError"}
    assert all(issubclass(getattr(errors, name), errors.ArhnError) for name in classes)
