"""Global means over ranks and micro-batches."""

from __future__ import annotations

import math

import torch

from clsgen_dist.objectives.normalization import StepCounts, backward_loss, mean


def test_shares_of_all_ranks_add_up_to_the_global_means():
    generator = torch.Generator().manual_seed(0)
    parts = [
        (torch.rand(n, generator=generator), torch.rand(s, generator=generator)) for n, s in ((5, 2), (0, 1), (7, 0))
    ]
    counts = StepCounts({"generation": 12, "classification": 3}, tokens=99)
    weights = {"generation": 2.0, "classification": 0.5}
    sums = [{"generation": tokens.sum(), "classification": rows.sum()} for tokens, rows in parts]
    averaged = sum(backward_loss(s, counts, weights, world_size=3) for s in sums) / 3  # as DeepSpeed averages
    expected = 2.0 * torch.cat([p[0] for p in parts]).mean() + 0.5 * torch.cat([p[1] for p in parts]).mean()
    torch.testing.assert_close(averaged, expected)


def test_a_step_without_supervision_has_zero_loss_and_logs_nan():
    sums = {"generation": torch.zeros(()), "classification": torch.zeros(())}
    counts = StepCounts(dict.fromkeys(sums, 0), tokens=5)
    assert backward_loss(sums, counts, dict.fromkeys(sums, 1.0), world_size=2).item() == 0.0
    assert math.isnan(mean(0.0, 0))
