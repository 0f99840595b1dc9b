"""Learning rate, dev metrics, ranks from launchers, and a global mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from clsgen_kernels import DualHeadOutput

from clsgen_dist.checkpoint.state import SpikeState
from clsgen_dist.engine.optim import lr_factor
from clsgen_dist.engine.world import _environment, ranks_here
from clsgen_dist.errors import SettingsError
from clsgen_dist.objectives.normalization import LossWeights, StepCounts, backward_loss, mean
from clsgen_dist.training.evaluation import dev_metrics, is_better


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor():
    factors = [lr_factor(step, 100, warmup_fraction=0.1, final_fraction=0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0) == pytest.approx(factors[10])
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.2, abs=0.001)
    assert lr_factor(0, 1, warmup_fraction=0.0, final_fraction=0.1) == 1.0


def test_shares_of_all_ranks_add_up_to_the_global_means():
    generator = torch.Generator().manual_seed(0)
    parts = [
        (torch.rand(n, generator=generator), torch.rand(s, generator=generator)) for n, s in ((5, 2), (0, 1), (7, 0))
    ]
    counts = StepCounts(supervised=12, labelled=3, tokens=99)
    weights = LossWeights(2.0, 0.5)
    outputs = [DualHeadOutput(tokens, torch.zeros(len(rows), 2), rows, tokens > 1) for tokens, rows in parts]
    averaged = sum(backward_loss(o, counts, weights, world_size=3) for o in outputs) / 3  # as DeepSpeed averages
    expected = 2.0 * torch.cat([p[0] for p in parts]).mean() + 0.5 * torch.cat([p[1] for p in parts]).mean()
    torch.testing.assert_close(averaged, expected)


def test_a_step_without_any_such_row_costs_nothing_and_is_nan_in_the_log():
    output = DualHeadOutput(torch.zeros(0), torch.zeros(1, 2), torch.zeros(1), torch.zeros(0) > 1)
    loss = backward_loss(output, StepCounts(0, 0, 5), LossWeights(1.0, 1.0), world_size=2)
    assert loss.item() == 0.0
    assert math.isnan(mean(0.0, 0))


def test_dev_metrics_leave_out_rows_without_label():
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
    metrics = dev_metrics(logits, np.array([0, 1, -1]), 1, (1.5, 0.25), LossWeights(2.0, 4.0))
    assert (metrics["auroc"], metrics["f1"]) == (1.0, 1.0)
    assert metrics["loss"] == pytest.approx(2.0 * 1.5 + 4.0 * 0.25)


def test_better_means_higher_or_lower_by_the_metric_and_nan_is_never_better():
    assert is_better("auroc", 0.9, 0.8) and not is_better("auroc", 0.8, 0.9)
    assert is_better("nll", 0.1, 0.2) and not is_better("nll", 0.2, 0.1)
    assert is_better("ece", 0.5, None) and not is_better("auroc", float("nan"), None)
    assert not is_better("loss", float("inf"), None)


def test_a_loss_that_is_no_number_is_no_better_than_none_at_all():
    logits, labels = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    absent = dev_metrics(logits, labels, 1, (math.nan, 0.25), LossWeights(1.0, 1.0))
    assert absent["loss"] == 0.25
    broken = dev_metrics(np.array([[math.nan, 0.0], [0.0, 2.0]]), labels, 1, (math.inf, 0.25), LossWeights(1.0, 1.0))
    assert broken["loss"] == math.inf and math.isnan(broken["auroc"]) and math.isnan(broken["f1"])


def test_each_head_is_compared_with_itself():
    state = SpikeState()
    for _ in range(20):
        state = state.after(2.0, math.nan, updated=True)
    assert state.limits(10.0) == (20.0, math.inf)  # of classification nothing is known yet
    for _ in range(20):
        state = state.after(math.nan, 0.01, updated=True)
    assert state.limits(10.0) == (20.0, 10.0)  # what was learnt by heart may be contradicted
    assert state.limits(0.0) == (math.inf, math.inf)
    skipped = state.after(99.0, 0.01, updated=False)
    assert skipped.recent_generation == state.recent_generation and (skipped.in_a_row, skipped.skipped) == (1, 1)


def test_ranks_come_from_slurm_when_no_launcher_says_them(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what the function sets is taken back afterwards
        monkeypatch.delenv(name)
    for name, value in {"PROCID": "3", "LOCALID": "1", "NTASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SettingsError, match="MASTER_ADDR or MASTER_PORT is not set"):
        _environment()
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "12345")
    _environment()
    import os

    assert [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["3", "1", "4"]


@pytest.mark.parametrize("name", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_cores_are_shared_by_the_ranks_of_a_machine(name, monkeypatch):
    for other in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(other, raising=False)
    assert ranks_here() == 1
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2),1")  # srun --ntasks=5 on three nodes
    here = []
    for node in range(3):
        monkeypatch.setenv("SLURM_NODEID", str(node))
        here.append(ranks_here())
    assert here == [2, 2, 1]
    monkeypatch.setenv(name, "4")  # a launcher inside a job knows better
    assert ranks_here() == 4
