"""Scheduled loss weights: bounded, a function of progress alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsgen_dist.objectives.loss_weights import SCHEDULES, WeightSchedule, ramp

factors = st.tuples(st.floats(0, 2), st.floats(0, 2)).filter(lambda ends: max(ends) > 0.01)


def _schedule(**changes):
    options = {
        "generation": 1.0,
        "classification": 1.0,
        "schedule": "linear",
        "generation_range": (1.0, 1.0),
        "classification_range": (0.2, 1.0),
        "min_share": 0.05,
    }
    return WeightSchedule(**{**options, **changes})


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "constant"])
def test_a_ramp_rises_from_0_to_1_through_a_half(schedule):
    values = [ramp(schedule, p / 100) for p in range(101)]
    assert values[0] == pytest.approx(0) and values[50] == pytest.approx(0.5) and values[100] == pytest.approx(1)
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert ramp(schedule, -1) == values[0] and ramp(schedule, 2) == values[100]


def test_classification_weight_grows_and_generation_weight_is_constant():
    schedule = _schedule(schedule="cosine")
    assert (schedule.at(0).generation, schedule.at(0).classification) == pytest.approx((1, 0.2))
    assert (schedule.at(1).generation, schedule.at(1).classification) == pytest.approx((1, 1))


def test_constant_weights_equal_the_settings():
    weights = _schedule(schedule="constant", generation=4.0).at(0)
    assert (weights.generation, weights.classification) == (4.0, 1.0)


@given(
    schedule=st.sampled_from(SCHEDULES),
    generation=st.floats(0.01, 10),
    classification=st.floats(0.01, 10),
    generation_range=factors,
    classification_range=factors,
    min_share=st.floats(0, 0.5),
    progress=st.floats(0, 1),
)
def test_every_head_keeps_its_minimum_share(progress, min_share, **changes):
    weights = _schedule(min_share=min_share, **changes).at(progress)
    total = weights.generation + weights.classification
    assert min(weights.generation, weights.classification) >= min_share * total - 1e-9
    assert weights.generation >= 0 and weights.classification >= 0


def test_a_head_that_is_switched_off_stays_off():
    assert _schedule(generation=0.0).at(0.5).generation == 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule is 'step', expected one of constant"):
        ramp("step", 0.5)
