"""What a run carries from step to step besides weights and optimizer state, and what a resumed run must share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_REMEMBERED, _NEEDED, _LEAST = 64, 16, 1.0


@dataclass(frozen=True)
class SpikeState:
    """What the guard knows; part of the training state, so that a resumed run takes the same turns."""

    recent_generation: tuple[float, ...] = ()
    """Generation losses of the last good steps that had supervised tokens."""
    recent_classification: tuple[float, ...] = ()
    """Classification losses of the last good steps that had labelled rows."""
    in_a_row: int = 0
    """Steps skipped since the last good one."""
    skipped: int = 0
    """Steps skipped in all."""
    rollbacks: int = 0
    """Times the weights went back to a checkpoint."""

    def limits(self, spike_factor: float) -> tuple[float, float]:
        """Generation and classification loss above which a step is a spike; infinite while too few are known."""
        return tuple(
            spike_factor * max(median(recent), _LEAST) if spike_factor and len(recent) >= _NEEDED else math.inf
            for recent in (self.recent_generation, self.recent_classification)
        )  # type: ignore[return-value]

    def after(self, generation: float, classification: float, *, updated: bool) -> SpikeState:
        """The state after a step with these mean losses; NaN for a head that the step had nothing for."""
        if not updated:
            return dataclasses.replace(self, in_a_row=self.in_a_row + 1, skipped=self.skipped + 1)
        return dataclasses.replace(
            self,
            recent_generation=_with(self.recent_generation, generation),
            recent_classification=_with(self.recent_classification, classification),
            in_a_row=0,
        )

    def rolled_back(self) -> SpikeState:
        """The state after going back to a checkpoint."""
        return dataclasses.replace(self, in_a_row=0, rollbacks=self.rollbacks + 1)


def _with(recent: tuple[float, ...], loss: float) -> tuple[float, ...]:
    return recent if math.isnan(loss) else (*recent, loss)[-_REMEMBERED:]


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything to resume, besides weights and optimizer state."""

    step: int
    """Optimizer steps done."""
    best_step: int | None = None
    """Step of the best checkpoint so far."""
    best_value: float | None = None
    """Its dev metric."""
    best_by: str | None = None
    """What the best is the best by, as :func:`best_by` writes it."""
    evaluations_without_gain: int = 0
    """For early stopping."""
    spikes: SpikeState = field(default_factory=SpikeState)
    """Losses and skipped steps so far."""

    @property
    def updates(self) -> int:
        """Optimizer steps that were not skipped."""
        return self.step - self.spikes.skipped


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be equal for a resumed run to go on as if it had never stopped."""

    labels: list[str]
    rows: int
    rows_sha256: str
    order: dict[str, Any]
    """What decides the rows visited so far: :func:`clsgen_dist.data.curriculum.stages.visited_before`."""
    seed: int
    batch_size: int
    finetune: str
    top_layers: int | None
    lora: tuple[int, int] | None
    """Rank and alpha, with LoRA."""
    optimizer: str
    frozen_sum: float
    frozen_square_sum: float


def best_by(metric: str, dev_rows: str) -> str:
    """A code of what makes a checkpoint the best: the metric, and the fingerprint of the dev rows."""
    return f"{metric}@{dev_rows[:12]}"
