"""The run as TensorBoard shows it: both losses on one chart, the dev metrics, the reliability diagram, the settings.

Scalars keep the tag they come with, so a tag in the trainer is the tag on the screen; the trainer's are the constants
below. A loss without rows in a step is NaN and its point is left out: a written NaN would show as a triangle and break
the smoothed curve. The custom-scalars page ("losses") draws generation and classification on one chart, so that one
loss starving the other is seen at a glance.

Only rank 0 writes; on every other rank ``log_dir`` is None and each call returns at once. A resumed run names the first
step it will write: TensorBoard then hides what the killed run had logged from that step on. (Its default, fast loader
does so tag by tag, when the resumed run writes the tag again; with ``--load_fast=false`` it does so at once.)

Price: events are queued to a writer thread and reach the disk every 10 s, at each evaluation and checkpoint and on
close, so a killed run loses at most its last seconds of curve. TensorBoard is imported only where something is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from clsgen_dist.track.reliability import Reliability, draw_reliability

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSS_GENERATION = "loss/generation"
LOSS_CLASSIFICATION = "loss/classification"
LOSS_TOTAL = "loss/total"
WEIGHT_GENERATION = "loss_weight/generation"
WEIGHT_CLASSIFICATION = "loss_weight/classification"
LR = "optim/lr"
LR_HEAD = "optim/lr_head"
GRAD_NORM = "optim/grad_norm"
SKIPPED_STEPS = "optim/skipped_steps"
TOKENS_PER_SECOND = "speed/tokens_per_second"
SUPERVISED_TOKENS_PER_SECOND = "speed/supervised_tokens_per_second"
PEAK_MEMORY_GIB = "memory/peak_gib"

DEV = "dev/"
"""Prefix of what is measured on the dev rows: the metric ``loss/generation`` becomes ``dev/loss/generation``."""
DEV_RELIABILITY = f"{DEV}reliability"
SETTINGS = "settings"

# Tags are regular expressions to the front end: unanchored, "loss/generation" would also draw the dev loss.
_LAYOUT = {
    "losses": {
        "generation and classification": ["Multiline", [f"^{LOSS_GENERATION}$", f"^{LOSS_CLASSIFICATION}$"]],
        "generation and classification, dev": [
            "Multiline",
            [f"^{DEV}{LOSS_GENERATION}$", f"^{DEV}{LOSS_CLASSIFICATION}$"],
        ],
    }
}


class TensorBoardLog:
    """Writes a run's TensorBoard log into one folder, or nothing when the folder is None."""

    def __init__(self, log_dir: Path | None, *, settings_text: str, first_step: int = 0) -> None:
        """``settings_text`` is shown verbatim; ``first_step`` is the first step this process will write.

        With ``first_step`` above 0 (a resumed run), what earlier processes logged at that step or later is hidden. The
        settings are logged again at ``first_step``, next to those the run started with.
        """
        self._writer: SummaryWriter | None = None
        if log_dir is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(log_dir), purge_step=first_step if first_step > 0 else None, flush_secs=10)
        self._writer.add_custom_scalars(_LAYOUT)
        self._writer.add_text(SETTINGS, _code_block(settings_text), first_step)
        # A page opened before the first step already shows the layout and the settings.
        self._writer.flush()

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each scalar under its own tag; NaN (a loss without rows in this step) leaves no point."""
        if self._writer is None:
            return
        for tag, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(tag, value, step)

    def evaluation(self, step: int, metrics: Mapping[str, float], reliability: Reliability | None) -> None:
        """Writes ``dev/<name>`` for each metric, and the diagram if there is one; on disk when it returns."""
        if self._writer is None:
            return
        self.step(step, {f"{DEV}{name}": value for name, value in metrics.items()})
        if reliability is not None:
            image_HWC = draw_reliability(reliability, f"Reliability on dev, step {step}")
            self._writer.add_image(DEV_RELIABILITY, image_HWC, step, dataformats="HWC")
        self._writer.flush()

    def flush(self) -> None:
        """Put everything logged so far on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Writes what is queued and ends the writer; later calls write nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _code_block(text: str) -> str:
    """Markdown that shows ``text`` verbatim: indented, as a fence would end at a ``` inside the text."""
    return "\n".join(f"    {line}" for line in text.splitlines())
