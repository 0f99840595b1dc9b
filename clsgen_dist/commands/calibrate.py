"""``clsgen calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveInt


def run(
    model: str,
    data: str,
    columns: Columns | None = None,
    batch_size: PositiveInt = 32,
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Fit affine recalibration and the thresholds with the best F1 on held-out rows, and store them with the model.

    Args:
        model: Folder that `clsgen export` wrote; its clsgen.json is updated.
        data: Labelled rows that were neither trained on nor will be reported on.
        columns: How the columns are called.
        batch_size: Rows put through the model together.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are dropped, and listed.
    """
    import numpy as np

    from clsgen_dist.inference.calibrate import calibrate

    card = calibrate(model, data, columns, batch_size=batch_size, max_bad_fraction=max_bad_fraction)
    assert card.calibration and card.calibrated_on
    slopes = np.atleast_1d(card.calibration["scale"]).tolist()
    found = {"slope": slopes, "offsets": card.calibration["bias"], "threshold": card.thresholds or []}
    text = [f"{name} {', '.join(f'{value:.3f}' for value in values)}" for name, values in found.items() if values]
    print(f"calibrated on {card.calibrated_on['rows']} rows: {', '.join(text)}")
