"""Ranking and deciding: AUROC, F1, and the threshold that F1 wants."""

from __future__ import annotations

import numpy as np

# N rows, C classes


def auroc(probabilities_NC: np.ndarray, labels_N: np.ndarray, positive: int) -> float:
    """Area under the ROC curve of the positive class; above two classes, the mean one-vs-rest over those present.

    NaN where only one class is present.
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels_N)
    if len(present) < 2:
        return float("nan")
    if probabilities_NC.shape[1] == 2:
        return float(roc_auc_score(labels_N == positive, probabilities_NC[:, positive]))
    return float(np.mean([roc_auc_score(labels_N == c, probabilities_NC[:, c]) for c in present]))


def f1_at(probability_N: np.ndarray, is_positive_N: np.ndarray, threshold: float) -> float:
    """F1 of the positive class when it is decided at ``threshold`` and above; 0 where nothing is right."""
    decided_N = probability_N >= threshold
    right = np.count_nonzero(decided_N & is_positive_N)
    wrong = np.count_nonzero(decided_N != is_positive_N)
    return 2 * right / (2 * right + wrong) if right else 0.0


def macro_f1(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean F1 over the classes that occur in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels_N, predicted_N, average="macro", zero_division=0))


def best_f1_threshold(probability_N: np.ndarray, is_positive_N: np.ndarray, *, resamples: int = 200) -> float:
    """The threshold with the best F1, steadied by the bootstrap.

    The best threshold of one small sample hangs on a row or two, so this is the median over bootstrap resamples of the
    rows (bagging, Breiman 1996): each takes the best midpoint between neighbouring scores, of equals the nearest to
    0.5. Constant scores give 0.5. Deterministic.
    """
    if len(np.unique(probability_N)) < 2:
        return 0.5
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(probability_N), len(probability_N)) for _ in range(resamples)]
    return float(np.median([_best_midpoint(probability_N[i], is_positive_N[i]) for i in samples]))


def _best_midpoint(probability_N: np.ndarray, is_positive_N: np.ndarray) -> float:
    order = np.argsort(-probability_N, kind="stable")
    score_N, hit_N = probability_N[order], is_positive_N[order]
    right_N = np.cumsum(hit_N)
    f1_N = 2 * right_N / (np.arange(1, len(hit_N) + 1) + hit_N.sum())
    ends = np.flatnonzero(score_N[:-1] > score_N[1:])  # a threshold fits only between different scores
    if len(ends) == 0:
        return 0.5
    middle = (score_N[ends] + score_N[ends + 1]) / 2
    best = middle[f1_N[ends] >= f1_N[ends].max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def predicted_class(probabilities_NC: np.ndarray, positive: int, threshold: float | None) -> np.ndarray:
    """Class index per row: with two classes and a threshold by that, else the most probable."""
    if threshold is None or probabilities_NC.shape[1] != 2:
        return probabilities_NC.argmax(axis=1)
    return np.where(probabilities_NC[:, positive] >= threshold, positive, 1 - positive)
