"""Every metric of a label space, for a report; ``class_metrics`` has the cheap ones for training.

    every space   those of class_metrics, and smooth_ece, ece_mass, ece_classwise (over classes, answers or cut points)
    single        accuracy, balanced_accuracy, mcc, f1_macro
    multilabel    subset_accuracy, hamming_loss, ranking_precision, coverage_error
    ordinal       quadratic_kappa, mae, and those of single

What the rows do not define is NaN. Cost on 400 rows: 10 ms for two classes, 30 for five, 120 for five multi-label ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation import confusion, multilabel, ranking
from clsgen_dist.evaluation.calibration_error import binned_ece
from clsgen_dist.evaluation.confusion import ClassScores, class_scores, confusion_matrix
from clsgen_dist.evaluation.metrics import Kind, Metrics, decide, metric_functions
from clsgen_dist.evaluation.questions import Question, class_questions, mean_over_questions, pooled_question
from clsgen_dist.evaluation.smooth_ece import smooth_ece

# N rows, C classes, Q questions: C classes, or C - 1 cut points of ordered ones


@dataclass(frozen=True)
class PerClass:
    """Metrics of each class: of decisions ``[C]``, of probabilities ``[Q]`` by :func:`class_questions`."""

    decisions: ClassScores
    auroc_Q: np.ndarray
    average_precision_Q: np.ndarray
    ece_Q: np.ndarray


def full_metrics(
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    positive: int = 1,
    thresholds: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The scalar metrics by name, those in ``names`` or all; arguments as for :func:`class_metrics`."""
    decided = decide(probabilities_NC, kind, positive, thresholds)
    metrics = metric_functions(probabilities_NC, labels, kind, positive, decided)
    metrics |= _of_calibration(probabilities_NC, labels, kind, positive)
    if kind == "multilabel":
        metrics |= _of_sets(probabilities_NC, labels, decided)
    else:
        metrics |= _of_confusion(confusion_matrix(decided, labels, probabilities_NC.shape[1]))
    return {name: metrics[name]() for name in names or metrics}


def _of_calibration(p_NC: np.ndarray, labels: np.ndarray, kind: Kind, positive: int) -> Metrics:
    def pooled(measure: Callable[..., float], **options: str) -> float:
        question = pooled_question(p_NC, labels, kind, positive)
        return measure(question.probability_M, question.outcome_M, **options)

    return {
        "smooth_ece": lambda: pooled(smooth_ece),
        "ece_mass": lambda: pooled(binned_ece, binning="mass"),
        "ece_classwise": lambda: mean_over_questions(binned_ece, class_questions(p_NC, labels, kind)),
    }


def _of_sets(p_NC: np.ndarray, answers_NC: np.ndarray, decided_NC: np.ndarray) -> Metrics:
    labels_NC = np.where(np.isnan(answers_NC), np.nan, answers_NC >= 0.5)
    return {
        "hamming_loss": lambda: multilabel.hamming_loss(labels_NC, decided_NC),
        "ranking_precision": lambda: multilabel.ranking_precision(labels_NC, p_NC),
        "coverage_error": lambda: multilabel.coverage_error(labels_NC, p_NC),
    }


def _of_confusion(confusion_CC: np.ndarray) -> Metrics:
    return {
        "accuracy": lambda: confusion.accuracy(confusion_CC),
        "balanced_accuracy": lambda: confusion.balanced_accuracy(confusion_CC),
        "mcc": lambda: confusion.mcc(confusion_CC),
        "f1_macro": lambda: confusion.macro_f1(confusion_CC),
    }


def per_class(
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    positive: int = 1,
    thresholds: Sequence[float] | None = None,
) -> PerClass:
    """The metrics of each class; arguments as for :func:`class_metrics`."""
    decided = decide(probabilities_NC, kind, positive, thresholds)
    if kind == "multilabel":
        decisions = multilabel.class_scores(np.where(np.isnan(labels), np.nan, labels >= 0.5), decided)
    else:
        decisions = class_scores(confusion_matrix(decided, labels, probabilities_NC.shape[1]))
    questions = class_questions(probabilities_NC, labels, kind)
    return PerClass(
        decisions,
        np.array([_ranking(ranking.roc_auc, question) for question in questions]),
        np.array([_ranking(ranking.average_precision, question) for question in questions]),
        np.array([binned_ece(question.probability_M, question.outcome_M) for question in questions]),
    )


def _ranking(metric: Callable[[np.ndarray, np.ndarray], float], question: Question) -> float:
    both = len(np.unique(question.outcome_M)) == 2
    return float(metric(question.outcome_M, question.probability_M)) if both else float("nan")
