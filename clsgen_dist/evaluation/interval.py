"""A confidence interval, and those that need no resampling.

share of n rows    Wilson (1927): the shares that a score test does not reject; keeps its level at 0, at 1 and on
                   few rows, where the Wald interval has width 0 (Brown, Cai & DasGupta 2001)
mean of n values   mean ± t · s / √n

Rows that belong together, such as those of one patient, are alike: n of them say less than n independent ones. Given
their clusters, the variance is that of the K sums over clusters, and t has K - 1 degrees of freedom:

    Var(mean) = K/(K-1) · Σ_k (Σ_{i in k} (x_i - mean))² / n²          n_eff = p(1-p) / Var · (t_{n-1} / t_{K-1})²

A share has Wilson's interval of n_eff rows (Korn & Graubard 1998, who put it into Clopper and Pearson's); where all
rows are alike, n_eff = n² / Σ n_k² (Kish 1965).

A sum Σ w_j θ_j of J independent estimates has the interval of their own ones (l_j, u_j), which need not be symmetric
(MOVER, Zou & Donner 2008): low = Σ w_j θ_j - √Σ w_j² (θ_j - l_j)², high = Σ w_j θ_j + √Σ w_j² (u_j - θ_j)².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# N rows, K clusters, J estimates


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


def student_quantile(level: float, freedom: float) -> float:
    """The same of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def wilson_interval(successes: float, n: float, level: float = 0.95) -> Interval:
    """Interval of a share of independent rows; undefined without rows."""
    if n == 0:
        return UNDEFINED
    z = normal_quantile(level)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and 1 the formula's end is exact but for rounding.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def share_interval(is_N: np.ndarray, level: float = 0.95, *, clusters_N: np.ndarray | None = None) -> Interval:
    """Interval of the share of rows that are true; undefined without rows, or with fewer than 2 clusters."""
    effective = effective_rows(is_N, clusters_N=clusters_N)
    return UNDEFINED if np.isnan(effective) else wilson_interval(float(np.mean(is_N)) * effective, effective, level)


def effective_rows(
    is_N: np.ndarray, *, clusters_N: np.ndarray | None = None, weight_N: np.ndarray | None = None, level: float = 0.95
) -> float:
    """How many independent rows would know the weighted share of true ones as well; NaN for fewer than 2 clusters.

    Args:
        is_N: boolean, or shares of 0 to 1.
        clusters_N: an id for each row.
        weight_N: how many rows of the population each one counts as; None: 1.
        level: of the interval that the rows are for.
    """
    n = len(is_N)
    if n == 0 or (clusters_N is None and weight_N is None):
        return n if n else math.nan
    weight_N = np.ones(n) if weight_N is None else weight_N
    ids_N = np.arange(n) if clusters_N is None else clusters_N
    share = float(np.average(is_N, weights=weight_N))
    weight_K = cluster_sums(weight_N, ids_N)
    if (clusters := len(weight_K)) < 2 and clusters_N is not None:
        return math.nan
    # Weights that differ, and rows all alike: Kish's number of equal clusters.
    if (np.asarray(is_N) == is_N[0]).all() or clusters < 2:
        return float(weight_K.sum() ** 2 / (weight_K**2).sum())
    sums_K = cluster_sums(weight_N * (is_N - share), ids_N)
    variance = clusters / (clusters - 1) * (sums_K**2).sum() / weight_N.sum() ** 2
    fewer = 1.0 if clusters == n else (student_quantile(level, n - 1) / student_quantile(level, clusters - 1)) ** 2
    return float(min(n, share * (1 - share) / max(variance, 1e-300) * fewer))


def mean_interval(values_N: np.ndarray, level: float = 0.95, *, clusters_N: np.ndarray | None = None) -> Interval:
    """Student's interval of the mean; undefined for fewer than 2 values or clusters."""
    n, mean = len(values_N), values_N.mean() if len(values_N) else math.nan
    sums_K = cluster_sums(values_N - mean, np.arange(n) if clusters_N is None else clusters_N)
    if (clusters := len(sums_K)) < 2:
        return UNDEFINED
    error = math.sqrt(clusters / (clusters - 1) * (sums_K**2).sum()) / n
    half = student_quantile(level, clusters - 1) * error
    return Interval(float(mean - half), float(mean + half))


def weighted_sum_interval(estimates: Sequence[Estimate], weight_J: np.ndarray) -> Estimate:
    """Σ w_j θ_j of independent estimates with its interval; weights are 0 or more."""
    value_J = np.array([e.value for e in estimates])
    below_J = value_J - np.array([e.interval.low for e in estimates])
    above_J = np.array([e.interval.high for e in estimates]) - value_J
    value = float(weight_J @ value_J)
    low, high = (math.sqrt(((weight_J * side_J) ** 2).sum()) for side_J in (below_J, above_J))
    return Estimate(value, Interval(value - low, value + high))


def cluster_sums(values: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """Sums of values ``[N]`` or ``[N, …]`` over the rows of each cluster, ``[K]`` or ``[K, …]``."""
    ids_N = np.unique(clusters_N, return_inverse=True)[1]
    sums = np.zeros((ids_N.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(sums, ids_N, values)
    return sums
