"""The layers of the package, its public names, and how light it is to import."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arhn_datasets as arhn

PACKAGE = Path(arhn.__file__).parent
ROOT = PACKAGE.parent

LAYERS = [
    {"errors"},
    {"records"},
    {"columns"},
    {"moves", "values"},
    {"passages"},
    {"schemas"},
    {"prompts", "endpoint", "answers", "background"},
    {"transform", "annotators", "corpora"},
    {"annotation", "testing"},
    {"adapt", "extraction", "ranking", "verdicts", "grading", "scoring", "relabeling"},
    {"evidence", "formats", "rivals"},
    {"report", "progress", "folder"},
    {"chart", "card", "export"},
    {"inputs", "output"},
    {"streaming"},
    {"refine"},
    {"merging"},
    {"cluster", "publication", "estimate", "audit", "truth"},
    {"verify", "judged"},
    {"figures"},
    {"evaluation"},
    {"curves"},
    {"push"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(PACKAGE.rglob("*.py"))

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


def module_of(path):
    """The module of a file in its layer; a folder is one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """The modules of the package that a file imports, in any spelling."""
    gc.disable()  # what is finalised while it parses can end Python 3.11's parser
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide their layer"
            if node.module == "arhn_datasets":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("arhn_datasets."):
                yield node.module.split(".")[1]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("arhn_datasets."))


def test_every_module_has_a_layer():
    """A new module is given a place first."""
    assert {module_of(path) for path in FILES} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) != "__init__"], ids=lambda p: p.name)
def test_modules_import_only_lower_layers(path):
    """The data goes one way, and so do the imports."""
    own = module_of(path)
    assert [name for name in imports_of(path) if name != own and RANK[name] >= RANK[own]] == []


def test_the_public_names_are_these():
    """__all__, the names of the package and the list above are one."""
    assert set(arhn.__all__) == PUBLIC
    modules = {module_of(path) for path in FILES}
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
