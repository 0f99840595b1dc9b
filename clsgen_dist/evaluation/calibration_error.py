"""Calibration metrics: ECE, Brier score, negative log-likelihood.

    ECE  = Σ_b (n_b / N) |mean confidence_b - frequency_b|         over bins of equal width (Guo et al. 2017)
    CE²  = Σ_b (n_b / N) [(mean confidence_b - frequency_b)² - frequency_b (1 - frequency_b) / (n_b - 1)]
                                            debiased (Bröcker 2012; Kumar, Liang & Ma 2019, arXiv 1909.10155)
    Brier = reliability - resolution + uncertainty + remainder     (Murphy 1973; Stephenson, Coelho & Jolliffe 2008)

``ece``, ``brier`` and ``nll`` take the label space's probabilities ``[N, C]``. Two classes: the probability of the
positive class against its frequency. More: the top probability against top-1 accuracy. The others take one yes-no
question (see ``questions``): probabilities ``[N]`` and outcomes ``[N]``.

The ECE of a perfectly calibrated model is not 0 on few rows: about 0.06 on 400 rows with 15 bins. A bootstrap interval
does not help, since a resample has that bias twice. ``ece_interval`` inverts a test instead: it keeps those sizes of
miscalibration under which the observed ECE is no surprise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.interval import UNDEFINED, Interval
from clsgen_dist.evaluation.reliability import Binning, Bins, bin_rows, calibrated_frequencies, clustered_frequencies

# N rows, C classes, B bins, R resamples

_HALVINGS = 10
_LARGEST_SCALE = 1024.0


@dataclass(frozen=True)
class BrierDecomposition:
    """The binary Brier score is reliability - resolution + uncertainty + remainder."""

    reliability: float
    """Miscalibration: mean squared distance of mean probability and frequency in the bins."""
    resolution: float
    """How far the frequencies of the bins are apart; larger is better."""
    uncertainty: float
    """Brier score of the base rate."""
    remainder: float
    """What bins lose: variance of probabilities within a bin, and their covariance with the outcome."""


def reliability_bins(
    probabilities_NC: np.ndarray, labels_N: np.ndarray, *, positive: int = 1, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, frequency and number of rows per bin, ``[B]`` each; NaN in empty bins."""
    if probabilities_NC.shape[1] == 2:
        confidence_N, hit_N = probabilities_NC[:, positive], labels_N == positive
    else:
        confidence_N, hit_N = probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == labels_N
    binned = bin_rows(confidence_N, hit_N, bins=bins)
    return binned.mean_B, binned.frequency_B, binned.count_B


def ece(probabilities_NC: np.ndarray, labels_N: np.ndarray, *, positive: int = 1, bins: int = 15) -> float:
    """Expected calibration error, from 0 (calibrated) to 1; NaN without rows."""
    if len(labels_N) == 0:
        return float("nan")
    confidence_B, frequency_B, count_B = reliability_bins(probabilities_NC, labels_N, positive=positive, bins=bins)
    gap_B = np.where(count_B > 0, np.abs(confidence_B - frequency_B), 0.0)
    return float((gap_B * count_B).sum() / count_B.sum())


def binned_ece(
    probability_N: np.ndarray, outcome_N: np.ndarray, *, bins: int = 15, binning: Binning = "width"
) -> float:
    """ECE of a yes-no question in bins of equal width or mass (Nixon et al. 2019); NaN without rows."""
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    return float(_weighted_gap(binned.frequency_B, binned)) if len(probability_N) else float("nan")


def debiased_squared_error(
    probability_N: np.ndarray, outcome_N: np.ndarray, *, bins: int = 15, binning: Binning = "mass"
) -> float:
    """Squared calibration error without the bias of few rows: 0 on average for a calibrated model, so often below 0.

    Bins of one row are left out, since their variance is unknown; NaN if no bin has two.
    """
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    usable_B = binned.count_B > 1
    count_B, frequency_B = binned.count_B[usable_B], binned.frequency_B[usable_B]
    if not usable_B.any():
        return float("nan")
    noise_B = frequency_B * (1 - frequency_B) / (count_B - 1)
    squared_B = (binned.mean_B[usable_B] - frequency_B) ** 2 - noise_B
    return float((count_B * squared_B).sum() / count_B.sum())


def calibration_p_value(
    probability_N: np.ndarray,
    outcome_N: np.ndarray,
    *,
    bins: int = 15,
    binning: Binning = "mass",
    resamples: int = 1000,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
) -> float:
    """How often a perfectly calibrated model has an ECE this large on these rows (Bröcker & Smith 2007).

    NaN without rows, or with fewer than 2 clusters.
    """
    if len(probability_N) == 0 or (clusters_N is not None and len(np.unique(clusters_N)) < 2):
        return float("nan")
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    frequency_RB = calibrated_frequencies(
        probability_N, outcome_N, binned, resamples=resamples, seed=seed, clusters_N=clusters_N
    )
    # Sums of the same numbers in another order differ in their last digits.
    as_large = np.count_nonzero(
        _weighted_gap(frequency_RB, binned) >= _weighted_gap(binned.frequency_B, binned) - 1e-12
    )
    return (1 + as_large) / (1 + resamples)


def ece_interval(
    probability_N: np.ndarray,
    outcome_N: np.ndarray,
    *,
    bins: int = 15,
    binning: Binning = "width",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
) -> Interval:
    """Interval of the ECE that many rows in these bins would show; its lower end is 0 if calibration is not rejected.

    Gaps of a given pattern are scaled from 0 (calibrated) upwards, frequencies are drawn around them, and the scale is
    found at which the observed ECE is one of the largest drawn (lower end) or smallest (upper end). The pattern is that
    of the observed gaps for the lower end. For the upper end all gaps are equal: such an ECE has the least bias, so it
    gives the highest end. An ECE smaller than most calibrated models show has the upper end of a typical one.

    The interval can lie below the observed ECE, whose bias it takes out. Rows of one cluster, such as several answers
    of one row, are drawn as in :mod:`clsgen_dist.evaluation.reliability`; undefined with fewer than 2 clusters. Cost:
    about 25 · ``resamples`` · B draws, 30 ms on 400 rows.
    """
    if len(probability_N) == 0 or (clusters_N is not None and len(np.unique(clusters_N)) < 2):
        return UNDEFINED
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    filled_B = binned.count_B > 0
    mean_B, count_B = binned.mean_B[filled_B], binned.count_B[filled_B]
    gap_B, weight_B = binned.frequency_B[filled_B] - mean_B, count_B / count_B.sum()
    observed = float(weight_B @ np.abs(gap_B))
    draw = _independent_draws(mean_B, count_B, resamples, seed)
    if clusters_N is not None:
        draw = _clustered_draws(probability_N, outcome_N, binned, clusters_N, resamples, seed)

    def true_ece(pattern_B: np.ndarray) -> float:
        return float(weight_B @ np.abs(np.clip(mean_B + pattern_B, 0, 1) - mean_B))

    def drawn_quantile(pattern_B: np.ndarray, tail: float) -> float:
        frequency_RB = draw(np.clip(mean_B + pattern_B, 0, 1))
        return float(np.quantile(np.abs(frequency_RB - mean_B) @ weight_B, tail))

    no_gap_B, sign_B = 0 * gap_B, np.where(gap_B == 0, 0.5 - mean_B, gap_B)
    equal_B = np.where(sign_B < 0, -1, 1) * max(observed, 0.01)
    # Sums that are equal but for rounding are ties.
    at_least = max(observed, drawn_quantile(no_gap_B, 0.5)) + 1e-12
    low = _first_scale(lambda scale: drawn_quantile(scale * gap_B, (1 + level) / 2) >= observed - 1e-12)
    high = _first_scale(lambda scale: drawn_quantile(scale * equal_B, (1 - level) / 2) > at_least)
    return Interval(true_ece(low * gap_B), true_ece(high * equal_B))


def _independent_draws(
    mean_B: np.ndarray, count_B: np.ndarray, resamples: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """``[R, B]`` frequencies drawn around given ones, of independent rows."""
    size = (resamples, len(mean_B))
    return lambda centre_B: np.random.default_rng(seed).binomial(count_B, centre_B, size=size) / count_B


def _clustered_draws(
    probability_N: np.ndarray,
    outcome_N: np.ndarray,
    binned: Bins,
    clusters_N: np.ndarray,
    resamples: int,
    seed: int,
) -> Callable[[np.ndarray], np.ndarray]:
    """The same of rows in clusters, by their residuals from what is drawn around."""
    filled_B = binned.count_B > 0

    def draw(centre_B: np.ndarray) -> np.ndarray:
        every_B = np.full(len(filled_B), np.nan)
        every_B[filled_B] = centre_B
        shift_N = (every_B - binned.mean_B)[binned.bin_N]
        rng, residual_N = np.random.default_rng(seed), outcome_N - probability_N - shift_N
        return clustered_frequencies(residual_N, every_B, binned, clusters_N, rng, resamples)[:, filled_B]

    return draw


def _first_scale(reached: Callable[[float], bool]) -> float:
    """The smallest scale from 0 at which the condition holds, which holds from there on."""
    low, high = 0.0, 1.0
    if reached(0.0):
        return 0.0
    while not reached(high) and high < _LARGEST_SCALE:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def brier(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean squared error of the probabilities (Brier 1950); NaN without rows.

    As in scikit-learn: for two classes, of the positive class, 0 to 1; for more, the sum over classes, 0 to 2.
    """
    if len(labels_N) == 0:
        return float("nan")
    outcome_NC = labels_N[:, None] == np.arange(probabilities_NC.shape[1])
    squared_N = ((probabilities_NC - outcome_NC) ** 2).sum(axis=1)
    return float(squared_N.mean() / (2 if probabilities_NC.shape[1] == 2 else 1))


def brier_decomposition(
    probability_N: np.ndarray, outcome_N: np.ndarray, *, bins: int = 15, binning: Binning = "width"
) -> BrierDecomposition:
    """The parts of the Brier score of a yes-no question; NaN without rows."""
    if len(probability_N) == 0:
        return BrierDecomposition(*[float("nan")] * 4)
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    filled_B = binned.count_B > 0
    weight_B, mean_B = binned.count_B[filled_B] / len(outcome_N), binned.mean_B[filled_B]
    frequency_B, base_rate = binned.frequency_B[filled_B], outcome_N.mean()
    reliability = float(weight_B @ (mean_B - frequency_B) ** 2)
    resolution = float(weight_B @ (frequency_B - base_rate) ** 2)
    uncertainty = float(base_rate * (1 - base_rate))
    score = float(((probability_N - outcome_N) ** 2).mean())
    return BrierDecomposition(reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty))


def nll(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-probability of the labels, in nats; NaN without rows."""
    if len(labels_N) == 0:
        return float("nan")
    own_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(own_N, np.finfo(np.float64).tiny)).mean())


def _weighted_gap(frequency_B: np.ndarray, binned: Bins) -> np.ndarray:
    """Σ_b (n_b / N) |mean_b - frequency_b| over the last axis; empty bins count nothing."""
    filled_B = binned.count_B > 0
    gaps = np.abs(frequency_B[..., filled_B] - binned.mean_B[filled_B])
    return gaps @ binned.count_B[filled_B] / binned.count_B.sum()
