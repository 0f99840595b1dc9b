"""``clsgen data score FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.io.value_ranges import NonNegativeInt


def run(settings: Settings, show: NonNegativeInt = 3, plot: str = "difficulty.png") -> None:
    """Score how hard each row is, by the recipe's scorers: distribution, extremes, plot.

    FILE are training rows, in any format that data.train takes; without it, the recipe's. Every setting may follow, as
    for `clsgen train`.

    Args:
        show: Easiest and hardest rows to print.
        plot: Image to write.
    """
    from clsgen_dist.io.files import require_writable
    from clsgen_dist.training.difficulty_report import score_rows

    require_writable(plot, picture=True)
    report = score_rows(settings)
    print(report.text(show))
    report.draw(Path(plot))
    print(f"\nplot    {plot}\nscores  {report.folder}")
