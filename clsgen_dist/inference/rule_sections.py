"""The section of a report on the rules that a model decides by: thresholds, sets, handing over to a person."""

from __future__ import annotations

from collections.abc import Sequence

from clsgen_dist.calibration.kept_rules import KeptHandOver, KeptSets, KeptThreshold, outside
from clsgen_dist.evaluation.interval import Estimate
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.report_numbers import number, or_else, percent, percent_with_interval, with_interval
from clsgen_dist.report.document import Block, Paragraph, Table


def rule_blocks(found: Evaluation) -> list[Block]:
    """What each rule promised, or achieved where it was fitted, and what it achieves here; empty without rules."""
    rules = found.decisions.rules
    if rules is None:
        return []
    blocks: list[Block] = [
        Paragraph("The rules were fitted by clsgen calibrate on other rows. Here is what they achieve on these.")
    ]
    if rules.thresholds:
        blocks += _thresholds(rules.goal, rules.thresholds)
    if rules.sets:
        blocks += _sets(rules.sets, clustered=any(example.cluster for example in found.examples))
    if rules.hand_over:
        blocks += _hand_over(rules.hand_over)
    return blocks


def _share(estimate: Estimate) -> str:
    return percent_with_interval(estimate.value, estimate.interval)


def _fitted(value: float | None) -> str:
    return percent(or_else(value, float("nan")))


def _thresholds(goal: str, fitted: Sequence[KeptThreshold]) -> list[Block]:
    rows = [
        [
            one.name,
            number(one.threshold),
            *(_fitted(one.fitted_precision), _share(one.precision)),
            *(_fitted(one.fitted_recall), _share(one.recall)),
            _share(one.share),
        ]
        for one in fitted
    ]
    return [
        Table(
            f"Threshold {goal}: where it was fitted, and here",
            ["class", "threshold", "precision there", "here", "recall there", "here", "rows decided so"],
            rows,
        )
    ]


def _sets(sets: KeptSets, *, clustered: bool) -> list[Block]:
    rows = [
        [
            line.name or "all rows",
            f"{line.rows:,}",
            _share(line.covered),
            f"{100 * line.band[0]:.1f} to {100 * line.band[1]:.1f} %" if line.band else "nothing is promised",
        ]
        for line in sets.coverage
    ]
    beyond = outside(sets.coverage)
    promised = sum(line.band is not None for line in sets.coverage)
    if beyond:
        named = ", ".join(f"{line.name or 'all rows'} ({percent(line.covered.value)})" for line in beyond)
        verdict = Paragraph(
            f"Outside its band: {named}. These rows are unlike those on which the sets were fitted"
            + ", or this is chance, which alone puts one in twenty outside.",
            tone="warning",
        )
    elif not promised:
        verdict = Paragraph("Whether the promise holds cannot be said: no row here is one that it is for.")
    else:
        verdict = Paragraph("Each coverage lies in the band in which it lies 95 times in 100 if the promise holds.")
    blocks: list[Block] = [
        Paragraph(
            f"For each row the model names a set of classes, which holds the true one with a probability of "
            f"{percent(sets.promised)}. A set of one class is a decision, one of several a doubt; an empty one says "
            "that the row is unlike those on which the sets were fitted."
        ),
        Table("How often the set holds the true class", ["rows of", "rows", "held", "if the promise holds"], rows),
        verdict,
        Table(
            "Size of the sets",
            ["classes in the set", "share of rows"],
            [[str(size), percent(share)] for size, share in sets.sizes.items()],
        ),
    ]
    if clustered:
        blocks.append(
            Paragraph("The bands are for independent rows; rows of one cluster vary together, and more widely.")
        )
    return blocks


def _hand_over(kept: KeptHandOver) -> list[Block]:
    goal = (
        f"no more than {percent(kept.value)} wrong answers"
        if kept.target == "risk"
        else f"{percent(kept.value)} of the rows handed over"
    )
    rows = [
        ["rows answered", _fitted(kept.fitted_answered), _share(kept.answered)],
        ["wrong among them", _fitted(kept.fitted_risk), _share(kept.risk)],
        ["wrong, if all were answered", "", percent(kept.risk_of_all)],
    ]
    blocks: list[Block] = [
        Paragraph(
            f"Rows whose decided class has a probability below {kept.least_confidence:.3f} are handed to a person. The "
            f"aim was {goal}; it is no promise."
        ),
        Table("Handing over", ["", "where it was fitted", "here"], rows),
    ]
    if kept.target == "risk" and kept.risk.interval.low > kept.value:
        blocks.append(
            Paragraph(
                f"More wrong answers than the aim: {with_interval(kept.risk.value, kept.risk.interval)}. Calibrate on "
                "rows like these, or hand over more.",
                tone="warning",
            )
        )
    return blocks
