"""Metrics of ordered classes: how far off a prediction is counts, not only whether it is right."""

from __future__ import annotations

import numpy as np

from clsgen_dist.evaluation.calibration_error import binned_ece
from clsgen_dist.evaluation.ranking import roc_auc

# N rows, C classes


def quadratic_kappa(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> float:
    """Cohen's κ with quadratic weights (Cohen 1968): 1 for all right, 0 for chance.

    NaN where it is undefined: all labels are one class, so that any prediction is as good as chance.
    """
    if len(np.unique(labels_N)) < 2:
        return float("nan")
    observed_CC = np.zeros((classes, classes))
    np.add.at(observed_CC, (labels_N, predicted_N), 1.0)
    expected_CC = np.outer(observed_CC.sum(axis=1), observed_CC.sum(axis=0)) / max(1, len(labels_N))
    rank_C = np.arange(classes)
    weight_CC = (rank_C[:, None] - rank_C) ** 2
    by_chance = (weight_CC * expected_CC).sum()
    return float(1 - (weight_CC * observed_CC).sum() / by_chance)


def mean_absolute_error(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean number of classes between prediction and label; NaN without rows."""
    return float(np.abs(predicted_N - labels_N).mean()) if len(labels_N) else float("nan")


def auroc(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Area under the ROC curve of the expected class, as the mean over the cut points with rows on both sides.

    Each cut point asks whether a row is above it. NaN where only one class is present.
    """
    score_N = probabilities_NC @ np.arange(probabilities_NC.shape[1])
    cuts = [labels_N > cut for cut in range(probabilities_NC.shape[1] - 1)]
    values = [roc_auc(above_N, score_N) for above_N in cuts if 0 < above_N.sum() < len(above_N)]
    return float(np.mean(values)) if values else float("nan")


def ece(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error over all cut points, each asking whether a row is above it; NaN without rows."""
    above_NK = (1 - probabilities_NC.cumsum(axis=1)[:, :-1]).clip(0, 1)
    outcome_NK = labels_N[:, None] > np.arange(above_NK.shape[1])
    return binned_ece(above_NK.ravel(), outcome_NK.ravel())


def predicted_class(probabilities_NC: np.ndarray) -> np.ndarray:
    """``[N]`` median class: the first whose cumulative probability reaches one half, which minimises absolute error."""
    return np.asarray((probabilities_NC.cumsum(axis=1) >= 0.5 - 1e-12).argmax(axis=1))
