"""Which losses are a spike."""

from __future__ import annotations

import math

from clsgen_dist.checkpoint.state import SpikeState


def test_each_head_has_its_own_spike_limit():
    state = SpikeState()
    for _ in range(20):
        state = state.after(2.0, math.nan, updated=True)
    assert state.limits(10.0) == (20.0, math.inf)  # no classification loss has been seen yet
    for _ in range(20):
        state = state.after(math.nan, 0.01, updated=True)
    assert state.limits(10.0) == (20.0, 10.0)  # below 1 nat, the limit is that of 1 nat
    assert state.limits(0.0) == (math.inf, math.inf)
    skipped = state.after(99.0, 0.01, updated=False)
    assert skipped.recent_generation == state.recent_generation and (skipped.in_a_row, skipped.skipped) == (1, 1)
