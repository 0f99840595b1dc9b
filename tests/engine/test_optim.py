"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from clsgen_dist.engine.optim import lr_factor


def test_learning_rate_warms_up_and_decays_to_its_floor():
    factors = [lr_factor(step, 100, warmup_fraction=0.1, final_fraction=0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0) == pytest.approx(factors[10])
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.2, abs=0.001)
    assert lr_factor(0, 1, warmup_fraction=0.0, final_fraction=0.1) == 1.0
