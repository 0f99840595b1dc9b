"""Stages: pools grow as in the paper, base rates are kept, and impossible stages are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clsgen_dist.data.curriculum.stages import (
    Stage,
    competence,
    plan_stages,
    quantiles,
    segments,
    stage_faults,
    stage_order,
    visited_before,
)
from clsgen_dist.data.settings import CurriculumSettings
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.value_ranges import dataclass_range_faults


def _plan(stage, rows=1000, batch=10):
    [planned] = plan_stages([stage], rows=rows, batch_size=batch, epochs=1, max_steps=None)
    return planned


def _visited(stage, quantile_N, seed=0):
    planned = _plan(stage, len(quantile_N))
    return stage_order(planned, quantile_N, seed).at(0, planned.positions)[0]


def test_competence_follows_platanios():
    for t in (0.0, 0.3, 0.99):
        assert competence(Stage(name="a", pacing="linear", start=0.1), t) == pytest.approx(0.1 + 0.9 * t)
        assert competence(Stage(name="a", pacing="root", start=0.1), t) == pytest.approx(math.sqrt(0.01 + 0.99 * t))
        assert competence(Stage(name="a"), t) == 1
    jumping = Stage(name="a", pacing="step", start=0.25, jumps=4)
    steps = [competence(jumping, t) for t in (0, 0.24, 0.25, 0.5, 0.75, 0.99)]
    assert steps == pytest.approx([0.25, 0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("pacing", ["linear", "root", "step"])
def test_a_growing_pool_visits_only_rows_within_its_competence(pacing):
    quantile_N = np.arange(1000) / 1000
    stage = Stage(name="a", epochs=2, pacing=pacing, start=0.2)
    visited = quantile_N[_visited(stage, quantile_N)]
    count = len(segments(stage, len(visited)))
    for index in range(count):
        part = visited[index * len(visited) // count : (index + 1) * len(visited) // count]
        # Five positions of slack at either end: a time is a position only on average.
        assert part[5:-5].max() < competence(stage, min((index + 1.5) / count, 0.999)) + 0.02
    assert visited[: len(visited) // 20].max() < 0.45 and visited[-len(visited) // 20 :].max() > 0.9


def test_bands_and_replay_get_their_shares():
    quantile_N = np.arange(900) / 900
    visited = quantile_N[_visited(Stage(name="a", epochs=1, bands=[0.6, 0.3, 0.1]), quantile_N)]
    assert np.histogram(visited, [0, 1 / 3, 2 / 3, 1])[0] / len(visited) == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    visited = quantile_N[_visited(Stage(name="a", epochs=0.5, difficulty=(0.5, 1), replay=0.25), quantile_N)]
    assert (visited < 0.5).mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("direction", ["easy_first", "hard_first", "random"])
def test_every_pool_keeps_the_base_rate_when_one_class_is_harder(direction):
    """The rare class is much harder: ranked over all rows, an early pool would hold none of it."""
    rng = np.random.default_rng(0)
    label_N = (rng.random(4000) < 0.1).astype(int)
    score_N = rng.random(4000) + 10 * label_N
    quantile_N = quantiles(score_N, label_N, direction, seed=0)
    for high in (0.1, 0.3, 1.0):
        assert label_N[quantile_N < high].mean() == pytest.approx(label_N.mean(), abs=0.005)
    visited = _visited(Stage(name="a", epochs=1, pacing="root"), quantile_N)
    for part in np.array_split(label_N[visited], 4):
        assert part.mean() == pytest.approx(label_N.mean(), abs=0.035)
    own = quantile_N[label_N == 1][np.argsort(score_N[label_N == 1])]
    rising = np.corrcoef(np.arange(len(own)), own)[0, 1]
    assert {"easy_first": rising > 0.99, "hard_first": rising < -0.99, "random": abs(rising) < 0.15}[direction]


def test_every_class_is_in_the_first_pool():
    quantile_N = quantiles(np.arange(7.0), np.array([0, 0, 0, 0, 0, 0, 1]), "easy_first", 0)
    assert quantile_N[6] == 0 and sorted(quantile_N[:6]) == pytest.approx([k / 6 for k in range(6)])


def test_stages_have_complete_steps():
    stages = [Stage(name="a", epochs=0.25), Stage(name="b", steps=7), Stage(name="c", epochs=1)]
    planned = plan_stages(stages, rows=43, batch_size=10, epochs=9, max_steps=None)
    assert [(p.first_step, p.steps, p.positions) for p in planned] == [(0, 2, 20), (2, 7, 70), (9, 5, 43)]
    assert [p.stage.name for p in plan_stages(stages, rows=43, batch_size=10, epochs=9, max_steps=5)] == ["a", "b"]
    [alone] = plan_stages([], rows=43, batch_size=10, epochs=1.5, max_steps=None)
    assert (alone.stage.name, alone.steps, alone.positions) == ("all", 7, 64)


def test_a_stage_without_rows_is_refused_by_name():
    with pytest.raises(
        SettingsError, match=r"stage 'tail': no row has a difficulty in 0.95-1 \(3 rows in all\); widen"
    ):
        stage_order(_plan(Stage(name="tail", steps=1, difficulty=(0.95, 1.0))), np.array([0, 0.3, 0.6]), 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "give either epochs or steps"),
        ({"epochs": 1, "steps": 1}, "give either epochs or steps"),
        ({"epochs": 0}, "epochs is 0, expected more than 0"),
        ({"steps": 3, "difficulty": (0.5, 0.2)}, "expected two rising quantiles"),
        ({"steps": 3, "replay": 0.1}, "no row is easier"),
        ({"steps": 3, "bands": [0, 0]}, "not all 0"),
        ({"steps": 3, "start": 0}, "a share above 0"),
        ({"steps": 3, "generation_range": (0, 0)}, "not both 0"),
    ],
)
def test_impossible_fields_are_refused_with_the_name_of_the_stage(fields, expected):
    stage = Stage(name="x", **fields)
    faults = [*dataclass_range_faults(CurriculumSettings(stages=[stage])), *stage_faults([stage])]
    assert len(faults) == 1 and "'x'" in faults[0] and expected in faults[0]


def test_a_run_may_be_extended_but_its_visited_rows_are_fixed():
    def plan(**last):
        stages = [Stage(name="a", steps=2), Stage(name="b", **{"steps": 3, **last})]
        return plan_stages(stages, rows=43, batch_size=10, epochs=1, max_steps=None)

    first, longer, growing = plan(), plan(steps=9), plan(pacing="root")
    assert visited_before(first, 4) == visited_before(longer, 4)
    assert visited_before(first, 2) == visited_before(growing, 2)
    assert visited_before(first, 3) != visited_before(growing, 3)
    assert visited_before(growing, 3) != visited_before(plan(pacing="root", steps=9), 3)
    quantile_N = np.arange(43) / 43
    short, long = (stage_order(p[1], quantile_N, 0).at(0, 30) for p in (first, longer))
    assert np.array_equal(short[0], long[0])


@pytest.mark.parametrize(
    "change",
    [{"name": "z"}, {"lr_factor": 0.1}, {"micro_batch_tokens": 99}, {"start": 0.9}, {"loss_schedule": "linear"}],
)
def test_fields_that_keep_the_visited_rows_may_change_on_resume(change):
    one, two = (
        plan_stages([Stage(**{"name": "a", "steps": 3, **fields})], rows=43, batch_size=10, epochs=1, max_steps=None)
        for fields in ({}, change)
    )
    assert visited_before(one, 2) == visited_before(two, 2)


def test_a_short_last_step_cannot_be_extended_on_resume():
    one, two = (plan_stages([], rows=43, batch_size=10, epochs=e, max_steps=None) for e in (1, 2))
    assert visited_before(one, 4) == visited_before(two, 4)
    assert visited_before(one, 5) != visited_before(two, 5)
    assert "stages.0.last_rows" in visited_before(one, 5)
    one, two = (plan_stages([], rows=40, batch_size=10, epochs=e, max_steps=None) for e in (1, 2))
    assert visited_before(one, 4) == visited_before(two, 4)


def test_stages_need_unique_names():
    assert "different names" in stage_faults([Stage(name="x", steps=1), Stage(name="x", steps=1)])[0]


def test_a_stage_with_only_replayed_rows_is_refused():
    quantile_N = quantiles(np.arange(7.0), np.array([0, 1, 0, 1, 0, 1, 0]), "easy_first", 0)
    stage = Stage(name="hard", epochs=3, difficulty=(0.8, 1.0), replay=0.2)
    with pytest.raises(SettingsError, match=r"stage 'hard': no row has a difficulty in 0.8-1 \(7 rows in all\)"):
        stage_order(_plan(stage, rows=7), quantile_N, 0)
