"""Conformal sets: coverage on rows with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from clsgen_dist.calibration.conformal import ConformalSets, coverage_band, covered, fit_sets
from clsgen_dist.errors import DataError


def _rows(
    rng: np.random.Generator, count: int, classes: int = 3, sharpness: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Over-confident probabilities and labels drawn from the true ones."""
    logits = rng.normal(0, sharpness, (count, classes)) + np.array([1.5, *[0.0] * (classes - 1)])
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    wrong = true**3
    return wrong / wrong.sum(axis=1, keepdims=True), labels


def _probability_of_band(held_out: int, test: int, low: float, high: float) -> float:
    """By simulation of its two draws: the coverage, then the rows that are covered."""
    rng = np.random.default_rng(0)
    allowed = int((held_out + 1) * 0.1 + 1e-9)
    counts = rng.binomial(test, rng.beta(held_out + 1 - allowed, allowed, 20_000)) / test
    return float(((low <= counts) & (counts <= high)).mean() + 0.005)


@pytest.mark.parametrize("class_conditional", [False, True])
def test_coverage_over_200_splits_lies_in_its_binomial_band(class_conditional):
    rng = np.random.default_rng(0)
    shares, inside, expected = [], 0, []
    for _ in range(200):
        p, labels = _rows(rng, 500)
        sets = fit_sets(p[:250], labels[:250], coverage=0.9, class_conditional=class_conditional)
        test_p, test_labels = (p[250:], labels[250:])
        if class_conditional:
            rows = test_labels == 2
            test_p, test_labels = test_p[rows], test_labels[rows]
        share = covered(sets, test_p, test_labels).mean()
        low, high = coverage_band(sets.rows_C[2], 0.9, len(test_labels))
        inside += low <= share <= high
        shares.append(share)
        expected.append(_probability_of_band(sets.rows_C[2], len(test_labels), low, high))
    # The mean is at least what was promised, and less than 1/(n+1) above, up to the noise of 200 draws.
    assert np.mean(shares) == pytest.approx(0.9 + 0.5 / (min(sets.rows_C) + 1), abs=0.012)
    # Counts are whole, so the band holds a little more than 95 %.
    low, high = binom(200, np.mean(expected)).ppf([0.001, 0.999])
    assert min(expected) >= 0.95 and low <= inside <= high


def test_one_cutoff_for_all_covers_a_rare_class_less_than_promised():
    """Why class-conditional sets exist."""
    p, labels = _rows(np.random.default_rng(1), 6000)
    common, each = (
        fit_sets(p[:3000], labels[:3000], coverage=0.9, class_conditional=conditional) for conditional in (False, True)
    )
    rare = labels[3000:] != 0
    assert covered(common, p[3000:], labels[3000:])[rare].mean() < 0.86
    assert covered(each, p[3000:], labels[3000:])[rare].mean() == pytest.approx(0.9, abs=0.02)
    assert each.contains(p).sum(axis=1).mean() > common.contains(p).sum(axis=1).mean()


def test_multilabel_sets_cover_the_answers_of_each_class_and_pass_over_unknown_ones():
    rng = np.random.default_rng(2)
    p = rng.beta(0.5, 2.0, (4000, 2))
    labels = (rng.random((4000, 2)) < p).astype(float)
    labels[rng.random((4000, 2)) < 0.3] = np.nan
    sets = fit_sets(p[:2000], labels[:2000], "multilabel", coverage=0.8)
    right = covered(sets, p[2000:], labels[2000:], "multilabel")
    assert np.isnan(right).mean() == pytest.approx(0.3, abs=0.02)
    assert np.nanmean(right, axis=0) == pytest.approx([0.8, 0.8], abs=0.03)
    doubtful = sets.contains(p) == sets.contains_no(p)  # both answers are possible, or neither
    assert 0 < doubtful.mean() < 0.5


def test_the_cutoff_is_the_rank_of_the_definition():
    own = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.85, 0.75, 0.65])
    p = np.stack([1 - own, own], axis=1)
    labels = np.ones(9, dtype=int)
    # n = 9: the ⌈10 · 0.9⌉ = 9th smallest 1-p, the 8th for 0.8.
    assert fit_sets(p, labels, coverage=0.9).cutoff_C == (0.55, 0.55)
    assert fit_sets(p, labels, coverage=0.8).cutoff_C == (0.6, 0.6)
    with pytest.raises(
        DataError, match=r"9 rows, expected 19 or more to promise a coverage of 0\.95; add rows, or lower the coverage"
    ):
        fit_sets(p, labels, coverage=0.95)


def test_sets_survive_json():
    p, labels = _rows(np.random.default_rng(3), 400)
    sets = fit_sets(p, labels, class_conditional=True)
    assert ConformalSets.from_json(sets.to_json()) == sets


def test_class_conditional_multilabel_sets_cover_yes_and_no_each():
    """One cutoff for both answers covers the rare yes less than promised."""
    rng = np.random.default_rng(4)
    p = rng.beta(0.5, 4.0, (8000, 1))
    labels = (rng.random((8000, 1)) < p).astype(float)
    yes = labels[4000:, 0] == 1
    for conditional in (False, True):
        sets = fit_sets(p[:4000], labels[:4000], "multilabel", coverage=0.9, class_conditional=conditional)
        right = covered(sets, p[4000:], labels[4000:], "multilabel")[:, 0]
        assert ConformalSets.from_json(sets.to_json()) == sets
        if conditional:
            assert [right[yes].mean(), right[~yes].mean()] == pytest.approx([0.9, 0.9], abs=0.03)
        else:
            assert right.mean() == pytest.approx(0.9, abs=0.02) and right[yes].mean() < 0.5
