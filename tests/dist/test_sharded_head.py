"""Training with an LM head that stays sharded, on real ranks, against one process that has all of it."""

from __future__ import annotations

import json

import pytest
import torch

from clsgen_dist import checkpoint
from clsgen_dist.hf_export.merge import trained_tensors

pytestmark = [pytest.mark.dist, pytest.mark.slow]

SMOOTH = {"optim__eps": 1e-2, "optim__lr": 0.05, "train__max_steps": 4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with and without label, and with and without explanation: some ranks' micro-batches supervise no token."""
    from clsgen_dist.data.demos.breast_cancer import load_splits

    kept = []
    for i, row in enumerate(load_splits(0)["train"].rows[:40]):
        left_out = {1: "label", 2: "explanations", 3: "explanations"}.get(i % 4)
        kept.append({key: value for key, value in row.items() if key != left_out})
    path = tmp_path_factory.mktemp("rows") / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def _trained(output):
    folder = checkpoint.committed(output / "checkpoints")[-1]
    return {name: tensor.contiguous().detach().clone().double() for name, tensor in trained_tensors(folder).items()}


def _worst(got, truth):
    """Largest difference of an update, relative to the norm of the parameter."""
    assert got.keys() == truth.keys()
    return max(((got[name] - truth[name]).norm() / truth[name].norm()).item() for name in truth)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_equal_those_of_one_process(tied, world, train, rows, tiny_backbone, tiny_untied, tmp_path):
    options = {"data__train": rows, "model__backbone": tiny_backbone if tied else tiny_untied, **SMOOTH}
    train(tmp_path / "one", ranks=1, **options)
    train(tmp_path / "sharded", ranks=world, **options, objectives__lm_head="sharded", train__micro_batch_tokens=160)
    difference = _worst(_trained(tmp_path / "sharded"), _trained(tmp_path / "one"))
    print("relative difference", difference)
    assert difference < 1e-6
