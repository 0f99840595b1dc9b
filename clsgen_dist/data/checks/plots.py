"""The plots of `clsgen data check`, as SVG; drawn in placeholder colours that the page replaces by its own."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.data.checks.exact_duplicates import leakage_matrix
from clsgen_dist.data.checks.label_checks import class_counts
from clsgen_dist.data.checks.report import CheckReport
from clsgen_dist.data.checks.row_statistics import RowStatistics, Split

COLOURS = {
    "ink": "#010201",
    "muted": "#010202",
    "line": "#010203",
    "s1": "#010211",
    "s2": "#010212",
    "s3": "#010213",
    "s4": "#010214",
    "error": "#010221",
}
"""The page's CSS variables, and their placeholders in a drawing."""
_SERIES = [COLOURS[f"s{i}"] for i in (1, 2, 3, 4)]
_MAX_CLASSES = 20
_BINS = 40


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and alternative text."""

    title: str
    alt_text: str
    svg: str


def figures(report: CheckReport) -> list[Plot]:
    """All plots for which there is data."""
    import matplotlib

    # Labels may hold "$" and any script; text stays text, in the page's font.
    options = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "clsgen"}
    with matplotlib.rc_context(options), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        splits = [split for split in report.statistics.splits if len(split)]
        if not splits:
            return []
        limits = report.limits
        plots = [
            _classes(report, explained=False),
            _lengths(report, "Prompt length in tokens", "prompt_tokens", limits.max_prompt_length),
        ]
        if any(any(split.explanations) for split in splits):
            plots += [
                _lengths(report, "Explanation length in tokens", "explanation_tokens", limits.max_explanation_length),
                _classes(report, explained=True),
            ]
        return [plot for plot in [*plots, _copies(report)] if plot]


def _classes(report: CheckReport, *, explained: bool) -> Plot | None:
    """Bars of each class and split: the class's share of the rows, or the share of its rows that is explained."""
    splits = [split for split in report.statistics.splits if len(split)]
    statistics = report.statistics
    counts = [class_counts(split, statistics) for split in splits]
    largest = sorted(statistics.class_names, key=lambda name: -sum(c.get(name, 0) for c in counts))[:_MAX_CLASSES]
    if not largest:
        return None
    figure, axes = _axes(0.9 + 0.26 * len(largest) * len(splits))
    height = 0.8 / len(splits)
    for place, (split, count) in enumerate(zip(splits, counts, strict=True)):
        if explained:
            has = np.asarray(split.explanations) > 0
            share = [
                float(has[_of_class(split, name, statistics)].mean()) if count.get(name) else 0.0 for name in largest
            ]
        else:
            share = [count.get(name, 0) / max(1, split.labelled) for name in largest]
        at = np.arange(len(largest)) + (place - (len(splits) - 1) / 2) * height
        axes.barh(at, share, height * 0.88, color=_colour(place), label=split.source.name)
        for y, value, name in zip(at, share, largest, strict=True):
            value_text = "no row" if not count.get(name) else "<1%" if 0 < value < 0.005 else f"{value:.0%}"
            axes.text(value + 0.01, y, value_text, va="center", fontsize=8, color=COLOURS["muted"])
    axes.set_yticks(range(len(largest)), [_short(name) for name in largest])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "25 %", "50 %", "75 %", "100 %"])
    _finish(figure, axes, grid="x", legend=len(splits) > 1)
    title = "Share of each class's rows that is explained" if explained else "Share of each class"
    more = (
        f" (the {_MAX_CLASSES} largest of {len(statistics.class_names)})"
        if len(statistics.class_names) > _MAX_CLASSES
        else ""
    )
    return Plot(title + more, f"Bar chart: {title.lower()}, by split; figures are in the tables", _svg(figure))


def _lengths(report: CheckReport, title: str, field: str, limit: int) -> Plot | None:
    """Histogram by split with the limit marked; values far beyond it are counted in the last bin."""
    of_split = {
        split.source.name: lengths[lengths > 0]
        for split in report.statistics.splits
        if len(lengths := np.asarray(getattr(split, field)))
    }
    of_split = {name: lengths for name, lengths in of_split.items() if len(lengths)}
    if not of_split:
        return None
    every = np.concatenate(list(of_split.values()))
    end = max(limit * 1.15 if every.max() > 0.5 * limit else 0, float(np.percentile(every, 99)) * 1.1, 10)
    figure, axes = _axes(3.2)
    # An integer number of tokens per bin: otherwise some bins would cover one length more than others.
    edges = np.arange(0, end + (step := math.ceil(end / _BINS)), step)
    end = edges[-1]
    for place, (name, lengths) in enumerate(of_split.items()):
        shares = np.histogram(np.minimum(lengths, end), edges)[0] / len(lengths)
        axes.stairs(shares, edges, color=_colour(place), linewidth=1.6, label=name, zorder=3)
        axes.stairs(shares, edges, color=_colour(place), alpha=0.15, fill=True)
    if limit <= end:
        axes.axvline(limit, color=COLOURS["error"], linewidth=1.4, linestyle=(0, (4, 3)), label=f"limit {limit}")
    beyond = int((every > end).sum())
    axes.set(xlim=(0, end), ylim=(0, None))
    axes.set_xlabel(
        "tokens"
        + (f"; limit {limit}, far to the right" if limit > end else "")
        + (f"; last bin: with {beyond} longer, up to {every.max()}" if beyond else "")
    )
    axes.set_ylabel("share of rows")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    _finish(figure, axes, grid="y", legend=True)
    over = int((every > limit).sum())
    return Plot(title, f"Histogram: {title.lower()}, by split; {over} of {len(every)} over {limit}", _svg(figure))


def _copies(report: CheckReport) -> Plot:
    """Matrix of splits: rows with the same text, and nearly the same, as a row of the other split."""
    splits = report.statistics.splits
    matrix = leakage_matrix(report.findings, splits)
    size = len(splits)
    figure, axes = _axes(0.9 + 0.75 * size)
    for column, a in enumerate(splits):
        for row, b in enumerate(splits[column:], start=column):
            same, near = matrix[a.source.name, b.source.name]
            share = (same + near) / max(1, len(b))
            colour = COLOURS["error"] if column != row else COLOURS["s1"]
            alpha = 0.06 if not same + near else 0.15 + 0.4 * min(1.0, share * 4)
            axes.add_patch(_square(column, row, colour, alpha))
            cell = f"{same} same, {near} near" if same + near else "none"
            axes.text(column, row, cell, ha="center", va="center", fontsize=9, color=COLOURS["ink"])
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    names = [_short(split.source.name) for split in splits]
    axes.set_xticks(range(size), [f"… in {name}" for name in names])
    axes.set_yticks(range(size), [f"rows of {name}" for name in names])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=COLOURS["ink"])
    cells = "; ".join(f"{b} in {a}: {same} same, {near} near" for (a, b), (same, near) in matrix.items())
    return Plot("Repeated texts: within a file, and between files", f"Matrix: {cells}", _svg(figure))


def _square(column: int, row: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=colour, alpha=alpha, linewidth=0)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, height), facecolor="none", layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _finish(figure: Any, axes: Any, *, grid: str, legend: bool) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=COLOURS["line"], linewidth=0.8)
    axes.tick_params(colors=COLOURS["muted"], labelcolor=COLOURS["ink"], labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["muted"])
    axes.xaxis.label.set(color=COLOURS["muted"], fontsize=9)
    axes.yaxis.label.set(color=COLOURS["muted"], fontsize=9)
    if legend:
        figure.legend(
            loc="outside upper left", ncols=6, frameon=False, fontsize=9, labelcolor=COLOURS["ink"], borderaxespad=0
        )


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _colour(place: int) -> str:
    return _SERIES[place % len(_SERIES)]


def _of_class(split: Split, name: str, statistics: RowStatistics) -> np.ndarray:
    """bool ``[N]`` which rows have the class."""
    wanted = [label for label in range(len(statistics.label_names)) if name in statistics.classes(label)]
    return np.isin(np.asarray(split.labels), wanted)


def _short(name: str) -> str:
    name = name if name == name.strip() else repr(name)
    return name if len(name) <= 24 else name[:23] + "…"
