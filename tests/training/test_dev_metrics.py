"""Dev metrics, and which checkpoint is the best."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.training.dev_evaluation import DevResult, dev_metrics, is_better, metric_fault

BINARY = LabelSpace.of(["no", "yes"])


def _result(logits, labels, losses, after=None):
    return DevResult(np.asarray(logits), after, np.asarray(labels), losses)


def _by_term(generation, classification):
    return {"generation": generation, "classification": classification}


def test_dev_metrics_ignore_rows_without_label():
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
    metrics = dev_metrics(_result(logits, [0, 1, -1], _by_term(1.5, 0.25)), BINARY, _by_term(2.0, 4.0))
    assert (metrics["auroc"], metrics["f1"]) == (1.0, 1.0)
    assert metrics["loss"] == pytest.approx(2.0 * 1.5 + 4.0 * 0.25)


def test_is_better_depends_on_the_metric_and_nan_is_never_better():
    assert is_better("auroc", 0.9, 0.8) and not is_better("auroc", 0.8, 0.9)
    assert is_better("nll", 0.1, 0.2) and not is_better("nll", 0.2, 0.1)
    assert is_better("ece", 0.5, None) and not is_better("auroc", float("nan"), None)
    assert not is_better("loss", float("inf"), None)


def test_an_absent_loss_is_ignored_and_a_broken_one_is_infinite():
    logits, labels = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    absent = dev_metrics(_result(logits, labels, _by_term(math.nan, 0.25)), BINARY, _by_term(1.0, 1.0))
    assert absent["loss"] == 0.25
    infinite = _result([[math.nan, 0.0], [0.0, 2.0]], labels, _by_term(math.inf, 0.25))
    broken = dev_metrics(infinite, BINARY, _by_term(1.0, 1.0))
    assert broken["loss"] == math.inf and math.isnan(broken["auroc"]) and math.isnan(broken["f1"])


def test_dev_metrics_of_the_other_label_spaces():
    nan = math.nan
    logits = np.array([[2.0, -2.0], [-2.0, 2.0], [3.0, 3.0], [9.0, 9.0]])
    answers = np.array([[1, 0], [0, 1], [1, nan], [nan, nan]])
    several_labels = LabelSpace.of(["a", "b"], kind="multilabel")
    several = dev_metrics(_result(logits, answers, _by_term(1, 1)), several_labels, _by_term(1, 1))
    assert {several[name] for name in ("auroc", "auroc_micro", "average_precision", "f1", "subset_accuracy")} == {1.0}
    cuts = np.array([[-2.0, -3.0], [1.0, -1.0], [3.0, 2.0], [9.0, 9.0]])
    levels = LabelSpace.of(["low", "mid", "high"], kind="ordinal")
    ordered = dev_metrics(_result(cuts, [0, 1, 2, -1], _by_term(1, 1), cuts[::-1]), levels, _by_term(1, 1))
    assert ordered["after/quadratic_kappa"] < 0
    assert (ordered["quadratic_kappa"], ordered["mae"], ordered["auroc"]) == (1.0, 0.0, 1.0)


def test_the_class_that_explanations_would_name_is_compared_with_the_head():
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    names = np.array([[5.0, 0.0], [0.0, 1.0], [1.0, 0.0], [4.0, 0.0]])  # the third contradicts the head
    found = DevResult(logits, None, np.array([0, 1, -1, 0]), _by_term(1, 1), names)
    metrics = dev_metrics(found, BINARY, _by_term(1, 1))
    assert metrics["stated/agreement"] == 0.75
    assert metrics["stated/kappa"] == pytest.approx(0.5)  # chance agrees in 8 of 16
    assert metrics["stated/auroc"] == 1.0  # the row that states yes has the highest probability of yes
    several = LabelSpace.of(["a", "b"], kind="multilabel")
    sets = DevResult(logits, None, np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), _by_term(1, 1), names)
    assert not any(name.startswith("stated") for name in dev_metrics(sets, several, _by_term(1, 1)))
    assert "stated/kappa" not in dev_metrics(_result(logits, [0, 1, 1, 0], _by_term(1, 1)), BINARY, _by_term(1, 1))


def test_a_metric_that_the_label_space_does_not_have_is_refused():
    with pytest.raises(SettingsError, match=r"best_metric is quadratic_kappa, expected one of auroc, .* for single"):
        metric_fault(SimpleNamespace(), "quadratic_kappa", "single")
