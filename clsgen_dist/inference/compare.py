"""Two models on the same rows: paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference, paired_difference
from clsgen_dist.evaluation.delong import delong_test
from clsgen_dist.evaluation.full_metrics import full_metrics
from clsgen_dist.evaluation.interval import UNDEFINED
from clsgen_dist.evaluation.mcnemar import mcnemar
from clsgen_dist.evaluation.metric_estimates import NOT_RESAMPLED
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes

COMPARED = ("auroc", "average_precision", "f1", "accuracy", "ece", "brier", "nll")


def compared_metrics(
    first_NC: np.ndarray,
    second_NC: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    thresholds: tuple[Sequence[float] | None, Sequence[float] | None],
    *,
    clusters_N: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, Difference]]:
    """Metrics of the second model, and first minus second with intervals and p-values; of ECE the difference alone.

    Args:
        first_NC: probabilities of the first model.
        second_NC: of the second.
        labels: classes ``[N]``, or answers ``[N, C]``.
        space: of both.
        thresholds: of the decisions of both.
        clusters_N: rows that belong together; AUROC then has the test for clusters, and accuracy a bootstrap of them
            instead of McNemar's test.
    """
    kind, positive = space.kind, space.positive_index
    first = full_metrics(first_NC, labels, kind, positive, thresholds[0])
    second = full_metrics(second_NC, labels, kind, positive, thresholds[1])

    def statistic(p_NC: np.ndarray, given: Sequence[float] | None, name: str, index: np.ndarray) -> float:
        return full_metrics(p_NC[index], labels[index], kind, positive, given, (name,))[name]

    def difference(name: str) -> Difference:
        if name in NOT_RESAMPLED:
            return Difference(first[name] - second[name], UNDEFINED, float("nan"))
        if name == "auroc" and kind == "single" and space.is_binary:
            scores = first_NC[:, positive], second_NC[:, positive]
            return delong_test(*scores, labels == positive, clusters_N=clusters_N)
        if name == "accuracy" and clusters_N is None:
            pairs = zip((first_NC, second_NC), thresholds, strict=True)
            return mcnemar(*(decide(p, kind, positive, given) == labels for p, given in pairs))
        return paired_difference(
            lambda index: statistic(first_NC, thresholds[0], name, index),
            lambda index: statistic(second_NC, thresholds[1], name, index),
            len(labels),
            resamples=1000,
            clusters_N=clusters_N,
        )

    return second, {name: difference(name) for name in COMPARED if name in first}
