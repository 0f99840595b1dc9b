"""TensorBoard log of a run: both losses on one chart, dev metrics, the reliability diagram, the settings.

Scalars are logged under the trainer's own tags. A loss without rows in a step is NaN and is skipped: TensorBoard would
display a NaN as a triangle and break the smoothed curve.

Generation and classification loss share one chart, which shows at a glance if one dominates the other. TensorBoard
colours by run, not by tag, so each of the two is also written, under one common tag, into its own run (``generation/``
and ``classification/`` in the log's folder).

Only rank 0 writes; on every other rank ``log_dir`` is None and each call returns immediately. A resumed run passes the
first step it will write, and TensorBoard hides what the killed run logged from that step on. (Its default, fast loader
does so per tag, once the resumed run writes that tag; with ``--load_fast=false`` it does so immediately.)

Cost: events are queued to a writer thread and flushed to disk every 10 s, at each evaluation and checkpoint, and on
close, so a killed run loses at most its last seconds. TensorBoard is imported only by the rank that writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from clsgen_dist.track.reliability import Reliability, draw_reliability

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

LOSS_GENERATION = "loss/generation"
LOSS_CLASSIFICATION = "loss/classification"
TOKENS_PER_SECOND = "speed/tokens_per_second"
SUPERVISED_TOKENS_PER_SECOND = "speed/supervised_tokens_per_second"

DEV = "dev/"
"""Prefix of metrics on the dev rows: the metric ``loss/generation`` becomes ``dev/loss/generation``."""

_CURVES = {LOSS_GENERATION: "generation", LOSS_CLASSIFICATION: "classification"}
"""The losses on the common chart, and the TensorBoard run of each."""
_TRAIN_CHART, _DEV_CHART = "both_losses/train", "both_losses/dev"
_LONGEST_WAIT = 5.0
"""Seconds."""
_LAYOUT = {
    "losses": {
        "generation and classification": ["Multiline", [f"^{_TRAIN_CHART}$"]],
        "generation and classification, dev": ["Multiline", [f"^{_DEV_CHART}$"]],
    }
}


class TensorBoardLog:
    """Writes a run's TensorBoard log into one folder, or nothing if the folder is None."""

    def __init__(self, log_dir: Path | None, *, settings_text: str, first_step: int = 0) -> None:
        """``settings_text`` is logged verbatim; ``first_step`` is the first step this process will write.

        Points that earlier processes logged into the folder at that step or later are hidden: those of a run that is
        resumed, and of one that ended before its first checkpoint. The settings are logged again at ``first_step``,
        next to those of the first start.
        """
        self._writer: SummaryWriter | None = None
        self._curves: dict[str, SummaryWriter] = {}
        if log_dir is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        continues = any(log_dir.glob("events.*"))
        if continues:
            _wait_for_a_later_second(log_dir)
        options: dict[str, Any] = {"purge_step": first_step if continues else None, "flush_secs": 10}
        self._writer = SummaryWriter(str(log_dir), **options)
        self._curves = {tag: SummaryWriter(str(log_dir / run), **options) for tag, run in _CURVES.items()}
        self._writer.add_custom_scalars(_LAYOUT)
        self._writer.add_text("settings", _code_block(settings_text), first_step)
        # Layout and settings are visible before the first step.
        self.flush()

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each scalar under its own tag; skips NaN (a loss without rows in this step)."""
        if self._writer is None:
            return
        for tag, value in scalars.items():
            if math.isnan(value):
                continue
            self._writer.add_scalar(tag, value, step)
            if curve := self._curves.get(tag.removeprefix(DEV)):
                curve.add_scalar(_DEV_CHART if tag.startswith(DEV) else _TRAIN_CHART, value, step)

    def evaluation(self, step: int, metrics: Mapping[str, float], reliability: Reliability | None) -> None:
        """Writes ``dev/<name>`` for each metric, and the diagram if there is one, and flushes to disk."""
        if self._writer is None:
            return
        self.step(step, {f"{DEV}{name}": value for name, value in metrics.items()})
        if reliability is not None:
            image_HWC = draw_reliability(reliability, f"Reliability on dev, step {step}")
            self._writer.add_image(f"{DEV}reliability", image_HWC, step, dataformats="HWC")
        self.flush()

    def flush(self) -> None:
        """Flush everything logged so far to disk."""
        for writer in self._writers():
            writer.flush()

    def close(self) -> None:
        """Flushes the queue and closes the writer; later calls write nothing."""
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


def _wait_for_a_later_second(log_dir: Path) -> None:
    """TensorBoard reads event files by name, which begins with the second: a resumed run's must come last."""
    seconds = [int(name.split(".")[3]) for name in (f.name for f in log_dir.glob("events.out.tfevents.[0-9]*"))]
    ahead = max(seconds, default=0) + 1 - time.time()
    if ahead > _LONGEST_WAIT:
        logger.warning(
            "this machine's clock is %.0f s behind the one that wrote %s: TensorBoard may show steps twice; set it",
            *(ahead, log_dir),
        )
    elif ahead > 0:
        time.sleep(ahead)


def _code_block(text: str) -> str:
    """``text`` as a Markdown code block: indented, since a ``` inside the text would end a fence."""
    return "\n".join(f"    {line}" for line in text.splitlines())
