"""Ranking metrics without a library's checks: equal to scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, roc_auc_score

from clsgen_dist.evaluation import ranking
from clsgen_dist.evaluation.ranking import average_precision, label_ranking_precision, roc_auc


@pytest.mark.parametrize("rows", [2, 7, 400])
@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["all tied", "ties", "distinct"])
def test_auroc_and_average_precision_are_those_of_scikit_learn(rows, decimals):
    rng = np.random.default_rng(rows)
    for _ in range(20):
        outcome, score = rng.random(rows) < 0.4, rng.random(rows).round(decimals)
        outcome[:2] = True, False
        assert roc_auc(outcome, score) == pytest.approx(roc_auc_score(outcome, score), abs=1e-12)
        assert average_precision(outcome, score) == pytest.approx(average_precision_score(outcome, score), abs=1e-12)


@pytest.mark.parametrize("at_once", [10_000_000, 100], ids=["together", "in blocks"])
def test_label_ranking_precision_is_that_of_scikit_learn(at_once, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", at_once)
    rng = np.random.default_rng(0)
    for classes in (2, 5):
        labels, scores = rng.random((60, classes)) < 0.3, rng.random((60, classes)).round(1)
        expected = label_ranking_average_precision_score(labels, scores)
        assert label_ranking_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_one_outcome_alone_has_no_area():
    assert math.isnan(roc_auc(np.ones(3), np.arange(3))) and math.isnan(average_precision(np.zeros(3), np.arange(3)))
    assert average_precision(np.ones(3), np.arange(3)) == 1
    assert math.isnan(roc_auc(np.ones(0), np.ones(0))) and math.isnan(average_precision(np.ones(0), np.ones(0)))
