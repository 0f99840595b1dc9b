"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clsgen_dist.io.constraints import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


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
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = 1e-8
    """Adam's epsilon."""
    warmup_fraction: ClosedUnitInterval = 0.05
    """Share of the steps over which the rate rises linearly to its peak."""
    final_lr_fraction: ClosedUnitInterval = 0.1
    """The cosine ends at this share of the peak."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the global gradient norm at this; 0 does not clip."""
