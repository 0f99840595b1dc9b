"""The sentences that open a report, by fixed rules: how well it decides, whether to trust probabilities and reasons."""

from __future__ import annotations

import math

from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.report_numbers import or_else, percent, with_interval


def summary(found: Evaluation) -> list[str]:
    """Three sentences: how well it decides, whether its probabilities can be trusted, and its explanations."""
    return [_on_decisions(found), _on_probabilities(found), _on_explanations(found)]


def _on_decisions(found: Evaluation) -> str:
    auroc = found.decisions.metrics["auroc"]
    if math.isnan(auroc.value):
        return f"Whether it tells the classes apart cannot be said: the {found.report.rows} rows are of one class."
    name = {"multilabel": "mean AUROC over the classes"}.get(found.space.kind, "AUROC")
    said = f"On {found.report.rows:,} held-out rows it reaches {name} {with_interval(auroc.value, auroc.interval)}"
    baselines = [s for s in found.report.scores if not s.name.startswith(("dual head", "after the"))]
    best = max(baselines, key=lambda s: or_else(s.metrics["auroc"], -1.0), default=None)
    if best is None:
        return f"{said}; no baseline was measured."
    value = best.metrics["auroc"]
    verdict = "more than" if auroc.interval.low > value else "not clearly more than"
    verdict = "less than" if auroc.interval.high < value else verdict
    return f"{said}, {verdict} the best baseline ({best.name}: {value:.3f})."


def _on_probabilities(found: Evaluation) -> str:
    measured = found.decisions
    slope, ece = measured.line.slope, measured.metrics["ece"]
    if measured.calibrated_p_value > 0.05:
        return (
            f"Its probabilities can be read as they are: they are no further from the observed frequencies (ECE "
            f"{ece.value:.3f}) than chance makes those of a perfectly calibrated model on so few rows."
        )
    how = ""
    if slope.interval.high < 1:
        how = ", they are too extreme (over-confident)"
    elif slope.interval.low > 1:
        how = ", they are too timid (under-confident)"
    remedy = "run clsgen calibrate" if found.provenance.get("calibrated_on") is None else "calibrate on rows like these"
    return f"Do not take its probabilities literally{how}: ECE {with_interval(ece.value, ece.interval)}; {remedy}."


def _on_explanations(found: Evaluation) -> str:
    told = found.explanations
    if told is None:
        return "Its explanations were not measured."
    agrees = f"Its explanations contradict the decision in {percent(told.contradictions.mean)} of the rows"
    grounded = told.grounding.statements
    if not math.isnan(grounded.mean):
        agrees += f", and {percent(grounded.mean)} of what they state is found in the row"
    if found.faithfulness is None:
        return f"{agrees}; whether the decision rests on what they name was not measured."
    excess = found.faithfulness.erasure.comprehensiveness_excess
    if math.isnan(excess.mean):
        return f"{agrees}; they name nothing in the rows whose effect could be measured."
    if excess.interval.low > 0:
        return f"{agrees}; masking what they name changes the probability more than masking other words."
    return f"{agrees}; but masking what they name changes the probability no more than other words: do not act on them."
