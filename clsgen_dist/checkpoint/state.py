"""What a run carries from step to step besides weights and optimizer state, and what a resumed run must share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

BalanceState = dict[str, dict[str, float]]
"""By quantity, then by term: see :mod:`clsgen_dist.objectives.adaptive_weights`."""
_REMEMBERED, _NEEDED, _LEAST = 64, 16, 1.0


@dataclass(frozen=True)
class SpikeState:
    """What the guard knows; part of the training state, so that a resumed run takes the same turns."""

    recent: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By term: its losses in the last good steps that had something for it."""
    in_a_row: int = 0
    """Steps skipped since the last good one."""
    skipped: int = 0
    """Steps skipped in all."""
    rollbacks: int = 0
    """Times the weights went back to a checkpoint."""

    def limits(self, spike_factor: float, terms: Iterable[str]) -> dict[str, float]:
        """Loss of each term above which a step is a spike; infinite while too few are known."""
        return {
            name: spike_factor * max(median(recent), _LEAST)
            if spike_factor and len(recent := self.recent.get(name, ())) >= _NEEDED
            else math.inf
            for name in terms
        }

    def after(self, losses: Mapping[str, float], *, updated: bool) -> SpikeState:
        """The state after a step with these mean losses; NaN for a term that the step had nothing for."""
        if not updated:
            return dataclasses.replace(self, in_a_row=self.in_a_row + 1, skipped=self.skipped + 1)
        return dataclasses.replace(
            self,
            recent={**self.recent, **{n: _with(self.recent.get(n, ()), loss) for n, loss in losses.items()}},
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
    balance: BalanceState = field(default_factory=dict)
    """State of the adaptive loss weights."""
    reference_point: float = 0.0
    """KTO's, of the last step, nats."""

    @property
    def updates(self) -> int:
        """Optimizer steps that were not skipped."""
        return self.step - self.spikes.skipped


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be equal for a resumed run to go on as if it had never stopped."""

    labels: list[str]
    label_space: str
    """``single``, ``multilabel`` or ``ordinal``."""
    decide: str
    """Where the head is read: ``before``, ``after`` or ``both``."""
    bias_correction: list[float] | None
    """Added to the head's bias outside training, see :class:`clsgen_dist.model.classification_head.ClassLoss`."""
    rows: int
    rows_sha256: str
    order: dict[str, Any]
    """What decides the rows visited so far: :func:`clsgen_dist.data.curriculum.stages.visited_before`."""
    evidence: str | None
    """Fingerprint of the rows' evidence, if a term learns from it."""
    replay: str | None
    """Fingerprint of the general texts beside the rows."""
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
