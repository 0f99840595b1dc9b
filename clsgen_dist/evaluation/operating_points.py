"""What a threshold on the probability buys: recall at a precision, precision at a recall, and net benefit.

    net benefit(t) = true positives / N - false positives / N · t / (1 - t)          (Vickers & Elkin 2006)

At threshold t a false positive weighs t/(1 - t) true positives: who acts at 10 % accepts nine needless actions for each
needed one. A model is worth using at t if its net benefit exceeds that of acting on every row, π - (1 - π) t/(1 - t) at
frequency π, and that of acting on none, 0. Probabilities should be calibrated: a row is acted on at p ≥ t. Cost:
sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# N rows, T thresholds


@dataclass(frozen=True)
class OperatingPoint:
    """Decisions at one threshold; all NaN if no threshold meets what was asked."""

    threshold: float
    """A row is positive at this probability and above."""
    precision: float
    recall: float
    share: float
    """Share of all rows decided positive."""


_NONE = OperatingPoint(float("nan"), float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit per row at each threshold; acting on no row has 0."""

    threshold_T: np.ndarray
    model_T: np.ndarray
    treat_all_T: np.ndarray


def point_at(
    probability_N: np.ndarray, positive_N: np.ndarray, threshold: float, weight_N: np.ndarray | None = None
) -> OperatingPoint:
    """What a given threshold achieves; precision is NaN if no row is positive at it, recall if none is in truth."""
    weight_N = np.ones(len(positive_N)) if weight_N is None else weight_N
    decided_N, positive_N = probability_N >= threshold, positive_N.astype(bool)
    true, decided = weight_N[decided_N & positive_N].sum(), weight_N[decided_N].sum()
    positive, total = weight_N[positive_N].sum(), weight_N.sum()
    return OperatingPoint(
        threshold,
        precision=float(true / decided) if decided else float("nan"),
        recall=float(true / positive) if positive else float("nan"),
        share=float(decided / total) if total else float("nan"),
    )


def recall_at_precision(
    probability_N: np.ndarray, positive_N: np.ndarray, precision: float, weight_N: np.ndarray | None = None
) -> OperatingPoint:
    """The point of highest recall among those with at least this precision; of equal ones, the highest threshold.

    The threshold is chosen on these rows, so both numbers are optimistic for others; choose it on held-out rows.
    ``weight_N``: how many rows of the population each one counts as; None: 1.
    """
    threshold_T, precision_T, recall_T, share_T = _points(probability_N, positive_N, weight_N)
    return _best(recall_T, precision_T >= precision, threshold_T, precision_T, recall_T, share_T)


def precision_at_recall(
    probability_N: np.ndarray, positive_N: np.ndarray, recall: float, weight_N: np.ndarray | None = None
) -> OperatingPoint:
    """The point of highest precision among those with at least this recall; as for :func:`recall_at_precision`."""
    threshold_T, precision_T, recall_T, share_T = _points(probability_N, positive_N, weight_N)
    return _best(precision_T, recall_T >= recall, threshold_T, precision_T, recall_T, share_T)


def decision_curve(
    probability_N: np.ndarray, positive_N: np.ndarray, threshold_T: np.ndarray | None = None
) -> DecisionCurve:
    """Net benefit at thresholds strictly between 0 and 1 (default: 0.01 to 0.99); NaN without rows.

    Raises:
        ValueError: a threshold is not between 0 and 1.
    """
    threshold_T = np.arange(1, 100) / 100 if threshold_T is None else np.asarray(threshold_T, dtype=np.float64)
    if not ((threshold_T > 0) & (threshold_T < 1)).all():
        raise ValueError(f"thresholds {threshold_T.tolist()}, expected numbers between 0 and 1, both excluded")
    rows = len(probability_N)
    if rows == 0:
        return DecisionCurve(threshold_T, np.full(len(threshold_T), np.nan), np.full(len(threshold_T), np.nan))
    positive_N, weight_T = positive_N.astype(bool), threshold_T / (1 - threshold_T)
    true_T = _at_least(probability_N[positive_N], threshold_T)
    false_T = _at_least(probability_N[~positive_N], threshold_T)
    frequency = positive_N.mean()
    return DecisionCurve(threshold_T, (true_T - false_T * weight_T) / rows, frequency - (1 - frequency) * weight_T)


def _at_least(values: np.ndarray, threshold_T: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), threshold_T, side="left")


def _points(probability_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Every distinct threshold from the highest down, with precision, recall and share; none without positives."""
    order_N = np.argsort(-probability_N, kind="stable")
    sorted_N, hit_N = probability_N[order_N], positive_N[order_N].astype(bool)
    if not hit_N.any():
        return (np.empty(0),) * 4
    last = np.flatnonzero(np.append(sorted_N[:-1] != sorted_N[1:], True))  # of rows with the same probability
    weight_N = np.ones(len(hit_N)) if weight_N is None else weight_N[order_N]
    true_T, decided_T = np.cumsum(weight_N * hit_N)[last], np.cumsum(weight_N)[last]
    return sorted_N[last], true_T / decided_T, true_T / true_T[-1], decided_T / decided_T[-1]


def _best(value_T: np.ndarray, allowed_T: np.ndarray, *columns: np.ndarray) -> OperatingPoint:
    if not allowed_T.any():
        return _NONE
    at = int(np.argmax(np.where(allowed_T, value_T, -1.0)))
    return OperatingPoint(*(float(column_T[at]) for column_T in columns))
