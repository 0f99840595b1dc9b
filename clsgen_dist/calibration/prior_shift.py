"""Probabilities for another prevalence than that of the held-out rows (prior shift).

    p'(c) ∝ p(c) · π'(c) / π(c)        π: prevalence where the model was calibrated, π': where it is used

Right if only the prevalence differs, and rows of one class look the same in both places. π' is known, or estimated
from unlabelled rows of the new place as the maximum of their likelihood (Saerens, Latinne & Decaestecker 2002):

    max over π' of   Σ_i log Σ_c π'(c) · p_i(c) / π(c)

for which p must be calibrated. (Expectation maximisation goes there too, in hundreds of passes where classes overlap;
L-BFGS needs some ten.) Multi-label: each class is a question of its own, with prevalences π and 1-π.

Cost: a pass over ``N x C`` numbers; the estimate some ten, and as many for each of its bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.bootstrap import resampled_interval
from clsgen_dist.model.label_space import Kind

# N rows, C classes

_ESTIMATED_FROM = 30
"""Fewer unlabelled rows than this say nothing about a prevalence."""


def correct(
    probabilities_NC: np.ndarray, fitted_C: np.ndarray, deployed_C: np.ndarray, kind: Kind = "single"
) -> np.ndarray:
    """Probabilities ``[N, C]`` under the prevalences ``deployed_C`` instead of ``fitted_C``.

    Each sums to 1, but for multi-label; all of ``fitted_C`` is above 0 (multi-label: and below 1).
    """
    if kind == "multilabel":
        yes_NC = probabilities_NC * deployed_C / fitted_C
        return np.asarray(yes_NC / (yes_NC + (1 - probabilities_NC) * (1 - deployed_C) / (1 - fitted_C)))
    weighted_NC = probabilities_NC * deployed_C / fitted_C
    return np.asarray(weighted_NC / weighted_NC.sum(axis=1, keepdims=True))


def prevalences(labels: np.ndarray, classes: int, kind: Kind = "single") -> np.ndarray:
    """``[C]`` share of the labelled rows in each class; 0 where no answer is known.

    Args:
        labels: classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        classes: number of classes.
        kind: the label space.
    """
    if kind == "multilabel":
        known_C = np.maximum((~np.isnan(labels)).sum(axis=0), 1)
        return np.asarray((np.nan_to_num(labels) >= 0.5).sum(axis=0) / known_C)
    return np.asarray(np.bincount(labels, minlength=classes) / max(1, len(labels)))


@dataclass(frozen=True)
class EstimatedPrevalence:
    """Prevalences of unlabelled rows, with 95 % bootstrap intervals over the rows."""

    share_C: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    rows: int


def estimate(
    probabilities_NC: np.ndarray, fitted_C: np.ndarray, kind: Kind = "single", *, resamples: int = 200, seed: int = 0
) -> EstimatedPrevalence:
    """The prevalences of unlabelled rows from their calibrated probabilities, the most likely ones.

    The interval holds the sampling of these rows, not the error of the calibration nor that of ``fitted_C``.

    Raises:
        DataError: fewer than 30 rows.
    """
    rows = len(probabilities_NC)
    if rows < _ESTIMATED_FROM:
        raise DataError(
            f"{rows} unlabelled rows, expected {_ESTIMATED_FROM} or more to estimate a prevalence; add some"
        )
    rng = np.random.default_rng(seed)
    found = _maximise(probabilities_NC, fitted_C, kind)
    drawn = [_maximise(probabilities_NC[rng.integers(0, rows, rows)], fitted_C, kind) for _ in range(resamples)]
    intervals = [resampled_interval(share_R, rows) for share_R in np.transpose(drawn)]
    low_C, high_C = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    return EstimatedPrevalence(found, low_C, high_C, rows)


def _maximise(probabilities_NC: np.ndarray, fitted_C: np.ndarray, kind: Kind) -> np.ndarray:
    if kind != "multilabel":
        return _most_likely(probabilities_NC / fitted_C)
    ratios = [
        np.stack([(1 - p_N) / (1 - share), p_N / share], axis=1)
        for p_N, share in zip(probabilities_NC.T, fitted_C, strict=True)
    ]
    return np.array([_most_likely(ratio_N2)[1] for ratio_N2 in ratios])


def _most_likely(ratio_NC: np.ndarray) -> np.ndarray:
    """Shares that maximise the mean of log(ratio · share), as a softmax of free parameters."""
    from scipy.optimize import minimize

    def shares(free: np.ndarray) -> np.ndarray:
        exp_C = np.exp(np.concatenate([[0.0], free]))
        return np.asarray(exp_C / exp_C.sum())

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        share_C = shares(free)
        density_N = ratio_NC @ share_C
        posterior_C = share_C * (ratio_NC.T @ (1 / density_N)) / len(ratio_NC)
        return -float(np.log(density_N).mean()), (share_C - posterior_C)[1:]

    bounds = [(-30, 30)] * (ratio_NC.shape[1] - 1)
    options = {"ftol": 1e-12, "gtol": 1e-6}
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return shares(found.x)
