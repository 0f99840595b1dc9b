"""The interval between saves, what it costs, and how long a save stops a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from plan_cases import STATED

from clsgen_dist.plan.goodput import FLAT, Faults, daly, goodput, kept_share, young
from clsgen_dist.plan.plan import Planner


def sampled(faults, interval, gap_F):
    """Goodput for given hours between faults: complete intervals, saved and written, between each two."""
    worked_F = np.maximum(gap_F - faults.restart_hours - faults.write_hours, 0)
    return np.floor(worked_F / (interval + faults.save_hours)).sum() * interval / gap_F.sum()


@pytest.mark.parametrize(
    ("gpus", "save", "write"), [(4096, 0.02, 0), (4096, 1e-5, 0.3), (8, 0.1, 0), (200_000, 0.02, 0.01)]
)
def test_goodput_matches_random_faults(gpus, save, write):
    faults = Faults(
        gpus=gpus, per_gpu_hour=419 / (54 * 24 * 16384), restart_hours=0.2, save_hours=save, write_hours=write
    )
    gap_F = np.random.default_rng(0).exponential(faults.mean_hours, 20_000)
    found = goodput(faults)
    for interval, share in zip(found.intervals, found.goodput, strict=True):
        assert 1 - share == pytest.approx(1 - sampled(faults, interval, gap_F), rel=0.03)
    assert found.at_advised == kept_share(faults, found.advised)


def test_goodput_is_zero_if_no_save_is_ever_reached():
    faults = Faults(gpus=10**6, per_gpu_hour=1.0, restart_hours=0.2, save_hours=0.02)
    assert 0 <= goodput(faults).at_advised < 1e-12 and kept_share(faults, 1.0) == 0


def test_dalys_interval_is_as_good_as_the_best_one_tried():
    faults = Faults(gpus=4096, per_gpu_hour=419 / (54 * 24 * 16384), restart_hours=0.2, save_hours=0.02)
    assert faults.mean_hours == pytest.approx(54 * 24 / 419 * 4)  # Llama 3's rate, on a quarter of its GPUs
    found = goodput(faults)
    assert young(0.02, 12.37) == pytest.approx(0.703, rel=0.01)
    assert found.advised == found.daly == daly(0.02, faults.mean_hours)
    assert found.at_advised > max(found.goodput) - FLAT
    assert found.flat[0] <= found.daly <= found.flat[1]
    assert found.goodput[0] < found.at_advised > found.goodput[-1]


def test_no_interval_is_shorter_than_the_write():
    found = goodput(Faults(gpus=4096, per_gpu_hour=2e-5, restart_hours=0.2, save_hours=1e-6, write_hours=0.5))
    assert found.daly < 0.5 == found.advised
    assert min(found.intervals) == pytest.approx(0.5)


def test_an_asynchronous_save_stops_the_run_for_canary_and_copy_and_needs_host_memory(recipe, h100):
    planner = Planner(recipe(), h100, STATED)
    copied = planner.plan(recipe(), nodes=2)
    share = 12 * copied.trace.trainable / 16
    copy = share / (h100.staging_gb_s * 1e9)
    # The canary gathers all weights again.
    assert copied.canary_seconds > 2 * copied.trace.parameters * 15 / 16 / (8 * h100.between_gb_s * 1e9)
    assert copied.stall_seconds == pytest.approx(copied.canary_seconds + copy)
    # Both rates, per GPU and in total, are those of KempnerForge's 175B on 360 GPUs.
    assert (
        2450 / 360 / h100.staging_gb_s
        == pytest.approx(2450 / h100.staging_total_gb_s, rel=0.02)
        == pytest.approx(60, rel=0.01)
    )
    many = planner.plan(recipe(), nodes=64)
    assert many.stall_seconds - many.canary_seconds == pytest.approx(
        12e-9 * many.trace.trainable / h100.staging_total_gb_s
    )
    assert copied.memory.host == {"checkpoint copy": pytest.approx(share, abs=1)}
    waited = planner.plan(recipe(checkpoint__asynchronous="false"), nodes=2)
    assert waited.write_seconds == copied.write_seconds
    assert waited.stall_seconds == pytest.approx(copied.stall_seconds + waited.write_seconds)
    assert not waited.memory.host
    assert copied.goodput.advised >= copied.write_seconds / 3600
    assert copied.goodput.at_advised > waited.goodput.at_advised
    small = dataclasses.replace(h100, host_memory_gib=copied.memory.host_total * 8 / 0.9 / 2**30 - 0.1)
    assert not Planner(recipe(), small, STATED).plan(recipe(), nodes=2).fits
