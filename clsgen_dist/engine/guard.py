"""Steps that must not count: losses or gradients that are not finite, and losses that leap.

All ranks see the same sums, so all take the same turn:

    fine ──▶ update        bad ──▶ no update, counted, its rows' ids written to skipped.jsonl
    bad, ``max_skipped`` times in a row ──▶ weights and optimizer of the last good checkpoint; the data goes on
    bad again after ``max_rollbacks`` of those ──▶ the run ends and names the steps

A step is discarded by making its gradient NaN, before the last backward pass: DeepSpeed leaves out an update whose
global gradient norm is not finite, on all ranks alike, and so do gradients that were not finite in the first place. No
rank waits for another's verdict, and no number leaves the device for it.

A leap is a loss of more than ``spike_factor`` times the median of the last good ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

SKIPPED_FILE = "skipped.jsonl"
_REMEMBERED, _NEEDED = 64, 16


@dataclass(frozen=True)
class GuardState:
    """What the guard knows; part of the training state, so that a resumed run takes the same turns."""

    recent: tuple[float, ...] = ()
    """Joint losses of the last good steps."""
    in_a_row: int = 0
    """Steps skipped since the last good one."""
    skipped: int = 0
    """Steps skipped in all."""
    rollbacks: int = 0
    """Times the weights went back to a checkpoint."""

    def limit(self, spike_factor: float) -> float:
        """The loss above which a step is a leap; infinite while too few are known, or with a factor of 0."""
        if not spike_factor or len(self.recent) < _NEEDED:
            return math.inf
        return spike_factor * median(self.recent)

    def after(self, loss: float, *, updated: bool) -> GuardState:
        """The state after a step with this loss."""
        if updated:
            return dataclasses.replace(self, recent=(*self.recent, loss)[-_REMEMBERED:], in_a_row=0)
        return dataclasses.replace(self, in_a_row=self.in_a_row + 1, skipped=self.skipped + 1)

    def rolled_back(self) -> GuardState:
        """The state after going back to a checkpoint."""
        return dataclasses.replace(self, in_a_row=0, rollbacks=self.rollbacks + 1)


def nan_above(loss: Tensor, limit: float) -> Tensor:
    """1 for a loss that is finite and no leap, else NaN; stays on the device."""
    return torch.where(torch.isfinite(loss) & (loss <= limit), 1.0, float("nan"))


def reason(loss: float, limit: float) -> str:
    """Why a step was skipped, in words."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if loss > limit:
        return f"the loss is {loss:.4g}, more than the {limit:.4g} that recent steps allow"
    return "a gradient is not finite"


def write_skipped(path: Path, step: int, why: str, ids: Sequence[str]) -> None:
    """Add a skipped step and its rows to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "reason": why, "rows": list(ids)}, ensure_ascii=False) + "\n")
