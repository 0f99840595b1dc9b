"""The run as TensorBoard shows it: both losses on one chart, the dev metrics, the reliability diagram, the settings.

Scalars keep the tag they come with, so a tag in the trainer is the tag on the screen. A loss without rows in a step is
NaN and its point is left out: a written NaN would show as a triangle and break the smoothed curve.

Generation and classification loss are drawn on one chart, so that one starving the other is seen at a glance.
TensorBoard gives a colour to each run, not to each tag: so each of the two is written once more, under one tag, into a
run of its own (``generation/`` and ``classification/`` in the log's folder).

Only rank 0 writes; on every other rank ``log_dir`` is None and each call returns at once. A resumed run names the first
step it will write: TensorBoard then hides what the killed run had logged from that step on. (Its default, fast loader
does so tag by tag, when the resumed run writes the tag again; with ``--load_fast=false`` it does so at once.)

Cost: events are queued to a writer thread and reach the disk every 10 s, at each evaluation and checkpoint and on
close, so a killed run loses at most its last seconds of curve. TensorBoard is imported only where something is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from clsgen_dist.track.reliability import Reliability, draw_reliability

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSS_GENERATION = "loss/generation"
LOSS_CLASSIFICATION = "loss/classification"
TOKENS_PER_SECOND = "speed/tokens_per_second"
SUPERVISED_TOKENS_PER_SECOND = "speed/supervised_tokens_per_second"

DEV = "dev/"
"""Prefix of what is measured on the dev rows: the metric ``loss/generation`` becomes ``dev/loss/generation``."""

_CURVES = {LOSS_GENERATION: "generation", LOSS_CLASSIFICATION: "classification"}
"""The losses that are drawn on one chart, and the run of its own that each is drawn in."""
_TRAIN_CHART, _DEV_CHART = "both_losses/train", "both_losses/dev"
_LAYOUT = {
    "losses": {
        "generation and classification": ["Multiline", [f"^{_TRAIN_CHART}$"]],
        "generation and classification, dev": ["Multiline", [f"^{_DEV_CHART}$"]],
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
        self._curves: dict[str, SummaryWriter] = {}
        if log_dir is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        options: dict[str, Any] = {"purge_step": first_step if first_step > 0 else None, "flush_secs": 10}
        self._writer = SummaryWriter(str(log_dir), **options)
        self._curves = {tag: SummaryWriter(str(log_dir / run), **options) for tag, run in _CURVES.items()}
        self._writer.add_custom_scalars(_LAYOUT)
        self._writer.add_text("settings", _code_block(settings_text), first_step)
        # A page opened before the first step already shows the layout and the settings.
        self.flush()

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each scalar under its own tag; NaN (a loss without rows in this step) leaves no point."""
        if self._writer is None:
            return
        for tag, value in scalars.items():
            if math.isnan(value):
                continue
            self._writer.add_scalar(tag, value, step)
            if curve := self._curves.get(tag.removeprefix(DEV)):
                curve.add_scalar(_DEV_CHART if tag.startswith(DEV) else _TRAIN_CHART, value, step)

    def evaluation(self, step: int, metrics: Mapping[str, float], reliability: Reliability | None) -> None:
        """Writes ``dev/<name>`` for each metric, and the diagram if there is one; on disk when it returns."""
        if self._writer is None:
            return
        self.step(step, {f"{DEV}{name}": value for name, value in metrics.items()})
        if reliability is not None:
            image_HWC = draw_reliability(reliability, f"Reliability on dev, step {step}")
            self._writer.add_image(f"{DEV}reliability", image_HWC, step, dataformats="HWC")
        self.flush()

    def flush(self) -> None:
        """Put everything logged so far on the disk."""
        for writer in self._writers():
            writer.flush()

    def close(self) -> None:
        """Writes what is queued and ends the writer; later calls write nothing."""
        for writer in self._writers():
            writer.close()
        self._writer, self._curves = None, {}

    def _writers(self) -> list[SummaryWriter]:
        return [] if self._writer is None else [self._writer, *self._curves.values()]

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _code_block(text: str) -> str:
    """Markdown that shows ``text`` verbatim: indented, as a fence would end at a ``` inside the text."""
    return "\n".join(f"    {line}" for line in text.splitlines())
