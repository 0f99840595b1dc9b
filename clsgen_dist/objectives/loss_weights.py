"""The weight of each term at a step: base weight, schedule and adaptive factor, with a floor.

    w_t = weight_t · (start_t + (end_t - start_t) · s(p)) · factor_t,        p in [0, 1] the progress of the run or stage

with s constant (1), linear (p), cosine ((1 - cos πp) / 2) or sigmoid (a logistic curve from 0 to 1), and factor_t from
:mod:`clsgen_dist.objectives.adaptive_weights`. No term starves: none falls below a share of the sum, or below its base weight
where that is less.

Source: the idea of weights that move is a secondary article's about CLSGen (arXiv 2604.11801), not the paper's; fixed
weights match more complex schemes in Kurin et al. 2022 (arXiv 2201.04122). What they do here: docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_STEEPNESS = 10.0
SCHEDULES = ("constant", "linear", "cosine", "sigmoid")

Weights = dict[str, float]
"""By term name."""


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
    """The weights of all terms over a run or a stage."""

    base: Weights
    """Weight of each term at factor 1."""
    schedule: str
    """Shape of the move: one of :data:`SCHEDULES`; constant stays at the end of the ranges."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Factor of a term's weight at the start and at the end; (1, 1) for those not named."""
    min_share: float = 0.0
    """Least share of the sum to which a weight may fall; a base weight that is smaller stays as it is."""

    def at(self, progress: float, factors: Mapping[str, float] | None = None) -> Weights:
        """The weights at a progress in [0, 1], each times its factor."""
        s = ramp(self.schedule, progress)
        weights = {}
        for name, weight in self.base.items():
            start, end = self.ranges.get(name, (1.0, 1.0))
            weights[name] = weight * (start + (end - start) * s)
            if factors:
                weights[name] *= factors[name]
        return self._with_floor(weights)

    def _with_floor(self, weights: Weights) -> Weights:
        """Raise weights to their least share; the others give way in proportion, so the sum stays as it was."""
        active = {name for name, weight in self.base.items() if weight > 0}
        total = sum(weights[name] for name in active)
        share = min(self.min_share, 1 / max(1, len(active))) * total
        floor = {name: min(share, self.base[name]) for name in active}
        raised: set[str] = set()
        while low := {name for name in active - raised if weights[name] < floor[name]}:
            raised |= low
            free = sum(weights[name] for name in active - raised)
            scale = (total - sum(floor[name] for name in raised)) / free if free else 0.0
            weights = {
                name: floor[name] if name in raised else weight * scale if name in active else weight
                for name, weight in weights.items()
            }
        return weights
