"""Calibration of any label space as that of yes-no questions: a probability, and whether it came true.

    label space          pooled question (one number for the model)     one question each
    two classes          is it the positive class?                      the same
    more classes         is the most probable class right? (top label)  is it class c?
    multi-label          all known answers together                     is class c there? (rows where it is known)
    ordered classes      all cut points together                        is it above class k?

Every measure of calibration takes a question. A pooled one of multi-label or ordered classes has several answers a row,
which are alike: give its ``clusters`` to what computes intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.metrics import Kind

# N rows, C classes, M answers


@dataclass(frozen=True)
class Question:
    """Answers to one yes-no question."""

    probability_M: np.ndarray
    """Of yes."""
    outcome_M: np.ndarray
    """Boolean."""
    row_M: np.ndarray
    """The row of each answer."""

    def clusters(self, clusters_N: np.ndarray | None = None) -> np.ndarray | None:
        """``[M]`` the cluster of each answer, by those of the rows; None if all answers are independent."""
        cluster_M = self.row_M if clusters_N is None else clusters_N[self.row_M]
        return None if len(np.unique(cluster_M)) == len(cluster_M) else cluster_M


def pooled_question(probabilities_NC: np.ndarray, labels: np.ndarray, kind: Kind, positive: int = 1) -> Question:
    """The question by which the calibration of the label space is summed up; labels as for ``class_metrics``."""
    if kind == "single" and probabilities_NC.shape[1] > 2:
        right_N = probabilities_NC.argmax(axis=1) == labels
        return Question(probabilities_NC.max(axis=1), right_N, np.arange(len(labels)))
    each = class_questions(probabilities_NC, labels, kind)
    if kind == "single":
        return each[positive]
    return Question(
        np.concatenate([question.probability_M for question in each]),
        np.concatenate([question.outcome_M for question in each]),
        np.concatenate([question.row_M for question in each]),
    )


def class_questions(probabilities_NC: np.ndarray, labels: np.ndarray, kind: Kind) -> list[Question]:
    """A question for each class; for ordered classes for each of the C - 1 cut points, from the lowest."""
    row_N = np.arange(len(labels))
    classes = range(probabilities_NC.shape[1])
    if kind == "multilabel":
        known_NC = ~np.isnan(labels)
        return [
            Question(probabilities_NC[known_N, c], labels[known_N, c] >= 0.5, row_N[known_N])
            for c, known_N in zip(classes, known_NC.T, strict=True)
        ]
    if kind == "ordinal":
        above_NC = 1 - probabilities_NC.cumsum(axis=1)
        return [Question(above_NC[:, k].clip(0, 1), labels > k, row_N) for k in classes[:-1]]
    return [Question(probabilities_NC[:, c], labels == c, row_N) for c in classes]


def mean_over_questions(measure: Callable[[np.ndarray, np.ndarray], float], questions: list[Question]) -> float:
    """Mean of a measure over questions with answers: classwise ECE is that of the ECE (Kull et al. 2019)."""
    values = [measure(question.probability_M, question.outcome_M) for question in questions]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
