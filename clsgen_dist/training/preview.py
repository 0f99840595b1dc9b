"""What each optimizer step of a run would visit, by the functions that plan the run: table, plot, plan for scripts.

Cost: the order and packing of every step, milliseconds each; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.stages import PlannedStage, RunOrder
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.pack import PackingStats, packing_stats
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.engine.optim import lr_factor
from clsgen_dist.io.plots import save_figure, stacked_axes
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import shortened
from clsgen_dist.objectives.loss_weights import Weights
from clsgen_dist.training.datasets import datasets_of_recipe
from clsgen_dist.training.sampling_plan import plan_stream, total_steps, weight_schedule

# N rows, B rows of a step, V visits of several steps

_CLASSES = 8
"""Classes with a column of their own."""
_BUCKETS = 120
"""Columns of the plot, at most."""


@dataclass(frozen=True)
class PreviewStep:
    """What one optimizer step would visit."""

    row_B: np.ndarray
    difficulty_B: np.ndarray
    """Difficulty quantiles."""
    tokens: int
    packing: PackingStats
    lr: float
    weights: Weights


@dataclass(frozen=True)
class RunPreview:
    """A planned run, step by step."""

    rows: RowDataset
    stages: Sequence[PlannedStage]
    steps: Sequence[PreviewStep]

    def stage_steps(self, planned: PlannedStage) -> Sequence[PreviewStep]:
        """The steps of a stage, without those beyond ``train.max_steps``."""
        return self.steps[planned.first_step : planned.first_step + planned.steps]

    def plan(self) -> list[dict[str, Any]]:
        """The stages with their steps (``last_step`` is one past the last), rows and tokens, for launch scripts."""
        return [
            {
                "name": planned.stage.name,
                "first_step": planned.first_step,
                "last_step": planned.first_step + len(steps := self.stage_steps(planned)),
                "rows": sum(len(step.row_B) for step in steps),
                "tokens": sum(step.tokens for step in steps),
                "micro_steps": sum(step.packing.micro_steps for step in steps),
            }
            for planned in self.stages
        ]

    def table(self) -> str:
        """A line for each stage, in Markdown."""
        classes = self.rows.group_names
        head = ["stage", "steps", "rows", "distinct", "tokens", "difficulty", "micro-steps", "efficiency", "shortened"]
        other = [f"other {len(classes) - _CLASSES} classes"] if len(classes) > _CLASSES else []
        lines = [self._stage_line(planned) for planned in self.stages]
        return markdown_table([[*head, *map(shortened, classes[:_CLASSES]), *other], *lines])

    def _stage_line(self, planned: PlannedStage) -> list[str]:
        steps, classes = self.stage_steps(planned), len(self.rows.group_names)
        row_V = np.concatenate([step.row_B for step in steps])
        label_V = self.rows.label_N[row_V]
        shares = [(label_V == index).mean() for index in range(min(classes, _CLASSES))]
        shares += [(label_V >= _CLASSES).mean()] if classes > _CLASSES else []
        is_staged = any(step.difficulty_B.any() for step in self.steps)
        difficulty = np.concatenate([step.difficulty_B for step in steps]).mean()
        tokens = sum(step.tokens for step in steps)
        computed = sum(step.tokens / step.packing.efficiency for step in steps)
        return [
            planned.stage.name,
            str(len(steps)),
            str(len(row_V)),
            str(len(np.unique(row_V))),
            str(tokens),
            f"{difficulty:.2f}" if is_staged else "-",
            f"{np.mean([step.packing.micro_steps for step in steps]):.1f}",
            f"{tokens / computed:.1%}",
            str(self.rows.truncated(planned.stage.max_prompt_length)),
            *(f"{share:.1%}" for share in shares),
        ]


def preview_run(settings: Settings, ranks: int = 1) -> RunPreview:
    """The steps that a run of this recipe would take on ``ranks`` ranks.

    Raises:
        SettingsError: ``data.stream_window`` is set, a row fits no token budget, or a stage has no rows.
        DataError: the rows cannot be trained on, or scores that a stage needs have not been computed.
    """
    datasets = datasets_of_recipe(settings)
    rows = datasets.train
    assert isinstance(rows, RowDataset)
    stream = plan_stream(settings, datasets, rank=0, world_size=ranks)
    quantile_N = stream.order.quantile_N if isinstance(stream.order, RunOrder) else np.zeros(len(rows))
    last = total_steps(stream, settings)
    return RunPreview(rows, stream.stages, [_preview_step(settings, stream, quantile_N, k, last) for k in range(last)])


def _preview_step(
    settings: Settings, stream: TrainStream, quantile_N: np.ndarray, step: int, total: int
) -> PreviewStep:
    optim, planned = settings.optim, stream.stage_of(step)
    row_B, _, length_B, bins = stream.bins(step)
    factor = lr_factor(step, total, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction)
    terms = [term.name for term in settings.objectives.terms(settings.model.decide)]
    schedule, progress = weight_schedule(settings.objectives, terms, planned, step, total)
    return PreviewStep(
        row_B,
        quantile_N[row_B],
        tokens=int(length_B.sum()),
        packing=packing_stats(bins, length_B),
        lr=factor * planned.stage.lr_factor * optim.lr,
        weights=schedule.at(progress),
    )


def draw_preview(path: Path, run: RunPreview) -> None:
    """Difficulty and classes over the run, the weights and rate in force, and the tokens of a step."""
    figure, axes = stacked_axes(4, 2.2)
    steps, classes = run.steps, run.rows.group_names
    buckets = np.array_split(np.arange(len(steps)), min(len(steps), _BUCKETS))
    edges = np.linspace(0, 1, 26)
    density = np.stack(
        [np.histogram(np.concatenate([steps[k].difficulty_B for k in bucket]), edges)[0] for bucket in buckets],
        axis=1,
    ).astype(float)
    density /= density.sum(axis=0, keepdims=True)
    axes[0].pcolormesh([*(bucket[0] for bucket in buckets), len(steps)], edges, density, cmap="viridis")
    axes[0].set_ylabel("difficulty quantile\n(brighter: more)")
    bucket_labels = [run.rows.label_N[np.concatenate([steps[k].row_B for k in bucket])] for bucket in buckets]
    for index, label in enumerate(classes[:_CLASSES]):
        shares = [(label_V == index).mean() for label_V in bucket_labels]
        axes[1].plot([bucket.mean() for bucket in buckets], shares, label=shortened(label))
    axes[1].set_ylim(0, 1)
    more = f" (the first {_CLASSES} of {len(classes)} classes)" if len(classes) > _CLASSES else ""
    axes[1].set_ylabel(f"share of rows{more}")
    axes[1].legend(frameon=False)
    for term in steps[0].weights:
        axes[2].plot([step.weights[term] for step in steps], label=f"{term} weight")
    axes[2].set_ylabel("loss weight")
    axes[2].legend(frameon=False, loc="upper left")
    rate = axes[2].twinx()
    rate.plot([step.lr for step in steps], color="grey", linestyle=":")
    rate.set_ylabel("learning rate (dotted)")
    axes[3].plot([step.tokens for step in steps])
    axes[3].set_ylabel("tokens of a step")
    axes[3].set_xlabel("optimizer step")
    for axis in axes:
        axis.set_xlim(0, len(steps))
        for planned in run.stages[1:]:
            axis.axvline(planned.first_step, color="red", linewidth=0.8)
    for planned in run.stages:
        axes[0].text(planned.first_step, 1.02, planned.stage.name, color="red")
    save_figure(figure, path)
