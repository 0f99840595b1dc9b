"""Every metric with its 95 % interval, by the method that keeps its promise on few rows and on clusters of alike rows.

    AUROC                                    DeLong's variance on the logit scale (``delong``)
    accuracy, subset accuracy, Hamming loss  Wilson's interval of a share (``interval``)
    ECE, of equal width and mass             inverting a test (``calibration_error``)
    smooth and classwise ECE                 none: resamples have their bias twice
    all others                               BCa bootstrap of rows, or of whole clusters (``bootstrap``)

No interval is given where the rows cannot give one: a bootstrap whose resamples all agree, as for an F1 of 1, says
nothing of other rows. Several answers of one row, as of multi-label rows, are a cluster. Cost: 1,200 calls of the
bootstrapped metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clsgen_dist.evaluation.bootstrap import bootstrap_intervals
from clsgen_dist.evaluation.calibration_error import ece_interval
from clsgen_dist.evaluation.delong import RankedQuestion, mean_auroc_interval
from clsgen_dist.evaluation.full_metrics import full_metrics
from clsgen_dist.evaluation.interval import UNDEFINED, Estimate, Interval, share_interval
from clsgen_dist.evaluation.metrics import Kind, decide
from clsgen_dist.evaluation.questions import class_questions, pooled_question
from clsgen_dist.evaluation.reliability import Binning

# N rows, C classes

NO_INTERVAL = frozenset({"smooth_ece", "ece_classwise"})
NOT_RESAMPLED = NO_INTERVAL | {"ece", "ece_mass"}
"""Metrics whose bootstrap intervals are wrong, of differences too."""


def metric_estimates(
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    positive: int = 1,
    thresholds: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    *,
    clusters_N: np.ndarray | None = None,
    resamples: int = 1000,
) -> dict[str, Estimate]:
    """The metrics of :func:`full_metrics`, whose arguments these are; ``clusters_N``: an id for each row."""

    def metrics(index: np.ndarray, asked: Sequence[str] | None) -> dict[str, float]:
        return full_metrics(probabilities_NC[index], labels[index], kind, positive, thresholds, asked)

    values = metrics(np.arange(len(labels)), names)
    direct = _direct_intervals(probabilities_NC, labels, kind, positive, thresholds, clusters_N)
    resampled = [name for name in values if name not in direct and name not in NO_INTERVAL]
    intervals = dict.fromkeys(NO_INTERVAL, UNDEFINED) | {name: direct[name]() for name in values if name in direct}
    if resampled:
        found = bootstrap_intervals(
            lambda index: metrics(index, resampled),
            len(labels),
            resamples=resamples,
            clusters_N=clusters_N,
            method="bca",
        )
        intervals |= {name: UNDEFINED if i.low == i.high else i for name, i in found.items()}
    return {name: Estimate(v, UNDEFINED if np.isnan(v) else intervals[name]) for name, v in values.items()}


def _direct_intervals(
    p_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    positive: int,
    thresholds: Sequence[float] | None,
    clusters_N: np.ndarray | None,
) -> dict[str, Callable[[], Interval]]:
    """Those that need no bootstrap, by metric."""
    pooled = pooled_question(p_NC, labels, kind, positive)
    cluster_M = pooled.clusters(clusters_N)
    decided = decide(p_NC, kind, positive, thresholds)

    def of_ece(binning: Binning) -> Interval:
        return ece_interval(
            pooled.probability_M, pooled.outcome_M, binning=binning,
            clusters_N=cluster_M,
        )  # fmt: skip

    found: dict[str, Callable[[], Interval]] = {
        "auroc": lambda: mean_auroc_interval(_ranked(p_NC, labels, kind, positive, clusters_N)).interval,
        "ece": lambda: of_ece("width"),
        "ece_mass": lambda: of_ece("mass"),
    }
    if kind != "multilabel":
        return found | {"accuracy": lambda: share_interval(decided == labels, clusters_N=clusters_N)}
    ids_N = np.arange(len(labels)) if clusters_N is None else clusters_N
    known_NC = ~np.isnan(labels)
    whole_N, wrong_NC = known_NC.all(axis=1), decided != (labels >= 0.5)
    every = RankedQuestion(pooled.probability_M, pooled.outcome_M, ids_N[pooled.row_M])
    return found | {
        "auroc_micro": lambda: mean_auroc_interval([every]).interval,
        "subset_accuracy": lambda: share_interval(
            ~wrong_NC[whole_N].any(axis=1), clusters_N=None if clusters_N is None else clusters_N[whole_N]
        ),
        "hamming_loss": lambda: share_interval(
            wrong_NC[known_NC], clusters_N=np.broadcast_to(ids_N[:, None], known_NC.shape)[known_NC]
        ),
    }


def _ranked(
    p_NC: np.ndarray, labels: np.ndarray, kind: Kind, positive: int, clusters_N: np.ndarray | None
) -> list[RankedQuestion]:
    """The questions whose mean AUROC is that of the label space."""
    questions = class_questions(p_NC, labels, kind)
    if kind == "single" and p_NC.shape[1] == 2:
        questions = [questions[positive]]
    ids_N = np.arange(len(labels)) if clusters_N is None else clusters_N
    # Ordered classes are ranked by the expected one, whatever the cut point.
    expected_N = p_NC @ np.arange(p_NC.shape[1])
    return [
        RankedQuestion(
            expected_N if kind == "ordinal" else question.probability_M, question.outcome_M, ids_N[question.row_M]
        )
        for question in questions
    ]
