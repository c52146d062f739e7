"""Who gives the evidence, as the commands are told: the options of every annotator, from its own file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from arhn_datasets.annotators.client.contract import DEFAULTS, Option
from arhn_datasets.annotators.endpoint import Endpoint, urls_of_environment
from arhn_datasets.annotators.interface import Annotator, registered
from arhn_datasets.annotators.prompts import TASKS
from arhn_datasets.cli.running import not_negative, positive
from arhn_datasets.errors import ConfigurationError

_TYPES = {"SECONDS": not_negative, "N": positive}
_ANYWHERE = ("cache",)  # harmless beside an annotator that has nothing to store


def add_annotator_options(parser: argparse.ArgumentParser) -> None:
    """The group of arguments that names and configures an annotator, and the task of the rows."""
    group = parser.add_argument_group("annotator")
    known = registered()
    summaries = "; ".join(f"{name}, {cls.SUMMARY}" for name, cls in known.items())
    default = f"default: {Endpoint.NAME} if an endpoint is given"
    group.add_argument("--annotator", choices=tuple(known), help=f"who gives the evidence: {summaries}; {default}")
    options = {name: option for cls in reversed(known.values()) for name, option in cls.OPTIONS.items()}
    for name, option in options.items():
        _add(group, name, option)
    group.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK|SUBSET=TASK",
        help=f"prompts for all rows or for a subset, one of {', '.join(TASKS)}; repeatable; default: by subset",
    )


def _add(group: argparse._ArgumentGroup, name: str, option: Option) -> None:
    # The parser has no defaults: they would hide what was given.
    if option.switch:
        group.add_argument(_flag(name), action="store_true", help=option.help)
    elif option.metavar or option.choices:
        default = DEFAULTS.get(name)
        group.add_argument(
            _flag(name),
            action="append" if option.repeatable else "store",
            type=_TYPES.get(option.metavar or "", str),
            metavar=option.metavar,
            choices=option.choices,
            help=option.help if default is None else f"{option.help}; default: {default:g}",
        )


def annotator_of(options: argparse.Namespace) -> Annotator:
    """The annotator that the arguments name.

    Raises:
        ConfigurationError: there is none, or the arguments do not fit it.
    """
    named = options.annotator
    if named is None and (options.endpoint or options.provider or urls_of_environment()):
        named = Endpoint.NAME
    if named is None:
        raise ConfigurationError(
            "No annotator was named. Choose one: --endpoint URL (an LLM server; or set ARHN_ENDPOINT), "
            "--annotator local --model ID (a transformers model in this process), or --annotator lexical "
            "(a word-overlap baseline that needs no LLM)."
        )
    known = registered()
    given = {name: vars(options).get(name) for cls in known.values() for name in cls.OPTIONS}
    elsewhere: dict[str, list[str]] = {}
    for name in given:
        if name not in known[named].OPTIONS and name not in _ANYWHERE:
            takers = " or ".join(other for other, cls in known.items() if name in cls.OPTIONS)
            elsewhere.setdefault(takers, []).append(name)
    for takers, names in elsewhere.items():
        refuse(options, names, f"--annotator {takers}, not with --annotator {named}")
    return known[named].from_options(given)


def tasks_of(named: Sequence[str]) -> str | Mapping[str, str] | None:
    """The task for all rows, or for each subset, that ``--task`` names.

    Raises:
        ConfigurationError: it names both, or several for all rows.
    """
    whole = [task for task in named if "=" not in task]
    by_subset = dict(task.rsplit("=", 1) for task in named if "=" in task)
    if len(whole) > 1 or (whole and by_subset):
        raise ConfigurationError(f"--task got {list(named)}; expected one task for all rows, or SUBSET=TASK for each.")
    return whole[0] if whole else by_subset or None


def refuse(options: argparse.Namespace, names: Sequence[str], place: str) -> None:
    """Refuse what was given and would have no effect.

    Raises:
        ConfigurationError: something of ``names`` was; it goes with ``place``.
    """
    values = {name: vars(options).get(name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]  # 0 is a value
    if given:
        goes, it = ("goes", "it") if len(given) == 1 else ("go", "them")
        raise ConfigurationError(f"{', '.join(map(_flag, given))} {goes} with {place}; leave {it} out.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
