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
    scores = {scores.name: scores.metrics for scores in evaluate(folder, rows, explain=False).scores}
    assert scores["dual head, recalibrated"]["nll"] < scores["dual head, raw"]["nll"]

    main(["calibrate", "--model", str(folder), "--method", "none"])
    assert "probabilities are the raw ones" in capsys.readouterr().out
    assert ModelCard.read(folder) == exported
    np.testing.assert_allclose(_probabilities(folder), raw, atol=1e-12)


def test_a_given_method_is_fitted(folder, rows):
    card = calibrate(folder, rows, method="beta")
    assert card.calibration["method"] == "beta" and card.calibration_choice["reason"] == "given"
    assert Predictor(folder).calibration.method == "beta"


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
