"""One optimizer step, on one rank: forward and backward of each micro-batch, every loss as a global mean, the update.

    loss = Σ_terms weight · sum over all ranks and micro-batches / count over the same

The trainer takes these steps; so do the dry run and the tests. Cost: three all-reduces of a few numbers, besides
ZeRO-3's own traffic: :meth:`TrainStep.agree` before the forward passes, the terms' sums before the last backward pass,
their gradient norms after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clsgen_dist.data.loader import Step
from clsgen_dist.engine.optim import lr_factor, set_lr
from clsgen_dist.engine.settings import OptimSettings
from clsgen_dist.engine.world import World, waiting
from clsgen_dist.model.dual_head import ModelOutput
from clsgen_dist.model.frozen_layers import lm_head_unused
from clsgen_dist.objectives.adaptive_weights import Balance, BalanceState
from clsgen_dist.objectives.normalization import StepCounts, backward_loss, joint_loss, mean
from clsgen_dist.objectives.settings import ObjectivesSettings
from clsgen_dist.resilience import spikes
from clsgen_dist.training.interference import PASSES, AdapterAngle, InterferenceProbe, mean_cosines
from clsgen_dist.training.sampling_plan import weight_schedule


@dataclass(frozen=True)
class StepResult:
    """What a step gave, over all ranks."""

    losses: dict[str, float]
    """Global mean of each term, nats; NaN where the step has nothing for it."""
    total_loss: float
    token_accuracy: float
    weights: dict[str, float]
    """Weight of each term."""
    gradient_norms: dict[str, float]
    """Norm of each weighted term's gradient at the last hidden states; NaN where it has none."""
    balance: BalanceState
    """State of the adaptive weights after the step."""
    reference_point: float
    """KTO's for the next step, nats: :mod:`clsgen_dist.objectives.preference`."""
    rates: dict[str, float]
    """Learning rate of each parameter group."""
    gradient_cosine: float
    """Of the angle between the gradients of generation and classification at the last hidden states; NaN without."""
    angles: list[AdapterAngle] | None
    """Of the adapters' gradients, where they were measured."""
    grad_norm: float
    updated: bool
    """False where DeepSpeed skipped the update, as a loss or gradient was not finite or a loss spiked."""

    @property
    def gradient_shares(self) -> dict[str, float]:
        """Each term's share of the sum of the gradient norms; NaN without any."""
        total = sum(norm for norm in self.gradient_norms.values() if math.isfinite(norm))
        return {name: norm / total if total else math.nan for name, norm in self.gradient_norms.items()}

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows of it."""
        return {
            **{f"loss/{name}": loss for name, loss in self.losses.items()},
            "loss/total": self.total_loss,
            "accuracy/token": self.token_accuracy,
            **{f"loss_weight/{name}": weight for name, weight in self.weights.items()},
            **{f"gradient_share/{name}": share for name, share in self.gradient_shares.items()},
            "gradient_cosine/generation_classification": self.gradient_cosine,
            **(mean_cosines(self.angles) if self.angles else {}),
            "optim/lr": self.rates.get("backbone.matrices", self.rates["head.matrices"]),
            "optim/lr_head": self.rates["head.matrices"],
            "optim/grad_norm": self.grad_norm,
        }


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of the step that begins."""

    counts: StepCounts
    written: bool
    """Whether every rank has written its files of the save under way."""
    stop: bool
    """Whether some rank was asked to stop."""
    known: bool = False
    """Whether every rank has what the frozen layers gave for its rows."""


class TrainStep:
    """Takes optimizer steps on DeepSpeed's engine.

    Args:
        engine: the ZeRO-3 engine.
        world: this rank among the others.
        objectives: the terms of the loss and what moves their weights.
        optim: learning-rate schedule.
        total_steps: of the run; schedules are functions of step / total_steps.
        interference_every: steps between measurements of how the losses' gradients meet in the adapters.
        seed: of dropout, which is a function of (seed, step, micro-step, rank).
    """

    def __init__(
        self,
        engine: Any,
        world: World,
        *,
        objectives: ObjectivesSettings,
        optim: OptimSettings,
        total_steps: int,
        seed: int,
        interference_every: int | None = None,
    ) -> None:
        self._engine, self._world, self._objectives, self._optim = engine, world, objectives, optim
        self._total_steps, self._seed, self._interference_every = total_steps, seed, interference_every
        self.terms = engine.module.loss_spec.terms
        self._balance = Balance(objectives.balance)

    def agree(self, share: Step, *, written: bool = False, stop: bool = False) -> Agreement:
        """The all-reduce that begins a step: what it holds, whether all have saved, whether some rank must stop."""
        batches = share.batches
        *counts, tokens, ranks_written, stops, ranks_known = self._world.sum(
            *(sum(term.count(batch) for batch in batches) for term in self.terms),
            sum(b.tokens for b in batches if not b.is_dummy),
            written,
            stop,
            share.known is not None,
        )
        by_term = dict(zip((term.name for term in self.terms), counts, strict=True))
        ranks = self._world.size
        return Agreement(StepCounts(by_term, tokens), ranks_written == ranks, stops > 0, ranks_known == ranks)

    def __call__(
        self,
        step: int,
        share: Step,
        counts: StepCounts,
        limits: dict[str, float] | None = None,
        balance: BalanceState | None = None,
        reference_point: float = 0.0,
        *,
        known: bool = False,
    ) -> StepResult:
        """Take optimizer step ``step`` (from 0) on this rank's ``share``; collective.

        Args:
            counts: of all ranks, from :meth:`TrainStep.agree`.
            limits: mean of each term above which the update is skipped; None: no limit.
            balance: state of the adaptive weights; None: as at the start.
            reference_point: KTO's, from the step before.
            known: start at the first layer that learns, as all ranks agreed.
        """
        engine, world, terms = self._engine, self._world, self.terms
        names, balance = [term.name for term in terms], balance or {}
        schedule, progress = weight_schedule(self._objectives, names, share.stage, step, self._total_steps)
        weights = schedule.at(progress, self._balance.factors(balance, schedule.base))
        rates = set_lr(engine.optimizer, self._rate_factor(step, share))
        sums = torch.zeros(len(terms) + 3, dtype=torch.float64, device=world.device)
        engine.module.reference_point = reference_point
        square = torch.zeros(len(terms) + 1, device=world.device)
        engine.module.hidden_grad_square = square
        measure = bool(self._interference_every and (step + 1) % self._interference_every == 0)
        probe = InterferenceProbe(engine.module) if measure else None
        tokens_known = known and share.known is not None and share.known[0].all_frozen
        with lm_head_unused(engine) if tokens_known else contextlib.nullcontext():
            self._accumulate(step, share, counts, weights, limits, sums, probe, known=known)
        skipped_before = engine.skipped_steps
        engine.step()
        engine.module.hidden_grad_square = None
        world.all_reduce(square)
        with waiting():
            *totals, hits, moved, mismatched_count = sums.tolist()
            # Each rank's loss is multiplied by the world size, and so are the gradients.
            generation, classification, inner, *others = square.tolist()
            squares = [generation, classification, *others]
            norms = [math.sqrt(value) / world.size or math.nan for value in squares]
        losses = {name: mean(total, counts.terms[name]) for name, total in zip(names, totals, strict=True)}
        updated = engine.skipped_steps == skipped_before
        gradient_norms = dict(zip(names, norms, strict=True))
        if updated:
            unweighted = {
                name: norm / weights[name] if weights[name] else math.nan for name, norm in gradient_norms.items()
            }
            balance = self._balance.after(balance, step, schedule.base, losses, unweighted)
        return StepResult(
            losses=losses,
            total_loss=float(joint_loss(dict(zip(names, totals, strict=True)), counts, weights)),
            token_accuracy=mean(hits, counts.terms["generation"]),
            weights=weights,
            gradient_norms=gradient_norms,
            balance=balance,
            reference_point=max(0.0, moved / mismatched_count) if updated and mismatched_count else reference_point,
            rates=rates,
            gradient_cosine=math.nan if measure else _cosine(inner, generation, classification),
            angles=probe.angles(world) if probe else None,
            grad_norm=float(engine.get_global_grad_norm() or float("nan")),
            updated=updated,
        )

    def _accumulate(
        self,
        step: int,
        share: Step,
        counts: StepCounts,
        weights: Mapping[str, float],
        limits: Mapping[str, float] | None,
        sums: torch.Tensor,
        probe: InterferenceProbe | None,
        *,
        known: bool,
    ) -> None:
        """Forward and backward of every micro-batch; adds to ``sums``, which end up as those of all ranks."""
        engine, world, names = self._engine, self._world, [term.name for term in self.terms]
        batches = share.batches
        for micro_step, batch in enumerate(batches):
            for number, kept in enumerate(self._passes(probe is not None)):
                # Dropout is a function of the position, so that no generator's state needs saving.
                torch.manual_seed(_dropout_seed(self._seed, step, micro_step, world.rank))
                last = micro_step == len(batches) - 1 and (number > 0 or probe is None)
                engine.set_gradient_accumulation_boundary(last)
                inputs = batch.inputs(world.device)
                if known and share.known is not None:
                    inputs["known"] = share.known[micro_step].to(world.device)
                output = engine(**inputs)
                counted = {name: weight if name in kept else 0.0 for name, weight in weights.items()}
                loss = backward_loss(dict(zip(names, output.term_sums, strict=True)), counts, counted, world.size)
                if number == 0:
                    sums += _step_sums(output)
                if last:
                    world.all_reduce(sums)
                    for name, total in zip(names, sums, strict=False):
                        limit = limits[name] if limits else math.inf
                        loss = loss * spikes.nan_above(total / max(counts.terms[name], 1), limit)
                with probe.collecting(PASSES[number]) if probe else contextlib.nullcontext():
                    engine.backward(loss, scale_wrt_gas=False)
                if not last:
                    engine.step()

    def _passes(self, measure: bool) -> list[set[str]]:
        """The terms of each pass over a micro-batch: all at once; or generation, then the others."""
        names = {term.name for term in self.terms}
        return [{"generation"}, names - {"generation"}] if measure else [names]

    def _rate_factor(self, step: int, share: Step) -> float:
        optim = self._optim
        return share.stage.stage.lr_factor * lr_factor(
            step, self._total_steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
        )


def _step_sums(output: ModelOutput) -> torch.Tensor:
    """``[terms + 3]`` fp64: the terms' sums, tokens predicted right, sum and count of other rows' log-ratios."""
    mismatched = output.mismatched_sums if len(output.mismatched_sums) else output.token_hit.new_zeros(2)
    sums = (*(total.detach() for total in output.term_sums), output.token_hit.sum(), *mismatched)
    return torch.stack([value.double() for value in sums])


def _cosine(inner: float, square: float, other: float) -> float:
    return inner / math.sqrt(square * other) if square * other else math.nan


def _dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    key = f"{seed}/{step}/{micro_step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
