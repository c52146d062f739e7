"""Fixtures of the tests of runs."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def jsonl(tmp_path, sample):
    """The sample as a file."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sample), encoding="utf-8")
    return path
