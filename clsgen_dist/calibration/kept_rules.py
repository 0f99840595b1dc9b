"""What fitted thresholds, sets and handing over achieve on rows that they were not fitted to.

Shares have Wilson's interval, or that for clusters (:mod:`clsgen_dist.evaluation.interval`). A coverage stands beside
the band in which it lies 95 times in 100 if the promise holds
(:func:`clsgen_dist.calibration.conformal.coverage_band`), which is for independent rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.calibration.conformal import coverage_band, covered
from clsgen_dist.calibration.decisions import Decisions, Sets
from clsgen_dist.calibration.handing_over import HandOver, wrong
from clsgen_dist.calibration.thresholds import Thresholds
from clsgen_dist.evaluation.interval import UNDEFINED, Estimate, share_interval
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes


@dataclass(frozen=True, kw_only=True)
class KeptThreshold:
    """A class's threshold on these rows."""

    name: str
    threshold: float
    precision: Estimate
    recall: Estimate
    share: Estimate
    """Of the rows, predicted positive."""
    fitted_precision: float | None
    """On the rows it was fitted to."""
    fitted_recall: float | None


@dataclass(frozen=True, kw_only=True)
class KeptCoverage:
    """How often the true answer is in the set."""

    name: str
    """Of the class; empty: all rows. Multi-label class-conditional: ``CLASS: yes`` and ``CLASS: no``."""
    rows: int
    covered: Estimate
    band: tuple[float, float] | None
    """Where it lies 95 times in 100, if the promise holds; None: nothing is promised for these rows alone."""


@dataclass(frozen=True, kw_only=True)
class KeptSets:
    """Conformal sets on these rows."""

    promised: float
    coverage: tuple[KeptCoverage, ...]
    sizes: dict[int, float]
    """Share of rows by the number of classes in their set; multi-label: of rows and classes, by possible answers."""


@dataclass(frozen=True, kw_only=True)
class KeptHandOver:
    """Handing over on these rows."""

    target: str
    """``risk`` or ``workload``."""
    value: float
    least_confidence: float
    answered: Estimate
    """Share of the rows."""
    risk: Estimate
    """Share of wrong ones among them."""
    risk_of_all: float
    """If every row were answered."""
    fitted_answered: float
    """On the rows it was fitted to."""
    fitted_risk: float


@dataclass(frozen=True, kw_only=True)
class KeptRules:
    """What the rules of a model achieve; None and empty: it has no such rule."""

    goal: str
    """Of the thresholds, in words; empty without any."""
    thresholds: tuple[KeptThreshold, ...]
    sets: KeptSets | None
    hand_over: KeptHandOver | None


def kept_rules(
    decisions: Decisions,
    p_NC: np.ndarray,
    decided: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    clusters_N: np.ndarray | None = None,
) -> KeptRules | None:
    """The rules on rows with labels; None if the model has none.

    Args:
        decisions: what was fitted.
        p_NC: calibrated probabilities, which the rules apply to.
        decided: classes ``[N]``, or sets ``[N, C]``.
        labels: classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        space: the label space.
        clusters_N: rows of one cluster are not independent; None: they are.
    """
    thresholds, sets, hand_over = decisions.thresholds, decisions.sets, decisions.hand_over
    if thresholds is None and sets is None and hand_over is None:
        return None
    return KeptRules(
        goal=thresholds.rule.phrase if thresholds else "",
        thresholds=_thresholds(thresholds, p_NC, labels, space, clusters_N) if thresholds else (),
        sets=_sets(sets, p_NC, labels, space, clusters_N) if sets else None,
        hand_over=_hand_over(hand_over, p_NC, decided, labels, space, clusters_N) if hand_over else None,
    )


def _share(hit_N: np.ndarray, of_N: np.ndarray, clusters_N: np.ndarray | None) -> Estimate:
    """The share of hits among the rows that ``of_N`` marks."""
    if not of_N.any():
        return Estimate(float("nan"), UNDEFINED)
    own_N = None if clusters_N is None else clusters_N[of_N]
    return Estimate(float(hit_N[of_N].mean()), share_interval(hit_N[of_N], clusters_N=own_N))


def _thresholds(
    fitted: Thresholds, p_NC: np.ndarray, labels: np.ndarray, space: LabelSpace, clusters_N: np.ndarray | None
) -> tuple[KeptThreshold, ...]:
    multilabel = space.kind == "multilabel"
    found = []
    for c, one in zip(range(len(space)) if multilabel else [space.positive_index], fitted.fitted, strict=True):
        yes_N = labels[:, c] >= 0.5 if multilabel else labels == c
        known_N = ~np.isnan(labels[:, c]) if multilabel else np.ones(len(labels), dtype=bool)
        above_N = p_NC[:, c] >= one.threshold
        found.append(
            KeptThreshold(
                name=space.names[c],
                threshold=one.threshold,
                precision=_share(yes_N, above_N & known_N, clusters_N),
                recall=_share(above_N, yes_N & known_N, clusters_N),
                share=_share(above_N, np.ones(len(labels), dtype=bool), clusters_N),
                fitted_precision=one.precision,
                fitted_recall=one.recall,
            )
        )
    return tuple(found)


def _sets(
    fitted: Sets, p_NC: np.ndarray, labels: np.ndarray, space: LabelSpace, clusters_N: np.ndarray | None
) -> KeptSets:
    cutoffs, multilabel = fitted.cutoffs, space.kind == "multilabel"
    inside = covered(cutoffs, p_NC, labels, space.kind)
    lines: list[KeptCoverage] = []

    def add(name: str, hit_N: np.ndarray, of_N: np.ndarray, held_out: int | None) -> None:
        rows = int(of_N.sum())
        band = coverage_band(held_out, cutoffs.coverage, rows) if held_out is not None and rows else None
        lines.append(KeptCoverage(name=name, rows=rows, covered=_share(hit_N, of_N, clusters_N), band=band))

    conditional = cutoffs.class_conditional
    if not multilabel:
        add("", inside, np.ones(len(labels), dtype=bool), None if conditional else cutoffs.rows_C[0])
    for c, name in enumerate(space.names):
        if not multilabel:
            add(name, inside, labels == c, cutoffs.rows_C[c] if conditional else None)
            continue
        hit_N, known_N = inside[:, c] == 1, ~np.isnan(labels[:, c])
        if conditional and cutoffs.no_rows_C:
            add(f"{name}: yes", hit_N, labels[:, c] >= 0.5, cutoffs.rows_C[c])
            add(f"{name}: no", hit_N, labels[:, c] < 0.5, cutoffs.no_rows_C[c])
        else:
            add(name, hit_N, known_N, cutoffs.rows_C[c])
    size = cutoffs.contains(p_NC).astype(int)
    size = (size + cutoffs.contains_no(p_NC)).ravel() if multilabel else size.sum(axis=1)
    sizes, counts = np.unique(size, return_counts=True)
    shares = {int(s): float(n / len(size)) for s, n in zip(sizes, counts, strict=True)}
    return KeptSets(promised=cutoffs.coverage, coverage=tuple(lines), sizes=shares)


def _hand_over(
    fitted: HandOver,
    p_NC: np.ndarray,
    decided: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    clusters_N: np.ndarray | None,
) -> KeptHandOver:
    answered_N = ~np.array(fitted.applies(p_NC, decided, space.kind), dtype=bool)
    wrong_N = wrong(decided, labels, space.kind)
    return KeptHandOver(
        target=fitted.rule.target,
        value=fitted.rule.value,
        least_confidence=fitted.least_confidence,
        answered=_share(answered_N, np.ones(len(wrong_N), dtype=bool), clusters_N),
        risk=_share(wrong_N, answered_N, clusters_N),
        risk_of_all=float(wrong_N.mean()),
        fitted_answered=fitted.coverage,
        fitted_risk=fitted.risk,
    )


def outside(lines: Sequence[KeptCoverage]) -> list[KeptCoverage]:
    """The coverages that lie outside their bands."""
    return [line for line in lines if line.band and not line.band[0] <= line.covered.value <= line.band[1]]
