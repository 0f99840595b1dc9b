"""``clsgen data preview``: what a run would show when, before a step is taken.

It reads the recipe that ``train.py`` reads, and plans with the functions that it plans with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clsgen_dist.io.files import atomic_write, require_writable, writing
from clsgen_dist.io.plots import save_figure, stacked_axes
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import shortened

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.data.loader import TrainStream
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.io.value_ranges import PositiveInt

# N rows, B rows of a step

_CLASSES = 8
"""Classes with a column of their own."""


def run(settings: Settings, ranks: PositiveInt = 1, plot: str = "preview.png", plan: str | None = None) -> None:
    """Draw which rows a run would visit when, before a step is taken: stages, classes, loss weights, tokens.

    Every setting may follow, as for `clsgen train`.

    Args:
        ranks: Ranks to pack for.
        plot: Image to write.
        plan: JSON file to write for launch scripts: the stages with their steps, rows and tokens.
    """
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.training.datasets import datasets_of_recipe
    from clsgen_dist.training.sampling_plan import plan_stream

    require_writable(plot, picture=True)
    require_writable(plan)
    datasets = datasets_of_recipe(settings)
    rows = datasets.train
    assert isinstance(rows, RowDataset)
    run = _RunPreview(settings, plan_stream(settings, datasets, rank=0, world_size=ranks), rows)
    print(markdown_table(run.table()))
    _draw_preview(Path(plot), run)
    print(f"\nplot  {plot}")
    if plan:
        with writing(Path(plan)):
            atomic_write(Path(plan), json.dumps(run.plan(), indent=1) + "\n")
        print(f"plan  {plan}")


class _RunPreview:
    """What each optimizer step of a planned run shows."""

    def __init__(self, settings: Settings, stream: TrainStream, rows: RowDataset) -> None:
        from clsgen_dist.data.curriculum.stages import RunOrder
        from clsgen_dist.data.pack import packing_stats
        from clsgen_dist.engine.optim import lr_factor
        from clsgen_dist.training.sampling_plan import total_steps, weight_schedule

        self.label_N, self.labels, self.shortened = rows.label_N, rows.table.card.labels, rows.truncated
        self.stages = stream.stages
        self.steps = total_steps(stream, settings)
        self.rows: list[np.ndarray] = []
        self.difficulty: list[np.ndarray] = []
        loads, self.tokens, self.lr, weights = [], [], [], []
        optim = settings.optim
        quantile_N = stream.order.quantile_N if isinstance(stream.order, RunOrder) else np.zeros(len(rows))
        self.staged = bool(quantile_N.any())
        for step in range(self.steps):
            row_B, _, length_B, bins = stream.bins(step)
            planned = stream.stage_of(step)
            self.rows.append(row_B)
            self.difficulty.append(quantile_N[row_B])
            self.tokens.append(int(length_B.sum()))
            loads.append(packing_stats(bins, length_B))
            factor = lr_factor(
                step, self.steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
            )
            self.lr.append(factor * planned.stage.lr_factor * optim.lr)
            schedule, progress = weight_schedule(settings.loss, planned, step, self.steps)
            weights.append(schedule.at(progress))
        self.loads = loads
        self.generation = [w.generation for w in weights]
        self.classification = [w.classification for w in weights]

    def plan(self) -> list[dict[str, Any]]:
        """The stages for a launch script."""
        stages = []
        for planned in self.stages:
            last = min(planned.first_step + planned.steps, self.steps)
            mine = slice(planned.first_step, last)
            stages.append(
                {
                    "name": planned.stage.name,
                    "first_step": planned.first_step,
                    "last_step": last,
                    "rows": sum(map(len, self.rows[mine])),
                    "tokens": sum(self.tokens[mine]),
                    "micro_steps": sum(load.micro_steps for load in self.loads[mine]),
                }
            )
        return stages

    def table(self) -> list[list[str]]:
        """One line a stage."""
        labels = self.labels[:_CLASSES]
        head = ["stage", "steps", "rows", "distinct", "tokens", "difficulty", "micro-steps", "efficiency", "shortened"]
        more = [f"other {len(self.labels) - len(labels)} classes"] if len(labels) < len(self.labels) else []
        table = [[*head, *map(shortened, labels), *more]]
        for planned in self.stages:
            mine = range(planned.first_step, min(planned.first_step + planned.steps, self.steps))
            row_p = np.concatenate([self.rows[step] for step in mine])
            share = [f"{(self.label_N[row_p] == index).mean():.1%}" for index in range(len(labels))]
            share += [f"{(self.label_N[row_p] >= len(labels)).mean():.1%}" for _ in more]
            tokens = np.array([self.tokens[step] for step in mine])
            waited = np.array([self.tokens[step] / self.loads[step].efficiency for step in mine])
            table.append(
                [
                    planned.stage.name,
                    str(len(mine)),
                    str(len(row_p)),
                    str(len(np.unique(row_p))),
                    str(tokens.sum()),
                    f"{np.concatenate([self.difficulty[step] for step in mine]).mean():.2f}" if self.staged else "-",
                    f"{np.mean([self.loads[step].micro_steps for step in mine]):.1f}",
                    f"{tokens.sum() / waited.sum():.1%}",
                    str(self.shortened(planned.stage.max_prompt_length)),
                    *share,
                ]
            )
        return table


def _draw_preview(path: Path, run: _RunPreview) -> None:
    """Difficulty and classes over the run, the weights and rate in force, and the tokens of a step."""
    figure, axes = stacked_axes(4, 2.2)
    buckets = np.array_split(np.arange(run.steps), min(run.steps, 120))
    centres = [bucket.mean() for bucket in buckets]
    edges = np.linspace(0, 1, 26)
    density = np.stack(
        [np.histogram(np.concatenate([run.difficulty[s] for s in bucket]), edges)[0] for bucket in buckets],
        axis=1,
    ).astype(float)
    density /= density.sum(axis=0, keepdims=True)
    starts = [bucket[0] for bucket in buckets] + [run.steps]
    axes[0].pcolormesh(starts, edges, density, cmap="viridis")
    axes[0].set_ylabel("difficulty quantile\n(brighter: more)")
    for index, label in enumerate(run.labels[:_CLASSES]):
        share = [(run.label_N[np.concatenate([run.rows[s] for s in bucket])] == index).mean() for bucket in buckets]
        axes[1].plot(centres, share, label=shortened(label))
    axes[1].set_ylim(0, 1)
    more = f" (the first {_CLASSES} of {len(run.labels)} classes)" if len(run.labels) > _CLASSES else ""
    axes[1].set_ylabel(f"share of rows{more}")
    axes[1].legend(frameon=False)
    axes[2].plot(run.generation, label="generation weight")
    axes[2].plot(run.classification, label="classification weight")
    axes[2].set_ylabel("loss weight")
    axes[2].legend(frameon=False, loc="upper left")
    rate = axes[2].twinx()
    rate.plot(run.lr, color="grey", linestyle=":")
    rate.set_ylabel("learning rate (dotted)")
    axes[3].plot(run.tokens)
    axes[3].set_ylabel("tokens of a step")
    axes[3].set_xlabel("optimizer step")
    for axis in axes:
        axis.set_xlim(0, run.steps)
        for planned in run.stages[1:]:
            axis.axvline(planned.first_step, color="red", linewidth=0.8)
    for planned in run.stages:
        axes[0].text(planned.first_step, 1.02, planned.stage.name, color="red")
    save_figure(figure, path)
