"""Goodput: the share of a cluster's time that becomes training progress, given faults and checkpoints.

A fault on any GPU stops all of them; work since the last checkpoint is lost, and a restart costs its time. With M the
mean time between faults and δ the time for which a save stops the run, the interval that loses least is about
(Young 1974; Daly 2006, eq. 37, doi 10.1016/j.future.2004.11.016)

    Young  τ = sqrt(2·δ·M)
    Daly   τ = sqrt(2·δ·M)·(1 + sqrt(δ/2M)/3 + δ/18M) - δ   for δ < 2M, else M

Both count the work between saves, and not the restart, which no interval changes. A save that is written in the
background stops training only for the copy to host memory, and counts once it is written, w later; the next save cannot
begin before that, so τ is at least w.

Faults are memoryless and also occur during saves and restarts; a fault during a restart starts it again. The long-run
share of time that is kept work is then, with R the restart (tests/plan/test_goodput.py compares it with random faults)

    goodput = τ/M · exp(-(R + w)/M) / (exp((τ + δ)/M) - 1)

The default rate is Llama 3's: 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4):
M = 3.09 h × 16384 / N, which is 12.4 h on 4096.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FLAT = 0.001
"""Intervals whose goodput is within this of the best one are as good."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often a run is interrupted, and what that costs."""

    gpus: int
    per_gpu_hour: float
    """Interruptions of the run that one GPU (with its share of node and network) causes in an hour."""
    restart_hours: float
    save_hours: float
    """How long a save stops the run."""
    write_hours: float = 0.0
    """How long it is then written in the background, before it counts."""

    @property
    def mean_hours(self) -> float:
        """Mean time between faults."""
        return 1 / (self.gpus * self.per_gpu_hour)


@dataclass(frozen=True)
class Goodput:
    """The share of time that is kept work, against the interval between saves."""

    intervals: list[float]
    """Candidate hours of work between saves."""
    goodput: list[float]
    """Share of the time that is kept work, for each."""
    advised: float
    """Daly's interval, or the time that a save takes to be written if that is longer."""
    at_advised: float
    """Goodput there."""
    flat: tuple[float, float]
    """Shortest and longest of the intervals that lose less than :data:`FLAT` against the best of them."""
    young: float
    daly: float
    mean_hours: float
    """Mean time between faults."""


def young(save_hours: float, mean_hours: float) -> float:
    """Young's interval, in hours of work."""
    return math.sqrt(2 * save_hours * mean_hours)


def daly(save_hours: float, mean_hours: float) -> float:
    """Daly's higher-order interval, in hours of work."""
    if save_hours >= 2 * mean_hours:
        return mean_hours
    half = save_hours / (2 * mean_hours)
    return young(save_hours, mean_hours) * (1 + math.sqrt(half) / 3 + half / 9) - save_hours


def kept_share(faults: Faults, interval: float) -> float:
    """Share of the time that is kept work, with a save after every ``interval`` hours of work."""
    mean = faults.mean_hours
    cycles = (interval + faults.save_hours) / mean
    if cycles > 500:  # no interval ever completes
        return 0.0
    return interval / mean * math.exp(-(faults.restart_hours + faults.write_hours) / mean) / math.expm1(cycles)


def goodput(faults: Faults) -> Goodput:
    """Goodput for the recommended interval and for others around it."""
    by_daly = daly(faults.save_hours, faults.mean_hours)
    advised = max(by_daly, faults.write_hours)
    tried = [float(t) for t in advised * np.geomspace(1 / 8, 8, 31) if t >= faults.write_hours * (1 - 1e-9)]
    shares = [kept_share(faults, interval) for interval in tried]
    good = [interval for interval, share in zip(tried, shares, strict=True) if share >= max(shares) - FLAT]
    return Goodput(
        intervals=tried,
        goodput=shares,
        advised=advised,
        at_advised=kept_share(faults, advised),
        flat=(good[0], good[-1]),
        young=young(faults.save_hours, faults.mean_hours),
        daly=by_daly,
        mean_hours=faults.mean_hours,
    )
