"""Calibration of a label space by yes-no questions, one curve each.

    single, two classes   one question: the second class or the first, x = z_1 - z_0
    single, more classes  one against the rest, x = logit of softmax(z)_c; the answers divided by their sum
    multilabel            one for each class, x = z_c, on the rows where it is known
    ordinal               one for each cut point, P(y > k), x = z_k; sorted where curves cross, which never moves
                          them away from the truth (rearrangement, Chernozhukov et al. 2010)

A multi-label class with too few known answers for the method gets Platt scaling; one with fewer than ten, or with
answers of one kind, is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.calibration.curves import UNCHANGED, Curve, curve_from_json, platt_curve
from clsgen_dist.calibration.fitting_rows import LEAST_ROWS, fittable_classes, known_rows
from clsgen_dist.calibration.interface import within_limits
from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits, Q questions

FitCurve = Callable[[np.ndarray, np.ndarray], Curve]
"""Takes the log-odds and the answers 0 and 1 of one question."""


@dataclass(frozen=True)
class QuestionCalibration:
    """A curve for each question."""

    method: str
    kind: Kind
    curves_Q: tuple[Curve, ...]
    smallest: float
    """Smallest probability."""

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``[N, C]``."""
        x_NQ = log_odds(logits_NK, self.kind)
        yes_NQ = np.stack([curve(x_N) for curve, x_N in zip(self.curves_Q, x_NQ.T, strict=True)], axis=1)
        return within_limits(_classes(yes_NQ, self.kind), self.kind, self.smallest)

    def to_json(self) -> dict[str, Any]:
        """Method, curves and the smallest probability."""
        curves = [curve.to_json() for curve in self.curves_Q]
        return {"method": self.method, "smallest": self.smallest, "curves": curves}

    @classmethod
    def from_json(cls, fields: dict[str, Any], kind: Kind) -> QuestionCalibration:
        """Inverse of :meth:`to_json`."""
        curves = tuple(curve_from_json(curve) for curve in fields["curves"])
        return cls(fields["method"], kind, curves, float(fields["smallest"]))


def fit_questions(
    method: str,
    fit_curve: FitCurve,
    logits_NK: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    *,
    smallest: float,
    enough_Q: np.ndarray | None = None,
) -> QuestionCalibration:
    """A curve for each question, on rows that are checked.

    Args:
        method: name of the calibration.
        fit_curve: fits one curve.
        logits_NK: raw logits.
        labels: classes ``[N]``, or answers ``[N, C]``.
        kind: the label space.
        smallest: smallest probability of the calibration.
        enough_Q: multi-label: which classes have enough answers for ``fit_curve``; None: all.
    """
    x_NQ, answers_NQ = log_odds(logits_NK, kind), _answers(labels, kind, logits_NK.shape[1])
    curves: list[Curve] = []
    fittable_Q = fittable_classes(answers_NQ, LEAST_ROWS) if kind == "multilabel" else np.ones(x_NQ.shape[1], bool)
    for question, fittable in enumerate(fittable_Q):
        fit = fit_curve if enough_Q is None or enough_Q[question] else platt_curve
        rows = known_rows(x_NQ[:, question], answers_NQ[:, question])
        curves.append(fit(*rows) if fittable else UNCHANGED)
    return QuestionCalibration(method, kind, tuple(curves), smallest)


def log_odds(logits_NK: np.ndarray, kind: Kind) -> np.ndarray:
    """``[N, Q]`` log-odds of the questions before calibration."""
    from scipy.special import log_softmax, logsumexp

    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    if kind != "single":
        return logits_NK
    if logits_NK.shape[1] == 2:
        return logits_NK[:, 1:] - logits_NK[:, :1]
    log_p_NC = log_softmax(logits_NK, axis=1)
    top_N1 = log_p_NC.argmax(axis=1, keepdims=True)
    top_log_p_N1 = np.take_along_axis(log_p_NC, top_N1, axis=1)
    np.put_along_axis(log_p_NC, top_N1, -np.inf, axis=1)
    log_odds_NC = log_p_NC - np.log1p(-np.exp(log_p_NC))
    # 1 - p of the most probable class may round to 0; the sum of the others does not.
    top_log_odds_N1 = top_log_p_N1 - logsumexp(log_p_NC, axis=1, keepdims=True)
    np.put_along_axis(log_odds_NC, top_N1, top_log_odds_N1, axis=1)
    return np.asarray(log_odds_NC)


def _answers(labels: np.ndarray, kind: Kind, outputs: int) -> np.ndarray:
    """``[N, Q]`` answers to the questions."""
    if kind == "multilabel":
        return labels
    if kind == "ordinal":
        return (labels[:, None] > np.arange(outputs)).astype(float)
    classes = np.arange(outputs) if outputs > 2 else np.array([1])
    return (labels[:, None] == classes).astype(float)


def _classes(yes_NQ: np.ndarray, kind: Kind) -> np.ndarray:
    """``[N, C]`` probabilities of the classes from those of the questions."""
    if kind == "multilabel":
        return yes_NQ
    if kind == "ordinal":
        falling_NQ = np.sort(yes_NQ, axis=1)[:, ::-1]
        edges = np.ones((len(yes_NQ), 1)), np.zeros((len(yes_NQ), 1))
        return -np.diff(np.hstack([edges[0], falling_NQ, edges[1]]), axis=1)
    if yes_NQ.shape[1] == 1:
        return np.hstack([1 - yes_NQ, yes_NQ])
    return np.asarray(yes_NQ / np.maximum(yes_NQ.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))
