"""Rates exclude pauses, and peak memory is that of this process."""

from __future__ import annotations

import math

import pytest
import torch

from clsgen_dist.track.tensorboard import SUPERVISED_TOKENS_PER_SECOND, TOKENS_PER_SECOND
from clsgen_dist.track.throughput import Throughput, peak_memory_gib


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rates_are_since_the_last_call(clock: Clock) -> None:
    throughput = Throughput(clock)
    throughput.add(600, 200)
    throughput.add(400, 100)
    clock.now += 2
    assert throughput.rates() == {TOKENS_PER_SECOND: 500, SUPERVISED_TOKENS_PER_SECOND: 150}
    clock.now += 4
    throughput.add(100, 0)
    assert throughput.rates() == {TOKENS_PER_SECOND: 25, SUPERVISED_TOKENS_PER_SECOND: 0}


def test_paused_time_does_not_count(clock: Clock) -> None:
    throughput = Throughput(clock)
    clock.now += 1
    with throughput.pause():
        clock.now += 50
        with throughput.pause():
            clock.now += 50
        clock.now += 50
    clock.now += 1
    throughput.add(100, 10)
    assert throughput.rates()[TOKENS_PER_SECOND] == 50


def test_rates_read_inside_a_pause_exclude_it(clock: Clock) -> None:
    throughput = Throughput(clock)
    throughput.add(100, 0)
    clock.now += 2
    with throughput.pause():
        clock.now += 30
        assert throughput.rates()[TOKENS_PER_SECOND] == 50
        clock.now += 30
    throughput.add(100, 0)
    clock.now += 4
    assert throughput.rates()[TOKENS_PER_SECOND] == 25


def test_a_failed_evaluation_ends_its_pause(clock: Clock) -> None:
    throughput = Throughput(clock)
    with pytest.raises(RuntimeError), throughput.pause():
        clock.now += 10
        raise RuntimeError
    clock.now += 5
    throughput.add(100, 0)
    assert throughput.rates()[TOKENS_PER_SECOND] == 20


def test_rates_are_nan_if_no_time_has_passed(clock: Clock) -> None:
    throughput = Throughput(clock)
    throughput.add(10, 10)
    assert all(math.isnan(rate) for rate in throughput.rates().values())


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="an earlier test used CUDA, whose peak is reported then")
def test_host_peak_memory_grows_with_resident_memory_and_stays() -> None:
    before = peak_memory_gib()
    # 1.25 times the peak so far cannot fit under it, whatever other tests held before.
    held = torch.ones(int(before * 1.25 * 2**30) // 4)
    grown = peak_memory_gib()
    assert grown >= held.numel() * 4 / 2**30
    del held
    assert peak_memory_gib() >= grown > before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_peak_memory_counts_tensors() -> None:
    torch.ones(2**28, device="cuda")
    assert 1 <= peak_memory_gib() < 16
