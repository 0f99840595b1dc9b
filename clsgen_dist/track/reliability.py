"""The reliability diagram: is a class predicted with probability 0.8 correct eight times in ten?

Rows are grouped into B equal-width bins by predicted probability. Per bin, the mean probability (confidence) is plotted
against the fraction of correct predictions (frequency); a calibrated head lies on the diagonal. The summary is the
expected calibration error: ECE = sum_b count_b / N * |frequency_b - confidence_b|. Each point has its 95 % Wilson
interval, so that a bin of five rows is not mistaken for a miscalibrated head.

Cost: one Matplotlib figure per evaluation, about 0.2 s of one host core, and 1 s for the first, which imports it.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", pages 2-3 (arXiv:1706.04599); the interval is
Wilson 1927.

Shapes: B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_BLUE, _PALE_BLUE, _RED = "#1f5fa8", "#bcd3ec", "#c8553d"


@dataclass(frozen=True)
class Reliability:
    """Calibration of one evaluation over B equal-width probability bins; bin b covers [b / B, (b + 1) / B]."""

    confidence_B: NDArray[np.floating]
    """Mean predicted probability of the bin's rows; NaN for an empty bin."""
    frequency_B: NDArray[np.floating]
    """Fraction of the bin's rows whose prediction is correct; NaN for an empty bin."""
    count_B: NDArray[np.integer]
    """Rows in the bin."""

    def __post_init__(self) -> None:
        shapes = {name: np.shape(getattr(self, name)) for name in ("confidence_B", "frequency_B", "count_B")}
        if len(set(shapes.values())) != 1 or len(shapes["count_B"]) != 1 or shapes["count_B"] == (0,):
            raise ValueError(f"reliability bins have shapes {shapes}, expected one entry per bin in each of the three")
        filled_B = np.asarray(self.count_B) > 0
        if np.isnan(self.confidence_B[filled_B]).any() or np.isnan(self.frequency_B[filled_B]).any():
            raise ValueError(
                "a reliability bin with rows has NaN as confidence or frequency, expected NaN in empty bins only; "
                "check the probabilities for NaN"
            )

    @property
    def expected_calibration_error(self) -> float:
        """ECE over these bins, 0 to 1; NaN without rows."""
        filled_B = self.count_B > 0
        if not filled_B.any():
            return float("nan")
        gap = np.abs(self.frequency_B[filled_B] - self.confidence_B[filled_B])
        return float(np.average(gap, weights=self.count_B[filled_B]))


def _wilson_95(frequency: NDArray[np.floating], count: NDArray[np.integer]) -> NDArray[np.floating]:
    """Lower and upper bound of the 95 % Wilson interval of each frequency, ``(2, bins)``."""
    from scipy.stats import binomtest

    hits = np.rint(frequency * count).astype(int)
    intervals = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(hits, count, strict=True)]
    return np.array([(interval.low, interval.high) for interval in intervals]).reshape(-1, 2).T


def draw_reliability(reliability: Reliability, title: str) -> NDArray[np.uint8]:
    """The diagram above, a histogram of rows per bin below, as an image ``(height, width, 3)``.

    Uses Matplotlib's objects and not pyplot, which would keep every figure alive and pick a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins = len(reliability.count_B)
    left_B = np.arange(bins) / bins
    filled_B = reliability.count_B > 0
    confidence, frequency = reliability.confidence_B[filled_B], reliability.frequency_B[filled_B]

    figure = Figure(figsize=(5.2, 6.2), dpi=130, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])

    style = {"align": "edge", "width": 1 / bins, "edgecolor": "white", "linewidth": 1.2}
    bars = diagram.bar(left_B, np.nan_to_num(reliability.frequency_B), color=_PALE_BLUE, **style)
    (ideal,) = diagram.plot([0, 1], [0, 1], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1.3)
    # The caps mark the ends of an interval that the gap covers.
    errors = np.abs(_wilson_95(frequency, reliability.count_B[filled_B]) - frequency)
    diagram.errorbar(confidence, frequency, errors, fmt="none", ecolor=_BLUE, elinewidth=1, capsize=3, zorder=2)
    gaps = diagram.vlines(confidence, confidence, frequency, color=_RED, linewidth=2.6, zorder=3)
    (points,) = diagram.plot(confidence, frequency, "o", color=_BLUE, markersize=6, markeredgecolor="white", zorder=4)
    legend = {ideal: "perfectly calibrated", bars: "observed frequency", points: "bin, 95 % CI", gaps: "gap"}
    diagram.legend(legend.keys(), legend.values(), loc="upper left", fontsize=8.5, frameon=False, labelcolor=_INK)
    diagram.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="observed frequency")
    diagram.set_title(title, loc="left", fontsize=12, color=_INK, pad=10)
    ece = reliability.expected_calibration_error
    diagram.text(
        0.975,
        0.04,
        "no rows" if np.isnan(ece) else f"ECE {ece:.3f}",
        transform=diagram.transAxes,
        ha="right",
        fontsize=11,
        color=_INK,
        bbox={"facecolor": "white", "edgecolor": _GRID, "boxstyle": "round,pad=0.4"},
    )

    histogram.bar(left_B, reliability.count_B, color=_BLUE, **style)
    histogram.set(xlabel="predicted probability", ylabel="rows")
    histogram.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    histogram.set_ylim(bottom=0, top=max(1, int(reliability.count_B.max())) * 1.08)
    for axes in (diagram, histogram):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=9, length=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_MUTED)
    figure.align_ylabels()

    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
