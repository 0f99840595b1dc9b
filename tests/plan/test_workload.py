"""Steps, micro-steps and tokens of the stages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clsgen_dist.data.pack import pack
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.workload import _fullest, _fullest_of_equal_rows, assumed_workload, workload_of_rows


def test_stated_rows_are_packed_as_in_training(recipe):
    work = assumed_workload(recipe(train__epochs=3), ranks=6, rows=1000, tokens_per_row=3000, supervised_per_row=100)
    stage = work.stages[0]
    assert (stage.steps, stage.micro_steps) == (47, math.ceil(64 / 2 / 6))  # two rows a micro-batch of 8192
    assert (stage.rows, stage.tokens) == (3000, 3000 * 3000)
    assert stage.fullest == (5 * 6000 + 3000) / 6  # the last micro-step has single rows
    with pytest.raises(SettingsError, match="a row has 9000 tokens"):
        assumed_workload(recipe(), ranks=6, rows=1000, tokens_per_row=9000, supervised_per_row=100)


@pytest.mark.parametrize(("rows", "length", "ranks"), [(64, 3000, 6), (64, 4097, 100), (7, 10, 3), (500, 2000, 16)])
def test_rows_of_one_length_need_no_packing(rows, length, ranks):
    length_B = np.full(rows, length)
    packed = _fullest(pack(length_B, budget=8192, ranks=ranks), length_B)
    assert _fullest_of_equal_rows(rows, length, budget=8192, ranks=ranks) == packed


def test_workload_of_real_rows_has_the_steps_and_tokens_of_the_run(recipe, row_dataset, mixed):
    from clsgen_dist.training.datasets import Datasets
    from clsgen_dist.training.sampling_plan import plan_stream

    rows = Datasets(row_dataset(mixed), None, ["no", "yes"], [])
    settings = recipe(train__batch_size=8, train__epochs=2, train__micro_batch_tokens=256)
    stream = plan_stream(settings, rows, rank=0, world_size=3)
    steps = [stream.step(k) for k in range(stream.steps)]
    work = workload_of_rows(settings, rows, ranks=3)
    stage = work.stages[0]
    assert stage.steps == stream.steps == 11
    assert stage.micro_steps == pytest.approx(np.mean([len(step.batches) for step in steps]))
    lengths = [stream.bins(k)[2] for k in range(stream.steps)]
    assert stage.tokens == pytest.approx(sum(map(np.sum, lengths)))
    every = [s for rank in range(3) for k in range(stream.steps) for s in _shares(settings, rows, rank, k)]
    # With more ranks than rows in a step, the others have nothing; a million of them cost no more to plan.
    assert workload_of_rows(settings, rows, ranks=10**6) == workload_of_rows(settings, rows, ranks=8)
    assert work.supervised_share == pytest.approx(sum(b.supervised for b in every) / sum(map(np.sum, lengths)))


def _shares(settings, rows, rank, step):
    from clsgen_dist.training.sampling_plan import plan_stream

    batches = plan_stream(settings, rows, rank=rank, world_size=3).step(step).batches
    return [batch for batch in batches if batch.supervised or batch.labelled]
