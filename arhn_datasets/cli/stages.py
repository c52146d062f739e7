"""The options of ``arhn-refine`` that make the stages of a run: which evidence, whose it is, and which rule reads it.

What there is stands nowhere here: kinds of evidence, annotators and rules are found in their folders, each with the
options that go with it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from arhn_datasets.annotators.client.contract import DEFAULTS
from arhn_datasets.annotators.endpoint import Endpoint, urls_of_environment
from arhn_datasets.annotators.interface import Annotator, registered
from arhn_datasets.annotators.prompts import TASKS
from arhn_datasets.cli.rounds import annotator_of_rounds
from arhn_datasets.cli.running import not_negative, number, positive, whole
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.evidence.scores import SAME_AS_THE_LLM
from arhn_datasets.evidence.stage import AnnotatedTransform, known_stages
from arhn_datasets.rows.options import Option
from arhn_datasets.rules.arhn import Relabel
from arhn_datasets.rules.rule import Decision, called, known_rules

if TYPE_CHECKING:
    from arhn_datasets.runs.preparing import Stages

MOST_PERMUTATIONS = 100  # each asks for all windows of every row again
_TYPES = {"SECONDS": not_negative, "N": positive, "K": whole(1, MOST_PERMUTATIONS), "NUMBER": number}  # of options
_ANYWHERE = ("cache",)  # harmless beside an annotator that has nothing to store


# --- the parser ---------------------------------------------------------------------------------------------------


def add_stage_options(parser: argparse.ArgumentParser) -> None:
    """The options of evidence, annotators and rules, without defaults: they would hide what is given."""
    evidence = parser.add_argument_group("evidence")
    evidence.add_argument(
        "--evidence",
        action="append",
        choices=tuple(asked_for()),
        default=[],
        help="what is asked of the passages, and read by the rule; repeatable, and the first that the rule can read is "
        f"what it reads; default: {_listed(_reads(Relabel, {}))}",
    )
    summaries = "; ".join(f"{name}, {cls.SUMMARY}" for name, cls in registered().items())
    default = f"default: {Endpoint.NAME} if an endpoint is given"
    annotator = parser.add_argument_group("annotator")
    annotator.add_argument("--annotator", choices=tuple(registered()), help=f"who gives it: {summaries}; {default}")
    for name, option in _of_annotators().items():
        usual = DEFAULTS.get(name)
        _add(annotator, name, option, option.help if usual is None else f"{option.help}; default: {usual:g}")
    annotator.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK|SUBSET=TASK",
        help=f"prompts for all rows or for a subset, one of {', '.join(TASKS)}; repeatable; default: by subset",
    )
    rules = parser.add_argument_group("rule")
    rules.add_argument(
        "--rule",
        choices=[called(cls) for cls in known_rules().values()],
        help="what decides by the evidence; default: the one that reads it, where there is one",
    )
    added: set[str] = set()
    for group, takers in ((evidence, _stage_takers()), (rules, _rule_takers())):
        for name in dict.fromkeys(name for taker in takers for name in taker.options):
            if name not in added:
                _add(group, name, *_told(name, [*_stage_takers(), *_rule_takers()]))
                added.add(name)


def _add(group: Any, name: str, option: Option, help: str) -> None:
    if option.switch:
        group.add_argument(_flag(name), action="store_true", help=help)
    elif option.metavar or option.choices:
        group.add_argument(
            _flag(name),
            action="append" if option.repeatable else "store",
            type=_TYPES.get(option.metavar or "", str),
            metavar=option.metavar,
            choices=option.choices,
            help=help,
        )


class _Taker(NamedTuple):
    """What takes options: a stage or a rule, as it is told and chosen."""

    cls: Any
    called: str
    place: str
    options: Mapping[str, Option]


def _stage_takers() -> list[_Taker]:
    stages = known_stages().items()
    return [_Taker(cls, kind, f"--evidence {cls.FOLLOWS or kind}", cls.OPTIONS) for kind, cls in stages]


def _rule_takers() -> list[_Taker]:
    return [_Taker(cls, called(cls), f"--rule {called(cls)}", cls.OPTIONS) for cls in known_rules().values()]


def _told(name: str, takers: Sequence[_Taker]) -> tuple[Option, str]:
    """The option of all who take it, with all of their choices, and its help."""
    found = [taker for taker in takers if name in taker.options]
    said: dict[tuple[str, object], list[str]] = defaultdict(list)
    for taker in found:
        said[taker.options[name].help, getattr(taker.cls, name, None)].append(taker.called)
    choices = dict.fromkeys(choice for taker in found for choice in taker.options[name].choices or ())
    first = found[0].options[name]
    helps = []
    for (help, default), of in said.items():
        usual = [] if default is None else [f"default: {default}"]
        named = [] if len(of) == len(known_rules()) else [", ".join(of)]  # what all rules take
        helps.append(f"{help} ({'; '.join([*named, *usual])})" if named or usual else help)
    return replace(first, choices=tuple(choices) or None), "; ".join(helps)


def _of_annotators() -> dict[str, Option]:
    return {name: option for cls in reversed(registered().values()) for name, option in cls.OPTIONS.items()}


# --- the stages ---------------------------------------------------------------------------------------------------


def asked_for() -> list[str]:
    """The kinds of evidence that a command can be asked for; what follows one of them comes with it."""
    return [kind for kind, cls in known_stages().items() if not cls.FOLLOWS]


def configured_stages(options: argparse.Namespace) -> Stages:
    """The transforms that the arguments of ``arhn-refine`` name.

    Raises:
        ConfigurationError: the arguments do not fit each other.
    """
    from arhn_datasets.runs.preparing import Stages

    rule, way, asked = _chosen(options.rule, options.evidence)
    stages = {kind: cls for kind, cls in known_stages().items() if (cls.FOLLOWS or kind) in asked}
    _refuse_idle(options, [*stages.values(), rule], asked)
    annotated = [cls for cls in stages.values() if issubclass(cls, AnnotatedTransform)]
    annotator = _annotator_of(options) if annotated else None
    tasks, given = _tasks_of(options.task), vars(options)
    made = {kind: cls.from_options(given, annotator, tasks) for kind, cls in stages.items()}
    chosen = {name: given[name] for name in rule.OPTIONS if given[name] is not None}
    return Stages(**made, **{rule.NAME: rule(**way, **chosen)})


def unread_evidence(stages: Stages) -> list[str]:
    """The kinds that were asked for and that the rule does not read."""
    return [one.NAME for one in stages.evidence if not one.FOLLOWS and one.NAME not in stages.rule.evidence_kinds]


def keeps_replies(options: argparse.Namespace) -> bool:
    """Whether the run of these arguments has a store of replies."""
    kinds = options.evidence or _reads(Relabel, {})
    annotated = any(issubclass(known_stages()[kind], AnnotatedTransform) for kind in kinds)
    return bool(options.score_endpoint) or options.annotator != "lexical" and annotated


def _chosen(named: str | None, evidence: Sequence[str]) -> tuple[type[Decision], Mapping[str, Any], list[str]]:
    """The rule, the options by which it reads the evidence, and the kinds to ask for."""
    if twice := sorted({kind for kind in evidence if evidence.count(kind) > 1}):
        raise ConfigurationError(f"--evidence {twice[0]} was given more than once; give each kind once.")
    asked = list(evidence) or _reads(Relabel, {})
    known = {called(cls): cls for cls in known_rules().values()}
    ways = [
        (cls, way, reads)
        for name, cls in known.items()
        for way in cls.WAYS
        if named in (None, name) and (reads := _reads(cls, way))
    ]
    fitting = [one for one in ways if set(one[2]) <= set(asked)]
    if named is None:
        fitting = [one for one in fitting if set(one[2]) == set(asked)]
        rules = list(dict.fromkeys(called(cls) for cls, *_ in fitting))
        if len(rules) > 1:
            raise ConfigurationError(
                f"--evidence {asked[0]} is read by several rules: {_listed(rules)}. Name one of them with --rule."
            )
        if not rules:
            raise ConfigurationError(
                f"No rule reads {_listed(asked, 'and')} together: {_told_ways(ways)}. Leave out what is not needed, or "
                "name the rule with --rule; what it does not read is paid for and decides nothing."
            )
    elif not fitting:
        flags = _listed([f"--evidence {kind}" for kind in dict.fromkeys(kind for *_, reads in ways for kind in reads)])
        found = _listed(asked, "and") + ("" if evidence else ", the default,")
        raise ConfigurationError(f"{_told_ways(ways)}, and {found} would be asked for. Give {flags}.")
    cls, way, _ = min(fitting, key=lambda one: min(map(asked.index, one[2])))
    return cls, way, asked


def _reads(rule: type[Decision], way: Mapping[str, Any]) -> list[str]:
    """The kinds of evidence that a rule reads, without those that follow others."""
    return [kind for kind in rule(**way).evidence_kinds if kind in asked_for()]


def _told_ways(ways: Iterable[tuple[type[Decision], Mapping[str, Any], list[str]]]) -> str:
    of: dict[str, list[str]] = defaultdict(list)
    for cls, _, reads in ways:
        of[called(cls)].append(" with ".join(reads))
    return "; ".join(f"--rule {rule} reads {_listed(kinds)}" for rule, kinds in of.items())


def _annotator_of(options: argparse.Namespace) -> Annotator:
    """The annotator that the arguments name and fit."""
    if options.opened is not None:
        return annotator_of_rounds(options)
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


def _tasks_of(named: Sequence[str]) -> str | Mapping[str, str] | None:
    """The task for all rows, or for each subset, that ``--task`` names."""
    for_all = [task for task in named if "=" not in task]
    by_subset = dict(task.rsplit("=", 1) for task in named if "=" in task)
    if len(for_all) > 1 or (for_all and by_subset):
        raise ConfigurationError(f"--task got {list(named)}; expected one task for all rows, or SUBSET=TASK for each.")
    return for_all[0] if for_all else by_subset or None


# --- options that would have no effect ------------------------------------------------------------------------------


def _refuse_idle(options: argparse.Namespace, classes: Sequence[Any], asked: Sequence[str]) -> None:
    """Refuse options of evidence and rules that are not those of this run, and of annotators where none is asked."""
    now = " ".join([*(f"--evidence {kind}" for kind in asked), f"--rule {called(classes[-1])}"])
    places: dict[str, list[str]] = {}
    taken: set[str] = set()
    for taker in (*_stage_takers(), *_rule_takers()):
        for name, option in taker.options.items():
            read = not option.with_evidence or not set(option.with_evidence).isdisjoint(asked)
            if taker.cls in classes and read:
                taken.add(name)
            kinds = f" with --evidence {_listed(option.with_evidence)}" if option.with_evidence else ""
            places.setdefault(name, []).append(f"{taker.place}{kinds}")
    by_place: dict[str, list[str]] = defaultdict(list)
    for name in places:
        if name not in taken:
            by_place[_listed(list(dict.fromkeys(places[name])))].append(name)
    if not any(issubclass(cls, AnnotatedTransform) for cls in classes):
        annotated = [k for k, cls in known_stages().items() if k in asked_for() and issubclass(cls, AnnotatedTransform)]
        everywhere = {*_ANYWHERE, *(SAME_AS_THE_LLM if options.score_endpoint else ())}
        by_place[f"--evidence {_listed(annotated)}"] += ["annotator", "task", *set(_of_annotators()) - everywhere]
    for place, names in by_place.items():
        refuse(options, names, f"{place}, not with {now}")


def refuse(options: argparse.Namespace, names: Sequence[str], place: str) -> None:
    """Refuse those of ``names`` that were given and would have no effect, as they go with ``place``."""
    values = {name: vars(options).get(name) for name in names}
    given = [name for name, value in values.items() if not (value is None or value is False or value == [])]
    if given:
        goes, it = ("goes", "it") if len(given) == 1 else ("go", "them")
        raise ConfigurationError(f"{', '.join(map(_flag, given))} {goes} with {place}; leave {it} out.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listed(names: Collection[str], word: str = "or") -> str:
    *before, last = names
    return f"{', '.join(before)} {word} {last}" if before else last
