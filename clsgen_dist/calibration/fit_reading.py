"""All that is fitted to one reading of the head: calibration, its correction for the deployed prevalence, decisions.

In: raw logits and labels of held-out rows. Out: what ``clsgen.json`` keeps of it. Cost: that of
:mod:`clsgen_dist.calibration.choice`, and ten fits more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from clsgen_dist.calibration.choice import choose, cross_fitted
from clsgen_dist.calibration.comparison import Comparison
from clsgen_dist.calibration.decisions import DecisionRules, Decisions, HeldOut, fit_decisions
from clsgen_dist.calibration.fitting_rows import sorted_rows
from clsgen_dist.calibration.interface import Calibration
from clsgen_dist.calibration.names import Method
from clsgen_dist.calibration.prevalence import Prevalence, PriorCorrected, estimated_prevalence, stated_prevalence
from clsgen_dist.calibration.prior_shift import prevalences
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes, K logits


@dataclass(frozen=True)
class FittedReading:
    """What was fitted."""

    calibration: Calibration
    """Corrected for the deployed prevalence, if it is another."""
    comparison: Comparison
    decisions: Decisions


def fit_reading(
    logits_NK: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    method: Method | None = None,
    rules: DecisionRules | None = None,
    *,
    prevalence: str | None = None,
    unlabelled_NK: np.ndarray | None = None,
    clusters_N: np.ndarray | None = None,
) -> FittedReading:
    """Fit one reading.

    Args:
        logits_NK: raw logits of held-out rows.
        labels: classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        space: the label space.
        method: the calibration's; None: chosen among all that apply.
        rules: what to decide by; None: the threshold with the best F1.
        prevalence: stated shares where the model is used, ``a=0.2,b=0.1``; None: not stated.
        unlabelled_NK: raw logits of rows from there, to estimate the shares; None: not estimated.
        clusters_N: an id for each held-out row; rows of the same id are alike. None: all are independent.

    Raises:
        SettingsError: method, rules or prevalence do not fit the label space.
        DataError: the rows cannot be used, or nothing achieves what is asked.
    """
    kind, rules = space.kind, rules or DecisionRules()
    order_N = sorted_rows(logits_NK, labels, kind)
    logits_NK, labels = np.asarray(logits_NK, dtype=np.float64)[order_N], np.asarray(labels)[order_N]
    clusters_N = None if clusters_N is None else clusters_N[order_N]
    calibration, comparison = choose(logits_NK, labels, kind, method, clusters_N)
    unseen_NC = cross_fitted(cast(Method, comparison.method), logits_NK, labels, kind, clusters_N)
    fitted_C = prevalences(labels, len(space), kind)
    deployed: Prevalence | None = None
    if prevalence is not None:
        deployed = stated_prevalence(prevalence, space.names, fitted_C, kind)
    elif unlabelled_NK is not None:
        deployed = estimated_prevalence(calibration.probabilities(unlabelled_NK), space.names, fitted_C, kind)
    if deployed is not None:
        calibration, unseen_NC = PriorCorrected(calibration, deployed, kind), deployed.corrected(unseen_NC, kind)
    rows = HeldOut(logits_NK, calibration.probabilities(logits_NK), unseen_NC, labels, deployed, clusters_N)
    return FittedReading(calibration, comparison, fit_decisions(rules, rows, space))
