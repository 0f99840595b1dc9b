"""``clsgen calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsgen_dist.calibration.names import MethodOrAuto

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveInt


def run(
    model: str,
    data: str | None = None,
    columns: Columns | None = None,
    method: MethodOrAuto = "auto",
    batch_size: PositiveInt = 32,
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Fit a calibration and the thresholds with the best F1 on held-out rows, and store them with the model.

    Args:
        model: Folder that `clsgen export` wrote; its clsgen.json is updated.
        data: Labelled rows that were neither trained on nor will be reported on; `none` needs none.
        columns: How the columns are called.
        method: Calibration method. `auto` compares those that apply, by cross-fitting; `none` removes the calibration.
        batch_size: Rows put through the model together.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are dropped, and listed.
    """
    from clsgen_dist.calibration.comparison import Comparison
    from clsgen_dist.inference.calibrate import calibrate

    card = calibrate(model, data, columns, method=method, batch_size=batch_size, max_bad_fraction=max_bad_fraction)
    if card.calibration_choice is None or card.calibrated_on is None:
        print("removed calibration and thresholds: probabilities are the raw ones")
        return
    readings = [("", card.calibration_choice, card.thresholds)]
    if card.calibration_choice_after is not None:
        before, after = "before the explanation: ", "after the explanation: "
        readings = [(before, *readings[0][1:]), (after, card.calibration_choice_after, card.thresholds_after)]
    print(f"calibrated on {card.calibrated_on['rows']} rows")
    for where, choice, thresholds in readings:
        print(f"\n{where}{Comparison.from_json(choice).text()}")
        if thresholds:
            print(f"threshold with the best F1: {', '.join(f'{value:.3f}' for value in thresholds)}")
