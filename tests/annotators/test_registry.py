"""Annotators are found by their names, each with the options that go with it."""

from __future__ import annotations

from typing import ClassVar

import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.annotators.interface import registered
from arhn_datasets.rows.options import Option


@pytest.fixture
def shy():
    """An annotator of a user's, with an option of its own; it is gone after the test."""

    class Shy(arhn.Lexical):
        """A lexical annotator with a name of its own."""

        NAME: ClassVar[str] = "shy"
        SUMMARY: ClassVar[str] = "says little"
        OPTIONS: ClassVar[dict[str, Option]] = {"at_least": Option(help="the threshold", metavar="N")}

        @classmethod
        def from_options(cls, given):
            """With the threshold that was named."""
            return cls(threshold=1 / (given["at_least"] or 4))

    yield Shy
    Shy.NAME = ""


def test_those_of_the_package():
    """Each file of the folder with a named class, in the order of the names."""
    assert registered() == {"lexical": arhn.Lexical, "local": arhn.Local, "tgi": arhn.Endpoint}


def test_one_of_a_users_is_one_class(shy, capsys):
    """Its name, its words and its option are those of the command, which refuses the option beside another one."""
    parse = cli.refine_parser().parse_args
    base = ["in", "--output", "out", "--annotator"]
    (made,) = cli.configured_stages(parse([*base, "shy", "--at-least", "5"])).annotators
    assert type(made) is shy
    assert made.threshold == 0.2
    with pytest.raises(arhn.ArhnError, match="--at-least goes with --annotator shy, not with --annotator lexical"):
        cli.configured_stages(parse([*base, "lexical", "--at-least", "5"]))
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "shy, says little" in " ".join(capsys.readouterr().out.split())
