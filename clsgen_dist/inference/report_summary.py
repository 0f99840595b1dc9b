"""The sentences that open a report, by fixed rules: how well it decides, whether to trust probabilities and reasons.

Absence of evidence is not evidence of absence (Altman & Bland 1995): on few rows nothing differs clearly from anything.
So nothing is called good because no fault was found, but because the interval leaves no room for one that matters.

    better than guessing, or a baseline     the interval of the AUROC lies above it
    probabilities can be read as they are   the upper end of the ECE's interval is at most 0.05
    do not take them literally              its lower end is above 0, which calibrated models have in 1 of 40 cases
    explanations name what matters          the interval of the excess of masking lies above 0
    they do not                             its upper end is at most 0.05

Otherwise the sentence says that these rows cannot tell.
"""

from __future__ import annotations

import math

import numpy as np

from clsgen_dist.explanations.estimates import RowScores
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.report_numbers import or_else, share, with_interval

NEGLIGIBLE = 0.05
"""Mean error of a probability, and mean effect on one, that is too small to matter."""


def summary(found: Evaluation) -> list[str]:
    """Three sentences: how well it decides, whether its probabilities can be trusted, and its explanations."""
    return [_on_decisions(found), _on_probabilities(found), _on_explanations(found)]


def _on_decisions(found: Evaluation) -> str:
    auroc, rows = found.decisions.metrics["auroc"], f"{found.report.rows:,}"
    if math.isnan(auroc.value):
        return f"Whether it tells the classes apart cannot be said: {_alike(found)}."
    name = {"multilabel": "mean AUROC over the classes"}.get(found.space.kind, "AUROC")
    said = f"On {rows} held-out rows it reaches {name} {with_interval(auroc.value, auroc.interval)}"
    if (found.probabilities_NC == found.probabilities_NC[0]).all():
        said += ", as it gives all rows the same probabilities"
    elif math.isnan(auroc.interval.low):
        said += ", and they cannot say how far off that may be"
    elif auroc.interval.low <= 0.5:
        said += ", not clearly better than guessing (0.5)"
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
    slope, ece, rows = measured.line.slope, measured.metrics["ece"], f"{found.report.rows:,}"
    if _is_one_class(found.labels):
        return f"Whether its probabilities are right cannot be said: {_alike(found)}."
    if math.isnan(ece.interval.low):
        return "Whether its probabilities are right cannot be said: the rows are of one cluster."
    if ece.interval.high <= NEGLIGIBLE:
        return (
            f"Its probabilities can be read as they are: on average they are off by {ece.interval.high:.3f} at most "
            "(95 % confidence)."
        )
    if ece.interval.low == 0:
        return (
            f"Whether its probabilities can be read as they are, {rows} rows are too few to tell: chance may explain "
            f"what they are off by (ECE {ece.value:.3f}), but it may be {ece.interval.high:.3f} on average (95 % "
            "confidence)."
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
    agrees = f"Its explanations contradict the decision in {share(told.contradictions)} of the rows"
    grounded = told.grounding.statements
    if not math.isnan(grounded.mean):
        agrees += f", and {share(grounded)} of what they state is found in the row"
    if found.faithfulness is None:
        return f"{agrees}; whether the decision rests on what they name was not measured."
    return f"{agrees}; {_on_masking(found.faithfulness.erasure.comprehensiveness_excess)}."


def _on_masking(excess: RowScores) -> str:
    if math.isnan(excess.mean):
        return "they name nothing in the rows whose effect could be measured"
    if excess.interval.low > 0:
        return "masking what they name changes the probability more than masking other words"
    if excess.interval.high <= NEGLIGIBLE:
        return "but masking what they name changes the probability no more than other words: do not act on them"
    return (
        f"whether masking what they name changes the probability more than masking other words, {excess.defined} rows "
        "are too few to tell"
    )


def _is_one_class(labels: np.ndarray) -> bool:
    """Whether all known labels, or answers, are alike."""
    return len(np.unique(labels if labels.ndim == 1 else labels[~np.isnan(labels)] >= 0.5)) < 2


def _alike(found: Evaluation) -> str:
    """Why no class can be told from another."""
    rows = f"the {found.report.rows:,} rows" if found.report.rows > 1 else "the only row"
    if found.labels.ndim == 2:
        return f"{rows} show no class both with and without it"
    return f"{rows} are of one class" if found.report.rows > 1 else f"{rows} is of one class"
