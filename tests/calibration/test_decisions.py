"""Thresholds, prevalence, sets and handing over on synthetic rows with known truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit

from clsgen_dist.calibration.conformal import covered
from clsgen_dist.calibration.decisions import DecisionRules, Decisions, has_thresholds
from clsgen_dist.calibration.fit_reading import fit_reading
from clsgen_dist.calibration.handing_over import HandOverRule, confidence, wrong
from clsgen_dist.calibration.methods import from_json
from clsgen_dist.calibration.prevalence import stated_prevalence, stated_shares
from clsgen_dist.calibration.thresholds import ThresholdRule
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.calibration_error import nll
from clsgen_dist.evaluation.classification import best_f1_threshold, f1_at
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.evaluation.operating_points import point_at, precision_at_recall, recall_at_precision
from clsgen_dist.evaluation.selective import threshold_for_risk, threshold_for_workload
from clsgen_dist.model.label_space import LabelSpace
from tests.calibration.synthetic import SPACES, distorted_rows

BINARY = LabelSpace(("no", "yes"), "yes")
NAMES = {2: ("no", "yes"), 3: ("a", "b", "c"), 4: ("low", "some", "more", "high")}


def _space(name):
    kind, classes = SPACES[name]
    return LabelSpace(NAMES[classes], NAMES[classes][-1], kind)


def _shifted_rows(rows, share, seed):
    """Rows of N(2 y, 1) with a share of yes, seen through logits that suit a share of one half, but twice too steep."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < share).astype(int)
    log_odds = 2 * rng.normal(2.0 * labels, 1.0) - 2
    return np.stack([np.zeros(rows), 2 * log_odds], axis=1), labels, log_odds


# Words and numbers of the command line.


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("best", "expected f1, recall=0.95"),
        ("f1=1", "expected f1"),
        ("recall", "expected f1"),
        ("recall=95", "write 95 % as recall=0.95"),
        ("precision=0", "above 0, up to 1"),
        ("precision=high", "above 0, up to 1"),
        ("cost=3", "two costs above 0"),
        ("cost=1:0", "two costs above 0"),
        ("cost=1:inf", "two costs above 0"),
    ],
)
def test_a_threshold_that_cannot_be_read_is_an_error(word, message):
    with pytest.raises(SettingsError, match=message):
        ThresholdRule.parse(word)


@pytest.mark.parametrize("word", ["risk", "risk=5", "workload=0", "effort=0.1", "risk=few"])
def test_handing_over_that_cannot_be_read_is_an_error(word):
    with pytest.raises(SettingsError, match="expected risk=R or workload=W"):
        HandOverRule.parse(word)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("0.02", "expected CLASS=SHARE"),
        ("a=0.2,,b=0.1", "none of the classes"),
        ("z=0.02", "'z' is none of the classes 'a', 'b', 'c'"),
        ("a=0.1,a=0.2", "'a' is named twice"),
        ("a=2", "'2', expected a share above 0 and below 1; write 2 % as 0.02"),
        ("a=nan", "expected a share above 0"),
        ("a=", "expected a share above 0"),
        ("a=0.7,b=0.4", r"sum to 1\.1, expected less than 1"),
        ("a=0.5,b=0.3,c=0.3", r"sum to 1\.1, expected 1; fix"),
    ],
)
def test_a_prevalence_that_cannot_be_is_an_error(word, message):
    with pytest.raises(SettingsError, match=message):
        stated_shares(word, ("a", "b", "c"), "single")


def test_names_of_classes_may_hold_what_separates_them():
    assert stated_shares("a,b=c=0.2,d=0.1", ("a,b=c", "d", "e"), "single") == {"a,b=c": 0.2, "d": 0.1}
    assert stated_shares("a=0.7,b=0.6", ("a", "b"), "multilabel") == {"a": 0.7, "b": 0.6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coverage": 1.0}, "above 0 and below 1"),
        ({"class_conditional": True}, "there is no --coverage"),
        ({"coverage": 0.9, "class_conditional": False, "other_prevalence": True}, "stay valid"),
    ],
)
def test_rules_that_contradict_each_other_are_an_error(options, message):
    with pytest.raises(SettingsError, match=message):
        DecisionRules.parse(**options)


@pytest.mark.parametrize("name", ["three classes", "ordinal"])
def test_only_binary_and_multilabel_models_have_thresholds(name):
    with pytest.raises(SettingsError, match=r"have no threshold.* leave --threshold out"):
        DecisionRules.parse(threshold="recall=0.9").check(_space(name))
    DecisionRules.parse().check(_space(name))


# What is fitted.


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    p, weight = rng.random(60).round(2), rng.integers(1, 4, 60)
    yes = rng.random(60) < p
    again = np.repeat(np.arange(60), weight)
    assert best_f1_threshold(p, weight) == pytest.approx(best_f1_threshold(p[again]), abs=1e-12)
    for find in (precision_at_recall, recall_at_precision):
        weighted, repeated = find(p, yes, 0.8, weight), find(p[again], yes[again], 0.8)
        assert list(vars(weighted).values()) == pytest.approx(list(vars(repeated).values()), abs=1e-12)
        at = point_at(p, yes, weighted.threshold, weight)
        assert list(vars(at).values()) == pytest.approx(list(vars(repeated).values()), abs=1e-12)
    for select, target in ((threshold_for_risk, 0.2), (threshold_for_workload, 0.3)):
        weighted = select(p, ~yes, target, resamples=1, weight_N=weight)
        repeated = select(p[again], ~yes[again], target, resamples=1)
        found = [(each.threshold, each.coverage, each.risk) for each in (weighted, repeated)]
        assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_thresholds_achieve_what_is_asked_on_rows_that_the_fits_have_not_seen():
    logits, labels, _ = _shifted_rows(600, 0.3, 0)
    found = {}
    for word in ("f1", "recall=0.95", "precision=0.9", "cost=1:20"):
        [found[word]] = fit_reading(
            logits, labels, BINARY, "affine", DecisionRules.parse(threshold=word)
        ).decisions.thresholds.fitted  # fmt: skip
    assert found["recall=0.95"].recall >= 0.95 > found["precision=0.9"].recall
    assert found["precision=0.9"].precision >= 0.9 > found["recall=0.95"].precision
    assert found["cost=1:20"].threshold == pytest.approx(1 / 21) and found["cost=1:20"].low is None
    for word in ("f1", "recall=0.95", "precision=0.9"):
        assert found[word].low < found[word].threshold < found[word].high
    assert 0 < found["precision=0.9"].share < found["f1"].share < found["recall=0.95"].share < 1


def test_what_no_threshold_reaches_is_an_error_that_names_the_class():
    rng = np.random.default_rng(1)
    noise, labels = np.stack([np.zeros(100), rng.normal(0, 1, 100)], axis=1), rng.integers(0, 2, 100)
    by_score = np.argsort(-noise[:, 1])
    labels[by_score[:5]], labels[by_score[-5:]] = 0, 1
    with pytest.raises(DataError, match=r"precision of 0\.99 for class 'yes', the highest .* is 0\.\d+; lower"):
        fit_reading(noise, labels, BINARY, "none", DecisionRules.parse(threshold="precision=0.99"))
    with pytest.raises(DataError, match=r"no confidence keeps the risk at 0\.001"):
        fit_reading(noise, labels, BINARY, "none", DecisionRules.parse(hand_over="risk=0.001"))
    answers = np.stack([labels, np.zeros(100)], axis=1).astype(float)
    space = LabelSpace(("x", "y"), "y", "multilabel")
    with pytest.raises(DataError, match=r"no held-out row of class 'y', expected some to reach a recall of 0\.9"):
        fit_reading(noise, answers, space, "none", DecisionRules.parse(threshold="recall=0.9"))
    with pytest.raises(DataError, match="all alike in class 'y'"):
        fit_reading(noise, answers, space, "none", prevalence="y=0.1")
    with pytest.raises(DataError, match="100 rows for class x, expected 199"):
        fit_reading(noise, answers, space, "none", DecisionRules.parse(coverage=0.995))


@pytest.mark.parametrize("name", SPACES)
def test_everything_together_survives_json_and_has_words(name):
    logits, labels, kind = distorted_rows(name, 300)
    space = _space(name)
    word = "recall=0.9" if has_thresholds(space) else "f1"
    rules = DecisionRules.parse(threshold=word, coverage=0.8, hand_over="workload=0.3", other_prevalence=True)
    fitted = fit_reading(logits, labels, space, "affine", rules, prevalence=f"{space.names[0]}=0.2")
    stored = json.loads(json.dumps([fitted.decisions.to_json(), fitted.calibration.to_json()], allow_nan=False))
    assert Decisions.from_json(stored[0]) == fitted.decisions
    calibration = from_json(stored[1], kind)
    assert calibration == fitted.calibration
    text = fitted.decisions.text(space, calibration.prevalence)
    assert (
        "with probability 0.8" in text and "for a workload of 0.3" in text and "valid whatever the prevalence" in text
    )
    assert ("for a recall of 0.9 or more" in text) == has_thresholds(space)
    assert "0.200" in calibration.prevalence.text(space.names)
    p, cutoffs = calibration.probabilities(logits), fitted.decisions.sets.cutoffs
    for row, named in zip(p, fitted.decisions.sets.named(p, space), strict=True):
        yes = [name for name, p_c, cut in zip(space.names, row, cutoffs.cutoff_C, strict=True) if p_c >= cut]
        assert (named["may_apply"] if kind == "multilabel" else named) == yes


def test_confidence_is_that_of_the_decided_class_or_of_the_least_certain_answer():
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert confidence(p, np.array([1, 1]), "single").tolist() == [0.3, 0.6]
    decided = np.array([[True, True], [False, True]])
    assert confidence(p, decided, "multilabel").tolist() == [0.3, 0.6]
    assert wrong(decided, np.array([[np.nan, 1.0], [0.0, 0.0]]), "multilabel").tolist() == [False, True]


def test_several_multilabel_prevalences_leave_a_row_without_a_weight():
    logits, labels, _ = distorted_rows("multilabel", 300)
    rules = DecisionRules.parse(hand_over="workload=0.3")
    assert fit_reading(logits, labels, _space("multilabel"), "affine", rules, prevalence="a=0.2").decisions.hand_over
    with pytest.raises(SettingsError, match="prevalence of 2 multi-label classes, expected one"):
        fit_reading(logits, labels, _space("multilabel"), "affine", rules, prevalence="a=0.2,b=0.3")


# Another prevalence.


def test_corrected_probabilities_are_bayes_rule_by_hand():
    logits = np.array([[0.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    prevalence = stated_prevalence("yes=0.02", BINARY.names, np.array([0.5, 0.5]), "single")
    assert prevalence.deployed_C == pytest.approx((0.98, 0.02))
    odds = np.exp([0.0, 2.0, -1.0]) * (0.02 / 0.98)
    corrected = prevalence.corrected(BINARY.probabilities(logits), "single")
    np.testing.assert_allclose(corrected[:, 1], odds / (1 + odds), rtol=1e-12)
    rest = stated_prevalence("b=0.4", ("a", "b", "c"), np.array([0.6, 0.2, 0.2]), "single")
    assert rest.deployed_C == pytest.approx((0.45, 0.4, 0.15))
    alone = stated_prevalence("b=0.4", ("a", "b"), np.array([0.0, 0.2]), "multilabel")
    p = alone.corrected(np.array([[0.3, 0.5]]), "multilabel")
    assert p[0].tolist() == pytest.approx([0.3, (0.4 / 0.2) / (0.4 / 0.2 + 0.6 / 0.8)])
    assert alone.weights(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, np.nan]]), "multilabel")[:, 1].tolist() == (
        pytest.approx([2.0, 0.75, 1.0])
    )


def _fit_and_shift(prevalence, threshold, **options):
    """Fitted on as many yes as no; decisions on rows of which 5 % are yes."""
    logits, labels, _ = _shifted_rows(2000, 0.5, 2)
    rules = DecisionRules.parse(threshold=threshold, other_prevalence=prevalence is not None, **options)
    fitted = fit_reading(logits, labels, BINARY, "affine", rules, prevalence=prevalence)
    new_logits, new_labels, log_odds = _shifted_rows(60_000, 0.05, 3)
    p = fitted.calibration.probabilities(new_logits)
    return fitted.decisions, p, new_labels, expit(log_odds + np.log(0.05 / 0.95))


def test_under_another_prevalence_corrected_decisions_are_right_and_uncorrected_ones_are_not():
    right, p, labels, truth = _fit_and_shift("yes=0.05", "precision=0.6", coverage=0.9, hand_over="risk=0.02")
    wrong_, raw, _, _ = _fit_and_shift(None, "precision=0.6", hand_over="risk=0.02")
    best = nll(np.stack([1 - truth, truth], axis=1), labels)
    assert nll(p, labels) == pytest.approx(best, abs=0.002) and nll(raw, labels) > best + 0.1
    assert p[:, 1].mean() == pytest.approx(0.05, abs=0.005)
    threshold, uncorrected = right.thresholds.values[0], wrong_.thresholds.values[0]
    assert point_at(p[:, 1], labels, threshold).precision == pytest.approx(0.6, abs=0.06)
    assert point_at(raw[:, 1], labels, uncorrected).precision < 0.2
    decided = decide(p, "single", 1, [threshold])
    answered = confidence(p, decided, "single") >= right.hand_over.least_confidence
    assert answered.mean() == pytest.approx(right.hand_over.coverage, abs=0.03)
    assert (decided != labels)[answered].mean() == pytest.approx(0.02, abs=0.005)
    held = covered(right.sets.cutoffs, p, labels)
    assert [held[labels == c].mean() for c in (0, 1)] == pytest.approx([0.9, 0.9], abs=0.025)


def test_under_another_prevalence_the_f1_threshold_is_nearly_the_best_and_recall_stays():
    right, p, labels, _ = _fit_and_shift("yes=0.05", "f1")
    wrong_, raw, _, _ = _fit_and_shift(None, "f1")
    best = max(f1_at(p[:, 1], labels == 1, t) for t in np.linspace(0.05, 0.95, 91))
    assert f1_at(p[:, 1], labels == 1, right.thresholds.values[0]) == pytest.approx(best, abs=0.01)
    assert f1_at(raw[:, 1], labels == 1, wrong_.thresholds.values[0]) < best - 0.1
    for prevalence in ("yes=0.05", None):
        found, p, labels, _ = _fit_and_shift(prevalence, "recall=0.9")
        assert point_at(p[:, 1], labels, found.thresholds.values[0]).recall == pytest.approx(0.9, abs=0.02)


def test_the_prevalence_is_estimated_from_unlabelled_rows():
    logits, labels, _ = _shifted_rows(1000, 0.5, 4)
    unlabelled, _, _ = _shifted_rows(500, 0.1, 5)
    prevalence = fit_reading(logits, labels, BINARY, "affine", unlabelled_NK=unlabelled).calibration.prevalence
    assert prevalence.deployed_C[1] == pytest.approx(0.1, abs=0.03) and prevalence.rows == 500
    assert prevalence.low_C[1] < 0.1 < prevalence.high_C[1]
    assert "estimated from 500 unlabelled rows" in prevalence.text(BINARY.names)
    with pytest.raises(DataError, match="20 unlabelled rows, expected 30"):
        fit_reading(logits, labels, BINARY, "affine", unlabelled_NK=unlabelled[:20])


# Sets.


@pytest.mark.parametrize("class_conditional", [False, True])
def test_sets_from_cross_fitted_probabilities_cover_as_promised(class_conditional):
    rules = DecisionRules.parse(coverage=0.9, class_conditional=class_conditional)
    shares = []
    for seed in range(6):
        logits, labels, _ = distorted_rows("three classes", 2300, seed=seed)
        fitted = fit_reading(logits[:300], labels[:300], _space("three classes"), "affine", rules)
        held = covered(fitted.decisions.sets.cutoffs, fitted.calibration.probabilities(logits[300:]), labels[300:])
        shares.append([held.mean(), *(held[labels[300:] == c].mean() for c in range(3))])
    # The coverage of one draw of 300 rows has a standard deviation of 0.017; of the 100 of a class 0.03.
    assert np.mean(shares, axis=0)[0] == pytest.approx(0.9, abs=0.02)
    if class_conditional:
        assert np.mean(shares, axis=0)[1:] == pytest.approx([0.9] * 3, abs=0.04)
