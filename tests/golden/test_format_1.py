"""Files of format 1, written by version 0.1: a checkpoint is resumed and exported, an export predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clsgen_dist.hf_export.export import export
from clsgen_dist.inference.predict import Predictor

pytestmark = [pytest.mark.dist, pytest.mark.slow]

OLD = Path(__file__).with_name("format_1")
STAGES = "[{name: easy, steps: 2, difficulty: [0, 0.5]}, {name: grow, steps: 8, pacing: root, start: 0.5}]"
RUN = {
    "model__finetune": "head",
    "data__dev": "few",
    "train__eval_every": 2,
    "curriculum__stages": STAGES,
    "train__max_steps": 6,
}


def test_a_checkpoint_of_format_1_is_resumed_and_exported(train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "step-00000004", run / "checkpoints" / "step-00000004")
    done = train(run, **RUN, resume="auto")
    assert "resumed from" in done.stdout and "best-so-far reset" not in done.stdout
    export(run, tmp_path / "model")
    assert Predictor(tmp_path / "model").predict(["a text"], explain=False)[0].label in ("benign", "malignant")


def test_a_changed_row_order_is_refused_on_resume(train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "step-00000004", run / "checkpoints" / "step-00000004")
    other = {**RUN, "curriculum__stages": STAGES.replace("start: 0.5", "start: 0.6")}
    done = train(run, **other, resume="auto", check=False)
    assert done.returncode == 2 and "order.stages.1.start was 0.5 and is now 0.6" in done.stdout


def test_an_export_of_format_1_predicts(tiny_backbone, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_backbone, model)
    shutil.copy(OLD / "clsgen.json", model)
    shutil.copytree(OLD / "classification_head", model / "classification_head")
    prediction = Predictor(model).predict(["Size high, texture low."], explain=False)[0]
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
