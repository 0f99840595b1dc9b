"""Intervals of rows in clusters: equal to the definitions and to other implementations, and not narrowed by copies."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import norm, t

from clsgen_dist.calibration.choice import choose, folds
from clsgen_dist.calibration.decisions import DecisionRules
from clsgen_dist.calibration.fit_reading import fit_reading
from clsgen_dist.evaluation.bootstrap import bootstrap_interval, paired_difference, resampled_interval
from clsgen_dist.evaluation.calibration_error import calibration_p_value, ece_interval
from clsgen_dist.evaluation.delong import RankedQuestion, auroc_interval, delong_test, mean_auroc_interval
from clsgen_dist.evaluation.interval import effective_rows, mean_interval, share_interval, wilson_interval
from clsgen_dist.evaluation.metric_estimates import metric_estimates
from clsgen_dist.evaluation.ranking import roc_auc
from clsgen_dist.evaluation.reliability import reliability_diagram
from clsgen_dist.evaluation.selective import threshold_for_risk
from clsgen_dist.evaluation.subgroups import subgroups
from clsgen_dist.inference.compare import compared_metrics
from clsgen_dist.model.label_space import LabelSpace
from tests.calibration.synthetic import distorted_rows

CLUSTERS = np.repeat(np.arange(30), [1, 2, 3, 4, 5] * 6)


def patients(seed=0, clusters=CLUSTERS):
    """Scores, outcomes and probabilities of rows that share a patient's risk."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=clusters.max() + 1)[clusters]
    yes = rng.random(len(clusters)) < expit(risk)
    return risk + rng.normal(size=len(clusters)), yes, expit(risk + 0.5 * rng.normal(size=len(clusters)))


def ends(interval):
    return interval.low, interval.high


def test_means_and_shares_have_the_cluster_robust_variance_of_statsmodels():
    score, yes, _ = patients()
    for values in (score, yes.astype(float)):
        robust = {"cov_type": "cluster", "cov_kwds": {"groups": CLUSTERS, "use_correction": False}}
        error = sm.OLS(values, np.ones(len(values))).fit(**robust).bse[0] * (30 / 29) ** 0.5
        half = t.ppf(0.975, 29) * error
        assert ends(mean_interval(values, clusters_N=CLUSTERS)) == pytest.approx(
            (values.mean() - half, values.mean() + half)
        )
    rows = yes.mean() * (1 - yes.mean()) / error**2 * (t.ppf(0.975, 89) / t.ppf(0.975, 29)) ** 2
    assert effective_rows(yes, clusters_N=CLUSTERS) == pytest.approx(rows) and rows < 75
    assert ends(share_interval(yes, clusters_N=CLUSTERS)) == pytest.approx(
        ends(wilson_interval(yes.mean() * rows, rows))
    )


def test_shares_of_alike_rows_and_weighted_rows_count_as_kish_says():
    assert effective_rows(np.ones(90), clusters_N=CLUSTERS) == pytest.approx(90**2 / (6 * 55))
    assert effective_rows(np.zeros(3), weight_N=np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    weight = np.where(np.arange(400) % 2, 3.0, 1.0)
    yes = np.random.default_rng(0).random(400) < 0.3
    assert effective_rows(yes, weight_N=weight) == pytest.approx(320, rel=0.12)
    assert np.isnan(share_interval(np.ones(4), clusters_N=np.zeros(4)).low)


def obuchowski(first, second, yes, clusters):
    """Covariance of two AUROCs as in Obuchowski 1997, by loops over clusters."""

    def sums(score):
        pairs = (score[yes][:, None] > score[~yes]) + 0.5 * (score[yes][:, None] == score[~yes])
        of_yes, of_no, area = pairs.mean(axis=1), pairs.mean(axis=0), pairs.mean()
        return [
            ((of_yes[clusters[yes] == k] - area).sum(), (of_no[clusters[~yes] == k] - area).sum())
            for k in np.unique(clusters)
        ]

    (a, b), (c, d) = np.array(sums(first)).T, np.array(sums(second)).T
    positives, negatives, k = yes.sum(), (~yes).sum(), len(np.unique(clusters))
    of_yes, of_no = len(np.unique(clusters[yes])), len(np.unique(clusters[~yes]))
    cross = k / (k - 1) * (a @ d + b @ c) / (positives * negatives)
    return of_yes / (of_yes - 1) * a @ c / positives**2 + of_no / (of_no - 1) * b @ d / negatives**2 + cross


def test_clustered_auroc_and_its_test_are_those_of_obuchowski():
    score, yes, other = patients(1)
    score, other = score.round(1), other.round(1)
    found = auroc_interval(score, yes, clusters_N=CLUSTERS)
    assert found.standard_error**2 == pytest.approx(obuchowski(score, score, yes, CLUSTERS), rel=1e-10)
    value, half = found.value, t.ppf(0.975, 29) * found.standard_error / (found.value * (1 - found.value))
    expected = expit(np.log(value / (1 - value)) + np.array([-half, half]))
    assert ends(found.interval) == pytest.approx(tuple(expected))
    parts = [obuchowski(*pair, yes, CLUSTERS) for pair in ((score, score), (other, other), (score, other))]
    difference = delong_test(score, other, yes, clusters_N=CLUSTERS)
    expected = 2 * t.sf(abs(difference.value) / (parts[0] + parts[1] - 2 * parts[2]) ** 0.5, 29)
    assert difference.p_value == pytest.approx(expected, rel=1e-8)
    single = np.arange(len(yes))
    assert auroc_interval(score, yes, clusters_N=single) == auroc_interval(score, yes)
    assert delong_test(score, other, yes, clusters_N=single) == delong_test(score, other, yes)


def test_all_right_in_few_clusters_is_bounded_by_disjoint_pairs():
    yes = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    found = auroc_interval(yes.astype(float), yes, clusters_N=np.array([0, 0, 1, 1, 0, 2, 3, 3]))
    assert ends(found.interval) == pytest.approx((0.025 ** (1 / 2), 1.0))


def test_the_mean_auroc_of_several_questions_has_the_variance_of_the_jackknife():
    rng = np.random.default_rng(2)
    labels, rows = rng.integers(0, 3, 300), np.arange(300)
    p = rng.dirichlet(np.ones(3), 300) + 0.3 * np.eye(3)[labels]

    def of(index):
        return np.mean([roc_auc(labels[index] == c, p[index, c]) for c in range(3)])

    questions = [RankedQuestion(p[:, c], labels == c, rows) for c in range(3)]
    found, left_out = mean_auroc_interval(questions), [of(np.delete(rows, row)) for row in rows]
    assert found.value == pytest.approx(of(rows))
    assert found.standard_error == pytest.approx((299 / 300 * np.var(left_out) * 300) ** 0.5, rel=0.02)
    assert np.isnan(mean_auroc_interval(questions[:1][:0]).value)


def copies(*arrays, times=5):
    return *(np.repeat(array, times) for array in arrays), np.repeat(np.arange(len(arrays[0])), times)


def test_copies_of_rows_in_one_cluster_do_not_narrow_an_interval():
    """Five copies of each of 200 rows say what the rows say; taken as independent, they say too much."""
    rng = np.random.default_rng(3)
    p = rng.beta(1, 1.5, 200)
    yes = rng.random(200) < p
    p5, yes5, cluster = copies(p, yes)

    def width(found):
        return found.high - found.low

    measures = {
        "share": lambda p, yes, **given: share_interval(yes, **given),
        "mean": lambda p, yes, **given: mean_interval(p, **given),
        "auroc": lambda p, yes, **given: auroc_interval(p, yes, **given).interval,
        "ece": lambda p, yes, **given: ece_interval(p, yes, **given),
    }
    for name, measure in measures.items():
        single, clustered, plain = measure(p, yes), measure(p5, yes5, clusters_N=cluster), measure(p5, yes5)
        assert width(clustered) == pytest.approx(width(single), rel=0.12), name
        assert width(plain) < 0.7 * width(single), name
    assert calibration_p_value(p5, yes5, clusters_N=cluster) == pytest.approx(calibration_p_value(p, yes), abs=0.1)
    bands = [
        reliability_diagram(*rows, clusters_N=ids, bins=5)
        for *rows, ids in ((p, yes, None), (p5, yes5, cluster), (p5, yes5, None))
    ]
    single, clustered, plain = (np.mean(band.high_B - band.low_B) for band in bands)
    assert clustered == pytest.approx(single, rel=0.15) and plain < 0.6 * single


def test_every_estimate_of_copies_is_as_wide_as_of_the_rows():
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(3), 150)
    labels = (p.cumsum(axis=1) < rng.random((150, 1))).sum(axis=1)
    for kind in ("single", "ordinal"):
        single = metric_estimates(p, labels, kind, resamples=400)
        five = np.repeat(p, 5, axis=0), np.repeat(labels, 5)
        clustered = metric_estimates(*five, kind, clusters_N=np.repeat(np.arange(150), 5), resamples=400)
        for name, estimate in single.items():
            width = estimate.interval.high - estimate.interval.low
            if not np.isnan(width) and name not in ("ece", "ece_mass"):
                found = clustered[name].interval
                assert found.high - found.low == pytest.approx(width, rel=0.2), name


def test_groups_of_clusters_have_intervals_of_clusters_and_need_five_of_either_class():
    clusters = np.repeat(np.arange(60), 5)
    _, yes, p = patients(5, clusters)
    group = np.where(clusters % 2, "a", "b")
    a = subgroups(p, yes, group, clusters_N=clusters).measured[0]
    own = group == "a"
    assert a.auroc.interval == auroc_interval(p[own], yes[own], clusters_N=clusters[own]).interval
    assert a.recall.interval == share_interval(p[own & yes] >= 0.5, clusters_N=clusters[own & yes])
    assert a.calibration_in_the_large.interval == mean_interval((p - yes)[own], clusters_N=clusters[own])
    few = np.where(clusters < 8, "few", "many")
    yes[clusters < 8] = clusters[clusters < 8] < 4
    assert [g.name for g in subgroups(p, yes, few, clusters_N=clusters).too_small] == ["few"]
    assert not subgroups(p, yes, few).too_small


def test_comparisons_of_models_take_clusters_and_give_the_ece_no_interval():
    clusters = np.repeat(np.arange(40), 5)
    score, yes, p = patients(6, clusters)
    first, second = (np.stack([1 - q, q], axis=1) for q in (p, expit(score)))
    space = LabelSpace(("no", "yes"), "yes")
    _, found = compared_metrics(first, second, yes.astype(int), space, (None, None), clusters_N=clusters)
    assert found["auroc"] == delong_test(p, expit(score), yes, clusters_N=clusters)
    assert found["accuracy"].value == pytest.approx(((p >= 0.5) == yes).mean() - ((score >= 0) == yes).mean())
    assert found["brier"].interval.low < found["brier"].value < found["brier"].interval.high
    assert found["ece"].value != 0 and np.isnan([found["ece"].interval.low, found["ece"].p_value]).all()


def test_percentiles_are_expanded_for_few_rows_and_undefined_below_six():
    values = np.random.default_rng(7).normal(size=100_000)
    found = resampled_interval(values, 8)
    assert found.high == pytest.approx((8 / 7) ** 0.5 * t.ppf(0.975, 7), rel=0.03)
    assert resampled_interval(values, 10**6).high == pytest.approx(norm.ppf(0.975), rel=0.02)
    x = np.arange(6.0)
    assert np.isnan(bootstrap_interval(lambda i: x[i].mean(), 5).low)
    assert bootstrap_interval(lambda i: x[i].mean(), 6).low < 1.5
    assert np.isnan(bootstrap_interval(lambda i: x[i].mean(), 6, clusters_N=x // 2).low), "three clusters"
    few = paired_difference(lambda i: x[i].mean(), lambda i: 0.0, 5, resamples=20)
    assert few.value == 2 and np.isnan([few.interval.low, few.p_value]).all()


def test_a_p_value_and_its_interval_say_the_same():
    for seed in range(40):
        x = np.random.default_rng(seed).normal(0.8, 1, 9)
        found = paired_difference(lambda i, x=x: x[i].mean(), lambda i: 0.0, 9, resamples=400)
        if abs(found.p_value - 0.05) > 0.01:
            assert (found.p_value < 0.05) == (found.interval.low > 0)
    twice = paired_difference(lambda i: x[i % 9].mean(), lambda i: 0.0, 900, resamples=400)
    assert twice.p_value == pytest.approx(2 / 401, rel=0.05), "of many rows, the plain share"


def test_bca_holds_an_estimate_that_lies_beyond_all_resamples():
    x = np.arange(20.0)
    found = bootstrap_interval(lambda i: len(np.unique(i)) / 20, 20, method="bca", resamples=100)
    assert found.high == 1.0 and found.low < 0.8
    assert bootstrap_interval(lambda i: x[i].max(), 20, method="bca", resamples=100).high == 19


def test_a_calibration_keeps_clusters_in_one_fold_and_widens_what_it_says_of_new_rows():
    logits, labels, kind = distorted_rows("binary", 300)
    clusters = np.random.default_rng(8).integers(0, 60, 300)
    fold = folds(labels, kind, clusters)
    assert all(len(np.unique(fold[clusters == k])) == 1 for k in range(60)) and len(np.unique(fold)) == 10
    five = np.repeat(logits, 5, axis=0), np.repeat(labels, 5)
    ids = np.repeat(np.arange(300), 5)
    plain, clustered, copied = choose(logits, labels), choose(*five, clusters_N=ids), choose(*five)
    errors = [found[1].measured[0].nll_error for found in (plain, clustered, copied)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01) and errors[2] == pytest.approx(errors[0] / 5**0.5, rel=0.01)
    rules = DecisionRules.parse(threshold="recall=0.9", hand_over="risk=0.2")
    space = LabelSpace(("no", "yes"), "yes")
    of_rows, of_clusters = (
        fit_reading(*five, space, "affine", rules, clusters_N=given).decisions for given in (None, ids)
    )
    for get in (
        lambda d: d.hand_over.intervals["risk"],
        lambda d: (d.thresholds.fitted[0].low, d.thresholds.fitted[0].high),
    ):
        assert np.diff(get(of_clusters)) > 1.4 * np.diff(get(of_rows))


def test_the_risk_of_a_chosen_threshold_is_that_of_new_rows_not_of_those_it_was_chosen_on():
    """On rows without any signal the risk is 0.3 at every threshold, and the one with 0.2 was lucky."""
    covered = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        confidence, wrong = rng.random(150), rng.random(150) < 0.3
        found = threshold_for_risk(confidence, wrong, 0.2, resamples=100)
        if not np.isnan(found.threshold):
            assert found.risk <= 0.2 and found.intervals["risk"].low <= found.risk
            covered.append(found.intervals["risk"].high > 0.3)
    assert len(covered) > 10 and np.mean(covered) > 0.85
