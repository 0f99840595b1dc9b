"""Each calibration method: reference, round trip, valid probabilities, no dependence on the order of rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from clsgen_dist.calibration import curves, fitting_rows
from clsgen_dist.calibration.by_question import log_odds
from clsgen_dist.calibration.dirichlet import fit_odir
from clsgen_dist.calibration.methods import METHODS, fit, from_json
from clsgen_dist.errors import DataError, ModelError, SettingsError
from clsgen_dist.evaluation.calibration_error import nll
from clsgen_dist.model.label_space import class_probabilities
from tests.calibration.synthetic import SPACES, distorted_rows, single_rows

SPACE_AND_METHOD = [
    (space, method)
    for space, (kind, classes) in SPACES.items()
    for method, spec in METHODS.items()
    if spec.applies(kind, classes)
]
every_method = pytest.mark.parametrize(("space", "method"), SPACE_AND_METHOD)


@every_method
def test_json_round_trip_gives_equal_probabilities(space, method):
    logits, labels, kind = distorted_rows(space, 600)
    calibration = fit(method, logits, labels, kind)
    read = from_json(json.loads(json.dumps(calibration.to_json())), kind)
    assert read.method == method
    np.testing.assert_array_equal(read.probabilities(logits), calibration.probabilities(logits))


@every_method
def test_probabilities_are_valid_even_of_extreme_logits(space, method):
    logits, labels, kind = distorted_rows(space, 600)
    far = np.concatenate([logits, logits * 1e3, -logits[:, ::-1] * 1e3 if kind == "ordinal" else -logits * 1e3])
    p_NC = fit(method, logits, labels, kind).probabilities(far)
    assert (p_NC > 0).all() and (p_NC < 1).all()
    if kind != "multilabel":
        np.testing.assert_allclose(p_NC.sum(axis=1), 1, atol=1e-12)


@every_method
def test_the_order_of_the_rows_changes_nothing(space, method):
    logits, labels, kind = distorted_rows(space, 400)
    order = np.random.default_rng(5).permutation(len(logits))
    assert fit(method, logits, labels, kind).to_json() == fit(method, logits[order], labels[order], kind).to_json()


@every_method
def test_fresh_rows_have_a_better_likelihood_than_raw(space, method):
    kind = SPACES[space][0]
    calibration = fit(method, *distorted_rows(space, 3000))
    logits, labels, _ = distorted_rows(space, 3000, seed=1)
    calibrated, raw = _nll(calibration.probabilities(logits), labels), _nll(class_probabilities(logits, kind), labels)
    assert calibrated == pytest.approx(raw, abs=1e-9) if method == "none" else calibrated < raw - 0.05


@every_method
def test_separable_classes_stay_finite(space, method):
    kind, classes = SPACES[space]
    level = np.repeat(np.arange(classes), 200)
    if kind == "single":
        logits, labels = 50.0 * np.eye(classes)[level], level
    elif kind == "ordinal":
        logits, labels = 50.0 * (level[:, None] - np.arange(classes - 1) - 0.5), level
    else:
        labels = np.eye(classes)[level]
        logits = 100 * labels - 50
    p_NC = fit(method, logits, labels, kind).probabilities(logits)
    assert np.isfinite(p_NC).all() and _nll(p_NC, labels) < 0.1


def test_temperature_recovers_the_factor_of_every_label_space():
    for space, expected in (("binary", 3.0), ("three classes", 3.0), ("multilabel", 3.0), ("ordinal", 3.0)):
        logits, labels, kind = distorted_rows(space, 20_000, factor=3.0, shift=0.0)
        assert 1 / fit("temperature", logits, labels, kind).scale == pytest.approx(expected, rel=0.03), space


def test_temperature_equals_scikit_learns(monkeypatch):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    logits, labels, _ = distorted_rows("three classes", 2000)
    monkeypatch.setattr(fitting_rows, "_SMOOTHING", 1e-12)
    reference = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, labels)), method="temperature")
    expected = reference.fit(logits, labels).predict_proba(logits)
    np.testing.assert_allclose(fit("temperature", logits, labels).probabilities(logits), expected, atol=1e-5)


def test_platt_and_beta_equal_a_logistic_regression_on_their_features():
    """The fit's targets are two weighted rows of a plain logistic regression without penalty."""
    from sklearn.linear_model import LogisticRegression

    logits, labels, _ = distorted_rows("binary", 1000)
    x = logits[:, 1] - logits[:, 0]
    yes = fitting_rows.smoothed_targets(labels, 2)[:, 1]
    log_p, log_rest = -np.log1p(np.exp(-x)), -np.log1p(np.exp(x))
    for method, features in (("affine", x[:, None]), ("beta", np.stack([log_p, -log_rest], axis=1))):
        plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        plain.fit(np.tile(features, (2, 1)), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([yes, 1 - yes]))
        assert (plain.coef_ > 0).all(), "the constraints of beta do not bind here"
        got = fit(method, logits, labels).probabilities(logits)[:, 1]
        np.testing.assert_allclose(got, plain.predict_proba(features)[:, 1], atol=2e-4 if method == "affine" else 1e-5)


def test_vector_scaling_is_at_the_optimum():
    logits, labels, _ = distorted_rows("three classes", 2000)
    calibration = fit("vector", logits, labels)
    targets = fitting_rows.smoothed_targets(labels, 3)
    delta = softmax(calibration.apply(logits), axis=1) - targets
    np.testing.assert_allclose((delta * logits).mean(axis=0), 0, atol=2e-4)
    np.testing.assert_allclose(delta.mean(axis=0), 0, atol=2e-4)


def test_dirichlet_recovers_a_map_that_mixes_classes():
    rng = np.random.default_rng(0)
    seen = rng.normal(0, 1.5, (30_000, 3))
    weight = np.array([[0.6, 0.2, 0.0], [-0.2, 0.8, 0.1], [0.0, 0.0, 0.5]])
    true = softmax(log_softmax(seen, axis=1) @ weight.T + np.array([0.5, 0.0, -0.5]), axis=1)
    labels = (rng.random(len(seen))[:, None] > true.cumsum(axis=1)).sum(axis=1)
    np.testing.assert_allclose(fit("dirichlet", seen, labels).probabilities(seen), true, atol=0.03)
    assert np.abs(fit("vector", seen, labels).probabilities(seen) - true).max() > 0.1


def test_odir_shrinks_the_off_diagonal_and_the_bias_and_nothing_else():
    logits, labels, _ = distorted_rows("three classes", 2000)
    targets = fitting_rows.smoothed_targets(labels, 3)
    weight = np.array(fit_odir(logits, targets, 1e4, 1e4).weight_CC)
    assert np.abs(weight - np.diag(np.diag(weight))).max() < 1e-3 and (np.diag(weight) > 0.1).all()
    loose, tight = (fit_odir(logits, targets, penalty, penalty) for penalty in (1e-6, 1e-1))
    assert np.abs(loose.bias_C).sum() > np.abs(tight.bias_C).sum()


def test_isotonic_equals_scikit_learns_inside_its_limits():
    from sklearn.isotonic import IsotonicRegression

    logits, labels, _ = distorted_rows("binary", 1000)
    x = logits[:, 1] - logits[:, 0]
    expected = np.clip(IsotonicRegression().fit(x, labels).predict(x), 1 / 1002, 1 - 1 / 1002)
    calibration = fit("isotonic", logits, labels)
    np.testing.assert_allclose(calibration.probabilities(logits)[:, 1], expected, atol=1e-12)
    outside = np.array([[0.0, x.min() - 5], [0.0, x.max() + 5]])
    np.testing.assert_allclose(calibration.probabilities(outside)[:, 1], [1 / 1002, 1 - 1 / 1002], atol=1e-12)


def test_histogram_bins_are_of_equal_mass_and_hold_the_smoothed_share():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    answers = (rng.random(1000) < expit(x)).astype(int)
    curve = curves.histogram(x, answers)
    parts = np.array_split(np.argsort(x), 10)
    base_rate = (answers.sum() + 1) / 1002
    np.testing.assert_allclose(curve.p_B, [(answers[part].sum() + 2 * base_rate) / 102 for part in parts])


def test_scaling_binning_has_the_mean_platt_probability_of_each_bin():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    answers = (rng.random(1000) < expit(2 * x)).astype(int)
    scaled = curves.platt_curve(x, answers)(x)
    expected = [scaled[part].mean() for part in np.array_split(np.argsort(x), 10)]
    np.testing.assert_allclose(curves.scaling_binning(x, answers).p_B, expected)


@pytest.mark.parametrize("fit_curve", [curves.histogram, curves.scaling_binning, curves.isotonic, curves.beta])
def test_ties_and_answers_of_one_kind_make_no_empty_or_certain_bin(fit_curve):
    for x in (np.zeros(300), np.repeat([-1.0, 0.0, 5.0], 100)):
        for answers in (np.zeros(300, int), np.ones(300, int), (np.arange(300) < 150).astype(int)):
            p = fit_curve(x, answers)(np.array([-1e4, -1.0, 0.0, 4.0, 1e4]))
            if fit_curve is not curves.beta:  # whose formula reaches 0 and 1 far out; within_limits is for that
                assert (p > 0).all() and (p < 1).all()
            assert np.isfinite(p).all()


def test_one_against_the_rest_has_exact_log_odds_of_sure_classes():
    logits = np.array([[0.0, 50.0, 1.0], [0.0, 1.0, 2.0]])
    p = softmax(logits, axis=1)
    np.testing.assert_allclose(log_odds(logits, "single")[1], np.log(p[1] / (1 - p[1])))
    np.testing.assert_allclose(log_odds(logits, "single")[0, 1], 50 - np.log(1 + np.e))


def test_ordinal_curves_that_cross_are_sorted():
    logits, labels, kind = distorted_rows("ordinal", 300)
    for method in ("beta", "isotonic", "histogram"):
        above = 1 - fit(method, logits, labels, kind).probabilities(logits).cumsum(axis=1)[:, :-1]
        assert (np.diff(above, axis=1) < 0).all()


def test_multilabel_classes_with_few_answers_get_platt_or_nothing():
    logits, answers, _ = distorted_rows("multilabel", 600)
    answers[50:, 1] = np.nan
    answers[:, 2] = np.where(np.arange(600) < 300, 1.0, np.nan)
    isotonic, platt = (fit(method, logits, answers, "multilabel") for method in ("isotonic", "affine"))
    got, of_platt = isotonic.probabilities(logits), platt.probabilities(logits)
    least = isotonic.smallest
    assert len(isotonic.curves_Q[0].x_T) > 10 and 1 / 602 <= least < 1 / 400
    np.testing.assert_allclose(got[:, 1], np.clip(of_platt[:, 1], least, 1 - least), atol=1e-12)
    np.testing.assert_allclose(got[:, 2], np.clip(expit(logits[:, 2]), least, 1 - least), atol=1e-12)


def test_cards_of_earlier_versions_are_read():
    logits = np.array([[0.0, 1.0], [2.0, -1.0]])
    old = {"method": "affine", "scale": 0.5, "bias": [0.0, 1.25]}
    expected = softmax(0.5 * logits + np.array([0.0, 1.25]), axis=1)
    np.testing.assert_allclose(from_json(old).probabilities(logits), expected, atol=1e-15)
    each = {"method": "affine", "scale": [0.5, 2.0], "bias": [0.0, 1.25]}
    expected = expit(np.array([0.5, 2.0]) * logits + np.array([0.0, 1.25]))
    np.testing.assert_allclose(from_json(each, "multilabel").probabilities(logits), expected, atol=1e-15)
    np.testing.assert_allclose(from_json(None).probabilities(logits), softmax(logits, axis=1), atol=1e-15)
    with pytest.raises(ModelError, match="method 'spline' is unknown, expected one of none, temperature"):
        from_json({"method": "spline"})


def test_a_method_that_is_not_for_the_label_space_or_the_rows_is_refused():
    logits, labels = single_rows(50, 2)
    with pytest.raises(SettingsError, match="vector, which is for single labels of more than two classes"):
        fit("vector", logits, labels)
    with pytest.raises(DataError, match="50 labelled rows, expected 200 or more for isotonic"):
        fit("isotonic", logits, labels)


def _nll(p_NC, labels):
    if labels.ndim == 1:
        return nll(p_NC, labels)
    own = np.where(labels >= 0.5, p_NC, 1 - p_NC)[~np.isnan(labels)]
    return float(-np.log(own).mean())
