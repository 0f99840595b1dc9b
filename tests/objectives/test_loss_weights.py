"""Loss weights: bounded, a function of progress and factors."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsgen_dist.objectives.loss_weights import SCHEDULES, WeightSchedule, ramp

NAMES = ("generation", "classification", "third")
ends = st.tuples(st.floats(0, 2), st.floats(0, 2)).filter(lambda pair: max(pair) > 0.01)


def _schedule(schedule="linear", base=(1.0, 1.0), ranges=((1.0, 1.0), (0.2, 1.0)), min_share=0.05):
    return WeightSchedule(
        dict(zip(NAMES, base, strict=False)), schedule, dict(zip(NAMES, ranges, strict=False)), min_share
    )


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "constant"])
def test_a_ramp_rises_from_0_to_1_through_a_half(schedule):
    values = [ramp(schedule, p / 100) for p in range(101)]
    assert values[0] == pytest.approx(0) and values[50] == pytest.approx(0.5) and values[100] == pytest.approx(1)
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert ramp(schedule, -1) == values[0] and ramp(schedule, 2) == values[100]


def test_classification_weight_grows_and_generation_weight_is_constant():
    schedule = _schedule("cosine")
    assert schedule.at(0) == pytest.approx({"generation": 1, "classification": 0.2})
    assert schedule.at(1) == pytest.approx({"generation": 1, "classification": 1})


def test_constant_weights_equal_the_settings():
    assert _schedule("constant", base=(4.0, 1.0)).at(0) == {"generation": 4.0, "classification": 1.0}


def test_factors_multiply_the_weights():
    weights = _schedule("constant", base=(4.0, 1.0)).at(0, {"generation": 0.5, "classification": 3.0})
    assert weights == {"generation": 2.0, "classification": 3.0}


@given(
    schedule=st.sampled_from(SCHEDULES),
    base=st.lists(st.floats(0.01, 10), min_size=2, max_size=3),
    ranges=st.lists(ends, min_size=3, max_size=3),
    factors=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    min_share=st.floats(0, 0.5),
    progress=st.floats(0, 1),
)
def test_every_term_keeps_its_minimum_share_and_the_sum_stays(progress, factors, min_share, **changes):
    by_name = dict(zip(NAMES, factors, strict=True))
    weights = _schedule(min_share=min_share, **changes).at(progress, by_name)
    free = _schedule(min_share=0.0, **changes).at(progress, by_name)
    total = sum(weights.values())
    assert total == pytest.approx(sum(free.values()))
    share = min(min_share, 1 / len(weights)) * total
    for name, base in zip(weights, changes["base"], strict=True):
        assert weights[name] >= min(share, base) - 1e-9


def test_a_small_weight_stays_as_it_was_set():
    assert _schedule("constant", base=(1.0, 1.0, 0.01)).at(0) == {"generation": 1, "classification": 1, "third": 0.01}


def test_a_term_that_is_switched_off_stays_off():
    assert _schedule(base=(0.0, 1.0)).at(0.5)["generation"] == 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule is 'step', expected one of constant"):
        ramp("step", 0.5)
