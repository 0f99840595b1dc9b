"""The Python API that the package's docstring shows, used from a separate program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from pathlib import Path
from clsgen_dist import Predictor, calibrate, evaluate, export, load_settings, train

backbone, rows, run = sys.argv[1:]
settings = load_settings("configs/demo.yaml", {
    "output_dir": run, "data.train": rows, "data.dev": rows, "model.backbone": backbone, "model.finetune": "head",
    "model.top_layers": None, "data.max_prompt_length": 96, "train.batch_size": 8, "data.labels": None,
    "data.positive_label": None, "train.eval_every": None, "train.max_steps": 2,
})
result = train(settings)
log = (Path(run) / "logs/rank-0.log").read_text()
assert "train: 24 " in log and "checkpoint: " in log, log
assert result.state.step == 2 and result.checkpoint.is_dir()
model = export(run, run + "/model")
card = calibrate(model, rows)
assert card.calibration and card.calibrated_on["rows"] == 24
report = evaluate(model, rows, explain=False)
assert 0 <= report.report.scores[0].metrics["auroc"] <= 1 and "dual head, raw" in report.text()
[answer] = Predictor(str(model)).predict(["a text"], max_new_tokens=3)
assert abs(sum(answer.probabilities.values()) - 1) < 1e-6 and answer.label in ("no", "yes")
assert isinstance(answer.explanation, str)
"""


@pytest.mark.dist
@pytest.mark.slow
def test_train_export_calibrate_evaluate_predict(tiny_backbone, tmp_path):
    rows = tmp_path / "rows.jsonl"
    made = [{"text": f"row {n}", "label": ("no", "yes")[n % 2], "explanation": "so"} for n in range(24)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    words = [sys.executable, "-c", PROGRAM, str(tiny_backbone), str(rows), str(tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, clsgen_dist; print([m for m in ('torch', 'numpy', 'jsonargparse') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        import clsgen_dist

        clsgen_dist.trian  # noqa: B018
