"""Which calibration method suits the rows: cross-fitted negative log-likelihood, and the simplest that is good enough.

    l_m[i]   = -log p of row i's label, by method m fitted on the folds that row i is not in
    best     = the method with the least mean l
    chosen   = the simplest m with mean (l_m - l_best) <= standard error of that mean, over the same rows,
               and mean l_m <= mean l_none

The one-standard-error rule (Breiman et al. 1984) with the paired error: effects of rows that are hard for both methods
cancel. No calibration is the simplest method, so a model that is calibrated stays as it is. The likelihood is a proper
score; ECE is reported beside it, but not chosen by, since it rewards a model that knows nothing but the base rate.

Ten folds, stratified by class (multi-label: by the rarest class that applies), by a fixed seed over rows sorted by
their values: the choice does not depend on the order of the rows. Of clusters, such as the rows of a patient, each is
in one fold, and the standard errors are those of the sums over clusters. The chosen method is fitted to all of them.
Cost: ten times the fits: 10,000 rows take 4 s with two classes, 10 s with five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clsgen_dist.calibration.comparison import Comparison, Measured, Reason
from clsgen_dist.calibration.fitting_rows import sorted_rows
from clsgen_dist.calibration.interface import Calibration
from clsgen_dist.calibration.methods import (
    METHODS,
    classes_of,
    enough_answers,
    fit_checked,
    require_applicable,
    usable_rows,
)
from clsgen_dist.calibration.names import Method
from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.interval import cluster_sums
from clsgen_dist.evaluation.metrics import class_metrics
from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits

_FOLDS = 10
_SEED = 0


def choose(
    logits_NK: np.ndarray,
    labels: np.ndarray,
    kind: Kind = "single",
    method: Method | None = None,
    clusters_N: np.ndarray | None = None,
) -> tuple[Calibration, Comparison]:
    """The calibration that suits these rows, fitted to all of them, and what it was compared with.

    Args:
        logits_NK: raw logits.
        labels: class indices ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        kind: the label space.
        method: compare this one with no calibration, and take it; None: choose among all that apply.
        clusters_N: an id for each row; rows of the same id are alike. None: all rows are independent.

    Raises:
        SettingsError: ``method`` is not for this label space.
        DataError: the rows cannot be used, are of one cluster, or are fewer than ``method`` needs.
    """
    order_N = sorted_rows(logits_NK, labels, kind)
    logits_NK, labels = np.asarray(logits_NK, dtype=np.float64)[order_N], np.asarray(labels)[order_N]
    clusters_N = None if clusters_N is None else clusters_N[order_N]
    classes, rows = classes_of(logits_NK, kind), usable_rows(labels, kind)
    if method is None:
        applying = [name for name, spec in METHODS.items() if spec.applies(kind, classes)]
        needed = {name: METHODS[name].least_rows(classes) for name in applying}
        left_out = {str(name): least for name, least in needed.items() if least > rows}
        methods = [name for name in applying if name not in left_out]
    else:
        require_applicable(method, labels, kind, classes)
        methods, left_out = list(dict.fromkeys(("none", method))), {}
    measured = _measure(methods, logits_NK, labels, kind, clusters_N)
    chosen, reason = (method, Reason.GIVEN) if method else _simplest(methods, measured)
    fitted = fit_checked(chosen, logits_NK, labels, kind, enough_answers(chosen, labels, kind))
    return fitted, Comparison(chosen, reason, len(labels), measured, left_out)


def _simplest(methods: Sequence[Method], measured: Sequence[Measured]) -> tuple[Method, Reason]:
    """The first method that is good enough; they come from the simplest on, ``none`` first."""
    raw = measured[0]
    for method, scores in zip(methods, measured, strict=True):
        if scores.nll <= raw.nll and scores.behind <= scores.behind_error:
            return method, Reason.BEST if scores.behind == 0 else Reason.SIMPLER
    raise AssertionError("the best method is not behind itself")


def _measure(
    methods: Sequence[Method], logits_NK: np.ndarray, labels: np.ndarray, kind: Kind, clusters_N: np.ndarray | None
) -> list[Measured]:
    """Scores of rows that are checked, each row predicted by fits that have not seen it."""
    predicted = {name: cross_fitted(name, logits_NK, labels, kind, clusters_N) for name in methods}
    losses = {name: _losses(p_NC, labels, kind) for name, p_NC in predicted.items()}
    best = min(methods, key=lambda name: losses[name].mean())  # of equals the simplest

    def scores(name: Method) -> Measured:
        ece = class_metrics(predicted[name], labels, kind, names=("ece",))["ece"]
        behind_N = losses[name] - losses[best]
        return Measured(name, *_mean_and_error(losses[name], clusters_N), ece, *_mean_and_error(behind_N, clusters_N))

    return [scores(name) for name in methods]


def cross_fitted(
    method: Method, logits_NK: np.ndarray, labels: np.ndarray, kind: Kind, clusters_N: np.ndarray | None = None
) -> np.ndarray:
    """``[N, C]`` probabilities of each row by the fit that has not seen it; rows are sorted and checked."""
    enough_C = enough_answers(method, labels, kind)
    fold_N = folds(labels, kind, clusters_N)
    p_NC = np.empty((len(labels), classes_of(logits_NK, kind)))
    for fold in range(fold_N.max() + 1):
        out_N = fold_N == fold
        fitted = fit_checked(method, logits_NK[~out_N], labels[~out_N], kind, enough_C)
        p_NC[out_N] = fitted.probabilities(logits_NK[out_N])
    return p_NC


def folds(labels: np.ndarray, kind: Kind, clusters_N: np.ndarray | None = None) -> np.ndarray:
    """``[N]`` fold of each row, with as many rows of each class in each as can be.

    A cluster is in one fold, and counts as the largest of its classes.

    Raises:
        DataError: all rows are of one cluster.
    """
    stratum_N = _rarest_class(labels) if kind == "multilabel" else labels
    ids_N = np.arange(len(labels)) if clusters_N is None else np.unique(clusters_N, return_inverse=True)[1]
    stratum_K = np.zeros(ids_N.max() + 1, dtype=int)
    np.maximum.at(stratum_K, ids_N, stratum_N)
    if len(stratum_K) < 2:
        raise DataError(
            f"all {len(labels)} rows are of one cluster, expected two or more to see how a fit does on others; add "
            "rows, or leave out --columns.cluster"
        )
    shuffled_K = np.random.default_rng(_SEED).permutation(len(stratum_K))
    order_K = shuffled_K[np.argsort(stratum_K[shuffled_K], kind="stable")]
    fold_K = np.empty(len(stratum_K), dtype=int)
    fold_K[order_K] = np.arange(len(stratum_K)) % _FOLDS
    return np.asarray(fold_K[ids_N])


def _rarest_class(answers_NC: np.ndarray) -> np.ndarray:
    """``[N]`` the rarest class that applies to the row; C for none."""
    yes_NC = np.nan_to_num(answers_NC) >= 0.5
    from_rare_C = np.argsort(yes_NC.sum(axis=0), kind="stable")
    first_N = yes_NC[:, from_rare_C].argmax(axis=1)
    return np.where(yes_NC.any(axis=1), from_rare_C[first_N], answers_NC.shape[1])


def _losses(p_NC: np.ndarray, labels: np.ndarray, kind: Kind) -> np.ndarray:
    """``[N]`` negative log-likelihood of each row; multi-label: of its known answers together."""
    if kind != "multilabel":
        return -np.log(p_NC[np.arange(len(labels)), labels])
    own_NC = np.where(labels >= 0.5, p_NC, 1 - p_NC)
    return -np.where(np.isnan(labels), 0.0, np.log(own_NC)).sum(axis=1)


def _mean_and_error(values_N: np.ndarray, clusters_N: np.ndarray | None) -> tuple[float, float]:
    mean = float(values_N.mean())
    sums_K = cluster_sums(values_N - mean, np.arange(len(values_N)) if clusters_N is None else clusters_N)
    return mean, math.sqrt(len(sums_K) / (len(sums_K) - 1) * (sums_K**2).sum()) / len(values_N)
