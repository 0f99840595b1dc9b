"""Figures without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clsgen_dist.io.files import writing


def stacked_axes(rows: int, height: float) -> tuple[Any, Any]:
    """A figure of ``rows`` axes below each other, each ``height`` inches high."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(9, height * rows), squeeze=False, layout="constrained")
    return figure, axes[:, 0]


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format that the file's name says, making its folder."""
    import matplotlib.pyplot as plt

    with writing(path):
        figure.savefig(path, dpi=110)
    plt.close(figure)
