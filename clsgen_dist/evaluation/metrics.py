"""The metrics of each label space, from probabilities and labels.

    every space   auroc, average_precision, f1, ece, nll
    multilabel    auroc, average_precision and f1 are means over the classes (macro); auroc_micro,
                  average_precision_micro, f1_micro over all answers; subset_accuracy; ece over all answers
    ordinal       quadratic_kappa, mae (of the median class); auroc is the mean over the cut points, ece over all of
                  them together

Labels are classes ``[N]``, or for multi-label answers ``[N, C]`` with NaN where not known. Rows without label must be
left out before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from clsgen_dist.evaluation import calibration_error, classification, confusion, multilabel, ordinal, ranking
from clsgen_dist.evaluation.finite import require_finite

# N rows, C classes

Kind = Literal["single", "multilabel", "ordinal"]
HIGHER_IS_BETTER = frozenset(
    {"auroc", "auroc_micro", "average_precision", "average_precision_micro", "f1", "f1_micro", "subset_accuracy",
     "quadratic_kappa", "accuracy", "balanced_accuracy", "mcc", "f1_macro", "ranking_precision"}
)  # fmt: skip
METRICS = {
    "single": ("auroc", "average_precision", "f1", "ece"),
    "multilabel": (
        "auroc", "auroc_micro", "average_precision", "average_precision_micro", "f1", "f1_micro", "subset_accuracy",
        "ece",
    ),
    "ordinal": ("auroc", "average_precision", "quadratic_kappa", "mae", "f1", "ece"),
}  # fmt: skip
"""Metrics of each label space besides the likelihood."""
WORDS = {
    "auroc": "AUROC", "auroc_micro": "AUROC micro", "average_precision": "AP", "average_precision_micro": "AP micro",
    "f1": "F1", "f1_micro": "F1 micro", "subset_accuracy": "subset accuracy", "quadratic_kappa": "quadratic kappa",
    "mae": "MAE", "ece": "ECE", "nll": "NLL", "brier": "Brier", "smooth_ece": "smooth ECE",
    "ece_mass": "ECE, equal mass", "ece_classwise": "classwise ECE", "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy", "mcc": "MCC", "f1_macro": "F1 macro", "hamming_loss": "Hamming loss",
    "ranking_precision": "label-ranking AP", "coverage_error": "coverage error",
}  # fmt: skip
"""The metrics in words."""


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """``[N]`` which rows have a label, or an answer for some class."""
    return np.asarray(labels >= 0) if labels.ndim == 1 else ~np.isnan(labels).all(axis=1)


def decide(
    probabilities_NC: np.ndarray, kind: Kind, positive: int = 1, thresholds: Sequence[float] | None = None
) -> np.ndarray:
    """The decision for each row: a class ``[N]``, or for multi-label a set ``[N, C]``.

    Args:
        probabilities_NC: of the classes.
        kind: the label space.
        positive: binary: the class to which the threshold belongs.
        thresholds: binary: one; multi-label: one a class. None: even odds.
    """
    if kind == "multilabel":
        return np.asarray(probabilities_NC >= np.asarray(0.5 if thresholds is None else thresholds))
    if kind == "ordinal":
        return ordinal.predicted_class(probabilities_NC)
    return classification.predicted_class(probabilities_NC, positive, thresholds[0] if thresholds else None)


def class_metrics(
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    positive: int = 1,
    thresholds: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics of the label space, those in ``names`` or all; NaN where one is undefined.

    The other arguments are those of :func:`decide`. ValueError if probabilities are not finite.
    """
    decided = decide(probabilities_NC, kind, positive, thresholds)
    metrics = metric_functions(probabilities_NC, labels, kind, positive, decided)
    return {name: metrics[name]() for name in names or metrics}


Metrics = dict[str, Callable[[], float]]
"""Metrics by name, computed when they are called."""


def metric_functions(
    probabilities_NC: np.ndarray, labels: np.ndarray, kind: Kind, positive: int, decided: np.ndarray
) -> Metrics:
    """The metrics of :func:`class_metrics`; ``decided`` is what :func:`decide` returns."""
    require_finite(probabilities_NC)
    if kind == "multilabel":
        return _of_answers(probabilities_NC, labels, decided)
    metrics = _of_classes(probabilities_NC, labels, decided, positive)
    if kind == "ordinal":
        classes = probabilities_NC.shape[1]
        metrics["auroc"] = lambda: ordinal.auroc(probabilities_NC, labels)
        metrics["ece"] = lambda: ordinal.ece(probabilities_NC, labels)
        metrics["quadratic_kappa"] = lambda: ordinal.quadratic_kappa(decided, labels, classes)
        metrics["mae"] = lambda: ordinal.mean_absolute_error(decided, labels)
    return metrics


def _of_answers(p_NC: np.ndarray, answers_NC: np.ndarray, decided_NC: np.ndarray) -> Metrics:
    # An answer that is a probability counts as what is more likely.
    labels_NC = np.where(np.isnan(answers_NC), np.nan, answers_NC >= 0.5)
    return {
        "auroc": lambda: multilabel.macro(ranking.roc_auc, labels_NC, p_NC),
        "auroc_micro": lambda: multilabel.micro(ranking.roc_auc, labels_NC, p_NC),
        "average_precision": lambda: multilabel.macro(ranking.average_precision, labels_NC, p_NC),
        "average_precision_micro": lambda: multilabel.micro(ranking.average_precision, labels_NC, p_NC),
        "f1": lambda: multilabel.f1(labels_NC, decided_NC)[0],
        "f1_micro": lambda: multilabel.f1(labels_NC, decided_NC)[1],
        "subset_accuracy": lambda: multilabel.subset_accuracy(labels_NC, decided_NC),
        "ece": lambda: calibration_error.ece(*as_binary(p_NC, labels_NC)),
        "brier": lambda: calibration_error.brier(*as_binary(p_NC, labels_NC)),
        "nll": lambda: multilabel.nll(labels_NC, p_NC),
    }


def _of_classes(p_NC: np.ndarray, labels_N: np.ndarray, decided_N: np.ndarray, positive: int) -> Metrics:
    def f1() -> float:
        if p_NC.shape[1] == 2:
            return classification.f1_at((decided_N == positive).astype(float), labels_N == positive, 0.5)
        return confusion.macro_f1(confusion.confusion_matrix(decided_N, labels_N, p_NC.shape[1]))

    return {
        "auroc": lambda: classification.auroc(p_NC, labels_N, positive),
        "average_precision": lambda: classification.average_precision(p_NC, labels_N, positive),
        "f1": f1,
        "ece": lambda: calibration_error.ece(p_NC, labels_N, positive=positive),
        "brier": lambda: calibration_error.brier(p_NC, labels_N),
        "nll": lambda: calibration_error.nll(p_NC, labels_N),
    }


def as_binary(probabilities_NC: np.ndarray, labels_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All known answers of multi-label rows as one binary question: probabilities ``[M, 2]`` and labels ``[M]``."""
    known_NC = ~np.isnan(labels_NC)
    yes_M = probabilities_NC[known_NC]
    return np.stack([1 - yes_M, yes_M], axis=1), (labels_NC[known_NC] > 0.5).astype(int)
