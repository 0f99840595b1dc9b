"""Venn-Abers intervals: equal to their plain definition, calibrated as promised, and no more than that."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from clsgen_dist.calibration.decisions import DecisionRules, Decisions
from clsgen_dist.calibration.fit_reading import fit_reading
from clsgen_dist.calibration.methods import fit
from clsgen_dist.calibration.prevalence import stated_prevalence
from clsgen_dist.calibration.venn_abers import MAX_STEPS, fit_intervals, fit_venn_abers
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.label_space import LabelSpace
from tests.calibration.synthetic import binary_rows, distorted_rows, multilabel_rows, ordinal_rows

INTERVALS = DecisionRules(intervals=True)
BINARY = LabelSpace(("no", "yes"), "yes")
ABC = LabelSpace(("a", "b", "c"), "c", "multilabel")


def _plain(x_N, answers_N, at):
    """The definition: isotonic regression with the row itself, as a no and as a yes."""
    return [
        IsotonicRegression().fit(np.append(x_N, at), np.append(answers_N, answer)).predict([at])[0] for answer in (0, 1)
    ]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), max_size=40), st.integers(-1, 25))
def test_the_fast_way_equals_the_plain_definition(rows, twice):
    x, answers = np.array([x for x, _ in rows], dtype=float), np.array([y for _, y in rows])
    [low], [high] = fit_venn_abers(x, answers).ends(np.array([twice / 2]))  # at a score, between two, or outside
    assert [low, high] == pytest.approx(_plain(x, answers, twice / 2), abs=1e-6)


def test_many_distinct_scores_equal_the_plain_definition_too():
    logits, labels = binary_rows(700, lambda true: true)
    fitted, at = fit_venn_abers(logits[:, 1], labels), np.linspace(-6, 6, 41)
    found = np.stack(fitted.ends(at), axis=1)
    np.testing.assert_allclose(found, [_plain(logits[:, 1], labels, x) for x in at], atol=1e-6)
    assert len(fitted.low) < MAX_STEPS > len(fitted.high)


def test_steps_that_are_left_out_only_widen_intervals():
    logits, labels = binary_rows(3000, lambda true: true)
    full, few = (fit_venn_abers(logits[:, 1], labels, most_steps=most) for most in (10**6, 20))
    (low, high), (lower, higher) = (fitted.ends(np.linspace(-6, 6, 500)) for fitted in (full, few))
    assert len(full.low) > 100 and len(few.low) == len(few.high) == 20
    assert (lower <= low).all() and (higher >= high).all() and (higher - lower).mean() < (high - low).mean() + 0.06


def test_twenty_thousand_rows_take_seconds():
    logits, labels = binary_rows(20_000, lambda true: true)
    began = time.perf_counter()
    fitted = fit_venn_abers(logits[:, 1], labels)
    assert time.perf_counter() - began < 5 and 200 < len(fitted.low) < MAX_STEPS


# What is promised, and what is not.


def _draws(rows, draws, new, prevalence=None):
    """Low, high and true answer of new rows, for each draw of held-out rows; logits are far too steep."""
    rng, found = np.random.default_rng(0), []

    def drawn(count, share):
        labels = (rng.random(count) < share).astype(int)
        return np.stack([np.zeros(count), 9 * (labels + rng.normal(0, 1, count))], axis=1), labels

    for _ in range(draws):
        logits, labels = drawn(rows, 0.4)
        fitted = fit_intervals(logits, np.full((rows, 2), 0.5), labels, BINARY)
        new_logits, new_labels = drawn(new, 0.4 if prevalence is None else prevalence.deployed_C[1])
        [low], [high] = (end.T for end in fitted.ends(new_logits, BINARY, prevalence))
        found.append(np.stack([low, high, new_labels]))
    return np.concatenate(found, axis=1)


def _sums_by_tenth(value_N, yes_N):
    return np.bincount(np.digitize(value_N, np.linspace(0.1, 0.9, 9)), weights=yes_N - value_N)


@pytest.mark.parametrize("deployed", [None, "yes=0.1"])
def test_the_end_of_the_true_answer_is_calibrated_for_any_score_and_few_rows(deployed):
    prevalence = deployed and stated_prevalence(deployed, BINARY.names, np.array([0.6, 0.4]), "single")
    low, high, yes = _draws(25, 1500, 40, prevalence)
    own = np.where(yes == 1, high, low)
    of_own, of_low, of_high = (np.abs(_sums_by_tenth(value, yes)).sum() / len(yes) for value in (own, low, high))
    assert of_own < 0.012 and of_low > 0.02 and of_high > 0.05
    assert low.mean() + 0.01 < yes.mean() < high.mean() - 0.01


def _held(rows):
    """Mean width, share of true probabilities in the interval, and within 0.005 of an affine calibration's."""
    logits, labels = binary_rows(rows, lambda true: 2 * true + 1, seed=rows)
    fitted, affine = fit_venn_abers(logits[:, 1], labels), fit("affine", logits, labels)
    true = np.random.default_rng(1).normal(0, 1.5, 20_000)
    truth, point = expit(true), affine.probabilities(np.stack([0 * true, 2 * true + 1], axis=1))[:, 1]
    low, high = fitted.ends(2 * true + 1)
    return (high - low).mean(), ((low <= truth) & (truth <= high)).mean(), (np.abs(point - truth) < 0.005).mean()


def test_an_interval_holds_the_true_probability_more_often_than_a_rounded_point_on_few_rows_and_rarely_on_many():
    few, many = (np.mean([_held(rows + n) for n in range(10)], axis=0) for rows in (100, 10_000))
    assert few[0] > 0.08 and few[1] > 0.35 > 2 * few[2]
    assert many[0] < 0.01 and many[1] < 0.2 < many[2]


def test_a_rising_calibration_leaves_the_interval_as_it_is():
    logits, labels, _ = distorted_rows("binary", 300)
    p = fit("affine", logits, labels).probabilities(logits)[:, 1]
    margin = logits[:, 1] - logits[:, 0]
    of_margin, of_p = fit_venn_abers(margin, labels), fit_venn_abers(logit(p), labels)
    np.testing.assert_array_equal(of_margin.ends(margin), of_p.ends(logit(p)))


def test_scores_that_have_seen_the_answers_would_narrow_the_interval():
    widths = []
    for seed in range(10):
        logits, labels, _ = distorted_rows("binary", 400, seed=seed)
        margin, p = logits[:, 1] - logits[:, 0], fit("histogram", logits, labels).probabilities(logits)[:, 1]
        ends = [fit_venn_abers(score, labels).ends(score) for score in (margin, p)]
        widths.append([(high - low).mean() for low, high in ends])
    unseen, seen = np.mean(widths, axis=0)
    assert seen < 0.7 * unseen


# Label spaces.


def test_the_interval_is_of_the_positive_class_whichever_it_is():
    logits, labels, _ = distorted_rows("binary", 300)
    p = fit("affine", logits, labels).probabilities(logits)
    yes, no = (fit_intervals(logits, p, labels, LabelSpace(("no", "yes"), name)) for name in ("yes", "no"))
    for of_yes, of_no in zip(yes.named(logits, BINARY, None), no.named(logits, LabelSpace(BINARY.names, "no"), None),
                             strict=True):  # fmt: skip
        assert of_yes.keys() == {"yes"} and of_no.keys() == {"no"}
        assert of_no["no"] == pytest.approx((1 - of_yes["yes"][1], 1 - of_yes["yes"][0]), abs=2e-6)
    assert no.outside_Q == pytest.approx(yes.outside_Q, abs=0.01)


def test_each_multilabel_class_has_its_own_from_its_known_answers():
    logits, answers = multilabel_rows(200, 3)
    answers[:, 2] = np.nan
    fitted = fit_reading(logits, answers, ABC, "affine", INTERVALS).decisions.intervals
    known = ~np.isnan(answers[:, 1])
    [found] = fitted.named(logits[:1], ABC, None)
    assert found["b"] == pytest.approx(_plain(logits[known, 1], answers[known, 1], logits[0, 1]), abs=1e-6)
    assert found["c"] == (0, 1) and fitted.mean_width_Q[2] == 1
    assert [question.rows for question in fitted.questions_Q] == [(~np.isnan(answers[:, c])).sum() for c in range(3)]


@pytest.mark.parametrize("kind", ["single", "ordinal"])
def test_more_than_two_classes_are_refused_and_two_ordered_ones_are_not(kind):
    with pytest.raises(SettingsError, match=rf"{kind} labels of 3 classes, expected a binary.*or use --coverage"):
        INTERVALS.check(LabelSpace(("a", "b", "c"), "c", kind))
    INTERVALS.check(ABC)
    logits, labels = ordinal_rows(100, 2)
    space = LabelSpace(("low", "high"), "high", "ordinal")
    [found] = fit_reading(logits, labels, space, "affine", INTERVALS).decisions.intervals.named(logits[:1], space, None)
    assert found["high"] == pytest.approx(_plain(logits[:, 0], labels, logits[0, 0]), abs=1e-6)


# Beside the rest of a fit.


@pytest.mark.parametrize("name", ["binary", "multilabel"])
def test_both_ends_are_corrected_as_the_probability_is_and_survive_json(name):
    logits, labels, kind = distorted_rows(name, 300)
    space = ABC if kind == "multilabel" else BINARY
    asked = f"{space.positive}=0.02"
    plain, fitted = (fit_reading(logits, labels, space, "affine", INTERVALS, prevalence=p) for p in (None, asked))
    stored = json.loads(json.dumps(fitted.decisions.to_json(), allow_nan=False))
    assert Decisions.from_json(stored) == fitted.decisions
    prevalence = fitted.calibration.prevalence
    ends, corrected = (
        np.array([row[space.positive] for row in each.decisions.intervals.named(logits, space, shares)])
        for each, shares in ((plain, None), (fitted, prevalence))
    )
    share = prevalence.fitted_C[-1]
    yes, no = ends * 0.02 / share, (1 - ends) * 0.98 / (1 - share)
    np.testing.assert_allclose(corrected, yes / (yes + no), atol=1e-9)
    if kind == "multilabel":
        of_a = [
            [row["a"] for row in each.decisions.intervals.named(logits, space, shares)]
            for each, shares in ((plain, None), (fitted, prevalence))
        ]
        np.testing.assert_allclose(*of_a, atol=1e-9)


def test_what_is_printed_is_measured_on_the_held_out_rows():
    logits, labels, _ = distorted_rows("binary", 400)
    fitted = fit_reading(logits, labels, BINARY, "affine", INTERVALS)
    p, intervals = fitted.calibration.probabilities(logits)[:, 1], fitted.decisions.intervals
    [low], [high] = (end.T for end in intervals.ends(logits, BINARY, None))
    assert intervals.mean_width_Q[0] == pytest.approx((high - low).mean())
    assert intervals.outside_Q[0] == pytest.approx(((p < low) | (p > high)).mean()) and intervals.outside_Q[0] > 0.3
    text = fitted.decisions.text(BINARY, None)
    assert f"| {(high - low).mean():.4f} " in text and "no confidence intervals" in text


def test_decisions_of_earlier_versions_have_no_intervals():
    logits, labels, _ = distorted_rows("binary", 100)
    stored = fit_reading(logits, labels, BINARY, "affine").decisions.to_json()
    assert stored.pop("intervals") is None
    assert Decisions.from_json(stored).intervals is None
