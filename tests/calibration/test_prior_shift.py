"""Another prevalence than that of the held-out rows: known, or estimated from unlabelled rows."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.calibration.prior_shift import correct, estimate, prevalences
from clsgen_dist.errors import DataError


def _rows(rng: np.random.Generator, share: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One feature, N(class, 1); labels with the given prevalences."""
    labels = rng.choice(len(share), p=share, size=count)
    return rng.normal(labels, 1.0), labels


def _true(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    density = share * np.exp(-((x[:, None] - np.arange(len(share))) ** 2) / 2)
    return density / density.sum(axis=1, keepdims=True)


FITTED, DEPLOYED = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])


def test_the_correction_is_bayes_rule():
    x, _ = _rows(np.random.default_rng(0), FITTED, 50)
    np.testing.assert_allclose(correct(_true(x, FITTED), FITTED, DEPLOYED), _true(x, DEPLOYED), rtol=1e-12)
    two = np.array([0.6, 0.4]), np.array([0.98, 0.02])
    yes = _true(x, two[0])[:, 1:]
    corrected = correct(yes, two[0][1:], two[1][1:], "multilabel")
    np.testing.assert_allclose(corrected[:, 0], _true(x, two[1])[:, 1], rtol=1e-12)


@pytest.mark.long
def test_the_interval_of_the_estimate_holds_the_true_prevalence_as_often_as_promised():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(30):
        x, _ = _rows(rng, DEPLOYED, 300)
        found = estimate(_true(x, FITTED), FITTED, resamples=25)
        hits.append((found.low_C <= DEPLOYED) & (found.high_C >= DEPLOYED))
    assert found.rows == 300 and found.share_C.sum() == pytest.approx(1)
    # 90 intervals of 95 %, not independent; the percentile bootstrap is a little short at 25 resamples.
    assert 0.85 <= np.mean(hits) <= 0.99


def test_multilabel_prevalences_are_estimated_class_by_class():
    rng = np.random.default_rng(2)
    x = rng.normal(3 * (rng.random(4000) < 0.2), 1.0)
    yes = 1 / (1 + np.exp(4.5 - 3 * x))  # of N(3, 1) against N(0, 1), both equally frequent
    found = estimate(np.stack([yes, 1 - yes], axis=1), np.array([0.5, 0.5]), "multilabel", resamples=20)
    assert found.share_C == pytest.approx([0.2, 0.8], abs=0.02)


def test_the_estimate_is_where_expectation_maximisation_stands_still():
    x, _ = _rows(np.random.default_rng(3), DEPLOYED, 500)
    p = _true(x, FITTED)
    share = FITTED
    for _ in range(5000):
        share = correct(p, FITTED, share).mean(axis=0)
    assert estimate(p, FITTED, resamples=1).share_C == pytest.approx(share, abs=1e-5)


def test_prevalences_of_labels_and_too_few_rows_to_estimate_them():
    assert prevalences(np.array([0, 1, 1, 1]), 2).tolist() == [0.25, 0.75]
    answers = np.array([[1.0, 0.0], [0.0, np.nan], [np.nan, 1.0], [0.0, 1.0]])
    assert prevalences(answers, 2, "multilabel") == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(DataError, match="7 unlabelled rows, expected 30 or more"):
        estimate(np.full((7, 2), 0.5), np.array([0.5, 0.5]))
