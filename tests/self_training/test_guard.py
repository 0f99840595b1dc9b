"""What the guard says, against shares and intervals worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.interval import Estimate, Interval, weighted_sum_interval, wilson_interval
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.self_training.guard import GuardPrecision, compare_rounds, guard_precision
from clsgen_dist.self_training.selection import class_shares, selected

NAMES = ("easy", "rare")


def measured(easy: tuple[int, int], rare: tuple[int, int], shares: list[float] | None = None) -> GuardPrecision:
    """The precision of so many right ones of so many confident decisions for each class, and 5 rows in doubt."""
    decided, labels = [], []
    for c, (right, count) in enumerate((easy, rare)):
        decided += [c] * count
        labels += [c] * right + [1 - c] * (count - right)
    is_confident = np.r_[np.ones(len(decided), dtype=bool), np.zeros(5, dtype=bool)]
    shares_C = None if shares is None else np.array(shares)
    return guard_precision(np.array(decided + [0] * 5), np.array(labels + [1] * 5), is_confident, list(NAMES), shares_C)


def test_rows_kept_as_they_come_have_wilsons_interval():
    found = measured((57, 60), (8, 10))
    assert (found.rows, found.confident, found.right) == (75, 70, 65)
    assert found.estimate.value == pytest.approx(65 / 70)
    assert found.estimate.interval == wilson_interval(65, 70)
    assert found.estimate.interval.low == pytest.approx(0.8434, abs=1e-4)


def test_the_precision_is_that_of_the_shares_that_are_kept():
    found = measured((60, 60), (5, 10), [0.5, 0.5])
    assert found.estimate.value == pytest.approx(0.75), "as they come it is 65 of 70"
    low = (1 - wilson_interval(60, 60).low, 0.5 - wilson_interval(5, 10).low)
    assert found.estimate.interval.low == pytest.approx(0.75 - 0.5 * math.hypot(*low))
    assert found.estimate.interval.low < 0.62


def test_few_right_decisions_for_a_class_are_not_taken_for_many():
    assert measured((69, 70), (3, 3)).fault(0.95, 0.9) is None
    said = measured((69, 70), (3, 3), [0.5, 0.5]).fault(0.95, 0.9)
    assert said and "Add labelled guard rows (35 confident ones at the least, all right)" in said
    assert wilson_interval(35, 35).low > 0.9 > wilson_interval(34, 34).low
    assert measured((35, 35), (0, 0)).fault(0.95, 0.9) is None
    assert measured((34, 34), (0, 0)).fault(0.95, 0.9) is not None


def test_the_refusal_says_what_was_measured_wanted_and_what_to_do():
    said = measured((80, 100), (0, 0)).fault(0.95, 0.9)
    assert said == (
        "100 of 105 guard rows are decided with a probability of 0.95 or more, 80 of them rightly: 80.0% "
        "(95 %: 71.1% to 86.7%); wanted is 90.0% or more at the lower end of the interval. Raise --confidence, or "
        "train and calibrate on more rows"
    )
    assert "none of the 5 guard rows" in str(measured((0, 0), (0, 0)).fault(0.95, 0.9))
    assert "too few guard rows are confidently 'rare'" in str(measured((50, 50), (0, 0), [0.9, 0.1]).fault(0.95, 0.9))
    assert measured((50, 50), (0, 0), [1.0, 0.0]).fault(0.95, 0.9) is None


def test_rows_of_one_patient_say_less_than_independent_ones():
    decided, labels = np.zeros(60, dtype=int), np.r_[np.zeros(55, dtype=int), np.ones(5, dtype=int)]
    alone = guard_precision(decided, labels, np.ones(60, dtype=bool), list(NAMES), None)
    together = guard_precision(decided, labels, np.ones(60, dtype=bool), list(NAMES), None, np.arange(60) // 5)
    assert together.estimate.value == alone.estimate.value
    assert together.estimate.interval.low < alone.estimate.interval.low - 0.05


def test_the_interval_of_a_sum_holds_the_truth_as_often_as_it_says():
    rng, truth, held = np.random.default_rng(0), 0.7 * 0.97 + 0.3 * 0.85, 0
    for _ in range(600):
        counts = [(rng.binomial(90, 0.97), 90), (rng.binomial(40, 0.85), 40)]
        parts = [Estimate(right / n, wilson_interval(right, n)) for right, n in counts]
        interval = weighted_sum_interval(parts, np.array([0.7, 0.3])).interval
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / 600 <= 0.98
    one = Estimate(0.9, Interval(0.8, 0.95))
    assert weighted_sum_interval([one], np.array([1.0])).interval.low == pytest.approx(0.8)


def test_kept_rows_have_the_shares_the_most_confident_first():
    class_N = np.array([0] * 80 + [1] * 10)
    confidence_N = np.r_[np.linspace(0.95, 0.99, 80), np.linspace(0.99, 0.95, 10)]
    kept = selected(class_N, confidence_N, NAMES, np.array([0.75, 0.25]))
    assert np.bincount(class_N[kept]).tolist() == [30, 10]
    assert np.flatnonzero(kept)[:30].tolist() == list(range(50, 80)), "the most confident of the easy class"
    capped = selected(class_N, confidence_N, NAMES, np.array([0.75, 0.25]), max_per_class=6)
    assert np.bincount(class_N[capped]).tolist() == [6, 2]
    assert np.bincount(class_N[selected(class_N, confidence_N, NAMES, None)]).tolist() == [80, 10]
    assert np.bincount(class_N[selected(class_N, confidence_N, NAMES, None, 20)]).tolist() == [20, 10]
    assert not selected(class_N, confidence_N, NAMES, np.array([0.0, 1.0]))[:80].any(), "a class that the guard lacks"
    tied = selected(np.zeros(5, dtype=int), np.full(5, 0.97), NAMES, None, 2)
    assert tied.tolist() == [True, True, False, False, False]
    with pytest.raises(DataError, match=r"no row is confidently 'rare'.*easy 50.0%, rare 50.0%.*--class_shares none"):
        selected(class_N[:80], confidence_N[:80], NAMES, np.array([0.5, 0.5]))


def test_shares_are_the_guards_stated_or_none():
    guard_C, names = np.array([0.6, 0.3, 0.1]), ("a", "b", "c")
    assert class_shares("none", names, guard_C) is None
    assert class_shares("guard", names, guard_C) is guard_C
    stated = class_shares("c=0.4", names, guard_C)
    assert stated is not None and stated.tolist() == pytest.approx([0.4, 0.2, 0.4])
    with pytest.raises(SettingsError, match=r"--class_shares 'd=0.4': 'd' is none of the classes"):
        class_shares("d=0.4", names, guard_C)


def test_a_worse_model_ends_the_rounds_and_chance_does_not():
    rng = np.random.default_rng(1)
    space, labels_N = LabelSpace.of(["no", "yes"]), rng.integers(0, 2, 300)

    def model(signal: float, seed: int) -> np.ndarray:
        logit_N = signal * (2 * labels_N - 1) + np.random.default_rng(seed).normal(size=300)
        p_N = 1 / (1 + np.exp(-2 * signal * logit_N))
        return np.c_[1 - p_N, p_N]

    none = (None, None)
    harm = compare_rounds(model(0.6, 2), model(1.2, 3), labels_N, space, none, "models/round0")
    assert set(harm.worse) == {"nll", "auroc", "accuracy"}
    said = harm.fault("models/round1")
    assert said and "the last round did harm" in said and "go on from models/round0" in said
    assert compare_rounds(model(1.2, 3), model(0.6, 2), labels_N, space, none, "x").worse == []
    alike = compare_rounds(model(1.2, 3), model(1.2, 4), labels_N, space, none, "x")
    assert alike.worse == [] and alike.fault("y") is None and "AUROC" in alike.text()
    same = model(1.2, 3)
    assert compare_rounds(same, same, labels_N, space, none, "x").worse == []
