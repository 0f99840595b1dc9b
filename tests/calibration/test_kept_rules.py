"""What rules achieve on other rows, by hand-made rows that can be counted on fingers."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.calibration.conformal import ConformalSets, coverage_band
from clsgen_dist.calibration.decisions import Decisions, Sets
from clsgen_dist.calibration.handing_over import HandOver, HandOverRule
from clsgen_dist.calibration.kept_rules import kept_rules, outside
from clsgen_dist.calibration.thresholds import FittedThreshold, ThresholdRule, Thresholds
from clsgen_dist.evaluation.interval import wilson_interval
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.model.label_space import LabelSpace

BINARY = LabelSpace(("no", "yes"), "yes")
P = np.array([[0.95, 0.05], [0.7, 0.3], [0.6, 0.4], [0.45, 0.55], [0.3, 0.7], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 0, 1, 1])


def _threshold(value: float) -> FittedThreshold:
    return FittedThreshold(value, None, None, 0.9, 0.95, 0.5)


def test_the_rules_of_two_classes():
    decisions = Decisions(
        Thresholds(ThresholdRule.parse("recall=0.9"), [_threshold(0.35)]),
        Sets(ConformalSets(0.8, False, (0.35, 0.35), (99, 99)), 1.2),
        HandOver(HandOverRule("risk", 0.05), 0.6, 0.8, 0.04, {}),
    )
    decided = decide(P, "single", 1, [0.35])
    assert decided.tolist() == [0, 0, 1, 1, 1, 1]
    found = kept_rules(decisions, P, decided, LABELS, BINARY)
    [threshold] = found.thresholds
    assert (threshold.precision.value, threshold.recall.value, threshold.share.value) == (3 / 4, 1, 4 / 6)
    assert threshold.precision.interval == wilson_interval(3, 4) and threshold.fitted_recall == 0.95
    whole, no, yes = found.sets.coverage
    # Sets: {no}, {no}, {no, yes}, {no, yes}, {yes}, {yes}; all hold the true class.
    assert found.sets.sizes == pytest.approx({1: 4 / 6, 2: 2 / 6})
    assert (whole.covered.value, whole.rows, no.rows, yes.rows) == (1, 6, 3, 3)
    assert whole.band == coverage_band(99, 0.8, 6) and no.band is yes.band is None
    # Confidences of the decisions: 0.95, 0.7, 0.4, 0.55, 0.7, 0.9; the third and fourth are handed over, the fourth is
    # the only wrong one.
    assert found.hand_over.answered.value == pytest.approx(4 / 6)
    assert (found.hand_over.risk.value, found.hand_over.risk_of_all) == (0, pytest.approx(1 / 6))


def test_coverage_outside_its_band_is_named():
    p = np.repeat(P[:1], 200, axis=0)
    sets = Sets(ConformalSets(0.9, True, (0.5, 0.5), (400, 400)), 1.0)
    labels = np.arange(200) % 4 == 0
    found = kept_rules(Decisions(None, sets, None), p, np.zeros(200, int), labels.astype(int), BINARY)
    assert [line.name for line in outside(found.sets.coverage)] == ["no", "yes"]
    assert [line.band is None for line in found.sets.coverage] == [True, False, False]
    assert (found.thresholds, found.hand_over, found.goal) == ((), None, "")


def test_unknown_answers_count_nowhere():
    space = LabelSpace(("a", "b"), "a", "multilabel")
    p = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.7], [0.4, 0.3]])
    labels = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, np.nan], [1.0, 0.0]])
    thresholds = Thresholds(ThresholdRule(), [_threshold(0.5), _threshold(0.65)])
    sets = Sets(ConformalSets(0.8, True, (0.3, 0.3), (50, 20), (0.5, 0.5), (60, 90)), 1.0)
    found = kept_rules(Decisions(thresholds, sets, None), p, decide(p, "multilabel", 0, [0.5, 0.65]), labels, space)
    a, b = found.thresholds
    assert (a.precision.value, a.recall.value, a.share.value) == (1, 1 / 2, 1 / 2)
    assert np.isnan(b.precision.value) and b.recall.value == 0, "the only row above b's threshold has no known answer"
    lines = {line.name: line for line in found.sets.coverage}
    assert {name: (line.covered.value, line.rows) for name, line in lines.items()} == {
        "a: yes": (1, 2), "a: no": (1, 1), "b: yes": (1, 1), "b: no": (1, 2),
    }  # fmt: skip
    assert lines["b: no"].band == coverage_band(90, 0.8, 2) and lines["b: yes"].band == coverage_band(20, 0.8, 1)
    # Possible answers to a: 1, 1, 1, 2; to b: 1, 2, 1, 1 (cutoffs 0.3 for yes, 0.5 for no)
    assert sum(size * share for size, share in found.sets.sizes.items()) == pytest.approx(
        np.mean([(p >= 0.3).sum() + (1 - p >= 0.5).sum()]) / p.size
    )


def test_rows_of_one_cluster_widen_the_intervals():
    p, labels = np.repeat(P, 30, axis=0), np.repeat(LABELS, 30)
    decisions = Decisions(Thresholds(ThresholdRule(), [_threshold(0.5)]))
    decided = decide(p, "single", 1, [0.5])
    alone, together = (
        kept_rules(decisions, p, decided, labels, BINARY, clusters).thresholds[0].recall
        for clusters in (None, np.repeat(np.arange(12), 15))
    )
    assert alone.value == together.value
    width = together.interval.high - together.interval.low
    assert width > 1.5 * (alone.interval.high - alone.interval.low)


def test_a_model_without_rules_has_none():
    assert kept_rules(Decisions(), P, decide(P, "single", 1, None), LABELS, BINARY) is None
