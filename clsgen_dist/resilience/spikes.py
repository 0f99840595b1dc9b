"""Skipped updates and rollbacks: losses or gradients that are not finite, and loss spikes.

All ranks see the same sums, so all take the same turn:

    fine ──▶ update        bad ──▶ no update, counted, its rows' ids written to skipped.jsonl
    bad, ``max_skipped`` times in a row ──▶ roll back to the last good checkpoint; the data continues
    bad again after ``max_rollbacks`` of those ──▶ the run ends and names the steps

A step is discarded by making its gradient NaN, before the last backward pass: DeepSpeed leaves out an update whose
global gradient norm is not finite, on all ranks alike, and so do gradients that were not finite in the first place. No
rank waits for another's verdict, and no number leaves the device for it.

A spike is a mean loss of one term (nats a token, nats a row) of more than ``spike_factor`` times the median of that
term's last good ones, or times 1 nat where the median is less: a row that contradicts what was memorised is no
fault. Each term is compared with itself, and only where the step has rows for it, so that neither the mixture of
rows nor moving loss weights look like a spike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

SKIPPED_FILE = "skipped.jsonl"


def nan_above(loss: Tensor, limit: float) -> Tensor:
    """1 for a finite loss below the limit, else NaN; stays on the device."""
    return torch.where(torch.isfinite(loss) & (loss <= limit), 1.0, float("nan"))


def reason(losses: Mapping[str, float], limits: Mapping[str, float], counts: Mapping[str, float]) -> str:
    """Why a step was skipped, in words; all by term."""
    for name, loss in losses.items():
        if counts[name] and not math.isfinite(loss):
            return f"the {name} loss is {loss}"
        if loss > limits[name]:
            return f"the {name} loss is {loss:.4g}, more than the {limits[name]:.4g} that recent steps allow"
    return "a gradient is not finite"


def write_skipped(path: Path, step: int, why: str, ids: Sequence[str]) -> None:
    """Add a skipped step and its rows to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "reason": why, "rows": list(ids)}, ensure_ascii=False) + "\n")
