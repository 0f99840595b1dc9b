"""Metrics of decisions, all from the confusion matrix.

    rows are labels, columns decisions            recall_c = M_cc / Σ_j M_cj        precision_c = M_cc / Σ_i M_ic
    accuracy             share of rows decided right; F1 micro and recall micro are the same number
    balanced accuracy    mean recall of the classes that have rows (Brodersen et al. 2010)
    MCC                  correlation of labels and decisions over all cells (Matthews 1975; Gorodkin 2004)

Equal to scikit-learn's. What is undefined is NaN: the recall of a class without rows, the precision of one that is
never decided. Cost: one pass over N rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# N rows, C classes


@dataclass(frozen=True)
class ClassScores:
    """Metrics of each class, ``[C]``."""

    precision_C: np.ndarray
    recall_C: np.ndarray
    f1_C: np.ndarray
    """NaN for a class that is neither in labels nor decisions."""
    support_C: np.ndarray
    """Rows with the label."""


def confusion_matrix(decided_N: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """``[C, C]`` number of rows by label (first axis) and decision."""
    flat = np.bincount(labels_N * classes + decided_N, minlength=classes**2)
    return flat.reshape(classes, classes)


def class_scores(confusion_CC: np.ndarray) -> ClassScores:
    """Precision, recall, F1 and support of each class."""
    return scores_from_counts(np.diag(confusion_CC), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0))


def scores_from_counts(right_C: np.ndarray, support_C: np.ndarray, decided_C: np.ndarray) -> ClassScores:
    """The scores from the rows that are both, labelled and decided as the class."""
    return ClassScores(
        _ratio(right_C, decided_C), _ratio(right_C, support_C), _ratio(2 * right_C, support_C + decided_C), support_C
    )


def macro_f1(confusion_CC: np.ndarray) -> float:
    """Mean F1 of the classes that occur in labels or decisions; NaN without rows."""
    return _mean(class_scores(confusion_CC).f1_C)


def accuracy(confusion_CC: np.ndarray) -> float:
    """Share of rows decided right; NaN without rows."""
    return float(_ratio(np.trace(confusion_CC), confusion_CC.sum()))


def balanced_accuracy(confusion_CC: np.ndarray) -> float:
    """Mean recall of the classes that have rows; NaN without rows."""
    return _mean(class_scores(confusion_CC).recall_C)


def mcc(confusion_CC: np.ndarray) -> float:
    """Matthews correlation coefficient, -1 to 1; 0 if every decision is the same, NaN if every label is."""
    confusion_CC = confusion_CC.astype(np.float64)
    support_C, decided_C, rows = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0), confusion_CC.sum()
    of_labels = rows**2 - (support_C**2).sum()
    of_decisions = rows**2 - (decided_C**2).sum()
    if of_labels == 0:
        return float("nan")
    if of_decisions == 0:
        return 0.0
    return float((np.trace(confusion_CC) * rows - support_C @ decided_C) / np.sqrt(of_labels * of_decisions))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values_C: np.ndarray) -> float:
    defined = values_C[~np.isnan(values_C)]
    return float(defined.mean()) if len(defined) else float("nan")
