"""Selective prediction: areas by hand, thresholds that meet their target, intervals that contain the truth."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.evaluation.selective import risk_coverage, threshold_for_risk, threshold_for_workload


def rows(n, seed):
    """Confidence uniform from 0.5 to 1; wrong with probability 1 - confidence."""
    rng = np.random.default_rng(seed)
    confidence = 0.5 + rng.random(n) / 2
    return confidence, rng.random(n) > confidence


def test_curve_and_areas_by_hand():
    found = risk_coverage(np.array([0.6, 0.9, 0.8, 0.7]), np.array([0, 0, 1, 1]))
    assert found.threshold_T.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert found.coverage_T.tolist() == [0.25, 0.5, 0.75, 1]
    assert found.risk_T == pytest.approx([0, 1 / 2, 2 / 3, 1 / 2])
    assert found.aurc == pytest.approx((0 + 1 / 2 + 2 / 3 + 1 / 2) / 4)
    assert found.excess_aurc == pytest.approx(found.aurc - (0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_rows_of_equal_confidence_count_alike_in_any_order():
    confidence, wrong = np.array([0.9, 0.7, 0.7, 0.7]), np.array([0, 1, 0, 1])
    found, reversed_ = risk_coverage(confidence, wrong), risk_coverage(confidence[::-1], wrong[::-1])
    assert found.threshold_T.tolist() == [0.9, 0.7]
    assert found.aurc == pytest.approx(reversed_.aurc) == pytest.approx((0 + 1 / 3 + 4 / 9 + 1 / 2) / 4)


def test_constant_confidence_has_the_error_rate_as_area_and_perfect_ranking_no_excess():
    wrong = np.array([0, 0, 0, 1, 0])
    assert risk_coverage(np.ones(5), wrong).aurc == pytest.approx(0.2)
    assert risk_coverage(1.0 - wrong, wrong).excess_aurc == pytest.approx(0)
    assert np.isnan(risk_coverage(np.empty(0), np.empty(0)).aurc)


def test_area_of_a_known_model():
    # Of the expected loss. Risk at coverage c: 1 - mean confidence of the top share = c / 4, with mean 1/8.
    confidence, _ = rows(200_000, 0)
    assert risk_coverage(confidence, 1 - confidence).aurc == pytest.approx(1 / 8, abs=0.001)


def test_threshold_for_a_risk_is_the_lowest_that_meets_it():
    confidence, wrong = rows(500, 1)
    found = threshold_for_risk(confidence, wrong, 0.1, resamples=50)
    answered = confidence >= found.threshold
    assert found.risk == pytest.approx(wrong[answered].mean()) and found.risk <= 0.1
    assert found.coverage == pytest.approx(answered.mean())
    lower = [wrong[confidence >= t].mean() for t in confidence[confidence < found.threshold]]
    assert min(lower) > 0.1


def test_threshold_for_a_workload_hands_over_that_share():
    confidence, wrong = rows(500, 2)
    found = threshold_for_workload(confidence, wrong, 0.3, resamples=50)
    assert (confidence < found.threshold).mean() == pytest.approx(0.3)
    assert threshold_for_workload(confidence, wrong, 0.0, resamples=5).coverage == 1
    tied = threshold_for_workload(np.array([0.9, 0.5, 0.5]), np.zeros(3), 0.5, resamples=5)
    assert tied.coverage == pytest.approx(1 / 3)


def test_a_target_that_no_threshold_meets():
    found = threshold_for_risk(np.array([0.9, 0.8]), np.ones(2), 0.1, resamples=20)
    assert (found.coverage, found.intervals["threshold"].dropped) == (0, 20)
    assert np.isnan([found.threshold, found.risk]).all()


def test_intervals_of_a_workloads_threshold_and_risk_contain_the_truth():
    # The share 0.4 has confidence below 0.7; above it 1 - 0.85 are wrong.
    hits = []
    for run in range(100):
        found = threshold_for_workload(*rows(250, run + 10), 0.4, resamples=120, seed=run).intervals
        hits.append([found["threshold"].low <= 0.7 <= found["threshold"].high,
                     found["risk"].low <= 0.15 <= found["risk"].high])  # fmt: skip
    assert (np.mean(hits, axis=0) > 0.89).all()
