"""Calibration metrics: ECE, Brier score, negative log-likelihood.

    ECE = Σ_b (n_b / N) |mean confidence_b - frequency_b|         over bins of equal width (Guo et al. 2017, 1706.04599)

Two classes: the probability of the positive class against its frequency. More: the top probability against top-1
accuracy. The ECE of a perfectly calibrated model is not 0 on few rows: about 0.06 on 400 rows with 15 bins.
"""

from __future__ import annotations

import numpy as np

# N rows, C classes, B bins


def reliability_bins(
    probabilities_NC: np.ndarray, labels_N: np.ndarray, *, positive: int = 1, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, frequency and number of rows per bin, ``[B]`` each; NaN in empty bins."""
    if probabilities_NC.shape[1] == 2:
        confidence_N, hit_N = probabilities_NC[:, positive], labels_N == positive
    else:
        confidence_N, hit_N = probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence_B = np.bincount(bin_N, weights=confidence_N, minlength=bins) / count_B
        frequency_B = np.bincount(bin_N, weights=hit_N, minlength=bins) / count_B
    return confidence_B, frequency_B, count_B


def ece(probabilities_NC: np.ndarray, labels_N: np.ndarray, *, positive: int = 1, bins: int = 15) -> float:
    """Expected calibration error, from 0 (calibrated) to 1."""
    confidence_B, frequency_B, count_B = reliability_bins(probabilities_NC, labels_N, positive=positive, bins=bins)
    gap_B = np.where(count_B > 0, np.abs(confidence_B - frequency_B), 0.0)
    return float((gap_B * count_B).sum() / max(1, count_B.sum()))


def brier(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean squared error of the probabilities (Brier 1950).

    As in scikit-learn: for two classes, of the positive class, 0 to 1; for more, the sum over classes, 0 to 2.
    """
    outcome_NC = labels_N[:, None] == np.arange(probabilities_NC.shape[1])
    squared_N = ((probabilities_NC - outcome_NC) ** 2).sum(axis=1)
    return float(squared_N.mean() / (2 if probabilities_NC.shape[1] == 2 else 1))


def nll(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-probability of the labels, in nats."""
    own_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(own_N, np.finfo(np.float64).tiny)).mean())
