"""Ranking and deciding against an independent reference and by exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from clsgen_dist.evaluation.classification import auroc, best_f1_threshold, f1_at


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    p, labels = np.round(rng.random(57), 1), rng.integers(0, 2, 57)
    gap = p[labels == 1][:, None] - p[labels == 0][None, :]
    pairs = (gap > 0).mean() + 0.5 * (gap == 0).mean()
    assert auroc(np.stack([1 - p, p], axis=1), labels, 1) == pytest.approx(pairs)


def test_auroc_of_many_classes_leaves_out_those_absent():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.normal(size=(40, 4)), axis=1), rng.integers(0, 3, 40)
    per_class = [
        auroc(np.stack([1 - probabilities[:, c], probabilities[:, c]], axis=1), (labels == c).astype(int), 1)
        for c in range(3)
    ]
    assert auroc(probabilities, labels, 0) == pytest.approx(np.mean(per_class))


def test_the_threshold_holds_better_on_new_rows_than_the_best_of_one_sample():
    """The best empirical threshold of a small sample follows its accidents."""
    steady, single = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def draw(rows, rng=rng):
            margin = rng.normal(-0.5, 2.0, rows)
            p = 1 / (1 + np.exp(-margin))  # calibrated: the label is drawn from it
            return p, rng.random(rows) < p

        (p, y), (new_p, new_y) = draw(60), draw(4000)
        best = max(np.unique(p), key=lambda t, p=p, y=y: f1_at(p, y, t))
        steady.append(f1_at(new_p, new_y, best_f1_threshold(p)))
        single.append(f1_at(new_p, new_y, best))
    assert np.mean(steady) > np.mean(single) + 0.005


def test_the_threshold_is_half_the_best_expected_f1():
    assert best_f1_threshold(np.array([1.0, 1.0, 0.0])) == pytest.approx(0.5)  # F* = 1
    # Taking all three: 2·1.2 / (3 + 1.2); the first alone: 2·0.9 / (1 + 1.2) is better.
    assert best_f1_threshold(np.array([0.15, 0.9, 0.15])) == pytest.approx(0.9 / 2.2)
    assert best_f1_threshold(np.zeros(4)) == 0.5
