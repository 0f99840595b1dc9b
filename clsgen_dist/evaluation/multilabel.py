"""Metrics of independent classes: each class is a yes-no question, a row may have any number of them.

    macro    mean over the classes that have both answers        micro    all answers together

Labels are ``[N, C]`` of 0, 1 and NaN for not known; a class's metric uses the rows where it is known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clsgen_dist.evaluation.confusion import ClassScores, scores_from_counts
from clsgen_dist.evaluation.ranking import label_ranking_precision

# N rows, C classes

Binary = Callable[[np.ndarray, np.ndarray], float]
"""Takes 0/1 answers and their scores."""


def macro(metric: Binary, labels_NC: np.ndarray, scores_NC: np.ndarray) -> float:
    """Mean of a binary metric over the classes with both answers; NaN without any."""
    values = []
    for labels_N, scores_N in zip(labels_NC.T, scores_NC.T, strict=True):
        known_N = ~np.isnan(labels_N)
        if len(np.unique(labels_N[known_N])) == 2:
            values.append(metric(labels_N[known_N], scores_N[known_N]))
    return float(np.mean(values)) if values else float("nan")


def micro(metric: Binary, labels_NC: np.ndarray, scores_NC: np.ndarray) -> float:
    """A binary metric over all known answers; NaN if they are all alike."""
    known_NC = ~np.isnan(labels_NC)
    labels, scores = labels_NC[known_NC], scores_NC[known_NC]
    return metric(labels, scores) if len(np.unique(labels)) == 2 else float("nan")


def f1(labels_NC: np.ndarray, predicted_NC: np.ndarray) -> tuple[float, float]:
    """F1 of the predicted sets, macro and micro; NaN without any known answer.

    Macro: over the classes with known answers, 0 for one that is neither there nor predicted.
    """
    known_NC = ~np.isnan(labels_NC)
    if not known_NC.any():
        return float("nan"), float("nan")
    is_NC = np.where(known_NC, labels_NC, 0).astype(bool)
    predicted_NC = predicted_NC.astype(bool) & known_NC
    true_C, wrong_C = (is_NC & predicted_NC).sum(axis=0), (is_NC != predicted_NC).sum(axis=0)
    with np.errstate(invalid="ignore"):
        each_C = np.nan_to_num(2 * true_C / (2 * true_C + wrong_C))
    total = 2 * true_C.sum() + wrong_C.sum()
    return float(each_C[known_NC.any(axis=0)].mean()), float(2 * true_C.sum() / total) if total else 0.0


def class_scores(labels_NC: np.ndarray, predicted_NC: np.ndarray) -> ClassScores:
    """Precision, recall, F1 and support of each class, over the rows where it is known."""
    known_NC = ~np.isnan(labels_NC)
    is_NC, predicted_NC = known_NC & (labels_NC == 1), known_NC & predicted_NC.astype(bool)
    return scores_from_counts((is_NC & predicted_NC).sum(axis=0), is_NC.sum(axis=0), predicted_NC.sum(axis=0))


def subset_accuracy(labels_NC: np.ndarray, predicted_NC: np.ndarray) -> float:
    """Share of rows whose whole set is right, among the rows where it is known; NaN without any."""
    known_N = ~np.isnan(labels_NC).any(axis=1)
    right_N = (labels_NC[known_N] == predicted_NC[known_N]).all(axis=1)
    return float(right_N.mean()) if len(right_N) else float("nan")


def hamming_loss(labels_NC: np.ndarray, predicted_NC: np.ndarray) -> float:
    """Share of the known answers that are decided wrong; NaN without any."""
    known_NC = ~np.isnan(labels_NC)
    wrong = labels_NC[known_NC] != predicted_NC[known_NC]
    return float(wrong.mean()) if len(wrong) else float("nan")


def ranking_precision(labels_NC: np.ndarray, scores_NC: np.ndarray) -> float:
    """Label-ranking average precision (Schapire & Singer 2000), over the rows where all answers are known.

    For each true class of a row, the share of true ones among the classes ranked as high; a row with none or all has 1.
    """
    known_N = ~np.isnan(labels_NC).any(axis=1)
    if not known_N.any():
        return float("nan")
    return label_ranking_precision(labels_NC[known_N] > 0.5, scores_NC[known_N])


def coverage_error(labels_NC: np.ndarray, scores_NC: np.ndarray) -> float:
    """How far down the ranking one must go to meet all true classes of a row, in classes; 0 for a row without any.

    Mean over the rows where all answers are known (Tsoumakas, Katakis & Vlahavas 2010); NaN without such rows.
    """
    known_N = ~np.isnan(labels_NC).any(axis=1)
    if not known_N.any():
        return float("nan")
    labels, scores = labels_NC[known_N] > 0.5, scores_NC[known_N]
    lowest_true = np.where(labels, scores, np.inf).min(axis=1, keepdims=True)
    return float((scores >= lowest_true).sum(axis=1).mean())


def nll(labels_NC: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean over rows of the negative log-likelihood of the known answers, nats."""
    known_NC = ~np.isnan(labels_NC)
    own_NC = np.where(labels_NC > 0.5, probabilities_NC, 1 - probabilities_NC)
    losses_NC = -np.log(np.maximum(own_NC, np.finfo(np.float64).tiny))
    rows_N = known_NC.any(axis=1)
    return float(np.where(known_NC, losses_NC, 0).sum(axis=1)[rows_N].mean()) if rows_N.any() else float("nan")


def best_thresholds(probabilities_NC: np.ndarray) -> list[float]:
    """``[C]`` for each class the threshold with the best expected F1, from calibrated probabilities."""
    from clsgen_dist.evaluation.classification import best_f1_threshold

    return [best_f1_threshold(probabilities_N) for probabilities_N in probabilities_NC.T]
