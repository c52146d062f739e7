"""The benchmark of the consumers, with the one that is installed here."""

from __future__ import annotations

import pytest

from benchmarks import consumers


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of all exports, and the rows that they are made of."""
    root = tmp_path_factory.mktemp("consumers")
    return root, consumers.write_exports(root, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("export", consumers.CONSUMERS["sentence-transformers"].loads)
def test_sentence_transformers_sees_what_was_written(exported, export):
    """Its own collators give every passage with its side and its score, and nothing else."""
    pytest.importorskip("sentence_transformers")
    root, rows = exported
    seen = consumers.CONSUMERS["sentence-transformers"].loads[export](root / export.split(" ", 1)[0])
    assert consumers.facts_of(seen) == consumers.expected(rows, export)


def test_a_difference_is_found(exported):
    """A passage on the other side, with another score, or left out is none of the expected ones."""
    _, rows = exported
    expected = consumers.expected(rows, "soft n-tuple")
    query, text, side, score = min(expected)
    for other in ((query, text, not side, score), (query, text, side, score + 1), (query, f"{text}!", side, score)):
        assert other not in expected
    assert consumers.expected(rows, "hard beir") != consumers.expected(rows, "hard triplet")
