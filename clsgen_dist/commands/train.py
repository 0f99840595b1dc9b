"""``clsgen train``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings


def run(settings: Settings) -> None:
    """Train a dual-head model, under deepspeed, torchrun or srun for several ranks.

    Example: `deepspeed --num_gpus 8 train.py --config configs/recipe.yaml --train.epochs 3`.
    """
    from clsgen_dist.training.trainer import train

    train(settings)
