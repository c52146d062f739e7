"""The options of the connection: said once, and the same for the endpoint, the stages and the command."""

from __future__ import annotations

import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.annotators.client.contract import CONNECTION, DEFAULTS

OTHERS = {"api_key": "k", "api": "tgi", "concurrency": 7, "tokenizer": "a/folder"}


@pytest.mark.parametrize("name", CONNECTION)
def test_an_option_is_one_everywhere(name, monkeypatch):
    """A keyword of the endpoint and of a stage, a line of both docstrings, and perhaps a flag; its default is one."""
    monkeypatch.delenv("ARHN_ENDPOINT", raising=False)
    value = OTHERS.get(name) or DEFAULTS[name] + 1
    given = {name: value}
    assert getattr(arhn.Endpoint("http://h", **given), name) == value
    assert getattr(arhn.snippets.with_options(endpoint="http://h", **given).configured, name) == value
    assert getattr(arhn.Snippets(endpoint="http://h").configured, name) == DEFAULTS[name]
    for cls in (arhn.Endpoint, arhn.Snippets.__base__):
        assert f"\n    {name}: " in cls.__doc__
    option = CONNECTION[name]
    command = ["in", "--output", "out", "--endpoint", "http://h"]
    parse = cli.refine_parser().parse_args
    assert getattr(cli.configured_stages(parse(command)).annotators[0], name) == DEFAULTS[name]
    if option.metavar or option.choices:
        flag = [f"--{name.replace('_', '-')}", str(value)]
        assert getattr(cli.configured_stages(parse([*command, *flag])).annotators[0], name) == value


def test_options_make_no_two_annotators_equal():
    """An annotator is itself, whatever its options are: what is kept for one is kept by it."""
    one, other = arhn.Endpoint("http://h"), arhn.Endpoint("http://h")
    assert one != other
    assert len({one, other}) == 2
