"""Losses of three tiny runs, recorded: a change that should not affect results must give the same numbers.

``CLSGEN_RECORD=1 pytest tests/golden`` records them again, for a change that should. On the processor and the version
of torch that recorded them the numbers are equal to the last bit; elsewhere, to rounding.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.dist, pytest.mark.slow]

FILE = Path(__file__).with_name("losses.json")
TAGS = ("loss/generation", "loss/classification", "optim/grad_norm", "dev/loss/generation", "dev/loss/classification")
COMMON = {"data__dev": "few", "train__eval_every": 4, "model__finetune": "lora", "model__head_dropout": 0.1}
STAGES = "[{name: easy, steps: 4, difficulty: [0, 0.5]}, {name: grow, steps: 8, pacing: root, start: 0.5, replay: 0}]"
RUNS: dict[str, dict[str, Any]] = {
    "demo": {**COMMON, "train__max_steps": 8},
    "staged": {**COMMON, "model__finetune": "full", "curriculum__stages": STAGES, "objectives__schedule": "cosine"},
    "resumed": {**COMMON, "train__max_steps": 8, "train__log_rows": "true", "checkpoint__every": 2},
}


def _machine() -> str:
    """What decides the last bit: the processor and torch."""
    lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()]
    processor = {name.strip(): value.strip() for name, value in lines if value}
    parts = [processor.get(name, "") for name in ("model name", "cpu family", "model", "stepping")]
    return f"{'/'.join(parts)}, torch {torch.__version__}"


def _curves(output: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    there = log.Tags()["scalars"]
    return {tag: [event.value for event in log.Scalars(tag)] for tag in TAGS if tag in there}


@pytest.mark.parametrize("name", RUNS)
def test_losses_equal_the_recorded_ones(name, train, ranks, recipe, tmp_path):
    output = tmp_path / "run"
    if name == "resumed":
        killed = ranks(recipe(output, **RUNS[name]), faults=[{"what": "kill", "step": 5, "rank": 1}])
        assert killed.status[1] == -signal.SIGKILL
    train(output, **RUNS[name], resume="auto")
    curves = _curves(output)
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("CLSGEN_RECORD") == "1":
        FILE.write_text(json.dumps({**recorded, "machine": _machine(), name: curves}, indent=1) + "\n")
        return
    tolerance = 0.0 if recorded["machine"] == _machine() else 1e-4
    assert curves.keys() == recorded[name].keys()
    for tag, values in recorded[name].items():
        assert curves[tag] == pytest.approx(values, rel=tolerance, abs=0), tag
