"""``clsgen data preview``."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.io.value_ranges import PositiveInt


def run(settings: Settings, ranks: PositiveInt = 1, plot: str = "preview.png", plan: str | None = None) -> None:
    """Draw which rows a run would visit when, before a step is taken: stages, classes, loss weights, tokens.

    Every setting may follow, as for `clsgen train`.

    Args:
        ranks: Ranks to pack for.
        plot: Image to write.
        plan: JSON file to write for launch scripts: the stages with their steps, rows and tokens.
    """
    from clsgen_dist.io.files import atomic_write, require_writable, writing
    from clsgen_dist.training.preview import draw_preview, preview_run

    require_writable(plot, picture=True)
    require_writable(plan)
    preview = preview_run(settings, ranks)
    print(preview.table())
    draw_preview(Path(plot), preview)
    print(f"\nplot  {plot}")
    if plan:
        with writing(Path(plan)):
            atomic_write(Path(plan), dumps(preview.plan(), indent=1) + "\n")
        print(f"plan  {plan}")
