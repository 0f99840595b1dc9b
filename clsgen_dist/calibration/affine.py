"""Affine recalibration of class logits, fitted on held-out rows.

    single       z' = s·z + b, s > 0, b_0 = 0      two classes: Platt scaling of the margin (Platt 1999); more:
                                                   temperature and a bias per class (Alexandari 2020, arXiv 1901.06852)
    multilabel   z'_c = s_c·z_c + b_c, s_c > 0     Platt scaling of each class
    ordinal      z'_k = s·z_k + b_k, s > 0         one scale, the cut points moved but kept in order

A temperature alone (Guo et al. 2017) cannot correct a score biased towards a class.

Fitted by minimising the negative log-likelihood. The targets are smoothed as in Platt, so that the fit stays finite if
the classes are separable, but with 0.1 pseudo-rows instead of 1, which would pull every probability towards 0.5 by
about one row in n. (0.1 was chosen on one seed of the demo, on its held-out rows.) Cost: a few dozen passes over
``N x K`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.io.text import MAX_LISTED, counts_phrase, quoted
from clsgen_dist.model.label_space import Kind, class_probabilities

# N rows, C classes, K logits

_MIN_ROWS = 10
_SMOOTHING = 0.1
"""Pseudo-rows per class added to the targets; Platt uses 1."""


@dataclass(frozen=True)
class AffineCalibration:
    """``logits -> scale * logits + bias``."""

    scale: float | tuple[float, ...]
    """One for all logits, or one for each."""
    bias_K: tuple[float, ...]

    def apply(self, logits_NK: np.ndarray) -> np.ndarray:
        """Recalibrated logits ``[N, K]``."""
        return np.asarray(self.scale) * logits_NK + np.asarray(self.bias_K)

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        scale = list(self.scale) if isinstance(self.scale, tuple) else self.scale
        return {"method": "affine", "scale": scale, "bias": list(self.bias_K)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AffineCalibration:
        """Inverse of :meth:`to_json`."""
        scale = fields["scale"]
        of_each = tuple(float(s) for s in scale) if isinstance(scale, list) else float(scale)
        return cls(of_each, tuple(float(b) for b in fields["bias"]))

    @classmethod
    def identity(cls, outputs: int) -> AffineCalibration:
        """The identity map of K logits."""
        return cls(1.0, (0.0,) * outputs)


def fit_affine(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind = "single") -> AffineCalibration:
    """The map that minimises the smoothed negative log-likelihood; deterministic.

    Args:
        logits_NK: raw logits.
        labels: class indices ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        kind: the label space.

    Raises:
        DataError: fewer than 10 rows, a class without rows (multi-label: no class with both answers), a label that is
            not a class index, logits that are not finite, or shapes that do not match.
    """
    logits_NK, labels = np.asarray(logits_NK, dtype=np.float64), np.asarray(labels)
    if not np.isfinite(logits_NK).all():
        raise DataError(
            "some logits are not finite, expected finite numbers; the model diverged, use an earlier checkpoint"
        )
    if kind == "multilabel":
        return _fit_each(logits_NK, labels)
    _check(logits_NK, labels, logits_NK.shape[1] + (kind == "ordinal"))
    return _fit_single(logits_NK, labels) if kind == "single" else _fit_ordinal(logits_NK, labels)


def _fit_single(logits_NC: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    from scipy.optimize import minimize
    from scipy.special import logsumexp

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


def _fit_each(logits_NC: np.ndarray, labels_NC: np.ndarray) -> AffineCalibration:
    """Platt scaling of each class on the rows where it is known, as a softmax over (0, z)."""
    fittable = fittable_classes(labels_NC)
    if not fittable.any():
        raise DataError(
            f"no class has {_MIN_ROWS} rows or more with both answers among {len(labels_NC)} rows; add rows"
        )
    scale_C, bias_C = np.ones(len(fittable)), np.zeros(len(fittable))
    for index in np.flatnonzero(fittable):
        known_N = ~np.isnan(labels_NC[:, index])
        logits_N = logits_NC[known_N, index]
        fitted = _fit_single(
            np.stack([np.zeros(len(logits_N)), logits_N], axis=1), (labels_NC[known_N, index] >= 0.5).astype(int)
        )
        scale_C[index], bias_C[index] = fitted.scale, fitted.bias_K[1]
    return AffineCalibration(tuple(scale_C.tolist()), tuple(bias_C.tolist()))


def fittable_classes(labels_NC: np.ndarray) -> np.ndarray:
    """``[C]`` multi-label: which classes have enough rows, with both answers; the others are left as they are."""
    known_NC = ~np.isnan(labels_NC)
    yes_C = (np.where(known_NC, labels_NC, 0) >= 0.5).sum(axis=0)
    return np.asarray((known_NC.sum(axis=0) >= _MIN_ROWS) & (yes_C > 0) & (yes_C < known_NC.sum(axis=0)))


def _fit_ordinal(logits_NK: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    """One scale and ordered cut points: z'_k = s·z_0 + c_k, c descending, since all logits differ by constants."""
    from scipy.optimize import minimize

    rows, outputs = logits_NK.shape
    score_N, offset_K = logits_NK[:, 0], (logits_NK - logits_NK[:, :1]).mean(axis=0)
    targets_NC = _smoothed_targets(labels_N, outputs + 1)

    def cuts(parameters: np.ndarray) -> np.ndarray:
        steps = np.exp(np.clip(parameters[2:], -20, 20))
        return np.concatenate([parameters[1:2], parameters[1] - np.cumsum(steps)])

    def loss(parameters: np.ndarray) -> float:
        scaled_NK = np.exp(parameters[0]) * score_N[:, None] + cuts(parameters)
        probabilities_NC = class_probabilities(scaled_NK, "ordinal")
        return float(-(targets_NC * np.log(np.maximum(probabilities_NC, 1e-12))).sum() / rows)

    steps = np.maximum(-np.diff(offset_K), 1e-3)
    start = np.concatenate([[0.0, 0.0], np.log(steps)])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-6, 6), *[(None, None)] * outputs])
    scale = float(np.exp(found.x[0]))
    return AffineCalibration(scale, tuple(float(b) for b in cuts(found.x) - scale * offset_K))


def _smoothed_targets(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """(n_c + k)/(n_c + 2k) for the row's own class (Platt: k = 1); the rest divided equally among the others."""
    counts_C = np.bincount(labels_N, minlength=classes)
    own_N = ((counts_C + _SMOOTHING) / (counts_C + 2 * _SMOOTHING))[labels_N]
    targets_NC = np.repeat(((1 - own_N) / (classes - 1))[:, None], classes, axis=1)
    targets_NC[np.arange(len(labels_N)), labels_N] = own_N
    return targets_NC


def _check(logits_NK: np.ndarray, labels_N: np.ndarray, classes: int) -> None:
    if logits_NK.ndim != 2 or labels_N.ndim != 1 or len(logits_NK) != len(labels_N):
        raise DataError(
            f"logits of shape {logits_NK.shape} with {len(labels_N)} labels, expected [rows, classes] and one "
            "label per row; pass the labels of the same rows"
        )
    if classes < 2:
        raise DataError(f"logits of {classes} class(es), expected 2 or more; a calibration needs two classes")
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


def probabilities(logits_NK: np.ndarray, calibration: AffineCalibration, kind: Kind = "single") -> np.ndarray:
    """Calibrated class probabilities ``[N, C]``."""
    return class_probabilities(calibration.apply(logits_NK), kind)
