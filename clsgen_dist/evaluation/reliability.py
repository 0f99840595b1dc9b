"""Reliability diagram of a yes-no question: mean probability against frequency, in bins.

    equal width   bins of [0, 1]; some hold few rows         equal mass   as many rows in each, none split by ties

Consistency bands (Bröcker & Smith 2007) are what a perfectly calibrated model would show on as many rows: outcomes are
drawn from the probabilities themselves, again and again, and the band is the middle 95 % of the frequency in each bin.
A point outside its band is evidence of miscalibration; a point inside it is not, however far from the diagonal. Each
bin has its own band, so with 15 bins a calibrated model has a point outside in every second diagram. Cost:
``resamples`` passes over N rows.

Bröcker & Smith also resample the probabilities; here they are kept, and with them the number of rows in each bin.

Of rows in clusters, the frequencies of all bins move together. There they are normal around the probabilities, with the
covariance of the clusters' own residuals, as a wild bootstrap with normal weights has them (Cameron, Gelbach & Miller
2008):

    frequency_b ~ mean probability_b + N(0, K/(K-1) Σ_k a_k a_kᵀ)        a_kb = Σ_{i in k, b} (outcome_i - p_i) / n_b

A bin whose outcomes are all alike, which shows no variance, is binomial with a trial for each of its clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clsgen_dist.evaluation.finite import require_finite
from clsgen_dist.evaluation.interval import cluster_sums

# N rows, B bins, R resamples, K clusters

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class Bins:
    """Rows by their probability; empty bins have count 0 and mean and frequency NaN."""

    edges: np.ndarray
    """``[B + 1]``; a bin includes its lower edge, the last also its upper."""
    bin_N: np.ndarray
    """The bin of each row."""
    mean_B: np.ndarray
    """Mean probability."""
    frequency_B: np.ndarray
    """Share of rows that came true."""
    count_B: np.ndarray


@dataclass(frozen=True)
class ReliabilityDiagram:
    """The diagram's numbers."""

    bins: Bins
    low_B: np.ndarray
    """Lower end of the consistency band of the frequency."""
    high_B: np.ndarray


def bin_rows(probability_N: np.ndarray, outcome_N: np.ndarray, *, bins: int = 15, binning: Binning = "width") -> Bins:
    """The rows in bins; of equal mass, fewer bins than ``bins`` if probabilities are tied.

    Raises:
        ValueError: probabilities are not finite.
    """
    require_finite(probability_N)
    edges = np.arange(bins + 1) / bins if binning == "width" else _quantile_edges(probability_N, bins)
    count = len(edges) - 1
    if binning == "width":
        bin_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    else:
        bin_N = np.minimum(np.searchsorted(edges, probability_N, side="right") - 1, count - 1)
    count_B = np.bincount(bin_N, minlength=count)
    return Bins(edges, bin_N, _means(probability_N, bin_N, count_B), _means(outcome_N, bin_N, count_B), count_B)


def reliability_diagram(
    probability_N: np.ndarray,
    outcome_N: np.ndarray,
    *,
    bins: int = 15,
    binning: Binning = "width",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
) -> ReliabilityDiagram:
    """Bins with consistency bands; the bands of empty bins are NaN."""
    binned = bin_rows(probability_N, outcome_N, bins=bins, binning=binning)
    frequency_RB = calibrated_frequencies(
        probability_N, outcome_N, binned, resamples=resamples, seed=seed, clusters_N=clusters_N
    )
    low_B, high_B = np.full(len(binned.count_B), np.nan), np.full(len(binned.count_B), np.nan)
    filled_B = binned.count_B > 0
    if filled_B.any():
        tails = [(1 - level) / 2, (1 + level) / 2]
        low_B[filled_B], high_B[filled_B] = np.quantile(frequency_RB[:, filled_B], tails, axis=0)
    return ReliabilityDiagram(binned, low_B, high_B)


def calibrated_frequencies(
    probability_N: np.ndarray,
    outcome_N: np.ndarray,
    binned: Bins,
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
) -> np.ndarray:
    """``[R, B]`` frequencies in the bins if outcomes were drawn from the probabilities."""
    rng = np.random.default_rng(seed)
    if clusters_N is not None:
        return clustered_frequencies(outcome_N - probability_N, binned.mean_B, binned, clusters_N, rng, resamples)
    return np.stack(
        [_means(rng.random(len(probability_N)) < probability_N, binned.bin_N, binned.count_B) for _ in range(resamples)]
    )


def clustered_frequencies(
    residual_N: np.ndarray,
    centre_B: np.ndarray,
    binned: Bins,
    clusters_N: np.ndarray,
    rng: np.random.Generator,
    resamples: int,
) -> np.ndarray:
    """``[R, B]`` frequencies drawn around ``centre_B``, with the covariance that the clusters' residuals show."""
    per_bin_NB = np.zeros((len(residual_N), len(centre_B)))
    per_bin_NB[np.arange(len(residual_N)), binned.bin_N] = residual_N / binned.count_B[binned.bin_N]
    sums_KB = cluster_sums(per_bin_NB, clusters_N)
    covariance_BB = sums_KB.T @ sums_KB * len(sums_KB) / max(1, len(sums_KB) - 1)
    variance_B, axes_BB = np.linalg.eigh(covariance_BB)
    normal_RB = rng.normal(size=(resamples, len(centre_B))) * np.sqrt(np.maximum(variance_B, 0))
    drawn_RB = np.clip(centre_B + normal_RB @ axes_BB.T, 0, 1)
    alike_B = np.isin(binned.frequency_B, (0, 1))
    clusters_B = cluster_sums(np.eye(len(centre_B))[binned.bin_N], clusters_N)[:, alike_B].astype(bool).sum(axis=0)
    drawn_RB[:, alike_B] = rng.binomial(clusters_B, centre_B[alike_B], (resamples, len(clusters_B))) / clusters_B
    return np.asarray(drawn_RB)


def _quantile_edges(probability_N: np.ndarray, bins: int) -> np.ndarray:
    if len(probability_N) == 0:
        return np.array([0.0, 1.0])
    cuts = np.quantile(probability_N, np.arange(1, bins) / bins, method="higher")
    return np.concatenate([[0.0], np.unique(cuts[cuts > probability_N.min()]), [1.0]])


def _means(values_N: np.ndarray, bin_N: np.ndarray, count_B: np.ndarray) -> np.ndarray:
    sums_B = np.bincount(bin_N, weights=values_N, minlength=len(count_B))
    return np.divide(sums_B, count_B, out=np.full(len(count_B), np.nan), where=count_B > 0)
