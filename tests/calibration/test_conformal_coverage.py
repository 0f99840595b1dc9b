"""Sets keep their promise in every label space: over 200 splits the coverage lies in its band as often as it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from clsgen_dist.calibration.conformal import coverage_band, covered, fit_sets
from clsgen_dist.model.label_space import class_probabilities
from tests.calibration.synthetic import SPACES, distorted_rows

SPLITS, HELD_OUT, TEST = 200, 250, 300


def judged(labels, right, sets, kind, conditional):
    """Whether the true answer is in the set of each row that the promise is about, and the held-out rows behind it."""
    if kind == "multilabel":
        answer = labels[:, 1]
        rows = answer == 1 if conditional else ~np.isnan(answer)
        return right[rows, 1], sets.rows_C[1]
    rows = labels == 1 if conditional else np.ones(len(labels), dtype=bool)
    return right[rows], sets.rows_C[1]


@pytest.mark.parametrize("conditional", [False, True], ids=["on average", "of one class"])
@pytest.mark.parametrize("coverage", [0.8, pytest.param(0.95, marks=pytest.mark.long)])
@pytest.mark.parametrize("space", SPACES)
def test_coverage_lies_in_its_band_as_often_as_the_band_says(space, coverage, conditional):
    inside, expected, shares = 0, [], []
    for seed in range(SPLITS):
        logits, labels, kind = distorted_rows(space, HELD_OUT + TEST, seed=seed)
        p = class_probabilities(logits, kind)
        sets = fit_sets(p[:HELD_OUT], labels[:HELD_OUT], kind, coverage=coverage, class_conditional=conditional)
        right = covered(sets, p[HELD_OUT:], labels[HELD_OUT:], kind)
        hits, held_out = judged(labels[HELD_OUT:], right, sets, kind, conditional)
        low, high = coverage_band(held_out, coverage, len(hits))
        inside += low <= np.mean(hits) <= high
        shares.append(np.mean(hits))
        left_out = held_out + 1 - math.ceil(round((held_out + 1) * coverage, 9))
        spread = betabinom(len(hits), held_out + 1 - left_out, left_out)
        expected.append(spread.cdf(round(high * len(hits))) - spread.cdf(round(low * len(hits)) - 1))
    assert min(expected) >= 0.95
    fewest, most = binom(SPLITS, np.mean(expected)).ppf([0.001, 0.999])
    assert fewest <= inside <= most
    # On average the promise, and no more than 1/(n+1) above it.
    error = 4 * np.std(shares) / SPLITS**0.5
    assert coverage - error <= np.mean(shares) <= coverage + 1 / (held_out + 1) + error
