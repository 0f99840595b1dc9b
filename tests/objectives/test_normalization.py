"""Global means over ranks and micro-batches."""

from __future__ import annotations

import math

import torch
from clsgen_kernels import DualHeadOutput

from clsgen_dist.objectives.normalization import LossWeights, StepCounts, backward_loss, mean


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


def test_a_step_without_supervision_has_zero_loss_and_logs_nan():
    output = DualHeadOutput(torch.zeros(0), torch.zeros(1, 2), torch.zeros(1), torch.zeros(0) > 1)
    loss = backward_loss(output, StepCounts(0, 0, 5), LossWeights(1.0, 1.0), world_size=2)
    assert loss.item() == 0.0
    assert math.isnan(mean(0.0, 0))
