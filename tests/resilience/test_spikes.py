"""Which losses are a spike."""

from __future__ import annotations

import math

from clsgen_dist.checkpoint.state import SpikeState


def test_each_head_is_compared_with_itself():
    state = SpikeState()
    for _ in range(20):
        state = state.after(2.0, math.nan, updated=True)
    assert state.limits(10.0) == (20.0, math.inf)  # of classification nothing is known yet
    for _ in range(20):
        state = state.after(math.nan, 0.01, updated=True)
    assert state.limits(10.0) == (20.0, 10.0)  # what was learnt by heart may be contradicted
    assert state.limits(0.0) == (math.inf, math.inf)
    skipped = state.after(99.0, 0.01, updated=False)
    assert skipped.recent_generation == state.recent_generation and (skipped.in_a_row, skipped.skipped) == (1, 1)
