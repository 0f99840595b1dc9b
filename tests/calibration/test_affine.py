"""Affine recalibration fixes what a temperature cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from clsgen_dist.calibration.affine import AffineCalibration, fit_affine
from clsgen_dist.calibration.fitting_rows import fittable_classes
from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.calibration_error import ece, nll
from clsgen_dist.evaluation.classification import auroc
from clsgen_dist.model.label_space import class_probabilities


def _biased(rows=4000, seed=0):
    """Rows whose true log-odds are known, seen through logits three times too steep and shifted by 2."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-true))).astype(int)
    return np.stack([np.zeros(rows), 3 * true + 2], axis=1), labels


def test_recovers_a_known_distortion():
    calibration = fit_affine(*_biased(20_000))
    assert calibration.scale == pytest.approx(1 / 3, rel=0.05)
    assert calibration.bias_K[1] == pytest.approx(-2 / 3, rel=0.1)


def test_ece_improves_more_than_with_a_temperature_alone():
    logits, labels = _biased()
    held_out, held_out_labels = _biased(seed=1)
    calibration = fit_affine(logits, labels)
    raw = ece(softmax(held_out, axis=1), held_out_labels)
    affine = ece(softmax(calibration.apply(held_out), axis=1), held_out_labels)
    temperatures = [ece(softmax(held_out * s, axis=1), held_out_labels) for s in np.geomspace(0.05, 2, 50)]
    assert raw > 0.1
    assert affine < 0.03
    assert affine < 0.5 * min(temperatures)


def test_ranking_does_not_change_with_two_classes():
    logits, labels = _biased(500)
    calibrated = fit_affine(logits, labels).apply(logits)
    assert auroc(softmax(calibrated, axis=1), labels, 1) == pytest.approx(auroc(softmax(logits, axis=1), labels, 1))


def test_three_classes_with_a_bias_each():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, (6000, 3))
    labels = np.array([rng.choice(3, p=p) for p in softmax(true, axis=1)])
    distorted = 2 * true + np.array([0.0, 1.0, -1.5])
    calibrated = fit_affine(distorted, labels).apply(distorted)
    assert nll(softmax(calibrated, axis=1), labels) < nll(softmax(distorted, axis=1), labels) - 0.1
    assert nll(softmax(calibrated, axis=1), labels) == pytest.approx(nll(softmax(true, axis=1), labels), abs=0.01)


def test_a_separable_split_stays_finite():
    logits = np.array([[0.0, -1.0]] * 10 + [[0.0, 1.0]] * 10)
    calibration = fit_affine(logits, np.array([0] * 10 + [1] * 10))
    probability = softmax(calibration.apply(logits), axis=1)[:, 1]
    assert probability.max() == pytest.approx(10.1 / 10.2, abs=1e-3)


@pytest.mark.parametrize(("slope", "offset"), [(0.01, 5.0), (10.0, 50.0), (100.0, 1000.0), (1.0, 30.0)])
def test_the_fit_does_not_depend_on_scale_and_offset_of_the_logits(slope, offset):
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    plain = np.stack([np.zeros(4000), true], axis=1)
    far = np.stack([np.zeros(4000), slope * true + offset], axis=1)
    expected = nll(softmax(fit_affine(plain, labels).apply(plain), axis=1), labels)
    assert nll(softmax(fit_affine(far, labels).apply(far), axis=1), labels) == pytest.approx(expected, abs=1e-6)


def test_slope_stays_positive_on_inverted_scores():
    logits, labels = _biased(500)
    assert fit_affine(-logits, labels).scale > 0


def test_json_round_trip():
    calibration = AffineCalibration(0.5, (0.0, 1.25))
    assert AffineCalibration.from_json(calibration.to_json()) == calibration


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((4, 2)), [0, 1, 0, 1], "10 or more"),
        (np.zeros((20, 2)), [0] * 20, r"no row of the class '1', only of '0' \(20\)"),
        (np.full((20, 2), np.nan), [0, 1] * 10, "not finite"),
        (np.zeros((20, 2)), [0, 1], "with 2 labels"),
        (np.zeros((21, 2)), [-1] + [0, 1] * 10, r"labels \[-1\] are not class indices"),
        (np.zeros((21, 2)), [2] + [0, 1] * 10, r"labels \[2\] are not class indices"),
        (np.zeros((20, 2)), [0.0, 1.0] * 10, "float64 are not class indices"),
        (np.zeros((20, 1)), [0] * 20, "2 or more"),
    ],
)
def test_unusable_input_is_refused_with_the_reason(logits, labels, message):
    with pytest.raises(DataError, match=message):
        fit_affine(logits, np.array(labels))


def test_each_class_of_a_multilabel_head_gets_its_own_map():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, (20_000, 2))
    labels = (rng.random(true.shape) < expit(true)).astype(float)
    labels[::3, 1] = np.nan
    calibration = fit_affine(true * (3.0, 0.5) + (2.0, -1.0), labels, "multilabel")
    assert calibration.scale == pytest.approx((1 / 3, 2.0), rel=0.06)
    assert calibration.bias_K == pytest.approx((-2 / 3, 2.0), rel=0.1)
    assert AffineCalibration.from_json(calibration.to_json(), "multilabel") == calibration


def test_a_class_without_both_answers_is_left_as_it_is():
    labels = np.full((40, 3), np.nan)
    labels[:, 0] = [0, 1] * 20
    labels[:, 1] = 1
    assert fittable_classes(labels).tolist() == [True, False, False]
    logits = np.random.default_rng(0).normal(size=(40, 3))
    calibration = fit_affine(logits, labels, "multilabel")
    assert calibration.scale[1:] == (1.0, 1.0) and calibration.bias_K[1:] == (0.0, 0.0)
    with pytest.raises(DataError, match="no class has 10 rows or more with both answers"):
        fit_affine(logits[:, 1:], labels[:, 1:], "multilabel")


def test_ordinal_cut_points_are_moved_and_stay_in_order():
    rng = np.random.default_rng(0)
    score = rng.normal(0, 2, 20_000)
    cuts = np.array([1.5, 0.0, -1.0])
    above = expit(score[:, None] + cuts)
    labels = (rng.random(len(score))[:, None] < above).sum(axis=1)
    seen = 2.5 * (score[:, None] + np.array([3.0, 0.5, -2.5]))
    calibration = fit_affine(seen, labels, "ordinal")
    true = class_probabilities(score[:, None] + cuts, "ordinal")
    np.testing.assert_allclose(calibration.probabilities(seen), true, atol=0.02)
    assert calibration.scale == pytest.approx(1 / 2.5, rel=0.03)
    assert (np.diff(calibration.apply(seen), axis=1) < 0).all()
