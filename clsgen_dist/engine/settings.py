"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clsgen_dist.io.value_ranges import ClosedUnitInterval, HalfOpenUnitInterval, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class OptimizerTraits:
    """What engine, checkpoints and plans must know of an optimizer."""

    runs_on_host: bool = False
    """Updates in host memory: needs ``offload_optimizer``, and a C++ operator that is compiled once."""
    state_moves: bool = True
    """Whether its state can be offloaded, and resharded over another number of ranks."""
    checkpoint_bytes: float
    """Bytes in a checkpoint for each trained parameter: its fp32 weight and state."""


OPTIMIZERS = {
    "adamw": OptimizerTraits(checkpoint_bytes=12),
    "cpu_adamw": OptimizerTraits(runs_on_host=True, checkpoint_bytes=12),
    "adamw_8bit": OptimizerTraits(state_moves=False, checkpoint_bytes=6.03),
}


@dataclass(kw_only=True)
class OptimSettings:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "cpu_adamw", "adamw_8bit"] = "adamw"
    """torch AdamW; DeepSpeedCPUAdam (with `offload_optimizer` in the DeepSpeed file); bitsandbytes AdamW8bit."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate of the backbone or its adapters."""
    head_lr: PositiveFloat | None = None
    """Peak learning rate of the classification head; none: the same as `lr`."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[HalfOpenUnitInterval, HalfOpenUnitInterval] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    warmup_fraction: ClosedUnitInterval = 0.05
    """Share of the steps over which the rate rises linearly to its peak."""
    final_lr_fraction: ClosedUnitInterval = 0.1
    """The cosine ends at this share of the peak."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the global gradient norm at this; 0 does not clip."""
