"""Selective prediction: answer the confident rows, hand the others to a person.

    coverage    share of rows answered                  risk    mean loss of the rows answered, 0/1 loss: error rate
                                                        (El-Yaniv & Wiener 2010)
    AURC        mean risk over the coverages 1/N, 2/N, ..., 1
    excess AURC AURC minus that of a ranking that knows the losses                 (Geifman, Uziel & El-Yaniv 2019)

AURC mixes how good the model is with how well its confidence ranks its errors; excess AURC leaves out most of the
first. Rows of equal confidence are answered together: their loss counts as its mean, so no order among them is
preferred.

A threshold chosen on some rows is optimistic on the same rows: the risk found there is never above the target, that of
new rows at the same threshold is above it every other time. The optimism is what the same choice gains in resamples,
r*(t*) in a resample against r(t*) on all rows (Efron 1983), and the intervals of risk and coverage are of new rows:

    Wilson's interval of the share  r(t) + mean of [r(t*) - r*(t*)]  of the rows answered

That of the threshold says only how far it moves from resample to resample. Cost: sorting, once a resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.bootstrap import Resampler, resampled_interval
from clsgen_dist.evaluation.finite import require_finite
from clsgen_dist.evaluation.interval import UNDEFINED, Interval, effective_rows, wilson_interval

# N rows, T distinct confidences


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve, from the most confident rows down, at the thresholds that some row has."""

    threshold_T: np.ndarray
    """Rows of this confidence and above are answered."""
    coverage_T: np.ndarray
    risk_T: np.ndarray
    aurc: float
    excess_aurc: float


@dataclass(frozen=True)
class SelectiveThreshold:
    """A threshold and what it achieves, each with its interval.

    Coverage is 0, threshold and risk are NaN if none meets the target.

    ``dropped`` of the threshold's interval counts the resamples in which no threshold did.
    """

    threshold: float
    coverage: float
    risk: float
    intervals: dict[str, Interval]
    """Of ``threshold`` among resamples; of ``coverage`` and ``risk`` of new rows at this threshold."""


def risk_coverage(confidence_N: np.ndarray, loss_N: np.ndarray) -> RiskCoverage:
    """Curve and areas; NaN areas without rows.

    Args:
        confidence_N: larger is answered first, such as the top probability.
        loss_N: of each row's answer: 1 for wrong and 0 for right, or any loss.
    """
    rows = len(loss_N)
    if rows == 0:
        return RiskCoverage(np.empty(0), np.empty(0), np.empty(0), float("nan"), float("nan"))
    threshold_T, coverage_T, risk_T, tied_loss_N = _curve(confidence_N, loss_N)
    area = _area(tied_loss_N)
    return RiskCoverage(threshold_T, coverage_T, risk_T, area, area - _area(np.sort(loss_N.astype(np.float64))))


def threshold_for_risk(
    confidence_N: np.ndarray,
    loss_N: np.ndarray,
    risk: float,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
) -> SelectiveThreshold:
    """The lowest threshold, so the highest coverage, with a risk of at most ``risk``.

    ``weight_N``: how many rows of the population each one counts as; None: 1.
    """

    def choose(coverage_T: np.ndarray, risk_T: np.ndarray) -> np.ndarray:
        return risk_T <= risk

    return _with_intervals(confidence_N, loss_N, choose, resamples, level, seed, clusters_N, weight_N)


def threshold_for_workload(
    confidence_N: np.ndarray,
    loss_N: np.ndarray,
    workload: float,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
) -> SelectiveThreshold:
    """The highest coverage that hands at least the share ``workload`` of the rows to a person.

    Ties may leave more to the person than asked, since rows of equal confidence go together.
    """

    def choose(coverage_T: np.ndarray, risk_T: np.ndarray) -> np.ndarray:
        return coverage_T <= 1 - workload + 1e-12

    return _with_intervals(confidence_N, loss_N, choose, resamples, level, seed, clusters_N, weight_N)


def _with_intervals(
    confidence_N: np.ndarray,
    loss_N: np.ndarray,
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray],
    resamples: int,
    level: float,
    seed: int,
    clusters_N: np.ndarray | None,
    weight_N: np.ndarray | None,
) -> SelectiveThreshold:
    rows = len(loss_N)
    weight_N = np.ones(rows) if weight_N is None else weight_N

    def chosen(index: np.ndarray) -> tuple[float, float, float]:
        """Threshold, coverage and risk."""
        threshold_T, coverage_T, risk_T, _ = _curve(confidence_N[index], loss_N[index], weight_N[index])
        allowed = np.flatnonzero(choose(coverage_T, risk_T))
        if len(allowed) == 0:
            return float("nan"), 0.0, float("nan")
        last = allowed[-1]
        return float(threshold_T[last]), float(coverage_T[last]), float(risk_T[last])

    threshold, coverage, risk = chosen(np.arange(rows))
    rng, resampler = np.random.default_rng(seed), Resampler(rows, clusters_N=clusters_N)
    drawn_R3 = np.array([chosen(resampler.draw(rng)) for _ in range(resamples)])
    intervals = {"threshold": resampled_interval(drawn_R3[:, 0], resampler.units, level)}
    found_R3 = drawn_R3[~np.isnan(drawn_R3[:, 0])]
    if np.isnan(threshold) or len(found_R3) == 0:
        return SelectiveThreshold(threshold, coverage, risk, intervals | {"coverage": UNDEFINED, "risk": UNDEFINED})
    threshold_T, coverage_T, risk_T, _ = _curve(confidence_N, loss_N, weight_N)
    # Thresholds are those of rows, and a resample has no others.
    at_R = len(threshold_T) - 1 - np.searchsorted(threshold_T[::-1], found_R3[:, 0])
    answered_N = confidence_N >= threshold

    def of_new_rows(value: float, optimism: float, is_N: np.ndarray, among_N: np.ndarray) -> Interval:
        own_N = None if clusters_N is None else clusters_N[among_N]
        own_weight_N = None if (weight_N == 1).all() else weight_N[among_N]
        effective = effective_rows(is_N[among_N], clusters_N=own_N, weight_N=own_weight_N, level=level)
        if np.isnan(effective):
            return UNDEFINED
        found = wilson_interval(min(1.0, max(0.0, value + optimism)) * effective, effective, level)
        return Interval(min(found.low, value), max(found.high, value))

    of_coverage = float((coverage_T[at_R] - found_R3[:, 1]).mean())
    of_risk = float((risk_T[at_R] - found_R3[:, 2]).mean())
    intervals["coverage"] = of_new_rows(coverage, of_coverage, answered_N, np.ones(rows, dtype=bool))
    intervals["risk"] = of_new_rows(risk, of_risk, loss_N.astype(float), answered_N)
    return SelectiveThreshold(threshold, coverage, risk, intervals)


def _curve(
    confidence_N: np.ndarray, loss_N: np.ndarray, weight_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, coverage and risk ``[T]``; weighted losses ``[N]`` by confidence, those of tied rows averaged."""
    require_finite(confidence_N, "confidences")
    order_N = np.argsort(-confidence_N, kind="stable")
    sorted_N, sorted_loss_N = confidence_N[order_N], loss_N[order_N].astype(np.float64)
    last = np.flatnonzero(np.append(sorted_N[:-1] != sorted_N[1:], True))
    weight_N = np.ones(len(order_N)) if weight_N is None else weight_N[order_N]
    answered_T, total_T = np.cumsum(weight_N)[last], np.cumsum(weight_N * sorted_loss_N)[last]
    in_tie_T = np.diff(last + 1, prepend=0)
    tied_loss_N = np.repeat(np.diff(total_T, prepend=0.0) / in_tie_T, in_tie_T)
    return sorted_N[last], answered_T / answered_T[-1], total_T / answered_T, tied_loss_N


def _area(sorted_loss_N: np.ndarray) -> float:
    return float((np.cumsum(sorted_loss_N) / np.arange(1, len(sorted_loss_N) + 1)).mean())
