"""The loss of a step, normalised globally over ranks and micro-batches.

    L = Σ_t w_t · (sum of term t) / (count of term t)

with sums and counts over *all* ranks and micro-steps of an optimizer step, so that neither world size nor gradient
accumulation changes the gradient. DeepSpeed averages gradients over ranks, so each rank hands it its own share times
the world size; the sum over micro-steps is left unscaled (``engine.backward(..., scale_wrt_gas=False)``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step holds, over all ranks and micro-steps."""

    terms: dict[str, float]
    """Count of each term: supervised tokens, labelled rows …"""
    tokens: float
    """Tokens that are not padding."""


def backward_loss(
    sums: Mapping[str, Tensor], counts: StepCounts, weights: Mapping[str, float], world_size: int
) -> Tensor:
    """This rank's scalar for ``backward``; zero-weighted where the step has no such row at all."""
    loss: Tensor = joint_loss(sums, counts, weights)
    return loss * world_size


def joint_loss(sums: Mapping[str, Any], counts: StepCounts, weights: Mapping[str, float]) -> Any:
    """L of a step from its terms' sums, numbers or tensors; what the step has nothing for counts as zero."""
    return sum(total * (weights[name] / max(counts.terms[name], 1)) for name, total in sums.items())


def mean(total: float, count: float) -> float:
    """A global mean; NaN where nothing was counted."""
    return total / count if count else float("nan")
