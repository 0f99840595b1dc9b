"""Metrics against hand-computed values and known truths."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from clsgen_dist.data.example import Example
from clsgen_dist.evaluation import baselines
from clsgen_dist.evaluation import report as report_module
from clsgen_dist.evaluation.baselines import text_baseline
from clsgen_dist.evaluation.bootstrap import bootstrap_interval, bootstrap_intervals
from clsgen_dist.evaluation.calibration_error import ece, nll, reliability_bins
from clsgen_dist.evaluation.classification import auroc, f1_at, predicted_class
from clsgen_dist.evaluation.confusion import confusion_matrix, macro_f1
from clsgen_dist.evaluation.report import ExplanationShare, Report, score
from clsgen_dist.inference.score_table import build_report
from clsgen_dist.model.label_space import LabelSpace


def _binary(p):
    return np.stack([1 - np.asarray(p), np.asarray(p)], axis=1)


def test_ece_by_hand():
    # Bin 0.1: confidence 0.1, frequency 0.5 of 2 rows; bin 0.9: confidence 0.9, frequency 1 of 2 rows.
    probabilities = _binary([0.1, 0.1, 0.9, 0.9])
    assert ece(probabilities, np.array([0, 1, 1, 1]), bins=10) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


def test_ece_of_a_calibrated_model_is_small_and_not_zero():
    rng = np.random.default_rng(0)
    p = rng.random(400)
    values = [ece(_binary(p), (rng.random(400) < p).astype(int)) for _ in range(20)]
    assert 0.03 < np.mean(values) < 0.09


def test_positive_class_may_be_the_first():
    probabilities, labels = _binary([0.2, 0.3, 0.9]), np.array([0, 0, 1])
    assert ece(probabilities, labels, positive=0) == pytest.approx(ece(probabilities[:, ::-1], 1 - labels, positive=1))
    assert auroc(probabilities, labels, 0) == 1.0


def test_more_than_two_classes_use_the_top_probability():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])
    assert ece(probabilities, np.array([0, 1])) == pytest.approx(0.3)


def test_empty_bins_are_nan_with_count_zero():
    confidence, frequency, count = reliability_bins(_binary([0.99, 1.0]), np.array([1, 1]), bins=10)
    assert np.isnan(confidence[:9]).all() and np.isnan(frequency[:9]).all()
    assert count.tolist() == [0] * 9 + [2]


def test_auroc_is_nan_for_one_class_and_a_half_for_ties():
    assert np.isnan(auroc(_binary([0.2, 0.3]), np.array([1, 1]), 1))
    assert auroc(_binary([0.5, 0.5]), np.array([0, 1]), 1) == 0.5
    three = np.eye(3)
    assert auroc(three, np.array([0, 1, 2]), 2) == 1.0


def test_f1_by_hand():
    p, y = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    assert f1_at(p, y, 0.5) == pytest.approx(0.5)  # 1 right, 1 false alarm, 1 missed
    assert f1_at(p, y, 0.95) == 0.0


def test_decision_follows_threshold_and_positive_class():
    probabilities = _binary([0.2, 0.4, 0.6])
    assert predicted_class(probabilities, 1, 0.3).tolist() == [0, 1, 1]
    assert predicted_class(probabilities, 0, 0.7).tolist() == [0, 1, 1]
    assert predicted_class(probabilities, 1, None).tolist() == [0, 0, 1]
    assert macro_f1(confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)) == pytest.approx(2 / 3)


def test_nll_of_even_odds_is_log_two():
    assert nll(_binary([0.5, 0.5]), np.array([0, 1])) == pytest.approx(np.log(2))


def test_bootstrap_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        sample = rng.normal(size=60)
        interval = bootstrap_interval(lambda i, x=sample: x[i].mean(), 60, resamples=200, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 86 <= covered <= 100


def test_nan_resamples_are_dropped_and_counted():
    labels = np.array([0] * 5 + [1])
    probabilities = _binary(np.linspace(0, 1, 6))
    interval = bootstrap_interval(lambda i: auroc(probabilities[i], labels[i], 1), 6, resamples=200)
    assert 0 < interval.dropped < 200
    assert np.isfinite([interval.low, interval.high]).all()


def test_a_report_on_one_class_has_no_auroc_in_text_and_json():
    scores = score("model", _binary([0.2, 0.9, 0.4]), np.array([1, 1, 1]), positive=1)
    report = Report(3, [scores], notes=["no row of the class 'no': AUROC needs two classes"])
    assert "| n/a " in report.text() and report.text().endswith(
        "note: no row of the class 'no': AUROC needs two classes"
    )
    read = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["scores"][0]["auroc"] is None and read["scores"][0]["nll"] == pytest.approx(scores.metrics["nll"])


def test_shares_of_explanations_are_codes_in_json_and_words_in_the_text():
    report = Report(2, explanations={ExplanationShare.NAMES_DECIDED_CLASS: 0.5})
    assert json.loads(report.to_json())["explanations"] == {"names-decided-class": 0.5}
    assert "explanation names the decided class: 50.0%" in report.text()
    assert all(share.words for share in ExplanationShare)


def test_the_text_baseline_needs_words_and_two_classes():
    texts, new = ["good day", "bad day", "good night", "bad night"], ["good", "bad"]
    assert text_baseline(texts, np.array([1, 1, 1, 1]), new, 2) is None
    assert text_baseline(["!", "?"], np.array([0, 1]), new, 2) is None
    probabilities = text_baseline(texts, np.array([3, 1, 3, 1]), new, 4)
    assert probabilities.argmax(axis=1).tolist() == [3, 1] and probabilities[:, [0, 2]].sum() == 0


def test_a_text_baseline_of_many_texts_is_fitted_on_a_part_of_them(monkeypatch):
    texts = [f"{word} day number {n}" for n in range(200) for word in ("good", "bad")]
    assert baselines.affordable_rows(texts) == list(range(400))
    monkeypatch.setattr(baselines, "_MOST_CHARACTERS", 2000)
    rows = baselines.affordable_rows(texts)
    assert 90 < len(rows) < 120 and rows == sorted(set(rows)) and max(rows) > 300 > 100 > min(rows)
    assert sum(len(texts[row]) for row in rows) <= 2000
    assert baselines.affordable_rows(["x" * 3000, "y" * 3000]) in ([0], [1]), "one text at least"


def test_a_text_baseline_predicts_alike_in_blocks(monkeypatch):
    texts, labels = ["good day", "bad day", "good night", "bad night"] * 3, np.array([0, 1] * 6)
    several = np.where(labels[:, None] == [0, 1], 1.0, 0.0)
    whole = [text_baseline(texts, given, texts, 2) for given in (labels, several)]
    monkeypatch.setattr(baselines, "_BLOCK", 5)
    for given, expected in zip((labels, several), whole, strict=True):
        np.testing.assert_allclose(text_baseline(texts, given, texts, 2), expected, atol=1e-12)


def test_an_absent_class_does_not_prevent_a_report(monkeypatch):
    monkeypatch.setattr(report_module, "bootstrap_intervals", partial(bootstrap_intervals, resamples=10))
    card = SimpleNamespace(labels=["a", "b", "c"], calibration=None, thresholds=None, distorted_by=[])
    predictor = SimpleNamespace(card=card, space=LabelSpace.of(card.labels))
    examples = [Example(id=str(n), text=f"word{n % 2} so", label="ab"[n % 2]) for n in range(12)]
    logits = [(1.0, 0.0, 0.5) if n % 2 == 0 else (0.0, 1.0, 0.5) for n in range(12)]
    predictions = [SimpleNamespace(logits=x, explanation=None, label="a", after=None) for x in logits]
    others = [dataclasses.replace(example, text=f"{example.text} other") for example in examples]
    report = build_report(predictor, examples, predictions, others)
    assert report.notes == ["no row of the class 'c': AUROC and F1 are of the other classes"]
    assert [(s.name, s.metrics["auroc"]) for s in report.scores] == [
        ("dual head, raw", 1.0),
        ("majority class", 0.5),
        ("TF-IDF logistic regression", 1.0),
    ]
