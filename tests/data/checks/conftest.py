"""Fixtures that write the splits of a check."""

from __future__ import annotations

import pytest

from tests.data.checks.planted import write_rows


@pytest.fixture
def train(tmp_path):
    """``train(rows)`` writes them as train.jsonl."""
    return lambda rows: write_rows(tmp_path / "train.jsonl", rows)


@pytest.fixture
def test(tmp_path):
    """``test(rows)`` writes them as test.jsonl."""
    return lambda rows: write_rows(tmp_path / "test.jsonl", rows)
