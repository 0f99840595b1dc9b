"""Unequal classes: weights of their losses, what these do to the probabilities, and how it is undone.

Class weights and balanced sampling reweigh the rows, so the probabilities that are learnt are those of reweighted rows:
with weight w_c on class c the optimum is p'_c ∝ w_c p_c. For one class a row that is undone exactly, by -log w_c on the
head's bias outside training. A multi-label class has its own logit, from which its weight cancels; balanced sampling
does not. That, focal loss, label smoothing, and balanced sampling of ordinal labels cannot be undone: what they distort
is left to recalibration, and :func:`distortions` says so.

Cost: none a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.label_space import Kind, LabelSpace
from clsgen_dist.objectives.settings import ObjectivesSettings

# C classes

_MOST = 10.0
"""Largest balanced weight of a multi-label class: it multiplies the loss of rows that do not have it too."""


def class_weights(
    objectives: ObjectivesSettings, labels: LabelSpace, rows_C: Sequence[float] | None
) -> tuple[float, ...] | None:
    """The factor of each class's loss; None if there are none.

    Args:
        objectives: the settings.
        labels: the label space.
        rows_C: training rows of each class; None if they are not known (streamed shards).

    Raises:
        SettingsError: class weights that do not fit the label space, or that need counts which are not known.
    """
    given = objectives.classification.class_weights
    name = "objectives.classification.class_weights"
    if given is None:
        return None
    if labels.kind == "ordinal":
        raise SettingsError(f"{name} is {given!r} with ordinal labels, which are learnt by their cut points; drop it")
    if given == "balanced":
        rows_C = _known(rows_C, "class_weights=balanced")
        mean = sum(rows_C) / len(rows_C)
        most = _MOST if labels.kind == "multilabel" else float("inf")
        return tuple(min(mean / count, most) if count else 1.0 for count in rows_C)
    if unknown := sorted(set(given) - set(labels.names), key=str):
        raise SettingsError(f"{name} names {unknown[0]!r}, expected names of {list(labels.names)}; fix it")
    return tuple(given.get(label, 1.0) for label in labels.names)


def bias_correction(
    weights: Sequence[float] | None, labels: LabelSpace, rows_C: Sequence[float] | None, *, balanced: bool
) -> tuple[float, ...] | None:
    """What is added to the head's bias outside training, so that its probabilities are those of the rows; None: nothing.

    ``balanced``: whether classes were sampled equally often.
    """
    if labels.kind != "single":
        return None
    correction_C = np.zeros(len(labels))
    if weights:
        correction_C -= np.log(weights)
    if balanced and rows_C is not None:
        correction_C += np.log(np.maximum(rows_C, 1) / max(sum(rows_C), 1))
    return tuple(correction_C.tolist()) if correction_C.any() else None


def head_prior(
    objectives: ObjectivesSettings, labels: LabelSpace, rows_C: Sequence[float] | None, known_C: Sequence[float] | None
) -> list[float] | None:
    """Probability of each class by which the head's bias starts, for ``logit_adjustment``; None for equal classes.

    ``known_C`` are the training rows in which it is known whether they have each class. SettingsError if the counts are
    not known.
    """
    from scipy.special import expit, softmax

    tau = objectives.classification.logit_adjustment
    if tau == 0:
        return None
    has_C = np.asarray(_known(rows_C, "logit_adjustment"))
    if labels.kind == "multilabel":
        has_not_C = np.asarray(_known(known_C, "logit_adjustment")) - has_C
        return [float(p) for p in expit(tau * (np.log(has_C + 1) - np.log(has_not_C + 1)))]
    return [float(p) for p in softmax(tau * np.log(has_C + 1))]


def distortions(objectives: ObjectivesSettings, kind: Kind, *, balanced: bool) -> list[str]:
    """Settings after which the probabilities are distorted and must be recalibrated, by name."""
    settings = objectives.classification
    found = {
        "objectives.classification.focal_gamma": settings.focal_gamma,
        "objectives.classification.label_smoothing": settings.label_smoothing,
        "data.sampling": balanced and kind != "single",
    }
    return [name for name, value in found.items() if value]


def _known(rows_C: Sequence[float] | None, setting: str) -> Sequence[float]:
    if rows_C is None:
        raise SettingsError(
            f"objectives.classification.{setting} needs the rows of each class, which are not known while shards are "
            "streamed; give class_weights by name"
        )
    return rows_C
