"""The method that is chosen on rows with a known distortion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax

from clsgen_dist.calibration.choice import choose, folds
from clsgen_dist.calibration.comparison import Comparison, Reason
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.calibration_error import nll
from tests.calibration.synthetic import SPACES, binary_rows, distorted_rows, multilabel_rows, single_rows

MOSTLY_LONG = pytest.mark.parametrize(
    "space", [s if s == "binary" else pytest.param(s, marks=pytest.mark.long) for s in SPACES]
)


def _scores(comparison):
    return {scores.method: scores for scores in comparison.measured}


def test_calibrated_rows_are_left_alone_or_changed_within_noise():
    chosen = []
    for seed in range(8):
        logits, labels = binary_rows(400, lambda true: true, seed)
        calibration, comparison = choose(logits, labels)
        chosen.append(comparison.method)
        fresh, fresh_labels = binary_rows(20_000, lambda true: true, 100 + seed)
        raw = nll(softmax(fresh, axis=1), fresh_labels)
        assert nll(calibration.probabilities(fresh), fresh_labels) < raw + 0.02
    assert chosen.count("none") >= 5 and set(chosen) <= {"none", "temperature", "affine"}


@pytest.mark.parametrize("space", SPACES)
def test_over_confidence_alone_is_corrected_by_a_temperature(space):
    logits, labels, kind = distorted_rows(space, 1500, factor=3.0, shift=0.0)
    calibration, comparison = choose(logits, labels, kind)
    assert comparison.method == "temperature"
    assert 1 / calibration.scale == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("space", SPACES)
def test_a_bias_towards_classes_is_corrected_by_an_affine_map(space):
    logits, labels, kind = distorted_rows(space, 1500, factor=2.0, shift=1.5)
    _, comparison = choose(logits, labels, kind)
    assert comparison.method == "affine"
    scores = _scores(comparison)
    assert scores["affine"].nll < scores["temperature"].nll < scores["none"].nll


def test_a_distortion_that_is_not_logistic_needs_a_free_curve_and_enough_rows():
    def distort(true):
        return np.sign(true - 1) * np.abs(true - 1) ** 2.5

    calibration, comparison = choose(*binary_rows(4000, distort))
    assert comparison.method in ("isotonic", "beta")
    scores = _scores(comparison)
    assert scores["isotonic"].nll < scores["affine"].nll - 3 * scores["affine"].behind_error
    fresh, labels = binary_rows(20_000, distort, seed=1)
    affine, _ = choose(*binary_rows(4000, distort), method="affine")
    assert nll(calibration.probabilities(fresh), labels) < nll(affine.probabilities(fresh), labels) - 0.01
    few = choose(*binary_rows(100, distort))[1]
    assert few.left_out == {"isotonic": 200, "scaling_binning": 200, "histogram": 200}


def test_classes_taken_for_each_other_need_dirichlet():
    rng = np.random.default_rng(0)
    seen, _ = single_rows(4000, 3)
    weight = np.array([[1.0, 0.8, 0.0], [-0.8, 1.0, 0.0], [0.0, 0.5, 0.3]])
    true = np.exp((seen - np.log(np.exp(seen).sum(axis=1, keepdims=True))) @ weight.T)
    true /= true.sum(axis=1, keepdims=True)
    labels = (rng.random(len(seen))[:, None] > true.cumsum(axis=1)).sum(axis=1)
    assert choose(seen, labels)[1].method == "dirichlet"


@MOSTLY_LONG
def test_the_order_of_the_rows_changes_nothing(space):
    logits, labels, kind = distorted_rows(space, 250)
    order = np.random.default_rng(1).permutation(len(logits))
    one, other = choose(logits, labels, kind), choose(logits[order], labels[order], kind)
    assert one[0].to_json() == other[0].to_json() and one[1] == other[1]


@pytest.mark.parametrize("space", SPACES)
def test_ten_rows_are_enough_and_the_rest_is_said_to_need_more(space):
    logits, labels, kind = distorted_rows(space, 10, seed=3)
    if kind == "multilabel":
        labels = np.nan_to_num(labels)
    calibration, comparison = choose(logits, labels, kind)
    assert comparison.rows == 10 and [s.method for s in comparison.measured] == ["none", "temperature", "affine"]
    assert comparison.left_out["beta"] == 30 and np.isfinite(calibration.probabilities(logits)).all()


@MOSTLY_LONG
def test_the_choice_is_never_worse_than_raw_on_the_rows_it_is_made_by(space):
    for seed in range(4):
        logits, labels, kind = distorted_rows(space, 60, seed, factor=1.2, shift=0.1)
        comparison = choose(logits, labels, kind)[1]
        scores = _scores(comparison)
        assert scores[comparison.method].nll <= scores["none"].nll


def test_a_class_with_one_row_and_separable_classes_do_not_stop_the_choice():
    logits, labels = single_rows(60, 3, seed=2)
    labels = np.where(labels == 2, 0, labels)
    labels[7] = 2
    assert np.isfinite([s.nll for s in choose(logits, labels)[1].measured]).all()
    sure = np.stack([np.zeros(300), np.repeat([-40.0, 40.0], 150)], axis=1)
    calibration, comparison = choose(sure, np.repeat([0, 1], 150))
    assert np.isfinite([s.nll for s in comparison.measured]).all()
    assert np.isfinite(np.log(calibration.probabilities(sure))).all()


def test_unknown_answers_count_for_nothing():
    logits, answers = multilabel_rows(400, 3)
    logits = 3 * logits
    none_known = np.concatenate([answers, np.full((100, 3), np.nan)])
    more_logits = np.concatenate([logits, np.random.default_rng(0).normal(size=(100, 3))])
    one, other = choose(logits, answers, "multilabel"), choose(more_logits, none_known, "multilabel")
    assert one[0].to_json() == other[0].to_json() and one[1] == other[1]


def test_folds_hold_as_many_rows_of_each_class():
    labels = np.sort(np.random.default_rng(0).choice(3, 200, p=[0.7, 0.2, 0.1]))
    fold = folds(labels, "single")
    for label in range(3):
        counts = np.bincount(fold[labels == label], minlength=10)
        assert counts.max() - counts.min() <= 1
    answers = np.zeros((100, 2))
    answers[:20, 1] = 1
    answers[10:, 0] = 1
    counts = np.bincount(folds(answers, "multilabel")[answers[:, 1] == 1], minlength=10)
    assert counts.tolist() == [2] * 10


def test_a_given_method_is_taken_and_compared_with_raw():
    logits, labels = binary_rows(300, lambda true: true)
    calibration, comparison = choose(logits, labels, method="histogram")
    assert calibration.method == "histogram" and comparison.reason is Reason.GIVEN
    assert [s.method for s in comparison.measured] == ["none", "histogram"]
    assert "as asked, though raw probabilities have a lower NLL; consider --method auto" in comparison.text()
    with pytest.raises(SettingsError, match="more than two classes"):
        choose(logits, labels, method="dirichlet")
    with pytest.raises(DataError, match="100 labelled rows, expected 200"):
        choose(*binary_rows(100, np.abs), method="isotonic")


def test_text_says_what_was_chosen_and_why():
    _, comparison = choose(*binary_rows(100, lambda true: 3 * true))
    text = comparison.text()
    assert comparison.method == "temperature"
    assert "calibration by temperature: " in text and "| temperature (chosen)" in text and "| none " in text
    assert "not tried on 100 rows: isotonic needs 200" in text
    assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))) == comparison
    unchanged = choose(*binary_rows(400, lambda true: true, 3))[1]
    assert unchanged.method == "none"
    assert unchanged.text().startswith("raw probabilities are kept: no method has a lower NLL\n")
