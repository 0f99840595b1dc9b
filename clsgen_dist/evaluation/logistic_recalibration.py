"""Calibration slope and intercept: a logistic regression of the outcome on the model's logit (Cox 1958).

    logit P(y = 1) = intercept + slope · logit p            calibrated: 0 and 1
    logit P(y = 1) = in the large + logit p                 calibrated: 0

A slope below 1 says the probabilities are too extreme (over-confident), above 1 too timid. Calibration in the large
above 0 says events are more frequent than predicted (Van Calster et al. 2016; Steyerberg 2019). Two numbers cannot show
a bend: a model can have slope 1 and intercept 0 and be wrong in the middle.

Fitted by Newton's method; standard errors are from the Fisher information, or, given clusters, from the sandwich over
the K clusters (Liang & Zeger 1986), with Student's quantile of K - 1 degrees of freedom. Cost: a few passes over N
rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.finite import require_finite
from clsgen_dist.evaluation.interval import UNDEFINED, Interval, cluster_sums, student_quantile

# N rows, P parameters

_SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1, where the logit is infinite."""
_STEPS = 50


@dataclass(frozen=True)
class Coefficient:
    """An estimate with its standard error and Wald interval."""

    value: float
    standard_error: float
    interval: Interval


@dataclass(frozen=True)
class LogisticRecalibration:
    """Undefined coefficients are NaN: all with one class or cluster; slope and intercept of separable classes."""

    slope: Coefficient
    intercept: Coefficient
    in_the_large: Coefficient
    """The intercept with the slope fixed at 1."""


_UNDEFINED = Coefficient(float("nan"), float("nan"), UNDEFINED)


def logistic_recalibration(
    probability_N: np.ndarray, outcome_N: np.ndarray, *, clusters_N: np.ndarray | None = None, level: float = 0.95
) -> LogisticRecalibration:
    """Slope, intercept and calibration in the large of a yes-no question, with intervals."""
    require_finite(probability_N)
    outcome_N = outcome_N.astype(bool)
    if len(np.unique(outcome_N)) < 2 or (clusters_N is not None and len(np.unique(clusters_N)) < 2):
        return LogisticRecalibration(_UNDEFINED, _UNDEFINED, _UNDEFINED)
    clipped_N = np.clip(probability_N, _SMALLEST, 1 - _SMALLEST)
    logit_N = np.log(clipped_N) - np.log1p(-clipped_N)
    ones_N = np.ones(len(logit_N))
    (in_the_large,) = _fit(ones_N[:, None], logit_N, outcome_N, clusters_N, level)
    if _separable(logit_N, outcome_N):
        return LogisticRecalibration(_UNDEFINED, _UNDEFINED, in_the_large)
    intercept, slope = _fit(np.stack([ones_N, logit_N], axis=1), 0 * logit_N, outcome_N, clusters_N, level)
    return LogisticRecalibration(slope, intercept, in_the_large)


def _separable(logit_N: np.ndarray, outcome_N: np.ndarray) -> bool:
    """No finite fit: a threshold parts the classes, but for ties at the threshold itself; or all logits are equal."""
    of_yes, of_no = logit_N[outcome_N], logit_N[~outcome_N]
    return bool(of_no.max() <= of_yes.min() or of_yes.max() <= of_no.min())


def _fit(
    design_NP: np.ndarray, offset_N: np.ndarray, outcome_N: np.ndarray, clusters_N: np.ndarray | None, level: float
) -> list[Coefficient]:
    from scipy.special import expit, log_expit

    def loss(parameters_P: np.ndarray) -> float:
        margin_N = np.where(outcome_N, 1, -1) * (design_NP @ parameters_P + offset_N)
        return float(-log_expit(margin_N).sum())

    parameters_P = np.zeros(design_NP.shape[1])
    for _ in range(_STEPS):
        fitted_N = expit(design_NP @ parameters_P + offset_N)
        information_PP = (design_NP * (fitted_N * (1 - fitted_N))[:, None]).T @ design_NP
        scores_NP = design_NP * (outcome_N - fitted_N)[:, None]
        step_P = np.linalg.lstsq(information_PP, scores_NP.sum(axis=0))[0]
        # A full step may overshoot from probabilities near 0 and 1.
        while loss(parameters_P + step_P) > loss(parameters_P) + 1e-9 and np.abs(step_P).max() > 1e-10:
            step_P = step_P / 2
        parameters_P = parameters_P + step_P
        if np.abs(step_P).max() < 1e-10:
            break
    covariance_PP, freedom = np.linalg.pinv(information_PP), np.inf
    if clusters_N is not None:
        scores_KP = cluster_sums(scores_NP, clusters_N)
        freedom = len(scores_KP) - 1
        meat_PP = scores_KP.T @ scores_KP * len(scores_KP) / freedom
        covariance_PP = covariance_PP @ meat_PP @ covariance_PP
    error_P, quantile = np.sqrt(np.diag(covariance_PP)), student_quantile(level, freedom)
    return [
        Coefficient(float(v), float(error), Interval(float(v - quantile * error), float(v + quantile * error)))
        for v, error in zip(parameters_P, error_P, strict=True)
    ]
