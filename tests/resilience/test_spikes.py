"""Which losses are a spike."""

from __future__ import annotations

import math

from clsgen_dist.checkpoint.state import SpikeState

TERMS = ("generation", "classification")


def test_each_term_has_its_own_spike_limit():
    state = SpikeState()
    for _ in range(20):
        state = state.after({"generation": 2.0, "classification": math.nan}, updated=True)
    # No classification loss has been seen yet.
    assert state.limits(10.0, TERMS) == {"generation": 20.0, "classification": math.inf}
    for _ in range(20):
        state = state.after({"generation": math.nan, "classification": 0.01}, updated=True)
    # Below 1 nat, the limit is that of 1 nat.
    assert state.limits(10.0, TERMS) == {"generation": 20.0, "classification": 10.0}
    assert state.limits(0.0, TERMS) == {"generation": math.inf, "classification": math.inf}
    assert state.limits(10.0, (*TERMS, "new"))["new"] == math.inf
    skipped = state.after({"generation": 99.0, "classification": 0.01}, updated=False)
    assert skipped.recent == state.recent and (skipped.in_a_row, skipped.skipped) == (1, 1)
