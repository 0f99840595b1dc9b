"""From the settings to how the model computes its losses: options of the two heads, the terms, the head's first bias.

Class weights and balanced sampling reweigh the rows, so the probabilities that are learnt are those of reweighted rows:
with weight w_c on class c the optimum is p'_c ∝ w_c p_c. For one class a row that is undone exactly, by -log w_c on the
head's bias outside training. A multi-label class has its own logit, from which its weight cancels; balanced sampling
does not. That, focal loss, label smoothing, and balanced sampling of ordinal labels cannot be undone: what they distort
is left to recalibration, and :func:`distortions` says so.

Cost: none a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from clsgen_kernels import GenerationOptions

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.classification_head import ClassLoss
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.label_space import Kind, LabelSpace
from clsgen_dist.objectives.settings import ObjectivesSettings

# C classes


def loss_spec(
    objectives: ObjectivesSettings,
    labels: LabelSpace,
    rows_C: Sequence[float] | None,
    *,
    balanced: bool = False,
    decide: Literal["before", "after", "both"] = "before",
) -> LossSpec:
    """How the model computes its losses.

    Args:
        objectives: the settings.
        labels: the label space.
        rows_C: training rows of each class; None if they are not known (streamed shards).
        balanced: whether classes are sampled equally often.
        decide: where the head is read.

    Raises:
        SettingsError: class weights that do not fit the label space, or that need counts which are not known.
    """
    settings = objectives.classification
    weights = _class_weights(objectives, labels, rows_C)
    correction = np.zeros(len(labels))
    if labels.kind == "single" and weights:
        correction -= np.log(weights)
    if labels.kind == "single" and balanced and rows_C is not None:
        correction += np.log(np.maximum(rows_C, 1) / max(sum(rows_C), 1))
    return LossSpec(
        impl=objectives.impl,
        decide=decide,
        classification=ClassLoss(
            kind=labels.kind,
            class_weight=tuple(weights) if weights else None,
            focal_gamma=settings.focal_gamma,
            label_smoothing=settings.label_smoothing,
            bias_correction=tuple(correction.tolist()) if correction.any() else None,
        ),
        generation=GenerationOptions(
            label_smoothing=objectives.generation.label_smoothing, z_loss=objectives.generation.z_loss
        ),
        terms=objectives.terms(decide),
    )


def head_prior(
    objectives: ObjectivesSettings, labels: LabelSpace, rows_C: Sequence[float] | None, labelled: float
) -> list[float] | None:
    """Probability of each class by which the head's bias starts, for ``logit_adjustment``; None for equal classes.

    ``labelled`` are the training rows with a label. SettingsError if the counts are not known.
    """
    tau = objectives.classification.logit_adjustment
    if tau == 0:
        return None
    rows_C = _known(rows_C, "logit_adjustment")
    if labels.kind == "multilabel":
        odds = [((count + 1) / (labelled - count + 1)) ** tau for count in rows_C]
        return [value / (1 + value) for value in odds]
    powers = [((count + 1) / (labelled + len(labels))) ** tau for count in rows_C]
    return [power / sum(powers) for power in powers]


def distortions(objectives: ObjectivesSettings, kind: Kind, *, balanced: bool) -> list[str]:
    """Settings after which the probabilities are distorted and must be recalibrated, by name."""
    settings = objectives.classification
    found = {
        "objectives.classification.focal_gamma": settings.focal_gamma,
        "objectives.classification.label_smoothing": settings.label_smoothing,
        "data.sampling": balanced and kind != "single",
    }
    return [name for name, value in found.items() if value]


def _class_weights(
    objectives: ObjectivesSettings, labels: LabelSpace, rows_C: Sequence[float] | None
) -> list[float] | None:
    given = objectives.classification.class_weights
    name = "objectives.classification.class_weights"
    if given is None:
        return None
    if labels.kind == "ordinal":
        raise SettingsError(f"{name} is {given!r} with ordinal labels, which are learnt by their cut points; drop it")
    if given == "balanced":
        rows_C = _known(rows_C, "class_weights=balanced")
        mean = sum(rows_C) / len(rows_C)
        return [mean / max(count, 1) for count in rows_C]
    if unknown := sorted(set(given) - set(labels.names)):
        raise SettingsError(f"{name} names {unknown[0]!r}, expected names of {list(labels.names)}; fix it")
    return [given.get(label, 1.0) for label in labels.names]


def _known(rows_C: Sequence[float] | None, setting: str) -> Sequence[float]:
    if rows_C is None:
        raise SettingsError(
            f"objectives.classification.{setting} needs the rows of each class, which are not known while shards are "
            "streamed; give class_weights by name"
        )
    return rows_C
