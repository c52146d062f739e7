"""The words of CONTRIBUTING: one word for each thing, as far as that can be held cheaply."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import arhn_datasets as arhn

PACKAGE = Path(arhn.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("dataset_cards/**/*.md"), *ROOT.glob("scripts/*.py")]
GLOSSARY = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Words")[2].partition("\n## ")[0]


def definitions():
    """Every class and every public constant of a module, with its module."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield node.name, path
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                names = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((name.id, path) for name in names if isinstance(name, ast.Name) and name.id.isupper())


def test_the_glossary_has_some_thirty_words():
    """Each with one meaning, in one line."""
    words = [word for line in re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.MULTILINE) for word in line.split(", ")][1:]
    words = [word for word in words if word != "---"]
    assert 30 <= len(words) <= 60
    assert len(set(words)) == len(words)


def test_a_class_has_one_meaning():
    """No name of a public class stands for two things, and no constant of the words below has two values."""
    found = defaultdict(set)
    for name, path in definitions():
        if not name.startswith("_") and (not name.isupper() or name in HELD) and "testing" not in path.parts:
            found[name].add(path.relative_to(PACKAGE).as_posix())
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


HELD = {"SIDES", "KINDS", "LABELS", "LABELLED", "GRADES", "VERDICTS", "POLICIES", "FILTERED", "POSITIVE", "NEGATIVE"}


def test_one_spelling():
    """It is relabelled, everywhere."""
    for path in [*FILES, *PAGES]:
        found = re.findall(r"\w*relabel(?:ed|ing)\b", path.read_text(encoding="utf-8"), re.IGNORECASE)
        assert {word for word in found if word.lower() not in FOREIGN} == set(), path


FOREIGN = {"relabeling"}  # the paper's title has it


def test_words_that_went():
    """No module is named by a word that meant something else in another one."""
    gone = {"annotation", "answers", "cluster", "extraction", "figures", "judged", "rivals", "served"}
    assert {path.stem for path in FILES} & gone == set()
