"""Runs in other precisions than fp32, for real on two ranks: 4-bit backbones (QLoRA), and bf16 from step to prediction."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from clsgen_dist import checkpoint
from clsgen_dist.hf_export.artifact import HEAD_FILE
from clsgen_dist.hf_export.verify import LogitsDifferError, verify_canary
from clsgen_dist.inference.predict import Predictor

pytestmark = [pytest.mark.dist, pytest.mark.slow]

RUN = {
    "data__train": "demo:breast-cancer/train",
    "train__batch_size": 8,
    "train__max_steps": 4,
    "checkpoint__every": 2,
    "resume": "auto",
}


def _masters(run):
    """The optimizer's fp32 weights of the last checkpoint, by rank."""
    last = checkpoint.committed(run / "checkpoints")[-1]
    assert checkpoint.read_marker(last)["state"]["step"] == 4
    files = [torch.load(file, weights_only=False) for file in sorted(last.glob("*optim_states.pt"))]
    return [flat for file in files for flat in file["optimizer_state_dict"]["fp32_flat_groups"]]


def _resumed(train, run, options):
    """The masters of the run without its last checkpoint, resumed from the one before."""
    (checkpoint.committed(run / "checkpoints")[-1] / checkpoint.MARKER).unlink()
    done = train(run, **options)
    assert "resumed from" in done.stdout and "step-00000002" in done.stdout
    return _masters(run)


def _exported(run_command, run, folder, *flags):
    done = run_command("clsgen", "export", "--checkpoint", str(run), "--output", str(folder), *flags)
    assert "verified by reloading" in done.stderr
    return Predictor(folder)


@pytest.mark.long
def test_qlora_trains_resumes_and_exports(train, run_command, tmp_path):
    options = RUN | {"model__load_in_4bit": "true", "model__finetune": "lora"}
    run = tmp_path / "run"
    train(run, **options)
    first = _masters(run)
    assert all(torch.equal(a, b) for a, b in zip(_resumed(train, run, options), first, strict=True))
    train(tmp_path / "one", ranks=1, **options)
    plain = tmp_path / "plain"
    train(plain, **options | {"model__load_in_4bit": "false"})
    losses = {
        folder: checkpoint.read_marker(checkpoint.committed(folder / "checkpoints")[-1])["canary"]["token_losses"]
        for folder in (run, tmp_path / "one", plain)
    }
    assert losses[run] == pytest.approx(losses[tmp_path / "one"], abs=1e-5), "one rank as two"
    assert losses[run] != pytest.approx(losses[plain], abs=1e-3), "the backbone is not rounded"
    predictor = _exported(run_command, run, tmp_path / "out")
    assert predictor.lm.dtype == torch.float32
    [merged] = predictor.predict(["a note"], max_new_tokens=4)
    [alone] = _exported(run_command, run, tmp_path / "adapters", "--merge", "false").predict(
        ["a note"], max_new_tokens=4
    )
    assert alone.probabilities == pytest.approx(merged.probabilities, abs=1e-5)
    canary = checkpoint.read_marker(checkpoint.committed(run / "checkpoints")[-1])["canary"]
    another = canary | {"token_losses": [loss + 0.5 for loss in canary["token_losses"]]}
    with pytest.raises(LogitsDifferError, match="float32 and 4 bits"):
        verify_canary(tmp_path / "out", another, in_4bit=True)


def test_bf16_trains_resumes_exports_and_predicts(train, run_command, tmp_path):
    options = RUN | {"train__precision": "bf16"}
    run = tmp_path / "run"
    train(run, **options)
    first = _masters(run)
    assert {flat.dtype for flat in first} == {torch.float32}
    # Between two numbers of bf16: the masters keep what an update changes.
    assert any((flat != flat.bfloat16().float()).any() for flat in first)
    assert all(torch.equal(a, b) for a, b in zip(_resumed(train, run, options), first, strict=True))
    marker = checkpoint.read_marker(checkpoint.committed(run / "checkpoints")[-1])
    assert marker["canary"]["dtype"] == "bfloat16"
    predictor = _exported(run_command, run, tmp_path / "out")
    head = load_file(tmp_path / "out" / HEAD_FILE)
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert (head["weight"] != head["weight"].bfloat16().float()).any(), "the head's master weights, not their rounding"
    [prediction] = predictor.predict(["a note"], max_new_tokens=4)
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert json.loads((tmp_path / "out/config.json").read_text()).get("dtype") == "float32", "as its base"
