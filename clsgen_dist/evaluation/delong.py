"""AUROC with its variance, interval and the paired test of two models (DeLong, DeLong & Clarke-Pearson 1988).

    AUROC    = share of (positive, negative) pairs ranked right, ties half
    placement of a positive: share of the negatives below it; of a negative: share of the positives above it
    variance = S(positives' placements) / n_pos + S(negatives' placements) / n_neg

Clusters (Obuchowski 1997): with sums over the positive rows of cluster k, and over its negative ones, of

    a_k = Σ (placement - AUROC) / n_pos         b_k = Σ (placement - AUROC) / n_neg

    variance = K_pos/(K_pos-1) Σ a_k² + K_neg/(K_neg-1) Σ b_k² + 2 K/(K-1) Σ a_k b_k

where K_pos of the K clusters have a positive row, K_neg a negative one. Without clusters each row is its own, and this
is DeLong's. The mean AUROC of several questions on the same rows (one class against the rest, cut points, labels of
a row) has the same sum over all pairs of sides, since a mean of AUROCs is a mean of their placements.

The placements come from midranks (Sun & Xu 2014), so the cost is that of sorting, O(N log N), not of all pairs.

The interval is symmetric on the logit scale (Qin & Hotilovac 2008): at AUROC 0.96 on 40 rows a plain one exceeds 1 and
covers 80 % instead of 95, this one 97 %. Of clusters, it is Student's with K - 1 degrees of freedom. At AUROC 1 the
variance is 0. There the bound comes from min(K_pos, K_neg) disjoint pairs: each is ranked right with probability AUROC
at most, so all are with at most AUROC^min, which is α/2 at the lower end; a conservative bound. The mirror image holds
at AUROC 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference
from clsgen_dist.evaluation.finite import require_finite
from clsgen_dist.evaluation.interval import UNDEFINED, Interval, cluster_sums, student_quantile

# N rows, P positive rows, Q negative rows, K clusters, S sides: positives and negatives of each question


@dataclass(frozen=True)
class AurocEstimate:
    """AUROC of one model; standard error and interval are NaN with fewer than 2 clusters (rows) of either class.

    So is the interval if all scores are equal, which leaves nothing to judge by.
    """

    value: float
    standard_error: float
    interval: Interval


@dataclass(frozen=True)
class RankedQuestion:
    """Scores of some rows, and which of them are positive."""

    score_M: np.ndarray
    positive_M: np.ndarray
    cluster_M: np.ndarray
    """The cluster of each row; for independent rows, the row itself."""


def auroc_interval(
    score_N: np.ndarray, positive_N: np.ndarray, level: float = 0.95, *, clusters_N: np.ndarray | None = None
) -> AurocEstimate:
    """AUROC of scores against boolean labels, with DeLong's standard error and the logit interval."""
    clusters_N = np.arange(len(score_N)) if clusters_N is None else clusters_N
    return mean_auroc_interval([RankedQuestion(score_N, positive_N, clusters_N)], level)


def mean_auroc_interval(questions: Sequence[RankedQuestion], level: float = 0.95) -> AurocEstimate:
    """Mean AUROC of the questions that have both answers; their clusters are those of the same rows."""
    asked = [q for q in questions if len(np.unique(q.positive_M.astype(bool))) == 2]
    if not asked:
        return AurocEstimate(float("nan"), float("nan"), UNDEFINED)
    sides = [side for question in asked for side in _sides(question)]
    value = float(np.mean([side.placement_M.mean() for side in sides[::2]]))
    spread = _spread(sides, [side.placement_M for side in sides])
    if spread is None:
        return AurocEstimate(value, float("nan"), UNDEFINED)
    fewer = [min(len(np.unique(side.cluster_M)) for side in sides[at : at + 2]) for at in range(0, len(sides), 2)]
    return AurocEstimate(value, spread.error, _logit_interval(value, spread, fewer, level))


def delong_test(
    first_N: np.ndarray,
    second_N: np.ndarray,
    positive_N: np.ndarray,
    level: float = 0.95,
    *,
    clusters_N: np.ndarray | None = None,
) -> Difference:
    """AUROC of the first model minus that of the second on the same rows; interval and p-value are normal.

    Of clusters, they are Student's. NaN with fewer than 2 clusters (rows) of either class. Two models that rank all
    rows alike differ by 0 with p-value 1, without interval.
    """
    from scipy.special import stdtr

    positive_N = positive_N.astype(bool)
    if positive_N.all() or not positive_N.any():
        return Difference(float("nan"), UNDEFINED, float("nan"))
    clusters_N = np.arange(len(positive_N)) if clusters_N is None else clusters_N
    first, second = (_sides(RankedQuestion(score_N, positive_N, clusters_N)) for score_N in (first_N, second_N))
    gaps = [one.placement_M - other.placement_M for one, other in zip(first, second, strict=True)]
    spread = _spread(first, gaps)
    if spread is None:
        return Difference(float("nan"), UNDEFINED, float("nan"))
    value = float(gaps[0].mean())
    if spread.error == 0:
        # Only where placements differ by a constant, so the difference has no spread to be judged by.
        return Difference(value, UNDEFINED, 1.0 if value == 0 else float("nan"))
    half = student_quantile(level, spread.freedom) * spread.error
    p_value = float(2 * stdtr(spread.freedom, -abs(value) / spread.error))
    return Difference(value, Interval(value - half, value + half), p_value)


@dataclass(frozen=True)
class _Side:
    """The rows of one answer to a question."""

    placement_M: np.ndarray
    cluster_M: np.ndarray


def _sides(question: RankedQuestion) -> tuple[_Side, _Side]:
    """``[P]`` share of negatives below each positive, ``[Q]`` share of positives above each negative."""
    from scipy.stats import rankdata

    require_finite(question.score_M, "scores")
    positive_M = question.positive_M.astype(bool)
    overall_M = rankdata(question.score_M)
    of_P, of_Q = rankdata(question.score_M[positive_M]), rankdata(question.score_M[~positive_M])
    below_P = (overall_M[positive_M] - of_P) / len(of_Q)
    above_Q = 1 - (overall_M[~positive_M] - of_Q) / len(of_P)
    return _Side(below_P, question.cluster_M[positive_M]), _Side(above_Q, question.cluster_M[~positive_M])


@dataclass(frozen=True)
class _Spread:
    """The standard error of a mean over questions, and its degrees of freedom."""

    error: float
    freedom: float


def _spread(sides: Sequence[_Side], values: Sequence[np.ndarray]) -> _Spread | None:
    """Of the mean over questions of the sides' mean values; None if a side has fewer than 2 clusters."""
    clusters = np.unique(np.concatenate([side.cluster_M for side in sides]))
    sums_KS = np.zeros((len(clusters), len(sides)))
    filled_S = np.zeros(len(sides), dtype=int)
    for at, (side, values_M) in enumerate(zip(sides, values, strict=True)):
        own = np.searchsorted(clusters, np.unique(side.cluster_M))
        sums_KS[own, at] = cluster_sums((values_M - values_M.mean()) / len(values_M), side.cluster_M)
        filled_S[at] = len(own)
    if filled_S.min() < 2:
        return None
    factor_SS = np.full((len(sides), len(sides)), len(clusters) / (len(clusters) - 1))
    np.fill_diagonal(factor_SS, filled_S / (filled_S - 1))
    variance = (factor_SS * (sums_KS.T @ sums_KS)).sum() / (len(sides) / 2) ** 2
    questions = (np.concatenate([s.cluster_M for s in sides[at : at + 2]]) for at in range(0, len(sides), 2))
    independent = all(len(np.unique(cluster_M)) == len(cluster_M) for cluster_M in questions)
    return _Spread(math.sqrt(max(0.0, variance)), math.inf if independent else len(clusters) - 1)


def _logit_interval(value: float, spread: _Spread, fewer: Sequence[int], level: float) -> Interval:
    """``fewer``: disjoint pairs of each question."""
    # The bounds of several questions hold together (Bonferroni), so their mean does.
    outermost = float(np.mean([((1 - level) / 2 / len(fewer)) ** (1 / pairs) for pairs in fewer]))
    if value == 1:
        return Interval(outermost, 1.0)
    if value == 0:
        return Interval(0.0, 1 - outermost)
    if spread.error == 0:
        return UNDEFINED
    centre = math.log(value / (1 - value))
    half = student_quantile(level, spread.freedom) * spread.error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(x, -700), 700))) for x in (centre - half, centre + half))
    return Interval(low, high)
