"""A confidence interval, and those that need no resampling.

share of n rows    Wilson (1927): the shares that a score test does not reject; keeps its level at 0, at 1 and on
                   few rows, where the Wald interval has width 0 (Brown, Cai & DasGupta 2001)
mean of n values   mean ± t · s / √n
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# N rows


@dataclass(frozen=True)
class Interval:
    """A confidence interval; of a bootstrap, the metric was undefined on ``dropped`` resamples (one class only)."""

    low: float
    high: float
    dropped: int = 0


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    interval: Interval


UNDEFINED = Interval(float("nan"), float("nan"))
"""Of a metric that the rows do not define."""


def normal_quantile(level: float) -> float:
    """Half-width, in standard errors, of a two-sided normal interval: 1.96 for ``level`` 0.95."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Interval of a share of independent rows; undefined without rows."""
    if n == 0:
        return UNDEFINED
    z = normal_quantile(level)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and 1 the formula's end is exact but for rounding.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def mean_interval(values_N: np.ndarray, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values; undefined for fewer than 2."""
    from scipy.special import stdtrit

    n = len(values_N)
    if n < 2:
        return UNDEFINED
    mean, half = values_N.mean(), stdtrit(n - 1, (1 + level) / 2) * values_N.std(ddof=1) / math.sqrt(n)
    return Interval(float(mean - half), float(mean + half))
