"""DeepSpeed's variants of ZeRO-3, each trained for real on two ranks where a CPU can, and refused by name where not."""

from __future__ import annotations

import json

import pytest
import torch

from clsgen_dist.config import SHIPPED
from clsgen_dist import checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]

RUN = {"data__train": "demo:breast-cancer/train", "train__batch_size": 8, "train__max_steps": 3}


@pytest.fixture
def variant(recipe, train, tmp_path):
    """``variant(name, **changes)``: three steps with a shipped file; its sections take the changes."""

    def run(name, *, check=True, sections=None, **options):
        config = json.loads((SHIPPED / f"ds_configs/{name}.json").read_text())
        zero = config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
        for section, change in (sections or {}).items():
            zero[section] = zero[section] | change if isinstance(change, dict) else change
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config))
        output = tmp_path / "runs" / name
        done = train(output, check=check, deepspeed=file, **{**RUN, **options})
        return done, output

    return run


def _weights(output):
    last = checkpoint.committed(output / "checkpoints")[-1]
    assert checkpoint.read_marker(last)["state"]["step"] == 3
    files = [torch.load(file, weights_only=False) for file in sorted(last.glob("*optim_states.pt"))]
    return [flat for file in files for flat in file["optimizer_state_dict"]["fp32_flat_groups"]]


def _worst(ours, theirs):
    ours, theirs = torch.cat([t.flatten() for t in ours]), torch.cat([t.flatten() for t in theirs])
    return (ours - theirs).abs().max().item()


@pytest.mark.long
def test_hpz_trains_as_plain_zero3_does(variant):
    _, plain = variant("zero3")
    _, hpz = variant("zero3_hpz", sections={"zero_hpz_partition_size": 2})
    assert _worst(_weights(hpz), _weights(plain)) == 0
    done, _ = variant("zero3_hpz", check=False)
    assert done.returncode == 2 and "zero_hpz_partition_size is 8, which does not divide the 2 ranks" in done.stderr


@pytest.mark.long
def test_nvme_trains_and_resumes_as_cpu_offload_does(variant, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    disk = {"nvme_path": str(tmp_path / "nvme"), "pin_memory": False}
    sections = {"offload_param": {**disk, "buffer_size": 4_000_000, "buffer_count": 20}}
    if not AsyncIOBuilder().is_compatible(verbose=False):
        done, _ = variant("zero3_nvme", check=False, optim__name="cpu_adamw", sections=sections)
        assert done.returncode == 2 and "offloading to nvme needs libaio" in done.stderr
        pytest.skip("needs libaio-dev to go on")
    same = {"optim__name": "cpu_adamw", "optim__eps": 1e-2, "checkpoint__every": 2, "resume": "auto"}
    _, host = variant("zero3_offload", **same)
    _, nvme = variant("zero3_nvme", sections=sections, **same)
    assert any((tmp_path / "nvme").rglob("*.swp"))
    assert _worst(_weights(nvme), _weights(host)) < 2e-5
    last = checkpoint.committed(nvme / "checkpoints")[-1]
    (last / checkpoint.MARKER).unlink()
    done, _ = variant("zero3_nvme", sections=sections, **same)
    assert "resumed from" in done.stdout
    assert _worst(_weights(nvme), _weights(host)) < 2e-5
    wrong = {"offload_optimizer": {"device": "nvme", **disk}}
    done, _ = variant("zero3_nvme", check=False, sections=sections | wrong, **same)
    assert done.returncode == 2 and "offload_optimizer is nvme, whose state DeepSpeed leaves out" in done.stderr


@pytest.mark.parametrize("key", ["zero_quantized_weights", "zero_quantized_gradients"])
def test_quantised_traffic_is_refused_without_a_gpu(variant, key):
    done, _ = variant("zero3", check=False, sections={key: True})
    assert done.returncode == 2 and f"{key} needs a GPU, and there is none here" in done.stderr
    assert "Traceback" not in done.stderr


def test_ulysses_is_refused(recipe, train, tmp_path):
    config = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    file = tmp_path / "ulysses.json"
    file.write_text(json.dumps({**config, "sequence_parallel_size": 2, "data_parallel_size": 1}))
    done = train(tmp_path / "run", check=False, deepspeed=file, **RUN)
    assert done.returncode == 2 and "Ulysses would cut packed sequences between ranks" in done.stderr
