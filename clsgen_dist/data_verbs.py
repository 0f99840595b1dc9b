"""``clsgen data score`` and ``clsgen data preview``: a curriculum looked at before a step is taken.

Both read the recipe that ``train.py`` reads, and plan with the functions that it plans with.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clsgen_dist.config import Settings

if TYPE_CHECKING:
    from clsgen_dist.data.loader import TrainStream
    from clsgen_dist.data.row_set import RowSet
    from clsgen_dist.data.rows import Rows

# N rows, K optimizer steps

_EXCERPT = 160


def score(settings: Settings, *, show: int, plot: str) -> None:
    """Score the training rows' difficulty, print its distribution and its extremes, and draw it."""
    from clsgen_dist.data.difficulty import combine
    from clsgen_dist.engine.scoring import difficulty_scores
    from clsgen_dist.engine.stream import difficulty_model
    from clsgen_dist.model.backbone import backbone_path

    _, rows = _rows(settings)
    weights = settings.curriculum.difficulty
    scores = difficulty_scores(rows, weights, backbone=backbone_path(difficulty_model(settings)), compute=True)
    joined_N = combine(scores, weights, rows.label_N)
    classes = [(name, rows.label_N == index) for index, name in enumerate(rows.table.card.labels)]
    classes += [("(no label)", rows.label_N < 0)]
    classes = [(name, mine_N) for name, mine_N in classes if mine_N.any()]
    table = [["scorer", "weight", "class", "rows", "known", "10 %", "median", "90 %"]]
    for name, score_N in scores.items():
        for label, mine_N in classes:
            known = score_N[mine_N][~np.isnan(score_N[mine_N])]
            quantiles = [f"{q:.3f}" for q in np.quantile(known, [0.1, 0.5, 0.9])] if len(known) else ["-"] * 3
            table.append([name, f"{weights[name]:g}", label, str(mine_N.sum()), str(len(known)), *quantiles])
    _print_table(table)
    _print_agreement(scores)
    order = np.argsort(joined_N, kind="stable")
    for title, chosen in (("easiest", order[:show]), ("hardest", order[::-1][:show])):
        print(f"\n{title}:")
        for row in chosen:
            example = rows.table.example(int(row))
            text = textwrap.shorten(example.text, _EXCERPT, placeholder=" ...")
            print(f"  {joined_N[row]:.3f}  {example.source}  [{example.label}]  {text}")
            if example.explanations:
                print(f"         {textwrap.shorten(example.explanations[0], _EXCERPT, placeholder=' ...')}")
    _draw_scores(Path(plot), scores, classes)
    print(f"\nplot    {plot}\nscores  {rows.table.folder / 'scores'}")


def preview(settings: Settings, *, ranks: int, plot: str) -> None:
    """Print and draw what a run would show when: stages, difficulty, classes, loss weights, tokens, packing."""
    from clsgen_dist.engine.stream import plan_stream

    both, rows = _rows(settings)
    shown = _Shown(settings, plan_stream(settings, both, rank=0, world_size=ranks), rows)
    _print_table(shown.table())
    _draw_preview(Path(plot), shown)
    print(f"\nplot  {plot}")


def _rows(settings: Settings) -> tuple[Rows, RowSet]:
    """The recipe's rows, and the training rows among them."""
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.data.row_set import RowSet
    from clsgen_dist.data.rows import read_rows
    from clsgen_dist.errors import SettingsError
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    encoder = Encoder(
        load_tokenizer(backbone_path(settings.model.backbone)),
        system=settings.prompt.system,
        question=settings.prompt.question,
        max_prompt_length=settings.data.max_prompt_length,
    )
    rows = read_rows(settings.data, encoder, None, print)
    for note in rows.notes:
        print(note)
    print()
    if not isinstance(rows.train, RowSet):
        raise SettingsError(
            "data.stream_window is set, but this looks at rows at hand; leave it out, and name one shard"
        )
    return rows, rows.train


class _Shown:
    """What each optimizer step of a planned run shows."""

    def __init__(self, settings: Settings, stream: TrainStream, rows: RowSet) -> None:
        from clsgen_dist.data.curriculum import RunOrder
        from clsgen_dist.data.pack import load_of
        from clsgen_dist.engine.optim import lr_factor
        from clsgen_dist.engine.stream import weight_schedule

        self.label_N, self.labels, self.shortened = rows.label_N, rows.table.card.labels, rows.shortened
        self.stages = stream.stages
        self.steps = min(stream.steps, settings.train.max_steps or stream.steps)
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
            loads.append(load_of(bins, length_B))
            factor = lr_factor(
                step, self.steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
            )
            self.lr.append(factor * planned.stage.lr_factor * optim.lr)
            schedule, progress = weight_schedule(settings.loss, planned, step, self.steps)
            weights.append(schedule.at(progress))
        self.loads = loads
        self.generation = [w.generation for w in weights]
        self.classification = [w.classification for w in weights]

    def table(self) -> list[list[str]]:
        """One line a stage."""
        labels = self.labels
        head = ["stage", "steps", "rows", "distinct", "tokens", "difficulty", "micro-steps", "efficiency", "shortened"]
        table = [[*head, *labels]]
        for planned in self.stages:
            mine = range(planned.first_step, min(planned.first_step + planned.steps, self.steps))
            row_p = np.concatenate([self.rows[step] for step in mine])
            share = [f"{(self.label_N[row_p] == index).mean():.1%}" for index in range(len(labels))]
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


def _print_agreement(scores: dict[str, np.ndarray]) -> None:
    """Rank correlation of the scorers: two that agree are one."""
    if len(scores) < 2:
        return
    from scipy.stats import spearmanr

    names = list(scores)
    table = [["Spearman's rho", *names]]
    for a in names:
        table.append([a, *(f"{spearmanr(scores[a], scores[b], nan_policy='omit').statistic:.2f}" for b in names)])
    print()
    _print_table(table)


def _print_table(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    for number, row in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def _axes(rows: int, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(9, height * rows), squeeze=False, layout="constrained")
    return figure, axes[:, 0]


def _draw_scores(path: Path, scores: dict[str, np.ndarray], classes: list[tuple[str, np.ndarray]]) -> None:
    """A histogram of each scorer, by class."""
    figure, axes = _axes(len(scores), 2.4)
    for axis, (name, score_N) in zip(axes, scores.items(), strict=True):
        known = score_N[~np.isnan(score_N)]
        low, high = np.quantile(known, [0, 0.995]) if len(known) else (0.0, 1.0)
        edges = np.linspace(float(low), float(high) + 1e-9, 41)
        for label, mine_N in classes:
            mine = score_N[mine_N & ~np.isnan(score_N)]
            axis.hist(np.minimum(mine, edges[-1]), edges, histtype="step", density=True, label=f"{label} ({len(mine)})")
        axis.set_title(name, loc="left")
        axis.set_ylabel("density")
        axis.legend(frameon=False)
    _save(figure, path)


def _draw_preview(path: Path, shown: _Shown) -> None:
    """Difficulty and classes over the run, the weights and rate in force, and the tokens of a step."""
    figure, axes = _axes(4, 2.2)
    buckets = np.array_split(np.arange(shown.steps), min(shown.steps, 120))
    centres = [bucket.mean() for bucket in buckets]
    edges = np.linspace(0, 1, 26)
    density = np.stack(
        [np.histogram(np.concatenate([shown.difficulty[s] for s in bucket]), edges)[0] for bucket in buckets],
        axis=1,
    ).astype(float)
    density /= density.sum(axis=0, keepdims=True)
    starts = [bucket[0] for bucket in buckets] + [shown.steps]
    axes[0].pcolormesh(starts, edges, density, cmap="viridis")
    axes[0].set_ylabel("difficulty quantile\n(brighter: more)")
    for index, label in enumerate(shown.labels):
        share = [(shown.label_N[np.concatenate([shown.rows[s] for s in bucket])] == index).mean() for bucket in buckets]
        axes[1].plot(centres, share, label=label)
    axes[1].set_ylim(0, 1)
    axes[1].set_ylabel("share of rows")
    axes[1].legend(frameon=False)
    axes[2].plot(shown.generation, label="generation weight")
    axes[2].plot(shown.classification, label="classification weight")
    axes[2].set_ylabel("loss weight")
    axes[2].legend(frameon=False, loc="upper left")
    rate = axes[2].twinx()
    rate.plot(shown.lr, color="grey", linestyle=":")
    rate.set_ylabel("learning rate (dotted)")
    axes[3].plot(shown.tokens)
    axes[3].set_ylabel("tokens of a step")
    axes[3].set_xlabel("optimizer step")
    for axis in axes:
        axis.set_xlim(0, shown.steps)
        for planned in shown.stages[1:]:
            axis.axvline(planned.first_step, color="red", linewidth=0.8)
    for planned in shown.stages:
        axes[0].text(planned.first_step, 1.02, planned.stage.name, color="red")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
