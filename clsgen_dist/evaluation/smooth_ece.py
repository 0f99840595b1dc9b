"""Smooth calibration error, without bins (Błasiok & Nakkiran 2023, arXiv 2309.12236).

    r(t)    = mean_i (y_i - p_i) K_σ(t, p_i)              residuals smoothed by a Gaussian reflected at 0 and 1
    smECE_σ = ∫ |r(t)| dt                                  smECE = smECE_σ at the σ where both are equal

A binned ECE jumps when a probability crosses an edge, and depends on the number of bins; this one is continuous, and
bounds the distance to the nearest calibrated predictor from both sides. Like every plug-in it is above 0 for a
calibrated model on few rows.

On a grid of 2048 cells the reflected Gaussian is a factor exp(-(πkσ)²/2) on the coefficients of the cosine transform.
Cost: one pass over N rows, then 20 transforms of 2048 numbers, 1 to 5 ms. The package ``relplot`` agrees within
0.001 on ten sets of 25 to 5,000 rows; on one with an error of 0.23 it is 0.006 higher, as it cuts the kernel at a
distance of 0.5. It needs seaborn and confseq.
"""

from __future__ import annotations

import numpy as np

from clsgen_dist.evaluation.finite import require_finite

# N rows, G cells

_CELLS = 2048
_SMALLEST_WIDTH = 0.001
"""Two cells; also the resolution of the result near 0, as in the paper's implementation."""
_HALVINGS = 20


def smooth_ece(probability_N: np.ndarray, outcome_N: np.ndarray) -> float:
    """SmoothECE of a yes-no question, from 0 (calibrated) to 1; NaN without rows."""
    from scipy.fft import dct, idct

    require_finite(probability_N)
    if len(probability_N) == 0:
        return float("nan")
    coefficients_G = dct(_residuals_on_grid(probability_N, outcome_N))
    frequency_G = np.pi * np.arange(_CELLS)

    def error_at(width: float) -> float:
        return float(np.abs(idct(coefficients_G * np.exp(-0.5 * (frequency_G * width) ** 2))).sum())

    low, high = _SMALLEST_WIDTH, 1.0
    if error_at(low) <= low:
        return error_at(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if error_at(middle) > middle else (low, middle)
    return error_at(high)


def _residuals_on_grid(probability_N: np.ndarray, outcome_N: np.ndarray) -> np.ndarray:
    """Σ (y - p) / N in each cell, each row shared between the two nearest cell centres."""
    place_N = np.clip(probability_N * _CELLS - 0.5, 0, _CELLS - 1)
    left_N = np.minimum(place_N.astype(int), _CELLS - 2)
    residual_N = (outcome_N - probability_N) / len(probability_N)
    to_right_N = place_N - left_N
    return np.bincount(left_N, residual_N * (1 - to_right_N), _CELLS) + np.bincount(
        left_N + 1, residual_N * to_right_N, _CELLS
    )
