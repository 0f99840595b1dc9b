"""``clsgen calibrate --intervals true`` on a hand-made export, and its intervals in answers and files."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.isotonic import IsotonicRegression

from clsgen_dist.cli import main
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file
from tests.inference.conftest import hand_made_export

TEXTS = [f"Row {n}, {word}." for n in range(12) for word in ("low", "high", "none")]


def _predictions(folder):
    """In the batches of ``clsgen calibrate``: a logit that is rounded otherwise is beside its step."""
    return Predictor(folder).predict(TEXTS, explain=False, batch_size=32)


def _logits(folder):
    return np.array([p.logits for p in _predictions(folder)])


def _write(path, labels):
    path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in zip(TEXTS, labels, strict=True)))
    return str(path)


@pytest.fixture
def rows(folder, tmp_path):
    """Rows whose labels follow the model's own ranking of their texts, with some noise."""
    logits = _logits(folder)
    above = logits[:, 1] - logits[:, 0] > np.median(logits[:, 1] - logits[:, 0])
    above[::6] = ~above[::6]
    return _write(tmp_path / "rows.jsonl", np.where(above, "yes", "no").tolist())


def _calibrate(folder, rows, *more):
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine", "--intervals", "true", *more])


def _plain(scores, answers, at):
    return [IsotonicRegression().fit([*scores, at], [*answers, yes]).predict([at])[0] for yes in (0, 1)]


def test_answers_have_the_interval_of_the_positive_class_and_the_next_call_removes_it(folder, rows, capsys):
    _calibrate(folder, rows)
    assert "Venn-Abers intervals" in capsys.readouterr().out
    logits, labels = (
        _logits(folder),
        [json.loads(line)["label"] == "yes" for line in Path(rows).read_text().splitlines()],
    )
    scores = logits[:, 1] - logits[:, 0]
    for score, found in zip(scores, _predictions(folder), strict=True):
        assert found.intervals["yes"] == pytest.approx(_plain(scores, labels, score), abs=1e-6)
        assert found.to_json()["interval"] == {"yes": [round(end, 6) for end in found.intervals["yes"]]}
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine"])
    [found] = Predictor(folder).predict(TEXTS[:1], explain=False)
    assert found.intervals is None and "interval" not in found.to_json()


def test_each_reading_and_each_prevalence_has_its_own(folder, rows):
    dataclasses.replace(ModelCard.read(folder), decide="both", max_explanation_length=4).write(folder)
    found = []
    for more in ((), ("--prevalence", "yes=0.02")):
        _calibrate(folder, rows, *more)
        found.append(Predictor(folder).predict(TEXTS))
    share = ModelCard.read(folder).calibration["prevalence"]["fitted"][1]
    for plain, corrected in zip(*found, strict=True):
        for first, second in ((plain, corrected), (plain.after, corrected.after)):
            yes = np.array(first.intervals["yes"]) * 0.02 / share
            no = (1 - np.array(first.intervals["yes"])) * 0.98 / (1 - share)
            assert second.intervals["yes"] == pytest.approx(yes / (yes + no), abs=1e-9)
    assert [p.intervals for p in found[0]] != [p.after.intervals for p in found[0]]


def test_files_have_a_column_for_each_end_and_rename_those_of_the_rows(folder, rows, tmp_path):
    _calibrate(folder, rows)
    data = tmp_path / "new.jsonl"
    data.write_text(json.dumps({"id": "a", "text": TEXTS[0], "low_yes": 7, "interval": "mine"}) + "\n")
    for name in ("out.csv", "out.parquet", "out.jsonl"):
        predict_file(folder, str(data), tmp_path / name, explain=False)
    low, high = json.loads((tmp_path / "out.jsonl").read_text())["interval"]["yes"]
    [row] = csv.DictReader((tmp_path / "out.csv").open())
    assert list(row) == [
        "id",
        "text",
        "input_low_yes",
        "input_interval",
        "label",
        "p_no",
        "p_yes",
        "low_yes",
        "high_yes",
    ]
    assert (float(row["low_yes"]), float(row["high_yes"]), row["input_low_yes"]) == (low, high, "7")
    assert pq.read_table(tmp_path / "out.parquet")["high_yes"].to_pylist() == [high]


def test_each_multilabel_class_has_an_interval(tmp_path):
    folder = hand_made_export(tmp_path / "sets", ["a", "b"], "multilabel")
    logits = _logits(folder)
    above = logits > np.median(logits, axis=0)
    above[::6] = ~above[::6]
    labels = [[name for name, yes in zip("ab", row, strict=True) if yes] for row in above]
    _calibrate(folder, _write(tmp_path / "rows.jsonl", labels))
    found = _predictions(folder)[0]
    assert found.to_json()["interval"].keys() == {"a", "b"}
    for c, name in enumerate("ab"):
        assert found.intervals[name] == pytest.approx(_plain(logits[:, c], above[:, c], logits[0, c]), abs=1e-6)


def test_more_classes_are_refused_before_the_model_is_loaded(tmp_path, capsys):
    folder = hand_made_export(tmp_path / "three", ["a", "b", "c"])
    (folder / "config.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        _calibrate(folder, "rows.jsonl")
    assert "single labels of 3 classes, expected a binary or multi-label model" in capsys.readouterr().err


def test_a_model_that_an_earlier_version_calibrated_has_none(folder, rows):
    main(["calibrate", "--model", str(folder), "--data", rows, "--method", "affine", "--hand_over", "workload=0.2"])
    card = json.loads((folder / META_FILE).read_text())
    assert card["decisions"].pop("intervals") is None
    (folder / META_FILE).write_text(json.dumps({**card, "format_version": 5}))
    [found] = Predictor(folder).predict(TEXTS[:1], explain=False)
    assert found.intervals is None and found.hand_over is not None
