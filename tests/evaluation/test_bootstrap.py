"""Bootstrap intervals: repeatable, and paired for a difference."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.evaluation.bootstrap import bootstrap_interval, paired_difference


def test_same_seed_same_interval():
    x = np.random.default_rng(0).normal(size=50)
    first, again, other = (bootstrap_interval(lambda i: x[i].mean(), 50, seed=s, resamples=200) for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_width_matches_the_normal_approximation():
    x = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(lambda i: x[i].mean(), 400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_a_paired_interval_finds_a_small_gain_that_separate_intervals_miss():
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=200)
    b = hardness + rng.normal(0, 0.05, 200)
    a = hardness + 0.05 + rng.normal(0, 0.05, 200)
    apart = [bootstrap_interval(lambda i, x=x: x[i].mean(), 200) for x in (a, b)]
    together = bootstrap_interval(lambda i: a[i].mean() - b[i].mean(), 200)
    assert apart[0].low < apart[1].high
    assert 0 < together.low < 0.05 < together.high


def test_nan_resamples_are_dropped_and_counted():
    def sometimes(index):
        return float("nan") if 0 in index else 1.0

    some = bootstrap_interval(sometimes, 8, resamples=200)
    assert 0 < some.dropped < 200
    assert (some.low, some.high) == (1.0, 1.0)
    none = bootstrap_interval(lambda i: float("nan"), 5, resamples=20)
    assert none.dropped == 20 and np.isnan(none.low)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="of 0 rows"):
        bootstrap_interval(lambda i: 0.0, 0)


@pytest.mark.parametrize(("rows", "resamples"), [(20_000, 1000), (40_000, 500), (200_000, 200)])
def test_many_rows_take_fewer_resamples_and_keep_the_interval(rows, resamples):
    x, calls = np.random.default_rng(0).normal(size=rows), []

    def mean(index):
        calls.append(len(index))
        return float(x[index].mean())

    interval = bootstrap_interval(mean, rows)
    assert calls == [rows] * resamples
    width = 2 * 1.96 * x.std() / np.sqrt(rows)
    ends = x.mean() - width / 2, x.mean() + width / 2
    assert (interval.low, interval.high) == pytest.approx(ends, abs=0.15 * width), (
        "three times what chance moves an end"
    )


def test_a_paired_difference_holds_one_resample_at_a_time():
    import tracemalloc

    x = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    found = paired_difference(lambda i: x[i].mean(), lambda i: x[i].mean() - 0.1, len(x), resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.value == pytest.approx(0.1) and peak < 20 * x.nbytes
