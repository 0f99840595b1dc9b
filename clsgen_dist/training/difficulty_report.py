"""How hard the rows of a recipe are: quantiles of each scorer by class, how far scorers agree, extremes, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.difficulty import combine
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.io.plots import save_figure, stacked_axes
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import shortened
from clsgen_dist.model.backbone import backbone_path
from clsgen_dist.model.context_length import require_context
from clsgen_dist.training.backbone_scores import BACKBONE_SCORERS, difficulty_scores
from clsgen_dist.training.datasets import datasets_of_recipe
from clsgen_dist.training.sampling_plan import difficulty_model

# N rows

_EXCERPT = 160
_DRAWN_CLASSES = 8


@dataclass(frozen=True)
class DifficultyReport:
    """The difficulty of the training rows."""

    rows: RowDataset
    weights: Mapping[str, float]
    """Weight of each scorer."""
    scores: Mapping[str, np.ndarray]
    """``[N]`` of each scorer; NaN where unknown."""
    difficulty_N: np.ndarray
    """The scores combined, in [0, 1]."""

    @property
    def folder(self) -> Path:
        """Where the scores are kept."""
        return self.rows.table.folder / "scores"

    def text(self, show: int) -> str:
        """Tables, and the ``show`` easiest and hardest rows."""
        parts = [self._quantiles()]
        if len(self.scores) > 1:
            parts.append(self._agreement())
        order = np.argsort(self.difficulty_N, kind="stable")
        for title, chosen in (("easiest", order[:show]), ("hardest", order[::-1][:show])):
            parts.append("\n".join([f"{title}:", *(line for row in chosen for line in self._row(int(row)))]))
        return "\n\n".join(parts)

    def draw(self, path: Path) -> None:
        """A histogram of each scorer, by class."""
        figure, axes = stacked_axes(len(self.scores), 2.4)
        classes = self._classes()
        for axis, (name, score_N) in zip(axes, self.scores.items(), strict=True):
            known = score_N[~np.isnan(score_N)]
            low, high = (float(q) for q in np.quantile(known, [0, 0.995])) if len(known) else (0.0, 1.0)
            if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: a bar in the middle
                half = max(abs(low), 1.0) / 2
                low, high = low - half, high + half
            edges = np.linspace(low, high, 41)
            for label, in_class_N in classes[:_DRAWN_CLASSES]:
                values = score_N[in_class_N & ~np.isnan(score_N)]
                if len(values):
                    text = f"{label} ({len(values)})"
                    axis.hist(np.minimum(values, high), edges, histtype="step", density=True, label=text)
            more = f" (the first {_DRAWN_CLASSES} classes)" if len(classes) > _DRAWN_CLASSES else ""
            axis.set_title(name + more, loc="left")
            axis.set_ylabel("density")
            axis.legend(frameon=False)
        save_figure(figure, path)

    def _classes(self) -> list[tuple[str, np.ndarray]]:
        """Name and mask ``[N]`` of each class that has rows."""
        label_N = self.rows.label_N
        classes = [(shortened(name), label_N == index) for index, name in enumerate(self.rows.group_names)]
        return [(name, in_class_N) for name, in_class_N in [*classes, ("(no label)", label_N < 0)] if in_class_N.any()]

    def _quantiles(self) -> str:
        table = [["scorer", "weight", "class", "rows", "known", "10 %", "median", "90 %"]]
        for name, score_N in self.scores.items():
            for label, in_class_N in self._classes():
                known = score_N[in_class_N & ~np.isnan(score_N)]
                quantiles = [f"{q:.3f}" for q in np.quantile(known, [0.1, 0.5, 0.9])] if len(known) else ["-"] * 3
                rows = [str(in_class_N.sum()), str(len(known))]
                table.append([name, f"{self.weights[name]:g}", label, *rows, *quantiles])
        return markdown_table(table)

    def _agreement(self) -> str:
        """Rank correlation of the scorers: two that agree are one."""
        scores = self.scores
        rows = [[a, *(_rank_correlation(scores[a], scores[b]) for b in scores)] for a in scores]
        return markdown_table([["Spearman's rho", *scores], *rows])

    def _row(self, row: int) -> Iterator[str]:
        example = self.rows.table.example(row)
        label = shortened(example.label or "no label")
        text = shortened(example.text, _EXCERPT)
        yield f"  {self.difficulty_N[row]:.3f}  {example.location}  [{label}]  {text}"
        if example.explanations:
            yield f"         {shortened(example.explanations[0], _EXCERPT)}"


def score_rows(settings: Settings) -> DifficultyReport:
    """The difficulty of the recipe's training rows; scores that are not kept yet are computed.

    Raises:
        SettingsError: ``data.stream_window`` is set, or the lengths exceed the context of the backbone that is asked.
        DataError: the rows cannot be trained on, or a scorer does not exist.
    """
    from transformers import AutoConfig

    weights, data = settings.curriculum.difficulty, settings.data
    backbone = backbone_path(difficulty_model(settings))
    if not set(weights).isdisjoint(BACKBONE_SCORERS):
        require_context(
            AutoConfig.from_pretrained(backbone, trust_remote_code=False),
            data.max_prompt_length,
            data.max_explanation_length,
        )
    rows = datasets_of_recipe(settings).train
    assert isinstance(rows, RowDataset)
    scores = difficulty_scores(rows, weights, backbone=backbone, compute=True)
    return DifficultyReport(rows, weights, scores, combine(scores, weights, rows.label_N))


def _rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> str:
    from scipy.stats import spearmanr

    both_N = ~np.isnan(a_N) & ~np.isnan(b_N)
    if min(len(np.unique(a_N[both_N])), len(np.unique(b_N[both_N]))) < 2:
        return "constant"
    return f"{spearmanr(a_N[both_N], b_N[both_N]).statistic:.2f}"
