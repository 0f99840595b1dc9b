"""Proper scores against scikit-learn, by hand, and on overconfident predictions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from clsgen_dist.evaluation.calibration_error import brier, ece, nll


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_brier_and_nll_match_scikit_learn(classes):
    from sklearn.metrics import brier_score_loss, log_loss

    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.normal(size=(123, classes)), axis=1), rng.integers(0, classes, 123)
    assert nll(probabilities, labels) == pytest.approx(log_loss(labels, probabilities, labels=range(classes)))
    expected = brier_score_loss(labels, probabilities if classes > 2 else probabilities[:, 1])
    assert brier(probabilities, labels) == pytest.approx(expected)


def test_brier_by_hand():
    assert brier(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1])) == pytest.approx((0.04 + 0.36) / 2)
    assert brier(np.array([[0.5, 0.3, 0.2]]), np.array([0])) == pytest.approx(0.25 + 0.09 + 0.04)


def test_overconfidence_worsens_every_measure():
    rng = np.random.default_rng(0)
    logits = np.stack([np.zeros(5000), rng.normal(0, 1.5, 5000)], axis=1)
    honest, loud = softmax(logits, axis=1), softmax(3 * logits, axis=1)
    labels = (rng.random(5000) < honest[:, 1]).astype(int)
    for measure in (ece, brier, nll):
        assert measure(honest, labels) < measure(loud, labels)
    assert ece(honest, labels) < 0.03 and ece(loud, labels) > 0.08


def test_nll_stays_finite_if_the_true_class_has_probability_zero():
    assert np.isfinite(nll(np.array([[1.0, 0.0]]), np.array([1])))


def test_recalibration_is_reported_as_a_paired_difference():
    from clsgen_dist.evaluation.report import Report, recalibration_changes

    rng = np.random.default_rng(0)
    logits = np.stack([np.zeros(600), rng.normal(0, 1.5, 600)], axis=1)
    honest, loud = softmax(logits, axis=1), softmax(3 * logits, axis=1)
    labels = (rng.random(600) < honest[:, 1]).astype(int)
    better = recalibration_changes(loud, honest, labels, positive=1)
    assert [c.measure for c in better] == ["ece", "nll", "brier"]
    ece_change, *others = better
    assert ece_change.difference < 0 and np.isnan(ece_change.interval.low), "resamples have the bias of an ECE twice"
    assert all(c.interval.low < c.difference < c.interval.high < 0 for c in others)
    assert all(c.difference == 0 for c in recalibration_changes(loud, loud, labels, positive=1))
    assert "recalibrated - raw: ECE -0." in Report(600, recalibration=better).text()
