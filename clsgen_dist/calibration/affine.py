"""A scale and a bias for the class logits: temperature, affine map, vector scaling.

    temperature  z' = z / T                        all label spaces (Guo et al. 2017, arXiv 1706.04599)
    affine       z' = s·z + b, s > 0, b_0 = 0      single. Two classes: Platt scaling of the margin (Platt 1999); more:
                                                   temperature and a bias per class (Alexandari 2020, arXiv 1901.06852)
                 z'_c = s_c·z_c + b_c, s_c > 0     multilabel: Platt scaling of each class
                 z'_k = s·z_k + b_k, s > 0         ordinal: one scale, the cut points moved but kept in order
    vector       z'_c = s_c·z_c + b_c, s_c >= 0    single, more than two classes (Guo et al. 2017)

A temperature cannot correct a score biased towards a class. Multi-label has one temperature for all its classes.

Fitted by minimising the negative log-likelihood on smoothed targets. Cost: a few dozen passes over ``N x K`` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clsgen_dist.calibration.fitting_rows import checked, fittable_classes, known_rows, smoothed_targets
from clsgen_dist.calibration.interface import within_limits
from clsgen_dist.model.label_space import Kind, class_probabilities

# N rows, C classes, K logits


@dataclass(frozen=True)
class AffineCalibration:
    """``logits -> scale * logits + bias``."""

    scale: float | tuple[float, ...]
    """One for all logits, or one for each."""
    bias_K: tuple[float, ...]
    kind: Kind = "single"
    method: str = "affine"

    def apply(self, logits_NK: np.ndarray) -> np.ndarray:
        """Recalibrated logits ``[N, K]``."""
        return np.asarray(self.scale) * np.asarray(logits_NK, dtype=np.float64) + np.asarray(self.bias_K)

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``[N, C]``."""
        return within_limits(class_probabilities(self.apply(logits_NK), self.kind), self.kind)

    def to_json(self) -> dict[str, Any]:
        """Method, scale and bias; of ``none`` the method alone."""
        if self.method == "none":
            return {"method": self.method}
        scale = list(self.scale) if isinstance(self.scale, tuple) else self.scale
        return {"method": self.method, "scale": scale, "bias": list(self.bias_K)}

    @classmethod
    def from_json(cls, fields: dict[str, Any], kind: Kind = "single") -> AffineCalibration:
        """Inverse of :meth:`to_json`."""
        if fields["method"] == "none":
            return cls.identity(kind)
        scale = fields["scale"]
        of_each = tuple(float(s) for s in scale) if isinstance(scale, list) else float(scale)
        return cls(of_each, tuple(float(b) for b in fields["bias"]), kind, fields["method"])

    @classmethod
    def identity(cls, kind: Kind = "single") -> AffineCalibration:
        """The raw probabilities."""
        return cls(1.0, (0.0,), kind, "none")


def fit_affine(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind = "single") -> AffineCalibration:
    """The affine map that minimises the smoothed negative log-likelihood; deterministic.

    Arguments and errors are those of :func:`clsgen_dist.calibration.fitting_rows.checked`.
    """
    return affine(*checked(logits_NK, labels, kind), kind)


def affine(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind) -> AffineCalibration:
    """:func:`fit_affine` of rows that are checked."""
    if kind == "multilabel":
        return _affine_of_each(logits_NK, labels)
    return _affine_of_single(logits_NK, labels) if kind == "single" else _affine_of_ordinal(logits_NK, labels)


def platt(logits_N: np.ndarray, answers_N: np.ndarray) -> tuple[float, float]:
    """Scale and bias of one class's logits, on answers 0 and 1."""
    fitted = _affine_of_single(np.stack([np.zeros(len(logits_N)), logits_N], axis=1), answers_N)
    assert isinstance(fitted.scale, float)
    return fitted.scale, fitted.bias_K[1]


def temperature(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind) -> AffineCalibration:
    """The scale 1/T alone, on rows that are checked."""
    from scipy.optimize import minimize_scalar

    raw = replace(AffineCalibration.identity(kind), bias_K=(0.0,) * logits_NK.shape[1], method="temperature")
    loss = _answers_loss(logits_NK, labels) if kind == "multilabel" else _classes_loss(logits_NK, labels, kind)
    found = minimize_scalar(
        lambda log_scale: loss(np.exp(log_scale) * logits_NK), bounds=(-6, 6), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    return replace(raw, scale=float(np.exp(found.x)))


def _classes_loss(logits_NK: np.ndarray, labels_N: np.ndarray, kind: Kind) -> Any:
    """Mean smoothed negative log-likelihood as a function of recalibrated logits."""
    from scipy.special import log_softmax

    targets_NC = smoothed_targets(labels_N, logits_NK.shape[1] + (kind == "ordinal"))

    def loss(scaled_NK: np.ndarray) -> float:
        if kind == "single":
            log_p_NC = log_softmax(scaled_NK, axis=1)
        else:
            log_p_NC = np.log(np.maximum(class_probabilities(scaled_NK, kind), 1e-12))
        return float(-(targets_NC * log_p_NC).sum() / len(labels_N))

    return loss


def _answers_loss(logits_NC: np.ndarray, answers_NC: np.ndarray) -> Any:
    """The same over all known answers of multi-label rows."""
    from scipy.special import log_expit

    known_NC = ~np.isnan(answers_NC)
    yes_M = smoothed_targets((answers_NC[known_NC] >= 0.5).astype(int), 2)[:, 1]

    def loss(scaled_NC: np.ndarray) -> float:
        scaled_M = scaled_NC[known_NC]
        return float(-(yes_M * log_expit(scaled_M) + (1 - yes_M) * log_expit(-scaled_M)).mean())

    return loss


def _affine_of_single(logits_NC: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows, classes = logits_NC.shape
    targets_NC = smoothed_targets(labels_N, classes)

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


def _affine_of_each(logits_NC: np.ndarray, answers_NC: np.ndarray) -> AffineCalibration:
    """Platt scaling of each class on the rows where it is known, as a softmax over (0, z)."""
    fittable_C = fittable_classes(answers_NC)
    scale_C, bias_C = np.ones(len(fittable_C)), np.zeros(len(fittable_C))
    for index in np.flatnonzero(fittable_C):
        scale_C[index], bias_C[index] = platt(*known_rows(logits_NC[:, index], answers_NC[:, index]))
    return AffineCalibration(tuple(scale_C.tolist()), tuple(bias_C.tolist()), "multilabel")


def _affine_of_ordinal(logits_NK: np.ndarray, labels_N: np.ndarray) -> AffineCalibration:
    """One scale and ordered cut points: z'_k = s·z_0 + c_k, c descending, since all logits differ by constants."""
    from scipy.optimize import minimize

    outputs = logits_NK.shape[1]
    score_N, offset_K = logits_NK[:, 0], (logits_NK - logits_NK[:, :1]).mean(axis=0)
    loss = _classes_loss(logits_NK, labels_N, "ordinal")

    def cuts(parameters: np.ndarray) -> np.ndarray:
        steps = np.exp(np.clip(parameters[2:], -20, 20))
        return np.concatenate([parameters[1:2], parameters[1] - np.cumsum(steps)])

    steps = np.maximum(-np.diff(offset_K), 1e-3)
    found = minimize(
        lambda parameters: loss(np.exp(parameters[0]) * score_N[:, None] + cuts(parameters)),
        np.concatenate([[0.0, 0.0], np.log(steps)]),
        method="L-BFGS-B",
        bounds=[(-6, 6), *[(None, None)] * outputs],
    )
    scale = float(np.exp(found.x[0]))
    return AffineCalibration(scale, tuple(float(b) for b in cuts(found.x) - scale * offset_K), "ordinal")


def vector(logits_NC: np.ndarray, labels_N: np.ndarray, kind: Kind) -> AffineCalibration:
    """A scale and a bias for each class, on rows that are checked; convex in both."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, classes = logits_NC.shape
    targets_NC = smoothed_targets(labels_N, classes)
    centre_C, spread = logits_NC.mean(axis=0), max(float(logits_NC.std(axis=0).max()), 1e-12)
    standard_NC = (logits_NC - centre_C) / spread

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale_C, bias_C = parameters.reshape(2, classes)
        log_p_NC = log_softmax(scale_C * standard_NC + bias_C, axis=1)
        delta_NC = (np.exp(log_p_NC) - targets_NC) / rows
        gradient = np.concatenate([(delta_NC * standard_NC).sum(axis=0), delta_NC.sum(axis=0)])
        return -(targets_NC * log_p_NC).sum() / rows, gradient

    start = np.concatenate([np.full(classes, spread), centre_C - centre_C.mean()])
    bounds = [(0, None)] * classes + [(None, None)] * classes
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})
    scale_C, bias_C = found.x.reshape(2, classes)
    scale_C = scale_C / spread
    bias_C = bias_C - scale_C * centre_C
    return AffineCalibration(tuple(scale_C.tolist()), tuple((bias_C - bias_C[0]).tolist()), kind, "vector")
