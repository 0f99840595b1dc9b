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
from clsgen_dist.evaluation.metrics import Kind, class_metrics, decide
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
) -> dict[str, float]:
    """The scalar metrics by name; arguments as for :func:`class_metrics`."""
    decided = decide(probabilities_NC, kind, positive, thresholds)
    found = class_metrics(probabilities_NC, labels, kind, positive, thresholds)
    pooled = pooled_question(probabilities_NC, labels, kind, positive)
    found["smooth_ece"] = smooth_ece(pooled.probability_M, pooled.outcome_M)
    found["ece_mass"] = binned_ece(pooled.probability_M, pooled.outcome_M, binning="mass")
    found["ece_classwise"] = mean_over_questions(binned_ece, class_questions(probabilities_NC, labels, kind))
    if kind == "multilabel":
        answers_NC = np.where(np.isnan(labels), np.nan, labels >= 0.5)
        found["hamming_loss"] = multilabel.hamming_loss(answers_NC, decided)
        found["ranking_precision"] = multilabel.ranking_precision(answers_NC, probabilities_NC)
        found["coverage_error"] = multilabel.coverage_error(answers_NC, probabilities_NC)
        return found
    confusion_CC = confusion_matrix(decided, labels, probabilities_NC.shape[1])
    found["accuracy"] = confusion.accuracy(confusion_CC)
    found["balanced_accuracy"] = confusion.balanced_accuracy(confusion_CC)
    found["mcc"] = confusion.mcc(confusion_CC)
    found["f1_macro"] = confusion.macro_f1(confusion_CC)
    return found


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
