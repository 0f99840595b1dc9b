"""Several nodes without Slurm: ``deepspeed --hostfile``, started on each of them, as without ssh between them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clsgen_dist import checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.long
def test_two_nodes_of_a_hostfile_train_one_run(recipe, free_port, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    output, port, nodes = tmp_path / "run", free_port(), []
    flags = recipe(output, data__train="demo:breast-cancer/train", train__max_steps=4, train__log_rows="true")
    for node in range(2):
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--hostfile", tmp_path / "hosts", "--no_ssh"]
        launcher += ["--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", port]
        command = [*launcher, "train.py", "--config", "configs/demo.yaml", *flags]
        nodes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    ends = [(node.communicate(timeout=200)[0], node.returncode) for node in nodes]
    assert [status for _, status in ends] == [0, 0], ends[0][0][-3000:]
    marker = checkpoint.read_marker(checkpoint.committed(output / "checkpoints")[-1])
    assert (marker["state"]["step"], marker["world_size"]) == (4, 2)
