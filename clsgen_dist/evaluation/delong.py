"""AUROC with its variance, interval and the paired test of two models (DeLong, DeLong & Clarke-Pearson 1988).

    AUROC    = share of (positive, negative) pairs ranked right, ties half
    placement of a positive: share of the negatives below it; of a negative: share of the positives above it
    variance = S(positives' placements) / n_pos + S(negatives' placements) / n_neg

The placements come from midranks (Sun & Xu 2014), so the cost is that of sorting, O(N log N), not of all pairs.

The interval is symmetric on the logit scale (Qin & Hotilovac 2008): at AUROC 0.96 on 40 rows a plain one exceeds 1 and
covers 80 % instead of 95, this one 97 %. At AUROC 1 the variance is 0. There the bound comes from min(n_pos, n_neg)
disjoint pairs: each is ranked right with probability AUROC at most, so all are with at most AUROC^min, which is α/2 at
the lower end; a conservative bound. The mirror image holds at AUROC 0.

Rows are independent here. With several rows of one patient, use ``bootstrap`` with clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference
from clsgen_dist.evaluation.interval import UNDEFINED, Interval, normal_quantile

# N rows, P positive rows, Q negative rows


@dataclass(frozen=True)
class AurocEstimate:
    """AUROC of one model; standard error and interval are NaN with fewer than 2 rows of either class."""

    value: float
    standard_error: float
    interval: Interval


def auroc_interval(score_N: np.ndarray, positive_N: np.ndarray, level: float = 0.95) -> AurocEstimate:
    """AUROC of scores against boolean labels, with DeLong's standard error and the logit interval."""
    positive_N = positive_N.astype(bool)
    counts = [int(np.count_nonzero(positive_N)), int(np.count_nonzero(~positive_N))]
    if min(counts) == 0:
        return AurocEstimate(float("nan"), float("nan"), UNDEFINED)
    of_P, of_Q = _placements(score_N, positive_N)
    value = float(of_P.mean())
    if min(counts) < 2:
        return AurocEstimate(value, float("nan"), UNDEFINED)
    error = math.sqrt(_variance(of_P, of_Q))
    return AurocEstimate(value, error, _logit_interval(value, error, min(counts), level))


def delong_test(first_N: np.ndarray, second_N: np.ndarray, positive_N: np.ndarray, level: float = 0.95) -> Difference:
    """AUROC of the first model minus that of the second on the same rows; interval and p-value are normal.

    NaN with fewer than 2 rows of either class. Two models that rank all rows alike differ by 0 with p-value 1.
    """
    from scipy.special import ndtr

    positive_N = positive_N.astype(bool)
    if min(np.count_nonzero(positive_N), np.count_nonzero(~positive_N)) < 2:
        return Difference(float("nan"), UNDEFINED, float("nan"))
    first_P, first_Q = _placements(first_N, positive_N)
    second_P, second_Q = _placements(second_N, positive_N)
    value = float(first_P.mean() - second_P.mean())
    gap_P, gap_Q = first_P - second_P, first_Q - second_Q
    error = math.sqrt(_variance(gap_P, gap_Q))
    if error == 0:
        # Only where placements differ by a constant, so the difference has no spread to be judged by.
        return Difference(value, Interval(value, value), 1.0 if value == 0 else float("nan"))
    half = normal_quantile(level) * error
    return Difference(value, Interval(value - half, value + half), float(2 * ndtr(-abs(value) / error)))


def _placements(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[P]`` share of negatives below each positive, ``[Q]`` share of positives above each negative."""
    from scipy.stats import rankdata

    overall_N = rankdata(score_N)
    of_P, of_Q = rankdata(score_N[positive_N]), rankdata(score_N[~positive_N])
    below_P = (overall_N[positive_N] - of_P) / len(of_Q)
    above_Q = 1 - (overall_N[~positive_N] - of_Q) / len(of_P)
    return below_P, above_Q


def _variance(values_P: np.ndarray, values_Q: np.ndarray) -> float:
    return float(values_P.var(ddof=1) / len(values_P) + values_Q.var(ddof=1) / len(values_Q))


def _logit_interval(value: float, error: float, fewer: int, level: float) -> Interval:
    outermost = ((1 - level) / 2) ** (1 / fewer)
    if value == 1:
        return Interval(outermost, 1.0)
    if value == 0:
        return Interval(0.0, 1 - outermost)
    centre = math.log(value / (1 - value))
    half = normal_quantile(level) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(x, -700), 700))) for x in (centre - half, centre + half))
    return Interval(low, high)
