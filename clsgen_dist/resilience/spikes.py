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

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from clsgen_dist.io.json_lines import append_json_line

SKIPPED_FILE = "skipped.jsonl"


def nan_above(loss: Tensor, limit: float) -> Tensor:
    """1 for a finite loss below the limit, else NaN; stays on the device."""
    return torch.where(torch.isfinite(loss) & (loss <= limit), 1.0, float("nan"))


class SkipCode(StrEnum):
    """Why a step was skipped."""

    NON_FINITE_LOSS = "non-finite-loss"
    LOSS_SPIKE = "loss-spike"
    NON_FINITE_GRADIENT = "non-finite-gradient"


@dataclass(frozen=True, kw_only=True)
class SkipCause:
    """Why a step was skipped, with the numbers that say so."""

    code: SkipCode
    term: str | None = None
    """The loss term that is the cause, if one is."""
    loss: float | None = None
    """Its mean loss."""
    limit: float | None = None
    """The largest loss that recent steps allow."""

    @property
    def words(self) -> str:
        """The cause in words."""
        if self.code is SkipCode.NON_FINITE_LOSS:
            return f"the {self.term} loss is {self.loss}"
        if self.code is SkipCode.LOSS_SPIKE:
            return f"the {self.term} loss is {self.loss:.4g}, more than the {self.limit:.4g} that recent steps allow"
        return "a gradient is not finite"


def skip_cause(losses: Mapping[str, float], limits: Mapping[str, float], counts: Mapping[str, float]) -> SkipCause:
    """Why a step was skipped.

    Args:
        losses: mean of each term.
        limits: above which it is a spike.
        counts: what the step had for each term.
    """
    for term, loss in losses.items():
        if counts[term] and not math.isfinite(loss):
            return SkipCause(code=SkipCode.NON_FINITE_LOSS, term=term, loss=loss)
        if loss > limits[term]:
            return SkipCause(code=SkipCode.LOSS_SPIKE, term=term, loss=loss, limit=limits[term])
    return SkipCause(code=SkipCode.NON_FINITE_GRADIENT)


def write_skipped(path: Path, step: int, cause: SkipCause, ids: Sequence[str]) -> None:
    """Add a skipped step to a file of JSON lines: the cause, in words as ``reason``, and the ids of its rows."""
    # JSON has no NaN.
    loss = cause.loss if cause.loss is None or math.isfinite(cause.loss) else str(cause.loss)
    line = {"step": step, **asdict(cause), "loss": loss, "reason": cause.words, "rows": list(ids)}
    append_json_line(path, line)
