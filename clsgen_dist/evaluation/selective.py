"""Selective prediction: answer the confident rows, hand the others to a person.

    coverage    share of rows answered                  risk    mean loss of the rows answered, 0/1 loss: error rate
                                                        (El-Yaniv & Wiener 2010)
    AURC        mean risk over the coverages 1/N, 2/N, ..., 1
    excess AURC AURC minus that of a ranking that knows the losses                 (Geifman, Uziel & El-Yaniv 2019)

AURC mixes how good the model is with how well its confidence ranks its errors; excess AURC leaves out most of the
first. Rows of equal confidence are answered together: their loss counts as its mean, so no order among them is
preferred.

A threshold chosen on some rows is optimistic on the same rows. The intervals choose it anew in each resample, so they
show how far it and what it achieves move from sample to sample, not a guarantee. Cost: sorting, once a resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.bootstrap import bootstrap_intervals
from clsgen_dist.evaluation.interval import Interval

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

    ``dropped`` of the intervals of threshold and risk counts the resamples in which no threshold did.
    """

    threshold: float
    coverage: float
    risk: float
    intervals: dict[str, Interval]
    """Of ``threshold``, ``coverage`` and ``risk``."""


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
    def chosen(index: np.ndarray) -> dict[str, float]:
        weight = None if weight_N is None else weight_N[index]
        threshold_T, coverage_T, risk_T, _ = _curve(confidence_N[index], loss_N[index], weight)
        allowed = np.flatnonzero(choose(coverage_T, risk_T))
        if len(allowed) == 0:
            return {"threshold": float("nan"), "coverage": 0.0, "risk": float("nan")}
        last = allowed[-1]
        return {
            "threshold": float(threshold_T[last]),
            "coverage": float(coverage_T[last]),
            "risk": float(risk_T[last]),
        }

    intervals = bootstrap_intervals(
        chosen, len(loss_N), resamples=resamples, level=level, seed=seed, clusters_N=clusters_N
    )
    return SelectiveThreshold(**chosen(np.arange(len(loss_N))), intervals=intervals)


def _curve(
    confidence_N: np.ndarray, loss_N: np.ndarray, weight_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, coverage and risk ``[T]``; weighted losses ``[N]`` by confidence, those of tied rows averaged."""
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
