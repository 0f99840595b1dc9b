"""An evaluation on TensorBoard, beside the training curves: metrics, precision-recall curves, figures, summary."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np

from clsgen_dist.evaluation.interval import Estimate
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.report.document import Document, Figure

FOLDER = "tensorboard"


def write_tensorboard(found: Evaluation, report: Document, folder: Path) -> None:
    """Write ``folder`` anew, all at the step of the model's checkpoint; undefined metrics are left out."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    step = int(found.provenance.get("trained", {}).get("step", 0))
    with SummaryWriter(str(folder)) as log:
        for name, estimate in found.decisions.metrics.items():
            for tag, value in _with_interval(f"test/{name}", estimate).items():
                log.add_scalar(tag, value, step)
        for name, answer_N, p_N in _questions(found):
            log.add_pr_curve(f"test/{name}", answer_N, p_N, step)
        for section in report.sections:
            for block in section.blocks:
                if isinstance(block, Figure):
                    tag = re.sub(r"\W+", "_", block.caption).strip("_").lower()
                    log.add_image(f"test/{tag}", block.drawing.pixels_HWC, step, dataformats="HWC")
        log.add_text("test/summary", " ".join(report.summary), step)


def _with_interval(tag: str, estimate: Estimate) -> dict[str, float]:
    values = {tag: estimate.value, f"{tag}/low": estimate.interval.low, f"{tag}/high": estimate.interval.high}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _questions(found: Evaluation) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The yes-no question of each class, of two that of the positive one: its name, answers and probabilities."""
    space, labels, p_NC = found.space, found.labels, found.probabilities_NC
    classes = [space.positive_index] if space.kind == "single" and space.is_binary else range(len(space))
    asked = []
    for c in classes:
        known_N = ~np.isnan(labels[:, c]) if labels.ndim == 2 else np.ones(len(labels), dtype=bool)
        answer_N = labels[:, c] >= 0.5 if labels.ndim == 2 else labels == c
        if answer_N[known_N].any() and not answer_N[known_N].all():
            asked.append((space.names[c], answer_N[known_N], p_NC[known_N, c]))
    return asked
