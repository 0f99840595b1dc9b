"""Metrics of decisions, rankings and thresholds: equal to scikit-learn's, by hand, and defined on edge cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from clsgen_dist.evaluation import multilabel
from clsgen_dist.evaluation.confusion import balanced_accuracy, class_scores, confusion_matrix, macro_f1, mcc
from clsgen_dist.evaluation.full_metrics import full_metrics, per_class
from clsgen_dist.evaluation.metrics import HIGHER_IS_BETTER, WORDS, class_metrics
from clsgen_dist.evaluation.operating_points import decision_curve, precision_at_recall, recall_at_precision


def predictions(classes, n=211, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return softmax(rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels], axis=1), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_decision_metrics_equal_scikit_learns(classes):
    p, labels = predictions(classes)
    decided = p.argmax(axis=1)
    found = full_metrics(p, labels, "single")
    assert found["accuracy"] == metrics.accuracy_score(labels, decided)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, decided))
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(labels, decided))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, decided, average="macro"))
    assert found["accuracy"] == pytest.approx(metrics.f1_score(labels, decided, average="micro"))
    assert (confusion_matrix(decided, labels, classes) == metrics.confusion_matrix(labels, decided)).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_each_class_equal_scikit_learns(classes):
    p, labels = predictions(classes)
    found = per_class(p, labels, "single")
    expected = metrics.precision_recall_fscore_support(labels, p.argmax(axis=1))
    ours = found.decisions
    for mine, theirs in zip((ours.precision_C, ours.recall_C, ours.f1_C, ours.support_C), expected, strict=True):
        assert mine == pytest.approx(theirs)
    assert found.auroc_Q == pytest.approx([metrics.roc_auc_score(labels == c, p[:, c]) for c in range(classes)])
    expected = [metrics.average_precision_score(labels == c, p[:, c]) for c in range(classes)]
    assert found.average_precision_Q == pytest.approx(expected)


def test_a_class_never_seen_has_undefined_recall_and_leaves_the_means_alone():
    labels, decided = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    confusion = confusion_matrix(decided, labels, 3)
    scores = class_scores(confusion)
    assert np.isnan([scores.precision_C[2], scores.recall_C[2], scores.f1_C[2]]).all() and scores.support_C[2] == 0
    assert balanced_accuracy(confusion) == metrics.balanced_accuracy_score(labels, decided)
    assert macro_f1(confusion) == pytest.approx(metrics.f1_score(labels, decided, average="macro"))
    theirs = metrics.precision_recall_fscore_support(labels, decided, labels=range(3), zero_division=np.nan)
    for mine, expected in zip((scores.precision_C, scores.recall_C, scores.f1_C), theirs, strict=False):
        assert mine == pytest.approx(expected, nan_ok=True)


def test_mcc_of_a_constant_decision_is_zero_and_of_one_class_undefined():
    assert mcc(np.array([[0, 5], [0, 3]])) == 0
    assert np.isnan(mcc(np.array([[0, 5], [0, 0]])))


def test_mcc_of_many_rows_does_not_overflow():
    assert mcc(np.array([[3_000_000_000, 1], [1, 3_000_000_000]])) == pytest.approx(1, abs=1e-9)


def answers(seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((160, 5)) < (0.1, 0.3, 0.5, 0.8, 0.4)).astype(float)
    labels[0] = 0
    return np.clip(0.4 * labels + 0.6 * rng.random((160, 5)), 0.01, 0.99), labels


def test_multilabel_ranking_metrics_equal_scikit_learns():
    p, labels = answers()
    found = full_metrics(p, labels, "multilabel")
    assert found["hamming_loss"] == pytest.approx(metrics.hamming_loss(labels, p >= 0.5))
    assert found["ranking_precision"] == pytest.approx(metrics.label_ranking_average_precision_score(labels, p))
    assert found["coverage_error"] == pytest.approx(metrics.coverage_error(labels, p))
    scores = per_class(p, labels, "multilabel").decisions
    expected = metrics.precision_recall_fscore_support(labels, p >= 0.5)
    assert scores.recall_C == pytest.approx(expected[1]) and scores.support_C.tolist() == expected[3].tolist()


def test_rows_with_an_unknown_answer_count_in_no_ranking_and_its_other_answers_do_in_the_hamming_loss():
    p, labels = answers()
    holes = labels.copy()
    holes[:60, 2] = np.nan
    whole = (labels[60:], p[60:])
    assert multilabel.coverage_error(holes, p) == pytest.approx(metrics.coverage_error(*whole))
    assert multilabel.ranking_precision(holes, p) == pytest.approx(
        metrics.label_ranking_average_precision_score(*whole), abs=1e-12
    )
    known = ~np.isnan(holes)
    assert multilabel.hamming_loss(holes, p >= 0.5) == pytest.approx(np.mean((labels != (p >= 0.5))[known]))
    assert multilabel.class_scores(holes, p >= 0.5).support_C[2] == labels[60:, 2].sum()


EDGE_CASES = {
    "seven rows": (*predictions(3, 7), "single"),
    "one class": (predictions(2, 7)[0], np.ones(7, int), "single"),
    "one of three classes": (predictions(3, 7)[0], np.zeros(7, int), "single"),
    "a class never seen": (predictions(4, 30)[0], predictions(3, 30)[1], "single"),
    "one row": (predictions(2, 1)[0], np.array([1]), "single"),
    "ordered, one class": (predictions(3, 7)[0], np.zeros(7, int), "ordinal"),
    "ordered, never seen": (predictions(4, 20)[0], predictions(3, 20)[1], "ordinal"),
    "nothing known": (np.full((3, 2), 0.4), np.full((3, 2), np.nan), "multilabel"),
    "one class unknown": (answers()[0][:7], np.where(np.arange(5) == 2, np.nan, answers()[1][:7]), "multilabel"),
    "nothing there": (answers()[0][:7], np.zeros((7, 5)), "multilabel"),
    "a single class": (answers()[0][:, :1], answers()[1][:, :1], "multilabel"),
    "probabilities 0 and 1": (np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0]), "single"),
}


@pytest.mark.parametrize("case", EDGE_CASES)
def test_edge_cases_give_numbers_or_nan_without_a_warning(case):
    p, labels, kind = EDGE_CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = full_metrics(p, labels, kind)
        each = per_class(p, labels, kind)
    assert all(isinstance(value, float) and not np.isinf(value) for value in found.values())
    assert len(each.decisions.f1_C) == p.shape[1]
    if case in ("one class", "one of three classes", "ordered, one class"):
        assert np.isnan([found["auroc"], found["mcc"]]).all() and np.isfinite(found["accuracy"])
    if case == "nothing known":
        assert np.isnan([value for name, value in found.items() if not name.startswith("f1") and name != "ece"]).all()


@pytest.mark.parametrize("kind", ["single", "multilabel", "ordinal"])
def test_every_metric_has_words_and_class_metrics_are_among_them(kind):
    p, labels = answers() if kind == "multilabel" else predictions(3)
    found = full_metrics(p, labels, kind)
    assert set(found) <= set(WORDS) and set(WORDS) >= HIGHER_IS_BETTER
    assert class_metrics(p, labels, kind).items() <= found.items()


def test_operating_points_equal_scikit_learns_curve():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    score = (0.3 * positive + 0.7 * rng.random(300)).round(2)
    precision, recall, threshold = metrics.precision_recall_curve(positive, score)
    precision, recall = precision[:-1], recall[:-1]
    point = recall_at_precision(score, positive, 0.6)
    assert point.recall == pytest.approx(recall[precision >= 0.6].max())
    assert point.precision >= 0.6 and point.threshold in threshold
    assert point.share == pytest.approx((score >= point.threshold).mean())
    point = precision_at_recall(score, positive, 0.8)
    assert point.precision == pytest.approx(precision[recall >= 0.8].max()) and point.recall >= 0.8


def test_operating_points_that_no_threshold_reaches_are_nan():
    assert np.isnan(recall_at_precision(np.array([0.9, 0.1]), np.array([0, 1]), 0.8).threshold)
    assert np.isnan(precision_at_recall(np.array([0.9, 0.1]), np.array([0, 0]), 0.5).precision)
    assert np.isnan(precision_at_recall(np.empty(0), np.empty(0), 0.5).precision)


def test_net_benefit_by_hand():
    # At 0.2: 2 true and 1 false positives of 4 rows; a false one weighs 0.25. Everyone treated: 2 and 2.
    curve = decision_curve(np.array([0.9, 0.2, 0.5, 0.1]), np.array([1, 1, 0, 0]), np.array([0.2, 0.75]))
    assert curve.model_T == pytest.approx([(2 - 0.25) / 4, 1 / 4])
    assert curve.treat_all_T == pytest.approx([0.5 - 0.5 * 0.25, 0.5 - 0.5 * 3])


def test_a_calibrated_model_is_never_worse_than_treating_all_or_none():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 2, 200_000)
    curve = decision_curve(p, rng.random(200_000) < p)
    assert (curve.model_T >= np.maximum(curve.treat_all_T, 0) - 0.002).all()
    assert (curve.model_T > np.maximum(curve.treat_all_T, 0) + 0.05).any()


def test_decision_curve_without_rows_is_nan_and_threshold_one_is_refused():
    assert np.isnan(decision_curve(np.empty(0), np.empty(0)).model_T).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        decision_curve(np.array([0.5]), np.array([1]), np.array([1.0]))
