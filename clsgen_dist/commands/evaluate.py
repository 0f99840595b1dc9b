"""``clsgen evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveInt


def run(
    model: str,
    data: str,
    train: str | None = None,
    output: str | None = None,
    columns: Columns | None = None,
    batch_size: PositiveInt = 32,
    explain: bool = True,
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Measure an exported model on held-out rows: AUROC, F1 and ECE with bootstrap intervals, with baselines.

    Args:
        model: Folder that `clsgen export` wrote.
        data: Labelled rows that were neither trained nor calibrated on.
        train: The training rows, for the baselines (majority class, TF-IDF logistic regression); none: no baselines.
        output: JSON file for the report.
        columns: How the columns are called.
        batch_size: Rows put through the model together.
        explain: Decode explanations too, and count how many name the decided class.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are dropped, and listed.
    """
    from clsgen_dist.inference.evaluate import evaluate
    from clsgen_dist.io.files import atomic_write, require_writable, writing

    require_writable(output)
    report = evaluate(
        model, data, train, columns, batch_size=batch_size, explain=explain, max_bad_fraction=max_bad_fraction
    )
    print(report.text())
    if output:
        with writing(Path(output)):
            atomic_write(Path(output), report.to_json())
