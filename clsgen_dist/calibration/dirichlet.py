"""Dirichlet calibration of more than two single classes: every class's log-probability may move every other's.

    z' = W·log p + b        p = softmax(z)        (Kull et al. 2019, arXiv 1910.12656, linear parametrisation)

    loss = NLL + λ·mean of w_ij² over i ≠ j + μ·mean of b_i²          ODIR: off-diagonal and intercept regularisation

C² + C numbers, so it needs rows; λ and μ keep it from fitting noise. The paper searches them on a grid; here they fall
as 1/N, which is a normal prior with standard deviation 0.5 on every w_ij and 2 on every b_i. Cost: a few hundred passes
over ``N x C`` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.calibration.fitting_rows import smoothed_targets
from clsgen_dist.calibration.interface import within_limits
from clsgen_dist.model.label_space import Kind

# N rows, C classes

_PRIOR_WEIGHT, _PRIOR_BIAS = 0.5, 2.0
"""Standard deviations of the off-diagonal weights and of the biases."""


@dataclass(frozen=True)
class DirichletCalibration:
    """``logits -> weight · log softmax(logits) + bias``."""

    weight_CC: tuple[tuple[float, ...], ...]
    bias_C: tuple[float, ...]
    method: str = "dirichlet"

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``[N, C]``."""
        from scipy.special import log_softmax, softmax

        log_p_NC = log_softmax(np.asarray(logits_NC, dtype=np.float64), axis=1)
        return within_limits(softmax(log_p_NC @ np.array(self.weight_CC).T + np.array(self.bias_C), axis=1), "single")

    def to_json(self) -> dict[str, Any]:
        """Method, weight and bias."""
        return {"method": self.method, "weight": [list(row) for row in self.weight_CC], "bias": list(self.bias_C)}

    @classmethod
    def from_json(cls, fields: dict[str, Any], kind: Kind) -> DirichletCalibration:
        """Inverse of :meth:`to_json`."""
        return cls(tuple(tuple(map(float, row)) for row in fields["weight"]), tuple(map(float, fields["bias"])))


def dirichlet(logits_NC: np.ndarray, labels_N: np.ndarray, kind: Kind) -> DirichletCalibration:
    """The map of least regularised loss, on rows that are checked; convex, so deterministic."""
    rows, classes = logits_NC.shape
    # A mean over C(C-1) weights times this is the prior's sum of squares, shared among the rows.
    off_diagonal = classes * (classes - 1) / (2 * _PRIOR_WEIGHT**2 * rows)
    intercept = classes / (2 * _PRIOR_BIAS**2 * rows)
    return fit_odir(logits_NC, smoothed_targets(labels_N, classes), off_diagonal, intercept)


def fit_odir(
    logits_NC: np.ndarray, targets_NC: np.ndarray, off_diagonal: float, intercept: float
) -> DirichletCalibration:
    """The map for given λ (``off_diagonal``) and μ (``intercept``)."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, classes = logits_NC.shape
    log_p_NC = log_softmax(logits_NC, axis=1)
    spread = max(float(log_p_NC.std()), 1e-12)
    inputs_NC = log_p_NC / spread
    outside_CC = 1 - np.eye(classes)
    weight_penalty = off_diagonal / (classes * (classes - 1) * spread**2)
    bias_penalty = intercept / classes

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight_CC, bias_C = parameters[:-classes].reshape(classes, classes), parameters[-classes:]
        calibrated_NC = log_softmax(inputs_NC @ weight_CC.T + bias_C, axis=1)
        delta_NC = (np.exp(calibrated_NC) - targets_NC) / rows
        off_CC = weight_CC * outside_CC
        value = -(targets_NC * calibrated_NC).sum() / rows
        value += weight_penalty * (off_CC**2).sum() + bias_penalty * (bias_C**2).sum()
        weight_gradient_CC = delta_NC.T @ inputs_NC + 2 * weight_penalty * off_CC
        return value, np.concatenate([weight_gradient_CC.ravel(), delta_NC.sum(axis=0) + 2 * bias_penalty * bias_C])

    start = np.concatenate([(np.eye(classes) * spread).ravel(), np.zeros(classes)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    weight_CC = found.x[:-classes].reshape(classes, classes) / spread
    return DirichletCalibration(tuple(map(tuple, weight_CC.tolist())), tuple(found.x[-classes:].tolist()))
