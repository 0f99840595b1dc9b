"""Two models on the same rows: paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference, paired_difference
from clsgen_dist.evaluation.delong import delong_test
from clsgen_dist.evaluation.full_metrics import full_metrics
from clsgen_dist.evaluation.mcnemar import mcnemar
from clsgen_dist.evaluation.metrics import class_metrics, decide
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes

COMPARED = ("auroc", "average_precision", "f1", "ece", "brier", "nll")


def compared_metrics(
    first_NC: np.ndarray,
    second_NC: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    thresholds: tuple[Sequence[float] | None, Sequence[float] | None],
    *,
    clusters_N: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, Difference]]:
    """Metrics of the second model, and first minus second with intervals and p-values.

    Args:
        first_NC: probabilities of the first model.
        second_NC: of the second.
        labels: classes ``[N]``, or answers ``[N, C]``.
        space: of both.
        thresholds: of the decisions of both.
        clusters_N: rows that belong together are resampled together, and the tests that need independent rows are not
            used.
    """
    kind, positive = space.kind, space.positive_index
    names = [name for name in COMPARED if name in class_metrics(first_NC, labels, kind, positive)]

    def statistic(p_NC: np.ndarray, given: Sequence[float] | None, name: str, index: np.ndarray) -> float:
        return class_metrics(p_NC[index], labels[index], kind, positive, given, (name,))[name]

    strata_N = labels if kind != "multilabel" else None
    differences = {
        name: paired_difference(
            lambda index, name=name: statistic(first_NC, thresholds[0], name, index),  # type: ignore[misc]
            lambda index, name=name: statistic(second_NC, thresholds[1], name, index),  # type: ignore[misc]
            len(labels),
            resamples=1000,
            strata_N=strata_N,
            clusters_N=clusters_N,
        )
        for name in names
    }
    if kind != "multilabel" and clusters_N is None:
        if space.is_binary and kind == "single":
            differences["auroc"] = delong_test(first_NC[:, positive], second_NC[:, positive], labels == positive)
        right = [
            decide(p, kind, positive, given) == labels
            for p, given in zip((first_NC, second_NC), thresholds, strict=True)
        ]
        differences["accuracy"] = mcnemar(*right)
    return full_metrics(second_NC, labels, kind, positive, thresholds[1]), differences
