"""Figures of the report: reliability, risk against coverage, net benefit, subgroups.

Drawn by matplotlib's objects; in SVG, text is left as text. Colours are Okabe and Ito's; series also differ in line or
marker, for those who print in grey. Cost: 0.2 s each, and 1 s for importing matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.io.text import shortened
from clsgen_dist.report.document import Drawing

# B bins, R points of a curve, G groups

BLUE, ORANGE, GREEN, INK, MUTED, LINE = "#0072b2", "#d55e00", "#009e73", "#1b1f24", "#57606a", "#d0d7de"
STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"))
"""Colour, line and marker of the first three series."""


@dataclass(frozen=True)
class Curve:
    """A named line."""

    name: str
    x_R: np.ndarray
    y_R: np.ndarray


@contextmanager
def _drawing(width: float, height: float, rows: int = 1, **options: Any) -> Iterator[tuple[Any, list[Drawing]]]:
    """A figure's axes, and a list that gets the drawing at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "svg.hashsalt": "clsgen",
        "font.family": "sans-serif",
        "font.size": 11.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, 1, **options))
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.spines[["left", "bottom"]].set_color(LINE)
            axis.tick_params(colors=MUTED, labelcolor=INK)
        drawn: list[Drawing] = []
        yield axes, drawn
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(Drawing(buffer.getvalue(), np.asarray(canvas.buffer_rgba())[..., :3].copy()))


def reliability_figure(
    confidence_B: np.ndarray,
    frequency_B: np.ndarray,
    count_B: np.ndarray,
    band_B2: np.ndarray | None = None,
    before: tuple[np.ndarray, np.ndarray] | None = None,
) -> Drawing:
    """Reliability diagram with a histogram of rows below.

    Args:
        confidence_B: mean probability of each bin; NaN where it has no rows.
        frequency_B: observed frequency.
        count_B: rows.
        band_B2: where the frequency of a perfectly calibrated model lies 95 times in 100.
        before: confidence and frequency without calibration, ``[B]`` each.
    """
    with _drawing(6.2, 5.6, 2, sharex=True, height_ratios=[3.2, 1]) as ((diagram, histogram), drawn):
        filled = count_B > 0
        diagram.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
        if band_B2 is not None:
            low, high = band_B2[filled].T
            x = confidence_B[filled]
            diagram.vlines(x, low, high, color=LINE, linewidth=7, label="what chance allows a calibrated model (95 %)")
        if before is not None:
            shown = np.isfinite(before[0])
            diagram.plot(before[0][shown], before[1][shown], "s--", color=ORANGE, markersize=4, label="uncalibrated")
        diagram.plot(confidence_B[filled], frequency_B[filled], "o-", color=BLUE, markersize=6, label="model")
        diagram.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), ylabel="observed frequency")
        diagram.legend(frameon=False, loc="upper left", fontsize=10)
        edges = np.linspace(0, 1, len(count_B) + 1)
        histogram.bar(edges[:-1], count_B, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white")
        histogram.set(xlabel="predicted probability", ylabel="rows")
    return drawn[0]


def curves_figure(
    curves: Sequence[Curve], *, x: str, y: str, y_limits: tuple[float, float] | None = None, percent: bool = False
) -> Drawing:
    """Up to three lines over one axis; ``percent``: both axes are shares."""
    with _drawing(6.2, 3.8) as ((axis,), drawn):
        for curve, (colour, line, _) in zip(curves, STYLES, strict=False):
            axis.plot(curve.x_R, curve.y_R, color=colour, linestyle=line, linewidth=1.8, label=curve.name)
        axis.set(xlabel=x, ylabel=y)
        if y_limits:
            axis.set_ylim(*y_limits)
        if percent:
            from matplotlib.ticker import PercentFormatter

            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.legend(frameon=False, fontsize=10)
    return drawn[0]


def intervals_figure(
    names: Sequence[str], value_G: np.ndarray, low_G: np.ndarray, high_G: np.ndarray, *, x: str, reference: float
) -> Drawing:
    """A value with its interval for each group, and a line at the value of all rows."""
    with _drawing(6.2, 0.9 + 0.34 * len(names)) as ((axis,), drawn):
        y_G = np.arange(len(names))[::-1]
        axis.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axis.hlines(y_G, low_G, high_G, color=BLUE, linewidth=2)
        axis.plot(value_G, y_G, "o", color=BLUE, markersize=6)
        axis.set_yticks(y_G, [shortened(name) for name in names])
        axis.set(xlabel=x, ylim=(-0.7, len(names) - 0.3))
    return drawn[0]
