"""``clsgen data score``: how hard each row is, before a curriculum relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clsgen_dist.io.files import require_writable
from clsgen_dist.io.plots import save_figure, stacked_axes
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import shortened

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.io.value_ranges import NonNegativeInt

# N rows

_EXCERPT = 160
_DRAWN = 8
"""Classes that are drawn."""


def run(settings: Settings, show: NonNegativeInt = 3, plot: str = "difficulty.png") -> None:
    """Score how hard each row is, by the recipe's scorers: distribution, extremes, plot.

    Usage: `clsgen data score FILE`. FILE are training rows, in any format that data.train takes; without it, the
    recipe's. Every setting may follow, as for `clsgen train`.

    Args:
        show: Easiest and hardest rows to print.
        plot: Image to write.
    """
    from transformers import AutoConfig

    from clsgen_dist.data.curriculum.difficulty import combine
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.model.backbone import backbone_path
    from clsgen_dist.model.context_length import require_context
    from clsgen_dist.training.backbone_scores import OF_BACKBONE, difficulty_scores
    from clsgen_dist.training.datasets import datasets_of_recipe
    from clsgen_dist.training.sampling_plan import difficulty_model

    require_writable(plot, picture=True)
    weights, data = settings.curriculum.difficulty, settings.data
    backbone = backbone_path(difficulty_model(settings))
    if not set(weights).isdisjoint(OF_BACKBONE):
        require_context(AutoConfig.from_pretrained(backbone), data.max_prompt_length, data.max_explanation_length)
    rows = datasets_of_recipe(settings).train
    assert isinstance(rows, RowDataset)
    scores = difficulty_scores(rows, weights, backbone=backbone, compute=True)
    joined_N = combine(scores, weights, rows.label_N)
    classes = [(shortened(name), rows.label_N == index) for index, name in enumerate(rows.table.card.labels)]
    classes += [("(no label)", rows.label_N < 0)]
    classes = [(name, mine_N) for name, mine_N in classes if mine_N.any()]
    table = [["scorer", "weight", "class", "rows", "known", "10 %", "median", "90 %"]]
    for name, score_N in scores.items():
        for label, mine_N in classes:
            known = score_N[mine_N][~np.isnan(score_N[mine_N])]
            quantiles = [f"{q:.3f}" for q in np.quantile(known, [0.1, 0.5, 0.9])] if len(known) else ["-"] * 3
            table.append([name, f"{weights[name]:g}", label, str(mine_N.sum()), str(len(known)), *quantiles])
    print(markdown_table(table))
    _print_agreement(scores)
    order = np.argsort(joined_N, kind="stable")
    for title, chosen in (("easiest", order[:show]), ("hardest", order[::-1][:show])):
        print(f"\n{title}:")
        for row in chosen:
            example = rows.table.example(int(row))
            label = shortened(example.label or "no label")
            print(f"  {joined_N[row]:.3f}  {example.source}  [{label}]  {shortened(example.text, _EXCERPT)}")
            if example.explanations:
                print(f"         {shortened(example.explanations[0], _EXCERPT)}")
    _draw_scores(Path(plot), scores, classes)
    print(f"\nplot    {plot}\nscores  {rows.table.folder / 'scores'}")


def _print_agreement(scores: dict[str, np.ndarray]) -> None:
    """Rank correlation of the scorers: two that agree are one."""
    if len(scores) < 2:
        return
    names = list(scores)
    table = [["Spearman's rho", *names]]
    for a in names:
        table.append([a, *(_rank_correlation(scores[a], scores[b]) for b in names)])
    print()
    print(markdown_table(table))


def _rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> str:
    from scipy.stats import spearmanr

    both_N = ~np.isnan(a_N) & ~np.isnan(b_N)
    if min(len(np.unique(a_N[both_N])), len(np.unique(b_N[both_N]))) < 2:
        return "constant"
    return f"{spearmanr(a_N[both_N], b_N[both_N]).statistic:.2f}"


def _draw_scores(path: Path, scores: dict[str, np.ndarray], classes: list[tuple[str, np.ndarray]]) -> None:
    """A histogram of each scorer, by class."""
    figure, axes = stacked_axes(len(scores), 2.4)
    for axis, (name, score_N) in zip(axes, scores.items(), strict=True):
        known = score_N[~np.isnan(score_N)]
        low, high = (float(q) for q in np.quantile(known, [0, 0.995])) if len(known) else (0.0, 1.0)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: a bar in the middle
            half = max(abs(low), 1.0) / 2
            low, high = low - half, high + half
        edges = np.linspace(low, high, 41)
        for label, mine_N in classes[:_DRAWN]:
            mine = score_N[mine_N & ~np.isnan(score_N)]
            if len(mine):
                axis.hist(np.minimum(mine, high), edges, histtype="step", density=True, label=f"{label} ({len(mine)})")
        axis.set_title(name + (f" (the first {_DRAWN} classes)" if len(classes) > _DRAWN else ""), loc="left")
        axis.set_ylabel("density")
        axis.legend(frameon=False)
    save_figure(figure, path)
