"""Loss weights that move with progress: generation first, classification grows.

    w(p) = w · (start + (end - start) · s(p)),   p in [0, 1] the progress of the run or of its stage

with s constant (1), linear (p), cosine ((1 - cos πp) / 2) or sigmoid (a logistic curve from 0 to 1). Neither head
starves: where both weights are above zero, neither falls below a share of their sum. The state is the step alone.

Source: the idea of weights that move is a secondary article's about CLSGen (arXiv 2604.11801), not the paper's; fixed
weights match more complex schemes in Kurin et al. 2022 (arXiv 2201.04122). What they do here: docs/results.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEEPNESS = 10.0
SCHEDULES = ("constant", "linear", "cosine", "sigmoid")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the two global means."""

    generation: float
    classification: float


def ramp(schedule: str, progress: float) -> float:
    """s(p) in [0, 1]; 1 throughout for ``constant``. ``progress`` is clipped to [0, 1]."""
    p = min(max(progress, 0.0), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return p
    if schedule == "cosine":
        return (1 - math.cos(math.pi * p)) / 2
    if schedule == "sigmoid":
        low = 1 / (1 + math.exp(_STEEPNESS / 2))
        value = 1 / (1 + math.exp(-_STEEPNESS * (p - 0.5)))
        return (value - low) / (1 - 2 * low)
    raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class WeightSchedule:
    """The weights of both losses over a run or a stage."""

    generation: float
    """Weight of the generation loss at factor 1."""
    classification: float
    """Weight of the classification loss at factor 1."""
    schedule: str
    """Shape of the move: one of :data:`SCHEDULES`; constant stays at the end of both ranges."""
    generation_range: tuple[float, float]
    """Factor of the generation weight at the start and at the end."""
    classification_range: tuple[float, float]
    """The same of the classification weight."""
    min_share: float
    """Least share of the sum that a weight above zero may have."""

    def at(self, progress: float) -> LossWeights:
        """The weights at a progress in [0, 1]."""
        s = ramp(self.schedule, progress)
        weights = [
            weight * (start + (end - start) * s)
            for weight, (start, end) in (
                (self.generation, self.generation_range),
                (self.classification, self.classification_range),
            )
        ]
        if self.generation > 0 and self.classification > 0:
            total = sum(weights)
            # Raising the smaller one to its share of the old sum keeps the sum, and so the step size, as it was.
            floor = self.min_share * total
            weights = [min(max(weight, floor), total - floor) for weight in weights]
        return LossWeights(*weights)
