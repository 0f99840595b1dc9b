"""AUROC, average precision, F1, and the threshold that maximises F1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clsgen_dist.evaluation import ranking

# N rows, C classes


def auroc(probabilities_NC: np.ndarray, labels_N: np.ndarray, positive: int) -> float:
    """Area under the ROC curve of the positive class; above two classes, the mean one-vs-rest over those present.

    NaN where only one class is present.
    """
    return _one_vs_rest(ranking.roc_auc, probabilities_NC, labels_N, positive)


def average_precision(probabilities_NC: np.ndarray, labels_N: np.ndarray, positive: int) -> float:
    """Average precision, of the same classes as :func:`auroc`."""
    return _one_vs_rest(ranking.average_precision, probabilities_NC, labels_N, positive)


def _one_vs_rest(
    metric: Callable[[np.ndarray, np.ndarray], float], probabilities_NC: np.ndarray, labels_N: np.ndarray, positive: int
) -> float:
    present = np.unique(labels_N)
    if len(present) < 2:
        return float("nan")
    asked = [positive] if probabilities_NC.shape[1] == 2 else present
    return float(np.mean([metric(labels_N == c, probabilities_NC[:, c]) for c in asked]))


def f1_at(probability_N: np.ndarray, is_positive_N: np.ndarray, threshold: float) -> float:
    """F1 of the positive class, predicted at ``threshold`` and above; 0 without true positives."""
    predicted_N = probability_N >= threshold
    true_positives = np.count_nonzero(predicted_N & is_positive_N)
    errors = np.count_nonzero(predicted_N != is_positive_N)
    return 2 * true_positives / (2 * true_positives + errors) if true_positives else 0.0


def best_f1_threshold(probability_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
    """The threshold with the best expected F1, from *calibrated* probabilities of the positive class.

        F* = max_k  2 Σ_{i<=k} p_(i) / (k + Σ p),   threshold = F* / 2          (p sorted, largest first)

    (Lipton, Elkan & Naryanaswamy 2014, arXiv 1402.1892.) The best empirical threshold on a hundred rows depends on one
    or two of them; this one uses all, so it generalises better. 0.5 if all probabilities are 0.

    Args:
        probability_N: of the positive class.
        weight_N: how many rows of the population each one counts as; None: 1.
    """
    order_N = np.argsort(-probability_N, kind="stable")
    sorted_N = probability_N[order_N]
    if sorted_N[0] <= 0:
        return 0.5
    weight_N = np.ones(len(sorted_N)) if weight_N is None else weight_N[order_N]
    true_N = np.cumsum(weight_N * sorted_N)
    expected_N = 2 * true_N / (np.cumsum(weight_N) + true_N[-1])
    return float(expected_N.max() / 2)


def predicted_class(probabilities_NC: np.ndarray, positive: int, threshold: float | None) -> np.ndarray:
    """Class index per row: by the threshold if there are two classes and one is given, else the most probable."""
    if threshold is None or probabilities_NC.shape[1] != 2:
        return probabilities_NC.argmax(axis=1)
    return np.where(probabilities_NC[:, positive] >= threshold, positive, 1 - positive)
