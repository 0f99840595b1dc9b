"""``clsgen calibrate`` on a hand-made export: what is fitted, stored, printed, used and removed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from clsgen_dist.calibration.methods import from_json
from clsgen_dist.cli import main
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard
from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.predict import Predictor

TEXTS = [f"Row {n}, {word}." for n in range(12) for word in ("low", "high", "none")]


@pytest.fixture
def rows(folder, tmp_path):
    """Rows whose labels follow the model's own ranking of their texts, with some noise."""
    logits = np.array([p.logits for p in Predictor(folder).predict(TEXTS, explain=False)])
    score = logits[:, 1] - logits[:, 0]
    above = score > np.median(score)
    above[::6] = ~above[::6]
    made = [{"text": text, "label": ("no", "yes")[int(yes)]} for text, yes in zip(TEXTS, above, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def _probabilities(folder):
    return np.array([list(p.probabilities.values()) for p in Predictor(folder).predict(TEXTS, explain=False)])


def test_a_method_is_chosen_stored_used_and_removed_again(folder, rows, capsys):
    raw, exported = _probabilities(folder), ModelCard.read(folder)
    main(["calibrate", "--model", str(folder), "--data", rows])
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    chosen = card.calibration["method"]
    assert chosen == card.calibration_choice["method"] and chosen != "none"
    assert "calibrated on 36 rows" in printed and f"| {chosen} (chosen)" in printed and "| none " in printed
    assert "not tried on 36 rows: isotonic needs 200" in printed
    assert f"threshold with the best F1: {card.thresholds[0]:.3f}" in printed
    logits = np.array([p.logits for p in Predictor(folder).predict(TEXTS, explain=False)])
    calibrated = _probabilities(folder)
    np.testing.assert_allclose(calibrated, from_json(card.calibration).probabilities(logits), atol=1e-12)
    assert np.abs(calibrated - raw).max() > 0.05
    scores = {scores.name: scores.metrics for scores in evaluate(folder, rows, explain=False).report.scores}
    assert scores["dual head, recalibrated"]["nll"] < scores["dual head, raw"]["nll"]

    main(["calibrate", "--model", str(folder), "--method", "none"])
    assert "probabilities are the raw ones" in capsys.readouterr().out
    assert ModelCard.read(folder) == exported
    np.testing.assert_allclose(_probabilities(folder), raw, atol=1e-12)


def test_a_given_method_is_fitted(folder, rows):
    card = calibrate(folder, rows, method="beta")
    assert card.calibration["method"] == "beta" and card.calibration_choice["reason"] == "given"
    assert Predictor(folder).reader.calibration.method == "beta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "isotonic"), "36 labelled rows, expected 200 or more for isotonic"),
        (("--method", "vector"), "single labels of more than two classes"),
        (("--method", "splines"), "splines"),
    ],
)
def test_a_method_that_cannot_be_fitted_is_a_clear_error(arguments, message, folder, rows, capsys):
    before = (folder / META_FILE).read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--model", str(folder), "--data", rows, *arguments])
    assert message in capsys.readouterr().err
    assert (folder / META_FILE).read_text() == before


def test_rows_are_needed_unless_the_calibration_is_removed(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--model", str(folder)])
    assert "--data is missing" in capsys.readouterr().err


def test_each_of_two_readings_has_its_own_calibration(folder, rows, capsys):
    dataclasses.replace(ModelCard.read(folder), decide="both", max_explanation_length=4).write(folder)
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine"])
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    assert card.calibration["method"] == card.calibration_after["method"] == "affine"
    assert card.calibration != card.calibration_after and card.thresholds != card.thresholds_after
    assert card.calibration_choice != card.calibration_choice_after
    assert "before the explanation: calibration by affine" in printed
    assert "after the explanation: calibration by affine" in printed
    main(["calibrate", "--model", str(folder), "--method", "none"])
    card = ModelCard.read(folder)
    assert card.calibration is card.calibration_after is card.thresholds_after is card.calibration_choice_after is None


def test_a_card_of_format_3_keeps_its_calibration_and_thresholds(folder):
    fields = dataclasses.asdict(ModelCard.read(folder))
    del fields["calibration_choice"], fields["calibration_choice_after"]
    fields |= {"calibration": {"method": "affine", "scale": 0.5, "bias": [0.0, 1.25]}, "thresholds": [0.3]}
    (folder / META_FILE).write_text(json.dumps({**fields, "format_version": 3}))
    card = ModelCard.read(folder)
    assert card.thresholds == [0.3] and card.calibration_choice is None
    logits = np.array([p.logits for p in Predictor(folder).predict(TEXTS, explain=False)])
    odds = 0.5 * (logits[:, 1] - logits[:, 0]) + 1.25
    np.testing.assert_allclose(_probabilities(folder)[:, 1], 1 / (1 + np.exp(-odds)), atol=1e-6)


def _predictions(folder, **options):
    return Predictor(folder).predict(TEXTS, **{"explain": False, **options})


DECIDING = ("--threshold", "recall=0.9", "--coverage", "0.8", "--hand_over", "workload=0.25")


def test_decisions_are_stored_used_and_replaced_by_the_next_call(folder, rows, capsys):
    exported = ModelCard.read(folder)
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine", *DECIDING])
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    assert "threshold for a recall of 0.9 or more: " in printed
    assert "sets hold the true class of new rows with probability 0.8" in printed
    assert "for a workload of 0.25" in printed and "of them answered" in printed
    least, cutoff = card.decisions["hand_over"]["least_confidence"], card.decisions["sets"]["cutoff"][0]
    handed = 0
    for found in _predictions(folder):
        p = found.probabilities
        assert found.label == ("yes" if p["yes"] >= card.thresholds[0] else "no")
        assert found.prediction_set == [name for name in ("no", "yes") if p[name] >= cutoff]
        assert found.hand_over == (p[found.label] < least)
        assert found.to_json()["set"] == found.prediction_set and found.to_json()["hand_over"] is found.hand_over
        handed += found.hand_over
    assert handed == pytest.approx(0.25 * len(TEXTS), abs=3)

    calibrate(folder, rows, method="affine")
    assert ModelCard.read(folder).decisions["sets"] is ModelCard.read(folder).decisions["hand_over"] is None
    assert _predictions(folder)[0].to_json().keys() == {"label", "probabilities"}
    main(["calibrate", "--model", str(folder), "--method", "none"])
    assert ModelCard.read(folder) == exported


def test_probabilities_are_corrected_for_a_stated_or_estimated_prevalence(folder, rows, tmp_path, capsys):
    calibrate(folder, rows, method="affine")
    before = _probabilities(folder)
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine", "--prevalence", "yes=0.02",
          "--coverage", "0.8"])  # fmt: skip
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    share = card.calibration["prevalence"]["fitted"][1]
    odds = before[:, 1] / before[:, 0] * (0.02 / 0.98) / (share / (1 - share))
    np.testing.assert_allclose(_probabilities(folder)[:, 1], odds / (1 + odds), rtol=1e-9)
    assert card.decisions["sets"]["class_conditional"] and "class-conditional sets are valid" in printed
    assert "| yes   | 0." in printed and "0.020" in printed

    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine", "--prevalence_from",
          str(unlabelled)])  # fmt: skip
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    assert "estimated from 36 unlabelled rows, with 95 % intervals" in printed
    assert card.calibrated_on["prevalence_from"] == str(unlabelled)
    stored = card.calibration["prevalence"]
    assert stored["low"][1] < stored["deployed"][1] < stored["high"][1]
    # The texts are those of the calibration, so its base rate is what they look like.
    assert stored["deployed"][1] == pytest.approx(stored["fitted"][1], abs=0.05)


def test_each_reading_has_its_own_decisions(folder, rows, capsys):
    dataclasses.replace(ModelCard.read(folder), decide="both", max_explanation_length=4).write(folder)
    main(
        [
            "calibrate",
            "--model",
            str(folder),
            "--data",
            rows,
            "--method",
            "affine",
            "--prevalence",
            "yes=0.3",
            *DECIDING,
        ]
    )
    printed, card = capsys.readouterr().out, ModelCard.read(folder)
    assert printed.count("threshold for a recall of 0.9 or more: ") == 2 == printed.count("prevalence, stated")
    assert card.decisions_after["thresholds"] != card.decisions["thresholds"]
    found = _predictions(folder, explain=True)
    least = [fitted["hand_over"]["least_confidence"] for fitted in (card.decisions, card.decisions_after)]
    for p in found:
        assert p.hand_over == (p.probabilities[p.label] < least[0])
        assert p.after.hand_over == (p.after.probabilities[p.after.label] < least[1])
        assert p.to_json()["after"]["set"] == p.after.prediction_set
    main(["calibrate", "--model", str(folder), "--method", "none"])
    card = ModelCard.read(folder)
    assert card.decisions is card.decisions_after is None


def test_multilabel_sets_name_the_classes_that_may_and_that_need_not_apply(folder, tmp_path):
    dataclasses.replace(ModelCard.read(folder), label_space="multilabel").write(folder)
    logits = np.array([p.logits for p in Predictor(folder).predict(TEXTS, explain=False)])
    above = logits > np.median(logits, axis=0)
    above[::6] = ~above[::6]
    rows = tmp_path / "sets.jsonl"
    made = [
        {"text": text, "label": [name for name, yes in zip(("no", "yes"), row, strict=True) if yes]}
        for text, row in zip(TEXTS, above, strict=True)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    options = {"method": "affine", "coverage": 0.8, "hand_over": "workload=0.2", "threshold": "precision=0.5"}
    card = calibrate(folder, str(rows), **options)
    assert len(card.thresholds) == 2 and all(fit["precision"] >= 0.5 for fit in card.decisions["thresholds"]["fitted"])
    sets = card.decisions["sets"]
    for found in _predictions(folder):
        p = found.probabilities
        assert found.prediction_set == {
            "may_apply": [name for name, cut in zip(p, sets["cutoff"], strict=True) if p[name] >= cut],
            "need_not_apply": [name for name, cut in zip(p, sets["no_cutoff"], strict=True) if 1 - p[name] >= cut],
        }
        certain = min(p[name] if name in found.label else 1 - p[name] for name in p)
        assert found.hand_over == (certain < card.decisions["hand_over"]["least_confidence"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "best"), "--threshold is 'best', expected f1, recall=0.95"),
        (("--prevalence", "maybe=0.1"), "'maybe' is none of the classes 'no', 'yes'"),
        (("--prevalence", "yes=2"), "expected a share above 0 and below 1"),
        (("--prevalence", "yes=0.1", "--prevalence_from", "rows.jsonl"), "are both given"),
        (("--coverage", "1.5"), "a share above 0 and below 1"),
        (("--coverage", "0.99"), "36 rows, expected 99 or more"),
        (("--coverage", "0.8", "--class_conditional", "false", "--prevalence", "yes=0.1"), "stay valid"),
        (("--method", "none", "--hand_over", "risk=0.1"), "leave their options out"),
    ],
)
def test_decisions_that_cannot_be_are_a_clear_error(arguments, message, folder, rows, capsys):
    before = (folder / META_FILE).read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--model", str(folder), "--data", rows, *arguments])
    assert message in capsys.readouterr().err
    assert (folder / META_FILE).read_text() == before
