"""Ranks from launchers and Slurm."""

from __future__ import annotations

import os

import pytest

from clsgen_dist.engine.world import _own_device, ranks_here, set_launch_variables
from clsgen_dist.errors import SettingsError


def test_ranks_come_from_slurm_without_a_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what the function sets is taken back afterwards
        monkeypatch.delenv(name)
    for name, value in {"PROCID": "3", "LOCALID": "1", "NTASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SettingsError, match="MASTER_ADDR or MASTER_PORT is not set"):
        set_launch_variables()
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "12345")
    launched = set_launch_variables()
    assert (launched.rank, launched.local_rank, launched.size) == (3, 1, 4)
    assert set_launch_variables() == launched
    assert [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["3", "1", "4"]


@pytest.mark.parametrize("name", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_ranks_per_node_come_from_slurm_or_the_launcher(name, monkeypatch):
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


def test_a_rank_takes_its_own_gpu(monkeypatch):
    """With ``srun --gpus-per-task`` it sees one, whose number is 0; DeepSpeed takes it from LOCAL_RANK."""
    for local_rank, visible, number in ((3, 8, 3), (3, 1, 0), (0, 1, 0)):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert _own_device(local_rank, visible) == number
        assert os.environ["LOCAL_RANK"] == str(number)
    for visible in (0, 2):
        with pytest.raises(SettingsError, match=rf"rank 2 of .* has no GPU: {visible} are visible"):
            _own_device(2, visible)
