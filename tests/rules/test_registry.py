"""Rules by their names: those of run.json, and those of the folder."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.rows.records import EVIDENCE_KINDS
from arhn_datasets.rules.rule import known_rules, rule_of
from tests.rules.drawn import cases
from tests.rules.test_rule import same


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_parameters_of_a_run_make_the_rule_again(case):
    """What run.json holds gives a rule that decides the same."""
    rule, (row,), _ = case
    again = rule_of(json.loads(json.dumps(rule.identity())))
    assert type(again) is type(rule)
    assert again.identity() == rule.identity()
    assert same(again(row), rule(row))


def test_the_identity_of_arhn_is_what_it_was():
    """Options of other evidence show only where they are used: fingerprints of before stay."""
    assert set(arhn.Relabel().identity()) == set(arhn.Relabel(threshold=3).identity())
    assert "threshold" not in arhn.Relabel(evidence="verdicts").identity()
    assert arhn.Relabel(evidence="grades").identity()["threshold"] == 2
    assert arhn.Relabel(max_matches=8).identity()["max_matches"] == 8
    identities = {json.dumps(rule().identity(), sort_keys=True) for rule in known_rules().values()}
    assert len(identities) == len(known_rules())


def test_a_rule_is_a_file_of_the_folder():
    """The rules of the folder are those that users have, each under the name of its class; what they share is none."""
    assert set(known_rules()) == {"Relabel", "PositiveAware", "AdaptiveMargin", "AmbiguousSampling"}
    assert all(getattr(arhn, name) is rule for name, rule in known_rules().items())
    for rule in known_rules().values():
        assert rule_of(rule().identity()).identity() == rule().identity()
        assert set(rule().evidence_kinds) <= set(EVIDENCE_KINDS)


def test_a_rule_that_is_not_there():
    """The message names those that are."""
    with pytest.raises(
        ConfigurationError, match="The rule is 'Magic'; one of AdaptiveMargin, AmbiguousSampling, Relabel"
    ):
        rule_of({"rule": "Magic"})
