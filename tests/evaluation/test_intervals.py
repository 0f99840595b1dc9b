"""Intervals and paired tests: equal to other implementations, and they contain the truth as often as promised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.proportion import proportion_confint

from clsgen_dist.evaluation.bootstrap import Resampler, bootstrap_interval, paired_difference
from clsgen_dist.evaluation.delong import auroc_interval, delong_test
from clsgen_dist.evaluation.interval import mean_interval, wilson_interval
from clsgen_dist.evaluation.mcnemar import mcnemar


def scores_of_two_models(rng, n, shift=1.0, positive_share=0.4):
    """Binormal scores, correlated between the models; the second is noisier."""
    positive = rng.random(n) < positive_share
    common = rng.normal(size=n) + shift * positive
    return common, common + rng.normal(0, 1.0, n), positive


def coverage(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.parametrize("successes, n", [(0, 9), (3, 7), (50, 100), (100, 100)])
def test_wilson_interval_equals_statsmodels(successes, n):
    expected = proportion_confint(successes, n, method="wilson")
    interval = wilson_interval(successes, n)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_mean_interval_by_hand():
    # Mean 2, s = 1, t with 2 degrees of freedom 4.3027.
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (interval.low, interval.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert np.isnan(mean_interval(np.array([1.0])).low)


def all_pairs_covariance(first, second, positive):
    """DeLong's covariance matrix of two AUROCs, as in the paper, from all pairs."""
    kernels = [
        (s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in (first, second)
    ]
    of_positives = np.cov([kernel.mean(axis=1) for kernel in kernels])
    of_negatives = np.cov([kernel.mean(axis=0) for kernel in kernels])
    return of_positives / positive.sum() + of_negatives / (~positive).sum()


def test_delong_equals_the_definition_over_all_pairs_with_ties():
    first, second, positive = scores_of_two_models(np.random.default_rng(0), 123)
    first, second = first.round(1), second.round(1)
    covariance = all_pairs_covariance(first, second, positive)
    found = auroc_interval(first, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, first), abs=1e-12)
    assert found.standard_error**2 == pytest.approx(covariance[0, 0], rel=1e-10)
    difference = delong_test(first, second, positive)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference.value == pytest.approx(roc_auc_score(positive, first) - roc_auc_score(positive, second))
    assert difference.p_value == pytest.approx(2 * norm.sf(abs(difference.value) / variance**0.5), rel=1e-9)


def test_delong_edge_cases_are_defined():
    score = np.array([0.1, 0.2, 0.8, 0.9])
    perfect = auroc_interval(score, np.array([0, 0, 1, 1]))
    assert (perfect.value, perfect.interval.high) == (1, 1)
    assert perfect.interval.low == pytest.approx(0.025**0.5)  # two disjoint pairs, both right
    wrong = auroc_interval(score, np.array([1, 1, 0, 0])).interval
    assert (wrong.low, wrong.high) == pytest.approx((0, 1 - 0.025**0.5))
    one_class, one_positive = auroc_interval(score, np.zeros(4)), auroc_interval(score, np.array([0, 1, 0, 0]))
    assert np.isnan(one_class.value) and np.isnan(one_positive.interval.low) and one_positive.value == 1 / 3
    same = delong_test(score, 2 * score, np.array([0, 1, 0, 1]))
    assert (same.value, same.p_value) == (0, 1)
    assert np.isnan(delong_test(score, score, np.array([0, 1, 0, 0])).p_value)


def simulate_delong(runs, n, shift, seed):
    rng, truth = np.random.default_rng(seed), norm.cdf(shift / 2**0.5)
    found = [auroc_interval(*scores_of_two_models(rng, n, shift)[::2]).interval for _ in range(runs)]
    return coverage(found, truth)


def test_auroc_interval_covers_the_truth():
    assert 0.92 <= simulate_delong(500, 80, 1.0, 0) <= 0.985


@pytest.mark.long
@pytest.mark.parametrize("n, shift", [(40, 1.0), (40, 2.5), (100, 2.5), (400, 1.0)])
def test_auroc_interval_covers_the_truth_on_few_rows_and_near_one(n, shift):
    assert 0.935 <= simulate_delong(4000, n, shift, 1) <= 0.985


def test_delong_test_rejects_equal_models_as_often_as_promised():
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(600):
        positive = rng.random(120) < 0.4
        common = rng.normal(size=120) + positive
        first, second = (common + rng.normal(0, 0.7, 120) for _ in range(2))
        rejected += delong_test(first, second, positive).p_value < 0.05
    assert 0.025 <= rejected / 600 <= 0.08


def test_mcnemar_equals_statsmodels_and_hand_computed_difference():
    rng = np.random.default_rng(0)
    first, second = rng.random(90) < 0.8, rng.random(90) < 0.65
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    found = mcnemar(first, second)
    assert found.p_value == pytest.approx(their_mcnemar(table, exact=True).pvalue)
    assert found.value == pytest.approx(first.mean() - second.mean())
    # Agresti & Min by hand: 6 and 2 discordant of 40 rows.
    first, second = np.zeros(40, bool), np.zeros(40, bool)
    first[:6], second[6:8] = True, True
    by_hand = mcnemar(first, second).interval
    half = 1.959964 * ((6.5 + 2.5) - 4**2 / 42) ** 0.5 / 42
    assert (by_hand.low, by_hand.high) == pytest.approx((4 / 42 - half, 4 / 42 + half))


def test_mcnemar_of_models_that_never_disagree():
    right = np.array([True, False, True])
    assert mcnemar(right, right).p_value == 1
    assert np.isnan(mcnemar(right[:0], right[:0]).p_value)


def test_strata_keep_the_number_of_rows_of_each_class():
    labels = np.array([0] * 50 + [1] * 3)
    rng, resampler = np.random.default_rng(0), Resampler(53, strata_N=labels)
    draws = [resampler.draw(rng) for _ in range(50)]
    assert all(labels[draw].sum() == 3 and len(draw) == 53 for draw in draws)
    assert len({tuple(np.sort(draw)) for draw in draws}) > 40


def test_clusters_are_drawn_whole():
    clusters = np.array(["b", "a", "b", "c", "c", "c"])
    rng, resampler = np.random.default_rng(0), Resampler(6, clusters_N=clusters)
    for _ in range(50):
        draw = resampler.draw(rng)
        count = np.bincount(draw, minlength=6)
        assert count[0] == count[2] and count[3] == count[4] == count[5]
        assert count[0] + count[1] + count[3] == 3


def test_clusters_with_a_positive_row_are_a_stratum():
    clusters, labels = np.repeat(np.arange(10), 2), np.array([0, 1] * 2 + [0, 0] * 8)
    rng, resampler = np.random.default_rng(0), Resampler(20, clusters_N=clusters, strata_N=labels)
    assert all(labels[resampler.draw(rng)].sum() == 2 for _ in range(30))


def test_wrong_number_of_clusters_is_an_error():
    with pytest.raises(ValueError, match=r"clusters of shape \(3,\), expected \(4,\)"):
        Resampler(4, clusters_N=np.zeros(3))


def clustered_coverage(runs, clustered):
    rng, hits = np.random.default_rng(2), 0
    for run in range(runs):
        patient = np.repeat(np.arange(40), 5)
        x = rng.normal(size=40)[patient] + rng.normal(0, 0.5, 200)
        interval = bootstrap_interval(
            lambda i, x=x: x[i].mean(), 200, resamples=120, seed=run, clusters_N=patient if clustered else None
        )
        hits += interval.low <= 0 <= interval.high
    return hits / runs


def test_cluster_bootstrap_covers_where_the_bootstrap_of_rows_does_not():
    assert clustered_coverage(100, True) > 0.88
    assert clustered_coverage(100, False) < 0.75


def skewed_coverage(runs, method):
    rng, hits = np.random.default_rng(3), []
    for run in range(runs):
        x = rng.exponential(size=25)
        interval = bootstrap_interval(lambda i, x=x: x[i].var(), 25, resamples=1000, seed=run, method=method, level=0.9)
        hits.append(interval.low <= 1 <= interval.high)
    return np.mean(hits)


def test_bca_equals_scipys():
    from scipy.stats import bootstrap

    x = np.random.default_rng(0).exponential(size=60)
    ours = bootstrap_interval(lambda i: x[i].std(), 60, resamples=6000, method="bca")
    theirs = bootstrap((x,), np.std, n_resamples=6000, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.03)
    plain = bootstrap_interval(lambda i: x[i].std(), 60, resamples=6000)
    assert ours.high > plain.high + 0.03


@pytest.mark.long
def test_bca_covers_more_often_than_percentile_for_a_skewed_metric():
    assert skewed_coverage(800, "bca") > skewed_coverage(800, "percentile") + 0.02


def test_bca_of_a_metric_that_is_undefined_or_constant():
    assert np.isnan(bootstrap_interval(lambda i: float("nan"), 6, resamples=20, method="bca").low)
    constant = bootstrap_interval(lambda i: 2.0, 6, resamples=20, method="bca")
    assert (constant.low, constant.high) == (2, 2)


@pytest.mark.long
def test_bootstrap_interval_of_auroc_covers_the_truth():
    rng, truth, found = np.random.default_rng(4), norm.cdf(1 / 2**0.5), []
    for run in range(400):
        score, _, positive = scores_of_two_models(rng, 100)

        def auroc(index, score=score, positive=positive):
            return auroc_interval(score[index], positive[index]).value

        found.append(bootstrap_interval(auroc, 100, resamples=200, seed=run, strata_N=positive))
    assert 0.92 <= coverage(found, truth) <= 0.98


def test_paired_difference_agrees_with_delong():
    first, second, positive = scores_of_two_models(np.random.default_rng(5), 150)
    metrics = [lambda i, s=s: auroc_interval(s[i], positive[i]).value for s in (first, second)]
    found = paired_difference(*metrics, 150, resamples=1000)
    expected = delong_test(first, second, positive)
    assert found.value == pytest.approx(expected.value)
    assert found.interval.low == pytest.approx(expected.interval.low, abs=0.015)
    assert found.interval.high == pytest.approx(expected.interval.high, abs=0.015)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)


def test_paired_difference_of_a_model_and_itself_is_zero():
    x = np.random.default_rng(0).normal(size=30)
    same = paired_difference(lambda i: x[i].mean(), lambda i: x[i].mean(), 30, resamples=50)
    assert (same.value, same.p_value) == (0, 1)
    undefined = paired_difference(lambda i: float("nan"), lambda i: 0.0, 30, resamples=50)
    assert np.isnan([undefined.value, undefined.p_value, undefined.interval.low]).all()


def test_paired_difference_rejects_equal_models_as_often_as_promised():
    rng, rejected = np.random.default_rng(6), 0
    for run in range(200):
        hard = rng.normal(size=60)
        first, second = hard + rng.normal(size=60), hard + rng.normal(size=60)
        found = paired_difference(
            lambda i, x=first: x[i].mean(), lambda i, x=second: x[i].mean(), 60, resamples=200, seed=run
        )
        rejected += found.p_value < 0.05
    assert 0.01 <= rejected / 200 <= 0.09
