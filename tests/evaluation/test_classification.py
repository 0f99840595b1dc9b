"""AUROC and the F1 threshold against independent references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from clsgen_dist.evaluation.classification import auroc, best_f1_threshold, f1_at


def test_auroc_is_the_share_of_correctly_ordered_pairs():
    rng = np.random.default_rng(0)
    p, labels = np.round(rng.random(57), 1), rng.integers(0, 2, 57)
    gap = p[labels == 1][:, None] - p[labels == 0][None, :]
    pairs = (gap > 0).mean() + 0.5 * (gap == 0).mean()
    assert auroc(np.stack([1 - p, p], axis=1), labels, 1) == pytest.approx(pairs)


def test_multiclass_auroc_ignores_absent_classes():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.normal(size=(40, 4)), axis=1), rng.integers(0, 3, 40)
    per_class = [
        auroc(np.stack([1 - probabilities[:, c], probabilities[:, c]], axis=1), (labels == c).astype(int), 1)
        for c in range(3)
    ]
    assert auroc(probabilities, labels, 0) == pytest.approx(np.mean(per_class))


def test_the_threshold_generalises_better_than_the_empirical_optimum():
    """The best empirical threshold of a small sample overfits it."""
    expected, empirical = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def draw(rows, rng=rng):
            margin = rng.normal(-0.5, 2.0, rows)
            p = 1 / (1 + np.exp(-margin))  # calibrated: the label is drawn from it
            return p, rng.random(rows) < p

        (p, y), (new_p, new_y) = draw(60), draw(4000)
        best = max(np.unique(p), key=lambda t, p=p, y=y: f1_at(p, y, t))
        expected.append(f1_at(new_p, new_y, best_f1_threshold(p)))
        empirical.append(f1_at(new_p, new_y, best))
    assert np.mean(expected) > np.mean(empirical) + 0.005


def test_the_threshold_is_half_the_best_expected_f1():
    assert best_f1_threshold(np.array([1.0, 1.0, 0.0])) == pytest.approx(0.5)  # F* = 1
    # Taking all three: 2·1.2 / (3 + 1.2); the first alone: 2·0.9 / (1 + 1.2) is better.
    assert best_f1_threshold(np.array([0.15, 0.9, 0.15])) == pytest.approx(0.9 / 2.2)
    assert best_f1_threshold(np.zeros(4)) == 0.5
