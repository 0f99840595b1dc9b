"""Affine recalibration of class logits: one slope, and an offset per class.

    z' = s·z + b,   s > 0,   b_0 = 0

Two classes: Platt scaling on the margin (Platt 1999). More: temperature scaling with a bias per class (Alexandari et
al. 2020, arXiv 1901.06852). A temperature alone (Guo et al. 2017) cannot fix a score that is biased towards a class.

Fitted by minimising the negative log-likelihood on held-out rows. The targets are smoothed as Platt does, so that a
separable split stays finite, but with a tenth of a row instead of a whole one: he pulls every probability towards a
half by about one row in n. (The tenth was picked on one seed of the demo, looking at its held-out rows.) Cost: a few
dozen passes over ``N x C`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.data.checks.finding import MAX_LISTED, listed, named
from clsgen_dist.errors import DataError

# N rows, C classes

_LEAST_ROWS = 10
_SMOOTHING = 0.1
"""Pseudo-rows added to each side of the targets; Platt has 1."""


@dataclass(frozen=True)
class AffineCalibration:
    """``logits -> scale * logits + bias``."""

    scale: float
    bias_C: tuple[float, ...]

    def apply(self, logits_NC: np.ndarray) -> np.ndarray:
        """Recalibrated logits ``[N, C]``."""
        return self.scale * logits_NC + np.asarray(self.bias_C)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``clsgen.json``."""
        return {"method": "affine", "scale": self.scale, "bias": list(self.bias_C)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AffineCalibration:
        """What :meth:`to_json` wrote."""
        return cls(float(fields["scale"]), tuple(float(b) for b in fields["bias"]))

    @classmethod
    def identity(cls, classes: int) -> AffineCalibration:
        """The map that changes nothing."""
        return cls(1.0, (0.0,) * classes)


def fit_affine(logits_NC: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    """The map that minimises the smoothed negative log-likelihood; deterministic.

    Raises:
        DataError: fewer than 10 rows, a class without rows, a label that is no class index, logits that are not
            finite, or shapes that do not fit.
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
    """(n_c + k)/(n_c + 2k) for the row's own class, as Platt with k = 1; the rest is shared by the others."""
    counts_C = np.bincount(labels_N, minlength=classes)
    own_N = ((counts_C + _SMOOTHING) / (counts_C + 2 * _SMOOTHING))[labels_N]
    targets_NC = np.repeat(((1 - own_N) / (classes - 1))[:, None], classes, axis=1)
    targets_NC[np.arange(len(labels_N)), labels_N] = own_N
    return targets_NC


def _check(logits_NC: np.ndarray, labels_N: np.ndarray) -> None:
    if logits_NC.ndim != 2 or labels_N.ndim != 1 or len(logits_NC) != len(labels_N):
        raise DataError(f"logits of shape {logits_NC.shape} beside {len(labels_N)} labels; expected [rows, classes]")
    classes = logits_NC.shape[1]
    if classes < 2:
        raise DataError(f"logits of {classes} class(es), expected 2 or more to fit a calibration")
    if not np.isfinite(logits_NC).all():
        raise DataError("some logits are not finite; the model diverged, use an earlier checkpoint")
    # Rows without label carry -1, which numpy would take for the last class.
    outside = np.setdiff1d(labels_N, np.arange(classes)).tolist()
    if outside or not np.issubdtype(labels_N.dtype, np.integer):
        raise DataError(
            f"labels {outside or labels_N.dtype} are no class indices, expected integers from 0 to {classes - 1}; "
            "leave out rows without label"
        )
    require_rows(labels_N, [str(index) for index in range(classes)])


def require_rows(labels_N: np.ndarray, names: Sequence[str]) -> None:
    """DataError, by the classes' names, if these labels are too few to fit a calibration."""
    counts_C = np.bincount(labels_N, minlength=len(names)).tolist()
    if missing := [name for name, count in zip(names, counts_C, strict=True) if not count]:
        there = {name: count for name, count in zip(names, counts_C, strict=True) if count}
        raise DataError(
            f"no row of the class {', '.join(map(named, missing[:MAX_LISTED]))}, only of {listed(there)}; calibration "
            "needs rows of every class: add some"
        )
    if len(labels_N) < _LEAST_ROWS:
        raise DataError(f"{len(labels_N)} labelled rows, expected {_LEAST_ROWS} or more to fit a calibration")
