"""One optimizer step, on one rank: forward and backward of each micro-batch, both losses as global means, the update.

    loss = w_g · Σ_tokens ℓ_g / supervised tokens  +  w_c · Σ_rows ℓ_c / labelled rows        (sums over all ranks)

The trainer takes these steps; so do the dry run and the tests. Cost: two all-reduces of a few numbers, besides ZeRO-3's
own traffic: :func:`agree` before the forward passes, the losses' sums before the last backward pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from clsgen_dist.config import LossSettings, OptimSettings
from clsgen_dist.data.loader import Step
from clsgen_dist.engine.optim import lr_factor, set_lr
from clsgen_dist.engine.world import World, waiting
from clsgen_dist.objectives.loss_weights import LossWeights
from clsgen_dist.objectives.normalization import StepCounts, backward_loss, joint_loss, mean
from clsgen_dist.resilience import spikes
from clsgen_dist.training.sampling_plan import weight_schedule


@dataclass(frozen=True)
class StepResult:
    """What a step gave, over all ranks."""

    generation_loss: float
    """Mean over the supervised tokens, nats; NaN without any."""
    classification_loss: float
    """Mean over the labelled rows, nats; NaN without any."""
    total_loss: float
    token_accuracy: float
    weights: LossWeights
    rates: dict[str, float]
    """Learning rate of each parameter group."""
    grad_norm: float
    updated: bool
    """False where DeepSpeed skipped the update, as a loss or gradient was not finite or a loss spiked."""

    @property
    def losses(self) -> tuple[float, float]:
        """Generation and classification loss."""
        return self.generation_loss, self.classification_loss


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of the step that begins."""

    counts: StepCounts
    written: bool
    """Whether every rank has written its files of the save under way."""
    stop: bool
    """Whether some rank was asked to stop."""


def agree(world: World, share: Step, *, written: bool = False, stop: bool = False) -> Agreement:
    """The all-reduce that begins a step: what it holds, whether all have saved, whether some rank must stop."""
    batches = share.batches
    supervised, labelled, tokens, ranks_written, stops = world.sum(
        sum(b.supervised for b in batches),
        sum(b.labelled for b in batches),
        sum(b.tokens for b in batches if b.supervised or b.labelled),
        written,
        stop,
    )
    return Agreement(StepCounts(supervised, labelled, tokens), ranks_written == world.size, stops > 0)


class TrainStep:
    """Takes optimizer steps on DeepSpeed's engine.

    Args:
        engine: the ZeRO-3 engine.
        world: this rank among the others.
        loss: weights and schedule of the two losses.
        optim: learning-rate schedule.
        total_steps: of the run; schedules are functions of step / total_steps.
        seed: of dropout, which is a function of (seed, step, micro-step, rank).
    """

    def __init__(
        self, engine: Any, world: World, *, loss: LossSettings, optim: OptimSettings, total_steps: int, seed: int
    ) -> None:
        self._engine, self._world, self._loss, self._optim = engine, world, loss, optim
        self._total_steps, self._seed = total_steps, seed

    def __call__(self, step: int, share: Step, counts: StepCounts, limits: tuple[float, float]) -> StepResult:
        """Take optimizer step ``step`` (from 0) on this rank's ``share``; collective.

        Args:
            counts: of all ranks, from :func:`agree`.
            limits: mean generation and classification loss above which the update is skipped.
        """
        engine, world, batches = self._engine, self._world, share.batches
        schedule, progress = weight_schedule(self._loss, share.stage, step, self._total_steps)
        weights = schedule.at(progress)
        rates = set_lr(engine.optimizer, self._rate_factor(step, share))
        sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        for micro_step, batch in enumerate(batches):
            # Dropout is a function of the position, so that no generator's state needs saving.
            torch.manual_seed(_dropout_seed(self._seed, step, micro_step, world.rank))
            last = micro_step == len(batches) - 1
            engine.set_gradient_accumulation_boundary(last)
            output = engine(**batch.inputs(world.device))
            loss = backward_loss(output, counts, weights, world.size)
            sums += torch.stack(
                [output.generation_loss.detach().sum(), output.class_loss.detach().sum(), output.token_hit.sum()]
            )
            if last:
                world.all_reduce(sums)
                for total, count, limit in zip(sums, (counts.supervised, counts.labelled), limits, strict=False):
                    loss = loss * spikes.nan_above(total / max(count, 1), limit)
            engine.backward(loss, scale_wrt_gas=False)
            if not last:
                engine.step()
        skipped_before = engine.skipped_steps
        engine.step()
        with waiting():
            generation_sum, classification_sum, hits = sums.tolist()
        return StepResult(
            generation_loss=mean(generation_sum, counts.supervised),
            classification_loss=mean(classification_sum, counts.labelled),
            total_loss=float(joint_loss(generation_sum, classification_sum, counts, weights)),
            token_accuracy=mean(hits, counts.supervised),
            weights=weights,
            rates=rates,
            grad_norm=float(engine.get_global_grad_norm() or float("nan")),
            updated=engine.skipped_steps == skipped_before,
        )

    def _rate_factor(self, step: int, share: Step) -> float:
        optim = self._optim
        return share.stage.stage.lr_factor * lr_factor(
            step, self._total_steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
        )


def _dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    key = f"{seed}/{step}/{micro_step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
