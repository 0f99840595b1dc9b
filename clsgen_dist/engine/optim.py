"""Optimizer, its parameter groups, and the learning rate as a pure function of the step.

Groups: matrices of the backbone or its adapters (with weight decay), their vectors (without), and the head's weight
and bias alike with a rate of their own. The rate is a function of the step alone, so nothing of it needs saving:

    factor(k) = min(1, (k+1)/warmup) · (f + (1-f)·(1 + cos(π·progress))/2)
"""

from __future__ import annotations

import math
from typing import Any

import torch

from clsgen_dist.model.dual_head import DualHeadModel


def group_name(name: str, *, matrix: bool) -> str:
    """The optimizer group of a parameter: head or backbone, matrices or vectors."""
    part = "head" if name.startswith("classification_head.") else "backbone"
    return f"{part}.{'matrices' if matrix else 'vectors'}"


def parameter_groups(
    model: DualHeadModel, *, lr: float, head_lr: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in groups, each with its peak rate under ``peak_lr`` and a ``name``."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        group = group_name(name, matrix=matrix)
        new = {
            "name": group,
            "params": [],
            "peak_lr": (head_lr or lr) if group.startswith("head.") else lr,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        groups.setdefault(group, new)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """``adamw`` (torch), ``cpu_adamw`` (DeepSpeedCPUAdam) or ``adamw_8bit`` (bitsandbytes) over the groups."""
    groups = [{**group, "lr": group["peak_lr"]} for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=eps)
    if name == "cpu_adamw":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, betas=betas, eps=eps, adamw_mode=True)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, betas=betas, eps=eps)


def lr_factor(step: int, total: int, *, warmup_fraction: float, final_fraction: float) -> float:
    """Share of the peak rate at ``step`` (from 0) of ``total``: linear warm-up, then a cosine."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: Any, factor: float) -> dict[str, float]:
    """Set every group's rate to ``factor`` of its peak; returns the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
