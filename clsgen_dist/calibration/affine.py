"""Affine recalibration of class logits: one scale, and one bias per class.

    z' = s·z + b,   s > 0,   b_0 = 0

Two classes: Platt scaling of the margin (Platt 1999). More: temperature scaling with a bias per class (Alexandari et
al. 2020, arXiv 1901.06852). A temperature alone (Guo et al. 2017) cannot correct a score biased towards a class.

Fitted by minimising the negative log-likelihood on held-out rows. The targets are smoothed as in Platt, so that the fit
stays finite if the classes are separable, but with 0.1 pseudo-rows instead of 1, which would pull every probability
towards 0.5 by about one row in n. (0.1 was chosen on one seed of the demo, on its held-out rows.) Cost: a few dozen
passes over ``N x C`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.io.text import MAX_LISTED, counts_phrase, quoted

# N rows, C classes

_MIN_ROWS = 10
_SMOOTHING = 0.1
"""Pseudo-rows per class added to the targets; Platt uses 1."""


@dataclass(frozen=True)
class AffineCalibration:
    """``logits -> scale * logits + bias``."""

    scale: float
    bias_C: tuple[float, ...]

    def apply(self, logits_NC: np.ndarray) -> np.ndarray:
        """Recalibrated logits ``[N, C]``."""
        return self.scale * logits_NC + np.asarray(self.bias_C)

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return {"method": "affine", "scale": self.scale, "bias": list(self.bias_C)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AffineCalibration:
        """Inverse of :meth:`to_json`."""
        return cls(float(fields["scale"]), tuple(float(b) for b in fields["bias"]))

    @classmethod
    def identity(cls, classes: int) -> AffineCalibration:
        """The identity map."""
        return cls(1.0, (0.0,) * classes)


def fit_affine(logits_NC: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    """The map that minimises the smoothed negative log-likelihood; deterministic.

    Raises:
        DataError: fewer than 10 rows, a class without rows, a label that is not a class index, logits that are not
            finite, or shapes that do not match.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    logits_NC, labels_N = np.asarray(logits_NC, dtype=np.float64), np.asarray(labels_N)
    _check(logits_NC, labels_N)
    rows, classes = logits_NC.shape
    targets_NC = _smoothed_targets(labels_N, classes)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias_C = np.exp(parameters[0]), np.concatenate([[0.0], parameters[1:]])
        scaled_NC = scale * logits_NC + bias_C
        log_p_NC = scaled_NC - logsumexp(scaled_NC, axis=1, keepdims=True)
        delta_NC = (np.exp(log_p_NC) - targets_NC) / rows
        gradient = np.concatenate([[scale * (delta_NC * logits_NC).sum()], delta_NC.sum(axis=0)[1:]])
        return -(targets_NC * log_p_NC).sum() / rows, gradient

    found = minimize(
        loss, np.zeros(classes), jac=True, method="L-BFGS-B", bounds=[(-6, 6), *[(None, None)] * (classes - 1)]
    )
    return AffineCalibration(float(np.exp(found.x[0])), (0.0, *(float(b) for b in found.x[1:])))


def _smoothed_targets(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """(n_c + k)/(n_c + 2k) for the row's own class (Platt: k = 1); the rest divided equally among the others."""
    counts_C = np.bincount(labels_N, minlength=classes)
    own_N = ((counts_C + _SMOOTHING) / (counts_C + 2 * _SMOOTHING))[labels_N]
    targets_NC = np.repeat(((1 - own_N) / (classes - 1))[:, None], classes, axis=1)
    targets_NC[np.arange(len(labels_N)), labels_N] = own_N
    return targets_NC


def _check(logits_NC: np.ndarray, labels_N: np.ndarray) -> None:
    if logits_NC.ndim != 2 or labels_N.ndim != 1 or len(logits_NC) != len(labels_N):
        raise DataError(
            f"logits of shape {logits_NC.shape} with {len(labels_N)} labels, expected [rows, classes] and one "
            "label per row; pass the labels of the same rows"
        )
    classes = logits_NC.shape[1]
    if classes < 2:
        raise DataError(f"logits of {classes} class(es), expected 2 or more; a calibration needs two classes")
    if not np.isfinite(logits_NC).all():
        raise DataError(
            "some logits are not finite, expected finite numbers; the model diverged, use an earlier checkpoint"
        )
    # Rows without label have -1, which numpy would index as the last class.
    outside = np.setdiff1d(labels_N, np.arange(classes)).tolist()
    if outside or not np.issubdtype(labels_N.dtype, np.integer):
        raise DataError(
            f"labels {outside or labels_N.dtype} are not class indices, expected integers from 0 to {classes - 1}; "
            "exclude rows without label"
        )
    require_rows(labels_N, [str(index) for index in range(classes)])


def require_rows(labels_N: np.ndarray, names: Sequence[str]) -> None:
    """DataError, with the names of the classes, if there are too few labels to fit a calibration."""
    counts_C = np.bincount(labels_N, minlength=len(names)).tolist()
    if missing := [name for name, count in zip(names, counts_C, strict=True) if not count]:
        present = {name: count for name, count in zip(names, counts_C, strict=True) if count}
        raise DataError(
            f"no row of the class {', '.join(map(quoted, missing[:MAX_LISTED]))}, only of {counts_phrase(present)}; "
            "calibration needs rows of every class: add some"
        )
    if len(labels_N) < _MIN_ROWS:
        raise DataError(f"{len(labels_N)} labelled rows, expected {_MIN_ROWS} or more to fit a calibration")


def probabilities(logits_NC: np.ndarray, calibration: AffineCalibration) -> np.ndarray:
    """Calibrated class probabilities ``[N, C]``."""
    from scipy.special import softmax

    return np.asarray(softmax(calibration.apply(logits_NC), axis=1))
