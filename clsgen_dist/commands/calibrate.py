"""``clsgen calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsgen_dist.calibration.names import MethodOrAuto

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, OpenUnitInterval, PositiveInt


def run(
    model: str,
    data: str | None = None,
    columns: Columns | None = None,
    method: MethodOrAuto = "auto",
    threshold: str = "f1",
    prevalence: str | None = None,
    prevalence_from: str | None = None,
    coverage: OpenUnitInterval | None = None,
    class_conditional: bool | None = None,
    hand_over: str | None = None,
    intervals: bool = False,
    batch_size: PositiveInt = 32,
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Fit a calibration on held-out rows, and thresholds and other decisions on it, and store them with the model.

    A new call replaces all of an earlier one. docs/explanation/calibration.md says what each option can promise.

    Args:
        model: Folder that `clsgen export` wrote; its clsgen.json is updated.
        data: Labelled rows that were neither trained on nor will be reported on; `none` needs none.
        columns: How the columns are called.
        method: Calibration method. `auto` compares those that apply, by cross-fitting; `none` removes everything fitted.
        threshold: What thresholds should achieve: `f1`, `recall=0.95`, `precision=0.9`, `cost=FP:FN` such as `cost=1:20`.
        prevalence: Shares of the classes where the model is used, `malignant=0.02` or `a=0.2,b=0.1`; none: those of the data.
        prevalence_from: Unlabelled rows from where the model is used, to estimate these shares.
        coverage: Give each prediction a set of classes that holds the true one with this probability, such as 0.9.
        class_conditional: Promise the coverage for each class; none: only if the prevalence is another.
        hand_over: Mark uncertain predictions for a person: `risk=0.05` of the others wrong, or `workload=0.2` of all marked.
        intervals: Give probabilities a Venn-Abers interval; binary and multi-label. No confidence interval: see the docs.
        batch_size: Rows put through the model together.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are dropped, and listed.
    """  # noqa: E501
    from clsgen_dist.calibration.comparison import Comparison
    from clsgen_dist.calibration.decisions import Decisions
    from clsgen_dist.calibration.prevalence import Prevalence
    from clsgen_dist.inference.calibrate import calibrate

    card = calibrate(
        model,
        data,
        columns,
        method=method,
        threshold=threshold,
        prevalence=prevalence,
        prevalence_from=prevalence_from,
        coverage=coverage,
        class_conditional=class_conditional,
        hand_over=hand_over,
        intervals=intervals,
        batch_size=batch_size,
        max_bad_fraction=max_bad_fraction,
    )
    if card.calibrated_on is None:
        print("removed calibration and decisions: probabilities are the raw ones")
        return
    readings = [("", card.calibration, card.calibration_choice, card.decisions)]
    if card.calibration_after is not None:
        after = (card.calibration_after, card.calibration_choice_after, card.decisions_after)
        readings = [("before the explanation: ", *readings[0][1:]), ("after the explanation: ", *after)]
    print(f"calibrated on {card.calibrated_on['rows']} rows")
    for where, calibration, choice, decisions in readings:
        assert calibration and choice
        shares = calibration.get("prevalence")
        deployed = Prevalence.from_json(shares) if shares else None
        print(f"\n{where}{Comparison.from_json(choice).text()}")
        if deployed:
            print(deployed.text(card.labels))
        if decided := Decisions.from_json(decisions).text(card.space, deployed):
            print(decided)
