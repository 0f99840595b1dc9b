"""Calibration of yes-no questions: by hand, against statsmodels, and on predictors whose calibration is known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from clsgen_dist.evaluation.calibration_error import (
    binned_ece,
    brier_decomposition,
    calibration_p_value,
    debiased_squared_error,
    ece,
    ece_interval,
)
from clsgen_dist.evaluation.logistic_recalibration import logistic_recalibration
from clsgen_dist.evaluation.metrics import as_binary
from clsgen_dist.evaluation.questions import class_questions, mean_over_questions, pooled_question
from clsgen_dist.evaluation.reliability import bin_rows, reliability_diagram
from clsgen_dist.evaluation.smooth_ece import smooth_ece


def predictor(n, seed, slope=1.0, in_the_large=0.0):
    """Probabilities, outcomes, and the true probabilities, whose logit is in_the_large + slope times that of ours."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.9, 1.4, n)
    true = expit(in_the_large + slope * logit(p))
    return p, rng.random(n) < true, true


TRUTHS = {"calibrated": {}, "over-confident": {"slope": 0.5}, "label-shifted": {"in_the_large": 0.6}}


@pytest.mark.parametrize("binning, strategy", [("width", "uniform"), ("mass", "quantile")])
def test_bins_equal_scikit_learns(binning, strategy):
    p, outcome, _ = predictor(600, 0)
    frequency, mean = calibration_curve(outcome, p, n_bins=12, strategy=strategy)
    bins = bin_rows(p, outcome, bins=12, binning=binning)
    filled = bins.count_B > 0
    assert bins.mean_B[filled] == pytest.approx(mean) and bins.frequency_B[filled] == pytest.approx(frequency)


def test_bins_of_equal_mass_do_not_split_ties():
    p = np.array([0.2] * 30 + [0.7] * 10)
    bins = bin_rows(p, p > 0.5, bins=4, binning="mass")
    assert bins.count_B.tolist() == [30, 10] and len(bins.edges) == 3
    assert bin_rows(np.ones(5), np.ones(5), binning="mass").count_B.tolist() == [5]


def test_binned_ece_of_equal_width_is_that_of_the_label_space():
    p, outcome, _ = predictor(300, 1)
    assert binned_ece(p, outcome) == pytest.approx(ece(np.stack([1 - p, p], axis=1), outcome.astype(int)), abs=1e-12)


def test_debiased_error_by_hand():
    # One bin: mean 0.5, frequency 3/4: 1/16 - 3/16/3.
    found = debiased_squared_error(np.array([0.5] * 4), np.array([1, 1, 1, 0]), bins=1)
    assert found == pytest.approx(1 / 16 - 3 / 16 / 3)
    assert np.isnan(debiased_squared_error(np.array([0.5]), np.array([1])))


def test_debiased_error_is_right_on_average_where_the_plain_one_is_not():
    p, _, true = predictor(150, 2, slope=0.6)
    bins = bin_rows(p, true, binning="mass")
    squared = lambda frequency_B: (bins.count_B @ (bins.mean_B - frequency_B) ** 2) / 150  # noqa: E731
    rng, debiased, plain = np.random.default_rng(3), [], []
    for _ in range(1000):
        outcome = rng.random(150) < true
        debiased.append(debiased_squared_error(p, outcome))
        plain.append(squared(bin_rows(p, outcome, binning="mass").frequency_B))
    error = np.std(debiased) / 1000**0.5
    truth = squared(bins.frequency_B)
    # The bin's variance is taken as if its rows had one probability, which overstates it a little.
    assert abs(np.mean(debiased) - truth) < 3 * error + 0.05 * truth
    assert np.mean(plain) > truth + 30 * error


def reflected_smooth_ece(p, outcome):
    """The definition: images of the Gaussian beyond 0 and 1, quadrature, bisection."""
    t = (np.arange(1000) + 0.5) / 1000
    images = [(p[:, None] + 2 * k, -p[:, None] + 2 * k) for k in range(-3, 4)]

    def at(width):
        kernel = (
            sum(np.exp(-(((t - x) / width) ** 2) / 2) for pair in images for x in pair) / width / (2 * np.pi) ** 0.5
        )
        return np.abs(((outcome - p)[:, None] * kernel).mean(axis=0)).mean()

    low, high = 0.001, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > middle else (low, middle)
    return high


@pytest.mark.parametrize("truth", TRUTHS)
def test_smooth_ece_equals_its_definition(truth):
    p, outcome, _ = predictor(60, 4, **TRUTHS[truth])
    assert smooth_ece(p, outcome) == pytest.approx(reflected_smooth_ece(p, outcome), abs=2e-5)


def test_smooth_ece_agrees_with_the_authors_package():
    # relplot 1.0.3, smECE of these rows: 0.2194.
    p = np.linspace(0.02, 0.98, 25)
    assert smooth_ece(p, p > 0.3) == pytest.approx(0.2194, abs=0.001)


def test_smooth_ece_edge_cases():
    assert np.isnan(smooth_ece(np.empty(0), np.empty(0)))
    assert smooth_ece(np.array([0.0, 1.0]), np.array([0, 1])) == pytest.approx(0, abs=1e-9)
    assert smooth_ece(np.array([1.0, 1.0]), np.array([0, 0])) == pytest.approx(1, abs=1e-6)


def ece_coverage(runs, n, truth, binning="mass"):
    """Shares of intervals that lie above, and below, what many rows in the same bins would show."""
    above = below = 0
    for run in range(runs):
        p, outcome, true = predictor(n, run, **TRUTHS[truth])
        expected = binned_ece(p, true, binning=binning)
        found = ece_interval(p, outcome, binning=binning, resamples=200, seed=run)
        above, below = above + (expected < found.low - 1e-9), below + (expected > found.high + 1e-9)
    return above / runs, below / runs


@pytest.mark.parametrize("truth", TRUTHS)
def test_ece_interval_contains_the_truth(truth):
    above, below = ece_coverage(50, 300, truth)
    assert above + below <= 0.15


@pytest.mark.long
@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("n", [60, 300, 2000])
def test_ece_interval_contains_the_truth_on_few_and_many_rows(n, truth, binning):
    above, below = ece_coverage(300, n, truth, binning)
    assert above + below <= 0.1


def test_ece_interval_edge_cases():
    assert np.isnan(ece_interval(np.empty(0), np.empty(0)).low)
    exact = ece_interval(np.array([0.0, 1.0] * 10), np.array([0, 1] * 10))
    assert exact.low == 0 and 0.05 < exact.high < 0.4
    wrong = ece_interval(np.ones(20), np.zeros(20))
    assert wrong.low > 0.7 and wrong.high == 1


def test_calibrated_rows_are_rejected_as_often_as_promised_and_over_confident_ones_nearly_always():
    def rejected(truth, n, runs):
        rows = [predictor(n, run, **TRUTHS[truth])[:2] for run in range(runs)]
        return np.mean([calibration_p_value(*of_run, resamples=100) < 0.1 for of_run in rows])

    assert 0.05 <= rejected("calibrated", 300, 150) <= 0.17
    assert rejected("over-confident", 600, 40) > 0.9 and rejected("label-shifted", 600, 40) > 0.9


def test_consistency_bands_contain_calibrated_frequencies_and_not_over_confident_ones():
    inside = {truth: [] for truth in TRUTHS}
    for truth, runs in inside.items():
        for run in range(30):
            p, outcome, _ = predictor(1000, run, **TRUTHS[truth])
            diagram = reliability_diagram(p, outcome, bins=10, resamples=200, seed=run)
            frequency = diagram.bins.frequency_B
            runs.extend((diagram.low_B - 1e-12 <= frequency) & (frequency <= diagram.high_B + 1e-12))
    assert 0.93 <= np.mean(inside["calibrated"]) <= 0.99
    assert np.mean(inside["over-confident"]) < 0.6


def test_empty_bins_have_no_band():
    diagram = reliability_diagram(np.array([0.91, 0.95]), np.array([1, 0]), bins=10, resamples=20)
    assert np.isnan(diagram.low_B[:9]).all() and diagram.low_B[9] <= 0.5 <= diagram.high_B[9]
    nothing = reliability_diagram(np.empty(0), np.empty(0), bins=3, resamples=2)
    assert np.isnan(nothing.high_B).all() and nothing.bins.count_B.tolist() == [0, 0, 0]


def test_brier_decomposition_by_hand_and_sum():
    # Bins at 0.25 (frequency 0) and 0.75 (frequency 1), base rate 1/2.
    found = brier_decomposition(np.array([0.25, 0.25, 0.75, 0.75]), np.array([0, 0, 1, 1]), bins=2)
    assert (found.reliability, found.resolution, found.uncertainty) == (1 / 16, 1 / 4, 1 / 4)
    assert found.remainder == pytest.approx(0)
    p, outcome, _ = predictor(500, 5)
    parts = brier_decomposition(p, outcome)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.remainder
    assert total == pytest.approx(brier_score_loss(outcome, p)) and parts.remainder != 0


@pytest.mark.parametrize("truth", TRUTHS)
def test_slope_and_intercept_equal_statsmodels(truth):
    p, outcome, _ = predictor(250, 6, **TRUTHS[truth])
    found = logistic_recalibration(p, outcome)
    theirs = sm.GLM(outcome.astype(float), sm.add_constant(logit(p)), family=sm.families.Binomial()).fit(tol=1e-12)
    for ours, index in ((found.intercept, 0), (found.slope, 1)):
        assert ours.value == pytest.approx(theirs.params[index], abs=1e-7)
        assert ours.standard_error == pytest.approx(theirs.bse[index], rel=1e-6)
        assert (ours.interval.low, ours.interval.high) == pytest.approx(tuple(theirs.conf_int()[index]), abs=1e-5)
    offset = sm.GLM(outcome.astype(float), np.ones(250), family=sm.families.Binomial(), offset=logit(p)).fit(tol=1e-12)
    assert found.in_the_large.value == pytest.approx(offset.params[0], abs=1e-7)
    assert found.in_the_large.standard_error == pytest.approx(offset.bse[0], rel=1e-6)


def test_clustered_standard_errors_equal_statsmodels():
    p, outcome, _ = predictor(240, 7)
    clusters = np.repeat(np.arange(60), 4)
    found = logistic_recalibration(p, outcome, clusters_N=clusters)
    theirs = sm.GLM(outcome.astype(float), sm.add_constant(logit(p)), family=sm.families.Binomial()).fit(
        tol=1e-12, cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    expected = theirs.bse * (60 / 59) ** 0.5
    assert [found.intercept.standard_error, found.slope.standard_error] == pytest.approx(list(expected), rel=1e-5)


@pytest.mark.parametrize("truth", TRUTHS)
def test_slope_and_calibration_in_the_large_contain_the_truth(truth):
    slope, intercept = TRUTHS[truth].get("slope", 1.0), TRUTHS[truth].get("in_the_large", 0.0)
    hits = []
    for run in range(200):
        found = logistic_recalibration(*predictor(200, run, **TRUTHS[truth])[:2])
        pairs = [(found.slope, slope), (found.intercept, intercept)]
        hits.append([c.interval.low <= value <= c.interval.high for c, value in pairs])
    assert (np.abs(np.mean(hits, axis=0) - 0.95) < 0.05).all()


def test_recalibration_that_has_no_finite_fit_is_nan():
    p = np.array([0.1, 0.2, 0.7, 0.9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        separable = logistic_recalibration(p, np.array([0, 0, 1, 1]))
        one_class = logistic_recalibration(p, np.ones(4))
        constant = logistic_recalibration(np.full(4, 0.3), np.array([0, 1, 1, 0]))
        extreme = logistic_recalibration(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 1, 1, 0]))
    assert np.isnan([separable.slope.value, one_class.in_the_large.value, constant.slope.value]).all()
    assert np.isfinite(separable.in_the_large.value)
    assert constant.in_the_large.value == pytest.approx(-logit(0.3))
    assert extreme.slope.value == pytest.approx(0, abs=1e-6)


def test_pooled_question_of_each_label_space():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    top = pooled_question(p, np.array([0, 1]), "single")
    assert top.probability_M.tolist() == [0.7, 0.6] and top.outcome_M.tolist() == [True, False]
    binary = pooled_question(p[:, :2], np.array([0, 1]), "single", positive=0)
    assert binary.probability_M.tolist() == [0.7, 0.1] and binary.outcome_M.tolist() == [True, False]
    cuts = pooled_question(p, np.array([0, 1]), "ordinal")
    assert cuts.probability_M == pytest.approx([0.3, 0.9, 0.1, 0.6])
    assert cuts.outcome_M.tolist() == [False, True, False, False] and cuts.row_M.tolist() == [0, 1, 0, 1]
    labels = np.array([[1, np.nan, 0], [0, 1, np.nan]])
    answers = pooled_question(p, labels, "multilabel")
    assert sorted(answers.probability_M) == sorted(as_binary(p, labels)[0][:, 1])
    assert answers.row_M.tolist() == [0, 1, 1, 0]


def test_classwise_ece_sees_what_the_top_label_hides():
    # The top class is right as often as said; the other two are swapped.
    rng = np.random.default_rng(8)
    said = np.tile([0.6, 0.3, 0.1], (30_000, 1))
    labels = rng.choice(3, 30_000, p=[0.6, 0.1, 0.3])
    top = pooled_question(said, labels, "single")
    assert binned_ece(top.probability_M, top.outcome_M) < 0.01
    assert mean_over_questions(binned_ece, class_questions(said, labels, "single")) == pytest.approx(0.4 / 3, abs=0.01)


@pytest.mark.parametrize("kind", ["single", "ordinal"])
def test_a_calibrated_model_of_several_classes_is_calibrated_in_every_question(kind):
    rng = np.random.default_rng(9)
    p = softmax(1.5 * rng.normal(size=(20_000, 4)), axis=1)
    labels = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1).clip(0, 3)
    for question in [pooled_question(p, labels, kind), *class_questions(p, labels, kind)]:
        assert smooth_ece(question.probability_M, question.outcome_M) < 0.012
        found = logistic_recalibration(question.probability_M, question.outcome_M, clusters_N=question.row_M)
        assert abs(found.slope.value - 1) < 4 * found.slope.standard_error
