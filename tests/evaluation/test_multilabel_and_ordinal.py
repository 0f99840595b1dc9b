"""Metrics of multi-label and ordinal classes: equal to scikit-learn where it has them, right where it has not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from clsgen_dist.evaluation import multilabel, ordinal
from clsgen_dist.evaluation.metrics import class_metrics


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < (0.1, 0.3, 0.5, 0.8)).astype(float)
    scores = np.clip(0.6 * labels + 0.4 * rng.random((200, 4)) - 0.1 * rng.random((200, 4)), 0.01, 0.99)
    return labels, scores


def test_multilabel_metrics_equal_scikit_learns(answers):
    labels, scores = answers
    predicted = scores >= 0.5
    found = class_metrics(scores, labels, "multilabel")
    for name, theirs in (("auroc", metrics.roc_auc_score), ("average_precision", metrics.average_precision_score)):
        expected = [theirs(labels, scores, average=average) for average in ("macro", "micro")]
        assert [found[name], found[f"{name}_micro"]] == pytest.approx(expected)
    expected = [metrics.f1_score(labels, predicted, average=average) for average in ("macro", "micro")]
    assert multilabel.f1(labels, predicted) == pytest.approx(expected)
    assert multilabel.subset_accuracy(labels, predicted) == pytest.approx(metrics.accuracy_score(labels, predicted))
    each = [metrics.log_loss(labels[:, c], scores[:, c]) for c in range(4)]
    assert multilabel.nll(labels, scores) == pytest.approx(sum(each))


def test_answers_that_are_not_known_count_nowhere(answers):
    labels, scores = answers
    half = labels.copy()
    half[100:, 0] = np.nan
    known = [(labels[:100, 0], scores[:100, 0]), *((labels[:, c], scores[:, c]) for c in (1, 2, 3))]
    assert class_metrics(scores, half, "multilabel")["auroc"] == pytest.approx(
        np.mean([metrics.roc_auc_score(*pair) for pair in known])
    )
    expected = [metrics.f1_score(label, score >= 0.5) for label, score in known]
    assert multilabel.f1(half, scores >= 0.5)[0] == pytest.approx(np.mean(expected))
    assert multilabel.subset_accuracy(half, scores >= 0.5) == metrics.accuracy_score(labels[:100], scores[:100] >= 0.5)
    nothing = np.full((3, 2), np.nan)
    assert np.isnan([multilabel.nll(nothing, np.full((3, 2), 0.5)), multilabel.subset_accuracy(nothing, nothing)]).all()
    assert np.isnan(class_metrics(np.full((3, 2), 0.5), nothing, "multilabel")["auroc"])


def test_ordinal_metrics_equal_scikit_learns():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 300)
    predicted = np.clip(labels + rng.integers(-1, 2, 300), 0, 3)
    expected = metrics.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert ordinal.quadratic_kappa(predicted, labels, 4) == pytest.approx(expected)
    assert ordinal.mean_absolute_error(predicted, labels) == metrics.mean_absolute_error(labels, predicted)
    assert ordinal.quadratic_kappa(labels, labels, 4) == 1 and np.isnan(
        ordinal.quadratic_kappa(labels * 0, labels * 0, 4)
    )


def test_ordinal_prediction_is_the_median_and_its_auroc_is_over_the_cut_points():
    probabilities = np.array([[0.4, 0.2, 0.4], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]])
    assert ordinal.predicted_class(probabilities).tolist() == [1, 0, 2, 0]
    assert ordinal.auroc(probabilities, np.array([1, 0, 2, 0])) == 1.0
    assert ordinal.auroc(probabilities, np.array([1, 2, 0, 0])) == pytest.approx((1.5 / 4 + 0.5 / 3) / 2)  # with a tie
    assert np.isnan(ordinal.auroc(probabilities, np.zeros(4, dtype=int)))


def test_answers_that_are_probabilities_count_as_what_is_more_likely(answers):
    labels, scores = answers
    soft = np.where(labels == 1, 0.7, 0.2)
    assert class_metrics(scores, soft, "multilabel") == pytest.approx(class_metrics(scores, labels, "multilabel"))
