"""The joint loss, normalised globally over ranks and micro-batches.

    L = w_gen · Σ l_token / N_supervised + w_cls · Σ l_row / N_labelled

with both sums and both counts over *all* ranks and micro-steps of an optimizer step, so that neither world size nor
gradient accumulation changes the gradient. DeepSpeed averages gradients over ranks, so each rank hands it its own
share times the world size; the sum over micro-steps is left unscaled (``engine.backward(..., scale_wrt_gas=False)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clsgen_kernels import DualHeadOutput
from torch import Tensor

from clsgen_dist.objectives.loss_weights import LossWeights


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step holds, over all ranks and micro-steps."""

    supervised: float
    """Supervised tokens."""
    labelled: float
    """Labelled rows."""
    tokens: float
    """Tokens that are not padding."""


def backward_loss(output: DualHeadOutput, counts: StepCounts, weights: LossWeights, world_size: int) -> Tensor:
    """This rank's scalar for ``backward``; zero-weighted where the step has no such row at all."""
    loss: Tensor = joint_loss(output.generation_loss.sum(), output.class_loss.sum(), counts, weights)
    return loss * world_size


def joint_loss(generation_sum: Any, classification_sum: Any, counts: StepCounts, weights: LossWeights) -> Any:
    """L of a step from the sums of its two losses, numbers or tensors; what the step has no row for counts as zero."""
    generation = generation_sum * (weights.generation / max(counts.supervised, 1))
    return generation + classification_sum * (weights.classification / max(counts.labelled, 1))


def mean(total: float, count: float) -> float:
    """A global mean; NaN where nothing was counted."""
    return total / count if count else float("nan")
